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

mod payload;
mod text;
mod tunnel;
mod value;

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub use payload::{
    ArpMatch, CfmMatch, Ipv4Match, Ipv6Match, MplsEntry, MplsMatch, Payload, Ports, PppoeMatch, Tcp,
};
pub(crate) use payload::{ETH_P_MPLS_MC, ETH_P_MPLS_UC, ETH_P_PPP_SES, IPPROTO_TCP, IPPROTO_UDP};
pub(crate) use text::geneve_options;
pub(crate) use tunnel::{ERSPAN, GENEVE, GTP, OPTIONS_MAX, PFCP, VXLAN};
pub use tunnel::{GeneveOption, Tunnel, TunnelFlags, TunnelOptions};
pub use value::{
    CfmLevel, CtFlags, CtState, IpPrefix, Ipv4Prefix, Ipv6Prefix, LinkName, MplsDepth, MplsLabel,
    MplsTc, PortRange, Spi, TagMatch, VlanPrio,
};

use crate::ident::{ETH_P_ALL, Mac, VlanId, VlanTpid};

/// Everything that is known about one key.
#[derive(Debug)]
pub(crate) struct Spec {
    /// As `tc` calls it.
    pub(crate) name: &'static str,
    /// `TCA_FLOWER_KEY_*` of the value; of several attributes the one that holds or begins them.
    pub(crate) value: u16,
    /// `TCA_FLOWER_KEY_*_MASK`, 0 where flower takes the key exact only.
    pub(crate) mask: u16,
    /// Bytes of the value, 0 where they vary from rule to rule.
    pub(crate) len: usize,
    pub(crate) form: Form,
}

/// How a key's bytes are written, on the wire and for `tc`. Here they stand in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Mac,
    /// On the wire in host order.
    HostU16,
    /// On the wire in host order.
    HostU32,
    EtherType,
    PppProto,
    Number,
    Hex,
    /// A number whose mask `tc` reads as hexadecimal.
    Ttl,
    IpProto,
    Ipv4,
    Ipv6,
    /// An interface name, filled up with zeros; on the wire a string.
    Name,
    IpFlags,
    TunnelFlags,
    /// On the wire in host order.
    CtState,
    HexString,
    /// Lowest and highest number, 16 bits each; an attribute each.
    Range,
    /// Depth in the label stack (from 1), then a label stack entry as in the packet.
    MplsEntry,
    /// Level and opcode, an attribute each in a nest.
    Cfm,
    /// The kind of option, then as [`TunnelOptions`] has it.
    TunnelOptions,
}

macro_rules! keys {
    ($($id:ident $name:literal $value:literal $mask:literal $len:literal $form:ident;)*) => {
        /// A flower key, in the order in which `tc` wants to read them: what a key depends on
        /// stands before it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub(crate) enum KeyId {
            $($id,)*
        }

        static SPECS: [Spec; KeyId::ALL.len()] = [
            $(Spec { name: $name, value: $value, mask: $mask, len: $len, form: Form::$form },)*
        ];

        impl KeyId {
            pub(crate) const ALL: [KeyId; [$($value,)*].len()] = [$(KeyId::$id,)*];
        }
    };
}

