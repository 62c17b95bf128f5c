//! LIRS for entries of different weights, with a cold share and second chances that can be set while it runs.
//!
//! S. Jiang and X. Zhang, *LIRS: An Efficient Low Inter-reference Recency Set Replacement Policy to Improve Buffer Cache
//! Performance*, SIGMETRICS 2002. An entry is *hot* (LIR) if it was used twice within the time that the coldest hot
//! entry has gone unused. The *stack* holds entries in the order of their last use down to the coldest hot one, among
//! them evicted ones (*ghosts*), so that a second use soon after eviction is noticed. Everything else that is present is
//! *cold* (HIR) and waits in a queue, from the front of which it is evicted. A scan passes through the queue and leaves
//! the hot entries alone.
//!
//! What is added to the paper:
//! * The share of memory for cold entries is a parameter. At 1 % this is the LIRS of the paper; towards 100 % it is LRU.
//! * A hot entry may earn *second chances*: each use is one chance, up to a limit, to return to the top of the stack
//!   instead of turning cold, as in generalised CLOCK. With a limit of 0 this is the LIRS of the paper; a few make it
//!   tell frequent entries from lucky ones.
//! * Entries fetched ahead are *unread* until their first use and wait in a queue of their own. They are evicted when the
//!   cold queue and then the hot entries have nothing to give, unless together they exceed a quarter of the memory or one
//!   has waited while as many bytes came in as the cache holds: then the oldest unread goes first.
//! * Ghosts are bounded, by weight: half as much again as what the cache holds.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

use super::list::{Linked, Links, List, NONE, Slab};
use super::{Arrival, Candidate, Look, Policy, Warmth};

/// Kind of list: the stack.
const STACK: usize = 0;
/// Kind of list: the queues of cold entries, unread entries and ghosts.
const QUEUE: usize = 1;
/// How many entries of a queue are looked at before the next queue is.
const LOOKS: usize = 128;
/// How many entries of the stack are passed in search of hot ones.
const STEPS: usize = 4096;

/// The parameters that can change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traits {
    /// Share of the memory for cold entries, above 0 and below 1.
    pub cold_share: f64,
    /// How many second chances a hot entry can have at a time.
    pub chances: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Hot,
    Cold,
    Unread,
    Ghost,
}

#[derive(Debug)]
struct Node<K> {
    key: K,
    weight: u64,
    state: State,
    on_stack: bool,
    chances: u8,
    /// Bytes that had been admitted when it was last used, or fetched ahead.
    used_at: u64,
    links: [Links; 2],
}

impl<K> Linked for Node<K> {
    fn links(&mut self, kind: usize) -> &mut Links {
        &mut self.links[kind]
    }

