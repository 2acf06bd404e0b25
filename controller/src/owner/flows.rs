//! What is installed on one adapter, and the next job that brings it to its program.
//!
//! In: the planned program, and what the kernel answered. Out: jobs. No I/O: the kernel is the
//! truth, and this is what it said last.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use api::{
    resources::{FlowCounts, FlowState},
    types::Id,
};
use tc_flows::{
    Dump, Foreign, Hook, HwState, Ifindex, Installed, Op, Outcome, Plan, Rule, RuleId,
    RuleLocation, RuleSet, diff,
};

use crate::{
    apply::flows::{FlowDone, FlowJob},
    plan::switchdev::FlowProgram,
};

/// How long after a hook was read it is read again at the earliest: somebody else who changes
/// filters without end may not keep the kernel's thread busy.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// The same where what was repaired is undone again and again.
const READ_AGAIN_IN_FIGHT: Duration = Duration::from_secs(30);

/// So many repairs of a hook within [`FIGHT_WINDOW`] are a fight, until there is none for as long.
const FIGHT: usize = 10;

/// See [`FIGHT`].
const FIGHT_WINDOW: Duration = Duration::from_secs(60);

/// Each hook is read this often even where nobody told of a change: what hardware holds can change
/// without a notification.
const AUDIT: Duration = Duration::from_secs(300);

/// Hooks that one job reads again at most: flows of other hooks do not wait for all.
const READ_AGAIN_MOST: usize = 4;

/// The flows of one adapter as the kernel reported them.
#[derive(Debug, Default)]
pub(super) struct AdapterFlows {
    installed: Installed,
    /// Hooks that have been read.
    adopted: BTreeMap<Hook, Read>,
    /// Hooks that the job under way reads again.
    reading: BTreeMap<Hook, Option<u32>>,
    /// Whether nothing was to be done when looked at last, and nothing changed since.
    idle: bool,
    /// Hooks that could not be made or read, with the reason.
    unusable: BTreeMap<Hook, String>,
    refused: BTreeMap<RuleId, RefusedRule>,
    /// Why rules that are tried again were refused before: the same again is no news.
    told: BTreeMap<RuleId, String>,
    foreign: BTreeMap<Hook, Vec<Foreign>>,
    under_way: bool,
}

/// A rule that the kernel did not take.
#[derive(Debug)]
struct RefusedRule {
    rule: Rule,
    reason: String,
}

/// A hook that has been read.
#[derive(Debug)]
struct Read {
    at: Instant,
    /// Somebody else may have changed it since; who, by netlink port, where that is known.
    suspect: Option<Option<u32>>,
    /// When changes of others were found and repaired, in the last [`FIGHT_WINDOW`].
    repairs: VecDeque<Instant>,
    /// Whether they were so many that they are a fight; until there is none in the window.
    fight: bool,
}

impl Read {
    fn new(at: Instant) -> Read {
        Read { at, suspect: None, repairs: VecDeque::new(), fight: false }
    }

    /// When it may be read again.
    fn due(&self) -> Instant {
        self.at + if self.fight { READ_AGAIN_IN_FIGHT } else { READ_AGAIN }
    }

    fn repaired(&mut self, now: Instant) {
        self.repairs.push_back(now);
        self.fight |= self.repairs.len() > FIGHT;
    }

