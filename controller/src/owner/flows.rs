//! What is installed on one adapter, and the next job that brings it to its program.
//!
//! In: the planned program, and what the kernel answered. Out: jobs. No I/O: the kernel is the
//! truth, and this is what it said last.

use std::{
    borrow::Cow,
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use api::{resources::FlowState, types::Id};
use tc_flows::{
    Dump, Foreign, Handle, Hook, HwState, Ifindex, Installed, InstalledRule, Offload, Op, Outcome,
    Plan, Rule, RuleId, RuleLocation, TerseDump, TerseRule, diff_hooks,
};

use super::{
    drift::{self, Repairs},
    ledger::{Entry, Ledger, State},
};
use crate::{
    apply::{
        flows::{self, FlowDone, FlowJob, Found, Look, place_of},
        probe::PROBE_OWNER,
    },
    daemon::FLOW_OWNER,
    plan::switchdev::{Answer, FlowDelta, FlowProgram, Why},
};

/// How long after a hook was read it is read again at the earliest: somebody else who changes
/// filters without end may not keep the kernel's thread busy.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// Each hook is looked at this often even where nobody told of a change: what hardware holds can
/// change without a notification.
const AUDIT: Duration = Duration::from_secs(900);

/// Why a rule is for software only where hardware might take it.
const OVERTAKES: &str = "in hardware it would overtake rules that hardware does not hold";

/// Hooks that one job reads again at most: flows of other hooks do not wait for all.
const READ_AGAIN_MOST: usize = 4;

/// Rules of a hook that are walked over in the time in which one is searched for.
const SEARCH: usize = 8;

/// After so many changes a job takes no more hooks on: what a guest wants next does not wait until
/// all that was wanted before it is done.
const CHANGES_ENOUGH: usize = 4096;

/// The flows of one adapter as the kernel reported them.
#[derive(Debug, Default)]
pub(super) struct AdapterFlows {
    known: Known,
    /// The hooks that the program covers.
    hooks: BTreeSet<Hook>,
    /// Those of them that have been read.
    adopted: BTreeMap<Hook, Read>,
    /// Hooks at which what is installed may be something else than what is wanted.
    unsettled: BTreeSet<Hook>,
    /// Hooks that somebody else may have changed since they were read; who, by netlink port, where
    /// that is known.
    suspects: BTreeMap<Hook, Option<u32>>,
    /// Hooks that the job under way reads again.
    reading: BTreeMap<Hook, Option<u32>>,
    /// Hooks of which an audit wants to see whether places and cookies are as they were.
    glances: BTreeSet<Hook>,
    /// Hooks at which the cookies alone do not tell what stands there.
    unrecognised: BTreeSet<Hook>,
    /// Why rules that are tried again were refused before: the same again is no news.
    told: BTreeMap<RuleId, String>,
    foreign: BTreeMap<Hook, Vec<Foreign>>,
    /// Unusable hooks of which no whole answer came.
    unanswered: BTreeSet<Hook>,
    ledger: Ledger,
    under_way: bool,
}

/// What is known of rules.
#[derive(Debug, Default)]
struct Known {
    installed: Installed,
    /// Hooks that could not be made or read, with the reason.
    unusable: BTreeMap<Hook, String>,
    /// Wanted rules that the kernel did not take, with its words.
    refused: BTreeMap<RuleId, String>,
}

impl Known {
    /// What has become of a wanted rule.
    fn state(&self, rule: &Rule) -> State<'_> {
        self.state_beside(rule, self.installed.get(rule.id()))
    }

    /// The wanted rules of a hook: why each is wanted, and what has become of it.
    fn states<'k>(
        &'k self,
        program: &'k FlowProgram,
        hook: Hook,
    ) -> impl Iterator<Item = (&'k Why, State<'k>)> {
        // Both are in order of identity.
        let mut held = self.installed.of_hook(hook).peekable();
        program.rules.of_hook_noted(hook).map(move |(rule, why)| {
            while held.next_if(|held| held.rule.id() < rule.id()).is_some() {}
            let held = held.next_if(|held| held.rule.id() == rule.id());
            (&**why, self.state_beside(rule, held))
        })
    }

    /// What has become of a wanted rule at whose identity this is installed.
    fn state_beside<'k>(&'k self, rule: &Rule, held: Option<&'k InstalledRule>) -> State<'k> {
        let refusal = || self.refused.get(rule.id()).or_else(|| self.unusable.get(&rule.hook()));
        match held {
            // Software does without a rule that is for hardware only.
            _ if let Some(words) = refusal() => match rule.offload() {
                Offload::SkipSw => (FlowState::NotInHw, Some(words)),
                _ => (FlowState::Refused, Some(words)),
            },
            Some(held) if held.rule == *rule => match &held.hw {
                HwState::InHw => (FlowState::InHw, None),
                HwState::NotInHw(words) => (FlowState::NotInHw, words.as_deref()),
                HwState::NotAsked => (FlowState::NotInHw, None),
            },
            Some(held)
                if held.rule.offload() == Offload::SkipHw && held.rule.is_but_for_offload(rule) =>
            {
                (FlowState::NotInHw, Some(OVERTAKES))
            }
            _ => (FlowState::Pending, None),
        }
    }
}

