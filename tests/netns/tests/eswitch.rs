//! The shape of an eswitch, changed over the API: mode and number of VFs, and the rates of VFs.
//!
//! On netdevsim. What the kernel holds is read with devlink, sysfs, `ip` and `tc`, never from the
//! daemon. Each test has a network namespace of its own; one that lacks what it needs fails.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use lab::{
    daemon::{self, Answer, Daemon, condition},
    net::{self, Netdevsim, Netns},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];

struct Sim {
    device: Netdevsim,
    daemon: Daemon,
    _folder: TempDir,
    _room: Netns,
}

impl Sim {
    /// A netdevsim in legacy mode with that many VFs, a daemon, and the VLAN network `blue`.
    fn new(vfs: u32, configuration: &str) -> Sim {
        let room = Netns::enter().expect("a namespace");
        net::modprobe("netdevsim").expect("netdevsim");
        let device = Netdevsim::create(1).expect("a device");
        device.set_vfs(vfs).expect("VFs");
        let folder = tempfile::tempdir().expect("a folder");
        let adapter = format!("\n[[adapter]]\nhandle = \"{}\"\n{configuration}", device.handle());
        let daemon = Daemon::start(folder.path(), &adapter).expect("eswitchd");
        let blue = json!({"kind": {"vlan": {"vid": 100}}});
        daemon.put("/v1/networks/blue", blue).expect("a network");
        Sim { device, daemon, _folder: folder, _room: room }
    }

    fn adapter(&self) -> String {
        format!("/v1/adapters/{}", self.device.handle().replacen('/', "-", 1))
    }

    /// Puts port `pN` on VF N, in `blue`, and waits until it has what it can have.
    fn port(&self, vf: usize, change: Value) -> Value {
        let adapter = self.device.handle().replacen('/', "-", 1);
        let mut spec = json!({
            "function": {"vf": {"adapter": adapter, "index": vf}},
            "attachments": [{"network": "blue"}],
            "macs": [MACS[vf]],
        });
        let fields = spec.as_object_mut().expect("an object");
        fields.extend(change.as_object().expect("an object").clone());
        let path = format!("/v1/ports/p{vf}");
        self.daemon.put(&path, spec).expect("a port");
        let programmed = |port: &Value| condition(port, "Programmed")["status"] != "False";
        self.daemon.wait_for(&path, programmed).expect("programmed")
    }

    fn put(&self, query: &str, spec: Value) -> Answer {
        let path = format!("{}/eswitch{query}", self.adapter());
        self.daemon.request("PUT", &path, Some(&json!({ "spec": spec }))).expect("an answer")
    }

    /// Waits until what was asked for last is so, or was given up.
    fn settled(&self, status: &str) -> String {
        let adapter = self.daemon.wait_for(&self.adapter(), |adapter| {
            let eswitch = condition(adapter, "Eswitch");
            let under_way = eswitch["reason"] == "Changing" || eswitch["reason"] == "GoingBack";
            eswitch["status"] == status && !under_way
        });
        let adapter = adapter.expect("settled");
        condition(&adapter, "Eswitch")["message"].as_str().unwrap_or_default().to_owned()
    }

    fn vfs(&self) -> String {
        let text = fs::read_to_string(self.device.sysfs().join("sriov_numvfs")).expect("sysfs");
        text.trim().to_owned()
    }

    /// Mode and number of VFs as devlink and sysfs say them.
    fn shape(&self) -> (String, String) {
        let handle = self.device.handle();
        let shown = net::devlink_json(&format!("dev eswitch show {handle}")).expect("devlink");
        let mode = shown["dev"][&handle]["mode"].as_str().expect("a mode").to_owned();
        (mode, self.vfs())
    }

    fn is(&self, mode: &str, vfs: &str) {
        assert_eq!(self.shape(), (mode.to_owned(), vfs.to_owned()));
    }

    /// The filters on the representor of a VF.
    fn filters(&self, vf: u32) -> usize {
        let Ok(netdev) = self.device.representor(vf) else { return 0 };
        let filters = net::tc_json(&format!("filter show dev {netdev} ingress"));
        filters.ok().and_then(|filters| Some(filters.as_array()?.len())).unwrap_or(0)
    }

    /// What `ip` shows of a VF's settings.
    fn vf(&self, index: usize) -> Value {
        let pf = self.device.uplink().expect("the PF's netdev");
        net::ip_json(&format!("link show {pf}")).expect("ip")[0]["vfinfo_list"][index].clone()
    }
}

