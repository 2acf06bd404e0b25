//! Third stage, for adapters with representors: the flows of a complete L2 switch.
//!
//! Each representor's ingress hook, chain 0, in this order: link-local groups are dropped; double
//! tagged frames are dropped; each attachment's tag and source addresses lead to that attachment's
//! chain; all else is dropped. An attachment's chain knows every local address of its network,
//! floods groups, and sends the rest to the promiscuous ports and the uplink or drops it. The uplink's hook sends the tags
//! that a network here owns to that network's chain and leaves all other frames to the host.
//!
//! Three rules keep the program right on hardware as well as in software: at most one tag change a
//! rule, standing before its first receiver; overlapping rules never share a prio; chain numbers
//! rise along every path, and every chain that is led to ends in a rule that matches all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use api::{
    resources::{AdminState, NetworkKind, NetworkSpec, UnknownUnicast, VlanProto},
    types::{Id, MacAddr},
};
use tc_flows::{
    Action, ChainId, Hook, Ifindex, Mac, Match, Prio, Rule, RuleId, RuleSet, VlanId, VlanTpid,
};

use super::{Finding, PortPlan};
use crate::{
    config::UplinkUse,
    intent::Intent,
    world::{AdapterView, NetdevView},
};

/// Chains that belong to one network on one hook: its number times this, and those that follow.
const CHAINS_PER_NETWORK: u32 = 64;

/// Where in them the chains are over which unicast that no port owns is flooded: behind those of
/// the groups' flood, which are at most [`MAX_GOTOS`].
const UNKNOWN_FLOOD: u32 = 32;

/// Highest network number whose chains fit into the 28 bits of a chain id
/// (`TC_ACT_EXT_VAL_MASK`, `include/uapi/linux/pkt_cls.h`).
pub const MAX_NETWORK_NUMBER: u32 = (1 << 28) / CHAINS_PER_NETWORK - 1;

/// Gotos that one frame may take (`max_reclassify_loop`, `net/sched/cls_api.c`): one of them is
/// the admission.
const MAX_GOTOS: usize = 16;

/// Receivers of one flood rule: 32 actions (`TCA_ACT_MAX_PRIO`) less the tag change and the end.
const RECEIVERS_PER_RULE: usize = 30;

/// All flows that an adapter should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowProgram {
    /// The rules.
    pub rules: RuleSet,
    /// Why each rule is there.
    pub why: BTreeMap<RuleId, Why>,
    /// The netdevs whose ingress hooks the program covers, with or without rules.
    pub netdevs: BTreeMap<Ifindex, NetdevView>,
    /// The representors that carry a port: they are to be up.
    pub in_use: BTreeSet<NetdevView>,
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
    /// Drops what nothing admitted.
    DefaultDrop,
    /// Sends frames to a local address to its port.
    Unicast(MacAddr),
    /// Never returns a guest's own frame to it, nor sends it out.
    OwnAddressGuard(MacAddr),
    /// Sends groups to every member but the sender.
    Flood,
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
            Purpose::DefaultDrop => f.write_str("default drop"),
            Purpose::Unicast(mac) => write!(f, "unicast to {mac}"),
            Purpose::OwnAddressGuard(mac) => write!(f, "own address {mac}"),
            Purpose::Flood => f.write_str("flood"),
            Purpose::UnknownUnicast => f.write_str("unknown unicast"),
            Purpose::HostPass => f.write_str("pass to host"),
            Purpose::FromUplink => f.write_str("from uplink"),
        }
    }
}

/// The outer tag of a frame.
type Tag = Option<(VlanTpid, VlanId)>;

/// A port's attachment to a network on this adapter.
struct Member<'a> {
    port: &'a Id,
    netdev: &'a NetdevView,
    tag: Tag,
    macs: &'a [MacAddr],
    /// Whether it gets what no port owns.
    promiscuous: bool,
}

/// A network on this adapter.
struct Segment<'a> {
    id: &'a Id,
    spec: &'a NetworkSpec,
    base: u32,
    uplink: Option<(&'a NetdevView, Tag)>,
    members: Vec<Member<'a>>,
}

