//! Whether `POST /v1/trace` and `GET /v1/ports/{id}/explain` tell the truth: networks and ports on
//! veths of a real kernel, frames, and what is captured where.
//!
//! What is compared of a frame is the netdev, the tags and every byte behind them. The seed is
//! printed; `TC_FLOWS_SEED` sets it.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;

use eswitchd_netns_tests::{PATIENCE, Random, veth};
use lab::{
    daemon::Daemon,
    net::{self, Capture, Netns},
};
use serde_json::{Value, json};

const PORTS: usize = 5;
const NETWORKS: [&str; 4] = ["blue", "red", "lone", "plain"];
const MARK: [u8; 4] = *b"trce";

/// A tag as it stands in a frame: ethertype, and priority with VLAN.
type Tag = (u16, u16);

const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

fn mac(port: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, 1 + port as u8]
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn v4(host: usize) -> [u8; 4] {
    [192, 0, 2, 1 + host as u8]
}

fn v6(host: usize) -> [u8; 16] {
    [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 + host as u8]
}

// ---------------------------------------------------------------- random intent

fn some_networks(random: &mut Random) -> Value {
    let kinds = [
        json!({"vlan": {"vid": 100}}),
        json!({"vlan": {"vid": 200, "proto": random.pick(&["802.1q", "802.1ad"])}}),
        json!("isolated"),
        random.pick(&[json!("flat"), json!({"vlan": {"vid": 300}})]),
    ];
    let named = NETWORKS.iter().zip(kinds).map(|(id, kind)| {
        let unknown = random.pick(&["uplink", "drop"]);
        json!({"id": id, "spec": {"kind": kind, "unknown_unicast": unknown}})
    });
    named.collect()
}

/// An access port, one with a tag, or a trunk.
fn some_port(random: &mut Random, port: usize) -> Value {
    let first = random.below(NETWORKS.len());
    let mut attachments = vec![match random.chance(3) {
        true => json!({"network": NETWORKS[first], "tag": 10}),
        false => json!({"network": NETWORKS[first]}),
    }];
    for more in 1..1 + random.below(3) {
        let network = NETWORKS[(first + more) % NETWORKS.len()];
        attachments.push(json!({"network": network, "tag": 10 + more}));
    }
    let mut spec = json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": format!("rep{port}")}},
        "attachments": attachments,
        "macs": [text(mac(port))],
        "isolated": random.chance(4),
        "promiscuous": random.pick(&["deny", "deny", "deny", "allow"]),
    });
    if random.chance(4) {
        let v6 = std::net::Ipv6Addr::from(v6(port)).to_string();
        spec["ips"] = json!([std::net::Ipv4Addr::from(v4(port)).to_string(), v6]);
    }
    if random.chance(4) {
        spec["allow"] = json!(["router_advertisements", "dhcp_server", "link_local_groups"]);
    }
    json!({"id": format!("p{port}"), "spec": spec})
}

// ---------------------------------------------------------------- random frames

/// A frame in bytes, and as the question about its way.
struct Sent {
    /// The netdev that sends it.
    link: String,
    tags: Vec<Tag>,
    /// Both addresses.
    head: [u8; 12],
    /// Ethertype and what is behind it.
    rest: Vec<u8>,
    question: Value,
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head.to_vec();
        for (proto, tag) in &self.tags {
            bytes.extend(proto.to_be_bytes());
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(&self.rest);
        bytes
    }
}

fn some_tags(random: &mut Random, from_wire: bool) -> Vec<Tag> {
    let vids: &[u16] = if from_wire { &[100, 200, 300, 0, 7] } else { &[10, 11, 12, 0, 7] };
    let count = random.pick(&[0, 0, 0, 1, 1, 1, 1, 2]);
    let count = if from_wire { count.max(random.below(2)) } else { count };
    let tag = |random: &mut Random| {
        let proto = random.pick(&[Q, Q, Q, AD]);
        (proto, random.pick(&[0, 0, 5]) << 13 | random.pick(vids))
    };
    (0..count).map(|_| tag(random)).collect()
}

