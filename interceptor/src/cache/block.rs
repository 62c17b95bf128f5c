//! Published blocks and the pins that keep them.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use super::arena::Slot;
use super::context::BlockContext;
use super::key::BlockKey;
use super::pass::Pass;
use super::sync::{AtomicBool, AtomicUsize, Ordering};

/// Is told, once for each block that was fetched before it was asked for, that it is there, and later whether that paid.
pub trait PrefetchOutcome: fmt::Debug + Send + Sync {
    /// The block of `bytes` bytes was fetched.
    fn fetched(&self, bytes: usize);
    /// A reader used the block of `bytes` bytes.
    fn used(&self, bytes: usize);
    /// The block of `bytes` bytes was dropped unread.
    fn wasted(&self, bytes: usize);
}

/// Where the bytes of a block are.
#[derive(Debug)]
pub(super) enum Memory {
    /// In the arena.
    Slot(Slot),
    /// In the allocator's memory, because the arena had no room. Such a block is never found in the index.
    Heap(Heap),
}

impl Memory {
    /// `len` bytes outside of the arena.
    pub(super) fn heap(len: usize, context: &Arc<BlockContext>) -> Self {
        context.heap_taken(len);
        Memory::Heap(Heap { bytes: vec![0; len], context: context.clone() })
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Memory::Slot(slot) => slot,
            Memory::Heap(heap) => &heap.bytes,
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Slot(slot) => slot,
            Memory::Heap(heap) => &mut heap.bytes,
        }
    }
}

/// Memory outside of the arena, which is counted as long as it lives.
pub(super) struct Heap {
    bytes: Vec<u8>,
    context: Arc<BlockContext>,
}

impl Drop for Heap {
    fn drop(&mut self) {
        self.context.heap_freed(self.bytes.len());
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// A filled block. Lives as long as the index or a [`Readable`] holds it; its memory is free again after that.
pub(super) struct Entry {
    pub(super) key: BlockKey,
    pub(super) memory: Memory,
    pass: Pass,
    /// Set while the block was fetched on speculation and nobody has read it.
    unread: AtomicBool,
    /// Set when somebody has asked for the block to be there, so that having been read once is no reason to give it up.
    kept: AtomicBool,
    outcome: Option<Arc<dyn PrefetchOutcome>>,
    /// How many bytes sequential readers have taken.
    streamed: AtomicUsize,
    context: Arc<BlockContext>,
}

impl Entry {
    /// A block that was just filled; with `outcome`, on speculation.
    pub(super) fn new(
        key: BlockKey,
        memory: Memory,
        outcome: Option<Arc<dyn PrefetchOutcome>>,
        context: Arc<BlockContext>,
    ) -> Self {
        if let Some(outcome) = &outcome {
            outcome.fetched(memory.len());
        }
        Self {
            key,
            memory,
            pass: Pass::default(),
            unread: AtomicBool::new(outcome.is_some()),
            kept: AtomicBool::new(false),
            outcome,
            streamed: AtomicUsize::new(0),
            context,
        }
    }

    /// Whether it was fetched on speculation and nobody has read it.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Whether somebody has asked for it to be there.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// Somebody asks for it to be there.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Whether somebody seems to be in the middle of reading it.
    pub(super) fn is_under_way(&self) -> bool {
        self.pass.is_under_way(self.memory.len())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(outcome) = &self.outcome
            && self.is_unread()
        {
            outcome.wasted(self.memory.len());
        }
    }
}

/// The bytes of a block, which stay where and as they are while this is held; a clone is another such pin.
///
/// Only reading compiles:
/// ```compile_fail
/// fn change(block: interceptor::cache::Readable) {
///     block[0] = 1;
/// }
/// ```
pub struct Readable {
    /// Always there until the drop.
    entry: Option<Arc<Entry>>,
}

impl Readable {
    pub(super) fn pin(entry: Arc<Entry>) -> Self {
        Self { entry: Some(entry) }
    }

    /// Notes that a reader was given `range` of the block. That settles the outcome of a prefetch, and tells the policy
    /// if it is a new use rather than more of the same pass over the block.
    pub fn mark_read(&self, range: &Range<usize>) {
        let entry = self.entry();
        let first = entry.is_unread() && entry.unread.swap(false, Ordering::Relaxed);
        if first && let Some(outcome) = &entry.outcome {
            outcome.used(entry.memory.len());
        }
        if entry.pass.note(range, entry.memory.len()) || first {
            entry.context.note_use(entry.key);
        }
    }

    /// Notes that a stream has read `bytes` of the block, and says whether these were the last of it.
    pub(super) fn stream(&self, bytes: usize) -> bool {
        let entry = self.entry();
        let (before, len) = (entry.streamed.fetch_add(bytes, Ordering::Relaxed), entry.memory.len());
        before < len && before + bytes >= len
    }

    /// Whether the bytes are in the arena, and so in memory that a device may know.
    pub fn in_arena(&self) -> bool {
        matches!(self.entry().memory, Memory::Slot(_))
    }

    pub(super) fn entry(&self) -> &Arc<Entry> {
        self.entry.as_ref().expect("a pin has its block until it is dropped")
    }
}

impl Clone for Readable {
    fn clone(&self) -> Self {
        Self { entry: self.entry.clone() }
    }
}

impl Deref for Readable {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.entry().memory
    }
}

impl Drop for Readable {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take()
            && entry.context.is_waited_for()
        {
            // The pin must be gone before the waiters look.
            let context = entry.context.clone();
            drop(entry);
            context.announce();
        }
    }
}

impl fmt::Debug for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = self.entry();
        f.debug_struct("Readable").field("key", &entry.key).field("len", &entry.memory.len()).finish()
    }
}
