//! Tasks of the block Krylov method on A^T A with thick restart, but for its pass over A, which is
//! [`SvdWork::Power`](super::SvdWork::Power).
//!
//! State: an orthonormal basis X = [X_1 .. X_q] of n x d, T = X^T A^T A X of d x d. A step reads A once: Z = A^T A X_q.
//! What of it is new, Z - X X^T Z, made orthonormal, is X_{q+1}:
//!
//! ```text
//! Z = X H + X_{q+1} R,   H = X^T Z the last columns of T
//! ```
//!
//! so for an eigenpair (theta, w) of T and v = X w, ||A^T A v - theta v|| = ||R w_q|| with the last rows w_q of w: the
//! residual of every triplet is known after each read without another one. Nothing of size m stands anywhere, and Z need
//! not be kept.
//!
//! References: Golub, Luk, Overton 1981 (block Lanczos); Wu, Simon 2000 (thick restart); Musco, Musco 2015 and Tropp,
//! Webber 2023 (randomized block Krylov); Barlow, Smoktunowicz 2013 (block Gram-Schmidt with reorthogonalization); Carson,
//! Lund, Rozloznik, Thomas 2022 (its normalization by Pythagoras).
//!
//! n-sided arrays are cut into slices of rows; each array is one block a slice, H[rows x width], row-major. H is f32 for
//! bases whose reads are in f32, else f64.

use serde::{Deserialize, Serialize};

use super::{
    Inputs, Precision, Shape, Slice, exactly,
    layout::Panels,
    pieces::{Pieces, held_as, pieces},
    tsqr, with_precision,
};
use crate::{
    farm::{
        bytes::{Bytes, BytesMut},
        work::WorkError,
    },
    linalg::{
        cholesky, dense, eigen,
        fixed::{power_of_two, round},
        real::Real,
        single,
        sketch::Sketch,
        tall::Tall,
    },
};

/// The streams of random numbers of this method: its first block, what refills it, and the guard.
pub const START: u32 = 2;
pub const REFILL: u32 = 3;
pub const GUARD: u32 = 4;

/// What T gains by one read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Columns of X before the read that the first round of Gram-Schmidt was against, the block that was read among them.
    pub local: u32,
    pub width: u32,
}

/// Random columns that are uniform in (-1, 1) / 2^ceil(log2 sqrt n), so none is longer than 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Random {
    /// n
    pub columns: u64,
    pub seed: u64,
    pub stream: u32,
    /// Tells apart what one stream is drawn for: the place of the first column.
    pub first: u32,
}

/// How a slice of columns comes to a task: what is quickly made of something smaller or as large is made where it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Given {
    /// [rows x w]
    Held(Precision),
    /// Shifts, and chunks of a sum of integers: f64[rows x w].
    Sum { shape: Shape, extra: i32 },
    /// Q of a leaf (, its factor from above f64[h x w]): their product.
    Leaf(Precision),
}

