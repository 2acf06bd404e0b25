//! Planning that goes on from the plan before: work follows change.
//!
//! In: World and Intent whole, and what in them may be otherwise than at the last call
//! ([`Dirty`]). Out: the plan brought up to date, byte for byte the one that planning from nothing
//! gives, and what changed in it. A property test (`tests/history.rs`) holds it to that.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    resources::{AdminState, Attachment, EswitchMode},
    types::Id,
};

use super::{
    AdapterPolicies, Finding, Plan, PortPlan, Program,
    admit::Admissions,
    bind::Bindings,
    legacy, rate,
    roster::Roster,
    switchdev::{FlowDelta, FlowProgram, Sheet, Surroundings, network_missing, qinq_without_vlan},
    vdpa,
};
use crate::{
    intent::{Change, Claims, Intent},
    world::World,
};

/// What may be otherwise than at the last planning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Everything.
    pub all: bool,
    /// Guests, as they are seen or wanted.
    pub guests: BTreeSet<Id>,
    /// Ports, as they are wanted.
    pub ports: BTreeSet<Id>,
    /// Networks, as they are wanted.
    pub networks: BTreeSet<Id>,
    /// Adapters, as they are seen.
    pub adapters: BTreeSet<Id>,
}

impl Dirty {
    /// Everything: nothing was planned yet.
    pub fn all() -> Dirty {
        Dirty { all: true, ..Dirty::default() }
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        *self == Dirty::default()
    }

    /// Notes what a change of the intent is about.
    pub fn change(&mut self, change: &Change) {
        match change {
            Change::Network(id, _) => self.networks.insert(id.clone()),
            Change::Port(id, _) => self.ports.insert(id.clone()),
            Change::Guest(id, _) => self.guests.insert(id.clone()),
            Change::Eswitch(..) => false,
            Change::Everything(_) => std::mem::replace(&mut self.all, true),
        };
    }
}

/// What an update changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Ports of which something else is said now, with what was said before.
    pub ports: BTreeMap<Id, Option<PortPlan>>,
    /// What changed in the flows of adapters. Of an adapter that has none any more nothing is said.
    pub flows: BTreeMap<Id, FlowDelta>,
}

/// The planner, with what it takes to go on from the plan before.
#[derive(Debug, Default)]
pub struct Planner {
    roster: Roster,
    bindings: Bindings,
    admissions: Admissions,
    sheets: BTreeMap<Id, Sheet>,
    plan: Plan,
}

impl Planner {
    /// Nothing planned yet; these addresses are held.
    pub fn holding(claims: Claims) -> Planner {
        Planner { admissions: Admissions::holding(claims), ..Planner::default() }
    }

    /// The plan.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Who holds which address, after this plan.
    pub const fn claims(&self) -> &Claims {
        self.admissions.claims()
    }

    /// The ports that are attached to a network, in order of creation.
    pub fn ports_of_network(&self, network: &Id) -> impl Iterator<Item = &Id> {
        self.roster.of_network(network)
    }

