//! Where input blocks come from.

use shared::farm::{bytes::Bytes, ids::ContentHash};

pub use shared::farm::message::{InputError, InputErrorKind};

/// Reads input blocks, verified, from the disk cache or from memory. May block: it is called on IO threads.
pub trait Inputs: Send + Sync {
    fn load(&self, hash: &ContentHash) -> Result<Bytes, InputError>;

    /// As [`load`](Self::load), and whether a link had to be crossed for it.
    fn fetch(&self, hash: &ContentHash) -> Result<(Bytes, bool), InputError> {
        Ok((self.load(hash)?, false))
    }

    /// Whether the block is at hand, without a link to be crossed.
    fn has(&self, _hash: &ContentHash) -> bool {
        true
    }
}

/// A plan without input blocks.
impl Inputs for () {
    fn load(&self, hash: &ContentHash) -> Result<Bytes, InputError> {
        Err(InputError {
            hash: *hash,
            kind: InputErrorKind::Missing,
            why: "this plan was given no inputs".to_owned(),
        })
    }
}

/// Input blocks in memory.
impl Inputs for std::collections::HashMap<ContentHash, Bytes> {
    fn load(&self, hash: &ContentHash) -> Result<Bytes, InputError> {
        self.get(hash).cloned().ok_or_else(|| InputError {
            hash: *hash,
            kind: InputErrorKind::Missing,
            why: "not among the blocks in memory".to_owned(),
        })
    }
}
