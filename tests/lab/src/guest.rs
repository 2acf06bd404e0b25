//! Real QEMU guests with an emulated virtio PF and its VFs.
//!
//! In: a guest's name, what its functions stand on, optionally the place of its QMP socket. Out: a
//! running guest: commands executed in it, its QMP monitor, its pid. Used inside the lab (with taps
//! and vDPA devices) and on the machine (with unconnected functions).
//!
//! A guest starts from a state that was saved when the lab was built, because booting takes long
//! under nested emulation. The state holds the MACs, so each name has its own; the command line of
//! saving and of starting comes from the same function here, because QEMU demands that both agree.
//!
//! Environment: `LAB_GUEST_DIR` (kernel, initramfs, states) and `LAB_QEMU` (the same QEMU that
//! saved the states). `cargo lab` sets both.

mod console;
pub mod qmp;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use serde_json::json;

use console::Console;
pub use console::Output;
use qmp::Qmp;

use crate::net::Netns;
use crate::{At, Error, Result};

/// Names of the guests that have saved states.
pub const GUESTS: &[&str] = &["a", "b", "c", "d"];
/// VFs that each guest's PF can create.
pub const VFS: usize = 4;
/// PCI address of the emulated PF, as the guest sees it.
pub const PF_ADDRESS: &str = "0000:01:00.0";

/// What a guest's file system holds. It is in the guest's memory, which takes time to load inside
/// the lab: most guests have busybox alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Image {
    /// Busybox.
    #[default]
    Small,
    /// Busybox, and programs of Debian with their libraries.
    WithPrograms,
}

impl Image {
    pub(crate) const ALL: [Self; 2] = [Self::Small, Self::WithPrograms];

    /// Name of the initramfs among the guests' images.
    pub(crate) fn initramfs(self) -> &'static str {
        match self {
            Self::Small => "initramfs",
            Self::WithPrograms => "initramfs-programs",
        }
    }

    /// Name of a guest's saved state there.
    fn state(self, guest: &str) -> String {
        match self {
            Self::Small => format!("{guest}.state"),
            Self::WithPrograms => format!("{guest}-programs.state"),
        }
    }
}

const MEMORY_MIB: u32 = 128;
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog \
                                audit=0 apparmor=0 random.trust_cpu=on";
/// MSI-X vectors of a function: of two data queues, the control queue and the configuration. QEMU
/// counts a vDPA backend's control queue as a pair of data queues, and a state does not load with
/// another number.
const VECTORS: u8 = 4;
/// For a command in a guest; generous, because guests run in an emulation inside another.
const COMMAND_LIMIT: Duration = Duration::from_secs(240);
/// For QEMU to start and load a state.
const START_LIMIT: Duration = Duration::from_secs(240);
/// How long a guest that has booted is left alone before its state is saved. The kernel still
/// calibrates its clock and ends its deferred probes then (10 s after boot); all that would be done
/// again, at a fraction of the speed, at every start inside the lab.
const SETTLE: Duration = Duration::from_secs(12);
/// For a cold boot.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// One of a guest's network functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// The emulated PF, device id `pf0`.
    Pf,
    /// A VF by index, device ids `vf0` to `vf3`.
    Vf(usize),
}

impl Function {
    /// Device id in QEMU: `pf0`, `vf0` …
    pub fn id(self) -> String {
        match self {
            Self::Pf => "pf0".into(),
            Self::Vf(index) => format!("vf{index}"),
        }
    }

    fn number(self) -> usize {
        match self {
            Self::Pf => 0,
            Self::Vf(index) => index + 1,
        }
    }
}

/// What a function stands on, on the host side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: a hub without another port.
    #[default]
    Unconnected,
    /// A tap of this name, created by QEMU if there is none.
    Tap(String),
    /// A vDPA device.
    VhostVdpa {
        /// Its node, for instance `/dev/vhost-vdpa-0`.
        node: PathBuf,
        /// Whether QEMU shadows its queues, and so sees the control queue.
        shadowed: bool,
    },
}