/// See the [module](self). `d` is the sum of `widths`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum KrylovWork {
    /// Nothing -> random f64[rows x w].
    Draw {
        slice: Slice,
        width: u32,
        random: Random,
    },
    /// V of an earlier run, f64[rows x given] -> f64[rows x w]: them and random columns. Where there is no entry of a
    /// vector of length 1 (NaN: a row that the earlier run did not have), there is a small random one.
    Begin {
        slice: Slice,
        given: u32,
        width: u32,
        random: Random,
    },
    /// Slices of X, W -> adds X^T W (d x w) times 2^bits. Where both are f32, so is the arithmetic.
    Cross {
        slice: Slice,
        widths: Vec<u32>,
        held: Precision,
        given: Given,
        width: u32,
        bits: i32,
    },
    /// A sum of integers -> them times 2^-bits: f64.
    CrossOut { length: u32, bits: i32 },
    /// The sum C = X^T Q for orthonormal Q -> C f64[d x w], R f64[w x w], R^-1, with R^T R = I - C^T C: the triangle of
    /// Q - X C (Pythagoras).
    Pythagoras { before: u32, width: u32, bits: i32 },
    /// The sum C = X^T W of [`Cross`](Self::Cross) (d x w) times 2^bits, slices of X, W -> W - X C [rows x w].
    Deflate {
        slice: Slice,
        widths: Vec<u32>,
        held: Precision,
        given: Given,
        width: u32,
        bits: i32,
        out: Precision,
    },
    /// The same, then as a [`Leaf`](Self::Leaf).
    ///
    /// Where columns of a slice are nearly dependent, random ones are added, 2^-44 of the largest entry of C long: where
    /// nothing new is left of W, they are what the basis goes on with (a direction that was missed, or one of many equal
    /// singular values); elsewhere they vanish in rounding.
    Fresh {
        slice: Slice,
        widths: Vec<u32>,
        held: Precision,
        given: Given,
        width: u32,
        bits: i32,
        refill: Random,
    },
    /// What [`Pythagoras`](Self::Pythagoras) yields, slices of X f32, Q f32 -> (Q - X C) R^-1 f32[rows x w].
    Next {
        slice: Slice,
        widths: Vec<u32>,
        given: Given,
        width: u32,
    },
    /// W f64[rows x w] -> R f64[h x w], then Q f64[rows x h].
    Leaf { rows: u32, width: u32 },
    /// Q of a leaf (, its factor from above f64[h x w]) -> [rows x w].
    Rows {
        rows: u32,
        width: u32,
        out: Precision,
    },
    /// Slices of all arrays, the first slice of each, then the second of each ... -> one panel [n x w_p] of them side by
    /// side. It is cut as those of `shape` are, and its numbers are `out`.
    Panel {
        shape: Shape,
        panel: u16,
        widths: Vec<u32>,
        held: Precision,
        out: Precision,
    },
    /// (T before f64[d0 x d0],) and of each read since C1 f64[local x w], C2 f64[d x w], R1, R2 f64[w x w] -> T f64[d x d],
    /// theta f64[d], residuals f64[keep] and eigenvectors f64[d x keep] of the first `keep`.
    ///
    /// H = C1 + C2 R1 and R = R2 R1, for the two rounds of Gram-Schmidt. The first round is against the last `local` columns
    /// of X only: by the recurrence there is nothing else but rounding, which the second round takes away.
    Ritz {
        before: u32,
        steps: Vec<Step>,
        keep: u32,
    },
    /// Eigenvalues theta f64[d] -> diag(theta) of the first `keep`: T after a restart.
    Restart { length: u32, keep: u32 },
    /// Bytes of a larger block -> the same, to be delivered.
    Tell { bytes: u64 },
    /// f64[rows x width] -> its first `keep` columns.
    Columns { rows: u32, width: u32, keep: u32 },
    /// Slices of arrays -> them side by side f64[rows x d].
    Join {
        rows: u32,
        widths: Vec<u32>,
        held: Precision,
    },
    /// Eigenvectors f64[d x keep], slices of X -> X W [rows x keep].
    Rotate {
        rows: u32,
        widths: Vec<u32>,
        held: Precision,
        keep: u32,
        out: Precision,
    },
}

