//! The vocabulary and the mathematics of `svdjob` and `svdnode`.
//!
//! Two floors: [`farm`] knows nodes, tasks, blocks of bytes; [`matrix`], [`linalg`] and [`svd`] know matrices and which
//! tasks make a singular value decomposition of them. They meet in [`farm::work::Work`]. None of the four opens a file or a
//! socket; `net`, behind the feature of that name, does. [`machine`] and [`platform`] ask the system what there is.

#[cfg(target_endian = "big")]
compile_error!(
    "blocks are little-endian in memory as on disk; big-endian machines are not supported"
);

pub mod farm;
#[cfg(test)]
mod harm;
pub mod linalg;
pub mod machine;
pub mod matrix;
#[cfg(feature = "net")]
pub mod net;
pub mod platform;
pub mod reserve;
pub mod size;
pub mod svd;
