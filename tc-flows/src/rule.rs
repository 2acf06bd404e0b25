//! One flower rule as a value, its identity, and the cookie by which its owner knows it again.
//!
//! In come a hook, a place in its chains, a match and actions; out goes a [`Rule`] that the kernel
//! could hold. What cannot be a rule (no actions, an action after a terminal one) is refused here
//! and can be assumed away everywhere else.

use std::fmt;
use std::sync::Arc;

use crate::ident::{ChainId, Hook, Ifindex, Prio, VlanId, VlanTpid, fmt_ethertype};
use crate::kernel::RuleLocation;
use crate::key::{Fields, Match};

/// Most actions that one rule can hold (`TCA_ACT_MAX_PRIO`, include/uapi/linux/pkt_cls.h).
pub const ACTIONS_MAX: usize = 32;

/// One step of what happens to a frame that a rule matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The frame ends here (gact `drop`).
    Drop,
    /// The frame goes on to the host's own stack (gact `pass`).
    Pass,
    /// Hardware hands the frame to software, which consumes it (gact `trap`).
    Trap,
    /// The rules of this chain decide (gact `goto chain`).
    Goto(ChainId),
    /// A copy leaves through this interface, the frame continues (mirred `egress mirror`).
    Mirror(Ifindex),
    /// The frame leaves through this interface (mirred `egress redirect`).
    Redirect(Ifindex),
    /// A tag is put outside all others, with priority 0.
    VlanPush {
        /// Kind of the new tag.
        tpid: VlanTpid,
        /// Identifier of the new tag.
        vid: VlanId,
    },
    /// The outer tag is taken off; an untagged frame stays as it is.
    VlanPop,
    /// The outer tag is replaced, its priority kept; an untagged frame stays as it is.
    VlanModify {
        /// Kind of the tag afterwards.
        tpid: VlanTpid,
        /// Identifier of the tag afterwards.
        vid: VlanId,
    },
}

impl Action {
    /// Whether the rule's part in the frame's life ends with this action.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Action::Drop | Action::Pass | Action::Trap | Action::Goto(_) | Action::Redirect(_)
        )
    }
}

impl fmt::Display for Action {
    /// As `tc` reads it after `action`; interfaces by index (`if7`), which `tc` understands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Drop => f.write_str("drop"),
            Action::Pass => f.write_str("pass"),
            Action::Trap => f.write_str("trap"),
            Action::Goto(chain) => write!(f, "goto chain {chain}"),
            Action::Mirror(to) => write!(f, "mirred egress mirror dev if{to} pipe"),
            Action::Redirect(to) => write!(f, "mirred egress redirect dev if{to}"),
            Action::VlanPush { tpid, vid } => {
                write!(f, "vlan push id {vid} protocol {tpid} priority 0 pipe")
            }
            Action::VlanPop => f.write_str("vlan pop pipe"),
            Action::VlanModify { tpid, vid } => {
                write!(f, "vlan modify id {vid} protocol {tpid} pipe")
            }
        }
    }
}

/// Where a rule may be executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offload {
    /// In software, and in hardware where the driver takes it.
    #[default]
    Auto,
    /// In software only (`TCA_CLS_FLAGS_SKIP_HW`).
    SkipHw,
    /// In hardware only (`TCA_CLS_FLAGS_SKIP_SW`): refused where the driver does not take it.
    SkipSw,
}

/// What makes a rule this rule: two rules with one identity cannot stand side by side, and a
/// change of anything else is a replacement.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId {
    hook: Hook,
    chain: ChainId,
    prio: Prio,
    matching: Match,
}

impl RuleId {
    /// The hook whose frames the rule sees.
    pub const fn hook(&self) -> Hook {
        self.hook
    }

    /// The chain that the rule stands in.
    pub const fn chain(&self) -> ChainId {
        self.chain
    }

    /// The rule's priority in its chain.
    pub const fn prio(&self) -> Prio {
        self.prio
    }

    /// Protocol, keys and masks.
    pub const fn matching(&self) -> &Match {
        &self.matching
    }

