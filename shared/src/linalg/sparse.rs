//! Products of a row block with one panel.
//!
//! Both products are the same walk: for each list of entries (a row's, or an item's within a tile), sum value times row
//! of a source, in registers, one register of columns beside the other. They differ in what becomes of the sum.
//!
//! In the shapes below the block is A, `rows` x `columns`, its values times `scale`; a panel has `width` columns, a
//! multiple of [`Real::LANE`] up to 64 bytes times 8.
//!
//! Reproducibility, of all: each element is a sum over the stored order of entries, products fused, one addition at a
//! time; columns never mix. So the instruction set and the width of the panel change no bit, and `gram_fold` adds the
//! same integers as `multiply` followed by `transpose_fold`.

use std::cell::RefCell;

use super::{
    fixed::power_of_two,
    real::Real,
    simd::{Isa, Vector, isa},
    sketch::assert_power_of_two,
};
use crate::matrix::block::{CODE_BITS, CODES, RowBlock, Tile, Values};

/// Y = A X for one panel.
///
/// Shapes: `x` is columns x width, `y` rows x width (overwritten), row-major.
/// Method: row by row, the row of Y in registers.
/// Cost: 2 * nnz * width operations; reads a row of X an entry.
/// Reproducibility: see the [module](self).
/// Panics: on other shapes; when `scale` is no power of two; when the block has an entry beyond its columns.
pub fn multiply<T: Real>(block: &RowBlock, scale: f64, x: &[T], width: usize, y: &mut [T]) {
    multiply_on(isa(), block, scale, x, width, y);
}

/// [`multiply`] with a given instruction set, which the machine must have.
pub fn multiply_on<T: Real>(
    isa: Isa,
    block: &RowBlock,
    scale: f64,
    x: &[T],
    width: usize,
    y: &mut [T],
) {
    check_panel("x", x.len(), block.columns(), width);
    check_panel("y", y.len(), block.rows(), width);
    for tile in block.tiles() {
        let y = &mut y[tile.first_row * width..][..tile.rows * width];
        rows_of_tile(isa, &tile, scale, x, width, y);
    }
}

/// Z += A^T (A X) for one panel, in one sweep of the block.
///
/// Shapes: `x` and `z` are columns x width, row-major; `shifts` has one exponent a column of A.
/// Method: tile by tile; Y of the tile stays in cache. An item's sum over a tile is rounded once and added to `z` as an
/// integer: z += round(sum * 2^(shift + extra)), see [`fixed`](super::fixed).
/// Cost: 4 * nnz * width operations; reads a row of X and one of Y an entry, and reads and writes a row of Z a run of
/// entries of one item in one tile.
/// Reproducibility: see the [module](self). Blocks in any order give the same integers.
/// Panics: as [`multiply`]; when 2^(shift + extra) is no normal `f64`.
pub fn gram_fold<T: Real>(
    block: &RowBlock,
    scale: f64,
    x: &[T],
    width: usize,
    shifts: &[i16],
    extra: i32,
    z: &mut [i64],
) {
    gram_fold_on(isa(), block, scale, x, width, shifts, extra, z);
}

/// [`gram_fold`] with a given instruction set, which the machine must have.
#[expect(clippy::too_many_arguments)]
pub fn gram_fold_on<T: Real>(
    isa: Isa,
    block: &RowBlock,
    scale: f64,
    x: &[T],
    width: usize,
    shifts: &[i16],
    extra: i32,
    z: &mut [i64],
) {
    check_panel("x", x.len(), block.columns(), width);
    check_fold(block, width, shifts, z);
    with_scratch(|scratch| {
        for tile in block.tiles() {
            let need = tile.rows * width * size_of::<T>();
            let lines = need.div_ceil(size_of::<Line>());
            if scratch.len() < lines {
                scratch.resize(lines, Line([0; 64]));
            }
            let y: &mut [T] = &mut bytemuck::cast_slice_mut(scratch)[..tile.rows * width];
            rows_of_tile(isa, &tile, scale, x, width, y);
            items_of_tile(isa, &tile, scale, y, width, shifts, extra, z);
        }
    });
}

