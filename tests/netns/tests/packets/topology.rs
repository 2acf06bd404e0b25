//! Random networks and ports, and the frames that are tried between each two of their ends.
//!
//! In: randomness. Out: an intent, and frames with the end where each goes in. Nothing here knows
//! where a frame comes out.

use std::collections::BTreeSet;

use api::{
    resources::{
        AddressPair, AdminState, Allowance, Attachment, Multicast, NetworkKind, NetworkSpec,
        PortFunction, PortSpec, Promiscuous, UnknownUnicast, VlanProto, VlanTag,
    },
    types::{Id, MacAddr, Vid},
};
use controller::{
    config::UplinkUse,
    intent::{Change, Intent},
};
use eswitchd_netns_tests::{AD, Q, Random, mac, v4, v6, vid};
use tc_flows::{Body, EtherType, Frame, Layer4, Mac, Tag as FrameTag};

use crate::reference::{Tag, eui64};

/// The end of the uplink's wire. Ports are numbered from 1, and so are their ends.
pub(crate) const WIRE: u32 = 0;

/// The end where what reaches the host is seen.
pub(crate) const HOST: u32 = 1000;

/// The uplink's own address.
pub(crate) const UPLINK_MAC: MacAddr = MacAddr([2, 0xff, 0, 0, 0, 1]);

/// The groups of IEEE 802.1D, table 7-10, that bridges keep to themselves.
pub(crate) fn is_link_local(mac: Mac) -> bool {
    mac.0[..5] == [1, 0x80, 0xc2, 0, 0] && mac.0[5] < 16
}

pub(crate) fn id(text: impl Into<String>) -> Id {
    text.into().parse().unwrap()
}

pub(crate) fn port_id(number: u32) -> Id {
    id(format!("port{number}"))
}

fn some_vid(number: u16) -> Vid {
    Vid::try_from(number).unwrap()
}

/// Which frames a topology may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breadth {
    /// All that a program can say.
    All,
    /// Only what a VLAN-filtering bridge can say, too: a guest's tag is its network's own, and
    /// nothing is said about what is inside a frame.
    Bridge,
}

/// Networks and ports.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) intent: Intent,
    pub(crate) ports: u32,
    pub(crate) uplink_use: UplinkUse,
}

/// The VLAN id of a VLAN network, and what stands for any network inside a bridge.
fn vid_of(number: u32) -> u16 {
    100 + number as u16
}

/// The same, by the network's id.
pub(crate) fn inner_vid(network: &Id) -> u16 {
    vid_of(network.to_string().trim_start_matches("net").parse().unwrap())
}

fn some_network(random: &mut Random, number: u32, breadth: Breadth) -> NetworkSpec {
    let proto = match breadth {
        Breadth::All if random.chance(5) => VlanProto::Dot1Ad,
        _ => VlanProto::Dot1Q,
    };
    let vlan = NetworkKind::Vlan(VlanTag { vid: some_vid(vid_of(number)), proto });
    let kind = match number {
        0 => random.pick(&[NetworkKind::Flat, vlan]),
        _ if random.chance(4) => NetworkKind::Isolated,
        _ => vlan,
    };
    let unknown_unicast = match breadth {
        Breadth::All if random.chance(3) => UnknownUnicast::Drop,
        _ => UnknownUnicast::Uplink,
    };
    NetworkSpec {
        kind,
        adapter: None,
        reserved_macs: Vec::new(),
        unknown_unicast,
        // Of no guest it can be seen here what it asks for.
        multicast: random.pick(&[Multicast::Flood, Multicast::Declared]),
        labels: Default::default(),
    }
}

fn some_attachments(random: &mut Random, networks: u32, breadth: Breadth) -> Vec<Attachment> {
    let wanted = random.pick(&[1, 1, 1, 2, 2, 3]).min(networks);
    let native = wanted == 1 || random.chance(2);
    let mut attachments: Vec<Attachment> = Vec::new();
    while attachments.len() < wanted as usize {
        let number = random.below(networks as usize) as u32;
        let tag = match breadth {
            _ if attachments.is_empty() && native => None,
            Breadth::All => Some(some_vid(1 + random.below(8) as u16)),
            Breadth::Bridge => Some(some_vid(vid_of(number))),
        };
        let network = id(format!("net{number}"));
        if attachments.iter().all(|a| a.network != network && a.tag != tag) {
            attachments.push(Attachment { network, tag, priority: None, qinq: false });
        }
    }
    attachments
}

