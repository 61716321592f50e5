//! A symmetric matrix to tridiagonal form, A = Q T Q^T, and vectors of T back to those of A.
//!
//! Householder reflections as in LAPACK's `dsytrd` and `dlatrd` (Dongarra, Sorensen, Hammarling 1989), the last row first.
//! Half of the operations are products of what is left of A with a vector; they cost what reading it costs. So it stands as
//! one half, row after row: what is left is the beginning of the array, and it stays in the second cache as long as it can.
//! Each of its numbers serves twice when it is read, and rows are read eight at a time.

use super::super::{
    narrow::{self, Strides},
    simd::{Isa, Vector, Vectors, isa},
};

/// Rows of a group have the same length: what is below the diagonal, and the whole of the block on it.
const GROUP: usize = 8;
/// Reflections whose effect on what is left is brought in at once.
const PANEL: usize = 16;
/// Reflections that go back at once.
const BACK: usize = 32;

/// T, and the reflections that led to it.
pub struct Tridiagonal {
    /// n
    pub diagonal: Vec<f64>,
    /// n - 1
    pub beside: Vec<f64>,
    /// Row k: the vector of the reflection that cleared row k of A, for k from 1; its entries from k on are zero.
    reflections: Vec<f64>,
    /// Its factor: H = I - factor v v^T.
    factors: Vec<f64>,
    /// Numbers of a row of `reflections`.
    pitch: usize,
}

/// Where row `i` begins.
fn start(i: usize) -> usize {
    let group = i / GROUP;
    GROUP * GROUP / 2 * group * (group + 1) + (i % GROUP) * length(i)
}

/// Numbers of row `i`.
fn length(i: usize) -> usize {
    GROUP * (i / GROUP + 1)
}

/// Reduces `a` * 2^exponent.
///
/// Shapes: `a` is n x n, row-major; its lower half is read.
/// Cost: 4/3 * n^3 operations.
/// Reproducibility: a function of the arguments, on every instruction set.
pub fn reduce(n: usize, a: &[f64], scale: f64) -> Tridiagonal {
    reduce_by(isa(), n, a, scale)
}

fn reduce_by(isa: Isa, n: usize, a: &[f64], scale: f64) -> Tridiagonal {
    let pitch = n.next_multiple_of(GROUP);
    let mut left = Left {
        kernels: Kernels::of(isa),
        pitch,
        rows: vec![0.0; start(pitch)],
        panel: vec![0.0; 2 * PANEL * pitch],
        held: 0,
    };
    for i in 0..n {
        let row = &mut left.rows[start(i)..][..length(i)];
        for (j, to) in row.iter_mut().enumerate().take(n) {
            *to = scale * a[i.max(j) * n + i.min(j)];
        }
    }
    let mut out = Tridiagonal {
        diagonal: vec![0.0; n],
        beside: vec![0.0; n.saturating_sub(1)],
        reflections: vec![0.0; n * pitch],
        factors: vec![0.0; n],
        pitch,
    };
    let mut product = vec![0.0; pitch];
    for k in (1..n).rev() {
        let v = &mut out.reflections[k * pitch..][..pitch];
        left.row(k, v);
        out.diagonal[k] = v[k];
        v[k..].fill(0.0);
        let (factor, beside) = reflection(left.kernels, &mut v[..length(k)], k - 1);
        out.beside[k - 1] = beside;
        out.factors[k] = factor;
        product.fill(0.0);
        if factor != 0.0 {
            left.product(k, v, &mut product);
            let along = factor * left.kernels.dot(v, &product) / 2.0;
            for (p, v) in product.iter_mut().zip(&*v) {
                *p = factor * (*p - along * v);
            }
        }
        left.take(v, &product);
        if left.held == PANEL || k == 1 {
            left.bring_in(k);
        }
    }
    if n > 0 {
        out.diagonal[0] = left.rows[0];
    }
    out
}

