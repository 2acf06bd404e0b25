//! Legacy mode: a port as the settings of its VF on the PF, and what the NIC then does with packets.
//!
//! On netdevsim, whose VFs take every setting and carry nothing, and on an igb with igbvf: a real
//! driver on an emulated 82576, which switches between its VFs and to the wire. What a VF has is
//! read with `ip`, never from the daemon. A test that lacks what it needs fails.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::time::Instant;

use eswitchd_netns_tests::igb::{IGB, Igb, reaches};
use lab::{
    daemon::{self, Daemon, condition},
    net::{self, Netdevsim, Netns},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const MAC_A: &str = "02:00:00:00:00:01";
const MAC_B: &str = "02:00:00:00:00:02";

fn daemon_on(handle: &str, folder: &TempDir) -> Daemon {
    let configuration = format!("\n[[adapter]]\nhandle = \"{handle}\"\n");
    Daemon::start(folder.path(), &configuration).expect("eswitchd")
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// The VFs of a PF as `ip` shows them.
fn vfs_of(pf: &str) -> Vec<Value> {
    let link = net::ip_json(&format!("link show {pf}")).expect("ip");
    link[0]["vfinfo_list"].as_array().cloned().unwrap_or_default()
}

/// Waits until `ip` shows this of a VF: each field of `expected` as it stands there.
#[track_caller]
fn shows(pf: &str, vf: usize, expected: Value) {
    let fits = || {
        let shown = vfs_of(pf).get(vf)?.clone();
        let fields = expected.as_object()?;
        fields.iter().all(|(field, value)| shown[field] == *value).then_some(())
    };
    net::wait_for("the VF's settings", daemon::PATIENCE, fits)
        .unwrap_or_else(|error| panic!("{error}: {expected:#} in {:#}", vfs_of(pf)[vf]));
}

/// What a VF shows that is nobody's, where the driver has everything.
fn released() -> Value {
    json!({"address": "00:00:00:00:00:00", "vlan_list": [{}], "trust": false,
           "rate": {"max_tx": 0, "min_tx": 0}, "spoofchk": true})
}

/// How many VF settings were written, and how many of them refused.
fn written(daemon: &Daemon) -> (u64, u64) {
    let metrics = daemon.get("/metrics").expect("metrics");
    let count = |result: &str| {
        let lines = metrics.as_str().expect("text").lines();
        let mut series = lines.filter(|line| {
            line.contains("operation=\"vf_setting\"")
                && line.contains(&format!("result=\"{result}\""))
        });
        series.next().and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0)
    };
    (count("done"), count("refused"))
}

// ---------------------------------------------------------------- netdevsim

struct Sim {
    device: Netdevsim,
    pf: String,
    daemon: Daemon,
    _folder: TempDir,
    _room: Netns,
}

impl Sim {
    /// A netdevsim in legacy mode with a daemon, and the VLAN network `blue`.
    fn new(vfs: u32) -> Sim {
        let room = Netns::enter().expect("a namespace");
        net::modprobe("netdevsim").expect("netdevsim");
        let device = Netdevsim::create(1).expect("a device");
        device.set_vfs(vfs).expect("VFs");
        let pf = device.uplink().expect("the PF's netdev");
        let folder = folder();
        let daemon = daemon_on(&device.handle(), &folder);
        let blue = json!({"kind": {"vlan": {"vid": 100}}});
        daemon.put("/v1/networks/blue", blue).expect("a network");
        Sim { device, pf, daemon, _folder: folder, _room: room }
    }

    fn port(&self, vf: u16, change: Value) -> Value {
        let adapter = self.device.handle().replacen('/', "-", 1);
        let mut spec = json!({
            "function": {"vf": {"adapter": adapter, "index": vf}},
            "attachments": [{"network": "blue"}],
            "macs": [MAC_A],
        });
        let spec_fields = spec.as_object_mut().expect("an object");
        spec_fields.extend(change.as_object().expect("an object").clone());
        self.daemon.put("/v1/ports/p", spec).expect("a port");
        self.daemon.wait_for_condition("/v1/ports/p", "Programmed", "True").expect("programmed")
    }
}

#[test]
fn what_somebody_else_did_to_a_vfs_settings_is_put_back_and_counted() {
    let sim = Sim::new(1);
    // The kernel tells of VF settings with the PF's own news, and of a PF that is down it has none.
    net::ip(&format!("link set {} up", sim.pf)).expect("up");
    sim.port(0, json!({"qos": {"tx_max": 300_000_000}}));
    let wanted = json!({"address": MAC_A, "vlan_list": [{"vlan": 100}], "trust": false,
        "spoofchk": true, "rate": {"max_tx": 300, "min_tx": 0}, "link_state": "auto"});
    shows(&sim.pf, 0, wanted.clone());
    let harms = [
        "mac 02:66:66:66:66:66",
        "vlan 666",
        "trust on",
        "spoofchk off",
        "max_tx_rate 1",
        "state disable",
    ];
    for harm in harms {
        let counted = drifted(&sim.daemon);
        net::ip(&format!("link set {} vf 0 {harm}", sim.pf)).expect("changed");
        let harmed = Instant::now();
        net::wait_for("told", daemon::PATIENCE, || (drifted(&sim.daemon) > counted).then_some(()))
            .unwrap_or_else(|error| panic!("{harm}: {error}\n{}", sim.daemon.log()));
        shows(&sim.pf, 0, wanted.clone());
        assert_eq!(drifted(&sim.daemon), counted + 1, "{harm}");
        println!("`ip link set … vf 0 {harm}`: put back within {:?}", harmed.elapsed());
    }
    let (before, _) = written(&sim.daemon);
    sim.daemon.wait_for_condition("/v1/ports/p", "Programmed", "True").expect("programmed");
    assert_eq!(written(&sim.daemon), (before, 0), "and nothing more");
}

/// How many VF settings the daemon found changed by somebody else.
fn drifted(daemon: &Daemon) -> u64 {
    let metrics = daemon.get("/metrics").expect("metrics");
    let mut lines = metrics.as_str().expect("text").lines();
    let ours = lines.find(|line| {
        line.starts_with("eswitchd_drift_repaired_total") && line.contains("kind=\"vf_setting\"")
    });
    ours.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0)
}