/// Ethertype and payload, and the same as the question says it.
fn some_payload(random: &mut Random, src: [u8; 6]) -> (Vec<u8>, Value) {
    let (from, to) = (random.below(PORTS), random.below(PORTS));
    let ports = (random.pick(&[67u16, 68, 547, 1000]), random.pick(&[68u16, 67, 2000]));
    let udp = || {
        let mut bytes = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        bytes.extend([0, 20, 0, 0]);
        bytes
    };
    let carries_udp = json!({"udp": {"src": ports.0, "dst": ports.1}});
    match random.below(6) {
        0 => (vec![0x88, 0xb5], json!({"ethertype": 0x88b5})),
        1 => (vec![0x80, 0x35], json!({"ethertype": 0x8035})),
        2 => {
            let op = random.pick(&[1u8, 2]);
            let mut bytes = vec![8, 6, 0, 1, 8, 0, 6, 4, 0, op];
            bytes.extend(src);
            bytes.extend(v4(from));
            bytes.extend([0; 6]);
            bytes.extend(v4(to));
            let op = if op == 1 { "request" } else { "reply" };
            let [sender, target] =
                [from, to].map(|host| std::net::Ipv4Addr::from(v4(host)).to_string());
            (bytes, json!({"arp": {"op": op, "sender_ip": sender, "target_ip": target}}))
        }
        3 => {
            let mut bytes = vec![8, 0, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0];
            bytes.extend(v4(from));
            bytes.extend(v4(to));
            bytes.extend(udp());
            let [src, dst] = [from, to].map(|host| std::net::Ipv4Addr::from(v4(host)).to_string());
            (bytes, json!({"ip": {"src": src, "dst": dst, "carries": carries_udp}}))
        }
        kind => {
            let is_udp = kind == 4;
            let next = if is_udp { 17 } else { 58 };
            let mut bytes = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 48, next, 64];
            bytes.extend(v6(from));
            bytes.extend(v6(to));
            let carries = if is_udp {
                bytes.extend(udp());
                carries_udp
            } else {
                let icmp = random.pick(&[134u8, 135, 128]);
                bytes.extend([icmp, 0, 0, 0, 0, 0, 0, 0]);
                json!({"icmp": {"type": icmp}})
            };
            let [src, dst] = [from, to].map(|host| std::net::Ipv6Addr::from(v6(host)).to_string());
            (bytes, json!({"ip": {"src": src, "dst": dst, "carries": carries}}))
        }
    }
}

fn some_frame(random: &mut Random, number: u32) -> Sent {
    let from_wire = random.chance(4);
    let port = random.below(PORTS);
    let stranger = [2, 0, 0, 0, 9, 9];
    let src = match random.below(8) {
        0 => stranger,
        1 => mac(random.below(PORTS)),
        _ if from_wire => stranger,
        _ => mac(port),
    };
    let dst = match random.below(10) {
        0..5 => mac(random.below(PORTS)),
        5 | 6 => [0xff; 6],
        7 => [0x33, 0x33, 0, 0, 0, 1],
        // A bridge forwards none of these, and behind the wire one tells what the host gets.
        8 if !from_wire => [1, 0x80, 0xc2, 0, 0, 0xe],
        _ => [2, 0, 0, 0, 8, 8],
    };
    let tags = some_tags(random, from_wire);
    let (mut rest, payload) = some_payload(random, src);
    rest.resize(rest.len() + 40, 0);
    rest.extend(MARK);
    rest.extend(number.to_be_bytes());
    let mut head = [0; 12];
    head[..6].copy_from_slice(&dst);
    head[6..].copy_from_slice(&src);
    let asked = tags.iter().map(|(proto, tag)| {
        let proto = if *proto == Q { "802.1q" } else { "802.1ad" };
        json!({"vid": tag & 0xfff, "proto": proto, "priority": tag >> 13})
    });
    let question = json!({
        "from": if from_wire { json!({"uplink": "soft-lab"}) } else { json!({"port": format!("p{port}")}) },
        "dst_mac": text(dst),
        "src_mac": text(src),
        "tags": asked.collect::<Value>(),
        "payload": payload,
    });
    let link = if from_wire { "wire".to_owned() } else { format!("vm{port}") };
    Sent { link, tags, head, rest, question }
}

// ---------------------------------------------------------------- what comes of them

/// Where a frame came out, with its tags; sorted.
type Fate = Vec<(String, Vec<Tag>)>;

fn told(answer: &Value) -> Fate {
    let copies = answer["deliveries"].as_array().expect("deliveries").iter().map(|delivery| {
        let netdev = delivery["netdev"].as_str().expect("a name");
        let far = match netdev {
            "up0" => "wire".to_owned(),
            netdev => netdev.replacen("rep", "vm", 1),
        };
        let tags = delivery["tags"].as_array().map(Vec::as_slice).unwrap_or_default().iter();
        let number = |tag: &Value, field: &str| tag[field].as_u64().unwrap_or_default() as u16;
        let tags = tags.map(|tag| {
            let proto = if tag["proto"] == "802.1ad" { AD } else { Q };
            (proto, number(tag, "priority") << 13 | number(tag, "vid"))
        });
        (far, tags.collect())
    });
    let mut fate: Fate = copies.collect();
    fate.sort();
    fate
}

