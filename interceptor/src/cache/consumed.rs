//! The names of blocks that streams have read to their end.

use std::collections::{HashSet, VecDeque};

use foldhash::fast::RandomState;

use super::key::BlockKey;
use super::sync::Mutex;

/// How many are remembered: 64 GiB of blocks of 4 MiB, for about 2 MiB of memory.
const REMEMBERED: usize = 16 << 10;

/// Remembers the latest of them.
#[derive(Debug, Default)]
pub(super) struct Consumed(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    known: HashSet<BlockKey, RandomState>,
    in_order: VecDeque<BlockKey>,
}

impl Consumed {
    /// Remembers a name. Returns whether it was new.
    pub(super) fn note(&self, key: BlockKey) -> bool {
        let mut names = self.0.lock();
        let is_new = names.known.insert(key);
        if is_new {
            names.in_order.push_back(key);
            if names.in_order.len() > REMEMBERED
                && let Some(oldest) = names.in_order.pop_front()
            {
                names.known.remove(&oldest);
            }
        }
        is_new
    }
}
