//! A network's part of one adapter: its members there, and its place on the uplink.
//!
//! In: what the earlier stages say of ports. Out: a [`Segment`], complete in itself, so that two of
//! them tell what of the rules must be written anew ([`Part`]). No rules here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use api::{
    resources::{Allowance, UnknownUnicast},
    types::{Id, MacAddr},
};
use tc_flows::{Hook, Ifindex, VlanId, VlanTpid};

use super::{
    CHAINS_PER_NETWORK, FloodRoom,
    rules::{FloodEnd, flood_steps},
    source::Sources,
};
use crate::plan::Finding;

/// A network has room for so many groups that go to some of its members only: each costs a rule at
/// every member's hook. Members whose guests ask for more get all.
const GROUPS_MAX: usize = 256;

/// What every member gets.
pub(super) const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// The outer tag of a frame.
pub(super) type Tag = Option<(VlanTpid, VlanId)>;

/// A port's attachment to a network on this adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) port: Id,
    pub(super) ifindex: Ifindex,
    pub(super) tag: Tag,
    /// Whether one tag of the guest's own stays in its frames: only where `tag` is none.
    pub(super) keeps_tags: bool,
    pub(super) macs: Vec<MacAddr>,
    /// Those of them that other ports may have, too, here or elsewhere.
    pub(super) shared: Vec<MacAddr>,
    /// Whether it gets what no port owns.
    pub(super) promiscuous: bool,
    /// The groups that its guest asks for, in order, where that decides what it gets.
    pub(super) asked: Option<Arc<[MacAddr]>>,
    /// Whether the network has no room for them: it gets all groups then.
    pub(super) crowded_out: bool,
    /// Whether it is kept from other members of which this is so.
    pub(super) isolated: bool,
    /// What it may send from, where more than its MAC addresses is checked.
    pub(super) sources: Option<Arc<Sources>>,
    /// What it may send though others may not.
    pub(super) allow: BTreeSet<Allowed>,
    /// Frames a second that it may flood, where that is kept.
    pub(super) flood_limit: Option<u32>,
}

/// An [`Allowance`], in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Allowed {
    Router,
    DhcpServer,
    LinkLocal,
}

impl Member {
    /// The groups that it gets, in order; none where it gets all.
    fn groups(&self) -> Option<&[MacAddr]> {
        self.asked.as_deref().filter(|_| !self.crowded_out)
    }

    /// Whether it gets what is sent to this group.
    fn gets(&self, group: MacAddr) -> bool {
        self.groups().is_none_or(|groups| groups.binary_search(&group).is_ok())
    }
}

impl From<Allowance> for Allowed {
    fn from(allowance: Allowance) -> Allowed {
        match allowance {
            Allowance::RouterAdvertisements => Allowed::Router,
            Allowance::DhcpServer => Allowed::DhcpServer,
            Allowance::LinkLocalGroups => Allowed::LinkLocal,
        }
    }
}

/// A network's way to the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uplink {
    pub(super) ifindex: Ifindex,
    pub(super) tag: Tag,
    /// What becomes of a flooded frame from the wire after its last copy.
    pub(super) end: FloodEnd,
}

/// A network on this adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) id: Id,
    /// Its number: who comes first, and where its chains are.
    pub(super) number: u32,
    pub(super) unknown_unicast: UnknownUnicast,
    /// The groups that go to some of the members only, and broadcast, which does not; empty where
    /// all get all.
    pub(super) groups: BTreeSet<MacAddr>,
    /// The addresses that several ports may have.
    pub(super) shared: BTreeSet<MacAddr>,
    pub(super) uplink: Option<Uplink>,
    /// How far its frames can be flooded.
    pub(super) room: FloodRoom,
    /// Whether the hardware has no chains but the first.
    pub(super) chainless: bool,
    /// In order of creation.
    pub(super) members: Vec<Member>,
    /// The members for which no flood has room: they take part in nothing.
    pub(super) beyond_ceiling: BTreeSet<Id>,
}

/// Where a copy of a flooded frame goes, and how it is tagged there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Receiver {
    pub(super) uplink: bool,
    pub(super) tag: Tag,
    pub(super) ifindex: Ifindex,
}