/// MAC that QEMU gives to a function of a guest: `52:54:00:0a:GUEST:FUNCTION`.
///
/// # Errors
/// There is no guest of that name.
pub fn mac(guest: &str, function: Function) -> Result<String> {
    let index = GUESTS.iter().position(|name| *name == guest).ok_or_else(|| Error::Missing {
        what: format!("no guest {guest:?}"),
        remedy: format!("the guests are {}", GUESTS.join(", ")),
    })?;
    Ok(format!("52:54:00:0a:{index:02x}:{:02x}", function.number()))
}

/// How a guest comes to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Start {
    /// From its saved state.
    #[default]
    Saved,
    /// By booting.
    Cold,
    /// From another QEMU that migrates it here.
    Arriving,
}

/// What the saved states depend on, for the cache key.
pub(crate) fn recipe() -> Vec<String> {
    let functions: [Backing; VFS + 1] = Default::default();
    let mut recipe = vec![KERNEL_ARGUMENTS.to_owned(), format!("{SETTLE:?}")];
    for image in Image::ALL {
        for name in GUESTS {
            recipe.extend(machine(name, Path::new(""), image, &functions).unwrap_or_default());
        }
    }
    recipe
}

/// QEMU's arguments for a guest, the same when its state is saved and when it is started.
fn machine(
    name: &str,
    images: &Path,
    image: Image,
    backings: &[Backing; VFS + 1],
) -> Result<Vec<String>> {
    let file = |name: &str| images.join(name).display().to_string();
    let memory = MEMORY_MIB.to_string();
    let mut arguments: Vec<String> = [
        "-name",
        name,
        "-nodefaults",
        "-machine",
        "q35",
        "-accel",
        "tcg",
        // Time passes by instructions executed, and as usual when the guest is idle. By the clock,
        // a guest inside the lab has another timer tick to serve before it is done with the last.
        "-icount",
        "shift=1,sleep=on",
        "-cpu",
        "qemu64",
        // Memory at its own place in the state's file: loaded in large pieces.
        "-global",
        "migration.mapped-ram=on",
        "-m",
        &memory,
        "-display",
        "none",
        "-no-reboot",
        "-kernel",
        &file("vmlinuz"),
        "-initrd",
        &file(image.initramfs()),
        "-append",
        KERNEL_ARGUMENTS,
        "-device",
        "pcie-root-port,id=b",
    ]
    .map(str::to_owned)
    .into();
    // QEMU takes the VFs first and the PF last.
    let functions = (0..VFS).rev().map(Function::Vf).chain([Function::Pf]);
    for function in functions {
        let (id, number) = (function.id(), function.number());
        let netdev = match &backings[number] {
            Backing::Unconnected => format!("hubport,id=n{number},hubid={number}"),
            Backing::Tap(tap) => format!("tap,id=n{number},ifname={tap},script=no,downscript=no"),
            Backing::VhostVdpa { node, shadowed } => {
                let shadow = if *shadowed { ",x-svq=on" } else { "" };
                format!("vhost-vdpa,id=n{number},vhostdev={}{shadow}", node.display())
            }
        };
        let pf = if function == Function::Pf { "" } else { ",sriov-pf=pf0" };
        let mac = mac(name, function)?;
        arguments.extend([
            "-netdev".into(),
            netdev,
            "-device".into(),
            format!(
                "virtio-net-pci,id={id},bus=b,addr=0x0.0x{number},netdev=n{number},\
                 mac={mac},vectors={VECTORS},romfile={pf}"
            ),
        ]);
    }
    Ok(arguments)
}

