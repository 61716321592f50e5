//! Results kept on the coordinator's disk, so that no loss sends a run back to its beginning.
//!
//! ```text
//! <spools>/<first 16 digits of the plan's hash>/lock       held while a run uses it
//! <spools>/<first 16 digits of the plan's hash>/<n>.kept   records, one after the other: a head of 72 bytes, then the block
//! ```
//!
//! The head is: magic "SVDK" u32, version u16, version of results u16, task u32, zero u32, hash of the plan, length u64,
//! xxh3 of the block u64, xxh3 of the head before u64; all little-endian. What is short, damaged or of another version is
//! not there, nor is what follows a damaged head in its file. Nothing is flushed to the disk: after a loss of power the
//! checksums tell.
//!
//! A file takes records until it is 4 MiB long, and is removed when none of them is wanted any more: what nobody wants takes
//! little room, and a disk has few files to make (a file a record cost a twentieth of a run). A run adds to no file of
//! an earlier one, whose last record may have been cut off.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
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
const VERSION: u16 = 2;
const HEAD: usize = 72;
/// A file this long takes no more records.
const FILE_BYTES: u64 = 4 << 20;
/// Spools that nobody has used for so long are removed, and the oldest beyond so many.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
const SPOOLS_MAX: usize = 8;

/// The kept results of one plan. Whoever has it is alone with it.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    plan: ContentHash,
    shelf: Mutex<Shelf>,
    /// Given to be written, and not yet on disk.
    pending: Mutex<HashMap<TaskId, Bytes>>,
    _lock: Lock,
}

/// Where a record's head begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Record {
    file: u32,
    at: u64,
}

