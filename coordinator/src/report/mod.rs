//! What people and scripts are told: progress while a run lasts, its result at the end.

pub mod explain;
pub mod json;
pub mod nearest;
pub mod numbers;
pub mod progress;
pub mod screen;
pub mod summary;
pub mod terminal;
