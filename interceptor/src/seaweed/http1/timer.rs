//! The limits in time of one connection: a deadline for the whole exchange, and how long nothing may happen.
//!
//! A body of 4 MiB takes dozens of reads. So as not to set and clear a timer for each, one `Sleep` stays armed and is only
//! moved when it fires too early, that is about once per stall time.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::HttpError;

pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
    stall: Duration,
    deadline: Instant,
    last_progress: Instant,
}

impl Timer {
    pub(super) fn new(stall: Duration, deadline: Instant) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(stall)), stall, deadline, last_progress: Instant::now() }
    }

    /// Starts an exchange that must be over by `deadline`.
    pub(super) fn begin(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.last_progress = Instant::now();
    }

    /// Waits for `step` within the limits. That it is done counts as progress.
    pub(super) async fn limit<T>(
        &mut self,
        step: impl Future<Output = io::Result<T>>,
    ) -> Result<T, HttpError> {
        let mut step = pin!(step);
        let due = self.deadline.min(self.last_progress + self.stall);
        let outcome = poll_fn(|cx| {
            if let Poll::Ready(outcome) = step.as_mut().poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            if self.sleep.deadline() > due {
                self.sleep.as_mut().reset(due);
            }
            while self.sleep.as_mut().poll(cx).is_ready() {
                if Instant::now() >= due {
                    return Poll::Ready(None);
                }
                self.sleep.as_mut().reset(due);
            }
            Poll::Pending
        });
        match outcome.await {
            Some(outcome) => {
                self.last_progress = Instant::now();
                // Without this a server that always has more to say would never be late.
                if self.last_progress > self.deadline { Err(HttpError::Deadline) } else { Ok(outcome?) }
            }
            None if Instant::now() >= self.deadline => Err(HttpError::Deadline),
            None => Err(HttpError::Stalled(self.stall)),
        }
    }
}
