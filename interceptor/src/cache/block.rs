//! Published blocks and the pins that keep them.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use super::arena::Slot;
use super::context::BlockContext;
use super::key::BlockKey;
use super::pass_tracker::PassTracker;
use super::sync::{AtomicBool, Ordering};

/// Receives the fate of prefetched blocks: for each block one call that it was fetched, and later
/// one call that it was used or wasted.
pub trait PrefetchObserver: fmt::Debug + Send + Sync {
    /// The block of `bytes` bytes was fetched.
    fn fetched(&self, bytes: usize);
    /// A reader used the block of `bytes` bytes.
    fn used(&self, bytes: usize);
    /// The block of `bytes` bytes was dropped unread.
    fn wasted(&self, bytes: usize);
}

/// Where the bytes of a block are.
#[derive(Debug)]
pub(super) enum BlockMemory {
    /// In the arena.
    Slot(Slot),
    /// On the heap, because the arena had no room. Such a block is never found in the index.
    Heap(HeapMemory),
}

impl BlockMemory {
    /// `len` bytes on the heap.
    pub(super) fn heap(len: usize, context: &Arc<BlockContext>) -> Self {
        context.add_heap(len);
        BlockMemory::Heap(HeapMemory { bytes: vec![0; len], context: context.clone() })
    }
}

impl Deref for BlockMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            BlockMemory::Slot(slot) => slot,
            BlockMemory::Heap(heap) => &heap.bytes,
        }
    }
}

impl DerefMut for BlockMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            BlockMemory::Slot(slot) => slot,
            BlockMemory::Heap(heap) => &mut heap.bytes,
        }
    }
}

/// Memory outside the arena, counted while it lives.
pub(super) struct HeapMemory {
    bytes: Vec<u8>,
    context: Arc<BlockContext>,
}

impl Drop for HeapMemory {
    fn drop(&mut self) {
        self.context.remove_heap(self.bytes.len());
    }
}

impl fmt::Debug for HeapMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapMemory").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// A filled block. Its memory is free again when neither the index nor a [`PinnedBlock`] owns it.
pub(super) struct BlockEntry {
    pub(super) key: BlockKey,
    pub(super) memory: BlockMemory,
    tag: u8,
    pass_tracker: PassTracker,
    /// Set from a speculative fetch to the first read.
    unread: AtomicBool,
    observer: Option<Arc<dyn PrefetchObserver>>,
    context: Arc<BlockContext>,
}

impl BlockEntry {
    /// A block that was just filled; with `observer`, on speculation.
    pub(super) fn new(
        key: BlockKey,
        memory: BlockMemory,
        observer: Option<Arc<dyn PrefetchObserver>>,
        tag: u8,
        context: Arc<BlockContext>,
    ) -> Self {
        if let Some(observer) = &observer {
            observer.fetched(memory.len());
        }
        Self {
            key,
            memory,
            tag,
            pass_tracker: PassTracker::default(),
            unread: AtomicBool::new(observer.is_some()),
            observer,
            context,
        }
    }

    /// Whether it was fetched on speculation and has not been read yet.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Whether a pass over it has begun and has not come to its end: a reader is probably in it.
    pub(super) fn is_partially_read(&self) -> bool {
        self.pass_tracker.is_partial(self.memory.len())
    }
}

impl Drop for BlockEntry {
    fn drop(&mut self) {
        if let Some(observer) = &self.observer
            && self.is_unread()
        {
            observer.wasted(self.memory.len());
        }
    }
}

/// The bytes of a block, which neither move nor change while this lives. A clone is another pin.
///
/// Only reading compiles:
/// ```compile_fail
/// fn change(block: interceptor::cache::PinnedBlock) {
///     block[0] = 1;
/// }
/// ```
pub struct PinnedBlock {
    /// Present until the drop.
    entry: Option<Arc<BlockEntry>>,
}

impl PinnedBlock {
    pub(super) fn pin(entry: Arc<BlockEntry>) -> Self {
        Self { entry: Some(entry) }
    }

    /// Records that a reader was given `range` of the block. That settles the outcome of a
    /// prefetch. The policy is told if the read is a new use of the block rather than more of the
    /// same pass over it. Returns whether the block was used before that.
    pub fn mark_read(&self, range: &Range<usize>) -> bool {
        let entry = self.entry();
        let is_first = entry.is_unread() && entry.unread.swap(false, Ordering::Relaxed);
        if is_first && let Some(observer) = &entry.observer {
            observer.used(entry.memory.len());
        }
        let is_new_pass = entry.pass_tracker.record(range, entry.memory.len());
        if is_new_pass || is_first {
            entry.context.record_use(entry.key);
        }
        is_new_pass && !is_first
    }

    /// What its writer has noted of it, which means nothing to the cache.
    pub fn tag(&self) -> u8 {
        self.entry().tag
    }

    /// Whether a pass over the block has come to its end.
    pub fn is_read_through(&self) -> bool {
        self.entry().pass_tracker.is_whole(self.entry().memory.len())
    }

    /// Whether the bytes are in the arena, and so in memory that can be registered with a device.
    pub fn in_arena(&self) -> bool {
        matches!(self.entry().memory, BlockMemory::Slot(_))
    }

    pub(super) fn entry(&self) -> &Arc<BlockEntry> {
        self.entry.as_ref().expect("a pin has its block until it is dropped")
    }
}

impl Clone for PinnedBlock {
    fn clone(&self) -> Self {
        Self { entry: self.entry.clone() }
    }
}

impl Deref for PinnedBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.entry().memory
    }
}

impl Drop for PinnedBlock {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take()
            && entry.context.has_waiters()
        {
            // The pin must be gone before the waiters try again.
            let context = entry.context.clone();
            drop(entry);
            context.wake_waiters();
        }
    }
}

impl fmt::Debug for PinnedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = self.entry();
        f.debug_struct("PinnedBlock").field("key", &entry.key).field("len", &entry.memory.len()).finish()
    }
}
