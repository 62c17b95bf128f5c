//! Hot ranges of a file that is being read front to back, until that is over.
//!
//! Several readers that follow each other through a file make each part of it hot right behind the
//! first of them. That is one pass, not yet bytes that are read again and again, and the page
//! cache has them. To fetch them for keeping would be to fetch the whole file twice, beside the
//! readers that wait for the first time. So hot ranges are deferred until no sequential reader has
//! asked the daemon for [`STREAM_IDLE_TIMEOUT`].

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a sequential reader counts as active after its last request: it reads what the kernel
/// has read ahead. A reader that takes longer leaves time to fetch other things.
pub(super) const STREAM_IDLE_TIMEOUT: Duration = Duration::from_millis(100);

/// Ranges of one file that are kept. Later ones are dropped; they are reported again when they
/// have cooled and turn hot once more.
const MAX_RANGES: usize = 4096;

/// The sequential reading of one file, and the hot ranges that wait for its end.
#[derive(Debug, Default)]
pub(in crate::read) struct DeferredHotRanges {
    /// When a sequential reader last asked, in milliseconds of [`millis`]; 0 for never.
    last_streamed: AtomicU64,
    ranges: Mutex<Vec<Range<u64>>>,
}

impl DeferredHotRanges {
    /// Notes that a sequential reader asks at `now`.
    pub(in crate::read) fn note_streamed(&self, now: Instant) {
        let now = millis(now);
        // Most calls fall into the same millisecond as others; a load leaves the cache line
        // shared.
        if self.last_streamed.load(Relaxed) != now {
            self.last_streamed.store(now, Relaxed);
        }
    }

    /// Whether a sequential reader is active.
    pub(in crate::read) fn is_streamed(&self, now: Instant) -> bool {
        let last = self.last_streamed.load(Relaxed);
        last != 0 && millis(now) < last + STREAM_IDLE_TIMEOUT.as_millis() as u64
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

/// Milliseconds since the first call, plus one.
fn millis(now: Instant) -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let first = *FIRST.get_or_init(|| now);
    now.saturating_duration_since(first).as_millis() as u64 + 1
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
    fn a_sequential_reader_is_active_for_a_while_after_its_last_read() {
        let deferred = DeferredHotRanges::default();
        let now = Instant::now();
        assert!(!deferred.is_streamed(now));
        deferred.note_streamed(now);
        assert!(deferred.is_streamed(now + STREAM_IDLE_TIMEOUT / 2));
        assert!(!deferred.is_streamed(now + 2 * STREAM_IDLE_TIMEOUT));
    }
}
