//! Guests: QMP sockets in, snapshots of what each guest's functions are and ask for out.
//!
//! In: a folder of QMP sockets and the guests named over the API. Out: [`GuestMessage`]s, whole
//! views only. Nothing here decides what a guest gets, nothing that a QEMU says is believed without
//! the kernel's word where it matters, and no command outside a short, read-only list is ever sent.

mod backing;
mod command_line;
mod conversation;
mod folder;
mod holdings;
mod lines;
mod outbox;
mod pace;
mod process;
mod qmp;
mod replies;
mod taps;
mod task;

#[cfg(test)]
mod double;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future, io,
    path::PathBuf,
    time::Duration,
};

use api::types::Id;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    folder::{Folder, SocketFile},
    holdings::{Holders, Host},
    outbox::Outbox,
    pace::Limits,
    process::Process,
    task::{GuestTask, Standing, Target},
};
use crate::{
    eswitch::vdpa::Vdpa,
    world::{Cause, GuestView},
};

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
    /// How often it went beyond each of its budgets since the last update: `filter_looks` are
    /// events answered later than at once; `messages`, `bytes` and `line` cost it its connection.
    pub overruns: EventCounts,
}

/// The lines of all requests that a guest with these devices can ever be sent: the allow-list, for
/// tests that prove each harmless. Ids that no device of QEMU can have are left out.
pub fn every_request(devices: &[&str]) -> Vec<String> {
    let devices: Vec<_> = devices.iter().filter_map(|id| qmp::DeviceId::new(id)).collect();
    (1..)
        .zip(qmp::Command::every(&devices))
        .map(|(id, command)| {
            let mut line = Vec::new();
            command.encode(id, &mut line);
            String::from_utf8_lossy(&line).into_owned()
        })
        .collect()
}

/// Reads bytes as they may come from a guest's QMP socket, split at `cut`, and everything that is
/// looked into behind them: for fuzzing. Never panics, whatever they are.
#[doc(hidden)]
pub fn read_untrusted(bytes: &[u8], cut: usize) {
    let limits = Limits::default();
    let now = std::time::Instant::now();
    let mut conversation = conversation::Conversation::new(limits.clone(), now);
    let mut lines = lines::Lines::new(limits.line);
    let mut asked = Vec::new();
    let (first, rest) = bytes.split_at(cut.min(bytes.len()));
    for part in [first, rest] {
        lines.room().extend_from_slice(part);
        while let Ok(Some(line)) = lines.next_line() {
            conversation.ask(now, &mut asked);
            if conversation.hear(line, now).is_err() {
                return;
            }
        }
    }
    let backends = conversation.backends();
    let _ = conversation.functions(&backing::all_unknown(&backends, ""));
    let _ = command_line::claims(bytes);
}

/// [`read_untrusted`] with the first two bytes as the place of the cut, in network order: what the
/// fuzz target and the test on its committed inputs have in common.
#[doc(hidden)]
pub fn fuzz_qmp(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first_chunk() else { return };
    read_untrusted(bytes, u16::from_be_bytes(*cut).into());
}

/// What the observer of guests has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestMessage {
    /// A guest changed, or events were counted.
    Update(Box<GuestUpdate>),
    /// Neither a socket nor the API names this guest any more. A QEMU whose socket file went is
    /// observed until it ends; a guest that only the API named is left at once.
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

/// The guests that the API names, each with its socket where it names one.
type ApiGuests = BTreeMap<Id, Option<PathBuf>>;

/// The observer of guests. It ends with the token that it was started with.
#[derive(Debug)]
pub struct GuestWatch {
    api_guests: watch::Sender<ApiGuests>,
    found_at_start: BTreeSet<Id>,
}

impl GuestWatch {
    /// Watches the sockets of `qmp_dir`, `<guest id>.sock` each, and the guests of
    /// [`Self::set_api_guests`]. The folder may come later than the daemon, go, and come back.
    /// `remembered` are guests as they were seen by an earlier daemon: what their processes were
    /// believed to hold stays theirs. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses an inotify instance.
    pub fn start(
        qmp_dir: Option<PathBuf>,
        remembered: &BTreeMap<Id, GuestView>,
        sink: mpsc::Sender<GuestMessage>,
        cancel: CancellationToken,
    ) -> Result<GuestWatch, GuestWatchError> {
        let vdpa = Vdpa::open().inspect_err(|error| {
            tracing::warn!(%error, "addresses of vDPA devices are not read");
        });
        let holders = Holders::new(Host::default(), vdpa.ok());
        for guest in remembered.values() {
            let Some(process) = guest.pid.and_then(|pid| Process::of_pid(pid).ok()) else {
                continue;
            };
            for function in guest.functions.values().filter(|f| f.backing.is_known()) {
                holders.remember(function.backing.clone(), process.clone());
            }
        }
        Self::start_with(qmp_dir, holders, sink, cancel, Limits::default())
    }

