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
//!
//! For each echo or notification the kernel allocates as much as what is left of the datagram that
//! asked for it, at least a page (`tfilter_notify_prep`, net/sched/cls_api.c). So a window goes out
//! in several datagrams: of a page in the told mode, and not much more in the fast one, where
//! somebody may listen.
//!
//! One failure has no answer at all, whatever was asked for: EINTR. In the fast mode it passes for
//! success; flower itself does not fail so, a driver might.

mod chains;
mod consistent;
mod socket;
mod watch;
mod window;

pub use chains::{Chain, HookQdisc, OwnQdisc, Template};

use nix::errno::Errno;

use crate::diff::Op;
use crate::ident::{Direction, Hook, Ifindex};
use crate::kernel::{Dump, Error, Kernel, Mode, Outcome, Result, TerseDump};
use crate::rule::Owner;
use crate::watch::Notice;
use crate::wire::{Ask, Detail, Filter, Message, Messages, Reply, Writer};
use consistent::settled;
use socket::{Headers, RECEIVE_BUFFER, Received, TcSocket};
pub use watch::{OwnChanges, Watch};
pub(crate) use window::outcomes_of;
use window::{Answer, Window};

/// What one answer takes of the receive buffer at most: an acknowledgement with text. The echo of
/// a rule is allocated as one page, more where the rule is long, and counted with its overhead.
const ACK_BYTES: usize = 2 << 10;
const ECHO_BYTES: usize = 16 << 10;

/// Most requests in one window: beyond this nothing is gained, and a window is what becomes
/// unknown when an answer is lost.
const WINDOW_MAX: usize = 512;

/// Most bytes in one window.
const WINDOW_BYTES: usize = 256 << 10;

/// Most bytes in one datagram of several requests: what a system call costs is nothing among a
/// hundred rules.
const DATAGRAM: usize = 16 << 10;

/// The same in the told mode: a page without the kernel's bookkeeping (`NLMSG_GOODSIZE`).
const TOLD_DATAGRAM: usize = 3_700;

/// How often a dump is repeated that the kernel calls inconsistent, or of which something is lost.
const DUMPS_MAX: usize = 5;

/// How often a consistent dump is tried: a changer that empties a prio during each is not to hold
/// the caller for ever.
const CONSISTENT_DUMPS_MAX: usize = 20;

/// The kernel of the network namespace that the opening thread was in.
pub struct NetlinkKernel {
    socket: TcSocket,
    owner: Owner,
    seq: u32,
    window: usize,
    told_window: usize,
    out: Vec<u8>,
    /// Where in `out` a datagram ends and the next begins.
    cuts: Vec<usize>,
    answers: Vec<Answer>,
}

impl NetlinkKernel {
    /// Opens a socket into the kernel, for rules under this owner's cookie.
    ///
    /// # Errors
    /// Where the system has no netlink socket to give.
    pub fn open(owner: Owner) -> Result<NetlinkKernel> {
        let mut kernel = NetlinkKernel::open_sized(owner, RECEIVE_BUFFER, WINDOW_MAX)?;
        let buffer = kernel.socket.receive_buffer()?;
        kernel.window = (buffer / ACK_BYTES).clamp(1, WINDOW_MAX);
        kernel.told_window = (buffer / (ACK_BYTES + ECHO_BYTES)).clamp(1, WINDOW_MAX);
        Ok(kernel)
    }

    /// As [`NetlinkKernel::open`], with a receive buffer of this many bytes and windows of this
    /// many changes, whether or not their answers fit. Where they do not, outcomes are
    /// [`Outcome::Unknown`].
    ///
    /// # Errors
    /// Where the system has no netlink socket to give.
    pub fn open_sized(owner: Owner, receive_buffer: usize, window: usize) -> Result<NetlinkKernel> {
        let window = window.max(1);
        Ok(NetlinkKernel {
            socket: TcSocket::open(receive_buffer)?,
            owner,
            seq: 0,
            window,
            told_window: window,
            out: Vec::new(),
            cuts: Vec::new(),
            answers: Vec::new(),
        })
    }