const MANAGED: &str = "manage_eswitch = true\n";

fn words(answer: &Answer) -> String {
    format!("{} {}", answer.body["detail"], answer.body["remedy"])
}

// ---------------------------------------------------------------- what is refused

#[test]
fn an_eswitch_that_the_configuration_does_not_give_to_the_daemon_stays_as_it_is() {
    let sim = Sim::new(2, "");
    let answer = sim.put("?force=true", json!({"mode": "switchdev"}));
    assert_eq!(answer.status, 409);
    assert!(words(&answer).contains("manage_eswitch = true"), "{}", words(&answer));
    sim.is("legacy", "2");
}

#[test]
fn more_vfs_than_the_configuration_allows_are_refused() {
    let sim = Sim::new(0, "manage_eswitch = true\nmax_vfs = 3\n");
    let answer = sim.put("", json!({"num_vfs": 4}));
    assert_eq!(answer.status, 409);
    assert!(words(&answer).contains("at most 3"), "{}", words(&answer));
    assert_eq!(sim.put("", json!({"num_vfs": 3})).status, 202);
    sim.settled("True");
    sim.is("legacy", "3");
    assert_eq!(sim.put("", json!({"num_vfs": 3})).status, 200, "nothing to do");
    assert_eq!(sim.put("", json!({"num_vfs": 1})).status, 202);
    sim.settled("True");
    sim.is("legacy", "1");
}

#[test]
fn vfs_in_use_keep_their_eswitch_unless_it_is_forced() {
    let sim = Sim::new(2, MANAGED);
    sim.port(0, json!({}));
    let answer = sim.put("", json!({"mode": "switchdev"}));
    assert_eq!((answer.status, &answer.body["blockers"]), (409, &json!(["ports/p0"])));
    assert!(words(&answer).contains("force=true"), "{}", words(&answer));
    sim.is("legacy", "2");
    sim.daemon.delete("/v1/ports/p0").expect("deleted");
    assert_eq!(sim.put("", json!({"mode": "switchdev"})).status, 202);
    sim.settled("True");
    sim.is("switchdev", "2");
}

