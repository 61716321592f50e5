//! The embedded farm: coordinator and agents in this process, joined by in-memory links. Everything else is as on many
//! machines: the same messages, serialised, the same two machines.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use node_agent::{
    agent::AgentConfig,
    driver::{Letter, run_agent},
};
use shared::farm::{
    bytes::Bytes,
    frame::{Bulk, BulkKind, Frame, FrameError, decode_control},
    graph::{Graph, GraphError},
    ids::{AgentId, ContentHash, TaskId},
    link::Outbox,
    message::{Cause, FromAgent, ToAgent, Try},
    moment::Moment,
    work::{Work, WorkError},
};

pub use node_agent::inputs::{InputError, InputErrorKind, Inputs};

use crate::scheduler::{Action, Event, Scheduler, SchedulerConfig};
pub use crate::scheduler::{Progress, StageProgress, Story, TaskStory};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AgentOptions {
    pub cores: u16,
    /// For everything that the agent holds: inputs, partial sums, results.
    pub memory_bytes: u64,
    /// Threads that read input blocks.
    pub io_threads: usize,
}

impl AgentOptions {
    pub fn new(cores: u16, memory_bytes: u64) -> Self {
        Self {
            cores,
            memory_bytes,
            io_threads: 2,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EmbeddedOptions {
    pub agents: Vec<AgentOptions>,
    /// The least time between two reports of progress within a stage.
    pub progress_ms_min: u64,
}

impl EmbeddedOptions {
    /// One agent.
    pub fn new(cores: u16, memory_bytes: u64) -> Self {
        Self {
            agents: vec![AgentOptions::new(cores, memory_bytes)],
            progress_ms_min: 100,
        }
    }
}

/// What a run was like.
#[derive(Clone, Debug)]
pub struct RunReport {
    pub elapsed_us: u64,
    pub stages: Vec<StageProgress>,
    pub tasks: u64,
    pub loaded_bytes: u64,
    /// The most that any one agent counted in memory.
    pub tracked_bytes_peak: u64,
    /// For every agent, time spent in tasks, summed over its workers.
    pub busy_us: Vec<u64>,
    pub story: Story,
}

/// Why a run did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E> {
    #[error("interrupted")]
    Interrupted,
    #[error("task {} ({verb}): {error}", task.0)]
    Work {
        task: TaskId,
        verb: &'static str,
        error: WorkError,
        story: TaskStory,
    },
    #[error("{0}")]
    Input(InputError),
    /// The system refused memory to a task.
    #[error("could not allocate {needed} bytes")]
    Budget { needed: u64 },
    /// Whoever takes the results could not.
    #[error("could not take a result")]
    Deliver(E),
    #[error("the plan is broken: {0}")]
    Graph(#[from] GraphError),
    /// An agent could not be started or has ended before the job.
    #[error("an agent failed: {0}")]
    Agent(String),
    #[error("a frame {0}")]
    Frame(#[from] FrameError),
}

enum ToCoordinator {
    Frame(AgentId, Frame),
    /// An agent's last words.
    Ended(String),
}

/// How often the stop flag is looked at while nothing happens.
const STOP_POLL: Duration = Duration::from_millis(50);
const LETTERS_MAX: usize = 256;

struct Agents {
    outboxes: Vec<Outbox>,
    threads: Vec<JoinHandle<()>>,
    stop: Vec<u8>,
}

impl Agents {
    fn start<W: Work>(
        options: &EmbeddedOptions,
        inputs: &Arc<dyn Inputs>,
        mailbox: &Sender<ToCoordinator>,
    ) -> Result<Self, std::io::Error> {
        let boxes: Vec<(Sender<Letter>, Receiver<Letter>)> =
            options.agents.iter().map(|_| channel()).collect();
        let outboxes = boxes
            .iter()
            .map(|(sender, _)| Outbox::into_mailbox(sender.clone(), Letter::Coordinator))
            .collect();
        let mut agents = Self {
            outboxes,
            threads: Vec::new(),
            stop: shared::farm::frame::encode_control(&ToAgent::<W>::End),
        };
        let senders: Vec<Sender<Letter>> = boxes.iter().map(|(s, _)| s.clone()).collect();
        for (index, letters) in boxes.into_iter().enumerate() {
            let id = AgentId(index as u32);
            let peers = senders
                .iter()
                .map(|s| Outbox::into_mailbox(s.clone(), move |frame| Letter::Peer(id, frame)))
                .collect();
            let coordinator =
                Outbox::into_mailbox(mailbox.clone(), move |f| ToCoordinator::Frame(id, f));
            let option = options.agents[index];
            let mut config = AgentConfig::new(option.cores, option.memory_bytes);
            config.loads_max = option.io_threads.max(1);
            let inputs = Arc::clone(inputs);
            let mailbox = mailbox.clone();
            let peers = Arc::new(peers);
            agents
                .threads
                .push(
                    Builder::new()
                        .name(format!("agent-{index}"))
                        .spawn(move || {
                            let io = option.io_threads.max(1);
                            let run =
                                || run_agent::<W>(config, io, &inputs, letters, coordinator, peers);
                            let end = match catch_unwind(AssertUnwindSafe(run)) {
                                Ok(Ok(())) => format!("agent {} has left", id.0),
                                Ok(Err(why)) => format!("agent {}: {why}", id.0),
                                // The panic itself has been printed where it happened.
                                Err(_) => format!("agent {} panicked", id.0),
                            };
                            let _ = mailbox.send(ToCoordinator::Ended(end));
                        })?,
                );
        }
        Ok(agents)
    }
}

impl Drop for Agents {
    /// Whatever the end, no thread outlives the run.
    fn drop(&mut self) {
        for outbox in &self.outboxes {
            let _ = outbox.frame(Frame::Control(self.stop.clone()));
        }
        for thread in self.threads.drain(..) {
            let joined = thread.join();
            if joined.is_err() {
                tracing::error!("an agent's thread panicked");
            }
        }
    }
}

/// Runs a plan on agents in this process. `plan` is its hash: the name of its results. `deliver` is handed the blocks
/// of [`Graph::deliveries`] as they come; `progress` is called about ten times a second and when a stage ends.
pub fn run_embedded<W: Work, E>(
    graph: &Graph<W>,
    plan: ContentHash,
    inputs: Arc<dyn Inputs>,
    options: &EmbeddedOptions,
    deliver: &mut dyn FnMut(TaskId, Bytes) -> Result<(), E>,
    progress: &mut dyn FnMut(&Progress),
    stop: &AtomicBool,
) -> Result<RunReport, RunError<E>> {
    graph.validate()?;
    let (mailbox, letters) = channel();
    let agents = Agents::start::<W>(options, &inputs, &mailbox)
        .map_err(|why| RunError::Agent(format!("could not start a thread: {why}")))?;
    drop(mailbox);
    let config = SchedulerConfig {
        agents_expected: options.agents.len(),
        ..SchedulerConfig::default()
    };
    let mut run = Run {
        graph,
        scheduler: Scheduler::new(graph, plan, config),
        agents,
        blocks: HashMap::new(),
        start: Instant::now(),
        reported: None,
        stages_done: 0,
    };
    loop {
        if run.act(deliver)? {
            break;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(RunError::Interrupted);
        }
        run.report(options, progress);
        let first = match letters.recv_timeout(STOP_POLL) {
            Ok(letter) => letter,
            Err(RecvTimeoutError::Timeout) => continue,
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
    progress(&last);
    Ok(run.end(last))
}

struct Run<'g, W: Work> {
    graph: &'g Graph<W>,
    scheduler: Scheduler<'g, W>,
    agents: Agents,
    /// Delivered blocks that the scheduler has not spoken about yet.
    blocks: HashMap<TaskId, Bytes>,
    start: Instant,
    reported: Option<Instant>,
    stages_done: usize,
}

impl<W: Work> Run<'_, W> {
    fn now(&self) -> Moment {
        Moment(self.start.elapsed().as_micros() as u64)
    }

    /// Does what the scheduler says; true when the plan is done.
    fn act<E>(
        &mut self,
        deliver: &mut dyn FnMut(TaskId, Bytes) -> Result<(), E>,
    ) -> Result<bool, RunError<E>> {
        let now = self.now();
        while let Some(action) = self.scheduler.poll_action(now) {
            match action {
                Action::Tell { agent, message } => {
                    // A closed link is followed by the agent's own last words.
                    let _ = self.agents.outboxes[agent.0 as usize].control(&message);
                }
                Action::Deliver(task) => {
                    let block = self.blocks.remove(&task).expect("it has just come");
                    deliver(task, block).map_err(RunError::Deliver)?;
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

    fn failure<E>(&self, this: Try, cause: Cause) -> RunError<E> {
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

    fn read<E>(&mut self, letter: ToCoordinator) -> Result<(), RunError<E>> {
        let event = match letter {
            ToCoordinator::Frame(agent, Frame::Control(bytes)) => Event::Said {
                agent,
                message: decode_control::<FromAgent>(&bytes)?,
            },
            ToCoordinator::Frame(agent, Frame::Bulk { head, payload }) => {
                let bulk = Bulk::decode(&head, payload)?;
                match bulk.kind {
                    BulkKind::Delivery => {}
                    BulkKind::Block | BulkKind::Partial | BulkKind::Nothing => return Ok(()),
                }
                let task = TaskId(u32::try_from(bulk.request).unwrap_or(u32::MAX));
                self.blocks.insert(task, bulk.payload);
                Event::Delivery { agent, task }
            }
            ToCoordinator::Ended(end) => return Err(RunError::Agent(end)),
        };
        let now = self.now();
        self.scheduler.handle(now, event);
        Ok(())
    }

    fn report(&mut self, options: &EmbeddedOptions, progress: &mut dyn FnMut(&Progress)) {
        let stages = self.scheduler.stages();
        let done = stages.iter().filter(|s| s.is_done()).count();
        let due = self
            .reported
            .is_none_or(|at| at.elapsed().as_millis() as u64 >= options.progress_ms_min);
        if due || done != self.stages_done {
            self.stages_done = done;
            self.reported = Some(Instant::now());
            progress(&self.scheduler.progress(self.now()));
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
