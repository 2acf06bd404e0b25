//! The rule that benches and examples of this crate are about: the admission rule of a switchdev
//! program, in which a VLAN tag and a source MAC lead to a chain.

use tc_flows::{Action, ChainId, Hook, Ifindex, Mac, Match, Prio, Rule, VlanId, VlanTpid};

/// Guest number `at` of the interface with this index; nothing where that is no interface's.
pub(crate) fn admission(ifindex: u32, at: u32) -> Option<Rule> {
    let [_, b, c, d] = at.to_be_bytes();
    let matching = Match::vlan(VlanTpid::Dot1Q, VlanId::new(100)?).src(Mac([2, 0, 0, b, c, d]));
    let hook = Hook::ingress(Ifindex::new(ifindex)?);
    let actions = [Action::Goto(ChainId::new(5)?)];
    Rule::new(hook, ChainId::ZERO, Prio::new(10)?, matching, actions).ok()
}
