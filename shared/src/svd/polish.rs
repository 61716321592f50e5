//! Tasks of the end in `f64`: from an n x l basis V that nearly holds the wanted right singular vectors to factors, and to
//! what a certificate says of them.
//!
//! One read gives Y = A V and Z = A^T Y at once. Columns of Y D^-1, with D the singular values as the Krylov method left
//! them, are nearly orthonormal, so one Cholesky-like step from their Gram matrix G makes them so to roundoff:
//!
//! ```text
//! G = Q diag(lambda) Q^T,   diag(sqrt lambda) Q^T D = W diag(sigma) P^T,   M = D^-1 Q diag(1 / sqrt lambda) W
//! U = Y M,   V' = V P,   A V' = U diag(sigma),   A^T U = Z M
//! ```
//!
//! A second read forms U block by block; where V stands in f32, it is A V' diag(1 / sigma), of V' as it is written. Nothing
//! here asks more of V than that its columns are independent. lambda far from 1 tells that D was not what it should be; whoever reads the
//! verdict then takes the way of two split reads instead (TSQR of Y, then A^T Q).
//!
//! Beside V stand a few guard columns: random, orthogonal to V. With N = A^T A deflated by V, the largest eigenvalue of
//! the pencil (G^T N^2 G, G^T N G) is a lower bound of the largest of N: of what V has missed.
//!
//! References: Yamamoto, Nakatsukasa, Yanagisawa, Fukaya 2015 (CholeskyQR2); Halko, Martinsson, Tropp 2011, section 4.3
//! (a posteriori bounds from random vectors).

use serde::{Deserialize, Serialize};

use super::{
    GRAM_BITS, Inputs, Precision, Shape, Slice, exactly, krylov::add_fixed, layout::Panels, passes,
    pieces::Pieces, tsqr, with_precision,
};
use crate::{
    farm::{
        bytes::{Bytes, BytesMut},
        work::WorkError,
    },
    linalg::{
        dense, eigen,
        fixed::power_of_two,
        real::Real,
        single,
        sparse::{self, Shifts},
        tall::{self, Tall},
    },
    matrix::block::RowBlock,
};

/// See the [module](self). `shape` is that of [V | guard] in `f64`, its width l + g; `held` says how arrays and panels
/// stand, which are cut as those of `f64` are.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum PolishWork {
    /// theta f64[at least l] -> 1 / D f64[l + g]: no entry of D below 2^least, guard columns 2^norm.
    Weights {
        basis: u32,
        guard: u32,
        norm: i32,
        least: i32,
    },
    /// Row block, shifts, 1 / D, panels -> adds A_i^T Y_i into the panels' parts of Z, and the Gram matrix of Y_i / D into
    /// the part after them.
    Verify {
        scale: i32,
        shape: Shape,
        held: Precision,
        extra: i32,
    },
    /// Shifts, chunks of Z -> adds the Gram matrix (g x g) of its guard columns times 2^bits.
    GuardGram {
        shape: Shape,
        slice: Slice,
        extra: i32,
        guard: u32,
        bits: i32,
    },
    /// Gram sum i64[(l + g)^2], 1 / D, Gram matrix of the guard's Z f64[g x g] -> see [`Polished`].
    Polish { basis: u32, guard: u32 },
    /// Polished, slice of V [rows x l], shifts, chunks of Z -> peaks f64[k x 2] (see
    /// [`SvdWork::RightSlice`](super::SvdWork::RightSlice)), sums of squares f64[k] of A^T U - V' diag(sigma), V'
    /// T[rows x k].
    Right {
        shape: Shape,
        slice: Slice,
        held: Precision,
        extra: i32,
        basis: u32,
        rank: u32,
        out: Precision,
    },
    /// Polished, sums of squares f64[k] of A^T U - V' diag(sigma) -> sigma f64[l], the smallest lambda, the guard's
    /// singular value, the sums of squares.
    Verdict { basis: u32, rank: u32 },
    /// Row block, panels, polished, signs f64[k] -> sums of squares f64[k] of A_i V' - U_i diag(sigma), U_i T[rows x k].
    Lift {
        scale: i32,
        shape: Shape,
        basis: u32,
        rank: u32,
        out: Precision,
    },
    /// Row block, polished, panels of V' f32 as it is written -> sums of squares f64[k] of A_i V' - U_i diag(sigma), U_i
    /// f32[rows x k]. `shape` is that of V'.
    ///
    /// U is orthonormal to as many roundoffs of f64 as sigma_1 is sigma_k, which f32 does not see where it sees V at all.
    LiftWritten {
        scale: i32,
        shape: Shape,
        basis: u32,
    },
}

