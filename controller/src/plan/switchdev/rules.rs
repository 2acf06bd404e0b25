//! The rules of a part of the program.
//!
//! In: a [`Segment`] and which [`Part`] of it, a representor, or an uplink with the networks on it.
//! Out: rules with their reasons. Each rule depends on nothing but what its own part is made of.

use std::{collections::BTreeMap, sync::Arc};

use api::{
    resources::Qos,
    types::{Bitrate, Id, MacAddr},
};
use tc_flows::{
    Action, ChainId, Control, Hook, Ifindex, Ipv4Match, Ipv6Match, Mac, Match, Offload, Payload,
    Police, Ports, Prio, Rule, VlanId, VlanTpid,
};

use super::{
    CHAINS_PER_NETWORK, FloodRoom, Purpose, Reasoned, UNKNOWN_FLOOD, Why,
    segment::{Allowed, Member, Part, Receiver, Segment, Tag},
    source::{DHCP_SERVER, DHCPV6_SERVER, ROUTER_ADVERTISEMENT},
};
use crate::{config::UplinkUse, world::NetdevView};

/// Prios of a representor's chain 0. All are even: a trap stands one before its rule.
mod entry {
    pub(super) const RATE: u16 = 2;
    /// What a port whose payloads are checked may send to link-local groups.
    pub(super) const LINK_LOCAL: u16 = 4;
    /// What only routers and DHCP servers send, inside a tag of the guest's own.
    pub(super) const GUARD: u16 = 6;
    pub(super) const DOUBLE_TAG: u16 = 8;
    pub(super) const TAGGED: u16 = 10;
    /// Tags that are attached, with a payload that the port may not send.
    pub(super) const SPOOFED_TAGGED: u16 = 12;
    pub(super) const OTHER_TAG: u16 = 14;
    pub(super) const OTHER_SERVICE_TAG: u16 = 16;
    /// Untagged frames whose payload is checked, by ethertype; the port's further ones from
    /// [`FURTHER`] on.
    pub(super) const CHECKED: [(u16, u16); 4] =
        [(0x0800, 18), (0x86dd, 20), (0x0806, 22), (0x8035, 24)];
    pub(super) const FURTHER: u16 = 26;
    /// Behind as many further ethertypes as a port can have.
    pub(super) const SOURCE: u16 = 60;
    pub(super) const REST: u16 = 62;
}

/// Prios of a network's chain. What only group frames need to be asked comes behind the unicast:
/// software dissects a frame anew for each prio of its protocol.
mod network {
    pub(super) const GUARD: u16 = 2;
    pub(super) const GUARD_IPV6: u16 = 4;
    pub(super) const UNICAST: u16 = 6;
    pub(super) const LINK_LOCAL: u16 = 8;
    pub(super) const STORM: u16 = 10;
    /// Groups that go to some members only.
    pub(super) const GROUP: u16 = 12;
    pub(super) const OTHER_GROUPS: u16 = 14;
    pub(super) const REST: u16 = 16;
}

/// Prios of the chains over which floods go on.
mod step {
    pub(super) const GROUP: u16 = 2;
    pub(super) const ALL: u16 = 4;
}

/// Bytes that a policer lets pass at once: several frames as segmentation offload makes them.
const BURST_LEAST: u64 = 1 << 18;
/// More than any frame has: a policer drops larger ones whatever the rate.
const FRAME_MOST: u32 = 1 << 20;
/// Frames that a storm limit lets pass at once.
const FLOOD_BURST_LEAST: u64 = 16;

/// What becomes of a flooded frame after its last copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FloodEnd {
    Drop,
    ToHost,
}

/// Rules with their reasons, by hook.
#[derive(Debug, Default)]
pub(super) struct Rules(pub(super) BTreeMap<Hook, Vec<Reasoned>>);

