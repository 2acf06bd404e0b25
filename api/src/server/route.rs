//! The table of routes: path, handlers and their description stand together.
//!
//! In: nothing. Out: all routes of the API. A handler reads its request by extractors, asks the
//! daemon one thing, and writes the answer; it decides nothing.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{self, MethodRouter, get, post},
};
use utoipa::openapi::PathItem;

use super::{
    App, ChangeHow, Daemon, EswitchHow, FlowFilter, MetricsFormat, Precondition, bounds,
    declared::Declared,
    openapi, reply,
    request::{
        BatchBody, ChangeQuery, EswitchBody, ListQuery, NoQuery, PathId, SnapshotBody, SpecBody,
        TraceBody,
    },
    scrape,
    stream::{self, EventQuery},
};
use crate::{
    batch::Wanted,
    error::{ApiError, InvalidField},
    explain::Explanation,
    resources::{
        Adapter, EswitchChange, Flow, GuestSpec, List, NetworkSpec, PortSpec, Resource, TornDown,
    },
    snapshot::Snapshot,
    trace::Trace,
};

/// Snapshots that may be under way at a time: each may be large.
const SNAPSHOTS: usize = 2;

/// Batches that may be under way at a time, with those that wait for the switch.
const BATCHES: usize = 16;

/// A path, what answers there, and how that is described.
pub(super) struct Route<D> {
    pub(super) path: &'static str,
    pub(super) methods: MethodRouter<App<D>>,
    pub(super) item: fn() -> PathItem,
}

/// All routes.
pub(super) fn table<D: Daemon>() -> Vec<Route<D>> {
    let route = |path, methods: MethodRouter<App<D>>, item: fn() -> PathItem| Route {
        path,
        methods: methods.fallback(no_method),
        item,
    };
    vec![
        route("/v1/networks", get(list::<NetworkSpec, D>), openapi::many::<NetworkSpec>),
        route("/v1/networks/{id}", single::<NetworkSpec, D>(), openapi::one::<NetworkSpec>),
        route("/v1/ports", get(list::<PortSpec, D>), openapi::many::<PortSpec>),
        route("/v1/ports/{id}", single::<PortSpec, D>(), openapi::one::<PortSpec>),
        route("/v1/ports/{id}/explain", get(explain::<D>), openapi::explain),
        route("/v1/guests", get(list::<GuestSpec, D>), openapi::many::<GuestSpec>),
        route("/v1/guests/{id}", single::<GuestSpec, D>(), openapi::one::<GuestSpec>),
        route("/v1/adapters", get(adapters::<D>), openapi::adapters),
        route("/v1/adapters/{id}", get(adapter::<D>), openapi::adapter),
        route("/v1/adapters/{id}/eswitch", routing::put(put_eswitch::<D>), openapi::eswitch),
        route("/v1/flows", get(flows::<D>), openapi::flows),
        route("/v1/trace", post(trace::<D>), openapi::trace),
        route(
            "/v1/snapshot",
            in_slots(get(save::<D>).put(restore::<D>), SNAPSHOTS),
            openapi::snapshot,
        ),
        route("/v1/apply", in_slots(post(apply::<D>), BATCHES), openapi::batch),
        route("/v1/events", get(events::<D>), openapi::events),
        route("/v1/teardown", post(tear_down::<D>), openapi::teardown),
        route("/v1/resume", post(resume::<D>), openapi::resume),
        route("/healthz", get(healthy), openapi::healthz),
        route("/readyz", get(ready::<D>), openapi::readyz),
        route("/metrics", get(metrics::<D>), openapi::metrics),
        route("/openapi.json", get(document::<D>), openapi::openapi_json),
    ]
}

fn in_slots<D: Daemon>(methods: MethodRouter<App<D>>, count: usize) -> MethodRouter<App<D>> {
    let slots = bounds::slots(count);
    bounds::in_slots(methods, &slots, &slots)
}

fn single<Spec: Declared, D: Daemon>() -> MethodRouter<App<D>> {
    get(read::<Spec, D>).put(put::<Spec, D>).delete(delete::<Spec, D>)
}

async fn list<Spec: Declared, D: Daemon>(
    State(app): State<App<D>>,
    query: ListQuery,
) -> Result<Response, ApiError> {
    query.is_for(Spec::KIND)?;
    let all = Spec::list(&*app.daemon).await?.into_iter();
    let fits = |resource: &Resource<Spec, Spec::Status>| {
        query.after.as_ref().is_none_or(|after| resource.id > *after)
            && Spec::fits(resource, &query.filter)
    };
    let mut items: Vec<_> = all.filter(fits).collect();
    let more = query.limit.is_some_and(|limit| items.len() > limit);
    items.truncate(query.limit.unwrap_or(usize::MAX));
    let next = items.last().filter(|_| more).map(|last| last.id.clone());
    Ok(Json(List { items, next }).into_response())
}

async fn read<Spec: Declared, D: Daemon>(
    State(app): State<App<D>>,
    PathId(id): PathId,
    _: NoQuery,
) -> Result<Response, ApiError> {
    Spec::get(&*app.daemon, &id).await.map(|resource| reply::resource(&resource))
}

async fn put<Spec: Declared, D: Daemon>(
    State(app): State<App<D>>,
    PathId(id): PathId,
    ChangeQuery { how, dry_run }: ChangeQuery,
    SpecBody(spec): SpecBody<Spec>,
) -> Result<Response, ApiError> {
    if dry_run {
        return imagine(&app, vec![Spec::wanted(id, Some(spec))], how.only_if).await;
    }
    spec.put(&*app.daemon, id, how).await.map(|put| reply::put(&put))
}

