//! Blocks of one matrix, read from disk when they are wanted.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use shared::{
    farm::{
        bytes::{Bytes, BytesMut},
        ids::ContentHash,
        work::WorkError,
    },
    matrix::block::{BlockError, verify},
};

use super::{direct, lock::Lock};

/// The blocks of one matrix. While it or a clone of it lives, no run removes the matrix from the cache.
#[derive(Clone, Debug)]
pub struct CacheInputs {
    key: Arc<str>,
    blocks: Arc<Path>,
    _lock: Arc<Lock>,
}

/// Why a block could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("block {0} is no longer in the cache")]
    Missing(ContentHash),
    #[error("block {hash} in the cache is damaged: {why}")]
    Damaged { hash: ContentHash, why: BlockError },
    #[error("could not read block {hash}: {why}")]
    Unreadable { hash: ContentHash, why: io::Error },
    #[error(transparent)]
    Memory(WorkError),
}

impl LoadError {
    /// Whether forgetting the matrix and making it again cures it.
    pub fn is_cured_by_ingest(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Damaged { .. } => true,
            Self::Unreadable { .. } | Self::Memory(_) => false,
        }
    }
}

pub(super) fn block_path(blocks: &Path, hash: &ContentHash) -> PathBuf {
    let name = hash.to_string();
    blocks.join(&name[..2]).join(format!("{name}.blk"))
}

impl CacheInputs {
    pub(super) fn new(key: String, blocks: PathBuf, lock: Lock) -> Self {
        Self {
            key: key.into(),
            blocks: blocks.into(),
            _lock: Arc::new(lock),
        }
    }

    /// Key of the matrix in the cache.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Reads a block past the system's page cache where that is possible, and checks its checksum.
    pub fn load(&self, hash: &ContentHash) -> Result<Bytes, LoadError> {
        let path = block_path(&self.blocks, hash);
        let bytes = read(&path, hash)?;
        verify(bytes.as_slice()).map_err(|why| LoadError::Damaged { hash: *hash, why })?;
        Ok(bytes)
    }
}

/// Sizes and places that reads past the page cache keep to.
const ALIGN: usize = 4096;

fn read(path: &Path, hash: &ContentHash) -> Result<Bytes, LoadError> {
    let unreadable = |why: io::Error| match why.kind() {
        io::ErrorKind::NotFound => LoadError::Missing(*hash),
        _ => LoadError::Unreadable { hash: *hash, why },
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len() as usize;
    let mut bytes = BytesMut::zeroed(len.next_multiple_of(ALIGN)).map_err(LoadError::Memory)?;
    let whole = bytes.as_bytes_mut();
    if whole.as_ptr().align_offset(ALIGN) != 0 || !direct::read(path, whole, len) {
        file.read_exact(&mut whole[..len]).map_err(unreadable)?;
    }
    Ok(bytes.freeze().slice(0..len))
}
