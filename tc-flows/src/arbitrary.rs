//! Random values for this crate's property tests: matches with every key, action lists, rules, and
//! frames drawn from so few values that they often meet the rules.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::action::Action;
use crate::frame::{Body, Fragment, Frame, Layer4, Tag};
use crate::ident::{ChainId, EtherType, Hook, Ifindex, Mac, Prio, VlanId, VlanTpid};
use crate::key::{
    ArpMatch, CfmLevel, CfmMatch, CtFlags, CtState, GeneveOption, IpPrefix, Ipv4Match, Ipv4Prefix,
    Ipv6Match, Ipv6Prefix, LinkName, Match, MplsDepth, MplsEntry, MplsLabel, MplsMatch, MplsTc,
    Payload, PortRange, Ports, PppoeMatch, Spi, TagMatch, Tcp, Tunnel, TunnelFlags, TunnelOptions,
    VlanPrio,
};
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

fn port() -> impl Strategy<Value = u16> {
    66u16..69
}

fn port_ranges() -> impl Strategy<Value = PortRange> {
    (64u16..68, 1u16..4).prop_map(|(min, more)| PortRange::new(min, min + more).unwrap())
}

fn ports() -> impl Strategy<Value = Ports> {
    #[derive(Clone, Debug)]
    enum Side {
        Any,
        One(u16),
        Masked(u16, u16),
        Range(PortRange),
    }
    let side = || {
        prop_oneof![
            3 => Just(Side::Any),
            3 => port().prop_map(Side::One),
            1 => (port(), any::<u16>()).prop_map(|(port, mask)| Side::Masked(port, mask)),
            1 => port_ranges().prop_map(Side::Range),
        ]
    };
    (side(), side()).prop_map(|(src, dst)| {
        let ports = match src {
            Side::Any => Ports::any(),
            Side::One(port) => Ports::any().src(port),
            Side::Masked(port, mask) => Ports::any().src_masked(port, mask),
            Side::Range(range) => Ports::any().src_range(range),
        };
        match dst {
            Side::Any => ports,
            Side::One(port) => ports.dst(port),
            Side::Masked(port, mask) => ports.dst_masked(port, mask),
            Side::Range(range) => ports.dst_range(range),
        }
    })
}

#[derive(Clone, Copy, Debug)]
enum Carried {
    Nothing,
    Proto(u8),
    Udp(Ports),
    Tcp(Tcp),
    Sctp(Ports),
    IcmpType(u8),
    Icmp(u8, u8),
    IcmpMasked((u8, u8), (u8, u8)),
    Esp(Spi),
    Ah(Spi),
    L2tp(u32),
}

fn carried() -> BoxedStrategy<Carried> {
    let spis =
        || (1u32..4, any::<u32>()).prop_map(|(spi, mask)| Spi::masked(spi, mask | 3).unwrap());
    prop_oneof![
        2 => Just(Carried::Nothing),
        2 => select(vec![1u8, 6, 17, 47, 58, 132]).prop_map(Carried::Proto),
        2 => ports().prop_map(Carried::Udp),
        2 => ports().prop_map(|ports| Carried::Tcp(ports.into())),
        1 => (ports(), 0u16..4, any::<u16>())
            .prop_map(|(ports, flags, mask)| Carried::Tcp(Tcp::from(ports).flags(flags, mask))),
        2 => ports().prop_map(Carried::Sctp),
        2 => (133u8..136).prop_map(Carried::IcmpType),
        2 => (133u8..136, 0u8..2).prop_map(|(kind, code)| Carried::Icmp(kind, code)),
        1 => ((133u8..136, any::<u8>()), (0u8..2, any::<u8>()))
            .prop_map(|(kind, code)| Carried::IcmpMasked(kind, code)),
        1 => spis().prop_map(Carried::Esp),
        1 => spis().prop_map(Carried::Ah),
        1 => any::<u32>().prop_map(Carried::L2tp),
    ]
    .boxed()
}

