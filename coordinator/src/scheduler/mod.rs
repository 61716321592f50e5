//! The scheduler as a machine without IO: [`Scheduler::handle`] takes what happened, [`Scheduler::poll_action`] says
//! what to do.
//!
//! A task passes through: waiting (an input does not exist), ready, assigned, done; and back to waiting when what it
//! had yielded is lost and needed. A block has one owner; a contribution is in one agent's partial sum. What the
//! scheduler believes is only changed by answers to the current attempt from agents that are not lost.

mod lineage;
mod placement;
mod progress;
mod story;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rustc_hash::FxHashMap;
use shared::farm::{
    graph::{Graph, Input, Output},
    ids::{AccumulatorId, AgentId, ContentHash, TaskId},
    message::{Cause, Done, FromAgent, Hello, PROTOCOL, ProtocolRange, Status, ToAgent, Try},
    moment::Moment,
};

pub use progress::{Progress, StageProgress};
pub use story::{Story, TaskStory, Transition};
use tables::Tables;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SchedulerConfig {
    /// Nothing is assigned before so many agents have said hello.
    pub agents_expected: usize,
    /// An agent that says nothing for so long is lost.
    pub silence_us_max: Option<u64>,
    /// How much work an agent is given ahead, when there are others, and when it is alone.
    pub lead_us: u64,
    pub lead_alone_us: u64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            agents_expected: 1,
            silence_us_max: None,
            lead_us: 200_000,
            lead_alone_us: 1_000_000,
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    Said {
        agent: AgentId,
        message: FromAgent,
    },
    /// A block for whoever runs the plan has come.
    Delivery {
        agent: AgentId,
        task: TaskId,
    },
    Lost(AgentId),
    Tick,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Action<W> {
    Tell {
        agent: AgentId,
        message: ToAgent<W>,
    },
    /// Hand out the block that has just come.
    Deliver(TaskId),
    Failed {
        this: Try,
        cause: Cause,
    },
    Refused {
        agent: AgentId,
        understood: ProtocolRange,
    },
    Finished,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Ready,
    Assigned { agent: AgentId, recalled: bool },
    Done,
}

#[derive(Clone, Debug)]
struct Row {
    state: State,
    attempt: u32,
    /// Inputs that do not exist; counted while waiting.
    missing: u32,
    /// Inputs of tasks not done that read this, and one for a delivery to come.
    readers_left: u32,
    /// Who has the block, or the contribution.
    holder: Option<AgentId>,
    delivered: bool,
}

#[derive(Clone, Debug)]
struct Sum {
    folds_left: u32,
    readers_left: u32,
    dropped: bool,
    /// How many contributions are with whom.
    holders: BTreeMap<AgentId, u32>,
}

#[derive(Clone, Debug)]
struct AgentRow {
    alive: bool,
    cores: u16,
    /// Assigned and not done.
    queue: BTreeSet<TaskId>,
    queue_width: u32,
    recalled: u32,
    /// Mean time of a task.
    task_us: Option<f64>,
    status: Status,
    heard: Moment,
    /// Ready tasks whose blocks it has.
    home: BTreeSet<TaskId>,
    assignments: Vec<TaskId>,
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler<'g, W> {
    graph: &'g Graph<W>,
    plan: ContentHash,
    config: SchedulerConfig,
    tables: Tables,
    tasks: Vec<Row>,
    sums: Vec<Sum>,
    agents: Vec<AgentRow>,
    greeted: usize,
    ready: BTreeSet<TaskId>,
    input_homes: FxHashMap<ContentHash, AgentId>,
    stages: Vec<StageProgress>,
    not_done: usize,
    not_delivered: usize,
    drop_results: Vec<TaskId>,
    drop_sums: Vec<AccumulatorId>,
    actions: VecDeque<Action<W>>,
    dirty: bool,
    over: bool,
    story: Story,
}

impl<'g, W: Clone> Scheduler<'g, W> {
    /// The graph must be valid.
    pub fn new(graph: &'g Graph<W>, plan: ContentHash, config: SchedulerConfig) -> Self {
        let tables = Tables::new(graph);
        let tasks = (0..graph.tasks.len() as u32)
            .map(|t| Row {
                state: State::Waiting,
                attempt: 0,
                missing: 0,
                readers_left: tables.result_readers(t).len() as u32
                    + u32::from(tables.delivered[t as usize]),
                holder: None,
                delivered: false,
            })
            .collect();
        let sums = (0..graph.accumulators.len() as u32)
            .map(|s| Sum {
                folds_left: tables.sum_folders(s).len() as u32,
                readers_left: tables.sum_readers(s).len() as u32,
                dropped: false,
                holders: BTreeMap::new(),
            })
            .collect();
        let not_delivered = tables.delivered.iter().filter(|d| **d).count();
        let mut scheduler = Self {
            graph,
            plan,
            config,
            tasks,
            sums,
            agents: Vec::new(),
            greeted: 0,
            ready: BTreeSet::new(),
            input_homes: FxHashMap::default(),
            stages: progress::stages(graph),
            not_done: graph.tasks.len(),
            not_delivered,
            drop_results: Vec::new(),
            drop_sums: Vec::new(),
            actions: VecDeque::new(),
            dirty: true,
            over: false,
            story: Story::default(),
            tables,
        };
        for task in 0..graph.tasks.len() as u32 {
            scheduler.settle(Moment::START, TaskId(task));
        }
        scheduler
    }

    pub fn story(&self) -> &Story {
        &self.story
    }

    pub fn into_story(self) -> Story {
        self.story
    }

    /// How the agents said that they are, by number.
    pub fn statuses(&self) -> impl Iterator<Item = Status> {
        self.agents.iter().map(|a| a.status)
    }

    pub fn agents_alive(&self) -> usize {
        self.agents.iter().filter(|a| a.alive).count()
    }

    pub fn poll_deadline(&self) -> Option<Moment> {
        let silence = self.config.silence_us_max?;
        let alive = self.agents.iter().filter(|a| a.alive);
        alive.map(|a| a.heard + silence).min()
    }

    /// Asks for the next thing to do. `now` is the moment of the last event.
    pub fn poll_action(&mut self, now: Moment) -> Option<Action<W>> {
        if self.actions.is_empty() && self.dirty && !self.over {
            self.dirty = false;
            self.flush_drops();
            if self.not_done == 0 && self.not_delivered == 0 {
                self.over = true;
                for agent in self.alive() {
                    self.tell(agent, ToAgent::End);
                }
                self.actions.push_back(Action::Finished);
            } else if self.greeted >= self.config.agents_expected {
                self.place(now);
            }
        }
        self.actions.pop_front()
    }

    fn alive(&self) -> Vec<AgentId> {
        (0..self.agents.len() as u32)
            .map(AgentId)
            .filter(|a| self.agents[a.0 as usize].alive)
            .collect()
    }

    fn tell(&mut self, agent: AgentId, message: ToAgent<W>) {
        self.actions.push_back(Action::Tell { agent, message });
    }

    fn flush_drops(&mut self) {
        if self.drop_results.is_empty() && self.drop_sums.is_empty() {
            return;
        }
        let results = std::mem::take(&mut self.drop_results);
        let accumulators = std::mem::take(&mut self.drop_sums);
        for agent in self.alive() {
            self.tell(
                agent,
                ToAgent::Drop {
                    results: results.clone(),
                    accumulators: accumulators.clone(),
                },
            );
        }
    }

    pub fn handle(&mut self, now: Moment, event: Event) {
        match event {
            Event::Said { agent, message } => self.said(now, agent, message),
            Event::Delivery { agent, task } => self.delivery(now, agent, task),
            Event::Lost(agent) => self.lost(now, agent),
            Event::Tick => {
                if let Some(silence) = self.config.silence_us_max {
                    for agent in self.alive() {
                        if self.agents[agent.0 as usize].heard + silence <= now {
                            self.lost(now, agent);
                        }
                    }
                }
            }
        }
        self.dirty = true;
    }

    fn is_alive(&self, agent: AgentId) -> bool {
        self.agents.get(agent.0 as usize).is_some_and(|a| a.alive)
    }

    fn said(&mut self, now: Moment, agent: AgentId, message: FromAgent) {
        if let FromAgent::Hello(hello) = &message {
            return self.hello(now, agent, hello);
        }
        if !self.is_alive(agent) {
            return;
        }
        self.agents[agent.0 as usize].heard = now;
        match message {
            FromAgent::Hello(_) => unreachable!("answered above"),
            FromAgent::Done { done, status } => {
                self.agents[agent.0 as usize].status = status;
                for done in done {
                    self.done(now, agent, done);
                }
            }
            FromAgent::Returned(tries) => {
                for this in tries {
                    if self.current(agent, this) {
                        self.story.tell(now, this.task, Transition::Returned(agent));
                        self.unassign(agent, this.task);
                        self.settle(now, this.task);
                    }
                }
            }
            FromAgent::Failed { this, cause } => {
                if self.current(agent, this) {
                    self.story.tell(now, this.task, Transition::Failed(agent));
                    self.actions.push_back(Action::Failed { this, cause });
                }
            }
            FromAgent::Heartbeat(status) => self.agents[agent.0 as usize].status = status,
            FromAgent::Have(_) | FromAgent::Unreachable(_) | FromAgent::Fetch(_) => {}
        }
    }

    fn hello(&mut self, now: Moment, agent: AgentId, hello: &Hello) {
        let Some(protocol) = PROTOCOL.common(hello.protocol) else {
            self.tell(
                agent,
                ToAgent::Refuse {
                    understood: PROTOCOL,
                },
            );
            let understood = hello.protocol;
            self.actions
                .push_back(Action::Refused { agent, understood });
            return;
        };
        if self.over {
            return self.tell(agent, ToAgent::End);
        }
        while self.agents.len() <= agent.0 as usize {
            self.agents.push(AgentRow {
                alive: false,
                cores: 1,
                queue: BTreeSet::new(),
                queue_width: 0,
                recalled: 0,
                task_us: None,
                status: Status::default(),
                heard: now,
                home: BTreeSet::new(),
                assignments: Vec::new(),
            });
        }
        let row = &mut self.agents[agent.0 as usize];
        if row.alive {
            return;
        }
        row.alive = true;
        row.heard = now;
        row.cores = hello.cores.max(1);
        self.greeted += 1;
        self.tell(
            agent,
            ToAgent::Begin {
                you: agent,
                protocol,
                plan: self.plan,
                accumulators: self.graph.accumulators.clone(),
                inputs: self.tables.inputs.clone(),
            },
        );
    }

    /// Whether an agent speaks of the attempt that it was last given.
    fn current(&self, agent: AgentId, this: Try) -> bool {
        self.tasks.get(this.task.0 as usize).is_some_and(|row| {
            row.attempt == this.attempt.0
                && match row.state {
                    State::Assigned { agent: a, .. } => a == agent,
                    State::Waiting | State::Ready | State::Done => false,
                }
        })
    }

    fn unassign(&mut self, agent: AgentId, task: TaskId) {
        let row = &mut self.tasks[task.0 as usize];
        let width = u32::from(self.graph.tasks[task.0 as usize].width);
        let agent = &mut self.agents[agent.0 as usize];
        if let State::Assigned { recalled: true, .. } = row.state {
            agent.recalled -= 1;
        }
        row.state = State::Waiting;
        agent.queue.remove(&task);
        agent.queue_width -= width.min(u32::from(agent.cores));
    }

    fn done(&mut self, now: Moment, agent: AgentId, done: Done) {
        let task = done.this.task;
        if !self.current(agent, done.this) {
            return;
        }
        self.story.tell(now, task, Transition::Done(agent));
        self.unassign(agent, task);
        let us = f64::from(done.took_us);
        let row = &mut self.agents[agent.0 as usize];
        row.task_us = Some(row.task_us.map_or(us, |mean| 0.9 * mean + 0.1 * us));
        let row = &mut self.tasks[task.0 as usize];
        row.state = State::Done;
        row.holder = Some(agent);
        self.not_done -= 1;
        let graph = self.graph;
        let spec = &graph.tasks[task.0 as usize];
        self.stages[spec.stage as usize].finished(now, spec.cost, done.took_us);
        for input in &spec.inputs {
            match *input {
                Input::Block { .. } => {}
                Input::Result { task, .. } => {
                    self.tasks[task.0 as usize].readers_left -= 1;
                    self.drop_result(task);
                }
                Input::Fold { accumulator, .. } => {
                    self.sums[accumulator.0 as usize].readers_left -= 1;
                    self.drop_sum(accumulator);
                }
            }
        }
        match spec.output {
            Output::Block { .. } => {
                for index in 0..self.tables.result_readers(task.0).len() {
                    let reader = self.tables.result_readers(task.0)[index];
                    self.one_less(now, TaskId(reader));
                }
                self.drop_result(task);
            }
            Output::Fold { accumulator, .. } => {
                let sum = &mut self.sums[accumulator.0 as usize];
                sum.folds_left -= 1;
                *sum.holders.entry(agent).or_default() += 1;
                if sum.folds_left == 0 {
                    for index in 0..self.tables.sum_readers(accumulator.0).len() {
                        let reader = self.tables.sum_readers(accumulator.0)[index];
                        self.one_less(now, TaskId(reader));
                    }
                    self.drop_sum(accumulator);
                }
            }
        }
    }

    fn delivery(&mut self, now: Moment, agent: AgentId, task: TaskId) {
        if !self.is_alive(agent)
            || !self
                .tables
                .delivered
                .get(task.0 as usize)
                .is_some_and(|d| *d)
        {
            return;
        }
        let row = &mut self.tasks[task.0 as usize];
        if !row.delivered {
            row.delivered = true;
            row.readers_left -= 1;
            self.not_delivered -= 1;
            self.story.tell(now, task, Transition::Delivered(agent));
            self.actions.push_back(Action::Deliver(task));
            self.drop_result(task);
        }
        self.tell(agent, ToAgent::Delivered(vec![task]));
    }

    /// Drops a block that nobody will read any more.
    fn drop_result(&mut self, task: TaskId) {
        let row = &mut self.tasks[task.0 as usize];
        if row.state == State::Done && row.readers_left == 0 && row.holder.take().is_some() {
            self.drop_results.push(task);
        }
    }

    /// Drops a sum that nobody will read or add to any more.
    fn drop_sum(&mut self, id: AccumulatorId) {
        let sum = &mut self.sums[id.0 as usize];
        if sum.folds_left == 0 && sum.readers_left == 0 && !sum.dropped {
            sum.dropped = true;
            sum.holders.clear();
            self.drop_sums.push(id);
            for &task in self.tables.sum_folders(id.0) {
                self.tasks[task as usize].holder = None;
            }
        }
    }

    fn exists(&self, input: &Input) -> bool {
        match *input {
            Input::Block { .. } => true,
            Input::Result { task, .. } => {
                let row = &self.tasks[task.0 as usize];
                row.state == State::Done && row.holder.is_some()
            }
            Input::Fold { accumulator, .. } => {
                let sum = &self.sums[accumulator.0 as usize];
                sum.folds_left == 0 && !sum.dropped
            }
        }
    }

    /// One input that a waiting task had missed exists now.
    fn one_less(&mut self, now: Moment, task: TaskId) {
        let row = &mut self.tasks[task.0 as usize];
        if row.state == State::Waiting {
            row.missing -= 1;
            if row.missing == 0 {
                self.make_ready(now, task);
            }
        }
    }

    /// Counts what a waiting task misses.
    fn settle(&mut self, now: Moment, task: TaskId) {
        let inputs = &self.graph.tasks[task.0 as usize].inputs;
        let missing = inputs.iter().filter(|i| !self.exists(i)).count() as u32;
        let row = &mut self.tasks[task.0 as usize];
        debug_assert_eq!(row.state, State::Waiting);
        row.missing = missing;
        if missing == 0 {
            self.make_ready(now, task);
        }
    }
}
