//! Reading requests: ids, queries, bodies.
//!
//! In: parts of a request, of any shape. Out: checked values, or an [`ApiError`] that names the
//! field. Nothing is ignored: what is not understood is refused.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{
        HeaderMap, HeaderName,
        header::{CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH},
        request::Parts,
    },
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::{
    App, ChangeHow, Daemon, EswitchHow, FlowFilter, Limits, Precondition,
    declared::{Declared, ListFilter},
    stream::EventQuery,
};
use crate::{
    batch::{Batch, Wanted},
    error::{ApiError, InvalidField, ResourceKind},
    events::Since,
    resources::{Desired, EswitchSpec},
    snapshot::Snapshot,
    trace::TraceRequest,
    types::Id,
    validate::is_label_name,
};

fn parameter(field: &str, detail: impl Into<String>, remedy: impl Into<String>) -> ApiError {
    let field = field.to_owned();
    ApiError::Parameter(InvalidField { field, detail: detail.into(), remedy: remedy.into() })
}

/// Parameters that are right one by one and cannot be meant together.
fn contradiction(field: &str, detail: &str, remedy: &str) -> ApiError {
    let (field, detail, remedy) = (field.to_owned(), detail.to_owned(), remedy.to_owned());
    ApiError::Invalid(InvalidField { field, detail, remedy })
}

fn id_parameter(field: &str, text: String) -> Result<Id, ApiError> {
    Id::try_from(text).map_err(|error| {
        let (detail, remedy) = split_remedy(&error.to_string());
        parameter(field, detail, remedy)
    })
}

/// The `{id}` of a path.
pub(super) struct PathId(pub(super) Id);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| parameter("id", error.body_text(), "percent-encode UTF-8 text"))?;
        id_parameter("id", text).map(PathId)
    }
}

/// Proof that a request has no query. A parameter of a later version (`dry_run`) that was ignored
/// in silence would do what the client did not ask for.
pub(super) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match query(parts)?.first() {
            None => Ok(NoQuery),
            Some((key, _)) => Err(parameter(key, "no such query parameter", "leave the query out")),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for FlowFilter {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut filter = FlowFilter::default();
        for (key, value) in query(parts)? {
            let place = match key.as_str() {
                "adapter" => &mut filter.adapter,
                "port" => &mut filter.port,
                "network" => &mut filter.network,
                _ => {
                    let remedy = "use adapter, port or network";
                    return Err(parameter(&key, "no such query parameter", remedy));
                }
            };
            if place.replace(id_parameter(&key, value)?).is_some() {
                return Err(parameter(&key, "is there twice", "name each parameter once"));
            }
        }
        Ok(filter)
    }
}

/// The part of a list that is asked for.
#[derive(Debug, Default)]
pub(super) struct ListQuery {
    /// At most so many items.
    pub(super) limit: Option<usize>,
    /// Only those behind this id.
    pub(super) after: Option<Id>,
    pub(super) filter: ListFilter,
}

/// Items of one page at most.
pub(super) const LIMIT_MAX: usize = 10_000;

