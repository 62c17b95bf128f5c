//! The readers' memory: one region with a part for each reader, registered with RDMA devices as a
//! cache's memory is.

use std::cell::UnsafeCell;
use std::sync::Arc;

use rdma_engine::client::Destination;
use rdma_engine::memory::Memory;

/// Memory for all readers.
pub(super) struct BenchRegion {
    bytes: Box<[UnsafeCell<u8>]>,
}

// SAFETY: bytes are reached through `ReaderMemory` only. Each is the only one for its range, and
// moves between threads as a whole.
unsafe impl Sync for BenchRegion {}

// SAFETY: a boxed slice stays at its address until it is dropped. Only pointers to its bytes are
// taken, never references; the cells allow that.
unsafe impl Memory for BenchRegion {
    fn start(&self) -> *mut u8 {
        self.bytes.as_ptr().cast::<u8>().cast_mut()
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }
}

/// The part of one reader.
pub(super) struct ReaderMemory {
    region: Arc<BenchRegion>,
    offset: usize,
    length: usize,
}

// SAFETY: the range lies within the region, which is zeroed and shared by `Arc`; `parts` gives out
// each range once.
unsafe impl Destination for ReaderMemory {
    fn start(&self) -> *mut u8 {
        // SAFETY: the offset lies within the region.
        unsafe { self.region.start().add(self.offset) }
    }

    fn length(&self) -> usize {
        self.length
    }
}

/// A region of `count` parts of `length` bytes each, and the parts.
pub(super) fn parts(count: usize, length: usize) -> (Arc<BenchRegion>, Vec<ReaderMemory>) {
    let bytes = std::iter::repeat_with(|| UnsafeCell::new(0)).take(count * length).collect();
    let region = Arc::new(BenchRegion { bytes });
    let part = |number| ReaderMemory { region: region.clone(), offset: number * length, length };
    let parts = (0..count).map(part).collect();
    (region, parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_side_by_side() {
        let (region, parts) = parts(3, 100);
        assert_eq!(region.length(), 300);
        let starts = parts.iter().map(|part| part.start() as usize - region.start() as usize);
        assert_eq!(starts.collect::<Vec<_>>(), [0, 100, 200]);
        assert!(parts.iter().all(|part| part.length() == 100));
    }
}
