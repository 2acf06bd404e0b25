//! The host's adapters, watched: netdevs, devlink devices and their ports, VF settings.
//!
//! In: the configured adapters, kernel notifications (which only say "look again"). Out: whole
//! snapshots of every adapter, sent when one differs from the last. Nothing here changes the host.

mod doorbell;
mod link;
mod pattern;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use api::types::Id;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_KOBJECT_UEVENT, NETLINK_ROUTE};
use nix::errno::Errno;
use tc_flows::Ifindex;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub(crate) use self::link::Traffic;
use self::{
    doorbell::Doorbell,
    link::{LinkTable, Links},
    view::{Adapter, Eswitch, Facts},
};
use crate::{
    config::AdapterConfig,
    eswitch::{
        EswitchError, KernelRefusal,
        devlink::{Devlink, DevlinkName},
        generic_connection,
        netlink::on_own_thread,
        vdpa::Vdpa,
    },
    plan::vdpa::is_ours,
    world::AdapterView,
};

/// How long after the first notification the look begins: one change of the host sends several,
/// and a look in the middle of them would have to be repeated.
const SETTLE: Duration = Duration::from_millis(3);
/// Between two looks lies this many times what the last one took, so that a flood of notifications
/// leaves the core to others.
const REST_FACTOR: u32 = 4;
/// But never more than this: a look that takes long is mostly waiting for a lock of the kernel's.
const REST_MOST: Duration = Duration::from_millis(50);
/// How long a change can go unseen that the kernel does not notify: the eswitch mode (unless ports
/// come or go with it), VF settings that a driver changes by itself or somebody else while the PF is
/// down (`netdev_state_change` in `net/core/dev.c`), netdevsim's number of VFs. A look costs a few
/// milliseconds.
const AUDIT_PERIOD: Duration = Duration::from_secs(10);
/// How long to wait after a look that failed as a whole.
const RETRY: Duration = Duration::from_secs(1);
/// Netdevs whose counters are read one by one at most: more are read with all others.
const ONE_BY_ONE_MOST: usize = 32;
/// `RTNLGRP_LINK` of `include/uapi/linux/rtnetlink.h`.
const RTNLGRP_LINK: u32 = 1;
/// The kernel's own uevents, as opposed to udev's. A PCI device sends one when its number of VFs
/// changes (`sriov_enable` in `drivers/pci/iov.c`), and when a driver binds to it.
const KERNEL_UEVENTS: u32 = 1;
/// Where the kernel tells which driver a device has.
const BUSES: &str = "/sys/bus";

/// Reads what the netdevs of our network namespace have counted, over one connection, which is
/// opened anew after a failure.
#[derive(Debug, Default)]
pub(crate) struct CounterReader {
    open: Option<(Links, AbortOnDropHandle<()>)>,
}

impl CounterReader {
    /// What every netdev has counted.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) async fn all(&mut self) -> Result<BTreeMap<Ifindex, Traffic>, EswitchError> {
        let traffic = self.links()?.traffic().await;
        self.answered(traffic)
    }

    /// What these have counted; without those that are not there.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) async fn of(
        &mut self,
        netdevs: &BTreeSet<Ifindex>,
    ) -> Result<BTreeMap<Ifindex, Traffic>, EswitchError> {
        // Each costs a round of its own.
        if netdevs.len() > ONE_BY_ONE_MOST {
            return self.all().await;
        }
        let mut traffic = BTreeMap::new();
        for netdev in netdevs {
            match self.links()?.traffic_of(*netdev).await {
                Err(refusal) if refusal.errno == Errno::ENODEV as i32 => {}
                answer => traffic.extend(self.answered(answer)?),
            }
        }
        Ok(traffic)
    }

    /// What of that went through the host's CPU although the netdev stands for a function in
    /// hardware; of those netdevs whose driver tells (`IFLA_OFFLOAD_XSTATS_CPU_HIT`).
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) async fn software(&mut self) -> Result<BTreeMap<Ifindex, Traffic>, EswitchError> {
        let traffic = self.links()?.software().await;
        self.answered(traffic)
    }

    fn links(&mut self) -> Result<&Links, EswitchError> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let (work, links) = Links::open()?;
                (links, AbortOnDropHandle::new(tokio::spawn(work)))
            }
        };
        let (links, _) = self.open.insert(open);
        Ok(links)
    }

    fn answered<T>(&mut self, answer: Result<T, KernelRefusal>) -> Result<T, EswitchError> {
        if answer.is_err() {
            self.open = None;
        }
        Ok(answer?)
    }
}

