//! What connection tracking does with a frame (`ct`).
//!
//! Sources: net/sched/act_ct.c, include/uapi/linux/tc_act/tc_ct.h.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use super::fmt_hex;
use crate::rule::Fnv1a;

/// What connection tracking does with a frame.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ct {
    /// The frame's connection is forgotten (not the kernel's entry of it).
    Clear,
    /// The frame's connection is looked up.
    Track {
        /// In this zone.
        zone: u16,
        /// What the connection's address translation demands is done.
        nat: bool,
    },
    /// The frame's connection is looked up, and entered where it is new.
    Commit(CtCommit),
}

/// How a connection is entered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtCommit {
    pub(crate) zone: u16,
    pub(crate) force: bool,
    pub(crate) mark: Option<(u32, NonZeroU32)>,
    pub(crate) label: Option<([u8; 16], [u8; 16])>,
    pub(crate) nat: Option<CtNat>,
    pub(crate) helper: Option<CtHelper>,
}

impl CtCommit {
    /// In this zone, as it is.
    pub const fn new(zone: u16) -> CtCommit {
        CtCommit { zone, force: false, mark: None, label: None, nat: None, helper: None }
    }

    /// A connection that was entered in the other direction is entered anew.
    #[must_use]
    pub fn force(self) -> CtCommit {
        CtCommit { force: true, ..self }
    }

    /// With these bits of its mark set so; none where the mask is zero.
    #[must_use]
    pub fn mark(self, mark: u32, mask: u32) -> CtCommit {
        CtCommit { mark: NonZeroU32::new(mask).map(|mask| (mark, mask)), ..self }
    }

    /// With these bits of its label set so; none where the mask is zero.
    #[must_use]
    pub fn label(self, label: [u8; 16], mask: [u8; 16]) -> CtCommit {
        CtCommit { label: (mask != [0; 16]).then_some((label, mask)), ..self }
    }

    /// With its addresses translated so.
    #[must_use]
    pub fn nat(self, nat: CtNat) -> CtCommit {
        CtCommit { nat: Some(nat), ..self }
    }

    /// Read by this application helper.
    #[must_use]
    pub fn helper(self, helper: CtHelper) -> CtCommit {
        CtCommit { helper: Some(helper), ..self }
    }
}

/// Which end of a connection is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatEnd {
    /// The source.
    Src,
    /// The destination.
    Dst,
}

/// Addresses of one family, from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatAddresses {
    /// IPv4.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6.
    V6(Ipv6Addr, Ipv6Addr),
}

/// How one end of a connection is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtNat {
    pub(crate) end: NatEnd,
    pub(crate) addresses: NatAddresses,
    pub(crate) ports: Option<(u16, u16)>,
}

impl CtNat {
    /// To one of these addresses, or `None` where the first comes after the last.
    pub fn new(end: NatEnd, addresses: NatAddresses) -> Option<CtNat> {
        let ordered = match addresses {
            NatAddresses::V4(first, last) => first <= last,
            NatAddresses::V6(first, last) => first <= last,
        };
        ordered.then_some(CtNat { end, addresses, ports: None })
    }

    /// And to one of these ports, or `None` where the first comes after the last.
    pub const fn ports(self, first: u16, last: u16) -> Option<CtNat> {
        if first > last { None } else { Some(CtNat { ports: Some((first, last)), ..self }) }
    }
}

/// An application helper, by the family and protocol of the connections that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtHelper {
    pub(crate) ipv6: bool,
    pub(crate) udp: bool,
    len: u8,
    name: [u8; 15],
}

impl CtHelper {
    /// The helper, or `None` where its name is not 1 to 15 printable characters without `-`, `,`,
    /// `/` and `%` (`tcf_ct_fill_params` in net/sched/act_ct.c; the signs are `tc`'s and the
    /// module loader's).
    pub fn new(ipv6: bool, udp: bool, name: &str) -> Option<CtHelper> {
        let printable = |byte: u8| byte.is_ascii_graphic() && !b"-,/%".contains(&byte);
        let fits = (1..=15).contains(&name.len()) && name.bytes().all(printable);
        fits.then(|| {
            let mut bytes = [0; 15];
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            CtHelper { ipv6, udp, len: name.len() as u8, name: bytes }
        })
    }

