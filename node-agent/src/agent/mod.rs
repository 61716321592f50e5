//! The agent as a machine without IO: [`Agent::handle`] takes what happened, [`Agent::poll_action`] says what to do.
//!
//! A task passes through: waiting (assigned, its memory not yet granted), admitted (room is taken, inputs are pinned or
//! on their way), ready (all inputs are here), running. Tasks are admitted in the order of the plan, whole or not at
//! all, so two of them never wait for each other's memory. When nothing else is going on, the first one is admitted
//! whatever the budget says: progress beats the budget, by no more than what one task needs.

mod dispatch;
mod fetch;
mod links;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rustc_hash::FxHashMap;
use shared::farm::{
    contributions::Contributions,
    graph::Output,
    ids::{AccumulatorId, AgentId, ContentHash, TaskId},
    message::{
        Assignment, Cause, Done, FromAgent, Hello, InputError, Name, PROTOCOL, Status, ToAgent,
        Try, Waits,
    },
    moment::Moment,
    work::WorkError,
};

use crate::{
    partial::Partials,
    store::{State, Store},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AgentConfig {
    pub cores: u16,
    pub memory_bytes: u64,
    /// Room for input blocks beside the memory.
    pub disk_bytes: u64,
    /// Input blocks being read at once.
    pub loads_max: usize,
    /// Blocks sent to the coordinator and not yet acknowledged.
    pub deliveries_max: usize,
    /// Say something at least this often.
    pub heartbeat_us: Option<u64>,
    /// What its kernels run on.
    pub isa: &'static str,
}

impl AgentConfig {
    pub fn new(cores: u16, memory_bytes: u64) -> Self {
        Self {
            cores: cores.max(1),
            memory_bytes,
            disk_bytes: u64::MAX,
            loads_max: 2,
            deliveries_max: 4,
            heartbeat_us: None,
            isa: "",
        }
    }
}

/// What became of one task of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Ran {
    pub this: Try,
    pub took_us: u64,
    /// Length of the block; zero for a fold.
    pub outcome: Result<u64, WorkError>,
}

/// What an arrived bulk frame is. Its payload is with the hands, under the parcel's number.
#[derive(Clone, PartialEq, Debug)]
pub enum Parcel {
    Block,
    Partial(Contributions),
    Nothing,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Event<W> {
    Coordinator(ToAgent<W>),
    /// A peer wants something.
    Asked {
        from: AgentId,
        request: u64,
        name: Name,
    },
    /// A bulk frame came in answer to `request`; `rest` more belong to the same answer.
    Arrived {
        request: u64,
        rest: u32,
        parcel: u64,
        bytes: u64,
        what: Parcel,
    },
    Loaded {
        hash: ContentHash,
        /// It came from the coordinator, not from this machine's disk or memory.
        shipped: bool,
        outcome: Result<u64, InputError>,
    },
    Gathered {
        name: Name,
        outcome: Result<(), WorkError>,
    },
    Ran {
        worker: u16,
        results: Vec<Ran>,
    },
    /// Which of the surveyed input blocks are here.
    Surveyed(Vec<u32>),
    /// That agent does not answer.
    PeerGone(AgentId),
    Tick,
}

/// An input of a job: a block, or a byte range of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    pub name: Name,
    pub range: Option<(u64, u64)>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Target {
    Block,
    /// For each part from the first on: which copy, and whether its memory exists.
    Fold {
        accumulator: AccumulatorId,
        first: u16,
        copies: Vec<(u16, bool)>,
    },
}

/// A task to be run now.
#[derive(Clone, PartialEq, Debug)]
pub struct Job<W> {
    pub this: Try,
    pub work: W,
    pub inputs: Vec<Source>,
    pub target: Target,
}

/// A summand of a gathered chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    Copy(u16),
    Parcel(u64),
}

