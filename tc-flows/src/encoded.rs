//! Changes as the bytes that a kernel gets, for whoever keeps, inspects or measures them.
//!
//! In come changes, out come complete netlink messages, one behind the other, in a buffer that the
//! caller reuses; in come a kernel's answers to them, out come outcomes. Nothing is sent here:
//! [`crate::NetlinkKernel`] does.

use crate::diff::Op;
use crate::kernel::{Mode, Outcome};
use crate::netlink::outcomes_of;
use crate::rule::Owner;
use crate::wire::{Ask, Writer};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{hook, mac, prio};
    use crate::ident::{ChainId, Handle};
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
