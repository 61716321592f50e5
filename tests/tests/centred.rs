//! Centring and scaling against matrices that were centred and scaled densely, by this file's own arithmetic.

use coordinator::{
    engine::Hands,
    failure::ExitCode,
    job::resolved::{
        Accuracy, Center, FactorSpec, Method, Precision, Scale, Tolerance, ToleranceKind,
    },
    library::{Svd, svd},
    output::certificate::Status,
};
use ndarray::Array2;
use sprs::CsMat;
use tests::{Random, dense_sigma, iterated, orthogonality, random_sparse, residuals, stored};

fn hands() -> Hands {
    Hands::one(2, 1 << 30)
}

fn until(rank: u32, tolerance: f64, precision: Precision) -> FactorSpec {
    FactorSpec {
        accuracy: Accuracy::Tolerance(Tolerance {
            value: tolerance,
            kind: ToleranceKind::Residual,
            max_reads: 100,
        }),
        ..iterated(rank, 0, precision)
    }
}

/// The matrix as it is to be factored, and which of its entries count.
fn densely(matrix: &CsMat<f64>, center: Center, scale: Scale) -> Array2<f64> {
    let a = matrix.to_dense();
    let (m, n) = a.dim();
    let observed = matches!(
        center,
        Center::ObservedColumns | Center::ObservedRows | Center::ObservedBoth
    );
    let counts = |i: usize, j: usize| !observed || matrix.get(i, j).is_some();
    let mean = |of: &mut dyn Iterator<Item = (usize, usize)>| {
        let there: Vec<f64> = of.filter(|&(i, j)| counts(i, j)).map(|at| a[at]).collect();
        // About the first, so that a large mean costs no digits.
        let about = there.first().copied().unwrap_or(0.0);
        about + there.iter().map(|x| x - about).sum::<f64>() / there.len().max(1) as f64
    };
    let rows: Vec<f64> = (0..m).map(|i| mean(&mut (0..n).map(|j| (i, j)))).collect();
    let columns: Vec<f64> = (0..n).map(|j| mean(&mut (0..m).map(|i| (i, j)))).collect();
    let all = mean(&mut (0..m).flat_map(|i| (0..n).map(move |j| (i, j))));
    let taken = |i: usize, j: usize| match center {
        Center::None => 0.0,
        Center::Columns | Center::ObservedColumns => columns[j],
        Center::Rows | Center::ObservedRows => rows[i],
        Center::Both | Center::ObservedBoth => rows[i] + columns[j] - all,
    };
    let mut out = Array2::from_shape_fn((m, n), |(i, j)| {
        if counts(i, j) {
            a[(i, j)] - taken(i, j)
        } else {
            0.0
        }
    });
    if scale == Scale::Columns {
        for (j, mut column) in out.columns_mut().into_iter().enumerate() {
            let there: Vec<f64> = (0..m)
                .filter(|&i| counts(i, j))
                .map(|i| column[i])
                .collect();
            let count = there.len().max(1) as f64;
            let mean = there.iter().sum::<f64>() / count;
            let variance = there.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            if variance > 1e-20 {
                column /= variance.sqrt();
            }
        }
    }
    out
}

/// Whatever must hold of factors of `dense`, in f64.
fn holds(dense: &Array2<f64>, factors: &Svd, relative: f64, what: &str) {
    let exact = dense_sigma(dense);
    for (i, (s, exact_s)) in factors.s.iter().zip(&exact).enumerate() {
        assert!(
            (s - exact_s).abs() <= relative * exact[0],
            "{what}: sigma {i} is {s}, not {exact_s}"
        );
    }
    let found = residuals(&stored(dense), &factors.u, &factors.s, &factors.vt);
    for (i, (&told, &found)) in factors.residuals.iter().zip(&found).enumerate() {
        let rounding = 200.0 * relative * factors.s[0] / factors.s[i];
        assert!(
            told >= found * (1.0 - 1e-6) - rounding && told <= 1.05 * found + rounding,
            "{what}: residual {i} is told as {told:e}, found {found:e}"
        );
    }
    let (u, v) = (
        orthogonality(&factors.u),
        orthogonality(&factors.vt.t().to_owned()),
    );
    assert!(u < 1e-12 && v < 1e-12, "{what}: U {u:e}, V {v:e}");
    let squares: f64 = dense.iter().map(|x| x * x).sum();
    let explained = factors.s[0] * factors.s[0] / squares;
    let told = factors.certificate.explained[0];
    assert!(
        (told - explained).abs() <= 1e-10,
        "{what}: {told} explained, not {explained}"
    );
}

