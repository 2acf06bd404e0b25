//! What must come before what among the live changes of a hook, and blocks of them in such an
//! order.
//!
//! In comes a hook before and after; out go blocks: after each of them every frame is treated as
//! by the old rules or as by the new ones, all the way. A block of one change is a step; within a
//! block of several no order of single changes is known here to do.
//!
//! Why it holds. A frame that comes to a chain is taken there by one rule of the old set, by one of
//! the new set, and in between by one of the two, if
//!
//! 1. of two added rules that overlap the one asked first comes first;
//! 2. an added rule comes before a replaced one that overlaps and is asked after it;
//! 3. an added rule comes before a deleted one that overlaps;
//! 4. a replaced rule comes before a deleted one that overlaps and is asked before it;
//! 5. of two deleted rules that overlap the one asked last goes first.
//!
//! (Where an added and a deleted rule overlap in one prio, it does not matter which of the two the
//! kernel asks first.) If the two rules do the same, the frame goes on as before. If not, it has
//! left the old rules behind, and all that it can still meet must be new; or it will, and all that
//! it can still meet must be old: so
//!
//! 6. a change that sends frames into a chain comes after all changes that these can meet there and
//!    further on ([`Node::Done`]);
//! 7. a change by which frames no longer go into a chain comes before all changes that these could
//!    meet there and further on ([`Node::Begin`]).
//!
//! And since a prio holds one protocol,
//!
//! 8. the old rules of a prio whose protocol changes go before the first new one comes.
//!
//! (Where rules let a frame go on to the next one that matches, several rules of a chain take it,
//! and none of this says anything: all live changes of the hook are one block.)
//!
//! What contradicts itself under these eight is a block. Where there would be too many pairs to
//! look at, more is demanded than needed: that can make blocks larger, never wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::overlap::{Overlaps, Question};
use super::program::{Entry, Kind, Phase, Program};
use crate::ident::{ChainId, Prio};
use crate::rule::Rule;

/// Pairs of changes or look-ups in one chain beyond which all its changes are put into one order
/// that keeps 1 to 5.
const PAIRS_MAX: usize = 1 << 20;

/// Rules that overlap with one change beyond which it is taken to concern every path out of its
/// chain.
const MET_MAX: usize = 256;

/// A part of the graph of what comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    /// The change of this entry.
    Change(usize),
    /// From here on, changes may be made in this chain and those that its old rules lead to.
    Begin(ChainId),
    /// All changes in this chain and those that its new rules lead to are made.
    Done(ChainId),
    /// The old rules of this prio, which changes its protocol, are gone.
    Emptied(ChainId, Prio),
}

/// The live changes in blocks; those within a block in the order of [`Program::unseen`].
pub(super) fn blocks(program: &Program<'_>) -> Vec<Vec<usize>> {
    let live: Vec<usize> =
        program.changes.iter().copied().filter(|at| program.phase(*at) == Phase::Live).collect();
    if live.len() < 2 {
        return live.into_iter().map(|at| vec![at]).collect();
    }
    if program.entries.iter().any(Entry::may_ask_on) {
        return vec![program.unseen(live)];
    }
    let mut graph = Graph::default();
    for at in &live {
        graph.node(Node::Change(*at));
    }
    let mut rest = live.as_slice();
    while let Some(first) = rest.first() {
        let chain = program.entries[*first].id().chain();
        let count = rest.partition_point(|at| program.entries[*at].id().chain() == chain);
        let (here, after) = rest.split_at(count);
        within(program, here, &mut graph);
        across(program, chain, here, &mut graph);
        rest = after;
    }
    paths(program, &live, &mut graph);
    graph.blocks(program)
}

/// 1 to 5, and 8, for the changes of one chain.
fn within(program: &Program<'_>, here: &[usize], graph: &mut Graph) {
    for (deleted, added) in program.emptied(here) {
        let Some((chain, prio)) = added.first().map(|at| program.place(*at)) else { continue };
        let emptied = Node::Emptied(chain, prio);
        for at in deleted {
            graph.edge(Node::Change(at), emptied);
        }
        for at in added {
            graph.edge(emptied, Node::Change(at));
        }
    }
    let seen: Vec<usize> =
        here.iter().copied().filter(|at| !program.entries[*at].acts_alike()).collect();
    let mut overlaps = Overlaps::new(seen.iter().map(|at| (*at, program.entries[*at].id())));
    let mut pairs = seen.len().saturating_mul(overlaps.groups());
    let mut edges = Vec::new();
    for at in &seen {
        if pairs > PAIRS_MAX {
            break;
        }
        let question = Question::new(program.entries[*at].id().matching());
        for group in 0..overlaps.groups() {
            let (others, _) = overlaps.within(group, &question);
            pairs += others.len();
            if pairs > PAIRS_MAX {
                break;
            }
            let later = others.iter().filter(|other| *other > at);
            edges.extend(later.filter_map(|other| first_of(program, *at, *other)));
        }
    }
    if pairs > PAIRS_MAX {
        edges.clear();
        let mut all = seen;
        all.sort_by_key(|at| {
            let prio = program.entries[*at].id().prio().get();
            match program.entries[*at].kind() {
                Kind::Add => (0, prio),
                Kind::Replace => (1, 0),
                Kind::Delete => (2, u16::MAX - prio),
            }
        });
        edges.extend(all.windows(2).map(|pair| (pair[0], pair[1])));
    }
    for (first, then) in edges {
        graph.edge(Node::Change(first), Node::Change(then));
    }
}

