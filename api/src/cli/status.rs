//! `eswitchctl status`: one screen for whoever is on call.
//!
//! In: everything the daemon says. Out: what there is, shortened to a screen, and each condition
//! that is not as it should be, with its reason.

use std::{collections::BTreeSet, io::Write};

use super::{
    CommandError, Exit,
    get::{ADAPTER_HEAD, GUEST_HEAD, PORT_HEAD, adapter_row, guest_row, port_row},
    table::{self, printable},
};
use crate::{
    client::Client,
    resources::{Adapter, AdminState, Condition, ConditionStatus, EswitchMode, Port},
    types::Id,
};

/// The most lines of each table, and of complaints.
const LINES_MAX: usize = 15;

pub(super) async fn status(client: &Client, out: &mut dyn Write) -> Result<Exit, CommandError> {
    let reasons = client.not_ready().await?;
    let adapters = client.adapters().await?;
    let guests = client.guests().await?;
    let networks = client.networks().await?;
    let ports = client.ports().await?;
    let software = software_adapters(&adapters);

    let readiness = if reasons.is_empty() { "ready" } else { "NOT READY" };
    writeln!(out, "eswitchd at {}: {readiness}", client.server())?;
    for reason in &reasons {
        writeln!(out, "  {}", printable(reason))?;
    }
    section(out, "adapters", ADAPTER_HEAD, adapters.iter().map(adapter_row))?;
    section(out, "guests", GUEST_HEAD, guests.iter().map(guest_row))?;
    section(out, "ports", PORT_HEAD, ports.iter().map(|port| port_row(port, &software)))?;

    let of = |what: String, conditions: Vec<&Condition>| {
        conditions.into_iter().map(|condition| complaint(&what, condition)).collect::<Vec<_>>()
    };
    let mut complaints = Vec::new();
    for adapter in &adapters {
        complaints.extend(of(format!("adapter/{}", adapter.id), adapter_complaints(adapter)));
    }
    for guest in &guests {
        let wrong = guest.status.conditions.iter().filter(|c| is_wrong(c)).collect();
        complaints.extend(of(format!("guest/{}", guest.id), wrong));
    }
    for network in &networks {
        let wrong = network.status.conditions.iter().filter(|c| is_wrong(c)).collect();
        complaints.extend(of(format!("network/{}", network.id), wrong));
    }
    for port in &ports {
        complaints.extend(of(format!("port/{}", port.id), port_complaints(port, &software)));
    }
    if !complaints.is_empty() {
        section(out, "degraded", ["WHAT", "CONDITION", "SINCE", "WHY"], complaints)?;
        return Ok(Exit::Degraded);
    }
    writeln!(out, "\nnothing is degraded")?;
    Ok(if reasons.is_empty() { Exit::Done } else { Exit::Degraded })
}

fn section<const N: usize>(
    out: &mut dyn Write,
    name: &str,
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), CommandError> {
    let mut rows: Vec<_> = rows.into_iter().collect();
    let more = rows.len().saturating_sub(LINES_MAX);
    writeln!(out, "\n{name}: {}", rows.len())?;
    rows.truncate(LINES_MAX);
    if !rows.is_empty() {
        table::write(out, "  ", head, rows)?;
    }
    if more > 0 {
        writeln!(out, "  … and {more} more")?;
    }
    Ok(())
}

fn complaint(what: &str, condition: &Condition) -> [String; 4] {
    [
        what.to_owned(),
        format!("{} {}", condition.r#type, word(condition.status)),
        condition.last_transition.clone(),
        format!("{}: {}", condition.reason, condition.message),
    ]
}

pub(super) fn word(status: ConditionStatus) -> &'static str {
    match status {
        ConditionStatus::True => "True",
        ConditionStatus::False => "False",
        ConditionStatus::Partial => "Partial",
        ConditionStatus::Unknown => "Unknown",
    }
}

/// Whether a condition is not as it should be. `Conflict` and `Quarantined` should not hold, all
/// others should.
fn is_wrong(condition: &Condition) -> bool {
    match condition.r#type.as_str() {
        "Conflict" | "Quarantined" => {
            matches!(condition.status, ConditionStatus::True | ConditionStatus::Partial)
        }
        _ => condition.status != ConditionStatus::True,
    }
}

fn is_about_offload(condition: &Condition) -> bool {
    condition.r#type == "Offloaded"
}

/// Adapters on which no flow is meant to be in hardware.
pub(super) fn software_adapters(adapters: &[Adapter]) -> BTreeSet<Id> {
    let software = adapters.iter().filter(|adapter| adapter.mode == Some(EswitchMode::Software));
    software.map(|adapter| adapter.id.clone()).collect()
}

fn port_complaints<'a>(port: &'a Port, software: &BTreeSet<Id>) -> Vec<&'a Condition> {
    let in_software = port.status.adapter.as_ref().is_some_and(|id| software.contains(id));
    let wrong = port.status.conditions.iter().filter(|c| is_wrong(c));
    wrong.filter(|c| !(in_software && is_about_offload(c))).collect()
}

fn adapter_complaints(adapter: &Adapter) -> Vec<&Condition> {
    let in_software = adapter.mode == Some(EswitchMode::Software);
    let wrong = adapter.conditions.iter().filter(|c| is_wrong(c));
    wrong.filter(|c| !(in_software && is_about_offload(c))).collect()
}

/// `ok`, or what is wrong, in a few words.
fn state_of(wrong: &[&Condition]) -> String {
    match wrong {
        [] => "ok".to_owned(),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" +{}", rest.len()) };
            format!("{} {} ({}){more}", first.r#type, word(first.status), first.reason)
        }
    }
}

pub(super) fn state(conditions: &[Condition]) -> String {
    state_of(&conditions.iter().filter(|c| is_wrong(c)).collect::<Vec<_>>())
}

pub(super) fn port_state(port: &Port, software: &BTreeSet<Id>) -> String {
    match port.spec.admin_state {
        AdminState::Down => "down".to_owned(),
        AdminState::Up => state_of(&port_complaints(port, software)),
    }
}

pub(super) fn adapter_state(adapter: &Adapter) -> String {
    state_of(&adapter_complaints(adapter))
}
