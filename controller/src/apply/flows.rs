//! Flows: jobs for the kernel's thread, one after the other.
//!
//! In come hooks to read and changes, out comes what became of them. The kernel does the work of a
//! change inside the system call that carries it, so it is done by [`AsyncKernel`]'s thread; the
//! network namespace is the one in which the connection was opened. Nothing is decided or
//! remembered here.

use std::time::Instant;

use api::types::Id;
use tc_flows::{AsyncKernel, Dump, Gap, Hook, Kernel, Mode, Op, Outcome, TerseDump};
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
    /// Places and cookies.
    Cookies(TerseDump),
    /// Everything.
    Whole(Dump),
}

/// What became of a job.
#[derive(Debug)]
pub struct FlowDone {
    /// The adapter.
    pub adapter: Id,
    /// What stood at each hook that was to be adopted.
    pub adopted: Vec<(Hook, Result<Found, tc_flows::Error>)>,
    /// Each change with its outcome.
    pub outcomes: Vec<(Op, Outcome)>,
    /// When the kernel had answered the last change.
    pub finished: Instant,
}

/// Starts the thread; it ends when the returned sender is dropped. At most one job of each of the
/// `adapters` may be under way. To be called within a tokio runtime.
///
/// # Errors
/// When the system refuses a thread.
pub fn start(
    kernel: impl Kernel + Send + 'static,
    done: mpsc::UnboundedSender<FlowDone>,
    adapters: usize,
) -> std::io::Result<mpsc::Sender<FlowJob>> {
    let kernel = AsyncKernel::start(kernel, 1)?;
    let (jobs, mut waiting) = mpsc::channel::<FlowJob>(adapters.max(1));
    tokio::spawn(async move {
        while let Some(job) = waiting.recv().await {
            let Some(finished) = kernel.run(|kernel| run(kernel, job)).await else { break };
            // At most one job an adapter is under way, so this queue is as bounded as the jobs'.
            if done.send(finished).is_err() {
                break;
            }
        }
    });
    Ok(jobs)
}

fn read(kernel: &mut dyn Kernel, hook: Hook, look: Look) -> Result<Found, tc_flows::Error> {
    kernel.ensure_hook(hook)?;
    let terse = match look {
        Look::Cookies => kernel.dump_terse_undisturbed(hook)?,
        Look::Whole => None,
    };
    match terse {
        Some(dump) => Ok(Found::Cookies(dump)),
        None => kernel.dump_consistent(hook).map(Found::Whole),
    }
}

/// Carries out a job.
pub(crate) fn run(kernel: &mut dyn Kernel, job: FlowJob) -> FlowDone {
    let adopted =
        job.adopt.into_iter().map(|(hook, look)| (hook, read(kernel, hook, look))).collect();
    let outcomes = kernel.apply(&job.ops, Mode::Told);
    FlowDone {
        adapter: job.adapter,
        adopted,
        outcomes: job.ops.into_iter().zip(outcomes).collect(),
        finished: Instant::now(),
    }
}
