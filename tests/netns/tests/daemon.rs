//! eswitchd as a whole on a real kernel: REST in, flows and VF settings out, packets through.
//!
//! Each test has a network namespace of its own. What the kernel holds is read with iproute2's
//! tools, never from the daemon. A test that lacks what it needs fails.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use lab::{
    daemon::{self, Daemon, condition},
    net::{self, Capture, Netdevsim, Netns, frame, send_frame},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const MAC_1: &str = "02:00:00:00:00:01";
const MAC_2: &str = "02:00:00:00:00:02";
const MAC_3: &str = "02:00:00:00:00:03";
const MAC_4: &str = "02:00:00:00:00:04";
const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";

/// How long to wait for a frame that must not come, after one that was sent later has come.
const SETTLE: Duration = Duration::from_millis(300);

/// How long a frame that must come may take.
const ARRIVAL: Duration = Duration::from_secs(10);

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// eswitchd on a netdevsim device.
fn on_netdevsim(device: &Netdevsim, folder: &TempDir) -> Daemon {
    let configuration = format!("\n[[adapter]]\nhandle = \"{}\"\n", device.handle());
    Daemon::start(folder.path(), &configuration).expect("eswitchd")
}

fn netdevsim(vfs: u32) -> Netdevsim {
    net::modprobe("netdevsim").expect("netdevsim");
    let device = Netdevsim::create(1).expect("a device");
    device.set_vfs(vfs).expect("VFs");
    device
}

/// The adapter's id in URLs.
fn adapter_id(device: &Netdevsim) -> String {
    device.handle().replacen('/', "-", 1)
}

fn vf_port(device: &Netdevsim, index: u32, mac: &str, attachments: Value) -> Value {
    json!({
        "function": {"vf": {"adapter": adapter_id(device), "index": index}},
        "attachments": attachments,
        "macs": [mac],
    })
}

/// Ports `p0`, `p1`, … with these addresses on the VFs of these numbers, in the network `blue`;
/// programmed.
fn blue_ports(daemon: &Daemon, device: &Netdevsim, macs: &[&str]) {
    for (index, mac) in (0..).zip(macs) {
        let port = vf_port(device, index, mac, json!([{"network": "blue"}]));
        daemon.put(&format!("/v1/ports/p{index}"), port).expect("a port");
    }
    for index in 0..macs.len() {
        let port = format!("/v1/ports/p{index}");
        daemon.wait_for_condition(&port, "Programmed", "True").expect("programmed");
    }
}

/// A netdev's ingress filters as `tc -j` shows them, without counters and ages.
fn filters(netdev: &str) -> Vec<Value> {
    let text = net::command("tc", ["-j", "filter", "show", "dev", netdev, "ingress"]).expect("tc");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    all.as_array().expect("a list").iter().filter(|f| f["options"].is_object()).cloned().collect()
}

/// The one filter of `netdev` in this chain with these keys.
fn filter(netdev: &str, chain: u64, keys: &Value) -> Value {
    let all = filters(netdev);
    let mut found =
        all.iter().filter(|filter| filter["chain"] == chain && filter["options"]["keys"] == *keys);
    let first = found.next().unwrap_or_else(|| panic!("{netdev} chain {chain} {keys}: {all:#?}"));
    assert!(found.next().is_none(), "{netdev}: two filters with {keys} in chain {chain}");
    first.clone()
}

/// The actions of a filter in a few words: `goto 64`, `redirect tap1`.
fn actions(filter: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    filter["options"]["actions"]
        .as_array()
        .expect("actions")
        .iter()
        .map(|action| match text(&action["kind"]).as_str() {
            "gact" if action["control_action"]["type"] == "goto" => {
                format!("goto {}", action["control_action"]["chain"])
            }
            "gact" => text(&action["control_action"]["type"]),
            "mirred" => {
                format!("{} {}", text(&action["mirred_action"]), text(&action["to_dev"]))
            }
            "vlan" => format!("vlan {} {}", text(&action["vlan_action"]), action["id"]),
            other => other.to_owned(),
        })
        .collect()
}

// ---------------------------------------------------------------- netdevsim

#[test]
fn switchdev_flows_of_two_ports_are_in_hardware_with_their_chains_keys_and_actions() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(2);
    device.switchdev().expect("switchdev");
    let folder = folder();
    let daemon = on_netdevsim(&device, &folder);
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}})).expect("a network");
    blue_ports(&daemon, &device, &[MAC_1, MAC_2]);
    for port in ["/v1/ports/p0", "/v1/ports/p1"] {
        daemon.wait_for_condition(port, "Offloaded", "True").expect("offloaded");
    }

    let (one, two) = (device.representor(0).expect("r0"), device.representor(1).expect("r1"));
    let uplink = device.uplink().expect("uplink");
    let admission = filter(&one, 0, &json!({"src_mac": MAC_1}));
    assert_eq!(actions(&admission), ["goto 64"]);
    assert_eq!(admission["options"]["in_hw"], true);
    let unicast = filter(&one, 64, &json!({"dst_mac": MAC_2}));
    assert_eq!(actions(&unicast), [format!("redirect {two}")]);
    let from_uplink = filter(&uplink, 64, &json!({"dst_mac": MAC_1}));
    assert_eq!(actions(&from_uplink), ["vlan pop null".to_owned(), format!("redirect {one}")]);
    let unknown = filter(&one, 64, &json!({}));
    assert_eq!(actions(&unknown), ["vlan push 100".to_owned(), format!("redirect {uplink}")]);
    let default: Vec<Vec<String>> = filters(&one)
        .iter()
        .filter(|f| f["chain"] == 0 && f["options"]["keys"] == json!({}) && f["protocol"] == "all")
        .map(actions)
        .collect();
    assert_eq!(default, [["drop"]]);
    for netdev in [&one, &two, &uplink] {
        for filter in filters(netdev) {
            assert_eq!(filter["options"]["in_hw"], true, "{netdev}: {filter:#}");
        }
    }

    // What the daemon says is what the kernel holds.
    let installed: usize = [&one, &two, &uplink].iter().map(|netdev| filters(netdev).len()).sum();
    let flows = daemon.get("/v1/flows").expect("flows");
    assert_eq!(flows["items"].as_array().expect("items").len(), installed);

    daemon.delete("/v1/ports/p1").expect("deleted");
    net::wait_for("the port's flows to go", daemon::PATIENCE, || {
        filters(&one)
            .iter()
            .all(|f| f["options"]["keys"] != json!({"dst_mac": MAC_2}))
            .then_some(())
    })
    .expect("gone");
}

