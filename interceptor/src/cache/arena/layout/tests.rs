//! The arena's map: which slots there are, and what is in the way of others.

use super::*;
use proptest::prelude::*;

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
