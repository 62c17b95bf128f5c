//! The sizes of slots.
//!
//! Small classes lie two to the octave: of files of 4 to 128 KiB, evenly mixed, 15 % of the memory
//! is lost to rounding (25 % with one class to the octave, 58 % with one to two octaves).

/// Bytes of a unit: a huge page.
pub(in crate::cache) const UNIT_SIZE: u64 = 2 << 20;
/// Bytes of a page. The size of a slot is a multiple of it.
pub(super) const PAGE_SIZE: u64 = 4096;
/// For each small class, how many slots one unit has.
pub(super) const SLOTS_PER_UNIT: [u16; 16] = [512, 256, 170, 128, 85, 64, 42, 32, 21, 16, 10, 8, 6, 4, 3, 2];
/// Runs are aligned to at most this many units.
const MAX_RUN_ALIGNMENT: u32 = 8;

/// The size of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SizeClass {
    /// A part of a unit; the index into the small classes.
    Small(u8),
    /// This many whole units.
    Run(u32),
}

impl SizeClass {
    /// The smallest class that holds `len` bytes.
    pub fn of(len: usize) -> Self {
        let small = SLOTS_PER_UNIT.iter().position(|&slots| len as u64 <= slot_size(slots));
        match small {
            Some(class) => SizeClass::Small(class as u8),
            None => SizeClass::Run((len as u64).div_ceil(UNIT_SIZE).try_into().unwrap_or(u32::MAX)),
        }
    }

    /// Bytes of a slot.
    pub fn size(self) -> u64 {
        match self {
            SizeClass::Small(class) => slot_size(SLOTS_PER_UNIT[class as usize]),
            SizeClass::Run(units) => u64::from(units) * UNIT_SIZE,
        }
    }

    /// At multiples of how many units a run of `units` begins.
    pub(super) fn run_alignment(units: u32) -> u32 {
        units.checked_next_power_of_two().unwrap_or(MAX_RUN_ALIGNMENT).min(MAX_RUN_ALIGNMENT)
    }
}

/// Bytes of a slot of a unit that is cut into `slots`.
const fn slot_size(slots: u16) -> u64 {
    UNIT_SIZE / PAGE_SIZE / slots as u64 * PAGE_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_gets_the_smallest_class_that_holds_it() {
        assert_eq!(SizeClass::of(0).size(), 4096);
        assert_eq!(SizeClass::of(4096).size(), 4096);
        assert_eq!(SizeClass::of(4097).size(), 8192);
        assert_eq!(SizeClass::of(64 << 10).size(), 64 << 10);
        assert_eq!(SizeClass::of(1 << 20).size(), 1 << 20);
        assert_eq!(SizeClass::of((1 << 20) + 1), SizeClass::Run(1));
        assert_eq!(SizeClass::of(2 << 20), SizeClass::Run(1));
        assert_eq!(SizeClass::of(16 << 20), SizeClass::Run(8));
        assert_eq!(SizeClass::of((16 << 20) + 1), SizeClass::Run(9));
    }

    #[test]
    fn rounding_up_to_classes_wastes_little() {
        let lost = |sizes: &mut dyn Iterator<Item = usize>| {
            let (mut wanted, mut taken) = (0.0, 0.0);
            for size in sizes {
                wanted += size as f64;
                taken += match SizeClass::of(size) {
                    SizeClass::Small(class) => UNIT_SIZE as f64 / f64::from(SLOTS_PER_UNIT[class as usize]),
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
