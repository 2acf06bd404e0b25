//! Which checksums are computed anew (`csum`).
//!
//! Source: include/uapi/linux/tc_act/tc_csum.h.

use std::fmt;
use std::num::NonZeroU8;

/// Which checksums to compute anew: one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksums(NonZeroU8);

impl Checksums {
    /// The IPv4 header's.
    pub const IPV4: Checksums = Checksums::bit(0);
    /// ICMP's.
    pub const ICMP: Checksums = Checksums::bit(1);
    /// IGMP's.
    pub const IGMP: Checksums = Checksums::bit(2);
    /// TCP's.
    pub const TCP: Checksums = Checksums::bit(3);
    /// UDP's.
    pub const UDP: Checksums = Checksums::bit(4);
    /// UDP-Lite's.
    pub const UDPLITE: Checksums = Checksums::bit(5);
    /// SCTP's.
    pub const SCTP: Checksums = Checksums::bit(6);

    const fn bit(bit: u8) -> Checksums {
        match Checksums::from_bits(1 << bit) {
            Some(one) => one,
            None => Checksums(NonZeroU8::MIN),
        }
    }

    /// These and those.
    #[must_use]
    pub fn and(self, other: Checksums) -> Checksums {
        Checksums(self.0 | other.0)
    }

    /// `TCA_CSUM_UPDATE_FLAG_*` of include/uapi/linux/tc_act/tc_csum.h.
    pub(crate) const fn bits(self) -> u8 {
        self.0.get()
    }

    pub(crate) const fn from_bits(bits: u8) -> Option<Checksums> {
        match NonZeroU8::new(bits) {
            Some(of) if bits < 1 << 7 => Some(Checksums(of)),
            _ => None,
        }
    }
}

impl fmt::Display for Checksums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["ip4h", "icmp", "igmp", "tcp", "udp", "udplite", "sctp"];
        let mut first = true;
        for (bit, name) in names.into_iter().enumerate() {
            if self.bits() >> bit & 1 == 1 {
                write!(f, "{}{name}", if first { "" } else { " and " })?;
                first = false;
            }
        }
        Ok(())
    }
}
