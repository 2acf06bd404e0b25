//! The OpenAPI 3.1 document.
//!
//! In: the resource types, examples of them, and [`ApiError`]s as samples of what can go wrong.
//! Out: a description of each route, which stands beside the route itself, and the whole document.
//! Schemas come from the types: nothing is described twice.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, ContentBuilder, HeaderBuilder, HttpMethod, InfoBuilder, LicenseBuilder,
        ObjectBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder, Ref, RefOr, Required,
        Response, ResponseBuilder, Schema, Type,
        example::{Example, ExampleBuilder},
        link::{Link, LinkBuilder},
        path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItemBuilder},
        request_body::RequestBodyBuilder,
        schema::{AdditionalProperties, ArrayBuilder, OneOfBuilder},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
        tag::TagBuilder,
    },
};

use super::{
    Limits,
    declared::Declared,
    example,
    request::{LIMIT_MAX, WAIT, WAIT_MAX},
    scrape::METRICS_MEDIA_TYPE,
    stream::EVENTS_MEDIA_TYPE,
};
use crate::{
    batch::{Applied, Batch, DryRun},
    error::{
        ApiError, InvalidField, NotReady, PROBLEM_MEDIA_TYPE, Problem, ResourceKind, ResourceRef,
    },
    events::{Event, Traffic},
    explain::Explanation,
    resources::{
        Adapter, Backing, Desired, EswitchChange, EswitchSpec, Flow, GuestSpec, NetworkKind,
        NetworkSpec, PortFunction, PortSpec, Resource, TornDown,
    },
    snapshot::{Restored, Snapshot},
    trace::{Trace, TraceFrom, TracePayload, TraceRequest, TraceTransport},
    types::Id,
};

const JSON: &str = "application/json";

const DESCRIPTION: &str = "\
Declarative resources: `spec` is what the client wants, `status` what the daemon sees. PUT and \
DELETE are idempotent and answer when the change is durable; when the switch has followed, the \
status says so.

Every error is problem details (RFC 9457) with a `type` that never changes and, where there is \
one, the `field` that is wrong and the `remedy`. Any path may also answer `method-not-allowed` \
(405) and any other path `no-route` (404). Unknown fields and unknown query parameters are refused. \
Over TCP, a request in the name of another host than localhost is `foreign-host` (421). What is \
not HTTP at all, or has headers that are too many or too large, is answered by a bare 400 or 431.";

// ---------------------------------------------------------------- the document

/// The whole document over the paths of the routes, as JSON for people and programs.
pub(super) fn text(paths: impl Iterator<Item = (&'static str, PathItem)>) -> String {
    #[expect(clippy::expect_used, reason = "constant input, read by the document's test")]
    let text = document(paths).to_pretty_json().expect("a document that JSON can say");
    text + "\n"
}

fn document(paths: impl Iterator<Item = (&'static str, PathItem)>) -> OpenApi {
    let tag = |name: &str, description: &str| {
        TagBuilder::new().name(name).description(Some(description)).build()
    };
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("eswitchd")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(DESCRIPTION))
                .license(Some(
                    LicenseBuilder::new()
                        .name("Apache-2.0 OR MIT")
                        .identifier(Some("Apache-2.0 OR MIT"))
                        .build(),
                ))
                .build(),
        )
        .paths(
            paths.fold(PathsBuilder::new(), |built, (path, item)| built.path(path, item)).build(),
        )
        .components(Some(
            ComponentsBuilder::new()
                .schemas_from_iter(schemas())
                .security_scheme(TOKEN, token())
                .security_scheme(CERTIFICATE, certificate())
                .build(),
        ))
        .security(Some(
            [TOKEN, CERTIFICATE]
                .map(|scheme| SecurityRequirement::new(scheme, std::iter::empty::<String>())),
        ))
        .tags(Some([
            tag("networks", "L2 segments."),
            tag("ports", "Permissions of VFs to take part in networks."),
            tag("guests", "VMs, reached through their QMP sockets."),
            tag("adapters", "Eswitches of the host: found, not made."),
            tag("flows", "The tc-flower rules that the daemon wants or has installed."),
            tag("daemon", "The daemon itself: health, metrics, this document."),
        ]))
        .build()
}

const TOKEN: &str = "token";
const CERTIFICATE: &str = "certificate";

/// Who comes over the Unix socket needs neither: the kernel says who that is.
fn token() -> SecurityScheme {
    let words = "A token of the daemon's token file. Over the Unix socket none is needed: the \
                 kernel says who asks.";
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(words));
    SecurityScheme::Http(bearer.build())
}

