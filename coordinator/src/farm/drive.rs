//! The loop of a run: letters in, orders out, until the plan is done.
//!
//! A plan that is open grows when a block is delivered: whoever takes it says what comes next. What a run before has kept of
//! the deliveries is handed out before anything else happens, so that the plan is first of all as far as it was.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use node_agent::{
    awake::{self, awake},
    driver::{AgentError, Letter},
};
use shared::farm::{
    bytes::Bytes,
    frame::{Bulk, BulkKind, Frame, FrameError, decode_control, encode_control, plan_tag},
    graph::Graph,
    ids::{AgentId, ContentHash, TaskId},
    link::Outbox,
    message::{Cause, FromAgent, ToAgent, Try},
    moment::Moment,
    work::{Work, WorkError},
};

use super::{
    Inputs, RunError, RunReport,
    keeper::{Keeper, Outcome},
    librarian::Librarian,
    traffic::Traffic,
};
use crate::{
    record::{self, Batch, Recorder},
    scheduler::{Action, Event, Mark, Progress, Scheduler, SchedulerConfig},
    spool::Spool,
};

/// What arrives in the coordinator's mailbox.
pub enum ToCoordinator {
    /// An agent can be spoken to from now on. Its hello follows.
    Joined {
        agent: AgentId,
        /// What people call it.
        name: String,
        outbox: Outbox,
    },
    Frame(AgentId, Frame),
    /// An agent's last words.
    Ended(AgentId, String),
    /// For that one of the agents in this process.
    Local(usize, Letter),
}

/// Agents in this process, which have no threads but those of their cores.
pub trait Local {
    fn read(&mut self, agent: usize, letter: Letter) -> Result<(), AgentError>;
    /// Does what there is to do. What comes of it comes as letters.
    fn act(&mut self);
    /// When it is to act again though no letter comes.
    fn due(&self) -> Option<Duration>;
    /// Whether a core has nothing to do.
    fn is_idle(&self) -> bool;
}

/// Is handed the blocks of [`Graph::deliveries`] as they come, each once. A graph that it returns is the plan from then on:
/// see [`Graph::grows_from`].
///
/// What a plan grows by must follow from the plan and the blocks delivered so far, and from nothing else: a run that goes on
/// where another was broken off hands out again, in the order of the plan, what is in the spool, and comes to the same tasks
/// under the same numbers. A block that decides something is to be in a checkpoint which none supersedes; otherwise all
/// that depends on it begins anew.
pub type Deliver<'a, W, E> = &'a mut dyn FnMut(TaskId, Bytes) -> Result<Option<Arc<Graph<W>>>, E>;

/// What a run is to do, beside its graph.
pub struct Orders<'a, W, E> {
    /// The plan's hash: the name of its results, also of those by which it grows.
    pub plan: ContentHash,
    pub config: SchedulerConfig,
    /// Input blocks for agents that ask the coordinator for them.
    pub inputs: Arc<dyn Inputs>,
    /// Where checkpoints are kept, and perhaps are from a run before.
    pub spool: Option<Arc<Spool>>,
    /// Where to keep a record for people.
    pub record: Option<record::Place>,
    /// The least time between two reports of progress within a stage.
    pub progress_ms_min: u64,
    pub deliver: Deliver<'a, W, E>,
    /// Called about ten times a second and when a stage ends.
    pub progress: &'a mut dyn FnMut(&Progress),
    pub stop: &'a AtomicBool,
    /// Agents in this process, if that is where they are.
    pub local: Option<&'a mut dyn Local>,
}

/// How often the stop flag is looked at while nothing happens.
const STOP_POLL: Duration = Duration::from_millis(50);
/// How often what threads have done is looked at while they do something.
const THREADS_POLL: Duration = Duration::from_millis(2);
const LETTERS_MAX: usize = 256;
/// Questions and answers before the stop flag is looked at.
const ROUNDS_MAX: usize = 16;
/// How often what is new goes into the record; when a stage has ended, and at most.
const RECORD_EVERY: Duration = Duration::from_secs(1);
const RECORD_EVERY_MIN: Duration = Duration::from_millis(100);

