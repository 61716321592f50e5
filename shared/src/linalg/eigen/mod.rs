//! Small dense symmetric eigenproblems: T of a Krylov basis, which the next step waits for.

mod reduce;
mod tridiagonal;

use faer::{
    Mat, Par,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack},
    linalg::evd::{ComputeEigenvectors, self_adjoint_evd_scratch, tridiagonal_self_adjoint_evd},
};

use crate::{farm::work::WorkError, linalg::fixed::power_of_two};

/// A = W diag(values) W^T, or the first columns of W.
#[derive(Clone, PartialEq, Debug)]
pub struct Eigen {
    /// n, descending
    pub values: Vec<f64>,
    /// n x keep, row-major, orthonormal columns: those of the largest eigenvalues
    pub vectors: Vec<f64>,
}

/// All eigenvalues of a symmetric matrix, and the eigenvectors of the `keep` largest.
///
/// Shapes: `a` is n x n; its lower half is read.
/// Method: Householder reflections to tridiagonal form, then QL for eigenvalues and inverse iteration for few vectors, or
/// divide and conquer for many or where the others fail (Golub, Van Loan, 4th ed., 8.3 and 8.4); only the vectors that are
/// kept are transformed back.
/// Cost: about 4/3 * n^3 + 2 * n^2 * keep operations and those of vectors of the tridiagonal form: 6 * n * keep^2 for few,
/// 3 * n^3 for many. Half of n^3 is a column at a time.
/// Error: a few roundoffs of the norm; vectors are orthonormal to roundoff.
/// Reproducibility: a function of the arguments, on one instruction set. Signs are as they come.
/// Errors: entries that are not finite; no convergence.
/// Panics: when `a` has another size, or fewer columns than `keep`.
pub fn eigen(n: usize, a: &[f64], keep: usize) -> Result<Eigen, WorkError> {
    assert_eq!(a.len(), n * n, "a symmetric matrix should be {n} x {n}");
    assert!(keep <= n, "{keep} eigenvectors of {n}");
    let failed =
        |why: &str| WorkError::Numbers(format!("eigenvalues of a {n} x {n} matrix: {why}"));
    if !a.iter().all(|x| x.is_finite()) {
        return Err(failed("it has entries that are not finite"));
    }
    let largest = a.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    if largest == 0.0 {
        return Ok(of_zeros(n, keep));
    }
    // Squares of entries are numbers like others then.
    let exponent = (largest.log2().floor() as i32).clamp(-1000, 1000);
    let t = reduce::reduce(n, a, power_of_two(-exponent));
    let (diagonal, beside) = (&t.diagonal, &t.beside);
    let few = || {
        let values = tridiagonal::values(diagonal, beside)?;
        let vectors = match keep {
            0 => Vec::new(),
            _ => tridiagonal::vectors(diagonal, beside, &values, keep)?,
        };
        Some(Eigen { values, vectors })
    };
    let found = if 2 * keep <= n { few() } else { None };
    let mut eigen = match found {
        Some(found) => found,
        None => divided(diagonal, beside, keep).map_err(|why| failed(&why))?,
    };
    t.back(&mut eigen.vectors, keep);
    let scale = power_of_two(exponent);
    eigen.values.iter_mut().for_each(|x| *x *= scale);
    let Eigen { values, vectors } = &eigen;
    if !values.is_sorted_by(|a, b| a >= b) || !vectors.iter().all(|x| x.is_finite()) {
        return Err(failed("it gave numbers that are not finite"));
    }
    Ok(eigen)
}

fn of_zeros(n: usize, keep: usize) -> Eigen {
    let mut vectors = vec![0.0; n * keep];
    let own = vectors.iter_mut().step_by(keep + 1).take(keep);
    own.for_each(|x| *x = 1.0);
    Eigen {
        values: vec![0.0; n],
        vectors,
    }
}

