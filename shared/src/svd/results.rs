//! Tasks of the end: the small SVD, V, and the checks of both factors.

use super::{
    GRAM_BITS, Inputs, Precision, Shape, Slice, exactly,
    layout::Panels,
    tsqr::{explicit_q, leaf_inputs, unfolded},
    with_precision,
};
use crate::{
    farm::{
        bytes::{Bytes, BytesMut},
        work::WorkError,
    },
    linalg::{dense, fixed::power_of_two, real::Real, sparse},
};

/// The small SVD as a block holds it: sigma, W, P.
pub struct Small<'a> {
    /// f64[l], descending.
    pub sigma: &'a [f64],
    /// f64[l x l]: U = Q W.
    pub w: &'a [f64],
    /// f64[l x l]: V = Q_B P.
    pub p: &'a [f64],
}

impl<'a> Small<'a> {
    pub fn read(block: &'a Bytes, width: usize) -> Result<Self, WorkError> {
        let all: &[f64] = exactly(block.numbers()?, width + 2 * width * width)?;
        let (sigma, rest) = all.split_at(width);
        let (w, p) = rest.split_at(width * width);
        Ok(Self { sigma, w, p })
    }

    /// The first columns of W, as many as there are signs, each with its sign: f64[l x k].
    pub(super) fn signed_w(&self, signs: &[f64]) -> Vec<f64> {
        let rows = self.w.chunks_exact(self.sigma.len());
        rows.flat_map(|row| row.iter().zip(signs).map(|(&x, &sign)| x * sign))
            .collect()
    }
}

pub(super) fn small_svd(width: u32, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let l = width as usize;
    let r = Inputs::of(inputs).numbers::<f64>(l * l)?;
    // B^T = Q_B R, so B = R^T Q_B^T and R = P diag(sigma) W^T.
    let dense::Svd {
        u: p,
        s: sigma,
        v: w,
    } = dense::svd_small(l, l, r)?;
    let mut out = BytesMut::zeroed_for::<f64>(l + 2 * l * l)?;
    let numbers = out.numbers_mut::<f64>();
    numbers[..l].copy_from_slice(&sigma);
    numbers[l..l + l * l].copy_from_slice(&w);
    numbers[l + l * l..].copy_from_slice(&p);
    Ok(out.freeze())
}

pub(super) fn right_slice(
    shape: Shape,
    slice: Slice,
    rank: u32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, right_slice_of, shape, slice, rank, inputs)
}

fn right_slice_of<T: Real>(
    shape: Shape,
    slice: Slice,
    rank: u32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let (rows, l, k) = (slice.rows as usize, shape.width as usize, rank as usize);
    let mut inputs = Inputs::of(inputs);
    let with_tree = inputs.left() > 2;
    let (q, from_above) = leaf_inputs(&mut inputs, rows, l, with_tree)?;
    let svd = Small::read(inputs.bytes()?, l)?;
    let q = explicit_q(rows, l, q, from_above);
    let mut p = Vec::with_capacity(l * k);
    for row in svd.p.chunks_exact(l) {
        p.extend_from_slice(&row[..k]);
    }
    let v = dense::multiply::<f64, f64>(rows, l, k, &q, &p);

    let peaks_bytes = 2 * k * size_of::<f64>();
    let mut out = BytesMut::zeroed(peaks_bytes + rows * k * size_of::<T>())?;
    let (peaks, rest) = out.as_bytes_mut().split_at_mut(peaks_bytes);
    let peaks: &mut [f64] = bytemuck::cast_slice_mut(peaks);
    let written: &mut [T] = bytemuck::cast_slice_mut(rest);
    for (to, &from) in written.iter_mut().zip(&v) {
        *to = T::from_f64(from);
    }
    // Peaks of what is written, not of what it was rounded from: a reader can check the rule.
    for (row, values) in written.chunks_exact(k.max(1)).enumerate() {
        for (c, &value) in values.iter().enumerate() {
            let value = value.to_f64();
            if value.abs() > peaks[2 * c].abs() {
                peaks[2 * c] = value;
                peaks[2 * c + 1] = (slice.first + row as u64) as f64;
            }
        }
    }
    Ok(out.freeze())
}

