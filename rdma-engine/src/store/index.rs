//! The index of a volume in memory: where every needle is, in 17 bytes each.
//!
//! Keys are handed out in rising order, so nearly every new key is the largest so far. The index
//! is therefore an array sorted by key: such a key is appended, and a known key is changed in
//! place. The few other keys wait in a small map and are merged into the array, in place, when
//! there are enough of them.
//!
//! A deleted needle keeps its position, marked as deleted, until the volume is compacted: readers
//! with a slightly old list of chunks may still ask for it, as they may at the volume server
//! (`readDeleted`).

use std::collections::BTreeMap;

use super::entry::{IndexChange, RecordPosition};
use crate::needle::ALIGNMENT;

/// One needle, as the index has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Where its record is; also after it was deleted.
    pub position: RecordPosition,
    /// Whether it was deleted.
    pub deleted: bool,
}

/// One needle in memory. Packed, because there may be a hundred million.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct PackedEntry {
    key: u64,
    units_low: u32,
    units_high: u8,
    /// The size, or its bitwise complement if the needle was deleted: size 0 has no negative.
    size: i32,
}

impl PackedEntry {
    fn new(key: u64, position: RecordPosition) -> Self {
        let units = position.offset / ALIGNMENT;
        Self {
            key,
            units_low: (units & 0xffff_ffff) as u32,
            units_high: (units >> 32) as u8,
            size: position.size.cast_signed(),
        }
    }

    fn found(self) -> IndexEntry {
        let deleted = self.size < 0;
        let size = if deleted { !self.size } else { self.size };
        let units = u64::from(self.units_low) | u64::from(self.units_high) << 32;
        let position = RecordPosition { offset: units * ALIGNMENT, size: size.cast_unsigned() };
        IndexEntry { position, deleted }
    }

    /// The log entry of a deletion, not a needle.
    fn deletion(key: u64) -> Self {
        Self { key, units_low: 0, units_high: 0, size: 0 }
    }

    fn is_deletion(self) -> bool {
        self.units_low == 0 && self.units_high == 0
    }

    fn delete(&mut self) {
        if self.size >= 0 {
            self.size = !self.size;
        }
    }
}

/// The needles of a volume by key.
#[derive(Default)]
pub struct NeedleIndex {
    sorted: Vec<PackedEntry>,
    /// Keys that were new but not the largest; none of them is in `sorted`.
    late: BTreeMap<u64, PackedEntry>,
}

impl NeedleIndex {
    /// How many late keys may wait in an index of any size.
    const MIN_LATE_CAPACITY: usize = 1024;

    /// Applies one entry of the log.
    pub fn apply(&mut self, key: u64, change: IndexChange) {
        let appended = self.sorted.last().is_none_or(|last| { last.key } < key);
        match change {
            IndexChange::Deleted if appended => {}
            IndexChange::Written(position) if appended => {
                if self.sorted.len() == self.sorted.capacity() {
                    // A Vec would double. A sixteenth is enough, because large blocks grow by
                    // remapping.
                    self.sorted.reserve_exact(self.sorted.len() / 16 + Self::MIN_LATE_CAPACITY);
                }
                self.sorted.push(PackedEntry::new(key, position));
            }
            change => match (self.entry(key), change) {
                (Some(entry), IndexChange::Written(position)) => *entry = PackedEntry::new(key, position),
                (Some(entry), IndexChange::Deleted) => entry.delete(),
                (None, IndexChange::Deleted) => {}
                (None, IndexChange::Written(position)) => {
                    self.late.insert(key, PackedEntry::new(key, position));
                    if self.late.len() > self.sorted.len() / 32 + Self::MIN_LATE_CAPACITY {
                        self.merge_late();
                    }
                }
            },
        }
    }

    /// Looks a needle up.
    pub fn get(&self, key: u64) -> Option<IndexEntry> {
        let entry = match self.search(key) {
            Ok(at) => self.sorted[at],
            Err(_) => *self.late.get(&key)?,
        };
        Some(entry.found())
    }

    /// How many needles it has, deleted ones included.
    pub fn len(&self) -> usize {
        self.sorted.len() + self.late.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn entry(&mut self, key: u64) -> Option<&mut PackedEntry> {
        match self.search(key) {
            Ok(at) => Some(&mut self.sorted[at]),
            Err(_) => self.late.get_mut(&key),
        }
    }

    fn search(&self, key: u64) -> Result<usize, usize> {
        self.sorted.binary_search_by(|entry| { entry.key }.cmp(&key))
    }

    fn merge_late(&mut self) {
        let late: Vec<_> = std::mem::take(&mut self.late).into_values().collect();
        merge(&mut self.sorted, late);
    }
}

/// Merges `new` entries, which are sorted and of keys that are not in `sorted`. Works from the
/// back, so that no third array is needed.
fn merge(sorted: &mut Vec<PackedEntry>, mut new: Vec<PackedEntry>) {
    let Some(&first) = new.first() else { return };
    let mut read = sorted.len();
    sorted.reserve_exact(new.len());
    sorted.resize(read + new.len(), first);
    let mut write = sorted.len();
    while let Some(entry) = new.pop() {
        while read > 0 && { sorted[read - 1].key } > { entry.key } {
            read -= 1;
            write -= 1;
            sorted[write] = sorted[read];
        }
        write -= 1;
        sorted[write] = entry;
    }
}

/// Builds a [`NeedleIndex`] from a whole log. This is much faster than applying the entries one by
/// one, if the log is not in the order of keys.
#[derive(Default)]
pub struct IndexBuilder {
    /// Needles in the order of the log, as far as that is the order of keys.
    sorted: Vec<PackedEntry>,
    /// All other entries, in the order of the log. If a key is in both, the entry here is newer.
    backlog: Vec<PackedEntry>,
}

impl IndexBuilder {
    /// A builder with room for a log of `entries` entries.
    pub fn with_capacity(entries: usize) -> Self {
        Self { sorted: Vec::with_capacity(entries), backlog: Vec::new() }
    }

