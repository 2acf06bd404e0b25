//! What a rule matches: a protocol and an ordered list of masked flower keys.
//!
//! In come typed builders under which an invalid combination cannot be written (a port without its
//! IP protocol, a VLAN identifier without its tag); out goes [`Match`], a compact value that
//! compares, hashes and prints. The table [`KeyId::spec`] is the only place that knows a key's
//! length, attribute numbers and `tc` name: a further key is a further entry. No netlink bytes
//! here.
//!
//! Keys and attribute numbers: `enum { TCA_FLOWER_* }` in include/uapi/linux/pkt_cls.h; which keys
//! need which: `fl_set_key` in net/sched/cls_flower.c.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::ident::{ETH_P_ALL, EtherType, Mac, VlanId, VlanTpid, fmt_ethertype};

/// A flower key, in the order in which `tc` wants to read them: what a key depends on stands
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum KeyId {
    EthDst,
    EthSrc,
    VlanId,
    VlanEthType,
    IpProto,
    IpTos,
    IpTtl,
    Ipv4Src,
    Ipv4Dst,
    Ipv6Src,
    Ipv6Dst,
    TcpSrc,
    TcpDst,
    TcpFlags,
    UdpSrc,
    UdpDst,
    SctpSrc,
    SctpDst,
    Icmpv4Type,
    Icmpv4Code,
    Icmpv6Type,
    Icmpv6Code,
    ArpOp,
    ArpSip,
    ArpTip,
    ArpSha,
    ArpTha,
}

/// How a key's bytes are written, on the wire and for `tc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Mac,
    /// Kept here in network order, on the wire in host order.
    HostU16,
    EtherType,
    Number,
    Hex,
    IpProto,
    Ipv4,
    Ipv6,
}

/// Everything that is known about one key.
#[derive(Debug)]
pub(crate) struct Spec {
    /// As `tc` calls it.
    pub(crate) name: &'static str,
    /// `TCA_FLOWER_KEY_*` of the value.
    pub(crate) value: u16,
    /// `TCA_FLOWER_KEY_*_MASK`, 0 where flower takes the key exact only.
    pub(crate) mask: u16,
    pub(crate) len: usize,
    pub(crate) form: Form,
}

const fn spec(name: &'static str, value: u16, mask: u16, len: usize, form: Form) -> Spec {
    Spec { name, value, mask, len, form }
}

static SPECS: [Spec; KeyId::ALL.len()] = [
    spec("dst_mac", 4, 5, 6, Form::Mac),
    spec("src_mac", 6, 7, 6, Form::Mac),
    spec("vlan_id", 23, 0, 2, Form::HostU16),
    spec("vlan_ethtype", 25, 0, 2, Form::EtherType),
    spec("ip_proto", 9, 0, 1, Form::IpProto),
    spec("ip_tos", 73, 74, 1, Form::Hex),
    spec("ip_ttl", 75, 76, 1, Form::Number),
    spec("src_ip", 10, 11, 4, Form::Ipv4),
    spec("dst_ip", 12, 13, 4, Form::Ipv4),
    spec("src_ip", 14, 15, 16, Form::Ipv6),
    spec("dst_ip", 16, 17, 16, Form::Ipv6),
    spec("src_port", 18, 35, 2, Form::Number),
    spec("dst_port", 19, 36, 2, Form::Number),
    spec("tcp_flags", 71, 72, 2, Form::Hex),
    spec("src_port", 20, 37, 2, Form::Number),
    spec("dst_port", 21, 38, 2, Form::Number),
    spec("src_port", 41, 39, 2, Form::Number),
    spec("dst_port", 42, 40, 2, Form::Number),
    spec("type", 51, 52, 1, Form::Number),
    spec("code", 49, 50, 1, Form::Number),
    spec("type", 55, 56, 1, Form::Number),
    spec("code", 53, 54, 1, Form::Number),
    spec("arp_op", 61, 62, 1, Form::Number),
    spec("arp_sip", 57, 58, 4, Form::Ipv4),
    spec("arp_tip", 59, 60, 4, Form::Ipv4),
    spec("arp_sha", 63, 64, 6, Form::Mac),
    spec("arp_tha", 65, 66, 6, Form::Mac),
];