struct Run<'a, W: Work, E> {
    orders: Orders<'a, W, E>,
    scheduler: Scheduler<W>,
    keeper: Option<Keeper>,
    librarian: Librarian,
    outboxes: HashMap<AgentId, Outbox>,
    names: HashMap<AgentId, String>,
    /// Delivered blocks that the scheduler has not spoken about yet.
    blocks: HashMap<TaskId, Bytes>,
    start: Instant,
    reported: Option<Instant>,
    stages_done: usize,
    /// The first stage that is not done.
    stage: u16,
    traffic: Traffic,
    recorder: Option<Recorder>,
    recorded: Instant,
    /// How far the story is in the record, and which names.
    mark: Mark,
    new_names: Vec<(AgentId, String)>,
}

/// Runs a plan on the agents that come in through the mailbox.
pub fn drive<W: Work, E>(
    mut graph: Arc<Graph<W>>,
    mut orders: Orders<'_, W, E>,
    letters: &Receiver<ToCoordinator>,
) -> Result<RunReport, RunError<E>> {
    graph.validate()?;
    let kept = orders.spool.as_ref().map(|spool| spool.kept());
    let delivered = replay(&mut graph, &mut orders)?;
    let kept = kept.as_deref();
    let scheduler = Scheduler::new(graph, orders.plan, orders.config, kept, &delivered);
    let threads = |why: std::io::Error| RunError::Agent(format!("could not start a thread: {why}"));
    let spool = orders.spool.clone();
    // No record is no failure.
    let recorder = orders.record.as_ref().and_then(|place| {
        Recorder::start(place)
            .map_err(|why| tracing::info!("no record of this run is kept: {why}"))
            .ok()
    });
    let mut run = Run {
        scheduler,
        keeper: spool
            .clone()
            .map(Keeper::start)
            .transpose()
            .map_err(threads)?,
        librarian: Librarian::start(orders.plan, Arc::clone(&orders.inputs), spool)
            .map_err(threads)?,
        orders,
        outboxes: HashMap::new(),
        names: HashMap::new(),
        blocks: HashMap::new(),
        start: Instant::now(),
        reported: None,
        stages_done: 0,
        stage: 0,
        traffic: Traffic::default(),
        recorder,
        recorded: Instant::now(),
        mark: Mark::default(),
        new_names: Vec::new(),
    };
    let worked = run.work(letters);
    run.end_record(&worked);
    worked?;
    let last = run.scheduler.progress(run.now());
    (run.orders.progress)(&last);
    Ok(run.end(last))
}

impl<W: Work, E> Run<'_, W, E> {
    /// Until the plan is done.
    fn work(&mut self, letters: &Receiver<ToCoordinator>) -> Result<(), RunError<E>> {
        loop {
            if self.settle(letters)? {
                return Ok(());
            }
            if self.orders.stop.load(Ordering::Relaxed) {
                return Err(RunError::Interrupted);
            }
            self.report();
            self.look_at_threads();
            let wait = match self.scheduler.poll_deadline() {
                Some(at) => Duration::from_micros(at.since(self.now())).min(STOP_POLL),
                None => STOP_POLL,
            };
            let busy = self.keeper.as_ref().is_some_and(Keeper::is_busy);
            let wait = if busy { wait.min(THREADS_POLL) } else { wait };
            let due = self.orders.local.as_ref().and_then(|local| local.due());
            let wait = due.map_or(wait, |due| wait.min(due));
            // Whoever is silent may have spoken while this loop was not listening: the letters come first.
            let mut read = 0;
            match self.next(letters, wait) {
                Ok(first) => {
                    let more = letters.try_iter().take(LETTERS_MAX);
                    for letter in std::iter::once(first).chain(more) {
                        self.read(letter)?;
                        read += 1;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(RunError::Agent("all of them are gone".to_owned()));
                }
            }
            let due = self
                .scheduler
                .poll_deadline()
                .is_some_and(|at| at <= self.now());
            if read == 0 || (due && read <= LETTERS_MAX) {
                self.handle(Event::Tick);
            }
        }
    }

    /// While a core waits for orders, its report is waited for awake.
    fn next(
        &self,
        letters: &Receiver<ToCoordinator>,
        wait: Duration,
    ) -> Result<ToCoordinator, RecvTimeoutError> {
        let idle = self.orders.local.as_ref().is_some_and(|l| l.is_idle());
        let moment = if idle { awake::MOMENT } else { Duration::ZERO };
        awake(moment.min(wait), || letters.try_recv().ok())
            .map_or_else(|| letters.recv_timeout(wait), Ok)
    }

    /// Does what is to be done; true when the plan is done. What agents in this process and the scheduler have to say to
    /// each other they say before anything else is done, for their cores wait.
    fn settle(&mut self, letters: &Receiver<ToCoordinator>) -> Result<bool, RunError<E>> {
        for _ in 0..ROUNDS_MAX {
            if self.act()? {
                return Ok(true);
            }
            let Some(local) = &mut self.orders.local else {
                break;
            };
            local.act();
            let mut silent = true;
            for letter in letters.try_iter().take(LETTERS_MAX) {
                silent = false;
                self.read(letter)?;
            }
            if silent {
                break;
            }
        }
        Ok(false)
    }
}

