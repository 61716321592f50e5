//! The result of a run, as reports need it.

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    centring::Centring,
    farm::traffic::Sums,
    job::resolved::{Center, Scale, Which},
    output::certificate::{Certificate, Status},
};

/// What a run was and what came out.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Summary {
    /// m
    pub rows: u64,
    /// n
    pub columns: u64,
    /// Stored entries.
    pub nnz: u64,
    /// Worked on as A^T, because that is the cheaper way. The factors are those of A all the same.
    pub transposed: bool,
    pub rank: Rank,
    /// Descending.
    pub sigma: Vec<f64>,
    /// Of each triplet: sqrt(|A v - s u|^2 + |A^T u - s v|^2) / s. None where they are not known.
    pub residuals: Vec<f64>,
    /// The factors that were written.
    pub which: Which,
    /// Of each triplet: s^2 / |A|_F^2.
    pub explained: Vec<f64>,
    pub orthogonality: Orthogonality,
    /// Full reads of A.
    pub passes: u32,
    /// Seconds spent in them.
    pub pass_seconds: f64,
    /// In the order of their beginning.
    pub phases: Vec<Phase>,
    /// Seconds from start to end.
    pub seconds: f64,
    /// The prepared input was found in the cache.
    pub ingest_reused: bool,
    /// Where it went on from a run before, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed: Option<String>,
    /// Largest resident size of the process in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// What is known of how good they are, as it stands in certificate.json.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// What was subtracted and divided by first, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub centring: Option<Centred>,
    /// Where the factors are.
    pub directory: PathBuf,
    pub nearest: Vec<Nearest>,
    /// Who has worked, if not this process.
    pub farm: Option<FarmSummary>,
    pub warnings: Vec<String>,
}

/// How the matrix was centred and scaled: from each entry, row mean + column mean - overall mean was taken, as far as they
/// are there, and its column was divided by its deviation.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Centred {
    pub center: Center,
    pub scale: Scale,
    pub overall_mean: Option<f64>,
    /// Names of the files that hold the others.
    pub files: Vec<&'static str>,
}

impl Centred {
    pub fn of(centring: &Centring) -> Self {
        Self {
            center: centring.center,
            scale: centring.scale,
            overall_mean: centring.overall_mean,
            files: centring.files().map(|(name, _)| name).collect(),
        }
    }
}

/// The nodes of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct FarmSummary {
    pub nodes: Vec<NodeSummary>,
    pub stages: Vec<StageBytes>,
}

/// What went over the links in a stage, without what carries it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct StageBytes {
    pub stage: String,
    /// It reads the whole matrix.
    pub pass: bool,
    pub bytes: Sums,
    pub links: Vec<NamedLink>,
}

/// Bytes from one process to another; `svdjob` is this one, others have the names of their hosts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NamedLink {
    pub from: String,
    pub to: String,
    /// Input blocks, results and sums.
    pub blocks: u64,
    /// Messages.
    pub control: u64,
}

/// One node of a run, in the order of names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NodeSummary {
    pub host: String,
    pub address: String,
    pub cores: u16,
    /// Instruction set of its kernels.
    pub isa: String,
    /// From and to this process, everything that UDP carried.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Why it did not work to the end.
    pub lost: Option<String>,
}

/// Triplets asked for and found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Rank {
    pub requested: u32,
    pub got: u32,
}

/// Largest absolute entry of U^T U - I and of V^T V - I, of what was formed of them.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Orthogonality {
    pub u: Option<f64>,
    pub v: Option<f64>,
}

/// A part of the run and how long it took.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Phase {
    pub name: String,
    pub seconds: f64,
}

/// A column and those most like it, the most like first.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Nearest {
    pub of: String,
    pub neighbours: Vec<Neighbour>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Neighbour {
    pub name: String,
    /// Of the angle between the two, 1 is the same direction.
    pub cosine: f64,
}

impl Summary {
    /// Whether a tolerance was asked for and not reached.
    pub fn is_unconverged(&self) -> bool {
        self.certificate
            .as_ref()
            .is_some_and(|c| c.status == Status::Unconverged)
    }

    /// Share of |A|_F^2 that each triplet and those before it explain.
    pub fn cumulative(&self) -> Vec<f64> {
        self.explained
            .iter()
            .scan(0.0, |sum, share| {
                *sum += share;
                Some(*sum)
            })
            .collect()
    }

    /// The worst residual and its triplet from 1. One that is not a number is the worst there is.
    pub fn worst_residual(&self) -> Option<(usize, f64)> {
        let rank = |x: f64| if x.is_nan() { f64::INFINITY } else { x };
        (1..)
            .zip(self.residuals.iter().copied())
            .max_by(|a, b| rank(a.1).total_cmp(&rank(b.1)))
    }
}

/// Largest resident size of this process so far, in bytes.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