    fn start_with(
        qmp_dir: Option<PathBuf>,
        holders: Holders,
        sink: mpsc::Sender<GuestMessage>,
        cancel: CancellationToken,
        limits: Limits,
    ) -> Result<GuestWatch, GuestWatchError> {
        let (api_guests, named) = watch::channel(ApiGuests::new());
        let mut folder =
            qmp_dir.clone().map(Folder::new).transpose().map_err(GuestWatchError::Inotify)?;
        let sockets = folder.as_mut().map(Folder::scan).unwrap_or_default();
        let found_at_start = sockets.keys().cloned().collect();
        let guests = Guests {
            qmp_dir,
            folder,
            sockets,
            named,
            sink,
            limits,
            holders,
            targets: BTreeMap::new(),
            tasks: JoinSet::new(),
            task_guests: HashMap::new(),
        };
        tokio::spawn(async move { cancel.run_until_cancelled_owned(guests.observe()).await });
        Ok(GuestWatch { api_guests, found_at_start })
    }

    /// The guests whose sockets were in the folder at start. Each is told of, and until it has
    /// been [`Connection::Connecting`](crate::world::Connection::Connecting) says that nothing is
    /// known yet, which is not the same as nothing there.
    pub fn found_at_start(&self) -> &BTreeSet<Id> {
        &self.found_at_start
    }

    /// The guests that the API names, all of them: each with its QMP socket, or none where that is
    /// `<folder>/<id>.sock`.
    pub fn set_api_guests(&self, guests: BTreeMap<Id, Option<PathBuf>>) {
        self.api_guests.send_replace(guests);
    }
}

/// How long a guest whose task failed is left alone.
const AFTER_A_DEFECT: Duration = Duration::from_secs(1);

/// All guests that are known, one task each.
#[derive(Debug)]
struct Guests {
    qmp_dir: Option<PathBuf>,
    folder: Option<Folder>,
    /// What the folder held last.
    sockets: BTreeMap<Id, SocketFile>,
    named: watch::Receiver<ApiGuests>,
    sink: mpsc::Sender<GuestMessage>,
    limits: Limits,
    holders: Holders,
    targets: BTreeMap<Id, watch::Sender<Target>>,
    tasks: JoinSet<()>,
    task_guests: HashMap<tokio::task::Id, Id>,
}

impl Guests {
    /// Where each guest is to be found. A socket that the API names goes before the folder's.
    fn wanted(&mut self) -> BTreeMap<Id, Target> {
        let mut wanted: BTreeMap<Id, Target> = BTreeMap::new();
        for (id, SocketFile { path, incarnation }) in &self.sockets {
            let target = Target {
                standing: Standing::Named,
                socket: Some(path.clone()),
                incarnation: Some(*incarnation),
            };
            wanted.insert(id.clone(), target);
        }
        for (id, socket) in self.named.borrow_and_update().iter() {
            let in_folder = || Some(self.qmp_dir.as_ref()?.join(format!("{id}.sock")));
            let socket = socket.clone().or_else(in_folder);
            if wanted.get(id).is_none_or(|target| target.socket != socket) {
                let target = Target { standing: Standing::Named, socket, incarnation: None };
                wanted.insert(id.clone(), target);
            }
        }
        wanted
    }

    fn start(&mut self, id: Id, target: Target, delay: Duration) {
        let (sender, receiver) = watch::channel(target);
        let outbox = Outbox::new(id.clone(), self.sink.clone());
        let holders = self.holders.clone();
        let task = GuestTask::new(id.clone(), receiver, outbox, self.limits.clone(), holders);
        let handle = self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            task.run().await;
        });
        self.task_guests.insert(handle.id(), id.clone());
        self.targets.insert(id, sender);
    }

    /// Points every guest's task at where its guest is now.
    fn point(&mut self, delay: Duration) {
        let mut wanted = self.wanted();
        for (id, sender) in &self.targets {
            let target = wanted.remove(id);
            sender.send_if_modified(|now| {
                let target = target.unwrap_or_else(|| {
                    let from_folder = now.incarnation.is_some();
                    let standing =
                        if from_folder { Standing::Unlinked } else { Standing::Released };
                    Target { standing, ..now.clone() }
                });
                let differs = *now != target;
                *now = target;
                differs
            });
        }
        for (id, target) in wanted {
            self.start(id, target, delay);
        }
    }

    /// Never returns. All tasks end when this is dropped.
    async fn observe(mut self) {
        let mut delay = Duration::ZERO;
        loop {
            self.point(delay);
            delay = Duration::ZERO;
            let folder_changed = async {
                match &mut self.folder {
                    Some(folder) => folder.changed().await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                () = folder_changed => {
                    self.sockets = self.folder.as_mut().map(Folder::scan).unwrap_or_default();
                }
                changed = self.named.changed() => {
                    if changed.is_err() {
                        // The handle is gone; the guests that it named stay until the daemon ends.
                        future::pending::<()>().await;
                    }
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    let task = match &ended {
                        Ok((task, ())) => *task,
                        Err(defect) => defect.id(),
                    };
                    let Some(id) = self.task_guests.remove(&task) else { continue };
                    self.targets.remove(&id);
                    if let Err(defect) = ended {
                        tracing::error!(guest = %id, %defect, "the guest's task failed");
                        delay = AFTER_A_DEFECT;
                    }
                }
            }
        }
    }
}
