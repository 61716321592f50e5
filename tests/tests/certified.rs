//! Working until a tolerance: what is promised must hold, measured by products of this file's own.

use coordinator::{
    engine::Hands,
    failure::ExitCode,
    job::resolved::{
        Accuracy, FactorSpec, Method, Precision, Tolerance, ToleranceKind, Wanted, Which,
    },
    library::{Svd, svd},
    output::certificate::Status,
};
use ndarray::Array2;
use sprs::CsMat;
use tests::{
    dense_sigma, iterated, orthogonality, random_sparse, residuals, spectra::case, stored, until,
    with_spectrum,
};

fn hands() -> Hands {
    Hands::one(2, 1 << 30)
}

fn factored(matrix: &CsMat<f64>, factor: &FactorSpec) -> Svd {
    svd(matrix.view(), factor, &hands()).unwrap()
}

/// The certificate against independent products: within 5 %, and never below by more than rounding.
fn certificate_holds(matrix: &CsMat<f64>, factors: &Svd, precision: Precision) {
    holds(matrix, factors, precision, 0.0);
}

/// The same where rounding of factors in f32 is most of a residual: it is estimated from above.
fn certificate_covers(matrix: &CsMat<f64>, factors: &Svd) {
    let height = factors.vt.ncols().min(factors.u.nrows()) as f64;
    let most = 4.0 * 2f64.powi(-24) / height.sqrt();
    holds(matrix, factors, Precision::F32, most);
}

/// `more` is allowed above what is found, times s_1 / s_k.
fn holds(matrix: &CsMat<f64>, factors: &Svd, precision: Precision, more: f64) {
    let found = residuals(matrix, &factors.u, &factors.s, &factors.vt);
    let unit = match precision {
        Precision::F32 => 2f64.powi(-24),
        Precision::F64 => 2f64.powi(-52),
    };
    let certificate = &factors.certificate;
    let told = certificate.residual.as_ref().unwrap();
    assert_eq!(told.len(), found.len());
    for (i, (&told, &found)) in told.iter().zip(&found).enumerate() {
        // Rounding of what is written, and of this file's own products.
        let rounding = 8.0 * unit + 200.0 * 2f64.powi(-52) * factors.s[0] / factors.s[i];
        let above = rounding + more * factors.s[0] / factors.s[i];
        assert!(
            told >= found * (1.0 - 1e-6) - rounding && told <= 1.05 * found + above,
            "triplet {i}: told {told:e}, found {found:e}"
        );
    }
    let orthogonal = match precision {
        Precision::F32 => 1e-6,
        Precision::F64 => 1e-13,
    };
    let (u, v) = (
        orthogonality(&factors.u),
        orthogonality(&factors.vt.t().to_owned()),
    );
    assert!(u < orthogonal, "U {u:e}");
    assert!(v < orthogonal, "V {v:e}");
    let of = |orthogonality: Option<f64>| orthogonality.unwrap();
    let told = of(certificate.orthogonality_u).max(of(certificate.orthogonality_v));
    assert!((told - u.max(v)).abs() < 10.0 * unit, "told {told:e}");
}

