//! Resident files with real memory: what they take, and what they give back.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use futures::FutureExt;
use tokio::runtime::Runtime;

use super::*;
use crate::cache::{BlockKey, BlockPart, Cache, ObjectId};

const MIB: u64 = 1 << 20;

/// A file system of `size` bytes. Without the right to make one the result is none, and the test
/// is reported as skipped.
pub(super) fn private_tmpfs(size: u64) -> Option<PrivateTmpfs> {
    match PrivateTmpfs::new(size) {
        Ok(tmpfs) => Some(tmpfs),
        Err(error @ (TmpfsError::NotPermitted | TmpfsError::NotSupported)) => {
            crate::skipped(error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A reservation of `bytes` from a budget of its own.
pub(super) fn reserved(bytes: u64) -> budget::Reservation {
    let cache = Cache::new(64 * MIB).expect("there is address space");
    let budget = ResidentBudget::new(cache.index.clone(), 64 * MIB).expect("it is large enough");
    budget.reserve(bytes, EvictionMode::FreeOnly, ()).expect("the budget is unused")
}

fn id(number: u8) -> ContentId {
    ContentId([number; 32])
}

/// A cache, its resident files, and a runtime to fill them.
struct Fixture {
    cache: Cache,
    residents: Arc<ResidentFiles>,
    runtime: Runtime,
}

impl Fixture {
    /// With a file system of `tmpfs` bytes, which the budget does not limit.
    fn new(capacity: u64, tmpfs: u64) -> Option<Self> {
        let cache = Cache::new(capacity).unwrap();
        let budget = ResidentBudget::new(cache.index.clone(), capacity).unwrap();
        let residents = ResidentFiles::with_parts(budget, private_tmpfs(tmpfs)?, 1000).unwrap();
        cache.residents.set(residents.clone()).unwrap();
        Some(Self { cache, residents, runtime: Runtime::new().unwrap() })
    }

    fn promote(&self, number: u8, len: u64, reason: PromotionReason) -> Option<Arc<ResidentFile>> {
        let promotion = self.residents.request_promotion(id(number), len, reason)?.make_room()?;
        self.runtime.block_on(async {
            let (promotion, _) = promotion.write(vec![number; len as usize], 0).await?;
            promotion.complete().await
        })
    }

    /// Fills a block of the arena, if there is room.
    fn fill(&self, number: u64, len: usize) -> Option<crate::cache::PinnedBlock> {
        let object = ObjectId(number.into());
        let key = BlockKey { object, object_size: len as u64, part: BlockPart::Whole };
        let _runtime = self.runtime.enter();
        let mut writer = self.cache.reserve(key, len).now_or_never()?;
        writer.fill(number as u8);
        Some(writer.publish())
    }

    fn assert_within_budget(&self) {
        let (usage, resident) = (self.cache.usage(), self.residents.usage());
        assert_eq!(usage.resident, resident.bytes);
        assert!(
            resident.bytes <= self.residents.budget.ceded() && resident.bytes <= resident.limit,
            "{resident:?}"
        );
        assert!(usage.used + self.residents.budget.ceded() <= usage.capacity, "{usage:?}");
    }
}

fn is_right(file: &ResidentFile, number: u8) -> bool {
    let mut bytes = vec![!number; file.len() as usize];
    file.read_at(&mut bytes, 0).is_ok() && bytes.iter().all(|&byte| byte == number)
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn files_give_memory_back_too_but_not_those_that_are_open() {
    let Some(fixture) = Fixture::new(64 * MIB, 48 * MIB) else { return };
    (0..10).for_each(|number| {
        fixture.promote(number, 4 * MIB, PromotionReason::FirstUse).unwrap();
    });
    let open = fixture.residents.opened(id(0)).unwrap();
    (0..24).for_each(|number| drop(fixture.fill(number, MIB as usize)));
    let before = fixture.residents.usage().files;
    assert_eq!(fixture.cache.give_back(16 * MIB), 16 * MIB);
    let after = fixture.residents.usage();
    assert!(after.files < before && after.bytes >= 4 * MIB, "{after:?}");
    assert_eq!(fixture.cache.give_back(64 * MIB), 32 * MIB);
    assert!(is_right(&open, 0) && fixture.residents.find(&id(0)).is_some());
    let usage = fixture.cache.usage();
    assert!(usage.used + usage.resident + usage.withheld <= usage.capacity, "{usage:?}");
    fixture.cache.take_back(64 * MIB);
    assert!(fixture.promote(20, 20 * MIB, PromotionReason::FirstUse).is_some());
    fixture.assert_within_budget();
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_draft_with_gaps_reserves_the_huge_pages_that_it_takes() {
    let Some(fixture) = Fixture::new(64 * MIB, 48 * MIB) else { return };
    let len = 21 * MIB + 5000;
    let candidate = fixture.residents.request_promotion(id(1), len, PromotionReason::FirstUse).unwrap();
    let mut promotion = candidate.make_room().unwrap();
    let file = promotion.file().clone();
    for number in [0, 4, 5, 9, 21] {
        let bytes = vec![1; (len - number * MIB).min(MIB) as usize];
        let written = fixture.runtime.block_on(promotion.write(bytes, number * MIB));
        promotion = written.unwrap().0;
        let metadata = std::fs::metadata(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).unwrap();
        let held = fixture.residents.usage().bytes;
        assert!(metadata.blocks() * 512 <= held, "{} of {held}", metadata.blocks() * 512);
        fixture.assert_within_budget();
    }
    // Pages of 2 MiB but for the last one, and 4 and 5 share one.
    assert_eq!(fixture.residents.usage().bytes, 3 * 2 * MIB + MIB + 8192);
    fixture.runtime.block_on(promotion.complete()).unwrap();
    assert_eq!(fixture.residents.usage().bytes, 21 * MIB + 8192);
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn files_take_what_is_free_in_small_parts_before_blocks_leave() {
    let Some(fixture) = Fixture::new(256 * MIB, 192 * MIB) else { return };
    // Every second 8 MiB are free: in no place 16 MiB, which is the size of a piece.
    (0..32).for_each(|number| drop(fixture.fill(number, 8 * MIB as usize)));
    let key = |number: u64| {
        let object = ObjectId(number.into());
        BlockKey { object, object_size: 8 * MIB, part: BlockPart::Whole }
    };
    (0..32).step_by(2).for_each(|number| assert!(fixture.cache.remove(&key(number))));
    fixture.promote(1, 40 * MIB, PromotionReason::Reread).unwrap();
    assert!((1..32).step_by(2).all(|number| fixture.cache.contains(&key(number))), "no block has left");
    fixture.assert_within_budget();
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn files_and_arena_share_one_budget() {
    let Some(fixture) = Fixture::new(64 * MIB, 48 * MIB) else { return };
    assert_eq!(fixture.residents.usage().limit, 48 * MIB);
    let mut files = Vec::new();
    for number in 0..30 {
        fixture.fill(number, MIB as usize).unwrap();
        if number % 3 == 0 {
            files.extend(fixture.promote(number as u8, 5 * MIB / 2, PromotionReason::FirstUse));
        }
        fixture.assert_within_budget();
    }
    assert_eq!(files.len(), 10);
    assert!(files.iter().enumerate().all(|(n, file)| is_right(file, n as u8 * 3)));
    // The arena works with the rest.
    (100..200).for_each(|number| assert!(fixture.fill(number, MIB as usize).unwrap()[0] == number as u8));
    fixture.assert_within_budget();
    let usage = fixture.residents.usage();
    assert_eq!((usage.files, usage.promoted, usage.promoted_bytes), (10, 10, 25 * MIB));
    (0..30).for_each(|number| _ = fixture.residents.retire(&id(number)));
    assert_eq!(fixture.residents.usage().bytes, 25 * MIB, "they are still open");
    drop(files);
    assert_eq!((fixture.residents.usage().bytes, fixture.residents.budget.ceded()), (0, 0));
    let blocks: Vec<_> = (200..264).filter_map(|number| fixture.fill(number, MIB as usize)).collect();
    assert_eq!(blocks.iter().filter(|block| block.in_arena()).count(), 64, "the arena has everything again");
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_file_that_needs_the_memory_of_pinned_blocks_does_not_become_resident() {
    let Some(fixture) = Fixture::new(64 * MIB, 48 * MIB) else { return };
    let pins: Vec<_> = (0..8).map(|number| fixture.fill(number, 4 * MIB as usize).unwrap()).collect();
    assert!(pins.iter().all(|pin| pin.in_arena()));
    fixture.residents.opened(id(1));
    assert!(fixture.promote(1, 40 * MIB, PromotionReason::Reread).is_none());
    assert_eq!(
        (fixture.residents.usage().bytes, fixture.residents.budget.ceded()),
        (0, 0),
        "all memory was given back"
    );
    assert!(pins.iter().enumerate().all(|(n, pin)| pin.iter().all(|&byte| byte == n as u8)));
    drop(pins);
    assert!(fixture.promote(1, 40 * MIB, PromotionReason::Reread).is_some());
    fixture.assert_within_budget();
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_file_used_once_takes_only_free_memory() {
    let Some(fixture) = Fixture::new(64 * MIB, 48 * MIB) else { return };
    (0..64).for_each(|number| _ = fixture.fill(number, MIB as usize));
    let full = fixture.cache.usage().used;
    assert!(fixture.promote(1, MIB, PromotionReason::FirstUse).is_none());
    assert_eq!(fixture.cache.usage().used, full, "no block was evicted for it");
    assert!(fixture.promote(1, MIB, PromotionReason::FirstUse).is_none());
    fixture.residents.opened(id(1));
    assert!(fixture.promote(1, MIB, PromotionReason::Reread).is_some());
    fixture.assert_within_budget();
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_displaced_file_makes_room_and_an_open_one_does_not() {
    let Some(fixture) = Fixture::new(64 * MIB, 48 * MIB) else { return };
    for number in 1..=4 {
        fixture.residents.opened(id(number));
        assert!(fixture.promote(number, 12 * MIB, PromotionReason::FirstUse).is_some());
    }
    let use_twice = |number| (0..2).for_each(|_| _ = fixture.residents.opened(id(number)));
    use_twice(9);
    assert!(fixture.promote(9, 12 * MIB, PromotionReason::Reuse).is_none(), "all are open");
    let held = fixture.residents.find(&id(2)).unwrap();
    fixture.residents.closed(&id(2));
    use_twice(9);
    assert!(fixture.promote(9, 12 * MIB, PromotionReason::Reuse).is_none(), "its memory is still held");
    assert!(is_right(&held, 2));
    drop(held);
    assert!(fixture.promote(9, 12 * MIB, PromotionReason::Reuse).is_none(), "blocks have room for it");
    (0..15).for_each(|number| drop(fixture.fill(number, MIB as usize)));
    assert!(fixture.promote(9, 12 * MIB, PromotionReason::Reuse).is_some());
    assert!(fixture.residents.find(&id(2)).is_none());
    assert_eq!(fixture.residents.usage().displaced, 1);
    fixture.assert_within_budget();
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_retired_file_is_not_found_and_its_promotion_fails() {
    let Some(fixture) = Fixture::new(64 * MIB, 48 * MIB) else { return };
    let open = fixture.promote(1, MIB, PromotionReason::FirstUse).unwrap();
    fixture.residents.retire(&id(1));
    assert!(fixture.residents.opened(id(1)).is_none() && is_right(&open, 1));
    let late = fixture.residents.request_promotion(id(2), MIB, PromotionReason::FirstUse).unwrap();
    fixture.residents.retire(&id(2));
    assert!(late.make_room().is_none());
    let promotion = fixture
        .residents
        .request_promotion(id(3), MIB, PromotionReason::FirstUse)
        .unwrap()
        .make_room()
        .unwrap();
    fixture.residents.retire(&id(3));
    assert!(fixture.runtime.block_on(promotion.complete()).is_none());
    drop(open);
    assert_eq!(fixture.residents.usage().bytes, 0);
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_full_tmpfs_ends_a_promotion_and_nothing_else() {
    let Some(fixture) = Fixture::new(64 * MIB, 4 * MIB) else { return };
    assert!(fixture.promote(1, 3 * MIB, PromotionReason::FirstUse).is_some());
    assert!(fixture.promote(2, 3 * MIB, PromotionReason::FirstUse).is_none(), "writing fails");
    let sparse = fixture
        .residents
        .request_promotion(id(3), 3 * MIB, PromotionReason::FirstUse)
        .unwrap()
        .make_room()
        .unwrap();
    assert!(fixture.runtime.block_on(sparse.complete()).is_none(), "completing fails, too");
    let usage = fixture.residents.usage();
    assert_eq!((usage.files, usage.bytes, usage.failed), (1, 3 * MIB, 2));
    assert!(fixture.promote(4, MIB, PromotionReason::FirstUse).is_some());
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn empty_and_too_large_files_are_no_candidates() {
    let Some(fixture) = Fixture::new(64 * MIB, 48 * MIB) else { return };
    assert!(fixture.residents.request_promotion(id(1), 0, PromotionReason::FirstUse).is_none());
    assert!(fixture.residents.request_promotion(id(1), 48 * MIB + 1, PromotionReason::FirstUse).is_none());
    assert!(fixture.residents.request_promotion(id(1), u64::MAX, PromotionReason::FirstUse).is_none());
    assert!(fixture.residents.request_promotion(id(1), 48 * MIB, PromotionReason::FirstUse).is_some());
}

#[test]
fn the_smallest_cache_keeps_no_files() {
    let cache = Cache::new(crate::cache::MIN_CAPACITY).unwrap();
    let error = cache.residents().unwrap_err();
    assert!(matches!(error, ResidentError::CacheTooSmall(_)), "{error}");
    assert_eq!(cache.resident_usage(), ResidentUsage::default());
}
