//! The scheduler as a machine without IO: [`Scheduler::handle`] takes what happened, [`Scheduler::poll_action`] says
//! what to do.
//!
//! A task passes through: waiting (an input does not exist), ready, assigned, done; and back to waiting when what it
//! had yielded is lost and needed. A block has one owner, and perhaps a copy in the spool; a contribution is in one agent's
//! partial sum. What the scheduler believes is only changed by answers to a current attempt from agents that are not
//! written off.
//!
//! The graph may grow while it runs: see [`Scheduler::grow`].

mod growth;
mod homes;
mod lineage;
mod placement;
mod progress;
mod shipping;
mod story;
mod tables;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use rustc_hash::FxHashMap;
use shared::farm::{
    graph::{Graph, Input, Output},
    ids::{AccumulatorId, AgentId, ContentHash, TaskId},
    message::{Cause, Done, FromAgent, Hello, PROTOCOL, ProtocolRange, Status, ToAgent, Try},
    moment::Moment,
};

pub use progress::{Progress, StageProgress};
pub use story::{
    Chapter, LifeLine, Line, Mark, Moved, Recall, Story, TaskStory, Transition, Turn, Waited,
};
use tables::Tables;

/// With so few agents, each is told of everything at once.
const AT_ONCE_MAX: usize = 16;
/// Among many, an agent is told when it holds so much, or so many, for nothing.
const DROP_BYTES_MAX: u64 = 64 << 10;
const DROPS_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SchedulerConfig {
    /// Nothing is assigned before so many agents have said hello and what they have.
    pub agents_expected: usize,
    /// An agent that says nothing for so long is written off. It may come back.
    pub suspect_us: Option<u64>,
    /// After so long it is gone for good.
    pub gone_us: Option<u64>,
    /// A task that fails for want of memory or of an input is tried so often, elsewhere where there is an elsewhere.
    pub attempts_max: u32,
    /// How much work an agent is given ahead, when there are others, and when it is alone.
    pub lead_us: u64,
    pub lead_alone_us: u64,
    /// Bytes that a running task holds and agents do not count, for each core. They keep so much of their memory back.
    pub open_bytes: u64,
}

impl Default for SchedulerConfig {
    /// For agents that cannot be lost.
    fn default() -> Self {
        Self {
            agents_expected: 1,
            suspect_us: None,
            gone_us: None,
            attempts_max: 1,
            lead_us: 200_000,
            lead_alone_us: 1_000_000,
            open_bytes: 0,
        }
    }
}

impl SchedulerConfig {
    /// For machines on a network.
    pub fn farm() -> Self {
        Self {
            suspect_us: Some(2_000_000),
            gone_us: Some(12_000_000),
            attempts_max: 3,
            ..Self::default()
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    Said {
        agent: AgentId,
        message: FromAgent,
    },
    /// A block for whoever runs the plan, or for the spool, has come.
    Delivery {
        agent: AgentId,
        task: TaskId,
    },
    /// The spool does not have this one, though it should.
    NotKept(TaskId),
    /// Nothing more can be kept.
    KeepNoMore,
    /// The link to an agent has ended.
    Lost(AgentId),
    Tick,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Action<W> {
    Tell {
        agent: AgentId,
        message: ToAgent<W>,
    },
    /// Hand out the block that has just come. If the graph is to grow for it, it has to before the next action is asked for.
    Deliver(TaskId),
    /// Keep the block that has just come, and tell the agent `Delivered` once it is kept.
    Keep {
        agent: AgentId,
        task: TaskId,
    },
    /// Nobody needs it any more.
    Unkeep(TaskId),
    Failed {
        this: Try,
        cause: Cause,
    },
    Refused {
        agent: AgentId,
        understood: ProtocolRange,
    },
    /// End the link to this agent.
    Close(AgentId),
    /// Everything is done and delivered, and the graph was left open: nothing will happen any more.
    NotGrown,
    Finished,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Ready,
    Assigned {
        agent: AgentId,
        attempt: u32,
        recalled: bool,
    },
    Done,
}

/// What a task's block is to the spool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Keep {
    No,
    Wanted,
    Kept,
}

/// Where a ready task stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shelf {
    Free,
    Home(AgentId),
    Delayed(Moment),
}

#[derive(Clone, Debug)]
struct Row {
    state: State,
    /// The number of the latest attempt.
    attempt: u32,
    /// Inputs that do not exist; counted while waiting.
    missing: u32,
    /// Inputs of tasks not done that read this, one for a delivery to come, one while it is to be kept, and one while it
    /// is held.
    readers_left: u32,
    /// Who has the block, or the contribution.
    holder: Option<AgentId>,
    /// Who was given it last.
    last: Option<AgentId>,
    delivered: bool,
    keep: Keep,
    shelf: Shelf,
}

/// A second agent that does a task.
#[derive(Clone, Copy, Debug)]
struct Twin {
    agent: AgentId,
    attempt: u32,
}

#[derive(Clone, Debug)]
struct Sum {
    folds_left: u32,
    readers_left: u32,
    dropped: bool,
    /// How many contributions are with whom.
    holders: BTreeMap<AgentId, u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct CheckpointRow {
    /// Tasks that are not kept.
    left: usize,
    superseded: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    /// It has not said hello.
    New,
    Alive,
    /// Written off and told so: it counts again when it says hello.
    Suspect,
    Gone,
}

/// Work done in a stage, and the time it took.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    stage: u16,
    tasks: u32,
    cost: u64,
    us: u64,
}

/// A set of input blocks.
#[derive(Clone, Debug, Default)]
struct Blocks(Vec<u64>);

impl Blocks {
    fn insert(&mut self, block: u32) {
        let word = block as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (block % 64);
    }