/// Where a copy of a flooded frame goes, and how it is tagged there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Receiver {
    uplink: bool,
    tag: Tag,
    ifindex: Ifindex,
}

/// What becomes of a flooded frame after its last copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FloodEnd {
    Drop,
    ToHost,
}

/// Plans the flows of one adapter. What stands in the way of a port or a network is added to
/// `ports` and `networks`.
pub fn program(
    adapter_id: &Id,
    adapter: &AdapterView,
    uplink_use: UplinkUse,
    intent: &Intent,
    ports: &mut BTreeMap<Id, PortPlan>,
    networks: &mut BTreeMap<Id, Vec<Finding>>,
) -> FlowProgram {
    let mut unmet = Vec::new();
    let snapshot = ports.clone();
    let segments = segments(adapter_id, adapter, intent, &snapshot, &mut unmet, networks);
    for (port, finding) in unmet {
        if let Some(plan) = ports.get_mut(&port) {
            plan.unmet.push(finding);
        }
    }

    let mut out = Writer::default();
    let representors = adapter
        .representors
        .values()
        .chain(adapter.vfs.values().filter_map(|vf| vf.representor.as_ref()));
    for netdev in representors {
        out.netdev(netdev);
        representor_guards(&mut out, netdev);
    }
    for plan in snapshot.values() {
        if let Ok(place) = &plan.place
            && place.adapter == *adapter_id
            && let Some(netdev) = &place.representor
        {
            out.program.in_use.insert(netdev.clone());
        }
    }
    if let Some(uplink) = &adapter.uplink {
        out.netdev(uplink);
        uplink_entry(&mut out, uplink, uplink_use, &segments);
    }
    for segment in &segments {
        for sender in &segment.members {
            admission(&mut out, segment, sender);
            attachment_chain(&mut out, segment, sender);
        }
        if let Some((uplink, tag)) = segment.uplink {
            uplink_chain(&mut out, segment, uplink, tag, uplink_use);
        }
    }
    out.program
}

/// The networks that have members on this adapter, in order of number.
fn segments<'a>(
    adapter_id: &Id,
    adapter: &'a AdapterView,
    intent: &'a Intent,
    ports: &'a BTreeMap<Id, PortPlan>,
    unmet: &mut Vec<(Id, Finding)>,
    networks: &mut BTreeMap<Id, Vec<Finding>>,
) -> Vec<Segment<'a>> {
    let mut members: BTreeMap<&Id, Vec<Member<'a>>> = BTreeMap::new();
    let mut in_order: Vec<_> = intent.ports.iter().collect();
    in_order.sort_by_key(|(id, port)| (port.created, *id));
    for (id, port) in in_order {
        let Some(plan) = ports.get(id) else { continue };
        let Ok(place) = &plan.place else { continue };
        let Some(netdev) = &place.representor else { continue };
        if place.adapter != *adapter_id
            || port.spec.admin_state == AdminState::Down
            || plan.macs.is_empty()
        {
            continue;
        }
        for attachment in &port.spec.attachments {
            let Some(network) = intent.networks.get(&attachment.network) else {
                unmet.push((id.clone(), network_missing(&attachment.network)));
                continue;
            };
            if let Some(bound_to) = &network.spec.adapter
                && bound_to != adapter_id
            {
                unmet.push((
                    id.clone(),
                    Finding::new(
                        "NetworkElsewhere",
                        format!(
                            "network `{}` is for adapter `{bound_to}`, the port stands on \
                             `{adapter_id}`",
                            attachment.network
                        ),
                    ),
                ));
                continue;
            }
            let tag = attachment.tag.and_then(|vid| Some((VlanTpid::Dot1Q, vlan_id(vid.get())?)));
            members.entry(&attachment.network).or_default().push(Member {
                port: id,
                netdev,
                tag,
                macs: &plan.macs,
                promiscuous: plan.promiscuous,
            });
        }
    }

    let mut segments: Vec<Segment<'a>> = Vec::new();
    let mut in_order: Vec<_> = intent.networks.iter().collect();
    in_order.sort_by_key(|(id, network)| (network.number, *id));
    let mut owners: BTreeMap<Tag, &Id> = BTreeMap::new();
    for (id, network) in in_order {
        let Some(members) = members.remove(id) else { continue };
        let uplink = match (&network.spec.kind, &adapter.uplink) {
            (NetworkKind::Isolated, _) | (_, None) => None,
            (NetworkKind::Flat, Some(uplink)) => Some((uplink, None)),
            (NetworkKind::Vlan(tag), Some(uplink)) => {
                vlan_id(tag.vid.get()).map(|vid| (uplink, Some((tpid(tag.proto), vid))))
            }
        };
        if let Some((_, tag)) = uplink
            && let Some(first) = owners.insert(tag, id)
        {
            owners.insert(tag, first);
            let finding = Finding::new(
                "UplinkTagTaken",
                format!(
                    "network `{first}` is on the uplink of `{adapter_id}` in the same way; give \
                     one of the two another VLAN"
                ),
            );
            unmet.extend(members.iter().map(|m| (m.port.clone(), finding.clone())));
            networks.entry(id.clone()).or_default().push(finding);
            continue;
        }
        let mut segment = Segment {
            id,
            spec: &network.spec,
            base: network.number * CHAINS_PER_NETWORK,
            uplink,
            members,
        };
        for member in segment.cut_to_ceiling() {
            unmet.push((
                member.port.clone(),
                Finding::new(
                    "FloodCeiling",
                    format!(
                        "network `{id}` has more members than one frame can be flooded to \
                         ({MAX_GOTOS} gotos of {RECEIVERS_PER_RULE} receivers); use a second network"
                    ),
                ),
            ));
        }
        segments.push(segment);
    }
    segments
}

