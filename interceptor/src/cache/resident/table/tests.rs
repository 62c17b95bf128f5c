//! The rules of the table one by one, and all of them against a naive model.

use proptest::prelude::*;

use super::*;

fn id(number: usize) -> ContentId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    ContentId(id)
}

/// A table with a budget. A file is its number, and all files have one size.
struct CappedTable {
    table: ResidentTable<usize>,
    capacity: usize,
}

impl CappedTable {
    fn new(capacity: usize) -> Self {
        Self { table: ResidentTable::new(1000), capacity }
    }

    /// Reads a file from open to close. Returns whether it was resident; if not, promotes it.
    fn read(&mut self, number: usize) -> bool {
        let hit = self.table.opened(id(number)).is_some();
        if !hit {
            self.promote(number, PromotionReason::FirstUse);
        }
        self.table.closed(&id(number));
        hit
    }

    fn promote(&mut self, number: usize, reason: PromotionReason) -> bool {
        let Some(ticket) = self.table.request(id(number), reason) else { return false };
        let missing = (self.table.residents() + 1).saturating_sub(self.capacity) as u64;
        let is_resident = self.table.make_room(&id(number), ticket, missing).is_some()
            && self.table.finish(&id(number), ticket, number, 1);
        self.table.cancel(&id(number), ticket);
        assert!(self.table.residents() <= self.capacity);
        is_resident
    }
}

#[test]
fn files_read_once_displace_no_file() {
    let mut files = CappedTable::new(10);
    (0..10).for_each(|number| _ = files.read(number));
    (100..10_000).for_each(|number| assert!(!files.read(number)));
    assert!((0..10).all(|number| files.read(number)));
}

#[test]
fn files_used_once_leave_for_blocks_and_no_others_do() {
    let mut files = CappedTable::new(10);
    (0..10).for_each(|number| _ = files.read(number));
    assert!((0..5).all(|number| files.read(number)));
    assert!(files.table.opened(id(5)).is_some());
    files.table.closed(&id(5));
    assert!(files.table.opened(id(9)).is_some());
    assert_eq!(files.table.displace_used_once(2), [6, 7]);
    assert_eq!(files.table.displace_used_once(100), [8]);
    assert_eq!((files.table.displace_used_once(1).len(), files.table.residents()), (0, 7));
}

#[test]
fn a_part_of_a_set_that_does_not_fit_stays() {
    let mut files = CappedTable::new(50);
    let mut hits = 0;
    for round in 0..10 {
        let now = (0..100).filter(|&number| files.read(number)).count();
        hits += if round > 0 { now } else { 0 };
    }
    assert_eq!(hits, 9 * 50);
}

#[test]
fn reused_files_displace_files_that_are_not_used() {
    let mut files = CappedTable::new(10);
    (0..10).for_each(|number| _ = files.read(number));
    for _ in 0..2 {
        (20..25).for_each(|number| _ = files.read(number));
    }
    assert!((20..25).all(|number| files.read(number)));
    assert!((5..10).all(|number| files.read(number)), "the least recently used have left");
}

#[test]
fn a_reread_file_displaces_files_last_used_before_its_open() {
    let mut files = CappedTable::new(1);
    files.read(1);
    files.table.opened(id(2));
    assert!(!files.promote(2, PromotionReason::Reuse), "it was used once");
    assert!(files.promote(2, PromotionReason::Reread));
    assert!(files.table.get(&id(1)).is_none());
}

#[test]
fn a_file_has_one_ticket_at_a_time_and_retiring_ends_it() {
    let mut table = ResidentTable::new(10);
    let ticket = table.request(id(1), PromotionReason::FirstUse).unwrap();
    assert!(table.request(id(1), PromotionReason::FirstUse).is_none());
    assert!(table.retire(&id(1)).is_none());
    let other = table.request(id(1), PromotionReason::FirstUse).unwrap();
    assert!(table.make_room(&id(1), ticket, 0).is_none());
    assert!(!table.finish(&id(1), ticket, 'a', 1));
    table.cancel(&id(1), ticket);
    assert!(table.finish(&id(1), other, 'b', 1));
    assert_eq!(table.get(&id(1)), Some('b'));
    assert_eq!(table.retire(&id(1)), Some('b'));
    assert!(table.records.is_empty() && table.idle.is_empty() && table.absent.is_empty());
}

#[test]
fn there_are_at_most_max_files() {
    let mut table = ResidentTable::new(2);
    for number in 0..3 {
        let ticket = table.request(id(number), PromotionReason::FirstUse).unwrap();
        assert_eq!(table.make_room(&id(number), ticket, 0).is_some(), number < 2);
        assert_eq!(table.finish(&id(number), ticket, number, 1), number < 2);
    }
}