impl Topology {
    pub(crate) fn some(
        random: &mut Random,
        ports: u32,
        networks: u32,
        breadth: Breadth,
    ) -> Topology {
        let mut intent = Intent::default();
        for number in 0..networks {
            let spec = some_network(random, number, breadth);
            intent.apply(Change::Network(id(format!("net{number}")), Some(spec)));
        }
        for number in 1..=ports {
            let spec = some_port(random, &intent, number, networks, breadth);
            intent.apply(Change::Port(port_id(number), Some(spec)));
        }
        let uplink_use = random.pick(&[UplinkUse::Shared, UplinkUse::Exclusive]);
        Topology { intent, ports, uplink_use }
    }

    pub(crate) fn spec(&self, port: u32) -> &PortSpec {
        &self.intent.ports[&port_id(port)].spec
    }

    pub(crate) fn network(&self, network: &Id) -> &NetworkSpec {
        &self.intent.networks[network].spec
    }
}

/// A port; with the address of another one now and then, where they meet in no network.
fn some_port(
    random: &mut Random,
    intent: &Intent,
    number: u32,
    networks: u32,
    breadth: Breadth,
) -> PortSpec {
    let mut attachments = some_attachments(random, networks, breadth);
    if let ([Attachment { network, tag: None, qinq, .. }], Breadth::All) =
        (attachments.as_mut_slice(), breadth)
    {
        *qinq = intent.networks[network].spec.kind != NetworkKind::Flat && random.chance(3);
    }
    let own = |kind| MacAddr([2, 0, 0, 0, kind, number as u8]);
    let mut macs = vec![own(0)];
    if random.chance(4) {
        macs.push(own(1));
    }
    let apart = intent.ports.values().map(|port| &port.spec).filter(|other| {
        other.attachments.iter().all(|a| attachments.iter().all(|b| a.network != b.network))
    });
    let lent: Vec<MacAddr> = apart.map(|other| other.macs[0]).collect();
    // Two that borrow one address may meet: only who is in no other network of the lenders may.
    let taken = |mac: &MacAddr| {
        intent.ports.values().any(|port| {
            port.spec.macs.contains(mac)
                && port
                    .spec
                    .attachments
                    .iter()
                    .any(|a| attachments.iter().any(|b| a.network == b.network))
        })
    };
    let lent: Vec<MacAddr> = lent.into_iter().filter(|mac| !taken(mac)).collect();
    if !lent.is_empty() && random.chance(4) {
        macs = vec![random.pick(&lent)];
    }
    let name = format!("rep{number}");
    let function = PortFunction::Netdev { adapter: id("soft-lab"), name };
    let mut spec = PortSpec {
        macs,
        isolated: random.chance(6),
        promiscuous: random.pick(&[Promiscuous::Deny, Promiscuous::Deny, Promiscuous::Allow]),
        ..PortSpec::new(function, attachments)
    };
    if random.chance(12) {
        spec.admin_state = AdminState::Down;
    }
    if breadth == Breadth::Bridge {
        return spec;
    }
    if random.chance(2) {
        let (four, six) = (v4(number as u8), v6(number as u16));
        spec.ips = [four.to_string(), six.to_string(), "198.51.100.0/24".to_owned()]
            .iter()
            .take(1 + random.below(3))
            .map(|ip| ip.parse().unwrap())
            .collect();
        if random.chance(3) {
            let mac = random.chance(2).then(|| own(2));
            let ip = "203.0.113.7".parse().unwrap();
            spec.allowed_address_pairs.push(AddressPair { mac, ip });
        }
        if random.chance(3) {
            spec.ethertypes = vec![0x88b5];
        }
    }
    let all = [Allowance::RouterAdvertisements, Allowance::DhcpServer, Allowance::LinkLocalGroups];
    spec.allow = all.into_iter().filter(|_| random.chance(5)).collect();
    spec
}

/// What is tried between each two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trial {
    Unicast,
    Broadcast,
    Multicast,
    UnknownUnicast,
    SpoofedMac,
    WrongTag,
    DoubleTag,
    NeighborDiscovery,
    ArpSpoof,
}

