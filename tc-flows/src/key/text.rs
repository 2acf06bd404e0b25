//! Matches as `tc` reads them (`flower_parse_opt` in tc/f_flower.c of iproute2).
//!
//! In goes a [`Match`], out comes what stands behind `flower` in a `tc` command. A few keys that
//! the kernel takes have no words there: `hash`, `enc_src_port`, ARP operations above 2, masks of
//! `spi` and `enc_dst_port`. They are printed in the manner of the others.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::payload::{
    IPPROTO_AH, IPPROTO_ESP, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_L2TP, IPPROTO_SCTP, IPPROTO_TCP,
    IPPROTO_UDP,
};
use super::payload::{PPP_IP, PPP_IPV6, PPP_MPLS_MC, PPP_MPLS_UC};
use super::tunnel::{ERSPAN, GENEVE, GTP, VXLAN, VXLAN_GBP_MASK};
use super::{Field, Form, KeyId, LinkName, Match};
use crate::ident::{EtherType, Mac, fmt_ethertype};

const ETH_P_IP: u16 = EtherType::IPV4.get();
const ETH_P_IPV6: u16 = EtherType::IPV6.get();

impl Match {
    /// What stands behind all that the match names of tags and PPPoE.
    fn innermost_ethertype(&self) -> u16 {
        let named = |id| self.fields.get(id).map(|field| number(field.value) as u16);
        let within_ppp = named(KeyId::PppProto).and_then(|proto| match proto {
            PPP_IP => Some(ETH_P_IP),
            PPP_IPV6 => Some(ETH_P_IPV6),
            _ => None,
        });
        within_ppp
            .or_else(|| named(KeyId::CvlanEthType))
            .or_else(|| named(KeyId::VlanEthType))
            .unwrap_or(self.protocol)
    }
}

impl fmt::Display for Match {
    /// The keys as `tc` reads them after `flower`; the protocol stands elsewhere in its syntax.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries =
            self.fields.iter().filter(|field| field.id.spec().form == Form::MplsEntry).count();
        let mut before = None;
        for field in self.fields.iter() {
            if before.is_some() {
                f.write_str(" ")?;
            }
            match field.id.spec().form {
                Form::MplsEntry => {
                    fmt_mpls(&field, entries == 1, before == Some(Form::MplsEntry), f)?;
                }
                Form::IpProto => fmt_ip_proto(&field, self.innermost_ethertype(), f)?,
                _ => fmt_field(&field, f)?,
            }
            before = Some(field.id.spec().form);
        }
        Ok(())
    }
}

impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("protocol ")?;
        fmt_ethertype(self.protocol, f)?;
        f.write_str(" flower ")?;
        fmt::Display::fmt(self, f)
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// `tc` reads `icmp` in IPv4 only, `icmpv6` in IPv6 only.
fn fmt_ip_proto(field: &Field<'_>, within: u16, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{} ", field.id.spec().name)?;
    match (number(field.value) as u8, within) {
        (IPPROTO_ICMP, ETH_P_IP) => f.write_str("icmp"),
        (IPPROTO_TCP, _) => f.write_str("tcp"),
        (IPPROTO_UDP, _) => f.write_str("udp"),
        (IPPROTO_ESP, _) => f.write_str("esp"),
        (IPPROTO_AH, _) => f.write_str("ah"),
        (IPPROTO_ICMPV6, ETH_P_IPV6) => f.write_str("icmpv6"),
        (IPPROTO_L2TP, _) => f.write_str("l2tp"),
        (IPPROTO_SCTP, _) => f.write_str("sctp"),
        (other, _) => write!(f, "{other:#04x}"),
    }
}

