//! Prefetches small files for readers that go through many of them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Namespace, NodeId};
use crate::prefetch::{Epochs, Walks};
use crate::read::{PrefetchReason, Reader};

/// The order in which small files are read. Its methods are to be called from within the runtime.
pub(crate) struct NextFilePrefetcher {
    walks: Mutex<Walks>,
    epochs: Mutex<Epochs>,
}

impl NextFilePrefetcher {
    /// Knows no order yet. The files are fetched by `reader`.
    pub(crate) fn new(reader: &Reader) -> Self {
        let (capacity, budget) = reader.room_for_epochs();
        Self { walks: Mutex::default(), epochs: Mutex::new(Epochs::new(capacity, budget)) }
    }

    /// Notes that a small file is used, and starts to fetch the next files of its directory.
    /// Returns whether there were any.
    pub(crate) fn follow_walk(&self, namespace: &Namespace, reader: &Arc<Reader>, node: NodeId) -> bool {
        let Some((listing, index)) = namespace.listing_index(node) else { return false };
        let (ahead, stats) = {
            let mut walks = self.walks.lock();
            (walks.observe(listing.id().into(), index), walks.stats().clone())
        };
        let (expected, next) = (PrefetchReason::NextFile(stats), listing.range(ahead));
        for entry in &next {
            if reader.prefetch_small_file(entry.as_ref(), &expected).is_none() {
                break;
            }
        }
        !next.is_empty()
    }

    /// Notes that a small file is read from its beginning, and whether it was in memory, and
    /// starts to fetch the files that the epoch reads next. Opening a file without reading it says
    /// nothing about epochs.
    pub(crate) fn follow_epoch(
        &self,
        namespace: &Namespace,
        reader: &Arc<Reader>,
        node: NodeId,
        size: u64,
        hit: bool,
    ) {
        let (capacity, budget) = reader.room_for_epochs();
        let (files, stats) = {
            let mut epochs = self.epochs.lock();
            // Resident files take room from the cache, and give it back.
            epochs.resize(capacity, budget);
            epochs.answered(hit);
            (epochs.observe(node, size), epochs.stats().clone())
        };
        let expected = PrefetchReason::Epoch(stats);
        for file in files {
            // A file that the kernel has forgotten, or that has changed, is skipped. If its number
            // was reused, another file is fetched in vain.
            let fetched = match namespace.named_entry(file) {
                Some(entry) => reader.prefetch_small_file(entry.as_ref(), &expected),
                None => Some(0),
            };
            match fetched {
                Some(bytes) => self.epochs.lock().fetching(file, bytes),
                None => return self.epochs.lock().declined(file),
            }
        }
    }
}
