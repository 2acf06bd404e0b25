//! Writing answers: resources with their revision, problems.
//!
//! In: what the daemon answered. Out: HTTP responses. Causes of failures go to the log here, and
//! only here.

use std::{error::Error, fmt::Write};

use axum::{
    Json,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, ETAG, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{Put, PutOutcome};
use crate::{
    error::{ApiError, PROBLEM_MEDIA_TYPE},
    resources::Resource,
    snapshot::Restored,
};

/// The header of an answer to PUT that says what it has done.
pub(crate) const OUTCOME: HeaderName = HeaderName::from_static("eswitchd-outcome");

/// The revision that an answer is about, for the record of changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Revision(pub(super) u64);

/// A single resource with its revision as entity tag.
pub(super) fn resource<Spec: Serialize, Status: Serialize>(
    resource: &Resource<Spec, Status>,
) -> Response {
    let mut response = Json(resource).into_response();
    response.extensions_mut().insert(Revision(resource.revision));
    if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", resource.revision)) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// The answer to a PUT of a snapshot.
pub(super) fn restored(put: &Put<Restored>) -> Response {
    let mut response = Json(&put.resource).into_response();
    response.extensions_mut().insert(Revision(put.resource.revision));
    response.headers_mut().insert(OUTCOME, HeaderValue::from_static(put.outcome.as_str()));
    response
}

/// The answer to a PUT.
pub(super) fn put<Spec: Serialize, Status: Serialize>(
    put: &Put<Resource<Spec, Status>>,
) -> Response {
    let mut response = resource(&put.resource);
    *response.status_mut() = match put.outcome {
        PutOutcome::Created => StatusCode::CREATED,
        PutOutcome::Updated | PutOutcome::Unchanged => StatusCode::OK,
    };
    response.headers_mut().insert(OUTCOME, HeaderValue::from_static(put.outcome.as_str()));
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = self.problem();
        match &self {
            Self::Store(cause) | Self::StoreFull(cause) | Self::Internal(cause) => {
                tracing::error!(status = problem.status, cause = %chain(&**cause), "{self}");
            }
            _ => tracing::debug!(status = problem.status, "request refused: {self}"),
        }
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        if problem.status == 401 {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = problem.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// An error and what it comes from, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
