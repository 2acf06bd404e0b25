//! What has to change: from what is installed and what is wanted to an ordered list of single
//! changes.
//!
//! In come two maps by identity, out go operations in an order in which, as far as single changes
//! allow, no frame is lost on the way: destinations before what leads to them, new before old, an
//! admission gone before what it led to. Pure: no kernel here.

use std::collections::{BTreeMap, BTreeSet};

use crate::ident::{Handle, Hook};
use crate::kernel::{Dump, HwState, Outcome, OwnRule, RuleLocation};
use crate::rule::{Rule, RuleId, Slot};
use crate::set::RuleSet;

/// One single change of a kernel's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Installs a rule under a handle that is free.
    Add {
        /// The rule.
        rule: Rule,
        /// Its handle.
        handle: Handle,
    },
    /// Puts a rule in the place of the one with the same identity, without a moment of neither.
    Replace {
        /// The rule as it shall be.
        rule: Rule,
        /// The handle that it has and keeps.
        handle: Handle,
    },
    /// Takes a rule out.
    Delete {
        /// The rule's identity.
        id: RuleId,
        /// Its handle.
        handle: Handle,
    },
}

impl Op {
    /// Takes out a rule of which only the place is known ([`crate::Dump::unreadable_own`]).
    pub fn delete_at(location: RuleLocation, handle: Handle) -> Op {
        Op::Delete { id: RuleId::at(location), handle }
    }

    /// Identity of the rule that the change is about.
    pub const fn id(&self) -> &RuleId {
        match self {
            Op::Add { rule, .. } | Op::Replace { rule, .. } => rule.id(),
            Op::Delete { id, .. } => id,
        }
    }

    /// Handle of the rule that the change is about.
    pub const fn handle(&self) -> Handle {
        match self {
            Op::Add { handle, .. } | Op::Replace { handle, .. } | Op::Delete { handle, .. } => {
                *handle
            }
        }
    }
}

/// A rule that a kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledRule {
    /// The rule.
    pub rule: Rule,
    /// Its handle.
    pub handle: Handle,
    /// Whether hardware executes it.
    pub hw: HwState,
}

/// The rules of one owner that a kernel holds, as far as the owner knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    rules: BTreeMap<RuleId, InstalledRule>,
    unreadable: BTreeMap<(Slot, Handle), RuleLocation>,
    handles: BTreeMap<Slot, BTreeSet<u32>>,
}

impl Installed {
    /// Nothing installed.
    pub fn new() -> Installed {
        Installed::default()
    }

    /// Notes what a dump shows of the owner: its rules, and those that must go because they cannot
    /// be read.
    pub fn adopt(&mut self, dump: &Dump) {
        for OwnRule { rule, handle, hw, .. } in &dump.own {
            self.insert(rule.clone(), *handle, hw.clone());
        }
        for (location, handle) in &dump.unreadable_own {
            self.insert_unreadable(*location, *handle);
        }
    }

    /// Notes a rule of which only the place is known: [`diff`] deletes it before all else.
    pub fn insert_unreadable(&mut self, location: RuleLocation, handle: Handle) {
        self.unreadable.insert((location.slot(), handle), location);
        self.handles.entry(location.slot()).or_default().insert(handle.0);
    }

    /// Forgets everything at a hook: its qdisc or interface is gone, or a new dump follows.
    pub fn remove_hook(&mut self, hook: Hook) {
        self.rules.retain(|id, _| id.hook() != hook);
        self.unreadable.retain(|(slot, _), _| slot.hook != hook);
        self.handles.retain(|slot, _| slot.hook != hook);
    }

    /// Notes a rule, in the place of one with the same identity.
    pub fn insert(&mut self, rule: Rule, handle: Handle, hw: HwState) {
        let slot = rule.id().slot();
        let id = rule.id().clone();
        if let Some(old) = self.rules.insert(id, InstalledRule { rule, handle, hw }) {
            self.free(slot, old.handle);
        }
        self.handles.entry(slot).or_default().insert(handle.0);
    }

    /// Forgets a rule.
    pub fn remove(&mut self, id: &RuleId) -> Option<InstalledRule> {
        let gone = self.rules.remove(id)?;
        self.free(id.slot(), gone.handle);
        Some(gone)
    }

    /// Notes what became of a change. After [`Outcome::Refused`] and [`Outcome::Unknown`] nothing
    /// is noted: the former changed nothing, the latter needs a dump.
    pub fn record(&mut self, op: &Op, outcome: &Outcome) {
        let hw = match outcome {
            Outcome::Installed => HwState::NotAsked,
            Outcome::InHw => HwState::InHw,
            Outcome::NotInHw { reason } => HwState::NotInHw(reason.clone()),
            Outcome::Deleted => {
                let slot = op.id().slot();
                if self.unreadable.remove(&(slot, op.handle())).is_some() {
                    self.free(slot, op.handle());
                } else {
                    self.remove(op.id());
                }
                return;
            }
            Outcome::Refused { .. } | Outcome::Unknown => return,
        };
        if let Op::Add { rule, handle } | Op::Replace { rule, handle } = op {
            self.insert(rule.clone(), *handle, hw);
        }
    }

