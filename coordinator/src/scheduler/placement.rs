//! Which agent gets which task.
//!
//! Every agent is given a little more than it can run, the one with the least work for its cores first. It takes first
//! what it has the blocks of, then what is at home nowhere. When cores of it stand idle it takes what is at home elsewhere,
//! if that one has more to do than shipping and computing take: locality orders, it never decides alone. When nothing is
//! ready and cores stand idle, tasks not yet begun are asked back from those that have more than they can run, and the
//! last ones of a stage are done twice when they take too long.
//!
//! Nothing here looks at all agents or at all tasks for one task: agents that want work and agents for which there was
//! none stand in two ordered sets, and whatever happens to an agent puts it into the first again.

use std::collections::BTreeSet;

use shared::farm::{
    graph::{Input, Output},
    ids::{AgentId, Attempt, TaskId},
    message::{Assignment, LATER, Name, Need, ToAgent, Try},
    moment::Moment,
};

use super::{
    AgentRow, Keep, Life, Scheduler, Shelf, State, Transition, Twin, story::Recall, tables,
};

/// No agent has more tasks.
const QUEUE_MAX: u32 = 4096;
/// Assignments in one message: an agent begins while the rest is on its way.
const MESSAGE_MAX: usize = 256;
/// No task counts as shorter.
const TASK_US_MIN: f64 = 20.0;
/// Idle agents that are tried at once as takers of what is at home elsewhere, and tasks that are offered to each.
const TAKERS_MAX: usize = 16;
const OFFERS_MAX: usize = 8;
/// Tasks that are looked through for one that a certain agent may do, when not all may.
const SEARCH_MAX: usize = 256;
/// A load below one task a core.
const IDLE_LOAD: u64 = 1 << 20;

/// Where ready tasks and willing agents stand.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelves {
    /// Ready tasks at home nowhere.
    free: BTreeSet<TaskId>,
    pub delayed: BTreeSet<(Moment, TaskId)>,
    /// How many ready tasks are at home with whom, where there are any.
    home_sizes: BTreeSet<(usize, AgentId)>,
    /// Agents that want work, by how much they have for their cores; and those for which there was none.
    open: BTreeSet<(u64, AgentId)>,
    parked: BTreeSet<(u64, AgentId)>,
    /// Free tasks that have come since agents were parked.
    news: usize,
    /// Cores without a task, and tasks asked back.
    idle: u32,
    recalled: u32,
    /// Agents with more than they can run, by how much.
    surplus: BTreeSet<(u32, AgentId)>,
    /// Agents with assignments to be sent.
    unsent: Vec<AgentId>,
    /// This task is to be at home nowhere.
    pub nowhere: Option<TaskId>,
}

/// Under which keys an agent stands in the shelves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filed {
    open: Option<u64>,
    parked: Option<u64>,
    idle: u32,
    surplus: u32,
}

impl<W: Clone> Scheduler<W> {
    pub(super) fn make_ready(&mut self, now: Moment, task: TaskId) {
        self.tasks[task.0 as usize].state = State::Ready;
        self.story.tell(now, task, Transition::Ready);
        if self.tables.block_of(task.0).is_some() {
            let stage = self.graph.tasks[task.0 as usize].stage;
            if self.planned_stage.is_none_or(|s| s < stage) {
                self.planned_stage = Some(stage);
                self.replan = true;
            }
        }
        self.shelve(task);
    }

    /// Puts a ready task where it is to be taken from.
    pub(super) fn shelve(&mut self, task: TaskId) {
        let shelf = match self.troubles.delay_of(task) {
            Some(at) => Shelf::Delayed(at),
            None if self.shelves.nowhere == Some(task) => Shelf::Free,
            None => match self.home(task).filter(|a| self.may(*a, task)) {
                Some(agent) => Shelf::Home(agent),
                None => Shelf::Free,
            },
        };
        self.tasks[task.0 as usize].shelf = shelf;
        match shelf {
            Shelf::Delayed(at) => {
                self.shelves.delayed.insert((at, task));
            }
            Shelf::Home(agent) => {
                let home = &mut self.agents[agent.0 as usize].home;
                let size = home.len();
                home.insert(task);
                self.shelves.home_sizes.remove(&(size, agent));
                self.shelves.home_sizes.insert((size + 1, agent));
                self.wake(agent);
            }
            Shelf::Free => {
                self.shelves.free.insert(task);
                self.shelves.news += 1;
            }
        }
    }

