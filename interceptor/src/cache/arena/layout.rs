//! Which part of the arena holds what. Knows numbers only; the memory itself is the
//! [`ArenaRegion`](super::ArenaRegion).
//!
//! The arena is a row of *units* of 2 MiB, the size of a huge page. A unit is free, or is cut into
//! slots of one [small class](SizeClass::Small) (a *slab*), or belongs to a *run* of neighbouring
//! units that is one large slot. A slab whose slots are all free is a free unit again, so memory
//! moves between classes by itself.
//!
//! Runs begin at multiples of their size (of the next power of two, 16 MiB at most) and are
//! allocated from the top down, slabs from the bottom up. Therefore a chunk of 4 to 16 MiB fits
//! where another such chunk was. Where none fits, the arena empties one aligned stretch
//! ([`ArenaLayout::blockers`]) rather than evict scattered slots in the hope of a free stretch.

use super::bit_set::BitSet;
use super::size_class::{SLOTS_PER_UNIT, SizeClass, UNIT_SIZE};

/// Where a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SlotPosition {
    unit: u32,
    slot: u16,
    class: SizeClass,
}

impl SlotPosition {
    /// Bytes from the start of the arena.
    pub(super) fn offset(self) -> u64 {
        u64::from(self.unit) * UNIT_SIZE + u64::from(self.slot) * self.size()
    }

    /// Bytes of the slot.
    pub(super) fn size(self) -> u64 {
        self.class.size()
    }

    /// The class of the slot.
    pub(super) fn class(self) -> SizeClass {
        self.class
    }
}

#[derive(Debug)]
enum Unit<K> {
    Free,
    Slab(Box<Slab<K>>),
    /// The first unit of a run.
    Run {
        units: u32,
        owner: Option<K>,
    },
    /// Another unit of the run that begins at `head`.
    RunTail {
        head: u32,
    },
}

/// A unit that is cut into slots of one small class.
#[derive(Debug)]
struct Slab<K> {
    class: u8,
    used: u16,
    /// A bit for each free slot.
    free: [u64; 8],
    owners: Box<[Option<K>]>,
}

/// How much of the arena one size class takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeClassUsage {
    /// Bytes of a slot of the class.
    pub size: u64,
    /// Slots in use.
    pub slots: u64,
    /// Bytes of units that serve only this class now.
    pub held: u64,
}

/// The map of the arena. A slot in use may have an owner: the key of the block that it holds.
#[derive(Debug)]
pub(super) struct ArenaLayout<K> {
    units: Vec<Unit<K>>,
    free_units: BitSet,
    /// For each small class, its slabs that have free slots.
    open_slabs: [BitSet; SLOTS_PER_UNIT.len()],
    /// Bytes of slots in use.
    used: u64,
    /// The most bytes of slots in use.
    limit: u64,
}

impl<K: Copy> ArenaLayout<K> {
    /// A free arena of `units` units, of which at most `limit` bytes may be in use.
    pub(super) fn new(units: u32, limit: u64) -> Self {
        let mut free_units = BitSet::new(units);
        (0..units).for_each(|unit| free_units.insert(unit));
        let open_slabs = std::array::from_fn(|_| BitSet::new(units));
        Self { units: (0..units).map(|_| Unit::Free).collect(), free_units, open_slabs, used: 0, limit }
    }

    /// Bytes of slots in use.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// A free slot of `class`, which is then in use.
    pub(super) fn allocate(&mut self, class: SizeClass) -> Option<SlotPosition> {
        if self.used + class.size() > self.limit {
            return None;
        }
        let position = match class {
            SizeClass::Small(small) => self.allocate_small(small),
            SizeClass::Run(units) => self.allocate_run(units),
        }?;
        self.used += position.size();
        Some(position)
    }

    fn allocate_small(&mut self, class: u8) -> Option<SlotPosition> {
        let open_slabs = &mut self.open_slabs[class as usize];
        let unit = match open_slabs.first() {
            Some(unit) => unit,
            None => {
                let unit = self.free_units.first()?;
                self.free_units.remove(unit);
                self.units[unit as usize] = Unit::Slab(Box::new(Slab::new(class)));
                open_slabs.insert(unit);
                unit
            }
        };
        let Unit::Slab(slab) = &mut self.units[unit as usize] else { unreachable!("only slabs are open") };
        let slot = slab.allocate();
        if slab.is_full() {
            open_slabs.remove(unit);
        }
        Some(SlotPosition { unit, slot, class: SizeClass::Small(class) })
    }

    fn allocate_run(&mut self, units: u32) -> Option<SlotPosition> {
        let head = self.free_units.last_run(units, SizeClass::run_alignment(units))?;
        Some(self.take_run(head, units))
    }

    /// Makes free units a run.
    fn take_run(&mut self, head: u32, units: u32) -> SlotPosition {
        for unit in head..head + units {
            self.free_units.remove(unit);
            self.units[unit as usize] = Unit::RunTail { head };
        }
        self.units[head as usize] = Unit::Run { units, owner: None };
        SlotPosition { unit: head, slot: 0, class: SizeClass::Run(units) }
    }

