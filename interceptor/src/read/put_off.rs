//! What has turned hot while its file is being read front to back, and waits until that is over.
//!
//! Several readers that follow each other through a file make each part of it hot right behind the first of them. That is one pass, not yet one part that is read again
//! and again, and the page cache has it: to fetch it for keeping would be to fetch the whole file twice, beside the readers that wait for the first time. So it
//! is put off until the daemon has not been asked by a sequential reader for a while.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// For how long a sequential reader counts as there after it has asked for something: it reads what the kernel has read ahead. One that takes longer over that leaves
/// time to fetch other things.
pub(super) const QUIET: Duration = Duration::from_millis(100);

/// Ranges of one file that are remembered; those that turn hot beyond that are told of again when they have cooled.
const MOST: usize = 4096;

/// The sequential reading of one file, and what waits for its end.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    /// When a sequential reader last asked, in milliseconds of [`millis`]; 0 for never.
    streamed: AtomicU64,
    ranges: Mutex<Vec<Range<u64>>>,
}

impl PutOff {
    /// A sequential reader asks at `now`.
    pub(super) fn streamed(&self, now: Instant) {
        let now = millis(now);
        // Most calls come within the same moment as others and leave the line of memory shared.
        if self.streamed.load(Relaxed) != now {
            self.streamed.store(now, Relaxed);
        }
    }

    /// Whether a sequential reader counts as there.
    pub(super) fn is_streamed(&self, now: Instant) -> bool {
        let last = self.streamed.load(Relaxed);
        last != 0 && millis(now) < last + QUIET.as_millis() as u64
    }

    /// Remembers `range`. Returns whether it is the only one: nobody waits for the end yet.
    pub(super) fn add(&self, range: Range<u64>) -> bool {
        let mut ranges = self.ranges.lock();
        if ranges.len() < MOST && !ranges.contains(&range) {
            ranges.push(range);
            return ranges.len() == 1;
        }
        false
    }

    /// All ranges, which are forgotten.
    pub(super) fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.ranges.lock())
    }
}

#[cfg(test)]
impl PutOff {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.lock().is_empty()
    }
}

/// Milliseconds since the first call, and one.
fn millis(now: Instant) -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let first = *FIRST.get_or_init(|| now);
    now.saturating_duration_since(first).as_millis() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_those_that_wait_starts_the_wait() {
        let put_off = PutOff::default();
        assert!(put_off.add(0..10));
        assert!(!put_off.add(10..20));
        assert!(!put_off.add(10..20));
        assert_eq!(put_off.take(), [0..10, 10..20]);
        assert!(put_off.add(10..20));
        (0..2 * MOST as u64).for_each(|at| assert!(!put_off.add(at * 100..at * 100 + 1)));
        assert_eq!(put_off.take().len(), MOST);
    }

    #[test]
    fn a_reader_is_there_for_a_while() {
        let put_off = PutOff::default();
        let now = Instant::now();
        assert!(!put_off.is_streamed(now));
        put_off.streamed(now);
        assert!(put_off.is_streamed(now + QUIET / 2));
        assert!(!put_off.is_streamed(now + 2 * QUIET));
    }
}