/// How all adapters look now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMessage {
    /// Every configured adapter, present or not.
    pub adapters: BTreeMap<Id, AdapterView>,
}

/// The watch over the host's adapters. It ends with its cancellation token, or when the receiver
/// of its messages is gone.
#[derive(Debug)]
pub struct HostWatch {
    wanted: Arc<Notify>,
}

impl HostWatch {
    /// Starts to watch; the first snapshot is sent at once. The watch runs on a thread of its own,
    /// since reading a device can wait for its driver for seconds. Its netlink sockets belong to
    /// the network namespace of the calling thread.
    ///
    /// # Errors
    /// When a netlink socket cannot be opened or subscribed, or an adapter's configuration is none.
    pub async fn start(
        adapters: Vec<(Id, AdapterConfig)>,
        sink: mpsc::Sender<HostMessage>,
        cancel: CancellationToken,
    ) -> Result<HostWatch, EswitchError> {
        let adapters = adapters
            .iter()
            .map(|(id, config)| Ok((id.clone(), Adapter::try_from(config)?)))
            .collect::<Result<Vec<_>, EswitchError>>()?;
        on_own_thread("host-watch", move || {
            let wanted = Arc::new(Notify::new());
            let eyes = Eyes::open(&adapters)?;
            let watch = Watch { adapters, eyes, wanted: Arc::clone(&wanted), quiet: None };
            let work = async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = sink.closed() => {}
                    () = watch.run(&sink) => {}
                }
            };
            Ok((work, HostWatch { wanted }))
        })
    }

    /// Asks for a fresh snapshot. Requests that come close together are answered by one look; a
    /// snapshot that equals the last is not sent.
    pub fn look_again(&self) {
        self.wanted.notify_one();
    }
}

/// The watch itself.
struct Watch {
    adapters: Vec<(Id, Adapter)>,
    eyes: Eyes,
    wanted: Arc<Notify>,
    /// What was read last, where nothing was notified since.
    quiet: Option<Quiet>,
}

/// What the kernel notifies every change of.
struct Quiet {
    links: LinkTable,
    /// With another mode all of a device's netdevs may be others.
    eswitches: BTreeMap<DevlinkName, Eswitch>,
}

impl Watch {
    /// Looks when there is reason to, and sends what is new. While a look is due nothing else is
    /// waited for: however many notifications come, they are answered by that look.
    async fn run(mut self, sink: &mpsc::Sender<HostMessage>) {
        let mut audit = interval(AUDIT_PERIOD);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rested = Instant::now();
        let mut due = Some(rested);
        let mut last = None;
        let mut unsent: Option<HostMessage> = None;
        loop {
            let idle = due.is_none();
            tokio::select! {
                biased;
                permit = sink.reserve(), if unsent.is_some() => match (permit, unsent.take()) {
                    (Ok(permit), Some(message)) => permit.send(message),
                    _ => return,
                },
                () = sleep_until(due.unwrap_or(rested)), if !idle => {
                    due = None;
                    let begun = Instant::now();
                    match self.look().await {
                        Ok(adapters) if last.as_ref() != Some(&adapters) => {
                            last = Some(adapters.clone());
                            unsent = Some(HostMessage { adapters });
                        }
                        Ok(_) => {}
                        Err(error) => {
                            tracing::warn!(%error, "cannot look at the host; trying again");
                            due = Some(self.begin_anew());
                        }
                    }
                    rested = Instant::now() + REST_MOST.min(begun.elapsed() * REST_FACTOR);
                },
                rung = self.eyes.rung(), if idle => {
                    self.quiet = None;
                    due = Some(match rung {
                        Ok(()) => rested.max(Instant::now() + SETTLE),
                        Err(error) => {
                            tracing::warn!(%error, "kernel notifications failed; subscribing anew");
                            self.begin_anew()
                        }
                    });
                }
                () = self.wanted.notified(), if idle => {
                    self.quiet = None;
                    due = Some(rested.max(Instant::now() + SETTLE));
                }
                _ = audit.tick(), if idle => due = Some(rested.max(Instant::now())),
            }
        }
    }