    /// The plan, when no more is to come.
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// Brings the plan up to date.
    pub fn update(
        &mut self,
        world: &World,
        intent: &Intent,
        policies: &AdapterPolicies,
        dirty: &Dirty,
    ) -> Changes {
        let mut changes = Changes::default();
        let (mut ports, mut networks) = self.concerned(world, intent, dirty);
        self.roster.update(intent, &ports);
        let bound = self.bindings.update(world, intent, &ports);
        ports.extend(self.admissions.update(world, intent, &self.bindings, &bound));
        ports.extend(bound);

        let mut before: BTreeMap<Id, Option<PortPlan>> = BTreeMap::new();
        for id in &ports {
            networks.extend(self.roster.networks(id).cloned());
            let was = self.plan.ports.remove(id);
            self.plan.ports.extend(self.port(id).map(|port| (id.clone(), port)));
            before.insert(id.clone(), was);
        }
        let on = |port: &Option<PortPlan>, adapter: &Id| {
            let place = port.as_ref().and_then(|port| port.place.as_ref().ok());
            place.is_some_and(|place| place.adapter == *adapter)
        };

        let mut judged: BTreeSet<Id> = ports.clone();
        self.plan.programs.retain(|id, _| world.adapters.contains_key(id));
        self.plan.vdpa.retain(|id, _| world.adapters.contains_key(id));
        self.plan.rates.retain(|id, _| world.adapters.contains_key(id));
        self.sheets.retain(|id, _| world.adapters.contains_key(id));
        for (id, adapter) in &world.adapters {
            let adapter_touched =
                dirty.all || dirty.adapters.contains(id) || !self.plan.programs.contains_key(id);
            match adapter.mode {
                None => {
                    self.plan.programs.remove(id);
                    self.sheets.remove(id);
                    self.plan.vdpa.remove(id);
                    continue;
                }
                Some(EswitchMode::Legacy) => {
                    self.sheets.remove(id);
                    let moved = ports.iter().any(|port| {
                        before.get(port).is_some_and(|was| on(was, id))
                            || self.plan.ports.get(port).is_some_and(|now| {
                                now.place.as_ref().is_ok_and(|place| place.adapter == *id)
                            })
                    });
                    if adapter_touched || moved {
                        let here: Vec<Id> = self.bindings.on(id).cloned().collect();
                        for port in here {
                            if let Some(plan) = self.plan.ports.get_mut(&port) {
                                let was = || Some(plan.clone());
                                before.entry(port).or_insert_with(was);
                                plan.unmet.clear();
                            }
                        }
                        let program = legacy::program(id, adapter, intent, &mut self.plan.ports);
                        self.plan.programs.insert(id.clone(), Program::VfSettings(program));
                    }
                }
                Some(EswitchMode::Switchdev | EswitchMode::Software) => {
                    let mut fresh = false;
                    let sheet = self.sheets.entry(id.clone()).or_insert_with(|| {
                        fresh = true;
                        Sheet::default()
                    });
                    let program = self
                        .plan
                        .programs
                        .entry(id.clone())
                        .or_insert_with(|| Program::Flows(FlowProgram::default()));
                    if fresh {
                        *program = Program::Flows(FlowProgram::default());
                    }
                    let Program::Flows(program) = program else { continue };
                    let around = Surroundings {
                        adapter_id: id,
                        adapter,
                        uplink_use: policies.get(id).copied().unwrap_or_default(),
                        intent,
                        roster: &self.roster,
                        ports: &self.plan.ports,
                        touched_ports: &ports,
                        touched_networks: &networks,
                        adapter_touched: adapter_touched || fresh,
                    };
                    let mut delta = FlowDelta::default();
                    for network in sheet.update(&around, program, &mut delta) {
                        judged.extend(self.roster.of_network(&network).cloned());
                        networks.insert(network);
                    }
                    if delta != FlowDelta::default() {
                        changes.flows.insert(id.clone(), delta);
                    }
                }
            }
        }
        for id in judged {
            let unmet = self.unmet(world, intent, &id);
            let (Some(plan), Some(unmet)) = (self.plan.ports.get_mut(&id), unmet) else { continue };
            if plan.unmet != unmet {
                before.entry(id).or_insert_with(|| Some(plan.clone()));
                plan.unmet = unmet;
            }
        }
        for id in networks {
            let findings: Vec<Finding> = self
                .sheets
                .iter()
                .filter_map(|(adapter, sheet)| sheet.network_finding(adapter, &id))
                .collect();
            match findings.is_empty() {
                true => self.plan.networks.remove(&id),
                false => self.plan.networks.insert(id, findings),
            };
        }
        for (id, adapter) in &world.adapters {
            let touched = dirty.all || dirty.adapters.contains(id);
            match self.plan.rates.get_mut(id).filter(|_| !touched) {
                Some(rates) => {
                    let was = ports.iter().filter_map(|port| before.get(port)?.as_ref());
                    rates.release(id, was);
                    let now = ports.iter().filter_map(|port| self.plan.ports.get_key_value(port));
                    rates.take(id, intent, now);
                }
                None => {
                    let rates = rate::program(id, adapter, intent, &self.plan.ports);
                    match rates {
                        Some(rates) => self.plan.rates.insert(id.clone(), rates),
                        None => self.plan.rates.remove(id),
                    };
                }
            }
        }
        self.vdpa(world, intent, &mut before);
        let plan = &self.plan;
        before.retain(|id, was| plan.ports.get(id) != was.as_ref());
        changes.ports = before;
        changes
    }

