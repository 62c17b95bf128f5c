//! When the mount is not being read.
//!
//! A fetch that no reader waits for is put off while readers are busy, whether the daemon answers
//! them or, as far as eBPF reports it, the page cache: it would take their CPU time and bandwidth.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// Without a read for so long, readers pause.
const PAUSE: Duration = Duration::from_millis(20);
/// How often to look.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Longest wait: a file of many blocks that is read without pause is not put off for ever.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Knows when the mount was last read.
#[derive(Debug, Default)]
pub(super) struct ReadPauses {
    /// In milliseconds of [`millis`]; 0 for never.
    last_read: AtomicU64,
}

impl ReadPauses {
    /// Notes a read.
    pub(super) fn note_read(&self) {
        let now = millis(Instant::now());
        // Most calls fall into the same millisecond as others; a load leaves the cache line
        // shared.
        if self.last_read.load(Relaxed) != now {
            self.last_read.store(now, Relaxed);
        }
    }

    /// Waits until readers pause, [`MAX_WAIT`] at most.
    pub(super) async fn wait(&self) {
        let deadline = Instant::now() + MAX_WAIT;
        while self.is_read(Instant::now()) && Instant::now() < deadline {
            sleep(POLL_INTERVAL).await;
        }
    }

    fn is_read(&self, now: Instant) -> bool {
        let last = self.last_read.load(Relaxed);
        last != 0 && millis(now) < last + PAUSE.as_millis() as u64
    }
}

/// Milliseconds since the first call, plus one.
pub(super) fn millis(now: Instant) -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let first = *FIRST.get_or_init(|| now);
    now.saturating_duration_since(first).as_millis() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_pause_a_while_after_the_last_read() {
        let pauses = ReadPauses::default();
        assert!(!pauses.is_read(Instant::now()));
        pauses.note_read();
        assert!(!pauses.is_read(Instant::now() + 2 * PAUSE));
    }
}
