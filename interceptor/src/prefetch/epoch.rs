//! Finds jobs that read the same small files again and again, as training does once per epoch, and says which files to
//! fetch before their turn.
//!
//! The order in which files are first read is the *epoch*. When nearly every file that is read has been read in it before, after
//! a time in which that hardly ever happened, it is over and another begins; what happens gradually instead (some files are
//! liked more than others) is no epoch, and nothing is predicted from it. In the next epoch there are two cases:
//!
//! * **The order is the same.** Where a file is read soon after the one that it followed last time, its successors of
//!   last time are next. Several workers that share the order are several such places at once.
//! * **The order is new.** Then only the set is known. Every file that has not been read yet will be, but nobody knows when, so
//!   fetching it pays only if it stays in the cache until the end of the epoch. That is so once what is left to be fetched
//!   is small compared to the cache. From then on a part of the cache is kept full of such files.
//!
//! Files are known by the numbers of their nodes, which stay the same while a file does, and 2^20 of them at most are remembered,
//! for 60 bytes each or less. More are not followed. What was fetched for nothing is held against the prediction: after too
//! much of it nothing is predicted for the rest of the epoch and, each time it happens again, for more epochs after it.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::stats::PrefetchStats;

/// Most files that are remembered.
const MAX_FILES: usize = 1 << 20;
/// An epoch of fewer files is not worth predicting.
const MIN_EPOCH_FILES: usize = 64;
/// Two reads of a file within as many reads of other files are one use of it; and files within as many follow each other.
const MAX_REORDERING: usize = 64;
/// Of this many reads, the latest...
const RECENT_READS: u32 = 16;
/// ...this many of one kind make it the rule.
const MIN_RECENT_MATCHES: u32 = 12;
/// Of an epoch's reads, at most one in this many is of a file that had its turn already.
const REPEAT_DIVISOR: usize = 20;
/// How many files before a file in the order of last time count as its predecessors.
const PREDECESSORS: usize = 3;
/// Bounds of how many files to be ahead in an order that repeats.
const WINDOW_LIMITS: RangeInclusive<usize> = 8..=128;
/// Files advised at one read when only the set is known.
const FILES_PER_READ: usize = 4;
/// Reads of an epoch after which the share of hits is believed.
const MIN_SAMPLES: u64 = 64;
/// Of what was fetched, more than one part in this many wasted is too much.
const WASTE_DIVISOR: u64 = 5;
/// Most epochs to pass without predictions.
const MAX_PAUSED_EPOCHS: u32 = 16;

/// The epochs of a mount.
#[derive(Debug)]
pub struct Epochs {
    /// How many bytes may be fetched and not yet read.
    budget: u64,
    /// How many bytes may be left to fetch when only the set is known.
    max_missing: u64,
    /// The present epoch, from 1.
    number: u32,
    seen: HashMap<u64, LastRead, RandomState>,
    /// The files of the epoch before in the order of their first reads; empty if nothing follows from it.
    before: Vec<u64>,
    /// Those of the present epoch.
    present: Vec<u64>,
    present_bytes: u64,
    /// Bytes of files of `before` that have not been read in the present epoch.
    left: u64,
    /// Reads in the present epoch of files that had their turn in it already.
    repeats: usize,
    /// The latest of them, with their sizes.
    again: VecDeque<(u64, u64)>,
    /// Of each of the latest reads whether it was one of them, as a bit.
    was_again: u16,
    /// Of each of the latest reads whether it followed a file that it followed in the epoch before.
    followed: u16,
    /// How many files to be ahead in an order that repeats, and how many were read since that changed.
    window: usize,
    consumed: usize,
    /// Reads in the present epoch, and how many of them were answered from memory.
    answered: u64,
    hits: u64,
    ahead: EpochPrefetch,
    /// Epochs to pass without predictions, and how many to pass the next time that a prediction fails.
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
    /// When only the set is known: files of the epoch before up to this place have been looked at.
    looked_at: usize,
    failed: bool,
}

