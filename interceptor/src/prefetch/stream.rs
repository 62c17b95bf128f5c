//! Finds sequential streams among the reads of one file and says how far to run ahead of them.
//!
//! The kernel's readahead sends large requests that several threads handle at once, so a sequential reader arrives
//! slightly out of order, and several readers of one file arrive interleaved. Therefore a read belongs to a stream if it
//! starts *near* the furthest byte that the stream has reached, on either side, where near grows with the size of the
//! request; and a file has several streams, the least recently used of which gives way to a new one.
//!
//! A stream earns its window: it starts small once the stream is recognised and doubles each time the reader has
//! consumed as much as the window holds, up to the limit that memory allows.

use std::ops::Range;

/// Streams followed in one file. More readers than this on one file steal each other's place and lose readahead.
const STREAMS: usize = 8;
/// A first read of this size at the start of a file is taken for the beginning of a stream.
const LARGE_START: u64 = 128 << 10;
/// The window of a stream that was just recognised.
const FIRST_WINDOW: u64 = 8 << 20;
/// Bounds of how far a read may be from the furthest byte of its stream.
const SLACK: Range<u64> = (64 << 10)..(8 << 20);

/// The streams of one file.
#[derive(Debug, Default)]
pub struct Streams {
    streams: Vec<Stream>,
    clock: u64,
}

#[derive(Debug)]
struct Stream {
    /// The furthest byte read, exclusive.
    end: u64,
    /// Reads that took `end` further.
    steps: u32,
    /// Bytes by which `end` went further since the window last grew.
    consumed: u64,
    window: u64,
    /// Everything below this has been advised.
    advised: u64,
    /// When it was last used, in reads of the file.
    used: u64,
}

/// What follows from one read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// Whether the read continues a stream, so that all bytes around it will be wanted.
    pub sequential: bool,
    /// What to fetch ahead, in bytes of the file; empty if nothing is due. May reach beyond the end of the file.
    pub ahead: Range<u64>,
}

impl Streams {
    /// Takes note of a read of `len` bytes at `offset`. Windows do not grow beyond `max_window` bytes.
    pub fn observe(&mut self, offset: u64, len: u64, max_window: u64) -> Advice {
        self.clock += 1;
        let end = offset.saturating_add(len);
        let slack = len.saturating_mul(8).clamp(SLACK.start, SLACK.end);
        let near = self.streams.iter_mut().filter(|s| s.end.abs_diff(offset) <= slack);
        let Some(stream) = near.min_by_key(|s| s.end.abs_diff(offset)) else {
            let steps = u32::from(offset == 0 && len >= LARGE_START);
            return self.start(end, steps, max_window);
        };
        stream.used = self.clock;
        if end > stream.end {
            stream.consumed += end - stream.end;
            stream.end = end;
            stream.steps = stream.steps.saturating_add(1);
        }
        stream.advise(max_window)
    }

    /// Takes back the advice from byte `from` on: it was not followed, because there was no room.
    pub fn decline(&mut self, ahead: &Range<u64>, from: u64) {
        if let Some(stream) = self.streams.iter_mut().find(|s| s.advised == ahead.end && s.end <= from) {
            stream.advised = from;
        }
    }

    fn start(&mut self, end: u64, steps: u32, max_window: u64) -> Advice {
        let mut stream = Stream { end, steps, consumed: 0, window: 0, advised: end, used: self.clock };
        let advice = stream.advise(max_window);
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|s| s.used) {
            *oldest = stream;
        }
        advice
    }
}