/// Which of two overlapping changes of a chain comes first, by 1 to 5.
fn first_of(program: &Program<'_>, one: usize, other: usize) -> Option<(usize, usize)> {
    let prio = |at: usize| program.entries[at].id().prio();
    let kind = |at: usize| program.entries[at].kind();
    let (high, low) = match prio(one).cmp(&prio(other)) {
        std::cmp::Ordering::Less => (one, other),
        std::cmp::Ordering::Greater => (other, one),
        // In one prio, rules of one set do not overlap.
        std::cmp::Ordering::Equal => {
            return match (kind(one), kind(other)) {
                (Kind::Add, Kind::Delete) => Some((one, other)),
                (Kind::Delete, Kind::Add) => Some((other, one)),
                _ => None,
            };
        }
    };
    match (kind(high), kind(low)) {
        (Kind::Add, _) => Some((high, low)),
        (Kind::Replace, _) => None,
        (Kind::Delete, _) => Some((low, high)),
    }
}

/// 6 and 7 for the changes of one chain.
fn across(program: &Program<'_>, chain: ChainId, here: &[usize], graph: &mut Graph) {
    let Some(info) = program.chains.get(&chain) else { return };
    let begins: BTreeSet<ChainId> =
        info.old_targets.iter().copied().filter(|to| leads(program, *to, false)).collect();
    let dones: BTreeSet<ChainId> =
        info.new_targets.iter().copied().filter(|to| leads(program, *to, true)).collect();
    if begins.is_empty() && dones.is_empty() {
        return;
    }
    let side = |new: bool| {
        Overlaps::new(info.entries.clone().filter_map(|at| {
            let rule = program.entries[at].version(new)?;
            Some((at, rule.id()))
        }))
    };
    let (mut olds, mut news) = (side(false), side(true));
    let exact = here.len().saturating_mul(olds.groups() + news.groups()) <= PAIRS_MAX;
    for at in here {
        let entry = &program.entries[*at];
        if entry.acts_alike() {
            continue;
        }
        let (from, into): (BTreeSet<ChainId>, BTreeSet<ChainId>) = match entry.kind() {
            Kind::Replace => (
                entry.old.into_iter().flat_map(Rule::goto_targets).collect(),
                entry.new.into_iter().flat_map(Rule::goto_targets).collect(),
            ),
            kind => {
                let adds = kind == Kind::Add;
                let other = if adds { &mut olds } else { &mut news };
                let met = if exact { met(program, *at, other, !adds) } else { Met::Many };
                let own: BTreeSet<ChainId> =
                    entry.version(adds).into_iter().flat_map(Rule::goto_targets).collect();
                match (met, adds) {
                    (Met::Alike, _) => continue,
                    (Met::Others(others), true) => (others, own),
                    (Met::Others(others), false) => (own, others),
                    (Met::Many, true) => (begins.clone(), own),
                    (Met::Many, false) => (own, dones.clone()),
                }
            }
        };
        for to in from.intersection(&begins) {
            graph.edge(Node::Change(*at), Node::Begin(*to));
        }
        for to in into.intersection(&dones) {
            graph.edge(Node::Done(*to), Node::Change(*at));
        }
    }
}

fn leads(program: &Program<'_>, to: ChainId, new: bool) -> bool {
    program.chains.get(&to).is_some_and(|chain| {
        if new { chain.leads_to_change_in_new } else { chain.leads_to_change_in_old }
    })
}

/// What the frames of an added or deleted rule meet on the other side.
enum Met {
    /// Only rules that do the same.
    Alike,
    /// Rules that do something else, and where those lead that may stand in the same place as the
    /// changed rule: of those asked earlier the change is not the one that counts.
    Others(BTreeSet<ChainId>),
    /// Too many to look at.
    Many,
}

fn met(program: &Program<'_>, at: usize, others: &mut Overlaps, new: bool) -> Met {
    let entry = &program.entries[at];
    let Some(own) = entry.version(!new) else { return Met::Many };
    let question = Question::new(own.id().matching());
    let mut all = false;
    let mut alike = true;
    let mut looked = 0;
    let mut leads_to = BTreeSet::new();
    for group in 0..others.groups() {
        let below = others.prio(group) >= own.prio();
        let (found, covers) = others.within(group, &question);
        looked += found.len();
        if looked > MET_MAX {
            return Met::Many;
        }
        for rule in found.iter().filter_map(|other| program.entries[*other].version(new)) {
            if rule.actions() != own.actions() {
                alike = false;
                if below {
                    leads_to.extend(rule.goto_targets());
                }
            }
        }
        if covers && !found.is_empty() {
            all = true;
            break;
        }
    }
    if alike && all { Met::Alike } else { Met::Others(leads_to) }
}

