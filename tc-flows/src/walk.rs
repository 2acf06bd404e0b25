//! What a frame meets on its way through a hook's rules: an exact model of what the kernel does in
//! software.
//!
//! In come rules and a frame, out go the copies that leave through interfaces, what reaches the
//! host, and the steps in between. It is the oracle of every property test, so each choice here
//! follows a kernel source and not a wish:
//!
//! - chains, prios, protocol test before each classifier (anew after every tag change), the limit
//!   of 16 gotos, no match = unspecified: `__tcf_classify` in net/sched/cls_api.c;
//! - unspecified and `pass` go to the host, `drop` ends, `trap` is consumed: `tc_run` and
//!   `sch_handle_ingress` in net/core/dev.c;
//! - keys and masks: `fl_classify` and `fl_set_key` in net/sched/cls_flower.c, with what
//!   `__skb_flow_dissect` in net/core/flow_dissector.c finds;
//! - tags: `tcf_vlan_act` in net/sched/act_vlan.c, `skb_vlan_push` and `skb_vlan_pop` in
//!   net/core/skbuff.c (the outer tag is in the skb's metadata since `skb_vlan_untag`, before any
//!   rule runs; to pop or modify what has no tag changes nothing);
//! - mirror and redirect: `tcf_mirred_act` in net/sched/act_mirred.c: the frame leaves as it is at
//!   that moment, a mirror lets it go on.
//!
//! Not modelled: what a receiving interface's own rules do with a copy, interfaces that are down,
//! tag priorities, hardware.

use std::collections::BTreeMap;

use crate::frame::{Body, Frame, Layer4};
use crate::ident::{ChainId, ETH_P_ALL, Hook, Ifindex, Prio};
use crate::key::{Field, KEY_MAX, KeyId, Match};
use crate::rule::{Action, Offload, Rule};

/// How many gotos the kernel follows for one frame before it drops it (`max_reclassify_loop`,
/// net/sched/cls_api.c).
pub const GOTOS_MAX: usize = 16;

/// What became of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Copies that left, in order, as they left.
    pub deliveries: Vec<(Ifindex, Frame)>,
    /// The frame as the host's own stack gets it, where it does.
    pub to_host: Option<Frame>,
    /// Whether a rule dropped it, or consumed it by `trap`, or it met too many gotos. (A frame
    /// that was redirected or reached the host was not dropped, whatever copies it left.)
    pub dropped: bool,
    /// What happened, in order.
    pub trace: Vec<Step>,
}

/// One step of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A rule took the frame.
    Matched(Rule),
    /// It did this with it.
    Did(Action),
    /// No rule of this chain took it.
    NoMatch(ChainId),
    /// It met more than [`GOTOS_MAX`] gotos.
    TooManyGotos,
}

/// Walks `frame` through the rules of `hook` that run in software (all but
/// [`Offload::SkipSw`]).
///
/// Where two rules of one prio match, which no [`crate::RuleSet`] allows, the first in `rules`
/// counts.
pub fn walk<'r>(rules: impl IntoIterator<Item = &'r Rule>, hook: Hook, frame: &Frame) -> Walk {
    let mut chains: BTreeMap<ChainId, Vec<(Prio, &Rule)>> = BTreeMap::new();
    for rule in rules {
        if rule.hook() == hook && rule.offload() != Offload::SkipSw {
            chains.entry(rule.chain()).or_default().push((rule.prio(), rule));
        }
    }
    for chain in chains.values_mut() {
        chain.sort_by_key(|(prio, _)| *prio);
    }

    let mut walk = Walk::default();
    let mut frame = frame.clone();
    let mut chain = ChainId::ZERO;
    let mut gotos = 0;
    loop {
        let mut candidates = chains.get(&chain).map(Vec::as_slice).unwrap_or_default().iter();
        let Some((_, rule)) = candidates.find(|(_, rule)| matches(rule.id().matching(), &frame))
        else {
            walk.trace.push(Step::NoMatch(chain));
            walk.to_host = Some(frame);
            return walk;
        };
        walk.trace.push(Step::Matched((*rule).clone()));
        for action in rule.actions() {
            walk.trace.push(Step::Did(*action));
            match *action {
                Action::Drop | Action::Trap => {
                    walk.dropped = true;
                    return walk;
                }
                Action::Pass => {
                    walk.to_host = Some(frame);
                    return walk;
                }
                Action::Redirect(to) => {
                    walk.deliveries.push((to, frame));
                    return walk;
                }
                Action::Goto(next) => chain = next,
                Action::Mirror(to) => walk.deliveries.push((to, frame.clone())),
                Action::VlanPush { tpid, vid } => frame.tags.insert(0, (tpid, vid)),
                Action::VlanPop => {
                    if !frame.tags.is_empty() {
                        frame.tags.remove(0);
                    }
                }
                Action::VlanModify { tpid, vid } => {
                    if let Some(outer) = frame.tags.first_mut() {
                        *outer = (tpid, vid);
                    }
                }
            }
        }
        // Every rule ends in a terminal action, and only a goto comes here.
        gotos += 1;
        if gotos > GOTOS_MAX {
            walk.trace.push(Step::TooManyGotos);
            walk.dropped = true;
            return walk;
        }
    }
}

/// Whether flower would take the frame for a rule with this match.
pub(crate) fn matches(matching: &Match, frame: &Frame) -> bool {
    let outer = frame.tags.first().map_or(frame.ethertype, |(tpid, _)| tpid.ethertype());
    (matching.protocol() == ETH_P_ALL || matching.protocol() == outer)
        && matching.fields().iter().all(|field| field_matches(&field, frame))
}

fn field_matches(field: &Field<'_>, frame: &Frame) -> bool {
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
            Some((_, vid)) => put(out, &vid.get().to_be_bytes()),
            None => false,
        },
        (KeyId::VlanEthType, _) if frame.tags.is_empty() => false,
        (KeyId::VlanEthType, _) => {
            let next = frame.tags.get(1).map_or(frame.ethertype, |(tpid, _)| tpid.ethertype());
            put(out, &next.to_be_bytes())
        }
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
