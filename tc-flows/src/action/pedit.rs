//! Header fields that are rewritten (`pedit ex`).
//!
//! In come fields by name, out go 32-bit words with masks, which is what the kernel knows; where a
//! field stands is written in [`PeditField::place`] alone.
//!
//! Sources: net/sched/act_pedit.c, include/uapi/linux/tc_act/tc_pedit.h, tc/p_*.c of iproute2.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::ident::Mac;
use crate::rule::Fnv1a;

/// Header fields to rewrite, in this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pedit {
    pub(crate) munges: Box<[Munge]>,
}

/// Most 32-bit words that one `pedit` rewrites (`MAX_OFFS`, tc/m_pedit.h).
pub(crate) const PEDIT_WORDS_MAX: usize = 128;

impl Pedit {
    /// These, or `None` where there is none, or where they are more than 128 words (an Ethernet
    /// address has two, an IPv6 address four).
    pub fn new(munges: impl Into<Box<[Munge]>>) -> Option<Pedit> {
        let munges = munges.into();
        let words: usize = munges.iter().map(|munge| munge.words().count()).sum();
        (1..=PEDIT_WORDS_MAX).contains(&words).then_some(Pedit { munges })
    }
}

impl fmt::Display for Pedit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, munge) in self.munges.iter().enumerate() {
            if at > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{munge}")?;
        }
        Ok(())
    }
}

/// A header field of at most 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PeditField {
    /// The ethertype that follows the Ethernet addresses.
    EthType,
    /// IPv4 source address.
    Ipv4Src,
    /// IPv4 destination address.
    Ipv4Dst,
    /// IPv4 type of service.
    Ipv4Tos,
    /// IPv4 time to live.
    Ipv4Ttl,
    /// IPv4 protocol.
    Ipv4Protocol,
    /// IPv6 traffic class.
    Ipv6TrafficClass,
    /// IPv6 flow label, 20 bits.
    Ipv6FlowLabel,
    /// IPv6 payload length.
    Ipv6PayloadLen,
    /// IPv6 next header.
    Ipv6NextHeader,
    /// IPv6 hop limit.
    Ipv6HopLimit,
    /// TCP source port.
    TcpSrc,
    /// TCP destination port.
    TcpDst,
    /// TCP flags, without the four highest.
    TcpFlags,
    /// UDP source port.
    UdpSrc,
    /// UDP destination port.
    UdpDst,
}

/// Which header a word's offset counts from (`enum pedit_header_type`,
/// include/uapi/linux/tc_act/tc_pedit.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub(crate) enum PeditHeader {
    Eth = 1,
    Ip4 = 2,
    Ip6 = 3,
    Tcp = 4,
    Udp = 5,
}

/// Where a field stands: its bits are `mask` moved up by `shift` in the word at `offset`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeditPlace {
    name: &'static str,
    pub(crate) header: PeditHeader,
    pub(crate) offset: u32,
    pub(crate) shift: u32,
    pub(crate) mask: u32,
}

impl PeditField {
    pub(crate) const ALL: [PeditField; 16] = [
        PeditField::EthType,
        PeditField::Ipv4Src,
        PeditField::Ipv4Dst,
        PeditField::Ipv4Tos,
        PeditField::Ipv4Ttl,
        PeditField::Ipv4Protocol,
        PeditField::Ipv6TrafficClass,
        PeditField::Ipv6FlowLabel,
        PeditField::Ipv6PayloadLen,
        PeditField::Ipv6NextHeader,
        PeditField::Ipv6HopLimit,
        PeditField::TcpSrc,
        PeditField::TcpDst,
        PeditField::TcpFlags,
        PeditField::UdpSrc,
        PeditField::UdpDst,
    ];

    pub(crate) const fn place(self) -> PeditPlace {
        use PeditHeader::{Eth, Ip4, Ip6, Tcp, Udp};
        let (name, header, offset, shift, mask) = match self {
            PeditField::EthType => ("eth type", Eth, 12, 16, 0xffff),
            PeditField::Ipv4Src => ("ip src", Ip4, 12, 0, u32::MAX),
            PeditField::Ipv4Dst => ("ip dst", Ip4, 16, 0, u32::MAX),
            PeditField::Ipv4Tos => ("ip tos", Ip4, 0, 16, 0xff),
            PeditField::Ipv4Ttl => ("ip ttl", Ip4, 8, 24, 0xff),
            PeditField::Ipv4Protocol => ("ip protocol", Ip4, 8, 16, 0xff),
            PeditField::Ipv6TrafficClass => ("ip6 traffic_class", Ip6, 0, 20, 0xff),
            PeditField::Ipv6FlowLabel => ("ip6 flow_lbl", Ip6, 0, 0, 0xf_ffff),
            PeditField::Ipv6PayloadLen => ("ip6 payload_len", Ip6, 4, 16, 0xffff),
            PeditField::Ipv6NextHeader => ("ip6 nexthdr", Ip6, 4, 8, 0xff),
            PeditField::Ipv6HopLimit => ("ip6 hoplimit", Ip6, 4, 0, 0xff),
            PeditField::TcpSrc => ("tcp sport", Tcp, 0, 16, 0xffff),
            PeditField::TcpDst => ("tcp dport", Tcp, 0, 0, 0xffff),
            PeditField::TcpFlags => ("tcp flags", Tcp, 12, 16, 0xff),
            PeditField::UdpSrc => ("udp sport", Udp, 0, 16, 0xffff),
            PeditField::UdpDst => ("udp dport", Udp, 0, 0, 0xffff),
        };
        PeditPlace { name, header, offset, shift, mask }
    }
}

