//! All files of a run, or none: they grow in a hidden directory beside their place and move there together.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::npy::{VectorWriter, Vectors};
use crate::failure::Failure;
use shared::size;

const PREFIX: &str = ".svdjob-";
const LOCK: &str = "lock";
pub const MANIFEST: &str = "manifest.json";
/// A staging directory without a lock belongs to a run that is just beginning, unless it is older than this.
const NEWBORN: Duration = Duration::from_secs(60);

/// A file of the result.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FileFacts {
    pub name: String,
    pub bytes: u64,
    pub blake3: String,
}

/// Files on their way into `directory`. Dropped without [`commit`](Self::commit), it leaves no trace.
#[derive(Debug)]
pub struct Staging {
    directory: PathBuf,
    hidden: PathBuf,
    /// Held for as long as this run lives: so others know that the hidden directory is no ruin.
    _lock: File,
    /// Directories that had to be made, outermost first.
    made: Vec<PathBuf>,
    /// In the order of their making.
    names: Vec<String>,
    /// Names of files that go if this run has none of that name.
    superseded: &'static [&'static str],
    committed: bool,
}

impl Staging {
    /// Makes `directory` where it is missing, sweeps what killed runs left in it, and sees to it that `bytes` will fit.
    ///
    /// # Errors
    /// Resources: the directory is a file, may not be written, is in use by another run, or lacks space.
    pub fn open(directory: &Path, bytes: u64) -> Result<Self, Failure> {
        let shown = directory.display();
        let made = make(directory)?;
        let staging = Self::enter(directory, made)?;
        if let Some(other) = sweep(directory, &staging.hidden) {
            return Err(Failure::resources(format!(
                "another run is writing factors into {shown} ({})",
                other.display()
            ))
            .help("wait for it, or choose another directory with --output"));
        }
        match fs4::available_space(&staging.hidden) {
            Ok(free) if free < bytes => Err(no_space(directory, bytes, Some(free))),
            // Where the system does not tell, preallocation will.
            Ok(_) | Err(_) => Ok(staging),
        }
    }

    fn enter(directory: &Path, made: Vec<PathBuf>) -> Result<Self, Failure> {
        let hidden = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(directory)
            .map_err(|error| {
                unmake(&made);
                cannot(directory, "the output directory cannot be written", &error)
            })?;
        let lock = File::create(hidden.path().join("lock.new")).and_then(|lock| {
            // Some network file systems know no locks; then nobody is warned, and nothing is swept.
            let _ = fs4::FileExt::try_lock(&lock);
            fs::rename(hidden.path().join("lock.new"), hidden.path().join(LOCK))?;
            Ok(lock)
        });
        let lock = lock.map_err(|error| {
            unmake(&made);
            cannot(directory, "the output directory cannot be written", &error)
        })?;
        Ok(Self {
            directory: directory.to_path_buf(),
            hidden: hidden.keep(),
            _lock: lock,
            made,
            names: Vec::new(),
            superseded: &[],
            committed: false,
        })
    }