#[test]
fn the_number_of_remembered_files_is_bounded() {
    let mut table = ResidentTable::<()>::new(1);
    for number in 0..MAX_ABSENT_RECORDS + 100 {
        table.opened(id(number));
        table.closed(&id(number));
    }
    assert_eq!(table.records.len(), MAX_ABSENT_RECORDS);
    assert!(!table.records.contains_key(&id(99)) && table.records.contains_key(&id(100)));
}

/// What the model knows of one file.
#[derive(Debug, Clone, Default)]
struct ModelFile {
    uses: Vec<u64>,
    opens: u32,
    resident: bool,
    bytes: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn agrees_with_a_model(
        capacity in 1u64..40,
        max_files in 1usize..8,
        operations in prop::collection::vec((0u8..8, 0usize..12), 0..300),
    ) {
        let mut table = ResidentTable::new(max_files);
        let mut model: Vec<ModelFile> = (0..12).map(|n| ModelFile { bytes: n % 5 + 1, ..ModelFile::default() }).collect();
        let mut now = 0;
        for (operation, number) in operations {
            now += 1;
            let held: u64 = model.iter().filter(|known| known.resident).map(|known| known.bytes).sum();
            match operation {
                0..=2 => {
                    let found = table.opened(id(number));
                    prop_assert_eq!(found, model[number].resident.then_some(number));
                    model[number].uses.push(now);
                    model[number].opens += 1;
                }
                3 | 4 => {
                    table.closed(&id(number));
                    let known = &mut model[number];
                    if known.opens > 0 {
                        known.opens -= 1;
                        // The use lasted until now.
                        *known.uses.last_mut().unwrap() = now;
                    }
                }
                5 | 6 => {
                    let reason = if operation == 5 { PromotionReason::Reuse } else { PromotionReason::FirstUse };
                    let known = model[number].clone();
                    let before = known.uses.iter().rev().nth(1).copied().unwrap_or(0);
                    let Some(ticket) = table.request(id(number), reason) else {
                        prop_assert!(known.resident || before == 0);
                        continue;
                    };
                    prop_assert!(!known.resident && (reason == PromotionReason::FirstUse || before > 0));
                    let missing = (held + known.bytes).saturating_sub(capacity);
                    let idle = |k: &ModelFile| k.resident && k.opens == 0 && k.uses.last().is_none_or(|&last| last < before);
                    let mut displaceable: Vec<usize> = (0..12).filter(|&n| idle(&model[n])).collect();
                    displaceable.sort_by_key(|&n| model[n].uses.last().copied());
                    let present = model.iter().filter(|known| known.resident).count();
                    match table.make_room(&id(number), ticket, missing) {
                        Some(grant) => {
                            let victims = grant.displaced;
                            // The least recently used, and no more than it takes.
                            prop_assert_eq!(&victims[..], &displaceable[..victims.len()]);
                            let gained: u64 = victims.iter().map(|&n| model[n].bytes).sum();
                            prop_assert!(gained >= missing && present - victims.len() < max_files);
                            if let Some((_, fewer)) = victims.split_last() {
                                let gained: u64 = fewer.iter().map(|&n| model[n].bytes).sum();
                                prop_assert!(gained < missing || present - fewer.len() >= max_files);
                            }
                            victims.iter().for_each(|&n| model[n].resident = false);
                            prop_assert!(table.finish(&id(number), ticket, number, known.bytes));
                            model[number].resident = true;
                            if known.uses.is_empty() {
                                model[number].uses.push(now);
                            }
                        }
                        None => {
                            let gained: u64 = displaceable.iter().map(|&n| model[n].bytes).sum();
                            prop_assert!(gained < missing || present - displaceable.len() >= max_files);
                            table.cancel(&id(number), ticket);
                            if known.uses.is_empty() {
                                model[number].uses.push(now);
                            }
                        }
                    }
                }
                _ => {
                    let known = &mut model[number];
                    prop_assert_eq!(table.retire(&id(number)), known.resident.then_some(number));
                    known.resident = false;
                    // Its open handles count as one use.
                    let last = known.uses.last().copied();
                    known.uses.clear();
                    known.uses.extend(last.filter(|_| known.opens > 0));
                }
            }
            for (number, known) in model.iter().enumerate() {
                prop_assert_eq!(table.get(&id(number)), known.resident.then_some(number));
            }
            let held: u64 = model.iter().filter(|known| known.resident).map(|known| known.bytes).sum();
            prop_assert!(held <= capacity && table.residents() <= max_files);
        }
    }
}
