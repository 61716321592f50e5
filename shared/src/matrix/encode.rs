//! From rows to [blocks](super::block).

use super::block::{
    CODE_BITS, CODED_COLUMNS_MAX, CODES, DIRECTORY_AT, Header, MAGIC, TABLE_AT, TILE_ROWS,
    TileEntry, VERSION, ValueKind,
};
use crate::farm::{
    bytes::{Bytes, BytesMut},
    work::WorkError,
};

/// Values of a matrix as blocks store them, chosen once for the whole matrix.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub enum Encoding {
    /// At most 16 different values, ascending.
    Coded(Vec<f64>),
    F32,
    F64,
}

impl Encoding {
    /// The smallest encoding that loses nothing. `distinct` are the different values if they are few, ascending;
    /// `single` says whether every value is an `f32` exactly.
    pub fn choose(distinct: Option<&[f64]>, single: bool, columns: u64) -> Self {
        match distinct {
            Some(values) if values.len() <= CODES && columns < CODED_COLUMNS_MAX => {
                Self::Coded(values.to_vec())
            }
            _ if single => Self::F32,
            _ => Self::F64,
        }
    }

    pub fn kind(&self) -> ValueKind {
        match self {
            Self::Coded(_) => ValueKind::Coded,
            Self::F32 => ValueKind::F32,
            Self::F64 => ValueKind::F64,
        }
    }
}

/// Values of entries, as the caller has them.
#[derive(Clone, Copy, Debug)]
pub enum EntryValues<'a> {
    /// Places in the table of [`Encoding::Coded`].
    Codes(&'a [u8]),
    Numbers(&'a [f64]),
}

impl EntryValues<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Codes(codes) => codes.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }
}

/// Encodes consecutive rows as one block, values given as numbers: see [`encode_entries`].
pub fn encode(
    encoding: &Encoding,
    first_row: u64,
    columns: u64,
    row_start: &[usize],
    columns_of: &[u32],
    values: &[f64],
) -> Result<Bytes, WorkError> {
    encode_entries(
        encoding,
        first_row,
        columns,
        row_start,
        columns_of,
        EntryValues::Numbers(values),
    )
}

