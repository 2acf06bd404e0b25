//! The daemon's metrics, in one registry, in Prometheus' text format.
//!
//! Names follow the Prometheus conventions: base units, `_total` for counters. Labels are bounded:
//! never a MAC address, a guest's word or a flow.

use std::cell::RefCell;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
    core::{Collector, Desc},
    proto::MetricType,
};

/// Buckets of the time from a guest's event to its flows, in seconds.
const LATENCY_BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Why frames of ports are dropped, as the label says it.
pub const DROP_REASONS: [&str; 10] = [
    "no_network",
    "spoofed_mac",
    "spoofed_ip",
    "tag",
    "link_local",
    "dhcp_server",
    "router_advertisement",
    "isolated",
    "rate",
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
    /// QMP events, by kind.
    pub guest_events: IntCounterVec,
    /// What guests did beyond their budgets, by budget.
    pub guest_overruns: IntCounterVec,
    /// Addresses that guests asked for and do not get, now.
    pub refused_macs: IntGauge,
    /// Flows by adapter and state.
    pub flows: IntGaugeVec,
    /// Frames that met flows, by adapter and where.
    pub flow_hits: IntCounterVec,
    /// What ports received, by port.
    pub port_received_bytes: IntCounterVec,
    /// Likewise in frames.
    pub port_received_packets: IntCounterVec,
    /// What ports sent, by port.
    pub port_sent_bytes: IntCounterVec,
    /// Likewise in frames.
    pub port_sent_packets: IntCounterVec,
    /// What was dropped of it, by port and reason.
    pub port_dropped_bytes: IntCounterVec,
    /// Likewise in frames.
    pub port_dropped_packets: IntCounterVec,
    /// Filters of other owners on our hooks, by adapter.
    pub foreign_filters: IntGaugeVec,
    /// Own flows that somebody else deleted, changed or added, by adapter and kind.
    pub drift: IntCounterVec,
    /// From a guest's event read to its last flow acknowledged.
    pub event_to_programmed: Histogram,
    /// Kernel operations by kind and result.
    pub kernel_operations: IntCounterVec,
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
        let event_to_programmed = Histogram::with_opts(
            HistogramOpts::new(
                "eswitchd_event_to_programmed_seconds",
                "Time from a guest event read off its QMP socket to its flows acknowledged by the \
                 kernel.",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
        )?;
        register(Box::new(event_to_programmed.clone()))?;

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
            guest_events: counters(
                "eswitchd_guest_events_total",
                "QMP events received from guests.",
                &["kind"],
            )?,
            guest_overruns: counters(
                "eswitchd_guest_overruns_total",
                "What guests did beyond their budgets: events answered late (filter_looks), \
                 connections given up (messages, bytes, line).",
                &["budget"],
            )?,
            refused_macs: gauge(
                "eswitchd_refused_macs",
                "MAC addresses that guests ask for at the moment and do not get.",
            )?,
            flows: gauges(
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
            port_received_bytes: counters(
                "eswitchd_port_received_bytes_total",
                "Bytes that a port's function received, as its representor counts them; it starts \
                 anew with another representor.",
                &["port"],
            )?,
            port_received_packets: counters(
                "eswitchd_port_received_packets_total",
                "Frames that a port's function received, likewise.",
                &["port"],
            )?,
            port_sent_bytes: counters(
                "eswitchd_port_sent_bytes_total",
                "Bytes that a port's function sent, dropped ones among them, likewise.",
                &["port"],
            )?,
            port_sent_packets: counters(
                "eswitchd_port_sent_packets_total",
                "Frames that a port's function sent, dropped ones among them, likewise.",
                &["port"],
            )?,
            port_dropped_bytes: counters(
                "eswitchd_port_dropped_bytes_total",
                "Bytes that a port's function sent and its flows dropped, by reason; of policers \
                 (rate, storm) not known.",
                &["port", "reason"],
            )?,
            port_dropped_packets: counters(
                "eswitchd_port_dropped_packets_total",
                "Frames that a port's function sent and its flows dropped, by reason.",
                &["port", "reason"],
            )?,
            foreign_filters: gauges(
                "eswitchd_foreign_filters",
                "Filters of other owners on the hooks of an adapter.",
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
            event_to_programmed,
            kernel_operations: counters(
                "eswitchd_kernel_operations_total",
                "Changes that the kernel was asked for, by kind and result: done or refused.",
                &["operation", "result"],
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
            for result in ["done", "refused"] {
                metrics.kernel_operations.with_label_values(&[operation, result]);
            }
        }
        Ok(metrics)
    }

    /// Counts one operation of the kernel.
    pub fn tally(&self, operation: &str, done: bool) {
        let result = if done { "done" } else { "refused" };
        self.kernel_operations.with_label_values(&[operation, result]).inc();
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
}
