//! The rules of a part of the program.
//!
//! In: a [`Segment`] and which [`Part`] of it, a representor, or an uplink with the networks on it.
//! Out: rules with their reasons. Each rule depends on nothing but what its own part is made of.

use std::{collections::BTreeMap, sync::Arc};

use api::types::{Id, MacAddr};
use tc_flows::{Action, ChainId, Hook, Ifindex, Mac, Match, Prio, Rule, VlanId, VlanTpid};

use super::{
    Purpose, RECEIVERS_PER_RULE, Reasoned, UNKNOWN_FLOOD, Why,
    segment::{Member, Part, Receiver, Segment, Tag},
};
use crate::{config::UplinkUse, world::NetdevView};

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
    /// Adds a rule. The planner's own construction keeps rules valid, which the property tests hold
    /// it to; should it ever fail, the rule is left out: a frame is then dropped by a later rule,
    /// never delivered wrongly.
    fn add(
        &mut self,
        hook: Hook,
        chain: u32,
        prio: u16,
        matched: Match,
        actions: impl Into<Arc<[Action]>>,
        why: &Arc<Why>,
    ) {
        let (Some(chain), Some(prio)) = (ChainId::new(chain), Prio::new(prio)) else { return };
        match Rule::new(hook, chain, prio, matched, actions) {
            Ok(rule) => self.0.entry(hook).or_default().push((rule, Arc::clone(why))),
            Err(error) => debug_assert!(false, "{error}"),
        }
    }
}

/// A reason without port and network.
fn of_adapter(purpose: Purpose) -> Arc<Why> {
    Arc::new(Why { purpose, port: None, network: None })
}