/// What of a segment's rules.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All.
    Whole,
    /// Some.
    Some {
        /// Ports of which all is meant: the rules on their own hooks, and those elsewhere that lead
        /// to them.
        ports: BTreeSet<Id>,
        /// Ports of which that is meant which depends on their addresses.
        addresses: BTreeSet<Id>,
        /// The floods of groups and of shared addresses at all hooks.
        floods: bool,
        /// Those of them that are meant if not all are, by destination.
        destinations: BTreeSet<MacAddr>,
        /// What is done at all hooks with addresses that no port owns.
        unknown: bool,
    },
}

impl Segment {
    /// The first of its chains.
    pub(super) const fn base(&self) -> u32 {
        self.number * CHAINS_PER_NETWORK
    }

    /// Everybody who gets a copy of a frame to this group that came in at `from`.
    pub(super) fn receivers_of_group(&self, from: Hook, group: MacAddr) -> Vec<Receiver> {
        self.receivers_among(from, true, |member| group == BROADCAST || member.gets(group))
    }

    /// Everybody who gets a copy of a frame to any other group.
    pub(super) fn receivers_of_others(&self, from: Hook) -> Vec<Receiver> {
        self.receivers_among(from, true, |member| member.groups().is_none())
    }

    /// Everybody who may have this address, and the uplink, behind which somebody may.
    pub(super) fn receivers_of_shared(&self, from: Hook, mac: MacAddr) -> Vec<Receiver> {
        let uplink = self.unknown_unicast == UnknownUnicast::Uplink;
        self.receivers_among(from, uplink, |member| member.shared.contains(&mac))
    }

    /// Everybody who gets a copy of a frame to an address that no port owns, that came in at
    /// `from`: some of those who get a group frame, so that no flood of these is longer.
    pub(super) fn receivers_of_unknown(&self, from: Hook) -> Vec<Receiver> {
        let uplink = self.unknown_unicast == UnknownUnicast::Uplink;
        self.receivers_among(from, uplink, |member| member.promiscuous)
    }

    fn receivers_among(
        &self,
        from: Hook,
        uplink: bool,
        gets_it: impl Fn(&Member) -> bool,
    ) -> Vec<Receiver> {
        let isolated = self.isolates(from);
        let gets_it = |member: &&Member| gets_it(member) && !(isolated && member.isolated);
        let members = self.members.iter().filter(gets_it).map(|member| Receiver {
            uplink: false,
            tag: member.tag,
            ifindex: member.ifindex,
        });
        let uplink = self.uplink.filter(|_| uplink).map(|uplink| Receiver {
            uplink: true,
            tag: uplink.tag,
            ifindex: uplink.ifindex,
        });
        members.chain(uplink).filter(|receiver| Some(receiver.ifindex) != from.ifindex()).collect()
    }

    /// Whether what comes in at this hook is kept from isolated members.
    fn isolates(&self, from: Hook) -> bool {
        let mut isolated = self.members.iter().filter(|member| member.isolated);
        isolated.any(|member| Some(member.ifindex) == from.ifindex())
    }

    /// Takes out the last members, in order of creation, until a flood from anywhere fits.
    pub(super) fn cut_to_ceiling(&mut self) {
        while self.may_be_long() && self.longest_flood() > self.room.gotos {
            match self.members.pop() {
                Some(member) => self.beyond_ceiling.insert(member.port),
                None => break,
            };
        }
    }

    /// Narrows groups to the members whose guests ask for them, in order of creation, as long as
    /// there is room.
    pub(super) fn narrow(&mut self) {
        self.groups = BTreeSet::from([BROADCAST]);
        for member in &mut self.members {
            let Some(asked) = &member.asked else { continue };
            let new = asked.iter().filter(|group| !self.groups.contains(*group)).count();
            member.crowded_out = self.groups.len() + new > GROUPS_MAX + 1;
            if !member.crowded_out {
                self.groups.extend(asked.iter());
            }
        }
    }

    /// Whether a flood may be too long: not where each tagging has room of its own.
    fn may_be_long(&self) -> bool {
        let tags: BTreeSet<Tag> = self.members.iter().map(|member| member.tag).collect();
        // Each tagging's last rule may have room left; the uplink, the way back and the admission
        // take one more each.
        tags.len() + self.members.len() / self.room.receivers + 3 > self.room.gotos
    }

