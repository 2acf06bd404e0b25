//! The daemon's metrics, in one registry, in Prometheus' formats.
//!
//! Names follow the Prometheus conventions: base units, `_total` for counters. Labels are bounded:
//! never a MAC address, a guest's word or a flow.

pub(crate) mod certificate;
mod table;

use std::{cell::RefCell, time::Duration};

use nix::errno::Errno;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    ProtobufEncoder, Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::MetricType,
};

pub(crate) use self::table::Row;
pub use self::table::Table;

/// Buckets of times, in seconds: 100 µs to 10 s.
const LATENCY_BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Why frames of ports are dropped, as the label says it.
pub const DROP_REASONS: [&str; 11] = [
    "no_network",
    "spoofed_mac",
    "spoofed_ip",
    "tag",
    "link_local",
    "dhcp_server",
    "router_advertisement",
    "isolated",
    "rate",
    "rx_rate",
    "storm",
];

/// Where frames meet flows, as the label says it.
pub const HIT_BY: [&str; 2] = ["software", "hardware"];

/// A metric as it was registered, whether it has a series yet or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Its name. A histogram's series have `_bucket`, `_sum` and `_count` behind it.
    pub name: String,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// The names of its labels, without a bucket's `le`.
    pub labels: Vec<String>,
    /// What it says.
    pub help: String,
}

/// What becomes of a change that the kernel was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// It was refused with this error number.
    Refused(i32),
    /// No answer came.
    Unknown,
}

impl Answer {
    const fn as_str(self) -> &'static str {
        match self {
            Answer::Done => "done",
            Answer::Refused(_) => "refused",
            Answer::Unknown => "unknown",
        }
    }
}

/// Everything that is measured.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Vec<Family>,
    /// Guests with a working QMP connection.
    pub guests_connected: IntGauge,
    /// Guests that are known, by whatever state.
    pub guests: IntGauge,
    /// Enabled functions of guests.
    pub guest_functions_enabled: IntGauge,
    /// VFs of guests, by guest and state.
    pub guest_vfs: Table,
    /// Conditions of guests.
    pub guest_conditions: Table,
    /// QMP events, by guest and kind.
    pub guest_events: IntCounterVec,
    /// What guests did beyond their budgets, by guest and budget.
    pub guest_overruns: IntCounterVec,
    /// Requests of guests that were refused, by guest and request.
    pub guest_refusals: IntCounterVec,
    /// Addresses that guests asked for and do not get, now.
    pub refused_macs: IntGauge,
    /// What adapters are.
    pub adapter_info: Table,
    /// Conditions of adapters.
    pub adapter_conditions: Table,
    /// VFs without a representor, by adapter.
    pub representors_missing: Table,
    /// The most that rules of an adapter may have, by what.
    pub adapter_ceilings: Table,
    /// The most that they have, likewise.
    pub adapter_highest: Table,
    /// Flows that the hardware has room for, by adapter.
    pub table_size: Table,
    /// Flows by adapter and state.
    pub flows: Table,
    /// Frames that met flows, by adapter and where.
    pub flow_hits: IntCounterVec,
    /// Frames by adapter and where they met their first flow.
    pub adapter_frames: IntCounterVec,
    /// Where ports stand.
    pub port_info: Table,
    /// Conditions of ports.
    pub port_conditions: Table,
    /// Rate limits of ports, by limit.
    pub port_rate_limits: Table,
    /// Frames that ports may flood.
    pub port_flood_limits: Table,
    /// Frames that ports sent, by port and where they met their first flow.
    pub port_frames: Table,
    /// Frames of ports that went through the host's CPU, by port and way.
    pub port_software_packets: Table,
    /// What ports received, by port.
    pub port_received_bytes: Table,
    /// Likewise in frames.
    pub port_received_packets: Table,
    /// What ports sent, by port.
    pub port_sent_bytes: Table,
    /// Likewise in frames.
    pub port_sent_packets: Table,
    /// What was dropped of it, by port and reason.
    pub port_dropped_bytes: Table,
    /// Likewise in frames.
    pub port_dropped_packets: Table,
    /// Filters of other owners on our hooks, by adapter.
    pub foreign_filters: Table,
    /// Hooks and VFs over which somebody else fights with the daemon, by adapter.
    pub drift_fights: Table,
    /// Own flows that somebody else deleted, changed or added, by adapter and kind.
    pub drift: IntCounterVec,
    /// From a guest's event read to its last flow acknowledged.
    pub event_to_programmed: Histogram,
    /// From a VF seen to be enabled to its last flow acknowledged.
    pub plug_to_programmed: Histogram,
    /// The owner's time to plan and to hand out what there is to do.
    pub reconcile: Histogram,
    /// How long there has been something to do without a break.
    pub unconverged: Table,
    /// Kernel operations by kind and result.
    pub kernel_operations: IntCounterVec,
    /// Those that were refused, by kind and error number.
    pub kernel_refusals: IntCounterVec,
    /// Notifications about flows that were lost.
    pub netlink_overruns: IntCounter,
    /// Transactions of the store.
    pub store_commit: Histogram,
    /// Messages that wait, by queue.
    pub queue_depth: IntGaugeVec,
    /// Answered requests of the API, by method, route and status.
    pub api_requests: IntCounterVec,
    /// When the certificate of the API ends.
    pub certificate_ends: Table,
    /// What went wrong, by the place where it did.
    pub errors: IntCounterVec,
    /// Whether the daemon has converged once and does its work.
    pub ready: IntGauge,
}