    /// The ports and networks that what is dirty concerns at once.
    fn concerned(
        &mut self,
        world: &World,
        intent: &Intent,
        dirty: &Dirty,
    ) -> (BTreeSet<Id>, BTreeSet<Id>) {
        let mut guests = dirty.guests.clone();
        if dirty.all {
            guests.extend(world.guests.keys().cloned());
        }
        let sharers = self.bindings.look_at_guests(world, intent, &guests);
        guests.extend(sharers);
        let mut networks = dirty.networks.clone();
        let mut ports = dirty.ports.clone();
        ports.extend(guests.iter().flat_map(|guest| self.roster.of_guest(guest)).cloned());
        let attached = dirty.networks.iter().flat_map(|network| self.roster.of_network(network));
        ports.extend(attached.cloned());
        if dirty.all || !dirty.adapters.is_empty() {
            // A place is looked for on every adapter.
            ports.extend(self.roster.ports().cloned());
            ports.extend(intent.ports.keys().cloned());
            networks.extend(intent.networks.keys().cloned());
        }
        if dirty.all {
            ports.extend(self.claims().iter().map(|(_, port)| port.clone()));
        }
        for port in &ports {
            networks.extend(self.roster.networks(port).cloned());
        }
        (ports, networks)
    }

    /// What the first two stages say of a port.
    fn port(&self, id: &Id) -> Option<PortPlan> {
        let place = self.bindings.place(id)?.clone();
        let admission = self.admissions.of(id).cloned().unwrap_or_default();
        Some(PortPlan {
            place,
            macs: admission.macs,
            refused: admission.refused,
            promiscuous: admission.promiscuous,
            promiscuous_refused: admission.promiscuous_refused,
            groups: admission.groups,
            conflict: admission.conflict,
            unmet: Vec::new(),
            vdpa: None,
        })
    }

    /// What a port with flows wishes and does not get; nothing is said of others.
    fn unmet(&self, world: &World, intent: &Intent, id: &Id) -> Option<Vec<Finding>> {
        let plan = self.plan.ports.get(id)?;
        let place = plan.place.as_ref().ok()?;
        let sheet = self.sheets.get(&place.adapter)?;
        let adapter = world.adapters.get(&place.adapter)?;
        let spec = &intent.ports.get(id)?.spec;
        debug_assert!(adapter.mode != Some(EswitchMode::Legacy), "those have no sheet");
        if spec.admin_state == AdminState::Down || plan.macs.is_empty() {
            return Some(Vec::new());
        }
        let finding = |attachment: &Attachment| match intent.networks.get(&attachment.network) {
            None => Some(network_missing(&attachment.network)),
            Some(stored) => match &stored.spec.adapter {
                Some(bound_to) if *bound_to != place.adapter => Some(Finding::new(
                    "NetworkElsewhere",
                    format!(
                        "network `{}` is for adapter `{bound_to}`, the port stands on `{}`",
                        attachment.network, place.adapter
                    ),
                )),
                _ => qinq_without_vlan(intent, attachment)
                    .or_else(|| sheet.finding(&place.adapter, &attachment.network, id)),
            },
        };
        let findings = spec.attachments.iter().filter_map(finding);
        let rates = rate::unmet(intent, spec, adapter, place.vf);
        Some(findings.chain(rates).collect())
    }

    /// The vDPA devices, where they are ours to manage: rare, and so planned whole.
    fn vdpa(
        &mut self,
        world: &World,
        intent: &Intent,
        before: &mut BTreeMap<Id, Option<PortPlan>>,
    ) {
        if self.plan.vdpa.is_empty() && world.adapters.values().all(|a| a.vdpa.is_none()) {
            return;
        }
        for (id, plan) in &mut self.plan.ports {
            before.entry(id.clone()).or_insert_with(|| Some(plan.clone()));
            plan.vdpa = None;
        }
        self.plan.vdpa.clear();
        for (id, adapter) in &world.adapters {
            let devices = vdpa::program(id, adapter, intent, &mut self.plan.ports);
            self.plan.vdpa.extend(devices.map(|devices| (id.clone(), devices)));
        }
    }
}
