//! How often a cache would miss, for every size that it might have: the miss-ratio curve of what applications read, wherever the bytes came from.
//!
//! A cache that drops what was not used for longest (LRU) still has a granule if fewer others than fit into it were read since. Those *reuse
//! distances* are found out for a few granules only, which the programs choose by a hash of their place ([`interceptor_ebpf::sample`]): with a share
//! R of the granules looked at, distances among them are R times the true ones. This is SHARDS (Waldspurger et al., FAST 2015), in the
//! variant that bounds the number of granules by looking at fewer of them when there are too many, and with its correction for
//! how often the granules that happened to be chosen are read.
//!
//! First reads are misses at any size. What is older counts less and less.

mod distances;

use interceptor_ebpf::sample::{ALL, GROUP, choice};

use crate::telemetry::{MissRatioCurve, MissRatioPoint};
use distances::Distances;

/// Granules that are looked at, at most.
const KEYS: usize = 16 << 10;
/// Buckets of distances for each doubling.
const PER_DOUBLING: f64 = 8.0;
/// Buckets: for distances up to 2^40 granules.
const BUCKETS: usize = 321;
/// Samples a second, repetitions included, from which on fewer granules are looked at: more would slow down readers, who have to send them.
const BUSY: u64 = 50_000;
/// As long as it is not less than one group of so many.
const LEAST_SHARE: u32 = 1 << 10;
/// After so many samples the past counts half.
const MEMORY: f64 = (1 << 20) as f64;

/// The curve of one mount as it grows.
#[derive(Debug)]
pub(super) struct Curve {
    granule: u64,
    /// The programs sample groups of a rank below.
    below: u32,
    distances: Distances<(u64, u64)>,
    /// Samples by their distance, scaled to all granules.
    reused: Vec<f64>,
    /// Samples of granules that were not known.
    first: f64,
    /// The sum of both.
    seen: f64,
    /// Samples that there should have been, by the number of granules read.
    expected: f64,
    /// The counters of the programs when they were last looked at.
    touched: u64,
    again: u64,
    /// Reads that were looked at, and how many of them a second ago.
    sampled: u64,
    sampled_before: u64,
}

impl Curve {
    /// Of granules of so many bytes, of which as many as possible are sampled.
    pub(super) fn new(granule: u64) -> Self {
        Self {
            granule,
            below: ALL,
            distances: Distances::new(),
            reused: vec![0.0; BUCKETS],
            first: 0.0,
            seen: 0.0,
            expected: 0.0,
            touched: 0,
            again: 0,
            sampled: 0,
            sampled_before: 0,
        }
    }

    /// What the programs should compare ranks with.
    pub(super) fn below(&self) -> u32 {
        self.below
    }

    /// The share of the granules that is looked at.
    fn rate(&self) -> f64 {
        f64::from(self.below) / f64::from(ALL) / GROUP as f64
    }

    /// Takes note of a granule that was read, after another one.
    pub(super) fn read(&mut self, node: u64, granule: u64) {
        // The programs may not have heard yet that fewer are wanted.
        if choice(node, granule / GROUP).rank >= self.below {
            return;
        }
        self.sampled += 1;
        self.seen += 1.0;
        match self.distances.use_of((node, granule)) {
            Some(distance) => {
                let bucket = bucket_of((distance + 1) as f64 / self.rate());
                self.reused[bucket] += 1.0;
            }
            None => self.first += 1.0,
        }
        if self.distances.len() > KEYS {
            self.look_at_fewer();
        }
        if self.seen > MEMORY {
            self.scale(0.5);
        }
    }

    /// Takes note of the programs' counters: granules read, and those of them that were sampled and just had been.
    pub(super) fn count(&mut self, touched: u64, again: u64) {
        let again_now = again.saturating_sub(self.again);
        self.reused[0] += again_now as f64;
        self.seen += again_now as f64;
        self.sampled += again_now;
        self.expected += touched.saturating_sub(self.touched) as f64 * self.rate();
        (self.touched, self.again) = (touched, again);
    }

    /// To be called every second: looks at fewer granules if the last one was busy.
    pub(super) fn second(&mut self) {
        if self.sampled - self.sampled_before > BUSY && self.below > ALL / LEAST_SHARE {
            self.look_at_fewer();
        }
        self.sampled_before = self.sampled;
    }

    fn look_at_fewer(&mut self) {
        self.below /= 2;
        let below = self.below;
        self.distances.retain(|(node, granule)| choice(*node, granule / GROUP).rank < below);
        self.scale(0.5);
    }

    fn scale(&mut self, by: f64) {
        self.reused.iter_mut().for_each(|count| *count *= by);
        self.first *= by;
        self.seen *= by;
        self.expected *= by;
    }