    fn remove(&mut self, block: u32) {
        if let Some(word) = self.0.get_mut(block as usize / 64) {
            *word &= !(1 << (block % 64));
        }
    }

    fn contains(&self, block: u32) -> bool {
        self.0
            .get(block as usize / 64)
            .is_some_and(|w| w & (1 << (block % 64)) != 0)
    }
}

#[derive(Clone, Debug)]
struct AgentRow {
    life: Life,
    /// It has said which input blocks it has.
    surveyed: bool,
    cores: u16,
    /// For input blocks.
    room_bytes: u64,
    has: Blocks,
    /// Assigned and not done.
    queue: BTreeSet<TaskId>,
    queue_width: u32,
    recalled: u32,
    /// Mean time of a task.
    task_us: Option<f64>,
    meter: Meter,
    /// Cost done per microsecond of one core, as measured in an earlier stage.
    rate: Option<f64>,
    /// When it was last given or had done something.
    moved: Moment,
    status: Status,
    heard: Moment,
    /// Ready tasks that are at home with it.
    home: BTreeSet<TaskId>,
    /// What it has, or had: only what the task's row says counts.
    holds: Vec<TaskId>,
    assignments: Vec<TaskId>,
    /// Results that it is still to be told to drop.
    drops: Vec<TaskId>,
    drop_bytes: u64,
    drop_due: bool,
    /// Complaints of others that it does not answer.
    complaints: u32,
    shunned: u32,
    shunned_until: Moment,
    shunned_now: bool,
    filed: placement::Filed,
    link: shipping::Link,
}

impl AgentRow {
    fn new(now: Moment) -> Self {
        Self {
            life: Life::New,
            surveyed: false,
            cores: 1,
            room_bytes: u64::MAX,
            has: Blocks::default(),
            queue: BTreeSet::new(),
            queue_width: 0,
            recalled: 0,
            task_us: None,
            meter: Meter::default(),
            rate: None,
            moved: now,
            status: Status::default(),
            heard: now,
            home: BTreeSet::new(),
            holds: Vec::new(),
            assignments: Vec::new(),
            drops: Vec::new(),
            drop_bytes: 0,
            drop_due: false,
            complaints: 0,
            shunned: 0,
            shunned_until: Moment::START,
            shunned_now: false,
            filed: placement::Filed::default(),
            link: shipping::Link::default(),
        }
    }
}

impl AgentRow {
    fn take_drops(&mut self) -> Vec<TaskId> {
        self.drop_bytes = 0;
        self.drop_due = false;
        std::mem::take(&mut self.drops)
    }

