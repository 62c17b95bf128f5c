//! The entries of a directory as one reader of it sees them: a snapshot that grows while the filer streams it.
//!
//! An entry's place in the snapshot never changes, so it can be the offset of `readdir`, and all handles that share a
//! snapshot agree on offsets. The upper half of an offset is the snapshot's id: the kernel builds its cached copy of a
//! directory by appending what continues the offset it has, and so cannot mix two snapshots.
//!
//! Listings have a budget of memory. One that would need more is cut off: its handles read on [page by page](super::tail).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ChangeStamp;
use super::filer::{FilerFailure, NamespaceError};
use crate::seaweed::entry::Entry;

/// The memory of all listings of a mount: those that handles read, and those that are kept for others.
pub(super) struct ListingBudget {
    used: AtomicUsize,
    limit: usize,
}

impl ListingBudget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// Whether so much is free that it will do for a while.
    pub(super) fn is_below_watermark(&self) -> bool {
        self.used() <= self.limit / 4 * 3
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A snapshot of a directory: complete, still growing, or cut off where memory was used up.
pub(crate) struct Listing {
    id: u32,
    budget: Arc<ListingBudget>,
    entries: Mutex<ListingEntries>,
    grown: Notify,
    /// Whether a handle reads it; one that only warms the cache may be given up.
    has_reader: AtomicBool,
}

#[derive(Default)]
struct ListingEntries {
    list: Vec<Arc<Entry>>,
    /// About how much memory they take.
    bytes: usize,
    end: Option<ListingEnd>,
}

/// How a listing ended.
pub(super) enum ListingEnd {
    /// There is no more in the directory.
    Complete,
    /// There is more, which [`ListingTail`](super::tail::ListingTail) reads.
    Truncated,
    Failed(FilerFailure),
}

/// Some entries of a directory, in order; none only at its end.
pub(crate) struct EntryBatch {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// When the filer told of them, if they are not remembered.
    pub(crate) stamp: Option<ChangeStamp>,
}

/// What a listing has at a place.
pub(crate) enum ListingRead {
    Batch(EntryBatch),
    /// It was cut off before.
    Truncated,
}

/// How many entries one look at a listing copies: enough for a reply of the largest size the kernel asks for today.
const MAX_BATCH_ENTRIES: usize = 1024;

impl Listing {
    /// An empty snapshot; `id` is unique among those of the mount and below 2^31, since offsets are signed.
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

    /// Whether it may grow: there is memory, of which it leaves others a quarter.
    pub(super) fn has_room(&self) -> bool {
        self.budget.used() < self.budget.limit && self.entries.lock().bytes < self.budget.limit / 4 * 3
    }

    pub(super) fn finish(&self, end: ListingEnd) {
        self.entries.lock().end = Some(end);
        self.grown.notify_waiters();
    }

    /// The name that its last entry has, or none.
    pub(super) fn last_name(&self) -> Option<String> {
        self.entries.lock().list.last().map(|entry| entry.name.clone())
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
    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.entries.lock().list.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()
    }

    /// The entries at `range`, as far as they exist and have been sent.
    pub(crate) fn range(&self, range: Range<usize>) -> Vec<Arc<Entry>> {
        let entries = self.entries.lock();
        let end = range.end.min(entries.list.len());
        entries.list.get(range.start..end).unwrap_or_default().to_vec()
    }

    /// The offset that continues after the first `count` places.
    pub(crate) fn offset_after(&self, count: usize) -> u64 {
        u64::from(self.id) << 32 | count as u64
    }

    /// How many places an offset is past the beginning.
    pub(crate) fn index_at(offset: u64) -> usize {
        (offset & 0xffff_ffff) as usize
    }

    /// The entries from `index` on that are there; `None` if the filer has yet to send them.
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

    /// Like [`try_batch`](Self::try_batch), waiting for the filer.
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

impl Drop for Listing {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.entries.get_mut().bytes, Ordering::Relaxed);
    }
}