/// Ratings, normal numbers, and numbers of f32 with a stored zero, an empty row and an empty column.
fn matrices() -> Vec<CsMat<f64>> {
    let mut holes = sprs::TriMat::new((220, 90));
    let mut random = Random(9);
    for row in 0..220 {
        for column in 0..90 {
            if row != 17 && column != 5 && random.one_in(6) {
                let value = if random.one_in(20) {
                    0.0
                } else {
                    f64::from(random.normal() as f32) + 3.0
                };
                holes.add_triplet(row, column, f64::from(value as f32));
            }
        }
    }
    let holes: CsMat<f64> = holes.to_csr();
    let wide = holes.transpose_view().to_csr();
    vec![
        random_sparse(300, 110, 0.2, 1, |r| (1 + r.below(10)) as f64 / 2.0),
        random_sparse(100, 260, 0.3, 2, |r| r.normal() + 1.0),
        holes,
        wide,
    ]
}

#[test]
fn every_kind_is_that_of_the_dense_matrix() {
    for (at, matrix) in matrices().iter().enumerate() {
        for (word, center) in Center::WORDS {
            for scale in [Scale::None, Scale::Columns] {
                let dense = densely(matrix, center, scale);
                for method in [Method::Krylov, Method::Exact, Method::Gram] {
                    let factor = FactorSpec {
                        center,
                        scale,
                        method,
                        block: Some(8),
                        ..until(6, 1e-9, Precision::F64)
                    };
                    let what = format!("matrix {at}, {word}, {scale:?}, {method:?}");
                    let factors = svd(matrix.view(), &factor, &hands())
                        .unwrap_or_else(|why| panic!("{what}: {why:?}"));
                    assert_eq!(factors.certificate.status, Status::Converged, "{what}");
                    assert_eq!(factors.s.len(), 6, "{what}");
                    holds(&dense, &factors, 1e-12, &what);
                }
            }
        }
    }
}

#[test]
fn cores_and_agents_change_no_bit() {
    let matrix = random_sparse(9000, 3000, 0.004, 4, |r| (1 + r.below(10)) as f64 / 2.0);
    let turned = matrix.transpose_view().to_csr();
    for matrix in [&matrix, &turned] {
        for (center, scale) in [
            (Center::Both, Scale::Columns),
            (Center::ObservedBoth, Scale::None),
        ] {
            let factor = FactorSpec {
                center,
                scale,
                ..until(5, 0.5, Precision::F32)
            };
            let run = |agents: usize, cores: usize| {
                let hands = Hands {
                    agents: vec![(cores, 1 << 30); agents],
                };
                svd(matrix.view(), &factor, &hands).unwrap().hash
            };
            let wanted = run(1, 1);
            assert_eq!(run(1, 3), wanted, "{center:?}");
            assert_eq!(run(3, 1), wanted, "{center:?}");
        }
    }
}

/// Entries near 1000, all there, and what they differ in is small and of a spectrum that falls: f32 sees nothing of it.
#[test]
fn a_mean_that_dwarfs_the_rest_costs_no_tolerance() {
    let sigma: Vec<f64> = (0..40).map(|i| 0.8f64.powi(i)).collect();
    let small = tests::with_spectrum(400, 150, &sigma);
    let matrix = stored(&small.mapv(|x| x + 1000.0));
    for center in [Center::Columns, Center::Rows, Center::Both] {
        let dense = densely(&matrix, center, Scale::None);
        let exact = dense_sigma(&dense);
        for precision in [Precision::F32, Precision::F64] {
            for method in [Method::Krylov, Method::Exact, Method::Gram] {
                let factor = FactorSpec {
                    center,
                    method,
                    block: Some(8),
                    ..until(8, 1e-4, precision)
                };
                let factors = svd(matrix.view(), &factor, &hands()).unwrap();
                let what = format!("{center:?}, {precision:?}, {method:?}");
                assert_eq!(factors.certificate.status, Status::Converged, "{what}");
                let found = residuals(&stored(&dense), &factors.u, &factors.s, &factors.vt);
                assert!(found.iter().all(|r| *r < 1.01e-4), "{what}: {found:?}");
                for (s, exact) in factors.s.iter().zip(&exact) {
                    assert!((s - exact).abs() < 1e-7 * exact, "{what}: {s}, {exact}");
                }
            }
        }
        let counted = FactorSpec {
            center,
            ..iterated(8, 3, Precision::F32)
        };
        let refused = svd(matrix.view(), &counted, &hands()).unwrap_err();
        assert_eq!(refused.code, ExitCode::Job);
        assert!(refused.to_string().contains("f32 cannot tell"), "{refused}");
    }
}

