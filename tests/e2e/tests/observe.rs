//! A real guest's life as the daemon's observer sees it, over a real QEMU's QMP socket.
//!
//! Order is asserted, not speed: each step waits for what it leads to, under a generous deadline.
//! Needs the lab's guest images; taps need CAP_NET_ADMIN.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{collections::BTreeMap, path::Path, time::Duration};

use controller::{
    observe::guest::{EventCounts, GuestMessage, GuestUpdate, GuestWatch},
    world::{BackingView, Connection, GuestFunction},
};
use lab::guest::{Backing, Function, Guest, PF_ADDRESS};
use serde_json::json;
use tokio::{
    runtime::Runtime,
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(90);

/// The observer of one folder, as the daemon runs it.
struct Observer {
    runtime: Runtime,
    messages: mpsc::Receiver<GuestMessage>,
    counts: EventCounts,
    last: Option<GuestUpdate>,
    _watch: GuestWatch,
}

impl Observer {
    fn of(folder: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let (sink, messages) = mpsc::channel(256);
        let watch = {
            let _inside = runtime.enter();
            GuestWatch::start(Some(folder.into()), &BTreeMap::new(), sink, CancellationToken::new())
                .unwrap()
        };
        Observer { runtime, messages, counts: EventCounts::new(), last: None, _watch: watch }
    }

    /// The first update from now on that is as told.
    fn until(&mut self, awaited: &str, is: impl Fn(&GuestUpdate) -> bool) -> GuestUpdate {
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
            self.last = Some((*update).clone());
            if is(&update) {
                return *update;
            }
        }
    }

    /// Filter events counted so far.
    fn filter_events(&self) -> u64 {
        self.counts.get("NIC_RX_FILTER_CHANGED").copied().unwrap_or(0)
    }

    /// Waits until more filter events are counted than `before`. They may come after the change
    /// was seen: the observer also looks by itself.
    fn until_filter_event_after(&mut self, before: u64) {
        while self.filter_events() <= before {
            self.until("a filter event", |update| !update.counts.is_empty());
        }
    }

    fn until_vf0(&mut self, awaited: &str, is: impl Fn(&GuestFunction) -> bool) -> GuestUpdate {
        self.until(awaited, |u| u.view.functions.get("vf0").is_some_and(&is))
    }
}

fn vf0(update: &GuestUpdate) -> &GuestFunction {
    &update.view.functions["vf0"]
}

fn create_vfs(guest: &Guest, count: usize) {
    guest.run(&format!("echo {count} > /sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs")).unwrap();
}

fn main_mac(function: &GuestFunction) -> String {
    function.filter.as_ref().map(|filter| filter.main_mac.to_string()).unwrap_or_default()
}

