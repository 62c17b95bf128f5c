//! How long a grant is valid.
//!
//! A range has no checksum, so a READ that ends after its lease may have brought another needle's
//! bytes, and nothing else would show it. The client therefore counts from before it sent the
//! request, when the engine cannot have begun to count. It uses a clock that goes on while the
//! host is suspended. And it uses less than it was granted, because the clocks of two hosts differ
//! in speed.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The fraction 1/64 of a lease is not used: clocks are wrong by less than a thousandth.
const MARGIN_DIVISOR: u32 = 64;

/// A time on the clock of this host that also counts while it is suspended (`CLOCK_BOOTTIME`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BootTime(Duration);

impl BootTime {
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        // Neither is negative.
        Self(Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0)))
    }
}

/// The length of a grant, and when it was requested.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    sent_at: BootTime,
    length: Duration,
}

impl Lease {
    /// The lease of an answer to a request that was sent after `sent_at`.
    pub(super) fn new(sent_at: BootTime, length: Duration) -> Self {
        Self { sent_at, length: length - length / MARGIN_DIVISOR }
    }

    /// For how long it is still valid; `None` if it is over.
    pub(super) fn left(&self, now: BootTime) -> Option<Duration> {
        let elapsed = now.0.saturating_sub(self.sent_at.0);
        self.length.checked_sub(elapsed).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> BootTime {
        BootTime(Duration::from_millis(milliseconds))
    }

    #[test]
    fn a_lease_ends_before_the_engine_takes_the_memory_back() {
        let lease = Lease::new(at(5000), Duration::from_millis(6400));
        assert_eq!(lease.left(at(5000)), Some(Duration::from_millis(6300)));
        assert_eq!(lease.left(at(11_299)), Some(Duration::from_millis(1)));
        assert_eq!(lease.left(at(11_300)), None);
        assert_eq!(lease.left(at(u64::MAX / 2)), None);
        assert_eq!(Lease::new(at(0), Duration::ZERO).left(at(0)), None);
    }

    #[test]
    fn the_clock_includes_the_time_that_the_host_is_suspended() {
        let monotonic = clock_gettime(ClockId::Monotonic);
        let boot = BootTime::now();
        assert!(boot.0 >= Duration::new(monotonic.tv_sec.cast_unsigned(), 0), "{boot:?}");
        assert!(BootTime::now() >= boot);
    }
}
