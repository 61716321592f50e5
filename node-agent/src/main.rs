//! `svdnode`.

fn main() {}
