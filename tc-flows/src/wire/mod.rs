//! Rules as netlink bytes, and back.
//!
//! In go rules and buffers that the caller keeps and reuses, out come complete `RTM_*TFILTER` and
//! `RTM_*QDISC` messages, without a heap allocation per rule; in come bytes from a kernel, out go
//! typed replies. Decoding never panics and passes over attributes that it does not know. Nothing
//! is sent here.
//!
//! Sources: `struct nlmsghdr`, `nlattr` and `nlmsgerr` in include/uapi/linux/netlink.h; `struct
//! tcmsg` and `TCA_*` in rtnetlink.h; `TCA_FLOWER_*` in pkt_cls.h. Keys and actions have a room
//! each.

mod action;
mod key;

use action::{TCA_ACT_COOKIE, read_action, read_extra};
use key::{FoundKeys, Hidden};

use crate::action::Action;
use crate::diff::Op;
use crate::ident::{ChainId, Handle, Hook, Ifindex, Prio};
use crate::kernel::{Foreign, HwState, RuleLocation};
use crate::key::Match;
use crate::rule::{ACTIONS_MAX, ActionExtra, Cookie, Offload, Owner, Rule, RuleId};

const NLMSGHDR: usize = 16;
const TCMSG: usize = 20;
const NLATTR: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_ECHO: u16 = 0x8;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLMSGERR_ATTR_MSG: u16 = 1;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_EXT_WARN_MSG: u16 = 16;

const TCA_FLOWER_ACT: u16 = 3;
const TCA_FLOWER_FLAGS: u16 = 22;

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
    pub(crate) fn dump(&mut self, hook: Hook, seq: u32) {
        self.begin(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, seq);
        let (ifindex, parent) = place(hook);
        self.tcmsg(ifindex, 0, parent, 0);
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

/// One netlink message as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) seq: u32,
    payload: &'a [u8],
}

/// The messages of one datagram. Ends at the first that is cut short.
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) const fn new(datagram: &'a [u8]) -> Messages<'a> {
        Messages { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.rest.get(..NLMSGHDR)?;
        let len = usize::try_from(u32_at(header, 0)?).ok()?;
        let message = self.rest.get(..len)?;
        let payload = message.get(NLMSGHDR..)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16_at(header, 4)?,
            flags: u16_at(header, 6)?,
            seq: u32_at(header, 8)?,
            payload,
        })
    }
}

/// What a kernel's message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Success (errno 0) or failure of the request with this sequence number.
    Ack { errno: i32, message: Option<String> },
    /// The end of a dump, with what went wrong where something did.
    Done { errno: i32 },
    /// A filter.
    Filter(Box<Filter>),
    /// A qdisc, by its kind.
    Qdisc { kind: String },
    /// Anything else.
    Other,
}

/// A filter, as far as it concerns one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    Own {
        rule: Rule,
        handle: Handle,
        hw: HwState,
    },
    UnreadableOwn(RuleLocation, Handle),
    Foreign(Foreign),
    /// Handle 0: stands for a whole prio.
    Prio,
}

