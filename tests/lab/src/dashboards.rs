//! The committed dashboards as data: what they ask Prometheus for, and what they tell of it.
//!
//! In: the JSON of a dashboard. Out: its queries. What the expressions mean is for others.

use serde_json::Value;

/// The dashboards by the names of their files, each with its text.
pub const DASHBOARDS: [(&str, &str); 4] = [
    ("fleet", include_str!("../../../dashboards/fleet.json")),
    ("host", include_str!("../../../dashboards/host.json")),
    ("port", include_str!("../../../dashboards/port.json")),
    ("guests", include_str!("../../../dashboards/guests.json")),
];

/// An expression of a panel or an annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The panel's id; none for an annotation.
    pub panel: Option<u64>,
    /// The title of the panel, or the name of the annotation.
    pub title: String,
    /// PromQL, with Grafana's variables in it.
    pub expr: String,
    /// What is written with each series, with labels in `{{…}}`.
    pub legend: String,
}

impl Query {
    /// The labels that the legend names.
    pub fn told(&self) -> Vec<String> {
        names_behind(&self.legend, "{{")
    }
}

/// All panels, those in rows too.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        all.push(panel);
        all.extend(panel["panels"].as_array().into_iter().flatten());
    }
    all
}

/// What the panels and annotations of a dashboard ask for, in their order.
pub fn queries(dashboard: &Value) -> Vec<Query> {
    let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        queries.extend(panel["targets"].as_array().into_iter().flatten().map(|target| Query {
            panel: panel["id"].as_u64(),
            title: text(&panel["title"]),
            expr: text(&target["expr"]),
            legend: text(&target["legendFormat"]),
        }));
    }
    let marks = dashboard["annotations"]["list"].as_array().into_iter().flatten();
    queries.extend(marks.map(|mark| Query {
        panel: None,
        title: text(&mark["name"]),
        expr: text(&mark["expr"]),
        legend: text(&mark["textFormat"]),
    }));
    queries
}

/// The names that stand in a text behind `before`, as far as letters and underscores go.
pub fn names_behind(text: &str, before: &str) -> Vec<String> {
    text.split(before)
        .skip(1)
        .map(|rest| rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_'))
        .map(String::from_iter)
        .filter(|name| !name.is_empty())
        .collect()
}
