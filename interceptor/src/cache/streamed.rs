//! The keys of blocks that streams have read to their end.

use std::collections::{HashSet, VecDeque};

use foldhash::fast::RandomState;

use super::key::BlockKey;
use super::sync::Mutex;

/// How many keys are remembered: those of 64 GiB in blocks of 4 MiB, for about 2 MiB of memory.
const MAX_STREAMED_KEYS: usize = 16 << 10;

/// Remembers the latest [`MAX_STREAMED_KEYS`] keys.
#[derive(Debug, Default)]
pub(super) struct StreamedKeys(Mutex<OrderedKeys>);

#[derive(Debug, Default)]
struct OrderedKeys {
    set: HashSet<BlockKey, RandomState>,
    /// The same keys, oldest first.
    queue: VecDeque<BlockKey>,
}

impl StreamedKeys {
    /// Remembers a key. Returns whether it was new.
    pub(super) fn insert(&self, key: BlockKey) -> bool {
        let mut keys = self.0.lock();
        let is_new = keys.set.insert(key);
        if is_new {
            keys.queue.push_back(key);
            if keys.queue.len() > MAX_STREAMED_KEYS
                && let Some(oldest) = keys.queue.pop_front()
            {
                keys.set.remove(&oldest);
            }
        }
        is_new
    }
}
