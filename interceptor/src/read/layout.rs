//! Where the bytes of one version of a file are: in its entry or in which chunk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use super::ReadError;
use super::data::Segment;
use super::grain::{Access, HOT, MAX_WHOLE};
use super::intervals::{Extent, visible_extents};
use crate::fetch::must_fetch_whole;
use crate::prefetch::Pattern;
use crate::seaweed::entry::Chunk;

/// A needle's size is a signed 32-bit number on disk, so no chunk of data can be larger.
const MAX_NEEDLE: u64 = i32::MAX as u64;

/// The resolved content of a file.
#[derive(Debug)]
pub(super) struct Layout {
    size: u64,
    inline: Bytes,
    chunks: Arc<[Chunk]>,
    extents: Box<[Extent]>,
    /// For each chunk the number of random reads, up to [`HOT`].
    touches: Box<[AtomicU8]>,
}

impl Layout {
    /// Content of an entry itself, followed by zeros up to `size`.
    pub(super) fn inline(bytes: Bytes, size: u64) -> Self {
        Self { size, inline: bytes, chunks: Arc::new([]), extents: Box::new([]), touches: Box::new([]) }
    }

    /// Content in chunks, none of which is a manifest.
    pub(super) fn chunks(chunks: Arc<[Chunk]>, size: u64) -> Result<Self, ReadError> {
        for chunk in chunks.iter() {
            if chunk.size > if must_fetch_whole(chunk) { MAX_WHOLE } else { MAX_NEEDLE } {
                return Err(ReadError::Damaged(format!(
                    "chunk {} claims {} bytes, more than a needle can hold",
                    chunk.fid, chunk.size
                )));
            }
        }
        let extents = visible_extents(&chunks, size);
        let touches = chunks.iter().map(|_| AtomicU8::new(0)).collect();
        Ok(Self { size, inline: Bytes::new(), chunks, extents, touches })
    }

    /// Size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The chunks that segments refer to.
    pub(super) fn chunk(&self, index: usize) -> &Chunk {
        &self.chunks[index]
    }

    /// Notes a read of a chunk and says how the chunk is being read.
    pub(super) fn access(&self, index: usize, pattern: Pattern) -> Access {
        if let Some(access) = Access::of(pattern) {
            return access;
        }
        let touches = &self.touches[index];
        // Two threads may both count the same step; being off by one read is harmless.
        let before = touches.load(Ordering::Relaxed);
        if before < HOT {
            touches.store(before + 1, Ordering::Relaxed);
        }
        Access::Random { hot: before >= HOT }
    }

    /// The parts of the bytes from `start` to `end`, in order and without gaps. `end` must not exceed the size.
    pub(super) fn segments(&self, start: u64, end: u64) -> impl Iterator<Item = Segment> {
        let mut at = start;
        let mut extents = {
            let first = self.extents.partition_point(|extent| extent.end <= start);
            self.extents[first..].iter()
        };
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            if at < self.inline.len() as u64 {
                let until = end.min(self.inline.len() as u64);
                let bytes = self.inline.slice(at as usize..until as usize);
                at = until;
                return Some(Segment::Bytes(bytes));
            }
            let Some(extent) = extents.as_slice().first().filter(|extent| extent.start < end) else {
                let zeros = Segment::Zeros((end - at) as usize);
                at = end;
                return Some(zeros);
            };
            if at < extent.start {
                let zeros = Segment::Zeros((extent.start - at) as usize);
                at = extent.start;
                return Some(zeros);
            }
            let index = extent.chunk as usize;
            let origin = self.chunks[index].offset;
            let until = end.min(extent.end);
            let range = at - origin..until - origin;
            at = until;
            extents.next();
            Some(Segment::Chunk { index, range })
        })
    }
}