// Name for tc, attribute of the value, attribute of the mask, length, form.
keys! {
    Indev "indev" 2 0 16 Name;
    L2Miss "l2_miss" 106 0 1 Number;
    EthDst "dst_mac" 4 5 6 Mac;
    EthSrc "src_mac" 6 7 6 Mac;
    NumOfVlans "num_of_vlans" 102 0 1 Number;
    VlanId "vlan_id" 23 0 2 HostU16;
    VlanPrio "vlan_prio" 24 0 1 Number;
    VlanEthType "vlan_ethtype" 25 0 2 EtherType;
    CvlanId "cvlan_id" 77 0 2 HostU16;
    CvlanPrio "cvlan_prio" 78 0 1 Number;
    CvlanEthType "cvlan_ethtype" 79 0 2 EtherType;
    PppoeSid "pppoe_sid" 103 0 2 Number;
    PppProto "ppp_proto" 104 0 2 PppProto;
    MplsLse1 "mpls" 99 0 5 MplsEntry;
    MplsLse2 "mpls" 99 0 5 MplsEntry;
    MplsLse3 "mpls" 99 0 5 MplsEntry;
    MplsLse4 "mpls" 99 0 5 MplsEntry;
    MplsLse5 "mpls" 99 0 5 MplsEntry;
    MplsLse6 "mpls" 99 0 5 MplsEntry;
    MplsLse7 "mpls" 99 0 5 MplsEntry;
    IpProto "ip_proto" 9 0 1 IpProto;
    IpTos "ip_tos" 73 74 1 Hex;
    IpTtl "ip_ttl" 75 76 1 Ttl;
    IpFlags "ip_flags" 47 48 4 IpFlags;
    Ipv4Src "src_ip" 10 11 4 Ipv4;
    Ipv4Dst "dst_ip" 12 13 4 Ipv4;
    Ipv6Src "src_ip" 14 15 16 Ipv6;
    Ipv6Dst "dst_ip" 16 17 16 Ipv6;
    TcpSrc "src_port" 18 35 2 Number;
    TcpDst "dst_port" 19 36 2 Number;
    TcpFlags "tcp_flags" 71 72 2 Hex;
    UdpSrc "src_port" 20 37 2 Number;
    UdpDst "dst_port" 21 38 2 Number;
    SctpSrc "src_port" 41 39 2 Number;
    SctpDst "dst_port" 42 40 2 Number;
    PortSrcRange "src_port" 87 0 4 Range;
    PortDstRange "dst_port" 89 0 4 Range;
    Icmpv4Type "type" 51 52 1 Number;
    Icmpv4Code "code" 49 50 1 Number;
    Icmpv6Type "type" 55 56 1 Number;
    Icmpv6Code "code" 53 54 1 Number;
    L2tpv3Sid "l2tpv3_sid" 105 0 4 Number;
    Spi "spi" 108 109 4 Hex;
    ArpOp "arp_op" 61 62 1 Number;
    ArpSip "arp_sip" 57 58 4 Ipv4;
    ArpTip "arp_tip" 59 60 4 Ipv4;
    ArpSha "arp_sha" 63 64 6 Mac;
    ArpTha "arp_tha" 65 66 6 Mac;
    Cfm "cfm" 107 0 2 Cfm;
    EncKey "enc_key_id" 26 0 4 Number;
    EncIpv4Src "enc_src_ip" 27 28 4 Ipv4;
    EncIpv4Dst "enc_dst_ip" 29 30 4 Ipv4;
    EncIpv6Src "enc_src_ip" 31 32 16 Ipv6;
    EncIpv6Dst "enc_dst_ip" 33 34 16 Ipv6;
    EncUdpSrc "enc_src_port" 43 44 2 Number;
    EncUdpDst "enc_dst_port" 45 46 2 Number;
    EncTos "enc_tos" 80 81 1 Hex;
    EncTtl "enc_ttl" 82 83 1 Ttl;
    EncFlags "enc_flags" 110 111 4 TunnelFlags;
    EncOpts "geneve_opts" 84 85 0 TunnelOptions;
    CtState "ct_state" 91 92 2 CtState;
    CtZone "ct_zone" 93 94 2 HostU16;
    CtMark "ct_mark" 95 96 4 HostU32;
    CtLabels "ct_label" 97 98 16 HexString;
    Hash "hash" 100 101 4 HostU32;
}

impl KeyId {
    pub(crate) const fn spec(self) -> &'static Spec {
        &SPECS[self as usize]
    }

    fn from_u8(id: u8) -> Option<KeyId> {
        KeyId::ALL.get(usize::from(id)).copied()
    }

    /// The key of the label stack entry at this depth, from 1 to 7.
    pub(crate) fn mpls_entry(depth: u8) -> Option<KeyId> {
        let at = usize::from(depth.checked_sub(1)?);
        KeyId::ALL[KeyId::MplsLse1 as usize..=KeyId::MplsLse7 as usize].get(at).copied()
    }

    /// Whether the kernel compares it by order, not bit by bit.
    pub(crate) const fn is_range(self) -> bool {
        matches!(self, KeyId::PortSrcRange | KeyId::PortDstRange)
    }
}

/// Longest key of a fixed length: an IPv6 address.
pub(crate) const KEY_MAX: usize = 16;

