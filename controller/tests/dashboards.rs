//! What stands in `dashboards/` asks only for what the daemon measures.
//!
//! In: the committed dashboard and alert rules, and the metrics as they are registered. A metric
//! or a label that is renamed or removed fails here, with the panel or the alert that uses it.
//! Whether PromQL itself is right is promtool's to say; here an expression is only taken apart far
//! enough to know what it asks for.

#![expect(clippy::unwrap_used, reason = "what cannot be read fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use api::resources::FlowState;
use controller::metrics::{Family, HIT_BY, Metrics};
use prometheus::proto::MetricType;
use serde_json::{Value, json};

/// What Prometheus adds to every series that it scrapes.
const TARGET_LABELS: [&str; 2] = ["instance", "job"];

/// The functions of PromQL and of Grafana's variables that the expressions here may use. Any other
/// word is taken for a metric.
const FUNCTIONS: [&str; 8] = [
    "absent",
    "histogram_quantile",
    "increase",
    "label_values",
    "max_over_time",
    "rate",
    "sum",
    "topk",
];

/// The words behind which label names stand in parentheses.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

fn committed(name: &str) -> String {
    let path = format!("{}/../dashboards/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&committed("eswitchd.json")).unwrap()
}

fn families() -> Vec<Family> {
    Metrics::new().unwrap().families().to_vec()
}

// ---------------------------------------------------------------- what is asked for

/// An expression and what is written with its result.
#[derive(Debug, Clone, Default)]
struct Query {
    /// Where it stands, for whoever has to mend it.
    place: String,
    expr: String,
    /// Labels that texts about the result name: legends, alert annotations.
    told: Vec<String>,
}

/// A metric with the matchers behind it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Selector {
    metric: String,
    /// Label and value.
    matchers: Vec<(String, String)>,
    /// Whether it stands in `rate` or `increase`.
    in_rate: bool,
}

/// An expression taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parts {
    selectors: Vec<Selector>,
    /// Labels in `by (…)` and the like.
    grouping: Vec<String>,
}

impl Parts {
    fn of(expr: &str) -> Parts {
        let mut parts = Parts::default();
        let mut rest = expr.trim_start();
        let mut word_before = "";
        while let Some(first) = rest.chars().next() {
            let word_length = rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
                .unwrap_or(rest.len());
            if first.is_ascii_digit() {
                rest = &rest[word_length..];
            } else if word_length > 0 {
                let (word, behind) = rest.split_at(word_length);
                rest = behind.trim_start();
                if GROUPINGS.contains(&word) {
                    let (labels, behind) = enclosed(rest, '(', ')');
                    parts.grouping.extend(labels.split(',').map(|label| label.trim().to_owned()));
                    rest = behind;
                } else if !FUNCTIONS.contains(&word) {
                    let (matchers, behind) = match rest.starts_with('{') {
                        true => enclosed(rest, '{', '}'),
                        false => ("", rest),
                    };
                    rest = behind;
                    parts.selectors.push(Selector {
                        metric: word.to_owned(),
                        matchers: matchers_of(matchers),
                        in_rate: ["rate", "increase"].contains(&word_before),
                    });
                }
                word_before = word;
            } else if first == '[' {
                rest = enclosed(rest, '[', ']').1;
            } else {
                rest = &rest[first.len_utf8()..];
            }
            rest = rest.trim_start();
        }
        parts
    }
}

/// The text between two brackets at the start of `text`, and what follows them.
fn enclosed(text: &str, open: char, close: char) -> (&str, &str) {
    let inner = text.strip_prefix(open).unwrap_or_else(|| panic!("`{open}` is missing in {text}"));
    inner.split_once(close).unwrap_or_else(|| panic!("`{close}` is missing in {text}"))
}

fn matchers_of(text: &str) -> Vec<(String, String)> {
    let mut matchers = Vec::new();
    let mut rest = text;
    while let Some((label, behind)) = rest.split_once('"') {
        let (value, behind) = behind.split_once('"').unwrap();
        let label = label.trim_matches([' ', ',', '=', '!', '~']);
        matchers.push((label.to_owned(), value.to_owned()));
        rest = behind;
    }
    matchers
}

