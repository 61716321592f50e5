//! QR by Householder reflections, in blocks.
//!
//! Why not that of `faer`, which does the rest: it takes a column for dependent when no more than 16 rows * epsilon of its
//! norm is left, and drops what is left. That is 1e-12 for 400 rows of `f64` and 3 % for 16,000 rows of `f32`, far more
//! than rounding. Here nothing is dropped: A = Q R to roundoff, whatever the rank.
//!
//! Reference: Golub, Van Loan, "Matrix Computations" (4th ed.), algorithms 5.1.1 and 5.2.2, section 5.2.3 (I - V T V^T).

use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::{
    real::Real,
    simd::{Isa, isa},
};

/// Columns of a block.
const BLOCK: usize = 16;
/// Sums are kept in so many parts, added at the end: one order on every instruction set.
const LANES: usize = 16;

/// A = Q R, Q as reflections.
pub struct Reflections<T> {
    /// R on and above the diagonal, the reflections' vectors below it.
    a: Mat<T>,
    /// For each block, V with its ones and zeros, and T.
    blocks: Vec<(Mat<T>, Mat<T>)>,
}

impl<T: Real> Reflections<T> {
    /// Takes A, rows x cols.
    pub fn of(mut a: Mat<T>) -> Self {
        let (rows, cols) = a.shape();
        let size = rows.min(cols);
        let mut blocks = Vec::with_capacity(size.div_ceil(BLOCK));
        for first in (0..size).step_by(BLOCK) {
            let end = (first + BLOCK).min(size);
            let mut scales = [0.0; BLOCK];
            reduce(&mut a, first, end, &mut scales);
            let v = vectors(&a, first, end);
            let t = triangle(&v, &scales);
            if end < cols {
                // C <- (I - V T^T V^T) C
                let rest = a
                    .as_mut()
                    .submatrix_mut(first, end, rows - first, cols - end);
                apply(&v, t.transpose(), rest);
            }
            blocks.push((v, t));
        }
        Self { a, blocks }
    }

    fn size(&self) -> usize {
        self.a.nrows().min(self.a.ncols())
    }

    /// R, min(rows, cols) x cols, row-major.
    pub fn r(&self) -> Vec<T> {
        let cols = self.a.ncols();
        let mut r = vec![T::zeroed(); self.size() * cols];
        for (i, row) in r.chunks_exact_mut(cols.max(1)).enumerate() {
            for (j, r) in row.iter_mut().enumerate().skip(i) {
                *r = self.a[(i, j)];
            }
        }
        r
    }

    /// Q, rows x min(rows, cols).
    pub fn q(&self, mut zeros: Mat<T>) -> Mat<T> {
        let (rows, size) = (self.a.nrows(), self.size());
        debug_assert_eq!(zeros.shape(), (rows, size));
        for i in 0..size {
            zeros[(i, i)] = T::from_f64(1.0);
        }
        let mut q = zeros;
        for (block, (v, t)) in self.blocks.iter().enumerate().rev() {
            let first = block * BLOCK;
            // Columns before the block are those of the identity still, and it does not touch them.
            let rest = q
                .as_mut()
                .submatrix_mut(first, first, rows - first, size - first);
            apply(v, t.as_ref(), rest);
        }
        q
    }
}

/// C <- C - V T V^T C
fn apply<T: Real>(v: &Mat<T>, t: MatRef<'_, T>, mut c: MatMut<'_, T>) {
    let one = T::from_f64(1.0);
    let (width, cols) = (v.ncols(), c.ncols());
    let mut w = Mat::<T>::zeros(width, cols);
    let v_t = v.as_ref().transpose();
    matmul(w.as_mut(), Accum::Replace, v_t, c.as_ref(), one, Par::Seq);
    let mut tw = Mat::<T>::zeros(width, cols);
    matmul(tw.as_mut(), Accum::Replace, t, w.as_ref(), one, Par::Seq);
    let minus = T::from_f64(-1.0);
    matmul(
        c.as_mut(),
        Accum::Add,
        v.as_ref(),
        tw.as_ref(),
        minus,
        Par::Seq,
    );
}

