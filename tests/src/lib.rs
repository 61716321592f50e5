//! What tests share: matrices with known spectra, an independent dense oracle, and a toy task type.

#[cfg(target_os = "linux")]
pub mod farm_process;
#[cfg(target_os = "linux")]
pub mod lan;
pub mod node;
pub mod spectra;
pub mod toy;

use std::path::PathBuf;

use coordinator::job::resolved::{
    Accuracy, Center, FactorSpec, Method, Precision, Scale, Tolerance, ToleranceKind, Wanted, Which,
};
use ndarray::{Array1, Array2, Axis};
use sprs::{CsMat, TriMat};

/// `rank` triplets after `iterations` power iterations, 10 more columns in the sketch, seed 0.
pub fn iterated(rank: u32, iterations: u32, precision: Precision) -> FactorSpec {
    FactorSpec {
        wanted: Wanted::Rank(rank),
        oversample: 10,
        accuracy: Accuracy::PowerIterations(iterations),
        method: Method::Auto,
        block: None,
        basis: None,
        precision,
        seed: 0,
        which: Which::Usv,
        center: Center::None,
        scale: Scale::None,
    }
}

/// Until the residual of every triplet is below the tolerance.
pub fn until(rank: u32, tolerance: f64, precision: Precision) -> FactorSpec {
    FactorSpec {
        accuracy: Accuracy::Tolerance(Tolerance {
            value: tolerance,
            kind: ToleranceKind::Residual,
            max_reads: 60,
        }),
        ..iterated(rank, 0, precision)
    }
}

/// A small deterministic generator (SplitMix64), so that tests do not depend on any crate's streams.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal: a sum of twelve uniforms.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Sparse with about `density` of the entries stored, values from `value`.
pub fn random_sparse(
    rows: usize,
    columns: usize,
    density: f64,
    seed: u64,
    mut value: impl FnMut(&mut Random) -> f64,
) -> CsMat<f64> {
    let mut random = Random(seed);
    let mut triplets = TriMat::new((rows, columns));
    for r in 0..rows {
        for c in 0..columns {
            if random.unit() < density {
                let v = value(&mut random);
                triplets.add_triplet(r, c, v);
            }
        }
    }
    triplets.to_csr()
}

/// Every entry of a dense matrix stored.
pub fn stored(dense: &Array2<f64>) -> CsMat<f64> {
    let mut triplets = TriMat::new(dense.dim());
    for ((r, c), &v) in dense.indexed_iter() {
        if v != 0.0 {
            triplets.add_triplet(r, c, v);
        }
    }
    triplets.to_csr()
}

/// rows x columns with the given singular values: truncated DCT-IV factors (Li, Kluger, Tygert 2016).
pub fn with_spectrum(rows: usize, columns: usize, sigma: &[f64]) -> Array2<f64> {
    let dct = spectra::dct;
    let u = Array2::from_shape_fn((rows, sigma.len()), |(i, j)| dct(rows, i, j) * sigma[j]);
    let v = Array2::from_shape_fn((columns, sigma.len()), |(i, j)| dct(columns, i, j));
    u.dot(&v.t())
}

/// All singular values, descending, by a dense SVD.
pub fn dense_sigma(matrix: &Array2<f64>) -> Vec<f64> {
    let (rows, columns) = matrix.dim();
    let a = faer::Mat::from_fn(rows, columns, |r, c| matrix[(r, c)]);
    a.singular_values().expect("the dense SVD converges")
}

/// max |Q^T Q - I| over columns.
pub fn orthogonality(q: &Array2<f64>) -> f64 {
    let gram = q.t().dot(q);
    gram.indexed_iter()
        .map(|((i, j), &g)| (g - f64::from(u8::from(i == j))).abs())
        .fold(0.0, f64::max)
}

/// sqrt(||A v - s u||^2 + ||A^T u - s v||^2) / s of each triplet, by plain f64 products.
pub fn residuals(
    matrix: &CsMat<f64>,
    u: &Array2<f64>,
    s: &Array1<f64>,
    vt: &Array2<f64>,
) -> Vec<f64> {
    let transposed = matrix.transpose_view().to_csr();
    let times = |a: &CsMat<f64>, x: &[f64]| -> Vec<f64> {
        a.outer_iterator()
            .map(|row| row.iter().map(|(c, &v)| v * x[c]).sum())
            .collect()
    };
    (0..s.len())
        .map(|i| {
            let (u, v) = (u.index_axis(Axis(1), i).to_vec(), vt.row(i).to_vec());
            let (av, atu) = (times(matrix, &v), times(&transposed, &u));
            let square = |a: &[f64], b: &[f64]| -> f64 {
                a.iter().zip(b).map(|(a, b)| (a - s[i] * b).powi(2)).sum()
            };
            (square(&av, &u) + square(&atu, &v)).sqrt() / s[i]
        })
        .collect()
}

/// The repository's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests package lies in the repository")
        .to_owned()
}

/// Real matrices that may lie beside the repository; `None`, said aloud, when they do not.
pub fn beside(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared/data").join(name);
    if path.exists() {
        Some(path)
    } else {
        eprintln!("SKIPPED: needs the optional data set {name}, which is not part of this project");
        None
    }
}

/// Reference singular values in `tests/data`.
pub fn reference_sigma(name: &str) -> Vec<f64> {
    let path = root().join("tests/data").join(format!("{name}.sigma.txt"));
    std::fs::read_to_string(&path)
        .unwrap_or_else(|why| panic!("{}: {why}", path.display()))
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| line.trim().parse().expect("a number a line"))
        .collect()
}