/// A field with its name, where it is written for itself.
fn fmt_field(field: &Field<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let spec = field.id.spec();
    match spec.form {
        Form::Range => {
            let (min, max) = field.range().ok_or(fmt::Error)?;
            write!(f, "{} {min}-{max}", spec.name)
        }
        Form::Cfm => fmt_cfm(field, f),
        Form::TunnelOptions => fmt_options(field, f),
        Form::IpFlags => {
            write!(f, "{} ", spec.name)?;
            fmt_flags(field, &[(1, "frag"), (2, "firstfrag")], f)
        }
        Form::TunnelFlags => {
            let names = [(4, "tuncsum"), (8, "tundf"), (16, "tunoam"), (32, "tuncrit")];
            write!(f, "{} ", spec.name)?;
            fmt_flags(field, &names, f)
        }
        Form::CtState => {
            write!(f, "{} ", spec.name)?;
            let (value, mask) = (number(field.value), number(field.mask));
            for (bit, name) in
                [(8, "trk"), (1, "new"), (2, "est"), (4, "rel"), (16, "inv"), (32, "rpl")]
            {
                if mask & bit != 0 {
                    write!(f, "{}{name}", if value & bit == 0 { "-" } else { "+" })?;
                }
            }
            Ok(())
        }
        form => {
            write!(f, "{} ", spec.name)?;
            fmt_bytes(form, field.value, f)?;
            if field.is_exact() {
                return Ok(());
            }
            f.write_str("/")?;
            match (form, prefix_length(field.mask)) {
                (Form::Ipv4 | Form::Ipv6, Some(length)) => write!(f, "{length}"),
                (Form::Ttl, _) => fmt_bytes(Form::Hex, field.mask, f),
                _ => fmt_bytes(form, field.mask, f),
            }
        }
    }
}

/// How many bits from the left a mask has, where it has no gaps.
fn prefix_length(mask: &[u8]) -> Option<u32> {
    let length = mask.iter().map(|byte| byte.count_ones()).sum();
    let mut left = mask.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    left.by_ref().find(|bit| *bit == 0);
    left.all(|bit| bit == 0).then_some(length)
}

fn fmt_bytes(form: Form, bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match form {
        Form::Mac => {
            fmt::Display::fmt(&Mac(<[u8; 6]>::try_from(bytes).map_err(|_| fmt::Error)?), f)
        }
        Form::Hex => write!(f, "{:#x}", number(bytes)),
        Form::EtherType => fmt_ethertype(number(bytes) as u16, f),
        Form::PppProto => match number(bytes) as u16 {
            PPP_IP => f.write_str("ip"),
            PPP_IPV6 => f.write_str("ipv6"),
            PPP_MPLS_UC => f.write_str("mpls_uc"),
            PPP_MPLS_MC => f.write_str("mpls_mc"),
            other => write!(f, "{other:#06x}"),
        },
        Form::Ipv4 => {
            let octets = <[u8; 4]>::try_from(bytes).map_err(|_| fmt::Error)?;
            fmt::Display::fmt(&Ipv4Addr::from(octets), f)
        }
        Form::Ipv6 => {
            let octets = <[u8; 16]>::try_from(bytes).map_err(|_| fmt::Error)?;
            fmt::Display::fmt(&Ipv6Addr::from(octets), f)
        }
        Form::Name => f.write_str(LinkName::from_bytes(bytes).ok_or(fmt::Error)?.as_str()),
        Form::HexString => fmt_hex(bytes, f),
        _ => fmt::Display::fmt(&number(bytes), f),
    }
}

fn fmt_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// `frag/nofirstfrag`
fn fmt_flags(field: &Field<'_>, names: &[(u64, &str)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut separator = "";
    for (bit, name) in names {
        if number(field.mask) & bit != 0 {
            let no = if number(field.value) & bit == 0 { "no" } else { "" };
            write!(f, "{separator}{no}{name}")?;
            separator = "/";
        }
    }
    Ok(())
}

/// One entry of a label stack: for itself where it is the outer one alone and has keys, as the
/// kernel shows it then; else as an item of the list that the first one opens.
fn fmt_mpls(
    field: &Field<'_>,
    alone: bool,
    continued: bool,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let (Some((depth, entry)), Some((_, mask))) =
        (field.value.split_first(), field.mask.split_first())
    else {
        return Err(fmt::Error);
    };
    let (entry, mask) = (number(entry), number(mask));
    let plain = alone && field.id == KeyId::MplsLse1 && mask != 0;
    if !plain {
        write!(f, "{}lse depth {depth}", if continued { "" } else { "mpls " })?;
    }
    let mut separator = if plain { "" } else { " " };
    for (name, shift, bits) in
        [("label", 12, 0xf_ffff), ("tc", 9, 7), ("bos", 8, 1), ("ttl", 0, 0xff)]
    {
        if mask >> shift & bits != 0 {
            let prefix = if plain { "mpls_" } else { "" };
            write!(f, "{separator}{prefix}{name} {}", entry >> shift & bits)?;
            separator = " ";
        }
    }
    Ok(())
}

