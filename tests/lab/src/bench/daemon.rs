//! The daemon as a whole with many flows: to start beside them, to install them, to keep them, and
//! to change few of them.
//!
//! In: eswitchd's binary. Out: [`Line`]s. Representors are dummies, so that nothing but tc is
//! measured; the one guest is a QEMU double whose port stands where the platform says.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tc_flows::{Hook, Kernel, Mode, Op, OwnChanges, OwnRule, Watch};

use super::{Line, Run, guest::ESWITCHD, ifindex, kernel, refused};
use crate::{At, Error, Result, daemon::Daemon, net, qmp_double::Double};

const ADOPT: &str = "daemon/adopt/100k";
const FIRST_INSTALL: &str = "daemon/first_install/100k";
const IDLE_CPU: &str = "daemon/idle_cpu/100k";
const MEMORY: &str = "daemon/memory/100k";
const SCRAPE: &str = "metrics/scrape/100k";
const SCRAPE_PORTS: &str = "metrics/scrape/1000x10";
const MAC_CHANGE: [(&str, usize, usize); 5] = [
    ("daemon/mac_change/10", 10, 0),
    ("daemon/mac_change/100", 100, 0),
    ("daemon/mac_change/250", 250, 0),
    ("daemon/mac_change/100in10networks", 100, 10),
    ("daemon/mac_change/100in100networks", 100, 100),
];

/// Names of all benchmarks here.
pub fn names() -> impl Iterator<Item = &'static str> {
    [ADOPT, FIRST_INSTALL, IDLE_CPU, MEMORY, SCRAPE, SCRAPE_PORTS]
        .into_iter()
        .chain(MAC_CHANGE.iter().map(|(name, ..)| *name))
}

/// Ports of one network that take about 100,000 flows: each knows every other.
const MANY: usize = 313;

/// Ports of many networks that take about as many flows, and how many networks that is.
const PORTS: usize = 1000;
const NETWORKS: usize = 10;

/// Ports of each network that is only there.
const FEW: usize = 4;

/// How long idleness is measured.
const IDLE: Duration = Duration::from_secs(60);

/// How long after a start the daemon still reads hooks whole for the first time: one each half
/// second, and some time to spare.
const FIRST_AUDIT: Duration = Duration::from_secs(MANY as u64 / 2 + 15);

/// How long the daemon may take to bring 100,000 flows in.
const LIMIT: Duration = Duration::from_secs(600);

/// The unit of processor times (`USER_HZ`, include/asm-generic/param.h).
const TICKS_A_SECOND: f64 = 100.0;

/// How often readiness is asked for.
const PACE: Duration = Duration::from_millis(10);

/// Runs those that `wants` wants.
///
/// # Errors
/// The daemon or the kernel does not do its part.
pub fn run(
    wants: &dyn Fn(&str) -> bool,
    runs: usize,
    say: &mut dyn FnMut(&str),
    tell: &mut dyn FnMut(Line),
) -> Result<()> {
    if [ADOPT, FIRST_INSTALL, IDLE_CPU, MEMORY, SCRAPE].into_iter().any(wants) {
        many(runs, say, tell)?;
    }
    if wants(SCRAPE_PORTS) {
        tell(scrape_ports(runs, say)?);
    }
    for (name, ports, networks) in MAC_CHANGE.into_iter().filter(|(name, ..)| wants(name)) {
        tell(mac_change(name, ports, networks, 4 * runs, say)?);
    }
    Ok(())
}

/// A software adapter of dummies, gone with this.
pub(super) struct Host {
    links: Vec<String>,
    folder: PathBuf,
}

impl Host {
    pub(super) fn new(representors: usize) -> Result<Host> {
        let mut links: Vec<String> = (0..representors).map(|n| format!("rep{n}")).collect();
        links.push("up0".to_owned());
        let folder = std::env::temp_dir().join(format!("eswitchd-bench-{representors}"));
        fs::create_dir_all(&folder).at("making a folder")?;
        let host = Host { links, folder };
        host.each(|link| format!("link add {link} up type dummy"))?;
        Ok(host)
    }

