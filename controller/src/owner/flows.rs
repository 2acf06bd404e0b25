//! What is installed on one adapter, and the next job that brings it to its program.
//!
//! In: the planned program, and what the kernel answered. Out: jobs. No I/O: the kernel is the
//! truth, and this is what it said last.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use api::{
    resources::{FlowCounts, FlowState},
    types::Id,
};
use tc_flows::{
    Foreign, Hook, HwState, Ifindex, Installed, Op, Outcome, Plan, Rule, RuleId, RuleSet, diff,
};

use crate::{
    apply::flows::{FlowDone, FlowJob},
    plan::switchdev::FlowProgram,
};

/// The flows of one adapter as the kernel reported them.
#[derive(Debug, Default)]
pub(super) struct AdapterFlows {
    installed: Installed,
    adopted: BTreeSet<Hook>,
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
}

impl AdapterFlows {
    /// The next job, if there is anything to do and none is under way. A hook is read before
    /// anything on it is changed; hooks of netdevs in `held` are left alone for now.
    pub(super) fn next_job(
        &mut self,
        adapter: &Id,
        program: &FlowProgram,
        held: &BTreeSet<Ifindex>,
    ) -> Option<FlowJob> {
        if self.under_way {
            return None;
        }
        let wanted_hooks: BTreeSet<Hook> =
            program.netdevs.keys().map(|ifindex| Hook::ingress(*ifindex)).collect();
        self.unusable.retain(|hook, _| wanted_hooks.contains(hook));
        self.foreign.retain(|hook, _| wanted_hooks.contains(hook));
        let Plan { ops, gaps } = self.missing(program);
        let job = FlowJob {
            adapter: adapter.clone(),
            adopt: wanted_hooks
                .difference(&self.adopted)
                .filter(|hook| !self.unusable.contains_key(hook))
                .filter(|hook| hook.ifindex().is_none_or(|ifindex| !held.contains(&ifindex)))
                .copied()
                .collect(),
            ops,
            gaps,
        };
        self.adopted.retain(|hook| wanted_hooks.contains(hook));
        self.under_way = !(job.adopt.is_empty() && job.ops.is_empty());
        self.under_way.then_some(job)
    }

    /// The changes from installed to wanted, as far as their hooks are read, and without those that
    /// the kernel has refused already.
    fn missing(&mut self, program: &FlowProgram) -> Plan {
        self.refused.retain(|id, refused| program.rules.get(id) == Some(&refused.rule));
        self.told.retain(|id, _| program.rules.contains(id));
        let mut plan = diff(&self.installed, &self.attainable(&program.rules));
        plan.ops.retain(|op| match op {
            Op::Add { rule, .. } | Op::Replace { rule, .. } => {
                self.adopted.contains(&rule.id().hook())
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
        !self.under_way && self.adopted.contains(&Hook::ingress(netdev))
    }

    /// Notes what a job did.
    pub(super) fn done(&mut self, done: &FlowDone) -> Tally {
        self.under_way = false;
        let mut tally = Tally::default();
        for (hook, dump) in &done.adopted {
            match dump {
                Ok(dump) => {
                    self.installed.adopt(dump);
                    tally.adopted += dump.own.len() as u64;
                    self.foreign.insert(*hook, dump.foreign.clone());
                    self.adopted.insert(*hook);
                }
                Err(error) => {
                    tally.unusable.push(error.to_string());
                    self.unusable.insert(*hook, error.to_string());
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
