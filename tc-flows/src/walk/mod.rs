//! What a frame meets on its way through a hook's rules: an exact model of what the kernel does in
//! software, and of what hardware does before it.
//!
//! In come rules and a frame, out go the copies that leave through interfaces, what reaches the
//! host, and the steps in between. It is the oracle of every property test, so each choice here
//! follows a kernel source and not a wish:
//!
//! - chains, prios, protocol test before each classifier (anew after every tag change), the limit
//!   of 16 gotos, no match = unspecified: `__tcf_classify` in net/sched/cls_api.c;
//! - unspecified and `pass` go to the host, `drop` ends, `trap` is consumed: `tc_run` and
//!   `sch_handle_ingress` in net/core/dev.c;
//! - keys and masks: `sight`;
//! - tags: `tcf_vlan_act` in net/sched/act_vlan.c, `skb_vlan_push` and `skb_vlan_pop` in
//!   net/core/skbuff.c (the outer tag is in the skb's metadata since `skb_vlan_untag`, before any
//!   rule runs; to pop or modify what has no tag changes nothing);
//! - mirror and redirect: `tcf_mirred_act` in net/sched/act_mirred.c: the frame leaves as it is at
//!   that moment, a mirror lets it go on;
//! - jumps and what else lets a list go on: `tcf_action_exec` in net/sched/act_api.c; `continue`
//!   goes on behind the rule's prio, with the frame as the rule left it;
//! - a policer lets every frame pass as if within its rate; one that rules share goes on;
//! - what else changes frames: `rewrite`;
//! - hardware, and where software goes on after it: `stages` and [`crate::Profile`].
//!
//! Not modelled: what a receiving interface's own rules do with a copy, interfaces that are down.
//! Where a walk meets what it cannot model it ends there and says so ([`Walk::unmodelled`]).

mod rewrite;
mod sight;
mod stages;

use std::collections::BTreeMap;

use rewrite::{Passing, Rewritten};
pub(crate) use sight::{Sight, sight};
pub use stages::{Handover, TwoStageWalk, Why, walk_two_stage};

use crate::action::{Action, Control};
use crate::frame::Frame;
use crate::ident::{ChainId, Hook, Ifindex, Prio};
use crate::rule::{Offload, Rule};

/// How many gotos the kernel follows for one frame before it drops it (`max_reclassify_loop`,
/// net/sched/cls_api.c).
pub const GOTOS_MAX: usize = 16;

/// What became of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Copies that left, in order, as they left.
    pub deliveries: Vec<(Ifindex, Frame)>,
    /// Copies that interfaces were given as if they had received them (mirred `ingress`), in
    /// order. What their own rules do with them is another walk.
    pub received: Vec<(Ifindex, Frame)>,
    /// The frame as the host's own stack gets it, where it does.
    pub to_host: Option<Frame>,
    /// Whether a rule dropped it, or consumed it by `trap`, or it met too many gotos. (A frame
    /// that was redirected or reached the host was not dropped, whatever copies it left.)
    pub dropped: bool,
    /// Where the walk ended because what comes next cannot be told. What it says of deliveries is
    /// true then, but not all.
    pub unmodelled: Option<Unmodelled>,
    /// What happened, in order.
    pub trace: Vec<Step>,
}

/// What a walk cannot tell the effect of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmodelled {
    /// This action.
    Action(Action),
    /// Whether a rule takes the frame, which depends on this.
    Key(&'static str),
    /// What hardware makes of this: the reason why its driver's source does not tell.
    Hardware(&'static str),
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
    /// Hardware gave it to software, which goes on as it says.
    HandedOver(Handover),
}

/// Walks `frame` through the rules of `hook` that run in software (all but
/// [`Offload::SkipSw`]), as if there were no hardware.
///
/// Where two rules of one prio match, which no [`crate::RuleSet`] allows, the first in `rules`
/// counts.
pub fn walk<'r>(rules: impl IntoIterator<Item = &'r Rule>, hook: Hook, frame: &Frame) -> Walk {
    let in_software = rules.into_iter().filter(|rule| rule.offload() != Offload::SkipSw);
    Chains::of(in_software, hook).walk(ChainId::ZERO, frame.clone()).walk
}

/// The rules of one hook, by chain and prio.
pub(crate) struct Chains<'r>(BTreeMap<ChainId, Vec<(Prio, &'r Rule)>>);

/// A walk in the order of chains and prios, and whether it ended in a trap or without a match.
pub(crate) struct Passage {
    pub(crate) walk: Walk,
    /// Where it ended.
    pub(crate) chain: ChainId,
    /// It ended there because no rule took it.
    pub(crate) missed: bool,
    /// The frame as a trap got it.
    pub(crate) trapped: Option<Frame>,
}

