//! Every flower key of tc-flows against a real kernel and iproute2's `tc`.
//!
//! For each key alone, and for keys in random combination: what tc-flows installs, `tc` shows as if
//! it had installed it itself from the rule's text; what `tc` installed, tc-flows reads as that
//! rule; and what a rule is encoded to is what the kernel shows of it, attribute by attribute. The
//! list of attributes is that of the kernel under test, as its own type information has it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use eswitchd_netns_tests::{
    AD, Q, Random, dumped, encoded, ifindex, mac, options, shown_by_tc, tlvs, u16_at, u32_at, v4,
    v6, veth, vid,
};
use lab::net::{self, Netns};
use tc_flows::{
    Action, ArpMatch, CfmLevel, CfmMatch, ChainId, CtFlags, CtState, EtherType, GeneveOption,
    Handle, Hook, Ipv4Match, Ipv4Prefix, Ipv6Match, Ipv6Prefix, Kernel, LinkName, Mac, Match, Mode,
    MplsDepth, MplsEntry, MplsLabel, MplsMatch, MplsTc, NetlinkKernel, Op, Owner, Payload,
    PortRange, Ports, PppoeMatch, Prio, Rule, Spi, TagMatch, Tcp, Tunnel, TunnelFlags,
    TunnelOptions, VlanPrio,
};

const OWNER: Owner = Owner(*b"keys");

// ---------------------------------------------------------------- the attributes

/// `enum { TCA_FLOWER_* }` of include/uapi/linux/pkt_cls.h in Linux 7.3, in its order, without the
/// prefix `TCA_FLOWER_`; with the name under which `tc -j` shows it where it does. `-` marks what is
/// no key.
const ATTRIBUTES: [(&str, &str); 112] = [
    ("UNSPEC", "-"),
    ("CLASSID", "-"),
    ("INDEV", "indev"),
    ("ACT", "-"),
    ("KEY_ETH_DST", "dst_mac"),
    ("KEY_ETH_DST_MASK", "dst_mac"),
    ("KEY_ETH_SRC", "src_mac"),
    ("KEY_ETH_SRC_MASK", "src_mac"),
    ("KEY_ETH_TYPE", "eth_type"),
    ("KEY_IP_PROTO", "ip_proto"),
    ("KEY_IPV4_SRC", "src_ip"),
    ("KEY_IPV4_SRC_MASK", "src_ip"),
    ("KEY_IPV4_DST", "dst_ip"),
    ("KEY_IPV4_DST_MASK", "dst_ip"),
    ("KEY_IPV6_SRC", "src_ip"),
    ("KEY_IPV6_SRC_MASK", "src_ip"),
    ("KEY_IPV6_DST", "dst_ip"),
    ("KEY_IPV6_DST_MASK", "dst_ip"),
    ("KEY_TCP_SRC", "src_port"),
    ("KEY_TCP_DST", "dst_port"),
    ("KEY_UDP_SRC", "src_port"),
    ("KEY_UDP_DST", "dst_port"),
    ("FLAGS", "-"),
    ("KEY_VLAN_ID", "vlan_id"),
    ("KEY_VLAN_PRIO", "vlan_prio"),
    ("KEY_VLAN_ETH_TYPE", "vlan_ethtype"),
    ("KEY_ENC_KEY_ID", "enc_key_id"),
    ("KEY_ENC_IPV4_SRC", "enc_src_ip"),
    ("KEY_ENC_IPV4_SRC_MASK", "enc_src_ip"),
    ("KEY_ENC_IPV4_DST", "enc_dst_ip"),
    ("KEY_ENC_IPV4_DST_MASK", "enc_dst_ip"),
    ("KEY_ENC_IPV6_SRC", "enc_src_ip"),
    ("KEY_ENC_IPV6_SRC_MASK", "enc_src_ip"),
    ("KEY_ENC_IPV6_DST", "enc_dst_ip"),
    ("KEY_ENC_IPV6_DST_MASK", "enc_dst_ip"),
    ("KEY_TCP_SRC_MASK", "src_port"),
    ("KEY_TCP_DST_MASK", "dst_port"),
    ("KEY_UDP_SRC_MASK", "src_port"),
    ("KEY_UDP_DST_MASK", "dst_port"),
    ("KEY_SCTP_SRC_MASK", "src_port"),
    ("KEY_SCTP_DST_MASK", "dst_port"),
    ("KEY_SCTP_SRC", "src_port"),
    ("KEY_SCTP_DST", "dst_port"),
    ("KEY_ENC_UDP_SRC_PORT", ""),
    ("KEY_ENC_UDP_SRC_PORT_MASK", ""),
    ("KEY_ENC_UDP_DST_PORT", "enc_dst_port"),
    ("KEY_ENC_UDP_DST_PORT_MASK", "enc_dst_port"),
    ("KEY_FLAGS", "ip_flags"),
    ("KEY_FLAGS_MASK", "ip_flags"),
    ("KEY_ICMPV4_CODE", "icmp_code"),
    ("KEY_ICMPV4_CODE_MASK", "icmp_code"),
    ("KEY_ICMPV4_TYPE", "icmp_type"),
    ("KEY_ICMPV4_TYPE_MASK", "icmp_type"),
    ("KEY_ICMPV6_CODE", "icmp_code"),
    ("KEY_ICMPV6_CODE_MASK", "icmp_code"),
    ("KEY_ICMPV6_TYPE", "icmp_type"),
    ("KEY_ICMPV6_TYPE_MASK", "icmp_type"),
    ("KEY_ARP_SIP", "arp_sip"),
    ("KEY_ARP_SIP_MASK", "arp_sip"),
    ("KEY_ARP_TIP", "arp_tip"),
    ("KEY_ARP_TIP_MASK", "arp_tip"),
    ("KEY_ARP_OP", "arp_op"),
    ("KEY_ARP_OP_MASK", "arp_op"),
    ("KEY_ARP_SHA", "arp_sha"),
    ("KEY_ARP_SHA_MASK", "arp_sha"),
    ("KEY_ARP_THA", "arp_tha"),
    ("KEY_ARP_THA_MASK", "arp_tha"),
    ("KEY_MPLS_TTL", "mpls_ttl"),
    ("KEY_MPLS_BOS", "mpls_bos"),
    ("KEY_MPLS_TC", "mpls_tc"),
    ("KEY_MPLS_LABEL", "mpls_label"),
    ("KEY_TCP_FLAGS", "tcp_flags"),
    ("KEY_TCP_FLAGS_MASK", "tcp_flags"),
    ("KEY_IP_TOS", "ip_tos"),
    ("KEY_IP_TOS_MASK", "ip_tos"),
    ("KEY_IP_TTL", "ip_ttl"),
    ("KEY_IP_TTL_MASK", "ip_ttl"),
    ("KEY_CVLAN_ID", "cvlan_id"),
    ("KEY_CVLAN_PRIO", "cvlan_prio"),
    ("KEY_CVLAN_ETH_TYPE", "cvlan_ethtype"),
    ("KEY_ENC_IP_TOS", "enc_tos"),
    ("KEY_ENC_IP_TOS_MASK", "enc_tos"),
    ("KEY_ENC_IP_TTL", "enc_ttl"),
    ("KEY_ENC_IP_TTL_MASK", "enc_ttl"),
    ("KEY_ENC_OPTS", "opt_key"),
    ("KEY_ENC_OPTS_MASK", "opt_mask"),
    ("IN_HW_COUNT", "-"),
    ("KEY_PORT_SRC_MIN", "src_port"),
    ("KEY_PORT_SRC_MAX", "src_port"),
    ("KEY_PORT_DST_MIN", "dst_port"),
    ("KEY_PORT_DST_MAX", "dst_port"),
    ("KEY_CT_STATE", "ct_state"),
    ("KEY_CT_STATE_MASK", "ct_state"),
    ("KEY_CT_ZONE", "ct_zone"),
    ("KEY_CT_ZONE_MASK", "ct_zone"),
    ("KEY_CT_MARK", "ct_mark"),
    ("KEY_CT_MARK_MASK", "ct_mark"),
    ("KEY_CT_LABELS", "ct_label"),
    ("KEY_CT_LABELS_MASK", "ct_label"),
    ("KEY_MPLS_OPTS", "mpls"),
    ("KEY_HASH", ""),
    ("KEY_HASH_MASK", ""),
    ("KEY_NUM_OF_VLANS", "num_of_vlans"),
    ("KEY_PPPOE_SID", "pppoe_sid"),
    ("KEY_PPP_PROTO", "ppp_proto"),
    ("KEY_L2TPV3_SID", "l2tpv3_sid"),
    ("L2_MISS", "l2_miss"),
    ("KEY_CFM", "cfm"),
    ("KEY_SPI", "spi"),
    ("KEY_SPI_MASK", "spi"),
    ("KEY_ENC_FLAGS", "enc_flags"),
    ("KEY_ENC_FLAGS_MASK", "enc_flags"),
];

