
pub mod toy;
