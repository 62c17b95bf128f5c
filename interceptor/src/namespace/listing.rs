//! The entries of a directory as one reader of it sees them: a snapshot that grows while the filer streams it.
//!
//! An entry's place in the snapshot never changes, so it can be the offset of `readdir`, and all handles that share a
//! snapshot agree on offsets. The upper half of an offset is the snapshot's id: the kernel builds its cached copy of a
//! directory by appending what continues the offset it has, and so cannot mix two snapshots.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::filer::{FilerFailure, NamespaceError};
use crate::seaweed::entry::Entry;

/// A snapshot of a directory, complete or still growing.
pub(crate) struct Listing {
    id: u32,
    entries: Mutex<Entries>,
    grown: Notify,
    /// Whether a handle reads it; one that only warms the cache may be given up.
    wanted: AtomicBool,
}

#[derive(Default)]
struct Entries {
    list: Vec<Arc<Entry>>,
    end: Option<Result<(), FilerFailure>>,
}

/// Some entries of a listing, in order.
pub(crate) struct Batch {
    /// The entries; empty only at the end of the directory.
    pub(crate) entries: Vec<Arc<Entry>>,
}

/// How many entries one look at a listing copies: enough for a reply of the largest size the kernel asks for today.
const BATCH: usize = 1024;

impl Listing {
    /// An empty snapshot; `id` is unique among those of the mount and below 2^31, since offsets are signed.
    pub(super) fn new(id: u32) -> Arc<Self> {
        Arc::new(Self {
            id: id & 0x7fff_ffff,
            entries: Mutex::default(),
            grown: Notify::new(),
            wanted: AtomicBool::new(false),
        })
    }

    pub(super) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    pub(super) fn push(&self, more: &[Arc<Entry>]) {
        self.entries.lock().list.extend_from_slice(more);
        self.grown.notify_waiters();
    }

    pub(super) fn finish(&self, end: Result<(), FilerFailure>) {
        self.entries.lock().end = Some(end);
        self.grown.notify_waiters();
    }

    pub(super) fn len(&self) -> usize {
        self.entries.lock().list.len()
    }

    /// Whether an entry will cease to exist by itself, so that a copy of the listing would be wrong by then.
    pub(super) fn expires(&self) -> bool {
        self.entries.lock().list.iter().any(|entry| entry.expires.is_some())
    }

    /// The names of entries that share their content with others.
    pub(super) fn linked_names(&self) -> Vec<String> {
        let linked = |entry: &&Arc<Entry>| entry.hard_link.is_some();
        self.entries.lock().list.iter().filter(linked).map(|entry| entry.name.clone()).collect()
    }

    /// A number that no other snapshot of the mount has.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The place of the entry `name`, if it has been sent. Filers list in the order of the names' bytes.
    pub(crate) fn place_of(&self, name: &str) -> Option<usize> {
        self.entries.lock().list.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()
    }

    /// The entries at `places`, as far as they exist and have been sent.
    pub(crate) fn at(&self, places: Range<usize>) -> Vec<Arc<Entry>> {
        let entries = self.entries.lock();
        let end = places.end.min(entries.list.len());
        entries.list.get(places.start..end).unwrap_or_default().to_vec()
    }

    /// The offset that continues after the first `count` places.
    pub(crate) fn offset_after(&self, count: usize) -> u64 {
        u64::from(self.id) << 32 | count as u64
    }

    /// How many places an offset is past the beginning.
    pub(crate) fn places(offset: u64) -> usize {
        (offset & 0xffff_ffff) as usize
    }

    /// The entries from `index` on that are there; `None` if the filer has yet to send them.
    pub(crate) fn try_batch(&self, index: usize) -> Option<Result<Batch, NamespaceError>> {
        let entries = self.entries.lock();
        let rest = entries.list.get(index..).unwrap_or_default();
        if !rest.is_empty() {
            return Some(Ok(Batch { entries: rest[..rest.len().min(BATCH)].to_vec() }));
        }
        match entries.end.as_ref()? {
            Ok(()) => Some(Ok(Batch { entries: Vec::new() })),
            Err(failure) => Some(Err(NamespaceError::Filer(failure.clone()))),
        }
    }

    /// Like [`try_batch`](Self::try_batch), waiting for the filer.
    pub(crate) async fn batch(&self, index: usize) -> Result<Batch, NamespaceError> {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            if let Some(batch) = self.try_batch(index) {
                return batch;
            }
            grown.await;
        }
    }
}
