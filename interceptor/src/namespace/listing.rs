//! A snapshot of a directory, which grows while the filer streams it.
//!
//! The index of an entry in the snapshot never changes, so it serves as the offset of `readdir`,
//! and all handles that share a snapshot agree on offsets. The upper half of an offset is the
//! snapshot's id: the kernel builds its cached copy of a directory by appending what continues its
//! current offset, so it cannot mix two snapshots.
//!
//! Listings have a memory budget. One that would exceed it is truncated, and its handles read on
//! [page by page](super::tail).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ChangeStamp;
use super::filer::{FilerFailure, NamespaceError};
use crate::seaweed::entry::Entry;

/// The memory budget of all listings of a mount, in progress or kept for other readers.
pub(super) struct ListingBudget {
    used: AtomicUsize,
    limit: usize,
}

impl ListingBudget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// Whether at least a quarter of the budget is free.
    pub(super) fn is_below_watermark(&self) -> bool {
        self.used() <= self.limit / 4 * 3
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A snapshot of a directory: complete, still growing, or truncated for lack of memory.
pub(crate) struct DirectoryListing {
    id: u32,
    budget: Arc<ListingBudget>,
    entries: Mutex<ListingEntries>,
    grown: Notify,
    /// Whether a handle reads it; a listing that only warms the cache may be given up.
    has_reader: AtomicBool,
}

#[derive(Default)]
struct ListingEntries {
    list: Vec<Arc<Entry>>,
    /// Their approximate memory in bytes.
    bytes: usize,
    end: Option<ListingEnd>,
}

/// How a listing ended.
pub(super) enum ListingEnd {
    /// It has all entries.
    Complete,
    /// [`ListingTail`](super::tail::ListingTail) reads the rest.
    Truncated,
    Failed(FilerFailure),
}

/// Consecutive entries of a directory; empty only at the end.
pub(crate) struct EntryBatch {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// The state of the directory that they are current for, if they are not cached.
    pub(crate) stamp: Option<ChangeStamp>,
}

/// What a listing has at an index.
pub(crate) enum ListingRead {
    Batch(EntryBatch),
    /// The listing was truncated before this index.
    Truncated,
}

/// The largest number of entries in a batch: enough for the largest reply that kernels ask for
/// today.
const MAX_BATCH_ENTRIES: usize = 1024;

impl DirectoryListing {
    /// An empty snapshot; `id` is unique in the mount. Its upper bit is dropped, since offsets are
    /// signed.
    pub(super) fn new(id: u32, budget: Arc<ListingBudget>) -> Arc<Self> {
        Arc::new(Self {
            id: id & 0x7fff_ffff,
            budget,
            entries: Mutex::default(),
            grown: Notify::new(),
            has_reader: AtomicBool::new(false),
        })
    }

    pub(super) fn set_has_reader(&self) {
        self.has_reader.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_reader(&self) -> bool {
        self.has_reader.load(Ordering::Relaxed)
    }

    pub(super) fn push(&self, more: &[Arc<Entry>]) {
        let bytes = more.iter().map(|entry| entry.memory() + size_of::<Arc<Entry>>()).sum::<usize>();
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        {
            let mut entries = self.entries.lock();
            entries.bytes += bytes;
            entries.list.extend_from_slice(more);
        }
        self.grown.notify_waiters();
    }

    /// Whether it may grow: the budget has room, of which one listing takes at most three
    /// quarters.
    pub(super) fn has_room(&self) -> bool {
        self.budget.used() < self.budget.limit && self.entries.lock().bytes < self.budget.limit / 4 * 3
    }

    pub(super) fn finish(&self, end: ListingEnd) {
        self.entries.lock().end = Some(end);
        self.grown.notify_waiters();
    }

    /// The name of its last entry.
    pub(super) fn last_name(&self) -> Option<String> {
        self.entries.lock().list.last().map(|entry| entry.name.clone())
    }

    pub(super) fn len(&self) -> usize {
        self.entries.lock().list.len()
    }

    /// Whether an entry has a time to live, so that a cached copy of the listing would become
    /// wrong.
    pub(super) fn expires(&self) -> bool {
        self.entries.lock().list.iter().any(|entry| entry.expires.is_some())
    }

    /// The names of hard-linked entries.
    pub(super) fn linked_names(&self) -> Vec<String> {
        let linked = |entry: &&Arc<Entry>| entry.hard_link.is_some();
        self.entries.lock().list.iter().filter(linked).map(|entry| entry.name.clone()).collect()
    }

    /// The id, which no other snapshot of the mount has.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The index of the entry `name`, if the filer has sent it. Filers sort by the bytes of names.
    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.entries.lock().list.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()
    }

    /// The entries in `range` that exist and have been sent.
    pub(crate) fn range(&self, range: Range<usize>) -> Vec<Arc<Entry>> {
        let entries = self.entries.lock();
        let end = range.end.min(entries.list.len());
        entries.list.get(range.start..end).unwrap_or_default().to_vec()
    }

    /// The offset of what follows the first `count` entries.
    pub(crate) fn offset_after(&self, count: usize) -> u64 {
        u64::from(self.id) << 32 | count as u64
    }

    /// The index that an offset stands for.
    pub(crate) fn index_at(offset: u64) -> usize {
        (offset & 0xffff_ffff) as usize
    }

    /// The entries from `index` on that are in memory; `None` if the filer has yet to send them.
    pub(crate) fn try_batch(&self, index: usize) -> Option<Result<ListingRead, NamespaceError>> {
        let entries = self.entries.lock();
        let rest = entries.list.get(index..).unwrap_or_default();
        if !rest.is_empty() {
            let entries = rest[..rest.len().min(MAX_BATCH_ENTRIES)].to_vec();
            return Some(Ok(ListingRead::Batch(EntryBatch { entries, stamp: None })));
        }
        Some(match entries.end.as_ref()? {
            ListingEnd::Complete => Ok(ListingRead::Batch(EntryBatch { entries: Vec::new(), stamp: None })),
            ListingEnd::Truncated => Ok(ListingRead::Truncated),
            ListingEnd::Failed(failure) => Err(NamespaceError::Filer(failure.clone())),
        })
    }

    /// Like [`try_batch`](Self::try_batch), but waits for the filer.
    pub(crate) async fn batch(&self, index: usize) -> Result<ListingRead, NamespaceError> {
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

impl Drop for DirectoryListing {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.entries.get_mut().bytes, Ordering::Relaxed);
    }
}
