//! What a run leaves behind: factors for NumPy, labels, a manifest; all of it or nothing.

pub mod certificate;
pub mod labels;
pub mod manifest;
pub mod npy;
pub mod staging;