    /// The installed rule of this identity.
    pub fn get(&self, id: &RuleId) -> Option<&InstalledRule> {
        self.rules.get(id)
    }

    /// All installed rules, in order of identity.
    pub fn iter(&self) -> impl Iterator<Item = &InstalledRule> {
        self.rules.values()
    }

    /// How many rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether nothing is installed.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.unreadable.is_empty()
    }

    fn of_slot(&self, slot: Slot) -> impl Iterator<Item = &InstalledRule> {
        self.rules
            .range(RuleId::first_of_slot(slot)..)
            .map(|(_, installed)| installed)
            .take_while(move |installed| installed.rule.id().slot() == slot)
    }

    fn free(&mut self, slot: Slot, handle: Handle) {
        if let Some(used) = self.handles.get_mut(&slot) {
            used.remove(&handle.0);
            if used.is_empty() {
                self.handles.remove(&slot);
            }
        }
    }
}

/// The changes that make `installed` into `wanted`: none where nothing differs.
///
/// Rules are added and replaced first, those of higher-numbered chains before those of lower ones;
/// then rules are deleted, those of lower-numbered chains first. Where chain numbers rise along
/// every path, no prefix of the changes leaves a goto without a rule at its destination, nor an
/// admission without what it admits to. Rules that cannot be read go before all else. One exception: a prio that changes its protocol cannot
/// hold old and new rules at once, so its old rules go just before the first new one comes.
///
/// A new rule takes the lowest handle of its prio that no installed rule has, not even one that is
/// deleted by the same changes.
pub fn diff(installed: &Installed, wanted: &RuleSet) -> Vec<Op> {
    let mut come = Vec::new();
    let mut go = Vec::new();
    let mut olds = installed.rules.values().peekable();
    let mut news = wanted.iter().peekable();
    loop {
        match (olds.peek(), news.peek()) {
            (Some(old), Some(new)) if old.rule.id() == new.id() => {
                if old.rule != **new {
                    come.push((*new, Some(old.handle)));
                }
                olds.next();
                news.next();
            }
            (Some(old), Some(new)) if old.rule.id() < new.id() => {
                go.push(*old);
                olds.next();
            }
            (_, Some(new)) => {
                come.push((*new, None));
                news.next();
            }
            (Some(old), None) => {
                go.push(*old);
                olds.next();
            }
            (None, None) => break,
        }
    }
    // Stable: within a chain, over all hooks, the order of identity remains.
    come.sort_by_key(|(rule, _)| std::cmp::Reverse(rule.chain()));
    go.sort_by_key(|old| old.rule.chain());

    let mut ops = Vec::with_capacity(installed.unreadable.len() + come.len() + go.len());
    // They may have the keys of a rule that comes, which the kernel would then refuse.
    let unreadable = installed.unreadable.iter();
    ops.extend(unreadable.map(|((_, handle), location)| Op::delete_at(*location, *handle)));
    let mut handles = BTreeMap::new();
    let mut gone_early = BTreeSet::new();
    for (rule, held) in come {
        let slot = rule.id().slot();
        if let Some(handle) = held {
            ops.push(Op::Replace { rule: rule.clone(), handle });
            continue;
        }
        let free = handles.entry(slot).or_insert_with(|| {
            // First new rule of this prio: here its protocol may change.
            let protocol = rule.id().matching().protocol();
            let in_the_way = installed
                .of_slot(slot)
                .filter(|old| old.rule.id().matching().protocol() != protocol);
            for old in in_the_way {
                gone_early.insert(old.rule.id());
                ops.push(Op::Delete { id: old.rule.id().clone(), handle: old.handle });
            }
            FreeHandles::of(installed.handles.get(&slot))
        });
        ops.push(Op::Add { rule: rule.clone(), handle: free.take() });
    }
    let late = go.into_iter().filter(|old| !gone_early.contains(old.rule.id()));
    ops.extend(late.map(|old| Op::Delete { id: old.rule.id().clone(), handle: old.handle }));
    ops
}

/// The unused handles of one prio, from 1 upwards.
struct FreeHandles<'i> {
    next: u32,
    used: Option<&'i BTreeSet<u32>>,
}

