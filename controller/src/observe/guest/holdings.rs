//! What processes hold, as the kernel says: taps and character devices by descriptor.
//!
//! In: `/proc`, sysfs and the list of taps. Out: [`Held`] of one process, [`Census`] of all, and
//! [`Holders`], which remembers who held a backing first. The command line of a process is not
//! looked at here, and nothing here is a claim. A census costs a look at every descriptor of the host: whoever wants
//! one shares it with all who want one at the same time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::stat::{major, minor};

use super::{process::Process, taps};
use crate::{
    eswitch::vdpa::{Vdpa, VdpaConfig},
    world::BackingView,
};

/// A device number: major and minor.
pub(crate) type Rdev = (u64, u64);

/// `/dev/net/tun` (`TUN_MINOR` in `include/linux/miscdevice.h`).
const TUN: Rdev = (10, 200);

/// A census may take one part in this many of one processor's time.
const SHARE: u32 = 20;

/// The longest that a census waits for its share.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What a process holds that can be a backing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Whether the process lives in this network namespace: the names of its taps say nothing
    /// where it does not.
    pub(crate) same_netns: bool,
    /// Taps by descriptor; empty names are descriptors that no tap is attached to.
    pub(crate) taps: BTreeMap<u32, String>,
    /// Other character devices by descriptor.
    pub(crate) devices: BTreeMap<u32, Rdev>,
}

/// What the host's sysfs says of a vhost-vdpa character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VdpaParent {
    /// It is a vDPA device.
    Vdpa {
        /// Its name on the vDPA bus.
        name: String,
        /// The PF's handle and the index of the VF that is its parent, where it has one.
        vf: Option<(String, u16)>,
        /// The kernel driver of its parent; absent for simulated devices.
        driver: Option<String>,
    },
    /// It is none.
    NotVdpa,
}

/// Which processes hold what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Taps of this network namespace, by name.
    taps: BTreeMap<String, BTreeSet<u32>>,
    /// Processes of this network namespace that hold a tap of another, and what it is called.
    elsewhere: BTreeSet<(u32, String)>,
    /// Character devices that are no taps, of processes that were looked at.
    devices: BTreeMap<Rdev, BTreeSet<u32>>,
}

impl Census {
    /// The processes other than `pid` that hold a tap.
    pub(crate) fn tap_holders_besides(&self, pid: u32, tap: &str) -> Vec<u32> {
        self.taps.get(tap).into_iter().flatten().copied().filter(|p| *p != pid).collect()
    }

    /// Whether the tap of this name that `pid` holds is in another network namespace.
    pub(crate) fn is_elsewhere(&self, pid: u32, tap: &str) -> bool {
        self.elsewhere.contains(&(pid, tap.to_owned()))
    }

    /// Sets apart the taps of other network namespaces: those to whose names nobody is attached
    /// here, and those that were such before and are held still. That somebody else came and
    /// attached to a tap of the same name here makes none of them his.
    fn set_apart(&mut self, attached: &BTreeSet<String>, before: Option<&Census>) {
        for (tap, holders) in &mut self.taps {
            holders.retain(|pid| {
                let here = attached.contains(tap)
                    && !before.is_some_and(|before| before.is_elsewhere(*pid, tap));
                if !here {
                    self.elsewhere.insert((*pid, tap.clone()));
                }
                here
            });
        }
    }

    /// The processes other than `pid` that hold a character device.
    pub(crate) fn device_holders_besides(&self, pid: u32, device: Rdev) -> Vec<u32> {
        self.devices.get(&device).into_iter().flatten().copied().filter(|p| *p != pid).collect()
    }
}

#[cfg(test)]
impl Census {
    /// Of these holders alone.
    pub(crate) fn of(taps: &[(&str, u32)], devices: &[(Rdev, u32)]) -> Self {
        let mut census = Census::default();
        for (tap, pid) in taps {
            census.taps.entry((*tap).to_owned()).or_default().insert(*pid);
        }
        for (device, pid) in devices {
            census.devices.entry(*device).or_default().insert(*pid);
        }
        census
    }
}

#[cfg(test)]
impl Census {
    /// A tap of that process, of which the other namespace is known.
    pub(crate) fn put_elsewhere(&mut self, pid: u32, tap: &str) {
        self.elsewhere.insert((pid, tap.to_owned()));
    }
}

/// The host as far as backings depend on it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) proc: PathBuf,
    pub(crate) sys: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Host { proc: "/proc".into(), sys: "/sys".into() }
    }
}

