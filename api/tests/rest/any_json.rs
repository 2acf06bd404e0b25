//! Whatever is sent, the API answers in its own words and never fails.

use std::sync::LazyLock;

use axum::{
    Router,
    body::Body,
    http::{Method, Request},
};
use eswitchd_api::server::router;
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::select,
};
use serde_json::{Map, Value, json};

use crate::{
    ask::{Answer, send},
    double::Double,
};

/// Words that lead into the types rather than past them.
fn word() -> impl Strategy<Value = String> {
    let known = select(vec![
        "spec",
        "kind",
        "flat",
        "vlan",
        "vid",
        "proto",
        "802.1q",
        "isolated",
        "adapter",
        "reserved_macs",
        "unknown_unicast",
        "drop",
        "function",
        "guest_vf",
        "guest",
        "device",
        "vf",
        "index",
        "netdev",
        "name",
        "attachments",
        "network",
        "tag",
        "macs",
        "guest_macs",
        "max",
        "allow",
        "promiscuous",
        "deny",
        "admin_state",
        "down",
        "qmp",
        "/run/a.sock",
        "backings",
        "vf0",
        "02:aa:bb:cc:00:01",
        "01:00:5e:00:00:01",
        "02:aa",
        "blue",
    ]);
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => any::<String>()]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..70_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(word(), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn good_spec() -> impl Strategy<Value = Value> {
    select(vec![
        json!({"kind": {"vlan": {"vid": 100, "proto": "802.1ad"}}, "adapter": "a",
               "reserved_macs": ["02:00:00:00:00:01"], "unknown_unicast": "drop"}),
        json!({"function": {"guest_vf": {"guest": "vm1", "device": "vf0"}},
               "attachments": [{"network": "blue"}, {"network": "red", "tag": 20}],
               "macs": ["02:00:00:00:00:01"], "guest_macs": {"max": 4, "allow": ["02:aa"]},
               "promiscuous": "allow", "admin_state": "down"}),
        json!({"qmp": "/run/a.sock", "backings": {"vf0": {"vf": {"adapter": "a", "index": 0}},
                                                  "vf1": {"netdev": {"name": "tap0"}}}}),
    ])
}

/// How many places a value has, itself included.
fn places(value: &Value) -> usize {
    1 + match value {
        Value::Object(fields) => fields.values().map(places).sum(),
        Value::Array(items) => items.iter().map(places).sum(),
        _ => 0,
    }
}

/// `value` with something else at its `place`-th place, counted from the outside.
fn replace(value: &mut Value, place: &mut usize, with: &Value) {
    if *place == 0 {
        *value = with.clone();
        *place = usize::MAX;
        return;
    }
    *place -= 1;
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|value| replace(value, place, with)),
        Value::Array(items) => items.iter_mut().for_each(|value| replace(value, place, with)),
        _ => {}
    }
}

/// A good spec with one place replaced by anything.
fn nearly_good_spec() -> impl Strategy<Value = Value> {
    (good_spec(), any_json(), any::<prop::sample::Index>()).prop_map(|(mut spec, other, index)| {
        let mut place = index.index(places(&spec));
        replace(&mut spec, &mut place, &other);
        spec
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => any_json().prop_map(|json| json.to_string().into_bytes()),
        6 => nearly_good_spec().prop_map(|spec| json!({ "spec": spec }).to_string().into_bytes()),
        1 => vec(any::<u8>(), 0..200),
    ]
}

fn path() -> impl Strategy<Value = String> {
    let kind = select(vec!["networks", "ports", "guests", "adapters", "flows"]);
    let text = "[a-zA-Z0-9%._:?&=/;-]{0,20}";
    prop_oneof![
        3 => kind.clone().prop_map(|kind| format!("/v1/{kind}/a")),
        1 => (kind, text).prop_map(|(kind, text)| format!("/v1/{kind}{text}")),
        1 => text.prop_map(|text| format!("/{text}")),
    ]
}

/// One API for all requests: what one leaves behind must not harm the next either.
static API: LazyLock<Router> = LazyLock::new(|| router(Double::with(|_| {})));

/// The answer to a request; nothing where the request is no HTTP.
fn answer(method: Method, path: &str, body: Vec<u8>) -> Option<Answer> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(Body::from(body))
        .ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    Some(runtime.block_on(send(&API, request)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_request_is_done_or_refused_and_never_fails(
        method in select(vec![Method::PUT, Method::PUT, Method::GET, Method::DELETE, Method::POST]),
        path in path(),
        body in body(),
    ) {
        if let Some(answer) = answer(method, &path, body) {
            prop_assert!(answer.status.as_u16() < 500, "{answer:?}");
            if !answer.status.is_success() {
                let problem = answer.problem();
                prop_assert!(problem.status != 422 || problem.field.is_some(), "{problem:?}");
            }
        }
    }

    #[test]
    fn what_is_accepted_reads_back_the_same(
        kind in select(vec!["networks", "ports", "guests"]),
        spec in nearly_good_spec(),
    ) {
        let body = json!({ "spec": spec }).to_string().into_bytes();
        let first = answer(Method::PUT, &format!("/v1/{kind}/read-back"), body).unwrap();
        if first.status.is_success() {
            let stored = json!({ "spec": first.json()["spec"] }).to_string().into_bytes();
            let second = answer(Method::PUT, &format!("/v1/{kind}/read-back"), stored).unwrap();
            prop_assert_eq!(first.json(), second.json());
        }
    }
}