impl Rules {
    /// Adds a rule.
    fn add(
        &mut self,
        hook: Hook,
        chain: u32,
        prio: u16,
        matched: Match,
        actions: impl Into<Arc<[Action]>>,
        why: &Arc<Why>,
    ) {
        self.add_for(Offload::Auto, hook, chain, prio, matched, actions, why);
    }

    /// Adds one that is executed only there.
    #[expect(clippy::too_many_arguments, reason = "what a rule is made of")]
    pub(super) fn add_for(
        &mut self,
        offload: Offload,
        hook: Hook,
        chain: u32,
        prio: u16,
        matched: Match,
        actions: impl Into<Arc<[Action]>>,
        why: &Arc<Why>,
    ) {
        let rule = rule(offload, hook, chain, prio, matched, actions, why);
        self.0.entry(hook).or_default().extend(rule);
    }
}

/// A rule with its reason. The planner's own construction keeps rules valid, which the property
/// tests hold it to; should it ever fail, the rule is left out: a frame is then dropped by a later
/// rule, never delivered wrongly.
fn rule(
    offload: Offload,
    hook: Hook,
    chain: u32,
    prio: u16,
    matched: Match,
    actions: impl Into<Arc<[Action]>>,
    why: &Arc<Why>,
) -> Option<Reasoned> {
    let rule = Rule::new(hook, ChainId::new(chain)?, Prio::new(prio)?, matched, actions);
    debug_assert!(rule.is_ok(), "{rule:?}");
    Some((rule.ok()?.with_offload(offload), Arc::clone(why)))
}

/// A reason without port and network.
fn of_adapter(purpose: Purpose) -> Arc<Why> {
    Arc::new(Why { purpose, port: None, network: None })
}

/// What every representor holds, with or without a port.
pub(super) fn representor_guards(out: &mut Rules, representor: Ifindex) {
    let hook = Hook::ingress(representor);
    let why = of_adapter(Purpose::DoubleTagGuard);
    for inner in [VlanTpid::Dot1Q, VlanTpid::Dot1Ad] {
        let matched = Match::double_tagged(VlanTpid::Dot1Q, None, inner);
        out.add(hook, 0, entry::DOUBLE_TAG, matched, [Action::Drop], &why);
    }
    let why = of_adapter(Purpose::TagGuard);
    let tags = [(entry::OTHER_TAG, VlanTpid::Dot1Q), (entry::OTHER_SERVICE_TAG, VlanTpid::Dot1Ad)];
    for (prio, tpid) in tags {
        out.add(hook, 0, prio, Match::tagged(tpid), [Action::Drop], &why);
    }
    out.add(hook, 0, entry::REST, Match::any(), [Action::Drop], &of_adapter(Purpose::DefaultDrop));
}

/// What a port is kept to by policers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rates {
    sent: Option<Bitrate>,
    received: Option<Bitrate>,
}

impl Rates {
    /// None where there is no limit.
    pub(super) fn of(qos: Qos) -> Option<Rates> {
        let rates = Rates { sent: qos.tx_max, received: qos.rx_max };
        (rates.sent.is_some() || rates.received.is_some()).then_some(rates)
    }

    /// What keeps the port to them, before anything else is asked. What the guest sends counts
    /// whether it is admitted or not, as with a rate object.
    pub(super) fn rules(self, out: &mut Rules, representor: Ifindex, port: &Id) {
        for (rate, hook, purpose) in [
            (self.sent, Hook::ingress(representor), Purpose::Rate),
            (self.received, Hook::egress(representor), Purpose::ReceiveRate),
        ] {
            let Some(police) = rate.and_then(police) else { continue };
            let why = Arc::new(Why { purpose, port: Some(port.clone()), network: None });
            out.add(hook, 0, entry::RATE, Match::any(), [Action::from(police)], &why);
        }
    }
}

