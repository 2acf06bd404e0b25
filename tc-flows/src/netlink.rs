//! The real kernel, over a netlink socket of our own.
//!
//! In go changes, many to a system call; out comes one outcome for each, whatever happens to the
//! answers. Blocking: it belongs on a thread of its own. Nothing here knows what a rule means.
//!
//! The kernel works through a datagram of requests while it is being sent (`netlink_rcv_skb`,
//! net/netlink/af_netlink.c) and queues its answers in that order. So after each window of
//! requests the answers are read up to that of the last one, which is always asked for. An answer
//! that did not fit into the receive buffer is lost with everything behind it until the queue is
//! empty, and shows as ENOBUFS: then nothing is known of the requests that were not answered.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::diff::Op;
use crate::ident::{Direction, Hook, Ifindex};
use crate::kernel::{Dump, Error, Kernel, Mode, Outcome, Result};
use crate::rule::Owner;
use crate::wire::{Ask, Filter, Messages, Reply, Writer};

/// Receive buffer asked for. The kernel doubles it for its own bookkeeping.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What one answer takes of the receive buffer at most: an acknowledgement with text. The echo of
/// a rule is allocated as one page and counted with its overhead.
const ACK_BYTES: usize = 2 << 10;
const ECHO_BYTES: usize = 16 << 10;

/// Most requests in one datagram: beyond this nothing is gained, and a window is what becomes
/// unknown when an answer is lost.
const WINDOW_MAX: usize = 512;

/// Most bytes in one datagram, well within any send buffer.
const WINDOW_BYTES: usize = 64 << 10;

/// The longest datagram that the kernel sends (a dump's are at most 32 KiB).
const DATAGRAM: usize = 64 << 10;

/// How long the kernel may be silent before its answer counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// The kernel of the network namespace that the opening thread was in.
pub struct NetlinkKernel {
    socket: Socket,
    owner: Owner,
    seq: u32,
    window: usize,
    told_window: usize,
    out: Vec<u8>,
    datagram: Vec<u8>,
}

/// What came of waiting for a datagram.
enum Received {
    Datagram(usize),
    /// At least one answer was lost.
    Overrun,
    Nothing,
}

