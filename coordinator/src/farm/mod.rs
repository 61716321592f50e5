//! Runs a plan: the scheduler, its agents, and the links between them.
//!
//! [`drive`] is the one loop. [`embedded`] gives it agents in this process, joined by in-memory links, [`remote`] agents on
//! other machines. Everything else is the same: the same messages, serialised, the same two machines.

mod drive;
pub mod embedded;
mod keeper;
mod librarian;
pub mod remote;
pub mod traffic;

use shared::farm::{frame::FrameError, graph::GraphError, ids::TaskId, work::WorkError};

pub use drive::{Deliver, Local, Orders, ToCoordinator, drive};
pub use embedded::{AgentOptions, EmbeddedOptions, run_embedded};
pub use librarian::Librarian;
pub use node_agent::inputs::{InputError, InputErrorKind, Inputs};

pub use crate::scheduler::{Progress, StageProgress, Story, TaskStory};

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
    /// Which bytes went over which link, by stage.
    pub traffic: traffic::Traffic,
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
    #[error("could not allocate {needed} bytes of memory")]
    Budget { needed: u64 },
    /// Whoever takes the results could not.
    #[error("could not take a result")]
    Deliver(E),
    #[error("the plan is broken: {0}")]
    Graph(#[from] GraphError),
    /// A bug of whoever takes the results.
    #[error("all of the plan is done, but it was left open and has not grown")]
    NotGrown,
    /// An agent could not be started or has ended before the job.
    #[error("an agent failed: {0}")]
    Agent(String),
    #[error("a frame {0}")]
    Frame(#[from] FrameError),
}
