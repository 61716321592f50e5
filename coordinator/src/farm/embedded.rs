//! Agents in this process.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{Builder, JoinHandle},
};

use node_agent::{
    agent::AgentConfig,
    driver::{Letter, Links, run_agent},
    inputs::Inputs,
};
use shared::farm::{
    frame::{Frame, encode_control},
    graph::Graph,
    ids::{AgentId, ContentHash},
    link::Outbox,
    message::{Peer, ToAgent},
    work::Work,
};

use super::{Deliver, Orders, RunError, RunReport, ToCoordinator, drive};
use crate::{
    record,
    scheduler::{Progress, SchedulerConfig},
    spool::Spool,
};

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

#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    pub agents: Vec<AgentOptions>,
    /// Where checkpoints are kept.
    pub spool: Option<Arc<Spool>>,
    /// Where to keep a record for people.
    pub record: Option<record::Place>,
    /// The least time between two reports of progress within a stage.
    pub progress_ms_min: u64,
}

impl EmbeddedOptions {
    /// One agent.
    pub fn new(cores: u16, memory_bytes: u64) -> Self {
        Self {
            agents: vec![AgentOptions::new(cores, memory_bytes)],
            spool: None,
            record: None,
            progress_ms_min: 100,
        }
    }
}

struct Agents {
    threads: Vec<JoinHandle<()>>,
    outboxes: Vec<Outbox>,
    stop: Vec<u8>,
}

/// The links of one agent to everybody, all in memory.
struct InMemory {
    coordinator: Outbox,
    peers: Vec<Outbox>,
}

impl Links for InMemory {
    fn begin(&mut self, _: AgentId) {}

    fn coordinator(&self) -> &Outbox {
        &self.coordinator
    }

    fn ask(&mut self, whom: AgentId) -> Option<Outbox> {
        self.peers.get(whom.0 as usize).cloned()
    }

    fn answer(&mut self, whom: AgentId) -> Option<Outbox> {
        self.peers.get(whom.0 as usize).cloned()
    }

    fn meet(&mut self, _: &[Peer]) {}

    fn shun(&mut self, _: AgentId) {}
}

impl Agents {
    fn start<W: Work>(
        options: &EmbeddedOptions,
        inputs: &Arc<dyn Inputs>,
        mailbox: &Sender<ToCoordinator>,
    ) -> Result<Self, std::io::Error> {
        let boxes: Vec<(Sender<Letter>, Receiver<Letter>)> =
            options.agents.iter().map(|_| channel()).collect();
        let senders: Vec<Sender<Letter>> = boxes.iter().map(|(s, _)| s.clone()).collect();
        let mut agents = Self {
            threads: Vec::new(),
            outboxes: Vec::new(),
            stop: encode_control(&ToAgent::<W>::End),
        };
        let living = Arc::new(AtomicUsize::new(options.agents.len()));
        for (index, letters) in boxes.into_iter().enumerate() {
            let id = AgentId(index as u32);
            let outbox = Outbox::into_mailbox(senders[index].clone(), Letter::Coordinator);
            agents.outboxes.push(outbox.clone());
            let _ = mailbox.send(ToCoordinator::Joined {
                agent: id,
                name: format!("{index} in this process"),
                outbox,
            });
            let links = InMemory {
                coordinator: Outbox::into_mailbox(mailbox.clone(), move |f| {
                    ToCoordinator::Frame(id, f)
                }),
                peers: senders
                    .iter()
                    .map(|s| Outbox::into_mailbox(s.clone(), move |frame| Letter::Peer(id, frame)))
                    .collect(),
            };
            let option = options.agents[index];
            let mut config = AgentConfig::new(option.cores, option.memory_bytes);
            config.loads_max = option.io_threads.max(1);
            let inputs = Arc::clone(inputs);
            let mailbox = mailbox.clone();
            let living = Arc::clone(&living);
            agents
                .threads
                .push(
                    Builder::new()
                        .name(format!("agent-{index}"))
                        .spawn(move || {
                            let io = option.io_threads.max(1);
                            let run = || run_agent::<W>(config, io, &inputs, letters, links);
                            let end = match catch_unwind(AssertUnwindSafe(run)) {
                                Ok(Ok(())) => format!("agent {} has left", id.0),
                                Ok(Err(why)) => format!("agent {}: {why}", id.0),
                                // The panic itself has been printed where it happened.
                                Err(_) => format!("agent {} panicked", id.0),
                            };
                            let last = living.fetch_sub(1, Ordering::Relaxed) == 1;
                            let _ = mailbox.send(ToCoordinator::Ended(id, end.clone()));
                            if last {
                                let _ = mailbox.send(ToCoordinator::Alone(end));
                            }
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

/// Runs a plan on agents in this process.
pub fn run_embedded<W: Work, E>(
    graph: Arc<Graph<W>>,
    plan: ContentHash,
    inputs: Arc<dyn Inputs>,
    options: &EmbeddedOptions,
    deliver: Deliver<'_, W, E>,
    progress: &mut dyn FnMut(&Progress),
    stop: &AtomicBool,
) -> Result<RunReport, RunError<E>> {
    let (mailbox, letters) = channel();
    let agents = Agents::start::<W>(options, &inputs, &mailbox)
        .map_err(|why| RunError::Agent(format!("could not start a thread: {why}")))?;
    drop(mailbox);
    let orders = Orders {
        plan,
        config: SchedulerConfig {
            agents_expected: options.agents.len(),
            // One alone reads what the others would: what it cannot read is to be made again at once.
            attempts_max: if options.agents.len() > 1 { 3 } else { 1 },
            ..SchedulerConfig::default()
        },
        inputs: Arc::clone(&inputs),
        spool: options.spool.clone(),
        record: options.record.clone(),
        progress_ms_min: options.progress_ms_min,
        deliver,
        progress,
        stop,
    };
    let ran = drive(graph, orders, &letters);
    drop(agents);
    ran
}
