//! Which part of the arena holds what. Knows numbers only; the memory itself is [`super::Region`]'s.
//!
//! The arena is a row of *units* of 2 MiB, the size of a huge page. A unit is free, or is cut into slots of one class
//! (a *slab*), or belongs to a *run* of neighbouring units that is one large slot. A slab whose slots are all free is a
//! free unit again, so memory moves between classes without anyone planning it. Classes lie two to the octave: of files
//! of 4 to 128 KiB, evenly mixed, 15 % of the memory is lost to rounding (25 % with one class to the octave, 58 % with one to
//! two octaves).
//!
//! Runs begin at multiples of their size (of the next power of two, 16 MiB at most) and are looked for from the top
//! down, slabs from the bottom up. Therefore chunks of 4 to 16 MiB find each other's places again, and where there is
//! none, making one means to empty one aligned stretch ([`Layout::neighbours`]), not to hope for luck.

/// Bytes of a unit.
pub(super) const UNIT: u64 = 2 << 20;
/// Bytes of a page, of which slots are multiples.
const PAGE: u64 = 4096;
/// Slots of each small class in one unit.
const SLOTS: [u16; 16] = [512, 256, 170, 128, 85, 64, 42, 32, 21, 16, 10, 8, 6, 4, 3, 2];
/// Runs are aligned to at most this many units.
const WIDEST: u32 = 8;

/// The size of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A slab's slot; the index of the class.
    Small(u8),
    /// This many units.
    Run(u32),
}

impl Class {
    /// The smallest class that holds `len` bytes.
    pub fn of(len: usize) -> Self {
        let small = SLOTS.iter().position(|&slots| len as u64 <= slot_size(slots));
        match small {
            Some(class) => Class::Small(class as u8),
            None => Class::Run((len as u64).div_ceil(UNIT).try_into().unwrap_or(u32::MAX)),
        }
    }

    /// Bytes of a slot.
    pub fn size(self) -> u64 {
        match self {
            Class::Small(class) => slot_size(SLOTS[class as usize]),
            Class::Run(units) => u64::from(units) * UNIT,
        }
    }

    fn alignment(units: u32) -> u32 {
        units.checked_next_power_of_two().unwrap_or(WIDEST).min(WIDEST)
    }
}

const fn slot_size(slots: u16) -> u64 {
    UNIT / PAGE / slots as u64 * PAGE
}

/// One slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    unit: u32,
    slot: u16,
    class: Class,
}

impl Place {
    /// Bytes from the start of the arena.
    pub(super) fn offset(self) -> u64 {
        u64::from(self.unit) * UNIT + u64::from(self.slot) * self.size()
    }

    /// Bytes of the slot.
    pub(super) fn size(self) -> u64 {
        self.class.size()
    }

    /// The class of the slot.
    pub(super) fn class(self) -> Class {
        self.class
    }
}

#[derive(Debug)]
enum Unit<K> {
    Free,
    Slab(Box<Slab<K>>),
    Run {
        units: u32,
        owner: Option<K>,
    },
    /// Not the first unit of a run.
    Within {
        head: u32,
    },
}

#[derive(Debug)]
struct Slab<K> {
    class: u8,
    used: u16,
    /// A bit for each free slot.
    free: [u64; 8],
    owners: Box<[Option<K>]>,
}

/// How many bytes of a class are in use and set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassUsage {
    /// Bytes of a slot of the class.
    pub size: u64,
    /// Slots in use.
    pub slots: u64,
    /// Bytes of units that only this class can use now.
    pub held: u64,
}

/// The map of the arena. Slots may carry an owner, by which what occupies a stretch is known.
#[derive(Debug)]
pub(super) struct Layout<K> {
    units: Vec<Unit<K>>,
    free: BitSet,
    /// For each small class its slabs that have free slots.
    open: [BitSet; SLOTS.len()],
    /// Bytes of slots in use.
    used: u64,
    /// How many they may be.
    limit: u64,
}

impl<K: Copy> Layout<K> {
    /// A free arena of `units` units, of which at most `limit` bytes may be in use.
    pub(super) fn new(units: u32, limit: u64) -> Self {
        let mut free = BitSet::new(units);
        (0..units).for_each(|unit| free.insert(unit));
        let open = std::array::from_fn(|_| BitSet::new(units));
        Self { units: (0..units).map(|_| Unit::Free).collect(), free, open, used: 0, limit }
    }