impl KeyId {
    pub(crate) const ALL: [KeyId; 27] = [
        KeyId::EthDst,
        KeyId::EthSrc,
        KeyId::VlanId,
        KeyId::VlanEthType,
        KeyId::IpProto,
        KeyId::IpTos,
        KeyId::IpTtl,
        KeyId::Ipv4Src,
        KeyId::Ipv4Dst,
        KeyId::Ipv6Src,
        KeyId::Ipv6Dst,
        KeyId::TcpSrc,
        KeyId::TcpDst,
        KeyId::TcpFlags,
        KeyId::UdpSrc,
        KeyId::UdpDst,
        KeyId::SctpSrc,
        KeyId::SctpDst,
        KeyId::Icmpv4Type,
        KeyId::Icmpv4Code,
        KeyId::Icmpv6Type,
        KeyId::Icmpv6Code,
        KeyId::ArpOp,
        KeyId::ArpSip,
        KeyId::ArpTip,
        KeyId::ArpSha,
        KeyId::ArpTha,
    ];

    pub(crate) const fn spec(self) -> &'static Spec {
        &SPECS[self as usize]
    }

    fn from_u8(id: u8) -> Option<KeyId> {
        KeyId::ALL.get(usize::from(id)).copied()
    }
}

/// Longest key: an IPv6 address.
pub(crate) const KEY_MAX: usize = 16;

/// The mask under which every bit of a key counts: 12 bits of a VLAN identifier and of the TCP
/// flags, all bits of the others.
pub(crate) fn exact_mask(id: KeyId) -> [u8; KEY_MAX] {
    let mut mask = [0xff; KEY_MAX];
    if matches!(id, KeyId::VlanId | KeyId::TcpFlags) {
        mask[0] = 0x0f;
    }
    mask
}

/// Bytes that a [`Fields`] holds without a heap allocation: both Ethernet addresses with their
/// masks and a VLAN identifier fit.
const INLINE: usize = 38;

/// Masked keys in ascending [`KeyId`] order, packed as (id, value, mask), values always within
/// their masks and no mask zero: so equal matches are equal bytes.
#[derive(Clone)]
pub(crate) enum Fields {
    Inline { len: u8, bytes: [u8; INLINE] },
    Shared(Arc<[u8]>),
}

/// One masked key of a [`Fields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    pub(crate) id: KeyId,
    pub(crate) value: &'a [u8],
    pub(crate) mask: &'a [u8],
}

impl Field<'_> {
    pub(crate) fn is_exact(&self) -> bool {
        exact_mask(self.id).starts_with(self.mask)
    }
}

impl Fields {
    pub(crate) const fn none() -> Fields {
        Fields::Inline { len: 0, bytes: [0; INLINE] }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Fields::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Fields::Shared(bytes) => bytes,
        }
    }

    fn from_bytes(from: &[u8]) -> Fields {
        if from.len() <= INLINE {
            let mut bytes = [0; INLINE];
            bytes[..from.len()].copy_from_slice(from);
            Fields::Inline { len: from.len() as u8, bytes }
        } else {
            Fields::Shared(from.into())
        }
    }

    pub(crate) fn iter(&self) -> FieldIter<'_> {
        FieldIter { rest: self.bytes() }
    }

    pub(crate) fn get(&self, id: KeyId) -> Option<Field<'_>> {
        self.iter().find(|field| field.id == id)
    }

    /// These fields with `id` set, or absent where the mask is zero.
    pub(crate) fn with(&self, id: KeyId, value: &[u8], mask: &[u8]) -> Fields {
        let len = id.spec().len;
        debug_assert!(value.len() == len && mask.len() == len);
        let mut out = FieldsBuilder::new();
        let mut placed = false;
        for field in self.iter() {
            if !placed && field.id >= id {
                out.push(id, value, mask);
                placed = true;
            }
            if field.id != id {
                out.push(field.id, field.value, field.mask);
            }
        }
        if !placed {
            out.push(id, value, mask);
        }
        out.finish()
    }

    fn with_exact(&self, id: KeyId, value: &[u8]) -> Fields {
        self.with(id, value, &exact_mask(id)[..id.spec().len])
    }

    /// These fields without those that `unwanted` names.
    fn without(&self, unwanted: impl Fn(KeyId) -> bool) -> Fields {
        let mut out = FieldsBuilder::new();
        for field in self.iter().filter(|field| !unwanted(field.id)) {
            out.push(field.id, field.value, field.mask);
        }
        out.finish()
    }

    /// The masks alone: rules of one shape and different keys can never match one frame.
    pub(crate) fn shape(&self) -> Fields {
        let mut out = FieldsBuilder::new();
        for field in self.iter() {
            out.push(field.id, field.mask, field.mask);
        }
        out.finish()
    }

    /// The bits that both shapes look at, as a shape.
    pub(crate) fn common(&self, other: &Fields) -> Fields {
        let mut out = FieldsBuilder::new();
        for field in self.iter() {
            if let Some(theirs) = other.get(field.id) {
                let mut both = [0; KEY_MAX];
                for (byte, (a, b)) in both.iter_mut().zip(field.mask.iter().zip(theirs.mask)) {
                    *byte = a & b;
                }
                let both = &both[..field.mask.len()];
                out.push(field.id, both, both);
            }
        }
        out.finish()
    }

    /// These keys seen through the masks of `shape`, whose bits must be a part of this one's.
    pub(crate) fn projected(&self, shape: &Fields) -> Fields {
        let mut out = FieldsBuilder::new();
        for through in shape.iter() {
            if let Some(field) = self.get(through.id) {
                out.push(field.id, field.value, through.mask);
            }
        }
        out.finish()
    }
}

