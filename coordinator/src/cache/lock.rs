//! Advisory locks on files: let go by the system when a process ends, however it ends.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

use fs4::{FileExt, TryLockError};

/// A lock held while this lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
}

impl Lock {
    /// Waits until it is free.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        FileExt::lock(&file)?;
        Ok(Self { _file: file })
    }

    /// `None` when somebody else holds it.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match FileExt::try_lock(&file) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(why)) => Err(why),
        }
    }

    pub fn shared(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        FileExt::lock_shared(&file)?;
        Ok(Self { _file: file })
    }

    /// Whether anybody holds it now. A lock file that is not there is not held.
    pub fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else {
            return false;
        };
        matches!(FileExt::try_lock(&file), Err(TryLockError::WouldBlock))
    }
}
