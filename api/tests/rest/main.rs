//! The REST API over a daemon in memory: routes, document, listeners, client.

mod any_json;
mod ask;
mod document;
mod double;
mod routes;
mod wire;
