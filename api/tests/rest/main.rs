//! The REST API over a daemon in memory: routes, document, listeners, client,
//! eswitchctl.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by its panic")]

mod access;
mod any_json;
mod ask;
mod ctl;
mod document;
mod double;
mod events;
mod examples;
mod guide;
mod routes;
mod wire;
