//! Tall-skinny QR: leaves, a tree of triangular factors, and the way back down.
//!
//! Method: direct TSQR. Every node's orthogonal factor is kept explicitly and multiplied down the tree, which keeps the
//! result orthonormal to roundoff whatever the condition of the input (the indirect A R^-1 does not). References: Demmel,
//! Grigori, Hoemmen, Langou 2012; Benson, Gleich, Demmel 2013.

use super::{Inputs, Shape, Slice, exactly, layout::Panels, view::Map, with_precision};
use crate::{
    farm::{
        bytes::{Bytes, BytesMut},
        work::WorkError,
    },
    linalg::{dense, fixed::unfold, real::Real},
};

/// R, then Q, as one block.
pub(super) fn factors(q: &[f64], r: &[f64]) -> Result<Bytes, WorkError> {
    let mut out = BytesMut::unwritten_for::<f64>(q.len() + r.len())?;
    let numbers = out.numbers_mut::<f64>();
    numbers[..r.len()].copy_from_slice(r);
    numbers[r.len()..].copy_from_slice(q);
    Ok(out.freeze())
}

/// Rows of a slice from the chunks of a sum: f64[rows x l], row-major.
pub(super) fn unfolded(
    shape: Shape,
    slice: Slice,
    extra: i32,
    shifts: &[i16],
    chunks: &[Bytes],
) -> Result<Vec<f64>, WorkError> {
    let mut all = vec![0.0; slice.rows as usize * shape.width as usize];
    unfold_into(shape, slice, extra, shifts, chunks, &mut all)?;
    Ok(all)
}

pub(super) fn unfold_into(
    shape: Shape,
    slice: Slice,
    extra: i32,
    shifts: &[i16],
    chunks: &[Bytes],
    all: &mut [f64],
) -> Result<(), WorkError> {
    let panels = Panels::of(shape);
    let (own, of_view) = chunks.split_at(chunks.len().min(panels.len()));
    let (first, rows, n) = (
        slice.first as usize,
        slice.rows as usize,
        shape.columns as usize,
    );
    let map = match of_view.last() {
        None => None,
        Some(map) => Some(Map::read(map, n)?),
    };
    exactly(shifts, n + map.as_ref().map_or(0, Map::added))?;
    unfold_rows(shape, &shifts[first..first + rows], extra, own, all)?;
    if let Some(map) = map {
        let mut tail = vec![0.0; map.added() * shape.width as usize];
        if map.added() > 0 {
            let chunks = &of_view[..of_view.len() - 1];
            unfold_rows(shape, &shifts[n..], extra, chunks, &mut tail)?;
        }
        map.pull(first, shape.width as usize, &tail, all);
    }
    Ok(())
}

/// One row a shift.
fn unfold_rows(
    shape: Shape,
    shifts: &[i16],
    extra: i32,
    chunks: &[Bytes],
    all: &mut [f64],
) -> Result<(), WorkError> {
    let panels = Panels::of(shape);
    let (rows, width) = (shifts.len(), shape.width as usize);
    exactly(chunks, panels.len())?;
    let mut part = Vec::new();
    for (p, chunk) in chunks.iter().enumerate() {
        let w = panels.widths[p];
        let sums: &[i64] = exactly(chunk.numbers()?, rows * w)?;
        part.clear();
        part.resize(rows * w, 0.0);
        unfold(sums, w, shifts, extra, &mut part);
        let columns = panels.columns(p, width);
        let real = columns.len();
        for (row, from) in part.chunks_exact(w).enumerate() {
            let at = row * width + columns.start;
            all[at..at + real].copy_from_slice(&from[..real]);
        }
    }
    Ok(())
}

pub(super) fn leaf(
    shape: Shape,
    slice: Slice,
    extra: i32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let mut inputs = Inputs::of(inputs);
    let shifts = inputs.bytes()?.numbers()?;
    let z = unfolded(shape, slice, extra, shifts, inputs.rest())?;
    let (q, r) = dense::qr::<f64>(slice.rows as usize, shape.width as usize, &z);
    factors(&q, &r)
}

pub(super) fn combine(width: u32, heights: &[u32], inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let l = width as usize;
    let rows: usize = heights.iter().map(|&h| h as usize).sum();
    let mut stacked = Vec::with_capacity(rows * l);
    let mut inputs = Inputs::of(inputs);
    for &h in heights {
        stacked.extend_from_slice(inputs.numbers::<f64>(h as usize * l)?);
    }
    let (q, r) = dense::qr::<f64>(rows, l, &stacked);
    factors(&q, &r)
}

pub(super) fn push(
    width: u32,
    height: u32,
    heights: &[u32],
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let (l, h) = (width as usize, height as usize);
    let rows: usize = heights.iter().map(|&h| h as usize).sum();
    let mut inputs = Inputs::of(inputs);
    let q = inputs.numbers::<f64>(rows * h)?;
    let from_above = inputs.numbers::<f64>(h * l)?;
    Bytes::from_numbers(&dense::multiply::<f64, f64>(rows, h, l, q, from_above))
}

/// Q of a leaf times its factor from above, if there is a tree above: f64[rows x columns of the factor].
pub(super) fn explicit_q(
    rows: usize,
    width: usize,
    q: &[f64],
    from_above: Option<&[f64]>,
) -> Vec<f64> {
    match from_above {
        None => q.to_vec(),
        Some(t) => dense::multiply::<f64, f64>(rows, t.len() / width, width, q, t),
    }
}

/// The leaf's Q and, if there is one, its factor from above.
pub(super) fn leaf_inputs<'a>(
    inputs: &mut Inputs<'a>,
    rows: usize,
    width: usize,
    with_tree: bool,
) -> Result<(&'a [f64], Option<&'a [f64]>), WorkError> {
    let h = rows.min(width);
    let q = inputs.numbers::<f64>(rows * h)?;
    let from_above = if with_tree {
        Some(inputs.numbers::<f64>(h * width)?)
    } else {
        None
    };
    Ok((q, from_above))
}

pub(super) fn basis(shape: Shape, slice: Slice, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, basis_of, shape, slice, inputs)
}

fn basis_of<T: Real>(shape: Shape, slice: Slice, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let (rows, width) = (slice.rows as usize, shape.width as usize);
    let mut inputs = Inputs::of(inputs);
    let with_tree = inputs.left() > 1;
    let (q, from_above) = leaf_inputs(&mut inputs, rows, width, with_tree)?;
    let x = explicit_q(rows, width, q, from_above);
    let panels = Panels::of(shape);
    let mut out = BytesMut::zeroed_for::<T>(rows * panels.padded())?;
    let mut rest = out.numbers_mut::<T>();
    for p in 0..panels.len() {
        let (panel, after) = rest.split_at_mut(rows * panels.widths[p]);
        rest = after;
        let columns = panels.columns(p, width);
        for (to, from) in panel
            .chunks_exact_mut(panels.widths[p])
            .zip(x.chunks_exact(width))
        {
            for (to, &from) in to.iter_mut().zip(&from[columns.clone()]) {
                *to = T::from_f64(from);
            }
        }
    }
    Ok(out.freeze())
}
