//! What `diff` does, by example and against the fake kernel.

use proptest::prelude::*;

use super::*;
use crate::action::Action;
use crate::arbitrary::{CHAINS, chain, hook, ifindex, mac, prio, rules, vid};
use crate::fake::FakeKernel;
use crate::ident::{ChainId, Mac, VlanTpid};
use crate::kernel::{Kernel, Mode, Outcome};
use crate::key::Match;
use crate::rule::Owner;

fn rule(at: u32, at_prio: u16, matching: Match, action: Action) -> Rule {
    Rule::new(hook(), chain(at), prio(at_prio), matching, [action]).unwrap()
}

fn set(rules: impl IntoIterator<Item = Rule>) -> RuleSet {
    let mut set = RuleSet::new();
    for rule in rules {
        set.insert(rule).unwrap();
    }
    set
}

/// Whatever of these can stand together.
pub(super) fn compatible(rules: impl IntoIterator<Item = Rule>) -> RuleSet {
    let mut set = RuleSet::new();
    for rule in rules {
        let _ = set.insert(rule);
    }
    set
}

/// All of a set, installed.
pub(super) fn installed(set: &RuleSet) -> Installed {
    let mut installed = Installed::new();
    for op in diff(&Installed::new(), set).ops {
        installed.record(&op, &Outcome::InHw);
    }
    installed
}

fn goto(to: u32) -> Action {
    Action::Goto(chain(to))
}

#[test]
fn nothing_changes_where_nothing_differs() {
    let set = set([
        rule(0, 1, Match::any().src(mac(1)), goto(2)),
        rule(2, 1, Match::any(), Action::Drop),
    ]);
    assert_eq!(diff(&installed(&set), &set).ops, []);
}

#[test]
fn destinations_come_before_what_leads_to_them_and_go_after_it() {
    let admission = rule(0, 1, Match::any().src(mac(1)), goto(2));
    let middle = rule(2, 1, Match::any(), goto(3));
    let last = rule(3, 1, Match::any(), Action::Drop);
    let set = set([admission.clone(), middle.clone(), last.clone()]);
    let ids = |ops: Vec<Op>| ops.iter().map(|op| op.id().clone()).collect::<Vec<_>>();
    let there = ids(diff(&Installed::new(), &set).ops);
    assert_eq!(there, [last.id().clone(), middle.id().clone(), admission.id().clone()]);
    let back = ids(diff(&installed(&set), &RuleSet::new()).ops);
    assert_eq!(back, [admission.id().clone(), middle.id().clone(), last.id().clone()]);
}

#[test]
fn a_rule_whose_actions_change_is_replaced_under_its_handle_before_anything_goes() {
    let old = set([
        rule(0, 1, Match::any().src(mac(1)), goto(2)),
        rule(0, 1, Match::any().src(mac(2)), goto(2)),
        rule(2, 1, Match::any(), Action::Drop),
    ]);
    let replaced = rule(0, 1, Match::any().src(mac(2)), goto(3));
    let new = set([replaced.clone(), rule(3, 1, Match::any(), Action::Drop)]);
    let held = installed(&old);
    let handle = held.get(replaced.id()).unwrap().handle;
    let ops = diff(&held, &new).ops;
    assert!(matches!(&ops[0], Op::Add { rule, .. } if rule.chain() == chain(3)));
    assert_eq!(ops[1], Op::Replace { rule: replaced, handle });
    assert!(matches!(&ops[2], Op::Delete { id, .. } if id.chain() == ChainId::ZERO));
    assert!(matches!(&ops[3], Op::Delete { id, .. } if id.chain() == chain(2)));
    assert_eq!(ops.len(), 4);
}

#[test]
fn a_new_rule_takes_the_lowest_handle_that_even_a_rule_that_goes_does_not_have() {
    let old = set((1..=3).map(|n| rule(0, 1, Match::any().src(mac(n)), Action::Drop)));
    let mut held = installed(&old);
    held.remove(rule(0, 1, Match::any().src(mac(2)), Action::Drop).id());
    let new = set((7..=8).map(|n| rule(0, 1, Match::any().src(mac(n)), Action::Drop)));
    let handles: Vec<u32> = diff(&held, &new)
        .ops
        .iter()
        .filter(|op| matches!(op, Op::Add { .. }))
        .map(|op| op.handle().0)
        .collect();
    assert_eq!(handles, [2, 4]);
}

