//! A matrix that a program has in memory, as blocks: the library's way in.

use std::collections::{BTreeSet, HashMap};

use shared::{
    farm::{bytes::Bytes, ids::ContentHash, work::WorkError},
    matrix::{
        block::CODES,
        encode::{Encoding, encode},
        facts::{BlockFacts, Cutter, MatrixFacts},
    },
};
use sprs::CsMatView;

use crate::failure::Failure;

/// Blocks kept in memory, by name.
pub type MemoryBlocks = HashMap<ContentHash, Bytes>;

/// Cuts a matrix in row-compressed storage into blocks. Stored zeros stay stored; a value that is not finite is an
/// error that names its place.
pub fn blocks_of(matrix: CsMatView<'_, f64>) -> Result<(MatrixFacts, MemoryBlocks), Failure> {
    assert!(
        matrix.is_csr(),
        "rows must be compressed: call to_csr() first"
    );
    let (rows, columns) = matrix.shape();
    if rows == 0 || columns == 0 {
        return Err(Failure::data(format!(
            "the matrix is {rows} x {columns}: empty"
        )));
    }
    let mut distinct: Option<BTreeSet<u64>> = Some(BTreeSet::new());
    let (mut single, mut max_abs) = (true, 0.0f64);
    for (r, row) in matrix.outer_iterator().enumerate() {
        for (c, &value) in row.iter() {
            if !value.is_finite() {
                return Err(Failure::data(format!(
                    "row {r}, column {c}: {value} is not a finite number"
                )));
            }
            single &= f64::from(value as f32).to_bits() == value.to_bits();
            max_abs = max_abs.max(value.abs());
            if let Some(values) = &mut distinct {
                values.insert(value.to_bits());
                if values.len() > CODES {
                    distinct = None;
                }
            }
        }
    }
    let distinct = distinct.map(|bits| {
        let mut values: Vec<f64> = bits.into_iter().map(f64::from_bits).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values
    });
    let encoding = Encoding::choose(distinct.as_deref(), single, columns as u64);

    let mut facts = MatrixFacts {
        rows: rows as u64,
        columns: columns as u64,
        nnz: matrix.nnz() as u64,
        blocks: Vec::new(),
        encoding,
        max_abs,
        column_squares: vec![0.0; columns],
        view: None,
    };
    let mut blocks = MemoryBlocks::default();
    let mut cutter = Cutter::of(matrix.nnz() as u64);
    let mut open = Open::default();
    for (r, row) in matrix.outer_iterator().enumerate() {
        if cutter.cuts_before(row.nnz() as u64) {
            open.close(&mut facts, &mut blocks).map_err(out_of_memory)?;
            open.first_row = r as u64;
        }
        for (c, &value) in row.iter() {
            facts.column_squares[c] += value * value;
            open.columns.push(c as u32);
            open.values.push(value);
        }
        open.row_start.push(open.columns.len());
    }
    open.close(&mut facts, &mut blocks).map_err(out_of_memory)?;
    Ok((facts, blocks))
}

fn out_of_memory(why: WorkError) -> Failure {
    Failure::resources(format!("cannot hold the matrix as blocks: {why}"))
}

/// The block that is being filled.
struct Open {
    first_row: u64,
    row_start: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f64>,
}

impl Default for Open {
    fn default() -> Self {
        Self {
            first_row: 0,
            row_start: vec![0],
            columns: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl Open {
    fn close(
        &mut self,
        facts: &mut MatrixFacts,
        blocks: &mut MemoryBlocks,
    ) -> Result<(), WorkError> {
        let done = std::mem::take(self);
        let bytes = encode(
            &facts.encoding,
            done.first_row,
            facts.columns,
            &done.row_start,
            &done.columns,
            &done.values,
        )?;
        let hash = ContentHash::of(bytes.as_slice());
        facts.blocks.push(BlockFacts {
            hash,
            first_row: done.first_row,
            rows: (done.row_start.len() - 1) as u32,
            nnz: done.values.len() as u64,
            bytes: bytes.len() as u64,
        });
        blocks.insert(hash, bytes);
        Ok(())
    }
}