const FLAGS: u16 = 22;
const ACT: u16 = 3;
const ETH_TYPE: u16 = 8;
const VLAN_ETH_TYPE: u16 = 25;
const CVLAN_ETH_TYPE: u16 = 79;
const ENC_OPTS: [u16; 2] = [84, 85];
const IN_HW_COUNT: u16 = 86;
const MPLS_OPTS: u16 = 99;
const CFM: u16 = 107;

/// The enumerators of all enums that a module's BTF describes (Documentation/bpf/btf.rst).
fn enumerators(module: &str) -> BTreeMap<String, u32> {
    let section = |name: &str| {
        let bytes = std::fs::read(format!("/sys/kernel/btf/{name}")).unwrap();
        assert_eq!(u16_at(&bytes, 0), 0xeb9f);
        let header = u32_at(&bytes, 4) as usize;
        let part = |at: usize| {
            let start = header + u32_at(&bytes, at) as usize;
            bytes[start..start + u32_at(&bytes, at + 4) as usize].to_vec()
        };
        (part(8), part(16))
    };
    let (_, base_names) = section("vmlinux");
    let (types, names) = section(module);
    // A module's names continue those of the kernel proper.
    let name = |at: usize| {
        let from = match at.checked_sub(base_names.len()) {
            Some(at) => &names[at..],
            None => &base_names[at..],
        };
        let end = from.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(from[..end].to_vec()).unwrap()
    };
    let mut found = BTreeMap::new();
    let mut rest = &types[..];
    while !rest.is_empty() {
        let info = u32_at(rest, 4);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let more = match kind {
            1 | 14 | 17 => 4,
            3 => 12,
            4 | 5 | 15 | 19 => 12 * members,
            6 | 13 => 8 * members,
            _ => 0,
        };
        if kind == 6 {
            for at in (12..12 + more).step_by(8) {
                found.insert(name(u32_at(rest, at) as usize), u32_at(rest, at + 4));
            }
        }
        rest = &rest[12 + more..];
    }
    found
}

// ---------------------------------------------------------------- the rooms

/// Attributes as a tree, in which the order of attributes of different numbers does not count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tree {
    Bytes(Vec<u8>),
    Nest(BTreeMap<u16, Vec<Tree>>),
}

