//! Memory that a fetch writes to, before it becomes a block that readers find.

use std::any::Any;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use rdma_engine::client::Destination;
use tokio::sync::OwnedSemaphorePermit;

use super::arena::Slot;
use super::block::{BlockEntry, BlockMemory, PinnedBlock, PrefetchObserver};
use super::index::BlockIndex;
use super::key::BlockKey;
use crate::write_target::WriteTarget;

/// Exclusive memory for one block until it is [published](BlockWriter::publish). If it is dropped
/// instead, because the fetch failed, the memory is free again and no reader has seen it.
///
/// What was published cannot be written any more:
/// ```compile_fail
/// fn late(mut writer: interceptor::cache::BlockWriter) {
///     let block = writer.publish();
///     writer[0] = 1;
/// }
/// ```
/// And it has one owner:
/// ```compile_fail
/// fn share(writer: interceptor::cache::BlockWriter) {
///     let other = writer.clone();
/// }
/// ```
pub struct BlockWriter {
    key: BlockKey,
    memory: BlockMemory,
    observer: Option<Arc<dyn PrefetchObserver>>,
    tag: u8,
    retain: bool,
    index: Arc<BlockIndex>,
    /// Permit of the fill budget, returned when the fetch is over.
    _permit: Option<OwnedSemaphorePermit>,
}

impl BlockWriter {
    pub(super) fn new(
        key: BlockKey,
        memory: BlockMemory,
        observer: Option<Arc<dyn PrefetchObserver>>,
        index: Arc<BlockIndex>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { key, memory, observer, tag: 0, retain: false, index, _permit: permit }
    }

    /// The same, for a block that warm-up asks for.
    pub(super) fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    /// Sets what [`PinnedBlock::tag`] returns; 0 unless it is set.
    pub fn set_tag(&mut self, tag: u8) {
        self.tag = tag;
    }

    /// Makes the bytes readable. If they are in the arena, every reader that looks for the key
    /// finds them. If the block is there already, that one is returned.
    pub fn publish(self) -> PinnedBlock {
        let Self { key, memory, observer, tag, retain, index, _permit } = self;
        let entry = Arc::new(BlockEntry::new(key, memory, observer, tag, index.context().clone()));
        index.publish(entry, retain)
    }

    /// Whether the bytes are in the arena. If they are not, publishing makes them readable only by
    /// way of the pin that it returns.
    pub fn in_arena(&self) -> bool {
        matches!(self.memory, BlockMemory::Slot(_))
    }
}

impl Deref for BlockWriter {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory
    }
}

impl DerefMut for BlockWriter {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

impl WriteTarget for BlockWriter {
    fn bytes(&mut self) -> &mut [u8] {
        self
    }

    fn length(&self) -> usize {
        self.memory.len()
    }

    /// Heap memory stands in until the slot comes back. If it never does, the heap memory is what
    /// is published, and the slot is free when the device is done with it.
    fn detach(&mut self) -> Option<Box<dyn Destination>> {
        if !self.in_arena() {
            return None;
        }
        let stand_in = BlockMemory::heap(self.memory.len(), self.index.context());
        match mem::replace(&mut self.memory, stand_in) {
            BlockMemory::Slot(slot) => Some(Box::new(DetachedSlot(slot))),
            BlockMemory::Heap(_) => None,
        }
    }

    fn reattach(&mut self, memory: Box<dyn Destination>) {
        let memory: Box<dyn Any> = memory;
        if let Ok(detached) = memory.downcast::<DetachedSlot>() {
            self.memory = BlockMemory::Slot(detached.0);
        }
    }
}

/// A slot that a device writes to.
struct DetachedSlot(Slot);

// SAFETY: the slot's range lies within the arena's region, which is mapped, and was zeroed, as
// long as the slot lives. The range belongs to the slot alone, and there is no reference to it
// while the slot is in here.
unsafe impl Destination for DetachedSlot {
    fn start(&self) -> *mut u8 {
        self.0.start()
    }

    fn length(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for BlockWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockWriter").field("key", &self.key).field("len", &self.memory.len()).finish()
    }
}