/// Z += A^T Y for one panel.
///
/// Shapes: `y` is rows x width, `z` columns x width, row-major; `shifts` has one exponent a column of A.
/// Method, cost, reproducibility, panics: the second half of [`gram_fold`].
pub fn transpose_fold<T: Real>(
    block: &RowBlock,
    scale: f64,
    y: &[T],
    width: usize,
    shifts: &[i16],
    extra: i32,
    z: &mut [i64],
) {
    transpose_fold_on(isa(), block, scale, y, width, shifts, extra, z);
}

/// [`transpose_fold`] with a given instruction set, which the machine must have.
#[expect(clippy::too_many_arguments)]
pub fn transpose_fold_on<T: Real>(
    isa: Isa,
    block: &RowBlock,
    scale: f64,
    y: &[T],
    width: usize,
    shifts: &[i16],
    extra: i32,
    z: &mut [i64],
) {
    check_panel("y", y.len(), block.rows(), width);
    check_fold(block, width, shifts, z);
    for tile in block.tiles() {
        let y = &y[tile.first_row * width..][..tile.rows * width];
        items_of_tile(isa, &tile, scale, y, width, shifts, extra, z);
    }
}

fn check_panel(name: &str, len: usize, rows: usize, width: usize) {
    assert_eq!(len, rows * width, "{name} should be {rows} x {width}");
}

fn check_fold(block: &RowBlock, width: usize, shifts: &[i16], z: &[i64]) {
    check_panel("z", z.len(), block.columns(), width);
    assert_eq!(shifts.len(), block.columns(), "one shift a column");
}

/// Y of a tile, kept between calls so that its pages stay mapped. Every part that is read was written for the same tile.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

fn with_scratch(run: impl FnOnce(&mut Vec<Line>)) {
    thread_local! {
        static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(run);
}

fn rows_of_tile<T: Real>(
    isa: Isa,
    tile: &Tile<'_>,
    scale: f64,
    x: &[T],
    width: usize,
    y: &mut [T],
) {
    let walk = Walk {
        isa,
        starts: tile.row_start,
        words: tile.by_row,
        source: x,
        width,
    };
    walk.values(tile.row_values, scale, Overwrite(y));
}

#[expect(clippy::too_many_arguments)]
fn items_of_tile<T: Real>(
    isa: Isa,
    tile: &Tile<'_>,
    scale: f64,
    y: &[T],
    width: usize,
    shifts: &[i16],
    extra: i32,
    z: &mut [i64],
) {
    let walk = Walk {
        isa,
        starts: tile.item_start,
        words: tile.by_item,
        source: y,
        width,
    };
    let items = tile.items;
    walk.values(
        tile.item_values,
        scale,
        Fold {
            items,
            shifts,
            extra,
            z,
        },
    );
}

/// An entry's integer in one of the two orders.
trait Word: Copy {
    fn wide(self) -> usize;
}

impl Word for u32 {
    #[inline(always)]
    fn wide(self) -> usize {
        self as usize
    }
}

impl Word for u16 {
    #[inline(always)]
    fn wide(self) -> usize {
        usize::from(self)
    }
}

/// How an entry's integer and its place give index and value.
trait Decode<T>: Copy {
    /// Entries that there are values for.
    fn len(&self) -> usize;
    fn index(word: usize) -> usize;
    /// # Safety
    /// `at` is below `len`.
    unsafe fn value(&self, word: usize, at: usize) -> T;
}

#[derive(Clone, Copy)]
struct Codes<'a, T>(&'a [T; CODES]);

impl<T: Real> Decode<T> for Codes<'_, T> {
    fn len(&self) -> usize {
        usize::MAX
    }

    #[inline(always)]
    fn index(word: usize) -> usize {
        word >> CODE_BITS
    }

    #[inline(always)]
    unsafe fn value(&self, word: usize, _: usize) -> T {
        self.0[word % CODES]
    }
}

/// Values beside the entries, to be multiplied with a power of two in `f64` (where every `f32` can be).
#[derive(Clone, Copy)]
struct Beside<'a, S> {
    values: &'a [S],
    scale: f64,
}

