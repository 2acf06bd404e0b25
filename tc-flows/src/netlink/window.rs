//! The changes of one window, and what the kernel said of them.
//!
//! In come changes with their sequence numbers and whatever datagrams arrive; out goes one outcome
//! for each change. No socket here: what was lost is told from outside.

use nix::errno::Errno;

use crate::diff::Op;
use crate::kernel::{Mode, Outcome};
use crate::wire::{Messages, attribute_path, request};

/// Changes that were sent together, and what the kernel said of them so far.
pub(crate) struct Window<'o> {
    ops: &'o [Op],
    /// The messages as they were sent.
    sent: &'o [u8],
    mode: Mode,
    /// Sequence number of the first change; the others follow.
    first: u32,
    answers: &'o mut Vec<Answer>,
    /// The last change was answered, so that nothing more will come.
    pub(super) complete: bool,
    /// An answer was lost.
    pub(super) overrun: bool,
}

/// What the kernel said of one change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    errno: Option<i32>,
    in_hw: Option<bool>,
    words: Option<Box<Words>>,
}

/// What few answers have.
#[derive(Clone, Debug, Default)]
struct Words {
    /// Of the acknowledgement.
    message: Option<String>,
    attribute: Option<String>,
    /// Of the echo.
    warning: Option<String>,
}

impl<'o> Window<'o> {
    /// `answers` is only room, kept from window to window.
    pub(crate) fn new(
        ops: &'o [Op],
        sent: &'o [u8],
        mode: Mode,
        first: u32,
        answers: &'o mut Vec<Answer>,
    ) -> Window<'o> {
        answers.clear();
        answers.resize_with(ops.len(), Answer::default);
        Window { ops, sent, mode, first, answers, complete: ops.is_empty(), overrun: false }
    }

    pub(crate) fn read(&mut self, datagram: &[u8]) {
        for message in Messages::new(datagram) {
            // A late answer to an earlier window lies outside.
            let at = message.seq.wrapping_sub(self.first) as usize;
            let Some(answer) = self.answers.get_mut(at) else { continue };
            if let Some(echo) = message.echo() {
                answer.in_hw = Some(echo.in_hw);
                if let Some(warning) = echo.message() {
                    answer.words.get_or_insert_default().warning = Some(warning);
                }
            } else if let Some(ack) = message.ack() {
                answer.errno = Some(ack.errno);
                if let Some(message) = ack.message() {
                    answer.words.get_or_insert_default().message = Some(message);
                }
                if let Some(place) = ack.place
                    && let Some(sent) = request(self.sent, message.seq)
                    && let Some(attribute) = attribute_path(sent, place)
                {
                    answer.words.get_or_insert_default().attribute = Some(attribute);
                }
                self.complete |= at + 1 == self.ops.len();
            }
        }
    }

    /// Adds one outcome for each change.
    pub(crate) fn outcomes(self, into: &mut Vec<Outcome>) {
        // Only where nothing was lost does silence of the fast mode mean success.
        let silence = self.complete && !self.overrun && self.mode == Mode::Fast;
        let answers = self.answers.drain(..);
        into.extend(self.ops.iter().zip(answers).map(|(op, answer)| answer.outcome(op, silence)));
    }
}

/// What these datagrams say of changes that were sent at once; `lost`: that others were lost.
pub(crate) fn outcomes_of(
    ops: &[Op],
    sent: &[u8],
    mode: Mode,
    first: u32,
    lost: bool,
    datagrams: &[&[u8]],
) -> Vec<Outcome> {
    let mut answers = Vec::new();
    let mut window = Window::new(ops, sent, mode, first, &mut answers);
    window.overrun = lost;
    for datagram in datagrams {
        window.read(datagram);
    }
    let mut outcomes = Vec::new();
    window.outcomes(&mut outcomes);
    outcomes
}