pub(super) fn signs(rank: u32, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let k = rank as usize;
    let mut best = vec![0.0f64; k];
    for peaks in inputs {
        let peaks: &[f64] = exactly(peaks.numbers()?, 2 * k)?;
        for (best, peak) in best.iter_mut().zip(peaks.chunks_exact(2)) {
            // Slices come in order, so the lowest row wins a tie.
            if peak[0].abs() > best.abs() {
                *best = peak[0];
            }
        }
    }
    let signs: Vec<f64> = best
        .iter()
        .map(|&peak| if peak < 0.0 { -1.0 } else { 1.0 })
        .collect();
    Bytes::from_numbers(&signs)
}

pub(super) fn signed_slice(
    shape: Shape,
    slice: Slice,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, signed_slice_of, shape, slice, inputs)
}

fn signed_slice_of<T: Real>(
    shape: Shape,
    slice: Slice,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let (rows, k) = (slice.rows as usize, shape.width as usize);
    let mut inputs = Inputs::of(inputs);
    let v = inputs.numbers::<T>(rows * k)?;
    let signs = inputs.numbers::<f64>(k)?;
    let mut out = BytesMut::zeroed_for::<T>(rows * k)?;
    for (to, from) in out
        .numbers_mut::<T>()
        .chunks_exact_mut(k.max(1))
        .zip(v.chunks_exact(k.max(1)))
    {
        for ((to, &from), &sign) in to.iter_mut().zip(from).zip(signs) {
            *to = T::from_f64(from.to_f64() * sign);
        }
    }
    Ok(out.freeze())
}

pub(super) fn right_panel(shape: Shape, panel: u16, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, right_panel_of, shape, panel, inputs)
}

fn right_panel_of<T: Real>(shape: Shape, panel: u16, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let panels = Panels::of(shape);
    let (n, k) = (shape.columns as usize, shape.width as usize);
    let w = panels.widths[panel as usize];
    let columns = panels.columns(panel as usize, k);
    let real = columns.len();
    let mut out = BytesMut::zeroed_for::<T>(n * w)?;
    let mut rows = out.numbers_mut::<T>().chunks_exact_mut(w);
    for slice in inputs {
        for from in slice.numbers::<T>()?.chunks_exact(k.max(1)) {
            let to = rows
                .next()
                .ok_or_else(|| WorkError::BadInput("slices are longer than V".to_owned()))?;
            to[..real].copy_from_slice(&from[columns.clone()]);
        }
    }
    Ok(out.freeze())
}

pub(super) fn left_residual(
    scale: i32,
    shape: Shape,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, left_residual_of, scale, shape, inputs)
}

fn left_residual_of<T: Real>(
    scale: i32,
    shape: Shape,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let panels = Panels::of(shape);
    let (n, k) = (shape.columns as usize, shape.width as usize);
    let mut inputs = Inputs::of(inputs);
    let block = inputs.block(shape.columns)?;
    let sigma = &inputs.bytes()?.numbers::<f64>()?[..k];
    let u = inputs.numbers::<T>(block.rows() * k)?;
    let mut squares = vec![0.0; k];
    let mut y = Vec::new();
    for (p, &w) in panels.widths.iter().enumerate() {
        let v = inputs.numbers::<T>(n * w)?;
        y.clear();
        y.resize(block.rows() * w, T::from_f64(0.0));
        sparse::multiply(&block, power_of_two(scale), v, w, &mut y);
        let columns = panels.columns(p, k);
        for (y, u) in y.chunks_exact(w).zip(u.chunks_exact(k)) {
            for (c, &y) in columns.clone().zip(y) {
                let difference = y.to_f64() - u[c].to_f64() * sigma[c];
                squares[c] += difference * difference;
            }
        }
    }
    Bytes::from_numbers(&squares)
}

pub(super) fn right_residual(
    shape: Shape,
    slice: Slice,
    rank: u32,
    extra: i32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    with_precision!(
        shape.precision,
        right_residual_of,
        shape,
        slice,
        rank,
        extra,
        inputs
    )
}

