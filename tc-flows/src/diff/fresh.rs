//! The way around where no order of single changes is known: the new part in fresh chains.
//!
//! In come a hook before and after and the chains of each block of changes that is stuck; out come changes
//! that copy what shall be there into chains with new numbers, lead frames there by one atomic
//! change for each rule that leads in, bring the real chains to their state while no frame meets
//! them, lead the frames back, and take the copies out. Or the reason why that cannot be.
//!
//! Numbers of copies are higher than all others and keep their order, so that they rise along
//! every path as the others do.

use std::collections::{BTreeMap, BTreeSet};

use super::program::{Program, reached};
use super::{Arranged, Change, GapReason, arrange};
use crate::action::Action;
use crate::ident::{ChainId, Hook, Prio};
use crate::key::Match;
use crate::rule::{Rule, RuleId};
use crate::walk::GOTOS_MAX;

/// The changes from one set of a hook to another by way of fresh chains. `highest` is the highest
/// chain number that something else at the hook uses.
///
/// # Errors
/// Where there is no way.
pub(super) fn around(
    hook: Hook,
    old: &[&Rule],
    new: &[&Rule],
    stuck: &[BTreeSet<ChainId>],
    highest: ChainId,
    budget: &mut usize,
) -> Result<Vec<Change>, GapReason> {
    let program = Program::new(old, new);
    // Where the first chain of a block leads to the others, its own change can be what leads to
    // their copies.
    let behind_first = stuck.iter().flat_map(|block| block.iter().skip(1)).copied();
    let all = stuck.iter().flatten().copied().filter(|chain| *chain != ChainId::ZERO);
    let mut tried = BTreeSet::new();
    for copied in [behind_first.collect::<BTreeSet<ChainId>>(), all.collect()] {
        if copied != tried
            && let Some(changes) = around_chains(&program, old, new, &copied, highest, budget)?
        {
            return Ok(changes);
        }
        tried = copied;
    }
    around_all(hook, &program, new, highest)
}

/// What the new rules lead to from these chains.
fn led_to(program: &Program<'_>, from: BTreeSet<ChainId>) -> BTreeSet<ChainId> {
    reached(from, |at| Some(&program.chains.get(&at)?.new_targets))
}

/// Fresh numbers for these chains.
fn fresh(
    program: &Program<'_>,
    chains: &BTreeSet<ChainId>,
    highest: ChainId,
) -> Result<BTreeMap<ChainId, ChainId>, GapReason> {
    let used = program.chains.keys().next_back().copied().max(Some(highest));
    let mut next = used.map_or(0, ChainId::get);
    chains
        .iter()
        .map(|chain| {
            next += 1;
            let copy = ChainId::new(next).ok_or(GapReason::NoChainLeft)?;
            Ok((*chain, copy))
        })
        .collect()
}

/// By way of copies of these chains and what they lead to; every rule outside that leads in is led
/// to the copies for a while. `None` where the rest is stuck all the same.
fn around_chains(
    program: &Program<'_>,
    old: &[&Rule],
    new: &[&Rule],
    stuck: &BTreeSet<ChainId>,
    highest: ChainId,
    budget: &mut usize,
) -> Result<Option<Vec<Change>>, GapReason> {
    let copied = led_to(program, stuck.clone());
    if copied.contains(&ChainId::ZERO) {
        return Ok(None);
    }
    let copies = fresh(program, &copied, highest)?;
    // All new, with copies in the place of the copied chains; and those as they were.
    let moved = new.iter().map(|rule| moved(rule, &copies));
    let left = old.iter().filter(|rule| copied.contains(&rule.chain())).map(|rule| (*rule).clone());
    let between =
        left.chain(moved).map(|rule| (rule.id().clone(), rule)).collect::<BTreeMap<RuleId, Rule>>();
    let between: Vec<&Rule> = between.values().collect();
    let mut changes = Vec::new();
    for (from, to) in [(old, between.as_slice()), (between.as_slice(), new)] {
        let program = Program::new(from, to);
        let Arranged { order, stuck } = arrange(&program, budget);
        if !stuck.is_empty() {
            return Ok(None);
        }
        changes.extend(order.into_iter().map(|at| Change::of(&program.entries[at])));
    }
    Ok(Some(changes))
}

/// The rule as it stands while the copies are in use.
fn moved(rule: &Rule, copies: &BTreeMap<ChainId, ChainId>) -> Rule {
    let there = |chain: ChainId| *copies.get(&chain).unwrap_or(&chain);
    rule.moved(there(rule.chain()), there)
}

/// By way of a copy of everything, to which a rule for all frames leads from the first chain.
fn around_all(
    hook: Hook,
    program: &Program<'_>,
    new: &[&Rule],
    highest: ChainId,
) -> Result<Vec<Change>, GapReason> {
    let copied = led_to(program, BTreeSet::from([ChainId::ZERO]));
    let lowest = program
        .chains
        .get(&ChainId::ZERO)
        .and_then(|chain| program.entries.get(chain.entries.clone())?.first())
        .map(|entry| entry.id().prio());
    let free = lowest.map_or(Some(Prio::FIRST), |prio| Prio::new(prio.get() - 1));
    let free = free.ok_or(GapReason::NoPrioBelow { chain: ChainId::ZERO })?;
    if longest_path(new) >= GOTOS_MAX {
        return Err(GapReason::TooManyGotos);
    }
    let copies = fresh(program, &copied, highest)?;
    let first = copies[&ChainId::ZERO];
    let Ok(switch) = Rule::new(hook, ChainId::ZERO, free, Match::any(), [Action::Goto(first)])
    else {
        unreachable!("one terminal action is a rule");
    };
    let copy: Vec<Rule> = new
        .iter()
        .filter(|rule| copied.contains(&rule.chain()))
        .map(|rule| moved(rule, &copies))
        .collect();
    let mut changes: Vec<Change> = copy.iter().rev().cloned().map(Change::Put).collect();
    changes.push(Change::Put(switch.clone()));
    let order = program.unseen(program.changes.iter().copied());
    changes.extend(order.into_iter().map(|at| Change::of(&program.entries[at])));
    changes.push(Change::Remove(switch.id().clone()));
    changes.extend(copy.iter().map(|rule| Change::Remove(rule.id().clone())));
    Ok(changes)
}

/// Gotos on the longest path from the first chain; [`GOTOS_MAX`] where paths have no end.
fn longest_path(rules: &[&Rule]) -> usize {
    let mut leads: BTreeMap<ChainId, BTreeSet<ChainId>> = BTreeMap::new();
    for rule in rules {
        leads.entry(rule.chain()).or_default().extend(rule.goto_targets());
    }
    let mut here = BTreeSet::from([ChainId::ZERO]);
    for length in 0..GOTOS_MAX {
        here = here.iter().filter_map(|at| leads.get(at)).flatten().copied().collect();
        if here.is_empty() {
            return length;
        }
    }
    GOTOS_MAX
}