/// The names that stand in a text behind `before`, as far as letters and underscores go.
fn names_behind(text: &str, before: &str) -> Vec<String> {
    text.split(before)
        .skip(1)
        .map(|rest| rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_'))
        .map(String::from_iter)
        .filter(|name| !name.is_empty())
        .collect()
}

/// All panels, those in rows too.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let outer = dashboard["panels"].as_array().unwrap();
    let inner = outer.iter().filter_map(|panel| panel["panels"].as_array()).flatten();
    outer.iter().chain(inner).collect()
}

fn text<'a>(value: &'a Value, place: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("{place}: no text"))
}

fn dashboard_queries(dashboard: &Value) -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        let place = format!("panel `{}`", text(&panel["title"], "title"));
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push(Query {
                place: place.clone(),
                expr: text(&target["expr"], &place).to_owned(),
                told: names_behind(text(&target["legendFormat"], &place), "{{"),
            });
        }
    }
    for variable in variables(dashboard).iter().filter(|variable| variable["type"] == "query") {
        let place = format!("variable `{}`", text(&variable["name"], "name"));
        let expr = text(&variable["query"]["query"], &place).to_owned();
        assert_eq!(variable["definition"], expr, "{place}: both forms say the same");
        let asked = expr.trim_end_matches(')').rsplit(',').next().unwrap().trim().to_owned();
        let expr = expr.replace(&format!(", {asked})"), ")");
        queries.push(Query { place, expr, told: vec![asked] });
    }
    queries
}

fn variables(dashboard: &Value) -> &Vec<Value> {
    dashboard["templating"]["list"].as_array().unwrap()
}

/// One rule of `alerts.yml`, its keys and their texts.
type Alert = BTreeMap<String, String>;

/// Reads the rules line by line: `key: value`, or `key: >-` with the text on lines indented more.
fn alerts() -> Vec<Alert> {
    let file = committed("alerts.yml");
    let mut alerts: Vec<Alert> = Vec::new();
    let mut lines = file.lines().filter(|line| !line.trim_start().starts_with('#')).peekable();
    while let Some(line) = lines.next() {
        let indent = |line: &str| line.len() - line.trim_start().len();
        let is_rule = line.trim_start().starts_with("- alert:");
        let Some((key, value)) = line.trim_start().trim_start_matches("- ").split_once(": ") else {
            continue;
        };
        let mut value = value.trim().to_owned();
        if value == ">-" {
            value.clear();
            while let Some(more) = lines.next_if(|next| indent(next) > indent(line)) {
                value.push_str(more.trim());
                value.push(' ');
            }
        }
        if is_rule {
            alerts.push(Alert::new());
        }
        if let Some(alert) = alerts.last_mut() {
            alert.insert(key.to_owned(), value);
        }
    }
    assert_eq!(alerts.len(), file.matches("expr:").count(), "each rule is read, and no other");
    alerts
}

fn alert_queries() -> Vec<Query> {
    let told = |alert: &Alert| names_behind(&format!("{alert:?}"), "$labels.");
    alerts()
        .iter()
        .map(|alert| Query {
            place: format!("alert {}", alert["alert"]),
            expr: alert["expr"].clone(),
            told: told(alert),
        })
        .collect()
}

fn all_queries() -> Vec<Query> {
    let mut queries = dashboard_queries(&dashboard());
    queries.extend(alert_queries());
    queries
}

// ---------------------------------------------------------------- what there is

/// What is wrong with a query, given what is registered.
fn complaints(query: &Query, families: &[Family]) -> Vec<String> {
    let parts = Parts::of(&query.expr);
    let mut complaints = Vec::new();
    let mut in_result = BTreeSet::new();
    if parts.selectors.is_empty() {
        complaints.push("asks for no metric".to_owned());
    }
    for selector in &parts.selectors {
        let Some((labels, counts)) = series(&selector.metric, families) else {
            complaints.push(format!("there is no metric `{}`", selector.metric));
            continue;
        };
        if counts != selector.in_rate && !query.expr.starts_with("label_values") {
            let metric = &selector.metric;
            complaints.push(format!("`{metric}`: counters need rate or increase, gauges neither"));
        }
        for (label, value) in &selector.matchers {
            if !labels.contains(label) {
                complaints.push(format!("`{}` has no label `{label}`", selector.metric));
            }
            if !value.contains('$') && !is_value_of(label, value) {
                complaints.push(format!("`{label}` is never `{value}`"));
            }
        }
        in_result.extend(labels);
    }
    for label in parts.grouping.iter().filter(|label| !in_result.contains(*label)) {
        complaints.push(format!("groups by `{label}`, which no metric of it has"));
    }
    if !parts.grouping.is_empty() {
        in_result.retain(|label| parts.grouping.contains(label));
    }
    for label in query.told.iter().filter(|label| !in_result.contains(*label)) {
        complaints.push(format!("tells `{label}`, which its result does not have"));
    }
    complaints.iter().map(|complaint| format!("{}: {complaint}", query.place)).collect()
}

