//! Row blocks: a run of consecutive rows of a sparse matrix, in the two orders that the fused kernel reads.
//!
//! A block is cut into *tiles* of at most [`TILE_ROWS`] rows. A tile holds its entries twice: row by row (CSR, for
//! Y = A X) and column by column (for Z += A^T Y: each row of Z is then touched once a tile, and the rows of Y that are
//! read sit in cache).
//!
//! When the whole matrix has at most 16 different values (star ratings), an entry is one integer with a 4-bit code of
//! its value: 4 bytes by row and 2 by column. Otherwise values stand in arrays of their own, beside each order.
//!
//! Layout, little-endian, every section on a 64-byte boundary: [`Header`], 16 values of the codes (f64), the tile
//! directory ([`TileEntry`] each), then per tile `row_start` (u32, rows + 1), `by_row` (u32, nnz), `row_values`,
//! `items` (u32, touched columns ascending), `item_start` (u32, touched + 1), `by_item` (u16, nnz), `item_values`.

use bytemuck::{Pod, Zeroable};

use crate::farm::bytes::Bytes;

pub const MAGIC: [u8; 8] = *b"SVDBLOCK";
/// Grows when the layout changes; a block of another version is made again.
pub const VERSION: u32 = 1;
/// Rows of a tile. More rows mean fewer visits to each row of Z, fewer that Y of a tile stays near: 4096 measured best.
pub const TILE_ROWS: u32 = 4096;
/// A coded entry by item is a `u16`: 12 bits of row and 4 of code.
pub const TILE_ROWS_MAX: u32 = 4096;
/// Bits of a value code.
pub const CODE_BITS: u32 = 4;
/// Different values that codes can tell apart.
pub const CODES: usize = 1 << CODE_BITS;
/// A coded entry by row is a `u32`: 28 bits of column and 4 of code.
pub const CODED_COLUMNS_MAX: u64 = 1 << (32 - CODE_BITS);

/// How a block stores its values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum ValueKind {
    /// A table of at most 16 values, and 4-bit codes.
    Coded,
    F32,
    F64,
}

impl ValueKind {
    pub(crate) fn tag(self) -> u32 {
        match self {
            Self::Coded => 0,
            Self::F32 => 1,
            Self::F64 => 2,
        }
    }