/// The vector that takes `v` to its entry `last`, in place of `v`, 1 there; its factor, and what that entry becomes.
fn reflection(kernels: Kernels, v: &mut [f64], last: usize) -> (f64, f64) {
    let alpha = std::mem::take(&mut v[last]);
    let rest = kernels.dot(v, v);
    let beta = -(alpha * alpha + rest).sqrt().copysign(alpha);
    if rest == 0.0 {
        v.fill(0.0);
        return (0.0, alpha);
    }
    let scale = 1.0 / (alpha - beta);
    for x in v.iter_mut() {
        *x *= scale;
    }
    v[last] = 1.0;
    ((beta - alpha) / beta, beta)
}

/// What is left of A.
struct Left {
    kernels: Kernels,
    pitch: usize,
    /// Without what the panel says.
    rows: Vec<f64>,
    /// v, w, v, w, ... in rows of `pitch`: A - sum of v w^T + w v^T is what is left.
    panel: Vec<f64>,
    /// Pairs of them.
    held: usize,
}

impl Left {
    /// Row `k` up to the diagonal.
    fn row(&self, k: usize, to: &mut [f64]) {
        to[..length(k)].copy_from_slice(&self.rows[start(k)..][..length(k)]);
        let mut factors = [0.0; 2 * PANEL];
        for (t, factor) in factors.iter_mut().enumerate().take(2 * self.held) {
            *factor = -self.panel[(t ^ 1) * self.pitch + k];
        }
        self.add_panel(&factors, &mut to[..length(k)]);
    }

    /// y <- A v for what is left above row `k`.
    fn product(&self, k: usize, v: &[f64], y: &mut [f64]) {
        for first in (0..k).step_by(GROUP) {
            let rows = &self.rows[start(first)..][..GROUP * length(first)];
            self.kernels.both(rows, &v[..length(first)], y);
        }
        y[k..].fill(0.0);
        let mut factors = [0.0; 2 * PANEL];
        let len = length(k - 1);
        for first in (0..2 * self.held).step_by(GROUP) {
            let rows = &self.panel[first * self.pitch..][..GROUP * self.pitch];
            let found = self.kernels.dots(rows, self.pitch, &v[..len]);
            for (t, found) in found.into_iter().enumerate() {
                if first + t < 2 * self.held {
                    factors[(first + t) ^ 1] = -found;
                }
            }
        }
        self.add_panel(&factors, &mut y[..len]);
        y[k..].fill(0.0);
    }

    /// Adds the rows of the panel times the factors.
    fn add_panel(&self, factors: &[f64; 2 * PANEL], to: &mut [f64]) {
        for first in (0..2 * self.held).step_by(GROUP) {
            let rows = &self.panel[first * self.pitch..][..GROUP * self.pitch];
            let factors = &factors[first..first + GROUP];
            self.kernels.add(rows, self.pitch, factors, to);
        }
    }

    fn take(&mut self, v: &[f64], w: &[f64]) {
        let at = 2 * self.held * self.pitch;
        self.panel[at..][..self.pitch].copy_from_slice(v);
        self.panel[at + self.pitch..][..self.pitch].copy_from_slice(w);
        self.held += 1;
    }

    /// Rows above `k`, with what the panel says.
    fn bring_in(&mut self, k: usize) {
        for first in (0..k).step_by(GROUP) {
            let rows = &mut self.rows[start(first)..][..GROUP * length(first)];
            let panel = &self.panel[..2 * self.held * self.pitch];
            self.kernels.update(rows, first, panel, self.pitch);
        }
        self.held = 0;
    }
}

