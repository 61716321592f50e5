//! Registers of the instruction sets, and which set this machine has.
//!
//! Kernels are written once, over [`Vector`]; an instruction set is one implementation of it. Lanes never mix, products
//! are fused, and conversions round the same way in all of them, so the set changes no bit of a result.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

pub(super) use portable::Group;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{F32x8, F32x16, F64x4, F64x8};

use super::real::Real;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// Whatever the compiler makes of arrays: right everywhere, fast where fused multiplication is basic (aarch64).
    Portable,
    Avx2,
    Avx512,
}

impl Isa {
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.available() && is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }
}

/// The instruction set in use: the best one there is, or the one that `SVD_ISA` names. Decided once.
///
/// Panics when `SVD_ISA` names one that is unknown or that this machine lacks.
pub fn isa() -> Isa {
    static CHOSEN: OnceLock<Isa> = OnceLock::new();
    *CHOSEN.get_or_init(|| match std::env::var("SVD_ISA") {
        Ok(name) => {
            let isa = Isa::ALL.into_iter().find(|isa| isa.name() == name);
            let isa =
                isa.unwrap_or_else(|| panic!("SVD_ISA is {name:?}, not portable, avx2 or avx512"));
            assert!(
                isa.available(),
                "SVD_ISA is {name}, which this machine lacks"
            );
            isa
        }
        Err(_) => Isa::ALL
            .into_iter()
            .rev()
            .find(|isa| isa.available())
            .unwrap_or(Isa::Portable),
    })
}

/// The registers of a kind of number, one type an instruction set.
pub trait Vectors: Sized {
    #[doc(hidden)]
    type Portable: Vector<Number = Self>;
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    type Avx2: Vector<Number = Self>;
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    type Avx512: Vector<Number = Self>;
}

impl Vectors for f32 {
    type Portable = Group<f32, 8>;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = F32x8;
    #[cfg(target_arch = "x86_64")]
    type Avx512 = F32x16;
}

impl Vectors for f64 {
    type Portable = Group<f64, 4>;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = F64x4;
    #[cfg(target_arch = "x86_64")]
    type Avx512 = F64x8;
}

/// One register of numbers.
///
/// # Safety
///
/// Every method needs the instruction set of the type to be there. Pointers need [`LANES`](Vector::LANES) numbers behind
/// them, no alignment.
#[doc(hidden)]
pub trait Vector: Copy {
    type Number: Real;
    const LANES: usize;

    /// # Safety
    /// See the trait.
    unsafe fn splat(value: Self::Number) -> Self;
    /// # Safety
    /// See the trait.
    unsafe fn load(from: *const Self::Number) -> Self;
    /// Of numbers that stand in `f32`.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_single(from: *const f32) -> Self;
    /// # Safety
    /// See the trait.
    unsafe fn store(self, to: *mut Self::Number);
    /// a * b + self, rounded once.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
    /// Adds self * scale, rounded to integers, into `z`: see [`fixed`](super::fixed).
    ///
    /// # Safety
    /// See the trait.
    unsafe fn fold(self, scale: f64, z: *mut i64);
    /// Asks for the cache line at `at`, which need not be memory of anybody.
    fn prefetch<P>(at: *const P);
}
