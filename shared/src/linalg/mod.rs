//! Kernels: products of a sparse row block with panels of columns, the test matrix, and small dense factorizations.
//!
//! Everything here is sequential: parallelism is across tasks. Every result is a function of its arguments alone, the
//! same bits on any thread; the sparse and the narrow kernels and the test matrix give the same bits on any instruction set
//! too.

pub mod cholesky;
pub mod dense;
pub mod eigen;
pub mod fixed;
mod householder;
pub mod narrow;
pub mod real;
pub mod simd;
pub mod single;
pub mod sketch;
pub mod sparse;
pub mod tall;
