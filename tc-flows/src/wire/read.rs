//! What a kernel says, read from bytes.
//!
//! In come datagrams and attributes from a kernel, out go typed replies: acknowledgements, the end
//! of a dump, filters. Never panics, passes over attributes that it does not know, believes no
//! length.
//!
//! Sources: as those of the room around it; `struct nlmsgerr` and `enum nlmsgerr_attrs` in
//! include/uapi/linux/netlink.h.

use super::action::{TCA_ACT_COOKIE, read_action, read_extra};
use super::key::{FoundKeys, Hidden};
use super::names::Place;
use super::stats::read_stats;
use super::*;
use crate::action::Action;
use crate::kernel::{Foreign, HwState, OwnRule, TerseRule};
use crate::rule::{ACTIONS_MAX, ActionExtra, Cookie};
use crate::stats::Stats;

pub(super) const NLMSGERR_ATTR_MSG: u16 = 1;
pub(super) const NLMSGERR_ATTR_OFFS: u16 = 2;
pub(super) const NLMSGERR_ATTR_MISS_TYPE: u16 = 5;
pub(super) const NLMSGERR_ATTR_MISS_NEST: u16 = 6;

/// One netlink message as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(crate) seq: u32,
    /// Port of the socket whose request led to it.
    pub(crate) port: u32,
    pub(super) payload: &'a [u8],
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
            port: u32_at(header, 12)?,
            payload,
        })
    }
}

/// The request with this sequence number among those in a buffer.
pub(crate) fn request(mut sent: &[u8], seq: u32) -> Option<&[u8]> {
    loop {
        let message = sent.get(..usize::try_from(u32_at(sent, 0)?).ok()?)?;
        if u32_at(message, 8)? == seq {
            return Some(message);
        }
        sent = sent.get(message.len().next_multiple_of(4)..)?;
    }
}

/// What a kernel's message says, filters aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Success (errno 0) or failure of the request with this sequence number.
    Ack { errno: i32, message: Option<String> },
    /// The end of a dump, with what went wrong where something did.
    Done { errno: i32 },
    /// A qdisc, by its kind.
    Qdisc { kind: String },
    /// Anything else.
    Other,
}

/// A filter, as far as it concerns one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    Own(OwnRule),
    /// An own rule of a dump without keys and actions.
    Terse(TerseRule),
    UnreadableOwn(RuleLocation, Handle),
    Foreign(Foreign),
    /// Handle 0: stands for a whole prio.
    Prio {
        /// Whether its classifier is flower.
        is_flower: bool,
    },
}

/// How much of a filter a dump was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    Full,
    Terse,
}

/// Success (errno 0) or failure of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack<'a> {
    /// Positive.
    pub(crate) errno: i32,
    words: Option<&'a [u8]>,
    /// What of the request it objects to.
    pub(crate) place: Option<Place>,
}

impl Ack<'_> {
    /// The extended ack's text.
    pub(crate) fn message(&self) -> Option<String> {
        self.words.map(text)
    }
}

/// The echo of a change: whether the rule is in hardware now, and the driver's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Echo<'a> {
    pub(crate) in_hw: bool,
    words: Option<&'a [u8]>,
}

impl Echo<'_> {
    pub(crate) fn message(&self) -> Option<String> {
        self.words.map(text)
    }
}

impl<'a> Message<'a> {
    /// Whether the kernel says that what it dumps changed meanwhile.
    pub(crate) const fn dump_was_interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    /// Where this is a filter: the filter, read on behalf of `owner`, as standing at `hook`, of
    /// which a dump was asked for.
    pub(crate) fn filter(&self, owner: Owner, hook: Hook, detail: Detail) -> Option<Filter> {
        if self.kind == RTM_NEWTFILTER {
            read_filter(self.payload, owner, hook, detail)
        } else {
            None
        }
    }

    /// What the message says, filters aside.
    pub(crate) fn read(&self) -> Reply {
        match self.kind {
            NLMSG_ERROR => self.ack().map_or(Reply::Other, |ack| Reply::Ack {
                errno: ack.errno,
                message: ack.message(),
            }),
            NLMSG_DONE => Reply::Done { errno: errno_at(self.payload, 0).unwrap_or(0) },
            RTM_NEWQDISC => self
                .payload
                .get(TCMSG..)
                .and_then(|attrs| find(attrs, TCA_KIND))
                .map_or(Reply::Other, |kind| Reply::Qdisc { kind: text(kind) }),
            _ => Reply::Other,
        }
    }