/// Boots a guest without connections, and saves its state in `images`.
pub(crate) fn save(
    name: &str,
    image: Image,
    qemu: &Path,
    images: &Path,
    limit: Duration,
) -> Result<()> {
    let guest = Builder {
        image,
        qemu: Some(qemu.to_owned()),
        images: Some(images.to_owned()),
        ..Guest::named(name)
    }
    .cold()
    .start()?;
    let place = images.join(image.state(name));
    std::thread::sleep(SETTLE);
    let mut qmp = guest.qmp()?;
    qmp.execute("migrate", json!({ "uri": format!("file:{}", place.display()) }))?;
    let deadline = Instant::now() + limit;
    loop {
        let state = qmp.execute("query-migrate", json!({}))?;
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                return Err(Error::Guest { guest: name.into(), reason: state.to_string() });
            }
            _ if Instant::now() > deadline => {
                let reason = "its state is not saved in time".into();
                return Err(Error::Guest { guest: name.into(), reason });
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// How a guest is going to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    backings: [Backing; VFS + 1],
    qmp: Option<PathBuf>,
    image: Image,
    start: Start,
    qemu: Option<PathBuf>,
    images: Option<PathBuf>,
    arguments: Vec<String>,
}

impl Builder {
    /// What the PF stands on; nothing unless said.
    #[must_use]
    pub fn pf(mut self, backing: Backing) -> Self {
        self.backings[0] = backing;
        self
    }

    /// What the VF of this index stands on; nothing unless said.
    ///
    /// # Panics
    /// When the index is not below [`VFS`].
    #[must_use]
    pub fn vf(mut self, index: usize, backing: Backing) -> Self {
        self.backings[index + 1] = backing;
        self
    }

    /// Where the QMP socket for the daemon under test is; in a folder of its own unless said.
    #[must_use]
    pub fn qmp_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.qmp = Some(path.into());
        self
    }

    /// Boots instead of resuming the saved state: about a minute inside the lab.
    #[must_use]
    pub fn cold(mut self) -> Self {
        self.start = Start::Cold;
        self
    }

    /// With `/usr/bin/iperf3` and `/usr/bin/tcpdump` in the guest.
    #[must_use]
    pub fn with_programs(mut self) -> Self {
        self.image = Image::WithPrograms;
        self
    }

    /// Waits for the guest to be migrated here, from a guest of the same name:
    /// [`start`](Self::start) returns when QEMU takes `migrate-incoming`, and commands can be
    /// executed once the guest runs here.
    #[must_use]
    pub fn arriving(mut self) -> Self {
        self.start = Start::Arriving;
        self
    }

    /// Adds arguments to QEMU's command line. Devices among them take a cold boot.
    #[must_use]
    pub fn arguments<S: Into<String>>(mut self, more: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(more.into_iter().map(Into::into));
        self
    }

    /// Starts the guest; it executes commands when this returns, unless it is
    /// [`arriving`](Self::arriving).
    ///
    /// # Errors
    /// The environment names no guest images, QEMU refuses or ends, or the guest does not answer in
    /// time; with the end of QEMU's own messages.
    pub fn start(self) -> Result<Guest> {
        let from_environment = |given: Option<PathBuf>, variable: &str| {
            given.or_else(|| std::env::var_os(variable).map(PathBuf::from)).ok_or_else(|| {
                Error::Missing {
                    what: format!("{variable} is not set"),
                    remedy: "guests are started by tests and jobs of `cargo lab`".into(),
                }
            })
        };
        let images = from_environment(self.images, "LAB_GUEST_DIR")?;
        let qemu = from_environment(self.qemu, "LAB_QEMU")?;
        let folder = scratch(&self.name)?;
        let path = |file: &str| folder.path.join(file);
        let qmp = self.qmp.unwrap_or_else(|| path("qmp"));
        let log = path("qemu.log");

        let mut command = Command::new(&qemu);
        command
            .args(machine(&self.name, &images, self.image, &self.backings)?)
            .args(["-run-with", "exit-with-parent=on"])
            // QEMU waits for the console, so that nothing the guest says is lost.
            .args(["-serial", &format!("unix:{},server=on,wait=on", option(&path("console")))])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", option(&qmp))])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", option(&path("lab")))])
            .args(&self.arguments);
        match self.start {
            Start::Saved => {
                let state = images.join(self.image.state(&self.name));
                command.arg("-incoming").arg(format!("file:{}", state.display()));
            }
            Start::Arriving => {
                command.args(["-incoming", "defer"]);
            }
            Start::Cold => {}
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).at(format!("creating {}", log.display()))?);
        let child = spawn(command)?;
        let mut guest = Guest {
            name: self.name,
            process: Process { child },
            console: Mutex::new(None),
            qmp,
            log,
            folder,
        };
        guest.connect(self.start)?;
        Ok(guest)
    }
}

