//! `eswitchctl describe`: everything about one resource, for people; and `bug-report`: everything
//! about everything, for those who look into it.
//!
//! In: what the daemon says. Out: a page, or a file. The daemon tells no secrets, so neither does
//! the report.

use std::{
    io::{self, Write},
    path::Path,
};

use serde::Serialize;
use serde_json::{Value, json};

use super::{CommandError, Exit, Kind, events, explain, snapshot, status, table, yaml};
use crate::{
    client::{Client, Told},
    events::Event,
    resources::{Condition, Resource},
    server::FlowFilter,
    types::Id,
};

/// The last events of a resource that are shown.
const EVENTS_SHOWN: usize = 10;

pub(super) async fn describe(
    client: &Client,
    kind: Kind,
    id: &Id,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let plural = match kind {
        Kind::Networks => {
            resource(out, client.network(id).await?)?;
            "networks"
        }
        Kind::Ports => {
            resource(out, client.port(id).await?)?;
            writeln!(out, "\nhow far it has come:")?;
            explain::links(out, &client.explain(id).await?)?;
            "ports"
        }
        Kind::Guests => {
            resource(out, client.guest(id).await?)?;
            "guests"
        }
        Kind::Adapters => {
            page(out, json!(client.adapter(id).await?))?;
            "adapters"
        }
        Kind::Flows => {
            let message = "flows have no id: use `get flows --port ID -o wide`";
            return Err(CommandError::Document(message.to_owned()));
        }
    };
    let about = format!("{plural}/{id}");
    let mut told = all_events(client).await?;
    told.retain(|event| event.news.resource == about);
    writeln!(out, "\nlast events:")?;
    for event in told.iter().skip(told.len().saturating_sub(EVENTS_SHOWN)) {
        writeln!(out, "  {}", events::line(event))?;
    }
    Ok(Exit::Done)
}

fn resource<Spec: Serialize, Status: Serialize>(
    out: &mut dyn Write,
    resource: Resource<Spec, Status>,
) -> io::Result<()> {
    let Resource { id, revision, spec, status } = resource;
    let mut value = json!({"id": id, "revision": revision, "spec": spec});
    if let (Value::Object(value), Value::Object(status)) = (&mut value, json!(status)) {
        value.extend(status);
    }
    page(out, value)
}

/// Fields, and behind them the conditions as a table.
fn page(out: &mut dyn Write, mut value: Value) -> io::Result<()> {
    let conditions = value.as_object_mut().and_then(|fields| fields.remove("conditions"));
    yaml::write(out, &value, 0)?;
    let conditions: Vec<Condition> =
        conditions.and_then(|list| serde_json::from_value(list).ok()).unwrap_or_default();
    writeln!(out, "\nconditions:")?;
    let rows = conditions.into_iter().map(|condition| {
        let status = status::word(condition.status).to_owned();
        let Condition { r#type, reason, message, last_transition, .. } = condition;
        [r#type, status, reason, last_transition, message]
    });
    table::write(out, "  ", ["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], rows)
}

/// All events that the daemon still knows.
async fn all_events(client: &Client) -> Result<Vec<Event>, CommandError> {
    let mut stream = client.events(Some("0"), false).await?;
    let mut all = Vec::new();
    while let Some(told) = stream.next().await? {
        if let Told::Event(event) = told {
            all.push(*event);
        }
    }
    Ok(all)
}

/// Writes all that the daemon tells to a file.
pub(super) async fn bug_report(
    client: &Client,
    file: &Path,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let flows = client.flows(&FlowFilter::default()).await?;
    let report = json!({
        "eswitchctl": env!("CARGO_PKG_VERSION"),
        "not_ready": client.not_ready().await?,
        "adapters": client.adapters().await?,
        "guests": client.guests().await?,
        "networks": client.networks().await?,
        "ports": client.ports().await?,
        "flows": flows,
        "snapshot": client.snapshot().await?,
        "events": all_events(client).await?,
        "metrics": client.metrics().await?.lines().collect::<Vec<_>>(),
    });
    let text = serde_json::to_string_pretty(&report)
        .map_err(|error| CommandError::Document(error.to_string()))?;
    snapshot::write_whole(file, &(text + "\n"))
        .map_err(|source| CommandError::Save { path: file.to_owned(), source })?;
    writeln!(out, "{} has what there is to see; it names guests and addresses", file.display())?;
    Ok(Exit::Done)
}
