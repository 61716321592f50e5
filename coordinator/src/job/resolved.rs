//! A job with every default filled in and every path absolute: what the rest of the program works from.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use shared::net::discovery::HostPort;

use super::span;

/// A field of a delimited text file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Field {
    /// By its name in the header.
    Name(String),
    /// By its place, from 1.
    Number(usize),
}

/// What to do with two entries of the same row and column.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duplicates {
    Error,
    Sum,
    Mean,
    /// The one that stands last in the file.
    Last,
}

/// Type of the numbers that kernels work with and factors are written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    F64,
}

/// `[matrix]`: delimited text of (row, column, value) triples.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct MatrixSpec {
    pub path: PathBuf,
    pub rows: Field,
    pub columns: Field,
    /// `None`: every line counts 1.
    pub values: Option<Field>,
    pub duplicates: Duplicates,
}

/// Which triplets are wanted.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// So many, k.
    Rank(u32),
    /// As many as explain this share of the sum of squares, in (0, 1].
    Energy(f64),
}

/// When the work is done.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accuracy {
    /// When the wanted triplets are good enough.
    Tolerance(Tolerance),
    /// After so many applications of A^T A between sketch and range, q.
    PowerIterations(u32),
}

/// How good is good enough, and when to give up.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Tolerance {
    /// In (0, 1).
    pub value: f64,
    pub kind: ToleranceKind,
    /// Most reads of the matrix.
    pub max_reads: u32,
}

/// Of what the tolerance is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToleranceKind {
    /// Of the relative residual of every wanted triplet.
    Residual,
    /// Of the relative error of every wanted sigma, which is far smaller than that of its vectors.
    Sigma,
}

/// How the triplets are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The planner chooses.
    Auto,
    /// A Krylov basis that grows block by block.
    Krylov,
    /// The whole decomposition, of a matrix small enough for it.
    Exact,
    /// From A^T A, of a matrix with a side short enough for it.
    Gram,
}

/// Which of the factors are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// U, S and Vt.
    #[default]
    Usv,
    /// S and Vt.
    Sv,
    /// The singular values alone.
    S,
}

/// Which means are subtracted from the entries before anything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Center {
    None,
    // Of these three, absent entries are taken as 0: they count in the means, and are moved like all others.
    Columns,
    Rows,
    Both,
    // Of these, absent entries are unknown: means are of those that are there, and only those are moved.
    ObservedColumns,
    ObservedRows,
    ObservedBoth,
}

/// What is divided by its standard deviation, after centring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    None,
    /// To unit variance; absent entries count as centring has it.
    Columns,
}

/// `[factor]`
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct FactorSpec {
    // Both are written as the job file has them: under the key that was chosen.
    #[serde(flatten)]
    pub wanted: Wanted,
    /// Extra columns of the sketch, p; its width is l = k + p.
    pub oversample: u32,
    #[serde(flatten)]
    pub accuracy: Accuracy,
    /// `Auto` if power iterations are counted.
    pub method: Method,
    /// Columns of a Krylov block. `None`: the planner chooses.
    pub block: Option<u32>,
    /// Most columns of the Krylov basis that are kept, at least two blocks. `None`: the planner chooses.
    pub basis: Option<u32>,
    pub precision: Precision,
    pub seed: u64,
    /// Which factors are written.
    pub which: Which,
    /// Which means are subtracted.
    pub center: Center,
    /// What is divided to unit variance.
    pub scale: Scale,
}

impl FactorSpec {
    /// Wanted triplets, if their number is what is asked for.
    pub fn rank(&self) -> Option<u32> {
        match self.wanted {
            Wanted::Rank(rank) => Some(rank),
            Wanted::Energy(_) => None,
        }
    }
}

impl ToleranceKind {
    pub const WORDS: [(&str, Self); 2] = [("residual", Self::Residual), ("sigma", Self::Sigma)];
}

impl Method {
    pub const WORDS: [(&str, Self); 4] = [
        ("auto", Self::Auto),
        ("krylov", Self::Krylov),
        ("exact", Self::Exact),
        ("gram", Self::Gram),
    ];
}

impl Which {
    pub const WORDS: [(&str, Self); 3] = [("usv", Self::Usv), ("sv", Self::Sv), ("s", Self::S)];

    /// Whether U is, and whether V is.
    pub fn written(self) -> (bool, bool) {
        match self {
            Self::Usv => (true, true),
            Self::Sv => (false, true),
            Self::S => (false, false),
        }
    }
}

impl Center {
    pub const WORDS: [(&str, Self); 7] = [
        ("none", Self::None),
        ("columns", Self::Columns),
        ("rows", Self::Rows),
        ("both", Self::Both),
        ("observed-columns", Self::ObservedColumns),
        ("observed-rows", Self::ObservedRows),
        ("observed-both", Self::ObservedBoth),
    ];
}

impl Scale {
    pub const WORDS: [(&str, Self); 2] = [("none", Self::None), ("columns", Self::Columns)];
}

/// The word of the job file for a choice.
pub fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], choice: T) -> &'static str {
    words
        .iter()
        .find(|(_, of)| *of == choice)
        .map_or("", |(word, _)| word)
}

/// `[resources]`: decide where and when, never what is computed.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Resources {
    /// Budget of this process in bytes.
    pub memory: u64,
    pub cores: usize,
    /// Where encoded blocks are kept.
    pub cache: PathBuf,
    /// Bound of the cache in bytes.
    pub cache_max: u64,
}

/// What to do when fewer nodes are found than the job wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// Work in this process alone.
    Embedded,
    Fail,
}

/// `[farm]`: who else works on the job.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Farm {
    /// Work in this process alone, whoever else is there.
    pub embedded: bool,
    /// Look for nodes on the network.
    pub discover: bool,
    /// Nodes to be asked by name.
    pub nodes: Vec<HostPort>,
    /// Hosts on which nodes are started, as `ssh` knows them.
    pub ssh: Vec<String>,
    /// How long to look before nobody is said to be there, and to wait for `at_least`.
    #[serde(serialize_with = "as_text")]
    pub window: Duration,
    pub at_least: u32,
    pub otherwise: Otherwise,
    /// The only interface to look on.
    pub interface: Option<String>,
    /// The farm key, where the user named one.
    pub key: Option<PathBuf>,
}

fn as_text<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&span::show(*span))
}

/// `[report]`: what to show of the result besides its numbers.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct ReportSpec {
    /// A delimited file that gives columns readable names.
    pub names: Option<NamesSpec>,
    /// Columns (names or labels) whose nearest neighbours are shown.
    pub nearest: Vec<String>,
}

/// Readable names for column labels.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct NamesSpec {
    pub path: PathBuf,
    pub label: Field,
    pub name: Field,
}

/// The whole job.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Job {
    pub matrix: MatrixSpec,
    pub factor: FactorSpec,
    /// V to begin with instead of a random sketch: a `Vt.npy`, or a directory of factors with one in it.
    pub warm_start: Option<PathBuf>,
    /// Where factors go.
    pub directory: PathBuf,
    pub resources: Resources,
    pub farm: Farm,
    pub report: ReportSpec,
}
