//! Factors of an earlier run, as far as new rows need them.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    failure::Failure,
    ingest::Labels,
    job::resolved::{Duplicates, Field, Precision},
    output::{
        labels,
        npy::{Layout, VectorReader},
        staging::MANIFEST,
    },
};

/// A directory of factors: V, the singular values, and what its columns are called.
#[derive(Debug)]
pub struct Model {
    directory: PathBuf,
    matrix: Matrix,
    right: VectorReader,
    sigma: Vec<f64>,
    blake3: String,
}

/// What the input was read by.
#[derive(Clone, Debug, Deserialize)]
pub struct Matrix {
    pub rows: Field,
    pub columns: Field,
    pub values: Option<Field>,
    pub duplicates: Duplicates,
}

#[derive(Deserialize)]
struct Manifest {
    job: Job,
}

#[derive(Deserialize)]
struct Job {
    matrix: Matrix,
    factor: Factor,
}

/// Releases before these keys did none of it.
#[derive(Deserialize)]
struct Factor {
    #[serde(default)]
    which: Option<String>,
    #[serde(default)]
    center: Option<String>,
    #[serde(default)]
    scale: Option<String>,
}

/// Which columns of an input are which of the model's.
#[derive(Debug)]
pub struct Mapped {
    /// The model's columns that the input has, ascending.
    columns: Vec<u64>,
    /// Of each column of the input: its place among these.
    slots: Vec<Option<u32>>,
}

impl Mapped {
    pub fn known(&self) -> usize {
        self.columns.len()
    }

    pub fn slots(&self) -> &[Option<u32>] {
        &self.slots
    }

    /// Columns of the input that are none of the model's.
    pub fn unknown(&self) -> impl Iterator<Item = usize> {
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| slot.is_none()).map(|(at, _)| at)
    }
}

fn no_model(directory: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::data(format!("{} holds no factors: {what}", directory.display()))
        .help("give the directory that `svdjob run` wrote its factors to")
}

impl Model {
    /// # Errors
    /// Data: the directory does not hold factors, or such that do not fit each other. Job: factors of another matrix than
    /// that of the entries.
    pub fn open(directory: &Path) -> Result<Self, Failure> {
        let wrong = |name: &str, error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => no_model(directory, format!("there is no {name}")),
            _ => no_model(directory, format!("{name} cannot be read: {error}")),
        };
        if !directory.is_dir() {
            return Err(no_model(directory, "it is no directory"));
        }
        let text = std::fs::read(directory.join(MANIFEST)).map_err(|e| wrong(MANIFEST, e))?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| {
            no_model(
                directory,
                format!("{MANIFEST} is not that of a factorization: {error}"),
            )
        })?;
        let factor = manifest.job.factor;
        for (key, value) in [("center", factor.center), ("scale", factor.scale)] {
            if let Some(value) = value.filter(|value| value != "none") {
                return Err(Failure::job(format!(
                    "{} holds factors with {key} = {value:?}: projecting onto such is not possible yet",
                    directory.display()
                ))
                .help(format!("factor with {key} = \"none\" for this")));
            }
        }
        if factor.which.as_deref() == Some("s") {
            return Err(no_model(
                directory,
                "they were made with which = \"s\", which leaves no Vt.npy",
            ));
        }
        let right =
            VectorReader::open(&directory.join("Vt.npy")).map_err(|e| wrong("Vt.npy", e))?;
        let of_right = right.vectors();
        if of_right.layout != Layout::Columns {
            return Err(no_model(
                directory,
                "Vt.npy is not as svdjob wrote it: expected k x n numbers in Fortran order",
            ));
        }
        if of_right.width == 0 {
            return Err(no_model(directory, "there is no triplet in them"));
        }
        let line = VectorReader::open(&directory.join("S.npy")).map_err(|e| wrong("S.npy", e))?;
        if line.vectors().width != 1 || line.vectors().count != of_right.width {
            return Err(no_model(
                directory,
                format!(
                    "S.npy has {} numbers and Vt.npy {} rows",
                    line.vectors().count * line.vectors().width,
                    of_right.width
                ),
            ));
        }
        let mut sigma = vec![0.0; of_right.width as usize];
        line.read(0, &mut sigma).map_err(|e| wrong("S.npy", e))?;
        Ok(Self {
            directory: directory.to_path_buf(),
            matrix: manifest.job.matrix,
            right,
            sigma,
            blake3: blake3::hash(&text).to_hex().to_string(),
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    /// Triplets, k.
    pub fn rank(&self) -> u64 {
        self.right.vectors().width
    }

    pub fn precision(&self) -> Precision {
        self.right.vectors().precision
    }

    pub fn sigma(&self) -> &[f64] {
        &self.sigma
    }

    /// Of the manifest.
    pub fn blake3(&self) -> &str {
        &self.blake3
    }

    /// Finds columns by their labels, without holding the model's.
    ///
    /// # Errors
    /// Data: the file of labels is not there, is damaged, or does not belong to V.
    pub fn map(&self, labels: &Labels) -> Result<Mapped, Failure> {
        const NAME: &str = "columns.csv";
        let damaged = |why: String| no_model(&self.directory, format!("{NAME}: {why}"));
        let mut mapped = Mapped {
            columns: Vec::new(),
            slots: vec![None; labels.len()],
        };
        let count = labels::walk(&self.directory.join(NAME), |index, label| {
            if let Some(at) = labels.find(label) {
                mapped.slots[at] = Some(mapped.columns.len() as u32);
                mapped.columns.push(index);
            }
        })
        .map_err(damaged)?;
        let wanted = self.right.vectors().count;
        if count != wanted {
            return Err(damaged(format!(
                "it has {count} labels, and Vt.npy {wanted} columns"
            )));
        }
        Ok(mapped)
    }

    /// Rows of V of the columns that an input has, one after the other.
    ///
    /// # Errors
    /// Resources: the file cannot be read.
    pub fn rows(&self, mapped: &Mapped) -> Result<Vec<f64>, Failure> {
        let rank = self.rank() as usize;
        let mut rows = vec![0.0; mapped.columns.len() * rank];
        let mut rest = rows.as_mut_slice();
        for run in mapped.columns.chunk_by(|a, b| a + 1 == *b) {
            let (here, after) = rest.split_at_mut(run.len() * rank);
            self.right.read(run[0], here).map_err(|error| {
                let path = self.directory.join("Vt.npy");
                Failure::resources(format!("{} cannot be read: {error}", path.display()))
            })?;
            rest = after;
        }
        Ok(rows)
    }
}
