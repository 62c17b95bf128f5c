//! The time limits of one connection: the deadlines of an exchange, and the longest time without
//! progress.
//!
//! A body of 4 MiB takes dozens of reads. Instead of setting and clearing a timer for each, one
//! `Sleep` stays armed, and is moved only when it fires too early: about once per stall timeout.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::{Deadlines, HttpError};

/// The shortest time that nothing may happen, however late it is.
const MIN_STALL_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct ExchangeTimer {
    sleep: Pin<Box<Sleep>>,
    stall: Duration,
    deadlines: Deadlines,
    last_progress: Instant,
}

impl ExchangeTimer {
    pub(super) fn new(stall: Duration, deadlines: Deadlines) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(stall)), stall, deadlines, last_progress: Instant::now() }
    }

    /// Starts an exchange that must be over by `deadlines`.
    pub(super) fn begin(&mut self, deadlines: Deadlines) {
        self.deadlines = deadlines;
        self.last_progress = Instant::now();
    }

    /// Waits for `step` within the time limits. Its completion counts as progress.
    pub(super) async fn limit<T>(
        &mut self,
        step: impl Future<Output = io::Result<T>>,
    ) -> Result<T, HttpError> {
        let mut step = pin!(step);
        let due = due(self.last_progress, self.stall, self.deadlines);
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
                // Without this a server that goes on sending for ever would never be late.
                if self.last_progress > self.deadlines.end { Err(HttpError::Deadline) } else { Ok(outcome?) }
            }
            None if Instant::now() >= self.deadlines.end => Err(HttpError::Deadline),
            None => Err(HttpError::Stalled(self.last_progress.elapsed())),
        }
    }
}

/// When a step times out that began at `progress`.
pub(super) fn due(progress: Instant, stall: Duration, deadlines: Deadlines) -> Instant {
    let stalled = (progress + stall).min(deadlines.silence.max(progress + MIN_STALL_TIMEOUT));
    stalled.min(deadlines.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_times_out_with_the_deadline_but_a_second_is_always_granted() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let deadlines = Deadlines { silence: at(6), end: at(30) };
        let due = |progress| due(at(progress), Duration::from_secs(5), deadlines);
        assert_eq!([due(0), due(4), due(6), due(20), due(30)], [at(5), at(6), at(7), at(21), at(30)]);
    }
}