impl Message<'_> {
    /// Reads the message on behalf of `owner`; filters as standing at `hook`, which a dump or an
    /// echo was asked for.
    pub(crate) fn read(&self, owner: Owner, hook: Hook) -> Reply {
        match self.kind {
            NLMSG_ERROR => self.read_ack().unwrap_or(Reply::Other),
            NLMSG_DONE => Reply::Done { errno: errno_at(self.payload, 0).unwrap_or(0) },
            RTM_NEWTFILTER => read_filter(self.payload, owner, hook)
                .map_or(Reply::Other, |filter| Reply::Filter(Box::new(filter))),
            RTM_NEWQDISC => self
                .payload
                .get(TCMSG..)
                .and_then(|attrs| find(attrs, TCA_KIND))
                .map_or(Reply::Other, |kind| Reply::Qdisc { kind: text(kind) }),
            _ => Reply::Other,
        }
    }

    fn read_ack(&self) -> Option<Reply> {
        let errno = errno_at(self.payload, 0)?;
        let message = if self.flags & NLM_F_ACK_TLVS == 0 {
            None
        } else {
            // Behind the errno stands the request's header, and behind that, unless it was
            // capped, the rest of the request.
            let request = usize::try_from(u32_at(self.payload, 4)?).ok()?;
            let request = if self.flags & NLM_F_CAPPED == 0 { request } else { NLMSGHDR };
            let attrs = self.payload.get(request.checked_add(4)?.next_multiple_of(4)..)?;
            find(attrs, NLMSGERR_ATTR_MSG).map(text)
        };
        Some(Reply::Ack { errno, message })
    }

    /// Where this is the echo of a change: whether the rule is in hardware now, and the driver's
    /// words.
    pub(crate) fn read_echo(&self) -> Option<(bool, Option<String>)> {
        if self.kind != RTM_NEWTFILTER {
            return None;
        }
        let attrs = self.payload.get(TCMSG..)?;
        let flags = u32_at(find(find(attrs, TCA_OPTIONS)?, TCA_FLOWER_FLAGS)?, 0)?;
        Some((flags & TCA_CLS_FLAGS_IN_HW != 0, find(attrs, TCA_EXT_WARN_MSG).map(text)))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// An error number, which the kernel sends negative.
fn errno_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(|errno| (errno as i32).wrapping_neg())
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The attributes of a region. Ends at the first that is cut short.
#[derive(Clone)]
struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let len = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & NLA_TYPE_MASK;
        let payload = self.rest.get(NLATTR..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

const fn attrs(region: &[u8]) -> Attrs<'_> {
    Attrs { rest: region }
}

fn find(region: &[u8], wanted: u16) -> Option<&[u8]> {
    attrs(region).find(|(kind, _)| *kind == wanted).map(|(_, payload)| payload)
}

fn read_filter(payload: &[u8], owner: Owner, hook: Hook) -> Option<Filter> {
    let handle = Handle(u32_at(payload, 8)?);
    let info = u32_at(payload, 16)?;
    let prio = (info >> 16) as u16;
    let protocol = u16::from_be_bytes((info as u16).to_ne_bytes());
    if handle.0 == 0 {
        return Some(Filter::Prio);
    }
    let mut kind = &[][..];
    let mut options = &[][..];
    let mut chain = 0;
    for (attr, value) in attrs(payload.get(TCMSG..)?) {
        match attr {
            TCA_KIND => kind = value,
            TCA_OPTIONS => options = value,
            TCA_CHAIN => chain = u32_at(value, 0)?,
            _ => {}
        }
    }
    let is_flower = kind.split(|byte| *byte == 0).next() == Some(FLOWER);
    let cookie = if is_flower { first_cookie(options) } else { None };
    let place = || Some((ChainId::new(chain)?, Prio::new(prio)?));
    match (cookie, place()) {
        (Some(cookie), Some((chain, prio))) if cookie.owner() == owner => {
            let location = RuleLocation { hook, chain, prio, protocol };
            let read = |hidden| {
                read_flower(options, &location, hidden)
                    .filter(|(rule, _)| rule.cookie(owner) == cookie)
            };
            Some(match read(Hidden::Nothing).or_else(|| read(Hidden::Pppoe)) {
                Some((rule, in_hw)) => Filter::Own {
                    rule,
                    handle,
                    hw: if in_hw { HwState::InHw } else { HwState::NotInHw(None) },
                },
                None => Filter::UnreadableOwn(location, handle),
            })
        }
        _ => Some(Filter::Foreign(Foreign { chain, prio, protocol, handle, kind: text(kind) })),
    }
}

/// The cookie of the action with the lowest order.
fn first_cookie(options: &[u8]) -> Option<Cookie> {
    let actions = find(options, TCA_FLOWER_ACT)?;
    let (_, first) = attrs(actions).min_by_key(|(order, _)| *order)?;
    let cookie = find(first, TCA_ACT_COOKIE)?;
    Some(Cookie::from_bytes(cookie.try_into().ok()?))
}

/// The rule, and whether it is in hardware; nothing where it has no counterpart among the rules
/// of this crate.
fn read_flower(options: &[u8], location: &RuleLocation, hidden: Hidden) -> Option<(Rule, bool)> {
    let mut keys = FoundKeys::none();
    let mut flags = 0;
    let mut actions = &[][..];
    for (attr, value) in attrs(options) {
        match attr {
            TCA_FLOWER_FLAGS => flags = u32_at(value, 0)?,
            TCA_FLOWER_ACT => actions = value,
            _ => keys.note(attr, value),
        }
    }
    let matching = Match::from_parts(location.protocol, keys.fields(location.protocol, hidden)?);
    let mut decoded = [const { Action::Drop }; ACTIONS_MAX];
    let mut extras = [ActionExtra::NONE; ACTIONS_MAX];
    let mut count = 0;
    for (order, action) in attrs(actions) {
        if usize::from(order) != count + 1 {
            return None;
        }
        *decoded.get_mut(count)? = read_action(action)?;
        extras[count] = read_extra(action, count == 0)?;
        count += 1;
    }
    let RuleLocation { hook, chain, prio, .. } = *location;
    let offload = match flags & (TCA_CLS_FLAGS_SKIP_HW | TCA_CLS_FLAGS_SKIP_SW) {
        TCA_CLS_FLAGS_SKIP_HW => Offload::SkipHw,
        TCA_CLS_FLAGS_SKIP_SW => Offload::SkipSw,
        0 => Offload::Auto,
        _ => return None,
    };
    let mut rule = Rule::new(hook, chain, prio, matching, &decoded[..count]).ok()?;
    for (at, extra) in extras.into_iter().enumerate() {
        if extra != ActionExtra::NONE {
            rule = rule.with_extra(at, extra).ok()?;
        }
    }
    Some((rule.with_offload(offload), flags & TCA_CLS_FLAGS_IN_HW != 0))
}

/// Messages as a kernel sends them.
#[cfg(test)]
pub(crate) mod test_reply {
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

    use super::key::TCA_FLOWER_MAX;
    use super::test_reply::{ack, nlmsgerr};
    use super::*;
    use crate::arbitrary::{chain, hook, ifindex, mac, prio, rules, vid};
    use crate::ident::{ETH_P_ALL, VlanTpid};

    const OWNER: Owner = Owner(*b"test");
    const QUIET: Ask = Ask { ack: false, told: false };
    const TOLD: Ask = Ask { ack: true, told: true };

    fn written(op: &Op, ask: Ask) -> Vec<u8> {
        let mut buf = Vec::new();
        Writer::new(&mut buf).op(op, OWNER, 5, ask);
        buf
    }

    fn read(bytes: &[u8]) -> Reply {
        let mut messages = Messages::new(bytes);
        let reply = messages.next().expect("one message").read(OWNER, hook());
        assert!(messages.next().is_none());
        reply
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
        assert_eq!(read(&ack(5, 17, Some("Filter already exists"))), expected);
        let mut whole = vec![0; 24];
        Writer::new(&mut whole).attr_str(NLMSGERR_ATTR_MSG, b"Filter already exists");
        assert_eq!(read(&nlmsgerr(5, 17, NLM_F_ACK_TLVS, &whole)), expected);
        assert_eq!(read(&ack(5, 0, None)), Reply::Ack { errno: 0, message: None });
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
        };
        assert_eq!(read(&bytes), Reply::Filter(Box::new(Filter::Foreign(expected))));
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
        assert_eq!(read(&bytes), Reply::Filter(Box::new(expected)));
    }

    #[test]
    fn an_entry_with_handle_0_stands_for_its_prio() {
        let bytes = written(&Op::Add { rule: admission(), handle: Handle(0) }, QUIET);
        assert_eq!(read(&bytes), Reply::Filter(Box::new(Filter::Prio)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_was_written_reads_back_as_the_same_rule(
            rule in rules(), handle in 1u32.., told in any::<bool>(),
        ) {
            let ask = if told { TOLD } else { QUIET };
            let bytes = written(&Op::Add { rule: rule.clone(), handle: Handle(handle) }, ask);
            let expected =
                Filter::Own { rule, handle: Handle(handle), hw: HwState::NotInHw(None) };
            prop_assert_eq!(read(&bytes), Reply::Filter(Box::new(expected)));
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
            let expected = Filter::Own { rule, handle: Handle(1), hw: HwState::InHw };
            prop_assert_eq!(read(&bytes), Reply::Filter(Box::new(expected)));
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for message in Messages::new(&bytes) {
                message.read(OWNER, hook());
                message.read_echo();
            }
            read_filter(&bytes, OWNER, hook());
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
                message.read_echo();
                if let Reply::Filter(filter) = message.read(OWNER, hook())
                    && let Filter::Own { rule: read, .. } = *filter
                {
                    prop_assert_eq!(&read, &rule);
                }
            }
        }
    }
}
