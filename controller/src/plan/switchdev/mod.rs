//! Third stage, for adapters with representors: the flows of a complete L2 switch.
//!
//! Each representor's ingress hook, chain 0, in this order: link-local groups are dropped; double
//! tagged frames are dropped; each attachment's tag and source addresses lead to that attachment's
//! chain; all else is dropped. An attachment's chain drops what only routers and DHCP servers send,
//! knows every local address of its network, sends what is for one that several ports may have to
//! all of these, floods groups, and sends the rest to the promiscuous ports and the uplink or drops
//! it. The uplink's hook sends the tags that a network here owns to that network's chain and leaves
//! all other frames to the host.
//!
//! Three rules keep the program right on hardware as well as in software: at most one tag change a
//! rule, standing before its first receiver; overlapping rules never share a prio; chain numbers
//! rise along every path, and every chain that is led to ends in a rule that matches all.
//!
//! | room | what it does |
//! |---|---|
//! | `segment` | a network's part of one adapter, and what of it must be written anew |
//! | `rules` | the rules of a part |
//! | `fused` | those beside them for hardware without chains |
//! | `source` | what a port may send from |
//! | `hardware` | what of the rules hardware may hold |
//! | `sheet` | keeps an adapter's program in step, part by part |

mod fused;
mod hardware;
mod rules;
mod segment;
mod sheet;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use api::{
    resources::{Attachment, EswitchMode, NetworkKind},
    types::{Id, MacAddr},
};
use tc_flows::{Hook, Ifindex, Rule, RuleSet};

pub use self::hardware::{Answer, Hardware};
pub(super) use self::sheet::{Sheet, Surroundings};
use super::Finding;
use crate::{
    capability::KERNEL,
    intent::Intent,
    world::{AdapterView, NetdevView},
};

/// Chains that belong to one network on one hook: its number times this, and those that follow.
const CHAINS_PER_NETWORK: u32 = 64;

/// Where in them the chains are over which unicast that no port owns is flooded: behind those of
/// the groups' flood.
const UNKNOWN_FLOOD: u32 = 32;

/// Highest network number whose chains fit into the 28 bits of a chain id
/// (`TC_ACT_EXT_VAL_MASK`, `include/uapi/linux/pkt_cls.h`).
pub const MAX_NETWORK_NUMBER: u32 = (1 << 28) / CHAINS_PER_NETWORK - 1;

/// How far one frame can be flooded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FloodRoom {
    /// Gotos that it may take: one of them is the admission.
    gotos: usize,
    /// Receivers of one rule: its actions less the tag change and the end.
    receivers: usize,
}

impl FloodRoom {
    /// As the adapter's ceilings say; the kernel's own where they are not known.
    fn of(adapter: &AdapterView) -> FloodRoom {
        let ceilings = adapter.capabilities.as_deref().map_or(KERNEL, |known| known.ceilings);
        let room = |most: u32| usize::try_from(most).unwrap_or(usize::MAX);
        FloodRoom {
            // As many chains as a network has for it.
            gotos: room(ceilings.gotos.min(UNKNOWN_FLOOD / 2)).max(1),
            receivers: room(ceilings.actions).saturating_sub(2).max(1),
        }
    }
}

/// All flows that an adapter should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowProgram {
    /// The rules, and why each is there.
    pub rules: RuleSet<Arc<Why>>,
    /// The netdevs whose ingress hooks the program covers, with or without rules.
    pub netdevs: BTreeMap<Ifindex, NetdevView>,
    /// Those of them whose egress hooks it covers, too.
    pub egress: BTreeSet<Ifindex>,
    /// The representors that carry a port: they are to be up.
    pub in_use: BTreeSet<NetdevView>,
    /// The hardware behind the hooks, where there is any.
    pub hardware: Option<Hardware>,
}

impl FlowProgram {
    /// The program that covers the hooks of an adapter and wants nothing there.
    pub(crate) fn without_rules(adapter: &AdapterView) -> FlowProgram {
        let netdevs = adapter.all_representors().chain(&adapter.uplink);
        let netdevs = netdevs.map(|netdev| (netdev.ifindex, netdev.clone())).collect();
        let policed = adapter.all_representors().filter(|_| polices(adapter));
        let egress = policed.map(|netdev| netdev.ifindex).collect();
        FlowProgram { netdevs, egress, ..FlowProgram::default() }
    }

    /// The hooks that the program covers, with or without rules.
    pub(crate) fn hooks(&self) -> impl Iterator<Item = Hook> {
        let egress = self.egress.iter().copied().map(Hook::egress);
        self.netdevs.keys().copied().map(Hook::ingress).chain(egress)
    }
}