fn certificate() -> SecurityScheme {
    let words = "Over TLS: a certificate of the daemon's client_ca for a name that has a role.";
    SecurityScheme::MutualTls {
        description: Some(words.into()),
        deprecated: None,
        extensions: None,
    }
}

fn schemas() -> BTreeMap<String, RefOr<Schema>> {
    let mut schemas = Vec::new();
    declared_schemas::<NetworkSpec>(&mut schemas);
    declared_schemas::<PortSpec>(&mut schemas);
    declared_schemas::<GuestSpec>(&mut schemas);
    found_schemas::<Adapter>(&mut schemas);
    found_schemas::<Flow>(&mut schemas);
    found_schemas::<EswitchSpec>(&mut schemas);
    found_schemas::<EswitchChange>(&mut schemas);
    schemas.push(("DesiredEswitch".to_owned(), Desired::<EswitchSpec>::schema()));
    found_schemas::<Snapshot>(&mut schemas);
    found_schemas::<Restored>(&mut schemas);
    found_schemas::<TornDown>(&mut schemas);
    found_schemas::<Batch>(&mut schemas);
    found_schemas::<Event>(&mut schemas);
    found_schemas::<Traffic>(&mut schemas);
    found_schemas::<Applied>(&mut schemas);
    found_schemas::<DryRun>(&mut schemas);
    found_schemas::<TraceRequest>(&mut schemas);
    found_schemas::<Trace>(&mut schemas);
    found_schemas::<Explanation>(&mut schemas);
    found_schemas::<Problem>(&mut schemas);
    let mut schemas: BTreeMap<_, _> = schemas.into_iter().collect();
    let enums = [
        NetworkKind::name(),
        PortFunction::name(),
        Backing::name(),
        TraceFrom::name(),
        TracePayload::name(),
        TraceTransport::name(),
    ];
    for name in enums {
        if let Some(schema) = schemas.get_mut(&*name) {
            close(schema);
        }
    }
    if let Some(payload) = schemas.get_mut(&*TracePayload::name()) {
        bound_ethertype(payload);
    }
    schemas
}

/// utoipa takes no bounds for what a variant holds.
fn bound_ethertype(payload: &mut RefOr<Schema>) {
    let RefOr::T(Schema::OneOf(one_of)) = payload else { return };
    for variant in &mut one_of.items {
        if let RefOr::T(Schema::Object(variant)) = variant
            && let Some(RefOr::T(Schema::Object(number))) = variant.properties.get_mut("ethertype")
        {
            (number.minimum, number.maximum) = (Some(0x600.into()), Some(0xffff.into()));
        }
    }
}

/// Says of every object in a schema what serde does: that it has no further fields. utoipa does so
/// for structs, not for the variants of an enum.
fn close(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::T(Schema::OneOf(one_of)) => one_of.items.iter_mut().for_each(close),
        RefOr::T(Schema::Object(object)) if !object.properties.is_empty() => {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
            object.properties.values_mut().for_each(close);
        }
        _ => {}
    }
}

type Schemas = Vec<(String, RefOr<Schema>)>;

fn found_schemas<T: ToSchema>(schemas: &mut Schemas) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}

fn declared_schemas<Spec: Declared>(schemas: &mut Schemas) {
    found_schemas::<Spec>(schemas);
    found_schemas::<Spec::Status>(schemas);
    let name = resource_name(Spec::KIND);
    schemas.push((name.to_owned(), Resource::<Spec, Spec::Status>::schema()));
    schemas.push((format!("Desired{name}"), Desired::<Spec>::schema()));
    found_schemas::<Id>(schemas);
}

fn resource_name(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Network => "Network",
        ResourceKind::Port => "Port",
        ResourceKind::Guest => "Guest",
        ResourceKind::Adapter => "Adapter",
    }
}

/// The header that says in which state a resource must be to be changed.
fn precondition(name: &str, description: &str, example: &str, only: &[&str]) -> Parameter {
    let text = ObjectBuilder::new().schema_type(Type::String);
    let text = if only.is_empty() { text } else { text.enum_values(Some(only.to_vec())) };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(text.build()))
        .example(Some(example.into()))
        .build()
}

fn if_match() -> Parameter {
    let description = "Only in one of these revisions (`ETag`), or `*`: in any.";
    precondition("If-Match", description, "\"7\"", &[])
}

fn if_none_match() -> Parameter {
    let description = "Only where it is not there yet. Not beside If-Match.";
    precondition("If-None-Match", description, "*", &["*"])
}

fn wait() -> Parameter {
    let words = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["programmed"]));
    ParameterBuilder::new()
        .name("wait")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some("Answer when what the change needs is in the kernel."))
        .schema(Some(words.build()))
        .example(Some("programmed".into()))
        .build()
}

