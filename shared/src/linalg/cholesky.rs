//! QR of a tall array from its Gram matrix, twice: products of tall arrays and nothing else, in half the time of
//! reflections where the array comes cold into the cache.
//!
//! It is only for columns that are far from dependent, and it finds out itself whether they are: a pivot that cancels, or
//! columns that are not nearly orthonormal after the first round, and there is no result. After a first round that has left
//! Q^T Q within 1e-3 of I, the second leaves rounding (Yamamoto, Nakatsukasa, Yanagisawa, Fukaya 2015). Scales of columns do
//! not matter.

use super::tall::{self, Tall};

/// What is left of a column's square when those before it are taken away, relative to it: from here on it is trusted.
const PIVOT_MIN: f64 = 1e-5;
/// Largest entry of Q^T Q - I after the first round.
const NEAR: f64 = 1e-3;
/// Squares of entries between these stay far inside the range of f64.
const ENTRY_MIN: f64 = 1e-130;
const ENTRY_MAX: f64 = 1e130;

/// A = Q R with R's diagonal positive, or nothing.
///
/// Shapes: `a` is rows x cols, Q rows x cols, R cols x cols, row-major.
/// Method: CholeskyQR2 with explicit inverses of the triangles, whose condition the pivots bound.
/// Cost: 8 * rows * cols^2 operations.
/// Reproducibility: a function of the arguments, on one instruction set.
/// Panics: when `a` has another size.
pub fn qr(rows: usize, cols: usize, a: &[f64]) -> Option<(Vec<f64>, Vec<f64>)> {
    assert_eq!(a.len(), rows * cols, "a should be {rows} x {cols}");
    let largest = a.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    if cols == 0 || rows < 4 * cols || !(ENTRY_MIN..=ENTRY_MAX).contains(&largest) {
        return None;
    }
    let gram = |numbers: &[f64]| {
        let tall = Tall {
            numbers,
            width: cols,
        };
        tall::cross(rows, &[tall], tall)
    };
    let product = |numbers: &[f64], c: &[f64]| {
        let tall = Tall {
            numbers,
            width: cols,
        };
        let mut out = vec![0.0; rows * cols];
        tall::multiply(rows, &[tall], c, cols, &mut out);
        out
    };
    let first = triangle(cols, &gram(a))?;
    let near = product(a, &inverse(cols, &first));
    let gram_of_near = gram(&near);
    let is_near = gram_of_near.iter().enumerate().all(|(at, x)| {
        let wanted = if at % (cols + 1) == 0 { 1.0 } else { 0.0 };
        (x - wanted).abs() <= NEAR
    });
    if !is_near {
        return None;
    }
    let second = triangle(cols, &gram_of_near)?;
    let q = product(&near, &inverse(cols, &second));
    let mut r = vec![0.0; cols * cols];
    for i in 0..cols {
        for k in i..cols {
            let factor = second[i * cols + k];
            for j in k..cols {
                r[i * cols + j] += factor * first[k * cols + j];
            }
        }
    }
    Some((q, r))
}

/// Squares of what is left of a column are taken to be no less.
const COMPLEMENT_MIN: f64 = 1e-6;

/// R with R^T R = I - C^T C, and R^-1: the triangle of Q - X C, where C = X^T Q and both X and Q are orthonormal.
///
/// Shapes: `c` is d x w, both results w x w, row-major.
/// Method: Cholesky. Columns of which C leaves less than a thousandth come out too short, not endless.
/// Cost: 2 * d * w^2 operations.
/// Reproducibility: a function of the arguments, on one instruction set.
/// Panics: when `c` has another size.
pub fn complement(d: usize, w: usize, c: &[f64]) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(c.len(), d * w, "c should be {d} x {w}");
    let tall = Tall {
        numbers: c,
        width: w,
    };
    let mut r = tall::cross(d, &[tall], tall);
    for (at, x) in r.iter_mut().enumerate() {
        *x = f64::from(u8::from(at % (w + 1) == 0)) - *x;
    }
    for k in 0..w {
        let (above, below) = r.split_at_mut((k + 1) * w);
        let row = &mut above[k * w..];
        row[..k].fill(0.0);
        row[k] = row[k].max(COMPLEMENT_MIN);
        let root = row[k].sqrt();
        for x in &mut row[k..] {
            *x /= root;
        }
        for (i, below) in below.chunks_exact_mut(w).enumerate() {
            let i = k + 1 + i;
            let factor = row[i];
            for (x, y) in below[i..].iter_mut().zip(&row[i..]) {
                *x -= factor * y;
            }
        }
    }
    let inverse = inverse(w, &r);
    (r, inverse)
}

/// R^-1 for G = R^T R, n x n: what makes columns of the Gram matrix G orthonormal. None where a pivot cancels.
pub(super) fn straightens(n: usize, gram: &[f64]) -> Option<Vec<f64>> {
    Some(inverse(n, &triangle(n, gram)?))
}

/// R of G = R^T R, n x n. None where a pivot cancels.
fn triangle(n: usize, gram: &[f64]) -> Option<Vec<f64>> {
    let mut r = gram.to_vec();
    for k in 0..n {
        let (above, below) = r.split_at_mut((k + 1) * n);
        let row = &mut above[k * n..];
        let pivot = row[k];
        if pivot.is_nan() || pivot <= PIVOT_MIN * gram[k * n + k] {
            return None;
        }
        let root = pivot.sqrt();
        row[..k].fill(0.0);
        for x in &mut row[k..] {
            *x /= root;
        }
        for i in k + 1..n {
            let factor = row[i];
            let below = &mut below[(i - k - 1) * n..][..n];
            for (x, y) in below[i..].iter_mut().zip(&row[i..]) {
                *x -= factor * y;
            }
        }
    }
    Some(r)
}

