//! Products with a narrow row-major matrix: a block of a Krylov basis has a few dozen columns, which fit into registers.
//!
//! A general product of matrices packs its operands first; of one so narrow that costs as much as the product. Here a tile
//! of C stays in registers while A and B go by once, in the order in which they stand.

use super::{
    real::Real,
    simd::{Isa, Vector, isa},
};

/// How A stands: entry (i, t) at `i * across + t * along`.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    pub across: usize,
    pub along: usize,
}

impl Strides {
    /// Row-major, of so many columns.
    pub fn of_rows(columns: usize) -> Self {
        Self {
            across: columns,
            along: 1,
        }
    }

    /// The transpose of a row-major array of so many columns.
    pub fn of_columns(columns: usize) -> Self {
        Self {
            across: 1,
            along: columns,
        }
    }
}

/// C <- C + A B.
///
/// Shapes: A is rows x steps, `b` steps x width, `c` rows x width, both row-major. Best for a width that is a multiple of
/// [`Real::LANE`], and for operands that are in a cache.
/// Cost: 2 * rows * steps * width operations.
/// Reproducibility: each entry of C gets its products in the order of steps, fused: a function of the arguments, on every
/// instruction set.
/// Panics: on other shapes.
pub fn add_product<T: Real>(
    rows: usize,
    width: usize,
    a: &[T],
    strides: Strides,
    b: &[T],
    c: &mut [T],
) {
    add_product_by(isa(), rows, width, a, strides, b, c);
}

fn add_product_by<T: Real>(
    isa: Isa,
    rows: usize,
    width: usize,
    a: &[T],
    strides: Strides,
    b: &[T],
    c: &mut [T],
) {
    if rows == 0 || width == 0 || b.is_empty() {
        return;
    }
    let steps = b.len() / width;
    assert_eq!(b.len(), steps * width, "B is of another width than {width}");
    // Sizes too large for a number are too large for A and C.
    let size = rows.checked_mul(width);
    assert_eq!(Some(c.len()), size, "C should be {rows} x {width}");
    let across = (rows - 1).checked_mul(strides.across);
    let along = (steps - 1).checked_mul(strides.along);
    let last = across.zip(along).and_then(|(i, t)| i.checked_add(t));
    assert!(
        last.is_some_and(|last| last < a.len()),
        "A should be {rows} x {steps}"
    );
    assert!(isa.available(), "this machine has no {}", isa.name());
    let product = Product {
        rows,
        steps,
        width,
        a: a.as_ptr(),
        strides,
        b: b.as_ptr(),
        c: c.as_mut_ptr(),
    };
    // SAFETY: the instruction set is there, and the shapes are what was asserted above.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => product.avx512(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => product.avx2(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => unreachable!("not available"),
            Isa::Portable => product.run::<T::Portable, 4>(),
        }
    }
}

/// Operands whose shapes have been checked.
struct Product<T> {
    rows: usize,
    steps: usize,
    width: usize,
    a: *const T,
    strides: Strides,
    b: *const T,
    c: *mut T,
}

/// Registers side by side in a tile: two loads of B serve a dozen products.
const ABREAST: usize = 2;

