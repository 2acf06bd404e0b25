//! What `--dry-run` prints.
//!
//! In: what changes would come to. Out: a line each: resources, counts, flows, settings, conditions.

use std::io::{self, Write};

use super::table::printable;
use crate::batch::{DryRun, FlowChangeCounts, FlowFate, Foreseen, VfChange};

pub(super) fn write(out: &mut dyn Write, dry_run: &DryRun) -> io::Result<()> {
    for changed in &dry_run.changes {
        let outcome = changed.outcome.as_str();
        writeln!(out, "{} would be {outcome}", printable(&changed.resource))?;
    }
    let FlowChangeCounts { added, changed, removed } = dry_run.flows;
    writeln!(out, "flows: {added} added, {changed} changed, {removed} removed")?;
    for flow in &dry_run.flow_changes {
        let sign = match flow.change {
            FlowFate::Added => '+',
            FlowFate::Changed => '~',
            FlowFate::Removed => '-',
        };
        let (netdev, tc) = (printable(&flow.netdev), printable(&flow.tc));
        writeln!(out, "  {sign} dev {netdev} {tc}")?;
    }
    let unlisted = added + changed + removed - dry_run.flow_changes.len() as u64;
    if unlisted > 0 {
        writeln!(out, "  and {unlisted} more")?;
    }
    for VfChange { adapter, vf, setting, before, after } in &dry_run.vf_changes {
        let words = format!("{adapter} VF {vf}: {setting} {before} -> {after}");
        writeln!(out, "{}", printable(&words))?;
    }
    for Foreseen { resource, r#type, status, reason, message } in &dry_run.conditions {
        let words = format!("{resource} would say {type} {status:?} ({reason}): {message}");
        writeln!(out, "{}", printable(&words))?;
    }
    Ok(())
}
