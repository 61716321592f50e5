//! Who does not answer, what fails, and what takes too long.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;
use shared::farm::{
    graph::{Input, Output},
    ids::{AgentId, TaskId},
    message::{Cause, ToAgent, Try},
    moment::Moment,
    work::WorkError,
};

use super::{Action, Life, Scheduler, SchedulerConfig, State, Transition, story::Turn};

const PING_US: u64 = 1_000_000;
/// A loop that was so late has itself been asleep: nobody's silence counts.
const LATE_US: u64 = 1_000_000;
/// How long what one agent says of another is believed.
const APART_US: u64 = 10_000_000;
/// How long an agent that others cannot reach gets nothing, the first time; twice as long each time.
const SHUN_US: u64 = 1_000_000;
const SHUN_DOUBLINGS: u32 = 6;
/// How long a task rests that was given back unasked, the first time.
const DELAY_US: u64 = 1_000;
const DELAY_DOUBLINGS: u32 = 10;
/// How often stragglers are looked for, and what no task is suspected for.
const DOUBLE_CHECK_US: u64 = 50_000;
const STRAGGLER_US_MIN: f64 = 100_000.0;

/// What went wrong lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Troubles {
    /// Tasks that failed: how often, and where.
    failed: FxHashMap<TaskId, Vec<AgentId>>,
    /// Tasks given back unasked: how often, and when to try again.
    patience: FxHashMap<TaskId, (u32, Moment)>,
    /// Readers that cannot reach holders, until when that is believed.
    apart: BTreeMap<(AgentId, AgentId), Moment>,
    shunned: BTreeSet<(Moment, AgentId)>,
    next_watch: Option<Moment>,
    next_ping: Moment,
    next_double: Option<Moment>,
}

impl Troubles {
    /// Somebody fails at something, or cannot reach somebody.
    fn picky(&self) -> bool {
        !self.failed.is_empty() || !self.apart.is_empty()
    }

    pub fn forget(&mut self, task: TaskId) {
        if !self.failed.is_empty() {
            self.failed.remove(&task);
        }
        if !self.patience.is_empty() {
            self.patience.remove(&task);
        }
    }

    pub fn delay_of(&self, task: TaskId) -> Option<Moment> {
        if self.patience.is_empty() {
            return None;
        }
        self.patience
            .get(&task)
            .map(|(_, at)| *at)
            .filter(|at| *at > Moment::START)
    }
}

impl SchedulerConfig {
    /// How often silence is looked for.
    fn watch_us(&self) -> Option<u64> {
        let least = self.suspect_us.into_iter().chain(self.gone_us).min()?;
        Some((least / 8).clamp(1, 250_000))
    }
}

