//! The orders in which threads can run in the cache, explored by a model checker.
//!
//! `cargo test --release -p interceptor --features shuttle --lib cache::interleavings`
//!
//! Each test runs a few threads thousands of times. At every lock and atomic the checker decides
//! which thread goes on, by randomly chosen priorities (probabilistic concurrency testing finds
//! any bug of `d` ordering constraints with a known probability in each run). A failure prints the
//! schedule that led to it.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use shuttle::{future, thread};

use super::arena::Arena;
use super::block::BlockMemory;
use super::inflight::Spawn;
use super::policy::{Lirs, LirsParams};
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

/// An index whose arena has room for this many blocks.
fn index(blocks: u64) -> Arc<BlockIndex> {
    let capacity = blocks * LEN as u64;
    let arena = Arena::reserve(capacity).expect("there is address space");
    let policy = Lirs::new(capacity, LirsParams { cold_share: 0.5, max_chances: 1 });
    Arc::new(BlockIndex::new(arena, Box::new(policy)))
}

/// Fills a block and publishes it, unless everything is pinned.
fn fill(index: &Arc<BlockIndex>, number: u64) -> Option<PinnedBlock> {
    let slot = index.allocate(LEN)?;
    let mut writer = BlockWriter::new(key(number), BlockMemory::Slot(slot), None, index.clone(), None);
    // A mix-up shows in one byte at each end as well as in all bytes.
    writer[0] = number as u8;
    thread::yield_now();
    writer[LEN - 1] = number as u8;
    Some(writer.publish())
}

fn assert_right(block: &PinnedBlock, number: u64) {
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

impl From<FetchInterrupted> for Failed {
    fn from(_: FetchInterrupted) -> Self {
        Failed
    }
}

type Inflight = InflightMap<BlockKey, Arc<[u8]>, Failed, Threads>;

/// Runs two readers of block 1 that find it or join a fetch of it. Returns what each of them got
/// and how many fetches there were.
fn two_readers(outcome: Result<(), Failed>) -> (Vec<Result<u8, Failed>>, usize) {
    let index = index(2);
    let inflight = Arc::new(Inflight::new(Threads));
    let made = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (index, inflight, made, outcome) =
                (index.clone(), inflight.clone(), made.clone(), outcome.clone());
            thread::spawn(move || {
                let found = |index: &Arc<BlockIndex>| index.get(&key(1)).map(|block| Arc::from(&block[..1]));
                let lookup = index.clone();
                let joined = inflight.join(
                    key(1),
                    Urgency::Demand,
                    || found(&lookup),
                    |_| async move {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        let slot = index.allocate(LEN).expect("there is room for two");
                        let mut writer =
                            BlockWriter::new(key(1), BlockMemory::Slot(slot), None, index.clone(), None);
                        writer[0] = 1;
                        outcome?;
                        writer.publish();
                        Ok(found(&index).expect("a published block is found"))
                    },
                );
                match joined {
                    Joined::Cached(bytes) => Ok(bytes[0]),
                    Joined::InFlight(outcome) => future::block_on(outcome).map(|bytes| bytes[0]),
                }
            })
        })
        .collect();
    let got = readers.into_iter().map(|reader| reader.join().expect("readers do not panic")).collect();
    assert!(!inflight.contains(&key(1)), "the fetch is over");
    let expected = if index.contains(&key(1)) { LEN as u64 } else { 0 };
    assert_eq!(index.arena().used(), expected, "only a block that is found takes memory");
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
fn all_waiters_of_a_failing_fetch_get_its_error_and_the_slot_is_free() {
    check(|| {
        let (got, fetches) = two_readers(Err(Failed));
        assert_eq!(got, [Err(Failed), Err(Failed)]);
        // The second reader may come when the first fetch is over, and start another.
        assert!((1..=2).contains(&fetches));
    });
}

#[test]
fn a_pinned_block_is_not_evicted() {
    check(|| {
        let index = index(2);
        // The first block is hot; the second one will be evicted.
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
                    let block = fill(&index, number).expect("one of two can be evicted");
                    assert_right(&block, number);
                }
            }
        });
        reader.join().unwrap();
        evictor.join().unwrap();
        assert_eq!(index.arena().used(), 2 * LEN as u64);
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
                index.mark_hot(&key(1));
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
        assert_eq!(index.arena().used(), present * LEN as u64);
        // What is left can still be evicted: two other blocks find room.
        let others = [fill(&index, 2), fill(&index, 3)];
        assert!(others.iter().all(Option::is_some));
        assert!(!index.contains(&key(1)));
    });
}