/// The number of a character device; none for anything else.
pub(crate) fn rdev(path: &Path) -> io::Result<Option<Rdev>> {
    let metadata = fs::metadata(path)?;
    let number = metadata.rdev();
    Ok(metadata.file_type().is_char_device().then(|| (major(number), minor(number))))
}

fn tap_name(fdinfo: &str) -> Option<&str> {
    fdinfo.lines().find_map(|line| line.strip_prefix("iff:\t"))
}

impl Host {
    fn netns(&self, process: &str) -> io::Result<PathBuf> {
        fs::read_link(self.proc.join(process).join("ns/net"))
    }

    /// What a process holds.
    pub(crate) fn held_by(&self, pid: u32) -> io::Result<Held> {
        let mut held = self.descriptors(pid)?;
        held.same_netns = self.netns(&pid.to_string())? == self.netns("self")?;
        Ok(held)
    }

    fn descriptors(&self, pid: u32) -> io::Result<Held> {
        let process = self.proc.join(pid.to_string());
        let mut held = Held::default();
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

    /// Looks at every process that may be looked at. Taps count where the process that holds them
    /// lives in this network namespace and the tap is there, too; `before` is the last census.
    pub(crate) fn census(&self, before: Option<&Census>) -> Census {
        let mut census = Census::default();
        let Ok(own_netns) = self.netns("self") else { return census };
        let Ok(entries) = fs::read_dir(&self.proc) else { return census };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // A process that ended meanwhile, or that is not to be looked at, holds nothing here.
            let Ok(held) = self.descriptors(pid) else { continue };
            for device in held.devices.into_values() {
                census.devices.entry(device).or_default().insert(pid);
            }
            if held.taps.is_empty()
                || !self.netns(&pid.to_string()).is_ok_and(|netns| netns == own_netns)
            {
                continue;
            }
            for tap in held.taps.into_values().filter(|tap| !tap.is_empty()) {
                census.taps.entry(tap).or_default().insert(pid);
            }
        }
        // After the descriptors: whoever was seen with one has been attached for longer.
        match taps::attached() {
            Ok(attached) => census.set_apart(&attached, before),
            Err(error) => tracing::warn!(%error, "taps of other network namespaces are not told"),
        }
        census
    }

    /// Resolves `/sys/dev/char/MAJ:MIN` → `…/vdpaN/vhost-vdpa-N` → the nearest PCI function above
    /// it → `physfn` → index among its `virtfnN`.
    pub(crate) fn vdpa_parent(&self, (major, minor): Rdev) -> io::Result<VdpaParent> {
        let device = fs::canonicalize(self.sys.join(format!("dev/char/{major}:{minor}")))?;
        let is_vdpa = device
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("vhost-vdpa-"));
        let Some(vdpa) = device.parent().filter(|_| is_vdpa) else {
            return Ok(VdpaParent::NotVdpa);
        };
        let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
        let name = vdpa.file_name().map(text).unwrap_or_default();
        let driver = vdpa
            .parent()
            .and_then(|parent| fs::read_link(parent.join("driver")).ok())
            .and_then(|driver| driver.file_name().map(text));
        let vf = self.vf_above(vdpa)?;
        Ok(VdpaParent::Vdpa { name, vf, driver })
    }

    fn vf_above(&self, device: &Path) -> io::Result<Option<(String, u16)>> {
        let Some(vf) = device.ancestors().find(|above| above.join("physfn").exists()) else {
            return Ok(None);
        };
        let pf = fs::canonicalize(vf.join("physfn"))?;
        for entry in fs::read_dir(&pf)? {
            let entry = entry?;
            let file_name = entry.file_name();
            let index = file_name.to_str().and_then(|name| name.strip_prefix("virtfn"));
            let Some(index) = index.and_then(|index| index.parse().ok()) else { continue };
            if fs::canonicalize(entry.path()).is_ok_and(|virtfn| virtfn == vf) {
                let address = pf.file_name().unwrap_or_default().to_string_lossy();
                return Ok(Some((format!("pci/{address}"), index)));
            }
        }
        Ok(None)
    }
}

/// Who holds what, for all guests together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holders {
    host: Host,
    /// The kernel's vDPA side; absent where it cannot be talked to.
    vdpa: Option<Vdpa>,
    last: Arc<tokio::sync::Mutex<Option<Looked>>>,
    /// The process that was believed to be the one holder of a backing.
    first: Arc<Mutex<BTreeMap<BackingView, Process>>>,
}

