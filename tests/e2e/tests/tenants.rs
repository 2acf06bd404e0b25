//! Two tenants with everything alike, on distinct provider VLANs of one uplink: the guests' tags, the
//! addresses of their VFs, the addresses of the containers in them. Each reaches its own, and nothing
//! of it is ever seen at the other's.
//!
//! What is seen where is captured with tcpdump. Each tenant asks for an address by which its
//! frames are known.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use eswitchd_e2e_tests::{DEADLINE, create_vfs};
use lab::{
    daemon::Daemon,
    guest::{Backing, Guest},
    net::{self, Capture, Netns},
};
use serde_json::json;

/// A tenant with its name, its guest, and the VLANs of its two networks on the uplink.
struct Tenant {
    name: &'static str,
    guest: &'static str,
    vlans: [u16; 2],
    /// What only this tenant asks for, in the last byte.
    asks: u8,
}

static TENANTS: [Tenant; 2] = [
    Tenant { name: "red", guest: "a", vlans: [110, 120], asks: 101 },
    Tenant { name: "blue", guest: "b", vlans: [210, 220], asks: 102 },
];

/// The tags in a guest, one for each of its containers.
const TAGS: [u16; 2] = [10, 20];

/// What is sent over TCP.
const KIBIBYTES: usize = 32;

/// For a command in a guest that is emulated inside an emulation.
const LIMIT: Duration = Duration::from_secs(120);

impl Tenant {
    /// A room for each of its networks: `near` is a neighbour on this host, `far` is behind the
    /// uplink. Both tenants' have the same addresses.
    fn make_rooms(&'static self) -> Vec<Room> {
        let ip = |command: String| net::ip(&command).expect("links");
        let mut rooms = Vec::new();
        for (tag, vlan) in TAGS.into_iter().zip(self.vlans) {
            for (place, last) in [("near", 8), ("far", 9)] {
                let name = format!("{}-{place}-{tag}", self.name);
                let netns = Netns::named(&name).expect("a namespace");
                if place == "near" {
                    let link = format!("vm-{}-{tag}", self.name);
                    ip(format!("link add {link} type veth peer name e0 netns {name}"));
                } else {
                    ip(format!("link add link wire name wire.{vlan} type vlan id {vlan}"));
                    ip(format!("link set wire.{vlan} netns {name} name e0"));
                }
                ip(format!(
                    "-n {name} link set e0 addrgenmode none address 02:bb:00:00:00:0{last}"
                ));
                ip(format!("-n {name} addr add 10.77.{tag}.{last}/24 dev e0"));
                ip(format!("-n {name} link set e0 up"));
                let capture = netns.run(|| Capture::start("e0")).expect("a thread");
                let capture = capture.expect("a capture");
                rooms.push(Room { tenant: self, tag, name, capture });
            }
        }
        rooms
    }

    /// Its networks, and its ports: the trunk of the guest, and the neighbours.
    fn declare(&self, daemon: &Daemon) {
        let name = self.name;
        let network = |tag: u16| format!("{name}-{tag}");
        for (tag, vid) in TAGS.into_iter().zip(self.vlans) {
            let kind = json!({"kind": {"vlan": {"vid": vid}}});
            daemon.put(&format!("/v1/networks/{}", network(tag)), kind).expect("a network");
            let spec = json!({
                "function": {"netdev": {"adapter": "soft-lab", "name": format!("vm-{name}-{tag}")}},
                "attachments": [{"network": network(tag)}],
                "macs": ["02:bb:00:00:00:08"],
            });
            daemon.put(&format!("/v1/ports/{name}-{tag}"), spec).expect("a port");
        }
        let spec = json!({
            "function": {"guest_vf": {"guest": self.guest, "device": "vf0"}},
            "attachments": TAGS.map(|tag| json!({"network": network(tag), "tag": tag})),
            "guest_macs": {"max": 1, "allow": ["02:aa"]},
        });
        daemon.put(&format!("/v1/ports/{name}"), spec).expect("a port");
    }

    fn start(&self, daemon: &Daemon) -> Guest {
        let tap = format!("vm-{}", self.name);
        net::ip(&format!("tuntap add dev {tap} mode tap")).expect("a tap");
        let guest = Guest::named(self.guest)
            .vf(0, Backing::Tap(tap))
            .qmp_socket(daemon.qmp_dir().join(format!("{}.sock", self.guest)))
            .start()
            .expect("a guest");
        create_vfs(&guest, 1);
        guest.run("ip link set eth1 address 02:aa:00:00:00:01; ip link set eth1 up").expect("a VF");
        for tag in TAGS {
            guest
                .run(&format!(
                    "unshare -n sleep 1000000 < /dev/null > /dev/null 2>&1 &\n\
                     echo $! > /run/container{tag}; sleep 1; set -e\n\
                     ip link add link eth1 name eth1.{tag} type vlan id {tag}\n\
                     ip link set eth1.{tag} netns $(cat /run/container{tag})\n\
                     C='nsenter -n -t '$(cat /run/container{tag})\n\
                     $C ip addr add 10.77.{tag}.1/24 dev eth1.{tag}\n\
                     $C ip link set eth1.{tag} up"
                ))
                .expect("a container");
        }
        guest
    }
}

