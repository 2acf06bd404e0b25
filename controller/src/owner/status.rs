//! What is, in the words of the API: resources from the owner's state.
//!
//! Reads only. Asked, planned, installed and in hardware are told apart, and every refusal carries
//! the kernel's own words.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use api::{
    resources::{
        Adapter, AdapterOffload, AdapterVf, Backing, BackingSource, CapabilitySource, Condition,
        ConditionStatus, EswitchMode, EswitchSettings, Flow, FlowCounts, Guest, GuestFunction,
        GuestStatus, Netdev, Network, NetworkStatus, OffloadCapability, OffloadCeilings, Port,
        PortFunction, PortSpec, PortStatus, RateObject, RefusedMac, Resource,
    },
    server::FlowFilter,
    types::Id,
};

use tc_flows::Ifindex;

use super::{Owner, conditions::Statement, flows::AdapterFlows, settings::VfState};
use crate::{
    capability::{Capabilities, Ceilings, Evidence},
    plan::{
        Finding, PortPlan, Program, legacy::LegacyProgram, switchdev::FlowProgram,
        vdpa::device_name,
    },
    world::{AdapterView, BackingView, Connection, EswitchView, GuestView, NetdevView, RateView},
};

/// What became of a port's flows.
#[derive(Debug, Clone, Default)]
pub(super) struct FlowSummary {
    pub(super) counts: FlowCounts,
    /// The first refusal, in the kernel's words.
    refusal: Option<String>,
    /// A reason why a flow is not in hardware.
    not_in_hw: Option<String>,
}

impl Owner {
    // ------------------------------------------------------------ networks

    pub(super) fn network(&mut self, id: &Id) -> Option<Network> {
        let stored = self.intent.networks.get(id)?;
        let ports: Vec<Id> = self
            .intent
            .ports
            .iter()
            .filter(|(_, port)| port.spec.attachments.iter().any(|a| a.network == *id))
            .map(|(port, _)| port.clone())
            .collect();
        let (revision, spec) = (stored.revision, stored.spec.clone());
        let statements = self.network_statements(id);
        let conditions = self.stamp("networks", id, statements);
        Some(Resource {
            id: id.clone(),
            revision,
            spec,
            status: NetworkStatus { ports, conditions },
        })
    }

    fn network_statements(&self, id: &Id) -> Vec<Statement> {
        let conflict = self.planner.plan().networks.get(id).and_then(|findings| findings.first());
        vec![conflict_statement(conflict)]
    }

    // ------------------------------------------------------------ ports

    pub(super) fn ports(&mut self) -> Vec<Port> {
        let ids: Vec<Id> = self.intent.ports.keys().cloned().collect();
        ids.iter().filter_map(|id| self.port(id)).collect()
    }

    /// A port for somebody who asks for it alone, and may ask again.
    pub(super) fn port_with_counters(&mut self, id: &Id) -> Option<Port> {
        self.recount();
        self.port(id)
    }

    pub(super) fn port(&mut self, id: &Id) -> Option<Port> {
        let stored = self.intent.ports.get(id)?;
        let (revision, spec) = (stored.revision, stored.spec.clone());
        let plan = self.planner.plan().ports.get(id);
        let summary = self.summary(id);
        let place = plan.and_then(|plan| plan.place.as_ref().ok());
        let timing = self.timings.get(id).copied().unwrap_or_default();
        let mut status = PortStatus {
            conditions: Vec::new(),
            adapter: place.map(|place| place.adapter.clone()),
            vf: place.and_then(|place| place.vf),
            representor: place.and_then(|place| place.representor.as_ref()).map(netdev),
            mtu: place.and_then(|place| self.path_mtu(place)),
            macs: plan.map(|plan| plan.macs.clone()).unwrap_or_default(),
            refused: plan.map(|plan| plan.refused.clone()).unwrap_or_default(),
            promiscuous: plan.is_some_and(|plan| plan.promiscuous),
            vdpa_device: plan.and_then(|plan| self.vdpa_device(plan)),
            flows: summary.counts,
            event_to_programmed_us: timing
                .last
                .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            events_programmed: timing.programmed,
            statistics: self.statistics(id),
        };
        let statements = self.port_statements(id, &summary);
        status.conditions = self.stamp("ports", id, statements);
        Some(Resource { id: id.clone(), revision, spec, status })
    }

