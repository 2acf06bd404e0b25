//! Builders of what a frame carries behind its VLAN tags: an ethertype, and keys within it.
//!
//! In come protocols, addresses and numbers, out goes a [`Payload`] for the constructors of
//! [`crate::Match`]. A key stands only beside what flower needs to look at it: ports beside TCP, UDP
//! or SCTP, an index beside ESP or AH, a label beside MPLS. What is said twice holds as said last.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::value::{
    CfmLevel, Ipv4Prefix, Ipv6Prefix, MplsDepth, MplsLabel, MplsTc, PortRange, Spi,
};
use super::{Fields, KeyId};
use crate::ident::{EtherType, Mac};

pub(super) const IPPROTO_ICMP: u8 = 1;
pub(crate) const IPPROTO_TCP: u8 = 6;
pub(crate) const IPPROTO_UDP: u8 = 17;
pub(super) const IPPROTO_ESP: u8 = 50;
pub(super) const IPPROTO_AH: u8 = 51;
pub(super) const IPPROTO_ICMPV6: u8 = 58;
pub(super) const IPPROTO_L2TP: u8 = 115;
pub(super) const IPPROTO_SCTP: u8 = 132;

/// `ETH_P_PPP_SES` in include/uapi/linux/if_ether.h.
pub(crate) const ETH_P_PPP_SES: u16 = 0x8864;
pub(crate) const ETH_P_MPLS_UC: u16 = 0x8847;
pub(crate) const ETH_P_MPLS_MC: u16 = 0x8848;
const ETH_P_CFM: u16 = 0x8902;

/// Protocol numbers of include/uapi/linux/ppp_defs.h behind which flower looks further.
pub(super) const PPP_IP: u16 = 0x21;
pub(super) const PPP_IPV6: u16 = 0x57;
pub(super) const PPP_MPLS_UC: u16 = 0x281;
pub(super) const PPP_MPLS_MC: u16 = 0x283;

/// What the frame carries after its VLAN tags: an ethertype, and keys within it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Payload {
    pub(super) ethertype: u16,
    pub(super) fields: Fields,
}

impl From<EtherType> for Payload {
    fn from(ethertype: EtherType) -> Payload {
        Payload { ethertype: ethertype.get(), fields: Fields::none() }
    }
}

/// Which ports of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Port {
    #[default]
    Any,
    Masked(u16, u16),
    Range(PortRange),
}

/// Which TCP, UDP or SCTP ports: any of them until named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    src: Port,
    dst: Port,
}

impl Ports {
    /// Every port.
    pub const fn any() -> Ports {
        Ports { src: Port::Any, dst: Port::Any }
    }

    /// This source port only.
    #[must_use]
    pub const fn src(self, port: u16) -> Ports {
        self.src_masked(port, u16::MAX)
    }

    /// Source ports that equal `port` in the bits of `mask`.
    #[must_use]
    pub const fn src_masked(self, port: u16, mask: u16) -> Ports {
        Ports { src: Port::Masked(port, mask), ..self }
    }

    /// Source ports of this range.
    #[must_use]
    pub const fn src_range(self, range: PortRange) -> Ports {
        Ports { src: Port::Range(range), ..self }
    }

    /// This destination port only.
    #[must_use]
    pub const fn dst(self, port: u16) -> Ports {
        self.dst_masked(port, u16::MAX)
    }

    /// Destination ports that equal `port` in the bits of `mask`.
    #[must_use]
    pub const fn dst_masked(self, port: u16, mask: u16) -> Ports {
        Ports { dst: Port::Masked(port, mask), ..self }
    }

    /// Destination ports of this range.
    #[must_use]
    pub const fn dst_range(self, range: PortRange) -> Ports {
        Ports { dst: Port::Range(range), ..self }
    }
}

/// TCP: ports, and flags of its header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    ports: Ports,
    flags: (u16, u16),
}

impl From<Ports> for Tcp {
    fn from(ports: Ports) -> Tcp {
        Tcp { ports, flags: (0, 0) }
    }
}

impl Tcp {
    /// These of the 12 flag bits (FIN is 1, SYN 2, ACK 16), in the bits of `mask`.
    #[must_use]
    pub const fn flags(self, flags: u16, mask: u16) -> Tcp {
        Tcp { flags: (flags, mask & 0x0fff), ..self }
    }
}

