//! A real Prometheus with eswitchd's own rules, and what it says.
//!
//! In: the committed dashboards and rules. Out: the result of any query. Times are shortened, so
//! that what takes minutes on a host takes seconds here: of the rules a copy is rewritten.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lab::net;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// The window of rates: eight scrapes.
pub const WINDOW: &str = "32s";

/// The window of what a guest does: in an emulation within an emulation it takes its time.
const GUESTS_WINDOW: &str = "2m";

/// How often Prometheus scrapes. A scrape that takes longer has failed, and what it would have
/// told is not known until the next one: far longer than one takes while all goes well.
const SCRAPE: &str = "4s";

const ADDRESS: &str = "127.0.0.1:9090";
const PATIENCE: Duration = Duration::from_secs(240);

/// Lines of its log that are told.
const TOLD: usize = 10;

/// A file of `dashboards/`.
pub fn committed(name: &str) -> &'static str {
    match name {
        "alerts.yml" => include_str!("../../../dashboards/alerts.yml"),
        "alerts.test.yml" => include_str!("../../../dashboards/alerts.test.yml"),
        "prometheus.yml" => include_str!("../../../dashboards/prometheus.yml"),
        _ => panic!("{name} is none of them"),
    }
}

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    folder: PathBuf,
}

impl Prometheus {
    /// Starts it with the committed configuration and rules; times are shortened.
    pub fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("alerts.yml"), hurried_rules(committed("alerts.yml"))).unwrap();
        let configuration = committed("prometheus.yml").replace(
            "scrape_interval: 15s",
            &format!(
                "scrape_interval: {SCRAPE}\n  scrape_timeout: {SCRAPE}\n  evaluation_interval: 2s"
            ),
        );
        fs::write(folder.join("prometheus.yml"), configuration).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", at("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", at("data")))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .arg("--log.level=warn")
            // With these it asks for protobuf.
            .arg("--enable-feature=native-histograms")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let prometheus = Prometheus { child, folder: folder.to_owned() };
        let ready = net::wait_for("Prometheus", PATIENCE, || {
            let answer = prometheus.get("/-/ready").ok()?;
            answer.starts_with("HTTP/1.0 200").then_some(())
        });
        assert!(ready.is_ok(), "{}", fs::read_to_string(folder.join("log")).unwrap());
        prometheus
    }

    /// Changes its configuration, and has it read again.
    pub fn configure(&self, change: impl FnOnce(String) -> String) {
        let file = self.folder.join("prometheus.yml");
        fs::write(&file, change(fs::read_to_string(&file).unwrap())).unwrap();
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGHUP).unwrap();
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // 1.0: the body comes in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {ADDRESS}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The data of an answer; otherwise what Prometheus said instead.
    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let parameters: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let path = format!("{path}?{}", parameters.join("&"));
        let answer = self.get(&path).map_err(|error| format!("{path}: {error}"))?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        let mut body: Value = serde_json::from_str(body).unwrap_or_default();
        match body["status"] == "success" {
            true => Ok(body["data"].take()),
            false => Err(format!("{path}: {body}")),
        }
    }

    /// The series of a query now; an error says what Prometheus said instead.
    pub fn query(&self, expr: &str) -> Result<Vec<Value>, String> {
        self.ask("/api/v1/query", &[("query", expr)]).map(series)
    }

    /// The series that a query had at any time since `began`, in seconds since 1970.
    pub fn query_since(&self, expr: &str, began: u64, now: u64) -> Vec<Value> {
        let (began, now) = (began.to_string(), now.to_string());
        let parameters = [("query", expr), ("start", &began), ("end", &now), ("step", "2")];
        self.ask("/api/v1/query_range", &parameters).map(series).unwrap()
    }

    /// What an alert is at the moment: `Some(true)` where it fires, `Some(false)` where its
    /// condition does not hold although Prometheus hears of the daemon, otherwise nothing.
    pub fn fires(&self, alert: &str) -> Option<bool> {
        let states = format!("ALERTS{{alertname=\"{alert}\"}}");
        let up = "up{job=\"eswitchd\"} == 1";
        // One answer, so that both are of one moment.
        let found = self.query(&format!("{states} or {up}")).ok()?;
        let states: Vec<&str> =
            found.iter().filter_map(|one| one["metric"]["alertstate"].as_str()).collect();
        match states.contains(&"firing") {
            true => Some(true),
            false if states.is_empty() && !found.is_empty() => Some(false),
            false => None,
        }
    }

    /// All that Prometheus knows about an alert: its rule and its state, each part of its
    /// expression without the limit, how scrapes go, and the end of its own log.
    pub fn account(&self, alert: &str) -> String {
        let mut said = String::new();
        let mut say = |line: String| {
            said.push_str(&line);
            said.push('\n');
        };
        let rules = self.ask("/api/v1/rules", &[("type", "alert")]).unwrap_or_else(Value::String);
        let groups = rules["groups"].as_array().into_iter().flatten();
        let mut rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let rule = rules.find(|rule| rule["name"] == alert).cloned().unwrap_or_default();
        for what in ["state", "health", "lastError", "evaluationTime", "query", "alerts"] {
            say(format!("{what}: {}", rule[what]));
        }
        let parts = rule["query"].as_str().unwrap_or_default().split(" and ");
        let up = ["up", "scrape_duration_seconds", "max_over_time(scrape_duration_seconds[5m])"];
        for part in parts.map(without_matching).map(without_limit).chain(up) {
            match self.query(part) {
                Ok(series) => {
                    say(format!("{part}: {} series", series.len()));
                    for one in series.iter().take(TOLD) {
                        say(format!("  {} {}", one["value"][1], one["metric"]));
                    }
                }
                Err(error) => say(error),
            }
        }
        let targets = self.ask("/api/v1/targets", &[("state", "active")]);
        let targets = targets.unwrap_or_else(Value::String);
        for target in targets["activeTargets"].as_array().into_iter().flatten() {
            let [health, error] = ["health", "lastError"].map(|what| &target[what]);
            say(format!("target {}: {health} {error}", target["scrapeUrl"]));
        }
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(TOLD)) {
            say(format!("its log: {line}"));
        }
        said
    }
}