    /// Forgets repairs of long ago, and the fight with the last of them.
    fn forget(&mut self, now: Instant) {
        while self.repairs.front().is_some_and(|first| now - *first > FIGHT_WINDOW) {
            self.repairs.pop_front();
        }
        self.fight &= !self.repairs.is_empty();
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
        let is_due = |read: &Read| read.suspect.is_some() && read.due() <= now;
        if self.under_way || self.idle && !self.adopted.values().any(is_due) {
            return None;
        }
        let wanted_hooks: BTreeSet<Hook> =
            program.netdevs.keys().map(|ifindex| Hook::ingress(*ifindex)).collect();
        self.unusable.retain(|hook, _| wanted_hooks.contains(hook));
        self.foreign.retain(|hook, _| wanted_hooks.contains(hook));
        self.adopted.retain(|hook, _| wanted_hooks.contains(hook));
        let Plan { mut ops, gaps } = self.missing(program);
        // What is wanted of a suspect hook does not wait for a fight to end.
        let touched: BTreeSet<Hook> = ops.iter().map(|op| op.id().hook()).collect();
        let suspects = self.adopted.iter_mut().filter(|(_, read)| read.suspect.is_some());
        self.reading = suspects
            .filter(|(hook, read)| read.due() <= now || touched.contains(hook))
            .take(READ_AGAIN_MOST)
            .map(|(hook, read)| (*hook, read.suspect.take().flatten()))
            .collect();
        ops.retain(|op| {
            let hook = op.id().hook();
            let suspect = self.adopted.get(&hook).is_some_and(|read| read.suspect.is_some());
            !suspect && !self.reading.contains_key(&hook)
        });
        let unread = wanted_hooks.into_iter().filter(|hook| !self.adopted.contains_key(hook));
        let mut adopt: Vec<Hook> = unread
            .filter(|hook| !self.unusable.contains_key(hook))
            .filter(|hook| hook.ifindex().is_none_or(|ifindex| !held.contains(&ifindex)))
            .collect();
        adopt.extend(self.reading.keys());
        self.under_way = !(adopt.is_empty() && ops.is_empty());
        self.idle = !self.under_way;
        self.under_way.then(|| FlowJob { adapter: adapter.clone(), adopt, ops, gaps })
    }

    /// The program may be another, or hooks are no longer held.
    pub(super) fn reconsider(&mut self) {
        self.idle = false;
    }

    /// Somebody else may have changed this hook; who, by netlink port, where that is known.
    pub(super) fn suspect(&mut self, hook: Hook, by: Option<u32>) {
        if let Some(read) = self.adopted.get_mut(&hook) {
            read.suspect = Some(by);
        }
    }

    /// Somebody else may have changed anything.
    pub(super) fn suspect_all(&mut self) {
        for read in self.adopted.values_mut() {
            read.suspect.get_or_insert(None);
        }
    }

    /// Has hooks read again that were not read for long: so many in each of `rounds` that all are
    /// within [`AUDIT`].
    pub(super) fn audit(&mut self, now: Instant, every: Duration) {
        let rounds = (AUDIT.as_millis() / every.as_millis().max(1)).max(1) as usize;
        let most = self.adopted.len().div_ceil(rounds);
        let mut old: Vec<&mut Read> = self
            .adopted
            .values_mut()
            .filter(|read| read.suspect.is_none() && now.duration_since(read.at) >= AUDIT)
            .collect();
        old.sort_by_key(|read| read.at);
        for read in old.into_iter().take(most) {
            read.suspect = Some(None);
        }
        for read in self.adopted.values_mut() {
            read.forget(now);
        }
    }

    /// Hooks whose rules somebody else changes again and again, with the number of repairs within
    /// the last minute.
    pub(super) fn fights(&self) -> impl Iterator<Item = (Hook, usize)> {
        let fights = self.adopted.iter().filter(|(_, read)| read.fight);
        fights.map(|(hook, read)| (*hook, read.repairs.len()))
    }

    /// The changes from installed to wanted, as far as their hooks are read, and without those that
    /// the kernel has refused already.
    fn missing(&mut self, program: &FlowProgram) -> Plan {
        self.refused.retain(|id, refused| program.rules.get(id) == Some(&refused.rule));
        self.told.retain(|id, _| program.rules.contains(id));
        let mut plan = diff(&self.installed, &self.attainable(&program.rules));
        plan.ops.retain(|op| match op {
            Op::Add { rule, .. } | Op::Replace { rule, .. } => {
                self.adopted.contains_key(&rule.id().hook())
            }
            Op::Delete { .. } => true,
        });
        plan
    }

