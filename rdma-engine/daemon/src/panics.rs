//! Panics: each costs one request or task, is counted, and is logged without flooding the log.
//!
//! A user can cause a panic again and again if there is a way to cause it at all, so a place in the
//! code that panics is logged at its first time and then once a minute at most.

use std::collections::HashMap;
use std::panic::PanicHookInfo;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often, at most, the same place in the code is logged again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// What is known of the panics of this process.
static PANICS: LazyLock<Mutex<PanicLog>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct PanicLog {
    total: u64,
    /// By file, line and column. Bounded by the size of the program.
    places: HashMap<(String, u32, u32), PanicPlace>,
}

#[derive(Debug)]
struct PanicPlace {
    logged: Instant,
    /// How many were not logged since.
    unlogged: u64,
}

impl PanicLog {
    /// Counts a panic. Returns how many at the same place went unlogged, if this one is to be logged.
    fn count(&mut self, place: (String, u32, u32), now: Instant) -> Option<u64> {
        self.total += 1;
        let Some(known) = self.places.get_mut(&place) else {
            self.places.insert(place, PanicPlace { logged: now, unlogged: 0 });
            return Some(0);
        };
        if now.duration_since(known.logged) < REPEAT_INTERVAL {
            known.unlogged += 1;
            return None;
        }
        known.logged = now;
        Some(std::mem::take(&mut known.unlogged))
    }
}

/// How many panics there were in this process since it began to log.
pub fn total() -> u64 {
    PANICS.lock().total
}

/// What the process does about a panic before the thread unwinds.
pub(super) fn hook(info: &PanicHookInfo<'_>) {
    let place = info.location().map(|at| (at.file().to_owned(), at.line(), at.column())).unwrap_or_default();
    let location = format!("{}:{}:{}", place.0, place.1, place.2);
    let logged = PANICS.lock().count(place, Instant::now());
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
    fn a_place_is_logged_once_a_minute_and_always_counted() {
        let mut log = PanicLog::default();
        let (here, there) = (("a.rs".to_owned(), 1, 1), ("a.rs".to_owned(), 2, 1));
        let begun = Instant::now();
        assert_eq!(log.count(here.clone(), begun), Some(0));
        assert_eq!(log.count(there, begun), Some(0), "another place");
        for second in 1..60 {
            assert_eq!(log.count(here.clone(), begun + Duration::from_secs(second)), None);
        }
        assert_eq!(log.count(here.clone(), begun + REPEAT_INTERVAL), Some(59));
        assert_eq!(log.count(here, begun + REPEAT_INTERVAL), None);
        assert_eq!(log.total, 63);
    }
}