/// Builds a field list from keys in ascending order, in room for every key at once.
pub(crate) struct FieldsBuilder {
    len: usize,
    bytes: [u8; 256],
}

const _: () = {
    let mut sum = 0;
    let mut at = 0;
    while at < SPECS.len() {
        assert!(SPECS[at].len <= KEY_MAX);
        sum += 1 + 2 * SPECS[at].len;
        at += 1;
    }
    assert!(sum <= 256, "FieldsBuilder must hold every key at once");
};

impl FieldsBuilder {
    pub(crate) const fn new() -> FieldsBuilder {
        FieldsBuilder { len: 0, bytes: [0; 256] }
    }

    /// Adds a key; one without a bit that counts is no key.
    pub(crate) fn push(&mut self, id: KeyId, value: &[u8], mask: &[u8]) {
        if mask.iter().all(|byte| *byte == 0) {
            return;
        }
        let len = mask.len();
        self.bytes[self.len] = id as u8;
        let start = self.len + 1;
        for (at, (v, m)) in value.iter().zip(mask).enumerate() {
            self.bytes[start + at] = v & m;
            self.bytes[start + len + at] = *m;
        }
        self.len = start + 2 * len;
    }

    pub(crate) fn finish(&self) -> Fields {
        Fields::from_bytes(&self.bytes[..self.len])
    }
}

pub(crate) struct FieldIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for FieldIter<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let (id, rest) = self.rest.split_first()?;
        let id = KeyId::from_u8(*id)?;
        let len = id.spec().len;
        let (value, rest) = rest.split_at_checked(len)?;
        let (mask, rest) = rest.split_at_checked(len)?;
        self.rest = rest;
        Some(Field { id, value, mask })
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Fields) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Fields {}