/// R^-1, n x n.
fn inverse(n: usize, r: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    // Row i of it from the rows below: R X = I.
    for i in (0..n).rev() {
        let (above, below) = out.split_at_mut((i + 1) * n);
        let row = &mut above[i * n..];
        row[i] = 1.0;
        for k in i + 1..n {
            let factor = r[i * n + k];
            let below = &below[(k - i - 1) * n..][..n];
            for (x, y) in row[k..].iter_mut().zip(&below[k..]) {
                *x -= factor * y;
            }
        }
        let pivot = r[i * n + i];
        for x in &mut row[i..] {
            *x /= pivot;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::sketch::numbers;

    fn holds(rows: usize, cols: usize, a: &[f64]) -> bool {
        let Some((q, r)) = qr(rows, cols, a) else {
            return false;
        };
        for i in 0..cols {
            for j in 0..cols {
                let product: f64 = (0..rows)
                    .map(|row| q[row * cols + i] * q[row * cols + j])
                    .sum();
                let wanted = f64::from(u8::from(i == j));
                assert!(
                    (product - wanted).abs() < 1e-14,
                    "{rows} x {cols}: {product:e}"
                );
                assert!(j >= i || r[i * cols + j] == 0.0);
            }
        }
        for j in 0..cols {
            let size = (0..rows)
                .map(|row| a[row * cols + j].powi(2))
                .sum::<f64>()
                .sqrt();
            for row in 0..rows {
                let back: f64 = (0..cols).map(|k| q[row * cols + k] * r[k * cols + j]).sum();
                let left = (back - a[row * cols + j]).abs();
                assert!(
                    left <= 1e-12 * size,
                    "{rows} x {cols}: {left:e} of {size:e}"
                );
            }
        }
        true
    }

    #[test]
    fn independent_columns_of_any_scale_have_one() {
        for (rows, cols) in [(4, 1), (300, 7), (2048, 32), (700, 112)] {
            let mut a = numbers(rows * cols, 1);
            assert!(holds(rows, cols, &a), "{rows} x {cols}");
            // The first column a thousand times the others, and shares of it in all; the last very small.
            for row in a.chunks_exact_mut(cols) {
                let first = row[0];
                for x in &mut row[1..] {
                    *x += 5.0 * first;
                }
                row[0] *= 1e3;
                row[cols - 1] *= 1e-40;
            }
            assert!(holds(rows, cols, &a), "{rows} x {cols}, skewed");
        }
    }

    #[test]
    fn what_a_basis_leaves_of_another_has_the_triangle_of_pythagoras() {
        let (rows, d, w) = (500, 40, 12);
        let (x, _) = qr(rows, d, &numbers(rows * d, 5)).unwrap();
        for near in [1e-9, 1e-3, 1.0, 300.0] {
            // Columns of X, and so much less of something else.
            let mut q = numbers(rows * w, 6);
            for (q, x) in q.chunks_exact_mut(w).zip(x.chunks_exact(d)) {
                for (q, x) in q.iter_mut().zip(x) {
                    *q += near * x;
                }
            }
            let (q, _) = qr(rows, w, &q).unwrap();
            let (x, tall) = (
                Tall {
                    numbers: &x,
                    width: d,
                },
                Tall {
                    numbers: &q,
                    width: w,
                },
            );
            let c = tall::cross(rows, &[x], tall);
            let (r, inverse) = complement(d, w, &c);
            let mut left = q.clone();
            tall::deflate(rows, &[x], &c, w, &mut left);
            let mut next = vec![0.0; rows * w];
            let left = Tall {
                numbers: &left,
                width: w,
            };
            tall::multiply(rows, &[left], &inverse, w, &mut next);
            let next = Tall {
                numbers: &next,
                width: w,
            };
            let gram = tall::cross(rows, &[next], next);
            for (at, x) in gram.iter().enumerate() {
                let wanted = f64::from(u8::from(at % (w + 1) == 0));
                assert!((x - wanted).abs() < 1e-9, "{near}: {x}");
            }
            assert!((0..w).all(|i| r[i * w..i * w + i].iter().all(|x| *x == 0.0)));
        }
    }

    #[test]
    fn a_basis_that_leaves_nothing_gives_numbers_all_the_same() {
        let c: Vec<f64> = (0..9).map(|at| f64::from(u8::from(at % 4 == 0))).collect();
        let (r, inverse) = complement(3, 3, &c);
        assert!(r.iter().chain(&inverse).all(|x| x.is_finite()));
    }

    #[test]
    fn where_columns_are_nearly_dependent_it_says_so() {
        let (rows, cols) = (600, 20);
        for apart in [0.0, 1e-12, 1e-8, 1e-4] {
            let mut a = numbers(rows * cols, 2);
            for row in a.chunks_exact_mut(cols) {
                row[cols - 1] = row[0] + apart * row[cols - 1];
            }
            assert!(qr(rows, cols, &a).is_none(), "{apart}");
        }
        assert!(qr(rows, cols, &vec![0.0; rows * cols]).is_none());
        assert!(qr(rows, cols, &vec![f64::NAN; rows * cols]).is_none());
        assert!(
            qr(cols, cols, &numbers(cols * cols, 3)).is_none(),
            "not tall"
        );
        let mut a = numbers(rows * cols, 2);
        a[17] = f64::INFINITY;
        assert!(qr(rows, cols, &a).is_none());
        a[17] = f64::NAN;
        assert!(qr(rows, cols, &a).is_none());
    }
}
