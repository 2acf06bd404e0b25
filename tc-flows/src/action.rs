//! What a rule does with the frames that it matched, one step after the other.
//!
//! In come typed values under which an invalid combination cannot be written; out goes [`Action`],
//! which compares, hashes, prints as `tc` reads it, and knows whether the next action of its rule
//! can run after it. No netlink bytes here, and no list of actions: that is a rule's.
//!
//! What each kind takes: `tcf_*_init` in net/sched/act_*.c and include/uapi/linux/tc_act/; its
//! syntax: tc/m_*.c of iproute2. Wherever `tc` lets a kind name how its rule goes on, the kinds
//! here go on with the next action (`pipe`): `drop`, `pass` and the others are actions themselves.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU8, NonZeroU32, NonZeroU64};
use std::sync::Arc;

use crate::ident::{BlockId, ChainId, Direction, EtherType, Ifindex, Mac, VlanId, VlanTpid};
use crate::key::{MplsLabel, MplsTc, VlanPrio};
use crate::rule::Fnv1a;

/// One step of what happens to a frame that a rule matched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The frame ends here (gact `drop`).
    Drop,
    /// The frame goes on to the host's own stack (gact `pass`).
    Pass,
    /// Hardware hands the frame to software, which consumes it (gact `trap`).
    Trap,
    /// The rules of this chain decide (gact `goto chain`).
    Goto(ChainId),
    /// A copy leaves through this interface, the frame continues (mirred `egress mirror`).
    Mirror(Ifindex),
    /// The frame leaves through this interface (mirred `egress redirect`).
    Redirect(Ifindex),
    /// A tag is put outside all others, with priority 0.
    VlanPush {
        /// Kind of the new tag.
        tpid: VlanTpid,
        /// Identifier of the new tag.
        vid: VlanId,
    },
    /// The outer tag is taken off; an untagged frame stays as it is.
    VlanPop,
    /// The outer tag is replaced, its priority kept; an untagged frame stays as it is.
    VlanModify {
        /// Kind of the tag afterwards.
        tpid: VlanTpid,
        /// Identifier of the tag afterwards.
        vid: VlanId,
    },
    /// The next rule that matches decides (gact `continue`).
    Continue,
    /// Nothing happens but that the frame is counted (gact `pipe`).
    Pipe,
    /// The action at this place of the list, counted from 0, is next (gact `jump`). It stands
    /// behind this one: backwards the kernel would go round until it gives up.
    Jump(u8),
    /// A copy is received by this interface, the frame continues (mirred `ingress mirror`).
    MirrorIngress(Ifindex),
    /// The frame is received by this interface (mirred `ingress redirect`).
    RedirectIngress(Ifindex),
    /// A copy for every interface of this block but the frame's own, the frame continues (mirred
    /// `mirror blockid`).
    MirrorBlock {
        /// Whether the interfaces send or receive it.
        direction: Direction,
        /// Whose interfaces.
        block: BlockId,
    },
    /// The frame goes to every interface of this block but its own (mirred `redirect blockid`).
    RedirectBlock {
        /// Whether the interfaces send or receive it.
        direction: Direction,
        /// Whose interfaces.
        block: BlockId,
    },
    /// As [`Action::VlanPush`], with a priority. (In a rule, one with priority 0 becomes a
    /// `VlanPush`, which is the same.)
    VlanPushPrio {
        /// Kind of the new tag.
        tpid: VlanTpid,
        /// Identifier of the new tag.
        vid: VlanId,
        /// Priority of the new tag.
        prio: VlanPrio,
    },
    /// As [`Action::VlanModify`], the priority replaced too.
    VlanModifyPrio {
        /// Kind of the tag afterwards.
        tpid: VlanTpid,
        /// Identifier of the tag afterwards.
        vid: VlanId,
        /// Priority of the tag afterwards.
        prio: VlanPrio,
    },
    /// The Ethernet header is taken off (vlan `pop_eth`).
    EthPop,
    /// An Ethernet header is put before a frame that has none (vlan `push_eth`).
    EthPush {
        /// Its destination address.
        dst: Mac,
        /// Its source address.
        src: Mac,
    },
    /// The tunnel interface that the frame leaves through next shall wrap it so (`tunnel_key set`).
    TunnelSet(Arc<TunnelKey>),
    /// What is known of the tunnel that the frame came from is forgotten (`tunnel_key unset`).
    TunnelRelease,
    /// The frame passes connection tracking (`ct`).
    Ct(Arc<Ct>),
    /// A rate is enforced (`police`).
    Police(Arc<Police>),
    /// A rate is enforced that other rules use up too (`police index`).
    SharedPolice(PoliceIndex),
    /// Fields of the frame's headers are rewritten (`pedit ex`).
    Pedit(Arc<Pedit>),
    /// Checksums are computed anew (`csum`).
    Csum(Checksums),
    /// What the kernel notes beside the frame is rewritten (`skbedit`).
    SkbEdit(Arc<SkbEdit>),
    /// Every so many frames one is shown to listeners (`sample`).
    Sample(Sample),
    /// MPLS labels are put on, changed or taken off (`mpls`).
    Mpls(Arc<Mpls>),
    /// Addresses of one IPv4 network are mapped to another, without state (`nat`).
    Nat(Nat),
}

/// A rule's list is walked by every planner and compared by every diff.
const _: () = assert!(size_of::<Action>() == 16);

impl Action {
    /// Whether the rule's part in the frame's life always ends with this action: no action behind
    /// it is reached.
    pub fn is_terminal(&self) -> bool {
        !self.continues() && self.jumps().next().is_none()
    }