impl Stream {
    fn advise(&mut self, max_window: u64) -> Advice {
        if self.steps == 0 {
            return Advice { sequential: false, ahead: 0..0 };
        }
        if self.window == 0 {
            self.window = FIRST_WINDOW.min(max_window);
        } else if self.consumed >= self.window {
            self.consumed = 0;
            self.window = (self.window * 2).min(max_window);
        }
        self.advised = self.advised.max(self.end);
        // Half a window at a time: asking for a sliver at every read would cost more than it brings.
        let ahead = if self.advised - self.end <= self.window / 2 && self.window > 0 {
            let from = self.advised;
            self.advised = self.end.saturating_add(self.window);
            from..self.advised
        } else {
            0..0
        };
        Advice { sequential: true, ahead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const KIB: u64 = 1 << 10;
    const MAX: u64 = 64 * MIB;

    /// Follows the advice and returns which bytes below `size` were fetched ahead before they were read.
    fn covered(reads: impl IntoIterator<Item = (u64, u64)>) -> (u64, u64) {
        let mut streams = Streams::default();
        let mut ahead: Vec<Range<u64>> = Vec::new();
        let (mut hit, mut all) = (0, 0);
        for (offset, len) in reads {
            let known = ahead.iter().any(|r| r.start <= offset && offset + len <= r.end);
            hit += if known { len } else { 0 };
            all += len;
            let advice = streams.observe(offset, len, MAX);
            if !advice.ahead.is_empty() {
                match ahead.iter_mut().find(|r| r.end == advice.ahead.start) {
                    Some(range) => range.end = advice.ahead.end,
                    None => ahead.push(advice.ahead),
                }
            }
        }
        (hit, all)
    }

    #[test]
    fn a_sequential_reader_finds_all_but_its_first_read_fetched() {
        let (hit, all) = covered((0..256).map(|i| (i * MIB, MIB)));
        assert_eq!(all - hit, MIB);
    }

    #[test]
    fn reordered_readahead_is_one_stream() {
        let order = (0..64u64).flat_map(|i| [i * 4 + 1, i * 4, i * 4 + 3, i * 4 + 2]);
        let (hit, all) = covered(order.map(|i| (i * 256 * KIB, 256 * KIB)));
        assert!(hit * 100 >= all * 95, "{hit} of {all}");
    }

    #[test]
    fn interleaved_readers_each_have_their_stream() {
        let reads = (0..200u64).flat_map(|i| (0..4u64).map(move |r| (r * 1000 * MIB + i * MIB, MIB)));
        let (hit, all) = covered(reads);
        assert!(hit * 100 >= all * 95, "{hit} of {all}");
    }

    #[test]
    fn random_reads_are_not_a_stream() {
        let mut streams = Streams::default();
        let mut state = 1u64;
        let sequential = (0..2000)
            .filter(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let offset = (state >> 16) % (1 << 18) * 4096;
                streams.observe(offset, 4096, MAX).sequential
            })
            .count();
        assert!(sequential < 20, "{sequential}");
    }

    #[test]
    fn a_header_read_fetches_nothing_ahead() {
        let advice = Streams::default().observe(0, 4096, MAX);
        assert_eq!(advice, Advice { sequential: false, ahead: 0..0 });
    }

    #[test]
    fn the_window_grows_with_use_and_stays_below_the_limit() {
        let mut streams = Streams::default();
        let mut widest = 0;
        for i in 0..1000 {
            let advice = streams.observe(i * MIB, MIB, 32 * MIB);
            if !advice.ahead.is_empty() {
                let window = advice.ahead.end - (i + 1) * MIB;
                assert!(window <= 32 * MIB);
                assert!(window >= widest, "windows do not shrink while they are used");
                widest = window;
            }
        }
        assert_eq!(widest, 32 * MIB);
    }

    #[test]
    fn declined_advice_is_given_again() {
        let mut streams = Streams::default();
        let first = streams.observe(0, MIB, MAX);
        assert_eq!(first.ahead, MIB..MIB + FIRST_WINDOW);
        streams.decline(&first.ahead, MIB);
        let second = streams.observe(MIB, MIB, MAX);
        assert_eq!(second.ahead.start, 2 * MIB);
    }

    #[test]
    fn offsets_near_the_end_of_the_number_line_do_not_overflow() {
        let mut streams = Streams::default();
        streams.observe(u64::MAX - 10, 100, MAX);
        assert!(streams.observe(u64::MAX - 5, 100, MAX).ahead.is_empty());
    }
}