/// One field and what is written into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Munge(pub(crate) MungeKind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum MungeKind {
    EthDst(Mac),
    EthSrc(Mac),
    Ipv6Src(Ipv6Addr),
    Ipv6Dst(Ipv6Addr),
    Field { field: PeditField, add: bool, value: u32, mask: u32 },
}

/// One rewritten word, as numbers in network order: its bits outside `mask` become those of `value`
/// (or have it added to them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeditWord {
    pub(crate) header: PeditHeader,
    pub(crate) add: bool,
    pub(crate) offset: u32,
    pub(crate) value: u32,
    pub(crate) mask: u32,
}

impl Munge {
    /// The Ethernet destination address becomes this.
    pub const fn eth_dst(mac: Mac) -> Munge {
        Munge(MungeKind::EthDst(mac))
    }

    /// The Ethernet source address becomes this.
    pub const fn eth_src(mac: Mac) -> Munge {
        Munge(MungeKind::EthSrc(mac))
    }

    /// The IPv6 source address becomes this.
    pub const fn ipv6_src(address: Ipv6Addr) -> Munge {
        Munge(MungeKind::Ipv6Src(address))
    }

    /// The IPv6 destination address becomes this.
    pub const fn ipv6_dst(address: Ipv6Addr) -> Munge {
        Munge(MungeKind::Ipv6Dst(address))
    }

    /// The field becomes this (an IPv4 address as a number); `None` where it is too large.
    pub const fn set(field: PeditField, value: u32) -> Option<Munge> {
        Munge::set_masked(field, value, field.place().mask)
    }

    /// Those bits of the field become those of `value`; `None` where mask or value have bits that
    /// the field or the mask lacks, and for an empty mask.
    pub const fn set_masked(field: PeditField, value: u32, mask: u32) -> Option<Munge> {
        Munge::field(field, false, value, mask)
    }

    /// This is added to the field, beyond whose largest number it goes on from 0; `None` where it
    /// is too large.
    pub const fn add(field: PeditField, value: u32) -> Option<Munge> {
        Munge::add_masked(field, value, field.place().mask)
    }

    /// As [`Munge::add`], but only those bits of the sum are kept; `None` as for
    /// [`Munge::set_masked`].
    pub const fn add_masked(field: PeditField, value: u32, mask: u32) -> Option<Munge> {
        Munge::field(field, true, value, mask)
    }

    const fn field(field: PeditField, add: bool, value: u32, mask: u32) -> Option<Munge> {
        if mask == 0 || mask & !field.place().mask != 0 || value & !mask != 0 {
            return None;
        }
        Some(Munge(MungeKind::Field { field, add, value, mask }))
    }

    /// The words that it rewrites, in the order in which `tc` names them.
    pub(crate) fn words(&self) -> impl Iterator<Item = PeditWord> + use<> {
        let word = |header, offset, value, mask| {
            Some(PeditWord { header, add: false, offset, value, mask })
        };
        let address = |offset: u32, address: Ipv6Addr| {
            let bits = address.to_bits();
            [0, 1, 2, 3].map(|at| {
                word(PeditHeader::Ip6, offset + 4 * at, (bits >> (96 - 32 * at)) as u32, 0)
            })
        };
        let words = match self.0 {
            MungeKind::EthDst(Mac([a, b, c, d, e, g])) => {
                let first = u32::from_be_bytes([a, b, c, d]);
                let last = u32::from_be_bytes([e, g, 0, 0]);
                let eth = PeditHeader::Eth;
                [word(eth, 0, first, 0), word(eth, 4, last, 0xffff), None, None]
            }
            MungeKind::EthSrc(Mac([a, b, c, d, e, g])) => {
                let first = u32::from_be_bytes([0, 0, a, b]);
                let last = u32::from_be_bytes([c, d, e, g]);
                let eth = PeditHeader::Eth;
                [word(eth, 4, first, 0xffff_0000), word(eth, 8, last, 0), None, None]
            }
            MungeKind::Ipv6Src(to) => address(8, to),
            MungeKind::Ipv6Dst(to) => address(24, to),
            MungeKind::Field { field, add, value, mask } => {
                let PeditPlace { header, offset, shift, .. } = field.place();
                let (value, mask) = (value << shift, !(mask << shift));
                [Some(PeditWord { header, add, offset, value, mask }), None, None, None]
            }
        };
        words.into_iter().flatten()
    }