    /// Adds the next entry.
    pub fn push(&mut self, key: u64, change: IndexChange) {
        let largest = self.sorted.last().is_none_or(|last| { last.key } < key);
        match change {
            IndexChange::Written(position) if largest => self.sorted.push(PackedEntry::new(key, position)),
            IndexChange::Written(position) => self.backlog.push(PackedEntry::new(key, position)),
            // No needle of that key was written before.
            IndexChange::Deleted if largest => {}
            IndexChange::Deleted => self.backlog.push(PackedEntry::deletion(key)),
        }
    }

    /// The index of all entries.
    pub fn build(self) -> NeedleIndex {
        let Self { mut sorted, mut backlog } = self;
        // A stable sort, so that the entries of a key keep their order.
        backlog.sort_by_key(|entry| entry.key);
        let mut known = 0;
        let mut new: Vec<PackedEntry> = Vec::new();
        for change in backlog {
            while known < sorted.len() && { sorted[known].key } < change.key {
                known += 1;
            }
            let entry = match sorted.get_mut(known) {
                Some(entry) if { entry.key } == change.key => Some(entry),
                _ => new.last_mut().filter(|entry| { entry.key } == change.key),
            };
            match (entry, change.is_deletion()) {
                (Some(entry), true) => entry.delete(),
                (Some(entry), false) => *entry = change,
                (None, true) => {}
                (None, false) => new.push(change),
            }
        }
        merge(&mut sorted, new);
        sorted.shrink_to_fit();
        NeedleIndex { sorted, late: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn at(offset: u64, size: u32) -> RecordPosition {
        RecordPosition { offset: offset * 8, size }
    }

    #[test]
    fn a_packed_entry_takes_17_bytes() {
        assert_eq!(size_of::<PackedEntry>(), 17);
    }

    #[test]
    fn the_last_entry_is_valid_even_if_it_points_back() {
        let mut index = NeedleIndex::default();
        index.apply(5, IndexChange::Written(at(10, 1)));
        index.apply(5, IndexChange::Written(at(2, 3)));
        assert_eq!(index.get(5), Some(IndexEntry { position: at(2, 3), deleted: false }));
    }

    #[test]
    fn a_deleted_needle_keeps_its_position_and_can_come_back() {
        let mut index = NeedleIndex::default();
        index.apply(5, IndexChange::Deleted);
        assert_eq!(index.get(5), None);
        for size in [0, 7] {
            index.apply(5, IndexChange::Written(at(1, size)));
            index.apply(5, IndexChange::Deleted);
            index.apply(5, IndexChange::Deleted);
            assert_eq!(index.get(5), Some(IndexEntry { position: at(1, size), deleted: true }));
        }
        index.apply(5, IndexChange::Written(at((1 << 40) - 1, 8)));
        assert_eq!(index.get(5), Some(IndexEntry { position: at((1 << 40) - 1, 8), deleted: false }));
    }

    #[test]
    fn growing_never_takes_more_than_20_bytes_a_needle() {
        let mut index = NeedleIndex::default();
        for key in 0..300_000 {
            index.apply(key * 2, IndexChange::Written(at(key + 1, 1)));
        }
        for key in 0..20_000 {
            index.apply(key * 2 + 1, IndexChange::Written(at(key + 1, 1)));
            let array = index.sorted.capacity() * size_of::<PackedEntry>();
            // A node of the map is at least half full: twice what its entries take.
            let map = index.late.len() * 2 * (size_of::<PackedEntry>() + size_of::<u64>());
            assert!(array + map <= index.len() * 20 + (64 << 10), "{array} + {map} for {}", index.len());
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            log in prop::collection::vec((0u64..3000, prop::option::of((1u64..1 << 40, 0u32..1 << 31))), 0..6000),
            start in 0usize..6000,
        ) {
            let changes: Vec<_> = log
                .iter()
                .map(|&(key, to)| (key, to.map_or(IndexChange::Deleted, |(units, size)| IndexChange::Written(at(units, size)))))
                .collect();
            let (built, applied) = changes.split_at(start.min(changes.len()));
            let mut builder = IndexBuilder::with_capacity(built.len());
            for &(key, change) in built {
                builder.push(key, change);
            }
            let mut index = builder.build();
            for &(key, change) in applied {
                index.apply(key, change);
            }
            let mut model: HashMap<u64, IndexEntry> = HashMap::new();
            for (key, change) in changes {
                match change {
                    IndexChange::Written(position) => {
                        model.insert(key, IndexEntry { position, deleted: false });
                    }
                    IndexChange::Deleted => {
                        model.entry(key).and_modify(|found| found.deleted = true);
                    }
                }
            }
            prop_assert_eq!(index.len(), model.len());
            for key in 0..3000 {
                prop_assert_eq!(index.get(key), model.get(&key).copied(), "{}", key);
            }
        }
    }
}