pub(super) fn network_missing(network: &Id) -> Finding {
    Finding::new(
        "NetworkMissing",
        format!("there is no network `{network}`; create it with PUT /v1/networks/{network}"),
    )
}

impl<'a> Segment<'a> {
    /// Everybody who gets a copy of a group frame that came in at `from`.
    fn receivers(&self, from: Hook) -> Vec<Receiver> {
        self.receivers_among(from, true, |_| true)
    }

    /// Everybody who gets a copy of a frame to an address that no port owns, that came in at
    /// `from`: some of those who get a group frame, so that no flood of these is longer.
    fn receivers_of_unknown(&self, from: Hook) -> Vec<Receiver> {
        let uplink = self.spec.unknown_unicast == UnknownUnicast::Uplink;
        self.receivers_among(from, uplink, |member| member.promiscuous)
    }

    fn receivers_among(
        &self,
        from: Hook,
        uplink: bool,
        gets_it: impl Fn(&Member<'_>) -> bool,
    ) -> Vec<Receiver> {
        let members = self.members.iter().filter(|member| gets_it(member)).map(|member| Receiver {
            uplink: false,
            tag: member.tag,
            ifindex: member.netdev.ifindex,
        });
        let uplink = self.uplink.filter(|_| uplink).map(|(netdev, tag)| Receiver {
            uplink: true,
            tag,
            ifindex: netdev.ifindex,
        });
        members.chain(uplink).filter(|receiver| Some(receiver.ifindex) != from.ifindex()).collect()
    }

    /// Takes out the last members, in order of creation, until a flood from anywhere fits.
    fn cut_to_ceiling(&mut self) -> Vec<Member<'a>> {
        let mut cut = Vec::new();
        while self.longest_flood() > MAX_GOTOS {
            match self.members.pop() {
                Some(member) => cut.push(member),
                None => break,
            }
        }
        cut
    }

    /// Gotos of the longest flood, the admission's among them.
    fn longest_flood(&self) -> usize {
        // A sender's own tag decides how many rewrites its flood takes: one sender of each is enough.
        let mut seen = BTreeSet::new();
        let members = self.members.iter().map(|m| (m.netdev.ifindex, m.tag));
        let uplink = self.uplink.map(|(netdev, tag)| (netdev.ifindex, tag));
        members
            .chain(uplink)
            .filter(|(_, tag)| seen.insert(*tag))
            .map(|(from, tag)| {
                flood_steps(tag, self.receivers(Hook::ingress(from)), FloodEnd::ToHost).len()
            })
            .max()
            .unwrap_or(0)
    }
}