fn wait_timeout() -> Parameter {
    let seconds = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(0))
        .maximum(Some(WAIT_MAX.as_secs_f64()))
        .default(Some(WAIT.as_secs().into()));
    ParameterBuilder::new()
        .name("timeout")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some("How long to wait, in seconds. Only with wait."))
        .schema(Some(seconds.build()))
        .example(Some(5.into()))
        .build()
}

fn id_query(name: &str, description: &str, example: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(component("Id")))
        .example(Some(example.into()))
        .build()
}

fn page_limit() -> Parameter {
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    ParameterBuilder::new()
        .name("limit")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some("At most so many; `next` then says where the rest begins."))
        .schema(Some(number.maximum(Some(LIMIT_MAX as f64)).build()))
        .example(Some(100.into()))
        .build()
}

fn label() -> Parameter {
    let label = ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some("^[A-Za-z0-9._:/-]{1,128}(=[^\\x00-\\x1f\\x7f-\\x9f]*)?$"));
    ParameterBuilder::new()
        .name("label")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some("Only those with this label, NAME or NAME=VALUE; may be repeated."))
        .schema(Some(ArrayBuilder::new().items(label.build()).build()))
        .example(Some(json!(["tier=web"])))
        .build()
}

fn dry_run() -> Parameter {
    ParameterBuilder::new()
        .name("dry_run")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some("Change nothing: only say what it would come to."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::Boolean).build()))
        .example(Some(false.into()))
        .build()
}

fn dry_run_response(description: &str) -> Response {
    json_response(description, component(&DryRun::name()), example::dry_run()).build()
}

/// One of two components.
fn either(one: &str, other: &str) -> RefOr<Schema> {
    let one_of = OneOfBuilder::new().item(component(one)).item(component(other)).build();
    Schema::OneOf(one_of).into()
}

fn component(name: &str) -> Ref {
    Ref::from_schema_name(name)
}

// ---------------------------------------------------------------- the routes

/// GET of all resources of a kind.
pub(super) fn many<Spec: Declared>() -> PathItem {
    let kind = Spec::KIND;
    let operation = operation(kind.plural(), &format!("list_{}", kind.plural()))
        .summary(Some(format!(
            "{} in order of id, all or those that are asked for",
            resource_name(kind)
        )))
        .parameter(page_limit())
        .parameter(id_query("after", "Only those behind this id: `next` of the page before.", "a"))
        .parameter(label());
    let operation = match kind {
        ResourceKind::Port => [
            ("network", "Only those attached to this network.", ResourceKind::Network),
            ("guest", "Only those of this guest.", ResourceKind::Guest),
            ("adapter", "Only those bound to this adapter.", ResourceKind::Adapter),
        ]
        .into_iter()
        .fold(operation, |operation, (name, description, kind)| {
            operation.parameter(id_query(name, description, example::id(kind)))
        }),
        _ => operation,
    };
    let first = link_to(&format!("get_{kind}"), "$response.body#/items/0/id");
    let list = list(resource_name(kind), example::resource::<Spec>()).link("first", first).build();
    get(with_problems(operation.response("200", list), reading(vec![])))
}

/// GET, PUT and DELETE of a resource.
pub(super) fn one<Spec: Declared>() -> PathItem {
    let kind = Spec::KIND;
    let name = resource_name(kind);
    let named = |verb: &str| {
        operation(kind.plural(), &format!("{verb}_{kind}"))
            .parameter(id_parameter(example::id(kind)))
    };
    let resource = |description: &str, outcome: &[&str]| {
        let schema: RefOr<Schema> = match outcome {
            ["updated", ..] => either(name, &DryRun::name()),
            _ => component(name).into(),
        };
        let response =
            json_response(description, schema, example::resource::<Spec>()).header("ETag", etag());
        let response = links_of(kind)
            .into_iter()
            .fold(response, |response, (name, link)| response.link(name, link));
        match outcome {
            [] => response.build(),
            words => response.header("Eswitchd-Outcome", one_of(words)).build(),
        }
    };

    let get = named("get")
        .summary(Some(format!("A {kind}, its spec and its status")))
        .response("200", resource("It.", &[]));
    let put = named("put")
        .summary(Some(format!("Create a {kind}, or change its spec")))
        .description(Some(
            "Idempotent: with the spec that is there already, nothing is stored and the revision \
             stays. Answers when the change is durable, with wait=programmed when it is in the \
             kernel, too.",
        ))
        .parameter(if_match())
        .parameter(if_none_match())
        .parameter(wait())
        .parameter(wait_timeout())
        .parameter(dry_run())
        .request_body(Some(
            RequestBodyBuilder::new()
                .description(Some("What is wanted."))
                .required(Some(Required::True))
                .content(
                    JSON,
                    ContentBuilder::new()
                        .schema(Some(component(&format!("Desired{name}"))))
                        .example(Some(json!({ "spec": example::spec::<Spec>() })))
                        .build(),
                )
                .build(),
        ))
        .response("200", resource("It was there, or a dry run.", &["updated", "unchanged"]))
        .response("201", resource("It is new.", &["created"]));
    let delete = named("delete")
        .summary(Some(format!("Remove a {kind}")))
        .parameter(if_match())
        .parameter(wait())
        .parameter(wait_timeout())
        .parameter(dry_run())
        .response("200", dry_run_response("A dry run."))
        .response("204", ResponseBuilder::new().description("It is gone."));

    PathItemBuilder::new()
        .operation(
            HttpMethod::Get,
            with_problems(get, reading(vec![not_found(kind, "no-such-id")])),
        )
        .operation(
            HttpMethod::Put,
            with_problems(
                put,
                [reading(vec![]), writing(kind), body_problems(), vec![contradiction(kind)]]
                    .concat(),
            ),
        )
        .operation(
            HttpMethod::Delete,
            with_problems(
                delete,
                [
                    reading(vec![not_found(kind, "no-such-id")]),
                    writing(kind),
                    vec![still_needed(kind)],
                ]
                .concat(),
            ),
        )
        .build()
}

