//! The staging memory of one session: an allocator that never moves anything, and the needles'
//! ranges in it.
//!
//! A staged range stays after its last reader is done, for the next one, until its memory is
//! needed: then the least recently used range is dropped first. A range that a client may still
//! read by RDMA is *held*, and never dropped.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::metrics::Level;

/// Memory is allocated in multiples of this, which limits fragmentation.
pub(super) const GRANULE: usize = 4096;

/// Memory that can be split and joined: a registered buffer, or in tests a mere range of
/// addresses.
pub(super) trait MemoryRange: Sized {
    fn start(&self) -> u64;
    fn length(&self) -> usize;
    fn split(self, at: usize) -> (Self, Self);
    fn join(self, next: Self) -> Result<Self, (Self, Self)>;
}

/// Where staged bytes come from: the address of the open file, and the range in it. A staged range
/// holds the file, so no other file has its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SourceRange {
    pub(super) file: usize,
    pub(super) position: u64,
    pub(super) length: u32,
}

/// Identifies a staged range. A larger number was used more recently.
pub(super) type RangeNumber = u64;

/// Where staged bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StagedRange {
    pub(super) number: RangeNumber,
    pub(super) address: u64,
}

struct StagedEntry<E, F> {
    memory: E,
    source: SourceRange,
    holders: usize,
    _file: F,
    _counted: Level,
}

/// All staging memory of a session.
pub(super) struct StagingPool<E, F> {
    /// By address; adjacent ranges are always joined.
    free: BTreeMap<u64, E>,
    staged: HashMap<RangeNumber, StagedEntry<E, F>>,
    by_source: HashMap<SourceRange, RangeNumber>,
    /// The ranges that are not held, the least recently used first.
    idle: BTreeSet<RangeNumber>,
    next: RangeNumber,
}

impl<E: MemoryRange, F> StagingPool<E, F> {
    pub(super) fn new(memory: E) -> Self {
        let free = BTreeMap::from([(memory.start(), memory)]);
        Self { free, staged: HashMap::new(), by_source: HashMap::new(), idle: BTreeSet::new(), next: 0 }
    }

    /// Holds the range that was staged from `source`, if it is still there.
    pub(super) fn hold(&mut self, source: SourceRange) -> Option<StagedRange> {
        let number = *self.by_source.get(&source)?;
        let staged = self.staged.get_mut(&number)?;
        staged.holders += 1;
        self.idle.remove(&number);
        Some(StagedRange { number, address: staged.memory.start() })
    }

    /// Allocates memory for `length` bytes; drops ranges that are not held, as many as needed.
    /// `None` if the memory is held or fragmented.
    pub(super) fn take(&mut self, length: usize) -> Option<E> {
        let length = length.next_multiple_of(GRANULE);
        loop {
            let fitting = self.free.iter().find(|(_, memory)| memory.length() >= length);
            if let Some(start) = fitting.map(|(&start, _)| start) {
                let (taken, rest) = self.free.remove(&start)?.split(length);
                if rest.length() > 0 {
                    self.free.insert(rest.start(), rest);
                }
                return Some(taken);
            }
            let oldest = self.idle.pop_first()?;
            let staged = self.staged.remove(&oldest)?;
            self.by_source.remove(&staged.source);
            self.give_back(staged.memory);
        }
    }

    /// Frees memory that was taken.
    pub(super) fn give_back(&mut self, mut memory: E) {
        if let Some((&start, _)) = self.free.range(..memory.start()).next_back()
            && let Some(before) = self.free.remove(&start)
        {
            memory = match before.join(memory) {
                Ok(joined) => joined,
                Err((before, memory)) => {
                    self.free.insert(start, before);
                    memory
                }
            };
        }
        if let Some((&start, _)) = self.free.range(memory.start()..).next()
            && let Some(after) = self.free.remove(&start)
        {
            memory = match memory.join(after) {
                Ok(joined) => joined,
                Err((memory, after)) => {
                    self.free.insert(start, after);
                    memory
                }
            };
        }
        self.free.insert(memory.start(), memory);
    }

    /// Adds the bytes of `source` in `file` that were read into `memory`, and holds them.
    pub(super) fn put(&mut self, source: SourceRange, memory: E, file: F, counted: Level) -> StagedRange {
        // Another request may have staged the same range meanwhile.
        if let Some(held) = self.hold(source) {
            self.give_back(memory);
            return held;
        }
        let number = self.number();
        let address = memory.start();
        self.by_source.insert(source, number);
        self.staged
            .insert(number, StagedEntry { memory, source, holders: 1, _file: file, _counted: counted });
        StagedRange { number, address }
    }

