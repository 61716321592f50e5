//! Eigenvalues of a symmetric tridiagonal matrix, and eigenvectors of some of them.

use crate::linalg::{
    cholesky,
    narrow::{self, Strides},
    simd::{Isa, isa},
    sketch::Sketch,
};

/// Steps that an eigenvalue may take on average; two are usual.
const STEPS: usize = 30;
/// Of the norm: eigenvalues closer than this are one to inverse iteration, so their vectors are made orthogonal as they are
/// found. Others come out orthogonal to roundoff times the norm over their distance.
const NEAR: f64 = 1e-6;
/// Of the norm: shifts are at least this far apart, so that vectors of equal eigenvalues differ.
const APART: f64 = 10.0 * f64::EPSILON;
/// Solutions with the shifted matrix; the first brings a vector from nowhere to nearly the end.
const SOLUTIONS: usize = 2;
/// Largest entry of Z^T Z - I that one Cholesky factorization takes away.
const SKEW: f64 = 1e-6;
/// Of the norm times root n: largest residual that is taken.
const RESIDUAL: f64 = 8.0 * f64::EPSILON;

/// All eigenvalues, descending; none where they do not converge.
///
/// Shapes: `diagonal` is of n numbers, `beside` of n - 1.
/// Method: QL without square roots (Pal, Walker, Kahan 1969; Reinsch 1971; as LAPACK's `dsterf`).
/// Cost: about 20 * n^2 operations, one after the other.
/// Error: a few roundoffs of the norm.
/// Reproducibility: a function of the arguments, on every instruction set.
pub fn values(diagonal: &[f64], beside: &[f64]) -> Option<Vec<f64>> {
    let n = diagonal.len();
    let mut d = diagonal.to_vec();
    // Squares, e[i] between i and i + 1.
    let mut e: Vec<f64> = beside.iter().map(|x| x * x).collect();
    // The small end first: that is where it converges.
    if n > 0 && d[0].abs() > d[n - 1].abs() {
        d.reverse();
        e.reverse();
    }
    let tiny = f64::EPSILON * f64::EPSILON;
    let mut steps = STEPS * n;
    let mut first = 0;
    while first < n {
        let splits =
            |i: &usize| e[*i] <= tiny * (d[*i] * d[*i + 1]).abs() || e[*i] < f64::MIN_POSITIVE;
        let last = (first..n - 1).find(splits).unwrap_or(n - 1);
        if last == first {
            first += 1;
            continue;
        }
        steps = steps.checked_sub(1)?;
        ql_step(&mut d[first..=last], &mut e[first..last]);
    }
    if d.iter().any(|x| !x.is_finite()) {
        return None;
    }
    d.sort_unstable_by(|a, b| b.total_cmp(a));
    Some(d)
}

/// One step with Wilkinson's shift on a matrix that does not split.
fn ql_step(d: &mut [f64], e: &mut [f64]) {
    let last = e.len();
    let root = e[0].sqrt();
    let half = (d[1] - d[0]) / (2.0 * root);
    let shift = d[0] - root / (half + half.hypot(1.0).copysign(half));
    // c = p / r, s = b / r and p <- gamma^2 / c, with two divisions that need not wait for each other.
    let mut gamma = d[last] - shift;
    let mut p = gamma * gamma;
    let (mut c, mut s) = (1.0, 0.0);
    for i in (0..last).rev() {
        let b = e[i];
        let r = p + b;
        if i + 1 < last {
            e[i + 1] = s * r;
        }
        let before = c;
        let inverse = 1.0 / r;
        let product = p * (d[i] - shift) - b * gamma;
        let below = r * p;
        let next = if below > f64::MIN_POSITIVE {
            product * product / below
        } else {
            before * b
        };
        c = p * inverse;
        s = b * inverse;
        let old = gamma;
        gamma = product * inverse;
        d[i + 1] = old + (d[i] - gamma);
        p = next;
    }
    e[0] = s * p;
    d[0] = shift + gamma;
}