/// V of a block as a matrix of its own, from row `first` on.
fn vectors<T: Real>(a: &Mat<T>, first: usize, end: usize) -> Mat<T> {
    let rows = a.nrows() - first;
    let mut v = Mat::<T>::zeros(rows, end - first);
    for j in 0..end - first {
        let to = v.col_as_slice_mut(j);
        to[j] = T::from_f64(1.0);
        to[j + 1..].copy_from_slice(&a.col_as_slice(first + j)[first + j + 1..]);
    }
    v
}

/// T of H_1 H_2 .. = I - V T V^T, H_j = I - scale_j v_j v_j^T. In `f64`, since what it lacks Q lacks in orthonormality.
fn triangle<T: Real>(v: &Mat<T>, scales: &[f64; BLOCK]) -> Mat<T> {
    let width = v.ncols();
    let wide = Mat::<f64>::from_fn(v.nrows(), width, |i, j| v[(i, j)].to_f64());
    let mut gram = Mat::<f64>::zeros(width, width);
    let wide_t = wide.as_ref().transpose();
    matmul(
        gram.as_mut(),
        Accum::Replace,
        wide_t,
        wide.as_ref(),
        1.0,
        Par::Seq,
    );
    let mut t = Mat::<f64>::zeros(width, width);
    for j in 0..width {
        t[(j, j)] = scales[j];
        for i in 0..j {
            let sum: f64 = (i..j).map(|k| t[(i, k)] * gram[(k, j)]).sum();
            t[(i, j)] = -scales[j] * sum;
        }
    }
    Mat::from_fn(width, width, |i, j| T::from_f64(t[(i, j)]))
}

/// Columns `first..end` of A to triangular form, one reflection after the other.
fn reduce<T: Real>(a: &mut Mat<T>, first: usize, end: usize, scales: &mut [f64; BLOCK]) {
    #[cfg(target_arch = "x86_64")]
    if isa() != Isa::Portable {
        // SAFETY: both others have AVX2, and `isa` gives what the machine has.
        return unsafe { reduce_avx2(a, first, end, scales) };
    }
    reduce_any(a, first, end, scales);
}

/// The same code, with longer registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn reduce_avx2<T: Real>(a: &mut Mat<T>, first: usize, end: usize, scales: &mut [f64; BLOCK]) {
    reduce_any(a, first, end, scales);
}

#[inline(always)]
fn reduce_any<T: Real>(a: &mut Mat<T>, first: usize, end: usize, scales: &mut [f64; BLOCK]) {
    let mut v = vec![T::zeroed(); a.nrows() - first];
    for j in first..end {
        let column = &mut a.col_as_slice_mut(j)[j..];
        let below = squares(&column[1..]);
        if below == 0.0 {
            // Nothing is to be reflected away.
            continue;
        }
        let head = column[0].to_f64();
        let norm = (head * head + below).sqrt();
        let beta = if head > 0.0 { -norm } else { norm };
        let factor = 1.0 / (head - beta);
        column[0] = T::from_f64(beta);
        for x in &mut column[1..] {
            *x = T::from_f64(x.to_f64() * factor);
        }
        // Of the vector as it was rounded: so the reflection stays one.
        scales[j - first] = 2.0 / (1.0 + squares(&column[1..]));
        let v = &mut v[..column.len()];
        v.copy_from_slice(column);
        v[0] = T::from_f64(1.0);
        for other in j + 1..end {
            let column = &mut a.col_as_slice_mut(other)[j..];
            let mut sums = [T::zeroed(); LANES];
            for (x, v) in column.chunks(LANES).zip(v.chunks(LANES)) {
                for ((sum, &x), &v) in sums.iter_mut().zip(x).zip(v) {
                    *sum += x * v;
                }
            }
            let dot = sums.iter().fold(T::zeroed(), |dot, &sum| dot + sum);
            let factor = dot * T::from_f64(scales[j - first]);
            for (x, &v) in column.iter_mut().zip(v.iter()) {
                *x -= factor * v;
            }
        }
    }
}

#[inline(always)]
fn squares<T: Real>(numbers: &[T]) -> f64 {
    let mut sums = [0.0f64; LANES];
    for piece in numbers.chunks(LANES) {
        for (sum, x) in sums.iter_mut().zip(piece) {
            let x = x.to_f64();
            *sum += x * x;
        }
    }
    sums.iter().sum()
}
