//! What this host is: kernel, modules, the daemon's rights, devices, and who else programs switches.
//!
//! In: a root folder with proc, sys and lib/modules below it. Out: findings. Reads files, and
//! nothing else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Finding, Verdict};

/// The first kernel with everything that is used, all of it in long-term releases since: terse dumps
/// of filters came with 5.9, `IFLA_OFFLOAD_XSTATS` and vDPA's attributes up to 6.1.
const KERNEL_LEAST: (u32, u32) = (6, 1);

/// What flows are made of, and what for.
const MODULES: [(&str, &str); 6] = [
    ("sch_ingress", "the hook that flows are on"),
    ("cls_flower", "the match of flows"),
    ("act_gact", "drop and goto"),
    ("act_mirred", "delivery to ports"),
    ("act_vlan", "tags"),
    ("act_police", "limits"),
];

/// Other programs that program VFs or representors: by what their command line has, what they are,
/// and what to do.
const OTHERS: [(&str, &str, &str); 4] = [
    (
        "ovs-vswitchd",
        "Open vSwitch",
        "keep representors and uplinks of eswitchd out of its bridges, and other_config:hw-offload \
         away from its NICs",
    ),
    (
        "neutron-sriov-nic-agent",
        "the Neutron SR-IOV agent",
        "stop it on this host, or take eswitchd's NICs out of its physical_device_mappings",
    ),
    (
        "neutron-openvswitch-agent",
        "the Neutron OVS agent",
        "keep representors and uplinks of eswitchd out of its bridges",
    ),
    (
        "sriov-network-config-daemon",
        "the SR-IOV network operator",
        "exclude eswitchd's NICs from its policies: it sets VF counts and modes by itself",
    ),
];

/// `CAP_NET_ADMIN` (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u64 = 1 << 12;

pub(super) fn findings(root: &Path) -> Vec<Finding> {
    let processes = processes(root);
    let mut findings = vec![kernel(root), modules(root), rights(root, &processes)];
    findings.extend(devices(root));
    findings.extend(others(&processes));
    findings
}

fn text(path: PathBuf) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn release(root: &Path) -> Option<String> {
    text(root.join("proc/sys/kernel/osrelease")).map(|text| text.trim().to_owned())
}

fn kernel(root: &Path) -> Finding {
    let (major, minor) = KERNEL_LEAST;
    let what = "kernel";
    let Some(release) = release(root) else {
        return Finding::not(Verdict::Unknown, what, "its release cannot be read", "mount /proc");
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(has)), Some(Ok(has_minor))) if (has, has_minor) >= KERNEL_LEAST => {
            Finding::ok(what, release)
        }
        (Some(Ok(_)), Some(Ok(_))) => {
            let says = format!("{release} is older than {major}.{minor}");
            Finding::not(Verdict::Wrong, what, says, "boot a newer kernel")
        }
        _ => Finding::not(Verdict::Unknown, what, release, "compare it by hand"),
    }
}

/// Whether each module is loaded, built in, or there for the kernel to load.
fn modules(root: &Path) -> Finding {
    let what = "modules";
    let loaded = text(root.join("proc/modules")).unwrap_or_default();
    let folder = root.join("lib/modules").join(release(root).unwrap_or_default());
    let lists = ["modules.builtin", "modules.dep"].map(|list| text(folder.join(list)));
    let known = lists.iter().any(Option::is_some);
    let is_there = |module: &str| {
        let in_list = |list: &Option<String>| {
            let lines = list.as_deref().unwrap_or_default().lines();
            lines
                .filter_map(|line| line.split(':').next()?.rsplit('/').next())
                .any(|file| file.strip_prefix(module).is_some_and(|rest| rest.starts_with(".ko")))
        };
        loaded.lines().any(|line| line.split(' ').next() == Some(module))
            || lists.iter().any(in_list)
    };
    let missing: Vec<String> = MODULES
        .iter()
        .filter(|(module, _)| !is_there(module))
        .map(|(module, purpose)| format!("{module} ({purpose})"))
        .collect();
    match (missing.is_empty(), known) {
        (true, _) => Finding::ok(what, "all that flows need are there"),
        (false, true) => Finding::not(
            Verdict::Wrong,
            what,
            format!("not there: {}", missing.join(", ")),
            "install the kernel's package of extra modules, or a kernel with them",
        ),
        (false, false) => Finding::not(
            Verdict::Unknown,
            what,
            format!("neither loaded nor listed: {}", missing.join(", ")),
            "look into /proc/config.gz: this kernel has no folder in /lib/modules",
        ),
    }
}

// ---------------------------------------------------------------- processes

/// A process: its folder in /proc, and its command line with blanks between the words.
struct Process {
    folder: PathBuf,
    line: String,
}