/// GET of all adapters.
pub(super) fn adapters() -> PathItem {
    let operation = operation("adapters", "list_adapters")
        .summary(Some("All adapters, in order of id"))
        .response(
            "200",
            list("Adapter", example::adapter())
                .link("first", link_to("get_adapter", "$response.body#/items/0/id"))
                .link("eswitch", link_to("put_eswitch", "$response.body#/items/0/id"))
                .build(),
        );
    get(with_problems(operation, reading(vec![])))
}

/// GET of an adapter.
pub(super) fn adapter() -> PathItem {
    let kind = ResourceKind::Adapter;
    let operation = operation("adapters", "get_adapter")
        .summary(Some("An adapter"))
        .parameter(id_parameter(example::id(kind)))
        .response("200", json_response("It.", component("Adapter"), example::adapter()).build());
    get(with_problems(operation, reading(vec![not_found(kind, "pci-0000:99:00.0")])))
}

/// PUT of an adapter's mode and number of VFs.
pub(super) fn eswitch() -> PathItem {
    let kind = ResourceKind::Adapter;
    let switch = |name: &str, description: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Query)
            .required(Required::False)
            .description(Some(description))
            .schema(Some(ObjectBuilder::new().schema_type(Type::Boolean).build()))
            .example(Some(false.into()))
            .build()
    };
    let answer = |description: &str, started: bool| {
        let example = example::eswitch_change(started);
        json_response(description, component("EswitchChange"), example).build()
    };
    let put = operation("adapters", "put_eswitch")
        .summary(Some("Change an adapter's mode and number of VFs, or say what that would mean"))
        .description(Some(
            "Only where the configuration has manage_eswitch. What is absent from the spec stays. \
             Answers when the order is durable; the adapter's condition `Eswitch` says when it is \
             carried out. If the kernel refuses a step, everything is put back as it was.",
        ))
        .parameter(id_parameter(example::id(kind)))
        .parameter(switch("dry_run", "Change nothing: only say what it would mean."))
        .parameter(switch("force", "Even while VFs are in use."))
        .request_body(Some(
            RequestBodyBuilder::new()
                .description(Some("What is wanted."))
                .required(Some(Required::True))
                .content(
                    JSON,
                    ContentBuilder::new()
                        .schema(Some(component("DesiredEswitch")))
                        .example(Some(json!({"spec": {"mode": "switchdev", "num_vfs": 2}})))
                        .build(),
                )
                .build(),
        ))
        .response("200", answer("A dry run, or there is nothing to do.", false))
        .response("202", answer("It is begun.", true));
    let blocked = ApiError::Conflict {
        detail: "VFs of adapter `pci-0000:03:00.0` are in use: port web-1 (VF 0)".into(),
        blockers: vec![ResourceRef { kind: ResourceKind::Port, id: example_id("web-1") }],
        remedy: "take the guests off them first, or repeat with force=true".into(),
    };
    let problems = [
        reading(vec![not_found(kind, "pci-0000:99:00.0"), blocked.problem()]),
        body_problems(),
        vec![ApiError::Store(cause()).problem(), ApiError::StoreFull(cause()).problem()],
    ];
    PathItemBuilder::new().operation(HttpMethod::Put, with_problems(put, problems.concat())).build()
}

