//! Factors of an earlier run to begin with, as input blocks of the plan.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use shared::{
    farm::{bytes::Bytes, graph::Input, ids::ContentHash},
    svd::Slice,
};

use crate::{
    failure::Failure,
    farm::{InputError, InputErrorKind, Inputs},
    ingest::{Ingested, Labels},
    output::{
        labels,
        npy::{Layout, VectorReader},
    },
    plan::{Given, tall_slices},
    report::numbers::count,
};

/// Of a row that the earlier run did not have.
const NEW: u32 = u32::MAX;

/// Rows of an earlier factor in the order of this matrix, read again whenever they are asked for.
pub struct Earlier {
    path: PathBuf,
    reader: VectorReader,
    /// Of each of this matrix's: its place in the file, or [`NEW`].
    places: Vec<u32>,
    /// What is to be told, if the labels are not the same.
    pub remark: Option<String>,
}

/// Its first columns, cut as the plan cuts its arrays.
pub struct Start {
    earlier: Earlier,
    columns: u32,
    slices: Vec<(Slice, ContentHash)>,
    /// The input blocks.
    pub inputs: Arc<[Input]>,
}

impl Earlier {
    /// Finds the factor of the longer-lived side in a directory of factors: V, or U where the matrix is worked on as its
    /// transpose.
    ///
    /// # Errors
    /// Data: it is not there, is damaged, or has nothing in common with this matrix.
    pub fn open(start: &Path, ingested: &Ingested) -> Result<Self, Failure> {
        let (factor, of, layout, what) = if ingested.transposed {
            ("U.npy", "rows.csv", Layout::Rows, "rows")
        } else {
            ("Vt.npy", "columns.csv", Layout::Columns, "columns")
        };
        let directory = if start.is_dir() {
            start
        } else {
            start.parent().unwrap_or(start)
        };
        let path = directory.join(factor);
        let wrong = |name: &str, why: String| {
            let failure = Failure::data(format!(
                "what to begin with cannot be read: {}: {why}",
                directory.join(name).display()
            ));
            if ingested.transposed {
                failure.help(
                    "a matrix with fewer rows than columns begins with U.npy and rows.csv of the earlier run (which = \"usv\")",
                )
            } else {
                failure
                    .help("warm_start wants the directory that an earlier run wrote its factors to")
            }
        };
        let reader = VectorReader::open(&path).map_err(|why| wrong(factor, why.to_string()))?;
        let vectors = reader.vectors();
        if vectors.layout != layout || vectors.width == 0 {
            let why = "it is not as svdjob writes it, or has no triplet";
            return Err(wrong(factor, why.to_owned()));
        }
        let own = &ingested.column_labels;
        let mut places = vec![NEW; own.len()];
        let (mut gone, mut first_gone) = (0u64, None);
        let known = labels::walk(&directory.join(of), |place, label| match own.find(label) {
            Some(at) => places[at] = place as u32,
            None => {
                gone += 1;
                first_gone.get_or_insert_with(|| String::from_utf8_lossy(label).into_owned());
            }
        })
        .map_err(|why| wrong(of, why))?;
        if known != vectors.count {
            let why = format!("it has {known} labels, and {factor} {}", vectors.count);
            return Err(wrong(of, why));
        }
        if gone == known {
            return Err(Failure::data(format!(
                "the factors in {} are of another matrix: not one of their {} {what} is in this one",
                directory.display(),
                count(known)
            ))
            .help("leave out warm_start, or give factors of an earlier state of the same data"));
        }
        let remark = differs(what, &places, own, gone, first_gone);
        Ok(Self {
            path,
            reader,
            places,
            remark,
        })
    }

    /// Columns that there are.
    pub fn columns(&self) -> u32 {
        self.reader.vectors().width.min(u64::from(u32::MAX)) as u32
    }

    /// Takes so many of them, and reads them once to know what they are called.
    ///
    /// # Errors
    /// Resources: the file cannot be read, or there is no memory.
    pub fn start(self, columns: u32) -> Result<(Start, Given), Failure> {
        let mut start = Start {
            slices: Vec::new(),
            inputs: Arc::default(),
            columns,
            earlier: self,
        };
        let mut names = blake3::Hasher::new();
        let mut inputs = Vec::new();
        for slice in tall_slices(start.earlier.places.len() as u64) {
            let block = start.block(slice).map_err(Failure::resources)?;
            let hash = ContentHash::of(block.as_slice());
            names.update(&hash.0);
            inputs.push(Input::Block {
                hash,
                bytes: block.len() as u64,
            });
            start.slices.push((slice, hash));
        }
        start.inputs = inputs.into();
        let hash = ContentHash(*names.finalize().as_bytes());
        Ok((start, Given { columns, hash }))
    }
}

/// New and missing labels, in words.
fn differs(
    what: &str,
    places: &[u32],
    own: &Labels,
    gone: u64,
    first_gone: Option<String>,
) -> Option<String> {
    let new = places.iter().filter(|place| **place == NEW).count() as u64;
    let first_new = places.iter().position(|place| *place == NEW);
    let mut parts = Vec::new();
    if let Some(first) = first_new {
        parts.push(format!(
            "{} of {} {what} are new, the first is {:?}",
            count(new),
            count(places.len() as u64),
            own.text(first)
        ));
    }
    if let Some(first) = first_gone {
        parts.push(format!(
            "{} of its {what} are gone, the first is {first:?}",
            count(gone)
        ));
    }
    (!parts.is_empty()).then(|| format!("warm_start is of other labels: {}", parts.join("; ")))
}

impl Start {
    /// f64[rows x columns]; rows that are new are not numbers.
    fn block(&self, slice: Slice) -> Result<Bytes, String> {
        let Earlier {
            path,
            reader,
            places,
            ..
        } = &self.earlier;
        let width = reader.vectors().width as usize;
        let columns = self.columns as usize;
        let first = slice.first as usize;
        let places = &places[first..first + slice.rows as usize];
        let mut out = vec![f64::NAN; places.len() * columns];
        let mut read = Vec::new();
        let mut rest = out.as_mut_slice();
        for run in places.chunk_by(|a, b| *a != NEW && *b != NEW && a + 1 == *b) {
            let (here, after) = rest.split_at_mut(run.len() * columns);
            rest = after;
            if run[0] == NEW {
                continue;
            }
            read.resize(run.len() * width, 0.0);
            reader
                .read(u64::from(run[0]), &mut read)
                .map_err(|why| format!("{} cannot be read: {why}", path.display()))?;
            for (to, from) in here.chunks_exact_mut(columns).zip(read.chunks_exact(width)) {
                to.copy_from_slice(&from[..columns]);
            }
        }
        Bytes::from_numbers(&out).map_err(|why| why.to_string())
    }
}

/// The blocks of the matrix, and those to begin with.
pub struct WithStart {
    pub blocks: Arc<dyn Inputs>,
    pub start: Start,
}

impl Inputs for WithStart {
    fn load(&self, hash: &ContentHash) -> Result<Bytes, InputError> {
        let found = self.start.slices.iter().find(|(_, of)| of == hash);
        let Some(&(slice, _)) = found else {
            return self.blocks.load(hash);
        };
        let wrong = |why| InputError {
            hash: *hash,
            kind: InputErrorKind::Io,
            why,
        };
        let block = self.start.block(slice).map_err(wrong)?;
        if ContentHash::of(block.as_slice()) != *hash {
            return Err(wrong(format!(
                "{} has changed since the run began",
                self.start.earlier.path.display()
            )));
        }
        Ok(block)
    }
}
