//! How far to run ahead of one reader.

use std::sync::Arc;

use super::stats::{Account, PrefetchStats};

/// Of what a window brought, more than one part in this many wasted makes it shrink.
const WASTE: u64 = 8;

/// After much waste, the reader must consume this many windows before it doubles.
const MOST_PATIENCE: u64 = 64;

/// A number of bytes that doubles each time the reader has consumed as many, up to a limit, and is halved when what it brought
/// is wasted. Each time that happens it doubles half as often, so that it settles at what there is room for.
#[derive(Debug)]
pub(super) struct Window {
    size: u64,
    least: u64,
    /// Bytes that the reader took since the size last changed.
    consumed: u64,
    /// How many windows it must take before the next is twice as large.
    patience: u64,
    stats: Arc<PrefetchStats>,
    /// The stats when the size last changed.
    seen: Account,
}

impl Window {
    /// A window of `size` bytes that will not shrink below `least`.
    pub(super) fn new(size: u64, least: u64) -> Self {
        Self { size, least, consumed: 0, patience: 1, stats: Arc::default(), seen: Account::default() }
    }

    /// Bytes to be ahead of the reader.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Where the outcome of the fetches is to be written.
    pub(super) fn stats(&self) -> &Arc<PrefetchStats> {
        &self.stats
    }

    /// The reader took `bytes`; the window may be `limit` bytes at most now.
    pub(super) fn consume(&mut self, bytes: u64, limit: u64) {
        self.consumed += bytes;
        let account = self.stats.account();
        let new = account.since(self.seen);
        if new.wasted * WASTE > new.used {
            self.size = (self.size / 2).max(self.least);
            self.patience = (self.patience * 2).min(MOST_PATIENCE);
        } else if self.consumed >= self.size.saturating_mul(self.patience) {
            self.size *= 2;
        } else {
            self.size = self.size.min(limit);
            return;
        }
        self.size = self.size.min(limit);
        self.consumed = 0;
        self.seen = account;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_when_used_up_and_is_halved_when_wasted() {
        let mut window = Window::new(8, 2);
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
        assert_eq!(window.size(), 2, "it has become careful");
        (0..1000).for_each(|_| window.consume(64, 100));
        assert_eq!(window.size(), 100);
        window.consume(1, 10);
        assert_eq!(window.size(), 10, "a limit that falls is kept");
    }
}
