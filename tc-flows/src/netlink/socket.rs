//! A netlink socket that takes many answers with one system call.
//!
//! In go datagrams of requests, out come datagrams of the kernel, and word of what was lost. What
//! they say is no concern of this room.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, NetlinkAddr, getsockopt, recvmmsg, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::kernel::{Error, Result};

/// Receive buffer asked for. The kernel doubles it for its own bookkeeping.
pub(super) const RECEIVE_BUFFER: usize = 8 << 20;

/// Room for one datagram. A dump's are at most 32 KiB, and are as long as there is room
/// (`netlink_dump`, net/netlink/af_netlink.c).
const SLOT: usize = 32 << 10;

/// Most datagrams taken at once.
const SLOTS: usize = 32;

/// How long the kernel may be silent before its answer counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket into the kernel's rtnetlink.
pub(super) struct TcSocket {
    socket: Socket,
    port: u32,
    room: Vec<u8>,
}

/// What the system needs to fill several buffers at once. It cannot move between threads, so each
/// conversation makes its own.
pub(super) struct Headers(MultiHeaders<NetlinkAddr>);

impl Headers {
    pub(super) fn new() -> Headers {
        Headers(MultiHeaders::preallocate(SLOTS, None))
    }
}

/// What came of waiting for datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// At least one, each handed on.
    Some,
    /// At least one was lost or cut short.
    Overrun,
    /// Nothing is there, or nothing came in time.
    Nothing,
}

impl TcSocket {
    /// A socket with a receive buffer of this many bytes, as far as the system gives as much.
    pub(super) fn open(receive_buffer: usize) -> Result<TcSocket> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::Socket)?;
        let port = socket.bind_auto().map_err(Error::Socket)?.port_number();
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Socket)?;
        socket.set_ext_ack(true).map_err(Error::Socket)?;
        socket.set_cap_ack(true).map_err(Error::Socket)?;
        let patience = TimeVal::seconds(PATIENCE.as_secs() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(broken)?;
        // Without the privilege to exceed the system's limit, as much as it gives.
        if setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &receive_buffer).map_err(broken)?;
        }
        Ok(TcSocket { socket, port, room: vec![0; SLOT * SLOTS] })
    }

    /// Takes the notifications of this group too.
    pub(super) fn listen(&self, group: u32) -> Result<()> {
        self.socket.add_membership(group).map_err(Error::Socket)
    }

    /// The number by which the kernel knows this socket, in its network namespace.
    pub(super) const fn port(&self) -> u32 {
        self.port
    }

    /// Bytes of answers that the kernel keeps for this socket, its bookkeeping included.
    pub(super) fn receive_buffer(&self) -> Result<usize> {
        getsockopt(&self.socket, sockopt::RcvBuf).map_err(broken)
    }

    pub(super) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send(datagram, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    /// Hands every datagram that is there to `each`, up to as many as one system call takes. With
    /// `wait`, waits for the first.
    pub(super) fn receive(
        &mut self,
        Headers(headers): &mut Headers,
        wait: bool,
        mut each: impl FnMut(&[u8]),
    ) -> Received {
        // With MSG_TRUNC the length is the datagram's true one.
        let mode = if wait { MsgFlags::MSG_WAITFORONE } else { MsgFlags::MSG_DONTWAIT };
        let flags = MsgFlags::MSG_TRUNC | mode;
        loop {
            let mut slots = self.room.chunks_exact_mut(SLOT);
            let mut slots: [[IoSliceMut<'_>; 1]; SLOTS] =
                std::array::from_fn(|_| [IoSliceMut::new(slots.next().unwrap_or_default())]);
            let datagrams =
                match recvmmsg(self.socket.as_raw_fd(), headers, slots.iter_mut(), flags, None) {
                    Ok(datagrams) => datagrams,
                    Err(Errno::EINTR) => continue,
                    Err(Errno::ENOBUFS) => return Received::Overrun,
                    Err(_) => return Received::Nothing,
                };
            let mut received = Received::Some;
            for datagram in datagrams {
                // Only the kernel is believed.
                if datagram.address.is_none_or(|from| from.pid() != 0) {
                    continue;
                }
                if datagram.bytes > SLOT {
                    received = Received::Overrun;
                    continue;
                }
                datagram.iovs().for_each(&mut each);
            }
            return received;
        }
    }
}

impl AsFd for TcSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

pub(super) fn broken(errno: Errno) -> Error {
    Error::Socket(errno.into())
}
