//! How fast the kernels are, as ratios: against a roof measured in the same run, against each other, on one and two
//! threads. Absolute times on a shared machine say little.
//!
//! `cargo bench -p tests --bench kernels [-- SECTION ...]`: sections `ml25m`, `values`, `portable`, `wide`, `roof`,
//! `dense`, `sketch`; `--width N` sets the width of panels, `--scale F` shrinks the matrices.

use std::{cell::RefCell, time::Instant};

use shared::{
    farm::bytes::BytesMut,
    linalg::{
        dense,
        real::{PANEL_OF_SHORT_ROWS, Real, panel_widths},
        simd::{Isa, isa},
        sketch::Sketch,
        sparse::{Shifts, gram_fold_on, multiply_on, transpose_fold_on},
        tall::{self, Tall},
    },
    matrix::{
        block::{RowBlock, TILE_ROWS},
        encode::{Encoding, encode},
        facts::Cutter,
    },
};

fn main() {
    let mut sections = Vec::new();
    let (mut width, mut scale) = (None, 1.0f64);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse::<f64>().ok());
        match argument.as_str() {
            "--width" => width = number().map(|w| w as usize),
            "--scale" => scale = number().expect("a factor"),
            "--bench" => {}
            _ => sections.push(argument),
        }
    }
    let wanted = |name: &str| sections.is_empty() || sections.iter().any(|s| s == name);
    println!(
        "instruction set {}, tiles of {TILE_ROWS} rows",
        isa().name()
    );

    let any = ["ml25m", "blocks", "values", "portable", "roof"]
        .into_iter()
        .any(wanted);
    let ratings = any.then(|| Ratings::generate(scaled(162_541, scale), 59_047, 154.0, 1));
    if let Some(ratings) = &ratings {
        let blocks = ratings.blocks(&ratings.coded());
        ratings.describe(&blocks);
        if wanted("ml25m") {
            ml25m(&blocks, width);
        }
        if wanted("blocks") {
            for (l, w) in [(16, 16), (32, 32), (48, 48), (64, 64), (64, 32)] {
                let one = gram::<f32>(isa(), &blocks, l, Some(w), 1);
                println!(
                    "one block of a basis, f32 l={l}, panels of {w}, 1 thread: {one:.2} ns an entry"
                );
            }
        }
        if wanted("roof") {
            roof(ratings, &blocks, width);
        }
        if wanted("portable") {
            portable(&blocks[..1], width);
        }
        if wanted("values") {
            values(ratings, &blocks, width);
        }
    }
    drop(ratings);
    if wanted("wide") {
        let ratings = Ratings::generate(scaled(1_000_000, scale), 600_000, 8.0, 2);
        let blocks = ratings.blocks(&ratings.coded());
        ratings.describe(&blocks);
        // Short rows: the plan takes wider panels.
        let width = width.or(Some(PANEL_OF_SHORT_ROWS));
        let ns = gram::<f32>(isa(), &blocks, 128, width, 2);
        println!("1M x 600k gram f32 l=128, 2 threads: {ns:.2} ns an entry (must 40)");
    }
    if wanted("tall") {
        tall();
    }
    if wanted("dense") {
        dense::<f32>("f32");
        dense::<f64>("f64");
        let a = numbers::<f64>(240, 240);
        let s = best(3, || drop(dense::svd_small(240, 240, &a)));
        println!("svd 240 x 240: {:.1} ms", 1e3 * s);
    }
    if wanted("sketch") {
        let mut out = vec![0f32; 59_047 * 64];
        let sketch = Sketch {
            seed: 1,
            stream: 1,
            columns: 64,
        };
        let s = best(3, || sketch.fill(0..59_047, 0, 64, 1.0, &mut out));
        println!("sketch: {:.2} ns an entry", 1e9 * s / out.len() as f64);
    }
}