#[test]
fn flows_follow_vfs_that_are_removed_and_made_anew() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(2);
    device.switchdev().expect("switchdev");
    let folder = folder();
    let daemon = on_netdevsim(&device, &folder);
    daemon.put("/v1/networks/blue", json!({"kind": "isolated"})).expect("a network");
    let port = vf_port(&device, 0, MAC_1, json!([{"network": "blue"}]));
    daemon.put("/v1/ports/p0", port).expect("a port");
    let before = daemon.wait_for_condition("/v1/ports/p0", "Programmed", "True").expect("before");

    device.set_vfs(0).expect("no VFs");
    let gone = daemon.wait_for_condition("/v1/ports/p0", "Bound", "False").expect("unbound");
    assert_eq!(condition(&gone, "Bound")["reason"], "VfMissing");
    net::ip("link add taken type veth peer name taken1").expect("takes an interface index");
    device.set_vfs(2).expect("VFs");
    // Without VFs netdevsim falls back to legacy mode.
    device.switchdev().expect("switchdev");
    let after = daemon.wait_for_condition("/v1/ports/p0", "Programmed", "True").expect("after");

    let ifindex = |port: &Value| port["status"]["representor"]["ifindex"].clone();
    assert_ne!(ifindex(&before), ifindex(&after));
    let name = device.representor(0).expect("a representor");
    assert_eq!(actions(&filter(&name, 0, &json!({"src_mac": MAC_1}))), ["goto 64"]);
}

#[test]
fn legacy_mode_sets_mac_vlan_spoof_check_and_link_state_and_resets_them_on_release() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(2);
    let folder = folder();
    let daemon = on_netdevsim(&device, &folder);
    daemon
        .put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100, "proto": "802.1ad"}}}))
        .expect("a network");
    let port = vf_port(&device, 0, MAC_1, json!([{"network": "blue"}]));
    daemon.put("/v1/ports/p0", port).expect("a port");
    let port = daemon.wait_for_condition("/v1/ports/p0", "Programmed", "True").expect("set");
    assert_eq!(condition(&port, "Offloaded")["reason"], "LegacyMode");

    let pf = device.uplink().expect("the PF's netdev");
    let vf = |index: usize| {
        net::ip_json(&format!("link show {pf}")).expect("ip")[0]["vfinfo_list"][index].clone()
    };
    net::wait_for("the settings", daemon::PATIENCE, || {
        let vf = vf(0);
        (vf["address"] == MAC_1
            && vf["vlan_list"][0]["vlan"] == 100
            && vf["vlan_list"][0]["protocol"] == "802.1ad"
            && vf["spoofchk"] == true
            && vf["link_state"] == "auto")
            .then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", vf(0)));
    assert_eq!(vf(1)["link_state"], "disable", "a VF without a port");

    daemon.delete("/v1/ports/p0").expect("deleted");
    net::wait_for("the reset", daemon::PATIENCE, || {
        let vf = vf(0);
        let vlan = vf["vlan_list"][0]["vlan"].as_u64().unwrap_or(0);
        (vf["address"] == "00:00:00:00:00:00" && vlan == 0 && vf["link_state"] == "disable")
            .then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:#}", vf(0)));
}

#[test]
fn what_legacy_mode_cannot_do_is_refused_by_condition() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(1);
    let folder = folder();
    let daemon = on_netdevsim(&device, &folder);
    daemon.put("/v1/networks/island", json!({"kind": "isolated"})).expect("a network");
    let port = vf_port(&device, 0, MAC_1, json!([{"network": "island"}]));
    daemon.put("/v1/ports/p0", port).expect("a port");
    let port = daemon.wait_for_condition("/v1/ports/p0", "Programmed", "Partial").expect("partly");
    assert_eq!(condition(&port, "Programmed")["reason"], "IsolationUnsupported");
    let pf = device.uplink().expect("the PF's netdev");
    net::wait_for("the link to be disabled", daemon::PATIENCE, || {
        let links = net::ip_json(&format!("link show {pf}")).ok()?;
        (links[0]["vfinfo_list"][0]["link_state"] == "disable").then_some(())
    })
    .expect("disabled");
}

#[test]
fn a_real_legacy_nic_gets_what_it_can_and_says_what_it_cannot() {
    // The lab's igb is one real device of the whole machine: it lives in the first namespace.
    let pf = "0000:01:00.0";
    let sysfs = format!("/sys/bus/pci/devices/{pf}");
    if !std::path::Path::new(&sysfs).exists() || std::env::var_os("ESWITCHD_LAB").is_none() {
        panic!("this test needs the lab's igb at {pf}: run it with `cargo lab test --vm`");
    }
    net::modprobe("igb").expect("igb");
    std::fs::write(format!("{sysfs}/sriov_numvfs"), "0").expect("no VFs");
    std::fs::write(format!("{sysfs}/sriov_numvfs"), "2").expect("VFs");
    let folder = folder();
    let configuration = format!("\n[[adapter]]\nhandle = \"pci/{pf}\"\n");
    let daemon = Daemon::start(folder.path(), &configuration).expect("eswitchd");
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 7}}})).expect("a network");
    let port = json!({
        "function": {"vf": {"adapter": format!("pci-{pf}"), "index": 1}},
        "attachments": [{"network": "blue"}],
        "macs": [MAC_1],
    });
    daemon.put("/v1/ports/p1", port).expect("a port");
    let adapter = format!("/v1/adapters/pci-{pf}");
    let seen = daemon
        .wait_for(&adapter, |adapter| adapter["vfs"][1]["settings"]["mac"] == MAC_1)
        .expect("the address is set");
    assert_eq!((&seen["mode"], &seen["driver"]), (&json!("legacy"), &json!("igb")));
    let seen = daemon
        .wait_for(&adapter, |adapter| adapter["vfs"][1]["settings"]["vlan"] == 7)
        .expect("the VLAN is set");
    assert_eq!(seen["vfs"][1]["settings"]["spoof_check"], true);
    daemon.wait_for_condition("/v1/ports/p1", "Programmed", "True").expect("programmed");
    // igb cannot disable the link of the VF that is nobody's: the operator is told so.
    let seen = daemon.wait_for_condition(&adapter, "Healthy", "False").expect("told");
    let message = condition(&seen, "Healthy")["message"].as_str().expect("a message").to_owned();
    assert!(message.contains("VF 0") && message.contains("link state"), "{message}");
    drop(daemon);
    std::fs::write(format!("{sysfs}/sriov_numvfs"), "0").expect("no VFs");
}

