//! The store in one redb file: a table a resource kind, JSON records, one transaction a change.
//!
//! A file is checked whole when it is opened: what was damaged outside is refused, never believed.
//! A write that failed leaves redb unusable until the file is opened again; the next write does that,
//! and writes everything, because nobody knows how far the failed one came.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use api::types::{Id, MacAddr};
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use super::{Remembered, Store, StoreError};
use crate::{
    intent::{Change, Claims, Effect, Intent, Table},
    world::GuestView,
};

/// Brings the tables of one format into the form of the next.
type Migration = fn(&WriteTransaction) -> Result<(), redb::Error>;

/// How to come to each format from the one before: the first leads from format 1 to 2. A change of
/// the tables below, or of what is in them, adds one.
const MIGRATIONS: &[Migration] = &[];

/// The format of a file with which so many migrations are done.
fn format_after(migrations: &[Migration]) -> u64 {
    migrations.len() as u64 + 1
}

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
    /// None after a write has failed.
    database: Option<Database>,
}

impl RedbStore {
    /// Opens or makes the file, and brings an older one into today's format.
    ///
    /// # Errors
    /// The file is damaged, in use, not writable or of another format: the message says what to do.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, MIGRATIONS)
    }

    fn open_with(path: &Path, migrations: &[Migration]) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.into(), source: Box::new(source) };
        let database = database(path).map_err(failed)?;
        let found = migrate(&database, migrations).map_err(failed)?;
        let known = format_after(migrations);
        if !(1..=known).contains(&found) {
            return Err(StoreError::Format { path: path.into(), found, known });
        }
        if found < known {
            tracing::info!(path = %path.display(), from = found, to = known, "store migrated");
        }
        Ok(RedbStore { path: path.into(), database: Some(database) })
    }

    fn read<T>(
        &self,
        body: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let read = || -> Result<T, redb::Error> {
            let database = self.database.as_ref().ok_or(redb::Error::PreviousIo)?;
            body(&database.begin_read()?)
        };
        read().map_err(|source| self.open_error(source))
    }

    fn open_error(&self, source: redb::Error) -> StoreError {
        StoreError::Open { path: self.path.clone(), source: Box::new(source) }
    }

    /// A table's records, still as JSON.
    fn records(
        &self,
        table: TableDefinition<'_, &str, &[u8]>,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.read(|transaction| {
            transaction
                .open_table(table)?
                .iter()?
                .map(|entry| {
                    let (key, value) = entry?;
                    Ok((key.value().to_owned(), value.value().to_owned()))
                })
                .collect()
        })
    }

    fn parsed<T: DeserializeOwned, All: FromIterator<(Id, T)>>(
        &self,
        table: TableDefinition<'_, &str, &[u8]>,
    ) -> Result<All, StoreError> {
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
        self.read(|transaction| {
            let mut claims = Claims::default();
            for entry in transaction.open_table(CLAIMS)?.iter()? {
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
        })
    }

    /// One transaction of `body`. After a failure the file is opened again first, and `everything`
    /// is written in the place of `body`.
    fn write(
        &mut self,
        body: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
        everything: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let write = |known: Option<Database>| -> Result<Database, redb::Error> {
            let (database, again) = match known {
                Some(database) => (database, false),
                None => (database(&self.path)?, true),
            };
            let transaction = database.begin_write()?;
            if again {
                everything(&transaction)?
            } else {
                body(&transaction)?
            }
            transaction.commit()?;
            Ok(database)
        };
        let known = self.database.take();
        self.database =
            Some(write(known).map_err(|source| StoreError::Write { source: Box::new(source) })?);
        Ok(())
    }
}

/// Opens or makes a file, and checks it whole.
fn database(path: &Path) -> Result<Database, redb::Error> {
    Ok(Builder::new().set_check_integrity_on_open(true).create(path)?)
}

/// Makes the tables, and brings them into today's format in one transaction; the format that was
/// found. Nothing is changed in a file of a format that is not known.
fn migrate(database: &Database, migrations: &[Migration]) -> Result<u64, redb::Error> {
    let known = format_after(migrations);
    let transaction = database.begin_write()?;
    let found = transaction.open_table(META)?.get("format")?.map(|value| value.value());
    let found = found.unwrap_or(known);
    let undone =
        usize::try_from(found).ok().and_then(|found| migrations.get(found.wrapping_sub(1)..));
    let Some(undone) = undone else {
        transaction.abort()?;
        return Ok(found);
    };
    for migration in undone {
        migration(&transaction)?;
    }
    transaction.open_table(META)?.insert("format", known)?;
    for table in [NETWORKS, PORTS, GUESTS, ESWITCHES, SEEN] {
        transaction.open_table(table)?;
    }
    transaction.open_table(CLAIMS)?;
    transaction.commit()?;
    Ok(found)
}