fn police(rate: Bitrate) -> Option<Police> {
    let bytes = rate.get() / 8;
    // A hundredth of a second, so that a timer's grain does not cost rate.
    let police = Police::bytes(bytes, BURST_LEAST.max(bytes / 100))?;
    police.mtu(FRAME_MOST)?.conform(Control::Continue)
}

/// 01:80:c2:00:00:00 to 0f, which no bridge forwards (IEEE 802.1Q table 8-1).
fn to_link_local(matching: Match) -> Match {
    let mask = Mac([0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]);
    matching.dst_masked(Mac([0x01, 0x80, 0xc2, 0, 0, 0]), mask)
}

/// A network that owns a tag on the uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) network: Id,
    pub(super) base: u32,
    pub(super) tag: Tag,
}

/// The uplink's chain 0: what belongs to a network here goes to its chain, the rest is the host's.
pub(super) fn uplink_entry(
    out: &mut Rules,
    uplink: &NetdevView,
    uplink_use: UplinkUse,
    owned: &[Owned],
) {
    let hook = Hook::ingress(uplink.ifindex);
    let to_host = of_adapter(Purpose::HostPass);
    if let (UplinkUse::Shared, Some(mac), false) = (uplink_use, uplink.mac, owned.is_empty()) {
        out.add(hook, 0, 2, Match::any().dst(wire(mac)), [Action::Pass], &to_host);
    }
    for Owned { network, base, tag } in owned {
        let Some(chain) = ChainId::new(*base) else { continue };
        let why = Arc::new(Why {
            purpose: Purpose::FromUplink,
            port: None,
            network: Some(network.clone()),
        });
        if let Some((tpid, vid)) = *tag {
            let prio = if tpid == VlanTpid::Dot1Q { 6 } else { 8 };
            out.add(hook, 0, prio, Match::vlan(tpid, vid), [Action::Goto(chain)], &why);
            continue;
        }
        if let Some(none) = VlanId::new(0) {
            // With the priority tag gone, a second tag would stand for a VLAN.
            for inner in [VlanTpid::Dot1Q, VlanTpid::Dot1Ad] {
                let matched = Match::double_tagged(VlanTpid::Dot1Q, Some(none), inner);
                out.add(hook, 0, 4, matched, [Action::Pass], &to_host);
            }
            let matched = Match::vlan(VlanTpid::Dot1Q, none);
            out.add(hook, 0, 6, matched, [Action::VlanPop, Action::Goto(chain)], &why);
        }
        // Flower without a VLAN key matches tagged frames too: those are not this network's.
        for (prio, tpid) in [(10, VlanTpid::Dot1Q), (12, VlanTpid::Dot1Ad)] {
            out.add(hook, 0, prio, Match::tagged(tpid), [Action::Pass], &to_host);
        }
        out.add(hook, 0, 14, Match::any(), [Action::Goto(chain)], &why);
    }
}

/// Where frames of a segment come in: their hook, how they are tagged there, what becomes of a
/// flooded frame after its last copy.
#[derive(Clone, Copy)]
pub(super) struct Entrance {
    pub(super) hook: Hook,
    pub(super) tag: Tag,
    end: FloodEnd,
    /// Whether what comes in here is kept from isolated members.
    pub(super) isolated: bool,
}

/// An address that frames are sent to.
struct Destination<'s> {
    mac: MacAddr,
    to: &'s Member,
    matched: Match,
    why: Arc<Why>,
    /// What leads there, by how frames come in.
    actions: BTreeMap<Tag, Arc<[Action]>>,
}

