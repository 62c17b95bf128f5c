//! Precision and recall of hot granules: a Zipf(0.99) replay of 1,000,000 reads over 100,000
//! granules through the functions that the programs run, with a bounded LRU map in place of the
//! kernel's.

use std::collections::{BTreeMap, HashMap, HashSet};

use interceptor_ebpf::heat::{Heat, HeatSettings};
use interceptor_ebpf::records::GranuleKey;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

const GRANULES: usize = 100_000;
const READS: usize = 1_000_000;
const BYTES: u64 = 4096;
/// Time between two reads.
const READ_INTERVAL_NS: u64 = 100_000;

/// Draws ranks from 0 with probability proportional to `(rank + 1)^-0.99`.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new() -> Self {
        let mut sum = 0.0;
        Self(
            (1..=GRANULES)
                .map(|rank| {
                    sum += (rank as f64).powf(-0.99);
                    sum
                })
                .collect(),
        )
    }

    fn draw(&self, random: &mut impl Rng) -> usize {
        let point = random.random_range(0.0..self.0[GRANULES - 1]);
        self.0.partition_point(|&sum| sum <= point)
    }

    /// The share of reads that go to `rank`.
    fn share(&self, rank: usize) -> f64 {
        ((rank + 1) as f64).powf(-0.99) / self.0[GRANULES - 1]
    }
}

/// An LRU map. The kernel's LRU hash approximates it.
struct LruMap {
    capacity: usize,
    clock: u64,
    values: HashMap<usize, (u64, Heat)>,
    by_age: BTreeMap<u64, usize>,
}

impl LruMap {
    fn new(capacity: usize) -> Self {
        Self { capacity, clock: 0, values: HashMap::new(), by_age: BTreeMap::new() }
    }

    fn entry(&mut self, key: usize) -> &mut Heat {
        self.clock += 1;
        if let Some((used, _)) = self.values.get(&key) {
            self.by_age.remove(used);
        } else if self.values.len() == self.capacity {
            let (_, oldest) = self.by_age.pop_first().expect("the map is full");
            self.values.remove(&oldest);
        }
        self.by_age.insert(self.clock, key);
        let (used, heat) = self.values.entry(key).or_default();
        *used = self.clock;
        heat
    }
}

/// The share of the true top 1 % that turned hot, and the share of hot granules outside the true
/// top 3 %.
fn replay(capacity: usize, settings: &HeatSettings, seed: u64) -> (f64, f64) {
    let zipf = Zipf::new();
    let mut random = StdRng::seed_from_u64(seed);
    let mut granule_of: Vec<usize> = (0..GRANULES).collect();
    granule_of.shuffle(&mut random);
    let (mut map, mut counts, mut hot) = (LruMap::new(capacity), vec![0u32; GRANULES], HashSet::new());
    for i in 0..READS as u64 {
        let granule = granule_of[zipf.draw(&mut random)];
        counts[granule] += 1;
        let heat = map.entry(granule);
        let (after, turned) = heat.after_read(BYTES, settings.tick(i * READ_INTERVAL_NS), settings);
        *heat = after;
        if turned {
            hot.insert(granule);
        }
    }
    let mut ranked: Vec<usize> = (0..GRANULES).collect();
    ranked.sort_by_key(|&granule| std::cmp::Reverse(counts[granule]));
    let top = ranked[..GRANULES / 100].iter().filter(|granule| hot.contains(granule)).count();
    let near: HashSet<usize> = ranked[..GRANULES * 3 / 100].iter().copied().collect();
    let far = hot.difference(&near).count();
    let (recall, outside) = (top as f64 / (GRANULES / 100) as f64, far as f64 / hot.len() as f64);
    let memory = capacity * (size_of::<GranuleKey>() + size_of::<Heat>());
    println!(
        "{capacity} entries ({} KiB of keys and values), half-life {} s: {} hot, {:.1} % of the top 1 %, {:.1} % outside the top 3 %",
        memory / 1024,
        settings.tick_ns * 64 / 1_000_000_000,
        hot.len(),
        recall * 100.0,
        outside * 100.0
    );
    (recall, outside)
}

/// The steady-state heat of a granule of this rank.
fn steady(rank: usize, half_life_ns: u64) -> u64 {
    let reads_per_half_life = Zipf::new().share(rank) * half_life_ns as f64 / READ_INTERVAL_NS as f64;
    (reads_per_half_life / std::f64::consts::LN_2 * BYTES as f64) as u64
}

#[test]
fn hot_granules_are_the_most_read_ones() {
    // The replay lasts 100 s. The half-lives are far longer than that, as long, and a quarter of
    // it.
    for (half_life, seed) in [(10_000, 1), (100, 2), (25, 3)] {
        let half_life = half_life * 1_000_000_000;
        for capacity in [GRANULES, 32 << 10, 16 << 10] {
            // On a logarithmic scale half-way between the granules that must turn hot and those
            // that must not, scaled to the heat that accrues in 100 s.
            let accrued = 1.0 - (-100e9 / half_life as f64).exp2();
            let threshold = (steady(1700, half_life) as f64 * accrued) as u64;
            let (recall, outside) = replay(capacity, &HeatSettings::new(threshold, half_life), seed);
            assert!(recall >= 0.95 && outside <= 0.05, "recall {recall}, outside {outside}");
        }
    }
}
