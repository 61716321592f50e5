//! Products with tall arrays that stand in `f32`: those of a Krylov basis whose reads are in `f32`, where what lies beyond
//! the seventh digit is rounding of the reads anyway.
//!
//! In arithmetic of `f64` where what is found is a part of the answer; in that of `f32` where it only takes away what
//! rounding has left: a basis that is orthonormal to the root of roundoff gives T to roundoff (Simon 1984). Sums over rows
//! are of `f64` in any case, one run of rows after the other.
//!
//! By [`narrow`](super::narrow) on one thread: neither the number of threads nor the instruction set can change a bit.

use std::ops::Range;

use super::{
    narrow::{Strides, add_product as add_narrow},
    real::Real,
    tall::Tall,
};

/// Rows of a run: two arrays of them, 32 columns wide, stay in the first cache.
const RUN: usize = 128;

fn total(x: &[Tall<'_, f32>]) -> usize {
    x.iter().map(|x| x.width).sum()
}

fn runs(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows)
        .step_by(RUN)
        .map(move |start| start..rows.min(start + RUN))
}

/// Rows of all pieces side by side, as `f64`.
fn widened(x: &[Tall<'_, f32>], rows: &Range<usize>, to: &mut Vec<f64>) {
    let d = total(x);
    to.resize(rows.len() * d, 0.0);
    let mut first = 0;
    for x in x {
        let from = &x.numbers[rows.start * x.width..rows.end * x.width];
        for (to, from) in to.chunks_exact_mut(d).zip(from.chunks_exact(x.width)) {
            for (to, &from) in to[first..first + x.width].iter_mut().zip(from) {
                *to = f64::from(from);
            }
        }
        first += x.width;
    }
}

fn check(rows: usize, x: &[Tall<'_, f32>]) {
    for x in x {
        let (len, width) = (x.numbers.len(), x.width);
        assert_eq!(len, rows * width, "an array should be {rows} x {width}");
    }
}

/// C = X^T W in arithmetic of `f64`.
///
/// Shapes: X is rows x d in pieces, `w` rows x `w.width`, C is d x `w.width`, row-major.
/// Cost: 2 * rows * d * `w.width` operations.
/// Reproducibility: a function of the arguments, on every instruction set.
/// Panics: on other shapes.
pub fn cross(rows: usize, x: &[Tall<'_, f32>], w: Tall<'_>) -> Vec<f64> {
    check(rows, x);
    let (d, width) = (total(x), w.width);
    let mut out = vec![0.0; d * width];
    let mut wide = Vec::new();
    for run in runs(rows) {
        widened(x, &run, &mut wide);
        let w = &w.numbers[run.start * width..run.end * width];
        add_narrow(d, width, &wide, Strides::of_columns(d), w, &mut out);
    }
    out
}

/// C = X^T W in arithmetic of `f32`, sums of runs in `f64`.
///
/// Shapes, cost, reproducibility, panics: as for [`cross`].
/// Error: about 2^-24 * ||x|| * ||w|| for each pair of columns.
pub fn cross_in_single(rows: usize, x: &[Tall<'_, f32>], w: Tall<'_, f32>) -> Vec<f64> {
    check(rows, x);
    let (d, width) = (total(x), w.width);
    let mut out = vec![0.0; d * width];
    let mut part: Vec<f32> = Vec::new();
    for run in runs(rows) {
        let w = &w.numbers[run.start * width..run.end * width];
        let mut rest = out.as_mut_slice();
        for x in x {
            let (to, after) = rest.split_at_mut(x.width * width);
            rest = after;
            part.clear();
            part.resize(to.len(), 0.0);
            let own = &x.numbers[run.start * x.width..run.end * x.width];
            let strides = Strides::of_columns(x.width);
            add_narrow(x.width, width, own, strides, w, &mut part);
            for (to, &part) in to.iter_mut().zip(&part) {
                *to += f64::from(part);
            }
        }
    }
    out
}

/// W <- W + X C in arithmetic of `f64`.
///
/// Shapes: X is rows x d in pieces, `c` d x `width`, `w` rows x `width`, row-major.
/// Cost, reproducibility, panics: as for [`cross`].
pub fn add_product(rows: usize, x: &[Tall<'_, f32>], c: &[f64], width: usize, w: &mut [f64]) {
    check(rows, x);
    let d = total(x);
    assert_eq!(c.len(), d * width, "coefficients of another size");
    assert_eq!(w.len(), rows * width, "a result of another size");
    let mut wide = Vec::new();
    for run in runs(rows) {
        widened(x, &run, &mut wide);
        let w = &mut w[run.start * width..run.end * width];
        add_narrow(run.len(), width, &wide, Strides::of_rows(d), c, w);
    }
}

/// (Q - X C) R^-1 in arithmetic of `f32`.
///
/// Shapes: X is rows x d in pieces, `c` d x `q.width`, `inverse` of R is `q.width` x `q.width`, `out` as Q, row-major.
/// Cost: 2 * rows * (d + `q.width`) * `q.width` operations.
/// Reproducibility, panics: as for [`cross`].
pub fn deflated(
    rows: usize,
    x: &[Tall<'_, f32>],
    c: &[f64],
    q: Tall<'_, f32>,
    inverse: &[f64],
    out: &mut [f32],
) {
    check(rows, x);
    let (d, width) = (total(x), q.width);
    assert_eq!(c.len(), d * width, "coefficients of another size");
    assert_eq!(inverse.len(), width * width, "a triangle of another size");
    assert_eq!(out.len(), rows * width, "a result of another size");
    let c: Vec<f32> = c.iter().map(|&x| -x as f32).collect();
    let inverse: Vec<f32> = inverse.iter().map(|&x| x as f32).collect();
    let is_one = |(at, x): (usize, &f32)| *x == f32::from(u8::from(at % (width + 1) == 0));
    let same = inverse.iter().enumerate().all(is_one);
    let mut left: Vec<f32> = Vec::new();
    for run in runs(rows) {
        let numbers = run.start * width..run.end * width;
        left.clear();
        left.extend_from_slice(&q.numbers[numbers.clone()]);
        let mut rest = c.as_slice();
        for x in x {
            let (c, after) = rest.split_at(x.width * width);
            rest = after;
            let own = &x.numbers[run.start * x.width..run.end * x.width];
            let strides = Strides::of_rows(x.width);
            add_narrow(run.len(), width, own, strides, c, &mut left);
        }
        let out = &mut out[numbers];
        if same {
            out.copy_from_slice(&left);
        } else {
            out.fill(0.0);
            let strides = Strides::of_rows(width);
            add_narrow(run.len(), width, &left, strides, &inverse, out);
        }
    }
}

/// Rounded to the kind of number that is wanted.
pub fn rounded<T: Real>(from: &[f64], to: &mut [T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = T::from_f64(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::{sketch::numbers, tall};

    fn wide(numbers: &[f32]) -> Vec<f64> {
        numbers.iter().map(|&x| f64::from(x)).collect()
    }

    #[test]
    fn products_are_those_of_the_same_numbers_in_f64() {
        for (rows, widths, width) in [
            (1, vec![1], 1),
            (7, vec![3, 5], 2),
            (RUN, vec![32], 16),
            (3 * RUN + 77, vec![32, 8, 16], 24),
        ] {
            let pieces: Vec<Vec<f32>> = widths
                .iter()
                .enumerate()
                .map(|(i, &w)| numbers(rows * w, i as u64))
                .collect();
            let wider: Vec<Vec<f64>> = pieces.iter().map(|piece| wide(piece)).collect();
            let x: Vec<Tall<'_, f32>> = pieces
                .iter()
                .zip(&widths)
                .map(|(numbers, &width)| Tall { numbers, width })
                .collect();
            let x_wide: Vec<Tall<'_>> = wider
                .iter()
                .zip(&widths)
                .map(|(numbers, &width)| Tall { numbers, width })
                .collect();
            let w = numbers(rows * width, 77);
            let w_wide = wide(&w);
            let of_w = Tall {
                numbers: w_wide.as_slice(),
                width,
            };
            let near = |found: &[f64], wanted: &[f64], tolerance: f64| {
                assert_eq!(found.len(), wanted.len());
                for (found, wanted) in found.iter().zip(wanted) {
                    assert!((found - wanted).abs() <= tolerance, "{found} {wanted}");
                }
            };
            let wanted = tall::cross(rows, &x_wide, of_w);
            near(&cross(rows, &x, of_w), &wanted, 1e-13 * rows as f64);
            let single = Tall {
                numbers: w.as_slice(),
                width,
            };
            let found = cross_in_single(rows, &x, single);
            near(&found, &wanted, 1e-7 * rows as f64);

            let mut wanted_left = w_wide.clone();
            tall::deflate(rows, &x_wide, &wanted, width, &mut wanted_left);
            let mut left = w_wide.clone();
            let less: Vec<f64> = wanted.iter().map(|x| -x).collect();
            add_product(rows, &x, &less, width, &mut left);
            near(&left, &wanted_left, 1e-12 * rows as f64);

            let one = |i: usize| f64::from(u8::from(i.is_multiple_of(width + 1)));
            for scale in [1.0, 3.0] {
                let inverse: Vec<f64> = (0..width * width).map(|i| scale * one(i)).collect();
                let small: Vec<f64> = wanted.iter().map(|c| c / rows as f64).collect();
                let mut wanted_left = w_wide.clone();
                tall::deflate(rows, &x_wide, &small, width, &mut wanted_left);
                let wanted_left: Vec<f64> = wanted_left.iter().map(|x| scale * x).collect();
                let mut out = vec![0.0; rows * width];
                deflated(rows, &x, &small, single, &inverse, &mut out);
                near(&wide(&out), &wanted_left, 1e-5);
            }
        }
    }
}
