//! Clients that wait until what they have changed is in the kernel.
//!
//! In: committed changes with somebody who waits, what planning made of them. Out: their answer, or
//! what is missing when they wait no longer. Only reads: waiting hurries nothing, and nothing is
//! said to be there that the kernel has not acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use api::{resources::ConditionStatus, types::Id};
use tc_flows::{Hook, Ifindex};
use tokio::sync::oneshot;

use super::{Owner, Readiness, conditions::Statement, settings::VfState};
use crate::{
    intent::{Change, Effect},
    plan::{Changes, PortPlan, Program, bind::Place},
};

/// A name for somebody who waits.
pub(super) type Ticket = u64;

/// Somebody who waits for a change that is not made yet.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(super) ticket: Ticket,
    /// Told when it is in the kernel.
    pub(super) programmed: oneshot::Sender<()>,
}

/// All who wait.
#[derive(Debug, Default)]
pub(super) struct Waits(BTreeMap<Ticket, Wait>);

/// What must be for one of them to be answered.
#[derive(Debug)]
struct Wait {
    programmed: oneshot::Sender<()>,
    about: About,
    /// Whether the change is planned. What follows is known then.
    planned: bool,
    /// Hooks at which the change changed flows, by adapter.
    hooks: BTreeMap<Id, BTreeSet<Hook>>,
    /// VFs whose settings or rates it concerns, with their adapter.
    vfs: BTreeSet<(Id, u16)>,
}

/// What changes were about.
#[derive(Debug, Default)]
struct About {
    /// Ports that were put: they are to be programmed.
    ports: BTreeSet<Id>,
    /// Networks that were put: nothing of them may be refused.
    networks: BTreeSet<Id>,
    /// Ports that were put or deleted.
    touched: BTreeSet<Id>,
    /// Some of it was so already: what is still on its way may be from an earlier change.
    unchanged: bool,
}

impl Waits {
    /// Changes are stored: `waiter` waits for them from now on.
    pub(super) fn begin(&mut self, waiter: Waiter, changes: &[Change], effects: &[Effect]) {
        let unchanged = effects.contains(&Effect::Unchanged);
        let mut about = About { unchanged, ..About::default() };
        changes.iter().for_each(|change| about.note(change));
        let wait = Wait {
            programmed: waiter.programmed,
            about,
            planned: false,
            hooks: BTreeMap::new(),
            vfs: BTreeSet::new(),
        };
        self.0.insert(waiter.ticket, wait);
    }
}

impl About {
    fn note(&mut self, change: &Change) {
        match change {
            Change::Port(id, spec) => {
                self.touched.insert(id.clone());
                self.ports.extend(spec.as_ref().map(|_| id.clone()));
            }
            Change::Network(id, spec) => {
                self.networks.extend(spec.as_ref().map(|_| id.clone()));
            }
            Change::Guest(..) | Change::Eswitch(..) | Change::Everything(_) => {}
        }
    }
}

impl Owner {
    /// Planning has changed this: what those wait for who have begun since the last planning.
    pub(super) fn waits_planned(&mut self, changes: &Changes) {
        let mut waits = std::mem::take(&mut self.waits);
        for wait in waits.0.values_mut().filter(|wait| !wait.planned) {
            for (adapter, delta) in &changes.flows {
                let gone = delta.gone.iter().map(|(rule, _)| rule.hook());
                let put = delta.put.iter().map(|(rule, _)| rule.hook());
                wait.hooks.entry(adapter.clone()).or_default().extend(gone.chain(put));
            }
            let before = wait.about.touched.iter().filter_map(|id| changes.ports.get(id)?.as_ref());
            wait.vfs.extend(before.filter_map(vf));
            if !wait.about.unchanged {
                self.planned(wait);
            }
        }
        self.waits = waits;
    }

    /// Everything that is stored is planned.
    pub(super) fn waits_up_to_date(&mut self) {
        let mut waits = std::mem::take(&mut self.waits);
        for wait in waits.0.values_mut().filter(|wait| !wait.planned) {
            for (adapter, program) in &self.planner.plan().programs {
                let Program::Flows(program) = program else { continue };
                wait.hooks.entry(adapter.clone()).or_default().extend(program.hooks());
            }
            self.planned(wait);
        }
        self.waits = waits;
    }

    /// Notes the VFs on which ports stand that the wait is about.
    fn planned(&self, wait: &mut Wait) {
        wait.planned = true;
        let networks = wait.about.networks.iter();
        let of_networks = networks.flat_map(|network| self.planner.ports_of_network(network));
        let ports = of_networks.chain(&wait.about.touched);
        let plans = ports.filter_map(|id| self.planner.plan().ports.get(id));
        wait.vfs.extend(plans.filter_map(vf));
    }