fn nest(region: &[u8], depth: usize) -> Tree {
    let mut parts: BTreeMap<u16, Vec<Tree>> = BTreeMap::new();
    for (kind, value) in tlvs(region) {
        let tree = if depth == 0 { Tree::Bytes(value.to_vec()) } else { nest(value, depth - 1) };
        parts.entry(kind).or_default().push(tree);
    }
    Tree::Nest(parts)
}

/// Tunnel options by their kind. The kernel takes Geneve options in a nest each and shows them one
/// behind the other in one nest: here they stand in one.
fn tunnel_options(region: &[u8]) -> Tree {
    let mut kinds: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
    for (kind, value) in tlvs(region) {
        kinds.entry(kind).or_default().extend(value);
    }
    let kinds = kinds.into_iter().map(|(kind, parts)| (kind, vec![nest(&parts, 0)]));
    Tree::Nest(kinds.collect())
}

/// The keys among the options of a filter.
fn keys(options: &[u8]) -> BTreeMap<u16, Tree> {
    tlvs(options)
        .into_iter()
        .filter(|(kind, _)| ![ACT, FLAGS, IN_HW_COUNT].contains(kind))
        .map(|(kind, value)| {
            let tree = match kind {
                CFM => nest(value, 0),
                MPLS_OPTS => nest(value, 1),
                _ if ENC_OPTS.contains(&kind) => tunnel_options(value),
                _ => Tree::Bytes(value.to_vec()),
            };
            (kind, tree)
        })
        .collect()
}

/// What the kernel shows of keys that it was given: in place of the ethertypes on the way in, the
/// innermost one that it compares, as `TCA_FLOWER_KEY_ETH_TYPE` (`fl_dump_key`). Behind tags PPPoE
/// and what PPP carries share one place there, so that what stands for PPPoE's own ethertype is
/// not to be told beforehand.
fn without_ethertypes(mut keys: BTreeMap<u16, Tree>, in_pppoe: bool) -> BTreeMap<u16, Tree> {
    keys.remove(&ETH_TYPE);
    if in_pppoe {
        keys.remove(&VLAN_ETH_TYPE);
        keys.remove(&CVLAN_ETH_TYPE);
    }
    keys
}

fn is_pppoe(keys: &BTreeMap<u16, Tree>) -> bool {
    let pppoe = Tree::Bytes(0x8864u16.to_be_bytes().to_vec());
    [ETH_TYPE, VLAN_ETH_TYPE, CVLAN_ETH_TYPE].iter().any(|kind| keys.get(kind) == Some(&pppoe))
}

// ---------------------------------------------------------------- keys, one by one

fn net4(len: u8) -> Ipv4Prefix {
    Ipv4Prefix::new(v4(255), len).unwrap()
}

fn net6(len: u8) -> Ipv6Prefix {
    Ipv6Prefix::new(v6(0xffff), len).unwrap()
}

fn pcp(number: u8) -> VlanPrio {
    VlanPrio::new(number).unwrap()
}

fn range(min: u16, max: u16) -> PortRange {
    PortRange::new(min, max).unwrap()
}