/// GET of flows.
pub(super) fn flows() -> PathItem {
    let filter = |name, description, kind| id_query(name, description, example::id(kind));
    let operation = operation("flows", "list_flows")
        .summary(Some("Flows, all or those that match every filter"))
        .description(Some("A filter that names what is not there matches nothing."))
        .parameter(filter("adapter", "Only on this adapter.", ResourceKind::Adapter))
        .parameter(filter("port", "Only because of this port.", ResourceKind::Port))
        .parameter(filter("network", "Only because of this network.", ResourceKind::Network))
        .response("200", list("Flow", example::flow()).build());
    get(with_problems(operation, reading(vec![])))
}

/// GET of how far a port has come.
pub(super) fn explain() -> PathItem {
    let kind = ResourceKind::Port;
    let answer = component(&Explanation::name());
    let operation = operation("ports", "explain_port")
        .summary(Some("How far a port has come, and what is in its way"))
        .description(Some(
            "Six links from what was asked for to frames that met the port's rules; `broken` names \
             the first that does not hold.",
        ))
        .parameter(id_parameter(example::id(kind)))
        .response("200", json_response("It.", answer, example::explanation()).build());
    get(with_problems(operation, reading(vec![not_found(kind, "no-such-id")])))
}

/// POST of a frame that is to be traced.
pub(super) fn trace() -> PathItem {
    let operation = operation("flows", "trace")
        .summary(Some("What a frame meets in the rules that are installed"))
        .description(Some(
            "Nothing is sent and nothing is changed: the rules are read from the kernel and walked, \
             in hardware and software.",
        ))
        .request_body(Some(
            RequestBodyBuilder::new()
                .description(Some("The frame, and where it comes in."))
                .required(Some(Required::True))
                .content(
                    JSON,
                    ContentBuilder::new()
                        .schema(Some(component(&TraceRequest::name())))
                        .example(Some(example::trace_request()))
                        .build(),
                )
                .build(),
        ))
        .response(
            "200",
            json_response("Its way.", component(&Trace::name()), example::trace()).build(),
        );
    let nowhere = ApiError::Conflict {
        detail: "port `web-1` stands nowhere: guest `vm1` is not there".into(),
        blockers: Vec::new(),
        remedy: "see what is missing: eswitchctl explain port web-1".into(),
    };
    let problems = [
        reading(vec![not_found(ResourceKind::Port, "no-such-id"), nowhere.problem()]),
        body_problems(),
    ];
    post(with_problems(operation, problems.concat()))
}

/// GET and PUT of the snapshot.
pub(super) fn snapshot() -> PathItem {
    let saved = component(&Snapshot::name());
    let restore = LinkBuilder::new()
        .operation_id("restore_snapshot")
        .request_body(Some("$response.body"))
        .build();
    let get = operation("daemon", "save_snapshot")
        .summary(Some("Everything that clients have PUT, in one document"))
        .response(
            "200",
            json_response("It.", saved.clone(), example::snapshot())
                .link("restore", restore)
                .build(),
        );
    let put = operation("daemon", "restore_snapshot")
        .summary(Some("Put a snapshot in the place of everything that clients have PUT"))
        .description(Some(
            "In one transaction: all of it, or on an error nothing. Resources that are not in it \
             go. Revisions grow on; with the snapshot of what is there already nothing is stored.",
        ))
        .request_body(Some(
            RequestBodyBuilder::new()
                .description(Some("What GET has answered."))
                .required(Some(Required::True))
                .content(
                    JSON,
                    ContentBuilder::new()
                        .schema(Some(saved))
                        .example(Some(example::snapshot()))
                        .build(),
                )
                .build(),
        ))
        .response(
            "200",
            json_response("It is in force.", component(&Restored::name()), example::restored())
                .header("Eswitchd-Outcome", one_of(&["updated", "unchanged"]))
                .build(),
        );
    PathItemBuilder::new()
        .operation(HttpMethod::Get, with_problems(get, reading(vec![])))
        .operation(
            HttpMethod::Put,
            with_problems(put, [reading(vec![]), storing(), body_problems()].concat()),
        )
        .build()
}

