//! What a kernel holds of one owner's rules, as far as the owner knows.
//!
//! In come dumps and outcomes of changes, out go rules by identity with their handles. No kernel
//! here, and no idea of what should be.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::Op;
use crate::ident::{ChainId, Handle, Hook, Prio};
use crate::kernel::{Dump, HwState, Outcome, OwnRule, RuleLocation};
use crate::rule::{Rule, RuleId, Slot};

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

/// An installed rule in the order of its identity, which so stands in the index once only.
#[derive(Clone, Debug)]
struct ById(InstalledRule);

impl Borrow<RuleId> for ById {
    fn borrow(&self) -> &RuleId {
        self.0.rule.id()
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &ById) -> bool {
        self.0.rule.id() == other.0.rule.id()
    }
}

impl Eq for ById {}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &ById) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ById {
    fn cmp(&self, other: &ById) -> Ordering {
        self.0.rule.id().cmp(other.0.rule.id())
    }
}

/// The rules of one owner that a kernel holds, as far as the owner knows.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    rules: BTreeSet<ById>,
    unreadable: BTreeMap<(Slot, Handle), RuleLocation>,
    handles: BTreeMap<Slot, BTreeSet<u32>>,
}

impl PartialEq for Installed {
    fn eq(&self, other: &Installed) -> bool {
        self.iter().eq(other.iter())
            && self.unreadable == other.unreadable
            && self.handles == other.handles
    }
}

impl Eq for Installed {}

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
        let ids: Vec<RuleId> = self.of_hook(hook).map(|held| held.rule.id().clone()).collect();
        for id in &ids {
            self.rules.remove(id);
        }
        self.unreadable.retain(|(slot, _), _| slot.hook != hook);
        let first = Slot { hook, chain: ChainId::ZERO, prio: Prio::FIRST };
        let of_hook = self.handles.range(first..).take_while(|(slot, _)| slot.hook == hook);
        let slots: Vec<Slot> = of_hook.map(|(slot, _)| *slot).collect();
        for slot in slots {
            self.handles.remove(&slot);
        }
    }

    /// Notes a rule, in the place of one with the same identity.
    pub fn insert(&mut self, rule: Rule, handle: Handle, hw: HwState) {
        let slot = rule.id().slot();
        if let Some(ById(old)) = self.rules.replace(ById(InstalledRule { rule, handle, hw })) {
            self.free(slot, old.handle);
        }
        self.handles.entry(slot).or_default().insert(handle.0);
    }

    /// Forgets a rule.
    pub fn remove(&mut self, id: &RuleId) -> Option<InstalledRule> {
        let ById(gone) = self.rules.take(id)?;
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
        self.rules.get(id).map(|ById(held)| held)
    }

    /// All installed rules, in order of identity.
    pub fn iter(&self) -> impl Iterator<Item = &InstalledRule> {
        self.rules.iter().map(|ById(held)| held)
    }

    /// The installed rules of a hook, in order of identity.
    pub fn of_hook(&self, hook: Hook) -> impl Iterator<Item = &InstalledRule> {
        let all = self.rules.range::<RuleId, _>(RuleId::first_of(hook)..);
        all.map(|ById(held)| held).take_while(move |held| held.rule.id().hook() == hook)
    }

    /// How many rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether nothing is installed.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.unreadable.is_empty()
    }

    /// The hooks that hold something, in order.
    pub fn hooks(&self) -> impl Iterator<Item = Hook> {
        let mut next = self.handles.keys().next().map(|slot| slot.hook);
        std::iter::from_fn(move || {
            let hook = next?;
            let last = Slot { hook, chain: ChainId::MAX, prio: Prio::LAST };
            let after = (Bound::Excluded(last), Bound::Unbounded);
            next = self.handles.range(after).next().map(|(slot, _)| slot.hook);
            Some(hook)
        })
    }

    /// Rules of a hook of which only the place is known.
    pub(super) fn unreadable(&self, hook: Hook) -> impl Iterator<Item = (RuleLocation, Handle)> {
        let first = Slot { hook, chain: ChainId::ZERO, prio: Prio::FIRST };
        let of_hook = self.unreadable.range((first, Handle(0))..);
        let of_hook = of_hook.take_while(move |((slot, _), _)| slot.hook == hook);
        of_hook.map(|((_, handle), location)| (*location, *handle))
    }

    /// The handles of a slot that are taken.
    pub(super) fn handles(&self, slot: Slot) -> Option<&BTreeSet<u32>> {
        self.handles.get(&slot)
    }

    /// The highest chain of a hook that holds something.
    pub(super) fn highest_chain(&self, hook: Hook) -> ChainId {
        let first = Slot { hook, chain: ChainId::ZERO, prio: Prio::FIRST };
        let of_hook = self.handles.range(first..).take_while(|(slot, _)| slot.hook == hook);
        of_hook.last().map_or(ChainId::ZERO, |(slot, _)| slot.chain)
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
