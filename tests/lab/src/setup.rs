//! Builds the lab: root file system, kernel with the modules that Debian leaves out, guest image
//! with saved states, the VM's disk.
//!
//! In: a Debian mirror (the machine's own, or `ESWITCHD_LAB_MIRROR`). Out: [`Lab`], the paths of
//! finished steps in the cache. Needs root, because a root file system does. Every program that a
//! step calls runs in a process namespace of its own and dies with this process.

mod browser;

pub use browser::chromium;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cache::{BuildLock, Cache, Step};
use crate::cpio::Archive;
use crate::guest::{self, GUESTS, Image};
use crate::{At, Error, Result};

/// What the lab's root file system holds, beyond Debian's minimal variant.
pub const PACKAGES: &[&str] = &[
    "busybox-static",             // the guests' userland, and the VM's first process
    "ethtool",                    // hw-tc-offload
    "iperf3",                     // TCP at full speed, and how much of it arrived
    "iproute2",                   // ip, tc, devlink, vdpa, bridge
    "iputils-ping",               // ping
    "kmod",                       // modprobe, also for the kernel's own requests
    "libvirt-clients",            // virsh
    "libvirt-daemon",             // libvirtd, which manages a guest beside the daemon
    "libvirt-daemon-driver-qemu", // its QEMU driver
    "openvswitch-switch",         // what benchmarks of the switch are measured against
    "procps",                     // ps, pgrep
    "prometheus",                 // what scrapes the daemon, and promtool
    "qemu-system-x86",            // the VM itself, and the guests in it
    "strace",                     // ends the daemon at a system call
    "tcpdump",                    // captures with VLAN tags put back
    "tmux",                       // a terminal for eswitchctl
];

/// What building the modules needs. Packages of the kernel itself are resolved by the recipe.
/// (Without binutils the build ends with "Compiler does not support fentry".)
const BUILD_PACKAGES: &[&str] =
    &["binutils", "kmod", "linux-headers-amd64", "make", "xz-utils", "zstd"];

/// Programs of the machine, with the package that has them.
const TOOLS: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("curl", "curl"), // the lines of docs/api.md are run as a test
];

const SUITE: &str = "trixie";
const KERNEL_RECIPE: &str = include_str!("recipe/kernel.sh");
const VM_INITRAMFS: &str = include_str!("recipe/vm-initramfs.sh");
const VM_INIT: &str = include_str!("recipe/vm-init.sh");
const GUEST_INIT: &str = include_str!("recipe/guest-init.sh");

/// Modules that the VM's initramfs loads: for its disk, and for its shares with the machine.
const VM_BOOT_MODULES: &[&str] = &["ext4", "virtio_blk", "9p", "9pnet_virtio"];
/// Programs for guests, which get all the libraries that they need, too; and the library that glibc
/// loads when a thread is cancelled, as iperf3 does.
const GUEST_PROGRAMS: &[&str] =
    &["/usr/bin/iperf3", "/usr/bin/tcpdump", "/lib/x86_64-linux-gnu/libgcc_s.so.1"];
/// The user that tcpdump becomes.
const GUEST_USERS: &str = "root:x:0:0::/:/bin/sh\ntcpdump:x:100:100::/:/bin/false\n";

/// Modules that a guest loads at boot.
const GUEST_MODULES: &[&str] = &["virtio_net", "8021q", "macvlan", "dummy", "veth"];

/// Runs the root's QEMU on the machine, with the root's libraries and firmware: the lab's QEMU is
/// newer than most machines'.
const QEMU_WRAPPER: &str = r#"#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$root/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR=$libraries/qemu
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" \
    "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"#;

/// The finished lab.
#[derive(Clone, Debug)]
pub struct Lab {
    /// The cache that it stands in.
    pub cache: Cache,
    /// QEMU of the lab's root, callable on the machine.
    pub qemu: PathBuf,
    /// Kernel of the VM.
    pub kernel: PathBuf,
    /// Initramfs of the VM.
    pub initramfs: PathBuf,
    /// Disk of the VM: never written to.
    pub disk: PathBuf,
    /// Kernel, initramfs and saved states of the guests, as `LAB_GUEST_DIR` names them.
    pub guest: PathBuf,
}

