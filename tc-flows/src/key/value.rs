//! The checked values that keys are made of.
//!
//! In come raw numbers, addresses and names; out go newtypes whose existence proves that flower
//! takes the value. No keys, no rules here.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::ident::{VlanId, VlanTpid};

macro_rules! small_number {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $range:expr, $bound:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            #[doc = concat!("The value, or `None` outside ", $bound, ".")]
            pub fn new(number: $inner) -> Option<$name> {
                $range.contains(&number).then_some($name(number))
            }

            /// The number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

small_number!(
    /// The priority code point of a VLAN tag (IEEE 802.1Q, 3 bits).
    VlanPrio, u8, 0..=7, "0..=7"
);
small_number!(
    /// A label of MPLS (RFC 3032, 20 bits).
    MplsLabel, u32, 0..=0xf_ffff, "0..=1048575"
);
small_number!(
    /// The traffic class of a label stack entry (RFC 5462, 3 bits).
    MplsTc, u8, 0..=7, "0..=7"
);
small_number!(
    /// The place of an entry in a label stack: 1 is the outer one, 7 the innermost that the kernel
    /// looks at (`FLOW_DIS_MPLS_MAX`, include/net/flow_dissector.h).
    MplsDepth, u8, 1..=7, "1..=7"
);
small_number!(
    /// The maintenance domain level of a connectivity fault message (IEEE 802.1ag, 3 bits).
    CfmLevel, u8, 0..=7, "0..=7"
);

/// A VLAN tag as a key: its kind, and identifier and priority where they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagMatch {
    pub(super) tpid: VlanTpid,
    pub(super) vid: Option<VlanId>,
    pub(super) prio: Option<VlanPrio>,
}

impl TagMatch {
    /// Every tag of this kind.
    pub const fn any(tpid: VlanTpid) -> TagMatch {
        TagMatch { tpid, vid: None, prio: None }
    }

    /// Of those, the ones with this identifier.
    #[must_use]
    pub const fn vid(self, vid: VlanId) -> TagMatch {
        TagMatch { vid: Some(vid), ..self }
    }

    /// Of those, the ones with this priority.
    #[must_use]
    pub const fn prio(self, prio: VlanPrio) -> TagMatch {
        TagMatch { prio: Some(prio), ..self }
    }
}

macro_rules! prefix {
    ($(#[$doc:meta])* $name:ident, $addr:ty, $bits:ty, $exact:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            addr: $addr,
            len: u8,
        }

        impl $name {
            #[doc = concat!("The first `len` bits of `addr`, or `None` above ", $exact, ".")]
            pub fn new(addr: $addr, len: u8) -> Option<$name> {
                let prefix = $name { addr, len };
                (u32::from(len) <= <$bits>::BITS).then(|| $name {
                    addr: <$addr>::from_bits(addr.to_bits() & prefix.mask().to_bits()),
                    len,
                })
            }

            /// The first address.
            pub const fn addr(self) -> $addr {
                self.addr
            }

            /// How many bits count.
            pub const fn len(self) -> u8 {
                self.len
            }

            /// Whether no bit counts.
            pub const fn is_empty(self) -> bool {
                self.len == 0
            }

            /// The bits that count.
            pub(super) fn mask(self) -> $addr {
                let others = <$bits>::BITS.saturating_sub(self.len.into());
                <$addr>::from_bits(<$bits>::MAX.checked_shl(others).unwrap_or(0))
            }
        }

        impl From<$addr> for $name {
            fn from(addr: $addr) -> $name {
                $name { addr, len: $exact }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.addr, self.len)
            }
        }
    };
}

// Masks with gaps, which flower takes, have no words in tc and are not offered.
prefix!(
    /// IPv4 addresses that agree in their first bits.
    Ipv4Prefix, Ipv4Addr, u32, 32
);
prefix!(
    /// IPv6 addresses that agree in their first bits.
    Ipv6Prefix, Ipv6Addr, u128, 128
);

/// Addresses of one family that agree in their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpPrefix {
    /// IPv4.
    V4(Ipv4Prefix),
    /// IPv6.
    V6(Ipv6Prefix),
}

impl From<Ipv4Prefix> for IpPrefix {
    fn from(prefix: Ipv4Prefix) -> IpPrefix {
        IpPrefix::V4(prefix)
    }
}

