//! The plain values that rules are made of: addresses, tags, chains, prios, interface indexes,
//! handles and hooks.
//!
//! In come raw integers and bytes, out go newtypes whose existence proves that the value is one
//! that the kernel can take. Nothing here knows rules, netlink or any machine's state.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The mask under which every bit of an address counts.
    pub const EXACT: Mac = Mac([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A VLAN identifier, 0..=4095 (IEEE 802.1Q, 12 bits; 0 is a priority tag).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// The identifier, or `None` above 4095.
    pub const fn new(vid: u16) -> Option<VlanId> {
        if vid < 4096 { Some(VlanId(vid)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which kind of VLAN tag: its tag protocol identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VlanTpid {
    /// 0x8100, the customer tag.
    Dot1Q,
    /// 0x88a8, the service tag of QinQ.
    Dot1Ad,
}

impl VlanTpid {
    /// The ethertype of the tag.
    pub const fn ethertype(self) -> u16 {
        match self {
            VlanTpid::Dot1Q => 0x8100,
            VlanTpid::Dot1Ad => 0x88a8,
        }
    }

    /// The tag kind that this ethertype announces.
    pub const fn from_ethertype(ethertype: u16) -> Option<VlanTpid> {
        match ethertype {
            0x8100 => Some(VlanTpid::Dot1Q),
            0x88a8 => Some(VlanTpid::Dot1Ad),
            _ => None,
        }
    }
}

impl fmt::Display for VlanTpid {
    /// As `tc` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VlanTpid::Dot1Q => "802.1Q",
            VlanTpid::Dot1Ad => "802.1ad",
        })
    }
}

/// The ethertype of a payload: what stands after all VLAN tags.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EtherType(u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: EtherType = EtherType(0x0800);
    /// IPv6.
    pub const IPV6: EtherType = EtherType(0x86dd);
    /// ARP.
    pub const ARP: EtherType = EtherType(0x0806);
    /// Reverse ARP, which hypervisors send after a migration.
    pub const RARP: EtherType = EtherType(0x8035);

    /// The ethertype, or `None` where the number is a frame length (below 0x600) or a VLAN tag's
    /// (matched by [`crate::Match::vlan`] instead).
    pub const fn new(ethertype: u16) -> Option<EtherType> {
        if ethertype < 0x600 || VlanTpid::from_ethertype(ethertype).is_some() {
            None
        } else {
            Some(EtherType(ethertype))
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for EtherType {
    /// As `tc` reads it: a name where it has one, else the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_ethertype(self.0, f)
    }
}

impl fmt::Debug for EtherType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(crate) fn fmt_ethertype(ethertype: u16, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match ethertype {
        ETH_P_ALL => f.write_str("all"),
        0x0800 => f.write_str("ip"),
        0x86dd => f.write_str("ipv6"),
        0x0806 => f.write_str("arp"),
        0x8100 => f.write_str("802.1Q"),
        0x88a8 => f.write_str("802.1ad"),
        other => write!(f, "{other:#06x}"),
    }
}

/// `ETH_P_ALL` of include/uapi/linux/if_ether.h: the tcm protocol of a rule for every frame.
pub(crate) const ETH_P_ALL: u16 = 0x0003;

/// A chain of a hook: 28 bits (`TC_ACT_EXT_VAL_MASK` in include/uapi/linux/pkt_cls.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(u32);

impl ChainId {
    /// The chain in which every frame starts.
    pub const ZERO: ChainId = ChainId(0);

    /// The highest number.
    pub const MAX: ChainId = ChainId((1 << 28) - 1);

    /// The chain, or `None` where the number needs more than 28 bits.
    pub const fn new(chain: u32) -> Option<ChainId> {
        if chain < 1 << 28 { Some(ChainId(chain)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A rule's priority within its chain: lower is asked first, 0 does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prio(NonZeroU16);

impl Prio {
    /// The lowest number: asked before all others.
    pub const FIRST: Prio = Prio(NonZeroU16::MIN);

    /// The highest number: asked after all others.
    pub const LAST: Prio = Prio(NonZeroU16::MAX);

    /// The priority, or `None` for 0 (by which the kernel would choose one itself).
    pub const fn new(prio: u16) -> Option<Prio> {
        match NonZeroU16::new(prio) {
            Some(p) => Some(Prio(p)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Prio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The index of a network interface in its network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ifindex(NonZeroU32);

impl Ifindex {
    /// The index, or `None` where it is no interface's: 0, and what needs more than 31 bits
    /// (`tcm_ifindex` is signed).
    pub const fn new(ifindex: u32) -> Option<Ifindex> {
        if ifindex > i32::MAX as u32 {
            return None;
        }
        match NonZeroU32::new(ifindex) {
            Some(i) => Some(Ifindex(i)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Ifindex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A rule's number among the rules of its hook, chain and prio. 0 is none of them: a change with
/// handle 0 concerns a whole prio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Which way frames cross a hook, seen from the interface's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Frames that the interface received.
    Ingress,
    /// Frames that the host sends through the interface.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// A block that interfaces share: what stands in it, the frames of each of them meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(NonZeroU32);

impl BlockId {
    /// The block, or `None` for 0 (by which a qdisc says that it shares none).
    pub const fn new(block: u32) -> Option<BlockId> {
        match NonZeroU32::new(block) {
            Some(b) => Some(BlockId(b)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place where frames meet rules: one direction of one interface's clsact qdisc, or a block that
/// such places of several interfaces are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// What this interface receives.
    Ingress(Ifindex),
    /// What the host sends through this interface.
    Egress(Ifindex),
    /// What passes the places that are bound to this block.
    Block(BlockId),
}

impl Hook {
    /// The hook for what the interface receives: on a representor, what its VF sent.
    pub const fn ingress(ifindex: Ifindex) -> Hook {
        Hook::Ingress(ifindex)
    }

    /// The hook for what the host sends through the interface.
    pub const fn egress(ifindex: Ifindex) -> Hook {
        Hook::Egress(ifindex)
    }

    /// The hook that several interfaces share.
    pub const fn block(block: BlockId) -> Hook {
        Hook::Block(block)
    }

    /// Its interface, where it is one's own.
    pub const fn ifindex(self) -> Option<Ifindex> {
        match self {
            Hook::Ingress(ifindex) | Hook::Egress(ifindex) => Some(ifindex),
            Hook::Block(_) => None,
        }
    }

    /// Which way frames cross it, where it is one interface's.
    pub const fn direction(self) -> Option<Direction> {
        match self {
            Hook::Ingress(_) => Some(Direction::Ingress),
            Hook::Egress(_) => Some(Direction::Egress),
            Hook::Block(_) => None,
        }
    }
}

impl fmt::Display for Hook {
    /// As `tc` reads it after `tc filter show`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hook::Ingress(ifindex) => write!(f, "dev if{ifindex} ingress"),
            Hook::Egress(ifindex) => write!(f, "dev if{ifindex} egress"),
            Hook::Block(block) => write!(f, "block {block}"),
        }
    }
}