struct Steps {
    root: Step,
    kernel: Step,
    guest: Step,
    disk: Step,
}

impl Steps {
    fn new() -> Self {
        let root = Step::new("root", &[SUITE, &PACKAGES.join(" "), QEMU_WRAPPER, "1"]);
        let kernel = Step::new("kernel", &[SUITE, &BUILD_PACKAGES.join(" "), KERNEL_RECIPE]);
        let guest = Step::new(
            "guest",
            &[
                &root.id(),
                &kernel.id(),
                GUEST_INIT,
                &GUEST_MODULES.join(" "),
                &GUEST_PROGRAMS.join(" "),
                GUEST_USERS,
                &guest::recipe().join(" "),
            ],
        );
        let disk = Step::new(
            "disk",
            &[&guest.id(), VM_INITRAMFS, VM_INIT, &VM_BOOT_MODULES.join(" "), "1"],
        );
        Self { root, kernel, guest, disk }
    }

    fn all(&self) -> [&Step; 4] {
        [&self.root, &self.kernel, &self.guest, &self.disk]
    }
}

/// Progress on standard error, with the time since the start.
#[derive(Clone, Copy, Debug)]
struct Progress {
    start: Instant,
}

impl Progress {
    fn say(self, step: &str, text: &str) {
        eprintln!("lab setup {:6.1} s  {step:7} {text}", self.start.elapsed().as_secs_f64());
    }
}

/// Makes the lab ready, building what is missing, or everything when `force` is set.
///
/// # Errors
/// A tool is missing and cannot be installed, a download or a build failed (with the end of its
/// output), the cache cannot be written.
pub fn ready(force: bool) -> Result<Lab> {
    let cache = Cache::open()?;
    let steps = Steps::new();
    let cached = || steps.all().iter().all(|step| cache.finished(step).is_some());
    if force || !cached() {
        build(&cache, &steps, force)?;
    }
    for step in steps.all() {
        cache.used(step);
    }
    let place = |step: &Step| {
        cache.finished(step).ok_or_else(|| Error::Missing {
            what: format!("{} has gone from the cache", step.id()),
            remedy: "run `cargo lab setup` again".into(),
        })
    };
    Ok(Lab {
        qemu: place(&steps.root)?.join("qemu"),
        kernel: place(&steps.kernel)?.join("vmlinux"),
        initramfs: place(&steps.disk)?.join("initramfs"),
        disk: place(&steps.disk)?.join("disk.img"),
        guest: place(&steps.guest)?,
        cache,
    })
}

fn build(cache: &Cache, steps: &Steps, force: bool) -> Result<()> {
    let progress = Progress { start: Instant::now() };
    progress.say("lab", &format!("builds in {}", cache.folder().display()));
    let lock = cache.lock(|| progress.say("lab", "waits for another `cargo lab` that builds"))?;
    cache.remove_partial(&lock)?;
    install_tools(cache, progress)?;
    let source = Source::find()?;

    let work = Work { cache, lock: &lock, progress, force };
    let (root, kernel) = std::thread::scope(|scope| {
        let root = scope.spawn(|| {
            work.step(&steps.root, |place| {
                source.bootstrap(&work, "root", PACKAGES, &[], &place.join("root"))?;
                let wrapper = place.join("qemu");
                fs::write(&wrapper, QEMU_WRAPPER)
                    .and_then(|()| fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)))
                    .at("writing the QEMU wrapper")
            })
        });
        let kernel = work.step(&steps.kernel, |place| kernel(&work, &source, place));
        (root.join(), kernel)
    });
    let (root, kernel) = (root.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?, kernel?);
    let guest = work.step(&steps.guest, |place| guest_image(&work, &root, &kernel, place))?;
    work.step(&steps.disk, |place| disk(&work, &root, &kernel, &guest, place))?;
    cache.remove_outdated(&lock, &steps.all())?;
    progress.say("lab", "ready");
    Ok(())
}

