//! One adapter's program, kept in step part by part.
//!
//! In: which ports and networks may be otherwise than before ([`Surroundings`]). Out: the program
//! changed in its place, what changed in it, and what stands in the way of whom. What an event
//! costs depends on the size of the networks that it touches, not on the adapter's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use api::{
    resources::{AdminState, Multicast, NetworkKind, VlanProto},
    types::Id,
};
use tc_flows::{Hook, Ifindex, VlanId, VlanTpid};

use super::{
    FloodRoom, FlowDelta, FlowProgram, Hardware, Reasoned, polices, qinq_without_vlan,
    rules::{FloodEnd, Owned, Rates, Rules, representor_guards, uplink_entry},
    segment::{Allowed, Member, Part, Segment, Tag, Uplink},
    source::Sources,
};
use crate::{
    config::UplinkUse,
    intent::Intent,
    plan::{Finding, PortPlan, admit::is_shared, roster::Roster},
    world::{AdapterView, NetdevView},
};

/// What a program is made from, and what of it may have changed.
pub(crate) struct Surroundings<'a> {
    pub(crate) adapter_id: &'a Id,
    pub(crate) adapter: &'a AdapterView,
    pub(crate) uplink_use: UplinkUse,
    pub(crate) intent: &'a Intent,
    pub(crate) roster: &'a Roster,
    pub(crate) ports: &'a BTreeMap<Id, PortPlan>,
    /// Ports that may stand elsewhere or have other addresses.
    pub(crate) touched_ports: &'a BTreeSet<Id>,
    /// Networks that may be others, or whose ports may.
    pub(crate) touched_networks: &'a BTreeSet<Id>,
    /// Whether the adapter may be otherwise; all networks are touched then.
    pub(crate) adapter_touched: bool,
}

/// What an adapter's program was made from.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    /// The networks that have members here.
    segments: BTreeMap<Id, Segment>,
    /// Those of them that want a tag on the uplink: the first has it.
    claimants: BTreeMap<Tag, BTreeSet<(u32, Id)>>,
    /// Those that do not have theirs, and so no rules, with who has it.
    displaced: BTreeMap<Id, Id>,
    /// What the uplink's chain 0 was made from.
    entry: Option<Entry>,
    representors: BTreeSet<Ifindex>,
    /// The representor of each port that stands here.
    uses: BTreeMap<Id, NetdevView>,
    /// The rates of each port that is kept to some by policers.
    rates: BTreeMap<Id, (Ifindex, Rates)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    uplink: NetdevView,
    uplink_use: UplinkUse,
    owned: Vec<Owned>,
}

impl Entry {
    fn rules(&self, out: &mut Rules) {
        uplink_entry(out, &self.uplink, self.uplink_use, &self.owned);
    }
}

impl Sheet {
    /// Brings `program` up to date. Returns the networks for whose ports [`Sheet::finding`] may say
    /// something else than before.
    pub(crate) fn update(
        &mut self,
        around: &Surroundings<'_>,
        program: &mut FlowProgram,
        delta: &mut FlowDelta,
    ) -> BTreeSet<Id> {
        let (mut old, mut new) = (Rules::default(), Rules::default());
        if around.adapter_touched {
            self.netdevs(around.adapter, program, delta, &mut old, &mut new);
        }
        self.in_use(around, program, delta);
        self.rates(around, &mut old, &mut new);
        let chainless = program.hardware.as_ref().is_some_and(Hardware::is_chainless);
        let (networks, tags_moved) = self.networks(around, chainless, &mut old, &mut new);
        if around.adapter_touched || tags_moved {
            self.entry(around, &mut old, &mut new);
        }
        exchange(program, old, new, delta);
        networks
    }

    /// What stands in the way of this port's attachment to this network.
    pub(crate) fn finding(&self, adapter: &Id, network: &Id, port: &Id) -> Option<Finding> {
        self.network_finding(adapter, network)
            .or_else(|| self.segments.get(network).and_then(|segment| segment.finding(port)))
    }

    /// What stands in the way of this network.
    pub(crate) fn network_finding(&self, adapter: &Id, network: &Id) -> Option<Finding> {
        let first = self.displaced.get(network)?;
        Some(Finding::new(
            "UplinkTagTaken",
            format!(
                "network `{first}` is on the uplink of `{adapter}` in the same way; give one of \
                 the two another VLAN"
            ),
        ))
    }

