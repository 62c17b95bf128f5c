//! LIRS for entries of different weights, with a cold share and second chances that can be set
//! while it runs.
//!
//! S. Jiang and X. Zhang, *LIRS: An Efficient Low Inter-reference Recency Set Replacement Policy
//! to Improve Buffer Cache Performance*, SIGMETRICS 2002. An entry is *hot* (LIR) if it was used
//! twice within the time that the coldest hot entry has gone unused. The *stack* holds entries in
//! the order of their last use, down to the coldest hot one. Among them are evicted entries
//! (*ghosts*), so that a second use soon after eviction is noticed. All other present entries are
//! *cold* (HIR) and wait in a queue, from the front of which they are evicted. A scan passes
//! through the queue and leaves the hot entries alone.
//!
//! What is added to the paper:
//! * The share of memory for cold entries is a parameter. At 1 % this is the LIRS of the paper;
//!   towards 100 % it is LRU.
//! * A hot entry may earn *second chances*: each use is one chance, up to a limit, to return to
//!   the top of the stack instead of turning cold, as in generalised CLOCK. With a limit of 0 this
//!   is the LIRS of the paper; a few chances tell frequent entries from lucky ones.
//! * Prefetched entries are *unread* until their first use and wait in a queue of their own. They
//!   are evicted when neither the cold queue nor the hot entries yield memory. But the oldest
//!   unread entry goes first if unread entries exceed a quarter of the memory, or if it has waited
//!   while as many bytes came in as the cache holds.
//! * Ghosts are bounded, by weight: half as much again as what the cache holds.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

use super::list::{Linked, Links, List, NONE, NodePool};
use super::{AdmitReason, EvictionCandidate, Policy, Scan, Temperature};

/// List kind of the stack.
const STACK: usize = 0;
/// List kind of the queues of cold entries, unread entries and ghosts.
const QUEUE: usize = 1;
/// How many entries of one list a scan shows before it goes on to the next list.
const MAX_SHOWN: usize = 128;
/// How many entries of the stack a scan passes in search of hot ones.
const MAX_STACK_STEPS: usize = 4096;

/// The parameters that can change while the policy runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LirsParams {
    /// Share of the memory for cold entries, above 0 and below 1.
    pub cold_share: f64,
    /// How many second chances a hot entry can have at a time.
    pub max_chances: u8,
}

impl LirsParams {
    /// Nearly those of the paper: what a cache begins with.
    pub const INITIAL: Self = Self { cold_share: 0.02, max_chances: 0 };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryState {
    Hot,
    Cold,
    Unread,
    Ghost,
}

#[derive(Debug)]
struct LirsEntry<K> {
    key: K,
    weight: u64,
    state: EntryState,
    on_stack: bool,
    chances: u8,
    /// The clock when it was last used or prefetched.
    used_at: u64,
    links: [Links; 2],
}

impl<K> Linked for LirsEntry<K> {
    fn links(&self, kind: usize) -> &Links {
        &self.links[kind]
    }

