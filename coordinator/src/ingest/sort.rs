//! From records in the order of lines to blocks in the order of rows.
//!
//! Rows are grouped into buckets, each a run of whole blocks of about a million entries. [`partition`] sorts every piece
//! of records by bucket, in place; then each bucket is gathered from its parts of all pieces, in the order of lines, and
//! sorted by itself. What a bucket needs does not grow with the matrix, unless one row alone is larger.

use std::{
    ops::Range,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use shared::farm::{ids::ContentHash, work::WorkError};
use shared::matrix::{
    encode::{self, Encoding, EntryValues},
    facts::{BLOCK_NNZ, BlockFacts, Cutter},
};

use super::{
    parallel::{self, Signal},
    problem,
    spill::{self, Kept, Spill},
    values::ValueFacts,
};
use crate::{cache::Staging, failure::Failure, job::resolved::Duplicates};

/// Records of one stretch of the input.
pub(super) struct Piece {
    pub records: Kept,
    pub wide: bool,
    /// Which thread's places and codes they hold.
    pub thread: usize,
}

/// What the numbers in the records of a thread stand for.
pub(super) struct Dictionary {
    /// Index of each place.
    pub rows: Vec<u32>,
    pub columns: Vec<u32>,
    /// Value of each code.
    pub values: Vec<f64>,
}

/// A run of rows sorted at once.
#[derive(Debug)]
pub(super) struct Bucket {
    pub rows: Range<usize>,
    pub nnz: u64,
    /// Rows of each block.
    pub blocks: Vec<Range<usize>>,
}

/// Cuts the rows into blocks and those into buckets.
fn buckets(counts: &[u64]) -> Vec<Bucket> {
    let mut all: Vec<Bucket> = Vec::new();
    let mut cutter = Cutter::of(counts.iter().sum());
    let (mut start, mut nnz) = (0, 0);
    let mut close = |rows: Range<usize>, nnz: u64| match all.last_mut() {
        Some(bucket) if bucket.nnz + nnz <= BLOCK_NNZ => {
            bucket.rows.end = rows.end;
            bucket.nnz += nnz;
            bucket.blocks.push(rows);
        }
        _ => all.push(Bucket {
            rows: rows.clone(),
            nnz,
            blocks: vec![rows],
        }),
    };
    for (row, &count) in counts.iter().enumerate() {
        if cutter.cuts_before(count) {
            close(start..row, nnz);
            (start, nnz) = (row, 0);
        }
        nnz += count;
    }
    if start < counts.len() {
        close(start..counts.len(), nnz);
    }
    all
}

/// How values stand in the records that were partitioned.
pub(super) struct Values {
    /// Codes of this table, ascending; `None`: values themselves.
    pub table: Option<Vec<f64>>,
    pub encoding: Encoding,
}

impl Values {
    pub fn new(facts: &ValueFacts, columns: u64) -> Self {
        Self {
            table: facts.distinct.clone(),
            encoding: Encoding::choose(facts.distinct.as_deref(), facts.single, columns),
        }
    }

    fn wide(&self) -> bool {
        self.table.is_none()
    }
}

/// Lines of each column, counted when it turns out that columns become rows.
pub(super) fn count_columns(
    bench: &Bench<'_>,
    pieces: &[Piece],
    dictionaries: &[Dictionary],
    columns: usize,
    tick: &mut dyn FnMut(),
) -> Result<Vec<u64>, Failure> {
    let counts: Vec<AtomicU64> = (0..columns).map(|_| AtomicU64::new(0)).collect();
    parallel::each(
        vec![Vec::new(); bench.threads],
        pieces.len(),
        bench.stop,
        tick,
        |buffer, number, _| {
            let piece = &pieces[number];
            let index_of = &dictionaries[piece.thread].columns;
            let records = bench
                .spill
                .part(&piece.records, 0..piece.records.len(), buffer)?;
            for record in records.chunks_exact(spill::width(piece.wide)) {
                let (_, column) = spill::ids(record);
                counts[index_of[column as usize] as usize].fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        },
    )?;
    Ok(counts.into_iter().map(AtomicU64::into_inner).collect())
}

/// How a matrix is laid out: follows from the lengths of its rows and its values.
pub(super) struct Layout {
    pub buckets: Vec<Bucket>,
    /// Entries of each row.
    pub counts: Vec<u64>,
    pub columns: usize,
    pub values: Values,
}

impl Layout {
    pub fn new(counts: Vec<u64>, columns: usize, facts: &ValueFacts) -> Self {
        Self {
            buckets: buckets(&counts),
            counts,
            columns,
            values: Values::new(facts, columns as u64),
        }
    }
}

/// Records sorted by bucket.
pub(super) struct Partitioned {
    records: Vec<Kept>,
    /// Of each bucket: piece, and its bytes there.
    parts: Vec<Vec<(u32, Range<usize>)>>,
}

/// What the steps work with.
pub(super) struct Bench<'a> {
    pub spill: &'a Spill,
    pub threads: usize,
    pub stop: &'a AtomicBool,
}

/// Sorts every piece by bucket, and gives its records the numbers that hold for the whole matrix: row within the bucket,
/// column, code of the common table.
pub(super) fn partition(
    bench: &Bench<'_>,
    pieces: Vec<Piece>,
    dictionaries: &[Dictionary],
    transpose: bool,
    layout: &Layout,
    tick: &mut dyn FnMut(),
) -> Result<Partitioned, Failure> {
    let Layout {
        buckets, values, ..
    } = layout;
    let maps: Vec<Map> = dictionaries
        .iter()
        .map(|d| Map::new(d, transpose, buckets, values))
        .collect();
    let pieces: Vec<Mutex<Option<Piece>>> =
        pieces.into_iter().map(|p| Mutex::new(Some(p))).collect();
    let scratch: Vec<_> = (0..bench.threads)
        .map(|_| Sorting {
            buffer: Vec::new(),
            out: Vec::new(),
            places: Vec::new(),
            starts: vec![0; buckets.len()],
        })
        .collect();
    let done = parallel::each(
        scratch,
        pieces.len(),
        bench.stop,
        tick,
        |scratch: &mut Sorting, number, _| {
            let piece = pieces[number]
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
                .expect("a piece is taken once");
            let len = piece.records.len();
            let mut buffer = std::mem::take(&mut scratch.buffer);
            let records = bench.spill.part(&piece.records, 0..len, &mut buffer)?;
            let map = &maps[piece.thread];
            let parts = map.sort(records, piece.wide, transpose, values, scratch);
            scratch.buffer = buffer;
            let records = bench.spill.replace(piece.records, &scratch.out)?;
            Ok((records, parts))
        },
    )?;
    let mut result = Partitioned {
        records: Vec::with_capacity(done.len()),
        parts: vec![Vec::new(); buckets.len()],
    };
    for (number, (records, parts)) in done.into_iter().enumerate() {
        result.records.push(records);
        for (bucket, range) in parts {
            result.parts[bucket as usize].push((number as u32, range));
        }
    }
    Ok(result)
}

/// Memory of one thread that sorts pieces.
struct Sorting {
    buffer: Vec<u8>,
    out: Vec<u8>,
    /// Of each record.
    places: Vec<u64>,
    /// Of each bucket in `out`.
    starts: Vec<u32>,
}

/// Bucket and row within it, of each place of a thread.
struct Map<'a> {
    places: Vec<u64>,
    columns: &'a [u32],
    /// Common code of each code.
    codes: Vec<u8>,
    values: &'a [f64],
}

