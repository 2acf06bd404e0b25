//! A set of rules that a kernel can hold together and whose meaning does not depend on the order
//! in which it was installed.
//!
//! In come rules one by one; refused are those under which one prio would hold two protocols
//! (`tc_new_tfilter` in net/sched/cls_api.c answers "Protocol mismatch"), one identity twice, or
//! two rules that could both match one frame (within a prio flower asks the masks in the order of
//! their creation, `fl_classify` over `head->masks` in net/sched/cls_flower.c, and no dump shows
//! that order). Nothing here knows what is installed.
//!
//! Whether two rules could match one frame is told exactly from their masked keys and port ranges.
//! Only options of tunnels of two kinds are taken for an overlap although they hardly are one.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map, btree_set};

use crate::ident::{Hook, Prio};
use crate::key::Fields;
use crate::rule::{ById, OfRule, Rule, RuleId, Slot};

/// Why a rule cannot join a set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    /// The prio holds rules of another protocol.
    #[error("prio {prio} holds protocol {held:#06x}, the rule has {offered:#06x}: {rule:?}")]
    Protocol {
        /// The rule that was refused.
        rule: Box<RuleId>,
        /// Its prio.
        prio: Prio,
        /// Protocol of the rules there.
        held: u16,
        /// Protocol of the rule that was refused.
        offered: u16,
    },
    /// The set holds a rule of this identity.
    #[error("the set already holds {0:?}")]
    Duplicate(Box<RuleId>),
    /// A rule with other masks in that prio could match the same frame.
    #[error("{rule:?} and {with:?} could match one frame and share a prio")]
    Overlap {
        /// The rule that was refused.
        rule: Box<RuleId>,
        /// The rule that it overlaps.
        with: Box<RuleId>,
    },
}

/// An ordered set of rules, by identity: hook, then chain, then prio. Beside each rule stands what
/// its owner notes of it.
#[derive(Clone, Debug)]
pub struct RuleSet<Note = ()> {
    /// Hooks that have rules.
    hooks: BTreeMap<Hook, OfHook<Note>>,
}

/// The rules of one hook.
#[derive(Clone, Debug)]
struct OfHook<Note> {
    rules: BTreeSet<ById<Noted<Note>>>,
    prios: Prios,
}

#[derive(Clone, Debug)]
struct Noted<Note> {
    rule: Rule,
    note: Note,
}

impl<Note> OfRule for Noted<Note> {
    fn rule(&self) -> &Rule {
        &self.rule
    }
}

/// What the overlap check needs to know about one prio.
#[derive(Clone, Debug)]
struct PrioIndex {
    protocol: u16,
    shapes: Vec<ShapeIndex>,
}

/// The rules of one mask shape in one prio. Without port ranges they cannot overlap among
/// themselves: same bits looked at, different values.
#[derive(Clone, Debug)]
struct ShapeIndex {
    shape: Fields,
    rules: usize,
    /// For every set of bits that this shape has in common with another one of the prio (and with
    /// itself, where it has port ranges): how many rules show each value there. A rule of that
    /// other shape overlaps those that show its own value, unless their ports tell them apart.
    seen_through: HashMap<Fields, HashMap<Fields, usize>>,
}

impl RuleSet {
    /// The empty set, of rules without notes.
    pub fn new() -> RuleSet {
        RuleSet::default()
    }

    /// Adds a rule, see [`RuleSet::insert_noted`].
    ///
    /// # Errors
    /// Where the rule cannot stand beside those already there; the set is then unchanged.
    pub fn insert(&mut self, rule: Rule) -> Result<(), Clash> {
        self.insert_noted(rule, ())
    }
}

impl<Note> RuleSet<Note> {
    /// Adds a rule with a note.
    ///
    /// Costs O(log n) while a prio holds rules of one mask shape, and as many look-ups more as it
    /// holds other shapes; with port ranges as many comparisons as the prio holds rules, unless
    /// the other keys of the rule are its own.
    ///
    /// # Errors
    /// Where the rule cannot stand beside those already there; the set is then unchanged.
    pub fn insert_noted(&mut self, rule: Rule, note: Note) -> Result<(), Clash> {
        let hook = self.hooks.entry(rule.hook()).or_insert_with(OfHook::new);
        // A hook without rules takes any.
        hook.insert(rule, note)
    }

