//! What stands in `dashboards/` is what [`pages`] says, and asks only for what the daemon measures.
//!
//! In: the committed dashboards and rules, and the metrics as they are registered. A metric
//! or a label that is renamed or removed fails here, with the panel or the alert that uses it.
//! Whether PromQL itself is right is promtool's to say; here an expression is only taken apart far
//! enough to know what it asks for.

#![expect(clippy::unwrap_used, reason = "what cannot be read fails the test")]

mod pages;
mod panels;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::LazyLock,
};

use api::resources::{EswitchMode, FlowState};
use controller::metrics::{Answer, Family, HIT_BY, Metrics};
use lab::dashboards::{names_behind, panels};
use prometheus::proto::MetricType;
use serde_json::{Value, json};

/// What Prometheus adds to every series that it scrapes.
const TARGET_LABELS: [&str; 2] = ["instance", "job"];

/// The functions of PromQL and of Grafana's variables that the expressions here may use. Any other
/// word is taken for a metric.
const FUNCTIONS: [&str; 15] = [
    "absent",
    "and",
    "bool",
    "changes",
    "count",
    "histogram_quantile",
    "increase",
    "label_values",
    "max_over_time",
    "min",
    "or",
    "rate",
    "sum",
    "time",
    "topk",
];

/// The words behind which label names stand in parentheses.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// The metrics of a daemon at its start, and one operation of the kernel of each result.
static TEXT: LazyLock<String> = LazyLock::new(|| {
    let metrics = Metrics::new().unwrap();
    metrics.tally("flow_add", Answer::Done);
    metrics.tally("flow_add", Answer::Refused(28));
    metrics.text().unwrap()
});

static RULES: LazyLock<Vec<AnyRule>> = LazyLock::new(read_rules);

fn path_of(name: &str) -> String {
    format!("{}/../dashboards/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn committed(name: &str) -> String {
    let path = path_of(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dashboards() -> impl Iterator<Item = (panels::Page, Value)> {
    pages::pages().into_iter().map(|page| {
        let json = serde_json::from_str(&committed(&format!("{}.json", page.name))).unwrap();
        (page, json)
    })
}

#[test]
fn the_committed_dashboards_are_current() {
    for page in pages::pages() {
        let name = format!("{}.json", page.name);
        let wanted = page.json();
        if std::env::var_os("ESWITCHD_WRITE_DOCS").is_some() {
            let mut text = serde_json::to_string_pretty(&wanted).unwrap();
            text.push('\n');
            fs::write(path_of(&name), text).unwrap();
        }
        let committed = fs::read_to_string(path_of(&name)).unwrap_or_default();
        assert!(
            serde_json::from_str::<Value>(&committed).is_ok_and(|committed| committed == wanted),
            "dashboards/{name} is not what controller/tests/dashboards says: run \
             `ESWITCHD_WRITE_DOCS=1 cargo test -p eswitchd --test dashboards` and commit it"
        );
    }
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

fn text<'a>(value: &'a Value, place: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("{place}: no text"))
}

fn dashboard_queries(dashboard: &Value) -> Vec<Query> {
    let mut queries = Vec::new();
    let page = text(&dashboard["title"], "title");
    for query in lab::dashboards::queries(dashboard) {
        let kind = if query.panel.is_some() { "panel" } else { "annotation" };
        let place = format!("{page}, {kind} `{}`", query.title);
        assert!(!query.expr.is_empty(), "{place}: no expression");
        let told = query.told();
        queries.push(Query { place, expr: query.expr, told });
    }
    for variable in variables(dashboard).iter().filter(|variable| variable["type"] == "query") {
        let place = format!("{page}, variable `{}`", text(&variable["name"], "name"));
        let expr = text(&variable["query"]["query"], &place).to_owned();
        let asked = expr.trim_end_matches(')').rsplit(',').next().unwrap().trim().to_owned();
        let expr = expr.replace(&format!(", {asked})"), ")");
        queries.push(Query { place, expr, told: vec![asked] });
    }
    queries
}

fn variables(dashboard: &Value) -> &Vec<Value> {
    dashboard["templating"]["list"].as_array().unwrap()
}

/// One rule of `alerts.yml`, its keys and their texts: an `alert`, or a `record`.
type AnyRule = BTreeMap<String, String>;

/// Reads the rules line by line: `key: value`, or `key: >-` with the text on lines indented more.
fn read_rules() -> Vec<AnyRule> {
    let file = committed("alerts.yml");
    let mut rules: Vec<AnyRule> = Vec::new();
    let mut lines = file.lines().filter(|line| !line.trim_start().starts_with('#')).peekable();
    while let Some(line) = lines.next() {
        let indent = |line: &str| line.len() - line.trim_start().len();
        let starts = |key: &str| line.trim_start().starts_with(&format!("- {key}:"));
        let is_rule = starts("alert") || starts("record");
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
            rules.push(AnyRule::new());
        }
        if let Some(rule) = rules.last_mut() {
            rule.insert(key.to_owned(), value);
        }
    }
    assert_eq!(rules.len(), file.matches("expr:").count(), "each rule is read, and no other");
    rules
}

fn alerts() -> Vec<&'static AnyRule> {
    RULES.iter().filter(|rule| rule.contains_key("alert")).collect()
}