    /// The unit with number `unit`, if all of it is free; it is in use then.
    pub(super) fn allocate_unit(&mut self, unit: u32) -> Option<SlotPosition> {
        let is_free = self.used + UNIT_SIZE <= self.limit && self.free_units.contains(unit);
        is_free.then(|| {
            self.used += UNIT_SIZE;
            self.take_run(unit, 1)
        })
    }

    /// Sets the owner of a slot that is in use. A slot without an owner cannot be evicted.
    pub(super) fn set_owner(&mut self, position: SlotPosition, owner: Option<K>) {
        match &mut self.units[position.unit as usize] {
            Unit::Slab(slab) => slab.owners[position.slot as usize] = owner,
            Unit::Run { owner: run_owner, .. } => *run_owner = owner,
            Unit::Free | Unit::RunTail { .. } => unreachable!("the slot is in use"),
        }
    }

    /// Makes a slot free again.
    pub(super) fn release(&mut self, position: SlotPosition) {
        self.used -= position.size();
        match (&mut self.units[position.unit as usize], position.class) {
            (Unit::Slab(slab), SizeClass::Small(class)) => {
                slab.release(position.slot);
                let open_slabs = &mut self.open_slabs[class as usize];
                if slab.used == 0 {
                    open_slabs.remove(position.unit);
                    self.units[position.unit as usize] = Unit::Free;
                    self.free_units.insert(position.unit);
                } else {
                    open_slabs.insert(position.unit);
                }
            }
            (Unit::Run { .. }, SizeClass::Run(units)) => {
                for unit in position.unit..position.unit + units {
                    self.units[unit as usize] = Unit::Free;
                    self.free_units.insert(unit);
                }
            }
            _ => unreachable!("the slot is in use"),
        }
    }

    /// The owners that must be evicted so that a slot of `class` fits around `position`. None if
    /// it cannot fit there, or if a slot in the way has no owner.
    pub(super) fn blockers(&self, position: SlotPosition, class: SizeClass) -> Option<Vec<K>> {
        let mut owners = Vec::new();
        let needed = match class {
            SizeClass::Small(_) if position.class == class => {
                self.add_owners(position.unit, Some(position.slot), &mut owners)?;
                return Some(owners);
            }
            SizeClass::Small(_) => 1,
            SizeClass::Run(units) => units,
        };
        let alignment = SizeClass::run_alignment(needed);
        let last_start = (self.units.len() as u32).checked_sub(needed)? / alignment * alignment;
        let start = (position.unit / alignment * alignment).min(last_start);
        let mut unit = match self.units[start as usize] {
            Unit::RunTail { head } => head,
            _ => start,
        };
        while unit < start + needed {
            self.add_owners(unit, None, &mut owners)?;
            unit += match self.units[unit as usize] {
                Unit::Run { units, .. } => units,
                _ => 1,
            };
        }
        Some(owners)
    }

    /// Adds the owners of the slots in use in `unit`, or of one slot. None if one has no owner.
    fn add_owners(&self, unit: u32, slot: Option<u16>, owners: &mut Vec<K>) -> Option<()> {
        match &self.units[unit as usize] {
            Unit::Free | Unit::RunTail { .. } => {}
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
        Some(())
    }

    /// The usage of each class that holds memory, from the smallest to the largest.
    pub(super) fn classes(&self) -> Vec<SizeClassUsage> {
        let mut classes = std::collections::BTreeMap::new();
        for unit in &self.units {
            let (class, slots, held) = match unit {
                Unit::Slab(slab) => (SizeClass::Small(slab.class), slab.used.into(), UNIT_SIZE),
                Unit::Run { units, .. } => (SizeClass::Run(*units), 1, u64::from(*units) * UNIT_SIZE),
                Unit::Free | Unit::RunTail { .. } => continue,
            };
            let usage =
                classes.entry(class).or_insert(SizeClassUsage { size: class.size(), slots: 0, held: 0 });
            usage.slots += slots;
            usage.held += held;
        }
        classes.into_values().collect()
    }
}

impl<K: Copy> Slab<K> {
    fn new(class: u8) -> Self {
        let slots = SLOTS_PER_UNIT[class as usize];
        let free = std::array::from_fn(|word| {
            let bits = (i32::from(slots) - word as i32 * 64).clamp(0, 64) as u32;
            u64::MAX.checked_shr(64 - bits).unwrap_or(0)
        });
        Self { class, used: 0, free, owners: vec![None; slots.into()].into() }
    }

    fn allocate(&mut self) -> u16 {
        let word = self.free.iter().position(|&word| word != 0).expect("an open slab has a free slot");
        let bit = self.free[word].trailing_zeros();
        self.free[word] &= self.free[word] - 1;
        self.used += 1;
        word as u16 * 64 + bit as u16
    }

    fn release(&mut self, slot: u16) {
        debug_assert!(!self.is_free(slot), "a slot is released once");
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
