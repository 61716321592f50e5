//! Dense work on blocks that fit in cache or nearly: QR, small singular value decompositions, products.
//!
//! All arrays are row-major slices. Everything is computed by `faer` on one thread, in matrices that it owns: neither the
//! number of threads nor the place of an array in memory can change a bit. Another instruction set can.

use std::any::TypeId;

use faer::{
    Accum, Mat, MatMut, MatRef, Par, Spec,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        matmul,
        svd::{self, ComputeSvdVectors},
    },
};

use super::{fixed::power_of_two, householder::Reflections, real::Real};
use crate::farm::work::WorkError;

/// R of A = Q R.
///
/// Shapes: `a` is rows x cols; R is min(rows, cols) x cols, upper trapezoidal, in `f64`.
/// Method: Householder in T, of A times the power of two that brings its largest entry near 1; stacked R's of several
/// blocks as `a` make one combination of a TSQR.
/// Cost: 2 * cols^2 * (rows - cols / 3) operations for rows >= cols.
/// Reproducibility: a function of the arguments, on one instruction set.
/// Panics: when `a` has another size. Entries that are not finite give an R that is not.
/// Reference: Demmel, Grigori, Hoemmen, Langou, "Communication-optimal parallel and sequential QR and LU
/// factorizations" (2012).
pub fn qr_r<T: Real>(rows: usize, cols: usize, a: &[T]) -> Vec<f64> {
    Factored::new(rows, cols, a).r()
}

/// Q and R of A = Q R.
///
/// Shapes: `a` is rows x cols; with n = min(rows, cols), Q is rows x n in T and R as for [`qr_r`].
/// Method: as [`qr_r`]. The columns of Q are orthonormal whatever the rank of A.
/// Cost: twice that of [`qr_r`].
/// Reproducibility, panics: as [`qr_r`].
pub fn qr<T: Real>(rows: usize, cols: usize, a: &[T]) -> (Vec<T>, Vec<f64>) {
    let factored = Factored::new(rows, cols, a);
    (factored.q(), factored.r())
}

/// The reflections of a QR, and the exponent of the scale.
struct Factored<T> {
    reflections: Reflections<T>,
    exponent: i32,
    rows: usize,
    size: usize,
}

impl<T: Real> Factored<T> {
    fn new(rows: usize, cols: usize, a: &[T]) -> Self {
        check("a", a.len(), rows, cols);
        let exponent = exponent_of(a);
        Self {
            reflections: Reflections::of(to_columns(rows, cols, a, exponent)),
            exponent,
            rows,
            size: rows.min(cols),
        }
    }

    fn r(&self) -> Vec<f64> {
        let scale = power_of_two(self.exponent);
        let r = self.reflections.r();
        r.iter().map(|r| r.to_f64() * scale).collect()
    }

    fn q(&self) -> Vec<T> {
        to_rows(self.reflections.q(spaced(self.rows, self.size)).as_ref())
    }
}

/// A = U diag(s) V^T, with n = min(rows, cols).
#[derive(Clone, PartialEq, Debug)]
pub struct Svd {
    /// rows x n
    pub u: Vec<f64>,
    /// n, descending
    pub s: Vec<f64>,
    /// cols x n
    pub v: Vec<f64>,
}

/// Singular value decomposition of a small matrix.
///
/// Shapes: `a` is rows x cols; see [`Svd`].
/// Method: bidiagonalization and divide and conquer in `f64`, of A times the power of two that brings its largest entry
/// near 1. What comes of it is multiplied out: divide and conquer as `faer` has it is off by 1e-4 where many singular
/// values are equal (0 and 1, 300 x 300). Then it is tried with A^T, then by implicit QR steps.
/// Cost: about 22 * n^3 operations, where the first try is good.
/// Error: ||A - U diag(s) V^T||_F is below 32 n roundoffs of s_1.
/// Reproducibility: a function of the arguments, on one instruction set. Signs are as they come.
/// Errors: entries that are not finite; no convergence.
/// Panics: when `a` has another size.
pub fn svd_small(rows: usize, cols: usize, a: &[f64]) -> Result<Svd, WorkError> {
    check("a", a.len(), rows, cols);
    let failed = |why: &str| WorkError::Numbers(format!("SVD of a {rows} x {cols} matrix: {why}"));
    if !a.iter().all(|x| x.is_finite()) {
        return Err(failed("it has entries that are not finite"));
    }
    let n = rows.min(cols);
    if n == 0 {
        return Ok(Svd {
            u: Vec::new(),
            s: Vec::new(),
            v: Vec::new(),
        });
    }
    let exponent = exponent_of(a);
    let scaled = to_columns(rows, cols, a, exponent);
    let mut why = String::new();
    for way in Way::ALL {
        match way.svd(scaled.as_ref()) {
            Ok((u, mut s, v)) => {
                let error = error_of(scaled.as_ref(), u.as_ref(), &s, v.as_ref());
                // Not a number is not good, either.
                if error <= 32.0 * n.max(8) as f64 * f64::EPSILON * s[0] {
                    let scale = power_of_two(exponent);
                    s.iter_mut().for_each(|s| *s *= scale);
                    return Ok(Svd {
                        u: to_rows(u.as_ref()),
                        s,
                        v: to_rows(v.as_ref()),
                    });
                }
                why = format!("the factors differ from it by {error:.1e}");
            }
            Err(what) => why = what,
        }
    }
    Err(failed(&why))
}

