//! From matrix facts and the job's wishes to a task graph.
//!
//! A pure function: no clock, no node, no memory size goes in, so equal matrices and equal jobs give equal plans, and
//! equal plans give equal bits. Resources decide only where and when.

mod tree;

use std::sync::Arc;

use shared::{
    farm::{
        bytes::Bytes,
        graph::{Accumulator, Checkpoint, Graph, Input, Output, Task},
        ids::{AccumulatorId, ContentHash, TaskId},
        work::WorkError,
    },
    linalg::real::{PANEL_OF_SHORT_ROWS, Real},
    matrix::facts::MatrixFacts,
    svd::{
        Precision, Shape, Slice, SvdWork,
        layout::{ARITY, Panels, f64s, slices},
    },
};

use crate::job::resolved::FactorSpec;
use tree::Tree;

/// A plan, and where to find in it what is wanted of it.
pub struct Plan {
    pub graph: Arc<Graph<SvdWork>>,
    /// Names the plan: the hash of the graph.
    pub hash: ContentHash,
    /// Binary exponents of the columns' norms, an input made here.
    pub shifts: Bytes,
    /// n x l
    pub shape: Shape,
    /// k
    pub rank: u32,
    /// Full reads of A.
    pub reads: u32,
    /// The plan works on A * 2^scale.
    pub scale: i32,
    pub wanted: Wanted,
}

/// The tasks whose blocks are delivered.
pub struct Wanted {
    /// sigma, W, P of the scaled matrix.
    pub small_svd: TaskId,
    /// V of each slice: T[rows x k].
    pub right: Vec<(TaskId, Slice)>,
    /// U of each row block: first row, rows; T[rows x k].
    pub left: Vec<(TaskId, u64, u32)>,
    /// Sums of squares f64[k] of A V - U S and of A^T U - V S.
    pub left_residual: TaskId,
    pub right_residual: TaskId,
    /// U^T U and V^T V: f64[k x k].
    pub left_gram: TaskId,
    pub right_gram: TaskId,
}

/// l = k + p, but never more than the smaller side.
pub fn sketch_width(facts: &MatrixFacts, factor: &FactorSpec) -> u32 {
    let side = facts.rows.min(facts.columns).min(u64::from(u32::MAX)) as u32;
    factor.rank.saturating_add(factor.oversample).min(side)
}

pub fn precision(factor: &FactorSpec) -> Precision {
    match factor.precision {
        crate::job::resolved::Precision::F32 => Precision::F32,
        crate::job::resolved::Precision::F64 => Precision::F64,
    }
}

/// Most columns of a panel; what measured best, see the bench `kernels`.
fn panel_max(facts: &MatrixFacts, factor: &FactorSpec) -> u16 {
    let short = facts.nnz < 24 * facts.rows;
    let most = match precision(factor) {
        Precision::F32 if short => PANEL_OF_SHORT_ROWS,
        Precision::F32 => f32::PANEL,
        Precision::F64 => f64::PANEL,
    };
    most as u16
}

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

/// Bytes that must be in memory at once to run the plan on one machine: the n-sided arrays, the sums, and what `cores`
/// tasks have open. (X as slices and as panels, Z as integers, the leaves' Q in f64.)
pub fn memory_needed(facts: &MatrixFacts, shape: Shape, cores: usize) -> u64 {
    let padded = Panels::of(shape).padded() as u64;
    let number = shape.precision.bytes() as u64;
    let width = u64::from(shape.width);
    let sided = shape.columns * (padded * (2 * number + 8) + width * 8);
    let block = facts.blocks.iter().map(|b| b.bytes).max().unwrap_or(0);
    let trees = 16 * width * width * 8 * (1 + facts.blocks.len() as u64 / ARITY as u64);
    sided + trees + (cores as u64 + 1) * block + memory_of_tasks(facts, shape, cores)
}

/// Bytes that `cores` running tasks have open for themselves: Y, the QR's copy of it, its Q twice, Q_i, and panels of it.
pub fn memory_of_tasks(facts: &MatrixFacts, shape: Shape, cores: usize) -> u64 {
    let rows = facts
        .blocks
        .iter()
        .map(|b| u64::from(b.rows))
        .chain(slices(shape).iter().map(|s| 2 * u64::from(s.rows)))
        .max()
        .unwrap_or(0);
    let padded = Panels::of(shape).padded() as u64;
    cores as u64 * rows * padded * shape.precision.bytes() as u64 * 6
}

