//! What a rule does with the frames that it matched, one step after the other.
//!
//! In come typed values under which an invalid combination cannot be written (a kind that needs
//! more than one has a room of its own); out goes [`Action`], which compares, hashes, prints as
//! `tc` reads it, and knows whether the next action of its rule can run after it. No netlink bytes
//! here, and no list of actions: that is a rule's.
//!
//! What each kind takes: `tcf_*_init` in net/sched/act_*.c and include/uapi/linux/tc_act/; its
//! syntax: tc/m_*.c of iproute2. Wherever `tc` lets a kind name how its rule goes on, the kinds
//! here go on with the next action (`pipe`): `drop`, `pass` and the others are actions themselves.

mod csum;
mod ct;
mod mpls;
mod nat;
mod pedit;
mod police;
mod sample;
mod skbedit;
mod tunnel;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

pub use csum::Checksums;
pub use ct::{Ct, CtCommit, CtHelper, CtNat, NatAddresses, NatEnd};
pub use mpls::{Mpls, MplsModify, MplsPush};
pub use nat::Nat;
pub use pedit::{Munge, Pedit, PeditField};
pub(crate) use pedit::{MungeKind, PEDIT_WORDS_MAX, PeditHeader, PeditWord};
pub(crate) use police::PoliceLimit;
pub use police::{Control, Police, PoliceIndex};
pub use sample::Sample;
pub use skbedit::{PacketType, SkbEdit, SkbField};
pub use tunnel::{
    Erspan, ErspanHwid, GeneveTlv, GeneveTlvs, TunnelData, TunnelEnds, TunnelKey, VxlanGbp,
};

use crate::ident::{BlockId, ChainId, Direction, Ifindex, Mac, VlanId, VlanTpid};
use crate::key::VlanPrio;
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
    /// A rate is enforced that other rules use up too (`police index`): what exceeds is dropped,
    /// what conforms goes on.
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

    /// The same action, its connection helper asked for by IPv6, where it has one.
    pub(crate) fn with_ipv6_helper(&self) -> Action {
        match self {
            Action::Ct(ct) => match &**ct {
                Ct::Commit(commit @ CtCommit { helper: Some(helper), .. }) => {
                    Ct::Commit(commit.clone().helper(helper.over_ipv6())).into()
                }
                _ => self.clone(),
            },
            _ => self.clone(),
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

pub(crate) fn fmt_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
