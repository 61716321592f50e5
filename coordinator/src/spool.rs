//! Results kept on the coordinator's disk, so that no loss sends a run back to its beginning.
//!
//! ```text
//! <spools>/<first 16 digits of the plan's hash>/lock          held while a run uses it
//! <spools>/<first 16 digits of the plan's hash>/<task>.kept   a head of 72 bytes, then the block
//! ```
//!
//! The head is: magic "SVDK" u32, version u16, version of results u16, task u32, zero u32, hash of the plan, length u64,
//! xxh3 of the block u64, xxh3 of the head before u64; all little-endian. What is short, damaged or of another version is
//! not there. Nothing is flushed to the disk: after a loss of power the checksum tells.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use shared::farm::{
    bytes::{Bytes, BytesMut},
    ids::{ContentHash, RESULT_VERSION, TaskId},
};
use xxhash_rust::xxh3::xxh3_64;

use crate::cache::lock::Lock;

const MAGIC: [u8; 4] = *b"SVDK";
const VERSION: u16 = 1;
const HEAD: usize = 72;
/// Spools that nobody has used for so long are removed, and the oldest beyond so many.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const SPOOLS_MAX: usize = 8;

/// The kept results of one plan. Whoever has it is alone with it.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    plan: ContentHash,
    kept: Mutex<BTreeSet<TaskId>>,
    /// Given to be written, and not yet on disk.
    pending: Mutex<HashMap<TaskId, Bytes>>,
    _lock: Lock,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spool {
    /// Opens the spool of a plan and forgets what is damaged in it; `None` when another run has it. Old spools of other
    /// plans are removed on the way.
    pub fn open(spools: &Path, plan: ContentHash) -> io::Result<Option<Self>> {
        fs::create_dir_all(spools)?;
        let name = plan.to_string()[..16].to_owned();
        sweep(spools, &name);
        let folder = spools.join(name);
        let path = folder.join("lock");
        let lock = loop {
            fs::create_dir_all(&folder)?;
            match Lock::try_exclusive(&path) {
                Ok(Some(lock)) if path.exists() => break lock,
                // Whoever had it has just removed it.
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                Err(why) => return Err(why),
            }
        };
        // So that it counts as used today.
        let _ = File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        let spool = Self {
            folder,
            plan,
            kept: Mutex::default(),
            pending: Mutex::default(),
            _lock: lock,
        };
        spool.survey()?;
        Ok(Some(spool))
    }

    /// Finds what is whole; removes the rest.
    fn survey(&self) -> io::Result<()> {
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            if path.file_name().is_some_and(|name| name == "lock") {
                continue;
            }
            let task = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".kept")?.parse().ok())
                .map(TaskId);
            match task {
                Some(task) if self.load(task).is_some() => {
                    locked(&self.kept).insert(task);
                }
                Some(_) | None => {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(())
    }

    fn path(&self, task: TaskId) -> PathBuf {
        self.folder.join(format!("{}.kept", task.0))
    }

    fn head(&self, task: TaskId, bytes: &[u8]) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&RESULT_VERSION.to_le_bytes());
        head.extend_from_slice(&task.0.to_le_bytes());
        head.extend_from_slice(&0_u32.to_le_bytes());
        head.extend_from_slice(&self.plan.0);
        head.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        head.extend_from_slice(&xxh3_64(bytes).to_le_bytes());
        head.extend_from_slice(&xxh3_64(&head).to_le_bytes());
        debug_assert_eq!(head.len(), HEAD);
        head
    }

    /// What is on disk, when it is whole.
    fn load(&self, task: TaskId) -> Option<Bytes> {
        let mut file = File::open(self.path(task)).ok()?;
        let length = file.metadata().ok()?.len().checked_sub(HEAD as u64)?;
        let mut head = [0; HEAD];
        file.read_exact(&mut head).ok()?;
        let mut bytes = BytesMut::zeroed(usize::try_from(length).ok()?).ok()?;
        file.read_exact(bytes.as_bytes_mut()).ok()?;
        let bytes = bytes.freeze();
        // One comparison checks mark, versions, task, plan, length and checksums.
        (head[..] == self.head(task, bytes.as_slice())).then_some(bytes)
    }

    /// All that is on disk.
    pub fn kept(&self) -> Vec<TaskId> {
        locked(&self.kept).iter().copied().collect()
    }

    /// Can be read from now on; [`write`](Self::write) puts it on disk.
    pub fn accept(&self, task: TaskId, bytes: Bytes) {
        locked(&self.pending).insert(task, bytes);
    }

    /// Writes what was accepted.
    pub fn write(&self, task: TaskId) -> io::Result<()> {
        let bytes = locked(&self.pending).get(&task).cloned();
        let Some(bytes) = bytes else {
            return Ok(());
        };
        let written = self.put(task, bytes.as_slice());
        if written.is_ok() {
            locked(&self.kept).insert(task);
        }
        locked(&self.pending).remove(&task);
        written
    }

    /// What was accepted is not written after all.
    pub fn refuse(&self, task: TaskId) {
        locked(&self.pending).remove(&task);
    }

    /// Keeps a block: what [`accept`](Self::accept) and [`write`](Self::write) do.
    pub fn keep(&self, task: TaskId, bytes: Bytes) -> io::Result<()> {
        self.accept(task, bytes);
        self.write(task)
    }

    fn put(&self, task: TaskId, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.folder.join(format!("{}.tmp", task.0));
        let written = File::create(&temporary)
            .and_then(|mut file| {
                file.write_all(&self.head(task, bytes))?;
                file.write_all(bytes)
            })
            .and_then(|()| fs::rename(&temporary, self.path(task)));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// The block of a task, or a byte range of it; `None` when it is not kept or damaged.
    pub fn read(&self, task: TaskId, range: Option<(u64, u64)>) -> Option<Bytes> {
        let pending = locked(&self.pending).get(&task).cloned();
        let bytes = match pending {
            Some(bytes) => bytes,
            None if locked(&self.kept).contains(&task) => self.load(task)?,
            None => return None,
        };
        match range {
            None => Some(bytes),
            Some((start, end)) if start <= end && end <= bytes.len() as u64 => {
                Some(bytes.slice(start as usize..end as usize))
            }
            Some(_) => None,
        }
    }

    pub fn forget(&self, task: TaskId) {
        locked(&self.kept).remove(&task);
        let _ = fs::remove_file(self.path(task));
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for task in self.kept() {
            self.forget(task);
        }
    }

    /// The job has ended well: nothing of it is needed any more.
    pub fn remove(&self) {
        locked(&self.kept).clear();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes spools that are too old or too many, none that is in use.
fn sweep(spools: &Path, but: &str) {
    let mut others: Vec<(SystemTime, PathBuf)> = fs::read_dir(spools)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name() != but)
        .map(|entry| {
            let path = entry.path();
            let used = fs::metadata(path.join("lock"))
                .and_then(|lock| lock.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH);
            (used, path)
        })
        .collect();
    others.sort_by(|a, b| b.cmp(a));
    let now = SystemTime::now();
    for (place, (used, path)) in others.into_iter().enumerate() {
        let old = now.duration_since(used).is_ok_and(|age| age > AGE_MAX);
        if (old || place + 1 >= SPOOLS_MAX) && !Lock::is_held(&path.join("lock")) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::harm::{harmed, largest_allocation};

    const PLAN: ContentHash = ContentHash([5; 32]);

    fn bytes(content: &[u8]) -> Bytes {
        Bytes::copy_from(content).unwrap()
    }

    fn open(spools: &Path) -> Spool {
        Spool::open(spools, PLAN).unwrap().expect("nobody has it")
    }

    fn file(spools: &Path, task: u32) -> PathBuf {
        spools
            .join(&PLAN.to_string()[..16])
            .join(format!("{task}.kept"))
    }

    /// What stands on disk for it.
    fn kept(content: &[u8]) -> Vec<u8> {
        let spools = tempfile::tempdir().unwrap();
        open(spools.path()).keep(TaskId(1), bytes(content)).unwrap();
        fs::read(file(spools.path(), 1)).unwrap()
    }

    #[test]
    fn what_is_kept_is_there_for_the_next_run_of_the_same_plan_only() {
        let spools = tempfile::tempdir().unwrap();
        let spool = open(spools.path());
        spool.accept(TaskId(3), bytes(b"three"));
        assert_eq!(spool.kept(), [], "not yet on disk");
        assert_eq!(spool.read(TaskId(3), None).unwrap(), bytes(b"three"));
        spool.write(TaskId(3)).unwrap();
        spool.keep(TaskId(7), bytes(b"")).unwrap();
        spool.keep(TaskId(9), bytes(b"nine")).unwrap();
        spool.forget(TaskId(9));
        assert!(
            Spool::open(spools.path(), PLAN).unwrap().is_none(),
            "two runs of a plan do not share a spool"
        );
        drop(spool);
        let other = Spool::open(spools.path(), ContentHash([6; 32])).unwrap();
        assert_eq!(other.expect("nobody has it").kept(), []);
        let spool = open(spools.path());
        assert_eq!(spool.kept(), [TaskId(3), TaskId(7)]);
        assert_eq!(spool.read(TaskId(3), Some((1, 3))).unwrap(), bytes(b"hr"));
        assert_eq!(spool.read(TaskId(3), Some((1, 6))), None);
        assert_eq!(spool.read(TaskId(9), None), None);
        spool.remove();
        drop(spool);
        assert_eq!(open(spools.path()).kept(), []);
    }

    #[test]
    fn what_is_damaged_is_not_there() {
        let content: Vec<u8> = (0..100).collect();
        type Harm = fn(&mut Vec<u8>);
        let harms: [(&str, Harm); 7] = [
            ("truncated", |b| b.truncate(150)),
            ("only a piece of its head", |b| b.truncate(30)),
            ("longer", |b| b.push(0)),
            ("a byte of the block", |b| b[HEAD + 50] ^= 1),
            ("a byte of the plan", |b| b[20] ^= 1),
            ("another version", |b| b[4] += 1),
            ("another task", |b| b[8] ^= 1),
        ];
        for (what, harm) in harms {
            let spools = tempfile::tempdir().unwrap();
            open(spools.path())
                .keep(TaskId(1), bytes(&content))
                .unwrap();
            let path = file(spools.path(), 1);
            let mut on_disk = fs::read(&path).unwrap();
            harm(&mut on_disk);
            fs::write(&path, on_disk).unwrap();
            let spool = open(spools.path());
            assert_eq!(spool.kept(), [], "{what}");
            assert_eq!(spool.read(TaskId(1), None), None, "{what}");
            assert!(!path.exists(), "{what}");
        }
    }

    #[test]
    fn what_is_damaged_while_it_is_used_is_not_read() {
        let spools = tempfile::tempdir().unwrap();
        let spool = open(spools.path());
        spool.keep(TaskId(1), bytes(b"content")).unwrap();
        fs::write(file(spools.path(), 1), b"something else").unwrap();
        assert_eq!(spool.read(TaskId(1), None), None);
    }

    #[test]
    fn the_oldest_spools_go_but_none_in_use() {
        let spools = tempfile::tempdir().unwrap();
        let plan = |n: u8| ContentHash([n; 32]);
        let used = Spool::open(spools.path(), plan(0)).unwrap().unwrap();
        for n in 1..20 {
            Spool::open(spools.path(), plan(n)).unwrap().unwrap();
        }
        let lock = spools.path().join("0707070707070707").join("lock");
        let long_ago = SystemTime::now() - 2 * AGE_MAX;
        for plan in ["1212121212121212", "1313131313131313"] {
            let lock = spools.path().join(plan).join("lock");
            File::options()
                .append(true)
                .open(lock)
                .unwrap()
                .set_modified(long_ago)
                .unwrap();
        }
        let _open = open(spools.path());
        let left = fs::read_dir(spools.path()).unwrap().count();
        assert!(left <= SPOOLS_MAX, "{left} spools");
        assert!(!spools.path().join("1313131313131313").exists());
        assert!(!lock.exists());
        used.keep(TaskId(1), bytes(b"still here")).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn what_is_harmed_is_whole_or_not_there(on_disk in harmed(kept(b"content"))) {
            let spools = tempfile::tempdir().unwrap();
            let spool = open(spools.path());
            spool.keep(TaskId(1), bytes(b"content")).unwrap();
            fs::write(file(spools.path(), 1), &on_disk).unwrap();
            let (read, most) = largest_allocation(|| spool.read(TaskId(1), None));
            let whole = on_disk == kept(b"content");
            prop_assert_eq!(read, whole.then(|| bytes(b"content")));
            prop_assert!(most <= 64 << 10, "{} bytes at once", most);
        }
    }
}
