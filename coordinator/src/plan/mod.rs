//! From matrix facts and the job's wishes to a task graph.
//!
//! A pure function: no clock, no node goes in, so equal matrices and equal jobs give equal plans, and equal plans give
//! equal bits. Resources decide only where and when, with one exception: a Krylov basis that the job's memory does not
//! hold is cut, see [`Fitted`].

mod fixed;
mod forecast;
mod gram;
mod ground;
mod krylov;
mod marks;
mod memory;
mod tree;

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};
use shared::{
    farm::{
        bytes::Bytes,
        graph::{Graph, Input},
        ids::{ContentHash, TaskId},
        work::WorkError,
    },
    matrix::facts::MatrixFacts,
    svd::{Precision, Slice, SvdWork},
};

use crate::{
    failure::Failure,
    job::resolved::{self, Accuracy, FactorSpec, Which},
};
use fixed::Builder;
pub use forecast::{Forecast, Rates};
pub use gram::COLUMNS_MAX;
use ground::Ground;
pub use krylov::{Given, KrylovSpec, Pilot, SPLIT_READS, in_kind, tall_slices};
pub use marks::Mark;
pub use memory::Fitted;

/// What is to be computed, every choice made: equal ones on equal matrices give equal bits.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Method {
    /// Randomized SVD with power iterations (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1).
    Power {
        rank: u32,
        /// k + p, never more than the smaller side.
        width: u32,
        iterations: u32,
        precision: Precision,
        seed: u64,
    },
    /// Block Krylov with thick restart until a tolerance.
    Krylov(KrylovSpec),
    /// Eigenvectors of A^T A; basis and block are those of what follows if they should not be good enough.
    Gram(KrylovSpec),
    /// TSQR of the matrix itself, as if it were dense.
    Exact {
        /// At most: with `energy`, only as many as hold this share of the sum of squares are kept.
        rank: u32,
        energy: Option<f64>,
        precision: Precision,
    },
}

/// Which factors are delivered, of the matrix that the plan works on: its U is the left one, its V the right one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Sides {
    pub left: bool,
    pub right: bool,
}

impl Sides {
    pub const BOTH: Self = Self {
        left: true,
        right: true,
    };

    /// `transposed`: the user's V is the left factor.
    pub fn of(which: Which, transposed: bool) -> Self {
        let (u, v) = which.written();
        if transposed {
            Self { left: v, right: u }
        } else {
            Self { left: u, right: v }
        }
    }
}

/// A plan, and where to find in it what is wanted of it.
pub struct Plan {
    /// As it begins.
    pub graph: Arc<Graph<SvdWork>>,
    /// Names the plan: the hash of the method and the graph.
    pub hash: ContentHash,
    pub method: Method,
    pub sides: Sides,
    ground: Ground,
    wanted: Option<Wanted>,
    start: Option<Arc<[Input]>>,
}

/// The tasks whose blocks are delivered.
#[derive(Clone, PartialEq, Debug)]
pub struct Wanted {
    pub spectrum: Spectrum,
    /// Triplets asked for, k.
    pub rank: u32,
    /// Of the rows of U and V as they are delivered.
    pub rows: Precision,
    /// V of each slice: T[rows x k]. Empty if it is not delivered.
    pub right: Vec<(TaskId, Slice)>,
    /// U of each row block: first row, rows; T[rows x k] after `left_head` bytes. Empty if it is not delivered.
    pub left: Vec<(TaskId, u64, u32)>,
    pub left_head: u64,
    /// Sums of squares f64[k] of A V - U S, if they are measured, and of A^T U - V S.
    pub left_residual: Option<TaskId>,
    pub right_residual: TaskId,
    /// A V - U S is that of V as it is delivered, not as it was before it was rounded.
    pub left_as_written: bool,
    /// U^T U, if U is formed, and V^T V: f64[k x k].
    pub left_gram: Option<TaskId>,
    pub right_gram: TaskId,
}

/// Where the singular values of the scaled matrix come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spectrum {
    /// [`shared::svd::results::Small`] of this width.
    Small { task: TaskId, width: u32 },
    /// [`shared::svd::polish::Polished`] of this basis.
    Polished { task: TaskId, basis: u32 },
}