/// Encodes consecutive rows as one block.
///
/// `row_start` has one offset more than there are rows (at least one row); `columns_of` are the columns, ascending within
/// each row and below `columns`; `values` lie beside them. With [`Encoding::Coded`] every value stands in the table;
/// codes want that encoding.
/// Panics when these do not hold.
///
/// Cost: a counting sort by column within each tile; where a tile is thin beside the number of columns, a sort.
pub fn encode_entries(
    encoding: &Encoding,
    first_row: u64,
    columns: u64,
    row_start: &[usize],
    columns_of: &[u32],
    values: EntryValues<'_>,
) -> Result<Bytes, WorkError> {
    let rows = row_start.len() - 1;
    let nnz = row_start[rows] - row_start[0];
    assert!(rows > 0 && columns_of.len() == values.len() && nnz == values.len());
    assert_eq!(row_start[0], 0);
    let kind = encoding.kind();
    let width = kind.value_bytes();
    let numbers_as_codes;
    let values = match (encoding, values) {
        (Encoding::Coded(table), EntryValues::Codes(codes)) => {
            let max = codes.iter().copied().max().unwrap_or(0) as usize;
            assert!(table.len() <= CODES && (nnz == 0 || max < table.len()));
            values
        }
        (Encoding::Coded(_), EntryValues::Numbers(numbers)) => {
            numbers_as_codes = codes_of(encoding, numbers);
            EntryValues::Codes(&numbers_as_codes)
        }
        (Encoding::F32 | Encoding::F64, EntryValues::Numbers(_)) => values,
        (Encoding::F32 | Encoding::F64, EntryValues::Codes(_)) => {
            panic!("codes are for the coded encoding, not {encoding:?}")
        }
    };

    // Where everything goes; the number of touched columns needs a look at each tile.
    let tiles = rows.div_ceil(TILE_ROWS as usize);
    let mut by_column = ByColumn::new(columns);
    let mut items_of_tiles = Vec::with_capacity(tiles);
    let mut end = align(DIRECTORY_AT + tiles * size_of::<TileEntry>());
    let mut place = |bytes: usize| {
        let at = end;
        end = align(end + bytes);
        at as u64
    };
    let mut directory = Vec::with_capacity(tiles);
    for t in 0..tiles {
        let first = t * TILE_ROWS as usize;
        let last = rows.min(first + TILE_ROWS as usize);
        let range = row_start[first]..row_start[last];
        let n = range.len();
        let items = by_column.items(&columns_of[range]);
        let touched = items.columns.len();
        directory.push(TileEntry {
            first_row: first as u32,
            rows: (last - first) as u32,
            nnz: n as u32,
            touched: touched as u32,
            row_start: place(4 * (last - first + 1)),
            by_row: place(4 * n),
            row_values: place(width * n),
            items: place(4 * touched),
            item_start: place(4 * (touched + 1)),
            by_item: place(2 * n),
            item_values: place(width * n),
        });
        items_of_tiles.push(items);
    }

    let mut out = BytesMut::zeroed(end)?;
    let bytes = out.as_bytes_mut();
    if let Encoding::Coded(table) = encoding {
        put(bytes, TABLE_AT as u64, table);
    }
    put(bytes, DIRECTORY_AT as u64, &directory);
    let mut by_row: Vec<u32> = Vec::new();
    let mut by_item: Vec<u16> = Vec::new();
    let mut by_item_values: Vec<f64> = Vec::new();
    for (tile, items) in directory.iter().zip(&items_of_tiles) {
        let first = tile.first_row as usize;
        let rows_of_tile = first..first + tile.rows as usize;
        let starts = &row_start[first..=rows_of_tile.end];
        let base = starts[0];
        let range = base..starts[starts.len() - 1];
        let offsets: Vec<u32> = starts.iter().map(|&s| (s - base) as u32).collect();
        put(bytes, tile.row_start, &offsets);

        let columns_of = &columns_of[range.clone()];
        by_item.clear();
        by_item.resize(range.len(), 0);
        match values {
            EntryValues::Codes(codes) => {
                let codes = &codes[range.clone()];
                by_row.clear();
                by_row.extend(
                    columns_of
                        .iter()
                        .zip(codes)
                        .map(|(&column, &code)| column << CODE_BITS | u32::from(code)),
                );
                put(bytes, tile.by_row, &by_row);
                by_column.scatter(items, &offsets, columns_of, |k, row, at| {
                    by_item[at] = row << CODE_BITS | u16::from(codes[k]);
                });
            }
            EntryValues::Numbers(numbers) => {
                let numbers = &numbers[range.clone()];
                put(bytes, tile.by_row, columns_of);
                by_item_values.clear();
                by_item_values.resize(range.len(), 0.0);
                by_column.scatter(items, &offsets, columns_of, |k, row, at| {
                    by_item[at] = row;
                    by_item_values[at] = numbers[k];
                });
                if kind == ValueKind::F32 {
                    put_f32(bytes, tile.row_values, numbers);
                    put_f32(bytes, tile.item_values, &by_item_values);
                } else {
                    put(bytes, tile.row_values, numbers);
                    put(bytes, tile.item_values, &by_item_values);
                }
            }
        }
        put(bytes, tile.items, &items.columns);
        put(bytes, tile.item_start, &items.starts);
        put(bytes, tile.by_item, &by_item);
    }
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        kind: kind.tag(),
        first_row,
        columns,
        nnz: nnz as u64,
        total_len: end as u64,
        checksum: xxhash_rust::xxh3::xxh3_64(&bytes[size_of::<Header>()..]),
        rows: rows as u32,
        tiles: tiles as u32,
    };
    put(bytes, 0, &[header]);
    Ok(out.freeze())
}

