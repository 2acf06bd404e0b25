//! How far a port has come, link by link.
//!
//! In: the owner's state, and what the kernel holds at the port's hook with its counters. Out: one
//! sentence for each link from what was asked for to frames that met its rules. Reads only.

use std::time::Duration;

use api::{
    error::{ApiError, ResourceKind},
    explain::{Explanation, Link, LinkName, LinkState},
    resources::{AdminState, ConditionStatus, EswitchMode, FlowCounts, PortSpec},
    types::Id,
};
use tc_flows::{Dump, Ifindex};

use super::{Owner, conditions::Statement};
use crate::plan::{
    PortPlan, Program,
    switchdev::{FlowProgram, Purpose},
};

/// The links but the last, and where its counters are.
#[derive(Debug)]
pub(super) struct Explained {
    port: Id,
    links: Vec<Link>,
    /// The netdev whose rules count for the port.
    pub(super) counted_at: Option<Ifindex>,
}

fn link(link: LinkName, state: LinkState, message: impl Into<String>) -> Link {
    Link { link, state, message: message.into(), remedy: None }
}

fn with_remedy(link: Link, remedy: impl Into<String>) -> Link {
    Link { remedy: Some(remedy.into()), ..link }
}

impl Owner {
    /// All links that the daemon knows by itself.
    ///
    /// # Errors
    /// There is no such port.
    pub(super) fn explained(&self, id: &Id) -> Result<Explained, ApiError> {
        let stored = self
            .intent
            .ports
            .get(id)
            .ok_or_else(|| ApiError::NotFound { kind: ResourceKind::Port, id: id.clone() })?;
        let summary = self.summary(id);
        let statements = self.port_statements(id, &summary);
        let said = |about: &str| statements.iter().find(|said| said.about == about);
        let plan = self.planner.plan().ports.get(id);
        let place = plan.and_then(|plan| plan.place.as_ref().ok());
        let mut links = vec![self.asked(&stored.spec, stored.revision)];
        links.push(seen(said("Bound")));
        links.push(planned(plan, &statements, &summary.counts));
        links.push(installed(said("Programmed"), place.is_some()));
        links.push(in_hardware(said("Offloaded"), place.is_some()));
        let counted_at = place.and_then(|place| {
            let representor = place.representor.as_ref()?;
            let program = self.planner.plan().programs.get(&place.adapter)?;
            matches!(program, Program::Flows(_)).then_some(representor.ifindex)
        });
        Ok(Explained { port: id.clone(), links, counted_at })
    }

    fn asked(&self, spec: &PortSpec, revision: u64) -> Link {
        use LinkState::{Broken, Holds};
        let broken = |message: String| link(LinkName::Asked, Broken, message);
        if spec.admin_state == AdminState::Down {
            let message = "the port is down (admin_state): it passes nothing".to_owned();
            return with_remedy(broken(message), "PUT it with \"admin_state\": \"up\"");
        }
        if spec.attachments.is_empty() {
            let message = "the port is attached to no network".to_owned();
            return with_remedy(broken(message), "PUT it with an attachment");
        }
        let missing = spec.attachments.iter().map(|at| &at.network);
        let mut missing = missing.filter(|network| !self.intent.networks.contains_key(*network));
        if let Some(network) = missing.next() {
            let message = format!("it is attached to network `{network}`, which is not there");
            return with_remedy(broken(message), format!("PUT /v1/networks/{network}"));
        }
        let networks = spec.attachments.iter().map(|at| match at.tag {
            None => at.network.to_string(),
            Some(tag) => format!("{} (tag {tag})", at.network),
        });
        let networks: Vec<String> = networks.collect();
        let message = format!("revision {revision}: attached to {}", networks.join(", "));
        link(LinkName::Asked, Holds, message)
    }

    /// The whole chain: with what the kernel counted at the port's hook, where there is one.
    pub(super) fn explanation(&self, explained: Explained, dump: Option<&Dump>) -> Explanation {
        let Explained { port, mut links, .. } = explained;
        let place = self.planner.plan().ports.get(&port).and_then(|plan| plan.place.as_ref().ok());
        let program = place.and_then(|place| self.planner.plan().programs.get(&place.adapter));
        let mode = place
            .and_then(|place| self.world.adapters.get(&place.adapter))
            .and_then(|adapter| adapter.mode);
        links.push(match (program, dump) {
            (Some(Program::Flows(program)), Some(dump)) => hit(&Hits::of(program, dump)),
            _ if mode == Some(EswitchMode::Legacy) => link(
                LinkName::Hit,
                LinkState::Absent,
                "the NIC counts by itself: `ip -s link show` on the PF",
            ),
            _ => link(LinkName::Hit, LinkState::Waiting, "there are no rules that count"),
        });
        Explanation::of(port, links)
    }
}

fn seen(bound: Option<&Statement>) -> Link {
    let name = LinkName::Seen;
    match bound {
        None => link(name, LinkState::Waiting, "not planned yet"),
        Some(said) => match said.status {
            ConditionStatus::True => link(name, LinkState::Holds, &said.message),
            ConditionStatus::Unknown => link(name, LinkState::Waiting, &said.message),
            _ if said.reason == "GuestConnecting" || said.reason == "GuestArriving" => {
                link(name, LinkState::Waiting, &said.message)
            }
            _ => link(name, LinkState::Broken, &said.message),
        },
    }
}