#[derive(Clone, PartialEq, Debug)]
pub enum Action<W> {
    Tell(FromAgent),
    Ask {
        peer: AgentId,
        request: u64,
        name: Name,
    },
    /// Send a block, or a copy's part of a chunk, or say that there is nothing.
    Answer {
        peer: AgentId,
        request: u64,
        rest: u32,
        what: Answer,
    },
    /// Send the block to the coordinator.
    Deliver(TaskId),
    /// Look which of these are on this machine.
    Survey(Vec<ContentHash>),
    Load(ContentHash),
    /// One after the other on that worker.
    Run {
        worker: u16,
        jobs: Vec<Job<W>>,
    },
    /// Add the pieces up; the sum is `name`.
    Gather {
        name: Name,
        pieces: Vec<Piece>,
    },
    /// The one piece is `name`.
    Keep {
        name: Name,
        piece: Piece,
    },
    Forget(Name),
    ForgetSum(AccumulatorId),
    Discard(u64),
    /// Forget everything but input blocks.
    ForgetAll,
    /// The budget could not be kept.
    Overrun {
        task: TaskId,
        tracked: u64,
        budget: u64,
    },
    Stop,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    Block(Source),
    Partial {
        name: Name,
        copy: u16,
        set: Contributions,
    },
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Waiting,
    Admitted { missing: u32 },
    Ready,
    Running,
}

#[derive(Debug)]
struct Queued<W> {
    this: Try,
    work: Option<W>,
    sources: Vec<Source>,
    /// For each source, the next task that reads it.
    again: Vec<Option<TaskId>>,
    holders: Vec<Vec<AgentId>>,
    output: Output,
    width: u16,
    /// The stage of the plan, not of this task's life.
    of_stage: u16,
    deliver: bool,
    stage: Stage,
    /// Since when it is in that.
    since: Moment,
    waits: Waits,
    /// Room taken for the block to come.
    reserved: u64,
    taken: Vec<(u16, bool)>,
}

/// Accumulator and range of parts.
type FoldKey = (AccumulatorId, u16, u16);

#[derive(Debug)]
struct Worker {
    last: Option<FoldKey>,
}

/// See the module.
#[derive(Debug)]
pub struct Agent<W> {
    config: AgentConfig,
    me: AgentId,
    begun: bool,
    /// Written off: what the workers do is run out, then it says hello again.
    resetting: bool,
    actions: VecDeque<Action<W>>,
    /// Something happened that may let a task be admitted or begun.
    dirty: bool,
    store: Store,
    partials: Partials,
    queue: BTreeMap<TaskId, Queued<W>>,
    waiting: BTreeSet<TaskId>,
    /// Admitted and not running.
    admitted: usize,
    running: usize,
    /// The task that did not fit when last tried.
    blocked: Option<TaskId>,
    waiters: FxHashMap<Name, Vec<TaskId>>,
    ready_blocks: BTreeSet<TaskId>,
    ready_folds: BTreeMap<FoldKey, BTreeSet<TaskId>>,
    workers: Vec<Worker>,
    idle: Vec<u16>,
    free_cores: u16,
    passed_over: u32,
    /// Mean time of a block task, for bundling the very short ones.
    block_us: Option<f64>,
    /// With the stage that they are for.
    loads: VecDeque<(ContentHash, u16)>,
    loading: usize,
    loading_for: FxHashMap<ContentHash, u16>,
    loaded_bytes: u64,
    busy_us: u64,
    incoming: FxHashMap<Name, fetch::Incoming>,
    /// Open questions: what for, and to whom.
    requests: FxHashMap<u64, (Name, AgentId)>,
    next_request: u64,
    /// Sums being added up by threads.
    gathering: usize,
    /// What will not come: chunks whose pieces are not the whole sum, blocks that no holder has.
    misfits: Vec<Name>,
    /// What was fetched of a result or a sum, to be dropped with it.
    fetched: FxHashMap<fetch::Origin, Vec<Name>>,
    deliveries: VecDeque<TaskId>,
    delivering: usize,
    done: Vec<Done>,
    links: links::Links,
    /// The moment of the last event.
    now: Moment,
    told: Moment,
}

fn hello(config: &AgentConfig) -> Hello {
    Hello {
        protocol: PROTOCOL,
        cores: config.cores,
        memory_bytes: config.memory_bytes,
        disk_bytes: config.disk_bytes,
        isa: config.isa.to_owned(),
    }
}

impl<W> Queued<W> {
    /// How long it was in the stage of its life that ends now.
    fn waited(&mut self, now: Moment) -> u32 {
        let us = now.since(std::mem::replace(&mut self.since, now));
        u32::try_from(us).unwrap_or(u32::MAX)
    }
}

