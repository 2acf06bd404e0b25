//! `eswitchctl get`: resources as tables or JSON.
//!
//! In: resources from the daemon. Out: one line each, or their JSON.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use serde::Serialize;

use super::{
    CommandError, Kind, Output, status,
    table::{self, or_dash},
    yaml,
};
use crate::{
    client::{Client, ClientError},
    resources::{
        Adapter, Attachment, EswitchMode, Flow, FlowCounts, FlowState, Guest, List, Netdev,
        Network, NetworkKind, Port, PortFunction, UnknownUnicast, VlanProto,
    },
    server::FlowFilter,
    types::Id,
};

pub(super) async fn get(
    client: &Client,
    kind: Kind,
    id: Option<&Id>,
    filter: &FlowFilter,
    output: Output,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    match (kind, id) {
        (Kind::Networks, None) => show(&client.networks().await?, output, out, networks),
        (Kind::Networks, Some(id)) => show_one(client.network(id).await?, output, out, networks),
        (Kind::Guests, None) => show(&client.guests().await?, output, out, guests),
        (Kind::Guests, Some(id)) => show_one(client.guest(id).await?, output, out, guests),
        (Kind::Adapters, None) => show(&client.adapters().await?, output, out, adapters),
        (Kind::Adapters, Some(id)) => show_one(client.adapter(id).await?, output, out, adapters),
        (Kind::Flows, _) => show(&client.flows(filter).await?, output, out, flows),
        (Kind::Ports, id) => {
            let software = match output {
                Output::Json | Output::Yaml => BTreeSet::new(),
                Output::Table | Output::Wide => software_adapters(client).await?,
            };
            let table = |out: &mut dyn Write, ports: &[Port], wide| {
                ports_table(out, ports, wide, &software)
            };
            match id {
                None => show(&client.ports().await?, output, out, table),
                Some(id) => show_one(client.port(id).await?, output, out, table),
            }
        }
    }?;
    Ok(())
}

/// Software adapters: there, no flow is meant to be in hardware.
async fn software_adapters(client: &Client) -> Result<BTreeSet<Id>, ClientError> {
    Ok(status::software_adapters(&client.adapters().await?))
}

fn show<T: Serialize>(
    items: &[T],
    output: Output,
    out: &mut dyn Write,
    table: impl Fn(&mut dyn Write, &[T], bool) -> io::Result<()>,
) -> io::Result<()> {
    match output {
        Output::Json => json(out, &List { items: items.iter().collect(), next: None }),
        Output::Yaml => {
            let list = List { items: items.iter().collect(), next: None };
            yaml::write(out, &serde_json::to_value(list)?, 0)
        }
        Output::Table => table(out, items, false),
        Output::Wide => table(out, items, true),
    }
}

fn show_one<T: Serialize>(
    item: T,
    output: Output,
    out: &mut dyn Write,
    table: impl Fn(&mut dyn Write, &[T], bool) -> io::Result<()>,
) -> io::Result<()> {
    match output {
        Output::Json => json(out, &item),
        Output::Yaml => yaml::write(out, &serde_json::to_value(item)?, 0),
        Output::Table => table(out, &[item], false),
        Output::Wide => table(out, &[item], true),
    }
}

pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

// ---------------------------------------------------------------- tables

fn networks(out: &mut dyn Write, networks: &[Network], wide: bool) -> io::Result<()> {
    let narrow = |network: &Network| {
        [
            network.id.to_string(),
            network_kind(network.spec.kind),
            network.spec.adapter.as_ref().map_or("any".to_owned(), Id::to_string),
            network.status.ports.len().to_string(),
            status::state(&network.status.conditions),
        ]
    };
    if !wide {
        let head = ["ID", "KIND", "ADAPTER", "PORTS", "STATE"];
        return table::write(out, "", head, networks.iter().map(narrow));
    }
    let head =
        ["ID", "KIND", "ADAPTER", "PORTS", "UNKNOWN UNICAST", "RESERVED", "REVISION", "STATE"];
    let rows = networks.iter().map(|network| {
        let [id, kind, adapter, ports, state] = narrow(network);
        let unknown = match network.spec.unknown_unicast {
            UnknownUnicast::Uplink => "uplink",
            UnknownUnicast::Drop => "drop",
        };
        let reserved = or_dash(Some(joined(&network.spec.reserved_macs)));
        let revision = network.revision.to_string();
        [id, kind, adapter, ports, unknown.to_owned(), reserved, revision, state]
    });
    table::write(out, "", head, rows)
}

