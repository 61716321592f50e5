//! The loop of a run: letters in, orders out, until the plan is done.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use shared::farm::{
    bytes::Bytes,
    frame::{Bulk, BulkKind, Frame, FrameError, decode_control, plan_tag},
    graph::Graph,
    ids::{AgentId, ContentHash, TaskId},
    link::Outbox,
    message::{Cause, FromAgent, Try},
    moment::Moment,
    work::{Work, WorkError},
};

use super::{
    Inputs, RunError, RunReport,
    librarian::{Kept, Librarian},
};
use crate::scheduler::{Action, Event, Progress, Scheduler, SchedulerConfig};

/// What arrives in the coordinator's mailbox.
pub enum ToCoordinator {
    /// An agent can be spoken to from now on. Its hello follows.
    Joined(AgentId, Outbox),
    Frame(AgentId, Frame),
    /// An agent's last words.
    Ended(AgentId, String),
    /// No agent is left, and none will come.
    Alone(String),
}

/// What a run is to do, beside its graph.
pub struct Orders<'a, E> {
    /// The plan's hash: the name of its results.
    pub plan: ContentHash,
    /// Input blocks, for agents that have to ask for them.
    pub inputs: Arc<dyn Inputs>,
    pub config: SchedulerConfig,
    /// The least time between two reports of progress within a stage.
    pub progress_ms_min: u64,
    /// Is handed the blocks of [`Graph::deliveries`] as they come.
    pub deliver: &'a mut dyn FnMut(TaskId, Bytes) -> Result<(), E>,
    /// Called about ten times a second and when a stage ends.
    pub progress: &'a mut dyn FnMut(&Progress),
    pub stop: &'a AtomicBool,
}

/// How often the stop flag is looked at while nothing happens.
const STOP_POLL: Duration = Duration::from_millis(50);
const LETTERS_MAX: usize = 256;

struct Run<'g, 'a, W: Work, E> {
    graph: &'g Graph<W>,
    orders: Orders<'a, E>,
    scheduler: Scheduler<'g, W>,
    librarian: Librarian,
    outboxes: HashMap<AgentId, Outbox>,
    /// Delivered blocks that the scheduler has not spoken about yet.
    blocks: HashMap<TaskId, Bytes>,
    start: Instant,
    reported: Option<Instant>,
    stages_done: usize,
}

/// Runs a plan on the agents that come in through the mailbox.
pub fn drive<W: Work, E>(
    graph: &Graph<W>,
    orders: Orders<'_, E>,
    letters: &Receiver<ToCoordinator>,
) -> Result<RunReport, RunError<E>> {
    graph.validate()?;
    // Nothing is kept yet.
    let kept: Arc<Kept> = Arc::new(|_, _| None);
    let librarian = Librarian::start(orders.plan, &orders.inputs, &kept)
        .map_err(|why| RunError::Agent(format!("could not start a thread: {why}")))?;
    let mut run = Run {
        graph,
        librarian,
        scheduler: Scheduler::new(graph, orders.plan, orders.config),
        orders,
        outboxes: HashMap::new(),
        blocks: HashMap::new(),
        start: Instant::now(),
        reported: None,
        stages_done: 0,
    };
    loop {
        if run.act()? {
            break;
        }
        if run.orders.stop.load(Ordering::Relaxed) {
            return Err(RunError::Interrupted);
        }
        run.report();
        let wait = match run.scheduler.poll_deadline() {
            Some(at) => Duration::from_micros(at.since(run.now())).min(STOP_POLL),
            None => STOP_POLL,
        };
        let first = match letters.recv_timeout(wait) {
            Ok(letter) => letter,
            Err(RecvTimeoutError::Timeout) => {
                run.handle(Event::Tick);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(RunError::Agent("all of them are gone".to_owned()));
            }
        };
        let more = letters.try_iter().take(LETTERS_MAX);
        for letter in std::iter::once(first).chain(more) {
            run.read(letter)?;
        }
    }
    let last = run.scheduler.progress(run.now());
    (run.orders.progress)(&last);
    Ok(run.end(last))
}