fn fmt_cfm(field: &Field<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (&[level, opcode], &[level_mask, opcode_mask]) = (field.value, field.mask) else {
        return Err(fmt::Error);
    };
    f.write_str("cfm")?;
    if level_mask != 0 {
        write!(f, " mdl {level}")?;
    }
    if opcode_mask != 0 {
        write!(f, " op {opcode}")?;
    }
    Ok(())
}

fn fmt_options(field: &Field<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (Some((kind, value)), Some((_, mask))) =
        (field.value.split_first(), field.mask.split_first())
    else {
        return Err(fmt::Error);
    };
    match *kind {
        GENEVE => {
            let mut separator = "geneve_opts ";
            for (value, mask) in geneve_options(value).zip(geneve_options(mask)) {
                f.write_str(separator)?;
                separator = ",";
                fmt_geneve(value, f)?;
                if mask.iter().enumerate().any(|(at, byte)| at != 3 && *byte != u8::MAX) {
                    f.write_str("/")?;
                    fmt_geneve(mask, f)?;
                }
            }
            Ok(())
        }
        VXLAN => {
            write!(f, "vxlan_opts {:#x}", number(value))?;
            if number(mask) == u64::from(VXLAN_GBP_MASK) {
                return Ok(());
            }
            write!(f, "/{:#x}", number(mask))
        }
        ERSPAN => {
            f.write_str("erspan_opts ")?;
            fmt_erspan(value, f)?;
            f.write_str("/")?;
            fmt_erspan(mask, f)
        }
        GTP => {
            f.write_str("gtp_opts ")?;
            fmt_two(value, f)?;
            f.write_str("/")?;
            fmt_two(mask, f)
        }
        _ => {
            f.write_str("pfcp_opts ")?;
            fmt_two(value, f)?;
            f.write_str("/")?;
            fmt_two(mask, f)
        }
    }
}

/// The options of a Geneve header, each with its class, type and length.
pub(crate) fn geneve_options(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let words = usize::from(rest.get(3)? & 0x1f);
        let (option, others) = rest.split_at_checked(4 + 4 * words)?;
        rest = others;
        Some(option)
    })
}

fn fmt_geneve(option: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (Some(class), Some(kind), Some(data)) = (option.get(..2), option.get(2), option.get(4..))
    else {
        return Err(fmt::Error);
    };
    fmt_hex(class, f)?;
    write!(f, ":{kind:02x}:")?;
    fmt_hex(data, f)
}

/// `VERSION:INDEX:DIRECTION:HWID`, the fields of the other version left empty.
fn fmt_erspan(option: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match option {
        [1, index @ ..] => write!(f, "1:{:#x}::", number(index)),
        [2, direction, hwid] => write!(f, "2::{direction:#x}:{hwid:#x}"),
        _ => Err(fmt::Error),
    }
}

