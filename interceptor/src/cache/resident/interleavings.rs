//! The orders in which threads can meet over resident files, explored by a model checker; see `cache::interleavings`.

use std::sync::Arc;

use shuttle::thread;

use super::ContentId;
use super::budget::{Budget, Effort};
use super::shelf::{Shelf, Worth};
use crate::cache::arena::Arena;
use crate::cache::block::Memory;
use crate::cache::fill::Filling;
use crate::cache::index::Index;
use crate::cache::key::{BlockKey, BlockPart, ObjectId};
use crate::cache::policy::{Lirs, Traits};
use crate::cache::sync::Mutex;

const RUNS: usize = 3000;
/// Number of ordering constraints of the bugs that are looked for.
const DEPTH: usize = 3;
/// Bytes of a piece of the arena, and of a block.
const PIECE: u64 = 2 << 20;

fn check(test: impl Fn() + Send + Sync + 'static) {
    shuttle::check_pct(test, RUNS, DEPTH);
}

fn id(number: u8) -> ContentId {
    ContentId([number; 32])
}

type Files = Arc<Mutex<Shelf<Arc<u8>>>>;

/// Makes a file resident, or not, in the steps of a promotion.
fn promote(shelf: &Files, number: u8, missing: u64) -> bool {
    let Some(ticket) = shelf.lock().want(id(number), Worth::IfRoom) else { return false };
    thread::yield_now();
    let Some(room) = shelf.lock().make_room(&id(number), ticket, missing) else {
        shelf.lock().abandon(&id(number), ticket);
        return false;
    };
    drop(room);
    thread::yield_now();
    let finished = shelf.lock().finish(&id(number), ticket, Arc::new(number), 1);
    shelf.lock().abandon(&id(number), ticket);
    finished
}

#[test]
fn what_is_retired_while_it_is_promoted_is_not_found_afterwards() {
    check(|| {
        let shelf: Files = Arc::new(Mutex::new(Shelf::new(8)));
        let opened = shelf.lock().opened(id(1));
        assert!(opened.is_none());
        let ticket = shelf.lock().want(id(1), Worth::IfRoom).expect("nobody else wants it");
        let promoter = thread::spawn({
            let shelf = shelf.clone();
            move || {
                let room = shelf.lock().make_room(&id(1), ticket, 0);
                let is_wanted = room.is_some();
                let finished = shelf.lock().finish(&id(1), ticket, Arc::new(1), 1);
                assert!(is_wanted || !finished);
            }
        });
        let retirer = thread::spawn({
            let shelf = shelf.clone();
            move || _ = shelf.lock().retire(&id(1))
        });
        let reader = thread::spawn({
            let shelf = shelf.clone();
            move || {
                let file = shelf.lock().opened(id(1));
                thread::yield_now();
                assert!(file.is_none_or(|file| *file == 1), "what was handed out stays");
                shelf.lock().closed(&id(1));
            }
        });
        promoter.join().unwrap();
        retirer.join().unwrap();
        reader.join().unwrap();
        assert!(shelf.lock().get(&id(1)).is_none());
        assert_eq!(shelf.lock().residents(), 0);
    });
}

#[test]
fn an_open_file_is_not_displaced() {
    check(|| {
        let shelf: Files = Arc::new(Mutex::new(Shelf::new(1)));
        assert!(promote(&shelf, 1, 0));
        // The candidate has been used twice since.
        for _ in 0..2 {
            shelf.lock().opened(id(2));
            shelf.lock().closed(&id(2));
        }
        let reader = thread::spawn({
            let shelf = shelf.clone();
            move || {
                let opened = shelf.lock().opened(id(1));
                thread::yield_now();
                let still = shelf.lock().get(&id(1));
                assert_eq!(opened.is_some(), still.is_some(), "it may leave before it is opened, not after");
                shelf.lock().closed(&id(1));
            }
        });
        let displaced = thread::spawn({
            let shelf = shelf.clone();
            move || promote(&shelf, 2, 0)
        });
        reader.join().unwrap();
        let displaced = displaced.join().unwrap();
        assert_eq!(shelf.lock().get(&id(2)).is_some(), displaced);
        assert_eq!(shelf.lock().residents(), 1);
    });
}

fn key(number: u64) -> BlockKey {
    BlockKey { object: ObjectId(number.into()), object_size: PIECE, part: BlockPart::Whole }
}

#[test]
fn files_and_blocks_never_have_more_than_the_budget() {
    check(|| {
        let capacity = 3 * PIECE;
        let arena = Arena::reserve(capacity).expect("there is address space");
        let policy = Lirs::new(capacity, Traits { cold_share: 0.5, chances: 1 });
        let index = Arc::new(Index::new(arena, Box::new(policy)));
        let fill = |index: &Arc<Index>, number| {
            let slot = index.allocate(PIECE as usize)?;
            let mut filling = Filling::new(key(number), Memory::Slot(slot), None, index.clone(), None);
            filling[0] = number as u8;
            Some(filling.publish())
        };
        let pinned = fill(&index, 1).expect("the arena is empty");
        let budget = Budget::with_pieces(index.clone(), capacity, 2 * PIECE, PIECE).expect("a limit");
        let files: Vec<_> = [PIECE, PIECE / 2]
            .into_iter()
            .map(|bytes| {
                let budget = budget.clone();
                thread::spawn(move || {
                    let reserved = budget.reserve(bytes, Effort::Evict, ());
                    let held = if reserved.is_some() { bytes } else { 0 };
                    assert!(budget.taken() >= held, "the arena gave before the file took");
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
        assert_eq!(pinned[0], 1, "what is pinned keeps its memory");
        drop(pinned);
        assert_eq!((budget.held(), budget.taken()), (0, 0), "everything was given back");
        assert!([3, 4, 5].into_iter().all(|number| fill(&index, number).is_some()));
    });
}
