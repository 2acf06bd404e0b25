//! Rules as netlink bytes, and back.
//!
//! In go rules and buffers that the caller keeps and reuses, out come complete `RTM_*TFILTER` and
//! `RTM_*QDISC` messages, without a heap allocation per rule; in come bytes from a kernel, out go
//! typed replies. Decoding never panics and passes over attributes that it does not know. Nothing
//! is sent here.
//!
//! Sources: `struct nlmsghdr`, `nlattr` and `nlmsgerr` in include/uapi/linux/netlink.h; `struct
//! tcmsg` and `TCA_*` in rtnetlink.h; `TCA_FLOWER_*` in pkt_cls.h. Keys, actions, what is read,
//! counters and attribute names have a room each.

mod action;
mod any;
mod chain;
mod change;
mod key;
mod names;
mod read;
mod stats;

use action::TCA_ACT_COOKIE;
#[cfg(test)]
pub(crate) use names::Place;
pub(crate) use names::attribute_path;
#[cfg(test)]
pub(crate) use read::options_of;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use read::rule_in;
pub(crate) use read::{Detail, Filter, Message, Messages, Reply, request};
use read::{attrs, find, u16_at, u32_at};

use crate::diff::Op;
use crate::ident::{ChainId, Handle, Hook, Ifindex, Prio};
use crate::kernel::RuleLocation;
use crate::key::Match;
use crate::rule::{Offload, Owner, Rule, RuleId};

const NLMSGHDR: usize = 16;
const TCMSG: usize = 20;
const NLATTR: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const RTM_NEWCHAIN: u16 = 100;
const RTM_DELCHAIN: u16 = 101;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_ECHO: u16 = 0x8;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_DUMP_FLAGS: u16 = 15;
const TCA_EXT_WARN_MSG: u16 = 16;

const TCA_FLOWER_ACT: u16 = 3;
const TCA_FLOWER_FLAGS: u16 = 22;
const TCA_FLOWER_IN_HW_COUNT: u16 = 86;

const TCA_DUMP_FLAGS_TERSE: u32 = 1;

const TCA_CLS_FLAGS_SKIP_HW: u32 = 1;
const TCA_CLS_FLAGS_SKIP_SW: u32 = 1 << 1;
const TCA_CLS_FLAGS_IN_HW: u32 = 1 << 2;
const TCA_CLS_FLAGS_VERBOSE: u32 = 1 << 4;

/// `TC_H_CLSACT`, which is `TC_H_INGRESS` too.
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
/// In the place of an interface where a block is meant.
const TCM_IFINDEX_MAGIC_BLOCK: u32 = u32::MAX;

const FLOWER: &[u8] = b"flower";

/// What is asked of the kernel besides the change itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// An answer to this very message.
    pub(crate) ack: bool,
    /// The rule as it is afterwards, and why the driver did not take it.
    pub(crate) told: bool,
}

/// Appends netlink messages to a buffer.
pub(crate) struct Writer<'b> {
    buf: &'b mut Vec<u8>,
    message: usize,
}

