//! Encoded matrices on disk, so that the same file is parsed once.
//!
//! ```text
//! <cache>/v1/lock                     held while anything below is moved or removed
//! <cache>/v1/blocks/ab/<hash>.blk     row blocks, named by the BLAKE3 hash of their bytes
//! <cache>/v1/matrices/<key>.mpk       manifest; its modification time is when the matrix was last used
//! <cache>/v1/matrices/<key>.dat       labels and column squares
//! <cache>/v1/matrices/<key>.lock      held (shared) while the matrix is in use
//! <cache>/v1/spools/<plan>/           what runs keep to go on from, see [`crate::spool`]
//! <cache>/v1/records/                 what `svdjob explain` tells from, see [`crate::record`]
//! <cache>/v1/tmp/<unique>/            what an ingest writes; everything is moved into place at its end
//! ```
//!
//! The key is a hash of what identifies the source file and of the options that change what is read from it. Nothing is
//! flushed to the disk: after a loss of power a block may be short or damaged, which its length or its checksum tells,
//! and the matrix is then made again.

mod direct;
mod inputs;
pub(crate) mod lock;
mod manifest;
mod staging;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use inputs::{CacheInputs, LoadError};
pub use manifest::SourceIdentity;
pub(crate) use manifest::{Manifest, Sidecar, derived};
pub(crate) use staging::Staging;

use crate::{centring::Centred, failure::Failure};
use lock::Lock;
use shared::farm::ids::ContentHash;

/// Version of the layout; a cache of an older version is removed.
const VERSION: u32 = 1;

/// A directory of encoded matrices, bounded in bytes.
#[derive(Debug)]
pub struct Cache {
    /// The directory of this version.
    root: PathBuf,
    max: u64,
}

/// One matrix of the cache, as `svdjob cache ls` shows it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub key: String,
    pub source: PathBuf,
    /// As in the source, before any transposition.
    pub rows: u64,
    pub columns: u64,
    pub nnz: u64,
    /// Its blocks, labels and manifest; blocks shared with another matrix count in both.
    pub bytes: u64,
    /// What was made of the source's matrix, where this is not itself.
    pub derived: Option<String>,
    pub last_used: SystemTime,
    pub in_use: bool,
}

/// Which matrices to remove.
#[derive(Clone, Debug)]
pub enum Which {
    All,
    /// By the path of the source file, or by the first characters of the key.
    Matching(String),
}

/// What [`Cache::remove`] did.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    pub removed: Vec<Listed>,
    /// Left alone: another process works with them.
    pub in_use: Vec<Listed>,
}

/// A matrix found in or added to the cache, kept from removal while this lives.
pub(crate) struct Entry {
    pub manifest: Manifest,
    pub sidecar: Sidecar,
    pub inputs: CacheInputs,
}

impl Cache {
    /// Opens the cache in this directory, making it where needed, and removes what interrupted runs and older versions
    /// left there. `max` bounds its bytes (see [`bound`](Self::bound)).
    pub fn open(path: &Path, max: u64) -> Result<Self, Failure> {
        let root = path.join(format!("v{VERSION}"));
        for part in ["blocks", "matrices", "tmp"] {
            let dir = root.join(part);
            fs::create_dir_all(&dir).map_err(|e| cache_failure("make", &dir, &e))?;
        }
        let cache = Self { root, max };
        let tag = path.join("CACHEDIR.TAG");
        if !tag.exists() {
            // Tells backup programs to pass by; no harm without it.
            let _ = fs::write(&tag, "Signature: 8a477f597d28d172789f06886806bc55\n");
        }
        let _guard = cache.guard()?;
        staging::sweep(&cache.root.join("tmp"));
        sweep_versions(path);
        Ok(cache)
    }

    /// Directory of the cache.
    pub fn path(&self) -> &Path {
        self.root.parent().unwrap_or(&self.root)
    }

    /// Where the spools of plans lie.
    pub fn spools(&self) -> PathBuf {
        self.root.join("spools")
    }

    /// Where the records of runs lie.
    pub fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    fn guard(&self) -> Result<Lock, Failure> {
        let path = self.root.join("lock");
        Lock::exclusive(&path).map_err(|e| cache_failure("write to", &path, &e))
    }

    fn blocks(&self) -> PathBuf {
        self.root.join("blocks")
    }

    fn matrix(&self, key: &str, ending: &str) -> PathBuf {
        self.root.join("matrices").join(format!("{key}.{ending}"))
    }

    /// A directory for what an ingest writes, removed when dropped, or by the next run if this one is killed.
    pub(crate) fn stage(&self) -> Result<Staging, Failure> {
        let _guard = self.guard()?;
        let tmp = self.root.join("tmp");
        Staging::new(&tmp).map_err(|e| cache_failure("write to", &tmp, &e))
    }

    /// The matrix with this key, when its manifest can be read and all its blocks are there.
    pub(crate) fn find(&self, key: &str) -> Result<Option<Entry>, Failure> {
        let Some((manifest, bytes, inputs)) = self.kept(key)? else {
            return Ok(None);
        };
        Ok(Sidecar::from_bytes(&bytes).map(|sidecar| Entry {
            manifest,
            sidecar,
            inputs,
        }))
    }

