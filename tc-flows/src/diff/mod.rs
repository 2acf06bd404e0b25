//! What has to change: from what is installed and what is wanted to an ordered list of single
//! changes.
//!
//! In come two maps by identity, out go operations in an order in which no frame is treated on the
//! way as neither would, and by name what no order can spare. Pure: no kernel here.
//!
//! | room | what it does |
//! |---|---|
//! | `installed` | what a kernel holds |
//! | `program` | a hook before and after, and which changes frames can meet |
//! | `overlap` | rules that can match one frame |
//! | `order` | what must come before what |
//! | `search`, `class` | an order of few changes by trying, on classes of frames |
//! | `fresh` | the way around by fresh chains |

mod class;
mod fresh;
mod installed;
mod order;
mod overlap;
#[cfg(test)]
mod prefixes;
mod program;
mod search;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use self::class::Facts;
pub use self::installed::{Installed, InstalledRule};
use self::program::{Entry, Phase, Program};
use crate::ident::{ChainId, Handle, Hook};
use crate::kernel::RuleLocation;
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

/// What has to be done, and what it costs that cannot be spared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes, in order.
    pub ops: Vec<Op>,
    /// Rules that change with a gap.
    pub gaps: Vec<Gap>,
}

/// Changes of one hook for which there is neither an order nor a way around: while they are made,
/// frames may be dropped, or delivered as neither the old nor the new rules would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The hook.
    pub hook: Hook,
    /// The rules whose changes contradict each other.
    pub rules: Vec<RuleId>,
    /// Why fresh chains are no way around.
    pub reason: GapReason,
}

