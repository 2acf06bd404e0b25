//! What has to change: from what is installed and what is wanted to an ordered list of single
//! changes.
//!
//! In come two maps by identity, out go operations in an order in which, as far as single changes
//! allow, no frame is lost on the way: destinations before what leads to them, new before old, an
//! admission gone before what it led to. Pure: no kernel here.

use std::collections::{BTreeMap, BTreeSet};

use crate::ident::{Handle, Hook};
use crate::kernel::{Dump, HwState, Outcome, RuleLocation};
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
        for (rule, handle, hw) in &dump.own {
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
