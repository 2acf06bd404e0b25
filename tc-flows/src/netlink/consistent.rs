//! A dump that nobody's changes can spoil.
//!
//! The kernel dumps filters in pieces, and between two pieces finds its place again by counting
//! prios (`tcf_chain_dump`, net/sched/cls_api.c) without a word about changes meanwhile. A prio
//! that goes in between shifts those behind it to the front: rules are left out that stood there
//! all the time. Within a prio flower finds its place by handle (`fl_walk`,
//! net/sched/cls_flower.c), so that single rules may come and go, and a new prio only makes some
//! rules come twice. So: listen, dump, and where a prio may have gone meanwhile, dump again; then
//! bring the dump up to date by what was heard.

use std::collections::{BTreeMap, BTreeSet};

use crate::ident::{Handle, Hook};
use crate::kernel::Dump;
use crate::watch::{Change, Notice, SeenFilter};

/// Chain, prio and handle.
type At = (u32, u16, Handle);

/// The dump, brought up to date by what was heard while it was made; nothing where rules may have
/// been left out.
pub(super) fn settled(hook: Hook, dump: Dump, heard: &[Notice]) -> Option<Dump> {
    let mut filters: BTreeMap<At, SeenFilter> = seen(&dump).map(|f| (f.place(), f)).collect();
    let mut touched = BTreeSet::new();
    let mut emptied = BTreeSet::new();
    for notice in heard {
        let Notice::Changed { change, .. } = notice else { return None };
        if !change.may_concern(hook) {
            continue;
        }
        match change {
            Change::FilterAdded { filter, .. } | Change::FilterSet { filter, .. } => {
                touched.insert(filter.place());
                filters.insert(filter.place(), filter.clone());
            }
            Change::FilterDeleted { filter, .. } => {
                let (chain, prio, _) = filter.place();
                touched.insert(filter.place());
                filters.remove(&filter.place());
                emptied.insert((chain, prio));
            }
            Change::PrioDeleted { .. }
            | Change::ChainDeleted { .. }
            | Change::QdiscDeleted { .. } => return None,
            Change::ChainAdded { .. }
            | Change::QdiscAdded { .. }
            | Change::ActionsSet(_)
            | Change::ActionsDeleted(_) => {}
        }
    }
    // A prio that lost a rule stood all the time only if a rule that nobody touched stands in it.
    let stood = |(chain, prio): &(u32, u16)| {
        let rules = filters.range((*chain, *prio, Handle(0))..=(*chain, *prio, Handle(u32::MAX)));
        rules.into_iter().any(|(at, _)| !touched.contains(at))
    };
    emptied.iter().all(stood).then(|| dump_of(filters, dump.hook_present))
}

fn seen(dump: &Dump) -> impl Iterator<Item = SeenFilter> {
    let own = dump.own.iter().map(|own| SeenFilter::Own(Box::new(own.clone())));
    let unreadable =
        dump.unreadable_own.iter().map(|(at, handle)| SeenFilter::UnreadableOwn(*at, *handle));
    own.chain(unreadable).chain(dump.foreign.iter().cloned().map(SeenFilter::Foreign))
}

fn dump_of(filters: BTreeMap<At, SeenFilter>, hook_present: bool) -> Dump {
    let mut dump = Dump { hook_present, ..Dump::default() };
    for filter in filters.into_values() {
        match filter {
            SeenFilter::Own(own) => dump.own.push(*own),
            SeenFilter::UnreadableOwn(at, handle) => dump.unreadable_own.push((at, handle)),
            SeenFilter::Foreign(foreign) => dump.foreign.push(foreign),
        }
    }
    dump
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::hook;
    use crate::kernel::Foreign;
    use crate::watch::{Place, Sender};

    fn filter(prio: u16, handle: u32) -> Foreign {
        let kind = "flower".to_owned();
        Foreign { chain: 0, prio, protocol: 3, handle: Handle(handle), kind, owner: None }
    }

    fn dump(filters: &[(u16, u32)]) -> Dump {
        let foreign = filters.iter().map(|(prio, handle)| filter(*prio, *handle)).collect();
        Dump { foreign, hook_present: true, ..Dump::default() }
    }

    fn heard(change: Change) -> Notice {
        Notice::Changed { change, by: Sender::Other(7) }
    }

    fn added(prio: u16, handle: u32) -> Notice {
        let filter = SeenFilter::Foreign(filter(prio, handle));
        heard(Change::FilterAdded { hook: hook(), filter })
    }

    fn deleted(prio: u16, handle: u32) -> Notice {
        let filter = SeenFilter::Foreign(filter(prio, handle));
        heard(Change::FilterDeleted { hook: hook(), filter })
    }

    #[test]
    fn what_came_and_went_meanwhile_is_brought_up_to_date_and_what_came_twice_is_there_once() {
        let before = dump(&[(1, 1), (1, 2), (2, 1), (2, 1)]);
        let heard = [added(3, 1), deleted(1, 2), added(4, 1), deleted(1, 9)];
        let expected = dump(&[(1, 1), (2, 1), (3, 1), (4, 1)]);
        assert_eq!(settled(hook(), before, &heard), Some(expected));
    }

    #[test]
    fn a_prio_that_may_have_gone_meanwhile_spoils_the_dump() {
        let before = || dump(&[(1, 1), (2, 1), (2, 2)]);
        assert_eq!(settled(hook(), before(), &[deleted(1, 1)]), None);
        assert_eq!(settled(hook(), before(), &[deleted(9, 1)]), None);
        // That one is there now does not mean that it stood all the time.
        assert_eq!(settled(hook(), before(), &[deleted(1, 1), added(1, 1)]), None);
        let place = Place::Interface(hook().ifindex().unwrap());
        let gone = [
            Change::PrioDeleted { hook: hook(), chain: 0, prio: 1, protocol: 3 },
            Change::ChainDeleted { place, chain: 0 },
            Change::QdiscDeleted { ifindex: hook().ifindex().unwrap(), kind: "clsact".into() },
        ];
        for change in gone {
            assert_eq!(settled(hook(), before(), &[heard(change)]), None);
        }
        assert_eq!(settled(hook(), before(), &[Notice::Lost]), None);
        assert!(settled(hook(), before(), &[deleted(2, 1)]).is_some());
    }

    #[test]
    fn what_happens_at_other_hooks_does_not_matter() {
        let elsewhere = Hook::egress(hook().ifindex().unwrap());
        let gone = Change::PrioDeleted { hook: elsewhere, chain: 0, prio: 1, protocol: 3 };
        let before = dump(&[(1, 1)]);
        assert_eq!(settled(hook(), before.clone(), &[heard(gone)]), Some(before));
    }
}
