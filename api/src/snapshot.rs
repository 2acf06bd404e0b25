//! A snapshot: everything that a daemon was told and must not forget, as one document.
//!
//! In: the text of a document. Out: a checked [`Snapshot`], or the field that is wrong. What is only
//! seen (statuses, guests that were found, flows) is not in it: the daemon finds that again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    error::{ApiError, InvalidField},
    resources::{EswitchMode, GuestSpec, NetworkSpec, PortSpec},
    server::{declared::Declared, request},
    types::{Id, MacAddr},
};

/// The format of snapshots that is written, and the only one that is read.
pub const FORMAT: u64 = 1;

/// The highest revision of a snapshot: what every reader of JSON can count to (RFC 8259, section 6),
/// and what leaves room to count on from.
const REVISION_MAX: u64 = (1 << 53) - 1;

/// Everything that a daemon was told, and what it decided for good because of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// The format of this document: 1.
    #[schema(minimum = 1, maximum = 1)]
    pub format: u64,
    /// The revision of the daemon's last change.
    pub revision: u64,
    /// The networks, in order of id.
    pub networks: Vec<Saved<NetworkSpec>>,
    /// The ports, in order of id.
    pub ports: Vec<Saved<PortSpec>>,
    /// The guests that were PUT, in order of id.
    pub guests: Vec<Saved<GuestSpec>>,
    /// What eswitches were asked to be, in order of adapter; absent: none was asked.
    #[serde(default)]
    pub eswitches: Vec<SavedEswitch>,
    /// Which port holds which address: who came first keeps it.
    pub addresses: Vec<HeldAddress>,
}

/// A resource in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Saved<Spec> {
    /// The client's name for it.
    pub id: Id,
    /// The revision that created it: who came first.
    #[schema(minimum = 1)]
    pub created: u64,
    /// A small number of its own, kept while it exists: networks take their chain numbers from it.
    #[schema(minimum = 1, maximum = 4_294_967_295_u64, format = Int64)]
    pub number: u32,
    /// What is wanted.
    pub spec: Spec,
}

/// What the eswitch of an adapter was asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SavedEswitch {
    /// The adapter.
    pub adapter: Id,
    /// The mode, which of a NIC is `legacy` or `switchdev`.
    pub mode: EswitchMode,
    /// How many VFs there are.
    #[schema(maximum = 65535)]
    pub num_vfs: u16,
}

/// An address that a port holds in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldAddress {
    /// The network.
    pub network: Id,
    /// The address.
    pub mac: MacAddr,
    /// The port.
    pub port: Id,
}

/// What there is after a snapshot was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restored {
    /// The daemon's revision now: it has grown, also where the snapshot's is lower.
    pub revision: u64,
    /// How many networks there are.
    pub networks: usize,
    /// How many ports there are.
    pub ports: usize,
    /// How many guests are declared.
    pub guests: usize,
}

impl Snapshot {
    /// Reads and checks a document, as a PUT of each of its resources would.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] or [`ApiError::Invalid`], which names the field from the root of the
    /// document.
    pub fn read(text: &[u8]) -> Result<Snapshot, ApiError> {
        /// What documents of every format have.
        #[derive(Deserialize)]
        struct Any {
            format: u64,
        }
        let Any { format } = request::json(text)?;
        if format != FORMAT {
            return Err(ApiError::Invalid(InvalidField {
                field: "format".into(),
                detail: format!("this is a snapshot of format {format}"),
                remedy: format!(
                    "use one of format {FORMAT}, or the version of eswitchd that has saved it"
                ),
            }));
        }
        let snapshot: Snapshot = request::json(text)?;
        snapshot.validate()?;
        Ok(snapshot)
    }

    /// Checks everything about this snapshot that needs no knowledge of a daemon.
    fn validate(&self) -> Result<(), InvalidField> {
        if self.revision > REVISION_MAX {
            return Err(InvalidField {
                field: "revision".into(),
                detail: format!("{} is beyond what revisions grow to", self.revision),
                remedy: format!("use at most {REVISION_MAX}"),
            });
        }
        resources("networks", &self.networks, self.revision)?;
        resources("ports", &self.ports, self.revision)?;
        resources("guests", &self.guests, self.revision)?;
        let mut adapters = BTreeSet::new();
        for (index, SavedEswitch { adapter, mode, .. }) in self.eswitches.iter().enumerate() {
            let wrong = |field: &str, detail: String, remedy: &str| InvalidField {
                field: format!("eswitches[{index}].{field}"),
                detail,
                remedy: remedy.into(),
            };
            if !adapters.insert(adapter) {
                let detail = format!("`{adapter}` is there twice");
                return Err(wrong("adapter", detail, "name each adapter once"));
            }
            if *mode == EswitchMode::Software {
                let detail = "no NIC has this mode".to_owned();
                return Err(wrong("mode", detail, "use legacy or switchdev"));
            }
        }
        let ports: BTreeSet<&Id> = self.ports.iter().map(|port| &port.id).collect();
        let mut held = BTreeMap::new();
        for (index, HeldAddress { network, mac, port }) in self.addresses.iter().enumerate() {
            let wrong = |field: &str, detail: String, remedy: &str| InvalidField {
                field: format!("addresses[{index}].{field}"),
                detail,
                remedy: remedy.into(),
            };
            if !ports.contains(port) {
                let detail = format!("there is no port `{port}` in this snapshot");
                return Err(wrong("port", detail, "leave the entry out, or name a port"));
            }
            if let Some(holder) = held.insert((network, mac), port) {
                let detail = format!("port `{holder}` holds {mac} in network `{network}`");
                return Err(wrong("mac", detail, "name each address of a network once"));
            }
        }
        Ok(())
    }
}