/// What [`PolishWork::Polish`] yields.
pub struct Polished<'a> {
    /// f64[l], descending.
    pub sigma: &'a [f64],
    pub lambda_min: f64,
    /// A lower bound of the largest singular value beside those of V.
    pub guard: f64,
    /// f64[l x l]: V' = V P.
    pub p: &'a [f64],
    /// f64[l x l]: U = Y M.
    pub m: &'a [f64],
}

impl<'a> Polished<'a> {
    pub fn bytes(basis: usize) -> u64 {
        ((basis + 2 + 2 * basis * basis) * size_of::<f64>()) as u64
    }

    pub fn read(block: &'a Bytes, basis: usize) -> Result<Self, WorkError> {
        let all: &[f64] = exactly(block.numbers()?, basis + 2 + 2 * basis * basis)?;
        let (sigma, rest) = all.split_at(basis);
        let (p, m) = rest[2..].split_at(basis * basis);
        Ok(Self {
            sigma,
            lambda_min: rest[0],
            guard: rest[1],
            p,
            m,
        })
    }
}

/// The first `keep` columns of an l x l matrix.
fn columns(l: usize, keep: usize, a: &[f64]) -> Vec<f64> {
    a.chunks_exact(l)
        .flat_map(|row| row[..keep].iter().copied())
        .collect()
}

impl PolishWork {
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Weights { .. } => "weights",
            Self::Verify { .. } => "verify",
            Self::GuardGram { .. } => "guard-gram",
            Self::Polish { .. } => "polish",
            Self::Right { .. } => "right-polish",
            Self::Verdict { .. } => "verdict",
            Self::Lift { .. } | Self::LiftWritten { .. } => "lift",
        }
    }

    pub fn block(&self, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
        match self {
            Self::Weights {
                basis,
                guard,
                norm,
                least,
            } => weights(*basis, *guard, *norm, *least, inputs),
            Self::Polish { basis, guard } => polish(*basis as usize, *guard as usize, inputs),
            Self::Right {
                shape,
                slice,
                held,
                extra,
                basis,
                rank,
                out,
            } => {
                let k = *rank as usize;
                let right = Right::of(*shape, *slice, *held, *extra, *basis as usize, k, inputs)?;
                match out {
                    Precision::F32 => right.written::<f32>(*slice, k),
                    Precision::F64 => right.written::<f64>(*slice, k),
                }
            }
            Self::Verdict { basis, rank } => {
                let basis = *basis as usize;
                let mut inputs = Inputs::of(inputs);
                let polished = Polished::read(inputs.bytes()?, basis)?;
                let squares = inputs.numbers::<f64>(*rank as usize)?;
                let mut out = polished.sigma.to_vec();
                out.extend([polished.lambda_min, polished.guard]);
                out.extend_from_slice(squares);
                Bytes::from_numbers(&out)
            }
            Self::Lift {
                scale,
                shape,
                basis,
                rank,
                out,
            } => with_precision!(*out, lift, *scale, *shape, *basis, *rank, inputs),
            Self::LiftWritten {
                scale,
                shape,
                basis,
            } => lift_written(*scale, *shape, *basis as usize, inputs),
            Self::Verify { .. } | Self::GuardGram { .. } => {
                unreachable!("{} folds", self.verb())
            }
        }
    }

    pub fn fold(&self, inputs: &[Bytes], parts: &mut [&mut [i64]]) -> Result<(), WorkError> {
        match self {
            Self::Verify {
                scale,
                shape,
                held,
                extra,
            } => verify(*scale, *shape, *held, *extra, inputs, parts),
            Self::GuardGram {
                shape,
                slice,
                extra,
                guard,
                bits,
            } => {
                let (rows, g) = (slice.rows as usize, *guard as usize);
                let width = shape.width as usize;
                let z = unfolded(*shape, *slice, *extra, &mut Inputs::of(inputs))?;
                let own: Vec<f64> = z
                    .chunks_exact(width)
                    .flat_map(|row| row[width - g..].iter().copied())
                    .collect();
                let tall = Tall {
                    numbers: &own,
                    width: g,
                };
                add_fixed(&tall::cross(rows, &[tall], tall), *bits, parts)
            }
            Self::Weights { .. }
            | Self::Polish { .. }
            | Self::Right { .. }
            | Self::Verdict { .. }
            | Self::Lift { .. }
            | Self::LiftWritten { .. } => unreachable!("{} yields a block", self.verb()),
        }
    }
}