/// The n-sided products of a Krylov basis, a slice at a time, as a share of what one core can multiply.
fn tall() {
    let (rows, width, arrays) = (2048, 32, 8);
    let numbers: Vec<Vec<f64>> = (0..=arrays).map(|_| numbers::<f64>(rows, width)).collect();
    let x: Vec<Tall<'_>> = numbers[1..]
        .iter()
        .map(|numbers| Tall { numbers, width })
        .collect();
    let w = Tall {
        numbers: &numbers[0],
        width,
    };
    let d = arrays * width;
    let rate = |flops: usize, seconds: f64| flops as f64 / seconds / 1e9;
    let product = 2 * rows * d * width;
    let times = 200;
    let s = best(times, || drop(tall::cross(rows, &x, w)));
    println!("X^T W {rows} x {d}, {width}: {:.1} GF/s", rate(product, s));
    let c = tall::cross(rows, &x, w);
    let mut left = numbers[0].clone();
    let s = best(times, || tall::deflate(rows, &x, &c, width, &mut left));
    println!("W - X C: {:.1} GF/s", rate(product, s));
    for width in [32, 112] {
        let a = crate::numbers::<f64>(rows, width);
        let s = best(times, || drop(dense::qr(rows, width, &a)));
        println!(
            "QR {rows} x {width}: {:.1} GF/s",
            rate(4 * rows * width * width, s)
        );
        let c = crate::numbers::<f64>(width, width);
        let s = best(times, || {
            drop(dense::multiply::<f64, f64>(rows, width, width, &a, &c))
        });
        println!(
            "Q T {rows} x {width}: {:.1} GF/s",
            rate(2 * rows * width * width, s)
        );
    }
}

/// Shares of the speed of `gram` in `f64`, which is a matrix product.
fn dense<T: Real>(name: &str) {
    let (rows, cols) = (16_384, 112);
    let a = numbers::<T>(rows, cols);
    let product = best(3, || drop(dense::gram(rows, cols, &a)));
    let r = best(3, || drop(dense::qr_r(rows, cols, &a)));
    let qr = best(3, || drop(dense::qr(rows, cols, &a)));
    let w = vec![0.5; cols * cols];
    let multiply = best(3, || {
        drop(dense::multiply::<T, T>(rows, cols, cols, &a, &w))
    });
    println!(
        "{rows} x {cols} {name}: gram {:.0} ms; of it qr_r {:.2}, qr {:.2}, multiply {:.2}",
        1e3 * product,
        r / product,
        qr / product,
        multiply / product
    );
}

fn numbers<T: Real>(rows: usize, cols: usize) -> Vec<T> {
    let sketch = Sketch {
        seed: 3,
        stream: 2,
        columns: cols,
    };
    let mut a = vec![T::from_f64(0.0); rows * cols];
    sketch.fill(0..rows as u64, 0, cols, 1.0, &mut a);
    a
}

fn scaled(count: usize, scale: f64) -> usize {
    (count as f64 * scale) as usize
}

fn ml25m(blocks: &[RowBlock], width: Option<usize>) {
    let one = gram::<f32>(isa(), blocks, 128, width, 1);
    let two = gram::<f32>(isa(), blocks, 128, width, 2);
    println!(
        "gram f32 l=128: {two:.2} ns an entry on 2 threads (must 8, stretch 6.5), {one:.2} on 1: {:.2}x (must 1.8)",
        one / two
    );
    let one = gram::<f64>(isa(), blocks, 112, width, 1);
    let two = gram::<f64>(isa(), blocks, 112, width, 2);
    println!(
        "gram f64 l=112: {two:.2} ns an entry on 2 threads (must 14, stretch 12), {one:.2} on 1: {:.2}x",
        one / two
    );
    let (m, t) = halves::<f32>(blocks, 128, width);
    println!("f32 l=128, 2 threads: A X {m:.2}, A^T Y {t:.2} ns an entry");
    let (m, t) = halves::<f64>(blocks, 112, width);
    println!("f64 l=112, 2 threads: A X {m:.2}, A^T Y {t:.2} ns an entry");
}

fn values(ratings: &Ratings, coded: &[RowBlock], width: Option<usize>) {
    let base = gram::<f32>(isa(), coded, 128, width, 2);
    for (name, encoding) in [("f32", Encoding::F32), ("f64", Encoding::F64)] {
        let blocks = ratings.blocks(&encoding);
        let ns = gram::<f32>(isa(), &blocks, 128, width, 2);
        println!(
            "gram f32 l=128, values {name}: {:.2}x the time of coded ones (must 1.4)",
            ns / base
        );
    }
}

fn portable(blocks: &[RowBlock], width: Option<usize>) {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        let (single, double) = (
            gram::<f32>(isa, blocks, 128, width, 1),
            gram::<f64>(isa, blocks, 112, width, 1),
        );
        println!(
            "first block, 1 thread, {}: f32 l=128 {single:.2}, f64 l=112 {double:.2} ns an entry",
            isa.name()
        );
    }
}

