//! Finds blocks by key, and makes room for new ones.
//!
//! The index is a map in shards, each behind a reader-writer lock that is held for a lookup only. A pin is an owner of
//! the entry's `Arc` besides the index itself. New pins come from the index, under its lock, or from other pins; so a
//! writer who finds the index to be the only owner knows that nobody reads the block and nobody can begin to, and only
//! then takes it away.
//!
//! Every change (publish, evict, remove) is made under the policy's lock, so index, policy and the owners noted in the
//! arena agree whenever that lock is free. Hits never take it. Locks are taken in this order: policy, shard, arena.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::{FixedState, RandomState};

use super::arena::{Arena, Class, Slot};
use super::block::{Entry, Memory, Readable};
use super::context::BlockContext;
use super::key::BlockKey;
use super::policy::{Arrival, Look, Policy, Warmth};
use super::sync::RwLock;

/// Number of shards.
const SHARDS: usize = 64;
/// How many candidates are considered if none of them leaves just the room that is wanted.
const CONSIDERED: usize = 16;
/// How often eviction begins again because others were faster.
const ATTEMPTS: usize = 4;
/// Blocks of this size are read by several requests; one in the middle of being read is spared for a while.
const READ_IN_PIECES: usize = 256 << 10;

type Shard = RwLock<HashMap<BlockKey, Arc<Entry>, RandomState>>;

/// See the module's documentation.
pub(super) struct Index {
    shards: Box<[Shard]>,
    hasher: FixedState,
    context: Arc<BlockContext>,
}

