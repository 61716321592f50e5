//! Sums that do not depend on the order of their addends: fixed-point integers.
//!
//! Row `j` of an accumulator holds integers that stand for themselves times 2^-(shift_j + extra). An addend is rounded
//! once to the nearest such number, ties to even, the same on every instruction set; from there on addition is exact.
//! The caller picks the shifts so that addends and sums stay inside the range of [`Real::FOLD_BITS`](super::real::Real):
//! below 2^51 for `f32`, 2^61 for `f64`. Beyond it sums are wrong, and differ between instruction sets; nothing worse.

/// 1.5 * 2^52: adding it to a number below 2^51 in magnitude rounds that number to an integer, which then stands in the
/// low bits of the sum.
pub(super) const MAGIC: f64 = 6755399441055744.0;
/// 1.5 * 2^62: the same for multiples of 2^10 below 2^61.
pub(super) const MAGIC_HIGH: f64 = 6917529027641081856.0;
/// Bits between the two.
pub(super) const SPLIT: u32 = 10;

/// 2^exponent, exactly. Panics when `f64` has no such normal number.
pub fn power_of_two(exponent: i32) -> f64 {
    assert!(
        (-1022..=1023).contains(&exponent),
        "2^{exponent} is beyond the range of f64"
    );
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// value * scale to the nearest integer, ties to even; the product is below 2^51 in magnitude.
pub(super) fn round_single(value: f64, scale: f64) -> i64 {
    let sum = value.mul_add(scale, MAGIC);
    (sum.to_bits() as i64).wrapping_sub(MAGIC.to_bits() as i64)
}

/// The same up to 2^61: first to a multiple of 2^10 (an even number, so the second rounding is that of the whole), then
/// the rest, which is exact.
pub(super) fn round_double(value: f64, scale: f64) -> i64 {
    let sum = value.mul_add(scale, MAGIC_HIGH);
    let high = sum - MAGIC_HIGH;
    let low = value.mul_add(scale, -high) + MAGIC;
    let bits = |x: f64| x.to_bits() as i64;
    (bits(sum).wrapping_sub(bits(MAGIC_HIGH)) << SPLIT)
        .wrapping_add(bits(low).wrapping_sub(bits(MAGIC)))
}

/// value to the nearest integer, ties to even, for values of at most 2^61: as [`round_double`], where the scale has been
/// multiplied in exactly. No call of a library, so loops over it are done several numbers at a time.
pub fn round(value: f64) -> i64 {
    let sum = value + MAGIC_HIGH;
    let high = sum - MAGIC_HIGH;
    let low = (value - high) + MAGIC;
    let bits = |x: f64| x.to_bits() as i64;
    (bits(sum).wrapping_sub(bits(MAGIC_HIGH)) << SPLIT)
        .wrapping_add(bits(low).wrapping_sub(bits(MAGIC)))
}

/// Reads rows of an accumulator.
///
/// Shapes: `z` and `out` are rows x `width`, row-major; `shifts` has one exponent a row.
/// Method: out = z * 2^-(shift + extra), rounded once.
/// Panics: on other shapes, and when 2^-(shift + extra) is no normal `f64`.
pub fn unfold(z: &[i64], width: usize, shifts: &[i16], extra: i32, out: &mut [f64]) {
    assert_eq!(
        z.len(),
        shifts.len() * width,
        "accumulator of {} rows x {width}",
        shifts.len()
    );
    assert_eq!(z.len(), out.len(), "accumulator and output differ in size");
    if width == 0 {
        return;
    }
    for ((z, out), &shift) in z
        .chunks_exact(width)
        .zip(out.chunks_exact_mut(width))
        .zip(shifts)
    {
        let scale = power_of_two(-(i32::from(shift) + extra));
        for (to, &from) in out.iter_mut().zip(z) {
            *to = from as f64 * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rounding_is_to_nearest_and_to_even() {
        let limit = 2f64.powi(61);
        for at in 0..62 {
            for part in [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5] {
                for value in [2f64.powi(at) + part, 2f64.powi(at) - part] {
                    for value in [value, -value, value.next_up(), -value.next_down()] {
                        let value = value.clamp(-limit, limit);
                        assert_eq!(round(value), value.round_ties_even() as i64, "{value:e}");
                    }
                }
            }
        }
    }

    /// The definition, in 128-bit integers: value * 2^exponent to the nearest integer, ties to even.
    fn round_by_integers(value: f64, exponent: i32) -> i64 {
        let bits = value.abs().to_bits();
        let (fraction, field) = (bits & ((1 << 52) - 1), (bits >> 52) as i32);
        let (mantissa, power) = if field == 0 {
            (fraction, -1074)
        } else {
            (fraction | 1 << 52, field - 1075)
        };
        let shift = power + exponent;
        let whole = if shift >= 0 {
            (mantissa as i128) << shift
        } else if shift < -60 {
            0
        } else {
            let (down, half) = ((mantissa >> -shift) as i128, 1u64 << (-shift - 1));
            let rest = mantissa & ((1u64 << -shift) - 1);
            down + i128::from(rest > half || (rest == half && down & 1 == 1))
        };
        let whole = i64::try_from(whole).unwrap();
        if value < 0.0 { -whole } else { whole }
    }

    #[test]
    fn ties_go_to_even() {
        for (value, rounded) in [
            (0.5, 0),
            (1.5, 2),
            (2.5, 2),
            (-0.5, 0),
            (-1.5, -2),
            (0.0, 0),
            (-0.0, 0),
        ] {
            assert_eq!(round_single(value, 1.0), rounded);
            assert_eq!(round_double(value, 1.0), rounded);
        }
        // Halfway between multiples of 2^10, and a tie below that.
        for value in [512.5, 1536.5, -512.5, 513.5, 2f64.powi(51) + 512.5] {
            assert_eq!(round_double(value, 1.0), round_by_integers(value, 0));
        }
        assert_eq!(round_double(1.0, 2f64.powi(60)), 1 << 60);
        assert_eq!(round_single(-1.0, 2f64.powi(50)), -(1 << 50));
    }

    proptest! {
        #[test]
        fn both_roundings_are_the_definition(mantissa in any::<u64>(), below in 0i32..70, exponent in -300i32..300) {
            let unit = f64::from_bits(0x3fe << 52 | mantissa >> 12) * if mantissa & 1 == 0 { 1.0 } else { -1.0 };
            let scale = power_of_two(exponent);
            let wide = unit * power_of_two(60 - below - exponent);
            prop_assert_eq!(round_double(wide, scale), round_by_integers(wide, exponent));
            let single = f64::from(unit as f32) * power_of_two(50 - below - exponent);
            prop_assert_eq!(round_single(single, scale), round_by_integers(single, exponent));
        }
    }

    #[test]
    fn unfold_undoes_the_shift() {
        let mut out = [0.0; 4];
        unfold(&[1, -3, 1 << 60, 5], 2, &[1, 40], 20, &mut out);
        assert_eq!(
            out,
            [
                2f64.powi(-21),
                -3.0 * 2f64.powi(-21),
                1.0,
                5.0 * 2f64.powi(-60)
            ]
        );
    }
}