    /// Files of these names that an earlier run has left go at [`commit`](Self::commit), also where this run has none to
    /// put in their place.
    pub fn supersede(&mut self, names: &'static [&'static str]) {
        self.superseded = names;
    }

    /// Where the files will be.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a file is until then.
    pub fn path(&self, name: &str) -> PathBuf {
        self.hidden.join(name)
    }

    /// A new file with room for `bytes`.
    ///
    /// # Errors
    /// Resources: the disk is full, or the file cannot be made.
    pub fn create(&mut self, name: &str, bytes: u64) -> Result<File, Failure> {
        assert!(
            !self.names.iter().any(|known| known == name),
            "{name} is staged twice"
        );
        let path = self.path(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| self.io(name, &error))?;
        self.names.push(name.to_owned());
        if bytes > 0
            && let Err(error) = fs4::FileExt::allocate(&file, bytes)
        {
            match error.kind() {
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge => return Err(self.io(name, &error)),
                // Not every file system can reserve.
                _ => file.set_len(bytes).map_err(|error| self.io(name, &error))?,
            }
        }
        Ok(file)
    }

    /// A new `.npy` file, preallocated.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn vectors(&mut self, name: &str, vectors: Vectors) -> Result<VectorWriter, Failure> {
        let Some(bytes) = vectors.file_bytes() else {
            return Err(Failure::resources(format!(
                "{name} would hold {} x {} numbers, more than any file can",
                vectors.count, vectors.width
            )));
        };
        let file = self.create(name, bytes)?;
        VectorWriter::new(file, vectors).map_err(|error| self.io(name, &error))
    }

    /// A failure to read or write one of the files, in words.
    pub fn io(&self, name: &str, error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let free = fs4::available_space(&self.directory).ok();
                no_space(&self.directory, 0, free)
            }
            _ => cannot(
                &self.directory.join(name),
                "a file of the result cannot be written",
                error,
            ),
        }
    }

    /// Brings every file made so far to the disk and takes its fingerprint.
    ///
    /// # Errors
    /// Resources: a file cannot be written or read back.
    pub fn seal(&self) -> Result<Vec<FileFacts>, Failure> {
        self.names
            .iter()
            .map(|name| {
                fingerprint(&self.path(name))
                    .map(|(bytes, blake3)| FileFacts {
                        name: name.clone(),
                        bytes,
                        blake3,
                    })
                    .map_err(|error| self.io(name, &error))
            })
            .collect()
    }

    /// Moves all files to their place, [`MANIFEST`] last. An earlier manifest goes first: where there is a manifest,
    /// all files are of the run it tells of.
    ///
    /// # Errors
    /// Resources: a file cannot be moved.
    pub fn commit(mut self) -> Result<(), Failure> {
        self.seal_manifest()?;
        let manifest = self.directory.join(MANIFEST);
        match fs::remove_file(&manifest) {
            Ok(()) => sync_directory(&self.directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(cannot(
                    &manifest,
                    "the old manifest cannot be removed",
                    &error,
                ));
            }
        }
        for name in self.superseded {
            if self.names.iter().any(|staged| staged == name) {
                continue;
            }
            let old = self.directory.join(name);
            match fs::remove_file(&old) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let what = "a file of an earlier run cannot be removed";
                    return Err(cannot(&old, what, &error));
                }
            }
        }
        let mut names = self.names.clone();
        names.sort_by_key(|name| name == MANIFEST);
        for name in &names {
            if name == MANIFEST {
                sync_directory(&self.directory);
            }
            let place = self.directory.join(name);
            fs::rename(self.path(name), &place).map_err(|error| {
                cannot(
                    &place,
                    "a file of the result cannot be put in its place",
                    &error,
                )
            })?;
        }
        sync_directory(&self.directory);
        self.committed = true;
        Ok(())
    }

    fn seal_manifest(&self) -> Result<(), Failure> {
        for name in self.names.iter().filter(|name| *name == MANIFEST) {
            File::open(self.path(name))
                .and_then(|file| file.sync_all())
                .map_err(|error| self.io(name, &error))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.hidden);
        if !self.committed {
            unmake(&self.made);
        }
    }
}

/// Makes a directory and those above it; tells which were missing.
fn make(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    match fs::metadata(directory) {
        Ok(meta) if meta.is_dir() => return Ok(Vec::new()),
        Ok(_) => {
            return Err(Failure::resources(format!(
                "the output directory {} is a file",
                directory.display()
            ))
            .help("choose another directory: [output] directory in the job file, or --output"));
        }
        Err(_) => {}
    }
    let mut missing: Vec<_> = directory
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .map(Path::to_path_buf)
        .collect();
    missing.reverse();
    let mut made = Vec::new();
    for path in missing {
        match fs::create_dir(&path) {
            Ok(()) => made.push(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => {
                unmake(&made);
                return Err(cannot(
                    directory,
                    "the output directory cannot be made",
                    &error,
                ));
            }
        }
    }
    Ok(made)
}

/// Removes directories again as far as they are empty.
fn unmake(made: &[PathBuf]) {
    for path in made.iter().rev() {
        if fs::remove_dir(path).is_err() {
            break;
        }
    }
}

/// Removes hidden directories of runs that are no more. The hidden directory of a run that lives, if there is one.
fn sweep(directory: &Path, own: &Path) -> Option<PathBuf> {
    let mut alive = None;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let named = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !named || path == own || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match File::open(path.join(LOCK)) {
            Ok(lock) => match fs4::FileExt::try_lock(&lock) {
                Ok(()) => {
                    let _ = fs::remove_dir_all(&path);
                }
                Err(fs4::TryLockError::WouldBlock) => alive = Some(path),
                Err(fs4::TryLockError::Error(_)) => {}
            },
            Err(_) => {
                let age = entry
                    .metadata()
                    .and_then(|meta| meta.modified())
                    .ok()
                    .and_then(|time| time.elapsed().ok());
                if age.is_some_and(|age| age > NEWBORN) {
                    let _ = fs::remove_dir_all(&path);
                }
            }
        }
    }
    alive
}

fn fingerprint(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    file.sync_all()?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
    Ok((bytes, hasher.finalize().to_hex().to_string()))
}

/// So that a rename survives a power cut. Not every system can; then it stays undone.
fn sync_directory(directory: &Path) {
    if cfg!(unix) {
        let _ = File::open(directory).and_then(|directory| directory.sync_all());
    }
}

