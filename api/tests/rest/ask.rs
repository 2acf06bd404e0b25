//! Requests to a router without a network.
//!
//! In: a method, a path, a body. Out: the answer, read whole.

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header::CONTENT_TYPE},
};
use eswitchd_api::error::{PROBLEM_MEDIA_TYPE, Problem};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The problem that this answer is, with everything that any problem must fulfil checked.
    #[track_caller]
    pub(crate) fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), PROBLEM_MEDIA_TYPE, "{self:?}");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status.as_u16());
        assert!(problem.kind.starts_with("/problems/"), "{problem:?}");
        assert!(!problem.title.is_empty() && !problem.detail.is_empty(), "{problem:?}");
        assert!(problem.remedy.as_ref().is_some_and(|remedy| !remedy.is_empty()), "{problem:?}");
        problem
    }
}

pub(crate) async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    Answer { status: parts.status, headers: parts.headers, body }
}

pub(crate) async fn ask(
    router: &Router,
    method: Method,
    path: &str,
    body: impl Into<Body>,
) -> Answer {
    let request = Request::builder().method(method).uri(path);
    send(router, request.body(body.into()).unwrap()).await
}

pub(crate) async fn get(router: &Router, path: &str) -> Answer {
    ask(router, Method::GET, path, Body::empty()).await
}

pub(crate) async fn delete(router: &Router, path: &str) -> Answer {
    ask(router, Method::DELETE, path, Body::empty()).await
}

pub(crate) async fn put(router: &Router, path: &str, body: &Value) -> Answer {
    let request = Request::put(path).header(CONTENT_TYPE, "application/json");
    send(router, request.body(body.to_string().into()).unwrap()).await
}