    /// The socket's number in its network namespace, by which the kernel names who changed
    /// something.
    pub const fn port(&self) -> u32 {
        self.socket.port()
    }

    /// The next `count` sequence numbers, by the first of them.
    fn take_seqs(&mut self, count: usize) -> u32 {
        let first = self.seq;
        self.seq = self.seq.wrapping_add(count as u32);
        first
    }

    /// Writes a window of the first of these changes into `self.out`: how many, and the sequence
    /// number of the first.
    fn write_window(&mut self, ops: &[Op], mode: Mode) -> (usize, u32) {
        let told = mode == Mode::Told;
        let (most, datagram) =
            if told { (self.told_window, TOLD_DATAGRAM) } else { (self.window, DATAGRAM) };
        let first = self.seq;
        self.out.clear();
        self.cuts.clear();
        let mut count = 0;
        let mut cut = 0;
        let mut last = 0;
        for op in ops.iter().take(most) {
            if self.out.len() >= WINDOW_BYTES {
                break;
            }
            last = self.out.len();
            let seq = first.wrapping_add(count as u32);
            Writer::new(&mut self.out).op(op, self.owner, seq, Ask { ack: told, told });
            if self.out.len() - cut > datagram && last > cut {
                self.cuts.push(last);
                cut = last;
            }
            count += 1;
        }
        self.cuts.push(self.out.len());
        Writer::ask_for_ack(&mut self.out[last..]);
        self.take_seqs(count);
        (count, first)
    }

    /// Sends the changes that stand in `self.out` and waits for what the kernel says of them.
    fn exchange(
        &mut self,
        ops: &[Op],
        mode: Mode,
        first: u32,
        headers: &mut Headers,
        outcomes: &mut Vec<Outcome>,
    ) {
        let mut window = Window::new(ops, &self.out, mode, first, &mut self.answers);
        let mut from = 0;
        for to in &self.cuts {
            if self.socket.send(&self.out[from..*to]).is_err() {
                // What was sent before may have been answered.
                window.overrun = true;
                break;
            }
            from = *to;
        }
        while !window.complete {
            let wait = !window.overrun;
            match self.socket.receive(headers, wait, |datagram| window.read(datagram)) {
                Received::Overrun => window.overrun = true,
                Received::Nothing => break,
                Received::Some => {}
            }
        }
        window.outcomes(outcomes);
    }

