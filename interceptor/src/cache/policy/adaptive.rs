//! Chooses the parameters of [`Lirs`] while it runs, by simulating each choice in miniature.
//!
//! C. Waldspurger, T. Saemundsson, I. Ahmad and N. Park, *Cache Modeling and Optimization using
//! Miniature Simulations*, USENIX ATC 2017: take every key whose hash falls below a threshold, and
//! a cache scaled down by the same factor. It misses in the same proportion as the original. So
//! each [choice of parameters](CHOICES) has a miniature of a few thousand keys and no data, which
//! sees the sampled references, and the real policy takes the parameters of the miniature that
//! misses least.
//!
//! A change loses what the present parameters have gathered, and a load that favours recency for a
//! while would undo the hot set that pays later. Therefore a change must have shown a gain in
//! proportion to what it puts at stake: a quarter of the entries, times the change of the cold
//! share.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::FixedState;

use super::{AdmitReason, EvictionCandidate, Lirs, LirsParams, Policy, Scan, Temperature};

/// The parameters that are simulated: LIRS itself; LIRS for loads with stable frequencies; halfway
/// to LRU; almost LRU. The first is in use until another has proved better.
const CHOICES: [LirsParams; 4] = [
    LirsParams::INITIAL,
    LirsParams { cold_share: 0.02, max_chances: 7 },
    LirsParams { cold_share: 0.5, max_chances: 0 },
    LirsParams { cold_share: 0.97, max_chances: 0 },
];
/// About the most entries of a miniature; a larger one halves the sample. Errors are then some per
/// cent of a miss ratio, and all miniatures together take well under a MiB.
const MAX_MINIATURE_ENTRIES: usize = 2048;
/// With fewer entries than this in a full miniature, the sample doubles if it can.
const MIN_MINIATURE_ENTRIES: usize = 512;
/// The shortest epoch, in sampled references.
const MIN_EPOCH_REFERENCES: usize = 64;
/// By what all misses are multiplied at the end of an epoch, so that older ones count less. An
/// epoch is as many references as a miniature has entries.
const MISS_DECAY: f64 = 0.8;
/// The gain that justifies the largest change, in misses saved per entry.
const MIN_GAIN: f64 = 0.25;

/// A simulated cache.
#[derive(Debug)]
struct Miniature {
    params: LirsParams,
    policy: Lirs<u64>,
    misses: f64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct AdaptiveLirs<K> {
    policy: Lirs<K>,
    miniatures: [Miniature; CHOICES.len()],
    current: usize,
    capacity: u64,
    /// One in `1 << sample` keys is in the miniatures.
    sample: u32,
    /// Sampled references in this epoch.
    references: usize,
    hasher: FixedState,
}

impl<K: Copy + Eq + Hash + Send + std::fmt::Debug> AdaptiveLirs<K> {
    /// A policy for a cache of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let miniature = |params| Miniature { params, policy: Lirs::new(capacity, params), misses: 0.0 };
        Self {
            policy: Lirs::new(capacity, CHOICES[0]),
            miniatures: CHOICES.map(miniature),
            current: 0,
            capacity,
            sample: 0,
            references: 0,
            hasher: FixedState::default(),
        }
    }

    /// Simulates a reference, if the key is in the sample.
    fn simulate(&mut self, key: &K, weight: u64) {
        let hash = self.hasher.hash_one(key);
        if !sampled(hash, self.sample) {
            return;
        }
        for miniature in &mut self.miniatures {
            if !miniature.policy.simulate_use(hash, weight) {
                miniature.misses += 1.0;
            }
        }
        self.references += 1;
        let entries = self.miniatures[0].policy.entries();
        if self.references >= entries.max(MIN_EPOCH_REFERENCES) {
            self.references = 0;
            self.choose(entries as f64);
            self.resample(entries);
        }
    }

    /// Changes to the best parameters, if they have gained enough.
    fn choose(&mut self, entries: f64) {
        let current = &self.miniatures[self.current];
        let gain = |miniature: &Miniature| {
            let change = (0.1 + (miniature.params.cold_share - current.params.cold_share).abs()).min(1.0);
            current.misses - miniature.misses - MIN_GAIN * change * entries
        };
        let gains = self.miniatures.iter().map(gain).enumerate();
        if let Some((best, gain)) = gains.max_by(|a, b| a.1.total_cmp(&b.1))
            && best != self.current
            && gain > 0.0
        {
            self.current = best;
            self.policy.set_params(CHOICES[best]);
        }
        for miniature in &mut self.miniatures {
            miniature.misses *= MISS_DECAY;
        }
    }

    /// Adapts the sample to the number of entries, which depends on their sizes.
    fn resample(&mut self, entries: usize) {
        let is_full = self.miniatures[0].policy.weight() * 10 > (self.capacity >> self.sample) * 9;
        let factor = if entries > MAX_MINIATURE_ENTRIES {
            self.sample += 1;
            0.5
        } else if is_full && entries < MIN_MINIATURE_ENTRIES && self.sample > 0 {
            self.sample -= 1;
            2.0
        } else {
            return;
        };
        for miniature in &mut self.miniatures {
            miniature.policy.retain(|&hash| sampled(hash, self.sample));
            miniature.policy.set_capacity(self.capacity >> self.sample);
            miniature.misses *= factor;
        }
    }
}

/// The lowest bits of the hash decide, so that a smaller sample is a part of a larger one.
fn sampled(hash: u64, sample: u32) -> bool {
    hash.trailing_zeros() >= sample
}

impl<K: Copy + Eq + Hash + Send + std::fmt::Debug> Policy<K> for AdaptiveLirs<K> {
    fn admit(&mut self, key: K, weight: u64, reason: AdmitReason) {
        if reason == AdmitReason::Demand && !self.policy.is_present(&key) {
            self.simulate(&key, weight);
        }
        self.policy.admit(key, weight, reason);
    }

    fn touch(&mut self, key: &K) {
        if let Some(weight) = self.policy.record_use(key) {
            self.simulate(key, weight);
        }
    }

    fn mark_hot(&mut self, key: &K) {
        self.policy.mark_hot(key);
    }

    fn evict(&mut self, key: &K) {
        self.policy.evict(key);
    }

    fn forget(&mut self, key: &K) {
        self.policy.forget(key);
    }

    fn scan_candidates(&mut self, visit: &mut dyn FnMut(EvictionCandidate<K>) -> Scan) {
        self.policy.scan_candidates(visit);
    }

    fn is_missed(&self, key: &K) -> bool {
        self.policy.is_missed(key)
    }

    fn temperature(&self, key: &K) -> Temperature {
        self.policy.temperature(key)
    }

    fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
        self.policy.set_capacity(capacity);
        for miniature in &mut self.miniatures {
            miniature.policy.set_capacity(capacity >> self.sample);
        }
    }

    fn unread_limit(&self) -> u64 {
        self.policy.unread_limit()
    }
}
