//! Which process is at the other end of a socket, and whether it is still there.
//!
//! In: a connected socket's peer credentials and `/proc/PID/stat`. Out: a [`Process`]. A pid alone
//! names nobody for long: together with the time at which the process started it does.

use std::{fs, io};

/// A process, told from a later one of the same pid by the time it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

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
    /// The process that has this pid now.
    pub(crate) fn of_pid(pid: u32) -> io::Result<Process> {
        Ok(Process { pid, started: stat(pid)?.started })
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it is there, and more than a zombie. Where that cannot be read it is: taking a
    /// running QEMU for dead would cut its guest off.
    pub(crate) fn is_alive(&self) -> bool {
        match stat(self.pid) {
            Ok(now) => now.started == self.started && !matches!(now.state, 'Z' | 'X' | 'x'),
            Err(error) => {
                let gone = error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(nix::libc::ESRCH);
                !gone
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_command_name_with_parentheses_and_spaces_does_not_mislead() {
        let text = "42 (a) b (c) d) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', started: 777 }));
        assert_eq!(parse_stat("42 (x"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_process_is_alive_until_it_ends_even_before_it_is_reaped() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::of_pid(child.id()).unwrap();
        assert!(process.is_alive());
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while process.is_alive() {
            assert!(std::time::Instant::now() < deadline, "a killed process still counts");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn another_process_of_the_same_pid_is_not_the_one_that_was() {
        let me = Process::of_pid(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
    }
}
