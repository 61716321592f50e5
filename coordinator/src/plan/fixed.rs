//! Plans whose tasks are all known beforehand: a fixed number of power iterations, the exact plan, and the split reads in
//! which others may end.

use shared::{
    farm::{
        graph::{Accumulator, Checkpoint, Graph, Input, Output, Task},
        ids::{AccumulatorId, TaskId},
    },
    svd::{
        Shape, Slice, SvdWork,
        layout::{Panels, f64s, slices},
    },
};

use super::{
    Sides, Spectrum, Wanted,
    ground::{Ground, add, fold_bits, whole},
    tree::Tree,
};

/// What becomes of U after the split reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// A pass forms it and measures ||A v - s u||.
    Delivered,
    /// That pass is taken for what it measures: nothing else can say how good the triplets are.
    Measured,
    /// X is the identity, so A V = Q (R V), and R V - W diag(sigma) measures it without a pass.
    Known,
    /// Neither formed nor measured.
    Skipped,
}

impl Left {
    /// Whether a pass is taken.
    pub fn lifts(self) -> bool {
        match self {
            Self::Delivered | Self::Measured => true,
            Self::Known | Self::Skipped => false,
        }
    }

    fn of(sides: Sides, otherwise: Self) -> Self {
        if sides.left {
            Self::Delivered
        } else {
            otherwise
        }
    }
}

/// Tasks of the split reads, and of the power iterations before them.
pub struct Builder<'a> {
    ground: &'a Ground,
    shape: Shape,
    panels: Panels,
    slices: Vec<Slice>,
    graph: &'a mut Graph<SvdWork>,
}

impl<'a> Builder<'a> {
    pub fn new(ground: &'a Ground, shape: Shape, graph: &'a mut Graph<SvdWork>) -> Self {
        Self {
            ground,
            shape,
            panels: Panels::of(shape),
            slices: slices(shape),
            graph,
        }
    }

    /// The plan with a fixed number of power iterations.
    pub fn power_iterations(
        &mut self,
        rank: u32,
        iterations: u32,
        seed: u64,
        sides: Sides,
    ) -> Wanted {
        let mut x = self.sketch(seed);
        for pass in 1..=iterations {
            let stage = self
                .graph
                .stage(format!("power pass {pass} of {iterations}"));
            let (sum, extra) = self.power(&x, stage);
            let stage = self.graph.stage(format!("basis {pass} of {iterations}"));
            let tree = self.tree_of_sum(sum, extra, stage);
            x = self.basis(&tree, stage);
        }
        self.split(rank, &x, sides.right, Left::of(sides, Left::Skipped))
    }

    /// The exact plan: X = I, so that A = Q R is all of A.
    pub fn exact(&mut self, rank: u32, sides: Sides) -> Wanted {
        let stage = self.graph.stage("identity");
        let shape = self.shape;
        let x: Vec<Input> = (0..self.panels.len())
            .map(|p| {
                let bytes = self.panel_bytes(&self.panels, p);
                let work = SvdWork::Identity {
                    shape,
                    panel: p as u16,
                };
                let panel = self.add(work, Vec::new(), bytes, bytes, stage);
                whole(self.spread(panel, shape, p, stage))
            })
            .collect();
        self.split(rank, &x, sides.right, Left::of(sides, Left::Known))
    }

    /// Two split reads for a better X: Y = A X = Q R, X <- the Q of A^T Q. What of X is not in the wanted space shrinks by
    /// sigma_{l+1} / sigma_k each.
    pub fn refine(&mut self, x: &[Input]) -> Vec<Input> {
        let stage = self.graph.stage("range pass before");
        let range = self.range(x, stage);
        let stage = self.graph.stage("projection pass before");
        let (sum, extra) = self.project(x, &range, stage);
        let stage = self.graph.stage("basis before");
        let tree = self.tree_of_sum(sum, extra, stage);
        let x = self.basis(&tree, stage);
        // What is kept before it may be what has decided to come here.
        if let Some(kept) = self.graph.checkpoints.last_mut() {
            kept.supersedes.clear();
        }
        x
    }

