//! What a plan will cost, before anything of it is done.

use std::time::{Duration, Instant};

use serde::Serialize;
use shared::{
    farm::{
        bytes::Bytes,
        work::{Work, WorkError},
    },
    linalg::tall::{Tall, cross},
    svd::{
        Precision, Shape, SvdWork,
        layout::{Panels, slices},
    },
};

use super::{Method, Plan, ground::fold_bits};

/// How fast one core of this machine is, as measured just now.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Rates {
    /// Of the products with the matrix, in operations a second.
    pub products: f64,
    /// Of products of tall dense arrays.
    pub dense: f64,
}

/// What is known of a plan before it runs. A read is one of the whole matrix, as most of the plan's are.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Forecast {
    /// Exactly so many, where that is known.
    pub reads: Option<u32>,
    pub reads_max: u32,
    /// Columns that a read multiplies.
    pub columns_a_read: u32,
    /// Most columns of the basis that is kept.
    pub basis: u32,
    /// Of the products with the matrix.
    pub flops_a_read: u64,
    /// Of what makes a basis from them, when the basis is half full.
    pub dense_flops_a_read: u64,
    pub cache_bytes_a_read: u64,
    /// To and from each node: the columns that the matrix is multiplied with, and its share of the sums.
    pub link_bytes_in_a_read: u64,
    pub link_bytes_out_a_read: u64,
    /// All row blocks.
    pub blocks_bytes: u64,
    pub rates: Rates,
    pub seconds_a_read: f64,
}

/// How long a rate is measured, and how often at most.
const MEASURE: Duration = Duration::from_millis(400);
const REPEATS: u32 = 8;
/// Columns and rows of the dense product that is measured.
const DENSE: (usize, usize) = (2048, 64);

impl Plan {
    /// Multiplies the first block a few times, for less than a second, to say how long a read takes on so many cores.
    ///
    /// # Errors
    /// The block is not what the plan says, or there is no memory.
    pub fn forecast(&self, first_block: &Bytes, cores: usize) -> Result<Forecast, WorkError> {
        let ground = &self.ground;
        let rates = self.rates(first_block)?;
        let nnz: u64 = ground.blocks.iter().map(|b| b.nnz).sum();
        let n = ground.columns;
        let (columns, basis) = match self.method {
            Method::Power { width, .. } => (width, width),
            Method::Exact { .. } => (n as u32, n as u32),
            Method::Krylov(spec) => (spec.block, spec.basis),
            Method::Gram(spec) => {
                let keep = spec.keep(self.method.rank_max());
                (keep + spec.guard, keep)
            }
        };
        let reads_max = match self.method {
            Method::Krylov(spec) => spec.tolerance.max_reads,
            // C, two split reads and U.
            Method::Gram(_) => 4,
            Method::Power { .. } | Method::Exact { .. } => self.reads().unwrap_or(0),
        };
        let wide = u64::from(columns);
        let squares = wide * wide;
        let flops_a_read = 4 * nnz * wide;
        let dense_flops_a_read = match self.method {
            // QR of Z, and its Q.
            Method::Power { .. } => 6 * n * squares,
            // QR of all rows, three times, and two products with what comes of it.
            Method::Exact { .. } => 6 * ground.rows * squares,
            // X^T Z and Z - X (X^T Z), once with the last two blocks and once with all; a QR after the first, and in f64
            // after the second.
            Method::Krylov(spec) => {
                let kept = spec.keep(self.method.rank_max().min(spec.basis));
                let half = u64::from(kept + spec.basis) / 2;
                let qrs = match spec.precision {
                    Precision::F32 => 1,
                    Precision::F64 => 2,
                };
                4 * n * (2 * wide + half) * wide + qrs * 6 * n * squares
            }
            // The eigenvectors of C, over the least number of reads.
            Method::Gram(_) => 9 * n * n * n / 3,
        };
        let number = self.method.precision().bytes() as u64;
        let blocks_bytes = ground.blocks.iter().map(|b| b.bytes).sum();
        let one_core =
            flops_a_read as f64 / rates.products + dense_flops_a_read as f64 / rates.dense;
        Ok(Forecast {
            reads: self.reads(),
            reads_max,
            columns_a_read: columns,
            basis,
            flops_a_read,
            dense_flops_a_read,
            cache_bytes_a_read: blocks_bytes,
            link_bytes_in_a_read: n * wide * number,
            link_bytes_out_a_read: n * wide * 8,
            blocks_bytes,
            rates,
            seconds_a_read: one_core / cores as f64,
        })
    }

    /// On one core, with panels of the plan's own width.
    fn rates(&self, block: &Bytes) -> Result<Rates, WorkError> {
        let (rows, width) = DENSE;
        let numbers: Vec<f64> = (0..rows * width).map(|i| (i % 7) as f64 - 3.0).collect();
        let tall = Tall {
            numbers: &numbers,
            width,
        };
        let dense = timed(|| {
            std::hint::black_box(cross(rows, &[tall], tall));
            Ok(())
        })?;
        let (precision, columns) = match self.method {
            Method::Power {
                precision, width, ..
            } => (precision, width),
            Method::Krylov(spec) => (spec.precision, spec.block),
            Method::Exact { .. } => (Precision::F64, self.ground.columns as u32),
            Method::Gram(spec) => (Precision::F64, spec.keep(self.method.rank_max())),
        };
        let ground = &self.ground;
        let full = ground.shape(columns, precision);
        let shape = ground.read(Shape {
            width: columns.min(Panels::of(full).widths[0] as u32),
            ..full
        });
        let w = Panels::of(shape).widths[0];
        let x = SvdWork::Sketch {
            shape,
            seed: 0,
            panel: 0,
        }
        .block(&[])?;
        let inputs = [block.clone(), ground.shifts().clone(), x];
        let work = SvdWork::Power {
            scale: ground.block_scale,
            shape,
            panel: 0,
            extra: fold_bits(precision) - ground.norm(precision),
        };

        let length: usize = slices(shape).iter().map(|s| s.rows as usize * w).sum();
        let mut sum = vec![0i64; length];
        let seconds = timed(|| {
            // Sums of many repeats would be too large.
            sum.fill(0);
            work.fold(&inputs, &mut [&mut sum])
        })?;
        let nnz = self.ground.blocks[0].nnz;
        Ok(Rates {
            products: (4 * nnz * w as u64).max(1) as f64 / seconds,
            dense: (2 * rows * width * width) as f64 / dense,
        })
    }
}

/// Seconds that it takes, the first time not counted.
fn timed(mut act: impl FnMut() -> Result<(), WorkError>) -> Result<f64, WorkError> {
    act()?;
    let began = Instant::now();
    let mut times = 0;
    while times == 0 || (times < REPEATS && began.elapsed() < MEASURE) {
        act()?;
        times += 1;
    }
    Ok((began.elapsed().as_secs_f64() / f64::from(times)).max(1e-9))
}
