//! Buffers for fetched bytes, recycled by size class.
//!
//! A fresh mapping costs a page fault for every 4 KiB that is written to it, which for chunks of some MiB is more than
//! the copy itself. So a buffer that nobody needs any more waits in its class for the next fetch of that size. Classes
//! are powers of two from 4 KiB; buffers of 2 MiB and more are aligned to huge pages and ask for them.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The smallest class.
const MIN_CLASS: usize = 4096;
/// Size and alignment of a huge page on x86-64 and on most arm64 kernels.
const HUGE_PAGE: usize = 2 << 20;
/// Number of classes that are recycled: 4 KiB to 64 MiB. Larger buffers go back to the allocator.
const CLASSES: usize = 15;

/// Where buffers come from and go back to.
#[derive(Debug)]
pub struct Pool {
    free: Mutex<Free>,
    /// Bytes of free buffers to keep at most.
    keep: usize,
    allocated: AtomicU64,
}

#[derive(Debug, Default)]
struct Free {
    classes: [Vec<Memory>; CLASSES],
    bytes: usize,
}

impl Pool {
    /// A pool that keeps at most `keep` bytes of free buffers.
    pub fn new(keep: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), keep, allocated: AtomicU64::new(0) })
    }

    /// A buffer of `len` bytes. Its content is unspecified: whatever an earlier user left there.
    pub fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let size = Buffer::footprint_of(len);
        let recycled = class_of(size).and_then(|class| {
            let mut free = self.free.lock();
            let memory = free.classes[class].pop()?;
            free.bytes -= size;
            Some(memory)
        });
        let memory = recycled.unwrap_or_else(|| {
            self.allocated.fetch_add(size as u64, Ordering::Relaxed);
            Memory::new(size)
        });
        Buffer { memory: Some(memory), len, pool: self.clone() }
    }

    /// Bytes of all buffers, in use or free.
    pub fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    fn give_back(&self, memory: Memory) {
        let size = memory.size;
        let refused = match class_of(size) {
            Some(class) if size <= self.keep => {
                let mut free = self.free.lock();
                let mut displaced = Vec::new();
                // The load has moved to another size: what waits in other classes makes room.
                while free.bytes + size > self.keep {
                    let Some(other) =
                        free.classes.iter_mut().filter(|c| !c.is_empty()).max_by_key(|c| c.len())
                    else {
                        break;
                    };
                    let gone = other.pop().expect("only classes with buffers were considered");
                    free.bytes -= gone.size;
                    displaced.push(gone);
                }
                free.classes[class].push(memory);
                free.bytes += size;
                displaced
            }
            _ => vec![memory],
        };
        // Unmapping happens here, outside the lock.
        let gone: usize = refused.iter().map(|memory| memory.size).sum();
        drop(refused);
        self.allocated.fetch_sub(gone as u64, Ordering::Relaxed);
    }
}

fn class_of(size: usize) -> Option<usize> {
    let class = (size / MIN_CLASS).trailing_zeros() as usize;
    (class < CLASSES && size == MIN_CLASS << class).then_some(class)
}

/// Memory of a fetched block, or of one being fetched. Goes back to its pool when dropped.
pub struct Buffer {
    /// Always there until the drop.
    memory: Option<Memory>,
    len: usize,
    pool: Arc<Pool>,
}

impl Buffer {
    /// How many bytes of memory a buffer of `len` bytes takes.
    pub fn footprint_of(len: usize) -> usize {
        if len <= MIN_CLASS << (CLASSES - 1) {
            len.max(MIN_CLASS).next_power_of_two()
        } else {
            len.next_multiple_of(HUGE_PAGE)
        }
    }

    /// How many bytes of memory this buffer takes.
    pub fn footprint(&self) -> usize {
        Self::footprint_of(self.len)
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("memory is there until the drop")
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `memory` is initialised (see `Memory::new`), at least `len` bytes long, and lives as long as `self`;
        // writers need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.memory().start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.memory().start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// An allocation of a class's size.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: `Memory` owns its allocation exclusively and has no thread affinity.
unsafe impl Send for Memory {}
// SAFETY: a shared `Memory` hands out nothing; access goes through `Buffer`, which follows Rust's borrowing rules.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(size: usize) -> Layout {
        let align = if size >= HUGE_PAGE { HUGE_PAGE } else { MIN_CLASS };
        Layout::from_size_align(size, align).expect("a buffer is smaller than the address space")
    }

    fn new(size: usize) -> Self {
        let layout = Self::layout(size);
        // SAFETY: `layout` has a size above 0: the smallest class is 4 KiB.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        if size >= HUGE_PAGE {
            // SAFETY: the range was just allocated, is aligned to pages, and the advice does not change its content.
            // A kernel without huge pages refuses, which only costs speed.
            unsafe { libc::madvise(start.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: the range was just allocated with `size` bytes. Zeroing it makes every later `&[u8]` over it sound,
        // and takes the page faults now, once, instead of under the first fetch.
        unsafe { start.as_ptr().write_bytes(0, size) };
        Self { start, size }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc` with this very layout and is freed once, here.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.size)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footprints_are_classes_up_to_the_largest() {
        for (len, footprint) in [
            (0, 4096),
            (1, 4096),
            (4096, 4096),
            (4097, 8192),
            ((2 << 20) - 1, 2 << 20),
            (64 << 20, 64 << 20),
            ((64 << 20) + 1, 66 << 20),
        ] {
            assert_eq!(Buffer::footprint_of(len), footprint, "{len}");
        }
    }

    #[test]
    fn a_buffer_of_the_same_class_is_recycled() {
        let pool = Pool::new(8 << 20);
        let first = pool.take(3 << 20);
        let address = first.as_ptr();
        drop(first);
        let second = pool.take(4 << 20);
        assert_eq!(second.as_ptr(), address);
        assert_eq!(second.len(), 4 << 20);
        assert_eq!(pool.allocated(), 4 << 20);
    }

    #[test]
    fn free_memory_moves_to_the_class_in_use() {
        let pool = Pool::new(1 << 20);
        let small: Vec<_> = (0..256).map(|_| pool.take(4096)).collect();
        drop(small);
        assert_eq!(pool.allocated(), 1 << 20);
        drop(pool.take(1 << 20));
        assert_eq!(pool.allocated(), 1 << 20);
        drop(pool.take(2 << 20));
        assert_eq!(pool.allocated(), 1 << 20);
    }

    #[test]
    fn huge_buffers_are_aligned_and_zeroed() {
        let pool = Pool::new(0);
        let buffer = pool.take(5 << 20);
        assert_eq!(buffer.as_ptr() as usize % HUGE_PAGE, 0);
        assert!(buffer.iter().all(|&b| b == 0));
        drop(buffer);
        assert_eq!(pool.allocated(), 0);
    }
}