    /// Two split reads and the lift: Y = A X = Q R, B^T = A^T Q, small SVD, U and V. X need not be orthonormal. V is
    /// delivered if `right` says so.
    pub fn split(&mut self, rank: u32, x: &[Input], right: bool, left: Left) -> Wanted {
        let stage = self.graph.stage("range pass");
        let range = self.range(x, stage);
        self.graph.checkpoints.push(Checkpoint {
            tasks: range.pushed(),
            supersedes: Vec::new(),
        });
        let stage = self.graph.stage("projection pass");
        let (b, extra) = self.project(x, &range, stage);
        let stage = self.graph.stage("small SVD");
        let tree = self.tree_of_sum(b, extra, stage);
        let (mut wanted, signs) = self.ending(rank, &range, b, extra, &tree, left);
        if left.lifts() {
            self.lift(&mut wanted, signs, x, &range, left == Left::Delivered);
        }
        if !right {
            wanted.right.clear();
        }
        self.deliver(&wanted);
        wanted
    }

    pub fn add(
        &mut self,
        work: SvdWork,
        inputs: Vec<Input>,
        bytes: u64,
        cost: u64,
        stage: u16,
    ) -> TaskId {
        add(self.graph, work, inputs, bytes, cost, stage)
    }

    fn number(&self) -> u64 {
        self.shape.precision.bytes() as u64
    }

    fn panel_bytes(&self, panels: &Panels, p: usize) -> u64 {
        self.shape.columns * panels.widths[p] as u64 * self.number()
    }

    /// An n x l sum over all blocks.
    fn sided_sum(&mut self) -> AccumulatorId {
        let parts = self.ground.sided(self.shape, &self.slices);
        self.ground.sum(self.graph, parts)
    }