    pub(super) fn port_statements(&self, id: &Id, summary: &FlowSummary) -> Vec<Statement> {
        use ConditionStatus::{False, True, Unknown};
        let Some(plan) = self.planner.plan().ports.get(id) else {
            return vec![Statement::new("Bound", Unknown, "Planning", "not planned yet")];
        };
        let bound = match &plan.place {
            Ok(place) => {
                let on = match (&place.representor, place.vf) {
                    (Some(netdev), _) => format!("representor {}", netdev.name),
                    (None, Some(index)) => format!("VF {index}"),
                    (None, None) => "nothing".to_owned(),
                };
                let message = format!("on {on} of adapter {}", place.adapter);
                Statement::new("Bound", True, "Bound", message)
            }
            Err(finding) => statement("Bound", False, finding),
        };
        let mut statements = vec![
            bound,
            self.programmed(plan, summary),
            self.offloaded(plan, summary),
            conflict_statement(plan.conflict.as_ref().or_else(|| place_conflict(plan))),
            quarantined(plan),
        ];
        statements.extend(self.vdpa_made(plan));
        if let Some(stored) = self.intent.ports.get(id) {
            statements.extend(sources_checked(&stored.spec));
            statements.extend(self.mtu_statement(plan, &stored.spec));
        }
        statements
    }

    /// What became of the port's vDPA device, where the daemon is to make one.
    fn vdpa_made(&self, plan: &PortPlan) -> Option<Statement> {
        use ConditionStatus::{False, True};
        let say = |status, reason, message| Statement::new("VdpaDevice", status, reason, message);
        let (adapter, place) = plan.vdpa.as_ref()?;
        let place = match place {
            Ok(place) => place,
            Err(finding) => return Some(statement("VdpaDevice", False, finding)),
        };
        let name = device_name(place, adapter);
        let refused = self.adapters.get(adapter).and_then(|s| s.vdpa_refused.get(&name));
        Some(match (refused, self.vdpa_device(plan)) {
            (Some(refusal), _) => say(False, "Refused", refusal.to_string()),
            (None, Some(name)) => say(True, "Made", format!("vDPA device {name}")),
            (None, None) => say(False, "Pending", format!("vDPA device {name} is on its way")),
        })
    }

    /// The name of the port's vDPA device, if that is there and as it should be.
    fn vdpa_device(&self, plan: &PortPlan) -> Option<String> {
        let (adapter, place) = plan.vdpa.as_ref()?;
        let place = place.as_ref().ok()?;
        let wanted = self.planner.plan().vdpa.get(adapter)?.devices.get(place)?;
        let device = self.world.adapters.get(adapter)?.vdpa.as_ref()?.devices.get(place)?;
        (wanted.mac.is_none() || wanted.mac == device.mac).then(|| device_name(place, adapter))
    }