/// Columns with an entry in a tile, ascending, and where each one's run starts (with the end).
struct Items {
    columns: Vec<u32>,
    starts: Vec<u32>,
}

/// Sorts entries of tiles by column.
struct ByColumn {
    columns: usize,
    /// One counter a column, all zero between uses; empty until a tile is dense enough.
    counters: Vec<u32>,
    sorted: Vec<u32>,
}

impl ByColumn {
    fn new(columns: u64) -> Self {
        Self {
            columns: columns as usize,
            counters: Vec::new(),
            sorted: Vec::new(),
        }
    }

    /// Whether looking at every column once costs less than sorting so many entries.
    fn is_dense(&self, entries: usize) -> bool {
        self.columns <= 4 * entries
    }

    fn items(&mut self, columns_of: &[u32]) -> Items {
        let mut items = Items {
            columns: Vec::new(),
            starts: Vec::new(),
        };
        if self.is_dense(columns_of.len()) {
            self.counters.resize(self.columns, 0);
            for &column in columns_of {
                self.counters[column as usize] += 1;
            }
            let mut sum = 0;
            for (column, count) in self.counters.iter_mut().enumerate() {
                if *count > 0 {
                    items.columns.push(column as u32);
                    items.starts.push(sum);
                    sum += *count;
                    *count = 0;
                }
            }
        } else {
            self.sorted.clear();
            self.sorted.extend_from_slice(columns_of);
            self.sorted.sort_unstable();
            for (k, &column) in self.sorted.iter().enumerate() {
                if items.columns.last() != Some(&column) {
                    items.columns.push(column);
                    items.starts.push(k as u32);
                }
            }
        }
        items.starts.push(columns_of.len() as u32);
        items
    }

    /// Calls `take` with each entry, its row, and its place by column.
    fn scatter(
        &mut self,
        items: &Items,
        offsets: &[u32],
        columns_of: &[u32],
        mut take: impl FnMut(usize, u16, usize),
    ) {
        if self.is_dense(columns_of.len()) {
            for (&column, &start) in items.columns.iter().zip(&items.starts) {
                self.counters[column as usize] = start;
            }
            for (row, bounds) in offsets.windows(2).enumerate() {
                let range = bounds[0] as usize..bounds[1] as usize;
                for (k, &column) in range.clone().zip(&columns_of[range]) {
                    let next = &mut self.counters[column as usize];
                    take(k, row as u16, *next as usize);
                    *next += 1;
                }
            }
            for &column in &items.columns {
                self.counters[column as usize] = 0;
            }
        } else {
            let mut next = items.starts.clone();
            for (row, bounds) in offsets.windows(2).enumerate() {
                // Columns ascend within a row and so do items: search only onwards.
                let mut from = 0;
                let range = bounds[0] as usize..bounds[1] as usize;
                for (k, &column) in range.clone().zip(&columns_of[range]) {
                    from += gallop(&items.columns[from..], column);
                    take(k, row as u16, next[from] as usize);
                    next[from] += 1;
                }
            }
        }
    }
}

fn align(at: usize) -> usize {
    at.next_multiple_of(64)
}

fn put<T: bytemuck::Pod>(bytes: &mut [u8], at: u64, numbers: &[T]) {
    let raw: &[u8] = bytemuck::cast_slice(numbers);
    bytes[at as usize..at as usize + raw.len()].copy_from_slice(raw);
}

fn put_f32(bytes: &mut [u8], at: u64, values: &[f64]) {
    let at = at as usize;
    let out: &mut [f32] = bytemuck::cast_slice_mut(&mut bytes[at..at + 4 * values.len()]);
    for (to, &from) in out.iter_mut().zip(values) {
        *to = from as f32;
    }
}

/// Place of `wanted`, which is there, in an ascending list: steps that double, then halves.
fn gallop(sorted: &[u32], wanted: u32) -> usize {
    let mut step = 1;
    while step < sorted.len() && sorted[step] <= wanted {
        step *= 2;
    }
    let low = step / 2;
    let high = sorted.len().min(step + 1);
    low + sorted[low..high].partition_point(|&c| c < wanted)
}