macro_rules! ip_matches {
    ($name:ident, $type:ident, $prefixes:ident, $addresses:ident) => {
        fn $name() -> BoxedStrategy<$type> {
            (
                option::of($prefixes()),
                option::of($addresses()),
                option::of((0u8..8, any::<u8>())),
                option::of((63u8..65, select(vec![0xff, 0xff, 0xfe]))),
                option::weighted(0.1, (any::<bool>(), option::of(any::<bool>()))),
                carried(),
            )
                .prop_map(|(src, dst, tos, ttl, fragment, carried)| {
                    let mut it = $type::any();
                    if let Some(prefix) = src {
                        it = it.src_in(prefix);
                    }
                    if let Some(addr) = dst {
                        it = it.dst(addr);
                    }
                    if let Some((tos, mask)) = tos {
                        it = it.tos(tos, mask);
                    }
                    if let Some((ttl, mask)) = ttl {
                        it = it.ttl_masked(ttl, mask);
                    }
                    if let Some((fragment, first)) = fragment {
                        it = it.fragment(fragment);
                        if let Some(first) = first {
                            it = it.first_fragment(first);
                        }
                    }
                    match carried {
                        Carried::Nothing => it,
                        Carried::Proto(proto) => it.proto(proto),
                        Carried::Udp(ports) => it.udp(ports),
                        Carried::Tcp(tcp) => it.tcp(tcp),
                        Carried::Sctp(ports) => it.sctp(ports),
                        Carried::IcmpType(kind) => it.icmp_type(kind),
                        Carried::Icmp(kind, code) => it.icmp(kind, code),
                        Carried::IcmpMasked(kind, code) => it.icmp_masked(kind, code),
                        Carried::Esp(spi) => it.esp(spi),
                        Carried::Ah(spi) => it.ah(spi),
                        Carried::L2tp(session) => it.l2tpv3(session),
                    }
                })
                .boxed()
        }
    };
}

ip_matches!(ipv4_matches, Ipv4Match, ipv4_prefixes, small_ipv4);
ip_matches!(ipv6_matches, Ipv6Match, ipv6_prefixes, small_ipv6);

fn arp_matches() -> impl Strategy<Value = Payload> {
    (
        select(vec![ArpMatch::any(), ArpMatch::any(), ArpMatch::rarp()]),
        option::of((1u8..3, select(vec![0xff, 0xff, 0x02]))),
        option::of(ipv4_prefixes()),
        option::of(small_ipv4()),
        option::of((macs(), mac_masks())),
        option::of(macs()),
    )
        .prop_map(|(mut it, op, sip, tip, sha, tha)| {
            if let Some((op, mask)) = op {
                it = it.op_masked(op, mask);
            }
            if let Some(prefix) = sip {
                it = it.sip_in(prefix);
            }
            if let Some(addr) = tip {
                it = it.tip(addr);
            }
            if let Some((mac, mask)) = sha {
                it = it.sha_masked(mac, mask);
            }
            if let Some(mac) = tha {
                it = it.tha(mac);
            }
            it.into()
        })
}

fn mpls_matches() -> impl Strategy<Value = MplsMatch> {
    let parts = (
        option::of((0u32..3).prop_map(|label| MplsLabel::new(label << 18 | 7).unwrap())),
        option::of((0u8..8).prop_map(|tc| MplsTc::new(tc).unwrap())),
        option::of(any::<bool>()),
        option::of(any::<u8>()),
    );
    let entries = parts.prop_map(|(label, tc, bos, ttl)| {
        let mut it = MplsEntry::any();
        if let Some(label) = label {
            it = it.label(label);
        }
        if let Some(tc) = tc {
            it = it.tc(tc);
        }
        if let Some(bos) = bos {
            it = it.bos(bos);
        }
        if let Some(ttl) = ttl {
            it = it.ttl(ttl);
        }
        it
    });
    let depths =
        prop_oneof![2 => Just(1u8), 1 => 1u8..=7].prop_map(|depth| MplsDepth::new(depth).unwrap());
    (any::<bool>(), vec((depths, entries), 0..4)).prop_map(|(multicast, entries)| {
        let it = if multicast { MplsMatch::multicast() } else { MplsMatch::unicast() };
        entries.into_iter().fold(it, |it, (depth, entry)| it.entry(depth, entry))
    })
}

