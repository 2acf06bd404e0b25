//! Stateless mappings from one IPv4 network to another (`nat`).
//!
//! Source: net/sched/act_nat.c.

use std::fmt;
use std::net::Ipv4Addr;

use crate::ident::Direction;

/// A mapping from one IPv4 network to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nat {
    pub(crate) direction: Direction,
    pub(crate) old: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) new: Ipv4Addr,
}

impl Nat {
    /// Destination addresses (`ingress`) or source addresses (`egress`) whose first `prefix` bits
    /// are those of `old` get those of `new`; `None` where the prefix has more than 32 bits.
    pub const fn new(
        direction: Direction,
        old: Ipv4Addr,
        prefix: u8,
        new: Ipv4Addr,
    ) -> Option<Nat> {
        if prefix > 32 { None } else { Some(Nat { direction, old, prefix, new }) }
    }

    /// The network's mask.
    pub(crate) const fn mask(&self) -> u32 {
        match u32::MAX.checked_shl(32 - self.prefix as u32) {
            Some(mask) => mask,
            None => 0,
        }
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{} {}", self.direction, self.old, self.prefix, self.new)
    }
}