fn link(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

fn label(number: u32) -> MplsLabel {
    MplsLabel::new(number).unwrap()
}

fn depth(number: u8) -> MplsDepth {
    MplsDepth::new(number).unwrap()
}

fn geneve(words: usize, first: u8) -> GeneveOption {
    let data: Vec<u8> = (first..).take(4 * words).collect();
    GeneveOption::new(0x0102, 0x83, &data).unwrap()
}

/// Every key that `tc` has words for, exact and under a mask where there is one.
fn every_key() -> Vec<Match> {
    let ip = |it: Ipv4Match| Match::ethertype(it);
    let ip6 = |it: Ipv6Match| Match::ethertype(it);
    let any4 = Ipv4Match::any;
    let any6 = Ipv6Match::any;
    let multicast = Mac([1, 0, 0, 0, 0, 0]);
    let upper = Mac([0xff, 0xff, 0xff, 0, 0, 0]);
    let all = TagMatch::any;
    let ports = Ports::any;
    let mpls = MplsMatch::unicast;
    let entry = MplsEntry::any;
    let pppoe = PppoeMatch::any;
    let tunnel = |tunnel: Tunnel| Match::any().tunnel(&tunnel);
    let options = |options: TunnelOptions| tunnel(Tunnel::any().options(&options));
    let (set, none) = (CtFlags::TRACKED, CtFlags::NONE);
    let ct = |set, clear| Match::any().ct_state(CtState::new(set, clear).unwrap());

    let mut all_matches = vec![
        Match::any(),
        Match::any().indev(link("ours")),
        Match::any().l2_miss(true),
        Match::any().l2_miss(false),
        Match::any().src(mac(1)),
        Match::any().dst(mac(2)),
        Match::any().dst_masked(multicast, multicast),
        Match::any().src_masked(mac(0), upper),
        Match::any().num_of_vlans(0).unwrap(),
        Match::any().num_of_vlans(3).unwrap(),
        Match::ethertype(EtherType::IPV4).num_of_vlans(0).unwrap(),
        Match::tagged(Q).num_of_vlans(1).unwrap(),
        Match::vlan(Q, vid(9)).num_of_vlans(2).unwrap(),
        Match::vlan_with(AD, vid(9), any4().ttl(3)).num_of_vlans(1).unwrap(),
        Match::in_tags_with(all(AD), all(Q).vid(vid(3)), any4().ttl(3)).num_of_vlans(2).unwrap(),
        Match::vlan(Q, vid(0)),
        Match::vlan(AD, vid(4095)),
        Match::in_tag(all(Q).prio(pcp(0))),
        Match::in_tag(all(Q).vid(vid(7)).prio(pcp(7))),
        Match::double_tagged(AD, None, Q),
        Match::in_tags(all(AD).vid(vid(1)), all(Q).vid(vid(2)).prio(pcp(5))),
        Match::in_tags(all(Q), all(AD).prio(pcp(1))),
        Match::tagged_with(Q, EtherType::ARP),
        Match::in_tag_with(all(Q).prio(pcp(3)), any6().icmp_type(134)),
        Match::in_tags_with(all(Q).vid(vid(1)), all(Q).vid(vid(2)), any6().src(v6(1))),
        Match::in_tags_with(all(AD), all(Q), EtherType::ARP),
        Match::ethertype(EtherType::IPV4),
        Match::ethertype(EtherType::IPV6),
        Match::ethertype(EtherType::ARP),
        Match::ethertype(EtherType::RARP),
        Match::ethertype(EtherType::new(0x88cc).unwrap()),
        Match::ethertype(pppoe().session(0)),
        Match::ethertype(pppoe().session(0xfffe)),
        Match::ethertype(pppoe().proto(0xc021)),
        Match::ethertype(pppoe().session(7).ipv4(any4().src(v4(1)).udp(ports().dst(53)))),
        Match::ethertype(pppoe().ipv6(any6().dst_in(net6(33)).tcp(ports()))),
        Match::ethertype(pppoe().mpls(mpls().entry(depth(1), entry().label(label(17))))),
        Match::ethertype(pppoe().proto(0x57)),
        Match::tagged_with(Q, EtherType::new(0x8864).unwrap()),
        Match::vlan_with(Q, vid(4), pppoe().session(7)),
        Match::vlan_with(Q, vid(4), pppoe().session(7).ipv4(any4().ttl(1))),
        Match::in_tags_with(all(AD), all(Q), EtherType::new(0x8864).unwrap()),
        Match::in_tags_with(all(AD), all(Q), pppoe().session(1)),
        Match::in_tags_with(all(AD), all(Q), pppoe().proto(0xc021)),
        Match::in_tags_with(all(AD), all(Q), pppoe().ipv6(any6().udp(ports().src(1)))),
        Match::ethertype(mpls()),
        Match::ethertype(MplsMatch::multicast().entry(depth(1), entry().label(label(0xf_ffff)))),
        Match::ethertype(mpls().entry(depth(1), entry().tc(MplsTc::new(5).unwrap()))),
        Match::ethertype(mpls().entry(depth(1), entry().bos(true))),
        Match::ethertype(mpls().entry(depth(1), entry().bos(false).ttl(0).label(label(0)))),
        Match::ethertype(mpls().entry(depth(1), entry())),
        Match::ethertype(mpls().entry(depth(7), entry())),
        Match::ethertype(mpls().entry(depth(2), entry().label(label(3)).ttl(4))),
        Match::tagged_with(Q, mpls().entry(depth(1), entry().ttl(255))),
        ip(any4().proto(47)),
        ip(any4().proto(58)),
        ip6(any6().proto(1)),
        ip6(any6().proto(0)),
        ip(any4().tos(0x10, 0xff)),
        ip(any4().tos(0x10, 0xf0)),
        ip6(any6().tos(4, 4)),
        ip(any4().ttl(64)),
        ip6(any6().ttl_masked(16, 0xf0)),
        ip(any4().fragment(true)),
        ip(any4().fragment(false)),
        ip6(any6().fragment(true).first_fragment(false)),
        ip6(any6().first_fragment(true)),
        ip(any4().src(v4(1))),
        ip(any4().dst(v4(2))),
        ip(any4().src_in(net4(23)).dst_in(net4(1))),
        ip6(any6().src(v6(1))),
        ip6(any6().dst(v6(2))),
        ip6(any6().src_in(net6(127)).dst_in(net6(65))),
        ip(any4().tcp(Tcp::from(ports()).flags(0x12, 0xfff))),
        ip6(any6().tcp(Tcp::from(ports().dst(22)).flags(0x2, 0x12))),
        ip(any4().icmp(3, 1)),
        ip(any4().icmp_masked((8, 0xf8), (1, 0x3))),
        ip6(any6().icmp(135, 0)),
        ip6(any6().icmp_masked((128, 0x80), (0, 0xf0))),
        ip(any4().esp(Spi::new(0x1234_5678).unwrap())),
        ip6(any6().ah(Spi::new(1).unwrap())),
        ip(any4().l2tpv3(0xffff_fffe)),
        ip6(any6().l2tpv3(0)),
        Match::ethertype(ArpMatch::any().op(1)),
        Match::ethertype(ArpMatch::any().op_masked(2, 2)),
        Match::ethertype(ArpMatch::any().sip(v4(1)).tip(v4(2))),
        Match::ethertype(ArpMatch::any().sip_in(net4(24)).tip_in(net4(31))),
        Match::ethertype(ArpMatch::any().sha(mac(1)).tha(mac(2))),
        Match::ethertype(
            ArpMatch::any().sha_masked(mac(1), upper).tha_masked(multicast, multicast),
        ),
        Match::ethertype(ArpMatch::rarp().op(2).sip(v4(1)).tha(mac(3))),
        Match::ethertype(CfmMatch::any()),
        Match::ethertype(CfmMatch::any().level(CfmLevel::new(0).unwrap())),
        Match::ethertype(CfmMatch::any().opcode(0)),
        Match::vlan_with(Q, vid(2), CfmMatch::any().level(CfmLevel::new(7).unwrap()).opcode(47)),
        tunnel(Tunnel::any().key_id(0)),
        tunnel(Tunnel::any().key_id(u32::MAX)),
        tunnel(Tunnel::any().src(v4(1)).dst(net4(9))),
        tunnel(Tunnel::any().src(net4(30))),
        tunnel(Tunnel::any().dst(v6(1)).src(net6(48))),
        tunnel(Tunnel::any().dst(net6(1))),
        tunnel(Tunnel::any().dst_port(4789)),
        tunnel(Tunnel::any().tos(0x28, 0xfc)),
        tunnel(Tunnel::any().tos(0, 0xff)),
        tunnel(Tunnel::any().ttl(64, 0xff)),
        tunnel(Tunnel::any().ttl(64, 0xc0)),
        tunnel(Tunnel::any().flags(TunnelFlags::CSUM, TunnelFlags::OAM)),
        tunnel(
            Tunnel::any()
                .flags(TunnelFlags::DONT_FRAGMENT.and(TunnelFlags::CRIT_OPT), TunnelFlags::CSUM),
        ),
        tunnel(Tunnel::any().flags(TunnelFlags::OAM, TunnelFlags::NONE)),
        options(TunnelOptions::geneve(&[geneve(1, 1)]).unwrap()),
        options(TunnelOptions::geneve(&[geneve(31, 1)]).unwrap()),
        options(
            TunnelOptions::geneve(&[
                geneve(2, 1),
                GeneveOption::masked((0x0102, 0xff00), (3, 0), &[1, 2, 3, 4], &[0xff, 0, 0xf0, 0])
                    .unwrap(),
                geneve(1, 9),
            ])
            .unwrap(),
        ),
        options(TunnelOptions::vxlan_gbp(0x48_1234, u32::MAX)),
        options(TunnelOptions::vxlan_gbp(0x12, 0xff)),
        options(TunnelOptions::erspan_v1(0x12345, u32::MAX)),
        options(TunnelOptions::erspan_v1(0x5, 0xff)),
        options(TunnelOptions::erspan_v2((1, 0xff), (0x3f, 0xff))),
        options(TunnelOptions::erspan_v2((0, 1), (2, 0x3))),
        options(TunnelOptions::erspan_v2((0, 0), (2, 0x3f))),
        options(TunnelOptions::gtp((1, 0xff), (9, 0xff))),
        options(TunnelOptions::gtp((0, 0), (8, 0xf8))),
        options(TunnelOptions::pfcp((1, 0xff), (0x0102_0304_0506_0708, u64::MAX))),
        options(TunnelOptions::pfcp((0, 1), (0, 0))),
        ct(none, set),
        ct(set, none),
        ct(set.and(CtFlags::NEW), CtFlags::INVALID),
        ct(set.and(CtFlags::ESTABLISHED).and(CtFlags::REPLY), none),
        ct(set.and(CtFlags::RELATED), CtFlags::NEW.and(CtFlags::REPLY)),
        ct(set.and(CtFlags::INVALID), CtFlags::ESTABLISHED),
        Match::any().ct_zone(5, u16::MAX),
        Match::any().ct_zone(0x100, 0xff00),
        Match::any().ct_mark(0x1234_5678, u32::MAX),
        Match::any().ct_mark(0, 0xff),
        Match::any().ct_label([0x5a; 16], [0xff; 16]),
        Match::any().ct_label([1; 16], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
    ];
    // Seven entries, each with something of its own.
    all_matches.push(Match::ethertype((1..=7).fold(mpls(), |it, at| {
        let here = match at % 4 {
            0 => entry().ttl(at),
            1 => entry().label(label(u32::from(at) << 12)),
            2 => entry().tc(MplsTc::new(at).unwrap()).bos(false),
            _ => entry(),
        };
        it.entry(depth(at), here)
    })));
    for side in [
        ports().src(67),
        ports().dst(68),
        ports().src(0).dst(u16::MAX),
        ports().src_masked(0x50, 0xfff0),
        ports().dst_masked(1, 1),
        ports().src_range(range(0, 1)),
        ports().dst_range(range(1024, 65535)),
        ports().src_range(range(10, 20)).dst_range(range(30, 40)),
        ports().src_masked(2, 2).dst_range(range(5, 8)),
    ] {
        all_matches.extend([
            ip(any4().tcp(side)),
            ip6(any6().udp(side)),
            ip(any4().sctp(side)),
            ip6(any6().tcp(side)),
        ]);
    }
    all_matches
}

/// Keys and masks that `tc` cannot be told. The kernel can.
fn without_words() -> Vec<Match> {
    let tunnel = |tunnel: Tunnel| Match::any().tunnel(&tunnel);
    vec![
        Match::any().hash(0x1234_5678, u32::MAX),
        Match::any().hash(1, 0xff),
        tunnel(Tunnel::any().src_port(4789, u16::MAX)),
        tunnel(Tunnel::any().src_port(0x100, 0xff00)),
        tunnel(Tunnel::any().dst_port_masked(0x100, 0xff00)),
        Match::ethertype(Ipv4Match::any().esp(Spi::masked(0x100, 0xff00).unwrap())),
        Match::ethertype(ArpMatch::rarp().op(3)),
    ]
}

// ---------------------------------------------------------------- keys in combination

fn some_ports(random: &mut Random) -> Ports {
    let ports = match random.below(4) {
        0 => Ports::any(),
        1 => Ports::any().src(random.number() as u16),
        2 => Ports::any().src_masked(random.number() as u16, random.number() as u16),
        _ => {
            let min = random.below(1000) as u16;
            Ports::any().src_range(range(min, min + 1 + random.below(1000) as u16))
        }
    };
    match random.below(4) {
        0 => ports,
        1 => ports.dst(random.number() as u16),
        2 => ports.dst_masked(random.number() as u16, random.number() as u16),
        _ => ports.dst_range(range(random.below(1000) as u16, 1000 + random.below(1000) as u16)),
    }
}

macro_rules! some_ip {
    ($name:ident, $type:ident, $prefix:ident, $addr:ty, $bits:literal) => {
        fn $name(random: &mut Random) -> $type {
            let prefix = |random: &mut Random| {
                let bits = u128::from(random.number()) << 64 | u128::from(random.number());
                let len = random.below($bits + 1) as u8;
                $prefix::new(<$addr>::from_bits(bits as _), len).unwrap()
            };
            let mut it = $type::any();
            if let Some(src) = random.maybe(2, prefix) {
                it = it.src_in(src);
            }
            if let Some(dst) = random.maybe(2, prefix) {
                it = it.dst_in(dst);
            }
            if random.chance(3) {
                it = it.tos(random.byte(), random.byte());
            }
            if random.chance(3) {
                it = it.ttl_masked(random.byte(), random.byte());
            }
            if random.chance(4) {
                it = it.fragment(random.chance(2));
            }
            if random.chance(4) {
                it = it.first_fragment(random.chance(2));
            }
            match random.below(10) {
                0 => it,
                1 => it.proto(random.byte()),
                2 => it.udp(some_ports(random)),
                3 => it.tcp(some_ports(random)),
                4 => {
                    let (flags, mask) = (random.number() as u16, random.number() as u16);
                    it.tcp(Tcp::from(some_ports(random)).flags(flags, mask))
                }
                5 => it.sctp(some_ports(random)),
                6 => it.icmp_masked((random.byte(), random.byte()), (random.byte(), random.byte())),
                7 => it.esp(Spi::new(1 + random.below(1 << 31) as u32).unwrap()),
                8 => it.ah(Spi::new(1 + random.below(1 << 31) as u32).unwrap()),
                _ => it.l2tpv3(random.number() as u32),
            }
        }
    };
}

some_ip!(some_ipv4, Ipv4Match, Ipv4Prefix, std::net::Ipv4Addr, 32);
some_ip!(some_ipv6, Ipv6Match, Ipv6Prefix, std::net::Ipv6Addr, 128);

fn some_mac(random: &mut Random) -> Mac {
    Mac(std::array::from_fn(|_| random.byte()))
}

fn some_mask(random: &mut Random) -> Mac {
    if random.chance(2) { Mac::EXACT } else { some_mac(random) }
}

fn some_mpls(random: &mut Random) -> MplsMatch {
    let mut it = if random.chance(2) { MplsMatch::unicast() } else { MplsMatch::multicast() };
    for _ in 0..random.below(5) {
        let mut entry = MplsEntry::any();
        if random.chance(2) {
            entry = entry.label(label(random.below(1 << 20) as u32));
        }
        if random.chance(3) {
            entry = entry.tc(MplsTc::new(random.below(8) as u8).unwrap());
        }
        if random.chance(3) {
            entry = entry.bos(random.chance(2));
        }
        if random.chance(3) {
            entry = entry.ttl(random.byte());
        }
        let at = if random.chance(2) { 1 } else { 1 + random.below(7) as u8 };
        it = it.entry(depth(at), entry);
    }
    it
}

fn some_payload(random: &mut Random) -> Payload {
    match random.below(9) {
        0 | 1 => some_ipv4(random).into(),
        2 | 3 => some_ipv6(random).into(),
        4 => {
            let mut it = if random.chance(3) { ArpMatch::rarp() } else { ArpMatch::any() };
            if random.chance(2) {
                it = it.op_masked(random.below(3) as u8, random.byte());
            }
            if random.chance(2) {
                it = it.sip_in(net4(random.below(33) as u8));
            }
            if random.chance(2) {
                it = it.tip_in(net4(random.below(33) as u8));
            }
            if random.chance(2) {
                it = it.sha_masked(some_mac(random), some_mask(random));
            }
            if random.chance(2) {
                it = it.tha_masked(some_mac(random), some_mask(random));
            }
            it.into()
        }
        5 => some_mpls(random).into(),
        6 => {
            let mut it = CfmMatch::any();
            if random.chance(2) {
                it = it.level(CfmLevel::new(random.below(8) as u8).unwrap());
            }
            if random.chance(2) {
                it = it.opcode(random.byte());
            }
            it.into()
        }
        7 => EtherType::new(0x88b5).unwrap().into(),
        _ => {
            let it = PppoeMatch::any();
            let it = match random.below(5) {
                0 => it,
                1 => it.proto(0xc021),
                2 => it.ipv4(some_ipv4(random)),
                3 => it.ipv6(some_ipv6(random)),
                _ => it.mpls(some_mpls(random)),
            };
            if random.chance(2) { it.session(random.number() as u16).into() } else { it.into() }
        }
    }
}

fn some_tag(random: &mut Random) -> TagMatch {
    let mut tag = TagMatch::any(if random.chance(2) { Q } else { AD });
    if random.chance(2) {
        tag = tag.vid(vid(random.below(4096) as u16));
    }
    if random.chance(2) {
        tag = tag.prio(pcp(random.below(8) as u8));
    }
    tag
}

fn some_options(random: &mut Random) -> TunnelOptions {
    let pair = |random: &mut Random| (random.byte(), random.byte());
    match random.below(6) {
        0 => {
            let mut options = Vec::new();
            for _ in 0..1 + random.below(3) {
                let words = 1 + random.below(4);
                let data: Vec<u8> = (0..4 * words).map(|_| random.byte()).collect();
                let mask: Vec<u8> = (0..4 * words).map(|_| random.byte()).collect();
                let class = (random.number() as u16, random.number() as u16);
                options.push(GeneveOption::masked(class, pair(random), &data, &mask).unwrap());
            }
            TunnelOptions::geneve(&options).unwrap()
        }
        1 => TunnelOptions::vxlan_gbp(random.number() as u32, random.number() as u32),
        2 => TunnelOptions::erspan_v1(random.number() as u32, random.number() as u32),
        3 => TunnelOptions::erspan_v2(pair(random), pair(random)),
        4 => TunnelOptions::gtp(pair(random), pair(random)),
        _ => TunnelOptions::pfcp(pair(random), (random.number(), random.number())),
    }
}

fn some_tunnel(random: &mut Random) -> Tunnel {
    let mut it = Tunnel::any();
    if random.chance(2) {
        it = it.key_id(random.number() as u32);
    }
    let v6 = random.chance(2);
    if random.chance(2) {
        it = if v6 { it.src(net6(random.below(129) as u8)) } else { it.src(net4(17)) };
    }
    if random.chance(2) {
        it = if v6 { it.dst(net6(128)) } else { it.dst(net4(random.below(33) as u8)) };
    }
    if random.chance(3) {
        it = it.dst_port(random.number() as u16);
    }
    if random.chance(3) {
        it = it.tos(random.byte(), random.number() as u8);
    }
    if random.chance(3) {
        it = it.ttl(random.byte(), random.number() as u8);
    }
    if random.chance(3) {
        let all = [
            TunnelFlags::CSUM,
            TunnelFlags::DONT_FRAGMENT,
            TunnelFlags::OAM,
            TunnelFlags::CRIT_OPT,
        ];
        let mut flags = |_| {
            let some = all.into_iter().filter(|_| random.chance(2));
            some.fold(TunnelFlags::NONE, TunnelFlags::and)
        };
        let (set, clear) = (flags(()), flags(()));
        it = it.flags(set, clear);
    }
    if random.chance(2) {
        it = it.options(&some_options(random));
    }
    it
}

fn some_match(random: &mut Random) -> Match {
    let mut it = match random.below(6) {
        0 => Match::any(),
        1 => Match::in_tag(some_tag(random)),
        2 => Match::in_tags(some_tag(random), some_tag(random)),
        3 => Match::in_tag_with(some_tag(random), some_payload(random)),
        4 => Match::in_tags_with(some_tag(random), some_tag(random), some_payload(random)),
        _ => Match::ethertype(some_payload(random)),
    };
    if random.chance(3) {
        it = it.src_masked(some_mac(random), some_mask(random));
    }
    if random.chance(3) {
        it = it.dst_masked(some_mac(random), some_mask(random));
    }
    if let Some(fits) = random.maybe(4, |random| it.clone().num_of_vlans(random.below(4) as u8)) {
        it = fits.unwrap_or(it);
    }
    if random.chance(5) {
        it = it.indev(link(["ours", "tcs"][random.below(2)]));
    }
    if random.chance(5) {
        it = it.l2_miss(random.chance(2));
    }
    if random.chance(2) {
        it = it.tunnel(&some_tunnel(random));
    }
    if random.chance(4) {
        let flags = |random: &mut Random| {
            [CtFlags::NEW, CtFlags::ESTABLISHED, CtFlags::RELATED, CtFlags::INVALID, CtFlags::REPLY]
                .into_iter()
                .filter(|_| random.chance(3))
                .fold(CtFlags::NONE, CtFlags::and)
        };
        let set = flags(random).and(CtFlags::TRACKED);
        if let Some(state) = CtState::new(set, flags(random)) {
            it = it.ct_state(state);
        }
    }
    if random.chance(4) {
        it = it.ct_zone(random.number() as u16, random.number() as u16);
    }
    if random.chance(4) {
        it = it.ct_mark(random.number() as u32, random.number() as u32);
    }
    if random.chance(4) {
        let mask = std::array::from_fn(|_| random.byte());
        it = it.ct_label(std::array::from_fn(|_| random.byte()), mask);
    }
    it
}

// ---------------------------------------------------------------- the comparison

/// What was found for each attribute.
#[derive(Default)]
struct Findings {
    encoded: BTreeMap<u16, usize>,
    shown: BTreeSet<u16>,
}

/// Installs the rules, one a prio: ours by tc-flows on one link, and on another by `tc` from their
/// text where it has words for them. Then compares what everybody says of them.
fn compare(matches: &[Match], has_words: bool, findings: &mut Findings) {
    let _room = Netns::enter().unwrap();
    veth("ours", "ours-peer");
    veth("tcs", "tcs-peer");
    net::tc("qdisc add dev tcs clsact").unwrap();
    let hook = |link| Hook::ingress(ifindex(link));
    let rules: Vec<Rule> = matches
        .iter()
        .zip(1..)
        .map(|(matching, prio)| {
            let prio = Prio::new(prio).unwrap();
            Rule::new(hook("ours"), ChainId::ZERO, prio, matching.clone(), [Action::Drop]).unwrap()
        })
        .collect();
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    kernel.ensure_hook(hook("ours")).unwrap();
    let ops: Vec<Op> =
        rules.iter().map(|rule| Op::Add { rule: rule.clone(), handle: Handle(1) }).collect();
    for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Told)) {
        assert!(outcome.is_done(), "{op:?}: {outcome:?}");
    }
    let ours_dumped = dumped(hook("ours"));
    assert_eq!(own(&mut kernel, hook("ours")), by_prio(&rules), "what we installed reads back");

    let ours_shown = shown_by_tc("dev ours ingress");
    if has_words {
        // The cookie, so that tc-flows takes what tc installed for its own.
        let mut batch = String::new();
        for rule in &rules {
            writeln!(batch, "filter add dev tcs {rule} cookie {}", rule.cookie(OWNER)).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &batch).unwrap();
        if let Err(error) = net::tc(&format!("-batch {}", file.path().display())) {
            panic!("{error}\n{}", numbered(&batch));
        }
        let theirs_shown = shown_by_tc("dev tcs ingress");
        let theirs_dumped = dumped(hook("tcs"));
        for rule in &rules {
            let prio = rule.prio().get();
            let place = (0, u64::from(prio));
            assert_eq!(ours_shown[&place], theirs_shown[&place], "{rule}");
            assert_eq!(
                keys(options(&ours_dumped[&prio])),
                keys(options(&theirs_dumped[&prio])),
                "{rule}"
            );
        }
        assert_eq!(own(&mut kernel, hook("tcs")), by_prio(&rules), "what tc installed is read");
    } else {
        for rule in &rules {
            let told = net::tc(&format!("filter add dev tcs {rule}"));
            assert!(told.is_err(), "tc has words for {rule}");
        }
    }
    for rule in &rules {
        let prio = rule.prio().get();
        let given = keys(options(&encoded(rule, OWNER)));
        for attr in given.keys() {
            *findings.encoded.entry(*attr).or_default() += 1;
            let name = ATTRIBUTES[usize::from(*attr)].1;
            let shown = &ours_shown[&(0, prio.into())]["options"];
            let mut names = shown["keys"].as_object().into_iter().flatten().map(|(name, _)| name);
            if names.any(|shown| shown == name || name.starts_with("opt_") && shown.ends_with(name))
                || shown.get(name).is_some()
            {
                findings.shown.insert(*attr);
            }
        }
        let in_pppoe = is_pppoe(&given);
        let shown = keys(options(&ours_dumped[&prio]));
        assert_eq!(
            without_ethertypes(shown, in_pppoe),
            without_ethertypes(given, in_pppoe),
            "{rule}"
        );
    }
}