/// What the memory gives: the same rows, added up and nothing else.
fn roof(ratings: &Ratings, blocks: &[RowBlock], width: Option<usize>) {
    let width = width.unwrap_or(32);
    let nnz = ratings.columns_of.len() as f64;
    let entries = 4_000_000.min(ratings.columns_of.len());
    let panels = 128f64 / width as f64;
    let near: Vec<u32> = (0..entries as u32)
        .map(|k| k.wrapping_mul(2_654_435_761) % TILE_ROWS)
        .collect();
    let runs: usize = blocks
        .iter()
        .flat_map(|b| b.tiles().map(|t| t.items.len()).collect::<Vec<_>>())
        .sum();
    let x_rows = time_of_threads(2, |_| {
        let mut x = BytesMut::zeroed_for::<f32>(ratings.columns * width).unwrap();
        x.numbers_mut::<f32>().fill(1.0);
        move || read_rows(x.numbers_mut(), width, &ratings.columns_of[..entries])
    }) * 1e9
        / entries as f64;
    let y_rows = time_of_threads(2, |_| {
        let mut y = BytesMut::zeroed_for::<f32>(TILE_ROWS as usize * width).unwrap();
        y.numbers_mut::<f32>().fill(1.0);
        let near = &near;
        move || read_rows(y.numbers_mut(), width, near)
    }) * 1e9
        / entries as f64;
    let triad = time_of_threads(2, |_| {
        let mut z = BytesMut::zeroed_for::<i64>(ratings.columns * width).unwrap();
        move || z.numbers_mut::<i64>().iter_mut().for_each(|z| *z += 1)
    }) / (ratings.columns * width) as f64;
    let z = triad * 1e9 * width as f64 * runs as f64 / nnz;
    // Two threads take panels in turn.
    let sum = (x_rows + y_rows + z) * panels / 2.0;
    println!(
        "roof f32 l=128, 2 threads, panels of {width}: rows of X {:.2} + rows of Y {:.2} + Z {:.2} = {sum:.2} ns an entry",
        x_rows * panels / 2.0,
        y_rows * panels / 2.0,
        z * panels / 2.0
    );
    let ns = gram::<f32>(isa(), blocks, 128, Some(width), 2);
    println!("gram f32 l=128: {:.2} of that roof", sum / ns);
}

fn read_rows(x: &[f32], width: usize, rows: &[u32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx2.available() {
        // SAFETY: AVX2 was found just now.
        return unsafe { read_rows_avx2(x, width, rows) };
    }
    read_rows_here(x, width, rows)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_rows_avx2(x: &[f32], width: usize, rows: &[u32]) -> f32 {
    read_rows_here(x, width, rows)
}

#[inline(always)]
fn read_rows_here(x: &[f32], width: usize, rows: &[u32]) -> f32 {
    match width {
        32 => read_rows_of::<32>(x, rows),
        48 => read_rows_of::<48>(x, rows),
        64 => read_rows_of::<64>(x, rows),
        _ => panic!("no roof for width {width}"),
    }
}

#[inline(always)]
fn read_rows_of<const W: usize>(x: &[f32], rows: &[u32]) -> f32 {
    let x = x.as_chunks::<W>().0;
    let mut sum = [0f32; W];
    for (at, &row) in rows.iter().enumerate() {
        ask(&x[rows[(at + 16).min(rows.len() - 1)] as usize]);
        for (sum, x) in sum.iter_mut().zip(&x[row as usize]) {
            *sum += x;
        }
    }
    sum.iter().sum()
}

/// Asks for the cache lines of a row, as the kernels do.
#[inline(always)]
fn ask<const W: usize>(row: &[f32; W]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch has no effect but on caches.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// Wall time of the same work on several threads, best of three.
fn time_of_threads<W: FnMut() -> R, R>(threads: usize, make: impl Fn(usize) -> W + Sync) -> f64 {
    let barrier = std::sync::Barrier::new(threads);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|t| {
                let (make, barrier) = (&make, &barrier);
                scope.spawn(move || {
                    let mut work = make(t);
                    std::hint::black_box(work());
                    barrier.wait();
                    best(4, || {
                        std::hint::black_box(work());
                    })
                })
            })
            .collect();
        running
            .into_iter()
            .map(|t| t.join().unwrap())
            .fold(0.0, f64::max)
    })
}