    /// Adds rules of one hook with their notes: all at once, and so many times faster than one by
    /// one, where they are in order of identity and the hook has none yet.
    ///
    /// # Errors
    /// The first rule that cannot stand beside the others; the set is then unchanged.
    pub fn insert_at(&mut self, hook: Hook, rules: Vec<(Rule, Note)>) -> Result<(), Clash> {
        let ascending = rules.is_sorted_by(|(one, _), (next, _)| one.id() < next.id());
        if !self.hooks.contains_key(&hook) && ascending {
            if !rules.is_empty() {
                self.hooks.insert(hook, OfHook::of(rules)?);
            }
            return Ok(());
        }
        let mut added = Vec::with_capacity(rules.len());
        for (rule, note) in rules {
            added.push(rule.id().clone());
            if let Err(clash) = self.insert_noted(rule, note) {
                added.pop();
                for id in &added {
                    self.remove(id);
                }
                return Err(clash);
            }
        }
        Ok(())
    }

    /// Takes a rule out.
    pub fn remove(&mut self, id: &RuleId) -> Option<Rule> {
        let hook = self.hooks.get_mut(&id.hook())?;
        let rule = hook.remove(id)?;
        if hook.rules.is_empty() {
            self.hooks.remove(&id.hook());
        }
        Some(rule)
    }

    /// The rule of this identity.
    pub fn get(&self, id: &RuleId) -> Option<&Rule> {
        self.get_noted(id).map(|(rule, _)| rule)
    }

    /// The rule of this identity and its note.
    pub fn get_noted(&self, id: &RuleId) -> Option<(&Rule, &Note)> {
        let ById(Noted { rule, note }) = self.hooks.get(&id.hook())?.rules.get(id)?;
        Some((rule, note))
    }

    /// Whether the set holds a rule of this identity.
    pub fn contains(&self, id: &RuleId) -> bool {
        self.get(id).is_some()
    }

    /// All rules, in order of identity.
    pub fn iter(&self) -> Rules<'_, Note> {
        Rules(self.iter_noted())
    }

    /// All rules and their notes, in order of identity.
    pub fn iter_noted(&self) -> NotedRules<'_, Note> {
        NotedRules { hooks: self.hooks.values(), rules: None }
    }

    /// The rules of one hook, in order of chain and prio.
    pub fn of_hook(&self, hook: Hook) -> impl Iterator<Item = &Rule> {
        self.of_hook_noted(hook).map(|(rule, _)| rule)
    }

    /// The rules of one hook and their notes, in order of chain and prio.
    pub fn of_hook_noted(&self, hook: Hook) -> impl Iterator<Item = (&Rule, &Note)> {
        let rules = self.hooks.get(&hook).into_iter().flat_map(|hook| &hook.rules);
        rules.map(|ById(Noted { rule, note })| (rule, note))
    }

    /// How many rules there are at a hook.
    pub fn len_at(&self, hook: Hook) -> usize {
        self.hooks.get(&hook).map_or(0, |hook| hook.rules.len())
    }

    /// How many rules.
    pub fn len(&self) -> usize {
        self.hooks.values().map(|hook| hook.rules.len()).sum()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }
}

impl<Note> OfHook<Note> {
    const fn new() -> OfHook<Note> {
        OfHook { rules: BTreeSet::new(), prios: Prios(BTreeMap::new()) }
    }

    /// With these rules, which are in order of identity.
    fn of(rules: Vec<(Rule, Note)>) -> Result<OfHook<Note>, Clash> {
        let mut prios = Prios::default();
        for (at, (rule, _)) in rules.iter().enumerate() {
            let before = || rules[..at].iter().rev().map(|(rule, _)| rule.id());
            prios.admit(rule.id(), before)?;
        }
        let rules = rules.into_iter().map(|(rule, note)| ById(Noted { rule, note }));
        Ok(OfHook { rules: rules.collect(), prios })
    }

    fn insert(&mut self, rule: Rule, note: Note) -> Result<(), Clash> {
        let id = rule.id();
        if self.rules.contains(id) {
            return Err(Clash::Duplicate(Box::new(id.clone())));
        }
        let from = RuleId::first_of_slot(id.slot());
        let after = || self.rules.range::<RuleId, _>(&from..).map(|ById(held)| held.rule.id());
        self.prios.admit(id, after)?;
        self.rules.insert(ById(Noted { rule, note }));
        Ok(())
    }

