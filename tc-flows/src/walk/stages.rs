//! The walk in two stages: hardware first, and software for what hardware did not finish.
//!
//! In come rules, which of them hardware holds, and whose hardware it is; out goes what each stage
//! did. A frame that hardware finished is not seen by software rules. What hardware hands over
//! meets the software rules from chain 0 on, or, where the driver restores it, from the chain in
//! which it missed: `tcf_classify` in net/sched/cls_api.c takes that from `tc_skb_ext->chain`. The
//! count of gotos begins anew there.

use super::{Chains, Step, Unmodelled, Walk};
use crate::frame::Frame;
use crate::ident::{ChainId, Hook, Ifindex};
use crate::profile::Profile;
use crate::rule::{Offload, Rule};

/// Why hardware gave a frame to software.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No rule of this chain took it.
    Miss(ChainId),
    /// A rule says `trap`.
    Trap,
    /// A rule says `pass`, which sends it to the host by way of the software rules.
    Pass,
}

/// What hardware gave to software, and where software goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Why.
    pub why: Why,
    /// The chain whose software rules are asked first.
    pub chain: ChainId,
    /// The frame as hardware left it.
    pub frame: Frame,
}

/// What became of a frame in hardware and software.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TwoStageWalk {
    /// What hardware did.
    pub hardware: Walk,
    /// What software did, where hardware left it anything.
    pub software: Option<(Handover, Walk)>,
}

impl TwoStageWalk {
    /// Both stages as one walk, with [`Step::HandedOver`] between them.
    pub fn together(self) -> Walk {
        let mut walk = self.hardware;
        if let Some((handover, software)) = self.software {
            walk.deliveries.extend(software.deliveries);
            walk.received.extend(software.received);
            walk.to_host = software.to_host;
            walk.dropped = software.dropped;
            walk.unmodelled = software.unmodelled;
            walk.trace.push(Step::HandedOver(handover));
            walk.trace.extend(software.trace);
        }
        walk
    }

    /// Copies that left, those of hardware first.
    pub fn deliveries(&self) -> impl Iterator<Item = &(Ifindex, Frame)> {
        let software = self.software.iter().flat_map(|(_, walk)| &walk.deliveries);
        self.hardware.deliveries.iter().chain(software)
    }

    /// What could not be told, in either stage.
    pub fn unmodelled(&self) -> Option<&Unmodelled> {
        let software = self.software.as_ref().and_then(|(_, walk)| walk.unmodelled.as_ref());
        self.hardware.unmodelled.as_ref().or(software)
    }
}

