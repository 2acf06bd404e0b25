//! A kernel in memory, for tests of whatever stands on [`Kernel`].
//!
//! In come the same operations, out come the same outcomes and dumps as from the real one, with
//! faults on request: no room, interfaces that vanish, drivers that refuse. It refuses what the
//! real one refuses (net/sched/cls_api.c, net/sched/cls_flower.c); what it accepts it does not
//! execute: [`crate::walk`] does.

use std::collections::{BTreeMap, BTreeSet};

use crate::action::Action;
use crate::diff::Op;
use crate::ident::{Handle, Hook, Ifindex};
use crate::kernel::{
    Dump, Error, Foreign, HwState, Kernel, Mode, Outcome, OwnRule, Result, RuleLocation, TerseDump,
    TerseRule,
};
use crate::rule::{Offload, Owner, Rule, RuleId, Slot};
use crate::stats::Stats;

/// Decides whether a driver takes a rule: `Err` has its words.
type Driver = Box<dyn FnMut(&Rule) -> Result<(), String> + Send>;

/// A kernel in memory.
pub struct FakeKernel {
    owner: Owner,
    interfaces: Option<BTreeSet<Ifindex>>,
    hooks: BTreeMap<Hook, FakeHook>,
    held: usize,
    capacity: usize,
    driver: Driver,
    applied: Vec<Op>,
    lose_outcomes: usize,
}

#[derive(Debug, Default)]
struct FakeHook {
    rules: BTreeMap<RuleId, Held>,
    handles: BTreeMap<(Slot, Handle), RuleId>,
    foreign: Vec<Foreign>,
}

#[derive(Debug)]
struct Held {
    rule: Rule,
    owner: Owner,
    handle: Handle,
    hw: HwState,
    /// A destination of its actions is gone, so that it is no longer what its cookie says.
    broken: bool,
}

const EEXIST: i32 = nix::errno::Errno::EEXIST as i32;
const EINVAL: i32 = nix::errno::Errno::EINVAL as i32;
const ENODEV: i32 = nix::errno::Errno::ENODEV as i32;
const ENOSPC: i32 = nix::errno::Errno::ENOSPC as i32;
const EOPNOTSUPP: i32 = nix::errno::Errno::EOPNOTSUPP as i32;

impl FakeKernel {
    /// A kernel in which every interface exists and every driver refuses hardware offload without
    /// a word, as a software interface does.
    pub fn new(owner: Owner) -> FakeKernel {
        FakeKernel {
            owner,
            interfaces: None,
            hooks: BTreeMap::new(),
            held: 0,
            capacity: usize::MAX,
            driver: Box::new(|_| Err(String::new())),
            applied: Vec::new(),
            lose_outcomes: 0,
        }
    }

    /// From now on only these interfaces exist: what stood at another one's hooks is gone, and
    /// rules that lead to another one stay without a destination.
    pub fn set_interfaces(&mut self, interfaces: impl IntoIterator<Item = Ifindex>) {
        let interfaces: BTreeSet<Ifindex> = interfaces.into_iter().collect();
        let there =
            |hook: &Hook| hook.ifindex().is_none_or(|ifindex| interfaces.contains(&ifindex));
        self.hooks.retain(|hook, _| there(hook));
        self.held = self.hooks.values().map(|hook| hook.rules.len()).sum();
        for held in self.hooks.values_mut().flat_map(|hook| hook.rules.values_mut()) {
            let lost =
                |action: &Action| action.destination().is_some_and(|to| !interfaces.contains(&to));
            held.broken |= held.rule.actions().iter().any(lost);
        }
        self.interfaces = Some(interfaces);
    }

    /// Interface `gone` vanishes (see [`FakeKernel::set_interfaces`]). Only for a kernel whose
    /// interfaces were set.
    pub fn remove_interface(&mut self, gone: Ifindex) {
        let left: Vec<Ifindex> =
            self.interfaces.iter().flatten().copied().filter(|ifindex| *ifindex != gone).collect();
        self.set_interfaces(left);
    }