impl KrylovWork {
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Draw { .. } => "draw",
            Self::Begin { .. } => "begin",
            Self::Cross { .. } => "cross",
            Self::CrossOut { .. } => "cross-out",
            Self::Pythagoras { .. } => "pythagoras",
            Self::Deflate { .. } => "deflate",
            Self::Fresh { .. } => "fresh",
            Self::Next { .. } => "next",
            Self::Leaf { .. } => "tall-leaf",
            Self::Rows { .. } => "rows",
            Self::Panel { .. } => "panel",
            Self::Ritz { .. } => "ritz",
            Self::Restart { .. } => "restart",
            Self::Tell { .. } => "tell",
            Self::Columns { .. } => "columns",
            Self::Join { .. } => "join",
            Self::Rotate { .. } => "rotate",
        }
    }

    pub fn block(&self, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
        match self {
            Self::Draw {
                slice,
                width,
                random,
            } => draw(*slice, *width, *random),
            Self::Begin {
                slice,
                given,
                width,
                random,
            } => begin(*slice, *given, *width, *random, inputs),
            Self::CrossOut { length, bits } => cross_out(*length, *bits, inputs),
            Self::Pythagoras {
                before,
                width,
                bits,
            } => pythagoras(*before as usize, *width as usize, *bits, inputs),
            Self::Deflate {
                slice,
                widths,
                held,
                given,
                width,
                bits,
                out,
            } => {
                let (left, _) = deflated(*slice, widths, *held, *given, *width, *bits, inputs)?;
                held_as(*out, &left)
            }
            Self::Fresh {
                slice,
                widths,
                held,
                given,
                width,
                bits,
                refill,
            } => {
                let (mut left, largest) =
                    deflated(*slice, widths, *held, *given, *width, *bits, inputs)?;
                let (rows, columns) = (slice.rows as usize, *width as usize);
                let (q, r) = cholesky::qr(rows, columns, &left).unwrap_or_else(|| {
                    let factor = largest * power_of_two(REFILL_EXPONENT);
                    for (to, from) in left.iter_mut().zip(random_rows(*slice, *width, *refill)) {
                        *to += from * factor;
                    }
                    dense::qr::<f64>(rows, columns, &left)
                });
                tsqr::factors(&q, &r)
            }
            Self::Next {
                slice,
                widths,
                given,
                width,
            } => next(*slice, widths, *given, *width as usize, inputs),
            Self::Leaf { rows, width } => {
                let (rows, width) = (*rows as usize, *width as usize);
                let w = Inputs::of(inputs).numbers::<f64>(rows * width)?;
                let (q, r) = cholesky::qr(rows, width, w)
                    .unwrap_or_else(|| dense::qr::<f64>(rows, width, w));
                tsqr::factors(&q, &r)
            }
            Self::Rows { rows, width, out } => {
                leaf_rows(&mut Inputs::of(inputs), *rows, *width as usize, *out)
            }
            Self::Panel {
                shape,
                panel,
                widths,
                held,
                out,
            } => {
                let panel_of = match (held, out) {
                    (Precision::F32, Precision::F32) => panel_of::<f32, f32>,
                    (Precision::F32, Precision::F64) => panel_of::<f32, f64>,
                    (Precision::F64, Precision::F32) => panel_of::<f64, f32>,
                    (Precision::F64, Precision::F64) => panel_of::<f64, f64>,
                };
                panel_of(*shape, *panel, widths, inputs)
            }
            Self::Ritz {
                before,
                steps,
                keep,
            } => ritz(*before as usize, steps, *keep as usize, inputs),
            Self::Restart { length, keep } => {
                let theta = Inputs::of(inputs).numbers::<f64>(*length as usize)?;
                let keep = *keep as usize;
                let mut t = vec![0.0; keep * keep];
                for (i, &theta) in theta[..keep].iter().enumerate() {
                    t[i * keep + i] = theta;
                }
                Bytes::from_numbers(&t)
            }
            Self::Tell { bytes } => {
                let told = Inputs::of(inputs).bytes()?;
                exactly(told.as_slice(), *bytes as usize)?;
                Bytes::copy_from(told.as_slice())
            }
            Self::Columns { rows, width, keep } => {
                let (rows, width) = (*rows as usize, *width as usize);
                let numbers = Inputs::of(inputs).numbers::<f64>(rows * width)?;
                let rows = numbers.chunks_exact(width);
                let kept = rows.flat_map(|row| row[..*keep as usize].iter().copied());
                Bytes::from_numbers(&kept.collect::<Vec<f64>>())
            }
            Self::Join { rows, widths, held } => {
                with_precision!(*held, join, *rows as usize, widths, inputs)
            }
            Self::Rotate {
                rows,
                widths,
                held,
                keep,
                out,
            } => rotate(*rows, widths, *held, *keep, *out, inputs),
            Self::Cross { .. } => unreachable!("{} folds", self.verb()),
        }
    }

    pub fn fold(&self, inputs: &[Bytes], parts: &mut [&mut [i64]]) -> Result<(), WorkError> {
        match self {
            Self::Cross {
                slice,
                widths,
                held,
                given,
                width,
                bits,
            } => {
                let rows = slice.rows as usize;
                let mut inputs = Inputs::of(inputs);
                let x = Pieces::of(*held, &mut inputs, rows, widths)?;
                let w = given.read(*slice, *width as usize, inputs)?;
                let c = x.cross(rows, &w, *width as usize)?;
                add_fixed(&c, *bits, parts)
            }
            Self::Draw { .. }
            | Self::Begin { .. }
            | Self::CrossOut { .. }
            | Self::Pythagoras { .. }
            | Self::Deflate { .. }
            | Self::Fresh { .. }
            | Self::Next { .. }
            | Self::Leaf { .. }
            | Self::Rows { .. }
            | Self::Panel { .. }
            | Self::Ritz { .. }
            | Self::Restart { .. }
            | Self::Tell { .. }
            | Self::Columns { .. }
            | Self::Join { .. }
            | Self::Rotate { .. } => unreachable!("{} yields a block", self.verb()),
        }
    }
}

