//! One flower rule as a value, its identity, and the cookie by which its owner knows it again.
//!
//! In come a hook, a place in its chains, a match and actions; out goes a [`Rule`] that the kernel
//! could hold. What cannot be a rule (no actions, one that is never reached, an end left open) is
//! refused here and can be assumed away everywhere else.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use crate::action::{Action, fmt_hex};
use crate::ident::{ChainId, Hook, Prio, fmt_ethertype};
use crate::kernel::RuleLocation;
use crate::key::{Fields, Match};

/// Most actions that one rule can hold (`TCA_ACT_MAX_PRIO`, include/uapi/linux/pkt_cls.h).
pub const ACTIONS_MAX: usize = 32;

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
    /// As `tc` reads it after `tc filter add dev X` (after `tc filter add`, where the hook is a
    /// block), up to and including the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hook {
            Hook::Ingress(_) => f.write_str("ingress"),
            Hook::Egress(_) => f.write_str("egress"),
            Hook::Block(block) => write!(f, "block {block}"),
        }?;
        f.write_str(" protocol ")?;
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
        fmt_dev(self.hook, f)?;
        fmt::Display::fmt(self, f)
    }
}

/// What stands before a printed rule in a whole `tc` command.
fn fmt_dev(hook: Hook, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match hook.ifindex() {
        Some(ifindex) => write!(f, "dev if{ifindex} "),
        None => Ok(()),
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

/// What holds a rule.
pub(crate) trait OfRule {
    /// The rule.
    fn rule(&self) -> &Rule;
}

/// What holds a rule, in the order of the rule's identity, which so stands in an index once only.
#[derive(Clone, Debug)]
pub(crate) struct ById<T>(pub(crate) T);

impl<T: OfRule> Borrow<RuleId> for ById<T> {
    fn borrow(&self) -> &RuleId {
        self.0.rule().id()
    }
}

impl<T: OfRule> PartialEq for ById<T> {
    fn eq(&self, other: &ById<T>) -> bool {
        self.0.rule().id() == other.0.rule().id()
    }
}

impl<T: OfRule> Eq for ById<T> {}

impl<T: OfRule> PartialOrd for ById<T> {
    fn partial_cmp(&self, other: &ById<T>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: OfRule> Ord for ById<T> {
    fn cmp(&self, other: &ById<T>) -> Ordering {
        self.0.rule().id().cmp(other.0.rule().id())
    }
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
    #[error("the last action must be drop, pass, trap, goto, redirect or the like, not `{0}`")]
    NotTerminated(Action),
    /// An action would never run.
    #[error("nothing can follow `{action}`, which stands at position {position}")]
    AfterTerminal {
        /// The action that ends the rule too early.
        action: Action,
        /// Its place in the list, from 0.
        position: usize,
    },
    /// An action leads to no later action of the list.
    #[error("`{action}` at position {position} leads to no action behind it")]
    Jump {
        /// The action.
        action: Action,
        /// Its place in the list, from 0.
        position: usize,
    },
    /// A policer that rules share is not theirs: one rule's cookie or counters would take the
    /// place of another's (`tcf_action_init_1`, net/sched/act_api.c). So it does not stand first,
    /// where the owner's cookie is, and nothing is said of it.
    #[error("`{0}` is shared: it can neither stand first nor have a cookie or flags")]
    Shared(Action),
    /// The first action's cookie is the owner's.
    #[error("the first action's cookie is the owner's")]
    FirstCookie,
    /// There is no such action.
    #[error("the rule has no action at position {0}")]
    NoSuchAction(usize),
    /// The identifier 4095 is reserved (IEEE 802.1Q): `tcf_vlan_init` in net/sched/act_vlan.c
    /// refuses to write it, although flower matches it.
    #[error("`{0}` would write the reserved VLAN identifier 4095")]
    ReservedVlanId(Action),
}

/// What can be said of any action besides what it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionExtra {
    /// Bytes that the kernel keeps with the action and shows with it (`TCA_ACT_COOKIE`).
    pub cookie: Option<UserCookie>,
    /// How its hardware counters are read (`TCA_ACT_HW_STATS`); as the driver can where nothing
    /// is said.
    pub hw_stats: Option<HwStats>,
    /// One counter for all processors, which takes less memory and is slower
    /// (`TCA_ACT_FLAGS_NO_PERCPU_STATS`).
    pub no_percpu: bool,
}

/// How hardware counters are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HwStats {
    /// When asked.
    Immediate,
    /// Now and then, so that an answer may be seconds old.
    Delayed,
    /// Not at all.
    Disabled,
}

/// A cookie of 1 to 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserCookie {
    len: u8,
    bytes: [u8; 16],
}

impl UserCookie {
    /// The cookie, or `None` where it has no byte, or more than 16 (`TC_COOKIE_MAX_SIZE`,
    /// include/uapi/linux/pkt_cls.h).
    pub fn new(cookie: &[u8]) -> Option<UserCookie> {
        let mut bytes = [0; 16];
        bytes.get_mut(..cookie.len())?.copy_from_slice(cookie);
        (!cookie.is_empty()).then_some(UserCookie { len: cookie.len() as u8, bytes })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for UserCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_hex(self.bytes(), f)
    }
}

impl ActionExtra {
    /// Nothing.
    pub const NONE: ActionExtra = ActionExtra { cookie: None, hw_stats: None, no_percpu: false };

    fn digest(&self, into: &mut Fnv1a) {
        let cookie = self.cookie.as_ref().map_or(&[][..], UserCookie::bytes);
        let hw_stats = self.hw_stats.map_or(0, |stats| stats as u8 + 1);
        into.write(&[cookie.len() as u8]);
        into.write(cookie);
        into.write(&[hw_stats, u8::from(self.no_percpu)]);
    }
}

impl fmt::Display for ActionExtra {
    /// As `tc` reads it after the action, with a space before.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cookie) = self.cookie {
            write!(f, " cookie {cookie:?}")?;
        }
        f.write_str(match self.hw_stats {
            None => "",
            Some(HwStats::Immediate) => " hw_stats immediate",
            Some(HwStats::Delayed) => " hw_stats delayed",
            Some(HwStats::Disabled) => " hw_stats disabled",
        })?;
        f.write_str(if self.no_percpu { " no_percpu" } else { "" })
    }
}

