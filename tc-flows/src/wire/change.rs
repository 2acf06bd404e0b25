//! Notifications of the group `RTNLGRP_TC`, read as changes.
//!
//! In comes a message, out goes a [`Change`], or nothing where it is about no hook, chain or
//! action.
//!
//! Sources: `tfilter_notify`, `tc_chain_notify` in net/sched/cls_api.c, `qdisc_notify` in
//! sch_api.c, `tcf_add_notify` in act_api.c; `RTM_*` and `struct tcamsg` in
//! include/uapi/linux/rtnetlink.h.

use super::action::{TCA_ACT_KIND, TCA_ACT_OPTIONS};
use super::read::{Message, attrs, find, read_filter, text, u32_at};
use super::*;
use crate::ident::BlockId;
use crate::watch::{Change, Place, SeenAction, SeenFilter};

const RTM_NEWACTION: u16 = 48;
const RTM_DELACTION: u16 = 49;

/// `struct tcamsg`.
const TCAMSG: usize = 4;
const TCA_ACT_TAB: u16 = 1;
const TCA_ACT_INDEX: u16 = 3;

impl Message<'_> {
    /// Where this is a notification: what changed. Filters are read on behalf of `owner`.
    pub(crate) fn change(&self, owner: Owner) -> Option<Change> {
        match self.kind {
            RTM_NEWTFILTER | RTM_DELTFILTER => self.filter_change(owner),
            RTM_NEWCHAIN | RTM_DELCHAIN => {
                let place = match u32_at(self.payload, 4)? {
                    TCM_IFINDEX_MAGIC_BLOCK => {
                        Place::Block(BlockId::new(u32_at(self.payload, 12)?)?)
                    }
                    ifindex => Place::Interface(Ifindex::new(ifindex)?),
                };
                let chain = u32_at(find(self.payload.get(TCMSG..)?, TCA_CHAIN)?, 0)?;
                Some(if self.kind == RTM_NEWCHAIN {
                    Change::ChainAdded { place, chain }
                } else {
                    Change::ChainDeleted { place, chain }
                })
            }
            RTM_NEWQDISC | RTM_DELQDISC => {
                // Only the qdisc that hooks belong to.
                if u32_at(self.payload, 12)? != TC_H_CLSACT {
                    return None;
                }
                let ifindex = Ifindex::new(u32_at(self.payload, 4)?)?;
                let kind = text(find(self.payload.get(TCMSG..)?, TCA_KIND)?);
                Some(if self.kind == RTM_NEWQDISC {
                    Change::QdiscAdded { ifindex, kind }
                } else {
                    Change::QdiscDeleted { ifindex, kind }
                })
            }
            RTM_NEWACTION | RTM_DELACTION => {
                let table = find(self.payload.get(TCAMSG..)?, TCA_ACT_TAB)?;
                let actions = attrs(table).filter_map(|(_, action)| read_seen(action)).collect();
                Some(if self.kind == RTM_NEWACTION {
                    Change::ActionsSet(actions)
                } else {
                    Change::ActionsDeleted(actions)
                })
            }
            _ => None,
        }
    }

    fn filter_change(&self, owner: Owner) -> Option<Change> {
        let hook = read_hook(self.payload)?;
        let deleted = self.kind == RTM_DELTFILTER;
        let filter = match read_filter(self.payload, owner, hook, Detail::Full)? {
            Filter::Own(own) => SeenFilter::Own(Box::new(own)),
            Filter::UnreadableOwn(location, handle) => SeenFilter::UnreadableOwn(location, handle),
            Filter::Foreign(foreign) => SeenFilter::Foreign(foreign),
            Filter::Prio { .. } if deleted => {
                let info = u32_at(self.payload, 16)?;
                let chain = find(self.payload.get(TCMSG..)?, TCA_CHAIN);
                return Some(Change::PrioDeleted {
                    hook,
                    chain: chain.and_then(|chain| u32_at(chain, 0)).unwrap_or(0),
                    prio: (info >> 16) as u16,
                    protocol: u16::from_be_bytes((info as u16).to_ne_bytes()),
                });
            }
            Filter::Prio { .. } | Filter::Terse(_) => return None,
        };
        Some(if deleted {
            Change::FilterDeleted { hook, filter }
        } else if self.flags & NLM_F_EXCL != 0 {
            Change::FilterAdded { hook, filter }
        } else {
            Change::FilterSet { hook, filter }
        })
    }
}

