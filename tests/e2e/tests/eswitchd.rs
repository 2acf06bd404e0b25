//! eswitchd with real guests: the demo's scenario, and what a restart and a guest's end do.

use std::process::{Command, Stdio};

use lab::{
    daemon::{self, Daemon, condition},
    demo::Demo,
    guest::{Backing, Guest, PF_ADDRESS},
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
    assert!(report.spoofed_frames_sent > 0 && report.event_to_flow_ms.len() >= 2, "{report:#?}");
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
    daemon.put("/v1/networks/blue", json!({"kind": "isolated"})).expect("a network");
    let ports = [
        (
            "b",
            json!({"netdev": {"adapter": "soft-lab", "name": "vm-b"}}),
            json!(["02:bb:00:00:00:01"]),
        ),
        ("a", json!({"guest_vf": {"guest": "c", "device": "vf0"}}), json!([])),
    ];
    for (name, function, macs) in ports {
        let spec = json!({
            "function": function,
            "attachments": [{"network": "blue"}],
            "macs": macs,
            "guest_macs": {"max": 1, "allow": ["02:aa"]},
        });
        daemon.put(&format!("/v1/ports/{name}"), spec).expect("a port");
    }
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