impl<'r> Chains<'r> {
    pub(crate) fn of(rules: impl Iterator<Item = &'r Rule>, hook: Hook) -> Chains<'r> {
        let mut chains: BTreeMap<ChainId, Vec<(Prio, &Rule)>> = BTreeMap::new();
        for rule in rules.filter(|rule| rule.hook() == hook) {
            chains.entry(rule.chain()).or_default().push((rule.prio(), rule));
        }
        for chain in chains.values_mut() {
            chain.sort_by_key(|(prio, _)| *prio);
        }
        Chains(chains)
    }

    /// Every rule, by chain and prio.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'r Rule> {
        self.0.values().flatten().map(|(_, rule)| *rule)
    }

    /// The rule of this chain that takes the frame, of those behind prio `after`.
    pub(crate) fn find(
        &self,
        chain: ChainId,
        after: Option<Prio>,
        frame: &Frame,
    ) -> Result<Option<&'r Rule>, Unmodelled> {
        let rules = self.0.get(&chain).map(Vec::as_slice).unwrap_or_default();
        for (_, rule) in rules.iter().filter(|(prio, _)| Some(*prio) > after) {
            match sight(rule.id().matching(), frame) {
                Sight::Takes => return Ok(Some(rule)),
                Sight::Passes => {}
                Sight::Unknown(what) => return Err(Unmodelled::Key(what)),
            }
        }
        Ok(None)
    }

    /// What happens to `frame` from this chain on, action by action, as software does it.
    pub(crate) fn walk(&self, from: ChainId, frame: Frame) -> Passage {
        let mut passage =
            Passage { walk: Walk::default(), chain: from, missed: false, trapped: None };
        let mut passing = Passing { frame, headless: false };
        let mut after = None;
        let mut gotos = 0;
        loop {
            let rule = match self.find(passage.chain, after, &passing.frame) {
                Ok(rule) => rule,
                Err(unmodelled) => {
                    passage.walk.unmodelled = Some(unmodelled);
                    return passage;
                }
            };
            let Some(rule) = rule else {
                passage.walk.trace.push(Step::NoMatch(passage.chain));
                passage.walk.to_host = Some(passing.frame);
                passage.missed = true;
                return passage;
            };
            passage.walk.trace.push(Step::Matched(rule.clone()));
            match passage.walk.carry_out(rule, &mut passing) {
                Ended::Drop => {
                    passage.walk.dropped = true;
                    return passage;
                }
                Ended::Trap => {
                    passage.walk.dropped = true;
                    passage.trapped = Some(passing.frame);
                    return passage;
                }
                Ended::ToHost => {
                    passage.walk.to_host = Some(passing.frame);
                    return passage;
                }
                Ended::Left => return passage,
                Ended::Unmodelled(unmodelled) => {
                    passage.walk.unmodelled = Some(unmodelled);
                    return passage;
                }
                // Only the rules of later prios are asked: those of its own are one classifier.
                Ended::Continue => after = Some(rule.prio()),
                Ended::Goto(next) => {
                    (passage.chain, after) = (next, None);
                    gotos += 1;
                }
            }
            if gotos > GOTOS_MAX {
                passage.walk.trace.push(Step::TooManyGotos);
                passage.walk.dropped = true;
                return passage;
            }
        }
    }
}

/// How a rule's part in a frame's life ended.
enum Ended {
    Drop,
    Trap,
    ToHost,
    Left,
    Continue,
    Goto(ChainId),
    Unmodelled(Unmodelled),
}