impl Plan {
    /// `factor.rank` must be at least 1 and at most the smaller side of the matrix.
    pub fn new(facts: &MatrixFacts, factor: &FactorSpec) -> Result<Self, WorkError> {
        let shape = Shape {
            columns: facts.columns,
            width: sketch_width(facts, factor),
            precision: precision(factor),
            panel: panel_max(facts, factor),
        };
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
        let mut builder = Builder {
            facts,
            shape,
            scale,
            panels: Panels::of(shape),
            slices: slices(shape),
            shifts: Input::Block {
                hash: ContentHash::of(shifts.as_slice()),
                bytes: shifts.len() as u64,
            },
            norm: norm_exponent(scaled(facts.frobenius_squared())),
            graph: Graph::default(),
        };
        let wanted = builder.build(factor);
        let graph = builder.graph;
        debug_assert_eq!(graph.validate(), Ok(()));
        let bytes = rmp_serde::to_vec(&graph).expect("a graph is plain data");
        Ok(Self {
            hash: ContentHash::of(&bytes),
            graph: Arc::new(graph),
            shifts,
            shape,
            rank: factor.rank,
            reads: factor.power_iterations + 3,
            scale,
            wanted,
        })
    }
}

struct Builder<'a> {
    facts: &'a MatrixFacts,
    shape: Shape,
    scale: i32,
    panels: Panels,
    slices: Vec<Slice>,
    shifts: Input,
    /// Binary exponent of ||A||_F.
    norm: i32,
    graph: Graph<SvdWork>,
}