fn series(data: Value) -> Vec<Value> {
    data["result"].as_array().cloned().unwrap_or_default()
}

/// An expression without the limit that it ends in: where the limit is kept there is no data.
pub fn without_limit(expr: &str) -> &str {
    let ends = [" > ", " < ", " == "].into_iter().filter_map(|sign| expr.rsplit_once(sign));
    let is_limit = |text: &str| text.chars().all(|c| c.is_ascii_digit() || " .*".contains(c));
    ends.filter(|(_, limit)| is_limit(limit)).map(|(expr, _)| expr).next().unwrap_or(expr)
}

/// What stood behind an `and`, without how the two are matched.
fn without_matching(part: &str) -> &str {
    match part.strip_prefix("on ").and_then(|rest| rest.split_once(") ")) {
        Some((_, expr)) => expr,
        None => part,
    }
}

/// An expression with its windows shortened.
pub fn hurried(expr: &str) -> String {
    let guests = format!("[{GUESTS_WINDOW}]");
    let window = format!("[{WINDOW}]");
    ["[2m]", "[5m]", "[15m]"]
        .iter()
        .fold(expr.to_owned(), |expr, minutes| expr.replace(minutes, &window))
        .replace("[10m]", &guests)
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Rules with every wait of an alert, every window of a rate and the longest time without rest
/// shortened.
fn hurried_rules(rules: &str) -> String {
    let rules = rules.replace("unconverged_seconds > 60", "unconverged_seconds > 2");
    let mut hurried_rules = String::new();
    for line in rules.lines() {
        let line = match line.trim_start().strip_prefix("for: ") {
            Some(wait) => line.replace(wait, "2s"),
            None => hurried(line),
        };
        hurried_rules.push_str(&line);
        hurried_rules.push('\n');
    }
    hurried_rules
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