impl Walk {
    /// Carries out the rule's actions (`tcf_action_exec` in net/sched/act_api.c).
    fn carry_out(&mut self, rule: &Rule, passing: &mut Passing) -> Ended {
        let mut at = 0;
        while let Some(action) = rule.actions().get(at) {
            at += 1;
            self.trace.push(Step::Did(action.clone()));
            match passing.rewrite(action) {
                Rewritten::On => {}
                Rewritten::Dropped => return Ended::Drop,
                Rewritten::Unknown(unmodelled) => return Ended::Unmodelled(unmodelled),
            }
            let on = match action {
                Action::Drop => Control::Drop,
                Action::Pass => Control::Pass,
                Action::Goto(chain) => Control::Goto(*chain),
                Action::Continue => Control::Continue,
                Action::Jump(to) => Control::Jump(*to),
                // As if within its rate and size.
                Action::Police(police) => police.conform,
                Action::Trap => return Ended::Trap,
                Action::Redirect(to) => {
                    self.deliveries.push((*to, passing.frame.clone()));
                    return Ended::Left;
                }
                Action::RedirectIngress(to) => {
                    self.received.push((*to, passing.frame.clone()));
                    return Ended::Left;
                }
                Action::Mirror(to) => {
                    self.deliveries.push((*to, passing.frame.clone()));
                    Control::Pipe
                }
                Action::MirrorIngress(to) => {
                    self.received.push((*to, passing.frame.clone()));
                    Control::Pipe
                }
                // Which interfaces are bound to it is not known here.
                Action::MirrorBlock { .. } | Action::RedirectBlock { .. } => {
                    return Ended::Unmodelled(Unmodelled::Action(action.clone()));
                }
                _ => Control::Pipe,
            };
            match on {
                Control::Pipe => {}
                Control::Jump(to) => at = usize::from(to),
                Control::Pass => return Ended::ToHost,
                Control::Drop => return Ended::Drop,
                Control::Continue => return Ended::Continue,
                Control::Goto(chain) => return Ended::Goto(chain),
            }
        }
        // Every list ends in an action that ends it.
        Ended::Continue
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::action::{Ct, Munge, Nat, Pedit, PeditField, Police, TunnelKey};
    use crate::arbitrary::{chain, frames, hook, ifindex, mac, prio, rules, vid};
    use crate::frame::{Body, Fragment, Frame, Layer4, Tag};
    use crate::ident::{Direction, EtherType, Mac, VlanId, VlanTpid};
    use crate::key::{
        ArpMatch, Ipv4Match, Ipv4Prefix, Ipv6Match, Ipv6Prefix, LinkName, Match, PortRange, Ports,
        TagMatch, Tunnel, VlanPrio,
    };
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
        Frame { tags: tags_of(tags), ..frame() }
    }

