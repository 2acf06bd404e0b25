//! Flows: jobs for the kernel's thread, one after the other.
//!
//! In come hooks to read and changes, out comes what became of them. The kernel does the work of a
//! change inside the system call that carries it, so it is done by a thread of its own; the
//! network namespace is the one in which the connection was opened. Nothing is decided or
//! remembered here.

use std::time::Instant;

use api::types::Id;
use tc_flows::{
    ChainId, Cookie, Dump, Gap, Hook, Kernel, Mode, Op, Outcome, Prio, TerseDump, TerseRule,
};
use tokio::sync::mpsc;

/// Changes to one adapter's hooks.
#[derive(Debug)]
pub struct FlowJob {
    /// The adapter.
    pub adapter: Id,
    /// Hooks to make and to read, before anything is changed.
    pub adopt: Vec<(Hook, Look)>,
    /// Changes, in order.
    pub ops: Vec<Op>,
    /// Where that order cannot spare frames a gap, for the log.
    pub gaps: Vec<Gap>,
    /// Whether changes that are known of wait for the next job.
    pub more: bool,
}

/// How closely a hook is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Rules by their places and cookies: a tenth of the bytes.
    Cookies,
    /// Everything.
    Whole,
}

/// What a look at a hook found.
#[derive(Debug)]
pub enum Found {
    /// Cookies and places, in the order of [`place`].
    Cookies(TerseDump),
    /// Everything.
    Whole(Dump),
}

/// What became of a job, or of a part of it: while the owner takes note of one part, the kernel works
/// on the next.
#[derive(Debug)]
pub struct FlowDone {
    /// The adapter.
    pub adapter: Id,
    /// What stood at each hook that was to be adopted.
    pub adopted: Vec<Adopted>,
    /// Each change with its outcome.
    pub outcomes: Vec<(Op, Outcome)>,
    /// When the kernel had answered the last change.
    pub finished: Instant,
    /// Whether this was all of the job.
    pub last: bool,
}

/// Hooks that are read, and changes that are made, before the owner is told of them.
const HOOKS_A_PART: usize = 16;

/// See [`HOOKS_A_PART`].
const CHANGES_A_PART: usize = 1024;

/// Starts the thread; it ends when the returned sender is dropped. At most one job of each of the
/// `adapters` may be under way.
///
/// # Errors
/// When the system refuses a thread.
pub fn start(
    mut kernel: impl Kernel + Send + 'static,
    done: mpsc::UnboundedSender<FlowDone>,
    adapters: usize,
) -> std::io::Result<mpsc::Sender<FlowJob>> {
    let (jobs, mut waiting) = mpsc::channel(adapters.max(1));
    std::thread::Builder::new().name("flows".into()).spawn(move || {
        // An owner that is gone wants nothing more.
        while let Some(job) = waiting.blocking_recv()
            && !done.is_closed()
        {
            // At most one job an adapter is under way, so this queue is as bounded as the jobs.
            run(&mut kernel, job, |part| drop(done.send(part)));
        }
    })?;
    Ok(jobs)
}

/// What orders the rules of a hook so that one is found quickly: hardly two have one cookie.
type Place = (u128, u32, u16);

/// That of a rule with this cookie that stands here.
pub(crate) fn place_of(cookie: Cookie, chain: ChainId, prio: Prio) -> Place {
    (u128::from_be_bytes(*cookie.bytes()), chain.get(), prio.get())
}

/// That of a rule that was found.
pub(crate) fn place(TerseRule { cookie, location, .. }: &TerseRule) -> Place {
    place_of(*cookie, location.chain, location.prio)
}

/// A hook, and what stood there.
pub type Adopted = (Hook, Result<Found, tc_flows::Error>);

/// Makes hooks and reads them.
fn read(kernel: &mut dyn Kernel, hooks: &[(Hook, Look)]) -> Vec<Adopted> {
    let by_cookies = hooks.iter().filter(|(_, look)| *look == Look::Cookies);
    let by_cookies: Vec<Hook> = by_cookies.map(|(hook, _)| *hook).collect();
    let mut terse = kernel.adopt_terse(&by_cookies).into_iter();
    let read = |(hook, look): &(Hook, Look)| {
        let terse = match look {
            Look::Cookies => terse.next().unwrap_or(Ok(None)),
            Look::Whole => kernel.ensure_hook(*hook).map(|()| None),
        };
        let found = terse.and_then(|terse| match terse {
            Some(mut dump) => {
                dump.own.sort_unstable_by_key(place);
                Ok(Found::Cookies(dump))
            }
            None => kernel.dump_consistent(*hook).map(Found::Whole),
        });
        (*hook, found)
    };
    hooks.iter().map(read).collect()
}

/// Carries out a job, and tells what became of it part by part.
pub(crate) fn run(kernel: &mut dyn Kernel, job: FlowJob, mut told: impl FnMut(FlowDone)) {
    let FlowJob { adapter, adopt, ops, .. } = job;
    let part = |adopted, outcomes, last| FlowDone {
        adapter: adapter.clone(),
        adopted,
        outcomes,
        finished: Instant::now(),
        last,
    };
    for hooks in adopt.chunks(HOOKS_A_PART) {
        told(part(read(kernel, hooks), Vec::new(), false));
    }
    let mut ops = ops.into_iter();
    while ops.len() > 0 {
        let now: Vec<Op> = ops.by_ref().take(CHANGES_A_PART).collect();
        let outcomes = kernel.apply(&now, Mode::Told);
        told(part(Vec::new(), now.into_iter().zip(outcomes).collect(), false));
    }
    told(part(Vec::new(), Vec::new(), true));
}
