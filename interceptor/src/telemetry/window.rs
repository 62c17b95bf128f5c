//! Ratios over the last minutes, out of counters that only grow.
//!
//! A ticker samples the counters every [`TICK`]; a window's ratio is what was added since the newest note that is at
//! least as old as the window, or since the oldest one while the daemon is younger than that.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ratios::{AnsweredBytes, HitRatios};

/// How often to take note.
pub const TICK: Duration = Duration::from_secs(5);

/// The windows that are kept, with the names they are exported under.
pub const WINDOWS: [(&str, Duration); 2] =
    [("1m", Duration::from_secs(60)), ("10m", Duration::from_secs(600))];

/// The samples taken, oldest first.
#[derive(Debug)]
pub(super) struct WindowSamples(VecDeque<(Instant, AnsweredBytes)>);

impl WindowSamples {
    /// Begins to count at `now`, when nothing has been read.
    pub(super) fn new(now: Instant) -> Self {
        Self([(now, AnsweredBytes::default())].into())
    }

    pub(super) fn take(&mut self, now: Instant, answered: AnsweredBytes) {
        self.0.push_back((now, answered));
        let longest = WINDOWS[WINDOWS.len() - 1].1;
        // The second-oldest must stay too young for the longest window, or the oldest is of no use.
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= longest) {
            self.0.pop_front();
        }
    }

    /// The hit ratios of what was read in the window.
    pub(super) fn ratios(&self, now: Instant, answered: AnsweredBytes, window: Duration) -> HitRatios {
        let aged = |(at, _): &&(Instant, AnsweredBytes)| now.duration_since(*at) >= window;
        let noted = self.0.iter().rev().find(aged).or(self.0.front());
        answered.since(&noted.map(|(_, since)| *since).unwrap_or_default()).hit_ratios()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = WINDOWS[0].1;
    const TEN_MINUTES: Duration = WINDOWS[1].1;

    fn answered(registered: u64, daemon: u64) -> AnsweredBytes {
        AnsweredBytes { registered, daemon, kernel: None }
    }

    #[test]
    fn nothing_read_has_no_ratio() {
        let start = Instant::now();
        assert_eq!(WindowSamples::new(start).ratios(start, answered(0, 0), MINUTE), HitRatios::default());
    }

    #[test]
    fn a_young_daemon_counts_from_its_start() {
        let start = Instant::now();
        let samples = WindowSamples::new(start);
        assert_eq!(samples.ratios(start + TICK, answered(1, 4), TEN_MINUTES).registered, Some(0.25));
    }

    #[test]
    fn windows_forget_what_is_older() {
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
            so_far.registered += 100;
            samples.take(now, so_far);
        }
        assert_eq!(samples.ratios(now, so_far, MINUTE).registered, Some(1.0));
        assert_eq!(samples.ratios(now, so_far, TEN_MINUTES).registered, Some(0.1));
    }

    #[test]
    fn notes_do_not_pile_up() {
        let start = Instant::now();
        let mut samples = WindowSamples::new(start);
        for tick in 1..10_000 {
            samples.take(start + tick * TICK, answered(0, 0));
        }
        assert!(samples.0.len() <= (TEN_MINUTES.as_secs() / TICK.as_secs()) as usize + 2);
    }
}
