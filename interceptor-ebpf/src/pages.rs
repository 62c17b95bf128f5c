//! The bytes that one `read` call reads, from what the page cache reports of it.
//!
//! The page cache reports pages, once for each *batch* of pages that it hands out, and each
//! report names the whole rest of the call. A call of 256 KiB may be reported three times: pages
//! 0 to 63, then 31 to 63, then 62 to 63. A [`ReadCall`] remembers for one thread and one file
//! the call that was reported last, so that every page is counted once and every call is one
//! read.

/// Bytes in a page of the page cache's index: the programs are for x86-64 and arm64 kernels with
/// pages of 4 KiB.
pub const PAGE: u64 = 4096;

/// The last report of the call with which a thread reads a file.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadCall {
    /// The last page of the call.
    pub last: u64,
    /// The first page of the last report.
    pub first: u64,
}

/// A range of bytes within a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
}

impl ReadCall {
    /// The state of a thread that has not read the file.
    pub const NONE: Self = Self { last: 0, first: 0 };

    /// Records a report of the page cache, pages `first` to `last`. Returns whether it begins a
    /// new call, rather than being a further report of the last one.
    ///
    /// A second call that reads just the tail of the first one again looks like a further report,
    /// and is not counted.
    #[inline(always)]
    pub fn observe(&mut self, first: u64, last: u64) -> bool {
        let continues = self.last == last && first > self.first;
        *self = Self { last, first };
        !continues
    }
}

/// The bytes of pages `first` to `last` of a file of `size` bytes; `None` if the file ends before
/// them.
#[inline(always)]
pub const fn byte_range(first: u64, last: u64, size: u64) -> Option<ByteRange> {
    let offset = first.saturating_mul(PAGE);
    let end = last.saturating_add(1).saturating_mul(PAGE);
    let end = if end < size { end } else { size };
    if offset < end { Some(ByteRange { offset, length: end - offset }) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_one_call_in_batches_are_one_call() {
        let mut call = ReadCall::default();
        let reports = [(0, 63), (31, 63), (62, 63), (64, 95), (95, 95), (64, 95), (64, 95)];
        let new: std::vec::Vec<bool> =
            reports.iter().map(|&(first, last)| call.observe(first, last)).collect();
        assert_eq!(new, [true, false, false, true, false, true, true]);
    }

    #[test]
    fn a_byte_range_ends_with_the_file() {
        assert_eq!(byte_range(0, 31, 100), Some(ByteRange { offset: 0, length: 100 }));
        assert_eq!(byte_range(1, 2, 1 << 20), Some(ByteRange { offset: 4096, length: 8192 }));
        assert_eq!(byte_range(2, 2, 8192), None);
        assert_eq!(byte_range(u64::MAX, u64::MAX, u64::MAX), None);
    }
}