    /// Ends one hold.
    pub(super) fn release(&mut self, number: RangeNumber) {
        let Some(staged) = self.staged.get_mut(&number) else { return };
        staged.holders -= 1;
        if staged.holders == 0 {
            // A new number is younger than all others.
            let younger = self.number();
            if let Some(staged) = self.staged.remove(&number) {
                self.by_source.insert(staged.source, younger);
                self.staged.insert(younger, staged);
                self.idle.insert(younger);
            }
        }
    }

    fn number(&mut self) -> RangeNumber {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Metrics;
    use crate::protocol::Transport;

    #[derive(Debug)]
    struct Range(u64, usize);

    impl MemoryRange for Range {
        fn start(&self) -> u64 {
            self.0
        }

        fn length(&self) -> usize {
            self.1
        }

        fn split(self, at: usize) -> (Self, Self) {
            (Self(self.0, at), Self(self.0 + at as u64, self.1 - at))
        }

        fn join(self, next: Self) -> Result<Self, (Self, Self)> {
            if self.0 + self.1 as u64 == next.0 {
                Ok(Self(self.0, self.1 + next.1))
            } else {
                Err((self, next))
            }
        }
    }

    fn source(position: u64, length: u32) -> SourceRange {
        SourceRange { file: 1, position, length }
    }

    fn stage(
        pool: &mut StagingPool<Range, ()>,
        metrics: &Arc<Metrics>,
        source: SourceRange,
    ) -> Option<StagedRange> {
        if let Some(held) = pool.hold(source) {
            return Some(held);
        }
        let memory = pool.take(source.length as usize)?;
        let counted = metrics.staging(Transport::Verbs, source.length.into());
        Some(pool.put(source, memory, (), counted))
    }

    #[test]
    fn one_staged_range_serves_all_readers_and_is_dropped_when_its_memory_is_needed() {
        let metrics = Arc::new(Metrics::default());
        let mut pool = StagingPool::new(Range(0x1000, 4 * GRANULE));
        let (a, b) = (source(0, 2 * GRANULE as u32), source(1 << 20, 2 * GRANULE as u32 - 1));
        let first = stage(&mut pool, &metrics, a).unwrap();
        assert_eq!(stage(&mut pool, &metrics, a), Some(first));
        let second = stage(&mut pool, &metrics, b).unwrap();
        assert_ne!(first.address, second.address);
        // Both are held, one of them twice.
        assert_eq!(stage(&mut pool, &metrics, source(9, 1)), None);
        pool.release(first.number);
        assert_eq!(stage(&mut pool, &metrics, source(9, 1)), None);
        pool.release(first.number);
        // It may be dropped now, but is used as long as it is there.
        let again = pool.hold(a).unwrap();
        assert_eq!(again.address, first.address);
        pool.release(again.number);
        pool.release(second.number);
        // The least recently used is dropped first.
        assert!(stage(&mut pool, &metrics, source(9, 1)).is_some());
        assert!(pool.hold(a).is_none() && pool.hold(b).is_some());
    }

    proptest! {
        /// The model is the list of held ranges, of which no two may overlap.
        #[test]
        fn held_ranges_never_overlap_and_all_memory_comes_back(
            steps in prop::collection::vec((0u64..12, 1u32..20_000, any::<bool>()), 1..200),
        ) {
            let metrics = Arc::new(Metrics::default());
            const MEMORY: usize = 16 * GRANULE;
            let mut pool = StagingPool::new(Range(0x10_0000, MEMORY));
            let mut held: Vec<(SourceRange, StagedRange)> = Vec::new();
            for (position, length, add) in steps {
                if add {
                    let source = source(position, length);
                    if let Some(new) = stage(&mut pool, &metrics, source) {
                        held.push((source, new));
                    }
                } else if !held.is_empty() {
                    let (_, released) = held.swap_remove(position as usize % held.len());
                    pool.release(released.number);
                }
                for (one, a) in &held {
                    prop_assert!(a.address >= 0x10_0000);
                    prop_assert!(a.address + u64::from(one.length) <= 0x10_0000 + MEMORY as u64);
                    for (other, b) in &held {
                        let apart = a.address + u64::from(one.length) <= b.address
                            || b.address + u64::from(other.length) <= a.address;
                        prop_assert!(apart || (one == other && a == b));
                    }
                }
            }
            for (_, held) in held {
                pool.release(held.number);
            }
            prop_assert!(pool.take(MEMORY).is_some());
            prop_assert_eq!(pool.staged.len(), 0);
            let numbers: HashSet<_> = pool.by_source.values().collect();
            prop_assert!(numbers.is_empty());
        }
    }
}