#[test]
fn handles_are_counted_for_each_prio_apart() {
    let set = set([
        rule(0, 1, Match::any().src(mac(1)), Action::Drop),
        rule(0, 2, Match::any(), Action::Drop),
        rule(1, 1, Match::any(), Action::Drop),
    ]);
    assert!(installed(&set).iter().all(|rule| rule.handle == Handle(1)));
}

#[test]
fn a_prio_that_changes_its_protocol_is_emptied_just_before_its_new_rules_come() {
    let tagged = Match::vlan(VlanTpid::Dot1Q, vid(5));
    let old = set([rule(1, 1, Match::any(), Action::Drop)]);
    let new = set([rule(1, 1, tagged, Action::Drop), rule(2, 1, Match::any(), Action::Drop)]);
    let ops = diff(&installed(&old), &new).ops;
    assert!(matches!(&ops[0], Op::Add { rule, .. } if rule.chain() == chain(2)));
    assert!(matches!(&ops[1], Op::Delete { .. }));
    assert!(matches!(&ops[2], Op::Add { handle: Handle(2), .. }));
    assert_eq!(ops.len(), 3);
}

#[test]
fn a_rule_whose_destination_vanished_is_written_anew() {
    let owner = Owner(*b"test");
    let mut kernel = FakeKernel::new(owner);
    let to = ifindex(11);
    kernel.set_interfaces([ifindex(7), to]);
    kernel.ensure_hook(hook()).unwrap();
    let wanted = set([rule(0, 1, Match::any(), Action::Redirect(to))]);
    kernel.apply(&diff(&Installed::new(), &wanted).ops, Mode::Fast);
    kernel.remove_interface(to);
    kernel.set_interfaces([ifindex(7), to]);

    let dump = kernel.dump(hook()).unwrap();
    assert_eq!((dump.own.len(), dump.unreadable_own.len()), (0, 1));
    let mut held = Installed::new();
    held.adopt(&dump);
    let ops = diff(&held, &wanted).ops;
    assert!(matches!(ops[..], [Op::Delete { .. }, Op::Add { .. }]));
    for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Told)) {
        assert!(outcome.is_done(), "{outcome:?}");
        held.record(op, &outcome);
    }
    assert_eq!(diff(&held, &wanted).ops, []);
    assert_eq!(kernel.dump(hook()).unwrap().own.len(), 1);
}

fn sets() -> impl Strategy<Value = RuleSet> {
    prop::collection::vec(rules(), 0..40).prop_map(compatible)
}

/// A set with a rule for all in each chain, in the last prio, and chains whose prios keep
/// their protocol: what a planner makes.
fn well_ended() -> impl Strategy<Value = RuleSet> {
    sets().prop_map(|set| {
        let plain =
            set.iter().filter(|rule| rule.id().matching().protocol() == crate::ident::ETH_P_ALL);
        let ends = (0..CHAINS).map(|at| rule(at, 9, Match::any(), Action::Drop));
        let mut out: RuleSet = compatible(plain.cloned());
        for end in ends {
            out.insert(end).unwrap();
        }
        // A chain that nothing leads to goes as a whole, so that chains come and go.
        let led_to: BTreeSet<ChainId> = out.iter().filter_map(Rule::goto_target).collect();
        let met = |rule: &&Rule| rule.chain() == ChainId::ZERO || led_to.contains(&rule.chain());
        compatible(out.iter().filter(met).cloned())
    })
}

fn gotos_have_targets(kernel: &FakeKernel) -> bool {
    let chains: BTreeSet<ChainId> = kernel.rules().map(Rule::chain).collect();
    kernel.rules().filter_map(Rule::goto_target).all(|to| chains.contains(&to))
}

