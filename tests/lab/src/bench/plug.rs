//! From the PUT of a port to the answer that it is programmed, against what that takes at least: to
//! write as many bytes durably, to plan, and to change the same flows.
//!
//! In: eswitchd's binary, the VM's scratch disk. Out: a [`Line`]. The daemon's store is on that
//! disk, with ext4; everything else that it writes is in memory.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount, umount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tc_flows::{Hook, Kernel, Mode, diff};

use super::{
    Line, Run,
    api::Connection,
    daemon::{Host, metric, process_file, settled},
    flows::{FLOOR, Floor, batches},
    guest::{ESWITCHD, copied, install},
    ifindex, kernel, median, refused,
};
use crate::{At, Error, Result, daemon::Daemon, net, vm};

/// The name of the benchmark.
pub const PLUG_WAIT: &str = "api/plug_wait";

/// Ports of the network, the one that is plugged among them.
const PORTS: usize = 10;

/// How long everything is left alone before a figure is taken: the daemon writes down what a restart
/// should know within half a second.
const QUIET: Duration = Duration::from_millis(1200);

/// Room for what the floor writes.
const FILE: usize = 4 << 20;

/// What one plug took, in milliseconds.
struct Parts {
    ours: f64,
    /// What the daemon says of its transaction.
    commit: f64,
    fsync: f64,
    plan: f64,
    netlink: f64,
    /// What a GET of the same port takes, for comparison.
    get: f64,
    /// Bytes that it wrote to the disk.
    bytes: usize,
    /// Changes of flows.
    flows: usize,
}

/// `api/plug_wait`: PUT of a port with `wait=programmed` over the Unix socket, from the request to
/// its answer. The floor is the sum of an fsync of as many bytes on the same file system, the
/// daemon's own time of planning, and the same changes of flows on netdevs of its own, encoded
/// beforehand.
///
/// # Errors
/// The daemon, the disk or the kernel does not do its part.
pub fn plug_wait(runs: usize, say: &mut dyn FnMut(&str)) -> Result<Line> {
    let host = Host::new(PORTS)?;
    let state = host.folder().join("eswitchd/state");
    let _disk = Disk::mounted(&state)?;
    let daemon = host.daemon()?;
    let mut moved = BTreeMap::new();
    for link in host.links() {
        let floor = format!("f-{link}");
        net::ip(&format!("link add {floor} up type dummy"))?;
        moved.insert(ifindex(link)?, ifindex(&floor)?);
    }
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}}))?;
    let others: Vec<Value> =
        (1..PORTS).map(|n| json!({"id": format!("p{n}"), "spec": spec(n)})).collect();
    daemon.apply(&json!({ "ports": others }))?;
    settled(&daemon)?;

    let file = File::create(state.join("floor")).at("creating the floor's file")?;
    file.write_all_at(&vec![1; FILE], 0).at("writing the floor's file")?;
    file.sync_all().at("writing the floor's file")?;
    let mut eswitchd = kernel(ESWITCHD)?;
    let mut rules = kernel(FLOOR)?;
    let mut floor = Floor::open()?;
    for hook in moved.values().map(|ifindex| Hook::ingress(*ifindex)) {
        rules.ensure_hook(hook).map_err(refused)?;
    }
    let hooks: Vec<Hook> = moved.keys().map(|ifindex| Hook::ingress(*ifindex)).collect();
    let mut client = Connection::to(&daemon)?;
    let body = json!({ "spec": spec(0) }).to_string();
    let mut found: Vec<Parts> = Vec::new();
    for run in 0..=runs {
        let before = copied(&mut eswitchd, &hooks, &moved)?;
        let installed = install(&mut rules, &before)?;
        thread::sleep(QUIET);
        let noted = Noted::of(&daemon)?;
        let began = Instant::now();
        client.ask("PUT", "/v1/ports/p0?wait=programmed", &body)?;
        let ours = began.elapsed();
        let bytes = written(&daemon)? - noted.written;
        let after = Noted::of(&daemon)?;
        thread::sleep(QUIET);
        let began = Instant::now();
        client.ask("GET", "/v1/ports/p0", "")?;
        let get = began.elapsed();

        let ops = diff(&installed, &copied(&mut eswitchd, &hooks, &moved)?).ops;
        let messages = batches(&ops, Mode::Told, ops.len().max(1));
        let content = vec![2; bytes.min(FILE)];
        // What the floor changes is news to the daemon, which would look at it meanwhile.
        let pid = Pid::from_raw(daemon.pid().unwrap_or_default() as i32);
        kill(pid, Signal::SIGSTOP).at("stopping the daemon")?;
        let began = Instant::now();
        let durable = file.write_all_at(&content, 0).and_then(|()| file.sync_data());
        let fsync = began.elapsed();
        let began = Instant::now();
        let sent = floor.send(&messages);
        let netlink = began.elapsed();
        kill(pid, Signal::SIGCONT).at("continuing the daemon")?;
        durable.at("writing the floor's file")?;
        let errors = sent?;
        if errors > 0 {
            return Err(refused(format!("{errors} errors at the floor")));
        }
        daemon.delete("/v1/ports/p0")?;
        settled(&daemon)?;
        // The first warms caches up.
        if run == 0 {
            continue;
        }
        let parts = Parts {
            ours: 1e3 * ours.as_secs_f64(),
            commit: 1e3 * (after.committing - noted.committing),
            fsync: 1e3 * fsync.as_secs_f64(),
            plan: 1e3 * (after.planning - noted.planning),
            netlink: 1e3 * netlink.as_secs_f64(),
            get: 1e3 * get.as_secs_f64(),
            bytes,
            flows: ops.len(),
        };
        let Parts { ours, commit, fsync, plan, netlink, get, bytes, flows } = &parts;
        say(&format!(
            "plug {run}: {ours:.2} ms, of which the store's transaction {commit:.2} ms; fsync of \
             {bytes} bytes {fsync:.2} ms, planning {plan:.2} ms, {flows} flow changes {netlink:.2} \
             ms; a GET {get:.2} ms"
        ));
        found.push(parts);
    }
    Ok(line(&found))
}

