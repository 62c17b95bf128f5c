//! Ranges of a file that are read again and again, until the daemon is asked for one of them all the same.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

/// So many are remembered; beyond that the oldest is forgotten.
const MOST: usize = 256;

/// Ranges that have turned hot. Each is told once.
#[derive(Debug, Default)]
pub(super) struct HotRanges {
    /// Spares reads of files that are not hot, which are nearly all, the lock.
    any: AtomicBool,
    ranges: Mutex<VecDeque<Range<u64>>>,
}

impl HotRanges {
    /// `range` has turned hot.
    pub(super) fn note(&self, range: Range<u64>) {
        let mut ranges = self.ranges.lock();
        if ranges.contains(&range) {
            return;
        }
        if ranges.len() == MOST {
            ranges.pop_front();
        }
        ranges.push_back(range);
        self.any.store(true, Relaxed);
    }

    /// The range that holds the byte at `offset`, which is forgotten.
    pub(super) fn take(&self, offset: u64) -> Option<Range<u64>> {
        if !self.any.load(Relaxed) {
            return None;
        }
        let mut ranges = self.ranges.lock();
        let index = ranges.iter().position(|range| range.contains(&offset))?;
        let range = ranges.remove(index);
        self.any.store(!ranges.is_empty(), Relaxed);
        range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once() {
        let hot = HotRanges::default();
        assert_eq!(hot.take(0), None);
        hot.note(0..10);
        hot.note(10..20);
        hot.note(0..10);
        assert_eq!((hot.take(20), hot.take(10), hot.take(10)), (None, Some(10..20), None));
        assert_eq!((hot.take(9), hot.take(9)), (Some(0..10), None));
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let hot = HotRanges::default();
        (0..=MOST as u64).for_each(|number| hot.note(number..number + 1));
        assert_eq!((hot.take(0), hot.take(1), hot.take(MOST as u64)), (None, Some(1..2), Some(256..257)));
    }
}
