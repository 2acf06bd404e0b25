//! What the owner measures of its own state and work.
//!
//! In: the owner's state, when somebody asks for the metrics; what happens, as it happens. Out:
//! metrics. Nothing is read from the kernel here, and nothing is decided.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use api::{
    resources::{ConditionStatus, EswitchMode, FlowCounts, PortFunction},
    types::Id,
};
use tc_flows::Outcome;
use tokio::sync::mpsc;

use super::{Call, Inbox, Owner, counting::CEILINGS};
use crate::{
    capability::Ceilings,
    eswitch::KernelRefusal,
    metrics::{Answer, Row},
    plan::Changes,
    world::{BackingView, Connection, GuestView},
};

/// A VF whose port is not programmed by then was plugged in without a port, and is not waited for.
const PLUG_FORGOTTEN: Duration = Duration::from_secs(60);

/// What the kernel said to a change of a flow.
pub(super) const fn answer_of(outcome: &Outcome) -> Answer {
    match outcome {
        Outcome::Refused { errno, .. } => Answer::Refused(*errno),
        Outcome::Unknown => Answer::Unknown,
        _ => Answer::Done,
    }
}

/// What the kernel said to a change of anything else.
pub(super) fn answer(result: &Result<(), KernelRefusal>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(refusal) if refusal.is_lost() => Answer::Unknown,
        Err(refusal) => Answer::Refused(refusal.errno),
    }
}

/// VFs that guests have enabled and whose ports are not programmed yet: guest, device, and since
/// when.
#[derive(Debug, Default)]
pub(super) struct Plugs(BTreeMap<(Id, String), Instant>);

impl Plugs {
    /// Notes which functions a guest has enabled between two looks.
    pub(super) fn note(
        &mut self,
        guest: &Id,
        before: Option<&GuestView>,
        now: &GuestView,
        event_read: Option<Instant>,
    ) {
        // A guest that is seen for the first time may have had them for long.
        let Some(before) = before.filter(|before| before.connection == Connection::Connected)
        else {
            return;
        };
        for (device, function) in &now.functions {
            let was_enabled = before.functions.get(device).is_some_and(|before| before.enabled);
            let key = (guest.clone(), device.clone());
            match (was_enabled, function.enabled) {
                (false, true) => {
                    self.0.insert(key, event_read.unwrap_or_else(Instant::now));
                }
                (_, false) => {
                    self.0.remove(&key);
                }
                (true, true) => {}
            }
        }
    }
}

impl Owner {
    // ------------------------------------------------------------ as it happens

    /// Notes the VFs whose ports are programmed now.
    pub(super) fn measure_plugs(&mut self) {
        if self.plugs.0.is_empty() {
            return;
        }
        let now = Instant::now();
        self.plugs.0.retain(|_, since| now.saturating_duration_since(*since) < PLUG_FORGOTTEN);
        let waiting = std::mem::take(&mut self.plugs.0);
        for ((guest, device), since) in waiting {
            let port = self.port_of_function(&guest, &device);
            if port.is_some_and(|port| self.is_programmed(&port)) {
                let took = now.saturating_duration_since(since);
                self.metrics.plug_to_programmed.observe(took.as_secs_f64());
            } else {
                self.plugs.0.insert((guest, device), since);
            }
        }
    }

    /// Whether nothing is missing of a port.
    fn is_programmed(&self, port: &Id) -> bool {
        let plan = self.planner.plan().ports.get(port);
        let said = plan.map(|plan| self.programmed(plan, &self.summary(port)));
        said.is_some_and(|said| said.status == ConditionStatus::True)
    }

    /// Counts what guests asked for in vain since the plan before.
    pub(super) fn count_refusals(&self, changes: &Changes) {
        for (id, before) in &changes.ports {
            let spec = self.intent.ports.get(id).map(|port| &port.spec.function);
            let Some(PortFunction::GuestVf { guest, .. }) = spec else { continue };
            let Some(port) = self.planner.plan().ports.get(id) else { continue };
            let is_new = |mac| {
                let refused = before.as_ref().map(|before| &before.refused);
                refused.is_none_or(|refused| !refused.contains(mac))
            };
            let addresses = port.refused.iter().filter(|mac| is_new(mac)).count() as u64;
            let was = before.as_ref().is_some_and(|before| before.promiscuous_refused);
            let promiscuous = u64::from(port.promiscuous_refused && !was);
            for (request, count) in [("address", addresses), ("promiscuous", promiscuous)] {
                let label = [guest.as_str(), request];
                self.metrics.guest_refusals.with_label_values(&label).inc_by(count);
            }
        }
    }