    /// Whether all that the port needs is installed, or set, and carries frames.
    pub(super) fn programmed(&self, plan: &PortPlan, summary: &FlowSummary) -> Statement {
        use ConditionStatus::{False, Partial, True};
        let say = |status, reason: &str, message: String| {
            Statement::new("Programmed", status, reason, message)
        };
        let Ok(place) = &plan.place else {
            return say(False, "NotBound", "the port stands nowhere: see Bound".into());
        };
        if self.torn_down {
            let message = "the daemon's flows were taken away over the API, and nothing is \
                           programmed; POST /v1/resume brings them back"
                .to_owned();
            return say(False, "TornDown", message);
        }
        if plan.macs.is_empty() {
            let message = "no address is admitted: the guest has none that it may use, and the \
                           port has no `macs`"
                .to_owned();
            return say(False, "NoAddress", message);
        }
        if let Some(finding) = plan.unmet.first() {
            return statement("Programmed", Partial, finding);
        }
        let rates = self.adapters.get(&place.adapter).map(|state| &state.rates);
        if let Some(refusal) = place.vf.zip(rates).and_then(|(vf, rates)| rates.refusal_of(vf)) {
            return say(Partial, "RateRefused", refusal.to_string());
        }
        if place.vf.is_some_and(|vf| !self.rate_is_set(&place.adapter, vf)) {
            return say(False, "Pending", "the VF's rate is on its way".into());
        }
        match self.planner.plan().programs.get(&place.adapter) {
            Some(Program::Flows(_)) => {
                let FlowCounts { refused, pending, .. } = summary.counts;
                match (refused, pending, &summary.refusal) {
                    (0, 0, _) if let Some(name) = self.not_up(place) => {
                        say(False, "Pending", format!("its representor {name} is being brought up"))
                    }
                    (0, 0, _) => say(True, "Installed", "all flows are installed".into()),
                    (0, pending, _) => {
                        say(False, "Pending", format!("{pending} flows are on their way"))
                    }
                    (refused, _, words) => say(
                        False,
                        "Refused",
                        format!(
                            "the kernel refused {refused} flows: {}",
                            words.as_deref().unwrap_or("it gave no reason")
                        ),
                    ),
                }
            }
            Some(Program::VfSettings(program)) => {
                let state = place.vf.and_then(|vf| self.vf_state(&place.adapter, vf, program));
                match state {
                    Some(VfState::Set) => say(True, "Set", "the VF's settings are made".into()),
                    Some(VfState::Refused(words)) => say(Partial, "Refused", words.join("; ")),
                    Some(VfState::Ignored(settings)) => {
                        let settings: Vec<_> = settings.iter().map(ToString::to_string).collect();
                        let message = format!(
                            "the driver accepted and does not show: {}; see `ip -d link show`",
                            settings.join(", ")
                        );
                        say(Partial, "Ignored", message)
                    }
                    Some(VfState::Pending) | None => {
                        say(False, "Pending", "the VF's settings are on their way".into())
                    }
                }
            }
            None => say(False, "AdapterMissing", "the adapter is not there".into()),
        }
    }

    /// Whether a VF's rate object, where there is one, shows what it should.
    pub(super) fn rate_is_set(&self, adapter: &Id, vf: u16) -> bool {
        let program = self.planner.plan().rates.get(adapter);
        let wanted = program.and_then(|program| program.leaves.get(&vf));
        let view = self.world.adapters.get(adapter).and_then(|view| view.eswitch.as_ref());
        let has = view.and_then(|view| view.leaves.get(&vf)).map(|(_, view)| &view.rate);
        wanted.is_none() || wanted == has
    }

    pub(super) fn vf_state(
        &self,
        adapter: &Id,
        vf: u16,
        program: &LegacyProgram,
    ) -> Option<VfState> {
        let has = self.world.adapters.get(adapter)?.vfs.get(&vf)?.settings.as_ref();
        let wanted = program.vfs.get(&vf)?;
        Some(self.adapters.get(adapter)?.settings.state(vf, has, wanted))
    }

