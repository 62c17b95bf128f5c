//! What entries need of the cache while they live.

use std::sync::Arc;

use super::arena::Arena;
use super::key::BlockKey;
use super::policy::Policy;
use super::sync::{AtomicU64, Mutex, Ordering};
use super::uses::Uses;

/// Arena, policy and counters. It knows none of the entries, so there is no cycle of owners.
pub(super) struct BlockContext {
    pub(super) arena: Arc<Arena>,
    pub(super) policy: Mutex<Box<dyn Policy<BlockKey>>>,
    pub(super) uses: Uses,
    /// Bytes of blocks outside of the arena.
    heap: AtomicU64,
}

impl BlockContext {
    /// With nothing in it.
    pub(super) fn new(arena: Arc<Arena>, policy: Box<dyn Policy<BlockKey>>) -> Arc<Self> {
        let policy = Mutex::new(policy);
        Arc::new(Self { arena, policy, uses: Uses::default(), heap: AtomicU64::new(0) })
    }

    /// The memory.
    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Has the policy know, sooner or later, that a block was used.
    pub(super) fn note_use(&self, key: BlockKey) {
        self.uses.note(key, &self.policy);
    }

    /// Whether somebody waits for memory.
    pub(super) fn is_waited_for(&self) -> bool {
        self.arena.room().is_waited_for()
    }

    /// Wakes those who wait for memory.
    pub(super) fn announce(&self) {
        self.arena.room().announce();
    }

    /// Counts bytes taken outside of the arena.
    pub(super) fn heap_taken(&self, bytes: usize) {
        self.heap.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts them as given back.
    pub(super) fn heap_freed(&self, bytes: usize) {
        self.heap.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes outside of the arena now.
    pub(super) fn heap(&self) -> u64 {
        self.heap.load(Ordering::Relaxed)
    }
}