    /// A guest that is no more has no counters any more.
    pub(super) fn stop_counting_guest(&self, guest: &Id) {
        let metrics = &self.metrics;
        for all in [&metrics.guest_events, &metrics.guest_overruns, &metrics.guest_refusals] {
            let families = prometheus::core::Collector::collect(all);
            let series = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
            for labels in series.map(prometheus::proto::Metric::get_label) {
                let values: HashMap<&str, &str> =
                    labels.iter().map(|label| (label.name(), label.value())).collect();
                if values.get("guest") == Some(&guest.as_str()) {
                    all.remove(&values).ok();
                }
            }
        }
    }

    /// Notes how much waits.
    pub(super) fn measure_queues(&self, inbox: &Inbox, calls: &mpsc::Receiver<Call>) {
        for (queue, depth) in [
            ("guests", inbox.guests.len()),
            ("host", inbox.host.len()),
            ("calls", calls.len()),
            ("flows", inbox.flows.len()),
            ("flow_news", inbox.flow_news.len()),
            ("store", self.store.writes.len()),
        ] {
            self.metrics.queue_depth.with_label_values(&[queue]).set(whole(depth));
        }
    }

    // ------------------------------------------------------------ when somebody asks

    /// Brings all gauges of the owner's state up to date.
    pub(super) fn update_gauges(&self) {
        self.measure_guests();
        self.measure_adapters();
        self.measure_ports();
        let metrics = &self.metrics;
        metrics.ready.set(i64::from(self.not_ready().is_empty()));
        let unconverged = self.unconverged.map_or(Duration::ZERO, |since| since.elapsed());
        metrics.unconverged.replace(vec![(Vec::new(), unconverged.as_secs_f64())]);
        metrics.guest_conditions.replace(self.conditions_of("guests/"));
        metrics.adapter_conditions.replace(self.conditions_of("adapters/"));
        metrics.port_conditions.replace(self.conditions_of("ports/"));
    }

    fn conditions_of(&self, kind: &str) -> Vec<Row> {
        let conditions = self.conditions.of_kind(kind);
        let row = |(id, about, status, reason): (&str, &str, ConditionStatus, &str)| {
            (vec![id.to_owned(), about.to_owned(), reason.to_owned()], level(status))
        };
        conditions.map(row).collect()
    }

    fn measure_guests(&self) {
        let metrics = &self.metrics;
        let ported: BTreeSet<(&Id, &str)> = self
            .intent
            .ports
            .values()
            .filter_map(|port| match &port.spec.function {
                PortFunction::GuestVf { guest, device } => Some((guest, device.as_str())),
                _ => None,
            })
            .collect();
        let (mut connected, mut enabled, mut vfs) = (0, 0, Vec::new());
        for (id, guest) in &self.world.guests {
            connected += usize::from(guest.connection == Connection::Connected);
            let mut states =
                BTreeMap::from(["disabled", "unbacked", "portless", "ported"].map(|s| (s, 0_u32)));
            for (device, function) in &guest.functions {
                enabled += usize::from(function.enabled);
                if function.pf.is_none() {
                    continue;
                }
                let named = self.intent.guests.get(id);
                let named = named.is_some_and(|g| g.spec.backings.contains_key(device));
                let backed = named || BackingView::is_known(&function.backing);
                let state = match (function.enabled, backed) {
                    (false, _) => "disabled",
                    (true, false) => "unbacked",
                    (true, true) if ported.contains(&(id, device.as_str())) => "ported",
                    (true, true) => "portless",
                };
                *states.entry(state).or_default() += 1;
            }
            let row = |(state, count): (&str, u32)| {
                (vec![id.to_string(), state.to_owned()], f64::from(count))
            };
            vfs.extend(states.into_iter().map(row));
        }
        metrics.guests.set(whole(self.world.guests.len()));
        metrics.guests_connected.set(whole(connected));
        metrics.guest_functions_enabled.set(whole(enabled));
        metrics.guest_vfs.replace(vfs);
        let refused = self.planner.plan().ports.values().map(|port| port.refused.len()).sum();
        metrics.refused_macs.set(whole(refused));
    }

