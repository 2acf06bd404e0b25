//! The protocol on a guest's serial line; the other end is `recipe/guest-init.sh`.
//!
//! To the guest: `ID LIMIT WORD\n`, where the word is the shell commands quoted as `$'…'` and a
//! limit of 0 is none. From it: `\x1elab-begin ID\n`, the output, `\x1elab-end ID STATUS\n`. Ids are
//! never used twice, so what an earlier command left on the line is skipped.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time that a guest in an emulation inside another may take beyond a command's own limit.
const GRACE: Duration = Duration::from_secs(60);

/// What a command in a guest did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 137 when it was killed at its limit.
    pub status: i32,
    /// Standard output and standard error, as they came.
    pub text: String,
}

#[derive(Debug)]
pub(crate) struct Console {
    line: UnixStream,
    received: Vec<u8>,
    session: u32,
    commands: u32,
}

impl Console {
    pub(crate) fn connect(path: &Path) -> std::io::Result<Self> {
        let line = UnixStream::connect(path)?;
        Ok(Self { line, received: Vec::new(), session: std::process::id(), commands: 0 })
    }

    /// Waits until a guest that boots reads commands.
    pub(crate) fn ready(&mut self, limit: Duration) -> Result<(), String> {
        self.until("\u{1e}lab-ready\n", Instant::now() + limit).map(|_| ())
    }

    /// Executes a command that has as long as the line waits for it.
    pub(crate) fn exec(&mut self, command: &str, wait: Duration) -> Result<Output, String> {
        self.request(command, 0, wait)
    }

    /// Executes a command that is killed in the guest after `limit`.
    pub(crate) fn exec_within(&mut self, command: &str, limit: Duration) -> Result<Output, String> {
        self.request(command, limit.as_secs().max(1), limit + GRACE)
    }

    fn request(&mut self, command: &str, limit: u64, wait: Duration) -> Result<Output, String> {
        self.commands += 1;
        let id = format!("{}-{}", self.session, self.commands);
        let request = format!("{id} {limit} {}\n", word(command));
        self.line.write_all(request.as_bytes()).map_err(|error| format!("its console: {error}"))?;
        let deadline = Instant::now() + wait;
        self.until(&format!("\u{1e}lab-begin {id}\n"), deadline)
            .and_then(|_| {
                let text = self.until(&format!("\u{1e}lab-end {id} "), deadline)?;
                let status = self.until("\n", deadline)?;
                let status = String::from_utf8_lossy(&status).trim().parse();
                let status = status.map_err(|error| format!("its exit status: {error}"))?;
                Ok(Output { status, text: String::from_utf8_lossy(&text).into_owned() })
            })
            .map_err(|reason| format!("`{command}`: {reason}"))
    }

    /// Takes everything up to and with `mark` off the line, and gives what stood before it.
    fn until(&mut self, mark: &str, deadline: Instant) -> Result<Vec<u8>, String> {
        let mark = mark.as_bytes();
        let mut searched = 0;
        loop {
            let found = self.received[searched..].windows(mark.len()).position(|w| w == mark);
            if let Some(at) = found {
                let rest = self.received.split_off(searched + at + mark.len());
                let mut before = std::mem::replace(&mut self.received, rest);
                before.truncate(searched + at);
                return Ok(before);
            }
            searched = (self.received.len() + 1).saturating_sub(mark.len());
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = String::from_utf8_lossy(&self.received);
                return Err(format!("no answer in time; on the line: {text:?}"));
            }
            let mut chunk = [0; 4096];
            let read =
                self.line.set_read_timeout(Some(left)).and_then(|()| self.line.read(&mut chunk));
            match read {
                Ok(0) => return Err("QEMU closed its console".into()),
                Ok(length) => self.received.extend_from_slice(&chunk[..length]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(format!("its console: {error}")),
            }
        }
    }
}

/// Shell commands as one word on one line.
fn word(command: &str) -> String {
    let mut word = String::from("$'");
    for character in command.chars() {
        match character {
            '\\' => word.push_str("\\\\"),
            '\'' => word.push_str("\\'"),
            '\n' => word.push_str("\\n"),
            '\r' => word.push_str("\\r"),
            other => word.push(other),
        }
    }
    word.push('\'');
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    /// A console whose other end is played by `guest`, which gets each line and writes an answer.
    fn console(guest: impl Fn(&str, &mut UnixStream) + Send + 'static) -> Console {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let lines = BufReader::new(theirs.try_clone().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                guest(&line, &mut theirs);
            }
        });
        Console { line: ours, received: Vec::new(), session: 7, commands: 0 }
    }

    #[test]
    fn a_shell_reads_the_same_commands_back_from_one_word() {
        let commands = "echo 'it'\\''s' \"$HOME\"\n\tcase \\\\x in *) ;; esac # \u{e9}\r\n";
        let word = word(commands);
        assert!(!word.contains('\n'), "{word}");
        let script = format!("printf %s {word}");
        let shell = std::process::Command::new("bash").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8(shell.stdout).unwrap(), commands);
    }

    #[test]
    fn output_and_status_arrive_whatever_the_output_looks_like() {
        let mut console = console(|line, guest| {
            let id = line.split(' ').next().unwrap();
            let begin = format!("kernel noise\u{1e}lab-begin {id}\n");
            let output = format!("lab-end {id} 9\n\u{1e}lab-end other 8\nno newline");
            let end = format!("\u{1e}lab-end {id} 3\n");
            for byte in [begin, output, end].concat().bytes() {
                guest.write_all(&[byte]).unwrap();
            }
        });
        for command in 1..=2 {
            let output = console.exec("x", Duration::from_secs(5)).unwrap();
            assert_eq!(output.status, 3);
            assert_eq!(
                output.text,
                format!("lab-end 7-{command} 9\n\u{1e}lab-end other 8\nno newline")
            );
        }
    }

    #[test]
    fn the_rest_of_an_earlier_command_is_skipped() {
        let mut console = console(|line, guest| {
            let id = line.split(' ').next().unwrap();
            let late = "late output\u{1e}lab-end 7-0 0\n";
            write!(guest, "{late}\u{1e}lab-begin {id}\nok\u{1e}lab-end {id} 0\n").unwrap();
        });
        let output = console.exec("x", Duration::from_secs(5)).unwrap();
        assert_eq!(output, Output { status: 0, text: "ok".into() });
    }

    #[test]
    fn a_line_that_closes_is_an_error_at_once() {
        let mut console = console(|_, guest| guest.shutdown(std::net::Shutdown::Both).unwrap());
        let error = console.exec("x", Duration::from_secs(60)).unwrap_err();
        assert!(error.contains("closed"), "{error}");
    }
}
