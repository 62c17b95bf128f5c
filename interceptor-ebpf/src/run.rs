//! Reads of one thread that follow each other, put together before the file's [streams](crate::stream) are told.
//!
//! Who reads a page at a time would have them looked up for each page. So small reads are told only once enough of them have come in a row, and
//! those in no order not at all, which no stream would be made of anyway.

/// Bytes in a row that are worth telling. Smaller than what the kernel reads ahead, so that its requests all are.
pub const TOLD: u64 = 32 << 10;

/// Bytes that were read in a row and not told.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Run {
    /// The first.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
}

impl Run {
    /// Of who has read nothing.
    pub const NONE: Self = Self { start: 0, end: 0 };

    /// Takes note of a read, of whose bytes some may have been read before. Gives the bytes to be told, as offset and length.
    #[inline(always)]
    pub fn read(&mut self, offset: u64, length: u64) -> Option<(u64, u64)> {
        let end = offset.saturating_add(length);
        let goes_on = self.start <= offset && offset <= self.end;
        if !goes_on {
            *self = Self { start: offset, end };
        } else if end > self.end {
            self.end = end;
        }
        let (start, length) = (self.start, self.end - self.start);
        if length < TOLD {
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

    #[test]
    fn small_reads_in_a_row_are_told_together_and_scattered_ones_not() {
        let mut run = Run::default();
        let told: Vec<_> = (0..32).filter_map(|page| run.read(page * PAGE, PAGE)).collect();
        assert_eq!(told, [(0, TOLD), (TOLD, TOLD), (2 * TOLD, TOLD), (3 * TOLD, TOLD)]);
        assert!((0..1000).all(|i| run.read(i * 7919 % 1000 * 2 * PAGE, PAGE).is_none()));
        assert!((0..1000).all(|_| run.read(0, PAGE).is_none()), "the same page again and again");
    }

    #[test]
    fn a_large_read_is_told_as_it_is() {
        let mut run = Run { start: 5 * PAGE, end: 6 * PAGE };
        assert_eq!(run.read(1 << 30, 128 << 10), Some((1 << 30, 128 << 10)));
        assert_eq!(run.read((1 << 30) + (128 << 10), 128 << 10), Some(((1 << 30) + (128 << 10), 128 << 10)));
    }

    proptest! {
        /// Whatever is read in order, in pieces of any size that may begin in the page where the last one ended, is told once.
        #[test]
        fn a_reader_in_order_is_told_without_gaps(lengths in prop::collection::vec(1u64..200_000, 1..100)) {
            let (mut run, mut at, mut told) = (Run::default(), 0u64, 0u64);
            for length in lengths {
                let (first, last) = (at / PAGE, (at + length - 1) / PAGE);
                at += length;
                if let Some((offset, length)) = run.read(first * PAGE, (last + 1 - first) * PAGE) {
                    prop_assert!(offset <= told && offset + PAGE >= told, "{offset} after {told}");
                    told = offset + length;
                }
            }
            prop_assert!(at <= told + TOLD + 2 * PAGE);
        }

        #[test]
        fn nothing_overflows(reads in prop::collection::vec((any::<u64>(), any::<u64>()), 1..50)) {
            let mut run = Run::default();
            for (offset, length) in reads {
                run.read(offset, length);
            }
        }
    }
}
