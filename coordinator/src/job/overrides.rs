//! What flags of the command line may say instead of the job file.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use shared::net::discovery::HostPort;

use super::file::{READS_MIN, destination, is_share, is_tolerance};
use super::resolved::{
    Center, Duplicates, Method, Otherwise, Precision, Scale, ToleranceKind, Which,
};
use super::size::{self, Memory};
use super::span;
use crate::failure::Failure;

/// Flags that stand above the job file. Paths are relative to the current directory.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Instead of what the job file says")]
pub struct Overrides {
    /// Read this file of ratings, not `[matrix] path`
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,

    /// Singular triplets wanted
    #[arg(long, short = 'k', value_name = "K", value_parser = whole(1))]
    pub rank: Option<u32>,

    /// Instead of a rank: as many triplets as explain this share of the sum of squares, such as 0.9
    #[arg(long, value_name = "SHARE", value_parser = energy, conflicts_with = "rank")]
    pub energy: Option<f64>,

    /// Extra columns of the sketch
    #[arg(long, value_name = "P")]
    pub oversample: Option<u32>,

    /// Read the matrix until every residual is below this, such as 1e-2
    #[arg(long, value_name = "TOL", value_parser = tolerance)]
    pub tolerance: Option<f64>,

    /// What the tolerance is of: the residuals of triplets, or the error of their sigma
    #[arg(long, value_name = "KIND", value_parser = words(&ToleranceKind::WORDS))]
    pub tolerance_kind: Option<ToleranceKind>,

    /// Most reads of the matrix; if they are not enough, exit with code 6
    #[arg(long, value_name = "N", value_parser = whole(READS_MIN))]
    pub max_reads: Option<u32>,

    /// Instead of a tolerance: so many power iterations, a read of the matrix each
    #[arg(
        long,
        value_name = "Q",
        conflicts_with_all = ["tolerance", "tolerance_kind", "max_reads", "method"]
    )]
    pub power_iterations: Option<u32>,

    /// How the triplets are found
    #[arg(long, value_name = "METHOD", value_parser = words(&Method::WORDS))]
    pub method: Option<Method>,

    /// Columns of a Krylov block
    #[arg(long, value_name = "COLUMNS", value_parser = whole(1))]
    pub block: Option<u32>,

    /// Most columns of the Krylov basis that are kept: at least two blocks
    #[arg(long, value_name = "COLUMNS", value_parser = whole(2))]
    pub basis: Option<u32>,

    /// Type of the numbers, in arithmetic and in the factors; f64 by itself for a tolerance below 1e-6
    #[arg(long, value_name = "TYPE", value_parser = precision())]
    pub precision: Option<Precision>,

    /// Seed of the random sketch
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Which factors to write: all, or without U, or the singular values alone
    #[arg(long, value_name = "FACTORS", value_parser = words(&Which::WORDS))]
    pub which: Option<Which>,

    /// Subtract means first. Absent entries are taken as 0 for columns, rows and both; for observed-... they are unknown, and only those that are there are moved
    #[arg(long, value_name = "MEANS", value_parser = words(&Center::WORDS))]
    pub center: Option<Center>,

    /// Divide columns by their standard deviation, to unit variance
    #[arg(long, value_name = "WHAT", value_parser = words(&Scale::WORDS))]
    pub scale: Option<Scale>,

    /// Begin with the factors of a run before: a Vt.npy, or a directory with one in it
    #[arg(long, value_name = "PATH")]
    pub warm_start: Option<PathBuf>,

    /// What to do with two lines for one row and column
    #[arg(long, value_name = "RULE", value_parser = duplicates())]
    pub duplicates: Option<Duplicates>,

    /// Directory for the factors
    #[arg(long, short = 'o', value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// Memory to stay within, such as "4 GiB" or "50 %"
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<Memory>,

    /// Cores to work on
    #[arg(long, short = 'j', value_name = "N", value_parser = cores)]
    pub cores: Option<usize>,

    /// Directory for prepared input, to be found again by later runs
    #[arg(long, value_name = "DIR", env = "SVDJOB_CACHE")]
    pub cache: Option<PathBuf>,

    /// Bound of that directory
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub cache_max: Option<u64>,

    /// Show the nearest neighbours of this column (may be repeated)
    #[arg(long, value_name = "NAME")]
    pub nearest: Vec<String>,

    #[command(flatten)]
    pub farm: FarmFlags,
}