impl EpochPrefetch {
    /// Bytes that were fetched and of which it is not known what will become of them.
    fn outstanding(&self) -> u64 {
        let totals = self.stats.totals();
        self.bytes.saturating_sub(totals.used + totals.wasted)
    }
}

impl Epochs {
    /// Nothing known yet, for a cache of `capacity` bytes in which `budget` bytes may wait for their readers.
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

    /// The cache has `capacity` bytes now, of which `budget` may wait for their readers.
    pub fn resize(&mut self, capacity: u64, budget: u64) {
        self.max_missing = capacity / 2;
        self.budget = budget;
    }

    /// Takes note that `file`, of `size` bytes, is read from its beginning, and gives the files to fetch now, the most urgent
    /// first. What becomes of each is to be told by [`fetching`](Self::fetching) or [`declined`](Self::declined).
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

    /// Takes note of whether a small file's read was answered from memory.
    pub fn answered(&mut self, hit: bool) {
        self.answered += 1;
        self.hits += u64::from(hit);
    }

    /// A file that was advised is there, on its way, or gone for good; `bytes` had to be fetched, and are to be accounted for
    /// in the [`stats`](Self::stats).
    pub fn fetching(&mut self, file: u64, bytes: u64) {
        self.ahead.files.insert(file);
        self.ahead.bytes += bytes;
    }

    /// There was no room for a file that was advised.
    pub fn declined(&mut self, file: u64) {
        if let Some(seen) = self.seen.get(&file)
            && seen.epoch + 1 == self.number
        {
            self.ahead.looked_at = self.ahead.looked_at.min(seen.place as usize);
        }
    }

    /// To be told of all bytes that are fetched for the present epoch.
    pub fn stats(&self) -> &Arc<PrefetchStats> {
        &self.ahead.stats
    }

    /// A file had its turn already.
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

    /// What to fetch when the file at a place of the order of the epoch before was read.
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

    /// The files that followed last time, as far as the window goes, without those that were advised before.
    fn successors(&self, place: usize) -> Vec<u64> {
        let next = place + 1..(place + 1 + self.window).min(self.before.len());
        let new = self.before[next].iter().rev().take_while(|file| !self.ahead.files.contains(*file));
        let mut files: Vec<u64> = new.filter(|file| !self.was_read(**file)).copied().collect();
        files.reverse();
        files
    }

    /// A few of the files that are still to be read some time.
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

    /// How many bytes will have to be fetched until the end of the epoch: of what is left, the part that is not in memory,
    /// if the files so far tell.
    fn missing(&self) -> u64 {
        match self.answered {
            0..MIN_SAMPLES => self.left,
            answered => {
                (u128::from(self.left) * u128::from(answered - self.hits) / u128::from(answered)) as u64
            }
        }
    }

    /// Whether predictions have gone wrong, now or before.
    fn has_failed(&mut self) -> bool {
        if self.pause == 0 && !self.ahead.failed {
            let totals = self.ahead.stats.totals();
            // A few files wasted at the very beginning prove nothing.
            let much = totals.wasted > self.budget / 4;
            self.ahead.failed = much && totals.wasted * WASTE_DIVISOR > totals.used + totals.wasted;
        }
        self.pause > 0 || self.ahead.failed
    }

    /// An epoch is over; the files that showed it were the first of the next.
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
        // What was advised just now is lost.
        self.ahead.looked_at = 0;
    }

    /// Forgets the files that nothing is predicted from. If that does not help, the epoch is too long, and everything is
    /// forgotten.
    fn forget_old(&mut self) {
        let number = self.number;
        self.seen.retain(|_, seen| seen.epoch + 1 >= number);
        if self.seen.len() >= MAX_FILES {
            *self = Self { number: self.number, ..Self::new(self.max_missing * 2, self.budget) };
        }
        self.seen.shrink_to_fit();
    }
}
