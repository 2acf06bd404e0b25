//! What a guest's functions stand on, as the kernel confirms it.
//!
//! In: a QEMU's process, its functions' backends, what processes hold. Out: a [`Footing`] each.
//! The command line only proposes; what counts is which objects the process holds: a tap by the
//! `iff:` line of its descriptor (`drivers/net/tun.c`), a vDPA device by the device number of its
//! descriptor, and that no other process held it first. Whatever is not confirmed is not known,
//! with a remedy. No command is sent and nothing is changed here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Read as _,
    path::Path,
};

use api::resources::{BackingSource, ControlQueue};

use super::{
    command_line::{self, Claims, NetdevClaim, VhostVdpaClaim},
    holdings::{Census, Held, Holders, Host, Rdev, VdpaParent, rdev},
    process::Process,
    qmp::DeviceId,
};
use crate::{eswitch::vdpa::VdpaConfig, world::BackingView};

/// A function and the id of its backend, as QEMU says it.
pub(crate) type Backends = BTreeMap<DeviceId, Option<String>>;

/// What each function stands on, by device id.
pub(crate) type Backings = BTreeMap<DeviceId, Footing>;

/// What a function stands on, and what follows from that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footing {
    /// What it is.
    pub(crate) backing: BackingView,
    /// How that was found; absent where it was not.
    pub(crate) source: Option<BackingSource>,
    /// Whether QEMU sees what the driver does.
    pub(crate) control_queue: ControlQueue,
    /// The vDPA device, where it is one.
    pub(crate) vdpa: Option<String>,
    /// What that device was given, where the kernel says so.
    pub(crate) config: Option<VdpaConfig>,
}

impl From<BackingView> for Footing {
    fn from(backing: BackingView) -> Self {
        Footing {
            backing,
            source: None,
            control_queue: ControlQueue::Unknown,
            vdpa: None,
            config: None,
        }
    }
}

/// The longest command line that is read, in bytes.
const COMMAND_LINE_BOUND: u64 = 4 << 20;

const NAME_IT: &str = "name it in the guest's spec.backings";

/// Drivers whose vDPA devices have a control queue in a group of its own, which QEMU shadows by
/// itself (`net/vhost-vdpa.c` of QEMU, `vhost_vdpa_probe_cvq_isolation`). Simulated devices have
/// none and do too.
const ISOLATED_CONTROL_QUEUE: [&str; 1] = ["mlx5_core"];

/// Drivers whose vDPA devices have none, as sysfs names them.
const SHARED_CONTROL_QUEUE: [&str; 4] = ["vp-vdpa", "ifcvf", "pds_vdpa.vDPA", "octep_vdpa"];

fn claims_of(host: &Host, pid: u32) -> io::Result<Claims> {
    let mut bytes = Vec::new();
    fs::File::open(host.proc.join(pid.to_string()).join("cmdline"))?
        .take(COMMAND_LINE_BOUND)
        .read_to_end(&mut bytes)?;
    Ok(command_line::claims(&bytes))
}

/// What each function of `process` stands on. Blocks on `/proc` and sysfs.
pub(crate) fn backings(
    holders: &Holders,
    census: &Census,
    process: &Process,
    backends: &Backends,
) -> Backings {
    let (host, pid) = (holders.host(), process.pid());
    let read = || -> io::Result<(Held, Claims)> { Ok((host.held_by(pid)?, claims_of(host, pid)?)) };
    let (held, claims) = match read() {
        Ok(read) if process.is_alive() => read,
        Ok(_) => return all_unknown(backends, &format!("process {pid} ended")),
        Err(error) => {
            let reason = format!(
                "what process {pid} holds cannot be read: {error}; let the daemon read /proc of \
                 QEMU's user (CAP_SYS_PTRACE, hidepid)"
            );
            return all_unknown(backends, &reason);
        }
    };
    let vdpa = held
        .devices
        .values()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter_map(|rdev| Some((*rdev, host.vdpa_parent(*rdev).ok()?)))
        .filter(|(_, parent)| *parent != VdpaParent::NotVdpa)
        .collect();
    let path_rdev = |path: &Path| rdev(path).ok().flatten();
    let evidence =
        Evidence { pid, held: &held, claims: &claims, vdpa: &vdpa, census, path_rdev: &path_rdev };
    let footing = |(device, netdev): (&DeviceId, &Option<String>)| {
        let footing = match evidence.found(device, netdev.as_deref()) {
            Ok(Found { footing, .. }) if !footing.backing.is_known() => footing,
            Ok(Found { footing, others })
                if holders.grant(&footing.backing, process, others.is_empty()) =>
            {
                footing
            }
            Ok(found) => found.contested(pid),
            Err(unknown) => unknown.into(),
        };
        (device.clone(), footing)
    };
    backends.iter().map(footing).collect()
}

