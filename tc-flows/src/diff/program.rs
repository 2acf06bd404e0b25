//! The rules of one hook before and after, side by side.
//!
//! In come both sets in order of identity; out go the entries that change, the chains with what
//! leads where, and for each change whether any frame can meet it: not before the change (it fills
//! a chain that nothing leads to yet), not after it (it drains a chain that nothing leads to any
//! more), or at any time (it is live). No order of live changes is decided here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use crate::action::Action;
use crate::ident::{ChainId, Prio};
use crate::rule::{Rule, RuleId};

/// What stands at one identity, before and after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'r> {
    pub(super) old: Option<&'r Rule>,
    pub(super) new: Option<&'r Rule>,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Add,
    Replace,
    Delete,
}

/// Who can meet a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody, while no live change was made.
    Fill,
    /// Frames.
    Live,
    /// Nobody, once all live changes are made.
    Drain,
}

/// One chain of a [`Program`].
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// Its entries.
    pub(super) entries: Range<usize>,
    /// Where its old rules lead.
    pub(super) old_targets: BTreeSet<ChainId>,
    /// Where its new rules lead.
    pub(super) new_targets: BTreeSet<ChainId>,
    in_old: bool,
    in_new: bool,
    /// Whether the old rules lead from here to a live change, or one is here.
    pub(super) leads_to_change_in_old: bool,
    /// The same of the new rules.
    pub(super) leads_to_change_in_new: bool,
}

/// Both sets of one hook. Entries are known by their place in `entries`.
#[derive(Debug)]
pub(super) struct Program<'r> {
    pub(super) entries: Vec<Entry<'r>>,
    pub(super) chains: BTreeMap<ChainId, Chain>,
    /// The entries that change, in order of identity.
    pub(super) changes: Vec<usize>,
}

impl<'r> Entry<'r> {
    pub(super) fn id(&self) -> &'r RuleId {
        match (self.old, self.new) {
            (Some(rule), _) | (None, Some(rule)) => rule.id(),
            (None, None) => unreachable!("an entry has a rule on one side at least"),
        }
    }

    pub(super) fn version(&self, new: bool) -> Option<&'r Rule> {
        if new { self.new } else { self.old }
    }

    pub(super) fn changes(&self) -> bool {
        self.old != self.new
    }

    /// What the change does, where there is one.
    pub(super) const fn kind(&self) -> Kind {
        match (self.old, self.new) {
            (None, _) => Kind::Add,
            (Some(_), Some(_)) => Kind::Replace,
            (Some(_), None) => Kind::Delete,
        }
    }

    /// Whether frames that it took may be taken by a further rule of the chain.
    pub(super) fn may_ask_on(&self) -> bool {
        let rules = [self.old, self.new];
        let mut actions = rules.iter().flatten().flat_map(|rule| rule.actions());
        actions.any(Action::may_ask_on)
    }

    /// Whether both sides do the same with a frame: then no frame sees the change.
    pub(super) fn acts_alike(&self) -> bool {
        match (self.old, self.new) {
            (Some(old), Some(new)) => old.actions() == new.actions(),
            _ => false,
        }
    }
}

