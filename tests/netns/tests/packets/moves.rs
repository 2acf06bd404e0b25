//! While ports join, move and leave: no frame comes out at a wrong port at any moment, and between
//! ports that nothing is changed about none is lost.
//!
//! One thread sends without a pause, another changes ports over the API. A frame is judged by what
//! was wanted at some moment between its sending and its arrival; while a change is under way, both
//! what was and what will be may hold. Nowhere does a frame come out twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use api::{
    resources::{
        AdminState, Attachment, NetworkKind, NetworkSpec, PortFunction, PortSpec, UnknownUnicast,
        VlanProto, VlanTag,
    },
    types::{MacAddr, Vid},
};
use controller::{
    config::UplinkUse,
    intent::{Change, Intent},
};
use eswitchd_netns_tests::{Q, Random, ends::Arrival, frames, vid};
use lab::net::Netns;
use serde_json::json;
use tc_flows::{EtherType, Frame, Mac, Tag as FrameTag};

use crate::{
    reference::Tag,
    rig::{Rig, show},
    topology::{Topology, WIRE, id, port_id},
};

const NETWORKS: usize = 4;

fn kind(network: usize) -> NetworkKind {
    match network {
        0 => NetworkKind::Flat,
        1 => {
            let vid = Vid::try_from(100).unwrap();
            NetworkKind::Vlan(VlanTag { vid, proto: VlanProto::Dot1Q })
        }
        _ => NetworkKind::Isolated,
    }
}

/// Networks by number, with the tag under which a guest has them.
type Tagged = &'static [(usize, Option<u16>)];

/// Ports that nothing is changed about, by number.
const STAYING: [(u32, Tagged); 8] = [
    (1, &[(0, None)]),
    (2, &[(0, None)]),
    (3, &[(1, None)]),
    (4, &[(1, None)]),
    (5, &[(2, None)]),
    (6, &[(2, None), (1, Some(6))]),
    (7, &[(1, Some(6)), (2, Some(7)), (0, Some(8))]),
    (8, &[(3, None), (0, Some(9))]),
];

/// Ports that come, move and go.
const MOVING: [u32; 5] = [9, 10, 11, 12, 13];

/// Changes in the ordinary run.
const CHANGES: usize = 40;

const PAYLOAD: EtherType = match EtherType::new(0x88b5) {
    Some(ethertype) => ethertype,
    None => EtherType::ARP,
};

fn address(port: u32, which: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, which, port as u8])
}

/// What a port is: the networks it is in with their tags, and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    networks: Vec<(usize, Tag)>,
    mac: MacAddr,
    /// Whether its guest's tags stay inside the network's.
    keeps_tags: bool,
}

impl Shape {
    fn new(networks: &[(usize, Option<u16>)], mac: MacAddr) -> Shape {
        let networks =
            networks.iter().map(|(network, tag)| (*network, tag.map(|tag| (Q, vid(tag)))));
        Shape { networks: networks.collect(), mac, keeps_tags: false }
    }

    fn tag(&self, network: usize) -> Option<Tag> {
        self.networks.iter().find(|(n, _)| *n == network).map(|(_, tag)| *tag)
    }

    fn network(&self, tag: Tag) -> Option<usize> {
        self.networks.iter().find(|(_, t)| *t == tag).map(|(network, _)| *network)
    }

    /// The network that a frame with this tag is taken into, and the tag that it has inside there.
    fn takes(&self, tag: Tag) -> Option<(usize, Tag)> {
        match self.keeps_tags {
            true => self.network(None).map(|network| (network, tag)),
            false => self.network(tag).map(|network| (network, None)),
        }
    }

    fn spec(&self, port: u32, admin_state: AdminState) -> PortSpec {
        let attachments = self.networks.iter().map(|(network, tag)| Attachment {
            network: id(format!("net{network}")),
            tag: tag.map(|(_, vid)| Vid::try_from(vid.get()).unwrap()),
            priority: None,
            qinq: self.keeps_tags,
        });
        PortSpec {
            function: PortFunction::Netdev { adapter: id("soft-lab"), name: format!("rep{port}") },
            attachments: attachments.collect(),
            macs: vec![self.mac],
            guest_macs: None,
            ips: Vec::new(),
            allowed_address_pairs: Vec::new(),
            ethertypes: Vec::new(),
            allow: Vec::new(),
            isolated: false,
            promiscuous: Default::default(),
            qos: None,
            mtu: None,
            admin_state,
            labels: Default::default(),
        }
    }
}