    /// From now on no more than this many rules in all: further ones are refused with ENOSPC.
    pub fn set_capacity(&mut self, rules: usize) {
        self.capacity = rules;
    }

    /// From now on `driver` decides whether a rule gets into hardware; its error is what it says.
    pub fn set_driver(&mut self, driver: impl FnMut(&Rule) -> Result<(), String> + Send + 'static) {
        self.driver = Box::new(driver);
    }

    /// From now on it speaks for `owner`; what it holds for others is foreign.
    pub fn set_owner(&mut self, owner: Owner) {
        self.owner = owner;
    }

    /// The next `changes` are carried out, but their outcome is [`Outcome::Unknown`].
    pub fn lose_outcomes(&mut self, changes: usize) {
        self.lose_outcomes = changes;
    }

    /// Another owner installs a filter. Makes the hook.
    pub fn add_foreign(&mut self, hook: Hook, foreign: Foreign) {
        self.hooks.entry(hook).or_default().foreign.push(foreign);
    }

    /// Every rule held, in order of identity within each hook.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.hooks.values().flat_map(|hook| hook.rules.values()).map(|held| &held.rule)
    }

    /// Every change that was asked for so far, refused ones too.
    pub fn applied(&self) -> &[Op] {
        &self.applied
    }

    fn exists(&self, ifindex: Ifindex) -> bool {
        self.interfaces.as_ref().is_none_or(|all| all.contains(&ifindex))
    }

    /// Whether the hook's interface is there. A block has none.
    fn has_place(&self, hook: Hook) -> bool {
        hook.ifindex().is_none_or(|ifindex| self.exists(ifindex))
    }

    fn apply_one(&mut self, op: &Op, mode: Mode) -> Outcome {
        if !self.has_place(op.id().hook()) {
            return match op {
                Op::Delete { .. } => Outcome::Deleted,
                Op::Add { .. } | Op::Replace { .. } => refused(ENODEV, ""),
            };
        }
        match op {
            Op::Add { rule, handle } => self.put(rule, *handle, mode, true),
            Op::Replace { rule, handle } => self.put(rule, *handle, mode, false),
            Op::Delete { id, handle } => self.delete(id, *handle),
        }
    }

    fn put(&mut self, rule: &Rule, handle: Handle, mode: Mode, exclusive: bool) -> Outcome {
        let id = rule.id();
        let destinations = rule.actions().iter().filter_map(Action::destination);
        if !destinations.into_iter().all(|to| self.exists(to)) {
            return refused(ENODEV, "");
        }
        let Some(hook) = self.hooks.get_mut(&id.hook()) else {
            return refused(EINVAL, "Failed to find qdisc with specified classid");
        };
        let slot = id.slot();
        let protocol = id.matching().protocol();
        let foreign =
            |other: &&Foreign| other.chain == slot.chain.get() && other.prio == slot.prio.get();
        let own_protocol = hook.of_slot(slot).next().map(|other| other.matching().protocol());
        let foreign_protocol = hook.foreign.iter().find(foreign).map(|other| other.protocol);
        if own_protocol.or(foreign_protocol).is_some_and(|held| held != protocol) {
            return refused(EINVAL, "Protocol mismatch for filter with specified priority");
        }
        let foreign_holder =
            hook.foreign.iter().filter(foreign).any(|other| other.handle == handle);
        let holder = hook.handles.get(&(slot, handle)).cloned();
        if exclusive && (holder.is_some() || foreign_holder) {
            return refused(EEXIST, "Filter already exists");
        }
        if hook.rules.contains_key(id) && holder.as_ref() != Some(id) {
            return refused(EEXIST, "");
        }
        if self.held >= self.capacity && holder.is_none() {
            return refused(ENOSPC, "");
        }
        let verdict = match rule.offload() {
            Offload::SkipHw => Err(String::new()),
            Offload::Auto | Offload::SkipSw => (self.driver)(rule),
        };
        if let (Offload::SkipSw, Err(message)) = (rule.offload(), &verdict) {
            return refused(EOPNOTSUPP, message);
        }
        let hw = match &verdict {
            Ok(()) => HwState::InHw,
            Err(_) => HwState::NotInHw(None),
        };
        match holder {
            Some(other) => drop(hook.rules.remove(&other)),
            None => self.held += 1,
        }
        let held = Held { rule: rule.clone(), owner: self.owner, handle, hw, broken: false };
        hook.rules.insert(id.clone(), held);
        hook.handles.insert((slot, handle), id.clone());
        let reason = |message: String| if message.is_empty() { None } else { Some(message) };
        match (mode, verdict) {
            (Mode::Fast, _) => Outcome::Installed,
            (Mode::Told, Ok(())) => Outcome::InHw,
            (Mode::Told, Err(message)) => Outcome::NotInHw { reason: reason(message) },
        }
    }

    fn delete(&mut self, id: &RuleId, handle: Handle) -> Outcome {
        if let Some(hook) = self.hooks.get_mut(&id.hook())
            && let Some(gone) = hook.handles.remove(&(id.slot(), handle))
        {
            hook.rules.remove(&gone);
            self.held -= 1;
        }
        Outcome::Deleted
    }
}

