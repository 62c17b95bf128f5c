//! Makes the cache smaller while the host, or a control group of the daemon, is short of memory,
//! so that the kernel need not kill, and larger again afterwards.
//!
//! Memory is short when little of it is left, or when tasks wait for it (pressure stall
//! information). Neither tells alone: where no page of a file can be dropped, the kernel kills
//! without a stall before it; and where all memory serves as page cache, little is left of it
//! without harm, but programs that wait for pages are slow.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use daemon::memory::{self, Headroom};
use daemon::size::ByteSize;

use crate::cache::Cache;
use crate::vital::contained;

/// How often to look.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Memory is short when less than one in so many bytes is left.
const SHORT_DIVISOR: u64 = 20;
/// The cache gives back so much that one in so many bytes is left.
const WANTED_DIVISOR: u64 = 10;
/// The share of the time in which tasks wait, above which memory is short.
const SHORT_STALL: f64 = 0.1;
/// The least and the largest step, parts of the cache.
const STEP_DIVISORS: (u64, u64) = (32, 4);
/// For how long memory has to be ample before the cache takes some back.
const AMPLE_TIME: Duration = Duration::from_secs(10);
/// How long the cache waits between steps on the way back.
const REGROWTH_INTERVAL: Duration = Duration::from_secs(1);

/// What the memory asks of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    GiveBack(u64),
    Stay,
    TakeBack(u64),
}

/// Watches the memory on a thread of its own until the cache is gone. A cache for which there is no
/// room begins with less: the process before this one may have been killed for lack of memory.
pub(super) fn watch(cache: &Arc<Cache>) {
    let missing = memory::headroom().map_or(0, |headroom| missing_at_start(headroom, cache.capacity()));
    if missing > 0 {
        let given = cache.give_back(missing);
        tracing::warn!("memory is short; the cache begins with {} less", ByteSize(given));
    }
    let cache = Arc::downgrade(cache);
    let started = thread::Builder::new().name("memory-pressure".into()).spawn(move || follow(&cache));
    if let Err(error) = started {
        tracing::warn!(%error, "the cache does not become smaller when memory is short");
    }
}

/// What a cache of `capacity` bytes, all of them free, has to do without.
fn missing_at_start(headroom: Headroom, capacity: u64) -> u64 {
    let Headroom { limit, available } = headroom;
    let least = capacity / STEP_DIVISORS.1;
    let room = available.saturating_sub(limit / WANTED_DIVISOR).max(least);
    capacity.saturating_sub(room)
}

fn follow(cache: &Weak<Cache>) {
    let mut pressure = MemoryPressure::new(Instant::now());
    loop {
        thread::sleep(POLL_INTERVAL);
        let Some(cache) = cache.upgrade() else { return };
        let Some(headroom) = memory::headroom() else { continue };
        let demand = pressure.demand(
            headroom,
            memory::stalled().unwrap_or_default(),
            Instant::now(),
            cache.capacity(),
            cache.withheld(),
        );
        // A panic costs one step.
        contained(|| adapt(&cache, demand));
    }
}

fn adapt(cache: &Cache, demand: Demand) {
    match demand {
        Demand::Stay => {}
        Demand::GiveBack(bytes) => {
            let was_whole = cache.withheld() == 0;
            let given = cache.give_back(bytes);
            if was_whole && given > 0 {
                tracing::warn!("memory is short; the cache gives back what is coldest");
            }
            tracing::debug!("the cache gave back {}", ByteSize(given));
        }
        Demand::TakeBack(bytes) => {
            cache.take_back(bytes);
            if cache.withheld() == 0 {
                tracing::info!("memory is ample again; the cache has its size back");
            }
        }
    }
}

/// Decides from what was seen lately.
struct MemoryPressure {
    /// For how long tasks had waited at the last look, and when that was.
    stalled: Option<(Duration, Instant)>,
    /// When the cache may take memory back.
    regrowth: Instant,
}