#[test]
fn every_tolerance_is_reached_and_nothing_is_missed() {
    let ratings = random_sparse(3000, 700, 0.03, 5, |r| (1 + r.below(10)) as f64 / 2.0);
    let wide = random_sparse(500, 2500, 0.05, 6, |r| r.normal());
    for matrix in [&ratings, &wide] {
        let exact = dense_sigma(&matrix.to_dense());
        for (tolerance, precision) in [
            (1e-1, Precision::F32),
            (1e-2, Precision::F32),
            (1e-4, Precision::F32),
            (1e-2, Precision::F64),
            (1e-8, Precision::F64),
        ] {
            for method in [Method::Krylov, Method::Gram] {
                let mut factor = until(20, tolerance, precision);
                factor.method = method;
                let factors = factored(matrix, &factor);
                if method == Method::Gram {
                    assert_eq!(factors.certificate.reads, 3);
                }
                let found = residuals(matrix, &factors.u, &factors.s, &factors.vt);
                let worst = found.iter().copied().fold(0.0, f64::max);
                assert!(
                    worst <= tolerance * (1.0 + 1e-6),
                    "{worst:e} for {tolerance:e}"
                );
                assert_eq!(factors.certificate.status, Status::Converged);
                assert_eq!(factors.certificate.guard_passed, Some(true));
                certificate_holds(matrix, &factors, precision);
                let rounding = match precision {
                    Precision::F32 => 1e-6,
                    Precision::F64 => 1e-13,
                };
                for (i, (s, exact)) in factors.s.iter().zip(&exact).enumerate() {
                    // Interlacing: never above. Below by what the residual allows, in a spectrum without gaps.
                    assert!(
                        *s <= exact * (1.0 + rounding),
                        "sigma {i}: {s} above {exact}"
                    );
                    assert!(
                        *s >= exact * (1.0 - tolerance - rounding),
                        "sigma {i}: {s}, {exact}"
                    );
                }
            }
        }
    }
}

#[test]
fn sigma_alone_needs_fewer_reads() {
    let matrix = random_sparse(3000, 700, 0.03, 5, |r| (1 + r.below(10)) as f64 / 2.0);
    let exact = dense_sigma(&matrix.to_dense());
    let mut factor = until(20, 1e-4, Precision::F64);
    factor.method = Method::Krylov;
    let by_residual = factored(&matrix, &factor);
    factor.accuracy = Accuracy::Tolerance(Tolerance {
        value: 1e-4,
        kind: ToleranceKind::Sigma,
        max_reads: 60,
    });
    let by_sigma = factored(&matrix, &factor);
    assert!(by_sigma.certificate.reads < by_residual.certificate.reads);
    for (s, exact) in by_sigma.s.iter().zip(&exact) {
        assert!((s - exact).abs() <= 1e-4 * exact, "{s} for {exact}");
    }
}

/// ||A - U S V^T||_2 by power steps.
fn spectral_error(a: &Array2<f64>, factors: &Svd) -> f64 {
    let times =
        |x: &ndarray::Array1<f64>| a.dot(x) - factors.u.dot(&(&factors.s * &factors.vt.dot(x)));
    let back = |y: &ndarray::Array1<f64>| {
        a.t().dot(y) - factors.vt.t().dot(&(&factors.s * &factors.u.t().dot(y)))
    };
    let norm = |x: &ndarray::Array1<f64>| x.dot(x).sqrt();
    let mut random = tests::Random(3);
    let mut x = ndarray::Array1::from_shape_fn(a.ncols(), |_| random.normal());
    let mut found = 0.0;
    for _ in 0..20 {
        let length = norm(&x);
        if length == 0.0 {
            return 0.0;
        }
        x /= length;
        let y = times(&x);
        found = norm(&y);
        if found == 0.0 {
            return 0.0;
        }
        x = back(&(y / found));
    }
    found
}

/// Three errors, all to be below 1e-13: of the product, relative to its norm, of U, and of V.
fn exactly(rows: usize, columns: usize, k: usize, number: usize, factor: &FactorSpec) {
    let sigma = case(number, k);
    let dense = with_spectrum(rows, columns, &sigma);
    let factors = factored(&stored(&dense), factor);
    let error = spectral_error(&dense, &factors) / sigma[0];
    let u = orthogonality(&factors.u);
    let v = orthogonality(&factors.vt.t().to_owned());
    let what = format!("{rows} x {columns}, {k} values, case {number}");
    assert!(
        error <= 1e-13,
        "{what}: error {error:e}, rank {}",
        factors.s.len()
    );
    assert!(u <= 1e-13, "{what}: U {u:e}");
    assert!(v <= 1e-13, "{what}: V {v:e}");
}

