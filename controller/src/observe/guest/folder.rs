//! A folder of QMP sockets, watched by inotify.
//!
//! In: a path that may not exist yet, go away and come back. Out: the sockets in it, whenever
//! something may be different. An event never says what is there: the folder is read again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use api::types::Id;
use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};

/// What tells a socket file from a later one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Incarnation {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

/// A socket of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SocketFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Which it is.
    pub(crate) incarnation: Incarnation,
}

/// How often the folder is read though nothing was heard.
const AUDIT: Duration = Duration::from_secs(60);

/// How often it is read where the kernel refuses to watch it.
const UNWATCHED: Duration = Duration::from_secs(2);

/// Events that are taken together at most.
const BATCH: usize = 4096;

/// The folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    events: EventStream<Vec<u8>>,
    watched: Option<WatchDescriptor>,
    /// Names that were already complained about.
    ignored: BTreeSet<OsString>,
}

/// The folder itself, or the nearest folder above it that exists.
fn nearest_existing(path: &Path) -> &Path {
    let above = path.ancestors().find(|above| above.is_dir()).unwrap_or(Path::new("."));
    if above.as_os_str().is_empty() { Path::new(".") } else { above }
}

impl Folder {
    /// Watches `path`. Needs a tokio runtime.
    pub(crate) fn new(path: PathBuf) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream(vec![0; 16 * 1024])?;
        Ok(Folder { path, events, watched: None, ignored: BTreeSet::new() })
    }

    /// Watches the folder or, while it is not there, where it will appear. Watching what is
    /// watched already changes nothing in the kernel.
    fn watch(&mut self) {
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut watches = self.events.watches();
        // Between the look and the watch the next folder of the path may have come.
        for _ in 0..16 {
            let at = nearest_existing(&self.path);
            match watches.add(at, mask) {
                Ok(descriptor) => {
                    if let Some(before) = self.watched.replace(descriptor.clone())
                        && before != descriptor
                    {
                        // It fails where the watched folder is gone, and its watch with it.
                        let _ = watches.remove(before);
                    }
                }
                Err(error) => {
                    self.watched = None;
                    tracing::warn!(folder = %at.display(), %error,
                        "the folder of QMP sockets cannot be watched and is polled; raise \
                         fs.inotify.max_user_watches");
                    return;
                }
            }
            if nearest_existing(&self.path) == at {
                return;
            }
        }
    }

    /// The sockets that are there now. What comes or goes later wakes [`Self::changed`].
    pub(crate) fn scan(&mut self) -> BTreeMap<Id, SocketFile> {
        self.watch();
        let mut sockets = BTreeMap::new();
        let mut ignored = BTreeSet::new();
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(folder = %self.path.display(), %error,
                        "the folder of QMP sockets cannot be read; let the daemon read it");
                }
                return sockets;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            // A file that went meanwhile is not there.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if !metadata.file_type().is_socket() {
                continue;
            }
            let file_name = entry.file_name();
            let id = file_name.to_str().and_then(|name| name.strip_suffix(".sock"));
            let Some(id) = id.and_then(|id| id.parse::<Id>().ok()) else {
                if !self.ignored.contains(&file_name) {
                    tracing::warn!(socket = %path.display(),
                        "ignored: its name is not <guest id>.sock, with an id of 1 to 128 letters, \
                         digits or . _ : -");
                }
                ignored.insert(file_name);
                continue;
            };
            let incarnation = Incarnation {
                device: metadata.dev(),
                inode: metadata.ino(),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            };
            sockets.insert(id, SocketFile { path, incarnation });
        }
        self.ignored = ignored;
        sockets
    }

    /// Waits until something may be different.
    pub(crate) async fn changed(&mut self) {
        let patience = if self.watched.is_some() { AUDIT } else { UNWATCHED };
        match tokio::time::timeout(patience, self.events.next()).await {
            Err(_) => {}
            Ok(Some(Ok(_))) => {
                // Whatever came together, overflow included, is one reason to look.
                for _ in 0..BATCH {
                    let Some(Some(Ok(_))) = self.events.next().now_or_never() else { break };
                }
            }
            Ok(failed) => {
                tracing::error!(?failed, "inotify failed; the folder of QMP sockets is polled");
                tokio::time::sleep(UNWATCHED).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    async fn scan_until(folder: &mut Folder, names: &[&str]) {
        let wait = async {
            loop {
                let seen = folder.scan();
                if seen.keys().map(Id::as_str).eq(names.iter().copied()) {
                    return;
                }
                folder.changed().await;
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(found.is_ok(), "the folder never showed {names:?}");
    }

    #[tokio::test]
    async fn sockets_are_seen_as_they_come_and_go() {
        let scratch = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(scratch.path().into()).unwrap();
        scan_until(&mut folder, &[]).await;
        let path = scratch.path().join("vm1.sock");
        let later = path.clone();
        let listener = std::thread::spawn(move || UnixListener::bind(later).unwrap());
        scan_until(&mut folder, &["vm1"]).await;
        drop(listener.join().unwrap());
        fs::remove_file(&path).unwrap();
        scan_until(&mut folder, &[]).await;
    }

    #[tokio::test]
    async fn a_folder_may_come_late_go_and_come_back() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b");
        let mut folder = Folder::new(path.clone()).unwrap();
        for _ in 0..2 {
            scan_until(&mut folder, &[]).await;
            let made = path.clone();
            let make = std::thread::spawn(move || {
                fs::create_dir_all(&made).unwrap();
                UnixListener::bind(made.join("vm1.sock")).unwrap()
            });
            scan_until(&mut folder, &["vm1"]).await;
            make.join().unwrap();
            fs::remove_dir_all(scratch.path().join("a")).unwrap();
        }
        scan_until(&mut folder, &[]).await;
    }

    #[tokio::test]
    async fn a_socket_that_was_made_anew_is_another() {
        let scratch = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(scratch.path().into()).unwrap();
        let path = scratch.path().join("vm1.sock");
        let _first = UnixListener::bind(&path).unwrap();
        let before = folder.scan();
        assert_eq!(before, folder.scan(), "nothing happened");
        fs::rename(&path, scratch.path().join("old")).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        assert_ne!(before, folder.scan());
    }

    #[tokio::test]
    async fn only_sockets_with_the_name_of_a_guest_are_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::write(at("file.sock"), "").unwrap();
        let _sockets = ["vm1.sock", "b c.sock", "monitor", ".sock", "..sock"]
            .map(|name| UnixListener::bind(at(name)).unwrap());
        let mut folder = Folder::new(scratch.path().into()).unwrap();
        let seen = folder.scan();
        assert_eq!(seen.keys().map(Id::as_str).collect::<Vec<_>>(), ["vm1"]);
    }
}
