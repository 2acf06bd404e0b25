//! Two tenants with everything alike, on distinct provider VLANs of one uplink: the guests' tags, the
//! addresses of their VFs, the addresses of the containers in them. Each reaches its own, and nothing
//! of it is ever seen at the other's: neither what they ask everybody, nor what iperf3 sends to one.
//! What it sends from guest to guest is seen nowhere else at all.
//!
//! What is seen where is captured with tcpdump. Each tenant asks for an address by which its
//! requests are known; each place to which iperf3 sends, or from which, has a TCP port by which its
//! segments are.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]
#![expect(clippy::print_stdout, reason = "what iperf3 said is for who reads a failed test")]

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use eswitchd_e2e_tests::{DEADLINE, create_vfs};
use lab::{
    daemon::Daemon,
    guest::{Backing, Guest, Output},
    net::{self, Capture, Netns},
};
use serde_json::{Value, json};

/// A tenant with its name, its guests, and the VLANs of its two networks on the uplink.
struct Tenant {
    name: &'static str,
    guests: &'static [&'static str],
    vlans: [u16; 2],
    /// What only this tenant asks for, in the last byte.
    asks: u8,
}

static TENANTS: [Tenant; 2] = [
    Tenant { name: "red", guests: &["a", "c"], vlans: [110, 120], asks: 101 },
    Tenant { name: "blue", guests: &["b"], vlans: [210, 220], asks: 102 },
];

/// The tags in a guest, one for each of its containers.
const TAGS: [u16; 2] = [10, 20];

/// What iperf3 sends over each connection, in bytes.
const BYTES: usize = 4 << 20;

/// The TCP port that is used between two guests of a tenant, in the network of this tag.
const WITHIN: (u16, u16) = (TAGS[0], 5001);

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
                let port = 5000 + 10 * vlan + u16::from(last);
                let flow = match (tag, place) {
                    (10, "far") => Some(Flow::ToRoom),
                    (20, "near") => Some(Flow::FromRoom),
                    _ => None,
                };
                rooms.push(Room { tenant: self, tag, name, last, port, flow, capture });
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
        for guest in self.guests {
            let spec = json!({
                "function": {"guest_vf": {"guest": guest, "device": "vf0"}},
                "attachments": TAGS.map(|tag| json!({"network": network(tag), "tag": tag})),
                "guest_macs": {"max": 1, "allow": ["02:aa"]},
            });
            daemon.put(&format!("/v1/ports/{guest}"), spec).expect("a port");
        }
    }

    /// Its guests, with a container for each tag: those of the first have the last byte 1 in their
    /// addresses, those of the next 2.
    fn start(&self, daemon: &Daemon) -> Vec<Guest> {
        let guests = self.guests.iter().zip(1..);
        guests.map(|(guest, last)| self.start_one(daemon, guest, last)).collect()
    }

    fn start_one(&self, daemon: &Daemon, name: &str, last: u8) -> Guest {
        let tap = format!("vm-{name}");
        net::ip(&format!("tuntap add dev {tap} mode tap")).expect("a tap");
        let guest = Guest::named(name)
            .vf(0, Backing::Tap(tap))
            .with_programs()
            .qmp_socket(daemon.qmp_dir().join(format!("{name}.sock")))
            .start()
            .expect("a guest");
        create_vfs(&guest, 1);
        let address = format!("02:aa:00:00:00:0{last}");
        guest.run(&format!("ip link set eth1 address {address} up")).expect("a VF");
        for tag in TAGS {
            guest
                .run(&format!(
                    "unshare -n sleep 1000000 < /dev/null > /dev/null 2>&1 &\n\
                     echo $! > /run/container{tag}; sleep 1; set -e\n\
                     ip link add link eth1 name eth1.{tag} type vlan id {tag}\n\
                     ip link set eth1.{tag} netns $(cat /run/container{tag})\n\
                     C='nsenter -n -t '$(cat /run/container{tag})\n\
                     $C ip addr add 10.77.{tag}.{last}/24 dev eth1.{tag}\n\
                     $C ip link set eth1.{tag} up"
                ))
                .expect("a container");
        }
        guest
    }
}