#[test]
fn a_port_is_its_vfs_settings_and_its_release_takes_back_all_of_them() {
    let sim = Sim::new(2);
    shows(&sim.pf, 0, released());
    sim.port(
        0,
        json!({
            "attachments": [{"network": "blue", "priority": 5}],
            "qos": {"tx_max": 500_000_000, "tx_min": 10_000_000},
            "promiscuous": "allow",
        }),
    );
    let vlan = json!([{"vlan": 100, "qos": 5}]);
    let expected = json!({"address": MAC_A, "vlan_list": vlan, "spoofchk": true, "trust": true,
                          "rate": {"max_tx": 500, "min_tx": 10}, "link_state": "auto"});
    shows(&sim.pf, 0, expected);
    sim.daemon.delete("/v1/ports/p").expect("deleted");
    let mut gone = released();
    gone["link_state"] = json!("disable");
    shows(&sim.pf, 0, gone.clone());
    shows(&sim.pf, 1, gone);
}

#[test]
fn a_change_writes_what_differs_and_nothing_else() {
    let sim = Sim::new(1);
    sim.port(0, json!({}));
    let (before, _) = written(&sim.daemon);
    sim.port(0, json!({"qos": {"tx_max": 20_000_000}}));
    shows(&sim.pf, 0, json!({"rate": {"max_tx": 20, "min_tx": 0}}));
    let (after, refused) = written(&sim.daemon);
    assert_eq!((after - before, refused), (1, 0), "the rate");
    sim.port(0, json!({"qos": {"tx_max": 20_000_000}, "guest_macs": {"max": 1}}));
    assert_eq!(written(&sim.daemon).0, after, "nothing that a VF has");
}

#[test]
fn a_setting_that_somebody_else_changed_is_set_again() {
    let sim = Sim::new(1);
    net::ip(&format!("link set {} up", sim.pf)).expect("up");
    sim.port(0, json!({"qos": {"tx_max": 20_000_000}}));
    for (theirs, ours) in [
        ("vlan 7", json!({"vlan_list": [{"vlan": 100}]})),
        ("mac 02:00:00:00:00:99", json!({"address": MAC_A})),
        ("spoofchk off", json!({"spoofchk": true})),
        ("trust on", json!({"trust": false})),
        ("state disable", json!({"link_state": "auto"})),
        ("max_tx_rate 999", json!({"rate": {"max_tx": 20, "min_tx": 0}})),
    ] {
        let (before, _) = written(&sim.daemon);
        net::ip(&format!("link set {} vf 0 {theirs}", sim.pf)).expect("changed");
        net::wait_for("a write", daemon::PATIENCE, || {
            (written(&sim.daemon).0 > before).then_some(())
        })
        .expect(theirs);
        shows(&sim.pf, 0, ours);
    }
}

// ---------------------------------------------------------------- igb

/// Waits until pings are answered; the emulated NIC's link comes and goes with its VF's resets.
#[track_caller]
fn comes_to_reach(from: &str, to: &str) {
    net::wait_for("an answer", daemon::PATIENCE, || reaches(from, to).then_some(()))
        .unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
}

/// The lab's wire behind the igb: QEMU's user network, which answers to untagged frames only.
const WIRE: &str = "10.0.2.2";
const A: &str = "10.0.2.21";
const B: &str = "10.0.2.22";

