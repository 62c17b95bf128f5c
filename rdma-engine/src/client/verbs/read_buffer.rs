//! Where the bytes of a READ arrive: in a bounce buffer, from which they are copied, or in the
//! caller's own memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::registered_parts::RegisteredPart;
use crate::client::destination::LentDestination;
use crate::memory::Memory;
use crate::verbs::{
    LocalMemory, MemoryAccess, Pages, ProtectionDomain, RegisteredBuffer, VerbsError, WorkError,
};

/// Bytes of one bounce buffer.
pub(super) const BOUNCE_BUFFER_SIZE: usize = 512 << 10;

/// Bounce buffers of a connection.
const BOUNCE_BUFFERS: usize = 8;

/// The bounce buffers of a connection, for reads into memory that is not registered.
pub(super) struct BouncePool {
    free: Mutex<Vec<RegisteredBuffer>>,
    permits: Arc<Semaphore>,
}

impl BouncePool {
    pub(super) fn new(domain: &Arc<ProtectionDomain>) -> Result<Arc<Self>, VerbsError> {
        let pages = Pages::new(BOUNCE_BUFFER_SIZE * BOUNCE_BUFFERS)
            .map_err(|source| VerbsError::Call { call: "mmap", source })?;
        let region = domain.register(pages, MemoryAccess::Local)?;
        let free = region.into_buffer().split_every(BOUNCE_BUFFER_SIZE);
        Ok(Arc::new(Self { permits: Arc::new(Semaphore::new(free.len())), free: Mutex::new(free) }))
    }

    /// A buffer, if one is free now.
    pub(super) fn try_take(self: &Arc<Self>) -> Option<BounceBuffer> {
        self.permits.clone().try_acquire_owned().ok().and_then(|permit| self.take_with(permit))
    }

    /// Waits for a free buffer.
    pub(super) async fn take(self: &Arc<Self>) -> Option<BounceBuffer> {
        self.permits.clone().acquire_owned().await.ok().and_then(|permit| self.take_with(permit))
    }

    fn take_with(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Option<BounceBuffer> {
        let buffer = self.free.lock().pop()?;
        let length = BOUNCE_BUFFER_SIZE;
        Some(BounceBuffer { buffer: Some(buffer), length, pool: self.clone(), _permit: permit })
    }
}

/// A buffer of the pool; dropping it frees it.
pub(super) struct BounceBuffer {
    buffer: Option<RegisteredBuffer>,
    /// How many of its bytes are used.
    pub(super) length: usize,
    pool: Arc<BouncePool>,
    _permit: OwnedSemaphorePermit,
}

impl BounceBuffer {
    /// The bytes that a READ has brought.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[..self.length])
    }
}

impl Drop for BounceBuffer {
    fn drop(&mut self) {
        // Before the permit is released, whose next holder takes a buffer.
        self.pool.free.lock().extend(self.buffer.take());
    }
}

/// A caller's memory, within a part that is registered.
pub(super) struct DirectBuffer {
    memory: Box<dyn LentDestination>,
    length: usize,
    part: Arc<RegisteredPart>,
}

impl DirectBuffer {
    /// The first `length` bytes of `memory`; `None` if it has fewer, or does not lie within the
    /// part.
    pub(super) fn new(
        memory: Box<dyn LentDestination>,
        length: usize,
        part: Arc<RegisteredPart>,
    ) -> Option<Self> {
        let first = part.memory().start() as usize;
        let start = memory.start() as usize;
        let lies_within = start >= first && start + memory.length() <= first + part.memory().length();
        (length <= memory.length() && lies_within).then(|| Self { memory, length, part })
    }
}

/// The memory of one READ.
pub(super) enum ReadBuffer {
    Bounce(BounceBuffer),
    Direct(DirectBuffer),
}

/// The outcome of a READ, with the bounce buffer if it went to one.
pub(super) type ReadResult = Result<Option<BounceBuffer>, WorkError>;

/// A READ that is posted: its memory, and where its outcome goes.
pub(super) struct PendingRead {
    buffer: ReadBuffer,
    outcome: oneshot::Sender<ReadResult>,
    /// The connection's count of READs that have succeeded.
    succeeded: Arc<AtomicU64>,
    /// Room in the send queue.
    _permit: OwnedSemaphorePermit,
}

impl PendingRead {
    pub(super) fn new(
        buffer: ReadBuffer,
        permit: OwnedSemaphorePermit,
        succeeded: &Arc<AtomicU64>,
    ) -> (Self, oneshot::Receiver<ReadResult>) {
        let (sender, outcome) = oneshot::channel();
        (Self { buffer, outcome: sender, succeeded: succeeded.clone(), _permit: permit }, outcome)
    }

    /// The device is done with the READ. The memory goes back to the reader, before the outcome;
    /// after an error it is dropped.
    pub(super) fn complete(self, outcome: Result<(), WorkError>) {
        let outcome = outcome.map(|()| {
            self.succeeded.fetch_add(1, Ordering::Relaxed);
            match self.buffer {
                ReadBuffer::Bounce(buffer) => Some(buffer),
                ReadBuffer::Direct(DirectBuffer { memory, part, .. }) => {
                    // The part first: when the reader has its memory back, the part is not in use.
                    drop(part);
                    memory.give_back();
                    None
                }
            }
        });
        // If the read was dropped, the buffer is free.
        let _ = self.outcome.send(outcome);
    }
}

// SAFETY: a bounce buffer is registered and has one owner. A direct buffer lies within its part,
// which is registered and held here. Its owner is the `LentDestination` in it, whose contract is
// that nothing else touches the memory as long as it lives, which is as long as this does.
unsafe impl LocalMemory for PendingRead {
    fn start(&self) -> *mut u8 {
        match &self.buffer {
            ReadBuffer::Bounce(bounce) => {
                bounce.buffer.as_ref().map_or(std::ptr::null_mut(), LocalMemory::start)
            }
            ReadBuffer::Direct(direct) => direct.memory.start(),
        }
    }

    fn length(&self) -> usize {
        match &self.buffer {
            ReadBuffer::Bounce(bounce) => bounce.length,
            ReadBuffer::Direct(direct) => direct.length,
        }
    }

    fn lkey(&self) -> u32 {
        match &self.buffer {
            ReadBuffer::Bounce(bounce) => bounce.buffer.as_ref().map_or(0, LocalMemory::lkey),
            ReadBuffer::Direct(direct) => direct.part.lkey(),
        }
    }
}
