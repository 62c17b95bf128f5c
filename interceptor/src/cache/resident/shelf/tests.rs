//! The rules of the shelf one by one, and all of them against a model that looks at everything every time.

use proptest::prelude::*;

use super::*;

fn id(number: usize) -> ContentId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    ContentId(id)
}

/// A shelf with a budget, of files that are their own numbers and of one size.
struct Files {
    shelf: Shelf<usize>,
    room: usize,
}

impl Files {
    fn new(room: usize) -> Self {
        Self { shelf: Shelf::new(1000), room }
    }

    /// Reads a file from open to close. Returns whether it was resident; if not, it wants to be.
    fn read(&mut self, number: usize) -> bool {
        let hit = self.shelf.opened(id(number)).is_some();
        if !hit {
            self.promote(number, Worth::IfRoom);
        }
        self.shelf.closed(&id(number));
        hit
    }

    fn promote(&mut self, number: usize, worth: Worth) -> bool {
        let Some(ticket) = self.shelf.want(id(number), worth) else { return false };
        let missing = (self.shelf.residents() + 1).saturating_sub(self.room) as u64;
        let made = self.shelf.make_room(&id(number), ticket, missing).is_some()
            && self.shelf.finish(&id(number), ticket, number, 1);
        self.shelf.abandon(&id(number), ticket);
        assert!(self.shelf.residents() <= self.room);
        made
    }
}

#[test]
fn files_read_once_displace_nobody() {
    let mut files = Files::new(10);
    (0..10).for_each(|number| _ = files.read(number));
    (100..10_000).for_each(|number| assert!(!files.read(number)));
    assert!((0..10).all(|number| files.read(number)));
}

#[test]
fn of_a_set_that_does_not_fit_a_part_stays() {
    let mut files = Files::new(50);
    let mut hits = 0;
    for round in 0..10 {
        let now = (0..100).filter(|&number| files.read(number)).count();
        hits += if round > 0 { now } else { 0 };
    }
    assert_eq!(hits, 9 * 50);
}

#[test]
fn what_is_used_again_soon_displaces_what_is_not_used() {
    let mut files = Files::new(10);
    (0..10).for_each(|number| _ = files.read(number));
    for _ in 0..2 {
        (20..25).for_each(|number| _ = files.read(number));
    }
    assert!((20..25).all(|number| files.read(number)));
    assert!((5..10).all(|number| files.read(number)), "the least recently used have left");
}

#[test]
fn a_file_fetched_again_displaces_what_was_used_before_it_was_opened() {
    let mut files = Files::new(1);
    files.read(1);
    files.shelf.opened(id(2));
    assert!(!files.promote(2, Worth::IfReused), "it was used once");
    assert!(files.promote(2, Worth::ReadAgain));
    assert!(files.shelf.get(&id(1)).is_none());
}

#[test]
fn there_is_one_ticket_at_a_time_and_retiring_ends_it() {
    let mut shelf = Shelf::new(10);
    let ticket = shelf.want(id(1), Worth::IfRoom).unwrap();
    assert!(shelf.want(id(1), Worth::IfRoom).is_none());
    assert!(shelf.retire(&id(1)).is_none());
    let other = shelf.want(id(1), Worth::IfRoom).unwrap();
    assert!(shelf.make_room(&id(1), ticket, 0).is_none());
    assert!(!shelf.finish(&id(1), ticket, 'a', 1));
    shelf.abandon(&id(1), ticket);
    assert!(shelf.finish(&id(1), other, 'b', 1));
    assert_eq!(shelf.get(&id(1)), Some('b'));
    assert_eq!(shelf.retire(&id(1)), Some('b'));
    assert!(shelf.records.is_empty() && shelf.idle.is_empty() && shelf.absent.is_empty());
}

#[test]
fn there_are_no_more_files_than_places() {
    let mut shelf = Shelf::new(2);
    for number in 0..3 {
        let ticket = shelf.want(id(number), Worth::IfRoom).unwrap();
        assert_eq!(shelf.make_room(&id(number), ticket, 0).is_some(), number < 2);
        assert_eq!(shelf.finish(&id(number), ticket, number, 1), number < 2);
    }
}

