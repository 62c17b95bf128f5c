//! The miss-ratio curve of what applications read, wherever the bytes came from: how often a
//! cache of each size would miss.
//!
//! An LRU cache still holds a granule if fewer distinct granules than fit into it were read
//! since. These *reuse distances* are measured for a sample of the granules only, which the
//! programs choose by a hash of file and offset ([`interceptor_ebpf::sampling`]): with a share R
//! of the granules sampled, distances among samples are R times the true ones. This is SHARDS
//! (Waldspurger et al., FAST 2015), in its fixed-size variant, which lowers the rate when there
//! are too many granules, and with its correction for how often the sampled granules happen to be
//! read.
//!
//! First reads are misses at any size. Older reads count less and less.

mod reuse_distance;

use interceptor_ebpf::sampling::{GROUP_GRANULES, RANKS, group_sample};

use crate::telemetry::{MissRatioCurve, MissRatioPoint};
use reuse_distance::ReuseDistances;

/// Sampled granules whose distances are tracked.
const MAX_GRANULES: usize = 16 << 10;
/// Buckets of distances for each doubling.
const BUCKETS_PER_DOUBLING: f64 = 8.0;
/// Buckets: for distances up to 2^40 granules.
const BUCKETS: usize = 321;
/// Above this rate, repetitions included, the sampling rate is halved: readers would pay for
/// sending more.
const MAX_SAMPLES_PER_SECOND: u64 = 50_000;
/// The sampling rate is not halved below one group in this many.
const MAX_GROUPS_PER_SAMPLE: u32 = 1 << 10;
/// After this many samples, all earlier ones count half.
const DECAY_SAMPLES: f64 = (1 << 20) as f64;

/// The curve of one mount, as its samples arrive.
#[derive(Debug)]
pub(super) struct CurveEstimator {
    granule: u64,
    /// The programs sample groups whose rank is below this.
    rank_limit: u32,
    distances: ReuseDistances<(u64, u64)>,
    /// Samples by reuse distance, scaled to all granules.
    reused: Vec<f64>,
    /// Samples of granules that were not tracked before.
    first_reads: f64,
    /// All samples: the sum of `reused` and `first_reads`.
    samples: f64,
    /// Samples to be expected of the number of granules read, at the sampling rate.
    expected: f64,
    /// The programs' counters at the last call of [`add_counters`](Self::add_counters).
    granules_read: u64,
    repeated_samples: u64,
    /// All samples without decay, and their number a second ago.
    sampled: u64,
    sampled_before: u64,
}

impl CurveEstimator {
    /// For granules of `granule` bytes, sampled at the highest rate.
    pub(super) fn new(granule: u64) -> Self {
        Self {
            granule,
            rank_limit: RANKS,
            distances: ReuseDistances::new(),
            reused: vec![0.0; BUCKETS],
            first_reads: 0.0,
            samples: 0.0,
            expected: 0.0,
            granules_read: 0,
            repeated_samples: 0,
            sampled: 0,
            sampled_before: 0,
        }
    }

    /// The rank below which the programs should sample a group.
    pub(super) fn rank_limit(&self) -> u32 {
        self.rank_limit
    }

    /// The share of granules that is sampled.
    fn rate(&self) -> f64 {
        f64::from(self.rank_limit) / f64::from(RANKS) / GROUP_GRANULES as f64
    }

    /// Adds a sample: a read of a granule right after a read of another one.
    pub(super) fn add_sample(&mut self, node: u64, granule: u64) {
        // The programs may not know the lower limit yet.
        if group_sample(node, granule / GROUP_GRANULES).rank >= self.rank_limit {
            return;
        }
        self.sampled += 1;
        self.samples += 1.0;
        match self.distances.record_use((node, granule)) {
            Some(distance) => {
                let bucket = bucket_of((distance + 1) as f64 / self.rate());
                self.reused[bucket] += 1.0;
            }
            None => self.first_reads += 1.0,
        }
        if self.distances.len() > MAX_GRANULES {
            self.halve_rate();
        }
        if self.samples > DECAY_SAMPLES {
            self.scale(0.5);
        }
    }

    /// Adds the programs' counters: granules read, and samples that repeated the sample before,
    /// which the programs count instead of sending.
    pub(super) fn add_counters(&mut self, granules_read: u64, repeated_samples: u64) {
        let repeated = repeated_samples.saturating_sub(self.repeated_samples);
        self.reused[0] += repeated as f64;
        self.samples += repeated as f64;
        self.sampled += repeated;
        self.expected += granules_read.saturating_sub(self.granules_read) as f64 * self.rate();
        (self.granules_read, self.repeated_samples) = (granules_read, repeated_samples);
    }

    /// Halves the sampling rate if the last second brought too many samples. Must be called once a
    /// second.
    pub(super) fn limit_rate(&mut self) {
        let last_second = self.sampled - self.sampled_before;
        if last_second > MAX_SAMPLES_PER_SECOND && self.rank_limit > RANKS / MAX_GROUPS_PER_SAMPLE {
            self.halve_rate();
        }
        self.sampled_before = self.sampled;
    }

    fn halve_rate(&mut self) {
        self.rank_limit /= 2;
        let limit = self.rank_limit;
        self.distances.retain(|(node, granule)| group_sample(*node, granule / GROUP_GRANULES).rank < limit);
        self.scale(0.5);
    }

