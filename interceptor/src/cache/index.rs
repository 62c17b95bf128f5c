//! Finds blocks by key, and makes room for new ones.
//!
//! The index is a map in shards, each behind a reader-writer lock that is held for a lookup only.
//! A pin is an owner of the entry's `Arc` besides the index. New pins come from the index, under
//! the shard's lock, or from other pins. So if a thread that holds the write lock finds the index
//! to be the only owner, the block is not being read and cannot be pinned meanwhile, and only then
//! may it be evicted.
//!
//! Every change (publish, evict, remove) is made under the policy's lock, so index, policy and the
//! owners noted in the arena agree whenever that lock is free. Hits never take it. Lock order:
//! policy, shard, arena.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::{FixedState, RandomState};

use super::arena::{Arena, SizeClass, Slot};
use super::block::{BlockEntry, BlockMemory, PinnedBlock};
use super::context::BlockContext;
use super::key::BlockKey;
use super::policy::{AdmitReason, Policy, Scan, Temperature};
use super::sync::RwLock;

/// Number of shards.
const SHARDS: usize = 64;
/// How many sets of victims are compared if no single block frees the room that is needed.
const MAX_VICTIM_SETS: usize = 16;
/// How often an allocation evicts again because other threads took the room.
const MAX_ALLOCATE_ATTEMPTS: usize = 4;
/// Bytes of the smallest block that readers read in several requests. One that is in the middle of
/// being read is spared for a while.
const MULTI_REQUEST_BLOCK_SIZE: usize = 256 << 10;

/// Whether memory may be freed by eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictionMode {
    /// Take free memory only.
    FreeOnly,
    /// Evict what the policy ranks lowest, however hot that is.
    Evict,
}

type Shard = RwLock<HashMap<BlockKey, Arc<BlockEntry>, RandomState>>;

/// See the module's documentation.
pub(super) struct BlockIndex {
    shards: Box<[Shard]>,
    hasher: FixedState,
    context: Arc<BlockContext>,
}

