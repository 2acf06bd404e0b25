//! What bounds requests: their number, their time, and the damage of a panic.
//!
//! In: routes. Out: the same routes, which now always answer, and soon.

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use crate::error::ApiError;

/// When to come back after being shed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Room for `count` requests at a time.
pub(super) fn slots(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count))
}

/// Answers 503 at once where there is no free slot. Requests that wait for the switch have slots of
/// their own: however many they are, others are answered.
pub(super) fn in_slots<S: Clone + Send + Sync + 'static>(
    methods: MethodRouter<S>,
    slots: &Arc<Semaphore>,
    waits: &Arc<Semaphore>,
) -> MethodRouter<S> {
    methods.layer(from_fn_with_state([slots, waits].map(Arc::clone), take_slot))
}

async fn take_slot(
    State([slots, waits]): State<[Arc<Semaphore>; 2]>,
    request: Request,
    next: Next,
) -> Response {
    let mut parameters = request.uri().query().unwrap_or_default().split('&');
    let slots = if parameters.any(|p| p.starts_with("wait=")) { &waits } else { &slots };
    match slots.try_acquire() {
        Ok(_slot) => next.run(request).await,
        Err(_) => overloaded("as many requests are under way as the daemon takes").into_response(),
    }
}

/// There is too much of something for the moment.
pub(super) fn overloaded(detail: &str) -> ApiError {
    ApiError::Overloaded { detail: detail.to_owned(), retry_after: RETRY_AFTER }
}

/// Answers 504 where the daemon does not answer within `limit`.
pub(super) fn in_time<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    limit: Duration,
) -> Router<S> {
    routes.layer(from_fn(move |request: Request, next: Next| async move {
        tokio::time::timeout(limit, next.run(request))
            .await
            .unwrap_or_else(|_| ApiError::Timeout { limit }.into_response())
    }))
}

/// Answers 500 where a handler panics, and marks every answer as neither to be cached (a status is
/// old at once) nor to be taken for something else than it says; and with its route, for who counts.
pub(super) fn answering_panics<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes.layer(CatchPanicLayer::custom(panicked)).layer(from_fn(
        |request: Request, next: Next| async move {
            let route = request.extensions().get::<MatchedPath>().cloned();
            let mut response = next.run(request).await;
            if let Some(route) = route {
                response.extensions_mut().insert(route);
            }
            let headers = response.headers_mut();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            let nothing = "default-src 'none'; frame-ancestors 'none'";
            // The live page has a policy of its own.
            let policy = headers.entry(CONTENT_SECURITY_POLICY);
            policy.or_insert_with(|| HeaderValue::from_static(nothing));
            headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
            response
        },
    ))
}

fn panicked(payload: Box<dyn Any + Send>) -> Response {
    let message = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    ApiError::Internal(format!("a handler panicked: {message}").into()).into_response()
}
