//! Decides which blocks stay in memory.
//!
//! A [`Policy`] knows keys and weights (bytes of memory that an entry takes), never the entries themselves. The cache
//! tells it what happens to its entries, and when memory is wanted the policy shows [candidates](Policy::candidates)
//! for eviction, coldest first; the cache takes those that suit it (not pinned, of a useful size, beside other cold
//! memory) and reports back with [`Policy::evict`]. So pins and the layout of memory stay out of the policy, and the
//! order of merit stays out of the cache.
//!
//! The one in use is [`Dueling`], which is [`Lirs`] with two parameters that are chosen while it runs. Why not
//! something simpler, as miss ratios (caches of 1, 5, 10, 20 and 40 % of the distinct blocks):
//!
//! | | block I/O (CloudPhysics) | Zipf 0.8 | sliding working set |
//! |---|---|---|---|
//! | LRU | .838 .825 .805 .725 .633 | .826 .655 .553 .427 .274 | .865 .456 .183 .109 .109 |
//! | ARC | .828 .811 .773 .703 .568 | .718 .563 .480 .384 .261 | .854 .452 .172 .112 .112 |
//! | S3-FIFO | .830 .799 .747 .671 .618 | .710 .555 .470 .373 .253 | .867 .504 .296 .187 .137 |
//! | `quick_cache` 0.7 | .830 .820 .785 .698 .533 | .702 .543 .457 .359 .245 | .885 .509 .277 .191 .154 |
//! | LIRS | .831 .803 .731 .644 .519 | .721 .570 .490 .383 .252 | .850 .462 .237 .191 .168 |
//! | here | .830 .802 .731 .645 .519 | .703 .547 .460 .361 .246 | .851 .462 .191 .117 .121 |
//!
//! Each of the classical policies is far behind on one of the three; the parameters make LIRS act as whichever fits.

mod dueling;
mod lirs;
mod list;
#[cfg(test)]
mod tests;

use std::fmt;

pub use dueling::Dueling;
pub use lirs::{Lirs, Traits};

/// Why an entry comes into the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// A reader asked for it.
    Demanded,
    /// Nobody has asked yet, somebody is expected to. Its first use is its first reference.
    Ahead,
}

/// How much the policy thinks of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warmth {
    /// Used once, or long ago.
    Cold,
    /// Fetched ahead and not yet used.
    Unread,
    /// Used again and again.
    Hot,
}

/// An entry that may be evicted.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<K> {
    /// The entry.
    pub key: K,
    /// What the policy thinks of it.
    pub warmth: Warmth,
    /// Whether it was used so lately that a reader may be in the middle of it, and there is something else to take.
    pub recent: bool,
}

/// What to do after a look at a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Show the next one.
    Next,
    /// It is in use: let it pass for newer than it is, and show the next one.
    InUse,
    /// Enough seen.
    Stop,
}

/// Keeps an order of merit among entries of different weights. Every operation takes amortised constant time.
pub trait Policy<K>: fmt::Debug + Send {
    /// An entry of `weight` bytes is there now. Does nothing if the policy knows it as present.
    fn admit(&mut self, key: K, weight: u64, arrival: Arrival);

    /// The entry was used. Does nothing for an entry that is not there.
    fn touch(&mut self, key: &K);

    /// The entry is known to be hot from elsewhere: nothing is hotter now, used or not.
    fn promote(&mut self, key: &K);

    /// The entry left because memory was wanted; the policy may remember it as a ghost.
    fn evict(&mut self, key: &K);

    /// The entry left for a reason that says nothing about its use.
    fn forget(&mut self, key: &K);

    /// Shows entries to `look`, the one to evict first being first, until it has seen enough or all that are worth
    /// looking at. The same entry may be shown twice.
    fn candidates(&mut self, look: &mut dyn FnMut(Candidate<K>) -> Look);

    /// What the policy thinks of an entry; [`Warmth::Cold`] if it does not know it.
    fn warmth(&self, key: &K) -> Warmth;

    /// From now on, entries may weigh `capacity` bytes in all. Those that are too many leave when memory is wanted.
    fn set_capacity(&mut self, capacity: u64);

    /// The most that unread entries may weigh in all before they are the first to go, in bytes.
    fn unread_limit(&self) -> u64;
}