    /// Where this is an acknowledgement: what it says.
    pub(crate) fn ack(&self) -> Option<Ack<'a>> {
        if self.kind != NLMSG_ERROR {
            return None;
        }
        let mut ack = Ack { errno: errno_at(self.payload, 0)?, words: None, place: None };
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return Some(ack);
        }
        // Behind the errno stands the request's header, and behind that, unless it was capped,
        // the rest of the request.
        let request = usize::try_from(u32_at(self.payload, 4)?).ok()?;
        let request = if self.flags & NLM_F_CAPPED == 0 { request } else { NLMSGHDR };
        let tlvs = self.payload.get(request.checked_add(4)?.next_multiple_of(4)..)?;
        let (mut at, mut missing, mut nest) = (None, None, None);
        for (kind, value) in attrs(tlvs) {
            match kind {
                NLMSGERR_ATTR_MSG => ack.words = Some(value),
                NLMSGERR_ATTR_OFFS => at = u32_at(value, 0),
                NLMSGERR_ATTR_MISS_TYPE => missing = u32_at(value, 0),
                NLMSGERR_ATTR_MISS_NEST => nest = u32_at(value, 0),
                _ => {}
            }
        }
        ack.place = missing.map(|kind| Place::Missing { kind, nest }).or_else(|| at.map(Place::At));
        Some(ack)
    }

    /// Where this is the echo of a change: what it says. Looks for the flags alone.
    pub(crate) fn echo(&self) -> Option<Echo<'a>> {
        if self.kind != RTM_NEWTFILTER {
            return None;
        }
        let (mut options, mut words) = (None, None);
        for (kind, value) in attrs(self.payload.get(TCMSG..)?) {
            match kind {
                TCA_OPTIONS => options = Some(value),
                TCA_EXT_WARN_MSG => words = Some(value),
                _ => {}
            }
        }
        let flags = u32_at(find(options?, TCA_FLOWER_FLAGS)?, 0)?;
        Some(Echo { in_hw: flags & TCA_CLS_FLAGS_IN_HW != 0, words })
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// An error number, which the kernel sends negative.
fn errno_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(|errno| (errno as i32).wrapping_neg())
}

pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The attributes of a region. Ends at the first that is cut short.
#[derive(Clone)]
pub(super) struct Attrs<'a> {
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

pub(super) const fn attrs(region: &[u8]) -> Attrs<'_> {
    Attrs { rest: region }
}

pub(super) fn find(region: &[u8], wanted: u16) -> Option<&[u8]> {
    attrs(region).find(|(kind, _)| *kind == wanted).map(|(_, payload)| payload)
}

pub(super) fn read_filter(
    payload: &[u8],
    owner: Owner,
    hook: Hook,
    detail: Detail,
) -> Option<Filter> {
    let handle = Handle(u32_at(payload, 8)?);
    let info = u32_at(payload, 16)?;
    let prio = (info >> 16) as u16;
    let protocol = u16::from_be_bytes((info as u16).to_ne_bytes());
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
    if handle.0 == 0 {
        return Some(Filter::Prio { is_flower });
    }
    let first = if is_flower { first_action(options) } else { None };
    let cookie = first.and_then(owners_cookie);
    let place = || Some((ChainId::new(chain)?, Prio::new(prio)?));
    match (cookie, place()) {
        (Some(cookie), Some((chain, prio))) if cookie.owner() == owner => {
            let location = RuleLocation { hook, chain, prio, protocol };
            let stats = first.map_or(Stats::default(), read_stats);
            if detail == Detail::Terse {
                let flags = find(options, TCA_FLOWER_FLAGS).and_then(|flags| u32_at(flags, 0));
                let hw = hw_state(flags.unwrap_or(0) & TCA_CLS_FLAGS_IN_HW != 0);
                return Some(Filter::Terse(TerseRule { location, handle, cookie, hw, stats }));
            }
            let read = |hidden| {
                let (rule, in_hw) = read_flower(options, &location, hidden)?;
                if rule.cookie(owner) == cookie {
                    return Some((rule, in_hw));
                }
                let rule = rule.with_ipv6_helpers().filter(|rule| rule.cookie(owner) == cookie)?;
                Some((rule, in_hw))
            };
            Some(match read(Hidden::Nothing).or_else(|| read(Hidden::Pppoe)) {
                Some((rule, in_hw)) => {
                    let count = find(options, TCA_FLOWER_IN_HW_COUNT);
                    let in_hw_count = count.and_then(|count| u32_at(count, 0)).unwrap_or(0);
                    Filter::Own(OwnRule { rule, handle, hw: hw_state(in_hw), in_hw_count, stats })
                }
                None => Filter::UnreadableOwn(location, handle),
            })
        }
        _ => {
            let (kind, owner) = (text(kind), cookie.map(|cookie| cookie.owner()));
            Some(Filter::Foreign(Foreign { chain, prio, protocol, handle, kind, owner }))
        }
    }
}

const fn hw_state(in_hw: bool) -> HwState {
    if in_hw { HwState::InHw } else { HwState::NotInHw(None) }
}

/// The cookie of a rule's first action, where it can be an owner's.
pub(super) fn owners_cookie(action: &[u8]) -> Option<Cookie> {
    Some(Cookie::from_bytes(find(action, TCA_ACT_COOKIE)?.try_into().ok()?))
}

/// The content of the action with the lowest order.
pub(super) fn first_action(options: &[u8]) -> Option<&[u8]> {
    let actions = find(options, TCA_FLOWER_ACT)?;
    Some(attrs(actions).min_by_key(|(order, _)| *order)?.1)
}

/// The rule that these options of a flower filter are, where they are one.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn rule_in(options: &[u8], location: &RuleLocation) -> Option<Rule> {
    read_flower(options, location, Hidden::Nothing).map(|(rule, _)| rule)
}

/// The options of the filter that a message is about.
#[cfg(test)]
pub(crate) fn options_of(message: &[u8]) -> Option<&[u8]> {
    find(message.get(NLMSGHDR + TCMSG..)?, TCA_OPTIONS)
}

/// The rule, and whether it is in hardware; nothing where it has no counterpart among the rules
/// of this crate.
pub(super) fn read_flower(
    options: &[u8],
    location: &RuleLocation,
    hidden: Hidden,
) -> Option<(Rule, bool)> {
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