fn is_layer4(id: KeyId) -> bool {
    id == KeyId::IpProto || (KeyId::TcpSrc..=KeyId::Spi).contains(&id)
}

/// `fields` with this IP protocol and none of another protocol's keys.
fn layer4(fields: &Fields, proto: u8) -> Fields {
    fields.without(is_layer4).with_exact(KeyId::IpProto, &[proto])
}

fn with_ports(fields: &Fields, proto: u8, ports: Ports, src: KeyId, dst: KeyId) -> Fields {
    let mut fields = layer4(fields, proto);
    for (port, id, range_id) in
        [(ports.src, src, KeyId::PortSrcRange), (ports.dst, dst, KeyId::PortDstRange)]
    {
        fields = match port {
            Port::Any => fields,
            Port::Masked(port, mask) => fields.with(id, &port.to_be_bytes(), &mask.to_be_bytes()),
            Port::Range(range) => fields.with_exact(range_id, &range.bytes()),
        };
    }
    fields
}

/// One bit of `ip_flags` (`TCA_FLOWER_KEY_FLAGS_*`), beside what is said of the other.
fn with_ip_flag(fields: &Fields, bit: u32, set: bool) -> Fields {
    let number = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
    let (value, mask) = fields
        .get(KeyId::IpFlags)
        .map_or((0, 0), |field| (number(field.value), number(field.mask)));
    let value = if set { value | bit } else { value & !bit };
    fields.with(KeyId::IpFlags, &value.to_be_bytes(), &(mask | bit).to_be_bytes())
}

/// Builder of an IPv4 payload.
#[derive(Clone, Debug)]
pub struct Ipv4Match(Fields);

/// Builder of an IPv6 payload.
#[derive(Clone, Debug)]
pub struct Ipv6Match(Fields);