fn igb_port(daemon: &Daemon, id: &str, vf: u16, mac: &str, network: &str, change: Value) {
    let mut spec = json!({
        "function": {"vf": {"adapter": format!("pci-{IGB}"), "index": vf}},
        "attachments": [{"network": network}],
        "macs": [mac],
    });
    let fields = spec.as_object_mut().expect("an object");
    fields.extend(change.as_object().expect("an object").clone());
    daemon.put(&format!("/v1/ports/{id}"), spec).expect("a port");
}

#[test]
fn igb_switches_between_its_vfs_and_to_the_wire_as_the_ports_say() {
    let igb = Igb::with_vfs(2);
    let pf = igb.pf();
    let folder = folder();
    let daemon = daemon_on(&format!("pci/{IGB}"), &folder);
    for (id, kind) in [
        ("flat", json!("flat")),
        ("blue", json!({"vlan": {"vid": 100}})),
        ("red", json!({"vlan": {"vid": 200}})),
        ("provider", json!({"vlan": {"vid": 300, "proto": "802.1ad"}})),
    ] {
        daemon.put(&format!("/v1/networks/{id}"), json!({"kind": kind})).expect("a network");
    }
    let programmed = |id: &str, status: &str| {
        let path = format!("/v1/ports/{id}");
        let port = daemon.wait_for_condition(&path, "Programmed", status).expect(status);
        condition(&port, "Programmed")["message"].as_str().expect("words").to_owned()
    };

    igb_port(&daemon, "a", 0, MAC_A, "flat", json!({}));
    igb_port(&daemon, "b", 1, MAC_B, "flat", json!({}));
    for (id, vf, mac) in [("a", 0, MAC_A), ("b", 1, MAC_B)] {
        programmed(id, "True");
        shows(&pf, vf, json!({"address": mac, "vlan_list": [{}], "spoofchk": true}));
    }
    let _a = igb.room("igb-a", 0, MAC_A, 21);
    let _b = igb.room("igb-b", 1, MAC_B, 22);
    comes_to_reach("igb-a", B);
    comes_to_reach("igb-b", A);
    comes_to_reach("igb-a", WIRE);

    // A VLAN of its own: neither the other VF, nor what is untagged on the wire.
    igb_port(&daemon, "a", 0, MAC_A, "blue", json!({}));
    shows(&pf, 0, json!({"vlan_list": [{"vlan": 100}]}));
    programmed("a", "True");
    comes_to_reach("igb-b", WIRE);
    for (from, to) in [("igb-a", B), ("igb-b", A), ("igb-a", WIRE)] {
        assert!(!reaches(from, to), "{from} reaches {to} out of its VLAN");
    }
    igb_port(&daemon, "b", 1, MAC_B, "red", json!({}));
    shows(&pf, 1, json!({"vlan_list": [{"vlan": 200}]}));
    assert!(!reaches("igb-a", B) && !reaches("igb-b", A), "two VLANs are two networks");
    let blue = json!({"attachments": [{"network": "blue", "priority": 5}]});
    igb_port(&daemon, "b", 1, MAC_B, "blue", blue);
    shows(&pf, 1, json!({"vlan_list": [{"vlan": 100, "qos": 5}]}));
    comes_to_reach("igb-a", B);
    comes_to_reach("igb-b", A);
    assert!(!reaches("igb-a", WIRE), "the wire has no VLAN 100");

    // What can be set and read back: rate, trust, spoof check.
    let limited = json!({"promiscuous": "allow", "qos": {"tx_max": 100_000_000}});
    igb_port(&daemon, "b", 1, MAC_B, "blue", limited);
    shows(&pf, 1, json!({"rate": {"max_tx": 100, "min_tx": 0}, "trust": true, "spoofchk": true}));
    programmed("b", "True");
    comes_to_reach("igb-a", B);

    // What it cannot: said by the port that wants it, and by no other.
    let promised = json!({"qos": {"tx_max": 100_000_000, "tx_min": 10_000_000}});
    igb_port(&daemon, "b", 1, MAC_B, "blue", promised);
    let words = programmed("b", "Partial");
    assert!(words.contains("rate of VF 1"), "{words}");
    igb_port(&daemon, "b", 1, MAC_B, "provider", json!({}));
    daemon
        .wait_for("/v1/ports/b", |port| {
            let words = condition(port, "Programmed")["message"].as_str().unwrap_or_default();
            // Without the VLAN its link should be down, and igb cannot do that either.
            words.contains("VLAN of VF 1") && words.contains("link state of VF 1")
        })
        .expect("the driver's refusals");
    programmed("a", "True");

    for id in ["a", "b"] {
        daemon.delete(&format!("/v1/ports/{id}")).expect("deleted");
    }
    for vf in [0, 1] {
        shows(&pf, vf, released());
    }
    let adapter = format!("/v1/adapters/pci-{IGB}");
    let seen = daemon.wait_for_condition(&adapter, "Healthy", "False").expect("told");
    let words = condition(&seen, "Healthy")["message"].as_str().expect("words").to_owned();
    assert!(words.contains("VF 0") && words.contains("link state"), "{words}");
}
