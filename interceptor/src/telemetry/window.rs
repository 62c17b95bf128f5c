//! Hit ratios and waits of reads over sliding windows, from counters that only grow.
//!
//! A task samples the counters every [`TICK`]. A window's figures are of the reads counted since
//! the newest sample that is at least as old as the window, or since the oldest sample while the
//! daemon is younger than the window.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::kernel::KernelCounts;
use super::ratios::{AnsweredBytes, HitRatios};
use super::shard::FlowTotal;
use super::totals::Totals;

/// The interval between samples.
pub const TICK: Duration = Duration::from_secs(5);

/// The windows, with the names under which they are exported.
pub const WINDOWS: [(&str, Duration); 2] =
    [("1m", Duration::from_secs(60)), ("10m", Duration::from_secs(600))];

/// The counters of reads at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct ReadSample {
    /// Bytes by the layer that answered.
    pub(super) answered: AnsweredBytes,
    /// Reads that reached the daemon, of all sources.
    pub(super) waits: FlowTotal,
    /// Of these, how many failed.
    pub(super) failed: u64,
    /// Fetches whose bytes were refused as damaged.
    pub(super) damaged: u64,
}

impl ReadSample {
    /// What counters that were taken together say.
    pub(super) fn new(totals: &Totals, kernel: Option<&KernelCounts>) -> Self {
        let answered = AnsweredBytes::new(totals, kernel);
        let (failed, damaged) = (totals.failed_reads.count(), totals.integrity_failures.values().sum());
        Self { answered, waits: totals.all_reads(), failed, damaged }
    }
}

/// The reads within a window.
#[derive(Debug, Clone, Default)]
pub struct WindowReads {
    /// Their hit ratios.
    pub hit_ratios: HitRatios,
    /// Those that reached the daemon, with the time until their answer, or until now.
    pub waits: FlowTotal,
    /// How many of these failed.
    pub failed: u64,
    /// Fetches whose bytes were refused as damaged.
    pub damaged: u64,
}

/// The samples of the counters, oldest first.
#[derive(Debug)]
pub(super) struct WindowSamples(VecDeque<(Instant, ReadSample)>);

impl WindowSamples {
    /// Starts at `now`, before anything was read.
    pub(super) fn new(now: Instant) -> Self {
        Self([(now, ReadSample::default())].into())
    }

    pub(super) fn take(&mut self, now: Instant, sample: ReadSample) {
        self.0.push_back((now, sample));
        let longest = WINDOWS[WINDOWS.len() - 1].1;
        // The oldest sample is needed only while the second-oldest is too young for the longest
        // window.
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= longest) {
            self.0.pop_front();
        }
    }

    /// The reads of the `window` before `now`, when the counters are at `sample`.
    pub(super) fn reads(&self, now: Instant, sample: &ReadSample, window: Duration) -> WindowReads {
        let aged = |(at, _): &&(Instant, ReadSample)| now.duration_since(*at) >= window;
        let start = self.0.iter().rev().find(aged).or(self.0.front());
        let since = start.map(|(_, since)| since.clone()).unwrap_or_default();
        WindowReads {
            hit_ratios: sample.answered.since(&since.answered).hit_ratios(),
            waits: sample.waits.since(&since.waits),
            failed: sample.failed.saturating_sub(since.failed),
            damaged: sample.damaged.saturating_sub(since.damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = WINDOWS[0].1;
    const TEN_MINUTES: Duration = WINDOWS[1].1;

    fn answered(cache: u64, daemon: u64) -> ReadSample {
        let answered = AnsweredBytes { cache, daemon, kernel: None };
        let waits = FlowTotal { bytes: daemon, ..FlowTotal::default() };
        ReadSample { answered, waits, ..ReadSample::default() }
    }

    fn ratios(samples: &WindowSamples, now: Instant, sample: &ReadSample, window: Duration) -> HitRatios {
        samples.reads(now, sample, window).hit_ratios
    }

    #[test]
    fn without_reads_there_is_no_ratio() {
        let start = Instant::now();
        assert_eq!(ratios(&WindowSamples::new(start), start, &answered(0, 0), MINUTE), HitRatios::default());
    }

    #[test]
    fn a_young_daemon_counts_from_its_start() {
        let start = Instant::now();
        let samples = WindowSamples::new(start);
        assert_eq!(ratios(&samples, start + TICK, &answered(1, 4), TEN_MINUTES).cache, Some(0.25));
    }

    #[test]
    fn a_window_ignores_older_reads() {
        let start = Instant::now();
        let mut samples = WindowSamples::new(start);
        // Ten minutes of misses only, 100 bytes a tick; then one minute of hits only.
        let (mut now, mut so_far) = (start, answered(0, 0));
        for _ in 0..120 {
            now += TICK;
            so_far.answered.daemon += 100;
            samples.take(now, so_far.clone());
        }
        for _ in 0..12 {
            now += TICK;
            so_far.answered.daemon += 100;
            so_far.answered.cache += 100;
            so_far.waits.bytes += 100;
            samples.take(now, so_far.clone());
        }
        assert_eq!(ratios(&samples, now, &so_far, MINUTE).cache, Some(1.0));
        assert_eq!(ratios(&samples, now, &so_far, TEN_MINUTES).cache, Some(0.1));
        assert_eq!(samples.reads(now, &so_far, MINUTE).waits.bytes, 1200);
    }

    #[test]
    fn old_samples_are_dropped() {
        let start = Instant::now();
        let mut samples = WindowSamples::new(start);
        for tick in 1..10_000 {
            samples.take(start + tick * TICK, answered(0, 0));
        }
        assert!(samples.0.len() <= (TEN_MINUTES.as_secs() / TICK.as_secs()) as usize + 2);
    }
}
