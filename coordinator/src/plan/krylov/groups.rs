//! Groups of tasks that do one thing with an n-sided array: a task a slice, or a block of the matrix.

use shared::{
    farm::{
        graph::{Accumulator, Input, Output, Task},
        ids::{AccumulatorId, TaskId},
    },
    svd::{
        Precision, Shape, SvdWork,
        krylov::{Given, KrylovWork, Random},
        layout::{Panels, f64s},
        polish::PolishWork,
    },
};

use super::Pilot;
use crate::plan::{
    ground::{add, fold_bits, whole},
    tree::Tree,
};

/// Bytes of a panel that each task which reads A joins for itself.
const JOINED: u64 = 1 << 19;

/// An n-sided array: a block a slice.
#[derive(Clone, Debug, Default)]
pub(in crate::plan) struct Array {
    pub(in crate::plan) slices: Vec<Input>,
    pub(super) tasks: Vec<TaskId>,
    pub(in crate::plan) width: u32,
    pub(in crate::plan) held: Precision,
    pub(super) checkpoint: Option<u16>,
}

impl Array {
    pub(super) fn of(tasks: Vec<TaskId>, width: u32, held: Precision) -> Self {
        Self {
            slices: tasks.iter().map(|t| whole(*t)).collect(),
            tasks,
            width,
            held,
            checkpoint: None,
        }
    }
}

/// Columns that need not stand anywhere: of each slice, what a task makes them of.
pub(super) struct Columns {
    pub(super) given: Given,
    pub(super) slices: Vec<Vec<Input>>,
    pub(super) width: u32,
}

impl Columns {
    pub(super) fn held(slices: &[Input], width: u32, held: Precision) -> Self {
        Self {
            given: Given::Held(held),
            slices: slices.iter().map(|slice| vec![*slice]).collect(),
            width,
        }
    }
}

/// A sum of one part that is read whole.
pub(super) fn whole_sum(accumulator: AccumulatorId) -> Input {
    Input::Fold {
        accumulator,
        part: 0,
        chunk: 0,
    }
}

impl Pilot {
    /// Of the arrays of the basis from the given one on.
    pub(super) fn widths(&self, from: usize) -> Vec<u32> {
        self.basis[from..].iter().map(|a| a.width).collect()
    }

    /// What they have in one slice.
    pub(super) fn slices_of_basis(&self, from: usize, s: usize) -> Vec<Input> {
        self.basis[from..].iter().map(|a| a.slices[s]).collect()
    }

    pub(super) fn add(
        &mut self,
        work: KrylovWork,
        inputs: Vec<Input>,
        bytes: u64,
        cost: u64,
        stage: u16,
    ) -> TaskId {
        add(
            &mut self.graph,
            SvdWork::Krylov(work),
            inputs,
            bytes,
            cost,
            stage,
        )
    }

    pub(super) fn add_polish(
        &mut self,
        work: PolishWork,
        inputs: Vec<Input>,
        bytes: u64,
        cost: u64,
        stage: u16,
    ) -> TaskId {
        add(
            &mut self.graph,
            SvdWork::Polish(work),
            inputs,
            bytes,
            cost,
            stage,
        )
    }

    /// V of an earlier run, and random columns beside it.
    pub(super) fn begin(
        &mut self,
        start: &[Input],
        given: u32,
        width: u32,
        random: Random,
        stage: u16,
    ) -> Vec<Input> {
        let mut begun = Vec::new();
        for (s, &input) in start.iter().enumerate() {
            let slice = self.slices[s];
            let bytes = f64s(slice.rows as usize, width as usize);
            let work = KrylovWork::Begin {
                slice,
                given,
                width,
                random,
            };
            begun.push(whole(self.add(work, vec![input], bytes, bytes, stage)));
        }
        begun
    }

    pub(super) fn draw(&mut self, width: u32, random: Random, stage: u16) -> Vec<Input> {
        (0..self.slices.len())
            .map(|s| {
                let slice = self.slices[s];
                let bytes = f64s(slice.rows as usize, width as usize);
                let work = KrylovWork::Draw {
                    slice,
                    width,
                    random,
                };
                whole(self.add(work, Vec::new(), bytes, bytes, stage))
            })
            .collect()
    }