/// Of a tridiagonal matrix, by divide and conquer.
fn divided(diagonal: &[f64], beside: &[f64], keep: usize) -> Result<Eigen, String> {
    let n = diagonal.len();
    let need =
        self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    let mut room = MemBuffer::new(need);
    let mut along = Diag::<f64>::zeros(n);
    let mut next = Diag::<f64>::zeros(n);
    for (i, &x) in diagonal.iter().enumerate() {
        along[i] = x;
    }
    for (i, &x) in beside.iter().enumerate() {
        next[i] = x;
    }
    let mut values = Diag::<f64>::zeros(n);
    let mut all = (keep > 0).then(|| Mat::<f64>::zeros(n, n));
    tridiagonal_self_adjoint_evd(
        along.as_ref(),
        next.as_ref(),
        values.as_mut(),
        all.as_mut().map(|all| all.as_mut()),
        Par::Seq,
        MemStack::new(&mut room),
        Default::default(),
    )
    .map_err(|why| format!("{why:?}"))?;
    let mut vectors = vec![0.0; n * keep];
    if let Some(all) = &all {
        for (i, row) in vectors.chunks_exact_mut(keep).enumerate() {
            for (j, to) in row.iter_mut().enumerate() {
                *to = all[(i, n - 1 - j)];
            }
        }
    }
    Ok(Eigen {
        values: (0..n).rev().map(|i| values.column_vector()[i]).collect(),
        vectors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::sketch::numbers;

    /// ||A w - value w|| and W^T W of what is kept; eigenvalues against `exact`.
    fn holds(n: usize, a: &[f64], keep: usize, exact: Option<&[f64]>) {
        let Eigen { values, vectors } = eigen(n, a, keep).unwrap();
        let norm = values.iter().fold(1e-305f64, |most, x| most.max(x.abs()));
        for (value, exact) in values.iter().zip(exact.unwrap_or(&[])) {
            assert!((value - exact).abs() <= 1e-13 * norm, "{value} {exact}");
        }
        let trace: f64 = (0..n).map(|i| a[i * n + i]).sum();
        let together: f64 = values.iter().sum();
        assert!((together - trace).abs() <= 1e-13 * norm * n as f64);
        for c in 0..keep {
            let mut square = 0.0;
            for i in 0..n {
                let product: f64 = (0..n)
                    .map(|j| a[i.max(j) * n + i.min(j)] * vectors[j * keep + c])
                    .sum();
                square += ((product - values[c] * vectors[i * keep + c]) / norm).powi(2);
            }
            assert!(
                square.sqrt() < 3e-14,
                "n = {n}, {c} of {keep}: {:e}",
                square.sqrt()
            );
            for other in 0..=c {
                let product: f64 = (0..n)
                    .map(|i| vectors[i * keep + c] * vectors[i * keep + other])
                    .sum();
                let wanted = f64::from(u8::from(c == other));
                assert!(
                    (product - wanted).abs() < 2e-14,
                    "n = {n}, {c} and {other} of {keep}: {product:e}"
                );
            }
        }
    }

    /// Q diag(values) Q^T for a product Q of some reflections.
    fn made(values: &[f64]) -> Vec<f64> {
        let n = values.len();
        let mut a = vec![0.0; n * n];
        for (i, value) in values.iter().enumerate() {
            a[i * n + i] = *value;
        }
        for seed in 0..3 {
            let v = numbers::<f64>(n, seed);
            let square: f64 = v.iter().map(|x| x * x).sum();
            for _ in 0..2 {
                // From the left, then the transpose of that.
                for column in 0..n {
                    let along: f64 = (0..n).map(|i| v[i] * a[i * n + column]).sum();
                    for i in 0..n {
                        a[i * n + column] -= 2.0 * along / square * v[i];
                    }
                }
                for i in 0..n {
                    for j in 0..i {
                        a.swap(i * n + j, j * n + i);
                    }
                }
            }
        }
        a
    }

    type Spectrum = Box<dyn Fn(usize) -> f64>;

    #[test]
    fn eigenvalues_of_made_matrices() {
        for n in [1, 2, 5, 40, 130, 300] {
            let spectra: [(&str, Spectrum); 8] = [
                ("falling", Box::new(|i| 0.9f64.powi(i as i32))),
                ("to nothing", Box::new(|i| 0.3f64.powi(i as i32))),
                ("even", Box::new(move |i| 1.0 - i as f64 / n as f64)),
                ("equal", Box::new(|_| 3.0)),
                (
                    "two kinds",
                    Box::new(move |i| if i < n / 2 { 1.0 } else { -1.0 }),
                ),
                (
                    "clusters",
                    Box::new(|i| 1.0 / (1 + i / 7) as f64 - 1e-12 * i as f64),
                ),
                (
                    "rank 3",
                    Box::new(|i| f64::from(u8::from(i < 3)) * (5.0 - i as f64)),
                ),
                ("large", Box::new(|i| 1e300 / (1 + i) as f64)),
            ];
            for (name, of) in spectra {
                let values: Vec<f64> = (0..n).map(of).collect();
                let a = made(&values);
                for keep in [0, 1, n / 4, n / 2, n] {
                    // Shown when it fails.
                    println!("{name}, n = {n}, keep = {keep}");
                    holds(n, &a, keep.min(n), Some(&values));
                }
            }
            holds(n, &vec![0.0; n * n], n / 2, Some(&vec![0.0; n]));
            let tiny: Vec<f64> = made(&vec![1e-300; n]);
            holds(n, &tiny, n / 2, Some(&vec![1e-300; n]));
        }
        assert!(eigen(1, &[f64::NAN], 1).is_err());
        assert!(eigen(2, &[1.0, 0.0, f64::INFINITY, 1.0], 1).is_err());
    }

    #[test]
    fn a_matrix_like_t_of_a_krylov_basis() {
        // A restart's eigenvalues with the next block beside them, then blocks beside each other.
        let (kept, width, n) = (48, 16, 240);
        let mut a = vec![0.0; n * n];
        let coupling = numbers::<f64>(n * n, 4);
        for i in 0..n {
            let block = |i: usize| if i < kept { 0 } else { 1 + (i - kept) / width };
            a[i * n + i] = 1.0 / (1 + i) as f64;
            for j in 0..i {
                let near = block(i) - block(j) <= 1 && (block(j) > 0 || block(i) > 0);
                let size = if near { 1e-3 } else { 1e-11 };
                a[i * n + j] = size * coupling[i * n + j] / (1 + block(i)) as f64;
            }
        }
        for keep in [1, 32, 112, 130] {
            holds(n, &a, keep, None);
        }
        // Nothing here is so close that the slow way would be needed.
        let t = reduce::reduce(n, &a, 1.0);
        let values = tridiagonal::values(&t.diagonal, &t.beside).unwrap();
        assert!(tridiagonal::vectors(&t.diagonal, &t.beside, &values, 112).is_some());
    }

    #[test]
    fn many_equal_eigenvalues_and_wilkinsons_matrix() {
        // W_41: pairs of eigenvalues that agree to the last digit, with vectors far apart.
        let n = 41;
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            a[i * n + i] = (i as f64 - 20.0).abs();
            if i > 0 {
                a[i * n + i - 1] = 1.0;
            }
        }
        holds(n, &a, 20, None);
        // The same one four times, not connected.
        let m = 4 * n;
        let mut four = vec![0.0; m * m];
        for i in 0..m {
            for j in 0..m {
                if i / n == j / n {
                    four[i * m + j] = a[i % n * n + j % n];
                }
            }
        }
        holds(m, &four, 80, None);
    }
}