    /// Bytes of slots in use.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// A free slot of `class`, which is then in use.
    pub(super) fn allocate(&mut self, class: Class) -> Option<Place> {
        if self.used + class.size() > self.limit {
            return None;
        }
        let place = match class {
            Class::Small(small) => self.allocate_small(small),
            Class::Run(units) => self.allocate_run(units),
        }?;
        self.used += place.size();
        Some(place)
    }

    fn allocate_small(&mut self, class: u8) -> Option<Place> {
        let open = &mut self.open[class as usize];
        let unit = match open.first() {
            Some(unit) => unit,
            None => {
                let unit = self.free.first()?;
                self.free.remove(unit);
                self.units[unit as usize] = Unit::Slab(Box::new(Slab::new(class)));
                open.insert(unit);
                unit
            }
        };
        let Unit::Slab(slab) = &mut self.units[unit as usize] else { unreachable!("only slabs are open") };
        let slot = slab.take();
        if slab.is_full() {
            open.remove(unit);
        }
        Some(Place { unit, slot, class: Class::Small(class) })
    }

    fn allocate_run(&mut self, units: u32) -> Option<Place> {
        let head = self.free.last_run(units, Class::alignment(units))?;
        for unit in head..head + units {
            self.free.remove(unit);
            self.units[unit as usize] = Unit::Within { head };
        }
        self.units[head as usize] = Unit::Run { units, owner: None };
        Some(Place { unit: head, slot: 0, class: Class::Run(units) })
    }

    /// Says who occupies a slot that is in use. A slot without an owner cannot be emptied.
    pub(super) fn set_owner(&mut self, place: Place, owner: Option<K>) {
        match &mut self.units[place.unit as usize] {
            Unit::Slab(slab) => slab.owners[place.slot as usize] = owner,
            Unit::Run { owner: of_run, .. } => *of_run = owner,
            Unit::Free | Unit::Within { .. } => unreachable!("the slot is in use"),
        }
    }

    /// Makes a slot free again.
    pub(super) fn release(&mut self, place: Place) {
        self.used -= place.size();
        match (&mut self.units[place.unit as usize], place.class) {
            (Unit::Slab(slab), Class::Small(class)) => {
                slab.give_back(place.slot);
                let open = &mut self.open[class as usize];
                if slab.used == 0 {
                    open.remove(place.unit);
                    self.units[place.unit as usize] = Unit::Free;
                    self.free.insert(place.unit);
                } else {
                    open.insert(place.unit);
                }
            }
            (Unit::Run { .. }, Class::Run(units)) => {
                for unit in place.unit..place.unit + units {
                    self.units[unit as usize] = Unit::Free;
                    self.free.insert(unit);
                }
            }
            _ => unreachable!("the slot is in use"),
        }
    }

    /// Who must go so that a slot of `class` can be had where `place` is. Nobody if that would not do, or if somebody
    /// there cannot go.
    pub(super) fn neighbours(&self, place: Place, class: Class) -> Option<Vec<K>> {
        let mut owners = Vec::new();
        let wanted = match class {
            Class::Small(_) if place.class == class => {
                return self.occupants(place.unit, Some(place.slot), &mut owners);
            }
            Class::Small(_) => 1,
            Class::Run(units) => units,
        };
        let alignment = Class::alignment(wanted);
        let last_start = (self.units.len() as u32).checked_sub(wanted)? / alignment * alignment;
        let start = (place.unit / alignment * alignment).min(last_start);
        let mut unit = match self.units[start as usize] {
            Unit::Within { head } => head,
            _ => start,
        };
        while unit < start + wanted {
            owners = self.occupants(unit, None, &mut owners)?;
            unit += match self.units[unit as usize] {
                Unit::Run { units, .. } => units,
                _ => 1,
            };
        }
        Some(owners)
    }

    /// Adds the owners of what is in use in `unit`, or in one slot of it.
    fn occupants(&self, unit: u32, slot: Option<u16>, owners: &mut Vec<K>) -> Option<Vec<K>> {
        let mut owners = std::mem::take(owners);
        match &self.units[unit as usize] {
            Unit::Free | Unit::Within { .. } => {}
            Unit::Run { owner, .. } => owners.push((*owner)?),
            Unit::Slab(slab) => match slot {
                Some(slot) => owners.push(slab.owners[slot as usize]?),
                None => {
                    for slot in 0..slab.owners.len() as u16 {
                        if !slab.is_free(slot) {
                            owners.push(slab.owners[slot as usize]?);
                        }
                    }
                }
            },
        }
        Some(owners)
    }

