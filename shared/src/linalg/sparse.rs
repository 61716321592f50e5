//! Products of a row block with one panel.
//!
//! Both products are the same walk: for each list of entries (a row's, or an item's within a tile), sum value times row
//! of a source, in registers, one register of columns beside the other. They differ in what becomes of the sum.
//!
//! In the shapes below the block is A, `rows` x `columns`, its values times `scale`; a panel has `width` columns, a
//! multiple of [`Real::LANE`] up to 64 bytes times 4.
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
use crate::{
    farm::work::WorkError,
    matrix::block::{CODE_BITS, CODES, RowBlock, Tile, Values},
    platform::Pages,
};

/// Y = A X for one panel, in arithmetic of `T`. X may stand in `f32` where that is `f64`: the same bits as of those numbers
/// in `f64`, with half as much to read.
///
/// Shapes: `x` is columns x width, `y` rows x width (overwritten), row-major.
/// Method: row by row, the row of Y in registers.
/// Cost: 2 * nnz * width operations; reads a row of X an entry.
/// Reproducibility: see the [module](self).
/// Panics: on other shapes; when `scale` is no power of two; when the block has an entry beyond its columns.
pub fn multiply<F, T: Rows<F>>(block: &RowBlock, scale: f64, x: &[F], width: usize, y: &mut [T]) {
    multiply_on(isa(), block, scale, x, width, y);
}

/// [`multiply`] with a given instruction set, which the machine must have.
pub fn multiply_on<F, T: Rows<F>>(
    isa: Isa,
    block: &RowBlock,
    scale: f64,
    x: &[F],
    width: usize,
    y: &mut [T],
) {
    check_panel("x", x.len(), block.columns(), width);
    check_panel("y", y.len(), block.rows(), width);
    for tile in block.tiles() {
        let y = &mut y[tile.first_row * width..][..tile.rows * width];
        T::rows_of_tile(isa, &tile, scale, x, width, y);
    }
}

/// How sums of a column of A become integers of an accumulator: times 2^(shift of the column + extra).
#[derive(Clone, Copy, Debug)]
pub struct Shifts<'a> {
    /// One a column of A.
    pub of_columns: &'a [i16],
    pub extra: i32,
}

/// Z += A^T (A X) for one panel, in one sweep of the block.
///
/// Shapes: `x` and `z` are columns x width, row-major.
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
    shifts: Shifts<'_>,
    z: &mut [i64],
) {
    gram_fold_on(isa(), block, scale, x, width, shifts, z);
}

/// [`gram_fold`] with a given instruction set, which the machine must have.
pub fn gram_fold_on<T: Real>(
    isa: Isa,
    block: &RowBlock,
    scale: f64,
    x: &[T],
    width: usize,
    shifts: Shifts<'_>,
    z: &mut [i64],
) {
    check_panel("x", x.len(), block.columns(), width);
    check_fold(block, width, shifts, z);
    let rows = block.tiles().map(|tile| tile.rows).max().unwrap_or(0);
    with_scratch(rows * width * size_of::<T>(), |scratch| {
        let scratch: &mut [T] = bytemuck::cast_slice_mut(scratch);
        for tile in block.tiles() {
            let y = &mut scratch[..tile.rows * width];
            T::rows_of_tile(isa, &tile, scale, x, width, y);
            T::items_of_tile(isa, &tile, scale, y, width, shifts, z);
        }
    });
}

/// Z += A^T Y for one panel.
///
/// Shapes: `y` is rows x width, `z` columns x width, row-major.
/// Method, cost, reproducibility, panics: the second half of [`gram_fold`].
pub fn transpose_fold<T: Real>(
    block: &RowBlock,
    scale: f64,
    y: &[T],
    width: usize,
    shifts: Shifts<'_>,
    z: &mut [i64],
) {
    transpose_fold_on(isa(), block, scale, y, width, shifts, z);
}

/// [`transpose_fold`] with a given instruction set, which the machine must have.
pub fn transpose_fold_on<T: Real>(
    isa: Isa,
    block: &RowBlock,
    scale: f64,
    y: &[T],
    width: usize,
    shifts: Shifts<'_>,
    z: &mut [i64],
) {
    check_panel("y", y.len(), block.rows(), width);
    check_fold(block, width, shifts, z);
    for tile in block.tiles() {
        let y = &y[tile.first_row * width..][..tile.rows * width];
        T::items_of_tile(isa, &tile, scale, y, width, shifts, z);
    }
}