proptest! {
    #[test]
    fn the_changes_lead_to_the_wanted_set_and_then_there_are_none(
        old in sets(), new in sets(),
    ) {
        let mut kernel = FakeKernel::new(Owner(*b"test"));
        kernel.ensure_hook(hook()).unwrap();
        let mut held = Installed::new();
        for wanted in [&old, &new] {
            let ops = diff(&held, wanted).ops;
            for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Told)) {
                // The fake driver takes no rule.
                let skip_sw = matches!(op, Op::Add { rule, .. } | Op::Replace { rule, .. }
                    if rule.offload() == crate::Offload::SkipSw);
                prop_assert_eq!(outcome.is_done(), !skip_sw, "{:?}: {:?}", op, outcome);
                held.record(op, &outcome);
            }
            let is_held = |rule: &&Rule| held.get(rule.id()).is_some_and(|h| h.rule == **rule);
            let lacking: Vec<&Rule> = wanted.iter().filter(|rule| !is_held(rule)).collect();
            let skip_sw = |rule: &&Rule| rule.offload() == crate::Offload::SkipSw;
            prop_assert!(lacking.iter().all(skip_sw), "{:?}", lacking);
            prop_assert!(held.of_hook(hook()).all(|held| wanted.contains(held.rule.id())));
            prop_assert!(!lacking.is_empty() || diff(&held, wanted).ops.is_empty());
        }
        let mut adopted = Installed::new();
        adopted.adopt(&kernel.dump(hook()).unwrap());
        prop_assert_eq!(adopted, held);
    }

    #[test]
    fn at_no_prefix_does_a_goto_lead_into_nothing(old in well_ended(), new in well_ended()) {
        let mut kernel = FakeKernel::new(Owner(*b"test"));
        kernel.set_driver(|_| Ok(()));
        kernel.ensure_hook(hook()).unwrap();
        let mut held = Installed::new();
        for wanted in [&old, &new] {
            for op in diff(&held, wanted).ops {
                let outcome = kernel.apply(std::slice::from_ref(&op), Mode::Told);
                prop_assert_eq!(&outcome[0].is_done(), &true);
                held.record(&op, &outcome[0]);
                prop_assert!(gotos_have_targets(&kernel), "after {:?}", op);
            }
        }
        prop_assert!(kernel.rules().eq(new.iter()));
    }
}

/// Two rules of `at` exchange their prios and so the protocols of these: frames from guest 1 go to
/// interface 11 and tagged ones end here, before and after.
fn exchange(at: u32, first: u16) -> [[Rule; 2]; 2] {
    let from_1 = |p| rule(at, p, Match::any().src(mac(1)), Action::Redirect(ifindex(11)));
    let tagged = |p| rule(at, p, Match::vlan(VlanTpid::Dot1Q, vid(5)), Action::Drop);
    [[from_1(first), tagged(first + 1)], [tagged(first), from_1(first + 1)]]
}

fn plan(old: &[Rule], new: &[Rule]) -> Plan {
    diff(&installed(&set(old.iter().cloned())), &set(new.iter().cloned()))
}

#[test]
fn where_no_order_exists_the_rule_that_leads_there_is_led_to_a_copy_and_back() {
    let enters = rule(0, 1, Match::any(), goto(2));
    let [[a, b], [c, d]] = exchange(2, 1);
    let plan =
        plan(&[enters.clone(), a.clone(), b.clone()], &[enters.clone(), c.clone(), d.clone()]);
    assert_eq!(plan.gaps, []);
    let put = |op: &Op| match op {
        Op::Add { rule, .. } | Op::Replace { rule, .. } => Some(rule.to_string()),
        Op::Delete { .. } => None,
    };
    let seen: Vec<Option<String>> = plan.ops.iter().map(put).collect();
    let at = |rule: &Rule| Some(rule.to_string());
    let copy = |rule: &Rule| {
        let id = rule.id();
        let copy = Rule::new(hook(), chain(3), id.prio(), id.matching().clone(), rule.actions());
        Some(copy.unwrap().to_string())
    };
    let led = rule(0, 1, Match::any(), goto(3));
    assert_eq!(seen[..3], [copy(&c), copy(&d), at(&led)]);
    assert_eq!(seen[3..7].iter().flatten().count(), 2);
    assert_eq!(seen[7..], [at(&enters), None, None]);
}

#[test]
fn where_no_order_exists_in_the_first_chain_all_frames_are_led_to_a_copy_and_back() {
    let [old, new] = exchange(0, 2);
    let plan = plan(&old, &new);
    assert_eq!(plan.gaps, []);
    let switch = rule(0, 1, Match::any(), goto(1));
    assert!(matches!(&plan.ops[2], Op::Add { rule, .. } if *rule == switch));
    assert!(matches!(&plan.ops[7], Op::Delete { id, .. } if id == switch.id()));
    assert_eq!(plan.ops.len(), 10);
}