    fn measure_adapters(&self) {
        let metrics = &self.metrics;
        let (mut info, mut missing, mut flows, mut foreign) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut fights, mut ceilings, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for (id, view) in &self.world.adapters {
            let of = |more: &[&str]| -> Vec<String> {
                [id.as_str()].iter().chain(more).map(|value| (*value).to_owned()).collect()
            };
            let capabilities = view.capabilities.as_deref();
            let driver = view.driver.as_deref().unwrap_or_default();
            let mode = match view.mode {
                Some(EswitchMode::Legacy) => "legacy",
                Some(EswitchMode::Switchdev) => "switchdev",
                Some(EswitchMode::Software) => "software",
                None => "absent",
            };
            let profile = capabilities.map_or("", |known| known.profile);
            info.push((of(&[driver, mode, profile]), 1.0));
            if view.mode == Some(EswitchMode::Switchdev) {
                let bare = view.vfs.values().filter(|vf| vf.representor.is_none()).count();
                missing.push((of(&[]), number(bare as u64)));
            }
            let FlowCounts { in_hw, not_in_hw, refused, pending } = self.adapter_counts(id);
            for (state, count) in [
                ("in_hw", in_hw),
                ("not_in_hw", not_in_hw),
                ("refused", refused),
                ("pending", pending),
            ] {
                flows.push((of(&[state]), number(count)));
            }
            if let Some(known) = capabilities {
                let Ceilings { actions, chain, prio, .. } = known.ceilings;
                for (what, most) in CEILINGS.into_iter().zip([actions, chain, prio]) {
                    ceilings.push((of(&[what]), f64::from(most)));
                }
            }
            let Some(state) = self.adapters.get(id) else { continue };
            let configured = self.eswitches.get(id).and_then(|policy| policy.hardware_flows);
            if let Some(size) = configured.into_iter().chain(state.full_at).min() {
                sizes.push((of(&[]), number(size)));
            }
            foreign.push((of(&[]), number(state.flows.foreign_filters())));
            let fought = state.flows.fights().count() + state.settings.fights().count();
            fights.push((of(&[]), number(fought as u64)));
        }
        metrics.adapter_info.replace(info);
        metrics.representors_missing.replace(missing);
        metrics.flows.replace(flows);
        metrics.foreign_filters.replace(foreign);
        metrics.drift_fights.replace(fights);
        metrics.adapter_ceilings.replace(ceilings);
        metrics.table_size.replace(sizes);
    }

    fn measure_ports(&self) {
        let (mut info, mut rates, mut floods) = (Vec::new(), Vec::new(), Vec::new());
        for (id, port) in &self.intent.ports {
            let (guest, device) = match &port.spec.function {
                PortFunction::GuestVf { guest, device } => (guest.to_string(), device.clone()),
                _ => Default::default(),
            };
            let place = self.planner.plan().ports.get(id).and_then(|plan| plan.place.as_ref().ok());
            let adapter = place.map(|place| place.adapter.to_string()).unwrap_or_default();
            let netdev = place.and_then(|place| place.representor.as_ref());
            let netdev = netdev.map(|netdev| netdev.name.clone()).unwrap_or_default();
            info.push((vec![id.to_string(), guest, device, adapter, netdev], 1.0));
            let Some(qos) = &port.spec.qos else { continue };
            for (limit, rate) in
                [("tx_max", qos.tx_max), ("tx_min", qos.tx_min), ("rx_max", qos.rx_max)]
            {
                if let Some(rate) = rate {
                    let bytes = number(rate.get()) / 8.0;
                    rates.push((vec![id.to_string(), limit.to_owned()], bytes));
                }
            }
            if let Some(limit) = qos.flood_limit {
                floods.push((vec![id.to_string()], f64::from(limit)));
            }
        }
        self.metrics.port_info.replace(info);
        self.metrics.port_rate_limits.replace(rates);
        self.metrics.port_flood_limits.replace(floods);
    }
}

/// A condition's status as a number.
const fn level(status: ConditionStatus) -> f64 {
    match status {
        ConditionStatus::True => 1.0,
        ConditionStatus::Partial => 0.5,
        ConditionStatus::False => 0.0,
        ConditionStatus::Unknown => -1.0,
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A count as a sample, exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "samples are of this kind")]
pub(super) const fn number(count: u64) -> f64 {
    count as f64
}