impl Segment {
    /// The rules of a part of this segment.
    pub(super) fn rules(&self, part: &Part, out: &mut Rules) {
        let entrances: Vec<(Entrance, Option<&Member>)> = self.entrances().collect();
        self.unicast(part, &entrances, out);
        self.fused(part, &entrances, out);
        for (entrance, member) in entrances {
            let whole = match member {
                Some(member) => {
                    if part.addresses(&member.port) {
                        self.admission(member, out);
                    }
                    if part.addresses(&member.port) || part.unknown() {
                        self.own_addresses(member, out);
                    }
                    part.whole(&member.port)
                }
                None => false,
            };
            if whole || part.floods() {
                self.flood(entrance, out);
            }
            for group in self.groups.iter().filter(|group| whole || part.flood_to(group)) {
                self.flood_group(entrance, *group, out);
            }
            for mac in self.shared.iter().filter(|mac| whole || part.flood_to(mac)) {
                self.flood_shared(entrance, *mac, out);
            }
            if whole || part.unknown() {
                self.flood_unknown(entrance, out);
            }
        }
    }

    /// Every member's hook, and the uplink's.
    fn entrances(&self) -> impl Iterator<Item = (Entrance, Option<&Member>)> {
        let members = self.members.iter().map(|member| {
            let hook = Hook::ingress(member.ifindex);
            let (tag, isolated) = (member.tag, member.isolated);
            (Entrance { hook, tag, end: FloodEnd::Drop, isolated }, Some(member))
        });
        let uplink = self.uplink.map(|uplink| {
            let hook = Hook::ingress(uplink.ifindex);
            (Entrance { hook, tag: uplink.tag, end: uplink.end, isolated: false }, None)
        });
        members.chain(uplink)
    }

    pub(super) fn why(&self, purpose: Purpose, port: Option<&Id>) -> Arc<Why> {
        Arc::new(Why { purpose, port: port.cloned(), network: Some(self.id.clone()) })
    }

    /// Leads what `sender` may send into its attachment's chain.
    fn admission(&self, sender: &Member, out: &mut Rules) {
        let hook = Hook::ingress(sender.ifindex);
        let (Some(chain), Some(none)) = (ChainId::new(self.base()), VlanId::new(0)) else { return };
        self.guards(sender, out);
        self.storm(sender, out);
        for mac in &sender.macs {
            let why = self.why(Purpose::Admission(*mac), Some(&sender.port));
            let from = |matching: Match| matching.src(wire(*mac));
            // What is checked of what is inside; without checks that is one thing: all.
            let payloads: Vec<Option<Payload>> = match &sender.sources {
                Some(sources) => sources.payloads(*mac).into_iter().map(Some).collect(),
                None => vec![None],
            };
            let tagged = |tpid, vid, payload: &Option<Payload>| {
                from(match payload {
                    Some(payload) => Match::vlan_with(tpid, vid, payload.clone()),
                    None => Match::vlan(tpid, vid),
                })
            };
            let spoofed = self.why(Purpose::SpoofGuard(*mac), Some(&sender.port));
            if sender.sources.is_some() {
                let attached = match (sender.tag, sender.keeps_tags) {
                    (Some((tpid, vid)), _) => Match::vlan(tpid, vid),
                    (None, true) => Match::tagged(VlanTpid::Dot1Q),
                    (None, false) => Match::vlan(VlanTpid::Dot1Q, none),
                };
                let matched = from(attached);
                out.add(hook, 0, entry::SPOOFED_TAGGED, matched, [Action::Drop], &spoofed);
            }
            if let Some((tpid, vid)) = sender.tag {
                for payload in &payloads {
                    let matched = tagged(tpid, vid, payload);
                    out.add(hook, 0, entry::TAGGED, matched, [Action::Goto(chain)], &why);
                }
                continue;
            }
            for payload in &payloads {
                if sender.keeps_tags {
                    let matched = from(match payload {
                        Some(payload) => Match::tagged_with(VlanTpid::Dot1Q, payload.clone()),
                        None => Match::tagged(VlanTpid::Dot1Q),
                    });
                    out.add(hook, 0, entry::TAGGED, matched, [Action::Goto(chain)], &why);
                } else {
                    // A priority tag (VID 0) is no VLAN (IEEE 802.1Q, 6.9).
                    let matched = tagged(VlanTpid::Dot1Q, none, payload);
                    let actions = [Action::VlanPop, Action::Goto(chain)];
                    out.add(hook, 0, entry::TAGGED, matched, actions, &why);
                }
                let (prio, matched) = match payload {
                    Some(payload) => {
                        let matched = Match::ethertype(payload.clone());
                        (self.prio_of(sender, matched.protocol()), matched)
                    }
                    None => (entry::SOURCE, Match::any()),
                };
                out.add(hook, 0, prio, from(matched), [Action::Goto(chain)], &why);
            }
            if sender.sources.is_none() {
                continue;
            }
            out.add(hook, 0, entry::SOURCE, from(Match::any()), [Action::Drop], &spoofed);
            if sender.allow.contains(&Allowed::LinkLocal)
                && let Some(untagged) = from(to_link_local(Match::any())).num_of_vlans(0)
            {
                let why = self.why(Purpose::LinkLocal(*mac), Some(&sender.port));
                out.add(hook, 0, entry::LINK_LOCAL, untagged, [Action::Goto(chain)], &why);
            }
        }
    }