    fn netdevs(
        &mut self,
        adapter: &AdapterView,
        program: &mut FlowProgram,
        delta: &mut FlowDelta,
        old: &mut Rules,
        new: &mut Rules,
    ) {
        let FlowProgram { netdevs, egress, .. } = FlowProgram::without_rules(adapter);
        if program.netdevs != netdevs || program.egress != egress {
            program.netdevs = netdevs;
            program.egress = egress;
            delta.netdevs = true;
        }
        let hardware = Hardware::of(adapter);
        if program.hardware != hardware {
            program.hardware = hardware;
            delta.hardware = true;
        }
        let representors: BTreeSet<Ifindex> =
            adapter.all_representors().map(|netdev| netdev.ifindex).collect();
        for gone in self.representors.difference(&representors) {
            representor_guards(old, *gone);
        }
        for come in representors.difference(&self.representors) {
            representor_guards(new, *come);
        }
        self.representors = representors;
    }

    fn in_use(
        &mut self,
        around: &Surroundings<'_>,
        program: &mut FlowProgram,
        delta: &mut FlowDelta,
    ) {
        let used_by = |port: &Id| {
            let place = around.ports.get(port)?.place.as_ref().ok()?;
            place.representor.as_ref().filter(|_| place.adapter == *around.adapter_id)
        };
        let changed: Vec<&Id> = around
            .touched_ports
            .iter()
            .filter(|port| used_by(port) != self.uses.get(*port))
            .collect();
        delta.netdevs |= !changed.is_empty();
        for port in &changed {
            if let Some(netdev) = self.uses.remove(*port) {
                program.in_use.remove(&netdev);
            }
        }
        for port in changed {
            if let Some(netdev) = used_by(port) {
                program.in_use.insert(netdev.clone());
                self.uses.insert(port.clone(), netdev.clone());
            }
        }
    }

    fn rates(&mut self, around: &Surroundings<'_>, old: &mut Rules, new: &mut Rules) {
        let wanted = |port: &Id| {
            let netdev = self.uses.get(port).filter(|_| polices(around.adapter))?;
            let rates = Rates::of(around.intent.ports.get(port)?.spec.qos?)?;
            Some((netdev.ifindex, rates))
        };
        for port in around.touched_ports {
            let now = wanted(port);
            let was = match now {
                Some(now) => self.rates.insert(port.clone(), now),
                None => self.rates.remove(port),
            };
            if was != now {
                let write = |out: &mut Rules, kept: Option<(Ifindex, Rates)>| {
                    if let Some((representor, rates)) = kept {
                        rates.rules(out, representor, port);
                    }
                };
                write(old, was);
                write(new, now);
            }
        }
    }

    /// Brings the touched networks up to date, and those whose tags they give up or take; says
    /// which they were, and whether there was one that gave up or took a tag.
    fn networks(
        &mut self,
        around: &Surroundings<'_>,
        chainless: bool,
        old: &mut Rules,
        new: &mut Rules,
    ) -> (BTreeSet<Id>, bool) {
        let mut networks = around.touched_networks.clone();
        let mut tags_moved = false;
        let mut before: BTreeMap<Id, Option<Segment>> = BTreeMap::new();
        for id in around.touched_networks {
            let was = self.segments.remove(id);
            let now = segment(around, chainless, id, was.as_ref());
            let claim = |segment: &Segment| {
                segment.uplink.map(|uplink| (uplink.tag, (segment.number, segment.id.clone())))
            };
            let (claimed, claims) = (was.as_ref().and_then(claim), now.as_ref().and_then(claim));
            if claimed != claims {
                tags_moved = true;
                if let Some((tag, claimant)) = &claimed
                    && let Some(claimants) = self.claimants.get_mut(tag)
                {
                    claimants.remove(claimant);
                    networks.extend(claimants.iter().map(|(_, network)| network.clone()));
                    if claimants.is_empty() {
                        self.claimants.remove(tag);
                    }
                }
                if let Some((tag, claimant)) = claims {
                    let claimants = self.claimants.entry(tag).or_default();
                    claimants.insert(claimant);
                    networks.extend(claimants.iter().map(|(_, network)| network.clone()));
                }
            }
            before.insert(id.clone(), was);
            self.segments.extend(now.map(|now| (id.clone(), now)));
        }
        for id in &networks {
            let was_displaced = self.displaced.remove(id).is_some();
            let now = self.segments.get(id);
            let first = now.and_then(|now| now.uplink).and_then(|uplink| {
                let (_, first) = self.claimants.get(&uplink.tag)?.first()?;
                (first != id).then(|| first.clone())
            });
            let was = match before.get(id) {
                Some(was) => was.as_ref(),
                None => now,
            };
            let was = was.filter(|_| !was_displaced);
            let now = now.filter(|_| first.is_none());
            match (was, now) {
                (Some(was), Some(now)) if was == now => {}
                (Some(was), Some(now)) => {
                    let part = Part::between(was, now);
                    was.rules(&part, old);
                    now.rules(&part, new);
                }
                (Some(was), None) => was.rules(&Part::Whole, old),
                (None, Some(now)) => now.rules(&Part::Whole, new),
                (None, None) => {}
            }
            self.displaced.extend(first.map(|first| (id.clone(), first)));
        }
        (networks, tags_moved)
    }