/// A hook that has been read.
#[derive(Debug)]
struct Read {
    at: Instant,
    /// Whether all of it was read, and not its cookies only.
    audited: bool,
    /// When changes of others were found and repaired.
    repairs: Repairs,
}

impl Read {
    fn new(at: Instant) -> Read {
        Read { at, audited: true, repairs: Repairs::default() }
    }

    /// When it may be read again.
    fn due(&self) -> Instant {
        self.at + if self.repairs.fight().is_some() { drift::PAUSE } else { READ_AGAIN }
    }
}

/// What others did to our rules of a hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drift {
    /// Rules that are gone.
    pub(super) deleted: u64,
    /// Rules that are others now, their actions or flags.
    pub(super) changed: u64,
    /// Rules under our cookie that we did not install.
    pub(super) added: u64,
}

impl Drift {
    /// From what was installed at the hook to what a dump shows there.
    fn between(installed: &Installed, hook: Hook, dump: &Dump) -> Drift {
        let mut there: BTreeMap<&RuleId, (&Rule, u32)> =
            dump.own.iter().map(|own| (own.rule.id(), (&own.rule, own.handle.0))).collect();
        let mut drift = Drift::default();
        for held in installed.of_hook(hook) {
            match there.remove(held.rule.id()) {
                None => drift.deleted += 1,
                Some(found) if found != (&held.rule, held.handle.0) => drift.changed += 1,
                Some(_) => {}
            }
        }
        // A rule that somebody changed disagrees with its cookie: that one is not gone.
        let unreadable = (dump.unreadable_own.len() as u64).min(drift.deleted);
        drift.deleted -= unreadable;
        drift.changed += unreadable;
        drift.added = there.len() as u64 + dump.unreadable_own.len() as u64 - unreadable;
        drift
    }

    /// Each kind with its number, as metrics name it.
    pub(super) fn by_kind(self) -> [(&'static str, u64); 3] {
        [("deleted", self.deleted), ("changed", self.changed), ("added", self.added)]
    }
}

/// What a finished job did, for metrics and the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Changes that took effect.
    pub(super) done: u64,
    /// Changes that the kernel refused, with its words; not those that it refused alike before.
    pub(super) refused: Vec<String>,
    /// Changes whose outcome is not known; their hooks are read again.
    pub(super) unknown: u64,
    /// Hooks that could not be made or read, with the reason.
    pub(super) unusable: Vec<String>,
    /// Rules found and kept from an earlier run.
    pub(super) adopted: u64,
    /// What others had changed where, and who by netlink port; the next job repairs it.
    pub(super) drift: Vec<(Hook, Drift, Option<u32>)>,
}

impl AdapterFlows {
    /// The next job, if there is anything to do and none is under way. A hook is read before
    /// anything on it is changed, and read again where others may have changed it; hooks of netdevs
    /// in `held` are left alone for now.
    pub(super) fn next_job(
        &mut self,
        adapter: &Id,
        program: &FlowProgram,
        held: &BTreeSet<Ifindex>,
        now: Instant,
    ) -> Option<FlowJob> {
        let adopted = &self.adopted;
        let is_due = |hook: &Hook| adopted.get(hook).is_none_or(|read| read.due() <= now);
        let any_due = self.suspects.keys().any(is_due);
        if self.under_way || self.unsettled.is_empty() && self.glances.is_empty() && !any_due {
            return None;
        }
        let (Plan { mut ops, gaps }, later) = self.missing(program);
        // What is wanted of a suspect hook does not wait for a fight to end.
        let touched: BTreeSet<Hook> = ops.iter().map(|op| op.id().hook()).collect();
        let adopted = &self.adopted;
        let is_due = |hook: &Hook| adopted.get(hook).is_none_or(|read| read.due() <= now);
        let again = self.suspects.keys().filter(|hook| is_due(hook) || touched.contains(hook));
        let again: Vec<Hook> = again.take(READ_AGAIN_MOST).copied().collect();
        self.reading.clear();
        for hook in again {
            self.reading.extend(self.suspects.remove_entry(&hook));
        }
        let waits =
            |hook: &Hook| self.suspects.contains_key(hook) || self.reading.contains_key(hook);
        ops.retain(|op| !waits(&op.id().hook()));
        let left_alone = |hook: &Hook| {
            self.known.unusable.contains_key(hook)
                || hook.ifindex().is_some_and(|ifindex| held.contains(&ifindex))
        };
        let is_read = |hook: &Hook| self.adopted.contains_key(hook);
        let unread = self.unsettled.iter().filter(|hook| self.hooks.contains(hook));
        let unread = unread.filter(|hook| !is_read(hook) && !left_alone(hook));
        let mut adopt: Vec<(Hook, Look)> = unread
            .map(|hook| match self.unrecognised.contains(hook) {
                true => (*hook, Look::Whole),
                false => (*hook, Look::Cookies),
            })
            .collect();
        adopt.extend(self.reading.keys().map(|hook| (*hook, Look::Whole)));
        let glances = std::mem::take(&mut self.glances).into_iter();
        let glances = glances.filter(|hook| self.adopted.contains_key(hook) && !waits(hook));
        adopt.extend(glances.map(|hook| (hook, Look::Cookies)));
        // Hooks that are left alone, or have others read them first, are looked at again after.
        let stays = |hook: &&Hook| {
            waits(hook) || later.contains(hook) || self.hooks.contains(hook) && !is_read(hook)
        };
        self.unsettled = self.unsettled.iter().filter(stays).copied().collect();
        self.under_way = !(adopt.is_empty() && ops.is_empty());
        let more = !later.is_empty();
        self.under_way.then(|| FlowJob { adapter: adapter.clone(), adopt, ops, gaps, more })
    }

