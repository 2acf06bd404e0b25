//! One list of features, tried on every kind of adapter: netdevsim in both modes, veths, taps and
//! an igb. Prints which was seen to hold where, and where one does not apply, why.
//!
//! What is held is read with iproute2's tools, never from the daemon. A kind of adapter that is
//! missing fails.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use eswitchd_netns_tests::igb::{IGB, Igb, reaches};
use lab::{
    daemon::{self, Daemon, condition},
    net::{self, Netdevsim, Netns},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
const OTHER: &str = "02:00:00:00:00:77";

/// Addresses of the two ports where frames can be sent, and their namespaces.
const ADDRESSES: [&str; 2] = ["10.0.2.21", "10.0.2.22"];
const ROOMS: [&str; 2] = ["matrix-a", "matrix-b"];

/// How an adapter switches.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Means {
    /// By flows on these netdevs, those of the two ports first.
    Flows(Vec<String>),
    /// By the settings of this PF's VFs.
    VfSettings(String),
}

/// An adapter with a daemon and two ports, `p0` and `p1`, in the network `blue`.
struct Adapter {
    daemon: Daemon,
    means: Means,
    /// The `function` of each port.
    functions: [Value; 2],
    /// Why nothing carries frames, where nothing does.
    mute: Option<&'static str>,
    /// What stands for the ports' guests.
    rooms: Vec<Netns>,
    igb: Option<Igb>,
    device: Option<Netdevsim>,
    _folder: TempDir,
    netns: Option<Netns>,
}

impl Drop for Adapter {
    fn drop(&mut self) {
        for room in ROOMS {
            // Most have none.
            let _ = net::ip(&format!("netns del {room}"));
        }
    }
}

impl Adapter {
    fn port(&self, number: usize, change: Value) {
        let mut spec = json!({
            "function": self.functions[number],
            "attachments": [{"network": "blue"}],
            "macs": [MACS[number]],
        });
        let fields = spec.as_object_mut().expect("an object");
        fields.extend(change.as_object().expect("an object").clone());
        self.daemon.put(&format!("/v1/ports/p{number}"), spec).expect("a port");
    }

    fn programmed(&self) {
        for port in ["/v1/ports/p0", "/v1/ports/p1"] {
            self.daemon.wait_for_condition(port, "Programmed", "True").expect("programmed");
        }
    }

    /// What the kernel holds for each port, in words that are alike while the same is held.
    fn held(&self) -> [String; 2] {
        match &self.means {
            Means::Flows(netdevs) => [0, 1].map(|port| {
                let netdev = &netdevs[port];
                let shown = net::tc_json(&format!("filter show dev {netdev} ingress"));
                let shown = shown.expect("tc");
                let filters = shown.as_array().expect("a list").iter();
                let filters = filters.filter(|filter| filter["options"].is_object());
                let mut lines: Vec<String> = filters
                    .map(|filter| {
                        let options = &filter["options"];
                        let actions = options["actions"].as_array().expect("actions").iter();
                        let actions = actions.map(|action| {
                            let mut action = action.clone();
                            for own in [
                                "index",
                                "ref",
                                "bind",
                                "installed",
                                "first_used",
                                "last_used",
                                "stats",
                            ] {
                                action.as_object_mut().expect("an object").remove(own);
                            }
                            action.to_string()
                        });
                        let actions: Vec<String> = actions.collect();
                        format!(
                            "{} {} {} {actions:?}",
                            filter["chain"], filter["pref"], options["keys"]
                        )
                    })
                    .collect();
                lines.sort();
                lines.join("\n")
            }),
            Means::VfSettings(pf) => {
                let link = net::ip_json(&format!("link show {pf}")).expect("ip");
                [0, 1].map(|vf: usize| link[0]["vfinfo_list"][vf].to_string())
            }
        }
    }

