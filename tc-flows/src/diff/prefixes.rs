//! The promise of `diff`, seen by frames: random pairs of sets, every prefix of the changes, and
//! for small pairs every order of single changes that there is.
//!
//! The walk is the judge. Where an old and a new rule overlap in one prio it is asked twice, with
//! either of them first.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

use super::tests::{compatible, installed};
use super::*;
use crate::action::Action;
use crate::arbitrary::{chain, hook, ifindex, mac, prio, vid};
use crate::frame::{Frame, Tag};
use crate::ident::{EtherType, Ifindex, Mac, VlanId, VlanTpid};
use crate::kernel::Outcome;
use crate::key::Match;
use crate::rule::Offload;
use crate::walk::{GOTOS_MAX, walk};

const Q: VlanTpid = VlanTpid::Dot1Q;
const AD: VlanTpid = VlanTpid::Dot1Ad;
const GROUP: Mac = Mac([1, 0, 0, 0, 0, 0]);

type Rules = BTreeMap<RuleId, Rule>;

/// What becomes of a frame: who gets it, with which tags; whether the host does.
type Fate = (Vec<(Ifindex, Frame)>, Option<Frame>);

/// The fates that a frame can have: more than one where two rules of a prio both match it.
fn fates(rules: &[Rule], frame: &Frame) -> Vec<Fate> {
    let fate = |rules: &mut dyn Iterator<Item = &Rule>| {
        let walk = walk(rules, hook(), frame);
        let mut deliveries = walk.deliveries;
        deliveries.sort();
        (deliveries, walk.to_host)
    };
    let one = fate(&mut rules.iter());
    let other = fate(&mut rules.iter().rev());
    if one == other { vec![one] } else { vec![one, other] }
}

/// All rules where frames meet them, whichever place may execute them.
fn met(rules: &Rules) -> Vec<Rule> {
    rules.values().map(|rule| rule.clone().with_offload(Offload::Auto)).collect()
}

fn of_set(set: &RuleSet) -> Rules {
    set.iter().map(|rule| (rule.id().clone(), rule.clone())).collect()
}

/// Carries out a change as the kernel would, or says what it would refuse.
fn apply(rules: &mut Rules, op: &Op) -> Result<(), String> {
    let (id, known) = (op.id(), rules.contains_key(op.id()));
    match op {
        Op::Delete { .. } if !known => return Err(format!("{op:?}: is not there")),
        Op::Delete { .. } => drop(rules.remove(id)),
        Op::Add { .. } if known => return Err(format!("{op:?}: is there")),
        Op::Replace { .. } if !known => return Err(format!("{op:?}: is not there")),
        Op::Add { rule, .. } | Op::Replace { rule, .. } => {
            let slot = rules.range(RuleId::first_of_slot(id.slot())..);
            if let Some((other, _)) = slot.take(1).find(|(other, _)| other.slot() == id.slot())
                && other.matching().protocol() != id.matching().protocol()
            {
                return Err(format!("{op:?}: the prio has another protocol"));
            }
            rules.insert(id.clone(), rule.clone());
        }
    }
    Ok(())
}

