//! Conditions with their times: a condition's `last_transition` moves only when its status does.

use std::{collections::BTreeMap, time::SystemTime};

use api::resources::{Condition, ConditionStatus};

/// When each condition of each resource changed last.
#[derive(Debug, Default)]
pub(super) struct ConditionLog {
    seen: BTreeMap<(String, &'static str), Seen>,
    transitions: Vec<Transition>,
}

/// A condition as it was stamped last.
#[derive(Debug, Clone)]
struct Seen {
    status: ConditionStatus,
    reason: String,
    since: SystemTime,
}

/// A condition that has another status than before, or is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transition {
    pub(super) resource: String,
    pub(super) about: &'static str,
    pub(super) status: ConditionStatus,
    pub(super) reason: String,
    pub(super) message: String,
}

/// A condition without its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) about: &'static str,
    pub(super) status: ConditionStatus,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Statement {
    pub(super) fn new(
        about: &'static str,
        status: ConditionStatus,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Statement { about, status, reason: reason.into(), message: message.into() }
    }
}

impl ConditionLog {
    /// Gives statements about `resource` (`ports/web-1`) the time of their last transition.
    pub(super) fn stamp(
        &mut self,
        resource: &str,
        now: SystemTime,
        statements: Vec<Statement>,
    ) -> Vec<Condition> {
        statements
            .into_iter()
            .map(|statement| {
                let key = (resource.to_owned(), statement.about);
                let since = match self.seen.get_mut(&key) {
                    Some(seen) if seen.status == statement.status => {
                        seen.reason.clone_from(&statement.reason);
                        seen.since
                    }
                    _ => {
                        let (status, reason) = (statement.status, statement.reason.clone());
                        self.seen.insert(key, Seen { status, reason, since: now });
                        self.transitions.push(Transition {
                            resource: resource.to_owned(),
                            about: statement.about,
                            status: statement.status,
                            reason: statement.reason.clone(),
                            message: statement.message.clone(),
                        });
                        now
                    }
                };
                Condition {
                    r#type: statement.about.to_owned(),
                    status: statement.status,
                    reason: statement.reason,
                    message: statement.message,
                    last_transition: humantime::format_rfc3339_millis(since).to_string(),
                }
            })
            .collect()
    }

    /// What has changed since this was asked last.
    pub(super) fn take_transitions(&mut self) -> Vec<Transition> {
        std::mem::take(&mut self.transitions)
    }

    /// Each condition of the resources of a kind (`ports/`): the resource's id, what it is about,
    /// its status and its reason, as they were stamped last.
    pub(super) fn of_kind<'s>(
        &'s self,
        kind: &'s str,
    ) -> impl Iterator<Item = (&'s str, &'static str, ConditionStatus, &'s str)> {
        let from = (kind.to_owned(), "");
        self.seen.range(from..).map_while(move |((resource, about), seen)| {
            Some((resource.strip_prefix(kind)?, *about, seen.status, &*seen.reason))
        })
    }

    /// Forgets a resource that is no more.
    pub(super) fn forget(&mut self, resource: &str) {
        let from = (resource.to_owned(), "");
        let said = self.seen.range(from..).map(|(key, _)| key);
        let keys: Vec<_> = said.take_while(|(of, _)| of == resource).cloned().collect();
        for key in keys {
            self.seen.remove(&key);
        }
    }

    /// Forgets all resources that are no more.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.seen.retain(|(resource, _), _| keep(resource));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_change_of_status_moves_the_time() {
        let mut log = ConditionLog::default();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut stamp = |seconds, status, reason: &str| {
            let statement = Statement::new("Bound", status, reason, "");
            log.stamp("ports/a", at(seconds), vec![statement]).remove(0).last_transition
        };
        let first = stamp(1, ConditionStatus::False, "GuestNotSeen");
        assert_eq!(first, "1970-01-01T00:00:01.000Z");
        assert_eq!(stamp(2, ConditionStatus::False, "VfDisabled"), first);
        assert_eq!(stamp(3, ConditionStatus::True, "Bound"), "1970-01-01T00:00:03.000Z");
    }

    #[test]
    fn what_is_forgotten_begins_anew_and_takes_no_neighbour_with_it() {
        let mut log = ConditionLog::default();
        let say = |log: &mut ConditionLog, resource: &str, seconds| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let statements = ["Bound", "Conflict"]
                .map(|about| Statement::new(about, ConditionStatus::True, "", ""));
            log.stamp(resource, now, statements.into()).remove(0).last_transition
        };
        let names = ["ports/a", "ports/a-1", "ports/b"];
        let first = names.map(|name| say(&mut log, name, 1));
        log.forget("ports/a");
        let ids: Vec<&str> = log.of_kind("ports/").map(|(id, ..)| id).collect();
        assert_eq!(ids, ["a-1", "a-1", "b", "b"]);
        let second = names.map(|name| say(&mut log, name, 2));
        assert!(first[0] != second[0] && first[1..] == second[1..]);
    }
}