impl PartialOrd for Fields {
    fn partial_cmp(&self, other: &Fields) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Fields {
    fn cmp(&self, other: &Fields) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl Hash for Fields {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

/// Which TCP, UDP or SCTP ports: any of them until named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    src: Option<u16>,
    dst: Option<u16>,
}

impl Ports {
    /// Every port.
    pub const fn any() -> Ports {
        Ports { src: None, dst: None }
    }

    /// This source port only.
    pub const fn src(self, port: u16) -> Ports {
        Ports { src: Some(port), ..self }
    }

    /// This destination port only.
    pub const fn dst(self, port: u16) -> Ports {
        Ports { dst: Some(port), ..self }
    }
}

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_SCTP: u8 = 132;

fn is_layer4(id: KeyId) -> bool {
    id == KeyId::IpProto || (KeyId::TcpSrc..=KeyId::Icmpv6Code).contains(&id)
}

/// `fields` with this IP protocol and none of another protocol's keys.
fn layer4(fields: &Fields, proto: u8) -> Fields {
    fields.without(is_layer4).with_exact(KeyId::IpProto, &[proto])
}

fn with_ports(fields: &Fields, proto: u8, ports: Ports, src: KeyId, dst: KeyId) -> Fields {
    let mut fields = layer4(fields, proto);
    if let Some(port) = ports.src {
        fields = fields.with_exact(src, &port.to_be_bytes());
    }
    if let Some(port) = ports.dst {
        fields = fields.with_exact(dst, &port.to_be_bytes());
    }
    fields
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// What the frame carries after its VLAN tags: an ethertype, and keys within it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Payload {
    ethertype: EtherType,
    fields: Fields,
}

impl From<EtherType> for Payload {
    fn from(ethertype: EtherType) -> Payload {
        Payload { ethertype, fields: Fields::none() }
    }
}

/// Builder of an IPv4 payload.
#[derive(Clone, Debug)]
pub struct Ipv4Match(Fields);

/// Builder of an IPv6 payload.
#[derive(Clone, Debug)]
pub struct Ipv6Match(Fields);

/// Builder of an ARP payload (Ethernet over IPv4).
#[derive(Clone, Debug)]
pub struct ArpMatch(Fields);

impl Ipv4Match {
    /// Every IPv4 packet.
    pub const fn any() -> Ipv4Match {
        Ipv4Match(Fields::none())
    }

    /// This source address only.
    pub fn src(self, addr: Ipv4Addr) -> Ipv4Match {
        self.src_masked(addr, Ipv4Addr::BROADCAST)
    }

    /// Source addresses that equal `addr` in the bits of `mask`.
    pub fn src_masked(self, addr: Ipv4Addr, mask: Ipv4Addr) -> Ipv4Match {
        Ipv4Match(self.0.with(KeyId::Ipv4Src, &addr.octets(), &mask.octets()))
    }

    /// This destination address only.
    pub fn dst(self, addr: Ipv4Addr) -> Ipv4Match {
        self.dst_masked(addr, Ipv4Addr::BROADCAST)
    }

    /// Destination addresses that equal `addr` in the bits of `mask`.
    pub fn dst_masked(self, addr: Ipv4Addr, mask: Ipv4Addr) -> Ipv4Match {
        Ipv4Match(self.0.with(KeyId::Ipv4Dst, &addr.octets(), &mask.octets()))
    }

    /// This type of service, in the bits of `mask`.
    pub fn tos(self, tos: u8, mask: u8) -> Ipv4Match {
        Ipv4Match(self.0.with(KeyId::IpTos, &[tos], &[mask]))
    }

    /// This time to live only.
    pub fn ttl(self, ttl: u8) -> Ipv4Match {
        Ipv4Match(self.0.with_exact(KeyId::IpTtl, &[ttl]))
    }

    /// This protocol number only. Replaces whatever an earlier call said about the protocol.
    pub fn proto(self, proto: u8) -> Ipv4Match {
        Ipv4Match(layer4(&self.0, proto))
    }

    /// UDP with these ports.
    pub fn udp(self, ports: Ports) -> Ipv4Match {
        Ipv4Match(with_ports(&self.0, IPPROTO_UDP, ports, KeyId::UdpSrc, KeyId::UdpDst))
    }

    /// TCP with these ports.
    pub fn tcp(self, ports: Ports) -> Ipv4Match {
        Ipv4Match(with_ports(&self.0, IPPROTO_TCP, ports, KeyId::TcpSrc, KeyId::TcpDst))
    }

    /// SCTP with these ports.
    pub fn sctp(self, ports: Ports) -> Ipv4Match {
        Ipv4Match(with_ports(&self.0, IPPROTO_SCTP, ports, KeyId::SctpSrc, KeyId::SctpDst))
    }

    /// ICMP of this type.
    pub fn icmp_type(self, icmp_type: u8) -> Ipv4Match {
        Ipv4Match(layer4(&self.0, IPPROTO_ICMP).with_exact(KeyId::Icmpv4Type, &[icmp_type]))
    }

    /// ICMP of this type and code.
    pub fn icmp(self, icmp_type: u8, code: u8) -> Ipv4Match {
        Ipv4Match(self.icmp_type(icmp_type).0.with_exact(KeyId::Icmpv4Code, &[code]))
    }
}

impl From<Ipv4Match> for Payload {
    fn from(from: Ipv4Match) -> Payload {
        Payload { ethertype: EtherType::IPV4, fields: from.0 }
    }
}

impl Ipv6Match {
    /// Every IPv6 packet.
    pub const fn any() -> Ipv6Match {
        Ipv6Match(Fields::none())
    }

    /// This source address only.
    pub fn src(self, addr: Ipv6Addr) -> Ipv6Match {
        self.src_masked(addr, Ipv6Addr::from_bits(u128::MAX))
    }

    /// Source addresses that equal `addr` in the bits of `mask`.
    pub fn src_masked(self, addr: Ipv6Addr, mask: Ipv6Addr) -> Ipv6Match {
        Ipv6Match(self.0.with(KeyId::Ipv6Src, &addr.octets(), &mask.octets()))
    }

    /// This destination address only.
    pub fn dst(self, addr: Ipv6Addr) -> Ipv6Match {
        self.dst_masked(addr, Ipv6Addr::from_bits(u128::MAX))
    }

    /// Destination addresses that equal `addr` in the bits of `mask`.
    pub fn dst_masked(self, addr: Ipv6Addr, mask: Ipv6Addr) -> Ipv6Match {
        Ipv6Match(self.0.with(KeyId::Ipv6Dst, &addr.octets(), &mask.octets()))
    }

    /// This traffic class, in the bits of `mask`.
    pub fn tos(self, tos: u8, mask: u8) -> Ipv6Match {
        Ipv6Match(self.0.with(KeyId::IpTos, &[tos], &[mask]))
    }

    /// This hop limit only.
    pub fn ttl(self, ttl: u8) -> Ipv6Match {
        Ipv6Match(self.0.with_exact(KeyId::IpTtl, &[ttl]))
    }

    /// This protocol number (after extension headers) only. Replaces whatever an earlier call said
    /// about the protocol.
    pub fn proto(self, proto: u8) -> Ipv6Match {
        Ipv6Match(layer4(&self.0, proto))
    }

    /// UDP with these ports.
    pub fn udp(self, ports: Ports) -> Ipv6Match {
        Ipv6Match(with_ports(&self.0, IPPROTO_UDP, ports, KeyId::UdpSrc, KeyId::UdpDst))
    }

    /// TCP with these ports.
    pub fn tcp(self, ports: Ports) -> Ipv6Match {
        Ipv6Match(with_ports(&self.0, IPPROTO_TCP, ports, KeyId::TcpSrc, KeyId::TcpDst))
    }

    /// SCTP with these ports.
    pub fn sctp(self, ports: Ports) -> Ipv6Match {
        Ipv6Match(with_ports(&self.0, IPPROTO_SCTP, ports, KeyId::SctpSrc, KeyId::SctpDst))
    }

    /// ICMPv6 of this type.
    pub fn icmp_type(self, icmp_type: u8) -> Ipv6Match {
        Ipv6Match(layer4(&self.0, IPPROTO_ICMPV6).with_exact(KeyId::Icmpv6Type, &[icmp_type]))
    }

    /// ICMPv6 of this type and code.
    pub fn icmp(self, icmp_type: u8, code: u8) -> Ipv6Match {
        Ipv6Match(self.icmp_type(icmp_type).0.with_exact(KeyId::Icmpv6Code, &[code]))
    }
}

impl From<Ipv6Match> for Payload {
    fn from(from: Ipv6Match) -> Payload {
        Payload { ethertype: EtherType::IPV6, fields: from.0 }
    }
}

impl ArpMatch {
    /// Every ARP message.
    pub const fn any() -> ArpMatch {
        ArpMatch(Fields::none())
    }

    /// This operation only: 1 request, 2 reply.
    pub fn op(self, op: u8) -> ArpMatch {
        ArpMatch(self.0.with_exact(KeyId::ArpOp, &[op]))
    }

    /// This sender protocol address only.
    pub fn sip(self, addr: Ipv4Addr) -> ArpMatch {
        self.sip_masked(addr, Ipv4Addr::BROADCAST)
    }

    /// Sender protocol addresses that equal `addr` in the bits of `mask`.
    pub fn sip_masked(self, addr: Ipv4Addr, mask: Ipv4Addr) -> ArpMatch {
        ArpMatch(self.0.with(KeyId::ArpSip, &addr.octets(), &mask.octets()))
    }

    /// This target protocol address only.
    pub fn tip(self, addr: Ipv4Addr) -> ArpMatch {
        self.tip_masked(addr, Ipv4Addr::BROADCAST)
    }

    /// Target protocol addresses that equal `addr` in the bits of `mask`.
    pub fn tip_masked(self, addr: Ipv4Addr, mask: Ipv4Addr) -> ArpMatch {
        ArpMatch(self.0.with(KeyId::ArpTip, &addr.octets(), &mask.octets()))
    }

    /// This sender hardware address only.
    pub fn sha(self, mac: Mac) -> ArpMatch {
        ArpMatch(self.0.with_exact(KeyId::ArpSha, &mac.0))
    }

    /// This target hardware address only.
    pub fn tha(self, mac: Mac) -> ArpMatch {
        ArpMatch(self.0.with_exact(KeyId::ArpTha, &mac.0))
    }
}

impl From<ArpMatch> for Payload {
    fn from(from: ArpMatch) -> Payload {
        Payload { ethertype: EtherType::ARP, fields: from.0 }
    }
}

/// What a rule matches.
///
/// The protocol is the ethertype that the kernel compares before it asks flower (`tcm_info`, and
/// `TCA_FLOWER_KEY_ETH_TYPE` alike): that of the outer VLAN tag where there is one. A match
/// without a VLAN key and with protocol `all` takes tagged frames too; one for a payload's
/// ethertype takes untagged frames only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Match {
    protocol: u16,
    fields: Fields,
}

impl Match {
    /// Every frame, tagged or not (protocol `all`).
    pub const fn any() -> Match {
        Match { protocol: ETH_P_ALL, fields: Fields::none() }
    }

