//! The whole cache: compared with a simple model, with many threads, and when it is full.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures::FutureExt;
use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;

fn key(number: u64, len: usize) -> BlockKey {
    BlockKey { object: ObjectId(number.into()), object_size: len as u64, part: BlockPart::Whole }
}

/// The byte that a block of that number is full of.
fn byte(number: u64) -> u8 {
    (number % 251) as u8
}

fn fill(cache: &Cache, number: u64, len: usize) -> PinnedBlock {
    let mut writer = cache.reserve(key(number, len), len).now_or_never().expect("there is room");
    writer.fill(byte(number));
    writer.publish()
}

fn is_right(block: &PinnedBlock, number: u64) -> bool {
    block.iter().all(|&found| found == byte(number))
}

#[derive(Debug, Default)]
struct Tally {
    fetched: AtomicUsize,
    used: AtomicUsize,
    wasted: AtomicUsize,
}

impl PrefetchObserver for Tally {
    fn fetched(&self, bytes: usize) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    fn used(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn wasted(&self, bytes: usize) {
        self.wasted.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[test]
fn memory_stays_within_the_budget() {
    let cache = Cache::new(64 << 20).unwrap();
    for number in 0..500 {
        fill(&cache, number, MIB);
        let usage = cache.usage();
        assert!(usage.used <= usage.capacity && usage.allocated == usage.used, "{usage:?}");
    }
    let found: Vec<_> = (0..500).filter_map(|number| Some((number, cache.get(&key(number, MIB))?))).collect();
    assert_eq!(found.len(), 64);
    assert!(found.iter().all(|(number, block)| is_right(block, *number)));
    assert_eq!(cache.usage().pinned, 64 << 20);
}

#[test]
fn a_pinned_block_is_not_evicted_and_outlives_its_removal() {
    let cache = Cache::new(MIN_CAPACITY).unwrap();
    let pinned = fill(&cache, 0, MIB);
    (1..100).for_each(|number| drop(fill(&cache, number, MIB)));
    assert!(cache.contains(&key(0, MIB)));
    assert!(cache.remove(&key(0, MIB)));
    assert!(!cache.contains(&key(0, MIB)));
    (1..100).for_each(|number| drop(fill(&cache, number, MIB)));
    assert!(is_right(&pinned, 0));
    let used = cache.usage().used;
    drop(pinned);
    assert_eq!(cache.usage().used, used - MIB as u64);
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let cache = Cache::new(MIN_CAPACITY).unwrap();
    let writer = cache.reserve(key(1, MIB), MIB).now_or_never().unwrap();
    assert_eq!(cache.usage().used, MIB as u64);
    drop(writer);
    assert_eq!(cache.usage().used, 0);
    assert!(cache.get(&key(1, MIB)).is_none());
}

#[test]
fn the_first_of_two_fills_of_one_block_stays() {
    let cache = Cache::new(MIN_CAPACITY).unwrap();
    let late = cache.reserve(key(1, MIB), MIB).now_or_never().unwrap();
    let first = fill(&cache, 1, MIB);
    assert_eq!(late.publish().as_ptr(), first.as_ptr());
    assert_eq!(cache.usage().used, MIB as u64);
}

#[tokio::test]
async fn a_cache_full_of_pins_reads_through_and_refuses_speculation() {
    let mut cache = Cache::new(MIN_CAPACITY).unwrap();
    cache.reserve_timeout = Duration::from_millis(1);
    let pins: Vec<_> = (0..16).map(|number| fill(&cache, number, MIB)).collect();
    assert!(cache.try_reserve_prefetch(key(20, MIB), MIB, Arc::new(Tally::default())).is_none());
    let mut writer = cache.reserve(key(20, MIB), MIB).await;
    assert!(!writer.in_arena());
    writer.fill(byte(20));
    let block = writer.publish();
    assert!(is_right(&block, 20) && !cache.contains(&key(20, MIB)));
    assert_eq!(cache.usage().allocated, 17 << 20);
    drop(block);
    assert_eq!(cache.usage().allocated, 16 << 20);
    drop(pins);
    assert!(cache.reserve(key(20, MIB), MIB).await.in_arena());
}

#[tokio::test]
async fn a_waiting_reader_gets_the_first_memory_that_becomes_free() {
    let mut cache = Cache::new(MIN_CAPACITY).unwrap();
    cache.reserve_timeout = Duration::from_secs(3600);
    let cache = Arc::new(cache);
    let mut pins: Vec<_> = (0..16).map(|number| fill(&cache, number, MIB)).collect();
    let waiting = cache.clone();
    let reader = tokio::spawn(async move { waiting.reserve(key(20, MIB), MIB).await.in_arena() });
    while !cache.index.context().has_waiters() {
        tokio::task::yield_now().await;
    }
    pins.pop();
    assert!(reader.await.unwrap());
}

#[tokio::test]
async fn speculation_leaves_half_of_the_fill_budget_and_readers_wait_for_the_rest() {
    let cache = Cache::new(64 << 20).unwrap();
    let tally = Arc::new(Tally::default());
    let ahead: Vec<_> =
        (0..).map_while(|n| cache.try_reserve_prefetch(key(n, MIB), MIB, tally.clone())).collect();
    assert_eq!(ahead.len(), 4);
    let demanded: Vec<_> =
        (10..14).map(|n| cache.reserve(key(n, MIB), MIB).now_or_never().unwrap()).collect();
    assert!(cache.reserve(key(20, MIB), MIB).now_or_never().is_none());
    drop((ahead, demanded));
    assert!(cache.reserve(key(20, MIB), MIB).await.in_arena());
    assert!(!cache.reserve(key(21, 40 * MIB), 40 * MIB).await.in_arena(), "it would take most of the cache");
}

#[test]
fn every_prefetched_block_is_counted_once() {
    let cache = Cache::new(MIN_CAPACITY).unwrap();
    let tally = Arc::new(Tally::default());
    let ahead = |number| cache.try_reserve_prefetch(key(number, 100), 100, tally.clone()).unwrap().publish();
    let used = ahead(1);
    used.mark_read(&(0..10));
    used.mark_read(&(0..10));
    drop(used);
    drop(ahead(2));
    cache.remove(&key(1, 100));
    assert_eq!(tally.wasted.load(Ordering::Relaxed), 0, "it is still there");
    assert_eq!(tally.fetched.load(Ordering::Relaxed), 200);
    cache.remove(&key(2, 100));
    drop(cache.try_reserve_prefetch(key(3, 100), 100, tally.clone()));
    assert_eq!(tally.used.load(Ordering::Relaxed), 100);
    assert_eq!(tally.wasted.load(Ordering::Relaxed), 100);
}

#[test]
fn a_scan_leaves_the_hot_set_whatever_the_request_size() {
    for request in [MIB / 8, MIB] {
        let cache = Cache::new(64 << 20).unwrap();
        let (mut hits, mut reads) = (0, 0);
        let mut read = |number: u64, counts: bool| {
            let hit = cache.get(&key(number, MIB));
            (hits, reads) =
                if counts { (hits + usize::from(hit.is_some()), reads + 1) } else { (hits, reads) };
            let block = hit.unwrap_or_else(|| fill(&cache, number, MIB));
            (0..MIB / request).for_each(|i| _ = block.mark_read(&(i * request..(i + 1) * request)));
        };
        for round in 0..4 {
            (0..32).for_each(|number| read((number * 7 + round) % 32, false));
        }
        for scanned in 0..256 {
            read(1000 + scanned, false);
            read(scanned % 32, true);
        }
        assert!(hits * 100 >= reads * 95, "{hits} of {reads} with requests of {request}");
    }
}

#[test]
fn memory_moves_to_the_sizes_that_are_used() {
    let cache = Cache::new(64 << 20).unwrap();
    let loads = [
        (4096, 16384),
        (4 * MIB, 16),
        (70_000, 800),
        (16 * MIB, 4),
        (2 * MIB, 32),
        (5 * MIB, 7),
        (4096, 16384),
    ];
    for (round, (len, blocks)) in loads.into_iter().enumerate() {
        let first = (round as u64 + 1) << 32;
        for pass in 0..3 {
            for number in first..first + blocks {
                let block = cache.get(&key(number, len)).unwrap_or_else(|| fill(&cache, number, len));
                block.mark_read(&(0..len));
                assert!(pass > 0 || is_right(&block, number));
            }
        }
        let present = (first..first + blocks).filter(|&number| cache.contains(&key(number, len))).count();
        assert!(present as u64 * 10 >= blocks * 8, "{present} of {blocks} blocks of {len} bytes");
    }
}

#[test]
fn a_large_chunk_among_small_files_costs_its_own_size() {
    let cache = Cache::new(128 << 20).unwrap();
    (0..30_000).for_each(|number| drop(fill(&cache, number, 4096)));
    let before = cache.usage().used;
    (0..8).for_each(|number| drop(fill(&cache, 1 << 40 | number, 16 * MIB)));
    let small = (0..30_000).filter(|&number| cache.contains(&key(number, 4096))).count() as u64 * 4096;
    let large = (0..8).filter(|&number| cache.contains(&key(1 << 40 | number, 16 * MIB))).count();
    assert!(
        large >= 1 && small + ((large as u64) << 24) > before / 2,
        "{small} of {before} bytes, {large} chunks"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Blocks of all sizes come and go, some of them pinned. Every block that is found has the
    /// right bytes, pinned blocks stay, and the memory in use is that of the blocks.
    #[test]
    fn agrees_with_a_model(
        operations in prop::collection::vec((0u8..10, 0u64..200), 0..400),
    ) {
        const SIZES: [usize; 8] = [1, 4096, 10_000, 65_536, 300_000, MIB, 2 * MIB, 4 * MIB];
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let mut pins: HashMap<BlockKey, (u64, PinnedBlock)> = HashMap::new();
        let size = |number: u64| SIZES[number as usize % SIZES.len()];
        for (operation, number) in operations {
            let name = key(number, size(number));
            match operation {
                0..=5 => match cache.get(&name) {
                    Some(block) => {
                        prop_assert!(is_right(&block, number));
                        block.mark_read(&(0..block.len()));
                    }
                    None => {
                        prop_assert!(!pins.contains_key(&name), "a pinned block is found");
                        if let Some(mut writer) = cache.reserve(name, size(number)).now_or_never_in_time() {
                            writer.fill(byte(number));
                            let block = writer.publish();
                            if operation == 0 && pins.len() < 3 {
                                pins.insert(name, (number, block));
                            }
                        }
                    }
                },
                6 => _ = pins.keys().next().copied().map(|name| pins.remove(&name)),
                7 => cache.mark_hot(&name),
                _ if !pins.contains_key(&name) => {
                    cache.remove(&name);
                    prop_assert!(!cache.contains(&name));
                }
                _ => {}
            }
            for (name, (number, block)) in &pins {
                prop_assert!(cache.contains(name) && is_right(block, *number));
            }
            let present = (0..200).filter(|&number| cache.contains(&key(number, size(number))));
            let used: u64 = present.map(|number| SizeClass::of(size(number)).size()).sum();
            prop_assert_eq!(cache.usage().used, used);
        }
    }
}

/// Polls a future once, within a runtime whose timers it may use.
trait NowOrNever: Future + Sized {
    fn now_or_never_in_time(self) -> Option<Self::Output> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime without I/O takes nothing").block_on(async { self.now_or_never() })
    }
}

impl<F: Future> NowOrNever for F {}

#[test]
fn readers_and_writers_on_many_threads_see_right_bytes_only() {
    const THREADS: u64 = 4;
    const STEPS: u64 = 20_000;
    let cache = Cache::new(MIN_CAPACITY).unwrap();
    let hits = AtomicU64::new(0);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let size = |number: u64| [4096, 70_000, 300_000, MIB][number as usize % 4];
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (cache, hits, runtime) = (&cache, &hits, &runtime);
            scope.spawn(move || {
                let mut state = thread + 1;
                let mut held = Vec::new();
                for _ in 0..STEPS {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let (number, action) = ((state >> 33) % 120, (state >> 20) % 64);
                    let name = key(number, size(number));
                    if action == 0 {
                        cache.remove(&name);
                        continue;
                    }
                    let block = match cache.get(&name) {
                        Some(block) => {
                            hits.fetch_add(1, Ordering::Relaxed);
                            block
                        }
                        None => {
                            let mut writer = runtime.block_on(cache.reserve(name, size(number)));
                            writer.fill(byte(number));
                            writer.publish()
                        }
                    };
                    block.mark_read(&(0..4096));
                    held.push((number, block));
                    if held.len() == 3 {
                        let (number, block) = held.remove(0);
                        let ends = [block.first(), block.last(), block.get(block.len() / 2)];
                        assert!(ends.into_iter().flatten().all(|&found| found == byte(number)));
                    }
                }
            });
        }
    });
    assert!(hits.into_inner() > 0);
    assert_eq!(cache.usage().pinned, 0);
    (0..120).for_each(|number| _ = cache.remove(&key(number, size(number))));
    assert_eq!(cache.usage().allocated, 0, "all memory was freed");
}

#[test]
fn what_is_given_back_is_missed_until_it_is_taken_back() {
    let cache = Cache::new(64 << 20).unwrap();
    (0..64).for_each(|number| drop(fill(&cache, number, MIB)));
    let room = |cache: &Cache| {
        (100..200).for_each(|number| assert!(is_right(&fill(cache, number, MIB), number)));
        let usage = cache.usage();
        assert!(usage.used + usage.withheld <= usage.capacity, "{usage:?}");
        usage.used >> 20
    };
    assert_eq!(cache.give_back(20 << 20), 20 << 20);
    assert_eq!((room(&cache), cache.block_capacity()), (44, 44 << 20));
    // A quarter of the cache stays, whatever is asked for.
    assert_eq!(cache.give_back(1 << 30), 28 << 20);
    assert_eq!((room(&cache), cache.withheld()), (16, 48 << 20));
    cache.take_back(8 << 20);
    assert_eq!(room(&cache), 24);
    cache.take_back(1 << 30);
    assert_eq!((room(&cache), cache.withheld()), (64, 0));
}