    /// An identity of which only the place is known.
    pub(crate) const fn at(location: RuleLocation) -> RuleId {
        let RuleLocation { hook, chain, prio, protocol } = location;
        RuleId { hook, chain, prio, matching: Match::from_parts(protocol, Fields::none()) }
    }

    /// An identity that sorts before every other of this hook.
    pub(crate) fn first_of(hook: Hook) -> RuleId {
        RuleId::first_of_slot(Slot { hook, chain: ChainId::ZERO, prio: Prio::FIRST })
    }

    /// An identity that sorts before every other of this slot.
    pub(crate) fn first_of_slot(slot: Slot) -> RuleId {
        let matching = Match::from_parts(0, Fields::none());
        RuleId { hook: slot.hook, chain: slot.chain, prio: slot.prio, matching }
    }

    /// Hook, chain and prio: what rules with one protocol share.
    pub(crate) const fn slot(&self) -> Slot {
        Slot { hook: self.hook, chain: self.chain, prio: self.prio }
    }
}

impl fmt::Display for RuleId {
    /// As `tc` reads it after `tc filter add dev X`, up to and including the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} protocol ", self.hook.direction)?;
        fmt_ethertype(self.matching.protocol(), f)?;
        write!(f, " pref {} chain {} flower", self.prio, self.chain)?;
        if !self.matching.fields().bytes().is_empty() {
            write!(f, " {}", self.matching)?;
        }
        Ok(())
    }
}

impl fmt::Debug for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev if{} {self}", self.hook.ifindex)
    }
}

/// One classifier instance of the kernel (`struct tcf_proto`): the rules of a hook that share
/// chain and prio, and so protocol and handle space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot {
    pub(crate) hook: Hook,
    pub(crate) chain: ChainId,
    pub(crate) prio: Prio,
}

/// Why something cannot be a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The list is empty.
    #[error("a rule needs at least one action")]
    NoAction,
    /// The list is longer than [`ACTIONS_MAX`].
    #[error("a rule can hold {ACTIONS_MAX} actions, not {0}")]
    TooManyActions(usize),
    /// The last action leaves the frame's fate open.
    #[error("the last action must be drop, pass, trap, goto or redirect, not `{0}`")]
    NotTerminated(Action),
    /// An action would never run.
    #[error("nothing can follow `{action}`, which stands at position {position}")]
    AfterTerminal {
        /// The action that ends the rule too early.
        action: Action,
        /// Its place in the list, from 0.
        position: usize,
    },
    /// The identifier 4095 is reserved (IEEE 802.1Q): `tcf_vlan_init` in net/sched/act_vlan.c
    /// refuses to write it, although flower matches it.
    #[error("`{0}` would write the reserved VLAN identifier 4095")]
    ReservedVlanId(Action),
}

/// One flower rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    id: RuleId,
    actions: Arc<[Action]>,
    offload: Offload,
}

impl Rule {
    /// The rule with these actions, executed wherever it can be ([`Offload::Auto`]).
    ///
    /// # Errors
    /// Where the list is not 1 to 32 actions of which exactly the last is terminal, or one writes
    /// the VLAN identifier 4095.
    pub fn new(
        hook: Hook,
        chain: ChainId,
        prio: Prio,
        matching: Match,
        actions: impl Into<Arc<[Action]>>,
    ) -> Result<Rule, RuleError> {
        let actions: Arc<[Action]> = actions.into();
        let Some((last, before)) = actions.split_last() else {
            return Err(RuleError::NoAction);
        };
        if actions.len() > ACTIONS_MAX {
            return Err(RuleError::TooManyActions(actions.len()));
        }
        if let Some(position) = before.iter().position(|action| action.is_terminal()) {
            return Err(RuleError::AfterTerminal { action: before[position], position });
        }
        if !last.is_terminal() {
            return Err(RuleError::NotTerminated(*last));
        }
        let reserved = |action: &&Action| match action {
            Action::VlanPush { vid, .. } | Action::VlanModify { vid, .. } => vid.get() == 4095,
            _ => false,
        };
        if let Some(action) = before.iter().find(reserved) {
            return Err(RuleError::ReservedVlanId(*action));
        }
        Ok(Rule {
            id: RuleId { hook, chain, prio, matching },
            actions,
            offload: Offload::default(),
        })
    }

