//! The plan for few columns: one read forms C = A^T A, one task has its eigenvectors, and the end is that of the Krylov
//! method. See [`shared::svd::gram`] for the tasks.
//!
//! What lies below 1e-8 of the largest singular value is noise in C. If such is wanted, what C knows and random columns
//! beside it are the start of two split reads, as in a randomized SVD.

use shared::{
    farm::graph::{Accumulator, Input, Output, Task},
    matrix::facts::MatrixFacts,
    svd::{
        Precision, SvdWork,
        gram::{GramWork, length, parts},
        krylov::RitzLayout,
    },
};

use super::{
    Mark, Pilot,
    ground::add,
    krylov::{Array, blind_below, fades},
};
use crate::job::resolved::Wanted;

/// Most columns: C and what its eigenproblem takes are about 1 GiB then.
pub const COLUMNS_MAX: u64 = 4096;
/// Most columns where the planner chooses: the eigenproblem is the work of one core.
const COLUMNS_CHOSEN: u64 = 1024;
/// Rows are taken to have at most so many times the entries that they have on average: how many the longest one has is
/// not known.
const LONGEST: u64 = 4;
/// A number added into C at a random place, and one of the products of a read, which are vectors: their times.
const SCATTERED: u128 = 8;
/// Reads that a Krylov basis takes until its last two.
const READS: u128 = 8;

/// Whether C costs less than the reads of a Krylov basis with blocks of this width: entries x entries of a row / 2, and
/// 9 n^3 for the eigenvectors, against 4 x entries x width a read.
pub fn is_cheaper(facts: &MatrixFacts, block: u32) -> bool {
    let (n, nnz) = (u128::from(facts.columns), u128::from(facts.nnz));
    let row = LONGEST * facts.nnz.div_ceil(facts.rows.max(1));
    let row = u128::from(row.min(facts.columns));
    facts.columns <= COLUMNS_CHOSEN
        && SCATTERED * nnz * row + 9 * n * n * n <= READS * 4 * nnz * u128::from(block)
}

/// Bytes of one copy of C as a sum.
pub fn sum_bytes(columns: u64) -> u64 {
    4 * columns * (columns + 1)
}

/// Bytes that the eigenproblem has open: C, the solver's copy, all vectors, those that are kept, and its work space.
pub fn eigen_bytes(columns: u64) -> u64 {
    60 * columns * columns
}

impl Pilot {
    /// The read that forms C, and its eigenvectors.
    pub(super) fn begin_gram(&mut self) {
        self.gram = true;
        self.reads = 1;
        let stage = self.graph.stage("pass 1");
        let n = self.ground.columns as u32;
        // Blocks may have more columns than the matrix.
        let wide = n + self.ground.view().unwrap_or(0) as u32;
        let cut = parts(wide);
        let lengths = cut.iter().map(|&(first, rows)| length(wide, first, rows));
        let lengths: Vec<u32> = lengths.map(|length| length as u32).collect();
        let accumulator = self.graph.accumulator(Accumulator {
            parts: lengths.iter().map(|&length| vec![length]).collect(),
            contributions: self.ground.blocks.len() as u32,
        });
        for i in 0..self.ground.blocks.len() {
            let block = &self.ground.blocks[i];
            let row = block.nnz / u64::from(block.rows.max(1)) + 1;
            for (p, &(first, rows)) in cut.iter().enumerate() {
                self.graph.task(Task {
                    work: SvdWork::GramMatrix(GramWork::Fold {
                        scale: self.ground.block_scale,
                        columns: wide,
                        first,
                        rows,
                    }),
                    inputs: vec![self.ground.block_input(i), self.ground.shifts_input()],
                    output: Output::Fold {
                        accumulator,
                        parts: (p as u16, p as u16 + 1),
                        contribution: i as u32,
                    },
                    width: 1,
                    cost: block.nnz * row / cut.len() as u64 + u64::from(lengths[p]),
                    stage,
                });
            }
        }
        let stage = self.graph.stage("eigenvectors of A^T A");
        let keep = self.ritz_keep(n);
        let layout = RitzLayout {
            d: n as usize,
            head: 0,
            keep: keep as usize,
        };
        let mut inputs = vec![self.ground.shifts_input()];
        inputs.extend((0..cut.len()).map(|p| Input::Fold {
            accumulator,
            part: p as u16,
            chunk: 0,
        }));
        inputs.extend(self.ground.map_input());
        let work = SvdWork::GramMatrix(GramWork::Eigen {
            columns: n,
            wide,
            keep,
        });
        let cost = 9 * u64::from(n).pow(3);
        let eigen = add(&mut self.graph, work, inputs, layout.total(), cost, stage);
        self.checkpoint_state(eigen);
        self.report(eigen, layout, stage);
    }

    /// After the eigenvalues of C: they are all there are, and as good as rounding lets them be.
    pub(super) fn decide_gram(&mut self, theta: &[f64]) {
        let n = theta.len() as u32;
        let goal = match self.spec.wanted {
            Wanted::Rank(rank) => rank,
            Wanted::Energy(share) => {
                let mut sum = 0.0;
                let enough = theta.iter().position(|t| {
                    sum += t;
                    sum >= share * self.ground.frobenius_squared
                });
                enough.map_or(n, |at| at as u32 + 1)
            }
        };
        // Rounding is relative to what cancels where something is subtracted.
        let bulk = theta[0].max(self.ground.blur().powi(2) * theta[0]);
        let noise = Precision::F64.roundoff() * bulk / theta[goal as usize - 1].max(1e-300);
        self.marks.push(Mark {
            reads: self.reads,
            basis: n,
            worst: Some(noise),
        });
        let (keep, guard) = (self.spec.keep(goal), self.spec.guard);
        let blind = blind_below(Precision::F64) * bulk;
        let known = theta.iter().take_while(|t| **t > blind).count() as u32;
        if keep + guard > n {
            let stage = self.graph.stage("all eigenvectors");
            let v = self.rotate(self.ritz_keep(n).min(n), stage, true, Precision::F64);
            let random = n - v.width;
            let rest = (random > 0).then(|| self.beside(&v, random, stage));
            self.split_from(goal, &v, rest, true, stage);
        } else if known < goal || noise > self.spec.tolerance.value / 20.0 {
            let stage = self
                .graph
                .stage(format!("{known} eigenvectors and random columns"));
            let known = known.clamp(1, keep);
            let v = self.rotate(known, stage, true, Precision::F64);
            let rest = self.beside(&v, keep - known + guard, stage);
            self.split_from(goal, &v, Some(rest), !fades(theta), stage);
        } else {
            self.end(goal, keep, theta);
        }
    }

    fn split_from(&mut self, rank: u32, v: &Array, rest: Option<Array>, sharp: bool, stage: u16) {
        let mut arrays = vec![v];
        arrays.extend(&rest);
        let width = arrays.iter().map(|array| array.width).sum();
        let shape = self.ground.shape(width, Precision::F64);
        let panels = self.panels(&arrays, shape, Precision::F64, stage);
        self.split(rank, shape, &panels, sharp);
    }
}
