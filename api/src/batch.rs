//! Many changes in one transaction, and what changes would come to.
//!
//! In: the text of a batch. Out: a checked [`Batch`], or the field that is wrong. What a change does
//! is the daemon's business.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    error::{ApiError, InvalidField, ResourceKind, ResourceRef},
    resources::{ConditionStatus, GuestSpec, NetworkSpec, PortSpec},
    server::{Precondition, declared::Declared, request},
    types::Id,
};

/// Changes in one batch at most.
pub const CHANGES_MAX: usize = 20_000;

/// Flows that a dry run lists at most. It counts all.
pub const FLOWS_LISTED_MAX: usize = 500;

/// One change of what is declared; without a spec the resource is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few of them live at a time")]
pub enum Wanted {
    /// Of a network.
    Network(Id, Option<NetworkSpec>),
    /// Of a port.
    Port(Id, Option<PortSpec>),
    /// Of a guest.
    Guest(Id, Option<GuestSpec>),
}

impl Wanted {
    /// What it is a change of.
    pub fn resource(&self) -> ResourceRef {
        let (kind, id) = match self {
            Self::Network(id, _) => (ResourceKind::Network, id),
            Self::Port(id, _) => (ResourceKind::Port, id),
            Self::Guest(id, _) => (ResourceKind::Guest, id),
        };
        ResourceRef { kind, id: id.clone() }
    }
}

/// Changes that are made together: all of them, or on an error none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Batch {
    /// Networks that are created, or get this spec.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Named<NetworkSpec>>,
    /// Ports, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Named<PortSpec>>,
    /// Guests, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<Named<GuestSpec>>,
    /// What is deleted; what is not there is no error.
    #[serde(skip_serializing_if = "Deletions::is_empty")]
    pub delete: Deletions,
    /// The revisions (`ETag`) that resources of this batch must have for it to be made, by
    /// `ports/web-1`; 0: it must not be there. Not looked at where there is nothing to change.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(example = json!({"ports/web-1": 42}))]
    pub only_if: BTreeMap<String, u64>,
}

/// A spec with the name of its resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Named<Spec> {
    /// The client's name for it.
    pub id: Id,
    /// What is wanted.
    pub spec: Spec,
}

/// Resources to delete, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Deletions {
    /// Networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Id>,
    /// Ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Id>,
    /// Guests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<Id>,
}

impl Deletions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Batch {
    /// Reads and checks a batch, as a PUT of each of its resources would.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] or [`ApiError::Invalid`], which names the field from the root of the
    /// document.
    pub fn read(text: &[u8]) -> Result<Batch, ApiError> {
        let batch: Batch = request::json(text)?;
        batch.validate()?;
        Ok(batch)
    }

    /// How many changes it has.
    pub fn len(&self) -> usize {
        let Deletions { networks, ports, guests } = &self.delete;
        let puts = self.networks.len() + self.ports.len() + self.guests.len();
        puts + networks.len() + ports.len() + guests.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn validate(&self) -> Result<(), InvalidField> {
        if self.len() > CHANGES_MAX {
            return Err(InvalidField {
                field: "networks, ports, guests, delete".into(),
                detail: format!("there are {} changes", self.len()),
                remedy: format!("send at most {CHANGES_MAX} in one batch"),
            });
        }
        each_once("networks", &self.networks, &self.delete.networks)?;
        each_once("ports", &self.ports, &self.delete.ports)?;
        each_once("guests", &self.guests, &self.delete.guests)?;
        let subjects: BTreeSet<String> =
            self.subjects().map(|resource| resource.to_string()).collect();
        match self.only_if.keys().find(|name| !subjects.contains(*name)) {
            None => Ok(()),
            Some(name) => Err(InvalidField {
                field: format!("only_if.{name}"),
                detail: "is no resource of this batch".into(),
                remedy: "write what the batch puts or deletes, as in ports/web-1".into(),
            }),
        }
    }

    /// What it is about.
    fn subjects(&self) -> impl Iterator<Item = ResourceRef> {
        let of = |kind| move |id: &Id| ResourceRef { kind, id: id.clone() };
        let networks = self.networks.iter().map(|put| &put.id).chain(&self.delete.networks);
        let ports = self.ports.iter().map(|put| &put.id).chain(&self.delete.ports);
        let guests = self.guests.iter().map(|put| &put.id).chain(&self.delete.guests);
        networks
            .map(of(ResourceKind::Network))
            .chain(ports.map(of(ResourceKind::Port)))
            .chain(guests.map(of(ResourceKind::Guest)))
    }

    /// In which state its resources must be.
    pub fn precondition(&self) -> Precondition {
        if self.only_if.is_empty() {
            return Precondition::None;
        }
        let expected = |resource: ResourceRef| {
            let revision = *self.only_if.get(&resource.to_string())?;
            Some((resource, revision))
        };
        Precondition::Each(self.subjects().filter_map(expected).collect())
    }

    /// Its changes, one by one.
    pub fn changes(self) -> Vec<Wanted> {
        let Deletions { networks, ports, guests } = self.delete;
        let put_networks =
            self.networks.into_iter().map(|put| Wanted::Network(put.id, Some(put.spec)));
        let put_ports = self.ports.into_iter().map(|put| Wanted::Port(put.id, Some(put.spec)));
        let put_guests = self.guests.into_iter().map(|put| Wanted::Guest(put.id, Some(put.spec)));
        put_networks
            .chain(put_ports)
            .chain(put_guests)
            .chain(ports.into_iter().map(|id| Wanted::Port(id, None)))
            .chain(networks.into_iter().map(|id| Wanted::Network(id, None)))
            .chain(guests.into_iter().map(|id| Wanted::Guest(id, None)))
            .collect()
    }
}

fn each_once<Spec: Declared>(
    list: &str,
    puts: &[Named<Spec>],
    deleted: &[Id],
) -> Result<(), InvalidField> {
    let mut ids = BTreeSet::new();
    let twice = |field: String, id: &Id| InvalidField {
        field,
        detail: format!("`{id}` is there twice"),
        remedy: "name each resource of a kind once".into(),
    };
    for (index, put) in puts.iter().enumerate() {
        put.spec.validate().map_err(|error| InvalidField {
            field: format!("{list}[{index}].{}", error.field),
            ..error
        })?;
        if !ids.insert(&put.id) {
            return Err(twice(format!("{list}[{index}].id"), &put.id));
        }
    }
    for (index, id) in deleted.iter().enumerate() {
        if !ids.insert(id) {
            return Err(twice(format!("delete.{list}[{index}]"), id));
        }
    }
    Ok(())
}

/// What a batch has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Applied {
    /// The daemon's revision now.
    pub revision: u64,
    /// Each change, in the order in which they were made.
    pub changes: Vec<Changed>,
}