fn check_panel(name: &str, len: usize, rows: usize, width: usize) {
    assert_eq!(len, rows * width, "{name} should be {rows} x {width}");
}

fn check_fold(block: &RowBlock, width: usize, shifts: Shifts<'_>, z: &[i64]) {
    check_panel("z", z.len(), block.columns(), width);
    assert_eq!(
        shifts.of_columns.len(),
        block.columns(),
        "one shift a column"
    );
}

/// Lends memory for Y of a tile, kept between calls so that its pages stay mapped. It holds whatever it held: a tile's Y
/// is written whole before it is read.
fn with_scratch(len: usize, run: impl FnOnce(&mut [u8])) {
    /// Enough for any tile but of wide panels of `f64`, and one huge page.
    const LEAST: usize = 2 << 20;
    thread_local! {
        static SCRATCH: RefCell<Option<Pages>> = const { RefCell::new(None) };
    }
    SCRATCH.with_borrow_mut(|kept| {
        if kept
            .as_ref()
            .is_none_or(|pages| pages.as_slice().len() < len)
        {
            *kept = Pages::zeroed(len.max(LEAST));
        }
        let pages = kept
            .as_mut()
            // Kernels have no errors; whoever runs a task knows this one from a bug. The first tile is the longest, so
            // nothing has been added before it.
            .unwrap_or_else(|| std::panic::panic_any(WorkError::OutOfMemory { bytes: len as u64 }));
        run(&mut pages.as_mut_slice()[..len]);
    });
}

/// The walk over rows, from panels of F; like [`Items`], compiled here once for each kind of numbers and not again wherever
/// it is called.
#[doc(hidden)]
pub trait Rows<F>: Sized {
    fn rows_of_tile(isa: Isa, tile: &Tile<'_>, scale: f64, x: &[F], width: usize, y: &mut [Self]);
}

/// The walk over items.
#[doc(hidden)]
pub trait Items: Sized {
    fn items_of_tile(
        isa: Isa,
        tile: &Tile<'_>,
        scale: f64,
        y: &[Self],
        width: usize,
        shifts: Shifts<'_>,
        z: &mut [i64],
    );
}

macro_rules! rows {
    ($from:ty, $number:ty) => {
        impl Rows<$from> for $number {
            fn rows_of_tile(
                isa: Isa,
                tile: &Tile<'_>,
                scale: f64,
                x: &[$from],
                width: usize,
                y: &mut [Self],
            ) {
                let walk = Walk {
                    isa,
                    starts: tile.row_start,
                    words: tile.by_row,
                    source: x,
                    width,
                };
                walk.values::<Self, _>(tile.row_values, scale, Overwrite(y));
            }
        }
    };
}

rows!(f32, f32);
rows!(f64, f64);
rows!(f32, f64);

macro_rules! items {
    ($number:ty) => {
        impl Items for $number {
            fn items_of_tile(
                isa: Isa,
                tile: &Tile<'_>,
                scale: f64,
                y: &[Self],
                width: usize,
                shifts: Shifts<'_>,
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
                walk.values::<Self, _>(tile.item_values, scale, Fold { items, shifts, z });
            }
        }
    };
}

items!(f32);
items!(f64);

/// An entry's integer in one of the two orders.
trait Word: Copy {
    /// How many entries ahead a row of the source is asked for; 0 for never.
    const AHEAD: usize;
    fn wide(self) -> usize;
}

impl Word for u32 {
    /// Rows of X come from afar.
    const AHEAD: usize = 24;