impl FakeHook {
    fn of_slot(&self, slot: Slot) -> impl Iterator<Item = &RuleId> {
        self.rules
            .range(RuleId::first_of_slot(slot)..)
            .map(|(id, _)| id)
            .take_while(move |id| id.slot() == slot)
    }
}

fn refused(errno: i32, message: &str) -> Outcome {
    let message = if message.is_empty() { None } else { Some(message.to_owned()) };
    Outcome::Refused { errno, message, attribute: None }
}

impl Kernel for FakeKernel {
    fn ensure_hook(&mut self, hook: Hook) -> Result<()> {
        if !self.has_place(hook) {
            return Err(Error::Refused { request: "add qdisc", errno: ENODEV, message: None });
        }
        self.hooks.entry(hook).or_default();
        Ok(())
    }

    fn apply(&mut self, ops: &[Op], mode: Mode) -> Vec<Outcome> {
        ops.iter()
            .map(|op| {
                self.applied.push(op.clone());
                let outcome = self.apply_one(op, mode);
                if self.lose_outcomes > 0 {
                    self.lose_outcomes -= 1;
                    Outcome::Unknown
                } else {
                    outcome
                }
            })
            .collect()
    }

    fn dump(&mut self, hook: Hook) -> Result<Dump> {
        let Some(held) = self.hooks.get(&hook) else {
            return Ok(Dump::default());
        };
        let mut dump = Dump { hook_present: true, ..Dump::default() };
        dump.foreign.clone_from(&held.foreign);
        for (id, held) in &held.rules {
            let location = RuleLocation::of(id);
            if held.owner != self.owner {
                dump.foreign.push(Foreign {
                    chain: location.chain.get(),
                    prio: location.prio.get(),
                    protocol: location.protocol,
                    handle: held.handle,
                    kind: "flower".to_owned(),
                });
            } else if held.broken {
                dump.unreadable_own.push((location, held.handle));
            } else {
                dump.own.push(OwnRule {
                    rule: held.rule.clone(),
                    handle: held.handle,
                    hw: held.hw.clone(),
                    in_hw_count: u32::from(held.hw == HwState::InHw),
                    stats: Stats::default(),
                });
            }
        }
        Ok(dump)
    }

    fn dump_terse(&mut self, hook: Hook) -> Result<TerseDump> {
        let Dump { foreign, hook_present, .. } = self.dump(hook)?;
        let held = self.hooks.get(&hook).into_iter().flat_map(|hook| &hook.rules);
        let own = held.filter(|(_, held)| held.owner == self.owner).map(|(id, held)| TerseRule {
            location: RuleLocation::of(id),
            handle: held.handle,
            cookie: held.rule.cookie(held.owner),
            hw: held.hw.clone(),
            stats: Stats::default(),
        });
        Ok(TerseDump { own: own.collect(), foreign, hook_present })
    }
}
