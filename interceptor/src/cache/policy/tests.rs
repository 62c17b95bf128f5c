//! The policy under generated loads, compared with LRU and ARC.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;

/// Keys in the order of their last use.
#[derive(Default)]
struct UseOrder {
    clock: u64,
    by_key: HashMap<u64, u64>,
    by_time: BTreeMap<u64, u64>,
}

impl UseOrder {
    fn put(&mut self, key: u64) {
        self.remove(key);
        self.clock += 1;
        self.by_key.insert(key, self.clock);
        self.by_time.insert(self.clock, key);
    }

    fn remove(&mut self, key: u64) -> bool {
        self.by_key.remove(&key).map(|time| self.by_time.remove(&time)).is_some()
    }

    fn pop(&mut self) -> Option<u64> {
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }

    fn len(&self) -> usize {
        self.by_key.len()
    }

    fn contains(&self, key: u64) -> bool {
        self.by_key.contains_key(&key)
    }
}

fn lru(trace: &[u64], capacity: usize) -> f64 {
    let mut order = UseOrder::default();
    ratio(trace, |key| {
        let hit = order.contains(key);
        order.put(key);
        if order.len() > capacity {
            order.pop();
        }
        hit
    })
}

/// N. Megiddo and D. Modha, *ARC: A Self-Tuning, Low Overhead Replacement Cache*, FAST 2003.
fn arc(trace: &[u64], capacity: usize) -> f64 {
    let [mut once, mut often, mut once_gone, mut often_gone]: [UseOrder; 4] = Default::default();
    let mut target = 0usize;
    ratio(trace, |key| {
        if once.remove(key) || often.contains(key) {
            often.put(key);
            return true;
        }
        let returns_often = often_gone.contains(key);
        if once_gone.contains(key) {
            target = (target + (often_gone.len() / once_gone.len()).max(1)).min(capacity);
        } else if returns_often {
            target = target.saturating_sub((once_gone.len() / often_gone.len()).max(1));
        }
        if once.len() + often.len() >= capacity {
            let from_once = once.len() > target || (returns_often && once.len() == target);
            if from_once && once.len() > 0 || often.len() == 0 {
                once_gone.put(once.pop().expect("the cache is full"));
            } else {
                often_gone.put(often.pop().expect("the cache is full"));
            }
        }
        if once_gone.remove(key) || often_gone.remove(key) {
            often.put(key);
        } else {
            once.put(key);
        }
        while once.len() + once_gone.len() > capacity {
            once_gone.pop();
        }
        while once_gone.len() + often_gone.len() > capacity {
            often_gone.pop();
        }
        false
    })
}

fn ratio(trace: &[u64], mut hit: impl FnMut(u64) -> bool) -> f64 {
    trace.iter().filter(|&&key| !hit(key)).count() as f64 / trace.len() as f64
}

/// The simplest cache that uses the policy.
struct TestCache {
    policy: AdaptiveLirs<u64>,
    present: HashSet<u64>,
    entries: usize,
}

impl TestCache {
    fn new(entries: usize) -> Self {
        Self { policy: AdaptiveLirs::new(entries as u64 * PAGE), present: HashSet::new(), entries }
    }

    fn make_room(&mut self) {
        while self.present.len() >= self.entries {
            let mut victim = None;
            self.policy.scan_candidates(&mut |candidate| {
                victim = Some(candidate.key);
                Scan::Stop
            });
            let victim = victim.expect("a full cache has candidates");
            assert!(self.present.remove(&victim), "only what is present is a candidate");
            self.policy.evict(&victim);
        }
    }

    fn read(&mut self, key: u64) -> bool {
        if self.present.contains(&key) {
            self.policy.touch(&key);
            return true;
        }
        self.make_room();
        self.present.insert(key);
        self.policy.admit(key, PAGE, AdmitReason::Demand);
        false
    }

    fn prefetch(&mut self, key: u64) {
        self.make_room();
        self.present.insert(key);
        self.policy.admit(key, PAGE, AdmitReason::Prefetch);
    }
}

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn zipf(keys: usize, exponent: f64, len: usize, seed: u64) -> Vec<u64> {
    let sums: Vec<f64> = (1..=keys)
        .scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-exponent);
            Some(*sum)
        })
        .collect();
    let mut random = Random(seed);
    let mut draw = || sums.partition_point(|&sum| sum < random.unit() * sums[keys - 1]) as u64;
    (0..len).map(|_| draw()).collect()
}

#[test]
fn misses_little_more_than_the_better_of_lru_and_arc_on_any_load() {
    let mut random = Random(7);
    let looping =
        (0..60_000).map(|i| if random.unit() < 0.3 { (1 << 20) + random.next() % 2000 } else { i % 2000 });
    let looping: Vec<u64> = looping.collect();
    let sliding: Vec<u64> =
        (0..80_000).map(|i| i / 10 + (random.unit() * random.unit() * 1500.0) as u64).collect();
    let steady = zipf(8000, 0.8, 80_000, 3);
    let shifting: Vec<u64> = zipf(3000, 0.9, 80_000, 11)
        .iter()
        .enumerate()
        .map(|(i, key)| key + (i as u64 / 20_000) * 10_000)
        .collect();
    for (name, trace) in [("loop", looping), ("sliding", sliding), ("zipf", steady), ("shifting", shifting)] {
        for capacity in [400, 1200, 2400] {
            let mut cache = TestCache::new(capacity);
            let misses = ratio(&trace, |key| cache.read(key));
            let best = lru(&trace, capacity).min(arc(&trace, capacity));
            assert!(misses < best + 0.03, "{name} with {capacity}: {misses:.4}, the best is {best:.4}");
        }
    }
}

