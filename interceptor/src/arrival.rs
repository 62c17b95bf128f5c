//! The time from which all time limits of a request count.

use std::time::Duration;

use tokio::time::Instant;

/// When a request arrived at the daemon.
///
/// It is passed down with the request, so that the time limits of the steps below do not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(Instant);

impl Arrival {
    /// The arrival of a request that comes now, or of work that the daemon starts by itself.
    pub fn now() -> Self {
        Self(Instant::now())
    }

    /// The arrival of a request that came at `time`.
    #[cfg(test)]
    pub(crate) fn at(time: Instant) -> Self {
        Self(time)
    }

    /// When a `limit` ends that counts from the arrival.
    pub fn deadline(self, limit: Duration) -> Instant {
        self.0 + limit
    }

    /// How long ago the request arrived.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}