/// A byte and the rest as numbers without a prefix, which `tc` reads as hexadecimal.
fn fmt_two(option: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (first, rest) = option.split_first().ok_or(fmt::Error)?;
    write!(f, "{first:x}:{:x}", number(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::{VlanId, VlanTpid};
    use crate::key::{
        CfmLevel, CfmMatch, CtFlags, CtState, GeneveOption, Ipv4Match, Ipv6Match, MplsDepth,
        MplsEntry, MplsLabel, MplsMatch, PortRange, Ports, PppoeMatch, Spi, TagMatch, Tcp, Tunnel,
        TunnelFlags, TunnelOptions, VlanPrio,
    };

    #[test]
    fn keys_are_printed_as_tc_reads_them_what_they_depend_on_first() {
        let q = TagMatch::any(VlanTpid::Dot1Q);
        let tag = q.vid(VlanId::new(5).unwrap()).prio(VlanPrio::new(3).unwrap());
        let ad = TagMatch::any(VlanTpid::Dot1Ad);
        let ports = Ports::any().src_masked(0x50, 0xfff0).dst_range(PortRange::new(1, 9).unwrap());
        let at = |depth| MplsDepth::new(depth).unwrap();
        let label = MplsEntry::any().label(MplsLabel::new(17).unwrap());
        let out_of = |tunnel: Tunnel| Match::any().tunnel(&tunnel);
        let options = |options: &TunnelOptions| out_of(Tunnel::any().options(options));
        let geneve = |data: &[u8]| GeneveOption::new(0x102, 0x80, data).unwrap();
        let masked = GeneveOption::masked((1, 0xff), (2, 0), &[3; 4], &[0xf0, 0, 0, 0]).unwrap();
        let cases = [
            (
                Match::in_tags_with(ad, tag, Ipv6Match::any().proto(1)),
                "vlan_ethtype 802.1Q cvlan_id 5 cvlan_prio 3 cvlan_ethtype ipv6 ip_proto 0x01",
            ),
            (Match::in_tag(tag).num_of_vlans(2).unwrap(), "num_of_vlans 2 vlan_id 5 vlan_prio 3"),
            (
                Match::any().indev(LinkName::new("eth0").unwrap()).l2_miss(true),
                "indev eth0 l2_miss 1",
            ),
            (
                Match::ethertype(Ipv4Match::any().tcp(Tcp::from(ports).flags(2, 0x12))),
                "ip_proto tcp src_port 80/65520 tcp_flags 0x2/0x12 dst_port 1-9",
            ),
            (
                Match::ethertype(Ipv4Match::any().ttl_masked(64, 0xf0).fragment(true)),
                "ip_ttl 64/0xf0 ip_flags frag",
            ),
            (
                Match::ethertype(Ipv4Match::any().first_fragment(false).fragment(true)),
                "ip_flags frag/nofirstfrag",
            ),
            (
                Match::ethertype(Ipv4Match::any().esp(Spi::new(0x1f).unwrap())),
                "ip_proto esp spi 0x1f",
            ),
            (Match::ethertype(Ipv4Match::any().l2tpv3(7)), "ip_proto l2tp l2tpv3_sid 7"),
            (
                Match::ethertype(PppoeMatch::any().ipv4(Ipv4Match::any().proto(1)).session(9)),
                "pppoe_sid 9 ppp_proto ip ip_proto icmp",
            ),
            (Match::ethertype(PppoeMatch::any().proto(0xc021)), "ppp_proto 0xc021"),
            (
                Match::ethertype(MplsMatch::unicast().entry(at(1), label.bos(true))),
                "mpls_label 17 mpls_bos 1",
            ),
            (
                Match::ethertype(
                    MplsMatch::unicast().entry(at(2), label.ttl(4)).entry(at(1), MplsEntry::any()),
                ),
                "mpls lse depth 1 lse depth 2 label 17 ttl 4",
            ),
            (
                Match::ethertype(CfmMatch::any().opcode(3).level(CfmLevel::new(5).unwrap())),
                "cfm mdl 5 op 3",
            ),
            (
                out_of(Tunnel::any().key_id(7).dst(Ipv4Addr::new(192, 0, 2, 1)).dst_port(4789)),
                "enc_key_id 7 enc_dst_ip 192.0.2.1 enc_dst_port 4789",
            ),
            (
                out_of(Tunnel::any().flags(TunnelFlags::OAM, TunnelFlags::CSUM)),
                "enc_flags notuncsum/tunoam",
            ),
            (
                options(&TunnelOptions::geneve(&[geneve(&[1, 2, 3, 4]), masked]).unwrap()),
                "geneve_opts 0102:80:01020304,0001:00:00000000/00ff:00:f0000000",
            ),
            (options(&TunnelOptions::vxlan_gbp(9, u32::MAX)), "vxlan_opts 0x9"),
            (options(&TunnelOptions::vxlan_gbp(9, 0xff)), "vxlan_opts 0x9/0xff"),
            (options(&TunnelOptions::erspan_v1(9, 0xff)), "erspan_opts 1:0x9::/1:0xff::"),
            (
                options(&TunnelOptions::erspan_v2((1, 1), (2, 3))),
                "erspan_opts 2::0x1:0x2/2::0x1:0x3",
            ),
            (options(&TunnelOptions::gtp((1, 255), (16, 255))), "gtp_opts 1:10/ff:ff"),
            (
                options(&TunnelOptions::pfcp((1, 255), (16, u64::MAX))),
                "pfcp_opts 1:10/ff:ffffffffffffffff",
            ),
            (
                Match::any().ct_state(
                    CtState::new(
                        CtFlags::TRACKED.and(CtFlags::ESTABLISHED),
                        CtFlags::NEW.and(CtFlags::REPLY),
                    )
                    .unwrap(),
                ),
                "ct_state +trk-new+est-rpl",
            ),
            (Match::any().ct_zone(4, 0xff).ct_mark(5, u32::MAX), "ct_zone 4/255 ct_mark 5"),
            (
                Match::any().ct_label([0xab; 16], [0xff; 16]),
                "ct_label abababababababababababababababab",
            ),
        ];
        for (matching, expected) in cases {
            assert_eq!(matching.to_string(), expected);
        }
    }
}