impl Metrics {
    /// A fresh registry with every metric at zero.
    ///
    /// # Errors
    /// Never with the names of this file: two metrics of one name, or a name that is not one.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let families = RefCell::new(Vec::new());
        let register = |collector: Box<dyn Collector>| {
            families.borrow_mut().extend(families_of(&*collector));
            registry.register(collector)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
            let histogram = Histogram::with_opts(options)?;
            register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let table = |name: &str, help: &str, labels: &[&str], kind: MetricType| {
            let table = Table::new(name, help, labels, kind)?;
            register(Box::new(table.clone()))?;
            Ok::<_, prometheus::Error>(table)
        };
        let now =
            |name: &str, help: &str, labels: &[&str]| table(name, help, labels, MetricType::GAUGE);
        let ever = |name: &str, help: &str, labels: &[&str]| {
            table(name, help, labels, MetricType::COUNTER)
        };
        let netlink_overruns = IntCounter::new(
            "eswitchd_netlink_overruns_total",
            "How often notifications about flows were lost, because they came faster than they \
             were read; every hook is read again then.",
        )?;
        register(Box::new(netlink_overruns.clone()))?;
        register(Box::new(ProcessCollector::for_self()))?;

        gauges("eswitchd_build_info", "Always 1; the version is in the label.", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let metrics = Metrics {
            guests_connected: gauge(
                "eswitchd_guests_connected",
                "Guests with a working QMP connection.",
            )?,
            guests: gauge("eswitchd_guests", "Guests that are known.")?,
            guest_functions_enabled: gauge(
                "eswitchd_guest_functions_enabled",
                "Emulated PFs and VFs that guests have enabled.",
            )?,
            guest_vfs: now(
                "eswitchd_guest_vfs",
                "VFs of a guest by state: disabled by the guest; unbacked, enabled on something \
                 unknown or not believed; portless, enabled without a port; ported, with one.",
                &["guest", "state"],
            )?,
            guest_conditions: now(
                "eswitchd_guest_condition",
                "Conditions of a guest: 1 true, 0.5 in part, 0 false, -1 unknown.",
                &["guest", "condition", "reason"],
            )?,
            guest_events: counters(
                "eswitchd_guest_events_total",
                "QMP events received from a guest.",
                &["guest", "kind"],
            )?,
            guest_overruns: counters(
                "eswitchd_guest_overruns_total",
                "What a guest did beyond its budgets: events answered late (filter_looks), \
                 connections given up (messages, bytes, line).",
                &["guest", "budget"],
            )?,
            guest_refusals: counters(
                "eswitchd_guest_refused_requests_total",
                "Requests of a guest that were refused, each counted when it was new: for an address \
                 (address), for all frames (promiscuous).",
                &["guest", "request"],
            )?,
            refused_macs: gauge(
                "eswitchd_refused_macs",
                "MAC addresses that guests ask for at the moment and do not get.",
            )?,
            adapter_info: now(
                "eswitchd_adapter_info",
                "Always 1; driver, mode and the profile of what its hardware takes are in the \
                 labels (mode absent: the adapter is not there).",
                &["adapter", "driver", "mode", "profile"],
            )?,
            adapter_conditions: now(
                "eswitchd_adapter_condition",
                "Conditions of an adapter: 1 true, 0.5 in part, 0 false, -1 unknown.",
                &["adapter", "condition", "reason"],
            )?,
            representors_missing: now(
                "eswitchd_representors_missing",
                "VFs of an adapter in switchdev mode that have no representor.",
                &["adapter"],
            )?,
            adapter_ceilings: now(
                "eswitchd_adapter_ceiling",
                "The most that a rule may have on an adapter, as its profile and the probe found: \
                 actions, the highest chain, the highest prio.",
                &["adapter", "of"],
            )?,
            adapter_highest: now(
                "eswitchd_adapter_highest",
                "The most that a rule of the daemon has there: actions, chain, prio.",
                &["adapter", "of"],
            )?,
            table_size: now(
                "eswitchd_table_size",
                "Flows that an adapter's hardware has room for: as configured (hardware_flows), or \
                 as many as it held when it refused one for want of room (ENOSPC); absent where \
                 neither is known.",
                &["adapter"],
            )?,
            flows: now(
                "eswitchd_flows",
                "Flows by adapter and state: in_hw, not_in_hw, refused, pending.",
                &["adapter", "state"],
            )?,
            flow_hits: counters(
                "eswitchd_flow_hits_total",
                "Frames that met flows, by adapter and where they did: hardware or software. A \
                 frame meets several flows.",
                &["adapter", "by"],
            )?,
            adapter_frames: counters(
                "eswitchd_adapter_frames_total",
                "Frames that came in at an adapter's hooks, each once, by where it met its first \
                 flow: hardware or software.",
                &["adapter", "by"],
            )?,
            port_info: now(
                "eswitchd_port_info",
                "Always 1; where the port stands is in the labels: its guest and device where it \
                 is a guest's, its adapter and representor where it is bound.",
                &["port", "guest", "device", "adapter", "representor"],
            )?,
            port_conditions: now(
                "eswitchd_port_condition",
                "Conditions of a port: 1 true, 0.5 in part, 0 false, -1 unknown.",
                &["port", "condition", "reason"],
            )?,
            port_rate_limits: now(
                "eswitchd_port_rate_limit_bytes_per_second",
                "What a port may send as its `qos` says, tx_max at most, tx_min at least, and receive: \
                 rx_max at most.",
                &["port", "limit"],
            )?,
            port_flood_limits: now(
                "eswitchd_port_flood_limit_packets_per_second",
                "Broadcast and multicast frames that a port may send at most.",
                &["port"],
            )?,
            port_frames: ever(
                "eswitchd_port_frames_total",
                "Frames that a port's function sent, each once, by where it met its first flow: \
                 hardware or software; without those that a policer dropped.",
                &["port", "by"],
            )?,
            port_software_packets: ever(
                "eswitchd_port_software_packets_total",
                "Frames that a port's function sent or received (way) by way of the host's CPU, as \
                 the driver of its representor counts them (IFLA_OFFLOAD_XSTATS_CPU_HIT: mlx5, nfp, \
                 mlxsw); where it does not tell there is no series.",
                &["port", "way"],
            )?,
            port_received_bytes: ever(
                "eswitchd_port_received_bytes_total",
                "Bytes that a port's function received, as its representor counts them while \
                 the port stands on it; it goes on with another representor.",
                &["port"],
            )?,
            port_received_packets: ever(
                "eswitchd_port_received_packets_total",
                "Frames that a port's function received, likewise.",
                &["port"],
            )?,
            port_sent_bytes: ever(
                "eswitchd_port_sent_bytes_total",
                "Bytes that a port's function sent, dropped ones among them, likewise.",
                &["port"],
            )?,
            port_sent_packets: ever(
                "eswitchd_port_sent_packets_total",
                "Frames that a port's function sent, dropped ones among them, likewise.",
                &["port"],
            )?,
            port_dropped_bytes: ever(
                "eswitchd_port_dropped_bytes_total",
                "Bytes that a port's function sent and its flows dropped, by reason; of policers \
                 (rate, rx_rate, storm) not known.",
                &["port", "reason"],
            )?,
            port_dropped_packets: ever(
                "eswitchd_port_dropped_packets_total",
                "Frames that a port's function sent, or was sent (rx_rate), and its flows dropped, by \
                 reason.",
                &["port", "reason"],
            )?,
            foreign_filters: now(
                "eswitchd_foreign_filters",
                "Filters of other owners on the hooks of an adapter.",
                &["adapter"],
            )?,
            drift_fights: now(
                "eswitchd_drift_fights",
                "Hooks and VFs of an adapter that somebody else changes again and again: more \
                 than ten repairs within a minute.",
                &["adapter"],
            )?,
            drift: counters(
                "eswitchd_drift_repaired_total",
                "Flows of the daemon that somebody else deleted or changed, or added under its \
                 name (deleted, changed, added), VF settings (vf_setting) and eswitches \
                 (eswitch) that somebody else changed, and netdevs of ports that went away \
                 (netdev), by adapter and kind; each was repaired.",
                &["adapter", "kind"],
            )?,
            event_to_programmed: histogram(
                "eswitchd_event_to_programmed_seconds",
                "Time from a guest event read off its QMP socket to its flows acknowledged by the \
                 kernel.",
            )?,
            plug_to_programmed: histogram(
                "eswitchd_plug_to_programmed_seconds",
                "Time from a guest's VF seen to be enabled to its port programmed: all its flows \
                 acknowledged by the kernel and its representor up, or in legacy mode the VF's \
                 settings read back. The guest's driver, which says the address, takes its part of \
                 it.",
            )?,
            reconcile: histogram(
                "eswitchd_reconcile_seconds",
                "Time to plan after a change and to hand out what there is to do; the kernel's \
                 work is not in it.",
            )?,
            unconverged: now(
                "eswitchd_unconverged_seconds",
                "How long something has been on its way to the kernel without a break; 0 where \
                 nothing is.",
                &[],
            )?,
            kernel_operations: counters(
                "eswitchd_kernel_operations_total",
                "Changes that the kernel was asked for, by kind and result: done, refused, or \
                 unknown where no answer came.",
                &["operation", "result"],
            )?,
            kernel_refusals: counters(
                "eswitchd_kernel_refusals_total",
                "Changes that the kernel refused, by kind and the name of the error number.",
                &["operation", "errno"],
            )?,
            netlink_overruns,
            store_commit: histogram(
                "eswitchd_store_commit_seconds",
                "Time of a transaction of the store, its fsync among it.",
            )?,
            queue_depth: gauges(
                "eswitchd_queue_depth",
                "Messages that waited for the owner's loop when it looked last: guests, host, \
                 calls, flows (outcomes), flow_news (changes by others), store (writes).",
                &["queue"],
            )?,
            api_requests: counters(
                "eswitchd_api_requests_total",
                "Requests that the API answered, by method, route and status; those that had no \
                 right to ask among them.",
                &["method", "route", "status"],
            )?,
            certificate_ends: now(
                "eswitchd_certificate_not_after_timestamp_seconds",
                "When the certificate of the API's TLS listeners ends, in seconds since 1970; \
                 absent without TLS.",
                &[],
            )?,
            errors: counters(
                "eswitchd_errors_total",
                "What went wrong, by the part of the daemon where it did.",
                &["component"],
            )?,
            ready: gauge(
                "eswitchd_ready",
                "1 once the daemon has brought every adapter to its program and while it works.",
            )?,
            families: families.take(),
            registry: registry.clone(),
        };
        // Series that exist from the start read as zero, not as missing.
        for component in ["guest", "flows", "vf_settings", "representor", "store"] {
            metrics.errors.with_label_values(&[component]);
        }
        for operation in ["flow_add", "flow_replace", "flow_delete", "vf_setting", "representor"] {
            for answer in [Answer::Done, Answer::Refused(0), Answer::Unknown] {
                metrics.kernel_operations.with_label_values(&[operation, answer.as_str()]);
            }
        }
        Ok(metrics)
    }

    /// Counts one operation of the kernel.
    pub fn tally(&self, operation: &str, answer: Answer) {
        self.kernel_operations.with_label_values(&[operation, answer.as_str()]).inc();
        if let Answer::Refused(errno) = answer {
            let name = format!("{:?}", Errno::from_raw(errno));
            self.kernel_refusals.with_label_values(&[operation, &name]).inc();
        }
    }

    /// Has a guest's counters begin at zero: one that begins at one has not grown, for Prometheus.
    pub(crate) fn begin_guest(&self, guest: &str) {
        for budget in ["filter_looks", "messages", "bytes", "line"] {
            self.guest_overruns.with_label_values(&[guest, budget]);
        }
        for request in ["address", "promiscuous"] {
            self.guest_refusals.with_label_values(&[guest, request]);
        }
    }

    /// The same for an adapter.
    pub(crate) fn begin_adapter(&self, adapter: &str) {
        for kind in ["deleted", "changed", "added", "netdev", "vf_setting", "eswitch"] {
            self.drift.with_label_values(&[adapter, kind]);
        }
        for by in HIT_BY {
            self.adapter_frames.with_label_values(&[adapter, by]);
            self.flow_hits.with_label_values(&[adapter, by]);
        }
    }

    /// Notes how long a transaction of the store took.
    pub(crate) fn committed(&self, took: Duration) {
        self.store_commit.observe(took.as_secs_f64());
    }

    /// Notes a request that the API answered.
    pub(crate) fn answered(&self, method: &str, route: &str, status: u16) {
        self.api_requests.with_label_values(&[method, route, &status.to_string()]).inc();
    }

    /// Every metric that is registered. [`Self::text`] shows only those with a series.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// All metrics as text, version 0.0.4 of the format.
    ///
    /// # Errors
    /// When the encoder fails.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let mut buffer = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut buffer)?;
        String::from_utf8(buffer).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }

