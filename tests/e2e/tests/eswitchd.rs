//! eswitchd with real guests: the demo's scenario, what a restart and a guest's end do, and a guest
//! that moves from one host to another.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use lab::{
    daemon::{self, Daemon, condition},
    demo::Demo,
    guest::{Backing, Builder, Guest, PF_ADDRESS},
    net::{self, Netns},
};
use nix::sys::signal::Signal;
use serde_json::json;

#[test]
fn guests_create_vfs_and_reach_each_other_through_flows_alone() {
    let _netns = Netns::enter().expect("a namespace");
    let folder = tempfile::tempdir().expect("a folder");
    let mut timeline = |line: &str| println!("{line}");
    let (report, _demo) = Demo::run(folder.path(), &mut timeline).expect("the demo");
    assert!(report.ok, "{:#?}", report.failures);
    assert!(!report.ping_before && report.ping_after && report.ping_after_mac_change);
    assert_eq!((report.spoofed_frames_delivered, report.flows_after_removal), (0, 0));
    assert!(report.spoofed_frames_sent > 0 && !report.event_to_flow_ms.is_empty(), "{report:#?}");
}

#[test]
fn a_restart_loses_no_ping_and_a_guest_that_ends_takes_its_flows_but_not_its_port() {
    let _netns = Netns::enter().expect("a namespace");
    let _far = Netns::named("far").expect("a namespace");
    net::ip("link add vm-b type veth peer name far0 netns far").expect("veth");
    net::ip("-n far link set far0 address 02:bb:00:00:00:01").expect("address");
    net::ip("-n far addr add 10.77.0.9/24 dev far0").expect("address");
    net::ip("-n far link set far0 up").expect("up");
    net::ip("tuntap add dev vm-a mode tap").expect("tap");
    let folder = tempfile::tempdir().expect("a folder");
    let configuration = "\n[[adapter]]\nsoftware = \"lab\"\nrepresentors = [\"vm-*\"]\n";
    let mut daemon = Daemon::start(folder.path(), configuration).expect("eswitchd");
    let guest = Guest::named("c")
        .vf(0, Backing::Tap("vm-a".into()))
        .qmp_socket(daemon.qmp_dir().join("c.sock"))
        .start()
        .expect("a guest");
    daemon.put_pair(json!("isolated"), "vm-b", ("c", "vf0")).expect("a network and ports");
    guest
        .run(&format!(
            "echo 1 > /sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs\n\
             ip link set eth1 address 02:aa:00:00:00:01; ip addr add 10.77.0.1/24 dev eth1\n\
             ip link set eth1 up"
        ))
        .expect("a VF");
    daemon.wait_for_condition("/v1/ports/a", "Programmed", "True").expect("programmed");
    net::wait_for("the guest to answer", daemon::PATIENCE, || {
        let once = ["netns", "exec", "far", "ping", "-c", "1", "-W", "2", "10.77.0.1"];
        net::command("ip", once).ok()
    })
    .expect("reached");

    let ping = Command::new("ip")
        .args(["netns", "exec", "far", "ping", "-i", "0.2", "-W", "20", "-c", "60", "10.77.0.1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ping");
    daemon.end(Signal::SIGKILL).expect("killed");
    daemon.restart().expect("started again");
    daemon.wait_for_condition("/v1/ports/a", "Programmed", "True").expect("programmed again");
    daemon.end(Signal::SIGTERM).expect("stopped");
    daemon.restart().expect("started again");
    daemon.wait_for_condition("/v1/ports/a", "Programmed", "True").expect("programmed again");
    let output = ping.wait_with_output().expect("ping ended");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(" 0% packet loss"), "{text}");

    guest.kill().expect("killed");
    daemon
        .wait_for("/v1/flows?port=a", |flows| flows["items"].as_array().is_some_and(Vec::is_empty))
        .expect("its flows go");
    let port = daemon.wait_for_condition("/v1/ports/a", "Bound", "False").expect("unbound");
    assert_eq!(port["spec"]["function"]["guest_vf"]["guest"], "c", "the port stays as intent");
    assert_eq!(condition(&port, "Bound")["reason"], "GuestNotSeen");
    let filters = net::command("tc", ["filter", "show", "dev", "vm-b", "ingress"]).expect("tc");
    assert!(!filters.contains("02:aa:00:00:00:01"), "{filters}");
}

/// For a guest to move, in an emulation inside another.
const JOURNEY: Duration = Duration::from_secs(240);

/// One of two hosts, whose taps and links to the outside are `vm-a` and `vm-b` with its number.
struct Host {
    netns: Netns,
    daemon: Daemon,
}

impl Host {
    /// A host with the network and the ports that the platform gives to both: `a` for the guest,
    /// `b` for who is outside. They are connected by the bridge `far` in the namespace `far`.
    fn new(number: usize, folder: &Path) -> Self {
        let netns = Netns::named(&format!("host{number}")).expect("a namespace");
        let ip = |command: String| net::ip(&command).expect("links");
        ip(format!(
            "-n far link add far{number} type veth peer name vm-b{number} netns host{number}"
        ));
        ip(format!("-n far link set far{number} master far up"));
        ip(format!("-n host{number} tuntap add dev vm-a{number} mode tap"));
        let configuration = "\n[[adapter]]\nsoftware = \"lab\"\nrepresentors = [\"vm-*\"]\n";
        let start = || Daemon::start(&folder.join(number.to_string()), configuration);
        let daemon = netns.run(start).expect("a thread").expect("eswitchd");
        daemon
            .put_pair(json!("isolated"), &format!("vm-b{number}"), ("c", "pf0"))
            .expect("a network and ports");
        Host { netns, daemon }
    }

