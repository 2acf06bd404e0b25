//! A real Prometheus with eswitchd's own rules, and what it says.
//!
//! In: the committed dashboards and rules. Out: the result of any query. Times are shortened, so
//! that what takes minutes on a host takes seconds here: of the rules a copy is rewritten.

use std::{
    collections::BTreeSet,
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

/// The window of rates: ten scrapes.
pub const WINDOW: &str = "20s";

const ADDRESS: &str = "127.0.0.1:9090";
const PATIENCE: Duration = Duration::from_secs(60);

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
        fs::write(folder.join("alerts.yml"), hurried(committed("alerts.yml"))).unwrap();
        let configuration = committed("prometheus.yml").replace(
            "scrape_interval: 15s",
            "scrape_interval: 2s\n  scrape_timeout: 2s\n  evaluation_interval: 1s",
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
            prometheus.get("/-/ready").filter(|answer| answer.starts_with("HTTP/1.0 200")).map(drop)
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

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(ADDRESS).ok()?;
        // 1.0: the body comes in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {ADDRESS}\r\n\r\n").ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        String::from_utf8(answer).ok()
    }

    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Vec<Value> {
        let parameters: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let answer = self.get(&format!("{path}?{}", parameters.join("&"))).unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        assert_eq!(body["status"], "success", "{parameters:?}: {body}");
        body["data"]["result"].as_array().cloned().unwrap_or_default()
    }

    /// The series of a query now.
    pub fn query(&self, expr: &str) -> Vec<Value> {
        self.ask("/api/v1/query", &[("query", expr)])
    }

    /// The series that a query had at any time since `began`, in seconds since 1970.
    pub fn query_since(&self, expr: &str, began: u64, now: u64) -> Vec<Value> {
        let (began, now) = (began.to_string(), now.to_string());
        let parameters = [("query", expr), ("start", &began), ("end", &now), ("step", "2")];
        self.ask("/api/v1/query_range", &parameters)
    }

    /// The alerts that fire.
    pub fn firing(&self) -> BTreeSet<String> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}");
        let names = alerts.iter().filter_map(|alert| alert["metric"]["alertname"].as_str());
        names.map(str::to_owned).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Rules with every wait of an alert, every window of a rate and the longest time without rest
/// shortened.
fn hurried(rules: &str) -> String {
    let rules = rules.replace("unconverged_seconds > 60", "unconverged_seconds > 6");
    let mut hurried = String::new();
    for line in rules.lines() {
        let line = match line.trim_start().strip_prefix("for: ") {
            Some(wait) => line.replace(wait, "2s"),
            None => ["[2m]", "[5m]", "[10m]", "[15m]"]
                .iter()
                .fold(line.to_owned(), |line, window| line.replace(window, &format!("[{WINDOW}]"))),
        };
        hurried.push_str(&line);
        hurried.push('\n');
    }
    hurried
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