fn pppoe_matches() -> impl Strategy<Value = PppoeMatch> {
    let within = prop_oneof![
        Just(PppoeMatch::any()),
        select(vec![0x21u16, 0x57, 0x281, 0xc021]).prop_map(|proto| PppoeMatch::any().proto(proto)),
        ipv4_matches().prop_map(|within| PppoeMatch::any().ipv4(within)),
        ipv6_matches().prop_map(|within| PppoeMatch::any().ipv6(within)),
        mpls_matches().prop_map(|within| PppoeMatch::any().mpls(within)),
    ];
    (within, option::of(1u16..4)).prop_map(|(it, session)| match session {
        Some(session) => it.session(session),
        None => it,
    })
}

fn cfm_matches() -> impl Strategy<Value = CfmMatch> {
    (option::of(0u8..8), option::of(0u8..4)).prop_map(|(level, opcode)| {
        let mut it = CfmMatch::any();
        if let Some(level) = level {
            it = it.level(CfmLevel::new(level).unwrap());
        }
        if let Some(opcode) = opcode {
            it = it.opcode(opcode);
        }
        it
    })
}

// Boxed, here and below: the value tree of a union holds those of all its branches, and all of
// them together do not fit on a test thread's stack.
fn payloads() -> BoxedStrategy<Payload> {
    prop_oneof![
        4 => select(vec![EtherType::IPV4, EtherType::ARP, EtherType::new(0x88cc).unwrap()])
            .prop_map(Payload::from),
        4 => ipv4_matches().prop_map(Payload::from),
        4 => ipv6_matches().prop_map(Payload::from),
        4 => arp_matches().boxed(),
        1 => mpls_matches().prop_map(Payload::from).boxed(),
        1 => pppoe_matches().prop_map(Payload::from).boxed(),
        1 => cfm_matches().prop_map(Payload::from).boxed(),
    ]
    .boxed()
}

fn tunnel_options() -> BoxedStrategy<TunnelOptions> {
    let geneve = || {
        let words = (1usize..4)
            .prop_flat_map(|words| (vec(any::<u8>(), 4 * words), vec(any::<u8>(), 4 * words)));
        ((any::<u16>(), any::<u16>()), any::<(u8, u8)>(), words, any::<bool>()).prop_map(
            |(class, kind, (data, mask), exact)| {
                if exact {
                    GeneveOption::new(class.0, kind.0, &data).unwrap()
                } else {
                    GeneveOption::masked(class, kind, &data, &mask).unwrap()
                }
            },
        )
    };
    prop_oneof![
        vec(geneve(), 1..4).prop_map(|options| TunnelOptions::geneve(&options).unwrap()),
        any::<(u32, u32)>().prop_map(|(gbp, mask)| TunnelOptions::vxlan_gbp(gbp, mask)),
        any::<(u32, u32)>().prop_map(|(index, mask)| TunnelOptions::erspan_v1(index, mask)),
        any::<((u8, u8), (u8, u8))>().prop_map(|(dir, id)| TunnelOptions::erspan_v2(dir, id)),
        any::<((u8, u8), (u8, u8))>().prop_map(|(kind, qfi)| TunnelOptions::gtp(kind, qfi)),
        any::<((u8, u8), (u64, u64))>().prop_map(|(kind, seid)| TunnelOptions::pfcp(kind, seid)),
    ]
    .boxed()
}

