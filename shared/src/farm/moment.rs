//! Time as data. The machines never look at a clock; whoever drives them says what time it is.

use std::ops::Add;

/// Microseconds since the job began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(pub u64);

impl Moment {
    pub const START: Self = Self(0);

    /// Microseconds since `earlier`; none when that lies ahead.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Moment {
    type Output = Self;

    fn add(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }
}