/// Why a rule is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// What it does.
    pub purpose: Purpose,
    /// The port that is the reason for it.
    pub port: Option<Id>,
    /// The network that is the reason for it.
    pub network: Option<Id>,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Drops frames to link-local groups, which no bridge forwards (IEEE 802.1Q table 8-1).
    LinkLocalGuard,
    /// Drops frames with two tags: after the outer one is gone the inner would name a network.
    DoubleTagGuard,
    /// Drops tagged frames that no attachment admits.
    TagGuard,
    /// Admits a source address with a tag.
    Admission(MacAddr),
    /// Admits what a port may send to link-local groups.
    LinkLocal(MacAddr),
    /// Drops what comes from a source address of a port, but with addresses inside that are not its.
    SpoofGuard(MacAddr),
    /// Drops router advertisements of guests.
    RouterGuard,
    /// Drops what DHCP servers send, of guests.
    DhcpServerGuard,
    /// Drops what a port sends beyond its rate.
    Rate,
    /// Drops what a port is sent beyond its rate.
    ReceiveRate,
    /// Drops what a port floods beyond its limit.
    Storm,
    /// Drops frames to a port from which this one is kept.
    Isolation(MacAddr),
    /// Drops what nothing admitted.
    DefaultDrop,
    /// Sends frames to a local address to its port.
    Unicast(MacAddr),
    /// Sends frames to an address that several ports may have to all of them.
    SharedUnicast(MacAddr),
    /// Does that from chain 0 on, in hardware that has no other chain.
    FusedUnicast(MacAddr),
    /// Never returns a guest's own frame to it, nor sends it out.
    OwnAddressGuard(MacAddr),
    /// Sends groups to every member but the sender.
    Flood,
    /// Sends a group to those members that want it.
    GroupFlood(MacAddr),
    /// Decides about unicast that no port owns.
    UnknownUnicast,
    /// Leaves frames to the host.
    HostPass,
    /// Leads a network's frames from the uplink to its chain.
    FromUplink,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Purpose::LinkLocalGuard => f.write_str("link-local groups"),
            Purpose::DoubleTagGuard => f.write_str("double tagged"),
            Purpose::TagGuard => f.write_str("tag not attached"),
            Purpose::Admission(mac) => write!(f, "admission of {mac}"),
            Purpose::LinkLocal(mac) => write!(f, "link-local groups from {mac}"),
            Purpose::SpoofGuard(mac) => write!(f, "spoofed IP from {mac}"),
            Purpose::RouterGuard => f.write_str("router advertisements"),
            Purpose::DhcpServerGuard => f.write_str("DHCP server"),
            Purpose::Rate => f.write_str("rate"),
            Purpose::ReceiveRate => f.write_str("receive rate"),
            Purpose::Storm => f.write_str("storm"),
            Purpose::Isolation(mac) => write!(f, "isolated from {mac}"),
            Purpose::DefaultDrop => f.write_str("default drop"),
            Purpose::Unicast(mac) => write!(f, "unicast to {mac}"),
            Purpose::SharedUnicast(mac) => write!(f, "unicast to shared {mac}"),
            Purpose::FusedUnicast(mac) => write!(f, "unicast to {mac}, fused"),
            Purpose::OwnAddressGuard(mac) => write!(f, "own address {mac}"),
            Purpose::Flood => f.write_str("flood"),
            Purpose::GroupFlood(mac) => write!(f, "flood to {mac}"),
            Purpose::UnknownUnicast => f.write_str("unknown unicast"),
            Purpose::HostPass => f.write_str("pass to host"),
            Purpose::FromUplink => f.write_str("from uplink"),
        }
    }
}

/// A rule with the reason for it.
pub type Reasoned = (Rule, Arc<Why>);

/// What changed in a [`FlowProgram`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowDelta {
    /// Rules that are no longer wanted, not as they were.
    pub gone: Vec<Reasoned>,
    /// Rules that are wanted now; one in the place of another is in both lists.
    pub put: Vec<Reasoned>,
    /// Whether netdevs came, went or are used otherwise.
    pub netdevs: bool,
    /// Whether the hardware is known to be otherwise.
    pub hardware: bool,
}

/// Whether rates are kept by policers here: a rule that no hardware takes and that all frames meet
/// would leave nothing to hardware.
fn polices(adapter: &AdapterView) -> bool {
    adapter.mode == Some(EswitchMode::Software)
}

pub(super) fn network_missing(network: &Id) -> Finding {
    Finding::new(
        "NetworkMissing",
        format!("there is no network `{network}`; create it with PUT /v1/networks/{network}"),
    )
}

/// Why an attachment that keeps the guest's tags is none: in a flat network they would name VLANs on
/// the wire.
pub(super) fn qinq_without_vlan(intent: &Intent, attachment: &Attachment) -> Option<Finding> {
    let network = intent.networks.get(&attachment.network).filter(|_| attachment.qinq)?;
    (network.spec.kind == NetworkKind::Flat).then(|| {
        Finding::new(
            "QinqNeedsVlan",
            format!(
                "network `{}` is untagged on the wire, where the guest's tags would name other \
                 networks; leave `qinq` out, or use a VLAN network",
                attachment.network
            ),
        )
    })
}