    /// Counts what it does and how fast; a new stage begins a new count.
    fn meter(&mut self, stage: u16, cost: u64, us: u64) {
        if self.meter.stage != stage {
            if self.meter.us > 0 {
                self.rate = Some(self.meter.cost as f64 / self.meter.us as f64);
            }
            self.meter = Meter {
                stage,
                ..Meter::default()
            };
        }
        self.meter.tasks += 1;
        self.meter.cost += cost;
        self.meter.us += us;
    }
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler<W> {
    graph: Arc<Graph<W>>,
    plan: ContentHash,
    config: SchedulerConfig,
    tables: Tables,
    tasks: Vec<Row>,
    sums: Vec<Sum>,
    /// There is a spool, and it still takes blocks.
    keeps: bool,
    checkpoints: Vec<CheckpointRow>,
    /// Superseded since [`Scheduler::drop_superseded`] was last called.
    superseded: Vec<usize>,
    agents: Vec<AgentRow>,
    alive: usize,
    surveyed: usize,
    /// Those that are surveyed or were lost.
    met: usize,
    begun: bool,
    shelves: placement::Shelves,
    /// Home of every input block.
    homes: Vec<Option<AgentId>>,
    replan: bool,
    planned_stage: Option<u16>,
    twins: FxHashMap<TaskId, Twin>,
    troubles: watch::Troubles,
    slow: shipping::Slow,
    stages: Vec<StageProgress>,
    not_done: usize,
    not_delivered: usize,
    drop_sums: Vec<AccumulatorId>,
    droppers: Vec<AgentId>,
    actions: VecDeque<Action<W>>,
    dirty: bool,
    over: bool,
    story: Story,
}

impl<W: Clone> Scheduler<W> {
    /// The graph must be valid. `kept` is what a run before has left in the spool; `None` when there is no spool.
    /// `delivered` are those deliveries that have been handed out from there.
    pub fn new(
        graph: Arc<Graph<W>>,
        plan: ContentHash,
        config: SchedulerConfig,
        kept: Option<&[TaskId]>,
        delivered: &[TaskId],
    ) -> Self {
        let mut scheduler = Self {
            graph: Arc::default(),
            plan,
            config,
            tables: Tables::default(),
            tasks: Vec::new(),
            sums: Vec::new(),
            keeps: kept.is_some(),
            checkpoints: Vec::new(),
            superseded: Vec::new(),
            agents: Vec::new(),
            alive: 0,
            surveyed: 0,
            met: 0,
            begun: false,
            shelves: placement::Shelves::default(),
            homes: Vec::new(),
            replan: false,
            planned_stage: None,
            twins: FxHashMap::default(),
            troubles: watch::Troubles::default(),
            slow: shipping::Slow::default(),
            stages: Vec::new(),
            not_done: 0,
            not_delivered: 0,
            drop_sums: Vec::new(),
            droppers: Vec::new(),
            actions: VecDeque::new(),
            dirty: true,
            over: false,
            story: Story::default(),
        };
        scheduler.begin(graph, kept.unwrap_or_default(), delivered);
        scheduler
    }

    /// The graph as it is now.
    pub fn graph(&self) -> &Arc<Graph<W>> {
        &self.graph
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
        self.alive
    }

    /// Asks for the next thing to do. `now` is the moment of the last event.
    pub fn poll_action(&mut self, now: Moment) -> Option<Action<W>> {
        if self.actions.is_empty() && self.dirty && !self.over {
            self.dirty = false;
            self.flush_drops();
            if self.not_done == 0 && self.not_delivered == 0 {
                self.over = true;
                for agent in self.living() {
                    self.tell(agent, ToAgent::End);
                }
                let last = if self.graph.open {
                    Action::NotGrown
                } else {
                    Action::Finished
                };
                self.actions.push_back(last);
            } else {
                self.begun =
                    self.begun || (self.surveyed > 0 && self.met >= self.config.agents_expected);
                if self.begun {
                    self.place(now);
                }
            }
        }
        self.actions.pop_front()
    }

    fn living(&self) -> Vec<AgentId> {
        (0..self.agents.len() as u32)
            .map(AgentId)
            .filter(|a| self.is_alive(*a))
            .collect()
    }

    fn tell(&mut self, agent: AgentId, message: ToAgent<W>) {
        self.actions.push_back(Action::Tell { agent, message });
    }

    pub fn handle(&mut self, now: Moment, event: Event) {
        match event {
            Event::Said { agent, message } => self.said(now, agent, message),
            Event::Delivery { agent, task } => self.delivery(now, agent, task),
            Event::NotKept(task) => self.not_kept(now, task),
            Event::KeepNoMore => self.keep_no_more(),
            Event::Lost(agent) => {
                let known = self.agents.get(agent.0 as usize);
                if known.is_some_and(|row| row.life != Life::Gone) {
                    self.story.tell_turn(now, agent, Turn::Ended);
                }
                self.gone(now, agent);
            }
            Event::Tick => {}
        }
        self.watch(now);
        self.dirty = true;
    }

