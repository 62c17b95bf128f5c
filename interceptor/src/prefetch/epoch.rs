//! Finds jobs that read the same small files again and again, as training does once per epoch, and
//! tells which files to fetch before they are read.
//!
//! The order in which files are first read is the *epoch*. It ends when nearly every file that is
//! read has been read in it before, after a time in which that hardly ever happened. If that
//! happens gradually instead, because some files are popular, there is no epoch, and nothing is
//! predicted. In the next epoch there are two cases:
//!
//! * **The order is the same.** If a file is read soon after the file that it followed last time,
//!   its successors of last time are next. Several workers that share the order are several such
//!   places at once.
//! * **The order is new.** Then only the set is known. Every file that has not been read yet will
//!   be, but not when, so to fetch it pays only if it stays in the cache until the end of the
//!   epoch. It does once the bytes left to fetch are few compared to the cache. From then on a
//!   part of the cache is kept full of such files.
//!
//! Files are known by the numbers of their nodes, which do not change while a file exists. At most
//! 2^20 of them are remembered, for 60 bytes each or less; larger epochs are not followed. Wasted
//! bytes count against the predictions: after too many of them nothing is predicted for the rest
//! of the epoch and, each time this happens again, for more epochs after it.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::stats::PrefetchStats;

/// Files that are remembered, at most.
const MAX_FILES: usize = 1 << 20;
/// An epoch of fewer files is not worth predicting.
const MIN_EPOCH_FILES: usize = 64;
/// Two reads of a file with at most so many other files between them are one use of it. Files that
/// are at most so far apart follow each other.
const MAX_REORDERING: usize = 64;
/// Of the latest reads, so many...
const RECENT_READS: u32 = 16;
/// ...are the rule if so many are of one kind.
const MIN_RECENT_MATCHES: u32 = 12;
/// At most one in so many reads of an epoch is of a file that was read before in it.
const REPEAT_DIVISOR: usize = 20;
/// So many files before a file in the order of last time count as its predecessors.
const PREDECESSORS: usize = 3;
/// Limits of the number of files to be ahead in an order that repeats.
const WINDOW_LIMITS: RangeInclusive<usize> = 8..=128;
/// Files advised at one read if only the set is known.
const FILES_PER_READ: usize = 4;
/// Reads of an epoch after which the hit ratio is used.
const MIN_SAMPLES: u64 = 64;
/// Predictions have failed if more than one in so many of the fetched bytes was wasted.
const WASTE_DIVISOR: u64 = 5;
/// Epochs that pass without predictions after a failure, at most.
const MAX_PAUSED_EPOCHS: u32 = 16;

/// The epochs of a mount.
#[derive(Debug)]
pub struct Epochs {
    /// Bytes that may be fetched and not yet read.
    budget: u64,
    /// Bytes that may be left to fetch if only the set is known.
    max_missing: u64,
    /// The present epoch, from 1.
    number: u32,
    seen: HashMap<u64, LastRead, RandomState>,
    /// The files of the epoch before, in the order of their first reads; empty if that was no
    /// epoch.
    before: Vec<u64>,
    /// The files of the present epoch.
    present: Vec<u64>,
    present_bytes: u64,
    /// Bytes of files of `before` that have not been read in the present epoch.
    left: u64,
    /// Reads of files that were read before in the present epoch.
    repeats: usize,
    /// The latest of these files, with their sizes.
    again: VecDeque<(u64, u64)>,
    /// For each of the latest reads a bit: whether it was such a read.
    was_again: u16,
    /// For each of the latest reads a bit: whether it followed a file that it followed in the
    /// epoch before.
    followed: u16,
    /// Files to be ahead in an order that repeats, and files read since that changed.
    window: usize,
    consumed: usize,
    /// Reads in the present epoch, and how many of them were hits.
    answered: u64,
    hits: u64,
    ahead: EpochPrefetch,
    /// Epochs to pass without predictions, and how many to pass after the next failure.
    pause: u32,
    next_pause: u32,
}

/// When a file was last read.
#[derive(Debug, Clone, Copy)]
struct LastRead {
    epoch: u32,
    /// Its place in the order of that epoch.
    place: u32,
}

/// What was predicted in the present epoch.
#[derive(Debug, Default)]
struct EpochPrefetch {
    /// Files that were fetched and not read yet.
    files: HashSet<u64, RandomState>,
    /// Bytes fetched.
    bytes: u64,
    stats: Arc<PrefetchStats>,
    /// If only the set is known: files of the epoch before up to this place have been considered.
    looked_at: usize,
    failed: bool,
}

