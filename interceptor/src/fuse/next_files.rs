//! Fetches small files before they are opened, for readers that go through many of them.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::namespace::{Namespace, NodeId};
use crate::prefetch::{Epochs, Walks};
use crate::read::{Expected, Reader};

/// What is known of the order in which small files are read.
pub(super) struct NextFiles {
    walks: Mutex<Walks>,
    epochs: Mutex<Epochs>,
}

impl NextFiles {
    /// Nothing yet, for files that go through `reader`.
    pub(super) fn new(reader: &Reader) -> Self {
        Self { walks: Mutex::default(), epochs: Mutex::new(reader.epochs()) }
    }

    /// Takes note that a small file is read from its beginning, and starts to fetch those that are expected to be next. To be called
    /// from within the runtime.
    pub(super) fn follow(&self, namespace: &Namespace, reader: &Arc<Reader>, node: NodeId) {
        if let Some((listing, place)) = namespace.place(node) {
            let ahead = self.walks.lock().observe(listing.id().into(), place);
            for entry in listing.at(ahead) {
                if reader.fetch_small_file(&entry, &Expected::NextFile).is_none() {
                    break;
                }
            }
        }
        let Some(entry) = namespace.named_entry(node) else { return };
        let (files, ledger) = {
            let mut epochs = self.epochs.lock();
            (epochs.observe(node, entry.attr.size), epochs.ledger().clone())
        };
        let expected = Expected::Epoch(ledger);
        for file in files {
            // A file that the kernel has forgotten or that has changed is not what it was.
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

    /// Takes note of whether the first read of a small file was answered from memory.
    pub(super) fn answered(&self, hit: bool) {
        self.epochs.lock().answered(hit);
    }
}
