//! Products of tall row-major arrays of `f64`: what keeps a Krylov basis orthonormal.
//!
//! A basis X stands as several arrays of the same height side by side, X = [X_1 .. X_q], in the pieces in which it grew.
//! Everything is computed by `faer` on one thread: the number of threads cannot change a bit. Another instruction set can.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul};

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
}