    /// The program is another: `program` is what it is now, `delta` what changed in it.
    pub(super) fn planned(&mut self, program: &FlowProgram, delta: &FlowDelta) {
        for (rule, why) in &delta.gone {
            self.ledger.book(why, self.known.state(rule), Entry::Out);
            self.known.refused.remove(rule.id());
            if !program.rules.contains(rule.id()) {
                self.told.remove(rule.id());
            }
            self.unsettled.insert(rule.hook());
        }
        if delta.hardware {
            self.unsettled.extend(self.hooks.iter().copied());
        }
        if delta.netdevs {
            self.cover(program.hooks().collect());
        }
        let mut last = None;
        for (rule, why) in &delta.put {
            self.ledger.book(why, self.known.state(rule), Entry::In);
            if last.replace(rule.hook()) != Some(rule.hook()) {
                self.unsettled.insert(rule.hook());
            }
        }
    }

    /// These hooks are the program's: to be read where they were not.
    fn cover(&mut self, hooks: BTreeSet<Hook>) {
        self.unsettled.extend(self.hooks.symmetric_difference(&hooks).copied());
        self.known.unusable.retain(|hook, _| hooks.contains(hook));
        self.unanswered.retain(|hook| hooks.contains(hook));
        self.foreign.retain(|hook, _| hooks.contains(hook));
        self.adopted.retain(|hook, _| hooks.contains(hook));
        self.suspects.retain(|hook, _| hooks.contains(hook));
        self.unrecognised.retain(|hook| hooks.contains(hook));
        self.hooks = hooks;
    }

    /// Books all wanted rules of a hook: out before something is noted about it, in after.
    fn book_hook(&mut self, program: &FlowProgram, hook: Hook, entry: Entry) {
        for (why, state) in self.known.states(program, hook) {
            self.ledger.book(why, state, entry);
        }
    }

    /// The same for one rule.
    fn book_rule(&mut self, program: &FlowProgram, id: &RuleId, entry: Entry) {
        if let Some((rule, why)) = program.rules.get_noted(id) {
            self.ledger.book(why, self.known.state(rule), entry);
        }
    }

    /// How many flows are in which state.
    pub(super) const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The ports whose flows are in other states than when this was asked last.
    pub(super) fn take_touched(&mut self) -> Vec<Id> {
        self.ledger.take_touched()
    }

    /// The kernel's words about the first flow of this port that it refused.
    pub(super) fn refusal(&self, program: &FlowProgram, port: &Id) -> Option<&str> {
        let is_ports = |why: &Why| why.port.as_ref() == Some(port);
        let of_port = |id: &RuleId| program.rules.get_noted(id).is_some_and(|(_, w)| is_ports(w));
        let Known { refused, unusable, .. } = &self.known;
        let refused = refused.iter().find(|(id, _)| of_port(id));
        refused.map(|(_, reason)| reason.as_str()).or_else(|| {
            let of_hook =
                |hook: &Hook| program.rules.of_hook_noted(*hook).any(|(_, why)| is_ports(why));
            let unusable = unusable.iter().find(|(hook, _)| of_hook(hook));
            unusable.map(|(_, reason)| reason.as_str())
        })
    }

    /// There is no program any more: what is known of the adapter's hooks is known no longer.
    pub(super) fn withdraw(&mut self) {
        let mut ledger = std::mem::take(&mut self.ledger);
        ledger.close();
        *self = AdapterFlows { ledger, under_way: self.under_way, ..AdapterFlows::default() };
    }

    /// Hooks are no longer held.
    pub(super) fn reconsider(&mut self) {
        let unread = self.hooks.iter().filter(|hook| !self.adopted.contains_key(hook));
        self.unsettled.extend(unread);
    }

    /// Somebody else may have changed this hook; who, by netlink port, where that is known.
    pub(super) fn suspect(&mut self, hook: Hook, by: Option<u32>) {
        if self.adopted.contains_key(&hook) {
            self.suspects.insert(hook, by);
        }
    }

    /// Somebody else may have changed anything.
    pub(super) fn suspect_all(&mut self) {
        for hook in self.adopted.keys() {
            self.suspects.entry(*hook).or_insert(None);
        }
    }