#[test]
fn only_so_many_uses_are_remembered() {
    let mut shelf = Shelf::<()>::new(1);
    for number in 0..REMEMBERED + 100 {
        shelf.opened(id(number));
        shelf.closed(&id(number));
    }
    assert_eq!(shelf.records.len(), REMEMBERED);
    assert!(!shelf.records.contains_key(&id(99)) && shelf.records.contains_key(&id(100)));
}

/// What is known of one file, as plainly as can be.
#[derive(Debug, Clone, Default)]
struct Known {
    uses: Vec<u64>,
    opens: u32,
    resident: bool,
    bytes: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn agrees_with_a_model(
        room in 1u64..40,
        most in 1usize..8,
        operations in prop::collection::vec((0u8..8, 0usize..12), 0..300),
    ) {
        let mut shelf = Shelf::new(most);
        let mut model: Vec<Known> = (0..12).map(|n| Known { bytes: n % 5 + 1, ..Known::default() }).collect();
        let mut now = 0;
        for (operation, number) in operations {
            now += 1;
            let held: u64 = model.iter().filter(|known| known.resident).map(|known| known.bytes).sum();
            match operation {
                0..=2 => {
                    let found = shelf.opened(id(number));
                    prop_assert_eq!(found, model[number].resident.then_some(number));
                    model[number].uses.push(now);
                    model[number].opens += 1;
                }
                3 | 4 => {
                    shelf.closed(&id(number));
                    let known = &mut model[number];
                    if known.opens > 0 {
                        known.opens -= 1;
                        // The use lasted until now.
                        *known.uses.last_mut().unwrap() = now;
                    }
                }
                5 | 6 => {
                    let worth = if operation == 5 { Worth::IfReused } else { Worth::IfRoom };
                    let known = model[number].clone();
                    let before = known.uses.iter().rev().nth(1).copied().unwrap_or(0);
                    let Some(ticket) = shelf.want(id(number), worth) else {
                        prop_assert!(known.resident || before == 0);
                        continue;
                    };
                    prop_assert!(!known.resident && (worth == Worth::IfRoom || before > 0));
                    let missing = (held + known.bytes).saturating_sub(room);
                    let idle = |k: &Known| k.resident && k.opens == 0 && k.uses.last().is_none_or(|&last| last < before);
                    let mut may_leave: Vec<usize> = (0..12).filter(|&n| idle(&model[n])).collect();
                    may_leave.sort_by_key(|&n| model[n].uses.last().copied());
                    let present = model.iter().filter(|known| known.resident).count();
                    match shelf.make_room(&id(number), ticket, missing) {
                        Some(given) => {
                            let victims = given.victims;
                            // The least recently used, and no more than it takes.
                            prop_assert_eq!(&victims[..], &may_leave[..victims.len()]);
                            let gained: u64 = victims.iter().map(|&n| model[n].bytes).sum();
                            prop_assert!(gained >= missing && present - victims.len() < most);
                            if let Some((_, fewer)) = victims.split_last() {
                                let gained: u64 = fewer.iter().map(|&n| model[n].bytes).sum();
                                prop_assert!(gained < missing || present - fewer.len() >= most);
                            }
                            victims.iter().for_each(|&n| model[n].resident = false);
                            prop_assert!(shelf.finish(&id(number), ticket, number, known.bytes));
                            model[number].resident = true;
                            if known.uses.is_empty() {
                                model[number].uses.push(now);
                            }
                        }
                        None => {
                            let gained: u64 = may_leave.iter().map(|&n| model[n].bytes).sum();
                            prop_assert!(gained < missing || present - may_leave.len() >= most);
                            shelf.abandon(&id(number), ticket);
                            if known.uses.is_empty() {
                                model[number].uses.push(now);
                            }
                        }
                    }
                }
                _ => {
                    let known = &mut model[number];
                    prop_assert_eq!(shelf.retire(&id(number)), known.resident.then_some(number));
                    known.resident = false;
                    // Who has it open has used it once.
                    let last = known.uses.last().copied();
                    known.uses.clear();
                    known.uses.extend(last.filter(|_| known.opens > 0));
                }
            }
            for (number, known) in model.iter().enumerate() {
                prop_assert_eq!(shelf.get(&id(number)), known.resident.then_some(number));
            }
            let held: u64 = model.iter().filter(|known| known.resident).map(|known| known.bytes).sum();
            prop_assert!(held <= room && shelf.residents() <= most);
        }
    }
}