    fn is_alive(&self, agent: AgentId) -> bool {
        self.agents
            .get(agent.0 as usize)
            .is_some_and(|a| a.life == Life::Alive)
    }

    fn said(&mut self, now: Moment, agent: AgentId, message: FromAgent) {
        if let Some(row) = self.agents.get_mut(agent.0 as usize) {
            row.heard = now;
        }
        if let FromAgent::Hello(hello) = &message {
            return self.hello(now, agent, hello);
        }
        if !self.is_alive(agent) {
            return;
        }
        match message {
            FromAgent::Hello(_) => unreachable!("answered above"),
            FromAgent::Done {
                done,
                status,
                received,
            } => {
                self.agents[agent.0 as usize].status = status;
                self.received(now, agent, &received);
                for done in done {
                    self.done(now, agent, done);
                }
            }
            FromAgent::Returned(tries) => {
                for this in tries {
                    self.returned(now, agent, this);
                }
            }
            FromAgent::Failed { this, cause } => self.failed(now, agent, this, cause),
            FromAgent::Heartbeat { status, received } => {
                self.agents[agent.0 as usize].status = status;
                self.received(now, agent, &received);
            }
            FromAgent::Have(places) => self.have(now, agent, &places),
            FromAgent::Unreachable(peer) => self.unreachable(now, agent, peer),
            // The librarian answers; here it only shows that the agent lives.
            FromAgent::Fetch(_) => {}
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
            self.agents.push(AgentRow::new(now));
        }
        let row = &mut self.agents[agent.0 as usize];
        match row.life {
            Life::New | Life::Suspect => {}
            Life::Alive | Life::Gone => return,
        }
        row.life = Life::Alive;
        row.heard = now;
        row.moved = now;
        row.cores = hello.cores.max(1);
        row.room_bytes = hello.memory_bytes.saturating_add(hello.disk_bytes);
        row.has = Blocks::default();
        row.complaints = 0;
        let turn = Turn::Hello {
            cores: row.cores,
            memory_bytes: hello.memory_bytes,
            disk_bytes: hello.disk_bytes,
        };
        self.story.tell_turn(now, agent, turn);
        self.tell(
            agent,
            ToAgent::Begin {
                you: agent,
                protocol,
                plan: self.plan,
                accumulators: self.graph.accumulators.clone(),
                inputs: self.tables.inputs.clone(),
                open_bytes: self.config.open_bytes,
            },
        );
    }

    fn have(&mut self, now: Moment, agent: AgentId, places: &[u32]) {
        let row = &mut self.agents[agent.0 as usize];
        for &place in places {
            if (place as usize) < self.tables.inputs.len() {
                row.has.insert(place);
            }
        }
        if !row.surveyed {
            row.surveyed = true;
            let blocks = places.len() as u32;
            self.story.tell_turn(now, agent, Turn::Serves { blocks });
            self.population_changed();
        }
    }

    /// Whether an agent speaks of an attempt that it was given and that is still awaited.
    fn current(&self, agent: AgentId, this: Try) -> bool {
        let first = self.tasks.get(this.task.0 as usize).is_some_and(|row| {
            matches!(row.state, State::Assigned { agent: a, attempt, .. }
                if a == agent && attempt == this.attempt.0)
        });
        first || self.is_twin(agent, this)
    }

    fn is_twin(&self, agent: AgentId, this: Try) -> bool {
        self.twins
            .get(&this.task)
            .is_some_and(|t| t.agent == agent && t.attempt == this.attempt.0)
    }

    /// The agent no longer has the task in its queue.
    fn dequeue(&mut self, agent: AgentId, task: TaskId) {
        let width = u32::from(self.graph.tasks[task.0 as usize].width);
        let row = &mut self.agents[agent.0 as usize];
        row.link.coming.remove(&task);
        if row.queue.remove(&task) {
            row.queue_width -= width.min(u32::from(row.cores));
        }
        self.refile(agent);
    }

    /// The agent does not do the task any more: either its twin does, or nobody.
    fn give_up(&mut self, agent: AgentId, task: TaskId) {
        if self.twins.get(&task).is_some_and(|t| t.agent == agent) {
            self.twins.remove(&task);
        } else {
            let row = &mut self.tasks[task.0 as usize];
            if let State::Assigned { recalled: true, .. } = row.state {
                self.uncount_recall(agent);
            }
            self.tasks[task.0 as usize].state = match self.twins.remove(&task) {
                Some(twin) => State::Assigned {
                    agent: twin.agent,
                    attempt: twin.attempt,
                    recalled: false,
                },
                None => State::Waiting,
            };
        }
        self.dequeue(agent, task);
    }

