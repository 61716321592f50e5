//! Names. Everything on the farm is named before it exists, so that it can be asked for, computed twice, or lost, without
//! anybody having to agree on anything first.

use std::fmt;

use serde::{Deserialize, Serialize};

/// BLAKE3 hash of some bytes: the name of an input block, wherever its bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Reads what [`Display`](fmt::Display) writes: 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text)
            .ok()
            .map(|h| Self(*h.as_bytes()))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Place of a task in its graph.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default,
)]
pub struct TaskId(pub u32);

/// Place of an accumulator in its graph.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default,
)]
pub struct AccumulatorId(pub u32);

/// One agent, as the coordinator numbers them within a job.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default,
)]
pub struct AgentId(pub u32);

impl AgentId {
    /// The coordinator, where it is named as one who has a block: what is in its spool can be fetched from it.
    pub const COORDINATOR: Self = Self(u32::MAX);
}

/// The how-manieth try of a task: a late answer of an earlier try is told from the one awaited.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default,
)]
pub struct Attempt(pub u32);

/// Name of immutable bytes, known before they are computed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
pub enum BlockName {
    /// Bytes that exist already.
    Input(ContentHash),
    /// What a task of the plan with this hash yields. `version` grows when the meaning of a task's output changes
    /// between releases, so that an old result is never taken for a new one.
    Result {
        plan: ContentHash,
        task: TaskId,
        version: u16,
    },
}

/// Version of what tasks yield; part of every result's name.
pub const RESULT_VERSION: u16 = 4;
