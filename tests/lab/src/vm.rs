//! Boots the lab VM, runs one job in it, and gives the job's output and exit status.
//!
//! In: the finished lab and a [`Job`]. Out: the job's output as it comes, its exit status, files
//! that it left in `/out`. The VM's disk is a snapshot: a run changes nothing in the cache. QEMU
//! ends with this process, whatever ends that.
//!
//! The job's output comes over two virtio ports (standard output and standard error). Each ends
//! with a line `\x1elab-end TOKEN STATUS`, written by `recipe/vm-init.sh`: so the machine knows
//! that it has everything, and what the status is.

use std::fmt::Write as _;
use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::cache::RunFolder;
use crate::setup::Lab;
use crate::{At, Error, Result};

/// Memory of the VM; QEMU takes from the machine only what is used.
const MEMORY_MIB: u32 = 4096;
/// MAC of the card to the machine, by which the VM's init finds it.
const MACHINE_MAC: &str = "52:54:00:0b:00:01";
/// PCI address, in the VM, of a virtio PF whose VFs vp_vdpa makes into vDPA devices.
pub const VIRTIO_PF_ADDRESS: &str = "0000:02:00.0";
/// VFs that the virtio PF can create; index 0 is function 1.
pub const VIRTIO_VFS: usize = 3;
// The IOMMU is for vhost_vdpa, which takes only devices behind one; other devices pass through it.
/// Serial number of the scratch disk, by which the job finds it in `/sys/block`.
pub const SCRATCH: &str = "scratch";
/// Its size in bytes; only what is written takes room.
const SCRATCH_SIZE: u64 = 256 << 20;
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog audit=0 \
    apparmor=0 init_on_alloc=0 kfence.sample_interval=0 random.trust_cpu=on net.ifnames=0 \
    tsc=reliable no_timer_check intel_iommu=on iommu=pt";

/// What runs in the VM.
#[derive(Debug)]
pub struct Job {
    /// The machine's side of `/job` and `/out`.
    folder: RunFolder,
    variables: Vec<(String, String)>,
    limit: Option<Duration>,
    forwards: Vec<(u16, u16)>,
    share: Option<PathBuf>,
    arguments: Vec<String>,
}

