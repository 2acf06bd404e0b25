//! Random values for this crate's property tests: matches with every key, action lists, rules, and
//! frames drawn from so few values that they often meet the rules.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::action::Action;
use crate::frame::{Body, Frame, Layer4, Tag};
use crate::ident::{ChainId, EtherType, Hook, Ifindex, Mac, Prio, VlanId, VlanTpid};
use crate::key::{ArpMatch, Ipv4Match, Ipv4Prefix, Ipv6Match, Ipv6Prefix, Match, Payload, Ports};
use crate::rule::{Offload, Rule};

pub(crate) fn ifindex(number: u32) -> Ifindex {
    Ifindex::new(number).unwrap()
}

pub(crate) fn hook() -> Hook {
    Hook::ingress(ifindex(7))
}

pub(crate) fn chain(number: u32) -> ChainId {
    ChainId::new(number).unwrap()
}

pub(crate) fn prio(number: u16) -> Prio {
    Prio::new(number).unwrap()
}

pub(crate) fn vid(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

pub(crate) fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn macs() -> impl Strategy<Value = Mac> {
    select(vec![mac(1), mac(2), mac(3), Mac([1, 0, 0x5e, 0, 0, 1]), Mac([0xff; 6])])
}

fn mac_masks() -> impl Strategy<Value = Mac> {
    select(vec![
        Mac::EXACT,
        Mac([1, 0, 0, 0, 0, 0]),
        Mac([0xff, 0xff, 0xff, 0, 0, 0]),
        Mac([0, 0, 0, 0, 0, 0xfe]),
    ])
}

fn tpids() -> impl Strategy<Value = VlanTpid> {
    select(vec![VlanTpid::Dot1Q, VlanTpid::Dot1Ad])
}

fn vids() -> impl Strategy<Value = VlanId> {
    prop_oneof![8 => (0u16..4).prop_map(vid), 1 => (0u16..4096).prop_map(vid)]
}

fn written_vids() -> impl Strategy<Value = VlanId> {
    vids().prop_filter("reserved", |vid| vid.get() != 4095)
}

fn small_ipv4() -> impl Strategy<Value = std::net::Ipv4Addr> {
    (0u8..3).prop_map(|last| [192, 0, 2, last].into())
}

fn small_ipv6() -> impl Strategy<Value = std::net::Ipv6Addr> {
    (0u16..3).prop_map(|last| [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into())
}

fn ipv4_prefixes() -> impl Strategy<Value = Ipv4Prefix> {
    (small_ipv4(), 0u8..=32).prop_map(|(addr, len)| Ipv4Prefix::new(addr, len).unwrap())
}

fn ipv6_prefixes() -> impl Strategy<Value = Ipv6Prefix> {
    (small_ipv6(), 0u8..=128).prop_map(|(addr, len)| Ipv6Prefix::new(addr, len).unwrap())
}

fn ports() -> impl Strategy<Value = Ports> {
    (option::of(66u16..69), option::of(66u16..69)).prop_map(|(src, dst)| {
        let ports = src.map_or(Ports::any(), |port| Ports::any().src(port));
        dst.map_or(ports, |port| ports.dst(port))
    })
}

#[derive(Clone, Copy, Debug)]
enum Carried {
    Nothing,
    Proto(u8),
    Udp(Ports),
    Tcp(Ports),
    Sctp(Ports),
    IcmpType(u8),
    Icmp(u8, u8),
}

fn carried() -> impl Strategy<Value = Carried> {
    prop_oneof![
        Just(Carried::Nothing),
        select(vec![1u8, 6, 17, 47, 58, 132]).prop_map(Carried::Proto),
        ports().prop_map(Carried::Udp),
        ports().prop_map(Carried::Tcp),
        ports().prop_map(Carried::Sctp),
        (133u8..136).prop_map(Carried::IcmpType),
        (133u8..136, 0u8..2).prop_map(|(kind, code)| Carried::Icmp(kind, code)),
    ]
}

fn ipv4_matches() -> impl Strategy<Value = Payload> {
    (
        option::of(ipv4_prefixes()),
        option::of(small_ipv4()),
        option::of((0u8..8, any::<u8>())),
        option::of(63u8..65),
        carried(),
    )
        .prop_map(|(src, dst, tos, ttl, carried)| {
            let mut it = Ipv4Match::any();
            if let Some(prefix) = src {
                it = it.src_in(prefix);
            }
            if let Some(addr) = dst {
                it = it.dst(addr);
            }
            if let Some((tos, mask)) = tos {
                it = it.tos(tos, mask);
            }
            if let Some(ttl) = ttl {
                it = it.ttl(ttl);
            }
            match carried {
                Carried::Nothing => it,
                Carried::Proto(proto) => it.proto(proto),
                Carried::Udp(ports) => it.udp(ports),
                Carried::Tcp(ports) => it.tcp(ports),
                Carried::Sctp(ports) => it.sctp(ports),
                Carried::IcmpType(kind) => it.icmp_type(kind),
                Carried::Icmp(kind, code) => it.icmp(kind, code),
            }
            .into()
        })
}

fn ipv6_matches() -> impl Strategy<Value = Payload> {
    (
        option::of(ipv6_prefixes()),
        option::of(small_ipv6()),
        option::of((0u8..8, any::<u8>())),
        option::of(63u8..65),
        carried(),
    )
        .prop_map(|(src, dst, tos, ttl, carried)| {
            let mut it = Ipv6Match::any();
            if let Some(prefix) = src {
                it = it.src_in(prefix);
            }
            if let Some(addr) = dst {
                it = it.dst(addr);
            }
            if let Some((tos, mask)) = tos {
                it = it.tos(tos, mask);
            }
            if let Some(ttl) = ttl {
                it = it.ttl(ttl);
            }
            match carried {
                Carried::Nothing => it,
                Carried::Proto(proto) => it.proto(proto),
                Carried::Udp(ports) => it.udp(ports),
                Carried::Tcp(ports) => it.tcp(ports),
                Carried::Sctp(ports) => it.sctp(ports),
                Carried::IcmpType(kind) => it.icmp_type(kind),
                Carried::Icmp(kind, code) => it.icmp(kind, code),
            }
            .into()
        })
}

fn arp_matches() -> impl Strategy<Value = Payload> {
    (
        option::of(1u8..3),
        option::of(ipv4_prefixes()),
        option::of(small_ipv4()),
        option::of(macs()),
        option::of(macs()),
    )
        .prop_map(|(op, sip, tip, sha, tha)| {
            let mut it = ArpMatch::any();
            if let Some(op) = op {
                it = it.op(op);
            }
            if let Some(prefix) = sip {
                it = it.sip_in(prefix);
            }
            if let Some(addr) = tip {
                it = it.tip(addr);
            }
            if let Some(mac) = sha {
                it = it.sha(mac);
            }
            if let Some(mac) = tha {
                it = it.tha(mac);
            }
            it.into()
        })
}

// Boxed, here and below: the value tree of a union holds those of all its branches, and all of
// them together do not fit on a test thread's stack.
fn payloads() -> BoxedStrategy<Payload> {
    prop_oneof![
        select(vec![EtherType::IPV4, EtherType::ARP, EtherType::new(0x88cc).unwrap()])
            .prop_map(Payload::from),
        ipv4_matches().boxed(),
        ipv6_matches().boxed(),
        arp_matches().boxed(),
    ]
    .boxed()
}

pub(crate) fn matches() -> BoxedStrategy<Match> {
    let base = prop_oneof![
        2 => Just(Match::any()),
        3 => (tpids(), vids()).prop_map(|(tpid, vid)| Match::vlan(tpid, vid)),
        1 => tpids().prop_map(Match::tagged),
        3 => payloads().prop_map(Match::ethertype),
        1 => (tpids(), vids(), payloads())
            .prop_map(|(tpid, vid, payload)| Match::vlan_with(tpid, vid, payload)),
        1 => (tpids(), option::of(vids()), tpids())
            .prop_map(|(outer, vid, inner)| Match::double_tagged(outer, vid, inner)),
        1 => (tpids(), payloads()).prop_map(|(tpid, payload)| Match::tagged_with(tpid, payload)),
    ];
    (base, option::of((macs(), mac_masks())), option::of((macs(), mac_masks())))
        .prop_map(|(it, src, dst)| {
            let it = match src {
                Some((mac, mask)) => it.src_masked(mac, mask),
                None => it,
            };
            match dst {
                Some((mac, mask)) => it.dst_masked(mac, mask),
                None => it,
            }
        })
        .boxed()
}

/// Destinations of mirred in random rules.
pub(crate) const PORTS: std::ops::Range<u32> = 11..15;

/// Action lists whose gotos lead upwards from `from`, to a chain below `chains`.
pub(crate) fn actions(from: u32, chains: u32) -> impl Strategy<Value = Vec<Action>> {
    let to = || PORTS.prop_map(ifindex);
    let step = prop_oneof![
        to().prop_map(Action::Mirror),
        (tpids(), written_vids()).prop_map(|(tpid, vid)| Action::VlanPush { tpid, vid }),
        Just(Action::VlanPop),
        (tpids(), written_vids()).prop_map(|(tpid, vid)| Action::VlanModify { tpid, vid }),
    ];
    let end = if from + 1 < chains {
        prop_oneof![
            select(vec![Action::Drop, Action::Pass, Action::Trap]),
            to().prop_map(Action::Redirect),
            (from + 1..chains).prop_map(|to| Action::Goto(chain(to))),
        ]
        .boxed()
    } else {
        prop_oneof![
            select(vec![Action::Drop, Action::Pass, Action::Trap]),
            to().prop_map(Action::Redirect),
        ]
        .boxed()
    };
    (vec(step, 0..4), end).prop_map(|(mut list, end)| {
        list.push(end);
        list
    })
}

/// How many chains random rules use.
pub(crate) const CHAINS: u32 = 4;

pub(crate) fn rules() -> BoxedStrategy<Rule> {
    let offload = select(vec![Offload::Auto, Offload::SkipHw, Offload::SkipSw]);
    (0..CHAINS)
        .prop_flat_map(move |at| {
            (Just(at), 1u16..6, matches(), actions(at, CHAINS), offload.clone())
        })
        .prop_map(|(at, at_prio, matching, actions, offload)| {
            Rule::new(hook(), chain(at), prio(at_prio), matching, actions)
                .unwrap()
                .with_offload(offload)
        })
        .boxed()
}

fn layer4s() -> impl Strategy<Value = Layer4> {
    prop_oneof![
        (66u16..69, 66u16..69).prop_map(|(src, dst)| Layer4::Udp { src, dst }),
        (66u16..69, 66u16..69).prop_map(|(src, dst)| Layer4::Tcp { src, dst, flags: 2 }),
        (66u16..69, 66u16..69).prop_map(|(src, dst)| Layer4::Sctp { src, dst }),
        (133u8..136, 0u8..2).prop_map(|(kind, code)| Layer4::Icmp { kind, code }),
        Just(Layer4::Other(47)),
    ]
}

fn tags() -> impl Strategy<Value = Tag> {
    (tpids(), vids(), select(vec![0, 0, 5])).prop_map(|(tpid, vid, pcp)| Tag { tpid, vid, pcp })
}

pub(crate) fn frames() -> impl Strategy<Value = Frame> {
    let body = prop_oneof![
        Just(Body::Opaque),
        (small_ipv4(), small_ipv4(), 0u8..8, 63u8..65, layer4s())
            .prop_map(|(src, dst, tos, ttl, layer4)| Body::Ipv4 { src, dst, tos, ttl, layer4 }),
        (small_ipv6(), small_ipv6(), 0u8..8, 63u8..65, layer4s())
            .prop_map(|(src, dst, tos, ttl, layer4)| Body::Ipv6 { src, dst, tos, ttl, layer4 }),
        (1u8..3, macs(), small_ipv4(), macs(), small_ipv4())
            .prop_map(|(op, sha, sip, tha, tip)| Body::Arp { op, sha, sip, tha, tip }),
    ];
    (macs(), macs(), vec(tags(), 0..3), body).prop_map(|(dst, src, tags, body)| {
        let mut frame = Frame::opaque(dst, src, EtherType::new(0x88cc).unwrap()).with_body(body);
        frame.tags = tags;
        frame
    })
}