/// What is where.
#[derive(Debug, Default)]
struct Shelf {
    records: BTreeMap<TaskId, Record>,
    /// Records of each file that are wanted.
    wanted: BTreeMap<u32, usize>,
    /// The file that is written, and its length.
    open: Option<(u32, File, u64)>,
    /// The number of the next one.
    next: u32,
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
            shelf: Mutex::default(),
            pending: Mutex::default(),
            _lock: lock,
        };
        spool.survey()?;
        Ok(Some(spool))
    }

    /// Finds what is whole; removes the rest.
    fn survey(&self) -> io::Result<()> {
        let mut shelf = locked(&self.shelf);
        let mut files = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            if path.file_name().is_some_and(|name| name == "lock") {
                continue;
            }
            let number = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".kept")?.parse::<u32>().ok())
                .filter(|&number| number < u32::MAX && path == self.path(number));
            match number {
                Some(number) => files.push(number),
                None => {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        // What stands later is newer.
        files.sort_unstable();
        for number in files {
            shelf.next = number + 1;
            let mut at = 0;
            let mut file = File::open(self.path(number))?;
            while let Some((task, length, block)) = self.record(&mut file, at) {
                if block.is_some() {
                    self.place(&mut shelf, task, Some(Record { file: number, at }));
                }
                at += length;
            }
            self.sweep_file(&mut shelf, number);
        }
        Ok(())
    }

    fn path(&self, file: u32) -> PathBuf {
        self.folder.join(format!("{file}.kept"))
    }

    /// The record that begins there: its task, its length, and its block if that is whole. None: nothing of this plan does.
    fn record(&self, file: &mut File, at: u64) -> Option<(TaskId, u64, Option<Bytes>)> {
        let left = file.metadata().ok()?.len().checked_sub(at + HEAD as u64)?;
        file.seek(SeekFrom::Start(at)).ok()?;
        let mut head = [0; HEAD];
        file.read_exact(&mut head).ok()?;
        let field = |from: usize| u64::from_le_bytes(head[from..from + 8].try_into().expect("8"));
        let task = TaskId(u32::from_le_bytes(head[8..12].try_into().expect("4 bytes")));
        let length = field(48);
        if head[..] != self.head(task, length, field(56)) || length > left {
            return None;
        }
        let mut bytes = BytesMut::unwritten(usize::try_from(length).ok()?).ok()?;
        file.read_exact(bytes.as_bytes_mut()).ok()?;
        let whole = xxh3_64(bytes.as_bytes()) == field(56);
        Some((task, HEAD as u64 + length, whole.then(|| bytes.freeze())))
    }

    /// A file that nobody wants anything of goes, unless it is still written.
    fn sweep_file(&self, shelf: &mut Shelf, number: u32) {
        let is_open = shelf
            .open
            .as_ref()
            .is_some_and(|(open, ..)| *open == number);
        if !is_open && !shelf.wanted.contains_key(&number) {
            let _ = fs::remove_file(self.path(number));
        }
    }

    fn head(&self, task: TaskId, length: u64, checksum: u64) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&RESULT_VERSION.to_le_bytes());
        head.extend_from_slice(&task.0.to_le_bytes());
        head.extend_from_slice(&0_u32.to_le_bytes());
        head.extend_from_slice(&self.plan.0);
        head.extend_from_slice(&length.to_le_bytes());
        head.extend_from_slice(&checksum.to_le_bytes());
        head.extend_from_slice(&xxh3_64(&head).to_le_bytes());
        debug_assert_eq!(head.len(), HEAD);
        head
    }

    /// The record of a task stands there from now on, or nowhere.
    fn place(&self, shelf: &mut Shelf, task: TaskId, record: Option<Record>) {
        let before = match record {
            Some(record) => {
                *shelf.wanted.entry(record.file).or_default() += 1;
                shelf.records.insert(task, record)
            }
            None => shelf.records.remove(&task),
        };
        let Some(before) = before else { return };
        if let Some(wanted) = shelf.wanted.get_mut(&before.file) {
            *wanted -= 1;
            if *wanted == 0 {
                shelf.wanted.remove(&before.file);
                self.sweep_file(shelf, before.file);
            }
        }
    }

    /// What is on disk, when it is whole.
    fn load(&self, task: TaskId) -> Option<Bytes> {
        let record = *locked(&self.shelf).records.get(&task)?;
        let mut file = File::open(self.path(record.file)).ok()?;
        let (found, _, block) = self.record(&mut file, record.at)?;
        block.filter(|_| found == task)
    }

    /// All that is on disk.
    pub fn kept(&self) -> Vec<TaskId> {
        locked(&self.shelf).records.keys().copied().collect()
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
        let head = self.head(task, bytes.len() as u64, xxh3_64(bytes));
        let mut shelf = locked(&self.shelf);
        let (number, mut file, at) = match shelf.open.take() {
            Some(open) => open,
            None => {
                let number = shelf.next;
                let file = File::options()
                    .write(true)
                    .create_new(true)
                    .open(self.path(number))?;
                shelf.next += 1;
                (number, file, 0)
            }
        };
        // Readers do not wait for the disk. Who writes is one, and the same who forgets.
        drop(shelf);
        let written = file.write_all(&head).and_then(|()| file.write_all(bytes));
        let mut shelf = locked(&self.shelf);
        match written {
            Ok(()) => {
                let length = at + (HEAD + bytes.len()) as u64;
                if length < FILE_BYTES {
                    shelf.open = Some((number, file, length));
                }
                self.place(&mut shelf, task, Some(Record { file: number, at }));
            }
            Err(_) => {
                // Half a record takes no room, and none is written behind it.
                let _ = file.set_len(at);
                self.sweep_file(&mut shelf, number);
            }
        }
        written
    }

    /// The block of a task, or a byte range of it; `None` when it is not kept or damaged.
    pub fn read(&self, task: TaskId, range: Option<(u64, u64)>) -> Option<Bytes> {
        let pending = locked(&self.pending).get(&task).cloned();
        let bytes = match pending {
            Some(bytes) => bytes,
            None => self.load(task)?,
        };
        match range {
            None => Some(bytes),
            Some((start, end)) if start <= end && end <= bytes.len() as u64 => {
                Some(bytes.slice(start as usize..end as usize))
            }
            Some(_) => None,
        }
    }

    /// Nobody wants it any more. A later run may find it again.
    pub fn forget(&self, task: TaskId) {
        self.place(&mut locked(&self.shelf), task, None);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for task in self.kept() {
            self.forget(task);
        }
        let mut shelf = locked(&self.shelf);
        if let Some((number, ..)) = shelf.open.take() {
            self.sweep_file(&mut shelf, number);
        }
    }

    /// The job has ended well: nothing of it is needed any more.
    pub fn remove(&self) {
        *locked(&self.shelf) = Shelf::default();
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

    fn file(spools: &Path, number: u32) -> PathBuf {
        spools
            .join(&PLAN.to_string()[..16])
            .join(format!("{number}.kept"))
    }

    /// What stands on disk for it.
    fn kept(content: &[u8]) -> Vec<u8> {
        let spools = tempfile::tempdir().unwrap();
        open(spools.path()).keep(TaskId(1), bytes(content)).unwrap();
        fs::read(file(spools.path(), 0)).unwrap()
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
        assert_eq!(spool.read(TaskId(9), None), None);
        assert!(
            Spool::open(spools.path(), PLAN).unwrap().is_none(),
            "two runs of a plan do not share a spool"
        );
        drop(spool);
        let other = Spool::open(spools.path(), ContentHash([6; 32])).unwrap();
        assert_eq!(other.expect("nobody has it").kept(), []);
        // What was forgotten may be there again as long as its file is: it is what it was.
        let spool = open(spools.path());
        assert_eq!(spool.kept(), [TaskId(3), TaskId(7), TaskId(9)]);
        assert_eq!(spool.read(TaskId(3), Some((1, 3))).unwrap(), bytes(b"hr"));
        assert_eq!(spool.read(TaskId(3), Some((1, 6))), None);
        spool.remove();
        drop(spool);
        assert_eq!(open(spools.path()).kept(), []);
    }

    #[test]
    fn what_is_damaged_is_not_there() {
        let content: Vec<u8> = (0..100).collect();
        type Harm = fn(&mut Vec<u8>);
        let harms: [(&str, Harm); 6] = [
            ("truncated", |b| b.truncate(150)),
            ("only a piece of its head", |b| b.truncate(30)),
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
            let path = file(spools.path(), 0);
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
        fs::write(file(spools.path(), 0), b"something else").unwrap();
        assert_eq!(spool.read(TaskId(1), None), None);
    }

    #[test]
    fn a_damaged_block_or_a_record_cut_off_hides_no_other() {
        let spools = tempfile::tempdir().unwrap();
        let spool = open(spools.path());
        for task in 1..=3 {
            spool.keep(TaskId(task), bytes(&[task as u8; 50])).unwrap();
        }
        // Again, and that is what counts.
        spool.keep(TaskId(1), bytes(b"anew")).unwrap();
        spool.keep(TaskId(4), bytes(&[4; 50])).unwrap();
        drop(spool);
        let path = file(spools.path(), 0);
        let mut on_disk = fs::read(&path).unwrap();
        on_disk[2 * HEAD + 50 + 10] ^= 1;
        on_disk.truncate(on_disk.len() - 1);
        fs::write(&path, on_disk).unwrap();
        let spool = open(spools.path());
        assert_eq!(spool.kept(), [TaskId(1), TaskId(3)]);
        assert_eq!(spool.read(TaskId(1), None), Some(bytes(b"anew")));
        // What is written now stands in another file, and is found beside the old one.
        spool.keep(TaskId(2), bytes(b"two")).unwrap();
        drop(spool);
        let spool = open(spools.path());
        assert_eq!(spool.kept(), [TaskId(1), TaskId(2), TaskId(3)]);
        assert_eq!(spool.read(TaskId(2), None), Some(bytes(b"two")));
        assert_eq!(spool.read(TaskId(3), None), Some(bytes(&[3; 50])));
    }

    #[test]
    fn a_file_goes_with_the_last_that_was_wanted_of_it() {
        let spools = tempfile::tempdir().unwrap();
        let spool = open(spools.path());
        let block = bytes(&vec![1; FILE_BYTES as usize / 3]);
        for task in 0..12 {
            spool.keep(TaskId(task), block.clone()).unwrap();
            if task >= 2 {
                spool.forget(TaskId(task - 2));
            }
            let files = fs::read_dir(file(spools.path(), 0).parent().unwrap());
            let files = files.unwrap().count() - 1;
            assert!(files <= 2, "{files} files after {task}");
        }
        assert_eq!(spool.kept(), [TaskId(10), TaskId(11)]);
        spool.keep(TaskId(12), bytes(b"small")).unwrap();
        spool.clear();
        assert_eq!(spool.kept(), []);
        drop(spool);
        assert_eq!(open(spools.path()).kept(), []);
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
            fs::write(file(spools.path(), 0), &on_disk).unwrap();
            let (read, most) = largest_allocation(|| spool.read(TaskId(1), None));
            let whole = on_disk.starts_with(&kept(b"content"));
            prop_assert_eq!(read, whole.then(|| bytes(b"content")));
            prop_assert!(most <= 64 << 10, "{} bytes at once", most);
        }
    }
}
