//! Frames that are shown to listeners (`sample`).
//!
//! Source: net/sched/act_sample.c.

use std::fmt;
use std::num::NonZeroU32;

/// How often a frame is shown, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample {
    pub(crate) rate: NonZeroU32,
    pub(crate) group: u32,
    pub(crate) truncated: Option<NonZeroU32>,
}

impl Sample {
    /// One frame of so many, to the listeners of this psample group.
    pub const fn new(rate: NonZeroU32, group: u32) -> Sample {
        Sample { rate, group, truncated: None }
    }

    /// Of each frame only so many bytes.
    #[must_use]
    pub const fn truncated(self, bytes: NonZeroU32) -> Sample {
        Sample { truncated: Some(bytes), ..self }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rate {} group {}", self.rate, self.group)?;
        match self.truncated {
            Some(bytes) => write!(f, " trunc {bytes}"),
            None => Ok(()),
        }
    }
}