fn cannot(path: &Path, what: &str, error: &io::Error) -> Failure {
    let failure = Failure::resources(format!("{what}: {}: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => failure
            .help("choose another directory: [output] directory in the job file, or --output"),
        io::ErrorKind::NotADirectory => failure.help("a part of the path is a file"),
        io::ErrorKind::FileTooLarge => failure.help(
            "neither the file system nor `ulimit -f` may bound files so tightly; --output chooses another directory",
        ),
        _ => failure,
    }
}

fn no_space(directory: &Path, bytes: u64, free: Option<u64>) -> Failure {
    let mut message = format!("the disk that holds {} is full", directory.display());
    if let Some(free) = free {
        message = if bytes > 0 {
            format!(
                "the factors need {} in {}, where {} are free",
                size::show(bytes),
                directory.display(),
                size::show(free)
            )
        } else {
            format!("{message}: {} are free", size::show(free))
        };
    }
    Failure::resources(message).help(
        "free some space, choose another directory with --output, or ask for a smaller --rank",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::ExitCode;
    use std::io::Write;

    fn listed(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn put(staging: &mut Staging, name: &str, text: &str) {
        let mut file = staging.create(name, 0).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn commit_replaces_old_files_and_leaves_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("deep/factors");
        for round in ["one", "two"] {
            let mut staging = Staging::open(&directory, 1000).unwrap();
            put(&mut staging, MANIFEST, round);
            put(&mut staging, "S.npy", round);
            let facts = staging.seal().unwrap();
            assert_eq!(facts[1].bytes, 3);
            assert_eq!(
                facts[1].blake3,
                blake3::hash(round.as_bytes()).to_hex().to_string()
            );
            staging.commit().unwrap();
            assert_eq!(listed(&directory), ["S.npy", MANIFEST]);
            assert_eq!(fs::read_to_string(directory.join("S.npy")).unwrap(), round);
        }
    }

    #[test]
    fn what_an_earlier_run_wrote_and_this_one_does_not_goes() {
        let root = tempfile::tempdir().unwrap();
        for name in ["U.npy", "S.npy", "notes.txt"] {
            fs::write(root.path().join(name), "old").unwrap();
        }
        let mut staging = Staging::open(root.path(), 0).unwrap();
        staging.supersede(&["U.npy", "S.npy", "Vt.npy"]);
        put(&mut staging, "S.npy", "new");
        assert_eq!(
            fs::read_to_string(root.path().join("U.npy")).unwrap(),
            "old"
        );
        staging.commit().unwrap();
        assert_eq!(listed(root.path()), ["S.npy", "notes.txt"]);
        assert_eq!(
            fs::read_to_string(root.path().join("S.npy")).unwrap(),
            "new"
        );
    }

    #[test]
    fn without_commit_there_is_no_trace() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        let mut staging = Staging::open(&directory, 0).unwrap();
        put(&mut staging, "S.npy", "half");
        assert!(directory.is_dir());
        drop(staging);
        assert!(listed(root.path()).is_empty());

        fs::create_dir(root.path().join("mine")).unwrap();
        fs::write(root.path().join("mine/S.npy"), "old").unwrap();
        let mut staging = Staging::open(&root.path().join("mine"), 0).unwrap();
        put(&mut staging, "S.npy", "half");
        drop(staging);
        assert_eq!(listed(&root.path().join("mine")), ["S.npy"]);
        assert_eq!(
            fs::read_to_string(root.path().join("mine/S.npy")).unwrap(),
            "old"
        );
    }

    #[test]
    fn the_next_run_sweeps_what_a_killed_one_left() {
        let root = tempfile::tempdir().unwrap();
        let ruin = root.path().join(".svdjob-dead");
        fs::create_dir(&ruin).unwrap();
        fs::write(ruin.join(LOCK), "").unwrap();
        fs::write(ruin.join("U.npy"), "half").unwrap();
        let newborn = root.path().join(".svdjob-new");
        fs::create_dir(&newborn).unwrap();
        let staging = Staging::open(root.path(), 0).unwrap();
        assert!(!ruin.exists());
        assert!(newborn.exists());
        drop(staging);
    }

    #[test]
    fn a_run_that_lives_is_not_disturbed() {
        let root = tempfile::tempdir().unwrap();
        let mut first = Staging::open(root.path(), 0).unwrap();
        put(&mut first, "S.npy", "first");
        let second = Staging::open(root.path(), 0).unwrap_err();
        assert_eq!(second.code, ExitCode::Resources);
        assert!(second.message.contains("another run"), "{second}");
        first.commit().unwrap();
        assert_eq!(listed(root.path()), ["S.npy"]);
    }

    #[test]
    fn a_directory_that_will_not_do_is_refused_at_once() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let failure = Staging::open(&file, 0).unwrap_err();
        assert!(failure.message.contains("is a file"), "{failure}");
        let failure = Staging::open(&file.join("below"), 0).unwrap_err();
        assert_eq!(failure.code, ExitCode::Resources);
        let failure = Staging::open(&root.path().join("huge"), u64::MAX).unwrap_err();
        assert!(failure.message.contains("the factors need"), "{failure}");
        assert_eq!(listed(root.path()), ["file"]);
    }

    #[test]
    fn space_is_taken_before_it_is_needed() {
        let root = tempfile::tempdir().unwrap();
        let mut staging = Staging::open(root.path(), 0).unwrap();
        let file = staging.create("U.npy", 1 << 16).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 16);
        let failure = staging.create("Vt.npy", 1 << 60).unwrap_err();
        assert_eq!(failure.code, ExitCode::Resources);
    }
}