/// The labels of a series name, and whether it only ever grows.
fn series(name: &str, families: &[Family]) -> Option<(BTreeSet<String>, bool)> {
    let mut labels: BTreeSet<String> = TARGET_LABELS.map(str::to_owned).into();
    if name == "up" {
        return Some((labels, false));
    }
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
        let stem = name.strip_suffix(suffix)?;
        families.iter().find(|f| f.name == stem && f.kind == MetricType::HISTOGRAM)
    });
    let plain = families.iter().find(|f| f.name == name && f.kind != MetricType::HISTOGRAM);
    let family = of_histogram.or(plain)?;
    labels.extend(family.labels.iter().cloned());
    if name.ends_with("_bucket") {
        labels.insert("le".to_owned());
    }
    Some((labels, family.kind != MetricType::GAUGE))
}

/// Whether the daemon, or the scrape configuration, ever gives a label this value.
fn is_value_of(label: &str, value: &str) -> bool {
    match label {
        "by" => HIT_BY.contains(&value),
        "state" => serde_json::from_value::<FlowState>(json!(value)).is_ok(),
        "job" => {
            let scraping = committed("prometheus.yml");
            scraping.lines().any(|line| names_behind(line, "job_name:") == [value])
        }
        _ => {
            let metrics = Metrics::new().unwrap();
            metrics.tally("flow_add", true);
            metrics.tally("flow_add", false);
            metrics.text().unwrap().contains(&format!("{label}=\"{value}\""))
        }
    }
}

/// Whether a query has a series of this metric.
fn is_asked_for(family: &Family, query: &Query) -> bool {
    let only = std::slice::from_ref(family);
    Parts::of(&query.expr).selectors.iter().any(|selector| {
        selector.metric.starts_with(&family.name) && series(&selector.metric, only).is_some()
    })
}

#[test]
fn a_metric_without_series_is_registered_all_the_same() {
    let metrics = Metrics::new().unwrap();
    let flows = metrics.families().iter().find(|family| family.name == "eswitchd_flows").unwrap();
    assert_eq!((flows.kind, flows.labels.join(" ")), (MetricType::GAUGE, "adapter state".into()));
    assert!(!metrics.text().unwrap().contains("eswitchd_flows"));
}