/// Why changes cannot go by way of fresh chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GapReason {
    /// All of a chain would have to be led elsewhere by one rule, which would have to be asked
    /// before all others.
    #[error("no prio is free before the first of chain {chain}")]
    NoPrioBelow {
        /// The chain.
        chain: ChainId,
    },
    /// A frame would meet one goto more, and there are paths with as many as the kernel follows
    /// ([`crate::GOTOS_MAX`]).
    #[error("frames would meet too many gotos")]
    TooManyGotos,
    /// Copies need numbers above all others, and 28 bits have no more.
    #[error("no chain numbers are left above those in use")]
    NoChainLeft,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: no gapless order of changes to ", self.hook)?;
        let mut chains: Vec<ChainId> = self.rules.iter().map(RuleId::chain).collect();
        chains.sort_unstable();
        chains.dedup();
        let count = self.rules.len();
        write!(f, "{count} rule{} in chain", if count == 1 { "" } else { "s" })?;
        for (at, chain) in chains.iter().enumerate() {
            write!(f, "{} {chain}", if at == 0 { "" } else { "," })?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Changes of a hook up to which an order is looked for among all of them at once, where the one
/// by blocks fails.
const FEW: usize = 12;

/// Questions about frames that one call may ask (see [`search`]): some tenths of a second.
const BUDGET: usize = 1 << 23;

/// The changes that make `installed` into `wanted`: none where nothing differs.
///
/// **The promise.** What becomes of a frame, copies with their tags and interfaces and whether it
/// reaches the host, is after each change between what becomes of it before all of them and after:
/// every copy that both make is made, and none is made that neither makes, or more often than
/// either does. So a frame that both treat alike is treated so all the way, and none is at a wrong
/// place at any moment. This is about what [`crate::walk`] says of the rules of a hook as if all
/// were executed in one place ([`crate::Offload`] aside), and it
/// holds where each change takes effect and the rules that cannot be read are gone: what those did
/// to frames is not known, and they go first, because they may have the keys of a rule that comes.
/// Where a rule of `installed` is not in fact there, or something else is, nothing is promised.
///
/// Two rules of which both could match a frame stand in one prio only while either may win.
///
/// **How.** One change for each rule that differs, where an order of them is found: first what no
/// frame can meet yet, because nothing leads there; then what frames can meet, so that each frame
/// is treated as before until it is treated as after, if possible; last what no frame can meet any
/// more. Where that contradicts itself (two chains that exchange their parts, a prio that changes
/// its protocol), all orders are tried while there are at most 256 changes in contradiction and a
/// fixed budget of work lasts. Where no order is found, what shall be there is copied into chains
/// with numbers above all others, the rules that lead there are led to the copies, each by one
/// atomic replacement (or, for chain 0, all frames are, by a rule in a prio before all others), and
/// after the real chains are what they shall be everything is led back. Where that cannot be
/// either, the changes are made all the same and [`Plan::gaps`] says so.
///
/// Without contradictions the cost is O(n log n) for n rules, as long as the rules of a prio have
/// few mask shapes.
///
/// A new rule takes the lowest handle of its prio that no installed rule has, not even one that is
/// deleted by the same changes.
pub fn diff(installed: &Installed, wanted: &RuleSet) -> Plan {
    let mut of_hooks: BTreeMap<Hook, Vec<&Rule>> =
        installed.hooks().map(|hook| (hook, Vec::new())).collect();
    for rule in wanted {
        of_hooks.entry(rule.hook()).or_default().push(rule);
    }
    diff_hooks(installed, of_hooks, usize::MAX)
}

/// [`diff`] of some hooks: with all rules that each of them shall hold, in order of identity. At
/// other hooks nothing changes. Once there are `enough` changes no more hooks are asked for: those
/// that were are done, the others are as they were.
pub fn diff_hooks<'w>(
    installed: &Installed,
    wanted: impl IntoIterator<Item = (Hook, Vec<&'w Rule>)>,
    enough: usize,
) -> Plan {
    let (mut ops, mut gaps, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    let mut budget = BUDGET;
    for (hook, new) in wanted {
        let deletions = installed.unreadable(hook);
        unreadable.extend(deletions.map(|(at, handle)| Op::delete_at(at, handle)));
        let old: Vec<&Rule> = installed.of_hook(hook).map(|held| &held.rule).collect();
        if old == new {
            continue;
        }
        let highest = installed.highest_chain(hook);
        let (changes, stuck) = of_hook(hook, &old, &new, highest, &mut budget);
        ops.extend(Handles::new(installed).ops(changes));
        gaps.extend(stuck);
        if ops.len() >= enough {
            break;
        }
    }
    unreadable.append(&mut ops);
    Plan { ops: unreadable, gaps }
}

fn of_hook(
    hook: Hook,
    old: &[&Rule],
    new: &[&Rule],
    highest: ChainId,
    budget: &mut usize,
) -> (Vec<Change>, Vec<Gap>) {
    let program = Program::new(old, new);
    let Arranged { order, stuck } = arrange(&program, budget);
    let of = |order: &[usize]| order.iter().map(|at| Change::of(&program.entries[*at])).collect();
    if stuck.is_empty() {
        return (of(&order), Vec::new());
    }
    if program.changes.len() <= FEW {
        let mut made = vec![false; program.entries.len()];
        let facts = Facts::of(&program);
        if let Some(order) = search::order(&program, &facts, &program.changes, &mut made, budget) {
            return (of(&order), Vec::new());
        }
    }
    let chain = |at: &usize| program.entries[*at].id().chain();
    let chains: Vec<BTreeSet<ChainId>> =
        stuck.iter().map(|block| block.iter().map(chain).collect()).collect();
    match fresh::around(hook, old, new, &chains, highest, budget) {
        Ok(changes) => (changes, Vec::new()),
        Err(reason) => {
            let id = |at: &usize| program.entries[*at].id().clone();
            let gaps = stuck
                .iter()
                .map(|block| Gap { hook, rules: block.iter().map(id).collect(), reason })
                .collect();
            (of(&order), gaps)
        }
    }
}

/// Changes of a hook in an order.
struct Arranged {
    order: Vec<usize>,
    /// Those in blocks within which no order was found.
    stuck: Vec<Vec<usize>>,
}

fn arrange(program: &Program<'_>, budget: &mut usize) -> Arranged {
    let of_phase = |phase| {
        program.unseen(program.changes.iter().copied().filter(|at| program.phase(*at) == phase))
    };
    let mut order = of_phase(Phase::Fill);
    let mut stuck = Vec::new();
    let blocks = order::blocks(program);
    let mut made = Vec::new();
    let mut facts = Facts::default();
    if blocks.iter().any(|block| block.len() > 1) {
        made.resize(program.entries.len(), false);
        facts = Facts::of(program);
        for at in &order {
            made[*at] = true;
        }
    }
    for mut block in blocks {
        if block.len() > 1 {
            match search::order(program, &facts, &block, &mut made, budget) {
                Some(found) => block = found,
                None => stuck.push(block.clone()),
            }
        }
        for at in &block {
            if let Some(made) = made.get_mut(*at) {
                *made = true;
            }
        }
        order.extend(block);
    }
    order.extend(of_phase(Phase::Drain));
    Arranged { order, stuck }
}

/// A change without its handle.
#[derive(Clone, Debug)]
enum Change {
    /// This rule stands at its identity.
    Put(Rule),
    /// No rule stands there.
    Remove(RuleId),
}

impl Change {
    fn of(entry: &Entry<'_>) -> Change {
        match entry.new {
            Some(rule) => Change::Put(rule.clone()),
            None => Change::Remove(entry.id().clone()),
        }
    }
}

/// Gives changes their handles.
struct Handles<'i> {
    installed: &'i Installed,
    /// The handles of rules that are there by now, `None` of those that are gone.
    now: HashMap<RuleId, Option<Handle>>,
    free: BTreeMap<Slot, FreeHandles<'i>>,
}

impl<'i> Handles<'i> {
    fn new(installed: &'i Installed) -> Handles<'i> {
        Handles { installed, now: HashMap::new(), free: BTreeMap::new() }
    }

    fn ops(mut self, changes: Vec<Change>) -> Vec<Op> {
        changes.into_iter().filter_map(|change| self.op(change)).collect()
    }

    fn op(&mut self, change: Change) -> Option<Op> {
        match change {
            Change::Put(rule) => Some(match self.held(rule.id()) {
                Some(handle) => Op::Replace { rule, handle },
                None => {
                    let slot = rule.id().slot();
                    let free = self.free.entry(slot);
                    let free =
                        free.or_insert_with(|| FreeHandles::of(self.installed.handles(slot)));
                    let handle = free.take();
                    self.now.insert(rule.id().clone(), Some(handle));
                    Op::Add { rule, handle }
                }
            }),
            Change::Remove(id) => {
                let handle = self.held(&id)?;
                self.now.insert(id.clone(), None);
                Some(Op::Delete { id, handle })
            }
        }
    }

    fn held(&self, id: &RuleId) -> Option<Handle> {
        let installed = || self.installed.get(id).map(|installed| installed.handle);
        self.now.get(id).copied().unwrap_or_else(installed)
    }
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
