//! The job: as written in `factor.toml`, and as resolved.

pub mod resolved;