impl<'a> Map<'a> {
    fn new(
        dictionary: &'a Dictionary,
        transpose: bool,
        buckets: &[Bucket],
        values: &Values,
    ) -> Self {
        let (rows, columns) = if transpose {
            (&dictionary.columns, &dictionary.rows)
        } else {
            (&dictionary.rows, &dictionary.columns)
        };
        let places = rows
            .iter()
            .map(|&row| {
                let bucket = buckets.partition_point(|b| b.rows.end <= row as usize);
                let within = row as usize - buckets[bucket].rows.start;
                (bucket as u64) << 32 | within as u64
            })
            .collect();
        let codes = values.table.as_ref().map_or_else(Vec::new, |table| {
            dictionary
                .values
                .iter()
                .map(|v| table.partition_point(|t| t < v) as u8)
                .collect()
        });
        Self {
            places,
            columns,
            codes,
            values: &dictionary.values,
        }
    }

    fn sort(
        &self,
        records: &[u8],
        wide: bool,
        transpose: bool,
        values: &Values,
        scratch: &mut Sorting,
    ) -> Vec<(u32, Range<usize>)> {
        let Sorting {
            out,
            places,
            starts,
            ..
        } = scratch;
        let from = spill::width(wide);
        let to = spill::width(values.wide());
        let ids = |record: &[u8]| {
            let (row, column) = spill::ids(record);
            if transpose {
                (column, row)
            } else {
                (row, column)
            }
        };
        starts.fill(0);
        places.clear();
        places.extend(records.chunks_exact(from).map(|record| {
            let (row, _) = ids(record);
            self.places[row as usize]
        }));
        for place in &*places {
            starts[(place >> 32) as usize] += 1;
        }
        let mut parts = Vec::new();
        let mut sum = 0;
        for (bucket, start) in starts.iter_mut().enumerate() {
            let count = *start;
            *start = sum;
            sum += count;
            if count > 0 {
                let range = *start as usize * to..sum as usize * to;
                parts.push((bucket as u32, range));
            }
        }
        out.resize(sum as usize * to, 0);
        for (record, &place) in records.chunks_exact(from).zip(&*places) {
            let (_, column) = ids(record);
            let next = &mut starts[(place >> 32) as usize];
            let at = *next as usize * to;
            *next += 1;
            let pair = spill::pair(place as u32, self.columns[column as usize]);
            let slot = &mut out[at..at + to];
            slot[..8].copy_from_slice(&pair.to_le_bytes());
            match &values.table {
                Some(table) => {
                    slot[8] = if wide {
                        let value = spill::wide_value(record);
                        table.partition_point(|&t| t < value) as u8
                    } else {
                        self.codes[record[8] as usize]
                    };
                }
                None => {
                    let value = if wide {
                        spill::wide_value(record)
                    } else {
                        self.values[record[8] as usize]
                    };
                    slot[8..].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        parts
    }
}

/// Memory of one thread that sorts buckets.
#[derive(Default)]
pub(super) struct Scratch {
    buffer: Vec<u8>,
    row_start: Vec<usize>,
    next: Vec<usize>,
    /// Column, and code or place of the value.
    keys: Vec<u64>,
    /// Values in the order of lines.
    arrived: Vec<f64>,
    columns: Vec<u32>,
    codes: Vec<u8>,
    values: Vec<f64>,
}

/// Two entries of the same row and column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Twins {
    pub row: usize,
    pub column: u32,
}

impl Scratch {
    /// Gathers a bucket: `keys` by row, in the order of lines within a row. With `stable`, or when records hold values,
    /// the low half of a key is the place in `arrived`; otherwise its low byte is the code.
    fn gather(
        &mut self,
        spill: &Spill,
        partitioned: &Partitioned,
        number: usize,
        layout: &Layout,
        stable: bool,
    ) -> Result<(), Failure> {
        let bucket = &layout.buckets[number];
        let values = &layout.values;
        self.row_start.clear();
        self.row_start.push(0);
        let mut sum = 0;
        for &count in &layout.counts[bucket.rows.clone()] {
            sum += count as usize;
            self.row_start.push(sum);
        }
        self.next.clear();
        self.next
            .extend_from_slice(&self.row_start[..bucket.rows.len()]);
        self.keys.resize(sum, 0);
        self.arrived.clear();
        let width = spill::width(values.wide());
        for (piece, range) in &partitioned.parts[number] {
            let records = &partitioned.records[*piece as usize];
            let records = spill.part(records, range.clone(), &mut self.buffer)?;
            for record in records.chunks_exact(width) {
                let (row, column) = spill::ids(record);
                let next = &mut self.next[row as usize];
                let low = match &values.table {
                    Some(_) if !stable => u64::from(record[8]),
                    table => {
                        let value = match table {
                            Some(table) => table[record[8] as usize],
                            None => spill::wide_value(record),
                        };
                        self.arrived.push(value);
                        self.arrived.len() as u64 - 1
                    }
                };
                self.keys[*next] = u64::from(column) << 32 | low;
                *next += 1;
            }
        }
        Ok(())
    }

    /// Sorts each row by column; gives the first entries that fall together.
    fn sort_rows(&mut self, first_row: usize) -> Option<Twins> {
        let mut twins = None;
        for (row, bounds) in self.row_start.windows(2).enumerate() {
            let keys = &mut self.keys[bounds[0]..bounds[1]];
            if keys.windows(2).all(|w| w[0] >> 32 < w[1] >> 32) {
                continue;
            }
            keys.sort_unstable();
            if twins.is_none()
                && let Some(w) = keys.windows(2).find(|w| w[0] >> 32 == w[1] >> 32)
            {
                twins = Some(Twins {
                    row: first_row + row,
                    column: (w[0] >> 32) as u32,
                });
            }
        }
        twins
    }

    /// Takes columns and values out of sorted keys.
    fn unpack(&mut self, values: &Values) {
        self.columns.clear();
        self.codes.clear();
        self.values.clear();
        self.columns
            .extend(self.keys.iter().map(|k| (k >> 32) as u32));
        match (&values.table, &values.encoding) {
            (Some(_), Encoding::Coded(_)) => {
                self.codes.extend(self.keys.iter().map(|&k| k as u8));
            }
            (Some(table), Encoding::F32 | Encoding::F64) => {
                self.values
                    .extend(self.keys.iter().map(|&k| table[k as u8 as usize]));
            }
            (None, _) => {
                let arrived = &self.arrived;
                self.values
                    .extend(self.keys.iter().map(|&k| arrived[k as u32 as usize]));
            }
        }
    }

    fn values_of<'a>(&'a self, encoding: &Encoding, range: Range<usize>) -> EntryValues<'a> {
        match encoding {
            Encoding::Coded(_) => EntryValues::Codes(&self.codes[range]),
            Encoding::F32 | Encoding::F64 => EntryValues::Numbers(&self.values[range]),
        }
    }
}