#[derive(Debug)]
struct Looked {
    began: Instant,
    ended: Instant,
    census: Arc<Census>,
}

impl Holders {
    /// Of this host.
    pub(crate) fn new(host: Host, vdpa: Option<Vdpa>) -> Self {
        Holders { host, vdpa, ..Holders::default() }
    }

    /// What a vDPA device was given; none where the kernel does not say.
    pub(crate) async fn vdpa_config(&self, device: &str) -> Option<VdpaConfig> {
        match self.vdpa.as_ref()?.config(device).await {
            Ok(config) => Some(config),
            Err(refusal) => {
                tracing::debug!(%refusal, "no second source of the address");
                None
            }
        }
    }

    /// The host that they are looked for on.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// A census that began at `since` or later. All who wait share it, and censuses together take a
    /// small share of a processor at most.
    pub(crate) async fn census(&self, since: Instant) -> Arc<Census> {
        let mut last = self.last.lock().await;
        if let Some(looked) = &*last {
            if looked.began >= since {
                return Arc::clone(&looked.census);
            }
            let cost = looked.ended.duration_since(looked.began);
            let rest = (cost * (SHARE - 1)).min(LONGEST_WAIT);
            tokio::time::sleep_until((looked.ended + rest).into()).await;
        }
        let (host, began) = (self.host.clone(), Instant::now());
        let before = last.as_ref().map(|looked| Arc::clone(&looked.census));
        let census = tokio::task::spawn_blocking(move || host.census(before.as_deref()));
        let census = census.await.unwrap_or_default();
        let census = Arc::new(census);
        // What ended holds nothing any more.
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.retain(|_, holder| holder.is_alive());
        drop(first);
        *last = Some(Looked { began, ended: Instant::now(), census: Arc::clone(&census) });
        census
    }

    /// Whether `process`, which holds what `backing` is, counts as its one holder: because nobody
    /// else holds it, or because it was the one holder before the others came.
    pub(crate) fn grant(&self, backing: &BackingView, process: &Process, alone: bool) -> bool {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        match first.get(backing) {
            Some(holder) if holder == process => true,
            _ if alone => {
                first.insert(backing.clone(), process.clone());
                true
            }
            _ => false,
        }
    }

    /// What was believed of a process before the daemon started.
    pub(crate) fn remember(&self, backing: BackingView, process: Process) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.entry(backing).or_insert(process);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_vdpa_device_leads_to_its_vf_through_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let pf = sys.path().join("devices/pci0000:00/0000:03:00.0");
        let vf = sys.path().join("devices/pci0000:00/0000:03:00.5");
        let char_device = vf.join("vdpa4/vhost-vdpa-2");
        let lone = sys.path().join("devices/vdpasim_net/vdpa5/vhost-vdpa-3");
        let driver = sys.path().join("bus/pci/drivers/vp-vdpa");
        for folder in [&pf, &char_device, &lone, &driver, &sys.path().join("dev/char")] {
            fs::create_dir_all(folder).unwrap();
        }
        symlink("../0000:03:00.0", vf.join("physfn")).unwrap();
        symlink("../0000:03:00.4", pf.join("virtfn2")).unwrap();
        symlink("../0000:03:00.5", pf.join("virtfn3")).unwrap();
        symlink(&driver, vf.join("driver")).unwrap();
        symlink(&char_device, sys.path().join("dev/char/511:2")).unwrap();
        symlink(&lone, sys.path().join("dev/char/511:3")).unwrap();
        symlink(&pf, sys.path().join("dev/char/1:3")).unwrap();

        let host = Host { sys: sys.path().into(), ..Host::default() };
        assert_eq!(
            host.vdpa_parent((511, 2)).unwrap(),
            VdpaParent::Vdpa {
                name: "vdpa4".into(),
                vf: Some(("pci/0000:03:00.0".into(), 3)),
                driver: Some("vp-vdpa".into()),
            }
        );
        assert_eq!(
            host.vdpa_parent((511, 3)).unwrap(),
            VdpaParent::Vdpa { name: "vdpa5".into(), vf: None, driver: None }
        );
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
    fn a_census_finds_the_other_holders_of_a_device() {
        let null = fs::File::open("/dev/null").unwrap();
        let mut other = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(null.try_clone().unwrap())
            .spawn()
            .unwrap();
        let census = Host::default().census(None);
        let me = std::process::id();
        let others = census.device_holders_besides(me, (1, 3));
        assert!(others.contains(&other.id()) && !others.contains(&me), "{others:?}");
        assert_eq!(census.tap_holders_besides(me, "no-such-tap"), [] as [u32; 0]);
        drop(other.stdin.take());
        other.wait().unwrap();
    }