macro_rules! ip_match {
    ($name:ident, $addr:ty, $prefix:ty, $ethertype:expr, $any:literal, $src:ident, $dst:ident,
     $icmp:expr, $icmp_type:ident, $icmp_code:ident) => {
        impl $name {
            #[doc = $any]
            pub const fn any() -> $name {
                $name(Fields::none())
            }

            /// This source address only.
            #[must_use]
            pub fn src(self, addr: $addr) -> $name {
                self.src_in(addr.into())
            }

            /// Source addresses of this prefix.
            #[must_use]
            pub fn src_in(self, prefix: $prefix) -> $name {
                let (addr, mask) = (prefix.addr().octets(), prefix.mask().octets());
                $name(self.0.with(KeyId::$src, &addr, &mask))
            }

            /// This destination address only.
            #[must_use]
            pub fn dst(self, addr: $addr) -> $name {
                self.dst_in(addr.into())
            }

            /// Destination addresses of this prefix.
            #[must_use]
            pub fn dst_in(self, prefix: $prefix) -> $name {
                let (addr, mask) = (prefix.addr().octets(), prefix.mask().octets());
                $name(self.0.with(KeyId::$dst, &addr, &mask))
            }

            /// This type of service (IPv6: traffic class), in the bits of `mask`.
            #[must_use]
            pub fn tos(self, tos: u8, mask: u8) -> $name {
                $name(self.0.with(KeyId::IpTos, &[tos], &[mask]))
            }

            /// This time to live (IPv6: hop limit) only.
            #[must_use]
            pub fn ttl(self, ttl: u8) -> $name {
                self.ttl_masked(ttl, u8::MAX)
            }

            /// Times to live (IPv6: hop limits) that equal `ttl` in the bits of `mask`.
            #[must_use]
            pub fn ttl_masked(self, ttl: u8, mask: u8) -> $name {
                $name(self.0.with(KeyId::IpTtl, &[ttl], &[mask]))
            }

            /// Fragments only, or all but fragments.
            #[must_use]
            pub fn fragment(self, yes: bool) -> $name {
                $name(with_ip_flag(&self.0, 1, yes))
            }

            /// First fragments only, or all but those.
            #[must_use]
            pub fn first_fragment(self, yes: bool) -> $name {
                $name(with_ip_flag(&self.0, 2, yes))
            }

            /// This protocol number (IPv6: after extension headers) only. Replaces whatever an
            /// earlier call said about the protocol, here and below.
            #[must_use]
            pub fn proto(self, proto: u8) -> $name {
                $name(layer4(&self.0, proto))
            }

            /// UDP with these ports.
            #[must_use]
            pub fn udp(self, ports: Ports) -> $name {
                $name(with_ports(&self.0, IPPROTO_UDP, ports, KeyId::UdpSrc, KeyId::UdpDst))
            }

            /// TCP with these ports, and flags where [`Tcp::flags`] names some.
            #[must_use]
            pub fn tcp(self, tcp: impl Into<Tcp>) -> $name {
                let Tcp { ports, flags: (flags, mask) } = tcp.into();
                let fields = with_ports(&self.0, IPPROTO_TCP, ports, KeyId::TcpSrc, KeyId::TcpDst);
                $name(fields.with(KeyId::TcpFlags, &flags.to_be_bytes(), &mask.to_be_bytes()))
            }

            /// SCTP with these ports.
            #[must_use]
            pub fn sctp(self, ports: Ports) -> $name {
                $name(with_ports(&self.0, IPPROTO_SCTP, ports, KeyId::SctpSrc, KeyId::SctpDst))
            }

            /// ICMP (in IPv6 ICMPv6) of this type.
            #[must_use]
            pub fn icmp_type(self, icmp_type: u8) -> $name {
                self.icmp_masked((icmp_type, u8::MAX), (0, 0))
            }

            /// ICMP (in IPv6 ICMPv6) of this type and code.
            #[must_use]
            pub fn icmp(self, icmp_type: u8, code: u8) -> $name {
                self.icmp_masked((icmp_type, u8::MAX), (code, u8::MAX))
            }

            /// ICMP (in IPv6 ICMPv6) of this type and code, value and mask each.
            #[must_use]
            pub fn icmp_masked(self, icmp_type: (u8, u8), code: (u8, u8)) -> $name {
                let fields = layer4(&self.0, $icmp)
                    .with(KeyId::$icmp_type, &[icmp_type.0], &[icmp_type.1])
                    .with(KeyId::$icmp_code, &[code.0], &[code.1]);
                $name(fields)
            }

            /// IPsec's encapsulating security payload with this index.
            #[must_use]
            pub fn esp(self, spi: Spi) -> $name {
                self.ipsec(IPPROTO_ESP, spi)
            }

            /// IPsec's authentication header with this index.
            #[must_use]
            pub fn ah(self, spi: Spi) -> $name {
                self.ipsec(IPPROTO_AH, spi)
            }

            fn ipsec(self, proto: u8, spi: Spi) -> $name {
                let (value, mask) = (spi.value().to_be_bytes(), spi.mask().to_be_bytes());
                $name(layer4(&self.0, proto).with(KeyId::Spi, &value, &mask))
            }

            /// L2TP version 3 directly over IP, with this session identifier.
            #[must_use]
            pub fn l2tpv3(self, session: u32) -> $name {
                let fields = layer4(&self.0, IPPROTO_L2TP);
                $name(fields.with_exact(KeyId::L2tpv3Sid, &session.to_be_bytes()))
            }
        }

        impl From<$name> for Payload {
            fn from(from: $name) -> Payload {
                Payload { ethertype: $ethertype.get(), fields: from.0 }
            }
        }
    };
}

ip_match!(
    Ipv4Match,
    Ipv4Addr,
    Ipv4Prefix,
    EtherType::IPV4,
    "Every IPv4 packet.",
    Ipv4Src,
    Ipv4Dst,
    IPPROTO_ICMP,
    Icmpv4Type,
    Icmpv4Code
);
ip_match!(
    Ipv6Match,
    Ipv6Addr,
    Ipv6Prefix,
    EtherType::IPV6,
    "Every IPv6 packet.",
    Ipv6Src,
    Ipv6Dst,
    IPPROTO_ICMPV6,
    Icmpv6Type,
    Icmpv6Code
);

/// Builder of an ARP or RARP payload (Ethernet over IPv4).
#[derive(Clone, Debug)]
pub struct ArpMatch {
    ethertype: EtherType,
    fields: Fields,
}

impl ArpMatch {
    /// Every ARP message.
    pub const fn any() -> ArpMatch {
        ArpMatch { ethertype: EtherType::ARP, fields: Fields::none() }
    }

    /// Every RARP message.
    pub const fn rarp() -> ArpMatch {
        ArpMatch { ethertype: EtherType::RARP, fields: Fields::none() }
    }