    /// The same helper for IPv6.
    pub(super) const fn over_ipv6(self) -> CtHelper {
        CtHelper { ipv6: true, ..self }
    }

    /// What it is called: `ftp`, …
    pub(crate) fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.len)]
    }
}

impl Ct {
    pub(super) fn digest(&self, into: &mut Fnv1a) {
        let commit = match self {
            Ct::Clear => return into.write(&[1]),
            Ct::Track { zone, nat } => {
                into.write(&[2, u8::from(*nat)]);
                return into.write(&zone.to_be_bytes());
            }
            Ct::Commit(commit) => commit,
        };
        into.write(&[3, u8::from(commit.force)]);
        into.write(&commit.zone.to_be_bytes());
        if let Some((mark, mask)) = commit.mark {
            into.write(&[1]);
            into.write(&mark.to_be_bytes());
            into.write(&mask.get().to_be_bytes());
        }
        if let Some((label, mask)) = commit.label {
            into.write(&[2]);
            into.write(&label);
            into.write(&mask);
        }
        if let Some(nat) = commit.nat {
            into.write(&[3, nat.end as u8]);
            match nat.addresses {
                NatAddresses::V4(first, last) => {
                    into.write(&[4]);
                    into.write(&first.octets());
                    into.write(&last.octets());
                }
                NatAddresses::V6(first, last) => {
                    into.write(&[6]);
                    into.write(&first.octets());
                    into.write(&last.octets());
                }
            }
            if let Some((first, last)) = nat.ports {
                into.write(&[5]);
                into.write(&first.to_be_bytes());
                into.write(&last.to_be_bytes());
            }
        }
        if let Some(helper) = commit.helper {
            into.write(&[7, u8::from(helper.ipv6), u8::from(helper.udp), helper.len]);
            into.write(helper.name());
        }
        into.write(&[0]);
    }
}

fn fmt_range<T: fmt::Display + PartialEq>(
    first: T,
    last: T,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
}

impl fmt::Display for Ct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commit = match self {
            Ct::Clear => return f.write_str("ct clear"),
            Ct::Track { zone, nat } => {
                return write!(f, "ct zone {zone}{}", if *nat { " nat" } else { "" });
            }
            Ct::Commit(commit) => commit,
        };
        f.write_str("ct commit")?;
        if commit.force {
            f.write_str(" force")?;
        }
        write!(f, " zone {}", commit.zone)?;
        if let Some((mark, mask)) = commit.mark {
            write!(f, " mark {mark:#x}/{mask:#x}")?;
        }
        if let Some((label, mask)) = commit.label {
            f.write_str(" label ")?;
            fmt_hex(&label, f)?;
            f.write_str("/")?;
            fmt_hex(&mask, f)?;
        }
        if let Some(nat) = commit.nat {
            f.write_str(match nat.end {
                NatEnd::Src => " nat src addr ",
                NatEnd::Dst => " nat dst addr ",
            })?;
            match nat.addresses {
                NatAddresses::V4(first, last) => fmt_range(first, last, f)?,
                NatAddresses::V6(first, last) => fmt_range(first, last, f)?,
            }
            if let Some((first, last)) = nat.ports {
                f.write_str(" port ")?;
                fmt_range(first, last, f)?;
            }
        }
        if let Some(helper) = commit.helper {
            // By number: `tc` knows the names only where /etc/protocols does.
            let family = if helper.ipv6 { "ipv6" } else { "ipv4" };
            let proto = if helper.udp { 17 } else { 6 };
            write!(f, " helper {family}-{proto}-{}", helper.name().escape_ascii())?;
        }
        Ok(())
    }
}
