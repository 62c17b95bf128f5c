//! Ratios over the last minutes, out of counters that only grow.
//!
//! A ticker notes the counters every [`TICK`]; a window's ratio is what was added since the newest note that is at
//! least as old as the window, or since the oldest one while the daemon is younger than that.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often to take note.
pub const TICK: Duration = Duration::from_secs(5);

/// The windows that are kept, with the names they are exported under.
pub const WINDOWS: [(&str, Duration); 2] =
    [("1m", Duration::from_secs(60)), ("10m", Duration::from_secs(600))];

/// Bytes of application reads so far: those that memory answered, and all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) from_memory: u64,
    pub(super) all: u64,
}

/// The notes taken, oldest first.
#[derive(Debug)]
pub(super) struct Notes(VecDeque<(Instant, Answered)>);

impl Notes {
    /// Begins to count at `now`, when nothing has been read.
    pub(super) fn new(now: Instant) -> Self {
        Self([(now, Answered::default())].into())
    }

    pub(super) fn take(&mut self, now: Instant, answered: Answered) {
        self.0.push_back((now, answered));
        let longest = WINDOWS[WINDOWS.len() - 1].1;
        // The second-oldest must stay too young for the longest window, or the oldest is of no use.
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= longest) {
            self.0.pop_front();
        }
    }

    /// The part of the bytes read in the window that memory answered, 0 to 1; `None` if nothing was read.
    pub(super) fn ratio(&self, now: Instant, answered: Answered, window: Duration) -> Option<f64> {
        let aged = |(at, _): &&(Instant, Answered)| now.duration_since(*at) >= window;
        let (_, since) = self.0.iter().rev().find(aged).or(self.0.front())?;
        let all = answered.all.saturating_sub(since.all);
        let from_memory = answered.from_memory.saturating_sub(since.from_memory).min(all);
        (all > 0).then(|| from_memory as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = WINDOWS[0].1;
    const TEN_MINUTES: Duration = WINDOWS[1].1;

    fn answered(from_memory: u64, all: u64) -> Answered {
        Answered { from_memory, all }
    }

    #[test]
    fn nothing_read_has_no_ratio() {
        let start = Instant::now();
        assert_eq!(Notes::new(start).ratio(start, answered(0, 0), MINUTE), None);
    }

    #[test]
    fn a_young_daemon_counts_from_its_start() {
        let start = Instant::now();
        let notes = Notes::new(start);
        assert_eq!(notes.ratio(start + TICK, answered(1, 4), TEN_MINUTES), Some(0.25));
    }

    #[test]
    fn windows_forget_what_is_older() {
        let start = Instant::now();
        let mut notes = Notes::new(start);
        // Ten minutes of misses only, 100 bytes a tick; then one minute of hits only.
        let (mut now, mut so_far) = (start, answered(0, 0));
        for _ in 0..120 {
            now += TICK;
            so_far.all += 100;
            notes.take(now, so_far);
        }
        for _ in 0..12 {
            now += TICK;
            so_far.all += 100;
            so_far.from_memory += 100;
            notes.take(now, so_far);
        }
        assert_eq!(notes.ratio(now, so_far, MINUTE), Some(1.0));
        assert_eq!(notes.ratio(now, so_far, TEN_MINUTES), Some(0.1));
    }

    #[test]
    fn notes_do_not_pile_up() {
        let start = Instant::now();
        let mut notes = Notes::new(start);
        for tick in 1..10_000 {
            notes.take(start + tick * TICK, answered(0, 0));
        }
        assert!(notes.0.len() <= (TEN_MINUTES.as_secs() / TICK.as_secs()) as usize + 2);
    }
}
