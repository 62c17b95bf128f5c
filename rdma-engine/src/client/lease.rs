//! Until when what an engine has granted is there.
//!
//! Bytes of a range have no checksum, so a READ that ends after its lease may have brought another needle's bytes and
//! nothing else would tell. The client therefore counts from before it asked, when the engine cannot have begun to
//! count; by a clock that goes on while the host is suspended; and takes less than it was granted, because the clocks
//! of two hosts do not run equally fast.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The part of a lease that is not used: clocks are wrong by less than a thousandth.
const MARGIN: u32 = 64;

/// A time on the clock of this host, which counts while it is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BootTime(Duration);

impl BootTime {
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        // Neither is negative.
        Self(Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0)))
    }
}

/// What was granted, and when it was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    asked: BootTime,
    length: Duration,
}

impl Lease {
    /// The lease of an answer to a request that was sent after `asked`.
    pub(super) fn new(asked: BootTime, length: Duration) -> Self {
        Self { asked, length: length - length / MARGIN }
    }

    /// For how long it still holds; none if it is over.
    pub(super) fn left(&self, now: BootTime) -> Option<Duration> {
        let since = now.0.saturating_sub(self.asked.0);
        self.length.checked_sub(since).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> BootTime {
        BootTime(Duration::from_millis(milliseconds))
    }

    #[test]
    fn a_lease_ends_before_the_engine_takes_back() {
        let lease = Lease::new(at(5000), Duration::from_millis(6400));
        assert_eq!(lease.left(at(5000)), Some(Duration::from_millis(6300)));
        assert_eq!(lease.left(at(11_299)), Some(Duration::from_millis(1)));
        assert_eq!(lease.left(at(11_300)), None);
        assert_eq!(lease.left(at(u64::MAX / 2)), None);
        assert_eq!(Lease::new(at(0), Duration::ZERO).left(at(0)), None);
    }

    #[test]
    fn the_clock_counts_what_the_monotonic_one_leaves_out() {
        let monotonic = clock_gettime(ClockId::Monotonic);
        let boot = BootTime::now();
        assert!(boot.0 >= Duration::new(monotonic.tv_sec.cast_unsigned(), 0), "{boot:?}");
        assert!(BootTime::now() >= boot);
    }
}