#[test]
fn the_nine_spectra_of_low_rank_are_exact() {
    for (rows, columns, k) in [
        (100, 50, 10),
        (200, 100, 20),
        (400, 300, 25),
        (500, 200, 30),
        (1000, 500, 50),
    ] {
        for number in 1..=9 {
            let mut factor = until(k as u32, 1e-10, Precision::F64);
            exactly(rows, columns, k, number, &factor);
            if columns >= 300 {
                factor.method = Method::Gram;
                exactly(rows, columns, k, number, &factor);
                factor.method = Method::Krylov;
                exactly(rows, columns, k, number, &factor);
                // A block narrower than the rank.
                factor.block = Some(8);
                exactly(rows, columns, k, number, &factor);
            }
        }
    }
}

#[test]
fn the_nine_spectra_of_full_rank_are_exact() {
    for (rows, columns) in [(400, 50), (1500, 60)] {
        for number in 1..=9 {
            let factor = until(columns as u32, 1e-10, Precision::F64);
            exactly(rows, columns, columns, number, &factor);
        }
    }
}

/// The matrices of fbpca's own tests: U diag(1, .1, .01) V^T of 20 x 10, 10 x 20 and 20 x 20.
#[test]
fn the_small_matrices_of_fbpca() {
    for (rows, columns) in [(20, 10), (10, 20), (20, 20)] {
        for k in [3, 9] {
            for (precision, bound) in [(Precision::F64, 1e-11), (Precision::F32, 1e-3)] {
                let dense = with_spectrum(rows, columns, &[1.0, 0.1, 0.01]);
                let factors = factored(&stored(&dense), &until(k, 1e-2, precision));
                assert!(spectral_error(&dense, &factors) < bound);
                assert_eq!(factors.s.len(), 3);
            }
        }
    }
}

#[test]
fn what_others_have_failed_at() {
    // Rank 10, asked for 20.
    let sigma: Vec<f64> = (0..10).map(|i| 10.0 - f64::from(i)).collect();
    let matrix = stored(&with_spectrum(1000, 1000, &sigma));
    for precision in [Precision::F32, Precision::F64] {
        for method in [Method::Auto, Method::Krylov, Method::Gram] {
            let mut factor = until(20, 1e-2, precision);
            factor.method = method;
            let factors = factored(&matrix, &factor);
            assert_eq!(factors.s.len(), 10, "{precision:?}");
            assert!(factors.certificate.rank_deficient);
            certificate_holds(&matrix, &factors, precision);
        }
    }
    // The identity: every value repeated, and nothing new after the first read.
    let identity: CsMat<f64> = CsMat::eye(600);
    for block in [None, Some(8)] {
        let mut factor = until(20, 1e-8, Precision::F64);
        factor.method = Method::Krylov;
        factor.block = block;
        let factors = factored(&identity, &factor);
        assert_eq!(factors.s.len(), 20);
        assert!(factors.s.iter().all(|s| (s - 1.0).abs() < 1e-13));
        certificate_holds(&identity, &factors, Precision::F64);
    }
    // Clusters.
    let sigma: Vec<f64> = (0..40).map(|i| f64::from(5 - i / 8)).collect();
    let matrix = stored(&with_spectrum(900, 400, &sigma));
    for precision in [Precision::F32, Precision::F64] {
        let mut factor = until(24, 1e-3, precision);
        factor.method = Method::Krylov;
        let factors = factored(&matrix, &factor);
        for (i, s) in factors.s.iter().enumerate() {
            let exact = f64::from(5 - i as i32 / 8);
            assert!((s - exact).abs() < 1e-5, "sigma {i}: {s}");
        }
        certificate_holds(&matrix, &factors, precision);
    }
    // Flat: no gaps at all.
    let matrix = random_sparse(4000, 300, 0.2, 8, |r| r.normal());
    let exact = dense_sigma(&matrix.to_dense());
    let mut factor = until(10, 1e-6, Precision::F64);
    factor.method = Method::Krylov;
    let factors = factored(&matrix, &factor);
    for (s, exact) in factors.s.iter().zip(&exact) {
        assert!((s - exact).abs() < 1e-9 * exact);
    }
}