fn rule_queries() -> Vec<Query> {
    let name = |rule: &AnyRule| rule.get("alert").or(rule.get("record")).unwrap().clone();
    RULES
        .iter()
        .map(|rule| Query {
            place: format!("rule {}", name(rule)),
            expr: rule["expr"].clone(),
            told: names_behind(&format!("{rule:?}"), "$labels."),
        })
        .collect()
}

/// The labels of a series that a rule records: its name begins with them.
fn recorded(name: &str) -> Option<BTreeSet<String>> {
    RULES.iter().any(|rule| rule.get("record").is_some_and(|record| record == name)).then(|| {
        let labels = name.split(':').next().unwrap_or_default();
        labels.split('_').map(str::to_owned).collect()
    })
}

fn all_queries() -> Vec<Query> {
    let mut queries: Vec<Query> =
        dashboards().flat_map(|(_, dashboard)| dashboard_queries(&dashboard)).collect();
    queries.extend(rule_queries());
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
    if name == "ALERTS" {
        labels.extend(["alertname", "alertstate", "severity"].map(str::to_owned));
        return Some((labels, false));
    }
    if let Some(labels) = recorded(name) {
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
        "mode" => serde_json::from_value::<EswitchMode>(json!(value)).is_ok(),
        // What the owner says of ports, guests and adapters.
        "condition" | "reason" => {
            let said = include_str!("../../src/owner/status.rs");
            value.split('|').all(|value| said.contains(&format!("\"{value}\"")))
        }
        "job" => {
            let scraping = committed("prometheus.yml");
            scraping.lines().any(|line| names_behind(line, "job_name:") == [value])
        }
        "alertname" => {
            alerts().iter().any(|alert| alert["alert"].starts_with(value.trim_end_matches(".*")))
        }
        "alertstate" => ["pending", "firing"].contains(&value),
        _ => value.is_empty() || TEXT.contains(&format!("{label}=\"{value}\"")),
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
fn every_panel_has_a_description_a_unit_and_thresholds() {
    for (_, dashboard) in dashboards() {
        for panel in panels(&dashboard).into_iter().filter(|panel| panel["type"] != "row") {
            let place = format!("panel `{}`", text(&panel["title"], "title"));
            assert!(text(&panel["description"], &place).len() > 10, "{place}: a description");
            let defaults = &panel["fieldConfig"]["defaults"];
            assert!(!text(&defaults["unit"], &place).is_empty(), "{place}: a unit");
            assert!(defaults["thresholds"]["steps"].is_array(), "{place}: thresholds");
        }
    }
}

#[test]
fn panels_have_ids_of_their_own_and_stand_side_by_side() {
    for (_, dashboard) in dashboards() {
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
}

#[test]
fn links_lead_to_dashboards_that_there_are_and_choose_what_they_let_choose() {
    let all: BTreeMap<String, Vec<String>> = pages::pages()
        .iter()
        .map(|page| {
            let names = page.variables.iter().map(|variable| variable.name.to_owned());
            (format!("/d/eswitchd-{}", page.name), names.collect())
        })
        .collect();
    let mut followed = 0;
    for (_, dashboard) in dashboards() {
        for panel in panels(&dashboard) {
            for link in panel["fieldConfig"]["defaults"]["links"].as_array().into_iter().flatten() {
                let url = text(&link["url"], "url");
                let (page, query) = url.split_once('?').unwrap();
                let variables = all.get(page).unwrap_or_else(|| panic!("{url}: no such page"));
                for name in names_behind(query, "var-") {
                    assert!(variables.contains(&name), "{url}: it has no variable `{name}`");
                }
                followed += 1;
            }
        }
        for link in dashboard["links"].as_array().unwrap() {
            assert!(all.contains_key(text(&link["url"], "url")), "{link}");
        }
    }
    assert!(followed > 5);
}

#[test]
fn each_metric_of_the_daemon_is_shown_or_has_an_alert() {
    let queries = all_queries();
    let unseen: Vec<String> = families()
        .into_iter()
        .filter(|family| family.name.starts_with("eswitchd_"))
        .filter(|family| !queries.iter().any(|query| is_asked_for(family, query)))
        .map(|family| family.name)
        .collect();
    assert_eq!(unseen, Vec::<String>::new());
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
    for (page, dashboard) in dashboards() {
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
            let all_hosts = query.expr == "label_values(eswitchd_build_info)";
            let chosen = query.expr.matches('{').count();
            assert_eq!(query.expr.matches(page.matcher).count(), chosen, "{}", query.place);
            assert!(chosen > 0 || all_hosts, "{}: of which host?", query.place);
        }
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
        let page = format!("../{}", alert["runbook_url"]);
        let page = committed(&page);
        assert!(page.starts_with(&format!("# {name}\n")), "{name}: its page");
        assert!(page.contains("## What to do\n\n1. "), "{name}: what to do");
    }
}

#[test]
fn a_recorded_series_is_named_after_its_labels() {
    for rule in RULES.iter().filter(|rule| rule.contains_key("record")) {
        let labels = recorded(&rule["record"]).unwrap();
        let grouping: BTreeSet<String> = Parts::of(&rule["expr"]).grouping.into_iter().collect();
        let left: BTreeSet<String> = grouping.into_iter().filter(|label| label != "le").collect();
        assert_eq!(labels, left, "{}", rule["record"]);
    }
}