#[test]
fn a_daemon_that_is_killed_and_started_again_touches_nothing() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(2);
    device.switchdev().expect("switchdev");
    let folder = folder();
    let mut daemon = on_netdevsim(&device, &folder);
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}})).expect("a network");
    let one = device.representor(0).expect("a representor");
    net::tc(&format!("qdisc add dev {one} clsact")).ok();
    net::tc(&format!(
        "filter add dev {one} ingress prio 50000 protocol ip flower dst_ip 192.0.2.1 action drop"
    ))
    .expect("a foreign filter");
    blue_ports(&daemon, &device, &[MAC_1, MAC_2]);
    let netdevs = [one.clone(), device.representor(1).expect("r1"), device.uplink().expect("up")];
    let state = || -> Vec<Vec<Value>> { netdevs.iter().map(|netdev| filters(netdev)).collect() };
    let before = state();

    let mut monitor = Command::new("tc")
        .args(["monitor"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tc monitor");
    std::thread::sleep(SETTLE);
    daemon.end(Signal::SIGKILL).expect("killed");
    daemon.restart().expect("started again");
    for port in ["/v1/ports/p0", "/v1/ports/p1"] {
        daemon.wait_for_condition(port, "Programmed", "True").expect("programmed again");
    }
    assert_eq!(state(), before);

    // The monitor works: a change of ours is the first that it tells of.
    net::tc(&format!("filter del dev {one} ingress prio 50000")).expect("ours to delete");
    std::thread::sleep(SETTLE);
    monitor.kill().expect("ours");
    let mut told = String::new();
    monitor.stdout.take().expect("piped").read_to_string(&mut told).expect("text");
    monitor.wait().expect("ended");
    // Each start probes the driver, in a chain to which nothing leads.
    let probed = |line: &&str| line.contains(" chain 2 ");
    let lines: Vec<&str> =
        told.lines().filter(|line| line.contains("filter") && !probed(line)).collect();
    assert!(!lines.is_empty(), "tc monitor told nothing");
    assert!(
        lines.iter().all(|line| line.contains("deleted") && line.contains("pref 50000")),
        "something else changed:\n{told}"
    );
}

#[test]
fn a_foreign_filter_is_reported_and_still_there_at_the_end() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(1);
    device.switchdev().expect("switchdev");
    let one = device.representor(0).expect("a representor");
    net::tc(&format!("qdisc add dev {one} clsact")).expect("a qdisc");
    net::tc(&format!(
        "filter add dev {one} ingress prio 50000 protocol ip flower dst_ip 192.0.2.1 action drop"
    ))
    .expect("a foreign filter");
    let keys = json!({"dst_ip": "192.0.2.1"});
    let foreign =
        || filters(&one).into_iter().find(|f| f["options"]["keys"]["dst_ip"] == keys["dst_ip"]);
    let before = foreign().expect("there");
    let folder = folder();
    let mut daemon = on_netdevsim(&device, &folder);
    daemon.put("/v1/networks/blue", json!({"kind": "isolated"})).expect("a network");
    blue_ports(&daemon, &device, &[MAC_1]);
    let adapter = format!("/v1/adapters/{}", adapter_id(&device));
    let seen = daemon.get(&adapter).expect("the adapter");
    assert_eq!(seen["foreign_filters"], 1);
    daemon.delete("/v1/ports/p0").expect("deleted");
    daemon.end(Signal::SIGTERM).expect("stopped");
    assert_eq!(foreign(), Some(before));
}

// ---------------------------------------------------------------- teardown and configuration

/// Whether a netdev offloads TC, as `ethtool` says.
fn offloads(netdev: &str) -> bool {
    let features = net::command("ethtool", ["-k", netdev]).expect("ethtool");
    features.lines().any(|line| line.trim().starts_with("hw-tc-offload: on"))
}

/// Runs eswitchd itself with one more argument: whether it succeeded, and what it said.
fn eswitchd(daemon: &Daemon, argument: &str) -> (bool, String) {
    let output = Command::new(daemon::program().expect("eswitchd"))
        .arg("--config")
        .arg(daemon.configuration())
        .arg(argument)
        .env("NO_COLOR", "1")
        .output()
        .expect("run");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_teardown_takes_our_flows_and_nothing_else_and_a_start_brings_them_back() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(1);
    device.switchdev().expect("switchdev");
    let folder = folder();
    let (one, uplink) = (device.representor(0).expect("r0"), device.uplink().expect("uplink"));
    net::command("ethtool", ["-K", &uplink, "hw-tc-offload", "on"]).expect("on before");
    let mut daemon = on_netdevsim(&device, &folder);
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}})).expect("a network");
    blue_ports(&daemon, &device, &[MAC_1]);
    assert!(offloads(&one) && offloads(&uplink));
    let ours = (outline(&one), outline(&uplink));
    net::tc(&format!(
        "filter add dev {one} ingress prio 50000 protocol ip flower dst_ip 192.0.2.1 action drop"
    ))
    .expect("a foreign filter");

    let (done, said) = eswitchd(&daemon, "--teardown");
    assert!(!done && said.contains("state.redb"), "while a daemon runs: {said}");
    assert_eq!(outline(&uplink), ours.1);

    daemon.end(Signal::SIGTERM).expect("stopped");
    let (done, said) = eswitchd(&daemon, "--teardown");
    assert!(done, "{said}");
    assert_eq!(outline(&uplink), [""; 0]);
    for (netdev, expected) in [(&one, false), (&uplink, true)] {
        assert_eq!(offloads(netdev), expected, "{netdev}: as it was before the daemon");
    }
    let left = filters(&one);
    assert_eq!(left.len(), 1, "{left:#?}");
    assert_eq!(left[0]["options"]["keys"]["dst_ip"], "192.0.2.1");

    daemon.restart().expect("started again");
    daemon.wait_for_condition("/v1/ports/p0", "Programmed", "True").expect("programmed again");
    net::tc(&format!("filter del dev {one} ingress prio 50000")).expect("deleted");
    assert_eq!((outline(&one), outline(&uplink)), ours);
}

