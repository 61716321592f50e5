//! What touches a socket: who we are, how we are found, and links over QUIC.

pub mod beacon;
pub mod discovery;
pub mod endpoint;
pub mod greeting;
pub mod identity;
pub mod link;

/// The UDP ports on which a node may listen. It takes the first that is free; whoever looks for nodes tries all.
pub const PORTS: std::ops::RangeInclusive<u16> = 24740..=24749;
