//! What was wanted of a switch at each moment, and which copies of frames could not be under any of it.
//!
//! In: what ports were and when, frames that went in, copies that came out. Out: the copies that are
//! at a wrong end, have a wrong tag or are one too many, and the ends where one is missing. A frame is
//! judged by what was wanted at some moment between its sending and its arrival; while a change is
//! under way, both what was and what will be may hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use api::{
    resources::{AdminState, Attachment, NetworkKind, PortFunction, PortSpec, VlanProto, VlanTag},
    types::{MacAddr, Vid},
};
use eswitchd_netns_tests::{Q, ends::Arrival, frames, vid};
use tc_flows::{EtherType, Frame, Mac, Tag as FrameTag};

use crate::{
    reference::Tag,
    topology::{WIRE, id},
};

pub(crate) const NETWORKS: usize = 4;

pub(crate) fn kind(network: usize) -> NetworkKind {
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
pub(crate) type Tagged = &'static [(usize, Option<u16>)];

/// Ports that nothing is changed about, by number.
pub(crate) const STAYING: [(u32, Tagged); 8] = [
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
pub(crate) const MOVING: [u32; 5] = [9, 10, 11, 12, 13];

const PAYLOAD: EtherType = match EtherType::new(0x88b5) {
    Some(ethertype) => ethertype,
    None => EtherType::ARP,
};

pub(crate) fn address(port: u32, which: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, which, port as u8])
}

/// What a port is: the networks it is in with their tags, and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) networks: Vec<(usize, Tag)>,
    pub(crate) mac: MacAddr,
    /// Whether its guest's tags stay inside the network's.
    pub(crate) keeps_tags: bool,
}

impl Shape {
    pub(crate) fn new(networks: &[(usize, Option<u16>)], mac: MacAddr) -> Shape {
        let networks =
            networks.iter().map(|(network, tag)| (*network, tag.map(|tag| (Q, vid(tag)))));
        Shape { networks: networks.collect(), mac, keeps_tags: false }
    }

    pub(crate) fn tag(&self, network: usize) -> Option<Tag> {
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

    pub(crate) fn spec(&self, port: u32, admin_state: AdminState) -> PortSpec {
        let attachments = self.networks.iter().map(|(network, tag)| Attachment {
            network: id(format!("net{network}")),
            tag: tag.map(|(_, vid)| Vid::try_from(vid.get()).unwrap()),
            priority: None,
            qinq: self.keeps_tags,
        });
        let name = format!("rep{port}");
        let function = PortFunction::Netdev { adapter: id("soft-lab"), name };
        let spec = PortSpec::new(function, attachments.collect());
        PortSpec { macs: vec![self.mac], admin_state, ..spec }
    }
}

pub(crate) fn uplink_tag(network: usize) -> Option<Tag> {
    match kind(network) {
        NetworkKind::Flat => Some(None),
        NetworkKind::Vlan(tag) => Some(Some((Q, vid(tag.vid.get())))),
        NetworkKind::Isolated => None,
    }
}

/// What a port was, from the moment when that was asked for to the moment when it had been replaced.
/// Without a shape it passes nothing.
#[derive(Debug, Clone)]
pub(crate) struct Epoch {
    pub(crate) since: Instant,
    pub(crate) until: Option<Instant>,
    pub(crate) shape: Option<Shape>,
}

/// A frame that went in.
pub(crate) struct Sent {
    pub(crate) from: u32,
    pub(crate) frame: Frame,
    pub(crate) at: Instant,
}

/// Everything that was known of ports, by number.
pub(crate) type History = BTreeMap<u32, Vec<Epoch>>;

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
pub(crate) fn retagged(frame: &Frame, tags: impl IntoIterator<Item = Tag>) -> Frame {
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

/// What is wrong about the copies of one frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Where copies came out that may not be there, each with what came, and copies beyond the one
    /// that may.
    pub(crate) strays: Vec<(u32, Vec<u8>)>,
    /// Ends where a copy must have come out, and none did that may be there.
    pub(crate) missing: Vec<u32>,
}

/// Judges all that came out of one frame.
pub(crate) fn wrong(history: &History, number: u32, sent: &Sent, arrived: &[Arrival]) -> Wrong {
    let mut right = BTreeSet::new();
    let mut strays = Vec::new();
    for arrival in arrived {
        if !may_arrive(history, sent, number, arrival) || !right.insert(arrival.end) {
            strays.push((arrival.end, arrival.bytes.clone()));
        }
    }
    let missing = must_arrive(sent).into_iter().filter(|end| !right.contains(end)).collect();
    Wrong { strays, missing }
}

/// The ends, none of which anything is changed about, where a frame must come out.
pub(crate) fn must_arrive(sent: &Sent) -> Vec<u32> {
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
pub(crate) fn round() -> Vec<(u32, Frame)> {
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
