//! Rate limits for log lines that an outage would repeat without end.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines that may be written at once.
const BURST: f64 = 10.0;
/// The rate after a burst.
const LINES_PER_SECOND: f64 = 1.0;
/// A line about the subject of the line before is suppressed for this time.
const REPEAT_INTERVAL: Duration = Duration::from_secs(5);

/// A token bucket for log lines of one kind, which counts the suppressed ones.
#[derive(Debug)]
pub struct LogLimit(Mutex<Option<Bucket>>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
    suppressed: u64,
    /// The subject and the time of the last line.
    subject: Option<(Box<str>, Instant)>,
}

impl LogLimit {
    /// A full bucket.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether a line about `subject` may be written now, and the number of lines suppressed
    /// since the last one. A repetition of the last subject is suppressed without being counted,
    /// because the kernel retries a refused request once.
    pub fn admit(&self, subject: &str) -> Option<SuppressedLines> {
        self.admit_at(subject, Instant::now())
    }

    fn admit_at(&self, subject: &str, now: Instant) -> Option<SuppressedLines> {
        let mut bucket = self.0.lock();
        let bucket =
            bucket.get_or_insert(Bucket { tokens: BURST, filled: now, suppressed: 0, subject: None });
        if let Some((last, at)) = &bucket.subject
            && **last == *subject
            && now.saturating_duration_since(*at) < REPEAT_INTERVAL
        {
            return None;
        }
        let earned = now.saturating_duration_since(bucket.filled).as_secs_f64() * LINES_PER_SECOND;
        bucket.tokens = (bucket.tokens + earned).min(BURST);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            bucket.suppressed += 1;
            return None;
        }
        bucket.tokens -= 1.0;
        bucket.subject = Some((subject.into(), now));
        Some(SuppressedLines(std::mem::take(&mut bucket.suppressed)))
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of lines that were suppressed before the one that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuppressedLines(u64);

impl SuppressedLines {
    /// The number as a field of the line; `None` if no line was suppressed.
    pub fn field(self) -> Option<u64> {
        (self.0 > 0).then_some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_a_burst_are_suppressed_and_counted() {
        let limit = LogLimit::new();
        let start = Instant::now();
        let admitted = (0..1000).filter(|nth| limit.admit_at(&nth.to_string(), start).is_some()).count();
        assert_eq!(admitted, BURST as usize);
        let next = limit.admit_at("next", start + Duration::from_secs(1)).unwrap();
        assert_eq!(next.field(), Some(1000 - BURST as u64));
        assert_eq!(limit.admit_at("later", start + Duration::from_secs(60)).unwrap().field(), None);
    }

    #[test]
    fn a_repeated_subject_is_logged_once() {
        let limit = LogLimit::new();
        let start = Instant::now();
        assert!(limit.admit_at("a", start).is_some());
        assert!(limit.admit_at("a", start).is_none());
        assert_eq!(limit.admit_at("b", start).unwrap().field(), None);
        assert!(limit.admit_at("a", start).is_some());
        assert!(limit.admit_at("a", start + REPEAT_INTERVAL).is_some());
    }
}