/// Column squares, added by buckets in their order whatever thread sorts them.
struct Squares {
    sums: Mutex<(usize, Vec<f64>)>,
    moved: Condvar,
}

impl Squares {
    fn add(
        &self,
        number: usize,
        signal: &Signal<'_>,
        scratch: &Scratch,
        encoding: &Encoding,
    ) -> Result<(), Failure> {
        let mut turn = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        while turn.0 != number {
            signal.check(number)?;
            turn = self
                .moved
                .wait_timeout(turn, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let sums = &mut turn.1;
        match encoding {
            Encoding::Coded(table) => {
                let mut squares = [0.0; 256];
                for (square, value) in squares.iter_mut().zip(table) {
                    *square = value * value;
                }
                for (&column, &code) in scratch.columns.iter().zip(&scratch.codes) {
                    sums[column as usize] += squares[code as usize];
                }
            }
            Encoding::F32 | Encoding::F64 => {
                for (&column, &value) in scratch.columns.iter().zip(&scratch.values) {
                    sums[column as usize] += value * value;
                }
            }
        }
        turn.0 += 1;
        drop(turn);
        self.moved.notify_all();
        Ok(())
    }
}

/// The blocks of a matrix, or the entries that fall together and must not.
pub(super) enum Built {
    Blocks {
        blocks: Vec<BlockFacts>,
        column_squares: Vec<f64>,
    },
    Twins(Twins),
}

/// Sorts, encodes and writes every bucket.
pub(super) fn build(
    bench: &Bench<'_>,
    staging: &Staging,
    partitioned: &Partitioned,
    layout: &Layout,
    tick: &mut dyn FnMut(usize),
) -> Result<Built, Failure> {
    let Layout {
        buckets,
        columns,
        values,
        ..
    } = layout;
    let columns = *columns;
    let squares = Squares {
        sums: Mutex::new((0, vec![0.0; columns])),
        moved: Condvar::new(),
    };
    let twins: Mutex<Option<(usize, Twins)>> = Mutex::new(None);
    let finished = AtomicUsize::new(0);
    let scratch: Vec<Scratch> = (0..bench.threads).map(|_| Scratch::default()).collect();
    let result = parallel::each(
        scratch,
        buckets.len(),
        bench.stop,
        &mut || tick(finished.load(Ordering::Relaxed)),
        |scratch, number, signal| {
            let bucket = &buckets[number];
            scratch.gather(bench.spill, partitioned, number, layout, false)?;
            signal.check(number)?;
            if let Some(found) = scratch.sort_rows(bucket.rows.start) {
                let mut twins = twins.lock().unwrap_or_else(PoisonError::into_inner);
                if twins.is_none_or(|(n, _)| number < n) {
                    *twins = Some((number, found));
                }
                // Ends the other threads; what it says is not shown.
                return Err(Failure::data("two entries of one row and column"));
            }
            scratch.unpack(values);
            squares.add(number, signal, scratch, &values.encoding)?;
            let mut made = Vec::with_capacity(bucket.blocks.len());
            for rows in &bucket.blocks {
                signal.check(number)?;
                made.push(write_block(
                    staging,
                    scratch,
                    rows.start - bucket.rows.start..rows.end - bucket.rows.start,
                    rows.start,
                    columns,
                    &values.encoding,
                )?);
            }
            finished.fetch_add(1, Ordering::Relaxed);
            Ok(made)
        },
    );
    let twins = twins.into_inner().unwrap_or_else(PoisonError::into_inner);
    match (result, twins) {
        (Ok(blocks), _) => Ok(Built::Blocks {
            blocks: blocks.into_iter().flatten().collect(),
            column_squares: squares
                .sums
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner)
                .1,
        }),
        (Err(failure), Some((_, twins))) if failure.code == crate::failure::ExitCode::Data => {
            Ok(Built::Twins(twins))
        }
        (Err(failure), _) => Err(failure),
    }
}

fn write_block(
    staging: &Staging,
    scratch: &Scratch,
    rows: Range<usize>,
    first_row: usize,
    columns: usize,
    encoding: &Encoding,
) -> Result<BlockFacts, Failure> {
    let range = scratch.row_start[rows.start]..scratch.row_start[rows.end];
    let row_start: Vec<usize> = scratch.row_start[rows.start..=rows.end]
        .iter()
        .map(|s| s - range.start)
        .collect();
    let bytes = encode::encode_entries(
        encoding,
        first_row as u64,
        columns as u64,
        &row_start,
        &scratch.columns[range.clone()],
        scratch.values_of(encoding, range.clone()),
    )
    .map_err(|e| match e {
        WorkError::OutOfMemory { .. } => Failure::resources(format!("making a block: {e}")),
        e => Failure::bug(format!("making a block: {e}")),
    })?;
    let hash = ContentHash::of(bytes.as_slice());
    let path = staging.block_path(&hash);
    std::fs::write(&path, bytes.as_slice()).map_err(|e| problem::writing(&path, &e))?;
    Ok(BlockFacts {
        hash,
        first_row: first_row as u64,
        rows: rows.len() as u32,
        nnz: range.len() as u64,
        bytes: bytes.len() as u64,
    })
}

/// Records without twins, which stand by their final rows and columns.
pub(super) struct Resolved {
    pub pieces: Vec<Piece>,
    pub counts: Vec<u64>,
    pub facts: ValueFacts,
}

/// Makes one entry of those that fall together. A pass of its own, for such inputs alone: it changes the lengths of rows
/// and so the cuts between blocks.
pub(super) fn resolve(
    bench: &Bench<'_>,
    partitioned: Partitioned,
    layout: &Layout,
    duplicates: Duplicates,
    tick: &mut dyn FnMut(),
) -> Result<Resolved, Failure> {
    let buckets = &layout.buckets;
    let scratch: Vec<_> = (0..bench.threads)
        .map(|_| (Scratch::default(), Vec::new()))
        .collect();
    let done = parallel::each(
        scratch,
        buckets.len(),
        bench.stop,
        tick,
        |(scratch, out), number, signal| {
            let bucket = &buckets[number];
            scratch.gather(bench.spill, &partitioned, number, layout, true)?;
            signal.check(number)?;
            scratch.sort_rows(bucket.rows.start);
            out.clear();
            let mut new_counts = Vec::with_capacity(bucket.rows.len());
            let mut facts = super::values::ValueTable::new();
            for (row, bounds) in scratch.row_start.windows(2).enumerate() {
                let mut count = 0;
                for same in scratch.keys[bounds[0]..bounds[1]].chunk_by(|a, b| a >> 32 == b >> 32) {
                    let arrived = |key: &u64| scratch.arrived[*key as u32 as usize];
                    let sum = || same.iter().map(arrived).sum::<f64>();
                    let value = match (same, duplicates) {
                        ([one], _) => arrived(one),
                        (_, Duplicates::Last | Duplicates::Error) => {
                            arrived(same.last().expect("a group is never empty"))
                        }
                        (_, Duplicates::Sum) => sum(),
                        (_, Duplicates::Mean) => sum() / same.len() as f64,
                    };
                    if !value.is_finite() {
                        return Err(Failure::data(
                            "the sum of the entries of one row and column is too large",
                        ));
                    }
                    let value = value + 0.0;
                    facts.code(value);
                    let row = (bucket.rows.start + row) as u32;
                    spill::put_wide(out, row, (same[0] >> 32) as u32, value);
                    count += 1;
                }
                new_counts.push(count);
            }
            Ok((bench.spill.keep(out)?, new_counts, facts.facts()))
        },
    )?;
    for records in partitioned.records {
        bench.spill.forget(records);
    }
    let mut resolved = Resolved {
        pieces: Vec::new(),
        counts: Vec::with_capacity(layout.counts.len()),
        facts: ValueFacts::none(),
    };
    for (records, counts, facts) in done {
        resolved.pieces.push(Piece {
            records,
            wide: true,
            thread: 0,
        });
        resolved.counts.extend(counts);
        resolved.facts = resolved.facts.join(facts);
    }
    Ok(resolved)
}
