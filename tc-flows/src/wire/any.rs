//! A filter as a rule, whoever installed it.
//!
//! In comes one `RTM_NEWTFILTER` message, out go the rule, its handle and the cookie of its first
//! action, or nothing where the rule has no counterpart in this crate. What an owner may conclude
//! from a cookie is not decided here.

use super::key::Hidden;
use super::read::{first_action, owners_cookie, read_flower};
use super::{
    CLSACT_EGRESS, CLSACT_HANDLE, CLSACT_INGRESS, FLOWER, Message, RTM_NEWTFILTER, TC_H_CLSACT,
    TCA_CHAIN, TCA_KIND, TCA_OPTIONS, TCM_IFINDEX_MAGIC_BLOCK, TCMSG, attrs, u32_at,
};
use crate::ident::{BlockId, ChainId, Handle, Hook, Ifindex, Prio};
use crate::kernel::RuleLocation;
use crate::rule::{Cookie, Rule};

/// The hook that `tcm_ifindex` and `tcm_parent` name.
fn hook(ifindex: u32, parent: u32) -> Option<Hook> {
    if ifindex == TCM_IFINDEX_MAGIC_BLOCK {
        return BlockId::new(parent).map(Hook::Block);
    }
    let ifindex = Ifindex::new(ifindex)?;
    match parent {
        // The first is what a clsact qdisc calls it, the others belong to an ingress qdisc.
        CLSACT_INGRESS | CLSACT_HANDLE | TC_H_CLSACT => Some(Hook::Ingress(ifindex)),
        CLSACT_EGRESS => Some(Hook::Egress(ifindex)),
        _ => None,
    }
}

impl Message<'_> {
    /// The rule that this message shows.
    pub(crate) fn rule(&self) -> Option<(Rule, Handle, Option<Cookie>)> {
        if self.kind != RTM_NEWTFILTER {
            return None;
        }
        let number = |at| u32_at(self.payload, at);
        let hook = hook(number(4)?, number(12)?)?;
        let info = number(16)?;
        let protocol = u16::from_be_bytes((info as u16).to_ne_bytes());
        let (mut kind, mut options, mut chain) = (&[][..], &[][..], 0);
        for (attr, value) in attrs(self.payload.get(TCMSG..)?) {
            match attr {
                TCA_KIND => kind = value,
                TCA_OPTIONS => options = value,
                TCA_CHAIN => chain = u32_at(value, 0)?,
                _ => {}
            }
        }
        if kind.split(|byte| *byte == 0).next() != Some(FLOWER) {
            return None;
        }
        let prio = Prio::new((info >> 16) as u16)?;
        let location = RuleLocation { hook, chain: ChainId::new(chain)?, prio, protocol };
        let (rule, _) = read_flower(options, &location, Hidden::Nothing)?;
        let cookie = first_action(options).and_then(owners_cookie);
        Some((rule, Handle(number(8)?), cookie))
    }
}