/// The hook that a filter's `tcmsg` names.
fn read_hook(tcmsg: &[u8]) -> Option<Hook> {
    let parent = u32_at(tcmsg, 12)?;
    match u32_at(tcmsg, 4)? {
        TCM_IFINDEX_MAGIC_BLOCK => BlockId::new(parent).map(Hook::block),
        ifindex => match parent {
            CLSACT_INGRESS => Ifindex::new(ifindex).map(Hook::ingress),
            CLSACT_EGRESS => Ifindex::new(ifindex).map(Hook::egress),
            // An ingress qdisc has one hook, and may be named by its own handle.
            CLSACT_HANDLE => Ifindex::new(ifindex).map(Hook::ingress),
            _ => None,
        },
    }
}

fn read_seen(action: &[u8]) -> Option<SeenAction> {
    let kind = text(find(action, TCA_ACT_KIND)?);
    // The first field of what each kind calls its parameters (`tc_gen`).
    let parms = match kind.as_str() {
        "csum" | "ct" | "police" | "nat" | "connmark" | "ife" => 1,
        _ => 2,
    };
    let within = find(action, TCA_ACT_OPTIONS).and_then(|options| find(options, parms));
    let index = find(action, TCA_ACT_INDEX).or(within).and_then(|index| u32_at(index, 0));
    Some(SeenAction { kind, index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{hook, mac, prio};
    use crate::key::Match;
    use crate::rule::Rule;

    const OWNER: Owner = Owner(*b"test");

    fn rule() -> Rule {
        let matching = Match::any().src(mac(1));
        Rule::new(hook(), ChainId::ZERO, prio(10), matching, [Action::Drop]).unwrap()
    }

    fn change(bytes: &[u8]) -> Option<Change> {
        Messages::new(bytes).next().expect("a message").change(OWNER)
    }

    /// A notification about a rule under this handle.
    fn about(kind: u16, flags: u16, handle: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.begin(kind, flags, 5);
        writer.location(rule().id(), Handle(handle));
        writer.flower(&rule(), OWNER, 0);
        writer.end();
        bytes
    }

    /// A notification with this tcmsg and these string or number attributes.
    fn plain(kind: u16, tcmsg: [u32; 4], write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.begin(kind, 0, 5);
        let [ifindex, handle, parent, info] = tcmsg;
        writer.tcmsg(ifindex, handle, parent, info);
        write(&mut writer);
        writer.end();
        bytes
    }

    #[test]
    fn a_filter_was_added_set_or_deleted_as_type_and_flags_say() {
        let own = |filter: &SeenFilter| matches!(filter, SeenFilter::Own(own) if own.rule == rule() && own.handle == Handle(3));
        let added = change(&about(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, 3)).unwrap();
        assert!(
            matches!(&added, Change::FilterAdded { hook: at, filter }
            if *at == hook() && own(filter)),
            "{added:?}"
        );
        let set = change(&about(RTM_NEWTFILTER, NLM_F_CREATE, 3)).unwrap();
        assert!(matches!(&set, Change::FilterSet { filter, .. } if own(filter)), "{set:?}");
        let deleted = change(&about(RTM_DELTFILTER, 0, 3)).unwrap();
        assert!(matches!(&deleted, Change::FilterDeleted { filter, .. } if own(filter)));
        assert!(deleted.may_concern(hook()));
    }

    #[test]
    fn a_deletion_with_handle_0_takes_the_whole_prio() {
        let protocol = crate::ident::ETH_P_ALL;
        let expected = Change::PrioDeleted { hook: hook(), chain: 0, prio: 10, protocol };
        assert_eq!(change(&about(RTM_DELTFILTER, 0, 0)), Some(expected));
        // That a prio is there says nothing: its filters do.
        assert_eq!(change(&about(RTM_NEWTFILTER, 0, 0)), None);
    }

    #[test]
    fn chains_come_and_go_at_an_interface_or_in_a_block() {
        let place = Place::Interface(hook().ifindex().unwrap());
        let at = |kind, ifindex, parent| {
            plain(kind, [ifindex, 0, parent, 0], |writer| {
                writer.attr(TCA_CHAIN, &9u32.to_ne_bytes());
            })
        };
        let ifindex = hook().ifindex().unwrap().get();
        let added = change(&at(RTM_NEWCHAIN, ifindex, CLSACT_HANDLE));
        assert_eq!(added, Some(Change::ChainAdded { place, chain: 9 }));
        let block = Place::Block(BlockId::new(4).unwrap());
        let deleted = change(&at(RTM_DELCHAIN, TCM_IFINDEX_MAGIC_BLOCK, 4)).unwrap();
        assert_eq!(deleted, Change::ChainDeleted { place: block, chain: 9 });
        assert!(!deleted.may_concern(hook()));
        assert!(deleted.may_concern(Hook::block(BlockId::new(4).unwrap())));
    }

    #[test]
    fn of_qdiscs_only_those_with_hooks_are_told() {
        let ifindex = hook().ifindex().unwrap();
        let at = |kind, parent| {
            plain(kind, [ifindex.get(), CLSACT_HANDLE, parent, 0], |writer| {
                writer.attr_str(TCA_KIND, b"clsact");
            })
        };
        let kind = "clsact".to_owned();
        assert_eq!(
            change(&at(RTM_DELQDISC, TC_H_CLSACT)),
            Some(Change::QdiscDeleted { ifindex, kind: kind.clone() })
        );
        let added = change(&at(RTM_NEWQDISC, TC_H_CLSACT));
        assert_eq!(added, Some(Change::QdiscAdded { ifindex, kind }));
        assert_eq!(change(&at(RTM_DELQDISC, u32::MAX)), None);
    }

    #[test]
    fn actions_are_told_by_kind_and_number() {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.begin(RTM_NEWACTION, 0, 5);
        writer.put(&[0; TCAMSG]);
        let table = writer.nest(TCA_ACT_TAB);
        for (order, kind, parms) in [(1, "police", 1), (2, "gact", 2)] {
            let action = writer.nest(order);
            writer.attr_str(TCA_ACT_KIND, kind.as_bytes());
            let options = writer.nest(TCA_ACT_OPTIONS);
            writer.attr(
                parms,
                [u32::from(order) + 6, 0, 0, 0, 0].map(u32::to_ne_bytes).as_flattened(),
            );
            writer.end_nest(options);
            writer.end_nest(action);
        }
        writer.end_nest(table);
        writer.end();
        let seen = |kind: &str, index| SeenAction { kind: kind.to_owned(), index: Some(index) };
        let expected = Change::ActionsSet(vec![seen("police", 7), seen("gact", 8)]);
        assert_eq!(change(&bytes), Some(expected));
    }

    #[test]
    fn what_is_cut_short_is_no_change_or_the_same_and_never_panics() {
        let whole = about(RTM_NEWTFILTER, NLM_F_EXCL, 3);
        for len in NLMSGHDR..whole.len() {
            let mut cut = whole[..len].to_vec();
            cut[..4].copy_from_slice(&(len as u32).to_ne_bytes());
            let change = change(&cut);
            // Without its cookie it is nobody's we know.
            assert!(
                change.is_none_or(|change| matches!(
                    change,
                    Change::FilterAdded {
                        filter: SeenFilter::Foreign(_) | SeenFilter::UnreadableOwn(..),
                        ..
                    }
                )),
                "{len}"
            );
        }
    }
}
