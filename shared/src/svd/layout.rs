//! How n x l arrays are cut: into column panels, row slices, and the tree over the slices. All of it follows from n, l
//! and the precision alone, never from how many nodes or cores there are.

use std::ops::Range;

use super::{Precision, Shape, Slice};
use crate::linalg::real::panel_widths;

/// Column panels of an array of `width` columns; the last is padded with columns of zeros up to whole vectors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Panels {
    /// Columns of every panel, padding included.
    pub widths: Vec<usize>,
}

impl Panels {
    pub fn of(shape: Shape) -> Self {
        let width = shape.width as usize;
        Self {
            widths: match shape.precision {
                Precision::F32 => panel_widths::<f32>(width, shape.panel.into()),
                Precision::F64 => panel_widths::<f64>(width, shape.panel.into()),
            },
        }
    }

    pub fn len(&self) -> usize {
        self.widths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.widths.is_empty()
    }

    /// First column of a panel.
    pub fn start(&self, panel: usize) -> usize {
        self.widths[..panel].iter().sum()
    }

    /// The columns of a panel that are not padding.
    pub fn columns(&self, panel: usize, width: usize) -> Range<usize> {
        let start = self.start(panel);
        start..width.min(start + self.widths[panel])
    }

    /// Columns of all panels, padding included.
    pub fn padded(&self) -> usize {
        self.widths.iter().sum()
    }
}

/// Row slices of an n-sided array: at least 2,048 rows, and several times the width, so that a leaf of the TSQR tree is
/// taller than its triangle.
pub fn slices(shape: Shape) -> Vec<Slice> {
    let rows = u64::from((8 * shape.width).next_multiple_of(1024).max(2048));
    (0..shape.columns.div_ceil(rows))
        .map(|s| Slice {
            first: s * rows,
            rows: rows.min(shape.columns - s * rows) as u32,
        })
        .collect()
}

/// Children of an inner node of a TSQR tree.
pub const ARITY: usize = 8;

/// Bytes of an f64 array.
pub fn f64s(rows: usize, columns: usize) -> u64 {
    (rows * columns * size_of::<f64>()) as u64
}