impl<'i> FreeHandles<'i> {
    const fn of(used: Option<&'i BTreeSet<u32>>) -> FreeHandles<'i> {
        FreeHandles { next: 1, used }
    }

    fn take(&mut self) -> Handle {
        while self.used.is_some_and(|used| used.contains(&self.next)) {
            self.next += 1;
        }
        let handle = Handle(self.next);
        self.next += 1;
        handle
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{CHAINS, chain, hook, ifindex, mac, prio, rules, vid};
    use crate::fake::FakeKernel;
    use crate::ident::{ChainId, VlanTpid};
    use crate::kernel::{Kernel, Mode};
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
    fn compatible(rules: Vec<Rule>) -> RuleSet {
        let mut set = RuleSet::new();
        for rule in rules {
            let _ = set.insert(rule);
        }
        set
    }

    fn installed(set: &RuleSet) -> Installed {
        let mut installed = Installed::new();
        for op in diff(&Installed::new(), set) {
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
        assert_eq!(diff(&installed(&set), &set), []);
    }

    #[test]
    fn destinations_come_before_what_leads_to_them_and_go_after_it() {
        let admission = rule(0, 1, Match::any().src(mac(1)), goto(2));
        let middle = rule(2, 1, Match::any(), goto(3));
        let last = rule(3, 1, Match::any(), Action::Drop);
        let set = set([admission.clone(), middle.clone(), last.clone()]);
        let ids = |ops: Vec<Op>| ops.iter().map(|op| op.id().clone()).collect::<Vec<_>>();
        let there = ids(diff(&Installed::new(), &set));
        assert_eq!(there, [last.id().clone(), middle.id().clone(), admission.id().clone()]);
        let back = ids(diff(&installed(&set), &RuleSet::new()));
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
        let ops = diff(&held, &new);
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
        let ops = diff(&installed(&old), &new);
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
        kernel.apply(&diff(&Installed::new(), &wanted), Mode::Fast);
        kernel.remove_interface(to);
        kernel.set_interfaces([ifindex(7), to]);

        let dump = kernel.dump(hook()).unwrap();
        assert_eq!((dump.own.len(), dump.unreadable_own.len()), (0, 1));
        let mut held = Installed::new();
        held.adopt(&dump);
        let ops = diff(&held, &wanted);
        assert!(matches!(ops[..], [Op::Delete { .. }, Op::Add { .. }]));
        for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Told)) {
            assert!(outcome.is_done(), "{outcome:?}");
            held.record(op, &outcome);
        }
        assert_eq!(diff(&held, &wanted), []);
        assert_eq!(kernel.dump(hook()).unwrap().own.len(), 1);
    }

    fn sets() -> impl Strategy<Value = RuleSet> {
        prop::collection::vec(rules(), 0..40).prop_map(compatible)
    }

    /// A set with a rule for all in each chain, in the last prio, and chains whose prios keep
    /// their protocol: what a planner makes.
    fn well_ended() -> impl Strategy<Value = RuleSet> {
        sets().prop_map(|set| {
            let plain = set
                .iter()
                .filter(|rule| rule.id().matching().protocol() == crate::ident::ETH_P_ALL);
            let ends = (0..CHAINS).map(|at| rule(at, 9, Match::any(), Action::Drop));
            let mut out: RuleSet = compatible(plain.cloned().collect());
            for end in ends {
                out.insert(end).unwrap();
            }
            // A chain that nothing leads to goes as a whole, so that chains come and go.
            let led_to: BTreeSet<ChainId> = out.iter().filter_map(Rule::goto_target).collect();
            compatible(
                out.iter()
                    .filter(|rule| rule.chain() == ChainId::ZERO || led_to.contains(&rule.chain()))
                    .cloned()
                    .collect(),
            )
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
                let ops = diff(&held, wanted);
                for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Told)) {
                    // The fake driver takes no rule.
                    let skip_sw = matches!(op, Op::Add { rule, .. } | Op::Replace { rule, .. }
                        if rule.offload() == crate::Offload::SkipSw);
                    prop_assert_eq!(outcome.is_done(), !skip_sw, "{:?}: {:?}", op, outcome);
                    held.record(op, &outcome);
                }
                let missing = diff(&held, wanted);
                let only_skip_sw = missing.iter().all(|op| matches!(op,
                    Op::Add { rule, .. } | Op::Replace { rule, .. }
                        if rule.offload() == crate::Offload::SkipSw));
                prop_assert!(only_skip_sw, "{:?}", missing);
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
                for op in diff(&held, wanted) {
                    let outcome = kernel.apply(std::slice::from_ref(&op), Mode::Told);
                    prop_assert_eq!(&outcome[0].is_done(), &true);
                    held.record(&op, &outcome[0]);
                    prop_assert!(gotos_have_targets(&kernel), "after {:?}", op);
                }
            }
            prop_assert!(kernel.rules().eq(new.iter()));
        }
    }
}
