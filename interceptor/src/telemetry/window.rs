//! Hit ratios over sliding windows, from counters that only grow.
//!
//! A task samples the counters every [`TICK`]. The ratio of a window is that of the bytes added
//! since the newest sample that is at least as old as the window, or since the oldest sample
//! while the daemon is younger than the window.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ratios::{AnsweredBytes, HitRatios};

/// The interval between samples.
pub const TICK: Duration = Duration::from_secs(5);

/// The windows, with the names under which they are exported.
pub const WINDOWS: [(&str, Duration); 2] =
    [("1m", Duration::from_secs(60)), ("10m", Duration::from_secs(600))];

/// The samples of the counters, oldest first.
#[derive(Debug)]
pub(super) struct WindowSamples(VecDeque<(Instant, AnsweredBytes)>);

impl WindowSamples {
    /// Starts at `now`, before anything was read.
    pub(super) fn new(now: Instant) -> Self {
        Self([(now, AnsweredBytes::default())].into())
    }

    pub(super) fn take(&mut self, now: Instant, answered: AnsweredBytes) {
        self.0.push_back((now, answered));
        let longest = WINDOWS[WINDOWS.len() - 1].1;
        // The oldest sample is needed only while the second-oldest is too young for the longest
        // window.
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= longest) {
            self.0.pop_front();
        }
    }

    /// The hit ratios of the bytes read in the window.
    pub(super) fn ratios(&self, now: Instant, answered: AnsweredBytes, window: Duration) -> HitRatios {
        let aged = |(at, _): &&(Instant, AnsweredBytes)| now.duration_since(*at) >= window;
        let start = self.0.iter().rev().find(aged).or(self.0.front());
        answered.since(&start.map(|(_, since)| *since).unwrap_or_default()).hit_ratios()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = WINDOWS[0].1;
    const TEN_MINUTES: Duration = WINDOWS[1].1;

    fn answered(cache: u64, daemon: u64) -> AnsweredBytes {
        AnsweredBytes { cache, daemon, kernel: None }
    }

    #[test]
    fn without_reads_there_is_no_ratio() {
        let start = Instant::now();
        assert_eq!(WindowSamples::new(start).ratios(start, answered(0, 0), MINUTE), HitRatios::default());
    }

    #[test]
    fn a_young_daemon_counts_from_its_start() {
        let start = Instant::now();
        let samples = WindowSamples::new(start);
        assert_eq!(samples.ratios(start + TICK, answered(1, 4), TEN_MINUTES).cache, Some(0.25));
    }

    #[test]
    fn a_window_ignores_older_reads() {
        let start = Instant::now();
        let mut samples = WindowSamples::new(start);
        // Ten minutes of misses only, 100 bytes a tick; then one minute of hits only.
        let (mut now, mut so_far) = (start, answered(0, 0));
        for _ in 0..120 {
            now += TICK;
            so_far.daemon += 100;
            samples.take(now, so_far);
        }
        for _ in 0..12 {
            now += TICK;
            so_far.daemon += 100;
            so_far.cache += 100;
            samples.take(now, so_far);
        }
        assert_eq!(samples.ratios(now, so_far, MINUTE).cache, Some(1.0));
        assert_eq!(samples.ratios(now, so_far, TEN_MINUTES).cache, Some(0.1));
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
