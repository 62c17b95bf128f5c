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

use super::bit_set::BitSet;
use super::size_class::{Class, SLOTS, UNIT};

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

#[cfg(test)]
mod tests;
