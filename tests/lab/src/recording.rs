//! The recorder of golden inputs: one real guest's life, as its QEMU's QMP socket tells it.
//!
//! In: a guest of the lab. Out: JSON lines, one a moment of its life: what was `heard` unasked, and
//! the `answers` to what the observer of guests may ask, each line as QEMU wrote it, under the words
//! of its request (`query-rx-filter vf0`). Every request has the id 1, which whoever plays the
//! recording replaces. An answer that is the same as at the moment before is left out.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guest::{Guest, PF_ADDRESS};
use crate::{At, Error, Result};

/// For an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long is listened after something was done, for what QEMU says of it.
const SETTLE: Duration = Duration::from_millis(500);

/// The functions of the lab's guests.
const DEVICES: [&str; 5] = ["pf0", "vf0", "vf1", "vf2", "vf3"];

/// A conversation whose lines are kept as they come.
struct Monitor {
    stream: BufReader<UnixStream>,
    heard: Vec<String>,
}

impl Monitor {
    fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).at(format!("connecting to {}", path.display()))?;
        let mut monitor = Monitor { stream: BufReader::new(stream), heard: Vec::new() };
        let greeting = monitor.line(ANSWER_LIMIT)?;
        monitor.heard.extend(greeting);
        monitor.answer("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// The next line without its end; none where none comes within `limit`.
    fn line(&mut self, limit: Duration) -> Result<Option<String>> {
        let deadline = Instant::now() + limit;
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            self.stream.get_ref().set_read_timeout(Some(left)).at("setting a time limit")?;
            match self.stream.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => {
                    let text = String::from_utf8_lossy(&line);
                    return Ok(Some(text.trim_end().to_owned()));
                }
                Ok(_) => {
                    let closed = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                    return Err(closed).at("reading QMP");
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if line.is_empty() && Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error).at("reading QMP"),
            }
        }
    }

    /// The answer to a request with the id 1, whole; what comes before it is heard.
    fn answer(&mut self, command: &str, arguments: Value) -> Result<String> {
        let request = json!({"execute": command, "arguments": arguments, "id": 1});
        let sent = self.stream.get_mut().write_all(format!("{request}\n").as_bytes());
        sent.at(format!("sending {command}"))?;
        loop {
            let line = self.line(ANSWER_LIMIT)?.ok_or_else(|| Error::Format {
                what: format!("QMP's answer to {command}"),
                text: "none".into(),
            })?;
            if serde_json::from_str::<Value>(&line).is_ok_and(|line| line.get("id").is_some()) {
                return Ok(line);
            }
            self.heard.push(line);
        }
    }

    fn listen(&mut self) -> Result<()> {
        while let Some(line) = self.line(SETTLE)? {
            self.heard.push(line);
        }
        Ok(())
    }

    /// Everything that may be asked of these devices. The list of all filters is asked where an
    /// observer would ask it: at first, and after an event that says that anything may be different.
    fn everything(&mut self, first: bool) -> Result<BTreeMap<String, String>> {
        let mut answers = BTreeMap::new();
        for command in ["query-status", "query-pci"] {
            answers.insert(command.to_owned(), self.answer(command, json!({}))?);
        }
        let changes = ["STOP", "RESUME", "RESET"];
        let says = |line: &String| changes.iter().any(|e| line.contains(&format!("\"{e}\"")));
        if first || self.heard.iter().any(says) {
            let command = "query-rx-filter";
            answers.insert(command.to_owned(), self.answer(command, json!({}))?);
        }
        for device in DEVICES {
            let answer = self.answer("query-rx-filter", json!({"name": device}))?;
            answers.insert(format!("query-rx-filter {device}"), answer);
            for property in ["sriov-pf", "netdev"].into_iter().filter(|_| first) {
                let path = format!("/machine/peripheral/{device}");
                let answer = self.answer("qom-get", json!({"path": path, "property": property}))?;
                answers.insert(format!("qom-get {device} {property}"), answer);
            }
        }
        Ok(answers)
    }
}

/// What is done to the guest at a moment.
enum Deed {
    /// Shell commands in it.
    Inside(String),
    /// A QMP command.
    Monitor(&'static str),
}

/// The moments of its life after it has booted, in order.
fn life() -> Vec<(&'static str, Deed)> {
    use Deed::{Inside, Monitor};
    let vfs = |count: usize| {
        let await_them = match count {
            0 => String::new(),
            _ => format!("; until test -d /sys/class/net/eth{count}; do sleep 0.1; done"),
        };
        format!("echo {count} > /sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs{await_them}")
    };
    let macvlans = "for i in $(seq 10 79); do ip link add link eth1 name mv$i \
                    address 02:aa:00:00:01:$i type macvlan; ip link set mv$i up; done";
    let none = "for mv in $(ls /sys/class/net | grep '^mv'); do ip link del $mv; done";
    let driver = "/sys/bus/pci/drivers/virtio-pci";
    let unbind = format!(
        "d=$(basename $(readlink -f /sys/class/net/eth1/device/..)); echo $d > /tmp/vf0; \
         echo $d > {driver}/unbind"
    );
    let inside = |commands: &str| Inside(commands.to_owned());
    vec![
        ("two VFs, driver bound", Inside(vfs(2))),
        ("link up", inside("ip link set eth1 up")),
        ("another MAC", inside("ip link set eth1 address 02:aa:bb:cc:00:01")),
        ("VLAN 100", inside("ip link add link eth1 name eth1.100 type vlan id 100")),
        (
            "macvlan",
            inside(
                "ip link add link eth1 name mv0 address 02:aa:bb:cc:00:02 type macvlan; \
                 ip link set mv0 up",
            ),
        ),
        ("71 macvlans", inside(macvlans)),
        ("no macvlans", inside(none)),
        ("paused", Monitor("stop")),
        ("resumed", Monitor("cont")),
        ("driver unbound", Inside(unbind)),
        ("driver bound", Inside(format!("cat /tmp/vf0 > {driver}/bind"))),
        ("no VFs", Inside(vfs(0))),
    ]
}

/// Records a guest's life; tells each moment's name to `say`. The environment names the lab's
/// guests.
///
/// # Errors
/// The guest does not do its part, or the file cannot be written.
pub fn record(file: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
    let guest = Guest::named("a").start()?;
    let mut monitor = Monitor::connect(guest.qmp_path())?;
    let mut text = String::new();
    let mut last = BTreeMap::new();
    let mut moment = |name: &str, monitor: &mut Monitor, first: bool| -> Result<()> {
        monitor.listen()?;
        let mut answers = monitor.everything(first)?;
        let heard = std::mem::take(&mut monitor.heard);
        answers.retain(|request, answer| last.get(request) != Some(answer));
        last.extend(answers.clone());
        text.push_str(&json!({"moment": name, "heard": heard, "answers": answers}).to_string());
        text.push('\n');
        Ok(())
    };
    say("booted");
    moment("booted", &mut monitor, true)?;
    for (name, deed) in life() {
        say(name);
        match deed {
            Deed::Inside(commands) => {
                guest.run(&commands)?;
            }
            Deed::Monitor(command) => {
                monitor.answer(command, json!({}))?;
            }
        }
        moment(name, &mut monitor, false)?;
    }
    std::fs::write(file, text).at(format!("writing {}", file.display()))
}
