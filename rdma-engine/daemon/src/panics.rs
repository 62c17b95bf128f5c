//! Panics: each ends one request or task, is counted, and is logged without flooding the log.
//!
//! If a user can cause a panic at all, the user can cause it again and again. So a source location
//! that panics is logged the first time, and then at most once a minute.

use std::collections::HashMap;
use std::panic::PanicHookInfo;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often, at most, the same source location is logged.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// The panics of this process.
static PANICS: LazyLock<Mutex<PanicLog>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct PanicLog {
    total: u64,
    /// By file, line and column. Bounded by the size of the program.
    locations: HashMap<(String, u32, u32), LocationLog>,
}

#[derive(Debug)]
struct LocationLog {
    logged_at: Instant,
    /// How many panics were not logged since.
    unlogged: u64,
}

impl PanicLog {
    /// Counts a panic. If it is to be logged, returns how many of the same location were not.
    fn count(&mut self, location: (String, u32, u32), now: Instant) -> Option<u64> {
        self.total += 1;
        let Some(known) = self.locations.get_mut(&location) else {
            self.locations.insert(location, LocationLog { logged_at: now, unlogged: 0 });
            return Some(0);
        };
        if now.duration_since(known.logged_at) < REPEAT_INTERVAL {
            known.unlogged += 1;
            return None;
        }
        known.logged_at = now;
        Some(std::mem::take(&mut known.unlogged))
    }
}

/// How many panics there were in this process since logging was started.
pub fn total() -> u64 {
    PANICS.lock().total
}

/// The panic hook, which runs before the thread unwinds.
pub(super) fn hook(info: &PanicHookInfo<'_>) {
    let at = info.location().map(|at| (at.file().to_owned(), at.line(), at.column())).unwrap_or_default();
    let location = format!("{}:{}:{}", at.0, at.1, at.2);
    let logged = PANICS.lock().count(at, Instant::now());
    let Some(unlogged) = logged else { return };
    let message = info.payload_as_str().unwrap_or("unknown");
    let thread = thread::current().name().unwrap_or("unnamed").to_owned();
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(thread, location, unlogged, %backtrace, "panic: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_logged_once_a_minute_and_always_counted() {
        let mut log = PanicLog::default();
        let (here, there) = (("a.rs".to_owned(), 1, 1), ("a.rs".to_owned(), 2, 1));
        let begun = Instant::now();
        assert_eq!(log.count(here.clone(), begun), Some(0));
        assert_eq!(log.count(there, begun), Some(0), "another location");
        for second in 1..60 {
            assert_eq!(log.count(here.clone(), begun + Duration::from_secs(second)), None);
        }
        assert_eq!(log.count(here.clone(), begun + REPEAT_INTERVAL), Some(59));
        assert_eq!(log.count(here, begun + REPEAT_INTERVAL), None);
        assert_eq!(log.total, 63);
    }
}