impl Answer {
    /// `silence`: that nothing was said is a success.
    fn outcome(self, op: &Op, silence: bool) -> Outcome {
        let errno = match self.errno {
            Some(errno) => errno,
            None if silence => 0,
            None => return Outcome::Unknown,
        };
        if matches!(op, Op::Delete { .. })
            && [0, Errno::ENOENT as i32, Errno::ENODEV as i32].contains(&errno)
        {
            return Outcome::Deleted;
        }
        let Words { message, attribute, warning } = self.words.map_or_else(Words::default, |w| *w);
        if errno != 0 {
            return Outcome::Refused { errno, message, attribute };
        }
        match self.in_hw {
            None => Outcome::Installed,
            Some(true) => Outcome::InHw,
            Some(false) => Outcome::NotInHw { reason: message.or(warning) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{hook, mac, prio};
    use crate::ident::{ChainId, Handle};
    use crate::key::Match;
    use crate::rule::{Owner, Rule};
    use crate::wire::test_reply::{ack, echo, objection};
    use crate::wire::{Ask, Place, Writer};

    const FIRST: u32 = u32::MAX;

    fn rule(last: u8) -> Rule {
        let matching = Match::any().src(mac(last));
        Rule::new(hook(), ChainId::ZERO, prio(1), matching, [Action::Drop]).unwrap()
    }

    /// Two additions and a deletion, with sequence numbers that wrap around.
    fn ops() -> [Op; 3] {
        [
            Op::Add { rule: rule(1), handle: Handle(1) },
            Op::Add { rule: rule(2), handle: Handle(2) },
            Op::Delete { id: rule(3).id().clone(), handle: Handle(3) },
        ]
    }

    fn refused(errno: i32, message: Option<&str>) -> Outcome {
        Outcome::Refused { errno, message: message.map(str::to_owned), attribute: None }
    }

    fn outcomes(mode: Mode, overrun: bool, replies: &[Vec<u8>]) -> Vec<Outcome> {
        let ops = ops();
        let sent = sent(&ops);
        let mut answers = Vec::new();
        let mut window = Window::new(&ops, &sent, mode, FIRST, &mut answers);
        window.overrun = overrun;
        for datagram in replies {
            window.read(datagram);
        }
        let mut outcomes = Vec::new();
        window.outcomes(&mut outcomes);
        outcomes
    }

    fn sent(ops: &[Op]) -> Vec<u8> {
        let mut sent = Vec::new();
        for (at, op) in ops.iter().enumerate() {
            let seq = FIRST.wrapping_add(at as u32);
            Writer::new(&mut sent).op(op, Owner(*b"test"), seq, Ask { ack: false, told: false });
        }
        sent
    }

    #[test]
    fn in_the_fast_mode_silence_before_the_last_answer_is_success() {
        assert_eq!(
            outcomes(Mode::Fast, false, &[ack(1, 0, None)]),
            [Outcome::Installed, Outcome::Installed, Outcome::Deleted]
        );
        let refused = refused(17, Some("there"));
        assert_eq!(
            outcomes(Mode::Fast, false, &[ack(0, 17, Some("there")), ack(1, 0, None)]),
            [Outcome::Installed, refused, Outcome::Deleted]
        );
    }

    #[test]
    fn without_the_last_answer_what_was_not_answered_is_unknown() {
        let refused = refused(17, None);
        assert_eq!(
            outcomes(Mode::Fast, false, &[ack(FIRST, 17, None)]),
            [refused, Outcome::Unknown, Outcome::Unknown]
        );
    }

    #[test]
    fn after_an_overrun_silence_says_nothing() {
        assert_eq!(
            outcomes(Mode::Fast, true, &[ack(1, 0, None)]),
            [Outcome::Unknown, Outcome::Unknown, Outcome::Deleted]
        );
    }

    #[test]
    fn in_the_told_mode_the_echo_has_the_hardware_state_and_the_answer_the_reason() {
        let replies = [
            echo(FIRST, &rule(1), true),
            ack(FIRST, 0, None),
            echo(0, &rule(2), false),
            ack(0, 0, Some("too many keys")),
            ack(1, 2, Some("not found")),
        ];
        let reason = Some("too many keys".to_owned());
        let expected = [Outcome::InHw, Outcome::NotInHw { reason }, Outcome::Deleted];
        assert_eq!(outcomes(Mode::Told, false, &replies), expected);
        // However the kernel packs its messages.
        assert_eq!(outcomes(Mode::Told, false, &[replies.concat()]), expected);
    }

    #[test]
    fn a_refusal_names_what_of_its_own_request_the_kernel_objects_to() {
        // In the second request: behind the headers, TCA_KIND and TCA_CHAIN.
        let missing = Place::Missing { kind: 23, nest: Some(56) };
        let replies = [objection(FIRST, 22, Place::At(56)), objection(0, 22, missing)].concat();
        let refused = |attribute: &str| Outcome::Refused {
            errno: 22,
            message: None,
            attribute: Some(attribute.to_owned()),
        };
        assert_eq!(
            outcomes(Mode::Told, false, &[replies]),
            [
                refused("TCA_OPTIONS"),
                refused("TCA_OPTIONS/TCA_FLOWER_KEY_VLAN_ID (missing)"),
                Outcome::Unknown
            ]
        );
    }

    #[test]
    fn a_message_that_is_cut_short_says_nothing() {
        let whole = [ack(FIRST, 17, Some("there")), ack(1, 0, None)].concat();
        for len in 0..whole.len() {
            let told = outcomes(Mode::Fast, false, &[whole[..len].to_vec()]);
            assert_eq!(told[2], Outcome::Unknown, "{len}");
            assert!([refused(17, Some("there")), Outcome::Unknown].contains(&told[0]), "{len}");
        }
    }

    #[test]
    fn an_answer_to_another_window_is_passed_over() {
        let stray = [ack(FIRST - 1, 5, None), ack(2, 5, None)];
        assert_eq!(outcomes(Mode::Fast, false, &stray), [const { Outcome::Unknown }; 3]);
    }

    #[test]
    fn a_deletion_that_finds_no_rule_or_no_interface_is_done_and_no_other_failure_is() {
        let delete = &ops()[2];
        let answer = |errno| Answer { errno: Some(errno), ..Answer::default() };
        for errno in [0, 2, 19] {
            assert_eq!(answer(errno).outcome(delete, false), Outcome::Deleted);
        }
        let refused = refused(1, None);
        assert_eq!(answer(1).outcome(delete, false), refused);
    }
}
