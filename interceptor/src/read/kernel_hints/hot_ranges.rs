//! Hot ranges of a file, each until the daemon is asked for a byte of it all the same.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

/// Ranges of one file that are kept; beyond that the oldest is dropped.
const MAX_RANGES: usize = 256;

/// Ranges that have turned hot and have not been taken out.
#[derive(Debug, Default)]
pub(super) struct HotRanges {
    /// Spares reads of files that are not hot, which are nearly all, the lock.
    is_any_hot: AtomicBool,
    ranges: Mutex<VecDeque<Range<u64>>>,
}

impl HotRanges {
    pub(super) fn note(&self, range: Range<u64>) {
        let mut ranges = self.ranges.lock();
        if ranges.contains(&range) {
            return;
        }
        if ranges.len() == MAX_RANGES {
            ranges.pop_front();
        }
        ranges.push_back(range);
        self.is_any_hot.store(true, Relaxed);
    }

    /// Takes out the range that holds the byte at `offset`.
    pub(super) fn take(&self, offset: u64) -> Option<Range<u64>> {
        if !self.is_any_hot.load(Relaxed) {
            return None;
        }
        let mut ranges = self.ranges.lock();
        let index = ranges.iter().position(|range| range.contains(&offset))?;
        let range = ranges.remove(index);
        self.is_any_hot.store(!ranges.is_empty(), Relaxed);
        range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hot_range_is_taken_once() {
        let hot = HotRanges::default();
        assert_eq!(hot.take(0), None);
        hot.note(0..10);
        hot.note(10..20);
        hot.note(0..10);
        assert_eq!((hot.take(20), hot.take(10), hot.take(10)), (None, Some(10..20), None));
        assert_eq!((hot.take(9), hot.take(9)), (Some(0..10), None));
    }

    #[test]
    fn the_oldest_hot_range_is_dropped_first() {
        let hot = HotRanges::default();
        let max = MAX_RANGES as u64;
        (0..=max).for_each(|number| hot.note(number..number + 1));
        assert_eq!((hot.take(0), hot.take(1), hot.take(max)), (None, Some(1..2), Some(256..257)));
    }
}
