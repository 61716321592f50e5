//! One machine's hands: the agent, which runs tasks.
//!
//! [`agent`] is a machine without IO: it is told events and names actions. [`hands`] holds the bytes and does the
//! arithmetic, [`executor`] has the threads, [`driver`] brings the three together in a process.

pub mod agent;
pub mod awake;
pub mod blocks;
pub mod cli;
pub mod driver;
pub mod executor;
pub mod hands;
pub mod inputs;
pub mod partial;
pub mod remote;
pub mod service;
pub mod store;
