//! Sharded counters, which threads increment without contention.
//!
//! Each thread gets a slot at its first use, and each slot has cache lines of its own, so an
//! increment is one relaxed atomic instruction on a line that stays in this CPU's cache. Reading
//! a counter sums all slots. A sum taken while threads count may lag behind, but every counter
//! only grows.

use std::array;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::available_parallelism;
use std::time::Duration;

use interceptor_ebpf::histogram::{BUCKETS, bucket_of};

/// More slots than this reduce no contention and make sums slower.
const MAX_SLOTS: usize = 128;

/// One `T` per slot; `T` consists of atomics.
#[derive(Debug)]
pub(super) struct Sharded<T> {
    slots: Box<[Slot<T>]>,
    mask: usize,
}

/// Aligned to two cache lines, because CPUs prefetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot<T>(T);

impl<T: Default> Sharded<T> {
    /// Twice as many slots as CPUs, because threads that block in the kernel have a slot too.
    pub(super) fn new() -> Self {
        let cpus = available_parallelism().map_or(1, usize::from);
        let slots = (2 * cpus).next_power_of_two().min(MAX_SLOTS);
        Self { slots: (0..slots).map(|_| Slot::default()).collect(), mask: slots - 1 }
    }

    /// The `T` of the calling thread.
    #[inline]
    pub(super) fn mine(&self) -> &T {
        &self.slots[thread_slot() & self.mask].0
    }

    /// The `T` of every slot.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().map(|slot| &slot.0)
    }
}

/// The number of the calling thread. Threads are numbered in the order of their first use, so the
/// few threads that do the work share no slot.
#[inline]
fn thread_slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Relaxed));
        }
        mine.get()
    })
}

/// Number, bytes and durations of operations, counted by one thread.
#[derive(Debug)]
pub(super) struct FlowCounter {
    buckets: [AtomicU64; BUCKETS],
    bytes: AtomicU64,
    nanos: AtomicU64,
}

impl Default for FlowCounter {
    fn default() -> Self {
        Self {
            buckets: array::from_fn(|_| AtomicU64::new(0)),
            bytes: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        }
    }
}

impl FlowCounter {
    #[inline]
    pub(super) fn add(&self, bytes: u64, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)].fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
    }
}

/// Number, bytes and durations of operations, summed over all threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowTotal {
    /// Operations by duration; [`interceptor_ebpf::histogram`] has the bounds of the buckets.
    pub buckets: [u64; BUCKETS],
    /// Bytes moved.
    pub bytes: u64,
    /// The sum of the durations, nanoseconds.
    pub nanos: u64,
}

impl FlowTotal {
    /// Number of operations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The operations after `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        for (now, before) in since.buckets.iter_mut().zip(before.buckets) {
            *now = now.saturating_sub(before);
        }
        since.bytes = since.bytes.saturating_sub(before.bytes);
        since.nanos = since.nanos.wrapping_sub(before.nanos);
        since
    }

    /// Adds the operations of `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        for (total, bucket) in self.buckets.iter_mut().zip(other.buckets) {
            *total += bucket;
        }
        self.bytes += other.bytes;
        self.nanos = self.nanos.wrapping_add(other.nanos);
    }

    pub(super) fn add(&mut self, flow: &FlowCounter) {
        for (total, bucket) in self.buckets.iter_mut().zip(&flow.buckets) {
            *total += bucket.load(Relaxed);
        }
        self.bytes += flow.bytes.load(Relaxed);
        self.nanos = self.nanos.wrapping_add(flow.nanos.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_lost_between_threads() {
        let flows = Sharded::<FlowCounter>::new();
        thread::scope(|scope| {
            for thread in 0..2 * MAX_SLOTS as u64 {
                let flows = &flows;
                scope.spawn(move || {
                    for i in 0..100 {
                        flows.mine().add(thread, Duration::from_nanos(1 << (i % 40)));
                    }
                });
            }
        });
        let mut total = FlowTotal::default();
        flows.all().for_each(|flow| total.add(flow));
        assert_eq!(total.count(), 200 * MAX_SLOTS as u64);
        assert_eq!(total.bytes, 100 * (0..2 * MAX_SLOTS as u64).sum::<u64>());
    }

    #[test]
    fn slots_do_not_share_cache_lines() {
        assert_eq!(align_of::<Slot<AtomicU64>>(), 128);
        assert_eq!(size_of::<Slot<AtomicU64>>() % 128, 0);
    }
}