/// Z of a slice f64[rows x (l + g)] from shifts and chunks.
fn unfolded(
    shape: Shape,
    slice: Slice,
    extra: i32,
    inputs: &mut Inputs<'_>,
) -> Result<Vec<f64>, WorkError> {
    let shifts = inputs.bytes()?.numbers()?;
    tsqr::unfolded(shape, slice, extra, shifts, inputs.rest())
}

fn weights(
    basis: u32,
    guard: u32,
    norm: i32,
    least: i32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let theta: &[f64] = Inputs::of(inputs).bytes()?.numbers()?;
    let theta = theta.get(..basis as usize).ok_or_else(|| {
        WorkError::BadInput(format!(
            "{} eigenvalues for a basis of {basis}",
            theta.len()
        ))
    })?;
    let least = power_of_two(least);
    let mut out: Vec<f64> = theta
        .iter()
        .map(|theta| 1.0 / theta.max(0.0).sqrt().max(least))
        .collect();
    out.resize((basis + guard) as usize, power_of_two(-norm));
    Bytes::from_numbers(&out)
}

fn verify(
    scale: i32,
    shape: Shape,
    held: Precision,
    extra: i32,
    inputs: &[Bytes],
    parts: &mut [&mut [i64]],
) -> Result<(), WorkError> {
    let panels = Panels::of(shape);
    let (n, width) = (shape.columns as usize, shape.width as usize);
    let mut inputs = Inputs::of(inputs);
    let block = inputs.block(shape.columns)?;
    let shifts = Shifts {
        of_columns: inputs.numbers::<i16>(n)?,
        extra,
    };
    let weights = inputs.numbers::<f64>(width)?;
    if parts.len() != panels.len() + 1 {
        return Err(WorkError::BadInput(
            "a verify task adds to every panel and a Gram matrix".to_owned(),
        ));
    }
    let y = match held {
        Precision::F32 => passes::panels_of_product::<f32, f64>(&block, scale, shape, &mut inputs)?,
        Precision::F64 => passes::panels_of_product::<f64, f64>(&block, scale, shape, &mut inputs)?,
    };
    let (z, gram_part) = parts.split_at_mut(panels.len());
    let gram = weighed_gram(&block, &panels, &y, weights);
    // It may fail, so it comes before the first addition to Z.
    add_fixed(&gram, GRAM_BITS, gram_part)?;
    for ((z, y), &w) in z.iter_mut().zip(&y).zip(&panels.widths) {
        sparse::transpose_fold(&block, power_of_two(scale), y, w, shifts, z);
    }
    Ok(())
}

/// Gram matrix of the columns of Y times their weights.
fn weighed_gram(block: &RowBlock, panels: &Panels, y: &[Vec<f64>], weights: &[f64]) -> Vec<f64> {
    let width = weights.len();
    let pieces: Vec<Tall<'_>> = y
        .iter()
        .zip(&panels.widths)
        .map(|(numbers, &width)| Tall { numbers, width })
        .collect();
    let mut gram = vec![0.0; width * width];
    for (q, &right) in pieces.iter().enumerate() {
        // What stands above is mirrored.
        let product = tall::cross(block.rows(), &pieces[q..], right);
        let (start, columns) = (panels.start(q), panels.columns(q, width));
        for (i, row) in (start..width).zip(product.chunks_exact(right.width)) {
            for (j, x) in columns.clone().zip(row) {
                let x = x * weights[i] * weights[j];
                gram[i * width + j] = x;
                gram[j * width + i] = x;
            }
        }
    }
    gram
}

/// Eigenvalues below this share of the largest are noise in the guard's Gram matrix.
const GUARD_NOISE: f64 = 1e-12;