fn tunnels() -> BoxedStrategy<Tunnel> {
    let addr = || {
        prop_oneof![
            ipv4_prefixes().prop_map(IpPrefix::from),
            ipv6_prefixes().prop_map(IpPrefix::from)
        ]
    };
    let flags = || {
        select(vec![
            TunnelFlags::NONE,
            TunnelFlags::CSUM,
            TunnelFlags::OAM.and(TunnelFlags::CRIT_OPT),
            TunnelFlags::DONT_FRAGMENT,
        ])
    };
    (
        option::of(0u32..3),
        (option::of(addr()), option::of(addr())),
        option::of((port(), any::<u16>())),
        option::of((port(), select(vec![u16::MAX, 0xfff0]))),
        option::of(any::<(u8, u8)>()),
        option::of(any::<(u8, u8)>()),
        option::of((flags(), flags())),
        option::of(tunnel_options()),
    )
        .prop_map(|(id, (src, dst), src_port, dst_port, tos, ttl, flags, options)| {
            let mut it = Tunnel::any();
            if let Some(id) = id {
                it = it.key_id(id);
            }
            if let Some(src) = src {
                it = it.src(src);
            }
            if let Some(dst) = dst {
                it = it.dst(dst);
            }
            if let Some((port, mask)) = src_port {
                it = it.src_port(port, mask);
            }
            if let Some((port, mask)) = dst_port {
                it = it.dst_port_masked(port, mask);
            }
            if let Some((tos, mask)) = tos {
                it = it.tos(tos, mask);
            }
            if let Some((ttl, mask)) = ttl {
                it = it.ttl(ttl, mask);
            }
            if let Some((set, clear)) = flags {
                it = it.flags(set, clear);
            }
            if let Some(options) = options {
                it = it.options(&options);
            }
            it
        })
        .boxed()
}

fn ct_states() -> impl Strategy<Value = CtState> {
    let none = CtFlags::NONE;
    let tracked = CtFlags::TRACKED;
    select(vec![
        CtState::new(none, tracked).unwrap(),
        CtState::new(tracked, CtFlags::NEW).unwrap(),
        CtState::new(tracked.and(CtFlags::ESTABLISHED).and(CtFlags::REPLY), none).unwrap(),
        CtState::new(tracked.and(CtFlags::INVALID), CtFlags::RELATED).unwrap(),
    ])
}

fn tag_matches() -> impl Strategy<Value = TagMatch> {
    let prios = (0u8..8).prop_map(|prio| VlanPrio::new(prio).unwrap());
    (tpids(), option::of(vids()), option::weighted(0.2, prios)).prop_map(|(tpid, vid, prio)| {
        let it = TagMatch::any(tpid);
        let it = vid.map_or(it, |vid| it.vid(vid));
        prio.map_or(it, |prio| it.prio(prio))
    })
}

/// Keys that stand beside any others.
#[derive(Clone, Debug)]
struct Beside {
    indev: Option<&'static str>,
    l2_miss: Option<bool>,
    tags: Option<u8>,
    tunnel: Option<Tunnel>,
    ct_state: Option<CtState>,
    ct: Option<((u16, u16), (u32, u32))>,
    label: Option<([u8; 16], [u8; 16])>,
    hash: Option<(u32, u32)>,
}

impl Beside {
    fn add_to(self, mut it: Match) -> Match {
        if let Some(name) = self.indev {
            it = it.indev(LinkName::new(name).unwrap());
        }
        if let Some(missed) = self.l2_miss {
            it = it.l2_miss(missed);
        }
        if let Some(fits) = self.tags.and_then(|tags| it.clone().num_of_vlans(tags)) {
            it = fits;
        }
        if let Some(tunnel) = self.tunnel {
            it = it.tunnel(&tunnel);
        }
        if let Some(state) = self.ct_state {
            it = it.ct_state(state);
        }
        if let Some(((zone, zone_mask), (mark, mark_mask))) = self.ct {
            it = it.ct_zone(zone, zone_mask).ct_mark(mark, mark_mask);
        }
        if let Some((label, mask)) = self.label {
            it = it.ct_label(label, mask);
        }
        if let Some((hash, mask)) = self.hash {
            it = it.hash(hash, mask);
        }
        it
    }
}

