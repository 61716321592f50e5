//! What every plan of a matrix needs: its blocks as inputs, and the numbers by which sums are kept exact.

use std::sync::Arc;

use shared::{
    farm::{
        bytes::Bytes,
        graph::{Graph, Input, Output, Task},
        ids::{ContentHash, TaskId},
        work::WorkError,
    },
    linalg::real::{PANEL_OF_SHORT_ROWS, Real},
    matrix::facts::{BlockFacts, MatrixFacts},
    svd::{Precision, Shape, SvdWork},
};

/// Columns smaller than 2^-800 of the largest entry are summed as if they were that large: their sums keep fewer digits
/// than others', and f64 keeps its range.
const SHIFT_MAX: i32 = 800;

/// ceil(log2(sqrt(squares))), 0 for zero.
fn norm_exponent(squares: f64) -> i32 {
    if squares > 0.0 {
        (squares.log2() / 2.0).ceil() as i32
    } else {
        0
    }
}

/// A matrix as plans see it. Plans work on A * 2^scale, whose entries are at most 1 in absolute value.
#[derive(Clone)]
pub struct Ground {
    /// m
    pub rows: u64,
    /// n
    pub columns: u64,
    pub blocks: Arc<[BlockFacts]>,
    pub scale: i32,
    /// Binary exponents of the columns' norms, an input made here: i16[n].
    pub shifts: Bytes,
    pub shifts_input: Input,
    /// Binary exponent of ||A||_F.
    pub norm: i32,
    /// ||A||_F^2 of the scaled matrix.
    pub frobenius_squared: f64,
    short_rows: bool,
}

impl Ground {
    pub fn new(facts: &MatrixFacts) -> Result<Self, WorkError> {
        // |a| * 2^scale <= 1, so no square over- or underflows on the way.
        let scale = if facts.max_abs > 0.0 {
            -(facts.max_abs.log2().ceil() as i32)
        } else {
            0
        };
        let two_scale = 2.0 * f64::from(scale);
        let scaled = |squares: f64| {
            if squares > 0.0 {
                (squares.log2() + two_scale).exp2()
            } else {
                0.0
            }
        };
        let shifts: Vec<i16> = facts
            .column_squares
            .iter()
            .map(|&s| (-norm_exponent(scaled(s))).min(SHIFT_MAX) as i16)
            .collect();
        let shifts = Bytes::from_numbers(&shifts)?;
        let frobenius_squared = facts.frobenius_squared();
        Ok(Self {
            rows: facts.rows,
            columns: facts.columns,
            blocks: facts.blocks.clone().into(),
            scale,
            shifts_input: Input::Block {
                hash: ContentHash::of(shifts.as_slice()),
                bytes: shifts.len() as u64,
            },
            shifts,
            norm: norm_exponent(scaled(frobenius_squared)),
            frobenius_squared: frobenius_squared * 2f64.powi(scale).powi(2),
            short_rows: facts.nnz < 24 * facts.rows,
        })
    }

    /// Most columns of a panel; what measured best, see the bench `kernels`.
    pub fn panel(&self, precision: Precision) -> u16 {
        let most = match precision {
            Precision::F32 if self.short_rows => PANEL_OF_SHORT_ROWS,
            Precision::F32 => f32::PANEL,
            Precision::F64 => f64::PANEL,
        };
        most as u16
    }

    pub fn shape(&self, width: u32, precision: Precision) -> Shape {
        Shape {
            columns: self.columns,
            width,
            precision,
            panel: self.panel(precision),
        }
    }

    pub fn block_input(&self, i: usize) -> Input {
        let block = &self.blocks[i];
        Input::Block {
            hash: block.hash,
            bytes: block.bytes,
        }
    }
}

/// Bits before the binary point of a sum that is bounded by 1, one kept back for rounding.
pub fn fold_bits(precision: Precision) -> i32 {
    match precision {
        Precision::F32 => f32::FOLD_BITS as i32 - 1,
        Precision::F64 => f64::FOLD_BITS as i32 - 1,
    }
}

/// The whole block of a task.
pub fn whole(task: TaskId) -> Input {
    Input::Result { task, range: None }
}

/// A task that yields a block, on one core.
pub fn add(
    graph: &mut Graph<SvdWork>,
    work: SvdWork,
    inputs: Vec<Input>,
    bytes: u64,
    cost: u64,
    stage: u16,
) -> TaskId {
    graph.task(Task {
        work,
        inputs,
        output: Output::Block { bytes },
        width: 1,
        cost: cost.max(1),
        stage,
    })
}
