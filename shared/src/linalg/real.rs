//! The two kinds of numbers, and how a sketch of l columns is cut into panels of them.

/// `f32` or `f64`.
pub trait Real:
    bytemuck::Pod
    + PartialOrd
    + Send
    + Sync
    + std::fmt::Debug
    + faer::traits::RealField
    + super::simd::Vectors
    + super::sparse::Rows<Self>
    + super::sparse::Items
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + 'static
{
    /// Columns of a panel come in groups of this many: 64 bytes, a cache line and the widest register.
    const LANE: usize;
    /// Panels are at most this wide; what measured best, see the bench `kernels`.
    const PANEL: usize;
    /// Bits of a number in a fixed-point accumulator: addends and sums stay below 2^`FOLD_BITS` in magnitude, see
    /// [`fixed`](super::fixed).
    const FOLD_BITS: u32;

    fn to_f64(self) -> f64;
    /// Rounds to nearest.
    fn from_f64(value: f64) -> Self;
    /// `self * a + b`, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
}

impl Real for f32 {
    const LANE: usize = 16;
    const PANEL: usize = 48;
    const FOLD_BITS: u32 = 50;

    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn fma(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
}

impl Real for f64 {
    const LANE: usize = 8;
    const PANEL: usize = 32;
    const FOLD_BITS: u32 = 60;

    fn to_f64(self) -> f64 {
        self
    }

    fn from_f64(value: f64) -> Self {
        value
    }

    fn fma(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
}

/// Panels of a matrix whose rows are short: the walk from entry to entry costs more than the columns do, so there are
/// fewer walks over wider panels.
pub const PANEL_OF_SHORT_ROWS: usize = 64;

/// Cuts a sketch of `l` columns into panels: the fewest that are at most `most` wide, as even as whole groups of
/// [`Real::LANE`] columns allow, wider ones first.
///
/// Panel `p` starts at the sum of the widths before it. Widths add up to `l` rounded up to a multiple of `LANE`; columns
/// from `l` on are padding and hold zeros. A function of its arguments and the kind of number alone.
pub fn panel_widths<T: Real>(l: usize, most: usize) -> Vec<usize> {
    let groups = l.div_ceil(T::LANE);
    let panels = groups.div_ceil(most / T::LANE);
    (0..panels)
        .map(|p| T::LANE * (groups / panels + usize::from(p < groups % panels)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds<T: Real>() {
        for l in 0..600 {
            let widths = panel_widths::<T>(l, T::PANEL);
            assert_eq!(
                widths.iter().sum::<usize>(),
                l.next_multiple_of(T::LANE),
                "l = {l}"
            );
            for &w in &widths {
                assert!(w > 0 && w <= T::PANEL && w.is_multiple_of(T::LANE));
            }
            assert!(widths.is_sorted_by(|a, b| a >= b));
            assert_eq!(widths.len(), l.div_ceil(T::PANEL));
        }
    }

    #[test]
    fn panels_cover_the_sketch_evenly() {
        holds::<f32>();
        holds::<f64>();
        assert_eq!(panel_widths::<f64>(112, f64::PANEL), [32, 32, 24, 24]);
        assert_eq!(panel_widths::<f32>(112, f32::PANEL), [48, 32, 32]);
    }
}