    /// Where in chain 0 frames of this ethertype are admitted by what is inside.
    fn prio_of(&self, sender: &Member, ethertype: u16) -> u16 {
        let known = entry::CHECKED.iter().find(|(known, _)| *known == ethertype);
        known.map_or_else(
            || {
                let further =
                    sender.sources.as_ref().map_or(&[][..], |sources| sources.ethertypes());
                let rank = further.iter().position(|other| other.get() == ethertype).unwrap_or(0);
                entry::FURTHER + 2 * rank as u16
            },
            |(_, prio)| *prio,
        )
    }

    /// What keeps the port's floods to its limit, before they are copied.
    fn storm(&self, sender: &Member, out: &mut Rules) {
        let Some(limit) = sender.flood_limit else { return };
        let (rate, group) = (u64::from(limit), Mac([1, 0, 0, 0, 0, 0]));
        let police = Police::packets(rate, rate.max(FLOOD_BURST_LEAST));
        let police = police.and_then(|police| police.conform(Control::Continue));
        let Some(police) = police else { return };
        let why = self.why(Purpose::Storm, Some(&sender.port));
        let (hook, matched) =
            (Hook::ingress(sender.ifindex), Match::any().dst_masked(group, group));
        out.add(hook, self.base(), network::STORM, matched, [Action::from(police)], &why);
    }

    /// What only routers, DHCP servers and bridges send.
    fn guards(&self, sender: &Member, out: &mut Rules) {
        let hook = Hook::ingress(sender.ifindex);
        // None of the protocols there is used in a VLAN.
        let allowed = sender.tag.is_none() && sender.allow.contains(&Allowed::LinkLocal);
        let dropped = match (allowed, sender.keeps_tags) {
            (false, _) => Some(Match::any()),
            (true, true) => Some(Match::tagged(VlanTpid::Dot1Q)),
            (true, false) => None,
        };
        if let Some(dropped) = dropped {
            let why = self.why(Purpose::LinkLocalGuard, Some(&sender.port));
            let matched = to_link_local(dropped);
            out.add(hook, self.base(), network::LINK_LOCAL, matched, [Action::Drop], &why);
        }
        let from_server = |port| Ports::any().src(port);
        let guards: [(Allowed, Purpose, u16, Payload); 3] = [
            (
                Allowed::DhcpServer,
                Purpose::DhcpServerGuard,
                network::GUARD,
                Ipv4Match::any().udp(from_server(DHCP_SERVER)).into(),
            ),
            (
                Allowed::DhcpServer,
                Purpose::DhcpServerGuard,
                network::GUARD_IPV6,
                Ipv6Match::any().udp(from_server(DHCPV6_SERVER)).into(),
            ),
            (
                Allowed::Router,
                Purpose::RouterGuard,
                network::GUARD_IPV6,
                Ipv6Match::any().icmp_type(ROUTER_ADVERTISEMENT).into(),
            ),
        ];
        for (allowed, purpose, prio, payload) in guards {
            if sender.allow.contains(&allowed) {
                continue;
            }
            let why = self.why(purpose, Some(&sender.port));
            if sender.keeps_tags {
                let matched = Match::tagged_with(VlanTpid::Dot1Q, payload.clone());
                out.add(hook, 0, entry::GUARD, matched, [Action::Drop], &why);
            }
            let (prio, matched) = match sender.tag {
                None => (prio, Match::ethertype(payload)),
                Some((tpid, _)) => (network::GUARD, Match::tagged_with(tpid, payload)),
            };
            out.add(hook, self.base(), prio, matched, [Action::Drop], &why);
        }
    }