    fn offloaded(&self, plan: &PortPlan, summary: &FlowSummary) -> Statement {
        use ConditionStatus::{False, Partial, True};
        let say = |status, reason: &str, message: String| {
            Statement::new("Offloaded", status, reason, message)
        };
        let Ok(place) = &plan.place else {
            return say(False, "NotBound", "the port stands nowhere: see Bound".into());
        };
        let mode = self.world.adapters.get(&place.adapter).and_then(|adapter| adapter.mode);
        match (mode, summary.counts) {
            (Some(EswitchMode::Legacy), _) => {
                say(True, "LegacyMode", "the NIC switches by itself in legacy mode".into())
            }
            (Some(EswitchMode::Software), _) => {
                say(False, "SoftwareAdapter", "a software adapter has no hardware".into())
            }
            (_, FlowCounts { in_hw, not_in_hw: 0, refused: 0, pending: 0 }) if in_hw > 0 => {
                say(True, "InHardware", format!("all {in_hw} flows are in hardware"))
            }
            (_, FlowCounts { in_hw: 0, .. }) => say(
                False,
                "NotInHardware",
                summary.not_in_hw.clone().unwrap_or_else(|| "no flow is in hardware".into()),
            ),
            (_, counts) => say(
                Partial,
                "PartlyInHardware",
                format!(
                    "{} of {} flows are in hardware{}",
                    counts.in_hw,
                    counts.in_hw + counts.not_in_hw + counts.refused + counts.pending,
                    summary.not_in_hw.as_ref().map(|r| format!(": {r}")).unwrap_or_default()
                ),
            ),
        }
    }

    /// What became of a port's flows on all adapters.
    pub(super) fn summary(&self, port: &Id) -> FlowSummary {
        let mut summary = FlowSummary::default();
        for (_, program, flows) in self.flow_programs() {
            let Some(account) = flows.ledger().of_port(port) else { continue };
            let FlowCounts { in_hw, not_in_hw, refused, pending } = account.counts;
            summary.counts.in_hw += in_hw;
            summary.counts.not_in_hw += not_in_hw;
            summary.counts.refused += refused;
            summary.counts.pending += pending;
            if summary.not_in_hw.is_none() {
                summary.not_in_hw = account.why_not_in_hw().map(str::to_owned);
            }
            if refused > 0 && summary.refusal.is_none() {
                summary.refusal = flows.refusal(program, port).map(str::to_owned);
            }
        }
        summary
    }

    fn flow_programs(&self) -> impl Iterator<Item = (&Id, &FlowProgram, &AdapterFlows)> {
        self.planner.plan().programs.iter().filter_map(|(id, program)| match program {
            Program::Flows(program) => Some((id, program, &self.adapters.get(id)?.flows)),
            Program::VfSettings(_) => None,
        })
    }

    // ------------------------------------------------------------ guests

    pub(super) fn guest(&mut self, id: &Id) -> Option<Guest> {
        let stored = self.intent.guests.get(id);
        let view = self.world.guests.get(id);
        if stored.is_none() && view.is_none() {
            return None;
        }
        let (revision, spec) =
            stored.map(|stored| (stored.revision, stored.spec.clone())).unwrap_or_default();
        let mut status = GuestStatus::default();
        if let Some(view) = view {
            status.pid = view.pid;
            status.qemu = view.qemu.clone();
            status.run_state = view.run_state.clone();
            status.functions = self.functions(id, view);
            status.overruns = self.overruns.get(id).copied().unwrap_or_default();
        }
        let statements = vec![connected(view)];
        status.conditions = self.stamp("guests", id, statements);
        Some(Resource { id: id.clone(), revision, spec, status })
    }

    pub(super) fn guests(&mut self) -> Vec<Guest> {
        let ids: BTreeSet<Id> =
            self.intent.guests.keys().chain(self.world.guests.keys()).cloned().collect();
        ids.iter().filter_map(|id| self.guest(id)).collect()
    }

