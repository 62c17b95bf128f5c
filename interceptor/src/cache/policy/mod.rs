//! Decides which blocks stay in memory.
//!
//! A [`Policy`] knows keys and weights (bytes of memory that an entry takes), never the entries.
//! The cache reports what happens to its entries. When memory is needed, the policy shows
//! [candidates](Policy::scan_candidates) for eviction, coldest first; the cache picks those that
//! suit it (not pinned, of a useful size, beside other cold memory) and reports them with
//! [`Policy::evict`]. So pins and the layout of memory stay out of the policy, and the ranking
//! stays out of the cache.
//!
//! The cache uses [`AdaptiveLirs`]: [`Lirs`] with two parameters that are chosen while it runs.
//! Why not something simpler, as miss ratios (caches of 1, 5, 10, 20 and 40 % of the distinct
//! blocks; QuickCache is the crate `quick_cache` 0.7):
//!
//! | | block I/O (CloudPhysics) | Zipf 0.8 | sliding working set |
//! |---|---|---|---|
//! | LRU | .838 .825 .805 .725 .633 | .826 .655 .553 .427 .274 | .865 .456 .183 .109 .109 |
//! | ARC | .828 .811 .773 .703 .568 | .718 .563 .480 .384 .261 | .854 .452 .172 .112 .112 |
//! | S3-FIFO | .830 .799 .747 .671 .618 | .710 .555 .470 .373 .253 | .867 .504 .296 .187 .137 |
//! | QuickCache | .830 .820 .785 .698 .533 | .702 .543 .457 .359 .245 | .885 .509 .277 .191 .154 |
//! | LIRS | .831 .803 .731 .644 .519 | .721 .570 .490 .383 .252 | .850 .462 .237 .191 .168 |
//! | adaptive | .830 .802 .731 .645 .519 | .703 .547 .460 .361 .246 | .851 .462 .191 .117 .121 |
//!
//! Each of the classical policies is far behind on one of the three loads. With its parameters,
//! LIRS acts as whichever policy fits.

mod adaptive;
mod lirs;
mod list;
#[cfg(test)]
mod tests;

use std::fmt;

pub use adaptive::AdaptiveLirs;
pub use lirs::{Lirs, LirsParams};

/// Why an entry comes into the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmitReason {
    /// A reader asked for it.
    Demand,
    /// A reader is expected to ask for it. Its first use is its first reference.
    Prefetch,
}

/// How the policy ranks an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temperature {
    /// Used once, or long ago.
    Cold,
    /// Prefetched and not yet used.
    Unread,
    /// Used again and again.
    Hot,
}

/// An entry that may be evicted.
#[derive(Debug, Clone, Copy)]
pub struct EvictionCandidate<K> {
    /// The entry.
    pub key: K,
    /// How the policy ranks it.
    pub temperature: Temperature,
    /// Whether it was used so lately that a reader may be in the middle of it, and there is
    /// another candidate.
    pub is_recent: bool,
}

/// What the visitor of a scan says of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// Show the next one.
    Continue,
    /// It is in use: treat it as just used, and show the next one.
    InUse,
    /// End the scan.
    Stop,
}

/// Ranks entries of different weights. Every operation takes amortised constant time.
pub trait Policy<K>: fmt::Debug + Send {
    /// An entry of `weight` bytes came into the cache. Does nothing if it is known as present.
    fn admit(&mut self, key: K, weight: u64, reason: AdmitReason);

    /// The entry was used. Does nothing for an entry that is not present.
    fn touch(&mut self, key: &K);

    /// The entry is known to be hot from elsewhere: no entry is hotter now, used or not.
    fn mark_hot(&mut self, key: &K);

    /// The entry left because memory was needed; the policy may remember it as a ghost.
    fn evict(&mut self, key: &K);

    /// The entry left for a reason that says nothing about its use.
    fn forget(&mut self, key: &K);

    /// Shows entries to `visit`, the coldest first, until it says stop or enough were shown. The
    /// same entry may be shown twice.
    fn scan_candidates(&mut self, visit: &mut dyn FnMut(EvictionCandidate<K>) -> Scan);

    /// Whether the entry was evicted, and so lately that it would be hot if it were still there.
    fn is_missed(&self, key: &K) -> bool;

    /// How the policy ranks an entry; [`Temperature::Cold`] if it does not know it.
    fn temperature(&self, key: &K) -> Temperature;

    /// From now on, all entries together may weigh `capacity` bytes. Excess entries leave when
    /// memory is needed.
    fn set_capacity(&mut self, capacity: u64);

    /// The most bytes that unread entries may weigh together before they are evicted first.
    fn unread_limit(&self) -> u64;
}
