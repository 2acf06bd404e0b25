//! The dashboards are of Grafana's published types, and what is not is found out.
//!
//! In: the committed dashboards, the types of `@grafana/schema` as `grafana.ts` puts them together,
//! and the TypeScript compiler, both from the folder that `cargo lab test` installs.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::PathBuf, process::Command};

use lab::dashboards::DASHBOARDS;
use serde_json::{Value, json};

const TYPES: &str = include_str!("grafana.ts");

/// What the compiler says of each dashboard that it refuses.
fn complaints(dashboards: &BTreeMap<String, Value>) -> BTreeMap<String, String> {
    let packages = PathBuf::from(std::env::var_os("LAB_GRAFANA_SCHEMA").unwrap());
    let folder = tempfile::tempdir().unwrap();
    symlink(packages.join("node_modules"), folder.path().join("node_modules")).unwrap();
    for (name, dashboard) in dashboards {
        let text = format!("{TYPES}export const dashboard: Dashboard = {dashboard};\n");
        fs::write(folder.path().join(format!("{name}.ts")), text).unwrap();
    }
    let output = Command::new("node")
        .args(["node_modules/typescript/bin/tsc", "--noEmit", "--strict", "--skipLibCheck"])
        .args(["--module", "nodenext", "--moduleResolution", "nodenext", "--target", "es2022"])
        .args(dashboards.keys().map(|name| format!("{name}.ts")))
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut complaints = BTreeMap::new();
    for line in said.lines().filter(|line| !line.starts_with(' ')) {
        let (name, rest) = line.split_once(".ts(").unwrap_or_else(|| panic!("{said}"));
        complaints.entry(name.to_owned()).or_insert_with(|| rest.to_owned());
    }
    assert_eq!(output.status.success(), complaints.is_empty(), "{said}");
    complaints
}

fn committed() -> BTreeMap<String, Value> {
    DASHBOARDS.map(|(name, text)| (name.to_owned(), serde_json::from_str(text).unwrap())).into()
}

#[test]
fn grafanas_types_take_the_dashboards() {
    assert_eq!(complaints(&committed()), BTreeMap::new());
}

#[test]
fn a_field_or_a_value_that_grafana_does_not_know_is_found_out_wherever_it_stands() {
    let host = &committed()["host"];
    let panel = |kind: &str| {
        let at = host["panels"].as_array().unwrap().iter().position(|panel| panel["type"] == kind);
        format!("/panels/{}", at.unwrap())
    };
    let [stat, lines, heat, states, rows] =
        ["stat", "timeseries", "heatmap", "state-timeline", "table"].map(panel);
    let wrong = [
        (String::new(), "refreshh", json!("1m")),
        (String::new(), "schemaVersion", json!("42")),
        ("/links/0".into(), "type", json!("url")),
        ("/templating/list/0".into(), "type", json!("qury")),
        ("/templating/list/0".into(), "mutli", json!(true)),
        ("/annotations/list/0".into(), "color", json!("red")),
        (stat.clone(), "type", json!("stats")),
        (stat.clone(), "descripton", json!("x")),
        (format!("{stat}/options"), "textMode", json!("autom")),
        (format!("{stat}/gridPos"), "width", json!(4)),
        (format!("{lines}/targets/0"), "legend", json!("x")),
        (format!("{lines}/fieldConfig/defaults/custom"), "lineWidht", json!(1)),
        (format!("{lines}/fieldConfig/defaults/custom"), "drawStyle", json!("lines")),
        (format!("{lines}/fieldConfig/defaults/color"), "mode", json!("palette")),
        (format!("{lines}/fieldConfig/defaults/thresholds"), "mode", json!("abs")),
        (format!("{heat}/options"), "cellgap", json!(1)),
        (format!("{states}/options/legend"), "displayMode", json!("lst")),
        (format!("{rows}/options"), "cellHeight", json!("tiny")),
    ];
    let mut broken = BTreeMap::new();
    for (number, (at, field, value)) in wrong.iter().enumerate() {
        let mut dashboard = host.clone();
        dashboard.pointer_mut(at).unwrap()[field] = value.clone();
        broken.insert(format!("wrong{number}"), dashboard);
    }
    let found = complaints(&broken);
    let unnoticed: Vec<_> = wrong
        .iter()
        .enumerate()
        .filter(|(number, _)| !found.contains_key(&format!("wrong{number}")))
        .collect();
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