impl Builder<'_> {
    fn build(&mut self, factor: &FactorSpec) -> Wanted {
        let q = factor.power_iterations;
        let mut x = self.sketch(factor.seed);
        for pass in 1..=q {
            let stage = self.graph.stage(format!("power pass {pass} of {q}"));
            let (sum, extra) = self.power(&x, stage);
            let stage = self.graph.stage(format!("basis {pass} of {q}"));
            let tree = self.tree_of_sum(sum, extra, stage);
            x = self.basis(&tree, stage);
        }
        let stage = self.graph.stage("range pass");
        let range = self.range(&x, stage);
        self.graph.checkpoints.push(Checkpoint {
            tasks: range.pushed(),
            supersedes: None,
        });
        let stage = self.graph.stage("projection pass");
        let (b, extra) = self.project(&x, &range, stage);
        let stage = self.graph.stage("small SVD");
        let tree = self.tree_of_sum(b, extra, stage);
        self.ending(factor.rank, &x, &range, b, extra, &tree)
    }

    fn add(
        &mut self,
        work: SvdWork,
        inputs: Vec<Input>,
        bytes: u64,
        cost: u64,
        stage: u16,
    ) -> TaskId {
        self.graph.task(Task {
            work,
            inputs,
            output: Output::Block { bytes },
            width: 1,
            cost: cost.max(1),
            stage,
        })
    }

    fn number(&self) -> u64 {
        self.shape.precision.bytes() as u64
    }

    fn panel_bytes(&self, panels: &Panels, p: usize) -> u64 {
        self.shape.columns * panels.widths[p] as u64 * self.number()
    }

    fn block_input(&self, i: usize) -> Input {
        let block = &self.facts.blocks[i];
        Input::Block {
            hash: block.hash,
            bytes: block.bytes,
        }
    }

    /// An n x l sum, in parts by panel and chunks by slice.
    fn sided_sum(&mut self, contributions: usize) -> AccumulatorId {
        let parts = self
            .panels
            .widths
            .iter()
            .map(|&w| self.slices.iter().map(|s| s.rows * w as u32).collect())
            .collect();
        self.graph.accumulator(Accumulator {
            parts,
            contributions: contributions as u32,
        })
    }

    fn sketch(&mut self, seed: u64) -> Vec<Input> {
        let stage = self.graph.stage("sketch");
        let shape = self.shape;
        (0..self.panels.len())
            .map(|p| {
                let bytes = self.panel_bytes(&self.panels, p);
                let work = SvdWork::Sketch {
                    shape,
                    seed,
                    panel: p as u16,
                };
                whole(self.add(work, Vec::new(), bytes, bytes, stage))
            })
            .collect()
    }

    fn power(&mut self, x: &[Input], stage: u16) -> (AccumulatorId, i32) {
        let extra = self.fold_bits() - self.norm;
        let accumulator = self.sided_sum(self.facts.blocks.len());
        for i in 0..self.facts.blocks.len() {
            for (p, &x) in x.iter().enumerate() {
                self.graph.task(Task {
                    work: SvdWork::Power {
                        scale: self.scale,
                        shape: self.shape,
                        panel: p as u16,
                        extra,
                    },
                    inputs: vec![self.block_input(i), self.shifts, x],
                    output: Output::Fold {
                        accumulator,
                        parts: (p as u16, p as u16 + 1),
                        contribution: i as u32,
                    },
                    width: 1,
                    cost: 4 * self.facts.blocks[i].nnz * self.panels.widths[p] as u64 + 1,
                    stage,
                });
            }
        }
        (accumulator, extra)
    }

    /// Bits before the binary point of a sum that is bounded by 1, one kept back for rounding.
    fn fold_bits(&self) -> i32 {
        match self.shape.precision {
            Precision::F32 => f32::FOLD_BITS as i32 - 1,
            Precision::F64 => f64::FOLD_BITS as i32 - 1,
        }
    }

    fn tree_of_sum(&mut self, sum: AccumulatorId, extra: i32, stage: u16) -> Tree {
        let l = self.shape.width as usize;
        let mut leaves = Vec::new();
        for (s, &slice) in self.slices.clone().iter().enumerate() {
            let rows = slice.rows as usize;
            let h = rows.min(l);
            let mut inputs = vec![self.shifts];
            inputs.extend(self.chunks(sum, s));
            let work = SvdWork::LeafQr {
                shape: self.shape,
                slice,
                extra,
            };
            let bytes = f64s(h, l) + f64s(rows, h);
            let task = self.add(work, inputs, bytes, (4 * rows * l * l) as u64, stage);
            leaves.push((task, h as u32));
        }
        Tree::grow(&mut self.graph, self.shape.width, &leaves, stage)
    }

    fn chunks(&self, accumulator: AccumulatorId, slice: usize) -> Vec<Input> {
        (0..self.panels.len())
            .map(|p| Input::Fold {
                accumulator,
                part: p as u16,
                chunk: slice as u32,
            })
            .collect()
    }

    /// The leaf's Q and its factor from above.
    fn leaf_q(&self, tree: &Tree, s: usize) -> Vec<Input> {
        let (l, rows) = (self.shape.width as usize, self.slices[s].rows as usize);
        let h = rows.min(l);
        let r = f64s(h, l);
        let mut inputs = vec![Input::Result {
            task: tree.leaves[s],
            range: Some((r, r + f64s(rows, h))),
        }];
        inputs.extend(tree.above_leaf(s));
        inputs
    }

    fn basis(&mut self, tree: &Tree, stage: u16) -> Vec<Input> {
        let l = self.shape.width as usize;
        let mut basis = Vec::new();
        for (s, slice) in self.slices.clone().into_iter().enumerate() {
            let rows = slice.rows as usize;
            let bytes = (rows * self.panels.padded()) as u64 * self.number();
            let work = SvdWork::Basis {
                shape: self.shape,
                slice,
            };
            let inputs = self.leaf_q(tree, s);
            basis.push(self.add(work, inputs, bytes, (2 * rows * l * l) as u64, stage));
        }
        let before = self.graph.checkpoints.len().checked_sub(1);
        self.graph.checkpoints.push(Checkpoint {
            tasks: basis.clone(),
            supersedes: before.map(|c| c as u16),
        });
        let mut start = 0u64;
        let mut x = Vec::new();
        for p in 0..self.panels.len() {
            let width = self.panels.widths[p] as u64 * self.number();
            let inputs = basis
                .iter()
                .zip(&self.slices)
                .map(|(&task, slice)| {
                    let rows = u64::from(slice.rows);
                    Input::Result {
                        task,
                        range: Some((rows * start, rows * (start + width))),
                    }
                })
                .collect();
            start += width;
            let bytes = self.panel_bytes(&self.panels, p);
            let work = SvdWork::Assemble {
                shape: self.shape,
                panel: p as u16,
            };
            x.push(whole(self.add(work, inputs, bytes, bytes, stage)));
        }
        x
    }

    /// Cost of Y_i = A_i X and its QR.
    fn range_cost(&self, i: usize) -> u64 {
        let block = &self.facts.blocks[i];
        let l = u64::from(self.shape.width);
        2 * block.nnz * l + 4 * u64::from(block.rows) * l * l
    }

    fn range(&mut self, x: &[Input], stage: u16) -> Tree {
        let l = self.shape.width as usize;
        let mut leaves = Vec::new();
        for i in 0..self.facts.blocks.len() {
            let h = (self.facts.blocks[i].rows as usize).min(l);
            let mut inputs = vec![self.block_input(i)];
            inputs.extend(x);
            let work = SvdWork::RangeLeaf {
                scale: self.scale,
                shape: self.shape,
            };
            let cost = self.range_cost(i);
            leaves.push((self.add(work, inputs, f64s(h, l), cost, stage), h as u32));
        }
        Tree::grow(&mut self.graph, self.shape.width, &leaves, stage)
    }

    fn project(&mut self, x: &[Input], range: &Tree, stage: u16) -> (AccumulatorId, i32) {
        let extra = self.fold_bits();
        let accumulator = self.sided_sum(self.facts.blocks.len());
        for i in 0..self.facts.blocks.len() {
            let mut inputs = vec![self.block_input(i), self.shifts];
            inputs.extend(x);
            inputs.extend(range.above_leaf(i));
            self.graph.task(Task {
                work: SvdWork::Project {
                    scale: self.scale,
                    shape: self.shape,
                    extra,
                },
                inputs,
                output: Output::Fold {
                    accumulator,
                    parts: (0, self.panels.len() as u16),
                    contribution: i as u32,
                },
                width: 1,
                cost: self.range_cost(i) * 2,
                stage,
            });
        }
        (accumulator, extra)
    }

    /// Everything after the factor R of B^T: small SVD, V, the lift, the checks.
    fn ending(
        &mut self,
        rank: u32,
        x: &[Input],
        range: &Tree,
        b: AccumulatorId,
        extra: i32,
        tree: &Tree,
    ) -> Wanted {
        let stage = (self.graph.stages.len() - 1) as u16;
        let (l, k) = (self.shape.width as usize, rank as usize);
        let factor_shape = Shape {
            width: rank,
            ..self.shape
        };
        let work = SvdWork::SmallSvd {
            width: self.shape.width,
        };
        let cost = (20 * l * l * l) as u64;
        let small_svd = self.add(work, vec![tree.root_r()], f64s(2 * l + 1, l), cost, stage);
        let small = whole(small_svd);

        // V, slice by slice.
        let peaks = f64s(k, 2);
        let mut unsigned = Vec::new();
        for (s, slice) in self.slices.clone().into_iter().enumerate() {
            let rows = slice.rows as usize;
            let mut inputs = self.leaf_q(tree, s);
            inputs.push(small);
            let work = SvdWork::RightSlice {
                shape: self.shape,
                slice,
                rank,
            };
            let bytes = peaks + (rows * k) as u64 * self.number();
            unsigned.push(self.add(work, inputs, bytes, (4 * rows * l * l) as u64, stage));
        }
        let all_peaks = unsigned
            .iter()
            .map(|&task| Input::Result {
                task,
                range: Some((0, peaks)),
            })
            .collect();
        let signs_task = self.add(SvdWork::Signs { rank }, all_peaks, f64s(k, 1), 1, stage);
        let signs = whole(signs_task);
        let mut right = Vec::new();
        for (slice, task) in self.slices.clone().into_iter().zip(unsigned) {
            let bytes = u64::from(slice.rows) * u64::from(rank) * self.number();
            let v = Input::Result {
                task,
                range: Some((peaks, peaks + bytes)),
            };
            let work = SvdWork::SignedSlice {
                shape: factor_shape,
                slice,
            };
            right.push((self.add(work, vec![v, signs], bytes, bytes, stage), slice));
        }
        let factor_panels = Panels::of(factor_shape);
        let v: Vec<Input> = (0..factor_panels.len())
            .map(|p| {
                let bytes = self.panel_bytes(&factor_panels, p);
                let work = SvdWork::RightPanel {
                    shape: factor_shape,
                    panel: p as u16,
                };
                let inputs = right.iter().map(|&(task, _)| whole(task)).collect();
                whole(self.add(work, inputs, bytes, bytes, stage))
            })
            .collect();

        // A^T U - V S from the projection, and V^T V.
        let right_gram = self.gram_sum(rank, right.len());
        let mut partial = Vec::new();
        for (s, &(task, slice)) in right.iter().enumerate() {
            let mut inputs = vec![self.shifts, small, signs, whole(task)];
            inputs.extend(self.chunks(b, s));
            let work = SvdWork::RightResidual {
                shape: self.shape,
                slice,
                rank,
                extra,
            };
            let cost = 2 * u64::from(slice.rows) * (l * k) as u64;
            partial.push(whole(self.add(work, inputs, f64s(k, 1), cost, stage)));
            self.gram(right_gram, rank, task, slice.rows, s, stage);
        }
        let right_residual = self.add(SvdWork::Sum { rank }, partial, f64s(k, 1), 1, stage);
        let right_gram = self.gram_out(right_gram, rank, stage);
        // The sum B goes with its agents, so all that is read from it is kept.
        let mut kept = vec![small_svd, signs_task, right_residual, right_gram];
        kept.extend(right.iter().map(|&(task, _)| task));
        self.graph.checkpoints.push(Checkpoint {
            tasks: kept,
            supersedes: None,
        });

        // U, block by block, with A V - U S and U^T U.
        let stage = self.graph.stage("lift pass");
        let left_gram = self.gram_sum(rank, self.facts.blocks.len());
        let mut left = Vec::new();
        let mut partial = Vec::new();
        for i in 0..self.facts.blocks.len() {
            let (first_row, rows, nnz) = {
                let block = &self.facts.blocks[i];
                (block.first_row, block.rows, block.nnz)
            };
            let mut inputs = vec![self.block_input(i)];
            inputs.extend(x);
            inputs.extend(range.above_leaf(i));
            inputs.extend([small, signs]);
            let work = SvdWork::Lift {
                scale: self.scale,
                shape: self.shape,
                rank,
            };
            let bytes = u64::from(rows) * u64::from(rank) * self.number();
            let cost = 2 * self.range_cost(i);
            let u = self.add(work, inputs, bytes, cost, stage);
            left.push((u, first_row, rows));
            let mut inputs = vec![self.block_input(i), small, whole(u)];
            inputs.extend(&v);
            let work = SvdWork::LeftResidual {
                scale: self.scale,
                shape: factor_shape,
            };
            let cost = 2 * nnz * u64::from(rank);
            partial.push(whole(self.add(work, inputs, f64s(k, 1), cost, stage)));
            self.gram(left_gram, rank, u, rows, i, stage);
        }
        let left_residual = self.add(SvdWork::Sum { rank }, partial, f64s(k, 1), 1, stage);
        let left_gram = self.gram_out(left_gram, rank, stage);

        let deliveries = &mut self.graph.deliveries;
        deliveries.extend([
            small_svd,
            right_residual,
            left_residual,
            right_gram,
            left_gram,
        ]);
        deliveries.extend(right.iter().map(|&(task, _)| task));
        deliveries.extend(left.iter().map(|&(task, ..)| task));
        Wanted {
            small_svd,
            right,
            left,
            left_residual,
            right_residual,
            left_gram,
            right_gram,
        }
    }

    fn gram_sum(&mut self, rank: u32, contributions: usize) -> AccumulatorId {
        self.graph.accumulator(Accumulator {
            parts: vec![vec![rank * rank]],
            contributions: contributions as u32,
        })
    }

    fn gram(
        &mut self,
        accumulator: AccumulatorId,
        rank: u32,
        of: TaskId,
        rows: u32,
        contribution: usize,
        stage: u16,
    ) {
        self.graph.task(Task {
            work: SvdWork::Gram {
                precision: self.shape.precision,
                rank,
            },
            inputs: vec![whole(of)],
            output: Output::Fold {
                accumulator,
                parts: (0, 1),
                contribution: contribution as u32,
            },
            width: 1,
            cost: u64::from(rows) * u64::from(rank) * u64::from(rank) + 1,
            stage,
        });
    }

    fn gram_out(&mut self, accumulator: AccumulatorId, rank: u32, stage: u16) -> TaskId {
        let sum = Input::Fold {
            accumulator,
            part: 0,
            chunk: 0,
        };
        let bytes = f64s(rank as usize, rank as usize);
        self.add(SvdWork::GramOut { rank }, vec![sum], bytes, 1, stage)
    }
}

/// The whole block of a task.
fn whole(task: TaskId) -> Input {
    Input::Result { task, range: None }
}
