//! Where bytes land: memory of the connection that they are copied from, or the caller's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::registration::Registered;
use crate::client::Destination;
use crate::memory::Memory;
use crate::verbs::{
    LocalMemory, MemoryAccess, Pages, ProtectionDomain, RegisteredBuffer, VerbsError, WorkError,
};

/// Bytes of one slot of the bounce memory.
pub(super) const SLOT: usize = 512 << 10;

/// Slots of a connection.
const SLOTS: usize = 8;

/// Registered memory of a connection for what was asked for into memory that is not registered.
pub(super) struct Bounce {
    free: Mutex<Vec<RegisteredBuffer>>,
    slots: Arc<Semaphore>,
}

impl Bounce {
    pub(super) fn new(domain: &Arc<ProtectionDomain>) -> Result<Arc<Self>, VerbsError> {
        let pages = Pages::new(SLOT * SLOTS).map_err(|source| VerbsError::Call { call: "mmap", source })?;
        let free = domain.register(pages, MemoryAccess::Local)?.into_slot().split_every(SLOT);
        Ok(Arc::new(Self { slots: Arc::new(Semaphore::new(free.len())), free: Mutex::new(free) }))
    }

    /// A slot that is free, at once or not at all.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<Bounced> {
        self.slots.clone().try_acquire_owned().ok().and_then(|permit| self.taken(permit))
    }

    /// A slot, when one is free.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Bounced> {
        self.slots.clone().acquire_owned().await.ok().and_then(|permit| self.taken(permit))
    }

    fn taken(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Option<Bounced> {
        let slot = self.free.lock().pop()?;
        Some(Bounced { slot: Some(slot), length: SLOT, bounce: self.clone(), _permit: permit })
    }
}

/// A slot of the bounce memory, free again when it is dropped.
pub(super) struct Bounced {
    slot: Option<RegisteredBuffer>,
    /// How many of its bytes are used.
    pub(super) length: usize,
    bounce: Arc<Bounce>,
    _permit: OwnedSemaphorePermit,
}

impl Bounced {
    /// What has landed in it.
    pub(super) fn bytes(&self) -> &[u8] {
        self.slot.as_ref().map_or(&[], |slot| &slot[..self.length])
    }
}

impl Drop for Bounced {
    fn drop(&mut self) {
        // Before the permit, whose next holder takes it.
        self.bounce.free.lock().extend(self.slot.take());
    }
}

/// A caller's memory, within a region that it has registered.
pub(super) struct Direct {
    memory: Box<dyn Destination>,
    length: usize,
    region: Arc<Registered>,
}

impl Direct {
    /// The first `length` bytes of `memory`; `None` if it has less, or does not lie within the region.
    pub(super) fn new(memory: Box<dyn Destination>, length: usize, region: &Arc<Registered>) -> Option<Self> {
        let fits = length <= memory.length() && within(region, &*memory);
        fits.then(|| Self { memory, length, region: region.clone() })
    }

    pub(super) fn into_memory(self) -> Box<dyn Destination> {
        self.memory
    }
}

/// Whether the memory lies in the region.
fn within(region: &Registered, memory: &dyn Destination) -> bool {
    let first = region.memory().start() as usize;
    let start = memory.start() as usize;
    start >= first && start + memory.length() <= first + region.memory().length()
}

/// Memory of either kind.
pub(super) enum Ground {
    Bounced(Bounced),
    Direct(Direct),
}

/// What comes of a READ: the memory, with the outcome.
pub(super) type Landed = (Ground, Result<(), WorkError>);

/// Memory that was posted, and who waits for it.
pub(super) struct Landing {
    ground: Ground,
    waiting: oneshot::Sender<Landed>,
    /// The connection's count of READs that have come.
    count: Arc<AtomicU64>,
    /// Room in the send queue.
    _place: OwnedSemaphorePermit,
}

impl Landing {
    pub(super) fn new(
        ground: Ground,
        place: OwnedSemaphorePermit,
        count: &Arc<AtomicU64>,
    ) -> (Self, oneshot::Receiver<Landed>) {
        let (waiting, landed) = oneshot::channel();
        (Self { ground, waiting, count: count.clone(), _place: place }, landed)
    }

    /// The READ has ended.
    pub(super) fn arrived(self, outcome: Result<(), WorkError>) {
        if outcome.is_ok() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        // If nobody waits any more, the memory is free.
        let _ = self.waiting.send((self.ground, outcome));
    }
}

// SAFETY: a slot is registered and has one owner. A direct range lies within its region, which is registered and held here, and `Destination` promises that nobody
// else touches it as long as it lives, which is as long as this does.
unsafe impl LocalMemory for Landing {
    fn start(&self) -> *mut u8 {
        match &self.ground {
            Ground::Bounced(bounced) => {
                bounced.slot.as_ref().map_or(std::ptr::null_mut(), LocalMemory::start)
            }
            Ground::Direct(direct) => direct.memory.start(),
        }
    }

    fn length(&self) -> usize {
        match &self.ground {
            Ground::Bounced(bounced) => bounced.length,
            Ground::Direct(direct) => direct.length,
        }
    }

    fn lkey(&self) -> u32 {
        match &self.ground {
            Ground::Bounced(bounced) => bounced.slot.as_ref().map_or(0, LocalMemory::lkey),
            Ground::Direct(direct) => direct.region.lkey(),
        }
    }
}
