//! Which process is at the other end of a socket, and whether it is still there.
//!
//! In: a connected socket's peer (SO_PEERPIDFD, SO_PEERCRED) and `/proc/PID/stat`. Out: a
//! [`Process`]. A pid alone names nobody for long: a pidfd does, and where the kernel has none, the
//! pid together with the time at which the process started.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt::PeerPidfd},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
    time,
};

/// A process, told from a later one of the same pid.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pid: u32,
    /// In clock ticks since boot.
    started: u64,
    /// Becomes readable when the process ends; absent where the kernel has none.
    pidfd: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }
}

impl Eq for Process {}

/// What `/proc/PID/stat` says (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: char,
    started: u64,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the command in parentheses, which may itself hold any of them.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, started })
}

fn stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::other("/proc/PID/stat has an unknown form"))
}

impl Process {
    /// The process at the other end of a connected socket: the one that made it listen. None where
    /// it has ended, and where it lives in a pid namespace that this one does not see.
    pub(crate) fn peer_of(stream: &UnixStream) -> Option<Process> {
        let pid = stream.peer_cred().ok()?.pid()?;
        let pid = u32::try_from(pid).ok().filter(|pid| *pid != 0)?;
        match getsockopt(stream, PeerPidfd) {
            Ok(pidfd) => Self::of(pid, Some(pidfd)).ok(),
            // Linux before 6.5.
            Err(_) => Self::of_pid(pid).ok(),
        }
    }

    /// The process that has this pid now. Needs a tokio runtime.
    pub(crate) fn of_pid(pid: u32) -> io::Result<Process> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // Linux before 5.3 has none.
        let pidfd = number.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Self::of(pid, pidfd)
    }

    fn of(pid: u32, pidfd: Option<OwnedFd>) -> io::Result<Process> {
        #[expect(
            deprecated,
            reason = "an OwnedFd stays open and the same, which is what the unsafe form asks for"
        )]
        let pidfd = pidfd
            .map(|pidfd| AsyncFd::with_interest(pidfd, Interest::READABLE))
            .transpose()?
            .map(Arc::new);
        let process = Process { pid, started: stat(pid)?.started, pidfd };
        // While it lives no other has its pid, so that what was read is of this one.
        if process.is_alive() { Ok(process) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it is there, and more than a zombie. Where that cannot be read it is: taking a
    /// running QEMU for dead would cut its guest off.
    pub(crate) fn is_alive(&self) -> bool {
        if let Some(pidfd) = &self.pidfd {
            let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            return poll(&mut ended, PollTimeout::ZERO).is_ok_and(|ready| ready == 0);
        }
        match stat(self.pid) {
            Ok(now) => now.started == self.started && !matches!(now.state, 'Z' | 'X' | 'x'),
            Err(error) => {
                let gone = error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(nix::libc::ESRCH);
                !gone
            }
        }
    }

    /// Returns when it has ended. Without a pidfd it is looked at every `vigil`.
    pub(crate) async fn ended(&self, vigil: Duration) {
        if let Some(pidfd) = &self.pidfd
            && pidfd.readable().await.is_ok()
        {
            return;
        }
        while self.is_alive() {
            time::sleep(vigil).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn cat() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn a_command_name_with_parentheses_and_spaces_does_not_mislead() {
        let text = "42 (a) b (c) d) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', started: 777 }));
        assert_eq!(parse_stat("42 (x"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[tokio::test]
    async fn a_process_is_alive_until_it_ends_even_before_it_is_reaped() {
        for with_pidfd in [true, false] {
            let mut child = cat();
            let mut process = Process::of_pid(child.id()).unwrap();
            if with_pidfd {
                assert!(process.pidfd.is_some(), "a kernel that can run these tests has pidfds");
            } else {
                process.pidfd = None;
            }
            assert!(process.is_alive());
            child.kill().unwrap();
            let ended = process.ended(Duration::from_millis(5));
            time::timeout(Duration::from_secs(10), ended).await.expect("the end is told");
            assert!(!process.is_alive(), "not reaped yet, and gone");
            child.wait().unwrap();
            assert!(!process.is_alive());
            assert!(
                Process::of_pid(child.id()).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
            );
        }
    }

    #[tokio::test]
    async fn another_process_of_the_same_pid_is_not_the_one_that_was() {
        let me = Process::of_pid(std::process::id()).unwrap();
        assert!(me.is_alive());
        let other = Process { started: me.started + 1, pidfd: None, ..me.clone() };
        assert!(!other.is_alive());
        assert!(me != other && me == Process::of_pid(std::process::id()).unwrap());
    }

    #[tokio::test]
    async fn the_peer_of_a_socket_is_the_process_that_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).await.unwrap();
        let peer = Process::peer_of(&stream).unwrap();
        assert_eq!(peer.pid(), std::process::id());
        assert!(peer.is_alive());
    }
}