#[test]
fn scales_and_precisions_far_from_one() {
    // Values over seven orders of magnitude: f32 products cannot see the small ones, f64 reads follow by themselves.
    let sigma: Vec<f64> = (0..60).map(|i| 0.76f64.powi(i)).collect();
    for scale in [1.0, 1e20, 1e-20] {
        let matrix = stored(&(&with_spectrum(800, 400, &sigma) * scale));
        let mut factor = until(50, 1e-3, Precision::F32);
        factor.method = Method::Krylov;
        let factors = factored(&matrix, &factor);
        assert_eq!(factors.s.len(), 50);
        for (s, exact) in factors.s.iter().zip(&sigma) {
            assert!((s / scale - exact).abs() < 1e-5 * exact, "{s} for {exact}");
        }
        let found = residuals(&matrix, &factors.u, &factors.s, &factors.vt);
        certificate_covers(&matrix, &factors);
        // Factors in f32 are rounded: u_i and v_i to 6e-8 each, A v_i to that times s_1 / s_i.
        for (i, found) in found.iter().enumerate() {
            assert!(
                *found < 1e-3 + 2e-7 * sigma[0] / sigma[i],
                "residual {i}: {found:e}"
            );
        }
    }
}

#[test]
fn where_rounding_of_f32_holds_the_error_up_f64_goes_on() {
    // One value far above a slowly falling rest: what f32 rounds is relative to the first. Left in f32 until it gets there by
    // luck, this takes 33 reads.
    let sigma: Vec<f64> = std::iter::once(400.0)
        .chain((0..399).map(|i| 0.985f64.powi(i)))
        .collect();
    let matrix = stored(&with_spectrum(900, 400, &sigma));
    let mut factor = until(12, 1e-6, Precision::F32);
    factor.method = Method::Krylov;
    factor.block = Some(8);
    factor.basis = Some(96);
    let factors = factored(&matrix, &factor);
    let certificate = &factors.certificate;
    assert!(certificate.reads <= 24, "{} reads", certificate.reads);
    certificate_covers(&matrix, &factors);
    // Rounding of the factors is all that is left.
    let rounding = 400.0 * 2f64.powi(-24) / 400f64.sqrt();
    assert!(certificate.worst.unwrap() <= 1e-6 + 4.0 * rounding);

    // So in f64, where A^T A tells nothing of a plateau at 1e-6 of the first: what needs no square of A does.
    let steps: Vec<f64> = (0..400)
        .map(|i| match i {
            0..8 => 1.0,
            8..16 => 1e-3,
            _ => 1e-6 * 0.999f64.powi(i),
        })
        .collect();
    let steps = stored(&with_spectrum(900, 400, &steps));
    let mut other = until(20, 1e-5, Precision::F64);
    for (method, status) in [
        (Method::Krylov, Status::Unconverged),
        (Method::Exact, Status::Converged),
    ] {
        other.method = method;
        let factors = factored(&steps, &other);
        assert_eq!(factors.certificate.status, status, "{method:?}");
        let reads = factors.certificate.reads;
        assert!(reads <= 40, "{method:?}: {reads} reads");
        certificate_holds(&steps, &factors, Precision::F64);
    }

    // What f32 cannot hold is not read for until there are no more reads.
    let Accuracy::Tolerance(tolerance) = &mut factor.accuracy else {
        panic!("no tolerance");
    };
    tolerance.value = 1e-9;
    let factors = factored(&matrix, &factor);
    let certificate = &factors.certificate;
    assert_eq!(certificate.status, Status::Unconverged);
    assert!(certificate.reads <= 40, "{} reads", certificate.reads);
    certificate_covers(&matrix, &factors);
}

#[test]
fn too_few_reads_are_said_to_be() {
    let matrix = random_sparse(3000, 700, 0.03, 5, |r| (1 + r.below(10)) as f64 / 2.0);
    let mut factor = until(20, 1e-6, Precision::F64);
    factor.method = Method::Krylov;
    factor.accuracy = Accuracy::Tolerance(Tolerance {
        value: 1e-6,
        kind: ToleranceKind::Residual,
        max_reads: 7,
    });
    let factors = factored(&matrix, &factor);
    assert_eq!(factors.certificate.status, Status::Unconverged);
    assert!(
        factors.certificate.reads <= 7,
        "{} reads",
        factors.certificate.reads
    );
    certificate_holds(&matrix, &factors, Precision::F64);
}

