//! The factors of small matrices against dense and independent computations.

use coordinator::{
    engine::Hands,
    failure::ExitCode,
    job::resolved::{Accuracy, FactorSpec, Precision, Wanted},
    library::{Svd, svd},
    memory::blocks_of,
};
use ndarray::Array2;
use sprs::{CsMat, TriMat};
use tests::{
    Random, beside, dense_sigma, iterated, orthogonality, random_sparse, reference_sigma,
    residuals, root, stored, with_spectrum,
};

fn spec(rank: u32, precision: Precision) -> FactorSpec {
    iterated(rank, 4, precision)
}

fn hands() -> Hands {
    Hands::one(2, 1 << 30)
}

/// What must hold of any factorization: orthonormal factors, descending values, residuals as an independent product
/// finds them.
fn check(matrix: &CsMat<f64>, factors: &Svd, precision: Precision) {
    let (orthonormal, rounding) = match precision {
        Precision::F32 => (1e-5, 2e-5),
        Precision::F64 => (1e-12, 1e-11),
    };
    assert!(orthogonality(&factors.u) < orthonormal, "U");
    assert!(orthogonality(&factors.vt.t().to_owned()) < orthonormal, "V");
    assert!(factors.s.iter().is_sorted_by(|a, b| a >= b));
    assert!(factors.s.iter().all(|&s| s > 0.0));
    let found = residuals(matrix, &factors.u, &factors.s, &factors.vt);
    // A residual near rounding is only known to rounding, relative to the largest value.
    for (i, (&told, &found)) in factors.residuals.iter().zip(&found).enumerate() {
        let floor = rounding * factors.s[0] / factors.s[i];
        assert!(
            (told - found).abs() <= 0.05 * found + floor,
            "residual {i}: told {told:e}, found {found:e}"
        );
    }
    // The sign rule: the largest entry of V is positive.
    for i in 0..factors.s.len() {
        let column = factors.vt.row(i);
        let peak = column.iter().fold(
            0.0f64,
            |best, &x| if x.abs() > best.abs() { x } else { best },
        );
        assert!(peak > 0.0, "sign of column {i}");
    }
}

fn close(found: &[f64], expected: &[f64], relative: f64) {
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= relative * e, "sigma {i}: {f} against {e}");
    }
}

#[test]
fn known_spectra_come_back_in_both_precisions() {
    let sigma: Vec<f64> = (0..30).map(|i| 0.7f64.powi(i)).collect();
    for (rows, columns) in [(300, 120), (120, 300), (2500, 40), (70, 70)] {
        let matrix = stored(&with_spectrum(rows, columns, &sigma));
        for precision in [Precision::F32, Precision::F64] {
            let factors = svd(matrix.view(), &spec(12, precision), &hands()).unwrap();
            assert_eq!(factors.s.len(), 12);
            check(&matrix, &factors, precision);
            let relative = match precision {
                Precision::F32 => 1e-5,
                Precision::F64 => 1e-10,
            };
            close(factors.s.as_slice().unwrap(), &sigma, relative);
        }
    }
}

#[test]
fn random_ratings_agree_with_a_dense_svd() {
    for (seed, rows, columns) in [(1, 400, 150), (2, 150, 400), (3, 3000, 60)] {
        let matrix = random_sparse(rows, columns, 0.1, seed, |r| (1 + r.below(10)) as f64 / 2.0);
        let expected = dense_sigma(&matrix.to_dense());
        let mut factor = spec(10, Precision::F64);
        // A flat spectrum: only many passes separate it.
        factor.accuracy = Accuracy::PowerIterations(60);
        factor.oversample = 30;
        let factors = svd(matrix.view(), &factor, &hands()).unwrap();
        check(&matrix, &factors, Precision::F64);
        close(&factors.s.as_slice().unwrap()[..5], &expected, 1e-8);
    }
}