    fn with(self, id: KeyId, value: &[u8], mask: &[u8]) -> ArpMatch {
        ArpMatch { fields: self.fields.with(id, value, mask), ..self }
    }

    /// This operation only: 1 request, 2 reply, and for RARP 3 and 4. (`tc` has no words for more
    /// than 1 and 2.)
    #[must_use]
    pub fn op(self, op: u8) -> ArpMatch {
        self.op_masked(op, u8::MAX)
    }

    /// Operations that equal `op` in the bits of `mask`.
    #[must_use]
    pub fn op_masked(self, op: u8, mask: u8) -> ArpMatch {
        self.with(KeyId::ArpOp, &[op], &[mask])
    }

    /// This sender protocol address only.
    #[must_use]
    pub fn sip(self, addr: Ipv4Addr) -> ArpMatch {
        self.sip_in(addr.into())
    }

    /// Sender protocol addresses of this prefix.
    #[must_use]
    pub fn sip_in(self, prefix: Ipv4Prefix) -> ArpMatch {
        self.with(KeyId::ArpSip, &prefix.addr().octets(), &prefix.mask().octets())
    }

    /// This target protocol address only.
    #[must_use]
    pub fn tip(self, addr: Ipv4Addr) -> ArpMatch {
        self.tip_in(addr.into())
    }

    /// Target protocol addresses of this prefix.
    #[must_use]
    pub fn tip_in(self, prefix: Ipv4Prefix) -> ArpMatch {
        self.with(KeyId::ArpTip, &prefix.addr().octets(), &prefix.mask().octets())
    }

    /// This sender hardware address only.
    #[must_use]
    pub fn sha(self, mac: Mac) -> ArpMatch {
        self.sha_masked(mac, Mac::EXACT)
    }

    /// Sender hardware addresses that equal `mac` in the bits of `mask`.
    #[must_use]
    pub fn sha_masked(self, mac: Mac, mask: Mac) -> ArpMatch {
        self.with(KeyId::ArpSha, &mac.0, &mask.0)
    }

    /// This target hardware address only.
    #[must_use]
    pub fn tha(self, mac: Mac) -> ArpMatch {
        self.tha_masked(mac, Mac::EXACT)
    }

    /// Target hardware addresses that equal `mac` in the bits of `mask`.
    #[must_use]
    pub fn tha_masked(self, mac: Mac, mask: Mac) -> ArpMatch {
        self.with(KeyId::ArpTha, &mac.0, &mask.0)
    }
}

impl From<ArpMatch> for Payload {
    fn from(from: ArpMatch) -> Payload {
        Payload { ethertype: from.ethertype.get(), fields: from.fields }
    }
}

/// One entry of a label stack: any until named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MplsEntry {
    value: u32,
    mask: u32,
}

impl MplsEntry {
    /// Any entry: that there is one is what it says.
    pub const fn any() -> MplsEntry {
        MplsEntry { value: 0, mask: 0 }
    }

    const fn with(self, value: u32, mask: u32) -> MplsEntry {
        MplsEntry { value: self.value & !mask | value, mask: self.mask | mask }
    }

    /// This label only.
    #[must_use]
    pub fn label(self, label: MplsLabel) -> MplsEntry {
        self.with(label.get() << 12, 0xffff_f000)
    }

    /// This traffic class only.
    #[must_use]
    pub fn tc(self, tc: MplsTc) -> MplsEntry {
        self.with(u32::from(tc.get()) << 9, 0x0e00)
    }

    /// The bottom of the stack only, or all but it.
    #[must_use]
    pub fn bos(self, bos: bool) -> MplsEntry {
        self.with(u32::from(bos) << 8, 0x0100)
    }

    /// This time to live only.
    #[must_use]
    pub fn ttl(self, ttl: u8) -> MplsEntry {
        self.with(ttl.into(), 0xff)
    }
}

/// Builder of an MPLS payload.
#[derive(Clone, Debug)]
pub struct MplsMatch {
    multicast: bool,
    fields: Fields,
}

impl MplsMatch {
    /// Every packet of MPLS with downstream-assigned labels (ethertype 0x8847, "unicast").
    pub const fn unicast() -> MplsMatch {
        MplsMatch { multicast: false, fields: Fields::none() }
    }

    /// Every packet of MPLS with upstream-assigned labels (ethertype 0x8848, "multicast").
    pub const fn multicast() -> MplsMatch {
        MplsMatch { multicast: true, fields: Fields::none() }
    }