fn in_container(guest: &Guest, tag: u16, command: &str) -> Output {
    let command = format!("nsenter -n -t $(cat /run/container{tag}) sh -c \"{command}\"");
    guest.exec_within(&command, LIMIT).expect("a command")
}

fn is_answered(guest: &Guest, tag: u16, ping: &str) -> bool {
    in_container(guest, tag, &format!("ping {ping} | grep -q 'bytes from'")).status == 0
}

/// A captured frame from its EtherType on, behind the tag that it may have.
fn untagged(frame: &[u8]) -> &[u8] {
    let is_tagged = matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]);
    &frame[if is_tagged { 16 } else { 12 }..]
}

/// How many of these frames are ARP messages (RFC 826) about this address.
fn asked(frames: &[Vec<u8>], about: [u8; 4]) -> usize {
    let is_about = |frame: &&Vec<u8>| {
        let body = untagged(frame);
        body.starts_with(&[8, 6]) && body.get(26..30) == Some(&about)
    };
    frames.iter().filter(is_about).count()
}

/// How many of these frames are TCP segments (RFC 9293, over IPv4) from or to this port, and how many
/// bytes they carry.
fn segments(frames: &[Vec<u8>], port: u16) -> (usize, usize) {
    let carried = |frame: &Vec<u8>| {
        let packet = untagged(frame).strip_prefix(&[8, 0])?;
        let header = usize::from(packet.first()? & 0xf) * 4;
        let length = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        // Behind a short packet, the frame has padding.
        let tcp = packet.get(header..length).filter(|tcp| packet[9] == 6 && tcp.len() >= 20)?;
        let is_of_port = [&tcp[..2], &tcp[2..4]].contains(&&port.to_be_bytes()[..]);
        is_of_port.then(|| tcp.len() - usize::from(tcp[12] >> 4) * 4)
    };
    let carried: Vec<usize> = frames.iter().filter_map(carried).collect();
    (carried.len(), carried.iter().sum())
}

/// Has iperf3 send between a container and this address, and gives how many bytes its receiver has
/// got, or what it says instead.
fn sent(guest: &Guest, tag: u16, last: u8, port: u16, direction: &str) -> Result<u64, String> {
    // Reports at intervals are what has it look whether all is sent.
    let client = format!(
        "/usr/bin/iperf3 --client 10.77.{tag}.{last} --port {port} {direction} \
         --bytes {BYTES} --interval 1 --json"
    );
    let Output { status, text } = in_container(guest, tag, &client);
    let report: Value = serde_json::from_str(&text).map_err(|_| text.clone())?;
    let bytes = report["end"]["sum_received"]["bytes"].as_u64();
    bytes.filter(|_| status == 0).ok_or(text)
}

/// What `transfer` gives, the second time where iperf3 gives up: it does after ten seconds of
/// silence, and on a busy machine an emulation in an emulation may be silent that long.
fn insisted(transfer: impl Fn() -> Result<u64, String>) -> u64 {
    let again = |said: String| {
        println!("once more, since iperf3 said: {said}");
        transfer()
    };
    transfer().or_else(again).expect("a transfer")
}

/// Has iperf3 send from a guest's container to one in the second guest of its tenant.
fn within(from: &Guest, to: &Guest) -> Result<u64, String> {
    let (tag, port) = WITHIN;
    let server = format!("/usr/bin/iperf3 --server --one-off --daemon --port {port}");
    assert_eq!(in_container(to, tag, &server).status, 0);
    net::wait_for("the server", DEADLINE, || {
        let listens = format!("netstat -lnt | grep -q :{port}");
        (in_container(to, tag, &listens).status == 0).then_some(())
    })
    .expect("it listens");
    let sent = sent(from, tag, 2, port, "");
    if sent.is_err() {
        // It may wait for another.
        in_container(to, tag, "killall -q iperf3");
    }
    sent
}

/// Which way iperf3 sends between a container and a room.
#[derive(Clone, Copy)]
enum Flow {
    ToRoom,
    FromRoom,
}