    /// Whether the next action can run after this one.
    pub fn continues(&self) -> bool {
        match self {
            Action::Drop
            | Action::Pass
            | Action::Trap
            | Action::Goto(_)
            | Action::Redirect(_)
            | Action::Continue
            | Action::Jump(_)
            | Action::RedirectIngress(_)
            | Action::RedirectBlock { .. } => false,
            Action::Police(police) => {
                police.exceed == Control::Pipe || police.conform == Control::Pipe
            }
            Action::Mirror(_)
            | Action::VlanPush { .. }
            | Action::VlanPop
            | Action::VlanModify { .. }
            | Action::Pipe
            | Action::MirrorIngress(_)
            | Action::MirrorBlock { .. }
            | Action::VlanPushPrio { .. }
            | Action::VlanModifyPrio { .. }
            | Action::EthPop
            | Action::EthPush { .. }
            | Action::TunnelSet(_)
            | Action::TunnelRelease
            | Action::Ct(_)
            | Action::SharedPolice(_)
            | Action::Pedit(_)
            | Action::Csum(_)
            | Action::SkbEdit(_)
            | Action::Sample(_)
            | Action::Mpls(_)
            | Action::Nat(_) => true,
        }
    }

    /// The places of the list where it can go on other than at the next action.
    pub fn jumps(&self) -> impl Iterator<Item = u8> + use<> {
        let (one, other) = match self {
            Action::Jump(to) => (Some(*to), None),
            Action::Police(police) => (police.exceed.jump(), police.conform.jump()),
            _ => (None, None),
        };
        one.into_iter().chain(other)
    }

    /// The same action, leading where `there` says instead.
    pub(crate) fn leading(&self, there: impl Fn(ChainId) -> ChainId) -> Action {
        match self {
            Action::Goto(chain) => Action::Goto(there(*chain)),
            Action::Police(police) => {
                let moved = |control: Control| match control {
                    Control::Goto(chain) => Control::Goto(there(chain)),
                    other => other,
                };
                let (exceed, conform) = (moved(police.exceed), moved(police.conform));
                Action::Police(Arc::new(Police { exceed, conform, ..**police }))
            }
            other => other.clone(),
        }
    }

    /// Whether the next rule that matches may be asked after this action.
    pub(crate) fn may_ask_on(&self) -> bool {
        match self {
            Action::Continue => true,
            Action::Police(police) => {
                police.exceed == Control::Continue || police.conform == Control::Continue
            }
            _ => false,
        }
    }

    /// The chain that it can lead to.
    pub fn goto_target(&self) -> Option<ChainId> {
        match self {
            Action::Goto(chain) => Some(*chain),
            Action::Police(police) => match police.exceed {
                Control::Goto(chain) => Some(chain),
                _ => None,
            },
            _ => None,
        }
    }

    /// The interface that it sends frames or copies to.
    pub const fn destination(&self) -> Option<Ifindex> {
        match self {
            Action::Mirror(to)
            | Action::Redirect(to)
            | Action::MirrorIngress(to)
            | Action::RedirectIngress(to) => Some(*to),
            _ => None,
        }
    }

    /// The one spelling of actions that have two.
    pub(crate) fn canonical(&self) -> Option<Action> {
        match *self {
            Action::VlanPushPrio { tpid, vid, prio } if prio.get() == 0 => {
                Some(Action::VlanPush { tpid, vid })
            }
            _ => None,
        }
    }

    /// The VLAN identifier that it writes.
    pub(crate) const fn written_vid(&self) -> Option<VlanId> {
        match self {
            Action::VlanPush { vid, .. }
            | Action::VlanModify { vid, .. }
            | Action::VlanPushPrio { vid, .. }
            | Action::VlanModifyPrio { vid, .. } => Some(*vid),
            _ => None,
        }
    }

    /// Everything that makes it this action, in network order. The first nine kinds, and so the
    /// cookies of rules that have no other, are written as format version 1 always wrote them.
    pub(crate) fn digest(&self, into: &mut Fnv1a) {
        fn plain(into: &mut Fnv1a, kind: u8, tpid: u16, number: u32) {
            into.write(&[kind]);
            into.write(&tpid.to_be_bytes());
            into.write(&number.to_be_bytes());
        }
        let tag = |tpid: VlanTpid, vid: VlanId| (tpid.ethertype(), u32::from(vid.get()));
        match self {
            Action::Drop => plain(into, 1, 0, 0),
            Action::Pass => plain(into, 2, 0, 0),
            Action::Trap => plain(into, 3, 0, 0),
            Action::Goto(chain) => plain(into, 4, 0, chain.get()),
            Action::Mirror(to) => plain(into, 5, 0, to.get()),
            Action::Redirect(to) => plain(into, 6, 0, to.get()),
            Action::VlanPush { tpid, vid } => {
                let (tpid, vid) = tag(*tpid, *vid);
                plain(into, 7, tpid, vid);
            }
            Action::VlanPop => plain(into, 8, 0, 0),
            Action::VlanModify { tpid, vid } => {
                let (tpid, vid) = tag(*tpid, *vid);
                plain(into, 9, tpid, vid);
            }
            Action::Continue => plain(into, 10, 0, 0),
            Action::Pipe => plain(into, 11, 0, 0),
            Action::Jump(to) => plain(into, 12, 0, u32::from(*to)),
            Action::MirrorIngress(to) => plain(into, 13, 0, to.get()),
            Action::RedirectIngress(to) => plain(into, 14, 0, to.get()),
            Action::MirrorBlock { direction, block } => {
                plain(into, 15, *direction as u16, block.get());
            }
            Action::RedirectBlock { direction, block } => {
                plain(into, 16, *direction as u16, block.get());
            }
            Action::VlanPushPrio { tpid, vid, prio } => {
                let (tpid, vid) = tag(*tpid, *vid);
                plain(into, 17, tpid, u32::from(prio.get()) << 16 | vid);
            }
            Action::VlanModifyPrio { tpid, vid, prio } => {
                let (tpid, vid) = tag(*tpid, *vid);
                plain(into, 18, tpid, u32::from(prio.get()) << 16 | vid);
            }
            Action::EthPop => plain(into, 19, 0, 0),
            Action::EthPush { dst, src } => {
                plain(into, 20, 0, 0);
                into.write(&dst.0);
                into.write(&src.0);
            }
            Action::TunnelSet(key) => {
                plain(into, 21, 0, 0);
                key.digest(into);
            }
            Action::TunnelRelease => plain(into, 22, 0, 0),
            Action::Ct(ct) => {
                plain(into, 23, 0, 0);
                ct.digest(into);
            }
            Action::Police(police) => {
                plain(into, 24, 0, police.mtu);
                police.digest(into);
            }
            Action::SharedPolice(index) => plain(into, 25, 0, index.get()),
            Action::Pedit(pedit) => {
                plain(into, 26, 0, pedit.munges.len() as u32);
                for munge in &pedit.munges {
                    munge.digest(into);
                }
            }
            Action::Csum(of) => plain(into, 27, 0, u32::from(of.bits())),
            Action::SkbEdit(edit) => {
                plain(into, 28, 0, 0);
                edit.digest(into);
            }
            Action::Sample(sample) => {
                plain(into, 29, 0, sample.rate.get());
                into.write(&sample.group.to_be_bytes());
                into.write(&sample.truncated.map_or(0, NonZeroU32::get).to_be_bytes());
            }
            Action::Mpls(mpls) => {
                plain(into, 30, 0, 0);
                mpls.digest(into);
            }
            Action::Nat(nat) => {
                plain(into, 31, nat.direction as u16, u32::from(nat.prefix));
                into.write(&nat.old.octets());
                into.write(&nat.new.octets());
            }
        }
    }
}