/// A path in a QEMU option, where a comma is doubled.
fn option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A running guest. It is killed when this is dropped.
#[derive(Debug)]
pub struct Guest {
    // Dropped in this order: first the process, last the folder with its sockets.
    process: Process,
    console: Mutex<Option<Console>>,
    name: String,
    qmp: PathBuf,
    log: PathBuf,
    folder: Scratch,
}

#[derive(Debug)]
struct Process {
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Scratch {
    path: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Guest {
    /// A guest by its name, one of [`GUESTS`], to be started with [`Builder::start`].
    pub fn named(name: &str) -> Builder {
        Builder {
            name: name.into(),
            backings: Default::default(),
            qmp: None,
            image: Image::default(),
            start: Start::default(),
            qemu: None,
            images: None,
            arguments: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id of its QEMU.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// The QMP socket that is meant for the daemon under test.
    pub fn qmp_path(&self) -> &Path {
        &self.qmp
    }

    /// MAC that a function has by default.
    ///
    /// # Errors
    /// Never for a guest that has started.
    pub fn mac(&self, function: Function) -> Result<String> {
        mac(&self.name, function)
    }

    /// Connects to a QMP monitor of the test's own, apart from [`qmp_path`](Self::qmp_path). One
    /// connection at a time.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.folder.path.join("lab"), START_LIMIT)
    }

    /// Executes shell commands in the guest.
    ///
    /// # Errors
    /// The guest does not answer within four minutes: it is then lost for further commands. A
    /// command that fails is not an error here.
    pub fn exec(&self, command: &str) -> Result<Output> {
        self.on_console(|console| console.exec(command, COMMAND_LIMIT))
    }

    /// Executes shell commands in the guest, killing them there after `limit` (whole seconds, at
    /// least one; status 137).
    ///
    /// # Errors
    /// The guest does not answer within a minute after that.
    pub fn exec_within(&self, command: &str, limit: Duration) -> Result<Output> {
        self.on_console(|console| console.exec_within(command, limit))
    }

    fn on_console(
        &self,
        exec: impl FnOnce(&mut Console) -> std::result::Result<Output, String>,
    ) -> Result<Output> {
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        let console =
            console.as_mut().ok_or_else(|| self.failure("its console is not connected"))?;
        exec(console).map_err(|reason| self.failure(&reason))
    }

    /// Executes shell commands that must succeed, and gives their output.
    ///
    /// # Errors
    /// As [`exec`](Self::exec), and when the status is not 0.
    pub fn run(&self, command: &str) -> Result<String> {
        let output = self.exec(command)?;
        if output.status == 0 {
            return Ok(output.text);
        }
        Err(self.failure(&format!("`{command}` ended with {}:\n{}", output.status, output.text)))
    }

    /// Kills QEMU, as a crash would, and waits for its end.
    ///
    /// # Errors
    /// The process cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.process.child.kill().at("killing QEMU")?;
        self.process.child.wait().at("waiting for QEMU").map(|_| ())
    }

    /// Exit status, if QEMU has ended by itself.
    ///
    /// # Errors
    /// The process cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.child.try_wait().at("asking for QEMU's status")
    }

    fn connect(&mut self, start: Start) -> Result<()> {
        let place = self.folder.path.join("console");
        let deadline = Instant::now() + START_LIMIT;
        let mut console = loop {
            if let Ok(console) = Console::connect(&place) {
                break console;
            }
            if let Some(status) = self.ended()? {
                return Err(self.failure(&format!("QEMU ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.failure("QEMU does not open the guest's console"));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        match start {
            Start::Saved => self.resumed()?,
            Start::Cold => {
                console.ready(BOOT_LIMIT).map_err(|reason| self.failure(&reason))?;
            }
            Start::Arriving => {}
        }
        if start != Start::Arriving {
            console.exec("true", START_LIMIT).map_err(|reason| self.failure(&reason))?;
        }
        self.console = Mutex::new(Some(console));
        Ok(())
    }

    /// Waits until the saved state is loaded: it overwrites the serial line's receiver, and with it
    /// the first byte that came too early.
    fn resumed(&self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let mut qmp = self.qmp()?;
        let mut status = || {
            let status = qmp.execute("query-status", json!({}));
            status.map_err(|error| self.failure(&error.to_string()))
        };
        while status()?["status"] != "running" {
            if Instant::now() > deadline {
                return Err(self.failure("its saved state is not loaded in time"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn failure(&self, reason: &str) -> Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let usual = ["warning: hub", "info: QEMU waiting for connection"];
        let log: Vec<&str> =
            log.lines().filter(|line| !usual.iter().any(|text| line.contains(text))).collect();
        let reason = match log.len() {
            0 => reason.to_owned(),
            lines => format!("{reason}\nQEMU: {}", log[lines.saturating_sub(10)..].join("\n")),
        };
        Error::Guest { guest: self.name.clone(), reason }
    }
}

/// A new folder for a guest's sockets, short enough for a socket's path.
fn scratch(name: &str) -> Result<Scratch> {
    let base = std::env::temp_dir();
    for number in 0..u32::MAX {
        let path = base.join(format!("lab-guest-{name}-{}-{number}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(Scratch { path }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).at(format!("creating {}", path.display())),
        }
    }
    Err(Error::Missing { what: "no free folder for a guest".into(), remedy: "clean up".into() })
}

/// Starts a process from a thread that lives as long as this process: QEMU ends with the *thread*
/// that started it (prctl(2), PR_SET_PDEATHSIG), and a test's thread is gone before the test is.
/// The process is in the caller's network namespace all the same.
fn spawn(command: Command) -> Result<Child> {
    type Request = (Command, Netns, mpsc::Sender<Result<Child>>);
    static STARTER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, namespace, answer) in requests {
                let what = format!("starting {}", command.get_program().display());
                let child = namespace.join().and_then(|()| command.spawn().at(what));
                // The asker may have given up.
                let _ = answer.send(child);
            }
        });
        sender
    });
    let gone = || std::io::Error::other("the thread that starts processes has ended");
    let (sender, answer) = mpsc::channel();
    starter
        .send((command, Netns::current()?, sender))
        .map_err(|_| gone())
        .and_then(|()| answer.recv().map_err(|_| gone()))
        .at("starting a guest")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_functions_of_any_guests_have_the_same_mac() {
        let mut seen = std::collections::BTreeSet::new();
        for name in GUESTS {
            for function in (0..VFS).map(Function::Vf).chain([Function::Pf]) {
                assert!(seen.insert(mac(name, function).unwrap()));
            }
        }
        assert_eq!(mac("b", Function::Vf(0)).unwrap(), "52:54:00:0a:01:01");
        assert!(mac("z", Function::Pf).is_err());
    }

    #[test]
    fn backings_change_nothing_but_the_netdevs() {
        let images = Path::new("/images");
        let taps = std::array::from_fn(|number| Backing::Tap(format!("tap{number}")));
        let saved = machine("a", images, Image::Small, &Default::default()).unwrap();
        let started = machine("a", images, Image::Small, &taps).unwrap();
        assert_eq!(saved.len(), started.len());
        for (index, (saved, started)) in saved.iter().zip(&started).enumerate() {
            if started.starts_with("tap,") {
                assert!(saved.starts_with("hubport,"), "argument {index}");
            } else {
                assert_eq!(saved, started, "argument {index}");
            }
        }
    }

    #[test]
    fn the_pf_comes_after_its_vfs() {
        let arguments = machine("a", Path::new("/"), Image::Small, &Default::default()).unwrap();
        let devices: Vec<&String> =
            arguments.iter().filter(|argument| argument.starts_with("virtio-net-pci")).collect();
        assert_eq!(devices.len(), VFS + 1);
        assert!(devices[VFS].contains("id=pf0") && !devices[VFS].contains("sriov-pf"));
    }
}