/// Every function on an unknown backing, for one reason.
pub(crate) fn all_unknown(backends: &Backends, reason: &str) -> Backings {
    let unknown = || BackingView::Unknown { reason: reason.to_owned() }.into();
    backends.keys().map(|device| (device.clone(), unknown())).collect()
}

fn unknown<T>(reason: String) -> Result<T, BackingView> {
    Err(BackingView::Unknown { reason })
}

/// Processes in a sentence.
fn list(pids: &[u32]) -> String {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    format!("process {}", pids.join(", "))
}

/// What the kernel confirms that the process holds.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    footing: Footing,
    /// Other processes that hold it, too.
    others: Vec<u32>,
}

impl Found {
    fn contested(self, pid: u32) -> Footing {
        let what = match &self.footing.backing {
            BackingView::Netdev { name } => format!("the tap {name}"),
            _ => "its vDPA device".into(),
        };
        let reason = format!(
            "{what} is held by process {pid} and by {} as well: nobody can say whose frames those \
             are; give each guest a backing of its own, or {NAME_IT}",
            list(&self.others)
        );
        BackingView::Contested { reason }.into()
    }
}

/// What is known of one process, from which its functions' backings follow.
struct Evidence<'a> {
    pid: u32,
    held: &'a Held,
    claims: &'a Claims,
    /// The vhost-vdpa devices that it holds.
    vdpa: &'a BTreeMap<Rdev, VdpaParent>,
    /// What others hold.
    census: &'a Census,
    /// The device number of a path.
    path_rdev: &'a dyn Fn(&Path) -> Option<Rdev>,
}

