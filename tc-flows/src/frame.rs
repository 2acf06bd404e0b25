//! A frame, as far as flower keys can see it.
//!
//! Plain data that tests and tracing fill in; what the walk compares and rewrites. No parsing of
//! real packets here.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::action::TunnelKey;
use crate::ident::{EtherType, Mac, VlanId, VlanTpid};
use crate::key::LinkName;

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
    /// The interface that received it, where that is known: only then a walk can tell whether a
    /// rule that names one takes it.
    pub indev: Option<LinkName>,
    /// The tunnel that it came out of, or how the tunnel interface through which it leaves shall
    /// wrap it: the kernel keeps both in one place, and keys see either (`skb_tunnel_info`,
    /// include/net/dst_metadata.h). Other interfaces let it fall.
    pub tunnel: Option<Arc<TunnelKey>>,
}

impl Frame {
    /// An untagged frame with a body that no key can see into.
    pub const fn opaque(dst: Mac, src: Mac, ethertype: EtherType) -> Frame {
        Frame {
            dst,
            src,
            tags: Vec::new(),
            ethertype: ethertype.get(),
            body: Body::Opaque,
            indev: None,
            tunnel: None,
        }
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

    /// The same frame out of, or bound for, this tunnel.
    #[must_use]
    pub fn in_tunnel(mut self, tunnel: TunnelKey) -> Frame {
        self.tunnel = Some(Arc::new(tunnel));
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
            Body::Mpls(_) => self.ethertype = 0x8847,
            Body::Pppoe { .. } => self.ethertype = 0x8864,
            Body::Cfm { .. } => self.ethertype = 0x8902,
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
        /// Whether it is a part of a larger one.
        fragment: Fragment,
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
        /// Whether it is a part of a larger one.
        fragment: Fragment,
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
    /// A stack of MPLS labels around what no key sees.
    Mpls(MplsStack),
    /// A PPPoE session packet around what no key sees: not IP, which the kernel would look into.
    Pppoe {
        /// Session number.
        session: u16,
        /// PPP protocol number.
        proto: u16,
    },
    /// A message of connectivity fault management (IEEE 802.1ag).
    Cfm {
        /// Maintenance domain level, 0 to 7.
        level: u8,
        /// 1 continuity check, 2 loopback reply, …
        opcode: u8,
    },
}

/// Whether an IP packet is a part of a larger one. What it carries is seen in whole packets only
/// (the kernel does not look into a first fragment either: `fl_classify` does not ask for
/// `FLOW_DISSECTOR_F_PARSE_1ST_FRAG`), but for its protocol number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fragment {
    /// It is whole.
    #[default]
    No,
    /// It is the first part.
    First,
    /// It is a later part.
    Later,
}

/// One to seven MPLS labels, the outer one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MplsStack {
    len: u8,
    entries: [u32; MplsStack::MAX],
}

impl MplsStack {
    /// How many the kernel looks at (`FLOW_DIS_MPLS_MAX`, include/net/flow_dissector.h).
    pub const MAX: usize = 7;

    /// The stack of these labels, traffic classes and times to live, or `None` where they are none
    /// or more than seven, or a number is too large for its 20, 3 or 8 bits.
    pub fn new(entries: &[(u32, u8, u8)]) -> Option<MplsStack> {
        let mut stack = MplsStack { len: entries.len() as u8, entries: [0; MplsStack::MAX] };
        if entries.is_empty() || entries.len() > MplsStack::MAX {
            return None;
        }
        for (at, (label, tc, ttl)) in entries.iter().enumerate() {
            if *label >= 1 << 20 || *tc >= 8 {
                return None;
            }
            let bottom = u32::from(at + 1 == entries.len());
            stack.entries[at] = label << 12 | u32::from(*tc) << 9 | bottom << 8 | u32::from(*ttl);
        }
        Some(stack)
    }

    /// The entries as they stand in the packet (RFC 3032), in host order.
    pub fn entries(&self) -> &[u32] {
        &self.entries[..usize::from(self.len)]
    }
}

impl Body {
    /// An IPv4 packet with TTL 64.
    pub const fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, layer4: Layer4) -> Body {
        Body::Ipv4 { src, dst, tos: 0, ttl: 64, layer4, fragment: Fragment::No }
    }

    /// An IPv6 packet with hop limit 64.
    pub const fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, layer4: Layer4) -> Body {
        Body::Ipv6 { src, dst, tos: 0, ttl: 64, layer4, fragment: Fragment::No }
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
    /// IPsec encapsulation.
    Esp {
        /// Security parameters index.
        spi: u32,
    },
    /// IPsec authentication.
    Ah {
        /// Security parameters index.
        spi: u32,
    },
    /// L2TPv3 over IP.
    L2tpv3 {
        /// Session number.
        session: u32,
    },
    /// Any other protocol, by number; none that the kernel looks behind (IPv6 extension headers,
    /// MPLS in IP).
    Other(u8),
}

impl Layer4 {
    /// The protocol number, in IPv4 or in IPv6.
    pub const fn proto(self, v4: bool) -> u8 {
        match self {
            Layer4::Tcp { .. } => 6,
            Layer4::Udp { .. } => 17,
            Layer4::Sctp { .. } => 132,
            Layer4::Icmp { .. } if v4 => 1,
            Layer4::Icmp { .. } => 58,
            Layer4::Esp { .. } => 50,
            Layer4::Ah { .. } => 51,
            Layer4::L2tpv3 { .. } => 115,
            Layer4::Other(proto) => proto,
        }
    }
}
