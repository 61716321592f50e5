//! Tasks that read A, and those that make the panels which they read.

use super::{Inputs, Shape, exactly, layout::Panels, with_precision};
use crate::{
    farm::{
        bytes::{Bytes, BytesMut},
        work::WorkError,
    },
    linalg::{
        dense,
        fixed::power_of_two,
        real::Real,
        sketch::Sketch,
        sparse::{self, Rows, Shifts},
    },
    matrix::block::RowBlock,
};

/// The stream of random numbers that Omega is drawn from.
const OMEGA: u32 = 1;

pub(super) fn sketch(shape: Shape, seed: u64, panel: u16) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, sketch_of, shape, seed, panel)
}

fn sketch_of<T: Real>(shape: Shape, seed: u64, panel: u16) -> Result<Bytes, WorkError> {
    let panels = Panels::of(shape);
    let (p, n) = (panel as usize, shape.columns as usize);
    let mut out = BytesMut::zeroed_for::<T>(n * panels.widths[p])?;
    // Columns of norm at most 1: the fixed-point sums rely on it.
    let exponent = -((n as f64).sqrt().log2().ceil() as i32);
    let omega = Sketch {
        seed,
        stream: OMEGA,
        columns: shape.width as usize,
    };
    omega.fill(
        0..shape.columns,
        panels.start(p),
        panels.widths[p],
        power_of_two(exponent),
        out.numbers_mut::<T>(),
    );
    Ok(out.freeze())
}

pub(super) fn identity(shape: Shape, panel: u16) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, identity_of, shape, panel)
}

fn identity_of<T: Real>(shape: Shape, panel: u16) -> Result<Bytes, WorkError> {
    let panels = Panels::of(shape);
    let w = panels.widths[panel as usize];
    let mut out = BytesMut::zeroed_for::<T>(shape.columns as usize * w)?;
    let numbers = out.numbers_mut::<T>();
    for (at, column) in panels
        .columns(panel as usize, shape.width as usize)
        .enumerate()
    {
        numbers[column * w + at] = T::from_f64(1.0);
    }
    Ok(out.freeze())
}

pub(super) fn assemble(shape: Shape, panel: u16, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let width = Panels::of(shape).widths[panel as usize];
    let mut out = BytesMut::zeroed(shape.columns as usize * width * shape.precision.bytes())?;
    let whole = out.as_bytes_mut();
    let mut at = 0;
    for part in inputs {
        let to = whole
            .get_mut(at..at + part.len())
            .ok_or_else(|| WorkError::BadInput("slices are longer than the panel".to_owned()))?;
        to.copy_from_slice(part.as_slice());
        at += part.len();
    }
    if at != whole.len() {
        return Err(WorkError::BadInput(
            "slices are shorter than the panel".to_owned(),
        ));
    }
    Ok(out.freeze())
}

pub(super) fn power(
    scale: i32,
    shape: Shape,
    panel: u16,
    extra: i32,
    inputs: &[Bytes],
    parts: &mut [&mut [i64]],
) -> Result<(), WorkError> {
    with_precision!(
        shape.precision,
        power_of,
        scale,
        shape,
        panel,
        extra,
        inputs,
        parts
    )
}

fn power_of<T: Real>(
    scale: i32,
    shape: Shape,
    panel: u16,
    extra: i32,
    inputs: &[Bytes],
    parts: &mut [&mut [i64]],
) -> Result<(), WorkError> {
    let (n, width) = (
        shape.columns as usize,
        Panels::of(shape).widths[panel as usize],
    );
    let mut inputs = Inputs::of(inputs);
    let block = inputs.block(shape.columns)?;
    let shifts = inputs.numbers::<i16>(n)?;
    let mut joined = Vec::new();
    let x = if inputs.left() == 1 {
        inputs.numbers::<T>(n * width)?
    } else {
        joined.reserve(n * width);
        for piece in inputs.rest() {
            joined.extend_from_slice(piece.numbers::<T>()?);
        }
        exactly(&joined, n * width)?
    };
    let [z] = parts else {
        return Err(WorkError::BadInput(
            "a power task adds to one part".to_owned(),
        ));
    };
    let shifts = Shifts {
        of_columns: shifts,
        extra,
    };
    sparse::gram_fold(&block, power_of_two(scale), x, width, shifts, z);
    Ok(())
}

/// Y_i = A_i X, panel after panel as X has them, padding included: T[rows x w_p] each. Panels of F are cut as those of T.
pub(super) fn panels_of_product<F: Real, T: Real + Rows<F>>(
    block: &RowBlock,
    scale: i32,
    shape: Shape,
    inputs: &mut Inputs<'_>,
) -> Result<Vec<Vec<T>>, WorkError> {
    let n = shape.columns as usize;
    let widths = Panels::of(shape).widths;
    let product = |w: usize| {
        let x = inputs.numbers::<F>(n * w)?;
        let mut y = vec![T::from_f64(0.0); block.rows() * w];
        sparse::multiply(block, power_of_two(scale), x, w, &mut y);
        Ok(y)
    };
    widths.into_iter().map(product).collect()
}

