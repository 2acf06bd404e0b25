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

/// What is wrong with a specification or parameter: which field, what, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {detail}; {remedy}")]
pub struct InvalidField {
    /// The field from the root of the request body, as in `spec.attachments[1].tag`, or the name
    /// of a parameter.
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
    /// The specification is not well formed, or asks for what cannot be.
    #[error("{0}")]
    Invalid(#[from] InvalidField),
    /// The path or the query has a value that is none, or a parameter that is unknown.
    #[error("{0}")]
    Parameter(InvalidField),
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
    /// The resource is not in the state that the request's `If-Match` or `If-None-Match` names.
    #[error("{resource} {}", match .revision {
        Some(revision) => format!("has revision {revision} now"),
        None => "is not there".to_owned(),
    })]
    Precondition {
        /// Which.
        resource: ResourceRef,
        /// The revision that it has, where it is there.
        revision: Option<u64>,
    },
    /// It is not known who asks.
    #[error("{detail}")]
    Unauthenticated {
        /// What is missing or wrong.
        detail: String,
    },
    /// Who asks may not do this.
    #[error("{who} may not: this needs the role {needed}")]
    Forbidden {
        /// Who asks.
        who: String,
        /// The least role that may.
        needed: String,
    },
    /// The request's body is too large.
    #[error("the body is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The largest body that is read.
        limit_bytes: usize,
    },
    /// The request came over TCP in the name of another host: from a web page that has made a
    /// browser believe that this is its own server.
    #[error("this is not {host}")]
    ForeignHost {
        /// The host that was asked for.
        host: String,
    },
    /// The daemon has too much to do, or this client asks too often.
    #[error("{detail}")]
    Overloaded {
        /// What there is too much of.
        detail: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The request's body did not arrive in time.
    #[error("the body did not arrive within {limit:?}")]
    SlowRequest {
        /// How long the body may take to arrive.
        limit: Duration,
    },
    /// The request took too long, and was given up.
    #[error("the request took longer than {limit:?}")]
    Timeout {
        /// How long a request may take.
        limit: Duration,
    },
    /// What was asked for is stored, and was not in the kernel within the time that the request
    /// waits.
    #[error("{what}: stored as asked for, and not programmed after {waited:?}")]
    NotProgrammed {
        /// What was changed.
        what: String,
        /// How long the request has waited.
        waited: Duration,
        /// What is missing, each a sentence for people.
        missing: Vec<String>,
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
#[error("{detail}")]
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
    /// What is wrong: a field, from the root of the request body (`spec.attachments[1].tag`), or a
    /// parameter of the path or query (`id`, `adapter`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The resources that stand in the way: `ports/web-1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<String>,
    /// Why the daemon is not ready, or what is not programmed yet, each reason a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Seconds after which to try again; in the header `Retry-After`, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// This error as the client sees it. The one place that chooses statuses.
    pub fn problem(&self) -> Problem {
        let mut problem = self.whole_problem();
        shorten(&mut problem.detail);
        if let Some(field) = &mut problem.field {
            shorten(field);
        }
        problem
    }

    fn whole_problem(&self) -> Problem {
        let problem = |status, slug: &str, title: &str, remedy: &str| Problem {
            kind: format!("/problems/{slug}"),
            title: title.to_owned(),
            status,
            detail: self.to_string(),
            field: None,
            remedy: Some(remedy.to_owned()),
            blockers: Vec::new(),
            reasons: Vec::new(),
            retry_after: None,
        };
        match self {
            Self::Malformed { .. } => problem(
                400,
                "malformed",
                "Malformed request",
                "send one JSON object as the body, as /openapi.json describes it",
            ),
            Self::Parameter(InvalidField { field, detail, remedy }) => Problem {
                field: Some(field.clone()),
                detail: detail.clone(),
                ..problem(400, "bad-parameter", "Bad parameter in the path or query", remedy)
            },
            Self::Unauthenticated { .. } => problem(
                401,
                "unauthenticated",
                "Not known who asks",
                "send `Authorization: Bearer TOKEN` with a token of the daemon's token file, or \
                 come with a client certificate",
            ),
            Self::Forbidden { .. } => problem(
                403,
                "forbidden",
                "Not allowed",
                "ask whoever administers this host for a role",
            ),
            Self::NotFound { kind, .. } => problem(
                404,
                "not-found",
                "No such resource",
                &format!("GET /v1/{} lists what there is", kind.plural()),
            ),
            Self::NoRoute { .. } => {
                problem(404, "no-route", "No such path", "/openapi.json lists all paths")
            }
            Self::Method { .. } => problem(
                405,
                "method-not-allowed",
                "No such method here",
                "use a method that the header Allow names",
            ),
            Self::SlowRequest { .. } => problem(
                408,
                "slow-request",
                "Request arrived too slowly",
                "send the whole body at once; nothing was changed",
            ),
            Self::Conflict { blockers, remedy, .. } => Problem {
                blockers: blockers.iter().map(ToString::to_string).collect(),
                ..problem(409, "conflict", "Contradicts what there is", remedy)
            },
            Self::Precondition { .. } => problem(
                412,
                "precondition-failed",
                "Changed by somebody else meanwhile",
                "read it, see whether the change is still wanted, and send it with its ETag; \
                 nothing was changed",
            ),
            Self::TooLarge { .. } => problem(
                413,
                "too-large",
                "Request too large",
                "send less in one request; nothing was changed",
            ),
            Self::MediaType { .. } => problem(
                415,
                "media-type",
                "Not JSON",
                "send JSON with `Content-Type: application/json` (curl: --json)",
            ),
            Self::ForeignHost { .. } => problem(
                421,
                "foreign-host",
                "Asked for another host",
                "ask for 127.0.0.1, [::1] or localhost",
            ),
            Self::Invalid(InvalidField { field, detail, remedy }) => Problem {
                field: Some(field.clone()),
                detail: detail.clone(),
                ..problem(422, "invalid", "Invalid specification", remedy)
            },
            Self::Internal(_) => problem(
                500,
                "internal",
                "Defect of the daemon",
                "the daemon's log says more; please report it",
            ),
            Self::Store(_) => problem(
                500,
                "store-failed",
                "Store failed",
                "the daemon's log says more; whether the change is stored is not known: repeat it",
            ),
            Self::Overloaded { retry_after, .. } => Problem {
                retry_after: Some(whole_seconds(*retry_after)),
                ..problem(
                    503,
                    "overloaded",
                    "Too much to do",
                    "try again after retry_after seconds; nothing was changed",
                )
            },
            Self::NotReady(NotReady { reasons }) => Problem {
                reasons: reasons.clone(),
                ..problem(503, "not-ready", "Not ready", "wait, or see to the reasons")
            },
            Self::NotProgrammed { missing, .. } => Problem {
                reasons: missing.clone(),
                ..problem(
                    504,
                    "not-programmed",
                    "Stored, and not programmed yet",
                    "the daemon goes on by itself: see to the reasons, or repeat the request to \
                     wait longer",
                )
            },
            Self::Timeout { .. } => problem(
                504,
                "timeout",
                "Took too long",
                "a change may have been made nevertheless: repeat it, which is safe",
            ),
            Self::StoreFull(_) => problem(
                507,
                "store-full",
                "Store full",
                "make room on the file system of the state folder; nothing was changed",
            ),
        }
    }
}

/// Cuts a text that may quote the client, so that the answer to a large request is not large.
fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(400) {
        text.truncate(end);
        text.push('…');
    }
}

