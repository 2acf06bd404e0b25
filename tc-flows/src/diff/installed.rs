//! What a kernel holds of one owner's rules, as far as the owner knows.
//!
//! In come dumps and outcomes of changes, out go rules by identity with their handles. No kernel
//! here, and no idea of what should be.

use std::collections::{BTreeMap, BTreeSet};

use super::Op;
use crate::ident::{ChainId, Handle, Hook};
use crate::kernel::{Dump, HwState, Outcome, OwnRule, RuleLocation};
use crate::rule::{ById, OfRule, Rule, RuleId, Slot};

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

impl OfRule for InstalledRule {
    fn rule(&self) -> &Rule {
        &self.rule
    }
}

/// The rules of one owner that a kernel holds, as far as the owner knows.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    /// Hooks that hold something.
    hooks: BTreeMap<Hook, OfHook>,
}

/// What one hook holds.
#[derive(Clone, Debug, Default)]
struct OfHook {
    rules: BTreeSet<ById<InstalledRule>>,
    unreadable: BTreeMap<(Slot, Handle), RuleLocation>,
    /// The handles that are taken.
    handles: BTreeMap<Slot, BTreeSet<u32>>,
}

impl PartialEq for OfHook {
    fn eq(&self, other: &OfHook) -> bool {
        let theirs = other.rules.iter().map(|ById(held)| held);
        self.rules.iter().map(|ById(held)| held).eq(theirs)
            && self.unreadable == other.unreadable
            && self.handles == other.handles
    }
}

impl Eq for OfHook {}

impl PartialEq for Installed {
    fn eq(&self, other: &Installed) -> bool {
        self.hooks == other.hooks
    }
}

impl Eq for Installed {}

impl OfHook {
    fn insert(&mut self, held: InstalledRule) {
        let (slot, handle) = (held.rule.id().slot(), held.handle);
        if let Some(ById(old)) = self.rules.replace(ById(held)) {
            self.free(slot, old.handle);
        }
        self.handles.entry(slot).or_default().insert(handle.0);
    }

    fn remove(&mut self, id: &RuleId) -> Option<InstalledRule> {
        let ById(gone) = self.rules.take(id)?;
        self.free(id.slot(), gone.handle);
        Some(gone)
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
        let slot = location.slot();
        let hook = self.hooks.entry(slot.hook).or_default();
        hook.unreadable.insert((slot, handle), location);
        hook.handles.entry(slot).or_default().insert(handle.0);
    }

    /// Forgets everything at a hook: its qdisc or interface is gone, or a new dump follows.
    pub fn remove_hook(&mut self, hook: Hook) {
        self.hooks.remove(&hook);
    }

    /// Notes that a hook holds these rules and nothing else: fastest where they are in order of
    /// identity.
    pub fn replace_hook(&mut self, hook: Hook, rules: Vec<InstalledRule>) {
        let mut handles: BTreeMap<Slot, BTreeSet<u32>> = BTreeMap::new();
        for of_slot in rules.chunk_by(|one, next| one.rule.id().slot() == next.rule.id().slot()) {
            if let Some(first) = of_slot.first() {
                let taken = handles.entry(first.rule.id().slot()).or_default();
                taken.append(&mut of_slot.iter().map(|held| held.handle.0).collect());
            }
        }
        let rules: BTreeSet<ById<InstalledRule>> = rules.into_iter().map(ById).collect();
        match rules.is_empty() {
            true => self.hooks.remove(&hook),
            false => {
                self.hooks.insert(hook, OfHook { rules, unreadable: BTreeMap::new(), handles })
            }
        };
    }

    /// Notes a rule, in the place of one with the same identity.
    pub fn insert(&mut self, rule: Rule, handle: Handle, hw: HwState) {
        let hook = self.hooks.entry(rule.hook()).or_default();
        hook.insert(InstalledRule { rule, handle, hw });
    }

    /// Forgets a rule.
    pub fn remove(&mut self, id: &RuleId) -> Option<InstalledRule> {
        self.at(id.hook(), |hook| hook.remove(id))
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
                self.at(slot.hook, |hook| {
                    if hook.unreadable.remove(&(slot, op.handle())).is_some() {
                        hook.free(slot, op.handle());
                        return None;
                    }
                    hook.remove(op.id())
                });
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
        self.hooks.get(&id.hook())?.rules.get(id).map(|ById(held)| held)
    }

    /// All installed rules, in order of identity.
    pub fn iter(&self) -> impl Iterator<Item = &InstalledRule> {
        self.hooks.values().flat_map(|hook| &hook.rules).map(|ById(held)| held)
    }

    /// The installed rules of a hook, in order of identity.
    pub fn of_hook(&self, hook: Hook) -> impl Iterator<Item = &InstalledRule> {
        let hook = self.hooks.get(&hook).into_iter();
        hook.flat_map(|hook| &hook.rules).map(|ById(held)| held)
    }

    /// How many rules.
    pub fn len(&self) -> usize {
        self.hooks.values().map(|hook| hook.rules.len()).sum()
    }

    /// Whether nothing is installed.
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// The hooks that hold something, in order.
    pub fn hooks(&self) -> impl Iterator<Item = Hook> {
        self.hooks.keys().copied()
    }

    /// Rules of a hook of which only the place is known.
    pub(super) fn unreadable(&self, hook: Hook) -> impl Iterator<Item = (RuleLocation, Handle)> {
        let of_hook = self.hooks.get(&hook).into_iter().flat_map(|hook| &hook.unreadable);
        of_hook.map(|((_, handle), location)| (*location, *handle))
    }

    /// The handles of a slot that are taken.
    pub(super) fn handles(&self, slot: Slot) -> Option<&BTreeSet<u32>> {
        self.hooks.get(&slot.hook)?.handles.get(&slot)
    }

    /// The highest chain of a hook that holds something.
    pub(super) fn highest_chain(&self, hook: Hook) -> ChainId {
        let last = self.hooks.get(&hook).and_then(|hook| hook.handles.last_key_value());
        last.map_or(ChainId::ZERO, |(slot, _)| slot.chain)
    }

    /// Changes what a hook holds, and forgets the hook with the last of it.
    fn at<T>(&mut self, hook: Hook, change: impl FnOnce(&mut OfHook) -> Option<T>) -> Option<T> {
        let held = self.hooks.get_mut(&hook)?;
        let changed = change(held);
        if held.handles.is_empty() {
            self.hooks.remove(&hook);
        }
        changed
    }
}