impl ListQuery {
    /// Whether this can be asked of resources of this kind: only ports are filtered.
    pub(super) fn is_for(&self, kind: ResourceKind) -> Result<(), ApiError> {
        let ListFilter { network, guest, adapter, labels: _ } = &self.filter;
        let filters = [("network", network), ("guest", guest), ("adapter", adapter)];
        match filters.into_iter().find(|(_, id)| id.is_some()) {
            Some((name, _)) if kind != ResourceKind::Port => {
                let remedy = "use limit, after and label; ports can be filtered by more";
                Err(parameter(name, "no such query parameter here", remedy))
            }
            _ => Ok(()),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ListQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut asked = ListQuery::default();
        for (key, value) in query(parts)? {
            let place = match key.as_str() {
                "limit" => {
                    let limit = value.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n));
                    let limit = limit.ok_or_else(|| {
                        let remedy = format!("write 1 to {LIMIT_MAX}");
                        parameter("limit", format!("`{value}` is no number of items"), remedy)
                    })?;
                    match asked.limit.replace(limit) {
                        None => continue,
                        Some(_) => {
                            return Err(parameter(&key, "is there twice", "name it once"));
                        }
                    }
                }
                // Each of them counts.
                "label" => {
                    asked.filter.labels.push(label(&value)?);
                    continue;
                }
                "after" => &mut asked.after,
                "network" => &mut asked.filter.network,
                "guest" => &mut asked.filter.guest,
                "adapter" => &mut asked.filter.adapter,
                _ => {
                    let remedy = "use limit, after, label, and for ports network, guest, adapter";
                    return Err(parameter(&key, "no such query parameter", remedy));
                }
            };
            if place.replace(id_parameter(&key, value)?).is_some() {
                return Err(parameter(&key, "is there twice", "name each parameter once"));
            }
        }
        Ok(asked)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for EswitchHow {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let (mut dry_run, mut force) = (None, None);
        for (key, value) in query(parts)? {
            let place = match key.as_str() {
                "dry_run" => &mut dry_run,
                "force" => &mut force,
                _ => {
                    let remedy = "use dry_run or force";
                    return Err(parameter(&key, "no such query parameter", remedy));
                }
            };
            if place.replace(yes_or_no(&key, &value)?).is_some() {
                return Err(parameter(&key, "is there twice", "name each parameter once"));
            }
        }
        let (dry_run, force) = (dry_run.unwrap_or_default(), force.unwrap_or_default());
        Ok(EswitchHow { dry_run, force })
    }
}

/// How long a request waits for the switch where it does not say.
pub(super) const WAIT: Duration = Duration::from_secs(10);

/// How long it may wait: less than any request may take in all. It can be repeated.
pub const WAIT_MAX: Duration = Duration::from_secs(25);

/// How a change is made, or that it is only to be thought of.
pub(super) struct ChangeQuery {
    pub(super) how: ChangeHow,
    pub(super) dry_run: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for ChangeQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let (mut wait, mut timeout, mut dry_run) = (None, None, None);
        for (key, value) in query(parts)? {
            let again = match key.as_str() {
                "wait" if value == "programmed" => wait.replace(()).is_some(),
                "wait" => {
                    let detail = format!("cannot wait for `{value}`");
                    return Err(parameter("wait", detail, "write wait=programmed"));
                }
                "timeout" => timeout.replace(seconds(&value)?).is_some(),
                "dry_run" => dry_run.replace(yes_or_no(&key, &value)?).is_some(),
                _ => {
                    let remedy = "use dry_run, or wait=programmed and timeout";
                    return Err(parameter(&key, "no such query parameter", remedy));
                }
            };
            if again {
                return Err(parameter(&key, "is there twice", "name each parameter once"));
            }
        }
        if wait.is_none() && timeout.is_some() {
            let detail = "there is nothing to wait for";
            return Err(contradiction("timeout", detail, "add wait=programmed"));
        }
        let dry_run = dry_run.unwrap_or_default();
        if wait.is_some() && dry_run {
            let detail = "a dry run changes nothing that could be waited for";
            return Err(contradiction("wait", detail, "leave wait or dry_run out"));
        }
        let wait = wait.map(|()| timeout.unwrap_or(WAIT));
        let only_if = Precondition::from_request_parts(parts, state).await?;
        Ok(ChangeQuery { how: ChangeHow { only_if, wait }, dry_run })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for EventQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let (mut since, mut follow, mut traffic) = (None, None, None);
        for (key, value) in query(parts)? {
            let again = match key.as_str() {
                "traffic" => traffic.replace(yes_or_no(&key, &value)?).is_some(),
                "since" => since.replace(value).is_some(),
                "follow" => follow.replace(yes_or_no(&key, &value)?).is_some(),
                _ => {
                    let remedy = "use since, follow or traffic";
                    return Err(parameter(&key, "no such query parameter", remedy));
                }
            };
            if again {
                return Err(parameter(&key, "is there twice", "name each parameter once"));
            }
        }
        // A browser that connects again says how far it was (WHATWG HTML, section 9.2.4).
        let last = parts.headers.get("last-event-id");
        let last = last.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
        let since = match last.or(since) {
            None => Since::Now,
            Some(oldest) if oldest == "0" => Since::Oldest,
            Some(id) => Since::Event(id),
        };
        let (follow, traffic) = (follow.unwrap_or(true), traffic.unwrap_or(false));
        if traffic && !follow {
            let detail = "only who follows the stream is told of traffic";
            return Err(contradiction("traffic", detail, "leave traffic or follow out"));
        }
        Ok(EventQuery { since, follow, traffic })
    }
}

