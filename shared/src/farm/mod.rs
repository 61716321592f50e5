//! The farm floor: nodes, tasks, blocks of bytes, links, time. It knows no matrix.

pub mod bytes;
pub mod contributions;
pub mod frame;
pub mod graph;
pub mod ids;
pub mod link;
pub mod message;
pub mod moment;
pub mod sequential;
pub mod work;