    fn remove(&mut self, id: &RuleId) -> Option<Rule> {
        let ById(Noted { rule, .. }) = self.rules.take(id)?;
        self.prios.dismiss(id);
        Some(rule)
    }
}

/// What the overlap check needs to know about the prios of a hook.
#[derive(Clone, Debug, Default)]
struct Prios(BTreeMap<Slot, PrioIndex>);

impl Prios {
    /// Takes a rule into account that is not there yet, if it can stand beside those that are:
    /// `there` has those of its slot first.
    fn admit<'r, R: Iterator<Item = &'r RuleId>>(
        &mut self,
        id: &RuleId,
        there: impl Fn() -> R,
    ) -> Result<(), Clash> {
        let slot = id.slot();
        let of_slot = || there().take_while(move |id| id.slot() == slot);
        let fields = id.matching().fields();
        let protocol = id.matching().protocol();
        if let Some(prio) = self.0.get_mut(&slot)
            && prio.protocol == protocol
            && let [only] = &mut *prio.shapes
            && only.holds_apart(fields)
        {
            only.count(fields);
            return Ok(());
        }
        let shape = fields.shape();
        if let Some(prio) = self.0.get(&slot) {
            if prio.protocol != protocol {
                return Err(Clash::Protocol {
                    rule: Box::new(id.clone()),
                    prio: slot.prio,
                    held: prio.protocol,
                    offered: protocol,
                });
            }
            if prio.may_overlap(fields, &shape, of_slot)
                && let Some(with) = of_slot().find(|id| id.matching().fields().can_meet(fields))
            {
                return Err(Clash::Overlap {
                    rule: Box::new(id.clone()),
                    with: Box::new(with.clone()),
                });
            }
        }
        let prio = self.0.entry(slot).or_insert_with(|| PrioIndex { protocol, shapes: Vec::new() });
        let at = match prio.shapes.iter().position(|known| known.shape == shape) {
            Some(at) => at,
            None => prio.add_shape(shape, of_slot),
        };
        prio.shapes[at].count(fields);
        Ok(())
    }

    /// Takes a rule out of account.
    fn dismiss(&mut self, id: &RuleId) {
        let fields = id.matching().fields();
        let shape = fields.shape();
        let Some(prio) = self.0.get_mut(&id.slot()) else { return };
        if let Some(at) = prio.shapes.iter().position(|known| known.shape == shape) {
            prio.shapes[at].discount(fields);
            if prio.shapes[at].rules == 0 {
                prio.shapes.swap_remove(at);
            }
        }
        if prio.shapes.is_empty() {
            self.0.remove(&id.slot());
        }
    }
}

fn of_shape<'r>(
    rules: impl Iterator<Item = &'r RuleId>,
    shape: &Fields,
) -> impl Iterator<Item = &'r RuleId> {
    rules.filter(move |id| id.matching().fields().shape() == *shape)
}

impl PrioIndex {
    /// Whether a rule of another shape (or with port ranges of any) shows the bits that they have
    /// in common as this one does.
    fn may_overlap<'r, R: Iterator<Item = &'r RuleId>>(
        &self,
        fields: &Fields,
        shape: &Fields,
        rules: impl Fn() -> R,
    ) -> bool {
        let mut rivals =
            self.shapes.iter().filter(|other| other.shape != *shape || shape.has_ranges());
        rivals.any(|other| {
            let common = other.shape.common(shape);
            match other.seen_through.get(&common) {
                Some(values) => values.contains_key(&fields.projected(&common)),
                // First rule of its shape here: `other` was never looked at through these bits.
                None => of_shape(rules(), &other.shape).any(|id| {
                    id.matching().fields().projected(&common) == fields.projected(&common)
                }),
            }
        })
    }

