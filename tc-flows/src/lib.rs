//! Typed tc-flower rules: what a rule is, how a kernel is told, what it holds, what has to change,
//! and what a packet would meet.
//!
//! In come rules as values and dumps as bytes; out go netlink messages, differences and the fate
//! of frames. This crate knows tc and netlink. It does not know guests, networks, ports or who
//! asks, and keeps no state between calls but a socket.
//!
//! | room | what it holds |
//! |---|---|
//! | `ident` | addresses, tags, chains, prios, handles, hooks |
//! | `key` | what a rule matches |
//! | `action` | what a rule does |
//! | `rule` | rules, identities, cookies |
//! | `set` | rules that can stand together |
//! | `diff` | from installed to wanted |
//! | `kernel` | the trait that the real and the fake kernel share |
//! | `stats` | how often rules were hit |
//! | `wire` | rules as netlink bytes, and back |
//! | `encoded` | those bytes by themselves |
//! | `netlink` | the real kernel |
//! | `watch` | what changes in it |
//! | `concurrent` | a kernel for asynchronous code (feature `tokio`) |
//! | `fake` | a kernel in memory, for tests |
//! | `conformance` | what the real and the fake kernel both do (feature `conformance`) |
//! | `frame`, `walk` | frames, and what they meet in a set of rules, in hardware and software |
//! | `profile` | what drivers refuse, and how their hardware executes |
//!
//! ```
//! use tc_flows::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hook = Hook::ingress(Ifindex::new(7).ok_or("no interface")?);
//! let guest = Mac([2, 0, 0, 0, 0, 1]);
//! let admission = Rule::new(
//!     hook,
//!     ChainId::ZERO,
//!     Prio::new(10).ok_or("no prio")?,
//!     Match::any().src(guest),
//!     [Action::Redirect(Ifindex::new(8).ok_or("no interface")?)],
//! )?;
//! let mut wanted = RuleSet::new();
//! wanted.insert(admission)?;
//!
//! // `NetlinkKernel::open(owner)` is the real one.
//! let mut kernel = FakeKernel::new(Owner(*b"demo"));
//! kernel.ensure_hook(hook)?;
//! let mut installed = Installed::new();
//! installed.adopt(&kernel.dump(hook)?);
//! let ops = diff(&installed, &wanted).ops;
//! for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Told)) {
//!     installed.record(op, &outcome);
//! }
//! assert!(diff(&installed, &wanted).ops.is_empty());
//!
//! let frame = Frame::opaque(Mac([0xff; 6]), guest, EtherType::ARP);
//! assert_eq!(walk(&wanted, hook, &frame).deliveries.len(), 1);
//! # Ok(())
//! # }
//! ```

mod action;
#[cfg(test)]
mod arbitrary;
#[cfg(test)]
mod arbitrary_action;
#[cfg(feature = "tokio")]
mod concurrent;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod diff;
mod encoded;
mod fake;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod ident;
mod kernel;
mod key;
mod netlink;
mod profile;
mod rule;
mod set;
mod stats;
mod walk;
mod watch;
mod wire;

pub use action::{
    Action, Checksums, Control, Ct, CtCommit, CtHelper, CtNat, Erspan, ErspanHwid, GeneveTlv,
    GeneveTlvs, Mpls, MplsModify, MplsPush, Munge, Nat, NatAddresses, NatEnd, PacketType, Pedit,
    PeditField, Police, PoliceIndex, Sample, SkbEdit, SkbField, TunnelData, TunnelEnds, TunnelKey,
    VxlanGbp,
};
#[cfg(feature = "tokio")]
pub use concurrent::AsyncKernel;
pub use diff::{Gap, GapReason, Installed, InstalledRule, Op, Plan, diff, diff_hooks};
pub use encoded::{Decoded, decode, encode, outcomes};
pub use fake::{DumpFault, FRAME_BYTES, FakeKernel};
pub use frame::{Body, Fragment, Frame, Layer4, MplsStack, Tag};
pub use ident::{
    BlockId, ChainId, Direction, EtherType, Handle, Hook, Ifindex, Mac, Prio, VlanId, VlanTpid,
};
pub use kernel::{
    Dump, Error, Foreign, HwState, Kernel, Mode, Outcome, OwnRule, Result, RuleLocation, TerseDump,
    TerseRule,
};
pub use key::{
    ArpMatch, CfmLevel, CfmMatch, CtFlags, CtState, GeneveOption, IpPrefix, Ipv4Match, Ipv4Prefix,
    Ipv6Match, Ipv6Prefix, LinkName, Match, MplsDepth, MplsEntry, MplsLabel, MplsMatch, MplsTc,
    Payload, PortRange, Ports, PppoeMatch, Spi, TagMatch, Tcp, Tunnel, TunnelFlags, TunnelOptions,
    VlanPrio,
};
pub use netlink::{Chain, HookQdisc, NetlinkKernel, OwnChanges, OwnQdisc, Template, Watch};
pub use profile::{Eswitch, Ice, Mlx5, Profile};
pub use rule::{
    ACTIONS_MAX, ActionExtra, Cookie, HwStats, Offload, Owner, Rule, RuleError, RuleId, UserCookie,
};
pub use set::{Clash, NotedRules, RuleSet, Rules};
pub use stats::{Counters, Stats, Times};
pub use walk::{
    GOTOS_MAX, Handover, Step, TwoStageWalk, Unmodelled, Walk, Why, walk, walk_two_stage,
};
pub use watch::{Change, Notice, Place, SeenAction, SeenFilter, Sender};
