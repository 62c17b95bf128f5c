//! Memory that a fetch writes to, before anybody can read it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::block::{BlockKey, Entry, Memory, PrefetchOutcome, Readable};
use super::index::Index;

/// Memory for one block, exclusively, until it is [published](Filling::publish). Dropping it instead, because the fetch
/// failed, makes the memory free again; nobody will have seen it.
///
/// What was published cannot be written any more:
/// ```compile_fail
/// fn late(mut filling: interceptor::cache::Filling) {
///     let block = filling.publish();
///     filling[0] = 1;
/// }
/// ```
/// And it cannot be in two hands:
/// ```compile_fail
/// fn share(filling: interceptor::cache::Filling) {
///     let other = filling.clone();
/// }
/// ```
pub struct Filling {
    key: BlockKey,
    memory: Memory,
    outcome: Option<Arc<dyn PrefetchOutcome>>,
    keep: bool,
    index: Arc<Index>,
    /// The share of the fill budget, given back when the fetch is over.
    _share: Option<OwnedSemaphorePermit>,
}

impl Filling {
    pub(super) fn new(
        key: BlockKey,
        memory: Memory,
        outcome: Option<Arc<dyn PrefetchOutcome>>,
        index: Arc<Index>,
        share: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { key, memory, outcome, keep: false, index, _share: share }
    }

    /// The same, for a block that shall stay when it is there.
    pub(super) fn kept(mut self) -> Self {
        self.keep = true;
        self
    }

    /// Makes the bytes readable, by everyone who looks for the key if they are in the arena. If the block is there
    /// already, that one is returned.
    pub fn publish(self) -> Readable {
        let Self { key, memory, outcome, keep, index, _share } = self;
        let entry = Arc::new(Entry::new(key, memory, outcome, index.core().clone()));
        if keep {
            entry.keep();
        }
        index.publish(entry)
    }

    /// Whether the bytes are in the arena; otherwise publishing makes them readable only to who holds the result.
    pub fn in_arena(&self) -> bool {
        matches!(self.memory, Memory::Slot(_))
    }
}

impl Deref for Filling {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory
    }
}

impl DerefMut for Filling {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Slot(slot) => slot,
            Memory::Heap(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").field("key", &self.key).field("len", &self.memory.len()).finish()
    }
}
