//! Where the readers of the benchmark read to.

use std::ops::{Deref, DerefMut};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Memory that begins at a page boundary, as that of `dd`, `cat` and `fio` does.
///
/// On some CPUs (AMD EPYC with FSRM) the kernel's copy is six times slower if the destination lies
/// 16 bytes behind the source modulo a page. glibc aligns large allocations in just that way, so
/// figures would depend on the allocator.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Memory for `len` bytes, all zero.
    pub(super) fn new(len: usize) -> Self {
        let bytes = vec![0; len + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, start, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.len]
    }
}