    /// What is wanted, with what is installed in the place of what the kernel refused. (To take
    /// those changes out afterwards would tear holes into the order of the others.)
    fn attainable<'r>(&self, wanted: &'r RuleSet) -> Cow<'r, RuleSet> {
        if self.refused.is_empty() {
            return Cow::Borrowed(wanted);
        }
        let mut attainable = wanted.clone();
        for id in self.refused.keys() {
            attainable.remove(id);
            if let Some(installed) = self.installed.get(id) {
                // It has the keys of the one just taken out, so there is room for it.
                attainable.insert(installed.rule.clone()).ok();
            }
        }
        Cow::Owned(attainable)
    }

    /// Whether the hook of this netdev is read and nothing is under way.
    pub(super) fn settled(&self, netdev: Ifindex) -> bool {
        !self.under_way && self.adopted.contains_key(&Hook::ingress(netdev))
    }

    /// Notes what a job did, and takes what it read out of it.
    pub(super) fn done(&mut self, done: &mut FlowDone) -> Tally {
        self.under_way = false;
        self.idle = false;
        let mut tally = Tally::default();
        for (hook, dump) in std::mem::take(&mut done.adopted) {
            match dump {
                Ok(mut dump) => {
                    let read = self.adopted.entry(hook).or_insert(Read::new(done.finished));
                    read.at = done.finished;
                    if let Some(by) = self.reading.remove(&hook) {
                        take_back(&self.installed, hook, &mut dump);
                        let drift = Drift::between(&self.installed, hook, &dump);
                        if drift != Drift::default() {
                            read.repaired(done.finished);
                            tally.drift.push((hook, drift, by));
                        }
                        self.installed.remove_hook(hook);
                    } else {
                        tally.adopted += dump.own.len() as u64;
                    }
                    self.installed.adopt(&dump);
                    self.foreign.insert(hook, dump.foreign);
                }
                Err(error) => {
                    if self.reading.remove(&hook).is_some() {
                        self.forget(hook);
                    }
                    tally.unusable.push(error.to_string());
                    self.unusable.insert(hook, error.to_string());
                }
            }
        }
        for (op, outcome) in &done.outcomes {
            self.installed.record(op, outcome);
            match outcome {
                Outcome::Refused { errno, message, attribute } => {
                    let words = words(*errno, message, attribute);
                    self.refusal(op, words, &mut tally);
                }
                Outcome::Unknown => {
                    tally.unknown += 1;
                    self.forget(op.id().hook());
                }
                _ => tally.done += 1,
            }
        }
        tally
    }

    fn refusal(&mut self, op: &Op, reason: String, tally: &mut Tally) {
        match op {
            Op::Delete { id, .. } => {
                tally.refused.push(reason);
                self.forget(id.hook());
            }
            Op::Add { rule, .. } | Op::Replace { rule, .. } => {
                if self.told.insert(rule.id().clone(), reason.clone()).as_ref() != Some(&reason) {
                    tally.refused.push(reason.clone());
                }
                self.refused.insert(rule.id().clone(), RefusedRule { rule: rule.clone(), reason });
            }
        }
    }

    /// Forgets what a hook holds, so that it is read again.
    fn forget(&mut self, hook: Hook) {
        self.adopted.remove(&hook);
        self.installed.remove_hook(hook);
    }

    /// Gives what was refused or unusable another chance with the next job.
    pub(super) fn retry(&mut self) {
        self.idle = false;
        self.refused.clear();
        self.unusable.clear();
    }

    /// Whether a job is under way.
    pub(super) fn under_way(&self) -> bool {
        self.under_way
    }

    /// What has become of a wanted rule, with the kernel's words where it refused it or its offload.
    pub(super) fn state(&self, rule: &Rule) -> (FlowState, Option<String>) {
        if let Some(refused) = self.refused.get(rule.id()) {
            return (FlowState::Refused, Some(refused.reason.clone()));
        }
        if let Some(reason) = self.unusable.get(&rule.id().hook()) {
            return (FlowState::Refused, Some(reason.clone()));
        }
        match self.installed.get(rule.id()) {
            Some(installed) if installed.rule == *rule => match &installed.hw {
                HwState::InHw => (FlowState::InHw, None),
                HwState::NotInHw(reason) => (FlowState::NotInHw, reason.clone()),
                HwState::NotAsked => (FlowState::NotInHw, None),
            },
            _ => (FlowState::Pending, None),
        }
    }

    /// Filters of other owners on this adapter's hooks.
    pub(super) fn foreign_filters(&self) -> u64 {
        self.foreign.values().map(|filters| filters.len() as u64).sum()
    }
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
            let (chain, prio, protocol) = (id.chain(), id.prio(), id.matching().protocol());
            let location = RuleLocation { hook, chain, prio, protocol };
            ((chain.get(), prio.get(), handle.0), location)
        })
        .collect();
    let Dump { foreign, unreadable_own, .. } = dump;
    foreign.retain(|filter| {
        let taken = ours.get(&(filter.chain, filter.prio, filter.handle.0));
        unreadable_own.extend(taken.map(|location| (*location, filter.handle)));
        taken.is_none()
    });
}

