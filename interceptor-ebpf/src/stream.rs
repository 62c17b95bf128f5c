//! Detection of sequential streams within a file, and of the moment when a stream's next window is
//! due.
//!
//! Reads of one file arrive interleaved: several readers, readahead requests in any order, single
//! reads of a header. A file therefore has a few [`Track`]s, each with a head that advances with
//! reads near it. A read near no head starts a new track in place of the least recently used one.
//! A track is a stream if its reads cover at least half of the bytes that its head passed, and
//! enough bytes; random reads advance heads as well, but cover little.

/// Tracks of one file.
pub const TRACKS: usize = 4;

/// A track is dropped after this many reads elsewhere in the file.
const MAX_READS_ELSEWHERE: u64 = 32;

/// When reads form a stream, and how far ahead of it windows reach.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSettings {
    /// The distance in bytes that a read may lie before or behind the head: how far reads of a
    /// stream overtake each other.
    pub slack: u64,
    /// Bytes that must be read before a track is a stream.
    pub min_bytes: u64,
    /// Bytes ahead of the head that are announced. The next window is due when less than half of
    /// them are left.
    pub window: u64,
}

/// A position in a file that is followed.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Track {
    /// The offset of its first read.
    pub start: u64,
    /// The end of the furthest read.
    pub head: u64,
    /// Bytes read, repetitions included.
    pub read: u64,
    /// The end of the announced windows; 0 if there was none.
    pub announced: u64,
    /// Reads elsewhere after which the track is dropped; 0 for a free track.
    pub reads_left: u64,
}

/// A range of a file to be fetched ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes, not 0. It may reach beyond the end of the file.
    pub length: u64,
}

/// The tracks of one file. CPUs that update them concurrently may lose a step of each other, which
/// delays a window.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// In no order.
    pub tracks: [Track; TRACKS],
}

impl Streams {
    /// The tracks after the first read of a file.
    #[inline(always)]
    pub fn starting_at(offset: u64, length: u64) -> Self {
        let mut streams = Self::default();
        streams.tracks[0] = Track::starting_at(offset, length);
        streams
    }

    /// Records a read. Returns the window that is due after it.
    #[inline(always)]
    pub fn record_read(&mut self, offset: u64, length: u64, settings: &StreamSettings) -> Option<Window> {
        let end = offset.saturating_add(length);
        let mut oldest = 0;
        for i in 0..TRACKS {
            let track = &mut self.tracks[i];
            if track.reads_left != 0 && track.is_near(offset, end, settings) {
                return track.advance(end, length, settings);
            }
            if track.reads_left < self.tracks[oldest].reads_left {
                oldest = i;
            }
        }
        for track in &mut self.tracks {
            track.reads_left = track.reads_left.saturating_sub(1);
        }
        // The verifier does not track the bound of this index, the only one that is not a
        // constant.
        self.tracks[oldest % TRACKS] = Track::starting_at(offset, length);
        None
    }
}

impl Track {
    #[inline(always)]
    const fn starting_at(offset: u64, length: u64) -> Self {
        let head = offset.saturating_add(length);
        Self { start: offset, head, read: length, announced: 0, reads_left: MAX_READS_ELSEWHERE }
    }

    #[inline(always)]
    fn is_near(&self, offset: u64, end: u64, settings: &StreamSettings) -> bool {
        offset <= self.head.saturating_add(settings.slack) && end.saturating_add(settings.slack) >= self.head
    }

    #[inline(always)]
    fn advance(&mut self, end: u64, length: u64, settings: &StreamSettings) -> Option<Window> {
        self.reads_left = MAX_READS_ELSEWHERE;
        self.read = self.read.saturating_add(length);
        if end <= self.head {
            return None;
        }
        self.head = end;
        let dense = self.read >= (end - self.start) / 2;
        let due = end.saturating_add(settings.window / 2) > self.announced;
        if !dense || self.read < settings.min_bytes || !due {
            return None;
        }
        let offset = self.announced.max(end);
        self.announced = end.saturating_add(settings.window);
        let length = self.announced.saturating_sub(offset);
        (length != 0).then_some(Window { offset, length })
    }
}

#[cfg(test)]
mod tests;
