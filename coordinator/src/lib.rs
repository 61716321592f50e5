//! The job: from `factor.toml` to a plan, from the plan to a schedule, from the schedule to factors.

pub mod cache;
pub mod centring;
pub mod cli;
pub mod engine;
pub mod factors;
pub mod failure;
pub mod farm;
#[cfg(test)]
#[path = "../../shared/src/harm.rs"]
mod harm;
pub mod ingest;
pub mod job;
pub mod launch;
pub mod library;
pub mod memory;
pub mod output;
pub mod plan;
pub mod record;
pub mod report;
pub mod run;
pub mod scheduler;
pub mod spool;
pub mod synth;
pub mod transform;