fn uplink_tag(network: usize) -> Option<Tag> {
    match kind(network) {
        NetworkKind::Flat => Some(None),
        NetworkKind::Vlan(tag) => Some(Some((Q, vid(tag.vid.get())))),
        NetworkKind::Isolated => None,
    }
}

/// What a port was, from the moment when that was asked for to the moment when it had been replaced.
/// Without a shape it passes nothing.
#[derive(Debug, Clone)]
struct Epoch {
    since: Instant,
    until: Option<Instant>,
    shape: Option<Shape>,
}

/// A frame that went in.
struct Sent {
    from: u32,
    frame: Frame,
    at: Instant,
}

/// Everything that was known of ports, by number.
type History = BTreeMap<u32, Vec<Epoch>>;

fn shapes_between(
    history: &History,
    port: u32,
    began: Instant,
    ended: Instant,
) -> impl Iterator<Item = &Shape> {
    history[&port]
        .iter()
        .filter(move |epoch| epoch.since <= ended && epoch.until.is_none_or(|until| until >= began))
        .filter_map(|epoch| epoch.shape.as_ref())
}

/// The networks that a frame may have been taken into, each with the tag that it has inside there.
fn networks_of(history: &History, sent: &Sent, ended: Instant) -> BTreeSet<(usize, Tag)> {
    let tag: Tag = sent.frame.tags.first().map(|tag| (tag.tpid, tag.vid));
    if sent.from == WIRE {
        let owners = (0..NETWORKS).filter(|n| uplink_tag(*n) == Some(tag));
        return owners.map(|network| (network, None)).collect();
    }
    shapes_between(history, sent.from, sent.at, ended)
        .filter(|shape| shape.mac.0 == sent.frame.src.0)
        .filter_map(|shape| shape.takes(tag))
        .collect()
}

/// The frame with these tags in the place of its own.
fn retagged(frame: &Frame, tags: impl IntoIterator<Item = Tag>) -> Frame {
    let tags = tags.into_iter().flatten().map(|(tpid, vid)| FrameTag::new(tpid, vid));
    Frame { tags: tags.collect(), ..frame.clone() }
}

/// Whether this copy may have come out there.
fn may_arrive(history: &History, sent: &Sent, number: u32, arrival: &Arrival) -> bool {
    if arrival.end == sent.from {
        return false;
    }
    let group = sent.frame.dst.0[0] & 1 == 1;
    let is = |tag: Tag, inner: Tag| {
        frames::bytes(&retagged(&sent.frame, [tag, inner]), number) == arrival.bytes
    };
    let stays = |mac: Mac| {
        STAYING.iter().find(|(port, _)| address(*port, 0).0 == mac.0).map(|(port, _)| *port)
    };
    networks_of(history, sent, arrival.at).into_iter().any(|(network, inner)| match arrival.end {
        // Where nobody here has had the address all the time, somebody outside may.
        WIRE => {
            let known = stays(sent.frame.dst).is_some_and(|port| {
                history[&port][0].shape.as_ref().unwrap().tag(network).is_some()
            });
            !known && uplink_tag(network).is_some_and(|tag| is(tag, inner))
        }
        port => shapes_between(history, port, sent.at, arrival.at).any(|shape| {
            (group || shape.mac.0 == sent.frame.dst.0)
                && shape.tag(network).is_some_and(|tag| is(tag, inner))
        }),
    })
}

/// The ends, none of which anything is changed about, where a frame must come out.
fn must_arrive(sent: &Sent) -> Vec<u32> {
    let staying: BTreeMap<u32, Shape> = STAYING
        .iter()
        .map(|(port, networks)| (*port, Shape::new(networks, address(*port, 0))))
        .collect();
    let tag: Tag = sent.frame.tags.first().map(|tag| (tag.tpid, tag.vid));
    let network = match sent.from {
        WIRE => (0..NETWORKS).find(|network| uplink_tag(*network) == Some(tag)),
        port => staying.get(&port).and_then(|shape| shape.network(tag)),
    };
    let Some(network) = network else { return Vec::new() };
    let group = sent.frame.dst.0[0] & 1 == 1;
    let members = staying.iter().filter(|(_, shape)| shape.tag(network).is_some());
    let mut ends: Vec<u32> = members
        .filter(|(_, shape)| group || shape.mac.0 == sent.frame.dst.0)
        .map(|(port, _)| *port)
        .collect();
    let outside = group || sent.frame.dst == OUTSIDE;
    if outside && uplink_tag(network).is_some() {
        ends.push(WIRE);
    }
    ends.retain(|end| *end != sent.from);
    ends
}

