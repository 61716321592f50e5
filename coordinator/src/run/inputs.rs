//! Blocks of the cache as the farm's inputs.

use shared::{
    farm::{bytes::Bytes, ids::ContentHash},
    matrix::{block::RowBlock, facts::MatrixFacts},
};

use crate::{
    cache::{CacheInputs, LoadError},
    farm::{InputError, InputErrorKind, Inputs},
};

pub struct FromCache(pub CacheInputs);

impl Inputs for FromCache {
    fn load(&self, hash: &ContentHash) -> Result<Bytes, InputError> {
        self.0.load(hash).map_err(|why| InputError {
            hash: *hash,
            kind: match why {
                LoadError::Missing(_) => InputErrorKind::Missing,
                LoadError::Damaged { .. } => InputErrorKind::Corrupt,
                LoadError::Unreadable { .. } | LoadError::Memory(_) => InputErrorKind::Io,
            },
            why: why.to_string(),
        })
    }
}

/// Whether reading the input again would help.
pub fn is_cured_by_ingest(why: &InputError) -> bool {
    match why.kind {
        InputErrorKind::Missing | InputErrorKind::Corrupt => true,
        InputErrorKind::Io | InputErrorKind::Link => false,
    }
}

/// Stored entries of each of the user's columns, from one more read of the blocks.
pub fn column_counts(
    blocks: &dyn Inputs,
    facts: &MatrixFacts,
    transposed: bool,
) -> Result<Vec<u64>, InputError> {
    let columns = if transposed {
        facts.rows
    } else {
        facts.columns
    };
    let mut counts = vec![0u64; columns as usize];
    for facts in &facts.blocks {
        let block = RowBlock::parse(blocks.load(&facts.hash)?).map_err(|why| InputError {
            hash: facts.hash,
            kind: InputErrorKind::Corrupt,
            why: why.to_string(),
        })?;
        for tile in block.tiles() {
            if transposed {
                let first = facts.first_row as usize + tile.first_row;
                for (row, ends) in tile.row_start.windows(2).enumerate() {
                    counts[first + row] += u64::from(ends[1] - ends[0]);
                }
            } else {
                for (&item, ends) in tile.items.iter().zip(tile.item_start.windows(2)) {
                    counts[item as usize] += u64::from(ends[1] - ends[0]);
                }
            }
        }
    }
    Ok(counts)
}