impl Job {
    /// A job with nothing in its folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(lab: &Lab) -> Result<Self> {
        let folder = lab.cache.run_folder()?;
        for sub in ["job/bin", "out"] {
            fs::create_dir_all(folder.path().join(sub)).at("creating the job's folder")?;
        }
        Ok(Self {
            folder,
            variables: Vec::new(),
            limit: None,
            forwards: Vec::new(),
            share: None,
            arguments: Vec::new(),
        })
    }

    /// Puts an executable into `/job/bin`, which is first in the VM's `PATH`.
    ///
    /// # Errors
    /// The file cannot be linked or copied.
    pub fn add_executable(&mut self, path: &Path, name: &str) -> Result<()> {
        let place = self.folder.path().join("job/bin").join(name);
        fs::hard_link(path, &place)
            .or_else(|_| fs::copy(path, &place).map(|_| ()))
            .at(format!("adding {} to the job", path.display()))
    }

    /// Sets an environment variable of the job.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.variables.push((name.into(), value.into()));
    }

    /// Ends the VM when the job has not ended after this time.
    pub fn limit(&mut self, limit: Duration) {
        self.limit = Some(limit);
    }

    /// Makes a TCP port of the VM reachable on 127.0.0.1 of the machine. The VM itself reaches
    /// nothing outside.
    pub fn forward(&mut self, machine: u16, vm: u16) {
        self.forwards.push((machine, vm));
    }

    /// Shares a folder of the machine as `/share`, writable.
    pub fn share(&mut self, folder: PathBuf) {
        self.share = Some(folder);
    }

    /// Gives the VM an empty disk with ext4 and a journal, on which an fsync is one of the machine's
    /// disk too. (That of the VM itself forgets, and syncs nothing.)
    ///
    /// # Errors
    /// The disk cannot be made.
    pub fn scratch_disk(&mut self) -> Result<()> {
        let path = self.folder.path().join("scratch.img");
        let file = fs::File::create(&path).at("creating the scratch disk")?;
        file.set_len(SCRATCH_SIZE).at("creating the scratch disk")?;
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0"]).arg(&path);
        let output = command.stdin(Stdio::null()).output().at("starting mke2fs")?;
        if !output.status.success() {
            return Err(Error::Command {
                program: "mke2fs".into(),
                status: output.status.to_string(),
                tail: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        let path = quote_comma(&path);
        // Behind the VM's own disk, which its init takes to be the first.
        self.arguments([
            "-drive".into(),
            format!("file={path},format=raw,if=none,id=scratch,cache=writeback"),
            "-device".into(),
            format!("virtio-blk-pci,drive=scratch,serial={SCRATCH},addr=0x1e"),
        ]);
        Ok(())
    }

    /// Adds arguments for the VM's QEMU, for instance devices.
    pub fn arguments<S: Into<String>>(&mut self, more: impl IntoIterator<Item = S>) {
        self.arguments.extend(more.into_iter().map(Into::into));
    }

    /// Folder of the machine that the job sees as `/out`. It goes with the job.
    pub fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// Boots the VM, runs `script` (for `sh`) in it, passes on its output as it comes, and gives
    /// its exit status.
    ///
    /// # Errors
    /// QEMU cannot be started or ends early, the kernel panics, the time limit passes.
    pub fn run(
        &self,
        lab: &Lab,
        script: &str,
        stdout: impl FnMut(&[u8]) + Send + 'static,
        stderr: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<i32> {
        self.write(script)?;
        let token = token();
        let mut command = self.qemu(lab, &token)?;
        command
            // Not `stdio`: at the end of its input QEMU closes that for output too.
            .args(["-chardev", "file,id=out,path=/proc/self/fd/1,append=on", "-device"])
            .arg("virtserialport,chardev=out,name=lab.out")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut vm = Vm::start(command)?;
        let ends = Ends::new(2);
        ends.relay(vm.child.stdout.take(), &token, stdout);
        ends.relay(vm.child.stderr.take(), &token, stderr);
        self.wait(&mut vm, ends)
    }

    /// As [`run`](Self::run), with the VM's terminal on this process's own.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_on_terminal(&self, lab: &Lab, script: &str) -> Result<i32> {
        self.write(script)?;
        let token = token();
        let mut command = self.qemu(lab, &token)?;
        command
            .args(["-chardev", "stdio,id=tty,signal=off", "-device", "virtconsole,chardev=tty"])
            .stdin(Stdio::inherit())
            .stdout(Stdio::inherit());
        let settings = nix::sys::termios::tcgetattr(std::io::stdin()).ok();
        let mut vm = Vm::start(command)?;
        let ends = Ends::new(1);
        ends.relay(vm.child.stderr.take(), &token, |_| ());
        let status = self.wait(&mut vm, ends);
        if let Some(settings) = settings {
            // QEMU is killed and does not put the terminal back itself.
            let now = nix::sys::termios::SetArg::TCSANOW;
            nix::sys::termios::tcsetattr(std::io::stdin(), now, &settings)
                .at("restoring the terminal")?;
        }
        status
    }

    fn write(&self, script: &str) -> Result<()> {
        let mut text = String::new();
        for (name, value) in &self.variables {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "export {name}={}", quote(value));
        }
        text.push_str(script);
        text.push('\n');
        fs::write(self.folder.path().join("job/run"), text).at("writing the job")
    }

    fn qemu(&self, lab: &Lab, token: &str) -> Result<Command> {
        let path = |sub: &str| quote_comma(&self.folder.path().join(sub));
        let share = |path: &str, tag: &str, more: &str| {
            format!("local,path={path},mount_tag={tag},security_model=none,multidevs=remap{more}")
        };
        let accelerator = match std::env::var("ESWITCHD_LAB_ACCEL") {
            Ok(name) if name != "tcg" => name,
            // The usual build machine's KVM does not carry ordinary guests.
            _ => "tcg,thread=multi".to_owned(),
        };
        let mut append = format!("{KERNEL_ARGUMENTS} lab.token={token}");
        if let (true, Some((rows, columns))) = (std::io::stdin().is_terminal(), terminal_size()) {
            let _ = write!(append, " lab.tty={rows}x{columns}");
        }
        let mut command = Command::new(&lab.qemu);
        command
            .args(["-name", "eswitchd-lab", "-nodefaults", "-machine", "q35", "-cpu", "max"])
            .args(["-accel", &accelerator, "-smp", "2", "-m", &MEMORY_MIB.to_string()])
            .args(["-display", "none", "-no-reboot", "-run-with", "exit-with-parent=on"])
            .arg("-kernel")
            .arg(&lab.kernel)
            .arg("-initrd")
            .arg(&lab.initramfs)
            .args(["-drive"])
            .arg(format!(
                "file={},format=raw,if=virtio,snapshot=on,cache=unsafe,discard=unmap",
                quote_comma(&lab.disk)
            ))
            .args(["-chardev", &format!("file,id=kernel,path={}", path("kernel.log"))])
            .args(["-serial", "chardev:kernel", "-device", "virtio-serial-pci"])
            .args(["-chardev", "file,id=err,path=/proc/self/fd/2,append=on", "-device"])
            .arg("virtserialport,chardev=err,name=lab.err")
            .args(["-virtfs", &share(&path("job"), "job", ",readonly=on")])
            .args(["-virtfs", &share(&path("out"), "out", "")])
            // A physical function with a driver of its own, for legacy mode.
            .args([
                "-device",
                "pcie-root-port,id=igb,chassis=1",
                "-netdev",
                "user,id=igb0,restrict=on",
            ])
            .args(["-device", "igb,id=igb0,bus=igb,netdev=igb0,romfile=,mac=52:54:00:0b:00:02"])
            .args(virtio_pf())
            .stderr(Stdio::piped());
        if let Some(folder) = &self.share {
            command.args(["-virtfs", &share(&quote_comma(folder), "share", "")]);
        }
        if !self.forwards.is_empty() {
            let forwards: String = self
                .forwards
                .iter()
                .map(|(machine, vm)| format!(",hostfwd=tcp:127.0.0.1:{machine}-10.0.2.15:{vm}"))
                .collect();
            command
                .args(["-netdev", &format!("user,id=machine,restrict=on{forwards}"), "-device"])
                .arg(format!("virtio-net-pci,netdev=machine,mac={MACHINE_MAC},romfile="));
            let _ = write!(append, " lab.net={MACHINE_MAC}");
        }
        command.args(["-append", &append]).args(&self.arguments);
        Ok(command)
    }

    fn wait(&self, vm: &mut Vm, ends: Ends) -> Result<i32> {
        let console = || {
            let bytes = fs::read(self.folder.path().join("kernel.log")).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(25)..].join("\n")
        };
        match ends.wait(self.limit) {
            Ok(status) => Ok(status),
            Err(End::Closed(said)) => {
                let status = vm.child.wait().at("waiting for QEMU")?;
                let reason = format!("ended before its job did ({status}) {}", said.trim());
                Err(Error::Vm { reason, console: console() })
            }
            Err(End::Late(limit)) => {
                let reason = format!("its job did not end within {} s", limit.as_secs());
                Err(Error::Vm { reason, console: console() })
            }
        }
    }
}

