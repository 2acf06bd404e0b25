//! What flower sees of a frame, and whether a match takes it.
//!
//! In come a match and a frame, out goes yes, no, or that it cannot be told. `fl_classify` and
//! `fl_set_key` in net/sched/cls_flower.c compare what `__skb_flow_dissect` in
//! net/core/flow_dissector.c finds; what it does not find is zero, and compared all the same.
//!
//! | key | seen in a frame |
//! |---|---|
//! | `indev` | where [`Frame::indev`] names it (`skb_flow_dissect_meta`), else it cannot be told |
//! | `l2_miss` | never: at ingress no bridge has looked yet |
//! | Ethernet, tags, IP, ports, ICMP, ARP, MPLS, PPPoE, CFM, SPI, L2TPv3 | as the frame has it |
//! | `enc_*` | as [`Frame::tunnel`] has it (`skb_flow_dissect_tunnel_info`); where that has options, they cannot be told |
//! | `ct_*` | never: no frame here has passed connection tracking (a walk ends where one would) |
//! | `hash` | cannot be told: `skb->hash` is whatever a driver or `skb_get_hash` left there |

use crate::action::{TunnelData, TunnelEnds};
use crate::frame::{Body, Fragment, Frame, Layer4};
use crate::ident::ETH_P_ALL;
use crate::key::{Field, KEY_MAX, KeyId, Match, TunnelFlags};

/// Whether a rule takes a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    Takes,
    Passes,
    /// All else agrees, but this key's value is not known.
    Unknown(&'static str),
}

/// Whether flower would take the frame for a rule with this match.
pub(crate) fn sight(matching: &Match, frame: &Frame) -> Sight {
    let protocol = matching.protocol();
    if protocol != ETH_P_ALL && protocol != frame.ethertype_at(0) {
        return Sight::Passes;
    }
    let mut sight = Sight::Takes;
    for field in matching.fields().iter() {
        match field_sight(&field, frame) {
            Sight::Takes => {}
            Sight::Passes => return Sight::Passes,
            unknown @ Sight::Unknown(_) => sight = unknown,
        }
    }
    sight
}

fn field_sight(field: &Field<'_>, frame: &Frame) -> Sight {
    let is = |takes| if takes { Sight::Takes } else { Sight::Passes };
    match field.id {
        KeyId::Indev => {
            return match frame.indev {
                Some(link) => is(link.bytes() == field.value),
                None => Sight::Unknown("which interface received the frame"),
            };
        }
        KeyId::Hash => return Sight::Unknown("the hash that the kernel noted of the frame"),
        // The family of the outer addresses is compared too (`enc_control.addr_type`).
        KeyId::EncIpv4Src | KeyId::EncIpv4Dst | KeyId::EncIpv6Src | KeyId::EncIpv6Dst
            if look_outside(field.id, frame).is_none() =>
        {
            return Sight::Passes;
        }
        // And the kind of options.
        KeyId::EncOpts => {
            let options = frame.tunnel.as_ref().map(|tunnel| &tunnel.options);
            return match options {
                None | Some(TunnelData::None) => Sight::Passes,
                Some(_) => Sight::Unknown("the options of the tunnel"),
            };
        }
        _ => {}
    }
    if let Some((min, max)) = field.range() {
        let ports = ports(frame).unwrap_or((0, 0));
        let port = if field.id == KeyId::PortSrcRange { ports.0 } else { ports.1 };
        return is((min..=max).contains(&port));
    }
    let mut seen = [0; KEY_MAX];
    if let Some(bytes) = look(field.id, frame) {
        seen = bytes;
    }
    let bytes = field.value.iter().zip(field.mask).zip(seen);
    is(bytes.into_iter().all(|((value, mask), seen)| seen & mask == *value))
}

/// These bytes, at the start of a key's room.
fn bytes<const N: usize>(bytes: [u8; N]) -> [u8; KEY_MAX] {
    let mut out = [0; KEY_MAX];
    out[..N].copy_from_slice(&bytes);
    out
}