    fn scale(&mut self, by: f64) {
        self.reused.iter_mut().for_each(|count| *count *= by);
        self.first_reads *= by;
        self.samples *= by;
        self.expected *= by;
    }

    /// The curve so far.
    pub(super) fn curve(&self) -> MissRatioCurve {
        let mut curve =
            MissRatioCurve { granule_bytes: self.granule, sampled_reads: self.sampled, points: Vec::new() };
        if self.samples <= 0.0 || self.expected <= 0.0 {
            return curve;
        }
        // SHARDS' correction: sampled granules that are read more or less often than the average
        // are so mostly at small distances. So the misses of a size, which have larger ones, are
        // right as they are, and it is the number of all samples that is not.
        let mut missed = self.samples;
        let furthest = self.reused.iter().rposition(|count| *count > 0.0).unwrap_or(0);
        for (bucket, count) in self.reused.iter().enumerate().take(furthest + 1) {
            missed -= count;
            let bytes = (max_distance(bucket) * self.granule as f64) as u64;
            let point = MissRatioPoint { bytes, miss_ratio: (missed / self.expected).clamp(0.0, 1.0) };
            // At small distances several buckets lie within one granule.
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
    ((distance.max(1.0).log2() * BUCKETS_PER_DOUBLING).ceil() as usize).min(BUCKETS - 1)
}

/// The largest distance in a bucket, in granules.
fn max_distance(bucket: usize) -> f64 {
    (bucket as f64 / BUCKETS_PER_DOUBLING).exp2()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const PAGE: u64 = 4096;

    /// Samples reads of granules of one file as the programs do.
    fn sampled(reads: impl Iterator<Item = u64>) -> CurveEstimator {
        let mut curve = CurveEstimator::new(PAGE);
        let (mut last, mut granules_read, mut repeated_samples) = (None, 0, 0);
        for granule in reads {
            granules_read += 1;
            let sample = group_sample(7, granule / GROUP_GRANULES);
            if sample.granule != granule || sample.rank >= curve.rank_limit() {
                continue;
            }
            if last == Some(granule) {
                repeated_samples += 1;
            } else {
                curve.add_sample(7, granule);
            }
            last = Some(granule);
            curve.add_counters(granules_read, repeated_samples);
        }
        curve.add_counters(granules_read, repeated_samples);
        curve
    }

    /// The miss ratio of an LRU cache of `size` granules.
    fn lru_misses(reads: &[u64], size: u64) -> f64 {
        let mut distances = ReuseDistances::new();
        let missed = reads.iter().filter(|granule| distances.record_use(**granule).is_none_or(|d| d >= size));
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
            // Spreads the hot granules: the factor and the number of granules are coprime.
            (sums.partition_point(|sum| *sum <= point) * 7919 % granules) as u64
        };
        (0..reads).map(read).collect()
    }

    fn compare(reads: &[u64], granules: u64) {
        let curve = sampled(reads.iter().copied()).curve();
        for part in [20, 10, 5, 3, 2] {
            let size = granules / part;
            let (expected, found) = (lru_misses(reads, size), curve.miss_ratio(size * PAGE).unwrap());
            assert!((expected - found).abs() < 0.03, "{size} granules: {found} instead of {expected}");
        }
    }

    #[test]
    fn the_curve_matches_an_lru_cache() {
        compare(&zipf(20_000, 300_000, 0.0, 1), 20_000);
        compare(&zipf(20_000, 300_000, 0.8, 2), 20_000);
    }

    #[test]
    fn the_curve_matches_with_more_granules_than_are_tracked() {
        let reads = zipf(500_000, 1_000_000, 0.7, 3);
        let curve = sampled(reads.iter().copied());
        assert!(curve.rank_limit() < RANKS && curve.distances.len() <= MAX_GRANULES);
        compare(&reads, 500_000);
    }

    #[test]
    fn the_curve_matches_if_all_that_is_read_most_is_among_the_samples() {
        let mut reads = zipf(20_000, 300_000, 0.9, 5);
        for rank in 0..4 {
            let hot = rank * 7919 % 20_000;
            let sample = group_sample(7, rank).granule;
            for read in &mut reads {
                *read = match *read {
                    granule if granule == hot => sample,
                    granule if granule == sample => hot,
                    granule => granule,
                };
            }
        }
        compare(&reads, 20_000);
    }

    #[test]
    fn a_loop_hits_only_if_the_cache_holds_all_of_it() {
        let curve = sampled((0..200_000).map(|i| i % 10_000)).curve();
        assert!(curve.miss_ratio(8_000 * PAGE).unwrap() > 0.95);
        assert!(curve.miss_ratio(12_500 * PAGE).unwrap() < 0.1);
    }

    #[test]
    fn a_curve_without_reads_has_no_points() {
        let curve = CurveEstimator::new(PAGE).curve();
        assert_eq!((curve.points.len(), curve.miss_ratio(1 << 30)), (0, None));
    }

    #[test]
    fn miss_ratio_falls_as_size_grows() {
        let curve = sampled(zipf(5_000, 50_000, 0.9, 4).into_iter()).curve();
        assert!(curve.points.len() > 10);
        for pair in curve.points.windows(2) {
            assert!(pair[0].bytes < pair[1].bytes && pair[0].miss_ratio >= pair[1].miss_ratio);
        }
    }
}