impl fmt::Display for Action {
    /// As `tc` reads it after `action`; interfaces by index (`if7`), which `tc` understands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Drop => f.write_str("drop"),
            Action::Pass => f.write_str("pass"),
            Action::Trap => f.write_str("trap"),
            Action::Goto(chain) => write!(f, "goto chain {chain}"),
            Action::Mirror(to) => write!(f, "mirred egress mirror dev if{to} pipe"),
            Action::Redirect(to) => write!(f, "mirred egress redirect dev if{to}"),
            Action::VlanPush { tpid, vid } => {
                write!(f, "vlan push id {vid} protocol {tpid} priority 0 pipe")
            }
            Action::VlanPop => f.write_str("vlan pop pipe"),
            Action::VlanModify { tpid, vid } => {
                write!(f, "vlan modify id {vid} protocol {tpid} pipe")
            }
            Action::Continue => f.write_str("continue"),
            Action::Pipe => f.write_str("pipe"),
            Action::Jump(to) => write!(f, "jump {to}"),
            Action::MirrorIngress(to) => write!(f, "mirred ingress mirror dev if{to} pipe"),
            Action::RedirectIngress(to) => write!(f, "mirred ingress redirect dev if{to}"),
            Action::MirrorBlock { direction, block } => {
                write!(f, "mirred {direction} mirror blockid {block} pipe")
            }
            Action::RedirectBlock { direction, block } => {
                write!(f, "mirred {direction} redirect blockid {block}")
            }
            Action::VlanPushPrio { tpid, vid, prio } => {
                write!(f, "vlan push id {vid} protocol {tpid} priority {prio} pipe")
            }
            Action::VlanModifyPrio { tpid, vid, prio } => {
                write!(f, "vlan modify id {vid} protocol {tpid} priority {prio} pipe")
            }
            Action::EthPop => f.write_str("vlan pop_eth pipe"),
            Action::EthPush { dst, src } => {
                write!(f, "vlan push_eth dst_mac {dst} src_mac {src} pipe")
            }
            Action::TunnelSet(key) => write!(f, "tunnel_key set {key} pipe"),
            Action::TunnelRelease => f.write_str("tunnel_key unset pipe"),
            Action::Ct(ct) => write!(f, "{ct} pipe"),
            Action::Police(police) => write!(f, "{police}"),
            Action::SharedPolice(index) => write!(f, "police index {index}"),
            Action::Pedit(pedit) => write!(f, "pedit ex {pedit} pipe"),
            Action::Csum(of) => write!(f, "csum {of} pipe"),
            Action::SkbEdit(edit) => write!(f, "skbedit {edit} pipe"),
            Action::Sample(sample) => write!(f, "sample {sample} pipe"),
            Action::Mpls(mpls) => write!(f, "mpls {mpls} pipe"),
            Action::Nat(nat) => write!(f, "nat {nat} pipe"),
        }
    }
}

macro_rules! boxed_action {
    ($($kind:ident => $variant:ident),*) => {
        $(impl From<$kind> for Action {
            fn from(from: $kind) -> Action {
                Action::$variant(Arc::new(from))
            }
        })*
    };
}

boxed_action!(
    TunnelKey => TunnelSet,
    Ct => Ct,
    Police => Police,
    Pedit => Pedit,
    SkbEdit => SkbEdit,
    Mpls => Mpls
);

// ---------------------------------------------------------------- tunnel_key

/// How a frame shall be wrapped by the tunnel interface that it leaves through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelKey {
    pub(crate) ends: TunnelEnds,
    pub(crate) id: Option<u32>,
    pub(crate) dst_port: u16,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) csum: bool,
    pub(crate) no_frag: bool,
    pub(crate) options: TunnelData,
}