    fn links_ref(&self, kind: usize) -> &Links {
        &self.links[kind]
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Lirs<K> {
    capacity: u64,
    traits: Traits,
    nodes: Slab<Node<K>>,
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
    /// How much has lately been present when memory was wanted: less than the capacity, because of what is being
    /// filled and of gaps between entries.
    ceiling: u64,
    /// Bytes admitted so far.
    clock: u64,
}

impl<K: Copy + Eq + Hash + Send + std::fmt::Debug> Lirs<K> {
    /// A policy for a cache of `capacity` bytes.
    pub fn new(capacity: u64, traits: Traits) -> Self {
        Self {
            capacity,
            traits,
            nodes: Slab::default(),
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
            ceiling: capacity,
            clock: 0,
        }
    }

    /// From now on, be like this.
    pub fn set_traits(&mut self, traits: Traits) {
        self.traits = traits;
        self.cool();
    }

    /// Weight of all entries that are present, in bytes.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Number of entries that are present.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Plays a whole cache: notes a use of `key`, which comes in if it is absent, whereupon others leave. Returns
    /// whether it was there.
    pub fn reference(&mut self, key: K, weight: u64) -> bool {
        if self.refer(&key).is_some() {
            return true;
        }
        while self.weight + weight > self.capacity {
            let mut victim = None;
            self.candidates(&mut |candidate| {
                victim = Some(candidate.key);
                Look::Stop
            });
            match victim {
                Some(victim) => self.evict(&victim),
                None => break,
            }
        }
        self.admit(key, weight, Arrival::Demanded);
        false
    }

    /// Notes a use, and returns what the entry weighs in bytes, if it is there.
    pub fn refer(&mut self, key: &K) -> Option<u64> {
        let &node = self.index.get(key)?;
        match self.nodes[node].state {
            State::Hot => {
                self.nodes[node].chances = (self.nodes[node].chances + 1).min(self.traits.chances);
                self.restack(node);
                self.prune();
            }
            State::Cold if self.nodes[node].on_stack => self.heat(node),
            State::Cold => {
                self.restack(node);
                self.set_state(node, State::Cold);
            }
            State::Unread => self.first_use(node),
            State::Ghost => return None,
        }
        self.nodes[node].used_at = self.clock;
        Some(self.nodes[node].weight)
    }

    /// Forgets all keys, ghosts too, that `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        let gone: Vec<u32> = self.index.iter().filter(|(key, _)| !keep(key)).map(|(_, &node)| node).collect();
        for node in gone {
            self.drop_node(node);
        }
        self.prune();
    }

    /// Whether the entry is there, rather than unknown or a ghost.
    pub fn is_present(&self, key: &K) -> bool {
        self.index.get(key).is_some_and(|&node| self.nodes[node].state != State::Ghost)
    }

    fn hot_limit(&self) -> u64 {
        let capacity = self.capacity.min(self.ceiling);
        capacity - ((capacity as f64 * self.traits.cold_share) as u64).min(capacity)
    }

    /// Takes a node off whatever queue its state puts it on, and out of that state's weight.
    fn leave_state(&mut self, node: u32) {
        let Node { state, weight, .. } = self.nodes[node];
        match state {
            State::Hot => self.hot_weight -= weight,
            State::Cold => self.cold.remove(&mut self.nodes, node),
            State::Unread => {
                self.unread.remove(&mut self.nodes, node);
                self.unread_weight -= weight;
            }
            State::Ghost => {
                self.ghosts.remove(&mut self.nodes, node);
                self.ghost_weight -= weight;
            }
        }
        if state != State::Ghost {
            self.weight -= weight;
            self.entries -= 1;
        }
    }

    fn enter_state(&mut self, node: u32, state: State) {
        let weight = self.nodes[node].weight;
        self.nodes[node].state = state;
        match state {
            State::Hot => self.hot_weight += weight,
            State::Cold => self.cold.push(&mut self.nodes, node),
            State::Unread => {
                self.unread.push(&mut self.nodes, node);
                self.unread_weight += weight;
            }
            State::Ghost => {
                self.ghosts.push(&mut self.nodes, node);
                self.ghost_weight += weight;
            }
        }
        if state != State::Ghost {
            self.weight += weight;
            self.entries += 1;
        }
    }

    fn set_state(&mut self, node: u32, state: State) {
        self.leave_state(node);
        self.enter_state(node, state);
    }

    fn restack(&mut self, node: u32) {
        self.off_stack(node);
        self.stack.push(&mut self.nodes, node);
        self.nodes[node].on_stack = true;
    }

    fn off_stack(&mut self, node: u32) {
        if std::mem::take(&mut self.nodes[node].on_stack) {
            self.stack.remove(&mut self.nodes, node);
        }
    }

    fn drop_node(&mut self, node: u32) {
        self.leave_state(node);
        self.off_stack(node);
        self.index.remove(&self.nodes[node].key);
        self.nodes.release(node);
    }

    /// Takes what is not hot off the bottom of the stack: its next use cannot make it hot any more.
    fn prune(&mut self) {
        while self.stack.oldest() != NONE {
            let bottom = self.stack.oldest();
            match self.nodes[bottom].state {
                State::Hot => return,
                State::Cold | State::Unread => self.off_stack(bottom),
                State::Ghost => self.drop_node(bottom),
            }
        }
    }

    /// Turns hot entries cold, from the bottom of the stack, until the rest keeps to its share.
    fn cool(&mut self) {
        self.prune();
        while self.hot_weight > self.hot_limit() && self.stack.oldest() != NONE {
            let bottom = self.stack.oldest();
            let chances = self.nodes[bottom].chances.min(self.traits.chances);
            if chances > 0 {
                self.nodes[bottom].chances = chances - 1;
                self.restack(bottom);
            } else {
                self.off_stack(bottom);
                self.set_state(bottom, State::Cold);
            }
            self.prune();
        }
    }

    fn heat(&mut self, node: u32) {
        self.nodes[node].chances = 0;
        self.set_state(node, State::Hot);
        self.restack(node);
        self.cool();
    }

    /// Notes the first use of an entry that is in no state of use yet.
    fn first_use(&mut self, node: u32) {
        let weight = self.nodes[node].weight;
        // An unread entry that is on the stack was used, evicted and fetched again: this is its second use.
        if self.nodes[node].on_stack || self.hot_weight + weight <= self.hot_limit() {
            self.heat(node);
        } else {
            self.restack(node);
            self.set_state(node, State::Cold);
        }
    }

    /// Shows the entries of a queue, oldest first. Returns whether enough was seen.
    fn show(
        &mut self,
        state: State,
        spare_recent: bool,
        look: &mut dyn FnMut(Candidate<K>) -> Look,
        until: impl Fn(&Self, u32) -> bool,
    ) -> bool {
        let list = |s: &Self| if state == State::Cold { s.cold } else { s.unread };
        let (mut node, mut left) = (list(self).oldest(), LOOKS.min(self.entries));
        while node != NONE && left > 0 && !until(self, node) {
            let newer = list(self).newer(&self.nodes, node);
            let recent = spare_recent && self.age(node) < self.capacity / 4;
            let warmth = if state == State::Cold { Warmth::Cold } else { Warmth::Unread };
            match look(Candidate { key: self.nodes[node].key, warmth, recent }) {
                Look::Stop => return true,
                Look::Next => {}
                Look::InUse => self.set_state(node, state),
            }
            (node, left) = (newer, left - 1);
        }
        false
    }

    fn show_hot(&mut self, look: &mut dyn FnMut(Candidate<K>) -> Look) -> bool {
        let (mut node, mut left) = (self.stack.oldest(), LOOKS);
        for _ in 0..STEPS {
            if node == NONE || left == 0 {
                break;
            }
            let newer = self.stack.newer(&self.nodes, node);
            if self.nodes[node].state == State::Hot {
                left -= 1;
                match look(Candidate { key: self.nodes[node].key, warmth: Warmth::Hot, recent: false }) {
                    Look::Stop => return true,
                    Look::Next => {}
                    Look::InUse => self.restack(node),
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
    fn admit(&mut self, key: K, weight: u64, arrival: Arrival) {
        self.clock += weight;
        let used_at = self.clock;
        let known = self.index.get(&key).copied();
        let node = match known {
            Some(node) if self.nodes[node].state != State::Ghost => return,
            Some(node) => {
                self.leave_state(node);
                self.nodes[node].weight = weight;
                self.nodes[node].used_at = used_at;
                node
            }
            None => {
                let links = [Links::LOOSE; 2];
                let state = State::Unread;
                let node = self.nodes.insert(Node {
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
        self.enter_state(node, State::Unread);
        if arrival == Arrival::Demanded {
            self.first_use(node);
        }
    }

    fn touch(&mut self, key: &K) {
        self.refer(key);
    }

    fn promote(&mut self, key: &K) {
        let Some(&node) = self.index.get(key) else { return };
        match self.nodes[node].state {
            State::Hot => {
                self.restack(node);
                self.prune();
            }
            State::Cold | State::Unread => self.heat(node),
            State::Ghost => {}
        }
    }

    fn evict(&mut self, key: &K) {
        let Some(&node) = self.index.get(key) else { return };
        if self.nodes[node].state == State::Ghost {
            return;
        }
        if !self.nodes[node].on_stack {
            self.drop_node(node);
            return;
        }
        self.set_state(node, State::Ghost);
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

    fn candidates(&mut self, look: &mut dyn FnMut(Candidate<K>) -> Look) {
        // Fetches in flight come and go; the share of hot entries follows slowly.
        self.ceiling = self.weight.max(self.ceiling.saturating_sub(self.capacity / 64)).min(self.capacity);
        self.cool();
        let overdue = |s: &Self, node| s.unread_weight <= s.unread_limit() && s.age(node) <= s.capacity;
        let _ = self.show(State::Unread, false, look, overdue)
            || self.show(State::Cold, true, look, |_, _| false)
            || self.show_hot(look)
            || self.show(State::Unread, false, look, |_, _| false)
            || self.show(State::Cold, false, look, |_, _| false);
    }

    fn warmth(&self, key: &K) -> Warmth {
        match self.index.get(key).map(|&node| self.nodes[node].state) {
            Some(State::Hot) => Warmth::Hot,
            Some(State::Unread) => Warmth::Unread,
            Some(State::Cold | State::Ghost) | None => Warmth::Cold,
        }
    }

    fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.ceiling = capacity;
        self.cool();
    }

    fn unread_limit(&self) -> u64 {
        self.capacity / 4
    }
}
