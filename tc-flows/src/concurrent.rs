//! A kernel for asynchronous code: a thread that owns it, and a queue of bounded length.
//!
//! In go jobs, out come their results, each awaited by whoever asked. The kernel does the work of
//! a change inside the system call that carries it; on a thread of its own that delays nobody
//! else. Jobs run one after the other, in the order in which they got into the queue.
//!
//! To drop a future is safe. A job that is in the queue runs to its end whether or not anybody
//! waits: what was sent is answered and read, so that the next job finds the connection as it
//! should be. Only what the job did is then unknown to the caller, who dumps. A future that is
//! dropped while the queue is full leaves nothing behind.

use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::diff::Op;
use crate::ident::Hook;
use crate::kernel::{Dump, Error, Kernel, Mode, Outcome, Result, TerseDump};

/// What the thread does with the kernel.
type Job = Box<dyn FnOnce(&mut dyn Kernel) + Send>;

/// A kernel on a thread of its own. Clones speak to the same one; the thread ends with the last.
#[derive(Clone, Debug)]
pub struct AsyncKernel {
    jobs: mpsc::Sender<Job>,
}

impl AsyncKernel {
    /// Starts the thread. At most `queue` jobs wait (at least one); who has another waits until
    /// there is room. Whatever network namespace the calling thread is in, the kernel keeps its
    /// own.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start(mut kernel: impl Kernel + Send + 'static, queue: usize) -> io::Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(queue.max(1));
        std::thread::Builder::new().name("flows".into()).spawn(move || {
            while let Some(job) = waiting.blocking_recv() {
                job(&mut kernel);
            }
        })?;
        Ok(AsyncKernel { jobs })
    }

    /// Runs `job` on the kernel's thread. Nothing where the thread is gone: an earlier job
    /// panicked.
    pub async fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn Kernel) -> R + Send + 'static,
    ) -> Option<R> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |kernel| {
            // Nobody may be waiting any more.
            let _ = done.send(job(kernel));
        });
        self.jobs.send(job).await.ok()?;
        result.await.ok()
    }

    /// As [`Kernel::apply`]. One outcome for each change, always.
    pub async fn apply(&self, ops: impl Into<Arc<[Op]>>, mode: Mode) -> Vec<Outcome> {
        let ops: Arc<[Op]> = ops.into();
        let job = Arc::clone(&ops);
        let outcomes = self.run(move |kernel| kernel.apply(&job, mode)).await;
        outcomes.unwrap_or_else(|| vec![Outcome::Unknown; ops.len()])
    }

    /// As [`Kernel::ensure_hook`].
    ///
    /// # Errors
    /// As there; [`Error::NoAnswer`] where the thread is gone.
    pub async fn ensure_hook(&self, hook: Hook) -> Result<()> {
        answer("add qdisc clsact", self.run(move |kernel| kernel.ensure_hook(hook)).await)
    }

    /// As [`Kernel::dump`].
    ///
    /// # Errors
    /// As there; [`Error::NoAnswer`] where the thread is gone.
    pub async fn dump(&self, hook: Hook) -> Result<Dump> {
        answer("dump filters", self.run(move |kernel| kernel.dump(hook)).await)
    }

    /// As [`Kernel::dump_terse`].
    ///
    /// # Errors
    /// As there; [`Error::NoAnswer`] where the thread is gone.
    pub async fn dump_terse(&self, hook: Hook) -> Result<TerseDump> {
        answer("dump filters", self.run(move |kernel| kernel.dump_terse(hook)).await)
    }

    /// As [`Kernel::dump_consistent`].
    ///
    /// # Errors
    /// As there; [`Error::NoAnswer`] where the thread is gone.
    pub async fn dump_consistent(&self, hook: Hook) -> Result<Dump> {
        answer("dump filters", self.run(move |kernel| kernel.dump_consistent(hook)).await)
    }
}

fn answer<T>(request: &'static str, result: Option<Result<T>>) -> Result<T> {
    result.unwrap_or(Err(Error::NoAnswer { request }))
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::sync::mpsc as blocking;
    use std::task::Poll;

    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{hook, mac, prio};
    use crate::fake::FakeKernel;
    use crate::ident::{ChainId, Handle};
    use crate::key::Match;
    use crate::rule::{Owner, Rule};

    fn op(last: u8) -> Op {
        let matching = Match::any().src(mac(last));
        let rule = Rule::new(hook(), ChainId::ZERO, prio(1), matching, [Action::Drop]).unwrap();
        Op::Add { rule, handle: Handle(last.into()) }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn kernel(queue: usize) -> AsyncKernel {
        AsyncKernel::start(FakeKernel::new(Owner(*b"test")), queue).unwrap()
    }

    /// Polls a future once: its job is in the queue, and nobody waits for it any more.
    async fn start_and_drop(future: impl Future) {
        let mut future = pin!(future);
        poll_fn(|context| {
            assert!(future.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
    }

    #[test]
    fn what_is_asked_is_done_in_that_order_and_answered() {
        block_on(async {
            let kernel = kernel(2);
            kernel.ensure_hook(hook()).await.unwrap();
            let outcomes = kernel.apply([op(1), op(2)], Mode::Fast).await;
            assert_eq!(outcomes, [Outcome::Installed, Outcome::Installed]);
            assert_eq!(kernel.dump(hook()).await.unwrap().own.len(), 2);
            assert_eq!(kernel.dump_terse(hook()).await.unwrap().own.len(), 2);
            assert_eq!(kernel.dump_consistent(hook()).await.unwrap().own.len(), 2);
        });
    }

    #[test]
    fn a_job_whose_future_is_dropped_is_finished_and_the_next_one_finds_its_work() {
        block_on(async {
            let kernel = kernel(8);
            kernel.ensure_hook(hook()).await.unwrap();
            // Holds the thread back until the next job is in the queue and deserted.
            let (go, wait) = blocking::channel::<()>();
            start_and_drop(kernel.run(move |_| wait.recv())).await;
            start_and_drop(kernel.apply([op(1), op(2)], Mode::Fast)).await;
            go.send(()).unwrap();
            assert_eq!(kernel.dump(hook()).await.unwrap().own.len(), 2);
        });
    }

    #[test]
    fn after_a_job_that_panicked_every_outcome_is_unknown_and_no_dump_has_an_answer() {
        block_on(async {
            let kernel = kernel(1);
            assert!(kernel.run(|_| panic!("on purpose")).await.is_none_or(|(): ()| false));
            assert_eq!(
                kernel.apply([op(1), op(2)], Mode::Fast).await,
                [Outcome::Unknown, Outcome::Unknown]
            );
            let dump = kernel.dump(hook()).await;
            assert!(matches!(dump, Err(Error::NoAnswer { .. })), "{dump:?}");
        });
    }
}