async fn delete<Spec: Declared, D: Daemon>(
    State(app): State<App<D>>,
    PathId(id): PathId,
    ChangeQuery { how, dry_run }: ChangeQuery,
) -> Result<Response, ApiError> {
    if dry_run {
        Spec::get(&*app.daemon, &id).await?;
        return imagine(&app, vec![Spec::wanted(id, None)], how.only_if).await;
    }
    let revision = Spec::delete(&*app.daemon, &id, how).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.extensions_mut().insert(reply::Revision(revision));
    Ok(response)
}

/// What changes would come to.
async fn imagine<D: Daemon>(
    app: &App<D>,
    changes: Vec<Wanted>,
    only_if: Precondition,
) -> Result<Response, ApiError> {
    let dry_run = app.daemon.dry_run(changes, only_if).await?;
    Ok(Json(dry_run).into_response())
}

async fn apply<D: Daemon>(
    State(app): State<App<D>>,
    ChangeQuery { how, dry_run }: ChangeQuery,
    BatchBody { changes, only_if }: BatchBody,
) -> Result<Response, ApiError> {
    if how.only_if != Precondition::None {
        return Err(ApiError::Parameter(InvalidField {
            field: "If-Match".into(),
            detail: "a batch has no revision".into(),
            remedy: "name the revision of each resource in the batch's only_if".into(),
        }));
    }
    if dry_run {
        return imagine(&app, changes, only_if).await;
    }
    let applied = app.daemon.apply(changes, ChangeHow { only_if, wait: how.wait }).await?;
    let revision = reply::Revision(applied.revision);
    let mut response = Json(applied).into_response();
    response.extensions_mut().insert(revision);
    Ok(response)
}

async fn adapters<D: Daemon>(
    State(app): State<App<D>>,
    _: NoQuery,
) -> Result<Json<List<Adapter>>, ApiError> {
    app.daemon.adapters().await.map(|items| Json(List { items, next: None }))
}

async fn adapter<D: Daemon>(
    State(app): State<App<D>>,
    PathId(id): PathId,
    _: NoQuery,
) -> Result<Json<Adapter>, ApiError> {
    app.daemon.adapter(&id).await.map(Json)
}

async fn put_eswitch<D: Daemon>(
    State(app): State<App<D>>,
    PathId(id): PathId,
    how: EswitchHow,
    EswitchBody(spec): EswitchBody,
) -> Result<(StatusCode, Json<EswitchChange>), ApiError> {
    let change = app.daemon.put_eswitch(&id, spec, how).await?;
    let status = if change.started { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(change)))
}

async fn flows<D: Daemon>(
    State(app): State<App<D>>,
    filter: FlowFilter,
) -> Result<Json<List<Flow>>, ApiError> {
    app.daemon.flows(filter).await.map(|items| Json(List { items, next: None }))
}

async fn explain<D: Daemon>(
    State(app): State<App<D>>,
    PathId(id): PathId,
    _: NoQuery,
) -> Result<Json<Explanation>, ApiError> {
    app.daemon.explain(&id).await.map(Json)
}

async fn trace<D: Daemon>(
    State(app): State<App<D>>,
    _: NoQuery,
    TraceBody(request): TraceBody,
) -> Result<Json<Trace>, ApiError> {
    app.daemon.trace(request).await.map(Json)
}

async fn save<D: Daemon>(
    State(app): State<App<D>>,
    _: NoQuery,
) -> Result<Json<Snapshot>, ApiError> {
    app.daemon.snapshot().await.map(Json)
}

async fn restore<D: Daemon>(
    State(app): State<App<D>>,
    _: NoQuery,
    SnapshotBody(snapshot): SnapshotBody,
) -> Result<Response, ApiError> {
    app.daemon.restore(snapshot).await.map(|put| reply::restored(&put))
}

async fn events<D: Daemon>(
    State(app): State<App<D>>,
    query: EventQuery,
) -> Result<Response, ApiError> {
    let slot = Arc::clone(&app.streams)
        .try_acquire_owned()
        .map_err(|_| bounds::overloaded("as many clients read events as the daemon serves"))?;
    Ok(stream::events(app.daemon.feed(), &query, slot))
}

async fn tear_down<D: Daemon>(
    State(app): State<App<D>>,
    _: NoQuery,
) -> Result<Json<TornDown>, ApiError> {
    app.daemon.tear_down().await.map(Json)
}

async fn resume<D: Daemon>(State(app): State<App<D>>, _: NoQuery) -> Result<StatusCode, ApiError> {
    app.daemon.resume().await.map(|()| StatusCode::NO_CONTENT)
}

async fn healthy() -> &'static str {
    "ok\n"
}

async fn ready<D: Daemon>(State(app): State<App<D>>) -> Result<&'static str, ApiError> {
    app.daemon.ready().await.map(|()| "ready\n").map_err(ApiError::NotReady)
}

async fn metrics<D: Daemon>(
    State(app): State<App<D>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let format = MetricsFormat::accepted(&headers);
    let metrics = app.daemon.metrics(format, scrape::patience(&headers)).await?;
    Ok(([(CONTENT_TYPE, format.media_type())], metrics).into_response())
}

async fn document<D: Daemon>(State(app): State<App<D>>) -> Response {
    let text = || {
        let paths = table::<D>().into_iter().map(|Route { path, item, .. }| (path, item()));
        openapi::text(paths).into()
    };
    let document: Bytes = app.document.get_or_init(text).clone();
    ([(CONTENT_TYPE, "application/json")], document).into_response()
}

pub(super) async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::Method { method: method.to_string(), path: uri.path().to_owned() }
}
