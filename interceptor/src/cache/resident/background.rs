//! A thread of the lowest priority.
//!
//! Touching memory that the host has not backed yet can cost more than a second per GiB. So the
//! pages of resident files are touched on this thread, and never on a thread that readers wait
//! for. For the same reason no job here may hold a lock of the cache.

use std::io;
use std::sync::mpsc::{Sender, channel};

use tokio::sync::oneshot;

use crate::vital::contained;

type BackgroundJob = Box<dyn FnOnce() + Send>;

/// The thread's nice value: the lowest priority.
const NICENESS: i32 = 19;

/// See the module's documentation. The thread ends when this is dropped.
pub(super) struct BackgroundThread {
    jobs: Sender<BackgroundJob>,
}

impl BackgroundThread {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, queue) = channel::<BackgroundJob>();
        let run = move || {
            lower_priority();
            for job in queue {
                contained(job);
            }
        };
        std::thread::Builder::new().name("resident".into()).spawn(run)?;
        Ok(Self { jobs })
    }

    /// Queues `work` without waiting for it.
    pub(super) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        // If the thread is gone, dropping `work` here drops what it would have dropped there.
        let _ = self.jobs.send(Box::new(work));
    }

    /// Queues `work` and waits for its result. None if it panics.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, done) = oneshot::channel();
        // The receiver may be gone by then.
        let job = Box::new(move || drop(sender.send(work())));
        self.jobs.send(job).ok()?;
        done.await.ok()
    }
}

/// Gives this thread the lowest priority.
pub(in crate::cache) fn lower_priority() {
    // In Linux a priority belongs to a thread, and the call takes the thread's id for a process id.
    if let Err(errno) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
        tracing::debug!(%errno, "memory is touched at normal priority");
    }
}

#[cfg(test)]
mod tests {
    use super::BackgroundThread;

    #[tokio::test]
    async fn a_job_that_panics_does_not_end_the_thread() {
        let background = BackgroundThread::start().unwrap();
        assert_eq!(background.run(|| -> u32 { panic!("test") }).await, None);
        assert_eq!(background.run(|| 7).await, Some(7));
    }
}