impl<'r> Program<'r> {
    /// Both sides in order of identity.
    pub(super) fn new(old: &[&'r Rule], new: &[&'r Rule]) -> Program<'r> {
        let mut entries = Vec::with_capacity(old.len().max(new.len()));
        let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (olds.peek(), news.peek()) {
                (Some(old), Some(new)) => old.id().cmp(new.id()),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => break,
            };
            entries.push(Entry {
                old: if order.is_le() { olds.next().copied() } else { None },
                new: if order.is_ge() { news.next().copied() } else { None },
            });
        }
        let mut program = Program { entries, chains: BTreeMap::new(), changes: Vec::new() };
        program.find_chains();
        program.find_paths();
        program
    }

    fn find_chains(&mut self) {
        self.chains.entry(ChainId::ZERO).or_default();
        let mut at = 0;
        while at < self.entries.len() {
            let id = self.entries[at].id().chain();
            let mut chain = Chain { entries: at..at, ..Chain::default() };
            while let Some(entry) = self.entries.get(at).filter(|entry| entry.id().chain() == id) {
                chain.old_targets.extend(entry.old.into_iter().flat_map(Rule::goto_targets));
                chain.new_targets.extend(entry.new.into_iter().flat_map(Rule::goto_targets));
                if entry.changes() {
                    self.changes.push(at);
                }
                at += 1;
            }
            chain.entries.end = at;
            self.chains.insert(id, chain);
        }
        let targets: BTreeSet<ChainId> = self
            .chains
            .values()
            .flat_map(|chain| chain.old_targets.union(&chain.new_targets))
            .copied()
            .collect();
        for target in targets {
            self.chains.entry(target).or_default();
        }
    }

    fn find_paths(&mut self) {
        let start = BTreeSet::from([ChainId::ZERO]);
        for id in reached(start.clone(), |at| Some(&self.chains.get(&at)?.old_targets)) {
            self.chains.entry(id).or_default().in_old = true;
        }
        for id in reached(start, |at| Some(&self.chains.get(&at)?.new_targets)) {
            self.chains.entry(id).or_default().in_new = true;
        }
        let live: BTreeSet<ChainId> = self
            .changes
            .iter()
            .filter(|at| self.phase(**at) == Phase::Live && !self.entries[**at].acts_alike())
            .map(|at| self.entries[*at].id().chain())
            .collect();
        for id in self.leading_to(&live, |chain| &chain.old_targets) {
            self.chains.entry(id).or_default().leads_to_change_in_old = true;
        }
        for id in self.leading_to(&live, |chain| &chain.new_targets) {
            self.chains.entry(id).or_default().leads_to_change_in_new = true;
        }
    }

    fn leading_to(
        &self,
        to: &BTreeSet<ChainId>,
        targets: impl Fn(&Chain) -> &BTreeSet<ChainId>,
    ) -> BTreeSet<ChainId> {
        let mut sources: HashMap<ChainId, BTreeSet<ChainId>> = HashMap::new();
        for (id, chain) in &self.chains {
            for target in targets(chain) {
                sources.entry(*target).or_default().insert(*id);
            }
        }
        reached(to.clone(), |at| sources.get(&at))
    }

    /// Who can meet the change of this entry.
    pub(super) fn phase(&self, at: usize) -> Phase {
        match self.chains.get(&self.entries[at].id().chain()) {
            Some(chain) if chain.in_old && chain.in_new => Phase::Live,
            Some(chain) if chain.in_old => Phase::Drain,
            _ => Phase::Fill,
        }
    }

    /// Chain and prio of an entry: what holds one protocol.
    pub(super) fn place(&self, at: usize) -> (ChainId, Prio) {
        let id = self.entries[at].id();
        (id.chain(), id.prio())
    }

    /// The protocol of entries of one prio and one side: they have one.
    fn protocol(&self, entries: &[usize]) -> Option<u16> {
        entries.first().map(|at| self.entries[*at].id().matching().protocol())
    }

    /// Of these changes, deletions and additions in the prios that change their protocol: all of
    /// the former must be made before any of the latter.
    pub(super) fn emptied(&self, changes: &[usize]) -> Vec<(Vec<usize>, Vec<usize>)> {
        let mut places: BTreeMap<(ChainId, Prio), (Vec<usize>, Vec<usize>)> = BTreeMap::new();
        for at in changes {
            let (deleted, added) = places.entry(self.place(*at)).or_default();
            match self.entries[*at].kind() {
                Kind::Add => added.push(*at),
                Kind::Delete => deleted.push(*at),
                Kind::Replace => {}
            }
        }
        let both =
            |(deleted, added): &(Vec<usize>, Vec<usize>)| !deleted.is_empty() && !added.is_empty();
        places
            .into_values()
            .filter(|place| both(place) && self.protocol(&place.0) != self.protocol(&place.1))
            .collect()
    }

    /// These changes so that each prio that changes its protocol loses its old rules just before
    /// the first new one comes; otherwise what comes before what goes, and of what comes the
    /// destinations first, of what goes the destinations last.
    pub(super) fn unseen(&self, changes: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let (mut go, mut come): (Vec<usize>, Vec<usize>) =
            changes.into_iter().partition(|at| self.entries[*at].kind() == Kind::Delete);
        come.sort_by_key(|at| (std::cmp::Reverse(self.entries[*at].id().chain()), *at));
        go.sort_unstable();
        let mut in_the_way: HashMap<(ChainId, Prio), Vec<usize>> = HashMap::new();
        for at in &go {
            in_the_way.entry(self.place(*at)).or_default().push(*at);
        }
        let mut gone: BTreeSet<usize> = BTreeSet::new();
        let mut order = Vec::with_capacity(come.len() + go.len());
        for at in come {
            let protocol = self.entries[at].id().matching().protocol();
            if let Some(old) = in_the_way.get(&self.place(at))
                && self.protocol(old) != Some(protocol)
            {
                order.extend(old);
                gone.extend(in_the_way.remove(&self.place(at)).into_iter().flatten());
            }
            order.push(at);
        }
        order.extend(go.into_iter().filter(|at| !gone.contains(at)));
        order
    }
}

/// What can be reached from `from`, these among it.
pub(super) fn reached<'t>(
    from: BTreeSet<ChainId>,
    targets: impl Fn(ChainId) -> Option<&'t BTreeSet<ChainId>>,
) -> BTreeSet<ChainId> {
    let mut open: Vec<ChainId> = from.iter().copied().collect();
    let mut found = from;
    while let Some(at) = open.pop() {
        for target in targets(at).into_iter().flatten() {
            if found.insert(*target) {
                open.push(*target);
            }
        }
    }
    found
}
