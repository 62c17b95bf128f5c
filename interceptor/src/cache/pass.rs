//! Tells a block that is read once, in many requests, from one that is read again.
//!
//! A reader of a file asks for some 100 KiB at a time, so one pass over a block of some MiB makes tens of reads. If each
//! of them were a use, a scan would look like the hottest of loads. So a block remembers which of its parts the present
//! pass has been given, up to 64 of them; a read that brings something new belongs to the pass, in whatever order the
//! kernel's readahead sends it, and so does one that goes on where the last one ended. One that brings nothing new
//! begins another pass, and that is a use.

use std::ops::Range;

use super::sync::{AtomicU32, AtomicU64, Ordering};

/// Parts are not smaller than the kernel's pages.
const LEAST_PART: usize = 4096;
/// Number of parts at most: the bits of a word.
const PARTS: usize = 64;

/// How far the present pass over a block has come. Two threads may note their reads at the same time and one may be
/// overlooked, which only shifts a use a little.
#[derive(Debug, Default)]
pub(super) struct Pass {
    given: AtomicU64,
    /// Where the last read ended, in bytes modulo 4 GiB.
    end: AtomicU32,
}

impl Pass {
    /// Notes a read of `range` of a block of `len` bytes, and says whether it begins another pass.
    pub(super) fn note(&self, range: &Range<usize>, len: usize) -> bool {
        let parts = mask(range, len);
        let given = self.given.load(Ordering::Relaxed);
        let last_end = self.end.load(Ordering::Relaxed);
        let end = range.end as u32;
        if last_end != end {
            self.end.store(end, Ordering::Relaxed);
        }
        let goes_on = range.start > 0 && last_end == range.start as u32;
        if parts & !given != 0 || goes_on {
            self.given.store(given | parts, Ordering::Relaxed);
            return false;
        }
        if parts != given {
            self.given.store(parts, Ordering::Relaxed);
        }
        true
    }

    /// Whether a part of a block of `len` bytes has been read, and a part has not.
    pub(super) fn is_under_way(&self, len: usize) -> bool {
        let given = self.given.load(Ordering::Relaxed);
        given != 0 && given != mask(&(0..len), len)
    }
}

fn mask(range: &Range<usize>, len: usize) -> u64 {
    let part = len.div_ceil(PARTS).max(LEAST_PART);
    let first = range.start / part;
    let last = range.end.max(range.start + 1).div_ceil(part);
    (u64::MAX << first.min(PARTS - 1)) & (u64::MAX >> (PARTS - last.clamp(1, PARTS)))
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const KIB: usize = 1 << 10;

    fn uses(len: usize, reads: impl IntoIterator<Item = Range<usize>>) -> usize {
        let pass = Pass::default();
        reads.into_iter().filter(|range| pass.note(range, len)).count()
    }

    #[test]
    fn one_pass_is_no_second_use_at_any_request_size_and_order() {
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
    fn small_blocks_are_used_by_every_read() {
        assert_eq!(uses(4 * KIB, vec![0..4 * KIB; 5]), 4);
        assert_eq!(uses(100, vec![0..100; 3]), 2);
        assert_eq!(uses(0, vec![0..0; 3]), 2);
    }

    #[test]
    fn a_block_that_is_read_here_and_there_is_used_now_and_then() {
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
    fn a_pass_is_under_way_until_everything_was_read() {
        let pass = Pass::default();
        assert!(!pass.is_under_way(MIB));
        pass.note(&(0..KIB), MIB);
        assert!(pass.is_under_way(MIB));
        pass.note(&(KIB..MIB), MIB);
        assert!(!pass.is_under_way(MIB));
    }
}