#[test]
fn a_guests_life_is_seen_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let guest = Guest::named("a")
        .vf(0, Backing::Tap("observe-a0".into()))
        .qmp_socket(folder.path().join("a.sock"))
        .start()
        .unwrap();

    let update = observer.until("running", |u| {
        u.view.connection == Connection::Connected && u.view.run_state.as_deref() == Some("running")
    });
    assert_eq!(update.guest.as_str(), "a");
    assert_eq!(update.view.pid, Some(guest.pid()));
    let ids: Vec<_> = update.view.functions.keys().map(String::as_str).collect();
    assert_eq!(ids, ["pf0", "vf0", "vf1", "vf2", "vf3"]);
    assert!(update.view.functions["pf0"].enabled && update.view.functions["pf0"].pf.is_none());
    let vf = vf0(&update);
    assert!(!vf.enabled && vf.filter.is_none() && vf.pf.as_deref() == Some("pf0"), "{vf:?}");
    assert_eq!(vf.backing, BackingView::Netdev { name: "observe-a0".into() });
    let other = &update.view.functions["vf1"].backing;
    assert!(
        matches!(other, BackingView::Unsupported { reason } if reason.contains("hubport")),
        "{other:?}"
    );

    // QEMU sends no event for this, and a VF comes up when the guest gets to it.
    create_vfs(&guest, 2);
    let update = observer.until("two VFs enabled", |u| {
        ["vf0", "vf1"].iter().all(|vf| u.view.functions.get(*vf).is_some_and(|vf| vf.enabled))
    });
    assert!(!update.view.functions["vf2"].enabled);
    observer.until_vf0("the driver bound, its link down", |vf| {
        vf.filter.as_ref().is_some_and(|filter| filter.promiscuous)
    });

    let before = observer.filter_events();
    guest.run("ip link set eth1 up").unwrap();
    let update = observer
        .until_vf0("link up", |vf| vf.filter.as_ref().is_some_and(|filter| !filter.promiscuous));
    assert_eq!(main_mac(vf0(&update)), guest.mac(Function::Vf(0)).unwrap());
    observer.until_filter_event_after(before);

    let before = observer.filter_events();
    guest.run("ip link set eth1 address 02:aa:bb:cc:00:01").unwrap();
    observer.until_vf0("another MAC", |vf| main_mac(vf) == "02:aa:bb:cc:00:01");
    observer.until_filter_event_after(before);

    guest.run("ip link add link eth1 name eth1.100 type vlan id 100").unwrap();
    observer.until_vf0("a VLAN", |vf| {
        vf.filter.as_ref().is_some_and(|filter| filter.vlans.contains(&100))
    });

    guest.run("ip link add link eth1 name mv0 address 02:aa:bb:cc:00:02 type macvlan").unwrap();
    guest.run("ip link set mv0 up").unwrap();
    observer.until_vf0("a macvlan's MAC", |vf| {
        let macs = vf.filter.iter().flat_map(|filter| &filter.unicast);
        macs.into_iter().any(|mac| mac.to_string() == "02:aa:bb:cc:00:02")
    });

    guest.run("ip link set eth1 promisc on").unwrap();
    observer.until_vf0("promiscuous", |vf| vf.filter.as_ref().is_some_and(|f| f.promiscuous));
    guest.run("ip link set eth1 promisc off").unwrap();
    observer.until_vf0("no longer promiscuous", |vf| {
        vf.filter.as_ref().is_some_and(|filter| !filter.promiscuous)
    });

    let mut qmp = guest.qmp().unwrap();
    qmp.execute("stop", json!({})).unwrap();
    observer.until("paused", |u| u.view.run_state.as_deref() == Some("paused"));
    qmp.execute("cont", json!({})).unwrap();
    let update = observer.until("resumed", |u| u.view.run_state.as_deref() == Some("running"));
    assert_eq!(main_mac(vf0(&update)), "02:aa:bb:cc:00:01", "a pause loses nothing");

    let driver = "/sys/bus/pci/drivers/virtio-pci";
    let device = guest.run("basename $(readlink -f /sys/class/net/eth1/device/..)").unwrap();
    let device = device.trim();
    guest.run(&format!("echo {device} > {driver}/unbind")).unwrap();
    observer.until_vf0("no driver", |vf| vf.enabled && vf.filter.is_none());
    guest.run(&format!("echo {device} > {driver}/bind")).unwrap();
    observer.until_vf0("a driver again", |vf| vf.enabled && vf.filter.is_some());

    create_vfs(&guest, 0);
    observer.until_vf0("VFs gone", |vf| !vf.enabled && vf.filter.is_none());
    create_vfs(&guest, 1);
    let update = observer.until_vf0("a VF again", |vf| vf.enabled && vf.filter.is_some());
    assert_eq!(main_mac(vf0(&update)), guest.mac(Function::Vf(0)).unwrap());
    assert!(!update.view.functions["vf1"].enabled);

    drop(qmp);
    guest.kill().unwrap();
    let update = observer.until("the end", |u| u.view.connection == Connection::Gone);
    assert!(update.view.functions.is_empty() && update.view.pid.is_none());
    assert!(observer.counts["NIC_RX_FILTER_CHANGED"] >= 4, "{:?}", observer.counts);
    assert!(observer.counts["STOP"] >= 1 && observer.counts["RESUME"] >= 1);
}
