//! `eswitchctl events`: what happens, line by line.
//!
//! In: the daemon's stream of events. Out: one line each, or one JSON object each.

use std::io::Write;

use super::{CommandError, Exit, table::printable};
use crate::{
    client::{Client, Told},
    events::{Event, News},
};

/// Which events, and how they are shown.
#[derive(Debug)]
pub(super) struct Wish {
    /// Behind this one; with `follow` from now on, else from the oldest that is known.
    pub(super) since: Option<String>,
    /// Until interrupted.
    pub(super) follow: bool,
    pub(super) json: bool,
}

pub(super) async fn events(
    client: &Client,
    wish: Wish,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let since = wish.since.or_else(|| (!wish.follow).then(|| "0".to_owned()));
    let mut stream = client.events(since.as_deref(), wish.follow).await?;
    while let Some(told) = stream.next().await? {
        match told {
            Told::Event(event) if wish.json => {
                let text = serde_json::to_string(&*event).unwrap_or_default();
                writeln!(out, "{text}")?;
            }
            Told::Event(event) => writeln!(out, "{}", line(&event))?,
            Told::Notice { name, .. } if name == "start" => {}
            Told::Notice { name, message } => {
                writeln!(err, "eswitchctl: {}: {}", printable(&name), printable(&message))?;
            }
        }
        out.flush()?;
    }
    Ok(Exit::Done)
}

pub(super) fn line(event: &Event) -> String {
    let Event { at, news, .. } = event;
    let kind = news.kind.as_str();
    let News { resource, reason, message, .. } = news;
    printable(&format!("{at} {kind:9} {resource} {reason}: {message}")).into_owned()
}
