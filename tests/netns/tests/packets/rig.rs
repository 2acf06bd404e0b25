//! A host with eswitchd, whose representors are veths and taps, and the ends behind them.
//!
//! In: a topology. Out: the daemon with it programmed, and its ends. What is expected is not said
//! here but for the reference's view of the same topology.

use std::{collections::BTreeMap, path::Path};

use controller::config::UplinkUse;
use eswitchd_netns_tests::{
    PATIENCE,
    ends::{Arrival, Ends},
    frames,
};
use lab::{
    daemon::Daemon,
    net::{self, Netns},
};
use serde_json::json;
use tc_flows::Frame;
use tempfile::TempDir;

use crate::{
    Seen, Sent,
    reference::{Fate, Member, Reference, Uplink},
    topology::{HOST, Topology, UPLINK_MAC, WIRE, macs_of, port_id},
};

/// How many frames are under way at most, copies not counted.
const BURST: usize = 64;

/// A host.
pub(crate) struct Rig {
    pub(crate) ends: Run,
    pub(crate) daemon: Daemon,
    _folder: TempDir,
}

/// Runs `ip`, `bridge` or `tc` with many lines at once.
pub(crate) fn batch(program: &str, folder: &Path, lines: &[String]) {
    let path = folder.join("batch");
    std::fs::write(&path, lines.join("\n")).unwrap();
    net::command(program, ["-batch", &path.to_string_lossy()]).unwrap();
}

impl Rig {
    /// The topology, programmed; these ports have taps, the others veths.
    pub(crate) fn new(topology: &Topology, taps: &[u32]) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let room = Netns::named("guests").unwrap();
        quiet(&room);
        let mut lines = Vec::new();
        let mut links = vec![(WIRE, "wire".to_owned()), (HOST, "farhost".to_owned())];
        for (ours, theirs) in [("up0", "wire"), ("host0", "farhost")] {
            lines.push(format!("link add {ours} type veth peer name {theirs} netns guests"));
        }
        lines.push(format!("link set up0 address {UPLINK_MAC}"));
        for port in 1..=topology.ports {
            if taps.contains(&port) {
                lines.push(format!("tuntap add dev rep{port} mode tap"));
                continue;
            }
            links.push((port, format!("vm{port}")));
            lines.push(format!("link add rep{port} type veth peer name vm{port} netns guests"));
        }
        // What reaches the host reaches a bridge that floods it to one more pair.
        lines.push("link add hostbr type bridge mcast_snooping 0".to_owned());
        for link in ["hostbr", "host0", "up0"] {
            lines.push(format!("link set {link} addrgenmode none up"));
        }
        for link in ["up0", "host0"] {
            lines.push(format!("link set {link} master hostbr"));
            lines.push(format!("link set {link} type bridge_slave learning off"));
        }
        batch("ip", folder.path(), &lines);
        up(&room, folder.path(), &links);
        let uplink_use = match topology.uplink_use {
            UplinkUse::Shared => "shared",
            UplinkUse::Exclusive => "exclusive",
        };
        let configuration = format!(
            "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"rep*\"]\n\
             uplink_use = \"{uplink_use}\"\n"
        );
        let daemon = Daemon::start(folder.path(), &configuration).unwrap();
        let taps: Vec<(u32, String)> =
            taps.iter().map(|port| (*port, format!("rep{port}"))).collect();
        let ends = Run { ends: Ends::of(&room, &links, &taps, folder.path()) };
        let networks = topology.intent.networks.iter();
        let networks = networks.map(|(id, n)| json!({"id": id, "spec": n.spec}));
        let networks: Vec<_> = networks.collect();
        let ports = topology.intent.ports.iter().map(|(id, p)| json!({"id": id, "spec": p.spec}));
        let ports: Vec<_> = ports.collect();
        // Networks take their numbers in this order.
        let all = json!({"networks": networks, "ports": ports});
        let rig = Rig { ends, daemon, _folder: folder };
        rig.apply(&all);
        rig
    }

    /// Changes what is wanted, and waits until the kernel has it.
    pub(crate) fn apply(&self, batch: &serde_json::Value) {
        let answer = self
            .daemon
            .request("POST", "/v1/apply?wait=programmed&timeout=25", Some(batch))
            .unwrap();
        assert_eq!(answer.status, 200, "{:#}", answer.body);
    }

    /// The reference's view of a topology.
    pub(crate) fn reference<'a>(&self, topology: &'a Topology) -> Reference<'a> {
        let members = (1..=topology.ports).map(|port| {
            let macs = macs_of(topology.spec(port));
            (port_id(port), Member { interface: port, macs, groups: None })
        });
        let uplink = Uplink { interface: WIRE, mac: UPLINK_MAC, is_for: topology.uplink_use };
        Reference::new(&topology.intent, members.collect(), uplink)
    }
}

impl Reference<'_> {
    /// What becomes of a frame that comes in at an end.
    pub(crate) fn fate(&self, end: u32, frame: &Frame) -> Fate {
        match end {
            WIRE => self.fate_from_uplink(frame),
            port => self.fate_from_port(&port_id(port), frame),
        }
    }
}

/// No frame but ours, and room for many at once.
pub(crate) fn quiet(room: &Netns) {
    room.run(|| {
        for links in ["all", "default"] {
            // Only where the kernel has IPv6.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{links}/disable_ipv6"), "1");
        }
    })
    .unwrap();
}

/// Brings the ends up.
pub(crate) fn up(room: &Netns, folder: &Path, links: &[(u32, String)]) {
    let lines: Vec<String> =
        links.iter().map(|(_, link)| format!("link set {link} addrgenmode none up")).collect();
    room.run(|| batch("ip", folder, &lines)).unwrap();
}

/// Ends, and how frames are run through them.
pub(crate) struct Run {
    pub(crate) ends: Ends,
}

impl Run {
    /// Sends all, numbered from 1, and gives what came out, when all that is expected has come or
    /// does not come any more.
    pub(crate) fn all(&self, sent: &[Sent], expected: &Seen) -> BTreeMap<u32, Vec<Arrival>> {
        self.ends.take();
        let mut awaited = 0;
        for (number, Sent { from, frame, .. }) in (1..).zip(sent) {
            self.ends.send(*from, &frames::bytes(frame, number));
            awaited += expected.get(&number).map_or(0, Vec::len);
            if (number as usize).is_multiple_of(BURST) {
                // What is missing is told at the end, and not waited for each time.
                self.ends.wait_for_count(awaited, std::time::Duration::from_millis(200));
            }
        }
        self.ends.wait_for_count(awaited, PATIENCE / 10);
        // What must not come may be late.
        std::thread::sleep(std::time::Duration::from_millis(300));
        self.ends.take()
    }
}

/// Where copies came out, and with which tags.
pub(crate) fn show(copies: &[(u32, Vec<u8>)]) -> String {
    let show = |(end, bytes): &(u32, Vec<u8>)| {
        let mut tags = String::new();
        let mut at = 12;
        while matches!(bytes[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
            let vid = u16::from_be_bytes([bytes[at + 2] & 0xf, bytes[at + 3]]);
            let kind = if bytes[at] == 0x81 { "" } else { "ad" };
            tags.push_str(&format!(" {kind}{vid}"));
            at += 4;
        }
        format!("{end}{tags}")
    };
    format!("[{}]", copies.iter().map(show).collect::<Vec<_>>().join(", "))
}
