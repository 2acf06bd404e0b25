//! The controller: keeps adapters in step with what guests do and clients allow.
//!
//! Data flows one way: `observe` and the API fill World and Intent, `plan` turns them into a
//! program, `apply` brings the kernel there, and what came of it goes back to the API.

pub mod config;
pub mod eswitch;
pub mod observe;
pub mod world;
pub mod intent;
pub mod plan;
pub mod store;
