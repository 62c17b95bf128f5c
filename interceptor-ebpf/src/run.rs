//! Sequential reads of one thread, merged before they update the file's [streams](crate::stream).
//!
//! A thread that reads a page at a time would otherwise cost a lookup of the streams for each
//! page. Small reads are therefore passed on only when enough of them follow each other, and
//! scattered small reads are not passed on at all; no stream would be made of them anyway.

/// Sequential bytes that are passed on together. Smaller than the kernel's readahead requests, so
/// that each of those is passed on by itself.
pub const MIN_RUN_BYTES: u64 = 32 << 10;

/// Bytes that a thread has read in sequence and that were not passed on.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SequentialRun {
    /// The first byte.
    pub start: u64,
    /// The end: the byte after the last.
    pub end: u64,
}

impl SequentialRun {
    /// The state of a thread that has read nothing.
    pub const NONE: Self = Self { start: 0, end: 0 };

    /// Records a read, which may overlap the run. Returns the offset and length to pass on, if
    /// the run is long enough.
    #[inline(always)]
    pub fn extend(&mut self, offset: u64, length: u64) -> Option<(u64, u64)> {
        let end = offset.saturating_add(length);
        let continues = self.start <= offset && offset <= self.end;
        if !continues {
            *self = Self { start: offset, end };
        } else if end > self.end {
            self.end = end;
        }
        let (start, length) = (self.start, self.end - self.start);
        if length < MIN_RUN_BYTES {
            return None;
        }
        self.start = self.end;
        Some((start, length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    const PAGE: u64 = 4096;
    const RUN: u64 = MIN_RUN_BYTES;

    #[test]
    fn small_sequential_reads_are_merged_and_scattered_ones_dropped() {
        let mut run = SequentialRun::default();
        let passed_on: Vec<_> = (0..32).filter_map(|page| run.extend(page * PAGE, PAGE)).collect();
        assert_eq!(passed_on, [(0, RUN), (RUN, RUN), (2 * RUN, RUN), (3 * RUN, RUN)]);
        assert!((0..1000).all(|i| run.extend(i * 7919 % 1000 * 2 * PAGE, PAGE).is_none()));
        assert!((0..1000).all(|_| run.extend(0, PAGE).is_none()), "the same page again and again");
    }

    #[test]
    fn a_large_read_is_passed_on_unchanged() {
        let mut run = SequentialRun { start: 5 * PAGE, end: 6 * PAGE };
        assert_eq!(run.extend(1 << 30, 128 << 10), Some((1 << 30, 128 << 10)));
        assert_eq!(
            run.extend((1 << 30) + (128 << 10), 128 << 10),
            Some(((1 << 30) + (128 << 10), 128 << 10))
        );
    }

    proptest! {
        /// Sequential reads of any size, each of which may begin in the page where the last one
        /// ended.
        #[test]
        fn sequential_reads_are_passed_on_without_gaps(lengths in prop::collection::vec(1u64..200_000, 1..100)) {
            let (mut run, mut at, mut passed_on) = (SequentialRun::default(), 0u64, 0u64);
            for length in lengths {
                let (first, last) = (at / PAGE, (at + length - 1) / PAGE);
                at += length;
                if let Some((offset, length)) = run.extend(first * PAGE, (last + 1 - first) * PAGE) {
                    prop_assert!(offset <= passed_on && offset + PAGE >= passed_on, "{offset} after {passed_on}");
                    passed_on = offset + length;
                }
            }
            prop_assert!(at <= passed_on + RUN + 2 * PAGE);
        }

        #[test]
        fn nothing_overflows(reads in prop::collection::vec((any::<u64>(), any::<u64>()), 1..50)) {
            let mut run = SequentialRun::default();
            for (offset, length) in reads {
                run.extend(offset, length);
            }
        }
    }
}
