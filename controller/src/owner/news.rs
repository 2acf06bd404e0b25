//! What the owner tells whoever listens to events.
//!
//! In: what has just changed. Out: news in the feed, in words. Nothing waits for it, and nothing
//! depends on it.

use std::{fmt::Write, time::SystemTime};

use api::{
    error::{ResourceKind, ResourceRef},
    events::{News, NewsKind},
    types::Id,
};

use super::{
    Owner,
    conditions::Transition,
    flows::{Drift, Tally},
};
use crate::{
    intent::{Change, Effect},
    plan::Changes,
    world::{GuestFunction, GuestView},
};

/// Refusals of one job that are told one by one.
const REFUSALS_TOLD: usize = 8;

impl Owner {
    /// Tells that something happened.
    pub(super) fn tell(&self, kind: NewsKind, resource: String, reason: &str, message: String) {
        self.publish(News { kind, resource, reason: reason.to_owned(), message, revision: None });
    }

    fn publish(&self, news: News) {
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        self.outlets.feed.tell(now, news);
    }

    /// A client has changed something.
    pub(super) fn tell_of_change(&self, change: &Change, effect: Effect) {
        let reason = match effect {
            Effect::Created => "Created",
            Effect::Updated => "Updated",
            Effect::Deleted => "Deleted",
            Effect::Unchanged | Effect::Absent => return,
        };
        let named = |kind, id: &Id| ResourceRef { kind, id: id.clone() }.to_string();
        let (resource, revision) = match self.intent.subject(change) {
            Some(subject) => (named(subject.kind, subject.id), subject.revision),
            None => ("snapshot".to_owned(), Some(self.intent.revision)),
        };
        let message = match change {
            Change::Everything(_) => "a snapshot was restored: read everything again".to_owned(),
            Change::Eswitch(_, Some(order)) => {
                format!("its eswitch is asked to be {}", order.wanted)
            }
            _ => "over the API".to_owned(),
        };
        let (kind, reason) = (NewsKind::Resource, reason.to_owned());
        self.publish(News { kind, resource, reason, message, revision });
    }

    /// Addresses that guests ask for and do not get.
    pub(super) fn tell_of_refused_addresses(&self, changes: &Changes) {
        for (id, before) in &changes.ports {
            let Some(port) = self.planner.plan().ports.get(id) else { continue };
            for refused in &port.refused {
                if before.as_ref().is_none_or(|before| !before.refused.contains(refused)) {
                    let resource = ResourceRef { kind: ResourceKind::Port, id: id.clone() };
                    let message = format!("{}: {}", refused.mac, refused.reason);
                    self.tell(NewsKind::Refusal, resource.to_string(), "AddressRefused", message);
                }
            }
        }
    }

    /// What a job met in the kernel.
    pub(super) fn tell_of_flows(&self, adapter: &Id, tally: &Tally) {
        let resource = || format!("adapters/{adapter}");
        for words in tally.refused.iter().take(REFUSALS_TOLD) {
            self.tell(NewsKind::Refusal, resource(), "FlowRefused", words.clone());
        }
        if let Some(more) = tally.refused.len().checked_sub(REFUSALS_TOLD).filter(|n| *n > 0) {
            let message = format!("{more} more flows; GET /v1/flows has the reasons");
            self.tell(NewsKind::Refusal, resource(), "FlowRefused", message);
        }
        for words in &tally.unusable {
            self.tell(NewsKind::Refusal, resource(), "HookUnusable", words.clone());
        }
        for (hook, drift, by) in &tally.drift {
            let Drift { deleted, changed, added } = drift;
            let view = self.world.adapters.get(adapter);
            let netdev =
                view.zip(hook.ifindex()).and_then(|(v, i)| super::status::netdev_name(v, i));
            let mut message = format!(
                "{}: somebody else deleted {deleted}, changed {changed} and added {added} flows; \
                 they are put right",
                netdev.unwrap_or("?")
            );
            if let Some(port) = by {
                let _ = write!(message, " (netlink port {port})");
            }
            self.tell(NewsKind::Drift, resource(), "Repaired", message);
        }
    }

    /// Conditions that have another status.
    pub(super) fn tell_of_conditions(&mut self) {
        let transitions = self.conditions.take_transitions();
        // What is found at the start is no news.
        if !self.converged_once {
            return;
        }
        for Transition { resource, about, status, reason, message } in transitions {
            let message = format!("{status:?} ({reason}): {message}");
            self.tell(NewsKind::Condition, resource, about, message);
        }
    }
}

/// What a guest did, as far as its functions and its run state show it.
pub(super) fn of_guest(before: Option<&GuestView>, now: &GuestView) -> Option<String> {
    let before = before?;
    let mut said = Vec::new();
    if before.run_state != now.run_state {
        said.push(format!("it is {} now", now.run_state.as_deref().unwrap_or("unknown")));
    }
    for (device, function) in &now.functions {
        let was = before.functions.get(device);
        if was != Some(function) {
            said.push(format!("{device}: {}", in_words(function)));
        }
    }
    let gone = before.functions.keys().filter(|device| !now.functions.contains_key(*device));
    said.extend(gone.map(|device| format!("{device}: gone")));
    (!said.is_empty()).then(|| said.join("; "))
}

fn in_words(function: &GuestFunction) -> String {
    let mut words = if function.enabled { "enabled" } else { "disabled" }.to_owned();
    if let Some(filter) = &function.filter {
        let _ = write!(words, ", address {}", filter.main_mac);
        if !filter.unicast.is_empty() {
            let _ = write!(words, " and {} more", filter.unicast.len());
        }
        if filter.promiscuous {
            words.push_str(", promiscuous");
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::BackingView;

    fn guest(run_state: &str, enabled: bool) -> GuestView {
        let backing = BackingView::Unknown { reason: String::new() };
        let function = GuestFunction {
            pf: None,
            index: None,
            pci: None,
            enabled,
            filter: None,
            backing,
            source: None,
            visibility: Default::default(),
        };
        GuestView {
            run_state: Some(run_state.into()),
            functions: [("vf0".to_owned(), function)].into(),
            ..GuestView::default()
        }
    }

    #[test]
    fn what_a_guest_did_is_said_and_nothing_where_it_did_nothing() {
        let before = guest("running", false);
        assert_eq!(of_guest(None, &before), None);
        assert_eq!(of_guest(Some(&before), &before), None);
        let said = of_guest(Some(&before), &guest("paused", true)).unwrap();
        assert_eq!(said, "it is paused now; vf0: enabled");
        let gone = of_guest(Some(&before), &GuestView::default()).unwrap();
        assert_eq!(gone, "it is unknown now; vf0: gone");
    }
}