impl Process {
    /// Whether it runs this program, by itself or in an interpreter.
    fn runs(&self, program: &str) -> bool {
        let words = self.line.split(' ').take(2);
        words.into_iter().any(|word| word.rsplit('/').next() == Some(program))
    }
}

fn processes(root: &Path) -> Vec<Process> {
    let entries = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let of = |folder: PathBuf| {
        let number = folder.file_name()?.to_str()?;
        number.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
        let line = fs::read(folder.join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        Some(Process { folder, line })
    };
    entries.filter_map(|entry| of(entry.path())).collect()
}

/// Whether the daemon may program the kernel.
fn rights(root: &Path, processes: &[Process]) -> Finding {
    let what = "capabilities";
    let Some(daemon) = processes.iter().find(|process| process.runs("eswitchd")) else {
        let fix = "start it on this host; doctor looks at the host that it is called on";
        return Finding::not(Verdict::Unknown, what, "no process eswitchd is seen here", fix);
    };
    let status = text(daemon.folder.join("status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    match effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) {
        Some(mask) if mask & CAP_NET_ADMIN != 0 => {
            let is_ours = fs::read_link(daemon.folder.join("ns/net")).ok()
                == fs::read_link(root.join("proc/1/ns/net")).ok();
            match is_ours {
                true => Finding::ok(what, "eswitchd has CAP_NET_ADMIN"),
                false => Finding::not(
                    Verdict::Warning,
                    what,
                    "eswitchd has CAP_NET_ADMIN, in another network namespace than init",
                    "start it where the NICs are, unless that is meant",
                ),
            }
        }
        Some(_) => Finding::not(
            Verdict::Wrong,
            what,
            "eswitchd lacks CAP_NET_ADMIN",
            "give it the capability (systemd: AmbientCapabilities=CAP_NET_ADMIN)",
        ),
        None => Finding::not(Verdict::Unknown, what, "its status cannot be read", "ask as root"),
    }
}

fn others(processes: &[Process]) -> Vec<Finding> {
    let found = OTHERS.iter().filter(|(program, ..)| processes.iter().any(|it| it.runs(program)));
    let mut findings: Vec<Finding> = found
        .map(|(program, name, fix)| {
            let says = format!("{name} ({program}) runs on this host");
            Finding::not(Verdict::Warning, "other agents", says, fix)
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok("other agents", "none that is known to program switches"));
    }
    findings
}

// ---------------------------------------------------------------- devices

/// PFs that could have VFs (Documentation/ABI/testing/sysfs-bus-pci), and the IOMMU.
fn devices(root: &Path) -> Vec<Finding> {
    let devices = fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
    let number =
        |folder: &Path, file: &str| -> Option<u32> { text(folder.join(file))?.trim().parse().ok() };
    let mut findings = Vec::new();
    let mut has_vfs = false;
    for folder in devices.map(|entry| entry.path()) {
        let Some(total) = number(&folder, "sriov_totalvfs").filter(|total| *total > 0) else {
            continue;
        };
        // Only NICs (class 02).
        if !text(folder.join("class")).is_some_and(|class| class.starts_with("0x02")) {
            continue;
        }
        let address = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let what = format!("NIC {address}");
        let now = number(&folder, "sriov_numvfs").unwrap_or_default();
        has_vfs |= now > 0;
        let driver = fs::read_link(folder.join("driver")).ok();
        findings.push(match driver.and_then(|driver| Some(driver.file_name()?.to_owned())) {
            Some(driver) => {
                let driver = driver.to_string_lossy();
                Finding::ok(&what, format!("{driver}, {now} of {total} VFs"))
            }
            None => {
                let fix = "load the driver, or have the firmware's SR-IOV option checked";
                Finding::not(Verdict::Wrong, &what, "has no driver", fix)
            }
        });
    }
    if has_vfs {
        let groups = fs::read_dir(root.join("sys/kernel/iommu_groups")).into_iter().flatten();
        findings.push(match groups.count() {
            0 => Finding::not(
                Verdict::Warning,
                "IOMMU",
                "there are VFs and no IOMMU: none can be handed to a guest",
                "switch it on in the firmware and for the kernel (intel_iommu=on)",
            ),
            count => Finding::ok("IOMMU", format!("{count} groups")),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host on which all is well: a loaded and a loadable module, the daemon, a NIC.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Host {
            let host = Host(tempfile::tempdir().unwrap());
            host.file("proc/sys/kernel/osrelease", "6.12.5-amd64\n");
            host.file("proc/modules", "cls_flower 53248 0 - Live 0x0\nsch_ingress 16384 0 - L\n");
            host.file(
                "lib/modules/6.12.5-amd64/modules.dep",
                "kernel/net/sched/act_gact.ko.xz:\nkernel/net/sched/act_mirred.ko.xz:\n\
                 kernel/net/sched/act_vlan.ko.xz: kernel/x.ko.xz\n",
            );
            host.file(
                "lib/modules/6.12.5-amd64/modules.builtin",
                "kernel/net/sched/act_police.ko\n",
            );
            host.process("1", "/sbin/init", "000001ffffffffff");
            host.process("7", "/usr/bin/eswitchd\0--config\0/etc/a", "0000000000001000");
            host.file("sys/bus/pci/devices/0000:03:00.0/sriov_totalvfs", "64\n");
            host.file("sys/bus/pci/devices/0000:03:00.0/sriov_numvfs", "8\n");
            host.file("sys/bus/pci/devices/0000:03:00.0/class", "0x020000\n");
            let driver = host.0.path().join("sys/bus/pci/devices/0000:03:00.0/driver");
            symlink("../../drivers/mlx5_core", driver).unwrap();
            host.file("sys/kernel/iommu_groups/0/type", "DMA\n");
            host
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn process(&self, number: &str, line: &str, capabilities: &str) {
            self.file(&format!("proc/{number}/cmdline"), line);
            self.file(&format!("proc/{number}/status"), &format!("CapEff:\t{capabilities}\n"));
            let folder = self.0.path().join(format!("proc/{number}/ns"));
            fs::create_dir_all(&folder).unwrap();
            let _ = symlink("net:[4026531840]", folder.join("net"));
        }

        /// What is not well.
        fn complaints(&self) -> Vec<(Verdict, String)> {
            let findings = findings(self.0.path()).into_iter();
            let bad = findings.filter(|finding| finding.verdict != Verdict::Ok);
            bad.map(|finding| {
                assert!(finding.fix.is_some(), "{finding:?}");
                (finding.verdict, format!("{}: {}", finding.what, finding.says))
            })
            .collect()
        }
    }

    #[test]
    fn a_host_on_which_all_is_well_has_no_complaints() {
        assert_eq!(Host::new().complaints(), []);
        assert_eq!(findings(Host::new().0.path()).len(), 6);
    }

    #[test]
    fn each_thing_that_is_wrong_is_named_with_what_to_do() {
        let wrong = |change: &dyn Fn(&Host)| {
            let host = Host::new();
            change(&host);
            let complaints = host.complaints();
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            complaints[0].clone()
        };
        let dep = "lib/modules/6.12.5-amd64/modules.dep";
        let eswitchd = "/usr/bin/eswitchd";
        for (change, verdict, says) in [
            (
                &(|host: &Host| host.file(dep, "kernel/net/sched/act_gact.ko:\n"))
                    as &dyn Fn(&Host),
                Verdict::Wrong,
                "modules: not there: act_mirred (delivery to ports), act_vlan (tags)",
            ),
            (
                &|host: &Host| host.process("7", eswitchd, "0000000000000001"),
                Verdict::Wrong,
                "capabilities: eswitchd lacks CAP_NET_ADMIN",
            ),
            (
                &|host: &Host| host.process("7", "sleep", "0"),
                Verdict::Unknown,
                "capabilities: no process eswitchd is seen here",
            ),
            (
                &|host: &Host| {
                    host.process("9", "python3\0/usr/bin/neutron-sriov-nic-agent\0", "0")
                },
                Verdict::Warning,
                "other agents: the Neutron SR-IOV agent (neutron-sriov-nic-agent) runs on this host",
            ),
            (
                &|host: &Host| host.process("9", "ovs-vswitchd\0unix:/run/db.sock", "0"),
                Verdict::Warning,
                "other agents: Open vSwitch (ovs-vswitchd) runs on this host",
            ),
            (
                &|host: &Host| {
                    let driver = "sys/bus/pci/devices/0000:03:00.0/driver";
                    fs::remove_file(host.0.path().join(driver)).unwrap();
                },
                Verdict::Wrong,
                "NIC 0000:03:00.0: has no driver",
            ),
            (
                &|host: &Host| {
                    fs::remove_dir_all(host.0.path().join("sys/kernel/iommu_groups")).unwrap();
                },
                Verdict::Warning,
                "IOMMU: there are VFs and no IOMMU: none can be handed to a guest",
            ),
        ] {
            assert_eq!(wrong(change), (verdict, says.to_owned()));
        }
    }

    #[test]
    fn an_old_kernel_is_wrong_whatever_its_modules() {
        let host = Host::new();
        host.file("proc/sys/kernel/osrelease", "5.10.0-8-amd64\n");
        let complaints = host.complaints();
        assert_eq!(complaints[0].1, "kernel: 5.10.0-8-amd64 is older than 6.1");
        assert_eq!(complaints[0].0, Verdict::Wrong);
    }
}