/// A label that is asked for, `NAME` or `NAME=VALUE`.
fn label(text: &str) -> Result<(String, Option<String>), ApiError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match is_label_name(name) && !text.contains(char::is_control) {
        true => Ok((name.to_owned(), value)),
        false => Err(parameter("label", "is no label", "write NAME or NAME=VALUE")),
    }
}

fn yes_or_no(key: &str, value: &str) -> Result<bool, ApiError> {
    let detail = "is neither true nor false";
    value.parse().map_err(|_| parameter(key, detail, "write true or false"))
}

/// A time to wait, in whole seconds.
fn seconds(text: &str) -> Result<Duration, ApiError> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds.filter(|time| *time <= WAIT_MAX).ok_or_else(|| {
        let most = WAIT_MAX.as_secs();
        let detail = format!("`{text}` is no time to wait");
        parameter(
            "timeout",
            detail,
            format!("write whole seconds, 0 to {most}; repeat to wait longer"),
        )
    })
}

impl<S: Send + Sync> FromRequestParts<S> for Precondition {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let values = |name: HeaderName| {
            let all = parts.headers.get_all(name).iter().map(|value| value.as_bytes());
            let all: Vec<&[u8]> = all.collect();
            (!all.is_empty()).then(|| all.join(&b','))
        };
        match (values(IF_MATCH).as_deref(), values(IF_NONE_MATCH).as_deref()) {
            (None, None) => Ok(Precondition::None),
            (Some(b"*"), None) => Ok(Precondition::Exists),
            (None, Some(b"*")) => Ok(Precondition::Absent),
            (Some(tags), None) => revisions(tags).map(Precondition::Revision).ok_or_else(|| {
                let detail = format!("`{}` is no list of ETags", String::from_utf8_lossy(tags));
                let remedy = "send what a GET said in its header ETag, quotes included";
                parameter("If-Match", detail, remedy)
            }),
            (None, Some(_)) => {
                let remedy = "use If-None-Match: *, or If-Match with ETags";
                Err(parameter("If-None-Match", "cannot be fulfilled by a change", remedy))
            }
            (Some(_), Some(_)) => Err(contradiction(
                "If-None-Match",
                "what is to be in some revision is there",
                "leave If-Match or If-None-Match out",
            )),
        }
    }
}

/// The revisions that a list of entity tags names (RFC 9110, section 8.8.3). Tags that are not of
/// this API name none: they never match.
fn revisions(mut list: &[u8]) -> Option<Vec<u64>> {
    let mut found = Vec::new();
    loop {
        list = list.trim_ascii_start();
        let (weak, quoted) = match list.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, list),
        };
        let text = quoted.strip_prefix(b"\"")?;
        let end = text.iter().position(|byte| *byte == b'"')?;
        let number: Option<u64> =
            str::from_utf8(&text[..end]).ok().and_then(|text| text.parse().ok());
        // A weak tag is no match for a strong one (section 13.1.1).
        found.extend(number.filter(|_| !weak));
        match text[end + 1..].trim_ascii_start() {
            [] => return Some(found),
            [b',', rest @ ..] => list = rest,
            _ => return None,
        }
    }
}

fn query(parts: &Parts) -> Result<Vec<(String, String)>, ApiError> {
    let Query(pairs) = Query::try_from_uri(&parts.uri)
        .map_err(|error| parameter("query", error.body_text(), "write name=value&name=value"))?;
    Ok(pairs)
}

/// The spec of a PUT, valid by itself.
pub(super) struct SpecBody<Spec>(pub(super) Spec);

impl<Spec: Declared, D: Daemon> FromRequest<App<D>> for SpecBody<Spec> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App<D>) -> Result<Self, ApiError> {
        is_json(request.headers())?;
        let bytes = whole_body(request.into_body(), &app.limits, app.limits.body_bytes).await?;
        let Desired { spec } = json::<Desired<Spec>>(&bytes)?;
        spec.validate()?;
        Ok(SpecBody(spec))
    }
}

