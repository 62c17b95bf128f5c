//! Remembers what was used lately, to tell a second use from a first.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many uses are remembered, about: of blocks of 4 MiB, those of 4 TiB; for 4 MiB of memory.
const SLOTS: usize = 1 << 20;

/// A table of fingerprints, each of which displaces what was in its place. Of two uses that are
/// close to each other the second is almost always recognised; one in four billion is taken for a
/// second use that is none, which costs a write.
#[derive(Debug)]
pub(super) struct RecentUses(Box<[AtomicU32]>);

impl RecentUses {
    pub(super) fn new() -> Self {
        Self((0..SLOTS).map(|_| AtomicU32::new(0)).collect())
    }

    /// Remembers the use of what has this hash. Returns whether it was remembered before.
    pub(super) fn insert(&self, hash: u64) -> bool {
        let fingerprint = ((hash >> 32) as u32).max(1);
        self.0[hash as usize % SLOTS].swap(fingerprint, Ordering::Relaxed) == fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_use_is_recognised() {
        let recent = RecentUses::new();
        let hashes = (1u64..1000).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        assert!(!hashes.clone().any(|hash| recent.insert(hash)));
        let known = hashes.filter(|hash| recent.insert(*hash)).count();
        assert!(known > 990, "{known}");
    }
}