    fn entry(&mut self, around: &Surroundings<'_>, old: &mut Rules, new: &mut Rules) {
        let entry = around.adapter.uplink.as_ref().map(|uplink| {
            let mut owners: Vec<&Segment> = self
                .segments
                .values()
                .filter(|segment| !self.displaced.contains_key(&segment.id))
                .collect();
            owners.sort_by_key(|segment| (segment.number, &segment.id));
            let owned = |segment: &&Segment| {
                let tag = segment.uplink?.tag;
                Some(Owned { network: segment.id.clone(), base: segment.base(), tag })
            };
            Entry {
                uplink: uplink.clone(),
                uplink_use: around.uplink_use,
                owned: owners.iter().filter_map(owned).collect(),
            }
        });
        if self.entry == entry {
            return;
        }
        if let Some(before) = &self.entry {
            before.rules(old);
        }
        if let Some(entry) = &entry {
            entry.rules(new);
        }
        self.entry = entry;
    }
}

/// A network's part of this adapter, if it has one: a member at least.
fn segment(
    around: &Surroundings<'_>,
    chainless: bool,
    id: &Id,
    before: Option<&Segment>,
) -> Option<Segment> {
    let network = around.intent.networks.get(id)?;
    let elsewhere = |adapter: &Id| adapter != around.adapter_id;
    if network.spec.adapter.as_ref().is_some_and(elsewhere) {
        return None;
    }
    let members = members(around, id, before);
    if members.is_empty() {
        return None;
    }
    let uplink = around.adapter.uplink.as_ref().and_then(|netdev| {
        let tag = match &network.spec.kind {
            NetworkKind::Isolated => return None,
            NetworkKind::Flat => None,
            NetworkKind::Vlan(tag) => Some((tpid(tag.proto), VlanId::new(tag.vid.get())?)),
        };
        let host_is_on_it = tag.is_none() && around.uplink_use == UplinkUse::Shared;
        let end = if host_is_on_it { FloodEnd::ToHost } else { FloodEnd::Drop };
        Some(Uplink { ifindex: netdev.ifindex, tag, end })
    });
    let mut segment = Segment {
        id: id.clone(),
        number: network.number,
        unknown_unicast: network.spec.unknown_unicast,
        groups: BTreeSet::new(),
        shared: BTreeSet::new(),
        uplink,
        room: FloodRoom::of(around.adapter),
        chainless,
        members,
        beyond_ceiling: BTreeSet::new(),
    };
    match before {
        // Addresses are nothing to a flood.
        Some(before) if before.beyond_ceiling.is_empty() && same_floods(before, &segment) => {}
        _ => segment.cut_to_ceiling(),
    }
    segment.shared =
        segment.members.iter().flat_map(|member| member.shared.iter().copied()).collect();
    if network.spec.multicast == Multicast::Declared {
        segment.narrow();
    }
    Some(segment)
}

fn same_floods(one: &Segment, other: &Segment) -> bool {
    let members = |segment: &Segment| {
        let place = |member: &Member| (member.ifindex, member.tag, member.isolated);
        segment.members.iter().map(place).collect::<Vec<_>>()
    };
    one.uplink == other.uplink && one.room == other.room && members(one) == members(other)
}