/// Ways to a singular value decomposition.
#[derive(Clone, Copy, Debug)]
enum Way {
    Divide,
    DivideTransposed,
    ImplicitQr,
}

type Factors = (Mat<f64>, Vec<f64>, Mat<f64>);

impl Way {
    const ALL: [Self; 3] = [Self::Divide, Self::DivideTransposed, Self::ImplicitQr];

    /// U, s, V
    fn svd(self, a: MatRef<'_, f64>) -> Result<Factors, String> {
        let mut how: Spec<svd::SvdParams, f64> = Default::default();
        match self {
            Self::Divide => {}
            Self::DivideTransposed => {
                let (v, s, u) = Self::Divide.svd(a.transpose().to_owned().as_ref())?;
                return Ok((u, s, v));
            }
            Self::ImplicitQr => how.config.recursion_threshold = usize::MAX,
        }
        let (rows, cols) = (a.nrows(), a.ncols());
        let n = rows.min(cols);
        let (mut u, mut v) = (Mat::<f64>::zeros(rows, n), Mat::<f64>::zeros(cols, n));
        let mut s = Diag::<f64>::zeros(n);
        let thin = ComputeSvdVectors::Thin;
        let need = svd::svd_scratch::<f64>(rows, cols, thin, thin, Par::Seq, how);
        svd::svd(
            a,
            s.as_mut(),
            Some(u.as_mut()),
            Some(v.as_mut()),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(need)),
            how,
        )
        .map_err(|why| format!("{why:?}"))?;
        let s: Vec<f64> = (0..n).map(|i| s.column_vector()[i]).collect();
        if !s.is_sorted_by(|a, b| a >= b) {
            return Err("it gave numbers that are not finite".to_owned());
        }
        Ok((u, s, v))
    }
}

/// ||A - U diag(s) V^T||_F
fn error_of(a: MatRef<'_, f64>, u: MatRef<'_, f64>, s: &[f64], v: MatRef<'_, f64>) -> f64 {
    let mut left = a.to_owned();
    let scaled = Mat::from_fn(u.nrows(), s.len(), |i, j| u[(i, j)] * s[j]);
    matmul::matmul(
        left.as_mut(),
        Accum::Add,
        scaled.as_ref(),
        v.transpose(),
        -1.0,
        Par::Seq,
    );
    left.norm_l2()
}

/// Rows that are converted to `f64` at a time.
const CHUNK: usize = 512;

/// C = A B, computed in `f64`.
///
/// Shapes: `a` is rows x inner in T, `b` inner x cols in `f64`, C is rows x cols in O.
/// Method: runs of 512 rows of A, converted.
/// Cost: 2 * rows * inner * cols operations.
/// Reproducibility: a function of the arguments, on one instruction set; rows in other calls, cut at other multiples of
/// 512, come out the same.
/// Panics: on other shapes.
pub fn multiply<T: Real, O: Real>(
    rows: usize,
    inner: usize,
    cols: usize,
    a: &[T],
    b: &[f64],
) -> Vec<O> {
    check("a", a.len(), rows, inner);
    check("b", b.len(), inner, cols);
    let mut out = vec![O::zeroed(); rows * cols];
    if rows * inner * cols == 0 {
        return out;
    }
    let b = MatRef::from_row_major_slice(b, inner, cols);
    let (mut wide, mut product) = (Vec::new(), vec![0.0; CHUNK.min(rows) * cols]);
    for (a, out) in a.chunks(CHUNK * inner).zip(out.chunks_mut(CHUNK * cols)) {
        let count = a.len() / inner;
        let product = &mut product[..count * cols];
        matmul::matmul(
            MatMut::from_row_major_slice_mut(product, count, cols),
            Accum::Replace,
            MatRef::from_row_major_slice(widened(a, &mut wide), count, inner),
            b,
            1.0,
            Par::Seq,
        );
        for (out, product) in out.iter_mut().zip(product) {
            *out = O::from_f64(*product);
        }
    }
    out
}

