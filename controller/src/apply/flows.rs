//! Flows: a thread that owns the kernel connection, because flower messages block.
//!
//! The kernel does the work of a change inside the system call that carries it. On a thread of its
//! own that delays nobody else, and the thread's network namespace is the one in which the
//! connection was opened.

use std::time::Instant;

use api::types::Id;
use tc_flows::{Dump, Gap, Hook, Kernel, Mode, Op, Outcome};
use tokio::sync::mpsc;

/// Changes to one adapter's hooks.
#[derive(Debug)]
pub struct FlowJob {
    /// The adapter.
    pub adapter: Id,
    /// Hooks to make and to read, before anything is changed.
    pub adopt: Vec<Hook>,
    /// Changes, in order.
    pub ops: Vec<Op>,
    /// Where that order cannot spare frames a gap, for the log.
    pub gaps: Vec<Gap>,
}

/// What became of a job.
#[derive(Debug)]
pub struct FlowDone {
    /// The adapter.
    pub adapter: Id,
    /// What stood at each hook that was to be adopted.
    pub adopted: Vec<(Hook, Result<Dump, tc_flows::Error>)>,
    /// Each change with its outcome.
    pub outcomes: Vec<(Op, Outcome)>,
    /// When the kernel had answered the last change.
    pub finished: Instant,
}

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
    let (jobs, mut waiting) = mpsc::channel::<FlowJob>(adapters.max(1));
    std::thread::Builder::new().name("flows".into()).spawn(move || {
        while let Some(job) = waiting.blocking_recv() {
            // At most one job an adapter is under way, so this queue is as bounded as the jobs'.
            if done.send(run(&mut kernel, job)).is_err() {
                break;
            }
        }
    })?;
    Ok(jobs)
}

fn run(kernel: &mut impl Kernel, job: FlowJob) -> FlowDone {
    let adopted = job
        .adopt
        .into_iter()
        .map(|hook| (hook, kernel.ensure_hook(hook).and_then(|()| kernel.dump(hook))))
        .collect();
    let outcomes = kernel.apply(&job.ops, Mode::Told);
    FlowDone {
        adapter: job.adapter,
        adopted,
        outcomes: job.ops.into_iter().zip(outcomes).collect(),
        finished: Instant::now(),
    }
}
