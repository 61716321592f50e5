//! The library's front door: a sparse matrix in memory in, factors in memory out.

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicBool};

use ndarray::{Array1, Array2};
use shared::{
    farm::{bytes::Bytes, ids::ContentHash},
    matrix::facts::MatrixFacts,
    svd::Precision,
};
use sprs::CsMatView;

use crate::{
    centring::{self, Centred, Centring},
    engine::{self, EngineError, Hands, Place, Workers},
    factors::{Quality, Sink},
    failure::Failure,
    job::resolved::{Accuracy, Center, FactorSpec, ToleranceKind},
    memory::{MemoryBlocks, blocks_of},
    output::certificate::Certificate,
    plan::{self, Plan, Sides},
};

/// A truncated singular value decomposition.
#[derive(Clone, PartialEq, Debug)]
pub struct Svd {
    /// m x k; m x 0 if it was not asked for.
    pub u: Array2<f64>,
    /// k, descending. Fewer than asked for when the rank of the matrix is smaller.
    pub s: Array1<f64>,
    /// k x n; 0 x n if it was not asked for.
    pub vt: Array2<f64>,
    /// sqrt(||A v - s u||^2 + ||A^T u - s v||^2) / s of each triplet; none if they are not known.
    pub residuals: Vec<f64>,
    pub certificate: Certificate,
    /// What was subtracted and divided by first, if anything: the factors are those of what that leaves.
    pub centring: Option<Centring>,
    /// Hash of U, S, V^T as they were computed: equal for equal bits.
    pub hash: [u8; 32],
}

/// Largest entries that are taken: sums of their squares stay far within f64.
const ENTRY_MIN: f64 = 1e-120;
const ENTRY_MAX: f64 = 1e120;

/// Checks that the matrix has the rank asked for, and entries whose squares f64 can hold.
pub fn check(facts: &MatrixFacts, factor: &FactorSpec) -> Result<(), Failure> {
    plan::check_rank(facts, factor)?;
    plan::check_blur(facts, factor)?;
    let largest = facts.max_abs;
    if largest > 0.0 && !(ENTRY_MIN..=ENTRY_MAX).contains(&largest) {
        return Err(Failure::data(format!(
            "the largest entry is {largest:e} in absolute value; the sum of squares of such entries is beyond the range of numbers"
        ))
        .help(format!(
            "scale the values so that the largest lies between {ENTRY_MIN:e} and {ENTRY_MAX:e}"
        )));
    }
    Ok(())
}

/// What is known of the factors that a run has made.
pub fn certificate(
    quality: &Quality,
    factor: &FactorSpec,
    facts: &MatrixFacts,
    transposed: bool,
) -> Certificate {
    let tolerance = match factor.accuracy {
        Accuracy::Tolerance(tolerance) => Some(tolerance),
        Accuracy::PowerIterations(_) => None,
    };
    let kind = tolerance.map_or(ToleranceKind::Residual, |t| t.kind);
    let mut sigma = quality.sigma.clone();
    sigma.extend(&quality.sigma_after);
    let errors = quality
        .residuals()
        .map(|residuals| plan::in_kind(kind, &residuals, &sigma));
    let worst = errors.map(|errors| errors.iter().copied().fold(0.0, f64::max));
    let squares = facts.frobenius_squared();
    let certificate = Certificate::new(quality, tolerance, worst, squares, transposed);
    match factor.center {
        Center::Columns => certificate.with_variance(if transposed {
            facts.columns
        } else {
            facts.rows
        }),
        Center::None
        | Center::Rows
        | Center::Both
        | Center::ObservedColumns
        | Center::ObservedRows
        | Center::ObservedBoth => certificate,
    }
}

/// Factors a matrix in memory.
///
/// # Errors
///
/// A rank that the matrix does not allow, entries that are not finite, memory refused.
pub fn svd(matrix: CsMatView<'_, f64>, factor: &FactorSpec, hands: &Hands) -> Result<Svd, Failure> {
    // The side that must fit in memory is the shorter one.
    let transposed = matrix.rows() < matrix.cols();
    let rows_first = if transposed {
        matrix.transpose_view().to_csr()
    } else {
        matrix.to_csr()
    };
    let (mut facts, mut blocks) = blocks_of(rows_first.view())?;
    drop(rows_first);
    check(&facts, factor)?;
    let mut centring = None;
    if centring::is_wanted(factor) {
        let done = centred(&facts, &mut blocks, transposed, factor, hands)?;
        facts = done.facts;
        centring = Some(done.centring);
        check(&facts, factor)?;
    }
    let sides = Sides::of(factor.which, transposed);
    let plan =
        Plan::new(&facts, factor, sides).map_err(|why| Failure::resources(why.to_string()))?;
    let mut sink = InMemory {
        precision: plan.method.precision(),
        rows: facts.rows as usize,
        columns: facts.columns as usize,
        ..InMemory::default()
    };
    let (quality, _) = engine::factor(
        &plan,
        transposed,
        Arc::new(blocks),
        &Place {
            workers: Workers::Here(hands),
            spool: None,
            record: None,
        },
        &mut sink,
        &mut |_, _| {},
        &AtomicBool::new(false),
    )
    .map_err(in_memory)?;
    let certificate = certificate(&quality, factor, &facts, transposed);
    let mut svd = sink.into_svd(quality, certificate, transposed);
    svd.centring = centring;
    Ok(svd)
}