    /// Never returns a guest's own frame to it, nor sends it out: only where unicast that no port
    /// owns goes somewhere.
    fn own_addresses(&self, sender: &Member, out: &mut Rules) {
        let hook = Hook::ingress(sender.ifindex);
        if self.receivers_of_unknown(hook).is_empty() {
            return;
        }
        // What goes to a shared address never returns.
        for mac in sender.macs.iter().filter(|mac| !self.shared.contains(mac)) {
            let why = self.why(Purpose::OwnAddressGuard(*mac), Some(&sender.port));
            let matched = Match::any().dst(wire(*mac));
            out.add(hook, self.base(), network::UNICAST, matched, [Action::Drop], &why);
        }
    }

    /// At each entrance every address of the other members.
    fn unicast(&self, part: &Part, entrances: &[(Entrance, Option<&Member>)], out: &mut Rules) {
        let is_whole = |member: &Option<&Member>| member.is_some_and(|m| part.whole(&m.port));
        let mut everywhere = self.destinations(|member| part.addresses(&member.port));
        // At an entrance that is meant as a whole, those who are not meant everywhere.
        let mut further = match entrances.iter().any(|(_, member)| is_whole(member)) {
            true => self.destinations(|member| !part.addresses(&member.port)),
            false => Vec::new(),
        };
        for (entrance, member) in entrances {
            self.unicast_to(&mut everywhere, *entrance, out);
            if is_whole(member) {
                self.unicast_to(&mut further, *entrance, out);
            }
        }
    }