    /// Makes room for a further shape, and lets it and the others see each other.
    fn add_shape<'r, R: Iterator<Item = &'r RuleId>>(
        &mut self,
        shape: Fields,
        rules: impl Fn() -> R,
    ) -> usize {
        let mut new = ShapeIndex { shape, rules: 0, seen_through: HashMap::new() };
        if new.shape.has_ranges() {
            new.seen_through.entry(new.shape.common(&new.shape)).or_default();
        }
        for other in &mut self.shapes {
            let common = other.shape.common(&new.shape);
            new.seen_through.entry(common.clone()).or_default();
            let shape = &other.shape;
            other.seen_through.entry(common).or_insert_with_key(|common| {
                let mut values = HashMap::new();
                for id in of_shape(rules(), shape) {
                    *values.entry(id.matching().fields().projected(common)).or_insert(0) += 1;
                }
                values
            });
        }
        self.shapes.push(new);
        self.shapes.len() - 1
    }
}

impl ShapeIndex {
    /// Whether a rule with these keys is of this shape, and so overlaps none of it.
    fn holds_apart(&self, fields: &Fields) -> bool {
        !self.shape.has_ranges() && fields.is_of_shape(&self.shape)
    }

    fn count(&mut self, fields: &Fields) {
        self.rules += 1;
        for (common, values) in &mut self.seen_through {
            *values.entry(fields.projected(common)).or_insert(0) += 1;
        }
    }

    fn discount(&mut self, fields: &Fields) {
        self.rules -= 1;
        for (common, values) in &mut self.seen_through {
            let value = fields.projected(common);
            if let Some(count) = values.get_mut(&value) {
                *count -= 1;
                if *count == 0 {
                    values.remove(&value);
                }
            }
        }
    }
}

impl<Note> Default for RuleSet<Note> {
    fn default() -> Self {
        RuleSet { hooks: BTreeMap::new() }
    }
}

impl<Note: PartialEq> PartialEq for RuleSet<Note> {
    fn eq(&self, other: &RuleSet<Note>) -> bool {
        self.iter_noted().eq(other.iter_noted())
    }
}

impl<Note: Eq> Eq for RuleSet<Note> {}

/// The rules of a set and their notes, in order of identity.
#[derive(Debug)]
pub struct NotedRules<'s, Note> {
    hooks: btree_map::Values<'s, Hook, OfHook<Note>>,
    rules: Option<btree_set::Iter<'s, ById<Noted<Note>>>>,
}

impl<'s, Note> Iterator for NotedRules<'s, Note> {
    type Item = (&'s Rule, &'s Note);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(ById(Noted { rule, note })) = self.rules.as_mut().and_then(Iterator::next) {
                return Some((rule, note));
            }
            self.rules = Some(self.hooks.next()?.rules.iter());
        }
    }
}

/// The rules of a set, in order of identity.
#[derive(Debug)]
pub struct Rules<'s, Note>(NotedRules<'s, Note>);

impl<'s, Note> Iterator for Rules<'s, Note> {
    type Item = &'s Rule;

    fn next(&mut self) -> Option<&'s Rule> {
        self.0.next().map(|(rule, _)| rule)
    }
}

impl<'s, Note> IntoIterator for &'s RuleSet<Note> {
    type Item = &'s Rule;
    type IntoIter = Rules<'s, Note>;

    fn into_iter(self) -> Rules<'s, Note> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{chain, frames, hook, ifindex, mac, prio, rules, vid};
    use crate::ident::{Hook, Mac, VlanTpid};
    use crate::key::{Ipv4Match, KeyId, Match, PortRange, Ports};
    use crate::walk::{Sight, sight};

    fn rule(at_prio: u16, matching: Match) -> Rule {
        Rule::new(hook(), chain(1), prio(at_prio), matching, [Action::Drop]).unwrap()
    }

    fn multicast() -> Match {
        Match::any().dst_masked(Mac([1, 0, 0, 0, 0, 0]), Mac([1, 0, 0, 0, 0, 0]))
    }

    #[test]
    fn many_exact_rules_share_a_prio() {
        let mut set = RuleSet::new();
        for last in 0..=255 {
            set.insert(rule(1, Match::any().dst(mac(last)))).unwrap();
        }
        assert_eq!(set.len(), 256);
        assert_eq!(set.of_hook(hook()).count(), 256);
        assert_eq!(set.of_hook(Hook::ingress(ifindex(8))).count(), 0);
    }

