//! The job: as written in `factor.toml`, and as resolved.
//!
//! Arguments as written and as resolved are two types: [`file::JobFile`] keeps what the file says and where it says it,
//! [`resolved::Job`] has every default filled in. Between them stands [`resolve::load`], which reports every problem of
//! the file at once.

pub mod diagnostics;
pub mod file;
pub mod look;
pub mod overrides;
pub mod resolve;
pub mod resolved;
pub mod span;

pub use shared::{machine, size};

/// The defaults, as the commented job file that people are shown.
pub const DEFAULTS: &str = include_str!("default.toml");

#[cfg(test)]
mod tests;