#[test]
fn a_scan_of_four_times_the_cache_leaves_a_hot_set_of_half_of_it() {
    let (entries, hot) = (1000, 500u64);
    let mut cache = TestCache::new(entries);
    let mut random = Random(9);
    for _ in 0..10 * hot {
        cache.read(random.next() % hot);
    }
    let (mut hits, mut reads) = (0, 0);
    for scanned in 0..4 * entries as u64 {
        cache.read(1 << 40 | scanned);
        hits += u64::from(cache.read(random.next() % hot));
        reads += 1;
    }
    assert!(hits * 100 > reads * 98, "{hits} of {reads}");
}

#[test]
fn a_new_working_set_replaces_the_old_one() {
    let mut cache = TestCache::new(1000);
    let mut random = Random(4);
    for _ in 0..20_000 {
        cache.read(random.next() % 900);
    }
    for _ in 0..20_000 {
        cache.read(10_000 + random.next() % 900);
    }
    let misses = (0..10_000).filter(|_| !cache.read(10_000 + random.next() % 900)).count();
    assert!(misses < 100, "{misses} misses");
}

#[test]
fn an_unread_entry_stays_for_its_first_use_but_not_for_ever() {
    let mut cache = TestCache::new(1000);
    (0..100).for_each(|key| cache.prefetch(key));
    (1000..1500).for_each(|key| _ = cache.read(key));
    assert!((0..100).all(|key| cache.present.contains(&key)), "a reader that takes some time finds it");
    (2000..2400).for_each(|key| _ = cache.read(key));
    assert!((0..50).all(|key| cache.read(key)), "a scan does not push it out");
    (3000..6000).for_each(|key| _ = cache.read(key));
    assert_eq!((50..100).filter(|key| cache.present.contains(key)).count(), 0, "the rest was never used");
}

#[test]
fn unread_entries_do_not_fill_the_cache() {
    let mut cache = TestCache::new(1000);
    for key in 0..500 {
        cache.read(key);
        cache.read(key);
    }
    (1000..9000).for_each(|key| cache.prefetch(key));
    let kept = (0..500).filter(|key| cache.present.contains(key)).count();
    assert!(kept > 450, "{kept} of 500 used entries are left");
}

#[test]
fn an_entry_marked_hot_survives_a_scan() {
    let mut cache = TestCache::new(100);
    (0..100).for_each(|key| _ = cache.read(key));
    cache.read(200);
    cache.policy.mark_hot(&200);
    assert_eq!(cache.policy.temperature(&200), Temperature::Hot);
    (300..800).for_each(|key| _ = cache.read(key));
    assert!(cache.read(200));
}

#[test]
fn entries_in_use_are_skipped() {
    let mut cache = TestCache::new(100);
    (0..100).for_each(|key| _ = cache.read(key));
    let mut seen = HashSet::new();
    cache.policy.scan_candidates(&mut |candidate| {
        seen.insert(candidate.key);
        if seen.len() < 50 { Scan::InUse } else { Scan::Stop }
    });
    assert_eq!(seen.len(), 50);
    let mut next = None;
    cache.policy.scan_candidates(&mut |candidate| {
        next = Some(candidate.key);
        Scan::Stop
    });
    assert!(next.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After any operations, the policy shows exactly the entries that are present.
    #[test]
    fn every_present_entry_can_be_evicted(operations in prop::collection::vec((0u8..8, 0u64..60, 1u64..9), 0..600)) {
        let capacity = 100 * PAGE;
        let mut policy = AdaptiveLirs::new(capacity);
        let mut present: HashMap<u64, u64> = HashMap::new();
        for (operation, key, pages) in operations {
            match operation {
                0..=2 => {
                    let weight = pages * PAGE;
                    while present.values().sum::<u64>() + weight > capacity {
                        let mut victim = None;
                        policy.scan_candidates(&mut |candidate| { victim = Some(candidate.key); Scan::Stop });
                        let victim = victim.expect("something is present");
                        prop_assert!(present.remove(&victim).is_some());
                        policy.evict(&victim);
                    }
                    let reason = if operation == 0 { AdmitReason::Prefetch } else { AdmitReason::Demand };
                    policy.admit(key, weight, reason);
                    present.entry(key).or_insert(weight);
                }
                3..=5 => policy.touch(&key),
                6 => policy.mark_hot(&key),
                _ => {
                    policy.forget(&key);
                    present.remove(&key);
                }
            }
        }
        let mut shown = HashSet::new();
        policy.scan_candidates(&mut |candidate| { shown.insert(candidate.key); Scan::Continue });
        prop_assert_eq!(shown, present.keys().copied().collect::<HashSet<_>>());
    }
}
