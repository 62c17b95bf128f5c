//! The clock of the fuzzer: counts the time in which the process could run.
//!
//! A run of hours shares its host with other work. Requests that are unanswered because the whole
//! process was stopped, or got no CPU for a minute, are no fault of a file system. So a thread of
//! the process counts ticks, and whatever keeps the request threads from running keeps it too.

use std::ops::Add;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The resolution of the clock, in milliseconds.
const TICK_MILLIS: u64 = 5;

/// How many ticks this process has lived to see since the first [`FuzzInstant::now`].
static TICKS: AtomicU64 = AtomicU64::new(0);

/// A moment of the fuzzer's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FuzzInstant(Duration);

impl FuzzInstant {
    pub(super) fn now() -> Self {
        static CLOCK: Once = Once::new();
        CLOCK.call_once(|| {
            thread::Builder::new().name("fuzz-clock".into()).spawn(count_ticks).expect("a thread");
        });
        Self(Duration::from_millis(TICKS.load(Ordering::Relaxed) * TICK_MILLIS))
    }

    pub(super) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

impl Add<Duration> for FuzzInstant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0 + time)
    }
}

fn count_ticks() {
    loop {
        thread::sleep(Duration::from_millis(TICK_MILLIS));
        TICKS.fetch_add(1, Ordering::Relaxed);
    }
}