    /// The same as delimited messages `io.prometheus.client.MetricFamily`.
    ///
    /// # Errors
    /// When the encoder fails.
    pub fn protobuf(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut buffer = Vec::new();
        ProtobufEncoder::new().encode(&self.registry.gather(), &mut buffer)?;
        Ok(buffer)
    }
}

fn families_of(collector: &dyn Collector) -> Vec<Family> {
    let kinds = collector.collect().into_iter().map(|family| family.get_field_type());
    let family = |(desc, kind): (&Desc, MetricType)| Family {
        name: desc.fq_name.clone(),
        kind,
        labels: desc.variable_labels.clone(),
        help: desc.help.clone(),
    };
    collector.desc().into_iter().zip(kinds).map(family).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_under_its_name() {
        let text = Metrics::new().unwrap().text().unwrap();
        for name in [
            "eswitchd_build_info{version=",
            "eswitchd_guests_connected 0",
            "eswitchd_event_to_programmed_seconds_count 0",
            "eswitchd_errors_total{component=\"store\"} 0",
        ] {
            assert!(text.contains(name), "{name} is missing in:\n{text}");
        }
    }

    #[test]
    fn rows_are_replaced_as_a_whole_and_shown_in_both_formats() {
        let metrics = Metrics::new().unwrap();
        let row = |state: &str, value| (vec!["nic".to_owned(), state.to_owned()], value);
        metrics.flows.replace(vec![row("in_hw", 3.0), row("refused", 1.0)]);
        metrics.flows.replace(vec![row("in_hw", 4.0)]);
        let text = metrics.text().unwrap();
        let flows: Vec<&str> = text.lines().filter(|l| l.starts_with("eswitchd_flows")).collect();
        assert_eq!(flows, ["eswitchd_flows{adapter=\"nic\",state=\"in_hw\"} 4"]);
        let protobuf = metrics.protobuf().unwrap();
        let has = |text: &[u8]| protobuf.windows(text.len()).any(|window| window == text);
        assert!(has(b"eswitchd_flows") && has(b"in_hw"));
    }

    #[test]
    fn a_refusal_is_counted_by_the_name_of_its_error() {
        let metrics = Metrics::new().unwrap();
        metrics.tally("flow_add", Answer::Refused(28));
        let count = metrics.kernel_refusals.with_label_values(&["flow_add", "ENOSPC"]);
        assert_eq!(count.get(), 1);
        let count = metrics.kernel_operations.with_label_values(&["flow_add", "refused"]);
        assert_eq!(count.get(), 1);
    }
}