/// Y_i = A_i X from all panels of X: T[rows x l], row-major.
fn product<T: Real>(
    block: &RowBlock,
    scale: i32,
    shape: Shape,
    inputs: &mut Inputs<'_>,
) -> Result<Vec<T>, WorkError> {
    let panels = Panels::of(shape);
    let width = shape.width as usize;
    let mut all = vec![T::from_f64(0.0); block.rows() * width];
    for (p, y) in panels_of_product::<T, T>(block, scale, shape, inputs)?
        .into_iter()
        .enumerate()
    {
        let columns = panels.columns(p, width);
        let real = columns.len();
        for (to, from) in all
            .chunks_exact_mut(width)
            .zip(y.chunks_exact(panels.widths[p]))
        {
            to[columns.clone()].copy_from_slice(&from[..real]);
        }
    }
    Ok(all)
}

pub(super) fn range_leaf(scale: i32, shape: Shape, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, range_leaf_of, scale, shape, inputs)
}

fn range_leaf_of<T: Real>(scale: i32, shape: Shape, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let mut inputs = Inputs::of(inputs);
    let block = inputs.block(shape.columns)?;
    let y = product::<T>(&block, scale, shape, &mut inputs)?;
    Bytes::from_numbers(&dense::qr_r::<T>(block.rows(), shape.width as usize, &y))
}

/// Q of this block's rows of Y = A X, T[rows x h], and its factor from above f64[h x l], if there is a tree above: their
/// product is Q_i, the block's rows of an orthonormal basis of the range of A X. The inputs stand at the panels of X,
/// with the factor after them if `with_tree`.
///
/// Made anew in every pass that needs it, with the same bits, from a product and a QR: an m x l array kept between
/// passes would not fit where A does not.
fn range_rows<'a, T: Real>(
    block: &RowBlock,
    scale: i32,
    shape: Shape,
    inputs: &mut Inputs<'a>,
    with_tree: bool,
) -> Result<(Vec<T>, Option<&'a [f64]>), WorkError> {
    let (rows, width) = (block.rows(), shape.width as usize);
    let h = rows.min(width);
    let y = product::<T>(block, scale, shape, inputs)?;
    let (q, _) = dense::qr::<T>(rows, width, &y);
    let from_above = if with_tree {
        Some(inputs.numbers::<f64>(h * width)?)
    } else {
        None
    };
    Ok((q, from_above))
}

pub(super) fn project(
    scale: i32,
    shape: Shape,
    extra: i32,
    inputs: &[Bytes],
    parts: &mut [&mut [i64]],
) -> Result<(), WorkError> {
    with_precision!(
        shape.precision,
        project_of,
        scale,
        shape,
        extra,
        inputs,
        parts
    )
}

fn project_of<T: Real>(
    scale: i32,
    shape: Shape,
    extra: i32,
    inputs: &[Bytes],
    parts: &mut [&mut [i64]],
) -> Result<(), WorkError> {
    let panels = Panels::of(shape);
    let width = shape.width as usize;
    let mut inputs = Inputs::of(inputs);
    let block = inputs.block(shape.columns)?;
    let shifts = inputs.numbers::<i16>(shape.columns as usize)?;
    let with_tree = inputs.left() > panels.len();
    let (q, from_above) = range_rows::<T>(&block, scale, shape, &mut inputs, with_tree)?;
    let h = block.rows().min(width);
    let q = match from_above {
        None => q,
        Some(t) => dense::multiply::<T, T>(block.rows(), h, width, &q, t),
    };
    if parts.len() != panels.len() {
        return Err(WorkError::BadInput(
            "a project task adds to every part".to_owned(),
        ));
    }
    let shifts = Shifts {
        of_columns: shifts,
        extra,
    };
    let mut panel = Vec::new();
    for (p, z) in parts.iter_mut().enumerate() {
        let w = panels.widths[p];
        let columns = panels.columns(p, width);
        let real = columns.len();
        panel.clear();
        panel.resize(block.rows() * w, T::from_f64(0.0));
        for (to, from) in panel.chunks_exact_mut(w).zip(q.chunks_exact(width)) {
            to[..real].copy_from_slice(&from[columns.clone()]);
        }
        sparse::transpose_fold(&block, power_of_two(scale), &panel, w, shifts, z);
    }
    Ok(())
}

pub(super) fn lift(
    scale: i32,
    shape: Shape,
    rank: u32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    with_precision!(shape.precision, lift_of, scale, shape, rank, inputs)
}

fn lift_of<T: Real>(
    scale: i32,
    shape: Shape,
    rank: u32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let (l, k) = (shape.width as usize, rank as usize);
    let mut inputs = Inputs::of(inputs);
    let block = inputs.block(shape.columns)?;
    let with_tree = inputs.left() > Panels::of(shape).len() + 2;
    let (q, from_above) = range_rows::<T>(&block, scale, shape, &mut inputs, with_tree)?;
    let svd = super::results::Small::read(inputs.bytes()?, l)?;
    let signs = inputs.numbers::<f64>(k)?;
    let w = svd.signed_w(signs);
    // The small matrices first: one product over the rows instead of two.
    let h = block.rows().min(l);
    let w = match from_above {
        None => w,
        Some(t) => dense::multiply::<f64, f64>(h, l, k, t, &w),
    };
    Bytes::from_numbers(&dense::multiply::<T, T>(block.rows(), h, k, &q, &w))
}