/// C = A^T A, computed in `f64`.
///
/// Shapes: `a` is rows x cols, C cols x cols, symmetric to the bit.
/// Method: runs of 512 rows, converted, added in order.
/// Cost: 2 * rows * cols^2 operations.
/// Reproducibility: a function of the arguments, on one instruction set.
/// Panics: when `a` has another size.
pub fn gram<T: Real>(rows: usize, cols: usize, a: &[T]) -> Vec<f64> {
    check("a", a.len(), rows, cols);
    let mut c = Mat::<f64>::zeros(cols, cols);
    if rows * cols > 0 {
        let mut wide = Vec::new();
        for a in a.chunks(CHUNK * cols) {
            let a = MatRef::from_row_major_slice(widened(a, &mut wide), a.len() / cols, cols);
            matmul::matmul(c.as_mut(), Accum::Add, a.transpose(), a, 1.0, Par::Seq);
        }
    }
    // The lower half, twice.
    let mut out = vec![0.0; cols * cols];
    for i in 0..cols {
        for j in 0..=i {
            out[i * cols + j] = c[(i, j)];
            out[j * cols + i] = c[(i, j)];
        }
    }
    out
}

fn check(name: &str, len: usize, rows: usize, cols: usize) {
    assert_eq!(len, rows * cols, "{name} should be {rows} x {cols}");
}

/// e with the largest magnitude in [2^e, 2^(e+1)), inside a range where 2^e and 2^-e are normal; 0 for zeros and for what
/// is not finite.
fn exponent_of<T: Real>(a: &[T]) -> i32 {
    let largest = a
        .iter()
        .fold(0.0f64, |largest, x| largest.max(x.to_f64().abs()));
    if largest == 0.0 || !largest.is_finite() {
        return 0;
    }
    (((largest.to_bits() >> 52) as i32) - 1023).clamp(-1000, 1000)
}

/// Rows that are copied at a time between the two orders: whole cache lines of both.
const STRIP: usize = 16;

/// Zeros, with columns apart by no power of two: else the caches would hold few of them.
fn spaced<T: Real>(rows: usize, cols: usize) -> Mat<T> {
    let mut out = Mat::with_capacity(rows + 80, cols);
    out.resize_with(rows, cols, |_, _| T::zeroed());
    out
}

/// A row-major array as a matrix of `faer`'s own, times 2^-exponent.
fn to_columns<T: Real>(rows: usize, cols: usize, a: &[T], exponent: i32) -> Mat<T> {
    let scale = power_of_two(-exponent);
    let mut out = spaced(rows, cols);
    if rows * cols == 0 {
        return out;
    }
    for (strip, a) in a.chunks(STRIP * cols).enumerate() {
        for j in 0..cols {
            let out = &mut out.col_as_slice_mut(j)[strip * STRIP..];
            for (out, a) in out.iter_mut().zip(a[j..].iter().step_by(cols)) {
                *out = T::from_f64(a.to_f64() * scale);
            }
        }
    }
    out
}

/// Numbers as `f64`, in the room given where they are not.
fn widened<'a, T: Real>(a: &'a [T], room: &'a mut Vec<f64>) -> &'a [f64] {
    if TypeId::of::<T>() == TypeId::of::<f64>() {
        return bytemuck::cast_slice(a);
    }
    room.clear();
    room.extend(a.iter().map(|a| a.to_f64()));
    room
}