/// Both ends of a tunnel, of one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelEnds {
    /// Over IPv4.
    V4 {
        /// The outer source address.
        src: Ipv4Addr,
        /// The outer destination address.
        dst: Ipv4Addr,
    },
    /// Over IPv6.
    V6 {
        /// The outer source address.
        src: Ipv6Addr,
        /// The outer destination address.
        dst: Ipv6Addr,
    },
}

/// What a tunnel header carries besides its identifier.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelData {
    /// Nothing.
    #[default]
    None,
    /// Geneve options, in this order.
    Geneve(GeneveTlvs),
    /// VXLAN's group policy.
    Vxlan(VxlanGbp),
    /// ERSPAN's header.
    Erspan(Erspan),
}

/// One Geneve option (RFC 8926, section 3.5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GeneveTlv {
    pub(crate) class: u16,
    pub(crate) kind: u8,
    pub(crate) data: Box<[u8]>,
}

impl GeneveTlv {
    /// The option, or `None` where its data are not 4 to 124 bytes in whole words
    /// (`tunnel_key_copy_geneve_opt`, net/sched/act_tunnel_key.c).
    pub fn new(class: u16, kind: u8, data: &[u8]) -> Option<GeneveTlv> {
        let fits = (4..=124).contains(&data.len()) && data.len().is_multiple_of(4);
        fits.then(|| GeneveTlv { class, kind, data: data.into() })
    }
}

/// One or more Geneve options.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GeneveTlvs(pub(crate) Box<[GeneveTlv]>);

impl GeneveTlvs {
    /// The options, or `None` where there is none, or where they need more than the 255 bytes that
    /// the kernel keeps (`IP_TUNNEL_OPTS_MAX`, include/net/ip_tunnels.h).
    pub fn new(options: impl Into<Box<[GeneveTlv]>>) -> Option<GeneveTlvs> {
        let options = options.into();
        let bytes: usize = options.iter().map(|option| 4 + option.data.len()).sum();
        (1..=255).contains(&bytes).then_some(GeneveTlvs(options))
    }
}

/// VXLAN group based policy: group, and the bits "don't learn" and "policy applied".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VxlanGbp(u32);

impl VxlanGbp {
    /// `VXLAN_GBP_MASK` of include/net/vxlan.h.
    const MASK: u32 = 1 << 22 | 1 << 19 | 0xffff;

    /// The policy, or `None` where other bits are set.
    pub const fn new(gbp: u32) -> Option<VxlanGbp> {
        if gbp & !VxlanGbp::MASK == 0 { Some(VxlanGbp(gbp)) } else { None }
    }

    /// The bits.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What an ERSPAN header carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Erspan {
    /// Version 1 (type II).
    V1 {
        /// Port index.
        index: u32,
    },
    /// Version 2 (type III).
    V2 {
        /// Whether the mirrored frame was sent rather than received.
        egress: bool,
        /// Hardware identifier.
        hwid: ErspanHwid,
    },
}

/// An ERSPAN hardware identifier: 6 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErspanHwid(u8);

impl ErspanHwid {
    /// The identifier, or `None` above 63.
    pub const fn new(hwid: u8) -> Option<ErspanHwid> {
        if hwid < 64 { Some(ErspanHwid(hwid)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TunnelKey {
    /// A header between these ends, with a checksum and without identifier, port and options.
    pub const fn new(ends: TunnelEnds) -> TunnelKey {
        TunnelKey {
            ends,
            id: None,
            dst_port: 0,
            tos: 0,
            ttl: 0,
            csum: true,
            no_frag: false,
            options: TunnelData::None,
        }
    }

    /// Over IPv4.
    pub const fn v4(src: Ipv4Addr, dst: Ipv4Addr) -> TunnelKey {
        TunnelKey::new(TunnelEnds::V4 { src, dst })
    }

    /// Over IPv6.
    pub const fn v6(src: Ipv6Addr, dst: Ipv6Addr) -> TunnelKey {
        TunnelKey::new(TunnelEnds::V6 { src, dst })
    }

    /// With this identifier (VNI, GRE key).
    #[must_use]
    pub fn id(self, id: u32) -> TunnelKey {
        TunnelKey { id: Some(id), ..self }
    }

    /// To this UDP port; 0 is the tunnel interface's own.
    #[must_use]
    pub fn dst_port(self, dst_port: u16) -> TunnelKey {
        TunnelKey { dst_port, ..self }
    }

    /// With this type of service; 0 is the tunnel interface's own.
    #[must_use]
    pub fn tos(self, tos: u8) -> TunnelKey {
        TunnelKey { tos, ..self }
    }

    /// With this time to live; 0 is the tunnel interface's own.
    #[must_use]
    pub fn ttl(self, ttl: u8) -> TunnelKey {
        TunnelKey { ttl, ..self }
    }

    /// Without an outer checksum.
    #[must_use]
    pub fn no_csum(self) -> TunnelKey {
        TunnelKey { csum: false, ..self }
    }

    /// Never fragmented on the way.
    #[must_use]
    pub fn no_frag(self) -> TunnelKey {
        TunnelKey { no_frag: true, ..self }
    }

    /// With these options.
    #[must_use]
    pub fn options(self, options: TunnelData) -> TunnelKey {
        TunnelKey { options, ..self }
    }

    fn digest(&self, into: &mut Fnv1a) {
        let mut address = |address: IpAddr| match address {
            IpAddr::V4(address) => into.write(&address.octets()),
            IpAddr::V6(address) => into.write(&address.octets()),
        };
        let (family, src, dst) = match self.ends {
            TunnelEnds::V4 { src, dst } => (4, IpAddr::from(src), IpAddr::from(dst)),
            TunnelEnds::V6 { src, dst } => (6, IpAddr::from(src), IpAddr::from(dst)),
        };
        address(src);
        address(dst);
        into.write(&[family, u8::from(self.id.is_some())]);
        into.write(&self.id.unwrap_or(0).to_be_bytes());
        into.write(&self.dst_port.to_be_bytes());
        into.write(&[self.tos, self.ttl, u8::from(self.csum), u8::from(self.no_frag)]);
        match &self.options {
            TunnelData::None => into.write(&[0]),
            TunnelData::Geneve(options) => {
                into.write(&[1, options.0.len() as u8]);
                for option in &options.0 {
                    into.write(&option.class.to_be_bytes());
                    into.write(&[option.kind, option.data.len() as u8]);
                    into.write(&option.data);
                }
            }
            TunnelData::Vxlan(gbp) => {
                into.write(&[2]);
                into.write(&gbp.0.to_be_bytes());
            }
            TunnelData::Erspan(Erspan::V1 { index }) => {
                into.write(&[3]);
                into.write(&index.to_be_bytes());
            }
            TunnelData::Erspan(Erspan::V2 { egress, hwid }) => {
                into.write(&[4, u8::from(*egress), hwid.0]);
            }
        }
    }
}

impl fmt::Display for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ends {
            TunnelEnds::V4 { src, dst } => write!(f, "src_ip {src} dst_ip {dst}")?,
            TunnelEnds::V6 { src, dst } => write!(f, "src_ip {src} dst_ip {dst}")?,
        }
        if let Some(id) = self.id {
            write!(f, " id {id}")?;
        }
        for (name, number) in [
            ("dst_port", self.dst_port),
            ("tos", u16::from(self.tos)),
            ("ttl", u16::from(self.ttl)),
        ] {
            if number != 0 {
                write!(f, " {name} {number}")?;
            }
        }
        match &self.options {
            TunnelData::None => {}
            TunnelData::Geneve(options) => {
                for (at, option) in options.0.iter().enumerate() {
                    f.write_str(if at == 0 { " geneve_opts " } else { "," })?;
                    write!(f, "{:04x}:{:02x}:", option.class, option.kind)?;
                    fmt_hex(&option.data, f)?;
                }
            }
            TunnelData::Vxlan(gbp) => write!(f, " vxlan_opts {}", gbp.0)?,
            TunnelData::Erspan(Erspan::V1 { index }) => {
                write!(f, " erspan_opts 1:{index}:0:0")?;
            }
            TunnelData::Erspan(Erspan::V2 { egress, hwid }) => {
                write!(f, " erspan_opts 2:0:{}:{}", u8::from(*egress), hwid.0)?;
            }
        }
        f.write_str(if self.csum { " csum" } else { " nocsum" })?;
        f.write_str(if self.no_frag { " nofrag" } else { "" })
    }
}

pub(crate) fn fmt_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

// ---------------------------------------------------------------- ct

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

    /// What it is called: `ftp`, …
    pub(crate) fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.len)]
    }
}