impl Evidence<'_> {
    /// What one function stands on, or why that is not known.
    fn found(&self, device: &DeviceId, netdev: Option<&str>) -> Result<Found, BackingView> {
        let claimed = || self.claims.devices.get(device.as_str()).map(String::as_str);
        let Some(netdev) = netdev.or_else(claimed) else {
            return unknown(format!("the device has no network backend; {NAME_IT}"));
        };
        match self.claims.netdevs.get(netdev) {
            None => unknown(format!(
                "no -netdev {netdev} on the command line of process {} (hot-plugged, or another \
                 process started QEMU's socket); {NAME_IT}",
                self.pid
            )),
            Some(NetdevClaim::Tap { name, fds }) => self.tap(netdev, name.as_deref(), fds),
            Some(NetdevClaim::VhostVdpa { device, shadowed }) => {
                self.vhost_vdpa(netdev, device, *shadowed)
            }
            Some(NetdevClaim::Other { kind }) => Err(BackingView::Unsupported {
                reason: format!(
                    "-netdev {netdev} is {kind}, which stands on nothing in an eswitch; use tap or \
                     vhost-vdpa, or {NAME_IT}"
                ),
            }),
        }
    }

    fn tap(&self, netdev: &str, name: Option<&str>, fds: &[u32]) -> Result<Found, BackingView> {
        let pid = self.pid;
        if !self.held.same_netns {
            return unknown(format!(
                "process {pid} lives in another network namespace, where its taps may have any \
                 name; run QEMU in the daemon's, or {NAME_IT}"
            ));
        }
        let mut held: BTreeSet<&str> =
            self.held.taps.values().map(String::as_str).filter(|tap| !tap.is_empty()).collect();
        let source = if let Some(name) = name {
            if !held.contains(name) {
                return Err(self.not_held(
                    &format!("-netdev {netdev} claims the tap {name}"),
                    &self.census.tap_holders_besides(pid, name),
                    "start QEMU with the right ifname",
                ));
            }
            held = BTreeSet::from([name]);
            BackingSource::TapName
        } else if fds.is_empty() {
            // QEMU has chosen the name: it is what no other backend claims, where that is one.
            for claim in self.claims.netdevs.values() {
                match claim {
                    NetdevClaim::Tap { name: Some(name), .. } => {
                        held.remove(name.as_str());
                    }
                    NetdevClaim::Tap { fds, .. } => {
                        for tap in fds.iter().filter_map(|fd| self.held.taps.get(fd)) {
                            held.remove(tap.as_str());
                        }
                    }
                    _ => {}
                }
            }
            BackingSource::OnlyTap
        } else {
            let mut named = BTreeSet::new();
            for fd in fds {
                let Some(tap) = self.held.taps.get(fd).filter(|tap| !tap.is_empty()) else {
                    return unknown(format!(
                        "-netdev {netdev} claims descriptor {fd}, which is no attached tap of \
                         process {pid} (macvtap is not supported); {NAME_IT}"
                    ));
                };
                named.insert(tap.as_str());
            }
            held = named;
            BackingSource::TapDescriptor
        };
        let mut held = held.into_iter();
        let (Some(tap), None) = (held.next(), held.next()) else {
            return unknown(format!(
                "-netdev {netdev} does not say which tap of process {pid} it is; start QEMU with \
                 ifname=, or {NAME_IT}"
            ));
        };
        if self.census.is_elsewhere(pid, tap) {
            return unknown(format!(
                "the tap {tap} that process {pid} holds is in another network namespace than the \
                 daemon's, whatever is called {tap} here; move it back, or {NAME_IT}"
            ));
        }
        let footing = Footing {
            backing: BackingView::Netdev { name: tap.to_owned() },
            source: Some(source),
            control_queue: ControlQueue::Seen,
            vdpa: None,
            config: None,
        };
        Ok(Found { footing, others: self.census.tap_holders_besides(pid, tap) })
    }

    /// A claim that the kernel does not confirm: a conflict where somebody else holds the thing.
    fn not_held(&self, claim: &str, holders: &[u32], remedy: &str) -> BackingView {
        let pid = self.pid;
        if holders.is_empty() {
            let reason =
                format!("{claim}, but process {pid} does not hold it; {remedy}, or {NAME_IT}");
            return BackingView::Unknown { reason };
        }
        let holders = list(holders);
        let reason = format!(
            "{claim}, which {holders} holds and process {pid} does not; {remedy}, or {NAME_IT}"
        );
        BackingView::Contested { reason }
    }

    fn vhost_vdpa(
        &self,
        netdev: &str,
        claim: &VhostVdpaClaim,
        shadowed: bool,
    ) -> Result<Found, BackingView> {
        let pid = self.pid;
        let remedy = "start QEMU with the right vDPA device";
        let (device, source) = match claim {
            VhostVdpaClaim::Path(path) => {
                let device = (self.path_rdev)(path);
                let Some(held) = device.filter(|rdev| self.vdpa.contains_key(rdev)) else {
                    let claim = format!("-netdev {netdev} claims {}", path.display());
                    let others = device
                        .map(|rdev| self.census.device_holders_besides(pid, rdev))
                        .unwrap_or_default();
                    return Err(self.not_held(&claim, &others, remedy));
                };
                (held, BackingSource::VdpaPath)
            }
            VhostVdpaClaim::Fd(fd) => {
                let held = self.held.devices.get(fd).filter(|rdev| self.vdpa.contains_key(rdev));
                let Some(held) = held else {
                    return unknown(format!(
                        "-netdev {netdev} claims descriptor {fd}, but that is no vDPA device of \
                         process {pid}; {remedy}, or {NAME_IT}"
                    ));
                };
                (*held, BackingSource::VdpaDescriptor)
            }
            VhostVdpaClaim::Set(set) => (self.of_set(netdev, set)?, BackingSource::VdpaSet),
            VhostVdpaClaim::Unnamed => {
                return unknown(format!(
                    "-netdev {netdev} names no vDPA device; start QEMU with \
                     vhostdev=/dev/vhost-vdpa-N or vhostfd=, or {NAME_IT}"
                ));
            }
        };
        let Some(VdpaParent::Vdpa { name, vf, driver }) = self.vdpa.get(&device) else {
            return unknown(format!("process {pid} holds no such vDPA device; {NAME_IT}"));
        };
        let backing = match vf {
            Some((handle, index)) => BackingView::Vf { handle: handle.clone(), index: *index },
            None => BackingView::Unknown {
                reason: format!("the vDPA device {name} stands on no VF; {NAME_IT}"),
            },
        };
        let footing = Footing {
            backing,
            source: Some(source),
            control_queue: control_queue(shadowed, driver.as_deref()),
            vdpa: Some(name.clone()),
            config: None,
        };
        Ok(Found { footing, others: self.census.device_holders_besides(pid, device) })
    }

    /// The vDPA device that was handed over in a set of descriptors. QEMU copies each descriptor
    /// into its set, in the order of its command line, and each copy takes the lowest number that
    /// is free (`system/vl.c`, `parse_add_fd`): so the lowest descriptors of the devices that
    /// nothing else names stand in the order of the sets.
    fn of_set(&self, netdev: &str, set: &str) -> Result<Rdev, BackingView> {
        let mut elsewhere = BTreeSet::new();
        let mut sets = BTreeSet::new();
        for claim in self.claims.netdevs.values() {
            match claim {
                NetdevClaim::VhostVdpa { device: VhostVdpaClaim::Path(path), .. } => {
                    elsewhere.extend((self.path_rdev)(path));
                }
                NetdevClaim::VhostVdpa { device: VhostVdpaClaim::Fd(fd), .. } => {
                    elsewhere.extend(self.held.devices.get(fd).copied());
                }
                NetdevClaim::VhostVdpa { device: VhostVdpaClaim::Set(set), .. } => {
                    sets.insert(set.as_str());
                }
                _ => {}
            }
        }
        let mut devices: Vec<Rdev> = Vec::new();
        for device in self.held.devices.values() {
            if self.vdpa.contains_key(device)
                && !elsewhere.contains(device)
                && !devices.contains(device)
            {
                devices.push(*device);
            }
        }
        let mut order: Vec<&str> = Vec::new();
        for set in self.claims.descriptor_sets.iter().map(String::as_str) {
            if sets.contains(set) && !order.contains(&set) {
                order.push(set);
            }
        }
        let place = order.iter().position(|known| *known == set);
        // A single one needs no order: it may have been added over QMP.
        let place = place.or((sets.len() == 1).then_some(0));
        match place.and_then(|place| devices.get(place)) {
            Some(device) if devices.len() == sets.len() => Ok(*device),
            _ => unknown(format!(
                "-netdev {netdev} does not say which of the {} vDPA devices of process {} it is; \
                 start QEMU with vhostdev=/dev/vhost-vdpa-N or vhostfd=, or {NAME_IT}",
                devices.len(),
                self.pid
            )),
        }
    }
}

