//! The moment from which all limits of a request are counted.

use std::time::Duration;

use tokio::time::Instant;

/// When a request arrived at the daemon. It is handed down with the request, so that the limits of the steps that it takes do
/// not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(Instant);

impl Arrival {
    /// That of a request that arrives now, or of work that the daemon begins by itself.
    pub fn now() -> Self {
        Self(Instant::now())
    }

    /// That of a request that arrived then.
    #[cfg(test)]
    pub(crate) fn at(time: Instant) -> Self {
        Self(time)
    }

    /// The end of a limit that began with the arrival.
    pub fn deadline(self, limit: Duration) -> Instant {
        self.0 + limit
    }

    /// How long ago that was.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}
