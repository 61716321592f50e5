//! Products of tall row-major arrays of `f64`, and the small symmetric problems between them: what keeps a Krylov basis
//! orthonormal.
//!
//! A basis X stands as several arrays of the same height side by side, X = [X_1 .. X_q], in the pieces in which it grew.
//! Everything is computed by `faer` on one thread: the number of threads cannot change a bit. Another instruction set can.

use faer::{
    Accum, Conj, Mat, MatMut, MatRef, Par,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        evd::{
            ComputeEigenvectors, self_adjoint_evd_scratch, tridiag::tridiag_in_place,
            tridiagonal_self_adjoint_evd,
        },
        householder::{
            apply_block_householder_sequence_on_the_left_in_place_scratch,
            apply_block_householder_sequence_on_the_left_in_place_with_conj,
        },
        matmul,
        qr::no_pivoting::factor::recommended_block_size,
    },
};

use crate::farm::work::WorkError;

/// Columns of a tall array, row-major.
#[derive(Clone, Copy, Debug)]
pub struct Tall<'a, T = f64> {
    pub numbers: &'a [T],
    pub width: usize,
}

impl<'a> Tall<'a> {
    fn matrix(self, rows: usize) -> MatRef<'a, f64> {
        assert_eq!(
            self.numbers.len(),
            rows * self.width,
            "an array should be {rows} x {}",
            self.width
        );
        MatRef::from_row_major_slice(self.numbers, rows, self.width)
    }
}

