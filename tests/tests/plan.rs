//! The plan, run one task after the other.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicBool},
};

use coordinator::{
    engine,
    factors::{Collector, Quality, Sink},
    failure::Failure,
    farm::{EmbeddedOptions, run_embedded},
    job::resolved::{FactorSpec, Method, Precision, Which},
    memory::blocks_of,
    plan::{Plan, Sides},
};
use shared::{
    farm::{
        graph::{Graph, Input, Output, Task},
        ids::{ContentHash, TaskId},
        sequential,
        work::Work,
    },
    svd::SvdWork,
};
use tests::{iterated, random_sparse, stored, until, with_spectrum};

#[derive(Default)]
struct Rows {
    rank: usize,
    left: Vec<(u64, usize)>,
    right: Vec<(u64, usize)>,
}

impl Sink for Rows {
    fn begin(&mut self, rank: usize, _: Sides) -> Result<(), Failure> {
        self.rank = rank;
        Ok(())
    }

    fn right(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure> {
        self.right.push((first_row, rows.len()));
        Ok(())
    }

    fn left(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure> {
        self.left.push((first_row, rows.len()));
        Ok(())
    }
}

fn run(matrix: &sprs::CsMat<f64>, factor: &FactorSpec) -> (Quality, Rows) {
    let (facts, blocks) = blocks_of(matrix.view()).unwrap();
    let plan = Plan::new(&facts, factor, Sides::BOTH).unwrap();
    assert_eq!(plan.graph.validate(), Ok(()));
    let shifts = ContentHash::of(plan.shifts().as_slice());
    let delivered = sequential::run(&plan.graph, |hash| {
        if *hash == shifts {
            Some(plan.shifts().clone())
        } else {
            blocks.get(hash).cloned()
        }
    })
    .unwrap();
    let mut rows = Rows::default();
    let mut collector = Collector::new(&plan, false, &mut rows);
    for (task, bytes) in delivered {
        collector.deliver(task, bytes).unwrap();
    }
    (collector.finish().unwrap(), rows)
}

#[test]
fn a_plan_run_in_order_gives_the_spectrum_and_every_row_once() {
    let sigma: Vec<f64> = (0..30).map(|i| 0.7f64.powi(i)).collect();
    // More than one slice, block and tree level.
    for (rows, columns) in [(300, 120), (20_000, 60), (5000, 4500)] {
        let matrix = if rows * columns < 1_000_000 {
            stored(&with_spectrum(rows, columns, &sigma))
        } else {
            random_sparse(rows, columns, 0.002, 3, |r| (1 + r.below(5)) as f64)
        };
        for precision in [Precision::F32, Precision::F64] {
            let factor = iterated(12, 3, precision);
            let (quality, rows_seen) = run(&matrix, &factor);
            assert_eq!(rows_seen.rank, 12);
            let (orthonormal, number) = match precision {
                Precision::F32 => (1e-5, 4),
                Precision::F64 => (1e-12, 8),
            };
            assert!(quality.left_orthogonality.unwrap() < orthonormal);
            assert!(quality.right_orthogonality < orthonormal);
            for (seen, wanted) in [(rows_seen.left, rows), (rows_seen.right, columns)] {
                let mut seen = seen;
                seen.sort_unstable();
                let mut next = 0;
                for (first, bytes) in seen {
                    assert_eq!(first, next);
                    next += (bytes / (12 * number)) as u64;
                }
                assert_eq!(next, wanted as u64);
            }
            if rows == 300 {
                for (found, expected) in quality.sigma.iter().zip(&sigma) {
                    assert!((found - expected).abs() < 1e-5 * expected);
                }
                for residual in &quality.residuals().unwrap() {
                    assert!(*residual < 1e-3);
                }
            }
        }
    }
}

#[test]
fn only_matrix_and_job_decide_the_plan() {
    let matrix = random_sparse(500, 80, 0.1, 1, |r| r.normal());
    let (facts, _) = blocks_of(matrix.view()).unwrap();
    let mut factor = iterated(7, 2, Precision::F32);
    factor.seed = 3;
    let hash = |factor: &FactorSpec, sides| Plan::new(&facts, factor, sides).unwrap().hash;
    let plan = hash(&factor, Sides::BOTH);
    assert_eq!(plan, hash(&factor, Sides::BOTH));
    for which in [Which::Sv, Which::S] {
        assert_ne!(plan, hash(&factor, Sides::of(which, false)));
    }
    factor.seed = 4;
    assert_ne!(plan, hash(&factor, Sides::BOTH));
}

/// All of a plan that grows, from the first task to the last.
fn grown(matrix: &sprs::CsMat<f64>, factor: &FactorSpec) -> Arc<Graph<SvdWork>> {
    let (facts, blocks) = blocks_of(matrix.view()).unwrap();
    let plan = Plan::new(&facts, factor, Sides::BOTH).unwrap();
    let mut pilot = plan.pilot().expect("a plan that grows");
    let mut graph = Arc::clone(&plan.graph);
    run_embedded(
        Arc::clone(&plan.graph),
        plan.hash,
        engine::inputs(&plan, Arc::new(blocks)),
        &EmbeddedOptions::new(2, 1 << 30),
        &mut |task, block| {
            let longer = pilot.take(task, &block)?;
            if let Some(longer) = &longer {
                graph = Arc::clone(longer);
            }
            Ok::<_, Failure>(longer)
        },
        &mut |_| {},
        &AtomicBool::new(false),
    )
    .unwrap();
    graph
}

fn reads(task: &Task<SvdWork>) -> bool {
    ["power", "verify", "lift"].contains(&task.work.verb())
}

/// What is kept when all checkpoints up to that stage are complete.
fn kept(graph: &Graph<SvdWork>, stage: u16) -> HashSet<TaskId> {
    let complete: Vec<usize> = (0..graph.checkpoints.len())
        .filter(|&c| {
            let mut tasks = graph.checkpoints[c].tasks.iter();
            tasks.all(|t| graph.tasks[t.0 as usize].stage <= stage)
        })
        .collect();
    let mut superseded = HashSet::new();
    let mut next = complete.clone();
    while let Some(c) = next.pop() {
        for &before in &graph.checkpoints[c].supersedes {
            if superseded.insert(usize::from(before)) {
                next.push(usize::from(before));
            }
        }
    }
    let left = complete.iter().filter(|c| !superseded.contains(c));
    left.flat_map(|&c| graph.checkpoints[c].tasks.iter().copied())
        .collect()
}

/// A run that was broken off after some stage and is gone on with reads A again for the last of its reads at most: what
/// supersedes a checkpoint must hold all that is read of it later.
#[test]
fn a_checkpoint_is_superseded_only_by_what_makes_up_for_it() {
    let matrix = random_sparse(3000, 700, 0.03, 5, |r| (1 + r.below(10)) as f64 / 2.0);
    let steep: Vec<f64> = (0..60).map(|i| 0.6f64.powi(i)).collect();
    let steep = stored(&with_spectrum(600, 300, &steep));
    for (matrix, tolerance, precision, method) in [
        (&matrix, 1e-2, Precision::F32, Method::Krylov),
        (&matrix, 1e-6, Precision::F64, Method::Krylov),
        (&matrix, 1e-7, Precision::F32, Method::Krylov),
        (&steep, 1e-3, Precision::F32, Method::Krylov),
        (&matrix, 1e-5, Precision::F32, Method::Gram),
    ] {
        let mut factor = until(20, tolerance, precision);
        factor.method = method;
        factor.block = Some(16);
        factor.basis = Some(112);
        let graph = grown(matrix, &factor);
        let mut contributors: HashMap<u32, Vec<usize>> = HashMap::new();
        for (index, task) in graph.tasks.iter().enumerate() {
            if let Output::Fold { accumulator, .. } = task.output {
                contributors.entry(accumulator.0).or_default().push(index);
            }
        }
        for stage in 0..graph.stages.len() as u16 {
            let kept = kept(&graph, stage);
            let last_read = graph
                .tasks
                .iter()
                .filter(|task| task.stage <= stage && reads(task))
                .map(|task| task.stage)
                .max();
            let mut done = HashSet::new();
            let mut next: Vec<usize> = (0..graph.tasks.len())
                .filter(|&t| graph.tasks[t].stage > stage)
                .collect();
            while let Some(index) = next.pop() {
                if !done.insert(index) {
                    continue;
                }
                let task = &graph.tasks[index];
                assert!(
                    !reads(task) || Some(task.stage) >= last_read,
                    "{method:?} {precision:?} {tolerance:e}: broken off after {}, it does {} of {} again",
                    graph.stages[usize::from(stage)],
                    task.work.verb(),
                    graph.stages[usize::from(task.stage)],
                );
                for input in &task.inputs {
                    match *input {
                        Input::Block { .. } => {}
                        Input::Result { task, .. } if kept.contains(&task) => {}
                        Input::Result { task, .. } => next.push(task.0 as usize),
                        Input::Fold { accumulator, .. } => {
                            next.extend(&contributors[&accumulator.0]);
                        }
                    }
                }
            }
        }
    }
}
