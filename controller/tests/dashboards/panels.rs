//! Dashboards as values, and their JSON for Grafana 11 and later (schema version 42).
//!
//! In: pages of panels. Out: JSON. What all panels have in common stands here once; panels are set
//! from left to right and from top to bottom in the order they are named.

use serde_json::{Value, json};

/// The width of a page in Grafana's units.
const PAGE: u64 = 24;

/// A dashboard.
pub(crate) struct Page {
    /// Behind `eswitchd-` in its uid, and the name of its file.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) description: &'static str,
    pub(crate) variables: Vec<Variable>,
    /// Which series of a host are its own: what annotations and panels match by.
    pub(crate) matcher: &'static str,
    pub(crate) panels: Vec<Panel>,
}

/// A variable that is chosen at the top of the page.
pub(crate) struct Variable {
    pub(crate) name: &'static str,
    pub(crate) label: &'static str,
    pub(crate) query: &'static str,
    /// Whether all of them can be chosen.
    pub(crate) all: bool,
}

/// How a panel shows its series.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// The last value, large.
    Stat,
    /// The text of the legend, large.
    Name,
    /// Lines over time.
    Lines,
    /// A heat map of a histogram's buckets.
    Heat,
    /// Bars of states over time.
    States,
    /// The labels, a row for each series.
    Rows,
    /// A heading over those that follow.
    Heading,
}

/// A panel.
pub(crate) struct Panel {
    pub(crate) show: Show,
    pub(crate) title: &'static str,
    description: &'static str,
    unit: &'static str,
    /// Expressions with their legends.
    queries: Vec<(&'static str, &'static str)>,
    /// From which value on it is shown in which colour.
    steps: Vec<(f64, &'static str)>,
    size: (u64, u64),
    /// The page that a click leads to, and what is chosen there.
    link: Option<(&'static str, &'static str)>,
}

pub(crate) fn panel(
    show: Show,
    title: &'static str,
    unit: &'static str,
    description: &'static str,
) -> Panel {
    let size = match show {
        Show::Stat | Show::Name => (4, 4),
        Show::Heading => (PAGE, 1),
        _ => (12, 8),
    };
    let (queries, steps) = (Vec::new(), Vec::new());
    Panel { show, title, description, unit, queries, steps, size, link: None }
}

pub(crate) fn heading(title: &'static str) -> Panel {
    panel(Show::Heading, title, "", "")
}

impl Panel {
    pub(crate) fn asks(mut self, expr: &'static str, legend: &'static str) -> Panel {
        self.queries.push((expr, legend));
        self
    }

    /// In this colour from this value on.
    pub(crate) fn from(mut self, value: f64, colour: &'static str) -> Panel {
        self.steps.push((value, colour));
        self
    }

    pub(crate) fn wide(mut self, width: u64) -> Panel {
        self.size.0 = width;
        self
    }

    pub(crate) fn leads_to(mut self, page: &'static str, choice: &'static str) -> Panel {
        self.link = Some((page, choice));
        self
    }

    fn kind(&self) -> &'static str {
        match self.show {
            Show::Stat | Show::Name => "stat",
            Show::Lines => "timeseries",
            Show::Heat => "heatmap",
            Show::States => "state-timeline",
            Show::Rows => "table",
            Show::Heading => "row",
        }
    }

    /// Whether it asks for one moment, and not for a range.
    fn is_instant(&self) -> bool {
        matches!(self.show, Show::Stat | Show::Name | Show::Rows)
    }

    fn json(&self, id: usize, x: u64, y: u64) -> Value {
        let (w, h) = self.size;
        let place = json!({"h": h, "w": w, "x": x, "y": y});
        if self.show == Show::Heading {
            return json!({
                "id": id, "type": "row", "title": self.title, "gridPos": place,
                "collapsed": false, "panels": [],
            });
        }
        let targets: Vec<Value> = self
            .queries
            .iter()
            .zip(b'A'..)
            .map(|((expr, legend), letter)| {
                json!({
                    "datasource": datasource(), "editorMode": "code", "expr": expr,
                    "legendFormat": legend, "refId": char::from(letter).to_string(),
                    "instant": self.is_instant(), "range": !self.is_instant(),
                    "format": match self.show {
                        Show::Rows => "table",
                        Show::Heat => "heatmap",
                        _ => "time_series",
                    },
                })
            })
            .collect();
        json!({
            "id": id, "type": self.kind(), "title": self.title, "description": self.description,
            "datasource": datasource(), "gridPos": place, "targets": targets,
            "fieldConfig": {"defaults": self.defaults(), "overrides": []},
            "options": self.options(), "transformations": self.transformations(),
        })
    }

    fn defaults(&self) -> Value {
        let first = match self.steps.is_empty() {
            true => "text",
            false => "green",
        };
        let mut steps = vec![json!({"color": first, "value": null})];
        steps.extend(
            self.steps.iter().map(|(value, color)| json!({"color": color, "value": value})),
        );
        let mut defaults = json!({
            "unit": self.unit, "noValue": "no data", "mappings": [], "links": self.links(),
            "thresholds": {"mode": "absolute", "steps": steps},
            "color": {"mode": if self.show == Show::Lines { "palette-classic" } else { "thresholds" }},
        });
        if self.show == Show::Lines {
            let marks = if self.steps.is_empty() { "off" } else { "dashed" };
            defaults["min"] = json!(0);
            defaults["custom"] = json!({
                "drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never",
                "spanNulls": false, "thresholdsStyle": {"mode": marks},
            });
        }
        defaults
    }

    fn links(&self) -> Vec<Value> {
        let link = self.link.map(|(page, choice)| {
            let url = format!(
                "/d/eswitchd-{page}?${{datasource:queryparam}}&{choice}&${{__url_time_range}}"
            );
            json!({"title": format!("to the dashboard {page}"), "url": url, "targetBlank": false})
        });
        link.into_iter().collect()
    }