    #[test]
    fn the_tap_of_a_descriptor_is_in_its_fdinfo() {
        let info = "pos:\t0\nflags:\t0104002\nmnt_id:\t29\nino:\t142\niff:\ttap1\n";
        assert_eq!(tap_name(info), Some("tap1"));
        assert_eq!(tap_name("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn a_tap_to_which_nobody_is_attached_here_is_of_another_network_namespace_for_good() {
        let none = BTreeSet::new();
        let both: BTreeSet<String> = ["tap1".to_owned(), "tap2".to_owned()].into();
        let mut first = Census::of(&[("tap1", 7), ("tap2", 7)], &[]);
        first.set_apart(&["tap2".to_owned()].into(), None);
        assert!(first.is_elsewhere(7, "tap1") && !first.is_elsewhere(7, "tap2"));
        assert_eq!(first.tap_holders_besides(1, "tap1"), [] as [u32; 0]);
        // Process 8 attaches to the tap of that name that is here.
        let mut second = Census::of(&[("tap1", 7), ("tap1", 8)], &[]);
        second.set_apart(&both, Some(&first));
        assert_eq!(second.tap_holders_besides(1, "tap1"), [8]);
        // Process 7 lets go of its own, and takes that one later.
        let mut third = Census::of(&[("tap1", 8)], &[]);
        third.set_apart(&both, Some(&second));
        let mut fourth = Census::of(&[("tap1", 7), ("tap1", 8)], &[]);
        fourth.set_apart(&both, Some(&third));
        assert_eq!(fourth.tap_holders_besides(1, "tap1"), [7, 8]);
        let mut last = Census::of(&[("tap1", 7)], &[]);
        last.set_apart(&none, Some(&fourth));
        assert!(last.is_elsewhere(7, "tap1"));
    }

    proptest::proptest! {
        #[test]
        fn every_holder_of_a_tap_is_here_or_elsewhere_and_never_both(
            held in proptest::collection::vec((0usize..4, 1u32..6), 0..20),
            attached in proptest::collection::vec(0usize..4, 0..4),
            before in proptest::collection::vec((0usize..4, 1u32..6), 0..20),
        ) {
            const NAMES: [&str; 4] = ["t0", "t1", "t2", "t3"];
            let named = |list: &[(usize, u32)]| -> Vec<(&str, u32)> {
                list.iter().map(|(name, pid)| (NAMES[*name], *pid)).collect()
            };
            let mut last = Census::of(&named(&before), &[]);
            last.set_apart(&BTreeSet::new(), None);
            let attached: BTreeSet<String> = attached.iter().map(|n| NAMES[*n].to_owned()).collect();
            let mut census = Census::of(&named(&held), &[]);
            census.set_apart(&attached, Some(&last));
            for (tap, pid) in named(&held) {
                let here = census.tap_holders_besides(0, tap).contains(&pid);
                proptest::prop_assert_ne!(here, census.is_elsewhere(pid, tap));
                let was = before.iter().any(|(name, p)| (NAMES[*name], *p) == (tap, pid));
                proptest::prop_assert_eq!(here, attached.contains(tap) && !was);
            }
        }
    }

    #[tokio::test]
    async fn a_census_is_shared_by_all_who_asked_before_it_began() {
        let holders = Holders::new(Host::default(), None);
        let asked = Instant::now();
        let first = holders.census(asked).await;
        assert!(Arc::ptr_eq(&first, &holders.census(asked).await));
        assert!(!Arc::ptr_eq(&first, &holders.census(Instant::now()).await));
    }

    #[tokio::test]
    async fn who_held_a_backing_alone_keeps_it_when_others_come() {
        let holders = Holders::new(Host::default(), None);
        let backing = BackingView::Netdev { name: "tap1".into() };
        let me = Process::of_pid(std::process::id()).unwrap();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let other = Process::of_pid(child.id()).unwrap();
        assert!(!holders.grant(&backing, &other, false), "nobody can say whose it is");
        assert!(holders.grant(&backing, &me, true));
        assert!(holders.grant(&backing, &me, false), "it was alone before");
        assert!(!holders.grant(&backing, &other, false), "the other came later");
        assert!(holders.grant(&backing, &other, true), "the first has let go");
        assert!(!holders.grant(&backing, &me, false));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