    /// The same rule, executed there.
    #[must_use]
    pub fn with_offload(self, offload: Offload) -> Rule {
        Rule { offload, ..self }
    }

    /// What makes it this rule.
    pub const fn id(&self) -> &RuleId {
        &self.id
    }

    /// What happens to frames that it matches, in order.
    pub fn actions(&self) -> &[Action] {
        &self.actions
    }

    /// Where it may be executed.
    pub const fn offload(&self) -> Offload {
        self.offload
    }

    /// The hook whose frames the rule sees.
    pub const fn hook(&self) -> Hook {
        self.id.hook
    }

    /// The chain that the rule stands in.
    pub const fn chain(&self) -> ChainId {
        self.id.chain
    }

    /// The rule's priority in its chain.
    pub const fn prio(&self) -> Prio {
        self.id.prio
    }

    /// The chain that the rule leads to, where it does.
    pub fn goto_target(&self) -> Option<ChainId> {
        match self.actions.last() {
            Some(Action::Goto(chain)) => Some(*chain),
            _ => None,
        }
    }

    /// The cookie under which `owner` installs it.
    pub fn cookie(&self, owner: Owner) -> Cookie {
        Cookie::new(owner, self.digest())
    }

    /// Digest of protocol, keys, masks, actions with interface indexes, and offload: the same on
    /// every machine and in every build of format version [`Cookie::VERSION`].
    fn digest(&self) -> u64 {
        let mut digest = Fnv1a::new();
        let matching = &self.id.matching;
        digest.write(&matching.protocol().to_be_bytes());
        digest.write(&(matching.fields().bytes().len() as u16).to_be_bytes());
        for field in matching.fields().iter() {
            digest.write(&field.id.spec().value.to_be_bytes());
            digest.write(field.value);
            digest.write(field.mask);
        }
        for action in self.actions.iter() {
            let (kind, tpid, number) = match *action {
                Action::Drop => (1u8, 0, 0),
                Action::Pass => (2, 0, 0),
                Action::Trap => (3, 0, 0),
                Action::Goto(chain) => (4, 0, chain.get()),
                Action::Mirror(to) => (5, 0, to.get()),
                Action::Redirect(to) => (6, 0, to.get()),
                Action::VlanPush { tpid, vid } => (7, tpid.ethertype(), vid.get().into()),
                Action::VlanPop => (8, 0, 0),
                Action::VlanModify { tpid, vid } => (9, tpid.ethertype(), vid.get().into()),
            };
            digest.write(&[kind]);
            digest.write(&tpid.to_be_bytes());
            digest.write(&number.to_be_bytes());
        }
        digest.write(&[match self.offload {
            Offload::Auto => 0,
            Offload::SkipHw => 1,
            Offload::SkipSw => 2,
        }]);
        digest.0
    }
}

impl fmt::Display for Rule {
    /// As `tc` reads it after `tc filter add dev X`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        f.write_str(match self.offload {
            Offload::Auto => "",
            Offload::SkipHw => " skip_hw",
            Offload::SkipSw => " skip_sw",
        })?;
        for action in self.actions.iter() {
            write!(f, " action {action}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev if{} {self}", self.id.hook.ifindex)
    }
}

/// FNV-1a with 64 bits, as published by Fowler, Noll and Vo (draft-eastlake-fnv).
struct Fnv1a(u64);

impl Fnv1a {
    const fn new() -> Fnv1a {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Who installed a rule: four bytes that several daemons on one host choose differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub [u8; 4]);

/// The 16 bytes (`TC_COOKIE_MAX_SIZE`) on a rule's first action: owner, format version, three
/// reserved zero bytes, and the rule's digest in network order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie([u8; 16]);

impl Cookie {
    /// Format version: changes whenever one rule would get another digest.
    pub const VERSION: u8 = 1;

    const fn new(owner: Owner, digest: u64) -> Cookie {
        let [a, b, c, d] = owner.0;
        let [e, f, g, h, i, j, k, l] = digest.to_be_bytes();
        Cookie([a, b, c, d, Cookie::VERSION, 0, 0, 0, e, f, g, h, i, j, k, l])
    }