    /// New sockets, where they can be had; the answer is when to look next.
    fn begin_anew(&mut self) -> Instant {
        match Eyes::open(&self.adapters) {
            Ok(eyes) => self.eyes = eyes,
            Err(error) => tracing::warn!(%error, "cannot open the netlink sockets"),
        }
        Instant::now() + RETRY
    }

    /// How all adapters look now.
    async fn look(&mut self) -> Result<BTreeMap<Id, AdapterView>, EswitchError> {
        // What is notified from here on rings again.
        let rang = self.eyes.drain().await?;
        let quiet = self.quiet.take().filter(|_| !rang);
        let mut facts = Facts::default();
        let nics: Vec<_> = self.adapters.iter().filter_map(|(_, adapter)| adapter.nic()).collect();
        if let Some(devlink) = &self.eyes.devlink {
            for nic in &nics {
                facts.eswitches.insert(nic.device.clone(), eswitch(devlink, &nic.device).await?);
                facts.drivers.extend(driver(&nic.device).map(|name| (nic.device.clone(), name)));
                if nic.manages_eswitch {
                    facts.vf_drivers.insert(nic.device.clone(), vf_drivers(&nic.device));
                }
            }
            if facts.eswitches.values().any(|eswitch| *eswitch != Eswitch::Absent) {
                facts.ports = devlink.ports().await?;
                facts.rates = devlink.rates().await?;
            }
        }
        // After the ports: a port's netdev is then at most newer than the port says, and what is
        // newer has rung.
        facts.links = match quiet {
            Some(Quiet { links, eswitches }) if eswitches == facts.eswitches => links,
            _ => self.eyes.links.table().await?,
        };
        for nic in nics {
            if let Some(pf) = nic.legacy_pf(&facts) {
                let (ifindex, vfs) = (pf.ifindex, told(self.eyes.links.vfs(pf).await)?);
                facts.vfs.insert(ifindex, vfs);
            }
        }
        self.eyes.vdpa(&mut facts).await?;
        for (_, adapter) in self.adapters.iter().filter(|(_, adapter)| adapter.manages_vdpa()) {
            let nic = adapter.nic().map(|nic| &nic.device);
            facts.vf_addresses.extend(nic.map(|device| (device.clone(), vf_addresses(device))));
        }
        let views = self.adapters.iter().map(|(id, adapter)| (id.clone(), adapter.view(&facts)));
        let views = views.collect();
        let Facts { links, eswitches, .. } = facts;
        self.quiet = Some(Quiet { links, eswitches });
        Ok(views)
    }
}

/// The connections to the kernel.
struct Eyes {
    links: Links,
    link_bell: Doorbell,
    /// Absent where no NIC is configured.
    devlink: Option<Devlink>,
    /// Absent where no NIC is configured.
    device_bell: Option<Doorbell>,
    /// Absent while the kernel has no devlink.
    devlink_bell: Option<Doorbell>,
    /// Absent where no adapter's vDPA devices are ours to manage.
    vdpa: Option<Vdpa>,
}

impl Eyes {
    /// Opens the connections; must run inside a tokio runtime.
    fn open(adapters: &[(Id, Adapter)]) -> Result<Eyes, EswitchError> {
        let link_bell = Doorbell::hang(NETLINK_ROUTE, RTNLGRP_LINK).map_err(subscription)?;
        let (work, links) = Links::open()?;
        tokio::spawn(work);
        let mut eyes = Eyes {
            links,
            link_bell,
            devlink: None,
            device_bell: None,
            devlink_bell: None,
            vdpa: None,
        };
        if adapters.iter().any(|(_, adapter)| adapter.manages_vdpa()) {
            eyes.vdpa = Some(Vdpa::open()?);
        }
        if adapters.iter().any(|(_, adapter)| adapter.nic().is_some()) {
            let (work, handle) = generic_connection()?;
            tokio::spawn(work);
            eyes.devlink = Some(Devlink::new(handle));
            let bell = Doorbell::hang(NETLINK_KOBJECT_UEVENT, KERNEL_UEVENTS);
            eyes.device_bell = Some(bell.map_err(subscription)?);
        }
        Ok(eyes)
    }