    fn functions(&self, guest: &Id, view: &GuestView) -> Vec<GuestFunction> {
        view.functions
            .iter()
            .map(|(device, function)| {
                let filter = function.filter.as_ref();
                let (found, backing_problem) = self.backing(&function.backing);
                let named = self.intent.guests.get(guest);
                let named = named.and_then(|guest| guest.spec.backings.get(device)).cloned();
                let backing_confirmed = found.is_some()
                    && named.as_ref().is_none_or(|named| found.as_ref() == Some(named));
                let backing_source = match named {
                    Some(_) => Some(BackingSource::Platform),
                    None => function.source,
                };
                GuestFunction {
                    device: device.clone(),
                    pf: function.pf.clone(),
                    index: function.index,
                    pci: function.pci.map(|pci| pci.to_string()),
                    enabled: function.enabled,
                    mac: filter.map(|filter| filter.main_mac),
                    unicast: filter.map(|filter| filter.unicast.clone()).unwrap_or_default(),
                    unicast_overflow: filter.is_some_and(|filter| filter.unicast_overflow),
                    multicast: filter.map(|filter| filter.multicast.clone()).unwrap_or_default(),
                    multicast_overflow: filter.is_some_and(|filter| filter.multicast_overflow),
                    all_multicast: filter.is_some_and(|filter| filter.all_multicast),
                    vlans: filter.map(|filter| filter.vlans.clone()).unwrap_or_default(),
                    promiscuous: filter.is_some_and(|filter| filter.promiscuous),
                    filter_known: filter.is_some(),
                    visibility: function.visibility,
                    backing: named.or(found),
                    backing_source,
                    backing_confirmed,
                    backing_problem,
                    port: self.port_of_function(guest, device),
                }
            })
            .collect()
    }

    fn backing(&self, view: &BackingView) -> (Option<Backing>, Option<String>) {
        match view {
            BackingView::Netdev { name } => (Some(Backing::Netdev { name: name.clone() }), None),
            BackingView::Vf { handle, index } => {
                let adapter = self.world.adapters.iter().find(|(_, a)| a.handle == *handle);
                match adapter {
                    Some((id, _)) => {
                        (Some(Backing::Vf { adapter: id.clone(), index: *index }), None)
                    }
                    None => {
                        (None, Some(format!("VF {index} of {handle}, which is not configured")))
                    }
                }
            }
            BackingView::Contested { reason }
            | BackingView::Unsupported { reason }
            | BackingView::Unknown { reason } => (None, Some(reason.clone())),
        }
    }

    pub(super) fn port_of_function(&self, guest: &Id, device: &str) -> Option<Id> {
        self.intent
            .ports
            .iter()
            .find(|(_, port)| {
                matches!(&port.spec.function, PortFunction::GuestVf { guest: g, device: d }
                    if g == guest && d == device)
            })
            .map(|(id, _)| id.clone())
    }

    // ------------------------------------------------------------ adapters and flows

    pub(super) fn adapter(&mut self, id: &Id) -> Option<Adapter> {
        let view = self.world.adapters.get(id)?;
        let mut adapter = Adapter {
            id: id.clone(),
            handle: view.handle.clone(),
            driver: view.driver.clone(),
            mode: view.mode,
            switch_id: view.switch_id.clone(),
            uplink: view.uplink.as_ref().map(netdev),
            vfs: self.adapter_vfs(id, view),
            flows: self.adapter_counts(id),
            foreign_filters: self.adapters.get(id).map_or(0, |s| s.flows.foreign_filters()),
            eswitch: view.eswitch.as_ref().map(eswitch_settings),
            offload: view.capabilities.as_deref().map(offload),
            conditions: Vec::new(),
        };
        let statements = self.adapter_statements(id, view);
        adapter.conditions = self.stamp("adapters", id, statements);
        Some(adapter)
    }

    pub(super) fn adapters(&mut self) -> Vec<Adapter> {
        let ids: Vec<Id> = self.world.adapters.keys().cloned().collect();
        ids.iter().filter_map(|id| self.adapter(id)).collect()
    }

    fn adapter_vfs(&self, id: &Id, view: &AdapterView) -> Vec<AdapterVf> {
        let plans = self.planner.plan().ports.iter();
        let places = plans.filter_map(|(port, plan)| Some((plan.place.as_ref().ok()?, port)));
        let here: BTreeMap<_, &Id> = places
            .filter(|(place, _)| place.adapter == *id)
            .map(|(place, port)| ((place.vf, place.representor.as_ref()), port))
            .collect();
        let port_at = |index: Option<u16>, representor: Option<&NetdevView>| {
            here.get(&(index, representor)).map(|port| (*port).clone())
        };
        let vfs = view.vfs.iter().map(|(index, vf)| AdapterVf {
            index: Some(*index),
            representor: vf.representor.as_ref().map(netdev),
            driver: vf.driver.clone(),
            settings: vf.settings.clone(),
            port: port_at(Some(*index), vf.representor.as_ref()),
        });
        let representors = view.representors.values().map(|representor| AdapterVf {
            index: None,
            representor: Some(netdev(representor)),
            driver: None,
            settings: None,
            port: port_at(None, Some(representor)),
        });
        vfs.chain(representors).collect()
    }