/// Eigenvectors of the first of `values`, n x `keep`, row-major, orthonormal to roundoff; none where they are not.
///
/// Method: inverse iteration (Peters, Wilkinson 1979), neighbours made orthogonal as LAPACK's `dstein` does, but only close
/// ones; what is left of skewness goes by one Cholesky factorization, which moves no vector by more than roundoff over the
/// distance of eigenvalues. What comes out is checked.
/// Cost: about 30 * n * `keep` + 4 * n * `keep`^2 operations.
/// Reproducibility: a function of the arguments, on every instruction set.
pub fn vectors(diagonal: &[f64], beside: &[f64], values: &[f64], keep: usize) -> Option<Vec<f64>> {
    let n = diagonal.len();
    let norm = norm(diagonal, beside);
    let mut columns: Vec<Vec<f64>> = Vec::with_capacity(keep);
    let mut shifted = Shifted::new(n);
    let (mut shift, mut cluster) = (f64::INFINITY, 0);
    while columns.len() < keep {
        let first = columns.len();
        let count = LANES.min(keep - first);
        let mut shifts = [0.0; LANES];
        let mut clusters = [0; LANES];
        for lane in 0..LANES {
            if lane < count {
                let j = first + lane;
                if j > 0 && values[j - 1] - values[j] > NEAR * norm {
                    cluster = j;
                }
                shift = values[j].min(shift - APART * norm);
            }
            (shifts[lane], clusters[lane]) = (shift, cluster);
        }
        shifted.factor(isa(), diagonal, beside, shifts, f64::EPSILON * norm);
        for lane in 0..count {
            columns.push(some(n, first + lane));
        }
        for solution in 0..SOLUTIONS {
            shifted.solve(isa(), &mut columns[first..], solution == 0);
            for (lane, &cluster) in clusters.iter().enumerate().take(count) {
                let (before, own) = columns.split_at_mut(first + lane);
                normalize(&mut own[0], &before[cluster.min(first + lane)..])?;
            }
        }
    }
    let mut skewed = vec![0.0; n * keep];
    for (i, row) in skewed.chunks_exact_mut(keep).enumerate() {
        for (to, column) in row.iter_mut().zip(&columns) {
            *to = column[i];
        }
    }
    let mut gram = vec![0.0; keep * keep];
    let across = Strides::of_columns(keep);
    narrow::add_product(keep, keep, &skewed, across, &skewed, &mut gram);
    let is_near = gram.iter().enumerate().all(|(at, x)| {
        let wanted = f64::from(u8::from(at % (keep + 1) == 0));
        (x - wanted).abs() <= SKEW
    });
    if !is_near {
        return None;
    }
    let straightens = cholesky::straightens(keep, &gram)?;
    let mut straight = vec![0.0; n * keep];
    let of_rows = Strides::of_rows(keep);
    narrow::add_product(n, keep, &skewed, of_rows, &straightens, &mut straight);
    let most = RESIDUAL * norm * (n as f64).sqrt();
    let taken = residual(diagonal, beside, values, &straight, keep) <= most;
    taken.then_some(straight)
}

/// A vector to begin with.
fn some(n: usize, which: usize) -> Vec<f64> {
    let sketch = Sketch {
        seed: 0,
        stream: 0,
        columns: n,
    };
    let mut x = vec![0.0; n];
    sketch.fill(which as u64..which as u64 + 1, 0, n, 1.0, &mut x);
    x
}