pub(crate) const TRIALS: [Trial; 9] = [
    Trial::Unicast,
    Trial::Broadcast,
    Trial::Multicast,
    Trial::UnknownUnicast,
    Trial::SpoofedMac,
    Trial::WrongTag,
    Trial::DoubleTag,
    Trial::NeighborDiscovery,
    Trial::ArpSpoof,
];

/// Somebody behind the uplink.
fn outside(random: &mut Random) -> Mac {
    Mac([2, 0x99, 0, 0, 0, random.below(3) as u8])
}

impl Topology {
    /// An address that is used at this end.
    pub(crate) fn mac_at(&self, random: &mut Random, end: u32) -> Mac {
        match end {
            WIRE => outside(random),
            port => {
                let spec = self.spec(port);
                let pairs = spec.allowed_address_pairs.iter().filter_map(|pair| pair.mac);
                let all: Vec<MacAddr> = spec.macs.iter().copied().chain(pairs).collect();
                Mac(random.pick(&all).0)
            }
        }
    }

    /// How a frame of this network is tagged at this end, where it is there at all.
    fn tag_at(&self, end: u32, network: &Id) -> Option<Tag> {
        if end == WIRE {
            return match self.network(network).kind {
                NetworkKind::Flat => Some(None),
                NetworkKind::Isolated => None,
                NetworkKind::Vlan(tag) => {
                    let tpid = if tag.proto == VlanProto::Dot1Ad { AD } else { Q };
                    Some(Some((tpid, vid(tag.vid.get()))))
                }
            };
        }
        let attachment = self.spec(end).attachments.iter().find(|a| a.network == *network)?;
        Some(attachment.tag.map(|tag| (Q, vid(tag.get()))))
    }

    /// A tag with which `from` reaches `to`; where they have nothing in common, another of its own.
    fn some_tag(&self, random: &mut Random, from: u32, to: u32) -> Tag {
        let networks = || self.intent.networks.keys();
        let shared = networks().filter(|n| self.tag_at(to, n).is_some());
        let shared: Vec<Tag> = shared.filter_map(|n| self.tag_at(from, n)).collect();
        let own: Vec<Tag> = networks().filter_map(|n| self.tag_at(from, n)).collect();
        match (shared.is_empty(), own.is_empty()) {
            (false, _) => random.pick(&shared),
            (true, false) => random.pick(&own),
            (true, true) => None,
        }
    }

    /// The frame that tries this from one end with another in mind.
    pub(crate) fn frame(&self, random: &mut Random, trial: Trial, from: u32, to: u32) -> Frame {
        let mut source = self.mac_at(random, from);
        let tag = self.some_tag(random, from, to);
        let mut tags: Vec<FrameTag> =
            tag.map(|(tpid, vid)| FrameTag::new(tpid, vid)).into_iter().collect();
        if from != WIRE && self.spec(from).attachments.iter().any(|a| a.qinq) && random.chance(2) {
            tags.push(FrameTag::new(Q, vid(random.pick(&[0, 1, 7, 100, 101]))));
        }
        let target = match trial {
            Trial::Unicast | Trial::WrongTag | Trial::DoubleTag => self.mac_at(random, to),
            Trial::Broadcast | Trial::ArpSpoof => Mac([0xff; 6]),
            Trial::Multicast => match random.below(3) {
                0 => Mac([0x33, 0x33, 0, 0, 0, 1]),
                1 => Mac([1, 0, 0x5e, 0, 0, 1]),
                _ => Mac([1, 0x80, 0xc2, 0, 0, random.below(18) as u8]),
            },
            Trial::UnknownUnicast => match random.below(8) {
                0 => Mac(UPLINK_MAC.0),
                last => Mac([2, 9, 9, 9, 9, last as u8]),
            },
            Trial::SpoofedMac if random.chance(2) => Mac([0xff; 6]),
            Trial::SpoofedMac => self.mac_at(random, to),
            Trial::NeighborDiscovery => Mac([0x33, 0x33, 0xff, 0, 0, to as u8]),
        };
        let body = match trial {
            Trial::NeighborDiscovery => self.discovery(random, source, from, to),
            Trial::ArpSpoof => self.arp(random, source, from, to),
            _ => self.some_body(random, source, from, to),
        };
        match trial {
            Trial::SpoofedMac => {
                let others = 1 + random.below(self.ports as usize) as u32;
                let whose = random.pick(&[to, others]);
                source = self.mac_at(random, whose);
            }
            Trial::WrongTag => {
                let wrong = vid(random.pick(&[0, 1, 5, 99, 100, 101, 102, 4000]));
                let tpid = random.pick(&[Q, Q, Q, AD]);
                tags = match random.below(4) {
                    0 => Vec::new(),
                    _ => vec![FrameTag::new(tpid, wrong)],
                };
            }
            Trial::DoubleTag => {
                let inner = vid(random.pick(&[0, 1, 2, 100, 101]));
                tags.push(FrameTag::new(random.pick(&[Q, Q, AD]), inner));
                if tags.len() == 1 || random.chance(8) {
                    tags.push(FrameTag::new(Q, vid(random.pick(&[1, 100]))));
                }
            }
            _ => {}
        }
        let (ethertype, body) = body;
        Frame { tags, ..Frame::opaque(target, source, ethertype) }.with_body(body)
    }