/// Flags of the farm.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "The farm: other machines that run svdnode")]
pub struct FarmFlags {
    #[command(flatten)]
    pub find: FindFlags,

    /// Start a node on this host by SSH, for the time of the job (may be repeated)
    #[arg(long, value_name = "[USER@]HOST", value_parser = destination)]
    pub ssh: Vec<String>,

    /// Nodes to wait for before work starts
    #[arg(long, value_name = "N", value_parser = at_least)]
    pub at_least: Option<u32>,

    /// What to do with fewer nodes: work in this process alone, or exit with code 5
    #[arg(long, value_name = "WHAT", value_parser = otherwise())]
    pub otherwise: Option<Otherwise>,

    /// Work in this process alone, whoever else is there
    #[arg(long, conflicts_with_all = ["node", "ssh", "at_least", "otherwise", "window", "interface"])]
    pub embedded: bool,
}

/// Flags by which nodes are found.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct FindFlags {
    /// Ask this node too, wherever it is (may be repeated)
    #[arg(long, value_name = "HOST[:PORT]")]
    pub node: Vec<HostPort>,

    /// Ask only nodes that are named; look for no others
    #[arg(long)]
    pub no_discover: bool,

    /// How long to look for nodes, such as "3s"
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    pub window: Option<Duration>,

    /// Look on this network interface only
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,

    /// The farm key, not the one of `svdjob farm show` (SVDJOB_FARM_KEY does the same)
    #[arg(long, value_name = "FILE")]
    pub farm_key: Option<PathBuf>,
}

impl Overrides {
    /// What is wrong with flags only when they are seen together.
    ///
    /// # Errors
    /// Job: a basis that holds less than two blocks.
    pub fn check(&self) -> Result<(), Failure> {
        match (self.block, self.basis) {
            (Some(block), Some(basis)) if !holds_two(basis, block) => Err(Failure::job(format!(
                "--basis {basis} is too small for --block {block}"
            ))
            .help("a basis holds at least two blocks")),
            _ => Ok(()),
        }
    }
}

/// Whether a Krylov basis is large enough to grow and to be cut back.
pub fn holds_two(basis: u32, block: u32) -> bool {
    u64::from(basis) >= 2 * u64::from(block)
}

fn whole(min: u32) -> impl Fn(&str) -> Result<u32, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if number >= min => Ok(number),
        _ => Err(format!("expected a whole number, {min} or more")),
    }
}

fn energy(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if is_share(share) => Ok(share),
        _ => Err("expected a number more than 0 and at most 1, such as 0.9".into()),
    }
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if is_tolerance(number) => Ok(number),
        _ => Err("expected a number more than 0 and less than 1, such as 1e-2".into()),
    }
}

/// One of these words.
pub fn words<T: Copy + Send + Sync + 'static>(
    words: &'static [(&'static str, T)],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words.iter().map(|(word, _)| *word)).map(move |word| {
        let known = words.iter().find(|(other, _)| *other == word);
        known.expect("the parser takes no other word").1
    })
}

fn precision() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(["f32", "f64"]).map(|word| match word.as_str() {
        "f64" => Precision::F64,
        _ => Precision::F32,
    })
}

pub fn duplicates() -> impl TypedValueParser<Value = Duplicates> {
    PossibleValuesParser::new(["error", "sum", "mean", "last"]).map(|word| match word.as_str() {
        "sum" => Duplicates::Sum,
        "mean" => Duplicates::Mean,
        "last" => Duplicates::Last,
        _ => Duplicates::Error,
    })
}

fn otherwise() -> impl TypedValueParser<Value = Otherwise> {
    PossibleValuesParser::new(["embedded", "fail"]).map(|word| match word.as_str() {
        "fail" => Otherwise::Fail,
        _ => Otherwise::Embedded,
    })
}

fn at_least(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(nodes) if (1..=1 << 16).contains(&nodes) => Ok(nodes),
        _ => Err("expected a whole number from 1 to 65536".into()),
    }
}

pub fn memory(text: &str) -> Result<Memory, String> {
    match size::parse_memory(text)? {
        Memory::Bytes(bytes) if bytes < 1 << 20 => Err("expected at least 1 MiB".into()),
        memory => Ok(memory),
    }
}

pub fn cores(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(cores) if (1..=1 << 16).contains(&cores) => Ok(cores),
        _ => Err("expected a whole number from 1 to 65536".into()),
    }
}
