//! Promiscuous mode from tcpdump in a real guest to the frames that it receives, and back.
//!
//! One guest with two VFs on taps: one whose port allows the mode, one whose port does not. Frames
//! to an address that nobody has come from another port and from the uplink. What the kernel holds
//! is read with `tc`; what arrives is read in the guest, and on the taps.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use eswitchd_e2e_tests::{DEADLINE, create_vfs};
use lab::{
    daemon::{Daemon, condition},
    guest::{Backing, Guest},
    net::{self, Netns, frame, send_frame},
};
use serde_json::{Value, json};

const SENDER: &str = "02:bb:00:00:00:01";
const OUTSIDE: &str = "02:dd:00:00:00:01";
const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";

/// For experiments (IEEE 802): nobody else sends it.
const ETHERTYPE: u16 = 0x88b5;

/// A guest with tcpdump on both of its VFs, `eth1` on the tap `vm-a` and `eth2` on `vm-d`.
struct Listener {
    guest: Guest,
}

impl Listener {
    fn new(daemon: &Daemon) -> Listener {
        let guest = Guest::named("c")
            .vf(0, Backing::Tap("vm-a".into()))
            .vf(1, Backing::Tap("vm-d".into()))
            .qmp_socket(daemon.qmp_dir().join("c.sock"))
            .with_programs()
            .start()
            .expect("a guest");
        create_vfs(&guest, 2);
        guest
            .run(
                "ip link set eth1 address 02:aa:00:00:00:01; ip link set eth1 up\n\
                 ip link set eth2 address 02:aa:00:00:00:02; ip link set eth2 up",
            )
            .expect("links");
        Listener { guest }
    }

    fn listen(&self) {
        let options = format!("-e -n -l ether proto {ETHERTYPE:#x}");
        for link in ["eth1", "eth2"] {
            let tcpdump = format!("/usr/bin/tcpdump -i {link} {options}");
            self.guest
                .run(&format!("setsid {tcpdump} > /tmp/{link} 2> /tmp/{link}.log &"))
                .expect("tcpdump");
            net::wait_for("tcpdump to listen", DEADLINE, || {
                let said = self.guest.run(&format!("cat /tmp/{link}.log")).ok()?;
                said.contains("listening").then_some(())
            })
            .expect("it listens");
        }
    }

    /// Whether tcpdump on this link has told of a frame to this address.
    fn heard(&self, link: &str, to: &str) -> bool {
        let told = self.guest.run(&format!("cat /tmp/{link}")).expect("what tcpdump has told");
        told.lines().any(|line| line.contains(&format!("> {to},")))
    }

    fn until_heard(&self, link: &str, to: &str) {
        net::wait_for(to, DEADLINE, || self.heard(link, to).then_some(()))
            .unwrap_or_else(|error| panic!("{link}: {error}"));
    }
}

/// The first frame of ours that goes out to a guest from now on, as tcpdump on its tap tells of it.
struct First(Child);