    fn options(&self) -> Value {
        let legend = |place| json!({"displayMode": "list", "placement": place, "showLegend": true});
        match self.show {
            Show::Stat | Show::Name => json!({
                "colorMode": "value", "graphMode": "none", "justifyMode": "center",
                "orientation": "auto", "wideLayout": true,
                "textMode": if self.show == Show::Name { "name" } else { "auto" },
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
            }),
            Show::Lines => json!({
                "legend": legend("bottom"), "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Show::States => json!({
                "legend": legend("bottom"), "tooltip": {"mode": "single", "sort": "none"},
                "showValue": "never", "mergeValues": true, "rowHeight": 0.8, "alignValue": "left",
            }),
            Show::Heat => json!({
                "calculate": false, "cellGap": 1, "legend": {"show": true},
                "color": {"mode": "scheme", "scheme": "Blues", "steps": 32, "exponent": 0.5},
                "yAxis": {"unit": self.unit, "axisPlacement": "left"},
                "rowsFrame": {"layout": "auto"}, "tooltip": {"mode": "single", "yHistogram": true},
                "filterValues": {"le": 1e-9},
            }),
            Show::Rows => json!({"showHeader": true, "cellHeight": "sm"}),
            Show::Heading => json!({}),
        }
    }

    fn transformations(&self) -> Value {
        if self.show != Show::Rows {
            return json!([]);
        }
        let hidden = json!({"Time": true, "__name__": true, "job": true, "Value": true});
        json!([{"id": "organize", "options": {"excludeByName": hidden}}])
    }
}

impl Page {
    /// The dashboard as Grafana reads it.
    pub(crate) fn json(&self) -> Value {
        let (mut x, mut y, mut row) = (0, 0, 0);
        let mut panels = Vec::new();
        for (panel, id) in self.panels.iter().zip(1..) {
            let (w, h) = panel.size;
            if x + w > PAGE {
                (x, y, row) = (0, y + row, 0);
            }
            panels.push(panel.json(id, x, y));
            (x, row) = (x + w, row.max(h));
        }
        let links =
            ["fleet", "host", "port", "guests"].into_iter().filter(|page| *page != self.name);
        let links = links.map(|page| {
            json!({
                "title": page, "type": "link", "url": format!("/d/eswitchd-{page}"), "icon": "dashboard",
                "keepTime": true, "includeVars": true, "targetBlank": false, "tooltip": "", "tags": [],
                "asDropdown": false,
            })
        });
        json!({
            "uid": format!("eswitchd-{}", self.name), "title": format!("eswitchd: {}", self.title),
            "description": self.description, "tags": ["eswitchd"], "schemaVersion": 42, "version": 1,
            "editable": true, "graphTooltip": 1, "fiscalYearStartMonth": 0, "weekStart": "",
            "timezone": "browser", "time": {"from": "now-6h", "to": "now"}, "timepicker": {},
            "refresh": "30s", "links": links.collect::<Vec<_>>(), "panels": panels,
            "annotations": {"list": self.annotations()},
            "templating": {"list": self.variables()},
        })
    }

    /// What happened, as marks on the time axis.
    fn annotations(&self) -> Vec<Value> {
        let matcher = self.matcher;
        let marks = [
            (
                "Starts of the daemon",
                "blue",
                "a start",
                format!(
                    "changes(process_start_time_seconds{{job=\"eswitchd\", {matcher}}}[1m]) > 0"
                ),
            ),
            (
                "Repaired drift",
                "orange",
                "{{adapter}}: {{kind}}",
                format!(
                    "sum by (adapter, kind) (increase(eswitchd_drift_repaired_total{{{matcher}}}[1m])) > 0"
                ),
            ),
            (
                "Refused requests",
                "purple",
                "{{guest}}: {{request}}",
                format!(
                    "sum by (guest, request) (increase(eswitchd_guest_refused_requests_total{{{matcher}}}[1m])) > 0"
                ),
            ),
            (
                "Alerts",
                "red",
                "{{alertname}}",
                format!("ALERTS{{alertname=~\"Eswitchd.*\", alertstate=\"firing\", {matcher}}}"),
            ),
        ];
        let mark = |(name, colour, text, expr): (&str, &str, &str, String)| {
            json!({
                "name": name, "enable": true, "hide": false, "iconColor": colour, "expr": expr,
                "datasource": datasource(), "step": "60s", "titleFormat": name, "textFormat": text,
                "useValueForTime": false,
            })
        };
        marks.into_iter().map(mark).collect()
    }

    fn variables(&self) -> Vec<Value> {
        let mut all = vec![json!({
            "name": "datasource", "label": "Data source", "type": "datasource",
            "description": "The Prometheus that scrapes eswitchd.", "query": "prometheus",
            "regex": "", "refresh": 1, "hide": 0, "includeAll": false, "multi": false, "options": [],
            "skipUrlSync": false,
        })];
        all.extend(self.variables.iter().map(|Variable { name, label, query, all }| {
            let mut variable = json!({
                "name": name, "label": label, "type": "query", "datasource": datasource(),
                "definition": query, "query": {"qryType": 1, "query": query, "refId": name},
                "description": format!("{label}, by the label `{name}`."),
                "regex": "", "refresh": 2, "sort": 1, "hide": 0, "includeAll": all, "multi": all,
                "options": [], "skipUrlSync": false,
            });
            if *all {
                variable["allValue"] = json!(".*");
                variable["current"] =
                    json!({"selected": true, "text": ["All"], "value": ["$__all"]});
            }
            variable
        }));
        all
    }
}

fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}