    pub(super) fn unshelve(&mut self, task: TaskId) {
        match self.tasks[task.0 as usize].shelf {
            Shelf::Delayed(at) => {
                self.shelves.delayed.remove(&(at, task));
            }
            Shelf::Home(agent) => {
                let home = &mut self.agents[agent.0 as usize].home;
                let size = home.len();
                home.remove(&task);
                self.shelves.home_sizes.remove(&(size, agent));
                if size > 1 {
                    self.shelves.home_sizes.insert((size - 1, agent));
                }
            }
            Shelf::Free => {
                self.shelves.free.remove(&task);
            }
        }
    }

    /// Counts anew where every ready task and every agent stands: somebody has come or gone.
    pub(super) fn population_changed(&mut self) {
        let living = |a: &&AgentRow| a.life == Life::Alive;
        self.alive = self.agents.iter().filter(living).count();
        self.surveyed = self
            .agents
            .iter()
            .filter(living)
            .filter(|a| a.surveyed)
            .count();
        let met = |a: &&AgentRow| match a.life {
            Life::New => false,
            Life::Alive => a.surveyed,
            Life::Suspect | Life::Gone => true,
        };
        self.met = self.agents.iter().filter(met).count();
        for agent in 0..self.agents.len() as u32 {
            self.refile(AgentId(agent));
        }
        self.replan = true;
    }

    /// Whether an agent is given anything at all.
    pub(super) fn serves(&self, row: &AgentRow) -> bool {
        row.life == Life::Alive && row.surveyed && (!row.shunned_now || self.surveyed == 1)
    }

    /// Puts an agent where it belongs after something has happened to it.
    pub(super) fn refile(&mut self, agent: AgentId) {
        let row = &self.agents[agent.0 as usize];
        let old = row.filed;
        let mut new = Filed::default();
        if self.serves(row) {
            let cores = u32::from(row.cores);
            if row.queue_width < self.depth(row) {
                new.open = Some((u64::from(row.queue_width + 1) << 20) / u64::from(cores));
            }
            new.idle = cores.saturating_sub(row.queue_width);
            new.surplus = row.queue_width.saturating_sub(cores + row.recalled);
        }
        let shelves = &mut self.shelves;
        if let Some(load) = old.parked {
            shelves.parked.remove(&(load, agent));
        }
        if old.open != new.open {
            if let Some(load) = old.open {
                shelves.open.remove(&(load, agent));
            }
            if let Some(load) = new.open {
                shelves.open.insert((load, agent));
            }
        }
        if old.surplus != new.surplus {
            shelves.surplus.remove(&(old.surplus, agent));
            if new.surplus > 0 {
                shelves.surplus.insert((new.surplus, agent));
            }
        }
        shelves.idle = shelves.idle - old.idle + new.idle;
        self.agents[agent.0 as usize].filed = new;
    }

    /// There may be work for it.
    fn wake(&mut self, agent: AgentId) {
        let filed = &mut self.agents[agent.0 as usize].filed;
        if let Some(load) = filed.parked.take() {
            filed.open = Some(load);
            self.shelves.parked.remove(&(load, agent));
            self.shelves.open.insert((load, agent));
        }
    }

    /// There is none.
    fn park(&mut self, agent: AgentId) {
        let filed = &mut self.agents[agent.0 as usize].filed;
        if let Some(load) = filed.open.take() {
            filed.parked = Some(load);
            self.shelves.open.remove(&(load, agent));
            self.shelves.parked.insert((load, agent));
        }
    }

    pub(super) fn uncount_recall(&mut self, agent: AgentId) {
        self.agents[agent.0 as usize].recalled -= 1;
        self.shelves.recalled -= 1;
    }

    /// Where a task is at home: where its block is, or more than half of what it reads.
    fn home(&self, task: TaskId) -> Option<AgentId> {
        if self.surveyed < 2 {
            return None;
        }
        if let Some(block) = self.tables.block_of(task.0) {
            return self.homes[block as usize].filter(|a| self.is_alive(*a));
        }
        let mut all = 0;
        let mut bytes: Vec<(AgentId, u64)> = Vec::new();
        for input in &self.graph.tasks[task.0 as usize].inputs {
            let (agent, weight) = match *input {
                Input::Block { .. } => (None, 0),
                Input::Result { task, .. } => {
                    (self.tasks[task.0 as usize].holder, self.input_bytes(input))
                }
                Input::Fold { .. } => (None, self.input_bytes(input)),
            };
            all += weight;
            let Some(agent) = agent else {
                continue;
            };
            match bytes.iter_mut().find(|(a, _)| *a == agent) {
                Some((_, sum)) => *sum += weight,
                None => bytes.push((agent, weight)),
            }
        }
        bytes
            .into_iter()
            .find(|(agent, bytes)| 2 * bytes > all && self.is_alive(*agent))
            .map(|(agent, _)| agent)
    }