impl First {
    fn to(tap: &str) -> First {
        let mut tcpdump = Command::new("tcpdump")
            .args(["-i", tap, "-Q", "out", "-c", "1", "-e", "-n", "-l"])
            .arg(format!("ether proto {ETHERTYPE:#x}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump");
        let said = BufReader::new(tcpdump.stderr.take().expect("piped"));
        let mut lines = said.lines().map_while(io::Result::ok);
        assert!(lines.any(|line| line.contains("listening on")), "tcpdump does not listen");
        First(tcpdump)
    }

    fn told(mut self) -> String {
        net::wait_for("a frame to the guest", DEADLINE, || self.0.try_wait().ok().flatten())
            .expect("a frame");
        io::read_to_string(self.0.stdout.take().expect("piped")).expect("text")
    }
}

impl Drop for First {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// To which netdevs frames from a netdev go whose destination nobody has.
fn unknown_goes_to(netdev: &str) -> BTreeSet<String> {
    let all = net::tc_json(&format!("filter show dev {netdev} ingress")).expect("tc");
    let all = all.as_array().cloned().unwrap_or_default();
    let of_network = all.iter().filter(|filter| {
        filter["chain"].as_u64() > Some(0) && filter["options"]["keys"] == json!({})
    });
    of_network
        .flat_map(|filter| filter["options"]["actions"].as_array().cloned().unwrap_or_default())
        .filter_map(|action| Some(action["to_dev"].as_str()?.to_owned()))
        .collect()
}

/// Waits until what another port and what the uplink sends to unknown addresses goes there.
fn until_unknown_goes_to(from_port: &[&str], from_uplink: &[&str]) {
    let expected =
        [from_port, from_uplink].map(|to| to.iter().map(|to| (*to).to_owned()).collect());
    let found = || ["vm-b", "up0"].map(unknown_goes_to);
    net::wait_for("the flows", DEADLINE, || (found() == expected).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {:?}, not {expected:?}", found()));
}

fn sent_to(to: &str, from: &str) -> Vec<u8> {
    frame(to, from, &[], ETHERTYPE, b"eswitchd")
}

#[test]
fn tcpdump_receives_what_is_sent_to_unknown_addresses_where_the_port_allows_it_and_while_it_runs() {
    let _netns = Netns::enter().expect("a namespace");
    for (ours, theirs) in [("vm-b", "far"), ("up0", "wire")] {
        net::ip(&format!("link add {ours} type veth peer name {theirs}")).expect("veth");
        for link in [ours, theirs] {
            net::ip(&format!("link set {link} addrgenmode none up")).expect("up");
        }
    }
    for tap in ["vm-a", "vm-d"] {
        net::ip(&format!("tuntap add dev {tap} mode tap")).expect("tap");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let configuration =
        "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"vm-*\"]\n";
    let daemon = Daemon::start(folder.path(), configuration).expect("eswitchd");
    daemon.put_pair(json!("flat"), "vm-b", ("c", "vf0")).expect("a network and ports");
    for (port, device, promiscuous) in [("a", "vf0", "allow"), ("d", "vf1", "deny")] {
        let spec = json!({
            "function": {"guest_vf": {"guest": "c", "device": device}},
            "attachments": [{"network": "blue"}],
            "guest_macs": {"max": 1, "allow": ["02:aa"]},
            "promiscuous": promiscuous,
        });
        daemon.put(&format!("/v1/ports/{port}"), spec).expect("a port");
    }
    let listener = Listener::new(&daemon);
    for port in ["/v1/ports/a", "/v1/ports/d"] {
        let seen = daemon.wait_for_condition(port, "Programmed", "True").expect("programmed");
        assert_eq!(seen["status"]["promiscuous"], false, "nobody has asked: {seen:#}");
    }
    until_unknown_goes_to(&["up0"], &[]);

    listener.listen();
    until_unknown_goes_to(&["vm-a", "up0"], &["vm-a"]);
    let is_promiscuous = |port: &Value| port["status"]["promiscuous"] == true;
    daemon.wait_for("/v1/ports/a", is_promiscuous).expect("promiscuous");
    let refused = daemon.wait_for_condition("/v1/ports/d", "Quarantined", "True").expect("refused");
    assert_eq!(condition(&refused, "Quarantined")["reason"], "PromiscuousRefused");
    assert_eq!(refused["status"]["promiscuous"], false);

    let denied = First::to("vm-d");
    let unknown = [("far", SENDER, "02:cc:00:00:00:01"), ("wire", OUTSIDE, "02:cc:00:00:00:02")];
    for (link, from, to) in unknown {
        send_frame(link, &sent_to(to, from)).expect("sent");
        listener.until_heard("eth1", to);
    }
    send_frame("far", &sent_to(BROADCAST, SENDER)).expect("sent");
    for link in ["eth1", "eth2"] {
        listener.until_heard(link, BROADCAST);
    }
    for (_, _, to) in unknown {
        assert!(!listener.heard("eth2", to), "{to} reached the guest that may not have it");
    }
    let told = denied.told();
    assert!(told.contains(&format!("> {BROADCAST}")), "before the broadcast came {told}");

    listener.guest.run("killall tcpdump").expect("ended");
    until_unknown_goes_to(&["up0"], &[]);
    daemon.wait_for("/v1/ports/a", |port| !is_promiscuous(port)).expect("no longer");
    daemon.wait_for_condition("/v1/ports/d", "Quarantined", "False").expect("nothing to refuse");
    let after = First::to("vm-a");
    for to in ["02:cc:00:00:00:03", BROADCAST] {
        send_frame("far", &sent_to(to, SENDER)).expect("sent");
    }
    let told = after.told();
    assert!(told.contains(&format!("> {BROADCAST}")), "before the broadcast came {told}");
}
