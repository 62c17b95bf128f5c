//! The memory that fetched bytes are kept in, bounded by one budget.
//!
//! A [`Block`] is a filled, immutable [`Buffer`] with the [`BlockKey`] under which it can be found again. Because a
//! chunk never changes under its file id, a block is right for ever: nothing here is ever invalidated, only evicted.
//! Readers hold blocks by `Arc`, so eviction takes a block from the index at once and its memory when the last reply
//! that uses it has been sent.
//!
//! The budget has two parts. Most of it holds indexed blocks, under a policy that resists scans (`quick_cache`: a hot
//! and a cold queue with ghost entries, after S3-FIFO and Clock-PRO). The rest, the *fill budget*, is what fetches in
//! flight may hold, together with recycled buffers that wait for the next fetch. A fetch takes its share with
//! [`Cache::reserve`] before it allocates, so that a burst of misses waits instead of growing the process; speculative
//! fetches use [`Cache::try_reserve`] and are simply not made when there is no room.
//!
//! [`Flights`] makes sure that one block is fetched once however many readers miss it.

mod buffer;
mod flight;
pub mod policy;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quick_cache::{OptionsBuilder, Weighter};
use rdma_engine::FileId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use buffer::{Buffer, Pool};
pub use flight::{Flights, Interrupted, Joined, Outcome};

/// Which part of a chunk a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it, verified against the needle's checksum where there is one.
    Whole,
    /// The `index`-th piece of `1 << shift` bytes; the last one may be shorter.
    Piece {
        /// Binary logarithm of the size of a piece.
        shift: u8,
        /// Number of the piece, from 0.
        index: u32,
    },
}

/// What a block holds, and so the name under which it is found.
///
/// The chunk's size is a part of the name because two versions of a file can hold the same needle to different
/// lengths (truncation shortens the chunk record, not the needle).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// The needle.
    pub fid: FileId,
    /// How many bytes of the needle the chunk record covers.
    pub chunk_size: u64,
    /// Which of these bytes the block holds.
    pub part: Part,
}

/// Bytes of a chunk, filled and immutable.
#[derive(Debug)]
pub struct Block {
    bytes: Buffer,
    /// Set while the block was fetched on speculation and nobody has read it.
    unread_prefetch: AtomicBool,
    outcome: Option<Arc<dyn PrefetchOutcome>>,
}

/// Is told, once for each block that was fetched before it was asked for, whether that paid.
pub trait PrefetchOutcome: std::fmt::Debug + Send + Sync {
    /// A reader used the block of `bytes` bytes.
    fn used(&self, bytes: usize);
    /// The block of `bytes` bytes was dropped unread.
    fn wasted(&self, bytes: usize);
}

impl Block {
    /// A block that a reader asked for.
    pub fn demanded(bytes: Buffer) -> Self {
        Self { bytes, unread_prefetch: AtomicBool::new(false), outcome: None }
    }

    /// A block that was fetched on speculation.
    pub fn prefetched(bytes: Buffer, outcome: Arc<dyn PrefetchOutcome>) -> Self {
        Self { bytes, unread_prefetch: AtomicBool::new(true), outcome: Some(outcome) }
    }