    /// Panels of arrays side by side, their numbers as `out`.
    pub(in crate::plan) fn panels(
        &mut self,
        arrays: &[&Array],
        shape: Shape,
        out: Precision,
        stage: u16,
    ) -> Vec<Input> {
        let widths: Vec<u32> = arrays.iter().map(|a| a.width).collect();
        let inputs: Vec<Input> = (0..self.slices.len())
            .flat_map(|s| arrays.iter().map(move |a| a.slices[s]))
            .collect();
        let panels = Panels::of(shape);
        (0..panels.len())
            .map(|p| {
                let bytes = shape.columns * (panels.widths[p] * out.bytes()) as u64;
                let work = KrylovWork::Panel {
                    shape,
                    panel: p as u16,
                    widths: widths.clone(),
                    held: arrays[0].held,
                    out,
                };
                let panel = self.add(work, inputs.clone(), bytes, bytes, stage);
                whole(self.ground.spread(&mut self.graph, panel, shape, p, stage))
            })
            .collect()
    }

    /// Panels of the next block, each as a task that reads A takes it: whole, or where that is so short that joining it
    /// again takes less time than waiting until somebody has, a slice after the other.
    pub(super) fn read_panels(
        &mut self,
        next: &Array,
        shape: Shape,
        stage: u16,
    ) -> Vec<Vec<Input>> {
        let bytes = shape.columns * u64::from(shape.width) * shape.precision.bytes() as u64;
        let one = Panels::of(shape).widths == [shape.width as usize];
        let as_it_stands = next.held == shape.precision && self.ground.view().is_none();
        if one && as_it_stands && bytes <= JOINED {
            return vec![next.slices.clone()];
        }
        let panels = self.panels(&[next], shape, shape.precision, stage);
        panels.into_iter().map(|panel| vec![panel]).collect()
    }

    pub(super) fn power(
        &mut self,
        panels: &[Vec<Input>],
        shape: Shape,
        stage: u16,
    ) -> (AccumulatorId, i32) {
        let extra = fold_bits(shape.precision) - self.ground.norm(shape.precision);
        let blocks = self.ground.blocks.len();
        let parts = self.ground.sided(shape, &self.slices);
        let accumulator = self.ground.sum(&mut self.graph, parts);
        let widths = Panels::of(shape).widths;
        for i in 0..blocks {
            for (p, x) in panels.iter().enumerate() {
                let mut inputs = vec![self.ground.block_input(i), self.ground.shifts_input()];
                inputs.extend(x);
                self.graph.task(Task {
                    work: SvdWork::Power {
                        scale: self.ground.block_scale,
                        shape: self.ground.read(shape),
                        panel: p as u16,
                        extra,
                    },
                    inputs,
                    output: Output::Fold {
                        accumulator,
                        parts: (p as u16, p as u16 + 1),
                        contribution: i as u32,
                    },
                    width: 1,
                    cost: 4 * self.ground.blocks[i].nnz * widths[p] as u64 + 1,
                    stage,
                });
            }
        }
        (accumulator, extra)
    }

    pub(super) fn verify(
        &mut self,
        panels: &[Input],
        weights: Input,
        shape: Shape,
        held: Precision,
        stage: u16,
    ) -> (AccumulatorId, i32) {
        let extra = fold_bits(shape.precision) - self.ground.norm(shape.precision);
        let blocks = self.ground.blocks.len();
        let mut parts = self.ground.sided(shape, &self.slices);
        parts.push(vec![shape.width * shape.width]);
        let count = parts.len() as u16;
        let accumulator = self.ground.sum(&mut self.graph, parts);
        for i in 0..blocks {
            let mut inputs = vec![
                self.ground.block_input(i),
                self.ground.shifts_input(),
                weights,
            ];
            inputs.extend(panels);
            let block = &self.ground.blocks[i];
            let width = u64::from(shape.width);
            self.graph.task(Task {
                work: SvdWork::Polish(PolishWork::Verify {
                    scale: self.ground.block_scale,
                    shape: self.ground.read(shape),
                    held,
                    extra,
                }),
                inputs,
                output: Output::Fold {
                    accumulator,
                    parts: (0, count),
                    contribution: i as u32,
                },
                width: 1,
                cost: 4 * block.nnz * width + 2 * u64::from(block.rows) * width * width + 1,
                stage,
            });
        }
        (accumulator, extra)
    }

