//! Log lines that an outage makes many of.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many lines may come at once, and how many a second then.
const BURST: f64 = 10.0;
const PER_SECOND: f64 = 1.0;
/// After what time the same thing is worth another line.
const REPEAT_INTERVAL: Duration = Duration::from_secs(5);

/// Lets a few lines of one kind through, and counts the others.
#[derive(Debug)]
pub struct LogLimit(Mutex<Option<Bucket>>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
    left_out: u64,
    /// What the last line was about.
    subject: Option<(Box<str>, Instant)>,
}

impl LogLimit {
    /// One that has let nothing through yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether a line about `subject` may be written now, and how many were left out since the last one. The second of two
    /// in a row about the same thing is not missed: the kernel asks twice for what it was refused.
    pub fn admit(&self, subject: &str) -> Option<SuppressedLines> {
        self.admit_at(subject, Instant::now())
    }

    fn admit_at(&self, subject: &str, now: Instant) -> Option<SuppressedLines> {
        let mut bucket = self.0.lock();
        let bucket = bucket.get_or_insert(Bucket { tokens: BURST, filled: now, left_out: 0, subject: None });
        if let Some((last, at)) = &bucket.subject
            && **last == *subject
            && now.saturating_duration_since(*at) < REPEAT_INTERVAL
        {
            return None;
        }
        let earned = now.saturating_duration_since(bucket.filled).as_secs_f64() * PER_SECOND;
        bucket.tokens = (bucket.tokens + earned).min(BURST);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            bucket.left_out += 1;
            return None;
        }
        bucket.tokens -= 1.0;
        bucket.subject = Some((subject.into(), now));
        Some(SuppressedLines(std::mem::take(&mut bucket.left_out)))
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of lines that were left out before the one that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuppressedLines(u64);

impl SuppressedLines {
    /// As a field of the line; none if nothing was left out.
    pub fn field(self) -> Option<u64> {
        (self.0 > 0).then_some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_cut_and_counted() {
        let limit = LogLimit::new();
        let start = Instant::now();
        let admitted = (0..1000).filter(|nth| limit.admit_at(&nth.to_string(), start).is_some()).count();
        assert_eq!(admitted, BURST as usize);
        let next = limit.admit_at("next", start + Duration::from_secs(1)).unwrap();
        assert_eq!(next.field(), Some(1000 - BURST as u64));
        assert_eq!(limit.admit_at("later", start + Duration::from_secs(60)).unwrap().field(), None);
    }

    #[test]
    fn what_fails_twice_in_a_row_is_told_once() {
        let limit = LogLimit::new();
        let start = Instant::now();
        assert!(limit.admit_at("a", start).is_some());
        assert!(limit.admit_at("a", start).is_none());
        assert_eq!(limit.admit_at("b", start).unwrap().field(), None);
        assert!(limit.admit_at("a", start).is_some());
        assert!(limit.admit_at("a", start + REPEAT_INTERVAL).is_some());
    }
}