    /// Says that a reader uses the block, which settles the outcome of a prefetch.
    pub fn mark_read(&self) {
        if let Some(outcome) = &self.outcome
            && self.unread_prefetch.load(Ordering::Relaxed)
            && self.unread_prefetch.swap(false, Ordering::Relaxed)
        {
            outcome.used(self.bytes.len());
        }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(outcome) = &self.outcome
            && *self.unread_prefetch.get_mut()
        {
            outcome.wasted(self.bytes.len());
        }
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<BlockKey, Arc<Block>> for ByBytes {
    fn weight(&self, _key: &BlockKey, block: &Arc<Block>) -> u64 {
        block.bytes.footprint() as u64
    }
}

/// How much memory the cache holds and may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The budget.
    pub capacity: u64,
    /// Held by indexed blocks.
    pub used: u64,
    /// Held by all buffers: indexed blocks, evicted ones that a reply still uses, fetches in flight, recycled ones.
    pub allocated: u64,
}

/// Fill budget is accounted in units of this many bytes.
const FILL_UNIT: usize = 4096;

/// Share of the index that the policy keeps for blocks that were used again. Prefetched blocks wait in the rest for
/// their first use, so it must hold what several streams have been run ahead.
const HOT_SHARE: f64 = 0.75;

/// The smallest budget that still lets a few chunks of common size be fetched at once.
pub const MIN_CAPACITY: u64 = 16 << 20;

/// A share of the fill budget; given back when dropped.
#[derive(Debug)]
pub struct Reservation(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The block cache of a mount.
pub struct Cache {
    blocks: quick_cache::sync::Cache<BlockKey, Arc<Block>, ByBytes>,
    pool: Arc<Pool>,
    fill: Arc<Semaphore>,
    fill_bytes: usize,
    capacity: u64,
}

impl Cache {
    /// A cache that holds at most `capacity` bytes (at least [`MIN_CAPACITY`]) of blocks and fetches in flight.
    pub fn new(capacity: u64) -> Self {
        let capacity = capacity.max(MIN_CAPACITY);
        // An eighth keeps even fast links busy for a 1 GiB cache (128 MiB in flight); small caches need a larger share
        // to fetch a few chunks side by side, huge ones do not need more than 1 GiB.
        let fill_bytes = (capacity / 8).clamp(8 << 20, 1 << 30) as usize;
        let indexed = capacity - fill_bytes as u64;
        // A shard refuses what is larger than itself, so each must hold several of the largest usual blocks.
        let shards = (indexed / (64 << 20)).clamp(1, 16) as usize;
        let options = OptionsBuilder::new()
            .shards(shards)
            .weight_capacity(indexed)
            .estimated_items_capacity((indexed / (256 << 10)).max(64) as usize)
            .hot_allocation(HOT_SHARE)
            .build()
            .expect("all mandatory options are set");
        let blocks = quick_cache::sync::Cache::with_options(
            options,
            ByBytes,
            quick_cache::DefaultHashBuilder::default(),
            quick_cache::sync::DefaultLifecycle::default(),
        );
        Self {
            blocks,
            pool: Pool::new(fill_bytes),
            fill: Arc::new(Semaphore::new(fill_bytes / FILL_UNIT)),
            fill_bytes,
            capacity,
        }
    }

    /// The block under `key`, which counts as a use for the policy.
    pub fn get(&self, key: &BlockKey) -> Option<Arc<Block>> {
        self.blocks.get(key)
    }

    /// Whether there is a block under `key`, without counting as a use.
    pub fn contains(&self, key: &BlockKey) -> bool {
        self.blocks.contains_key(key)
    }

    /// Puts a block into the index; what the policy likes less goes.
    pub fn insert(&self, key: BlockKey, block: Arc<Block>) {
        self.blocks.insert(key, block);
    }

    /// Takes a block out of the index.
    pub fn remove(&self, key: &BlockKey) {
        self.blocks.remove(key);
    }

    /// Waits for a share of the fill budget for a buffer of `len` bytes. A buffer larger than the whole fill budget
    /// gets it alone.
    pub async fn reserve(&self, len: usize) -> Reservation {
        let permit = self.fill.clone().acquire_many_owned(self.units(len)).await;
        Reservation(permit.expect("the fill budget is never closed"))
    }

    /// A share of the fill budget for a buffer of `len` bytes if there is one now and half of the budget stays free
    /// for readers that wait.
    pub fn try_reserve(&self, len: usize) -> Option<Reservation> {
        let units = self.units(len);
        let free = self.fill.available_permits();
        if free < units as usize + self.fill_bytes / FILL_UNIT / 2 {
            return None;
        }
        self.fill.clone().try_acquire_many_owned(units).ok().map(Reservation)
    }

    /// A buffer of `len` bytes with unspecified content, accounted to the caller's reservation.
    pub fn buffer(&self, len: usize) -> Buffer {
        self.pool.take(len)
    }

    /// How many bytes one reader may be run ahead of: no more than speculation may have in flight, and no more than
    /// half of what the policy keeps for blocks that nobody has read yet, or they would be gone before their time.
    pub fn speculation_limit(&self) -> u64 {
        let unread = (self.blocks.capacity() as f64 * (1.0 - HOT_SHARE)) as u64;
        (self.fill_bytes as u64 / 2).min(unread / 2)
    }

    /// How much memory is held now.
    pub fn usage(&self) -> Usage {
        Usage { capacity: self.capacity, used: self.blocks.weight(), allocated: self.pool.allocated() }
    }

    fn units(&self, len: usize) -> u32 {
        let len = Buffer::footprint_of(len).min(self.fill_bytes);
        u32::try_from(len.div_ceil(FILL_UNIT)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn key(n: u64) -> BlockKey {
        BlockKey { fid: FileId { volume: 1, key: n, cookie: 7 }, chunk_size: 1 << 20, part: Part::Whole }
    }

    fn fill(cache: &Cache, n: u64, len: usize) {
        let mut buffer = cache.buffer(len);
        buffer.fill(n as u8);
        cache.insert(key(n), Arc::new(Block::demanded(buffer)));
    }

    #[test]
    fn memory_stays_within_the_budget() {
        let cache = Cache::new(64 << 20);
        for n in 0..500 {
            fill(&cache, n, 1 << 20);
            let usage = cache.usage();
            assert!(usage.used <= usage.capacity, "{usage:?}");
            assert!(usage.allocated <= usage.capacity, "{usage:?}");
        }
        let found: Vec<_> = (0..500).filter_map(|n| Some((n, cache.get(&key(n))?))).collect();
        assert!(found.len() > 40, "{}", found.len());
        for (n, block) in found {
            assert!(block.iter().all(|&b| b == n as u8));
        }
    }

    #[test]
    fn a_pinned_block_outlives_its_eviction() {
        let cache = Cache::new(MIN_CAPACITY);
        fill(&cache, 0, 1 << 20);
        let pinned = cache.get(&key(0)).unwrap();
        for n in 1..100 {
            fill(&cache, n, 1 << 20);
        }
        cache.remove(&key(0));
        assert!(cache.get(&key(0)).is_none());
        assert!(pinned.iter().all(|&b| b == 0));
    }

    #[tokio::test]
    async fn speculation_leaves_half_of_the_fill_budget() {
        let cache = Cache::new(64 << 20);
        let mut held = Vec::new();
        while let Some(share) = cache.try_reserve(1 << 20) {
            held.push(share);
        }
        assert_eq!(held.len(), 4);
        for _ in 0..4 {
            held.push(cache.reserve(1 << 20).await);
        }
        assert!(cache.try_reserve(1).is_none());
    }

    #[tokio::test]
    async fn one_fetch_may_be_larger_than_the_fill_budget() {
        let cache = Cache::new(MIN_CAPACITY);
        drop(cache.reserve(1 << 30).await);
        drop(cache.reserve(1 << 30).await);
    }

    #[derive(Debug, Default)]
    struct Tally {
        used: AtomicUsize,
        wasted: AtomicUsize,
    }

    impl PrefetchOutcome for Tally {
        fn used(&self, bytes: usize) {
            self.used.fetch_add(bytes, Ordering::Relaxed);
        }
        fn wasted(&self, bytes: usize) {
            self.wasted.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_prefetched_block_is_counted_once() {
        let cache = Cache::new(MIN_CAPACITY);
        let tally = Arc::new(Tally::default());
        let used = Block::prefetched(cache.buffer(100), tally.clone());
        used.mark_read();
        used.mark_read();
        drop(used);
        drop(Block::prefetched(cache.buffer(10), tally.clone()));
        drop(Block::demanded(cache.buffer(1)));
        assert_eq!(tally.used.load(Ordering::Relaxed), 100);
        assert_eq!(tally.wasted.load(Ordering::Relaxed), 10);
    }
}