/// What is to be removed from a table, and what to be inserted, so that it holds these records and
/// no others. What is there already is in neither.
fn differences<V: redb::Value + 'static, Record: AsRef<[u8]>>(
    table: &impl ReadableTable<&'static str, V>,
    mut wanted: BTreeMap<String, Record>,
) -> Result<(Vec<String>, BTreeMap<String, Record>), redb::Error> {
    let mut gone = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        let there = value.value();
        match wanted.get(key.value()) {
            None => gone.push(key.value().to_owned()),
            Some(record) if record.as_ref() == V::as_bytes(&there).as_ref() => {
                wanted.remove(key.value());
            }
            Some(_) => {}
        }
    }
    Ok((gone, wanted))
}

/// Has a table hold these records, and no others.
fn put_all<'r, Value: Serialize + 'r>(
    transaction: &WriteTransaction,
    table: TableDefinition<'_, &'static str, &'static [u8]>,
    records: impl IntoIterator<Item = (&'r Id, &'r Value)>,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(table)?;
    let wanted = records.into_iter().map(|(id, record)| Ok((id.to_string(), json(record)?)));
    let (gone, new) = differences(&table, wanted.collect::<Result<_, redb::Error>>()?)?;
    for id in gone {
        table.remove(id.as_str())?;
    }
    for (id, record) in new {
        table.insert(id.as_str(), record.as_slice())?;
    }
    Ok(())
}

fn put_intent(transaction: &WriteTransaction, intent: &Intent) -> Result<(), redb::Error> {
    put_all(transaction, NETWORKS, &intent.networks)?;
    put_all(transaction, PORTS, &intent.ports)?;
    put_all(transaction, GUESTS, &intent.guests)?;
    put_all(transaction, ESWITCHES, &intent.eswitches)?;
    put_revision(transaction, intent)
}

fn put_revision(transaction: &WriteTransaction, intent: &Intent) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert("revision", intent.revision)?;
    Ok(())
}

fn put_claims(transaction: &WriteTransaction, claims: &Claims) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(CLAIMS)?;
    let wanted = claims
        .iter()
        .map(|((network, mac), port)| (format!("{network} {mac}"), port.to_string()))
        .collect();
    let (gone, new) = differences(&table, wanted)?;
    for address in gone {
        table.remove(address.as_str())?;
    }
    for (address, port) in new {
        table.insert(address.as_str(), port.as_str())?;
    }
    Ok(())
}

/// Writes the record of `id` as it stands in `stored`, or removes it.
fn put<Spec: Serialize>(
    transaction: &WriteTransaction,
    table: TableDefinition<'_, &str, &[u8]>,
    id: &Id,
    stored: &Table<Spec>,
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
        let revision = self.read(|transaction| {
            let revision = transaction.open_table(META)?.get("revision")?;
            Ok(revision.map_or(0, |value| value.value()))
        })?;
        Ok(Remembered {
            intent: Intent {
                revision,
                networks: self.parsed(NETWORKS)?,
                ports: self.parsed(PORTS)?,
                guests: self.parsed(GUESTS)?,
                eswitches: self.parsed(ESWITCHES)?,
            },
            claims: self.claims()?,
            guests: self.parsed(SEEN)?,
        })
    }

    fn commit(
        &mut self,
        intent: &mut Intent,
        changes: &[Change],
    ) -> Result<Vec<Effect>, StoreError> {
        let mut after = intent.clone();
        let effects: Vec<Effect> =
            changes.iter().map(|change| after.apply(change.clone())).collect();
        let is_new = |effect: &Effect| !matches!(effect, Effect::Unchanged | Effect::Absent);
        if !effects.iter().any(is_new) {
            return Ok(effects);
        }
        let claims = |transaction: &WriteTransaction| {
            changes.iter().filter_map(Change::claims).try_for_each(|c| put_claims(transaction, c))
        };
        self.write(
            |transaction| {
                for change in changes {
                    match change {
                        Change::Network(id, _) => put(transaction, NETWORKS, id, &after.networks)?,
                        Change::Port(id, _) => put(transaction, PORTS, id, &after.ports)?,
                        Change::Guest(id, _) => put(transaction, GUESTS, id, &after.guests)?,
                        Change::Eswitch(id, _) => {
                            put(transaction, ESWITCHES, id, &after.eswitches)?;
                        }
                        Change::Everything(_) => put_intent(transaction, &after)?,
                    }
                }
                claims(transaction)?;
                put_revision(transaction, &after)
            },
            |transaction| put_intent(transaction, &after).and_then(|()| claims(transaction)),
        )?;
        *intent = after;
        Ok(effects)
    }

    fn remember(
        &mut self,
        intent: &Intent,
        claims: &Claims,
        guests: &BTreeMap<Id, GuestView>,
    ) -> Result<(), StoreError> {
        let remember = |transaction: &WriteTransaction| {
            put_claims(transaction, claims)?;
            put_all(transaction, SEEN, guests)
        };
        self.write(remember, |transaction| {
            put_intent(transaction, intent).and_then(|()| remember(transaction))
        })
    }
}

