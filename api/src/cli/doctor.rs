//! `eswitchctl doctor`: what on this host keeps eswitchd from its work, and what to do about it.
//!
//! In: /proc and /sys of this host, and what the daemon tells. Out: a line for each check. Nothing
//! is changed, loaded or sent; what needs a right that the caller lacks is said to be unknown.

mod host;

use std::{
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use super::{CommandError, Exit, get, table::printable};
use crate::{
    client::{Client, ClientError},
    resources::{Adapter, Condition, ConditionStatus, EswitchMode},
};

/// How a check came out, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// It cannot be seen.
    Unknown,
    /// It works, and may not be what is meant.
    Warning,
    /// It does not work.
    Wrong,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at, in a word or two.
    what: String,
    verdict: Verdict,
    /// What was found.
    says: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(what: &str, says: impl Into<String>) -> Finding {
        Finding { what: what.to_owned(), verdict: Verdict::Ok, says: says.into(), fix: None }
    }

    fn not(verdict: Verdict, what: &str, says: impl Into<String>, fix: &str) -> Finding {
        let (what, fix) = (what.to_owned(), Some(fix.to_owned()));
        Finding { what, verdict, says: says.into(), fix }
    }
}

pub(super) async fn doctor(
    client: &Client,
    json: bool,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let mut findings = host::findings(Path::new("/"));
    findings.extend(daemon(client).await);
    match json {
        true => get::json(out, &findings)?,
        false => write(out, &findings)?,
    }
    let worst = findings.iter().map(|finding| finding.verdict).max();
    Ok(if worst == Some(Verdict::Wrong) { Exit::Degraded } else { Exit::Done })
}

fn write(out: &mut dyn Write, findings: &[Finding]) -> io::Result<()> {
    for Finding { what, verdict, says, fix } in findings {
        let mark = match verdict {
            Verdict::Ok => "ok",
            Verdict::Unknown => "?",
            Verdict::Warning => "warn",
            Verdict::Wrong => "WRONG",
        };
        writeln!(out, "{mark:<6}{what:<15}{}", printable(says))?;
        if let Some(fix) = fix {
            writeln!(out, "{:>21}to do: {}", "", printable(fix))?;
        }
    }
    let count = |wanted| findings.iter().filter(|finding| finding.verdict == wanted).count();
    let (wrong, warnings) = (count(Verdict::Wrong), count(Verdict::Warning));
    writeln!(out, "\n{} checks, {wrong} wrong, {warnings} warnings", findings.len())
}

// ---------------------------------------------------------------- what the daemon tells

async fn daemon(client: &Client) -> Vec<Finding> {
    match asked(client).await {
        Ok(findings) => findings,
        Err(error) => {
            let fix = match error {
                ClientError::Unreachable { .. } => {
                    "start it (systemctl start eswitchd), or name where it listens (--server)"
                }
                _ => "see its log (journalctl -u eswitchd)",
            };
            vec![Finding::not(Verdict::Wrong, "daemon", super::chain(&error), fix)]
        }
    }
}

async fn asked(client: &Client) -> Result<Vec<Finding>, ClientError> {
    let reasons = client.not_ready().await?;
    let mut findings = vec![match reasons.is_empty() {
        true => Finding::ok("daemon", format!("ready at {}", client.server())),
        false => {
            let fix = "wait until it has converged, or see to the reasons";
            Finding::not(Verdict::Wrong, "daemon", reasons.join("; "), fix)
        }
    }];
    let adapters = client.adapters().await?;
    if adapters.is_empty() {
        let fix = "add an [[adapter]] to /etc/eswitchd.toml: no other is touched";
        findings.push(Finding::not(Verdict::Wrong, "adapters", "none is configured", fix));
    }
    for adapter in &adapters {
        findings.extend(adapter_findings(adapter));
    }
    for guest in client.guests().await? {
        let what = format!("guest {}", guest.id);
        let wrong = guest.status.conditions.iter().find(|it| it.status != ConditionStatus::True);
        findings.push(match wrong {
            None => Finding::ok(&what, "its QMP socket answers"),
            Some(condition) => {
                let fix = "give eswitchd a QMP socket of its own: -qmp unix:FOLDER/ID.sock,\
                           server=on,wait=off, with a folder that it may enter";
                Finding::not(Verdict::Wrong, &what, told(condition), fix)
            }
        });
    }
    Ok(findings)
}

fn told(Condition { r#type, reason, message, .. }: &Condition) -> String {
    format!("{type} ({reason}): {message}")
}

fn adapter_findings(adapter: &Adapter) -> Vec<Finding> {
    let what = format!("adapter {}", adapter.id);
    let mut findings = Vec::new();
    for condition in adapter.conditions.iter().filter(|it| it.status != ConditionStatus::True) {
        let software = adapter.mode == Some(EswitchMode::Software);
        let (verdict, fix) = match condition.r#type.as_str() {
            "Offloaded" if software => continue,
            "Offloaded" => {
                (Verdict::Warning, "see `eswitchctl describe adapter` for what it lacks")
            }
            "Present" => {
                (Verdict::Wrong, "see `devlink dev` for its handle; is its driver loaded?")
            }
            _ => (Verdict::Wrong, "see `eswitchctl describe adapter`"),
        };
        findings.push(Finding::not(verdict, &what, told(condition), fix));
    }
    if adapter.foreign_filters > 0 {
        let says = format!("{} filters of others are on its hooks", adapter.foreign_filters);
        let fix = "see `tc filter show dev NETDEV ingress`; they go before or behind eswitchd's by \
                   their prio, and are never touched";
        findings.push(Finding::not(Verdict::Warning, &what, says, fix));
    }
    if findings.is_empty() {
        let mode = match adapter.mode {
            Some(EswitchMode::Legacy) => "legacy",
            Some(EswitchMode::Switchdev) => "switchdev",
            Some(EswitchMode::Software) => "software",
            None => "no mode yet",
        };
        let says = format!("{} ({mode}), {} VFs", adapter.handle, adapter.vfs.len());
        findings.push(Finding::ok(&what, says));
    }
    findings
}
