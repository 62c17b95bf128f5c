//! Fetches small files before they are opened, for readers that go through many of them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Namespace, NodeId};
use crate::prefetch::{Epochs, Walks};
use crate::read::{Expected, Reader};

/// What is known of the order in which small files are read. Its methods are to be called from within the runtime.
pub(crate) struct NextFilePrefetcher {
    walks: Mutex<Walks>,
    epochs: Mutex<Epochs>,
}

impl NextFilePrefetcher {
    /// Nothing yet, for files that go through `reader`.
    pub(crate) fn new(reader: &Reader) -> Self {
        let (capacity, budget) = reader.room_for_epochs();
        Self { walks: Mutex::default(), epochs: Mutex::new(Epochs::new(capacity, budget)) }
    }

    /// Takes note that a small file is used, and starts to fetch those that are next in its directory. Returns whether some were next.
    pub(crate) fn follow_walk(&self, namespace: &Namespace, reader: &Arc<Reader>, node: NodeId) -> bool {
        let Some((listing, index)) = namespace.listing_index(node) else { return false };
        let (ahead, ledger) = {
            let mut walks = self.walks.lock();
            (walks.observe(listing.id().into(), index), walks.ledger().clone())
        };
        let (expected, next) = (Expected::NextFile(ledger), listing.range(ahead));
        for entry in &next {
            if reader.fetch_small_file(entry, &expected).is_none() {
                break;
            }
        }
        !next.is_empty()
    }

    /// Takes note that a small file is read from its beginning, and whether it was in memory, and starts to fetch those whose turn
    /// comes. Who opens a file and does not read it says nothing about epochs.
    pub(crate) fn follow_epoch(
        &self,
        namespace: &Namespace,
        reader: &Arc<Reader>,
        node: NodeId,
        size: u64,
        hit: bool,
    ) {
        let (capacity, budget) = reader.room_for_epochs();
        let (files, ledger) = {
            let mut epochs = self.epochs.lock();
            // Resident files come and go.
            epochs.resize(capacity, budget);
            epochs.answered(hit);
            (epochs.observe(node, size), epochs.ledger().clone())
        };
        let expected = Expected::Epoch(ledger);
        for file in files {
            // A file that the kernel has forgotten or that has changed is not what it was. Another that has its number by now
            // is fetched in vain.
            let fetched = match namespace.named_entry(file) {
                Some(entry) => reader.fetch_small_file(&entry, &expected),
                None => Some(0),
            };
            match fetched {
                Some(bytes) => self.epochs.lock().fetching(file, bytes),
                None => return self.epochs.lock().declined(file),
            }
        }
    }
}
