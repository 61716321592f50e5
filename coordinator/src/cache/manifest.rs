//! What the cache keeps of a matrix beside its blocks.

use std::{fs, io, path::Path, path::PathBuf};

use serde::{Deserialize, Serialize};
use shared::{
    farm::ids::ContentHash,
    matrix::{
        block,
        facts::{CUT_VERSION, MatrixFacts, View},
    },
};

use crate::{
    centring::{Centred, Centring},
    ingest::Labels,
};

/// What tells a source file from what it was before: its name on disk, size and times. Its bytes are not read for this.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceIdentity {
    path: Vec<u8>,
    pub size: u64,
    modified_ns: i128,
    changed_ns: i128,
    device: u64,
    inode: u64,
}

impl SourceIdentity {
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let meta = fs::metadata(&path)?;
        let modified_ns = meta
            .modified()?
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as i128);
        #[cfg(unix)]
        let (changed_ns, device, inode) = {
            use std::os::unix::fs::MetadataExt;
            (
                i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec()),
                meta.dev(),
                meta.ino(),
            )
        };
        #[cfg(not(unix))]
        let (changed_ns, device, inode) = (0, 0, 0);
        Ok(Self {
            path: path.as_os_str().as_encoded_bytes().to_vec(),
            size: meta.len(),
            modified_ns,
            changed_ns,
            device,
            inode,
        })
    }

    /// For people; bytes that are no text are replaced.
    pub fn path(&self) -> PathBuf {
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt;
            PathBuf::from(std::ffi::OsStr::from_bytes(&self.path))
        }
        #[cfg(not(unix))]
        PathBuf::from(String::from_utf8_lossy(&self.path).into_owned())
    }

    /// Key in the cache of what this file gives under some options.
    pub(crate) fn key(&self, options: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(&self.path);
        part(&self.size.to_le_bytes());
        part(&self.modified_ns.to_le_bytes());
        part(&self.changed_ns.to_le_bytes());
        part(&self.device.to_le_bytes());
        part(&self.inode.to_le_bytes());
        part(options.as_bytes());
        part(&block::VERSION.to_le_bytes());
        part(&CUT_VERSION.to_le_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub version: u32,
    pub source: SourceIdentity,
    /// Without column squares, which lie in the sidecar.
    pub facts: MatrixFacts,
    pub transposed: bool,
    /// What was made of the source's matrix, where these are not its own blocks.
    #[serde(default)]
    pub derived: Option<String>,
    pub lines: u64,
    pub sidecar_hash: ContentHash,
    pub sidecar_bytes: u64,
}

impl Manifest {
    pub fn new(
        source: SourceIdentity,
        facts: MatrixFacts,
        transposed: bool,
        lines: u64,
    ) -> (Self, Vec<f64>) {
        let mut facts = facts;
        let squares = std::mem::take(&mut facts.column_squares);
        let manifest = Self {
            version: super::VERSION,
            source,
            facts,
            transposed,
            derived: None,
            lines,
            sidecar_hash: ContentHash([0; 32]),
            sidecar_bytes: 0,
        };
        (manifest, squares)
    }

    /// `None` when it is not there or cannot be used.
    pub fn read(path: &Path) -> Option<Self> {
        let bytes = fs::read(path).ok()?;
        let (bytes, sum) = bytes.split_last_chunk()?;
        if ContentHash::of(bytes).0 != *sum {
            return None;
        }
        let manifest: Self = rmp_serde::from_slice(bytes).ok()?;
        (manifest.version == super::VERSION).then_some(manifest)
    }

    /// MessagePack, and the hash of it: a bit that flips must not change a result.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes =
            rmp_serde::to_vec_named(self).expect("a manifest holds nothing that cannot be written");
        let sum = ContentHash::of(&bytes);
        bytes.extend_from_slice(&sum.0);
        bytes
    }

    pub fn read_sidecar(&self, path: &Path) -> Option<Vec<u8>> {
        let bytes = fs::read(path).ok()?;
        (ContentHash::of(&bytes) == self.sidecar_hash).then_some(bytes)
    }
}

/// What is kept beside the blocks of a matrix that was made of another: what grows with its sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Beside {
    column_squares: Vec<f64>,
    view: Option<View>,
    centring: Centring,
}