#[test]
fn a_teardown_over_the_api_takes_our_flows_and_nothing_is_programmed_until_it_is_resumed() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(2);
    device.switchdev().expect("switchdev");
    let folder = folder();
    let mut daemon = on_netdevsim(&device, &folder);
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}})).expect("a network");
    blue_ports(&daemon, &device, &[MAC_1]);
    let (one, uplink) = (device.representor(0).expect("r0"), device.uplink().expect("uplink"));
    let ours = [outline(&one), outline(&uplink)];
    let everything: usize = {
        let two = outline(&device.representor(1).expect("r1"));
        ours.iter().map(Vec::len).sum::<usize>() + two.len()
    };
    net::tc(&format!(
        "filter add dev {one} ingress prio 50000 protocol ip flower dst_ip 192.0.2.1 action drop"
    ))
    .expect("a foreign filter");
    let post = |daemon: &Daemon, path: &str| daemon.request("POST", path, None).expect("an answer");

    let done = post(&daemon, "/v1/teardown");
    assert_eq!(done.status, 200, "{done:?}");
    let expected = json!({"removed": everything, "netdevs": 3, "foreign": 1, "offload": 3});
    assert_eq!(done.body, expected);
    assert!(!offloads(&one) && !offloads(&uplink), "as they were before the daemon");
    let only_foreign = || {
        let left = filters(&one);
        assert_eq!(left.len(), 1, "{left:#?}");
        assert_eq!(left[0]["options"]["keys"]["dst_ip"], "192.0.2.1");
        assert_eq!(outline(&uplink), [""; 0]);
    };
    only_foreign();
    assert_eq!(daemon.request("GET", "/readyz", None).expect("an answer").status, 503);
    let port =
        daemon.wait_for_condition("/v1/ports/p0", "Programmed", "False").expect("it says so");
    assert_eq!(condition(&port, "Programmed")["reason"], "TornDown");

    // It is told of things, and sees things, and does nothing.
    let second = vf_port(&device, 1, MAC_2, json!([{"network": "blue"}]));
    daemon.put("/v1/ports/p1", second).expect("stored");
    daemon.wait_for_condition("/v1/ports/p1", "Bound", "True").expect("bound");
    let extra =
        format!("filter add dev {uplink} ingress prio 50001 protocol ip flower action drop");
    net::tc(&extra).expect("somebody's");
    net::tc(&format!("filter del dev {uplink} ingress prio 50001")).expect("somebody's");
    std::thread::sleep(Duration::from_secs(1));
    only_foreign();
    daemon.delete("/v1/ports/p1").expect("deleted");
    assert_eq!(post(&daemon, "/v1/teardown").body["removed"], 0);

    net::tc(&format!("filter del dev {one} ingress prio 50000")).expect("deleted");
    for path in ["/v1/resume", "/v1/resume"] {
        assert_eq!(post(&daemon, path).status, 204);
    }
    daemon.wait_for_condition("/v1/ports/p0", "Offloaded", "True").expect("programmed again");
    assert_eq!([outline(&one), outline(&uplink)], ours);

    post(&daemon, "/v1/teardown");
    daemon.end(Signal::SIGKILL).expect("killed");
    daemon.restart().expect("a start is a resume");
    daemon.wait_for_condition("/v1/ports/p0", "Programmed", "True").expect("programmed again");
    assert_eq!([outline(&one), outline(&uplink)], ours);
}

