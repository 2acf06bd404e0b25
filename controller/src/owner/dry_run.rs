//! What changes would come to: planned for the world and the intent as they would be.
//!
//! In: changes that may be made as things stand. Out: the flows, VF settings and conditions that
//! they would change. Works on copies, off the owner's loop, and has no way to the kernel or to the
//! store: nothing can change.

use std::collections::BTreeMap;

use api::{
    batch::{
        Changed, DryRun, FLOWS_LISTED_MAX, FlowChange, FlowChangeCounts, FlowFate, Foreseen,
        VfChange, Wanted,
    },
    error::ApiError,
    resources::ConditionStatus,
    server::Precondition,
    types::Id,
};
use tc_flows::{Rule, RuleId};

use super::{Owner, status::with_names};
use crate::{
    intent::{Change, Claims, Effect, Intent},
    plan::{
        AdapterPolicies, Dirty, Finding, Plan, Planner, PortPlan, Program,
        legacy::VfProgram,
        switchdev::{FlowDelta, FlowProgram, Reasoned, Why},
    },
    world::World,
};

/// Copies of what planning needs, and the changes.
#[derive(Debug)]
pub(super) struct Imagined {
    world: World,
    intent: Intent,
    claims: Claims,
    policies: AdapterPolicies,
    changes: Vec<Wanted>,
}

impl Owner {
    /// What it takes to say what these changes would come to.
    ///
    /// # Errors
    /// What the changes themselves would be refused with.
    pub(super) fn imagine(
        &self,
        changes: Vec<Wanted>,
        only_if: &Precondition,
    ) -> Result<Imagined, ApiError> {
        let asked: Vec<Change> = changes.iter().cloned().map(Change::from).collect();
        self.permitted(&asked, only_if)?;
        Ok(Imagined {
            world: self.world.clone(),
            intent: self.intent.clone(),
            claims: self.planner.claims().clone(),
            policies: self.policies.clone(),
            changes,
        })
    }
}

impl Imagined {
    /// What the changes would come to. Plans everything: not for the owner's loop.
    pub(super) fn consider(self) -> DryRun {
        let Imagined { world, mut intent, claims, policies, changes } = self;
        let mut planner = Planner::holding(claims);
        planner.update(&world, &intent, &policies, &Dirty::all());
        let before = planner.plan().clone();

        let mut dirty = Dirty::default();
        let mut dry_run = DryRun::default();
        for wanted in changes {
            let resource = wanted.resource().to_string();
            let change = Change::from(wanted);
            let effect = intent.apply(change.clone());
            if !matches!(effect, Effect::Unchanged | Effect::Absent) {
                dirty.change(&change);
            }
            dry_run.changes.push(Changed { resource, outcome: effect.into() });
        }
        if dirty.is_empty() {
            return dry_run;
        }
        let changed = planner.update(&world, &intent, &policies, &dirty);
        let after = planner.plan();
        for (adapter, delta) in &changed.flows {
            let programs = [before.programs.get(adapter), after.programs.get(adapter)];
            let [was, is] = programs.map(|program| match program {
                Some(Program::Flows(program)) => Some(program),
                _ => None,
            });
            if let (Some(was), Some(is)) = (was, is) {
                flows(adapter, delta, was, is, &mut dry_run);
            }
        }
        dry_run.vf_changes = vf_changes(&before, after);
        dry_run.conditions = conditions(&before, after);
        dry_run
    }
}

/// Counts and lists what changes in one adapter's flows.
fn flows(
    adapter: &Id,
    delta: &FlowDelta,
    was: &FlowProgram,
    is: &FlowProgram,
    dry_run: &mut DryRun,
) {
    let mut note = |change, rule: &Rule, why: &Why, program: &FlowProgram| {
        let FlowChangeCounts { added, changed, removed } = &mut dry_run.flows;
        *match change {
            FlowFate::Added => added,
            FlowFate::Changed => changed,
            FlowFate::Removed => removed,
        } += 1;
        if dry_run.flow_changes.len() == FLOWS_LISTED_MAX {
            return;
        }
        let netdev = rule.hook().ifindex().and_then(|ifindex| program.netdevs.get(&ifindex));
        dry_run.flow_changes.push(FlowChange {
            change,
            adapter: adapter.clone(),
            netdev: netdev.map(|netdev| netdev.name.clone()).unwrap_or_default(),
            purpose: why.purpose.to_string(),
            port: why.port.clone(),
            network: why.network.clone(),
            tc: with_names(&rule.to_string(), program),
        });
    };
    let mut gone: BTreeMap<&RuleId, &Reasoned> =
        delta.gone.iter().map(|gone| (gone.0.id(), gone)).collect();
    for (rule, why) in &delta.put {
        match gone.remove(rule.id()) {
            None => note(FlowFate::Added, rule, why, is),
            Some((had, _)) if had != rule => note(FlowFate::Changed, rule, why, is),
            // It stays, and has another reason only.
            Some(_) => {}
        }
    }
    for (rule, why) in gone.into_values() {
        note(FlowFate::Removed, rule, why, was);
    }
}