/// What [`Node::Begin`] and [`Node::Done`] say.
fn paths(program: &Program<'_>, live: &[usize], graph: &mut Graph) {
    for (id, chain) in &program.chains {
        let (begin, done) = (Node::Begin(*id), Node::Done(*id));
        if chain.leads_to_change_in_old {
            for to in chain.old_targets.iter().filter(|to| leads(program, **to, false)) {
                graph.edge(begin, Node::Begin(*to));
            }
        }
        if chain.leads_to_change_in_new {
            for to in chain.new_targets.iter().filter(|to| leads(program, **to, true)) {
                graph.edge(Node::Done(*to), done);
            }
        }
    }
    for at in live.iter().filter(|at| !program.entries[**at].acts_alike()) {
        let chain = program.entries[*at].id().chain();
        graph.edge(Node::Begin(chain), Node::Change(*at));
        graph.edge(Node::Change(*at), Node::Done(chain));
    }
}

/// What comes before what.
#[derive(Debug, Default)]
struct Graph {
    numbers: BTreeMap<Node, usize>,
    nodes: Vec<Node>,
    after: Vec<Vec<usize>>,
}

impl Graph {
    fn node(&mut self, node: Node) -> usize {
        *self.numbers.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            self.after.push(Vec::new());
            self.nodes.len() - 1
        })
    }

    fn edge(&mut self, first: Node, then: Node) {
        let (first, then) = (self.node(first), self.node(then));
        self.after[first].push(then);
    }

    /// Nodes that come before each other in one block, blocks in order; where the graph leaves it
    /// open, what comes before what goes, and destinations first.
    fn blocks(&self, program: &Program<'_>) -> Vec<Vec<usize>> {
        let component = self.components();
        let count = component.iter().max().map_or(0, |last| last + 1);
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); count];
        for (node, component) in component.iter().enumerate() {
            if let Node::Change(at) = self.nodes[node] {
                members[*component].push(at);
            }
        }
        let mut waiting = vec![0_usize; count];
        for (node, after) in self.after.iter().enumerate() {
            for then in after.iter().filter(|then| component[**then] != component[node]) {
                waiting[component[*then]] += 1;
            }
        }
        let mut nodes_of: Vec<Vec<usize>> = vec![Vec::new(); count];
        for (node, component) in component.iter().enumerate() {
            nodes_of[*component].push(node);
        }
        let rank = |members: &[usize]| {
            members
                .iter()
                .map(|at| {
                    let entry = &program.entries[*at];
                    let chain = i64::from(entry.id().chain().get());
                    match entry.kind() {
                        Kind::Add | Kind::Replace => (1, -chain, *at),
                        Kind::Delete => (2, chain, *at),
                    }
                })
                .min()
                // What holds no change only frees others.
                .unwrap_or((0, 0, 0))
        };
        let mut ready = BinaryHeap::new();
        for component in (0..count).filter(|component| waiting[*component] == 0) {
            ready.push(Reverse((rank(&members[component]), component)));
        }
        let mut blocks = Vec::new();
        while let Some(Reverse((_, next))) = ready.pop() {
            for node in &nodes_of[next] {
                for then in self.after[*node].iter().map(|then| component[*then]) {
                    if then == next {
                        continue;
                    }
                    waiting[then] -= 1;
                    if waiting[then] == 0 {
                        ready.push(Reverse((rank(&members[then]), then)));
                    }
                }
            }
            match members[next].len() {
                0 => {}
                1 => blocks.push(std::mem::take(&mut members[next])),
                _ => blocks.push(program.unseen(std::mem::take(&mut members[next]))),
            }
        }
        blocks
    }

    /// The strongly connected component of each node (Tarjan).
    fn components(&self) -> Vec<usize> {
        const NONE: usize = usize::MAX;
        let count = self.nodes.len();
        let mut component = vec![NONE; count];
        let mut number = vec![NONE; count];
        let mut lowest = vec![NONE; count];
        let mut stack = Vec::new();
        let (mut next_number, mut next_component) = (0, 0);
        for start in 0..count {
            if number[start] != NONE {
                continue;
            }
            // Each with how many of its edges are followed.
            let mut path = vec![(start, 0)];
            while let Some((node, followed)) = path.last_mut() {
                let node = *node;
                if *followed == 0 {
                    number[node] = next_number;
                    lowest[node] = next_number;
                    next_number += 1;
                    stack.push(node);
                }
                if let Some(then) = self.after[node].get(*followed).copied() {
                    *followed += 1;
                    if number[then] == NONE {
                        path.push((then, 0));
                    } else if component[then] == NONE {
                        lowest[node] = lowest[node].min(number[then]);
                    }
                    continue;
                }
                path.pop();
                if let Some((above, _)) = path.last() {
                    lowest[*above] = lowest[*above].min(lowest[node]);
                }
                if lowest[node] == number[node] {
                    while let Some(member) = stack.pop() {
                        component[member] = next_component;
                        if member == node {
                            break;
                        }
                    }
                    next_component += 1;
                }
            }
        }
        component
    }
}
