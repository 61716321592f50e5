//! Matrices as the farm carries them: row blocks of a sparse matrix, and what is known of the whole.

pub mod block;
pub mod encode;
pub mod facts;
