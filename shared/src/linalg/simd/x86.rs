//! Registers of AVX2 with FMA, and of AVX-512F.

use std::arch::x86_64::*;

use super::Vector;
use crate::linalg::fixed::{MAGIC, MAGIC_HIGH, SPLIT};

/// One type of register: the intrinsics' names are all that differs. `$fold` adds one half of it, or the whole.
macro_rules! register {
    ($name:ident, $number:ty, $raw:ty, $lanes:literal, $splat:ident, $load:ident, $store:ident, $fma:ident, |$from:ident| $single:expr, |$self:ident, $scale:ident, $z:ident| $fold:block) => {
        #[derive(Clone, Copy)]
        #[doc(hidden)]
        pub struct $name($raw);

        impl Vector for $name {
            type Number = $number;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(value: $number) -> Self {
                // SAFETY: the caller vouches for the instruction set.
                Self(unsafe { $splat(value) })
            }

            #[inline(always)]
            unsafe fn load(from: *const $number) -> Self {
                // SAFETY: the caller vouches for the instruction set and for LANES numbers behind the pointer.
                Self(unsafe { $load(from) })
            }

            #[inline(always)]
            unsafe fn load_single($from: *const f32) -> Self {
                // SAFETY: the caller vouches for the instruction set and for LANES numbers behind the pointer.
                Self(unsafe { $single })
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut $number) {
                // SAFETY: as in `load`.
                unsafe { $store(to, self.0) }
            }

            #[inline(always)]
            unsafe fn plus_product(self, a: Self, b: Self) -> Self {
                // SAFETY: the caller vouches for the instruction set.
                Self(unsafe { $fma(a.0, b.0, self.0) })
            }

            #[inline(always)]
            unsafe fn fold($self, $scale: f64, $z: *mut i64) {
                // SAFETY: the caller vouches for the instruction set and for LANES integers behind the pointer.
                unsafe { $fold }
            }

            #[inline(always)]
            fn prefetch<P>(at: *const P) {
                // SAFETY: SSE is part of x86-64; a prefetch of any address whatever has no effect but on caches.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
            }
        }
    };
}

/// The arithmetic of [`fixed`](crate::linalg::fixed) on a register of `f64`, one macro for both widths.
macro_rules! folds {
    ($single:ident, $double:ident, $feature:literal, $raw:ty, $set1:ident, $fma:ident, $fms:ident, $add:ident, $sub:ident, $cast:ident, $set1i:ident, $addi:ident, $subi:ident, $shift:ident, $loadi:ident, $storei:ident, $int:ty) => {
        /// z += round(value * scale), the product below 2^51.
        ///
        /// # Safety
        /// `z` has a register of integers behind it.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn $single(value: $raw, scale: f64, z: *mut i64) {
            let z = z.cast::<$int>();
            let sum = $fma(value, $set1(scale), $set1(MAGIC));
            let rounded = $subi($cast(sum), $set1i(MAGIC.to_bits() as i64));
            // SAFETY: the caller vouches for the integers behind the pointer.
            unsafe { $storei(z, $addi($loadi(z), rounded)) }
        }

        /// z += round(value * scale), the product below 2^61.
        ///
        /// # Safety
        /// `z` has a register of integers behind it.
        #[inline]
        #[target_feature(enable = $feature)]
        unsafe fn $double(value: $raw, scale: f64, z: *mut i64) {
            let z = z.cast::<$int>();
            let (scale, magic) = ($set1(scale), $set1(MAGIC_HIGH));
            let sum = $fma(value, scale, magic);
            let low = $add($fms(value, scale, $sub(sum, magic)), $set1(MAGIC));
            // Both magic numbers' bits are taken away at once.
            let bias = (MAGIC_HIGH.to_bits() << SPLIT).wrapping_add(MAGIC.to_bits()) as i64;
            let both = $addi($shift::<{ SPLIT as _ }>($cast(sum)), $cast(low));
            // SAFETY: the caller vouches for the integers behind the pointer.
            unsafe { $storei(z, $addi($loadi(z), $subi(both, $set1i(bias)))) }
        }
    };
}

folds!(
    single_256,
    double_256,
    "avx2,fma",
    __m256d,
    _mm256_set1_pd,
    _mm256_fmadd_pd,
    _mm256_fmsub_pd,
    _mm256_add_pd,
    _mm256_sub_pd,
    _mm256_castpd_si256,
    _mm256_set1_epi64x,
    _mm256_add_epi64,
    _mm256_sub_epi64,
    _mm256_slli_epi64,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    __m256i
);
folds!(
    single_512,
    double_512,
    "avx512f",
    __m512d,
    _mm512_set1_pd,
    _mm512_fmadd_pd,
    _mm512_fmsub_pd,
    _mm512_add_pd,
    _mm512_sub_pd,
    _mm512_castpd_si512,
    _mm512_set1_epi64,
    _mm512_add_epi64,
    _mm512_sub_epi64,
    _mm512_slli_epi64,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    __m512i
);

register!(
    F32x8,
    f32,
    __m256,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    |from| _mm256_loadu_ps(from),
    |self, scale, z| {
        single_256(_mm256_cvtps_pd(_mm256_castps256_ps128(self.0)), scale, z);
        single_256(
            _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.0)),
            scale,
            z.add(4),
        );
    }
);
register!(
    F64x4,
    f64,
    __m256d,
    4,
    _mm256_set1_pd,
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_fmadd_pd,
    |from| _mm256_cvtps_pd(_mm_loadu_ps(from)),
    |self, scale, z| {
        double_256(self.0, scale, z);
    }
);
register!(
    F32x16,
    f32,
    __m512,
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    |from| _mm512_loadu_ps(from),
    |self, scale, z| {
        single_512(_mm512_cvtps_pd(_mm512_castps512_ps256(self.0)), scale, z);
        // AVX-512F takes out 256 bits as doubles only.
        let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
        single_512(_mm512_cvtps_pd(_mm256_castpd_ps(high)), scale, z.add(8));
    }
);
register!(
    F64x8,
    f64,
    __m512d,
    8,
    _mm512_set1_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_fmadd_pd,
    |from| _mm512_cvtps_pd(_mm256_loadu_ps(from)),
    |self, scale, z| {
        double_512(self.0, scale, z);
    }
);
