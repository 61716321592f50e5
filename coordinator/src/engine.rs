//! Runs the plan of a factorization, here or on a farm: what `svdjob run` and the library share.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
};

use shared::farm::{bytes::Bytes, ids::ContentHash};

use crate::{
    factors::{Collector, Quality, Sink},
    failure::Failure,
    farm::{
        AgentOptions, EmbeddedOptions, InputError, Inputs, Orders, Progress, RunError, RunReport,
        drive, remote::Farm, run_embedded,
    },
    job::size,
    plan::{Mark, Plan},
    record,
    scheduler::SchedulerConfig,
    spool::Spool,
};

/// Cores and memory to run with. They decide where and when, never what.
#[derive(Clone, Debug)]
pub struct Hands {
    /// Agents in this process, each with its cores and its share of memory in bytes. One, but for tests of the farm.
    pub agents: Vec<(usize, u64)>,
}

impl Hands {
    pub fn one(cores: usize, memory: u64) -> Self {
        Self {
            agents: vec![(cores, memory)],
        }
    }
}

/// Why there are no factors.
#[derive(Debug)]
pub enum EngineError {
    Failed(Failure),
    /// An input block is missing or damaged: make it again and retry.
    Block(InputError),
}

impl From<Failure> for EngineError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Who does the work.
pub enum Workers<'a> {
    Here(&'a Hands),
    Farm(&'a Farm),
}

/// Who does the work, and where what is done is kept for a run after this one.
pub struct Place<'a> {
    pub workers: Workers<'a>,
    pub spool: Option<Arc<Spool>>,
    /// Where to keep a record for people.
    pub record: Option<record::Place>,
}

/// The plan's own inputs beside the row blocks.
struct WithMade {
    blocks: Arc<dyn Inputs>,
    made: HashMap<ContentHash, Bytes>,
}

impl Inputs for WithMade {
    fn load(&self, hash: &ContentHash) -> Result<Bytes, InputError> {
        match self.made.get(hash) {
            Some(bytes) => Ok(bytes.clone()),
            None => self.blocks.load(hash),
        }
    }
}

/// All that tasks of the plan read: the matrix's blocks, and what the plan has made.
pub fn inputs(plan: &Plan, blocks: Arc<dyn Inputs>) -> Arc<dyn Inputs> {
    let made = plan.made();
    Arc::new(WithMade { blocks, made })
}

/// Runs `plan`; rows of the factors go to `sink` as they come. What is in the spool is not done again.
///
/// `transposed`: the plan's matrix is the transpose of the user's.
pub fn factor(
    plan: &Plan,
    transposed: bool,
    blocks: Arc<dyn Inputs>,
    place: &Place<'_>,
    sink: &mut dyn Sink,
    progress: &mut dyn FnMut(&Progress, &[Mark]),
    stop: &AtomicBool,
) -> Result<(Quality, RunReport), EngineError> {
    let inputs = inputs(plan, blocks);
    // Both closures look at it, one after the other.
    let collector = RefCell::new(Collector::new(plan, transposed, sink));
    let deliver = &mut |task, bytes| collector.borrow_mut().deliver(task, bytes);
    let progress = &mut |now: &Progress| progress(now, collector.borrow().marks());
    let spool = place.spool.clone();
    let ran = match place.workers {
        Workers::Here(hands) => {
            let options = EmbeddedOptions {
                agents: hands
                    .agents
                    .iter()
                    .map(|&(cores, memory)| {
                        AgentOptions::new(u16::try_from(cores).unwrap_or(u16::MAX), memory)
                    })
                    .collect(),
                spool,
                record: place.record.clone(),
                ..EmbeddedOptions::new(1, 0)
            };
            run_embedded(
                Arc::clone(&plan.graph),
                plan.hash,
                inputs,
                &options,
                deliver,
                progress,
                stop,
            )
        }
        Workers::Farm(farm) => {
            let orders = Orders {
                plan: plan.hash,
                inputs,
                config: SchedulerConfig {
                    open_bytes: plan.memory_of_tasks(1),
                    ..SchedulerConfig::farm()
                },
                spool,
                record: place.record.clone(),
                progress_ms_min: 100,
                deliver,
                progress,
                stop,
                local: None,
            };
            let ran = drive(Arc::clone(&plan.graph), orders, farm.letters());
            farm.close();
            ran
        }
    };
    let report = ran.map_err(explained)?;
    Ok((collector.into_inner().finish()?, report))
}

fn explained(error: RunError<Failure>) -> EngineError {
    let failure = match error {
        RunError::Interrupted => Failure::interrupted(),
        RunError::Deliver(failure) => failure,
        RunError::Input(why) => return EngineError::Block(why),
        RunError::Budget { needed } => Failure::resources(format!(
            "the system refused {} of memory",
            size::show(needed)
        ))
        .help("close other programs, or set [resources] memory to what is free"),
        RunError::Agent(why) => Failure::resources(why),
        RunError::Work {
            task,
            verb,
            error,
            story,
        } => Failure::bug(format!("task {} ({verb}): {error}\n{story}", task.0)),
        broken @ (RunError::Graph(_) | RunError::NotGrown | RunError::Frame(_)) => {
            Failure::bug(broken.to_string())
        }
    };
    EngineError::Failed(failure)
}