fn random_rows(slice: Slice, width: u32, random: Random) -> Vec<f64> {
    let sketch = Sketch {
        seed: random.seed,
        stream: random.stream,
        columns: (random.first + width) as usize,
    };
    let exponent = -((random.columns as f64).sqrt().log2().ceil() as i32);
    let mut rows = vec![0.0; slice.rows as usize * width as usize];
    sketch.fill(
        slice.first..slice.first + u64::from(slice.rows),
        random.first as usize,
        width as usize,
        power_of_two(exponent),
        &mut rows,
    );
    rows
}

fn draw(slice: Slice, width: u32, random: Random) -> Result<Bytes, WorkError> {
    Bytes::from_numbers(&random_rows(slice, width, random))
}

/// Entries of rows that an earlier run did not have, beside those of others.
const NEW_EXPONENT: i32 = -6;

fn begin(
    slice: Slice,
    given: u32,
    width: u32,
    random: Random,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let (rows, given) = (slice.rows as usize, given as usize);
    let known = Inputs::of(inputs).numbers::<f64>(rows * given)?;
    let mut out = random_rows(slice, width, random);
    for (to, known) in out
        .chunks_exact_mut(width as usize)
        .zip(known.chunks_exact(given))
    {
        for (to, &known) in to.iter_mut().zip(known) {
            // Whatever the file holds, it must not upset what follows.
            *to = if known.abs() <= 1.5 {
                known
            } else {
                *to * power_of_two(NEW_EXPONENT)
            };
        }
    }
    Bytes::from_numbers(&out)
}

/// Adds numbers times 2^bits to the only part. The sum must stay below 2^62.
pub(super) fn add_fixed(
    numbers: &[f64],
    bits: i32,
    parts: &mut [&mut [i64]],
) -> Result<(), WorkError> {
    let [sum] = parts else {
        return Err(WorkError::BadInput(
            "such a task adds to one part".to_owned(),
        ));
    };
    exactly(sum, numbers.len())?;
    let scale = power_of_two(bits);
    let bound = power_of_two(61);
    if let Some(bad) = numbers
        .iter()
        .find(|x| x.is_nan() || (*x * scale).abs() > bound)
    {
        return Err(WorkError::Numbers(format!(
            "a product of {bad:e} where at most {:e} is possible",
            bound / scale
        )));
    }
    for (sum, &x) in sum.iter_mut().zip(numbers) {
        *sum += round(x * scale);
    }
    Ok(())
}

/// A sum of integers times 2^-bits.
fn scaled(sum: &[i64], bits: i32) -> Vec<f64> {
    let scale = power_of_two(-bits);
    sum.iter().map(|&x| x as f64 * scale).collect()
}

fn cross_out(length: u32, bits: i32, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let sum = Inputs::of(inputs).numbers::<i64>(length as usize)?;
    Bytes::from_numbers(&scaled(sum, bits))
}

/// See [`KrylovWork::Fresh`].
const REFILL_EXPONENT: i32 = -44;

/// Numbers that a task was given, or made of what it was given.
pub(super) struct Columns {
    block: Bytes,
    held: Precision,
}

impl Columns {
    pub(super) fn held(&self) -> Precision {
        self.held
    }

    pub(super) fn numbers<T: Real>(&self, count: usize) -> Result<&[T], WorkError> {
        exactly(self.block.numbers()?, count)
    }
}

impl Given {
    /// The columns from the inputs that are left.
    fn read(self, slice: Slice, width: usize, inputs: Inputs<'_>) -> Result<Columns, WorkError> {
        let mut inputs = inputs;
        let (block, held) = match self {
            Self::Held(held) => (inputs.bytes()?.clone(), held),
            Self::Sum { shape, extra } => {
                let shifts = inputs.bytes()?.numbers()?;
                let mut out = BytesMut::unwritten_for::<f64>(slice.rows as usize * width)?;
                let z = out.numbers_mut();
                tsqr::unfold_into(shape, slice, extra, shifts, inputs.rest(), z)?;
                (out.freeze(), Precision::F64)
            }
            Self::Leaf(out) => (leaf_rows(&mut inputs, slice.rows, width, out)?, out),
        };
        Ok(Columns { block, held })
    }
}