#[test]
fn a_restored_snapshot_brings_the_same_flows_in_the_same_chains() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(2);
    device.switchdev().expect("switchdev");
    let folder = folder();
    let daemon = on_netdevsim(&device, &folder);
    // The first network goes again: the second keeps the chains that it got beside it.
    daemon.put("/v1/networks/first", json!({"kind": "isolated"})).expect("a network");
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}})).expect("a network");
    daemon.delete("/v1/networks/first").expect("deleted");
    blue_ports(&daemon, &device, &[MAC_1, MAC_2]);
    let netdevs = [0, 1].map(|vf| device.representor(vf).expect("a representor"));
    let flows = || netdevs.each_ref().map(|netdev| outline(netdev));
    let before = flows();
    assert!(before[0].iter().any(|flow| flow.starts_with("128 ")), "{before:?}");
    let snapshot = daemon.get("/v1/snapshot").expect("a snapshot");
    let restore = |snapshot: &Value| {
        daemon.request("PUT", "/v1/snapshot", Some(snapshot)).expect("an answer")
    };

    daemon.delete("/v1/ports/p0").expect("deleted");
    daemon.put("/v1/networks/green", json!({"kind": "flat"})).expect("a network");
    let port = vf_port(&device, 1, MAC_3, json!([{"network": "green"}]));
    daemon.put("/v1/ports/p1", port).expect("another port");
    daemon.wait_for_condition("/v1/ports/p1", "Programmed", "True").expect("programmed");
    net::wait_for("other flows", daemon::PATIENCE, || (flows() != before).then_some(()))
        .expect("others");
    let changed = daemon.get("/v1/snapshot").expect("a snapshot");

    let mut wrong = snapshot.clone();
    wrong["ports"][1]["spec"]["macs"][0] = json!("ff:ff:ff:ff:ff:ff");
    let refused = restore(&wrong);
    assert_eq!((refused.status, &refused.body["field"]), (422, &json!("ports[1].spec.macs[0]")));
    assert_eq!(daemon.get("/v1/snapshot").expect("a snapshot"), changed, "nothing of it");

    let restored = restore(&snapshot);
    assert_eq!(restored.status, 200, "{restored:?}");
    assert!(restored.body["revision"].as_u64() > changed["revision"].as_u64());
    net::wait_for("the flows of before", daemon::PATIENCE, || (flows() == before).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {:#?}, not {before:#?}", flows()));
    for port in ["/v1/ports/p0", "/v1/ports/p1"] {
        daemon.wait_for_condition(port, "Programmed", "True").expect("programmed");
    }
    assert_eq!(restore(&snapshot).body["revision"], restored.body["revision"]);
}

#[test]
fn sighup_brings_a_new_configuration_and_a_wrong_one_changes_nothing() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(1);
    device.switchdev().expect("switchdev");
    net::ip("link add up0 type veth peer name wire").expect("veth");
    let folder = folder();
    let daemon = on_netdevsim(&device, &folder);
    daemon.put("/v1/networks/blue", json!({"kind": "isolated"})).expect("a network");
    blue_ports(&daemon, &device, &[MAC_1]);
    let one = device.representor(0).expect("r0");
    let before = filters(&one);
    let hangup = |text: &str, until: &str| {
        std::fs::write(daemon.configuration(), text).expect("written");
        let pid = daemon.pid().and_then(|pid| pid.try_into().ok()).expect("it runs");
        kill(Pid::from_raw(pid), Signal::SIGHUP).expect("signalled");
        net::wait_for(until, ARRIVAL, || daemon.log().contains(until).then_some(())).expect(until);
    };
    let adapters = || daemon.get("/v1/adapters").expect("adapters")["items"].clone();
    let old = std::fs::read_to_string(daemon.configuration()).expect("the configuration");

    hangup("[[adapter]]\nhandle = 7\n", "going on with the configuration in force");
    assert_eq!(adapters().as_array().map(Vec::len), Some(1));

    let software = "[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"rep*\"]\n";
    hangup(&format!("{old}\n{software}"), "starting with the new configuration");
    net::wait_for("the second adapter", ARRIVAL, || {
        let answer = daemon.request("GET", "/v1/adapters", None).ok()?;
        (answer.body["items"].as_array()?.len() == 2).then_some(())
    })
    .expect("it is there");
    daemon.wait_for_condition("/v1/ports/p0", "Programmed", "True").expect("programmed still");
    assert_eq!(filters(&one), before);
}

// ---------------------------------------------------------------- packets

/// A host whose representors are veths: `rep1`…`rep4` on the host's side, `vm1`…`vm4` where the
/// guests would be, `up0` as the uplink with `wire` at its far end.
struct Rig {
    daemon: Daemon,
    _folder: TempDir,
    captures: Vec<(&'static str, Capture)>,
}

const ENDS: [&str; 5] = ["vm1", "vm2", "vm3", "vm4", "wire"];

impl Rig {
    fn new() -> Rig {
        let pairs =
            [("rep1", "vm1"), ("rep2", "vm2"), ("rep3", "vm3"), ("rep4", "vm4"), ("up0", "wire")];
        for (ours, theirs) in pairs {
            net::ip(&format!("link add {ours} type veth peer name {theirs}")).expect("veth");
            for link in [ours, theirs] {
                net::ip(&format!("link set {link} addrgenmode none")).expect("no IPv6");
            }
            net::ip(&format!("link set {theirs} up")).expect("up");
        }
        net::ip("link set dev up0 up").expect("up");
        let folder = folder();
        let configuration =
            "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"rep*\"]\n";
        let daemon = Daemon::start(folder.path(), configuration).expect("eswitchd");
        let captures =
            ENDS.iter().map(|end| (*end, Capture::start(end).expect("a capture"))).collect();
        Rig { daemon, _folder: folder, captures }
    }

    fn network(&self, id: &str, kind: Value) {
        self.daemon.put(&format!("/v1/networks/{id}"), json!({ "kind": kind })).expect("a network");
    }

    fn port(&self, number: usize, macs: &[&str], attachments: Value) {
        let spec = json!({
            "function": {"netdev": {"adapter": "soft-lab", "name": format!("rep{number}")}},
            "attachments": attachments,
            "macs": macs,
        });
        self.daemon.put(&format!("/v1/ports/p{number}"), spec).expect("a port");
    }

    fn programmed(&self, numbers: &[usize]) {
        for number in numbers {
            let path = format!("/v1/ports/p{number}");
            self.daemon.wait_for_condition(&path, "Programmed", "True").expect("programmed");
            net::wait_for("the representor to be up", daemon::PATIENCE, || {
                let link = net::ip_json(&format!("link show rep{number}")).ok()?;
                (link[0]["operstate"] == "UP").then_some(())
            })
            .expect("up");
        }
    }

