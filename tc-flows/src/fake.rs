//! A kernel in memory, for tests of whatever stands on [`Kernel`].
//!
//! In come the same operations, out come the same outcomes and dumps as from the real one, with
//! faults on request: no room, interfaces that vanish, drivers that refuse, requests that fail and
//! answers that are lost. It refuses what the real one refuses (net/sched/cls_api.c,
//! net/sched/cls_flower.c); what frames meet in what it holds the walk says
//! ([`FakeKernel::deliver`]). That it does as the real one does, `conformance` asks of both.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::action::Action;
use crate::diff::Op;
use crate::frame::Frame;
use crate::ident::{BlockId, Handle, Hook, Ifindex};
use crate::kernel::{
    Dump, Error, Foreign, HwState, Kernel, Mode, Outcome, OwnRule, Result, RuleLocation, TerseDump,
    TerseRule,
};
use crate::profile::Profile;
use crate::rule::{Offload, Owner, Rule, RuleId, Slot};
use crate::stats::{Counters, Stats};
use crate::walk::{Step, TwoStageWalk, Walk, walk_two_stage};
use crate::watch::{Change, Notice, SeenFilter, Sender};

/// Decides whether a driver takes a rule: `Err` has its words.
type Driver = Box<dyn FnMut(&Rule) -> Result<(), String> + Send>;

/// How many bytes each frame has that a fake kernel counts.
pub const FRAME_BYTES: u64 = 60;

/// How a dump fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpFault {
    /// The kernel does not answer.
    NoAnswer,
    /// Part of the answer was lost each time (ENOBUFS), or what was asked for changed.
    Interrupted,
    /// The kernel refuses with this error number: EINTR, EBUSY, …
    Refused(i32),
}

/// A kernel in memory.
pub struct FakeKernel {
    owner: Owner,
    interfaces: Option<BTreeSet<Ifindex>>,
    /// The highest index that an interface was given.
    highest: u32,
    qdiscs: BTreeMap<Ifindex, Qdisc>,
    blocks: BTreeSet<BlockId>,
    hooks: BTreeMap<Hook, FakeHook>,
    held: usize,
    capacity: usize,
    profile: Profile,
    /// In place of what the profile accepts.
    driver: Option<Driver>,
    applied: Vec<Op>,
    refuse: (usize, i32),
    lose_outcomes: usize,
    dump_faults: VecDeque<DumpFault>,
    /// For whom changes are noted.
    watcher: Option<Owner>,
    notices: Vec<Notice>,
}

/// Which of an interface's qdiscs makes its hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qdisc {
    Clsact,
    /// Without an egress hook.
    Ingress,
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
    stats: Stats,
    /// A destination of its actions is gone, so that it is no longer what its cookie says.
    broken: bool,
}