    /// Gotos of the longest flood, the admission's among them.
    fn longest_flood(&self) -> usize {
        // A sender's own tag decides how many rewrites its flood takes: one sender of each is enough.
        let mut seen = BTreeSet::new();
        let members = self.members.iter();
        let members = members.map(|member| (member.ifindex, member.tag, member.isolated));
        let uplink = self.uplink.map(|uplink| (uplink.ifindex, uplink.tag, false));
        members
            .chain(uplink)
            .filter(|(_, tag, isolated)| seen.insert((*tag, *isolated)))
            .map(|(from, tag, _)| {
                let receivers = self.receivers_of_group(Hook::ingress(from), BROADCAST);
                flood_steps(tag, receivers, FloodEnd::ToHost, self.room).len()
            })
            .max()
            .unwrap_or(0)
    }

    /// Why this port's attachment is not as it should be.
    pub(super) fn finding(&self, port: &Id) -> Option<Finding> {
        let FloodRoom { gotos, receivers } = self.room;
        self.beyond_ceiling.contains(port).then(|| {
            Finding::new(
                "FloodCeiling",
                format!(
                    "network `{}` has more members than one frame can be flooded to ({gotos} \
                     gotos of {receivers} receivers); use a second network",
                    self.id
                ),
            )
        })
    }
}

impl Part {
    /// What differs between two states of one segment.
    pub(super) fn between(old: &Segment, new: &Segment) -> Part {
        let outside = |segment: &Segment| {
            let Segment { number, unknown_unicast, uplink, room, chainless, .. } = segment;
            let narrows = !segment.groups.is_empty();
            (*number, *unknown_unicast, *uplink, *room, *chainless, narrows)
        };
        if outside(old) != outside(new) {
            return Part::Whole;
        }
        let (mut ports, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let (mut unknown, mut regrouped) = (false, false);
        let mut destinations = BTreeSet::new();
        let mut compare = |ports: &mut BTreeSet<Id>, before: &Member, member: &Member| {
            let place = |member: &Member| (member.ifindex, member.tag, member.isolated);
            if place(before) != place(member) {
                ports.insert(member.port.clone());
                return;
            }
            if before.macs != member.macs
                || before.shared != member.shared
                || before.keeps_tags != member.keeps_tags
                || before.sources != member.sources
                || before.allow != member.allow
                || before.flood_limit != member.flood_limit
            {
                addresses.insert(member.port.clone());
            }
            unknown |= before.promiscuous != member.promiscuous;
            let set = |macs: &[MacAddr]| -> BTreeSet<MacAddr> { macs.iter().copied().collect() };
            destinations.extend(&set(&before.shared) ^ &set(&member.shared));
            match (before.groups(), member.groups()) {
                (before, now) if before == now => {}
                (Some(before), Some(now)) => destinations.extend(&set(before) ^ &set(now)),
                // Who gets all is in every flood.
                _ => regrouped = true,
            }
        };
        // Both stand in order of creation, and mostly they are the same ports.
        let mut olds = old.members.iter();
        let mut gone: BTreeMap<&Id, &Member> = BTreeMap::new();
        let mut come: Vec<&Member> = Vec::new();
        for member in &new.members {
            match olds.next() {
                Some(before) if before.port == member.port => compare(&mut ports, before, member),
                before => {
                    gone.extend(before.map(|before| (&before.port, before)));
                    come.push(member);
                }
            }
        }
        gone.extend(olds.map(|before| (&before.port, before)));
        for member in come {
            match gone.remove(&member.port) {
                Some(before) => compare(&mut ports, before, member),
                None => {
                    ports.insert(member.port.clone());
                }
            }
        }
        ports.extend(gone.into_keys().cloned());
        let others = !ports.is_empty();
        let (floods, unknown) = (regrouped || others, unknown || others);
        Part::Some { ports, addresses, floods, destinations, unknown }
    }

    pub(super) fn whole(&self, port: &Id) -> bool {
        match self {
            Part::Whole => true,
            Part::Some { ports, .. } => ports.contains(port),
        }
    }

    pub(super) fn addresses(&self, port: &Id) -> bool {
        match self {
            Part::Whole => true,
            Part::Some { ports, addresses, .. } => ports.contains(port) || addresses.contains(port),
        }
    }

    pub(super) const fn floods(&self) -> bool {
        matches!(self, Part::Whole | Part::Some { floods: true, .. })
    }

    /// Whether the flood to this group or shared address is meant.
    pub(super) fn flood_to(&self, mac: &MacAddr) -> bool {
        match self {
            Part::Whole => true,
            Part::Some { floods, destinations, .. } => *floods || destinations.contains(mac),
        }
    }

    pub(super) const fn unknown(&self) -> bool {
        matches!(self, Part::Whole | Part::Some { unknown: true, .. })
    }
}
