//! Adaptive polling: spin briefly, then block.
//!
//! A blocked thread takes some microseconds to wake, in a virtual machine many times that, which
//! is [measured](wake_latency); spinning takes a processor. So a waiter spins for up to
//! [`SPIN_FACTOR`] times the wake latency, as long as its completions come within that time. Each
//! spin in vain doubles the number of waits that then block at once: a waiter whose engine waits
//! for a disk hardly ever spins, and one without completions never. At most half of the processors
//! spin at a time, and a spinning thread yields its processor between two polls.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, sched_yield};

/// How many wake latencies a spin may last. If both sides have blocked, the completion that one of
/// them waits for comes after the other's wake-up and after work that is slow behind it. Both stay
/// awake again only if one of them spins for longer than all that.
const SPIN_FACTOR: u32 = 24;

/// Bounds of the length of a spin, whatever the wake latency.
const MIN_SPIN: Duration = Duration::from_micros(20);
const MAX_SPIN: Duration = Duration::from_millis(1);

/// How long a spin lasts on this host.
static SPIN_TIMEOUT: LazyLock<Duration> =
    LazyLock::new(|| (wake_latency() * SPIN_FACTOR).clamp(MIN_SPIN, MAX_SPIN));

/// The most waits in a row that block at once after spins in vain.
const MAX_SKIPPED_SPINS: u32 = 16;

/// Polls before the spinning thread yields its processor, which costs more than they do.
const POLLS_BEFORE_YIELD: u32 = 4;

/// How many threads of this process spin, and how many may.
static SPINNING: AtomicUsize = AtomicUsize::new(0);
static MAX_SPINNING: LazyLock<usize> =
    LazyLock::new(|| available_parallelism().map_or(1, |all| (all.get() / 2).max(1)));

/// What a waiter has learned from its earlier waits.
#[derive(Debug)]
pub(crate) struct AdaptivePoll {
    /// How many waits block at once after the next spin in vain.
    penalty: u32,
    /// How many waits block at once now.
    skipped: u32,
}

impl AdaptivePoll {
    /// A waiter that has learned nothing. The first of a process takes some milliseconds, in which
    /// it measures the wake latency.
    pub(crate) fn new() -> Self {
        LazyLock::force(&SPIN_TIMEOUT);
        Self { penalty: 0, skipped: 0 }
    }

    /// Begins to spin, if that is worth it. [`ended`](Self::ended) is to be called with the
    /// outcome.
    pub(crate) fn begin(&mut self) -> Option<SpinGuard> {
        if self.skipped > 0 {
            self.skipped -= 1;
            return None;
        }
        SpinGuard::begin()
    }

    /// A spin has ended; `found` if the awaited completion came.
    pub(crate) fn ended(&mut self, found: bool) {
        if found {
            self.penalty = 0;
        } else {
            self.penalty = (self.penalty * 2).clamp(1, MAX_SKIPPED_SPINS);
            self.skipped = self.penalty;
        }
    }
}

/// One spin. Dropping it lets another thread spin.
#[derive(Debug)]
pub(crate) struct SpinGuard {
    began: Instant,
    polls: u32,
}

impl SpinGuard {
    /// `None` if enough other threads spin.
    fn begin() -> Option<Self> {
        let one_more = |spinning| (spinning < *MAX_SPINNING).then_some(spinning + 1);
        SPINNING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self { began: Instant::now(), polls: 0 })
    }

    /// Lets other threads run between two polls. Returns whether to poll again.
    pub(crate) fn keep_spinning(&mut self) -> bool {
        self.polls += 1;
        // Soft-RoCE's own threads need a processor to bring the completion.
        if self.polls > POLLS_BEFORE_YIELD {
            sched_yield();
        } else {
            std::hint::spin_loop();
        }
        self.began.elapsed() < *SPIN_TIMEOUT
    }
}

impl Drop for SpinGuard {
    fn drop(&mut self) {
        SPINNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long it takes on this host to wake a thread from another processor, when it blocks on a
/// descriptor as it does on a completion channel: the median of some fifty rounds.
fn wake_latency() -> Duration {
    const ROUNDS: usize = 51;
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let mut processors = (0..CpuSet::MAX_CPU).filter(|&number| allowed.is_set(number)).map(|number| {
        let mut processor = CpuSet::new();
        processor.set(number);
        processor
    });
    let (here, there) = (processors.next(), processors.next());
    // Without this both threads would share a processor, and neither be woken from another one.
    // Where there is only one, they share it.
    let pin = |processor: Option<CpuSet>| processor.map(|processor| sched_setaffinity(None, &processor));
    let round_trips = || -> io::Result<Vec<Duration>> {
        let (mut near, mut far) = UnixStream::pair()?;
        let echo = move || {
            pin(there);
            let mut byte = [0];
            // Until the other end is closed.
            while far.read_exact(&mut byte).and_then(|()| far.write_all(&byte)).is_ok() {}
        };
        let ask = move || {
            pin(here);
            let mut round_trip = || {
                let began = Instant::now();
                near.write_all(&[0]).and_then(|()| near.read_exact(&mut [0]))?;
                Ok(began.elapsed())
            };
            (0..ROUNDS).map(|_| round_trip()).collect()
        };
        thread::Builder::new().name("wake-up".into()).spawn(echo)?;
        let asking = thread::Builder::new().name("wake-up".into()).spawn(ask)?;
        asking.join().unwrap_or_else(|_| Ok(vec![Duration::ZERO]))
    };
    // If no thread can be started, spins are as short as possible.
    let Ok(mut round_trips) = round_trips() else { return Duration::ZERO };
    let middle = round_trips.len() / 2;
    *round_trips.select_nth_unstable(middle).1 / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spins_in_vain_become_rare_until_one_finds_its_completion() {
        let mut poll = AdaptivePoll::new();
        let mut spins = 0;
        for _ in 0..1000 {
            // Not `begin`: another test may be spinning.
            if poll.skipped == 0 {
                spins += 1;
                poll.ended(false);
            } else {
                assert!(poll.begin().is_none());
            }
        }
        assert!((1000 / 17..1000 / 10).contains(&spins), "{spins} spins");
        poll.ended(true);
        poll.ended(false);
        assert_eq!(poll.skipped, 1);
    }

    #[test]
    fn the_wake_latency_is_plausible() {
        let latency = wake_latency();
        assert!((Duration::from_nanos(100)..Duration::from_secs(1)).contains(&latency), "{latency:?}");
    }

    #[test]
    fn a_spin_ends_and_lets_another_thread_spin() {
        for _ in 0..=*MAX_SPINNING {
            let mut guard = std::iter::repeat_with(SpinGuard::begin).flatten().next().unwrap();
            while guard.keep_spinning() {}
            assert!(guard.began.elapsed() >= *SPIN_TIMEOUT);
        }
    }
}
