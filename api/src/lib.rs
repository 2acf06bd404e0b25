//! The REST API of eswitchd: resource types, server, client.
//!
//! In: HTTP requests on listeners that the daemon hands over. Out: calls to a [`server::Daemon`],
//! and its answers as JSON. Nothing here knows of kernels, guests or flows: what a resource *does*
//! is the controller's business.

pub mod batch;
pub mod cli;
pub mod client;
pub mod credentials;
pub mod error;
pub mod events;
pub mod explain;
pub mod resources;
pub mod server;
pub mod snapshot;
pub mod trace;
pub mod types;
pub mod validate;

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/eswitchd/api.sock";