    pub(super) fn adapter_counts(&self, id: &Id) -> FlowCounts {
        self.adapters.get(id).map(|state| *state.flows.ledger().all()).unwrap_or_default()
    }

    fn adapter_statements(&self, id: &Id, view: &AdapterView) -> Vec<Statement> {
        use ConditionStatus::{False, True};
        let mut problems = view.problems.clone();
        if let Some(state) = self.adapters.get(id) {
            problems.extend(state.problems.values().cloned());
            problems.extend(state.flows.fights().map(|(hook, repairs)| {
                let netdev = hook.ifindex().and_then(|ifindex| netdev_name(view, ifindex));
                format!(
                    "{}: somebody else changes the daemon's flows again and again ({repairs} \
                     repairs within a minute), they are repaired less often now; `tc monitor` \
                     shows what is changed, the log by which netlink port",
                    netdev.unwrap_or("?")
                )
            }));
            problems.extend(state.settings.fights().map(|(index, repairs)| {
                format!(
                    "VF {index}: somebody else changes its settings again and again ({repairs} \
                     repairs within a minute), they are repaired less often now; `ip monitor \
                     link` shows when"
                )
            }));
            for (index, refused) in state.settings.refused() {
                problems.extend(refused.values().map(|refusal| format!("VF {index}: {refusal}")));
            }
            problems.extend(state.rates.refused().map(|(_, refusal)| refusal.to_string()));
            problems.extend(state.vdpa_refused.values().map(ToString::to_string));
        }
        let present = match view.mode {
            Some(_) => Statement::new("Present", True, "Present", "the adapter is there"),
            None => Statement::new("Present", False, "Missing", view.problems.join("; ")),
        };
        let healthy = match problems.is_empty() {
            true => Statement::new("Healthy", True, "NoProblem", "nothing was refused"),
            false => Statement::new("Healthy", False, "Problems", problems.join("; ")),
        };
        let mut statements = vec![present, healthy];
        statements.extend(self.eswitch_statement(id, view));
        statements
    }

    pub(super) fn flows(&self, filter: &FlowFilter) -> Vec<Flow> {
        let mut found = Vec::new();
        for (adapter, program, flows) in self.flow_programs() {
            if filter.adapter.as_ref().is_some_and(|wanted| wanted != adapter) {
                continue;
            }
            for (rule, why) in program.rules.iter_noted() {
                let matches =
                    |wanted: &Option<Id>, has: &Option<Id>| wanted.is_none() || wanted == has;
                if !matches(&filter.port, &why.port) || !matches(&filter.network, &why.network) {
                    continue;
                }
                let (state, reason) = flows.state(rule);
                let name = rule.hook().ifindex().and_then(|ifindex| program.netdevs.get(&ifindex));
                let name = name.map(|netdev| netdev.name.clone());
                found.push(Flow {
                    adapter: adapter.clone(),
                    netdev: name.unwrap_or_default(),
                    purpose: why.purpose.to_string(),
                    port: why.port.clone(),
                    network: why.network.clone(),
                    tc: with_names(&rule.to_string(), program),
                    state,
                    reason: reason.map(str::to_owned),
                });
            }
        }
        found
    }

    // ------------------------------------------------------------ upkeep