    /// What each class that holds memory uses, from the smallest to the largest.
    pub(super) fn classes(&self) -> Vec<ClassUsage> {
        let mut classes = std::collections::BTreeMap::new();
        for unit in &self.units {
            let (class, slots, held) = match unit {
                Unit::Slab(slab) => (Class::Small(slab.class), slab.used.into(), UNIT),
                Unit::Run { units, .. } => (Class::Run(*units), 1, u64::from(*units) * UNIT),
                Unit::Free | Unit::Within { .. } => continue,
            };
            let usage = classes.entry(class).or_insert(ClassUsage { size: class.size(), slots: 0, held: 0 });
            usage.slots += slots;
            usage.held += held;
        }
        classes.into_values().collect()
    }
}

impl<K: Copy> Slab<K> {
    fn new(class: u8) -> Self {
        let slots = SLOTS[class as usize];
        let free = std::array::from_fn(|word| {
            let bits = (i32::from(slots) - word as i32 * 64).clamp(0, 64) as u32;
            u64::MAX.checked_shr(64 - bits).unwrap_or(0)
        });
        Self { class, used: 0, free, owners: vec![None; slots.into()].into() }
    }

    fn take(&mut self) -> u16 {
        let word = self.free.iter().position(|&word| word != 0).expect("an open slab has a free slot");
        let bit = self.free[word].trailing_zeros();
        self.free[word] &= self.free[word] - 1;
        self.used += 1;
        word as u16 * 64 + bit as u16
    }

    fn give_back(&mut self, slot: u16) {
        debug_assert!(!self.is_free(slot), "a slot is given back once");
        self.free[slot as usize / 64] |= 1 << (slot % 64);
        self.owners[slot as usize] = None;
        self.used -= 1;
    }

    fn is_free(&self, slot: u16) -> bool {
        self.free[slot as usize / 64] & 1 << (slot % 64) != 0
    }

    fn is_full(&self) -> bool {
        self.used as usize == self.owners.len()
    }
}

/// A set of small numbers.
#[derive(Debug)]
struct BitSet {
    words: Vec<u64>,
    count: u32,
}

impl BitSet {
    fn new(size: u32) -> Self {
        Self { words: vec![0; size.div_ceil(64) as usize], count: 0 }
    }

    fn contains(&self, number: u32) -> bool {
        self.words[number as usize / 64] & 1 << (number % 64) != 0
    }

    fn insert(&mut self, number: u32) {
        self.count += u32::from(!self.contains(number));
        self.words[number as usize / 64] |= 1 << (number % 64);
    }

    fn remove(&mut self, number: u32) {
        self.count -= u32::from(self.contains(number));
        self.words[number as usize / 64] &= !(1 << (number % 64));
    }

