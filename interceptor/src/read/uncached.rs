//! Blocks that the cache does not take, blocks for their readers.
//!
//! A block that is larger than the cache's largest slot, or that finds no room, is brought into memory of its own, which is
//! free again once the reads that waited for it are answered. Reads are much smaller than chunks, so the next one would have
//! to fetch all of it again: a compressed chunk of 90 MiB a hundred times over. What was read in the last [`IDLE_TIMEOUT`] is
//! therefore blocks: as much of it as a quarter of the cache would be, and always the last two blocks, as a reader goes from
//! one to the next.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::cache::{BlockKey, Readable};
use crate::vital;

/// How long a block is blocks that nobody reads.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// This many blocks are blocks however large they are.
const MIN_BLOCKS: usize = 2;

/// Blocks outside of the cache.
pub(super) struct UncachedBlocks {
    max_bytes: usize,
    runtime: Handle,
    /// The one read last is at the end.
    blocks: Mutex<Vec<UncachedBlock>>,
}

struct UncachedBlock {
    key: BlockKey,
    block: Readable,
    last_used: Instant,
}

impl UncachedBlocks {
    /// None yet; `max_bytes` at most, apart from the last two.
    pub(super) fn new(max_bytes: u64, runtime: Handle) -> Arc<Self> {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        Arc::new(Self { max_bytes, runtime, blocks: Mutex::default() })
    }

    /// The block under `key`, if it is blocks.
    pub(super) fn get(&self, key: &BlockKey) -> Option<Readable> {
        let mut blocks = self.blocks.lock();
        let at = blocks.iter().position(|blocks| blocks.key == *key)?;
        let mut found = blocks.remove(at);
        found.last_used = Instant::now();
        let block = found.block.clone();
        blocks.push(found);
        Some(block)
    }

    /// Holds a block that was just fetched.
    pub(super) fn insert(self: &Arc<Self>, key: BlockKey, block: Readable) {
        let mut blocks = self.blocks.lock();
        if blocks.is_empty() {
            self.runtime.spawn(vital::task("blocks outside of the cache", drop_idle(Arc::downgrade(self))));
        }
        blocks.retain(|blocks| blocks.key != key);
        blocks.push(UncachedBlock { key, block, last_used: Instant::now() });
        let mut bytes = 0;
        let fitting = blocks.iter().rev().enumerate().take_while(|(nth, blocks)| {
            bytes += blocks.block.len();
            *nth < MIN_BLOCKS || bytes <= self.max_bytes
        });
        let excess = blocks.len() - fitting.count();
        blocks.drain(..excess);
    }
}

/// Lets go of what nobody reads any more, until nothing is blocks.
async fn drop_idle(blocks: Weak<UncachedBlocks>) {
    loop {
        sleep(IDLE_TIMEOUT).await;
        let Some(blocks) = blocks.upgrade() else { return };
        let mut blocks = blocks.blocks.lock();
        blocks.retain(|blocks| blocks.last_used.elapsed() < IDLE_TIMEOUT);
        if blocks.is_empty() {
            return;
        }
    }
}
