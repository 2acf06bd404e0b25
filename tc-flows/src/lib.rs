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
//! | `rule` | actions, rules, identities, cookies |
//! | `set` | rules that can stand together |
//! | `diff` | from installed to wanted |
//! | `kernel` | the trait that the real and the fake kernel share |

#[cfg(test)]
mod arbitrary;
mod diff;
mod fake;
mod frame;
mod ident;
mod kernel;
mod key;
mod netlink;
mod rule;
mod set;
mod walk;
mod wire;

pub use diff::{Installed, InstalledRule, Op, diff};
pub use fake::FakeKernel;
pub use frame::{Body, Frame, Layer4};
pub use ident::{
    ChainId, Direction, EtherType, Handle, Hook, Ifindex, Mac, Prio, VlanId, VlanTpid,
};
pub use kernel::{Dump, Error, Foreign, HwState, Kernel, Mode, Outcome, Result, RuleLocation};
pub use key::{ArpMatch, Ipv4Match, Ipv6Match, Match, Payload, Ports};
pub use netlink::NetlinkKernel;
pub use rule::{ACTIONS_MAX, Action, Cookie, Offload, Owner, Rule, RuleError, RuleId};
pub use set::{Clash, RuleSet};
pub use walk::{GOTOS_MAX, Step, Walk, walk};