/// Frames with every combination of the addresses and tags that occur in rules, and others.
fn universe<'r>(rules: impl IntoIterator<Item = &'r Rule>, tags_most: usize) -> Vec<Frame> {
    let other = Mac([2, 0, 0, 0, 0, 0xfe]);
    let mut srcs = BTreeSet::from([other]);
    let mut dsts = BTreeSet::from([other]);
    let mut tags: BTreeSet<(VlanTpid, VlanId)> = BTreeSet::from([(Q, vid(99)), (AD, vid(99))]);
    for rule in rules {
        let matching = rule.id().matching();
        srcs.extend(matching.src_mac().map(|(mac, _)| mac));
        dsts.extend(matching.dst_mac().map(|(mac, _)| mac));
        tags.extend(matching.vlan_tag());
        tags.extend(rule.actions().iter().filter_map(|action| match action {
            Action::VlanPush { tpid, vid } | Action::VlanModify { tpid, vid } => {
                Some((*tpid, *vid))
            }
            _ => None,
        }));
    }
    let mut stacks = vec![Vec::new()];
    let mut longest = vec![Vec::new()];
    for _ in 0..tags_most {
        longest = longest
            .iter()
            .flat_map(|inner: &Vec<(VlanTpid, VlanId)>| {
                tags.iter().map(|tag| std::iter::once(*tag).chain(inner.iter().copied()).collect())
            })
            .collect();
        stacks.extend(longest.iter().cloned());
    }
    let ethertype = EtherType::new(0x88b5).unwrap();
    let mut frames = Vec::new();
    for src in &srcs {
        for dst in &dsts {
            for tags in &stacks {
                let frame = Frame::opaque(*dst, *src, ethertype);
                let tag = |(tpid, vid): &(VlanTpid, VlanId)| Tag::new(*tpid, *vid);
                let mut tags: Vec<Tag> = tags.iter().map(tag).collect();
                frames.push(Frame { tags: tags.clone(), ..frame.clone() });
                if !tags.is_empty() {
                    tags.iter_mut().for_each(|tag| tag.pcp = 5);
                    frames.push(Frame { tags, ..frame });
                }
            }
        }
    }
    frames
}

/// A frame with what both sets do to it.
type Judged = (Frame, [Fate; 2]);

/// Those frames of which each set does one thing, whichever rule is asked first.
fn judge(old: &Rules, new: &Rules, frames: Vec<Frame>) -> Vec<Judged> {
    let (old, new) = (met(old), met(new));
    let one = |rules: &[Rule], frame: &Frame| {
        let mut fates = fates(rules, frame);
        fates.pop().filter(|_| fates.is_empty())
    };
    let both = |frame: Frame| Some(([one(&old, &frame)?, one(&new, &frame)?], frame));
    frames.into_iter().filter_map(both).map(|(fates, frame)| (frame, fates)).collect()
}

/// Whether this fate has no copy that neither of the two has or more often, and all that both have.
fn is_between((copies, to_host): &Fate, [old, new]: &[Fate; 2]) -> bool {
    let times = |fate: &[(Ifindex, Frame)], copy| fate.iter().filter(|c| *c == copy).count();
    let mut all = copies.iter().chain(&old.0).chain(&new.0);
    all.all(|copy| {
        let [before, after] = [times(&old.0, copy), times(&new.0, copy)];
        (before.min(after)..=before.max(after)).contains(&times(copies, copy))
    }) && [&old.1, &new.1].contains(&to_host)
}

/// A frame that is treated as neither set would, if there is one.
fn broken<'f>(rules: &Rules, judged: &'f [Judged]) -> Option<&'f Frame> {
    let rules = met(rules);
    let breaks =
        |(frame, both): &&Judged| fates(&rules, frame).iter().any(|fate| !is_between(fate, both));
    judged.iter().find(breaks).map(|(frame, _)| frame)
}

/// Whether single changes, one for each rule that differs, can be made in some order.
fn order_exists(old: &Rules, new: &Rules, judged: &[Judged]) -> bool {
    let handle = Handle(1);
    let mut changes: Vec<Op> = Vec::new();
    for (id, rule) in old {
        match new.get(id) {
            None => changes.push(Op::Delete { id: id.clone(), handle }),
            Some(other) if other != rule => {
                changes.push(Op::Replace { rule: other.clone(), handle })
            }
            Some(_) => {}
        }
    }
    let come = new.iter().filter(|(id, _)| !old.contains_key(*id));
    changes.extend(come.map(|(_, rule)| Op::Add { rule: rule.clone(), handle }));
    let mut seen = HashSet::from([0_u32]);
    let mut open = vec![(0_u32, old.clone())];
    while let Some((made, rules)) = open.pop() {
        if made + 1 == 1 << changes.len() {
            return true;
        }
        for (at, change) in changes.iter().enumerate().filter(|(at, _)| made & 1 << at == 0) {
            let mut rules = rules.clone();
            if seen.insert(made | 1 << at)
                && apply(&mut rules, change).is_ok()
                && broken(&rules, judged).is_none()
            {
                open.push((made | 1 << at, rules));
            }
        }
    }
    false
}

