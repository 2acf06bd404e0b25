//! What flower sees of a frame, and whether a match takes it.
//!
//! In come a match and a frame, out goes yes or no: `fl_classify` and `fl_set_key` in
//! net/sched/cls_flower.c compare what `__skb_flow_dissect` in net/core/flow_dissector.c finds,
//! and what it does not find is zero. A frame here carries no tunnel metadata and no connection
//! state and no bridge has looked at it, so the keys that ask for them see zero.

use crate::frame::{Body, Frame, Layer4};
use crate::ident::{ETH_P_ALL, Hook};
use crate::key::{Field, KEY_MAX, KeyId, Match};

/// Whether flower would take the frame for a rule with this match at this hook.
pub(crate) fn takes(matching: &Match, _hook: Hook, frame: &Frame) -> bool {
    let protocol = matching.protocol();
    (protocol == ETH_P_ALL || protocol == frame.ethertype_at(0))
        && matching.fields().iter().all(|field| field_matches(&field, frame))
}

/// Keys of what a [`Frame`] cannot show yet: no frame matches them.
const fn beyond_frames(id: KeyId) -> bool {
    matches!(
        id,
        KeyId::Indev
            | KeyId::L2Miss
            | KeyId::NumOfVlans
            | KeyId::VlanPrio
            | KeyId::CvlanId
            | KeyId::CvlanPrio
            | KeyId::CvlanEthType
            | KeyId::PppoeSid
            | KeyId::PppProto
            | KeyId::MplsLse1
            | KeyId::MplsLse2
            | KeyId::MplsLse3
            | KeyId::MplsLse4
            | KeyId::MplsLse5
            | KeyId::MplsLse6
            | KeyId::MplsLse7
            | KeyId::IpFlags
            | KeyId::PortSrcRange
            | KeyId::PortDstRange
            | KeyId::L2tpv3Sid
            | KeyId::Spi
            | KeyId::Cfm
            | KeyId::EncKey
            | KeyId::EncIpv4Src
            | KeyId::EncIpv4Dst
            | KeyId::EncIpv6Src
            | KeyId::EncIpv6Dst
            | KeyId::EncUdpSrc
            | KeyId::EncUdpDst
            | KeyId::EncTos
            | KeyId::EncTtl
            | KeyId::EncFlags
            | KeyId::EncOpts
            | KeyId::CtState
            | KeyId::CtZone
            | KeyId::CtMark
            | KeyId::CtLabels
            | KeyId::Hash
    )
}

fn field_matches(field: &Field<'_>, frame: &Frame) -> bool {
    if beyond_frames(field.id) {
        return false;
    }
    let mut seen = [0; KEY_MAX];
    if !look(field.id, frame, &mut seen) {
        // The dissector leaves at zero what the frame does not have, and flower compares all the
        // same.
        seen = [0; KEY_MAX];
    }
    field.value.iter().zip(field.mask).zip(seen).all(|((value, mask), seen)| seen & mask == *value)
}

/// What the dissector sees at `id`, in network order at the start of `out`; false where the frame
/// has no such thing.
fn look(id: KeyId, frame: &Frame, out: &mut [u8; KEY_MAX]) -> bool {
    fn put(out: &mut [u8; KEY_MAX], bytes: &[u8]) -> bool {
        out[..bytes.len()].copy_from_slice(bytes);
        true
    }
    let layer4 = match frame.body {
        Body::Ipv4 { layer4, .. } | Body::Ipv6 { layer4, .. } => Some(layer4),
        Body::Opaque | Body::Arp { .. } => None,
    };
    match (id, frame.body) {
        (KeyId::EthDst, _) => put(out, &frame.dst.0),
        (KeyId::EthSrc, _) => put(out, &frame.src.0),
        (KeyId::VlanId, _) => match frame.tags.first() {
            Some(tag) => put(out, &tag.vid.get().to_be_bytes()),
            None => false,
        },
        (KeyId::VlanEthType, _) if frame.tags.is_empty() => false,
        (KeyId::VlanEthType, _) => put(out, &frame.ethertype_at(1).to_be_bytes()),
        (KeyId::Ipv4Src, Body::Ipv4 { src, .. }) => put(out, &src.octets()),
        (KeyId::Ipv4Dst, Body::Ipv4 { dst, .. }) => put(out, &dst.octets()),
        (KeyId::Ipv6Src, Body::Ipv6 { src, .. }) => put(out, &src.octets()),
        (KeyId::Ipv6Dst, Body::Ipv6 { dst, .. }) => put(out, &dst.octets()),
        (KeyId::IpTos, Body::Ipv4 { tos, .. } | Body::Ipv6 { tos, .. }) => put(out, &[tos]),
        (KeyId::IpTtl, Body::Ipv4 { ttl, .. } | Body::Ipv6 { ttl, .. }) => put(out, &[ttl]),
        (KeyId::ArpOp, Body::Arp { op, .. }) => put(out, &[op]),
        (KeyId::ArpSip, Body::Arp { sip, .. }) => put(out, &sip.octets()),
        (KeyId::ArpTip, Body::Arp { tip, .. }) => put(out, &tip.octets()),
        (KeyId::ArpSha, Body::Arp { sha, .. }) => put(out, &sha.0),
        (KeyId::ArpTha, Body::Arp { tha, .. }) => put(out, &tha.0),
        (_, Body::Ipv4 { .. } | Body::Ipv6 { .. }) => {
            let v4 = matches!(frame.body, Body::Ipv4 { .. });
            layer4.is_some_and(|layer4| look_layer4(id, v4, layer4, out))
        }
        _ => false,
    }
}

fn look_layer4(id: KeyId, v4: bool, layer4: Layer4, out: &mut [u8; KEY_MAX]) -> bool {
    let mut put = |bytes: &[u8]| {
        out[..bytes.len()].copy_from_slice(bytes);
        true
    };
    match (id, layer4) {
        (KeyId::IpProto, _) => put(&[match layer4 {
            Layer4::Tcp { .. } => 6,
            Layer4::Udp { .. } => 17,
            Layer4::Sctp { .. } => 132,
            Layer4::Icmp { .. } if v4 => 1,
            Layer4::Icmp { .. } => 58,
            Layer4::Other(proto) => proto,
        }]),
        (KeyId::TcpSrc, Layer4::Tcp { src, .. })
        | (KeyId::UdpSrc, Layer4::Udp { src, .. })
        | (KeyId::SctpSrc, Layer4::Sctp { src, .. }) => put(&src.to_be_bytes()),
        (KeyId::TcpDst, Layer4::Tcp { dst, .. })
        | (KeyId::UdpDst, Layer4::Udp { dst, .. })
        | (KeyId::SctpDst, Layer4::Sctp { dst, .. }) => put(&dst.to_be_bytes()),
        (KeyId::TcpFlags, Layer4::Tcp { flags, .. }) => put(&flags.to_be_bytes()),
        (KeyId::Icmpv4Type, Layer4::Icmp { kind, .. }) if v4 => put(&[kind]),
        (KeyId::Icmpv4Code, Layer4::Icmp { code, .. }) if v4 => put(&[code]),
        (KeyId::Icmpv6Type, Layer4::Icmp { kind, .. }) if !v4 => put(&[kind]),
        (KeyId::Icmpv6Code, Layer4::Icmp { code, .. }) if !v4 => put(&[code]),
        _ => false,
    }
}