    fn settle_if_waiting(&mut self, now: Moment, task: TaskId) {
        match self.tasks[task.0 as usize].state {
            State::Waiting => self.settle(now, task),
            State::Ready | State::Assigned { .. } | State::Done => {}
        }
    }

    fn returned(&mut self, now: Moment, agent: AgentId, this: Try) {
        if !self.current(agent, this) {
            return;
        }
        let task = this.task;
        let asked_for = matches!(
            self.tasks[task.0 as usize].state,
            State::Assigned { recalled: true, .. }
        );
        self.story.tell(now, task, Transition::Returned(agent));
        self.give_up(agent, task);
        if asked_for {
            // Where its blocks are it would be given again to whom it was asked back from.
            self.shelves.nowhere = Some(task);
        } else {
            self.delay(now, task);
        }
        self.settle_if_waiting(now, task);
        self.shelves.nowhere = None;
    }

    fn done(&mut self, now: Moment, agent: AgentId, done: Done) {
        let task = done.this.task;
        if !self.current(agent, done.this) {
            return self.done_late(agent, task);
        }
        self.story.tell(now, task, Transition::Done(agent));
        self.story.tell_waited(Waited {
            at: now,
            task,
            agent,
            waits: done.waits,
            took_us: done.took_us,
        });
        let loser = match (
            self.twins.get(&task).copied(),
            self.tasks[task.0 as usize].state,
        ) {
            (Some(twin), State::Assigned { agent: first, .. }) if twin.agent == agent => {
                Some(first)
            }
            (Some(twin), _) => Some(twin.agent),
            (None, _) => None,
        };
        if let Some(loser) = loser {
            self.recall_from(now, loser, task);
            self.give_up(loser, task);
        }
        self.give_up(agent, task);
        self.troubles.forget(task);
        let us = f64::from(done.took_us);
        let graph = Arc::clone(&self.graph);
        let spec = &graph.tasks[task.0 as usize];
        let block = self.tables.block_of(task.0);
        let row = &mut self.agents[agent.0 as usize];
        row.moved = now;
        row.task_us = Some(row.task_us.map_or(us, |mean| 0.9 * mean + 0.1 * us));
        row.holds.push(task);
        if let Some(block) = block {
            row.has.insert(block);
            row.meter(spec.stage, spec.cost, u64::from(done.took_us));
        }
        let row = &mut self.tasks[task.0 as usize];
        row.state = State::Done;
        row.holder = Some(agent);
        self.not_done -= 1;
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

    /// Another was faster: what this one has is of no use.
    fn done_late(&mut self, agent: AgentId, task: TaskId) {
        let Some(row) = self.tasks.get(task.0 as usize) else {
            return;
        };
        if row.state == State::Done && row.holder != Some(agent) {
            match self.graph.tasks[task.0 as usize].output {
                Output::Block { bytes } => self.queue_drop(agent, task, bytes),
                Output::Fold { .. } => {}
            }
        }
    }

    fn delivery(&mut self, now: Moment, agent: AgentId, task: TaskId) {
        if !self.is_alive(agent) || task.0 as usize >= self.tasks.len() {
            return;
        }
        self.agents[agent.0 as usize].heard = now;
        let wanted = self.tables.delivered[task.0 as usize];
        let row = &mut self.tasks[task.0 as usize];
        let keep = match row.keep {
            Keep::Wanted => true,
            Keep::No | Keep::Kept => false,
        };
        if keep {
            row.keep = Keep::Kept;
            row.readers_left -= 1;
            self.story.tell(now, task, Transition::Kept);
            self.actions.push_back(Action::Keep { agent, task });
        }
        let row = &mut self.tasks[task.0 as usize];
        if wanted && !row.delivered {
            row.delivered = true;
            row.readers_left -= 1;
            self.not_delivered -= 1;
            self.story.tell(now, task, Transition::Delivered(agent));
            self.actions.push_back(Action::Deliver(task));
        }
        if keep {
            self.one_kept(task);
        } else {
            self.tell(agent, ToAgent::Delivered(vec![task]));
        }
        self.drop_result(task);
    }

    /// One more task of a checkpoint is kept.
    fn one_kept(&mut self, task: TaskId) {
        if let Some(c) = self.tables.checkpoint_of(task.0) {
            self.checkpoints[c].left -= 1;
            if self.checkpoints[c].left == 0 {
                self.supersede(c);
                self.drop_superseded();
            }
        }
    }

    fn supersede(&mut self, complete: usize) {
        let mut next: Vec<u16> = self.graph.checkpoints[complete].supersedes.clone();
        while let Some(c) = next.pop().map(usize::from) {
            if c >= self.checkpoints.len()
                || std::mem::replace(&mut self.checkpoints[c].superseded, true)
            {
                continue;
            }
            self.superseded.push(c);
            next.extend(&self.graph.checkpoints[c].supersedes);
        }
    }

    /// Lets go of what is kept or to be kept of checkpoints that are superseded.
    fn drop_superseded(&mut self) {
        let graph = Arc::clone(&self.graph);
        for c in std::mem::take(&mut self.superseded) {
            for &task in &graph.checkpoints[c].tasks {
                let row = &mut self.tasks[task.0 as usize];
                match row.keep {
                    Keep::No | Keep::Kept => {}
                    Keep::Wanted => {
                        row.keep = Keep::No;
                        row.readers_left -= 1;
                    }
                }
                self.drop_result(task);
            }
        }
    }

    fn keep_no_more(&mut self) {
        self.keeps = false;
        for index in 0..self.tasks.len() {
            let row = &mut self.tasks[index];
            match row.keep {
                Keep::No | Keep::Kept => {}
                Keep::Wanted => {
                    row.keep = Keep::No;
                    row.readers_left -= 1;
                    self.drop_result(TaskId(index as u32));
                }
            }
        }
    }

    /// Drops a block that nobody will read any more.
    fn drop_result(&mut self, task: TaskId) {
        let row = &mut self.tasks[task.0 as usize];
        if row.readers_left > 0 {
            return;
        }
        if row.keep == Keep::Kept
            && let Some(c) = self.tables.checkpoint_of(task.0)
            && self.checkpoints[c].superseded
        {
            row.keep = Keep::No;
            self.actions.push_back(Action::Unkeep(task));
        }
        let Some(holder) = row.holder.filter(|_| row.state == State::Done) else {
            return;
        };
        row.holder = None;
        let bytes = match self.graph.tasks[task.0 as usize].output {
            Output::Block { bytes } => bytes,
            Output::Fold { .. } => return,
        };
        self.queue_drop(holder, task, bytes);
        for index in 0..self.tables.result_readers(task.0).len() {
            let reader = self.tables.result_readers(task.0)[index];
            if let Some(agent) = self.tasks[reader as usize].last.filter(|a| *a != holder) {
                self.queue_drop(agent, task, bytes);
            }
        }
    }

    fn queue_drop(&mut self, agent: AgentId, task: TaskId, bytes: u64) {
        if !self.is_alive(agent) {
            return;
        }
        let row = &mut self.agents[agent.0 as usize];
        if row.drops.last() == Some(&task) {
            return;
        }
        row.drops.push(task);
        row.drop_bytes = row.drop_bytes.saturating_add(bytes);
        let due = self.alive <= AT_ONCE_MAX
            || row.drop_bytes >= DROP_BYTES_MAX
            || row.drops.len() >= DROPS_MAX;
        if due && !std::mem::replace(&mut row.drop_due, true) {
            self.droppers.push(agent);
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

    /// Tells of results and sums that nobody reads any more: of sums and large results at once, of small ones together.
    fn flush_drops(&mut self) {
        let accumulators = std::mem::take(&mut self.drop_sums);
        if !accumulators.is_empty() {
            for agent in self.living() {
                let results = self.agents[agent.0 as usize].take_drops();
                let accumulators = accumulators.clone();
                let message = ToAgent::Drop {
                    results,
                    accumulators,
                };
                self.tell(agent, message);
            }
        }
        for agent in std::mem::take(&mut self.droppers) {
            self.flush_drops_of(agent);
        }
    }

    fn flush_drops_of(&mut self, agent: AgentId) {
        let results = self.agents[agent.0 as usize].take_drops();
        if !results.is_empty() {
            let accumulators = Vec::new();
            let message = ToAgent::Drop {
                results,
                accumulators,
            };
            self.tell(agent, message);
        }
    }

    fn exists(&self, input: &Input) -> bool {
        match *input {
            Input::Block { .. } => true,
            Input::Result { task, .. } => {
                let row = &self.tasks[task.0 as usize];
                row.state == State::Done && (row.holder.is_some() || row.keep == Keep::Kept)
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
