//! Resident files with real memory: what they take, and what is given back.

use std::io::Write;

use futures::FutureExt;
use tokio::runtime::Runtime;

use super::*;
use crate::cache::{BlockKey, BlockPart, Cache, ObjectId};

const MIB: u64 = 1 << 20;

/// A file system of `size` bytes, or none, and the test is counted as skipped, where the right to make one is missing.
pub(super) fn private_tmpfs(size: u64) -> Option<PrivateTmpfs> {
    match PrivateTmpfs::new(size) {
        Ok(tmpfs) => Some(tmpfs),
        Err(error @ (TmpfsError::NotPermitted | TmpfsError::NotSupported)) => {
            let thread = std::thread::current();
            // Not by `eprintln!`, which the test harness keeps to itself.
            let name = thread.name().unwrap_or("main");
            writeln!(std::io::stderr(), "skipped: {name}: {error}").expect("standard error is open");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// `bytes` of a budget of their own.
pub(super) fn reserved(bytes: u64) -> budget::Reserved {
    let cache = Cache::new(64 * MIB).expect("there is address space");
    let budget = Budget::new(cache.index.clone(), 64 * MIB).expect("it is large enough");
    budget.reserve(bytes, Effort::Free, ()).expect("nobody has any of it")
}

fn id(number: u8) -> ContentId {
    ContentId([number; 32])
}

/// A cache, its resident files, and a runtime to fill them.
struct Kept {
    cache: Cache,
    residents: Arc<Residents>,
    runtime: Runtime,
}

impl Kept {
    /// With a file system of `tmpfs` bytes, whatever the budget.
    fn new(capacity: u64, tmpfs: u64) -> Option<Self> {
        let cache = Cache::new(capacity).unwrap();
        let budget = Budget::new(cache.index.clone(), capacity).unwrap();
        let residents = Residents::with_parts(budget, private_tmpfs(tmpfs)?, 1000).unwrap();
        cache.residents.set(residents.clone()).unwrap();
        Some(Self { cache, residents, runtime: Runtime::new().unwrap() })
    }

    fn promote(&self, number: u8, len: u64, worth: Worth) -> Option<Arc<ResidentFile>> {
        let promotion = self.residents.want(id(number), len, worth)?.make_room()?;
        self.runtime.block_on(async {
            let (promotion, _) = promotion.write(vec![number; len as usize], 0).await?;
            promotion.complete().await
        })
    }

    /// Fills a block of the arena, if there is room.
    fn fill(&self, number: u64, len: usize) -> Option<crate::cache::Readable> {
        let object = ObjectId(number.into());
        let key = BlockKey { object, object_size: len as u64, part: BlockPart::Whole };
        let _runtime = self.runtime.enter();
        let mut filling = self.cache.fill(key, len).now_or_never()?;
        filling.fill(number as u8);
        Some(filling.publish())
    }

    fn assert_within_budget(&self) {
        let (usage, resident) = (self.cache.usage(), self.residents.usage());
        assert_eq!(usage.resident, resident.bytes);
        assert!(resident.bytes <= self.residents.taken() && resident.bytes <= resident.limit, "{resident:?}");
        assert!(usage.used + self.residents.taken() <= usage.capacity, "{usage:?}");
    }
}

fn is_right(file: &ResidentFile, number: u8) -> bool {
    let mut bytes = vec![!number; file.len() as usize];
    file.read_at(&mut bytes, 0).is_ok() && bytes.iter().all(|&byte| byte == number)
}

#[test]
fn files_and_arena_share_one_budget() {
    let Some(kept) = Kept::new(64 * MIB, 48 * MIB) else { return };
    assert_eq!(kept.residents.usage().limit, 48 * MIB);
    let mut files = Vec::new();
    for number in 0..30 {
        kept.fill(number, MIB as usize).unwrap();
        if number % 3 == 0 {
            files.extend(kept.promote(number as u8, 5 * MIB / 2, Worth::IfRoom));
        }
        kept.assert_within_budget();
    }
    assert_eq!(files.len(), 10);
    assert!(files.iter().enumerate().all(|(n, file)| is_right(file, n as u8 * 3)));
    // The arena goes on with what it has.
    (100..200).for_each(|number| assert!(kept.fill(number, MIB as usize).unwrap()[0] == number as u8));
    kept.assert_within_budget();
    let usage = kept.residents.usage();
    assert_eq!((usage.files, usage.promoted, usage.promoted_bytes), (10, 10, 25 * MIB));
    (0..30).for_each(|number| kept.residents.retire(&id(number)));
    assert_eq!(kept.residents.usage().bytes, 25 * MIB, "somebody has them");
    drop(files);
    assert_eq!((kept.residents.usage().bytes, kept.residents.taken()), (0, 0));
    let blocks: Vec<_> = (200..264).filter_map(|number| kept.fill(number, MIB as usize)).collect();
    assert_eq!(blocks.iter().filter(|block| block.in_arena()).count(), 64, "the arena has everything again");
}

#[test]
fn pinned_blocks_stay_and_the_file_that_wants_their_memory_does_not_come() {
    let Some(kept) = Kept::new(64 * MIB, 48 * MIB) else { return };
    let pins: Vec<_> = (0..8).map(|number| kept.fill(number, 4 * MIB as usize).unwrap()).collect();
    assert!(pins.iter().all(|pin| pin.in_arena()));
    kept.residents.opened(id(1));
    assert!(kept.promote(1, 40 * MIB, Worth::ReadAgain).is_none());
    assert_eq!((kept.residents.usage().bytes, kept.residents.taken()), (0, 0), "all of it was given back");
    assert!(pins.iter().enumerate().all(|(n, pin)| pin.iter().all(|&byte| byte == n as u8)));
    drop(pins);
    assert!(kept.promote(1, 40 * MIB, Worth::ReadAgain).is_some());
    kept.assert_within_budget();
}

#[test]
fn a_file_used_once_takes_only_what_is_free() {
    let Some(kept) = Kept::new(64 * MIB, 48 * MIB) else { return };
    (0..64).for_each(|number| _ = kept.fill(number, MIB as usize));
    let full = kept.cache.usage().used;
    assert!(kept.promote(1, MIB, Worth::IfRoom).is_none());
    assert_eq!(kept.cache.usage().used, full, "no block left for it");
    assert!(kept.promote(1, MIB, Worth::IfRoom).is_none());
    kept.residents.opened(id(1));
    assert!(kept.promote(1, MIB, Worth::ReadAgain).is_some());
    kept.assert_within_budget();
}

#[test]
fn a_displaced_file_makes_room_and_an_open_one_does_not() {
    let Some(kept) = Kept::new(64 * MIB, 48 * MIB) else { return };
    for number in 1..=4 {
        kept.residents.opened(id(number));
        assert!(kept.promote(number, 12 * MIB, Worth::IfRoom).is_some());
    }
    let use_twice = |number| (0..2).for_each(|_| _ = kept.residents.opened(id(number)));
    use_twice(9);
    assert!(kept.promote(9, 12 * MIB, Worth::IfReused).is_none(), "all are open");
    let held = kept.residents.find(&id(2)).unwrap();
    kept.residents.closed(&id(2));
    use_twice(9);
    assert!(kept.promote(9, 12 * MIB, Worth::IfReused).is_none(), "its memory is still held");
    assert!(is_right(&held, 2));
    drop(held);
    assert!(kept.promote(9, 12 * MIB, Worth::IfReused).is_some());
    assert!(kept.residents.find(&id(2)).is_none());
    assert_eq!(kept.residents.usage().displaced, 1);
    kept.assert_within_budget();
}

#[test]
fn what_is_retired_is_not_found_and_its_promotion_comes_to_nothing() {
    let Some(kept) = Kept::new(64 * MIB, 48 * MIB) else { return };
    let open = kept.promote(1, MIB, Worth::IfRoom).unwrap();
    kept.residents.retire(&id(1));
    assert!(kept.residents.opened(id(1)).is_none() && is_right(&open, 1));
    let late = kept.residents.want(id(2), MIB, Worth::IfRoom).unwrap();
    kept.residents.retire(&id(2));
    assert!(late.make_room().is_none());
    let promotion = kept.residents.want(id(3), MIB, Worth::IfRoom).unwrap().make_room().unwrap();
    kept.residents.retire(&id(3));
    assert!(kept.runtime.block_on(promotion.complete()).is_none());
    drop(open);
    assert_eq!(kept.residents.usage().bytes, 0);
}

#[test]
fn a_full_tmpfs_ends_a_promotion_and_nothing_else() {
    let Some(kept) = Kept::new(64 * MIB, 4 * MIB) else { return };
    assert!(kept.promote(1, 3 * MIB, Worth::IfRoom).is_some());
    assert!(kept.promote(2, 3 * MIB, Worth::IfRoom).is_none(), "writing fails");
    let sparse = kept.residents.want(id(3), 3 * MIB, Worth::IfRoom).unwrap().make_room().unwrap();
    assert!(kept.runtime.block_on(sparse.complete()).is_none(), "and so does completing");
    let usage = kept.residents.usage();
    assert_eq!((usage.files, usage.bytes, usage.failed), (1, 3 * MIB, 2));
    assert!(kept.promote(4, MIB, Worth::IfRoom).is_some());
}

#[test]
fn files_of_no_or_too_many_bytes_are_no_candidates() {
    let Some(kept) = Kept::new(64 * MIB, 48 * MIB) else { return };
    assert!(kept.residents.want(id(1), 0, Worth::IfRoom).is_none());
    assert!(kept.residents.want(id(1), 48 * MIB + 1, Worth::IfRoom).is_none());
    assert!(kept.residents.want(id(1), u64::MAX, Worth::IfRoom).is_none());
    assert!(kept.residents.want(id(1), 48 * MIB, Worth::IfRoom).is_some());
}

#[test]
fn the_smallest_cache_keeps_no_files() {
    let cache = Cache::new(crate::cache::MIN_CAPACITY).unwrap();
    let error = cache.residents().unwrap_err();
    assert!(matches!(error, ResidentError::CacheTooSmall(_)), "{error}");
    assert_eq!(cache.resident_usage(), ResidentUsage::default());
}