/// Q of a leaf times its factor from above, if there is one.
fn leaf_rows(
    inputs: &mut Inputs<'_>,
    rows: u32,
    width: usize,
    out: Precision,
) -> Result<Bytes, WorkError> {
    let rows = rows as usize;
    let with_tree = inputs.left() > 1;
    let (q, above) = tsqr::leaf_inputs(inputs, rows, width, with_tree)?;
    let Some(above) = above else {
        return held_as(out, q);
    };
    let q = Pieces::Double(vec![Tall {
        numbers: q,
        width: above.len() / width,
    }]);
    q.combined(rows, above, width, out)
}

/// W - X C, and the largest entry of C.
fn deflated(
    slice: Slice,
    widths: &[u32],
    held: Precision,
    given: Given,
    width: u32,
    bits: i32,
    inputs: &[Bytes],
) -> Result<(Vec<f64>, f64), WorkError> {
    let (rows, columns) = (slice.rows as usize, width as usize);
    let d: usize = widths.iter().map(|&w| w as usize).sum();
    let mut inputs = Inputs::of(inputs);
    let c = scaled(inputs.numbers::<i64>(d * columns)?, bits);
    let x = Pieces::of(held, &mut inputs, rows, widths)?;
    let w = given.read(slice, columns, inputs)?;
    let mut left = w.numbers::<f64>(rows * columns)?.to_vec();
    x.deflate(rows, &c, columns, &mut left);
    let largest = c.iter().fold(0.0f64, |largest, c| largest.max(c.abs()));
    Ok((left, largest))
}

fn pythagoras(
    before: usize,
    width: usize,
    bits: i32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let mut out = scaled(Inputs::of(inputs).numbers(before * width)?, bits);
    let (r, inverse) = cholesky::complement(before, width, &out);
    out.extend(r);
    out.extend(inverse);
    Bytes::from_numbers(&out)
}

fn next(
    slice: Slice,
    widths: &[u32],
    given: Given,
    width: usize,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let rows = slice.rows as usize;
    let d: usize = widths.iter().map(|&w| w as usize).sum();
    let mut inputs = Inputs::of(inputs);
    let small = inputs.numbers::<f64>((d + 2 * width) * width)?;
    let x = pieces::<f32>(&mut inputs, rows, widths)?;
    let q = given.read(slice, width, inputs)?;
    let numbers = q.numbers(rows * width)?;
    let mut out = BytesMut::unwritten_for::<f32>(rows * width)?;
    let (c, inverse) = (&small[..d * width], &small[(d + width) * width..]);
    let q = Tall { numbers, width };
    single::deflated(rows, &x, c, q, inverse, out.numbers_mut());
    Ok(out.freeze())
}

fn panel_of<S: Real, T: Real>(
    shape: Shape,
    panel: u16,
    widths: &[u32],
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let panels = Panels::of(shape);
    let (n, w) = (shape.columns as usize, panels.widths[panel as usize]);
    let wanted = panels.columns(panel as usize, shape.width as usize);
    let mut out = BytesMut::zeroed_for::<T>(n * w)?;
    let to = out.numbers_mut::<T>();
    let mut first_row = 0;
    for arrays in inputs.chunks(widths.len()) {
        exactly(arrays, widths.len())?;
        let mut first = 0;
        let mut rows = 0;
        for (array, &width) in arrays.iter().zip(widths) {
            let width = width as usize;
            let from: &[S] = array.numbers()?;
            rows = from.len() / width;
            let columns = wanted.start.max(first)..wanted.end.min(first + width);
            if !columns.is_empty() {
                let to = to
                    .get_mut(first_row * w..(first_row + rows) * w)
                    .ok_or_else(|| {
                        WorkError::BadInput("slices are longer than the panel".to_owned())
                    })?;
                let at = columns.start - wanted.start;
                for (to, from) in to.chunks_exact_mut(w).zip(from.chunks_exact(width)) {
                    let from = &from[columns.start - first..columns.end - first];
                    for (to, &from) in to[at..].iter_mut().zip(from) {
                        *to = T::from_f64(from.to_f64());
                    }
                }
            }
            first += width;
        }
        first_row += rows;
    }
    if first_row != n {
        return Err(WorkError::BadInput(
            "slices are shorter than the panel".to_owned(),
        ));
    }
    Ok(out.freeze())
}

