//! The matrices of Li, Kluger, Tygert 2016, "Randomized algorithms for distributed computation of principal component
//! analysis and singular value decomposition": truncated DCT-IV factors and nine spectra.

/// The nine spectra: `k` values, descending. 1 to 3: from 1 down to 1e-20; square roots of 1, 2, ...; three values again
/// and again, a third of them 0. 4 to 6 and 7 to 9: the same times 1e20 and 1e-20.
pub fn case(number: usize, k: usize) -> Vec<f64> {
    let base = |i: usize| match number % 3 {
        1 => (1e-20f64.ln() * (k - 1 - i) as f64 / (k - 1) as f64).exp(),
        2 => ((i + 1) as f64).sqrt(),
        _ => ((i % 3) as f64).sqrt(),
    };
    let scale = match number {
        1..=3 => 1.0,
        4..=6 => 1e20,
        _ => 1e-20,
    };
    let mut sigma: Vec<f64> = (0..k).map(|i| base(i) * scale).collect();
    sigma.sort_by(|a, b| b.total_cmp(a));
    sigma
}

/// Entry (i, j) of the factor with n rows: sqrt(2 / n) cos(pi / n (i + 1/2) (j + 1/2)).
pub fn dct(n: usize, i: usize, j: usize) -> f64 {
    // The angle is reduced in whole numbers, exactly: (2 i + 1) (2 j + 1) eighths of a turn over n.
    let turns = ((2 * i + 1) * (2 * j + 1)) % (8 * n);
    let angle = std::f64::consts::PI / (4 * n) as f64 * turns as f64;
    (2.0 / n as f64).sqrt() * angle.cos()
}