impl<W: Clone> Agent<W> {
    pub fn new(config: AgentConfig) -> Self {
        let mut actions = VecDeque::new();
        actions.push_back(Action::Tell(FromAgent::Hello(hello(&config))));
        Self {
            config,
            me: AgentId::default(),
            begun: false,
            resetting: false,
            actions,
            dirty: false,
            store: Store::new(config.memory_bytes),
            partials: Partials::default(),
            queue: BTreeMap::new(),
            waiting: BTreeSet::new(),
            admitted: 0,
            running: 0,
            blocked: None,
            waiters: FxHashMap::default(),
            ready_blocks: BTreeSet::new(),
            ready_folds: BTreeMap::new(),
            workers: (0..config.cores).map(|_| Worker { last: None }).collect(),
            idle: (0..config.cores).rev().collect(),
            free_cores: config.cores,
            passed_over: 0,
            block_us: None,
            loads: VecDeque::new(),
            loading: 0,
            loading_for: FxHashMap::default(),
            loaded_bytes: 0,
            busy_us: 0,
            incoming: FxHashMap::default(),
            requests: FxHashMap::default(),
            next_request: 0,
            gathering: 0,
            misfits: Vec::new(),
            fetched: FxHashMap::default(),
            deliveries: VecDeque::new(),
            delivering: 0,
            done: Vec::new(),
            links: links::Links::default(),
            now: Moment::START,
            told: Moment::START,
        }
    }

    /// Whether a core has nothing to do.
    pub fn is_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// The next moment at which it wants a [`Event::Tick`].
    pub fn poll_deadline(&self) -> Option<Moment> {
        let heartbeat = self.config.heartbeat_us?;
        self.begun.then(|| self.told + heartbeat)
    }