impl Tridiagonal {
    /// Z <- Q Z: vectors of A from those of T.
    ///
    /// Shapes: `z` is n x width, row-major.
    /// Cost: 2 * n^2 * width operations.
    /// Reproducibility: a function of the arguments, on every instruction set.
    pub fn back(&self, z: &mut [f64], width: usize) {
        let n = self.diagonal.len();
        let mut first = 1;
        while first < n {
            let count = BACK.min(n - first);
            let v = &self.reflections[first * self.pitch..][..count * self.pitch];
            let rows = first + count - 1;
            let mut compact = self.compact(first, count, v, rows);
            for x in &mut compact {
                *x = -*x;
            }
            // Z - V^T (L (V Z)), V the rows of reflections.
            let z = &mut z[..rows * width];
            let mut shares = vec![0.0; count * width];
            let across = Strides::of_rows(self.pitch);
            narrow::add_product(count, width, v, across, z, &mut shares);
            let mut brought = vec![0.0; count * width];
            let of_rows = Strides::of_rows(count);
            narrow::add_product(count, width, &compact, of_rows, &shares, &mut brought);
            let along = Strides::of_columns(self.pitch);
            narrow::add_product(rows, width, v, along, &brought, z);
            first += count;
        }
    }

    /// L, count x count: H_last .. H_first = I - V^T L V (Schreiber, Van Loan 1989).
    fn compact(&self, first: usize, count: usize, v: &[f64], rows: usize) -> Vec<f64> {
        let kernels = Kernels::of(isa());
        let mut l = vec![0.0; count * count];
        let len = rows.next_multiple_of(GROUP);
        for i in 0..count {
            let factor = self.factors[first + i];
            let own = &v[i * self.pitch..][..len];
            let (above, below) = l.split_at_mut(i * count);
            let row = &mut below[..count];
            for (j, l) in above.chunks_exact(count).enumerate() {
                let share = -factor * kernels.dot(own, &v[j * self.pitch..][..len]);
                for (to, l) in row[..=j].iter_mut().zip(l) {
                    *to += share * l;
                }
            }
            row[i] = factor;
        }
        l
    }
}

/// The inner loops, by instruction set. Sums over a row are always of eight lanes.
#[derive(Clone, Copy)]
struct Kernels(Isa);

impl Kernels {
    fn of(isa: Isa) -> Self {
        assert!(isa.available(), "this machine has no {}", isa.name());
        Self(isa)
    }

    /// Of the first numbers of `a`, a multiple of eight of them.
    fn dot(self, a: &[f64], b: &[f64]) -> f64 {
        let len = a.len();
        assert!(len.is_multiple_of(GROUP) && len <= b.len());
        let (a, b) = (a.as_ptr(), b.as_ptr());
        // SAFETY: the instruction set is there, and both are as long as was asserted above.
        unsafe {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => dot_avx512(a, b, len),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => dot_avx2(a, b, len),
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx512 | Isa::Avx2 => unreachable!("not available"),
                Isa::Portable => dot::<<f64 as Vectors>::Portable, 2>(a, b, len),
            }
        }
    }

    /// Of a group of rows of a symmetric matrix, which end with the block on the diagonal: y <- y + what they and their
    /// mirror image bring of A x.
    fn both(self, rows: &[f64], x: &[f64], y: &mut [f64]) {
        let len = x.len();
        assert!(len >= GROUP && len.is_multiple_of(GROUP));
        assert!(rows.len() == GROUP * len && y.len() >= len);
        let strip = Strip {
            rows: rows.as_ptr(),
            pitch: len,
            len,
            x: x.as_ptr(),
            y: y.as_mut_ptr(),
            dotted: len - GROUP,
        };
        let (_, factors) = x.split_at(len - GROUP);
        let dots = strip.by(self.0, factors);
        for (y, dot) in y[len - GROUP..len].iter_mut().zip(dots) {
            *y += dot;
        }
    }

    /// Of eight rows of so many numbers apart, products with `x`.
    fn dots(self, rows: &[f64], pitch: usize, x: &[f64]) -> [f64; GROUP] {
        let len = x.len();
        assert!(len.is_multiple_of(GROUP) && len <= pitch && rows.len() == GROUP * pitch);
        let strip = Strip {
            rows: rows.as_ptr(),
            pitch,
            len: 0,
            x: x.as_ptr(),
            y: std::ptr::null_mut(),
            dotted: len,
        };
        strip.by(self.0, &[0.0; GROUP])
    }

    /// y <- y + eight rows times the factors.
    fn add(self, rows: &[f64], pitch: usize, factors: &[f64], y: &mut [f64]) {
        let len = y.len();
        assert!(len.is_multiple_of(GROUP) && len <= pitch && rows.len() == GROUP * pitch);
        let strip = Strip {
            rows: rows.as_ptr(),
            pitch,
            len,
            x: std::ptr::null(),
            y: y.as_mut_ptr(),
            dotted: 0,
        };
        strip.by(self.0, factors);
    }

    /// The group of rows that begins with row `first` minus v w^T + w v^T for pairs of rows of the panel.
    fn update(self, rows: &mut [f64], first: usize, panel: &[f64], pitch: usize) {
        let len = length(first);
        assert!(rows.len() == GROUP * len && len <= pitch && panel.len().is_multiple_of(2 * pitch));
        let update = Update {
            rows: rows.as_mut_ptr(),
            len,
            first,
            panel: panel.as_ptr(),
            pitch,
            steps: panel.len() / pitch,
        };
        // SAFETY: the instruction set is there, and the shapes are what was asserted above.
        unsafe {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => update.avx512(),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => update.avx2(),
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx512 | Isa::Avx2 => unreachable!("not available"),
                Isa::Portable => update.run::<<f64 as Vectors>::Portable, 4, 2>(),
            }
        }
    }
}

