//! A small blocking QMP client for tests: one command at a time, events kept.
//!
//! Format: QEMU, docs/interop/qmp-spec.rst. Not the daemon's client, so that a test does not check
//! the daemon against itself.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{At, Error, Result};

/// For an answer to a command.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A connection to one QMP monitor.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    partial: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects, waiting for the socket to appear, and negotiates.
    ///
    /// # Errors
    /// No monitor answers within `limit`.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error).at(format!("connecting to {}", path.display())),
            }
        };
        let mut qmp =
            Self { reader: BufReader::new(stream), partial: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.read(deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Format { what: "QMP greeting".into(), text: greeting.to_string() });
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and gives its `return`.
    ///
    /// # Errors
    /// QMP answers with an error, or not within a minute.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.reader
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
            .at(format!("sending QMP {command}"))?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let mut message = self.read(deadline)?;
            if let Some(error) = message.get("error") {
                let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
                return Err(Error::Qmp {
                    command: command.into(),
                    class: text("class"),
                    description: text("desc"),
                });
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            self.events.push_back(message);
        }
    }

    /// The next event of this name, among those already received too. Others stay for later calls.
    ///
    /// # Errors
    /// None comes within `limit`.
    pub fn event(&mut self, name: &str, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let found = self.events.iter().position(|event| event["event"] == name);
            if let Some(event) = found.and_then(|index| self.events.remove(index)) {
                return Ok(event);
            }
            let event = self.read(deadline)?;
            self.events.push_back(event);
        }
    }

    /// All events received so far; they are taken out.
    pub fn events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    fn read(&mut self, deadline: Instant) -> Result<Value> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let read = match left {
                Duration::ZERO => Err(ErrorKind::TimedOut.into()),
                left => self
                    .reader
                    .get_ref()
                    .set_read_timeout(Some(left))
                    .and_then(|()| self.reader.read_until(b'\n', &mut self.partial)),
            };
            match read {
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    return serde_json::from_slice(&line).map_err(|_| Error::Format {
                        what: "QMP message".into(),
                        text: String::from_utf8_lossy(&line).into_owned(),
                    });
                }
                Ok(_) => {
                    let closed = std::io::Error::from(ErrorKind::UnexpectedEof);
                    return Err(closed).at("reading QMP");
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).at("reading QMP"),
            }
        }
    }
}
