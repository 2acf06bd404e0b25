//! Shared set-up of this suite: the daemon's observer of guests, run by a test, and vDPA devices.
//!
//! In: a folder of QMP sockets. Out: the updates that the daemon's owner would get. Order is
//! asserted, not speed: each wait has a deadline far beyond what it should take.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

pub mod prometheus;
pub mod vdpa;

use std::{collections::BTreeMap, path::Path, time::Duration};

use controller::{
    observe::guest::{EventCounts, GuestMessage, GuestUpdate, GuestWatch},
    world::{Connection, GuestFunction},
};
use lab::guest::{Guest, PF_ADDRESS};
use tokio::{
    runtime::Runtime,
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// For anything that is awaited.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// The observer of one folder, as the daemon runs it.
#[derive(Debug)]
pub struct Observer {
    runtime: Runtime,
    messages: mpsc::Receiver<GuestMessage>,
    /// Events by kind so far.
    pub counts: EventCounts,
    /// The guests as they were seen last.
    pub last: BTreeMap<String, GuestUpdate>,
    _watch: GuestWatch,
}

impl Observer {
    /// Begins to observe.
    pub fn of(folder: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let (sink, messages) = mpsc::channel(256);
        let watch = {
            let _inside = runtime.enter();
            let (remembered, never) = (BTreeMap::new(), CancellationToken::new());
            GuestWatch::start(Some(folder.into()), &remembered, sink, never).unwrap()
        };
        Observer {
            runtime,
            messages,
            counts: EventCounts::new(),
            last: BTreeMap::new(),
            _watch: watch,
        }
    }

    /// The first update of any guest from now on that is as told.
    pub fn until(&mut self, awaited: &str, is: impl Fn(&GuestUpdate) -> bool) -> GuestUpdate {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let next = async { timeout_at(deadline, self.messages.recv()).await };
            let next = self.runtime.block_on(next);
            let Ok(Some(message)) = next else {
                panic!("never seen: {awaited}; last: {:#?}", self.last);
            };
            let GuestMessage::Update(update) = message else { continue };
            for (kind, count) in &update.counts {
                *self.counts.entry(kind).or_default() += count;
            }
            self.last.insert(update.guest.to_string(), (*update).clone());
            if is(&update) {
                return *update;
            }
        }
    }

    /// Waits until each of these guests is connected and runs.
    pub fn until_running(&mut self, guests: &[&str]) {
        let runs = |update: &GuestUpdate| {
            update.view.connection == Connection::Connected
                && update.view.run_state.as_deref() == Some("running")
        };
        while !guests.iter().all(|guest| self.last.get(*guest).is_some_and(runs)) {
            self.until("a running guest", runs);
        }
    }

    /// The first update from now on whose `vf0` is as told.
    pub fn until_vf0(&mut self, awaited: &str, is: impl Fn(&GuestFunction) -> bool) -> GuestUpdate {
        self.until(awaited, |u| u.view.functions.get("vf0").is_some_and(&is))
    }

    /// Filter events counted so far.
    pub fn filter_events(&self) -> u64 {
        self.counts.get("NIC_RX_FILTER_CHANGED").copied().unwrap_or(0)
    }

    /// Waits until more filter events are counted than `before`. They may come after the change
    /// was seen: the observer also looks by itself.
    pub fn until_filter_event_after(&mut self, before: u64) {
        while self.filter_events() <= before {
            self.until("a filter event", |update| !update.counts.is_empty());
        }
    }
}

/// The function `vf0` of an update.
pub fn vf0(update: &GuestUpdate) -> &GuestFunction {
    &update.view.functions["vf0"]
}

/// The address that a function's driver has set; empty where none has.
pub fn main_mac(function: &GuestFunction) -> String {
    function.filter.as_ref().map(|filter| filter.main_mac.to_string()).unwrap_or_default()
}

/// Has the guest enable this many VFs.
pub fn create_vfs(guest: &Guest, count: usize) {
    guest.run(&format!("echo {count} > /sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs")).unwrap();
}