/// Number, tags and the rest of a captured frame; none for one that is not of this test.
fn read(bytes: &[u8]) -> Option<(u32, Vec<Tag>, Vec<u8>)> {
    let (before, number) = bytes.split_last_chunk()?;
    if !before.ends_with(&MARK) {
        return None;
    }
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (mut at, mut tags) = (12, Vec::new());
    while [Q, AD].contains(&word(at)) {
        tags.push((word(at), word(at + 2)));
        at += 4;
    }
    let rest = [&bytes[..12], &bytes[at..]].concat();
    Some((u32::from_be_bytes(*number), tags, rest))
}

/// The room: a daemon, its software adapter, and what stands behind each netdev.
struct Rig {
    daemon: Daemon,
    captures: Vec<(String, Capture)>,
    _folder: tempfile::TempDir,
    _netns: Netns,
}

fn rig() -> Rig {
    let netns = Netns::enter().expect("a namespace");
    let mut captures = Vec::new();
    let mut capture = |name: &str, far: &str| {
        captures.push((name.to_owned(), Capture::start(far).expect("a capture")));
    };
    for port in 0..PORTS {
        veth(&format!("rep{port}"), &format!("vm{port}"));
        capture(&format!("vm{port}"), &format!("vm{port}"));
    }
    veth("up0", "wire");
    capture("wire", "wire");
    // What reaches the host reaches a bridge, which floods it to one more pair.
    veth("host", "farhost");
    net::ip("link add bridge type bridge mcast_snooping 0").expect("a bridge");
    net::ip("link set bridge addrgenmode none up").expect("a bridge");
    for link in ["up0", "host"] {
        net::ip(&format!("link set {link} master bridge")).expect(link);
        net::ip(&format!("link set {link} type bridge_slave learning off")).expect(link);
    }
    capture("host", "farhost");
    let configuration =
        "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"rep*\"]\n";
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path(), configuration).expect("eswitchd");
    Rig { daemon, captures, _folder: folder, _netns: netns }
}

impl Rig {
    fn intend(&self, random: &mut Random) {
        let ports: Vec<Value> = (0..PORTS).map(|port| some_port(random, port)).collect();
        let batch = json!({"networks": some_networks(random), "ports": ports});
        let path = "/v1/apply?wait=programmed&timeout=25";
        let answer = self.daemon.request("POST", path, Some(&batch)).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}\n{batch:#}");
    }
}

#[test]
fn what_trace_says_of_a_frame_is_what_happens_to_it() {
    const INTENTS: usize = 10;
    const FRAMES: usize = 100;
    let mut random = Random::seeded();
    let rig = rig();
    let mut number = 0;
    let (mut delivered, mut to_host, mut dropped) = (0, 0, 0);
    for _ in 0..INTENTS {
        rig.intend(&mut random);
        let mut sent: BTreeMap<u32, (Sent, Value)> = BTreeMap::new();
        for _ in 0..FRAMES {
            number += 1;
            let frame = some_frame(&mut random, number);
            let answer = rig.daemon.request("POST", "/v1/trace", Some(&frame.question));
            let answer = answer.expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?} {}", frame.question);
            let caveats = answer.body["caveats"].as_array().into_iter().flatten();
            // The daemon may look at its rules at any time.
            let real =
                caveats.filter(|caveat| *caveat != "changes of these rules are on their way");
            assert_eq!(real.count(), 0, "{}", answer.body);
            net::send_frame(&frame.link, &frame.bytes()).expect("sent");
            sent.insert(number, (frame, answer.body));
        }
        // Behind them: one frame to each capture. One that comes later than it should is one of a
        // number that the next round does not expect.
        number += 1;
        let mut got: BTreeMap<u32, Fate> = sent.keys().map(|at| (*at, Fate::new())).collect();
        for (name, capture) in &rig.captures {
            let mut sentinel = vec![0xff; 6];
            sentinel.extend([2, 0, 0, 0, 9, 9, 0x88, 0xb5]);
            sentinel.resize(60, 0);
            sentinel.extend(MARK);
            sentinel.extend(number.to_be_bytes());
            let near = match name.as_str() {
                "wire" => "up0".to_owned(),
                "host" => "host".to_owned(),
                vm => vm.replacen("vm", "rep", 1),
            };
            net::send_frame(&near, &sentinel).expect("sent");
            capture.wait_for(PATIENCE, |frame| frame == sentinel).expect("the sentinel");
            for bytes in capture.frames() {
                let Some((at, tags, rest)) = read(&bytes).filter(|(at, ..)| *at != number) else {
                    continue;
                };
                let (frame, _) = sent.get(&at).unwrap_or_else(|| panic!("frame {at} came late"));
                assert_eq!(rest, [&frame.head[..], &frame.rest].concat(), "{}", frame.question);
                got.entry(at).or_default().push((name.clone(), tags));
            }
            capture.clear();
        }
        for (at, (frame, answer)) in &sent {
            let mut expected = told(answer);
            if answer.get("to_host").is_some() {
                // The frame as the host gets it has the tags that it came with, or none where a
                // rule took a priority tag off.
                let words = answer["to_host"].as_str().expect("a frame");
                let tags = match words.contains("vlan") {
                    true => frame.tags.clone(),
                    false => Vec::new(),
                };
                expected.push(("host".to_owned(), tags));
                to_host += 1;
            }
            expected.sort();
            let mut got = got[at].clone();
            got.sort();
            assert_eq!(got, expected, "{:#}\n{answer:#}", frame.question);
            delivered += answer["deliveries"].as_array().expect("deliveries").len();
            dropped += usize::from(answer["dropped"] == true);
        }
    }
    println!(
        "{} frames: {delivered} deliveries, {to_host} to the host, {dropped} dropped",
        INTENTS * FRAMES
    );
    // A generator under which nothing happens would prove nothing.
    for count in [delivered, dropped, 4 * to_host] {
        assert!(count > INTENTS * FRAMES / 10, "of a kind too little happened");
    }
}