fn planned(plan: Option<&PortPlan>, statements: &[Statement], counts: &FlowCounts) -> Link {
    let name = LinkName::Planned;
    let wrong = |about: &str| {
        let is_it = |said: &&Statement| said.about == about;
        statements.iter().find(is_it).filter(|said| said.status == ConditionStatus::True)
    };
    let Some(plan) = plan.filter(|plan| plan.place.is_ok()) else {
        return link(name, LinkState::Waiting, "it stands nowhere yet");
    };
    if let Some(conflict) = wrong("Conflict") {
        return link(name, LinkState::Broken, &conflict.message);
    }
    if plan.macs.is_empty() {
        let refused = wrong("Quarantined").map(|said| format!(": {}", said.message));
        let message = format!(
            "there is no address that it may send from{}",
            refused.unwrap_or_else(|| {
                ": the guest has none that the port allows, and the port has no `macs`".into()
            })
        );
        let remedy = "give the port `macs`, or allow the guest's address in `guest_macs`";
        return with_remedy(link(name, LinkState::Broken, message), remedy);
    }
    let macs: Vec<String> = plan.macs.iter().map(ToString::to_string).collect();
    let FlowCounts { in_hw, not_in_hw, refused, pending } = counts;
    let rules = match in_hw + not_in_hw + refused + pending {
        0 => String::new(),
        count => format!(", {count} rules"),
    };
    let message = format!("it may send from {}{rules}", macs.join(", "));
    match (plan.unmet.first(), wrong("Quarantined")) {
        (Some(unmet), _) => {
            link(name, LinkState::Partly, format!("{message}; but {}", unmet.message))
        }
        (None, Some(refused)) => {
            link(name, LinkState::Partly, format!("{message}; but {}", refused.message))
        }
        (None, None) => link(name, LinkState::Holds, message),
    }
}

fn installed(programmed: Option<&Statement>, bound: bool) -> Link {
    let name = LinkName::Installed;
    let Some(said) = programmed.filter(|_| bound) else {
        return link(name, LinkState::Waiting, "nothing is planned yet");
    };
    let state = match (said.status, said.reason.as_str()) {
        (ConditionStatus::True, _) => LinkState::Holds,
        (ConditionStatus::Partial, _) => LinkState::Partly,
        (_, "Pending" | "NoAddress") => LinkState::Waiting,
        _ => LinkState::Broken,
    };
    link(name, state, &said.message)
}

fn in_hardware(offloaded: Option<&Statement>, bound: bool) -> Link {
    let name = LinkName::InHardware;
    let Some(said) = offloaded.filter(|_| bound) else {
        return link(name, LinkState::Waiting, "nothing is planned yet");
    };
    match (said.status, said.reason.as_str()) {
        (_, "SoftwareAdapter") => link(name, LinkState::Absent, &said.message),
        (ConditionStatus::True, _) => link(name, LinkState::Holds, &said.message),
        // Everything works, in software.
        _ => link(name, LinkState::Partly, &said.message),
    }
}

/// What rules at a port's hook have counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hits {
    /// Frames that its admissions took.
    admitted: u64,
    /// How long ago the last was.
    last: Option<Duration>,
    /// Frames that were dropped as of no admitted address.
    unknown: u64,
    /// Frames that guards dropped.
    guarded: u64,
}

impl Hits {
    fn of(program: &FlowProgram, dump: &Dump) -> Hits {
        let mut hits = Hits::default();
        for own in &dump.own {
            let Some((_, why)) = program.rules.get_noted(own.rule.id()) else { continue };
            let packets = own.stats.software.packets + own.stats.hardware.packets;
            match why.purpose {
                Purpose::Admission(_) | Purpose::LinkLocal(_) | Purpose::FusedUnicast(_) => {
                    hits.admitted += packets;
                    let times = own.stats.times.filter(|_| packets > 0);
                    let last = times.map(|times| times.last_used);
                    hits.last = hits.last.into_iter().chain(last).min();
                }
                Purpose::DefaultDrop | Purpose::TagGuard => hits.unknown += packets,
                Purpose::LinkLocalGuard
                | Purpose::DoubleTagGuard
                | Purpose::SpoofGuard(_)
                | Purpose::RouterGuard
                | Purpose::DhcpServerGuard => hits.guarded += packets,
                _ => {}
            }
        }
        hits
    }
}

fn hit(hits: &Hits) -> Link {
    let Hits { admitted, last, unknown, guarded } = hits;
    let name = LinkName::Hit;
    let dropped = format!(
        "{unknown} dropped as of no address or tag of the port, {guarded} by guards (spoofed, \
         link-local, servers)"
    );
    match (*admitted, last) {
        (0, _) if *unknown > 0 => with_remedy(
            link(name, LinkState::Broken, format!("no frame was admitted; {dropped}")),
            "see which addresses and tags the guest uses: tcpdump -e on the representor",
        ),
        (0, _) => link(name, LinkState::Waiting, format!("no frame yet; {dropped}")),
        (admitted, last) => {
            let ago = last.map(|last| format!(", the last {} s ago", last.as_secs()));
            let message =
                format!("{admitted} frames admitted{}; {dropped}", ago.unwrap_or_default());
            link(name, LinkState::Holds, message)
        }
    }
}