/// Lanes added in an order of their own.
fn folded(lanes: &[f64; GROUP]) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// # Safety
/// The machine has AVX2 and FMA; see [`dot`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn dot_avx2(a: *const f64, b: *const f64, len: usize) -> f64 {
    // SAFETY: the caller vouches for it.
    unsafe { dot::<<f64 as Vectors>::Avx2, 2>(a, b, len) }
}

/// # Safety
/// The machine has AVX-512F; see [`dot`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f")]
unsafe fn dot_avx512(a: *const f64, b: *const f64, len: usize) -> f64 {
    // SAFETY: the caller vouches for it.
    unsafe { dot::<<f64 as Vectors>::Avx512, 1>(a, b, len) }
}

/// Eight lanes in `N` registers, and as many for every other eight numbers: a sum waits for itself.
///
/// # Safety
/// The instruction set of V is there; `len` numbers stand at both places, a multiple of eight.
#[inline(always)]
unsafe fn dot<V: Vector<Number = f64>, const N: usize>(
    a: *const f64,
    b: *const f64,
    len: usize,
) -> f64 {
    // SAFETY: columns are less than `len`, and N registers are eight lanes.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; 4];
        for start in (0..len).step_by(4 * GROUP) {
            for (at, sums) in sums.iter_mut().enumerate() {
                let column = start + at * GROUP;
                if column < len {
                    for (n, sum) in sums.iter_mut().enumerate() {
                        let at = column + n * V::LANES;
                        *sum = sum.plus_product(V::load(a.add(at)), V::load(b.add(at)));
                    }
                }
            }
        }
        let mut lanes = [[0.0; GROUP]; 4];
        for (lanes, sums) in lanes.iter_mut().zip(&sums) {
            for (n, sum) in sums.iter().enumerate() {
                sum.store(lanes.as_mut_ptr().add(n * V::LANES));
            }
        }
        let [a, b, c, d] = lanes.map(|lanes| folded(&lanes));
        (a + c) + (b + d)
    }
}

/// Eight rows that are multiplied with x, up to column `dotted`, and added to y, up to column `len`.
struct Strip {
    rows: *const f64,
    pitch: usize,
    len: usize,
    x: *const f64,
    y: *mut f64,
    dotted: usize,
}