impl Index {
    /// An empty index of what is in `arena`.
    pub(super) fn new(arena: Arc<Arena>, policy: Box<dyn Policy<BlockKey>>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: FixedState::default(),
            context: BlockContext::new(arena, policy),
        }
    }

    /// What the entries share.
    pub(super) fn context(&self) -> &Arc<BlockContext> {
        &self.context
    }

    /// The most that unread blocks should take, in bytes.
    pub(super) fn unread_limit(&self) -> u64 {
        self.context.policy.lock().unread_limit()
    }

    /// Has the policy reckon with `capacity` bytes for blocks.
    pub(super) fn set_capacity(&self, capacity: u64) {
        self.context.policy.lock().set_capacity(capacity);
    }

    fn shard(&self, key: &BlockKey) -> &Shard {
        // The map uses the same hash function with another seed, so the shards' maps fill evenly.
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// The block under `key`, pinned.
    pub(super) fn get(&self, key: &BlockKey) -> Option<Readable> {
        let entry = self.shard(key).read().get(key).cloned();
        entry.map(Readable::pin)
    }

    /// Whether there is a block under `key`.
    pub(super) fn contains(&self, key: &BlockKey) -> bool {
        self.shard(key).read().contains_key(key)
    }

    /// Puts a filled block where it is found. Returns the one that is there already, if there is.
    pub(super) fn publish(&self, entry: Arc<Entry>) -> Readable {
        let Memory::Slot(slot) = &entry.memory else { return Readable::pin(entry) };
        let key = entry.key;
        let arrival = if entry.is_unread() { Arrival::Ahead } else { Arrival::Demanded };
        let mut policy = self.context.policy.lock();
        self.context.uses.bring(&mut **policy);
        let mut shard = self.shard(&key).write();
        if let Some(present) = shard.get(&key) {
            return Readable::pin(present.clone());
        }
        shard.insert(key, entry.clone());
        drop(shard);
        slot.set_owner(Some(key));
        policy.admit(key, slot.class().size(), arrival);
        if entry.is_kept() {
            policy.promote(&key);
        }
        drop(policy);
        Readable::pin(entry)
    }

    /// Takes a block away, whatever the policy thinks of it. Who has pinned it keeps it. Returns whether it was there.
    pub(super) fn remove(&self, key: &BlockKey) -> bool {
        self.withdraw(key, |policy| policy.forget(key))
    }

    /// Takes a block away that has served its purpose for now. Who has pinned it keeps it.
    pub(super) fn give_up(&self, key: &BlockKey) {
        self.withdraw(key, |policy| policy.evict(key));
    }

    fn withdraw(&self, key: &BlockKey, leave: impl FnOnce(&mut dyn Policy<BlockKey>)) -> bool {
        let mut policy = self.context.policy.lock();
        let entry = self.shard(key).write().remove(key);
        leave(&mut **policy);
        if let Some(Memory::Slot(slot)) = entry.as_ref().map(|entry| &entry.memory) {
            slot.set_owner(None);
        }
        drop(policy);
        entry.is_some()
    }

    /// Tells the policy that a block is hot.
    pub(super) fn promote(&self, key: &BlockKey) {
        self.context.policy.lock().promote(key);
    }

    /// A slot of `len` bytes, for which others leave if they must.
    pub(super) fn allocate(&self, len: usize) -> Option<Slot> {
        if let Some(slot) = self.context.arena.allocate(len) {
            return Some(slot);
        }
        let mut policy = self.context.policy.lock();
        self.context.uses.bring(&mut **policy);
        for _ in 0..ATTEMPTS {
            for key in self.choose(&mut **policy, Class::of(len))? {
                if let Some(entry) = self.take(&key) {
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

    /// Takes a block out of its shard unless somebody has pinned it.
    fn take(&self, key: &BlockKey) -> Option<Arc<Entry>> {
        let mut shard = self.shard(key).write();
        Arc::get_mut(shard.get_mut(key)?)?;
        shard.remove(key)
    }

    /// Looks for the cheapest set of blocks whose leaving makes room for a slot of `class`.
    fn choose(&self, policy: &mut dyn Policy<BlockKey>, class: Class) -> Option<Vec<BlockKey>> {
        let mut choices: Vec<Vec<BlockKey>> = Vec::new();
        let mut seen: HashSet<BlockKey, RandomState> = HashSet::default();
        policy.candidates(&mut |candidate| {
            let shard = self.shard(&candidate.key).read();
            let Some(entry) = shard.get(&candidate.key) else { return Look::Next };
            let Memory::Slot(slot) = &entry.memory else { return Look::Next };
            let in_use = Arc::strong_count(entry) > 1;
            let spared = candidate.recent && entry.memory.len() >= READ_IN_PIECES && entry.is_under_way();
            if in_use || spared {
                return Look::InUse;
            }
            seen.insert(candidate.key);
            let Some(leaving) = self.context.arena.neighbours(slot, class) else { return Look::Next };
            drop(shard);
            // What takes an odd number of units may leave some over that are of no use to others of its size.
            if !leaving.contains(&candidate.key) {
                return Look::Next;
            }
            if leaving.len() > 1 && leaving.iter().any(|key| self.is_pinned(key)) {
                return Look::Next;
            }
            let alone = leaving == [candidate.key];
            choices.push(leaving);
            if alone || choices.len() == CONSIDERED { Look::Stop } else { Look::Next }
        });
        // What is as cold as the last candidate should leave anyway; only what would leave before its time is a cost.
        let cost = |leaving: &Vec<BlockKey>| -> u64 {
            let early = leaving.iter().filter(|key| !seen.contains(*key));
            let each = early.map(|key| match policy.warmth(key) {
                // Somebody is about to come for an unread one.
                Warmth::Hot | Warmth::Unread => 4 * self.weight(key),
                Warmth::Cold => self.weight(key),
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

    /// Bytes of blocks that somebody has pinned. Looks at every block.
    pub(super) fn pinned(&self) -> u64 {
        let bytes = |shard: &Shard| -> u64 {
            let shard = shard.read();
            let pinned = shard.values().filter(|entry| Arc::strong_count(entry) > 1);
            pinned.map(|entry| entry.memory.len() as u64).sum()
        };
        self.shards.iter().map(bytes).sum()
    }
}