    /// The guest's QEMU here; `how` says how it comes to run.
    fn guest(&self, tap: &str, how: impl FnOnce(Builder) -> Builder + Send) -> Guest {
        let guest = Guest::named("c")
            .pf(Backing::Tap(tap.into()))
            .qmp_socket(self.daemon.qmp_dir().join("c.sock"));
        self.netns.run(|| how(guest).start()).expect("a thread").expect("a guest")
    }

    /// How many flows the guest's port has.
    fn flows(&self) -> usize {
        let flows = self.daemon.get("/v1/flows?port=a").expect("flows");
        flows["items"].as_array().map_or(0, Vec::len)
    }

    /// Waits until the guest's port is not bound for this reason; then it has no flow.
    fn wait_until_unbound(&self, why: &str) {
        self.daemon
            .wait_for("/v1/ports/a", |port| {
                let bound = condition(port, "Bound");
                bound["status"] == "False" && bound["reason"] == why
            })
            .unwrap_or_else(|error| panic!("{error}\n{:#?}", self.daemon.get("/v1/guests/c")));
        self.daemon
            .wait_for("/v1/flows?port=a", |flows| {
                flows["items"].as_array().is_some_and(Vec::is_empty)
            })
            .expect("no flows");
    }
}

/// It moves with its emulated PF alone: QEMU (11.1) does not take VFs along that are enabled, so
/// that their BARs have no addresses where the guest arrives, and its driver finds no device there.
#[test]
fn a_guest_that_moves_has_its_flows_where_it_runs_until_it_stops_and_from_when_it_runs() {
    let _netns = Netns::enter().expect("a namespace");
    let _far = Netns::named("far").expect("a namespace");
    net::ip("-n far link add far address 02:bb:00:00:00:01 type bridge forward_delay 0")
        .expect("bridge");
    net::ip("-n far addr add 10.77.0.9/24 dev far").expect("address");
    net::ip("-n far link set far up").expect("up");
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (Host::new(1, folder.path()), Host::new(2, folder.path()));
    let leaving = from.guest("vm-a1", |guest| guest);
    let arriving = to.guest("vm-a2", Builder::arriving);
    let reached = || {
        net::wait_for("the guest to answer", daemon::PATIENCE, || {
            let once = ["netns", "exec", "far", "ping", "-c", "1", "-W", "2", "10.77.0.1"];
            net::command("ip", once).ok()
        })
        .expect("reached");
    };
    leaving
        .run(
            "ip link set eth0 address 02:aa:00:00:00:01; ip addr add 10.77.0.1/24 dev eth0\n\
             ip link set eth0 up",
        )
        .expect("a link");
    from.daemon.wait_for_condition("/v1/ports/a", "Programmed", "True").expect("programmed");
    to.wait_until_unbound("GuestArriving");
    reached();

    // So slow that it is under way until it may go on.
    let (mut source, mut target) = (leaving.qmp().expect("QMP"), arriving.qmp().expect("QMP"));
    let uri = format!("unix:{}", folder.path().join("journey").display());
    let live = json!({"capabilities": [{"capability": "mapped-ram", "state": false}]});
    for monitor in [&mut source, &mut target] {
        monitor.execute("migrate-set-capabilities", live.clone()).expect("a live migration");
    }
    let pace = |bytes: u64| json!({"max-bandwidth": bytes, "downtime-limit": 60_000});
    source.execute("migrate-set-parameters", pace(100_000)).expect("slowly");
    target.execute("migrate-incoming", json!({"uri": uri})).expect("a target");
    source.execute("migrate", json!({"uri": uri})).expect("on its way");
    net::wait_for("the journey to begin", JOURNEY, || {
        let state = source.execute("query-migrate", json!({})).ok()?;
        (state["status"] == "active").then_some(())
    })
    .expect("begun");
    reached();
    to.wait_until_unbound("GuestArriving");
    from.daemon.wait_for_condition("/v1/ports/a", "Bound", "True").expect("bound");
    assert!(from.flows() > 0);
    let state = source.execute("query-migrate", json!({})).expect("an answer");
    assert_eq!(state["status"], "active", "all that was during the journey: {state}");

    source.execute("migrate-set-parameters", pace(1 << 40)).expect("fast");
    net::wait_for("the guest to run there", JOURNEY, || {
        let status = target.execute("query-status", json!({})).ok()?;
        (status["status"] == "running").then_some(())
    })
    .expect("arrived");
    to.daemon.wait_for_condition("/v1/ports/a", "Programmed", "True").expect("programmed");
    assert!(to.flows() > 0);
    from.wait_until_unbound("GuestLeft");
    arriving.run("ping -c 1 -W 60 10.77.0.9").expect("the way out");
    reached();
    leaving.kill().expect("killed");
    from.wait_until_unbound("GuestNotSeen");
    to.daemon.wait_for_condition("/v1/ports/a", "Bound", "True").expect("bound still");
    assert!(to.flows() > 0);
}