impl<'b> Writer<'b> {
    pub(crate) const fn new(buf: &'b mut Vec<u8>) -> Writer<'b> {
        Writer { buf, message: 0 }
    }

    fn begin(&mut self, kind: u16, flags: u16, seq: u32) {
        self.message = self.buf.len();
        self.put(&0u32.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(&flags.to_ne_bytes());
        self.put(&seq.to_ne_bytes());
        self.put(&0u32.to_ne_bytes());
    }

    fn end(&mut self) {
        let len = (self.buf.len() - self.message) as u32;
        self.buf[self.message..self.message + 4].copy_from_slice(&len.to_ne_bytes());
    }

    fn tcmsg(&mut self, ifindex: u32, handle: u32, parent: u32, info: u32) {
        self.put(&[0; 4]);
        self.put(&ifindex.to_ne_bytes());
        self.put(&handle.to_ne_bytes());
        self.put(&parent.to_ne_bytes());
        self.put(&info.to_ne_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    fn attr(&mut self, kind: u16, payload: &[u8]) {
        self.put(&((NLATTR + payload.len()) as u16).to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(payload);
        self.put(&[0; 3][..payload.len().wrapping_neg() & 3]);
    }

    /// A string attribute: its bytes and a zero.
    fn attr_str(&mut self, kind: u16, text: &[u8]) {
        self.put(&((NLATTR + text.len() + 1) as u16).to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(text);
        self.put(&[0; 4][..1 + ((text.len() + 1).wrapping_neg() & 3)]);
    }

    fn nest(&mut self, kind: u16) -> usize {
        let start = self.buf.len();
        self.put(&0u16.to_ne_bytes());
        self.put(&(kind | NLA_F_NESTED).to_ne_bytes());
        start
    }

    fn end_nest(&mut self, start: usize) {
        let len = (self.buf.len() - start) as u16;
        self.buf[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// The message that carries out one change.
    pub(crate) fn op(&mut self, op: &Op, owner: Owner, seq: u32, ask: Ask) {
        let ack = if ask.ack { NLM_F_ACK } else { 0 };
        let echo = if ask.told { NLM_F_ECHO } else { 0 };
        let create = match op {
            Op::Add { .. } => NLM_F_CREATE | NLM_F_EXCL | echo,
            Op::Replace { .. } => NLM_F_CREATE | echo,
            Op::Delete { .. } => 0,
        };
        let kind = match op {
            Op::Add { .. } | Op::Replace { .. } => RTM_NEWTFILTER,
            Op::Delete { .. } => RTM_DELTFILTER,
        };
        self.begin(kind, NLM_F_REQUEST | ack | create, seq);
        let id = op.id();
        self.location(id, op.handle());
        match op {
            Op::Add { rule, .. } | Op::Replace { rule, .. } => {
                self.flower(rule, owner, if ask.told { TCA_CLS_FLAGS_VERBOSE } else { 0 });
            }
            Op::Delete { .. } => {}
        }
        self.end();
    }

    /// Asks for an answer to a message that is already written.
    pub(crate) fn ask_for_ack(message: &mut [u8]) {
        if let Some(flags) = message.get_mut(6..8) {
            let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&with_ack.to_ne_bytes());
        }
    }

    /// `tcmsg` with prio and protocol, kind and chain: what the kernel needs to find the rule
    /// without the big lock.
    fn location(&mut self, id: &RuleId, handle: Handle) {
        let hook = id.hook();
        let protocol = id.matching().protocol().to_be_bytes();
        let info = u32::from(id.prio().get()) << 16 | u32::from(u16::from_ne_bytes(protocol));
        let (ifindex, parent) = place(hook);
        self.tcmsg(ifindex, handle.0, parent, info);
        self.attr_str(TCA_KIND, FLOWER);
        self.attr(TCA_CHAIN, &id.chain().get().to_ne_bytes());
    }

    fn flower(&mut self, rule: &Rule, owner: Owner, flags: u32) {
        let options = self.nest(TCA_OPTIONS);
        let matching = rule.id().matching();
        self.keys(matching);
        let offload = match rule.offload() {
            Offload::Auto => 0,
            Offload::SkipHw => TCA_CLS_FLAGS_SKIP_HW,
            Offload::SkipSw => TCA_CLS_FLAGS_SKIP_SW,
        };
        if flags | offload != 0 {
            self.attr(TCA_FLOWER_FLAGS, &(flags | offload).to_ne_bytes());
        }
        let actions = self.nest(TCA_FLOWER_ACT);
        for (at, action) in rule.actions().iter().enumerate() {
            let nest = self.nest(at as u16 + 1);
            self.action(action);
            if at == 0 {
                self.attr(TCA_ACT_COOKIE, rule.cookie(owner).bytes());
            }
            self.extra(rule.extra(at), rule.is_hardware_only(action));
            self.end_nest(nest);
        }
        self.end_nest(actions);
        self.end_nest(options);
    }

    /// The request for every filter of a hook.
    pub(crate) fn dump(&mut self, hook: Hook, detail: Detail, seq: u32) {
        self.begin(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, seq);
        let (ifindex, parent) = place(hook);
        self.tcmsg(ifindex, 0, parent, 0);
        if detail == Detail::Terse {
            // struct nla_bitfield32: value and selector.
            let flag = TCA_DUMP_FLAGS_TERSE.to_ne_bytes();
            self.attr(TCA_DUMP_FLAGS, [flag, flag].as_flattened());
        }
        self.end();
    }

    /// The request for a clsact qdisc, refused where an ingress or clsact qdisc exists.
    pub(crate) fn add_clsact(&mut self, ifindex: Ifindex, seq: u32) {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.begin(RTM_NEWQDISC, flags, seq);
        self.tcmsg(ifindex.get(), CLSACT_HANDLE, TC_H_CLSACT, 0);
        self.attr_str(TCA_KIND, b"clsact");
        self.end();
    }

    /// The question whether there is an ingress or clsact qdisc.
    pub(crate) fn get_clsact(&mut self, ifindex: Ifindex, seq: u32) {
        // Older kernels answer by a notification, of which the asker has a copy only by ECHO.
        self.begin(RTM_GETQDISC, NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO, seq);
        self.tcmsg(ifindex.get(), 0, TC_H_CLSACT, 0);
        self.end();
    }
}

/// `tcm_ifindex` and `tcm_parent` (for a block `tcm_block_index`) of what stands at a hook.
const fn place(hook: Hook) -> (u32, u32) {
    match hook {
        Hook::Ingress(ifindex) => (ifindex.get(), CLSACT_INGRESS),
        Hook::Egress(ifindex) => (ifindex.get(), CLSACT_EGRESS),
        Hook::Block(block) => (TCM_IFINDEX_MAGIC_BLOCK, block.get()),
    }
}

/// Messages as a kernel sends them.
#[cfg(test)]
pub(crate) mod test_reply {
    use super::read::{
        NLMSGERR_ATTR_MISS_NEST, NLMSGERR_ATTR_MISS_TYPE, NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS,
    };
    use super::*;

    /// The acknowledgement of a request, capped.
    pub(crate) fn ack(seq: u32, errno: i32, message: Option<&str>) -> Vec<u8> {
        let mut tlvs = Vec::new();
        if let Some(message) = message {
            Writer::new(&mut tlvs).attr_str(NLMSGERR_ATTR_MSG, message.as_bytes());
        }
        let flags = NLM_F_CAPPED | if tlvs.is_empty() { 0 } else { NLM_F_ACK_TLVS };
        nlmsgerr(seq, errno, flags, &tlvs)
    }

    /// The acknowledgement of a request that was 40 bytes long, with this behind its header.
    pub(crate) fn nlmsgerr(seq: u32, errno: i32, flags: u16, behind: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.begin(NLMSG_ERROR, flags, seq);
        writer.put(&(-errno).to_ne_bytes());
        writer.put(&40u32.to_ne_bytes());
        writer.put(&[0; 12]);
        writer.put(behind);
        writer.end();
        bytes
    }

    /// A refusal that points at a place in the request.
    pub(crate) fn objection(seq: u32, errno: i32, place: Place) -> Vec<u8> {
        let mut tlvs = Vec::new();
        let mut writer = Writer::new(&mut tlvs);
        match place {
            Place::At(offset) => writer.attr(NLMSGERR_ATTR_OFFS, &offset.to_ne_bytes()),
            Place::Missing { kind, nest } => {
                writer.attr(NLMSGERR_ATTR_MISS_TYPE, &kind.to_ne_bytes());
                if let Some(nest) = nest {
                    writer.attr(NLMSGERR_ATTR_MISS_NEST, &nest.to_ne_bytes());
                }
            }
        }
        nlmsgerr(seq, errno, NLM_F_CAPPED | NLM_F_ACK_TLVS, &tlvs)
    }

    /// The echo of an addition.
    pub(crate) fn echo(seq: u32, rule: &Rule, in_hw: bool) -> Vec<u8> {
        const TCA_CLS_FLAGS_NOT_IN_HW: u32 = 1 << 3;
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.begin(RTM_NEWTFILTER, 0, seq);
        writer.location(rule.id(), Handle(1));
        let flags = if in_hw { TCA_CLS_FLAGS_IN_HW } else { TCA_CLS_FLAGS_NOT_IN_HW };
        writer.flower(rule, Owner(*b"test"), flags);
        writer.end();
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::action::read_action;
    use super::key::{Hidden, TCA_FLOWER_MAX};
    use super::read::{read_filter, read_flower};
    use super::test_reply::{ack, nlmsgerr};
    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{chain, hook, ifindex, mac, prio, rules, vid};
    use crate::ident::{ETH_P_ALL, VlanTpid};
    use crate::kernel::{Foreign, HwState, OwnRule, TerseRule};
    use crate::stats::Stats;

    const OWNER: Owner = Owner(*b"test");
    const QUIET: Ask = Ask { ack: false, told: false };
    const TOLD: Ask = Ask { ack: true, told: true };

    fn written(op: &Op, ask: Ask) -> Vec<u8> {
        let mut buf = Vec::new();
        Writer::new(&mut buf).op(op, OWNER, 5, ask);
        buf
    }

    fn message(bytes: &[u8]) -> Message<'_> {
        let mut messages = Messages::new(bytes);
        let message = messages.next().expect("one message");
        assert!(messages.next().is_none());
        message
    }

    fn filter(bytes: &[u8], detail: Detail) -> Filter {
        message(bytes).filter(OWNER, hook(), detail).expect("a filter")
    }

    fn own(rule: Rule, handle: u32, hw: HwState) -> Filter {
        let (handle, stats) = (Handle(handle), Stats::default());
        Filter::Own(OwnRule { rule, handle, hw, in_hw_count: 0, stats })
    }

    fn admission() -> Rule {
        let matching = Match::vlan(VlanTpid::Dot1Q, vid(100)).src(mac(1));
        Rule::new(hook(), ChainId::ZERO, prio(10), matching, [Action::Goto(chain(5))]).unwrap()
    }

    /// Expected bytes are written for a little-endian machine.
    #[cfg(target_endian = "little")]
    #[test]
    fn an_admission_rule_is_these_bytes() {
        let bytes = written(&Op::Add { rule: admission(), handle: Handle(1) }, QUIET);
        #[rustfmt::skip]
        let expected: &[u8] = &[
            // nlmsghdr: length, RTM_NEWTFILTER, REQUEST|CREATE|EXCL, seq, port
            0xa8, 0, 0, 0,  44, 0,  0x01, 0x06,  5, 0, 0, 0,  0, 0, 0, 0,
            // tcmsg: family, ifindex 7, handle 1, parent ffff:fff2, prio 10 and 0x8100
            0, 0, 0, 0,  7, 0, 0, 0,  1, 0, 0, 0,  0xf2, 0xff, 0xff, 0xff,  0x81, 0x00, 10, 0,
            // TCA_KIND "flower"
            11, 0, 1, 0,  b'f', b'l', b'o', b'w', b'e', b'r', 0, 0,
            // TCA_CHAIN 0
            8, 0, 11, 0,  0, 0, 0, 0,
            // TCA_OPTIONS
            0x70, 0, 2, 0x80,
            // ETH_TYPE 0x8100
            6, 0, 8, 0,  0x81, 0x00, 0, 0,
            // ETH_SRC and its mask
            10, 0, 6, 0,  2, 0, 0, 0, 0, 1, 0, 0,
            10, 0, 7, 0,  0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
            // VLAN_ID 100, in host order
            6, 0, 23, 0,  100, 0, 0, 0,
            // ACT, order 1
            0x44, 0, 3, 0x80,
            0x40, 0, 1, 0x80,
            // KIND "gact"
            9, 0, 1, 0,  b'g', b'a', b'c', b't', 0, 0, 0, 0,
            // OPTIONS: PARMS with action goto chain 5
            0x1c, 0, 2, 0x80,
            0x18, 0, 2, 0,  0, 0, 0, 0,  0, 0, 0, 0,  5, 0, 0, 0x20,  0, 0, 0, 0,  0, 0, 0, 0,
            // COOKIE: owner "test", version 1, reserved, digest
            20, 0, 6, 0,  b't', b'e', b's', b't',  1,  0, 0, 0,
            13, 7, 32, 45, 33, 86, 253, 241,
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_deletion_names_kind_chain_prio_handle_and_protocol_and_no_options() {
        let op = Op::Delete { id: admission().id().clone(), handle: Handle(9) };
        let bytes = written(&op, QUIET);
        assert_eq!(u16_at(&bytes, 4), Some(RTM_DELTFILTER));
        assert_eq!(u32_at(&bytes, NLMSGHDR + 8), Some(9));
        let attrs: Vec<u16> = attrs(&bytes[NLMSGHDR + TCMSG..]).map(|(kind, _)| kind).collect();
        assert_eq!(attrs, [TCA_KIND, TCA_CHAIN]);
    }

    #[test]
    fn a_mirror_list_keeps_its_order_and_only_its_first_action_has_the_cookie() {
        let actions: Vec<Action> = (0..31)
            .map(|at| Action::Mirror(ifindex(20 + at)))
            .chain([Action::Redirect(ifindex(60))])
            .collect();
        let rule = Rule::new(hook(), chain(3), prio(1), Match::any(), actions.as_slice()).unwrap();
        let bytes = written(&Op::Add { rule, handle: Handle(1) }, QUIET);
        let options = find(&bytes[NLMSGHDR + TCMSG..], TCA_OPTIONS).unwrap();
        let nested: Vec<(u16, &[u8])> = attrs(find(options, TCA_FLOWER_ACT).unwrap()).collect();
        for (at, (order, action)) in nested.iter().enumerate() {
            assert_eq!(usize::from(*order), at + 1);
            assert_eq!(read_action(action).as_ref(), Some(&actions[at]));
            assert_eq!(find(action, TCA_ACT_COOKIE).is_some(), at == 0);
        }
        assert_eq!(nested.len(), 32);
    }

    #[test]
    fn an_error_has_its_errno_and_the_kernels_words_whether_capped_or_not() {
        let expected = Reply::Ack { errno: 17, message: Some("Filter already exists".into()) };
        assert_eq!(message(&ack(5, 17, Some("Filter already exists"))).read(), expected);
        let mut whole = vec![0; 24];
        Writer::new(&mut whole).attr_str(super::read::NLMSGERR_ATTR_MSG, b"Filter already exists");
        assert_eq!(message(&nlmsgerr(5, 17, NLM_F_ACK_TLVS, &whole)).read(), expected);
        assert_eq!(message(&ack(5, 0, None)).read(), Reply::Ack { errno: 0, message: None });
    }

    #[test]
    fn a_rule_of_another_owner_is_foreign() {
        let mut bytes = Vec::new();
        let op = Op::Add { rule: admission(), handle: Handle(4) };
        Writer::new(&mut bytes).op(&op, Owner(*b"them"), 5, QUIET);
        let expected = Foreign {
            chain: 0,
            prio: 10,
            protocol: 0x8100,
            handle: Handle(4),
            kind: "flower".to_owned(),
            owner: Some(Owner(*b"them")),
        };
        assert_eq!(filter(&bytes, Detail::Full), Filter::Foreign(expected));
    }

    #[test]
    fn of_a_terse_dump_the_cookie_and_the_place_say_which_rule_it_is() {
        let rule = admission();
        let bytes = written(&Op::Add { rule: rule.clone(), handle: Handle(4) }, QUIET);
        let Filter::Terse(terse) = filter(&bytes, Detail::Terse) else { panic!("terse") };
        let expected = TerseRule {
            location: RuleLocation::of(rule.id()),
            handle: Handle(4),
            cookie: rule.cookie(OWNER),
            hw: HwState::NotInHw(None),
            stats: Stats::default(),
        };
        assert_eq!(terse, expected);
        assert!(terse.is(&rule, OWNER));
        assert!(!terse.is(&rule, Owner(*b"them")));
        assert!(!terse.is(&rule.clone().with_offload(Offload::SkipHw), OWNER));
        let actions = rule.actions().to_vec();
        let elsewhere =
            Rule::new(hook(), chain(1), prio(10), rule.id().matching().clone(), actions).unwrap();
        assert!(!terse.is(&elsewhere, OWNER));
    }

    #[test]
    fn an_own_rule_whose_destination_vanished_is_unreadable() {
        let to = Action::Redirect(ifindex(0x1234));
        let rule = Rule::new(hook(), chain(1), prio(2), Match::any(), [to]).unwrap();
        let mut bytes = written(&Op::Add { rule, handle: Handle(4) }, QUIET);
        let wanted = 0x1234u32.to_ne_bytes();
        let at = bytes.windows(4).position(|window| window == wanted).unwrap();
        bytes[at..at + 4].fill(0);
        let location =
            RuleLocation { hook: hook(), chain: chain(1), prio: prio(2), protocol: ETH_P_ALL };
        let expected = Filter::UnreadableOwn(location, Handle(4));
        assert_eq!(filter(&bytes, Detail::Full), expected);
    }

    #[test]
    fn an_entry_with_handle_0_stands_for_its_prio() {
        let bytes = written(&Op::Add { rule: admission(), handle: Handle(0) }, QUIET);
        assert_eq!(filter(&bytes, Detail::Full), Filter::Prio { is_flower: true });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_was_written_reads_back_as_the_same_rule(
            rule in rules(), handle in 1u32.., told in any::<bool>(),
        ) {
            let ask = if told { TOLD } else { QUIET };
            let bytes = written(&Op::Add { rule: rule.clone(), handle: Handle(handle) }, ask);
            let expected = own(rule, handle, HwState::NotInHw(None));
            prop_assert_eq!(filter(&bytes, Detail::Full), expected);
        }

        #[test]
        fn unknown_attributes_are_passed_over(
            rule in rules(), kind in TCA_FLOWER_MAX + 1..0x3fff, payload in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = Vec::new();
            let mut writer = Writer::new(&mut bytes);
            writer.begin(RTM_NEWTFILTER, 0, 5);
            writer.location(rule.id(), Handle(1));
            let options = writer.buf.len();
            writer.flower(&rule, OWNER, TCA_CLS_FLAGS_IN_HW);
            writer.attr(kind, &payload);
            writer.end_nest(options);
            writer.attr(kind, &payload);
            writer.end();
            let expected = own(rule, 1, HwState::InHw);
            prop_assert_eq!(filter(&bytes, Detail::Full), expected);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for message in Messages::new(&bytes) {
                message.read();
                message.filter(OWNER, hook(), Detail::Full);
                message.echo();
                message.ack();
            }
            request(&bytes, 0);
            read_filter(&bytes, OWNER, hook(), Detail::Full);
            read_filter(&bytes, OWNER, hook(), Detail::Terse);
            read_flower(&bytes, &RuleLocation::of(admission().id()), Hidden::Nothing);
            read_action(&bytes);
        }

        #[test]
        fn a_damaged_message_never_panics_nor_passes_for_another_rule(
            rule in rules(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let op = Op::Add { rule: rule.clone(), handle: Handle(1) };
            let mut bytes = written(&op, QUIET);
            // From the options on: what stands before them is the rule's place, which the cookie
            // does not cover.
            let first = NLMSGHDR + TCMSG + 20;
            let at = first + at.index(bytes.len() - first);
            bytes[at] = byte;
            for message in Messages::new(&bytes) {
                message.echo();
                if let Some(Filter::Own(read)) = message.filter(OWNER, hook(), Detail::Full) {
                    prop_assert_eq!(&read.rule, &rule);
                }
            }
        }
    }
}