fn to_rows<T: Real>(a: MatRef<'_, T>) -> Vec<T> {
    let (rows, cols) = a.shape();
    let mut out = vec![T::zeroed(); rows * cols];
    if rows * cols == 0 {
        return out;
    }
    for (strip, out) in out.chunks_mut(STRIP * cols).enumerate() {
        for j in 0..cols {
            let a = a.col(j).subrows(strip * STRIP, out.len() / cols);
            for (out, a) in out[j..].iter_mut().step_by(cols).zip(a.iter()) {
                *out = *a;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers<T: Real>(count: usize, seed: u64) -> Vec<T> {
        let sketch = crate::linalg::sketch::Sketch {
            seed,
            stream: 9,
            columns: count,
        };
        let mut out = vec![T::zeroed(); count];
        sketch.fill(0..1, 0, count, 1.0, &mut out);
        out
    }

    fn product<S: Real, T: Real>(m: usize, k: usize, n: usize, a: &[S], b: &[T]) -> Vec<f64> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for p in 0..k {
                for j in 0..n {
                    c[i * n + j] += a[i * k + p].to_f64() * b[p * n + j].to_f64();
                }
            }
        }
        c
    }

    fn transposed<T: Real>(rows: usize, cols: usize, a: &[T]) -> Vec<T> {
        (0..rows * cols)
            .map(|k| a[(k % rows) * cols + k / rows])
            .collect()
    }

    /// Largest entry of |Q^T Q - I|.
    fn not_orthonormal<T: Real>(rows: usize, n: usize, q: &[T]) -> f64 {
        let c = product(n, rows, n, &transposed(rows, n, q), q);
        (0..n * n)
            .map(|k| (c[k] - f64::from(k / n == k % n)).abs())
            .fold(0.0, f64::max)
    }

    fn largest<T: Real>(a: &[T]) -> f64 {
        a.iter().fold(0.0, |l, x| l.max(x.to_f64().abs()))
    }

    fn qr_holds<T: Real>(rows: usize, cols: usize, a: &[T], tolerance: f64) {
        let (q, r) = qr(rows, cols, a);
        let n = rows.min(cols);
        assert_eq!((q.len(), r.len()), (rows * n, n * cols));
        assert_eq!(r, qr_r(rows, cols, a));
        let far = not_orthonormal(rows, n, &q);
        assert!(far <= tolerance, "{rows} x {cols}: Q is off by {far:e}");
        for i in 0..n {
            for j in 0..i.min(cols) {
                assert_eq!(r[i * cols + j], 0.0);
            }
        }
        let back = product(rows, n, cols, &q, &r);
        let size = largest(a);
        for (b, a) in back.iter().zip(a) {
            assert!(
                (b - a.to_f64()).abs() <= 20.0 * tolerance * size,
                "{rows} x {cols}: {b:e} is not {a:?}"
            );
        }
    }

    #[test]
    fn qr_of_many_shapes_and_ranks() {
        for (rows, cols) in [
            (1, 1),
            (1, 7),
            (7, 1),
            (5, 5),
            (3, 20),
            (40, 40),
            (300, 110),
            (2000, 64),
            (60, 130),
        ] {
            let a = numbers::<f64>(rows * cols, 1);
            let single: Vec<f32> = a.iter().map(|&x| x as f32).collect();
            qr_holds(rows, cols, &a, 1e-14);
            qr_holds(rows, cols, &single, 2e-6);
            for scale in [1e20, 1e-20, 1e37] {
                let scaled: Vec<f64> = a.iter().map(|x| x * scale).collect();
                qr_holds(rows, cols, &scaled, 1e-14);
                let scaled: Vec<f32> = a.iter().map(|x| (x * scale) as f32).collect();
                qr_holds(rows, cols, &scaled, 2e-6);
            }
            // Columns that are zero, and columns that repeat others.
            let mut flat = a.clone();
            for row in flat.chunks_mut(cols) {
                for j in 0..cols {
                    row[j] = match j % 4 {
                        1 => 0.0,
                        2 | 3 => row[0] * 2.0,
                        _ => row[j],
                    };
                }
            }
            qr_holds(rows, cols, &flat, 1e-14);
            let flat: Vec<f32> = flat.iter().map(|&x| x as f32).collect();
            qr_holds(rows, cols, &flat, 2e-6);
            qr_holds(rows, cols, &vec![0f64; rows * cols], 1e-14);
            qr_holds(rows, cols, &vec![0f32; rows * cols], 2e-6);
        }
        assert_eq!(qr::<f64>(0, 3, &[]), (vec![], vec![]));
        assert_eq!(qr::<f64>(3, 0, &[]), (vec![], vec![]));
    }

    /// What is left of a column when the others are taken away may be tiny and still count.
    #[test]
    fn qr_drops_nothing_of_nearly_dependent_columns() {
        for (rows, cols) in [(400, 50), (200, 100), (3000, 64)] {
            // Rank 13, and columns that differ by little.
            let dct = |n: usize, i: usize, j: usize| {
                (std::f64::consts::PI / n as f64 * (i as f64 + 0.5) * (j as f64 + 0.5)).cos()
            };
            let mut a = vec![0.0; rows * cols];
            for i in 0..rows {
                for j in 0..cols {
                    a[i * cols + j] = (0..13).map(|c| dct(rows, i, c) * dct(cols, j, c)).sum();
                }
            }
            qr_holds(rows, cols, &a, 1e-14);
            let single: Vec<f32> = a.iter().map(|&x| x as f32).collect();
            qr_holds(rows, cols, &single, 2e-6);
        }
    }

    #[test]
    fn qr_does_not_depend_on_where_the_array_lies() {
        let a = numbers::<f32>(500 * 30 + 16, 2);
        let first = qr(500, 30, &a[..500 * 30]);
        for shift in 1..16 {
            let mut moved = a.clone();
            moved.copy_within(0..500 * 30, shift);
            assert_eq!(first, qr(500, 30, &moved[shift..][..500 * 30]));
        }
    }

    #[test]
    fn a_combination_of_rs_is_the_r_of_the_whole() {
        let (rows, cols) = (400, 12);
        let a = numbers::<f64>(rows * cols, 3);
        let mut stacked = qr_r(150, cols, &a[..150 * cols]);
        stacked.extend(qr_r(250, cols, &a[150 * cols..]));
        let (tree, whole) = (qr_r(2 * cols, cols, &stacked), qr_r(rows, cols, &a));
        for (t, w) in tree.iter().zip(&whole) {
            assert!((t.abs() - w.abs()).abs() < 1e-13);
        }
    }

    fn svd_holds(rows: usize, cols: usize, a: &[f64]) {
        let svd = svd_small(rows, cols, a).unwrap();
        let n = rows.min(cols);
        assert!(
            not_orthonormal(rows, n, &svd.u) < 1e-13 && not_orthonormal(cols, n, &svd.v) < 1e-13
        );
        let us: Vec<f64> = (0..rows * n).map(|k| svd.u[k] * svd.s[k % n]).collect();
        let back = product(rows, n, cols, &us, &transposed(cols, n, &svd.v));
        for (b, a) in back.iter().zip(a) {
            assert!((b - a).abs() <= 1e-13 * svd.s[0]);
        }
        assert!(svd.s.iter().all(|&s| s >= 0.0));
    }

    #[test]
    fn small_svds() {
        for (rows, cols) in [
            (1, 1),
            (1, 9),
            (9, 1),
            (33, 33),
            (110, 110),
            (20, 90),
            (220, 60),
        ] {
            let a = numbers::<f64>(rows * cols, 4);
            svd_holds(rows, cols, &a);
            for scale in [1e20, 1e-20, 1e200, 1e-200] {
                svd_holds(rows, cols, &a.iter().map(|x| x * scale).collect::<Vec<_>>());
            }
            svd_holds(rows, cols, &vec![0.0; rows * cols]);
            svd_holds(rows, cols, &vec![1.0; rows * cols]);
        }
        // Decay over twenty decades, and an identity.
        let n = 50;
        let mut decay = vec![0.0; n * n];
        for i in 0..n {
            decay[i * n + i] = 10f64.powf(-20.0 * i as f64 / (n - 1) as f64);
        }
        svd_holds(n, n, &decay);
        let mut identity = vec![0.0; n * n];
        (0..n).for_each(|i| identity[i * n + i] = 1.0);
        svd_holds(n, n, &identity);
        assert_eq!(svd_small(0, 4, &[]).unwrap().s, []);
        for bad in [f64::NAN, f64::INFINITY] {
            assert!(matches!(
                svd_small(1, 2, &[1.0, bad]),
                Err(WorkError::Numbers(_))
            ));
        }
    }

    /// Half of them 0, the others 1: divide and conquer alone was off by 1.2e-4 with the first two, on AVX-512.
    #[test]
    fn an_svd_of_many_equal_singular_values() {
        for (n, seed) in [(300, 6), (300, 7), (400, 8), (400, 9)] {
            let half = |seed: u64| -> Vec<f64> {
                let (q, _) = qr::<f64>(n, n, &numbers(n * n, seed));
                let rows = q.chunks_exact(n);
                rows.flat_map(|row| row[..n / 2].iter().copied()).collect()
            };
            let (u, v) = (half(seed), half(seed + 10));
            let a = product(n, n / 2, n, &u, &transposed(n, n / 2, &v));
            svd_holds(n, n, &qr_r(n, n, &a));
        }
    }

    proptest! {
        #[test]
        fn products_are_products(rows in 0usize..1200, inner in 0usize..20, cols in 0usize..20) {
            let (a, b) = (numbers::<f32>(rows * inner, 5), numbers::<f64>(inner * cols, 6));
            let c = multiply::<f32, f64>(rows, inner, cols, &a, &b);
            for (c, e) in c.iter().zip(product(rows, inner, cols, &a, &b)) {
                prop_assert!((c - e).abs() < 1e-14);
            }
            let c = gram(rows, inner, &a);
            let expected = product(inner, rows, inner, &transposed(rows, inner, &a), &a);
            for (c, e) in c.iter().zip(expected) {
                prop_assert!((c - e).abs() < 1e-11);
            }
        }
    }
}