fn best(times: usize, mut work: impl FnMut()) -> f64 {
    (0..times)
        .map(|_| {
            let (start, busy) = (Instant::now(), thread_seconds());
            work();
            let busy = thread_seconds() - busy;
            if busy > 0.0 {
                busy
            } else {
                start.elapsed().as_secs_f64()
            }
        })
        .fold(f64::INFINITY, f64::min)
}

fn panels<T: Real>(l: usize, width: Option<usize>) -> Vec<usize> {
    match width {
        None => panel_widths::<T>(l, T::PANEL),
        Some(w) => {
            let w = w.min(4 * T::LANE);
            (0..l.div_ceil(w)).map(|p| w.min(l - p * w)).collect()
        }
    }
}

/// Wall ns an entry of the fused product; each thread takes whole panels and sweeps all blocks for each.
fn gram<T: Real>(
    isa: Isa,
    blocks: &[RowBlock],
    l: usize,
    width: Option<usize>,
    threads: usize,
) -> f64 {
    let shifts = Shifts {
        of_columns: &vec![20i16; blocks[0].columns()],
        extra: 0,
    };
    sweep::<T>(blocks, l, width, threads, |block, x, w, z| {
        gram_fold_on(isa, block, 1.0, x, w, shifts, z);
    })
}

/// The same of the two products alone.
fn halves<T: Real>(blocks: &[RowBlock], l: usize, width: Option<usize>) -> (f64, f64) {
    let shifts = Shifts {
        of_columns: &vec![20i16; blocks[0].columns()],
        extra: 0,
    };
    let rows = blocks.iter().map(RowBlock::rows).max().unwrap();
    let y = vec![T::from_f64(0.5); rows * l];
    let multiply = sweep::<T>(blocks, l, width, 2, |block, x, w, _| {
        thread_local! {
            static Y: RefCell<Option<BytesMut>> = const { RefCell::new(None) };
        }
        Y.with_borrow_mut(|y| {
            let y = y.get_or_insert_with(|| BytesMut::zeroed_for::<f64>(rows * l).unwrap());
            multiply_on(
                isa(),
                block,
                1.0,
                x,
                w,
                &mut y.numbers_mut::<T>()[..block.rows() * w],
            );
        });
    });
    let transpose = sweep::<T>(blocks, l, width, 2, |block, _, w, z| {
        transpose_fold_on(isa(), block, 1.0, &y[..block.rows() * w], w, shifts, z);
    });
    (multiply, transpose)
}

fn sweep<T: Real>(
    blocks: &[RowBlock],
    l: usize,
    width: Option<usize>,
    threads: usize,
    work: impl Fn(&RowBlock, &[T], usize, &mut [i64]) + Sync,
) -> f64 {
    let columns = blocks[0].columns();
    let nnz: u64 = blocks.iter().map(RowBlock::nnz).sum();
    let widths = panels::<T>(l, width);
    let sketch = Sketch {
        seed: 7,
        stream: 1,
        columns: l,
    };
    let barrier = std::sync::Barrier::new(threads);
    let times: Vec<Vec<(f64, f64)>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|t| {
                let (widths, barrier, work) = (&widths, &barrier, &work);
                scope.spawn(move || {
                    let mut mine: Vec<_> = (t..widths.len())
                        .step_by(threads)
                        .map(|p| {
                            let w = widths[p];
                            let mut x = BytesMut::zeroed_for::<T>(columns * w).unwrap();
                            let first = widths[..p].iter().sum();
                            sketch.fill(0..columns as u64, first, w, 1.0, x.numbers_mut::<T>());
                            (w, x, BytesMut::zeroed_for::<i64>(columns * w).unwrap())
                        })
                        .collect();
                    (0..4)
                        .map(|_| {
                            barrier.wait();
                            let (start, busy) = (Instant::now(), thread_seconds());
                            for (w, x, z) in &mut mine {
                                let z = z.numbers_mut::<i64>();
                                for block in blocks {
                                    work(block, x.numbers_mut::<T>(), *w, z);
                                }
                            }
                            let busy = thread_seconds() - busy;
                            barrier.wait();
                            (start.elapsed().as_secs_f64(), busy)
                        })
                        .collect()
                })
            })
            .collect();
        running.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // Where others use the processor too, wall time says little: time on it, of the thread that needed most.
    (0..times[0].len())
        .map(|k| {
            let busy = times.iter().map(|t| t[k].1).fold(0.0, f64::max);
            if busy > 0.0 { busy } else { times[0][k].0 }
        })
        .fold(f64::INFINITY, f64::min)
        * 1e9
        / nnz as f64
}