    /// Any 16 bytes: those of a stranger are a cookie too.
    pub const fn from_bytes(bytes: [u8; 16]) -> Cookie {
        Cookie(bytes)
    }

    /// As they stand in `TCA_ACT_COOKIE`.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The owner's bytes.
    pub const fn owner(&self) -> Owner {
        let [a, b, c, d, ..] = self.0;
        Owner([a, b, c, d])
    }

    /// The digest, where the version is one that this build knows.
    pub const fn digest(&self) -> Option<u64> {
        let [_, _, _, _, version, x, y, z, e, f, g, h, i, j, k, l] = self.0;
        if version == Cookie::VERSION && x == 0 && y == 0 && z == 0 {
            Some(u64::from_be_bytes([e, f, g, h, i, j, k, l]))
        } else {
            None
        }
    }
}

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{chain, hook, ifindex, mac, prio, vid};
    use crate::ident::EtherType;
    use crate::key::{ArpMatch, Ipv4Match, Ipv6Match, Ports};

    fn rule(matching: Match, actions: &[Action]) -> Result<Rule, RuleError> {
        Rule::new(hook(), chain(3), prio(20), matching, actions)
    }

    #[test]
    fn a_rule_has_1_to_32_actions_of_which_exactly_the_last_is_terminal() {
        let mirror = Action::Mirror(ifindex(2));
        assert_eq!(rule(Match::any(), &[]), Err(RuleError::NoAction));
        assert_eq!(rule(Match::any(), &[mirror]), Err(RuleError::NotTerminated(mirror)));
        assert_eq!(
            rule(Match::any(), &[mirror, Action::Pass, Action::Drop]),
            Err(RuleError::AfterTerminal { action: Action::Pass, position: 1 })
        );
        let mut list = vec![mirror; 31];
        list.push(Action::Drop);
        assert!(rule(Match::any(), &list).is_ok());
        list.insert(0, mirror);
        assert_eq!(rule(Match::any(), &list), Err(RuleError::TooManyActions(33)));
    }

    #[test]
    fn the_reserved_vlan_identifier_is_matched_but_not_written() {
        let reserved = vid(4095);
        assert!(rule(Match::vlan(VlanTpid::Dot1Q, reserved), &[Action::Drop]).is_ok());
        let push = Action::VlanPush { tpid: VlanTpid::Dot1Q, vid: reserved };
        let modify = Action::VlanModify { tpid: VlanTpid::Dot1Q, vid: reserved };
        for action in [push, modify] {
            assert_eq!(
                rule(Match::any(), &[action, Action::Pass]),
                Err(RuleError::ReservedVlanId(action))
            );
        }
    }

    #[test]
    fn a_rule_prints_as_tc_reads_it() {
        let q = VlanTpid::Dot1Q;
        let cases: [(Match, &[Action], &str); 7] = [
            (
                Match::vlan(q, vid(100)).src(mac(1)),
                &[Action::Goto(chain(5))],
                "ingress protocol 802.1Q pref 20 chain 3 flower \
                 src_mac 02:00:00:00:00:01 vlan_id 100 action goto chain 5",
            ),
            (
                Match::any().dst_masked(mac(0), crate::Mac([1, 0, 0, 0, 0, 0])),
                &[Action::Mirror(ifindex(4)), Action::Redirect(ifindex(5))],
                "ingress protocol all pref 20 chain 3 flower \
                 dst_mac 00:00:00:00:00:00/01:00:00:00:00:00 \
                 action mirred egress mirror dev if4 pipe action mirred egress redirect dev if5",
            ),
            (
                Match::any(),
                &[Action::VlanPush { tpid: VlanTpid::Dot1Ad, vid: vid(7) }, Action::Trap],
                "ingress protocol all pref 20 chain 3 flower \
                 action vlan push id 7 protocol 802.1ad priority 0 pipe action trap",
            ),
            (
                Match::ethertype(Ipv4Match::any().udp(Ports::any().src(67))),
                &[Action::Drop],
                "ingress protocol ip pref 20 chain 3 flower ip_proto udp src_port 67 action drop",
            ),
            (
                Match::vlan_with(q, vid(9), Ipv6Match::any().icmp_type(134)),
                &[Action::VlanPop, Action::Pass],
                "ingress protocol 802.1Q pref 20 chain 3 flower \
                 vlan_id 9 vlan_ethtype ipv6 ip_proto icmpv6 type 134 \
                 action vlan pop pipe action pass",
            ),
            (
                Match::ethertype(ArpMatch::any().op(2).sip([192, 0, 2, 1].into())),
                &[Action::VlanModify { tpid: q, vid: vid(8) }, Action::Drop],
                "ingress protocol arp pref 20 chain 3 flower arp_op 2 arp_sip 192.0.2.1 \
                 action vlan modify id 8 protocol 802.1Q pipe action drop",
            ),
            (
                Match::ethertype(EtherType::RARP),
                &[Action::Drop],
                "ingress protocol 0x8035 pref 20 chain 3 flower action drop",
            ),
        ];
        for (matching, actions, expected) in cases {
            assert_eq!(rule(matching, actions).unwrap().to_string(), expected);
        }
        let skip = rule(Match::any(), &[Action::Drop]).unwrap().with_offload(Offload::SkipHw);
        assert_eq!(
            skip.to_string(),
            "ingress protocol all pref 20 chain 3 flower skip_hw action drop"
        );
    }

