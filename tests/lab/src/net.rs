//! Network namespaces, netdevsim devices, iproute2 and raw frames for tests that run in the lab.
//!
//! In: names of links and namespaces, frames. Out: what `ip -j` and `tc -j` print, captured
//! frames. Everything is made in namespaces of the test's own; netdevsim devices, which the kernel
//! has in one list for all, are removed when dropped. The programs are iproute2's own on purpose:
//! tests must not check eswitchd's netlink code with itself.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType};
use serde_json::Value;

use crate::{At, Error, Result};

/// Runs a program to its end and gives its standard output.
///
/// # Errors
/// It cannot be started, or ends with another status than 0: with what it printed.
pub fn command<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    output(&mut command)
}

fn output(command: &mut Command) -> Result<String> {
    let line = || {
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        words.join(" ")
    };
    let line = line();
    let output = command.stdin(Stdio::null()).output().at(format!("starting `{line}`"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let printed = [output.stdout, output.stderr].concat();
    Err(Error::Command {
        program: line,
        status: output.status.to_string(),
        tail: String::from_utf8_lossy(&printed).trim_end().to_owned(),
    })
}

/// `ip`, with arguments separated by blanks: `ip("link add v0 type veth peer name v1")`.
///
/// # Errors
/// As [`command`].
pub fn ip(arguments: &str) -> Result<String> {
    command("ip", arguments.split_whitespace())
}

/// `tc`, with arguments separated by blanks.
///
/// # Errors
/// As [`command`].
pub fn tc(arguments: &str) -> Result<String> {
    command("tc", arguments.split_whitespace())
}

/// `ip -j -d`, parsed.
///
/// # Errors
/// As [`command`], or what it prints is not JSON.
pub fn ip_json(arguments: &str) -> Result<Value> {
    json("ip", &["-j", "-d"], arguments)
}

/// `tc -j -s`, parsed.
///
/// # Errors
/// As [`command`], or what it prints is not JSON.
pub fn tc_json(arguments: &str) -> Result<Value> {
    json("tc", &["-j", "-s"], arguments)
}

/// `devlink -j`, parsed.
///
/// # Errors
/// As [`command`], or what it prints is not JSON.
pub fn devlink_json(arguments: &str) -> Result<Value> {
    json("devlink", &["-j"], arguments)
}

fn json(program: &str, options: &[&str], arguments: &str) -> Result<Value> {
    let words = options.iter().copied().chain(arguments.split_whitespace());
    let text = command(program, words)?;
    if text.trim().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(&text)
        .map_err(|_| Error::Format { what: format!("output of {program} {arguments}"), text })
}

/// Loads a module.
///
/// # Errors
/// As [`command`].
pub fn modprobe(module: &str) -> Result<()> {
    command("modprobe", [module]).map(|_| ())
}

/// Asks again until `condition` gives something, or the time is over.
///
/// # Errors
/// The time is over; `what` was not there.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = condition() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(Error::Missing {
                what: format!("{what} is not there after {:.1} s", limit.as_secs_f64()),
                remedy: "see what happened before".into(),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A network namespace.
#[derive(Debug)]
pub struct Netns {
    namespace: File,
}

impl Netns {
    /// Moves the calling thread, and every process and thread that it starts from now on, into
    /// network and mount namespaces of their own, with `lo` up and a `/sys` and `/run/netns` that
    /// belong to them. A test's thread ends with its test, so there is no way back.
    ///
    /// # Errors
    /// The kernel refuses (it takes root).
    pub fn enter() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .at("making new network and mount namespaces")?;
        let none: Option<&str> = None;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).at("making mounts private")?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)
            .at("mounting the namespace's /sys")?;
        mount(Some("debugfs"), "/sys/kernel/debug", Some("debugfs"), MsFlags::empty(), none)
            .at("mounting debugfs")?;
        fs::create_dir_all("/run/netns").at("creating /run/netns")?;
        mount(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), none)
            .at("mounting /run/netns")?;
        ip("link set lo up")?;
        Self::current()
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        let namespace = File::open("/proc/thread-self/ns/net").at("opening the namespace")?;
        Ok(Self { namespace })
    }

    /// A new namespace with `lo` up, known to `ip` by this name (`ip link set x netns NAME`).
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn named(name: &str) -> Result<Self> {
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {name} link set lo up"))?;
        let place = Path::new("/run/netns").join(name);
        let namespace = File::open(&place).at(format!("opening {}", place.display()))?;
        Ok(Self { namespace })
    }

    /// Moves the calling thread into this namespace. `/sys` stays what it was.
    ///
    /// # Errors
    /// The kernel refuses (it takes root, except where the thread is in it already).
    pub fn join(&self) -> Result<()> {
        let identity = |namespace: &File| {
            namespace.metadata().map(|meta| (meta.dev(), meta.ino())).at("reading a namespace")
        };
        if identity(&self.namespace)? == identity(&Self::current()?.namespace)? {
            return Ok(());
        }
        setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET).at("entering the namespace")
    }

    /// Runs a closure in this namespace, on a thread of its own. `/sys` stays the caller's.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.join().map(|()| closure()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Path of this namespace in `/proc`, for `nsenter --net=PATH` or `ip link set x netns PATH`.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd()).into()
    }
}

