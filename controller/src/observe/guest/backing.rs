//! What a guest's functions stand on, as the kernel confirms it.
//!
//! In: a QEMU's process, its functions' backends, `/proc` and sysfs. Out: a [`BackingView`] each.
//! The command line only proposes; what counts is which objects the process holds: a tap by the
//! `iff:` line of its descriptor (`drivers/net/tun.c`), a vDPA device by the device number of its
//! descriptor. Whatever is not confirmed is `Unknown`, with a remedy. Whether two guests hold the
//! same object is not asked here: whoever sees all guests sees that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Read as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use super::{
    command_line::{self, Claims, NetdevClaim, VhostVdpaClaim},
    process::Process,
    qmp::DeviceId,
};
use crate::world::BackingView;

/// A function and the id of its backend, as QEMU says it.
pub(crate) type Backends = BTreeMap<DeviceId, Option<String>>;

/// Backings by device id.
pub(crate) type Backings = BTreeMap<DeviceId, BackingView>;

/// A device number: major and minor.
type Rdev = (u64, u64);

/// `/dev/net/tun` (`TUN_MINOR` in `include/linux/miscdevice.h`).
const TUN: Rdev = (10, 200);

/// The longest command line that is read, in bytes.
const COMMAND_LINE_BOUND: u64 = 4 << 20;

const NAME_IT: &str = "name it in the guest's spec.backings";

/// What a process holds that can be a backing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Held {
    /// Whether the process lives in this network namespace: the names of its taps say nothing
    /// where it does not.
    same_netns: bool,
    /// Taps by descriptor; empty names are descriptors that no tap is attached to.
    taps: BTreeMap<u32, String>,
    /// Other character devices by descriptor.
    devices: BTreeMap<u32, Rdev>,
}

/// What the host's sysfs says of a vhost-vdpa character device.
#[derive(Debug, Clone, PartialEq, Eq)]
enum VdpaParent {
    /// Its vDPA device's parent is a VF.
    Vf { handle: String, index: u16 },
    /// It is a vDPA device, of no VF.
    NoVf { name: String },
    /// It is none.
    NotVdpa,
}

/// The host as far as backings depend on it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    proc: PathBuf,
    sys: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Host { proc: "/proc".into(), sys: "/sys".into() }
    }
}

fn rdev(path: &Path) -> io::Result<Option<Rdev>> {
    let metadata = fs::metadata(path)?;
    let number = metadata.rdev();
    Ok(metadata.file_type().is_char_device().then(|| (major(number), minor(number))))
}

fn tap_name(fdinfo: &str) -> Option<&str> {
    fdinfo.lines().find_map(|line| line.strip_prefix("iff:\t"))
}

impl Host {
    fn held_by(&self, pid: u32) -> io::Result<Held> {
        let process = self.proc.join(pid.to_string());
        let netns = |process: &Path| fs::read_link(process.join("ns/net"));
        let mut held = Held {
            same_netns: netns(&process)? == netns(&self.proc.join("self"))?,
            ..Held::default()
        };
        for entry in fs::read_dir(process.join("fd"))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(fd) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // A descriptor that was closed meanwhile is not held.
            let Ok(Some(number)) = rdev(&entry.path()) else { continue };
            if number == TUN {
                let info = fs::read_to_string(process.join("fdinfo").join(&name));
                if let Some(tap) = info.ok().as_deref().and_then(tap_name) {
                    held.taps.insert(fd, tap.to_owned());
                }
            } else {
                held.devices.insert(fd, number);
            }
        }
        Ok(held)
    }

    fn claims_of(&self, pid: u32) -> io::Result<Claims> {
        let mut bytes = Vec::new();
        fs::File::open(self.proc.join(pid.to_string()).join("cmdline"))?
            .take(COMMAND_LINE_BOUND)
            .read_to_end(&mut bytes)?;
        Ok(command_line::claims(&bytes))
    }

    /// Resolves `/sys/dev/char/MAJ:MIN` → `…/vdpaN/vhost-vdpa-N` → the nearest PCI function above
    /// it → `physfn` → index among its `virtfnN`.
    fn vdpa_parent(&self, (major, minor): Rdev) -> io::Result<VdpaParent> {
        let device = fs::canonicalize(self.sys.join(format!("dev/char/{major}:{minor}")))?;
        let is_vdpa = device
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("vhost-vdpa-"));
        let Some(vdpa) = device.parent().filter(|_| is_vdpa) else {
            return Ok(VdpaParent::NotVdpa);
        };
        let name = vdpa.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(vf) = vdpa.ancestors().find(|above| above.join("physfn").exists()) else {
            return Ok(VdpaParent::NoVf { name });
        };
        let pf = fs::canonicalize(vf.join("physfn"))?;
        for entry in fs::read_dir(&pf)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let index = file_name.to_str().and_then(|name| name.strip_prefix("virtfn"));
            let Some(index) = index.and_then(|index| index.parse().ok()) else { continue };
            if fs::canonicalize(entry.path()).is_ok_and(|virtfn| virtfn == vf) {
                let address = pf.file_name().unwrap_or_default().to_string_lossy();
                return Ok(VdpaParent::Vf { handle: format!("pci/{address}"), index });
            }
        }
        Ok(VdpaParent::NoVf { name })
    }

    /// What each function of `process` stands on. Blocks on `/proc` and sysfs.
    pub(crate) fn backings(&self, process: Process, backends: &Backends) -> Backings {
        let pid = process.pid();
        let read =
            || -> io::Result<(Held, Claims)> { Ok((self.held_by(pid)?, self.claims_of(pid)?)) };
        let (held, claims) = match read() {
            Ok(read) if process.is_alive() => read,
            Ok(_) => return all_unknown(backends, &format!("process {pid} ended")),
            Err(error) => {
                let reason = format!(
                    "what process {pid} holds cannot be read: {error}; let the daemon read /proc \
                     of QEMU's user (CAP_SYS_PTRACE, hidepid)"
                );
                return all_unknown(backends, &reason);
            }
        };
        let names: BTreeMap<Rdev, VdpaParent> = held
            .devices
            .values()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter_map(|rdev| Some((*rdev, self.vdpa_parent(*rdev).ok()?)))
            .filter(|(_, parent)| *parent != VdpaParent::NotVdpa)
            .collect();
        let evidence = Evidence { pid, held: &held, claims: &claims, vdpa: &names };
        let path_rdev = |path: &Path| rdev(path).ok().flatten();
        backends
            .iter()
            .map(|(device, netdev)| {
                let backing = evidence.backing(device, netdev.as_deref(), &path_rdev);
                (device.clone(), backing.unwrap_or_else(|reason| BackingView::Unknown { reason }))
            })
            .collect()
    }
}

