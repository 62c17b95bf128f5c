//! What is read from a server, and where the bytes go.

use crate::seaweed::entry::Chunk;
use crate::write_target::WriteTarget;

/// The size that a chunk manifest is taken to have, in bytes: nothing says it beforehand, and most
/// are smaller.
const ASSUMED_MANIFEST_SIZE: u64 = 256 << 10;

/// What is read of a chunk, and the memory that it goes to.
pub(super) enum ReadRequest<'a> {
    /// A part of the logical bytes, by a request for that part.
    Range { offset: u64, dst: &'a mut dyn WriteTarget },
    /// A part of the logical bytes, or all, by a request for the whole needle, which is verified.
    Whole { offset: u64, dst: &'a mut dyn WriteTarget },
    /// The whole decoded needle, `limit` bytes at most.
    Needle { limit: u64, bytes: &'a mut Vec<u8> },
}

/// A [`ReadRequest`] without its memory.
#[derive(Clone, Copy)]
pub(super) enum RequestShape {
    Range { offset: u64, len: usize },
    Whole { offset: u64, len: usize },
    Needle { limit: u64 },
}

impl ReadRequest<'_> {
    /// How many bytes a server is asked for, as far as that is known.
    pub(super) fn bytes(&self, chunk: &Chunk) -> u64 {
        match self {
            Self::Range { dst, .. } => dst.length() as u64,
            Self::Whole { .. } => chunk.size,
            Self::Needle { .. } => chunk.size.min(ASSUMED_MANIFEST_SIZE),
        }
    }

    pub(super) fn shape(&self) -> RequestShape {
        match self {
            Self::Range { offset, dst } => RequestShape::Range { offset: *offset, len: dst.length() },
            Self::Whole { offset, dst } => RequestShape::Whole { offset: *offset, len: dst.length() },
            Self::Needle { limit, .. } => RequestShape::Needle { limit: *limit },
        }
    }

    /// Completes this request with the bytes that another request of the same shape has read.
    pub(super) fn accept(&mut self, read: Vec<u8>) {
        match self {
            Self::Range { dst, .. } | Self::Whole { dst, .. } => dst.bytes().copy_from_slice(&read),
            Self::Needle { bytes, .. } => **bytes = read,
        }
    }
}

impl RequestShape {
    /// A request of this shape that reads to `memory`.
    pub(super) fn request(self, memory: &mut Vec<u8>) -> ReadRequest<'_> {
        match self {
            Self::Range { offset, len } => ReadRequest::Range { offset, dst: zeroed(memory, len) },
            Self::Whole { offset, len } => ReadRequest::Whole { offset, dst: zeroed(memory, len) },
            Self::Needle { limit } => ReadRequest::Needle { limit, bytes: memory },
        }
    }
}

fn zeroed(memory: &mut Vec<u8>, len: usize) -> &mut Vec<u8> {
    *memory = vec![0; len];
    memory
}
