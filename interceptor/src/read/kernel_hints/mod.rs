//! Reads that the kernel answers by itself, as eBPF reports them, and what follows from them.
//!
//! **Hot ranges** are bytes that applications read again and again out of the page cache. They
//! will be asked for again once the page cache has to evict them. If they make about half of their
//! file, the file is considered for promotion. Otherwise the chunks that hold them are brought
//! into the cache, and ranked as if they had just been read again, once for each time that they
//! turn hot ([`Reader::hint_hot_range`]). If the kernel asks for a byte of such a range all the
//! same, it is given the whole range at once ([`KernelHints::take_hot_range`]). While the file is
//! being read, all of this is [deferred]: the page cache serves its readers.
//!
//! **Read-ahead hints** come from a sequential reader that the page cache has served so far. What
//! comes next and was never asked for is fetched before the kernel asks ([`Reader::hint_stream`]);
//! from then on the file's own streams follow the reader. The page cache may have the bytes all
//! the same, from reads in no order, so this stops for a file for which it was in vain.
//!
//! [`Reader::hint_hot_range`]: super::Reader::hint_hot_range
//! [`Reader::hint_stream`]: super::Reader::hint_stream

mod actions;
mod deferred;
mod hot_ranges;

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use crate::prefetch::PrefetchStats;
use deferred::DeferredHotRanges;
use hot_ranges::HotRanges;

/// What the kernel has reported of one version.
#[derive(Debug, Default)]
pub struct KernelHints {
    /// Bytes that turned hot since the file was last considered for promotion.
    pub(super) hot_bytes: AtomicU64,
    /// Ranges that turned hot and that the kernel has not asked for since.
    hot_ranges: HotRanges,
    /// Hot ranges that wait until the file is not read front to back any more.
    pub(super) deferred: DeferredHotRanges,
    /// What became of the bytes that were fetched for readers that the page cache had served.
    stats: OnceLock<Arc<PrefetchStats>>,
}

impl KernelHints {
    /// Notes a range that is read again and again through the page cache.
    pub fn note_hot_range(&self, range: Range<u64>) {
        self.hot_ranges.note(range);
    }

    /// Takes out the hot range that holds the byte at `offset`, so that it is returned once for
    /// each time that it turns hot.
    pub fn take_hot_range(&self, offset: u64) -> Option<Range<u64>> {
        self.hot_ranges.take(offset)
    }

    fn stats(&self) -> &Arc<PrefetchStats> {
        self.stats.get_or_init(Arc::default)
    }
}