    fn links_mut(&mut self, kind: usize) -> &mut Links {
        &mut self.links[kind]
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Lirs<K> {
    capacity: u64,
    params: LirsParams,
    nodes: NodePool<LirsEntry<K>>,
    index: HashMap<K, u32, RandomState>,
    stack: List<STACK>,
    cold: List<QUEUE>,
    unread: List<QUEUE>,
    ghosts: List<QUEUE>,
    hot_weight: u64,
    unread_weight: u64,
    ghost_weight: u64,
    /// Weight of all entries that are present.
    weight: u64,
    entries: usize,
    /// How much was present lately when memory was needed: less than the capacity, because of
    /// fetches in flight and of gaps between entries.
    usable_capacity: u64,
    /// Bytes admitted so far.
    clock: u64,
}

impl<K: Copy + Eq + Hash + Send + std::fmt::Debug> Lirs<K> {
    /// A policy for a cache of `capacity` bytes.
    pub fn new(capacity: u64, params: LirsParams) -> Self {
        Self {
            capacity,
            params,
            nodes: NodePool::default(),
            index: HashMap::default(),
            stack: List::default(),
            cold: List::default(),
            unread: List::default(),
            ghosts: List::default(),
            hot_weight: 0,
            unread_weight: 0,
            ghost_weight: 0,
            weight: 0,
            entries: 0,
            usable_capacity: capacity,
            clock: 0,
        }
    }

    /// Changes the parameters.
    pub fn set_params(&mut self, params: LirsParams) {
        self.params = params;
        self.demote_excess();
    }

    /// Weight of all entries that are present, in bytes.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Number of entries that are present.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Simulates a whole cache: records a use of `key`. If the entry is absent it is admitted, and
    /// others are evicted for it. Returns whether it was present.
    pub fn simulate_use(&mut self, key: K, weight: u64) -> bool {
        if self.record_use(&key).is_some() {
            return true;
        }
        while self.weight + weight > self.capacity {
            let mut victim = None;
            self.scan_candidates(&mut |candidate| {
                victim = Some(candidate.key);
                Scan::Stop
            });
            match victim {
                Some(victim) => self.evict(&victim),
                None => break,
            }
        }
        self.admit(key, weight, AdmitReason::Demand);
        false
    }

    /// Records a use, and returns the entry's weight in bytes, if it is present.
    pub fn record_use(&mut self, key: &K) -> Option<u64> {
        let &node = self.index.get(key)?;
        match self.nodes[node].state {
            EntryState::Hot => {
                self.nodes[node].chances = (self.nodes[node].chances + 1).min(self.params.max_chances);
                self.move_to_top(node);
                self.prune();
            }
            EntryState::Cold if self.nodes[node].on_stack => self.make_hot(node),
            EntryState::Cold => {
                self.move_to_top(node);
                self.set_state(node, EntryState::Cold);
            }
            EntryState::Unread => self.first_use(node),
            EntryState::Ghost => return None,
        }
        self.nodes[node].used_at = self.clock;
        Some(self.nodes[node].weight)
    }

    /// Forgets all keys, ghosts too, for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        let dropped: Vec<u32> =
            self.index.iter().filter(|(key, _)| !keep(key)).map(|(_, &node)| node).collect();
        for node in dropped {
            self.drop_node(node);
        }
        self.prune();
    }

    /// Whether the entry is present, rather than unknown or a ghost.
    pub fn is_present(&self, key: &K) -> bool {
        self.index.get(key).is_some_and(|&node| self.nodes[node].state != EntryState::Ghost)
    }

    fn hot_limit(&self) -> u64 {
        let capacity = self.capacity.min(self.usable_capacity);
        capacity - ((capacity as f64 * self.params.cold_share) as u64).min(capacity)
    }

    /// Takes a node off its state's queue, and out of its state's weight.
    fn leave_state(&mut self, node: u32) {
        let LirsEntry { state, weight, .. } = self.nodes[node];
        match state {
            EntryState::Hot => self.hot_weight -= weight,
            EntryState::Cold => self.cold.remove(&mut self.nodes, node),
            EntryState::Unread => {
                self.unread.remove(&mut self.nodes, node);
                self.unread_weight -= weight;
            }
            EntryState::Ghost => {
                self.ghosts.remove(&mut self.nodes, node);
                self.ghost_weight -= weight;
            }
        }
        if state != EntryState::Ghost {
            self.weight -= weight;
            self.entries -= 1;
        }
    }

    fn enter_state(&mut self, node: u32, state: EntryState) {
        let weight = self.nodes[node].weight;
        self.nodes[node].state = state;
        match state {
            EntryState::Hot => self.hot_weight += weight,
            EntryState::Cold => self.cold.push(&mut self.nodes, node),
            EntryState::Unread => {
                self.unread.push(&mut self.nodes, node);
                self.unread_weight += weight;
            }
            EntryState::Ghost => {
                self.ghosts.push(&mut self.nodes, node);
                self.ghost_weight += weight;
            }
        }
        if state != EntryState::Ghost {
            self.weight += weight;
            self.entries += 1;
        }
    }

    fn set_state(&mut self, node: u32, state: EntryState) {
        self.leave_state(node);
        self.enter_state(node, state);
    }

    fn move_to_top(&mut self, node: u32) {
        self.remove_from_stack(node);
        self.stack.push(&mut self.nodes, node);
        self.nodes[node].on_stack = true;
    }

    fn remove_from_stack(&mut self, node: u32) {
        if std::mem::take(&mut self.nodes[node].on_stack) {
            self.stack.remove(&mut self.nodes, node);
        }
    }

    fn drop_node(&mut self, node: u32) {
        self.leave_state(node);
        self.remove_from_stack(node);
        self.index.remove(&self.nodes[node].key);
        self.nodes.release(node);
    }

    /// Removes entries that are not hot from the bottom of the stack: their next use cannot make
    /// them hot any more.
    fn prune(&mut self) {
        while self.stack.oldest() != NONE {
            let bottom = self.stack.oldest();
            match self.nodes[bottom].state {
                EntryState::Hot => return,
                EntryState::Cold | EntryState::Unread => self.remove_from_stack(bottom),
                EntryState::Ghost => self.drop_node(bottom),
            }
        }
    }

    /// Turns hot entries cold, from the bottom of the stack up, until the rest is within the
    /// limit.
    fn demote_excess(&mut self) {
        self.prune();
        while self.hot_weight > self.hot_limit() && self.stack.oldest() != NONE {
            let bottom = self.stack.oldest();
            let chances = self.nodes[bottom].chances.min(self.params.max_chances);
            if chances > 0 {
                self.nodes[bottom].chances = chances - 1;
                self.move_to_top(bottom);
            } else {
                self.remove_from_stack(bottom);
                self.set_state(bottom, EntryState::Cold);
            }
            self.prune();
        }
    }

    fn make_hot(&mut self, node: u32) {
        self.nodes[node].chances = 0;
        self.set_state(node, EntryState::Hot);
        self.move_to_top(node);
        self.demote_excess();
    }

    /// Records the first use of an unread entry.
    fn first_use(&mut self, node: u32) {
        let weight = self.nodes[node].weight;
        // An unread entry on the stack was used, evicted and fetched again: a second use.
        if self.nodes[node].on_stack || self.hot_weight + weight <= self.hot_limit() {
            self.make_hot(node);
        } else {
            self.move_to_top(node);
            self.set_state(node, EntryState::Cold);
        }
    }

    /// Shows the entries of a queue, oldest first, up to one for which `until` is true. Returns
    /// whether `visit` stopped the scan.
    fn scan_queue(
        &mut self,
        state: EntryState,
        spare_recent: bool,
        visit: &mut dyn FnMut(EvictionCandidate<K>) -> Scan,
        until: impl Fn(&Self, u32) -> bool,
    ) -> bool {
        let list = |s: &Self| if state == EntryState::Cold { s.cold } else { s.unread };
        let (mut node, mut left) = (list(self).oldest(), MAX_SHOWN.min(self.entries));
        while node != NONE && left > 0 && !until(self, node) {
            let newer = list(self).newer(&self.nodes, node);
            let is_recent = spare_recent && self.age(node) < self.capacity / 4;
            let temperature = if state == EntryState::Cold { Temperature::Cold } else { Temperature::Unread };
            match visit(EvictionCandidate { key: self.nodes[node].key, temperature, is_recent }) {
                Scan::Stop => return true,
                Scan::Continue => {}
                Scan::InUse => self.set_state(node, state),
            }
            (node, left) = (newer, left - 1);
        }
        false
    }

    /// The same for the hot entries of the stack.
    fn scan_hot(&mut self, visit: &mut dyn FnMut(EvictionCandidate<K>) -> Scan) -> bool {
        let (mut node, mut left) = (self.stack.oldest(), MAX_SHOWN);
        for _ in 0..MAX_STACK_STEPS {
            if node == NONE || left == 0 {
                break;
            }
            let newer = self.stack.newer(&self.nodes, node);
            if self.nodes[node].state == EntryState::Hot {
                left -= 1;
                match visit(EvictionCandidate {
                    key: self.nodes[node].key,
                    temperature: Temperature::Hot,
                    is_recent: false,
                }) {
                    Scan::Stop => return true,
                    Scan::Continue => {}
                    Scan::InUse => self.move_to_top(node),
                }
            }
            node = newer;
        }
        self.prune();
        false
    }

    fn age(&self, node: u32) -> u64 {
        self.clock - self.nodes[node].used_at
    }
}

impl<K: Copy + Eq + Hash + Send + std::fmt::Debug> Policy<K> for Lirs<K> {
    fn admit(&mut self, key: K, weight: u64, reason: AdmitReason) {
        self.clock += weight;
        let used_at = self.clock;
        let known = self.index.get(&key).copied();
        let node = match known {
            Some(node) if self.nodes[node].state != EntryState::Ghost => return,
            Some(node) => {
                self.leave_state(node);
                self.nodes[node].weight = weight;
                self.nodes[node].used_at = used_at;
                node
            }
            None => {
                let links = [Links::UNLINKED; 2];
                let state = EntryState::Unread;
                let node = self.nodes.insert(LirsEntry {
                    key,
                    weight,
                    state,
                    on_stack: false,
                    chances: 0,
                    used_at,
                    links,
                });
                self.index.insert(key, node);
                node
            }
        };
        self.enter_state(node, EntryState::Unread);
        if reason == AdmitReason::Demand {
            self.first_use(node);
        }
    }