    /// Sends a frame into an end, and waits for so many arrivals and for a while in which no more
    /// come; what arrived at each of the others, by end.
    fn send(&self, from: &str, sent: &[u8], awaited: usize) -> Vec<(&'static str, Vec<u8>)> {
        for (_, capture) in &self.captures {
            capture.clear();
        }
        send_frame(from, sent).expect("sent");
        let arrived = || -> Vec<(&'static str, Vec<u8>)> {
            let all = self.captures.iter();
            all.flat_map(|(end, c)| c.frames().into_iter().map(move |f| (*end, f))).collect()
        };
        // Too few are for the caller to complain of: it knows which.
        net::wait_for("arrivals", ARRIVAL, || (arrived().len() >= awaited).then_some(())).ok();
        std::thread::sleep(SETTLE);
        arrived()
    }
}

/// A frame's tags, outer first, and its ethertype.
fn tags(frame: &[u8]) -> Vec<u16> {
    let mut tags = Vec::new();
    let mut at = 12;
    while frame[at..at + 2] == [0x81, 0x00] || frame[at..at + 2] == [0x88, 0xa8] {
        tags.push(u16::from_be_bytes([frame[at + 2] & 0x0f, frame[at + 3]]));
        at += 4;
    }
    tags
}

/// Where frames arrived, with which tags.
fn arrivals(frames: &[(&'static str, Vec<u8>)]) -> Vec<(&'static str, Vec<u16>)> {
    let mut arrivals: Vec<_> = frames.iter().map(|(end, frame)| (*end, tags(frame))).collect();
    arrivals.sort();
    arrivals
}

fn test_frame(to: &str, from: &str, vlans: &[u16]) -> Vec<u8> {
    frame(to, from, vlans, 0x88b5, b"eswitchd")
}

/// What is shown, where a frame is sent, the frame, and where it arrives with which tags.
type Case = (&'static str, &'static str, Vec<u8>, Vec<(&'static str, Vec<u16>)>);

#[test]
fn frames_reach_who_they_are_for_and_nobody_else() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new();
    rig.network("blue", json!({"vlan": {"vid": 100}}));
    rig.network("red", json!({"vlan": {"vid": 200}}));
    rig.port(1, &[MAC_1], json!([{"network": "blue"}]));
    rig.port(2, &[MAC_2], json!([{"network": "blue"}]));
    // A trunk: both networks, each under a tag of the guest's own.
    rig.port(3, &[MAC_3], json!([{"network": "blue", "tag": 5}, {"network": "red", "tag": 6}]));
    rig.port(4, &[MAC_4], json!([{"network": "red"}]));
    rig.programmed(&[1, 2, 3, 4]);
    let none: [(&str, Vec<u16>); 0] = [];

    let cases: [Case; 13] = [
        (
            "unicast reaches its port only",
            "vm1",
            test_frame(MAC_2, MAC_1, &[]),
            vec![("vm2", vec![])],
        ),
        (
            "to a trunk it gets the guest's tag",
            "vm1",
            test_frame(MAC_3, MAC_1, &[]),
            vec![("vm3", vec![5])],
        ),
        (
            "from a trunk it loses the guest's tag",
            "vm3",
            test_frame(MAC_4, MAC_3, &[6]),
            vec![("vm4", vec![])],
        ),
        (
            "broadcast reaches every member but the sender",
            "vm1",
            test_frame(BROADCAST, MAC_1, &[]),
            vec![("vm2", vec![]), ("vm3", vec![5]), ("wire", vec![100])],
        ),
        (
            "unknown unicast leaves by the uplink, tagged",
            "vm4",
            test_frame("02:99:00:00:00:09", MAC_4, &[]),
            vec![("wire", vec![200])],
        ),
        ("a spoofed source reaches nobody", "vm1", test_frame(MAC_2, MAC_4, &[]), vec![]),
        ("a spoofed broadcast reaches nobody", "vm1", test_frame(BROADCAST, MAC_2, &[]), vec![]),
        ("VLANs do not mix", "vm1", test_frame(MAC_4, MAC_1, &[]), vec![("wire", vec![100])]),
        ("a tag that is not attached is dropped", "vm3", test_frame(MAC_2, MAC_3, &[100]), vec![]),
        ("a tag on an access port is dropped", "vm1", test_frame(MAC_2, MAC_1, &[100]), vec![]),
        ("a second tag is dropped", "vm3", test_frame(BROADCAST, MAC_3, &[5, 200]), vec![]),
        (
            "from the uplink to a port",
            "wire",
            test_frame(MAC_1, "02:99:00:00:00:09", &[100]),
            vec![("vm1", vec![])],
        ),
        (
            "broadcast from the uplink does not return to it",
            "wire",
            test_frame(BROADCAST, "02:99:00:00:00:09", &[200]),
            vec![("vm3", vec![6]), ("vm4", vec![])],
        ),
    ];
    for (what, from, sent, expected) in cases {
        assert_eq!(arrivals(&rig.send(from, &sent, expected.len())), expected, "{what}");
    }
    let quiet = rig.send("vm2", &test_frame("01:80:c2:00:00:00", MAC_2, &[]), 0);
    assert_eq!(arrivals(&quiet), none, "link-local groups are dropped");

    // The payload is untouched.
    let sent = test_frame(MAC_2, MAC_1, &[]);
    assert_eq!(rig.send("vm1", &sent, 1), [("vm2", sent.clone())]);
}

#[test]
fn the_hosts_own_traffic_over_the_uplink_lives_through_start_changes_and_teardown() {
    let _netns = Netns::enter().expect("a namespace");
    let far = Netns::named("far").expect("a namespace");
    net::ip("link add up0 type veth peer name wire netns far").expect("veth");
    net::ip("addr add 10.9.0.1/24 dev up0").expect("address");
    net::ip("link set dev up0 up").expect("up");
    net::ip("link add link up0 name up0.300 type vlan id 300").expect("vlan");
    net::ip("addr add 10.9.3.1/24 dev up0.300").expect("address");
    net::ip("link set up0.300 up").expect("up");
    for (link, address) in [("wire", "10.9.0.2/24"), ("wire.300", "10.9.3.2/24")] {
        if link != "wire" {
            net::ip("-n far link add link wire name wire.300 type vlan id 300").expect("vlan");
        }
        net::ip(&format!("-n far addr add {address} dev {link}")).expect("address");
        net::ip(&format!("-n far link set {link} up")).expect("up");
    }
    for number in [1, 2] {
        net::ip(&format!("link add rep{number} type veth peer name vm{number}")).expect("veth");
    }
    // As on a host where the daemon was before: the kernel stops an interface's queues for a moment
    // whenever any qdisc comes or goes (`qdisc_graft`, net/sched/sch_api.c), whoever makes it.
    net::tc("qdisc add dev up0 clsact").expect("a qdisc");
    drop(far);
    let pings = ["10.9.0.1", "10.9.3.1"].map(Ping::start);

    let folder = folder();
    let configuration =
        "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"rep*\"]\n";
    let mut daemon = Daemon::start(folder.path(), configuration).expect("eswitchd");
    for (id, kind) in [("flat", json!("flat")), ("blue", json!({"vlan": {"vid": 100}}))] {
        daemon.put(&format!("/v1/networks/{id}"), json!({ "kind": kind })).expect("a network");
    }
    for (number, network, mac) in [(1, "flat", MAC_1), (2, "blue", MAC_2)] {
        let spec = json!({
            "function": {"netdev": {"adapter": "soft-lab", "name": format!("rep{number}")}},
            "attachments": [{"network": network}],
            "macs": [mac],
        });
        let path = format!("/v1/ports/p{number}");
        daemon.put(&path, spec).expect("a port");
        daemon.wait_for_condition(&path, "Programmed", "True").expect("programmed");
    }
    std::thread::sleep(SETTLE);
    // ARP must work through the flat network's flood as well.
    net::command("ip", ["netns", "exec", "far", "ip", "neigh", "flush", "all"]).expect("flushed");
    for path in ["/v1/ports/p1", "/v1/ports/p2", "/v1/networks/flat", "/v1/networks/blue"] {
        daemon.delete(path).expect("deleted");
    }
    std::thread::sleep(SETTLE);
    daemon.end(Signal::SIGTERM).expect("stopped");
    for ping in pings {
        let answered = ping.end();
        let last = answered.last().copied().unwrap_or_default();
        assert!(last > 20, "only {answered:?} were answered");
        let lost: Vec<u32> = (1..last).filter(|sequence| !answered.contains(sequence)).collect();
        assert!(lost.is_empty(), "{lost:?} of {last} were lost");
    }
}

/// `ping` of an address from the namespace `far`, fifty times a second.
struct Ping(Child);

impl Ping {
    fn start(address: &str) -> Ping {
        let ping = Command::new("ip")
            .args(["netns", "exec", "far", "ping", "-i", "0.02", address])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        Ping(ping.expect("ping"))
    }

    /// Ends it: the sequence numbers that were answered. The last one sent may be under way still,
    /// which is no loss.
    fn end(self) -> Vec<u32> {
        let pid = Pid::from_raw(self.0.id().try_into().expect("a process id"));
        kill(pid, Signal::SIGINT).expect("interrupted");
        let output = self.0.wait_with_output().expect("ping ended");
        let text = String::from_utf8_lossy(&output.stdout);
        let sequences = text.split("icmp_seq=").skip(1);
        let mut answered: Vec<u32> =
            sequences.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect();
        answered.sort_unstable();
        answered
    }
}

// ---------------------------------------------------------------- drift

/// A netdev's filters as chain, prio, protocol, keys and actions in words.
fn outline(netdev: &str) -> Vec<String> {
    let mut outline: Vec<String> = filters(netdev)
        .iter()
        .map(|filter| {
            let (chain, prio, protocol) = (&filter["chain"], &filter["pref"], &filter["protocol"]);
            format!("{chain} {prio} {protocol} {} {:?}", filter["options"]["keys"], actions(filter))
        })
        .collect();
    outline.sort();
    outline
}

/// How many drifted flows of this kind the daemon has counted.
fn drifted(daemon: &Daemon, kind: &str) -> u64 {
    let metrics = daemon.request("GET", "/metrics", None).expect("metrics").body;
    let label = format!("kind=\"{kind}\"}} ");
    let lines = metrics.as_str().expect("text").lines();
    let ours = lines.filter(|line| line.starts_with("eswitchd_drift_repaired_total"));
    let counts = ours.filter_map(|line| line.split_once(&label)?.1.parse::<u64>().ok());
    counts.sum()
}

#[test]
fn what_somebody_else_did_to_the_flows_is_put_back() {
    let _netns = Netns::enter().expect("a namespace");
    let device = netdevsim(2);
    device.switchdev().expect("switchdev");
    let folder = folder();
    let daemon = on_netdevsim(&device, &folder);
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}})).expect("a network");
    blue_ports(&daemon, &device, &[MAC_1, MAC_2]);
    let one = device.representor(0).expect("r0");
    let wanted = outline(&one);
    assert!(wanted.len() > 5, "{wanted:?}");
    let last = || filters(&one).into_iter().find(|f| f["chain"] == 0 && f["pref"] == 62);
    let option = |name: &str| last().expect("the last rule")["options"][name].clone();