/// The reason that a gap names is there to be seen.
fn is_true(gap: &Gap, old: &Rules, new: &Rules) -> bool {
    match gap.reason {
        GapReason::NoPrioBelow { chain } => old
            .keys()
            .chain(new.keys())
            .any(|id| id.chain() == chain && id.prio() == crate::ident::Prio::FIRST),
        GapReason::TooManyGotos => {
            let mut here = BTreeSet::from([ChainId::ZERO]);
            for _ in 0..GOTOS_MAX {
                here = new
                    .values()
                    .filter(|rule| here.contains(&rule.chain()))
                    .filter_map(Rule::goto_target)
                    .collect();
            }
            !here.is_empty()
        }
        GapReason::NoChainLeft => old
            .values()
            .chain(new.values())
            .flat_map(|rule| [Some(rule.chain()), rule.goto_target()])
            .flatten()
            .any(|chain| chain.get() > (1 << 28) - 64),
    }
}

/// How often each case was met.
#[derive(Debug, Default)]
struct Met {
    ordered: Cell<u32>,
    fresh: Cell<u32>,
    gaps: Cell<u32>,
    by_exhaustion: Cell<u32>,
}

fn count(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

/// Changes up to which every order is tried.
const FEW_CHANGES: usize = 8;

/// Walks frames through every prefix of the changes from `old` to `new`.
fn check(old: &RuleSet, new: &RuleSet, frames_most: usize, met: &Met) -> TestCaseResult {
    let held = installed(old);
    let plan = diff(&held, new);
    let (before, after) = (of_set(old), of_set(new));
    let ids: BTreeSet<&RuleId> = before.keys().chain(after.keys()).collect();
    let differing = ids.into_iter().filter(|id| before.get(id) != after.get(id)).count();

    let all = universe(before.values().chain(after.values()), 2);
    let step = all.len().div_ceil(frames_most);
    let frames: Vec<Frame> = all.into_iter().step_by(step.max(1)).collect();
    let judged = judge(&before, &after, frames);

    let mut rules = before.clone();
    let mut handles = held.clone();
    for (at, op) in plan.ops.iter().enumerate() {
        if let Op::Replace { handle, .. } | Op::Delete { handle, .. } = op {
            prop_assert_eq!(handles.get(op.id()).map(|held| held.handle), Some(*handle));
        }
        apply(&mut rules, op).map_err(TestCaseError::fail)?;
        handles.record(
            op,
            &match op {
                Op::Delete { .. } => Outcome::Deleted,
                _ => Outcome::InHw,
            },
        );
        if plan.gaps.is_empty() {
            prop_assert_eq!(
                broken(&rules, &judged),
                None,
                "after change {}, {:?}, of {:#?}",
                at,
                op,
                plan.ops
            );
        }
    }
    prop_assert_eq!(&rules, &after);
    prop_assert_eq!(&diff(&handles, new), &Plan::default());

    prop_assert!(plan.ops.len() >= differing);
    let minimal = plan.ops.len() == differing;
    if minimal && plan.gaps.is_empty() {
        count(&met.ordered);
        return Ok(());
    }
    count(if plan.gaps.is_empty() { &met.fresh } else { &met.gaps });
    prop_assert!(plan.gaps.is_empty() || minimal);
    for gap in &plan.gaps {
        prop_assert!(is_true(gap, &before, &after), "{gap}");
        prop_assert!(!gap.rules.is_empty());
    }
    if differing <= FEW_CHANGES {
        let all = universe(before.values().chain(after.values()), 3);
        if all.len() <= 8000 {
            count(&met.by_exhaustion);
            let judged = judge(&before, &after, all);
            prop_assert!(
                !order_exists(&before, &after, &judged),
                "there is an order of single changes, but {:#?}",
                plan
            );
        }
    }
    Ok(())
}

fn small_matches() -> impl Strategy<Value = Match> {
    let address = || prop_oneof![3 => Just(mac(1)), 2 => Just(mac(2))];
    prop_oneof![
        3 => Just(Match::any()),
        3 => address().prop_map(|mac| Match::any().src(mac)),
        3 => address().prop_map(|mac| Match::any().dst(mac)),
        1 => Just(Match::any().dst_masked(GROUP, GROUP)),
        2 => select(vec![Q, AD]).prop_map(|tpid| Match::vlan(tpid, vid(5))),
        1 => Just(Match::tagged(Q)),
        1 => address().prop_map(|mac| Match::vlan(Q, vid(5)).src(mac)),
    ]
}

fn small_actions(from: u32) -> impl Strategy<Value = Vec<Action>> {
    let change = prop_oneof![
        8 => Just(None),
        1 => Just(Some(Action::VlanPop)),
        1 => Just(Some(Action::VlanPush { tpid: Q, vid: vid(5) })),
        1 => Just(Some(Action::VlanModify { tpid: Q, vid: vid(6) })),
    ];
    let end = prop_oneof![
        3 => (11_u32..13).prop_map(|to| Action::Redirect(ifindex(to))),
        2 => Just(Action::Drop),
        1 => Just(Action::Pass),
        4 => (from + 1..from + 3).prop_map(|to| Action::Goto(chain(to.min(4)))),
    ];
    let copy = option::weighted(0.2, (11_u32..13).prop_map(|to| Action::Mirror(ifindex(to))));
    (change, copy, end).prop_map(move |(change, copy, end)| {
        let end = if end == Action::Goto(chain(from)) { Action::Drop } else { end };
        change.into_iter().chain(copy).chain([end]).collect()
    })
}

fn small_rules() -> impl Strategy<Value = Rule> {
    let at = prop_oneof![3 => Just(0_u32), 1 => 1_u32..4];
    let offload = select(vec![Offload::Auto, Offload::Auto, Offload::SkipHw, Offload::SkipSw]);
    at.prop_flat_map(move |at| {
        (Just(at), 2_u16..5, small_matches(), small_actions(at), offload.clone())
    })
    .prop_map(|(at, at_prio, matching, actions, offload)| {
        let rule = Rule::new(hook(), chain(at), prio(at_prio), matching, actions).unwrap();
        rule.with_offload(offload)
    })
}

/// The same rule elsewhere, or doing something else.
fn changed(rule: &Rule, how: usize, other: &Rule) -> Rule {
    let id = rule.id();
    let (mut at_prio, mut matching, mut actions) =
        (id.prio(), id.matching().clone(), rule.actions().to_vec());
    match how % 3 {
        0 => at_prio = other.prio(),
        1 if id.chain() == other.chain() => actions = other.actions().to_vec(),
        _ => matching = other.id().matching().clone(),
    }
    Rule::new(hook(), id.chain(), at_prio, matching, actions).unwrap().with_offload(rule.offload())
}

/// Two sets with something in common; `first` is the prio of their first rules.
fn small_pairs() -> impl Strategy<Value = (RuleSet, RuleSet)> {
    let changes = vec((any::<Index>(), 0_usize..5, small_rules()), 1..5);
    let others = vec(small_rules(), 0..3);
    (vec(small_rules(), 1..8), changes, others, any::<bool>()).prop_map(
        |(old, changes, come, room)| {
            let mut new = old.clone();
            for (index, how, other) in &changes {
                if new.is_empty() {
                    break;
                }
                let at = index.index(new.len());
                match how {
                    0 => drop(new.remove(at)),
                    1..4 => new[at] = changed(&new[at], *how, other),
                    _ => new.push(other.clone()),
                }
            }
            new.extend(come);
            let shift = |rules: Vec<Rule>| {
                compatible(rules.into_iter().map(|rule| {
                    let at = prio(rule.prio().get() - u16::from(!room));
                    let id = rule.id();
                    let actions = rule.actions();
                    Rule::new(hook(), id.chain(), at, id.matching().clone(), actions)
                        .unwrap()
                        .with_offload(rule.offload())
                }))
            };
            (shift(old), shift(new))
        },
    )
}

fn run<T: std::fmt::Debug>(
    cases: u32,
    strategy: &impl Strategy<Value = T>,
    test: impl Fn(T) -> TestCaseResult,
) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    if let Err(error) = TestRunner::new(config).run(strategy, test) {
        panic!("{error}");
    }
}

