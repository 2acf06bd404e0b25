//! One guest's task: connects, converses, tells, and outlives whatever its QEMU does.
//!
//! In: where the guest's QMP socket is, and the socket itself. Out: updates through an [`Outbox`].
//! A failing peer changes the state of its connection and nothing else: what was seen last stands
//! until its process is gone, or until a new inventory replaces it.

use std::{
    future,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use api::{resources::ControlQueue, types::Id};
use tokio::{
    net::UnixStream,
    sync::watch,
    task::{self, JoinHandle},
    time,
};

use super::{
    backing::{self, Backings, Footing},
    conversation::{Conversation, Offence},
    folder::Incarnation,
    holdings::Holders,
    lines::Lines,
    outbox::Outbox,
    pace::{Backoff, Limits},
    process::Process,
};
use crate::world::{BackingView, Cause, Connection, GuestView};

/// Whether there is to be such a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The folder or the API names it.
    Named,
    /// Its socket file went. A QEMU that runs on is still its QEMU.
    Unlinked,
    /// The API named it and does so no longer: it is to be left alone.
    Released,
}

/// Where a guest is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Whether there is to be such a guest.
    pub(crate) standing: Standing,
    /// Its socket; absent where the API names none and there is no folder.
    pub(crate) socket: Option<PathBuf>,
    /// Which socket file it is, where that is watched.
    pub(crate) incarnation: Option<Incarnation>,
}

impl Target {
    /// Whether a conversation over `path` is with this guest no longer.
    fn is_elsewhere(&self, path: &Path) -> bool {
        match self.standing {
            Standing::Named => self.socket.as_deref() != Some(path),
            Standing::Unlinked => false,
            Standing::Released => true,
        }
    }
}

/// Why a conversation ended.
#[derive(Debug)]
enum End {
    Closed(io::Error),
    Silent(String),
    Offence(Offence),
    /// The guest's socket is another one now, or it is no guest any more.
    Moved,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    Time,
    Target,
    /// The process is gone.
    Process,
}

/// The guest.
#[derive(Debug)]
pub(crate) struct GuestTask {
    guest: Id,
    target: watch::Receiver<Target>,
    outbox: Outbox,
    limits: Limits,
    holders: Holders,
    view: GuestView,
    /// The QEMU of the last conversation.
    process: Option<Process>,
}

const BY_ITSELF: Cause = Cause { event_read: None };

/// Any number, another each time.
fn chance() -> u64 {
    RandomState::new().build_hasher().finish()
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline.into()).await,
        None => future::pending().await,
    }
}

impl GuestTask {
    /// A guest of which nothing is known yet.
    pub(crate) fn new(
        guest: Id,
        target: watch::Receiver<Target>,
        outbox: Outbox,
        limits: Limits,
        holders: Holders,
    ) -> Self {
        let view = GuestView::default();
        GuestTask { guest, target, outbox, limits, holders, view, process: None }
    }

    /// Observes until the guest is neither named nor there. Says so then.
    pub(crate) async fn run(mut self) {
        self.tell(self.view.clone(), BY_ITSELF);
        let mut backoff = Backoff::new(self.limits.reconnect);
        let mut punishment = Backoff::new(self.limits.punish);
        let mut refusals = 0;
        loop {
            if self.process.as_ref().is_some_and(|process| !process.is_alive()) {
                self.gone();
            }
            let target = self.target.borrow_and_update().clone();
            let named = match target.standing {
                Standing::Named => true,
                Standing::Unlinked if self.process.is_some() => false,
                Standing::Unlinked | Standing::Released => break,
            };
            let Some(path) = target.socket.clone().filter(|_| named) else {
                if named {
                    self.connection(Connection::Interrupted {
                        reason: "no folder of QMP sockets is configured and the guest names no \
                                 socket; set its spec.qmp"
                            .into(),
                    });
                }
                self.pause(None).await;
                continue;
            };
            match UnixStream::connect(&path).await {
                Ok(stream) => {
                    refusals = 0;
                    let began = Instant::now();
                    let end = self.converse(stream, &path).await;
                    if began.elapsed() >= self.limits.forgive {
                        punishment.reset();
                    }
                    if self.view.connection == Connection::Connected {
                        backoff.reset();
                    }
                    tracing::info!(guest = %self.guest, ?end, "conversation ended");
                    match end {
                        End::Closed(error) => {
                            if self.ends_soon().await {
                                backoff.reset();
                                continue;
                            }
                            let reason = format!("the connection failed: {error}");
                            self.connection(Connection::Interrupted { reason });
                        }
                        End::Silent(reason) => {
                            self.connection(Connection::Interrupted { reason });
                        }
                        End::Offence(offence) => {
                            let reason = offence.to_string();
                            self.connection(Connection::Misbehaving { reason });
                            self.sit_out(&path, Instant::now() + punishment.next(chance())).await;
                            continue;
                        }
                        End::Moved => {
                            self.gone();
                            continue;
                        }
                    }
                }
                Err(error) => {
                    refusals += 1;
                    self.refused(&path, &error, refusals);
                }
            }
            let retry = Instant::now() + backoff.next(chance());
            if self.pause(Some(retry)).await == Wake::Target {
                backoff.reset();
                refusals = 0;
            }
        }
        self.outbox.forget().await;
    }