#[cfg(test)]
mod tests {
    use api::resources::{EswitchMode, EswitchShape, GuestSpec, NetworkKind, NetworkSpec};

    use super::*;
    use crate::intent::{EswitchOrder, OrderStage, Restoration};

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn flat() -> NetworkSpec {
        NetworkSpec {
            kind: NetworkKind::Flat,
            adapter: None,
            reserved_macs: Vec::new(),
            unknown_unicast: Default::default(),
            multicast: Default::default(),
            labels: BTreeMap::new(),
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
            store.commit(&mut intent, &[Change::Network(id("net"), Some(flat()))]).unwrap();
            store
                .commit(&mut intent, &[Change::Guest(id("vm"), Some(GuestSpec::default()))])
                .unwrap();
            store.commit(&mut intent, &[Change::Guest(id("vm"), None)]).unwrap();
            let shape = |num_vfs| EswitchShape { mode: EswitchMode::Legacy, num_vfs };
            let stage = OrderStage::Back { why: "no".into() };
            let order = EswitchOrder { wanted: shape(4), before: shape(2), stage };
            store.commit(&mut intent, &[Change::Eswitch(id("nic"), Some(order))]).unwrap();
            store.remember(&intent, &claims, &guests).unwrap();
        }
        let remembered = RedbStore::open(&path).unwrap().load().unwrap();
        assert_eq!(remembered, Remembered { intent, claims, guests });
        assert_eq!(remembered.intent.revision, 4);
    }