    /// Frames whose outer tag is of this kind and has this identifier.
    pub fn vlan(tpid: VlanTpid, vid: VlanId) -> Match {
        Match {
            protocol: tpid.ethertype(),
            fields: Fields::none().with_exact(KeyId::VlanId, &vid.get().to_be_bytes()),
        }
    }

    /// Frames whose outer tag is of this kind, whatever its identifier.
    pub const fn tagged(tpid: VlanTpid) -> Match {
        Match { protocol: tpid.ethertype(), fields: Fields::none() }
    }

    /// Untagged frames of this ethertype, or with this payload.
    pub fn ethertype(payload: impl Into<Payload>) -> Match {
        let Payload { ethertype, fields } = payload.into();
        Match { protocol: ethertype.get(), fields }
    }

    /// Frames with exactly one tag, of this kind and identifier, around this payload.
    pub fn vlan_with(tpid: VlanTpid, vid: VlanId, payload: impl Into<Payload>) -> Match {
        let Payload { ethertype, fields } = payload.into();
        let fields = fields
            .with_exact(KeyId::VlanId, &vid.get().to_be_bytes())
            .with_exact(KeyId::VlanEthType, &ethertype.get().to_be_bytes());
        Match { protocol: tpid.ethertype(), fields }
    }

    /// Frames with exactly one tag, of this kind and any identifier, around this payload.
    pub fn tagged_with(tpid: VlanTpid, payload: impl Into<Payload>) -> Match {
        let Payload { ethertype, fields } = payload.into();
        let fields = fields.with_exact(KeyId::VlanEthType, &ethertype.get().to_be_bytes());
        Match { protocol: tpid.ethertype(), fields }
    }