/// The members of a network on this adapter, in order of creation. Of those that nothing touched it
/// is known what they are.
fn members(around: &Surroundings<'_>, network: &Id, before: Option<&Segment>) -> Vec<Member> {
    let ports = around.roster.of_network(network);
    let Some(before) = before else {
        return ports.filter_map(|port| member(around, network, port)).collect();
    };
    let untouched = |member: &&Member| !around.touched_ports.contains(&member.port);
    let mut known = before.members.iter().filter(untouched).peekable();
    ports
        .filter_map(|port| match known.next_if(|member| member.port == *port) {
            Some(member) => Some(member.clone()),
            None if around.touched_ports.contains(port) || before.beyond_ceiling.contains(port) => {
                member(around, network, port)
            }
            None => None,
        })
        .collect()
}

/// A port's attachment to a network on this adapter.
fn member(around: &Surroundings<'_>, network: &Id, port: &Id) -> Option<Member> {
    let plan = around.ports.get(port)?;
    let place = plan.place.as_ref().ok()?;
    let representor = place.representor.as_ref()?;
    let spec = &around.intent.ports.get(port)?.spec;
    let narrows = around.intent.networks.get(network)?.spec.multicast == Multicast::Declared;
    if place.adapter != *around.adapter_id
        || spec.admin_state == AdminState::Down
        || plan.macs.is_empty()
    {
        return None;
    }
    let attachment = spec.attachments.iter().find(|attachment| attachment.network == *network)?;
    if qinq_without_vlan(around.intent, attachment).is_some() {
        return None;
    }
    let tag = attachment.tag.and_then(|vid| Some((VlanTpid::Dot1Q, VlanId::new(vid.get())?)));
    Some(Member {
        port: port.clone(),
        ifindex: representor.ifindex,
        tag,
        keeps_tags: attachment.qinq,
        macs: plan.macs.clone(),
        shared: plan.macs.iter().copied().filter(|mac| is_shared(spec, *mac)).collect(),
        promiscuous: plan.promiscuous,
        asked: plan.groups.clone().filter(|_| narrows),
        crowded_out: false,
        isolated: spec.isolated,
        sources: Sources::of(spec).map(Arc::new),
        allow: spec.allow.iter().map(|allowance| Allowed::from(*allowance)).collect(),
        flood_limit: spec.qos.and_then(|qos| qos.flood_limit).filter(|_| polices(around.adapter)),
    })
}

/// Takes the old rules out of the program and puts the new ones in, but for those that stay.
fn exchange(program: &mut FlowProgram, old: Rules, new: Rules, delta: &mut FlowDelta) {
    let Rules(mut hooks) = new;
    let Rules(old) = old;
    for (hook, old) in old {
        let new = hooks.remove(&hook).unwrap_or_default();
        exchange_at(hook, old, new, program, delta);
    }
    for (hook, new) in hooks {
        exchange_at(hook, Vec::new(), new, program, delta);
    }
}

/// The same at one hook.
fn exchange_at(
    hook: Hook,
    mut old: Vec<Reasoned>,
    mut new: Vec<Reasoned>,
    program: &mut FlowProgram,
    delta: &mut FlowDelta,
) {
    let by_id = |one: &Reasoned, other: &Reasoned| one.0.id().cmp(other.0.id());
    // Most of them are in order already, in long runs: what a stable sort is quick with.
    old.sort_by(by_id);
    new.sort_by(by_id);
    let mut put = Vec::with_capacity(new.len());
    let mut new = new.into_iter().peekable();
    for was in old {
        while let Some(now) = new.next_if(|now| now.0.id() < was.0.id()) {
            put.push(now);
        }
        match new.next_if(|now| now.0.id() == was.0.id()) {
            Some(now) if now == was => continue,
            now => put.extend(now),
        }
        program.rules.remove(was.0.id());
        delta.gone.push(was);
    }
    put.extend(new);
    match program.rules.insert_at(hook, put.clone()) {
        Ok(()) => delta.put.append(&mut put),
        // A property test holds the planner to it that this cannot be.
        Err(error) => debug_assert!(false, "{error}"),
    }
}

fn tpid(proto: VlanProto) -> VlanTpid {
    match proto {
        VlanProto::Dot1Q => VlanTpid::Dot1Q,
        VlanProto::Dot1Ad => VlanTpid::Dot1Ad,
    }
}
