//! Kernel notifications as a doorbell: that something changed, not what.
//!
//! In: a multicast group. Out: one ring, however many notifications there were. Their content is
//! not read: a look at everything follows, so that lost notifications (`ENOBUFS`) cost nothing.

use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;

/// How many notifications are taken off the socket before a look. The rest rings again.
const DRAIN_MOST: usize = 4096;

/// A subscription to a multicast group.
pub(super) struct Doorbell {
    socket: TokioSocket,
}

impl Doorbell {
    /// Subscribes; must run inside a tokio runtime.
    pub(super) fn hang(protocol: isize, group: u32) -> io::Result<Doorbell> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(group)?;
        Ok(Doorbell { socket })
    }

    /// Returns when there is a notification, or when some were lost.
    pub(super) async fn rung(&self) -> io::Result<()> {
        // A datagram that does not fit is cut, which is all right.
        let mut first_bytes = Vec::with_capacity(64);
        match self.socket.recv(&mut first_bytes).await {
            Err(error) if error.raw_os_error() != Some(Errno::ENOBUFS as i32) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes off what is there, since the look that follows answers it. Says whether there was
    /// anything.
    pub(super) fn drain(&self) -> bool {
        let mut first_bytes = Vec::with_capacity(64);
        for taken in 0..DRAIN_MOST {
            first_bytes.clear();
            match self.socket.socket_ref().recv(&mut first_bytes, 0) {
                Err(error) if error.raw_os_error() != Some(Errno::ENOBUFS as i32) => {
                    return taken > 0;
                }
                _ => {}
            }
        }
        true
    }
}