/// Walks `frame` through the rules of `hook` that `in_hw` says hardware holds (never one of
/// [`Offload::SkipHw`]), as the hardware of `profile` executes them, and what it hands over
/// through those that run in software.
pub fn walk_two_stage<'r>(
    rules: impl IntoIterator<Item = &'r Rule>,
    in_hw: impl Fn(&Rule) -> bool,
    profile: &Profile,
    hook: Hook,
    frame: &Frame,
) -> TwoStageWalk {
    let rules: Vec<&Rule> = rules.into_iter().filter(|rule| rule.hook() == hook).collect();
    let held = rules.iter().copied();
    let held = held.filter(|rule| rule.offload() != Offload::SkipHw && in_hw(rule));
    let (hardware, handover) = profile.execute(&Chains::of(held, hook), frame);
    let software = handover.map(|handover| {
        let run = rules.iter().copied().filter(|rule| rule.offload() != Offload::SkipSw);
        let passage = Chains::of(run, hook).walk(handover.chain, handover.frame.clone());
        (handover, passage.walk)
    });
    TwoStageWalk { hardware, software }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{chain, frames, hook, ifindex, mac, prio, rules};
    use crate::frame::Tag;
    use crate::ident::{EtherType, VlanTpid};
    use crate::key::Match;
    use crate::profile::{Eswitch, Ice, Mlx5};
    use crate::set::RuleSet;
    use crate::walk::walk;

    const ETHERTYPE: EtherType = EtherType::ARP;

    fn eswitch() -> Eswitch {
        Eswitch::new(ifindex(1), [ifindex(7), ifindex(11), ifindex(12)])
    }

    fn profiles() -> [Profile; 3] {
        [Profile::AcceptAll, Profile::Mlx5(Mlx5::new(eswitch())), Profile::Ice(Ice::new(eswitch()))]
    }

    fn frame() -> Frame {
        Frame::opaque(mac(2), mac(1), ETHERTYPE)
    }

    fn rule(at: u32, at_prio: u16, matching: Match, actions: &[Action]) -> Rule {
        Rule::new(hook(), chain(at), prio(at_prio), matching, actions).unwrap()
    }

    /// The frame's way where hardware holds the rules at these places.
    fn meet(rules: &[Rule], in_hw: &[usize], profile: &Profile) -> TwoStageWalk {
        let held: BTreeSet<&Rule> = in_hw.iter().map(|at| &rules[*at]).collect();
        walk_two_stage(rules, |rule| held.contains(rule), profile, hook(), &frame())
    }

    fn to(number: u32) -> Action {
        Action::Redirect(ifindex(number))
    }

    #[test]
    fn what_hardware_finished_is_not_seen_by_software() {
        let rules = [rule(0, 1, Match::any(), &[to(11)]), rule(0, 2, Match::any(), &[to(12)])];
        for profile in profiles() {
            let walk = meet(&rules, &[0], &profile);
            assert_eq!(walk.hardware.deliveries, [(ifindex(11), frame())]);
            assert_eq!(walk.software, None);
        }
    }

    #[test]
    fn a_lower_rule_in_hardware_takes_the_frames_of_a_higher_one_that_was_refused() {
        let spoofed = rule(0, 1, Match::ethertype(ETHERTYPE), &[Action::Drop]);
        let rules = [spoofed, rule(0, 2, Match::any(), &[to(11)])];
        assert!(meet(&rules, &[], &Profile::AcceptAll).together().dropped);
        for profile in profiles() {
            assert_eq!(meet(&rules, &[1], &profile).deliveries().count(), 1);
        }
    }

    #[test]
    fn after_a_miss_mlx5_goes_on_in_that_chain_and_ice_from_the_start() {
        let rules = [
            rule(0, 1, Match::any().src(mac(1)), &[Action::Goto(chain(2))]),
            rule(2, 1, Match::any().src(mac(9)), &[to(12)]),
            rule(2, 2, Match::any(), &[to(11)]),
        ];
        let mlx5 = meet(&rules, &[0, 1], &profiles()[1]);
        let (handover, software) = mlx5.software.unwrap();
        assert_eq!((handover.why, handover.chain), (Why::Miss(chain(2)), chain(2)));
        assert_eq!(software.trace.len(), 2);
        assert_eq!(software.deliveries, [(ifindex(11), frame())]);

        let ice = meet(&rules, &[1], &profiles()[2]);
        let (handover, software) = ice.software.unwrap();
        assert_eq!((handover.why, handover.chain), (Why::Miss(chain(0)), chain(0)));
        assert_eq!(software.deliveries, [(ifindex(11), frame())]);
    }

    #[test]
    fn a_trap_in_hardware_brings_the_frame_to_software() {
        let trap = rule(0, 1, Match::ethertype(ETHERTYPE), &[Action::Trap]);
        let trap = trap.with_offload(Offload::SkipSw);
        let rules = [trap, rule(0, 2, Match::any(), &[to(11)])];
        for profile in &profiles()[..2] {
            let walk = meet(&rules, &[0, 1], profile);
            assert_eq!(walk.hardware.deliveries, []);
            let (handover, software) = walk.software.unwrap();
            assert_eq!(handover.why, Why::Trap);
            assert_eq!(software.deliveries, [(ifindex(11), frame())]);
        }
    }

    #[test]
    fn a_trap_that_stands_in_software_too_consumes_what_it_trapped() {
        let rules = [rule(0, 1, Match::any(), &[Action::Trap])];
        let walk = meet(&rules, &[0], &Profile::AcceptAll);
        assert!(!walk.hardware.dropped);
        assert!(walk.together().dropped);
    }

    #[test]
    fn a_rule_for_software_only_is_never_in_hardware_whatever_is_said_of_it() {
        let rules = [rule(0, 1, Match::any(), &[Action::Drop]).with_offload(Offload::SkipHw)];
        let walk = meet(&rules, &[0], &Profile::AcceptAll);
        assert!(!walk.hardware.dropped);
        assert!(walk.software.unwrap().1.dropped);
    }

    #[test]
    fn gotos_are_counted_anew_in_software() {
        let path = |from: u32, to: u32| {
            (from..to).map(|at| rule(at, 1, Match::any(), &[Action::Goto(chain(at + 1))]))
        };
        let mut rules: Vec<Rule> = path(0, 30).collect();
        rules.push(rule(30, 1, Match::any(), &[to(11)]));
        assert!(walk(&rules, hook(), &frame()).dropped);
        let in_hw: Vec<usize> = (0..15).collect();
        let walk = meet(&rules, &in_hw, &Profile::AcceptAll).together();
        assert_eq!(walk.deliveries.len(), 1);
        assert!(walk.trace.iter().any(|step| matches!(step, Step::HandedOver(_))));
    }

    fn fate(walk: Walk) -> (Vec<(Ifindex, Frame)>, Option<Frame>, bool) {
        (walk.deliveries, walk.to_host, walk.dropped)
    }

    fn set_of(rules: Vec<Rule>, wanted: impl Fn(&Rule) -> bool) -> RuleSet {
        let mut set = RuleSet::new();
        for rule in rules.into_iter().filter(wanted) {
            let _ = set.insert(rule);
        }
        set
    }

    proptest! {
        #[test]
        fn with_nothing_in_hardware_two_stages_are_the_plain_walk(
            rules in prop::collection::vec(rules(), 0..40), frame in frames(),
        ) {
            let set = set_of(rules, |_| true);
            for profile in profiles() {
                let two = walk_two_stage(&set, |_| false, &profile, hook(), &frame);
                prop_assert_eq!(fate(two.together()), fate(walk(&set, hook(), &frame)));
            }
        }

        #[test]
        fn with_everything_in_ideal_hardware_two_stages_are_the_plain_walk(
            rules in prop::collection::vec(rules(), 0..40), frame in frames(),
        ) {
            // A trap is the one rule that software and hardware carry out differently.
            let set = set_of(rules, |rule| {
                rule.offload() == Offload::Auto && !rule.actions().contains(&Action::Trap)
            });
            let two = walk_two_stage(&set, |_| true, &Profile::AcceptAll, hook(), &frame);
            prop_assert_eq!(fate(two.together()), fate(walk(&set, hook(), &frame)));
        }

        #[test]
        fn a_frame_has_one_end_in_two_stages_too(
            rules in prop::collection::vec((rules(), any::<bool>()), 0..40), frame in frames(),
        ) {
            let held: BTreeSet<Rule> =
                rules.iter().filter(|(_, held)| *held).map(|(rule, _)| rule.clone()).collect();
            let set = set_of(rules.into_iter().map(|(rule, _)| rule).collect(), |_| true);
            for profile in profiles() {
                let in_hw = |rule: &Rule| held.contains(rule) && profile.accepts(rule).is_ok();
                let walk = walk_two_stage(&set, in_hw, &profile, hook(), &frame).together();
                let redirected = walk.trace.iter().any(|step| {
                    matches!(step, Step::Did(Action::Redirect(_)))
                });
                let ends = usize::from(redirected) + usize::from(walk.dropped)
                    + usize::from(walk.to_host.is_some())
                    + usize::from(walk.unmodelled.is_some());
                prop_assert_eq!(ends, 1, "{:#?}", walk);
            }
        }
    }

    #[test]
    fn what_hardware_changed_software_sees_changed() {
        let push = Action::VlanPush { tpid: VlanTpid::Dot1Q, vid: crate::arbitrary::vid(5) };
        let rules = [
            rule(0, 1, Match::any(), &[push, Action::Goto(chain(1))]),
            rule(1, 1, Match::tagged(VlanTpid::Dot1Q), &[to(11)]),
        ];
        let tag = Tag::new(VlanTpid::Dot1Q, crate::arbitrary::vid(5));
        for profile in &profiles()[..2] {
            let walk = meet(&rules, &[0], profile);
            assert_eq!(walk.together().deliveries, [(ifindex(11), frame().within(tag))]);
        }
    }
}