    #[test]
    fn the_order_in_which_keys_are_named_makes_no_difference() {
        let one = Match::any().src(mac(1)).dst(mac(2));
        assert_eq!(one, Match::any().dst(mac(2)).src(mac(1)));
        assert_eq!(one, Match::any().src(mac(9)).dst(mac(2)).src(mac(1)));
        let v4 = Ipv4Match::any();
        assert_eq!(
            Match::ethertype(v4.clone().tcp(Ports::any().dst(22)).udp(Ports::any().dst(53))),
            Match::ethertype(v4.udp(Ports::any().dst(53)))
        );
    }

    #[test]
    fn bits_outside_the_mask_make_no_difference_and_an_empty_mask_is_no_key() {
        let upper = crate::Mac([0xff, 0xff, 0xff, 0, 0, 0]);
        assert_eq!(Match::any().src_masked(mac(1), upper), Match::any().src_masked(mac(2), upper));
        assert_eq!(Match::any().src_masked(mac(1), crate::Mac([0; 6])), Match::any());
    }

    #[test]
    fn the_digest_covers_keys_actions_destinations_and_offload_but_not_the_place() {
        let owner = Owner(*b"test");
        let base = rule(Match::any().src(mac(1)), &[Action::Redirect(ifindex(2))]).unwrap();
        let elsewhere = Rule::new(
            Hook::egress(ifindex(9)),
            chain(1),
            prio(1),
            Match::any().src(mac(1)),
            [Action::Redirect(ifindex(2))],
        )
        .unwrap();
        assert_eq!(base.cookie(owner), elsewhere.cookie(owner));
        let others = [
            rule(Match::any().src(mac(2)), &[Action::Redirect(ifindex(2))]).unwrap(),
            rule(Match::any().dst(mac(1)), &[Action::Redirect(ifindex(2))]).unwrap(),
            rule(Match::any().src(mac(1)), &[Action::Redirect(ifindex(3))]).unwrap(),
            rule(Match::any().src(mac(1)), &[Action::VlanPop, Action::Redirect(ifindex(2))])
                .unwrap(),
            base.clone().with_offload(Offload::SkipSw),
        ];
        for other in others {
            assert_ne!(base.cookie(owner), other.cookie(owner), "{other:?}");
        }
    }

    #[test]
    fn a_cookie_of_another_version_has_an_owner_but_no_digest() {
        let cookie = rule(Match::any(), &[Action::Drop]).unwrap().cookie(Owner(*b"mine"));
        assert!(cookie.digest().is_some());
        let mut bytes = *cookie.bytes();
        bytes[4] = 2;
        let later = Cookie::from_bytes(bytes);
        assert_eq!(later.owner(), Owner(*b"mine"));
        assert_eq!(later.digest(), None);
    }
}