struct Work<'a> {
    cache: &'a Cache,
    lock: &'a BuildLock,
    progress: Progress,
    force: bool,
}

impl Work<'_> {
    fn step(&self, step: &Step, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        if let Some(place) = self.cache.finished(step).filter(|_| !self.force) {
            self.progress.say(step.name(), "is there already");
            return Ok(place);
        }
        self.progress.say(step.name(), "starts");
        let start = Instant::now();
        // A new log for each build; the commands append to it.
        fs::write(self.cache.log(step.name()), "").at("clearing the log")?;
        let place = self.cache.build(self.lock, step, build)?;
        let took = start.elapsed().as_secs_f64();
        self.progress.say(step.name(), &format!("done in {took:.1} s"));
        Ok(place)
    }

    /// Runs a command with its output in the step's log, and lines of it that start with `## `
    /// shown as progress.
    fn run(&self, step: &str, command: &mut Command) -> Result<()> {
        let path = self.cache.log(step);
        let what = || format!("writing {}", path.display());
        let mut log = File::options().create(true).append(true).open(&path).at(what())?;
        writeln!(log, "+ {}", line(command)).at(what())?;
        let begin = log.seek(SeekFrom::End(0)).at(what())?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone().at(what())?)
            .spawn()
            .at(format!("starting {}", command.get_program().display()))?;
        if let Some(output) = child.stdout.take() {
            for text in BufReader::new(output).split(b'\n') {
                let text = String::from_utf8_lossy(&text.at(what())?).into_owned();
                if let Some(news) = text.strip_prefix("## ") {
                    self.progress.say(step, news);
                }
                writeln!(log, "{text}").at(what())?;
            }
        }
        let status = child.wait().at(format!("waiting for {}", line(command)))?;
        if status.success() {
            return Ok(());
        }
        let tail = tail(&path, begin, 30)?;
        Err(Error::Command { program: line(command), status: status.to_string(), tail })
    }
}

/// A command in mount and process namespaces of its own: its mounts are nobody else's, and all its
/// descendants die with this process.
fn contained(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare", "--fork", "--pid", "--kill-child=KILL"])
        .args(["--mount", "--mount-proc", "--"])
        .arg(program)
        .env("LC_ALL", "C.UTF-8");
    command
}

fn line(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

/// The last lines of a file, from the offset `begin` on.
fn tail(path: &Path, begin: u64, lines: usize) -> Result<String> {
    let what = format!("reading {}", path.display());
    let mut file = File::open(path).at(what.as_str())?;
    file.seek(SeekFrom::Start(begin)).at(what.as_str())?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).at(what.as_str())?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

fn install_tools(cache: &Cache, progress: Progress) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::Missing {
            what: "building the lab makes a root file system, which takes root".into(),
            remedy: "run `cargo lab setup` as root (sudo --preserve-env=PATH,HOME)".into(),
        });
    }
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(program, _)| !found(program)).map(|(_, package)| *package).collect();
    if Source::keyring().is_none() {
        packages.push("debian-archive-keyring");
    }
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    progress.say("machine", &format!("installs {}", packages.join(", ")));
    let work = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-y", "--no-install-recommends"]).args(arguments);
        let output = command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .at("starting apt-get")?;
        let text = [output.stdout, output.stderr].concat();
        fs::write(cache.log("machine"), &text).at("writing the log")?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Command {
            program: line(&command),
            status: output.status.to_string(),
            tail: String::from_utf8_lossy(&text).trim_end().to_owned(),
        })
    };
    let install = [&["install"][..], &packages].concat();
    // The package lists may be missing or outdated; only then are they fetched.
    work(&install).or_else(|_| work(&["update"]).and_then(|()| work(&install)))
}

/// Where the packages come from.
struct Source {
    mirror: String,
    keyring: PathBuf,
    proxies: Vec<String>,
}