/// A centred matrix as the cache keeps it.
pub(crate) fn derived(
    source: SourceIdentity,
    centred: &Centred,
    transposed: bool,
    lines: u64,
) -> (Manifest, Vec<u8>) {
    let centring = &centred.centring;
    let beside = Beside {
        column_squares: centred.facts.column_squares.clone(),
        view: centred.facts.view.clone(),
        centring: centring.clone(),
    };
    let mut facts = centred.facts.clone();
    facts.view = None;
    let (manifest, _) = Manifest::new(source, facts, transposed, lines);
    let manifest = Manifest {
        derived: Some(centring.words()),
        ..manifest
    };
    let bytes = rmp_serde::to_vec(&beside).expect("numbers can be written");
    (manifest, bytes)
}

/// The centred matrix that [`derived`] has put into words.
pub(crate) fn centred(manifest: &Manifest, beside: &[u8]) -> Option<Centred> {
    let beside: Beside = rmp_serde::from_slice(beside).ok()?;
    Some(Centred {
        facts: MatrixFacts {
            column_squares: beside.column_squares,
            view: beside.view,
            ..manifest.facts.clone()
        },
        centring: beside.centring,
    })
}

/// What grows with the matrix's sides.
#[derive(Clone, Debug)]
pub(crate) struct Sidecar {
    pub row_labels: Labels,
    pub column_labels: Labels,
    pub column_squares: Vec<f64>,
}

impl Sidecar {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut raw = Vec::new();
        raw.extend((self.column_squares.len() as u64).to_le_bytes());
        raw.extend_from_slice(bytemuck::cast_slice(&self.column_squares));
        self.row_labels.write(&mut raw);
        self.column_labels.write(&mut raw);
        raw
    }

    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let n = u64::from_le_bytes(bytes.split_off(..8)?.try_into().ok()?) as usize;
        let squares = bytes.split_off(..n.checked_mul(8)?)?;
        let column_squares = squares
            .chunks_exact(8)
            .map(|c| f64::from_le_bytes(c.try_into().expect("eight bytes")))
            .collect();
        let row_labels = Labels::read(&mut bytes)?;
        let column_labels = Labels::read(&mut bytes)?;
        Some(Self {
            row_labels,
            column_labels,
            column_squares,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::matrix::{encode::Encoding, facts::BlockFacts};

    use super::*;
    use crate::{
        harm::{harmed, largest_allocation},
        ingest::Labels,
    };

    fn manifest() -> Manifest {
        let source = SourceIdentity {
            path: b"/data/ratings.csv".to_vec(),
            size: 1000,
            modified_ns: 5,
            changed_ns: 6,
            device: 7,
            inode: 8,
        };
        let facts = MatrixFacts {
            rows: 3,
            columns: 2,
            nnz: 4,
            blocks: vec![BlockFacts {
                hash: ContentHash([3; 32]),
                first_row: 0,
                rows: 3,
                nnz: 4,
                bytes: 512,
            }],
            encoding: Encoding::Coded(vec![0.5, 1.0]),
            max_abs: 1.0,
            column_squares: vec![1.0, 2.0],
            view: None,
        };
        Manifest::new(source, facts, false, 5).0
    }

    fn sidecar() -> Sidecar {
        Sidecar {
            row_labels: Labels::Numbers((0..9).map(|i| i << 40).collect()),
            column_labels: Labels::Numbers((0..200).map(|i| 7 * i).collect()),
            column_squares: vec![1.0; 200],
        }
    }

    proptest! {
        #[test]
        fn a_harmed_manifest_is_none(bytes in harmed(manifest().to_bytes())) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.mpk");
            let whole = bytes == manifest().to_bytes();
            fs::write(&path, &bytes).unwrap();
            let (read, most) = largest_allocation(|| Manifest::read(&path));
            prop_assert_eq!(read.is_some(), whole);
            prop_assert!(most <= 1 << 20, "{} bytes at once", most);
            // With a sum that is right, accidents reach the decoder.
            let sum = ContentHash::of(&bytes);
            fs::write(&path, [&bytes[..], &sum.0[..]].concat()).unwrap();
            let (_, most) = largest_allocation(|| Manifest::read(&path));
            prop_assert!(most <= 2 << 20, "{} bytes at once", most);
        }

        #[test]
        fn a_harmed_sidecar_is_read_without_harm(bytes in harmed(sidecar().to_bytes())) {
            let (_, most) = largest_allocation(|| Sidecar::from_bytes(&bytes));
            prop_assert!(most <= 16 << 20, "{} bytes at once", most);
        }
    }
}
