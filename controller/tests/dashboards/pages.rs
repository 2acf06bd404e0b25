//! The dashboards: what is asked for, and how it is shown.

use crate::panels::{
    Page, Panel,
    Show::{Heat, Lines, Name, Rows, Stat, States},
    Variable, heading, panel,
};

const HOST: Variable = Variable {
    name: "instance",
    label: "Host",
    query: "label_values(eswitchd_build_info, instance)",
    all: false,
};

/// What a state timeline shows of conditions: red at no, orange in part, green at yes.
fn conditions(title: &'static str, description: &'static str) -> Panel {
    panel(States, title, "short", description)
        .from(-1.0, "red")
        .from(0.5, "orange")
        .from(1.0, "green")
}

/// All of them.
pub(crate) fn pages() -> [Page; 4] {
    [fleet(), host(), port(), guests()]
}

fn fleet() -> Page {
    Page {
        name: "fleet",
        title: "fleet",
        description: "All hosts: which of them need somebody, how much is switched in hardware, and \
                      the ports that lose most.",
        variables: vec![Variable { all: true, ..HOST }],
        matcher: "instance=~\"$instance\"",
        panels: vec![
            panel(Stat, "Hosts that answer", "none", "Daemons that answered their last scrape.")
                .asks(r#"sum(up{job="eswitchd", instance=~"$instance"})"#, "up"),
            panel(Stat, "Hosts that do not", "none", "Daemons that did not answer. Flows stay as they are; changes are not followed.")
                .asks(r#"count(up{job="eswitchd", instance=~"$instance"}) - sum(up{job="eswitchd", instance=~"$instance"})"#, "down")
                .from(1.0, "red"),
            panel(Stat, "Not converged", "none", "Daemons that have not brought every adapter to its program yet.")
                .asks(r#"sum(1 - eswitchd_ready{instance=~"$instance"})"#, "not ready")
                .from(1.0, "red"),
            panel(Stat, "Guests heard", "none", "Guests with a working QMP connection.")
                .asks(r#"sum(eswitchd_guests_connected{instance=~"$instance"})"#, "connected"),
            panel(Stat, "Ports", "none", "Ports that clients have declared.")
                .asks(r#"count(eswitchd_port_info{instance=~"$instance"})"#, "ports"),
            panel(Stat, "Ports not programmed", "none", "Bound ports with an address whose program is not complete.")
                .asks(r#"sum(eswitchd_port_condition{instance=~"$instance", condition="Programmed", reason!~"NotBound|NoAddress"} < bool 1)"#, "ports")
                .from(1.0, "red"),
            heading("Health"),
            conditions("Converged", "Green while a daemon does its work; a gap where it did not answer.")
                .asks(r#"eswitchd_ready{instance=~"$instance"}"#, "{{instance}}")
                .leads_to("host", "var-instance=${__field.labels.instance}"),
            panel(Lines, "Errors", "short", "Errors in five minutes by host; the log has the words.")
                .asks(r#"sum by (instance) (increase(eswitchd_errors_total{instance=~"$instance"}[5m]))"#, "{{instance}}")
                .leads_to("host", "var-instance=${__field.labels.instance}"),
            panel(Lines, "Repaired drift", "short", "What somebody else changed and the daemon put back, in five minutes.")
                .asks(r#"sum by (instance) (increase(eswitchd_drift_repaired_total{instance=~"$instance"}[5m]))"#, "{{instance}}")
                .leads_to("host", "var-instance=${__field.labels.instance}"),
            panel(Lines, "Event to programmed, p99", "s", "How long the slowest hundredth of guests' events took until the kernel acknowledged their flows.")
                .asks(r#"histogram_quantile(0.99, sum by (instance, le) (rate(eswitchd_event_to_programmed_seconds_bucket{instance=~"$instance"}[$__rate_interval])))"#, "{{instance}}")
                .leads_to("host", "var-instance=${__field.labels.instance}"),
            heading("Offload"),
            panel(Lines, "Share of frames switched in hardware", "percentunit", "Of the frames that came in at hooks, those that met their first flow in hardware. Software adapters have none.")
                .asks(r#"sum by (instance) (rate(eswitchd_adapter_frames_total{instance=~"$instance", by="hardware"}[$__rate_interval])) / sum by (instance) (rate(eswitchd_adapter_frames_total{instance=~"$instance"}[$__rate_interval]))"#, "{{instance}}")
                .leads_to("host", "var-instance=${__field.labels.instance}"),
            panel(Lines, "Flow tables", "percentunit", "Flows in hardware against the room that it has, where that is known.")
                .asks(r#"sum by (instance, adapter) (eswitchd_flows{instance=~"$instance", state="in_hw"}) / on (instance, adapter) eswitchd_table_size{instance=~"$instance"}"#, "{{instance}} {{adapter}}")
                .from(0.9, "red")
                .leads_to("host", "var-instance=${__field.labels.instance}"),
            heading("Worst ports"),
            panel(Lines, "Ports that lose most frames", "pps", "The ten ports whose function sends most that is dropped.")
                .asks(r#"topk(10, sum by (instance, port) (rate(eswitchd_port_dropped_packets_total{instance=~"$instance"}[$__rate_interval])))"#, "{{instance}} {{port}}")
                .leads_to("port", "var-instance=${__field.labels.instance}&var-port=${__field.labels.port}"),
            panel(Rows, "Ports not offloaded", "short", "Ports in switchdev mode of which not all flows are in hardware, with the reason.")
                .asks(r#"eswitchd_port_condition{instance=~"$instance", condition="Offloaded", reason!~"SoftwareAdapter|NotBound"} < 1"#, ""),
        ],
    }
}

fn host() -> Page {
    Page {
        name: "host",
        title: "host",
        description: "One host: its adapters and flows, how fast it follows, and what goes wrong.",
        variables: vec![
            HOST,
            Variable {
                name: "adapter",
                label: "Adapter",
                query: r#"label_values(eswitchd_flows{instance="$instance"}, adapter)"#,
                all: true,
            },
        ],
        matcher: "instance=\"$instance\"",
        panels: vec![
            panel(Stat, "Converged", "bool_yes_no", "Whether every adapter is at its program.")
                .asks(r#"eswitchd_ready{instance="$instance"}"#, "ready"),
            panel(Name, "Build", "none", "Version of the eswitchd that answers.")
                .asks(r#"eswitchd_build_info{instance="$instance"}"#, "{{version}}"),
            panel(Stat, "Guests", "none", "Guests with a working QMP connection, and all that are known.")
                .asks(r#"eswitchd_guests_connected{instance="$instance"}"#, "connected")
                .asks(r#"eswitchd_guests{instance="$instance"}"#, "known")
                .leads_to("guests", "var-instance=$instance"),
            panel(Stat, "Functions enabled", "none", "Emulated PFs and VFs that guests have enabled.")
                .asks(r#"eswitchd_guest_functions_enabled{instance="$instance"}"#, "enabled")
                .leads_to("guests", "var-instance=$instance"),
            panel(Stat, "MACs refused now", "none", "Addresses that guests ask for at the moment and do not get.")
                .asks(r#"eswitchd_refused_macs{instance="$instance"}"#, "refused")
                .from(1.0, "orange"),
            panel(Stat, "On its way for", "s", "How long something has been on its way into the kernel without a break.")
                .asks(r#"eswitchd_unconverged_seconds{instance="$instance"}"#, "unconverged")
                .from(10.0, "orange").from(60.0, "red"),
            heading("Adapters"),
            panel(Rows, "Adapters", "short", "Driver and mode of each adapter, and the profile of what its hardware takes.")
                .asks(r#"eswitchd_adapter_info{instance="$instance", adapter=~"$adapter"}"#, ""),
            conditions("Conditions", "Conditions of the adapters over time; the reason is in the legend.")
                .asks(r#"eswitchd_adapter_condition{instance="$instance", adapter=~"$adapter"}"#, "{{adapter}} {{condition}} {{reason}}"),
            panel(Lines, "Flows by state", "short", "Refused flows are frames that are dropped as a rule; not_in_hw are slow on a NIC.")
                .asks(r#"sum by (adapter, state) (eswitchd_flows{instance="$instance", adapter=~"$adapter"})"#, "{{adapter}} {{state}}"),
            panel(Lines, "Where frames are switched", "pps", "Frames by where they met their first flow. Software, on a NIC, is where offload is missing.")
                .asks(r#"sum by (adapter, by) (rate(eswitchd_adapter_frames_total{instance="$instance", adapter=~"$adapter"}[$__rate_interval]))"#, "{{adapter}} {{by}}"),
            panel(Lines, "Met flows", "pps", "Each flow that a frame meets counts: how many flows a frame takes is this over the panel before.")
                .asks(r#"sum by (adapter, by) (rate(eswitchd_flow_hits_total{instance="$instance", adapter=~"$adapter"}[$__rate_interval]))"#, "{{adapter}} {{by}}"),
            panel(Lines, "Room in the flow table", "percentunit", "Flows in hardware against the room that it has, where that is known (hardware_flows, or a refusal).")
                .asks(r#"sum by (adapter) (eswitchd_flows{instance="$instance", adapter=~"$adapter", state="in_hw"}) / on (adapter) eswitchd_table_size{instance="$instance", adapter=~"$adapter"}"#, "{{adapter}}")
                .from(0.9, "red"),
            panel(Lines, "Use of ceilings", "percentunit", "The most actions, the highest chain and prio of the daemon's flows, against what the adapter takes.")
                .asks(r#"sum by (adapter, of) (eswitchd_adapter_highest{instance="$instance", adapter=~"$adapter", of!=""}) / on (adapter, of) eswitchd_adapter_ceiling{instance="$instance", adapter=~"$adapter", of!=""}"#, "{{adapter}} {{of}}"),
            panel(Lines, "Others at our hooks", "short", "Filters of other owners; hooks over which somebody fights; VFs without representor.")
                .asks(r#"sum by (adapter) (eswitchd_foreign_filters{instance="$instance", adapter=~"$adapter"})"#, "{{adapter}} foreign filters")
                .asks(r#"sum by (adapter) (eswitchd_drift_fights{instance="$instance", adapter=~"$adapter"})"#, "{{adapter}} fights")
                .asks(r#"sum by (adapter) (eswitchd_representors_missing{instance="$instance", adapter=~"$adapter"})"#, "{{adapter}} representors missing"),
            panel(Lines, "Repaired drift", "short", "What somebody else changed and the daemon put back, in five minutes, by kind.")
                .asks(r#"sum by (adapter, kind) (increase(eswitchd_drift_repaired_total{instance="$instance", adapter=~"$adapter"}[5m]))"#, "{{adapter}} {{kind}}"),
            heading("How fast it follows"),
            panel(Heat, "Event to programmed", "s", "From a guest's event read off its QMP socket to its flows acknowledged by the kernel.")
                .asks(r#"sum by (le) (increase(eswitchd_event_to_programmed_seconds_bucket{instance="$instance"}[$__rate_interval]))"#, "{{le}}"),
            panel(Heat, "Plug to programmed", "s", "From a VF seen to be enabled to all flows of its port acknowledged: the guest's driver takes part of it.")
                .asks(r#"sum by (le) (increase(eswitchd_plug_to_programmed_seconds_bucket{instance="$instance"}[$__rate_interval]))"#, "{{le}}"),
            panel(Lines, "Parts of it, p99", "s", "Event to programmed, the daemon's own planning (reconcile), and a transaction of its store.")
                .asks(r#"histogram_quantile(0.99, sum by (le) (rate(eswitchd_event_to_programmed_seconds_bucket{instance="$instance"}[$__rate_interval])))"#, "event to programmed")
                .asks(r#"histogram_quantile(0.99, sum by (le) (rate(eswitchd_reconcile_seconds_bucket{instance="$instance"}[$__rate_interval])))"#, "reconcile")
                .asks(r#"histogram_quantile(0.99, sum by (le) (rate(eswitchd_store_commit_seconds_bucket{instance="$instance"}[$__rate_interval])))"#, "store"),
            panel(Lines, "Queues", "short", "Messages that waited when the loop looked; the API is slow while calls wait.")
                .asks(r#"eswitchd_queue_depth{instance="$instance"}"#, "{{queue}}"),
            heading("Kernel and errors"),
            panel(Lines, "Kernel operations", "ops", "Changes that the kernel was asked for, by kind and result.")
                .asks(r#"sum by (operation, result) (rate(eswitchd_kernel_operations_total{instance="$instance"}[$__rate_interval]))"#, "{{operation}} {{result}}"),
            panel(Lines, "Refusals by error", "short", "What the kernel refused in five minutes: ENOSPC is a full table, EOPNOTSUPP a rule that the driver cannot do.")
                .asks(r#"sum by (operation, errno) (increase(eswitchd_kernel_refusals_total{instance="$instance"}[5m]))"#, "{{operation}} {{errno}}"),
            panel(Lines, "Errors", "short", "Errors in five minutes by part of the daemon; lost notifications among them.")
                .asks(r#"sum by (component) (increase(eswitchd_errors_total{instance="$instance"}[5m]))"#, "{{component}}")
                .asks(r#"increase(eswitchd_netlink_overruns_total{instance="$instance"}[5m])"#, "netlink overruns"),
            panel(Lines, "API requests", "reqps", "Answered requests by method and status.")
                .asks(r#"sum by (method, status) (rate(eswitchd_api_requests_total{instance="$instance"}[$__rate_interval]))"#, "{{method}} {{status}}"),
            heading("Ports"),
            panel(Lines, "Busiest ports, sent", "bps", "The ten ports whose functions send most.")
                .asks(r#"topk(10, 8 * rate(eswitchd_port_sent_bytes_total{instance="$instance"}[$__rate_interval]))"#, "{{port}}")
                .leads_to("port", "var-instance=$instance&var-port=${__field.labels.port}"),
            panel(Lines, "Busiest ports, received", "bps", "The ten ports whose functions receive most.")
                .asks(r#"topk(10, 8 * rate(eswitchd_port_received_bytes_total{instance="$instance"}[$__rate_interval]))"#, "{{port}}")
                .leads_to("port", "var-instance=$instance&var-port=${__field.labels.port}"),
            panel(Lines, "Dropped frames by reason", "pps", "Frames that ports sent and their flows dropped; docs/metrics.md says what each reason means.")
                .asks(r#"sum by (reason) (rate(eswitchd_port_dropped_packets_total{instance="$instance"}[$__rate_interval]))"#, "{{reason}}"),
            panel(Lines, "Ports that lose most", "pps", "The ten ports of whose frames most are dropped.")
                .asks(r#"topk(10, sum by (port) (rate(eswitchd_port_dropped_packets_total{instance="$instance"}[$__rate_interval])))"#, "{{port}}")
                .leads_to("port", "var-instance=$instance&var-port=${__field.labels.port}"),
            heading("Process"),
            panel(Lines, "Processor", "percentunit", "Of one core.")
                .asks(r#"rate(process_cpu_seconds_total{job="eswitchd", instance="$instance"}[$__rate_interval])"#, "eswitchd")
                .wide(8),
            panel(Lines, "Memory", "bytes", "Resident memory: about 1 kB a flow, beside 10 MB.")
                .asks(r#"process_resident_memory_bytes{job="eswitchd", instance="$instance"}"#, "resident")
                .wide(8),
            panel(Lines, "Descriptors", "short", "Open file descriptors against the limit; each guest needs two.")
                .asks(r#"process_open_fds{job="eswitchd", instance="$instance"}"#, "open")
                .asks(r#"process_max_fds{job="eswitchd", instance="$instance"}"#, "limit")
                .wide(8),
        ],
    }
}

fn port() -> Page {
    Page {
        name: "port",
        title: "port",
        description: "One port, the VF of a guest: where it stands, what it sends and receives, what \
                      is dropped of it and why, and why it is not offloaded.",
        variables: vec![
            HOST,
            Variable {
                name: "port",
                label: "Port",
                query: r#"label_values(eswitchd_port_info{instance="$instance"}, port)"#,
                all: false,
            },
        ],
        matcher: "instance=\"$instance\"",
        panels: vec![
            panel(Rows, "Where it stands", "short", "Guest and device, adapter and representor of the port.")
                .asks(r#"eswitchd_port_info{instance="$instance", port="$port"}"#, "")
                .wide(16),
            panel(Name, "Offloaded", "none", "Why its flows are, or are not, all in hardware; `eswitchctl explain` says more.")
                .asks(r#"eswitchd_port_condition{instance="$instance", port="$port", condition="Offloaded"}"#, "{{reason}}"),
            panel(Stat, "Rate limit", "Bps", "What the port may send at most and at least, where that is said.")
                .asks(r#"eswitchd_port_rate_limit_bytes_per_second{instance="$instance", port="$port"}"#, "{{limit}}"),
            conditions("Conditions", "Conditions over time with their reasons. Conflict and Quarantined are well when they are not so.")
                .asks(r#"eswitchd_port_condition{instance="$instance", port="$port", condition!~"Conflict|Quarantined"}"#, "{{condition}} {{reason}}")
                .asks(r#"1 - eswitchd_port_condition{instance="$instance", port="$port", condition=~"Conflict|Quarantined"}"#, "no {{condition}} {{reason}}")
                .wide(24),
            heading("Traffic"),
            panel(Lines, "Bits", "bps", "What the guest's VF sends and receives, dropped frames among what it sends.")
                .asks(r#"8 * rate(eswitchd_port_sent_bytes_total{instance="$instance", port="$port"}[$__rate_interval])"#, "sent")
                .asks(r#"8 * rate(eswitchd_port_received_bytes_total{instance="$instance", port="$port"}[$__rate_interval])"#, "received"),
            panel(Lines, "Frames", "pps", "The same in frames.")
                .asks(r#"rate(eswitchd_port_sent_packets_total{instance="$instance", port="$port"}[$__rate_interval])"#, "sent")
                .asks(r#"rate(eswitchd_port_received_packets_total{instance="$instance", port="$port"}[$__rate_interval])"#, "received"),
            panel(Lines, "Where its frames are switched", "pps", "Frames that it sends by where they met their first flow: software, on a NIC, is slow.")
                .asks(r#"rate(eswitchd_port_frames_total{instance="$instance", port="$port"}[$__rate_interval])"#, "{{by}}"),
            panel(Lines, "Switched by the host's CPU", "pps", "Frames from and to it that the host's CPU had to carry, as the NIC's driver counts them; where the driver does not tell, those it sent that met their first flow in software.")
                .asks(r#"sum by (instance) (rate(eswitchd_port_software_packets_total{instance="$instance", port="$port"}[$__rate_interval])) or sum by (instance) (rate(eswitchd_port_frames_total{instance="$instance", port="$port", by="software"}[$__rate_interval]))"#, "by the CPU"),
            panel(Lines, "Dropped by reason", "pps", "docs/metrics.md says what each reason means.")
                .asks(r#"rate(eswitchd_port_dropped_packets_total{instance="$instance", port="$port"}[$__rate_interval])"#, "{{reason}}"),
            panel(Lines, "Dropped bits by reason", "bps", "The same in bits; of policers (rate, storm) not known.")
                .asks(r#"8 * rate(eswitchd_port_dropped_bytes_total{instance="$instance", port="$port"}[$__rate_interval])"#, "{{reason}}"),
            panel(Lines, "Flood limit", "pps", "Broadcast and multicast frames that it may send at most, where that is said.")
                .asks(r#"eswitchd_port_flood_limit_packets_per_second{instance="$instance", port="$port"}"#, "limit"),
        ],
    }
}

fn guests() -> Page {
    Page {
        name: "guests",
        title: "guests",
        description: "Guests: what comes and goes, what they ask for, and what is refused.",
        variables: vec![
            HOST,
            Variable {
                name: "guest",
                label: "Guest",
                query: r#"label_values(eswitchd_guest_condition{instance="$instance"}, guest)"#,
                all: true,
            },
        ],
        matcher: "instance=\"$instance\"",
        panels: vec![
            conditions("Connected", "Whether QMP answers, with the reason. Gone: QEMU has ended. Interrupted: the socket does not answer.")
                .asks(r#"eswitchd_guest_condition{instance="$instance", guest=~"$guest"}"#, "{{guest}} {{reason}}"),
            panel(Rows, "Their ports", "short", "Where the ports of these guests stand.")
                .asks(r#"eswitchd_port_info{instance="$instance", guest=~"$guest", guest!=""}"#, "")
                .leads_to("port", "var-instance=$instance&var-port=${__data.fields.port}"),
            panel(Lines, "VFs by state", "short", "unbacked: on something that is not known or not believed. portless: nothing lets it send.")
                .asks(r#"sum by (state) (eswitchd_guest_vfs{instance="$instance", guest=~"$guest"})"#, "{{state}}"),
            panel(Lines, "Events", "short", "QMP events in five minutes by kind: one kind without end is a guest that changes something in a loop.")
                .asks(r#"sum by (kind) (increase(eswitchd_guest_events_total{instance="$instance", guest=~"$guest"}[5m]))"#, "{{kind}}"),
            panel(Lines, "Refused requests", "short", "Addresses and promiscuous mode that were asked for and not given, in five minutes.")
                .asks(r#"sum by (guest, request) (increase(eswitchd_guest_refused_requests_total{instance="$instance", guest=~"$guest"}[5m]))"#, "{{guest}} {{request}}")
                .from(5.0, "red"),
            panel(Lines, "Beyond their budgets", "short", "Events answered late, and connections given up, in five minutes.")
                .asks(r#"sum by (guest, budget) (increase(eswitchd_guest_overruns_total{instance="$instance", guest=~"$guest"}[5m]))"#, "{{guest}} {{budget}}"),
            panel(Heat, "Plug to programmed", "s", "From a VF seen to be enabled to all flows of its port acknowledged; of all guests of the host.")
                .asks(r#"sum by (le) (increase(eswitchd_plug_to_programmed_seconds_bucket{instance="$instance"}[$__rate_interval]))"#, "{{le}}"),
            panel(Lines, "Connected and known", "short", "All guests of the host.")
                .asks(r#"eswitchd_guests_connected{instance="$instance"}"#, "connected")
                .asks(r#"eswitchd_guests{instance="$instance"}"#, "known"),
        ],
    }
}
