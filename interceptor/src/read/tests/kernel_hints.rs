//! Reads that the kernel reports.

use std::time::Instant;

use super::*;

const MIB: u64 = 1 << 20;

/// A file of `mib` chunks of 1 MiB.
fn file(needles: &Needles, mib: u64) -> Arc<FileVersion> {
    let chunks: Vec<_> = (0..mib).map(|i| needles.chunk(1 + i, i * MIB, MIB, 1, 0)).collect();
    version(Content::Chunks(chunks.into()), mib * MIB)
}

impl Mounted {
    /// Waits until no task is left, and returns which of `mib` chunks are in the cache.
    fn cached_chunks(&self, file: &FileVersion, mib: u64) -> Vec<u64> {
        let layout = file.layout_now().unwrap();
        let key =
            |index: u64| block_plan::large_blocks(&layout.object(index as usize), &(0..MIB)).next().unwrap();
        while self.runtime.metrics().num_alive_tasks() > 0 {
            std::thread::yield_now();
        }
        (0..mib).filter(|index| self.cache.contains(&key(*index))).collect()
    }
}

#[test]
fn only_the_chunks_of_hot_ranges_are_fetched() {
    let needles = Needles::default();
    let file = file(&needles, 16);
    let mounted = Mounted::with_cache(needles, 256 * MIB);
    mounted.reader.hint_hot_range(&file, 2 * MIB..3 * MIB);
    mounted.reader.hint_hot_range(&file, 5 * MIB + 10..6 * MIB + 10);
    assert_eq!(mounted.cached_chunks(&file, 16), [2, 5, 6]);
    // The last granule of a file may reach beyond its end.
    mounted.reader.hint_hot_range(&file, 15 * MIB..u64::MAX);
    mounted.reader.hint_hot_range(&file, 16 * MIB..17 * MIB);
    mounted.reader.hint_hot_range(&file, 2 * MIB..3 * MIB);
    assert_eq!(mounted.cached_chunks(&file, 16), [2, 5, 6, 15]);
    assert_eq!(mounted.needles.fetches.load(Ordering::Relaxed), 4);
}

#[test]
fn ranges_that_turn_hot_behind_a_sequential_reader_are_deferred() {
    let needles = Needles::default();
    let file = file(&needles, 60);
    let mounted = Mounted::with_cache(needles, 512 * MIB);
    let deferred = &file.activity().kernel_hints().deferred;
    // On a busy machine a read may take so long that its reader counts as idle meanwhile.
    let mut was_idle = false;
    for offset in (0..20 * MIB).step_by(MIB as usize) {
        was_idle |= offset > MIB && !deferred.is_read(Instant::now());
        mounted.read(&file, offset, MIB as usize).unwrap();
        mounted.reader.hint_hot_range(&file, offset..offset + MIB);
        let is_empty = deferred.is_empty();
        was_idle |= offset > MIB && !deferred.is_read(Instant::now());
        assert!(offset <= MIB || !is_empty || was_idle);
    }
    let fetches = || mounted.needles.fetches.load(Ordering::Relaxed);
    let before = fetches();
    assert!(was_idle || before <= 36, "{before}: what was read, and ahead of it");
    // When the reader is idle, the hot chunks are marked as such, and none is fetched again.
    while !deferred.is_empty() {
        std::thread::yield_now();
    }
    let there = mounted.cached_chunks(&file, 60);
    assert!((0..20).all(|chunk| there.contains(&chunk)), "{there:?}");
    assert!(was_idle || fetches() <= 36);
}

#[test]
fn a_stream_that_the_page_cache_serves_is_fetched_ahead() {
    let needles = Needles::default();
    let file = file(&needles, 60);
    let mounted = Mounted::with_cache(needles, 512 * MIB);
    // The first 20 MiB are read by way of the daemon, and evicted.
    for offset in (0..20 * MIB).step_by(MIB as usize) {
        mounted.read(&file, offset, MIB as usize).unwrap();
    }
    mounted.cached_chunks(&file, 60);
    mounted.runtime.block_on(mounted.reader.evict(&file)).unwrap();

    let ahead = |head: u64| mounted.reader.hint_stream(&file, head * MIB, head * MIB..(head + 16) * MIB);
    ahead(2);
    assert_eq!(mounted.cached_chunks(&file, 60), [0u64; 0], "the page cache has it all");
    ahead(10);
    assert_eq!(mounted.cached_chunks(&file, 60), [20, 21, 22, 23, 24, 25]);
    // Now the file's own streams follow the reader.
    ahead(19);
    assert_eq!(mounted.cached_chunks(&file, 60), [20, 21, 22, 23, 24, 25]);
    mounted.reader.hint_stream(&file, 70 * MIB, 70 * MIB..86 * MIB);
}

#[test]
fn fetching_ahead_of_the_page_cache_stops_if_it_is_wasted() {
    let needles = Needles::default();
    let file = file(&needles, 200);
    let mounted = Mounted::with_cache(needles, 256 * MIB);
    let mut fetched = Vec::new();
    for head in (0..180).step_by(8) {
        mounted.reader.hint_stream(&file, head * MIB, head * MIB..(head + 8) * MIB);
        fetched.extend(mounted.cached_chunks(&file, 200));
        mounted.runtime.block_on(mounted.reader.evict(&file)).unwrap();
    }
    assert!(!fetched.is_empty() && fetched.len() <= 24, "{fetched:?}");
}
