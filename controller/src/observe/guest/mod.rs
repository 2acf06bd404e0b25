//! Guests: QMP sockets in, snapshots of what each guest's functions are and ask for out.
//!
//! In: a folder of QMP sockets and the guests named over the API. Out: [`GuestMessage`]s, whole
//! views only. Nothing here decides what a guest gets, nothing that a QEMU says is believed without
//! the kernel's word where it matters, and no command outside a short, read-only list is ever sent.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use api::types::Id;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::world::{Cause, GuestView};

/// How many QMP events of each kind a guest sent since its last update. The kinds are a fixed set;
/// whatever is not in it counts as `other`.
pub type EventCounts = BTreeMap<&'static str, u64>;

/// A guest as it looks now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestUpdate {
    /// The guest.
    pub guest: Id,
    /// What it is, whole: it replaces what was known before.
    pub view: GuestView,
    /// Why the observer looked.
    pub cause: Cause,
    /// The events since the last update.
    pub counts: EventCounts,
}

/// What the observer of guests has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestMessage {
    /// A guest changed, or events were counted.
    Update(Box<GuestUpdate>),
    /// Neither a socket nor the API names this guest any more, and its QEMU is gone.
    Forgotten(Id),
}

/// Why guests cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum GuestWatchError {
    /// The kernel refuses an inotify instance.
    #[error(
        "inotify is not available: {0}; raise fs.inotify.max_user_instances or end other watchers"
    )]
    Inotify(#[source] io::Error),
}

/// The observer of guests. It ends with the token that it was started with.
#[derive(Debug)]
pub struct GuestWatch {
    api_guests: watch::Sender<BTreeMap<Id, Option<PathBuf>>>,
}

impl GuestWatch {
    /// Watches the sockets of `qmp_dir`, `<guest id>.sock` each, and the guests of
    /// [`Self::set_api_guests`]. The folder may come later than the daemon, go, and come back.
    /// Needs a tokio runtime.
    pub fn start(
        qmp_dir: Option<PathBuf>,
        sink: mpsc::Sender<GuestMessage>,
        cancel: CancellationToken,
    ) -> Result<GuestWatch, GuestWatchError> {
        let (api_guests, named) = watch::channel(BTreeMap::new());
        let _ = (qmp_dir.as_deref().map(Path::exists), sink, cancel, named);
        Ok(GuestWatch { api_guests })
    }

    /// The guests that the API names, all of them: each with its QMP socket, or none where that is
    /// `<folder>/<id>.sock`.
    pub fn set_api_guests(&self, guests: BTreeMap<Id, Option<PathBuf>>) {
        self.api_guests.send_replace(guests);
    }
}