impl<T: Real, S: Real> Decode<T> for Beside<'_, S> {
    fn len(&self) -> usize {
        self.values.len()
    }

    #[inline(always)]
    fn index(word: usize) -> usize {
        word
    }

    #[inline(always)]
    unsafe fn value(&self, _: usize, at: usize) -> T {
        // SAFETY: the caller vouches that `at` is below the length.
        let value = unsafe { *self.values.get_unchecked(at) };
        T::from_f64(value.to_f64() * self.scale)
    }
}

/// What becomes of the sum of a list.
trait Sink<V: Vector> {
    /// # Safety
    /// The instruction set of V is there.
    unsafe fn take<const N: usize>(&mut self, list: usize, sum: [V; N]);
    /// List `list` comes soon.
    fn announce<const N: usize>(&self, list: usize);
}

/// Row `list` of it.
struct Overwrite<'a, T>(&'a mut [T]);

impl<V: Vector> Sink<V> for Overwrite<'_, V::Number> {
    #[inline(always)]
    unsafe fn take<const N: usize>(&mut self, list: usize, sum: [V; N]) {
        let row = &mut self.0[list * N * V::LANES..][..N * V::LANES];
        for (n, register) in sum.into_iter().enumerate() {
            // SAFETY: the row has N registers; the caller vouches for the instruction set.
            unsafe { register.store(row.as_mut_ptr().add(n * V::LANES)) }
        }
    }

    #[inline(always)]
    fn announce<const N: usize>(&self, _: usize) {}
}

/// Added to row `items[list]` of the accumulator.
struct Fold<'a> {
    items: &'a [u32],
    shifts: &'a [i16],
    extra: i32,
    z: &'a mut [i64],
}

impl<V: Vector> Sink<V> for Fold<'_> {
    #[inline(always)]
    unsafe fn take<const N: usize>(&mut self, list: usize, sum: [V; N]) {
        let item = self.items[list] as usize;
        let scale = power_of_two(i32::from(self.shifts[item]) + self.extra);
        let row = &mut self.z[item * N * V::LANES..][..N * V::LANES];
        for (n, register) in sum.into_iter().enumerate() {
            // SAFETY: the row has N registers' integers; the caller vouches for the instruction set.
            unsafe { register.fold(scale, row.as_mut_ptr().add(n * V::LANES)) }
        }
    }

    #[inline(always)]
    fn announce<const N: usize>(&self, list: usize) {
        if let Some(&item) = self.items.get(list) {
            let row = self.z.as_ptr().wrapping_add(item as usize * N * V::LANES);
            for line in 0..(N * V::LANES).div_ceil(8) {
                V::prefetch(row.wrapping_add(line * 8));
            }
        }
    }
}

/// Lists of entries, and the rows that they point at.
struct Walk<'a, W, T> {
    isa: Isa,
    starts: &'a [u32],
    words: &'a [W],
    source: &'a [T],
    width: usize,
}

/// How many entries ahead a row of the source is asked for.
const AHEAD: usize = 8;
/// How many lists ahead a row of the accumulator is asked for.
const LISTS_AHEAD: usize = 2;

