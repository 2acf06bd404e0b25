//! The observers: each turns one source into snapshots, and decides nothing.

pub(crate) mod flows;
pub mod guest;
pub mod host;