/// A row of the table of ports: id, function, networks, addresses, flows, flows in hardware, state.
pub(super) fn port_row(port: &Port, software: &BTreeSet<Id>) -> [String; 7] {
    [
        port.id.to_string(),
        function(&port.spec.function),
        or_dash(Some(port.spec.attachments.iter().map(attachment).collect::<Vec<_>>().join(","))),
        or_dash(Some(joined(&port.status.macs))),
        flow_total(&port.status.flows).to_string(),
        port.status.flows.in_hw.to_string(),
        status::port_state(port, software),
    ]
}

pub(super) const PORT_HEAD: [&str; 7] =
    ["ID", "FUNCTION", "NETWORKS", "MACS", "FLOWS", "IN HW", "STATE"];

fn ports_table(
    out: &mut dyn Write,
    ports: &[Port],
    wide: bool,
    software: &BTreeSet<Id>,
) -> io::Result<()> {
    if !wide {
        let rows = ports.iter().map(|port| port_row(port, software));
        return table::write(out, "", PORT_HEAD, rows);
    }
    let head = [
        "ID",
        "FUNCTION",
        "NETWORKS",
        "MACS",
        "FLOWS",
        "IN HW",
        "ADAPTER",
        "VF",
        "REPRESENTOR",
        "EVENT TO FLOW",
        "REVISION",
        "STATE",
    ];
    let rows = ports.iter().map(|port| {
        let [id, function, networks, macs, flows, in_hw, state] = port_row(port, software);
        let status = &port.status;
        let delay = status.event_to_programmed_us.map(milliseconds);
        [
            id,
            function,
            networks,
            macs,
            flows,
            in_hw,
            or_dash(status.adapter.as_ref()),
            or_dash(status.vf),
            or_dash(status.representor.as_ref().map(netdev)),
            or_dash(delay),
            port.revision.to_string(),
            state,
        ]
    });
    table::write(out, "", head, rows)
}

/// A row of the table of guests: id, run state, QEMU, functions in use, state.
pub(super) fn guest_row(guest: &Guest) -> [String; 5] {
    let functions = &guest.status.functions;
    let enabled = functions.iter().filter(|function| function.enabled).count();
    [
        guest.id.to_string(),
        or_dash(guest.status.run_state.as_ref()),
        or_dash(guest.status.qemu.as_ref()),
        format!("{enabled}/{}", functions.len()),
        status::state(&guest.status.conditions),
    ]
}

pub(super) const GUEST_HEAD: [&str; 5] = ["ID", "RUN STATE", "QEMU", "ENABLED", "STATE"];

fn guests(out: &mut dyn Write, guests: &[Guest], wide: bool) -> io::Result<()> {
    if !wide {
        return table::write(out, "", GUEST_HEAD, guests.iter().map(guest_row));
    }
    let head = ["ID", "RUN STATE", "QEMU", "ENABLED", "PID", "QMP", "REVISION", "STATE"];
    let rows = guests.iter().map(|guest| {
        let [id, run_state, qemu, functions, state] = guest_row(guest);
        let pid = or_dash(guest.status.pid);
        let qmp = or_dash(guest.spec.qmp.as_ref());
        [id, run_state, qemu, functions, pid, qmp, guest.revision.to_string(), state]
    });
    table::write(out, "", head, rows)
}

/// A row of the table of adapters: id, mode, uplink, VFs, flows, flows in hardware, state.
pub(super) fn adapter_row(adapter: &Adapter) -> [String; 7] {
    [
        adapter.id.to_string(),
        or_dash(adapter.mode.map(|mode| match mode {
            EswitchMode::Legacy => "legacy",
            EswitchMode::Switchdev => "switchdev",
            EswitchMode::Software => "software",
        })),
        or_dash(adapter.uplink.as_ref().map(|uplink| uplink.name.clone())),
        adapter.vfs.len().to_string(),
        flow_total(&adapter.flows).to_string(),
        adapter.flows.in_hw.to_string(),
        status::adapter_state(adapter),
    ]
}