/// What every representor holds, with or without a port.
fn representor_guards(out: &mut Writer, netdev: &NetdevView) {
    let why = |purpose| Why { purpose, port: None, network: None };
    let hook = Hook::ingress(netdev.ifindex);
    out.add(
        hook,
        0,
        1,
        Match::any().dst_masked(
            Mac([0x01, 0x80, 0xc2, 0, 0, 0]),
            Mac([0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]),
        ),
        vec![Action::Drop],
        why(Purpose::LinkLocalGuard),
    );
    for inner in [VlanTpid::Dot1Q, VlanTpid::Dot1Ad] {
        let matched = Match::double_tagged(VlanTpid::Dot1Q, None, inner);
        out.add(hook, 0, 2, matched, vec![Action::Drop], why(Purpose::DoubleTagGuard));
    }
    for (prio, tpid) in [(4, VlanTpid::Dot1Q), (5, VlanTpid::Dot1Ad)] {
        out.add(hook, 0, prio, Match::tagged(tpid), vec![Action::Drop], why(Purpose::TagGuard));
    }
    out.add(hook, 0, 7, Match::any(), vec![Action::Drop], why(Purpose::DefaultDrop));
}

/// Leads what `sender` may send into its attachment's chain.
fn admission(out: &mut Writer, segment: &Segment<'_>, sender: &Member<'_>) {
    let hook = Hook::ingress(sender.netdev.ifindex);
    let Some(chain) = ChainId::new(segment.base) else { return };
    for mac in sender.macs {
        let why = || segment.why(Purpose::Admission(*mac), Some(sender.port));
        match sender.tag {
            Some((tpid, vid)) => {
                let matched = Match::vlan(tpid, vid).src(wire(*mac));
                out.add(hook, 0, 3, matched, vec![Action::Goto(chain)], why());
            }
            None => {
                let matched = Match::any().src(wire(*mac));
                out.add(hook, 0, 6, matched, vec![Action::Goto(chain)], why());
                // A priority tag (VID 0) is no VLAN (IEEE 802.1Q, 6.9).
                if let Some(none) = vlan_id(0) {
                    let matched = Match::vlan(VlanTpid::Dot1Q, none).src(wire(*mac));
                    out.add(hook, 0, 3, matched, vec![Action::VlanPop, Action::Goto(chain)], why());
                }
            }
        }
    }
}

/// Forwards what `sender` was admitted with.
fn attachment_chain(out: &mut Writer, segment: &Segment<'_>, sender: &Member<'_>) {
    let hook = Hook::ingress(sender.netdev.ifindex);
    if !segment.receivers_of_unknown(hook).is_empty() {
        for mac in sender.macs {
            out.add(
                hook,
                segment.base,
                1,
                Match::any().dst(wire(*mac)),
                vec![Action::Drop],
                segment.why(Purpose::OwnAddressGuard(*mac), Some(sender.port)),
            );
        }
    }
    segment.unicast(out, hook, sender.tag);
    segment.flood(out, hook, sender.tag, FloodEnd::Drop);
    segment.flood_unknown(out, hook, sender.tag, FloodEnd::Drop);
}