    let delete = format!("filter del dev {one} ingress");
    let replace = format!("filter replace dev {one} ingress chain 0 prio 62 protocol all");
    let harms: [(&str, &str, &dyn Fn() -> String); 7] = [
        ("a flow is deleted", "deleted", &|| {
            format!("{delete} chain 0 prio 62 protocol all handle {} flower", option("handle"))
        }),
        ("a prio is flushed", "deleted", &|| format!("{delete} chain 0 prio 10")),
        ("a chain is flushed", "deleted", &|| format!("{delete} chain 64")),
        ("all is flushed", "deleted", &|| delete.clone()),
        ("the qdisc is deleted", "deleted", &|| format!("qdisc del dev {one} clsact")),
        ("an action is changed", "changed", &|| {
            format!("actions change action pass index {}", option("actions")[0]["index"])
        }),
        ("a flow is replaced", "changed", &|| {
            format!("{replace} handle {} flower action pass", option("handle"))
        }),
    ];
    for (what, kind, command) in harms {
        let counted = drifted(&daemon, kind);
        net::tc(&command()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let harmed = Instant::now();
        net::wait_for(what, ARRIVAL, || {
            (drifted(&daemon, kind) > counted && outline(&one) == wanted).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:#?}\n{}", outline(&one), daemon.log()));
        println!("{what}: put back within {} ms", harmed.elapsed().as_millis());
    }
}

// ---------------------------------------------------------------- bad input

#[test]
fn a_wrong_configuration_names_file_line_and_remedy() {
    let folder = folder();
    let path = folder.path().join("eswitchd.toml");
    std::fs::write(&path, "[[adapter]]\nhandle = \"mlx\"\n").expect("written");
    let output = Command::new(daemon::program().expect("eswitchd"))
        .arg("--config")
        .arg(&path)
        .env("NO_COLOR", "1")
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains(&format!("{}:1:", path.display())), "{said}");
    assert!(said.contains("BUS/DEVICE"), "{said}");
}

#[test]
fn of_two_ports_with_one_mac_the_first_keeps_it_and_the_second_passes_nothing() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new();
    rig.network("blue", json!({"vlan": {"vid": 100}}));
    rig.port(2, &[MAC_2], json!([{"network": "blue"}]));
    rig.port(1, &[MAC_2], json!([{"network": "blue"}]));
    rig.port(3, &[MAC_3], json!([{"network": "blue"}]));
    rig.programmed(&[2, 3]);
    let second = rig.daemon.wait_for_condition("/v1/ports/p1", "Conflict", "True").expect("told");
    let message = condition(&second, "Conflict")["message"].as_str().expect("a message").to_owned();
    assert!(message.contains(MAC_2) && message.contains("p2"), "{message}");
    net::ip("link set rep1 up").expect("up");

    assert_eq!(
        arrivals(&rig.send("vm2", &test_frame(BROADCAST, MAC_2, &[]), 2)),
        [("vm3", vec![]), ("wire", vec![100])],
        "the first works"
    );
    for from in [MAC_2, MAC_1] {
        assert_eq!(arrivals(&rig.send("vm1", &test_frame(BROADCAST, from, &[]), 0)), []);
    }
    assert_eq!(
        arrivals(&rig.send("vm3", &test_frame(MAC_2, MAC_3, &[]), 1)),
        [("vm2", vec![])],
        "and gets its own"
    );
}

#[test]
fn a_qmp_socket_that_speaks_rubbish_marks_its_guest_and_the_rest_goes_on() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new();
    let socket = rig.daemon.qmp_dir().join("rubbish.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            stream.write_all(b"\x00\xffHTTP/1.1 400 no\r\n\r\n{\"QMP\": 7}\n").ok();
        }
    });
    let silent = UnixListener::bind(rig.daemon.qmp_dir().join("silent.sock")).expect("a socket");
    let guest = rig
        .daemon
        .wait_for("/v1/guests/rubbish", |guest| {
            ["Misbehaving", "Interrupted"]
                .contains(&condition(guest, "Connected")["reason"].as_str().unwrap_or_default())
        })
        .expect("marked");
    assert_eq!(condition(&guest, "Connected")["status"], "False");
    assert!(!condition(&guest, "Connected")["message"].as_str().expect("text").is_empty());

    rig.network("blue", json!("isolated"));
    rig.port(1, &[MAC_1], json!([{"network": "blue"}]));
    rig.port(2, &[MAC_2], json!([{"network": "blue"}]));
    rig.programmed(&[1, 2]);
    assert_eq!(arrivals(&rig.send("vm1", &test_frame(MAC_2, MAC_1, &[]), 1)), [("vm2", vec![])]);
    drop(silent);
    std::fs::remove_file(&socket).expect("removed");
}