    /// Frames with at least two tags, the outer and the one after it of these kinds, the outer with
    /// this identifier if one is named.
    pub fn double_tagged(outer: VlanTpid, vid: Option<VlanId>, inner: VlanTpid) -> Match {
        let mut fields = Fields::none();
        if let Some(vid) = vid {
            fields = fields.with_exact(KeyId::VlanId, &vid.get().to_be_bytes());
        }
        let fields = fields.with_exact(KeyId::VlanEthType, &inner.ethertype().to_be_bytes());
        Match { protocol: outer.ethertype(), fields }
    }

    /// Of those, frames from this source address only.
    #[must_use]
    pub fn src(self, mac: Mac) -> Match {
        self.src_masked(mac, Mac::EXACT)
    }

    /// Of those, frames whose source address equals `mac` in the bits of `mask`.
    #[must_use]
    pub fn src_masked(self, mac: Mac, mask: Mac) -> Match {
        Match { fields: self.fields.with(KeyId::EthSrc, &mac.0, &mask.0), ..self }
    }

    /// Of those, frames to this destination address only.
    #[must_use]
    pub fn dst(self, mac: Mac) -> Match {
        self.dst_masked(mac, Mac::EXACT)
    }

    /// Of those, frames whose destination address equals `mac` in the bits of `mask`.
    #[must_use]
    pub fn dst_masked(self, mac: Mac, mask: Mac) -> Match {
        Match { fields: self.fields.with(KeyId::EthDst, &mac.0, &mask.0), ..self }
    }

