//! Agents in this process.

use std::{
    sync::{
        Arc,
        atomic::AtomicBool,
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use node_agent::{
    agent::AgentConfig,
    awake,
    driver::{self, AgentError, Letter, Links},
    executor::Threads,
    inputs::Inputs,
};
use shared::farm::{
    frame::Frame,
    graph::Graph,
    ids::{AgentId, ContentHash},
    link::Outbox,
    message::Peer,
    work::Work,
};

use super::{Deliver, Local, Orders, RunError, RunReport, ToCoordinator, drive};
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

type Driver<W> = driver::Driver<W, InMemory>;

/// They live in the coordinator's thread and have its mailbox: a thread of their own would be woken between any two steps
/// of a plan, twice, and where a core sleeps that takes as long as a short task.
struct Agents<W: Work>(Vec<Driver<W>>);

impl<W: Work> Agents<W> {
    fn start(
        options: &EmbeddedOptions,
        inputs: &Arc<dyn Inputs>,
        mailbox: &Sender<ToCoordinator>,
    ) -> Result<Self, AgentError> {
        let to = |whom: usize, wrap: fn(AgentId, Frame) -> Letter, from: AgentId| {
            Outbox::into_mailbox(mailbox.clone(), move |frame| {
                ToCoordinator::Local(whom, wrap(from, frame))
            })
        };
        let mut drivers = Vec::new();
        for (index, option) in options.agents.iter().enumerate() {
            let id = AgentId(index as u32);
            let said = |_, frame| Letter::Coordinator(frame);
            let _ = mailbox.send(ToCoordinator::Joined {
                agent: id,
                name: format!("{index} in this process"),
                outbox: to(index, said, AgentId::COORDINATOR),
            });
            let links = InMemory {
                coordinator: Outbox::into_mailbox(mailbox.clone(), move |frame| {
                    ToCoordinator::Frame(id, frame)
                }),
                peers: (0..options.agents.len())
                    .map(|peer| to(peer, Letter::Peer, id))
                    .collect(),
            };
            let mut config = AgentConfig::new(option.cores, option.memory_bytes);
            let threads = Threads {
                io: option.io_threads.max(1),
                awake: awake::MOMENT,
            };
            config.loads_max = threads.io;
            let wrap = move |report| ToCoordinator::Local(index, Letter::Report(report));
            drivers.push(Driver::start(
                config, threads, inputs, mailbox, wrap, links,
            )?);
        }
        Ok(Self(drivers))
    }
}

impl<W: Work> Local for Agents<W> {
    fn read(&mut self, agent: usize, letter: Letter) -> Result<(), AgentError> {
        self.0[agent].read(letter)
    }

    fn act(&mut self) {
        for driver in &mut self.0 {
            // One whose job has ended has nothing to do.
            driver.act();
        }
    }

    fn is_idle(&self) -> bool {
        self.0.iter().any(Driver::is_idle)
    }

    fn due(&self) -> Option<Duration> {
        self.0.iter().filter_map(Driver::due).min()
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
    let mut agents = Agents::<W>::start(options, &inputs, &mailbox)
        .map_err(|why| RunError::Agent(why.to_string()))?;
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
        local: Some(&mut agents),
    };
    drive(graph, orders, &letters)
}