    /// Of what a task reads of it.
    pub(super) fn input_bytes(&self, input: &Input) -> u64 {
        match *input {
            Input::Block { bytes, .. } => bytes,
            Input::Result { task, range } => {
                range.map_or_else(|| self.block_bytes(task), |(start, end)| end - start)
            }
            Input::Fold {
                accumulator,
                part,
                chunk,
            } => {
                let shape = &self.graph.accumulators[accumulator.0 as usize];
                8 * u64::from(shape.parts[part as usize][chunk as usize])
            }
        }
    }

    pub(super) fn block_bytes(&self, task: TaskId) -> u64 {
        match self.graph.tasks[task.0 as usize].output {
            Output::Block { bytes } => bytes,
            Output::Fold { .. } => 0,
        }
    }

    fn depth(&self, agent: &AgentRow) -> u32 {
        let cores = u32::from(agent.cores);
        let (lead, least) = if self.alive == 1 {
            (self.config.lead_alone_us, (8 * cores).max(64))
        } else {
            (self.config.lead_us, 2 * cores)
        };
        let known = agent.task_us.map_or(0, |us| {
            (lead as f64 * f64::from(cores) / us.max(TASK_US_MIN)) as u32
        });
        known.min(QUEUE_MAX).max(least)
    }

    pub(super) fn place(&mut self, now: Moment) {
        if std::mem::take(&mut self.replan) {
            self.plan_homes(now);
        }
        if self.picky() && !self.shelves.free.is_empty() {
            // Not everybody may do what is there.
            self.shelves.news = usize::MAX;
        }
        while self.shelves.news > 0
            && let Some(&(_, agent)) = self.shelves.parked.first()
        {
            self.shelves.news -= 1;
            self.wake(agent);
        }
        self.shelves.news = 0;
        while let Some(&(_, agent)) = self.shelves.open.first() {
            match self.next_for(agent) {
                Some(task) => self.assign(now, agent, task),
                None => self.park(agent),
            }
        }
        if self.picky() {
            self.unstick(now);
        }
        if self.surveyed > 1 {
            self.take_from_others(now);
            self.balance(now);
            self.double(now);
        }
        for agent in std::mem::take(&mut self.shelves.unsent) {
            self.flush(agent);
        }
    }

    fn next_for(&mut self, agent: AgentId) -> Option<TaskId> {
        let picky = self.picky();
        let first = |tasks: &BTreeSet<TaskId>| {
            if picky {
                let mut tasks = tasks.iter().take(SEARCH_MAX).copied();
                tasks.find(|t| self.may(agent, *t))
            } else {
                tasks.first().copied()
            }
        };
        let own = first(&self.agents[agent.0 as usize].home);
        let free = first(&self.shelves.free);
        let task = match (own, free) {
            (Some(own), Some(free)) => own.min(free),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => return None,
        };
        self.unshelve(task);
        Some(task)
    }

