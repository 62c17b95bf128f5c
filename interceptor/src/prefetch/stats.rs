//! What became of bytes that were fetched ahead.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The totals of one guesser, which keeps it with him and with every fetch that he caused.
#[derive(Debug, Default)]
pub struct PrefetchStats {
    used: AtomicU64,
    wasted: AtomicU64,
}

/// A stats at one moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PrefetchTotals {
    pub(super) used: u64,
    pub(super) wasted: u64,
}

impl PrefetchStats {
    /// A reader came for `bytes`.
    pub fn used(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    /// `bytes` left the cache, and no reader had come for them.
    pub fn wasted(&self, bytes: u64) {
        self.wasted.fetch_add(bytes, Relaxed);
    }

    /// Whether more than `allowance` bytes went to waste beyond those that were used.
    pub fn wastes_more_than(&self, allowance: u64) -> bool {
        let PrefetchTotals { used, wasted } = self.totals();
        wasted > used.saturating_add(allowance)
    }

    pub(super) fn totals(&self) -> PrefetchTotals {
        PrefetchTotals { used: self.used.load(Relaxed), wasted: self.wasted.load(Relaxed) }
    }
}

impl PrefetchTotals {
    /// What was added since `earlier`.
    pub(super) fn since(self, earlier: PrefetchTotals) -> PrefetchTotals {
        PrefetchTotals {
            used: self.used.saturating_sub(earlier.used),
            wasted: self.wasted.saturating_sub(earlier.wasted),
        }
    }
}