    /// Sends the one request in `self.out` and hands every reply to it to `each`, until that says
    /// whether it was the last.
    fn ask(
        &mut self,
        request: &'static str,
        seq: u32,
        mut each: impl FnMut(Message<'_>) -> Result<Asked>,
    ) -> Result<()> {
        self.socket.send(&self.out).map_err(Error::Socket)?;
        let mut headers = Headers::new();
        let mut lost = false;
        let mut result = Ok(Asked::More);
        while matches!(result, Ok(Asked::More)) {
            let received = self.socket.receive(&mut headers, true, |datagram| {
                let messages = Messages::new(datagram);
                for message in messages.filter(|message| message.seq == seq) {
                    if matches!(result, Ok(Asked::More)) {
                        result = each(message);
                    }
                }
            });
            match received {
                Received::Some => {}
                Received::Overrun => lost = true,
                Received::Nothing => return Err(Error::NoAnswer { request }),
            }
        }
        match result? {
            Asked::Answered if !lost => Ok(()),
            _ => Err(Error::Interrupted { request }),
        }
    }

    /// Whether the hook is there: its interface's ingress or clsact qdisc. A block is asked for by
    /// what stands in it.
    fn has_hook(&mut self, hook: Hook) -> Result<bool> {
        let Some((ifindex, direction)) = hook.ifindex().zip(hook.direction()) else {
            return Ok(true);
        };
        let kind = self.qdisc(ifindex)?;
        Ok(kind.is_some_and(|kind| has_hook(&kind, direction)))
    }

    /// Kind of the interface's ingress or clsact qdisc, where it has one.
    fn qdisc(&mut self, ifindex: Ifindex) -> Result<Option<String>> {
        let request = "get qdisc";
        let seq = self.take_seqs(1);
        self.out.clear();
        Writer::new(&mut self.out).get_clsact(ifindex, seq);
        let mut found = None;
        self.ask(request, seq, |message| match message.read() {
            Reply::Qdisc { kind } => {
                found = Some(kind);
                Ok(Asked::More)
            }
            Reply::Ack { errno, message } => match Errno::from_raw(errno) {
                Errno::UnknownErrno | Errno::ENOENT | Errno::ENODEV => Ok(Asked::Answered),
                _ => Err(Error::Refused { request, errno, message }),
            },
            Reply::Done { .. } | Reply::Other => Ok(Asked::More),
        })?;
        Ok(found)
    }

    /// One dump of the hook's filters: asked for in one detail, read in another. Repeated where it
    /// was interrupted.
    fn filters<D: Default>(
        &mut self,
        hook: Hook,
        asked: Detail,
        read: Detail,
        each: impl Fn(&mut D, Filter),
    ) -> Result<D> {
        let mut dumps = 0;
        loop {
            dumps += 1;
            let mut dump = D::default();
            match self.filters_once(hook, asked, read, |filter| each(&mut dump, filter)) {
                Err(Error::Interrupted { .. }) if dumps < DUMPS_MAX => {}
                result => return result.map(|()| dump),
            }
        }
    }

    fn filters_once(
        &mut self,
        hook: Hook,
        asked: Detail,
        read: Detail,
        mut each: impl FnMut(Filter),
    ) -> Result<()> {
        let request = "dump filters";
        let owner = self.owner;
        let seq = self.take_seqs(1);
        self.out.clear();
        Writer::new(&mut self.out).dump(hook, asked, seq);
        let mut interrupted = false;
        self.ask_for_all(request, seq, |message| {
            interrupted |= message.dump_was_interrupted();
            message.filter(owner, hook, read).map(&mut each).is_some()
        })?;
        if interrupted { Err(Error::Interrupted { request }) } else { Ok(()) }
    }

    /// Sends the request for a dump in `self.out` and hands every message of it to `item`, which
    /// says whether it was one of the dumped things, up to the end of the dump.
    fn ask_for_all(
        &mut self,
        request: &'static str,
        seq: u32,
        mut item: impl FnMut(&Message<'_>) -> bool,
    ) -> Result<()> {
        self.ask(request, seq, |message| {
            if item(&message) {
                return Ok(Asked::More);
            }
            match message.read() {
                Reply::Done { errno: 0 } => Ok(Asked::Answered),
                Reply::Done { errno } => Err(Error::Refused { request, errno, message: None }),
                Reply::Ack { errno, message } => Err(Error::Refused { request, errno, message }),
                Reply::Qdisc { .. } | Reply::Other => Ok(Asked::More),
            }
        })
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

impl Kernel for NetlinkKernel {
    fn ensure_hook(&mut self, hook: Hook) -> Result<()> {
        // A block is made by the qdiscs that are bound to it.
        let Some(ifindex) = hook.ifindex() else { return Ok(()) };
        if self.has_hook(hook)? {
            return Ok(());
        }
        let request = "add qdisc clsact";
        let seq = self.take_seqs(1);
        self.out.clear();
        Writer::new(&mut self.out).add_clsact(ifindex, seq);
        let mut refusal = None;
        self.ask(request, seq, |reply| match reply.read() {
            Reply::Ack { errno: 0, .. } => Ok(Asked::Answered),
            Reply::Ack { errno, message } => {
                refusal = Some((errno, message));
                Ok(Asked::Answered)
            }
            _ => Ok(Asked::More),
        })?;
        let Some((errno, message)) = refusal else { return Ok(()) };
        // Somebody else may have made it meanwhile.
        if errno == Errno::EEXIST as i32 && self.has_hook(hook)? {
            return Ok(());
        }
        Err(Error::Refused { request, errno, message })
    }

    fn apply(&mut self, ops: &[Op], mode: Mode) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        let mut headers = Headers::new();
        while let Some(left) = ops.get(outcomes.len()..).filter(|left| !left.is_empty()) {
            let (count, first) = self.write_window(left, mode);
            self.exchange(&left[..count], mode, first, &mut headers, &mut outcomes);
        }
        outcomes
    }

    fn dump(&mut self, hook: Hook) -> Result<Dump> {
        if !self.has_hook(hook)? {
            return Ok(Dump::default());
        }
        let put = |dump: &mut Dump, filter| match filter {
            Filter::Own(rule) => dump.own.push(rule),
            Filter::UnreadableOwn(location, handle) => {
                dump.unreadable_own.push((location, handle));
            }
            Filter::Foreign(foreign) => dump.foreign.push(foreign),
            Filter::Terse(_) | Filter::Prio { .. } => {}
        };
        let mut dump = self.filters(hook, Detail::Full, Detail::Full, put)?;
        dump.hook_present = true;
        Ok(dump)
    }

    fn dump_consistent(&mut self, hook: Hook) -> Result<Dump> {
        let mut watch = Watch::open(self.owner, &[self.port()], OwnChanges::Dropped)?;
        for _ in 0..CONSISTENT_DUMPS_MAX {
            let dump = self.dump(hook)?;
            if let Some(dump) = settled(hook, dump, &watch.pending()) {
                return Ok(dump);
            }
        }
        Err(Error::Interrupted { request: "dump filters" })
    }

    fn adopt_terse(&mut self, hooks: &[Hook]) -> Vec<Result<Option<TerseDump>>> {
        let mut watch = Watch::open(self.owner, &[self.port()], OwnChanges::Dropped).ok();
        let adopt = |hook: &Hook| {
            self.ensure_hook(*hook)?;
            let Some(watch) = &mut watch else { return Ok(None) };
            let dump = self.dump_terse_of_present(*hook)?;
            let undisturbed = watch.pending().iter().all(|notice| match notice {
                Notice::Changed { change, .. } => !change.may_concern(*hook),
                Notice::Lost => false,
            });
            Ok(undisturbed.then_some(dump))
        };
        hooks.iter().map(adopt).collect()
    }

    fn dump_terse(&mut self, hook: Hook) -> Result<TerseDump> {
        match self.has_hook(hook)? {
            true => self.dump_terse_of_present(hook),
            false => Ok(TerseDump::default()),
        }
    }
}

impl NetlinkKernel {
    /// A terse dump of a hook that is there.
    fn dump_terse_of_present(&mut self, hook: Hook) -> Result<TerseDump> {
        let put = |(dump, partial): &mut (TerseDump, bool), filter| match filter {
            Filter::Terse(rule) => dump.own.push(rule),
            Filter::Foreign(foreign) => dump.foreign.push(foreign),
            Filter::Prio { is_flower } => *partial |= !is_flower,
            Filter::Own(_) | Filter::UnreadableOwn(..) => {}
        };
        // Other classifiers than flower cannot be dumped tersely (`tcf_fill_node`,
        // net/sched/cls_api.c): their filters are left out, or end the dump with this error.
        let terse = self.filters(hook, Detail::Terse, Detail::Terse, put);
        let left_out = match &terse {
            Ok((_, partial)) => *partial,
            Err(Error::Refused { errno, .. }) => *errno == Errno::EMSGSIZE as i32,
            Err(_) => false,
        };
        let dump =
            if left_out { self.filters(hook, Detail::Full, Detail::Terse, put) } else { terse };
        let (mut dump, _) = dump?;
        dump.hook_present = true;
        Ok(dump)
    }
}