    /// Gives idle agents what is at home with those that have most left.
    fn take_from_others(&mut self, now: Moment) {
        'tasks: while let Some(&(_, owner)) = self.shelves.home_sizes.last() {
            let takers: Vec<AgentId> = self
                .shelves
                .parked
                .iter()
                .take_while(|(load, _)| *load <= IDLE_LOAD)
                .take(TAKERS_MAX)
                .map(|(_, agent)| *agent)
                .filter(|agent| *agent != owner)
                .collect();
            for taker in takers {
                if let Some(task) = self.offer(owner, taker) {
                    self.unshelve(task);
                    self.story.tell(now, task, Transition::Taken(owner));
                    self.assign(now, taker, task);
                    self.park(taker);
                    continue 'tasks;
                }
            }
            break;
        }
    }

    fn offer(&self, owner: AgentId, taker: AgentId) -> Option<TaskId> {
        let row = &self.agents[owner.0 as usize];
        let offers = || {
            let offers = row.home.iter().rev().take(OFFERS_MAX).copied();
            offers.filter(|t| self.may(taker, *t))
        };
        let here = offers().find(|t| {
            self.tables
                .block_of(t.0)
                .is_some_and(|b| self.agents[taker.0 as usize].has.contains(b))
        });
        let task = here.or_else(|| offers().next())?;
        let Some(us) = row.task_us.filter(|_| here.is_none() && self.serves(row)) else {
            return Some(task);
        };
        let backlog =
            (row.home.len() as f64 + f64::from(row.queue_width)) * us / f64::from(row.cores);
        let own = self.agents[taker.0 as usize].task_us.unwrap_or(us);
        (backlog > self.ship_us(taker, task) + own).then_some(task)
    }

    fn assign(&mut self, now: Moment, agent: AgentId, task: TaskId) {
        self.story.tell(now, task, Transition::Assigned(agent));
        let spec = &self.graph.tasks[task.0 as usize];
        self.stages[spec.stage as usize].began(now);
        let row = &mut self.tasks[task.0 as usize];
        row.attempt += 1;
        row.state = State::Assigned {
            agent,
            attempt: row.attempt,
            recalled: false,
        };
        self.enqueue(now, agent, task);
    }

    fn enqueue(&mut self, now: Moment, agent: AgentId, task: TaskId) {
        self.tasks[task.0 as usize].last = Some(agent);
        let block = self.tables.block_of(task.0);
        let coming = if self.surveyed > 1 {
            self.ship_bytes(agent, task)
        } else {
            0
        };
        let width = self.graph.tasks[task.0 as usize].width;
        let row = &mut self.agents[agent.0 as usize];
        if row.queue.is_empty() {
            row.moved = now;
        }
        row.queue.insert(task);
        if coming > 0 {
            row.link.coming.insert(task, coming);
        }
        row.queue_width += u32::from(width.min(row.cores));
        if let Some(block) = block {
            row.has.insert(block);
        }
        if row.assignments.is_empty() {
            self.shelves.unsent.push(agent);
        }
        row.assignments.push(task);
        if row.assignments.len() >= MESSAGE_MAX {
            self.flush(agent);
        }
        self.refile(agent);
    }

    fn flush(&mut self, agent: AgentId) {
        let tasks = std::mem::take(&mut self.agents[agent.0 as usize].assignments);
        if tasks.is_empty() {
            return;
        }
        self.flush_drops_of(agent);
        let assignments = tasks.iter().map(|t| self.assignment(agent, *t)).collect();
        self.tell(agent, ToAgent::Assign(assignments));
    }

    fn assignment(&self, agent: AgentId, task: TaskId) -> Assignment<W> {
        let spec = &self.graph.tasks[task.0 as usize];
        let needs = spec
            .inputs
            .iter()
            .enumerate()
            .map(|(index, input)| {
                let (bytes, holders) = match *input {
                    Input::Block { bytes, .. } => (bytes, Vec::new()),
                    Input::Result { task, range } => (
                        range.map_or_else(|| self.block_bytes(task), |(start, end)| end - start),
                        self.holders(task, agent),
                    ),
                    Input::Fold {
                        accumulator,
                        part,
                        chunk,
                    } => {
                        let shape = &self.graph.accumulators[accumulator.0 as usize];
                        let holders = self.sums[accumulator.0 as usize].holders.keys();
                        (
                            8 * u64::from(shape.parts[part as usize][chunk as usize]),
                            holders.copied().filter(|h| *h != agent).collect(),
                        )
                    }
                };
                let name: Name = tables::name(input);
                let again = self.tables.again(task.0, index).or(match input {
                    Input::Block { .. } if self.graph.open => Some(LATER + task.0),
                    // Copies may go: what is held stays with whoever has made it.
                    Input::Block { .. } | Input::Result { .. } | Input::Fold { .. } => None,
                });
                Need {
                    name,
                    bytes,
                    again: again.map(TaskId),
                    holders,
                }
            })
            .collect();
        let row = &self.tasks[task.0 as usize];
        Assignment {
            this: self.attempt(agent, task),
            work: spec.work.clone(),
            needs,
            output: spec.output.clone(),
            width: spec.width,
            stage: spec.stage,
            deliver: (self.tables.delivered[task.0 as usize] && !row.delivered)
                || row.keep == Keep::Wanted,
        }
    }

    /// Who has a result, the coordinator last.
    fn holders(&self, task: TaskId, reader: AgentId) -> Vec<AgentId> {
        let row = &self.tasks[task.0 as usize];
        let kept = (row.keep == Keep::Kept).then_some(AgentId::COORDINATOR);
        let holder = row.holder.filter(|h| *h != reader);
        holder.into_iter().chain(kept).collect()
    }

    /// The try that an agent makes of a task.
    fn attempt(&self, agent: AgentId, task: TaskId) -> Try {
        let first = match self.tasks[task.0 as usize].state {
            State::Assigned {
                agent: a, attempt, ..
            } if a == agent => Some(attempt),
            State::Assigned { .. } | State::Waiting | State::Ready | State::Done => None,
        };
        let twin = self.twins.get(&task).filter(|t| t.agent == agent);
        let attempt = first.or(twin.map(|t| t.attempt)).unwrap_or(0);
        Try {
            task,
            attempt: Attempt(attempt),
        }
    }

    /// Gives a task to a second agent.
    pub(super) fn assign_twin(&mut self, now: Moment, agent: AgentId, task: TaskId) {
        self.story.tell(now, task, Transition::Doubled(agent));
        let row = &mut self.tasks[task.0 as usize];
        row.attempt += 1;
        let attempt = row.attempt;
        self.twins.insert(task, Twin { agent, attempt });
        self.enqueue(now, agent, task);
    }

    /// An agent that stands idle and may do this.
    pub(super) fn idle_agent(&self, task: TaskId, but: AgentId) -> Option<AgentId> {
        let parked = self.shelves.parked.iter();
        parked
            .take_while(|(load, _)| *load <= IDLE_LOAD)
            .take(TAKERS_MAX)
            .map(|(_, agent)| *agent)
            .find(|agent| *agent != but && self.may(*agent, task))
    }

    /// Cores stand idle and nothing is ready.
    pub(super) fn starved(&self) -> bool {
        self.shelves.idle > 0 && self.shelves.free.is_empty() && self.shelves.home_sizes.is_empty()
    }

    /// Free tasks that no agent may do.
    pub(super) fn orphans(&self) -> Vec<TaskId> {
        let agents: Vec<AgentId> = self.living();
        let agents = agents
            .iter()
            .filter(|a| self.agents[a.0 as usize].surveyed)
            .copied();
        let agents: Vec<AgentId> = agents.collect();
        let free = self.shelves.free.iter().take(SEARCH_MAX).copied();
        free.filter(|t| !agents.iter().any(|a| self.may(*a, *t)))
            .collect()
    }

    /// Asks tasks back for agents that have nothing.
    fn balance(&mut self, now: Moment) {
        let mut wanted = self.shelves.idle.saturating_sub(self.shelves.recalled);
        while wanted > 0 {
            // From whoever has most beyond what it can run.
            let Some(&(surplus, agent)) = self.shelves.surplus.last() else {
                return;
            };
            let row = &self.agents[agent.0 as usize];
            let wait = row
                .task_us
                .map(|us| (f64::from(surplus) * us / f64::from(row.cores), us));
            let taker = self.shelves.parked.first().map(|(_, taker)| *taker);
            let worth = |task: TaskId| match (wait, taker) {
                (Some((wait, us)), Some(taker)) => wait > us + self.ship_us(taker, task),
                (None, _) | (_, None) => true,
            };
            let tasks: Vec<TaskId> = row
                .queue
                .iter()
                .rev()
                .filter(|t| match self.tasks[t.0 as usize].state {
                    State::Assigned {
                        agent: a, recalled, ..
                    } => a == agent && !recalled && !self.twins.contains_key(t),
                    State::Waiting | State::Ready | State::Done => false,
                })
                .filter(|t| worth(**t))
                .take(surplus.min(wanted) as usize)
                .copied()
                .collect();
            if tasks.is_empty() {
                return;
            }
            wanted -= (tasks.len() as u32).min(wanted);
            self.recall(now, agent, &tasks, Recall::Idle);
        }
    }

    pub(super) fn recall(&mut self, now: Moment, agent: AgentId, tasks: &[TaskId], why: Recall) {
        let mut tries = Vec::with_capacity(tasks.len());
        for &task in tasks {
            tries.push(self.attempt(agent, task));
            match &mut self.tasks[task.0 as usize].state {
                State::Assigned {
                    agent: a, recalled, ..
                } if *a == agent && !*recalled => {
                    *recalled = true;
                    self.agents[agent.0 as usize].recalled += 1;
                    self.shelves.recalled += 1;
                }
                State::Assigned { .. } | State::Waiting | State::Ready | State::Done => {}
            }
            self.story.tell(now, task, Transition::Recalled(agent, why));
        }
        self.refile(agent);
        self.tell(agent, ToAgent::Recall(tries));
    }

    /// Asks one task back that need not be done any more.
    pub(super) fn recall_from(&mut self, now: Moment, agent: AgentId, task: TaskId) {
        let this = self.attempt(agent, task);
        self.story
            .tell(now, task, Transition::Recalled(agent, Recall::Beaten));
        self.tell(agent, ToAgent::Recall(vec![this]));
    }
}