    // ------------------------------------------------------------ telling

    fn tell(&mut self, view: GuestView, cause: Cause) {
        self.view = view;
        self.outbox.put(&self.view, cause, Instant::now());
    }

    fn connection(&mut self, connection: Connection) {
        if self.view.connection != connection {
            self.tell(GuestView { connection, ..self.view.clone() }, BY_ITSELF);
        }
    }

    /// The process is gone, and with it everything that it was.
    fn gone(&mut self) {
        self.process = None;
        let view = GuestView { connection: Connection::Gone, ..GuestView::default() };
        if self.view != view {
            self.tell(view, BY_ITSELF);
        }
    }

    // ------------------------------------------------------------ waiting

    /// Returns when the process of the last conversation ends; never where there is none.
    async fn process_ended(process: Option<&Process>, vigil: Duration) {
        match process {
            Some(process) => process.ended(vigil).await,
            None => future::pending().await,
        }
    }

    /// Waits for the deadline, for another target or for the end of the process.
    async fn pause(&mut self, until: Option<Instant>) -> Wake {
        loop {
            tokio::select! {
                () = self.outbox.flush() => {}
                () = at(until) => return Wake::Time,
                changed = self.target.changed() => match changed {
                    Ok(()) => return Wake::Target,
                    // Nobody is left to say anything: the daemon ends.
                    Err(_) => future::pending().await,
                },
                () = Self::process_ended(self.process.as_ref(), self.limits.vigil) => {
                    return Wake::Process;
                }
            }
        }
    }

