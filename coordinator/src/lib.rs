//! The job: from `factor.toml` to a plan, from the plan to a schedule, from the schedule to factors.

pub mod cli;
pub mod factors;
pub mod failure;
pub mod farm;
pub mod job;
pub mod memory;
pub mod output;
pub mod plan;
pub mod report;
pub mod run;
pub mod scheduler;
pub mod synth;