fn by_prio(rules: &[Rule]) -> BTreeMap<u16, Match> {
    rules.iter().map(|rule| (rule.prio().get(), rule.id().matching().clone())).collect()
}

/// What the rules of a hook match that tc-flows reads as its own.
fn own(kernel: &mut NetlinkKernel, hook: Hook) -> BTreeMap<u16, Match> {
    let dump = kernel.dump(hook).unwrap();
    let unreadable: Vec<u16> =
        dump.unreadable_own.iter().map(|(location, _)| location.prio.get()).collect();
    assert_eq!((unreadable, dump.foreign.len()), (vec![], 0));
    let rules: Vec<Rule> = dump.own.into_iter().map(|own| own.rule).collect();
    by_prio(&rules)
}

fn numbered(text: &str) -> String {
    text.lines().zip(1..).fold(String::new(), |mut all, (line, number)| {
        writeln!(all, "{number}: {line}").unwrap();
        all
    })
}

#[test]
fn the_list_of_keys_is_that_of_the_kernel_under_test() {
    net::modprobe("cls_flower").unwrap();
    let known = enumerators("cls_flower");
    let kernels: BTreeMap<&str, u32> = known
        .iter()
        .filter_map(|(name, number)| Some((name.strip_prefix("TCA_FLOWER_")?, *number)))
        .filter(|(name, _)| {
            // Bits, and the numbers within nests.
            !["KEY_CT_FLAGS_", "KEY_ENC_OPTS_", "KEY_ENC_OPT_", "KEY_MPLS_OPTS_", "KEY_MPLS_OPT_"]
                .iter()
                .any(|of| name.starts_with(of) && *name != "KEY_ENC_OPTS_MASK")
                && !["KEY_CFM_", "KEY_FLAGS_"]
                    .iter()
                    .any(|of| name.starts_with(of) && *name != "KEY_FLAGS_MASK")
        })
        .collect();
    let ours: BTreeMap<&str, u32> = ATTRIBUTES.iter().map(|(name, _)| *name).zip(0..).collect();
    assert_eq!(ours, kernels);
    assert_eq!(known["__TCA_FLOWER_MAX"] as usize, ATTRIBUTES.len());
}