    #[test]
    fn a_prio_holds_one_protocol() {
        let mut set = RuleSet::new();
        set.insert(rule(1, Match::vlan(VlanTpid::Dot1Q, vid(1)))).unwrap();
        let other = rule(1, Match::vlan(VlanTpid::Dot1Ad, vid(2)));
        assert!(matches!(
            set.insert(other),
            Err(Clash::Protocol { held: 0x8100, offered: 0x88a8, .. })
        ));
        set.insert(rule(2, Match::vlan(VlanTpid::Dot1Ad, vid(2)))).unwrap();
    }

    #[test]
    fn one_identity_stands_once_whatever_its_actions() {
        let mut set = RuleSet::new();
        set.insert(rule(1, Match::any())).unwrap();
        let again = Rule::new(hook(), chain(1), prio(1), Match::any(), [Action::Pass]).unwrap();
        assert!(matches!(set.insert(again), Err(Clash::Duplicate(_))));
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn overlapping_rules_do_not_share_a_prio_in_whichever_order_they_come() {
        let all_nodes = Match::any().dst(Mac([0x33, 0x33, 0, 0, 0, 1]));
        for (first, second) in [(multicast(), all_nodes.clone()), (all_nodes, multicast())] {
            let mut set = RuleSet::new();
            set.insert(rule(1, first.clone())).unwrap();
            let refused = set.insert(rule(1, second.clone())).unwrap_err();
            let Clash::Overlap { with, .. } = refused else { panic!("{refused}") };
            assert_eq!(*with.matching(), first);
            set.insert(rule(2, second)).unwrap();
        }
    }

    #[test]
    fn other_masks_that_no_frame_can_meet_together_share_a_prio() {
        let mut set = RuleSet::new();
        set.insert(rule(1, multicast())).unwrap();
        set.insert(rule(1, Match::any().dst(mac(1)))).unwrap();
    }

    #[test]
    fn port_ranges_clash_where_they_overlap_each_other_or_a_port() {
        let udp = |ports| rule(1, Match::ethertype(Ipv4Match::any().udp(ports)));
        let range = |min, max| Ports::any().dst_range(PortRange::new(min, max).unwrap());
        let mut set = RuleSet::new();
        set.insert(udp(range(10, 20))).unwrap();
        for clash in [range(20, 30), range(5, 10), range(12, 14), range(0, u16::MAX)] {
            assert!(matches!(set.insert(udp(clash)), Err(Clash::Overlap { .. })), "{clash:?}");
        }
        for clash in [Ports::any().dst(10), Ports::any().dst_masked(0x10, 0xfff0), Ports::any()] {
            assert!(matches!(set.insert(udp(clash)), Err(Clash::Overlap { .. })), "{clash:?}");
        }
        set.insert(udp(range(21, 30))).unwrap();
        set.insert(udp(Ports::any().dst(31))).unwrap();
        set.insert(udp(Ports::any().dst_masked(0x20, 0xfff0))).unwrap();
        assert!(set.insert(udp(range(31, 32))).is_err());
        set.insert(rule(1, Match::ethertype(Ipv4Match::any().tcp(range(10, 20))))).unwrap();
        let first = udp(range(10, 20));
        assert!(set.remove(first.id()).is_some());
        set.insert(udp(range(5, 20))).unwrap();
    }

    #[test]
    fn what_was_removed_stands_in_nobodys_way() {
        let mut set = RuleSet::new();
        let broad = rule(1, multicast());
        let narrow = rule(1, Match::any().dst(Mac([0xff; 6])));
        set.insert(broad.clone()).unwrap();
        assert!(set.insert(narrow.clone()).is_err());
        assert_eq!(set.remove(broad.id()), Some(broad.clone()));
        set.insert(narrow.clone()).unwrap();
        assert!(set.insert(broad.clone()).is_err());
        set.remove(narrow.id());
        assert!(set.is_empty());
        set.insert(rule(1, Match::vlan(VlanTpid::Dot1Q, vid(1)))).unwrap();
    }

    /// The rule of the set's documentation, pair by pair, port by port.
    fn may_share_a_set(one: &Rule, other: &Rule) -> bool {
        let (a, b) = (one.id(), other.id());
        if a.slot() != b.slot() {
            return true;
        }
        if a.matching().protocol() != b.matching().protocol() {
            return false;
        }
        let theirs = b.matching().fields();
        let told_apart_by_bits = a.matching().fields().iter().any(|field| {
            theirs.get(field.id).is_some_and(|other| {
                let one_kind = field.id != KeyId::EncOpts || field.value[0] == other.value[0];
                let masks = field.mask.iter().zip(other.mask);
                let values = field.value.iter().zip(other.value);
                one_kind
                    && field.range().is_none()
                    && masks.zip(values).any(|((m, n), (v, w))| (v ^ w) & m & n != 0)
            })
        });
        let both_show = |range, exact: [KeyId; 3]| {
            let sides = [a.matching().fields(), b.matching().fields()];
            let ranges: Vec<(u16, u16)> =
                sides.iter().filter_map(|side| side.get(range)?.range()).collect();
            let number = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
            let bits: Vec<(u16, u16)> = sides
                .iter()
                .flat_map(|side| exact.into_iter().filter_map(|id| side.get(id)))
                .map(|field| (number(field.value), number(field.mask)))
                .collect();
            ranges.first().is_none_or(|(min, max)| {
                (*min..=*max).any(|port| {
                    ranges.iter().all(|(min, max)| (min..=max).contains(&&port))
                        && bits.iter().all(|(value, mask)| port & mask == *value)
                })
            })
        };
        told_apart_by_bits
            || !both_show(KeyId::PortSrcRange, [KeyId::TcpSrc, KeyId::UdpSrc, KeyId::SctpSrc])
            || !both_show(KeyId::PortDstRange, [KeyId::TcpDst, KeyId::UdpDst, KeyId::SctpDst])
    }

    proptest! {
        #[test]
        fn a_set_takes_exactly_what_may_share_it_with_every_rule_in_it(
            steps in prop::collection::vec((rules(), prop::option::of(any::<prop::sample::Index>())), 1..60),
        ) {
            let mut set = RuleSet::new();
            let mut held: Vec<Rule> = Vec::new();
            for (rule, removal) in steps {
                // Few places, so that rules meet.
                let rule = Rule::new(
                    hook(), chain(0), prio(1 + rule.prio().get() % 2),
                    rule.id().matching().clone(), [Action::Drop],
                ).unwrap();
                let expected = held.iter().all(|other| may_share_a_set(&rule, other));
                prop_assert_eq!(set.insert(rule.clone()).is_ok(), expected);
                if expected {
                    held.push(rule);
                }
                if let Some(at) = removal && !held.is_empty() {
                    let gone = held.swap_remove(at.index(held.len()));
                    prop_assert_eq!(set.remove(gone.id()), Some(gone));
                }
                prop_assert_eq!(set.len(), held.len());
            }
        }

        #[test]
        fn all_at_once_or_one_by_one_is_the_same(
            rules in prop::collection::vec(rules(), 0..40), sorted: bool, beside in prop::option::of(rules()),
        ) {
            let mut rules: Vec<(Rule, ())> = rules.into_iter().map(|rule| (rule, ())).collect();
            if sorted {
                rules.sort_unstable();
            }
            let mut before = RuleSet::new();
            if let Some(rule) = beside {
                before.insert(rule).unwrap();
            }
            let mut one_by_one = before.clone();
            let each: Result<(), Clash> =
                rules.iter().try_for_each(|(rule, ())| one_by_one.insert(rule.clone()));
            let mut at_once = before.clone();
            let all = at_once.insert_at(hook(), rules.clone());
            prop_assert_eq!(all.is_ok(), each.is_ok());
            prop_assert_eq!(&at_once, if all.is_ok() { &one_by_one } else { &before });
            for (rule, ()) in rules.iter().filter(|_| all.is_ok()) {
                prop_assert!(at_once.insert(rule.clone()).is_err());
                at_once.remove(rule.id());
            }
            prop_assert!(all.is_err() || at_once == before);
        }

        #[test]
        fn no_frame_meets_two_rules_of_one_prio(
            rules in prop::collection::vec(rules(), 1..60), frame in frames(),
        ) {
            let mut set = RuleSet::new();
            for rule in rules {
                let _ = set.insert(rule);
            }
            let mut taken = std::collections::BTreeSet::new();
            for rule in &set {
                if sight(rule.id().matching(), &frame) == Sight::Takes {
                    prop_assert!(taken.insert((rule.chain(), rule.prio())), "{:?}", rule);
                }
            }
        }
    }
}
