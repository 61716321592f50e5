//! The job: from `factor.toml` to a plan, from the plan to a schedule, from the schedule to factors.

pub mod cache;
pub mod failure;
pub mod ingest;
pub mod job;
