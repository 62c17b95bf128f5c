//! Who reads a file from front to back, and when the next window of it should be brought.
//!
//! Reads of one file arrive mixed: several readers, the kernel's readahead in whatever order its CPUs send it, now and then a look at
//! the header. So a file has a few [`Track`]s, each with a head that moves forward as bytes near it are read. A read near no head starts a
//! track in the place of the one that has been without a read for longest. A track whose reads cover most of what its head passed
//! over, and enough of it, is a stream; random reads move heads as well, but cover little.

/// Places of one file that are followed at a time.
pub const TRACKS: usize = 4;

/// How many reads elsewhere in the file a track outlives.
const PATIENCE: u64 = 32;

/// What is a stream, and how far ahead of it to bring.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSettings {
    /// Bytes around the head that a read may lie within, in either direction: how far reads overtake each other.
    pub slack: u64,
    /// Bytes to be read before a track is a stream.
    pub least: u64,
    /// Bytes ahead of the head that should have been announced. The next are due when half of them are left.
    pub window: u64,
}

/// One place that a file is read at.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Track {
    /// Where it began.
    pub start: u64,
    /// The end of the furthest read.
    pub head: u64,
    /// Bytes read, repetitions included.
    pub read: u64,
    /// The end of what was announced; 0 if nothing was.
    pub announced: u64,
    /// Reads elsewhere that it will still outlive; 0 for a track that is free.
    pub patience: u64,
}

/// A range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes, not 0. It may reach beyond the end of the file.
    pub length: u64,
}

/// The tracks of one file. CPUs that update them at the same moment may lose a step of each other's: that delays a window.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// In no order.
    pub tracks: [Track; TRACKS],
}

impl Streams {
    /// Of a file of which one read has been seen.
    #[inline(always)]
    pub fn beginning(offset: u64, length: u64) -> Self {
        let mut streams = Self::default();
        streams.tracks[0] = Track::beginning(offset, length);
        streams
    }

    /// Takes note of a read; gives the window that is due after it.
    #[inline(always)]
    pub fn read(&mut self, offset: u64, length: u64, settings: &StreamSettings) -> Option<Window> {
        let end = offset.saturating_add(length);
        let mut oldest = 0;
        for i in 0..TRACKS {
            let track = &mut self.tracks[i];
            if track.patience != 0 && track.is_near(offset, end, settings) {
                return track.advance(end, length, settings);
            }
            if track.patience < self.tracks[oldest].patience {
                oldest = i;
            }
        }
        for track in &mut self.tracks {
            track.patience = track.patience.saturating_sub(1);
        }
        // The only index that is not a constant: the bound is for the verifier, which has lost sight of it.
        self.tracks[oldest % TRACKS] = Track::beginning(offset, length);
        None
    }
}

impl Track {
    #[inline(always)]
    const fn beginning(offset: u64, length: u64) -> Self {
        let head = offset.saturating_add(length);
        Self { start: offset, head, read: length, announced: 0, patience: PATIENCE }
    }

    #[inline(always)]
    fn is_near(&self, offset: u64, end: u64, settings: &StreamSettings) -> bool {
        offset <= self.head.saturating_add(settings.slack) && end.saturating_add(settings.slack) >= self.head
    }

    #[inline(always)]
    fn advance(&mut self, end: u64, length: u64, settings: &StreamSettings) -> Option<Window> {
        self.patience = PATIENCE;
        self.read = self.read.saturating_add(length);
        if end <= self.head {
            return None;
        }
        self.head = end;
        let dense = self.read >= (end - self.start) / 2;
        let due = end.saturating_add(settings.window / 2) > self.announced;
        if !dense || self.read < settings.least || !due {
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