    fn spread(&mut self, panel: TaskId, shape: Shape, p: usize, stage: u16) -> TaskId {
        self.ground.spread(self.graph, panel, shape, p, stage)
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
                let panel = self.add(work, Vec::new(), bytes, bytes, stage);
                whole(self.spread(panel, shape, p, stage))
            })
            .collect()
    }

    fn power(&mut self, x: &[Input], stage: u16) -> (AccumulatorId, i32) {
        let extra = fold_bits(self.shape.precision) - self.ground.norm(self.shape.precision);
        let accumulator = self.sided_sum();
        for i in 0..self.ground.blocks.len() {
            for (p, &x) in x.iter().enumerate() {
                self.graph.task(Task {
                    work: SvdWork::Power {
                        scale: self.ground.block_scale,
                        shape: self.ground.read(self.shape),
                        panel: p as u16,
                        extra,
                    },
                    inputs: vec![self.ground.block_input(i), self.ground.shifts_input(), x],
                    output: Output::Fold {
                        accumulator,
                        parts: (p as u16, p as u16 + 1),
                        contribution: i as u32,
                    },
                    width: 1,
                    cost: 4 * self.ground.blocks[i].nnz * self.panels.widths[p] as u64 + 1,
                    stage,
                });
            }
        }
        (accumulator, extra)
    }

    fn tree_of_sum(&mut self, sum: AccumulatorId, extra: i32, stage: u16) -> Tree {
        let l = self.shape.width as usize;
        let mut leaves = Vec::new();
        for (s, &slice) in self.slices.clone().iter().enumerate() {
            let rows = slice.rows as usize;
            let h = rows.min(l);
            let mut inputs = vec![self.ground.shifts_input()];
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
        Tree::grow(self.graph, self.shape.width, &leaves, stage)
    }

    fn chunks(&self, accumulator: AccumulatorId, slice: usize) -> Vec<Input> {
        let slices = self.slices.len();
        self.ground.chunks(accumulator, self.shape, slices, slice)
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
            supersedes: before.map(|c| c as u16).into_iter().collect(),
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
            let panel = self.add(work, inputs, bytes, bytes, stage);
            x.push(whole(self.spread(panel, self.shape, p, stage)));
        }
        x
    }

    /// Cost of Y_i = A_i X and its QR.
    fn range_cost(&self, i: usize) -> u64 {
        let block = &self.ground.blocks[i];
        let l = u64::from(self.shape.width);
        2 * block.nnz * l + 4 * u64::from(block.rows) * l * l
    }

    fn range(&mut self, x: &[Input], stage: u16) -> Tree {
        let l = self.shape.width as usize;
        let mut leaves = Vec::new();
        for i in 0..self.ground.blocks.len() {
            let h = (self.ground.blocks[i].rows as usize).min(l);
            let mut inputs = vec![self.ground.block_input(i)];
            inputs.extend(x);
            let work = SvdWork::RangeLeaf {
                scale: self.ground.block_scale,
                shape: self.ground.read(self.shape),
            };
            let cost = self.range_cost(i);
            leaves.push((self.add(work, inputs, f64s(h, l), cost, stage), h as u32));
        }
        Tree::grow(self.graph, self.shape.width, &leaves, stage)
    }

    fn project(&mut self, x: &[Input], range: &Tree, stage: u16) -> (AccumulatorId, i32) {
        let extra = fold_bits(self.shape.precision);
        let accumulator = self.sided_sum();
        for i in 0..self.ground.blocks.len() {
            let mut inputs = vec![self.ground.block_input(i), self.ground.shifts_input()];
            inputs.extend(x);
            inputs.extend(range.above_leaf(i));
            self.graph.task(Task {
                work: SvdWork::Project {
                    scale: self.ground.block_scale,
                    shape: self.ground.read(self.shape),
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

    /// Everything after the factor R of B^T but the lift: small SVD, V, and its checks.
    fn ending(
        &mut self,
        rank: u32,
        range: &Tree,
        b: AccumulatorId,
        extra: i32,
        tree: &Tree,
        left: Left,
    ) -> (Wanted, Input) {
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
        // A^T U - V S from the projection, and V^T V.
        let right_gram = self.gram_sum(rank, right.len());
        let mut partial = Vec::new();
        for (s, &(task, slice)) in right.iter().enumerate() {
            let mut inputs = vec![self.ground.shifts_input(), small, signs, whole(task)];
            inputs.extend(self.chunks(b, s));
            let work = SvdWork::RightResidual {
                shape: self.shape,
                slice,
                rank,
                extra,
            };
            let cost = 2 * u64::from(slice.rows) * (l * k) as u64;
            partial.push(whole(self.add(work, inputs, f64s(k, 1), cost, stage)));
            self.gram(right_gram, rank, whole(task), slice.rows, s, stage);
        }
        let right_residual = self.add(SvdWork::Sum { rank }, partial, f64s(k, 1), 1, stage);
        let right_gram = self.gram_out(right_gram, rank, stage);
        let left_residual = (left == Left::Known).then(|| {
            let mut inputs = vec![range.root_r(), small, signs];
            inputs.extend(right.iter().map(|&(task, _)| whole(task)));
            let work = SvdWork::FactorResidual {
                shape: self.shape,
                rank,
            };
            let cost = (2 * l * l * k) as u64;
            self.add(work, inputs, f64s(k, 1), cost, stage)
        });
        // The sum B goes with its agents, so all that is read from it is kept.
        let mut kept = vec![small_svd, signs_task, right_residual, right_gram];
        kept.extend(left_residual);
        kept.extend(right.iter().map(|&(task, _)| task));
        self.graph.checkpoints.push(Checkpoint {
            tasks: kept,
            supersedes: Vec::new(),
        });
        let wanted = Wanted {
            spectrum: Spectrum::Small {
                task: small_svd,
                width: self.shape.width,
            },
            rank,
            rows: self.shape.precision,
            left_head: 0,
            right,
            left: Vec::new(),
            left_residual,
            right_residual,
            left_as_written: false,
            left_gram: None,
            right_gram,
        };
        (wanted, signs)
    }

    /// U, block by block, with A V - U S and U^T U.
    fn lift(
        &mut self,
        wanted: &mut Wanted,
        signs: Input,
        x: &[Input],
        range: &Tree,
        deliver: bool,
    ) {
        let rank = wanted.rank;
        let k = rank as usize;
        let small = whole(wanted.spectrum.task());
        let factor_shape = Shape {
            width: rank,
            ..self.shape
        };
        let stage = self.graph.stage("lift pass");
        let factor_panels = Panels::of(factor_shape);
        let v: Vec<Input> = (0..factor_panels.len())
            .map(|p| {
                let bytes = self.panel_bytes(&factor_panels, p);
                let work = SvdWork::RightPanel {
                    shape: factor_shape,
                    panel: p as u16,
                };
                let inputs = wanted.right.iter().map(|&(task, _)| whole(task)).collect();
                let panel = self.add(work, inputs, bytes, bytes, stage);
                whole(self.spread(panel, factor_shape, p, stage))
            })
            .collect();
        let left_gram = self.gram_sum(rank, self.ground.blocks.len());
        let mut left = Vec::new();
        let mut partial = Vec::new();
        for i in 0..self.ground.blocks.len() {
            let (first_row, rows, nnz) = {
                let block = &self.ground.blocks[i];
                (block.first_row, block.rows, block.nnz)
            };
            let mut inputs = vec![self.ground.block_input(i)];
            inputs.extend(x);
            inputs.extend(range.above_leaf(i));
            inputs.extend([small, signs]);
            let work = SvdWork::Lift {
                scale: self.ground.block_scale,
                shape: self.ground.read(self.shape),
                rank,
            };
            let bytes = u64::from(rows) * u64::from(rank) * self.number();
            let cost = 2 * self.range_cost(i);
            let u = self.add(work, inputs, bytes, cost, stage);
            if deliver {
                left.push((u, first_row, rows));
            }
            let mut inputs = vec![self.ground.block_input(i), small, whole(u)];
            inputs.extend(&v);
            let work = SvdWork::LeftResidual {
                scale: self.ground.block_scale,
                shape: self.ground.read(factor_shape),
            };
            let cost = 2 * nnz * u64::from(rank);
            partial.push(whole(self.add(work, inputs, f64s(k, 1), cost, stage)));
            self.gram(left_gram, rank, whole(u), rows, i, stage);
        }
        let left_residual = self.add(SvdWork::Sum { rank }, partial, f64s(k, 1), 1, stage);
        wanted.left = left;
        wanted.left_residual = Some(left_residual);
        wanted.left_gram = Some(self.gram_out(left_gram, rank, stage));
    }

    /// All of it is delivered.
    pub fn deliver(&mut self, wanted: &Wanted) {
        let deliveries = &mut self.graph.deliveries;
        deliveries.extend([wanted.spectrum.task(), wanted.right_residual]);
        deliveries.extend(wanted.left_residual);
        deliveries.push(wanted.right_gram);
        deliveries.extend(wanted.left_gram);
        deliveries.extend(wanted.right.iter().map(|&(task, _)| task));
        deliveries.extend(wanted.left.iter().map(|&(task, ..)| task));
    }

    pub fn gram_sum(&mut self, rank: u32, contributions: usize) -> AccumulatorId {
        self.graph.accumulator(Accumulator {
            parts: vec![vec![rank * rank]],
            contributions: contributions as u32,
        })
    }

    pub fn gram(
        &mut self,
        accumulator: AccumulatorId,
        rank: u32,
        of: Input,
        rows: u32,
        contribution: usize,
        stage: u16,
    ) {
        self.graph.task(Task {
            work: SvdWork::Gram {
                precision: self.shape.precision,
                rank,
            },
            inputs: vec![of],
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

    pub fn gram_out(&mut self, accumulator: AccumulatorId, rank: u32, stage: u16) -> TaskId {
        let sum = Input::Fold {
            accumulator,
            part: 0,
            chunk: 0,
        };
        let bytes = f64s(rank as usize, rank as usize);
        self.add(SvdWork::GramOut { rank }, vec![sum], bytes, 1, stage)
    }
}
