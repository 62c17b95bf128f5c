//! Log lines that an outage makes many of.

use std::time::Instant;

use parking_lot::Mutex;

/// How many lines may come at once, and how many a second then.
const BURST: f64 = 10.0;
const PER_SECOND: f64 = 1.0;

/// Lets a few lines of one kind through, and counts the others.
#[derive(Debug)]
pub struct LogLimit(Mutex<Option<Bucket>>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
    left_out: u64,
}

impl LogLimit {
    /// One that has let nothing through yet.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether a line may be written now, and how many were left out since the last one.
    pub fn admit(&self) -> Option<LeftOut> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<LeftOut> {
        let mut bucket = self.0.lock();
        let bucket = bucket.get_or_insert(Bucket { tokens: BURST, filled: now, left_out: 0 });
        let earned = now.saturating_duration_since(bucket.filled).as_secs_f64() * PER_SECOND;
        bucket.tokens = (bucket.tokens + earned).min(BURST);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            bucket.left_out += 1;
            return None;
        }
        bucket.tokens -= 1.0;
        Some(LeftOut(std::mem::take(&mut bucket.left_out)))
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of lines that were left out before the one that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut(u64);

impl LeftOut {
    /// As a field of the line; none if nothing was left out.
    pub fn field(self) -> Option<u64> {
        (self.0 > 0).then_some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_is_cut_and_counted() {
        let limit = LogLimit::new();
        let start = Instant::now();
        let admitted = (0..1000).filter(|_| limit.admit_at(start).is_some()).count();
        assert_eq!(admitted, BURST as usize);
        let next = limit.admit_at(start + Duration::from_secs(1)).unwrap();
        assert_eq!(next.field(), Some(1000 - BURST as u64));
        assert_eq!(limit.admit_at(start + Duration::from_secs(60)).unwrap().field(), None);
    }
}
