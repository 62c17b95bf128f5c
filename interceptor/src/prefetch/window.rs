//! How far to read ahead of one reader.

use std::sync::Arc;

use super::stats::{PrefetchStats, PrefetchTotals};

/// The window shrinks if more than one in so many of the used bytes was wasted.
const WASTE_DIVISOR: u64 = 8;

/// Windows that the reader must consume before the window doubles, at most, after much waste.
const MAX_GROWTH_DELAY: u64 = 64;

/// A number of bytes that doubles each time the reader has consumed as many, up to a limit, and is
/// halved when prefetched bytes are wasted. Each time it is halved, it doubles half as often from
/// then on, so that it settles at what there is room for.
#[derive(Debug)]
pub(super) struct ReadAheadWindow {
    size: u64,
    min_size: u64,
    /// Bytes that the reader has consumed since the size last changed.
    consumed: u64,
    /// Windows that the reader must consume before the size doubles.
    growth_delay: u64,
    stats: Arc<PrefetchStats>,
    /// The stats when the size last changed.
    seen: PrefetchTotals,
}

impl ReadAheadWindow {
    /// A window of `size` bytes that will not shrink below `min_size`.
    pub(super) fn new(size: u64, min_size: u64) -> Self {
        Self {
            size,
            min_size,
            consumed: 0,
            growth_delay: 1,
            stats: Arc::default(),
            seen: PrefetchTotals::default(),
        }
    }

    /// Bytes to read ahead.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Must be told what becomes of the bytes that are fetched.
    pub(super) fn stats(&self) -> &Arc<PrefetchStats> {
        &self.stats
    }

    /// Notes that the reader consumed `bytes`. The window may be `limit` bytes at most now.
    pub(super) fn consume(&mut self, bytes: u64, limit: u64) {
        self.consumed += bytes;
        let totals = self.stats.totals();
        let new = totals.since(self.seen);
        if new.wasted * WASTE_DIVISOR > new.used {
            self.size = (self.size / 2).max(self.min_size);
            self.growth_delay = (self.growth_delay * 2).min(MAX_GROWTH_DELAY);
        } else if self.consumed >= self.size.saturating_mul(self.growth_delay) {
            self.size *= 2;
        } else {
            self.size = self.size.min(limit);
            return;
        }
        self.size = self.size.min(limit);
        self.consumed = 0;
        self.seen = totals;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_doubles_when_consumed_and_is_halved_when_wasted() {
        let mut window = ReadAheadWindow::new(8, 2);
        window.consume(7, 100);
        assert_eq!(window.size(), 8);
        window.consume(1, 100);
        assert_eq!(window.size(), 16);
        window.stats().used(80);
        window.stats().wasted(11);
        window.consume(1, 100);
        assert_eq!(window.size(), 8);
        window.consume(1, 100);
        assert_eq!(window.size(), 8, "waste counts once");
        (0..5).for_each(|_| {
            window.stats().wasted(1);
            window.consume(1, 100);
        });
        assert_eq!(window.size(), 2);
        window.consume(64, 100);
        assert_eq!(window.size(), 2, "it grows half as often");
        (0..1000).for_each(|_| window.consume(64, 100));
        assert_eq!(window.size(), 100);
        window.consume(1, 10);
        assert_eq!(window.size(), 10, "a limit that falls is kept");
    }
}
