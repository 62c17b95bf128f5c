//! Finds sequential streams among the reads of one file and says how far to run ahead of them.
//!
//! The kernel's readahead sends large requests that several threads handle at once, so a sequential reader arrives
//! slightly out of order, and several readers of one file arrive interleaved. Therefore a read belongs to a stream if it
//! starts *near* the furthest byte that the stream has reached, on either side, where near grows with the size of the
//! request; and a file has several streams, the min_size recently used of which gives way to a new one.
//!
//! A stream earns its window ([`ReadAheadWindow`]): it starts small once the stream is recognised, doubles each time the reader has
//! consumed as much as the window holds, up to the limit that memory allows, and is halved when what it brought is
//! wasted. A stream that is left before it has used what was fetched for it makes the file's next ones begin
//! with half of its window and be believed a step later; one that went well takes that back.
//!
//! A reader that leaves more out than it reads may be taking equal steps. Such reads are shown to [`Strides`] as well, which has
//! the last word on them.

use std::ops::Range;
use std::sync::Arc;

use super::stats::PrefetchStats;
use super::stride::Strides;
use super::window::ReadAheadWindow;

/// Streams followed in one file. More readers than this on one file steal each other's place and lose readahead.
const MAX_STREAMS: usize = 8;
/// A first read of this size at the start of a file is taken for the beginning of a stream.
const MIN_STREAMING_READ: u64 = 128 << 10;
/// The window of a stream that was just recognised, in a file that has disappointed nobody.
const INITIAL_WINDOW: u64 = 8 << 20;
/// No window is smaller.
const MIN_WINDOW: u64 = 512 << 10;
/// Bounds of how far a read may be from the furthest byte of its stream.
const MAX_DISTANCE_LIMITS: Range<u64> = (64 << 10)..(8 << 20);

/// The streams of one file.
#[derive(Debug)]
pub struct Streams {
    /// Size of the file in bytes.
    size: u64,
    streams: Vec<SequentialStream>,
    strides: Strides,
    /// The window of the next stream.
    initial_window: u64,
    /// Reads so far; numbers the streams too.
    clock: u64,
}

#[derive(Debug)]
struct SequentialStream {
    id: u64,
    /// The first byte read.
    start: u64,
    /// The furthest byte read, exclusive.
    end: u64,
    /// Bytes read.
    read: u64,
    /// Reads that took `end` further.
    steps: u32,
    /// How many steps make it a stream.
    needed: u32,
    window: ReadAheadWindow,
    /// Everything below this has been advised.
    advised: u64,
    /// Whether anything was ever advised.
    is_ahead: bool,
    /// When it was last used, in reads of the file.
    used: u64,
}

/// How a read relates to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessPattern {
    /// Not at all.
    Random,
    /// It continues a stream, so that all bytes around it will be wanted.
    Sequential,
    /// It is one of many that are equally far from each other.
    Strided {
        /// From the start of one to the start of the next, in bytes, whatever the direction.
        stride: u64,
    },
}

/// What follows from one read.
#[derive(Debug)]
pub struct StreamAdvice {
    /// What kind of read it was.
    pub pattern: AccessPattern,
    /// What to fetch ahead, if anything is due.
    pub ahead: Option<ReadAhead>,
}

/// Ranges to fetch before they are asked for.
#[derive(Debug)]
pub struct ReadAhead {
    /// Who advises it.
    pub(super) stream: u64,
    /// What to fetch, in bytes of the file, the first to be read first; never empty, nor beyond the end of the file.
    pub ranges: Vec<Range<u64>>,
    /// To be told of every byte that is fetched for this.
    pub stats: Arc<PrefetchStats>,
}