/// What VFs are meant to have, that they are not meant to have now.
fn vf_changes(before: &Plan, after: &Plan) -> Vec<VfChange> {
    let (was, is) = (vf_settings(before), vf_settings(after));
    let mut changes = Vec::new();
    for (key, after) in &is {
        let before = was.get(key).cloned().unwrap_or_default();
        if before != *after {
            let (adapter, vf, setting) = key.clone();
            let (setting, after) = (setting.to_owned(), after.clone());
            changes.push(VfChange { adapter, vf, setting, before, after });
        }
    }
    changes
}

type Setting = (Id, u16, &'static str);

/// What the VFs of all adapters are meant to have, in words.
fn vf_settings(plan: &Plan) -> BTreeMap<Setting, String> {
    let mut settings = BTreeMap::new();
    for (adapter, program) in &plan.programs {
        let Program::VfSettings(program) = program else { continue };
        for (vf, wanted) in &program.vfs {
            for (setting, value) in in_words(wanted) {
                settings.insert((adapter.clone(), *vf, setting), value);
            }
        }
    }
    for (adapter, rates) in &plan.rates {
        for (vf, rate) in &rates.leaves {
            // devlink counts bytes a second.
            let words = rate_in_words(rate.tx_share * 8, rate.tx_max * 8);
            settings.insert((adapter.clone(), *vf, "rate"), words);
        }
    }
    settings
}

fn in_words(wanted: &VfProgram) -> [(&'static str, String); 6] {
    let VfProgram { mac, vlan, vlan_proto, vlan_priority, link_state, trust, .. } = wanted;
    let bits = |rate: Option<api::types::Bitrate>| rate.map_or(0, |rate| rate.get());
    let vlan = match vlan {
        0 => "none".to_owned(),
        vid => format!("{vid} {vlan_proto:?} priority {}", vlan_priority.get()),
    };
    [
        ("MAC address", mac.to_string()),
        ("VLAN", vlan),
        ("rate", rate_in_words(bits(wanted.tx_min), bits(wanted.tx_max))),
        ("spoof check", if wanted.spoof_check { "on" } else { "off" }.to_owned()),
        ("link state", format!("{link_state:?}").to_lowercase()),
        ("trust", if *trust { "on" } else { "off" }.to_owned()),
    ]
}

fn rate_in_words(min: u64, max: u64) -> String {
    let word = |rate: u64| match rate {
        0 => "none".to_owned(),
        rate => format!("{rate} bit/s"),
    };
    format!("at least {}, at most {}", word(min), word(max))
}

/// What conditions would say that they do not say now.
fn conditions(before: &Plan, after: &Plan) -> Vec<Foreseen> {
    let mut foreseen = Vec::new();
    for (id, plan) in &after.ports {
        let had = before.ports.get(id).map(said_of_port).unwrap_or_default();
        let said = said_of_port(plan).into_iter().filter(|said| !had.contains(said));
        foreseen.extend(said.map(|said| said.of(format!("ports/{id}"))));
    }
    for (id, findings) in &after.networks {
        let had = before.networks.get(id).map(Vec::as_slice).unwrap_or_default();
        let new = findings.iter().filter(|finding| !had.contains(finding));
        let said = new.map(|finding| Said::new("Conflict", ConditionStatus::True, finding));
        foreseen.extend(said.map(|said| said.of(format!("networks/{id}"))));
    }
    foreseen
}

/// What a plan says of a resource.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    about: &'static str,
    status: ConditionStatus,
    reason: &'static str,
    message: String,
}

impl Said {
    fn new(about: &'static str, status: ConditionStatus, finding: &Finding) -> Said {
        let Finding { reason, message } = finding.clone();
        Said { about, status, reason, message }
    }

    fn of(self, resource: String) -> Foreseen {
        let Said { about, status, reason, message } = self;
        Foreseen { resource, r#type: about.to_owned(), status, reason: reason.to_owned(), message }
    }
}

fn said_of_port(plan: &PortPlan) -> Vec<Said> {
    use ConditionStatus::{False, Partial, True};
    let mut said = Vec::new();
    if let Err(finding) = &plan.place {
        said.push(Said::new("Bound", False, finding));
    }
    said.extend(plan.unmet.iter().map(|finding| Said::new("Programmed", Partial, finding)));
    said.extend(plan.conflict.iter().map(|finding| Said::new("Conflict", True, finding)));
    said.extend(plan.refused.iter().map(|refused| Said {
        about: "Quarantined",
        status: True,
        reason: "AddressRefused",
        message: format!("{}: {}", refused.mac, refused.reason),
    }));
    if let Some((_, Err(finding))) = &plan.vdpa {
        said.push(Said::new("VdpaDevice", False, finding));
    }
    said
}
