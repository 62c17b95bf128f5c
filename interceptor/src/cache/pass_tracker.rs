//! Tells a block that is read once, in many requests, from a block that is read again.
//!
//! A reader of a file asks for some 100 KiB at a time, so one pass over a block of some MiB makes
//! tens of reads. If each of them counted as a use, a scan would look like the hottest of loads.
//! So a block tracks which of its parts (at most 64) the current pass has read. A read that covers
//! a new part belongs to the pass, in whatever order the kernel's readahead sends it, and so does
//! a read that continues where the last one ended. A read that covers nothing new begins another
//! pass, and that is a use.

use std::ops::Range;

use super::sync::{AtomicU32, AtomicU64, Ordering};

/// Bytes of the smallest part: a page of the kernel.
const MIN_PART_SIZE: usize = 4096;
/// Number of parts at most: the bits of a word.
const MAX_PARTS: usize = 64;

/// How far the current pass over a block has come. No part of a pass is lost if threads record
/// reads at the same time, except as another pass begins, which only shifts a use a little.
#[derive(Debug, Default)]
pub(super) struct PassTracker {
    /// A bit for each part that the pass has read.
    read_parts: AtomicU64,
    /// Where the last read ended, in bytes modulo 4 GiB.
    last_end: AtomicU32,
}

impl PassTracker {
    /// Records a read of `range` of a block of `len` bytes. Returns whether it begins another
    /// pass.
    pub(super) fn record(&self, range: &Range<usize>, len: usize) -> bool {
        let parts = mask(range, len);
        let read_parts = self.read_parts.load(Ordering::Relaxed);
        let last_end = self.last_end.load(Ordering::Relaxed);
        let end = range.end as u32;
        if last_end != end {
            self.last_end.store(end, Ordering::Relaxed);
        }
        let continues = range.start > 0 && last_end == range.start as u32;
        if parts & !read_parts != 0 || continues {
            self.read_parts.fetch_or(parts, Ordering::Relaxed);
            return false;
        }
        if parts != read_parts {
            self.read_parts.store(parts, Ordering::Relaxed);
        }
        true
    }

    /// Whether all of a block of `len` bytes has been read.
    pub(super) fn is_whole(&self, len: usize) -> bool {
        self.read_parts.load(Ordering::Relaxed) == mask(&(0..len), len)
    }

    /// Whether a part of a block of `len` bytes has been read, and another part has not.
    pub(super) fn is_partial(&self, len: usize) -> bool {
        let read_parts = self.read_parts.load(Ordering::Relaxed);
        read_parts != 0 && read_parts != mask(&(0..len), len)
    }
}

/// The bits of the parts that `range` touches.
fn mask(range: &Range<usize>, len: usize) -> u64 {
    let part = len.div_ceil(MAX_PARTS).max(MIN_PART_SIZE);
    let first = range.start / part;
    let last = range.end.max(range.start + 1).div_ceil(part);
    (u64::MAX << first.min(MAX_PARTS - 1)) & (u64::MAX >> (MAX_PARTS - last.clamp(1, MAX_PARTS)))
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const KIB: usize = 1 << 10;

    fn uses(len: usize, reads: impl IntoIterator<Item = Range<usize>>) -> usize {
        let pass = PassTracker::default();
        reads.into_iter().filter(|range| pass.record(range, len)).count()
    }

    #[test]
    fn one_pass_counts_no_second_use_at_any_request_size_and_order() {
        let steps = |step: usize| (0..4 * MIB / step).map(move |i| i * step..(i + 1) * step);
        for step in [4 * KIB, 128 * KIB, MIB, 4 * MIB] {
            assert_eq!(uses(4 * MIB, steps(step)), 0, "{step}");
            assert_eq!(uses(4 * MIB, steps(step).chain(steps(step))), 1, "{step}, twice");
        }
        let reordered = [2usize, 0, 1, 3].map(|i| i * MIB..(i + 1) * MIB);
        assert_eq!(uses(4 * MIB, reordered.clone()), 0);
        assert_eq!(uses(4 * MIB, reordered.iter().cycle().take(12).cloned()), 2);
    }

    #[test]
    fn every_read_of_a_small_block_is_a_use() {
        assert_eq!(uses(4 * KIB, vec![0..4 * KIB; 5]), 4);
        assert_eq!(uses(100, vec![0..100; 3]), 2);
        assert_eq!(uses(0, vec![0..0; 3]), 2);
    }

    #[test]
    fn random_reads_of_a_block_count_as_a_use_now_and_then() {
        let mut state = 1u64;
        let reads = (0..1000).map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % 1024 * 4096;
            at..at + 4096
        });
        let uses = uses(4 * MIB, reads);
        assert!((50..300).contains(&uses), "{uses}");
    }

    #[test]
    fn a_pass_is_partial_until_everything_was_read() {
        let pass = PassTracker::default();
        assert!(!pass.is_partial(MIB));
        pass.record(&(0..KIB), MIB);
        assert!(pass.is_partial(MIB));
        assert!(!pass.is_whole(MIB));
        pass.record(&(KIB..MIB), MIB);
        assert!(!pass.is_partial(MIB) && pass.is_whole(MIB));
    }
}