    /// Has hooks read again that were not read for long: so many in each of `rounds` that all are
    /// within [`AUDIT`].
    pub(super) fn audit(&mut self, now: Instant, every: Duration) {
        let rounds = (AUDIT.as_millis() / every.as_millis().max(1)).max(1) as usize;
        let most = self.adopted.len().div_ceil(rounds);
        let mut old: Vec<(Instant, Hook)> = self
            .adopted
            .iter()
            .filter(|(hook, read)| {
                let old = !read.audited || now.duration_since(read.at) >= AUDIT;
                old && !self.suspects.contains_key(hook) && !self.glances.contains(hook)
            })
            .map(|(hook, read)| (read.at, *hook))
            .collect();
        old.sort_unstable();
        for (_, hook) in old.into_iter().take(most) {
            match self.adopted.get(&hook) {
                Some(Read { audited: true, .. }) => {
                    self.glances.insert(hook);
                }
                _ => {
                    self.suspects.insert(hook, None);
                }
            }
        }
        for read in self.adopted.values_mut() {
            read.repairs.forget(now);
        }
    }

    /// Hooks whose rules somebody else changes again and again, with the number of repairs within
    /// the last minute.
    pub(super) fn fights(&self) -> impl Iterator<Item = (Hook, usize)> {
        self.adopted.iter().filter_map(|(hook, read)| Some((*hook, read.repairs.fight()?)))
    }

    /// The changes from installed to wanted at hooks that may differ, as far as they are read, with
    /// what is installed in the place of what the kernel refused. (To take those changes out
    /// afterwards would tear holes into the order of the others.) Also the hooks that another job
    /// must do.
    fn missing(&self, program: &FlowProgram) -> (Plan, BTreeSet<Hook>) {
        let Known { installed, refused, .. } = &self.known;
        let read = |hook: &&Hook| self.adopted.contains_key(hook) || !self.hooks.contains(hook);
        let hooks: Vec<(Hook, OnceCell<_>)> =
            self.unsettled.iter().filter(read).map(|hook| (*hook, OnceCell::new())).collect();
        let mut hooks = hooks.iter();
        let wanted = hooks.by_ref().map(|(hook, rules)| {
            let rules: &Vec<Cow<'_, Rule>> = rules.get_or_init(|| self.in_hardware(program, *hook));
            let attainable =
                rules.iter().filter_map(|rule| match refused.contains_key(rule.id()) {
                    true => installed.get(rule.id()).map(|held| &held.rule),
                    false => Some(&**rule),
                });
            (*hook, attainable.collect())
        });
        let plan = diff_hooks(installed, wanted, CHANGES_ENOUGH);
        (plan, hooks.map(|(hook, _)| *hook).collect())
    }