    /// The same of a matrix that was made of another.
    pub(crate) fn find_centred(
        &self,
        key: &str,
    ) -> Result<Option<(Centred, CacheInputs)>, Failure> {
        let Some((manifest, bytes, inputs)) = self.kept(key)? else {
            return Ok(None);
        };
        Ok(manifest::centred(&manifest, &bytes).map(|centred| (centred, inputs)))
    }

    /// With the bytes beside its blocks.
    fn kept(&self, key: &str) -> Result<Option<(Manifest, Vec<u8>, CacheInputs)>, Failure> {
        let _guard = self.guard()?;
        let path = self.matrix(key, "mpk");
        let Some(manifest) = Manifest::read(&path) else {
            return Ok(None);
        };
        let whole = manifest.facts.blocks.iter().all(|b| {
            fs::metadata(inputs::block_path(&self.blocks(), &b.hash))
                .is_ok_and(|m| m.len() == b.bytes)
        });
        if !whole {
            return Ok(None);
        }
        let Some(bytes) = manifest.read_sidecar(&self.matrix(key, "dat")) else {
            return Ok(None);
        };
        let inputs = self.hold(key)?;
        touch(&path);
        Ok(Some((manifest, bytes, inputs)))
    }

    fn hold(&self, key: &str) -> Result<CacheInputs, Failure> {
        let path = self.matrix(key, "lock");
        let lock = Lock::shared(&path).map_err(|e| cache_failure("write to", &path, &e))?;
        Ok(CacheInputs::new(key.to_owned(), self.blocks(), lock))
    }

    /// Moves what was staged into place.
    pub(crate) fn commit(
        &self,
        staging: Staging,
        key: &str,
        manifest: Manifest,
        sidecar: Sidecar,
    ) -> Result<Entry, Failure> {
        let (manifest, inputs) = self.place(&staging, key, manifest, sidecar.to_bytes())?;
        Ok(Entry {
            manifest,
            sidecar,
            inputs,
        })
    }

    /// The same for a matrix that was made of another. Blocks that are the other's own are there already.
    pub(crate) fn commit_centred(
        &self,
        staging: &Staging,
        key: &str,
        (manifest, beside): (Manifest, Vec<u8>),
    ) -> Result<CacheInputs, Failure> {
        Ok(self.place(staging, key, manifest, beside)?.1)
    }

    fn place(
        &self,
        staging: &Staging,
        key: &str,
        mut manifest: Manifest,
        bytes: Vec<u8>,
    ) -> Result<(Manifest, CacheInputs), Failure> {
        let _guard = self.guard()?;
        let fail = |path: &Path, e: &io::Error| cache_failure("write to", path, e);
        for block in &manifest.facts.blocks {
            let to = inputs::block_path(&self.blocks(), &block.hash);
            if let Some(dir) = to.parent() {
                fs::create_dir_all(dir).map_err(|e| fail(dir, &e))?;
            }
            match fs::rename(staging.block_path(&block.hash), &to) {
                Ok(()) => {}
                // The same bytes twice in one matrix, or those of another: moved already.
                Err(e) if e.kind() == io::ErrorKind::NotFound && to.exists() => {}
                Err(e) => return Err(fail(&to, &e)),
            }
        }
        manifest.sidecar_hash = ContentHash::of(&bytes);
        manifest.sidecar_bytes = bytes.len() as u64;
        let parts = [("dat", bytes), ("mpk", manifest.to_bytes())];
        for (ending, bytes) in parts {
            let from = staging.path().join(ending);
            let to = self.matrix(key, ending);
            fs::File::create(&from)
                .and_then(|mut f| f.write_all(&bytes))
                .and_then(|()| fs::rename(&from, &to))
                .map_err(|e| fail(&to, &e))?;
        }
        let inputs = self.hold(key)?;
        Ok((manifest, inputs))
    }

    /// Drops a matrix one of whose blocks turned out damaged or missing, so that the next ingest makes it again.
    pub fn forget(&self, inputs: &CacheInputs) -> Result<(), Failure> {
        let _guard = self.guard()?;
        self.drop_matrix(inputs.key());
        self.sweep_blocks();
        Ok(())
    }

    /// Every matrix, the latest used first.
    pub fn list(&self) -> Result<Vec<Listed>, Failure> {
        let _guard = self.guard()?;
        Ok(self
            .manifests()
            .into_iter()
            .map(|(listed, _)| listed)
            .collect())
    }

    /// Removes matrices, except those in use.
    pub fn remove(&self, which: &Which) -> Result<Removed, Failure> {
        let _guard = self.guard()?;
        let mut result = Removed::default();
        for (listed, _) in self.manifests() {
            let wanted = match which {
                Which::All => true,
                Which::Matching(text) => {
                    let path = fs::canonicalize(text).unwrap_or_else(|_| PathBuf::from(text));
                    listed.source == path || (!text.is_empty() && listed.key.starts_with(text))
                }
            };
            if !wanted {
                continue;
            }
            if listed.in_use {
                result.in_use.push(listed);
            } else {
                self.drop_matrix(&listed.key);
                result.removed.push(listed);
            }
        }
        self.sweep_blocks();
        Ok(result)
    }