#[test]
fn of_clients_that_change_one_resource_at_once_none_loses_what_it_wrote() {
    const CLIENTS: u8 = 4;
    const CHANGES: u8 = 8;
    let _netns = Netns::enter().expect("a namespace");
    let folder = folder();
    let daemon = Daemon::start(folder.path(), "").expect("eswitchd");
    daemon.put("/v1/networks/x", json!({"kind": "flat"})).expect("a network");
    let refused = AtomicUsize::new(0);
    // Each adds an address to what it has read.
    let add = |mac: String| loop {
        let seen = daemon.get("/v1/networks/x").expect("the network");
        let mut body = json!({"spec": seen["spec"]});
        let macs = &mut body["spec"]["reserved_macs"];
        let mut list = macs.as_array().cloned().unwrap_or_default();
        list.push(mac.clone().into());
        *macs = list.into();
        let if_match = format!("if-match: \"{}\"\r\n", seen["revision"]);
        let answer = daemon.request_with("PUT", "/v1/networks/x", &if_match, Some(&body));
        match answer.expect("an answer").status {
            200 => break,
            status => assert_eq!(status, 412),
        }
        refused.fetch_add(1, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let add = &add;
            scope.spawn(move || {
                (0..CHANGES)
                    .for_each(|change| add(format!("02:00:00:00:{client:02x}:{change:02x}")));
            });
        }
    });
    let network = daemon.get("/v1/networks/x").expect("the network");
    let written = network["spec"]["reserved_macs"].as_array().map(Vec::len);
    assert_eq!(written, Some(usize::from(CLIENTS * CHANGES)));
    println!("{} changes were refused and made anew", refused.load(Ordering::Relaxed));
}

#[test]
fn the_api_refuses_what_is_wrong_and_says_what_would_be_right() {
    let _netns = Netns::enter().expect("a namespace");
    let folder = folder();
    let daemon = Daemon::start(folder.path(), "").expect("eswitchd");
    let bad = json!({"spec": {"kind": {"vlan": {"vid": 5000}}}});
    let answer = daemon.request("PUT", "/v1/networks/x", Some(&bad)).expect("an answer");
    assert_eq!(answer.status, 422, "{answer:?}");
    assert_eq!(answer.body["field"], "spec.kind.vlan.vid", "{answer:?}");
    assert!(answer.body["remedy"].as_str().expect("remedy").contains("4094"), "{answer:?}");
    daemon.put("/v1/networks/x", json!({"kind": "flat"})).expect("a network");
    let port = json!({
        "function": {"guest_vf": {"guest": "vm", "device": "vf0"}},
        "attachments": [{"network": "x"}],
    });
    daemon.put("/v1/ports/p", port).expect("a port");
    let answer = daemon.request("DELETE", "/v1/networks/x", None).expect("an answer");
    assert_eq!(answer.status, 409);
    assert_eq!(answer.body["blockers"], json!(["ports/p"]));
    let port = daemon.get("/v1/ports/p").expect("the port");
    assert_eq!(condition(&port, "Bound")["reason"], "GuestNotSeen");
    let metrics = daemon.request("GET", "/metrics", None).expect("metrics").body;
    let metrics = metrics.as_str().expect("text").to_owned();
    for name in ["eswitchd_build_info{", "eswitchd_guests_connected 0", "eswitchd_ready 1"] {
        assert!(metrics.contains(name), "{name} in\n{metrics}");
    }
}
