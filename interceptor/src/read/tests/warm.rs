//! Files that are filled, counted and evicted by request.

use super::*;
use crate::cache::{AdmissionError, EvictionMode};
use crate::read::warm::{WarmupError, WarmupRequest};

const MIB: u64 = 1 << 20;

/// A file of `mib` chunks of 1 MiB, the keys of whose needles begin at `first`.
fn file(needles: &Needles, first: u64, mib: u64) -> Arc<FileVersion> {
    let chunks: Vec<_> = (0..mib).map(|i| needles.chunk(first + i, i * MIB, MIB, 1, 0)).collect();
    version(Content::Chunks(chunks.into()), mib * MIB)
}

impl Mounted {
    /// Brings `file` into the cache, and returns how many bytes were fetched.
    fn warm(&self, file: &Arc<FileVersion>, warmup: &WarmupRequest) -> Result<u64, WarmupError> {
        let before = warmup.fetched();
        self.runtime.block_on(self.reader.warm(file, warmup))?;
        Ok(warmup.fetched() - before)
    }

    fn cached(&self, file: &FileVersion) -> u64 {
        self.runtime.block_on(self.reader.cached_bytes(file)).unwrap()
    }

    fn fetches(&self) -> usize {
        self.needles.fetches.load(Ordering::Relaxed)
    }
}

fn gently() -> WarmupRequest {
    WarmupRequest::new(EvictionMode::FreeOnly, 0)
}

#[test]
fn a_warm_file_is_read_without_a_fetch_and_again() {
    let needles = Needles::default();
    let file = file(&needles, 1, 4);
    let mounted = Mounted::new(needles);
    let warmup = gently();
    assert_eq!(mounted.cached(&file), 0);
    assert_eq!(mounted.warm(&file, &warmup).unwrap(), 4 * MIB);
    assert_eq!((warmup.completed(), mounted.cached(&file), mounted.fetches()), (4 * MIB, 4 * MIB, 4));
    for _ in 0..2 {
        for offset in (0..4 * MIB).step_by(128 << 10) {
            assert!(
                matches!(mounted.reader.read(&file, offset, 128 << 10, 0), ReadReply::Ready(_)),
                "{offset}"
            );
        }
    }
    assert_eq!(mounted.fetches(), 4);
    let outcomes = mounted.metrics.totals().prefetched[Trigger::Warmup as usize];
    assert_eq!(outcomes, [4 * MIB, 0], "used, wasted");
    assert_eq!(mounted.warm(&file, &gently()).unwrap(), 0);
}

#[test]
fn holes_and_inline_content_count_as_cached() {
    let needles = Needles::default();
    let chunk = needles.chunk(1, MIB, 1000, 1, 0);
    let sparse = version(Content::Chunks(Arc::new([chunk])), 3 * MIB);
    let inline = version(Content::Inline(Bytes::from_static(b"hello")), 8);
    let mounted = Mounted::new(needles);
    assert_eq!((mounted.cached(&sparse), mounted.cached(&inline)), (3 * MIB - 1000, 8));
    let warmup = gently();
    assert_eq!(mounted.warm(&sparse, &warmup).unwrap() + mounted.warm(&inline, &warmup).unwrap(), 1000);
    assert_eq!(warmup.completed(), 3 * MIB + 8);
}

#[test]
fn pieces_of_a_random_reader_are_counted_and_evicted() {
    let needles = Needles::default();
    let chunk = needles.chunk(1, 0, 4 * MIB, 1, 0);
    let file = version(Content::Chunks(Arc::new([chunk])), 4 * MIB);
    let mounted = Mounted::new(needles);
    mounted.read(&file, MIB, 4096).unwrap();
    mounted.read(&file, 3 * MIB, 60_000).unwrap();
    assert_eq!(mounted.cached(&file), (16 << 10) + (64 << 10));
    assert_eq!(mounted.warm(&file, &gently()).unwrap(), 4 * MIB);
    let given_up = mounted.runtime.block_on(mounted.reader.evict(&file)).unwrap();
    assert_eq!(given_up, 4 * MIB + (16 << 10) + (64 << 10));
    assert_eq!((mounted.cached(&file), mounted.cache.usage().used), (0, 0));
}

#[test]
fn a_warm_up_displaces_nothing_without_force_and_never_its_own_blocks() {
    let needles = Needles::default();
    let first = file(&needles, 1, 12);
    let second = file(&needles, 100, 20);
    let mounted = Mounted::new(needles);
    mounted.warm(&first, &gently()).unwrap();
    let warmup = gently();
    let error = mounted.warm(&second, &warmup).unwrap_err();
    assert!(matches!(error, WarmupError::NoRoom(AdmissionError::Full)), "{error}");
    assert_eq!((mounted.cached(&first), warmup.completed()), (12 * MIB, 2 * MIB));

    let warmup = WarmupRequest::new(EvictionMode::Evict, 0);
    let error = mounted.warm(&second, &warmup).unwrap_err();
    assert!(matches!(error, WarmupError::NoRoom(AdmissionError::Full)), "{error}");
    assert!(warmup.completed() >= 8 * MIB, "{warmup:?}");
    assert_eq!(mounted.cached(&second), warmup.completed(), "none of it was pushed out by the rest");
}

#[test]
fn a_file_that_cannot_be_fetched_is_an_error_and_leaves_nothing() {
    let needles = Needles::default();
    let file = file(&needles, 1, 2);
    let mounted = Mounted::new(needles);
    mounted.needles.failing.store(true, Ordering::Relaxed);
    assert!(matches!(mounted.warm(&file, &gently()), Err(WarmupError::Read(_))));
    mounted.needles.failing.store(false, Ordering::Relaxed);
    assert_eq!(mounted.warm(&file, &gently()).unwrap(), 2 * MIB);
}

#[test]
fn the_cluster_does_not_cache_a_remote_file_to_count_it() {
    let file = version(Content::Remote(object()), 100);
    let mounted = Mounted::new(Needles::default());
    assert_eq!(mounted.cached(&file), 0);
    assert_eq!(mounted.runtime.block_on(mounted.reader.evict(&file)).unwrap(), 0);
}
