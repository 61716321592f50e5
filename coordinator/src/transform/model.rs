//! Factors of an earlier run, as far as new rows need them.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    centring::{COLUMN_MEANS, Centring, DEVIATIONS},
    failure::Failure,
    ingest::Labels,
    job::resolved::{Center, Duplicates, Field, Precision, Scale},
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
    centring: Option<Centring>,
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
    #[serde(default)]
    centring: Option<Overall>,
}

#[derive(Deserialize)]
struct Overall {
    overall_mean: Option<f64>,
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
    center: Option<Center>,
    #[serde(default)]
    scale: Option<Scale>,
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

    /// The model's columns that the input has, ascending.
    pub fn columns(&self) -> &[u64] {
        &self.columns
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
        let columns = of_right.count;
        let of_columns = |name: &str| {
            let file = VectorReader::open(&directory.join(name)).map_err(|e| wrong(name, e))?;
            let of = file.vectors();
            if (of.width, of.count) != (1, columns) {
                return Err(no_model(
                    directory,
                    format!(
                        "{name} has {} numbers and Vt.npy {columns} columns",
                        of.count * of.width
                    ),
                ));
            }
            let mut numbers = vec![0.0; columns as usize];
            file.read(0, &mut numbers).map_err(|e| wrong(name, e))?;
            Ok(Some(numbers))
        };
        let center = factor.center.unwrap_or(Center::None);
        let scale = factor.scale.unwrap_or(Scale::None);
        let centring = Centring {
            center,
            scale,
            column_means: match center {
                Center::None | Center::Rows | Center::ObservedRows => None,
                Center::Columns | Center::Both | Center::ObservedColumns | Center::ObservedBoth => {
                    of_columns(COLUMN_MEANS)?
                }
            },
            row_means: None,
            overall_mean: manifest.centring.and_then(|c| c.overall_mean),
            deviations: match scale {
                Scale::None => None,
                Scale::Columns => of_columns(DEVIATIONS)?,
            },
        };
        Ok(Self {
            centring: (center != Center::None || scale != Scale::None).then_some(centring),
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

    /// Columns, n.
    pub fn columns(&self) -> usize {
        self.right.vectors().count as usize
    }

    /// What was done to the matrix first; row means are none of a new row's business.
    pub fn centring(&self) -> Option<&Centring> {
        self.centring.as_ref()
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
            self.read_rows(run[0], here)?;
            rest = after;
        }
        Ok(rows)
    }

    /// Rows of V from the first on.
    ///
    /// # Errors
    /// Resources: the file cannot be read.
    pub fn read_rows(&self, first: u64, rows: &mut [f64]) -> Result<(), Failure> {
        self.right.read(first, rows).map_err(|error| {
            let path = self.directory.join("Vt.npy");
            Failure::resources(format!("{} cannot be read: {error}", path.display()))
        })
    }
}
