//! Where guests and the wire would be: each end of a switch sends frames and notes what it receives.
//!
//! In: numbered frames (see [`frames`](crate::frames)). Out: which of them came where, byte for byte,
//! VLAN tags as they stand on a wire. An end is a link of one network namespace, read with one raw
//! socket for all of them, or a tap that a QEMU without a machine holds, as it does for a guest.
//! Nothing here knows where a frame should go.

use std::{
    collections::BTreeMap,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lab::net::{self, Netns};
use nix::{
    errno::Errno,
    libc, setsockopt_impl, sockopt_impl,
    sys::{
        socket::{
            self, AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol,
            SockType, setsockopt, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

use crate::{PATIENCE, frames};

/// How often a reader looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Room for frames that no reader has taken yet, in bytes.
const ROOM: usize = 128 << 20;

/// A frame that came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Where.
    pub end: u32,
    /// When it was read.
    pub at: Instant,
    /// The frame.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Ledger {
    arrivals: BTreeMap<u32, Vec<Arrival>>,
    count: usize,
}

/// The ends of one switch.
#[derive(Debug)]
pub struct Ends {
    ways: BTreeMap<u32, Way>,
    ledger: Arc<Mutex<Ledger>>,
    over: Arc<AtomicBool>,
    readers: Vec<JoinHandle<()>>,
    qemu: Option<Child>,
}

#[derive(Debug)]
enum Way {
    Link(OwnedFd),
    Tap { socket: UnixDatagram, to: PathBuf },
}

fn locked(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    fn note(&mut self, end: u32, bytes: Vec<u8>) {
        if let Some(number) = frames::number(&bytes) {
            self.count += 1;
            let arrival = Arrival { end, at: Instant::now(), bytes };
            self.arrivals.entry(number).or_default().push(arrival);
        }
    }
}

impl Ends {
    /// The ends that are `links` of the namespace `room`, and those that are `taps` of the calling
    /// thread's; `folder` is for sockets.
    pub fn of(
        room: &Netns,
        links: &[(u32, String)],
        taps: &[(u32, String)],
        folder: &Path,
    ) -> Ends {
        let mut ends = Ends {
            ways: BTreeMap::new(),
            ledger: Arc::default(),
            over: Arc::default(),
            readers: Vec::new(),
            qemu: None,
        };
        room.run(|| ends.hold_links(links)).unwrap();
        if !taps.is_empty() {
            ends.hold_taps(taps, folder);
        }
        ends
    }

    fn hold_links(&mut self, links: &[(u32, String)]) {
        let addresses: BTreeMap<String, LinkAddr> = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter_map(|link| Some((link.interface_name, *link.address?.as_link_addr()?)))
            .collect();
        let mut numbers = BTreeMap::new();
        for (number, link) in links {
            let address = addresses.get(link).expect(link);
            numbers.insert(address.ifindex(), *number);
            // Protocol 0: it only sends.
            let socket = packet_socket(None);
            socket::bind(socket.as_raw_fd(), address).unwrap();
            self.ways.insert(*number, Way::Link(socket));
        }
        let socket = packet_socket(SockProtocol::EthAll);
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM).unwrap();
        setsockopt(&socket, PacketAuxdata, &true).unwrap();
        let pace = TimeVal::milliseconds(LOOK.as_millis() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &pace).unwrap();
        let (ledger, over) = (Arc::clone(&self.ledger), Arc::clone(&self.over));
        self.readers.push(std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if let Some((index, frame)) = received(&socket)
                    && let Some(number) = numbers.get(&index)
                {
                    locked(&ledger).note(*number, frame);
                }
            }
        }));
    }

    /// A QEMU whose hubs connect each tap to a socket of ours.
    fn hold_taps(&mut self, taps: &[(u32, String)], folder: &Path) {
        // A datagram socket holds ten by default, and QEMU then waits.
        std::fs::write("/proc/sys/net/unix/max_dgram_qlen", "4096").unwrap();
        let program = std::env::var_os("LAB_QEMU").expect("LAB_QEMU names QEMU");
        let mut qemu = Command::new(program);
        qemu.args(["-machine", "none", "-nodefaults", "-display", "none"]);
        let mut sockets = Vec::new();
        for (number, tap) in taps {
            let [ours, theirs] =
                ["ours", "theirs"].map(|side| folder.join(format!("{tap}.{side}")));
            let socket = UnixDatagram::bind(&ours).unwrap();
            socket.set_read_timeout(Some(LOOK)).unwrap();
            let tap = format!("tap,id=tap{number},ifname={tap},script=no,downscript=no");
            let socket_of_qemu = format!(
                "dgram,id=socket{number},local.type=unix,local.path={},remote.type=unix,\
                 remote.path={}",
                theirs.display(),
                ours.display()
            );
            qemu.args(["-netdev", &tap, "-netdev", &socket_of_qemu]);
            for what in ["tap", "socket"] {
                let port =
                    format!("hubport,id={what}port{number},hubid={number},netdev={what}{number}");
                qemu.args(["-netdev", &port]);
            }
            sockets.push((*number, socket, theirs));
        }
        // It warns of hubs without a NIC.
        qemu.stdin(Stdio::null()).stderr(Stdio::null());
        self.qemu = Some(qemu.spawn().expect("QEMU"));
        for (number, socket, to) in sockets {
            net::wait_for("QEMU's socket", PATIENCE, || to.exists().then_some(())).unwrap();
            let reader = socket.try_clone().unwrap();
            let (ledger, over) = (Arc::clone(&self.ledger), Arc::clone(&self.over));
            self.readers.push(std::thread::spawn(move || {
                let mut room = [0; 2048];
                while !over.load(Ordering::Relaxed) {
                    if let Ok(length) = reader.recv(&mut room) {
                        locked(&ledger).note(number, room[..length].to_vec());
                    }
                }
            }));
            self.ways.insert(number, Way::Tap { socket, to });
        }
    }

    /// Sends a frame into the switch from this end.
    #[track_caller]
    pub fn send(&self, end: u32, frame: &[u8]) {
        match &self.ways[&end] {
            // Where the other side of the link is down, the frame is lost, as on a cable.
            Way::Link(socket) => match nix::unistd::write(socket, frame) {
                Ok(_) | Err(Errno::ENOBUFS) => {}
                Err(error) => panic!("sending at end {end}: {error}"),
            },
            Way::Tap { socket, to } => {
                socket.send_to(frame, to).unwrap();
            }
        }
    }

    /// How many frames have come out so far.
    pub fn count(&self) -> usize {
        locked(&self.ledger).count
    }

    /// Waits until so many frames have come out; whether they did in time.
    pub fn wait_for_count(&self, count: usize, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.count() < count {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        true
    }

    /// What has come out so far, by number; it is forgotten here.
    pub fn take(&self) -> BTreeMap<u32, Vec<Arrival>> {
        let mut ledger = locked(&self.ledger);
        ledger.count = 0;
        std::mem::take(&mut ledger.arrivals)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(qemu) = &mut self.qemu {
            // It may have ended by itself.
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
        for reader in self.readers.drain(..) {
            // One that panicked has said so.
            let _ = reader.join();
        }
    }
}

sockopt_impl!(
    /// Each frame comes with its outer VLAN tag beside it, which the kernel takes out of the frame.
    PacketAuxdata,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_AUXDATA,
    bool
);

fn packet_socket(protocol: impl Into<Option<SockProtocol>>) -> OwnedFd {
    let (family, kind) = (AddressFamily::Packet, SockType::Raw);
    socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).unwrap()
}