impl<T: Real> Product<T> {
    /// # Safety
    /// The machine has AVX2 and FMA; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(&self) {
        // 12 of 16 registers hold C.
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<T::Avx2, 6>() }
    }

    /// # Safety
    /// The machine has AVX-512F; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f")]
    unsafe fn avx512(&self) {
        // 24 of 32 registers hold C.
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<T::Avx512, 12>() }
    }

    /// All of C, in tiles of at most `R` rows.
    ///
    /// # Safety
    /// The instruction set of V is there, and the operands are as long as the shapes say.
    #[inline(always)]
    unsafe fn run<V: Vector<Number = T>, const R: usize>(&self) {
        let mut column = 0;
        while column < self.width {
            let left = self.width - column;
            // SAFETY: so many columns are left.
            unsafe {
                if left >= ABREAST * V::LANES {
                    self.columns::<V, R, ABREAST>(column);
                    column += ABREAST * V::LANES;
                } else if left >= V::LANES {
                    self.columns::<V, R, 1>(column);
                    column += V::LANES;
                } else {
                    self.column(column);
                    column += 1;
                }
            }
        }
    }

    /// # Safety
    /// See [`run`](Self::run); `N` registers of columns are left from `column` on.
    #[inline(always)]
    unsafe fn columns<V: Vector<Number = T>, const R: usize, const N: usize>(&self, column: usize) {
        let mut row = 0;
        // SAFETY: tiles begin and end within the rows.
        unsafe {
            while row + R <= self.rows {
                self.tile::<V, R, N>(row, column);
                row += R;
            }
            while row + 4 <= self.rows {
                self.tile::<V, 4, N>(row, column);
                row += 4;
            }
            while row < self.rows {
                self.tile::<V, 1, N>(row, column);
                row += 1;
            }
        }
    }

    /// # Safety
    /// See [`columns`](Self::columns); `R` rows are left from `row` on.
    #[inline(always)]
    unsafe fn tile<V: Vector<Number = T>, const R: usize, const N: usize>(
        &self,
        row: usize,
        column: usize,
    ) {
        let Strides { across, along } = self.strides;
        // SAFETY: all that is read and written lies within what the shapes say.
        unsafe {
            let c = self.c.add(row * self.width + column);
            let mut sums = [[V::splat(T::zeroed()); N]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(c.add(r * self.width + n * V::LANES));
                }
            }
            let mut a = self.a.add(row * across);
            let mut b = self.b.add(column);
            for _ in 0..self.steps {
                let mut abreast = [V::splat(T::zeroed()); N];
                for (n, to) in abreast.iter_mut().enumerate() {
                    *to = V::load(b.add(n * V::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let factor = V::splat(*a.add(r * across));
                    for (sum, b) in sums.iter_mut().zip(abreast) {
                        *sum = sum.plus_product(factor, b);
                    }
                }
                a = a.wrapping_add(along);
                b = b.wrapping_add(self.width);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    sum.store(c.add(r * self.width + n * V::LANES));
                }
            }
        }
    }

    /// A column that fills no register.
    ///
    /// # Safety
    /// See [`run`](Self::run).
    unsafe fn column(&self, column: usize) {
        let Strides { across, along } = self.strides;
        for row in 0..self.rows {
            // SAFETY: all that is read and written lies within what the shapes say.
            unsafe {
                let c = self.c.add(row * self.width + column);
                for step in 0..self.steps {
                    let a = *self.a.add(row * across + step * along);
                    *c = a.fma(*self.b.add(step * self.width + column), *c);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::sketch::numbers;

    fn is_the_same_on_all<T: Real>(rows: usize, steps: usize, width: usize, transposed: bool) {
        let a = numbers::<T>(rows * steps, 1);
        let b = numbers::<T>(steps * width, 2);
        let before = numbers::<T>(rows * width, 3);
        let strides = if transposed {
            Strides::of_columns(rows)
        } else {
            Strides::of_rows(steps)
        };
        let mut wanted = before.clone();
        for i in 0..rows {
            for j in 0..width {
                for t in 0..steps {
                    let a = a[i * strides.across + t * strides.along];
                    wanted[i * width + j] = a.fma(b[t * width + j], wanted[i * width + j]);
                }
            }
        }
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            let mut found = before.clone();
            add_product_by(isa, rows, width, &a, strides, &b, &mut found);
            assert!(
                bytemuck::cast_slice::<T, u8>(&found) == bytemuck::cast_slice::<T, u8>(&wanted),
                "{rows} x {steps} x {width} on {}",
                isa.name()
            );
        }
    }

    #[test]
    fn products_are_the_same_on_every_instruction_set() {
        for (rows, steps, width) in [
            (1, 1, 1),
            (32, 128, 32),
            (33, 7, 16),
            (5, 3, 48),
            (29, 40, 112),
            (13, 2, 37),
            (0, 3, 4),
            (3, 0, 4),
        ] {
            for transposed in [false, true] {
                is_the_same_on_all::<f32>(rows, steps, width, transposed);
                is_the_same_on_all::<f64>(rows, steps, width, transposed);
            }
        }
    }

    #[test]
    #[should_panic(expected = "A should be 3 x 4")]
    fn too_short_a_matrix_is_not_read() {
        let mut c = [0.0f32; 6];
        add_product(3, 2, &[0.0; 11], Strides::of_rows(4), &[0.0; 8], &mut c);
    }
}
