//! A thread that gives way to everybody.
//!
//! Memory that the host has not backed yet can cost more than a second per GiB to touch, so the pages of resident files are
//! touched here, at the lowest priority, and never by a thread that readers wait for. For the same reason nothing runs
//! here that holds a lock of the cache.

use std::io;
use std::sync::mpsc::{Sender, channel};

use tokio::sync::oneshot;

use crate::vital::contained;

type Job = Box<dyn FnOnce() + Send>;

/// How nice the thread is: as nice as can be.
const NICENESS: i32 = 19;

/// See the module's documentation. The thread ends when this is dropped.
pub(super) struct Background {
    jobs: Sender<Job>,
}

impl Background {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let run = move || {
            // In Linux a priority belongs to a thread, whose number is taken for that of a process here.
            if let Err(errno) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS)
            {
                tracing::debug!(%errno, "resident files are filled at normal priority");
            }
            for job in queue {
                contained(job);
            }
        };
        std::thread::Builder::new().name("resident".into()).spawn(run)?;
        Ok(Self { jobs })
    }

    /// Does `work` there, after what was asked before, whether or not that is waited for.
    pub(super) fn later(&self, work: impl FnOnce() + Send + 'static) {
        // Without the thread it is done here, by dropping it.
        let _ = self.jobs.send(Box::new(work));
    }

    /// Does `work` there, after what was asked before. None if it panics.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, done) = oneshot::channel();
        // Nobody need wait for the result any more.
        let job = Box::new(move || drop(sender.send(work())));
        self.jobs.send(job).ok()?;
        done.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Background;

    #[tokio::test]
    async fn a_panic_costs_one_file() {
        let background = Background::start().unwrap();
        assert_eq!(background.run(|| -> u32 { panic!("test") }).await, None);
        assert_eq!(background.run(|| 7).await, Some(7));
    }
}