    /// Answers those who have waited long enough, and forgets those who have gone.
    pub(super) fn answer_waits(&mut self) {
        if self.waits.0.is_empty() {
            return;
        }
        let (over, waiting): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.waits)
            .0
            .into_iter()
            .partition(|(_, wait)| wait.programmed.is_closed() || self.missing(wait).is_empty());
        self.waits.0 = waiting;
        for wait in over.into_values() {
            wait.programmed.send(()).ok();
        }
    }

    /// Somebody waits no longer: what was missing, each a sentence; nothing where all is there.
    pub(super) fn give_up(&mut self, ticket: Ticket) -> Vec<String> {
        let wait = self.waits.0.remove(&ticket);
        wait.map(|wait| self.missing(&wait)).unwrap_or_default()
    }

    fn missing(&self, wait: &Wait) -> Vec<String> {
        let mut missing = Vec::new();
        if !wait.planned {
            missing.push("the change is not planned yet".to_owned());
            return missing;
        }
        if self.torn_down {
            missing.push(
                "the daemon's flows were taken away over the API, and nothing is programmed; POST \
                 /v1/resume brings them back"
                    .to_owned(),
            );
        }
        for id in &wait.about.ports {
            missing.extend(self.missing_of_port(id));
        }
        for id in &wait.about.networks {
            missing.extend(self.missing_of_network(id));
        }
        for (adapter, hooks) in &wait.hooks {
            let Some(state) = self.adapters.get(adapter) else { continue };
            let pending = hooks.iter().filter(|hook| !state.flows.is_settled(hook)).count();
            if pending > 0 {
                missing.push(format!(
                    "adapter {adapter}: flows of {pending} netdevs are on their way"
                ));
            }
        }
        for (adapter, vf) in &wait.vfs {
            missing.extend(self.missing_of_vf(adapter, *vf));
        }
        missing
    }

    fn missing_of_port(&self, id: &Id) -> Vec<String> {
        let statements = self.port_statements(id, &self.summary(id));
        let is_open = |about: &str| {
            let found = statements.iter().find(|statement| statement.about == about);
            found.filter(|statement| statement.status != ConditionStatus::True)
        };
        // A port that stands nowhere says best why.
        let open = is_open("Bound").or_else(|| is_open("Programmed")).into_iter();
        open.chain(is_open("VdpaDevice")).map(|open| sentence(id, open)).collect()
    }

    /// The representor of a place, where it is to carry frames and does not yet.
    pub(super) fn not_up<'p>(&self, place: &'p Place) -> Option<&'p str> {
        let netdev = place.representor.as_ref()?;
        let Program::Flows(program) = self.planner.plan().programs.get(&place.adapter)? else {
            return None;
        };
        let readiness: &BTreeMap<Ifindex, Readiness> =
            &self.adapters.get(&place.adapter)?.readiness;
        let up = readiness.get(&netdev.ifindex) == Some(&Readiness::Up);
        (program.in_use.contains(netdev) && !up).then_some(&netdev.name)
    }

    fn missing_of_network(&self, id: &Id) -> Vec<String> {
        let findings = self.planner.plan().networks.get(id).into_iter().flatten();
        let mut missing: Vec<String> =
            findings.map(|finding| format!("network {id}: {}", finding.message)).collect();
        let attached = self
            .intent
            .ports
            .iter()
            .filter(|(_, port)| port.spec.attachments.iter().any(|at| at.network == *id));
        for (port, _) in attached {
            let summary = self.summary(port);
            if summary.counts.refused > 0 {
                let statements = self.port_statements(port, &summary);
                let refused = statements.iter().filter(|said| said.about == "Programmed");
                missing.extend(refused.map(|refused| sentence(port, refused)));
            }
        }
        missing
    }

    fn missing_of_vf(&self, adapter: &Id, vf: u16) -> Option<String> {
        if !self.rate_is_set(adapter, vf) {
            return Some(format!("adapter {adapter}: the rate of VF {vf} is on its way"));
        }
        let Program::VfSettings(program) = self.planner.plan().programs.get(adapter)? else {
            return None;
        };
        match self.vf_state(adapter, vf, program)? {
            VfState::Set => None,
            VfState::Pending => {
                Some(format!("adapter {adapter}: settings of VF {vf} are on their way"))
            }
            VfState::Refused(words) => {
                Some(format!("adapter {adapter}: VF {vf}: {}", words.join("; ")))
            }
            VfState::Ignored(settings) => {
                let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
                let settings = settings.join(", ");
                Some(format!("adapter {adapter}: VF {vf} does not show: {settings}"))
            }
        }
    }
}

fn sentence(port: &Id, said: &Statement) -> String {
    let Statement { about, reason, message, .. } = said;
    format!("port {port}: not {about} ({reason}): {message}")
}

/// The VF on which a port stands, where it is one.
fn vf(plan: &PortPlan) -> Option<(Id, u16)> {
    let place = plan.place.as_ref().ok()?;
    Some((place.adapter.clone(), place.vf?))
}