impl Ct {
    fn digest(&self, into: &mut Fnv1a) {
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
            let family = if helper.ipv6 { "ipv6" } else { "ipv4" };
            let proto = if helper.udp { "udp" } else { "tcp" };
            write!(f, " helper {family}-{proto}-{}", helper.name().escape_ascii())?;
        }
        Ok(())
    }
}

// ---------------------------------------------------------------- police

/// What becomes of a frame where an action has more than one way on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Control {
    /// To the host's own stack (`ok`).
    Pass,
    /// The frame ends here.
    Drop,
    /// The next action.
    Pipe,
    /// The next rule that matches.
    Continue,
    /// The action at this place of the list, as [`Action::Jump`].
    Jump(u8),
    /// The rules of this chain.
    Goto(ChainId),
}

impl Control {
    const fn jump(self) -> Option<u8> {
        match self {
            Control::Jump(to) => Some(to),
            _ => None,
        }
    }

    fn digest(self, into: &mut Fnv1a) {
        let (kind, number) = match self {
            Control::Pass => (1u8, 0),
            Control::Drop => (2, 0),
            Control::Pipe => (3, 0),
            Control::Continue => (4, 0),
            Control::Jump(to) => (5, u32::from(to)),
            Control::Goto(chain) => (6, chain.get()),
        };
        into.write(&[kind]);
        into.write(&number.to_be_bytes());
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Control::Pass => f.write_str("ok"),
            Control::Drop => f.write_str("drop"),
            Control::Pipe => f.write_str("pipe"),
            Control::Continue => f.write_str("continue"),
            Control::Jump(to) => write!(f, "jump {to}"),
            Control::Goto(chain) => write!(f, "goto chain {chain}"),
        }
    }
}

/// How much a policer lets pass, and what becomes of the rest. Unless told otherwise what exceeds
/// is dropped and what conforms goes on with the next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Police {
    pub(crate) limit: PoliceLimit,
    pub(crate) mtu: u32,
    pub(crate) exceed: Control,
    pub(crate) conform: Control,
}

/// What a policer counts. Bursts in ticks, as the kernel keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PoliceLimit {
    Bytes { rate: NonZeroU64, burst: u32, peak: Option<NonZeroU64> },
    Packets { rate: NonZeroU64, burst: u32 },
    Size,
}

/// What the kernel takes as the largest frame where none is named: with a rate in bytes by the
/// cell size that `tc` then chooses (255 << 3), else any.
pub(crate) const POLICE_MTU_BYTES: u32 = 2040;
const POLICE_MTU_ANY: u32 = u32::MAX;

/// Ticks of the packet scheduler in a microsecond: each has 64 ns (`PSCHED_SHIFT`,
/// include/net/pkt_sched.h), as /proc/net/psched tells `tc`.
const TICKS_PER_MICROSECOND: f64 = 1000.0 / 64.0;

