//! What can go wrong in the lab, with the words of whoever refused kept as data.

use std::io;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure in building, booting or using the lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to what.
        what: String,
        /// The refusal.
        source: io::Error,
    },
    /// A program that the lab called failed.
    #[error("`{program}` failed ({status}){}{tail}", if .tail.is_empty() { "" } else { ":\n" })]
    Command {
        /// The command line.
        program: String,
        /// Exit status or signal.
        status: String,
        /// The end of what it printed.
        tail: String,
    },
    /// Something the lab needs is not there.
    #[error("{what}; {remedy}")]
    Missing {
        /// What is not there.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// The lab VM did not do its job.
    #[error("lab VM: {reason}{}{console}", if .console.is_empty() { "" } else { "\nend of its console:\n" })]
    Vm {
        /// Why.
        reason: String,
        /// The end of the kernel's console.
        console: String,
    },
    /// A guest did not do what was asked.
    #[error("guest {guest}: {reason}")]
    Guest {
        /// Its name.
        guest: String,
        /// Why.
        reason: String,
    },
    /// QEMU answered a QMP command with an error.
    #[error("QMP {command}: {class}: {description}")]
    Qmp {
        /// The command.
        command: String,
        /// QMP's error class.
        class: String,
        /// QMP's own words.
        description: String,
    },
    /// Text from a program that is not what it should be.
    #[error("{what} is not understood: {text}")]
    Format {
        /// What was read.
        what: String,
        /// The text.
        text: String,
    },
}

/// Adds to an [`io::Error`] what was being done.
pub trait At<T> {
    /// Names the action, for instance "reading /proc/mounts".
    ///
    /// # Errors
    /// The same failure as [`Error::Io`].
    fn at(self, what: impl Into<String>) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { what: what.into(), source })
    }
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|errno| Error::Io { what: what.into(), source: errno.into() })
    }
}