impl Spectrum {
    pub fn task(self) -> TaskId {
        match self {
            Self::Small { task, .. } | Self::Polished { task, .. } => task,
        }
    }
}

pub fn precision(factor: &FactorSpec) -> Precision {
    match factor.precision {
        resolved::Precision::F32 => Precision::F32,
        resolved::Precision::F64 => Precision::F64,
    }
}

/// Columns that watch for a missed direction.
const GUARD: u32 = 16;
/// Columns of a Krylov block, by the rank. A pass over one panel of 32 columns costs less than twice one over 16, and little
/// more than half of one over 48 or 64, for which the reads fall by less: least work (bench `kernels`, section `blocks`).
/// Wider ones only where a basis of hundreds of columns would take too many reads.
fn suiting_block(rank: u32) -> u32 {
    match rank {
        0..=24 => 16,
        25..=144 => 32,
        145..=240 => 48,
        _ => 64,
    }
}

impl Method {
    /// Chooses a method. A function of the matrix and the job alone.
    pub fn choose(facts: &MatrixFacts, factor: &FactorSpec) -> Self {
        let side = facts.rows.min(facts.columns).min(u64::from(u32::MAX)) as u32;
        let precision = precision(factor);
        let rank = factor.rank();
        let tolerance = match factor.accuracy {
            Accuracy::PowerIterations(iterations) => {
                let rank = rank.unwrap_or(side);
                return Self::Power {
                    rank,
                    width: rank.saturating_add(factor.oversample).min(side),
                    iterations,
                    precision,
                    seed: factor.seed,
                };
            }
            Accuracy::Tolerance(tolerance) => tolerance,
        };
        let group = |n: u32| n.next_multiple_of(krylov::GROUP);
        let aim = rank.unwrap_or(side / 8).max(1);
        let block = factor.block.map_or_else(|| suiting_block(aim), group);
        // All wanted triplets are to be in the basis before the reads are at their end.
        let reads = tolerance.max_reads.saturating_sub(3).max(1);
        let block = block.max(group((aim + factor.oversample).div_ceil(reads)));
        let mut spec = KrylovSpec {
            wanted: factor.wanted,
            oversample: factor.oversample,
            block,
            basis: 0,
            guard: GUARD,
            tolerance,
            precision,
            seed: factor.seed,
            start: None,
        };
        let keep = spec.keep(aim);
        spec.basis = match (factor.basis, rank) {
            (Some(basis), _) => group(basis),
            // More where a column takes half as much.
            (None, Some(_)) => match precision {
                Precision::F32 => (6 * keep).max(keep + 8 * block),
                Precision::F64 => (5 * keep).max(keep + 6 * block),
            },
            (None, None) => group(side / 2),
        };
        // The basis, the next block and the guard are to fit beside each other with room to spare.
        let most = side.saturating_sub(2 * block + GUARD) / krylov::GROUP * krylov::GROUP;
        let least = keep + 2 * block;
        let zero = facts.frobenius_squared() == 0.0;
        let exact = match factor.method {
            resolved::Method::Exact => true,
            resolved::Method::Krylov => false,
            resolved::Method::Gram => zero,
            resolved::Method::Auto => zero || most < 2 * least,
        };
        if exact || most < least {
            return Self::Exact {
                rank: rank.unwrap_or(side),
                energy: match factor.wanted {
                    resolved::Wanted::Rank(_) => None,
                    resolved::Wanted::Energy(share) => Some(share),
                },
                precision,
            };
        }
        spec.basis = spec.basis.clamp(least, most);
        let gram = match factor.method {
            resolved::Method::Gram => true,
            resolved::Method::Auto => gram::is_cheaper(facts, block),
            resolved::Method::Krylov | resolved::Method::Exact => false,
        };
        if gram {
            Self::Gram(spec)
        } else {
            Self::Krylov(spec)
        }
    }

    pub fn precision(&self) -> Precision {
        match *self {
            Self::Power { precision, .. } | Self::Exact { precision, .. } => precision,
            Self::Krylov(spec) | Self::Gram(spec) => spec.precision,
        }
    }