impl From<Ipv6Prefix> for IpPrefix {
    fn from(prefix: Ipv6Prefix) -> IpPrefix {
        IpPrefix::V6(prefix)
    }
}

impl From<Ipv4Addr> for IpPrefix {
    fn from(addr: Ipv4Addr) -> IpPrefix {
        IpPrefix::V4(addr.into())
    }
}

impl From<Ipv6Addr> for IpPrefix {
    fn from(addr: Ipv6Addr) -> IpPrefix {
        IpPrefix::V6(addr.into())
    }
}

/// Ports from one to a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    min: u16,
    max: u16,
}

impl PortRange {
    /// The ports `min` to `max`, both included, or `None` where `max` is not the higher one:
    /// flower refuses a range of one port (`fl_set_key_port_range`).
    pub const fn new(min: u16, max: u16) -> Option<PortRange> {
        if min < max { Some(PortRange { min, max }) } else { None }
    }

    /// The lowest port.
    pub const fn min(self) -> u16 {
        self.min
    }

    /// The highest port.
    pub const fn max(self) -> u16 {
        self.max
    }

    pub(super) fn bytes(self) -> [u8; 4] {
        (u32::from(self.min) << 16 | u32::from(self.max)).to_be_bytes()
    }
}

/// The security parameter index of an ESP or AH header, with the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi {
    value: u32,
    mask: u32,
}

impl Spi {
    /// This index only, or `None` for 0, which no packet carries and which the kernel does not
    /// show (`fl_dump_key`).
    pub const fn new(spi: u32) -> Option<Spi> {
        Spi::masked(spi, u32::MAX)
    }

    /// Indexes that equal `spi` in the bits of `mask`, or `None` where those bits are all 0: such a
    /// key the kernel would not show. (`tc` shows an index without its mask, and reads none.)
    pub const fn masked(spi: u32, mask: u32) -> Option<Spi> {
        if spi & mask == 0 { None } else { Some(Spi { value: spi & mask, mask }) }
    }

    pub(super) const fn value(self) -> u32 {
        self.value
    }

    pub(super) const fn mask(self) -> u32 {
        self.mask
    }
}

/// The name of a network interface: 1 to 15 bytes that `dev_valid_name` (net/core/dev.c) takes,
/// ASCII only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName([u8; 16]);

impl LinkName {
    /// The name, or `None` where no interface can have it.
    pub fn new(name: &str) -> Option<LinkName> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        let valid = !matches!(name, "" | "." | "..") && name.len() < 16;
        if !valid || !name.bytes().all(allowed) {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(LinkName(bytes))
    }

