//! The test matrix: any part of it can be made anywhere, alone, with the same numbers.

use std::ops::Range;

use super::{fixed::power_of_two, real::Real};

/// Philox4x32 with 10 rounds.
///
/// Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the known answers of
/// Random123.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (a, b) = (
            u64::from(counter[0]) * 0xD251_1F53,
            u64::from(counter[2]) * 0xCD9E_8D57,
        );
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [
            key[0].wrapping_add(0x9E37_79B9),
            key[1].wrapping_add(0xBB67_AE85),
        ];
    }
    counter
}

/// Numbers of one block of the generator.
const GROUP: usize = 4;

/// Which test matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sketch {
    pub seed: u64,
    /// Tells apart the matrices that one job draws.
    pub stream: u32,
    /// Columns; those from here on are zero.
    pub columns: usize,
}

impl Sketch {
    /// Fills a part of the test matrix, times `factor`.
    ///
    /// Shapes: `out` is rows x `width`, row-major, its first column being column `first_column` of the matrix.
    /// Method: entry (i, c) is uniform in (-1, 1): the high 24 bits u of word c % 4 of Philox with the seed as key and
    /// (i, c / 4, stream) as counter make the odd integer 2u + 1 - 2^24, which times 2^-24 is exact in `f32` and `f64`.
    /// Mean 0, variance 1/3, never 0.
    /// Cost: about 2 ns an entry.
    /// Reproducibility: an entry is a function of (seed, stream, i, c); the same in `f32` and `f64`, and on any machine.
    /// Panics: when `factor` is no power of two, or `out` has another size.
    pub fn fill<T: Real>(
        &self,
        rows: Range<u64>,
        first_column: usize,
        width: usize,
        factor: f64,
        out: &mut [T],
    ) {
        assert_power_of_two(factor);
        let count = usize::try_from(rows.end.saturating_sub(rows.start)).expect("rows fit memory");
        assert_eq!(
            out.len(),
            count * width,
            "sketch of {count} rows x {width}, output of {}",
            out.len()
        );
        if width == 0 {
            return;
        }
        let end = self.columns.min(first_column + width);
        let scale = factor * power_of_two(-24);
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
            out[end.saturating_sub(first_column)..].fill(T::zeroed());
            let mut column = first_column;
            while column < end {
                let group = u32::try_from(column / GROUP).expect("columns fit a counter");
                let words = philox([row as u32, (row >> 32) as u32, group, self.stream], key);
                let stop = end.min((column / GROUP + 1) * GROUP);
                for (to, &word) in out[column - first_column..stop - first_column]
                    .iter_mut()
                    .zip(&words[column % GROUP..])
                {
                    let odd = 2 * (word >> 8) as i32 + 1 - (1 << 24);
                    *to = T::from_f64(f64::from(odd) * scale);
                }
                column = stop;
            }
        }
    }
}

pub(super) fn assert_power_of_two(factor: f64) {
    assert!(
        factor.is_normal() && factor > 0.0 && factor.to_bits().trailing_zeros() >= 52,
        "{factor} is not a power of two"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_known_answers() {
        // kat_vectors of Random123: philox4x32 10.
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox(
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0]
            ),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    const SKETCH: Sketch = Sketch {
        seed: 0x1234_5678_9abc_def0,
        stream: 3,
        columns: 50,
    };

    #[test]
    fn any_part_alone_has_the_same_numbers() {
        let (rows, width) = (40u64, 56usize);
        let mut whole = vec![0f32; rows as usize * width];
        SKETCH.fill(0..rows, 0, width, 1.0, &mut whole);
        for (from, to, first, part) in [
            (0, 40, 0, 8),
            (7, 8, 8, 48),
            (39, 40, 3, 9),
            (10, 30, 48, 8),
            (5, 5, 0, 8),
        ] {
            let mut out = vec![9f64; (to - from) as usize * part];
            SKETCH.fill(from..to, first, part, 0.25, &mut out);
            for (i, row) in out.chunks(part).enumerate() {
                for (c, &x) in row.iter().enumerate() {
                    let full = whole[(from as usize + i) * width + first + c];
                    assert_eq!(x, f64::from(full) * 0.25);
                    assert_eq!(x == 0.0, first + c >= SKETCH.columns);
                }
            }
        }
    }

    #[test]
    fn moments_are_those_of_the_uniform_distribution() {
        let n = 200_000u64;
        let columns = 50;
        let mut out = vec![0f64; n as usize * columns];
        SKETCH.fill(1 << 40..(1 << 40) + n, 0, columns, 1.0, &mut out);
        let mean =
            |f: &dyn Fn(f64) -> f64| out.iter().map(|&x| f(x)).sum::<f64>() / out.len() as f64;
        // Five standard deviations of each mean of 10^7 numbers.
        assert!(mean(&|x| x).abs() < 5.0 * 1.8e-4);
        assert!((mean(&|x| x * x) - 1.0 / 3.0).abs() < 5.0 * 0.95e-4);
        assert!((mean(&|x| x.powi(4)) - 0.2).abs() < 5.0 * 0.85e-4);
        // Neighbours, in rows and in columns, are not correlated.
        let apart = |by: usize| {
            out.iter().zip(&out[by..]).map(|(a, b)| a * b).sum::<f64>() / out.len() as f64
        };
        assert!(apart(1).abs() < 5.5e-4 && apart(columns).abs() < 5.5e-4);
        assert!(out.iter().all(|x| x.abs() < 1.0 && *x != 0.0));
    }

    #[test]
    fn streams_and_seeds_differ() {
        let draw = |sketch: Sketch| {
            let mut out = [0f32; 8];
            sketch.fill(5..6, 0, 8, 1.0, &mut out);
            out
        };
        let other = Sketch {
            stream: 4,
            ..SKETCH
        };
        let seed = Sketch {
            seed: SKETCH.seed ^ 1 << 63,
            ..SKETCH
        };
        assert!(draw(SKETCH) != draw(other) && draw(SKETCH) != draw(seed));
    }
}