#[test]
fn a_dry_run_says_what_ports_lose_and_changes_nothing() {
    let sim = Sim::new(2, MANAGED);
    sim.port(0, json!({"attachments": [{"network": "blue", "priority": 5}]}));
    sim.port(1, json!({}));
    let before = (sim.shape(), sim.vf(0), sim.vf(1));
    let answer = sim.put("?dry_run=true", json!({"mode": "switchdev", "num_vfs": 1}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let said = answer.body;
    assert_eq!(said["now"], json!({"mode": "legacy", "num_vfs": 2}));
    assert_eq!(said["then"], json!({"mode": "switchdev", "num_vfs": 1}));
    let steps = json!(["remove all VFs", "set the mode switchdev", "make 1 VF"]);
    assert_eq!((&said["steps"], &said["started"]), (&steps, &json!(false)));
    assert_eq!(said["in_use"], json!(["port p0 (VF 0)", "port p1 (VF 1)"]));
    let loss = |index: usize| {
        let port = &said["ports"][index];
        format!("{} {}", port["port"], port["loses"])
    };
    assert!(loss(0).contains("p0") && loss(0).contains("priority 0"), "{said:#}");
    assert!(loss(1).contains("p1") && loss(1).contains("no VF 1"), "{said:#}");
    assert!(said["refused"].as_str().expect("a refusal").contains("force=true"), "{said:#}");
    let forced = sim.put("?dry_run=true&force=true", json!({"mode": "switchdev"}));
    assert_eq!((forced.status, &forced.body["refused"]), (200, &Value::Null));
    assert_eq!((sim.shape(), sim.vf(0), sim.vf(1)), before);
}

// ---------------------------------------------------------------- what is done

#[test]
fn a_port_lives_through_a_round_trip_of_the_mode() {
    let sim = Sim::new(2, MANAGED);
    let port = sim.port(0, json!({}));
    assert_eq!(condition(&port, "Offloaded")["reason"], "LegacyMode");
    assert_eq!(sim.vf(0)["address"], MACS[0]);

    let answer = sim.put("?force=true", json!({"mode": "switchdev"}));
    assert_eq!((answer.status, &answer.body["started"]), (202, &json!(true)), "{answer:?}");
    sim.settled("True");
    sim.is("switchdev", "2");
    sim.daemon.wait_for_condition("/v1/ports/p0", "Offloaded", "True").expect("in hardware");
    assert!(sim.filters(0) > 5);

    assert_eq!(sim.put("?force=true", json!({"mode": "legacy"})).status, 202);
    sim.settled("True");
    sim.is("legacy", "2");
    let port = sim.daemon.wait_for("/v1/ports/p0", |port| {
        condition(port, "Offloaded")["reason"] == "LegacyMode"
            && condition(port, "Programmed")["status"] == "True"
    });
    port.expect("set");
    assert_eq!(sim.vf(0)["address"], MACS[0]);
    assert_eq!(sim.vf(0)["vlan_list"][0]["vlan"], 100);
}

#[test]
fn a_step_that_the_kernel_refuses_puts_everything_back() {
    let sim = Sim::new(2, MANAGED);
    sim.port(0, json!({}));
    // netdevsim has four VFs at most.
    let answer = sim.put("?force=true", json!({"mode": "switchdev", "num_vfs": 9}));
    assert_eq!(answer.status, 202);
    let message = sim.settled("False");
    assert!(message.contains("write 9 to sriov_numvfs"), "{message}");
    sim.is("legacy", "2");
    sim.daemon.wait_for_condition("/v1/ports/p0", "Programmed", "True").expect("as before");
    assert_eq!(sim.vf(0)["address"], MACS[0]);
}

#[test]
fn a_mode_that_somebody_else_changed_is_changed_back_while_nobody_uses_the_vfs() {
    let sim = Sim::new(2, MANAGED);
    assert_eq!(sim.put("", json!({"mode": "switchdev"})).status, 202);
    sim.settled("True");
    let legacy = ["dev", "eswitch", "set", &sim.device.handle(), "mode", "legacy"];
    net::command("devlink", legacy).expect("changed");
    net::wait_for("switchdev mode again", daemon::PATIENCE, || {
        (sim.shape() == ("switchdev".into(), "2".into())).then_some(())
    })
    .expect("changed back");
    sim.settled("True");
    sim.port(0, json!({}));
    net::command("devlink", legacy).expect("changed");
    let adapter = sim
        .daemon
        .wait_for(&sim.adapter(), |adapter| condition(adapter, "Eswitch")["reason"] == "Drifted");
    let adapter = adapter.expect("told");
    let message = condition(&adapter, "Eswitch")["message"].as_str().expect("words").to_owned();
    assert!(message.contains("force=true"), "{message}");
    sim.is("legacy", "2");
}

#[test]
fn a_restored_snapshot_brings_an_eswitch_back_as_far_as_the_configuration_allows() {
    let sim = Sim::new(2, "manage_eswitch = true\nmax_vfs = 3\n");
    assert_eq!(sim.put("", json!({"mode": "switchdev", "num_vfs": 3})).status, 202);
    sim.settled("True");
    let mut snapshot = sim.daemon.get("/v1/snapshot").expect("a snapshot");
    let restore = |snapshot: &Value| {
        let answer = sim.daemon.request("PUT", "/v1/snapshot", Some(snapshot)).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let adapter = sim.device.handle().replacen('/', "-", 1);
    let saved = json!([{"adapter": adapter, "mode": "switchdev", "num_vfs": 3}]);
    assert_eq!(snapshot["eswitches"], saved);
    assert_eq!(sim.put("", json!({"mode": "legacy", "num_vfs": 1})).status, 202);
    sim.settled("True");
    restore(&snapshot);
    net::wait_for("the shape that was saved", daemon::PATIENCE, || {
        (sim.shape() == ("switchdev".into(), "3".into())).then_some(())
    })
    .expect("brought back");
    sim.settled("True");
    snapshot["eswitches"][0]["num_vfs"] = json!(4);
    restore(&snapshot);
    let message = sim.settled("False");
    assert!(message.contains("at most 3"), "{message}");
    sim.is("switchdev", "3");
}

// ---------------------------------------------------------------- killed in the middle

#[test]
fn a_daemon_that_is_killed_on_the_way_goes_on_when_it_starts_again() {
    let mut sim = Sim::new(4, MANAGED);
    sim.port(0, json!({}));
    let mut met: BTreeSet<(String, String)> = BTreeSet::new();
    let middle = |(_, vfs): &(String, String)| vfs == "0";
    let mut rounds = 0_u32;
    // Killed at once, after some time, and as soon as the VFs are gone, until both halves of the
    // way were met: without VFs in the old mode or the new one, and before or after that.
    while rounds < 40 && (rounds < 12 || !met.iter().any(middle)) {
        let wanted = if rounds.is_multiple_of(2) { "switchdev" } else { "legacy" };
        let answer = sim.put("?force=true", json!({ "mode": wanted }));
        assert_eq!(answer.status, 202, "{answer:?}");
        let begun = Instant::now();
        match rounds % 4 {
            0 | 1 => std::thread::sleep(Duration::from_millis(u64::from(rounds) * 3)),
            _ => while sim.vfs() != "0" && begun.elapsed() < Duration::from_millis(500) {},
        }
        sim.daemon.end(Signal::SIGKILL).expect("killed");
        let at = sim.shape();
        println!("round {rounds}, to {wanted}: killed at {at:?}");
        met.insert(at);
        sim.daemon.restart().expect("started again");
        sim.settled("True");
        sim.is(wanted, "4");
        sim.daemon.wait_for_condition("/v1/ports/p0", "Programmed", "True").expect("programmed");
        match wanted {
            "switchdev" => assert!(sim.filters(0) > 5),
            _ => assert_eq!(sim.vf(0)["address"], MACS[0]),
        }
        rounds += 1;
    }
    assert!(met.iter().any(middle), "never killed in the middle: {met:?}");
}

// ---------------------------------------------------------------- under load

#[test]
fn a_mode_round_trip_under_load_refuses_no_call_and_loses_nothing_acknowledged() {
    let sim = Sim::new(4, MANAGED);
    sim.port(0, json!({}));
    sim.port(1, json!({}));
    let adapter = sim.device.handle().replacen('/', "-", 1);
    let spec = |round: u32| {
        json!({
            "function": {"vf": {"adapter": adapter, "index": 1}},
            "attachments": [{"network": "blue"}],
            "macs": [format!("02:00:00:01:{:02x}:{:02x}", round >> 8 & 0xff, round & 0xff)],
        })
    };
    let over = AtomicBool::new(false);
    let (rounds, times) = std::thread::scope(|scope| {
        // A client that changes a port and makes and deletes networks as fast as it is answered.
        let client = scope.spawn(|| {
            let mut round = 0;
            while !over.load(Ordering::Relaxed) {
                sim.daemon.put("/v1/ports/p1", spec(round)).expect("acknowledged");
                let network = format!("/v1/networks/n{}", round % 8);
                if round / 8 % 2 == 0 {
                    let kind = json!({"kind": {"vlan": {"vid": 200 + round % 8}}});
                    sim.daemon.put(&network, kind).expect("acknowledged");
                } else {
                    sim.daemon.delete(&network).expect("acknowledged");
                }
                round += 1;
            }
            round
        });
        let mut times = Vec::new();
        for wanted in ["switchdev", "legacy", "switchdev", "legacy", "switchdev", "legacy"] {
            let begun = Instant::now();
            assert_eq!(sim.put("?force=true", json!({ "mode": wanted })).status, 202);
            sim.settled("True");
            times.push((wanted, begun.elapsed()));
            sim.is(wanted, "4");
        }
        over.store(true, Ordering::Relaxed);
        (client.join().expect("the client"), times)
    });
    println!("{rounds} rounds of changes beside {times:?}");
    assert!(rounds > 10, "that was no load");
    let wanted = spec(rounds - 1);
    for (mode, holds) in [("legacy", true), ("switchdev", false)] {
        if mode == "switchdev" {
            assert_eq!(sim.put("?force=true", json!({ "mode": mode })).status, 202);
            sim.settled("True");
        }
        let programmed = |port: &Value| {
            port["spec"]["macs"] == wanted["macs"]
                && condition(port, "Programmed")["status"] == "True"
        };
        sim.daemon.wait_for("/v1/ports/p1", programmed).expect("what was acknowledged last");
        if holds {
            assert_eq!(sim.vf(1)["address"], wanted["macs"][0]);
            assert_eq!(sim.vf(0)["address"], MACS[0]);
            continue;
        }
        let netdev = sim.device.representor(0).expect("a representor");
        let filters = net::tc_json(&format!("filter show dev {netdev} ingress")).expect("tc");
        let address = wanted["macs"][0].as_str().expect("text");
        assert!(filters.to_string().contains(address), "no way to it from the other port");
    }
}

// ---------------------------------------------------------------- what hardware takes

#[test]
fn an_adapter_in_switchdev_mode_says_what_its_hardware_takes_and_no_probe_is_left() {
    let sim = Sim::new(1, MANAGED);
    assert_eq!(sim.daemon.get(&sim.adapter()).expect("it")["offload"], Value::Null, "legacy");
    assert_eq!(sim.put("", json!({"mode": "switchdev"})).status, 202);
    let adapter = sim.daemon.wait_for(&sim.adapter(), |adapter| adapter["offload"].is_object());
    let offload = adapter.expect("asked")["offload"].clone();
    assert_eq!(offload["profile"], "generic");
    assert_eq!(offload["ceilings"]["actions"], 32);
    let capabilities = offload["capabilities"].as_array().expect("a list");
    assert_eq!(capabilities.len(), 10);
    for capability in capabilities {
        // netdevsim takes whatever it does not read.
        assert_eq!(
            (&capability["available"], &capability["source"]),
            (&json!(true), &json!("probe"))
        );
    }
    let netdev = sim.device.representor(0).expect("a representor");
    let filters = net::tc_json(&format!("filter show dev {netdev} ingress")).expect("tc");
    let chains: BTreeSet<u64> = filters
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|filter| filter["chain"].as_u64())
        .collect();
    assert_eq!(chains, BTreeSet::from([0]), "nothing but the guards");
    // A hook that was read in the middle is read again.
    let clean = |adapter: &Value| adapter["foreign_filters"] == 0;
    sim.daemon.wait_for(&sim.adapter(), clean).expect("nothing of anybody else's");
}

// ---------------------------------------------------------------- rates in switchdev mode

#[test]
fn a_ports_rates_are_kept_by_its_devlink_rate_object_and_taken_back_on_release() {
    let sim = Sim::new(2, MANAGED);
    sim.device.switchdev().expect("switchdev");
    let rates = || {
        let shown = net::devlink_json("port function rate show").expect("devlink");
        let object = |index: u32| shown["rate"][format!("{}/{index}", sim.device.handle())].clone();
        // netdevsim's VF ports begin at 128.
        (object(128), object(129))
    };
    let bare = json!({"type": "leaf"});
    sim.daemon.wait_for(&sim.adapter(), |adapter| adapter["mode"] == "switchdev").expect("seen");
    let port = sim.port(0, json!({"qos": {"tx_max": 500_000_000, "tx_min": 10_000_000}}));
    assert_eq!(condition(&port, "Programmed")["status"], "True", "{port:#}");
    // devlink prints bytes per second.
    let expected = json!({"type": "leaf", "tx_share": 1_250_000, "tx_max": 62_500_000});
    net::wait_for("the rate", daemon::PATIENCE, || {
        (rates() == (expected.clone(), bare.clone())).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", rates()));
    let seen = sim.daemon.wait_for(&sim.adapter(), |adapter| {
        adapter["eswitch"]["rates"][0]
            == json!({"vf": 0, "tx_max": 500_000_000,
                                                 "tx_share": 10_000_000})
    });
    assert_eq!(seen.expect("shown")["eswitch"]["rates"][1]["tx_max"], 0);

    let handle = format!("{}/128", sim.device.handle());
    let set = ["port", "function", "rate", "set", &handle, "tx_max", "70mbit"];
    net::command("devlink", set).expect("changed by somebody else");
    net::wait_for("the rate again", daemon::PATIENCE, || (rates().0 == expected).then_some(()))
        .expect("set again");

    // netdevsim is a link of 5 Gbit/s, and takes no more.
    sim.port(0, json!({"qos": {"tx_max": 50_000_000_000_u64}}));
    let port = sim.daemon.wait_for_condition("/v1/ports/p0", "Programmed", "Partial");
    let port = port.expect("refused");
    let words = condition(&port, "Programmed")["message"].as_str().expect("words").to_owned();
    assert!(words.contains("exceed link maximum speed"), "the kernel's own words: {words}");
    sim.port(0, json!({"qos": {"tx_max": 500_000_000, "tx_min": 10_000_000}}));
    sim.daemon.wait_for_condition("/v1/ports/p0", "Programmed", "True").expect("taken");
    net::wait_for("the rate", daemon::PATIENCE, || (rates().0 == expected).then_some(()))
        .expect("set");
    sim.daemon.delete("/v1/ports/p0").expect("deleted");
    net::wait_for("no rate", daemon::PATIENCE, || {
        (rates() == (bare.clone(), bare.clone())).then_some(())
    })
    .expect("taken back");
}