/// What every representor holds, with or without a port.
pub(super) fn representor_guards(out: &mut Rules, representor: Ifindex) {
    let hook = Hook::ingress(representor);
    out.add(
        hook,
        0,
        2,
        Match::any().dst_masked(
            Mac([0x01, 0x80, 0xc2, 0, 0, 0]),
            Mac([0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]),
        ),
        [Action::Drop],
        &of_adapter(Purpose::LinkLocalGuard),
    );
    let why = of_adapter(Purpose::DoubleTagGuard);
    for inner in [VlanTpid::Dot1Q, VlanTpid::Dot1Ad] {
        let matched = Match::double_tagged(VlanTpid::Dot1Q, None, inner);
        out.add(hook, 0, 4, matched, [Action::Drop], &why);
    }
    let why = of_adapter(Purpose::TagGuard);
    for (prio, tpid) in [(8, VlanTpid::Dot1Q), (10, VlanTpid::Dot1Ad)] {
        out.add(hook, 0, prio, Match::tagged(tpid), [Action::Drop], &why);
    }
    out.add(hook, 0, 14, Match::any(), [Action::Drop], &of_adapter(Purpose::DefaultDrop));
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
struct Entrance {
    hook: Hook,
    tag: Tag,
    end: FloodEnd,
}

impl Segment {
    /// The rules of a part of this segment.
    pub(super) fn rules(&self, part: &Part, out: &mut Rules) {
        let entrances: Vec<(Entrance, Option<&Member>)> = self.entrances().collect();
        self.unicast(part, &entrances, out);
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
            if whole || part.unknown() {
                self.flood_unknown(entrance, out);
            }
        }
    }

    /// Every member's hook, and the uplink's.
    fn entrances(&self) -> impl Iterator<Item = (Entrance, Option<&Member>)> {
        let members = self.members.iter().map(|member| {
            let hook = Hook::ingress(member.ifindex);
            (Entrance { hook, tag: member.tag, end: FloodEnd::Drop }, Some(member))
        });
        let uplink = self.uplink.map(|uplink| {
            let hook = Hook::ingress(uplink.ifindex);
            (Entrance { hook, tag: uplink.tag, end: uplink.end }, None)
        });
        members.chain(uplink)
    }

    fn why(&self, purpose: Purpose, port: Option<&Id>) -> Arc<Why> {
        Arc::new(Why { purpose, port: port.cloned(), network: Some(self.id.clone()) })
    }

    /// Leads what `sender` may send into its attachment's chain.
    fn admission(&self, sender: &Member, out: &mut Rules) {
        let hook = Hook::ingress(sender.ifindex);
        let Some(chain) = ChainId::new(self.base()) else { return };
        for mac in &sender.macs {
            let why = self.why(Purpose::Admission(*mac), Some(&sender.port));
            match sender.tag {
                Some((tpid, vid)) => {
                    let matched = Match::vlan(tpid, vid).src(wire(*mac));
                    out.add(hook, 0, 6, matched, [Action::Goto(chain)], &why);
                }
                None => {
                    let matched = Match::any().src(wire(*mac));
                    out.add(hook, 0, 12, matched, [Action::Goto(chain)], &why);
                    // A priority tag (VID 0) is no VLAN (IEEE 802.1Q, 6.9).
                    if let Some(none) = VlanId::new(0) {
                        let matched = Match::vlan(VlanTpid::Dot1Q, none).src(wire(*mac));
                        out.add(hook, 0, 6, matched, [Action::VlanPop, Action::Goto(chain)], &why);
                    }
                }
            }
        }
    }

    /// Never returns a guest's own frame to it, nor sends it out: only where unicast that no port
    /// owns goes somewhere.
    fn own_addresses(&self, sender: &Member, out: &mut Rules) {
        let hook = Hook::ingress(sender.ifindex);
        if self.receivers_of_unknown(hook).is_empty() {
            return;
        }
        for mac in &sender.macs {
            let why = self.why(Purpose::OwnAddressGuard(*mac), Some(&sender.port));
            out.add(hook, self.base(), 2, Match::any().dst(wire(*mac)), [Action::Drop], &why);
        }
    }

    /// At each entrance every address of the other members.
    fn unicast(&self, part: &Part, entrances: &[(Entrance, Option<&Member>)], out: &mut Rules) {
        let everywhere: Vec<&Member> =
            self.members.iter().filter(|member| part.addresses(&member.port)).collect();
        for receiver in &everywhere {
            self.unicast_to(receiver, entrances.iter().map(|(entrance, _)| *entrance), out);
        }
        // At an entrance that is meant as a whole, those who are not meant everywhere.
        let whole = entrances
            .iter()
            .filter(|(_, member)| member.is_some_and(|member| part.whole(&member.port)));
        for (entrance, _) in whole {
            for receiver in self.members.iter().filter(|member| !part.addresses(&member.port)) {
                self.unicast_to(receiver, std::iter::once(*entrance), out);
            }
        }
    }

    fn unicast_to(
        &self,
        receiver: &Member,
        entrances: impl Iterator<Item = Entrance> + Clone,
        out: &mut Rules,
    ) {
        for mac in &receiver.macs {
            let why = self.why(Purpose::Unicast(*mac), Some(&receiver.port));
            let matched = Match::any().dst(wire(*mac));
            let mut actions: BTreeMap<Tag, Arc<[Action]>> = BTreeMap::new();
            for Entrance { hook, tag, .. } in entrances.clone() {
                if hook.ifindex() == Some(receiver.ifindex) {
                    continue;
                }
                let actions = actions.entry(tag).or_insert_with(|| {
                    let rewrite = rewrite(tag, receiver.tag).into_iter();
                    rewrite.chain([Action::Redirect(receiver.ifindex)]).collect()
                });
                out.add(hook, self.base(), 2, matched.clone(), Arc::clone(actions), &why);
            }
        }
    }

    /// Group frames, over as many chains as the receivers' tags and number take.
    fn flood(&self, Entrance { hook, tag, end }: Entrance, out: &mut Rules) {
        let group = Mac([1, 0, 0, 0, 0, 0]);
        let steps = flood_steps(tag, self.receivers(hook), end);
        let first = (4, Match::any().dst_masked(group, group));
        self.steps(out, hook, first, self.base() + 1, steps, Purpose::Flood);
    }

    /// Unicast that no port owns, likewise.
    fn flood_unknown(&self, Entrance { hook, tag, end }: Entrance, out: &mut Rules) {
        let steps = flood_steps(tag, self.receivers_of_unknown(hook), end);
        let next = self.base() + UNKNOWN_FLOOD;
        self.steps(out, hook, (6, Match::any()), next, steps, Purpose::UnknownUnicast);
    }

    /// The rules of one flood: the first in the network's chain, the others in chains from `next`.
    fn steps(
        &self,
        out: &mut Rules,
        hook: Hook,
        (prio, matched): (u16, Match),
        next: u32,
        steps: Vec<Vec<Action>>,
        purpose: Purpose,
    ) {
        let why = self.why(purpose, None);
        let last = steps.len() - 1;
        let (mut chain, mut prio, mut matched) = (self.base(), prio, matched);
        for (step, mut actions) in (0..).zip(steps) {
            let following = next + step;
            if (step as usize) < last
                && let Some(following) = ChainId::new(following)
            {
                actions.push(Action::Goto(following));
            }
            out.add(hook, chain, prio, matched, actions, &why);
            (chain, prio, matched) = (following, 2, Match::any());
        }
    }
}

/// The rules of one flood, as actions without the gotos between them: never empty, each with at
/// most one tag change, which stands before the rule's first receiver.
pub(super) fn flood_steps(from: Tag, receivers: Vec<Receiver>, end: FloodEnd) -> Vec<Vec<Action>> {
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

fn wire(mac: MacAddr) -> Mac {
    Mac(mac.0)
}
