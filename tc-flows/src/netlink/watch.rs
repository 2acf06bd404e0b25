//! The kernel's notifications about rules, as a stream of changes.
//!
//! In come the datagrams of the group `RTNLGRP_TC`, out go [`Notice`]s in the kernel's order. What
//! was lost is said. Nothing is asked for here, and nothing remembered.
//!
//! As long as anybody listens, the kernel builds a message for every change of everybody: a watch
//! costs whoever changes rules. Where the watcher itself changes many, it lets the kernel drop
//! those ([`OwnChanges::Dropped`]) before they take room in its queue.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockFilter, SockRef};

use super::socket::{Headers, RECEIVE_BUFFER, Received, TcSocket};
use crate::kernel::{Error, Result};
use crate::rule::Owner;
use crate::watch::{Notice, Sender};
use crate::wire::Messages;

/// `RTNLGRP_TC`, include/uapi/linux/rtnetlink.h.
const RTNLGRP_TC: u32 = 4;

/// What becomes of notifications of the watcher's own changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnChanges {
    /// They come like all others, as [`Sender::Ours`].
    Shown,
    /// The kernel drops them.
    Dropped,
}

/// A listener to every change of rules in the network namespace that the opening thread was in.
pub struct Watch {
    socket: TcSocket,
    owner: Owner,
    ours: Vec<u32>,
}

impl Watch {
    /// Begins to listen. `ours` are the sockets that count as the watcher's own
    /// ([`crate::NetlinkKernel::port`]), at most 250.
    ///
    /// # Errors
    /// Where the system has no netlink socket to give, or does not let it listen.
    pub fn open(owner: Owner, ours: &[u32], own_changes: OwnChanges) -> Result<Watch> {
        let socket = TcSocket::open(RECEIVE_BUFFER)?;
        if own_changes == OwnChanges::Dropped {
            // Before the first notification can come.
            SockRef::from(&socket).attach_filter(&dropping(ours)).map_err(Error::Socket)?;
        }
        socket.listen(RTNLGRP_TC)?;
        Ok(Watch { socket, owner, ours: ours.to_vec() })
    }

    /// What has come, without waiting for more.
    pub fn pending(&mut self) -> Vec<Notice> {
        let mut headers = Headers::new();
        let mut notices = Vec::new();
        let mut lost = false;
        loop {
            let (owner, ours) = (self.owner, &self.ours);
            let received = self.socket.receive(&mut headers, false, |datagram| {
                for message in Messages::new(datagram) {
                    if let Some(change) = message.change(owner) {
                        let by = match message.port {
                            0 => Sender::Kernel,
                            port if ours.contains(&port) => Sender::Ours,
                            port => Sender::Other(port),
                        };
                        notices.push(Notice::Changed { change, by });
                    }
                }
            });
            match received {
                Received::Some => {}
                Received::Overrun => lost = true,
                Received::Nothing => break,
            }
        }
        // What was queued is older than what was lost, and void with it: who dumps now must not be
        // told of it afterwards.
        if lost { vec![Notice::Lost] } else { notices }
    }

    /// What has come; where nothing has, waits for it, at most so long.
    ///
    /// # Errors
    /// Where the system cannot wait.
    pub fn wait(&mut self, limit: Duration) -> Result<Vec<Notice>> {
        let notices = self.pending();
        if !notices.is_empty() {
            return Ok(notices);
        }
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sockets, limit) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(self.pending()),
            Err(errno) => Err(super::socket::broken(errno)),
        }
    }
}

impl AsFd for Watch {
    /// Readable when something has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A classic BPF program that drops messages with one of these `nlmsg_pid`s and takes all others
/// (include/uapi/linux/bpf_common.h).
fn dropping(ports: &[u32]) -> Vec<SockFilter> {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const NLMSG_PID: u32 = 12;
    let ports = &ports[..ports.len().min(250)];
    let mut program = vec![SockFilter::new(LOAD_WORD, 0, 0, NLMSG_PID)];
    for (at, port) in ports.iter().enumerate() {
        // A load takes the bytes in network order, the message has them in the host's.
        let loaded = u32::from_be_bytes(port.to_ne_bytes());
        // Over the comparisons that are left and the return that takes all.
        program.push(SockFilter::new(JUMP_IF_EQUAL, (ports.len() - at) as u8, 0, loaded));
    }
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}