/// The mask under which every bit of a key counts that flower looks at.
pub(crate) fn exact_mask(id: KeyId) -> [u8; KEY_MAX] {
    let mut mask = [0xff; KEY_MAX];
    match id {
        KeyId::VlanId | KeyId::CvlanId | KeyId::TcpFlags => mask[0] = 0x0f,
        KeyId::L2Miss => mask[0] = 1,
        KeyId::VlanPrio | KeyId::CvlanPrio | KeyId::Cfm => mask[0] = 7,
        KeyId::IpFlags => mask[..4].copy_from_slice(&0x03u32.to_be_bytes()),
        KeyId::EncFlags => mask[..4].copy_from_slice(&0x3cu32.to_be_bytes()),
        KeyId::CtState => mask[..2].copy_from_slice(&0x3fu16.to_be_bytes()),
        _ => {}
    }
    mask
}

/// Bytes that a [`Fields`] holds without a heap allocation: both Ethernet addresses with their
/// masks and a VLAN identifier fit.
const INLINE: usize = 38;

/// Masked keys in ascending [`KeyId`] order, packed as (id, value, mask), values always within
/// their masks and no mask zero: so equal matches are equal bytes. Where a key's length varies, it
/// stands behind the id.
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

    /// The lowest and the highest port of a range.
    pub(crate) fn range(&self) -> Option<(u16, u16)> {
        match (self.id.is_range(), self.value) {
            (true, &[a, b, c, d]) => Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))),
            _ => None,
        }
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
        debug_assert!(value.len() == mask.len() && (value.len() == len || len == 0));
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

    /// Whether this is its shape.
    pub(crate) fn is_of_shape(&self, shape: &Fields) -> bool {
        let of_shape = shape.iter().map(|field| (field.id, field.mask));
        self.iter().map(|field| (field.id, field.mask)).eq(of_shape)
    }

    /// The bits that both shapes compare one by one, as a shape. Ranges are none of them, nor are
    /// the options of tunnels of two kinds: which bits of the one stand where bits of the other do
    /// is the kernel's own affair.
    pub(crate) fn common(&self, other: &Fields) -> Fields {
        let mut out = FieldsBuilder::new();
        for field in self.iter().filter(|field| !field.id.is_range()) {
            let Some(theirs) = other.get(field.id) else { continue };
            if field.id == KeyId::EncOpts && field.value.first() != theirs.value.first() {
                continue;
            }
            let mut both = [0; u8::MAX as usize];
            let mut len = 0;
            for (byte, (a, b)) in both.iter_mut().zip(field.mask.iter().zip(theirs.mask)) {
                *byte = a & b;
                len += 1;
            }
            out.push(field.id, &both[..len], &both[..len]);
        }
        out.finish()
    }

    /// Whether any key is compared by order.
    pub(crate) fn has_ranges(&self) -> bool {
        self.iter().any(|field| field.id.is_range())
    }

    /// Whether one frame could have all of these keys and all of the others.
    pub(crate) fn can_meet(&self, other: &Fields) -> bool {
        let common = self.shape().common(&other.shape());
        self.projected(&common) == other.projected(&common)
            && ports_meet(self, other, |id| match id {
                KeyId::TcpSrc | KeyId::UdpSrc | KeyId::SctpSrc => true,
                _ => id == KeyId::PortSrcRange,
            })
            && ports_meet(self, other, |id| match id {
                KeyId::TcpDst | KeyId::UdpDst | KeyId::SctpDst => true,
                _ => id == KeyId::PortDstRange,
            })
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

/// Whether a port could satisfy the ports and ranges of one side in both lists.
fn ports_meet(one: &Fields, other: &Fields, side: impl Fn(KeyId) -> bool) -> bool {
    one.iter().filter(|field| side(field.id)).all(|field| {
        other.iter().filter(|field| side(field.id)).all(|theirs| {
            match (field.range(), theirs.range()) {
                (Some((min, max)), Some((from, to))) => min <= to && from <= max,
                (Some(range), None) => range_shows(range, &theirs),
                (None, Some(range)) => range_shows(range, &field),
                // Bit by bit: in the common shape already.
                (None, None) => true,
            }
        })
    })
}

/// Whether a port of the range equals the field's value under its mask.
fn range_shows((min, max): (u16, u16), field: &Field<'_>) -> bool {
    let (&[a, b], &[c, d]) = (field.value, field.mask) else { return true };
    let (value, mask) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    (min..=max).any(|port| port & mask == value)
}

/// Bytes that a [`FieldsBuilder`] holds without a heap allocation: more than most rules have keys.
const ROOM: usize = 256;

/// Builds a field list from keys in ascending order.
pub(crate) struct FieldsBuilder {
    len: usize,
    bytes: [u8; ROOM],
    /// All of it, once it is too long for `bytes`.
    long: Vec<u8>,
}

impl FieldsBuilder {
    pub(crate) const fn new() -> FieldsBuilder {
        FieldsBuilder { len: 0, bytes: [0; ROOM], long: Vec::new() }
    }

    /// Adds a key; one without a bit that counts is no key.
    pub(crate) fn push(&mut self, id: KeyId, value: &[u8], mask: &[u8]) {
        if mask.iter().all(|byte| *byte == 0) {
            return;
        }
        let len = mask.len();
        let head = [id as u8, len as u8];
        let head = if id.spec().len == 0 { &head[..] } else { &head[..1] };
        let start = self.len + head.len();
        let end = start + 2 * len;
        if end > ROOM && self.long.is_empty() {
            self.long.extend_from_slice(&self.bytes[..self.len]);
        }
        let bytes = if end > ROOM || !self.long.is_empty() {
            self.long.resize(end, 0);
            &mut self.long[..]
        } else {
            &mut self.bytes[..]
        };
        bytes[self.len..start].copy_from_slice(head);
        for (at, (v, m)) in value.iter().zip(mask).enumerate() {
            bytes[start + at] = v & m;
            bytes[start + len + at] = *m;
        }
        self.len = end;
    }

    pub(crate) fn finish(&self) -> Fields {
        let bytes = if self.long.is_empty() { &self.bytes[..self.len] } else { &self.long };
        Fields::from_bytes(bytes)
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
        let (len, rest) = match id.spec().len {
            0 => rest.split_first().map(|(len, rest)| (usize::from(*len), rest))?,
            len => (len, rest),
        };
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

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// `fields` with identifier and priority of this tag, where it names them.
fn with_tag(fields: &Fields, tag: TagMatch, id: KeyId, prio: KeyId) -> Fields {
    let fields = match tag.vid {
        Some(vid) => fields.with_exact(id, &vid.get().to_be_bytes()),
        None => fields.clone(),
    };
    match tag.prio {
        Some(value) => fields.with_exact(prio, &[value.get()]),
        None => fields,
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

    /// Frames whose outer tag is this one.
    pub fn in_tag(outer: TagMatch) -> Match {
        let fields = with_tag(&Fields::none(), outer, KeyId::VlanId, KeyId::VlanPrio);
        Match { protocol: outer.tpid.ethertype(), fields }
    }

    /// Frames with exactly one tag, this one, around this payload.
    pub fn in_tag_with(only: TagMatch, payload: impl Into<Payload>) -> Match {
        let Payload { ethertype, fields } = payload.into();
        let fields = with_tag(&fields, only, KeyId::VlanId, KeyId::VlanPrio)
            .with_exact(KeyId::VlanEthType, &ethertype.to_be_bytes());
        Match { protocol: only.tpid.ethertype(), fields }
    }

    /// Frames with at least two tags, of which these are the outer ones.
    pub fn in_tags(outer: TagMatch, inner: TagMatch) -> Match {
        Match::in_tag(outer).around(inner)
    }

    /// Frames with exactly two tags, these, around this payload.
    pub fn in_tags_with(outer: TagMatch, inner: TagMatch, payload: impl Into<Payload>) -> Match {
        let Payload { ethertype, fields } = payload.into();
        let fields = with_tag(&fields, outer, KeyId::VlanId, KeyId::VlanPrio)
            .with_exact(KeyId::CvlanEthType, &ethertype.to_be_bytes());
        Match { protocol: outer.tpid.ethertype(), fields }.around(inner)
    }

    fn around(self, inner: TagMatch) -> Match {
        let fields = with_tag(&self.fields, inner, KeyId::CvlanId, KeyId::CvlanPrio)
            .with_exact(KeyId::VlanEthType, &inner.tpid.ethertype().to_be_bytes());
        Match { fields, ..self }
    }

    /// Frames whose outer tag is of this kind and has this identifier.
    pub fn vlan(tpid: VlanTpid, vid: VlanId) -> Match {
        Match::in_tag(TagMatch::any(tpid).vid(vid))
    }

    /// Frames whose outer tag is of this kind, whatever its identifier.
    pub const fn tagged(tpid: VlanTpid) -> Match {
        Match { protocol: tpid.ethertype(), fields: Fields::none() }
    }

    /// Untagged frames of this ethertype, or with this payload.
    pub fn ethertype(payload: impl Into<Payload>) -> Match {
        let Payload { ethertype, fields } = payload.into();
        Match { protocol: ethertype, fields }
    }

    /// Frames with exactly one tag, of this kind and identifier, around this payload.
    pub fn vlan_with(tpid: VlanTpid, vid: VlanId, payload: impl Into<Payload>) -> Match {
        Match::in_tag_with(TagMatch::any(tpid).vid(vid), payload)
    }

    /// Frames with exactly one tag, of this kind and any identifier, around this payload.
    pub fn tagged_with(tpid: VlanTpid, payload: impl Into<Payload>) -> Match {
        Match::in_tag_with(TagMatch::any(tpid), payload)
    }

    /// Frames with at least two tags, the outer and the one after it of these kinds, the outer with
    /// this identifier if one is named.
    pub fn double_tagged(outer: VlanTpid, vid: Option<VlanId>, inner: VlanTpid) -> Match {
        let outer = vid.map_or(TagMatch::any(outer), |vid| TagMatch::any(outer).vid(vid));
        Match::in_tags(outer, TagMatch::any(inner))
    }

    /// Of those, frames with this number of VLAN tags. `None` where the match says otherwise
    /// already: what names an ethertype names its tags too, and under another number the kernel
    /// would take that ethertype for a tag's (`is_vlan_key`).
    #[must_use]
    pub fn num_of_vlans(self, number: u8) -> Option<Match> {
        let named = |id| self.fields.get(id).is_some();
        let tag_follows = self.fields.get(KeyId::VlanEthType).is_some_and(|field| {
            VlanTpid::from_ethertype(u16::from_be_bytes([field.value[0], field.value[1]])).is_some()
        });
        let agrees = match VlanTpid::from_ethertype(self.protocol) {
            None => self.protocol == ETH_P_ALL || number == 0,
            Some(_) if named(KeyId::CvlanEthType) => number == 2,
            Some(_) if tag_follows => number >= 2,
            Some(_) if named(KeyId::VlanEthType) => number == 1,
            Some(_) => number >= 1,
        };
        let fields = self.fields.with_exact(KeyId::NumOfVlans, &[number]);
        agrees.then_some(Match { fields, ..self })
    }

    /// Of those, frames that came in through the interface of this name now. The kernel keeps its
    /// index: a rename leaves the rule where it was, and the rule then shows the new name.
    #[must_use]
    pub fn indev(self, link: LinkName) -> Match {
        Match { fields: self.fields.with_exact(KeyId::Indev, link.bytes()), ..self }
    }

    /// Of those, frames for which a bridge found no forwarding entry, or those for which it did.
    #[must_use]
    pub fn l2_miss(self, missed: bool) -> Match {
        Match { fields: self.fields.with_exact(KeyId::L2Miss, &[missed.into()]), ..self }
    }

    /// Of those, frames that came out of such a tunnel. Replaces what an earlier call said of it.
    #[must_use]
    pub fn tunnel(self, tunnel: &Tunnel) -> Match {
        let mut fields = self.fields.without(Tunnel::is_key);
        for field in tunnel.fields().iter() {
            fields = fields.with(field.id, field.value, field.mask);
        }
        Match { fields, ..self }
    }

    /// Of those, packets of which connection tracking says this.
    #[must_use]
    pub fn ct_state(self, state: CtState) -> Match {
        let (value, mask) = (state.value().to_be_bytes(), state.mask().to_be_bytes());
        Match { fields: self.fields.with(KeyId::CtState, &value, &mask), ..self }
    }

    /// Of those, packets of a connection tracking zone that equals `zone` in the bits of `mask`.
    #[must_use]
    pub fn ct_zone(self, zone: u16, mask: u16) -> Match {
        let fields = self.fields.with(KeyId::CtZone, &zone.to_be_bytes(), &mask.to_be_bytes());
        Match { fields, ..self }
    }

    /// Of those, packets of a connection whose mark equals `mark` in the bits of `mask`.
    #[must_use]
    pub fn ct_mark(self, mark: u32, mask: u32) -> Match {
        let fields = self.fields.with(KeyId::CtMark, &mark.to_be_bytes(), &mask.to_be_bytes());
        Match { fields, ..self }
    }

    /// Of those, packets of a connection whose label equals `label` in the bits of `mask`, both in
    /// the order in which `tc` writes their bytes.
    #[must_use]
    pub fn ct_label(self, label: [u8; 16], mask: [u8; 16]) -> Match {
        Match { fields: self.fields.with(KeyId::CtLabels, &label, &mask), ..self }
    }

    /// Of those, packets whose hash (`skb->hash`) equals `hash` in the bits of `mask`. (`tc` has no
    /// word for it.)
    #[must_use]
    pub fn hash(self, hash: u32, mask: u32) -> Match {
        let fields = self.fields.with(KeyId::Hash, &hash.to_be_bytes(), &mask.to_be_bytes());
        Match { fields, ..self }
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

    /// Whether some frame could have all that this and all that the other names. Exact, but for
    /// options of tunnels of two kinds, and keys of which no real frame has both: those count as
    /// an overlap.
    pub fn overlaps(&self, other: &Match) -> bool {
        let all = [self.protocol, other.protocol].contains(&ETH_P_ALL);
        (all || self.protocol == other.protocol) && self.fields.can_meet(&other.fields)
    }

    /// Whether every frame that the other takes is one that this takes. Where ranges or options of
    /// tunnels are compared the answer is no.
    pub fn covers(&self, other: &Match) -> bool {
        let bits = !self.fields.has_ranges() && self.fields.get(KeyId::EncOpts).is_none();
        let shape = self.fields.shape();
        (self.protocol == ETH_P_ALL || self.protocol == other.protocol)
            && bits
            && shape.common(&other.fields.shape()) == shape
            && other.fields.projected(&shape) == self.fields
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{chain, hook, matches, prio};
    use crate::ident::EtherType;
    use crate::rule::{Owner, Rule};

    const Q: VlanTpid = VlanTpid::Dot1Q;

    proptest! {
        #[test]
        fn a_frame_that_two_matches_take_is_where_they_overlap_and_in_all_that_covers_one(
            one in matches(), other in matches(), frame in crate::arbitrary::frames(),
        ) {
            use crate::walk::{Sight, sight};
            let takes = |matching: &Match| sight(matching, &frame) == Sight::Takes;
            prop_assert!(!takes(&one) || !takes(&other) || one.overlaps(&other));
            prop_assert!(!one.covers(&other) || !takes(&other) || takes(&one));
            prop_assert_eq!(one.overlaps(&other), other.overlaps(&one));
            prop_assert!(Match::any().covers(&one) && Match::any().overlaps(&one));
        }
    }

    #[test]
    fn the_number_of_tags_agrees_with_the_tags_that_are_named() {
        let fits = |matching: Match| -> Vec<u8> {
            (0..4).filter(|number| matching.clone().num_of_vlans(*number).is_some()).collect()
        };
        let tag = TagMatch::any(Q);
        assert_eq!(fits(Match::any()), [0, 1, 2, 3]);
        assert_eq!(fits(Match::ethertype(EtherType::ARP)), [0]);
        assert_eq!(fits(Match::in_tag(tag)), [1, 2, 3]);
        assert_eq!(fits(Match::in_tag_with(tag, EtherType::ARP)), [1]);
        assert_eq!(fits(Match::in_tags(tag, tag)), [2, 3]);
        assert_eq!(fits(Match::in_tags_with(tag, tag, EtherType::ARP)), [2]);
    }

    #[test]
    fn what_is_said_last_of_the_protocol_holds_alone() {
        let ports = Ports::any().dst_range(PortRange::new(1, 2).unwrap()).src(3);
        let tcp = Tcp::from(ports).flags(2, 2);
        let all = Ipv4Match::any()
            .tcp(tcp)
            .sctp(ports)
            .icmp(1, 2)
            .esp(Spi::new(3).unwrap())
            .l2tpv3(4)
            .proto(47);
        assert_eq!(Payload::from(all), Ipv4Match::any().proto(47).into());
        let carried = PppoeMatch::any().session(1).ipv4(Ipv4Match::any().udp(ports)).proto(0xc021);
        assert_eq!(Payload::from(carried), PppoeMatch::any().proto(0xc021).session(1).into());
    }

    #[test]
    fn a_tunnel_has_addresses_of_one_family() {
        let v6 = Tunnel::any().dst(Ipv6Addr::LOCALHOST);
        let both = Tunnel::any().src(Ipv4Addr::LOCALHOST).dst(Ipv6Addr::LOCALHOST);
        assert_eq!(Match::any().tunnel(&both), Match::any().tunnel(&v6));
        let replaced = Match::any().tunnel(&both.key_id(1)).tunnel(&v6);
        assert_eq!(replaced, Match::any().tunnel(&v6));
    }

    #[test]
    fn geneve_options_have_data_and_fit_the_room_that_flower_has() {
        assert_eq!(GeneveOption::new(1, 2, &[]), None);
        assert_eq!(GeneveOption::new(1, 2, &[0; 5]), None);
        assert_eq!(GeneveOption::new(1, 2, &[0; 128]), None);
        assert_eq!(GeneveOption::masked((1, 1), (2, 2), &[0; 8], &[0; 4]), None);
        let longest = GeneveOption::new(1, 2, &[0; 120]).unwrap();
        assert!(TunnelOptions::geneve(&[longest.clone(), longest.clone()]).is_some());
        assert_eq!(TunnelOptions::geneve(&[longest.clone(), longest.clone(), longest]), None);
        assert_eq!(TunnelOptions::geneve(&[]), None);
    }

    #[test]
    fn as_many_keys_as_one_likes_stand_in_one_match() {
        let option = GeneveOption::new(1, 2, &[7; 120]).unwrap();
        let options = TunnelOptions::geneve(&[option.clone(), option]).unwrap();
        let address = Ipv6Addr::LOCALHOST;
        let tunnel = Tunnel::any().src(address).dst(address).options(&options).key_id(9);
        let payload = Ipv6Match::any().src(address).dst(address).udp(Ports::any().dst(5));
        let one = Match::vlan_with(Q, VlanId::new(3).unwrap(), payload)
            .tunnel(&tunnel)
            .ct_label([1; 16], [3; 16])
            .src(Mac([2; 6]));
        assert!(one.fields().bytes().len() > 2 * ROOM);
        assert_eq!(one.fields().iter().count(), 12);
        assert_eq!(one.src_mac(), Some((Mac([2; 6]), Mac::EXACT)));
        assert_eq!(one.clone().src(Mac([4; 6])).src(Mac([2; 6])), one);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_match_takes_apart_into_its_keys_and_together_again(matching in matches()) {
            let mut fields = Fields::none();
            let mut keys: Vec<Field<'_>> = matching.fields().iter().collect();
            prop_assert!(keys.is_sorted_by(|a, b| a.id < b.id));
            keys.reverse();
            for field in keys {
                prop_assert!(field.mask.iter().any(|byte| *byte != 0));
                prop_assert!(field.value.iter().zip(field.mask).all(|(v, m)| v & !m == 0));
                fields = fields.with(field.id, field.value, field.mask);
            }
            prop_assert_eq!(&fields, matching.fields());
        }

        #[test]
        fn the_digest_covers_every_key(one in matches(), other in matches()) {
            let cookie = |matching: &Match| {
                Rule::new(hook(), chain(0), prio(1), matching.clone(), [Action::Drop])
                    .unwrap()
                    .cookie(Owner(*b"test"))
            };
            prop_assert_eq!(one == other, cookie(&one) == cookie(&other));
            for field in one.fields().iter() {
                let without = Match {
                    fields: one.fields().without(|id| id == field.id),
                    ..one.clone()
                };
                prop_assert_ne!(cookie(&without), cookie(&one), "{:?}", field.id);
            }
        }

        #[test]
        fn two_matches_that_a_frame_could_meet_together_are_symmetric(
            one in matches(), other in matches(),
        ) {
            let (a, b) = (one.fields(), other.fields());
            prop_assert!(a.can_meet(a));
            prop_assert_eq!(a.can_meet(b), b.can_meet(a));
        }
    }
}