impl<W: Clone> Scheduler<W> {
    /// The next moment at which it wants an [`Event::Tick`](super::Event::Tick).
    pub fn poll_deadline(&self) -> Option<Moment> {
        let delayed = self.shelves.delayed.first().map(|(at, _)| *at);
        let shunned = self.troubles.shunned.first().map(|(at, _)| *at);
        [
            self.troubles.next_watch,
            self.troubles.next_double,
            delayed,
            shunned,
            self.next_link_again(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Not every agent may do every task.
    pub(super) fn picky(&self) -> bool {
        !self.slow.is_empty() || self.troubles.picky()
    }

    /// Whether an agent may do a task: it has not failed at it while others have not, it can reach what the task reads, and
    /// what that costs is less than what it gains.
    pub(super) fn may(&self, agent: AgentId, task: TaskId) -> bool {
        let troubles = &self.troubles;
        if !self.picky() || self.surveyed < 2 {
            return true;
        }
        let failed = troubles.failed.get(&task);
        if failed.is_some_and(|who| who.contains(&agent)) {
            return false;
        }
        (troubles.apart.is_empty() || self.blamed(agent, task).is_none()) && self.pays(agent, task)
    }

    /// Somebody whom this agent would need for the task and cannot reach.
    fn blamed(&self, agent: AgentId, task: TaskId) -> Option<AgentId> {
        let apart = |holder: &AgentId| self.troubles.apart.contains_key(&(agent, *holder));
        let inputs = self.graph.tasks[task.0 as usize].inputs.iter();
        inputs
            .filter_map(|input| match input {
                Input::Block { .. } => None,
                Input::Result { task, .. } => {
                    let row = &self.tasks[task.0 as usize];
                    row.holder
                        .filter(|h| apart(h) && row.keep != super::Keep::Kept)
                }
                Input::Fold { accumulator, .. } => {
                    let mut holders = self.sums[accumulator.0 as usize].holders.keys();
                    holders.find(|h| apart(h)).copied()
                }
            })
            .next()
    }

    /// Lets a task rest that was given back unasked.
    pub(super) fn delay(&mut self, now: Moment, task: TaskId) {
        let (count, at) = self
            .troubles
            .patience
            .entry(task)
            .or_insert((0, Moment::START));
        *at = now + (DELAY_US << (*count).min(DELAY_DOUBLINGS));
        *count += 1;
    }

    /// Looks at the clock.
    pub(super) fn watch(&mut self, now: Moment) {
        while let Some(&(at, task)) = self.shelves.delayed.first()
            && at <= now
        {
            self.unshelve(task);
            if let Some((_, at)) = self.troubles.patience.get_mut(&task) {
                *at = Moment::START;
            }
            self.shelve(task);
        }
        while let Some(&(at, agent)) = self.troubles.shunned.first()
            && at <= now
        {
            self.troubles.shunned.pop_first();
            let row = &mut self.agents[agent.0 as usize];
            if row.shunned_until <= now {
                row.shunned_now = false;
                self.population_changed();
            }
        }
        self.watch_links(now);
        if self.troubles.next_double.is_some_and(|at| at <= now) {
            self.troubles.next_double = None;
        }
        let Some(watch_us) = self.config.watch_us() else {
            return;
        };
        let due = self.troubles.next_watch.get_or_insert(now + watch_us);
        if *due > now {
            return;
        }
        let late = now.since(*due) > LATE_US;
        *due = now + watch_us;
        if !self.troubles.apart.is_empty() {
            self.troubles.apart.retain(|_, until| *until > now);
        }
        for index in 0..self.agents.len() {
            let row = &mut self.agents[index];
            if late {
                row.heard = now;
            }
            let silent = now.since(row.heard);
            let agent = AgentId(index as u32);
            match row.life {
                Life::New | Life::Gone => {}
                Life::Alive | Life::Suspect
                    if self.config.gone_us.is_some_and(|us| silent >= us) =>
                {
                    self.story
                        .tell_turn(now, agent, Turn::GivenUp { us: silent });
                    self.gone(now, agent);
                    self.actions.push_back(Action::Close(agent));
                }
                Life::Alive if self.config.suspect_us.is_some_and(|us| silent >= us) => {
                    self.story
                        .tell_turn(now, agent, Turn::Silent { us: silent });
                    self.suspect(now, agent);
                }
                Life::Alive | Life::Suspect => {}
            }
        }
        if self.troubles.next_ping <= now {
            self.troubles.next_ping = now + PING_US;
            for index in 0..self.agents.len() {
                match self.agents[index].life {
                    Life::New | Life::Gone => {}
                    Life::Alive | Life::Suspect => {
                        self.tell(AgentId(index as u32), ToAgent::Ping);
                    }
                }
            }
        }
    }

    /// Others do its work from now on. It may say hello again.
    fn suspect(&mut self, now: Moment, agent: AgentId) {
        self.agents[agent.0 as usize].life = Life::Suspect;
        self.write_off(now, agent);
        self.tell(agent, ToAgent::Reset);
    }

    /// Its link has ended, or it has been silent for too long.
    pub(super) fn gone(&mut self, now: Moment, agent: AgentId) {
        let Some(row) = self.agents.get_mut(agent.0 as usize) else {
            return;
        };
        let before = std::mem::replace(&mut row.life, Life::Gone);
        match before {
            Life::Alive => self.write_off(now, agent),
            Life::New | Life::Suspect | Life::Gone => {}
        }
    }

    pub(super) fn unreachable(&mut self, now: Moment, agent: AgentId, peer: AgentId) {
        if agent == peer || !self.is_alive(peer) {
            return;
        }
        let known = self.troubles.apart.insert((agent, peer), now + APART_US);
        if known.is_some_and(|until| until > now) {
            return;
        }
        let home: Vec<TaskId> = self.agents[agent.0 as usize].home.iter().copied().collect();
        for task in home {
            self.unshelve(task);
            self.shelve(task);
        }
        let row = &mut self.agents[peer.0 as usize];
        row.complaints += 1;
        if row.complaints >= 2 || self.alive <= 2 {
            self.shun(now, peer);
        }
    }

    /// Nobody can be sent to it for what it has: it begins anew, later.
    fn shun(&mut self, now: Moment, agent: AgentId) {
        let row = &mut self.agents[agent.0 as usize];
        let us = SHUN_US << row.shunned.min(SHUN_DOUBLINGS);
        row.shunned += 1;
        row.shunned_now = true;
        row.shunned_until = now + us;
        self.troubles.shunned.insert((now + us, agent));
        self.story.tell_turn(now, agent, Turn::Shunned { us });
        self.suspect(now, agent);
    }

    pub(super) fn failed(&mut self, now: Moment, agent: AgentId, this: Try, cause: Cause) {
        if !self.current(agent, this) {
            return;
        }
        let task = this.task;
        self.story.tell(now, task, Transition::Failed(agent));
        let again = match &cause {
            Cause::Input(_) | Cause::Work(WorkError::OutOfMemory { .. }) => true,
            Cause::Work(WorkError::BadInput(_) | WorkError::Numbers(_) | WorkError::Panic(_)) => {
                false
            }
        };
        let who = self.troubles.failed.entry(task).or_default();
        who.push(agent);
        if !again || who.len() >= self.config.attempts_max as usize {
            self.over = true;
            self.actions.push_back(Action::Failed { this, cause });
            return;
        }
        self.give_up(agent, task);
        self.settle_if_waiting(now, task);
    }

    /// Helps tasks that no agent may do: where all have failed, all may try again; where nobody reaches a holder, it is
    /// written off.
    pub(super) fn unstick(&mut self, now: Moment) {
        for task in self.orphans() {
            if self.surveyed < 2 || self.tasks[task.0 as usize].state != State::Ready {
                return;
            }
            let agents = self.living();
            let blamed = agents
                .iter()
                .filter(|a| self.agents[a.0 as usize].surveyed)
                .find_map(|a| self.blamed(*a, task));
            match blamed {
                Some(holder) => self.shun(now, holder),
                None => {
                    // The failures are counted still, by agents that do not exist.
                    if let Some(who) = self.troubles.failed.get_mut(&task) {
                        who.fill(AgentId::COORDINATOR);
                    }
                    self.unshelve(task);
                    self.shelve(task);
                }
            }
            self.dirty = true;
        }
    }

    /// Whether a task was given to this agent before any other, and is not asked back.
    fn is_first(&self, agent: AgentId, task: TaskId) -> bool {
        matches!(self.tasks[task.0 as usize].state,
            State::Assigned { agent: a, recalled: false, .. } if a == agent)
    }

    /// Gives tasks that take too long to idle agents, too. Only those that yield blocks: the first answer wins, and the
    /// other is dropped.
    pub(super) fn double(&mut self, now: Moment) {
        if !self.starved() || self.troubles.next_double.is_some() {
            return;
        }
        let mut busy = false;
        for index in 0..self.agents.len() {
            let agent = AgentId(index as u32);
            let row = &self.agents[index];
            if row.life != Life::Alive || row.queue.is_empty() {
                continue;
            }
            busy = true;
            let waited = now.since(row.moved) as f64;
            if waited < STRAGGLER_US_MIN {
                continue;
            }
            let running: Vec<TaskId> = row.queue.iter().take(row.cores as usize).copied().collect();
            let first = running.iter().copied().find(|t| self.is_first(agent, *t));
            if let Some((first, expected)) = first.and_then(|t| Some((t, self.expected_us(t)?)))
                && waited > 2.0 * expected + STRAGGLER_US_MIN
                // One that has died meanwhile is not to be blamed for its link.
                && 2.0 * row.heard.since(row.moved) as f64 >= waited
            {
                self.suspect_link(now, agent, first, waited);
            }
            for task in running {
                let spec = &self.graph.tasks[task.0 as usize];
                match spec.output {
                    Output::Block { .. } => {}
                    Output::Fold { .. } => continue,
                }
                if !self.is_first(agent, task) || self.twins.contains_key(&task) {
                    continue;
                }
                let Some(expected) = self.expected_us(task) else {
                    continue;
                };
                if waited > 2.0 * expected + STRAGGLER_US_MIN
                    && let Some(idle) = self.idle_agent(task, agent)
                {
                    self.assign_twin(now, idle, task);
                }
            }
        }
        if busy {
            self.troubles.next_double = Some(now + DOUBLE_CHECK_US);
        }
    }
}