#[test]
fn an_exact_rank_of_10_asked_for_20_gives_10() {
    let sigma: Vec<f64> = (0..10).map(|i| 10.0 - f64::from(i)).collect();
    for (rows, columns) in [(500, 200), (200, 500), (1000, 1000)] {
        let matrix = stored(&with_spectrum(rows, columns, &sigma));
        for precision in [Precision::F32, Precision::F64] {
            let factors = svd(matrix.view(), &spec(20, precision), &hands()).unwrap();
            assert_eq!(factors.s.len(), 10, "{rows} x {columns} {precision:?}");
            assert_eq!(factors.u.dim(), (rows, 10));
            assert_eq!(factors.vt.dim(), (10, columns));
            check(&matrix, &factors, precision);
            close(factors.s.as_slice().unwrap(), &sigma, 1e-5);
        }
    }
}

#[test]
fn flat_and_repeated_values_keep_their_vectors_orthonormal() {
    let identity: CsMat<f64> = CsMat::eye(300);
    let factors = svd(identity.view(), &spec(20, Precision::F64), &hands()).unwrap();
    check(&identity, &factors, Precision::F64);
    close(factors.s.as_slice().unwrap(), &[1.0; 20], 1e-12);

    let sigma: Vec<f64> = (0..24).map(|i| f64::from(3 - i / 8)).collect();
    let matrix = stored(&with_spectrum(400, 90, &sigma));
    for precision in [Precision::F32, Precision::F64] {
        let factors = svd(matrix.view(), &spec(24, precision), &hands()).unwrap();
        check(&matrix, &factors, precision);
        close(factors.s.as_slice().unwrap(), &sigma, 1e-5);
    }
}

#[test]
fn edges_of_shape() {
    let place = |rows: usize, columns: usize, entries: &[(usize, usize, f64)]| {
        let mut t = TriMat::new((rows, columns));
        for &(r, c, v) in entries {
            t.add_triplet(r, c, v);
        }
        t.to_csr::<usize>()
    };
    // One row, one column, one entry.
    for (matrix, norm) in [
        (place(1, 4, &[(0, 0, 3.0), (0, 3, -4.0)]), 5.0),
        (place(4, 1, &[(0, 0, 3.0), (3, 0, -4.0)]), 5.0),
        (place(1, 1, &[(0, 0, -2.5)]), 2.5),
    ] {
        for precision in [Precision::F32, Precision::F64] {
            let factors = svd(matrix.view(), &spec(1, precision), &hands()).unwrap();
            check(&matrix, &factors, precision);
            close(factors.s.as_slice().unwrap(), &[norm], 1e-6);
        }
    }
    // Empty rows and columns, first, last and between.
    let mut random = Random(9);
    let entries: Vec<(usize, usize, f64)> = (0..400)
        .map(|i| (3 + 7 * (i % 20), 2 + 5 * (i / 20), random.normal()))
        .collect();
    let matrix = place(200, 130, &entries);
    let expected = dense_sigma(&matrix.to_dense());
    let factors = svd(matrix.view(), &spec(15, Precision::F64), &hands()).unwrap();
    check(&matrix, &factors, Precision::F64);
    close(factors.s.as_slice().unwrap(), &expected, 1e-9);
    // All of the rank that there can be.
    let square = random_sparse(40, 40, 0.5, 5, |r| r.normal());
    let expected = dense_sigma(&square.to_dense());
    let factors = svd(square.view(), &spec(40, Precision::F64), &hands()).unwrap();
    check(&square, &factors, Precision::F64);
    close(factors.s.as_slice().unwrap(), &expected, 1e-9);
    // A matrix of stored zeros has no triplets.
    let zeros = place(5, 5, &[(1, 1, 0.0), (2, 3, 0.0)]);
    let factors = svd(zeros.view(), &spec(3, Precision::F64), &hands()).unwrap();
    assert_eq!(factors.s.len(), 0);
    assert_eq!(factors.u.dim(), (5, 0));
}

#[test]
fn scales_far_from_one() {
    let sigma: Vec<f64> = (0..20).map(|i| 0.5f64.powi(i)).collect();
    let base = with_spectrum(300, 80, &sigma);
    for factor in [1e20, 1e-20] {
        let matrix = stored(&(&base * factor));
        let expected: Vec<f64> = sigma.iter().map(|s| s * factor).collect();
        for precision in [Precision::F32, Precision::F64] {
            let factors = svd(matrix.view(), &spec(8, precision), &hands()).unwrap();
            assert_eq!(factors.s.len(), 8);
            check(&matrix, &factors, precision);
            close(factors.s.as_slice().unwrap(), &expected, 1e-5);
        }
    }
}