impl Source {
    fn find() -> Result<Self> {
        let keyring = Self::keyring().ok_or_else(|| Error::Missing {
            what: "no Debian archive keyring".into(),
            remedy: "install debian-archive-keyring".into(),
        })?;
        let answer = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let mirror = match std::env::var("ESWITCHD_LAB_MIRROR") {
            Ok(mirror) => Some(mirror),
            Err(_) => answer(
                "apt-get",
                &["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"],
            )
            .at("asking apt-get for its mirror")?
            .lines()
            .find_map(|line| line.strip_prefix("Debian ").map(str::to_owned)),
        };
        let mirror = mirror.ok_or_else(|| Error::Missing {
            what: "apt on this machine knows no Debian mirror".into(),
            remedy: "name one in ESWITCHD_LAB_MIRROR".into(),
        })?;
        // apt-config prints `Acquire::http::Proxy "…";`: the same form that mmdebstrap takes.
        let proxies = answer("apt-config", &["dump"])
            .at("asking apt-config for its proxies")?
            .lines()
            .filter(|line| line.starts_with("Acquire::http") && line.contains("::Proxy "))
            .map(str::to_owned)
            .collect();
        Ok(Self { mirror, keyring, proxies })
    }

    fn keyring() -> Option<PathBuf> {
        ["debian-archive-trixie-automatic.pgp", "debian-archive-trixie-automatic.gpg"]
            .iter()
            .map(|name| Path::new("/usr/share/keyrings").join(name))
            .find(|path| path.exists())
    }

    fn bootstrap(
        &self,
        work: &Work<'_>,
        step: &str,
        packages: &[&str],
        options: &[&str],
        place: &Path,
    ) -> Result<()> {
        let suites: Vec<String> = [SUITE.to_owned(), format!("{SUITE}-backports")]
            .iter()
            .map(|suite| {
                let keyring = self.keyring.display();
                format!("deb [signed-by={keyring}] {} {suite} main", self.mirror)
            })
            .collect();
        work.progress.say(step, &format!("bootstraps Debian {SUITE} with {}", packages.join(" ")));
        let mut command = contained("mmdebstrap");
        command
            .args(["--quiet", "--mode=root", "--variant=minbase", "--skip=check/empty"])
            .args(["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*"])
            .args(["--dpkgopt=path-exclude=/usr/share/man/*"])
            .args(["--dpkgopt=path-exclude=/usr/share/locale/*"])
            .args([
                "--aptopt=APT::Install-Recommends \"false\"",
                "--aptopt=Acquire::Languages \"none\"",
            ])
            .arg(format!("--aptopt=APT::Default-Release \"{SUITE}-backports\""))
            .args(self.proxies.iter().map(|proxy| format!("--aptopt={proxy}")))
            .arg(format!("--include={}", packages.join(",")))
            .args(options)
            .arg(SUITE)
            .arg(place)
            .args(suites);
        work.run(step, &mut command)
    }
}

fn kernel(work: &Work<'_>, source: &Source, place: &Path) -> Result<()> {
    let root = place.join("build");
    source.bootstrap(work, "kernel", BUILD_PACKAGES, &["--skip=cleanup/apt"], &root)?;
    fs::write(root.join("recipe"), KERNEL_RECIPE).at("writing the kernel recipe")?;
    // The recipe downloads: it resolves names as the machine does.
    let _ = fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"));
    let mut command = contained("sh");
    command
        .args(["-euc", "mount -t proc proc \"$0/proc\"; exec chroot \"$0\" sh /recipe"])
        .arg(&root)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    work.run("kernel", &mut command)?;
    for output in ["vmlinuz", "vmlinux", "modules", "release"] {
        let to = place.join(output);
        fs::rename(root.join("out").join(output), to).at(format!("moving {output}"))?;
    }
    fs::remove_dir_all(&root).at("removing the build root")
}

