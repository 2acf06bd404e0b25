//! The store in one redb file: a table a resource kind, JSON records, one transaction a change.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use api::types::{Id, MacAddr};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use super::{Remembered, Store, StoreError};
use crate::{
    intent::{Change, Claims, Effect, Intent, Stored},
    world::GuestView,
};

/// Version of the tables below. A change of their form raises it and brings a migration.
const FORMAT: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const NETWORKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("networks");
const PORTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("ports");
const GUESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("guests");
/// Port by network and MAC address: `network mac` (an id has no space).
const CLAIMS: TableDefinition<'_, &str, &str> = TableDefinition::new("claims");
const ESWITCHES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("eswitches");
const SEEN: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("seen");

/// A [`Store`] in a redb file.
#[derive(Debug)]
pub struct RedbStore {
    path: PathBuf,
    database: Database,
}

impl RedbStore {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// The file is damaged, in use, not writable or of another format: the message says what to do.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let opened = || -> Result<(Database, u64), redb::Error> {
            let database = Database::create(path)?;
            let write = database.begin_write()?;
            let format = {
                let mut meta = write.open_table(META)?;
                let found = meta.get("format")?.map(|value| value.value());
                if found.is_none() {
                    meta.insert("format", FORMAT)?;
                }
                for table in [NETWORKS, PORTS, GUESTS, ESWITCHES, SEEN] {
                    write.open_table(table)?;
                }
                write.open_table(CLAIMS)?;
                found.unwrap_or(FORMAT)
            };
            write.commit()?;
            Ok((database, format))
        };
        let (database, format) = opened()
            .map_err(|source| StoreError::Open { path: path.into(), source: Box::new(source) })?;
        if format != FORMAT {
            return Err(StoreError::Format { path: path.into(), found: format, known: FORMAT });
        }
        Ok(RedbStore { path: path.into(), database })
    }

    fn open_error(&self, source: redb::Error) -> StoreError {
        StoreError::Open { path: self.path.clone(), source: Box::new(source) }
    }

    /// A table's records, still as JSON.
    fn records(
        &self,
        table: TableDefinition<'_, &str, &[u8]>,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(table)?;
            table
                .iter()?
                .map(|entry| {
                    let (key, value) = entry?;
                    Ok((key.value().to_owned(), value.value().to_owned()))
                })
                .collect()
        };
        read().map_err(|source| self.open_error(source))
    }

    fn parsed<T: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &str, &[u8]>,
    ) -> Result<BTreeMap<Id, T>, StoreError> {
        self.records(table)?
            .into_iter()
            .map(|(key, json)| {
                let record = |source| StoreError::Record {
                    path: self.path.clone(),
                    key: key.clone(),
                    source,
                };
                let id = serde_json::from_value(key.clone().into()).map_err(record)?;
                Ok((id, serde_json::from_slice(&json).map_err(record)?))
            })
            .collect()
    }

    fn claims(&self) -> Result<Claims, StoreError> {
        let read = || -> Result<Claims, redb::Error> {
            let table = self.database.begin_read()?.open_table(CLAIMS)?;
            let mut claims = Claims::default();
            for entry in table.iter()? {
                let (key, port) = entry?;
                let parsed = key.value().split_once(' ').and_then(|(network, mac)| {
                    Some((
                        (network.parse().ok()?, mac.parse::<MacAddr>().ok()?),
                        port.value().parse().ok()?,
                    ))
                });
                if let Some((key, port)) = parsed {
                    claims.give(key, port);
                }
            }
            Ok(claims)
        };
        read().map_err(|source| self.open_error(source))
    }

    fn write(
        &self,
        body: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            body(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|source| StoreError::Write { source: Box::new(source) })
    }
}

/// Writes the record of `id` as it stands in `stored`, or removes it.
fn put<Spec: Serialize>(
    transaction: &WriteTransaction,
    table: TableDefinition<'_, &str, &[u8]>,
    id: &Id,
    stored: &BTreeMap<Id, Stored<Spec>>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(table)?;
    match stored.get(id) {
        Some(stored) => {
            table.insert(id.as_str(), json(stored)?.as_slice())?;
        }
        None => {
            table.remove(id.as_str())?;
        }
    }
    Ok(())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::Io(error.into()))
}