/// Time that this thread spent on a processor, where the system tells; else 0.
fn thread_seconds() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = told.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
    first.unwrap_or(0.0) / 1e9
}

/// A matrix that looks like film ratings.
struct Ratings {
    columns: usize,
    row_start: Vec<usize>,
    columns_of: Vec<u32>,
    values: Vec<f64>,
}

impl Ratings {
    /// Popularity of items Zipf-Mandelbrot (exponent 1.8, column numbers shuffled), activity of users lognormal.
    fn generate(rows: usize, columns: usize, mean: f64, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut place: Vec<u32> = (0..columns as u32).collect();
        for i in (1..columns).rev() {
            place.swap(i, random.below(i + 1));
        }
        let q = 520.0f64;
        let (top, bottom) = (q.powf(-0.8), (q + columns as f64).powf(-0.8));
        let ranks: Vec<u32> = (0..1 << 20)
            .map(|u| {
                let u = (f64::from(u) + 0.5) / (1u64 << 20) as f64;
                ((top - u * (top - bottom)).powf(-1.25) - q) as u32
            })
            .collect();
        let sigma = 1.25f64;
        let mut seen = vec![u32::MAX; columns];
        let (mut row_start, mut columns_of, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in 0..rows {
            let length = (mean.ln() - sigma * sigma / 2.0 + sigma * random.normal()).exp();
            let length = (length.round() as usize).clamp(1, columns / 6);
            let first = columns_of.len();
            while columns_of.len() < first + length {
                // The table of ranks is coarse at the far end: smear it there.
                let rank = ranks[random.below(ranks.len())] as usize;
                let rank = (rank + random.below(rank / 8 + 1)).min(columns - 1);
                let column = place[rank];
                if seen[column as usize] != row as u32 {
                    seen[column as usize] = row as u32;
                    columns_of.push(column);
                    values.push((random.below(10) + 1) as f64 / 2.0);
                }
            }
            columns_of[first..].sort_unstable();
            row_start.push(columns_of.len());
        }
        Self {
            columns,
            row_start,
            columns_of,
            values,
        }
    }

    fn coded(&self) -> Encoding {
        Encoding::Coded((1..=10).map(|v| f64::from(v) / 2.0).collect())
    }

    fn blocks(&self, encoding: &Encoding) -> Vec<RowBlock> {
        let rows = self.row_start.len() - 1;
        let mut cutter = Cutter::of(self.columns_of.len() as u64);
        let mut cuts: Vec<usize> = (0..rows)
            .filter(|&r| cutter.cuts_before((self.row_start[r + 1] - self.row_start[r]) as u64))
            .collect();
        cuts.insert(0, 0);
        cuts.push(rows);
        cuts.windows(2)
            .map(|cut| {
                let (from, to) = (self.row_start[cut[0]], self.row_start[cut[1]]);
                let starts: Vec<usize> = self.row_start[cut[0]..=cut[1]]
                    .iter()
                    .map(|s| s - from)
                    .collect();
                let bytes = encode(
                    encoding,
                    cut[0] as u64,
                    self.columns as u64,
                    &starts,
                    &self.columns_of[from..to],
                    &self.values[from..to],
                );
                RowBlock::parse(bytes.expect("memory")).expect("a block just made")
            })
            .collect()
    }

    fn describe(&self, blocks: &[RowBlock]) {
        let (mut tiles, mut runs) = (0, 0);
        for tile in blocks.iter().flat_map(RowBlock::tiles) {
            tiles += 1;
            runs += tile.items.len();
        }
        println!(
            "{} x {}, {} entries, {} blocks, {tiles} tiles, {:.1} entries a run",
            self.row_start.len() - 1,
            self.columns,
            self.columns_of.len(),
            blocks.len(),
            self.columns_of.len() as f64 / runs as f64
        );
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    fn normal(&mut self) -> f64 {
        // Twelve uniforms are near enough.
        (0..12)
            .map(|_| self.next() as f64 / u64::MAX as f64)
            .sum::<f64>()
            - 6.0
    }
}