    /// Triplets asked for, or at most to come.
    pub fn rank_max(&self) -> u32 {
        match *self {
            Self::Power { rank, .. } | Self::Exact { rank, .. } => rank,
            Self::Krylov(spec) | Self::Gram(spec) => match spec.wanted {
                resolved::Wanted::Rank(rank) => rank,
                resolved::Wanted::Energy(_) => spec.basis,
            },
        }
    }
}

impl Plan {
    /// A wanted rank must be at least 1 and at most the smaller side of the matrix.
    pub fn new(facts: &MatrixFacts, factor: &FactorSpec, sides: Sides) -> Result<Self, WorkError> {
        Self::of(facts, Method::choose(facts, factor), sides, None)
    }

    /// The plan of a chosen method. `start`: V of an earlier run, a block a slice of [`tall_slices`], if the method begins
    /// with it.
    pub fn of(
        facts: &MatrixFacts,
        method: Method,
        sides: Sides,
        start: Option<Arc<[Input]>>,
    ) -> Result<Self, WorkError> {
        let ground = Ground::new(facts)?;
        let (graph, wanted) = match method {
            Method::Power {
                rank,
                width,
                iterations,
                precision,
                seed,
            } => {
                let mut graph = Graph::default();
                let shape = ground.shape(width, precision);
                let mut builder = Builder::new(&ground, shape, &mut graph);
                let wanted = builder.power_iterations(rank, iterations, seed, sides);
                (Arc::new(graph), Some(wanted))
            }
            Method::Exact { rank, .. } => {
                let mut graph = Graph::default();
                let shape = ground.shape(ground.columns as u32, Precision::F64);
                let wanted = Builder::new(&ground, shape, &mut graph).exact(rank, sides);
                (Arc::new(graph), Some(wanted))
            }
            Method::Krylov(spec) => {
                let pilot = Pilot::new(ground.clone(), spec, sides, start.as_deref());
                (pilot.graph(), None)
            }
            Method::Gram(spec) => {
                let pilot = Pilot::of_gram(ground.clone(), spec, sides);
                (pilot.graph(), None)
            }
        };
        debug_assert_eq!(graph.validate(), Ok(()));
        // A plan that grows shows its sides at its end only.
        let bytes = rmp_serde::to_vec(&(method, sides, &*graph)).expect("a graph is plain data");
        Ok(Self {
            hash: ContentHash::of(&bytes),
            graph,
            method,
            sides,
            ground,
            wanted,
            start,
        })
    }

    /// Binary exponents of the columns' norms, an input made here.
    pub fn shifts(&self) -> &Bytes {
        self.ground.shifts()
    }

    /// All inputs that are made here, by name: the shifts, and the map of a view.
    pub fn made(&self) -> HashMap<ContentHash, Bytes> {
        let made = self.ground.made();
        made.map(|bytes| (ContentHash::of(bytes.as_slice()), bytes.clone()))
            .collect()
    }

    /// The plan works on A * 2^scale.
    pub fn scale(&self) -> i32 {
        self.ground.scale
    }

    /// What rounding of products with the scaled matrix is relative to: ||A||_F, or more where a view subtracts.
    pub fn bulk(&self) -> f64 {
        self.ground.bulk()
    }

    /// Rows of U and of V.
    pub fn heights(&self) -> (u64, u64) {
        (self.ground.rows, self.ground.columns)
    }

    /// Triplets that were asked for, when there are `asked` of them at most.
    pub fn requested(&self, asked: u32) -> u32 {
        match self.method {
            Method::Krylov(spec) | Method::Gram(spec) => match spec.wanted {
                resolved::Wanted::Rank(rank) => rank,
                resolved::Wanted::Energy(_) => asked,
            },
            Method::Power { .. } | Method::Exact { .. } => asked,
        }
    }

