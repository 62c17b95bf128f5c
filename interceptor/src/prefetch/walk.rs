//! Finds readers that walk through the small files of a directory in the order of its listing, as
//! copies, archivers and many loaders do, and tells how many files to read ahead of them.
//!
//! A file is known by its index in a listing. A step to one of the next few files continues a
//! walk, as several readers may share the work and some files may be skipped. A step elsewhere
//! ends it. Like a stream of bytes, a walk earns its window. In a small directory a shuffled order
//! has such steps too, so after waste it takes more steps to trust a walk.

use std::ops::Range;
use std::sync::Arc;

use super::stats::PrefetchStats;

/// Walks followed at the same time.
const MAX_WALKS: usize = 16;
/// Files from one step of a walk to the next, at most.
const MAX_STEP: usize = 8;
/// Steps after which a walk is trusted.
const MIN_STEPS: u32 = 2;
/// The same while more than one in [`WASTE_DIVISOR`] of the bytes fetched for walks was wasted.
const MIN_STEPS_AFTER_WASTE: u32 = 8;
/// See [`MIN_STEPS_AFTER_WASTE`].
const WASTE_DIVISOR: u64 = 8;
/// Bounds of the window, in files.
const WINDOW_LIMITS: Range<usize> = 8..64;

/// The walks of a mount, each in a listing of its own.
#[derive(Debug, Default)]
pub struct Walks {
    walks: Vec<DirectoryWalk>,
    stats: Arc<PrefetchStats>,
    clock: u64,
}

#[derive(Debug)]
struct DirectoryWalk {
    listing: u64,
    at: usize,
    steps: u32,
    window: usize,
    advised: usize,
    used: u64,
}

impl Walks {
    /// Notes that the file at `index` of a listing is read, and returns the indices of the files
    /// to fetch now. They may be beyond the end of the listing.
    pub fn observe(&mut self, listing: u64, index: usize) -> Range<usize> {
        self.clock += 1;
        let used = self.clock;
        let totals = self.stats.totals();
        let is_wasteful = totals.wasted * WASTE_DIVISOR > totals.used + totals.wasted;
        let Some(walk) = self.walks.iter_mut().find(|walk| walk.listing == listing) else {
            let walk = DirectoryWalk { listing, at: index, steps: 0, window: 0, advised: 0, used };
            if self.walks.len() < MAX_WALKS {
                self.walks.push(walk);
            } else if let Some(oldest) = self.walks.iter_mut().min_by_key(|walk| walk.used) {
                *oldest = walk;
            }
            return 0..0;
        };
        walk.used = used;
        if index.abs_diff(walk.at) > MAX_STEP {
            *walk = DirectoryWalk { listing, at: index, steps: 0, window: 0, advised: 0, used };
            return 0..0;
        }
        if index > walk.at {
            walk.at = index;
            walk.steps += 1;
        }
        walk.advise(if is_wasteful { MIN_STEPS_AFTER_WASTE } else { MIN_STEPS })
    }

    /// Must be told what becomes of all bytes that are fetched for walks.
    pub fn stats(&self) -> &Arc<PrefetchStats> {
        &self.stats
    }
}

impl DirectoryWalk {
    fn advise(&mut self, min_steps: u32) -> Range<usize> {
        if self.steps < min_steps {
            return 0..0;
        }
        let next = self.at + 1;
        let from = self.advised.max(next);
        if from - next > self.window / 2 {
            return 0..0;
        }
        self.window = (self.window * 2).clamp(WINDOW_LIMITS.start, WINDOW_LIMITS.end);
        self.advised = next + self.window;
        from..self.advised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_in_order_finds_nearly_every_file_fetched() {
        let mut walks = Walks::default();
        let mut fetched = vec![false; 2000];
        let mut missed = 0;
        for index in 0..1000 {
            missed += usize::from(!fetched[index]);
            for ahead in walks.observe(1, index) {
                assert!(!fetched[ahead], "{ahead} is advised once");
                fetched[ahead] = true;
            }
        }
        assert_eq!(missed, 3);
        assert!(fetched[1000 + WINDOW_LIMITS.end..].iter().all(|fetched| !fetched));
    }

    #[test]
    fn two_readers_that_share_a_directory_are_one_walk() {
        let mut walks = Walks::default();
        let order = (0..500).flat_map(|pair| [pair * 2 + 1, pair * 2]);
        let advised: usize = order.map(|index| walks.observe(1, index).len()).sum();
        assert!(advised >= 990, "{advised}");
    }

    #[test]
    fn a_shuffled_order_is_no_walk() {
        let mut walks = Walks::default();
        let advised: usize = (0..1000).map(|i| walks.observe(1, i * 617 % 1000).len()).sum();
        assert_eq!(advised, 0);
    }

    #[test]
    fn after_much_waste_it_takes_more_steps() {
        let mut walks = Walks::default();
        let steps = |walks: &mut Walks, listing| {
            (0..100).position(|index| !walks.observe(listing, index).is_empty()).unwrap()
        };
        assert_eq!(steps(&mut walks, 1), 2);
        walks.stats().wasted(10);
        assert_eq!(steps(&mut walks, 2), 8);
        walks.stats().used(70);
        assert_eq!(steps(&mut walks, 3), 2);
    }

    #[test]
    fn walks_in_many_directories_do_not_pile_up() {
        let mut walks = Walks::default();
        for listing in 0..1000 {
            walks.observe(listing, 0);
        }
        assert_eq!(walks.walks.len(), MAX_WALKS);
    }
}
