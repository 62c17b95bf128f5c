//! What is asked of a server, and where the answer goes.

use crate::seaweed::entry::Chunk;
use crate::write_target::WriteTarget;

/// A list of chunks that a needle holds does not say how long it is; most are shorter than this.
const LIST: u64 = 256 << 10;

/// What is to be fetched of a chunk, and where it goes.
pub(super) enum Job<'a> {
    /// A part of the logical bytes, by a request for that part.
    Range { offset: u64, dst: &'a mut dyn WriteTarget },
    /// A part of the logical bytes, or all, by a request for the whole needle, which is verified.
    Whole { offset: u64, dst: &'a mut dyn WriteTarget },
    /// The whole decoded needle, `limit` bytes at most.
    Gather { limit: u64, bytes: &'a mut Vec<u8> },
}

/// A job without the memory that it fills.
#[derive(Clone, Copy)]
pub(super) enum Outline {
    Range { offset: u64, len: usize },
    Whole { offset: u64, len: usize },
    Gather { limit: u64 },
}

impl Job<'_> {
    /// How many bytes a server is asked for, as far as that is known.
    pub(super) fn bytes(&self, chunk: &Chunk) -> u64 {
        match self {
            Self::Range { dst, .. } => dst.length() as u64,
            Self::Whole { .. } => chunk.size,
            Self::Gather { .. } => chunk.size.min(LIST),
        }
    }

    pub(super) fn outline(&self) -> Outline {
        match self {
            Self::Range { offset, dst } => Outline::Range { offset: *offset, len: dst.length() },
            Self::Whole { offset, dst } => Outline::Whole { offset: *offset, len: dst.length() },
            Self::Gather { limit, .. } => Outline::Gather { limit: *limit },
        }
    }

    /// Takes over what a second job of the same outline brought.
    pub(super) fn accept(&mut self, brought: Vec<u8>) {
        match self {
            Self::Range { dst, .. } | Self::Whole { dst, .. } => dst.bytes().copy_from_slice(&brought),
            Self::Gather { bytes, .. } => **bytes = brought,
        }
    }
}

impl Outline {
    /// A job of this outline that fills `memory`.
    pub(super) fn job(self, memory: &mut Vec<u8>) -> Job<'_> {
        match self {
            Self::Range { offset, len } => Job::Range { offset, dst: sized(memory, len) },
            Self::Whole { offset, len } => Job::Whole { offset, dst: sized(memory, len) },
            Self::Gather { limit } => Job::Gather { limit, bytes: memory },
        }
    }
}

fn sized(memory: &mut Vec<u8>, len: usize) -> &mut Vec<u8> {
    *memory = vec![0; len];
    memory
}
