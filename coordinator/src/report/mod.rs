//! What people and scripts are told: progress while a run lasts, its result at the end.

pub mod json;
pub mod nearest;
pub mod progress;
pub mod summary;
pub mod terminal;
