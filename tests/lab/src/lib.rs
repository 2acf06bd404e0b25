//! The lab: a virtual machine whose kernel has what eswitchd programs (netdevsim, flower, devlink,
//! vDPA, an igb PF, a virtio PF behind an IOMMU), and real QEMU guests with emulated PFs inside it.
//!
//! In: a Debian mirror, the workspace's binaries. Out: a cached lab, exit statuses and test totals.
//! Two kinds of callers: the `cargo lab` tool builds and boots the lab on the machine ([`setup`],
//! [`vm`], [`cargo`], [`native`]); tests, demo and benchmarks *inside* it use [`guest`] and [`net`].
//! Only [`daemon`], [`demo`], [`screens`] and [`bench`] know anything about eswitchd, and nothing touches the machine's own network.

pub mod bench;
pub mod browser;
pub mod cache;
pub mod cargo;
mod cpio;
pub mod daemon;
pub mod dashboards;
pub mod demo;
mod error;
pub mod guest;
pub mod native;
pub mod net;
pub mod node;
pub mod pictures;
pub mod python;
pub mod qmp_double;
pub mod recording;
pub mod screens;
pub mod setup;
pub mod totals;
pub mod vm;

pub use error::{At, Error, Result};