/// The spec of a PUT that changes an eswitch, valid by itself.
pub(super) struct EswitchBody(pub(super) EswitchSpec);

impl<D: Daemon> FromRequest<App<D>> for EswitchBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App<D>) -> Result<Self, ApiError> {
        is_json(request.headers())?;
        let bytes = whole_body(request.into_body(), &app.limits, app.limits.body_bytes).await?;
        let Desired { spec } = json::<Desired<EswitchSpec>>(&bytes)?;
        spec.validate()?;
        Ok(EswitchBody(spec))
    }
}

/// The frame that is to be traced, valid by itself.
pub(super) struct TraceBody(pub(super) TraceRequest);

impl<D: Daemon> FromRequest<App<D>> for TraceBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App<D>) -> Result<Self, ApiError> {
        is_json(request.headers())?;
        let bytes = whole_body(request.into_body(), &app.limits, app.limits.body_bytes).await?;
        let request: TraceRequest = json(&bytes)?;
        request.validate()?;
        Ok(TraceBody(request))
    }
}

/// The snapshot of a PUT, valid by itself.
pub(super) struct SnapshotBody(pub(super) Snapshot);

impl<D: Daemon> FromRequest<App<D>> for SnapshotBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App<D>) -> Result<Self, ApiError> {
        is_json(request.headers())?;
        let bytes = whole_body(request.into_body(), &app.limits, app.limits.snapshot_bytes).await?;
        Snapshot::read(&bytes).map(SnapshotBody)
    }
}

/// The changes of a batch, valid by themselves.
pub(super) struct BatchBody {
    pub(super) changes: Vec<Wanted>,
    pub(super) only_if: Precondition,
}

impl<D: Daemon> FromRequest<App<D>> for BatchBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App<D>) -> Result<Self, ApiError> {
        is_json(request.headers())?;
        let bytes = whole_body(request.into_body(), &app.limits, app.limits.snapshot_bytes).await?;
        let batch = Batch::read(&bytes)?;
        let only_if = batch.precondition();
        Ok(BatchBody { changes: batch.changes(), only_if })
    }
}

/// No content type counts as JSON: that is how `curl -T file` sends one.
fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let found = String::from_utf8_lossy(value.as_bytes());
    let media_type = found.split(';').next().unwrap_or_default().trim();
    match media_type.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(ApiError::MediaType { found: media_type.to_owned() }),
    }
}

async fn whole_body(body: Body, limits: &Limits, limit_bytes: usize) -> Result<Vec<u8>, ApiError> {
    let read = Limited::new(body, limit_bytes).collect();
    match tokio::time::timeout(limits.body_time, read).await {
        Err(_) => Err(ApiError::SlowRequest { limit: limits.body_time }),
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge { limit_bytes }),
        Ok(Err(error)) => {
            Err(ApiError::Malformed { detail: format!("the body did not arrive whole: {error}") })
        }
    }
}

/// Reads a JSON object; errors name the field.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let malformed = |detail: String| ApiError::Malformed { detail };
    match bytes.trim_ascii_start().first() {
        None => return Err(malformed("the body is empty".to_owned())),
        // serde would take an array for a struct's fields in their order.
        Some(b'[') => return Err(malformed("the body is an array".to_owned())),
        Some(_) => {}
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if !error.is_data() {
            return malformed(format!("the body is not JSON: {error}"));
        }
        let message = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let (detail, remedy) = split_remedy(message.strip_suffix(&place).unwrap_or(&message));
        match path.as_str() {
            "." if detail.starts_with("invalid type") => malformed(format!("the body: {detail}")),
            _ => InvalidField { field: field(path, &detail), detail, remedy }.into(),
        }
    })?;
    deserializer.end().map_err(|error| malformed(format!("after the JSON object: {error}")))?;
    Ok(value)
}

/// The field that a message of serde's is about. Where serde misses a field or finds it twice, the
/// path is that of the object around it.
fn field(path: String, detail: &str) -> String {
    let named = ["missing field `", "duplicate field `"]
        .into_iter()
        .find_map(|start| detail.strip_prefix(start)?.strip_suffix('`'));
    match (path.as_str(), named) {
        (".", Some(name)) => name.to_owned(),
        (path, Some(name)) => format!("{path}.{name}"),
        (_, None) => path,
    }
}

