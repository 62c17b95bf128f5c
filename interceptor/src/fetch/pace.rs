//! How long a server takes until it begins to answer, and how long to wait for that before asking another.
//!
//! A volume server reads the whole of what it is asked for before it says a word, so requests are sorted by size. Of each
//! size the last [`KEPT`] times are kept, and a request is late when it has waited longer than 95 of 100 of them did. That is
//! where Dean and Barroso (The Tail at Scale, CACM 2013) send their second request: it catches the slowest and
//! costs little.

use std::time::Duration;

/// Times that are remembered for each size. 95 % of them leave six, enough that one bad moment does not decide.
const KEPT: usize = 128;
/// Times that must be known before they are trusted.
const ENOUGH: usize = 20;
/// After how many new times the percentile is worked out again.
const EVERY: usize = 16;
/// Requests up to so many bytes are of one size; the rest is another.
const SIZES: [u64; 2] = [64 << 10, 1 << 20];
/// No request is late before this: below it, what is won is not worth a second request, and most lateness is this host's own.
const SOONEST: Duration = Duration::from_millis(10);
/// Every request is late after this: a disk that has to seek for 4 MiB under load takes less.
const LATEST: Duration = Duration::from_secs(1);
/// When requests are late at a server of which little is known.
const UNKNOWN: Duration = Duration::from_millis(100);

/// What is known of a server's pace.
#[derive(Debug, Default)]
pub(super) struct Pace {
    sizes: [Recent; SIZES.len() + 1],
}

#[derive(Debug, Default)]
struct Recent {
    /// A ring, in no order.
    times: Vec<Duration>,
    /// How many times were noted.
    count: usize,
    p95: Option<Duration>,
}

impl Pace {
    /// Notes that a request for `bytes` began to be answered after `time`, or that it was not for so long.
    pub(super) fn note(&mut self, bytes: u64, time: Duration) {
        self.sizes[size(bytes)].note(time);
    }

    /// After what time without an answer a request for `bytes` is late.
    pub(super) fn patience(&self, bytes: u64) -> Duration {
        self.sizes[size(bytes)].p95.map_or(UNKNOWN, |p95| p95.clamp(SOONEST, LATEST))
    }
}

impl Recent {
    fn note(&mut self, time: Duration) {
        if self.times.len() < KEPT {
            self.times.push(time);
        } else {
            self.times[self.count % KEPT] = time;
        }
        self.count += 1;
        if self.count == ENOUGH || (self.count > ENOUGH && self.count.is_multiple_of(EVERY)) {
            let mut sorted = self.times.clone();
            let rank = sorted.len() * 95 / 100;
            self.p95 = Some(*sorted.select_nth_unstable(rank).1);
        }
    }
}

fn size(bytes: u64) -> usize {
    SIZES.partition_point(|&limit| limit < bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn late_is_what_is_slower_than_nearly_all_of_late() {
        let mut pace = Pace::default();
        assert_eq!(pace.patience(4096), UNKNOWN);
        for i in 1..=100 {
            pace.note(4096, ms(i));
        }
        let patience = pace.patience(16 << 10);
        assert!((ms(90)..=ms(96)).contains(&patience), "{patience:?}");
        assert_eq!(pace.patience(4 << 20), UNKNOWN, "another size");
        for _ in 0..KEPT + EVERY {
            pace.note(4096, ms(20));
        }
        assert_eq!(pace.patience(4096), ms(20), "what is long past is forgotten");
    }

    #[test]
    fn patience_has_bounds() {
        let mut pace = Pace::default();
        for _ in 0..KEPT {
            pace.note(1, Duration::ZERO);
            pace.note(1 << 30, ms(60_000));
        }
        assert_eq!((pace.patience(1), pace.patience(1 << 30)), (SOONEST, LATEST));
    }
}
