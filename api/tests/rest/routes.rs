//! Every route and every error, asked without a network.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::{Method, Request},
};
use eswitchd_api::{
    error::{ApiError, InvalidField, NotReady, ResourceKind},
    resources::*,
    server::{Limits, router, router_with},
};
use hyper::body::Frame;
use serde_json::{Value, json};

use crate::{
    ask::{ask, delete, get, put, send},
    double::{Double, Trouble},
};

/// A body that never arrives.
struct Never;

impl HttpBody for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}

fn api() -> Router {
    router(Double::with(|_| {}))
}

fn with_trouble(trouble: Trouble) -> (Arc<Double>, Router) {
    let double = Double::with(|state| state.trouble = Some(trouble));
    (Arc::clone(&double), router(double))
}

/// A path and two good bodies of each kind that clients declare.
fn kinds() -> [(&'static str, Value, Value); 3] {
    let spec = |spec: Value| json!({ "spec": spec });
    let vf = |attachments: Value| {
        spec(json!({"function": {"vf": {"adapter": "a", "index": 0}}, "attachments": attachments}))
    };
    [
        (
            "/v1/networks",
            spec(json!({"kind": "flat"})),
            spec(json!({"kind": {"vlan": {"vid": 100, "proto": "802.1ad"}}})),
        ),
        ("/v1/ports", vf(json!([])), vf(json!([{"network": "red"}]))),
        ("/v1/guests", spec(json!({})), spec(json!({"qmp": "/run/vm1.sock"}))),
    ]
}

fn adapter(id: &str) -> Adapter {
    serde_json::from_value(json!({
        "id": id, "handle": "soft-lab", "vfs": [], "foreign_filters": 0, "conditions": [],
        "flows": {"in_hw": 0, "not_in_hw": 0, "refused": 0, "pending": 0},
    }))
    .unwrap()
}

fn flow(adapter: &str, port: &str, network: &str) -> Flow {
    serde_json::from_value(json!({
        "adapter": adapter, "netdev": "tap0", "purpose": "flood", "port": port,
        "network": network, "tc": "ingress chain 1 flower", "state": "not_in_hw",
    }))
    .unwrap()
}

// ---------------------------------------------------------------- resources

#[tokio::test]
async fn a_resource_is_created_changed_read_listed_and_deleted() {
    for (path, first, second) in kinds() {
        let api = api();
        let one = format!("{path}/a1");

        let created = put(&api, &one, &first).await;
        assert_eq!((created.status.as_u16(), created.header("eswitchd-outcome")), (201, "created"));
        assert_eq!(created.header("etag"), "\"1\"");
        let same = put(&api, &one, &first).await;
        assert_eq!((same.status.as_u16(), same.header("eswitchd-outcome")), (200, "unchanged"));
        assert_eq!(same.header("etag"), "\"1\"", "nothing was stored");
        let changed = put(&api, &one, &second).await;
        assert_eq!((changed.status.as_u16(), changed.header("eswitchd-outcome")), (200, "updated"));
        assert_eq!(changed.header("etag"), "\"2\"");

        let read = get(&api, &one).await;
        assert_eq!((read.status.as_u16(), read.header("etag")), (200, "\"2\""));
        assert_eq!(read.json()["id"], "a1");
        for (field, value) in second["spec"].as_object().unwrap() {
            assert_eq!(&read.json()["spec"][field], value, "{path} {field}");
        }
        assert_eq!(get(&api, path).await.json()["items"], json!([read.json()]));

        let deleted = delete(&api, &one).await;
        assert_eq!((deleted.status.as_u16(), deleted.body.as_slice()), (204, &b""[..]));
        assert_eq!(get(&api, path).await.json(), json!({"items": []}));
        assert_eq!(get(&api, &one).await.problem().kind, "/problems/not-found");
        assert_eq!(delete(&api, &one).await.problem().kind, "/problems/not-found");
    }
}

#[tokio::test]
async fn an_eswitch_is_changed_tried_and_forced_as_the_query_says() {
    let mut nic = adapter("pci-a");
    nic.mode = Some(EswitchMode::Legacy);
    nic.vfs = vec![
        serde_json::from_value(json!({"index": 0, "port": "web-1"})).unwrap(),
        serde_json::from_value(json!({"index": 1})).unwrap(),
    ];
    let api = router(Double::with(|state| state.adapters = vec![nic]));
    let path = "/v1/adapters/pci-a/eswitch";
    let body = json!({"spec": {"mode": "switchdev"}});
    let status = async |query: &str, body: &Value| {
        put(&api, &format!("{path}{query}"), body).await.status.as_u16()
    };
    assert_eq!(status("", &body).await, 409);
    let dry = put(&api, &format!("{path}?dry_run=true"), &body).await;
    assert_eq!((dry.status.as_u16(), &dry.json()["started"]), (200, &json!(false)));
    assert_eq!(dry.json()["then"], json!({"mode": "switchdev", "num_vfs": 2}));
    let forced = put(&api, &format!("{path}?dry_run=false&force=true"), &body).await;
    assert_eq!((forced.status.as_u16(), &forced.json()["started"]), (202, &json!(true)));
    assert_eq!(status("?force=true", &json!({"spec": {"num_vfs": 2}})).await, 200);
    for query in ["?force=yes", "?dry_run", "?force=true&force=true", "?colour=red"] {
        assert_eq!(status(query, &body).await, 400, "{query}");
    }
    for wrong in [json!({"spec": {}}), json!({"spec": {"mode": "software"}})] {
        assert_eq!(status("", &wrong).await, 422, "{wrong}");
    }
    assert_eq!(put(&api, "/v1/adapters/pci-b/eswitch", &body).await.status.as_u16(), 404);
}

#[tokio::test]
async fn a_network_with_ports_stays_and_the_ports_are_named() {
    let api = api();
    put(&api, "/v1/networks/blue", &json!({"spec": {"kind": "flat"}})).await;
    for (port, index) in [("a", 0), ("b", 1)] {
        let spec = json!({"function": {"vf": {"adapter": "x", "index": index}},
                          "attachments": [{"network": "blue"}]});
        put(&api, &format!("/v1/ports/{port}"), &json!({ "spec": spec })).await;
    }
    let problem = delete(&api, "/v1/networks/blue").await.problem();
    assert_eq!((problem.status, problem.kind.as_str()), (409, "/problems/conflict"));
    assert_eq!(problem.blockers, ["ports/a", "ports/b"]);
    assert_eq!(get(&api, "/v1/networks/blue").await.status, 200);
}

#[tokio::test]
async fn adapters_are_listed_and_read() {
    let api = router(Double::with(|state| state.adapters.push(adapter("pci-0000:03:00.0"))));
    let list = get(&api, "/v1/adapters").await.json();
    assert_eq!(list["items"][0]["id"], "pci-0000:03:00.0");
    assert_eq!(get(&api, "/v1/adapters/pci-0000:03:00.0").await.json(), list["items"][0]);
    assert_eq!(get(&api, "/v1/adapters/none").await.problem().status, 404);
}

#[tokio::test]
async fn flows_are_filtered_by_everything_that_is_asked_for() {
    let api = router(Double::with(|state| {
        state.flows = vec![flow("x", "a", "blue"), flow("x", "b", "blue"), flow("y", "b", "red")];
    }));
    for (query, count) in [
        ("", 3),
        ("?", 3),
        ("?adapter=x", 2),
        ("?port=b", 2),
        ("?network=blue", 2),
        ("?adapter=x&port=b&network=blue", 1),
        ("?adapter=y&port=a", 0),
        ("?port=%62", 2),
    ] {
        let answer = get(&api, &format!("/v1/flows{query}")).await.json();
        assert_eq!(answer["items"].as_array().unwrap().len(), count, "{query}");
    }
}

// ---------------------------------------------------------------- the daemon itself

#[tokio::test]
async fn liveness_does_not_depend_on_readiness() {
    let double = Double::with(|state| state.not_ready = vec!["no look yet".into()]);
    let api = router(Arc::clone(&double));
    assert_eq!(get(&api, "/healthz").await.status, 200);
    let problem = get(&api, "/readyz").await.problem();
    assert_eq!((problem.status, problem.reasons), (503, vec!["no look yet".to_owned()]));
    double.change(|state| state.not_ready.clear());
    assert_eq!(get(&api, "/readyz").await.status, 200);
}

#[tokio::test]
async fn the_live_page_may_run_its_own_script_and_style_and_ask_only_this_server() {
    let api = router(Double::with(|_| {}));
    let answer = get(&api, "/ui").await;
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    let policy = answer.header("content-security-policy").to_owned();
    let hashes = policy.matches("-src 'sha256-").count();
    assert!(policy.starts_with("default-src 'none'; connect-src 'self'; "), "{policy}");
    assert_eq!(hashes, 2, "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(answer.body.starts_with(b"<!doctype html>"));
    assert_eq!(send(&api, Request::post("/ui").body(Body::empty()).unwrap()).await.status, 405);
    let other = get(&api, "/healthz").await;
    let nothing = "default-src 'none'; frame-ancestors 'none'";
    assert_eq!(other.header("content-security-policy"), nothing);
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let api = router(Double::with(|state| state.metrics = "up 1\n".into()));
    let answer = get(&api, "/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(answer.body, b"up 1\n");
}

#[tokio::test]
async fn metrics_are_protobuf_for_who_would_rather_have_that() {
    let api = router(Double::with(|_| {}));
    let media_type = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                      encoding=delimited";
    let request = Request::get("/metrics").header("accept", media_type).body(Body::empty());
    let answer = send(&api, request.unwrap()).await;
    assert_eq!(answer.header("content-type"), media_type);
    assert_eq!(answer.body, b"protobuf");
}

#[tokio::test]
async fn metrics_are_told_before_prometheus_gives_up() {
    let double = Double::with(|_| {});
    let api = router(Arc::clone(&double));
    let request = Request::get("/metrics").header("X-Prometheus-Scrape-Timeout-Seconds", "2.5");
    assert_eq!(send(&api, request.body(Body::empty()).unwrap()).await.status, 200);
    let waited = double.change(|state| state.metrics_waited);
    assert!(waited.unwrap() < Duration::from_millis(2500), "{waited:?}");
}

#[tokio::test]
async fn no_answer_is_cached_or_guessed_at() {
    for path in ["/v1/networks", "/v1/networks/none", "/nowhere", "/healthz"] {
        let answer = get(&api(), path).await;
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
    }
}

// ---------------------------------------------------------------- bad requests

#[tokio::test]
async fn bad_ids_in_the_path_are_named() {
    for bad in ["a%20b", "%2e%2e", ".a", "a%2Fb", "%ff", &"x".repeat(129)] {
        for (path, body, _) in kinds() {
            let one = format!("{path}/{bad}");
            for answer in [
                get(&api(), &one).await,
                delete(&api(), &one).await,
                put(&api(), &one, &body).await,
            ] {
                let problem = answer.problem();
                assert_eq!(problem.kind, "/problems/bad-parameter", "{one}");
                assert_eq!((problem.status, problem.field.as_deref()), (400, Some("id")));
            }
        }
    }
}

#[tokio::test]
async fn unknown_and_repeated_query_parameters_are_refused() {
    for (path, field) in [
        ("/v1/networks?limit=0", "limit"),
        ("/v1/networks?limit=10001", "limit"),
        ("/v1/networks?limit=1&limit=1", "limit"),
        ("/v1/networks?network=a", "network"),
        ("/v1/guests?colour=red", "colour"),
        ("/v1/ports?after=a/b", "after"),
        ("/v1/ports?guest=a&guest=b", "guest"),
        ("/v1/networks/a?wait=programmed", "wait"),
        ("/v1/adapters?x", "x"),
        ("/v1/adapters/a?x=", "x"),
        ("/v1/flows?vf=1", "vf"),
        ("/v1/flows?port=a&port=b", "port"),
        ("/v1/flows?port=a/b", "port"),
        ("/v1/flows?port=", "port"),
    ] {
        let problem = get(&api(), path).await.problem();
        assert_eq!((problem.status, problem.field.as_deref()), (400, Some(field)), "{path}");
    }
    let double = Double::with(|_| {});
    let body = json!({"spec": {"kind": "flat"}});
    for (query, field) in [
        ("colour=1", "colour"),
        ("wait=offloaded", "wait"),
        ("wait", "wait"),
        ("dry_run=yes", "dry_run"),
        ("wait=programmed&wait=programmed", "wait"),
        ("wait=programmed&timeout=26", "timeout"),
        ("wait=programmed&timeout=-1", "timeout"),
        ("wait=programmed&timeout=1.5", "timeout"),
        ("wait=programmed&timeout=1&timeout=1", "timeout"),
    ] {
        let path = format!("/v1/networks/a?{query}");
        let answer = put(&router(Arc::clone(&double)), &path, &body).await.problem();
        assert_eq!((answer.status, answer.field.as_deref()), (400, Some(field)), "{query}");
    }
    // Right one by one, and not together.
    for (query, field) in [("dry_run=true&wait=programmed", "wait"), ("timeout=5", "timeout")] {
        let path = format!("/v1/networks/a?{query}");
        let answer = put(&router(Arc::clone(&double)), &path, &body).await.problem();
        assert_eq!((answer.status, answer.field.as_deref()), (422, Some(field)), "{query}");
    }
    assert!(double.change(|state| state.networks.is_empty()), "nothing was done");
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_are_problems() {
    for path in ["/", "/v1", "/v1/networks/", "/v1/networks/a/b", "/v2/networks", "/v1//networks"] {
        let problem = get(&api(), path).await.problem();
        assert_eq!((problem.status, problem.kind.as_str()), (404, "/problems/no-route"), "{path}");
    }
    for (method, path, allow) in [
        (Method::POST, "/v1/networks", "GET,HEAD"),
        (Method::PATCH, "/v1/ports/a", "GET,HEAD,PUT,DELETE"),
        (Method::PUT, "/v1/adapters/a", "GET,HEAD"),
        (Method::DELETE, "/metrics", "GET,HEAD"),
    ] {
        let answer = ask(&api(), method, path, Body::empty()).await;
        assert_eq!(answer.problem().kind, "/problems/method-not-allowed", "{path}");
        assert_eq!(answer.header("allow"), allow);
    }
}

#[tokio::test]
async fn a_wrong_field_is_named_from_the_root_of_the_body() {
    for (path, body, field) in [
        ("networks", json!({"spec": {"kind": {"vlan": {"vid": 0}}}}), "spec.kind.vlan.vid"),
        ("networks", json!({"spec": {"kind": "flat"}, "status": {}}), "status"),
        (
            "networks",
            json!({"spec": {"kind": "flat", "reserved_macs": ["01:00:00:00:00:00"]}}),
            "spec.reserved_macs[0]",
        ),
        (
            "ports",
            json!({"spec": {"function": {"vf": {"adapter": "a", "index": 0}},
                            "attachments": [{"network": "a"}, {"network": "b"}]}}),
            "spec.attachments[1].tag",
        ),
        (
            "ports",
            json!({"spec": {"function": {"vf": {"adapter": "a", "index": 65536}},
                            "attachments": []}}),
            "spec.function.vf.index",
        ),
        ("guests", json!({"spec": {"qmp": "vm1.sock"}}), "spec.qmp"),
    ] {
        let problem = put(&api(), &format!("/v1/{path}/a"), &body).await.problem();
        assert_eq!(problem.kind, "/problems/invalid", "{body}");
        assert_eq!((problem.status, problem.field.as_deref()), (422, Some(field)), "{body}");
    }
}

#[tokio::test]
async fn a_body_is_json_and_says_so_or_says_nothing() {
    let body = r#"{"spec": {"kind": "flat"}}"#;
    let typed = |media_type: &str| {
        Request::put("/v1/networks/a").header("content-type", media_type).body(body.into()).unwrap()
    };
    assert_eq!(ask(&api(), Method::PUT, "/v1/networks/a", body).await.status, 201);
    for good in ["application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(send(&api(), typed(good)).await.status, 201, "{good}");
    }
    for bad in ["application/x-www-form-urlencoded", "text/json", ""] {
        let problem = send(&api(), typed(bad)).await.problem();
        assert_eq!((problem.status, problem.kind.as_str()), (415, "/problems/media-type"), "{bad}");
    }
    for malformed in ["", "{", "[]", "null", "{\"spec\": {\"kind\": \"flat\"}} x"] {
        let problem = ask(&api(), Method::PUT, "/v1/networks/a", malformed).await.problem();
        assert_eq!(problem.kind, "/problems/malformed", "{malformed}");
    }
}

#[tokio::test]
async fn a_body_of_one_mebibyte_is_read_and_a_larger_one_is_not() {
    let spec = r#"{"spec": {"kind": "flat"}}"#;
    let padded = |length: usize| format!("{spec}{}", " ".repeat(length - spec.len()));
    let mebibyte = 1 << 20;
    let answer = ask(&api(), Method::PUT, "/v1/networks/a", padded(mebibyte)).await;
    assert_eq!(answer.status, 201);
    let problem = ask(&api(), Method::PUT, "/v1/networks/a", padded(mebibyte + 1)).await.problem();
    assert_eq!((problem.status, problem.kind.as_str()), (413, "/problems/too-large"));
}

// ---------------------------------------------------------------- trouble

#[tokio::test]
async fn each_error_of_the_daemon_has_its_status() {
    type Case = (fn() -> ApiError, u16, &'static str);
    let cases: [Case; 8] = [
        (
            || ApiError::NotFound { kind: ResourceKind::Port, id: "a".parse().unwrap() },
            404,
            "not-found",
        ),
        (
            || {
                ApiError::Invalid(InvalidField {
                    field: "spec.x".into(),
                    detail: "is odd".into(),
                    remedy: "make it even".into(),
                })
            },
            422,
            "invalid",
        ),
        (
            || ApiError::Conflict {
                detail: "is taken".into(),
                blockers: vec![],
                remedy: "take another".into(),
            },
            409,
            "conflict",
        ),
        (
            || ApiError::Overloaded {
                detail: "too much".into(),
                retry_after: Duration::from_millis(2500),
            },
            503,
            "overloaded",
        ),
        (|| ApiError::NotReady(NotReady { reasons: vec!["later".into()] }), 503, "not-ready"),
        (|| ApiError::Store("disk".into()), 500, "store-failed"),
        (|| ApiError::StoreFull("disk".into()), 507, "store-full"),
        (|| ApiError::Internal("bug".into()), 500, "internal"),
    ];
    for (error, status, kind) in cases {
        let (_, api) = with_trouble(Trouble::Error(error));
        for (path, body, _) in kinds() {
            let one = format!("{path}/a");
            for answer in
                [get(&api, &one).await, get(&api, path).await, put(&api, &one, &body).await]
            {
                let problem = answer.problem();
                assert_eq!((problem.status, problem.kind), (status, format!("/problems/{kind}")));
                let wait = if kind == "overloaded" { "3" } else { "" };
                assert_eq!(answer.header("retry-after"), wait);
            }
        }
    }
}

#[tokio::test]
async fn a_panic_becomes_a_problem_that_tells_nothing() {
    let (double, api) = with_trouble(Trouble::Panic);
    let answer = get(&api, "/v1/networks").await;
    assert_eq!(answer.problem().kind, "/problems/internal");
    assert!(!String::from_utf8_lossy(&answer.body).contains("double"), "{answer:?}");
    double.change(|state| state.trouble = None);
    assert_eq!(get(&api, "/v1/networks").await.status, 200, "the API goes on");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_does_not_answer_is_given_up() {
    let (_, api) = with_trouble(Trouble::Delay(Duration::from_secs(3600)));
    for path in ["/v1/networks", "/metrics"] {
        let problem = get(&api, path).await.problem();
        assert_eq!((problem.status, problem.kind.as_str()), (504, "/problems/timeout"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_given_up() {
    let problem = ask(&api(), Method::PUT, "/v1/networks/a", Body::new(Never)).await.problem();
    assert_eq!((problem.status, problem.kind.as_str()), (408, "/problems/slow-request"));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_at_a_time_is_shed_and_probes_still_answer() {
    let double = Double::with(|state| {
        state.trouble = Some(Trouble::Delay(Duration::from_secs(5)));
    });
    let api = router_with(double, Limits { requests: 2, ..Limits::default() });
    let slow: Vec<_> = (0..2)
        .map(|_| {
            let api = api.clone();
            tokio::spawn(async move { get(&api, "/v1/networks").await.status.as_u16() })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let shed = get(&api, "/v1/ports").await;
    assert_eq!(shed.problem().kind, "/problems/overloaded");
    assert_eq!(shed.header("retry-after"), "1");
    assert_eq!(get(&api, "/healthz").await.status, 200);
    assert_eq!(get(&api, "/readyz").await.status, 200);
    for request in slow {
        assert_eq!(request.await.unwrap(), 200, "what was under way is answered");
    }
    assert_eq!(get(&api, "/v1/ports").await.status, 200, "and there is room again");
}

#[tokio::test]
async fn who_waits_is_told_what_is_missing_or_that_nothing_is() {
    for (path, first, _) in kinds() {
        let double = Double::with(|state| state.missing = Some((1, "flows are on their way")));
        let api = router(double);
        let one = format!("{path}/a?wait=programmed&timeout=3");
        let problem = put(&api, &one, &first).await.problem();
        assert_eq!((problem.status, problem.kind.as_str()), (504, "/problems/not-programmed"));
        assert_eq!(problem.reasons, ["flows are on their way"]);
        assert!(problem.detail.ends_with("not programmed after 3s"), "{}", problem.detail);
        assert_eq!(get(&api, &format!("{path}/a")).await.status, 200, "stored nevertheless");
        assert_eq!(put(&api, &one, &first).await.status, 200);
        assert_eq!(delete(&api, &one).await.status, 204);
    }
}

#[tokio::test(start_paused = true)]
async fn however_many_wait_others_are_answered() {
    let double = Double::with(|state| {
        state.trouble = Some(Trouble::Delay(Duration::from_secs(5)));
    });
    let limits = Limits { requests: 1, waits: 2, ..Limits::default() };
    let api = router_with(double, limits);
    let body = json!({"spec": {"kind": "flat"}});
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let (api, body) = (api.clone(), body.clone());
            tokio::spawn(async move { put(&api, "/v1/networks/a?wait=programmed", &body).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let third = put(&api, "/v1/networks/a?wait=programmed", &body).await;
    assert_eq!(third.problem().kind, "/problems/overloaded");
    assert_eq!(get(&api, "/v1/ports").await.status, 200);
    for request in waiting {
        assert!(request.await.unwrap().status.is_success());
    }
}

// ---------------------------------------------------------------- lists

#[tokio::test]
async fn a_list_is_read_page_by_page_and_no_item_is_missed_or_there_twice() {
    let api = api();
    let flat = json!({"spec": {"kind": "flat"}});
    for name in ["e", "a", "d", "b", "c"] {
        put(&api, &format!("/v1/networks/{name}"), &flat).await;
    }
    let ids = |answer: &Value| -> Vec<String> {
        let items = answer["items"].as_array().unwrap().iter();
        items.map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    };
    for limit in 1..=6 {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/networks?limit={limit}{after}");
            let page = get(&api, &path).await.json();
            assert!(ids(&page).len() <= limit);
            seen.extend(ids(&page));
            // Who was read last may be gone when the next page is read.
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"], "{limit}");
    }
}

#[tokio::test]
async fn ports_are_filtered_by_network_guest_and_adapter() {
    let double = Double::with(|_| {});
    let api = router(Arc::clone(&double));
    let guest = json!({"guest_vf": {"guest": "vm1", "device": "vf0"}});
    let vf = json!({"vf": {"adapter": "a", "index": 0}});
    for (name, function, network) in
        [("p1", &guest, "red"), ("p2", &vf, "red"), ("p3", &guest, "blue")]
    {
        let spec = json!({"function": function, "attachments": [{"network": network}]});
        put(&api, &format!("/v1/ports/{name}"), &json!({ "spec": spec })).await;
    }
    let nic = "pci-a".parse().ok();
    double.change(|state| state.ports.values_mut().next().unwrap().status.adapter = nic);
    for (query, expected) in [
        ("network=red", vec!["p1", "p2"]),
        ("guest=vm1", vec!["p1", "p3"]),
        ("guest=vm1&network=blue", vec!["p3"]),
        ("adapter=pci-a", vec!["p1"]),
        ("network=green", vec![]),
        ("network=red&limit=1", vec!["p1"]),
    ] {
        let answer = get(&api, &format!("/v1/ports?{query}")).await.json();
        let items = answer["items"].as_array().unwrap();
        let ids: Vec<_> = items.iter().map(|item| item["id"].as_str().unwrap()).collect();
        assert_eq!(ids, expected, "{query}");
        assert_eq!(answer["next"].is_string(), query.contains("limit"), "{query}");
    }
}

// ---------------------------------------------------------------- batches and dry runs

#[tokio::test]
async fn a_dry_run_says_what_would_be_and_nothing_is_asked_of_the_daemon_but_that() {
    for (path, first, second) in kinds() {
        let double = Double::with(|_| {});
        let api = router(Arc::clone(&double));
        let one = format!("{path}/a?dry_run=true");
        let answer = put(&api, &one, &first).await;
        let resource = format!("{}/a", path.trim_start_matches("/v1/"));
        let expected = json!([{"resource": resource, "outcome": "updated"}]);
        assert_eq!((answer.status.as_u16(), &answer.json()["changes"]), (200, &expected));
        assert_eq!(delete(&api, &one).await.problem().kind, "/problems/not-found");
        put(&api, &format!("{path}/a"), &first).await;
        assert_eq!(delete(&api, &one).await.json()["changes"], expected);
        put(&api, &one, &second).await;
        let is = get(&api, &format!("{path}/a")).await;
        assert_eq!((is.status.as_u16(), is.header("etag")), (200, "\"1\""), "as it was");
    }
}

#[tokio::test]
async fn a_batch_is_many_changes_and_errors_are_named_from_its_root() {
    let [(_, network, _), (_, port, _), (_, guest, _)] = kinds();
    let named = |id: &str, body: &Value| json!({"id": id, "spec": body["spec"]});
    let api = api();
    let batch = json!({
        "networks": [named("red", &network)],
        "ports": [named("p", &port)],
        "guests": [named("vm", &guest)],
        "delete": {"ports": ["gone"]},
    });
    let post =
        async |path: &str, body: &Value| ask(&api, Method::POST, path, body.to_string()).await;
    let applied = post("/v1/apply", &batch).await;
    let outcome = |name: &str, outcome: &str| json!({"resource": name, "outcome": outcome});
    let expected = json!([
        outcome("networks/red", "created"),
        outcome("ports/p", "created"),
        outcome("guests/vm", "created"),
        outcome("ports/gone", "absent"),
    ]);
    assert_eq!(applied.json(), json!({"revision": 3, "changes": expected}));
    for path in ["/v1/networks/red", "/v1/ports/p", "/v1/guests/vm"] {
        assert_eq!(get(&api, path).await.status, 200);
    }
    assert_eq!(post("/v1/apply?dry_run=true", &batch).await.json()["flows"]["added"], 0);
    let wrong = json!({"networks": [named("red", &network), {"id": "b", "spec": {"kind": "odd"}}]});
    let problem = post("/v1/apply", &wrong).await.problem();
    assert_eq!((problem.status, problem.field.as_deref()), (422, Some("networks[1].spec.kind")));
    let request = Request::post("/v1/apply").header("if-match", "\"1\"");
    let answer = send(&api, request.body(batch.to_string().into()).unwrap()).await;
    assert_eq!(answer.problem().field.as_deref(), Some("If-Match"));
}

// ---------------------------------------------------------------- preconditions

/// A PUT or DELETE with a precondition.
async fn only_if(
    router: &Router,
    method: Method,
    path: &str,
    header: (&str, &str),
    body: &Value,
) -> crate::ask::Answer {
    let request = Request::builder().method(method).uri(path).header(header.0, header.1);
    send(router, request.body(body.to_string().into()).unwrap()).await
}

#[tokio::test]
async fn a_change_with_an_etag_is_made_only_to_what_its_client_has_seen() {
    for (path, one, other) in kinds() {
        let (api, path) = (api(), format!("{path}/x"));
        let change = |header, body| only_if(&api, Method::PUT, &path, header, body);
        let none = change(("if-match", "*"), &one).await;
        assert_eq!(none.problem().kind, "/problems/precondition-failed");
        assert_eq!(none.status, 412);

        let created = change(("if-none-match", "*"), &one).await;
        assert_eq!(created.status, 201);
        let first = created.header("etag").to_owned();
        assert_eq!(change(("if-none-match", "*"), &other).await.status, 412);
        assert_eq!(change(("if-none-match", "*"), &one).await.status, 200, "sent once more");

        let updated = change(("if-match", &first), &other).await;
        assert_eq!(updated.status, 200);
        let second = updated.header("etag").to_owned();
        assert_ne!(first, second);
        // Somebody who saw the first revision only.
        let late = change(("if-match", &first), &one).await;
        assert_eq!(late.status, 412);
        assert!(late.problem().detail.contains(second.trim_matches('"')), "{late:?}");
        let both = format!("{first}, {second}");
        assert_eq!(change(("if-match", &both), &one).await.status, 200);

        let delete = |header| only_if(&api, Method::DELETE, &path, header, &Value::Null);
        assert_eq!(delete(("if-match", &second)).await.status, 412);
        assert_eq!(delete(("if-match", "*")).await.status, 204);
        assert_eq!(delete(("if-match", "*")).await.status, 412);
    }
}

#[tokio::test]
async fn a_precondition_that_cannot_be_is_refused() {
    let (api, body) = (api(), json!({"spec": {"kind": "flat"}}));
    for header in [
        ("if-match", "7"),
        ("if-match", "\"7\" \"8\""),
        ("if-match", "*, \"7\""),
        ("if-none-match", "\"7\""),
    ] {
        let answer = only_if(&api, Method::PUT, "/v1/networks/x", header, &body).await;
        assert_eq!(answer.problem().kind, "/problems/bad-parameter", "{header:?}");
    }
    // ETags that this API never gave match nothing.
    for tag in ["W/\"1\"", "\"x\"", "\"99999999999999999999\""] {
        put(&api, "/v1/networks/x", &body).await;
        let other = json!({"spec": {"kind": "isolated"}});
        let answer = only_if(&api, Method::PUT, "/v1/networks/x", ("if-match", tag), &other).await;
        assert_eq!(answer.problem().kind, "/problems/precondition-failed", "{tag}");
    }
}

#[tokio::test]
async fn a_batch_is_made_only_where_its_resources_have_the_revisions_that_it_names() {
    let api = api();
    let flat = |id: &str| json!({"id": id, "spec": {"kind": "flat"}});
    let isolated = json!({"id": "a", "spec": {"kind": "isolated"}});
    let apply = async |batch: Value| {
        ask(&api, Method::POST, "/v1/apply", batch.to_string()).await.status.as_u16()
    };
    let new = json!({"networks": [flat("a")], "only_if": {"networks/a": 0}});
    assert_eq!(apply(new).await, 200);
    let late = json!({"networks": [isolated], "only_if": {"networks/a": 7}});
    assert_eq!(apply(late).await, 412);
    // A repetition has nothing to change, and succeeds.
    let again = json!({"networks": [flat("a")], "only_if": {"networks/a": 0}});
    assert_eq!(apply(again).await, 200);
    let gone = json!({"delete": {"networks": ["a"]}, "only_if": {"networks/a": 7}});
    assert_eq!(apply(gone).await, 412);
    let right = json!({"networks": [isolated], "only_if": {"networks/a": 1}});
    assert_eq!(apply(right).await, 200);
    let stray = json!({"networks": [flat("b")], "only_if": {"ports/b": 1}});
    assert_eq!(apply(stray).await, 422);
}

/// Each writer reads, adds its own address, and writes what it has read and no other has changed.
#[tokio::test(flavor = "multi_thread")]
async fn writers_at_the_same_time_lose_no_update_with_if_match() {
    const WRITERS: u8 = 16;
    let api = api();
    let path = "/v1/networks/shared";
    put(&api, path, &json!({"spec": {"kind": "flat"}})).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 1..=WRITERS {
        let api = api.clone();
        writers.spawn(async move {
            let mut refused = 0;
            loop {
                let read = get(&api, path).await;
                let mut spec = read.json()["spec"].clone();
                tokio::task::yield_now().await;
                let macs = &mut spec["reserved_macs"];
                let mut list = macs.as_array().cloned().unwrap_or_default();
                list.push(json!(format!("02:00:00:00:00:{writer:02x}")));
                *macs = list.into();
                let only = ("if-match", read.header("etag"));
                let body = json!({ "spec": spec });
                match only_if(&api, Method::PUT, path, only, &body).await.status.as_u16() {
                    200 => return refused,
                    412 => refused += 1,
                    status => panic!("{status}"),
                }
            }
        });
    }
    let refused: u32 = writers.join_all().await.into_iter().sum();
    let spec = get(&api, path).await.json()["spec"].clone();
    assert_eq!(spec["reserved_macs"].as_array().unwrap().len(), usize::from(WRITERS));
    println!("{WRITERS} writers, {refused} refused and tried again");
}

#[tokio::test]
async fn what_has_a_label_is_found_by_it() {
    let api = api();
    for (path, labels) in [
        ("/v1/networks/a", json!({"tier": "web", "example.com/owner": "größe 3"})),
        ("/v1/networks/b", json!({"tier": "db"})),
        ("/v1/networks/c", json!({})),
    ] {
        let answer = put(&api, path, &json!({"spec": {"kind": "flat", "labels": labels}})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    for (query, expected) in [
        ("label=tier", vec!["a", "b"]),
        ("label=tier%3Ddb", vec!["b"]),
        ("label=tier=web&label=example.com/owner=gr%C3%B6%C3%9Fe%203", vec!["a"]),
        ("label=tier=", vec![]),
        ("label=tier&limit=1", vec!["a"]),
    ] {
        let list = get(&api, &format!("/v1/networks?{query}")).await.json();
        let items = list["items"].as_array().unwrap().iter();
        let ids: Vec<&str> = items.map(|item| item["id"].as_str().unwrap()).collect();
        assert_eq!(ids, expected, "{query}");
    }
    for query in ["label=", "label=a%20b", "label==x", "label=a=%01"] {
        let problem = get(&api, &format!("/v1/ports?{query}")).await.problem();
        assert_eq!((problem.status, problem.field.as_deref()), (400, Some("label")), "{query}");
    }
}