/// Where one network of a tenant is seen, and what was.
struct Room {
    tenant: &'static Tenant,
    tag: u16,
    name: String,
    /// In the last byte of its address.
    last: u8,
    /// The TCP port that is used here alone.
    port: u16,
    flow: Option<Flow>,
    capture: Capture,
}

impl Room {
    /// Has iperf3 send between the container of this network and here.
    fn transfer(&self, guest: &Guest, flow: Flow) -> Result<u64, String> {
        let Room { tag, name, last, port, .. } = self;
        let mut server = Command::new("ip")
            .args(["netns", "exec", name, "iperf3", "--server", "--one-off"])
            .args(["--port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a server");
        net::wait_for("the server", DEADLINE, || {
            let sockets = net::command("ip", ["netns", "exec", name, "busybox", "netstat", "-lnt"]);
            sockets.ok()?.contains(&format!(":{port} ")).then_some(())
        })
        .expect("it listens");
        let direction = match flow {
            Flow::ToRoom => "",
            Flow::FromRoom => "--reverse",
        };
        let sent = sent(guest, *tag, *last, *port, direction);
        // Where the client has failed, it may wait for another.
        let _ = server.kill();
        server.wait().expect("it ended");
        sent
    }
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
    let guests = thread::scope(|scope| {
        let start = |tenant: &'static Tenant| scope.spawn(|| tenant.start(&daemon));
        TENANTS.each_ref().map(start).map(|started| started.join().expect("guests"))
    });
    say("the guests have their containers");
    for port in TENANTS.iter().flat_map(|tenant| tenant.guests) {
        let path = format!("/v1/ports/{port}");
        daemon.wait_for_condition(&path, "Programmed", "True").expect("programmed");
    }

    for (tenant, guests) in TENANTS.iter().zip(&guests) {
        let guest = &guests[0];
        for tag in TAGS {
            for last in [8, 9] {
                let to = format!("10.77.{tag}.{last}");
                let reaches = is_answered(guest, tag, &format!("-c 2 -W 10 {to}"));
                assert!(reaches, "{} does not reach {to}", tenant.name);
            }
            say(&format!("{} tag {tag} reaches its own", tenant.name));
            let nobody = format!("10.77.{tag}.{}", tenant.asks);
            assert!(!is_answered(guest, tag, &format!("-c 1 -W 1 {nobody}")), "{nobody}");
        }
    }
    // Both tenants at once, between the same addresses.
    let all_of = |tenant: &Tenant, guests: &[Guest]| {
        for room in rooms.iter().filter(|room| room.tenant.name == tenant.name) {
            let Some(flow) = room.flow else { continue };
            let got = insisted(|| room.transfer(&guests[0], flow));
            assert_eq!(got, BYTES as u64, "{}", room.name);
            say(&format!("iperf3 is done with {}", room.name));
        }
        if let [first, second] = guests {
            assert_eq!(insisted(|| within(first, second)), BYTES as u64, "{}", tenant.name);
            say(&format!("iperf3 is done between the guests of {}", tenant.name));
        }
    };
    thread::scope(|scope| {
        for (tenant, guests) in TENANTS.iter().zip(&guests) {
            scope.spawn(|| all_of(tenant, guests));
        }
    });
    for Room { tenant, tag, name, capture, .. } in &rooms {
        let frames = capture.frames();
        let (seen, _) = segments(&frames, WITHIN.1);
        assert_eq!(seen, 0, "segments between two guests were seen at {name}");
        for Room { name: other, port, flow, .. } in &rooms {
            let (seen, bytes) = segments(&frames, *port);
            if seen > 0 {
                println!("{name}: {seen} segments of {other}, with {bytes} bytes");
            }
            match flow {
                Some(Flow::ToRoom) if other == name => assert!(bytes >= BYTES),
                // What is seen are its acknowledgements.
                Some(Flow::FromRoom) if other == name => assert!(seen > 0),
                _ => assert_eq!(seen, 0, "segments of {other} were seen at {name}"),
            }
        }
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
