//! Where the bytes of one version of a file are: in its entry or in which chunk.

use std::sync::Arc;

use bytes::Bytes;

use super::ReadError;
use super::data::Segment;
use super::grain::MAX_WHOLE;
use super::intervals::{Extent, visible_extents};
use crate::fetch::must_fetch_whole;
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
}

impl Layout {
    /// Content of an entry itself, followed by zeros up to `size`.
    pub(super) fn inline(bytes: Bytes, size: u64) -> Self {
        Self { size, inline: bytes, chunks: Arc::new([]), extents: Box::new([]) }
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
        Ok(Self { size, inline: Bytes::new(), chunks, extents })
    }

    /// Size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The chunks that segments refer to.
    pub(super) fn chunk(&self, index: usize) -> &Chunk {
        &self.chunks[index]
    }

    /// How many chunks there are.
    pub(super) fn chunk_count(&self) -> usize {
        self.chunks.len()
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
