//! What can go wrong with a request, and how a client is told.
//!
//! In: a refusal or a failure, as an [`ApiError`]. Out: a [`Problem`] (RFC 9457), the only form in
//! which this API reports anything but success. [`ApiError::problem`] is the one place that
//! chooses HTTP statuses. Causes of failures inside the daemon go to its log, never to clients.

use std::{error::Error, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::types::Id;

/// The media type of a [`Problem`] (RFC 9457, section 3).
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// A cause, kept for the daemon's log.
pub type Cause = Box<dyn Error + Send + Sync>;

/// The kinds of resources that an error can be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// A network.
    Network,
    /// A port.
    Port,
    /// A guest.
    Guest,
    /// An adapter.
    Adapter,
}

impl ResourceKind {
    /// The kind's name in URLs: `networks` and so on.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Network => "networks",
            Self::Port => "ports",
            Self::Guest => "guests",
            Self::Adapter => "adapters",
        }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Network => "network",
            Self::Port => "port",
            Self::Guest => "guest",
            Self::Adapter => "adapter",
        })
    }
}

/// A resource by kind and id, written as in URLs: `ports/web-1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceRef {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its id.
    pub id: Id,
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.plural(), self.id)
    }
}

/// What is wrong with a specification: which field, what, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {detail}; {remedy}")]
pub struct InvalidField {
    /// The field from the root of the request body, as in `spec.attachments[1].tag`.
    pub field: String,
    /// What is wrong.
    pub detail: String,
    /// What would be right.
    pub remedy: String,
}

/// Why a request has no answer of its own.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no such resource.
    #[error("there is no {kind} `{id}`")]
    NotFound {
        /// Its kind.
        kind: ResourceKind,
        /// The id that was asked for.
        id: Id,
    },
    /// There is nothing at this path.
    #[error("there is nothing at {path}")]
    NoRoute {
        /// The path that was asked for.
        path: String,
    },
    /// There is something at this path, but not for this method.
    #[error("{path} does not answer {method}")]
    Method {
        /// The method that was asked for.
        method: String,
        /// The path that was asked for.
        path: String,
    },
    /// The request is not well formed, or asks for what cannot be.
    #[error("{0}")]
    Invalid(#[from] InvalidField),
    /// The request's body is not JSON, or is none.
    #[error("{detail}")]
    Malformed {
        /// What is wrong with it.
        detail: String,
    },
    /// The request's body is of another media type.
    #[error("the body is {found}, not application/json")]
    MediaType {
        /// What the request says it is.
        found: String,
    },
    /// The request is well formed and contradicts what there is.
    #[error("{detail}")]
    Conflict {
        /// What contradicts it.
        detail: String,
        /// The resources that stand in the way, all of them.
        blockers: Vec<ResourceRef>,
        /// What to do about it.
        remedy: String,
    },
    /// The request's body is too large.
    #[error("the body is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The largest body that is read.
        limit_bytes: usize,
    },
    /// The daemon has too much to do, or this client asks too often.
    #[error("{detail}")]
    Overloaded {
        /// What there is too much of.
        detail: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The request took too long, and was given up.
    #[error("the request took longer than {limit:?}")]
    Timeout {
        /// How long a request may take.
        limit: Duration,
    },
    /// The daemon does not do its work yet, or no longer.
    #[error("not ready: {}", .0.reasons.join("; "))]
    NotReady(NotReady),
    /// The store has no room. What was asked for is not stored.
    #[error("the store is full")]
    StoreFull(#[source] Cause),
    /// The store failed. Whether what was asked for is stored is not known.
    #[error("the store failed")]
    Store(#[source] Cause),
    /// A defect of the daemon.
    #[error("internal error")]
    Internal(#[source] Cause),
}

/// Why the daemon does not do its work yet, or no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotReady {
    /// Each reason, a sentence for people.
    pub reasons: Vec<String>,
}

/// An error as the client sees it: problem details, RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// What kind of problem it is, a URI reference that never changes: `/problems/not-found`.
    #[serde(rename = "type")]
    #[schema(example = "/problems/not-found")]
    pub kind: String,
    /// The kind in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this very request.
    pub detail: String,
    /// The field that is wrong, from the root of the request body: `spec.attachments[1].tag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The resources that stand in the way: `ports/web-1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<String>,
    /// Why the daemon is not ready, each reason a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Seconds after which to try again; in the header `Retry-After`, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}