#[test]
fn every_query_asks_for_metrics_and_labels_that_are_registered() {
    let families = families();
    let wrong: Vec<String> = all_queries().iter().flat_map(|q| complaints(q, &families)).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn a_metric_that_is_renamed_is_found_out() {
    let queries = all_queries();
    let unnoticed: Vec<Family> = families()
        .into_iter()
        .filter(|renamed| queries.iter().any(|query| is_asked_for(renamed, query)))
        .filter(|renamed| {
            let mut families = families();
            families.iter_mut().filter(|f| *f == renamed).for_each(|f| f.name.push_str("_new"));
            queries.iter().all(|query| complaints(query, &families).is_empty())
        })
        .collect();
    assert_eq!(unnoticed, []);
}

#[test]
fn a_label_that_is_renamed_is_found_out() {
    let queries = all_queries();
    let mut used = 0;
    for family in families() {
        for label in &family.labels {
            let asks = |query: &Query| {
                let texts = format!("{} {:?}", query.expr, query.told);
                is_asked_for(&family, query) && texts.contains(&**label)
            };
            if !queries.iter().any(asks) {
                continue;
            }
            used += 1;
            let mut families = families();
            for other in families.iter_mut().filter(|f| f.name == family.name) {
                other.labels.retain(|other| other != label);
            }
            let noticed = queries.iter().any(|query| !complaints(query, &families).is_empty());
            assert!(noticed, "{} without its label `{label}`", family.name);
        }
    }
    assert!(used > 0);
}

#[test]
fn queries_that_ask_for_what_there_is_not_are_found_out() {
    let wrong = [
        ("eswitchd_guests_total", "no metric"),
        ("eswichd_ready == 0", "no metric"),
        ("eswitchd_ready{host=\"$instance\"}", "no label"),
        ("sum by (port) (eswitchd_flows)", "groups by"),
        ("eswitchd_flows{state=\"in_hardware\"}", "is never"),
        ("up{job=\"eswitch\"} == 0", "is never"),
        ("rate(eswitchd_kernel_operations_total{result=\"ok\"}[5m])", "is never"),
        ("eswitchd_errors_total > 0", "need rate"),
        ("rate(eswitchd_flows[5m])", "need rate"),
        ("rate(eswitchd_event_to_programmed_seconds[5m])", "no metric"),
        ("sum by (le) (rate(eswitchd_event_to_programmed_seconds_sum[5m]))", "groups by"),
        ("vector(1)", "no metric"),
    ];
    for (expr, complaint) in wrong {
        let query = Query { expr: expr.into(), ..Query::default() };
        let found = complaints(&query, &families());
        assert!(found.iter().any(|found| found.contains(complaint)), "{expr}: {found:?}");
    }
}

// ---------------------------------------------------------------- how it is shown

#[test]
fn every_panel_has_a_description_and_a_unit_where_it_has_an_axis() {
    for panel in panels(&dashboard()) {
        let kind = text(&panel["type"], "type");
        if kind == "row" {
            continue;
        }
        let place = format!("panel `{}`", text(&panel["title"], "title"));
        assert!(text(&panel["description"], &place).len() > 20, "{place}: a description");
        let unit = match kind {
            "stat" | "timeseries" => &panel["fieldConfig"]["defaults"]["unit"],
            "heatmap" => &panel["options"]["yAxis"]["unit"],
            _ => panic!("{place}: say here where a {kind} has its unit"),
        };
        assert!(!text(unit, &place).is_empty(), "{place}: a unit");
        let steps = &panel["fieldConfig"]["defaults"]["thresholds"]["steps"];
        assert!(kind == "heatmap" || steps.is_array(), "{place}: thresholds");
    }
}

#[test]
fn panels_have_ids_of_their_own_and_stand_side_by_side() {
    let dashboard = dashboard();
    let panels = panels(&dashboard);
    let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut covered = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{} is wider than the page", panel["title"]);
        for cell in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(covered.insert(cell), "{} covers another panel", panel["title"]);
        }
    }
}

/// Every `datasource` of a dashboard, wherever it stands.
fn datasources(value: &Value) -> Vec<&Value> {
    let here = value.get("datasource").into_iter();
    let inner: Vec<&Value> = match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    here.chain(inner.into_iter().flat_map(datasources)).collect()
}

#[test]
fn the_data_source_and_everything_else_that_varies_is_a_variable() {
    let dashboard = dashboard();
    let found = datasources(&dashboard);
    assert!(!found.is_empty());
    for datasource in found {
        assert_eq!(*datasource, json!({"type": "prometheus", "uid": "${datasource}"}));
    }
    let mut known: BTreeSet<&str> =
        variables(&dashboard).iter().map(|v| text(&v["name"], "name")).collect();
    known.insert("__rate_interval");
    for query in dashboard_queries(&dashboard) {
        for name in names_behind(&query.expr, "$") {
            assert!(known.contains(&*name), "{}: there is no variable `{name}`", query.place);
        }
        let all_hosts = query.expr.contains("build_info") && query.expr.starts_with("label_values");
        let chosen = query.expr.matches("{").count();
        assert_eq!(query.expr.matches("instance=\"$instance\"").count(), chosen, "{}", query.place);
        assert!(chosen > 0 || all_hosts, "{}: of which host?", query.place);
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do_first() {
    let alerts = alerts();
    assert!(!alerts.is_empty());
    for alert in alerts {
        let name = &alert["alert"];
        assert!(["critical", "warning"].contains(&&*alert["severity"]), "{name}: severity");
        assert!(alert.contains_key("for"), "{name}: for how long");
        assert!(!alert["summary"].is_empty(), "{name}: summary");
        assert!(alert["description"].contains("First:"), "{name}: what to do first");
    }
}