    /// Waits until what is held for a port fits.
    #[track_caller]
    fn comes_to_hold(&self, what: &str, fits: impl Fn(&[String; 2]) -> bool) {
        net::wait_for(what, daemon::PATIENCE, || fits(&self.held()).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {:#?}\n{}", self.held(), self.daemon.log()));
    }

    /// How much the daemon repaired of what others did.
    fn repaired(&self) -> u64 {
        let metrics = self.daemon.get("/metrics").expect("metrics");
        let lines = metrics.as_str().expect("text").lines();
        let ours = lines.filter(|line| line.starts_with("eswitchd_drift_repaired_total{"));
        ours.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }
}

// ---------------------------------------------------------------- kinds

fn start(
    configuration: &str,
    means: Means,
    functions: [Value; 2],
    mute: Option<&'static str>,
) -> Adapter {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path(), configuration).expect("eswitchd");
    for (id, vid) in [("blue", 100), ("red", 200)] {
        let kind = json!({"kind": {"vlan": {"vid": vid}}});
        daemon.put(&format!("/v1/networks/{id}"), kind).expect("a network");
    }
    let adapter = Adapter {
        daemon,
        means,
        functions,
        mute,
        rooms: Vec::new(),
        igb: None,
        device: None,
        _folder: folder,
        netns: None,
    };
    for port in [0, 1] {
        adapter.port(port, json!({}));
    }
    adapter
}

fn vfs_of(handle: &str) -> [Value; 2] {
    let adapter = handle.replacen('/', "-", 1);
    [0, 1].map(|index| json!({"vf": {"adapter": adapter, "index": index}}))
}

fn netdevsim(switchdev: bool) -> Adapter {
    let netns = Netns::enter().expect("a namespace");
    net::modprobe("netdevsim").expect("netdevsim");
    let device = Netdevsim::create(1).expect("a device");
    device.set_vfs(2).expect("VFs");
    let means = if switchdev {
        device.switchdev().expect("switchdev");
        Means::Flows([0, 1].map(|vf| device.representor(vf).expect("a representor")).into())
    } else {
        Means::VfSettings(device.uplink().expect("the PF's netdev"))
    };
    let configuration = format!("\n[[adapter]]\nhandle = \"{}\"\n", device.handle());
    let mute = Some("netdevsim carries no frames");
    let mut adapter = start(&configuration, means, vfs_of(&device.handle()), mute);
    (adapter.device, adapter.netns) = (Some(device), Some(netns));
    adapter
}

/// A software adapter whose representors are made by `make`.
fn software(make: impl Fn(usize) -> Option<Netns>, mute: Option<&'static str>) -> Adapter {
    let netns = Netns::enter().expect("a namespace");
    net::ip("link add up0 up type dummy").expect("an uplink");
    let rooms = [0, 1].into_iter().filter_map(make).collect();
    let configuration =
        "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"rep*\"]\n";
    let netdevs = ["rep0", "rep1"].map(str::to_owned);
    let functions = [0, 1].map(
        |port: usize| json!({"netdev": {"adapter": "soft-lab", "name": format!("rep{port}")}}),
    );
    let mut adapter = start(configuration, Means::Flows(netdevs.into()), functions, mute);
    (adapter.rooms, adapter.netns) = (rooms, Some(netns));
    adapter
}

fn veths() -> Adapter {
    let make = |port: usize| {
        let room = Netns::named(ROOMS[port]).expect("a room");
        for command in [
            format!("link add rep{port} type veth peer name vm netns {}", ROOMS[port]),
            format!("-n {} link set vm addrgenmode none address {} up", ROOMS[port], MACS[port]),
            format!("-n {} addr add {}/24 dev vm", ROOMS[port], ADDRESSES[port]),
        ] {
            net::ip(&command).expect(&command);
        }
        Some(room)
    };
    software(make, None)
}

fn taps() -> Adapter {
    let make = |port: usize| {
        net::ip(&format!("tuntap add rep{port} mode tap")).expect("a tap");
        None
    };
    software(make, Some("nobody holds these taps; tests/e2e has guests on some"))
}

fn igb() -> Adapter {
    let igb = Igb::with_vfs(2);
    let handle = format!("pci/{IGB}");
    let configuration = format!("\n[[adapter]]\nhandle = \"{handle}\"\n");
    let means = Means::VfSettings(igb.pf());
    let mut adapter = start(&configuration, means, vfs_of(&handle), None);
    adapter.programmed();
    adapter.rooms =
        [0, 1].map(|port| igb.room(ROOMS[port], port, MACS[port], 21 + port as u8)).into();
    adapter.igb = Some(igb);
    adapter
}

// ---------------------------------------------------------------- features

/// What was seen to hold, or why it does not apply.
type Seen = Result<(), &'static str>;

type Feature = (&'static str, fn(&mut Adapter) -> Seen);

type Kind = (&'static str, fn() -> Adapter);

const FEATURES: [Feature; 11] = [
    ("ports are programmed", |adapter| {
        adapter.programmed();
        adapter.comes_to_hold("each its own address", |held| {
            [0, 1].iter().all(|port| held[*port].contains(MACS[*port]))
        });
        Ok(())
    }),
    ("a restart changes nothing", |adapter| ended_and_started(adapter, Signal::SIGTERM)),
    ("nor does being killed", |adapter| ended_and_started(adapter, Signal::SIGKILL)),
    ("another address", |adapter| {
        let before = adapter.held();
        adapter.port(0, json!({"macs": [OTHER]}));
        adapter.comes_to_hold("the new address", |held| {
            held[0].contains(OTHER) && !held[0].contains(MACS[0])
        });
        adapter.port(0, json!({}));
        adapter.comes_to_hold("the first again", |held| *held == before);
        Ok(())
    }),
    ("another network", |adapter| {
        let before = adapter.held();
        adapter.port(0, json!({"attachments": [{"network": "red"}]}));
        adapter.comes_to_hold("the other's tag", |held| match &adapter.means {
            Means::Flows(_) => held[0].contains("200") && !held[1].contains(MACS[0]),
            Means::VfSettings(_) => held[0].contains("200") && !held[0].contains("100"),
        });
        adapter.port(0, json!({}));
        adapter.comes_to_hold("as before", |held| *held == before);
        Ok(())
    }),
    ("admin down", |adapter| {
        let before = adapter.held();
        adapter.port(0, json!({"admin_state": "down"}));
        match &adapter.means {
            Means::Flows(_) => adapter.comes_to_hold("nothing of the port", |held| {
                held.iter().all(|held| !held.contains(MACS[0]))
            }),
            // QEMU's igb has no link state of VFs: the port says so.
            Means::VfSettings(_) if adapter.igb.is_some() => {
                let said = |port: &Value| {
                    let programmed = condition(port, "Programmed");
                    programmed["status"] == "False" && programmed["message"] != ""
                };
                adapter.daemon.wait_for("/v1/ports/p0", said).expect("told");
            }
            Means::VfSettings(_) => {
                adapter.comes_to_hold("no link", |held| held[0].contains("\"disable\""));
            }
        }
        adapter.port(0, json!({}));
        adapter.comes_to_hold("as before", |held| *held == before);
        Ok(())
    }),
    ("one address, two ports", |adapter| {
        let before = adapter.held();
        adapter.port(1, json!({"macs": [MACS[0]]}));
        adapter.daemon.wait_for_condition("/v1/ports/p1", "Conflict", "True").expect("told");
        match &adapter.means {
            Means::Flows(_) => adapter.comes_to_hold("no way for the second", |held| {
                !held[1].contains(&format!("\"src_mac\":\"{}\"", MACS[0]))
            }),
            Means::VfSettings(_) => adapter.comes_to_hold("no address for the second", |held| {
                held[0] == before[0] && !held[1].contains(MACS[0])
            }),
        }
        adapter.port(1, json!({}));
        adapter.comes_to_hold("as before", |held| *held == before);
        Ok(())
    }),
    ("what others change is repaired", |adapter| {
        adapter.programmed();
        let before = adapter.held();
        let repaired = adapter.repaired();
        match &adapter.means {
            Means::Flows(netdevs) => {
                net::tc(&format!("filter del dev {} ingress", netdevs[0])).expect("deleted");
            }
            Means::VfSettings(pf) => {
                net::ip(&format!("link set {pf} vf 0 mac {OTHER}")).expect("changed");
            }
        }
        net::wait_for("a repair", daemon::PATIENCE, || {
            (adapter.repaired() > repaired).then_some(())
        })
        .expect("counted");
        adapter.comes_to_hold("as before", |held| *held == before);
        Ok(())
    }),
    ("frames within a network, none beyond", |adapter| {
        if let Some(why) = adapter.mute {
            return Err(why);
        }
        let before = adapter.held();
        let [to, _] = ADDRESSES;
        let arrives = || reaches(ROOMS[1], to);
        net::wait_for("an answer", daemon::PATIENCE, || arrives().then_some(())).expect("frames");
        adapter.port(0, json!({"attachments": [{"network": "red"}]}));
        adapter.programmed();
        net::wait_for("no answer", daemon::PATIENCE, || (!arrives()).then_some(())).expect("none");
        assert!(!arrives(), "nor later");
        adapter.port(0, json!({}));
        net::wait_for("an answer", daemon::PATIENCE, || arrives().then_some(())).expect("again");
        adapter.comes_to_hold("as before", |held| *held == before);
        Ok(())
    }),
    ("teardown and resume", |adapter| {
        if matches!(adapter.means, Means::VfSettings(_)) {
            return Err("it takes flows away, not VF settings");
        }
        let before = adapter.held();
        adapter.daemon.request("POST", "/v1/teardown", None).expect("torn down");
        adapter.comes_to_hold("nothing", |held| held.iter().all(String::is_empty));
        adapter.daemon.request("POST", "/v1/resume", None).expect("resumed");
        adapter.comes_to_hold("as before", |held| *held == before);
        Ok(())
    }),
    ("a port goes", |adapter| {
        adapter.daemon.delete("/v1/ports/p0").expect("deleted");
        adapter.comes_to_hold("nothing of it", |held| {
            held.iter().all(|held| !held.contains(MACS[0])) && held[1].contains(MACS[1])
        });
        Ok(())
    }),
];

fn ended_and_started(adapter: &mut Adapter, signal: Signal) -> Seen {
    adapter.programmed();
    let before = adapter.held();
    adapter.daemon.end(signal).expect("ended");
    adapter.daemon.restart().expect("started again");
    adapter.programmed();
    assert_eq!(adapter.held(), before);
    let metrics = adapter.daemon.get("/metrics").expect("metrics");
    let written: f64 = metrics
        .as_str()
        .expect("text")
        .lines()
        .filter(|line| {
            ["flow_add", "flow_replace", "flow_delete"].iter().any(|operation| {
                line.starts_with("eswitchd_kernel_operations_total") && line.contains(operation)
            })
        })
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum();
    assert_eq!(written, 0.0, "flows changed");
    Ok(())
}

#[test]
fn every_feature_holds_on_every_kind_of_adapter_where_it_applies() {
    let kinds: [Kind; 5] = [
        ("netdevsim, switchdev", || netdevsim(true)),
        ("netdevsim, legacy", || netdevsim(false)),
        ("veths", veths),
        ("taps", taps),
        ("igb, legacy", igb),
    ];
    let columns: Vec<Vec<String>> = kinds
        .into_iter()
        .map(|(kind, make)| {
            // Each in a namespace of its own, which belongs to a thread.
            let column = std::thread::spawn(move || {
                let mut adapter = make();
                FEATURES.map(|(feature, seen)| {
                    let began = Instant::now();
                    let seen = catch_unwind(AssertUnwindSafe(|| seen(&mut adapter)));
                    let cell = match &seen {
                        Ok(Ok(())) => format!("yes, {} ms", began.elapsed().as_millis()),
                        Ok(Err(why)) => format!("does not apply: {why}"),
                        Err(_) => "FAILED".to_owned(),
                    };
                    println!("{kind}: {feature}: {cell}");
                    cell
                })
            });
            column.join().map_or_else(|_| vec!["FAILED".to_owned()], Vec::from)
        })
        .collect();
    for ((kind, _), column) in kinds.iter().zip(&columns) {
        println!("\n{kind}");
        for ((feature, _), cell) in FEATURES.iter().zip(column) {
            println!("    {feature:<40} {cell}");
        }
    }
    assert!(columns.iter().flatten().all(|cell| cell != "FAILED"), "see the matrix");
}
