//! The run itself: input to blocks, blocks to factors.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use crate::failure::Failure;
use crate::job::resolved::Job;
use crate::report::progress::Observer;
use crate::report::summary::Summary;

/// How to go about a job, beside what the job says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunOptions {
    /// Read the input anew even if it is found prepared in the cache.
    pub fresh: bool,
}

/// Does the job and leaves the factors in its directory. `stop` is looked at often; once it is set, the run ends with
/// [`Failure::interrupted`] and leaves nothing behind.
///
/// # Errors
/// As told by the code of the failure.
pub fn run(
    _job: &Job,
    _options: &RunOptions,
    _observer: &mut dyn Observer,
    _stop: &AtomicBool,
) -> Result<Summary, Failure> {
    Err(Failure::bug("the run is not wired yet"))
}

/// What the head of the input tells, as pairs of a word and what it is: delimiter, header, the first entry.
///
/// # Errors
/// Data: the input is not there or not as the job says.
pub fn head(_job: &Job) -> Result<Vec<(String, String)>, Failure> {
    Err(Failure::bug("the input is not wired yet"))
}

/// A prepared input.
#[derive(Clone, PartialEq, Debug)]
pub struct Cached {
    pub key: String,
    pub source: PathBuf,
    pub rows: u64,
    pub columns: u64,
    pub nnz: u64,
    pub bytes: u64,
    pub last_used: SystemTime,
    pub in_use: bool,
}

/// What the cache holds, the latest used first.
///
/// # Errors
/// Resources: the cache cannot be read.
pub fn cache_list(_cache: &Path) -> Result<Vec<Cached>, Failure> {
    Err(Failure::bug("the cache is not wired yet"))
}

/// Removes all that is not in use (`None`), or what matches a source path or the first letters of a key. Gives what was
/// removed, and what was left alone because it is in use.
///
/// # Errors
/// Resources: the cache cannot be changed.
pub fn cache_remove(
    _cache: &Path,
    _which: Option<&str>,
) -> Result<(Vec<Cached>, Vec<Cached>), Failure> {
    Err(Failure::bug("the cache is not wired yet"))
}
