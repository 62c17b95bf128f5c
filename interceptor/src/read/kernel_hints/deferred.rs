//! Hot ranges of a file that is being read, until that is over.
//!
//! Several readers that follow each other through a file make each part of it hot right behind the
//! first of them, and one reader does so that reads it again from the page cache. While the page
//! cache serves them, nothing that is done about hot ranges helps these readers, and all of it
//! takes their time. So hot ranges are deferred until neither a sequential reader has asked the
//! daemon, nor another part has turned hot, for [`READER_IDLE_TIMEOUT`].

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::read::pauses::millis;

/// How long a reader counts as active after it was last heard of: it reads what the kernel has read
/// ahead. A reader that takes longer leaves time to fetch other things.
pub(super) const READER_IDLE_TIMEOUT: Duration = Duration::from_millis(100);

/// Ranges of one file that are kept. Later ones are dropped; they are reported again when they
/// have cooled and turn hot once more.
const MAX_RANGES: usize = 4096;

/// When one file was read last, and the hot ranges that wait for a pause.
#[derive(Debug, Default)]
pub(in crate::read) struct DeferredHotRanges {
    /// When a reader was last heard of, in milliseconds of [`millis`]; 0 for never.
    last_read: AtomicU64,
    ranges: Mutex<Vec<Range<u64>>>,
}

impl DeferredHotRanges {
    /// Notes that a reader is heard of at `now`.
    pub(in crate::read) fn note_reader(&self, now: Instant) {
        let now = millis(now);
        // Most calls fall into the same millisecond as others; a load leaves the cache line
        // shared.
        if self.last_read.load(Relaxed) != now {
            self.last_read.store(now, Relaxed);
        }
    }

    /// Whether a reader is active.
    pub(in crate::read) fn is_read(&self, now: Instant) -> bool {
        let last = self.last_read.load(Relaxed);
        last != 0 && millis(now) < last + READER_IDLE_TIMEOUT.as_millis() as u64
    }

    /// Adds `range`. Returns whether it is the only one, so that no task waits for the end yet.
    pub(super) fn add(&self, range: Range<u64>) -> bool {
        let mut ranges = self.ranges.lock();
        if ranges.len() < MAX_RANGES && !ranges.contains(&range) {
            ranges.push(range);
            return ranges.len() == 1;
        }
        false
    }

    /// Takes out all ranges.
    pub(super) fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.ranges.lock())
    }
}

#[cfg(test)]
impl DeferredHotRanges {
    pub(in crate::read) fn is_empty(&self) -> bool {
        self.ranges.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_deferred_range_starts_the_wait() {
        let deferred = DeferredHotRanges::default();
        assert!(deferred.add(0..10));
        assert!(!deferred.add(10..20));
        assert!(!deferred.add(10..20));
        assert_eq!(deferred.take(), [0..10, 10..20]);
        assert!(deferred.add(10..20));
        (0..2 * MAX_RANGES as u64).for_each(|at| assert!(!deferred.add(at * 100..at * 100 + 1)));
        assert_eq!(deferred.take().len(), MAX_RANGES);
    }

    #[test]
    fn a_reader_is_active_for_a_while_after_its_last_read() {
        let deferred = DeferredHotRanges::default();
        let now = Instant::now();
        assert!(!deferred.is_read(now));
        deferred.note_reader(now);
        assert!(deferred.is_read(now + READER_IDLE_TIMEOUT / 2));
        assert!(!deferred.is_read(now + 2 * READER_IDLE_TIMEOUT));
    }
}