#[test]
fn after_each_change_a_frames_fate_is_between_those_that_both_sets_have_for_it() {
    let met = Met::default();
    run(1500, &small_pairs(), |(old, new)| check(&old, &new, 150, &met));
    println!("{met:?}");
    for (case, count) in [
        ("ordered", &met.ordered),
        ("by fresh chains", &met.fresh),
        ("with a gap", &met.gaps),
        ("confirmed by trying all orders", &met.by_exhaustion),
    ] {
        assert!(count.get() > 0, "no pair of sets was {case}");
    }
}

/// What a switch's controller would want of one hook: who may send, and who else is there.
#[derive(Clone, Debug)]
struct Network {
    /// Who may send, with the tag that the frames come with.
    senders: BTreeMap<u8, Option<(VlanTpid, u16)>>,
    /// Who gets frames, where, and with which tag.
    receivers: BTreeMap<u8, (u32, Option<u16>)>,
    /// Receivers of a flood in one rule.
    width: usize,
    /// The tag of what leaves to the outside, if anything does.
    outside: Option<u16>,
    /// The number of its first chain.
    base: u32,
    /// The first prio of chain 0.
    first: u16,
}

/// One thing that happens to a network.
#[derive(Clone, Debug)]
enum Event {
    Sends(u8, Option<Option<(VlanTpid, u16)>>),
    Receives(u8, Option<(u32, Option<u16>)>),
    Width(usize),
    Outside(Option<u16>),
    Base(u32),
    First(u16),
}

