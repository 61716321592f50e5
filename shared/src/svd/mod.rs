//! The svd floor's tasks: what each computes from which blocks. The graph that they make up is built by the coordinator's
//! plan; here stands only what one task does.
//!
//! Notation: A is m x n, k = rank, l = sketch width, X an n x l basis cut into column *panels* (what a pass task reads)
//! and row *slices* (what n-sided tasks read); T = f32 or f64. All A here is A * 2^scale, with entries at most 1 in
//! absolute value; the coordinator undoes it in the singular values.

pub mod gram;
pub mod krylov;
pub mod layout;
mod passes;
mod pieces;
pub mod polish;
pub mod results;
mod tsqr;
mod view;

use serde::{Deserialize, Serialize};

use crate::{
    farm::{
        bytes::Bytes,
        work::{Work, WorkError},
    },
    matrix::block::RowBlock,
};

/// Type of the numbers in panels and factors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    #[default]
    F64,
}

impl Precision {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Unit roundoff.
    pub fn roundoff(self) -> f64 {
        match self {
            Self::F32 => f64::from(f32::EPSILON) / 2.0,
            Self::F64 => f64::EPSILON / 2.0,
        }
    }
}

/// Calls a function generic over the number type for a [`Precision`].
macro_rules! with_precision {
    ($precision:expr, $function:ident $(, $argument:expr)* $(,)?) => {
        match $precision {
            $crate::svd::Precision::F32 => $function::<f32>($($argument),*),
            $crate::svd::Precision::F64 => $function::<f64>($($argument),*),
        }
    };
}
pub(crate) use with_precision;

/// An n x width array of numbers of one precision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shape {
    /// n
    pub columns: u64,
    /// l, or k once the factors are at hand.
    pub width: u32,
    pub precision: Precision,
    /// Most columns of a panel.
    pub panel: u16,
}

/// Rows `first..first + rows` of something n-sided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Slice {
    pub first: u64,
    pub rows: u32,
}

/// The task kinds of a randomized SVD with a fixed number of passes (Halko, Martinsson, Tropp 2011, algorithms 4.4 and
/// 5.1, with one read of A serving both products of a power iteration).
///
/// Every kind lists its inputs in order. `f64[a x b]` is a row-major array of numbers. `h` is the height of a triangular
/// factor: min(rows below it, l).
///
/// *Chunks* of an n x l sum are the slice's chunk of every part. Where the blocks are those of a
/// [`View`](crate::matrix::facts::View), the chunk behind the slices of every part follows (if the view adds columns), then
/// the map; whatever reads blocks has n + s columns then.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum SvdWork {
    /// Nothing -> one panel of the test matrix Omega, T[n x w], entries uniform in (-1, 1) / sqrt(n).
    Sketch {
        shape: Shape,
        seed: u64,
        panel: u16,
    },
    /// Nothing -> one panel of the identity, T[n x w].
    Identity {
        shape: Shape,
        panel: u16,
    },
    /// Row block, shifts i16[n], panel of X, whole or a piece a slice -> adds A_i^T (A_i X) into the panel's part of Z.
    Power {
        scale: i32,
        shape: Shape,
        panel: u16,
        extra: i32,
    },
    /// Shifts, chunks of Z -> R f64[h x l], then Q f64[rows x h], of the slice.
    LeafQr {
        shape: Shape,
        slice: Slice,
        extra: i32,
    },
    /// R factors, f64[h_j x l] each -> R f64[h x l], then Q f64[sum h_j x h], of them stacked.
    Combine {
        width: u32,
        heights: Vec<u32>,
    },
    /// Q of a combine f64[sum h_j x h], its own factor from above f64[h x l] -> their product: the children's factors.
    Push {
        width: u32,
        height: u32,
        heights: Vec<u32>,
    },
    /// Q of a leaf f64[rows x h] (and its factor from above f64[h x l]) -> slice of X, panel after panel, T[rows x w].
    Basis {
        shape: Shape,
        slice: Slice,
    },
    /// One panel's part of every slice of X, in order -> the panel T[n x w].
    Assemble {
        shape: Shape,
        panel: u16,
    },
    /// Row block, panels of X -> R f64[h x l] of Y_i = A_i X.
    RangeLeaf {
        scale: i32,
        shape: Shape,
    },
    /// Row block, shifts, panels of X (, factor from above f64[h x l]) -> adds A_i^T Q_i into all parts of B^T.
    Project {
        scale: i32,
        shape: Shape,
        extra: i32,
    },
    /// R of B^T f64[l x l] -> sigma f64[l], W f64[l x l], P f64[l x l] with R^T = W diag(sigma) P^T.
    SmallSvd {
        width: u32,
    },
    /// Q of a leaf of B^T (, factor from above), small SVD -> peaks f64[k x 2] (the entry of largest absolute value of
    /// each column, and its row), then V T[rows x k], signs not yet settled.
    RightSlice {
        shape: Shape,
        slice: Slice,
        rank: u32,
    },
    /// Peaks of all slices, in order -> signs f64[k]: that which makes each column's largest entry positive.
    Signs {
        rank: u32,
    },
    /// V of a slice, signs -> V T[rows x k] with its signs.
    SignedSlice {
        shape: Shape,
        slice: Slice,
    },
    /// Signed slices of V, in order -> one panel T[n x w] of V.
    RightPanel {
        shape: Shape,
        panel: u16,
    },
    /// Row block, panels of X (, factor from above), small SVD, signs -> U_i T[rows x k].
    Lift {
        scale: i32,
        shape: Shape,
        rank: u32,
    },
    /// Row block, small SVD, U_i, panels of V -> sums of squares f64[k] of A_i V - U_i diag(sigma).
    LeftResidual {
        scale: i32,
        shape: Shape,
    },
    /// Shifts, small SVD, signs, signed slice of V, chunks of B^T -> sums of squares f64[k] of
    /// B^T W - V diag(sigma), which is A^T U - V diag(sigma) as the products gave it.
    RightResidual {
        shape: Shape,
        slice: Slice,
        rank: u32,
        extra: i32,
    },
    /// R f64[h x l] of A = Q R, small SVD, signs, signed slices of V -> sums of squares f64[k] of R V - W diag(sigma): of
    /// A V - U diag(sigma), where A X = A.
    FactorResidual {
        shape: Shape,
        rank: u32,
    },
    /// Arrays f64[k] -> their sum, added in order.
    Sum {
        rank: u32,
    },
    /// Rows of a factor T[rows x k] -> adds their Gram matrix into a k x k sum.
    Gram {
        precision: Precision,
        rank: u32,
    },
    /// The k x k sum -> its Gram matrix f64[k x k].
    GramOut {
        rank: u32,
    },
    Krylov(krylov::KrylovWork),
    Polish(polish::PolishWork),
    /// Panel of X T[n x w], map f64[n x (1 + s)] -> L X: the panel T[(n + s) x w] that blocks of a
    /// [`View`](crate::matrix::facts::View) are multiplied with.
    Spread {
        shape: Shape,
        panel: u16,
    },
    GramMatrix(gram::GramWork),
}