impl Strip {
    fn by(&self, isa: Isa, factors: &[f64]) -> [f64; GROUP] {
        let factors: [f64; GROUP] = factors.try_into().expect("a factor a row");
        // SAFETY: the instruction set is there, see [`Kernels::of`]; whoever made the strip has asserted its shapes.
        unsafe {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => self.avx512(&factors),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => self.avx2(&factors),
                #[cfg(not(target_arch = "x86_64"))]
                Isa::Avx512 | Isa::Avx2 => unreachable!("not available"),
                Isa::Portable => self.run::<<f64 as Vectors>::Portable, 2, 2>(&factors),
            }
        }
    }

    /// # Safety
    /// The machine has AVX2 and FMA; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(&self, factors: &[f64; GROUP]) -> [f64; GROUP] {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<<f64 as Vectors>::Avx2, 2, 2>(factors) }
    }

    /// # Safety
    /// The machine has AVX-512F; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f")]
    unsafe fn avx512(&self, factors: &[f64; GROUP]) -> [f64; GROUP] {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<<f64 as Vectors>::Avx512, 8, 1>(factors) }
    }

    /// `R` rows at a time, eight columns in `N` registers.
    ///
    /// # Safety
    /// The instruction set of V is there, and rows, x and y are as long as the strip says.
    #[inline(always)]
    unsafe fn run<V: Vector<Number = f64>, const R: usize, const N: usize>(
        &self,
        factors: &[f64; GROUP],
    ) -> [f64; GROUP] {
        let mut out = [0.0; GROUP];
        let both = self.len.min(self.dotted);
        for first in (0..GROUP).step_by(R) {
            // SAFETY: columns end where the strip does, and rows with the group.
            unsafe {
                let rows = self.rows.add(first * self.pitch);
                let mut sums = [[V::splat(0.0); N]; R];
                let mut spread = [V::splat(0.0); R];
                for (r, to) in spread.iter_mut().enumerate() {
                    *to = V::splat(factors[first + r]);
                }
                for column in (0..both).step_by(GROUP) {
                    for n in 0..N {
                        let column = column + n * V::LANES;
                        let x = V::load(self.x.add(column));
                        let mut y = V::load(self.y.add(column));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let a = V::load(rows.add(r * self.pitch + column));
                            sums[n] = sums[n].plus_product(a, x);
                            y = y.plus_product(spread[r], a);
                        }
                        y.store(self.y.add(column));
                    }
                }
                for column in (both..self.len).step_by(GROUP) {
                    for n in 0..N {
                        let column = column + n * V::LANES;
                        let mut y = V::load(self.y.add(column));
                        for (r, factor) in spread.iter().enumerate() {
                            let a = V::load(rows.add(r * self.pitch + column));
                            y = y.plus_product(*factor, a);
                        }
                        y.store(self.y.add(column));
                    }
                }
                for column in (both..self.dotted).step_by(GROUP) {
                    for n in 0..N {
                        let column = column + n * V::LANES;
                        let x = V::load(self.x.add(column));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let a = V::load(rows.add(r * self.pitch + column));
                            sums[n] = sums[n].plus_product(a, x);
                        }
                    }
                }
                for (sums, out) in sums.iter().zip(&mut out[first..]) {
                    let mut lanes = [0.0; GROUP];
                    for (n, sum) in sums.iter().enumerate() {
                        sum.store(lanes.as_mut_ptr().add(n * V::LANES));
                    }
                    *out = folded(&lanes);
                }
            }
        }
        out
    }
}

/// See [`Kernels::update`].
struct Update {
    rows: *mut f64,
    len: usize,
    first: usize,
    panel: *const f64,
    pitch: usize,
    steps: usize,
}

