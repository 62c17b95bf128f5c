//! The sizes that slots have.

/// Bytes of a unit.
pub(super) const UNIT: u64 = 2 << 20;
/// Bytes of a page, of which slots are multiples.
const PAGE: u64 = 4096;
/// Slots of each small class in one unit.
pub(super) const SLOTS: [u16; 16] = [512, 256, 170, 128, 85, 64, 42, 32, 21, 16, 10, 8, 6, 4, 3, 2];
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

    pub(super) fn alignment(units: u32) -> u32 {
        units.checked_next_power_of_two().unwrap_or(WIDEST).min(WIDEST)
    }
}

const fn slot_size(slots: u16) -> u64 {
    UNIT / PAGE / slots as u64 * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
