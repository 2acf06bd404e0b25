//! Brings the kernel to what was planned, and says what came of it.
//!
//! In: jobs from the one owner, at most one an adapter at a time. Out: one outcome for every
//! change. Nothing here decides what should be, and nothing here remembers: what is installed is
//! the owner's to know.

pub mod flows;
pub(crate) mod probe;
pub mod settings;
pub mod vdpa;