fn right_residual_of<T: Real>(
    shape: Shape,
    slice: Slice,
    rank: u32,
    extra: i32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let (rows, l, k) = (slice.rows as usize, shape.width as usize, rank as usize);
    let mut inputs = Inputs::of(inputs);
    let shifts = inputs.bytes()?.numbers()?;
    let svd = Small::read(inputs.bytes()?, l)?;
    let signs = inputs.numbers::<f64>(k)?;
    let v = inputs.numbers::<T>(rows * k)?;
    let b = unfolded(shape, slice, extra, shifts, inputs.rest())?;
    let w = svd.signed_w(signs);
    let bw = dense::multiply::<f64, f64>(rows, l, k, &b, &w);
    let mut squares = vec![0.0; k];
    for (bw, v) in bw.chunks_exact(k.max(1)).zip(v.chunks_exact(k.max(1))) {
        for c in 0..k {
            let difference = bw[c] - v[c].to_f64() * svd.sigma[c];
            squares[c] += difference * difference;
        }
    }
    Bytes::from_numbers(&squares)
}

pub(super) fn factor_residual(
    shape: Shape,
    rank: u32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, factor_residual_of, shape, rank, inputs)
}

fn factor_residual_of<T: Real>(
    shape: Shape,
    rank: u32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let (n, l, k) = (shape.columns as usize, shape.width as usize, rank as usize);
    let mut inputs = Inputs::of(inputs);
    let r: &[f64] = inputs.bytes()?.numbers()?;
    let svd = Small::read(inputs.bytes()?, l)?;
    let signs = inputs.numbers::<f64>(k)?;
    let mut v = Vec::with_capacity(n * k);
    for slice in inputs.rest() {
        v.extend(slice.numbers::<T>()?.iter().map(|x| x.to_f64()));
    }
    exactly(&v, l * k)?;
    let heights = r.len() / l;
    let product = dense::multiply::<f64, f64>(heights, l, k, r, &v);
    let w = svd.signed_w(signs);
    let mut squares = vec![0.0; k];
    for (i, w) in w.chunks_exact(k.max(1)).enumerate() {
        for c in 0..k {
            // Below the last row of R there are zeros.
            let product = if i < heights { product[i * k + c] } else { 0.0 };
            let difference = product - w[c] * svd.sigma[c];
            squares[c] += difference * difference;
        }
    }
    Bytes::from_numbers(&squares)
}

pub(super) fn sum(rank: u32, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let mut total = vec![0.0; rank as usize];
    for part in inputs {
        let part: &[f64] = exactly(part.numbers()?, rank as usize)?;
        for (total, &x) in total.iter_mut().zip(part) {
            *total += x;
        }
    }
    Bytes::from_numbers(&total)
}

pub(super) fn gram(
    precision: Precision,
    rank: u32,
    inputs: &[Bytes],
    parts: &mut [&mut [i64]],
) -> Result<(), WorkError> {
    with_precision!(precision, gram_of, rank as usize, inputs, parts)
}

fn gram_of<T: Real>(k: usize, inputs: &[Bytes], parts: &mut [&mut [i64]]) -> Result<(), WorkError> {
    let rows: &[T] = Inputs::of(inputs).bytes()?.numbers()?;
    let gram = dense::gram::<T>(rows.len() / k.max(1), k, rows);
    let [sum] = parts else {
        return Err(WorkError::BadInput(
            "a Gram task adds to one part".to_owned(),
        ));
    };
    exactly(sum, k * k)?;
    if let Some(bad) = gram.iter().find(|g| g.is_nan() || g.abs() > 2.0) {
        return Err(WorkError::Numbers(format!(
            "columns that should be orthonormal have a product of {bad}"
        )));
    }
    for (sum, &g) in sum.iter_mut().zip(&gram) {
        *sum += (g * power_of_two(GRAM_BITS)).round_ties_even() as i64;
    }
    Ok(())
}

pub(super) fn gram_out(rank: u32, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let k = rank as usize;
    let sum = Inputs::of(inputs).numbers::<i64>(k * k)?;
    let gram: Vec<f64> = sum
        .iter()
        .map(|&g| g as f64 * power_of_two(-GRAM_BITS))
        .collect();
    Bytes::from_numbers(&gram)
}
