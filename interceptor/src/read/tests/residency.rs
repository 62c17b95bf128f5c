//! Promotion of files, and which opens get the resident file.

use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::cache::resident::{ResidentFile, ResidentUsage};

const MIB: u64 = 1 << 20;

/// A reader that keeps resident files in a cache of `capacity` bytes. `None`, and the test counts
/// as skipped, if this process may not make a tmpfs.
fn keeping(needles: Needles, capacity: u64) -> Option<Mounted> {
    let mounted = Mounted::with_cache(needles, capacity);
    match mounted.reader.keep_resident_files() {
        Ok(()) => Some(mounted),
        Err(ResidentError::Tmpfs(error)) => {
            crate::skipped(error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl Mounted {
    fn resident(&self) -> ResidentUsage {
        self.cache.resident_usage()
    }

    /// Opens, reads all of it, closes. Returns whether the kernel could have read it alone.
    fn use_file(&self, file: &Arc<FileVersion>) -> bool {
        let found = self.reader.opened(file);
        if found.is_none() {
            self.read_through(file);
        }
        self.reader.closed(file);
        found.is_some()
    }

    fn read_through(&self, file: &Arc<FileVersion>) {
        for offset in (0..file.size()).step_by(MIB as usize) {
            self.read(file, offset, MIB as usize).unwrap();
        }
    }

    /// Waits until no file waits or is being promoted.
    fn wait_for_promotions(&self) {
        let promoter = self.reader.promoter.get().unwrap();
        self.runtime.block_on(async {
            while !promoter.is_idle() {
                tokio::task::yield_now().await;
            }
        });
    }

    /// While memory moves from the arena to a file it may be counted twice, so only an excess that
    /// stays is an error.
    fn assert_within_budget(&self) {
        let is_within = || {
            let (usage, resident) = (self.cache.usage(), self.resident());
            usage.used + usage.resident <= usage.capacity && resident.bytes <= resident.limit
        };
        let is_settled = is_within() || {
            self.wait_for_promotions();
            is_within()
        };
        assert!(is_settled, "{:?} {:?}", self.cache.usage(), self.resident());
    }

    fn assert_resident(&self, file: &Arc<FileVersion>, expected: &[u8]) {
        let resident = in_memory(self.reader.opened(file)).expect("it is resident");
        let mut bytes = vec![0; expected.len()];
        assert_eq!(resident.len(), expected.len() as u64);
        resident.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == expected, "the bytes of the file are others");
        self.reader.closed(file);
    }
}

/// The resident file of an open.
fn in_memory(file: Option<CompleteFile>) -> Option<Arc<ResidentFile>> {
    match file {
        Some(CompleteFile::Resident(file)) => Some(file),
        Some(CompleteFile::OnDisk(_)) | None => None,
    }
}

/// A file of one chunk, and its bytes.
fn one_chunk(needles: &Needles, key: u64, size: u64) -> (Arc<FileVersion>, Vec<u8>) {
    let chunk = needles.chunk(key, 0, size, 1, 0);
    let bytes = needles.data.lock()[&chunk.fid].clone();
    (version(Content::Chunks(Arc::new([chunk])), size), bytes)
}

/// A file of chunks of 1 MiB, and its bytes.
fn many_chunks(needles: &Needles, first_key: u64, chunks: u64) -> (Arc<FileVersion>, Vec<u8>) {
    let list: Vec<_> = (0..chunks).map(|i| needles.chunk(first_key + i, i * MIB, MIB, 1, 0)).collect();
    let bytes = list.iter().flat_map(|chunk| needles.data.lock()[&chunk.fid].clone()).collect();
    (version(Content::Chunks(list.into()), chunks * MIB), bytes)
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn small_files_are_resident_after_their_first_read_and_leave_the_arena() {
    let needles = Needles::default();
    let files: Vec<_> = (1..=40).map(|key| one_chunk(&needles, key, key * 20_000)).collect();
    let Some(mounted) = keeping(needles, 64 * MIB) else { return };
    assert!(files.iter().all(|(file, _)| !mounted.use_file(file)));
    mounted.wait_for_promotions();
    files.iter().for_each(|(file, bytes)| mounted.assert_resident(file, bytes));
    let usage = mounted.resident();
    assert_eq!((usage.files, usage.promoted, usage.failed), (40, 40, 0), "{usage:?}");
    assert_eq!(usage.promoted_bytes, (1..=40).map(|key| key * 20_000).sum::<u64>());
    // The promotion holds the file until its blocks have left the arena.
    while files.iter().any(|(file, _)| Arc::strong_count(file) > 1) {
        std::thread::yield_now();
    }
    assert_eq!(mounted.cache.usage().used, 0);
    assert_eq!(mounted.needles.fetches.load(Ordering::Relaxed), 40, "each was fetched once");
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_large_file_is_resident_after_its_first_pass_and_was_fetched_once() {
    let needles = Needles::default();
    let (file, bytes) = many_chunks(&needles, 1, 20);
    let Some(mounted) = keeping(needles, 64 * MIB) else { return };
    mounted.use_file(&file);
    mounted.wait_for_promotions();
    mounted.assert_resident(&file, &bytes);
    mounted.read_through(&file);
    let usage = mounted.resident();
    assert_eq!((usage.files, usage.promoted, usage.bytes), (1, 1, 20 * MIB), "{usage:?}");
    assert_eq!(mounted.cache.usage().used, 0, "it is in memory once");
    assert_eq!(mounted.needles.fetches.load(Ordering::Relaxed), 20);
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_large_file_without_free_memory_is_resident_when_it_is_read_again_not_before() {
    let needles = Needles::default();
    let (other, _) = many_chunks(&needles, 1, 28);
    let (file, bytes) = many_chunks(&needles, 101, 36);
    let Some(mounted) = keeping(needles, 64 * MIB) else { return };
    for file in [&other, &file] {
        mounted.use_file(file);
        mounted.wait_for_promotions();
    }
    assert_eq!(mounted.resident().promoted, 1);
    mounted.use_file(&file);
    mounted.wait_for_promotions();
    mounted.assert_resident(&file, &bytes);
    mounted.assert_within_budget();
    assert_eq!(mounted.needles.fetches.load(Ordering::Relaxed), 64, "each chunk was fetched once");
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn no_file_leaves_for_another_while_all_of_them_fit_into_memory() {
    let needles = Needles::default();
    let (other, other_bytes) = many_chunks(&needles, 1, 30);
    let (file, bytes) = many_chunks(&needles, 101, 20);
    let Some(mounted) = keeping(needles, 64 * MIB) else { return };
    for _ in 0..3 {
        for file in [&other, &file] {
            mounted.use_file(file);
            mounted.wait_for_promotions();
        }
    }
    let usage = mounted.resident();
    assert_eq!((usage.promoted, usage.displaced), (1, 0), "{usage:?}");
    mounted.assert_resident(&other, &other_bytes);
    assert!(mounted.read(&file, 0, bytes.len()).unwrap().to_vec() == bytes);
    assert_eq!(mounted.needles.fetches.load(Ordering::Relaxed), 50, "each chunk was fetched once");
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_file_that_is_read_in_part_keeps_that_part_and_is_completed_when_it_is_read_again() {
    let needles = Needles::default();
    let (file, bytes) = many_chunks(&needles, 1, 40);
    let Some(mounted) = keeping(needles, 128 * MIB) else { return };
    let read = || {
        for offset in (0..20 * MIB).step_by(MIB as usize) {
            let read = mounted.read(&file, offset, MIB as usize).unwrap();
            assert!(*read == bytes[offset as usize..][..MIB as usize]);
        }
    };
    mounted.reader.opened(&file);
    read();
    mounted.wait_for_promotions();
    let usage = mounted.resident();
    assert_eq!((usage.files, usage.promoted), (0, 0), "{usage:?}");
    assert!(usage.bytes >= 16 * MIB, "{usage:?}");
    let fetches = || mounted.needles.fetches.load(Ordering::Relaxed);
    read();
    assert!(fetches() <= 40, "what has left the arena is read from the draft");
    mounted.reader.closed(&file);
    mounted.reader.opened(&file);
    read();
    mounted.wait_for_promotions();
    mounted.reader.closed(&file);
    mounted.assert_resident(&file, &bytes);
    assert_eq!(fetches(), 40, "each chunk was fetched once");
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_draft_is_retired_and_evicted_like_a_resident_file() {
    let needles = Needles::default();
    let (file, _) = many_chunks(&needles, 1, 40);
    let Some(mounted) = keeping(needles, 128 * MIB) else { return };
    for offset in (0..20 * MIB).step_by(MIB as usize) {
        mounted.read(&file, offset, MIB as usize).unwrap();
    }
    mounted.wait_for_promotions();
    let cached = mounted.runtime.block_on(mounted.reader.cached_bytes(&file)).unwrap();
    assert!(cached >= 20 * MIB && mounted.resident().bytes > 0, "{cached}");
    assert_eq!(mounted.runtime.block_on(mounted.reader.evict(&file)).unwrap(), cached);
    assert_eq!((mounted.resident().bytes, mounted.cache.usage().used), (0, 0));
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_large_file_of_which_half_is_hot_in_the_page_cache_is_resident() {
    let needles = Needles::default();
    let (file, bytes) = many_chunks(&needles, 1, 20);
    let Some(mounted) = keeping(needles, 128 * MIB) else { return };
    assert!(mounted.reader.opened(&file).is_none());
    let hot = |granules: std::ops::Range<u64>| {
        granules.for_each(|granule| mounted.reader.hint_hot_range(&file, granule * MIB..(granule + 1) * MIB));
        // The two queues of promotions are tasks, too.
        while mounted.runtime.metrics().num_alive_tasks() > 2 {
            std::thread::yield_now();
        }
        mounted.wait_for_promotions();
        mounted.resident().promoted
    };
    assert_eq!((hot(0..9), hot(9..20)), (0, 1));
    mounted.reader.closed(&file);
    mounted.assert_resident(&file, &bytes);
    assert_eq!(hot(0..20), 1, "it is resident already");
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_file_that_is_streamed_twice_in_one_open_is_resident_at_the_next() {
    let needles = Needles::default();
    let (file, bytes) = many_chunks(&needles, 1, 20);
    let Some(mounted) = keeping(needles, 64 * MIB) else { return };
    assert!(mounted.reader.opened(&file).is_none());
    mounted.read_through(&file);
    mounted.read_through(&file);
    mounted.wait_for_promotions();
    // The handle that is open still reads by way of the daemon, and does so from the file.
    mounted.needles.failing.store(true, Ordering::Relaxed);
    let read = mounted.read(&file, 3 * MIB + 17, 100_000).unwrap();
    assert!(*read == bytes[(3 << 20) + 17..][..100_000]);
    assert!(mounted.read(&file, 20 * MIB - 5, 100).unwrap().len() == 5);
    assert!(mounted.read(&file, 20 * MIB + 5, 100).unwrap().is_empty());
    mounted.reader.closed(&file);
    mounted.assert_resident(&file, &bytes);
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn the_same_bytes_under_another_node_are_resident_too() {
    let needles = Needles::default();
    let (file, bytes) = one_chunk(&needles, 1, 50_000);
    let Some(mounted) = keeping(needles, 64 * MIB) else { return };
    mounted.use_file(&file);
    mounted.wait_for_promotions();
    // The kernel forgot the node and looked the name up again.
    let again = version(content(&file), 50_000);
    drop(file);
    mounted.assert_resident(&again, &bytes);
    let shorter = version(content(&again), 40_000);
    assert!(mounted.reader.opened(&shorter).is_none(), "the same chunks make another file");
    mounted.reader.closed(&shorter);
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_replaced_file_is_not_handed_out_and_open_handles_keep_it() {
    let needles = Needles::default();
    let (file, bytes) = one_chunk(&needles, 1, 50_000);
    let (new, _) = one_chunk(&needles, 2, 50_000);
    let Some(mounted) = keeping(needles, 64 * MIB) else { return };
    mounted.use_file(&file);
    mounted.wait_for_promotions();
    let (old, other) = (entry(content(&file), 50_000), entry(content(&new), 50_000));
    mounted.reader.replaced(&old, Some(&old));
    let open = in_memory(mounted.reader.opened(&file)).expect("only its attributes changed");
    mounted.reader.replaced(&old, Some(&other));
    assert!(mounted.reader.opened(&file).is_none() && mounted.reader.opened(&new).is_none());
    let mut read = vec![0; 50_000];
    open.read_at(&mut read, 0).unwrap();
    assert!(read == bytes);
    assert_eq!((mounted.resident().files, mounted.resident().retired), (0, 1));
    assert!(mounted.resident().bytes > 0);
    drop(open);
    // The background thread may hold the file for a moment.
    let dropped = Instant::now();
    while mounted.resident().bytes > 0 {
        assert!(dropped.elapsed() < Duration::from_secs(20), "{:?}", mounted.resident());
        thread::yield_now();
    }
    assert!(*mounted.read(&file, 0, 50_000).unwrap() == bytes, "its chunks are still there to be read");
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn a_failed_promotion_keeps_what_it_has_and_may_be_tried_again() {
    let needles = Needles::default();
    let (file, bytes) = many_chunks(&needles, 1, 8);
    let missing = needles.data.lock().remove(&FileId { volume: 1, key: 6, cookie: 1 });
    let Some(mounted) = keeping(needles, 64 * MIB) else { return };
    assert!(mounted.reader.consider(&file, PromotionReason::FirstUse));
    mounted.wait_for_promotions();
    let usage = mounted.resident();
    // In pages of 2 MiB.
    assert_eq!((usage.files, usage.bytes, usage.failed), (0, 6 * MIB, 1), "{usage:?}");
    mounted.needles.data.lock().insert(FileId { volume: 1, key: 6, cookie: 1 }, missing.unwrap());
    assert!(mounted.reader.consider(&file, PromotionReason::FirstUse));
    mounted.wait_for_promotions();
    mounted.assert_resident(&file, &bytes);
    assert!(mounted.reader.consider(&file, PromotionReason::FirstUse), "it is resident");
}

#[test]
fn without_resident_files_everything_else_works() {
    let needles = Needles::default();
    let (file, bytes) = one_chunk(&needles, 1, 50_000);
    let mounted = Mounted::new(needles);
    assert!(mounted.reader.keep_resident_files().is_err(), "the cache is too small");
    assert!(
        mounted.reader.opened(&file).is_none() && !mounted.reader.consider(&file, PromotionReason::FirstUse)
    );
    assert!(*mounted.read(&file, 0, 50_000).unwrap() == bytes);
    mounted.reader.closed(&file);
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn many_files_read_once_leave_the_hot_ones_resident() {
    let needles = Needles::default();
    let hot: Vec<_> = (1..=32).map(|key| one_chunk(&needles, key, MIB).0).collect();
    let scan: Vec<_> = (100..250).map(|key| one_chunk(&needles, key, MIB).0).collect();
    let Some(mounted) = keeping(needles, 64 * MIB) else { return };
    // Files that found no room the first time displace others the second time.
    for _ in 0..2 {
        hot.iter().for_each(|file| _ = mounted.use_file(file));
        mounted.wait_for_promotions();
    }
    let mut hits = 0;
    for (number, file) in scan.iter().enumerate() {
        mounted.use_file(file);
        hits += usize::from(mounted.use_file(&hot[number % hot.len()]));
        mounted.assert_within_budget();
    }
    assert_eq!(hits, scan.len());
}

/// The content of a file: offset, length and bytes in the needle beyond that, for each chunk.
fn layouts() -> impl Strategy<Value = (Vec<(u64, u64, u64)>, u64)> {
    (prop::collection::vec((0u64..3_000_000, 1u64..2_000_000, 0u64..5000), 1..8), 1u64..4_000_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Chunks with overlaps, holes and truncation: the resident file has the bytes that reads
    /// give.
    #[test]
    #[cfg_attr(not(is_root), ignore = "needs root")]
    fn a_resident_file_has_what_was_painted((list, size) in layouts()) {
        let needles = Needles::default();
        let (chunks, painted) = needles.paint(list, size);
        let file = version(Content::Chunks(chunks.into()), size);
        let Some(mounted) = keeping(needles, 64 * MIB) else { return Ok(()) };
        prop_assert!(mounted.reader.consider(&file, PromotionReason::FirstUse));
        mounted.wait_for_promotions();
        mounted.assert_resident(&file, &painted);
        let usage = mounted.resident();
        prop_assert_eq!(usage.bytes, size.div_ceil(4096) * 4096);
    }
}
