//! What blocks need of the cache while they live.

use std::sync::Arc;

use super::access_buffer::AccessBuffer;
use super::arena::Arena;
use super::key::BlockKey;
use super::policy::Policy;
use super::sync::{AtomicU64, Mutex, Ordering};

/// Arena, policy and counters. Owns no block, so there is no cycle of owners.
pub(super) struct BlockContext {
    pub(super) arena: Arc<Arena>,
    pub(super) policy: Mutex<Box<dyn Policy<BlockKey>>>,
    pub(super) access_buffer: AccessBuffer,
    /// Bytes of blocks outside the arena.
    heap: AtomicU64,
    /// Bytes of the arena that blocks cannot have. Changed with the policy locked.
    ceded: AtomicU64,
}

impl BlockContext {
    /// The context of the blocks in `arena`.
    pub(super) fn new(arena: Arc<Arena>, policy: Box<dyn Policy<BlockKey>>) -> Arc<Self> {
        Arc::new(Self {
            arena,
            policy: Mutex::new(policy),
            access_buffer: AccessBuffer::default(),
            heap: AtomicU64::new(0),
            ceded: AtomicU64::new(0),
        })
    }

    /// Changes how many bytes of the arena blocks cannot have, and tells the policy.
    pub(super) fn adapt_capacity(&self, change: impl FnOnce(u64) -> u64) {
        let mut policy = self.policy.lock();
        let ceded = change(self.ceded());
        self.ceded.store(ceded, Ordering::Relaxed);
        policy.set_capacity(self.arena.capacity().saturating_sub(ceded));
    }

    /// Bytes of the arena that blocks cannot have.
    pub(super) fn ceded(&self) -> u64 {
        self.ceded.load(Ordering::Relaxed)
    }

    /// Has the policy learn, sooner or later, that a block was used.
    pub(super) fn record_use(&self, key: BlockKey) {
        self.access_buffer.record(key, &self.policy);
    }

    /// Whether a fetch waits for memory.
    pub(super) fn has_waiters(&self) -> bool {
        !self.arena.waiters().is_empty()
    }

    /// Wakes the fetches that wait for memory.
    pub(super) fn wake_waiters(&self) {
        self.arena.waiters().wake();
    }

    /// Counts bytes allocated outside the arena.
    pub(super) fn add_heap(&self, bytes: usize) {
        self.heap.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts them as freed.
    pub(super) fn remove_heap(&self, bytes: usize) {
        self.heap.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes outside the arena now.
    pub(super) fn heap(&self) -> u64 {
        self.heap.load(Ordering::Relaxed)
    }
}