/// One flower rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    id: RuleId,
    actions: Arc<[Action]>,
    offload: Offload,
    /// One for each action, where there is anything to say of any.
    extras: Option<Arc<Box<[ActionExtra]>>>,
}

/// Whether this can be the list of a rule.
fn check(actions: &[Action]) -> Result<(), RuleError> {
    let Some(first) = actions.first() else {
        return Err(RuleError::NoAction);
    };
    if actions.len() > ACTIONS_MAX {
        return Err(RuleError::TooManyActions(actions.len()));
    }
    // Bit n: the action at place n can be reached.
    let mut reached = 1u64;
    for (position, action) in actions.iter().enumerate() {
        if reached >> position & 1 == 0 {
            let position = position - 1;
            return Err(RuleError::AfterTerminal { action: actions[position].clone(), position });
        }
        for to in action.jumps().map(usize::from) {
            if !(position + 1..actions.len()).contains(&to) {
                return Err(RuleError::Jump { action: action.clone(), position });
            }
            reached |= 1 << to;
        }
        reached |= u64::from(action.continues()) << (position + 1);
    }
    if let Some(last) = actions.last().filter(|last| last.continues()) {
        return Err(RuleError::NotTerminated(last.clone()));
    }
    let reserved = |action: &&Action| action.written_vid().is_some_and(|vid| vid.get() == 4095);
    if let Some(action) = actions.iter().find(reserved) {
        return Err(RuleError::ReservedVlanId(action.clone()));
    }
    match first {
        Action::SharedPolice(_) => Err(RuleError::Shared(first.clone())),
        _ => Ok(()),
    }
}

