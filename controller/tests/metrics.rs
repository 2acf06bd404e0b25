//! `docs/metrics.md` is written from the metrics as they are registered, and is current.

use std::{fmt::Write, fs};

use controller::metrics::Metrics;
use prometheus::proto::MetricType;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");

const BEFORE: &str = "\
# Metrics

`GET /metrics` answers in Prometheus' text format, or as protobuf messages where the header \
`Accept` prefers them, as Prometheus' does that scrapes native histograms. No label has a value \
that a guest can choose. \
Counters of ports and flows are read from the kernel when somebody asks; who asks within a second \
of the last reading shares it, and where the kernel takes longer than eight seconds, or \
than 70 % of Prometheus' time limit, the answer has what was read last. What ports received and \
sent is from the guest's side, and goes on over a restart of the daemon; after a crash it begins \
with nothing. What of it the host's CPU carries is told by drivers of NICs only: not by netdevsim, \
taps and veths.

Where frames of a port are dropped, `reason` is one of:

| reason | a frame |
|---|---|
| `no_network` | of a port that has no address in any network |
| `spoofed_mac` | from a MAC address that is not the port's |
| `spoofed_ip` | from an IP address, or of an ethertype, that is not the port's (`ips`) |
| `tag` | with a tag that is not attached, or with two |
| `link_local` | to a link-local group, which no bridge forwards |
| `dhcp_server` | of a DHCP server where the port may not be one |
| `router_advertisement` | of a router where the port may not be one |
| `isolated` | between two isolated ports |
| `rate` | beyond `qos.tx_max`, where a policer keeps it |
| `rx_rate` | to the port, beyond `qos.rx_max`, where a policer keeps it |
| `storm` | beyond `qos.flood_limit` |

Written by a test from the metrics themselves (`ESWITCHD_WRITE_DOCS=1 cargo test -p eswitchd \
--test metrics`).

| metric | kind | labels | says |
|---|---|---|---|
";

#[test]
fn the_committed_list_is_current() {
    let metrics = Metrics::new().unwrap();
    let mut families: Vec<_> = metrics.families().to_vec();
    families.sort_by(|one, other| one.name.cmp(&other.name));
    let mut text = BEFORE.to_owned();
    for family in &families {
        let kind = match family.kind {
            MetricType::COUNTER => "counter",
            MetricType::HISTOGRAM => "histogram",
            _ => "gauge",
        };
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(text, "| `{}` | {kind} | {} | {} |", family.name, labels.join(", "), family.help)
            .unwrap();
    }
    if std::env::var_os("ESWITCHD_WRITE_DOCS").is_some() {
        fs::write(COMMITTED, &text).unwrap();
    }
    let committed = fs::read_to_string(COMMITTED).unwrap_or_default();
    assert!(
        committed == text,
        "docs/metrics.md is not what is measured: run \
         `ESWITCHD_WRITE_DOCS=1 cargo test -p eswitchd --test metrics` and commit it"
    );
    for reason in controller::metrics::DROP_REASONS {
        assert!(text.contains(&format!("| `{reason}` |")), "{reason} is not explained");
    }
}
