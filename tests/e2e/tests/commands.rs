//! Every command that the daemon can send leaves a real QEMU untouched, in every state.
//!
//! Starts from the daemon's own list of requests. Each is sent as it is, in the states that a guest
//! goes through; QEMU must answer it, live on, and be as it was: the same state, the same devices,
//! no event caused. Needs the lab's QEMU and guest images.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use controller::observe::guest::every_request;
use eswitchd_e2e_tests::{DEADLINE, create_vfs};
use lab::guest::{Guest, qmp::Qmp};
use lab::net;
use serde_json::{Value, json};

/// Devices of the guests here, one that there is not, and one that is no NIC.
const DEVICES: [&str; 5] = ["pf0", "vf0", "vf1", "absent", "b"];

/// Between two rounds of questions while a guest works: QEMU answers in the time of its guest.
const BREATH: Duration = Duration::from_millis(250);

/// Rounds that a running guest may spoil, one after the other.
const ROUNDS: usize = 20;

/// A connection on which every request is sent as the daemon writes it.
struct Daemon {
    stream: BufReader<UnixStream>,
    negotiated: bool,
}

impl Daemon {
    fn connect(path: &Path) -> Self {
        let stream =
            net::wait_for("the QMP socket", DEADLINE, || UnixStream::connect(path).ok()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut daemon = Daemon { stream: BufReader::new(stream), negotiated: false };
        assert!(daemon.message().get("QMP").is_some(), "a greeting");
        daemon
    }

    fn message(&mut self) -> Value {
        let mut line = String::new();
        assert_ne!(self.stream.read_line(&mut line).unwrap(), 0, "QEMU has hung up");
        serde_json::from_str(&line).unwrap()
    }

    /// Sends every request, and gives the answer to each.
    fn ask_everything(&mut self) -> BTreeMap<String, Value> {
        let mut answers = BTreeMap::new();
        for request in every_request(&DEVICES) {
            let parsed: Value = serde_json::from_str(&request).unwrap();
            if parsed["execute"] == "qmp_capabilities"
                && std::mem::replace(&mut self.negotiated, true)
            {
                continue;
            }
            self.stream.get_mut().write_all(request.as_bytes()).unwrap();
            let answer = loop {
                let message = self.message();
                if message["id"] == parsed["id"] {
                    break message;
                }
                assert!(message.get("event").is_some(), "{message}");
            };
            let refused = answer.get("error").is_some();
            assert!(refused || answer.get("return").is_some(), "{request}: {answer}");
            let about_absent = request.contains("absent");
            assert!(refused || !about_absent, "{request}: {answer}");
            answers.insert(request, answer);
        }
        answers
    }
}

/// Everything is asked twice in one state: QEMU answers the same both times, stays in the state and
/// tells of no event. A guest that runs changes things by itself, which may fall into a round;
/// a request that changed something would spoil every round.
fn untouched(daemon: &mut Daemon, monitor: &mut Qmp, state: &str) {
    let mut spoilt = Vec::new();
    while let Err(why) = round(daemon, monitor, state) {
        spoilt.push(why);
        assert!(spoilt.len() < ROUNDS, "{ROUNDS} times in {state}: {}", spoilt.join("\n"));
        std::thread::sleep(BREATH);
    }
}

/// One round; an error says what was not as it had been.
fn round(daemon: &mut Daemon, monitor: &mut Qmp, state: &str) -> Result<(), String> {
    let status = |monitor: &mut Qmp| monitor.execute("query-status", json!({})).unwrap();
    // Also arms the event of each receive filter.
    daemon.ask_everything();
    let before = status(monitor);
    assert_eq!(before["status"], state);
    monitor.events();
    let first = daemon.ask_everything();
    let second = daemon.ask_everything();
    assert_eq!(status(monitor), before);
    let events = monitor.events();
    if !events.is_empty() {
        return Err(format!("events: {events:?}"));
    }
    match first.iter().find(|(request, answer)| second[*request] != **answer) {
        None => Ok(()),
        Some((request, answer)) => {
            Err(format!("{request}: first {answer}, then {}", second[request]))
        }
    }
}

/// A QEMU with an emulated PF and no guest in it. Killed when dropped.
struct Empty {
    process: Child,
    folder: tempfile::TempDir,
}

impl Drop for Empty {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Empty {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket =
            |name: &str| format!("unix:{},server=on,wait=off", folder.path().join(name).display());
        let process = Command::new(std::env::var_os("LAB_QEMU").unwrap())
            .args(["-nodefaults", "-machine", "q35", "-accel", "tcg", "-m", "64"])
            .args(["-display", "none", "-device", "pcie-root-port,id=b"])
            .args(["-netdev", "hubport,id=n1,hubid=1", "-netdev", "hubport,id=n0,hubid=0"])
            .args([
                "-device",
                "virtio-net-pci,id=vf0,bus=b,addr=0x0.0x1,netdev=n1,sriov-pf=pf0,romfile=",
            ])
            .args(["-device", "virtio-net-pci,id=pf0,bus=b,addr=0x0.0x0,netdev=n0,romfile="])
            .args(["-qmp", &socket("daemon"), "-qmp", &socket("monitor")])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Empty { process: process.unwrap(), folder }
    }

