//! The REST server: routes over a [`Daemon`], and the listeners they are served on.
//!
//! In: HTTP requests. Out: calls to a [`Daemon`] and its answers. Every request is bounded in
//! size, time and number here; nothing here knows what a resource does.

mod access;
mod bounds;
mod daemon;
pub(crate) mod declared;
mod example;
mod listen;
mod openapi;
pub(crate) mod reply;
pub(crate) mod request;
mod route;
mod scrape;
mod stream;
mod tls;
mod tokens;
mod ui;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{Router, body::Bytes, http::Uri, routing::get};
use tokio::sync::Semaphore;

pub use access::{
    Access, Answered, Audit, Observer, PeerMatch, PeerRole, Recorder, Role, TokenFile,
    TokenFileError,
};
pub use daemon::{ChangeHow, Daemon, EswitchHow, FlowFilter, Precondition, Put, PutOutcome};
pub use listen::{
    Bound, ConnectionLimits, Listeners, ServeError, Served, TlsListenSpec, UnixListenSpec, serve,
};
pub use request::WAIT_MAX;
pub use scrape::MetricsFormat;
pub use tls::{TlsError, TlsFiles};
pub use tokens::{InvalidTokens, token_line};

use crate::error::ApiError;

/// How much a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest body, in bytes.
    pub body_bytes: usize,
    /// The largest snapshot, in bytes.
    pub snapshot_bytes: usize,
    /// How long a body may take to arrive.
    pub body_time: Duration,
    /// How long a request may take in all.
    pub request_time: Duration,
    /// How many requests under `/v1` may be under way; the next is answered with 503.
    pub requests: usize,
    /// How many more may be that wait until a change is programmed.
    pub waits: usize,
    /// How many clients may read events at a time.
    pub streams: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 1 << 20,
            snapshot_bytes: 32 << 20,
            body_time: Duration::from_secs(10),
            request_time: Duration::from_secs(30),
            requests: 256,
            waits: 256,
            streams: 1024,
        }
    }
}

/// What every handler sees.
struct App<D> {
    daemon: Arc<D>,
    limits: Limits,
    /// The OpenAPI document, once somebody has asked for it: to make it takes longer than all else
    /// at a start.
    document: Arc<OnceLock<Bytes>>,
    streams: Arc<Semaphore>,
}

impl<D> Clone for App<D> {
    fn clone(&self) -> Self {
        Self {
            daemon: Arc::clone(&self.daemon),
            limits: self.limits,
            document: Arc::clone(&self.document),
            streams: Arc::clone(&self.streams),
        }
    }
}

/// The whole REST API over `daemon`, with the default [`Limits`].
pub fn router<D: Daemon>(daemon: Arc<D>) -> Router {
    router_with(daemon, Limits::default())
}

/// The whole REST API over `daemon`.
pub fn router_with<D: Daemon>(daemon: Arc<D>, limits: Limits) -> Router {
    let (slots, waits) = (bounds::slots(limits.requests), bounds::slots(limits.waits));
    let table = route::table::<D>();
    let routes = table.into_iter().fold(Router::new(), |router, route| {
        // Probes and metrics answer under load, too: that is when they are needed.
        let methods = match route.path.starts_with("/v1/") {
            true => bounds::in_slots(route.methods, &slots, &waits),
            false => route.methods,
        };
        router.route(route.path, methods)
    });
    let routes = routes.route("/ui", get(ui::page).fallback(route::no_method));
    let bounded = bounds::in_time(routes.fallback(no_route), limits.request_time);
    let streams = bounds::slots(limits.streams);
    let app = App { daemon, limits, document: Arc::default(), streams };
    bounds::answering_panics(bounded).with_state(app)
}

/// Metrics, liveness and readiness only: for a listener that needs no role.
pub fn probe_router<D: Daemon>(daemon: Arc<D>) -> Router {
    let limits = Limits::default();
    let probes = ["/healthz", "/readyz", "/metrics"];
    let table = route::table::<D>().into_iter().filter(|route| probes.contains(&route.path));
    let routes = table.fold(Router::new(), |router, route| router.route(route.path, route.methods));
    let bounded = bounds::in_time(routes.fallback(no_route), limits.request_time);
    let app = App { daemon, limits, document: Arc::default(), streams: bounds::slots(0) };
    bounds::answering_panics(bounded).with_state(app)
}

async fn no_route(uri: Uri) -> ApiError {
    ApiError::NoRoute { path: uri.path().to_owned() }
}