#[test]
fn energy_in_place_of_a_rank() {
    let sigma: Vec<f64> = (0..120).map(|i| 0.95f64.powi(i)).collect();
    let matrix = stored(&with_spectrum(900, 500, &sigma));
    let total: f64 = sigma.iter().map(|s| s * s).sum();
    let mut sum = 0.0;
    let least = sigma
        .iter()
        .position(|s| {
            sum += s * s;
            sum >= 0.8 * total
        })
        .unwrap()
        + 1;
    let factor = FactorSpec {
        wanted: Wanted::Energy(0.8),
        ..until(1, 1e-2, Precision::F64)
    };
    // A^T A has all of the spectrum.
    for share in [0.8, 1.0] {
        let exactly = FactorSpec {
            wanted: Wanted::Energy(share),
            method: Method::Gram,
            ..factor
        };
        let factors = factored(&matrix, &exactly);
        let found = factors.s.len();
        if share < 1.0 {
            assert_eq!(found, least);
        }
        assert!((factors.certificate.explained_together - share).abs() < 0.02);
        certificate_holds(&matrix, &factors, Precision::F64);
    }
    let factors = factored(&matrix, &factor);
    // Values found are a little low, so one more may be taken.
    assert!(
        (least..=least + 1).contains(&factors.s.len()),
        "{}",
        factors.s.len()
    );
    assert!(factors.certificate.explained_together >= 0.8 - 1e-4);
    let flat: CsMat<f64> = CsMat::eye(2000);
    let failure = svd(
        flat.view(),
        &FactorSpec {
            wanted: Wanted::Energy(0.9),
            ..factor
        },
        &hands(),
    );
    assert_eq!(failure.unwrap_err().code, ExitCode::Job);
}

/// The same bits whatever the hands, also where the basis is restarted and f32 goes over to f64.
#[test]
fn the_hands_do_not_change_a_bit() {
    let matrix = random_sparse(9000, 900, 0.02, 11, |r| (1 + r.below(10)) as f64 / 2.0);
    let steep: Vec<f64> = (0..60).map(|i| 0.7f64.powi(i)).collect();
    let steep = stored(&with_spectrum(600, 300, &steep));
    for (matrix, tolerance, precision, method) in [
        (&matrix, 1e-3, Precision::F32, Method::Krylov),
        (&matrix, 1e-5, Precision::F64, Method::Krylov),
        (&steep, 1e-3, Precision::F32, Method::Krylov),
        (&matrix, 1e-5, Precision::F32, Method::Gram),
        (&steep, 1e-3, Precision::F64, Method::Gram),
    ] {
        let mut factor = until(30, tolerance, precision);
        factor.method = method;
        factor.block = Some(16);
        factor.basis = Some(96);
        let first = svd(matrix.view(), &factor, &Hands::one(1, 1 << 30)).unwrap();
        let mut others = vec![Hands::one(2, 1 << 30), Hands::one(2, 48 << 20)];
        for agents in [2, 3, 5] {
            others.push(Hands {
                agents: vec![(1 + agents % 2, 1 << 30); agents],
            });
        }
        for hands in others {
            let again = svd(matrix.view(), &factor, &hands).unwrap();
            assert_eq!(first.hash, again.hash, "{hands:?} {precision:?}");
        }
    }
}

