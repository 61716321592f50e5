//! Registers as arrays: correct everywhere.

use super::Vector;
use crate::linalg::{
    fixed::{round_double, round_single},
    real::Real,
};

#[derive(Clone, Copy)]
#[doc(hidden)]
pub struct Group<T, const LANES: usize>([T; LANES]);

macro_rules! group {
    ($number:ty, $lanes:literal, $round:ident) => {
        impl Vector for Group<$number, $lanes> {
            type Number = $number;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(value: $number) -> Self {
                Self([value; $lanes])
            }

            #[inline(always)]
            unsafe fn load(from: *const $number) -> Self {
                // SAFETY: the caller vouches for LANES numbers behind the pointer; an array has no padding.
                Self(unsafe { from.cast::<[$number; $lanes]>().read_unaligned() })
            }

            #[inline(always)]
            unsafe fn load_single(from: *const f32) -> Self {
                // SAFETY: as in `load`.
                let numbers = unsafe { from.cast::<[f32; $lanes]>().read_unaligned() };
                Self(numbers.map(<$number>::from))
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut $number) {
                // SAFETY: as in `load`.
                unsafe { to.cast::<[$number; $lanes]>().write_unaligned(self.0) }
            }

            #[inline(always)]
            unsafe fn plus_product(mut self, a: Self, b: Self) -> Self {
                for ((sum, a), b) in self.0.iter_mut().zip(a.0).zip(b.0) {
                    *sum = a.fma(b, *sum);
                }
                self
            }

            #[inline(always)]
            unsafe fn fold(self, scale: f64, z: *mut i64) {
                for (lane, value) in self.0.into_iter().enumerate() {
                    // SAFETY: the caller vouches for LANES integers behind the pointer.
                    let z = unsafe { &mut *z.add(lane) };
                    *z = z.wrapping_add($round(value.to_f64(), scale));
                }
            }

            #[inline(always)]
            fn prefetch<P>(_: *const P) {}
        }
    };
}

group!(f32, 8, round_single);
group!(f64, 4, round_double);
