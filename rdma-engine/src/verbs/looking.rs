//! Whether to look for what is awaited, or to sleep until it comes.
//!
//! To be put to sleep and woken takes whoever waits some ten microseconds, on a busy host or in a virtual machine many times that; to look takes a processor. So whoever
//! waits looks for up to [`LONGEST`], as long as what it waits for comes within that. Each look in vain doubles the number of times that it then sleeps at once, so
//! that who waits for a disk hardly ever looks, and who waits for nothing never. No more than half of the processors are looking at a time, and
//! whoever looks lets others of its processor run between two glances.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rustix::thread::sched_yield;

/// Longest look. Over hardware an answer takes a hundredth of it. Over soft-RoCE in a virtual machine it takes a third, but begins by taking more than
/// all: with half of this, two sides that have both slept hardly ever find each other awake again.
const LONGEST: Duration = Duration::from_millis(1);

/// Most times in a row that are slept after looks in vain.
const MOST_SLEPT: u32 = 16;

/// Glances without letting other threads run, which costs more than they do.
const CLOSE: u32 = 4;

/// How many of this process look, and how many may.
static LOOKING: AtomicUsize = AtomicUsize::new(0);
static MOST_LOOKING: LazyLock<usize> =
    LazyLock::new(|| available_parallelism().map_or(1, |all| (all.get() / 2).max(1)));

/// What somebody who waits again and again has learned of it.
#[derive(Debug, Default)]
pub(crate) struct Looking {
    /// How often to sleep at once after the next look in vain.
    penalty: u32,
    /// How often to sleep at once now.
    sleeps: u32,
}

impl Looking {
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
        self.began.elapsed() < LONGEST
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_in_vain_become_rare_and_one_that_finds_something_makes_up_for_them() {
        let mut looking = Looking::default();
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
    fn a_look_ends_and_makes_room_for_others() {
        for _ in 0..=*MOST_LOOKING {
            let mut look = std::iter::repeat_with(Look::begin).flatten().next().unwrap();
            while look.goes_on() {}
            assert!(look.began.elapsed() >= LONGEST);
        }
    }
}