/// What the dissector sees at `id`, in network order; `None` where the frame has no such thing.
fn look(id: KeyId, frame: &Frame) -> Option<[u8; KEY_MAX]> {
    let tag = |at: usize| frame.tags.get(at);
    let behind = |at: usize| tag(at).map(|_| bytes(frame.ethertype_at(at + 1).to_be_bytes()));
    Some(match id {
        KeyId::EthDst => bytes(frame.dst.0),
        KeyId::EthSrc => bytes(frame.src.0),
        KeyId::NumOfVlans => bytes([frame.tags.len() as u8]),
        KeyId::VlanId => bytes(tag(0)?.vid.get().to_be_bytes()),
        KeyId::VlanPrio => bytes([tag(0)?.pcp]),
        KeyId::VlanEthType => behind(0)?,
        KeyId::CvlanId => bytes(tag(1)?.vid.get().to_be_bytes()),
        KeyId::CvlanPrio => bytes([tag(1)?.pcp]),
        KeyId::CvlanEthType => behind(1)?,
        _ => return look_outside(id, frame).or_else(|| look_inside(id, &frame.body)),
    })
}

/// What is seen of the tunnel that a frame is in.
fn look_outside(id: KeyId, frame: &Frame) -> Option<[u8; KEY_MAX]> {
    let tunnel = frame.tunnel.as_ref()?;
    Some(match (id, tunnel.ends) {
        (KeyId::EncIpv4Src, TunnelEnds::V4 { src, .. }) => bytes(src.octets()),
        (KeyId::EncIpv4Dst, TunnelEnds::V4 { dst, .. }) => bytes(dst.octets()),
        (KeyId::EncIpv6Src, TunnelEnds::V6 { src, .. }) => bytes(src.octets()),
        (KeyId::EncIpv6Dst, TunnelEnds::V6 { dst, .. }) => bytes(dst.octets()),
        (KeyId::EncKey, _) => bytes(tunnel.id.unwrap_or(0).to_be_bytes()),
        (KeyId::EncUdpDst, _) => bytes(tunnel.dst_port.to_be_bytes()),
        (KeyId::EncTos, _) => bytes([tunnel.tos]),
        (KeyId::EncTtl, _) => bytes([tunnel.ttl]),
        (KeyId::EncFlags, _) => {
            let flag = |is_set, flag: TunnelFlags| if is_set { flag } else { TunnelFlags::NONE };
            let csum = flag(tunnel.csum, TunnelFlags::CSUM);
            let flags = csum.and(flag(tunnel.no_frag, TunnelFlags::DONT_FRAGMENT));
            bytes(flags.bits().to_be_bytes())
        }
        _ => return None,
    })
}