/// A virtio PF with VFs behind an IOMMU, connected to nothing. QEMU takes the VFs first.
fn virtio_pf() -> Vec<String> {
    let mut arguments: Vec<String> = [
        "-device",
        "intel-iommu,intremap=off,snoop-control=on",
        "-device",
        "pcie-root-port,id=virtio,chassis=2",
    ]
    .map(str::to_owned)
    .into();
    for function in (0..=VIRTIO_VFS).rev() {
        let pf = if function == 0 { "" } else { ",sriov-pf=vpf" };
        let id = if function == 0 { "vpf".to_owned() } else { format!("vvf{function}") };
        arguments.extend([
            "-netdev".into(),
            format!("user,id={id},restrict=on"),
            "-device".into(),
            format!(
                "virtio-net-pci,id={id},bus=virtio,addr=0x0.0x{function},netdev={id},\
                 mac=52:54:00:0b:01:{function:02x},guest_announce=off,queue_reset=off,iommu_platform=on,romfile={pf}"
            ),
        ]);
    }
    arguments
}

/// The process; killed when dropped.
struct Vm {
    child: Child,
}

impl Vm {
    fn start(mut command: Command) -> Result<Self> {
        let child = command.spawn().at("starting the lab's QEMU")?;
        Ok(Self { child })
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

enum End {
    Closed(String),
    Late(Duration),
}

/// Collects the ends of the job's streams.
struct Ends {
    expected: usize,
    sender: mpsc::Sender<std::result::Result<i32, String>>,
    receiver: mpsc::Receiver<std::result::Result<i32, String>>,
}

impl Ends {
    fn new(expected: usize) -> Self {
        let (sender, receiver) = mpsc::channel();
        Self { expected, sender, receiver }
    }

    /// Passes on a stream until its end mark.
    fn relay(
        &self,
        stream: Option<impl Read + Send + 'static>,
        token: &str,
        mut sink: impl FnMut(&[u8]) + Send + 'static,
    ) {
        let Some(mut stream) = stream else { return };
        let sender = self.sender.clone();
        let mut scanner = Scanner::new(token);
        std::thread::spawn(move || {
            let mut chunk = [0; 16384];
            let end = loop {
                match stream.read(&mut chunk) {
                    Ok(0) | Err(_) => break Err(scanner.rest()),
                    Ok(length) => {
                        if let Some(status) = scanner.feed(&chunk[..length], &mut sink) {
                            break Ok(status);
                        }
                    }
                }
            };
            // The run may be over already.
            let _ = sender.send(end);
            // A pipe that is not read would stop QEMU.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
    }

    fn wait(self, limit: Option<Duration>) -> std::result::Result<i32, End> {
        let deadline = limit.map(|limit| (limit, Instant::now() + limit));
        let mut status = 0;
        for _ in 0..self.expected {
            let end = match deadline {
                None => self.receiver.recv().map_err(|_| End::Closed(String::new()))?,
                Some((limit, deadline)) => self
                    .receiver
                    .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                    .map_err(|_| End::Late(limit))?,
            };
            status = end.map_err(End::Closed)?;
        }
        Ok(status)
    }
}

/// Finds the end mark in a stream, and hides it from the reader.
struct Scanner {
    mark: String,
    held: Vec<u8>,
}

impl Scanner {
    const MARK: u8 = 0x1e;

    fn new(token: &str) -> Self {
        Self { mark: format!("\u{1e}lab-end {token} "), held: Vec::new() }
    }

    /// Takes the next piece, passes on what belongs to the job, and gives the status at the mark.
    fn feed(&mut self, piece: &[u8], sink: &mut impl FnMut(&[u8])) -> Option<i32> {
        self.held.extend_from_slice(piece);
        loop {
            let Some(start) = self.held.iter().position(|byte| *byte == Self::MARK) else {
                self.pass(self.held.len(), sink);
                return None;
            };
            self.pass(start, sink);
            let line_end = self.held.iter().position(|byte| *byte == b'\n');
            let possible = self.held.len().min(self.mark.len());
            if self.held[..possible] != self.mark.as_bytes()[..possible] {
                self.pass(1, sink);
            } else if let Some(end) = line_end {
                let status = String::from_utf8_lossy(&self.held[self.mark.len()..end]);
                return Some(status.trim().parse().unwrap_or(255));
            } else {
                return None;
            }
        }
    }

    fn pass(&mut self, length: usize, sink: &mut impl FnMut(&[u8])) {
        let bytes: Vec<u8> = self.held.drain(..length).collect();
        if !bytes.is_empty() {
            sink(&bytes);
        }
    }

    fn rest(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Passes bytes on to this process's standard output.
pub fn to_stdout(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    // A reader that has gone is no reason to stop the job.
    let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
}

/// Passes bytes on to this process's standard error.
pub fn to_stderr(bytes: &[u8]) {
    let _ = std::io::stderr().lock().write_all(bytes);
}

/// A word for the shell, quoted.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A path in a QEMU option, where a comma is doubled.
fn quote_comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Something that a job's output does not contain by accident.
fn token() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    format!("{:x}{:x}", std::process::id(), now.map_or(0, |now| now.as_nanos()))
}

/// Rows and columns of the terminal, as `stty` knows them.
fn terminal_size() -> Option<(u16, u16)> {
    let output = Command::new("stty")
        .arg("size")
        .stdin(Stdio::inherit())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (rows, columns) = text.trim().split_once(' ')?;
    Some((rows.parse().ok()?, columns.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(stream: &[u8], size: usize) -> (Vec<u8>, Option<i32>) {
        let mut scanner = Scanner::new("t1");
        let mut passed = Vec::new();
        let mut status = None;
        for piece in stream.chunks(size) {
            status = scanner.feed(piece, &mut |bytes| passed.extend_from_slice(bytes));
            if status.is_some() {
                break;
            }
        }
        (passed, status)
    }

    #[test]
    fn the_mark_gives_the_status_and_is_not_shown() {
        let stream = b"one\ntwo without newline\x1elab-end t1 3\n";
        for size in 1..stream.len() {
            let (passed, status) = scan(stream, size);
            assert_eq!(passed, b"one\ntwo without newline", "pieces of {size}");
            assert_eq!(status, Some(3), "pieces of {size}");
        }
    }

    #[test]
    fn a_mark_of_another_run_is_output_like_any_other() {
        let stream = b"\x1elab-end t0 0\n\x1e\x1elab-end t1 7\n";
        for size in 1..stream.len() {
            let (passed, status) = scan(stream, size);
            assert_eq!(passed, b"\x1elab-end t0 0\n\x1e", "pieces of {size}");
            assert_eq!(status, Some(7), "pieces of {size}");
        }
    }

    #[test]
    fn output_is_passed_on_without_waiting_for_its_line_to_end() {
        let (passed, status) = scan(b"test a ... ", 64);
        assert_eq!(passed, b"test a ... ");
        assert_eq!(status, None);
    }

    #[test]
    fn a_stream_that_ends_without_a_mark_is_no_success() {
        let ends = Ends::new(1);
        ends.relay(Some(&b"panic"[..]), "t1", |_| ());
        assert!(matches!(ends.wait(Some(Duration::from_secs(10))), Err(End::Closed(_))));
    }

    #[test]
    fn both_streams_must_end() {
        let ends = Ends::new(2);
        ends.relay(Some(&b"\x1elab-end t1 0\n"[..]), "t1", |_| ());
        let limit = Duration::from_millis(50);
        assert!(matches!(ends.wait(Some(limit)), Err(End::Late(_))));
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        let word = "it's $HOME `x` \"y\"";
        let output =
            Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(word))).output();
        assert_eq!(output.unwrap().stdout, word.as_bytes());
    }
}