/// A netdevsim device, in the namespace of the thread that created it. Removed when dropped.
#[derive(Debug)]
pub struct Netdevsim {
    id: u32,
}

const NETDEVSIM: &str = "/sys/bus/netdevsim";

impl Netdevsim {
    /// A device with that many ports. Load the module before (see [`modprobe`]).
    ///
    /// # Errors
    /// The module is not loaded, or the kernel refuses.
    pub fn create(ports: u32) -> Result<Self> {
        // Tests run at once and each takes a free id: the kernel decides who gets it.
        for id in 1..1000 {
            if Path::new(&format!("{NETDEVSIM}/devices/netdevsim{id}")).exists() {
                continue;
            }
            match fs::write(format!("{NETDEVSIM}/new_device"), format!("{id} {ports}")) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOSPC as i32) => {}
                other => return other.at("creating a netdevsim").map(|()| Self { id }),
            }
        }
        Err(Error::Missing { what: "no free netdevsim id".into(), remedy: "remove some".into() })
    }

    /// Devlink handle: `netdevsim/netdevsim10`.
    pub fn handle(&self) -> String {
        format!("netdevsim/netdevsim{}", self.id)
    }

    /// Folder of the device in sysfs.
    pub fn sysfs(&self) -> PathBuf {
        format!("{NETDEVSIM}/devices/netdevsim{}", self.id).into()
    }

    /// Folder with its knobs in debugfs.
    pub fn debugfs(&self) -> PathBuf {
        format!("/sys/kernel/debug/netdevsim/netdevsim{}", self.id).into()
    }

    /// Sets the number of VFs; from one number to another through 0.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_vfs(&self, count: u32) -> Result<()> {
        let file = self.sysfs().join("sriov_numvfs");
        fs::write(&file, count.to_string()).at(format!("writing {count} to {}", file.display()))
    }

    /// Puts the eswitch into switchdev mode.
    ///
    /// # Errors
    /// `devlink` refuses.
    pub fn switchdev(&self) -> Result<()> {
        command("devlink", ["dev", "eswitch", "set", &self.handle(), "mode", "switchdev"])
            .map(|_| ())
    }

    /// Netdev of the first physical port: the PF, or the uplink in switchdev mode.
    ///
    /// # Errors
    /// devlink knows none.
    pub fn uplink(&self) -> Result<String> {
        self.netdev("physical", None)
    }

    /// Netdev of the representor of a VF.
    ///
    /// # Errors
    /// devlink knows none.
    pub fn representor(&self, vf: u32) -> Result<String> {
        self.netdev("pcivf", Some(vf))
    }

    fn netdev(&self, flavour: &str, vf: Option<u32>) -> Result<String> {
        let ports = devlink_json("port show")?;
        let prefix = format!("{}/", self.handle());
        ports["port"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(handle, _)| handle.starts_with(&prefix))
            .map(|(_, port)| port)
            .find(|port| port["flavour"] == flavour && vf.is_none_or(|vf| port["vfnum"] == vf))
            .and_then(|port| port["netdev"].as_str().map(str::to_owned))
            .ok_or_else(|| Error::Missing {
                what: format!("no {flavour} port {vf:?} of {}", self.handle()),
                remedy: format!("devlink knows {ports}"),
            })
    }
}

impl Drop for Netdevsim {
    fn drop(&mut self) {
        // It may have been removed by the test.
        let _ = fs::write(format!("{NETDEVSIM}/del_device"), self.id.to_string());
    }
}

/// Sends one raw Ethernet frame, without its checksum, out of a link.
///
/// # Errors
/// There is no such link, it is down, or the kernel refuses.
pub fn send_frame(link: &str, frame: &[u8]) -> Result<()> {
    let what = || format!("sending a frame on {link}");
    // Protocol 0: a socket that only sends.
    let socket = socket::socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None::<SockProtocol>,
    )
    .at(what())?;
    let address = nix::ifaddrs::getifaddrs()
        .at(what())?
        .filter(|address| address.interface_name == link)
        .find_map(|address| address.address.and_then(|a| a.as_link_addr().copied()))
        .ok_or_else(|| Error::Missing {
            what: format!("no link {link}"),
            remedy: "create it before sending".into(),
        })?;
    socket::bind(socket.as_raw_fd(), &address).at(what())?;
    nix::unistd::write(&socket, frame).at(what()).map(|_| ())
}

/// The frames that a link receives, from [`start`](Capture::start) on. What the link sends is left
/// out; VLAN tags stand in the frame as they do on a wire.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    frames: Arc<(Mutex<Vec<Vec<u8>>>, Condvar)>,
}