#[test]
fn entries_of_very_different_size_and_entries_out_of_range() {
    // Columns down to 1e-290 of the largest: neither they nor the range get in the way.
    let mut triplets = TriMat::new((60, 30));
    let mut random = Random(4);
    for c in 0..30 {
        for r in 0..60 {
            triplets.add_triplet(r, c, random.normal() * 10f64.powi(-10 * c as i32));
        }
    }
    let matrix: CsMat<f64> = triplets.to_csr();
    for precision in [Precision::F32, Precision::F64] {
        let factors = svd(matrix.view(), &spec(3, precision), &hands()).unwrap();
        assert!(!factors.s.is_empty());
        assert!(factors.s.iter().all(|s| s.is_finite()));
    }
    for factor in [1e200, 1e-200] {
        let matrix = stored(&(&with_spectrum(30, 20, &[3.0, 2.0, 1.0]) * factor));
        let failure = svd(matrix.view(), &spec(2, Precision::F64), &hands()).unwrap_err();
        assert_eq!(failure.code, ExitCode::Data);
    }
}

#[test]
fn blocks_with_fewer_rows_than_the_sketch_is_wide() {
    // Full rows of 2,000 entries: a block closes after 524 of them, and l is 540.
    let sigma: Vec<f64> = (0..545).map(|i| 0.98f64.powi(i)).collect();
    let matrix = stored(&with_spectrum(2100, 2000, &sigma));
    let mut factor = spec(530, Precision::F64);
    factor.accuracy = Accuracy::PowerIterations(1);
    let (facts, _) = blocks_of(matrix.view()).unwrap();
    assert!(facts.blocks.len() > 1 && facts.blocks.iter().all(|b| b.rows < 540));
    let factors = svd(matrix.view(), &factor, &hands()).unwrap();
    assert!(orthogonality(&factors.u) < 1e-12);
    assert!(orthogonality(&factors.vt.t().to_owned()) < 1e-12);
    close(&factors.s.as_slice().unwrap()[..300], &sigma, 1e-9);
}

#[test]
fn no_power_iterations_is_a_plain_sketch() {
    let sigma: Vec<f64> = (0..12).map(|i| 0.1f64.powi(i)).collect();
    let matrix = stored(&with_spectrum(300, 80, &sigma));
    let mut factor = spec(5, Precision::F64);
    factor.accuracy = Accuracy::PowerIterations(0);
    let factors = svd(matrix.view(), &factor, &hands()).unwrap();
    check(&matrix, &factors, Precision::F64);
    close(factors.s.as_slice().unwrap(), &sigma, 1e-6);
}

#[test]
fn an_impossible_rank_is_refused_with_the_largest_that_is() {
    let matrix = random_sparse(30, 12, 0.5, 1, |r| r.normal());
    let failure = svd(matrix.view(), &spec(13, Precision::F64), &hands()).unwrap_err();
    assert_eq!(failure.code, ExitCode::Job);
    assert!(failure.message.contains("at most 12"), "{failure}");
}

/// How many triplets a sketch should have is known only afterwards.
#[test]
fn a_share_of_the_squares_takes_a_tolerance() {
    let matrix = random_sparse(30, 12, 0.5, 1, |r| r.normal());
    let mut factor = spec(3, Precision::F64);
    factor.wanted = Wanted::Energy(0.9);
    let failure = svd(matrix.view(), &factor, &hands()).unwrap_err();
    assert_eq!(failure.code, ExitCode::Job);
    assert!(failure.message.contains("energy = 0.9"), "{failure}");
    assert!(failure.help.unwrap().contains("tolerance"));
}