    /// Waits out a punishment. A new socket file does not shorten it while the process lives.
    async fn sit_out(&mut self, path: &Path, until: Instant) {
        loop {
            match self.pause(Some(until)).await {
                Wake::Time | Wake::Process => return,
                Wake::Target => {
                    let target = self.target.borrow();
                    if target.is_elsewhere(path) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the process that closed its socket is on its way out: its files close before it is
    /// gone.
    async fn ends_soon(&self) -> bool {
        let Some(process) = &self.process else { return false };
        time::timeout(self.limits.farewell, process.ended(self.limits.vigil)).await.is_ok()
    }

    /// The socket cannot be connected to.
    fn refused(&mut self, path: &Path, error: &io::Error, refusals: u32) {
        let nobody =
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => "; let the daemon's user write to it",
            io::ErrorKind::WouldBlock => {
                "; others wait for it too: give the daemon a -qmp of its own"
            }
            _ => "",
        };
        // QEMU binds its socket a moment before it listens.
        if nobody && self.process.is_none() {
            if refusals >= 3 || error.kind() == io::ErrorKind::NotFound {
                self.gone();
            }
            return;
        }
        let reason = format!("{}: {error}{remedy}", path.display());
        self.connection(Connection::Interrupted { reason });
    }

    // ------------------------------------------------------------ conversing

    /// Takes the process at the other end for the guest's QEMU.
    fn meet(&mut self, stream: &UnixStream) -> Option<u32> {
        let process = Process::peer_of(stream);
        let before = self.process.take();
        if before.is_some_and(|before| Some(&before) != process.as_ref() && !before.is_alive()) {
            self.gone();
        }
        let pid = process.as_ref().map(Process::pid);
        self.process = process;
        pid
    }

    /// Looks at what the functions stand on; what others hold may have been looked at as early as
    /// `since`.
    fn look_at_backings(
        &self,
        conversation: &Conversation,
        since: Instant,
    ) -> JoinHandle<Backings> {
        let backends = conversation.backends();
        let Some(process) = self.process.clone() else {
            let unknown = backing::all_unknown(
                &backends,
                "the socket's peer is no process that the daemon can see; run it in QEMU's pid \
                 namespace, or name the backings in the guest's spec.backings",
            );
            return task::spawn(future::ready(unknown));
        };
        let holders = self.holders.clone();
        task::spawn(async move {
            let census = holders.census(since).await;
            let found = {
                let (holders, backends) = (holders.clone(), backends.clone());
                task::spawn_blocking(move || {
                    backing::backings(&holders, &census, &process, &backends)
                })
            };
            let mut found = found.await.unwrap_or_else(|error| {
                tracing::error!(%error, "backings");
                backing::all_unknown(&backends, "the look at /proc failed")
            });
            for footing in found.values_mut() {
                if let Some(device) = &footing.vdpa {
                    footing.config = holders.vdpa_config(device).await;
                }
            }
            found
        })
    }

    /// When to look at backings once more although nothing has caused it.
    fn look_again_after(&self, backings: &Backings) -> Option<Duration> {
        let any = |is: fn(&Footing) -> bool| backings.values().any(is);
        if any(|f| matches!(f.backing, BackingView::Contested { .. })) {
            // Others may hold it for a moment only, on its way to this QEMU.
            return Some(self.limits.contested);
        }
        // Nothing tells when a vDPA device is given another address, or its driver attaches.
        any(|f| f.vdpa.is_some() && f.control_queue != ControlQueue::Seen)
            .then_some(self.limits.vdpa_config)
    }

    /// The guest as the conversation shows it.
    fn view_of(
        &self,
        conversation: &Conversation,
        backings: &Backings,
        pid: Option<u32>,
        connection: Connection,
    ) -> GuestView {
        GuestView {
            connection,
            pid,
            qemu: conversation.qemu().map(str::to_owned),
            run_state: conversation.run_state().map(str::to_owned),
            functions: conversation.functions(backings),
        }
    }

    /// Talks until the peer or the guest's target ends it.
    async fn converse(&mut self, stream: UnixStream, path: &Path) -> End {
        let pid = self.meet(&stream);
        let mut conversation = Conversation::new(self.limits.clone(), Instant::now());
        let mut lines = Lines::new(self.limits.line);
        let mut unsent = Vec::new();
        let mut backings = Backings::new();
        let mut looked_at = None;
        let mut looking: Option<(u64, JoinHandle<Backings>)> = None;
        // When to look at the backings once more, while they are contested.
        let mut look_again: Option<Instant> = None;
        let mut complete = false;
        loop {
            let now = Instant::now();
            conversation.ask(now, &mut unsent);
            if let Err(error) = send(&stream, &mut unsent) {
                return End::Closed(error);
            }
            self.outbox.count(conversation.take_counts(), conversation.take_overruns());

            let waits = conversation.waits();
            if let Some((since, what)) = waits
                && now >= since + self.limits.silence
            {
                return End::Silent(format!("no answer to {what} in {:?}", now - since));
            }
            let unanswered = waits.filter(|(since, _)| now >= *since + self.limits.patience);
            complete = complete
                || (conversation.is_inventoried()
                    && looked_at == Some(conversation.backends_revision()));
            if complete {
                let connection = match unanswered {
                    Some((_, what)) => Connection::Interrupted { reason: no_answer(what) },
                    None => Connection::Connected,
                };
                if let Some(cause) = conversation.take_change() {
                    let view = self.view_of(&conversation, &backings, pid, connection);
                    if view != self.view {
                        self.tell(view, cause);
                    }
                } else {
                    self.connection(connection);
                }
            } else if let Some((_, what)) = unanswered
                && !matches!(self.view.connection, Connection::Misbehaving { .. })
            {
                self.connection(Connection::Interrupted { reason: no_answer(what) });
            }
            let counts_due = self.outbox.counts_due(self.limits.counts_interval);
            if counts_due.is_some_and(|due| due <= now) {
                self.outbox.put(&self.view, BY_ITSELF, now);
            }

            let revision = conversation.backends_revision();
            if looking.is_none() && conversation.is_inventoried() {
                let at_once = looked_at != Some(revision) || look_again.is_some_and(|at| at <= now);
                let contested = || {
                    let mut all = backings.values();
                    all.any(|f| matches!(f.backing, BackingView::Contested { .. }))
                };
                let since = if at_once && (looked_at != Some(revision) || contested()) {
                    Some(now)
                } else if at_once {
                    // Only what the vDPA device was given is looked at again.
                    Some(now.checked_sub(self.limits.audit).unwrap_or(now))
                } else if conversation.take_backings_wanted() {
                    Some(now.checked_sub(self.limits.audit).unwrap_or(now))
                } else {
                    None
                };
                if let Some(since) = since {
                    look_again = None;
                    looking = Some((revision, self.look_at_backings(&conversation, since)));
                }
            }

            let patience = match unanswered {
                Some(_) => self.limits.silence,
                None => self.limits.patience,
            };
            let deadline = [
                conversation.next_ask(),
                waits.map(|(since, _)| since + patience),
                self.outbox.counts_due(self.limits.counts_interval),
                look_again,
            ];
            let looked = async {
                match &mut looking {
                    Some((revision, job)) => (*revision, job.await),
                    None => future::pending().await,
                }
            };
            tokio::select! {
                readable = stream.readable() => {
                    let heard = readable
                        .map_err(End::Closed)
                        .and_then(|()| hear(&stream, &mut lines, &mut conversation));
                    if let Err(end) = heard {
                        let mut overruns = conversation.take_overruns();
                        if let End::Offence(Offence::LineTooLong(_)) = &end {
                            *overruns.entry("line").or_default() += 1;
                        }
                        self.outbox.count(conversation.take_counts(), overruns);
                        return end;
                    }
                }
                // Whether it can be written to is seen when it is.
                _ = stream.writable(), if !unsent.is_empty() => {}
                () = at(deadline.into_iter().flatten().min()) => {}
                (revision, found) = looked => {
                    looking = None;
                    looked_at = Some(revision);
                    let again = found.as_ref().ok().and_then(|found| self.look_again_after(found));
                    look_again = again.map(|after| Instant::now() + after);
                    match found {
                        Ok(found) if found == backings => {}
                        Ok(found) => {
                            backings = found;
                            conversation.note_change();
                        }
                        Err(error) => tracing::error!(guest = %self.guest, %error, "backings"),
                    }
                }
                () = self.outbox.flush() => {}
                () = Self::process_ended(self.process.as_ref(), self.limits.vigil),
                    if unanswered.is_some() =>
                {
                    // Somebody else keeps its end of the socket open.
                    return End::Closed(io::ErrorKind::BrokenPipe.into());
                }
                changed = self.target.changed() => {
                    if changed.is_err() {
                        future::pending::<()>().await;
                    }
                    let target = self.target.borrow_and_update();
                    if target.is_elsewhere(path) {
                        return End::Moved;
                    }
                }
            }
        }
    }
}

fn no_answer(what: &str) -> String {
    format!(
        "no answer to {what}: QEMU is stopped or busy, or another client holds this monitor (give \
         the daemon a -qmp of its own)"
    )
}

/// Writes as much as the socket takes.
fn send(stream: &UnixStream, unsent: &mut Vec<u8>) -> io::Result<()> {
    while !unsent.is_empty() {
        match stream.try_write(unsent) {
            Ok(written) => {
                unsent.drain(..written);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads once, and takes every line that is whole by then.
fn hear(
    stream: &UnixStream,
    lines: &mut Lines,
    conversation: &mut Conversation,
) -> Result<(), End> {
    match stream.try_read_buf(lines.room()) {
        Ok(0) => return Err(End::Closed(io::ErrorKind::UnexpectedEof.into())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(End::Closed(error)),
    }
    let now = Instant::now();
    while let Some(line) = lines.next_line().map_err(|long| End::Offence(long.into()))? {
        conversation.hear(line, now).map_err(End::Offence)?;
    }
    Ok(())
}
