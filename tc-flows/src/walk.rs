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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary::{chain, frames, hook, ifindex, mac, prio, rules, vid};
    use crate::frame::Frame;
    use crate::ident::{EtherType, Mac, VlanId, VlanTpid};
    use crate::key::{ArpMatch, Ipv4Match, Ipv6Match, Ports};
    use crate::set::RuleSet;

    const Q: VlanTpid = VlanTpid::Dot1Q;
    const AD: VlanTpid = VlanTpid::Dot1Ad;

    fn rule(at: u32, at_prio: u16, matching: Match, actions: &[Action]) -> Rule {
        Rule::new(hook(), chain(at), prio(at_prio), matching, actions).unwrap()
    }

    fn frame() -> Frame {
        Frame::opaque(mac(2), mac(1), EtherType::new(0x88b5).unwrap())
    }

    fn tagged(tags: &[(VlanTpid, VlanId)]) -> Frame {
        Frame { tags: tags.to_vec(), ..frame() }
    }

    fn meet(rules: &[Rule], frame: &Frame) -> Walk {
        walk(rules, hook(), frame)
    }

    fn takes(matching: Match, frame: &Frame) -> bool {
        meet(&[rule(0, 1, matching, &[Action::Drop])], frame).dropped
    }

    #[test]
    fn a_frame_that_no_rule_takes_reaches_the_host() {
        let walk = meet(&[], &frame());
        assert_eq!(walk.to_host, Some(frame()));
        assert_eq!(walk.deliveries, []);
        assert!(!walk.dropped);
        assert_eq!(walk.trace, [Step::NoMatch(ChainId::ZERO)]);
    }

    #[test]
    fn a_chain_without_a_match_passes_to_the_host_and_does_not_return_to_where_it_came_from() {
        let rules = [
            rule(0, 1, Match::any(), &[Action::Goto(chain(5))]),
            rule(0, 2, Match::any(), &[Action::Drop]),
            rule(5, 1, Match::any().src(mac(9)), &[Action::Drop]),
        ];
        let walk = meet(&rules, &frame());
        assert_eq!(walk.to_host, Some(frame()));
        assert_eq!(walk.trace.last(), Some(&Step::NoMatch(chain(5))));
    }

    #[test]
    fn the_lowest_prio_that_matches_decides() {
        let rules = [
            rule(0, 9, Match::any(), &[Action::Redirect(ifindex(9))]),
            rule(0, 2, Match::any().src(mac(1)), &[Action::Redirect(ifindex(2))]),
            rule(0, 1, Match::any().src(mac(7)), &[Action::Redirect(ifindex(1))]),
        ];
        assert_eq!(meet(&rules, &frame()).deliveries, [(ifindex(2), frame())]);
    }

    #[test]
    fn rules_of_another_hook_and_rules_for_hardware_only_are_not_met() {
        let elsewhere =
            Rule::new(Hook::egress(ifindex(7)), chain(0), prio(1), Match::any(), [Action::Drop]);
        let hardware = rule(0, 1, Match::any(), &[Action::Drop]).with_offload(Offload::SkipSw);
        let rules = [elsewhere.unwrap(), hardware];
        assert_eq!(meet(&rules, &frame()).to_host, Some(frame()));
    }

    #[test]
    fn a_mirror_sends_the_frame_as_it_is_then_and_lets_it_go_on() {
        let rules = [rule(
            0,
            1,
            Match::any(),
            &[
                Action::Mirror(ifindex(2)),
                Action::VlanPush { tpid: Q, vid: vid(5) },
                Action::Mirror(ifindex(3)),
                Action::VlanPop,
                Action::Pass,
            ],
        )];
        let walk = meet(&rules, &frame());
        let with_tag = tagged(&[(Q, vid(5))]);
        assert_eq!(walk.deliveries, [(ifindex(2), frame()), (ifindex(3), with_tag)]);
        assert_eq!(walk.to_host, Some(frame()));
    }

    #[test]
    fn a_push_goes_outside_a_modify_changes_the_outer_tag_a_pop_takes_it() {
        let push = Action::VlanPush { tpid: AD, vid: vid(7) };
        let modify = Action::VlanModify { tpid: Q, vid: vid(8) };
        let pop = Action::VlanPop;
        let becomes = |actions: &[Action]| {
            let walk = meet(&[rule(0, 1, Match::any(), actions)], &tagged(&[(Q, vid(1))]));
            walk.to_host.unwrap().tags
        };
        assert_eq!(becomes(&[push, Action::Pass]), [(AD, vid(7)), (Q, vid(1))]);
        assert_eq!(becomes(&[push, modify, Action::Pass]), [(Q, vid(8)), (Q, vid(1))]);
        assert_eq!(becomes(&[push, pop, pop, Action::Pass]), []);
    }

    #[test]
    fn to_pop_or_modify_the_tag_of_an_untagged_frame_changes_nothing() {
        let modify = Action::VlanModify { tpid: Q, vid: vid(8) };
        let rules = [rule(0, 1, Match::any(), &[Action::VlanPop, modify, Action::Pass])];
        assert_eq!(meet(&rules, &frame()).to_host, Some(frame()));
    }

    #[test]
    fn after_a_tag_change_the_next_chain_sees_the_new_tag() {
        let rules = [
            rule(0, 1, Match::vlan(Q, vid(1)), &[Action::VlanPop, Action::Goto(chain(1))]),
            rule(1, 1, Match::vlan(Q, vid(1)), &[Action::Drop]),
            rule(1, 2, Match::vlan(AD, vid(2)), &[Action::Redirect(ifindex(3))]),
        ];
        let walk = meet(&rules, &tagged(&[(Q, vid(1)), (AD, vid(2))]));
        assert_eq!(walk.deliveries, [(ifindex(3), tagged(&[(AD, vid(2))]))]);
    }

    #[test]
    fn sixteen_gotos_are_followed_and_the_seventeenth_drops() {
        let path = |gotos: u32| -> Vec<Rule> {
            (0..gotos)
                .map(|at| rule(at, 1, Match::any(), &[Action::Goto(chain(at + 1))]))
                .chain([rule(gotos, 1, Match::any(), &[Action::Redirect(ifindex(2))])])
                .collect()
        };
        assert_eq!(meet(&path(16), &frame()).deliveries.len(), 1);
        let walk = meet(&path(17), &frame());
        assert_eq!(walk.deliveries, []);
        assert!(walk.dropped);
        assert_eq!(walk.trace.last(), Some(&Step::TooManyGotos));
    }

    #[test]
    fn a_loop_of_gotos_ends() {
        let rules = [rule(0, 1, Match::any(), &[Action::Goto(ChainId::ZERO)])];
        assert!(meet(&rules, &frame()).dropped);
    }

    #[test]
    fn protocol_all_takes_tagged_frames_too_and_an_ethertype_untagged_ones_only() {
        let plain = frame();
        let one = tagged(&[(Q, vid(5))]);
        let two = tagged(&[(AD, vid(6)), (Q, vid(5))]);
        for frame in [&plain, &one, &two] {
            assert!(takes(Match::any().src(mac(1)), frame));
        }
        let ethertype = EtherType::new(0x88b5).unwrap();
        assert!(takes(Match::ethertype(ethertype), &plain));
        assert!(!takes(Match::ethertype(ethertype), &one));
        assert!(takes(Match::vlan(Q, vid(5)), &one));
        assert!(!takes(Match::vlan(Q, vid(5)), &two));
        assert!(!takes(Match::vlan(Q, vid(5)), &plain));
        assert!(takes(Match::tagged(AD), &two));
        assert!(takes(Match::vlan_with(Q, vid(5), ethertype), &one));
        assert!(!takes(Match::vlan_with(AD, vid(6), ethertype), &two));
        assert!(takes(Match::tagged_with(Q, ethertype), &one));
    }

    #[test]
    fn a_masked_address_matches_in_the_bits_of_its_mask() {
        let multicast = Match::any().dst_masked(Mac([1; 6]), Mac([1, 0, 0, 0, 0, 0]));
        assert!(takes(multicast.clone(), &Frame { dst: Mac([0xff; 6]), ..frame() }));
        assert!(!takes(multicast, &frame()));
    }

    #[test]
    fn payload_keys_look_into_ip_and_arp_behind_tags_too() {
        let dhcp_reply =
            Body::ipv4([192, 0, 2, 1].into(), [255; 4].into(), Layer4::Udp { src: 67, dst: 68 });
        let dhcp_reply = frame().with_body(dhcp_reply);
        let from_server = Ipv4Match::any().udp(Ports::any().src(67));
        assert!(takes(Match::ethertype(from_server.clone()), &dhcp_reply));
        assert!(!takes(Match::ethertype(Ipv4Match::any().tcp(Ports::any())), &dhcp_reply));
        assert!(!takes(Match::ethertype(from_server.clone()), &frame()));
        let in_vlan = dhcp_reply.clone().tagged(Q, vid(4));
        assert!(takes(Match::vlan_with(Q, vid(4), from_server), &in_vlan));

        let advertisement = Body::ipv6(
            "fe80::1".parse().unwrap(),
            "ff02::1".parse().unwrap(),
            Layer4::Icmp { kind: 134, code: 0 },
        );
        let advertisement = frame().with_body(advertisement);
        assert!(takes(Match::ethertype(Ipv6Match::any().icmp_type(134)), &advertisement));
        assert!(!takes(Match::ethertype(Ipv6Match::any().icmp_type(133)), &advertisement));

        let reply = frame().with_body(Body::Arp {
            op: 2,
            sha: mac(1),
            sip: [192, 0, 2, 1].into(),
            tha: mac(2),
            tip: [192, 0, 2, 2].into(),
        });
        let spoofed = ArpMatch::any().op(2).sip([192, 0, 2, 1].into());
        assert!(takes(Match::ethertype(spoofed.clone()), &reply));
        assert!(!takes(Match::ethertype(spoofed.op(1)), &reply));
    }

    #[test]
    fn a_trap_consumes_the_frame_in_software() {
        let walk = meet(&[rule(0, 1, Match::any(), &[Action::Trap])], &frame());
        assert!(walk.dropped);
        assert_eq!(walk.to_host, None);
    }

    proptest! {
        #[test]
        fn every_frame_has_one_end_and_only_rules_tell_it(
            rules in prop::collection::vec(rules(), 0..40), frame in frames(),
        ) {
            let mut set = RuleSet::new();
            for rule in rules {
                let _ = set.insert(rule);
            }
            let walk = walk(&set, hook(), &frame);
            let redirects = walk.trace.iter()
                .filter(|step| matches!(step, Step::Did(Action::Redirect(_))))
                .count();
            let ends =
                redirects + usize::from(walk.dropped) + usize::from(walk.to_host.is_some());
            prop_assert_eq!(ends, 1);
            let leaves = walk.trace.iter()
                .filter(|step| matches!(step, Step::Did(Action::Mirror(_) | Action::Redirect(_))))
                .count();
            prop_assert_eq!(walk.deliveries.len(), leaves);
            for (_, left) in &walk.deliveries {
                prop_assert_eq!((left.dst, left.src, left.body), (frame.dst, frame.src, frame.body));
            }
        }
    }
}