/// A name for tables.
fn short(name: &str) -> String {
    match name.strip_suffix(" in this process") {
        Some(number) => format!("agent {number}"),
        None => name.to_owned(),
    }
}

/// A graph that has grown is still one, and begins with what was there.
fn grown<W, E>(before: &Graph<W>, graph: &Graph<W>) -> Result<(), RunError<E>> {
    graph.grows_from(before)?;
    graph.validate()?;
    Ok(())
}

/// Hands out the deliveries that a run before has kept, and lets the plan grow for them. Which they were.
fn replay<W: Work, E>(
    graph: &mut Arc<Graph<W>>,
    orders: &mut Orders<'_, W, E>,
) -> Result<Vec<TaskId>, RunError<E>> {
    let mut delivered = Vec::new();
    let Some(spool) = orders.spool.clone() else {
        return Ok(delivered);
    };
    let mut next = 0;
    while let Some(&task) = graph.deliveries.get(next) {
        next += 1;
        let Some(block) = spool.read(task, None) else {
            continue;
        };
        if orders.stop.load(Ordering::Relaxed) {
            return Err(RunError::Interrupted);
        }
        delivered.push(task);
        if let Some(longer) = (orders.deliver)(task, block).map_err(RunError::Deliver)? {
            grown(graph, &longer)?;
            *graph = longer;
        }
    }
    Ok(delivered)
}