impl EpochPrefetch {
    /// Fetched bytes that are neither used nor wasted yet.
    fn outstanding(&self) -> u64 {
        let totals = self.stats.totals();
        self.bytes.saturating_sub(totals.used + totals.wasted)
    }
}

impl Epochs {
    /// Nothing known yet, for a cache of `capacity` bytes in which `budget` bytes may wait for
    /// readers.
    pub fn new(capacity: u64, budget: u64) -> Self {
        Self {
            budget,
            max_missing: capacity / 2,
            number: 1,
            seen: HashMap::default(),
            before: Vec::new(),
            present: Vec::new(),
            present_bytes: 0,
            left: 0,
            repeats: 0,
            again: VecDeque::new(),
            was_again: 0,
            followed: 0,
            window: *WINDOW_LIMITS.start(),
            consumed: 0,
            answered: 0,
            hits: 0,
            ahead: EpochPrefetch::default(),
            pause: 0,
            next_pause: 1,
        }
    }

    /// Notes that the cache has `capacity` bytes now, of which `budget` may wait for readers.
    pub fn resize(&mut self, capacity: u64, budget: u64) {
        self.max_missing = capacity / 2;
        self.budget = budget;
    }

    /// Notes that `file`, of `size` bytes, is read from its beginning, and returns the files to
    /// fetch now, the most urgent first. For each of them, [`fetching`](Self::fetching) or
    /// [`declined`](Self::declined) must be called.
    pub fn observe(&mut self, file: u64, size: u64) -> Vec<u64> {
        let seen = self.seen.get(&file).copied();
        match seen {
            Some(seen) if seen.epoch == self.number => {
                if self.present.len() - seen.place as usize > MAX_REORDERING {
                    self.read_again(file, size);
                }
                Vec::new()
            }
            _ => self.read_first(file, size, seen),
        }
    }

    /// Notes whether a small file's read was a hit.
    pub fn answered(&mut self, hit: bool) {
        self.answered += 1;
        self.hits += u64::from(hit);
    }

    /// Notes that an advised file is cached, being fetched, or gone for good. `bytes` are being
    /// fetched, which must be counted in the [`stats`](Self::stats).
    pub fn fetching(&mut self, file: u64, bytes: u64) {
        self.ahead.files.insert(file);
        self.ahead.bytes += bytes;
    }

    /// Notes that there was no room for an advised file.
    pub fn declined(&mut self, file: u64) {
        if let Some(seen) = self.seen.get(&file)
            && seen.epoch + 1 == self.number
        {
            self.ahead.looked_at = self.ahead.looked_at.min(seen.place as usize);
        }
    }

    /// Must be told what becomes of all bytes that are fetched for the present epoch.
    pub fn stats(&self) -> &Arc<PrefetchStats> {
        &self.ahead.stats
    }

    /// Notes a read of a file that was read before in the epoch.
    fn read_again(&mut self, file: u64, size: u64) {
        self.repeats += 1;
        self.was_again = self.was_again << 1 | 1;
        if self.again.len() == RECENT_READS as usize {
            self.again.pop_front();
        }
        self.again.push_back((file, size));
        if self.was_again.count_ones() >= MIN_RECENT_MATCHES {
            self.begin_anew();
        }
    }

    fn read_first(&mut self, file: u64, size: u64, seen: Option<LastRead>) -> Vec<u64> {
        if seen.is_none() && self.seen.len() >= MAX_FILES {
            self.forget_old();
        }
        let seen_now = LastRead { epoch: self.number, place: self.present.len() as u32 };
        self.seen.insert(file, seen_now);
        self.present.push(file);
        self.present_bytes += size;
        self.was_again <<= 1;
        let is_expected = |seen: &LastRead| seen.epoch + 1 == self.number && !self.before.is_empty();
        let Some(LastRead { place, .. }) = seen.filter(is_expected) else { return Vec::new() };
        self.left = self.left.saturating_sub(size);
        self.ahead.files.remove(&file);
        self.advise(place as usize)
    }