/// The time that so much takes at this rate, computed with the same roundings as `tc_calc_xmittime`
/// of tc/tc_core.c, so that a printed rule read by `tc` is the same rule.
fn ticks(rate: NonZeroU64, amount: u64) -> Option<u32> {
    let micros = 1_000_000.0 * (amount as f64 / rate.get() as f64);
    let ticks = (micros * TICKS_PER_MICROSECOND).ceil();
    (1.0..f64::from(u32::MAX)).contains(&ticks).then_some(ticks as u32)
}

/// How much the rate lets through in that time: an amount whose [`ticks`] they are, if there is
/// one.
fn amount(rate: NonZeroU64, burst: u32) -> u64 {
    let exact = u128::from(rate.get()) * u128::from(burst) / 15_625_000;
    let about = u64::try_from(exact).unwrap_or(u64::MAX);
    let near = [about, about.saturating_sub(1), about.saturating_add(1)];
    near.into_iter().find(|amount| ticks(rate, *amount) == Some(burst)).unwrap_or(about)
}

impl Police {
    const fn new(limit: PoliceLimit, mtu: u32) -> Police {
        Police { limit, mtu, exceed: Control::Drop, conform: Control::Pipe }
    }

    /// So many bytes a second and a burst of so many bytes; `None` where either is 0, or where the
    /// burst takes longer than the 275 seconds that the kernel can note.
    pub fn bytes(rate: u64, burst: u64) -> Option<Police> {
        let rate = NonZeroU64::new(rate)?;
        let limit = PoliceLimit::Bytes { rate, burst: ticks(rate, burst)?, peak: None };
        Some(Police::new(limit, POLICE_MTU_BYTES))
    }

    /// So many packets a second and a burst of so many; `None` as for [`Police::bytes`].
    pub fn packets(rate: u64, burst: u64) -> Option<Police> {
        let rate = NonZeroU64::new(rate)?;
        let limit = PoliceLimit::Packets { rate, burst: ticks(rate, burst)? };
        Some(Police::new(limit, POLICE_MTU_ANY))
    }

    /// Frames of so many bytes and no more; `None` for 0.
    pub const fn size(mtu: u32) -> Option<Police> {
        if mtu == 0 { None } else { Some(Police::new(PoliceLimit::Size, mtu)) }
    }

    /// And no frame of more than so many bytes; `None` for 0, and for less than 256 beside a rate
    /// in bytes (`tc` has no cell size for it, and the kernel wants one).
    #[must_use]
    pub const fn mtu(self, mtu: u32) -> Option<Police> {
        let bytes = matches!(self.limit, PoliceLimit::Bytes { .. });
        if mtu == 0 || bytes && mtu < 256 { None } else { Some(Police { mtu, ..self }) }
    }

    /// And at no moment more than so many bytes a second; `None` for 0, and where the limit is not
    /// in bytes.
    #[must_use]
    pub fn peak(self, rate: u64) -> Option<Police> {
        let PoliceLimit::Bytes { rate: of, burst, .. } = self.limit else { return None };
        let peak = Some(NonZeroU64::new(rate)?);
        Some(Police { limit: PoliceLimit::Bytes { rate: of, burst, peak }, ..self })
    }

    /// What becomes of what exceeds.
    #[must_use]
    pub const fn exceed(self, exceed: Control) -> Police {
        Police { exceed, ..self }
    }

    /// What becomes of what conforms; `None` for a goto, which the kernel refuses there.
    #[must_use]
    pub const fn conform(self, conform: Control) -> Option<Police> {
        match conform {
            Control::Goto(_) => None,
            _ => Some(Police { conform, ..self }),
        }
    }

    /// The policer that a kernel shows, or `None` where this type has no word for it.
    pub(crate) fn from_parts(limit: PoliceLimit, mtu: u32, exceed: Control) -> Option<Police> {
        let (PoliceLimit::Bytes { burst, .. } | PoliceLimit::Packets { burst, .. }) = limit else {
            return Police::size(mtu).map(|police| police.exceed(exceed));
        };
        if burst == 0 {
            return None;
        }
        Police::new(limit, 1).mtu(mtu).map(|police| police.exceed(exceed))
    }

    fn digest(&self, into: &mut Fnv1a) {
        let (kind, rate, burst, peak) = match self.limit {
            PoliceLimit::Bytes { rate, burst, peak } => {
                (1u8, rate.get(), burst, peak.map_or(0, NonZeroU64::get))
            }
            PoliceLimit::Packets { rate, burst } => (2, rate.get(), burst, 0),
            PoliceLimit::Size => (3, 0, 0, 0),
        };
        into.write(&[kind]);
        into.write(&rate.to_be_bytes());
        into.write(&burst.to_be_bytes());
        into.write(&peak.to_be_bytes());
        self.exceed.digest(into);
        self.conform.digest(into);
    }
}

impl fmt::Display for Police {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("police")?;
        let mut usual = None;
        match self.limit {
            PoliceLimit::Bytes { rate, burst, peak } => {
                write!(f, " rate {rate}bps burst {}", amount(rate, burst))?;
                if let Some(peak) = peak {
                    write!(f, " peakrate {peak}bps")?;
                } else {
                    usual = Some(POLICE_MTU_BYTES);
                }
            }
            PoliceLimit::Packets { rate, burst } => {
                write!(f, " pkts_rate {rate} pkts_burst {}", amount(rate, burst))?;
                usual = Some(POLICE_MTU_ANY);
            }
            PoliceLimit::Size => {}
        }
        if usual != Some(self.mtu) {
            write!(f, " mtu {}", self.mtu)?;
        }
        // Only plain words stand around a slash without spaces.
        let plain = |control| !matches!(control, Control::Jump(_) | Control::Goto(_));
        let space = if plain(self.exceed) && plain(self.conform) { "" } else { " " };
        write!(f, " conform-exceed {}{space}/{space}{}", self.exceed, self.conform)
    }
}

