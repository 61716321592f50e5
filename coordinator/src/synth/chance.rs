//! Chance that is the same on every machine: a counter-based generator, and the few functions drawn numbers pass
//! through, made of operations that IEEE 754 rounds one way only (the system's `exp` and `ln` are not).

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finisher (Steele, Lea and Flood 2014): a bijection whose every output bit hangs on every input bit.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// SplitMix64. A stream is named by what it is for, so nothing depends on the order in which streams are used.
pub struct Stream(u64);

impl Stream {
    /// The stream of (`seed`, `purpose`, `number`).
    pub fn new(seed: u64, purpose: u64, number: u64) -> Self {
        Self(key(key(mix(seed.wrapping_add(STEP)), purpose), number))
    }

    #[inline]
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// Uniform in `0..n`, biased by less than n / 2^64.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform strictly between 0 and 1.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        ((self.word() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    pub fn normal(&mut self) -> f64 {
        quantile(self.unit())
    }

    /// Every order equally likely (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// `number` folded into `key`: a word that stands for both.
#[inline]
pub fn key(key: u64, number: u64) -> u64 {
    mix(key ^ mix(number.wrapping_add(STEP)))
}

const LN_2: f64 = std::f64::consts::LN_2;

/// Natural logarithm of a positive normal number, to 1e-15.
pub fn ln(x: f64) -> f64 {
    debug_assert!(x.is_normal() && x > 0.0);
    let exponent = (x.to_bits() >> 52) as i64 - 1023;
    let mantissa = f64::from_bits((x.to_bits() & ((1 << 52) - 1)) | (1023 << 52));
    let (mantissa, exponent) = if mantissa > std::f64::consts::SQRT_2 {
        (mantissa / 2.0, exponent + 1)
    } else {
        (mantissa, exponent)
    };
    // ln m = 2 artanh((m - 1) / (m + 1)), whose argument is at most 0.172.
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let square = z * z;
    let series = (0..11)
        .rev()
        .fold(0.0, |sum, i| sum * square + 1.0 / f64::from(2 * i + 1));
    exponent as f64 * LN_2 + 2.0 * z * series
}

/// e^x for |x| < 700, to 1e-15.
pub fn exp(x: f64) -> f64 {
    debug_assert!(x.abs() < 700.0);
    let halvings = (x / LN_2).round();
    let rest = x - halvings * LN_2;
    let series = (1..16)
        .rev()
        .fold(1.0, |sum, i| 1.0 + sum * rest / f64::from(i));
    series * f64::from_bits(((halvings as i64 + 1023) as u64) << 52)
}

/// The number that a standard normal variable stays below with probability `p`, to 7 digits.
///
/// Reference: Wichura (1988), algorithm AS 241, PPND7; tails beyond 1e-11 are cut.
pub fn quantile(p: f64) -> f64 {
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180625 - q * q;
        return q
            * (((59.109_374_720 * r + 159.291_132_02) * r + 50.434_271_938) * r + 3.387_132_717_9)
            / (((67.187_563_600 * r + 78.757_757_664) * r + 17.895_169_469) * r + 1.0);
    }
    let r = (-ln(p.min(1.0 - p).max(1e-11))).sqrt() - 1.6;
    let tail = (((0.170_238_211_03 * r + 1.306_728_481_6) * r + 2.756_815_390_0) * r
        + 1.423_437_277_7)
        / ((0.120_211_329_75 * r + 0.737_001_642_50) * r + 1.0);
    if q < 0.0 { -tail } else { tail }
}

/// `f` of normal variables in great numbers: `f` at 4096 equally likely quantiles, picked by 12 random bits.
pub struct Quantiles(Box<[f32]>);

impl Quantiles {
    pub const BITS: u32 = 12;

    pub fn new(f: impl Fn(f64) -> f64) -> Self {
        let count = 1u32 << Self::BITS;
        Self(
            (0..count)
                .map(|i| f(quantile((f64::from(i) + 0.5) / f64::from(count))) as f32)
                .collect(),
        )
    }

    /// By the lowest 12 bits of `word`.
    #[inline]
    pub fn pick(&self, word: u64) -> f32 {
        self.0[word as usize & ((1 << Self::BITS) - 1)]
    }

    /// Fills `into` from `stream`, five numbers a word.
    pub fn fill(&self, stream: &mut Stream, into: &mut [f32]) {
        for five in into.chunks_mut(5) {
            let mut word = stream.word();
            for number in five {
                *number = self.pick(word);
                word >>= Self::BITS;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_agree_with_the_systems() {
        for i in 1..2000 {
            let x = f64::from(i) * 0.037;
            assert!(
                (ln(x) - x.ln()).abs() < 4e-15 * (1.0 + x.ln().abs()),
                "ln {x}"
            );
            for x in [x, -x] {
                assert!((exp(x) / x.exp() - 1.0).abs() < 4e-14, "exp {x}");
            }
        }
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, z) in [
            (0.5, 0.0),
            (0.6, 0.253_347_103_1),
            (0.975, 1.959_963_985),
            (0.999, 3.090_232_306),
            (1.0 - 1e-6, 4.753_424_309),
        ] {
            assert!((quantile(p) - z).abs() < 2e-6, "{p}: {}", quantile(p));
            assert!((quantile(1.0 - p) + z).abs() < 2e-6);
        }
    }
}