    /// What to fetch after a read of the file at `place` in the order of the epoch before.
    fn advise(&mut self, place: usize) -> Vec<u64> {
        let predecessors = &self.before[place.saturating_sub(PREDECESSORS)..place];
        let follows = place == 0 || predecessors.iter().any(|file| self.was_just_read(*file));
        self.followed = self.followed << 1 | u16::from(follows);
        if self.has_failed() || self.ahead.outstanding() >= self.budget {
            return Vec::new();
        }
        if self.followed.count_ones() >= MIN_RECENT_MATCHES {
            self.consumed += 1;
            if self.consumed >= self.window {
                self.consumed = 0;
                self.window = (self.window * 2).min(*WINDOW_LIMITS.end());
            }
            return if follows { self.successors(place) } else { Vec::new() };
        }
        self.window = *WINDOW_LIMITS.start();
        if self.missing() <= self.max_missing { self.members() } else { Vec::new() }
    }

    /// The files that followed last time, within the window, without those that were advised
    /// before.
    fn successors(&self, place: usize) -> Vec<u64> {
        let next = place + 1..(place + 1 + self.window).min(self.before.len());
        let new = self.before[next].iter().rev().take_while(|file| !self.ahead.files.contains(*file));
        let mut files: Vec<u64> = new.filter(|file| !self.was_read(**file)).copied().collect();
        files.reverse();
        files
    }

    /// A few of the files that are still to be read in the epoch.
    fn members(&mut self) -> Vec<u64> {
        let mut files = Vec::with_capacity(FILES_PER_READ);
        while let Some(&file) = self.before.get(self.ahead.looked_at)
            && files.len() < FILES_PER_READ
        {
            self.ahead.looked_at += 1;
            if !self.was_read(file) && !self.ahead.files.contains(&file) {
                files.push(file);
            }
        }
        files
    }

    fn was_read(&self, file: u64) -> bool {
        self.seen.get(&file).is_some_and(|seen| seen.epoch == self.number)
    }

    fn was_just_read(&self, file: u64) -> bool {
        let soon = |seen: &LastRead| self.present.len() - seen.place as usize <= MAX_REORDERING;
        self.seen.get(&file).filter(|seen| seen.epoch == self.number).is_some_and(soon)
    }

    /// Bytes to fetch until the end of the epoch: those left to read, less the share of hits among
    /// the reads so far.
    fn missing(&self) -> u64 {
        match self.answered {
            0..MIN_SAMPLES => self.left,
            answered => {
                (u128::from(self.left) * u128::from(answered - self.hits) / u128::from(answered)) as u64
            }
        }
    }

    /// Whether predictions have failed, in this epoch or one not long before.
    fn has_failed(&mut self) -> bool {
        if self.pause == 0 && !self.ahead.failed {
            let totals = self.ahead.stats.totals();
            // A few files wasted at the very beginning prove nothing.
            let much = totals.wasted > self.budget / 4;
            self.ahead.failed = much && totals.wasted * WASTE_DIVISOR > totals.used + totals.wasted;
        }
        self.pause > 0 || self.ahead.failed
    }

    /// Begins the next epoch. The files that showed the end of the last one are its first.
    fn begin_anew(&mut self) {
        let regular = (self.repeats - self.again.len()) * REPEAT_DIVISOR <= self.present.len();
        self.pause = self.pause.saturating_sub(1);
        if self.ahead.failed {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(MAX_PAUSED_EPOCHS);
        } else if self.ahead.bytes > 0 {
            self.next_pause = 1;
        }
        self.number += 1;
        self.before = std::mem::take(&mut self.present);
        self.left = std::mem::take(&mut self.present_bytes);
        if !regular || self.before.len() < MIN_EPOCH_FILES {
            self.before = Vec::new();
        }
        self.repeats = 0;
        self.was_again = 0;
        self.followed = 0;
        self.answered = 0;
        self.hits = 0;
        self.ahead = EpochPrefetch::default();
        if self.seen.len() > self.before.len() * 2 {
            self.forget_old();
        }
        for (file, size) in std::mem::take(&mut self.again) {
            self.observe(file, size);
        }
        // What these reads advised was not fetched.
        self.ahead.looked_at = 0;
    }

    /// Forgets the files of older epochs. If that does not help, the epoch is too long, and
    /// everything is forgotten.
    fn forget_old(&mut self) {
        let number = self.number;
        self.seen.retain(|_, seen| seen.epoch + 1 >= number);
        if self.seen.len() >= MAX_FILES {
            *self = Self { number: self.number, ..Self::new(self.max_missing * 2, self.budget) };
        }
        self.seen.shrink_to_fit();
    }
}