/// The index of a policer that rules share. Indexes below [`PoliceIndex::FIRST`] are those that
/// the kernel gives to policers of one rule, from 1 upwards: so the index that a dump shows tells
/// the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoliceIndex(NonZeroU32);

impl PoliceIndex {
    /// The lowest.
    pub const FIRST: u32 = 1 << 30;

    /// The index, or `None` below [`PoliceIndex::FIRST`].
    pub const fn new(index: u32) -> Option<PoliceIndex> {
        match NonZeroU32::new(index) {
            Some(number) if index >= PoliceIndex::FIRST => Some(PoliceIndex(number)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for PoliceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// ---------------------------------------------------------------- pedit

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

    fn digest(&self, into: &mut Fnv1a) {
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

// ---------------------------------------------------------------- csum

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

// ---------------------------------------------------------------- skbedit

/// What the kernel shall note beside a frame: one thing at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SkbEdit {
    pub(crate) priority: Option<u32>,
    pub(crate) mark: Option<(u32, Option<u32>)>,
    pub(crate) queue: Option<u16>,
    pub(crate) packet_type: Option<PacketType>,
    pub(crate) inherit_dsfield: bool,
}

/// One thing that the kernel notes beside a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkbField {
    /// Its priority, or the class that it belongs to (major in the upper 16 bits).
    Priority(u32),
    /// Its mark.
    Mark(u32),
    /// Those bits of its mark.
    MarkMasked {
        /// The bits.
        mark: u32,
        /// Which of them count.
        mask: u32,
    },
    /// The queue that it leaves by; at an ingress hook in hardware only.
    Queue(u16),
    /// Whom it is meant for.
    PacketType(PacketType),
    /// Its priority, from the type of service of its IP header.
    InheritDsfield,
}

/// Whom a frame is meant for (`PACKET_*`, include/uapi/linux/if_packet.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum PacketType {
    /// This host.
    Host = 0,
    /// All.
    Broadcast = 1,
    /// A group.
    Multicast = 2,
    /// Somebody else.
    OtherHost = 3,
}

impl PacketType {
    pub(crate) const ALL: [PacketType; 4] =
        [PacketType::Host, PacketType::Broadcast, PacketType::Multicast, PacketType::OtherHost];
}

impl SkbEdit {
    /// This alone.
    pub const fn new(field: SkbField) -> SkbEdit {
        let none = SkbEdit {
            priority: None,
            mark: None,
            queue: None,
            packet_type: None,
            inherit_dsfield: false,
        };
        none.and(field)
    }

    /// This too, in the place of what was said of the same before.
    #[must_use]
    pub const fn and(self, field: SkbField) -> SkbEdit {
        match field {
            SkbField::Priority(priority) => SkbEdit { priority: Some(priority), ..self },
            SkbField::Mark(mark) => SkbEdit { mark: Some((mark, None)), ..self },
            SkbField::MarkMasked { mark, mask } => {
                SkbEdit { mark: Some((mark, Some(mask))), ..self }
            }
            SkbField::Queue(queue) => SkbEdit { queue: Some(queue), ..self },
            SkbField::PacketType(to) => SkbEdit { packet_type: Some(to), ..self },
            SkbField::InheritDsfield => SkbEdit { inherit_dsfield: true, ..self },
        }
    }

    fn digest(&self, into: &mut Fnv1a) {
        let mut optional = |number: Option<u32>| {
            into.write(&[u8::from(number.is_some())]);
            into.write(&number.unwrap_or(0).to_be_bytes());
        };
        optional(self.priority);
        optional(self.mark.map(|(mark, _)| mark));
        optional(self.mark.and_then(|(_, mask)| mask));
        optional(self.queue.map(u32::from));
        optional(self.packet_type.map(|to| to as u32));
        into.write(&[u8::from(self.inherit_dsfield)]);
    }
}

impl fmt::Display for SkbEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        let mut next = || std::mem::replace(&mut between, " ");
        if let Some(queue) = self.queue {
            write!(f, "{}queue_mapping {queue}", next())?;
        }
        if let Some(priority) = self.priority {
            write!(f, "{}priority {:x}:{:x}", next(), priority >> 16, priority & 0xffff)?;
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, "{}mark {mark:#x}", next())?;
            if let Some(mask) = mask {
                write!(f, "/{mask:#x}")?;
            }
        }
        if let Some(to) = self.packet_type {
            let name = match to {
                PacketType::Host => "host",
                PacketType::Broadcast => "broadcast",
                PacketType::Multicast => "multicast",
                PacketType::OtherHost => "otherhost",
            };
            write!(f, "{}ptype {name}", next())?;
        }
        if self.inherit_dsfield {
            write!(f, "{}inheritdsfield", next())?;
        }
        Ok(())
    }
}

// ---------------------------------------------------------------- sample

/// How often a frame is shown, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample {
    pub(crate) rate: NonZeroU32,
    pub(crate) group: u32,
    pub(crate) truncated: Option<NonZeroU32>,
}

impl Sample {
    /// One frame of so many, to the listeners of this psample group.
    pub const fn new(rate: NonZeroU32, group: u32) -> Sample {
        Sample { rate, group, truncated: None }
    }

    /// Of each frame only so many bytes.
    #[must_use]
    pub const fn truncated(self, bytes: NonZeroU32) -> Sample {
        Sample { truncated: Some(bytes), ..self }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rate {} group {}", self.rate, self.group)?;
        match self.truncated {
            Some(bytes) => write!(f, " trunc {bytes}"),
            None => Ok(()),
        }
    }
}

// ---------------------------------------------------------------- mpls