fn beside() -> BoxedStrategy<Beside> {
    let seldom = 0.15;
    (
        option::weighted(seldom, select(vec!["eth0", "rep-15-bytes-12"])),
        option::weighted(seldom, any::<bool>()),
        option::weighted(seldom, 0u8..4),
        option::weighted(seldom, tunnels()),
        option::weighted(seldom, ct_states()),
        option::weighted(seldom, any::<((u16, u16), (u32, u32))>()),
        option::weighted(seldom, any::<([u8; 16], [u8; 16])>()),
        option::weighted(seldom, any::<(u32, u32)>()),
    )
        .prop_map(|(indev, l2_miss, tags, tunnel, ct_state, ct, label, hash)| Beside {
            indev,
            l2_miss,
            tags,
            tunnel,
            ct_state,
            ct,
            label,
            hash,
        })
        .boxed()
}

/// Matches whose keys a frame often shows; one in four has keys beside those.
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
        1 => tag_matches().prop_map(Match::in_tag),
        1 => (tag_matches(), payloads()).prop_map(|(tag, payload)| Match::in_tag_with(tag, payload)),
        1 => (tag_matches(), tag_matches()).prop_map(|(outer, inner)| Match::in_tags(outer, inner)),
        1 => (tag_matches(), tag_matches(), payloads())
            .prop_map(|(outer, inner, payload)| Match::in_tags_with(outer, inner, payload)),
    ];
    (
        base.boxed(),
        option::of((macs(), mac_masks())),
        option::of((macs(), mac_masks())),
        option::weighted(0.25, beside()),
    )
        .prop_map(|(it, src, dst, beside)| {
            let it = match src {
                Some((mac, mask)) => it.src_masked(mac, mask),
                None => it,
            };
            let it = match dst {
                Some((mac, mask)) => it.dst_masked(mac, mask),
                None => it,
            };
            match beside {
                Some(beside) => beside.add_to(it),
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

fn fragments() -> impl Strategy<Value = Fragment> {
    select(vec![Fragment::No, Fragment::No, Fragment::First, Fragment::Later])
}

fn tags() -> impl Strategy<Value = Tag> {
    (tpids(), vids(), select(vec![0, 0, 5])).prop_map(|(tpid, vid, pcp)| Tag { tpid, vid, pcp })
}

pub(crate) fn frames() -> impl Strategy<Value = Frame> {
    let body = prop_oneof![
        Just(Body::Opaque),
        (small_ipv4(), small_ipv4(), 0u8..8, 63u8..65, layer4s(), fragments()).prop_map(
            |(src, dst, tos, ttl, layer4, fragment)| Body::Ipv4 {
                src,
                dst,
                tos,
                ttl,
                layer4,
                fragment
            }
        ),
        (small_ipv6(), small_ipv6(), 0u8..8, 63u8..65, layer4s(), fragments()).prop_map(
            |(src, dst, tos, ttl, layer4, fragment)| Body::Ipv6 {
                src,
                dst,
                tos,
                ttl,
                layer4,
                fragment
            }
        ),
        (1u8..3, macs(), small_ipv4(), macs(), small_ipv4())
            .prop_map(|(op, sha, sip, tha, tip)| Body::Arp { op, sha, sip, tha, tip }),
    ];
    (macs(), macs(), vec(tags(), 0..3), body).prop_map(|(dst, src, tags, body)| {
        let mut frame = Frame::opaque(dst, src, EtherType::new(0x88cc).unwrap()).with_body(body);
        frame.tags = tags;
        frame
    })
}
