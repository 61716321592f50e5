//! Which agent gets which task.
//!
//! Every agent is given a little more than it can run, the one with the least work for its cores first. It takes first
//! what it has the blocks of, then what is at home nowhere, and only when cores of it stand idle what is at home
//! elsewhere: locality orders, it never decides alone. When nothing is ready and cores stand idle, tasks not yet begun
//! are asked back from those that have more than they can run.

use shared::farm::{
    graph::{Input, Output},
    ids::{AgentId, Attempt, TaskId},
    message::{Assignment, Name, Need, ToAgent, Try},
    moment::Moment,
};

use super::{AgentRow, Scheduler, State, Transition, tables};

/// No agent has more tasks.
const QUEUE_MAX: u32 = 4096;
/// Assignments in one message: an agent begins while the rest is on its way.
const MESSAGE_MAX: usize = 256;
/// No task counts as shorter.
const TASK_US_MIN: f64 = 20.0;

impl<W: Clone> Scheduler<'_, W> {
    pub(super) fn make_ready(&mut self, now: Moment, task: TaskId) {
        self.tasks[task.0 as usize].state = State::Ready;
        self.story.tell(now, task, Transition::Ready);
        match self.home(task) {
            Some(agent) => self.agents[agent.0 as usize].home.insert(task),
            None => self.ready.insert(task),
        };
    }

    /// The agent that has most of a task's bytes.
    fn home(&self, task: TaskId) -> Option<AgentId> {
        if self.agents.len() < 2 {
            return None;
        }
        let mut bytes: Vec<(AgentId, u64)> = Vec::new();
        for input in &self.graph.tasks[task.0 as usize].inputs {
            let (agent, weight) = match *input {
                Input::Block { hash, bytes } => (self.input_homes.get(&hash).copied(), bytes),
                Input::Result { task, range } => (
                    self.tasks[task.0 as usize].holder,
                    range.map_or_else(|| self.block_bytes(task), |(start, end)| end - start),
                ),
                Input::Fold { .. } => (None, 0),
            };
            let Some(agent) = agent.filter(|a| self.is_alive(*a)) else {
                continue;
            };
            match bytes.iter_mut().find(|(a, _)| *a == agent) {
                Some((_, sum)) => *sum += weight,
                None => bytes.push((agent, weight)),
            }
        }
        bytes
            .into_iter()
            .max_by_key(|(agent, bytes)| (*bytes, std::cmp::Reverse(*agent)))
            .map(|(agent, _)| agent)
    }

    fn block_bytes(&self, task: TaskId) -> u64 {
        match self.graph.tasks[task.0 as usize].output {
            Output::Block { bytes } => bytes,
            Output::Fold { .. } => 0,
        }
    }

    fn depth(&self, agent: &AgentRow, alone: bool) -> u32 {
        let cores = u32::from(agent.cores);
        let (lead, least) = if alone {
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
        let alive = self.alive();
        let alone = alive.len() == 1;
        let mut open: Vec<(AgentId, u32)> = alive
            .iter()
            .map(|a| (*a, self.depth(&self.agents[a.0 as usize], alone)))
            .collect();
        loop {
            open.retain(|(a, depth)| self.agents[a.0 as usize].queue_width < *depth);
            // The least work for its cores, were it given one task more.
            let Some(at) = (0..open.len()).min_by_key(|i| {
                let row = &self.agents[open[*i].0.0 as usize];
                (u64::from(row.queue_width + 1) << 20) / u64::from(row.cores)
            }) else {
                break;
            };
            let agent = open[at].0;
            match self.next_for(agent) {
                Some(task) => self.assign(now, agent, task),
                None => {
                    open.swap_remove(at);
                }
            }
        }
        for &agent in &alive {
            self.flush(agent);
        }
        if !alone {
            self.balance(now, &alive);
        }
    }

    fn next_for(&mut self, agent: AgentId) -> Option<TaskId> {
        let row = &self.agents[agent.0 as usize];
        let idle = row.queue_width < u32::from(row.cores);
        match (row.home.first().copied(), self.ready.first().copied()) {
            (Some(own), Some(free)) if free < own => self.ready.pop_first(),
            (Some(_), _) => self.agents[agent.0 as usize].home.pop_first(),
            (None, Some(_)) => self.ready.pop_first(),
            (None, None) if idle => self
                .agents
                .iter_mut()
                .max_by_key(|a| a.home.len())
                .and_then(|a| a.home.pop_last()),
            (None, None) => None,
        }
    }

    fn assign(&mut self, now: Moment, agent: AgentId, task: TaskId) {
        self.story.tell(now, task, Transition::Assigned(agent));
        let spec = &self.graph.tasks[task.0 as usize];
        self.stages[spec.stage as usize].began(now);
        let row = &mut self.tasks[task.0 as usize];
        row.state = State::Assigned {
            agent,
            recalled: false,
        };
        row.attempt += 1;
        let several = self.agents.len() > 1;
        let row = &mut self.agents[agent.0 as usize];
        row.queue.insert(task);
        row.queue_width += u32::from(spec.width.min(row.cores));
        row.assignments.push(task);
        if several {
            for input in &spec.inputs {
                match input {
                    Input::Block { hash, .. } => {
                        self.input_homes.insert(*hash, agent);
                    }
                    Input::Result { .. } | Input::Fold { .. } => {}
                }
            }
        }
        if self.agents[agent.0 as usize].assignments.len() >= MESSAGE_MAX {
            self.flush(agent);
        }
    }

    fn flush(&mut self, agent: AgentId) {
        let tasks = std::mem::take(&mut self.agents[agent.0 as usize].assignments);
        if tasks.is_empty() {
            return;
        }
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
                        self.tasks[task.0 as usize]
                            .holder
                            .into_iter()
                            .filter(|h| *h != agent)
                            .collect(),
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
                Need {
                    name,
                    bytes,
                    again: self.tables.again(task.0, index).map(TaskId),
                    holders,
                }
            })
            .collect();
        let row = &self.tasks[task.0 as usize];
        Assignment {
            this: Try {
                task,
                attempt: Attempt(row.attempt),
            },
            work: spec.work.clone(),
            needs,
            output: spec.output.clone(),
            width: spec.width,
            deliver: self.tables.delivered[task.0 as usize] && !row.delivered,
        }
    }

    /// Asks tasks back for agents that have nothing.
    fn balance(&mut self, now: Moment, alive: &[AgentId]) {
        let rows = || alive.iter().map(|a| &self.agents[a.0 as usize]);
        let idle: u32 = rows()
            .map(|a| u32::from(a.cores).saturating_sub(a.queue_width))
            .sum();
        let mut wanted = idle.saturating_sub(rows().map(|a| a.recalled).sum());
        while wanted > 0 {
            // From whoever has most beyond what it can run.
            let surplus = |row: &AgentRow| {
                row.queue_width
                    .saturating_sub(u32::from(row.cores) + row.recalled)
            };
            let Some(&agent) = alive
                .iter()
                .max_by_key(|a| surplus(&self.agents[a.0 as usize]))
                .filter(|a| surplus(&self.agents[a.0 as usize]) > 0)
            else {
                return;
            };
            let most = surplus(&self.agents[agent.0 as usize]).min(wanted) as usize;
            let candidates = self.agents[agent.0 as usize].queue.iter().rev();
            let tasks: Vec<TaskId> = candidates
                .filter(|t| match self.tasks[t.0 as usize].state {
                    State::Assigned { recalled, .. } => !recalled,
                    State::Waiting | State::Ready | State::Done => false,
                })
                .take(most)
                .copied()
                .collect();
            if tasks.is_empty() {
                return;
            }
            wanted -= (tasks.len() as u32).min(wanted);
            self.recall(now, agent, &tasks);
        }
    }

    pub(super) fn recall(&mut self, now: Moment, agent: AgentId, tasks: &[TaskId]) {
        let mut tries = Vec::with_capacity(tasks.len());
        for &task in tasks {
            let row = &mut self.tasks[task.0 as usize];
            match &mut row.state {
                State::Assigned { recalled, .. } if !*recalled => {
                    *recalled = true;
                    self.agents[agent.0 as usize].recalled += 1;
                }
                State::Assigned { .. } | State::Waiting | State::Ready | State::Done => {}
            }
            tries.push(Try {
                task,
                attempt: Attempt(row.attempt),
            });
            self.story.tell(now, task, Transition::Recalled(agent));
        }
        self.tell(agent, ToAgent::Recall(tries));
    }
}