    /// The name in bytes filled up with zeros.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<LinkName> {
        let name = bytes.split(|byte| *byte == 0).next()?;
        LinkName::new(std::str::from_utf8(name).ok()?)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }

    pub(crate) const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What connection tracking knows of a packet (`TCA_FLOWER_KEY_CT_FLAGS_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtFlags(u16);

impl CtFlags {
    /// No flag.
    pub const NONE: CtFlags = CtFlags(0);
    /// The beginning of a connection.
    pub const NEW: CtFlags = CtFlags(1);
    /// Part of a connection that exists.
    pub const ESTABLISHED: CtFlags = CtFlags(1 << 1);
    /// Related to a connection that exists.
    pub const RELATED: CtFlags = CtFlags(1 << 2);
    /// It went through connection tracking.
    pub const TRACKED: CtFlags = CtFlags(1 << 3);
    /// It belongs to no connection that could be.
    pub const INVALID: CtFlags = CtFlags(1 << 4);
    /// It goes in the direction of the answers.
    pub const REPLY: CtFlags = CtFlags(1 << 5);

    /// Those of either.
    #[must_use]
    pub const fn and(self, other: CtFlags) -> CtFlags {
        CtFlags(self.0 | other.0)
    }

    /// The bits, as the kernel numbers them.
    pub const fn bits(self) -> u16 {
        self.0
    }

    const fn has(self, other: CtFlags) -> bool {
        self.0 & other.0 != 0
    }
}

/// Flags of connection tracking that a packet must have and must not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtState {
    set: CtFlags,
    clear: CtFlags,
}

impl CtState {
    /// Packets with all of `set` and none of `clear`.
    ///
    /// `None` where neither names a flag, both name one, or the kernel refuses the combination
    /// (`fl_validate_ct_state`): any flag without `TRACKED`; `NEW` with `ESTABLISHED` or `REPLY`;
    /// `INVALID` with any but `TRACKED`.
    pub const fn new(set: CtFlags, clear: CtFlags) -> Option<CtState> {
        let others = CtFlags(!(CtFlags::TRACKED.0 | CtFlags::INVALID.0));
        let refused = set.0 | clear.0 == 0
            || set.has(clear)
            || set.0 != 0 && !set.has(CtFlags::TRACKED)
            || set.has(CtFlags::NEW) && set.has(CtFlags::ESTABLISHED.and(CtFlags::REPLY))
            || set.has(CtFlags::INVALID) && set.has(others);
        if refused { None } else { Some(CtState { set, clear }) }
    }

    pub(super) const fn value(self) -> u16 {
        self.set.0
    }

    pub(super) const fn mask(self) -> u16 {
        self.set.0 | self.clear.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_numbers_end_where_their_bits_do() {
        assert_eq!(VlanPrio::new(7).map(VlanPrio::get), Some(7));
        assert_eq!(VlanPrio::new(8), None);
        assert_eq!(MplsLabel::new(1 << 20), None);
        assert_eq!(MplsTc::new(8), None);
        assert_eq!((MplsDepth::new(0), MplsDepth::new(8)), (None, None));
        assert_eq!(CfmLevel::new(8), None);
    }

    #[test]
    fn a_prefix_has_no_more_bits_than_its_family_and_none_behind_its_length() {
        let addr = Ipv4Addr::new(192, 0, 2, 255);
        assert_eq!(Ipv4Prefix::new(addr, 33), None);
        let prefix = Ipv4Prefix::new(addr, 23).unwrap();
        assert_eq!(prefix.to_string(), "192.0.2.0/23");
        assert_eq!(prefix.mask(), Ipv4Addr::new(255, 255, 254, 0));
        assert_eq!(Ipv4Prefix::new(addr, 0).unwrap().mask(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(Ipv4Prefix::new(addr, 32), Some(addr.into()));
        assert_eq!(Ipv6Prefix::new(Ipv6Addr::LOCALHOST, 129), None);
        assert_eq!(Ipv6Prefix::new(Ipv6Addr::LOCALHOST, 127).unwrap().to_string(), "::/127");
    }

    #[test]
    fn a_range_has_at_least_two_ports() {
        assert_eq!(PortRange::new(5, 5), None);
        assert_eq!(PortRange::new(6, 5), None);
        assert!(PortRange::new(0, u16::MAX).is_some());
    }

    #[test]
    fn an_index_that_the_kernel_would_not_show_is_none() {
        assert_eq!(Spi::new(0), None);
        assert_eq!(Spi::masked(0xff00, 0x00ff), None);
        assert!(Spi::masked(0xff00, 0x0f00).is_some());
    }

    #[test]
    fn a_name_is_one_that_an_interface_can_have() {
        for name in ["eth0", "a", "rep-15-bytes-12", "pf0vf1_r"] {
            assert_eq!(LinkName::new(name).map(|name| name.to_string()), Some(name.to_owned()));
        }
        for name in ["", ".", "..", "16-bytes-is-more", "a/b", "a b", "a:b", "a\0b", "\u{e4}"] {
            assert_eq!(LinkName::new(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_connection_state_that_cannot_be_is_none() {
        let (trk, new, est) = (CtFlags::TRACKED, CtFlags::NEW, CtFlags::ESTABLISHED);
        let (inv, rpl, none) = (CtFlags::INVALID, CtFlags::REPLY, CtFlags::NONE);
        for (set, clear) in [(none, trk), (trk, none), (trk.and(est).and(rpl), new), (none, est)] {
            assert!(CtState::new(set, clear).is_some(), "{set:?} {clear:?}");
        }
        for (set, clear) in [
            (none, none),
            (trk, trk),
            (new, none),
            (trk.and(new).and(est), none),
            (trk.and(new).and(rpl), none),
            (trk.and(inv).and(est), none),
        ] {
            assert_eq!(CtState::new(set, clear), None, "{set:?} {clear:?}");
        }
    }
}
