//! The job: from `factor.toml` to a plan, from the plan to a schedule, from the schedule to factors.

pub mod cli;
pub mod failure;
pub mod job;
pub mod output;
pub mod report;
pub mod run;