/// POST of many changes.
pub(super) fn batch() -> PathItem {
    let operation = operation("daemon", "apply_batch")
        .summary(Some("Many changes in one transaction"))
        .description(Some(
            "All of them, or on an error none. Specs are put, and what `delete` names goes; what is \
             not there is no error. A network may be deleted together with its last ports.",
        ))
        .parameter(wait())
        .parameter(wait_timeout())
        .parameter(dry_run())
        .request_body(Some(
            RequestBodyBuilder::new()
                .description(Some("The changes, at most 20,000."))
                .required(Some(Required::True))
                .content(
                    JSON,
                    ContentBuilder::new()
                        .schema(Some(component(&Batch::name())))
                        .example(Some(example::batch()))
                        .build(),
                )
                .build(),
        ))
        .response(
            "200",
            json_response(
                "They are made, or a dry run.",
                either(&Applied::name(), &DryRun::name()),
                example::applied(),
            )
            .build(),
        );
    let resource = ResourceRef { kind: ResourceKind::Port, id: example_id("web-1") };
    let changed = ApiError::Precondition { resource, revision: Some(43) };
    let what = "a batch of 3 changes".to_owned();
    let missing = vec!["adapter pci-0000:03:00.0: flows of 2 netdevs are on their way".to_owned()];
    let slow = ApiError::NotProgrammed { what, waited: WAIT, missing };
    let problems = [
        reading(vec![still_needed(ResourceKind::Network), slow.problem(), changed.problem()]),
        storing(),
        body_problems(),
    ];
    post(with_problems(operation, problems.concat()))
}

/// The stream of events.
pub(super) fn events() -> PathItem {
    let since = ParameterBuilder::new()
        .name("since")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(
            "Behind the event with this id; 0: from the oldest that is kept; absent: from now on. \
             The header `Last-Event-ID` says the same, and goes before.",
        ))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
        .example(Some("0".into()))
        .build();
    let follow = ParameterBuilder::new()
        .name("follow")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some("false: end when all that there is has been read."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::Boolean).build()))
        .example(Some(false.into()))
        .build();
    let traffic = ParameterBuilder::new()
        .name("traffic")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(
            "true: also what ports receive and send, every other second, as events `traffic`. Not \
             with `follow=false`.",
        ))
        .schema(Some(ObjectBuilder::new().schema_type(Type::Boolean).build()))
        .example(Some(false.into()))
        .build();
    let sample = "id: 19abf3c2d10-16\nevent: start\ndata: {\"message\": \"events that follow \
                  happened behind this one\"}\n\nid: 19abf3c2d10-17\nevent: condition\n\
                  data: {\"id\": \"19abf3c2d10-17\", \"at\": \"2026-11-22T15:04:05.123Z\", \
                  \"kind\": \"condition\", \"resource\": \"ports/web-1\", \"reason\": \
                  \"Programmed\", \"message\": \"True (Installed): all flows are installed\"}\n\n";
    // Without a schema: OpenAPI 3.1 has none for the events of a stream.
    let content = ContentBuilder::new().example(Some(sample.into())).build();
    let stream =
        ResponseBuilder::new().description("The stream.").content(EVENTS_MEDIA_TYPE, content);
    let operation = operation("daemon", "events")
        .summary(Some("What happens, as server-sent events"))
        .description(Some(
            "The data of each is an Event, but for `start` (the first: from where), `lost` (events \
             are gone that were not read: read again what there is; the stream goes on after it \
             only where it is the first), `end` (the daemon ends) and `traffic`, whose data is a \
             Traffic. Goes on until the client closes it.",
        ))
        .parameter(since)
        .parameter(follow)
        .parameter(traffic)
        .response("200", stream);
    let contradiction = ApiError::Invalid(InvalidField {
        field: "traffic".into(),
        detail: "only who follows the stream is told of traffic".into(),
        remedy: "leave traffic or follow out".into(),
    });
    get(with_problems(operation, reading(vec![contradiction.problem()])))
}

/// POST that takes flows away.
pub(super) fn teardown() -> PathItem {
    let operation = operation("daemon", "tear_down")
        .summary(Some("Take away every flow of the daemon, and nothing else"))
        .description(Some(
            "Also switches hw-tc-offload off where the daemon had switched it on. \
             What clients have PUT stays, and can be changed; until it is resumed or started anew, \
             the daemon programs nothing, and is not ready. VF settings stay as they are.",
        ))
        .response(
            "200",
            json_response("It is done.", component(&TornDown::name()), example::torn_down())
                .build(),
        );
    post(with_problems(operation, reading(vec![])))
}

/// POST that brings flows back.
pub(super) fn resume() -> PathItem {
    let operation = operation("daemon", "resume")
        .summary(Some("Install flows again after a teardown"))
        .response("204", ResponseBuilder::new().description("The daemon does its work."));
    post(with_problems(operation, reading(vec![])))
}

/// Liveness.
pub(super) fn healthz() -> PathItem {
    get(operation("daemon", "health")
        .securities(Some([]))
        .summary(Some("Whether the process answers"))
        .response("200", text_response("It does.", "text/plain; charset=utf-8", "ok\n")))
}