    /// Reads what makes vDPA devices, and the devices that bear our names.
    async fn vdpa(&self, facts: &mut Facts) -> Result<(), KernelRefusal> {
        let Some(vdpa) = &self.vdpa else { return Ok(()) };
        let read = async {
            let managements = vdpa.managements().await?;
            let managements = managements.into_iter().filter(|management| management.network);
            facts.vdpa_managements = managements.map(|management| management.name).collect();
            for device in vdpa.devices().await?.into_iter().filter(|device| is_ours(&device.name)) {
                let config = match told(vdpa.config(&device.name).await)? {
                    // It went meanwhile.
                    Err(refusal) if refusal.errno == Errno::ENODEV as i32 => continue,
                    config => config?,
                };
                facts.vdpa_devices.insert(device.name, config.mac);
            }
            Ok(())
        };
        if let Err(refusal) = told(read.await)? {
            facts.vdpa_refusal = Some(refusal);
        }
        Ok(())
    }

    /// Returns when something may have changed.
    async fn rung(&self) -> io::Result<()> {
        let rung = async |bell: &Option<Doorbell>| match bell {
            Some(bell) => bell.rung().await,
            None => pending().await,
        };
        tokio::select! {
            rung = self.link_bell.rung() => rung,
            rung = rung(&self.device_bell) => rung,
            rung = rung(&self.devlink_bell) => rung,
        }
    }

    /// Silences the bells, since a look follows; hangs the devlink bell as soon as that is there.
    /// Says whether one rang.
    async fn drain(&mut self) -> Result<bool, EswitchError> {
        let mut rang = self.link_bell.drain();
        if let Some(bell) = &self.device_bell {
            rang |= bell.drain();
        }
        match (&self.devlink, &self.devlink_bell) {
            (_, Some(bell)) => rang |= bell.drain(),
            (Some(devlink), None) => {
                if let Some(group) = devlink.config_group().await? {
                    let bell = Doorbell::hang(NETLINK_GENERIC, group).map_err(subscription)?;
                    self.devlink_bell = Some(bell);
                }
            }
            (None, None) => {}
        }
        Ok(rang)
    }
}

fn subscription(source: io::Error) -> EswitchError {
    EswitchError::Socket { what: "cannot subscribe to kernel notifications", source }
}

/// What devlink says about a device's eswitch.
async fn eswitch(devlink: &Devlink, device: &DevlinkName) -> Result<Eswitch, KernelRefusal> {
    if devlink.config_group().await?.is_none() {
        return Ok(Eswitch::Absent);
    }
    Ok(match told(devlink.eswitch(device).await)? {
        Ok(Some(eswitch)) => Eswitch::There(eswitch),
        Ok(None) => Eswitch::Fixed,
        Err(refusal) if refusal.errno == Errno::ENODEV as i32 => Eswitch::Absent,
        Err(refusal) => Eswitch::Refused(refusal),
    })
}

/// The kernel's answer, be it a refusal: an error only where none came.
fn told<T>(answer: Result<T, KernelRefusal>) -> Result<Result<T, KernelRefusal>, KernelRefusal> {
    match answer {
        Err(lost) if lost.is_lost() => Err(lost),
        answer => Ok(answer),
    }
}

/// The PCI addresses of a device's VFs, by index: the links `virtfnN` of its PF.
fn vf_addresses(device: &DevlinkName) -> BTreeMap<u16, String> {
    let folder = Path::new(BUSES).join(&device.bus).join("devices").join(&device.device);
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let index = entry.file_name().to_str()?.strip_prefix("virtfn")?.parse().ok()?;
            let vf = std::fs::read_link(entry.path()).ok()?;
            Some((index, vf.file_name()?.to_str()?.to_owned()))
        })
        .collect()
}

/// The drivers of a device's VFs, by index; of those that have one.
fn vf_drivers(device: &DevlinkName) -> BTreeMap<u16, String> {
    let devices = Path::new(BUSES).join(&device.bus).join("devices");
    let driver = |address: String| {
        let link = std::fs::read_link(devices.join(address).join("driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    };
    let vfs = vf_addresses(device).into_iter();
    vfs.filter_map(|(index, address)| Some((index, driver(address)?))).collect()
}

/// The name of a device's kernel driver.
fn driver(device: &DevlinkName) -> Option<String> {
    let link = Path::new(BUSES).join(&device.bus).join("devices").join(&device.device);
    let driver = std::fs::read_link(link.join("driver")).ok()?;
    Some(driver.file_name()?.to_str()?.to_owned())
}