const BROADCAST: Mac = Mac([0xff; 6]);
/// Somebody behind the uplink.
const OUTSIDE: Mac = Mac([2, 0x99, 0, 0, 0, 1]);

/// One frame for each flow: those that must arrive, and those that ports which come and go send
/// under every tag that they ever have, to everybody.
fn round() -> Vec<(u32, Frame)> {
    let mut all = Vec::new();
    let mut push = |from: u32, src: Mac, dst: Mac, tag: Tag| {
        all.push((from, retagged(&Frame::opaque(dst, src, PAYLOAD), [tag])));
    };
    for (from, networks) in STAYING {
        let shape = Shape::new(networks, address(from, 0));
        let src = Mac(shape.mac.0);
        for (_, tag) in &shape.networks {
            let to = STAYING.iter().map(|(to, _)| *to).filter(|to| *to != from);
            to.for_each(|to| push(from, src, Mac(address(to, 0).0), *tag));
            for to in MOVING {
                (0..2).for_each(|which| push(from, src, Mac(address(to, which).0), *tag));
            }
            push(from, src, BROADCAST, *tag);
            push(from, src, OUTSIDE, *tag);
        }
    }
    for tag in (0..NETWORKS).filter_map(uplink_tag) {
        push(WIRE, OUTSIDE, BROADCAST, tag);
        let staying = STAYING.iter().map(|(to, _)| address(*to, 0));
        let moving = MOVING.iter().flat_map(|to| [address(*to, 0), address(*to, 1)]);
        staying.chain(moving).for_each(|to| push(WIRE, OUTSIDE, Mac(to.0), tag));
    }
    for from in MOVING {
        for which in 0..2 {
            let src = Mac(address(from, which).0);
            for tag in [None, Some((Q, vid(5))), Some((Q, vid(6)))] {
                push(from, src, BROADCAST, tag);
                for to in [1, 3, 5, 7, 8] {
                    push(from, src, Mac(address(to, 0).0), tag);
                }
            }
        }
    }
    all
}

fn some_shape(random: &mut Random, port: u32) -> Shape {
    let first = random.below(NETWORKS);
    let second = (first + 1 + random.below(NETWORKS - 1)) % NETWORKS;
    let mac = address(port, random.below(2) as u8);
    match random.below(5) {
        0 => Shape::new(&[(first, Some(5))], mac),
        1 => Shape::new(&[(first, None), (second, Some(5))], mac),
        2 => Shape::new(&[(first, Some(6)), (second, Some(5))], mac),
        // In the flat network no guest keeps its tags.
        3 if first > 0 => Shape { keeps_tags: true, ..Shape::new(&[(first, None)], mac) },
        _ => Shape::new(&[(first, None)], mac),
    }
}