    fn touch(&mut self, key: &K) {
        self.record_use(key);
    }

    fn mark_hot(&mut self, key: &K) {
        let Some(&node) = self.index.get(key) else { return };
        match self.nodes[node].state {
            EntryState::Hot => {
                self.move_to_top(node);
                self.prune();
            }
            EntryState::Cold | EntryState::Unread => self.make_hot(node),
            EntryState::Ghost => {}
        }
    }

    fn evict(&mut self, key: &K) {
        let Some(&node) = self.index.get(key) else { return };
        if self.nodes[node].state == EntryState::Ghost {
            return;
        }
        if !self.nodes[node].on_stack {
            self.drop_node(node);
            return;
        }
        self.set_state(node, EntryState::Ghost);
        while self.ghost_weight > self.capacity.saturating_mul(3) / 2 {
            self.drop_node(self.ghosts.oldest());
        }
        self.prune();
    }

    fn forget(&mut self, key: &K) {
        if let Some(&node) = self.index.get(key) {
            self.drop_node(node);
            self.prune();
        }
    }

    fn scan_candidates(&mut self, visit: &mut dyn FnMut(EvictionCandidate<K>) -> Scan) {
        // Fetches in flight come and go; the hot limit follows slowly.
        self.usable_capacity =
            self.weight.max(self.usable_capacity.saturating_sub(self.capacity / 64)).min(self.capacity);
        self.demote_excess();
        let is_in_time = |s: &Self, node| s.unread_weight <= s.unread_limit() && s.age(node) <= s.capacity;
        let _ = self.scan_queue(EntryState::Unread, false, visit, is_in_time)
            || self.scan_queue(EntryState::Cold, true, visit, |_, _| false)
            || self.scan_hot(visit)
            || self.scan_queue(EntryState::Unread, false, visit, |_, _| false)
            || self.scan_queue(EntryState::Cold, false, visit, |_, _| false);
    }

    fn is_missed(&self, key: &K) -> bool {
        self.index.get(key).is_some_and(|&node| self.nodes[node].state == EntryState::Ghost)
    }

    fn temperature(&self, key: &K) -> Temperature {
        match self.index.get(key).map(|&node| self.nodes[node].state) {
            Some(EntryState::Hot) => Temperature::Hot,
            Some(EntryState::Unread) => Temperature::Unread,
            Some(EntryState::Cold | EntryState::Ghost) | None => Temperature::Cold,
        }
    }

    fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.usable_capacity = capacity;
        self.demote_excess();
    }

    fn unread_limit(&self) -> u64 {
        self.capacity / 4
    }
}
