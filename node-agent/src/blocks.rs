//! Input blocks on this machine's disk, named by their hash, so that a block crosses the wire once: for all passes, all
//! jobs, and restarts in between.
//!
//! ```text
//! <cache>/blocks/ab/<hash>.blk     a block; its modification time is when it was last used
//! ```
//!
//! Two nodes may share a directory: files appear whole (written under another name, then renamed) and are checked when
//! they are read. What was used least recently goes first when the bound is reached.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use shared::farm::{
    bytes::{Bytes, BytesMut},
    ids::ContentHash,
};

#[derive(Debug)]
pub struct BlockStore {
    root: PathBuf,
    bytes_max: u64,
    index: Mutex<Index>,
    /// Makes names of unfinished files.
    next: AtomicU64,
    complained: AtomicBool,
}

#[derive(Debug, Default)]
struct Index {
    blocks: HashMap<ContentHash, Entry>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    bytes: u64,
    used: SystemTime,
}

/// What is in a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    pub blocks: u64,
    pub bytes: u64,
}

impl BlockStore {
    /// Opens the store in this directory and looks what is there. Files that a killed node has not finished are removed.
    pub fn open(cache: &Path, bytes_max: u64) -> io::Result<Self> {
        let root = cache.join("blocks");
        fs::create_dir_all(&root)?;
        let mut index = Index::default();
        for dir in fs::read_dir(&root)?.flatten() {
            for file in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
                let path = file.path();
                let Ok(meta) = file.metadata() else { continue };
                let name = path.file_stem().and_then(|s| s.to_str());
                match (name.and_then(ContentHash::parse), path.extension()) {
                    (Some(hash), Some(end)) if end == "blk" => {
                        let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                        let bytes = meta.len();
                        index.bytes += bytes;
                        index.blocks.insert(hash, Entry { bytes, used });
                    }
                    (_, Some(end)) if end == "new" && is_old(&meta) => {
                        let _ = fs::remove_file(&path);
                    }
                    (_, _) => {}
                }
            }
        }
        let store = Self {
            root,
            bytes_max,
            index: Mutex::new(index),
            next: AtomicU64::new(0),
            complained: AtomicBool::new(false),
        };
        store.bound(0);
        Ok(store)
    }

    pub fn contents(&self) -> Contents {
        let index = self.index.lock().expect("no panic while it is held");
        Contents {
            blocks: index.blocks.len() as u64,
            bytes: index.bytes,
        }
    }

    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub fn has(&self, hash: &ContentHash) -> bool {
        let index = self.index.lock().expect("no panic while it is held");
        index.blocks.contains_key(hash)
    }

    fn path(&self, hash: &ContentHash) -> PathBuf {
        let name = hash.to_string();
        self.root.join(&name[..2]).join(format!("{name}.blk"))
    }

    /// Reads a block, if it is here and whole. One that is damaged is removed, and that is said.
    pub fn read(&self, hash: &ContentHash) -> Option<Bytes> {
        if !self.has(hash) {
            return None;
        }
        let path = self.path(hash);
        let damage = match read(&path) {
            Ok(bytes) if ContentHash::of(bytes.as_slice()) == *hash => {
                self.touch(hash, &path);
                return Some(bytes);
            }
            Ok(_) => "its bytes are not those that its name promises".to_owned(),
            // Another node on this machine made room.
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                self.forget(hash);
                return None;
            }
            Err(why) => why.to_string(),
        };
        tracing::warn!(
            "cached block {} is damaged ({damage}); fetching it again",
            path.display()
        );
        let _ = fs::remove_file(&path);
        self.forget(hash);
        None
    }

    fn touch(&self, hash: &ContentHash, path: &Path) {
        let now = SystemTime::now();
        if let Ok(file) = fs::File::options().append(true).open(path) {
            let _ = file.set_modified(now);
        }
        let mut index = self.index.lock().expect("no panic while it is held");
        if let Some(entry) = index.blocks.get_mut(hash) {
            entry.used = now;
        }
    }

    fn forget(&self, hash: &ContentHash) {
        let mut index = self.index.lock().expect("no panic while it is held");
        if let Some(entry) = index.blocks.remove(hash) {
            index.bytes -= entry.bytes;
        }
    }

    /// Keeps a block, making room for it. If that cannot be, the node works on without: that is said once.
    pub fn write(&self, hash: &ContentHash, bytes: &Bytes) {
        if self.has(hash) || bytes.len() as u64 > self.bytes_max {
            return;
        }
        self.bound(bytes.len() as u64);
        let path = self.path(hash);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let new = path.with_extension(format!("{}-{number}.new", std::process::id()));
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::File::create(&new))
            .and_then(|mut file| file.write_all(bytes.as_slice()))
            .and_then(|()| fs::rename(&new, &path));
        match written {
            Ok(()) => {
                let mut index = self.index.lock().expect("no panic while it is held");
                let entry = Entry {
                    bytes: bytes.len() as u64,
                    used: SystemTime::now(),
                };
                index.bytes += entry.bytes;
                if let Some(old) = index.blocks.insert(*hash, entry) {
                    index.bytes -= old.bytes;
                }
            }
            Err(why) => {
                let _ = fs::remove_file(&new);
                if !self.complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "could not keep a block in {}: {why}; blocks that do not fit into memory will be fetched again",
                        self.root.display()
                    );
                }
            }
        }
    }

    /// Removes what was used least recently until so many more bytes fit.
    fn bound(&self, more: u64) {
        let mut index = self.index.lock().expect("no panic while it is held");
        if index.bytes + more <= self.bytes_max {
            return;
        }
        let mut oldest: Vec<(SystemTime, ContentHash)> =
            index.blocks.iter().map(|(h, e)| (e.used, *h)).collect();
        oldest.sort_unstable();
        for (_, hash) in oldest {
            if index.bytes + more <= self.bytes_max {
                break;
            }
            if fs::remove_file(self.path(&hash)).is_ok()
                && let Some(entry) = index.blocks.remove(&hash)
            {
                index.bytes -= entry.bytes;
            }
        }
    }
}

