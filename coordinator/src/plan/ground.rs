//! What every plan of a matrix needs: its blocks as inputs, and the numbers by which sums are kept exact.
//!
//! Blocks may be those of a [`View`]: B = [A' | P], where the matrix is A = (A' - P Q^T) diag(d) = B L. Tasks that read
//! blocks then work on B, of n + s columns; L stands between them and everything else, as an input made here.

use std::sync::Arc;

use shared::{
    farm::{
        bytes::Bytes,
        graph::{Accumulator, Graph, Input, Output, Task},
        ids::{AccumulatorId, ContentHash, TaskId},
        work::WorkError,
    },
    linalg::real::{PANEL_OF_SHORT_ROWS, Real},
    matrix::facts::{BlockFacts, MatrixFacts, View},
    svd::{Precision, Shape, Slice, SvdWork, layout::Panels},
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

/// Largest binary exponent of the map's d.
const MAP_MAX: i32 = 60;

/// squares * 2^(2 scale), without leaving the range of f64 on the way.
fn scaled(squares: f64, scale: i32) -> f64 {
    if squares > 0.0 {
        (squares.log2() + 2.0 * f64::from(scale)).exp2()
    } else {
        0.0
    }
}

fn map(view: &View, exponent: i32) -> Result<Made, WorkError> {
    let factor = 2f64.powi(exponent);
    let mut numbers: Vec<f64> = view.scale.iter().map(|d| d * factor).collect();
    numbers.extend(&view.loads);
    Ok(Made::of(Bytes::from_numbers(&numbers)?))
}

/// A bound of || |B| |L| x ||, ||x|| <= 1.
fn bulk(view: &View) -> f64 {
    let (n, s) = (view.scale.len(), view.added as usize);
    let norm = |squares: f64| squares.sqrt();
    let own: f64 = view
        .column_squares
        .iter()
        .zip(&view.scale)
        .map(|(squares, d)| squares * d * d)
        .sum();
    let added = (0..s).map(|e| {
        let loads = view.loads.iter().skip(e).step_by(s).zip(&view.scale);
        let squares: f64 = loads.map(|(q, d)| (q * d).powi(2)).sum();
        norm(view.column_squares[n + e]) * norm(squares)
    });
    norm(own) + added.sum::<f64>()
}

/// Where what cancels is so many times larger than what is left of it, f32 is not even begun with.
const BLUR_MAX: f64 = 256.0;

/// An input that is made here.
#[derive(Clone)]
struct Made {
    bytes: Bytes,
    input: Input,
}

impl Made {
    fn of(bytes: Bytes) -> Self {
        let input = Input::Block {
            hash: ContentHash::of(bytes.as_slice()),
            bytes: bytes.len() as u64,
        };
        Self { bytes, input }
    }
}

/// A matrix as plans see it: A * 2^scale. Its entries are at most 1 in absolute value; where there is a view, the norms of its
/// columns are, as far as the map allows.
#[derive(Clone)]
pub struct Ground {
    /// m
    pub rows: u64,
    /// n
    pub columns: u64,
    pub blocks: Arc<[BlockFacts]>,
    pub scale: i32,
    /// The blocks' values are multiplied with 2^block_scale.
    pub block_scale: i32,
    /// Binary exponents of the norms of the blocks' columns: i16[n], or i16[n + s].
    shifts: Made,
    /// d f64[n], Q f64[n x s].
    map: Option<Made>,
    /// s
    added: u64,
    /// Binary exponent of ||A||_F of the scaled matrix.
    norm: i32,
    /// ||A||_F^2 of it.
    pub frobenius_squared: f64,
    /// The same of numbers that cancel in it: rounding is relative to these. ||A||_F where nothing is subtracted.
    bulk: f64,
    short_rows: bool,
}

impl Ground {
    pub fn new(facts: &MatrixFacts) -> Result<Self, WorkError> {
        // |a| * 2^scale <= 1, so no square over- or underflows on the way.
        let max_abs = facts.view.as_ref().map_or(facts.max_abs, |v| v.max_abs);
        let block_scale = if max_abs > 0.0 {
            -(max_abs.log2().ceil() as i32)
        } else {
            0
        };
        let shifts: Vec<i16> = facts
            .view
            .as_ref()
            .map_or(&facts.column_squares, |v| &v.column_squares)
            .iter()
            .map(|&s| (-norm_exponent(scaled(s, block_scale))).min(SHIFT_MAX) as i16)
            .collect();
        let scale = match &facts.view {
            None => block_scale,
            Some(view) => {
                let most = |numbers: &[f64]| numbers.iter().copied().fold(0.0, f64::max);
                // The map's own numbers stay within the range of f32.
                let middle = block_scale - most(&view.scale).log2().ceil() as i32;
                match most(&facts.column_squares) {
                    0.0 => middle,
                    largest => (-norm_exponent(largest)).clamp(middle - MAP_MAX, middle + MAP_MAX),
                }
            }
        };
        let frobenius_squared = facts.frobenius_squared() * 2f64.powi(scale).powi(2);
        let (map, bulk) = match &facts.view {
            None => (None, frobenius_squared.sqrt()),
            Some(view) => {
                let bulk = bulk(view) * 2f64.powi(scale);
                (Some(map(view, scale - block_scale)?), bulk)
            }
        };
        Ok(Self {
            rows: facts.rows,
            columns: facts.columns,
            blocks: facts.blocks.clone().into(),
            scale,
            block_scale,
            shifts: Made::of(Bytes::from_numbers(&shifts)?),
            map,
            added: facts.view.as_ref().map_or(0, |v| v.added.into()),
            norm: norm_exponent(scaled(facts.frobenius_squared(), scale)),
            frobenius_squared,
            bulk,
            short_rows: facts.nnz < 24 * facts.rows,
        })
    }

    /// Binary exponent of what bounds ||A x||, ||x|| <= 1, rounding in that precision included.
    pub fn norm(&self, precision: Precision) -> i32 {
        let rounding = match (&self.map, precision) {
            (None, _) => return self.norm,
            (Some(_), Precision::F32) => 2f64.powi(-20),
            (Some(_), Precision::F64) => 2f64.powi(-44),
        };
        let bound = self.frobenius_squared.sqrt() + rounding * self.bulk;
        norm_exponent(bound * bound)
    }

    /// What rounding errors of products with A are relative to.
    pub fn bulk(&self) -> f64 {
        self.bulk.max(self.frobenius_squared.sqrt())
    }

    /// How many times larger than without subtraction they are, relative to A: at least 1.
    pub fn blur(&self) -> f64 {
        if self.frobenius_squared > 0.0 {
            self.bulk() / self.frobenius_squared.sqrt()
        } else {
            1.0
        }
    }

    /// Whether f32 is too coarse for what subtraction leaves.
    pub fn is_blurred(&self) -> bool {
        self.blur() > BLUR_MAX
    }

    /// The inputs that are made here.
    pub fn made(&self) -> impl Iterator<Item = &Bytes> {
        let map = self.map.iter();
        [&self.shifts]
            .into_iter()
            .chain(map)
            .map(|made| &made.bytes)
    }

    pub fn shifts(&self) -> &Bytes {
        &self.shifts.bytes
    }

    pub fn shifts_input(&self) -> Input {
        self.shifts.input
    }

    /// L, where there is a view.
    pub fn map_input(&self) -> Option<Input> {
        self.map.as_ref().map(|map| map.input)
    }

    /// Columns that a view adds to the blocks, and whether there is one.
    pub fn view(&self) -> Option<u64> {
        self.map.as_ref().map(|_| self.added)
    }

    /// The shape of what blocks are multiplied with, for arrays of this shape.
    pub fn read(&self, shape: Shape) -> Shape {
        Shape {
            columns: self.columns + self.added,
            ..shape
        }
    }

    /// The panel as blocks are multiplied with it.
    pub fn spread(
        &self,
        graph: &mut Graph<SvdWork>,
        panel: TaskId,
        shape: Shape,
        p: usize,
        stage: u16,
    ) -> TaskId {
        let Some(map) = &self.map else {
            return panel;
        };
        let width = Panels::of(shape).widths[p] as u64;
        let bytes = self.read(shape).columns * width * shape.precision.bytes() as u64;
        let work = SvdWork::Spread {
            shape,
            panel: p as u16,
        };
        add(
            graph,
            work,
            vec![whole(panel), map.input],
            bytes,
            bytes,
            stage,
        )
    }

    /// Parts of an n-sided sum by panel, cut into chunks by slice, and behind them what a view adds.
    pub fn sided(&self, shape: Shape, slices: &[Slice]) -> Vec<Vec<u32>> {
        Panels::of(shape)
            .widths
            .iter()
            .map(|&w| {
                let added = (self.added > 0).then_some(self.added as u32);
                let rows = slices.iter().map(|s| s.rows).chain(added);
                rows.map(|rows| rows * w as u32).collect()
            })
            .collect()
    }

    /// A slice's chunks of an n-sided sum, as tasks read them.
    pub fn chunks(
        &self,
        accumulator: AccumulatorId,
        shape: Shape,
        slices: usize,
        slice: usize,
    ) -> Vec<Input> {
        let panels = Panels::of(shape).len() as u16;
        let chunks = |chunk: usize| {
            (0..panels).map(move |part| Input::Fold {
                accumulator,
                part,
                chunk: chunk as u32,
            })
        };
        let mut inputs: Vec<Input> = chunks(slice).collect();
        if self.added > 0 {
            inputs.extend(chunks(slices));
        }
        inputs.extend(self.map_input());
        inputs
    }

    /// A sum over all blocks, of n-sided arrays.
    pub fn sum(&self, graph: &mut Graph<SvdWork>, parts: Vec<Vec<u32>>) -> AccumulatorId {
        graph.accumulator(Accumulator {
            parts,
            contributions: self.blocks.len() as u32,
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