    pub(super) fn digest(&self, into: &mut Fnv1a) {
        for word in self.words() {
            into.write(&[word.header as u8, u8::from(word.add)]);
            into.write(&word.offset.to_be_bytes());
            into.write(&word.value.to_be_bytes());
            into.write(&word.mask.to_be_bytes());
        }
    }
}

impl fmt::Display for Munge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("munge ")?;
        let (field, add, value, mask) = match self.0 {
            MungeKind::EthDst(mac) => return write!(f, "eth dst set {mac}"),
            MungeKind::EthSrc(mac) => return write!(f, "eth src set {mac}"),
            MungeKind::Ipv6Src(to) => return write!(f, "ip6 src set {to}"),
            MungeKind::Ipv6Dst(to) => return write!(f, "ip6 dst set {to}"),
            MungeKind::Field { field, add, value, mask } => (field, add, value, mask),
        };
        let place = field.place();
        write!(f, "{} {} ", place.name, if add { "add" } else { "set" })?;
        match field {
            PeditField::Ipv4Src | PeditField::Ipv4Dst => write!(f, "{}", Ipv4Addr::from(value))?,
            _ => write!(f, "{value}")?,
        }
        // What `tc` retains by itself: of a flow label one bit less than there is.
        let usual = if field == PeditField::Ipv6FlowLabel { 0x7_ffff } else { place.mask };
        if mask == usual { Ok(()) } else { write!(f, " retain {mask:#x}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_words_that_tc_writes() {
        let words = |munge: Munge| -> Vec<(u32, u32, u32)> {
            munge.words().map(|word| (word.offset, word.value, word.mask)).collect()
        };
        let mac = Mac([1, 2, 3, 4, 5, 6]);
        let expected = [(0, 0x0102_0304, 0), (4, 0x0506_0000, 0xffff)];
        assert_eq!(words(Munge::eth_dst(mac)), expected);
        let expected = [(4, 0x0000_0102, 0xffff_0000), (8, 0x0304_0506, 0)];
        assert_eq!(words(Munge::eth_src(mac)), expected);
        let address = "2001:db8::1".parse().unwrap();
        let expected = [(24, 0x2001_0db8, 0), (28, 0, 0), (32, 0, 0), (36, 1, 0)];
        assert_eq!(words(Munge::ipv6_dst(address)), expected);
    }

    #[test]
    fn a_field_stands_where_its_header_has_it() {
        let word = |munge: Option<Munge>| {
            let words: Vec<PeditWord> = munge.unwrap().words().collect();
            let [word] = words[..] else { panic!("{words:?}") };
            (word.header, word.offset, word.value, word.mask)
        };
        use PeditHeader::{Ip4, Ip6, Tcp};
        assert_eq!(word(Munge::set(PeditField::Ipv4Ttl, 64)), (Ip4, 8, 64 << 24, 0x00ff_ffff));
        let class = Munge::set_masked(PeditField::Ipv6TrafficClass, 0x20, 0xf0);
        assert_eq!(word(class), (Ip6, 0, 0x0200_0000, 0xf0ff_ffff));
        assert_eq!(word(Munge::set(PeditField::TcpDst, 80)), (Tcp, 0, 80, 0xffff_0000));
    }

    #[test]
    fn what_does_not_fit_into_a_field_is_refused() {
        assert_eq!(Munge::set(PeditField::Ipv4Ttl, 256), None);
        assert_eq!(Munge::set_masked(PeditField::Ipv4Ttl, 3, 1), None);
        assert_eq!(Munge::set_masked(PeditField::Ipv4Ttl, 0, 0), None);
        assert_eq!(Munge::add(PeditField::Ipv6FlowLabel, 1 << 20), None);
        assert_eq!(Pedit::new([]), None);
        assert!(Pedit::new([Munge::ipv6_src(Ipv6Addr::LOCALHOST); 32]).is_some());
        assert_eq!(Pedit::new([Munge::ipv6_src(Ipv6Addr::LOCALHOST); 33]), None);
    }

    #[test]
    fn a_munge_prints_as_tc_reads_it() {
        let cases = [
            (Munge::set(PeditField::Ipv4Src, 0xc000_0201), "munge ip src set 192.0.2.1"),
            (Munge::add(PeditField::Ipv4Ttl, 255), "munge ip ttl add 255"),
            (Munge::set_masked(PeditField::TcpFlags, 2, 0x12), "munge tcp flags set 2 retain 0x12"),
            (Munge::set(PeditField::Ipv6FlowLabel, 7), "munge ip6 flow_lbl set 7 retain 0xfffff"),
            (Some(Munge::eth_src(Mac([2; 6]))), "munge eth src set 02:02:02:02:02:02"),
        ];
        for (munge, expected) in cases {
            assert_eq!(munge.unwrap().to_string(), expected);
        }
    }
}