    /// The addresses of these members, in order.
    fn destinations(&self, of: impl Fn(&Member) -> bool) -> Vec<Destination<'_>> {
        let members = self.members.iter().filter(|member| of(member));
        let all = members.flat_map(|to| to.macs.iter().map(move |mac| (*mac, to)));
        let all = all.filter(|(mac, _)| !self.shared.contains(mac));
        let mut all: Vec<Destination<'_>> = all
            .map(|(mac, to)| Destination {
                mac,
                to,
                matched: Match::any().dst(wire(mac)),
                why: self.why(Purpose::Unicast(mac), Some(&to.port)),
                actions: BTreeMap::new(),
            })
            .collect();
        all.sort_unstable_by_key(|destination| destination.mac);
        all
    }

    fn unicast_to(
        &self,
        destinations: &mut [Destination<'_>],
        Entrance { hook, tag, isolated, .. }: Entrance,
        out: &mut Rules,
    ) {
        if destinations.is_empty() {
            return;
        }
        let others =
            destinations.iter_mut().filter(|other| hook != Hook::ingress(other.to.ifindex));
        let rules = others.filter_map(|Destination { mac, to, matched, why, actions }| {
            let (actions, why) = match isolated && to.isolated {
                true => {
                    (Arc::from([Action::Drop]), self.why(Purpose::Isolation(*mac), Some(&to.port)))
                }
                false => {
                    let actions = actions.entry(tag).or_insert_with(|| {
                        let rewrite = rewrite(tag, to.tag).into_iter();
                        rewrite.chain([Action::Redirect(to.ifindex)]).collect()
                    });
                    (Arc::clone(actions), Arc::clone(why))
                }
            };
            let (chain, prio) = (self.base(), network::UNICAST);
            rule(Offload::Auto, hook, chain, prio, matched.clone(), actions, &why)
        });
        out.0.entry(hook).or_default().extend(rules);
    }

    /// Group frames, over as many chains as the receivers' tags and number take.
    fn flood(&self, Entrance { hook, tag, end, .. }: Entrance, out: &mut Rules) {
        let group = Mac([1, 0, 0, 0, 0, 0]);
        let steps = flood_steps(tag, self.receivers_of_others(hook), end, self.room);
        let first = (network::OTHER_GROUPS, Match::any().dst_masked(group, group));
        let following = (step::ALL, Match::any());
        let end = self.base() + UNKNOWN_FLOOD;
        self.steps(out, hook, [first, following], end, steps, Purpose::Flood);
    }

    /// Those of one group, over the same chains.
    fn flood_group(
        &self,
        Entrance { hook, tag, end, .. }: Entrance,
        group: MacAddr,
        out: &mut Rules,
    ) {
        let steps = flood_steps(tag, self.receivers_of_group(hook, group), end, self.room);
        let matched = Match::any().dst(wire(group));
        let at = [(network::GROUP, matched.clone()), (step::GROUP, matched)];
        let end = self.base() + UNKNOWN_FLOOD;
        self.steps(out, hook, at, end, steps, Purpose::GroupFlood(group));
    }

    /// Unicast to an address that several ports may have, likewise: to all of them.
    fn flood_shared(&self, Entrance { hook, tag, .. }: Entrance, mac: MacAddr, out: &mut Rules) {
        let receivers = self.receivers_of_shared(hook, mac);
        let steps = flood_steps(tag, receivers, FloodEnd::Drop, self.room);
        let matched = Match::any().dst(wire(mac));
        let at = [(network::UNICAST, matched.clone()), (step::GROUP, matched)];
        let end = self.base() + UNKNOWN_FLOOD;
        self.steps(out, hook, at, end, steps, Purpose::SharedUnicast(mac));
    }

    /// Unicast that no port owns, likewise.
    fn flood_unknown(&self, Entrance { hook, tag, end, .. }: Entrance, out: &mut Rules) {
        let steps = flood_steps(tag, self.receivers_of_unknown(hook), end, self.room);
        let at = [(network::REST, Match::any()), (step::ALL, Match::any())];
        let end = self.base() + CHAINS_PER_NETWORK;
        self.steps(out, hook, at, end, steps, Purpose::UnknownUnicast);
    }

    /// The rules of one flood: the first in the network's chain, those that follow in the chains
    /// before `end`, so that those which follow a step that comes or goes stay where they are.
    fn steps(
        &self,
        out: &mut Rules,
        hook: Hook,
        [first, following]: [(u16, Match); 2],
        end: u32,
        steps: Vec<Vec<Action>>,
        purpose: Purpose,
    ) {
        let why = self.why(purpose, None);
        let (mut chain, mut at) = (self.base(), first);
        let behind = (0..steps.len() as u32).rev();
        for (behind, mut actions) in behind.zip(steps) {
            let next = end - behind;
            if behind > 0
                && let Some(next) = ChainId::new(next)
            {
                actions.push(Action::Goto(next));
            }
            let (prio, matched) = at;
            out.add(hook, chain, prio, matched, actions, &why);
            (chain, at) = (next, following.clone());
        }
    }
}

/// The rules of one flood, as actions without the gotos between them: never empty, each with at
/// most one tag change, which stands before the rule's first receiver.
pub(super) fn flood_steps(
    from: Tag,
    receivers: Vec<Receiver>,
    end: FloodEnd,
    room: FloodRoom,
) -> Vec<Vec<Action>> {
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
        for chunk in ifindexes.chunks(room.receivers) {
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

pub(super) fn wire(mac: MacAddr) -> Mac {
    Mac(mac.0)
}
