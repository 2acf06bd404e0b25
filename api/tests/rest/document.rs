//! The OpenAPI document says what the routes do.

use std::{collections::BTreeSet, path::Path};

use axum::{Router, body::Body, http::Method};
use eswitchd_api::{error::Problem, server::router, validate};
use serde_json::Value;

use crate::{
    ask::{ask, get, put},
    double::Double,
};

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
const METHODS: [Method; 6] =
    [Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::PATCH, Method::OPTIONS];

fn api() -> Router {
    router(Double::with(|_| {}))
}

async fn text() -> String {
    let answer = get(&api(), "/openapi.json").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
    String::from_utf8(answer.body).unwrap()
}

async fn document() -> Value {
    serde_json::from_str(&text().await).unwrap()
}

/// Path, method and description of each operation.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        item.as_object()
            .unwrap()
            .iter()
            .map(|(method, operation)| (path.clone(), method.to_uppercase(), operation.clone()))
    });
    operations.collect()
}

#[tokio::test]
async fn the_committed_document_is_current() {
    let served = text().await;
    if std::env::var_os("ESWITCHD_WRITE_DOCS").is_some() {
        std::fs::write(COMMITTED, &served).unwrap();
    }
    let committed = std::fs::read_to_string(Path::new(COMMITTED)).unwrap_or_default();
    assert!(
        committed == served,
        "docs/openapi.json is not what the daemon serves: run \
         `ESWITCHD_WRITE_DOCS=1 cargo test -p eswitchd-api --test rest document` and commit it"
    );
}

#[tokio::test]
async fn what_answers_is_described_and_what_is_described_answers() {
    let document = document().await;
    assert_eq!(document["openapi"], "3.1.0");
    let described: BTreeSet<_> =
        operations(&document).into_iter().map(|(path, method, _)| (path, method)).collect();
    assert_eq!(described.len(), 28);
    for path in document["paths"].as_object().unwrap().keys() {
        for method in METHODS {
            // A stream that is followed has no end.
            let asked = match path.as_str() {
                "/v1/events" => "/v1/events?follow=false".to_owned(),
                path => path.replace("{id}", "a"),
            };
            let answer = ask(&api(), method.clone(), &asked, Body::empty()).await;
            let answers = answer.status != 405 && answer.status != 404
                || answer.status == 404 && answer.problem().kind == "/problems/not-found";
            let is_described = described.contains(&(path.clone(), method.to_string()));
            assert_eq!(answers, is_described, "{method} {path}: {}", answer.status);
        }
    }
}

#[tokio::test]
async fn every_operation_has_a_name_of_its_own_and_examples() {
    let mut names = BTreeSet::new();
    for (path, method, operation) in operations(&document().await) {
        let name = operation["operationId"].as_str().unwrap().to_owned();
        assert!(names.insert(name), "{method} {path}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            let Some(content) = response["content"].as_object() else {
                assert_eq!(status, "204", "{method} {path}");
                continue;
            };
            for body in content.values() {
                let has_one = !body["example"].is_null() || body["examples"].is_object();
                assert!(has_one, "{method} {path} {status}");
            }
        }
    }
}

#[tokio::test]
async fn every_problem_in_the_document_is_one_with_the_status_it_stands_under() {
    let mut kinds = BTreeSet::new();
    for (path, method, operation) in operations(&document().await) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            let Some(examples) =
                response["content"]["application/problem+json"]["examples"].as_object()
            else {
                assert!(status.starts_with('2'), "{method} {path} {status}");
                continue;
            };
            for example in examples.values() {
                let problem: Problem = serde_json::from_value(example["value"].clone()).unwrap();
                assert_eq!(&problem.status.to_string(), status, "{method} {path}");
                kinds.insert(problem.kind);
            }
        }
    }
    assert_eq!(kinds.len(), 18, "{kinds:?}");
}

#[tokio::test]
async fn the_examples_of_requests_are_accepted() {
    let api = api();
    let mut accepted = 0;
    for (path, method, operation) in operations(&document().await) {
        if method == "PUT" && path.ends_with("{id}") {
            let id = operation["parameters"][0]["example"].as_str().unwrap();
            let body = &operation["requestBody"]["content"]["application/json"]["example"];
            let answer = put(&api, &path.replace("{id}", id), body).await;
            assert_eq!(answer.status, 201, "{path}: {answer:?}");
            assert_eq!(answer.json()["spec"], body["spec"]);
            accepted += 1;
        }
    }
    assert_eq!(accepted, 3);
    let snapshot = &document().await["paths"]["/v1/snapshot"]["put"];
    let body = &snapshot["requestBody"]["content"]["application/json"]["example"];
    assert_eq!(put(&api, "/v1/snapshot", body).await.status, 200);
    let trace = &document().await["paths"]["/v1/trace"]["post"];
    let body = &trace["requestBody"]["content"]["application/json"]["example"];
    let answer = ask(&api, Method::POST, "/v1/trace", body.to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn every_reference_in_the_document_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| match value {
                Value::String(target) if key == "$ref" => {
                    found.insert(target.clone());
                }
                value => references(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = document().await;
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for target in found {
        assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
    }
}

#[tokio::test]
async fn the_schemas_know_the_limits_of_validation() {
    let document = document().await;
    let limit = |pointer: &str| {
        let pointer = format!("/components/schemas/{pointer}");
        document.pointer(&pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}"))
    };
    for (pointer, expected) in [
        ("NetworkSpec/properties/reserved_macs/maxItems", validate::RESERVED_MACS_MAX),
        ("PortSpec/properties/attachments/maxItems", validate::ATTACHMENTS_MAX),
        ("PortSpec/properties/macs/maxItems", validate::MACS_MAX),
        ("GuestMacs/properties/max/maximum", validate::GUEST_MACS_MAX.into()),
        ("GuestMacs/properties/allow/maxItems", validate::MAC_PREFIXES_MAX),
        ("GuestSpec/properties/qmp/maxLength", validate::SOCKET_PATH_LEN_MAX),
        (
            "PortFunction/oneOf/2/properties/netdev/properties/name/maxLength",
            validate::NETDEV_LEN_MAX,
        ),
        ("Backing/oneOf/1/properties/netdev/properties/name/maxLength", validate::NETDEV_LEN_MAX),
    ] {
        assert_eq!(limit(pointer), expected as u64, "{pointer}");
    }
}
