//! Blocks that hold [A | P] where the matrix is (A - P Q^T) diag(d), see [`View`](crate::matrix::facts::View): the map
//! L = [diag(d); -Q^T diag(d)] on its way in, and its transpose on the way out.

use super::{Inputs, Shape, exactly, layout::Panels, with_precision};
use crate::{
    farm::{
        bytes::{Bytes, BytesMut},
        work::WorkError,
    },
    linalg::real::Real,
};

/// Rows whose part of a product is summed by itself: errors of a sum of n numbers grow with the longest run.
const RUN: usize = 1024;

/// d f64[n], then Q f64[n x s].
pub(super) struct Map<'a> {
    d: &'a [f64],
    q: &'a [f64],
    added: usize,
}

impl<'a> Map<'a> {
    pub fn read(block: &'a Bytes, columns: usize) -> Result<Self, WorkError> {
        let all: &[f64] = block.numbers()?;
        let added = (all.len() / columns.max(1)).saturating_sub(1);
        let (d, q) = exactly(all, columns * (1 + added))?.split_at(columns);
        Ok(Self { d, q, added })
    }

    /// s
    pub fn added(&self) -> usize {
        self.added
    }

    /// L^T C L for C of (n + s) x (n + s), row-major.
    pub fn around(&self, c: &[f64]) -> Vec<f64> {
        let n = self.d.len();
        let mut out = Vec::with_capacity((n + self.added) * n);
        for row in c.chunks_exact(n + self.added) {
            let (own, tail) = row.split_at(n);
            for (j, (&x, &d)) in own.iter().zip(self.d).enumerate() {
                let loads = &self.q[j * self.added..][..self.added];
                let taken: f64 = loads.iter().zip(tail).map(|(q, t)| q * t).sum();
                out.push((x - taken) * d);
            }
        }
        let tail = out.split_off(n * n);
        self.pull(0, n, &tail, &mut out);
        out
    }

    /// Rows of L^T Z from `first` on: `rows` are those of Z, `tail` its last s.
    pub fn pull(&self, first: usize, width: usize, tail: &[f64], rows: &mut [f64]) {
        for (at, row) in rows.chunks_exact_mut(width).enumerate() {
            let at = first + at;
            let loads = &self.q[at * self.added..][..self.added];
            for (&q, tail) in loads.iter().zip(tail.chunks_exact(width)) {
                for (z, &h) in row.iter_mut().zip(tail) {
                    *z -= q * h;
                }
            }
            for z in row {
                *z *= self.d[at];
            }
        }
    }
}

pub(super) fn spread(shape: Shape, panel: u16, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, spread_of, shape, panel, inputs)
}

