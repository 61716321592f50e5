//! The test matrix: any part of it can be made anywhere, alone, with the same numbers.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::simd::{Isa, isa};
use super::{fixed::power_of_two, real::Real};

/// Philox4x32 with 10 rounds.
///
/// Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the known answers of
/// Random123.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut lane = counter.map(|word| [word]);
    philox_lanes(&mut lane, key);
    lane.map(|[word]| word)
}

/// Several blocks of one key side by side.
#[inline(always)]
fn philox_lanes<const N: usize>(counters: &mut [[u32; N]; 4], mut key: [u32; 2]) {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counters;
        for lane in 0..N {
            let a = u64::from(c0[lane]) * 0xD251_1F53;
            let b = u64::from(c2[lane]) * 0xCD9E_8D57;
            c0[lane] = (b >> 32) as u32 ^ c1[lane] ^ key[0];
            c1[lane] = b as u32;
            c2[lane] = (a >> 32) as u32 ^ c3[lane] ^ key[1];
            c3[lane] = a as u32;
        }
        key = [
            key[0].wrapping_add(0x9E37_79B9),
            key[1].wrapping_add(0xBB67_AE85),
        ];
    }
}

/// Numbers of one block of the generator.
const GROUP: usize = 4;
/// Blocks made side by side.
const LANES: usize = 32;

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
    /// Cost: a few ns an entry.
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
        let part = Part {
            rows,
            first_column,
            width,
            end: self.columns.min(first_column + width),
            scale: factor * power_of_two(-24),
        };
        #[cfg(target_arch = "x86_64")]
        if isa() != Isa::Portable {
            // SAFETY: both others have AVX2, and `isa` gives what the machine has.
            return unsafe { self.fill_avx2(part, out) };
        }
        self.fill_part(part, out);
    }

    /// The same code, of which the compiler makes twice the speed with longer registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn fill_avx2<T: Real>(&self, part: Part, out: &mut [T]) {
        self.fill_part(part, out);
    }

    #[inline(always)]
    fn fill_part<T: Real>(&self, part: Part, out: &mut [T]) {
        let Part {
            rows,
            first_column,
            width,
            end,
            scale,
        } = part;
        if end < first_column + width {
            for row in out.chunks_exact_mut(width) {
                row[end.saturating_sub(first_column)..].fill(T::zeroed());
            }
        }
        if end <= first_column {
            return;
        }
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let (first_group, last_group) = (first_column / GROUP, (end - 1) / GROUP);
        let count = out.len() / width * (last_group - first_group + 1);
        let mut at = (0, first_group);
        for start in (0..count).step_by(LANES) {
            let mut places = [at; LANES];
            let mut counters = [[0; LANES]; 4];
            for (lane, place) in places.iter_mut().enumerate() {
                *place = at;
                let row = rows.start.wrapping_add(at.0 as u64);
                counters[0][lane] = row as u32;
                counters[1][lane] = (row >> 32) as u32;
                counters[2][lane] = u32::try_from(at.1).expect("columns fit a counter");
                counters[3][lane] = self.stream;
                at = if at.1 < last_group {
                    (at.0, at.1 + 1)
                } else {
                    (at.0 + 1, first_group)
                };
            }
            philox_lanes(&mut counters, key);
            let numbers = counters.map(|words| {
                words.map(|word| {
                    T::from_f64(f64::from(2 * (word >> 8) as i32 + 1 - (1 << 24)) * scale)
                })
            });
            for (lane, &(row, group)) in places.iter().enumerate().take(count - start) {
                let out = &mut out[row * width..][..width];
                let first = group * GROUP;
                if first >= first_column && first + GROUP <= end {
                    let out = &mut out[first - first_column..][..GROUP];
                    for (out, numbers) in out.iter_mut().zip(&numbers) {
                        *out = numbers[lane];
                    }
                } else {
                    for column in first.max(first_column)..end.min(first + GROUP) {
                        out[column - first_column] = numbers[column - first][lane];
                    }
                }
            }
        }
    }
}

/// What [`Sketch::fill`] was asked for, checked.
struct Part {
    rows: Range<u64>,
    first_column: usize,
    width: usize,
    /// First column that is zero or not asked for.
    end: usize,
    scale: f64,
}

pub(super) fn assert_power_of_two(factor: f64) {
    assert!(
        factor.is_normal() && factor > 0.0 && factor.to_bits().trailing_zeros() >= 52,
        "{factor} is not a power of two"
    );
}

/// Numbers for tests of products.
#[cfg(test)]
pub(super) fn numbers<T: Real>(count: usize, seed: u64) -> Vec<T> {
    let mut out = vec![T::from_f64(0.0); count];
    let sketch = Sketch {
        seed,
        stream: 9,
        columns: 1,
    };
    sketch.fill(0..count as u64, 0, 1, 1.0, &mut out);
    out
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