fn polish(l: usize, g: usize, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
    let width = l + g;
    let mut inputs = Inputs::of(inputs);
    let sum = inputs.numbers::<i64>(width * width)?;
    let weights = inputs.numbers::<f64>(width)?;
    let z_gram = inputs.numbers::<f64>(g * g)?;
    let unit = power_of_two(-GRAM_BITS);
    let gram = |i: usize, j: usize| sum[i * width + j] as f64 * unit;

    let mut own = vec![0.0; l * l];
    for i in 0..l {
        for j in 0..l {
            own[i * l + j] = gram(i, j);
        }
    }
    let eigen::Eigen {
        values: lambda,
        vectors: q,
    } = eigen::eigen(l, &own, l)?;
    let lambda_min = lambda.last().copied().unwrap_or(1.0);
    // What is not positive is told by `lambda_min`; here it only must not make numbers that are none.
    let roots: Vec<f64> = lambda.iter().map(|x| x.max(1e-30).sqrt()).collect();
    let mut r = vec![0.0; l * l];
    for i in 0..l {
        for j in 0..l {
            r[i * l + j] = roots[i] * q[j * l + i] / weights[j];
        }
    }
    let dense::Svd {
        u: w,
        s: sigma,
        v: p,
    } = dense::svd_small(l, l, &r)?;
    let mut inverse = vec![0.0; l * l];
    for i in 0..l {
        for j in 0..l {
            inverse[i * l + j] = weights[i] * q[i * l + j] / roots[j];
        }
    }
    let m = dense::multiply::<f64, f64>(l, l, l, &inverse, &w);

    // The guard: Gram matrices of A G and of A^T A G without their parts in V, in true units.
    let v_part = |i: usize, j: usize| gram(i, l + j) / (weights[i] * weights[l + j]);
    let mut y_gram = vec![0.0; g * g];
    let mut n_gram = vec![0.0; g * g];
    for i in 0..g {
        for j in 0..g {
            y_gram[i * g + j] = gram(l + i, l + j) / (weights[l + i] * weights[l + j]);
            let inside: f64 = (0..l).map(|c| v_part(c, i) * v_part(c, j)).sum();
            n_gram[i * g + j] = z_gram[i * g + j] - inside;
        }
    }
    let guard = largest_of_pencil(g, &n_gram, &y_gram)?.max(0.0).sqrt();

    let mut out = sigma;
    out.extend([lambda_min, guard]);
    out.extend(p);
    out.extend(m);
    Bytes::from_numbers(&out)
}

/// The largest x with N v = x Y v, over what of Y is not noise.
fn largest_of_pencil(g: usize, n: &[f64], y: &[f64]) -> Result<f64, WorkError> {
    let eigen::Eigen { values, vectors } = eigen::eigen(g, y, g)?;
    let floor = GUARD_NOISE * values.first().copied().unwrap_or(0.0);
    let rank = values.iter().take_while(|&&x| x > floor && x > 0.0).count();
    if rank == 0 {
        return Ok(0.0);
    }
    let mut basis = vec![0.0; g * rank];
    for i in 0..g {
        for j in 0..rank {
            basis[i * rank + j] = vectors[i * g + j] / values[j].sqrt();
        }
    }
    let right = dense::multiply::<f64, f64>(g, g, rank, n, &basis);
    let basis = Tall {
        numbers: &basis,
        width: rank,
    };
    let right = Tall {
        numbers: &right,
        width: rank,
    };
    let small = tall::cross(g, &[basis], right);
    Ok(eigen::eigen(rank, &small, 0)?.values[0])
}

/// V' and A^T U of a slice, f64[rows x k].
struct Right<'a> {
    polished: Polished<'a>,
    v: Vec<f64>,
    a_u: Vec<f64>,
}

impl<'a> Right<'a> {
    fn of(
        shape: Shape,
        slice: Slice,
        held: Precision,
        extra: i32,
        l: usize,
        k: usize,
        inputs: &'a [Bytes],
    ) -> Result<Self, WorkError> {
        let rows = slice.rows as usize;
        let width = shape.width as usize;
        let mut inputs = Inputs::of(inputs);
        let polished = Polished::read(inputs.bytes()?, l)?;
        let x = Pieces::of(held, &mut inputs, rows, &[l as u32])?;
        let mut v = vec![0.0; rows * k];
        x.product(rows, &columns(l, k, polished.p), k, &mut v);
        let z = unfolded(shape, slice, extra, &mut inputs)?;
        // With zeros for the guard columns.
        let mut m = columns(l, k, polished.m);
        m.resize(width * k, 0.0);
        let a_u = dense::multiply::<f64, f64>(rows, width, k, &z, &m);
        Ok(Self { polished, v, a_u })
    }