/// Readiness.
pub(super) fn readyz() -> PathItem {
    let reasons = vec!["no look at the host has been finished yet".to_owned()];
    let operation = operation("daemon", "readiness")
        .securities(Some([]))
        .summary(Some("Whether the daemon does its work"))
        .response("200", text_response("It does.", "text/plain; charset=utf-8", "ready\n"));
    get(with_problems(
        operation,
        vec![ApiError::NotReady(NotReady { reasons }).problem(), timeout(), internal()],
    ))
}

/// Metrics.
pub(super) fn metrics() -> PathItem {
    let sample = "# HELP eswitchd_guests_connected Guests whose QMP socket answers.\n\
                  # TYPE eswitchd_guests_connected gauge\n\
                  eswitchd_guests_connected 2\n";
    let operation = operation("daemon", "metrics")
        .summary(Some("Metrics in Prometheus' text format, or as protobuf where Accept prefers it"))
        .response("200", text_response("All metrics.", METRICS_MEDIA_TYPE, sample));
    get(with_problems(operation, vec![timeout(), internal()]))
}

/// This document.
pub(super) fn openapi_json() -> PathItem {
    let schema = ObjectBuilder::new().schema_type(Type::Object).build();
    let sample = json!({"openapi": "3.1.0", "info": {"title": "eswitchd"}, "paths": {}});
    get(operation("daemon", "openapi")
        .summary(Some("This document"))
        .response("200", json_response("OpenAPI 3.1.", schema, sample).build()))
}

// ---------------------------------------------------------------- parts of operations

fn operation(tag: &str, id: &str) -> OperationBuilder {
    OperationBuilder::new().tag(tag).operation_id(Some(id))
}

fn get(operation: OperationBuilder) -> PathItem {
    PathItemBuilder::new().operation(HttpMethod::Get, operation).build()
}

fn post(operation: OperationBuilder) -> PathItem {
    PathItemBuilder::new().operation(HttpMethod::Post, operation).build()
}

fn id_parameter(example: &str) -> Parameter {
    ParameterBuilder::new()
        .name("id")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("The client's name for it."))
        .schema(Some(component("Id")))
        .example(Some(example.into()))
        .build()
}

fn json_response(
    description: &str,
    schema: impl Into<RefOr<Schema>>,
    example: Value,
) -> ResponseBuilder {
    let content = ContentBuilder::new().schema(Some(schema)).example(Some(example)).build();
    ResponseBuilder::new().description(description).content(JSON, content)
}

fn text_response(description: &str, media_type: &str, example: &str) -> Response {
    let schema = ObjectBuilder::new().schema_type(Type::String).build();
    let content = ContentBuilder::new().schema(Some(schema)).example(Some(example.into())).build();
    ResponseBuilder::new().description(description).content(media_type, content).build()
}

fn list(item: &str, example: Value) -> ResponseBuilder {
    let items = ArrayBuilder::new().items(component(item)).build();
    let schema = ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("items", items)
        .required("items")
        .property("next", component("Id"))
        .build();
    json_response("The list.", schema, json!({ "items": [example] }))
}

/// What can be asked next about a resource that was read or put.
fn links_of(kind: ResourceKind) -> Vec<(&'static str, Link)> {
    let to = |operation: String| link_to(&operation, "$request.path.id");
    let mut links = vec![
        ("read", to(format!("get_{kind}"))),
        ("change", to(format!("put_{kind}"))),
        ("remove", to(format!("delete_{kind}"))),
    ];
    if kind == ResourceKind::Port {
        links.push(("explain", to("explain_port".into())));
    }
    links
}

/// A link to what an operation does with a resource; `id` is where its id stands.
fn link_to(operation: &str, id: &str) -> Link {
    LinkBuilder::new().operation_id(operation).parameter("id", id).build()
}

fn etag() -> utoipa::openapi::Header {
    HeaderBuilder::new()
        .description(Some(
            "The revision of the spec, in quotes. The status has none and changes at any time.",
        ))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).pattern(Some("^\"[0-9]+\"$"))))
        .example(Some("\"42\"".into()))
        .build()
}

fn one_of(words: &[&str]) -> utoipa::openapi::Header {
    HeaderBuilder::new()
        .description(Some("What the request has done."))
        .schema(Some(
            ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.to_vec())),
        ))
        .build()
}

// ---------------------------------------------------------------- problems

/// Adds a response for each status among the problems, with each problem as an example.
fn with_problems(operation: OperationBuilder, problems: Vec<Problem>) -> OperationBuilder {
    let mut by_status = BTreeMap::<u16, Vec<Problem>>::new();
    for problem in problems {
        by_status.entry(problem.status).or_default().push(problem);
    }
    by_status.into_iter().fold(operation, |operation, (status, problems)| {
        operation.response(status.to_string(), problem_response(&problems))
    })
}

