//! Changes as the bytes that a kernel gets, and filters as it shows them, for whoever keeps,
//! inspects or measures them.
//!
//! In come changes, out come complete netlink messages, one behind the other, in a buffer that the
//! caller reuses; in come a kernel's answers to them, out come outcomes; in comes a filter's message,
//! out goes the rule in it. Nothing is sent here: [`crate::NetlinkKernel`] does.

use crate::diff::Op;
use crate::ident::Handle;
use crate::kernel::{Mode, Outcome};
use crate::netlink::outcomes_of;
use crate::rule::{Cookie, Owner, Rule};
use crate::wire::{Ask, Messages, Writer};

/// Appends the messages of `ops` to `out`, with sequence numbers from `first` on, as
/// [`crate::NetlinkKernel`] sends them in this mode: in [`Mode::Told`] each asks for an answer, in
/// [`Mode::Fast`] only the last does.
///
/// No heap allocation but the buffer's own growth.
pub fn encode(ops: &[Op], owner: Owner, mode: Mode, first: u32, out: &mut Vec<u8>) {
    let told = mode == Mode::Told;
    let mut last = out.len();
    for (at, op) in ops.iter().enumerate() {
        last = out.len();
        let seq = first.wrapping_add(at as u32);
        Writer::new(out).op(op, owner, seq, Ask { ack: told, told });
    }
    Writer::ask_for_ack(&mut out[last..]);
}

/// What these datagrams of a kernel say of `ops`, which were `sent` as [`encode`] wrote them with
/// the same `mode` and `first`. One outcome for each; [`Outcome::Unknown`] where nothing says more.
pub fn outcomes(
    ops: &[Op],
    sent: &[u8],
    mode: Mode,
    first: u32,
    answers: &[&[u8]],
) -> Vec<Outcome> {
    outcomes_of(ops, sent, mode, first, false, answers)
}

/// A filter that a kernel showed, whoever installed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What it does.
    pub rule: Rule,
    /// Its handle.
    pub handle: Handle,
    /// The cookie on its first action, where that has 16 bytes: an [`Owner`]'s, if its digest is
    /// that of the rule.
    pub cookie: Option<Cookie>,
}

/// The flower filter in the first of these netlink messages (`RTM_NEWTFILTER`, of a dump or a
/// notification), or `None` where there is none, or where it has an action or a key that this
/// crate has no word for. Never panics, whatever the bytes are.
pub fn decode(message: &[u8]) -> Option<Decoded> {
    let (rule, handle, cookie) = Messages::new(message).next()?.rule()?;
    Some(Decoded { rule, handle, cookie })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{hook, mac, prio};
    use crate::ident::ChainId;
    use crate::key::Match;
    use crate::rule::Rule;

    #[test]
    fn messages_stand_behind_each_other_and_only_the_last_asks_for_an_answer() {
        let op = |last| {
            let matching = Match::any().src(mac(last));
            let rule = Rule::new(hook(), ChainId::ZERO, prio(1), matching, [Action::Drop]).unwrap();
            Op::Add { rule, handle: Handle(last.into()) }
        };
        let mut bytes = Vec::new();
        encode(&[op(1), op(2), op(3)], Owner(*b"test"), Mode::Fast, 7, &mut bytes);
        let mut seen = Vec::new();
        let mut rest = &bytes[..];
        while let [a, b, c, d, _, _, low, high, seq, ..] = rest {
            let len = u32::from_ne_bytes([*a, *b, *c, *d]) as usize;
            seen.push((*seq, u16::from_ne_bytes([*low, *high]) & 0x4 != 0));
            rest = &rest[len..];
        }
        assert_eq!(seen, [(7, false), (8, false), (9, true)]);
        encode(&[], Owner(*b"test"), Mode::Told, 0, &mut Vec::new());
    }
}