/// What is not wanted is not formed, what is wanted has the same bits, and what is said of it is true.
#[test]
fn factors_that_are_not_wanted_cost_no_read_and_change_nothing() {
    let tall = random_sparse(3000, 700, 0.03, 5, |r| (1 + r.below(10)) as f64 / 2.0);
    let wide = random_sparse(500, 2500, 0.05, 6, |r| r.normal());
    let steep = stored(&with_spectrum(
        600,
        300,
        &(0..60).map(|i| 0.6f64.powi(i)).collect::<Vec<f64>>(),
    ));
    let small = random_sparse(900, 90, 0.2, 7, |r| r.normal());
    let krylov = FactorSpec {
        method: Method::Krylov,
        ..until(20, 1e-6, Precision::F64)
    };
    let iterated = iterated(20, 3, Precision::F64);
    for (matrix, factor, spared) in [
        (&tall, krylov, 1),
        (&wide, krylov, 1),
        (
            &tall,
            FactorSpec {
                method: Method::Gram,
                ..krylov
            },
            1,
        ),
        // What A^T A cannot tell apart is only known to be good by the pass that forms U.
        (
            &steep,
            FactorSpec {
                wanted: Wanted::Rank(40),
                ..krylov
            },
            0,
        ),
        (
            &small,
            FactorSpec {
                method: Method::Exact,
                ..krylov
            },
            1,
        ),
        (&tall, iterated, 1),
    ] {
        let whole = factored(matrix, &factor);
        let of = |which| factored(matrix, &FactorSpec { which, ..factor });
        let transposed = matrix.rows() < matrix.cols();
        let reads = |svd: &Svd| svd.certificate.reads;

        let sv = of(Which::Sv);
        assert_eq!((&sv.s, &sv.vt), (&whole.s, &whole.vt));
        assert_eq!(sv.u.dim(), (matrix.rows(), 0));
        // V of a wide matrix comes from the last pass, U from the ones before.
        let sv_spared = if transposed { 0 } else { spared };
        assert_eq!(reads(&sv), reads(&whole) - sv_spared);
        if !transposed && spared == 1 {
            // All of A = Q R tells it without a pass.
            let exact = factor.method == Method::Exact;
            assert_eq!(sv.certificate.left_residual.is_some(), exact);
            assert_eq!(sv.certificate.orthogonality_u, None);
        }
        assert_eq!(
            sv.certificate.orthogonality_v,
            whole.certificate.orthogonality_v
        );

        let s = of(Which::S);
        assert_eq!(s.s, whole.s);
        assert_eq!((s.u.ncols(), s.vt.nrows()), (0, 0));
        assert_eq!(reads(&s), reads(&whole) - spared);
        for less in [&sv, &s] {
            let certificate = &less.certificate;
            match factor.accuracy {
                Accuracy::PowerIterations(_) => {
                    assert_eq!((&certificate.residual, certificate.worst), (&None, None));
                    assert!(less.residuals.is_empty());
                }
                Accuracy::Tolerance(_) => {
                    if spared == 1 {
                        assert_eq!(certificate.status, Status::Converged);
                    }
                    assert_eq!(certificate.status, whole.certificate.status);
                    if spared == 0 || less.certificate.reads == whole.certificate.reads {
                        assert_eq!(certificate.residual, whole.certificate.residual);
                    } else {
                        residuals_hold(matrix, &whole, certificate.residual.as_ref().unwrap());
                    }
                }
            }
        }
    }
}

/// With u = A v / s, the residual is |A^T A v - s^2 v| / s^2.
fn residuals_hold(matrix: &CsMat<f64>, whole: &Svd, told: &[f64]) {
    let (narrow, vectors) = if matrix.rows() < matrix.cols() {
        (matrix.transpose_view().to_csr(), whole.u.t().to_owned())
    } else {
        (matrix.clone(), whole.vt.clone())
    };
    let scaled = Array2::from_diag(&whole.s);
    let dense = narrow.to_dense();
    let u = dense
        .dot(&vectors.t())
        .dot(&scaled.mapv(|s| if s > 0.0 { 1.0 / s } else { 0.0 }));
    let found = residuals(&narrow, &u, &whole.s, &vectors);
    for (i, (told, found)) in told.iter().zip(found).enumerate() {
        let kappa = whole.s[0] / whole.s[i];
        let rounding = 1e-13 * kappa * kappa;
        assert!(
            (told - found).abs() <= 0.05 * found + rounding,
            "triplet {i}: told {told:e}, found {found:e}"
        );
    }
}