    /// How many of these triplets are wanted, of at most `most`.
    pub fn asked(&self, sigma: &[f64], most: u32) -> u32 {
        let Method::Exact {
            energy: Some(share),
            ..
        } = self.method
        else {
            return most;
        };
        let mut sum = 0.0;
        let enough = sigma.iter().position(|s| {
            sum += s * s;
            sum >= share * self.ground.frobenius_squared
        });
        enough.map_or(most, |at| most.min(at as u32 + 1))
    }

    /// Where the factors are, when that is known from the beginning.
    pub fn wanted(&self) -> Option<&Wanted> {
        self.wanted.as_ref()
    }

    /// Who decides what comes next, when the plan grows.
    pub fn pilot(&self) -> Option<Pilot> {
        match self.method {
            Method::Krylov(spec) => {
                let start = self.start.as_deref();
                Some(Pilot::new(self.ground.clone(), spec, self.sides, start))
            }
            Method::Gram(spec) => Some(Pilot::of_gram(self.ground.clone(), spec, self.sides)),
            Method::Power { .. } | Method::Exact { .. } => None,
        }
    }

    /// Full reads of A, when their number is known from the beginning.
    pub fn reads(&self) -> Option<u32> {
        let lift = u32::from(self.sides.left);
        match self.method {
            Method::Power { iterations, .. } => Some(iterations + 2 + lift),
            Method::Exact { .. } => Some(2 + lift),
            Method::Krylov(_) | Method::Gram(_) => None,
        }
    }

    /// Bytes that must be in memory at once to run the plan on one machine with so many cores.
    pub fn memory_needed(&self, cores: usize) -> u64 {
        memory::needed(&self.ground, &self.method, cores)
    }

    /// Bytes without which a node of a farm can do none of the larger tasks: a block, what such a task has open, and the
    /// panels that it reads.
    pub fn memory_of_a_node(&self) -> u64 {
        memory::of_a_node(&self.ground, &self.method)
    }

    /// Bytes that `cores` running tasks have open for themselves.
    pub fn memory_of_tasks(&self, cores: usize) -> u64 {
        memory::of_tasks(&self.ground, &self.method, cores)
    }
}

/// Checks that the matrix has as many triplets as are asked for.
pub fn check_rank(facts: &MatrixFacts, factor: &FactorSpec) -> Result<(), Failure> {
    let side = facts.rows.min(facts.columns);
    if let (resolved::Wanted::Energy(share), Accuracy::PowerIterations(_)) =
        (factor.wanted, factor.accuracy)
    {
        return Err(Failure::job(format!(
            "energy = {share} with power_iterations is not possible: the number of triplets would have to be known beforehand"
        ))
        .help("ask for a rank, or for a tolerance in place of power_iterations"));
    }
    if factor.method == resolved::Method::Gram && side > gram::COLUMNS_MAX {
        return Err(Failure::job(format!(
            "method = \"gram\" is for matrices with a side of at most {}; the shorter side of this one is {side}",
            gram::COLUMNS_MAX
        ))
        .help("use `krylov`, or `auto`"));
    }
    match factor.rank() {
        Some(rank) if rank == 0 || u64::from(rank) > side => Err(Failure::job(format!(
            "rank = {rank} is not possible: the matrix is {} x {}, so there are at most {side} singular values",
            facts.rows, facts.columns
        ))
        .help(format!("ask for a rank between 1 and {side}"))),
        Some(_) | None => Ok(()),
    }
}

/// Checks that the precision asked for can tell what subtraction leaves of the matrix, where nothing but a count of
/// iterations says what to do. With a tolerance, reads in f64 take over.
pub fn check_blur(facts: &MatrixFacts, factor: &FactorSpec) -> Result<(), Failure> {
    if facts.view.is_none()
        || precision(factor) == Precision::F64
        || !matches!(factor.accuracy, Accuracy::PowerIterations(_))
    {
        return Ok(());
    }
    let ground = Ground::new(facts).map_err(|why| Failure::resources(why.to_string()))?;
    if ground.is_blurred() {
        return Err(Failure::job(format!(
            "what is left of the matrix after centring is {:.0} times smaller than what is subtracted: f32 cannot tell it from rounding",
            ground.blur()
        ))
        .help("set precision = \"f64\", or a tolerance in place of power_iterations"));
    }
    Ok(())
}