    /// The rules of a hook as hardware may hold them, by what the driver has said so far.
    fn in_hardware<'p>(&self, program: &'p FlowProgram, hook: Hook) -> Vec<Cow<'p, Rule>> {
        let rules = program.rules.of_hook(hook);
        let Some(hardware) = &program.hardware else { return rules.map(Cow::Borrowed).collect() };
        let Known { installed, refused, .. } = &self.known;
        hardware.attainable(rules, |rule| match installed.get(rule.id()) {
            Some(held) if held.rule == *rule => match held.hw {
                HwState::InHw => Answer::Taken,
                HwState::NotInHw(_) => Answer::Refused,
                HwState::NotAsked => Answer::None,
            },
            _ if refused.contains_key(rule.id()) => Answer::Refused,
            _ => Answer::None,
        })
    }

    /// Whether the hook of this netdev is read and nothing is under way.
    pub(super) fn settled(&self, netdev: Ifindex) -> bool {
        !self.under_way && self.adopted.contains_key(&Hook::ingress(netdev))
    }

    /// Whether nothing is on its way to this hook, as far as it can be.
    pub(super) fn is_settled(&self, hook: &Hook) -> bool {
        !self.under_way && !self.unsettled.contains(hook)
    }

    /// Notes what a job did, and takes what it read out of it.
    pub(super) fn done(&mut self, program: &FlowProgram, done: &mut FlowDone) -> Tally {
        self.under_way = !done.last;
        let mut tally = Tally::default();
        for (hook, found) in std::mem::take(&mut done.adopted) {
            self.book_hook(program, hook, Entry::Out);
            self.unsettled.insert(hook);
            match found {
                Ok(Found::Cookies(dump)) if self.adopted.contains_key(&hook) => {
                    self.compare(hook, dump, done.finished);
                }
                Ok(Found::Cookies(dump)) => {
                    self.recognise(program, hook, dump, done.finished, &mut tally);
                }
                Ok(Found::Whole(dump)) => self.read(hook, dump, done.finished, &mut tally),
                Err(error) => {
                    self.reading.remove(&hook);
                    self.forget(hook);
                    let refused = matches!(error, tc_flows::Error::Refused { .. });
                    let unused = program.rules.of_hook(hook).next().is_none();
                    if refused && unused && matches!(hook, Hook::Egress(_)) {
                        // The qdisc of somebody else that has no egress hook is in nobody's way until
                        // a rule is wanted there: then it is asked for again, since the kernel would
                        // put the rule into the ingress hook.
                        self.unsettled.remove(&hook);
                    } else {
                        if !refused {
                            self.unanswered.insert(hook);
                        }
                        tally.unusable.push(error.to_string());
                        self.known.unusable.insert(hook, error.to_string());
                    }
                }
            }
            self.book_hook(program, hook, Entry::In);
        }
        let same_hook =
            |(one, _): &(Op, _), (next, _): &(Op, _)| one.id().hook() == next.id().hook();
        for changes in done.outcomes.chunk_by(same_hook) {
            self.note(program, changes, &mut tally);
        }
        tally
    }

    /// Notes what became of changes at one hook.
    fn note(&mut self, program: &FlowProgram, changes: &[(Op, Outcome)], tally: &mut Tally) {
        let Some(hook) = changes.first().map(|(op, _)| op.id().hook()) else { return };
        let is_lost = |(op, outcome): &(Op, Outcome)| match outcome {
            Outcome::Unknown => true,
            Outcome::Refused { .. } => matches!(op, Op::Delete { .. }),
            _ => false,
        };
        // All rules are booked in one walk where that is less than to search for those.
        let lost = changes.iter().any(is_lost);
        let all = lost || changes.len() * SEARCH >= program.rules.len_at(hook);
        if all {
            self.book_hook(program, hook, Entry::Out);
        }
        for (op, outcome) in changes {
            if !all {
                self.book_rule(program, op.id(), Entry::Out);
            }
            self.note_one(program, op, outcome, tally);
            if !all {
                self.book_rule(program, op.id(), Entry::In);
            }
        }
        if lost {
            self.forget(hook);
        }
        if all {
            self.book_hook(program, hook, Entry::In);
        }
    }

    /// Notes what became of a change, in everything but the books.
    fn note_one(&mut self, program: &FlowProgram, op: &Op, outcome: &Outcome, tally: &mut Tally) {
        self.known.installed.record(op, outcome);
        match outcome {
            Outcome::Unknown => tally.unknown += 1,
            Outcome::Refused { errno, message, attribute } => {
                self.refuse(program, op, words(*errno, message, attribute), tally);
            }
            _ => {
                tally.done += 1;
                // What hardware holds decides what else it may hold.
                if let Some(hardware) = &program.hardware
                    && let Op::Add { rule, .. } | Op::Replace { rule, .. } = op
                    && rule.offload() != Offload::SkipHw
                    && hardware.is_news(rule, *outcome == Outcome::InHw)
                {
                    self.unsettled.insert(op.id().hook());
                }
            }
        }
    }

    /// Notes what the places and cookies at a hook say: all of it, or nothing where one of our
    /// rules there is none that is wanted. (What somebody did to a rule without touching its cookie
    /// is found by the first audit.)
    fn recognise(
        &mut self,
        program: &FlowProgram,
        hook: Hook,
        dump: TerseDump,
        now: Instant,
        tally: &mut Tally,
    ) {
        // What hardware may not hold was installed for software only.
        let asked = program.hardware.is_some() && !dump.own.is_empty();
        let for_software = program.rules.of_hook(hook).filter(|_| asked);
        let for_software: Vec<Rule> =
            for_software.map(|rule| rule.clone().with_offload(Offload::SkipHw)).collect();
        let wanted = program.rules.of_hook(hook).chain(&for_software);
        let recognised = recognised(wanted.map(|rule| (rule, None)), &dump.own);
        let Some(mut recognised) = recognised.filter(|_| self.hooks.contains(&hook)) else {
            self.unrecognised.insert(hook);
            return;
        };
        tally.adopted += recognised.len() as u64;
        if program.hardware.is_none() && recognised.len() == program.rules.of_hook(hook).count() {
            self.unsettled.remove(&hook);
        }
        recognised.sort_unstable_by(|one, other| one.rule.id().cmp(other.rule.id()));
        self.known.installed.replace_hook(hook, recognised);
        self.foreign.insert(hook, dump.foreign);
        self.adopted.insert(hook, Read { audited: false, ..Read::new(now) });
    }

    /// Compares places and cookies at a hook with what is known to be there. Where they differ it is
    /// read whole with the next job.
    fn compare(&mut self, hook: Hook, dump: TerseDump, now: Instant) {
        let installed = self.known.installed.of_hook(hook);
        let known = installed.map(|held| (&held.rule, Some(held.handle)));
        let count = self.known.installed.of_hook(hook).count();
        match recognised(known, &dump.own).filter(|seen| seen.len() == count) {
            Some(seen) => {
                self.known.installed.replace_hook(hook, seen);
                self.foreign.insert(hook, dump.foreign);
                if let Some(read) = self.adopted.get_mut(&hook) {
                    read.at = now;
                }
            }
            None => self.suspect(hook, None),
        }
    }

    /// Notes what was found at a hook.
    fn read(&mut self, hook: Hook, mut dump: Dump, now: Instant, tally: &mut Tally) {
        self.unrecognised.remove(&hook);
        if self.hooks.contains(&hook) {
            let read = self.adopted.entry(hook).or_insert(Read::new(now));
            (read.at, read.audited) = (now, true);
        }
        if let Some(by) = self.reading.remove(&hook) {
            take_back(&self.known.installed, hook, &mut dump);
            let drift = Drift::between(&self.known.installed, hook, &dump);
            if drift != Drift::default() {
                if let Some(read) = self.adopted.get_mut(&hook) {
                    read.repairs.note(now);
                }
                tally.drift.push((hook, drift, by));
            }
        } else {
            tally.adopted += dump.own.len() as u64;
        }
        // What was noted after it was forgotten is no knowledge.
        self.known.installed.remove_hook(hook);
        self.known.installed.adopt(&dump);
        self.foreign.insert(hook, dump.foreign);
    }

    fn refuse(&mut self, program: &FlowProgram, op: &Op, reason: String, tally: &mut Tally) {
        self.unsettled.insert(op.id().hook());
        match op {
            Op::Delete { .. } => tally.refused.push(reason),
            Op::Add { rule, .. } | Op::Replace { rule, .. } => {
                if self.told.insert(rule.id().clone(), reason.clone()).as_ref() != Some(&reason) {
                    tally.refused.push(reason.clone());
                }
                // Another one may be wanted by now.
                let is_wanted = match program.rules.get(rule.id()) {
                    Some(wanted) => wanted.is_but_for_offload(rule),
                    None => rule.offload() == Offload::SkipSw,
                };
                if is_wanted {
                    self.known.refused.insert(rule.id().clone(), reason);
                }
            }
        }
    }

    /// Forgets what a hook holds, so that it is read again.
    fn forget(&mut self, hook: Hook) {
        self.adopted.remove(&hook);
        self.suspects.remove(&hook);
        self.known.installed.remove_hook(hook);
        self.unsettled.insert(hook);
    }

    /// Gives what was refused or unusable another chance with the next job.
    pub(super) fn retry(&mut self, program: &FlowProgram) {
        let refused = self.known.refused.keys().map(RuleId::hook);
        let hooks = refused.chain(self.known.unusable.keys().copied()).collect();
        self.try_again(program, hooks);
    }

    /// Likewise, but only where an answer was lost: that says nothing about the next one.
    pub(super) fn retry_unanswered(&mut self, program: &FlowProgram) {
        let hooks = std::mem::take(&mut self.unanswered);
        self.try_again(program, hooks);
    }

    fn try_again(&mut self, program: &FlowProgram, hooks: BTreeSet<Hook>) {
        for hook in &hooks {
            self.book_hook(program, *hook, Entry::Out);
        }
        self.known.refused.retain(|rule, _| !hooks.contains(&rule.hook()));
        self.known.unusable.retain(|hook, _| !hooks.contains(hook));
        for hook in &hooks {
            self.book_hook(program, *hook, Entry::In);
        }
        self.unsettled.extend(hooks);
    }

    /// Whether a job is under way.
    pub(super) fn under_way(&self) -> bool {
        self.under_way
    }

    /// What has become of a wanted rule, with the kernel's words where it refused it or its offload.
    pub(super) fn state(&self, rule: &Rule) -> State<'_> {
        self.known.state(rule)
    }

    /// The ledger as counting everything anew gives it.
    #[cfg(test)]
    pub(super) fn counted(&self, program: &FlowProgram) -> Ledger {
        let mut ledger = Ledger::default();
        for (rule, why) in program.rules.iter_noted() {
            ledger.book(why, self.state(rule), Entry::In);
        }
        ledger
    }

    /// What is known to be installed at a hook.
    pub(super) fn installed_at(&self, hook: Hook) -> impl Iterator<Item = &InstalledRule> {
        self.known.installed.of_hook(hook)
    }

    /// Filters of other owners on this adapter's hooks; those of a probe are ours.
    pub(super) fn foreign_filters(&self) -> u64 {
        let strange = |filter: &&Foreign| filter.owner != Some(PROBE_OWNER);
        self.foreign.values().flatten().filter(strange).count() as u64
    }
}