    fn written<T: Real>(&self, slice: Slice, k: usize) -> Result<Bytes, WorkError> {
        let rows = slice.rows as usize;
        let mut out = BytesMut::zeroed(3 * k * size_of::<f64>() + rows * k * size_of::<T>())?;
        let (head, rest) = out.as_bytes_mut().split_at_mut(3 * k * size_of::<f64>());
        let (peaks, squares) = bytemuck::cast_slice_mut::<u8, f64>(head).split_at_mut(2 * k);
        let written: &mut [T] = bytemuck::cast_slice_mut(rest);
        single::rounded(&self.v, written);
        // Of what is written, not of what it was rounded from: a reader can check it.
        let rows = written.chunks_exact(k).zip(self.a_u.chunks_exact(k));
        for (row, (values, a_u)) in rows.enumerate() {
            for (c, value) in values.iter().enumerate() {
                let value = value.to_f64();
                if value.abs() > peaks[2 * c].abs() {
                    peaks[2 * c] = value;
                    peaks[2 * c + 1] = (slice.first + row as u64) as f64;
                }
                let difference = a_u[c] - value * self.polished.sigma[c];
                squares[c] += difference * difference;
            }
        }
        Ok(out.freeze())
    }
}

/// Rows that are lifted at a time: what comes of them stays in cache.
const LIFTED: usize = 512;

fn lift<T: Real>(
    scale: i32,
    shape: Shape,
    basis: u32,
    rank: u32,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let (l, k) = (basis as usize, rank as usize);
    let mut inputs = Inputs::of(inputs);
    let block = inputs.block(shape.columns)?;
    let rows = block.rows();
    let panels = Panels::of(shape);
    let y = passes::panels_of_product::<f64, f64>(&block, scale, shape, &mut inputs)?;
    let polished = Polished::read(inputs.bytes()?, l)?;
    let signs = inputs.numbers::<f64>(k)?;
    // [M | P] at once, with zeros for the guard columns and the padding.
    let mut both = vec![0.0; panels.padded() * 2 * k];
    for (row, to) in both.chunks_exact_mut(2 * k).take(l).enumerate() {
        for c in 0..k {
            to[c] = polished.m[row * l + c] * signs[c];
            to[k + c] = polished.p[row * l + c] * signs[c];
        }
    }
    let head = k * size_of::<f64>();
    let mut out = BytesMut::zeroed(head + rows * k * size_of::<T>())?;
    let (squares, rest) = out.as_bytes_mut().split_at_mut(head);
    let squares: &mut [f64] = bytemuck::cast_slice_mut(squares);
    let u: &mut [T] = bytemuck::cast_slice_mut(rest);
    let mut product = Vec::new();
    for (chunk, u) in u.chunks_mut(LIFTED * k).enumerate() {
        let rows = u.len() / k;
        let pieces: Vec<Tall<'_>> = y
            .iter()
            .zip(&panels.widths)
            .map(|(y, &width)| Tall {
                numbers: &y[chunk * LIFTED * width..][..rows * width],
                width,
            })
            .collect();
        product.resize(rows * 2 * k, 0.0);
        tall::multiply(rows, &pieces, &both, 2 * k, &mut product);
        for (to, from) in u.chunks_exact_mut(k).zip(product.chunks_exact(2 * k)) {
            for c in 0..k {
                to[c] = T::from_f64(from[c]);
                let difference = from[k + c] - to[c].to_f64() * polished.sigma[c];
                squares[c] += difference * difference;
            }
        }
    }
    Ok(out.freeze())
}

fn lift_written(
    scale: i32,
    shape: Shape,
    basis: usize,
    inputs: &[Bytes],
) -> Result<Bytes, WorkError> {
    let k = shape.width as usize;
    let mut inputs = Inputs::of(inputs);
    let block = inputs.block(shape.columns)?;
    let sigma = Polished::read(inputs.bytes()?, basis)?.sigma;
    let panels = Panels::of(shape);
    let y = passes::panels_of_product::<f32, f64>(&block, scale, shape, &mut inputs)?;
    let head = k * size_of::<f64>();
    let mut out = BytesMut::zeroed(head + block.rows() * k * size_of::<f32>())?;
    let (squares, rest) = out.as_bytes_mut().split_at_mut(head);
    let squares: &mut [f64] = bytemuck::cast_slice_mut(squares);
    let u: &mut [f32] = bytemuck::cast_slice_mut(rest);
    for (p, y) in y.iter().enumerate() {
        let columns = panels.columns(p, k);
        let rows = u.chunks_exact_mut(k).zip(y.chunks_exact(panels.widths[p]));
        for (to, from) in rows {
            let to = &mut to[columns.clone()];
            let squares = &mut squares[columns.clone()];
            let sigma = &sigma[columns.clone()];
            for (((to, from), sigma), square) in to.iter_mut().zip(from).zip(sigma).zip(squares) {
                *to = (from / sigma) as f32;
                let difference = from - f64::from(*to) * sigma;
                *square += difference * difference;
            }
        }
    }
    Ok(out.freeze())
}
