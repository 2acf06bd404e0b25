//! A frame, as far as flower keys can see it.
//!
//! Plain data that tests and tracing fill in; what the walk compares and rewrites. No parsing of
//! real packets here.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::ident::{EtherType, Mac, VlanId, VlanTpid};

/// One VLAN tag. (Its drop eligibility bit, which no key sees and no action changes, is not here.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// Its kind.
    pub tpid: VlanTpid,
    /// Its identifier.
    pub vid: VlanId,
    /// Its priority code point, 0 to 7.
    pub pcp: u8,
}

impl Tag {
    /// A tag of priority 0.
    pub const fn new(tpid: VlanTpid, vid: VlanId) -> Tag {
        Tag { tpid, vid, pcp: 0 }
    }
}

/// An Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame {
    /// Destination address.
    pub dst: Mac,
    /// Source address.
    pub src: Mac,
    /// VLAN tags, the outer one first.
    pub tags: Vec<Tag>,
    /// What stands behind the tags, in host order.
    pub ethertype: u16,
    /// What keys can see behind the ethertype.
    pub body: Body,
}

impl Frame {
    /// An untagged frame with a body that no key can see into.
    pub const fn opaque(dst: Mac, src: Mac, ethertype: EtherType) -> Frame {
        Frame { dst, src, tags: Vec::new(), ethertype: ethertype.get(), body: Body::Opaque }
    }

    /// The same frame inside one more tag, of priority 0.
    #[must_use]
    pub fn tagged(self, tpid: VlanTpid, vid: VlanId) -> Frame {
        self.within(Tag::new(tpid, vid))
    }

    /// The same frame inside this tag.
    #[must_use]
    pub fn within(mut self, tag: Tag) -> Frame {
        self.tags.insert(0, tag);
        self
    }

    /// The ethertype that stands at place `at`, behind as many tags: a tag's or the payload's.
    pub(crate) fn ethertype_at(&self, at: usize) -> u16 {
        self.tags.get(at).map_or(self.ethertype, |tag| tag.tpid.ethertype())
    }

    /// The same frame with this body and the ethertype that belongs to it.
    #[must_use]
    pub fn with_body(mut self, body: Body) -> Frame {
        match body {
            Body::Opaque => {}
            Body::Ipv4 { .. } => self.ethertype = EtherType::IPV4.get(),
            Body::Ipv6 { .. } => self.ethertype = EtherType::IPV6.get(),
            Body::Arp { .. } => self.ethertype = EtherType::ARP.get(),
        }
        self.body = body;
        self
    }
}

/// The part of a frame behind its ethertype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Body {
    /// Nothing that a key here looks at.
    Opaque,
    /// An IPv4 packet.
    Ipv4 {
        /// Source address.
        src: Ipv4Addr,
        /// Destination address.
        dst: Ipv4Addr,
        /// Type of service.
        tos: u8,
        /// Time to live.
        ttl: u8,
        /// What it carries.
        layer4: Layer4,
    },
    /// An IPv6 packet.
    Ipv6 {
        /// Source address.
        src: Ipv6Addr,
        /// Destination address.
        dst: Ipv6Addr,
        /// Traffic class.
        tos: u8,
        /// Hop limit.
        ttl: u8,
        /// What it carries.
        layer4: Layer4,
    },
    /// An ARP message for IPv4 over Ethernet.
    Arp {
        /// 1 request, 2 reply.
        op: u8,
        /// Sender hardware address.
        sha: Mac,
        /// Sender protocol address.
        sip: Ipv4Addr,
        /// Target hardware address.
        tha: Mac,
        /// Target protocol address.
        tip: Ipv4Addr,
    },
}

impl Body {
    /// An IPv4 packet with TTL 64.
    pub const fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, layer4: Layer4) -> Body {
        Body::Ipv4 { src, dst, tos: 0, ttl: 64, layer4 }
    }

    /// An IPv6 packet with hop limit 64.
    pub const fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, layer4: Layer4) -> Body {
        Body::Ipv6 { src, dst, tos: 0, ttl: 64, layer4 }
    }
}

/// The part of an IP packet behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer4 {
    /// TCP.
    Tcp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// The 12 flag bits.
        flags: u16,
    },
    /// UDP.
    Udp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// SCTP.
    Sctp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp {
        /// Message type.
        kind: u8,
        /// Message code.
        code: u8,
    },
    /// Any other protocol, by number.
    Other(u8),
}