// ---------------------------------------------------------------- explain

#[test]
fn explain_names_the_first_link_that_is_broken_and_counts_frames() {
    let rig = rig();
    rig.daemon.put("/v1/networks/blue", json!({"kind": "isolated"})).expect("a network");
    let port = |change: Value| {
        let mut spec = json!({
            "function": {"netdev": {"adapter": "soft-lab", "name": "rep0"}},
            "attachments": [{"network": "blue"}],
            "macs": [text(mac(0))],
        });
        let fields = spec.as_object_mut().expect("an object");
        fields.extend(change.as_object().expect("an object").clone());
        let path = "/v1/ports/p0?wait=programmed&timeout=1";
        let body = json!({ "spec": spec });
        rig.daemon.request("PUT", path, Some(&body)).expect("an answer");
        rig.daemon.get("/v1/ports/p0/explain").expect("an explanation")
    };
    let link = |explanation: &Value, name: &str| {
        let links = explanation["links"].as_array().expect("links").clone();
        links.into_iter().find(|link| link["link"] == name).expect("the link")
    };
    for (change, broken, message) in [
        (json!({"admin_state": "down"}), "asked", "down"),
        (json!({"attachments": []}), "asked", "no network"),
        (json!({"attachments": [{"network": "green"}]}), "asked", "`green`, which is not there"),
        (
            json!({"function": {"netdev": {"adapter": "soft-lab", "name": "rep9"}}}),
            "seen",
            "no representor `rep9`",
        ),
        (json!({"macs": []}), "planned", "no address"),
    ] {
        let explanation = port(change.clone());
        assert_eq!(explanation["broken"], broken, "{change}: {explanation:#}");
        let said = link(&explanation, broken)["message"].as_str().expect("text").to_owned();
        assert!(said.contains(message), "{said}");
        assert_eq!(explanation["links"].as_array().expect("links").len(), 6);
    }

    let explanation = port(json!({}));
    assert_eq!(explanation.get("broken"), None, "{explanation:#}");
    let states = ["asked", "seen", "planned", "installed", "in_hardware", "hit"]
        .map(|name| link(&explanation, name)["state"].clone());
    assert_eq!(states, ["holds", "holds", "holds", "holds", "absent", "waiting"]);

    let frame = |src: [u8; 6]| net::frame("ff:ff:ff:ff:ff:ff", &text(src), &[], 0x88b5, b"hello");
    let explained = |fits: &dyn Fn(&Value) -> bool| {
        let path = "/v1/ports/p0/explain";
        link(&rig.daemon.wait_for(path, |found| fits(&link(found, "hit"))).expect("it"), "hit")
    };
    net::send_frame("vm0", &frame(mac(7))).expect("sent");
    let hit = explained(&|hit| hit["state"] == "broken");
    assert!(hit["message"].as_str().expect("text").contains("1 dropped as of no address"), "{hit}");
    for _ in 0..3 {
        net::send_frame("vm0", &frame(mac(0))).expect("sent");
    }
    let hit = explained(&|hit| hit["message"].to_string().contains("3 frames admitted"));
    assert_eq!(hit["state"], "holds");
}