/// Counts one flow of this state.
pub(super) fn count(counts: &mut FlowCounts, state: FlowState) {
    *match state {
        FlowState::InHw => &mut counts.in_hw,
        FlowState::NotInHw => &mut counts.not_in_hw,
        FlowState::Refused => &mut counts.refused,
        FlowState::Pending => &mut counts.pending,
    } += 1;
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
    use tc_flows::{Action, ChainId, FakeKernel, Kernel as _, Mac, Match, Mode, Owner, Prio};

    use super::*;
    use crate::{apply::flows::run, world::NetdevView};

    const OURS: Owner = Owner(*b"ours");

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
                program.rules.insert(rule(hook(index), source)).unwrap();
            }
        }
        program
    }

    struct Rig {
        kernel: FakeKernel,
        flows: AdapterFlows,
        now: Instant,
    }

    impl Rig {
        /// Everything installed, and nothing to do.
        fn settled(program: &FlowProgram) -> Rig {
            let mut kernel = FakeKernel::new(OURS);
            kernel.set_interfaces(program.netdevs.keys().copied());
            let mut rig = Rig { kernel, flows: AdapterFlows::default(), now: Instant::now() };
            rig.settle(program);
            rig
        }

        /// Does what there is to do now: what the jobs did.
        fn settle(&mut self, program: &FlowProgram) -> Vec<Tally> {
            let id: Id = "nic".parse().unwrap();
            let mut tallies = Vec::new();
            while let Some(job) = self.flows.next_job(&id, program, &BTreeSet::new(), self.now) {
                let mut done = run(&mut self.kernel, job);
                done.finished = self.now;
                tallies.push(self.flows.done(&mut done));
            }
            tallies
        }

        /// Somebody else deletes a rule.
        fn steal(&mut self, stolen: &Rule) {
            let held = self.flows.installed.get(stolen.id()).unwrap();
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
        let handle = rig.flows.installed.get(other.id()).unwrap().handle;
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
        let handle = rig.flows.installed.get(stolen.id()).unwrap().handle;
        rig.steal(&stolen);
        let foreign = |prio, handle| Foreign {
            chain: 0,
            prio,
            protocol: stolen.id().matching().protocol(),
            handle,
            kind: "flower".to_owned(),
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
        for _ in 0..=FIGHT {
            rig.now += READ_AGAIN;
            rig.steal(&rule(hook(7), 0));
            rig.flows.suspect(hook(7), None);
            assert_eq!(drift(&rig.settle(&wanted)).len(), 1);
        }
        assert_eq!(rig.flows.fights().collect::<Vec<_>>(), [(hook(7), FIGHT + 1)]);

        rig.steal(&rule(hook(7), 0));
        rig.now += READ_AGAIN;
        rig.flows.suspect(hook(7), None);
        assert_eq!(rig.settle(&wanted), []);
        // A new rule is wanted there.
        wanted = program(3);
        rig.flows.reconsider();
        rig.settle(&wanted);
        assert!(rig.holds(&wanted));

        rig.now += FIGHT_WINDOW + READ_AGAIN;
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
        rig.flows.retry();
        rig.settle(&program);
        assert!(rig.holds(&program));
    }
}
