//! Blocks that the cache does not take, kept for a while for their readers.
//!
//! A block that is larger than a quarter of the cache, or that finds no room, is fetched into
//! memory of its own. Without this, that memory would be freed once the reads that wait for it are
//! answered. Reads are much smaller than chunks, so the next read would fetch all of the block
//! again: a compressed chunk of 90 MiB a hundred times over. So blocks read within
//! [`IDLE_TIMEOUT`] are kept: as many bytes as a quarter of the cache, and always the last
//! [`MIN_BLOCKS`] blocks, since a reader goes from one to the next.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::cache::{BlockKey, PinnedBlock};
use crate::vital;

/// How long a block is kept after its last read.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// As many blocks are kept however large they are.
const MIN_BLOCKS: usize = 2;

/// Blocks outside of the cache.
pub(super) struct UncachedBlocks {
    max_bytes: usize,
    runtime: Handle,
    /// The most recently read block is the last.
    blocks: Mutex<Vec<UncachedBlock>>,
}

struct UncachedBlock {
    key: BlockKey,
    block: PinnedBlock,
    last_used: Instant,
}

impl UncachedBlocks {
    /// None yet; keeps `max_bytes` at most, apart from the last [`MIN_BLOCKS`].
    pub(super) fn new(max_bytes: u64, runtime: Handle) -> Arc<Self> {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        Arc::new(Self { max_bytes, runtime, blocks: Mutex::default() })
    }

    /// The block under `key`, if it is kept.
    pub(super) fn get(&self, key: &BlockKey) -> Option<PinnedBlock> {
        let mut blocks = self.blocks.lock();
        let at = blocks.iter().position(|kept| kept.key == *key)?;
        let mut found = blocks.remove(at);
        found.last_used = Instant::now();
        let block = found.block.clone();
        blocks.push(found);
        Some(block)
    }

    /// Keeps a block that was just fetched.
    pub(super) fn insert(self: &Arc<Self>, key: BlockKey, block: PinnedBlock) {
        let mut blocks = self.blocks.lock();
        if blocks.is_empty() {
            self.runtime.spawn(vital::task("blocks outside of the cache", drop_idle(Arc::downgrade(self))));
        }
        blocks.retain(|kept| kept.key != key);
        blocks.push(UncachedBlock { key, block, last_used: Instant::now() });
        let mut bytes = 0;
        let fitting = blocks.iter().rev().enumerate().take_while(|(nth, kept)| {
            bytes += kept.block.len();
            *nth < MIN_BLOCKS || bytes <= self.max_bytes
        });
        let excess = blocks.len() - fitting.count();
        blocks.drain(..excess);
    }
}

/// Drops idle blocks, until none is left.
async fn drop_idle(uncached: Weak<UncachedBlocks>) {
    loop {
        sleep(IDLE_TIMEOUT).await;
        let Some(uncached) = uncached.upgrade() else { return };
        let mut blocks = uncached.blocks.lock();
        blocks.retain(|kept| kept.last_used.elapsed() < IDLE_TIMEOUT);
        if blocks.is_empty() {
            return;
        }
    }
}