    /// Of those, packets whose label stack has at this depth such an entry.
    #[must_use]
    pub fn entry(self, depth: MplsDepth, entry: MplsEntry) -> MplsMatch {
        let bytes = |depth: u8, entry: u32| {
            let [a, b, c, d] = entry.to_be_bytes();
            [depth, a, b, c, d]
        };
        let Some(id) = KeyId::mpls_entry(depth.get()) else { return self };
        let value = bytes(depth.get(), entry.value);
        let mask = bytes(u8::MAX, entry.mask);
        MplsMatch { fields: self.fields.with(id, &value, &mask), ..self }
    }
}

impl From<MplsMatch> for Payload {
    fn from(from: MplsMatch) -> Payload {
        let ethertype = if from.multicast { ETH_P_MPLS_MC } else { ETH_P_MPLS_UC };
        Payload { ethertype, fields: from.fields }
    }
}

/// Builder of a payload of PPP over Ethernet, session stage.
#[derive(Clone, Debug)]
pub struct PppoeMatch(Fields);

impl PppoeMatch {
    /// Every packet of a session.
    pub const fn any() -> PppoeMatch {
        PppoeMatch(Fields::none())
    }

    /// Packets of this session only.
    #[must_use]
    pub fn session(self, id: u16) -> PppoeMatch {
        PppoeMatch(self.0.with_exact(KeyId::PppoeSid, &id.to_be_bytes()))
    }

    /// This PPP protocol only (0x0021 IPv4, 0x0057 IPv6, 0xc021 LCP, …). Replaces whatever an
    /// earlier call said about what PPP carries.
    #[must_use]
    pub fn proto(self, proto: u16) -> PppoeMatch {
        let fields = self.0.without(|id| id > KeyId::PppProto);
        PppoeMatch(fields.with_exact(KeyId::PppProto, &proto.to_be_bytes()))
    }

    fn carrying(self, proto: u16, fields: &Fields) -> PppoeMatch {
        let mut all = self.proto(proto).0;
        for field in fields.iter() {
            all = all.with(field.id, field.value, field.mask);
        }
        PppoeMatch(all)
    }

    /// IPv4, with these keys within it.
    #[must_use]
    pub fn ipv4(self, within: Ipv4Match) -> PppoeMatch {
        self.carrying(PPP_IP, &within.0)
    }

    /// IPv6, with these keys within it.
    #[must_use]
    pub fn ipv6(self, within: Ipv6Match) -> PppoeMatch {
        self.carrying(PPP_IPV6, &within.0)
    }

    /// MPLS, with these keys within it.
    #[must_use]
    pub fn mpls(self, within: MplsMatch) -> PppoeMatch {
        let proto = if within.multicast { PPP_MPLS_MC } else { PPP_MPLS_UC };
        self.carrying(proto, &within.fields)
    }
}

impl From<PppoeMatch> for Payload {
    fn from(from: PppoeMatch) -> Payload {
        Payload { ethertype: ETH_P_PPP_SES, fields: from.0 }
    }
}

/// Builder of a payload of connectivity fault management (IEEE 802.1ag).
#[derive(Clone, Debug)]
pub struct CfmMatch {
    level: Option<CfmLevel>,
    opcode: Option<u8>,
}

impl CfmMatch {
    /// Every message.
    pub const fn any() -> CfmMatch {
        CfmMatch { level: None, opcode: None }
    }

    /// This maintenance domain level only.
    #[must_use]
    pub const fn level(self, level: CfmLevel) -> CfmMatch {
        CfmMatch { level: Some(level), ..self }
    }

    /// This opcode only: 1 continuity check, 2 loopback reply, 3 loopback, …
    #[must_use]
    pub const fn opcode(self, opcode: u8) -> CfmMatch {
        CfmMatch { opcode: Some(opcode), ..self }
    }
}

impl From<CfmMatch> for Payload {
    fn from(from: CfmMatch) -> Payload {
        let level = from.level.map(CfmLevel::get);
        let value = [level.unwrap_or(0), from.opcode.unwrap_or(0)];
        let mask = [level.map_or(0, |_| 7), from.opcode.map_or(0, |_| u8::MAX)];
        Payload { ethertype: ETH_P_CFM, fields: Fields::none().with(KeyId::Cfm, &value, &mask) }
    }
}
