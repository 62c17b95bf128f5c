//! Memory that a fetch writes to, before anybody can read it.

use std::any::Any;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use rdma_engine::client::Destination;
use tokio::sync::OwnedSemaphorePermit;

use super::arena::Slot;
use super::block::{Entry, Memory, PrefetchOutcome, Readable};
use super::index::Index;
use super::key::BlockKey;
use crate::write_target::WriteTarget;

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
        let entry = Arc::new(Entry::new(key, memory, outcome, index.context().clone()));
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
        &mut self.memory
    }
}

impl WriteTarget for Filling {
    fn bytes(&mut self) -> &mut [u8] {
        self
    }

    fn length(&self) -> usize {
        self.memory.len()
    }

    /// Memory outside of the arena stands in until the slot comes back. If it never does, that is what is published, and the slot is free when the device is done.
    fn detach(&mut self) -> Option<Box<dyn Destination>> {
        if !self.in_arena() {
            return None;
        }
        let stand_in = Memory::heap(self.memory.len(), self.index.context());
        match mem::replace(&mut self.memory, stand_in) {
            Memory::Slot(slot) => Some(Box::new(Lent(slot))),
            Memory::Heap(_) => None,
        }
    }

    fn reattach(&mut self, memory: Box<dyn Destination>) {
        let memory: Box<dyn Any> = memory;
        if let Ok(lent) = memory.downcast::<Lent>() {
            self.memory = Memory::Slot(lent.0);
        }
    }
}

/// A slot in the hands of a device, or of whoever waits for it.
struct Lent(Slot);

// SAFETY: the slot's range lies within the arena's region, which is mapped, and was zeroed, as long as the slot lives; it is the slot's alone, and nobody refers to it
// while the slot is in here.
unsafe impl Destination for Lent {
    fn start(&self) -> *mut u8 {
        self.0.start()
    }

    fn length(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").field("key", &self.key).field("len", &self.memory.len()).finish()
    }
}