/// Of `__tcf_qdisc_find` in net/sched/cls_api.c.
const NO_QDISC: &str = "Failed to find qdisc with specified classid";

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
            highest: 0,
            qdiscs: BTreeMap::new(),
            blocks: BTreeSet::new(),
            hooks: BTreeMap::new(),
            held: 0,
            capacity: usize::MAX,
            profile: Profile::Software,
            driver: None,
            applied: Vec::new(),
            refuse: (0, 0),
            lose_outcomes: 0,
            dump_faults: VecDeque::new(),
            watcher: None,
            notices: Vec::new(),
        }
    }

    /// From now on only these interfaces exist: what stood at another one's hooks is gone, and
    /// rules that lead to another one stay without a destination.
    pub fn set_interfaces(&mut self, interfaces: impl IntoIterator<Item = Ifindex>) {
        let interfaces: BTreeSet<Ifindex> = interfaces.into_iter().collect();
        self.qdiscs.retain(|ifindex, _| interfaces.contains(ifindex));
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

    /// An interface appears, without hooks, under an index that none had before. From now on only
    /// such interfaces exist, and those of [`FakeKernel::set_interfaces`].
    ///
    /// # Panics
    /// Where there is no such index, which are 31 bits.
    #[expect(clippy::expect_used, reason = "as documented")]
    pub fn add_interface(&mut self) -> Ifindex {
        let interfaces = self.interfaces.get_or_insert_default();
        let highest = interfaces.last().map_or(0, |ifindex| ifindex.get());
        self.highest = self.highest.max(highest) + 1;
        let new = Ifindex::new(self.highest).expect("31 bits");
        interfaces.insert(new);
        new
    }

    /// From now on no more than this many rules in all: further ones are refused with ENOSPC.
    pub fn set_capacity(&mut self, rules: usize) {
        self.capacity = rules;
    }

    /// From now on the interfaces are of this hardware: its driver decides which rules get into
    /// it, and it executes them ([`FakeKernel::deliver`]).
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
        self.driver = None;
    }

    /// From now on `driver` decides whether a rule gets into hardware; its error is what it says.
    /// How hardware executes a rule stays as the profile has it, or ideal.
    pub fn set_driver(&mut self, driver: impl FnMut(&Rule) -> Result<(), String> + Send + 'static) {
        self.driver = Some(Box::new(driver));
    }

    /// From now on it speaks for `owner`; what it holds for others is foreign.
    pub fn set_owner(&mut self, owner: Owner) {
        self.owner = owner;
    }

    /// The next `changes` are carried out, but their outcome is [`Outcome::Unknown`].
    pub fn lose_outcomes(&mut self, changes: usize) {
        self.lose_outcomes = changes;
    }

    /// The next `changes` are not carried out, but refused with this error number: EBUSY, EINTR,
    /// ENOMEM, …
    pub fn refuse_changes(&mut self, changes: usize, errno: i32) {
        self.refuse = (changes, errno);
    }

    /// From now on changes are noted, as for a [`crate::Watch`] of the present owner: filters that
    /// are set and deleted, and qdiscs that appear; not that chains and actions come and go. An
    /// interface that vanishes takes its hooks along without a word.
    pub fn watch(&mut self) {
        self.watcher = Some(self.owner);
        self.notices.clear();
    }

    /// What was noted since the last call.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// What was noted and not read is lost (ENOBUFS), and the next thing that is read says so.
    pub fn lose_notices(&mut self) {
        self.notices = vec![Notice::Lost];
    }

    /// Notes a change that the present owner makes.
    fn note(&mut self, change: Change) {
        if let Some(watcher) = self.watcher {
            let by = if self.owner == watcher { Sender::Ours } else { Sender::Other(1) };
            self.notices.push(Notice::Changed { change, by });
        }
    }

    /// The next dump that no earlier fault awaits fails so.
    pub fn fail_dump(&mut self, fault: DumpFault) {
        self.dump_faults.push_back(fault);
    }

    /// What becomes of a frame at this hook: hardware first, then software. Each rule that takes
    /// it counts it, as a frame of [`FRAME_BYTES`].
    ///
    /// A rule whose destination vanished stays where it is and sends nothing: it drops what it
    /// would redirect and mirrors nothing (`tcf_mirred_act` in net/sched/act_mirred.c).
    pub fn deliver(&mut self, hook: Hook, frame: &Frame) -> TwoStageWalk {
        let held: Vec<(Rule, bool)> = self
            .hooks
            .get(&hook)
            .into_iter()
            .flat_map(|hook| hook.rules.values())
            .filter_map(|held| Some((self.executed(&held.rule)?, held.hw == HwState::InHw)))
            .collect();
        let in_hw: BTreeSet<&RuleId> =
            held.iter().filter(|(_, in_hw)| *in_hw).map(|(rule, _)| rule.id()).collect();
        let rules = held.iter().map(|(rule, _)| rule);
        let walk =
            walk_two_stage(rules, |rule| in_hw.contains(rule.id()), &self.profile, hook, frame);
        let matched = |walk: &Walk| -> Vec<RuleId> {
            let steps = walk.trace.iter();
            let rules = steps.filter_map(|step| match step {
                Step::Matched(rule) => Some(rule.id().clone()),
                _ => None,
            });
            rules.collect()
        };
        let in_hardware = matched(&walk.hardware);
        let in_software = walk.software.iter().flat_map(|(_, walk)| matched(walk)).collect();
        self.count(hook, in_hardware, |stats| &mut stats.hardware);
        self.count(hook, in_software, |stats| &mut stats.software);
        walk
    }

    fn count(&mut self, hook: Hook, hit: Vec<RuleId>, which: fn(&mut Stats) -> &mut Counters) {
        let Some(held) = self.hooks.get_mut(&hook) else { return };
        for id in hit {
            if let Some(held) = held.rules.get_mut(&id) {
                let counters = which(&mut held.stats);
                counters.packets += 1;
                counters.bytes += FRAME_BYTES;
            }
        }
    }

    /// The rule as it works with the interfaces that are there.
    fn executed(&self, rule: &Rule) -> Option<Rule> {
        let there = |to: &Ifindex| self.exists(*to);
        let actions = rule.actions().iter().filter_map(|action| match action {
            Action::Mirror(to) if !there(to) => None,
            Action::Redirect(to) if !there(to) => Some(Action::Drop),
            action => Some(action.to_owned()),
        });
        let actions: Vec<Action> = actions.collect();
        let id = rule.id();
        let executed =
            Rule::new(id.hook(), id.chain(), id.prio(), id.matching().clone(), actions).ok()?;
        Some(executed.with_offload(rule.offload()))
    }

    /// Somebody else gives the interface an `ingress` qdisc, which has no egress hook, in place of
    /// what it had.
    pub fn add_ingress_qdisc(&mut self, at: Ifindex) {
        self.hooks.retain(|hook, _| hook.ifindex() != Some(at));
        self.held = self.hooks.values().map(|hook| hook.rules.len()).sum();
        self.qdiscs.insert(at, Qdisc::Ingress);
    }

    /// Another owner installs a filter. Makes the hook.
    pub fn add_foreign(&mut self, hook: Hook, foreign: Foreign) {
        self.make_hook(hook);
        if self.watcher.is_some() {
            let filter = SeenFilter::Foreign(foreign.clone());
            let change = Change::FilterAdded { hook, filter };
            self.notices.push(Notice::Changed { change, by: Sender::Other(1) });
        }
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

    fn has_hook(&self, hook: Hook) -> bool {
        match hook {
            Hook::Ingress(at) => self.qdiscs.contains_key(&at),
            Hook::Egress(at) => self.qdiscs.get(&at) == Some(&Qdisc::Clsact),
            Hook::Block(block) => self.blocks.contains(&block),
        }
    }

    fn make_hook(&mut self, hook: Hook) {
        match hook {
            Hook::Ingress(at) | Hook::Egress(at) => {
                if let Entry::Vacant(vacant) = self.qdiscs.entry(at) {
                    vacant.insert(Qdisc::Clsact);
                    self.note(Change::QdiscAdded { ifindex: at, kind: "clsact".to_owned() });
                }
            }
            Hook::Block(block) => {
                self.blocks.insert(block);
            }
        }
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
        if !self.has_hook(id.hook()) {
            return refused(EINVAL, NO_QDISC);
        }
        let hook = self.hooks.entry(id.hook()).or_default();
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
        // fl_check_assign_mask in net/sched/cls_flower.c.
        let shape = |id: &RuleId| id.matching().fields().shape();
        if holder.as_ref().is_some_and(|holder| shape(holder) != shape(id)) {
            return refused(EINVAL, "");
        }
        if hook.rules.contains_key(id) && holder.as_ref() != Some(id) {
            return refused(EEXIST, "");
        }
        if self.held >= self.capacity && holder.is_none() {
            return refused(ENOSPC, "");
        }
        let verdict = match (rule.offload(), &mut self.driver) {
            (Offload::SkipHw, _) => Err(String::new()),
            (Offload::Auto | Offload::SkipSw, Some(driver)) => driver(rule),
            (Offload::Auto | Offload::SkipSw, None) => self.profile.accepts(rule),
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
        let stats = Stats::default();
        let held = Held { rule: rule.clone(), owner: self.owner, handle, hw, stats, broken: false };
        let filter = SeenFilter::of(&held, self.watcher);
        hook.rules.insert(id.clone(), held);
        hook.handles.insert((slot, handle), id.clone());
        let at = id.hook();
        self.note(if exclusive {
            Change::FilterAdded { hook: at, filter }
        } else {
            Change::FilterSet { hook: at, filter }
        });
        let reason = |message: String| if message.is_empty() { None } else { Some(message) };
        match (mode, verdict) {
            (Mode::Fast, _) => Outcome::Installed,
            (Mode::Told, Ok(())) => Outcome::InHw,
            (Mode::Told, Err(message)) => Outcome::NotInHw { reason: reason(message) },
        }
    }

    fn delete(&mut self, id: &RuleId, handle: Handle) -> Outcome {
        if !self.has_hook(id.hook()) {
            return refused(EINVAL, NO_QDISC);
        }
        if let Some(hook) = self.hooks.get_mut(&id.hook())
            && let Some(gone) = hook.handles.remove(&(id.slot(), handle))
            && let Some(held) = hook.rules.remove(&gone)
        {
            self.held -= 1;
            let filter = SeenFilter::of(&held, self.watcher);
            self.note(Change::FilterDeleted { hook: id.hook(), filter });
        }
        Outcome::Deleted
    }
}

impl Held {
    fn as_own(&self) -> OwnRule {
        OwnRule {
            rule: self.rule.clone(),
            handle: self.handle,
            hw: self.hw.clone(),
            in_hw_count: u32::from(self.hw == HwState::InHw),
            stats: self.stats,
        }
    }

    fn as_foreign(&self) -> Foreign {
        let location = RuleLocation::of(self.rule.id());
        Foreign {
            chain: location.chain.get(),
            prio: location.prio.get(),
            protocol: location.protocol,
            handle: self.handle,
            kind: "flower".to_owned(),
            owner: Some(self.owner),
        }
    }
}

impl SeenFilter {
    /// As this watcher sees it.
    fn of(held: &Held, watcher: Option<Owner>) -> SeenFilter {
        if Some(held.owner) != watcher {
            SeenFilter::Foreign(held.as_foreign())
        } else if held.broken {
            SeenFilter::UnreadableOwn(RuleLocation::of(held.rule.id()), held.handle)
        } else {
            SeenFilter::Own(Box::new(held.as_own()))
        }
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
        self.make_hook(hook);
        if self.has_hook(hook) {
            return Ok(());
        }
        let message = Some("Exclusivity flag on, cannot modify".to_owned());
        Err(Error::Refused { request: "add qdisc", errno: EEXIST, message })
    }

    fn apply(&mut self, ops: &[Op], mode: Mode) -> Vec<Outcome> {
        ops.iter()
            .map(|op| {
                self.applied.push(op.clone());
                let (left, errno) = self.refuse;
                let outcome = if left > 0 {
                    self.refuse.0 -= 1;
                    refused(errno, "")
                } else {
                    self.apply_one(op, mode)
                };
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
        let request = "dump filters";
        match self.dump_faults.pop_front() {
            None => {}
            Some(DumpFault::NoAnswer) => return Err(Error::NoAnswer { request }),
            Some(DumpFault::Interrupted) => return Err(Error::Interrupted { request }),
            Some(DumpFault::Refused(errno)) => {
                return Err(Error::Refused { request, errno, message: None });
            }
        }
        let mut dump = Dump { hook_present: self.has_hook(hook), ..Dump::default() };
        let Some(held) = self.hooks.get(&hook) else {
            return Ok(dump);
        };
        dump.foreign.clone_from(&held.foreign);
        for (id, held) in &held.rules {
            let location = RuleLocation::of(id);
            if held.owner != self.owner {
                dump.foreign.push(held.as_foreign());
            } else if held.broken {
                dump.unreadable_own.push((location, held.handle));
            } else {
                dump.own.push(held.as_own());
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
            stats: held.stats,
        });
        Ok(TerseDump { own: own.collect(), foreign, hook_present })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{chain, hook, ifindex, mac, prio};
    use crate::ident::EtherType;
    use crate::key::Match;
    use crate::profile::{Eswitch, Mlx5};

    const OWNER: Owner = Owner(*b"test");

    fn rule(at_prio: u16, matching: Match, action: Action) -> Rule {
        Rule::new(hook(), chain(0), prio(at_prio), matching, [action]).unwrap()
    }

    fn with(rules: &[Rule]) -> FakeKernel {
        let mut kernel = FakeKernel::new(OWNER);
        kernel.set_interfaces([7, 11, 12].map(ifindex));
        kernel.set_profile(Profile::Mlx5(Mlx5::new(Eswitch::new(
            ifindex(1),
            [7, 11, 12].map(ifindex),
        ))));
        kernel.ensure_hook(hook()).unwrap();
        for rule in rules {
            let op = Op::Add { rule: rule.clone(), handle: Handle(1) };
            assert!(kernel.apply(&[op], Mode::Told)[0].is_done());
        }
        kernel
    }

    fn frame() -> Frame {
        Frame::opaque(mac(2), mac(1), EtherType::ARP)
    }

    #[test]
    fn what_its_hardware_took_is_executed_there_and_the_rest_in_software() {
        let arp = Match::ethertype(crate::key::ArpMatch::any().op(1));
        let redirect = |to| Action::Redirect(ifindex(to));
        let mut kernel =
            with(&[rule(1, arp, redirect(11)), rule(2, Match::any().src(mac(1)), redirect(12))]);
        let own = kernel.dump(hook()).unwrap().own;
        let hw: Vec<HwState> = own.iter().map(|own| own.hw.clone()).collect();
        assert_eq!(hw, [HwState::NotInHw(None), HwState::InHw]);
        let request = crate::frame::Body::Arp {
            op: 1,
            sha: mac(1),
            sip: [192, 0, 2, 1].into(),
            tha: mac(0),
            tip: [192, 0, 2, 2].into(),
        };
        // Software would have sent it to 11.
        let walk = kernel.deliver(hook(), &frame().with_body(request));
        assert_eq!(walk.hardware.deliveries.len(), 1);
        assert_eq!(walk.hardware.deliveries[0].0, ifindex(12));
        let elsewhere = Frame { src: mac(3), ..frame() };
        assert_eq!(kernel.deliver(hook(), &elsewhere).together().to_host, Some(elsewhere));
        let counted = kernel.dump(hook()).unwrap().own;
        let packets = counted.iter().map(|own| own.stats.hardware.packets);
        assert_eq!(packets.collect::<Vec<u64>>(), [0, 1]);
    }

    #[test]
    fn a_rule_whose_destination_vanished_drops_what_it_redirected() {
        let mut kernel = with(&[rule(1, Match::any(), Action::Redirect(ifindex(11)))]);
        kernel.remove_interface(ifindex(11));
        assert!(kernel.deliver(hook(), &frame()).together().dropped);
        assert_eq!(kernel.dump(hook()).unwrap().unreadable_own.len(), 1);
    }

    #[test]
    fn faults_come_when_asked_for_and_pass() {
        let one = rule(1, Match::any(), Action::Drop);
        let add = Op::Add { rule: one.clone(), handle: Handle(1) };
        let mut kernel = with(&[]);
        kernel.refuse_changes(1, 16);
        let busy = Outcome::Refused { errno: 16, message: None, attribute: None };
        assert_eq!(kernel.apply(&[add.clone(), add.clone()], Mode::Told), [busy, Outcome::InHw]);
        kernel.lose_outcomes(1);
        let delete = Op::Delete { id: one.id().clone(), handle: Handle(1) };
        assert_eq!(kernel.apply(&[delete], Mode::Fast), [Outcome::Unknown]);
        kernel.fail_dump(DumpFault::Interrupted);
        kernel.fail_dump(DumpFault::Refused(4));
        assert!(matches!(kernel.dump(hook()), Err(Error::Interrupted { .. })));
        assert!(matches!(kernel.dump_terse(hook()), Err(Error::Refused { errno: 4, .. })));
        assert_eq!(kernel.dump(hook()).unwrap().own, []);
        kernel.watch();
        kernel.apply(std::slice::from_ref(&add), Mode::Fast);
        kernel.lose_notices();
        assert_eq!(kernel.notices(), [Notice::Lost]);
        assert_eq!(kernel.notices(), []);
        kernel.set_capacity(0);
        let other = rule(2, Match::any(), Action::Drop);
        let other = Op::Add { rule: other, handle: Handle(1) };
        let refused = &kernel.apply(&[other], Mode::Fast)[0];
        assert!(matches!(refused, Outcome::Refused { errno: 28, .. }));
    }
}
