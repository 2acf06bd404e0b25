//! What must outlive the daemon: intent, address ownership, and the last sight of each guest.
//!
//! In: changes, from the one owner. Out: the same state after a restart. A change is durable
//! before [`Store::commit`] returns; an answer to a client comes only after that.

mod redb;

use std::{collections::BTreeMap, path::PathBuf};

use api::types::Id;

pub use self::redb::RedbStore;
use crate::{
    intent::{Change, Claims, Effect, Intent},
    world::GuestView,
};

/// Durable state.
pub trait Store: Send {
    /// Everything that was stored.
    fn load(&self) -> Result<Remembered, StoreError>;

    /// Makes `changes` durable in one transaction and applies them to `intent`; what each did. On an
    /// error both are as before.
    fn commit(
        &mut self,
        intent: &mut Intent,
        changes: &[Change],
    ) -> Result<Vec<Effect>, StoreError>;

    /// Remembers what a restart should know at once, beside `intent`, which is what was committed
    /// last. Losing the last call is harmless.
    fn remember(
        &mut self,
        intent: &Intent,
        claims: &Claims,
        guests: &BTreeMap<Id, GuestView>,
    ) -> Result<(), StoreError>;
}

/// What a store held at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// What clients want.
    pub intent: Intent,
    /// Who holds which address.
    pub claims: Claims,
    /// The guests as they were seen last.
    pub guests: BTreeMap<Id, GuestView>,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or is damaged.
    #[error(
        "{path}: {source}; if another eswitchd uses this file, stop it; if the file is damaged, \
         move it away and start again: the daemon then begins without networks and ports; restore \
         the last snapshot (eswitchctl snapshot restore FILE), or have clients put theirs again"
    )]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What redb says.
        source: Box<::redb::Error>,
    },
    /// The file was written by another version.
    #[error(
        "{path} has format {found}, this eswitchd reads format {known}; use the version that wrote \
         it, or move the file away to begin without networks and ports, and restore a snapshot \
         (eswitchctl snapshot restore FILE)"
    )]
    Format {
        /// The store's file.
        path: PathBuf,
        /// The format that the file has.
        found: u64,
        /// The format that this program writes.
        known: u64,
    },
    /// A record cannot be read.
    #[error(
        "{path}: record `{key}` cannot be read: {source}; move the file away to begin anew, and \
         restore the last snapshot (eswitchctl snapshot restore FILE)"
    )]
    Record {
        /// The store's file.
        path: PathBuf,
        /// The record.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A write failed; nothing of it was kept.
    #[error("the store could not be written, nothing was changed: {source}")]
    Write {
        /// What redb says.
        source: Box<::redb::Error>,
    },
}

impl StoreError {
    /// Whether somebody else has the file open.
    pub fn is_in_use(&self) -> bool {
        matches!(self, StoreError::Open { source, .. }
            if matches!(**source, ::redb::Error::DatabaseAlreadyOpen))
    }
}

impl StoreError {
    /// Whether the file system has no room.
    pub fn is_full(&self) -> bool {
        let StoreError::Write { source } = self else { return false };
        matches!(&**source, ::redb::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull)
    }
}
