//! Blocks that warm-up has asked for, ahead of the job that will read them.
//!
//! Such a block counts as hot from the moment it comes in, because the operator who asked for it
//! knows more than the policy does. It is not pinned: if it is not read, blocks that are used more
//! often take its place in the end, as with any hot block.

use std::sync::Arc;

use tokio::time::Instant;

use super::block::BlockMemory;
use super::index::EvictionMode;
use super::{BlockKey, BlockWriter, Cache, PrefetchObserver};

/// Why a block cannot come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// There is no memory left that may be taken.
    #[error("the cache is full")]
    Full,
    /// The block would take more than a quarter of the cache.
    #[error("a block of the file is larger than a quarter of the cache")]
    TooLarge,
}

impl Cache {
    /// How many bytes of the cache retained blocks may take. An eighth stays for what is read
    /// meanwhile: without it every fetch of a reader would evict one of them.
    pub fn retained_limit(&self) -> u64 {
        self.arena().capacity() / 8 * 7
    }

    /// Memory for `len` bytes of a block that is to be retained, whose fate `observer` is told.
    /// Takes nothing of the fill budget: the caller bounds what it has in flight. If eviction is
    /// allowed and everything is pinned, waits up to [`RESERVE_TIMEOUT`](super::RESERVE_TIMEOUT).
    pub async fn reserve_retained(
        &self,
        key: BlockKey,
        len: usize,
        eviction: EvictionMode,
        observer: Arc<dyn PrefetchObserver>,
    ) -> Result<BlockWriter, AdmissionError> {
        if !self.admits(len) {
            return Err(AdmissionError::TooLarge);
        }
        let arena = self.index.arena();
        let slot = match eviction {
            EvictionMode::FreeOnly if arena.used() + len as u64 > self.retained_limit() => None,
            EvictionMode::FreeOnly => arena.allocate(len),
            EvictionMode::Evict => {
                let deadline = Instant::now() + self.reserve_timeout;
                arena.waiters().retry_until(deadline, || self.index.allocate(len)).await
            }
        };
        let memory = BlockMemory::Slot(slot.ok_or(AdmissionError::Full)?);
        Ok(BlockWriter::new(key, memory, Some(observer), self.index.clone(), None).retained())
    }

    /// Retains the block under `key`, if it is there. Returns whether it is.
    pub fn retain(&self, key: &BlockKey) -> bool {
        self.index.mark_hot(key);
        self.index.contains(key)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::super::{BlockPart, MIN_CAPACITY, ObjectId, PinnedBlock};
    use super::*;

    const MIB: usize = 1 << 20;

    #[derive(Debug)]
    struct Ignore;

    impl PrefetchObserver for Ignore {
        fn fetched(&self, _: usize) {}
        fn used(&self, _: usize) {}
        fn wasted(&self, _: usize) {}
    }

    fn key(number: u64) -> BlockKey {
        BlockKey { object: ObjectId(number.into()), object_size: MIB as u64, part: BlockPart::Whole }
    }

    async fn retained(
        cache: &Cache,
        number: u64,
        eviction: EvictionMode,
    ) -> Result<PinnedBlock, AdmissionError> {
        Ok(cache.reserve_retained(key(number), MIB, eviction, Arc::new(Ignore)).await?.publish())
    }

    #[tokio::test]
    async fn free_memory_is_taken_and_an_eighth_of_the_cache_is_left() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        for number in 0..14 {
            retained(&cache, number, EvictionMode::FreeOnly).await.unwrap();
        }
        assert_eq!(retained(&cache, 14, EvictionMode::FreeOnly).await.err(), Some(AdmissionError::Full));
        assert!((0..14).all(|number| cache.contains(&key(number))));
    }

    #[tokio::test]
    async fn blocks_in_use_are_evicted_only_if_eviction_is_allowed() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        for number in 0..16 {
            let block = cache.reserve(key(number), MIB).await.publish();
            block.mark_read(&(0..MIB));
        }
        assert_eq!(retained(&cache, 20, EvictionMode::FreeOnly).await.err(), Some(AdmissionError::Full));
        for number in 20..34 {
            retained(&cache, number, EvictionMode::Evict).await.unwrap();
        }
        assert!((20..34).all(|number| cache.contains(&key(number))), "none pushes out another");
    }

    #[tokio::test]
    async fn a_retained_block_outlives_the_blocks_that_evict_others() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        for number in 0..16 {
            cache.reserve(key(number), MIB).await.publish().mark_read(&(0..MIB));
        }
        assert!(cache.retain(&key(0)) && !cache.retain(&key(99)));
        for number in 20..30 {
            retained(&cache, number, EvictionMode::Evict).await.unwrap();
        }
        assert!(cache.contains(&key(0)));
    }

    #[tokio::test]
    async fn a_scan_of_many_times_the_cache_leaves_retained_blocks() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        for number in 0..14 {
            retained(&cache, number, EvictionMode::FreeOnly).await.unwrap();
        }
        for number in 100..300 {
            cache.reserve(key(number), MIB).await.publish().mark_read(&(0..MIB));
        }
        let left = (0..14).filter(|number| cache.contains(&key(*number))).count();
        assert!(left >= 13, "{left} of 14");
    }

    #[tokio::test]
    async fn a_block_larger_than_a_quarter_of_the_cache_is_refused() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let large = cache.reserve_retained(key(1), 5 * MIB, EvictionMode::Evict, Arc::new(Ignore)).await;
        assert_eq!(large.err(), Some(AdmissionError::TooLarge));
    }
}