#[test]
fn what_is_not_finite_is_refused_with_its_place() {
    let mut dense = Array2::<f64>::ones((4, 3));
    dense[(2, 1)] = f64::NAN;
    let failure = svd(stored(&dense).view(), &spec(2, Precision::F64), &hands()).unwrap_err();
    assert_eq!(failure.code, ExitCode::Data);
    assert!(failure.message.contains("row 2, column 1"), "{failure}");
}

/// The same bits whatever the hands: threads, agents, memory, run.
#[test]
fn the_hands_do_not_change_a_bit() {
    let matrix = random_sparse(9000, 700, 0.02, 11, |r| (1 + r.below(10)) as f64 / 2.0);
    let general = random_sparse(700, 5000, 0.02, 12, |r| r.normal());
    for matrix in [&matrix, &general] {
        for precision in [Precision::F32, Precision::F64] {
            let factor = spec(30, precision);
            let first = svd(matrix.view(), &factor, &Hands::one(1, 1 << 30)).unwrap();
            let mut others = vec![
                Hands::one(1, 1 << 30),
                Hands::one(2, 1 << 30),
                Hands::one(5, 1 << 30),
                Hands::one(2, 32 << 20),
            ];
            for agents in [2, 3, 5] {
                others.push(Hands {
                    agents: vec![(1 + agents % 2, 1 << 30); agents],
                });
            }
            for hands in others {
                let again = svd(matrix.view(), &factor, &hands).unwrap();
                assert_eq!(first.hash, again.hash, "{hands:?} {precision:?}");
            }
            let mut other_seed = factor;
            other_seed.seed = 1;
            let other = svd(matrix.view(), &other_seed, &Hands::one(1, 1 << 30)).unwrap();
            assert_ne!(first.hash, other.hash, "the seed must matter");
        }
    }
}

/// Ten power iterations with rank 50 and 10 more columns: the first 20 agree to 1e-6.
fn twenty_agree(matrix: &CsMat<f64>, reference: &str) {
    let factor = iterated(50, 10, Precision::F64);
    let factors = svd(matrix.view(), &factor, &hands()).unwrap();
    check(matrix, &factors, Precision::F64);
    let expected = reference_sigma(reference);
    close(&factors.s.as_slice().unwrap()[..20], &expected[..20], 1e-6);
}

fn ratings(path: &std::path::Path) -> CsMat<f64> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<(usize, usize, f64)> = text
        .lines()
        .skip(1)
        .map(|line| {
            let mut fields = line.split(',');
            let mut next = || fields.next().unwrap();
            (
                next().parse().unwrap(),
                next().parse().unwrap(),
                next().parse().unwrap(),
            )
        })
        .collect();
    let index = |of: &dyn Fn(&(usize, usize, f64)) -> usize| {
        let mut labels: Vec<usize> = lines.iter().map(of).collect();
        labels.sort_unstable();
        labels.dedup();
        labels
    };
    let (users, films) = (index(&|l| l.0), index(&|l| l.1));
    let mut t = TriMat::new((users.len(), films.len()));
    for (user, film, value) in &lines {
        t.add_triplet(
            users.binary_search(user).unwrap(),
            films.binary_search(film).unwrap(),
            *value,
        );
    }
    t.to_csr()
}

#[test]
fn films_agree_with_an_independent_solver() {
    twenty_agree(
        &ratings(&root().join("examples/films/ratings.csv")),
        "films",
    );
}

#[test]
fn a_million_ratings_agree_with_an_independent_solver() {
    if let Some(path) = beside("ml-1m/ratings.csv") {
        twenty_agree(&ratings(&path), "ml-1m");
    }
}

#[test]
fn newsgroups_agree_with_an_independent_solver() {
    if let Some(path) = beside("20news/20news_counts.mtx.gz") {
        let file = std::fs::File::open(path).unwrap();
        // This file's banner has one % where the format wants two.
        let missing: &[u8] = b"%";
        let mut reader = std::io::BufReader::new(std::io::Read::chain(
            missing,
            flate2::read::MultiGzDecoder::new(file),
        ));
        let counts: TriMat<i64> = sprs::io::read_matrix_market_from_bufread(&mut reader).unwrap();
        let matrix = counts.to_csr::<usize>().map(|&count| count as f64);
        twenty_agree(&matrix, "20news");
    }
}