fn spread_of<T: Real>(shape: Shape, panel: u16, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let (n, w) = (
        shape.columns as usize,
        Panels::of(shape).widths[panel as usize],
    );
    let mut inputs = Inputs::of(inputs);
    let x = inputs.numbers::<T>(n * w)?;
    let map = Map::read(inputs.bytes()?, n)?;
    let s = map.added;
    let mut out = BytesMut::zeroed_for::<T>((n + s) * w)?;
    let (rows, tail) = out.numbers_mut::<T>().split_at_mut(n * w);
    for ((to, from), &d) in rows.chunks_exact_mut(w).zip(x.chunks_exact(w)).zip(map.d) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = T::from_f64(from.to_f64() * d);
        }
    }
    if s == 0 {
        return Ok(out.freeze());
    }
    // Of the rows as they were rounded: what is left of the mean in them is what has to be taken away.
    let (mut total, mut run) = (vec![0.0; s * w], vec![0.0; s * w]);
    for (rows, loads) in rows.chunks(RUN * w).zip(map.q.chunks(RUN * s)) {
        run.fill(0.0);
        for (row, loads) in rows.chunks_exact(w).zip(loads.chunks_exact(s)) {
            for (run, &q) in run.chunks_exact_mut(w).zip(loads) {
                for (run, &x) in run.iter_mut().zip(row) {
                    *run += q * x.to_f64();
                }
            }
        }
        for (total, run) in total.iter_mut().zip(&run) {
            *total += run;
        }
    }
    for (to, total) in tail.iter_mut().zip(total) {
        *to = T::from_f64(-total);
    }
    Ok(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        linalg::{fixed::power_of_two, sparse},
        matrix::{
            block::RowBlock,
            encode::{Encoding, encode},
        },
        svd::{Precision, Slice, tsqr},
    };

    /// B L x and L^T B^T y against the matrix written out.
    #[test]
    fn both_ways_are_those_of_the_matrix_itself() {
        let (n, s, rows, w) = (3000usize, 2usize, 5usize, 8usize);
        let number = |i: usize| ((i * 7919) % 101) as f64 / 50.0 - 1.0;
        let b = |r: usize, c: usize| number(r * 17 + c * 3 + 1);
        let map: Vec<f64> = (0..n * (1 + s)).map(|i| number(i) + 0.1).collect();
        let (d, q) = map.split_at(n);
        let matrix = |r: usize, c: usize| {
            let taken: f64 = (0..s).map(|e| b(r, n + e) * q[c * s + e]).sum();
            (b(r, c) - taken) * d[c]
        };
        let starts: Vec<usize> = (0..=rows).map(|r| r * (n + s)).collect();
        let columns: Vec<u32> = (0..rows * (n + s)).map(|i| (i % (n + s)) as u32).collect();
        let values: Vec<f64> = (0..rows * (n + s))
            .map(|i| b(i / (n + s), i % (n + s)))
            .collect();
        let wide = (n + s) as u64;
        let block = encode(&Encoding::F64, 0, wide, &starts, &columns, &values).unwrap();
        let block = RowBlock::parse(block).unwrap();

        let shape = Shape {
            columns: n as u64,
            width: w as u32,
            precision: Precision::F64,
            panel: w as u16,
        };
        let x: Vec<f64> = (0..n * w).map(|i| number(i + 5)).collect();
        let map = Bytes::from_numbers(&map).unwrap();
        let panel = spread(shape, 0, &[Bytes::from_numbers(&x).unwrap(), map.clone()]).unwrap();
        let mut y = vec![0.0; rows * w];
        sparse::multiply(&block, 1.0, panel.numbers::<f64>().unwrap(), w, &mut y);
        let mut wanted = vec![0.0; n * w];
        for r in 0..rows {
            for c in 0..w {
                let sum: f64 = (0..n).map(|j| matrix(r, j) * x[j * w + c]).sum();
                assert!((y[r * w + c] - sum).abs() < 1e-10, "{} {sum}", y[r * w + c]);
                for (j, z) in wanted.chunks_exact_mut(w).enumerate() {
                    z[c] += matrix(r, j) * y[r * w + c];
                }
            }
        }

        let shifts = vec![0i16; n + s];
        let extra = 40;
        let mut z = vec![0i64; (n + s) * w];
        let by = sparse::Shifts {
            of_columns: &shifts,
            extra,
        };
        sparse::transpose_fold(&block, power_of_two(0), &y, w, by, &mut z);
        let (own, tail) = z.split_at(n * w);
        let slice = Slice {
            first: 2048,
            rows: (n - 2048) as u32,
        };
        let chunks = [
            Bytes::from_numbers(&own[2048 * w..]).unwrap(),
            Bytes::from_numbers(tail).unwrap(),
            map,
        ];
        let found = tsqr::unfolded(shape, slice, extra, &shifts, &chunks).unwrap();
        for (found, wanted) in found.iter().zip(&wanted[2048 * w..]) {
            assert!((found - wanted).abs() < 1e-8, "{found} {wanted}");
        }
        let missing = tsqr::unfolded(shape, slice, extra, &shifts, &chunks[..2]);
        assert!(missing.is_err(), "a chunk is no map");
    }
}