/// The uplink's chain 0: what belongs to a network here goes to its chain, the rest is the host's.
fn uplink_entry(
    out: &mut Writer,
    uplink: &NetdevView,
    uplink_use: UplinkUse,
    segments: &[Segment<'_>],
) {
    let hook = Hook::ingress(uplink.ifindex);
    let owned: Vec<(&Segment<'_>, Tag)> =
        segments.iter().filter_map(|s| s.uplink.map(|(_, tag)| (s, tag))).collect();
    let host = |purpose| Why { purpose, port: None, network: None };
    if let (UplinkUse::Shared, Some(mac), false) = (uplink_use, uplink.mac, owned.is_empty()) {
        out.add(
            hook,
            0,
            1,
            Match::any().dst(wire(mac)),
            vec![Action::Pass],
            host(Purpose::HostPass),
        );
    }
    for (segment, tag) in owned {
        let Some(chain) = ChainId::new(segment.base) else { continue };
        let why = || segment.why(Purpose::FromUplink, None);
        if let Some((tpid, vid)) = tag {
            let prio = if tpid == VlanTpid::Dot1Q { 3 } else { 4 };
            out.add(hook, 0, prio, Match::vlan(tpid, vid), vec![Action::Goto(chain)], why());
            continue;
        }
        if let Some(none) = vlan_id(0) {
            // With the priority tag gone, a second tag would stand for a VLAN.
            for inner in [VlanTpid::Dot1Q, VlanTpid::Dot1Ad] {
                let matched = Match::double_tagged(VlanTpid::Dot1Q, Some(none), inner);
                out.add(hook, 0, 2, matched, vec![Action::Pass], host(Purpose::HostPass));
            }
            let matched = Match::vlan(VlanTpid::Dot1Q, none);
            out.add(hook, 0, 3, matched, vec![Action::VlanPop, Action::Goto(chain)], why());
        }
        // Flower without a VLAN key matches tagged frames too: those are not this network's.
        for (prio, tpid) in [(5, VlanTpid::Dot1Q), (6, VlanTpid::Dot1Ad)] {
            let why = host(Purpose::HostPass);
            out.add(hook, 0, prio, Match::tagged(tpid), vec![Action::Pass], why);
        }
        out.add(hook, 0, 7, Match::any(), vec![Action::Goto(chain)], why());
    }
}

/// Forwards what came from the uplink in this network.
fn uplink_chain(
    out: &mut Writer,
    segment: &Segment<'_>,
    uplink: &NetdevView,
    tag: Tag,
    uplink_use: UplinkUse,
) {
    let hook = Hook::ingress(uplink.ifindex);
    let host_is_on_it = tag.is_none() && uplink_use == UplinkUse::Shared;
    let end = if host_is_on_it { FloodEnd::ToHost } else { FloodEnd::Drop };
    segment.unicast(out, hook, tag);
    segment.flood(out, hook, tag, end);
    segment.flood_unknown(out, hook, tag, end);
}

impl Segment<'_> {
    fn why(&self, purpose: Purpose, port: Option<&Id>) -> Why {
        Why { purpose, port: port.cloned(), network: Some(self.id.clone()) }
    }

    /// Every local address but those of the netdev that the frame came from.
    fn unicast(&self, out: &mut Writer, hook: Hook, from: Tag) {
        for member in self.members.iter().filter(|m| Some(m.netdev.ifindex) != hook.ifindex()) {
            for mac in member.macs {
                let mut actions: Vec<Action> = rewrite(from, member.tag).into_iter().collect();
                actions.push(Action::Redirect(member.netdev.ifindex));
                let why = self.why(Purpose::Unicast(*mac), Some(member.port));
                out.add(hook, self.base, 1, Match::any().dst(wire(*mac)), actions, why);
            }
        }
    }

    /// Group frames, over as many chains as the receivers' tags and number take.
    fn flood(&self, out: &mut Writer, hook: Hook, from: Tag, end: FloodEnd) {
        let group = Mac([1, 0, 0, 0, 0, 0]);
        let steps = flood_steps(from, self.receivers(hook), end);
        let first = (2, Match::any().dst_masked(group, group));
        self.steps(out, hook, first, self.base + 1, steps, Purpose::Flood);
    }

    /// Unicast that no port owns, likewise.
    fn flood_unknown(&self, out: &mut Writer, hook: Hook, from: Tag, end: FloodEnd) {
        let steps = flood_steps(from, self.receivers_of_unknown(hook), end);
        let next = self.base + UNKNOWN_FLOOD;
        self.steps(out, hook, (3, Match::any()), next, steps, Purpose::UnknownUnicast);
    }

    /// The rules of one flood: the first in the network's chain, the others in chains from `next`.
    fn steps(
        &self,
        out: &mut Writer,
        hook: Hook,
        (prio, matched): (u16, Match),
        next: u32,
        steps: Vec<Vec<Action>>,
        purpose: Purpose,
    ) {
        let last = steps.len() - 1;
        let (mut chain, mut prio, mut matched) = (self.base, prio, matched);
        for (step, mut actions) in (0..).zip(steps) {
            let following = next + step;
            if (step as usize) < last
                && let Some(following) = ChainId::new(following)
            {
                actions.push(Action::Goto(following));
            }
            out.add(hook, chain, prio, matched, actions, self.why(purpose, None));
            (chain, prio, matched) = (following, 1, Match::any());
        }
    }
}

/// The rules of one flood, as actions without the gotos between them: never empty, each with at
/// most one tag change, which stands before the rule's first receiver.
fn flood_steps(from: Tag, receivers: Vec<Receiver>, end: FloodEnd) -> Vec<Vec<Action>> {
    // First those who take the frame as it is, then tag by tag, the uplink last: no rule rewrites
    // for VFs and the uplink together.
    let mut groups: BTreeMap<(bool, bool, Tag), Vec<Ifindex>> = BTreeMap::new();
    for receiver in receivers {
        let rewritten = receiver.tag != from;
        groups
            .entry((rewritten, rewritten && receiver.uplink, receiver.tag))
            .or_default()
            .push(receiver.ifindex);
    }
    let mut steps: Vec<Vec<Action>> = Vec::new();
    let mut current = from;
    for ((_, _, tag), mut ifindexes) in groups {
        ifindexes.sort_unstable();
        for chunk in ifindexes.chunks(RECEIVERS_PER_RULE) {
            let mut actions: Vec<Action> = rewrite(current, tag).into_iter().collect();
            actions.extend(chunk.iter().map(|ifindex| Action::Mirror(*ifindex)));
            current = tag;
            steps.push(actions);
        }
    }
    match end {
        FloodEnd::Drop => match steps.last_mut().and_then(|step| step.pop()) {
            // The last copy takes the frame with it.
            Some(Action::Mirror(ifindex)) => {
                if let Some(step) = steps.last_mut() {
                    step.push(Action::Redirect(ifindex));
                }
            }
            _ => steps.push(vec![Action::Drop]),
        },
        FloodEnd::ToHost => {
            // The host must get the frame as it came.
            match rewrite(current, from) {
                Some(back) => steps.push(vec![back, Action::Pass]),
                None => match steps.last_mut() {
                    Some(step) => step.push(Action::Pass),
                    None => steps.push(vec![Action::Pass]),
                },
            }
        }
    }
    steps
}

/// The tag change between two taggings, if any is needed.
fn rewrite(from: Tag, to: Tag) -> Option<Action> {
    match (from, to) {
        (from, to) if from == to => None,
        (None, Some((tpid, vid))) => Some(Action::VlanPush { tpid, vid }),
        (Some(_), None) => Some(Action::VlanPop),
        (Some(_), Some((tpid, vid))) => Some(Action::VlanModify { tpid, vid }),
        (None, None) => None,
    }
}

/// Collects rules with their reasons.
#[derive(Default)]
struct Writer {
    program: FlowProgram,
}

impl Writer {
    fn netdev(&mut self, netdev: &NetdevView) {
        self.program.netdevs.insert(netdev.ifindex, netdev.clone());
    }

    /// Adds a rule. The planner's own construction keeps rules valid and apart, which the property
    /// tests of this module hold it to; should it ever fail, the rule is left out: a frame is then
    /// dropped by a later rule, never delivered wrongly.
    fn add(
        &mut self,
        hook: Hook,
        chain: u32,
        prio: u16,
        matched: Match,
        actions: Vec<Action>,
        why: Why,
    ) {
        let (Some(chain), Some(prio)) = (ChainId::new(chain), Prio::new(prio)) else { return };
        match Rule::new(hook, chain, prio, matched, actions) {
            Ok(rule) => {
                let id = rule.id().clone();
                match self.program.rules.insert(rule) {
                    Ok(()) => {
                        self.program.why.insert(id, why);
                    }
                    Err(error) => debug_assert!(false, "{error}"),
                }
            }
            Err(error) => debug_assert!(false, "{error}"),
        }
    }
}

fn wire(mac: MacAddr) -> Mac {
    Mac(mac.0)
}

fn vlan_id(vid: u16) -> Option<VlanId> {
    VlanId::new(vid)
}

fn tpid(proto: VlanProto) -> VlanTpid {
    match proto {
        VlanProto::Dot1Q => VlanTpid::Dot1Q,
        VlanProto::Dot1Ad => VlanTpid::Dot1Ad,
    }
}
