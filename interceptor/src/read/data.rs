//! The bytes of a reply.

use std::ops::{Deref, Range};

use bytes::Bytes;

use crate::cache::PinnedBlock;
use crate::cache::resident::ResidentFile;

/// Holes up to this size need no memory of their own; the kernel's requests are rarely larger.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// The bytes of a read. They stay in the cache's memory, pinned until this is dropped, unless they
/// come from several places or from a resident file: then they are copied.
#[derive(Debug)]
pub struct ReadData(Repr);

#[derive(Debug)]
enum Repr {
    Block(PinnedBlock, Range<usize>),
    Shared(Bytes),
    Static(&'static [u8]),
    Gathered(Vec<u8>),
}

impl ReadData {
    pub(super) fn empty() -> Self {
        Self(Repr::Static(&[]))
    }

    /// `range` of a block.
    pub(super) fn block(block: PinnedBlock, range: Range<usize>) -> Self {
        debug_assert!(range.end <= block.len());
        Self(Repr::Block(block, range))
    }

    /// Up to `len` bytes of a resident file from `offset` on; `None` if they are not there, or
    /// cannot be read.
    pub(super) fn resident(file: &ResidentFile, offset: u64, len: usize) -> Option<Self> {
        let len = file.len().saturating_sub(offset).min(len as u64) as usize;
        if !file.holds(&(offset..offset + len as u64)) {
            return None;
        }
        let mut bytes = vec![0; len];
        file.read_at(&mut bytes, offset).ok()?;
        Some(Self(Repr::Gathered(bytes)))
    }

    pub(super) fn shared(bytes: Bytes) -> Self {
        Self(Repr::Shared(bytes))
    }

    pub(super) fn zeros(len: usize) -> Self {
        match ZEROS.get(..len) {
            Some(zeros) => Self(Repr::Static(zeros)),
            None => Self(Repr::Gathered(vec![0; len])),
        }
    }

    /// The parts one after the other, copied only if there are several.
    pub(super) fn join(mut parts: Vec<ReadData>) -> Self {
        if parts.len() == 1 {
            return parts.swap_remove(0);
        }
        let mut gathered = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        for part in &parts {
            gathered.extend_from_slice(part);
        }
        Self(Repr::Gathered(gathered))
    }
}

impl Deref for ReadData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Block(block, range) => &block[range.clone()],
            Repr::Shared(bytes) => bytes,
            Repr::Static(bytes) => bytes,
            Repr::Gathered(bytes) => bytes,
        }
    }
}