fn problem_response(problems: &[Problem]) -> Response {
    let titles: Vec<_> = problems.iter().map(|problem| problem.title.as_str()).collect();
    let content = ContentBuilder::new()
        .schema(Some(component(&Problem::name())))
        .examples_from_iter(problems.iter().map(problem_example))
        .build();
    let response = ResponseBuilder::new()
        .description(titles.join(", or: "))
        .content(PROBLEM_MEDIA_TYPE, content);
    match problems.iter().any(|problem| problem.retry_after.is_some()) {
        false => response.build(),
        true => response.header("Retry-After", seconds()).build(),
    }
}

fn problem_example(problem: &Problem) -> (String, Example) {
    let name = problem.kind.rsplit('/').next().unwrap_or_default();
    let example =
        ExampleBuilder::new().summary(problem.title.as_str()).value(Some(json!(problem))).build();
    (name.to_owned(), example)
}

fn seconds() -> utoipa::openapi::Header {
    HeaderBuilder::new()
        .description(Some("Seconds after which to try again."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1))))
        .build()
}

/// What any request under `/v1` can meet, and `more`.
fn reading(more: Vec<Problem>) -> Vec<Problem> {
    let unknown = ApiError::Parameter(InvalidField {
        field: "colour".into(),
        detail: "no such query parameter".into(),
        remedy: "leave it out".into(),
    });
    let shed = ApiError::Overloaded {
        detail: "as many requests are under way as the daemon takes".into(),
        retry_after: Duration::from_secs(1),
    };
    let nobody = ApiError::Unauthenticated { detail: "no such token".into() };
    let stranger = ApiError::Forbidden { who: "token prometheus".into(), needed: "write".into() };
    let access = vec![nobody.problem(), stranger.problem()];
    [access, vec![unknown.problem(), shed.problem(), timeout(), internal()], more].concat()
}

/// What any request that changes something can meet.
fn writing(kind: ResourceKind) -> Vec<Problem> {
    let resource = ResourceRef { kind, id: example_id(example::id(kind)) };
    let what = resource.to_string();
    let changed = ApiError::Precondition { resource, revision: Some(8) };
    let message = "port web-1: not Bound (GuestNotSeen): guest `vm1` has not been seen";
    let missing = vec![message.to_owned()];
    let slow = ApiError::NotProgrammed { what, waited: WAIT, missing };
    let contradiction = ApiError::Invalid(InvalidField {
        field: "timeout".into(),
        detail: "there is nothing to wait for".into(),
        remedy: "add wait=programmed".into(),
    });
    let problems = [changed, slow, contradiction].iter().map(ApiError::problem).collect();
    [problems, storing()].concat()
}

/// What any request that stores something can meet.
fn storing() -> Vec<Problem> {
    vec![ApiError::Store(cause()).problem(), ApiError::StoreFull(cause()).problem()]
}

/// What any request with a body can meet.
fn body_problems() -> Vec<Problem> {
    let limits = Limits::default();
    [
        ApiError::Malformed { detail: "the body is empty".into() },
        ApiError::SlowRequest { limit: limits.body_time },
        ApiError::TooLarge { limit_bytes: limits.body_bytes },
        ApiError::MediaType { found: "application/x-www-form-urlencoded".into() },
        ApiError::Invalid(InvalidField {
            field: "spec.colour".into(),
            detail: "unknown field `colour`".into(),
            remedy: "leave it out".into(),
        }),
    ]
    .iter()
    .map(ApiError::problem)
    .collect()
}

fn not_found(kind: ResourceKind, id: &str) -> Problem {
    ApiError::NotFound { kind, id: example_id(id) }.problem()
}

fn contradiction(kind: ResourceKind) -> Problem {
    ApiError::Conflict {
        detail: "another resource claims the same".into(),
        blockers: vec![ResourceRef { kind, id: example_id("other") }],
        remedy: "change or delete the other one first".into(),
    }
    .problem()
}

fn still_needed(kind: ResourceKind) -> Problem {
    let port = ResourceRef { kind: ResourceKind::Port, id: example_id("web-1") };
    ApiError::Conflict {
        detail: format!("a port still depends on this {kind}"),
        blockers: vec![port],
        remedy: "detach or delete it first".into(),
    }
    .problem()
}

fn timeout() -> Problem {
    ApiError::Timeout { limit: Limits::default().request_time }.problem()
}

fn internal() -> Problem {
    ApiError::Internal(cause()).problem()
}

fn cause() -> crate::error::Cause {
    "an example".into()
}

#[expect(clippy::expect_used, reason = "constant input, read by the document's test")]
fn example_id(id: &str) -> Id {
    id.parse().expect("an id")
}