impl Rule {
    /// The rule with these actions, executed wherever it can be ([`Offload::Auto`]).
    ///
    /// # Errors
    /// Where the list is not 1 to 32 actions, each of which can be reached, and of which the last
    /// and no other ends the rule in every case; where one writes the VLAN identifier 4095; where
    /// the first is a policer that other rules share.
    pub fn new(
        hook: Hook,
        chain: ChainId,
        prio: Prio,
        matching: Match,
        actions: impl Into<Arc<[Action]>>,
    ) -> Result<Rule, RuleError> {
        let mut actions: Arc<[Action]> = actions.into();
        check(&actions)?;
        if actions.iter().any(|action| action.canonical().is_some()) {
            let canonical = |action: &Action| action.canonical().unwrap_or_else(|| action.clone());
            actions = actions.iter().map(canonical).collect();
        }
        Ok(Rule {
            id: RuleId { hook, chain, prio, matching },
            actions,
            offload: Offload::default(),
            extras: None,
        })
    }

    /// The same rule, executed there.
    #[must_use]
    pub fn with_offload(self, offload: Offload) -> Rule {
        Rule { offload, ..self }
    }

    /// The same rule, with this said of the action at that place (from 0), instead of what was
    /// said of it before.
    ///
    /// # Errors
    /// Where there is no such action, where it is a shared policer, and for a cookie on the first.
    pub fn with_extra(self, position: usize, extra: ActionExtra) -> Result<Rule, RuleError> {
        match self.actions.get(position) {
            None => return Err(RuleError::NoSuchAction(position)),
            Some(action @ Action::SharedPolice(_)) if extra != ActionExtra::NONE => {
                return Err(RuleError::Shared(action.clone()));
            }
            Some(_) if position == 0 && extra.cookie.is_some() => {
                return Err(RuleError::FirstCookie);
            }
            Some(_) => {}
        }
        let mut extras: Box<[ActionExtra]> = match self.extras {
            Some(extras) => (*extras).clone(),
            None => vec![ActionExtra::NONE; self.actions.len()].into(),
        };
        if let Some(place) = extras.get_mut(position) {
            *place = extra;
        }
        let any = extras.iter().any(|extra| *extra != ActionExtra::NONE);
        Ok(Rule { extras: any.then(|| Arc::new(extras)), ..self })
    }

    /// The same rule in another chain, leading where `there` says instead.
    pub(crate) fn moved(&self, chain: ChainId, there: impl Fn(ChainId) -> ChainId) -> Rule {
        let actions = if self.goto_targets().all(|to| there(to) == to) {
            Arc::clone(&self.actions)
        } else {
            self.actions.iter().map(|action| action.leading(&there)).collect()
        };
        Rule { id: RuleId { chain, ..self.id.clone() }, actions, ..self.clone() }
    }

    /// What makes it this rule.
    pub const fn id(&self) -> &RuleId {
        &self.id
    }

    /// What happens to frames that it matches, in order.
    pub fn actions(&self) -> &[Action] {
        &self.actions
    }

    /// What else is said of the action at that place.
    pub fn extra(&self, position: usize) -> &ActionExtra {
        let extras = self.extras.as_ref();
        extras.and_then(|extras| extras.get(position)).unwrap_or(&ActionExtra::NONE)
    }

    /// Where it may be executed.
    pub const fn offload(&self) -> Offload {
        self.offload
    }

