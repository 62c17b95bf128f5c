//! Whether to look for what is awaited, or to sleep until it comes.
//!
//! To be put to sleep and woken takes whoever waits some microseconds, in a virtual machine many times that, which is [measured](wake_up); to look takes a processor. So whoever
//! waits looks for up to [`WORTH`] times what waking takes, as long as what it waits for comes within that. Each look in vain doubles the number of times that it then
//! sleeps at once, so that who waits for a disk hardly ever looks, and who waits for nothing never. No more than half of the processors are looking at a
//! time, and whoever looks lets others of its processor run between two glances.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, sched_yield};

/// How many times as long as waking takes a look may last. Where two sides have both slept, what each waits for takes the other's waking as well, and work that is slow after it:
/// they find each other awake again only if one of them looks for longer than all that.
const WORTH: u32 = 24;

/// Longest look, whatever waking takes, and shortest.
const MOST: Duration = Duration::from_millis(1);
const LEAST: Duration = Duration::from_micros(20);

/// How long a look lasts on this host.
static LONGEST: LazyLock<Duration> = LazyLock::new(|| (wake_up() * WORTH).clamp(LEAST, MOST));

/// Most times in a row that are slept after looks in vain.
const MOST_SLEPT: u32 = 16;

/// Glances without letting other threads run, which costs more than they do.
const CLOSE: u32 = 4;

/// How many of this process look, and how many may.
static LOOKING: AtomicUsize = AtomicUsize::new(0);
static MOST_LOOKING: LazyLock<usize> =
    LazyLock::new(|| available_parallelism().map_or(1, |all| (all.get() / 2).max(1)));

/// What somebody who waits again and again has learned of it.
#[derive(Debug)]
pub(crate) struct Looking {
    /// How often to sleep at once after the next look in vain.
    penalty: u32,
    /// How often to sleep at once now.
    sleeps: u32,
}

impl Looking {
    /// One who has learned nothing. The first of a process takes some milliseconds, in which it finds out what waking takes.
    pub(crate) fn new() -> Self {
        LazyLock::force(&LONGEST);
        Self { penalty: 0, sleeps: 0 }
    }

    /// Begins to look, if that is worth it. How it ended is to be [told](Self::ended).
    pub(crate) fn begin(&mut self) -> Option<Look> {
        if self.sleeps > 0 {
            self.sleeps -= 1;
            return None;
        }
        Look::begin()
    }

    /// A look has ended; `found` if what was awaited came.
    pub(crate) fn ended(&mut self, found: bool) {
        if found {
            self.penalty = 0;
        } else {
            self.penalty = (self.penalty * 2).clamp(1, MOST_SLEPT);
            self.sleeps = self.penalty;
        }
    }
}

/// One look.
#[derive(Debug)]
pub(crate) struct Look {
    began: Instant,
    glances: u32,
}

impl Look {
    /// None when enough others look.
    fn begin() -> Option<Self> {
        let one_more = |looking| (looking < *MOST_LOOKING).then_some(looking + 1);
        LOOKING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self { began: Instant::now(), glances: 0 })
    }

    /// Between two glances: lets others run. Returns whether the look may go on.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.glances += 1;
        // Soft-RoCE's own threads need a processor to bring what is awaited.
        if self.glances > CLOSE {
            sched_yield();
        } else {
            std::hint::spin_loop();
        }
        self.began.elapsed() < *LONGEST
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long it takes on this host to wake a thread that sleeps on a descriptor, as it does on a completion channel, from another processor: the median of some fifty times.
fn wake_up() -> Duration {
    const ROUNDS: usize = 51;
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let mut places = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).map(|processor| {
        let mut place = CpuSet::new();
        place.set(processor);
        place
    });
    let (here, there) = (places.next(), places.next());
    // Else both would share one, and nobody be woken from anywhere. Where there is but one, they do.
    let settle = |place: Option<CpuSet>| place.map(|place| sched_setaffinity(None, &place));
    let round_trips = || -> io::Result<Vec<Duration>> {
        let (mut near, mut far) = UnixStream::pair()?;
        let echo = move || {
            settle(there);
            let mut byte = [0];
            // Until the other end is closed.
            while far.read_exact(&mut byte).and_then(|()| far.write_all(&byte)).is_ok() {}
        };
        let ask = move || {
            settle(here);
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
    // Without a thread to spare nobody looks for long.
    let Ok(mut round_trips) = round_trips() else { return Duration::ZERO };
    let middle = round_trips.len() / 2;
    *round_trips.select_nth_unstable(middle).1 / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_in_vain_become_rare_and_one_that_finds_something_makes_up_for_them() {
        let mut looking = Looking::new();
        let mut looks = 0;
        for _ in 0..1000 {
            // Another test may be looking.
            if looking.sleeps == 0 {
                looks += 1;
                looking.ended(false);
            } else {
                assert!(looking.begin().is_none());
            }
        }
        assert!((1000 / 17..1000 / 10).contains(&looks), "{looks} looks");
        looking.ended(true);
        looking.ended(false);
        assert_eq!(looking.sleeps, 1);
    }

    #[test]
    fn waking_takes_some_time() {
        let wake_up = wake_up();
        assert!((Duration::from_nanos(100)..Duration::from_secs(1)).contains(&wake_up), "{wake_up:?}");
    }

    #[test]
    fn a_look_ends_and_makes_room_for_others() {
        for _ in 0..=*MOST_LOOKING {
            let mut look = std::iter::repeat_with(Look::begin).flatten().next().unwrap();
            while look.goes_on() {}
            assert!(look.began.elapsed() >= *LONGEST);
        }
    }
}
