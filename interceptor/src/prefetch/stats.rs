//! What became of prefetched bytes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Outcomes of the prefetches that one predictor advised, shared by the predictor and its fetches.
#[derive(Debug, Default)]
pub struct PrefetchStats {
    used: AtomicU64,
    wasted: AtomicU64,
}

/// [`PrefetchStats`] at one moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PrefetchTotals {
    pub(super) used: u64,
    pub(super) wasted: u64,
}

impl PrefetchStats {
    /// Counts `bytes` that a reader used.
    pub fn used(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    /// Counts `bytes` that left the cache unread.
    pub fn wasted(&self, bytes: u64) {
        self.wasted.fetch_add(bytes, Relaxed);
    }

    /// Whether more than `allowance` bytes were wasted beyond as many as were used.
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
