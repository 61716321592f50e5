//! The job: from `factor.toml` to a plan, from the plan to a schedule, from the schedule to factors.

pub mod failure;
pub mod farm;
pub mod job;
pub mod scheduler;