    /// Why the daemon does not do its work yet.
    pub(super) fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.host_seen {
            reasons.push("the host's adapters have not been read yet".to_owned());
        }
        if !self.converged_once {
            reasons.push("not every adapter has been brought to its program yet".to_owned());
        }
        if self.torn_down {
            reasons.push(
                "its flows were taken away over the API, and nothing is programmed; POST \
                 /v1/resume (eswitchctl resume) brings them back"
                    .to_owned(),
            );
        }
        reasons
    }

    /// Moves the times of conditions whose status changed, so that they are right when read later.
    pub(super) fn stamp_conditions(&mut self) {
        let mut stale = std::mem::take(&mut self.stale);
        for state in self.adapters.values_mut() {
            stale.ports.extend(state.flows.take_touched());
        }
        let mut said: Vec<(&str, Id, Vec<Statement>)> = Vec::new();
        for (id, view) in &self.world.adapters {
            said.push(("adapters", id.clone(), self.adapter_statements(id, view)));
        }
        for id in self.intent.networks.keys() {
            said.push(("networks", id.clone(), self.network_statements(id)));
        }
        if stale.all {
            stale.ports.extend(self.intent.ports.keys().cloned());
            stale.guests.extend(self.intent.guests.keys().chain(self.world.guests.keys()).cloned());
        }
        for id in stale.ports {
            if self.intent.ports.contains_key(&id) {
                let statements = self.port_statements(&id, &self.summary(&id));
                said.push(("ports", id, statements));
            } else {
                self.conditions.forget(&format!("ports/{id}"));
            }
        }
        for id in stale.guests {
            let statements = vec![connected(self.world.guests.get(&id))];
            said.push(("guests", id, statements));
        }
        for (kind, id, statements) in said {
            self.stamp(kind, &id, statements);
        }
        if stale.all {
            self.forget_conditions();
        }
        self.tell_of_conditions();
    }

    /// Forgets the conditions of what is there no longer.
    fn forget_conditions(&mut self) {
        let known: BTreeSet<String> = [
            ("networks", self.intent.networks.keys().collect::<Vec<_>>()),
            ("ports", self.intent.ports.keys().collect()),
            ("guests", self.intent.guests.keys().chain(self.world.guests.keys()).collect()),
            ("adapters", self.world.adapters.keys().collect()),
        ]
        .into_iter()
        .flat_map(|(kind, ids)| ids.into_iter().map(move |id| format!("{kind}/{id}")))
        .collect();
        self.conditions.retain(|resource| known.contains(resource));
    }

    fn stamp(&mut self, kind: &str, id: &Id, statements: Vec<Statement>) -> Vec<Condition> {
        self.conditions.stamp(&format!("{kind}/{id}"), SystemTime::now(), statements)
    }
}

fn offload(capabilities: &Capabilities) -> AdapterOffload {
    let abilities = capabilities.abilities.iter();
    let Ceilings { actions, gotos, chain, prio } = capabilities.ceilings;
    AdapterOffload {
        profile: capabilities.profile.to_owned(),
        capabilities: abilities
            .map(|(ability, capability)| OffloadCapability {
                name: ability.to_string(),
                available: capability.available,
                source: match capability.by {
                    Evidence::Profile => CapabilitySource::Profile,
                    Evidence::Probe => CapabilitySource::Probe,
                },
                reason: capability.words.clone(),
            })
            .collect(),
        ceilings: OffloadCeilings { actions, gotos, chain, prio },
    }
}

fn eswitch_settings(view: &EswitchView) -> EswitchSettings {
    let object = |rate: &RateView| RateObject {
        tx_max: rate.rate.tx_max * 8,
        tx_share: rate.rate.tx_share * 8,
        parent: rate.parent.clone(),
        ..RateObject::default()
    };
    let leaves = view.leaves.iter();
    let leaves = leaves.map(|(vf, (_, rate))| RateObject { vf: Some(*vf), ..object(rate) });
    let nodes = view.nodes.iter();
    let nodes = nodes.map(|(name, rate)| RateObject { node: Some(name.clone()), ..object(rate) });
    EswitchSettings {
        inline_mode: view.inline_mode.map(str::to_owned),
        encap: view.encap,
        rates: leaves.chain(nodes).collect(),
    }
}