    #[inline(always)]
    fn wide(self) -> usize {
        self as usize
    }
}

impl Word for u16 {
    /// Y of a tile is near.
    const AHEAD: usize = 8;

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
    shifts: Shifts<'a>,
    z: &'a mut [i64],
}

impl<V: Vector> Sink<V> for Fold<'_> {
    #[inline(always)]
    unsafe fn take<const N: usize>(&mut self, list: usize, sum: [V; N]) {
        let item = self.items[list] as usize;
        let scale = power_of_two(i32::from(self.shifts.of_columns[item]) + self.shifts.extra);
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

/// Numbers that registers of `T` are filled from.
trait Fills<T: Real>: Copy {
    /// # Safety
    /// The instruction set of V is there, and so are its LANES numbers behind the pointer.
    unsafe fn register<V: Vector<Number = T>>(from: *const Self) -> V;
}

impl<T: Real> Fills<T> for T {
    #[inline(always)]
    unsafe fn register<V: Vector<Number = T>>(from: *const Self) -> V {
        // SAFETY: the caller vouches for it.
        unsafe { V::load(from) }
    }
}

impl Fills<f64> for f32 {
    #[inline(always)]
    unsafe fn register<V: Vector<Number = f64>>(from: *const Self) -> V {
        // SAFETY: the caller vouches for it.
        unsafe { V::load_single(from) }
    }
}

/// Lists of entries, and the rows that they point at.
struct Walk<'a, W, F> {
    isa: Isa,
    starts: &'a [u32],
    words: &'a [W],
    source: &'a [F],
    width: usize,
}

#[cold]
#[inline(never)]
fn beyond(index: usize, rows: usize) -> ! {
    panic!("an entry of a block points at {index}, beyond {rows}")
}

/// How many lists ahead a row of the accumulator is asked for.
const LISTS_AHEAD: usize = 12;

impl<W: Word, F: Copy> Walk<'_, W, F> {
    fn values<T: Real, S>(&self, values: Values<'_>, scale: f64, sink: S)
    where
        F: Fills<T>,
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

    fn registers<T: Real, D: Decode<T>, S: Sinks<T>>(&self, decode: D, mut sink: S)
    where
        F: Fills<T>,
    {
        assert!(
            self.isa.available(),
            "this machine has no {}",
            self.isa.name()
        );
        let groups = self.width / T::LANE;
        assert!(
            self.width.is_multiple_of(T::LANE) && (1..=4).contains(&groups),
            "width {} is not a multiple of {} up to {}",
            self.width,
            T::LANE,
            4 * T::LANE
        );
        /// Calls the variant for the number of registers.
        macro_rules! with {
            ($run:ident, $count:expr, $($n:literal)*) => {
                match $count {
                    // SAFETY: the instruction set was found above; the width is that many registers.
                    $($n => unsafe { self.$run::<T, D, S, $n>(decode, &mut sink) },)*
                    _ => unreachable!("1 to 4 groups"),
                }
            };
        }
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => with!(avx512, groups, 1 2 3 4),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => with!(avx2, 2 * groups, 2 4 6 8),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => unreachable!("not available"),
            Isa::Portable => with!(portable, 2 * groups, 2 4 6 8),
        }
    }

