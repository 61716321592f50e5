//! Sums in twice the precision of `f64`: variances must survive a mean that is many times larger.
//!
//! Reference: Dekker 1971; Ogita, Rump, Oishi 2005.

use std::ops::{Add, Sub};

/// hi + lo, |lo| at most half a unit in the last place of hi.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Twofold {
    hi: f64,
    lo: f64,
}

impl Twofold {
    fn of(hi: f64, lo: f64) -> Self {
        let sum = hi + lo;
        Self {
            hi: sum,
            lo: lo - (sum - hi),
        }
    }

    /// a b
    pub fn product(a: f64, b: f64) -> Self {
        let hi = a * b;
        Self {
            hi,
            lo: a.mul_add(b, -hi),
        }
    }

    pub fn take(&mut self, x: f64) {
        *self = *self + Self { hi: x, lo: 0.0 };
    }

    pub fn take_product(&mut self, a: f64, b: f64) {
        *self = *self + Self::product(a, b);
    }

    pub fn times(self, x: f64) -> Self {
        let product = Self::product(self.hi, x);
        Self::of(product.hi, self.lo.mul_add(x, product.lo))
    }

    pub fn square(self) -> Self {
        let product = Self::product(self.hi, self.hi);
        Self::of(product.hi, (2.0 * self.hi).mul_add(self.lo, product.lo))
    }

    pub fn over(self, x: f64) -> Self {
        let first = self.hi / x;
        let rest = self - Self::product(first, x);
        Self::of(first, rest.value() / x)
    }

    pub fn value(self) -> f64 {
        self.hi + self.lo
    }
}

impl Add for Twofold {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let sum = self.hi + other.hi;
        let back = sum - self.hi;
        let lost = (self.hi - (sum - back)) + (other.hi - back);
        Self::of(sum, lost + self.lo + other.lo)
    }
}

impl Sub for Twofold {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + Self {
            hi: -other.hi,
            lo: -other.lo,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variance_survives_a_large_mean() {
        let (mean, count) = (1e5, 1000);
        let (mut sum, mut squares) = (Twofold::default(), Twofold::default());
        for i in 0..count {
            let x = mean + f64::from(i % 2) * 1e-6;
            sum.take(x);
            squares.take_product(x, x);
        }
        let count = f64::from(count);
        let variance = (squares - sum.square().over(count)).over(count).value();
        // As the larger one is rounded.
        let step = (mean + 1e-6) - mean;
        assert!(
            (variance / (step * step / 4.0) - 1.0).abs() < 1e-6,
            "{variance:e}"
        );
    }

    #[test]
    fn parts_that_cancel_leave_what_is_small() {
        let third = Twofold { hi: 1.0, lo: 0.0 }.over(3.0);
        let rest = third.times(3.0) - Twofold { hi: 1.0, lo: 0.0 };
        assert!(rest.value().abs() < 1e-31);
        let (a, b) = (1.0 + f64::EPSILON, 1.0 - f64::EPSILON);
        let mut sum = Twofold::product(a, b);
        sum.take(-1.0);
        assert_eq!(sum.value(), -f64::EPSILON * f64::EPSILON);
    }
}