/// Whether QEMU sees the control queue of a vDPA device.
fn control_queue(shadowed: bool, driver: Option<&str>) -> ControlQueue {
    match driver {
        _ if shadowed => ControlQueue::Seen,
        None => ControlQueue::Seen,
        Some(driver) if ISOLATED_CONTROL_QUEUE.contains(&driver) => ControlQueue::Seen,
        Some(driver) if SHARED_CONTROL_QUEUE.contains(&driver) => ControlQueue::Hidden,
        Some(_) => ControlQueue::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VDPA0: Rdev = (511, 0);
    const VDPA1: Rdev = (511, 1);
    const VDPA2: Rdev = (511, 2);

    /// A process that holds tap1 by two descriptors, tap2 by one, and VF 3's vDPA device.
    fn held() -> Held {
        Held {
            same_netns: true,
            taps: [(8, "tap1"), (9, "tap1"), (10, "tap2"), (11, "")]
                .map(|(fd, name)| (fd, name.to_owned()))
                .into(),
            devices: [(20, VDPA0), (21, (1, 3))].into(),
        }
    }

    fn vf_of(index: u16, driver: &str) -> VdpaParent {
        VdpaParent::Vdpa {
            name: format!("vdpa{index}"),
            vf: Some(("pci/0000:03:00.0".into(), index)),
            driver: Some(driver.to_owned()),
        }
    }

    /// What is found for vf0 on the backend n1 of a QEMU with these options.
    fn found(options: &str, held: &Held, census: &Census) -> Result<Found, BackingView> {
        let line = format!("qemu\0{options}\0-device\0virtio-net-pci,id=vf0,netdev=n1");
        let claims = command_line::claims(line.as_bytes());
        let all = [(VDPA0, vf_of(3, "vp-vdpa")), (VDPA2, vf_of(5, "mlx5_core"))];
        let vdpa =
            all.into_iter().filter(|(rdev, _)| held.devices.values().any(|d| d == rdev)).collect();
        let path_rdev = |path: &Path| match path.to_str() {
            Some("/dev/vhost-vdpa-0") => Some(VDPA0),
            Some("/dev/vhost-vdpa-1") => Some(VDPA1),
            Some("/dev/vhost-vdpa-2") => Some(VDPA2),
            _ => None,
        };
        Evidence { pid: 42, held, claims: &claims, vdpa: &vdpa, census, path_rdev: &path_rdev }
            .found(&DeviceId::new("vf0").unwrap(), None)
    }

    fn backing_of(option: &str, held: &Held) -> Result<(BackingView, BackingSource), BackingView> {
        let found = found(&format!("-netdev\0{option}"), held, &Census::default())?;
        Ok((found.footing.backing, found.footing.source.unwrap()))
    }

    fn netdev(
        name: &str,
        source: BackingSource,
    ) -> Result<(BackingView, BackingSource), BackingView> {
        Ok((BackingView::Netdev { name: name.to_owned() }, source))
    }

    fn vf(index: u16, source: BackingSource) -> Result<(BackingView, BackingSource), BackingView> {
        Ok((BackingView::Vf { handle: "pci/0000:03:00.0".into(), index }, source))
    }

    fn assert_unknown(option: &str, held: &Held, words: &str) {
        let found = backing_of(option, held);
        let Err(BackingView::Unknown { reason }) = &found else { panic!("{option}: {found:?}") };
        assert!(reason.contains(words) && reason.contains("spec.backings"), "{option}: {reason}");
    }

    #[test]
    fn a_tap_counts_when_the_process_holds_it() {
        let held = held();
        let by_name = netdev("tap1", BackingSource::TapName);
        assert_eq!(backing_of("tap,id=n1,ifname=tap1", &held), by_name);
        let by_descriptor = |name| netdev(name, BackingSource::TapDescriptor);
        assert_eq!(backing_of("tap,id=n1,fd=10", &held), by_descriptor("tap2"));
        assert_eq!(backing_of("tap,id=n1,fds=8:9", &held), by_descriptor("tap1"));
    }

    #[test]
    fn a_tap_that_is_only_claimed_is_refused() {
        assert_unknown("tap,id=n1,ifname=tap7", &held(), "does not hold");
    }

    #[test]
    fn a_claim_to_what_a_neighbour_holds_is_a_conflict_that_names_the_neighbour() {
        let census = Census::of(&[("tap7", 77)], &[(VDPA1, 78)]);
        for (claim, neighbour) in [
            ("-netdev\0tap,id=n1,ifname=tap7", "process 77"),
            ("-netdev\0vhost-vdpa,id=n1,vhostdev=/dev/vhost-vdpa-1", "process 78"),
        ] {
            let found = found(claim, &held(), &census);
            let Err(BackingView::Contested { reason }) = found else { panic!("{found:?}") };
            assert!(reason.contains(neighbour) && reason.contains("42 does not"), "{reason}");
        }
    }

    #[test]
    fn other_holders_of_what_the_process_holds_are_found() {
        let census = Census::of(&[("tap1", 42), ("tap1", 77)], &[(VDPA0, 78)]);
        let others = |options: &str| found(options, &held(), &census).unwrap().others;
        assert_eq!(others("-netdev\0tap,id=n1,ifname=tap1"), [77]);
        assert_eq!(others("-netdev\0tap,id=n1,ifname=tap2"), [] as [u32; 0]);
        assert_eq!(others("-netdev\0vhost-vdpa,id=n1,vhostfd=20"), [78]);
    }

    #[test]
    fn descriptors_that_are_no_tap_or_two_are_refused() {
        assert_unknown("tap,id=n1,fd=20", &held(), "no attached tap");
        assert_unknown("tap,id=n1,fd=11", &held(), "no attached tap");
        assert_unknown("tap,id=n1,fds=8:10", &held(), "does not say which");
    }

    #[test]
    fn a_tap_that_qemu_named_is_the_one_that_is_left() {
        assert_eq!(
            backing_of("tap,id=n1\0-netdev\0tap,id=n2,ifname=tap1", &held()),
            netdev("tap2", BackingSource::OnlyTap)
        );
        assert_unknown("tap,id=n1", &held(), "does not say which");
    }

    #[test]
    fn tap_names_of_another_namespace_say_nothing() {
        let elsewhere = Held { same_netns: false, ..held() };
        assert_unknown("tap,id=n1,ifname=tap1", &elsewhere, "another network namespace");
    }

    #[test]
    fn a_vdpa_device_counts_when_the_process_holds_it_however_it_is_named() {
        let held = held();
        for (option, source) in [
            ("vhost-vdpa,id=n1,vhostdev=/dev/vhost-vdpa-0", BackingSource::VdpaPath),
            ("vhost-vdpa,id=n1,vhostfd=20", BackingSource::VdpaDescriptor),
            ("vhost-vdpa,id=n1,vhostdev=/dev/fdset/1", BackingSource::VdpaSet),
        ] {
            assert_eq!(backing_of(option, &held), vf(3, source));
        }
    }

    #[test]
    fn sets_of_descriptors_are_told_apart_by_their_order() {
        // QEMU has copied two descriptors into its sets, and opened each once more.
        let devices = [(13, VDPA2), (14, VDPA0), (30, VDPA0), (31, VDPA2)].into();
        let held = Held { devices, ..held() };
        let of = |added: &str| {
            let options = format!(
                "{added}\0-netdev\0vhost-vdpa,id=n1,vhostdev=/dev/fdset/7\0-netdev\0\
                 vhost-vdpa,id=n2,vhostdev=/dev/fdset/9"
            );
            found(&options, &held, &Census::default()).map(|found| found.footing.backing)
        };
        let index = |index| Ok(BackingView::Vf { handle: "pci/0000:03:00.0".into(), index });
        assert_eq!(of("-add-fd\0fd=3,set=7\0-add-fd\0fd=4,set=9"), index(5));
        assert_eq!(of("-add-fd\0fd=3,set=9\0-add-fd\0fd=4,set=7"), index(3));
        assert!(of("-add-fd\0fd=3,set=9").is_err(), "its place in the order is not known");
    }

    #[test]
    fn a_tap_of_another_network_namespace_is_not_the_one_of_its_name_here() {
        let mut census = Census::of(&[("tap1", 42), ("tap1", 43)], &[]);
        census.put_elsewhere(42, "tap1");
        let found = found("-netdev\0tap,id=n1,ifname=tap1", &held(), &census);
        let Err(BackingView::Unknown { reason }) = &found else { panic!("{found:?}") };
        assert!(reason.contains("another network namespace"), "{reason}");
    }

    #[test]
    fn a_vdpa_device_that_is_only_claimed_is_refused() {
        assert_unknown("vhost-vdpa,id=n1,vhostdev=/dev/vhost-vdpa-1", &held(), "does not hold");
        assert_unknown("vhost-vdpa,id=n1,vhostfd=21", &held(), "no vDPA device");
        assert_unknown(
            "vhost-vdpa,id=n1,vhostdev=/dev/fdset/1\0-netdev\0vhost-vdpa,id=n2,vhostfd=20",
            &held(),
            "does not say which",
        );
    }

    #[test]
    fn the_control_queue_of_a_vdpa_device_is_seen_where_it_is_shadowed_or_apart() {
        let seen = |option: &str, held: &Held| {
            let found = found(&format!("-netdev\0{option}"), held, &Census::default());
            found.unwrap().footing.control_queue
        };
        let by_path = "vhost-vdpa,id=n1,vhostdev=/dev/vhost-vdpa-0";
        assert_eq!(seen(by_path, &held()), ControlQueue::Hidden);
        assert_eq!(seen(&format!("{by_path},x-svq=on"), &held()), ControlQueue::Seen);
        assert_eq!(seen("tap,id=n1,ifname=tap1", &held()), ControlQueue::Seen);
        let mlx5 = Held { devices: [(20, VDPA2)].into(), ..held() };
        assert_eq!(seen("vhost-vdpa,id=n1,vhostfd=20", &mlx5), ControlQueue::Seen);
        assert_eq!(control_queue(false, Some("a_driver_of_next_year")), ControlQueue::Unknown);
        assert_eq!(control_queue(false, None), ControlQueue::Seen, "a simulated device");
    }

    #[test]
    fn backends_without_a_counterpart_are_named_and_unsupported() {
        for kind in ["vhost-user", "user", "af-xdp"] {
            let found = backing_of(&format!("{kind},id=n1"), &held());
            let Err(BackingView::Unsupported { reason }) = &found else { panic!("{found:?}") };
            assert!(reason.contains(kind) && reason.contains("spec.backings"), "{reason}");
        }
        assert_unknown("user,id=other", &held(), "no -netdev n1");
    }
}