fn total(x: &[Tall<'_>]) -> usize {
    x.iter().map(|x| x.width).sum()
}

/// C = X^T W.
///
/// Shapes: X is rows x d in pieces, `w` rows x `w.width`, C is d x `w.width`, row-major.
/// Cost: 2 * rows * d * `w.width` operations.
/// Reproducibility: a function of the arguments, on one instruction set.
/// Panics: on other shapes.
pub fn cross(rows: usize, x: &[Tall<'_>], w: Tall<'_>) -> Vec<f64> {
    let mut out = vec![0.0; total(x) * w.width];
    let w_matrix = w.matrix(rows);
    let mut rest = out.as_mut_slice();
    for x in x {
        let (piece, after) = rest.split_at_mut(x.width * w.width);
        rest = after;
        matmul::matmul(
            MatMut::from_row_major_slice_mut(piece, x.width, w.width),
            Accum::Replace,
            x.matrix(rows).transpose(),
            w_matrix,
            1.0,
            Par::Seq,
        );
    }
    out
}

/// W <- W - X C.
///
/// Shapes: as for [`cross`].
/// Cost, reproducibility, panics: as for [`cross`].
pub fn deflate(rows: usize, x: &[Tall<'_>], c: &[f64], width: usize, w: &mut [f64]) {
    add_product(rows, x, c, width, -1.0, w);
}

/// W <- X C.
///
/// Shapes: X is rows x d in pieces, `c` d x `width`, `w` rows x `width` (overwritten), row-major.
/// Cost, reproducibility, panics: as for [`cross`].
pub fn multiply(rows: usize, x: &[Tall<'_>], c: &[f64], width: usize, w: &mut [f64]) {
    w.fill(0.0);
    add_product(rows, x, c, width, 1.0, w);
}

/// W <- W + sign X C.
fn add_product(rows: usize, x: &[Tall<'_>], c: &[f64], width: usize, sign: f64, w: &mut [f64]) {
    assert_eq!(c.len(), total(x) * width, "coefficients of another size");
    assert_eq!(w.len(), rows * width, "a result of another size");
    let mut rest = c;
    for x in x {
        let (piece, after) = rest.split_at(x.width * width);
        rest = after;
        matmul::matmul(
            MatMut::from_row_major_slice_mut(w, rows, width),
            Accum::Add,
            x.matrix(rows),
            MatRef::from_row_major_slice(piece, x.width, width),
            sign,
            Par::Seq,
        );
    }
}

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
/// Method: Householder reflections to tridiagonal form, then divide and conquer (Golub, Van Loan, 4th ed., 8.3 and 8.4);
/// only the vectors that are kept are transformed back.
/// Cost: about 5 * n^3 + 4 * n^2 * keep operations, 4/3 * n^3 of them a column at a time.
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
    if n == 0 {
        return Ok(Eigen {
            values: Vec::new(),
            vectors: Vec::new(),
        });
    }
    // What the whole takes is enough for each of its parts.
    let need =
        self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    let mut room = MemBuffer::new(need);
    // A copy, so that its place in memory is `faer`'s own choice.
    let mut reflections = MatRef::from_row_major_slice(a, n, n).to_owned();
    let height = recommended_block_size::<f64>(n, n);
    let mut factors = Mat::<f64>::zeros(height, n - 1);
    tridiag_in_place(
        reflections.as_mut(),
        factors.as_mut(),
        Par::Seq,
        MemStack::new(&mut room),
        Default::default(),
    );
    let mut middle = Diag::<f64>::zeros(n);
    let mut beside = Diag::<f64>::zeros(n);
    for i in 0..n {
        middle[i] = reflections[(i, i)];
        if i + 1 < n {
            beside[i] = reflections[(i + 1, i)];
        }
    }
    let mut values = Diag::<f64>::zeros(n);
    let mut all = (keep > 0).then(|| Mat::<f64>::zeros(n, n));
    tridiagonal_self_adjoint_evd(
        middle.as_ref(),
        beside.as_ref(),
        values.as_mut(),
        all.as_mut().map(|all| all.as_mut()),
        Par::Seq,
        MemStack::new(&mut room),
        Default::default(),
    )
    .map_err(|why| failed(&format!("{why:?}")))?;
    let values: Vec<f64> = (0..n).rev().map(|i| values.column_vector()[i]).collect();
    let mut vectors = vec![0.0; n * keep];
    if let Some(all) = &mut all {
        let mut kept = all.as_mut().subcols_mut(n - keep, keep);
        let need = apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(
            n - 1,
            height,
            keep,
        );
        apply_block_householder_sequence_on_the_left_in_place_with_conj(
            reflections.as_ref().submatrix(1, 0, n - 1, n - 1),
            factors.as_ref(),
            Conj::No,
            kept.as_mut().subrows_mut(1, n - 1),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(need)),
        );
        for (i, row) in vectors.chunks_exact_mut(keep).enumerate() {
            for (j, to) in row.iter_mut().enumerate() {
                *to = kept[(i, keep - 1 - j)];
            }
        }
    }
    if !values.is_sorted_by(|a, b| a >= b) || !vectors.iter().all(|x| x.is_finite()) {
        return Err(failed("it gave numbers that are not finite"));
    }
    Ok(Eigen { values, vectors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::sketch::numbers;

    fn entry(rows: usize, x: &[Tall<'_>], row: usize, column: usize) -> f64 {
        let mut first = 0;
        for x in x {
            if column < first + x.width {
                assert_eq!(x.numbers.len(), rows * x.width);
                return x.numbers[row * x.width + column - first];
            }
            first += x.width;
        }
        unreachable!("column {column}")
    }

    #[test]
    fn products_are_products_in_any_pieces() {
        for (rows, widths, width) in [
            (1, vec![1], 1),
            (7, vec![3, 5], 2),
            (300, vec![32, 8, 16], 24),
            (33, vec![8], 40),
        ] {
            let pieces: Vec<Vec<f64>> = widths
                .iter()
                .enumerate()
                .map(|(i, &w)| numbers(rows * w, i as u64))
                .collect();
            let x: Vec<Tall<'_>> = pieces
                .iter()
                .zip(&widths)
                .map(|(numbers, &width)| Tall { numbers, width })
                .collect();
            let d: usize = widths.iter().sum();
            let w = numbers(rows * width, 77);
            let c = cross(rows, &x, Tall { numbers: &w, width });
            for j in 0..d {
                for k in 0..width {
                    let exact: f64 = (0..rows)
                        .map(|i| entry(rows, &x, i, j) * w[i * width + k])
                        .sum();
                    assert!((c[j * width + k] - exact).abs() < 1e-12 * rows as f64);
                }
            }
            let mut product = vec![0.0; rows * width];
            multiply(rows, &x, &c, width, &mut product);
            let mut left = w.clone();
            deflate(rows, &x, &c, width, &mut left);
            for i in 0..rows {
                for k in 0..width {
                    let exact: f64 = (0..d)
                        .map(|j| entry(rows, &x, i, j) * c[j * width + k])
                        .sum();
                    let at = i * width + k;
                    assert!((product[at] - exact).abs() < 1e-11 * rows as f64);
                    assert!((left[at] - (w[at] - exact)).abs() < 1e-11 * rows as f64);
                }
            }
        }
    }

    #[test]
    fn the_place_in_memory_changes_no_bit() {
        let (rows, d, width) = (517, 40, 24);
        let (x, w) = (numbers(rows * d + 8, 1), numbers(rows * width + 8, 2));
        let at = |offset: usize| {
            let x = Tall {
                numbers: &x[..rows * d],
                width: d,
            };
            let mut moved = vec![0.0; rows * width + 8];
            moved[offset..offset + rows * width].copy_from_slice(&w[..rows * width]);
            let numbers = &moved[offset..offset + rows * width];
            let c = cross(rows, &[x], Tall { numbers, width });
            let mut left = moved.clone();
            deflate(
                rows,
                &[x],
                &c,
                width,
                &mut left[offset..offset + rows * width],
            );
            (c, left[offset..offset + rows * width].to_vec())
        };
        let there = at(0);
        for offset in 1..8 {
            assert_eq!(at(offset), there, "{offset} numbers further");
        }
    }

    #[test]
    fn eigenvalues_of_made_matrices() {
        for n in [1, 2, 5, 40, 130] {
            // A symmetric matrix with many equal eigenvalues: a reflection plus a diagonal.
            let v = numbers::<f64>(n, 3);
            let square: f64 = v.iter().map(|x| x * x).sum();
            let mut a = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..n {
                    a[i * n + j] = f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / square;
                }
            }
            let eigen = eigen(n, &a, n).unwrap();
            for (i, &value) in eigen.values.iter().enumerate() {
                let exact = if i + 1 == n { -1.0 } else { 1.0 };
                assert!((value - exact).abs() < 1e-13);
            }
            for i in 0..n {
                for j in 0..n {
                    let product: f64 = (0..n)
                        .map(|c| {
                            eigen.vectors[i * n + c] * eigen.values[c] * eigen.vectors[j * n + c]
                        })
                        .sum();
                    assert!((product - a[i * n + j]).abs() < 1e-13);
                }
            }
        }
        assert!(eigen(1, &[f64::NAN], 1).is_err());
    }
}
