//! The observers: each turns one source into snapshots, and decides nothing.

pub mod guest;
pub mod host;