    fn daemon(&self) -> Daemon {
        Daemon::connect(&self.folder.path().join("daemon"))
    }

    fn monitor(&self) -> Qmp {
        Qmp::connect(&self.folder.path().join("monitor"), DEADLINE).unwrap()
    }
}

#[test]
fn in_the_states_of_a_guests_life() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daemon");
    let guest = Guest::named("a").qmp_socket(&path).arguments(["-no-shutdown"]).start().unwrap();
    let mut daemon = Daemon::connect(&path);
    let mut monitor = guest.qmp().unwrap();
    let settle = || std::thread::sleep(Duration::from_millis(500));

    settle();
    untouched(&mut daemon, &mut monitor, "running");
    create_vfs(&guest, 2);
    settle();
    untouched(&mut daemon, &mut monitor, "running");
    guest.run("ip link set eth1 up").unwrap();
    settle();
    untouched(&mut daemon, &mut monitor, "running");
    monitor.execute("stop", json!({})).unwrap();
    untouched(&mut daemon, &mut monitor, "paused");
    monitor.execute("cont", json!({})).unwrap();
    guest.run("test -d /sys/class/net/eth2").unwrap();
    create_vfs(&guest, 0);
    settle();
    untouched(&mut daemon, &mut monitor, "running");
    guest.run("echo the guest goes on").unwrap();

    let state = folder.path().join("state");
    monitor.execute("migrate", json!({"uri": format!("file:{}", state.display())})).unwrap();
    net::wait_for("the state to be saved", DEADLINE, || {
        let status = monitor.execute("query-status", json!({})).unwrap();
        (status["status"] == "postmigrate").then_some(())
    })
    .unwrap();
    untouched(&mut daemon, &mut monitor, "postmigrate");
    monitor.execute("cont", json!({})).unwrap();

    // `-no-shutdown` keeps QEMU where a guest that has shut down leaves it.
    let _ = guest.exec_within("poweroff -f", Duration::from_secs(5));
    net::wait_for("the guest to shut down", DEADLINE, || {
        let status = monitor.execute("query-status", json!({})).unwrap();
        (status["status"] == "shutdown").then_some(())
    })
    .unwrap();
    untouched(&mut daemon, &mut monitor, "shutdown");
}

#[test]
fn while_a_guest_boots() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("daemon");
    let socket = path.clone();
    let booting = std::thread::spawn(move || Guest::named("b").qmp_socket(socket).cold().start());
    let mut daemon = Daemon::connect(&path);
    let mut rounds = 0;
    while !booting.is_finished() {
        daemon.ask_everything();
        rounds += 1;
        std::thread::sleep(BREATH);
    }
    let guest = booting.join().unwrap().unwrap();
    assert!(rounds > 3, "everything was asked {rounds} times during the boot");
    create_vfs(&guest, 2);
    daemon.ask_everything();
    guest.run("test -d /sys/class/net/eth2").unwrap();
}

#[test]
fn before_a_guest_runs_and_while_one_arrives() {
    for (argument, state) in [(&["-S"][..], "prelaunch"), (&["-incoming", "defer"], "inmigrate")] {
        let empty = Empty::start(argument);
        let (mut daemon, mut monitor) = (empty.daemon(), empty.monitor());
        untouched(&mut daemon, &mut monitor, state);
    }
}

#[test]
fn while_the_firmware_runs() {
    let empty = Empty::start(&[]);
    let (mut daemon, mut monitor) = (empty.daemon(), empty.monitor());
    for _ in 0..20 {
        daemon.ask_everything();
        std::thread::sleep(BREATH);
    }
    let status = monitor.execute("query-status", json!({})).unwrap();
    assert_eq!(status["status"], "running");
}