/// A duration in seconds, rounded up, and at least one: what `Retry-After` can say.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0 || duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full_disk() -> Cause {
        Box::new(std::io::Error::other("No space left on device"))
    }

    #[test]
    fn a_conflict_lists_everything_that_stands_in_the_way() {
        let port = |id: &str| ResourceRef { kind: ResourceKind::Port, id: id.parse().unwrap() };
        let problem = ApiError::Conflict {
            detail: "network `blue` has 2 ports".into(),
            blockers: vec![port("a"), port("b")],
            remedy: "detach them first".into(),
        }
        .problem();
        assert_eq!(problem.status, 409);
        assert_eq!(problem.blockers, ["ports/a", "ports/b"]);
        assert_eq!(problem.remedy.as_deref(), Some("detach them first"));
    }

    #[test]
    fn causes_inside_the_daemon_are_not_told_to_clients() {
        for error in [
            ApiError::Store(full_disk()),
            ApiError::StoreFull(full_disk()),
            ApiError::Internal(full_disk()),
        ] {
            let told = serde_json::to_string(&error.problem()).unwrap();
            assert!(!told.contains("No space left"), "{told}");
            assert!(error.source().is_some(), "the log has the cause of {error}");
        }
    }

    #[test]
    fn an_answer_to_a_large_request_is_not_large() {
        let problem = ApiError::NoRoute { path: "é".repeat(100_000) }.problem();
        assert_eq!(problem.detail.chars().count(), 401);
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn a_problem_reads_back_what_it_writes_and_omits_what_it_has_not() {
        let problem = ApiError::NoRoute { path: "/v2".into() }.problem();
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "/problems/no-route");
        assert!(json.get("field").is_none() && json.get("blockers").is_none());
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }
}