    #[test]
    fn what_is_remembered_again_is_written_only_where_it_differs() {
        let held = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, port)| ((*key).to_owned(), (*port).to_owned())).collect()
        };
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&dir.path().join("state.redb")).unwrap();
        let transaction = store.database.as_ref().unwrap().begin_write().unwrap();
        let mut table = transaction.open_table(CLAIMS).unwrap();
        for (key, port) in [("net a", "p"), ("net b", "q"), ("net c", "r")] {
            table.insert(key, port).unwrap();
        }
        let wanted = held(&[("net a", "p"), ("net c", "s"), ("net d", "t")]);
        let (gone, new) = differences(&table, wanted).unwrap();
        assert_eq!(
            (gone, new),
            (vec!["net b".to_owned()], held(&[("net c", "s"), ("net d", "t")]))
        );
    }

    #[test]
    fn what_is_remembered_no_longer_is_gone_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let intent = Intent::default();
        let claims = |port: &str, last: &[u8]| -> Claims {
            let held = last.iter().map(|last| (id("net"), MacAddr([2, 0, 0, 0, 0, *last])));
            held.map(|address| (address, id(port))).collect()
        };
        let guests = |names: &[&str], pid| -> BTreeMap<Id, GuestView> {
            let view = GuestView { pid: Some(pid), ..GuestView::default() };
            names.iter().map(|name| (id(name), view.clone())).collect()
        };
        let mut store = RedbStore::open(&path).unwrap();
        store.remember(&intent, &claims("p", &[1, 2, 3]), &guests(&["a", "b"], 7)).unwrap();
        let (claims, guests) = (claims("q", &[2, 4]), guests(&["b", "c"], 8));
        store.remember(&intent, &claims, &guests).unwrap();
        drop(store);
        let remembered = RedbStore::open(&path).unwrap().load().unwrap();
        assert_eq!(remembered, Remembered { intent, claims, guests });
    }

    /// Sets numbers in `meta` behind the store's back.
    fn set_meta(path: &Path, key: &str, value: u64) {
        let database = database(path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert(key, value).unwrap();
        transaction.commit().unwrap();
    }

    fn meta(path: &Path, key: &str) -> Option<u64> {
        let database = database(path).unwrap();
        let meta = database.begin_read().unwrap().open_table(META).unwrap();
        meta.get(key).unwrap().map(|value| value.value())
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        for bytes in [vec![0x5a; 8192], b"{}".to_vec(), vec![0; 8192]] {
            std::fs::write(&path, bytes).unwrap();
            let error = RedbStore::open(&path).unwrap_err().to_string();
            assert!(error.contains("state.redb") && error.contains("move it away"), "{error}");
            assert!(error.contains("eswitchctl snapshot restore"), "{error}");
        }
    }

    #[test]
    fn a_flipped_byte_anywhere_is_refused_or_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut intent = Intent::default();
        {
            let mut store = RedbStore::open(&path).unwrap();
            for number in 0..20 {
                let change = Change::Network(id(&format!("net-{number}")), Some(flat()));
                store.commit(&mut intent, &[change]).unwrap();
            }
        }
        let expected = RedbStore::open(&path).unwrap().load().unwrap();
        assert_eq!(expected.intent, intent);
        let whole = std::fs::read(&path).unwrap();
        let used: Vec<usize> =
            whole.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
        // The header with its two commit slots, and what is in use: all of it in the long run.
        let long = std::env::var_os("ESWITCHD_LONG").is_some();
        let (header, rest) = if long { (1, 1) } else { (3, 101) };
        let places = (0..320).step_by(header).chain(used.into_iter().step_by(rest));
        let (mut refused, mut same) = (0, 0);
        for at in places {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            std::fs::write(&path, bytes).unwrap();
            match RedbStore::open(&path).and_then(|store| store.load()) {
                Ok(found) => {
                    assert!(found == expected, "byte {at} changed what is read: {found:?}");
                    same += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains("move"), "byte {at}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 50 && same > 0, "{refused} refused, {same} harmless");
    }

    #[test]
    fn a_file_cut_short_is_refused_or_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut intent = Intent::default();
        RedbStore::open(&path)
            .unwrap()
            .commit(&mut intent, &[Change::Network(id("net"), Some(flat()))])
            .unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in (1..whole.len()).step_by(whole.len() / 200) {
            std::fs::write(&path, &whole[..length]).unwrap();
            if let Ok(found) = RedbStore::open(&path).and_then(|store| store.load()) {
                assert_eq!(found.intent, intent, "cut to {length} bytes");
            }
        }
    }

    #[test]
    fn a_file_of_a_later_format_is_refused_by_number_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        drop(RedbStore::open(&path).unwrap());
        for format in [2, 99, 0, u64::MAX] {
            set_meta(&path, "format", format);
            let error = RedbStore::open(&path).unwrap_err().to_string();
            let known = error.contains(&format!("format {format}")) && error.contains("format 1");
            assert!(known, "{error}");
            assert_eq!(meta(&path, "format"), Some(format));
        }
    }

    /// Notes in `meta` that it ran, and after how many others.
    fn note(transaction: &WriteTransaction, name: &str) -> Result<(), redb::Error> {
        let mut meta = transaction.open_table(META)?;
        let ran = meta.get("ran")?.map_or(0, |ran| ran.value()) + 1;
        meta.insert("ran", ran)?;
        meta.insert(name, ran)?;
        Ok(())
    }

    #[test]
    fn a_file_of_an_earlier_format_is_migrated_step_by_step_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut intent = Intent::default();
        RedbStore::open(&path)
            .unwrap()
            .commit(&mut intent, &[Change::Network(id("net"), Some(flat()))])
            .unwrap();
        assert_eq!(meta(&path, "format"), Some(1));
        let steps: [Migration; 3] = [|t| note(t, "to 2"), |t| note(t, "to 3"), |t| note(t, "to 4")];
        for _ in 0..2 {
            let store = RedbStore::open_with(&path, &steps[..2]).unwrap();
            assert_eq!(store.load().unwrap().intent, intent);
        }
        assert_eq!(meta(&path, "format"), Some(3));
        drop(RedbStore::open_with(&path, &steps).unwrap());
        let ran = ["to 2", "to 3", "to 4", "ran", "format"].map(|key| meta(&path, key).unwrap());
        assert_eq!(ran, [1, 2, 3, 3, 4]);
        let error = RedbStore::open_with(&path, &steps[..1]).unwrap_err().to_string();
        assert!(error.contains("format 4") && error.contains("format 2"), "{error}");
    }

    #[test]
    fn a_new_file_has_todays_format_and_is_not_migrated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let steps: [Migration; 1] = [|_| Err(redb::Error::Corrupted("not to be run".into()))];
        drop(RedbStore::open_with(&path, &steps).unwrap());
        assert_eq!(meta(&path, "format"), Some(2));
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        drop(RedbStore::open(&path).unwrap());
        let steps: [Migration; 2] =
            [|t| note(t, "to 2"), |_| Err(redb::Error::Corrupted("half way".into()))];
        let error = RedbStore::open_with(&path, &steps).unwrap_err().to_string();
        assert!(error.contains("half way"), "{error}");
        assert_eq!((meta(&path, "format"), meta(&path, "to 2")), (Some(1), None));
    }

    #[test]
    fn revisions_grow_over_the_last_resources_end_restarts_and_restores() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut last = 0;
        let mut grown = |revision: u64| {
            assert!(revision > last, "{revision} after {last}");
            last = revision;
        };
        let snapshot = Intent { revision: 40, ..Intent::default() };
        for _ in 0..3 {
            let mut store = RedbStore::open(&path).unwrap();
            let mut intent = store.load().unwrap().intent;
            assert!(intent.networks.is_empty());
            for spec in [Some(flat()), None, Some(flat())] {
                store.commit(&mut intent, &[Change::Network(id("net"), spec)]).unwrap();
                grown(intent.revision);
            }
            let claims = Claims::default();
            let restoration = Box::new(Restoration { intent: snapshot.clone(), claims });
            store.commit(&mut intent, &[Change::Everything(restoration)]).unwrap();
            grown(intent.revision);
        }
    }

    #[test]
    fn a_restored_snapshot_is_there_after_a_restart_with_who_holds_which_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut saved = Intent::default();
        saved.apply(Change::Network(id("blue"), Some(flat())));
        let mut claims = Claims::default();
        claims.give((id("blue"), MacAddr([2, 0, 0, 0, 0, 1])), id("p"));
        let mut intent = Intent::default();
        {
            let mut store = RedbStore::open(&path).unwrap();
            store.commit(&mut intent, &[Change::Network(id("red"), Some(flat()))]).unwrap();
            let restoration =
                Box::new(Restoration { intent: saved.clone(), claims: claims.clone() });
            store.commit(&mut intent, &[Change::Everything(restoration)]).unwrap();
        }
        let remembered = RedbStore::open(&path).unwrap().load().unwrap();
        assert_eq!((&remembered.intent, &remembered.claims), (&intent, &claims));
        let names: Vec<&Id> = remembered.intent.networks.keys().collect();
        assert_eq!(names, [&id("blue")]);
    }

    #[test]
    fn after_a_write_that_failed_the_next_one_writes_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut intent = Intent::default();
        {
            let mut store = RedbStore::open(&path).unwrap();
            store.commit(&mut intent, &[Change::Network(id("a"), Some(flat()))]).unwrap();
            // As far as anybody knows, this one came to the disk, and its answer said that it failed.
            let mut lost = intent.clone();
            store.commit(&mut lost, &[Change::Network(id("lost"), Some(flat()))]).unwrap();
            let fails = |_: &WriteTransaction| Err(redb::Error::Corrupted("a test".into()));
            assert!(store.write(fails, |_| Ok(())).is_err());
            store.commit(&mut intent, &[Change::Network(id("b"), Some(flat()))]).unwrap();
        }
        assert_eq!(RedbStore::open(&path).unwrap().load().unwrap().intent, intent);
        assert!(!intent.networks.contains_key(&id("lost")));
    }
}
