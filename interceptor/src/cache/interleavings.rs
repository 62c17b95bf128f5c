//! The orders in which threads can meet in the cache, explored by a model checker.
//!
//! `cargo test --release -p interceptor --features shuttle --lib cache::interleavings`
//!
//! Each test runs a few threads thousands of times; at every lock and atomic the checker decides who goes on, with
//! randomly chosen priorities (probabilistic concurrency testing finds any bug of `d` ordering constraints with a known
//! probability for each run). A failure prints the schedule that led to it.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use shuttle::{future, thread};

use super::arena::Arena;
use super::block::Memory;
use super::flight::Spawn;
use super::policy::{Lirs, Traits};
use super::*;
use crate::priority::Urgency;

const RUNS: usize = 3000;
/// Number of ordering constraints of the bugs that are looked for.
const DEPTH: usize = 3;
const LEN: usize = 4096;

fn check(test: impl Fn() + Send + Sync + 'static) {
    shuttle::check_pct(test, RUNS, DEPTH);
}

fn key(number: u64) -> BlockKey {
    BlockKey { object: ObjectId(number.into()), object_size: LEN as u64, part: BlockPart::Whole }
}

/// An index whose arena has room for so many blocks.
fn index(blocks: u64) -> Arc<Index> {
    let capacity = blocks * LEN as u64;
    let arena = Arena::reserve(capacity).expect("there is address space");
    let policy = Lirs::new(capacity, Traits { cold_share: 0.5, chances: 1 });
    Arc::new(Index::new(arena, Box::new(policy)))
}

/// Fills a block and publishes it, unless everything is pinned.
fn fill(index: &Arc<Index>, number: u64) -> Option<Readable> {
    let slot = index.allocate(LEN)?;
    let mut filling = Filling::new(key(number), Memory::Slot(slot), None, index.clone(), None);
    // One byte at each end shows a mix-up as well as all of them.
    filling[0] = number as u8;
    thread::yield_now();
    filling[LEN - 1] = number as u8;
    Some(filling.publish())
}

fn assert_right(block: &Readable, number: u64) {
    let first = block[0];
    thread::yield_now();
    assert_eq!([first, block[LEN - 1]], [number as u8; 2]);
}

#[derive(Clone)]
struct Threads;

impl Spawn for Threads {
    fn spawn<T: Send + 'static>(&self, task: BoxFuture<'static, T>) -> BoxFuture<'static, Option<T>> {
        let task = future::spawn(task);
        async move { task.await.ok() }.boxed()
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Failed;

impl From<Interrupted> for Failed {
    fn from(_: Interrupted) -> Self {
        Failed
    }
}

type Fetches = Flights<BlockKey, Arc<[u8]>, Failed, Threads>;

/// Runs two readers of block 1 that find what they need or join a fetch of it, and returns what each of them got and
/// how many fetches there were.
fn two_readers(outcome: Result<(), Failed>) -> (Vec<Result<u8, Failed>>, usize) {
    let index = index(2);
    let fetches = Arc::new(Fetches::new(Threads));
    let made = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (index, fetches, made, outcome) =
                (index.clone(), fetches.clone(), made.clone(), outcome.clone());
            thread::spawn(move || {
                let found = |index: &Arc<Index>| index.get(&key(1)).map(|block| Arc::from(&block[..1]));
                let landed = index.clone();
                let joined = fetches.join(
                    key(1),
                    Urgency::Demand,
                    || found(&landed),
                    |_| async move {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        let slot = index.allocate(LEN).expect("there is room for two");
                        let mut filling = Filling::new(key(1), Memory::Slot(slot), None, index.clone(), None);
                        filling[0] = 1;
                        outcome?;
                        filling.publish();
                        Ok(found(&index).expect("what was published is found"))
                    },
                );
                match joined {
                    Joined::Landed(bytes) => Ok(bytes[0]),
                    Joined::Waiting(outcome) => future::block_on(outcome).map(|bytes| bytes[0]),
                }
            })
        })
        .collect();
    let got = readers.into_iter().map(|reader| reader.join().expect("readers do not panic")).collect();
    assert!(!fetches.contains(&key(1)), "the fetch is over");
    let expected = if index.contains(&key(1)) { LEN as u64 } else { 0 };
    assert_eq!(index.context().arena().used(), expected, "only a block that is found takes memory");
    (got, made.load(std::sync::atomic::Ordering::SeqCst))
}

#[test]
fn two_misses_on_one_block_make_one_fetch() {
    check(|| {
        let (got, fetches) = two_readers(Ok(()));
        assert_eq!(got, [Ok(1), Ok(1)]);
        assert_eq!(fetches, 1);
    });
}

#[test]
fn everyone_who_waits_for_a_failing_fetch_gets_its_error_and_the_slot_is_free() {
    check(|| {
        let (got, fetches) = two_readers(Err(Failed));
        assert_eq!(got, [Err(Failed), Err(Failed)]);
        // The second reader may come when the first fetch is over: it tries anew.
        assert!((1..=2).contains(&fetches));
    });
}

#[test]
fn a_pinned_block_is_not_evicted() {
    check(|| {
        let index = index(2);
        // The first one in is hot; the second will have to leave.
        drop(fill(&index, 2));
        drop(fill(&index, 1));
        let reader = thread::spawn({
            let index = index.clone();
            move || {
                if let Some(block) = index.get(&key(1)) {
                    assert_right(&block, 1);
                    let again = block.clone();
                    drop(block);
                    assert_right(&again, 1);
                    assert!(index.contains(&key(1)), "it is pinned");
                }
            }
        });
        let evictor = thread::spawn({
            let index = index.clone();
            move || {
                for number in 3..5 {
                    let block = fill(&index, number).expect("one of two can leave");
                    assert_right(&block, number);
                }
            }
        });
        reader.join().unwrap();
        evictor.join().unwrap();
        assert_eq!(index.context().arena().used(), 2 * LEN as u64);
    });
}

#[test]
fn two_evictions_do_not_give_one_slot_twice() {
    check(|| {
        let index = index(2);
        drop(fill(&index, 1));
        drop(fill(&index, 2));
        let fillers: Vec<_> = (3..5)
            .map(|number| {
                let index = index.clone();
                thread::spawn(move || {
                    if let Some(block) = fill(&index, number) {
                        assert_right(&block, number);
                    }
                })
            })
            .collect();
        fillers.into_iter().for_each(|filler| filler.join().unwrap());
        for number in 1..5 {
            if let Some(block) = index.get(&key(number)) {
                assert_right(&block, number);
            }
        }
    });
}

#[test]
fn removal_against_promotion_and_publication_leaves_index_policy_and_arena_agreed() {
    check(|| {
        let index = index(2);
        drop(fill(&index, 1));
        let reader = thread::spawn({
            let index = index.clone();
            move || {
                if let Some(block) = index.get(&key(1)) {
                    block.mark_read(&(0..LEN));
                    block.mark_read(&(0..LEN));
                    assert_right(&block, 1);
                }
                index.promote(&key(1));
            }
        });
        let remover = thread::spawn({
            let index = index.clone();
            move || index.remove(&key(1))
        });
        let again = fill(&index, 1).expect("there is room for two");
        assert_right(&again, 1);
        drop(again);
        reader.join().unwrap();
        remover.join().unwrap();
        let present = u64::from(index.contains(&key(1)));
        assert_eq!(index.context().arena().used(), present * LEN as u64);
        // Whatever is left can still be evicted: two others find room.
        let others = [fill(&index, 2), fill(&index, 3)];
        assert!(others.iter().all(Option::is_some));
        assert!(!index.contains(&key(1)));
    });
}