    fn tags_of(tags: &[(VlanTpid, VlanId)]) -> Vec<Tag> {
        tags.iter().map(|(tpid, vid)| Tag::new(*tpid, *vid)).collect()
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
        assert_eq!(
            becomes(&[push.to_owned(), Action::Pass]),
            tags_of(&[(AD, vid(7)), (Q, vid(1))])
        );
        assert_eq!(
            becomes(&[push.to_owned(), modify, Action::Pass]),
            tags_of(&[(Q, vid(8)), (Q, vid(1))])
        );
        assert_eq!(becomes(&[push, pop.to_owned(), pop, Action::Pass]), []);
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

    #[test]
    fn keys_see_priorities_second_tags_and_how_many_there_are() {
        let pcp = |number| VlanPrio::new(number).unwrap();
        let inner = Tag { tpid: Q, vid: vid(5), pcp: 3 };
        let outer = Tag { tpid: AD, vid: vid(6), pcp: 7 };
        let two = frame().within(inner).within(outer);
        assert!(takes(Match::in_tag(TagMatch::any(AD).prio(pcp(7))), &two));
        assert!(!takes(Match::in_tag(TagMatch::any(AD).prio(pcp(3))), &two));
        let both = |inner| Match::in_tags(TagMatch::any(AD).vid(vid(6)), inner);
        assert!(takes(both(TagMatch::any(Q).vid(vid(5)).prio(pcp(3))), &two));
        assert!(!takes(both(TagMatch::any(Q).vid(vid(4))), &two));
        assert!(!takes(both(TagMatch::any(AD)), &two));
        for (number, expected) in [(0, false), (1, false), (2, true)] {
            assert_eq!(takes(Match::any().num_of_vlans(number).unwrap(), &two), expected);
        }
    }

    #[test]
    fn of_a_fragment_keys_see_addresses_and_protocol_but_nothing_behind() {
        let udp = Layer4::Udp { src: 67, dst: 68 };
        let packet = |fragment| {
            let (src, dst) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
            let body = Body::Ipv4 { src, dst, tos: 0, ttl: 64, layer4: udp, fragment };
            frame().with_body(body)
        };
        let any = Ipv4Match::any;
        for (fragment, is, first) in [
            (Fragment::No, false, false),
            (Fragment::First, true, true),
            (Fragment::Later, true, false),
        ] {
            let packet = packet(fragment);
            assert!(takes(Match::ethertype(any().proto(17)), &packet));
            assert_eq!(takes(Match::ethertype(any().fragment(true)), &packet), is);
            assert_eq!(takes(Match::ethertype(any().first_fragment(true)), &packet), first);
            assert_eq!(takes(Match::ethertype(any().udp(Ports::any().dst(68))), &packet), !is);
            // What is not seen is port 0.
            let low = PortRange::new(0, 60).unwrap();
            assert_eq!(
                takes(Match::ethertype(any().udp(Ports::any().src_range(low))), &packet),
                is
            );
        }
    }

    #[test]
    fn what_depends_on_what_is_not_known_ends_the_walk_unless_another_key_disagrees() {
        let link = LinkName::new("eth0").unwrap();
        let rules = [rule(0, 1, Match::any().src(mac(1)).indev(link), &[Action::Drop])];
        let walk = meet(&rules, &frame());
        assert!(matches!(walk.unmodelled, Some(Unmodelled::Key(_))));
        assert_eq!((walk.to_host, walk.dropped), (None, false));
        assert!(meet(&rules, &Frame { indev: Some(link), ..frame() }).dropped);
        let elsewhere = Frame { indev: LinkName::new("eth1"), ..frame() };
        assert_eq!(meet(&rules, &elsewhere).to_host, Some(elsewhere));
        let other = Frame { src: mac(3), ..frame() };
        assert_eq!(meet(&rules, &other).to_host, Some(other));
    }

    #[test]
    fn continue_asks_the_later_prios_with_the_frame_as_the_rule_left_it() {
        let push = Action::VlanPush { tpid: Q, vid: vid(5) };
        let rules = [
            rule(0, 1, Match::any(), &[push, Action::Continue]),
            rule(0, 2, Match::tagged(Q), &[Action::Redirect(ifindex(2))]),
        ];
        assert_eq!(meet(&rules, &frame()).deliveries, [(ifindex(2), tagged(&[(Q, vid(5))]))]);
    }

    #[test]
    fn a_policer_passes_as_within_its_rate_and_leads_where_conforming_frames_go() {
        let police = || Police::bytes(1_000_000, 10_000).unwrap().exceed(Control::Pipe);
        let led = |conform| {
            let police: Action = police().conform(conform).unwrap().into();
            let list = [police, Action::Mirror(ifindex(2)), Action::Redirect(ifindex(3))];
            let walk = meet(&[rule(0, 1, Match::any(), &list)], &frame());
            let to: Vec<u32> = walk.deliveries.iter().map(|(to, _)| to.get()).collect();
            (to, walk.dropped, walk.to_host.is_some())
        };
        assert_eq!(led(Control::Pipe), (vec![2, 3], false, false));
        assert_eq!(led(Control::Jump(2)), (vec![3], false, false));
        assert_eq!(led(Control::Drop), (vec![], true, false));
        assert_eq!(led(Control::Pass), (vec![], false, true));
    }

    #[test]
    fn what_interfaces_are_given_as_received_is_told_apart_from_what_leaves() {
        let list = [Action::MirrorIngress(ifindex(2)), Action::RedirectIngress(ifindex(3))];
        let walk = meet(&[rule(0, 1, Match::any(), &list)], &frame());
        assert_eq!(walk.received, [(ifindex(2), frame()), (ifindex(3), frame())]);
        assert_eq!((walk.deliveries, walk.dropped, walk.to_host), (vec![], false, None));
    }

    #[test]
    fn an_ethernet_header_is_taken_off_untagged_frames_and_put_on_bare_ones() {
        let push = Action::EthPush { dst: mac(8), src: mac(9) };
        let drops =
            |list: &[Action], frame: &Frame| meet(&[rule(0, 1, Match::any(), list)], frame).dropped;
        assert!(drops(&[Action::EthPop, Action::Pass], &tagged(&[(Q, vid(1))])));
        assert!(drops(&[push.clone(), Action::Pass], &frame()));
        let walk =
            meet(&[rule(0, 1, Match::any(), &[Action::EthPop, push, Action::Pass])], &frame());
        assert_eq!(walk.to_host, Some(Frame { dst: mac(8), src: mac(9), ..frame() }));
        let walk = meet(&[rule(0, 1, Match::any(), &[Action::EthPop, Action::Pass])], &frame());
        assert!(matches!(walk.unmodelled, Some(Unmodelled::Action(Action::Pass))));
    }

    #[test]
    fn header_fields_are_rewritten_where_the_frame_has_them() {
        let udp = Body::ipv4(
            [192, 0, 2, 1].into(),
            [192, 0, 2, 2].into(),
            Layer4::Udp { src: 1, dst: 2 },
        );
        let edited = |munges: &[Munge], frame: &Frame| {
            let pedit: Action = Pedit::new(munges).unwrap().into();
            meet(&[rule(0, 1, Match::any(), &[pedit, Action::Pass])], frame)
        };
        let set = |field, value| Munge::set(field, value).unwrap();
        let packet = frame().with_body(udp);
        let walk = edited(
            &[
                Munge::eth_dst(mac(9)),
                set(PeditField::Ipv4Dst, 0xc633_6401),
                set(PeditField::UdpDst, 53),
            ],
            &packet,
        );
        let after = walk.to_host.unwrap();
        assert_eq!(after.dst, mac(9));
        let Body::Ipv4 { dst, layer4, .. } = after.body else { panic!("{after:?}") };
        assert_eq!((dst, layer4), ([198, 51, 100, 1].into(), Layer4::Udp { src: 1, dst: 53 }));
        // A transport header that is not there ends the action, not the rule.
        let walk = edited(&[set(PeditField::TcpDst, 53), Munge::eth_dst(mac(9))], &packet);
        assert_eq!(walk.to_host, Some(packet.clone()));
        // Behind two tags the kernel would write elsewhere.
        let deep = packet.tagged(Q, vid(1)).tagged(Q, vid(2));
        let walk = edited(&[set(PeditField::Ipv4Ttl, 1)], &deep);
        assert!(matches!(walk.unmodelled, Some(Unmodelled::Action(Action::Pedit(_)))));
    }

    #[test]
    fn nat_maps_the_addresses_of_its_network_and_no_others() {
        let nat = Nat::new(Direction::Egress, [192, 0, 2, 0].into(), 24, [198, 51, 100, 0].into());
        let list = [Action::Nat(nat.unwrap()), Action::Pass];
        let from = |src: [u8; 4]| {
            let body = Body::ipv4(src.into(), [192, 0, 2, 2].into(), Layer4::Other(47));
            let frame = frame().with_body(body);
            let walk = meet(&[rule(0, 1, Match::any(), &list)], &frame);
            let Some(Body::Ipv4 { src, dst, .. }) = walk.to_host.map(|frame| frame.body) else {
                panic!("not to the host")
            };
            assert_eq!(dst.octets(), [192, 0, 2, 2]);
            src.octets()
        };
        assert_eq!(from([192, 0, 2, 7]), [198, 51, 100, 7]);
        assert_eq!(from([203, 0, 113, 7]), [203, 0, 113, 7]);
    }

    #[test]
    fn a_tunnel_that_is_set_is_seen_and_goes_along_until_it_is_released() {
        let key = TunnelKey::v4([192, 0, 2, 1].into(), [192, 0, 2, 2].into()).id(7);
        let out = |of: &Tunnel, to| rule(1, 1, Match::any().tunnel(of), &[Action::Redirect(to)]);
        let mine = Tunnel::any().key_id(7).dst(Ipv4Prefix::new([192, 0, 2, 2].into(), 32).unwrap());
        let steps = [key.clone().into(), Action::Mirror(ifindex(2)), Action::Goto(chain(1))];
        let set = [rule(0, 1, Match::any(), &steps), out(&mine, ifindex(3))];
        let walk = meet(&set, &frame());
        let wrapped = frame().in_tunnel(key.clone());
        assert_eq!(walk.deliveries, [(ifindex(2), wrapped.clone()), (ifindex(3), wrapped)]);

        let release = [&steps[..2], &[Action::TunnelRelease, Action::Goto(chain(1))]].concat();
        let released = [rule(0, 1, Match::any(), &release), out(&mine, ifindex(3))];
        assert_eq!(meet(&released, &frame()).deliveries.len(), 1);
        let v6 = Tunnel::any().dst(Ipv6Prefix::new(std::net::Ipv6Addr::LOCALHOST, 128).unwrap());
        let other = [rule(0, 1, Match::any(), &steps), out(&v6, ifindex(3))];
        assert_eq!(meet(&other, &frame()).deliveries.len(), 1);
    }

    #[test]
    fn connection_tracking_ends_the_walk_by_name() {
        let track: Action = Ct::Track { zone: 1, nat: false }.into();
        let rules =
            [rule(0, 1, Match::any(), &[Action::Mirror(ifindex(2)), track.clone(), Action::Pass])];
        let walk = meet(&rules, &frame());
        assert_eq!(walk.deliveries.len(), 1);
        assert_eq!(walk.unmodelled, Some(Unmodelled::Action(track)));
        assert_eq!((walk.to_host, walk.dropped), (None, false));
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
                redirects + usize::from(walk.dropped) + usize::from(walk.to_host.is_some())
                    + usize::from(walk.unmodelled.is_some());
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
