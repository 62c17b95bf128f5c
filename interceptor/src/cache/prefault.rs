//! Touches the memory of the arena before it is needed, where that is slow.
//!
//! The kernel finds and clears a page when it is first touched, which mostly takes a tenth of a
//! second for a GiB. Where the host of a virtual machine takes free pages back, it takes seconds,
//! and a first pass over files would take these as well. So a thread of the lowest priority takes
//! the free units of the arena one after another, touches them, and frees them again.
//!
//! Resident files gain as much: the pages that the arena cedes for them become free in the kernel,
//! which gives the same pages to the next that asks.

use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use daemon::memory;
use daemon::size::ByteSize;
use nix::time::{ClockId, clock_gettime};

use super::Cache;
use super::arena::UNIT_SIZE;
use super::resident::lower_priority;
use super::sync::Ordering;
use crate::vital::contained;

/// A unit is slow to touch if it takes longer: half a second for a GiB.
const SLOW_UNIT: Duration = Duration::from_micros(500_000 * UNIT_SIZE / (1 << 30));
/// How many units show that fresh memory is slow, even if others are quick: they were in use a
/// moment ago.
const SLOW_UNITS: usize = 4;
/// How many units have to be quick so that there is no need for more: 1 GiB.
const QUICK_UNITS: usize = 512;
/// Then it is tried again once, after this time: the host may not have taken the memory back yet
/// that a program has just freed, as one that was restarted has.
const SECOND_LOOK: Duration = Duration::from_secs(20);
/// How often to look whether there is memory to spare, in units: each 128 MiB.
const AMPLE_CHECK_UNITS: u32 = 64;

/// Whether to touch memory ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefault {
    /// If that proves to be slow.
    WhileSlow,
    /// In any case.
    Always,
}

impl Cache {
    /// Starts the thread, which ends when it has come through the arena, when memory is scarce or
    /// quick to have, or with the cache. Blocks that are in use by then are left alone.
    ///
    /// # Errors
    /// There cannot be a thread.
    pub fn prefault(self: &Arc<Self>, prefault: Prefault) -> io::Result<()> {
        let cache = Arc::downgrade(self);
        self.prefaulting.store(true, Ordering::SeqCst);
        let run = move || {
            lower_priority();
            let is_quick = || {
                let is_quick = contained(|| touch_all(&cache, prefault)).unwrap_or(false);
                if let Some(cache) = cache.upgrade() {
                    cache.prefaulting.store(false, Ordering::SeqCst);
                }
                is_quick
            };
            if is_quick() {
                thread::sleep(SECOND_LOOK);
                is_quick();
            }
        };
        let started = thread::Builder::new().name("prefault".into()).spawn(run);
        self.prefaulting.fetch_and(started.is_ok(), Ordering::SeqCst);
        started.map(drop)
    }

    /// Whether memory is being touched ahead of its use.
    pub fn is_prefaulting(&self) -> bool {
        self.prefaulting.load(Ordering::SeqCst)
    }

    /// Touches a unit, if it is free. Returns the CPU time that it took.
    fn touch_unit(&self, unit: u32) -> Option<Duration> {
        let mut slot = self.index.arena().allocate_unit(unit)?;
        let before = cpu_time();
        slot.touch();
        Some(cpu_time().saturating_sub(before))
    }

    /// Returns the pages of a unit to the host, if it is free.
    fn return_unit(&self, unit: u32) {
        if let Some(mut slot) = self.index.arena().allocate_unit(unit) {
            slot.return_pages();
        }
    }

    /// Whether there is memory to spare.
    fn is_memory_ample(&self) -> bool {
        self.withheld() == 0 && memory::headroom().is_none_or(|left| left.available >= left.ample())
    }
}

/// Goes through the arena from its end, where large blocks and the memory of resident files are
/// taken from. Says whether it has stopped because memory is quick to have.
fn touch_all(cache: &Weak<Cache>, prefault: Prefault) -> bool {
    let began = Instant::now();
    let (mut touched, mut slow, mut time) = (Vec::new(), 0, Duration::ZERO);
    let mut is_quick = false;
    let units = cache.upgrade().map_or(0, |cache| {
        cache.prefaulting.store(true, Ordering::SeqCst);
        cache.arena().units()
    });
    for unit in (0..units).rev() {
        let Some(cache) = cache.upgrade() else { return false };
        if unit % AMPLE_CHECK_UNITS == 0 && !cache.is_memory_ample() {
            tracing::info!("memory is too scarce to touch more of the cache ahead of its use");
            break;
        }
        let Some(taken) = cache.touch_unit(unit) else { continue };
        touched.push(unit);
        time += taken;
        slow += usize::from(taken >= SLOW_UNIT);
        is_quick = prefault == Prefault::WhileSlow && slow < SLOW_UNITS;
        if is_quick && touched.len() >= QUICK_UNITS {
            break;
        }
    }
    let Some(cache) = cache.upgrade() else { return false };
    let gib = (touched.len().max(1) as u64 * UNIT_SIZE) as f64 / (1_u64 << 30) as f64;
    let cpu_seconds_per_gib = time.as_secs_f64() / gib;
    if is_quick {
        // It need not be held.
        touched.into_iter().for_each(|unit| cache.return_unit(unit));
        tracing::debug!(cpu_seconds_per_gib, "fresh memory is quick to have; none is touched ahead");
        return true;
    }
    tracing::info!(
        cpu_seconds_per_gib,
        "touched {} of the cache ahead of its use in {:.1} s",
        ByteSize(touched.len() as u64 * UNIT_SIZE),
        began.elapsed().as_secs_f64(),
    );
    false
}

/// The CPU time of this thread so far: other than the time of the clock, it does not grow while
/// threads of higher priority run.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::cache::MIN_CAPACITY;

    const UNITS: u32 = (MIN_CAPACITY / UNIT_SIZE) as u32;

    #[test]
    fn all_that_is_free_is_touched_and_nothing_else() {
        let cache = Arc::new(Cache::new(MIN_CAPACITY).unwrap());
        let mut used = cache.index.arena().allocate_unit(3).unwrap();
        used.fill(7);
        cache.prefault(Prefault::Always).unwrap();
        let began = Instant::now();
        while cache.is_prefaulting() {
            assert!(began.elapsed() < Duration::from_secs(60), "it does not end");
            thread::yield_now();
        }
        assert!(used.iter().all(|&byte| byte == 7));
        drop(used);
        assert_eq!((cache.arena().used(), cache.arena().units()), (0, UNITS));
        for unit in 0..UNITS {
            let slot = cache.index.arena().allocate_unit(unit).unwrap();
            assert_eq!(slot.pages_present(), 512, "unit {unit}");
        }
    }

    #[test]
    fn a_unit_that_is_in_use_in_part_is_not_free() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let small = cache.index.arena().allocate(4096).unwrap();
        let free = |unit| cache.index.arena().allocate_unit(unit).is_some();
        assert_eq!((0..UNITS).filter(|&unit| !free(unit)).count(), 1);
        drop(small);
        assert!((0..UNITS).all(free));
        let whole: Vec<_> = (0..UNITS).filter_map(|unit| cache.index.arena().allocate_unit(unit)).collect();
        assert_eq!((whole.len() as u32, cache.arena().used()), (UNITS, MIN_CAPACITY));
        assert!(cache.index.arena().allocate(1).is_none());
    }
}