pub(super) const ADAPTER_HEAD: [&str; 7] =
    ["ID", "MODE", "UPLINK", "VFS", "FLOWS", "IN HW", "STATE"];

fn adapters(out: &mut dyn Write, adapters: &[Adapter], wide: bool) -> io::Result<()> {
    if !wide {
        return table::write(out, "", ADAPTER_HEAD, adapters.iter().map(adapter_row));
    }
    let head = [
        "ID",
        "MODE",
        "UPLINK",
        "VFS",
        "FLOWS",
        "IN HW",
        "HANDLE",
        "DRIVER",
        "SWITCH ID",
        "FOREIGN FILTERS",
        "STATE",
    ];
    let rows = adapters.iter().map(|adapter| {
        let [id, mode, uplink, vfs, flows, in_hw, state] = adapter_row(adapter);
        let handle = adapter.handle.clone();
        let driver = or_dash(adapter.driver.as_ref());
        let switch_id = or_dash(adapter.switch_id.as_ref());
        let foreign = adapter.foreign_filters.to_string();
        [id, mode, uplink, vfs, flows, in_hw, handle, driver, switch_id, foreign, state]
    });
    table::write(out, "", head, rows)
}

fn flows(out: &mut dyn Write, flows: &[Flow], wide: bool) -> io::Result<()> {
    let narrow = |flow: &Flow| {
        let state = match flow.state {
            FlowState::InHw => "in hw",
            FlowState::NotInHw => "not in hw",
            FlowState::Refused => "refused",
            FlowState::Pending => "pending",
        };
        [
            flow.netdev.clone(),
            state.to_owned(),
            or_dash(flow.port.as_ref()),
            or_dash(flow.network.as_ref()),
            flow.purpose.clone(),
        ]
    };
    if !wide {
        let head = ["NETDEV", "STATE", "PORT", "NETWORK", "PURPOSE"];
        return table::write(out, "", head, flows.iter().map(narrow));
    }
    let head = ["ADAPTER", "NETDEV", "STATE", "PORT", "NETWORK", "PURPOSE", "REASON", "TC"];
    let rows = flows.iter().map(|flow| {
        let [netdev, state, port, network, purpose] = narrow(flow);
        let reason = or_dash(flow.reason.as_ref());
        [flow.adapter.to_string(), netdev, state, port, network, purpose, reason, flow.tc.clone()]
    });
    table::write(out, "", head, rows)
}

// ---------------------------------------------------------------- cells

fn network_kind(kind: NetworkKind) -> String {
    match kind {
        NetworkKind::Flat => "flat".to_owned(),
        NetworkKind::Isolated => "isolated".to_owned(),
        NetworkKind::Vlan(tag) => match tag.proto {
            VlanProto::Dot1Q => format!("vlan {}", tag.vid),
            VlanProto::Dot1Ad => format!("vlan {} 802.1ad", tag.vid),
        },
    }
}

fn function(function: &PortFunction) -> String {
    match function {
        PortFunction::GuestVf { guest, device } => format!("{guest}/{device}"),
        PortFunction::Vf { adapter, index } => format!("{adapter}/{index}"),
        PortFunction::Netdev { adapter, name } => format!("{adapter}/{name}"),
    }
}

fn attachment(attachment: &Attachment) -> String {
    match attachment.tag {
        None if attachment.qinq => format!("{}+qinq", attachment.network),
        None => attachment.network.to_string(),
        Some(tag) => format!("{}@{tag}", attachment.network),
    }
}

fn netdev(netdev: &Netdev) -> String {
    format!("{}#{}", netdev.name, netdev.ifindex)
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03} ms", microseconds / 1000, microseconds % 1000)
}

fn flow_total(flows: &FlowCounts) -> u64 {
    let FlowCounts { in_hw, not_in_hw, refused, pending } = flows;
    [in_hw, not_in_hw, refused, pending].into_iter().fold(0, |sum, n| sum.saturating_add(*n))
}

fn joined(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