#[test]
fn a_gap_is_named_where_no_prio_is_before_all_others() {
    let [old, new] = exchange(0, 1);
    let plan = plan(&old, &new);
    assert_eq!(plan.ops.len(), 4);
    let [gap] = &plan.gaps[..] else { panic!("{:?}", plan.gaps) };
    assert_eq!((gap.hook, gap.rules.len()), (hook(), 4));
    assert_eq!(gap.reason, GapReason::NoPrioBelow { chain: ChainId::ZERO });
    assert_eq!(
        gap.to_string(),
        "dev if7 ingress: no gapless order of changes to 4 rules in chain 0: \
         no prio is free before the first of chain 0"
    );
}

#[test]
fn a_gap_is_named_where_a_frame_would_meet_one_goto_too_many() {
    let path = |gotos: u32| {
        let ends = rule(gotos, 1, Match::any(), Action::Drop);
        let enters = rule(0, 9, Match::any().src(mac(2)), goto(1));
        let steps = (1..gotos).map(|at| rule(at, 1, Match::any(), goto(at + 1)));
        steps.chain([enters, ends]).collect::<Vec<_>>()
    };
    let [old, new] = exchange(0, 2);
    let gaps =
        |gotos| plan(&[&old[..], &path(gotos)].concat(), &[&new[..], &path(gotos)].concat()).gaps;
    assert_eq!(gaps(15), []);
    assert_eq!(gaps(16)[0].reason, GapReason::TooManyGotos);
}

#[test]
fn a_gap_is_named_where_no_chain_numbers_are_left() {
    let last = (1 << 28) - 1;
    let far = |to: u32| {
        [
            rule(0, 9, Match::any(), goto(to)),
            rule(to, 1, Match::any(), Action::Redirect(ifindex(12))),
        ]
    };
    let [old, new] = exchange(0, 2);
    let gaps = |to| plan(&[&old[..], &far(to)].concat(), &[&new[..], &far(to)].concat()).gaps;
    assert_eq!(gaps(last - 2), []);
    assert_eq!(gaps(last - 1)[0].reason, GapReason::NoChainLeft);
}

#[test]
fn a_hook_where_nothing_differs_is_left_alone() {
    let elsewhere = |prio_of_any| {
        let hook = Hook::egress(ifindex(9));
        Rule::new(hook, chain(0), prio(prio_of_any), Match::any(), [Action::Drop]).unwrap()
    };
    let here = rule(0, 1, Match::any(), Action::Drop);
    let plan = plan(&[here.clone(), elsewhere(1)], &[here, elsewhere(2)]);
    assert_eq!(plan.ops.len(), 2);
    assert!(plan.ops.iter().all(|op| op.id().hook() == Hook::egress(ifindex(9))));
}

#[test]
fn one_more_receiver_among_many_costs_one_change_for_each_rule_that_differs() {
    let group = Mac([1, 0, 0, 0, 0, 0]);
    let switch = |receivers: u32, first_floods: u32, then_floods: u32| {
        let to = |n: u32| Mac([2, 1, 0, 0, (n >> 8) as u8, n as u8]);
        let senders = (0..50).map(|n| rule(0, 6, Match::any().src(mac(n)), goto(8)));
        let known = (0..receivers)
            .map(|n| rule(8, 1, Match::any().dst(to(n)), Action::Redirect(ifindex(20 + n))));
        let flood = |at, matching, ports: std::ops::Range<u32>, end| {
            let copies = ports.map(|n| Action::Mirror(ifindex(20 + n)));
            let actions: Vec<Action> = copies.chain([end]).collect();
            Rule::new(hook(), chain(at), prio(2), matching, actions).unwrap()
        };
        let (all, groups) = (Match::any(), Match::any().dst_masked(group, group));
        let rest = [
            rule(0, 7, Match::any(), Action::Drop),
            rule(8, 3, Match::any(), Action::Redirect(ifindex(10))),
            flood(8, groups, 0..first_floods, goto(9)),
            flood(9, all, first_floods..then_floods, Action::Redirect(ifindex(10))),
        ];
        set(senders.chain(known).chain(rest))
    };
    let changes = |old: &RuleSet, new: &RuleSet| {
        let plan = diff(&installed(old), new);
        assert_eq!(plan.gaps, []);
        plan.ops.len()
    };
    let before = switch(2000, 20, 40);
    assert_eq!(changes(&before, &switch(2001, 20, 41)), 2);
    // One that goes from the second rule to the first would get a frame twice or not at all: the
    // second rule's copy is led to first.
    assert_eq!(changes(&before, &switch(2001, 21, 41)), 3 + 3);
}
