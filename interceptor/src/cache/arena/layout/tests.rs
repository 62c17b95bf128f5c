//! The arena's map, rule by rule and under generated loads.

use super::*;
use proptest::prelude::*;

#[test]
fn an_empty_slab_serves_another_class() {
    let mut layout = ArenaLayout::<u32>::new(1, UNIT_SIZE);
    let small: Vec<_> = (0..512).map(|_| layout.allocate(SizeClass::of(4096)).unwrap()).collect();
    assert!(layout.allocate(SizeClass::of(4096)).is_none());
    assert!(layout.allocate(SizeClass::of(2 << 20)).is_none());
    small.into_iter().for_each(|position| layout.release(position));
    assert_eq!(layout.used(), 0);
    assert!(layout.allocate(SizeClass::of(2 << 20)).is_some());
}

#[test]
fn runs_are_allocated_from_the_top_and_slabs_from_the_bottom() {
    let mut layout = ArenaLayout::<u32>::new(32, 32 * UNIT_SIZE);
    assert_eq!(layout.allocate(SizeClass::of(4096)).unwrap().offset(), 0);
    assert_eq!(layout.allocate(SizeClass::Run(8)).unwrap().unit, 24);
    assert_eq!(layout.allocate(SizeClass::Run(2)).unwrap().unit, 22);
    assert_eq!(layout.allocate(SizeClass::Run(3)).unwrap().unit, 16);
    assert_eq!(layout.allocate(SizeClass::Run(1)).unwrap().unit, 21);
}

#[test]
fn blockers_are_the_owners_of_the_slots_in_the_way() {
    let mut layout = ArenaLayout::new(8, 8 * UNIT_SIZE);
    let positions: Vec<_> = (0..8).map(|_| layout.allocate(SizeClass::Run(1)).unwrap()).collect();
    positions.iter().for_each(|&position| layout.set_owner(position, Some(position.unit)));
    let first = *positions.iter().find(|position| position.unit == 5).unwrap();
    assert_eq!(layout.blockers(first, SizeClass::Run(1)), Some(vec![5]));
    assert_eq!(layout.blockers(first, SizeClass::Run(2)), Some(vec![4, 5]));
    assert_eq!(layout.blockers(first, SizeClass::Small(3)), Some(vec![5]));
    assert_eq!(layout.blockers(first, SizeClass::Run(9)), None, "larger than the arena");
    layout.set_owner(first, None);
    assert_eq!(layout.blockers(first, SizeClass::Run(2)), None, "one of them has no owner");
}

proptest! {
    /// Slots in use never overlap and have the size of their class; released, they leave nothing.
    #[test]
    fn slots_are_disjoint(operations in prop::collection::vec((0usize..3, 1usize..(20 << 20), 0usize..100), 1..300)) {
        let mut layout = ArenaLayout::new(48, 48 * UNIT_SIZE);
        let mut used: Vec<(SlotPosition, u32)> = Vec::new();
        for (number, (operation, len, pick)) in operations.into_iter().enumerate() {
            let len = if operation == 0 { len } else { len % (1 << 18) };
            match layout.allocate(SizeClass::of(len)) {
                Some(position) => {
                    let (start, end) = (position.offset(), position.offset() + position.size());
                    prop_assert!(position.size() >= len as u64 && end <= 48 * UNIT_SIZE);
                    let overlaps = used.iter().any(|(other, _)| {
                        start < other.offset() + other.size() && other.offset() < end
                    });
                    prop_assert!(!overlaps);
                    layout.set_owner(position, Some(number as u32));
                    used.push((position, number as u32));
                }
                None => {
                    // Evicting the blockers of any slot makes room.
                    let candidate = used[pick % used.len()].0;
                    let evicted = layout.blockers(candidate, SizeClass::of(len)).unwrap();
                    prop_assert!(!evicted.is_empty());
                    used.retain(|(position, owner)| {
                        let is_evicted = evicted.contains(owner);
                        if is_evicted {
                            layout.release(*position);
                        }
                        !is_evicted
                    });
                    let position = layout.allocate(SizeClass::of(len));
                    prop_assert!(position.is_some());
                    layout.set_owner(position.unwrap(), Some(number as u32));
                    used.push((position.unwrap(), number as u32));
                }
            }
            if operation == 2 && !used.is_empty() {
                layout.release(used.swap_remove(pick % used.len()).0);
            }
            prop_assert_eq!(layout.used(), used.iter().map(|(position, _)| position.size()).sum::<u64>());
        }
        used.into_iter().for_each(|(position, _)| layout.release(position));
        prop_assert!(layout.classes().is_empty());
        prop_assert!(layout.allocate(SizeClass::Run(48)).is_some());
    }
}
