//! What is known of a whole matrix before any product with it.

use serde::{Deserialize, Serialize};

use super::encode::Encoding;
use crate::farm::ids::ContentHash;

/// No block has more entries than this, but for a single longer row ...
pub const BLOCK_NNZ: u64 = 1 << 20;
/// ... nor more rows than this.
pub const BLOCK_ROWS: u32 = 16_384;
/// A small matrix is cut into so many blocks, so that there is work for several cores in each read, but not into blocks of
/// fewer entries than `BLOCK_NNZ_MIN`: a task would take longer to hand out than to do.
const BLOCKS_MIN: u64 = 8;
const BLOCK_NNZ_MIN: u64 = 1 << 16;
/// To be raised when the same rows are cut in another way: what was prepared before is then prepared anew.
pub const CUT_VERSION: u32 = 3;

/// One row block, as the plan knows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BlockFacts {
    pub hash: ContentHash,
    pub first_row: u64,
    pub rows: u32,
    pub nnz: u64,
    pub bytes: u64,
}

/// A sparse matrix cut into row blocks. All of it follows from the matrix alone.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MatrixFacts {
    pub rows: u64,
    pub columns: u64,
    pub nnz: u64,
    pub blocks: Vec<BlockFacts>,
    pub encoding: Encoding,
    /// Largest absolute value.
    pub max_abs: f64,
    /// Sum of squares of each column, added in the order of rows: columns numbers.
    pub column_squares: Vec<f64>,
    /// How the blocks are to be read, if not as the matrix itself.
    #[serde(default)]
    pub view: Option<View>,
}

/// Blocks that hold B = [A | P] where the matrix is (A - P Q^T) diag(d): then it is B L with L = [diag(d); -Q^T diag(d)],
/// and nothing that reads blocks has to know. The facts beside it are those of the matrix, but for the blocks' own.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct View {
    /// d: columns numbers.
    pub scale: Vec<f64>,
    /// Q: columns x added, row-major.
    pub loads: Vec<f64>,
    /// Columns of P.
    pub added: u32,
    /// Of B: columns + added numbers.
    pub column_squares: Vec<f64>,
    /// Of B.
    pub max_abs: f64,
}

impl MatrixFacts {
    /// Squared Frobenius norm.
    pub fn frobenius_squared(&self) -> f64 {
        self.column_squares.iter().sum()
    }
}

/// Decides where blocks end: feed it the rows in order.
///
/// A function of the rows' lengths alone, so the same matrix is cut the same way on any machine.
#[derive(Debug)]
pub struct Cutter {
    rows: u32,
    nnz: u64,
    nnz_max: u64,
}

impl Cutter {
    /// For a matrix of so many entries.
    pub fn of(nnz: u64) -> Self {
        Self {
            rows: 0,
            nnz: 0,
            // A little more than a share: blocks end with a row, and what each falls short of would make one more.
            nnz_max: (nnz / BLOCKS_MIN + nnz / 512).clamp(BLOCK_NNZ_MIN, BLOCK_NNZ),
        }
    }

    /// Whether the block open so far is to be closed before a row with `nnz` entries is added; the row is then counted to
    /// the block it belongs to.
    pub fn cuts_before(&mut self, nnz: u64) -> bool {
        let cut = self.rows > 0 && (self.rows == BLOCK_ROWS || self.nnz + nnz > self.nnz_max);
        if cut {
            (self.rows, self.nnz) = (0, 0);
        }
        self.rows += 1;
        self.nnz += nnz;
        cut
    }
}
