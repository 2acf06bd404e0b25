//! The controller: keeps adapters in step with what guests do and clients allow.
//!
//! Data flows one way: `observe` and the API fill World and Intent, `plan` turns them into a
//! program, `apply` brings the kernel there, and what came of it goes back to the API.

pub mod apply;
pub mod capability;
pub mod config;
pub mod daemon;
pub mod eswitch;
pub mod intent;
pub mod metrics;
pub mod observe;
mod owner;
pub mod plan;
pub mod snapshot;
pub mod store;
pub mod teardown;
pub mod world;