    /// Whether both are one rule, wherever either may be executed.
    pub fn is_but_for_offload(&self, other: &Rule) -> bool {
        self.id == other.id && self.actions == other.actions && self.extras == other.extras
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

    /// The chain that the rule leads to, where it does; the last where there are several
    /// ([`Rule::goto_targets`]).
    pub fn goto_target(&self) -> Option<ChainId> {
        self.actions.iter().rev().find_map(Action::goto_target)
    }

    /// Every chain that the rule can lead to, in order of its actions.
    pub fn goto_targets(&self) -> impl Iterator<Item = ChainId> {
        self.actions.iter().filter_map(Action::goto_target)
    }

    /// The same rule with its connection helpers asked for by IPv6, where it has any: of a helper
    /// for both families newer kernels do not show by which it was asked for (`nfproto` of `struct
    /// nf_conntrack_helper`).
    pub(crate) fn with_ipv6_helpers(&self) -> Option<Rule> {
        let actions: Arc<[Action]> = self.actions.iter().map(Action::with_ipv6_helper).collect();
        (actions != self.actions).then(|| Rule { actions, ..self.clone() })
    }

    /// Whether the kernel must be told that the action runs in hardware only, although the rule
    /// says so: `tcf_skbedit_init` in net/sched/act_skbedit.c looks at the action's own flag.
    pub(crate) fn is_hardware_only(&self, action: &Action) -> bool {
        self.offload == Offload::SkipSw
            && matches!(action, Action::SkbEdit(edit) if edit.queue.is_some())
    }

    /// The cookie under which `owner` installs it.
    pub fn cookie(&self, owner: Owner) -> Cookie {
        Cookie::new(owner, self.digest())
    }

    /// Digest of protocol, keys, masks, actions with interface indexes, offload, and what else is
    /// said of the actions: the same on every machine and in every build of format version [`Cookie::VERSION`].
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
            action.digest(&mut digest);
        }
        digest.write(&[match self.offload {
            Offload::Auto => 0,
            Offload::SkipHw => 1,
            Offload::SkipSw => 2,
        }]);
        for extra in self.extras.iter().flat_map(|extras| extras.iter()) {
            extra.digest(&mut digest);
        }
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
        for (at, action) in self.actions.iter().enumerate() {
            write!(f, " action {action}{}", self.extra(at))?;
            if self.is_hardware_only(action) {
                f.write_str(" skip_sw")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_dev(self.id.hook, f)?;
        fmt::Display::fmt(self, f)
    }
}

/// FNV-1a with 64 bits, as published by Fowler, Noll and Vo (draft-eastlake-fnv).
pub(crate) struct Fnv1a(u64);

impl Fnv1a {
    const fn new() -> Fnv1a {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
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
    use crate::ident::{EtherType, VlanTpid};
    use crate::key::{ArpMatch, Ipv4Match, Ipv6Match, Ports};

    fn rule(matching: Match, actions: &[Action]) -> Result<Rule, RuleError> {
        Rule::new(hook(), chain(3), prio(20), matching, actions)
    }

    #[test]
    fn a_rule_has_1_to_32_actions_of_which_exactly_the_last_is_terminal() {
        let mirror = Action::Mirror(ifindex(2));
        assert_eq!(rule(Match::any(), &[]), Err(RuleError::NoAction));
        assert_eq!(
            rule(Match::any(), std::slice::from_ref(&mirror)),
            Err(RuleError::NotTerminated(mirror.clone()))
        );
        assert_eq!(
            rule(Match::any(), &[mirror.clone(), Action::Pass, Action::Drop]),
            Err(RuleError::AfterTerminal { action: Action::Pass, position: 1 })
        );
        let mut list = vec![mirror.clone(); 31];
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
                rule(Match::any(), &[action.clone(), Action::Pass]),
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

    /// Computed from the format as it was before there were other actions: four bytes of protocol
    /// and length of keys, seven for each action, one for the offload.
    #[test]
    fn the_digest_of_rules_with_only_the_first_nine_actions_is_what_it_always_was() {
        let before = [
            Action::VlanPush { tpid: VlanTpid::Dot1Ad, vid: vid(7) },
            Action::VlanPop,
            Action::VlanModify { tpid: VlanTpid::Dot1Q, vid: vid(8) },
            Action::Mirror(ifindex(4)),
        ];
        for (end, digest) in [
            (Action::Drop, 0x8d05_19ef_0058_1104),
            (Action::Pass, 0xe9f5_6f0a_2125_ef67),
            (Action::Trap, 0xcafa_a801_1636_a546),
            (Action::Goto(chain(5)), 0x301e_f6d3_df92_dc1c),
            (Action::Redirect(ifindex(5)), 0x6e14_84e5_f571_705e),
        ] {
            let list = [&before[..], std::slice::from_ref(&end)].concat();
            let cookie = rule(Match::any(), &list).unwrap().cookie(Owner(*b"mine"));
            assert_eq!(cookie.digest(), Some(digest), "{end}");
        }
    }

    #[test]
    fn a_jump_leads_to_a_later_action_and_what_nothing_leads_to_is_refused() {
        let (pipe, drop, pass) = (Action::Pipe, Action::Drop, Action::Pass);
        let jump = Action::Jump;
        let list = |list: &[&Action]| -> Vec<Action> { list.iter().copied().cloned().collect() };
        let police = |exceed, conform| {
            let police = crate::Police::packets(9, 9).unwrap().exceed(exceed);
            Action::from(police.conform(conform).unwrap())
        };
        use crate::Control::{Drop, Jump, Pass, Pipe};
        let or = police(Pipe, Jump(2));
        assert!(rule(Match::any(), &list(&[&or, &drop, &pass])).is_ok());
        assert!(rule(Match::any(), &list(&[&police(Drop, Pass)])).is_ok());
        assert_eq!(
            rule(Match::any(), &list(&[&police(Drop, Pass), &drop])),
            Err(RuleError::AfterTerminal { action: police(Drop, Pass), position: 0 })
        );
        assert_eq!(
            rule(Match::any(), &list(&[&police(Drop, Pipe)])),
            Err(RuleError::NotTerminated(police(Drop, Pipe)))
        );
        for to in [0, 1, 3, 32, 255] {
            assert_eq!(
                rule(Match::any(), &list(&[&pipe, &jump(to), &drop])),
                Err(RuleError::Jump { action: jump(to), position: 1 })
            );
        }
        assert_eq!(
            rule(Match::any(), &list(&[&jump(2), &pipe, &drop])),
            Err(RuleError::AfterTerminal { action: jump(2), position: 0 })
        );
        assert!(rule(Match::any(), &list(&[&jump(1), &drop])).is_ok());
    }

    #[test]
    fn a_pushed_tag_of_priority_0_has_one_spelling() {
        let (tpid, vid) = (VlanTpid::Dot1Q, vid(5));
        let prio = crate::VlanPrio::new(0).unwrap();
        let spelled = rule(Match::any(), &[Action::VlanPushPrio { tpid, vid, prio }, Action::Pass]);
        assert_eq!(spelled, rule(Match::any(), &[Action::VlanPush { tpid, vid }, Action::Pass]));
    }

    #[test]
    fn nothing_is_said_of_a_shared_policer_and_it_does_not_stand_first() {
        let index = crate::PoliceIndex::new(crate::PoliceIndex::FIRST).unwrap();
        let shared = Action::SharedPolice(index);
        let refused = Err(RuleError::Shared(shared.clone()));
        assert_eq!(rule(Match::any(), &[shared.clone(), Action::Drop]), refused);
        let second = rule(Match::any(), &[Action::Pipe, shared, Action::Drop]).unwrap();
        let loud = ActionExtra { no_percpu: true, ..ActionExtra::NONE };
        assert_eq!(second.clone().with_extra(1, loud), refused);
        assert_eq!(second.clone().with_extra(1, ActionExtra::NONE), Ok(second));
        assert_eq!(crate::PoliceIndex::new(crate::PoliceIndex::FIRST - 1), None);
    }

    #[test]
    fn what_is_said_of_an_action_is_part_of_the_rule() {
        let owner = Owner(*b"test");
        let base = rule(Match::any(), &[Action::VlanPop, Action::Drop]).unwrap();
        let cookie = UserCookie::new(&[0xab, 0xcd]);
        let extra = ActionExtra { cookie, hw_stats: Some(HwStats::Delayed), no_percpu: true };
        let said = base.clone().with_extra(1, extra).unwrap();
        assert_eq!(said.extra(1), &extra);
        assert_ne!(said, base);
        assert_ne!(said.cookie(owner), base.cookie(owner));
        assert!(said.to_string().ends_with("drop cookie abcd hw_stats delayed no_percpu"));
        assert_eq!(said.clone().with_extra(1, ActionExtra::NONE), Ok(base.clone()));
        assert_eq!(said.clone().with_extra(0, extra), Err(RuleError::FirstCookie));
        assert_eq!(said.with_extra(2, extra), Err(RuleError::NoSuchAction(2)));
        assert_eq!((UserCookie::new(&[]), UserCookie::new(&[0; 17])), (None, None));
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