impl<W: Work, E> Run<'_, '_, W, E> {
    fn now(&self) -> Moment {
        Moment(self.start.elapsed().as_micros() as u64)
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
                    // A closed link is followed by the agent's last words.
                    if let Some(outbox) = self.outboxes.get(&agent) {
                        let _ = outbox.control(&message);
                    }
                }
                Action::Deliver(task) => {
                    let block = self.blocks.remove(&task).expect("it has just come");
                    (self.orders.deliver)(task, block).map_err(RunError::Deliver)?;
                }
                Action::Failed { this, cause } => return Err(self.failure(this, cause)),
                Action::Refused { agent, .. } => {
                    return Err(RunError::Agent(format!(
                        "agent {} is of another release",
                        agent.0
                    )));
                }
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
                verb: self.graph.tasks[this.task.0 as usize].work.verb(),
                error,
                story: self.scheduler.story().of(this.task),
            },
            Cause::Input(error) => RunError::Input(error),
        }
    }

    fn read(&mut self, letter: ToCoordinator) -> Result<(), RunError<E>> {
        let event = match letter {
            ToCoordinator::Joined(agent, outbox) => {
                self.outboxes.insert(agent, outbox);
                return Ok(());
            }
            ToCoordinator::Frame(agent, frame) => match self.understand(agent, frame) {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(why) => {
                    tracing::warn!("nonsense from agent {}: a frame {why}", agent.0);
                    self.outboxes.remove(&agent);
                    Event::Lost(agent)
                }
            },
            ToCoordinator::Ended(agent, why) => {
                tracing::info!("{why}");
                self.outboxes.remove(&agent);
                Event::Lost(agent)
            }
            ToCoordinator::Alone(why) => return Err(RunError::Agent(why)),
        };
        self.handle(event);
        Ok(())
    }

    fn understand(&mut self, agent: AgentId, frame: Frame) -> Result<Option<Event>, FrameError> {
        match frame {
            Frame::Control(bytes) => match decode_control::<FromAgent>(&bytes)? {
                FromAgent::Fetch(fetch) => {
                    if let Some(outbox) = self.outboxes.get(&agent) {
                        self.librarian.ask(outbox.clone(), fetch);
                    }
                    Ok(None)
                }
                message @ (FromAgent::Hello(_)
                | FromAgent::Have(_)
                | FromAgent::Done { .. }
                | FromAgent::Returned(_)
                | FromAgent::Failed { .. }
                | FromAgent::Heartbeat(_)
                | FromAgent::Unreachable(_)) => Ok(Some(Event::Said { agent, message })),
            },
            Frame::Bulk { head, payload } => {
                let bulk = Bulk::decode(&head, payload)?;
                match bulk.kind {
                    BulkKind::Delivery if bulk.plan == plan_tag(self.orders.plan) => {}
                    BulkKind::Delivery
                    | BulkKind::Block
                    | BulkKind::Partial
                    | BulkKind::Nothing => return Ok(None),
                }
                let task = TaskId(u32::try_from(bulk.request).unwrap_or(u32::MAX));
                self.blocks.insert(task, bulk.payload);
                Ok(Some(Event::Delivery { agent, task }))
            }
        }
    }

    fn report(&mut self) {
        let stages = self.scheduler.stages();
        let done = stages.iter().filter(|s| s.is_done()).count();
        let due = self
            .reported
            .is_none_or(|at| at.elapsed().as_millis() as u64 >= self.orders.progress_ms_min);
        if due || done != self.stages_done {
            self.stages_done = done;
            self.reported = Some(Instant::now());
            let progress = self.scheduler.progress(self.now());
            (self.orders.progress)(&progress);
        }
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
        }
    }
}