impl<W: Word, T: Real> Walk<'_, W, T> {
    fn values<S>(&self, values: Values<'_>, scale: f64, sink: S)
    where
        S: Sinks<T>,
    {
        assert_power_of_two(scale);
        match values {
            Values::Coded(table) => {
                let table = table.map(|value| T::from_f64(value * scale));
                self.registers(Codes(&table), sink);
            }
            Values::F32(values) => self.registers(Beside { values, scale }, sink),
            Values::F64(values) => self.registers(Beside { values, scale }, sink),
        }
    }

    fn registers<D: Decode<T>, S: Sinks<T>>(&self, decode: D, mut sink: S) {
        assert!(
            self.isa.available(),
            "this machine has no {}",
            self.isa.name()
        );
        let groups = self.width / T::LANE;
        assert!(
            self.width.is_multiple_of(T::LANE) && (1..=8).contains(&groups),
            "width {} is not a multiple of {} up to {}",
            self.width,
            T::LANE,
            8 * T::LANE
        );
        /// Calls the variant for the number of registers.
        macro_rules! with {
            ($run:ident, $count:expr, $($n:literal)*) => {
                match $count {
                    // SAFETY: the instruction set was found above; the width is that many registers.
                    $($n => unsafe { self.$run::<D, S, $n>(decode, &mut sink) },)*
                    _ => unreachable!("1 to 8 groups"),
                }
            };
        }
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if groups.is_multiple_of(2) => with!(avx512, groups / 2, 1 2 3 4),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => with!(avx2, groups, 1 2 3 4 5 6 7 8),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => unreachable!("not available"),
            Isa::Portable => with!(portable, groups, 1 2 3 4 5 6 7 8),
        }
    }

    /// # Safety
    /// The machine has AVX2 and FMA; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<D: Decode<T>, S: Sinks<T>, const N: usize>(&self, decode: D, sink: &mut S) {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<T::Avx2, D, S, N>(decode, sink) }
    }

    /// # Safety
    /// The machine has AVX-512F; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f")]
    unsafe fn avx512<D: Decode<T>, S: Sinks<T>, const N: usize>(&self, decode: D, sink: &mut S) {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<T::Avx512, D, S, N>(decode, sink) }
    }

    /// # Safety
    /// See [`run`](Self::run).
    unsafe fn portable<D: Decode<T>, S: Sinks<T>, const N: usize>(&self, decode: D, sink: &mut S) {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<T::Portable, D, S, N>(decode, sink) }
    }

    /// # Safety
    /// The instruction set of V is there.
    #[inline(always)]
    unsafe fn run<V, D, S, const N: usize>(&self, decode: D, sink: &mut S)
    where
        V: Vector<Number = T>,
        D: Decode<T>,
        S: Sink<V>,
    {
        let (words, width) = (self.words, N * V::LANES);
        let rows = self.source.len() / width;
        assert!(words.len() <= decode.len());
        let last = words.len().saturating_sub(1);
        for (list, ends) in self.starts.windows(2).enumerate() {
            let (start, end) = (ends[0] as usize, ends[1] as usize);
            assert!(start <= end && end <= words.len());
            sink.announce::<N>(list + LISTS_AHEAD);
            // SAFETY: the caller vouches for the instruction set.
            let mut sum = [unsafe { V::splat(T::zeroed()) }; N];
            for at in start..end {
                // SAFETY: at < end <= words.len(), and so is the smaller of anything and the last place.
                let (word, ahead) = unsafe {
                    (
                        words.get_unchecked(at).wide(),
                        words.get_unchecked((at + AHEAD).min(last)).wide(),
                    )
                };
                let ahead = self.source.as_ptr().wrapping_add(D::index(ahead) * width);
                for line in 0..(width * size_of::<T>()).div_ceil(64) {
                    V::prefetch(ahead.cast::<u8>().wrapping_add(64 * line));
                }
                let index = D::index(word);
                assert!(index < rows, "entry {index} of a block is beyond {rows}");
                // SAFETY: at < words.len() <= decode.len().
                let value = unsafe { decode.value(word, at) };
                // SAFETY: index < rows and the source has `rows` rows of N registers; the caller vouches for the
                // instruction set.
                unsafe {
                    let (value, row) = (V::splat(value), self.source.as_ptr().add(index * width));
                    for (n, sum) in sum.iter_mut().enumerate() {
                        *sum = sum.plus_product(value, V::load(row.add(n * V::LANES)));
                    }
                }
            }
            // SAFETY: the caller vouches for the instruction set.
            unsafe { sink.take(list, sum) };
        }
    }
}

/// A sink for the registers of every instruction set.
#[cfg(target_arch = "x86_64")]
trait Sinks<T: Real>: Sink<T::Portable> + Sink<T::Avx2> + Sink<T::Avx512> {}
#[cfg(target_arch = "x86_64")]
impl<T: Real, S: Sink<T::Portable> + Sink<T::Avx2> + Sink<T::Avx512>> Sinks<T> for S {}
#[cfg(not(target_arch = "x86_64"))]
trait Sinks<T: Real>: Sink<T::Portable> {}
#[cfg(not(target_arch = "x86_64"))]
impl<T: Real, S: Sink<T::Portable>> Sinks<T> for S {}