    /// Bytes of a value in arrays of their own.
    pub fn value_bytes(self) -> usize {
        match self {
            Self::Coded => 0,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct Header {
    pub magic: [u8; 8],
    pub version: u32,
    pub kind: u32,
    pub first_row: u64,
    pub columns: u64,
    pub nnz: u64,
    pub total_len: u64,
    /// XXH3-64 of all bytes after the header.
    pub checksum: u64,
    pub rows: u32,
    pub tiles: u32,
}

#[derive(Clone, Copy, Pod, Zeroable, Debug)]
#[repr(C)]
pub struct TileEntry {
    /// Within the block.
    pub first_row: u32,
    pub rows: u32,
    pub nnz: u32,
    pub touched: u32,
    /// Offsets from the start of the block.
    pub row_start: u64,
    pub by_row: u64,
    pub row_values: u64,
    pub items: u64,
    pub item_start: u64,
    pub by_item: u64,
    pub item_values: u64,
}

/// What is wrong with the bytes of a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    #[error("not a block of this program")]
    NotABlock,
    #[error("block version {found}, this program reads {VERSION}")]
    Version { found: u32 },
    #[error("block of {found} bytes should have {wanted}")]
    Length { found: u64, wanted: u64 },
    #[error("checksum differs: the block was damaged")]
    Checksum,
    #[error("block is inconsistent: {0}")]
    Inconsistent(&'static str),
}

/// A block, its directory read and checked; the entries themselves are trusted to the checksum, and kernels bound every
/// index that they use.
#[derive(Clone)]
pub struct RowBlock {
    bytes: Bytes,
    header: Header,
    kind: ValueKind,
}

/// Values beside the entries of one order.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Low [`CODE_BITS`] bits of an entry are an index into this table.
    Coded(&'a [f64; CODES]),
    F32(&'a [f32]),
    F64(&'a [f64]),
}

/// One tile, as slices.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// Within the block.
    pub first_row: usize,
    pub rows: usize,
    /// rows + 1 offsets into `by_row`.
    pub row_start: &'a [u32],
    /// Columns (coded: `column << 4 | code`), row by row, ascending within a row.
    pub by_row: &'a [u32],
    pub row_values: Values<'a>,
    /// Columns with an entry in this tile, ascending.
    pub items: &'a [u32],
    /// items + 1 offsets into `by_item`.
    pub item_start: &'a [u32],
    /// Rows within the tile (coded: `row << 4 | code`), column by column, ascending within a column.
    pub by_item: &'a [u16],
    pub item_values: Values<'a>,
}

const HEADER: usize = size_of::<Header>();
const TABLE: usize = CODES * size_of::<f64>();
pub(crate) const TABLE_AT: usize = HEADER;
pub(crate) const DIRECTORY_AT: usize = HEADER + TABLE;
const _: () = assert!(HEADER == 64 && DIRECTORY_AT.is_multiple_of(64));

impl RowBlock {
    /// Reads the directory of a block whose checksum was verified before (see [`verify`]).
    pub fn parse(bytes: Bytes) -> Result<Self, BlockError> {
        let (header, kind) = read_header(bytes.as_slice())?;
        let block = Self {
            bytes,
            header,
            kind,
        };
        block.check_directory()?;
        Ok(block)
    }

    fn check_directory(&self) -> Result<(), BlockError> {
        let len = self.bytes.len() as u64;
        let end =
            DIRECTORY_AT as u64 + u64::from(self.header.tiles) * size_of::<TileEntry>() as u64;
        if end > len {
            return Err(BlockError::Inconsistent("directory beyond the end"));
        }
        let width = self.kind.value_bytes() as u64;
        let (mut rows, mut nnz) = (0u64, 0u64);
        for t in self.directory() {
            let (r, n, k) = (u64::from(t.rows), u64::from(t.nnz), u64::from(t.touched));
            let inside = |at: u64, bytes: u64| {
                at.is_multiple_of(64) && at.checked_add(bytes).is_some_and(|end| end <= len)
            };
            let fits = inside(t.row_start, 4 * (r + 1))
                && inside(t.by_row, 4 * n)
                && inside(t.row_values, width * n)
                && inside(t.items, 4 * k)
                && inside(t.item_start, 4 * (k + 1))
                && inside(t.by_item, 2 * n)
                && inside(t.item_values, width * n);
            if !fits {
                return Err(BlockError::Inconsistent("section beyond the end"));
            }
            if u64::from(t.first_row) != rows || r == 0 || r > u64::from(TILE_ROWS_MAX) {
                return Err(BlockError::Inconsistent("tiles do not follow each other"));
            }
            rows += r;
            nnz += n;
        }
        if rows != u64::from(self.header.rows) || nnz != self.header.nnz {
            return Err(BlockError::Inconsistent("tiles do not add up to the block"));
        }
        for tile in self.tiles() {
            let ends = |offsets: &[u32], n: usize| {
                offsets.first() == Some(&0)
                    && offsets.last() == Some(&(n as u32))
                    && offsets.is_sorted()
            };
            if !ends(tile.row_start, tile.by_row.len())
                || !ends(tile.item_start, tile.by_item.len())
                || tile
                    .items
                    .last()
                    .is_some_and(|&c| u64::from(c) >= self.header.columns)
                || !tile.items.is_sorted()
            {
                return Err(BlockError::Inconsistent("offsets"));
            }
        }
        Ok(())
    }

    fn directory(&self) -> &[TileEntry] {
        let end = DIRECTORY_AT + self.header.tiles as usize * size_of::<TileEntry>();
        bytemuck::cast_slice(&self.bytes.as_slice()[DIRECTORY_AT..end])
    }

    pub fn first_row(&self) -> u64 {
        self.header.first_row
    }

    pub fn rows(&self) -> usize {
        self.header.rows as usize
    }

    pub fn columns(&self) -> usize {
        self.header.columns as usize
    }

    pub fn nnz(&self) -> u64 {
        self.header.nnz
    }

    pub fn kind(&self) -> ValueKind {
        self.kind
    }

    pub fn tiles(&self) -> impl ExactSizeIterator<Item = Tile<'_>> {
        self.directory().iter().map(|t| {
            let nnz = t.nnz as usize;
            Tile {
                first_row: t.first_row as usize,
                rows: t.rows as usize,
                row_start: self.section(t.row_start, t.rows as usize + 1),
                by_row: self.section(t.by_row, nnz),
                row_values: self.values(t.row_values, nnz),
                items: self.section(t.items, t.touched as usize),
                item_start: self.section(t.item_start, t.touched as usize + 1),
                by_item: self.section(t.by_item, nnz),
                item_values: self.values(t.item_values, nnz),
            }
        })
    }

    fn section<T: Pod>(&self, at: u64, count: usize) -> &[T] {
        let at = at as usize;
        bytemuck::cast_slice(&self.bytes.as_slice()[at..at + count * size_of::<T>()])
    }

    fn values(&self, at: u64, count: usize) -> Values<'_> {
        match self.kind {
            ValueKind::Coded => {
                let table: &[[f64; CODES]] =
                    bytemuck::cast_slice(&self.bytes.as_slice()[TABLE_AT..DIRECTORY_AT]);
                Values::Coded(&table[0])
            }
            ValueKind::F32 => Values::F32(self.section(at, count)),
            ValueKind::F64 => Values::F64(self.section(at, count)),
        }
    }

    /// Every stored entry as (row within the block, column, value), row by row: for tests and for readers of blocks that
    /// need no speed.
    pub fn entries(&self) -> impl Iterator<Item = (usize, usize, f64)> {
        self.tiles().flat_map(|tile| {
            (0..tile.rows).flat_map(move |r| {
                let range = tile.row_start[r] as usize..tile.row_start[r + 1] as usize;
                range.map(move |k| {
                    let e = tile.by_row[k];
                    let (column, value) = match tile.row_values {
                        Values::Coded(table) => (e >> CODE_BITS, table[e as usize % CODES]),
                        Values::F32(v) => (e, f64::from(v[k])),
                        Values::F64(v) => (e, v[k]),
                    };
                    (tile.first_row + r, column as usize, value)
                })
            })
        })
    }
}

fn read_header(bytes: &[u8]) -> Result<(Header, ValueKind), BlockError> {
    if bytes.len() < DIRECTORY_AT {
        return Err(BlockError::NotABlock);
    }
    let header: Header = bytemuck::pod_read_unaligned(&bytes[..HEADER]);
    if header.magic != MAGIC {
        return Err(BlockError::NotABlock);
    }
    if header.version != VERSION {
        return Err(BlockError::Version {
            found: header.version,
        });
    }
    if header.total_len != bytes.len() as u64 {
        return Err(BlockError::Length {
            found: bytes.len() as u64,
            wanted: header.total_len,
        });
    }
    let kind = [ValueKind::Coded, ValueKind::F32, ValueKind::F64]
        .into_iter()
        .find(|k| k.tag() == header.kind)
        .ok_or(BlockError::Inconsistent("unknown kind of values"))?;
    Ok((header, kind))
}

/// Checks length, version and checksum: to be called once whenever the bytes come from disk or wire.
pub fn verify(bytes: &[u8]) -> Result<(), BlockError> {
    let (header, _) = read_header(bytes)?;
    if xxhash_rust::xxh3::xxh3_64(&bytes[HEADER..]) != header.checksum {
        return Err(BlockError::Checksum);
    }
    Ok(())
}