/// Fraction bits of Gram sums of orthonormal columns, whose entries are at most 1.
pub(crate) const GRAM_BITS: i32 = 60;

impl Work for SvdWork {
    fn verb(&self) -> &'static str {
        match self {
            Self::Sketch { .. } => "sketch",
            Self::Identity { .. } => "identity",
            Self::Power { .. } => "power",
            Self::LeafQr { .. } => "leaf",
            Self::Combine { .. } => "combine",
            Self::Push { .. } => "push",
            Self::Basis { .. } => "basis",
            Self::Assemble { .. } => "assemble",
            Self::RangeLeaf { .. } => "range",
            Self::Project { .. } => "project",
            Self::SmallSvd { .. } => "small-svd",
            Self::RightSlice { .. } => "right",
            Self::Signs { .. } => "signs",
            Self::SignedSlice { .. } => "signed",
            Self::RightPanel { .. } => "right-panel",
            Self::Lift { .. } => "lift",
            Self::LeftResidual { .. } => "left-residual",
            Self::RightResidual { .. } => "right-residual",
            Self::FactorResidual { .. } => "factor-residual",
            Self::Sum { .. } => "sum",
            Self::Gram { .. } => "gram",
            Self::GramOut { .. } => "gram-out",
            Self::Krylov(work) => work.verb(),
            Self::Polish(work) => work.verb(),
            Self::Spread { .. } => "spread",
            Self::GramMatrix(work) => work.verb(),
        }
    }

    fn block(&self, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
        match self {
            Self::Sketch { shape, seed, panel } => passes::sketch(*shape, *seed, *panel),
            Self::Identity { shape, panel } => passes::identity(*shape, *panel),
            Self::LeafQr {
                shape,
                slice,
                extra,
            } => tsqr::leaf(*shape, *slice, *extra, inputs),
            Self::Combine { width, heights } => tsqr::combine(*width, heights, inputs),
            Self::Push {
                width,
                height,
                heights,
            } => tsqr::push(*width, *height, heights, inputs),
            Self::Basis { shape, slice } => tsqr::basis(*shape, *slice, inputs),
            Self::Assemble { shape, panel } => passes::assemble(*shape, *panel, inputs),
            Self::RangeLeaf { scale, shape } => passes::range_leaf(*scale, *shape, inputs),
            Self::SmallSvd { width } => results::small_svd(*width, inputs),
            Self::RightSlice { shape, slice, rank } => {
                results::right_slice(*shape, *slice, *rank, inputs)
            }
            Self::Signs { rank } => results::signs(*rank, inputs),
            Self::SignedSlice { shape, slice } => results::signed_slice(*shape, *slice, inputs),
            Self::RightPanel { shape, panel } => results::right_panel(*shape, *panel, inputs),
            Self::Lift { scale, shape, rank } => passes::lift(*scale, *shape, *rank, inputs),
            Self::LeftResidual { scale, shape } => results::left_residual(*scale, *shape, inputs),
            Self::RightResidual {
                shape,
                slice,
                rank,
                extra,
            } => results::right_residual(*shape, *slice, *rank, *extra, inputs),
            Self::FactorResidual { shape, rank } => results::factor_residual(*shape, *rank, inputs),
            Self::Sum { rank } => results::sum(*rank, inputs),
            Self::GramOut { rank } => results::gram_out(*rank, inputs),
            Self::Krylov(work) => work.block(inputs),
            Self::Polish(work) => work.block(inputs),
            Self::Spread { shape, panel } => view::spread(*shape, *panel, inputs),
            Self::GramMatrix(work) => work.block(inputs),
            Self::Power { .. } | Self::Project { .. } | Self::Gram { .. } => {
                unreachable!("{} folds", self.verb())
            }
        }
    }

    fn fold(&self, inputs: &[Bytes], parts: &mut [&mut [i64]]) -> Result<(), WorkError> {
        match self {
            Self::Power {
                scale,
                shape,
                panel,
                extra,
            } => passes::power(*scale, *shape, *panel, *extra, inputs, parts),
            Self::Project {
                scale,
                shape,
                extra,
            } => passes::project(*scale, *shape, *extra, inputs, parts),
            Self::Gram { precision, rank } => results::gram(*precision, *rank, inputs, parts),
            Self::Krylov(work) => work.fold(inputs, parts),
            Self::Polish(work) => work.fold(inputs, parts),
            Self::GramMatrix(work) => work.fold(inputs, parts),
            Self::Sketch { .. }
            | Self::Identity { .. }
            | Self::LeafQr { .. }
            | Self::Combine { .. }
            | Self::Push { .. }
            | Self::Basis { .. }
            | Self::Assemble { .. }
            | Self::RangeLeaf { .. }
            | Self::SmallSvd { .. }
            | Self::RightSlice { .. }
            | Self::Signs { .. }
            | Self::SignedSlice { .. }
            | Self::RightPanel { .. }
            | Self::Lift { .. }
            | Self::LeftResidual { .. }
            | Self::RightResidual { .. }
            | Self::FactorResidual { .. }
            | Self::Sum { .. }
            | Self::GramOut { .. }
            | Self::Spread { .. } => unreachable!("{} yields a block", self.verb()),
        }
    }
}