fn line(found: &[Parts]) -> Line {
    let run = |parts: &Parts| Run {
        ours: parts.ours,
        theirs: vec![("floor", parts.fsync + parts.plan + parts.netlink)],
    };
    let runs: Vec<Run> = found.iter().map(run).collect();
    let middle = |part: fn(&Parts) -> f64| median(found.iter().map(part).collect());
    let (bytes, flows) = found.last().map_or((0, 0), |last| (last.bytes, last.flows));
    let note = format!(
        "lab VM (software emulation), store on a virtio-blk disk with ext4; from the request to its \
         answer, one connection over the Unix socket; floor: fsync of {bytes} bytes {:.2} ms, \
         planning {:.2} ms, {flows} flow changes {:.2} ms",
        middle(|parts| parts.fsync),
        middle(|parts| parts.plan),
        middle(|parts| parts.netlink),
    );
    Line::of(PLUG_WAIT, "ms", &runs, note)
}

fn spec(number: usize) -> Value {
    json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": format!("rep{number}")}},
        "attachments": [{"network": "blue"}],
        "macs": [format!("02:00:00:00:00:{number:02x}")],
    })
}

/// What the daemon has done so far.
struct Noted {
    /// Bytes written to disks.
    written: usize,
    /// Seconds of planning.
    planning: f64,
    /// Seconds of the store's transactions.
    committing: f64,
}

impl Noted {
    fn of(daemon: &Daemon) -> Result<Noted> {
        let metrics = daemon.request("GET", "/metrics", None)?.body;
        let metrics = metrics.as_str().unwrap_or_default();
        Ok(Noted {
            written: written(daemon)?,
            planning: metric(metrics, "eswitchd_reconcile_seconds_sum")?,
            committing: metric(metrics, "eswitchd_store_commit_seconds_sum")?,
        })
    }
}

/// Bytes that the daemon has written to disks (`write_bytes`, proc_pid_io(5)).
fn written(daemon: &Daemon) -> Result<usize> {
    let io = process_file(daemon, "io")?;
    let bytes = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
    bytes.ok_or(Error::Format { what: "/proc/PID/io".into(), text: io })
}

/// The VM's scratch disk, mounted while this lives.
struct Disk<'p>(&'p Path);

impl Disk<'_> {
    fn mounted(place: &Path) -> Result<Disk<'_>> {
        let device = scratch_disk()?;
        fs::create_dir_all(place).at("creating the mount point")?;
        mount(Some(&device), place, Some("ext4"), MsFlags::empty(), None::<&str>)
            .at(format!("mounting {}", device.display()))?;
        Ok(Disk(place))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // The VM ends soon, and the disk with it.
        let _ = umount(self.0);
    }
}

fn scratch_disk() -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/block").at("reading /sys/block")?.flatten() {
        let serial = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if serial.trim() == vm::SCRATCH {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(Error::Missing {
        what: "the VM has no scratch disk".into(),
        remedy: "run this with `cargo lab bench`".into(),
    })
}
