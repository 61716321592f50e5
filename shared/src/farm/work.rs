//! The one trait in which the two floors meet.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use super::bytes::Bytes;

/// Why a task could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, serde::Deserialize)]
pub enum WorkError {
    /// An input does not hold what the task was told it holds.
    #[error("{0}")]
    BadInput(String),
    /// Memory was refused by the operating system.
    #[error("could not allocate {bytes} bytes of memory")]
    OutOfMemory { bytes: u64 },
    /// The numbers left what the arithmetic can hold.
    #[error("{0}")]
    Numbers(String),
    /// The task panicked: a bug.
    #[error("panicked: {0}")]
    Panic(String),
}

/// A closed set of task kinds, usually an enum. What travels is the value, never code.
///
/// A kind implements [`block`](Work::block), [`fold`](Work::fold) or both; a task's declared output decides which is
/// called. Both must be pure: the same inputs give the same bytes (or add the same integers), on any thread.
pub trait Work: Clone + Debug + Send + Sync + Serialize + DeserializeOwned + 'static {
    /// One word for progress and stories: "power", "combine".
    fn verb(&self) -> &'static str;

    /// Yields an immutable block.
    fn block(&self, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
        let _ = inputs;
        unreachable!("{} yields no block", self.verb())
    }

    /// Adds into the declared parts of an accumulator, `parts[0]` being the first of the declared range. Every check of
    /// the inputs comes before the first addition: an error must leave the parts as they were.
    fn fold(&self, inputs: &[Bytes], parts: &mut [&mut [i64]]) -> Result<(), WorkError> {
        let _ = (inputs, parts);
        unreachable!("{} folds nothing", self.verb())
    }
}
