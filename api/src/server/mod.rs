//! The REST server: routes over a [`Daemon`], and the listeners they are served on.
//!
//! In: HTTP requests. Out: calls to a [`Daemon`] and its answers. Every request is bounded in
//! size, time and number here; nothing here knows what a resource does.

mod daemon;

pub use daemon::{Daemon, FlowFilter, Put, PutOutcome};