    fn discovery(&self, random: &mut Random, source: Mac, from: u32, to: u32) -> (EtherType, Body) {
        let src = random.pick(&[
            eui64(source),
            v6(from as u16),
            v6(to as u16),
            std::net::Ipv6Addr::UNSPECIFIED,
            eui64(mac(to as u8)),
        ]);
        let kind = random.pick(&[135, 135, 136, 134]);
        let layer4 = Layer4::Icmp { kind, code: 0 };
        (EtherType::IPV6, Body::ipv6(src, v6(to as u16), layer4))
    }

    fn arp(&self, random: &mut Random, source: Mac, from: u32, to: u32) -> (EtherType, Body) {
        let nobody = std::net::Ipv4Addr::UNSPECIFIED;
        let other = self.mac_at(random, to);
        let body = Body::Arp {
            op: random.pick(&[1, 2, 2, 3]),
            sha: random.pick(&[source, source, other]),
            sip: random.pick(&[v4(to as u8), v4(to as u8), v4(from as u8), nobody]),
            tha: Mac([0; 6]),
            tip: v4(from as u8),
        };
        (EtherType::ARP, body)
    }

    fn some_body(&self, random: &mut Random, source: Mac, from: u32, to: u32) -> (EtherType, Body) {
        let port = |random: &mut Random| random.pick(&[67, 68, 547, 546, 53, 53, 53]);
        let layer4 = match random.below(4) {
            0 | 1 => Layer4::Udp { src: port(random), dst: port(random) },
            2 => Layer4::Tcp { src: 53, dst: 53, flags: 2 },
            _ => Layer4::Icmp { kind: random.pick(&[8, 128, 134, 135]), code: 0 },
        };
        let other = random.pick(&[0x8035, 0x88b5, 0x88b5, 0x88b6]);
        match random.below(6) {
            0 | 1 => {
                let src = random.pick(&[
                    v4(from as u8),
                    v4(from as u8),
                    v4(to as u8),
                    [198, 51, 100, 9].into(),
                    [203, 0, 113, 7].into(),
                    [0, 0, 0, 0].into(),
                ]);
                (EtherType::IPV4, Body::ipv4(src, v4(to as u8), layer4))
            }
            2 | 3 => {
                let src =
                    random.pick(&[v6(from as u16), v6(from as u16), v6(to as u16), eui64(source)]);
                (EtherType::IPV6, Body::ipv6(src, v6(to as u16), layer4))
            }
            _ => (EtherType::new(other).unwrap(), Body::Opaque),
        }
    }
}

/// Each two ends of so many ports and the wire, in both directions.
pub(crate) fn pairs(ports: u32) -> impl Iterator<Item = (u32, u32)> {
    let ends = move || WIRE..=ports;
    ends().flat_map(move |from| ends().filter(move |to| *to != from).map(move |to| (from, to)))
}

/// All addresses of a port.
pub(crate) fn macs_of(spec: &PortSpec) -> BTreeSet<MacAddr> {
    let pairs = spec.allowed_address_pairs.iter().filter_map(|pair| pair.mac);
    spec.macs.iter().copied().chain(pairs).collect()
}
