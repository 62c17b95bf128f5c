//! Which bytes a call of `read` has brought, told from what the page cache says of it.
//!
//! The page cache speaks in pages, once for each *batch* of pages that it hands out, and each time names the whole rest of the call. A call
//! of 256 KiB may so be heard of three times: pages 0 to 63, then 31 to 63, then 62 to 63. [`Call`] remembers, for one thread and one file,
//! how far the present call was taken account of, so that every page is counted once and every call is one read.

/// Bytes in a page of the page cache's index: the programs are for x86-64 and arm64 kernels with pages of 4 KiB.
pub const PAGE: u64 = 4096;

/// The call that a thread was last seen reading a file with.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Call {
    /// The last page that the call wants.
    pub last: u64,
    /// The last page index it was heard with.
    pub at: u64,
}

/// A range of bytes within a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
}

impl Call {
    /// Of a thread that has not read the file.
    pub const NONE: Self = Self { last: 0, at: 0 };

    /// Takes what the page cache said: pages `first` to `last`. Says whether that is a new call, rather than
    /// the one that was heard of before going on.
    ///
    /// A second call that reads just the tail of the first one again looks the same as the first going on, and is missed.
    #[inline(always)]
    pub fn hear(&mut self, first: u64, last: u64) -> bool {
        let goes_on = self.last == last && first > self.at;
        *self = Self { last, at: first };
        !goes_on
    }
}

/// The bytes of pages `first` to `last` of a file of `size` bytes; `None` if the file ends before them.
#[inline(always)]
pub const fn pages(first: u64, last: u64, size: u64) -> Option<Span> {
    let offset = first.saturating_mul(PAGE);
    let end = last.saturating_add(1).saturating_mul(PAGE);
    let end = if end < size { end } else { size };
    if offset < end { Some(Span { offset, length: end - offset }) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_heard_of_in_batches_is_one() {
        let mut call = Call::default();
        let heard = [(0, 63), (31, 63), (62, 63), (64, 95), (95, 95), (64, 95), (64, 95)];
        let new: std::vec::Vec<bool> = heard.iter().map(|&(first, last)| call.hear(first, last)).collect();
        assert_eq!(new, [true, false, false, true, false, true, true]);
    }

    #[test]
    fn a_span_ends_with_the_file() {
        assert_eq!(pages(0, 31, 100), Some(Span { offset: 0, length: 100 }));
        assert_eq!(pages(1, 2, 1 << 20), Some(Span { offset: 4096, length: 8192 }));
        assert_eq!(pages(2, 2, 8192), None);
        assert_eq!(pages(u64::MAX, u64::MAX, u64::MAX), None);
    }
}
