//! The record of a run: what `svdjob explain` reads while it goes on and afterwards.
//!
//! ```text
//! <cache>/v1/records/<start in ms>-<first 16 digits of the plan's hash>.jsonl
//! ```
//!
//! Lines of JSON, appended at the end of every stage, about once a second and at the end; the first one names the version.
//! The last line may be torn. A record is bounded in bytes: what would not fit of ordinary tasks is left out first, then of
//! others, and that is told. The newest [`RECORDS_MAX`] are kept. Whatever fails while it is written only ends the record.

mod account;
mod read;
mod write;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use shared::farm::{
    ids::{AgentId, TaskId},
    message::Waits,
};

pub use read::{Found, ReadError, Record, find};
pub use write::{Batch, Recorder};

use crate::{
    farm::traffic::LinkBytes,
    scheduler::{Moved, Transition, Turn},
};

/// Of the lines below. Another one is not read.
pub const VERSION: u32 = 1;
pub const RECORDS_MAX: usize = 16;
/// Bytes up to which ordinary tasks, others, and everything else are written.
const ORDINARY_MAX: u64 = 6 << 20;
const TASKS_MAX: u64 = 7 << 20;
const BYTES_MAX: u64 = 8 << 20;

/// Where to keep a record, and what its first line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub folder: PathBuf,
    pub head: Head,
}

/// The first line.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Head {
    pub version: u32,
    pub release: String,
    /// Milliseconds since 1970.
    pub started_ms: u64,
    /// Where the factors go.
    pub directory: PathBuf,
    pub input: PathBuf,
    pub plan: String,
    /// By nodes of a farm, or in one process.
    pub farm: bool,
}

/// A task, or what is new of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskEntry {
    pub task: TaskId,
    pub stage: u16,
    pub verb: String,
    /// With the microseconds since the start.
    pub steps: Vec<(u64, Transition)>,
    pub done: Vec<DoneEntry>,
}

/// What a task had waited for where it was done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DoneEntry {
    pub at: u64,
    pub agent: AgentId,
    pub waits: Waits,
    pub took_us: u32,
}

/// A stage so far.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StageEntry {
    pub stage: u16,
    pub name: String,
    /// Microseconds since the start.
    pub began: u64,
    /// When the last task so far was done, or when this was written.
    pub ended: u64,
    pub tasks: u64,
    pub done: u64,
    pub agents: Vec<Share>,
    /// Tasks taken from another's home, asked back, given back, given to two, and done again by whom they were lost with.
    pub taken: u64,
    pub recalled: u64,
    pub returned: u64,
    pub doubled: u64,
    pub redone: Vec<(AgentId, u64)>,
    /// Longest first.
    pub longest: Vec<Wait>,
    pub links: Vec<LinkBytes>,
}

/// What one agent did in a stage, in microseconds of its cores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Share {
    pub agent: AgentId,
    pub cores: u16,
    pub tasks: u64,
    pub busy_us: u64,
    /// For tasks of other stages at the same time.
    pub other_us: u64,
    pub idle: Idle,
}

/// Why cores stood idle. Of two reasons at once the first counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Idle {
    /// It was not there.
    pub absent_us: u64,
    /// A task there waited for what it reads, longest for what this one had.
    pub inputs_us: u64,
    pub inputs_from: Option<AgentId>,
    /// A task there waited for memory.
    pub room_us: u64,
    /// It had nothing to do, or did not know it yet.
    pub nothing_us: u64,
}

/// A long wait of a task.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wait {
    pub task: TaskId,
    pub verb: String,
    pub agent: AgentId,
    pub us: u64,
    pub why: Why,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Why {
    /// Ready, and not given to anybody: nobody was there.
    Nobody,
    /// Ready, and all had enough to do.
    Busy,
    Room,
    Inputs(Option<AgentId>),
    Core,
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entry {
    Head(Head),
    Name {
        agent: AgentId,
        name: String,
    },
    Life {
        at: u64,
        agent: AgentId,
        turn: Turn,
    },
    Moved(Moved),
    Stage(StageEntry),
    Task(TaskEntry),
    /// From here on tasks are left out.
    Cut,
    End {
        at: u64,
        how: String,
    },
}

/// The records in a cache, the newest first.
pub fn list(cache: &Path) -> Vec<PathBuf> {
    let folder = cache.join("v1").join("records");
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
        .collect();
    found.sort();
    found.reverse();
    found
}

#[cfg(test)]
mod tests;