    /// Removes the least recently used matrices, never one in use, until the cache is within its bound.
    pub fn bound(&self) -> Result<Vec<Listed>, Failure> {
        let _guard = self.guard()?;
        self.sweep_blocks();
        let mut entries = self.manifests();
        // Bytes of a block count once, whoever shares it.
        let mut uses: HashMap<ContentHash, (u32, u64)> = HashMap::new();
        let mut total = 0;
        for (listed, manifest) in &entries {
            total += listed.bytes;
            for b in &manifest.facts.blocks {
                let entry = uses.entry(b.hash).or_insert((0, b.bytes));
                entry.0 += 1;
                if entry.0 > 1 {
                    total -= b.bytes;
                }
            }
        }
        let mut gone = Vec::new();
        while total > self.max {
            // Oldest last.
            let Some(at) = entries.iter().rposition(|(l, _)| !l.in_use) else {
                break;
            };
            let (listed, manifest) = entries.remove(at);
            self.drop_matrix(&listed.key);
            total -= listed.bytes;
            for b in &manifest.facts.blocks {
                if let Some(entry) = uses.get_mut(&b.hash) {
                    entry.0 -= 1;
                    if entry.0 > 0 {
                        total += b.bytes;
                    }
                }
            }
            gone.push(listed);
        }
        if !gone.is_empty() {
            self.sweep_blocks();
        }
        Ok(gone)
    }

    fn manifests(&self) -> Vec<(Listed, Manifest)> {
        let mut all = Vec::new();
        for file in fs::read_dir(self.root.join("matrices"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = file.path();
            let (Some(key), Some("mpk")) = (
                path.file_stem().and_then(|k| k.to_str()),
                path.extension().and_then(|e| e.to_str()),
            ) else {
                continue;
            };
            let Some(manifest) = Manifest::read(&path) else {
                self.drop_matrix(key);
                continue;
            };
            let meta = file.metadata().ok();
            let facts = &manifest.facts;
            let (rows, columns) = if manifest.transposed {
                (facts.columns, facts.rows)
            } else {
                (facts.rows, facts.columns)
            };
            let blocks: u64 = facts.blocks.iter().map(|b| b.bytes).sum();
            all.push((
                Listed {
                    key: key.to_owned(),
                    source: manifest.source.path(),
                    rows,
                    columns,
                    nnz: facts.nnz,
                    bytes: blocks
                        + manifest.sidecar_bytes
                        + meta.as_ref().map_or(0, fs::Metadata::len),
                    derived: manifest.derived.clone(),
                    last_used: meta
                        .and_then(|m| m.modified().ok())
                        .unwrap_or(SystemTime::UNIX_EPOCH),
                    in_use: Lock::is_held(&self.matrix(key, "lock")),
                },
                manifest,
            ));
        }
        all.sort_by(|(a, _), (b, _)| {
            b.last_used
                .cmp(&a.last_used)
                .then_with(|| a.key.cmp(&b.key))
        });
        all
    }

    fn drop_matrix(&self, key: &str) {
        for ending in ["mpk", "dat"] {
            let _ = fs::remove_file(self.matrix(key, ending));
        }
        let lock = self.matrix(key, "lock");
        if !Lock::is_held(&lock) {
            let _ = fs::remove_file(lock);
        }
    }

    /// Removes blocks that no manifest names.
    fn sweep_blocks(&self) {
        let mut named = std::collections::HashSet::new();
        for (_, manifest) in self.manifests() {
            named.extend(manifest.facts.blocks.iter().map(|b| b.hash));
        }
        for dir in fs::read_dir(self.blocks()).into_iter().flatten().flatten() {
            for file in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
                let path = file.path();
                let hash = path
                    .file_stem()
                    .and_then(|s| s.to_str())
                    .and_then(ContentHash::parse);
                if hash.is_none_or(|h| !named.contains(&h)) {
                    let _ = fs::remove_file(&path);
                }
            }
            // Only an empty one goes.
            let _ = fs::remove_dir(dir.path());
        }
    }
}

/// Removes the directories of older versions that nobody holds.
fn sweep_versions(path: &Path) {
    for dir in fs::read_dir(path).into_iter().flatten().flatten() {
        let older = dir
            .file_name()
            .to_str()
            .and_then(|n| n.strip_prefix('v')?.parse::<u32>().ok())
            .is_some_and(|v| v < VERSION);
        if older && !Lock::is_held(&dir.path().join("lock")) {
            let _ = fs::remove_dir_all(dir.path());
        }
    }
}

fn touch(path: &Path) {
    if let Ok(file) = fs::File::options().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn cache_failure(verb: &str, path: &Path, e: &io::Error) -> Failure {
    let failure = Failure::resources(format!(
        "could not {verb} {} of the cache: {e}",
        path.display()
    ));
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            failure
                .help("free some space, or name a directory on a larger disk as `resources.cache`")
        }
        _ => failure.help("name a directory that you may write to as `resources.cache`"),
    }
}