/// Splits serde's messages and those of [`crate::types`] into what is wrong and what is right.
fn split_remedy(message: &str) -> (String, String) {
    if let Some((detail, expected)) = message.rsplit_once(", expected ") {
        (detail.to_owned(), format!("expected {expected}"))
    } else if message.starts_with("missing field") {
        (message.to_owned(), "add it".to_owned())
    } else if message.starts_with("duplicate field") {
        (message.to_owned(), "name it once".to_owned())
    } else if let Some(colon) = message.rfind(": use ").or_else(|| message.rfind(": write ")) {
        (message[..colon].to_owned(), message[colon + 2..].to_owned())
    } else {
        (message.to_owned(), "/openapi.json describes what is accepted".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{GuestSpec, NetworkSpec, PortSpec};

    fn problem<Spec: Declared>(body: &str) -> crate::error::Problem {
        json::<Desired<Spec>>(body.as_bytes()).map(|_| ()).unwrap_err().problem()
    }

    #[test]
    fn an_error_names_the_field_and_what_would_be_right() {
        let of_network = problem::<NetworkSpec>;
        let of_port = problem::<PortSpec>;
        for (problem, field, detail, remedy) in [
            (
                of_network(r#"{"spec": {"kind": {"vlan": {"vid": 4095}}}}"#),
                "spec.kind.vlan.vid",
                "4095 is not a VLAN id",
                "use 1 to 4094",
            ),
            (
                of_network(r#"{"spec": {"kind": "flat", "colour": 1}}"#),
                "spec.colour",
                "unknown field `colour`",
                "expected one of `kind`, `adapter`, `reserved_macs`, `unknown_unicast`, `multicast`, `labels`",
            ),
            (of_network(r#"{"spec": {}}"#), "spec.kind", "missing field `kind`", "add it"),
            (of_network("{}"), "spec", "missing field `spec`", "add it"),
            (
                of_network(r#"{"spec": {"kind": "flat", "kind": "flat"}}"#),
                "spec.kind",
                "duplicate field `kind`",
                "name it once",
            ),
            (
                of_port(
                    r#"{"spec": {"function": {"vf": {"adapter": "a", "index": 0}},
                        "attachments": [{"network": "a"}, {"network": "b", "tag": "x"}]}}"#,
                ),
                "spec.attachments[1].tag",
                "invalid type: string \"x\"",
                "expected u16",
            ),
            (
                of_port(r#"{"spec": {"function": {"vf": {"adapter": "a/b", "index": 0}}}}"#),
                "spec.function.vf.adapter",
                "`a/b` is not an id",
                "use 1 to 128 letters, digits or . _ : - and no leading dot",
            ),
            (
                problem::<GuestSpec>(
                    r#"{"spec": {"backings": {"vf0": {"tap": {"name": "tap0"}}}}}"#,
                ),
                "spec.backings.vf0",
                "unknown variant `tap`",
                "expected `vf` or `netdev`",
            ),
        ] {
            assert_eq!(problem.status, 422, "{problem:?}");
            assert_eq!(problem.field.as_deref(), Some(field));
            assert_eq!(problem.detail, detail);
            assert_eq!(problem.remedy.as_deref(), Some(remedy));
        }
    }

    #[test]
    fn entity_tags_are_told_from_what_is_none_and_those_of_others_name_no_revision() {
        for (list, read) in [
            (r#""7""#, Some(vec![7])),
            (r#""7", "8" ,"9""#, Some(vec![7, 8, 9])),
            (r#"W/"7""#, Some(vec![])),
            (r#""a,b", "7""#, Some(vec![7])),
            (r#""18446744073709551616""#, Some(vec![])),
            ("7", None),
            (r#""7"#, None),
            (r#""7" "8""#, None),
            (r#""7","#, None),
            ("", None),
        ] {
            assert_eq!(revisions(list.as_bytes()), read, "{list}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_malformed() {
        for body in [
            "",
            " ",
            "[]",
            r#"[{"kind": "flat"}]"#,
            "5",
            "null",
            "{",
            "\u{0}",
            r#"{"spec": {}} {}"#,
        ] {
            assert_eq!(problem::<GuestSpec>(body).status, 400, "{body}");
        }
    }
}