    /// Shifts, and what a slice has of a sum.
    pub(super) fn sum_inputs(&self, sum: AccumulatorId, shape: Shape, s: usize) -> Vec<Input> {
        let mut inputs = vec![self.ground.shifts_input()];
        inputs.extend(self.ground.chunks(sum, shape, self.slices.len(), s));
        inputs
    }

    /// What a sum over the blocks comes to.
    pub(super) fn of_sum(&self, sum: AccumulatorId, shape: Shape, extra: i32) -> Columns {
        let slices = 0..self.slices.len();
        Columns {
            given: Given::Sum { shape, extra },
            slices: slices.map(|s| self.sum_inputs(sum, shape, s)).collect(),
            width: shape.width,
        }
    }

    /// X^T W for the arrays of the basis from the given one on; entries are below 2^(59 - bits).
    pub(super) fn cross(
        &mut self,
        from: usize,
        w: &Columns,
        bits: i32,
        stage: u16,
    ) -> AccumulatorId {
        let (held, given, width) = (self.basis[from].held, w.given, w.width);
        let widths = self.widths(from);
        let d: u32 = widths.iter().sum();
        let length = d * width;
        let accumulator = self.graph.accumulator(Accumulator {
            parts: vec![vec![length]],
            contributions: self.slices.len() as u32,
        });
        for (s, w) in w.slices.iter().enumerate() {
            let slice = self.slices[s];
            let mut inputs = self.slices_of_basis(from, s);
            inputs.extend(w);
            self.graph.task(Task {
                work: SvdWork::Krylov(KrylovWork::Cross {
                    slice,
                    widths: widths.clone(),
                    held,
                    given,
                    width,
                    bits,
                }),
                inputs,
                output: Output::Fold {
                    accumulator,
                    parts: (0, 1),
                    contribution: s as u32,
                },
                width: 1,
                cost: 2 * u64::from(slice.rows) * u64::from(length),
                stage,
            });
        }
        accumulator
    }

    pub(super) fn cross_out(
        &mut self,
        sum: AccumulatorId,
        length: u32,
        bits: i32,
        stage: u16,
    ) -> Input {
        let work = KrylovWork::CrossOut { length, bits };
        whole(self.add(
            work,
            vec![whole_sum(sum)],
            f64s(length as usize, 1),
            1,
            stage,
        ))
    }

    pub(super) fn guard_gram(
        &mut self,
        sum: AccumulatorId,
        shape: Shape,
        extra: i32,
        stage: u16,
    ) -> Input {
        let bits = 59 - 4 * self.ground.norm(Precision::F64);
        let guard = self.spec.guard;
        let length = guard * guard;
        let accumulator = self.graph.accumulator(Accumulator {
            parts: vec![vec![length]],
            contributions: self.slices.len() as u32,
        });
        for s in 0..self.slices.len() {
            let slice = self.slices[s];
            let inputs = self.sum_inputs(sum, shape, s);
            self.graph.task(Task {
                work: SvdWork::Polish(PolishWork::GuardGram {
                    shape,
                    slice,
                    extra,
                    guard,
                    bits,
                }),
                inputs,
                output: Output::Fold {
                    accumulator,
                    parts: (0, 1),
                    contribution: s as u32,
                },
                width: 1,
                cost: u64::from(slice.rows) * u64::from(2 * length + 8 * shape.width),
                stage,
            });
        }
        self.cross_out(accumulator, length, bits, stage)
    }

    /// Leaves of W - X C, and of random columns where nothing of it is left. `c`: the sum of [`cross`](Self::cross).
    pub(super) fn fresh(
        &mut self,
        from: usize,
        c: (AccumulatorId, i32),
        w: &Columns,
        refill: Random,
        stage: u16,
    ) -> Vec<(TaskId, u32)> {
        let (held, given, width) = (self.basis[from].held, w.given, w.width);
        let widths = self.widths(from);
        let d: u64 = widths.iter().map(|w| u64::from(*w)).sum();
        let mut leaves = Vec::new();
        for (s, w) in w.slices.iter().enumerate() {
            let slice = self.slices[s];
            let mut inputs = vec![whole_sum(c.0)];
            inputs.extend(self.slices_of_basis(from, s));
            inputs.extend(w);
            let work = KrylovWork::Fresh {
                slice,
                widths: widths.clone(),
                held,
                given,
                width,
                bits: c.1,
                refill,
            };
            let (bytes, h) = leaf_bytes(slice.rows, width);
            let wide = u64::from(width);
            let cost = u64::from(slice.rows) * wide * (2 * d + 8 * wide);
            leaves.push((self.add(work, inputs, bytes, cost, stage), h));
        }
        leaves
    }