impl<W: Work, E> Run<'_, W, E> {
    fn now(&self) -> Moment {
        Moment(self.start.elapsed().as_micros() as u64)
    }

    fn give_up(&mut self, agent: AgentId) {
        if let Some(outbox) = self.outboxes.remove(&agent) {
            outbox.hang_up();
        }
    }

    fn name(&self, agent: AgentId) -> String {
        self.names.get(&agent).map_or_else(
            || format!("agent {}", agent.0),
            |name| format!("node {name}"),
        )
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        self.scheduler.handle(now, event);
    }

    /// Does what the scheduler says; true when the plan is done.
    fn act(&mut self) -> Result<bool, RunError<E>> {
        let now = self.now();
        while let Some(action) = self.scheduler.poll_action(now) {
            match action {
                Action::Tell { agent, message } => {
                    if matches!(message, ToAgent::Reset) {
                        tracing::warn!(
                            "{} is silent or cannot be reached: others do its work",
                            self.name(agent)
                        );
                    }
                    // A closed link is followed by the agent's last words.
                    if let Some(outbox) = self.outboxes.get(&agent) {
                        let bytes = encode_control(&message);
                        let me = AgentId::COORDINATOR;
                        self.traffic
                            .control(self.stage, me, agent, bytes.len() as u64);
                        let _ = outbox.frame(Frame::Control(bytes));
                    }
                }
                Action::Deliver(task) => {
                    let block = self.blocks.get(&task).cloned().expect("it has just come");
                    let longer = (self.orders.deliver)(task, block).map_err(RunError::Deliver)?;
                    if let Some(graph) = longer {
                        grown(self.scheduler.graph(), &graph)?;
                        self.scheduler.grow(now, graph);
                    }
                }
                Action::Keep { agent, task } => {
                    let block = self.blocks.get(&task).cloned().expect("it has just come");
                    if let Some(keeper) = &mut self.keeper {
                        keeper.keep(agent, task, block);
                    }
                }
                Action::Unkeep(task) => {
                    if let Some(keeper) = &mut self.keeper {
                        keeper.forget(task);
                    }
                }
                Action::Failed { this, cause } => return Err(self.failure(this, cause)),
                Action::Refused { agent, understood } => {
                    tracing::warn!(
                        "{} speaks protocols {} to {}, this release does not: it is left out",
                        self.name(agent),
                        understood.oldest,
                        understood.newest
                    );
                    self.give_up(agent);
                }
                Action::Close(agent) => {
                    tracing::warn!(
                        "{} was silent for too long: it is given up",
                        self.name(agent)
                    );
                    self.give_up(agent);
                }
                Action::NotGrown => return Err(RunError::NotGrown),
                Action::Finished => return Ok(true),
            }
        }
        // What the scheduler did not want, it had already.
        self.blocks.clear();
        Ok(false)
    }

    fn failure(&self, this: Try, cause: Cause) -> RunError<E> {
        match cause {
            Cause::Work(WorkError::OutOfMemory { bytes }) => RunError::Budget { needed: bytes },
            Cause::Work(error) => RunError::Work {
                task: this.task,
                verb: self.scheduler.graph().tasks[this.task.0 as usize]
                    .work
                    .verb(),
                error,
                story: self.scheduler.story().of(this.task),
            },
            Cause::Input(error) => RunError::Input(error),
        }
    }

    fn read(&mut self, letter: ToCoordinator) -> Result<(), RunError<E>> {
        let event = match letter {
            ToCoordinator::Joined {
                agent,
                name,
                outbox,
            } => {
                self.outboxes.insert(agent, outbox);
                self.new_names.push((agent, short(&name)));
                self.names.insert(agent, name);
                return Ok(());
            }
            ToCoordinator::Frame(agent, Frame::Control(bytes)) => {
                let message = match decode_control::<FromAgent>(&bytes) {
                    Ok(message) => message,
                    Err(why) => return self.nonsense(agent, why),
                };
                let me = AgentId::COORDINATOR;
                self.traffic
                    .control(self.stage, agent, me, bytes.len() as u64);
                if let FromAgent::Done { received, .. } | FromAgent::Heartbeat { received, .. } =
                    &message
                {
                    for came in received {
                        self.traffic
                            .blocks(came.stage, came.from, agent, came.bytes);
                    }
                }
                if let (FromAgent::Fetch(fetch), Some(outbox)) =
                    (&message, self.outboxes.get(&agent))
                {
                    self.librarian.fetch(outbox, *fetch);
                }
                if let FromAgent::Failed { this, cause } = &message {
                    let verb = self
                        .scheduler
                        .graph()
                        .tasks
                        .get(this.task.0 as usize)
                        .map_or("?", |t| t.work.verb());
                    let why: &dyn std::fmt::Display = match cause {
                        Cause::Work(why) => why,
                        Cause::Input(why) => why,
                    };
                    tracing::warn!(
                        "{} failed at task {} ({verb}): {why}",
                        self.name(agent),
                        this.task.0
                    );
                }
                Event::Said { agent, message }
            }
            ToCoordinator::Frame(agent, Frame::Bulk { head, payload }) => {
                let bulk = match Bulk::decode(&head, payload) {
                    Ok(bulk) => bulk,
                    Err(why) => return self.nonsense(agent, why),
                };
                match bulk.kind {
                    BulkKind::Delivery if bulk.plan == plan_tag(self.orders.plan) => {}
                    BulkKind::Delivery
                    | BulkKind::Block
                    | BulkKind::Partial
                    | BulkKind::Nothing => return Ok(()),
                }
                let task = TaskId(u32::try_from(bulk.request).unwrap_or(u32::MAX));
                if let Some(spec) = self.scheduler.graph().tasks.get(task.0 as usize) {
                    let (stage, me) = (spec.stage, AgentId::COORDINATOR);
                    let bytes = bulk.payload.len() as u64;
                    self.traffic.blocks(stage, agent, me, bytes);
                }
                self.blocks.insert(task, bulk.payload);
                Event::Delivery { agent, task }
            }
            ToCoordinator::Ended(agent, why) => {
                tracing::info!("{why}");
                self.outboxes.remove(&agent);
                if self.outboxes.is_empty() {
                    tracing::warn!(
                        "nobody is left to work; waiting for a node (after Ctrl-C, another run goes on from what is kept)"
                    );
                }
                Event::Lost(agent)
            }
            ToCoordinator::Local(agent, letter) => {
                let Some(local) = &mut self.orders.local else {
                    return Ok(());
                };
                return local
                    .read(agent, letter)
                    .map_err(|why| RunError::Agent(format!("agent {agent}: {why}")));
            }
        };
        self.handle(event);
        Ok(())
    }

    /// A frame that is none: nothing that this agent says can be relied on.
    fn nonsense(&mut self, agent: AgentId, why: FrameError) -> Result<(), RunError<E>> {
        tracing::warn!(
            "{} sent nonsense, a frame {why}: it is given up",
            self.name(agent)
        );
        self.give_up(agent);
        if self.outboxes.is_empty() {
            return Err(why.into());
        }
        self.handle(Event::Lost(agent));
        Ok(())
    }

    /// What the keeper and the librarian have found.
    fn look_at_threads(&mut self) {
        for task in self.librarian.missing() {
            self.handle(Event::NotKept(task));
        }
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        for outcome in keeper.outcomes() {
            match outcome {
                Outcome::Kept { agent, task } => {
                    if let Some(outbox) = self.outboxes.get(&agent) {
                        let _ = outbox.control(&ToAgent::<W>::Delivered(vec![task]));
                    }
                }
                Outcome::Lost { agent, task } => {
                    if let Some(outbox) = self.outboxes.get(&agent) {
                        let _ = outbox.control(&ToAgent::<W>::Delivered(vec![task]));
                    }
                    self.handle(Event::NotKept(task));
                }
                Outcome::Full(why) => {
                    tracing::warn!("nothing more is kept for another run: {why}");
                    self.handle(Event::KeepNoMore);
                }
            }
        }
    }

    fn report(&mut self) {
        let stages = self.scheduler.stages();
        let done = stages.iter().filter(|s| s.is_done()).count();
        let due = self
            .reported
            .is_none_or(|at| at.elapsed().as_millis() as u64 >= self.orders.progress_ms_min);
        let ended = done != self.stages_done;
        let open = stages.iter().position(|s| !s.is_done());
        self.stage = open.unwrap_or(stages.len().saturating_sub(1)) as u16;
        let every = if ended {
            RECORD_EVERY_MIN
        } else {
            RECORD_EVERY
        };
        if self.recorded.elapsed() >= every {
            self.recorded = Instant::now();
            self.record();
        }
        if due || ended {
            self.stages_done = done;
            self.reported = Some(Instant::now());
            let progress = self.scheduler.progress(self.now());
            (self.orders.progress)(&progress);
        }
    }

    fn batch(&mut self, mark: &mut Mark, end: Option<String>) -> Batch {
        let graph = Arc::clone(self.scheduler.graph());
        Batch {
            now: self.now(),
            chapter: self.scheduler.story().since(mark),
            about: Arc::new(move |task| {
                let task = &graph.tasks[task.0 as usize];
                (task.stage, task.work.verb())
            }),
            stages: self.scheduler.stages().to_vec(),
            names: std::mem::take(&mut self.new_names),
            traffic: self.traffic.clone(),
            end,
        }
    }

    /// What is new goes into the record, if there is time for it.
    fn record(&mut self) {
        if self.recorder.is_none() {
            return;
        }
        let mut mark = self.mark;
        let batch = self.batch(&mut mark, None);
        match self.recorder.as_ref().and_then(|r| r.take(batch)) {
            Some(batch) => self.new_names = batch.names,
            None => self.mark = mark,
        }
    }

    /// The last of the record.
    fn end_record(&mut self, ended: &Result<(), RunError<E>>) {
        let Some(recorder) = self.recorder.take() else {
            return;
        };
        let how = match ended {
            Ok(()) => "done".to_owned(),
            Err(why) => why.to_string(),
        };
        let mut mark = self.mark;
        let batch = self.batch(&mut mark, Some(how));
        recorder.finish(batch);
    }

    fn end(self, last: Progress) -> RunReport {
        let statuses: Vec<_> = self.scheduler.statuses().collect();
        RunReport {
            elapsed_us: last.elapsed_us,
            tasks: last.stages.iter().map(|s| s.tasks_done).sum(),
            stages: last.stages,
            loaded_bytes: last.loaded_bytes,
            tracked_bytes_peak: statuses
                .iter()
                .map(|s| s.tracked_bytes_peak)
                .max()
                .unwrap_or(0),
            busy_us: statuses.iter().map(|s| s.busy_us).collect(),
            story: self.scheduler.into_story(),
            traffic: self.traffic,
        }
    }
}