impl Store for RedbStore {
    fn load(&self) -> Result<Remembered, StoreError> {
        let revision = || -> Result<u64, redb::Error> {
            let meta = self.database.begin_read()?.open_table(META)?;
            Ok(meta.get("revision")?.map_or(0, |value| value.value()))
        };
        Ok(Remembered {
            intent: Intent {
                revision: revision().map_err(|source| self.open_error(source))?,
                networks: self.parsed(NETWORKS)?,
                ports: self.parsed(PORTS)?,
                guests: self.parsed(GUESTS)?,
                eswitches: self.parsed(ESWITCHES)?,
            },
            claims: self.claims()?,
            guests: self.parsed(SEEN)?,
        })
    }

    fn commit(&mut self, intent: &mut Intent, change: Change) -> Result<Effect, StoreError> {
        let mut after = intent.clone();
        let effect = after.apply(change.clone());
        if matches!(effect, Effect::Unchanged | Effect::Absent) {
            return Ok(effect);
        }
        self.write(|transaction| {
            match &change {
                Change::Network(id, _) => put(transaction, NETWORKS, id, &after.networks)?,
                Change::Port(id, _) => put(transaction, PORTS, id, &after.ports)?,
                Change::Guest(id, _) => put(transaction, GUESTS, id, &after.guests)?,
                Change::Eswitch(id, _) => put(transaction, ESWITCHES, id, &after.eswitches)?,
            }
            transaction.open_table(META)?.insert("revision", after.revision)?;
            Ok(())
        })?;
        *intent = after;
        Ok(effect)
    }

    fn remember(
        &mut self,
        claims: &Claims,
        guests: &BTreeMap<Id, GuestView>,
    ) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(CLAIMS)?;
            table.retain(|_, _| false)?;
            for ((network, mac), port) in claims.iter() {
                table.insert(format!("{network} {mac}").as_str(), port.as_str())?;
            }
            drop(table);
            let mut table = transaction.open_table(SEEN)?;
            table.retain(|_, _| false)?;
            for (id, guest) in guests {
                table.insert(id.as_str(), json(guest)?.as_slice())?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use api::resources::{EswitchMode, EswitchShape, GuestSpec, NetworkKind, NetworkSpec};

    use super::*;
    use crate::intent::{EswitchOrder, OrderStage};

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn flat() -> NetworkSpec {
        NetworkSpec {
            kind: NetworkKind::Flat,
            adapter: None,
            reserved_macs: Vec::new(),
            unknown_unicast: Default::default(),
        }
    }

    #[test]
    fn what_was_committed_and_remembered_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut intent = Intent::default();
        let mut claims = Claims::default();
        claims.give((id("net"), MacAddr([2, 0, 0, 0, 0, 1])), id("p"));
        let guests = BTreeMap::from([(id("vm"), GuestView { pid: Some(7), ..Default::default() })]);
        {
            let mut store = RedbStore::open(&path).unwrap();
            store.commit(&mut intent, Change::Network(id("net"), Some(flat()))).unwrap();
            store.commit(&mut intent, Change::Guest(id("vm"), Some(GuestSpec::default()))).unwrap();
            store.commit(&mut intent, Change::Guest(id("vm"), None)).unwrap();
            let shape = |num_vfs| EswitchShape { mode: EswitchMode::Legacy, num_vfs };
            let stage = OrderStage::Back { why: "no".into() };
            let order = EswitchOrder { wanted: shape(4), before: shape(2), stage };
            store.commit(&mut intent, Change::Eswitch(id("nic"), Some(order))).unwrap();
            store.remember(&claims, &guests).unwrap();
        }
        let remembered = RedbStore::open(&path).unwrap().load().unwrap();
        assert_eq!(remembered, Remembered { intent, claims, guests });
        assert_eq!(remembered.intent.revision, 4);
    }

    #[test]
    fn a_damaged_file_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        std::fs::write(&path, vec![0x5a; 8192]).unwrap();
        let error = RedbStore::open(&path).unwrap_err().to_string();
        assert!(error.contains("state.redb") && error.contains("move it away"), "{error}");
    }

    #[test]
    fn a_file_of_another_format_is_refused_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let store = RedbStore::open(&path).unwrap();
            store
                .write(|transaction| {
                    transaction.open_table(META)?.insert("format", 99)?;
                    Ok(())
                })
                .unwrap();
        }
        let error = RedbStore::open(&path).unwrap_err().to_string();
        assert!(error.contains("format 99") && error.contains("format 1"), "{error}");
    }
}