    /// The uplink and the representors.
    pub(super) fn links(&self) -> &[String] {
        &self.links
    }

    /// The folder that has the daemon's, `eswitchd`.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// One line of `ip -batch` for each netdev.
    fn each(&self, line: impl Fn(&str) -> String) -> Result<()> {
        let lines: Vec<String> = self.links.iter().map(|link| line(link)).collect();
        batch("ip", &self.folder, &lines)
    }

    /// Takes all flows away, and makes the hooks anew.
    fn without_flows(&self) -> Result<()> {
        for (verb, needed) in [("del", false), ("add", true)] {
            let line = |link: &String| format!("qdisc {verb} dev {link} clsact");
            let lines: Vec<String> = self.links.iter().map(line).collect();
            let done = batch("tc", &self.folder, &lines);
            if needed {
                done?;
            }
        }
        Ok(())
    }

    pub(super) fn daemon(&self) -> Result<Daemon> {
        let configuration =
            "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"rep*\"]\n";
        Daemon::start(&self.folder.join("eswitchd"), configuration)
    }

    fn hooks(&self) -> Result<Vec<Hook>> {
        self.links.iter().map(|link| ifindex(link).map(Hook::ingress)).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What is left over is in the way of nothing but the next benchmark, which says so.
        let _ = self.each(|link| format!("link del {link}"));
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn batch(program: &str, folder: &Path, lines: &[String]) -> Result<()> {
    let path = folder.join("batch");
    fs::write(&path, lines.join("\n")).at("writing commands")?;
    let path = path.to_string_lossy().into_owned();
    net::command(program, ["-force", "-batch", &path]).map(|_| ())
}

fn network(daemon: &Daemon, id: &str, vid: usize) -> Result<()> {
    daemon.put(&format!("/v1/networks/{id}"), json!({"kind": {"vlan": {"vid": vid}}}))?;
    Ok(())
}

/// A port as `POST /v1/apply` takes it.
fn port(number: usize, network: &str) -> Value {
    json!({"id": format!("p{number}"), "spec": {
        "function": {"netdev": {"adapter": "soft-lab", "name": format!("rep{number}")}},
        "attachments": [{"network": network}],
        "macs": [format!("02:00:00:00:{:02x}:{:02x}", number >> 8, number & 0xff)],
    }})
}

/// PUTs ports in one batch.
fn put_ports(daemon: &Daemon, ports: impl Iterator<Item = Value>) -> Result<()> {
    let ports: Vec<Value> = ports.collect();
    daemon.apply(&json!({ "ports": ports })).map(|_| ())
}

/// Everything about 100,000 flows.
fn many(runs: usize, say: &mut dyn FnMut(&str), tell: &mut dyn FnMut(Line)) -> Result<()> {
    let host = Host::new(MANY)?;
    let mut daemon = host.daemon()?;
    thread::sleep(Duration::from_secs(2));
    let empty = memory(&daemon)?;
    network(&daemon, "blue", 100)?;
    put_ports(&daemon, (0..MANY).map(|number| port(number, "blue")))?;
    settled(&daemon)?;
    let hooks = host.hooks()?;
    let mut floor = kernel(ESWITCHD)?;
    let mut ops = Vec::new();
    for hook in &hooks {
        let own = floor.dump(*hook).map_err(refused)?.own;
        ops.extend(own.into_iter().map(|OwnRule { rule, handle, .. }| Op::Add { rule, handle }));
    }
    let flows = ops.len();
    say(&format!("{flows} flows of {MANY} ports"));

    let (mut installs, mut adoptions) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        daemon.end(Signal::SIGTERM)?;
        host.without_flows()?;
        let ours = flows as f64 / started(&mut daemon)?;
        daemon.end(Signal::SIGTERM)?;
        host.without_flows()?;
        // As the daemon does, somebody listens to what others change: with a listener the kernel
        // makes a notification of each change, whoever made it.
        let listener =
            Watch::open(ESWITCHD, &[floor.port()], OwnChanges::Dropped).map_err(refused)?;
        let began = Instant::now();
        let outcomes = floor.apply(&ops, Mode::Told);
        let theirs = flows as f64 / began.elapsed().as_secs_f64();
        drop(listener);
        if let Some(failed) = outcomes.iter().find(|outcome| !outcome.is_done()) {
            let text = format!("{failed:?}");
            return Err(Error::Format { what: "the floor's flows".into(), text });
        }
        say(&format!("first install {run}: {ours:.0} flows/s, tc-flows alone {theirs:.0}"));
        installs.push(Run { ours, theirs: vec![("flows", theirs)] });

        let ours = started(&mut daemon)?;
        let changed = changes(&daemon)?;
        if changed != 0.0 {
            let text = format!("{changed} flows were changed");
            return Err(Error::Format { what: "a restart beside the flows".into(), text });
        }
        let began = Instant::now();
        let mut seen = 0;
        for hook in &hooks {
            seen += floor.dump_terse(*hook).map_err(refused)?.own.len();
        }
        let theirs = began.elapsed().as_secs_f64();
        say(&format!("adoption {run}: {ours:.2} s, a terse dump of {seen} flows {theirs:.2} s"));
        adoptions.push(Run { ours, theirs: vec![("terse dump", theirs)] });
    }
    let what = format!("lab VM (software emulation); {flows} flows of {MANY} ports in one network");
    let note = format!(
        "{what}; from the daemon's start to ready, the kernel's hooks empty; \
         tc-flows alone with a listener, as the daemon has"
    );
    tell(Line::of(FIRST_INSTALL, "flows/s", &installs, note));
    let note = format!("{what}; from the daemon's start to ready, no flow changed");
    tell(Line::of(ADOPT, "s", &adoptions, note));

    thread::sleep(Duration::from_secs(2));
    let full = memory(&daemon)?;
    let ours = (full - empty) / flows as f64;
    let note = format!(
        "{what}; resident memory after a restart beside the flows, less that of a daemon without \
         ({:.1} MB)",
        empty / 1e6
    );
    tell(Line::of(MEMORY, "bytes/flow", &[Run { ours, theirs: Vec::new() }], note));
    tell(scrape(SCRAPE, &daemon, &hooks, &mut floor, runs, &what)?);
    thread::sleep(FIRST_AUDIT);
    let before = processor_times(&daemon)?;
    thread::sleep(IDLE);
    let mut used = processor_times(&daemon)?;
    for (thread, before) in before {
        *used.entry(thread).or_default() -= before;
    }
    let percent = |seconds: f64| 100.0 * seconds / IDLE.as_secs_f64();
    for (thread, seconds) in used.iter().filter(|(_, seconds)| **seconds > 0.0) {
        say(&format!("idle: {thread} {:.2} %", percent(*seconds)));
    }
    let ours = percent(used.values().sum());
    let note = format!("{what}; {} s, after the first audit", IDLE.as_secs());
    tell(Line::of(IDLE_CPU, "% of a core", &[Run { ours, theirs: Vec::new() }], note));
    Ok(())
}

/// A scrape of about as many flows, and of far more ports: most series of the metrics are theirs.
fn scrape_ports(runs: usize, say: &mut dyn FnMut(&str)) -> Result<Line> {
    let host = Host::new(PORTS)?;
    let daemon = host.daemon()?;
    let name = |number: usize| format!("n{}", number % NETWORKS);
    for number in 0..NETWORKS {
        network(&daemon, &name(number), 100 + number)?;
    }
    put_ports(&daemon, (0..PORTS).map(|number| port(number, &name(number))))?;
    settled(&daemon)?;
    let (hooks, mut floor) = (host.hooks()?, kernel(ESWITCHD)?);
    let mut flows = 0;
    for hook in &hooks {
        flows += floor.dump_terse(*hook).map_err(refused)?.own.len();
    }
    let flows = format!("{flows} flows of {PORTS} ports in {NETWORKS} networks");
    say(&flows);
    let what = format!("lab VM (software emulation); {flows}");
    scrape(SCRAPE_PORTS, &daemon, &hooks, &mut floor, runs, &what)
}

/// A scrape that reads the kernel's counters, beside a terse dump of all hooks.
fn scrape(
    name: &str,
    daemon: &Daemon,
    hooks: &[Hook],
    floor: &mut impl Kernel,
    runs: usize,
    what: &str,
) -> Result<Line> {
    let (mut scrapes, mut bytes) = (Vec::new(), 0);
    for _ in 0..runs {
        // A reading answers for a second.
        thread::sleep(Duration::from_millis(1100));
        let began = Instant::now();
        let answer = daemon.request("GET", "/metrics", None)?;
        let ours = 1e3 * began.elapsed().as_secs_f64();
        bytes = answer.body.as_str().map_or(0, str::len);
        let began = Instant::now();
        for hook in hooks {
            floor.dump_terse(*hook).map_err(refused)?;
        }
        let theirs = 1e3 * began.elapsed().as_secs_f64();
        scrapes.push(Run { ours, theirs: vec![("terse dump", theirs)] });
    }
    let note = format!("{what}; {} kB of text, the kernel's counters among it", bytes / 1000);
    Ok(Line::of(name, "ms", &scrapes, note))
}

/// A guest's new address in a network of so many ports, beside so many other networks.
fn mac_change(
    name: &str,
    ports: usize,
    others: usize,
    runs: usize,
    say: &mut dyn FnMut(&str),
) -> Result<Line> {
    let host = Host::new(ports + others * FEW)?;
    let daemon = host.daemon()?;
    let socket = daemon.qmp_dir().join("vm1.sock");
    let guest = Double::listen(&socket, 1, 1)?;
    network(&daemon, "blue", 100)?;
    let mut all: Vec<Value> = (1..ports).map(|number| port(number, "blue")).collect();
    for other in 0..others {
        let id = format!("other{other}");
        network(&daemon, &id, 200 + other)?;
        all.extend((0..FEW).map(|number| port(ports + other * FEW + number, &id)));
    }
    put_ports(&daemon, all.into_iter())?;
    let backings = json!({"vf0": {"netdev": {"name": "rep0"}}});
    daemon.put("/v1/guests/vm1", json!({"qmp": socket, "backings": backings}))?;
    let spec = json!({
        "function": {"guest_vf": {"guest": "vm1", "device": "vf0"}},
        "attachments": [{"network": "blue"}],
        "guest_macs": {"max": 1},
    });
    daemon.put("/v1/ports/p0", spec)?;
    settled(&daemon)?;
    let mut found = Vec::new();
    let mut flows = 0.0;
    for run in 0..runs + 1 {
        let seen = daemon.get("/v1/ports/p0")?["status"]["events_programmed"].clone();
        let before = changes(&daemon)?;
        let mac = format!("02:aa:00:00:00:{:02x}", run % 256);
        guest.change("vf0", |nic| nic.mac.clone_from(&mac))?;
        // To ask at once would measure the asking, too.
        thread::sleep(Duration::from_millis(500));
        let port = daemon.wait_for("/v1/ports/p0", |port| {
            port["status"]["macs"][0] == mac && port["status"]["flows"]["pending"] == 0
        })?;
        if port["status"]["events_programmed"] == seen {
            say("the daemon looked by itself before it had read the event: not counted");
            continue;
        }
        flows = changes(&daemon)? - before;
        let ours = port["status"]["event_to_programmed_us"].as_f64().unwrap_or(f64::NAN) / 1000.0;
        // The first warms caches up.
        if run > 0 {
            found.push(Run { ours, theirs: Vec::new() });
        }
    }
    let beside = match others {
        0 => String::new(),
        _ => format!(" beside {others} other networks of {FEW} ports each"),
    };
    let note = format!(
        "lab VM (software emulation); {flows} flow changes; from the event read off the QMP socket \
         to the kernel's last acknowledgement; {ports} ports in the network{beside}"
    );
    Ok(Line::of(name, "ms", &found, note))
}

/// Starts the daemon: how long it takes until it is ready, in seconds.
fn started(daemon: &mut Daemon) -> Result<f64> {
    let began = Instant::now();
    daemon.restart_under(&[])?;
    while !is_ready(daemon) {
        if began.elapsed() > LIMIT {
            let tail = daemon.log().lines().rev().take(10).collect::<Vec<_>>().join("\n");
            return Err(Error::Format { what: "the daemon is not ready".into(), text: tail });
        }
        thread::sleep(PACE);
    }
    Ok(began.elapsed().as_secs_f64())
}

fn is_ready(daemon: &Daemon) -> bool {
    daemon.request("GET", "/readyz", None).is_ok_and(|answer| answer.status == 200)
}

/// Waits until no flow is on its way.
pub(super) fn settled(daemon: &Daemon) -> Result<()> {
    let path = "/v1/adapters/soft-lab";
    let mut last = Value::Null;
    net::wait_for("all flows", LIMIT, || {
        last = daemon.get(path).ok()?["flows"].clone();
        (last["pending"] == 0).then_some(())
    })
    .map_err(|error| Error::Format { what: error.to_string(), text: last.to_string() })
}

/// A metric without labels, as `GET /metrics` answers it.
pub(super) fn metric(metrics: &str, name: &str) -> Result<f64> {
    let sample = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
    metrics
        .lines()
        .find_map(sample)
        .ok_or_else(|| Error::Format { what: format!("{name} in /metrics"), text: String::new() })
}

/// Changes of flows that the kernel has made for this daemon.
fn changes(daemon: &Daemon) -> Result<f64> {
    let metrics = daemon.request("GET", "/metrics", None)?.body;
    let lines = metrics.as_str().unwrap_or_default().lines();
    let ours =
        lines.filter(|line| line.starts_with("eswitchd_kernel_operations_total{operation=\"flow_"));
    Ok(ours.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

pub(super) fn process_file(daemon: &Daemon, file: &str) -> Result<String> {
    let pid = daemon.pid().unwrap_or_default();
    fs::read_to_string(format!("/proc/{pid}/{file}")).at("reading about the daemon's process")
}

/// Resident memory in bytes (`VmRSS`, proc_pid_status(5)).
fn memory(daemon: &Daemon) -> Result<f64> {
    let status = process_file(daemon, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    let kilobytes =
        kilobytes.ok_or_else(|| Error::Format { what: "VmRSS".into(), text: status.clone() })?;
    Ok(kilobytes * 1024.0)
}

/// Processor time that each thread used so far, in seconds, by its name and number.
fn processor_times(daemon: &Daemon) -> Result<BTreeMap<String, f64>> {
    let folder = format!("/proc/{}/task", daemon.pid().unwrap_or_default());
    let mut times = BTreeMap::new();
    for entry in fs::read_dir(&folder).at(&folder)?.flatten() {
        // A thread that has just ended is none.
        if let Ok(stat) = fs::read_to_string(entry.path().join("stat")) {
            let (name, seconds) = processor_time(&stat)?;
            times.insert(format!("{name} {}", entry.file_name().display()), seconds);
        }
    }
    Ok(times)
}

/// A thread's name and its processor time (fields 2, 14 and 15 of proc_pid_stat(5)).
fn processor_time(stat: &str) -> Result<(String, f64)> {
    let (before, after_name) = stat.rsplit_once(')').unwrap_or_default();
    let name = before.split_once('(').map_or("", |(_, name)| name);
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
        return Err(Error::Format { what: "/proc/PID/stat".into(), text: stat.to_owned() });
    };
    Ok((name.to_owned(), (user + system) / TICKS_A_SECOND))
}