    /// # Safety
    /// The machine has AVX2 and FMA; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<T: Real, D: Decode<T>, S: Sinks<T>, const N: usize>(
        &self,
        decode: D,
        sink: &mut S,
    ) where
        F: Fills<T>,
    {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<T, T::Avx2, D, S, N>(decode, sink) }
    }

    /// # Safety
    /// The machine has AVX-512F; see [`run`](Self::run).
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f")]
    unsafe fn avx512<T: Real, D: Decode<T>, S: Sinks<T>, const N: usize>(
        &self,
        decode: D,
        sink: &mut S,
    ) where
        F: Fills<T>,
    {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<T, T::Avx512, D, S, N>(decode, sink) }
    }

    /// # Safety
    /// See [`run`](Self::run).
    unsafe fn portable<T: Real, D: Decode<T>, S: Sinks<T>, const N: usize>(
        &self,
        decode: D,
        sink: &mut S,
    ) where
        F: Fills<T>,
    {
        // SAFETY: the caller vouches for it.
        unsafe { self.run::<T, T::Portable, D, S, N>(decode, sink) }
    }

    /// # Safety
    /// The instruction set of V is there.
    #[inline(always)]
    unsafe fn run<T: Real, V, D, S, const N: usize>(&self, decode: D, sink: &mut S)
    where
        F: Fills<T>,
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
                // SAFETY: at < end <= words.len().
                let word = unsafe { words.get_unchecked(at) }.wide();
                if W::AHEAD > 0 {
                    // SAFETY: the smaller of anything and the last place is one.
                    let ahead = unsafe { words.get_unchecked((at + W::AHEAD).min(last)) }.wide();
                    let ahead = self.source.as_ptr().wrapping_add(D::index(ahead) * width);
                    for line in 0..(width * size_of::<F>()).div_ceil(64) {
                        V::prefetch(ahead.cast::<u8>().wrapping_add(64 * line));
                    }
                }
                let index = D::index(word);
                if index >= rows {
                    beyond(index, rows);
                }
                // SAFETY: at < words.len() <= decode.len().
                let value = unsafe { decode.value(word, at) };
                // SAFETY: index < rows and the source has `rows` rows of N registers; the caller vouches for the
                // instruction set.
                unsafe {
                    let (value, row) = (V::splat(value), self.source.as_ptr().add(index * width));
                    for (n, sum) in sum.iter_mut().enumerate() {
                        *sum = sum.plus_product(value, F::register::<V>(row.add(n * V::LANES)));
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sprs::CsMat;

    use super::*;
    use crate::{
        farm::bytes::Bytes,
        linalg::{fixed::unfold, sketch::Sketch},
        matrix::{
            block::TILE_ROWS,
            encode::{Encoding, encode},
        },
    };

    /// Half-integers of at most 15 kinds, so that every encoding holds them exactly.
    fn csr(rows: usize, columns: usize, percent: u64, seed: u64) -> CsMat<f64> {
        let mut state = seed;
        let mut random = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(99991);
            state >> 33
        };
        let (mut start, mut of, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in 0..rows {
            for column in 0..columns {
                // Some rows and some columns stay empty.
                if row % 7 != 3 && column % 5 != 2 && random() % 100 < percent {
                    of.push(column);
                    values.push((random() % 15) as f64 / 2.0 - 3.0);
                }
            }
            start.push(of.len());
        }
        CsMat::new((rows, columns), start, of, values)
    }

    fn table() -> Vec<f64> {
        (0..15).map(|v| f64::from(v) / 2.0 - 3.0).collect()
    }

    fn encodings() -> [Encoding; 3] {
        [Encoding::Coded(table()), Encoding::F32, Encoding::F64]
    }

    fn block(matrix: &CsMat<f64>, encoding: &Encoding) -> RowBlock {
        RowBlock::parse(encoded(matrix, encoding)).unwrap()
    }

    fn encoded(matrix: &CsMat<f64>, encoding: &Encoding) -> Bytes {
        let indptr = matrix.proper_indptr();
        let columns: Vec<u32> = matrix.indices().iter().map(|&c| c as u32).collect();
        let bytes = encode(
            encoding,
            0,
            matrix.cols() as u64,
            &indptr,
            &columns,
            matrix.data(),
        );
        bytes.unwrap()
    }

    fn panel<T: Real>(rows: usize, width: usize, seed: u64) -> Vec<T> {
        let sketch = Sketch {
            seed,
            stream: 1,
            columns: width,
        };
        let mut out = vec![T::zeroed(); rows * width];
        sketch.fill(0..rows as u64, 0, width, 1.0, &mut out);
        out
    }

    fn dense<T: Real>(rows: usize, width: usize, panel: &[T]) -> ndarray::Array2<f64> {
        let numbers = panel.iter().map(|x| x.to_f64()).collect();
        ndarray::Array2::from_shape_vec((rows, width), numbers).unwrap()
    }

    struct Results<T> {
        y: Vec<T>,
        fused: Vec<i64>,
        split: Vec<i64>,
    }

    fn compute<T: Real>(
        isa: Isa,
        block: &RowBlock,
        scale: f64,
        x: &[T],
        width: usize,
        of_columns: &[i16],
    ) -> Results<T> {
        let shifts = Shifts {
            of_columns,
            extra: 3,
        };
        // Whatever was in y goes; what was in z stays in the sum.
        let mut y = vec![T::from_f64(f64::NAN); block.rows() * width];
        multiply_on(isa, block, scale, x, width, &mut y);
        let (mut fused, mut split) = (vec![7; x.len()], vec![7; x.len()]);
        gram_fold_on(isa, block, scale, x, width, shifts, &mut fused);
        transpose_fold_on(isa, block, scale, &y, width, shifts, &mut split);
        Results { y, fused, split }
    }

    fn agrees<T: Real>(matrix: &CsMat<f64>, groups: usize, scale: f64, tolerance: f64) {
        let (rows, columns) = matrix.shape();
        let width = groups * T::LANE;
        let x = panel::<T>(columns, width, 5);
        let shifts: Vec<i16> = (0..columns).map(|c| 15 + (c % 4) as i16).collect();
        let y = &matrix.map(|v| v * scale) * &dense(columns, width, &x);
        let z = &matrix.transpose_view().map(|v| v * scale).to_csr() * &y;
        let mut first: Option<Results<T>> = None;
        for encoding in encodings() {
            let block = block(matrix, &encoding);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let found = compute(isa, &block, scale, &x, width, &shifts);
                let bound = tolerance * (1.0 + columns as f64) * scale;
                for (found, &wanted) in found.y.iter().zip(y.iter()) {
                    assert!((found.to_f64() - wanted).abs() <= bound);
                }
                let mut read = vec![0.0; x.len()];
                let added: Vec<i64> = found.fused.iter().map(|z| z - 7).collect();
                unfold(&added, width, &shifts, 3, &mut read);
                let tiles = rows.div_ceil(TILE_ROWS as usize) as f64;
                let bound = bound * (1.0 + rows as f64) * scale + tiles * 2f64.powi(-18);
                for (found, &wanted) in read.iter().zip(z.iter()) {
                    assert!((found - wanted).abs() <= bound, "{found} is not {wanted}");
                }
                assert!(
                    found.fused == found.split,
                    "{isa:?}: fused and split differ"
                );
                if let Some(first) = &first {
                    let same = bytemuck::cast_slice::<T, u8>(&first.y)
                        == bytemuck::cast_slice::<T, u8>(&found.y);
                    assert!(same, "{isa:?}, {encoding:?}: other bits in Y");
                    assert!(first.fused == found.fused, "{isa:?}, {encoding:?}: other Z");
                } else {
                    first = Some(found);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn products_are_those_of_the_dense_oracle(
            rows in 1usize..60,
            columns in 1usize..60,
            percent in 0u64..100,
            seed in any::<u64>(),
            groups in 1usize..=4,
            exponent in -3i32..4,
        ) {
            let matrix = csr(rows, columns, percent, seed);
            let scale = power_of_two(exponent);
            agrees::<f32>(&matrix, groups, scale, 3e-6);
            agrees::<f64>(&matrix, groups, scale, 3e-14);
        }
    }

    #[test]
    fn blocks_of_several_tiles_agree() {
        let matrix = csr(2 * TILE_ROWS as usize + 77, 23, 12, 9);
        for groups in [1, 2, 3, 4] {
            agrees::<f32>(&matrix, groups, 0.5, 3e-6);
            agrees::<f64>(&matrix, groups, 0.5, 3e-14);
        }
    }

    #[test]
    fn a_panel_of_f32_is_that_panel_in_f64() {
        let matrix = csr(TILE_ROWS as usize + 77, 61, 20, 4);
        for width in [8, 16, 24, 32] {
            let x = panel::<f32>(61, width, 8);
            let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for encoding in encodings() {
                let block = block(&matrix, &encoding);
                for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                    let mut y = vec![f64::NAN; block.rows() * width];
                    let mut wanted = y.clone();
                    multiply_on(isa, &block, 0.5, &x, width, &mut y);
                    multiply_on(isa, &block, 0.5, &wide, width, &mut wanted);
                    assert!(y == wanted, "{isa:?}, {encoding:?}, {width}");
                }
            }
        }
    }

    #[test]
    fn folds_do_not_depend_on_the_order_of_blocks() {
        let (rows, columns, width) = (90, 31, 16);
        let matrix = csr(rows, columns, 40, 3);
        let x = panel::<f32>(columns, width, 8);
        let shifts = Shifts {
            of_columns: &vec![21i16; columns],
            extra: 0,
        };
        let blocks: Vec<RowBlock> = (0..9)
            .map(|b| {
                block(
                    &matrix.slice_outer(b * 10..b * 10 + 10).to_owned(),
                    &Encoding::F32,
                )
            })
            .collect();
        let fold = |order: &[usize]| {
            let mut z = vec![0; columns * width];
            for &b in order {
                gram_fold(&blocks[b], 1.0, &x, width, shifts, &mut z);
            }
            z
        };
        let first = fold(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(first.iter().any(|&z| z != 0));
        assert_eq!(first, fold(&[8, 3, 1, 0, 7, 5, 2, 6, 4]));
        assert_eq!(first, fold(&[4, 8, 0, 2, 6, 1, 3, 5, 7]));
    }

    #[test]
    fn values_far_from_one_are_brought_near_by_the_scale() {
        let matrix = csr(40, 20, 50, 4);
        let x = panel::<f32>(20, 16, 1);
        for exponent in [-140, -66, 66, 120] {
            let scale = power_of_two(-exponent);
            let far = matrix.map(|v| v * power_of_two(exponent));
            let mut near = vec![0f32; 40 * 16];
            multiply(&block(&matrix, &Encoding::F64), 1.0, &x, 16, &mut near);
            for encoding in [Encoding::F32, Encoding::F64] {
                let mut y = vec![0f32; 40 * 16];
                multiply(&block(&far, &encoding), scale, &x, 16, &mut y);
                assert_eq!(y, near, "2^{exponent}, {encoding:?}");
            }
        }
    }

    /// The bytes of a block that says of itself what it is as long as it is.
    fn harmed_block(encoding: Encoding) -> impl Strategy<Value = Vec<u8>> {
        let good = encoded(&csr(30, 20, 50, 6), &encoding);
        crate::harm::harmed(good.as_slice().to_vec()).prop_map(|mut bytes| {
            let len = bytes.len() as u64;
            if let Some(says) = bytes.get_mut(40..48) {
                says.copy_from_slice(&len.to_le_bytes());
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn a_harmed_block_is_refused_or_computed_with_and_nothing_worse(
            bytes in prop::sample::select(encodings().to_vec()).prop_flat_map(harmed_block),
        ) {
            let bytes = Bytes::copy_from(&bytes).unwrap();
            let block = match RowBlock::parse(bytes) {
                Ok(block) => block,
                Err(why) => {
                    prop_assert!(!why.to_string().is_empty());
                    return Ok(());
                }
            };
            let _ = block.entries().count();
            // Whoever computes with it has asked it for these.
            if block.rows() > 100 || block.columns() > 100 {
                return Ok(());
            }
            let x = panel::<f32>(block.columns(), 8, 1);
            let shifts = vec![3i16; block.columns()];
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let _ = std::panic::catch_unwind(|| {
                    let mut y = vec![0f32; block.rows() * 8];
                    multiply_on(isa, &block, 1.0, &x, 8, &mut y);
                });
                let _ = std::panic::catch_unwind(|| {
                    let mut z = vec![0i64; block.columns() * 8];
                    let shifts = Shifts { of_columns: &shifts, extra: 0 };
                    gram_fold_on(isa, &block, 1.0, &x, 8, shifts, &mut z);
                });
            }
        }
    }

    #[test]
    fn a_block_with_wrong_columns_panics_and_nothing_worse() {
        let matrix = csr(30, 20, 50, 6);
        for encoding in encodings() {
            let bytes = encoded(&matrix, &encoding);
            let good = RowBlock::parse(bytes.clone()).unwrap();
            let entries = good.tiles().next().unwrap().by_row.as_ptr() as usize;
            let at = entries - bytes.as_slice().as_ptr() as usize;
            let mut bytes = bytes.as_slice().to_vec();
            bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            let bad = RowBlock::parse(Bytes::copy_from(&bytes).unwrap()).unwrap();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
                let run = std::panic::catch_unwind(|| {
                    let mut y = vec![0f32; 30 * 16];
                    multiply_on(isa, &bad, 1.0, &panel::<f32>(20, 16, 1), 16, &mut y);
                });
                assert!(run.is_err(), "{isa:?}, {encoding:?}");
            }
        }
    }
}