/// Not being written by a living node.
fn is_old(meta: &fs::Metadata) -> bool {
    meta.modified()
        .ok()
        .and_then(|at| at.elapsed().ok())
        .is_some_and(|age| age.as_secs() > 3600)
}

fn read(path: &Path) -> io::Result<Bytes> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len() as usize;
    let mut bytes =
        BytesMut::zeroed(length).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    file.read_exact(bytes.as_bytes_mut())?;
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(n: u8, len: usize) -> (ContentHash, Bytes) {
        let bytes = Bytes::copy_from(&vec![n; len]).unwrap();
        (ContentHash::of(bytes.as_slice()), bytes)
    }

    #[test]
    fn blocks_outlive_a_restart_and_the_least_used_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlockStore::open(dir.path(), 250).unwrap();
        let blocks: Vec<_> = (0..3).map(|n| block(n, 100)).collect();
        for (hash, bytes) in &blocks[..2] {
            store.write(hash, bytes);
        }
        assert_eq!(store.read(&blocks[0].0), Some(blocks[0].1.clone()));
        let store = BlockStore::open(dir.path(), 250).unwrap();
        assert_eq!(
            store.contents(),
            Contents {
                blocks: 2,
                bytes: 200
            }
        );
        assert!(store.read(&blocks[0].0).is_some());
        store.write(&blocks[2].0, &blocks[2].1);
        assert!(store.has(&blocks[0].0) && !store.has(&blocks[1].0) && store.has(&blocks[2].0));
        // What is larger than the bound is not kept.
        let (hash, bytes) = block(9, 300);
        store.write(&hash, &bytes);
        assert!(!store.has(&hash));
        assert_eq!(
            store.contents(),
            Contents {
                blocks: 2,
                bytes: 200
            }
        );
    }

    #[test]
    fn a_damaged_block_is_removed_and_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlockStore::open(dir.path(), 1000).unwrap();
        let (hash, bytes) = block(1, 100);
        store.write(&hash, &bytes);
        let path = store.path(&hash);
        let mut damaged = fs::read(&path).unwrap();
        damaged[50] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert_eq!(store.read(&hash), None);
        assert!(!path.exists());
        assert_eq!(store.contents(), Contents::default());
        store.write(&hash, &bytes);
        assert_eq!(store.read(&hash), Some(bytes));
    }

    #[test]
    fn a_disk_that_takes_nothing_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlockStore::open(dir.path(), 1000).unwrap();
        let (hash, bytes) = block(1, 100);
        // A file where the directory of the block would be.
        fs::write(store.path(&hash).parent().unwrap(), "in the way").unwrap();
        store.write(&hash, &bytes);
        assert!(!store.has(&hash));
    }
}