/// The name of the uplink or representor with this index.
pub(super) fn netdev_name(view: &AdapterView, ifindex: Ifindex) -> Option<&str> {
    let vfs = view.vfs.values().filter_map(|vf| vf.representor.as_ref());
    let mut all = view.uplink.iter().chain(view.representors.values()).chain(vfs);
    all.find(|netdev| netdev.ifindex == ifindex).map(|netdev| netdev.name.as_str())
}

fn netdev(view: &NetdevView) -> Netdev {
    Netdev { name: view.name.clone(), ifindex: view.ifindex.get() }
}

fn statement(about: &'static str, status: ConditionStatus, finding: &Finding) -> Statement {
    Statement::new(about, status, finding.reason, finding.message.clone())
}

/// A rule's text with the names of netdevs in the place of `if7`.
pub(super) fn with_names(text: &str, program: &FlowProgram) -> String {
    let name = |word: &str| {
        let ifindex = Ifindex::new(word.strip_prefix("if")?.parse().ok()?)?;
        program.netdevs.get(&ifindex).map(|netdev| netdev.name.clone())
    };
    let words: Vec<String> =
        text.split(' ').map(|word| name(word).unwrap_or_else(|| word.to_owned())).collect();
    words.join(" ")
}

/// A place that another port or guest claims too is a conflict as well as a reason not to be bound.
fn place_conflict(plan: &PortPlan) -> Option<&Finding> {
    let finding = plan.place.as_ref().err()?;
    matches!(finding.reason, "PlaceTaken" | "BackingContested").then_some(finding)
}

fn conflict_statement(finding: Option<&Finding>) -> Statement {
    match finding {
        Some(finding) => statement("Conflict", ConditionStatus::True, finding),
        None => Statement::new("Conflict", ConditionStatus::False, "None", "nothing conflicts"),
    }
}

/// How far it is checked what the port sends from, where more than MAC addresses is.
fn sources_checked(spec: &PortSpec) -> Option<Statement> {
    if spec.ips.is_empty() {
        return None;
    }
    let message = "IPv4, ARP and IPv6 sources are checked; not what neighbor discovery says inside \
                   (ND: unchecked), for which flower has no keys";
    Some(Statement::new("SourcesChecked", ConditionStatus::Partial, "NdUnchecked", message))
}

fn quarantined(plan: &PortPlan) -> Statement {
    let refused = |refused: &RefusedMac| format!("{}: {}", refused.mac, refused.reason);
    let mut refusals: Vec<String> = plan.refused.iter().map(refused).collect();
    let reason = match (refusals.is_empty(), plan.promiscuous_refused) {
        (false, _) => "AddressRefused",
        (true, true) => "PromiscuousRefused",
        (true, false) => {
            let message = "the guest asks for nothing that it may not have";
            return Statement::new(
                "Quarantined",
                ConditionStatus::False,
                "NothingRefused",
                message,
            );
        }
    };
    if plan.promiscuous_refused {
        refusals.push(
            "promiscuous mode: the port does not allow it (promiscuous: allow); the guest receives \
             what is sent to it, as before"
                .into(),
        );
    }
    Statement::new("Quarantined", ConditionStatus::True, reason, refusals.join("; "))
}

fn connected(view: Option<&GuestView>) -> Statement {
    use ConditionStatus::{False, True};
    let say = |status, reason: &str, message: String| {
        Statement::new("Connected", status, reason, message)
    };
    match view.map(|view| &view.connection) {
        None => say(False, "NotSeen", "there is no QMP socket for this guest".into()),
        Some(Connection::Connecting) => say(False, "Connecting", "QMP has not answered yet".into()),
        Some(Connection::Connected) => say(True, "Connected", "QMP answers".into()),
        Some(Connection::Interrupted { reason }) => say(False, "Interrupted", reason.clone()),
        Some(Connection::Misbehaving { reason }) => say(False, "Misbehaving", reason.clone()),
        Some(Connection::Gone) => say(False, "Gone", "its QEMU has ended".into()),
    }
}