impl NetlinkKernel {
    /// Opens a socket into the kernel, for rules under this owner's cookie.
    ///
    /// # Errors
    /// Where the system has no netlink socket to give.
    pub fn open(owner: Owner) -> Result<NetlinkKernel> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::Socket)?;
        socket.bind_auto().map_err(Error::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Socket)?;
        socket.set_ext_ack(true).map_err(Error::Socket)?;
        socket.set_cap_ack(true).map_err(Error::Socket)?;
        let patience = TimeVal::seconds(PATIENCE.as_secs() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(broken)?;
        // Without the privilege to exceed the system's limit, as much as it gives.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER).map_err(broken)?;
        }
        let buffer = nix::sys::socket::getsockopt(&socket, sockopt::RcvBuf).map_err(broken)?;
        Ok(NetlinkKernel {
            socket,
            owner,
            seq: 0,
            window: (buffer / ACK_BYTES).clamp(1, WINDOW_MAX),
            told_window: (buffer / (ACK_BYTES + ECHO_BYTES)).clamp(1, WINDOW_MAX),
            out: Vec::new(),
            datagram: vec![0; DATAGRAM],
        })
    }

    /// The next `count` sequence numbers, by the first of them.
    fn take_seqs(&mut self, count: usize) -> u32 {
        let first = self.seq;
        self.seq = self.seq.wrapping_add(count as u32);
        first
    }

    fn send(&self) -> io::Result<()> {
        loop {
            match self.socket.send(&self.out, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    /// The next datagram, in `self.datagram`.
    fn receive(&mut self, wait: bool) -> Received {
        // With MSG_TRUNC the result is the datagram's true length.
        let mut flags = MsgFlags::MSG_TRUNC;
        if !wait {
            flags |= MsgFlags::MSG_DONTWAIT;
        }
        loop {
            let mut room = &mut self.datagram[..];
            match self.socket.recv_from(&mut room, flags.bits()) {
                Ok((len, from)) if from.port_number() == 0 => {
                    if len > DATAGRAM {
                        return Received::Overrun;
                    }
                    return Received::Datagram(len);
                }
                Ok(_) => {}
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => {}
                    Some(Errno::ENOBUFS) => return Received::Overrun,
                    _ => return Received::Nothing,
                },
            }
        }
    }

    /// Sends the changes that stand in `self.out` and waits for what the kernel says of them.
    fn exchange(&mut self, ops: &[Op], mode: Mode, first: u32) -> Vec<Outcome> {
        let mut window = Window::new(ops, mode, first, self.owner);
        if self.send().is_err() {
            return window.outcomes();
        }
        while !window.complete {
            match self.receive(!window.overrun) {
                Received::Overrun => window.overrun = true,
                Received::Nothing => break,
                Received::Datagram(len) => window.read(&self.datagram[..len]),
            }
        }
        window.outcomes()
    }

    /// Sends the one request in `self.out` and hands every reply to it to `each`, until that says
    /// whether it was the last.
    fn ask(
        &mut self,
        request: &'static str,
        hook: Hook,
        seq: u32,
        mut each: impl FnMut(Reply) -> Result<Asked>,
    ) -> Result<()> {
        self.send().map_err(Error::Socket)?;
        loop {
            match self.receive(true) {
                Received::Overrun | Received::Nothing => {
                    return Err(Error::NoAnswer { request });
                }
                Received::Datagram(len) => {
                    let messages = Messages::new(&self.datagram[..len]);
                    for message in messages.filter(|message| message.seq == seq) {
                        if each(message.read(self.owner, hook))? == Asked::Answered {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Whether the hook is there: its interface's ingress or clsact qdisc. A block is asked for by
    /// what stands in it.
    fn has_hook(&mut self, hook: Hook) -> Result<bool> {
        let Some((ifindex, direction)) = hook.ifindex().zip(hook.direction()) else {
            return Ok(true);
        };
        let kind = self.qdisc(hook, ifindex)?;
        Ok(kind.is_some_and(|kind| has_hook(&kind, direction)))
    }

    /// Kind of the interface's ingress or clsact qdisc, where it has one.
    fn qdisc(&mut self, hook: Hook, ifindex: Ifindex) -> Result<Option<String>> {
        let request = "get qdisc";
        let seq = self.take_seqs(1);
        self.out.clear();
        Writer::new(&mut self.out).get_clsact(ifindex, seq);
        let mut found = None;
        self.ask(request, hook, seq, |reply| match reply {
            Reply::Qdisc { kind } => {
                found = Some(kind);
                Ok(Asked::More)
            }
            Reply::Ack { errno, message } => match Errno::from_raw(errno) {
                Errno::UnknownErrno | Errno::ENOENT | Errno::ENODEV => Ok(Asked::Answered),
                _ => Err(Error::Refused { request, errno, message }),
            },
            Reply::Done { .. } | Reply::Filter(_) | Reply::Other => Ok(Asked::More),
        })?;
        Ok(found)
    }
}

#[derive(PartialEq, Eq)]
enum Asked {
    More,
    Answered,
}

/// Both qdiscs have an ingress hook, clsact an egress hook too.
fn has_hook(kind: &str, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => kind == "clsact" || kind == "ingress",
        Direction::Egress => kind == "clsact",
    }
}

fn broken(errno: Errno) -> Error {
    Error::Socket(errno.into())
}

/// The changes of one datagram, and what the kernel said of them so far.
struct Window<'o> {
    ops: &'o [Op],
    mode: Mode,
    /// Sequence number of the first change; the others follow.
    first: u32,
    owner: Owner,
    answers: Vec<Answer>,
    /// The last change was answered, so that nothing more will come.
    complete: bool,
    /// An answer was lost.
    overrun: bool,
}

/// What the kernel said of one change.
#[derive(Clone, Debug, Default)]
struct Answer {
    ack: Option<(i32, Option<String>)>,
    echo: Option<(bool, Option<String>)>,
}

impl<'o> Window<'o> {
    fn new(ops: &'o [Op], mode: Mode, first: u32, owner: Owner) -> Window<'o> {
        let answers = vec![Answer::default(); ops.len()];
        Window { ops, mode, first, owner, answers, complete: ops.is_empty(), overrun: false }
    }

    fn read(&mut self, datagram: &[u8]) {
        for message in Messages::new(datagram) {
            // A late answer to an earlier window lies outside.
            let at = message.seq.wrapping_sub(self.first) as usize;
            let Some((op, answer)) = self.ops.get(at).zip(self.answers.get_mut(at)) else {
                continue;
            };
            if let Some(echo) = message.read_echo() {
                answer.echo = Some(echo);
            } else if let Reply::Ack { errno, message } = message.read(self.owner, op.id().hook()) {
                answer.ack = Some((errno, message));
                self.complete |= at + 1 == self.ops.len();
            }
        }
    }

    fn outcomes(self) -> Vec<Outcome> {
        // Only where nothing was lost does silence of the fast mode mean success.
        let silence = self.complete && !self.overrun && self.mode == Mode::Fast;
        self.ops.iter().zip(self.answers).map(|(op, answer)| answer.outcome(op, silence)).collect()
    }
}

impl Answer {
    /// `silence`: that nothing was said is a success.
    fn outcome(self, op: &Op, silence: bool) -> Outcome {
        let (errno, said) = match self.ack {
            Some(ack) => ack,
            None if silence => (0, None),
            None => return Outcome::Unknown,
        };
        if matches!(op, Op::Delete { .. })
            && [0, Errno::ENOENT as i32, Errno::ENODEV as i32].contains(&errno)
        {
            return Outcome::Deleted;
        }
        if errno != 0 {
            return Outcome::Refused { errno, message: said };
        }
        match self.echo {
            None => Outcome::Installed,
            Some((true, _)) => Outcome::InHw,
            Some((false, warning)) => Outcome::NotInHw { reason: said.or(warning) },
        }
    }
}

impl Kernel for NetlinkKernel {
    fn ensure_hook(&mut self, hook: Hook) -> Result<()> {
        // A block is made by the qdiscs that are bound to it.
        let Some(ifindex) = hook.ifindex() else { return Ok(()) };
        let request = "add qdisc clsact";
        let seq = self.take_seqs(1);
        self.out.clear();
        Writer::new(&mut self.out).add_clsact(ifindex, seq);
        let mut refusal = None;
        self.ask(request, hook, seq, |reply| match reply {
            Reply::Ack { errno: 0, .. } => Ok(Asked::Answered),
            Reply::Ack { errno, message } => {
                refusal = Some((errno, message));
                Ok(Asked::Answered)
            }
            _ => Ok(Asked::More),
        })?;
        let Some((errno, message)) = refusal else { return Ok(()) };
        if errno == Errno::EEXIST as i32 && self.has_hook(hook)? {
            return Ok(());
        }
        Err(Error::Refused { request, errno, message })
    }

    fn apply(&mut self, ops: &[Op], mode: Mode) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        let told = mode == Mode::Told;
        let window = if told { self.told_window } else { self.window };
        while outcomes.len() < ops.len() {
            let done = outcomes.len();
            let first = self.seq;
            self.out.clear();
            let mut count = 0;
            let mut last_message = 0;
            while count < window && self.out.len() < WINDOW_BYTES {
                let Some(op) = ops.get(done + count) else { break };
                last_message = self.out.len();
                let seq = first.wrapping_add(count as u32);
                Writer::new(&mut self.out).op(op, self.owner, seq, Ask { ack: told, told });
                count += 1;
            }
            Writer::ask_for_ack(&mut self.out[last_message..]);
            self.take_seqs(count);
            outcomes.extend(self.exchange(&ops[done..done + count], mode, first));
        }
        outcomes
    }

    fn dump(&mut self, hook: Hook) -> Result<Dump> {
        let request = "dump filters";
        let mut dump = Dump::default();
        if !self.has_hook(hook)? {
            return Ok(dump);
        }
        dump.hook_present = true;
        let seq = self.take_seqs(1);
        self.out.clear();
        Writer::new(&mut self.out).dump(hook, seq);
        self.ask(request, hook, seq, |reply| {
            match reply {
                Reply::Filter(filter) => match *filter {
                    Filter::Own { rule, handle, hw } => dump.own.push((rule, handle, hw)),
                    Filter::UnreadableOwn(location, handle) => {
                        dump.unreadable_own.push((location, handle));
                    }
                    Filter::Foreign(foreign) => dump.foreign.push(foreign),
                    Filter::Prio => {}
                },
                Reply::Done { errno: 0 } => return Ok(Asked::Answered),
                Reply::Done { errno } | Reply::Ack { errno, message: None } => {
                    return Err(Error::Refused { request, errno, message: None });
                }
                Reply::Ack { errno, message } => {
                    return Err(Error::Refused { request, errno, message });
                }
                Reply::Qdisc { .. } | Reply::Other => {}
            }
            Ok(Asked::More)
        })?;
        Ok(dump)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{hook, mac, prio};
    use crate::ident::{ChainId, Handle};
    use crate::key::Match;
    use crate::rule::Rule;
    use crate::wire::test_reply::{ack, echo};

    const OWNER: Owner = Owner(*b"test");
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

    fn outcomes(mode: Mode, overrun: bool, replies: &[Vec<u8>]) -> Vec<Outcome> {
        let ops = ops();
        let mut window = Window::new(&ops, mode, FIRST, OWNER);
        window.overrun = overrun;
        for datagram in replies {
            window.read(datagram);
        }
        window.outcomes()
    }

    #[test]
    fn in_the_fast_mode_silence_before_the_last_answer_is_success() {
        assert_eq!(
            outcomes(Mode::Fast, false, &[ack(1, 0, None)]),
            [Outcome::Installed, Outcome::Installed, Outcome::Deleted]
        );
        let refused = Outcome::Refused { errno: 17, message: Some("there".into()) };
        assert_eq!(
            outcomes(Mode::Fast, false, &[ack(0, 17, Some("there")), ack(1, 0, None)]),
            [Outcome::Installed, refused, Outcome::Deleted]
        );
    }

    #[test]
    fn without_the_last_answer_what_was_not_answered_is_unknown() {
        let refused = Outcome::Refused { errno: 17, message: None };
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
    fn an_answer_to_another_window_is_passed_over() {
        let stray = [ack(FIRST - 1, 5, None), ack(2, 5, None)];
        assert_eq!(outcomes(Mode::Fast, false, &stray), [const { Outcome::Unknown }; 3]);
    }

    #[test]
    fn a_deletion_that_finds_no_rule_or_no_interface_is_done_and_no_other_failure_is() {
        let delete = &ops()[2];
        let answer = |errno| Answer { ack: Some((errno, None)), echo: None };
        for errno in [0, 2, 19] {
            assert_eq!(answer(errno).outcome(delete, false), Outcome::Deleted);
        }
        let refused = Outcome::Refused { errno: 1, message: None };
        assert_eq!(answer(1).outcome(delete, false), refused);
    }
}