/// `PACKET_OUTGOING` (include/uapi/linux/if_packet.h): what a link sends.
const OUTGOING: u8 = 4;

/// `TP_STATUS_VLAN_VALID`, there.
const VLAN_VALID: u32 = 1 << 4;

/// The next frame that a link has received, whole, and the link's index; none for a while.
fn received(socket: &OwnedFd) -> Option<(usize, Vec<u8>)> {
    let mut room = [0; 2048];
    // struct tpacket_auxdata, there: status, lengths, offsets, TCI and TPID of the tag.
    let mut beside = nix::cmsg_space!([u8; 20]);
    let mut places = [IoSliceMut::new(&mut room)];
    let message = socket::recvmsg::<LinkAddr>(
        socket.as_raw_fd(),
        &mut places,
        Some(&mut beside),
        MsgFlags::empty(),
    );
    let message = match message {
        Ok(message) => message,
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => return None,
        Err(error) => panic!("reading frames: {error}"),
    };
    let address = message.address?;
    if address.pkttype() == OUTGOING {
        return None;
    }
    let mut tag = None;
    for beside in message.cmsgs().unwrap() {
        if let ControlMessageOwned::Unknown(data) = beside {
            let bytes = &data.data_bytes;
            if crate::u32_at(bytes, 0) & VLAN_VALID != 0 {
                tag = Some((crate::u16_at(bytes, 18), crate::u16_at(bytes, 16)));
            }
        }
    }
    let length = message.bytes;
    let mut frame = room[..length].to_vec();
    if let Some((tpid, tci)) = tag {
        let [[a, b], [c, d]] = [tpid.to_be_bytes(), tci.to_be_bytes()];
        frame.splice(12..12, [a, b, c, d]);
    }
    Some((address.ifindex(), frame))
}