/// Every function on an unknown backing, for one reason.
pub(crate) fn all_unknown(backends: &Backends, reason: &str) -> Backings {
    let unknown = || BackingView::Unknown { reason: reason.to_owned() };
    backends.keys().map(|device| (device.clone(), unknown())).collect()
}

/// What is known of one process, from which its functions' backings follow.
struct Evidence<'a> {
    pid: u32,
    held: &'a Held,
    claims: &'a Claims,
    /// The vhost-vdpa devices that it holds.
    vdpa: &'a BTreeMap<Rdev, VdpaParent>,
}

impl Evidence<'_> {
    /// The backing of one function, or why it is not known.
    fn backing(
        &self,
        device: &DeviceId,
        netdev: Option<&str>,
        path_rdev: &dyn Fn(&Path) -> Option<Rdev>,
    ) -> Result<BackingView, String> {
        let claimed = || self.claims.devices.get(device.as_str()).map(String::as_str);
        let netdev = netdev
            .or_else(claimed)
            .ok_or_else(|| format!("the device has no network backend; {NAME_IT}"))?;
        match self.claims.netdevs.get(netdev) {
            None => Err(format!(
                "no -netdev {netdev} on the command line of process {} (hot-plugged, or another \
                 process started QEMU's socket); {NAME_IT}",
                self.pid
            )),
            Some(NetdevClaim::Tap { name, fds }) => self.tap(netdev, name.as_deref(), fds),
            Some(NetdevClaim::VhostVdpa(claim)) => self.vhost_vdpa(netdev, claim, path_rdev),
            Some(NetdevClaim::Other { kind }) => Err(format!(
                "-netdev {netdev} is {kind}, which stands on nothing in an eswitch; use tap or \
                 vhost-vdpa, or {NAME_IT}"
            )),
        }
    }

    fn tap(&self, netdev: &str, name: Option<&str>, fds: &[u32]) -> Result<BackingView, String> {
        let pid = self.pid;
        if !self.held.same_netns {
            return Err(format!(
                "process {pid} lives in another network namespace, where its taps may have any \
                 name; run QEMU in the daemon's, or {NAME_IT}"
            ));
        }
        let mut held: BTreeSet<&str> =
            self.held.taps.values().map(String::as_str).filter(|tap| !tap.is_empty()).collect();
        if let Some(name) = name {
            return held
                .contains(name)
                .then(|| BackingView::Netdev { name: name.to_owned() })
                .ok_or_else(|| {
                    format!(
                        "-netdev {netdev} claims the tap {name}, but process {pid} does not hold \
                         it; start QEMU with the right ifname, or {NAME_IT}"
                    )
                });
        }
        if fds.is_empty() {
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
        } else {
            let mut named = BTreeSet::new();
            for fd in fds {
                let tap =
                    self.held.taps.get(fd).filter(|tap| !tap.is_empty()).ok_or_else(|| {
                        format!(
                            "-netdev {netdev} claims descriptor {fd}, which is no attached tap of \
                         process {pid} (macvtap is not supported); {NAME_IT}"
                        )
                    })?;
                named.insert(tap.as_str());
            }
            held = named;
        }
        let mut held = held.into_iter();
        match (held.next(), held.next()) {
            (Some(only), None) => Ok(BackingView::Netdev { name: only.to_owned() }),
            _ => Err(format!(
                "-netdev {netdev} does not say which tap of process {pid} it is; start QEMU with \
                 ifname=, or {NAME_IT}"
            )),
        }
    }

    fn vhost_vdpa(
        &self,
        netdev: &str,
        claim: &VhostVdpaClaim,
        path_rdev: &dyn Fn(&Path) -> Option<Rdev>,
    ) -> Result<BackingView, String> {
        let pid = self.pid;
        let not_held = |what: String| {
            format!(
                "-netdev {netdev} claims {what}, but process {pid} holds no such vDPA device; \
                 start QEMU with the right one, or {NAME_IT}"
            )
        };
        let parent = match claim {
            VhostVdpaClaim::Path(path) => path_rdev(path)
                .and_then(|rdev| self.vdpa.get(&rdev))
                .ok_or_else(|| not_held(path.display().to_string()))?,
            VhostVdpaClaim::Fd(fd) => self
                .held
                .devices
                .get(fd)
                .and_then(|rdev| self.vdpa.get(rdev))
                .ok_or_else(|| not_held(format!("descriptor {fd}")))?,
            VhostVdpaClaim::Unnamed => {
                // The number of an inherited descriptor changes on its way into a set: the claim
                // is clear only where there is one device and one such backend.
                let claimants = self.claims.netdevs.values();
                let claimants =
                    claimants.filter(|claim| matches!(claim, NetdevClaim::VhostVdpa(_))).count();
                match (self.vdpa.values().next(), self.vdpa.len(), claimants) {
                    (Some(parent), 1, 1) => parent,
                    _ => {
                        return Err(format!(
                            "-netdev {netdev} does not say which of the {} vDPA devices of \
                             process {pid} it is; start QEMU with vhostdev=/dev/vhost-vdpa-N or \
                             vhostfd=, or {NAME_IT}",
                            self.vdpa.len()
                        ));
                    }
                }
            }
        };
        match parent {
            VdpaParent::Vf { handle, index } => {
                Ok(BackingView::Vf { handle: handle.clone(), index: *index })
            }
            VdpaParent::NoVf { name } => {
                Err(format!("the vDPA device {name} stands on no VF; {NAME_IT}"))
            }
            VdpaParent::NotVdpa => Err(not_held("a device that is no vDPA device".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const VDPA0: Rdev = (511, 0);
    const VDPA1: Rdev = (511, 1);

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

    fn backing_of(option: &str, held: &Held) -> Result<BackingView, String> {
        let line = format!("qemu\0-netdev\0{option}\0-device\0virtio-net-pci,id=vf0,netdev=n1");
        let claims = command_line::claims(line.as_bytes());
        let vf = VdpaParent::Vf { handle: "pci/0000:03:00.0".into(), index: 3 };
        let vdpa = [(VDPA0, vf)].into();
        let path_rdev = |path: &Path| match path.to_str() {
            Some("/dev/vhost-vdpa-0") => Some(VDPA0),
            Some("/dev/vhost-vdpa-1") => Some(VDPA1),
            _ => None,
        };
        Evidence { pid: 42, held, claims: &claims, vdpa: &vdpa }.backing(
            &DeviceId::new("vf0").unwrap(),
            None,
            &path_rdev,
        )
    }

    fn netdev(name: &str) -> Result<BackingView, String> {
        Ok(BackingView::Netdev { name: name.to_owned() })
    }

    fn assert_refused(option: &str, held: &Held, words: &str) {
        let reason = backing_of(option, held).expect_err(option);
        assert!(reason.contains(words) && reason.contains("spec.backings"), "{option}: {reason}");
    }

    #[test]
    fn a_tap_counts_when_the_process_holds_it() {
        assert_eq!(backing_of("tap,id=n1,ifname=tap1", &held()), netdev("tap1"));
        assert_eq!(backing_of("tap,id=n1,fd=10", &held()), netdev("tap2"));
        assert_eq!(backing_of("tap,id=n1,fds=8:9", &held()), netdev("tap1"));
    }

    #[test]
    fn a_neighbours_tap_that_is_only_claimed_is_refused() {
        assert_refused("tap,id=n1,ifname=tap7", &held(), "does not hold");
    }

    #[test]
    fn descriptors_that_are_no_tap_or_two_are_refused() {
        assert_refused("tap,id=n1,fd=20", &held(), "no attached tap");
        assert_refused("tap,id=n1,fd=11", &held(), "no attached tap");
        assert_refused("tap,id=n1,fds=8:10", &held(), "does not say which");
    }

    #[test]
    fn a_tap_that_qemu_named_is_the_one_that_is_left() {
        assert_eq!(
            backing_of("tap,id=n1\0-netdev\0tap,id=n2,ifname=tap1", &held()),
            netdev("tap2")
        );
        assert_refused("tap,id=n1", &held(), "does not say which");
    }

    #[test]
    fn tap_names_of_another_namespace_say_nothing() {
        let elsewhere = Held { same_netns: false, ..held() };
        assert_refused("tap,id=n1,ifname=tap1", &elsewhere, "another network namespace");
    }

    #[test]
    fn a_vdpa_device_counts_when_the_process_holds_it_however_it_is_named() {
        let vf = Ok(BackingView::Vf { handle: "pci/0000:03:00.0".into(), index: 3 });
        assert_eq!(backing_of("vhost-vdpa,id=n1,vhostdev=/dev/vhost-vdpa-0", &held()), vf);
        assert_eq!(backing_of("vhost-vdpa,id=n1,vhostfd=20", &held()), vf);
        assert_eq!(backing_of("vhost-vdpa,id=n1,vhostdev=/dev/fdset/1", &held()), vf);
    }

    #[test]
    fn a_vdpa_device_that_is_only_claimed_is_refused() {
        assert_refused("vhost-vdpa,id=n1,vhostdev=/dev/vhost-vdpa-1", &held(), "no such vDPA");
        assert_refused("vhost-vdpa,id=n1,vhostfd=21", &held(), "no such vDPA");
        assert_refused(
            "vhost-vdpa,id=n1,vhostdev=/dev/fdset/1\0-netdev\0vhost-vdpa,id=n2,vhostfd=20",
            &held(),
            "does not say which",
        );
    }

    #[test]
    fn backends_without_a_counterpart_are_named() {
        assert_refused("vhost-user,id=n1,chardev=c", &held(), "vhost-user");
        assert_refused("user,id=other", &held(), "no -netdev n1");
    }

    #[test]
    fn a_vdpa_device_leads_to_its_vf_through_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let pf = sys.path().join("devices/pci0000:00/0000:03:00.0");
        let vf = sys.path().join("devices/pci0000:00/0000:03:00.5");
        let char_device = vf.join("vdpa4/vhost-vdpa-2");
        let lone = sys.path().join("devices/vdpasim_net/vdpa5/vhost-vdpa-3");
        for folder in [&pf, &char_device, &lone, &sys.path().join("dev/char")] {
            fs::create_dir_all(folder).unwrap();
        }
        symlink("../0000:03:00.0", vf.join("physfn")).unwrap();
        symlink("../0000:03:00.4", pf.join("virtfn2")).unwrap();
        symlink("../0000:03:00.5", pf.join("virtfn3")).unwrap();
        symlink(&char_device, sys.path().join("dev/char/511:2")).unwrap();
        symlink(&lone, sys.path().join("dev/char/511:3")).unwrap();
        symlink(&pf, sys.path().join("dev/char/1:3")).unwrap();

        let host = Host { sys: sys.path().into(), ..Host::default() };
        assert_eq!(
            host.vdpa_parent((511, 2)).unwrap(),
            VdpaParent::Vf { handle: "pci/0000:03:00.0".into(), index: 3 }
        );
        assert_eq!(host.vdpa_parent((511, 3)).unwrap(), VdpaParent::NoVf { name: "vdpa5".into() });
        assert_eq!(host.vdpa_parent((1, 3)).unwrap(), VdpaParent::NotVdpa);
        assert!(host.vdpa_parent((511, 9)).is_err());
    }

    #[test]
    fn what_a_process_holds_is_read_from_the_kernel() {
        let null = fs::File::open("/dev/null").unwrap();
        let held = Host::default().held_by(std::process::id()).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&null);
        assert!(held.same_netns);
        assert_eq!(held.devices.get(&u32::try_from(fd).unwrap()), Some(&(1, 3)));
    }

    #[test]
    fn the_tap_of_a_descriptor_is_in_its_fdinfo() {
        let info = "pos:\t0\nflags:\t0104002\nmnt_id:\t29\nino:\t142\niff:\ttap1\n";
        assert_eq!(tap_name(info), Some("tap1"));
        assert_eq!(tap_name("pos:\t0\nflags:\t02\n"), None);
    }
}