    /// The ethertype that the kernel compares first, in host order; 0x0003 (`ETH_P_ALL`) for all.
    pub const fn protocol(&self) -> u16 {
        self.protocol
    }

    /// The outer tag that frames must have, where the match names its identifier.
    pub fn vlan_tag(&self) -> Option<(VlanTpid, VlanId)> {
        let tpid = VlanTpid::from_ethertype(self.protocol)?;
        let field = self.fields.get(KeyId::VlanId)?;
        let vid = u16::from_be_bytes([field.value[0], field.value[1]]);
        VlanId::new(vid).map(|vid| (tpid, vid))
    }

    /// The source address and its mask, where the match has one.
    pub fn src_mac(&self) -> Option<(Mac, Mac)> {
        self.mac(KeyId::EthSrc)
    }

    /// The destination address and its mask, where the match has one.
    pub fn dst_mac(&self) -> Option<(Mac, Mac)> {
        self.mac(KeyId::EthDst)
    }

    fn mac(&self, id: KeyId) -> Option<(Mac, Mac)> {
        let field = self.fields.get(id)?;
        let value = field.value.try_into().ok()?;
        let mask = field.mask.try_into().ok()?;
        Some((Mac(value), Mac(mask)))
    }

    pub(crate) const fn fields(&self) -> &Fields {
        &self.fields
    }

    pub(crate) const fn from_parts(protocol: u16, fields: Fields) -> Match {
        Match { protocol, fields }
    }
}

impl fmt::Display for Match {
    /// The keys as `tc` reads them after `flower`; the protocol stands elsewhere in its syntax. (For
    /// an IP address mask with gaps, which the kernel takes, `tc` has no syntax: it is printed all
    /// the same.)
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for field in self.fields.iter() {
            if !first {
                f.write_str(" ")?;
            }
            first = false;
            write!(f, "{} ", field.id.spec().name)?;
            let form = field.id.spec().form;
            fmt_bytes(form, field.value, f)?;
            if !field.is_exact() {
                f.write_str("/")?;
                match (form, prefix_length(field.mask)) {
                    (Form::Ipv4 | Form::Ipv6, Some(length)) => write!(f, "{length}")?,
                    _ => fmt_bytes(form, field.mask, f)?,
                }
            }
        }
        Ok(())
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
    let number = || bytes.iter().take(4).fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
    match form {
        Form::Mac => {
            fmt::Display::fmt(&Mac(<[u8; 6]>::try_from(bytes).map_err(|_| fmt::Error)?), f)
        }
        Form::HostU16 | Form::Number => fmt::Display::fmt(&number(), f),
        Form::Hex => write!(f, "{:#x}", number()),
        Form::EtherType => fmt_ethertype(number() as u16, f),
        Form::IpProto => match number() as u8 {
            IPPROTO_ICMP => f.write_str("icmp"),
            IPPROTO_TCP => f.write_str("tcp"),
            IPPROTO_UDP => f.write_str("udp"),
            IPPROTO_ICMPV6 => f.write_str("icmpv6"),
            IPPROTO_SCTP => f.write_str("sctp"),
            other => write!(f, "{other:#04x}"),
        },
        Form::Ipv4 => {
            let octets = <[u8; 4]>::try_from(bytes).map_err(|_| fmt::Error)?;
            fmt::Display::fmt(&Ipv4Addr::from(octets), f)
        }
        Form::Ipv6 => {
            let octets = <[u8; 16]>::try_from(bytes).map_err(|_| fmt::Error)?;
            fmt::Display::fmt(&Ipv6Addr::from(octets), f)
        }
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
