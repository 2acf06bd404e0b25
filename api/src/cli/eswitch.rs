//! `eswitchctl eswitch`: mode and number of VFs of an adapter.
//!
//! In: what is wanted. Out: how it is and would be, the steps, and who loses what.

use std::io::{self, Write};

use super::{CommandError, Exit, table::printable};
use crate::{
    client::Client,
    resources::{EswitchChange, EswitchSpec, PortLoss},
    server::EswitchHow,
    types::Id,
};

pub(super) async fn eswitch(
    client: &Client,
    adapter: &Id,
    spec: EswitchSpec,
    how: EswitchHow,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let change = client.put_eswitch(adapter, spec, how).await?;
    write(out, adapter, &change, how.dry_run)?;
    // What a dry run says would be refused is refused.
    Ok(if change.refused.is_some() { Exit::Refused } else { Exit::Done })
}

fn write(
    out: &mut dyn Write,
    adapter: &Id,
    change: &EswitchChange,
    dry_run: bool,
) -> io::Result<()> {
    let EswitchChange { now, then, steps, ports, in_use, refused, started } = change;
    match now == then {
        true => writeln!(out, "adapters/{adapter}: {now}, as asked for")?,
        false => writeln!(out, "adapters/{adapter}: {now} -> {then}")?,
    }
    for step in steps {
        writeln!(out, "  step: {}", printable(step))?;
    }
    for user in in_use {
        writeln!(out, "  in use: {}", printable(user))?;
    }
    for PortLoss { port, loses } in ports {
        writeln!(out, "  port {port} would lose: {}", printable(&loses.join("; ")))?;
    }
    match (refused, dry_run, started) {
        (Some(why), ..) => writeln!(out, "would be refused: {}", printable(why)),
        (None, true, _) => writeln!(out, "nothing was changed"),
        (None, false, true) => {
            writeln!(out, "begun; `eswitchctl describe adapter {adapter}` says how it goes on")
        }
        (None, false, false) => writeln!(out, "there was nothing to do"),
    }
}
