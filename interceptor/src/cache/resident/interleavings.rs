//! The orders in which threads can run over resident files, explored by a model checker; see
//! `cache::interleavings`.

use std::sync::Arc;

use shuttle::thread;

use super::ContentId;
use super::budget::ResidentBudget;
use super::table::{PromotionReason, ResidentTable};
use crate::cache::arena::Arena;
use crate::cache::block::BlockMemory;
use crate::cache::index::{BlockIndex, EvictionMode};
use crate::cache::key::{BlockKey, BlockPart, ObjectId};
use crate::cache::policy::{Lirs, LirsParams};
use crate::cache::sync::Mutex;
use crate::cache::writer::BlockWriter;

const RUNS: usize = 3000;
/// Number of ordering constraints of the bugs that are looked for.
const DEPTH: usize = 3;
/// Bytes of a piece of the arena, and of a block.
const OBJECT_SIZE: u64 = 2 << 20;

fn check(test: impl Fn() + Send + Sync + 'static) {
    shuttle::check_pct(test, RUNS, DEPTH);
}

fn id(number: u8) -> ContentId {
    ContentId([number; 32])
}

type Files = Arc<Mutex<ResidentTable<Arc<u8>>>>;

/// Makes a file resident, or not, in the steps of a promotion.
fn promote(table: &Files, number: u8, missing: u64) -> bool {
    let Some(ticket) = table.lock().request(id(number), PromotionReason::FirstUse) else { return false };
    thread::yield_now();
    let Some(room) = table.lock().make_room(&id(number), ticket, missing) else {
        table.lock().cancel(&id(number), ticket);
        return false;
    };
    drop(room);
    thread::yield_now();
    let finished = table.lock().finish(&id(number), ticket, Arc::new(number), 1);
    table.lock().cancel(&id(number), ticket);
    finished
}

#[test]
fn a_file_retired_while_it_is_promoted_is_not_found_afterwards() {
    check(|| {
        let table: Files = Arc::new(Mutex::new(ResidentTable::new(8)));
        let opened = table.lock().opened(id(1));
        assert!(opened.is_none());
        let ticket =
            table.lock().request(id(1), PromotionReason::FirstUse).expect("there is no other candidate");
        let promoter = thread::spawn({
            let table = table.clone();
            move || {
                let room = table.lock().make_room(&id(1), ticket, 0);
                let is_wanted = room.is_some();
                let finished = table.lock().finish(&id(1), ticket, Arc::new(1), 1);
                assert!(is_wanted || !finished);
            }
        });
        let retirer = thread::spawn({
            let table = table.clone();
            move || _ = table.lock().retire(&id(1))
        });
        let reader = thread::spawn({
            let table = table.clone();
            move || {
                let file = table.lock().opened(id(1));
                thread::yield_now();
                assert!(file.is_none_or(|file| *file == 1), "a file that was found stays");
                table.lock().closed(&id(1));
            }
        });
        promoter.join().unwrap();
        retirer.join().unwrap();
        reader.join().unwrap();
        assert!(table.lock().get(&id(1)).is_none());
        assert_eq!(table.lock().residents(), 0);
    });
}

#[test]
fn an_open_file_is_not_displaced() {
    check(|| {
        let table: Files = Arc::new(Mutex::new(ResidentTable::new(1)));
        assert!(promote(&table, 1, 0));
        // The candidate has been used twice since.
        for _ in 0..2 {
            table.lock().opened(id(2));
            table.lock().closed(&id(2));
        }
        let reader = thread::spawn({
            let table = table.clone();
            move || {
                let opened = table.lock().opened(id(1));
                thread::yield_now();
                let still = table.lock().get(&id(1));
                assert_eq!(
                    opened.is_some(),
                    still.is_some(),
                    "it may be displaced before it is opened, not after"
                );
                table.lock().closed(&id(1));
            }
        });
        let displaced = thread::spawn({
            let table = table.clone();
            move || promote(&table, 2, 0)
        });
        reader.join().unwrap();
        let displaced = displaced.join().unwrap();
        assert_eq!(table.lock().get(&id(2)).is_some(), displaced);
        assert_eq!(table.lock().residents(), 1);
    });
}

fn key(number: u64) -> BlockKey {
    BlockKey { object: ObjectId(number.into()), object_size: OBJECT_SIZE, part: BlockPart::Whole }
}

#[test]
fn files_and_blocks_never_have_more_than_the_budget() {
    check(|| {
        let capacity = 3 * OBJECT_SIZE;
        let arena = Arena::reserve(capacity).expect("there is address space");
        let policy = Lirs::new(capacity, LirsParams { cold_share: 0.5, max_chances: 1 });
        let index = Arc::new(BlockIndex::new(arena, Box::new(policy)));
        let fill = |index: &Arc<BlockIndex>, number| {
            let slot = index.allocate(OBJECT_SIZE as usize)?;
            let mut writer =
                BlockWriter::new(key(number), BlockMemory::Slot(slot), None, index.clone(), None);
            writer[0] = number as u8;
            Some(writer.publish())
        };
        let pinned = fill(&index, 1).expect("the arena is empty");
        let budget =
            ResidentBudget::with_pieces(index.clone(), 2 * OBJECT_SIZE, OBJECT_SIZE).expect("a limit");
        let files: Vec<_> = [OBJECT_SIZE, OBJECT_SIZE / 2]
            .into_iter()
            .map(|bytes| {
                let budget = budget.clone();
                thread::spawn(move || {
                    let reserved = budget.reserve(bytes, EvictionMode::Evict, ());
                    let held = if reserved.is_some() { bytes } else { 0 };
                    assert!(budget.ceded() >= held, "the arena cedes before the file takes");
                    assert!(budget.held() <= budget.limit());
                    thread::yield_now();
                    drop(reserved);
                })
            })
            .collect();
        let reader = thread::spawn({
            let index = index.clone();
            move || {
                if let Some(block) = fill(&index, 2) {
                    assert_eq!(block[0], 2);
                }
            }
        });
        files.into_iter().for_each(|file| file.join().unwrap());
        reader.join().unwrap();
        assert_eq!(pinned[0], 1, "a pinned block keeps its memory");
        drop(pinned);
        assert_eq!((budget.held(), budget.ceded()), (0, 0), "all memory was given back");
        assert!([3, 4, 5].into_iter().all(|number| fill(&index, number).is_some()));
    });
}
