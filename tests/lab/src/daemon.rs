//! eswitchd itself, started as a user starts it: the real binary with a configuration file, spoken
//! to over its Unix socket in plain HTTP.
//!
//! In: configuration, requests. Out: its answers as JSON, its log. The daemon lives in the network
//! namespace of the thread that starts it, and ends with its [`Daemon`].

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{At, Error, Result, net};

/// How long the daemon may take to start, to converge, or to end; software emulation is slow.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The last lines of its log that a failure shows.
const SHOWN: usize = 100;

/// As much of each as is shown, in characters: what lists flows or addresses is far longer.
const SHOWN_OF_LINE: usize = 240;

/// A running eswitchd.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    folder: PathBuf,
}

/// An answer of the API.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body: JSON, or a string where it is text.
    pub body: Value,
}

impl Daemon {
    /// Starts eswitchd in a folder of its own, which must be empty or that of an earlier run, with
    /// `configuration` (TOML) after what the fixture needs: its state, its API socket, and
    /// `qmp_dir` as `FOLDER/qmp`. Returns when it is ready.
    ///
    /// # Errors
    /// It does not start, or is not ready in time.
    pub fn start(folder: &Path, configuration: &str) -> Result<Self> {
        let mut daemon = Self { child: None, folder: folder.to_owned() };
        fs::create_dir_all(daemon.qmp_dir()).at("creating the QMP folder")?;
        let folder = folder.display();
        let text = format!(
            "state_dir = \"{folder}/state\"\n\n[guests]\nqmp_dir = \"{folder}/qmp\"\n\n\
             [api]\nunix = \"{folder}/api.sock\"\n{configuration}\n"
        );
        fs::write(daemon.configuration(), text).at("writing the configuration")?;
        daemon.restart()?;
        Ok(daemon)
    }

    /// Starts it again with the same configuration, after [`Self::end`].
    ///
    /// # Errors
    /// It does not start, or is not ready in time.
    pub fn restart(&mut self) -> Result<()> {
        self.spawn(&[])?;
        self.wait_until("the daemon is ready", || {
            self.request("GET", "/readyz", None).is_ok_and(|answer| answer.status == 200)
        })
    }

    /// Starts it again as an argument of another program, `strace` for example, and does not wait
    /// until it is ready.
    ///
    /// # Errors
    /// That program does not start.
    pub fn restart_under(&mut self, wrapper: &[&str]) -> Result<()> {
        self.spawn(wrapper)
    }

    /// Whether it runs: false once it has ended by itself.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn spawn(&mut self, wrapper: &[&str]) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .at("opening the log")?;
        let program = program()?;
        let mut command = match wrapper {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        let child = command
            .arg("--config")
            .arg(self.configuration())
            .env("ESWITCHD_LOG", "info,controller=debug")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .at("starting eswitchd")?;
        self.child = Some(child);
        Ok(())
    }

    /// Sends it a signal and waits for its end: SIGKILL for a crash, SIGTERM for a stop.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let Some(mut child) = self.child.take() else {
            return Err(Error::Missing {
                what: "eswitchd does not run".into(),
                remedy: "start it before it is ended".into(),
            });
        };
        kill(Pid::from_raw(child.id() as i32), signal).at("signalling eswitchd")?;
        let ended = net::wait_for("eswitchd's end", PATIENCE, || child.try_wait().ok().flatten());
        if ended.is_err() {
            self.child = Some(child);
        }
        ended
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The folder whose `<guest>.sock` are guests.
    pub fn qmp_dir(&self) -> PathBuf {
        self.folder.join("qmp")
    }

    /// The API's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("api.sock")
    }

    /// Its configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("eswitchd.toml")
    }

    /// What it has logged, over all its runs in this folder.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Sends one request.
    ///
    /// # Errors
    /// The daemon does not answer, or not in HTTP.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.request_with(method, path, "", body)
    }

    /// Sends one request with more header fields, each of which ends in CR LF.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn request_with(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let mut stream = UnixStream::connect(self.socket()).at("connecting to the API")?;
        stream.set_read_timeout(Some(PATIENCE)).at("setting a time limit")?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: eswitchd\r\nconnection: close\r\n{headers}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).at("sending a request")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).at("reading an answer")?;
        parse(&answer)
            .ok_or_else(|| Error::Format { what: format!("{method} {path}"), text: answer })
    }

    /// PUTs a resource; the resource as it is then.
    ///
    /// # Errors
    /// Anything but success, with the problem that the daemon tells.
    pub fn put(&self, path: &str, spec: Value) -> Result<Value> {
        self.succeed("PUT", path, Some(&json!({ "spec": spec })))
    }

    /// PUTs the network `blue` of this kind, and two ports of the software adapter `lab` on it: `b`,
    /// which is the netdev `outside` with the address 02:bb:00:00:00:01, and `a`, which is a
    /// function (guest and device) that may choose an address below 02:aa.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn put_pair(
        &self,
        kind: Value,
        outside: &str,
        (guest, device): (&str, &str),
    ) -> Result<()> {
        self.put("/v1/networks/blue", json!({ "kind": kind }))?;
        let ports = [
            (
                "b",
                json!({"netdev": {"adapter": "soft-lab", "name": outside}}),
                json!(["02:bb:00:00:00:01"]),
            ),
            ("a", json!({"guest_vf": {"guest": guest, "device": device}}), json!([])),
        ];
        for (name, function, macs) in ports {
            let spec = json!({
                "function": function,
                "attachments": [{"network": "blue"}],
                "macs": macs,
                "guest_macs": {"max": 1, "allow": ["02:aa"]},
            });
            self.put(&format!("/v1/ports/{name}"), spec)?;
        }
        Ok(())
    }

    /// GETs a resource or a list.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn get(&self, path: &str) -> Result<Value> {
        self.succeed("GET", path, None)
    }

    /// DELETEs a resource.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn delete(&self, path: &str) -> Result<()> {
        self.succeed("DELETE", path, None).map(|_| ())
    }

    /// PUTs and DELETEs many resources in one batch; the answer.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn apply(&self, batch: &Value) -> Result<Value> {
        self.succeed("POST", "/v1/apply", Some(batch))
    }

    fn succeed(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.request(method, path, body)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        let what = format!("{method} {path}: status {}", answer.status);
        Err(Error::Format { what, text: answer.body.to_string() })
    }

    /// Asks for `path` until what it answers fits; that answer.
    ///
    /// # Errors
    /// It does not within [`PATIENCE`]: the last answer is in the message.
    pub fn wait_for(&self, path: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = net::wait_for(path, PATIENCE, || {
            last = self.get(path).ok()?;
            fits(&last).then(|| last.clone())
        });
        found.map_err(|_| Error::Format {
            what: format!("{path} did not become what was waited for"),
            text: format!("{last:#}"),
        })
    }

    /// Opens a stream of events with this query.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn events(&self, query: &str) -> Result<Events> {
        let mut stream = UnixStream::connect(self.socket()).at("connecting to the API")?;
        // 1.0: the body comes as it is.
        let request = format!("GET /v1/events?{query} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).at("asking for events")?;
        stream.set_read_timeout(Some(PATIENCE)).at("setting a time limit")?;
        Ok(Events { stream, received: Vec::new() })
    }

    /// Waits until a port's condition has this status; the port.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_for_condition(&self, path: &str, about: &str, status: &str) -> Result<Value> {
        self.wait_for(path, |resource| condition(resource, about)["status"] == status)
    }

    fn wait_until(&self, what: &str, condition: impl Fn() -> bool) -> Result<()> {
        net::wait_for(what, PATIENCE, || condition().then_some(())).map_err(|error| {
            let remedy = format!("its log ends with:\n{}", end_of(&self.log(), 20));
            Error::Missing { what: error.to_string(), remedy }
        })
    }
}

