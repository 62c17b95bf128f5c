//! Chooses the traits of [`Lirs`] while it runs, by playing the candidates in miniature.
//!
//! C. Waldspurger, T. Saemundsson, I. Ahmad and N. Park, *Cache Modeling and Optimization using Miniature Simulations*,
//! USENIX ATC 2017: a cache scaled down together with its load, by taking every key whose hash falls below a threshold,
//! misses in the same proportion as the original. So each [trait set](ARMS) has a miniature of a few thousand keys and no
//! data, which sees the sampled references, and the real policy takes the traits of the one that misses least.
//!
//! Changing traits costs what the present ones have gathered, and a load that favours recency for a while would undo
//! the hot set that pays later. Therefore a change must have shown a gain in proportion to what it puts at stake: a
//! quarter of the entries, times how much the cold shares differ.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;

use super::{Arrival, Candidate, Lirs, Look, Policy, Traits, Warmth};

/// What is tried, the first being in use until another has proved better: LIRS itself; LIRS for loads with stable
/// frequencies; halfway to LRU; almost LRU.
const ARMS: [Traits; 4] = [
    Traits { cold_share: 0.02, chances: 0 },
    Traits { cold_share: 0.02, chances: 7 },
    Traits { cold_share: 0.5, chances: 0 },
    Traits { cold_share: 0.97, chances: 0 },
];
/// Miniatures hold about this many entries at most; a larger one halves its sample. Errors are then some per cent of
/// a miss ratio, and all of them together take well under a MiB.
const MOST_ENTRIES: usize = 2048;
/// With fewer entries than this the sample doubles if it can.
const FEWEST_ENTRIES: usize = 512;
/// The shortest epoch, in sampled references.
const SHORTEST_EPOCH: usize = 64;
/// What remains of earlier epochs' misses at the end of one. An epoch is as many references as a miniature has entries.
const MEMORY: f64 = 0.8;
/// The gain that justifies a change of everything, in entries.
const STAKE: f64 = 0.25;

#[derive(Debug)]
struct Arm {
    traits: Traits,
    miniature: Lirs<u64>,
    misses: f64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Dueling<K> {
    policy: Lirs<K>,
    arms: [Arm; ARMS.len()],
    current: usize,
    capacity: u64,
    /// One in `1 << sample` keys is in the miniatures.
    sample: u32,
    /// Sampled references in this epoch.
    references: usize,
    hasher: FixedState,
}

impl<K: Copy + Eq + Hash + Send + std::fmt::Debug> Dueling<K> {
    /// A policy for a cache of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let arm = |traits| Arm { traits, miniature: Lirs::new(capacity, traits), misses: 0.0 };
        Self {
            policy: Lirs::new(capacity, ARMS[0]),
            arms: ARMS.map(arm),
            current: 0,
            capacity,
            sample: 0,
            references: 0,
            hasher: FixedState::default(),
        }
    }

    /// The traits in use.
    pub fn traits(&self) -> Traits {
        ARMS[self.current]
    }

    /// Has the miniatures see a reference, if the key is in the sample.
    fn play(&mut self, key: &K, weight: u64) {
        let hash = self.hasher.hash_one(key);
        if !sampled(hash, self.sample) {
            return;
        }
        for arm in &mut self.arms {
            if !arm.miniature.reference(hash, weight) {
                arm.misses += 1.0;
            }
        }
        self.references += 1;
        let entries = self.arms[0].miniature.entries();
        if self.references >= entries.max(SHORTEST_EPOCH) {
            self.references = 0;
            self.judge(entries as f64);
            self.resample(entries);
        }
    }

    fn judge(&mut self, entries: f64) {
        let current = &self.arms[self.current];
        let gain = |arm: &Arm| {
            let moved = (0.1 + (arm.traits.cold_share - current.traits.cold_share).abs()).min(1.0);
            current.misses - arm.misses - STAKE * moved * entries
        };
        let gains = self.arms.iter().map(gain).enumerate();
        if let Some((best, gain)) = gains.max_by(|a, b| a.1.total_cmp(&b.1))
            && best != self.current
            && gain > 0.0
        {
            self.current = best;
            self.policy.set_traits(ARMS[best]);
        }
        for arm in &mut self.arms {
            arm.misses *= MEMORY;
        }
    }

    /// Fits the sample to the number of entries, which depends on how large they happen to be.
    fn resample(&mut self, entries: usize) {
        let full = self.arms[0].miniature.weight() * 10 > (self.capacity >> self.sample) * 9;
        let factor = if entries > MOST_ENTRIES {
            self.sample += 1;
            0.5
        } else if full && entries < FEWEST_ENTRIES && self.sample > 0 {
            self.sample -= 1;
            2.0
        } else {
            return;
        };
        for arm in &mut self.arms {
            arm.miniature.retain(|&hash| sampled(hash, self.sample));
            arm.miniature.set_capacity(self.capacity >> self.sample);
            arm.misses *= factor;
        }
    }
}

/// The lowest bits of the hash decide, so that a smaller sample is a part of a larger one.
fn sampled(hash: u64, sample: u32) -> bool {
    hash.trailing_zeros() >= sample
}

impl<K: Copy + Eq + Hash + Send + std::fmt::Debug> Policy<K> for Dueling<K> {
    fn admit(&mut self, key: K, weight: u64, arrival: Arrival) {
        if arrival == Arrival::Demanded && !self.policy.is_present(&key) {
            self.play(&key, weight);
        }
        self.policy.admit(key, weight, arrival);
    }

    fn touch(&mut self, key: &K) {
        if let Some(weight) = self.policy.refer(key) {
            self.play(key, weight);
        }
    }

    fn promote(&mut self, key: &K) {
        self.policy.promote(key);
    }

    fn evict(&mut self, key: &K) {
        self.policy.evict(key);
    }

    fn forget(&mut self, key: &K) {
        self.policy.forget(key);
    }

    fn candidates(&mut self, look: &mut dyn FnMut(Candidate<K>) -> Look) {
        self.policy.candidates(look);
    }

    fn warmth(&self, key: &K) -> Warmth {
        self.policy.warmth(key)
    }

    fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.policy.set_capacity(capacity);
        for arm in &mut self.arms {
            arm.miniature.set_capacity(capacity >> self.sample);
        }
    }

    fn unread_limit(&self) -> u64 {
        self.policy.unread_limit()
    }
}