/// What is found, as the rules that are known by their cookies and places, under these handles
/// where that counts, and in their order: all of it or nothing.
fn recognised<'r>(
    known: impl Iterator<Item = (&'r Rule, Option<Handle>)>,
    found: &[TerseRule],
) -> Option<Vec<InstalledRule>> {
    let rules = known.filter_map(|(rule, handle)| {
        let (cookie, id) = (rule.cookie(FLOW_OWNER), rule.id());
        let place = place_of(cookie, id.chain(), id.prio());
        let own = found.get(found.binary_search_by_key(&place, flows::place).ok()?)?;
        let is_it =
            own.location == RuleLocation::of(id) && handle.is_none_or(|known| known == own.handle);
        is_it.then(|| InstalledRule { rule: rule.clone(), handle: own.handle, hw: own.hw.clone() })
    });
    let rules: Vec<InstalledRule> = rules.collect();
    (rules.len() == found.len()).then_some(rules)
}

/// A filter without our cookie, but of the handle and in the place of a rule of ours, is that rule:
/// replaced by somebody else, since a replacement keeps the handle. It is ours to repair.
fn take_back(installed: &Installed, hook: Hook, dump: &mut Dump) {
    if dump.foreign.is_empty() {
        return;
    }
    let ours: BTreeMap<(u32, u16, u32), RuleLocation> = installed
        .of_hook(hook)
        .map(|held| {
            let (id, handle) = (held.rule.id(), held.handle);
            ((id.chain().get(), id.prio().get(), handle.0), RuleLocation::of(id))
        })
        .collect();
    let Dump { foreign, unreadable_own, .. } = dump;
    foreign.retain(|filter| {
        let taken = ours.get(&(filter.chain, filter.prio, filter.handle.0));
        unreadable_own.extend(taken.map(|location| (*location, filter.handle)));
        taken.is_none()
    });
}

