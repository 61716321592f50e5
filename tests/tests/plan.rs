//! The plan, run one task after the other.

use coordinator::{
    factors::{Collector, Quality, Sink},
    failure::Failure,
    job::resolved::{FactorSpec, Precision, Which},
    memory::blocks_of,
    plan::{Plan, Sides},
};
use shared::farm::{ids::ContentHash, sequential};
use tests::{iterated, random_sparse, stored, with_spectrum};

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