fn in_container(guest: &Guest, tag: u16, command: &str) -> bool {
    let command = format!("nsenter -n -t $(cat /run/container{tag}) sh -c \"{command}\"");
    guest.exec_within(&command, LIMIT).expect("a command").status == 0
}

/// How many of these frames are ARP messages (RFC 826) about this address.
fn asked(frames: &[Vec<u8>], about: [u8; 4]) -> usize {
    let is_about = |frame: &&Vec<u8>| {
        let tagged = matches!(frame[12..14], [0x81, 0]);
        let body = &frame[if tagged { 16 } else { 12 }..];
        body.starts_with(&[8, 6]) && body.get(26..30) == Some(&about)
    };
    frames.iter().filter(is_about).count()
}

/// Where one network of a tenant is seen, and what was.
struct Room {
    tenant: &'static Tenant,
    tag: u16,
    name: String,
    capture: Capture,
}

/// Sends this many kibibytes over TCP from a container to a room, and gives how many bytes arrived.
fn transfer(guest: &Guest, tag: u16, room: &str, last: u8, kibibytes: usize) -> usize {
    let mut listener = Command::new("ip")
        .args(["netns", "exec", room, "busybox", "nc", "-l", "-p", "7000"])
        // While this is open, so is its side of the connection.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a listener");
    net::wait_for("the listener", DEADLINE, || {
        let sockets = net::command("ip", ["netns", "exec", room, "busybox", "netstat", "-lnt"]);
        sockets.ok()?.contains(":7000").then_some(())
    })
    .expect("it listens");
    let send = format!("dd if=/dev/zero bs=1024 count={kibibytes} | nc 10.77.{tag}.{last} 7000");
    let open = listener.stdin.take();
    assert!(in_container(guest, tag, &send), "{room}: {send}");
    drop(open);
    listener.wait_with_output().expect("it ended").stdout.len()
}

#[test]
fn tenants_with_everything_alike_reach_their_own_and_nothing_of_each_other() {
    let _netns = Netns::enter().expect("a namespace");
    net::ip("link add up0 type veth peer name wire").expect("veth");
    for link in ["up0", "wire"] {
        net::ip(&format!("link set {link} addrgenmode none up")).expect("up");
    }
    let rooms: Vec<Room> = TENANTS.iter().flat_map(Tenant::make_rooms).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let configuration =
        "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"vm-*\"]\n";
    let daemon = Daemon::start(folder.path(), configuration).expect("eswitchd");
    TENANTS.iter().for_each(|tenant| tenant.declare(&daemon));
    let began = Instant::now();
    let say = |what: &str| println!("{:5.1} s: {what}", began.elapsed().as_secs_f64());
    let guests = TENANTS.each_ref().map(|tenant| tenant.start(&daemon));
    say("the guests have their containers");
    for port in ["red", "blue"] {
        let path = format!("/v1/ports/{port}");
        daemon.wait_for_condition(&path, "Programmed", "True").expect("programmed");
    }

    for (tenant, guest) in TENANTS.iter().zip(&guests) {
        for tag in TAGS {
            for last in [8, 9] {
                let to = format!("10.77.{tag}.{last}");
                assert!(
                    in_container(
                        guest,
                        tag,
                        &format!("ping -c 2 -W 10 {to} | grep -q 'bytes from'")
                    ),
                    "{} does not reach {to}",
                    tenant.name
                );
            }
            say(&format!("{} tag {tag} reaches its own", tenant.name));
            let nobody = format!("10.77.{tag}.{}", tenant.asks);
            assert!(!in_container(guest, tag, &format!("ping -c 1 -W 1 {nobody}")), "{nobody}");
        }
    }
    for (tenant, guest) in TENANTS.iter().zip(&guests) {
        let room = format!("{}-far-{}", tenant.name, TAGS[0]);
        assert_eq!(transfer(guest, TAGS[0], &room, 9, KIBIBYTES), KIBIBYTES << 10, "{room}");
    }
    say("the transfers are done");
    for Room { tenant, tag, name, capture } in &rooms {
        let frames = capture.frames();
        for other in &TENANTS {
            for other_tag in TAGS {
                let about = [10, 77, other_tag as u8, other.asks];
                let own = other.name == tenant.name && other_tag == *tag;
                let seen = asked(&frames, about);
                assert_eq!(seen > 0, own, "{seen} ARP requests for {about:?} were seen at {name}");
            }
        }
    }
}
