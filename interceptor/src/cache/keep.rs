//! Blocks that somebody has asked for by name, ahead of the job that will read them.
//!
//! Such a block is as good as hot from the moment it comes in, because whoever asked for it knows more than the policy
//! does; and that a stream has read it once is no reason to give it up. It is not pinned: what is used more often while
//! nobody reads it takes its place in the end, like that of any hot block.

use std::sync::Arc;

use tokio::time::Instant;

use super::block::Memory;
use super::{BlockKey, Cache, Filling, PrefetchOutcome};

/// What may leave so that a block can come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Displace {
    /// Nothing: free memory is taken, as far as it goes.
    Nothing,
    /// What the policy thinks least of, however hot that is.
    LeastValued,
}

/// Why a block cannot come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// There is no memory left that may be taken.
    #[error("the cache is full")]
    Full,
    /// The block would take more than a quarter of the cache.
    #[error("a block of the file is larger than a quarter of the cache")]
    TooLarge,
}

impl Cache {
    /// How much of the cache, in bytes, may be filled by request. An eighth stays for what is read meanwhile: without it
    /// every fetch of a reader would push something out.
    pub fn keep_limit(&self) -> u64 {
        self.arena().capacity() / 8 * 7
    }

    /// Memory for `len` bytes that somebody has asked to have here, of which `outcome` will hear whether they were read.
    /// Takes nothing of the fill budget: the caller bounds what it has in flight. Waits for memory, if anything may be
    /// displaced and all of that is in use, but not for long.
    pub async fn fill_kept(
        &self,
        key: BlockKey,
        len: usize,
        displace: Displace,
        outcome: Arc<dyn PrefetchOutcome>,
    ) -> Result<Filling, NoRoom> {
        if !self.admits(len) {
            return Err(NoRoom::TooLarge);
        }
        let arena = self.index.context().arena();
        let slot = match displace {
            Displace::Nothing if arena.used() + len as u64 > self.keep_limit() => None,
            Displace::Nothing => arena.allocate(len),
            Displace::LeastValued => {
                let deadline = Instant::now() + self.patience;
                arena.room().wait(deadline, || self.index.allocate(len)).await
            }
        };
        let slot = slot.ok_or(NoRoom::Full)?;
        Ok(Filling::new(key, Memory::Slot(slot), Some(outcome), self.index.clone(), None).kept())
    }

    /// Somebody asks for the block under `key` to be here. If it is, it stays. Returns whether it is.
    pub fn keep(&self, key: &BlockKey) -> bool {
        let Some(block) = self.index.get(key) else { return false };
        block.entry().keep();
        self.index.promote(key);
        true
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::super::{BlockPart, MIN_CAPACITY, ObjectId, Readable};
    use super::*;

    const MIB: usize = 1 << 20;

    #[derive(Debug)]
    struct Unheard;

    impl PrefetchOutcome for Unheard {
        fn fetched(&self, _: usize) {}
        fn used(&self, _: usize) {}
        fn wasted(&self, _: usize) {}
    }

    fn key(number: u64) -> BlockKey {
        BlockKey { object: ObjectId(number.into()), object_size: MIB as u64, part: BlockPart::Whole }
    }

    async fn kept(cache: &Cache, number: u64, displace: Displace) -> Result<Readable, NoRoom> {
        Ok(cache.fill_kept(key(number), MIB, displace, Arc::new(Unheard)).await?.publish())
    }

    #[tokio::test]
    async fn free_memory_is_taken_and_an_eighth_left() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        for number in 0..14 {
            kept(&cache, number, Displace::Nothing).await.unwrap();
        }
        assert_eq!(kept(&cache, 14, Displace::Nothing).await.err(), Some(NoRoom::Full));
        assert!((0..14).all(|number| cache.contains(&key(number))));
    }

    #[tokio::test]
    async fn what_others_use_leaves_only_by_force() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        for number in 0..16 {
            let block = cache.fill(key(number), MIB).await.publish();
            block.mark_read(&(0..MIB));
        }
        assert_eq!(kept(&cache, 20, Displace::Nothing).await.err(), Some(NoRoom::Full));
        for number in 20..34 {
            kept(&cache, number, Displace::LeastValued).await.unwrap();
        }
        assert!((20..34).all(|number| cache.contains(&key(number))), "none pushes out another");
    }

    #[tokio::test]
    async fn what_is_there_already_stays_when_newcomers_displace() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        for number in 0..16 {
            cache.fill(key(number), MIB).await.publish().mark_read(&(0..MIB));
        }
        assert!(cache.keep(&key(0)) && !cache.keep(&key(99)));
        for number in 20..30 {
            kept(&cache, number, Displace::LeastValued).await.unwrap();
        }
        assert!(cache.contains(&key(0)));
    }

    #[tokio::test]
    async fn a_scan_of_many_times_the_cache_leaves_them() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        for number in 0..14 {
            kept(&cache, number, Displace::Nothing).await.unwrap();
        }
        for number in 100..300 {
            cache.fill(key(number), MIB).await.publish().mark_read(&(0..MIB));
        }
        let left = (0..14).filter(|number| cache.contains(&key(*number))).count();
        assert!(left >= 13, "{left} of 14");
    }

    #[tokio::test]
    async fn having_been_streamed_once_is_no_reason_to_leave() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let block = kept(&cache, 1, Displace::Nothing).await.unwrap();
        block.mark_read(&(0..MIB));
        cache.consumed(&key(1), &block, MIB);
        assert!(cache.contains(&key(1)));
    }

    #[tokio::test]
    async fn a_block_out_of_proportion_is_told_apart() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let large = cache.fill_kept(key(1), 5 * MIB, Displace::LeastValued, Arc::new(Unheard)).await;
        assert_eq!(large.err(), Some(NoRoom::TooLarge));
    }
}
