//! Where somebody else changes flows.
//!
//! In: the kernel's notifications of the group `RTNLGRP_TC`. Out: the hooks at which another
//! program, or the kernel itself, changed something. Not what: the owner reads the hook, so that a
//! notification that is lost, or comes twice, ends in the same state. Our own changes are dropped
//! by the kernel before they get here.

use std::{collections::BTreeMap, time::Duration};

use tc_flows::{Change, Hook, Notice, OwnChanges, Owner, Place, Sender, Watch};
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::warn;

/// How long the thread waits for news before it looks whether anybody still wants them.
const IDLE: Duration = Duration::from_secs(1);

/// How long it waits before it offers news again that the owner had no room for.
const OFFER_AGAIN: Duration = Duration::from_millis(50);

/// Hooks at which something was changed, and by which netlink port (as a rule the process id of
/// who did it), where it was not the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowNews {
    /// These hooks.
    pub(crate) hooks: BTreeMap<Hook, Option<u32>>,
    /// Any hook may be concerned: notifications were lost, or actions were changed that rules
    /// share.
    pub(crate) everywhere: bool,
    /// How often notifications were lost.
    pub(crate) overruns: u64,
}

impl FlowNews {
    fn is_empty(&self) -> bool {
        self.hooks.is_empty() && !self.everywhere
    }

    fn note(&mut self, notice: &Notice) {
        let Notice::Changed { change, by } = notice else {
            self.everywhere = true;
            self.overruns += 1;
            return;
        };
        let by = match by {
            Sender::Ours => return,
            Sender::Other(port) => Some(*port),
            Sender::Kernel => None,
        };
        match change {
            Change::FilterAdded { hook, .. }
            | Change::FilterSet { hook, .. }
            | Change::FilterDeleted { hook, .. }
            | Change::PrioDeleted { hook, .. } => {
                self.hooks.insert(*hook, by);
            }
            Change::ChainDeleted { place: Place::Interface(ifindex), .. }
            | Change::QdiscDeleted { ifindex, .. } => {
                self.hooks.insert(Hook::ingress(*ifindex), by);
                self.hooks.insert(Hook::egress(*ifindex), by);
            }
            Change::ActionsSet(_) | Change::ActionsDeleted(_) => self.everywhere = true,
            Change::ChainDeleted { place: Place::Block(_), .. }
            | Change::ChainAdded { .. }
            | Change::QdiscAdded { .. } => {}
        }
    }
}

/// Starts the thread that listens, in the network namespace of the calling one. `ports` are the
/// sockets whose changes are the daemon's own. It ends when nobody takes its news any more.
///
/// # Errors
/// When the system refuses a thread, or does not let it listen.
pub(crate) fn start(
    owner: Owner,
    ports: Vec<u32>,
    sink: mpsc::Sender<FlowNews>,
) -> Result<(), tc_flows::Error> {
    let open = move || Watch::open(owner, &ports, OwnChanges::Dropped);
    let watch = open()?;
    std::thread::Builder::new()
        .name("flow-watch".into())
        .spawn(move || listen(watch, open, &sink))
        .map_err(tc_flows::Error::Socket)?;
    Ok(())
}

fn listen(
    mut watch: Watch,
    open: impl Fn() -> Result<Watch, tc_flows::Error>,
    sink: &mpsc::Sender<FlowNews>,
) {
    let mut news = FlowNews::default();
    while !sink.is_closed() {
        let limit = if news.is_empty() { IDLE } else { OFFER_AGAIN };
        match watch.wait(limit) {
            Ok(notices) => notices.iter().for_each(|notice| news.note(notice)),
            Err(error) => {
                warn!(%error, "flow notifications: listening anew");
                std::thread::sleep(IDLE);
                if let Ok(again) = open() {
                    watch = again;
                }
                news.everywhere = true;
            }
        }
        if !news.is_empty()
            && let Err(TrySendError::Full(kept)) = sink.try_send(std::mem::take(&mut news))
        {
            news = kept;
        }
    }
}