    pub fn poll_action(&mut self) -> Option<Action<W>> {
        if self.actions.is_empty() && self.dirty {
            self.dirty = false;
            self.advance();
        }
        if self.actions.is_empty() && !self.done.is_empty() {
            let done = std::mem::take(&mut self.done);
            let status = self.status();
            let received = self.links.take();
            self.tell(FromAgent::Done {
                done,
                status,
                received,
            });
        }
        self.actions.pop_front()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn status(&self) -> Status {
        Status {
            loaded_bytes: self.loaded_bytes,
            tracked_bytes: self.store.tracked(),
            tracked_bytes_peak: self.store.peak(),
            busy_us: self.busy_us,
        }
    }

    fn tell(&mut self, message: FromAgent) {
        self.actions.push_back(Action::Tell(message));
    }

    pub fn handle(&mut self, now: Moment, event: Event<W>) {
        self.now = now;
        match event {
            Event::Coordinator(message) => self.told_by_coordinator(message),
            Event::Asked {
                from,
                request,
                name,
            } => self.asked(from, request, name),
            Event::Arrived {
                request,
                rest,
                parcel,
                bytes,
                what,
            } => self.parcel(request, rest, parcel, bytes, what),
            Event::Loaded {
                hash,
                shipped,
                outcome,
            } => self.loaded(hash, shipped, outcome),
            Event::Gathered { name, outcome } => self.gathered(name, outcome),
            Event::Ran { worker, results } => self.ran(worker, results),
            Event::Surveyed(here) => self.tell(FromAgent::Have(here)),
            Event::PeerGone(peer) => self.peer_gone(peer),
            Event::Tick => {
                if self.poll_deadline().is_some_and(|at| at <= now) {
                    self.told = now;
                    let status = self.status();
                    let received = self.links.take();
                    self.tell(FromAgent::Heartbeat { status, received });
                }
            }
        }
        self.dirty = true;
    }

    fn told_by_coordinator(&mut self, message: ToAgent<W>) {
        match message {
            ToAgent::Begin {
                you,
                protocol: _,
                plan: _,
                accumulators,
                inputs,
                open_bytes,
            } => {
                let open = u64::from(self.config.cores).saturating_mul(open_bytes);
                self.store
                    .set_budget(self.config.memory_bytes.saturating_sub(open));
                self.me = you;
                self.begun = true;
                self.partials = Partials::new(accumulators);
                self.actions.push_back(Action::Survey(inputs));
            }
            ToAgent::Grow { accumulators } => self.partials.grow(accumulators),
            ToAgent::Peers(_) | ToAgent::Ping => {}
            ToAgent::Reset => self.reset(),
            ToAgent::Refuse { .. } | ToAgent::End => self.actions.push_back(Action::Stop),
            // Nothing can be meant for a life that has not begun.
            ToAgent::Assign(_) if self.resetting => {}
            ToAgent::Assign(assignments) => {
                for assignment in assignments {
                    self.assigned(assignment);
                }
            }
            ToAgent::Recall(tries) => {
                let back: Vec<Try> = tries.into_iter().filter(|t| self.recalled(*t)).collect();
                if !back.is_empty() {
                    self.tell(FromAgent::Returned(back));
                }
            }
            ToAgent::Drop {
                results,
                accumulators,
            } => {
                for task in results {
                    if self.store.release_block(Name::result(task)) {
                        self.actions.push_back(Action::Forget(Name::result(task)));
                    }
                    self.forget_fetched(fetch::Origin::Task(task));
                }
                for id in accumulators {
                    let bytes = self.partials.forget(id);
                    self.store.release(bytes);
                    self.forget_fetched(fetch::Origin::Sum(id));
                    self.actions.push_back(Action::ForgetSum(id));
                }
            }
            ToAgent::Delivered(tasks) => {
                self.delivering = self.delivering.saturating_sub(tasks.len());
                self.deliver();
            }
        }
    }

    /// Forgets everything but its input blocks. What its workers and threads have begun they finish first, for nothing.
    fn reset(&mut self) {
        self.resetting = true;
        self.queue.clear();
        self.waiting.clear();
        self.admitted = 0;
        self.running = 0;
        self.blocked = None;
        self.waiters.clear();
        self.ready_blocks.clear();
        self.ready_folds.clear();
        self.loads.clear();
        self.incoming.clear();
        self.requests.clear();
        self.links.reset();
        self.misfits.clear();
        self.fetched.clear();
        self.deliveries.clear();
        self.delivering = 0;
        self.done.clear();
        self.partials = Partials::default();
        self.store.reset();
        self.actions.push_back(Action::ForgetAll);
        self.rise();
    }

    /// Says hello again once nothing of the earlier life is going on any more.
    fn rise(&mut self) {
        let quiet = self.idle.len() == self.workers.len() && self.loading + self.gathering == 0;
        if !self.resetting || !quiet {
            return;
        }
        self.resetting = false;
        self.free_cores = self.config.cores;
        self.passed_over = 0;
        for worker in &mut self.workers {
            worker.last = None;
        }
        // With what came in late.
        self.actions.push_back(Action::ForgetAll);
        self.tell(FromAgent::Hello(hello(&self.config)));
    }

    fn assigned(&mut self, assignment: Assignment<W>) {
        let Assignment {
            this,
            work,
            needs,
            output,
            width,
            stage,
            deliver,
        } = assignment;
        let mut sources = Vec::with_capacity(needs.len());
        let mut holders = Vec::with_capacity(needs.len());
        let mut again = Vec::with_capacity(needs.len());
        let task = this.task;
        for need in needs {
            // A range of what was computed here is cut from the whole.
            let source = match need.name {
                Name::Result {
                    task,
                    range: Some(range),
                } if self.store.owns(&Name::result(task)) => Source {
                    name: Name::result(task),
                    range: Some(range),
                },
                name @ (Name::Input(_) | Name::Result { .. } | Name::Chunk { .. }) => {
                    Source { name, range: None }
                }
            };
            self.store.want(source.name, need.bytes, task);
            sources.push(source);
            again.push(need.again);
            holders.push(need.holders);
        }
        self.waiting.insert(task);
        self.queue.insert(
            task,
            Queued {
                this,
                work: Some(work),
                sources,
                again,
                holders,
                output,
                width: width.min(self.config.cores),
                of_stage: stage,
                deliver,
                stage: Stage::Waiting,
                since: self.now,
                waits: Waits::default(),
                reserved: 0,
                taken: Vec::new(),
            },
        );
    }

    /// Gives a task back, unless it has begun.
    fn recalled(&mut self, this: Try) -> bool {
        let Some(queued) = self.queue.get(&this.task) else {
            return false;
        };
        if queued.this != this {
            return false;
        }
        match queued.stage {
            Stage::Running => return false,
            Stage::Waiting | Stage::Admitted { .. } | Stage::Ready => {}
        }
        let queued = self.queue.remove(&this.task).expect("found above");
        self.waiting.remove(&this.task);
        if self.blocked == Some(this.task) {
            self.blocked = None;
        }
        match queued.stage {
            Stage::Waiting => {}
            Stage::Admitted { .. } | Stage::Ready => {
                self.admitted -= 1;
                self.store.release(queued.reserved);
                self.unready(this.task, &queued.output);
                for source in &queued.sources {
                    if let Some(waiters) = self.waiters.get_mut(&source.name) {
                        waiters.retain(|t| *t != this.task);
                    }
                    self.store.unpin(source.name);
                    self.cancel(source.name);
                }
            }
            Stage::Running => unreachable!("returned above"),
        }
        for source in &queued.sources {
            if self.store.unwant(source.name) {
                self.actions.push_back(Action::Forget(source.name));
            }
        }
        true
    }

    fn forget(&mut self, name: Name) {
        if self.store.forget(name) {
            self.actions.push_back(Action::Forget(name));
        }
    }

    fn ran(&mut self, worker: u16, results: Vec<Ran>) {
        self.idle.push(worker);
        if self.resetting {
            return self.rise();
        }
        for result in results {
            let task = result.this.task;
            let Some(queued) = self.queue.remove(&task) else {
                continue;
            };
            debug_assert_eq!(queued.this, result.this);
            self.running -= 1;
            self.free_cores += queued.width;
            self.busy_us += result.took_us;
            self.store.release(queued.reserved);
            for (source, again) in queued.sources.iter().zip(&queued.again) {
                self.store.unpin(source.name);
                if self.store.was_read(source.name, task, *again) {
                    self.actions.push_back(Action::Forget(source.name));
                }
            }
            let bytes = match result.outcome {
                Ok(bytes) => bytes,
                Err(error) => {
                    match queued.output {
                        Output::Block { .. } => {}
                        Output::Fold {
                            accumulator, parts, ..
                        } => self.partials.take_back(accumulator, parts, &queued.taken),
                    }
                    self.tell(FromAgent::Failed {
                        this: result.this,
                        cause: Cause::Work(error),
                    });
                    continue;
                }
            };
            match queued.output {
                Output::Block { .. } => {
                    let us = result.took_us as f64;
                    self.block_us = Some(self.block_us.map_or(us, |mean| 0.9 * mean + 0.1 * us));
                    self.store.own(Name::result(task), bytes);
                    if queued.deliver {
                        self.deliveries.push_back(task);
                    }
                }
                Output::Fold {
                    accumulator,
                    parts,
                    contribution,
                } => self
                    .partials
                    .give_back(accumulator, parts, &queued.taken, contribution),
            }
            self.done.push(Done {
                this: result.this,
                bytes,
                took_us: u32::try_from(result.took_us).unwrap_or(u32::MAX),
                waits: queued.waits,
            });
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        while self.delivering < self.config.deliveries_max
            && let Some(task) = self.deliveries.pop_front()
        {
            if self.store.owns(&Name::result(task)) {
                self.delivering += 1;
                self.actions.push_back(Action::Deliver(task));
            }
        }
    }

    /// A block is here: whoever waits for it has one thing less to wait for. `from`: who has sent it.
    fn arrived(&mut self, name: Name, bytes: u64, from: Option<AgentId>) {
        self.store.arrived(name, bytes);
        for task in self.waiters.remove(&name).unwrap_or_default() {
            let Some(queued) = self.queue.get_mut(&task) else {
                continue;
            };
            match &mut queued.stage {
                Stage::Admitted { missing } => {
                    *missing -= 1;
                    if *missing == 0 {
                        queued.waits.last_from = from;
                        self.ready(task);
                    }
                }
                Stage::Waiting | Stage::Ready | Stage::Running => {
                    unreachable!("only admitted tasks wait for blocks")
                }
            }
        }
        debug_assert_ne!(self.store.state(&name), State::Coming);
    }
}