/// scikit-learn #20589: a flat spectrum, where a few iterations from a random start are badly wrong.
#[test]
fn a_flat_spectrum_is_exact() {
    let mut random = Random(11);
    let dense = Array2::from_shape_fn((20_000, 20), |_| random.normal() + 2.0);
    let matrix = stored(&dense);
    let factor = FactorSpec {
        center: Center::Columns,
        ..until(1, 1e-10, Precision::F64)
    };
    let factors = svd(matrix.view(), &factor, &hands()).unwrap();
    holds(
        &densely(&matrix, Center::Columns, Scale::None),
        &factors,
        1e-12,
        "flat",
    );
    let variance = factors.s[0] * factors.s[0] / 19_999.0;
    let told = factors.certificate.explained_variance.as_ref().unwrap()[0];
    assert!((told - variance).abs() < 1e-12 * variance);
}

#[test]
fn power_iterations_and_far_deviations_hold_too() {
    let mut matrix = random_sparse(400, 60, 0.4, 6, |r| r.normal() + 1.0);
    // Far from 1, and deviations that f32 cannot hold beside each other.
    let mut far = sprs::TriMat::new(matrix.shape());
    for (&value, (row, column)) in &matrix {
        let unit = if column < 30 { 1.0 } else { 1e-60 };
        far.add_triplet(row, column, value * unit);
    }
    let standard = |matrix: &CsMat<f64>| {
        let factor = FactorSpec {
            center: Center::Columns,
            scale: Scale::Columns,
            ..iterated(6, 60, Precision::F64)
        };
        svd(matrix.view(), &factor, &hands()).unwrap().s.to_vec()
    };
    let near = standard(&matrix.map(|x| x * 1e110));
    let exact = dense_sigma(&densely(&matrix, Center::Columns, Scale::Columns));
    let apart = standard(&far.to_csr());
    for ((near, apart), exact) in near.iter().zip(&apart).zip(&exact) {
        assert!((near - exact).abs() < 1e-6 * exact, "{near}, {exact}");
        assert!((apart - exact).abs() < 1e-6 * exact, "{apart}, {exact}");
    }
    // A constant matrix leaves nothing.
    matrix = stored(&Array2::from_elem((300, 40), 0.1));
    for precision in [Precision::F32, Precision::F64] {
        let factor = FactorSpec {
            center: Center::Columns,
            ..until(3, 1e-2, precision)
        };
        let factors = svd(matrix.view(), &factor, &hands()).unwrap();
        assert_eq!(factors.s.len(), 0, "{:?}", factors.s);
    }
}

#[test]
fn without_centring_plans_are_what_they_were() {
    let matrix = random_sparse(500, 80, 0.1, 1, |r| r.normal());
    let (facts, _) = coordinator::memory::blocks_of(matrix.view()).unwrap();
    let mut factor = iterated(7, 2, Precision::F32);
    factor.seed = 3;
    let plan =
        coordinator::plan::Plan::new(&facts, &factor, coordinator::plan::Sides::BOTH).unwrap();
    assert_eq!(plan.made().len(), 1);
    let spread = |task: &shared::farm::graph::Task<shared::svd::SvdWork>| {
        matches!(task.work, shared::svd::SvdWork::Spread { .. })
    };
    assert!(!plan.graph.tasks.iter().any(spread));
}