fn guest_image(work: &Work<'_>, root: &Path, kernel: &Path, place: &Path) -> Result<()> {
    for image in Image::ALL {
        let mut archive = Archive::default();
        archive.folder("dev");
        initramfs(&mut archive, root, kernel, GUEST_MODULES, GUEST_INIT)?;
        if image == Image::WithPrograms {
            programs(&mut archive, &root.join("root"), GUEST_PROGRAMS)?;
            archive.folder("etc");
            archive.file("etc/passwd", GUEST_USERS.as_bytes());
        }
        fs::write(place.join(image.initramfs()), archive.finish())
            .at("writing the guest's initramfs")?;
    }
    fs::copy(kernel.join("vmlinuz"), place.join("vmlinuz")).at("copying the kernel")?;
    let save = |image: Image, name: &'static str| {
        work.progress.say("guest", &format!("boots guest {name}, {image:?}, and saves its state"));
        guest::save(name, image, &root.join("qemu"), place, Duration::from_secs(180))
    };
    Image::ALL.into_iter().try_for_each(|image| {
        std::thread::scope(|scope| {
            let saves: Vec<_> =
                GUESTS.iter().map(|name| scope.spawn(move || save(image, name))).collect();
            saves.into_iter().try_for_each(|save| {
                save.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    })
}

fn disk(work: &Work<'_>, root: &Path, kernel: &Path, guest: &Path, place: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["dev", "root"] {
        archive.folder(folder);
    }
    initramfs(&mut archive, root, kernel, VM_BOOT_MODULES, VM_INITRAMFS)?;
    fs::write(place.join("initramfs"), archive.finish()).at("writing the VM's initramfs")?;

    let release = fs::read_to_string(kernel.join("release")).at("reading the kernel's release")?;
    // Hard links: nothing below writes into a file that is shared with another step.
    let script = r#"
        cp -al "$1/root" "$4/tree"
        mkdir -p "$4/tree/usr/lib/modules" "$4/tree/lab"
        cp -al "$2/modules" "$4/tree/usr/lib/modules/$5"
        cp -al "$3" "$4/tree/lab/guest"
        rm -rf "$4"/tree/usr/lib/x86_64-linux-gnu/perl* "$4"/tree/var/cache/* "$4"/tree/etc/hostname
        echo lab > "$4/tree/etc/hostname"
        cp "$4/init" "$4/tree/lab/init"
        chmod 755 "$4/tree/lab/init"
        mke2fs -q -F -t ext4 -O '^has_journal' -m 0 -E lazy_itable_init=1,nodiscard \
            -d "$4/tree" "$4/disk.img" 8G
        rm -rf "$4/tree" "$4/init"
    "#;
    fs::write(place.join("init"), VM_INIT).at("writing the VM's init")?;
    let mut command = contained("sh");
    command
        .args(["-euc", script, "sh"])
        .args([root, kernel, guest, place])
        .arg(release.trim())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    work.run("disk", &mut command)
}

/// Adds busybox, modules in the order in which they must be loaded, and the init script.
fn initramfs(
    archive: &mut Archive,
    root: &Path,
    kernel: &Path,
    modules: &[&str],
    init: &str,
) -> Result<()> {
    let read = |path: PathBuf| fs::read(&path).at(format!("reading {}", path.display()));
    archive.file("busybox", &read(root.join("root/usr/bin/busybox"))?);
    archive.file("init", init.as_bytes());
    archive.folder("modules");
    let table = kernel.join("modules/modules.dep");
    let table = String::from_utf8_lossy(&read(table)?).into_owned();
    for (number, path) in load_order(&table, modules)?.iter().enumerate() {
        let name = path.rsplit('/').next().unwrap_or(path);
        let content = read(kernel.join("modules").join(path))?;
        archive.file(&format!("modules/{number:02}-{name}"), without_signature(&content));
    }
    Ok(())
}

/// Adds programs of a root file system, and their loader and libraries at the places that they name.
fn programs(archive: &mut Archive, root: &Path, programs: &[&str]) -> Result<()> {
    let mut ldd = contained("chroot");
    let output = ldd.arg(root).arg("ldd").args(programs).output().at("starting ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let program = line(&ldd);
        return Err(Error::Command { program, status: output.status.to_string(), tail: text });
    }
    let files: BTreeSet<&str> =
        libraries(&text).into_iter().chain(programs.iter().copied()).collect();
    let mut folders = BTreeSet::new();
    for path in files {
        let content = fs::read(root.join(path.trim_start_matches('/')));
        let mut above: Vec<_> = Path::new(path).ancestors().skip(1).collect();
        above.pop();
        for folder in above.into_iter().rev() {
            let name = folder.display().to_string();
            if folders.insert(name.clone()) {
                archive.folder(name.trim_start_matches('/'));
            }
        }
        let content = content.at(format!("reading {path}"))?;
        archive.file(path.trim_start_matches('/'), &content);
    }
    Ok(())
}

/// Paths in the output of ldd(1): the words that begin with a slash. With a colon at its end, one is
/// the headline of a program's list.
fn libraries(text: &str) -> Vec<&str> {
    text.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':')).collect()
}

/// A module without the signature at its end, which takes long to verify under emulation
/// (include/linux/module_signature.h: the length of the signature, big-endian, ends the header that
/// stands before the mark).
fn without_signature(module: &[u8]) -> &[u8] {
    const MARK: &[u8] = b"~Module signature appended~\n";
    const HEADER: usize = 12;
    let signed = || {
        let (rest, length) = module.strip_suffix(MARK)?.split_last_chunk::<4>()?;
        let signature = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        rest.get(..(rest.len() + 4).checked_sub(HEADER + signature)?)
    };
    signed().unwrap_or(module)
}

/// Paths of the named modules and all that they need, what is needed first, from the text of
/// `modules.dep` (depmod(8): each line a module, a colon, and all it needs, last needed first).
fn load_order(table: &str, names: &[&str]) -> Result<Vec<String>> {
    let mut order: Vec<String> = Vec::new();
    for name in names {
        let file = format!("/{name}.ko");
        let (module, needs) = table
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(module, _)| module.ends_with(&file))
            .ok_or_else(|| Error::Missing {
                what: format!("the kernel has no module {name}"),
                remedy: "adapt the lab's recipe to this kernel".into(),
            })?;
        for path in needs.split_whitespace().rev().chain([module]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need_and_once() {
        let table = "kernel/fs/jbd2/jbd2.ko:\n\
                     kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\n\
                     kernel/lib/crc16.ko:\n\
                     kernel/drivers/x/ext4.ko.d/y.ko: kernel/lib/crc16.ko\n";
        let order = load_order(table, &["y", "ext4"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/lib/crc16.ko",
                "kernel/drivers/x/ext4.ko.d/y.ko",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/fs/ext4/ext4.ko"
            ]
        );
        assert!(load_order(table, &["btrfs"]).is_err());
    }

    #[test]
    fn libraries_are_told_from_what_the_kernel_gives() {
        let text = "/usr/bin/tcpdump:\n\
                    \tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fd3)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007fd4)\n";
        assert_eq!(
            libraries(text),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
    }

    #[test]
    fn a_module_loses_its_signature_and_nothing_else() {
        let signed = [&b"ELF"[..], b"signature", &[0; 8], &9u32.to_be_bytes()].concat();
        let signed = [&signed[..], b"~Module signature appended~\n"].concat();
        assert_eq!(without_signature(&signed), b"ELF");
        for unsigned in [&b"ELF"[..], b"", &signed[20..]] {
            assert_eq!(without_signature(unsigned), unsigned);
        }
    }

    #[test]
    fn every_step_depends_on_what_it_is_made_from() {
        let steps = Steps::new();
        let ids: BTreeSet<_> = steps.all().iter().map(|s| s.id()).collect();
        assert_eq!(ids.len(), 4);
        assert_eq!(Steps::new().disk.id(), steps.disk.id(), "the same inputs have the same key");
    }

    #[test]
    fn a_tail_starts_where_the_command_started() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "old\n1\n2\n3\n").unwrap();
        assert_eq!(tail(&path, 4, 2).unwrap(), "2\n3");
        assert_eq!(tail(&path, 4, 9).unwrap(), "1\n2\n3");
    }
}
