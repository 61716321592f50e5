//! Where an ingest writes before anything is final.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use shared::farm::ids::ContentHash;

use super::lock::Lock;

/// A directory of one ingest: removed when dropped, or swept by a later run when its lock is free.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: tempfile::TempDir,
    _lock: Lock,
}

impl Staging {
    pub(super) fn new(tmp: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ingest-").tempdir_in(tmp)?;
        let lock = Lock::exclusive(&dir.path().join("lock"))?;
        Ok(Self { dir, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Removes the blocks written so far.
    pub fn clear_blocks(&self) {
        for file in fs::read_dir(self.path()).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|e| e == "blk") {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    pub fn block_path(&self, hash: &ContentHash) -> PathBuf {
        self.dir.path().join(format!("{hash}.blk"))
    }
}

/// Removes the directories of runs that ended without doing so.
pub(super) fn sweep(tmp: &Path) {
    for dir in fs::read_dir(tmp).into_iter().flatten().flatten() {
        if !Lock::is_held(&dir.path().join("lock")) {
            let _ = fs::remove_dir_all(dir.path());
        }
    }
}