impl MemoryPressure {
    fn new(now: Instant) -> Self {
        Self { stalled: None, regrowth: now }
    }

    /// What the cache of `capacity` bytes, of which `withheld` are given back, is to do, when so
    /// much memory is left and tasks have waited for `stalled` so far.
    fn demand(
        &mut self,
        headroom: Headroom,
        stalled: Duration,
        now: Instant,
        capacity: u64,
        withheld: u64,
    ) -> Demand {
        let Headroom { limit, available } = headroom;
        let share = self.stalled.map_or(0.0, |(before, then)| {
            let time = now.duration_since(then).as_secs_f64().max(f64::EPSILON);
            stalled.saturating_sub(before).as_secs_f64() / time
        });
        self.stalled = Some((stalled, now));
        let (least, largest) = (capacity / STEP_DIVISORS.0, capacity / STEP_DIVISORS.1);
        if available < limit / SHORT_DIVISOR || share >= SHORT_STALL {
            self.regrowth = now + AMPLE_TIME;
            let missing = (limit / WANTED_DIVISOR).saturating_sub(available);
            return Demand::GiveBack(missing.clamp(least, largest));
        }
        if available < headroom.ample() + least {
            self.regrowth = self.regrowth.max(now + AMPLE_TIME);
        }
        if withheld == 0 || now < self.regrowth {
            return Demand::Stay;
        }
        self.regrowth = now + REGROWTH_INTERVAL;
        Demand::TakeBack(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const CAPACITY: u64 = 320 * MIB;

    /// The answers to looks at so many MiB of 1000 that are left, at so many ms, with tasks that
    /// have waited so many ms, and what is withheld then, in MiB.
    fn demands(looks: &[(u64, u64, u64, u64)]) -> Vec<Demand> {
        let begun = Instant::now();
        let mut pressure = MemoryPressure::new(begun);
        let look = |&(available, at, stalled, withheld): &(u64, u64, u64, u64)| {
            let headroom = Headroom { limit: 1000 * MIB, available: available * MIB };
            let (at, stalled) = (begun + Duration::from_millis(at), Duration::from_millis(stalled));
            pressure.demand(headroom, stalled, at, CAPACITY, withheld * MIB)
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn the_cache_gives_back_what_is_missing_in_bounded_steps() {
        let give = |mib: u64| Demand::GiveBack(mib * MIB);
        let found = demands(&[(500, 0, 0, 0), (49, 250, 0, 0), (0, 500, 0, 51), (51, 750, 0, 80)]);
        assert_eq!(found, [Demand::Stay, give(51), give(80), Demand::Stay]);
    }

    #[test]
    fn a_cache_begins_with_what_there_is_room_for() {
        let missing = |available: u64| {
            let headroom = Headroom { limit: 1000 * MIB, available: available * MIB };
            missing_at_start(headroom, CAPACITY) / MIB
        };
        assert_eq!([1000, 420, 300, 50, 0].map(missing), [0, 0, 120, 240, 240]);
    }

    #[test]
    fn tasks_that_wait_are_a_reason_too() {
        let found = demands(&[(500, 0, 5000, 0), (500, 1000, 5050, 0), (500, 2000, 5150, 0)]);
        assert_eq!(found, [Demand::Stay, Demand::Stay, Demand::GiveBack(10 * MIB)]);
    }

    #[test]
    fn memory_comes_back_in_steps_once_it_was_ample_for_a_while() {
        let (take, stay) = (Demand::TakeBack(10 * MIB), Demand::Stay);
        let found = demands(&[
            (10, 0, 0, 0),
            (900, 5000, 0, 90),
            (900, 10_000, 0, 90),
            (900, 10_500, 0, 80),
            (900, 11_000, 0, 80),
            (100, 12_000, 0, 70),
            (900, 13_000, 0, 70),
            (900, 22_000, 0, 70),
            (900, 23_000, 0, 0),
        ]);
        assert_eq!(found[1..], [stay, take, stay, take, stay, stay, take, stay]);
    }
}
