//! `eswitchctl explain port`: how far a port has come, a line for each link.
//!
//! In: an explanation. Out: its links; the first that is broken is marked.

use std::io::{self, Write};

use super::{CommandError, Exit, get, table::printable};
use crate::{
    client::Client,
    explain::{Explanation, Link, LinkState},
    types::Id,
};

pub(super) async fn explain(
    client: &Client,
    port: &Id,
    json: bool,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let explanation = client.explain(port).await?;
    match json {
        true => get::json(out, &explanation)?,
        false => write(out, &explanation)?,
    }
    Ok(if explanation.broken.is_some() { Exit::Degraded } else { Exit::Done })
}

fn write(out: &mut dyn Write, explanation: &Explanation) -> io::Result<()> {
    writeln!(out, "port {}", explanation.port)?;
    links(out, explanation)
}

/// A line for each link.
pub(super) fn links(out: &mut dyn Write, explanation: &Explanation) -> io::Result<()> {
    for Link { link, state, message, remedy } in &explanation.links {
        let is_first_broken = explanation.broken == Some(*link);
        let mark = if is_first_broken { "=>" } else { "  " };
        let state = match state {
            LinkState::Holds => "ok",
            LinkState::Partly => "partly",
            LinkState::Broken => "BROKEN",
            LinkState::Waiting => "waits",
            LinkState::Absent => "-",
        };
        writeln!(out, "{mark} {:<12} {state:<7} {}", link.as_str(), printable(message))?;
        if let Some(remedy) = remedy {
            writeln!(out, "{:>23} what to do: {}", "", printable(remedy))?;
        }
    }
    Ok(())
}