/// Of length 1, and orthogonal to others of length 1; none where it is nothing or endless.
fn normalize(x: &mut [f64], others: &[Vec<f64>]) -> Option<()> {
    let largest = x.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let scale = 1.0 / largest;
    if !scale.is_normal() {
        return None;
    }
    x.iter_mut().for_each(|x| *x *= scale);
    for other in others {
        let along = dot(other, x);
        for (x, other) in x.iter_mut().zip(other) {
            *x -= along * other;
        }
    }
    let scale = 1.0 / dot(x, x).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
    scale.is_normal().then_some(())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a
        .remainder()
        .iter()
        .zip(b.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a.zip(b) {
        for ((sum, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

fn norm(diagonal: &[f64], beside: &[f64]) -> f64 {
    let all = diagonal.iter().chain(beside);
    all.fold(0.0f64, |most, x| most.max(x.abs()))
}

/// The largest ||T z - value z||.
fn residual(diagonal: &[f64], beside: &[f64], values: &[f64], z: &[f64], keep: usize) -> f64 {
    let mut squares = vec![0.0; keep];
    let rows: Vec<&[f64]> = z.chunks_exact(keep).collect();
    for (i, &d) in diagonal.iter().enumerate() {
        for (j, square) in squares.iter_mut().enumerate() {
            let mut off = (d - values[j]) * rows[i][j];
            if i > 0 {
                off += beside[i - 1] * rows[i - 1][j];
            }
            if i + 1 < diagonal.len() {
                off += beside[i] * rows[i + 1][j];
            }
            *square += off * off;
        }
    }
    squares.into_iter().fold(0.0, f64::max).sqrt()
}

/// Vectors that are found together.
const LANES: usize = 8;

/// T - shift I = P L U with rows exchanged where that is safer, as LAPACK's `dgttrf`, for a shift a lane.
struct Shifted {
    rows: Vec<Row>,
    x: Vec<[f64; LANES]>,
}

/// Of U the diagonal, inverted, and what stands beside it; of L the factor below, and whether the row was exchanged with
/// the next.
#[derive(Clone, Copy, Default)]
struct Row {
    inverse: [f64; LANES],
    beside: [f64; LANES],
    further: [f64; LANES],
    factor: [f64; LANES],
    exchanged: [f64; LANES],
}

/// Compiles the same loops for more than one instruction set; nothing is fused, so the results are the same.
macro_rules! by_isa {
    ($isa:expr, $inner:ident($($name:ident: $kind:ty),*)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2($($name: $kind),*) {
            $inner($($name),*);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,avx512f")]
        fn avx512($($name: $kind),*) {
            $inner($($name),*);
        }
        let isa: Isa = $isa;
        assert!(isa.available(), "this machine has no {}", isa.name());
        match isa {
            // SAFETY: the instruction set is there; the functions need nothing else.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512($($name),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2($($name),*) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => unreachable!("not available"),
            Isa::Portable => $inner($($name),*),
        }
    }};
}

impl Shifted {
    fn new(n: usize) -> Self {
        Self {
            rows: vec![Row::default(); n],
            x: vec![[0.0; LANES]; n],
        }
    }

    /// Pivots are taken to be no less than `least`.
    fn factor(
        &mut self,
        isa: Isa,
        diagonal: &[f64],
        beside: &[f64],
        shifts: [f64; LANES],
        least: f64,
    ) {
        let rows = &mut self.rows;
        by_isa!(
            isa,
            factor(
                rows: &mut [Row],
                diagonal: &[f64],
                beside: &[f64],
                shifts: [f64; LANES],
                least: f64
            )
        );
    }

    /// A lane for each of `columns`. `upper`: with U alone, as if they were what L leaves of some vectors.
    fn solve(&mut self, isa: Isa, columns: &mut [Vec<f64>], upper: bool) {
        for (i, x) in self.x.iter_mut().enumerate() {
            for (x, column) in x.iter_mut().zip(&*columns) {
                *x = column[i];
            }
        }
        let (rows, x) = (&self.rows, &mut self.x);
        if !upper {
            by_isa!(isa, lower(rows: &[Row], x: &mut [[f64; LANES]]));
        }
        by_isa!(isa, above(rows: &[Row], x: &mut [[f64; LANES]]));
        for (i, x) in self.x.iter().enumerate() {
            for (x, column) in x.iter().zip(&mut *columns) {
                column[i] = *x;
            }
        }
    }
}

#[inline(always)]
fn factor(rows: &mut [Row], diagonal: &[f64], beside: &[f64], shifts: [f64; LANES], least: f64) {
    let n = diagonal.len();
    let mut pivot = shifts.map(|shift| diagonal[0] - shift);
    let mut right = [beside.first().copied().unwrap_or(0.0); LANES];
    for (i, row) in rows.iter_mut().enumerate() {
        let (below, own, next) = if i + 1 < n {
            let next = beside.get(i + 1).copied().unwrap_or(0.0);
            (beside[i], diagonal[i + 1], next)
        } else {
            (0.0, 0.0, 0.0)
        };
        for lane in 0..LANES {
            let own = own - shifts[lane];
            let exchanged = below.abs() > pivot[lane].abs();
            let (larger, smaller) = if exchanged {
                (below, pivot[lane])
            } else {
                (pivot[lane], below)
            };
            let safe = if larger.abs() < least {
                least.copysign(larger)
            } else {
                larger
            };
            let inverse = 1.0 / safe;
            let factor = smaller * inverse;
            let (stays, goes) = if exchanged {
                (own, right[lane])
            } else {
                (right[lane], own)
            };
            row.inverse[lane] = inverse;
            row.factor[lane] = factor;
            row.exchanged[lane] = f64::from(u8::from(exchanged));
            row.beside[lane] = stays;
            row.further[lane] = if exchanged { next } else { 0.0 };
            pivot[lane] = goes - factor * stays;
            right[lane] = if exchanged { -factor * next } else { next };
        }
    }
}

/// x <- L^-1 P x
#[inline(always)]
fn lower(rows: &[Row], x: &mut [[f64; LANES]]) {
    let n = x.len();
    for i in 0..n - 1 {
        let row = &rows[i];
        let [upper, lower] = &mut x[i..i + 2] else {
            unreachable!("two rows");
        };
        for lane in 0..LANES {
            let (own, next) = (upper[lane], lower[lane]);
            let exchanged = row.exchanged[lane] != 0.0;
            let (own, next) = if exchanged { (next, own) } else { (own, next) };
            upper[lane] = own;
            lower[lane] = next - row.factor[lane] * own;
        }
    }
}

/// x <- U^-1 x
#[inline(always)]
fn above(rows: &[Row], x: &mut [[f64; LANES]]) {
    let (mut next, mut after) = ([0.0; LANES], [0.0; LANES]);
    for (row, x) in rows.iter().zip(x).rev() {
        for lane in 0..LANES {
            let left = x[lane] - row.beside[lane] * next[lane] - row.further[lane] * after[lane];
            after[lane] = next[lane];
            next[lane] = left * row.inverse[lane];
            x[lane] = next[lane];
        }
    }
}