impl BlockIndex {
    /// An empty index of what is in `arena`.
    pub(super) fn new(arena: Arc<Arena>, policy: Box<dyn Policy<BlockKey>>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: FixedState::default(),
            context: BlockContext::new(arena, policy),
        }
    }

    /// What the blocks share.
    pub(super) fn context(&self) -> &Arc<BlockContext> {
        &self.context
    }

    /// The memory.
    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.context.arena
    }

    /// The most that unread blocks should take, in bytes.
    pub(super) fn unread_limit(&self) -> u64 {
        self.context.policy.lock().unread_limit()
    }

    /// Tells the policy that blocks cannot have `bytes` of the arena from now on.
    pub(super) fn cede(&self, bytes: u64) {
        self.context.adapt_capacity(|ceded| ceded + bytes);
    }

    /// Tells the policy that blocks can have `bytes` again that were [ceded](Self::cede).
    pub(super) fn regain(&self, bytes: u64) {
        self.context.adapt_capacity(|ceded| ceded - bytes);
    }

    /// Bytes of the arena that blocks cannot have.
    pub(super) fn ceded(&self) -> u64 {
        self.context.ceded()
    }

    fn shard(&self, key: &BlockKey) -> &Shard {
        // The map uses the same hash function with another seed, so the shards' maps fill evenly.
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// The block under `key`, pinned.
    pub(super) fn get(&self, key: &BlockKey) -> Option<PinnedBlock> {
        let entry = self.shard(key).read().get(key).cloned();
        entry.map(PinnedBlock::pin)
    }

    /// Whether there is a block under `key`.
    pub(super) fn contains(&self, key: &BlockKey) -> bool {
        self.shard(key).read().contains_key(key)
    }

    /// Makes a filled block findable, and counts it as hot if it is `retained`. If there is a block
    /// under the key already, returns that one.
    pub(super) fn publish(&self, entry: Arc<BlockEntry>, retained: bool) -> PinnedBlock {
        let BlockMemory::Slot(slot) = &entry.memory else { return PinnedBlock::pin(entry) };
        let key = entry.key;
        let reason = if entry.is_unread() { AdmitReason::Prefetch } else { AdmitReason::Demand };
        let mut policy = self.context.policy.lock();
        self.context.access_buffer.flush(&mut **policy);
        let mut shard = self.shard(&key).write();
        if let Some(present) = shard.get(&key) {
            return PinnedBlock::pin(present.clone());
        }
        shard.insert(key, entry.clone());
        drop(shard);
        slot.set_owner(Some(key));
        policy.admit(key, slot.class().size(), reason);
        if retained {
            policy.mark_hot(&key);
        }
        drop(policy);
        PinnedBlock::pin(entry)
    }

    /// Takes a block away, and has the policy forget it. Existing pins keep its bytes. Returns
    /// whether it was there.
    pub(super) fn remove(&self, key: &BlockKey) -> bool {
        let mut policy = self.context.policy.lock();
        let entry = self.shard(key).write().remove(key);
        policy.forget(key);
        if let Some(BlockMemory::Slot(slot)) = entry.as_ref().map(|entry| &entry.memory) {
            slot.set_owner(None);
        }
        drop(policy);
        entry.is_some()
    }

    /// Whether the block was evicted too early, as its return shows.
    pub(super) fn is_missed(&self, key: &BlockKey) -> bool {
        self.context.policy.lock().is_missed(key)
    }

    /// Tells the policy that a block is hot.
    pub(super) fn mark_hot(&self, key: &BlockKey) {
        self.context.policy.lock().mark_hot(key);
    }

    /// A slot of `len` bytes, for which other blocks are evicted if need be.
    pub(super) fn allocate(&self, len: usize) -> Option<Slot> {
        if let Some(slot) = self.context.arena.allocate(len) {
            return Some(slot);
        }
        let mut policy = self.context.policy.lock();
        self.context.access_buffer.flush(&mut **policy);
        for _ in 0..MAX_ALLOCATE_ATTEMPTS {
            for key in self.choose_victims(&mut **policy, SizeClass::of(len))? {
                if let Some(entry) = self.take_unpinned(&key) {
                    policy.evict(&key);
                    drop(entry);
                }
            }
            if let Some(slot) = self.context.arena.allocate(len) {
                return Some(slot);
            }
        }
        None
    }

    /// Takes a block out of its shard unless it is pinned.
    fn take_unpinned(&self, key: &BlockKey) -> Option<Arc<BlockEntry>> {
        let mut shard = self.shard(key).write();
        Arc::get_mut(shard.get_mut(key)?)?;
        shard.remove(key)
    }

    /// The cheapest set of blocks whose eviction makes room for a slot of `class`.
    fn choose_victims(&self, policy: &mut dyn Policy<BlockKey>, class: SizeClass) -> Option<Vec<BlockKey>> {
        let mut choices: Vec<Vec<BlockKey>> = Vec::new();
        let mut seen: HashSet<BlockKey, RandomState> = HashSet::default();
        policy.scan_candidates(&mut |candidate| {
            let shard = self.shard(&candidate.key).read();
            let Some(entry) = shard.get(&candidate.key) else { return Scan::Continue };
            let BlockMemory::Slot(slot) = &entry.memory else { return Scan::Continue };
            let is_pinned = Arc::strong_count(entry) > 1;
            let is_spared = candidate.is_recent
                && entry.memory.len() >= MULTI_REQUEST_BLOCK_SIZE
                && entry.is_partially_read();
            if is_pinned || is_spared {
                return Scan::InUse;
            }
            seen.insert(candidate.key);
            let Some(victims) = self.context.arena.blockers(slot, class) else { return Scan::Continue };
            drop(shard);
            // A run starts at a multiple of its alignment. If it is shorter than that (3 units of
            // 4), it does not cover a candidate in the units behind it.
            if !victims.contains(&candidate.key) {
                return Scan::Continue;
            }
            if victims.len() > 1 && victims.iter().any(|key| self.is_pinned(key)) {
                return Scan::Continue;
            }
            let is_single = victims == [candidate.key];
            choices.push(victims);
            if is_single || choices.len() == MAX_VICTIM_SETS { Scan::Stop } else { Scan::Continue }
        });
        // Blocks that the scan has passed are as cold as the last candidate: evicting them costs
        // nothing. Only a block that is evicted before its time is a cost.
        let cost = |victims: &Vec<BlockKey>| -> u64 {
            let early = victims.iter().filter(|key| !seen.contains(*key));
            let each = early.map(|key| match policy.temperature(key) {
                // A reader is about to come for an unread one.
                Temperature::Hot | Temperature::Unread => 4 * self.weight(key),
                Temperature::Cold => self.weight(key),
            });
            each.sum()
        };
        match choices.len() {
            0 | 1 => choices.pop(),
            _ => choices.into_iter().min_by_key(cost),
        }
    }

    fn is_pinned(&self, key: &BlockKey) -> bool {
        self.shard(key).read().get(key).is_none_or(|entry| Arc::strong_count(entry) > 1)
    }

    fn weight(&self, key: &BlockKey) -> u64 {
        self.shard(key).read().get(key).map_or(0, |entry| entry.memory.len() as u64)
    }

    /// Bytes of pinned blocks. Visits every block.
    pub(super) fn pinned(&self) -> u64 {
        let bytes = |shard: &Shard| -> u64 {
            let shard = shard.read();
            let pinned = shard.values().filter(|entry| Arc::strong_count(entry) > 1);
            pinned.map(|entry| entry.memory.len() as u64).sum()
        };
        self.shards.iter().map(bytes).sum()
    }
}