/// A change of a frame's MPLS label stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mpls {
    /// The outer label is taken off; what is left has this ethertype.
    Pop(EtherType),
    /// A label is put between the Ethernet header and the rest.
    Push(MplsPush),
    /// A label is put before the whole frame, Ethernet header and all.
    MacPush(MplsPush),
    /// Fields of the outer label are replaced.
    Modify(MplsModify),
    /// The outer label's time to live goes down by one; a frame at whose end it is is dropped.
    DecTtl,
}

/// The label that `tcf_mpls_init` in net/sched/act_mpls.c does not write.
const IMPLICIT_NULL: u32 = 3;

/// A new MPLS label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MplsPush {
    pub(crate) label: MplsLabel,
    pub(crate) ttl: NonZeroU8,
    pub(crate) class: Option<MplsTc>,
    pub(crate) bottom: Option<bool>,
    pub(crate) multicast: bool,
}

impl MplsPush {
    /// This label with this time to live, in a unicast frame; `None` for label 3, which is never
    /// on a wire (RFC 3032, section 2.1).
    pub fn new(label: MplsLabel, ttl: NonZeroU8) -> Option<MplsPush> {
        let push = MplsPush { label, ttl, class: None, bottom: None, multicast: false };
        (label.get() != IMPLICIT_NULL).then_some(push)
    }

    /// Of this traffic class; else 0.
    #[must_use]
    pub const fn class(self, class: MplsTc) -> MplsPush {
        MplsPush { class: Some(class), ..self }
    }

    /// At the bottom of the stack or not; else as the frame demands.
    #[must_use]
    pub const fn bottom(self, bottom: bool) -> MplsPush {
        MplsPush { bottom: Some(bottom), ..self }
    }

    /// With the ethertype of multicast MPLS (0x8848).
    #[must_use]
    pub const fn multicast(self) -> MplsPush {
        MplsPush { multicast: true, ..self }
    }
}

/// Fields of a label to replace: those that were named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MplsModify {
    pub(crate) label: Option<MplsLabel>,
    pub(crate) class: Option<MplsTc>,
    pub(crate) ttl: Option<NonZeroU8>,
    pub(crate) bottom: Option<bool>,
}

impl MplsModify {
    /// None.
    pub const fn new() -> MplsModify {
        MplsModify { label: None, class: None, ttl: None, bottom: None }
    }

    /// This label; `None` for label 3, as for [`MplsPush::new`].
    #[must_use]
    pub fn label(self, label: MplsLabel) -> Option<MplsModify> {
        let modify = MplsModify { label: Some(label), ..self };
        (label.get() != IMPLICIT_NULL).then_some(modify)
    }

    /// This traffic class.
    #[must_use]
    pub const fn class(self, class: MplsTc) -> MplsModify {
        MplsModify { class: Some(class), ..self }
    }

    /// This time to live.
    #[must_use]
    pub const fn ttl(self, ttl: NonZeroU8) -> MplsModify {
        MplsModify { ttl: Some(ttl), ..self }
    }

    /// At the bottom of the stack or not.
    #[must_use]
    pub const fn bottom(self, bottom: bool) -> MplsModify {
        MplsModify { bottom: Some(bottom), ..self }
    }
}

impl Mpls {
    fn digest(&self, into: &mut Fnv1a) {
        let push = |push: &MplsPush| {
            let MplsPush { label, ttl, class, bottom, multicast } = *push;
            (MplsModify { label: Some(label), class, ttl: Some(ttl), bottom }, multicast)
        };
        let (kind, (fields, multicast)) = match self {
            Mpls::Pop(ethertype) => {
                into.write(&[1]);
                return into.write(&ethertype.get().to_be_bytes());
            }
            Mpls::Push(new) => (2, push(new)),
            Mpls::MacPush(new) => (3, push(new)),
            Mpls::Modify(fields) => (4, (*fields, false)),
            Mpls::DecTtl => (5, Default::default()),
        };
        into.write(&[kind, u8::from(multicast)]);
        // All ones are no value of any of them.
        into.write(&fields.label.map_or(u32::MAX, MplsLabel::get).to_be_bytes());
        into.write(&[
            fields.class.map_or(u8::MAX, MplsTc::get),
            fields.ttl.map_or(0, NonZeroU8::get),
            fields.bottom.map_or(u8::MAX, u8::from),
        ]);
    }
}

impl fmt::Display for Mpls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let push = |name: &str, push: &MplsPush, f: &mut fmt::Formatter<'_>| {
            let proto = if push.multicast { "mpls_mc" } else { "mpls_uc" };
            write!(f, "{name} protocol {proto} label {}", push.label)?;
            fmt_label_rest(push.class, Some(push.ttl), push.bottom, f)
        };
        match self {
            Mpls::Pop(ethertype) => write!(f, "pop protocol {ethertype}"),
            Mpls::Push(new) => push("push", new, f),
            Mpls::MacPush(new) => push("mac_push", new, f),
            Mpls::Modify(MplsModify { label, class, ttl, bottom }) => {
                f.write_str("modify")?;
                if let Some(label) = label {
                    write!(f, " label {}", label)?;
                }
                fmt_label_rest(*class, *ttl, *bottom, f)
            }
            Mpls::DecTtl => f.write_str("dec_ttl"),
        }
    }
}

fn fmt_label_rest(
    class: Option<MplsTc>,
    ttl: Option<NonZeroU8>,
    bottom: Option<bool>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    if let Some(class) = class {
        write!(f, " tc {class}")?;
    }
    if let Some(ttl) = ttl {
        write!(f, " ttl {ttl}")?;
    }
    if let Some(bottom) = bottom {
        write!(f, " bos {}", u8::from(bottom))?;
    }
    Ok(())
}

// ---------------------------------------------------------------- nat

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