impl Capture {
    /// Starts to capture, and returns when that has begun.
    ///
    /// # Errors
    /// tcpdump refuses or does not start in time.
    pub fn start(link: &str) -> Result<Self> {
        // tcpdump rather than a socket: the kernel takes VLAN tags out of the frame and tells them
        // apart in ancillary data; libpcap puts them back.
        let mut tcpdump = Command::new("tcpdump")
            .args(["-i", link, "-Q", "in", "-s", "0", "-U", "--immediate-mode", "-n", "-w", "-"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .at("starting tcpdump")?;
        let stderr = tcpdump.stderr.take();
        let stdout = tcpdump.stdout.take();
        let frames = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let capture = Self { tcpdump, frames: Arc::clone(&frames) };
        let (told, begun) = mpsc::channel();
        std::thread::spawn(move || {
            let Some(stderr) = stderr else { return };
            for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
                // Who waits may have given up.
                let _ = told.send(line);
            }
        });
        std::thread::spawn(move || {
            let Some(stdout) = stdout else { return };
            read_pcap(BufReader::new(stdout), |frame| {
                let (list, changed) = &*frames;
                list.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
                changed.notify_all();
            })
        });
        let mut said = String::new();
        loop {
            match begun.recv_timeout(Duration::from_secs(30)) {
                Ok(line) if line.contains("listening on") => return Ok(capture),
                Ok(line) => said.push_str(&line),
                Err(_) => {
                    return Err(Error::Command {
                        program: format!("tcpdump -i {link}"),
                        status: "does not listen".into(),
                        tail: said,
                    });
                }
            }
        }
    }

    /// All frames so far.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        self.frames.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a frame that fits, among those that came already too.
    ///
    /// # Errors
    /// None comes within `limit`.
    pub fn wait_for(&self, limit: Duration, fits: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let (list, changed) = &*self.frames;
        let frames = list.lock().unwrap_or_else(PoisonError::into_inner);
        let (frames, _) = changed
            .wait_timeout_while(frames, limit, |frames| !frames.iter().any(|frame| fits(frame)))
            .unwrap_or_else(PoisonError::into_inner);
        frames.iter().find(|frame| fits(frame)).cloned().ok_or_else(|| Error::Missing {
            what: format!("no such frame within {:.1} s", limit.as_secs_f64()),
            remedy: format!("{} others came", frames.len()),
        })
    }

    /// Forgets all frames so far.
    pub fn clear(&self) {
        self.frames.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended with its link.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// Reads a capture file (draft-ietf-opsawg-pcap, in this machine's byte order) to its end.
fn read_pcap(mut stream: impl Read, mut frame: impl FnMut(Vec<u8>)) {
    let mut header = [0; 24];
    if stream.read_exact(&mut header).is_err() {
        return;
    }
    let mut record = [0; 16];
    while stream.read_exact(&mut record).is_ok() {
        let length = u32::from_ne_bytes([record[8], record[9], record[10], record[11]]);
        let mut bytes = vec![0; length as usize];
        if stream.read_exact(&mut bytes).is_err() {
            return;
        }
        frame(bytes);
    }
}

/// An Ethernet frame of at least 60 bytes: addresses, optional 802.1Q VLAN ids (outermost first),
/// EtherType, payload.
///
/// # Panics
/// An address is not six hexadecimal numbers separated by colons.
pub fn frame(to: &str, from: &str, vlans: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    for address in [to, from] {
        let before = bytes.len();
        bytes.extend(address.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()));
        assert_eq!(bytes.len(), before + 6, "not a MAC: {address}");
    }
    for vlan in vlans {
        bytes.extend([0x81, 0x00]);
        bytes.extend(vlan.to_be_bytes());
    }
    bytes.extend(ethertype.to_be_bytes());
    // The contents do not matter, only that they are all written.
    let _ = bytes.write_all(payload);
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_laid_out_as_on_the_wire() {
        let bytes = frame("ff:ff:ff:ff:ff:ff", "02:00:00:00:00:01", &[100, 7], 0x88b5, b"hi");
        assert_eq!(bytes.len(), 60);
        assert_eq!(bytes[..6], [0xff; 6]);
        assert_eq!(bytes[6..12], [2, 0, 0, 0, 0, 1]);
        assert_eq!(bytes[12..22], [0x81, 0, 0, 100, 0x81, 0, 0, 7, 0x88, 0xb5]);
        assert_eq!(&bytes[22..24], b"hi");
    }

    #[test]
    fn a_capture_file_cut_anywhere_gives_its_whole_frames() {
        let mut file = vec![0; 24];
        for frame in [&b"one"[..], b"four"] {
            file.extend([0; 8]);
            file.extend((frame.len() as u32).to_ne_bytes());
            file.extend((frame.len() as u32).to_ne_bytes());
            file.extend(frame);
        }
        for cut in 0..=file.len() {
            let mut frames = Vec::new();
            read_pcap(&file[..cut], |frame| frames.push(frame));
            let whole = usize::from(cut >= 24 + 19) + usize::from(cut >= 24 + 39);
            assert_eq!(frames, [b"one".to_vec(), b"four".to_vec()][..whole], "cut at {cut}");
        }
    }
}