impl Network {
    fn happens(&mut self, event: &Event) {
        match event {
            Event::Sends(last, Some(tag)) => drop(self.senders.insert(*last, *tag)),
            Event::Sends(last, None) => drop(self.senders.remove(last)),
            Event::Receives(last, Some(to)) => drop(self.receivers.insert(*last, *to)),
            Event::Receives(last, None) => drop(self.receivers.remove(last)),
            Event::Width(width) => self.width = *width,
            Event::Outside(tag) => self.outside = *tag,
            Event::Base(base) => self.base = *base,
            Event::First(first) => self.first = *first,
        }
    }

    fn rules(&self) -> RuleSet {
        let at = |chain_id: u32, at_prio: u16, matching: Match, actions: Vec<Action>| {
            Rule::new(hook(), chain(chain_id), prio(at_prio), matching, actions).unwrap()
        };
        let push = |tag: Option<u16>| tag.map(|tag| Action::VlanPush { tpid: Q, vid: vid(tag) });
        let (first, base) = (self.first, self.base);
        let into = Action::Goto(chain(base));
        let mut rules = vec![
            at(0, first, Match::any().dst_masked(mac(0xc0), Mac::EXACT), vec![Action::Drop]),
            at(0, first + 4, Match::any(), vec![Action::Drop]),
        ];
        for (last, tag) in &self.senders {
            rules.push(match tag {
                None => at(0, first + 3, Match::any().src(mac(*last)), vec![into.clone()]),
                Some((tpid, tag)) => at(
                    0,
                    first + if *tpid == Q { 1 } else { 2 },
                    Match::vlan(*tpid, vid(*tag)).src(mac(*last)),
                    vec![Action::VlanPop, into.clone()],
                ),
            });
        }
        for (last, (to, tag)) in &self.receivers {
            let out = push(*tag).into_iter().chain([Action::Redirect(ifindex(*to))]);
            rules.push(at(base, 1, Match::any().dst(mac(*last)), out.collect()));
        }
        let out: Vec<Action> = match self.outside {
            Some(tag) => {
                push(Some(tag)).into_iter().chain([Action::Redirect(ifindex(30))]).collect()
            }
            None => vec![Action::Drop],
        };
        rules.push(at(base, 3, Match::any(), out.clone()));
        // Those who take floods as they are, then tag by tag.
        let mut floods: BTreeMap<Option<u16>, BTreeSet<u32>> = BTreeMap::new();
        for (to, tag) in self.receivers.values() {
            floods.entry(*tag).or_default().insert(*to);
        }
        let mut steps: Vec<Vec<Action>> = Vec::new();
        let mut written = None;
        for (tag, to) in floods {
            for part in to.into_iter().collect::<Vec<_>>().chunks(self.width) {
                let change = match (written, tag) {
                    (None, Some(_)) => push(tag),
                    (Some(before), Some(tag)) if before != tag => {
                        Some(Action::VlanModify { tpid: Q, vid: vid(tag) })
                    }
                    _ => None,
                };
                written = tag;
                let copies = part.iter().map(|to| Action::Mirror(ifindex(*to)));
                steps.push(change.into_iter().chain(copies).collect());
            }
        }
        steps.push(if written.is_some() { vec![Action::Drop] } else { out });
        let count = steps.len();
        for (step, mut actions) in steps.into_iter().enumerate() {
            if step + 1 < count {
                actions.push(Action::Goto(chain(base + step as u32 + 1)));
            }
            let (at_prio, matching) = if step == 0 {
                (2, Match::any().dst_masked(GROUP, GROUP))
            } else {
                (1, Match::any())
            };
            rules.push(at(base + step as u32, at_prio, matching, actions));
        }
        compatible(rules)
    }
}