/// A stream of events that is open.
#[derive(Debug)]
pub struct Events {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Events {
    /// What has come so far.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.received);
        text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    /// Reads on until the whole lines that have come so far fit.
    ///
    /// # Errors
    /// The stream ends, or they do not within [`PATIENCE`].
    pub fn wait_for(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.text();
            if text.rsplit_once('\n').is_some_and(|(whole, _)| fits(whole)) {
                return Ok(());
            }
            let mut piece = [0; 4096];
            let length = self.stream.read(&mut piece).at("reading events")?;
            self.received.extend_from_slice(&piece[..length]);
            if length == 0 || Instant::now() > deadline {
                let what = format!("a stream of events without {what}");
                return Err(Error::Format { what, text });
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("eswitchd's log ends with:\n{}", end_of(&self.log(), SHOWN));
        }
    }
}

/// The last so many lines of a log, each cut short.
fn end_of(log: &str, count: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(count));
    let short = |line: &&str| match line.char_indices().nth(SHOWN_OF_LINE) {
        Some((end, _)) => format!("{}…\n", &line[..end]),
        None => format!("{line}\n"),
    };
    last.map(short).collect()
}

/// The daemon's binary: `ESWITCHD_BIN`.
///
/// # Errors
/// The variable is not set.
pub fn program() -> Result<PathBuf> {
    std::env::var_os("ESWITCHD_BIN").map(PathBuf::from).ok_or_else(|| Error::Missing {
        what: "ESWITCHD_BIN does not name the daemon's binary".into(),
        remedy: "run this with `cargo lab test`".into(),
    })
}

/// A condition of a resource; null where it has none of that type. An adapter, which nobody asks
/// for, has its conditions at the top.
pub fn condition<'a>(resource: &'a Value, about: &str) -> &'a Value {
    let list = resource["status"].get("conditions").unwrap_or(&resource["conditions"]);
    let mut conditions = list.as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == about).unwrap_or(&Value::Null)
}

/// Reads an HTTP/1.1 answer that ended with its connection.
fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let body = match serde_json::from_str(body) {
        Ok(json) => json,
        Err(_) => Value::String(body.to_owned()),
    };
    Some(Answer { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_its_end_is_shown_and_of_a_line_its_beginning() {
        let log = format!("first\nsecond {}\nthird\n", "é".repeat(1000));
        let shown = end_of(&log, 2);
        let cut = format!("second {}…\nthird\n", "é".repeat(SHOWN_OF_LINE - 7));
        assert_eq!(shown, cut);
        assert_eq!(end_of("", 2), "");
    }

    #[test]
    fn an_answer_is_its_status_and_its_json() {
        let text = "HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(parse(text), Some(Answer { status: 404, body: json!({"a": 1}) }));
        assert_eq!(parse("HTTP/1.1 204 No Content\r\n\r\n").unwrap().body, json!(""));
        assert_eq!(parse("rubbish"), None);
    }
}
