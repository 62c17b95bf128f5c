//! Finds sequential streams among the reads of one file, and tells how far to read ahead of them.
//!
//! The kernel's readahead sends large requests that several threads handle at once. So the reads
//! of one sequential reader arrive slightly out of order, and those of several readers arrive
//! interleaved. Therefore a read belongs to a stream if it starts near the furthest byte that the
//! stream has reached, on either side: the distance allowed grows with the size of the request. A
//! file has several streams; a new one replaces the least recently used.
//!
//! A stream earns its window ([`ReadAheadWindow`]). The window starts small once the stream is
//! recognised. It doubles each time the reader has consumed as many bytes as the window holds, up
//! to the limit that memory allows, and is halved if prefetched bytes are wasted. If a stream is
//! left before it has used what was fetched for it, the next streams of the file begin with half
//! of its window, and are recognised a step later. A stream that went well takes that back.
//!
//! A reader that skips more than it reads may be strided. Its reads are shown to [`Strides`] as
//! well, whose advice takes precedence.

use std::ops::Range;

use super::advice::{AccessPattern, ReadAhead, StreamAdvice};
use super::stride::Strides;
use super::window::ReadAheadWindow;

/// Streams followed in one file. If a file has more readers, they replace each other's streams and
/// lose read-ahead.
const MAX_STREAMS: usize = 8;
/// A first read of at least so many bytes at the start of a file begins a stream.
const MIN_STREAMING_READ: u64 = 128 << 10;
/// The window, in bytes, of a stream that was just recognised, unless streams before it were left.
const INITIAL_WINDOW: u64 = 8 << 20;
/// No window shrinks below this, in bytes.
const MIN_WINDOW: u64 = 512 << 10;
/// Limits of the distance, in bytes, of a read from the furthest byte of its stream.
const MAX_DISTANCE_LIMITS: Range<u64> = (64 << 10)..(8 << 20);

/// The streams of one file.
#[derive(Debug)]
pub struct Streams {
    /// Size of the file in bytes.
    size: u64,
    streams: Vec<SequentialStream>,
    strides: Strides,
    /// The window of the next stream, in bytes.
    initial_window: u64,
    /// Number of reads so far. Identifies streams too.
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
    /// Steps after which it is recognised.
    needed: u32,
    window: ReadAheadWindow,
    /// All bytes below this have been advised.
    advised: u64,
    /// Whether anything was ever advised.
    is_ahead: bool,
    /// The clock of its last read.
    used: u64,
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

    /// Notes a read of `len` bytes at `offset`. Windows do not grow beyond `max_window` bytes.
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
            // The stream that this read was assigned to was not one.
            self.streams.retain(|stream| stream.used != number);
            return advice;
        }
        let Some(stream) = self.streams.iter_mut().find(|s| s.used == number && s.is_recognised()) else {
            return StreamAdvice { pattern: AccessPattern::Random, ahead: None };
        };
        StreamAdvice { pattern: AccessPattern::Sequential, ahead: stream.advise(size) }
    }

    /// The part of `range` that no stream has read, for a reader at byte `head`. Empty if a stream
    /// follows that reader already.
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

    /// Takes back advice from byte `from` of one of its ranges on: there was no room to fetch it.
    pub fn decline(&mut self, ahead: &ReadAhead, from: u64) {
        match self.streams.iter_mut().find(|stream| stream.id == ahead.stream) {
            Some(stream) => stream.advised = from.clamp(stream.end.min(stream.advised), stream.advised),
            None => self.strides.decline(ahead, from),
        }
    }

    /// Assigns a read to the nearest stream, or to a new one.
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

    /// Whether it skips more than it reads.
    fn skips(&self) -> bool {
        self.read < (self.end - self.start) / 2
    }

    fn advise(&mut self, size: u64) -> Option<ReadAhead> {
        self.advised = self.advised.max(self.end);
        // Half a window at a time: a sliver at every read would cost more than it gains.
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