impl Update {
    /// # Safety
    /// The machine has AVX2 and FMA; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(&self) {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<<f64 as Vectors>::Avx2, 4, 2>() }
    }

    /// # Safety
    /// The machine has AVX-512F; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f")]
    unsafe fn avx512(&self) {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<<f64 as Vectors>::Avx512, 8, 1>() }
    }

    /// `R` rows and eight columns, in `N` registers, at a time.
    ///
    /// # Safety
    /// The instruction set of V is there; rows and the panel are as long as the update says.
    #[inline(always)]
    unsafe fn run<V: Vector<Number = f64>, const R: usize, const N: usize>(&self) {
        for first in (0..GROUP).step_by(R) {
            for column in (0..self.len).step_by(GROUP) {
                // SAFETY: tiles end with the rows; row and column are less than the pitch of the panel.
                unsafe {
                    let mut sums = [[V::splat(0.0); N]; R];
                    for step in 0..self.steps {
                        let across = self.panel.add((step ^ 1) * self.pitch + column);
                        let factors = self.panel.add(step * self.pitch + self.first + first);
                        let mut abreast = [V::splat(0.0); N];
                        for (n, to) in abreast.iter_mut().enumerate() {
                            *to = V::load(across.add(n * V::LANES));
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let factor = V::splat(*factors.add(r));
                            for (sum, across) in sums.iter_mut().zip(abreast) {
                                *sum = sum.plus_product(factor, across);
                            }
                        }
                    }
                    for (r, sums) in sums.iter().enumerate() {
                        for (n, sum) in sums.iter().enumerate() {
                            let at = self
                                .rows
                                .add((first + r) * self.len + column + n * V::LANES);
                            V::load(at).plus_product(V::splat(-1.0), *sum).store(at);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::sketch::numbers;

    /// Symmetric.
    fn some(n: usize, seed: u64) -> Vec<f64> {
        let mut a = numbers::<f64>(n * n, seed);
        for i in 0..n {
            for j in 0..i {
                a[j * n + i] = a[i * n + j];
            }
        }
        a
    }

    #[test]
    fn the_tridiagonal_form_taken_back_is_the_matrix() {
        for n in [1, 2, 3, 8, 9, 17, 40, 100] {
            let a = some(n, 7);
            let t = reduce(n, &a, 0.5);
            // Q T, column by column of Q^T: first T, then Q from the left; then the same for the transpose.
            let mut q = vec![0.0; n * n];
            for i in 0..n {
                q[i * n + i] = 1.0;
            }
            t.back(&mut q, n);
            for i in 0..n {
                for j in 0..n {
                    let (mut orthonormal, mut back) = (0.0, 0.0);
                    for k in 0..n {
                        orthonormal += q[i * n + k] * q[j * n + k];
                        let mut of_t = t.diagonal[k] * q[j * n + k];
                        if k > 0 {
                            of_t += t.beside[k - 1] * q[j * n + k - 1];
                        }
                        if k + 1 < n {
                            of_t += t.beside[k] * q[j * n + k + 1];
                        }
                        back += q[i * n + k] * of_t;
                    }
                    let wanted = f64::from(u8::from(i == j));
                    assert!((orthonormal - wanted).abs() < 1e-14, "n = {n}");
                    let wanted = 0.5 * a[i * n + j];
                    assert!((back - wanted).abs() < 1e-13, "n = {n}: {back} {wanted}");
                }
            }
        }
    }

    #[test]
    fn the_form_is_the_same_on_every_instruction_set() {
        for n in [5, 64, 131] {
            let a = some(n, 8);
            let wanted = reduce_by(Isa::Portable, n, &a, 1.0);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let found = reduce_by(isa, n, &a, 1.0);
                let name = isa.name();
                assert!(found.diagonal == wanted.diagonal, "n = {n} on {name}");
                assert!(found.beside == wanted.beside, "n = {n} on {name}");
                assert!(found.reflections == wanted.reflections, "n = {n} on {name}");
            }
        }
    }

    #[test]
    fn a_matrix_that_is_tridiagonal_already_stays() {
        let n = 20;
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            a[i * n + i] = i as f64;
            if i > 0 && i != 11 {
                a[i * n + i - 1] = 0.5;
                a[(i - 1) * n + i] = 0.5;
            }
        }
        let t = reduce(n, &a, 1.0);
        let kept = |i: usize| t.diagonal[i] == i as f64 && (i == 0 || t.factors[i] == 0.0);
        assert!((0..n).all(kept));
        assert!((1..n).all(|i| t.beside[i - 1] == if i == 11 { 0.0 } else { 0.5 }));
    }
}
