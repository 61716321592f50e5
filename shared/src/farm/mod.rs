//! The farm floor: nodes, tasks, blocks of bytes, links, time. It knows no matrix.

pub mod bytes;
pub mod graph;
pub mod ids;
pub mod sequential;
pub mod work;