/// The inputs of a task, taken one after the other with their shapes checked.
pub(crate) struct Inputs<'a> {
    left: std::slice::Iter<'a, Bytes>,
}

impl<'a> Inputs<'a> {
    pub(crate) fn of(inputs: &'a [Bytes]) -> Self {
        Self {
            left: inputs.iter(),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a Bytes, WorkError> {
        self.left
            .next()
            .ok_or_else(|| WorkError::BadInput("an input is missing".to_owned()))
    }

    /// The next input as exactly `count` numbers.
    pub(crate) fn numbers<N: bytemuck::Pod>(&mut self, count: usize) -> Result<&'a [N], WorkError> {
        exactly(self.bytes()?.numbers()?, count)
    }

    pub(crate) fn block(&mut self, columns: u64) -> Result<RowBlock, WorkError> {
        let block = RowBlock::parse(self.bytes()?.clone())
            .map_err(|why| WorkError::BadInput(why.to_string()))?;
        if block.columns() as u64 == columns {
            Ok(block)
        } else {
            Err(WorkError::BadInput(format!(
                "row block with {} columns where the plan has {columns}",
                block.columns()
            )))
        }
    }

    /// What is left.
    pub(crate) fn rest(&mut self) -> &'a [Bytes] {
        std::mem::take(&mut self.left).as_slice()
    }

    pub(crate) fn left(&self) -> usize {
        self.left.len()
    }
}

/// `numbers`, which must be `count`.
pub(crate) fn exactly<N>(numbers: &[N], count: usize) -> Result<&[N], WorkError> {
    if numbers.len() == count {
        Ok(numbers)
    } else {
        Err(WorkError::BadInput(format!(
            "input of {} numbers where the plan has {count}",
            numbers.len()
        )))
    }
}
