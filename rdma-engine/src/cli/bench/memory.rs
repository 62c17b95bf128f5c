//! Where the bytes go that are measured: one region, a part for each reader, registered with RDMA devices like a cache's.

use std::cell::UnsafeCell;
use std::sync::Arc;

use rdma_engine::client::Destination;
use rdma_engine::memory::Memory;

/// Memory for all readers.
pub(super) struct Region {
    bytes: Box<[UnsafeCell<u8>]>,
}

// SAFETY: bytes are reached through `Part`s only, each of which is the only way to its own, and moves between threads as a whole.
unsafe impl Sync for Region {}

// SAFETY: a boxed slice stays where it is until it is dropped; no reference to its bytes is ever taken, only pointers, which is what the cells allow.
unsafe impl Memory for Region {
    fn start(&self) -> *mut u8 {
        self.bytes.as_ptr().cast::<u8>().cast_mut()
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }
}

/// The part of one reader.
pub(super) struct Part {
    region: Arc<Region>,
    offset: usize,
    length: usize,
}

// SAFETY: the range lies within the region, which the part shares the ownership of and which was zeroed; `Region::parts` gives each range once.
unsafe impl Destination for Part {
    fn start(&self) -> *mut u8 {
        // SAFETY: the offset lies within the region.
        unsafe { self.region.start().add(self.offset) }
    }

    fn length(&self) -> usize {
        self.length
    }
}

/// `count` parts of `length` bytes each, and the region that they are.
pub(super) fn parts(count: usize, length: usize) -> (Arc<Region>, Vec<Part>) {
    let bytes = std::iter::repeat_with(|| UnsafeCell::new(0)).take(count * length).collect();
    let region = Arc::new(Region { bytes });
    let part = |number| Part { region: region.clone(), offset: number * length, length };
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