fn look_inside(id: KeyId, body: &Body) -> Option<[u8; KEY_MAX]> {
    Some(match (id, *body) {
        (KeyId::Ipv4Src, Body::Ipv4 { src, .. }) => bytes(src.octets()),
        (KeyId::Ipv4Dst, Body::Ipv4 { dst, .. }) => bytes(dst.octets()),
        (KeyId::Ipv6Src, Body::Ipv6 { src, .. }) => bytes(src.octets()),
        (KeyId::Ipv6Dst, Body::Ipv6 { dst, .. }) => bytes(dst.octets()),
        (KeyId::IpTos, Body::Ipv4 { tos, .. } | Body::Ipv6 { tos, .. }) => bytes([tos]),
        (KeyId::IpTtl, Body::Ipv4 { ttl, .. } | Body::Ipv6 { ttl, .. }) => bytes([ttl]),
        // FLOW_DIS_IS_FRAGMENT and FLOW_DIS_FIRST_FRAG, as TCA_FLOWER_KEY_FLAGS_* has them.
        (KeyId::IpFlags, Body::Ipv4 { fragment, .. } | Body::Ipv6 { fragment, .. }) => {
            bytes(match fragment {
                Fragment::No => [0; 4],
                Fragment::First => [0, 0, 0, 3],
                Fragment::Later => [0, 0, 0, 1],
            })
        }
        (KeyId::IpProto, Body::Ipv4 { layer4, .. }) => bytes([layer4.proto(true)]),
        (KeyId::IpProto, Body::Ipv6 { layer4, .. }) => bytes([layer4.proto(false)]),
        // Only requests and replies are looked into (`__skb_flow_dissect_arp`).
        (_, Body::Arp { op, .. }) if !(1..=2).contains(&op) => return None,
        (KeyId::ArpOp, Body::Arp { op, .. }) => bytes([op]),
        (KeyId::ArpSip, Body::Arp { sip, .. }) => bytes(sip.octets()),
        (KeyId::ArpTip, Body::Arp { tip, .. }) => bytes(tip.octets()),
        (KeyId::ArpSha, Body::Arp { sha, .. }) => bytes(sha.0),
        (KeyId::ArpTha, Body::Arp { tha, .. }) => bytes(tha.0),
        (KeyId::PppoeSid, Body::Pppoe { session, .. }) => bytes(session.to_be_bytes()),
        (KeyId::PppProto, Body::Pppoe { proto, .. }) => bytes(proto.to_be_bytes()),
        (KeyId::Cfm, Body::Cfm { level, opcode }) => bytes([level, opcode]),
        (id, Body::Mpls(stack)) if (KeyId::MplsLse1..=KeyId::MplsLse7).contains(&id) => {
            let at = id as u8 - KeyId::MplsLse1 as u8;
            let [a, b, c, d] = stack.entries().get(usize::from(at))?.to_be_bytes();
            bytes([at + 1, a, b, c, d])
        }
        (id, Body::Ipv4 { layer4, fragment: Fragment::No, .. }) => look_layer4(id, true, layer4)?,
        (id, Body::Ipv6 { layer4, fragment: Fragment::No, .. }) => look_layer4(id, false, layer4)?,
        _ => return None,
    })
}

fn look_layer4(id: KeyId, v4: bool, layer4: Layer4) -> Option<[u8; KEY_MAX]> {
    Some(match (id, layer4) {
        (KeyId::TcpSrc, Layer4::Tcp { src, .. })
        | (KeyId::UdpSrc, Layer4::Udp { src, .. })
        | (KeyId::SctpSrc, Layer4::Sctp { src, .. }) => bytes(src.to_be_bytes()),
        (KeyId::TcpDst, Layer4::Tcp { dst, .. })
        | (KeyId::UdpDst, Layer4::Udp { dst, .. })
        | (KeyId::SctpDst, Layer4::Sctp { dst, .. }) => bytes(dst.to_be_bytes()),
        (KeyId::TcpFlags, Layer4::Tcp { flags, .. }) => bytes(flags.to_be_bytes()),
        (KeyId::Icmpv4Type, Layer4::Icmp { kind, .. }) if v4 => bytes([kind]),
        (KeyId::Icmpv4Code, Layer4::Icmp { code, .. }) if v4 => bytes([code]),
        (KeyId::Icmpv6Type, Layer4::Icmp { kind, .. }) if !v4 => bytes([kind]),
        (KeyId::Icmpv6Code, Layer4::Icmp { code, .. }) if !v4 => bytes([code]),
        (KeyId::Spi, Layer4::Esp { spi } | Layer4::Ah { spi }) => bytes(spi.to_be_bytes()),
        (KeyId::L2tpv3Sid, Layer4::L2tpv3 { session }) => bytes(session.to_be_bytes()),
        _ => return None,
    })
}

/// Source and destination port of a whole packet that has them.
fn ports(frame: &Frame) -> Option<(u16, u16)> {
    match frame.body {
        Body::Ipv4 { layer4, fragment: Fragment::No, .. }
        | Body::Ipv6 { layer4, fragment: Fragment::No, .. } => match layer4 {
            Layer4::Tcp { src, dst, .. } | Layer4::Udp { src, dst } | Layer4::Sctp { src, dst } => {
                Some((src, dst))
            }
            _ => None,
        },
        _ => None,
    }
}