#[test]
fn while_ports_join_move_and_leave_no_frame_is_at_a_wrong_port_and_others_lose_none() {
    let mut random = Random::seeded();
    let _netns = Netns::enter().unwrap();
    let mut intent = Intent::default();
    for number in 0..NETWORKS {
        let unknown_unicast = UnknownUnicast::Uplink;
        let (kind, reserved_macs) = (kind(number), Vec::new());
        let spec = NetworkSpec {
            kind,
            adapter: None,
            reserved_macs,
            unknown_unicast,
            multicast: Default::default(),
            labels: Default::default(),
        };
        intent.apply(Change::Network(id(format!("net{number}")), Some(spec)));
    }
    let mut history = History::new();
    let start = Instant::now();
    for (port, networks) in STAYING {
        let shape = Shape::new(networks, address(port, 0));
        intent.apply(Change::Port(port_id(port), Some(shape.spec(port, AdminState::Up))));
        history.insert(port, vec![Epoch { since: start, until: None, shape: Some(shape) }]);
    }
    for port in MOVING {
        history.insert(port, vec![Epoch { since: start, until: None, shape: None }]);
    }
    let ports = STAYING.len() as u32 + MOVING.len() as u32;
    let topology = Topology { intent, ports, uplink_use: UplinkUse::Exclusive };
    let rig = Rig::new(&topology, &[]);

    let long = std::env::var_os("ESWITCHD_LONG").is_some();
    let changes = if long { 10 * CHANGES } else { CHANGES };
    let over = AtomicBool::new(false);
    let all_sent = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let round = round();
            let mut sent = Vec::new();
            while !over.load(Ordering::Relaxed) {
                for (at, (from, frame)) in round.iter().enumerate() {
                    let number = sent.len() as u32 + 1;
                    let bytes = frames::bytes(frame, number);
                    sent.push(Sent { from: *from, frame: frame.clone(), at: Instant::now() });
                    rig.ends.ends.send(*from, &bytes);
                    if at % 32 == 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            *all_sent.lock().unwrap() = sent;
        });
        for _ in 0..changes {
            let port = random.pick(&MOVING);
            let gone = random.chance(4);
            let admin_state = if random.chance(6) { AdminState::Down } else { AdminState::Up };
            let wanted = some_shape(&mut random, port);
            let path = format!("/v1/ports/port{port}?wait=programmed&timeout=25");
            let since = Instant::now();
            let answer = match gone {
                true => rig.daemon.request("DELETE", &path, None),
                false => {
                    let spec = json!({"spec": wanted.spec(port, admin_state)});
                    rig.daemon.request("PUT", &path, Some(&spec))
                }
            };
            let answer = answer.unwrap();
            assert!([200, 201, 204, 404].contains(&answer.status), "{:#}", answer.body);
            let until = Some(Instant::now());
            let shape = (!gone && admin_state == AdminState::Up).then_some(wanted);
            let epochs = history.get_mut(&port).unwrap();
            epochs.last_mut().unwrap().until = until;
            epochs.push(Epoch { since, until: None, shape });
        }
        over.store(true, Ordering::Relaxed);
    });
    let took = start.elapsed();
    // What is under way still.
    std::thread::sleep(Duration::from_millis(500));
    let all_sent = all_sent.into_inner().unwrap();
    let arrivals = rig.ends.ends.take();
    let (mut leaked, mut lost) = (Vec::new(), Vec::new());
    let (mut copies, mut awaited) = (0, 0);
    for (number, sent) in (1..).zip(&all_sent) {
        let arrived = arrivals.get(&number).map(Vec::as_slice).unwrap_or_default();
        copies += arrived.len();
        let ends: BTreeSet<u32> = arrived.iter().map(|arrival| arrival.end).collect();
        let what = || {
            let copies: Vec<_> = arrived.iter().map(|a| (a.end, a.bytes.clone())).collect();
            let at = sent.at.duration_since(start).as_millis();
            format!("{number} at {at} ms from {}: {:?}: {}", sent.from, sent.frame, show(&copies))
        };
        let stray = |arrival| !may_arrive(&history, sent, number, arrival);
        if ends.len() != arrived.len() || arrived.iter().any(stray) {
            leaked.push(what());
        }
        let must = must_arrive(sent);
        awaited += must.len();
        if !must.iter().all(|end| ends.contains(end)) {
            lost.push(format!("{}, not at all of {must:?}", what()));
        }
    }
    println!(
        "{changes} changes in {:.0} s: {} frames, {copies} copies, {awaited} of them between ports \
         that stay as they are; {} at a wrong port or twice at one, {} lost",
        took.as_secs_f64(),
        all_sent.len(),
        leaked.len(),
        lost.len()
    );
    if !(leaked.is_empty() && lost.is_empty()) {
        for port in MOVING {
            for Epoch { since, until, shape } in &history[&port] {
                let since = since.duration_since(start).as_millis();
                let until = until.map(|until| until.duration_since(start).as_millis());
                println!("port{port} {since} to {until:?} ms: {shape:?}");
            }
        }
    }
    let few = |list: &[String]| list[..list.len().min(6)].join("\n");
    assert!(leaked.is_empty(), "at a wrong port, or twice at one:\n{}", few(&leaked));
    assert!(lost.is_empty(), "lost:\n{}", few(&lost));
    assert!(awaited > 20 * changes, "too little was sent");
}