/// What a change has done, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// The resource: `ports/web-1`.
    pub resource: String,
    /// What became of it.
    pub outcome: ChangeOutcome,
}

/// What became of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeOutcome {
    /// It is new.
    Created,
    /// It was there with another spec.
    Updated,
    /// It was there with this spec.
    Unchanged,
    /// It is gone.
    Deleted,
    /// There was nothing to delete.
    Absent,
}

impl ChangeOutcome {
    /// In a word, as on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Absent => "absent",
        }
    }
}

/// What changes would come to. Nothing was changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// Each change, and what it would do.
    pub changes: Vec<Changed>,
    /// How many flows would be added, changed and removed, on all adapters.
    pub flows: FlowChangeCounts,
    /// The first 500 of them.
    pub flow_changes: Vec<FlowChange>,
    /// VF settings and rates that would become others.
    pub vf_changes: Vec<VfChange>,
    /// What conditions would say that they do not say now.
    pub conditions: Vec<Foreseen>,
}

/// Flows by what would become of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowChangeCounts {
    /// New ones.
    pub added: u64,
    /// With the same place and match as before, and other actions.
    pub changed: u64,
    /// No longer there.
    pub removed: u64,
}

/// What would become of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowChange {
    /// What.
    pub change: FlowFate,
    /// The adapter.
    pub adapter: Id,
    /// The netdev on whose ingress hook it is.
    pub netdev: String,
    /// What it is there for, in a few words.
    pub purpose: String,
    /// The port that is the reason for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Id>,
    /// The network that is the reason for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Id>,
    /// The rule in tc's syntax, as it would be; as it is where it would be removed.
    pub tc: String,
}

/// What becomes of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowFate {
    /// It is new.
    Added,
    /// It has other actions.
    Changed,
    /// It goes.
    Removed,
}

/// A setting of a VF that would become another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VfChange {
    /// The adapter.
    pub adapter: Id,
    /// The VF's index.
    pub vf: u16,
    /// The setting, in a few words.
    pub setting: String,
    /// What it is meant to be now.
    pub before: String,
    /// What it would be.
    pub after: String,
}

/// What a condition would say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Foreseen {
    /// Whose condition: `ports/web-1`.
    pub resource: String,
    /// Which condition.
    pub r#type: String,
    /// Its status.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_in_a_batch_is_named_by_its_field_from_the_root() {
        let flat = json!({"id": "a", "spec": {"kind": "flat"}});
        let bad = json!({"id": "b", "spec": {"kind": {"vlan": {"vid": 0}}}});
        let group = json!({"id": "b", "spec": {"kind": "flat",
                                               "reserved_macs": ["01:00:00:00:00:00"]}});
        for (batch, field) in [
            (json!({"networks": [flat, bad]}), "networks[1].spec.kind.vlan.vid"),
            (json!({"networks": [flat, group]}), "networks[1].spec.reserved_macs[0]"),
            (json!({"networks": [flat, flat]}), "networks[1].id"),
            (json!({"networks": [flat], "delete": {"networks": ["a"]}}), "delete.networks[0]"),
            (json!({"delete": {"ports": ["a/b"]}}), "delete.ports[0]"),
            (json!({"switches": []}), "switches"),
            (json!({"networks": [flat], "only_if": {"networks/b": 7}}), "only_if.networks/b"),
        ] {
            let problem = Batch::read(batch.to_string().as_bytes()).unwrap_err().problem();
            assert_eq!(problem.field.as_deref(), Some(field), "{problem:?}");
        }
        let ids: Vec<String> = (0..=CHANGES_MAX).map(|number| format!("p{number}")).collect();
        let text = json!({"delete": {"ports": ids}}).to_string();
        assert_eq!(Batch::read(text.as_bytes()).unwrap_err().problem().status, 422);
    }

    #[test]
    fn ports_are_deleted_before_the_networks_that_they_are_attached_to() {
        let batch = json!({"delete": {"networks": ["blue"], "ports": ["a"]}});
        let changes = Batch::read(batch.to_string().as_bytes()).unwrap().changes();
        let names: Vec<String> = changes.iter().map(|it| it.resource().to_string()).collect();
        assert_eq!(names, ["ports/a", "networks/blue"]);
    }
}