/// The kernel's own words, or the error number's where it had none.
fn words(errno: i32, message: &Option<String>, attribute: &Option<String>) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    let words = match message {
        Some(message) => format!("{message} ({error})"),
        None => error.to_string(),
    };
    match attribute {
        Some(attribute) => format!("{words}: {attribute}"),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tc_flows::{Action, ChainId, FakeKernel, Kernel as _, Mac, Match, Mode, Prio};

    use super::*;
    use crate::{
        apply::flows::run,
        plan::switchdev::{Purpose, Why},
        world::NetdevView,
    };

    fn hook(index: u32) -> Hook {
        Hook::ingress(Ifindex::new(index).unwrap())
    }

    fn rule_that(at: Hook, source: u8, action: Action) -> Rule {
        let matching = Match::any().src(Mac([2, 0, 0, 0, 0, source]));
        Rule::new(at, ChainId::ZERO, Prio::new(1).unwrap(), matching, [action]).unwrap()
    }

    fn rule(at: Hook, source: u8) -> Rule {
        rule_that(at, source, Action::Drop)
    }

    /// Two netdevs with rules for as many sources each.
    fn program(sources: u8) -> FlowProgram {
        let mut program = FlowProgram::default();
        for index in [7, 8] {
            let ifindex = Ifindex::new(index).unwrap();
            let netdev = NetdevView { ifindex, name: format!("rep{index}"), mac: None };
            program.netdevs.insert(ifindex, netdev);
            for source in 0..sources {
                let rule = rule(hook(index), source);
                let port = Some(format!("port{source}").parse().unwrap());
                let why = Arc::new(Why { purpose: Purpose::Flood, port, network: None });
                program.rules.insert_noted(rule, why).unwrap();
            }
        }
        program
    }

    /// Everything of `program` that was not in `before`.
    fn since(before: &FlowProgram, program: &FlowProgram) -> FlowDelta {
        let new = program.rules.iter_noted().filter(|(rule, _)| !before.rules.contains(rule.id()));
        FlowDelta {
            put: new.map(|(rule, why)| (rule.clone(), Arc::clone(why))).collect(),
            gone: Vec::new(),
            netdevs: before.netdevs != program.netdevs,
            hardware: before.hardware != program.hardware,
        }
    }

    struct Rig {
        kernel: FakeKernel,
        flows: AdapterFlows,
        now: Instant,
    }

    impl Rig {
        /// Everything installed, and nothing to do.
        fn settled(program: &FlowProgram) -> Rig {
            let mut kernel = FakeKernel::new(FLOW_OWNER);
            kernel.set_interfaces(program.netdevs.keys().copied());
            let mut rig = Rig { kernel, flows: AdapterFlows::default(), now: Instant::now() };
            rig.flows.planned(program, &since(&FlowProgram::default(), program));
            rig.settle(program);
            rig
        }

        /// Does what there is to do now: what the jobs did.
        fn settle(&mut self, program: &FlowProgram) -> Vec<Tally> {
            let id: Id = "nic".parse().unwrap();
            let mut tallies = Vec::new();
            while let Some(job) = self.flows.next_job(&id, program, &BTreeSet::new(), self.now) {
                let mut parts = Vec::new();
                run(&mut self.kernel, job, |part| parts.push(part));
                for mut part in parts {
                    part.finished = self.now;
                    tallies.push(self.flows.done(program, &mut part));
                }
            }
            assert!(self.flows.ledger.agrees(&self.flows.counted(program)));
            tallies
        }

        /// Somebody else deletes a rule.
        fn steal(&mut self, stolen: &Rule) {
            let held = self.flows.known.installed.get(stolen.id()).unwrap();
            let op = Op::Delete { id: stolen.id().clone(), handle: held.handle };
            assert!(self.kernel.apply(&[op], Mode::Told)[0].is_done());
        }

        fn holds(&self, program: &FlowProgram) -> bool {
            self.kernel.rules().eq(program.rules.iter())
        }
    }

    fn drift(tallies: &[Tally]) -> Vec<(Hook, Drift, Option<u32>)> {
        tallies.iter().flat_map(|tally| tally.drift.clone()).collect()
    }

    #[test]
    fn what_somebody_else_deleted_is_found_counted_and_put_back() {
        let program = program(3);
        let mut rig = Rig::settled(&program);
        assert!(rig.holds(&program));
        rig.steal(&rule(hook(7), 1));
        assert_eq!(rig.settle(&program), [], "nobody told");

        rig.now += READ_AGAIN;
        rig.flows.suspect(hook(7), Some(4711));
        let tallies = rig.settle(&program);
        let deleted = Drift { deleted: 1, ..Drift::default() };
        assert_eq!(drift(&tallies), [(hook(7), deleted, Some(4711))]);
        assert_eq!(tallies.iter().map(|tally| tally.done).sum::<u64>(), 1);
        assert!(rig.holds(&program));
        assert_eq!(rig.settle(&program), []);
    }

    #[test]
    fn a_rule_with_other_actions_is_changed_and_one_more_is_added() {
        let program = program(2);
        let mut rig = Rig::settled(&program);
        let other = rule_that(hook(7), 0, Action::Pass);
        let handle = rig.flows.known.installed.get(other.id()).unwrap().handle;
        let stranger = Op::Add { rule: rule(hook(7), 99), handle: tc_flows::Handle(99) };
        let ops = [Op::Replace { rule: other, handle }, stranger];
        assert!(rig.kernel.apply(&ops, Mode::Told).iter().all(Outcome::is_done));

        rig.now += READ_AGAIN;
        rig.flows.suspect_all();
        let found = drift(&rig.settle(&program));
        assert_eq!(found, [(hook(7), Drift { deleted: 0, changed: 1, added: 1 }, None)]);
        assert!(rig.holds(&program));
    }

    #[test]
    fn a_rule_that_somebody_replaced_by_one_of_theirs_is_ours_still() {
        let program = program(2);
        let mut rig = Rig::settled(&program);
        let stolen = rule(hook(7), 0);
        let handle = rig.flows.known.installed.get(stolen.id()).unwrap().handle;
        rig.steal(&stolen);
        let foreign = |prio, handle| Foreign {
            chain: 0,
            prio,
            protocol: stolen.id().matching().protocol(),
            handle,
            kind: "flower".to_owned(),
            owner: None,
        };
        rig.kernel.add_foreign(hook(7), foreign(1, handle));
        rig.kernel.add_foreign(hook(7), foreign(50_000, handle));
        rig.now += READ_AGAIN;
        rig.flows.suspect(hook(7), None);
        let found = drift(&rig.settle(&program));
        assert_eq!(found, [(hook(7), Drift { changed: 1, ..Drift::default() }, None)]);
        assert!(rig.holds(&program));
        assert_eq!(rig.flows.foreign_filters(), 1);
    }

    #[test]
    fn who_changes_nothing_of_ours_causes_reading_and_no_change() {
        let program = program(2);
        let mut rig = Rig::settled(&program);
        rig.now += READ_AGAIN;
        rig.flows.suspect_all();
        let tallies = rig.settle(&program);
        assert_eq!(drift(&tallies), []);
        assert_eq!(tallies.iter().map(|tally| tally.done).sum::<u64>(), 0);
    }

    #[test]
    fn a_hook_is_not_read_again_before_its_time_but_then_it_is() {
        let program = program(2);
        let mut rig = Rig::settled(&program);
        rig.steal(&rule(hook(8), 0));
        rig.flows.suspect(hook(8), None);
        assert_eq!(rig.settle(&program), []);
        rig.now += READ_AGAIN;
        assert_eq!(drift(&rig.settle(&program)).len(), 1);
        assert!(rig.holds(&program));
    }

    #[test]
    fn a_fight_is_told_and_fought_less_often_until_it_ends_but_what_is_wanted_does_not_wait() {
        let mut wanted = program(2);
        let mut rig = Rig::settled(&wanted);
        for _ in 0..=drift::FIGHT {
            rig.now += READ_AGAIN;
            rig.steal(&rule(hook(7), 0));
            rig.flows.suspect(hook(7), None);
            assert_eq!(drift(&rig.settle(&wanted)).len(), 1);
        }
        assert_eq!(rig.flows.fights().collect::<Vec<_>>(), [(hook(7), drift::FIGHT + 1)]);

        rig.steal(&rule(hook(7), 0));
        rig.now += READ_AGAIN;
        rig.flows.suspect(hook(7), None);
        assert_eq!(rig.settle(&wanted), []);
        // A new rule is wanted there.
        let before = std::mem::replace(&mut wanted, program(3));
        rig.flows.planned(&wanted, &since(&before, &wanted));
        rig.settle(&wanted);
        assert!(rig.holds(&wanted));

        rig.now += drift::WINDOW + READ_AGAIN;
        rig.flows.audit(rig.now, Duration::from_secs(1));
        assert_eq!(rig.flows.fights().count(), 0);
    }

    #[test]
    fn an_audit_finds_what_nobody_told_of_within_its_period() {
        let every = Duration::from_secs(1);
        let program = program(2);
        let mut rig = Rig::settled(&program);
        rig.steal(&rule(hook(7), 0));
        rig.steal(&rule(hook(8), 1));
        rig.flows.audit(rig.now + AUDIT - every, every);
        assert_eq!(rig.settle(&program), [], "not yet");
        rig.now += AUDIT;
        let mut found = 0;
        for _ in 0..2 {
            rig.now += every;
            rig.flows.audit(rig.now, every);
            found += drift(&rig.settle(&program)).len();
        }
        assert_eq!(found, 2);
        assert!(rig.holds(&program));
    }

    #[test]
    fn a_hook_that_cannot_be_read_again_is_forgotten_and_adopted_later() {
        let program = program(2);
        let mut rig = Rig::settled(&program);
        rig.steal(&rule(hook(7), 0));
        rig.now += READ_AGAIN;
        rig.flows.suspect(hook(7), None);
        rig.kernel.fail_dump(tc_flows::DumpFault::Interrupted);
        let unusable: usize = rig.settle(&program).iter().map(|tally| tally.unusable.len()).sum();
        assert_eq!(unusable, 1);
        rig.flows.retry(&program);
        rig.settle(&program);
        assert!(rig.holds(&program));
    }
}