fn centred(
    facts: &MatrixFacts,
    blocks: &mut MemoryBlocks,
    transposed: bool,
    factor: &FactorSpec,
    hands: &Hands,
) -> Result<Centred, Failure> {
    let made = Mutex::new(MemoryBlocks::default());
    let keep = |bytes: Bytes| {
        let hash = ContentHash::of(bytes.as_slice());
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(hash, bytes);
        Ok(hash)
    };
    let bench = centring::Bench {
        source: &*blocks,
        keep: &keep,
        threads: hands.agents.iter().map(|agent| agent.0).sum(),
        stop: &AtomicBool::new(false),
    };
    let done =
        centring::centred(facts, transposed, factor, &bench, &mut |_, _| {}).map_err(in_memory)?;
    blocks.extend(made.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(done)
}

fn in_memory(error: EngineError) -> Failure {
    match error {
        EngineError::Failed(failure) => failure,
        EngineError::Block(why) => Failure::bug(why.to_string()),
    }
}

struct InMemory {
    precision: Precision,
    rows: usize,
    columns: usize,
    rank: usize,
    sides: Sides,
    left: Vec<u8>,
    right: Vec<u8>,
}

impl Default for InMemory {
    fn default() -> Self {
        Self {
            precision: Precision::F64,
            rows: 0,
            columns: 0,
            rank: 0,
            sides: Sides::BOTH,
            left: Vec::new(),
            right: Vec::new(),
        }
    }
}

impl Sink for InMemory {
    fn begin(&mut self, rank: usize, sides: Sides) -> Result<(), Failure> {
        self.rank = rank;
        self.sides = sides;
        let number = self.precision.bytes();
        let bytes = |wanted: bool, rows: usize| if wanted { rows * rank * number } else { 0 };
        self.left = vec![0; bytes(sides.left, self.rows)];
        self.right = vec![0; bytes(sides.right, self.columns)];
        Ok(())
    }

    fn right(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure> {
        let at = first_row as usize * self.rank * self.precision.bytes();
        self.right[at..at + rows.len()].copy_from_slice(rows);
        Ok(())
    }

    fn left(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure> {
        let at = first_row as usize * self.rank * self.precision.bytes();
        self.left[at..at + rows.len()].copy_from_slice(rows);
        Ok(())
    }
}

impl InMemory {
    fn into_svd(self, quality: Quality, certificate: Certificate, transposed: bool) -> Svd {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.left);
        hash.update(bytemuck::cast_slice(&quality.sigma));
        hash.update(&self.right);
        let tall = |bytes: &[u8], rows: usize| {
            let numbers: Vec<f64> = match self.precision {
                Precision::F32 => Bytes::copy_from(bytes)
                    .and_then(|b| Ok(b.numbers::<f32>()?.iter().map(|&x| f64::from(x)).collect())),
                Precision::F64 => {
                    Bytes::copy_from(bytes).and_then(|b| Ok(b.numbers::<f64>()?.to_vec()))
                }
            }
            .expect("whole numbers in memory");
            let width = if numbers.is_empty() { 0 } else { self.rank };
            Array2::from_shape_vec((rows, width), numbers).expect("rows of rank numbers")
        };
        let (mut left, mut right) = (tall(&self.left, self.rows), tall(&self.right, self.columns));
        for (i, _) in quality
            .flipped
            .iter()
            .enumerate()
            .filter(|(_, flip)| **flip)
        {
            for (side, wanted) in [(&mut left, self.sides.left), (&mut right, self.sides.right)] {
                if wanted {
                    side.column_mut(i).mapv_inplace(|x| -x);
                }
            }
        }
        let (u, v) = if transposed {
            (right, left)
        } else {
            (left, right)
        };
        Svd {
            u,
            residuals: quality.residuals().unwrap_or_default(),
            s: quality.sigma.into(),
            vt: v.reversed_axes(),
            certificate,
            centring: None,
            hash: *hash.finalize().as_bytes(),
        }
    }
}