#[test]
fn every_key_is_to_the_kernel_and_to_tc_what_it_is_to_us() {
    let mut findings = Findings::default();
    let matches = every_key();
    compare(&matches, true, &mut findings);
    let silent = without_words();
    compare(&silent, false, &mut findings);
    println!("{:28} {:>5}  encoded, decoded  shown by tc", "attribute", "rules");
    let mut missing = Vec::new();
    for ((name, shown), number) in ATTRIBUTES.iter().zip(0u16..) {
        if *shown == "-" {
            continue;
        }
        let rules = findings.encoded.get(&number).copied().unwrap_or(0);
        let by_tc = match *shown {
            "" => "no word for it",
            _ if findings.shown.contains(&number) => "yes",
            _ => "NO",
        };
        println!("{name:28} {rules:>5}  {:16}  {by_tc}", if rules > 0 { "yes" } else { "NO" });
        if rules == 0 || by_tc == "NO" {
            missing.push(*name);
        }
    }
    println!("{} rules with words of tc's, {} without", matches.len(), silent.len());
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn keys_in_random_combination_are_too() {
    const RULES: usize = 400;
    let mut random = Random::seeded();
    let matches: Vec<Match> = (0..RULES).map(|_| some_match(&mut random)).collect();
    let mut findings = Findings::default();
    compare(&matches, true, &mut findings);
    println!("{RULES} rules, {} attributes", findings.encoded.len());
}