fn networks() -> impl Strategy<Value = (Network, Vec<Event>)> {
    let tags = || prop_oneof![2 => Just(None), 1 => (5_u16..7).prop_map(Some)];
    let sent = || {
        prop_oneof![
            3 => Just(None),
            2 => (select(vec![Q, AD]), 5_u16..7).prop_map(Some),
        ]
    };
    let to = || (11_u32..15, tags());
    let network = (
        proptest::collection::btree_map(1_u8..4, sent(), 0..3),
        proptest::collection::btree_map(4_u8..8, to(), 0..4),
        1_usize..3,
        tags(),
        1_u16..3,
    )
        .prop_map(|(senders, receivers, width, outside, first)| Network {
            senders,
            receivers,
            width,
            outside,
            base: 8,
            first,
        });
    let event = prop_oneof![
        3 => (1_u8..4, option::of(sent())).prop_map(|(last, tag)| Event::Sends(last, tag)),
        5 => (4_u8..8, option::of(to())).prop_map(|(last, to)| Event::Receives(last, to)),
        1 => (1_usize..3).prop_map(Event::Width),
        1 => tags().prop_map(Event::Outside),
        1 => select(vec![8_u32, 16, 24]).prop_map(Event::Base),
        1 => (1_u16..4).prop_map(Event::First),
    ];
    (network, vec(event, 1..4))
}

#[test]
fn no_prefix_of_what_happens_to_a_network_treats_a_frame_otherwise() {
    let met = Met::default();
    run(600, &networks(), |(network, events)| {
        let mut after = network.clone();
        for event in &events {
            after.happens(event);
        }
        let gaps = met.gaps.get();
        check(&network.rules(), &after.rules(), 150, &met)?;
        // Unless prios come to stand for something else.
        if after.first == network.first {
            prop_assert_eq!(met.gaps.get(), gaps);
        }
        Ok(())
    });
    assert!(met.ordered.get() > 0);
}

#[test]
fn where_senders_and_receivers_change_their_tags_at_once_copies_keep_what_stays_the_same() {
    let before = Network {
        senders: BTreeMap::from([(2, None)]),
        receivers: BTreeMap::from([(6, (11, None))]),
        width: 1,
        outside: None,
        base: 8,
        first: 1,
    };
    // What guest 2 sends in VLAN 6 reaches guest 6 in VLAN 6, before and after.
    let mut after = before.clone();
    after.happens(&Event::Sends(2, Some(Some((Q, 6)))));
    after.happens(&Event::Receives(6, Some((11, Some(6)))));
    let met = Met::default();
    check(&before.rules(), &after.rules(), 1000, &met).unwrap();
    assert_eq!((met.fresh.get(), met.by_exhaustion.get()), (1, 1));
}