    fn first(&self) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        let word = self.words.iter().position(|&word| word != 0)?;
        Some(word as u32 * 64 + self.words[word].trailing_zeros())
    }

    /// The highest multiple of `alignment` (a power of two up to 64) from which on `len` numbers are in the set.
    fn last_run(&self, len: u32, alignment: u32) -> Option<u32> {
        if self.count < len || len == 0 {
            return None;
        }
        let words = self.words.iter().enumerate().rev().filter(|(_, word)| **word != 0);
        let starts = words.flat_map(|(word, _)| {
            (0..64 / alignment).rev().map(move |step| word as u32 * 64 + step * alignment)
        });
        let end = self.words.len() as u32 * 64;
        starts
            .filter(|start| start.checked_add(len).is_some_and(|past| past <= end))
            .find(|&start| (start..start + len).all(|number| self.contains(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classes_hold_what_they_are_for() {
        assert_eq!(Class::of(0).size(), 4096);
        assert_eq!(Class::of(4096).size(), 4096);
        assert_eq!(Class::of(4097).size(), 8192);
        assert_eq!(Class::of(64 << 10).size(), 64 << 10);
        assert_eq!(Class::of(1 << 20).size(), 1 << 20);
        assert_eq!(Class::of((1 << 20) + 1), Class::Run(1));
        assert_eq!(Class::of(2 << 20), Class::Run(1));
        assert_eq!(Class::of(16 << 20), Class::Run(8));
        assert_eq!(Class::of((16 << 20) + 1), Class::Run(9));
    }

    #[test]
    fn rounding_costs_little() {
        let lost = |sizes: &mut dyn Iterator<Item = usize>| {
            let (mut wanted, mut taken) = (0.0, 0.0);
            for size in sizes {
                wanted += size as f64;
                taken += match Class::of(size) {
                    Class::Small(class) => UNIT as f64 / f64::from(SLOTS[class as usize]),
                    run => run.size() as f64,
                };
            }
            1.0 - wanted / taken
        };
        assert!(lost(&mut (4096..131_072).step_by(7)) < 0.16, "small files");
        assert!(
            lost(&mut [2, 4, 8, 16].into_iter().map(|mib| mib << 20)) == 0.0,
            "chunks of the usual sizes"
        );
    }

    #[test]
    fn an_empty_slab_serves_another_class() {
        let mut layout = Layout::<u32>::new(1, UNIT);
        let small: Vec<_> = (0..512).map(|_| layout.allocate(Class::of(4096)).unwrap()).collect();
        assert!(layout.allocate(Class::of(4096)).is_none());
        assert!(layout.allocate(Class::of(2 << 20)).is_none());
        small.into_iter().for_each(|place| layout.release(place));
        assert_eq!(layout.used(), 0);
        assert!(layout.allocate(Class::of(2 << 20)).is_some());
    }

    #[test]
    fn chunks_and_small_files_keep_to_their_ends() {
        let mut layout = Layout::<u32>::new(32, 32 * UNIT);
        assert_eq!(layout.allocate(Class::of(4096)).unwrap().offset(), 0);
        assert_eq!(layout.allocate(Class::Run(8)).unwrap().unit, 24);
        assert_eq!(layout.allocate(Class::Run(2)).unwrap().unit, 22);
        assert_eq!(layout.allocate(Class::Run(3)).unwrap().unit, 16);
        assert_eq!(layout.allocate(Class::Run(1)).unwrap().unit, 21);
    }

    #[test]
    fn the_neighbours_of_a_place_are_what_is_in_the_way() {
        let mut layout = Layout::new(8, 8 * UNIT);
        let places: Vec<_> = (0..8).map(|_| layout.allocate(Class::Run(1)).unwrap()).collect();
        places.iter().for_each(|&place| layout.set_owner(place, Some(place.unit)));
        let first = *places.iter().find(|place| place.unit == 5).unwrap();
        assert_eq!(layout.neighbours(first, Class::Run(1)), Some(vec![5]));
        assert_eq!(layout.neighbours(first, Class::Run(2)), Some(vec![4, 5]));
        assert_eq!(layout.neighbours(first, Class::Small(3)), Some(vec![5]));
        assert_eq!(layout.neighbours(first, Class::Run(9)), None, "larger than the arena");
        layout.set_owner(first, None);
        assert_eq!(layout.neighbours(first, Class::Run(2)), None, "somebody cannot go");
    }

    proptest! {
        /// Slots in use never overlap, keep to their class, and come back whole.
        #[test]
        fn slots_are_disjoint(operations in prop::collection::vec((0usize..3, 1usize..(20 << 20), 0usize..100), 1..300)) {
            let mut layout = Layout::new(48, 48 * UNIT);
            let mut used: Vec<(Place, u32)> = Vec::new();
            for (number, (operation, len, pick)) in operations.into_iter().enumerate() {
                let len = if operation == 0 { len } else { len % (1 << 18) };
                match layout.allocate(Class::of(len)) {
                    Some(place) => {
                        let (start, end) = (place.offset(), place.offset() + place.size());
                        prop_assert!(place.size() >= len as u64 && end <= 48 * UNIT);
                        let overlaps = used.iter().any(|(other, _)| {
                            start < other.offset() + other.size() && other.offset() < end
                        });
                        prop_assert!(!overlaps);
                        layout.set_owner(place, Some(number as u32));
                        used.push((place, number as u32));
                    }
                    None => {
                        // Emptying the neighbourhood of any place makes room.
                        let around = used[pick % used.len()].0;
                        let gone = layout.neighbours(around, Class::of(len)).unwrap();
                        prop_assert!(!gone.is_empty());
                        used.retain(|(place, owner)| {
                            let goes = gone.contains(owner);
                            if goes {
                                layout.release(*place);
                            }
                            !goes
                        });
                        let place = layout.allocate(Class::of(len));
                        prop_assert!(place.is_some());
                        layout.set_owner(place.unwrap(), Some(number as u32));
                        used.push((place.unwrap(), number as u32));
                    }
                }
                if operation == 2 && !used.is_empty() {
                    layout.release(used.swap_remove(pick % used.len()).0);
                }
                prop_assert_eq!(layout.used(), used.iter().map(|(place, _)| place.size()).sum::<u64>());
            }
            used.into_iter().for_each(|(place, _)| layout.release(place));
            prop_assert!(layout.classes().is_empty());
            prop_assert!(layout.allocate(Class::Run(48)).is_some());
        }
    }
}