    /// The curve so far.
    pub(super) fn told(&self) -> MissRatioCurve {
        let seen = self.seen;
        let mut curve =
            MissRatioCurve { granule_bytes: self.granule, sampled_reads: self.sampled, points: Vec::new() };
        if seen <= 0.0 {
            return curve;
        }
        // Who read more or less often than those that were chosen did so mostly at a small distance.
        let nearest = (self.reused[0] + self.expected - seen).max(0.0);
        let total = seen - self.reused[0] + nearest;
        let mut missed = total;
        let furthest = self.reused.iter().rposition(|count| *count > 0.0).unwrap_or(0);
        for (bucket, count) in self.reused.iter().enumerate().take(furthest + 1) {
            missed -= if bucket == 0 { nearest } else { *count };
            let bytes = (distance_of(bucket) * self.granule as f64) as u64;
            let point = MissRatioPoint { bytes, miss_ratio: (missed / total).clamp(0.0, 1.0) };
            // Small distances have more buckets than whole granules.
            match curve.points.last_mut() {
                Some(last) if last.bytes >= bytes => last.miss_ratio = point.miss_ratio,
                _ => curve.points.push(point),
            }
        }
        curve
    }
}

/// The bucket of a distance in granules.
fn bucket_of(distance: f64) -> usize {
    ((distance.max(1.0).log2() * PER_DOUBLING).ceil() as usize).min(BUCKETS - 1)
}

/// The largest distance in a bucket.
fn distance_of(bucket: usize) -> f64 {
    (bucket as f64 / PER_DOUBLING).exp2()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const PAGE: u64 = 4096;

    /// What the programs do with reads of granules of one file.
    fn sampled(reads: impl Iterator<Item = u64>) -> Curve {
        let mut curve = Curve::new(PAGE);
        let (mut last, mut touched, mut again) = (None, 0, 0);
        for granule in reads {
            touched += 1;
            let choice = choice(7, granule / GROUP);
            if choice.granule != granule || choice.rank >= curve.below() {
                continue;
            }
            if last == Some(granule) {
                again += 1;
            } else {
                curve.read(7, granule);
            }
            last = Some(granule);
            curve.count(touched, again);
        }
        curve.count(touched, again);
        curve
    }

    /// What an LRU cache of so many granules misses.
    fn lru_misses(reads: &[u64], size: u64) -> f64 {
        let mut distances = Distances::new();
        let missed = reads.iter().filter(|granule| distances.use_of(**granule).is_none_or(|d| d >= size));
        missed.count() as f64 / reads.len() as f64
    }

    fn zipf(granules: usize, reads: usize, exponent: f64, seed: u64) -> Vec<u64> {
        let mut dice = StdRng::seed_from_u64(seed);
        let sums: Vec<f64> = (1..=granules)
            .scan(0.0, |sum, rank| {
                *sum += (rank as f64).powf(-exponent);
                Some(*sum)
            })
            .collect();
        let read = |_| {
            let point = dice.random::<f64>() * sums[granules - 1];
            // The factor has no divisor in common with the number of granules.
            (sums.partition_point(|sum| *sum <= point) * 7919 % granules) as u64
        };
        (0..reads).map(read).collect()
    }

    fn compare(reads: &[u64], granules: u64) {
        let curve = sampled(reads.iter().copied()).told();
        for part in [20, 10, 5, 3, 2] {
            let size = granules / part;
            let (expected, found) = (lru_misses(reads, size), curve.miss_ratio(size * PAGE).unwrap());
            assert!((expected - found).abs() < 0.03, "{size} granules: {found} instead of {expected}");
        }
    }

    #[test]
    fn the_curve_is_that_of_an_lru_cache() {
        compare(&zipf(20_000, 300_000, 0.0, 1), 20_000);
        compare(&zipf(20_000, 300_000, 0.8, 2), 20_000);
    }

    #[test]
    fn with_more_granules_than_are_looked_at_it_still_is() {
        let reads = zipf(500_000, 1_000_000, 0.7, 3);
        let curve = sampled(reads.iter().copied());
        assert!(curve.below() < ALL && curve.distances.len() <= KEYS);
        compare(&reads, 500_000);
    }

    #[test]
    fn a_loop_fits_or_does_not() {
        let curve = sampled((0..200_000).map(|i| i % 10_000)).told();
        assert!(curve.miss_ratio(8_000 * PAGE).unwrap() > 0.95);
        assert!(curve.miss_ratio(12_500 * PAGE).unwrap() < 0.1);
    }

    #[test]
    fn without_reads_there_is_no_curve() {
        let curve = Curve::new(PAGE).told();
        assert_eq!((curve.points.len(), curve.miss_ratio(1 << 30)), (0, None));
    }

    #[test]
    fn points_go_up_in_size_and_down_in_misses() {
        let curve = sampled(zipf(5_000, 50_000, 0.9, 4).into_iter()).told();
        assert!(curve.points.len() > 10);
        for pair in curve.points.windows(2) {
            assert!(pair[0].bytes < pair[1].bytes && pair[0].miss_ratio >= pair[1].miss_ratio);
        }
    }
}