impl Streams {
    /// No stream yet, in a file of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            streams: Vec::new(),
            strides: Strides::default(),
            initial_window: INITIAL_WINDOW,
            clock: 0,
        }
    }

    /// Takes note of a read of `len` bytes at `offset`. Windows do not grow beyond `max_window` bytes.
    pub fn observe(&mut self, offset: u64, len: u64, max_window: u64) -> StreamAdvice {
        self.clock += 1;
        if let Some(advice) = self.strides.follow(offset, len, max_window, self.size) {
            return advice;
        }
        let size = self.size;
        let stream = self.assign(offset, len, max_window);
        if stream.is_recognised() && !stream.skips() {
            return StreamAdvice { pattern: AccessPattern::Sequential, ahead: stream.advise(size) };
        }
        let number = self.clock;
        if let Some(advice) = self.strides.detect(number, offset, len, max_window, size) {
            // What it was taken for meanwhile has come to nothing.
            self.streams.retain(|stream| stream.used != number);
            return advice;
        }
        let Some(stream) = self.streams.iter_mut().find(|s| s.used == number && s.is_recognised()) else {
            return StreamAdvice { pattern: AccessPattern::Random, ahead: None };
        };
        StreamAdvice { pattern: AccessPattern::Sequential, ahead: stream.advise(size) }
    }

    /// What of `range` nobody has asked for, of whom this file's streams know, if it is for a reader at byte `head` whom none of them
    /// follows; else nothing.
    pub fn unseen(&self, head: u64, range: Range<u64>) -> Range<u64> {
        let recognised = || self.streams.iter().filter(|stream| stream.is_recognised());
        // The kernel asks a little ahead of its readers.
        if recognised().any(|stream| stream.end.abs_diff(head) <= MAX_DISTANCE_LIMITS.end) {
            return range.end..range.end;
        }
        let passed = recognised().filter(|stream| (stream.start..=stream.end).contains(&range.start));
        let start = passed.map(|stream| stream.end).max().unwrap_or(range.start);
        start.clamp(range.start, range.end.max(range.start))..range.end
    }

    /// Takes back advice from byte `from` of one of its ranges on: it was not followed, because there was no room.
    pub fn decline(&mut self, ahead: &ReadAhead, from: u64) {
        match self.streams.iter_mut().find(|stream| stream.id == ahead.stream) {
            Some(stream) => stream.advised = from.clamp(stream.end.min(stream.advised), stream.advised),
            None => self.strides.decline(ahead, from),
        }
    }

    /// The stream that a read belongs to, which takes note of it: the nearest, or a new one.
    fn assign(&mut self, offset: u64, len: u64, max_window: u64) -> &mut SequentialStream {
        let max_distance = len.saturating_mul(8).clamp(MAX_DISTANCE_LIMITS.start, MAX_DISTANCE_LIMITS.end);
        let near = |s: &(usize, &SequentialStream)| s.1.end.abs_diff(offset) <= max_distance;
        let nearest =
            self.streams.iter().enumerate().filter(near).min_by_key(|(_, s)| s.end.abs_diff(offset));
        let place = match nearest {
            Some((place, _)) => {
                self.streams[place].take(offset, len, max_window);
                place
            }
            None => self.start(offset, len, max_window),
        };
        let stream = &mut self.streams[place];
        stream.used = self.clock;
        stream
    }

    fn start(&mut self, offset: u64, len: u64, max_window: u64) -> usize {
        let end = offset.saturating_add(len);
        let stream = SequentialStream {
            id: self.clock,
            start: offset,
            end,
            read: len,
            steps: u32::from(offset == 0 && len >= MIN_STREAMING_READ),
            needed: 1 + (INITIAL_WINDOW / self.initial_window).ilog2(),
            window: ReadAheadWindow::new(self.initial_window.min(max_window), MIN_WINDOW.min(max_window)),
            advised: end,
            is_ahead: false,
            used: self.clock,
        };
        if self.streams.len() < MAX_STREAMS {
            self.streams.push(stream);
            return self.streams.len() - 1;
        }
        let places = 0..self.streams.len();
        let oldest = places.min_by_key(|place| self.streams[*place].used).unwrap_or_default();
        let left = std::mem::replace(&mut self.streams[oldest], stream);
        if left.is_ahead {
            self.initial_window = match left.advised - left.end > left.end - left.start {
                true => (self.initial_window / 2).max(MIN_WINDOW),
                false => (self.initial_window * 2).min(INITIAL_WINDOW),
            };
        }
        oldest
    }
}

impl SequentialStream {
    fn take(&mut self, offset: u64, len: u64, max_window: u64) {
        let end = offset.saturating_add(len);
        self.start = self.start.min(offset);
        self.read = self.read.saturating_add(len);
        if end > self.end {
            let step = end - self.end;
            self.end = end;
            self.steps = self.steps.saturating_add(1);
            if self.is_recognised() && self.is_ahead {
                self.window.consume(step, max_window);
            }
        }
    }

    fn is_recognised(&self) -> bool {
        self.steps >= self.needed
    }

    /// Whether it leaves out more than it reads.
    fn skips(&self) -> bool {
        self.read < (self.end - self.start) / 2
    }

    fn advise(&mut self, size: u64) -> Option<ReadAhead> {
        self.advised = self.advised.max(self.end);
        // Half a window at a time: asking for a sliver at every read would cost more than it brings.
        if self.advised - self.end > self.window.size() / 2 {
            return None;
        }
        let range = self.advised..self.end.saturating_add(self.window.size()).min(size);
        if range.is_empty() {
            return None;
        }
        self.advised = range.end;
        self.is_ahead = true;
        Some(ReadAhead { stream: self.id, ranges: vec![range], stats: self.window.stats().clone() })
    }
}