fn ritz(before: usize, steps: &[Step], keep: usize, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let d = before + steps.iter().map(|s| s.width as usize).sum::<usize>();
    let mut inputs = Inputs::of(inputs);
    let layout = RitzLayout::of(d, keep);
    let mut out = BytesMut::zeroed(layout.total() as usize)?;
    let (t, rest) = out.numbers_mut::<f64>().split_at_mut(d * d);
    if before > 0 {
        let old = inputs.numbers::<f64>(before * before)?;
        for (to, from) in t.chunks_exact_mut(d).zip(old.chunks_exact(before)) {
            to[..before].copy_from_slice(from);
        }
    }
    let mut known = before;
    let mut last = Vec::new();
    for step in steps {
        let (local, width) = (step.local as usize, step.width as usize);
        let first = inputs.numbers::<f64>(local * width)?;
        let second = inputs.numbers::<f64>((known + width) * width)?;
        let r1 = inputs.numbers::<f64>(width * width)?;
        let r2 = inputs.numbers::<f64>(width * width)?;
        let mut h = dense::multiply::<f64, f64>(known + width, width, width, second, r1);
        for (h, first) in h[(known + width - local) * width..].iter_mut().zip(first) {
            *h += first;
        }
        for (i, h) in h.chunks_exact(width).enumerate().take(known) {
            for (j, &x) in h.iter().enumerate() {
                t[i * d + known + j] = x;
                t[(known + j) * d + i] = x;
            }
        }
        // What rounding left of symmetry.
        let own = &h[known * width..];
        for i in 0..width {
            for j in 0..width {
                let mean = (own[i * width + j] + own[j * width + i]) / 2.0;
                t[(known + i) * d + known + j] = mean;
            }
        }
        known += width;
        last = dense::multiply::<f64, f64>(width, width, width, r2, r1);
    }
    let eigen = eigen::eigen(d, t, keep)?;
    // R times the last rows of the eigenvectors.
    let width = steps.last().map_or(0, |step| step.width as usize);
    let rows = &eigen.vectors[(d - width) * keep..];
    let outside = dense::multiply::<f64, f64>(width, width, keep, &last, rows);
    let (theta, rest) = rest.split_at_mut(d);
    let (residuals, vectors) = rest.split_at_mut(keep);
    theta.copy_from_slice(&eigen.values);
    for (i, residual) in residuals.iter_mut().enumerate() {
        let column = outside.iter().skip(i).step_by(keep);
        *residual = column.map(|x| x * x).sum::<f64>().sqrt();
    }
    vectors.copy_from_slice(&eigen.vectors);
    Ok(out.freeze())
}

fn rotate(
    rows: u32,
    widths: &[u32],
    held: Precision,
    keep: u32,
    out: Precision,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let (rows, keep) = (rows as usize, keep as usize);
    let d: usize = widths.iter().map(|&w| w as usize).sum();
    let mut inputs = Inputs::of(inputs);
    let w = inputs.numbers::<f64>(d * keep)?;
    let x = Pieces::of(held, &mut inputs, rows, widths)?;
    x.combined(rows, w, keep, out)
}

fn join<T: Real>(rows: usize, widths: &[u32], inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let x = pieces::<T>(&mut Inputs::of(inputs), rows, widths)?;
    let mut out = Vec::with_capacity(x.iter().map(|x| x.numbers.len()).sum());
    for row in 0..rows {
        for x in &x {
            let own = &x.numbers[row * x.width..][..x.width];
            out.extend(own.iter().map(|x| x.to_f64()));
        }
    }
    Bytes::from_numbers(&out)
}

/// What [`KrylovWork::Ritz`] yields, in numbers: where its parts begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RitzLayout {
    pub d: usize,
    /// Numbers before theta.
    pub head: usize,
    pub keep: usize,
}

impl RitzLayout {
    /// T f64[d x d] comes first.
    pub fn of(d: usize, keep: usize) -> Self {
        Self {
            d,
            head: d * d,
            keep,
        }
    }

    fn bytes(from: usize, count: usize) -> (u64, u64) {
        let number = size_of::<f64>();
        ((from * number) as u64, ((from + count) * number) as u64)
    }

    pub fn t(self) -> (u64, u64) {
        Self::bytes(0, self.d * self.d)
    }

    pub fn theta(self) -> (u64, u64) {
        Self::bytes(self.head, self.d)
    }

    /// theta, then the residuals
    pub fn told(self) -> (u64, u64) {
        Self::bytes(self.head, self.d + self.keep)
    }

    pub fn vectors(self) -> (u64, u64) {
        Self::bytes(self.head + self.d + self.keep, self.d * self.keep)
    }

    pub fn total(self) -> u64 {
        self.vectors().1
    }
}
