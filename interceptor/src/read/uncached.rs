//! Blocks that the cache does not take, held for their readers.
//!
//! A block that is larger than the cache's largest slot, or that finds no room, is brought into memory of its own, which is
//! free again once the reads that waited for it are answered. Reads are much smaller than chunks, so the next one would have
//! to fetch all of it again: a compressed chunk of 90 MiB a hundred times over. What was read in the last [`HELD_FOR`] is
//! therefore held: as much of it as a quarter of the cache would be, and always the last two blocks, as a reader goes from
//! one to the next.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::cache::{BlockKey, Readable};
use crate::vital;

/// How long a block is held that nobody reads.
const HELD_FOR: Duration = Duration::from_secs(5);
/// This many blocks are held however large they are.
const LEAST_BLOCKS: usize = 2;

/// Blocks outside of the cache.
pub(super) struct UncachedBlocks {
    max_bytes: usize,
    runtime: Handle,
    /// The one read last is at the end.
    held: Mutex<Vec<Held>>,
}

struct Held {
    key: BlockKey,
    block: Readable,
    used: Instant,
}

impl UncachedBlocks {
    /// None yet; `max_bytes` at most, apart from the last two.
    pub(super) fn new(max_bytes: u64, runtime: Handle) -> Arc<Self> {
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        Arc::new(Self { max_bytes, runtime, held: Mutex::default() })
    }

    /// The block under `key`, if it is held.
    pub(super) fn get(&self, key: &BlockKey) -> Option<Readable> {
        let mut held = self.held.lock();
        let at = held.iter().position(|held| held.key == *key)?;
        let mut found = held.remove(at);
        found.used = Instant::now();
        let block = found.block.clone();
        held.push(found);
        Some(block)
    }

    /// Holds a block that was just fetched.
    pub(super) fn hold(self: &Arc<Self>, key: BlockKey, block: Readable) {
        let mut held = self.held.lock();
        if held.is_empty() {
            self.runtime.spawn(vital::task("blocks outside of the cache", let_go(Arc::downgrade(self))));
        }
        held.retain(|held| held.key != key);
        held.push(Held { key, block, used: Instant::now() });
        let mut bytes = 0;
        let fitting = held.iter().rev().enumerate().take_while(|(nth, held)| {
            bytes += held.block.len();
            *nth < LEAST_BLOCKS || bytes <= self.max_bytes
        });
        let excess = held.len() - fitting.count();
        held.drain(..excess);
    }
}

/// Lets go of what nobody reads any more, until nothing is held.
async fn let_go(blocks: Weak<UncachedBlocks>) {
    loop {
        sleep(HELD_FOR).await;
        let Some(blocks) = blocks.upgrade() else { return };
        let mut held = blocks.held.lock();
        held.retain(|held| held.used.elapsed() < HELD_FOR);
        if held.is_empty() {
            return;
        }
    }
}