    /// W - X C, and how it is to stand.
    pub(super) fn deflate(
        &mut self,
        from: usize,
        c: (AccumulatorId, i32),
        w: &Columns,
        out: Precision,
        stage: u16,
    ) -> Vec<Input> {
        let (held, given, width) = (self.basis[from].held, w.given, w.width);
        let widths = self.widths(from);
        let d: u64 = widths.iter().map(|w| u64::from(*w)).sum();
        let slices = w.slices.iter().enumerate();
        slices
            .map(|(s, w)| {
                let slice = self.slices[s];
                let mut inputs = vec![whole_sum(c.0)];
                inputs.extend(self.slices_of_basis(from, s));
                inputs.extend(w);
                let work = KrylovWork::Deflate {
                    slice,
                    widths: widths.clone(),
                    held,
                    given,
                    width,
                    bits: c.1,
                    out,
                };
                let rows = u64::from(slice.rows);
                let bytes = held_bytes(slice.rows, width, out);
                let cost = 2 * rows * d * u64::from(width);
                whole(self.add(work, inputs, bytes, cost, stage))
            })
            .collect()
    }

    /// The orthonormal factor of W, as `out`, and R.
    pub(super) fn orthonormal(
        &mut self,
        w: &[Input],
        width: u32,
        out: Precision,
        stage: u16,
    ) -> (Array, Input) {
        let mut leaves = Vec::new();
        for (s, &w) in w.iter().enumerate() {
            let rows = self.slices[s].rows;
            let (bytes, h) = leaf_bytes(rows, width);
            let cost = 4 * u64::from(rows) * u64::from(width) * u64::from(width);
            let work = KrylovWork::Leaf { rows, width };
            leaves.push((self.add(work, vec![w], bytes, cost, stage), h));
        }
        let (q, r) = self.climb(&leaves, width, out, stage);
        let mut tasks = Vec::new();
        for (s, inputs) in q.slices.into_iter().enumerate() {
            let rows = self.slices[s].rows;
            let work = KrylovWork::Rows { rows, width, out };
            let cost = 2 * u64::from(rows) * u64::from(width) * u64::from(width);
            tasks.push(self.add(work, inputs, held_bytes(rows, width, out), cost, stage));
        }
        (Array::of(tasks, width, out), r)
    }

    /// What leaves, each with its height, come to together: the orthonormal factor, as `out`, and R.
    pub(super) fn climb(
        &mut self,
        leaves: &[(TaskId, u32)],
        width: u32,
        out: Precision,
        stage: u16,
    ) -> (Columns, Input) {
        let l = width as usize;
        let tree = Tree::grow(&mut self.graph, width, leaves, stage);
        let mut slices = Vec::new();
        for (s, &(leaf, h)) in leaves.iter().enumerate() {
            let rows = self.slices[s].rows;
            let r = f64s(h as usize, l);
            let mut inputs = vec![Input::Result {
                task: leaf,
                range: Some((r, r + f64s(rows as usize, h as usize))),
            }];
            inputs.extend(tree.above_leaf(s));
            slices.push(inputs);
        }
        let q = Columns {
            given: Given::Leaf(out),
            slices,
            width,
        };
        (q, tree.root_r())
    }
}

/// Bytes of R and Q of a leaf, and its height.
pub(super) fn leaf_bytes(rows: u32, width: u32) -> (u64, u32) {
    let h = rows.min(width);
    let (rows, wide, tall) = (rows as usize, width as usize, h as usize);
    (f64s(tall, wide) + f64s(rows, tall), h)
}

/// Bytes of an array that stands so.
pub(super) fn held_bytes(rows: u32, columns: u32, held: Precision) -> u64 {
    u64::from(rows) * u64::from(columns) * held.bytes() as u64
}

pub(super) fn task_of(input: &Input) -> Option<TaskId> {
    match input {
        Input::Result { task, .. } => Some(*task),
        Input::Block { .. } | Input::Fold { .. } => None,
    }
}