fn resources<Spec: Declared>(
    list: &str,
    saved: &[Saved<Spec>],
    revision: u64,
) -> Result<(), InvalidField> {
    let (mut ids, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, resource) in saved.iter().enumerate() {
        let wrong = |field: &str, detail: String, remedy: &str| InvalidField {
            field: format!("{list}[{index}].{field}"),
            detail,
            remedy: remedy.into(),
        };
        resource.spec.validate().map_err(|error| InvalidField {
            field: format!("{list}[{index}].{}", error.field),
            ..error
        })?;
        if !ids.insert(&resource.id) {
            let detail = format!("`{}` is there twice", resource.id);
            return Err(wrong("id", detail, "name each resource of a kind once"));
        }
        if resource.number == 0 || !numbers.insert(resource.number) {
            let detail = format!("{} is 0 or another one's", resource.number);
            return Err(wrong("number", detail, "give each of a kind its own, from 1"));
        }
        if !(1..=revision).contains(&resource.created) {
            let detail = format!("{} is no revision of this snapshot", resource.created);
            return Err(wrong("created", detail, "use 1 up to the snapshot's revision"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document() -> Value {
        let port = |id: &str, number: u32| {
            json!({
                "id": id, "created": number + 1, "number": number,
                "spec": {"function": {"vf": {"adapter": "nic", "index": number}},
                         "attachments": [{"network": "blue"}]},
            })
        };
        json!({
            "format": 1,
            "revision": 9,
            "networks": [{"id": "blue", "created": 1, "number": 1, "spec": {"kind": "flat"}}],
            "ports": [port("a", 1), port("b", 2)],
            "guests": [{"id": "vm", "created": 9, "number": 1, "spec": {"qmp": "/q"}}],
            "eswitches": [{"adapter": "nic", "mode": "switchdev", "num_vfs": 2}],
            "addresses": [{"network": "blue", "mac": "02:00:00:00:00:01", "port": "a"}],
        })
    }

    fn read(document: &Value) -> Result<Snapshot, ApiError> {
        Snapshot::read(document.to_string().as_bytes())
    }

    #[test]
    fn what_is_written_is_read_again() {
        let snapshot = read(&document()).unwrap();
        assert_eq!(read(&json!(snapshot)).unwrap(), snapshot);
        assert_eq!(snapshot.ports[1].id.as_str(), "b");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field_from_the_root() {
        let duplicate = json!({"network": "blue", "mac": "02:00:00:00:00:01", "port": "b"});
        let again = json!({"adapter": "nic", "mode": "legacy", "num_vfs": 0});
        for (pointer, value, field) in [
            ("/format", json!(2), "format"),
            (
                "/networks/0/spec/kind",
                json!({"vlan": {"vid": 0}}),
                "networks[0].spec.kind.vlan.vid",
            ),
            ("/networks/0/spec/colour", json!(1), "networks[0].spec.colour"),
            ("/ports/1/spec/macs", json!(["ff:ff:ff:ff:ff:ff"]), "ports[1].spec.macs[0]"),
            ("/ports/1/id", json!("a"), "ports[1].id"),
            ("/ports/1/number", json!(1), "ports[1].number"),
            ("/networks/0/number", json!(0), "networks[0].number"),
            ("/guests/0/created", json!(10), "guests[0].created"),
            ("/guests/0/spec/qmp", json!("q"), "guests[0].spec.qmp"),
            ("/eswitches/0/mode", json!("software"), "eswitches[0].mode"),
            ("/eswitches/0/num_vfs", json!(65_536), "eswitches[0].num_vfs"),
            ("/eswitches/1", again, "eswitches[1].adapter"),
            ("/addresses/0/port", json!("c"), "addresses[0].port"),
            ("/addresses/1", duplicate, "addresses[1].mac"),
            ("/addresses/0/mac", json!("x"), "addresses[0].mac"),
            ("/revision", json!(-1), "revision"),
            ("/revision", json!(1_u64 << 53), "revision"),
            ("/colour", json!(1), "colour"),
        ] {
            let mut document = document();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            match document.pointer_mut(parent).unwrap() {
                Value::Array(items) => match items.get_mut(key.parse::<usize>().unwrap()) {
                    Some(item) => *item = value,
                    None => items.push(value),
                },
                object => object[key] = value,
            }
            let problem = read(&document).unwrap_err().problem();
            assert_eq!(problem.field.as_deref(), Some(field), "{pointer}: {problem:?}");
            assert!(problem.status == 422 && problem.remedy.is_some(), "{problem:?}");
        }
    }

    #[test]
    fn a_snapshot_without_eswitches_asks_nothing_of_any() {
        let mut document = document();
        document.as_object_mut().unwrap().remove("eswitches");
        assert_eq!(read(&document).unwrap().eswitches, []);
    }

    #[test]
    fn a_snapshot_of_another_format_is_refused_by_its_number_whatever_else_is_in_it() {
        let error = read(&json!({"format": 7, "things": []})).unwrap_err().problem();
        assert!(error.detail.contains("format 7"), "{error:?}");
        assert!(error.remedy.unwrap().contains("format 1"));
        assert_eq!(read(&json!({"revision": 1})).unwrap_err().problem().field.unwrap(), "format");
    }
}