/// Codes of values, each of which stands in the table.
fn codes_of(encoding: &Encoding, numbers: &[f64]) -> Vec<u8> {
    let Encoding::Coded(table) = encoding else {
        unreachable!("asked for the coded encoding only")
    };
    assert!(table.len() <= CODES && table.is_sorted());
    let code = |value: &f64| {
        let at = table.partition_point(|v| v < value);
        assert!(
            table.get(at) == Some(value),
            "value {value} is not in the table of codes {table:?}"
        );
        at as u8
    };
    numbers.iter().map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::block::{BlockError, RowBlock, verify};

    fn sample(rows: usize, columns: u32, seed: u64) -> (Vec<usize>, Vec<u32>, Vec<f64>) {
        let mut state = seed;
        let mut random = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(99991);
            (state >> 33) as u32
        };
        let (mut start, mut cols, mut values) = (vec![0], Vec::new(), Vec::new());
        for _ in 0..rows {
            let mut row: Vec<u32> = (0..random() % 9).map(|_| random() % columns).collect();
            row.sort_unstable();
            row.dedup();
            for c in row {
                cols.push(c);
                values.push(f64::from(random() % 10) / 2.0);
            }
            start.push(cols.len());
        }
        (start, cols, values)
    }

    #[test]
    fn what_goes_in_comes_out_in_both_orders() {
        for (rows, columns) in [(1, 1), (5, 3), (2048, 50), (2049, 7), (5000, 100_000)] {
            let (start, cols, values) = sample(rows, columns, u64::from(columns));
            let mut table: Vec<f64> = (0..10).map(|v| f64::from(v) / 2.0).collect();
            table.truncate(10);
            for encoding in [Encoding::Coded(table.clone()), Encoding::F32, Encoding::F64] {
                let bytes =
                    encode(&encoding, 77, u64::from(columns), &start, &cols, &values).unwrap();
                verify(bytes.as_slice()).unwrap();
                let block = RowBlock::parse(bytes).unwrap();
                assert_eq!((block.first_row(), block.rows()), (77, rows));
                let expected: Vec<(usize, usize, f64)> = (0..rows)
                    .flat_map(|r| (start[r]..start[r + 1]).map(move |k| (r, k)))
                    .map(|(r, k)| (r, cols[k] as usize, values[k]))
                    .collect();
                assert_eq!(block.entries().collect::<Vec<_>>(), expected);
                let mut by_item = Vec::new();
                for tile in block.tiles() {
                    for (i, &item) in tile.items.iter().enumerate() {
                        for k in tile.item_start[i] as usize..tile.item_start[i + 1] as usize {
                            let e = tile.by_item[k];
                            let (row, value) = match tile.item_values {
                                crate::matrix::block::Values::Coded(t) => {
                                    (e >> CODE_BITS, t[e as usize % CODES])
                                }
                                crate::matrix::block::Values::F32(v) => (e, f64::from(v[k])),
                                crate::matrix::block::Values::F64(v) => (e, v[k]),
                            };
                            by_item.push((tile.first_row + row as usize, item as usize, value));
                        }
                    }
                }
                by_item.sort_by_key(|&(r, c, _)| (r, c));
                assert_eq!(by_item, expected);
            }
        }
    }

    #[test]
    fn damage_is_noticed() {
        let (start, cols, values) = sample(100, 40, 1);
        let bytes = encode(&Encoding::F64, 0, 40, &start, &cols, &values).unwrap();
        for at in [64, 200, bytes.len() - 1] {
            let mut bad = bytes.as_slice().to_vec();
            bad[at] ^= 1;
            assert_eq!(verify(&bad), Err(BlockError::Checksum));
        }
        let short = &bytes.as_slice()[..bytes.len() - 64];
        assert!(matches!(verify(short), Err(BlockError::Length { .. })));
        assert_eq!(verify(b"hello"), Err(BlockError::NotABlock));
    }
}
