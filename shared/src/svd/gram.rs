//! Tasks of the method for few columns: C = A^T A itself, and its eigenvectors.
//!
//! C is a sum over blocks. A block's part of it is summed in `f64` in the order of its rows and rounded once into
//! integers that stand for C_ij 2^(shift_i + shift_j + [`BITS`]). With 2^-shift_j at least the norm of column j of A,
//! |C_ij| <= |A e_i| |A e_j|, so sums stay below 2^BITS, whatever the scales of columns are; and blocks may come in any
//! order.
//!
//! Only i <= j stands, row by row: row i has n - i numbers. Rows are cut into parts, see [`parts`].

use serde::{Deserialize, Serialize};

use super::{Inputs, exactly, view::Map};
use crate::{
    farm::{
        bytes::{Bytes, BytesMut},
        work::WorkError,
    },
    linalg::{eigen, fixed::power_of_two},
};

/// Bits before the binary point, two kept back for rounding.
const BITS: i32 = 60;
/// Numbers of a part, if it has more than one row: 4 MiB of them are about what a core has in cache.
const PART: u64 = 1 << 19;

/// See the [module](self).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum GramWork {
    /// Row block, shifts i16[n] -> adds rows `first..first + rows` of the block's part of C.
    Fold {
        scale: i32,
        columns: u32,
        first: u32,
        rows: u32,
    },
    /// Shifts i16[wide], all parts of C (, map of a [`View`](crate::matrix::facts::View), which makes n of `wide` columns) ->
    /// eigenvalues theta f64[n], descending, zeros f64[keep], the first `keep` eigenvectors f64[n x keep].
    Eigen { columns: u32, wide: u32, keep: u32 },
}

/// First row and rows of each part of C, n x n.
pub fn parts(columns: u32) -> Vec<(u32, u32)> {
    let mut parts = Vec::new();
    let mut first = 0;
    while first < columns {
        let mut rows = 1;
        while first + rows < columns && length(columns, first, rows + 1) <= PART {
            rows += 1;
        }
        parts.push((first, rows));
        first += rows;
    }
    parts
}

/// Numbers of rows `first..first + rows`.
pub fn length(columns: u32, first: u32, rows: u32) -> u64 {
    let (n, first, rows) = (u64::from(columns), u64::from(first), u64::from(rows));
    rows * (n - first) - rows * (rows.max(1) - 1) / 2
}

impl GramWork {
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Fold { .. } => "gram-fold",
            Self::Eigen { .. } => "gram-eigen",
        }
    }

    pub fn block(&self, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
        match self {
            Self::Eigen {
                columns,
                wide,
                keep,
            } => eigen(*columns, *wide, *keep as usize, inputs),
            Self::Fold { .. } => unreachable!("{} folds", self.verb()),
        }
    }

    pub fn fold(&self, inputs: &[Bytes], sums: &mut [&mut [i64]]) -> Result<(), WorkError> {
        match self {
            Self::Fold {
                scale,
                columns,
                first,
                rows,
            } => fold(*scale, *columns, *first, *rows, inputs, sums),
            Self::Eigen { .. } => unreachable!("{} yields a block", self.verb()),
        }
    }
}

/// Shapes: A_i is r x n, `sums` one part.
/// Cost: the squares of the rows' entries, about half of them, for all parts together; two operations each.
/// Reproducibility: rows one after the other, products rounded, one addition at a time.
fn fold(
    scale: i32,
    columns: u32,
    first: u32,
    rows: u32,
    inputs: &[Bytes],
    sums: &mut [&mut [i64]],
) -> Result<(), WorkError> {
    let (n, own) = (columns as usize, first..first + rows);
    let mut inputs = Inputs::of(inputs);
    let block = inputs.block(u64::from(columns))?;
    let shifts = inputs.numbers::<i16>(n)?;
    let [sum] = sums else {
        return Err(WorkError::BadInput(
            "a Gram matrix is added to part by part".to_owned(),
        ));
    };
    exactly(sum, length(columns, first, rows) as usize)?;
    let factors: Vec<f64> = shifts
        .iter()
        .map(|&shift| power_of_two(scale) * power_of_two(i32::from(shift)))
        .collect();
    let mut part = vec![0.0f64; sum.len()];
    let starts: Vec<usize> = (0..rows)
        .map(|row| length(columns, first, row) as usize)
        .collect();
    let mut entries: Vec<(u32, f64)> = Vec::new();
    let mut add = |entries: &[(u32, f64)]| {
        for (at, &(i, x)) in entries.iter().enumerate() {
            if own.contains(&i) {
                let to = &mut part[starts[(i - first) as usize]..];
                for &(j, y) in &entries[at..] {
                    to[(j - i) as usize] += x * y;
                }
            }
        }
    };
    let mut row = 0;
    for (r, column, value) in block.entries() {
        if r != row {
            add(&entries);
            entries.clear();
            row = r;
        }
        let factor = factors
            .get(column)
            .ok_or_else(|| WorkError::BadInput(format!("an entry in column {column} of {n}")))?;
        entries.push((column as u32, value * factor));
    }
    add(&entries);
    let unit = power_of_two(BITS);
    // It may fail, so it comes before the first addition.
    if let Some(bad) = part.iter().find(|x| x.is_nan() || x.abs() > 2.0) {
        return Err(WorkError::Numbers(format!(
            "a product of columns of {bad} where at most 1 is possible"
        )));
    }
    for (sum, x) in sum.iter_mut().zip(&part) {
        *sum += (x * unit).round_ties_even() as i64;
    }
    Ok(())
}

fn eigen(columns: u32, wide: u32, keep: usize, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let (n, w) = (columns as usize, wide as usize);
    let mut inputs = Inputs::of(inputs);
    let shifts = inputs.numbers::<i16>(w)?;
    let undo: Vec<f64> = shifts
        .iter()
        .map(|&shift| power_of_two(-i32::from(shift)))
        .collect();
    let mut c = vec![0.0; w * w];
    let unit = power_of_two(-BITS);
    for (first, rows) in parts(wide) {
        let mut part = inputs.numbers::<i64>(length(wide, first, rows) as usize)?;
        for i in first as usize..(first + rows) as usize {
            let (row, rest) = part.split_at(w - i);
            part = rest;
            for (j, &x) in (i..w).zip(row) {
                let x = x as f64 * unit * undo[i] * undo[j];
                c[i * w + j] = x;
                c[j * w + i] = x;
            }
        }
    }
    if inputs.left() > 0 {
        c = Map::read(inputs.bytes()?, n)?.around(&c);
    }
    exactly(&c, n * n)?;
    let eigen::Eigen { values, vectors } = eigen::eigen(n, &c, keep)?;
    drop(c);
    let mut out = BytesMut::zeroed_for::<f64>(n + keep + n * keep)?;
    let numbers = out.numbers_mut::<f64>();
    numbers[..n].copy_from_slice(&values);
    numbers[n + keep..].copy_from_slice(&vectors);
    Ok(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_every_row_once() {
        for columns in [1, 2, 7, 1000, 1100, 4096] {
            let mut next = 0;
            let mut total = 0;
            for (first, rows) in parts(columns) {
                assert_eq!(first, next);
                let numbers = length(columns, first, rows);
                assert!(rows == 1 || numbers <= PART);
                let by_row = (first..first + rows).map(|i| u64::from(columns - i));
                assert_eq!(numbers, by_row.sum::<u64>());
                total += numbers;
                next += rows;
            }
            assert_eq!(next, columns);
            assert_eq!(total, u64::from(columns) * (u64::from(columns) + 1) / 2);
        }
        assert!(parts(4096).len() > 8);
    }
}
