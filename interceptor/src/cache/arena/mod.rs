//! One region of memory at addresses that never change, cut into slots.
//!
//! The region is reserved when the daemon starts and touched only as slots are used, so an idle
//! cache costs nothing. A [`Slot`] is exclusive access to a part of it, and frees the part when
//! dropped. The [`layout`] knows which parts are free; the [`region`] knows the kind of pages.
//!
//! Memory must be registered with an RDMA device before the device can write there. The
//! [`RegistrationCache`] registers whole units when a slot in them becomes a target, and keeps the
//! registration: the next slot in the same unit costs nothing. Before pages are returned to the
//! host, their registration is withdrawn, because the device would go on using the old pages.

mod bit_set;
mod layout;
mod region;
mod size_class;
mod waiters;

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, Weak};

use layout::{ArenaLayout, SlotPosition};
use rdma_engine::client::RegistrationCache;
use rdma_engine::memory::Memory;
use region::ArenaRegion;
use size_class::PAGE_SIZE;
use waiters::MemoryWaiters;

use super::key::BlockKey;
use super::sync::Mutex;

pub use layout::SizeClassUsage;
pub use region::PageBacking;
pub use size_class::SizeClass;
pub(super) use size_class::UNIT_SIZE;

/// Bytes of the smallest arena: some chunks of common size can still be fetched side by side.
pub const MIN_CAPACITY: u64 = 16 << 20;

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// Less than [`MIN_CAPACITY`].
    #[error("a cache of {0} bytes is too small: it takes {MIN_CAPACITY} (16 MiB) at least")]
    TooSmall(u64),
    /// More than the host's memory.
    #[error("a cache of {asked} bytes is larger than this host's memory of {memory} bytes")]
    TooLarge {
        /// What was asked for.
        asked: u64,
        /// What the host or the control group has.
        memory: u64,
    },
    /// The kernel gave no address space.
    #[error("cannot map {len} bytes for the cache: {source}")]
    Map {
        /// What was asked for.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// See the module's documentation.
pub struct Arena {
    layout: Mutex<ArenaLayout<BlockKey>>,
    /// The registrations with RDMA devices, once there are any.
    registrations: OnceLock<Weak<RegistrationCache>>,
    region: ArenaRegion,
    capacity: u64,
    waiters: MemoryWaiters,
}

impl Arena {
    /// Reserves `capacity` bytes, rounded down to 2 MiB.
    pub fn new(capacity: u64) -> Result<Arc<Self>, ArenaError> {
        if capacity < MIN_CAPACITY {
            return Err(ArenaError::TooSmall(capacity));
        }
        if let Some(memory) = daemon::memory::limit().filter(|&memory| memory < capacity) {
            return Err(ArenaError::TooLarge { asked: capacity, memory });
        }
        Self::reserve(capacity / UNIT_SIZE * UNIT_SIZE)
    }

    /// The same without a minimum, and of exactly `capacity` bytes.
    pub(super) fn reserve(capacity: u64) -> Result<Arc<Self>, ArenaError> {
        let units = u32::try_from(capacity.div_ceil(UNIT_SIZE)).unwrap_or(u32::MAX);
        let len = u64::from(units) * UNIT_SIZE;
        let region = ArenaRegion::map(len as usize).map_err(|source| ArenaError::Map { len, source })?;
        Ok(Arc::new(Self {
            layout: Mutex::new(ArenaLayout::new(units, capacity)),
            registrations: OnceLock::new(),
            region,
            capacity,
            waiters: MemoryWaiters::default(),
        }))
    }

    /// Makes the registrations by which devices write into slots. The arena withdraws them before
    /// it returns pages to the host.
    pub(super) fn registrations(self: &Arc<Self>) -> Arc<RegistrationCache> {
        let cache = RegistrationCache::new(self.clone(), UNIT_SIZE as usize);
        // One for each arena: registrations of a second cache would never be withdrawn.
        self.registrations.set(Arc::downgrade(&cache)).expect("called once, for the cache");
        cache
    }

    /// The most bytes that slots may take.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The fetches that wait for memory.
    pub(super) fn waiters(&self) -> &MemoryWaiters {
        &self.waiters
    }

    /// What kind of pages the host gave.
    pub fn backing(&self) -> PageBacking {
        self.region.backing()
    }

    /// Bytes of slots in use.
    pub fn used(&self) -> u64 {
        self.layout.lock().used()
    }

    /// How the memory is divided among size classes now. Visits every unit.
    pub fn classes(&self) -> Vec<SizeClassUsage> {
        self.layout.lock().classes()
    }

    /// A slot of `len` bytes, if there is room. Its content is unspecified.
    pub fn allocate(self: &Arc<Self>, len: usize) -> Option<Slot> {
        let position = self.layout.lock().allocate(SizeClass::of(len))?;
        Some(Slot { arena: self.clone(), position, len })
    }

    /// How many units there are.
    pub(super) fn units(&self) -> u32 {
        (self.region.len() as u64 / UNIT_SIZE) as u32
    }

    /// The unit with number `unit` as one slot, if all of it is free.
    pub(super) fn allocate_unit(self: &Arc<Self>, unit: u32) -> Option<Slot> {
        let position = self.layout.lock().allocate_unit(unit)?;
        Some(Slot { arena: self.clone(), position, len: UNIT_SIZE as usize })
    }

    /// The blocks that must be evicted so that a slot of `class` fits around `slot`. None if it
    /// cannot fit there, or if a slot in the way holds no published block.
    pub(super) fn blockers(&self, slot: &Slot, class: SizeClass) -> Option<Vec<BlockKey>> {
        self.layout.lock().blockers(slot.position, class)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("region", &self.region).finish_non_exhaustive()
    }
}

// SAFETY: the region is mapped for reading and writing at one address as long as the arena lives.
// A device writes only to slots that were detached for it (`Destination`), and there are no
// references to those.
unsafe impl Memory for Arena {
    fn start(&self) -> *mut u8 {
        self.region.start().as_ptr()
    }

    fn length(&self) -> usize {
        self.region.len()
    }
}

/// Exclusive access to a part of the arena. Freed when dropped.
pub struct Slot {
    arena: Arc<Arena>,
    position: SlotPosition,
    len: usize,
}

impl Slot {
    /// The size class.
    pub fn class(&self) -> SizeClass {
        self.position.class()
    }

    /// Returns the slot's pages to the host until the slot is written again; its content is zeros
    /// then. Does nothing and returns false where that is not possible: the pages belong to the
    /// huge page pool, or a device writes to the same unit now.
    pub(super) fn return_pages(&mut self) -> bool {
        let (offset, size) = (self.position.offset() as usize, self.position.size() as usize);
        let region = &self.arena.region;
        let return_pages = || region.return_pages(offset, size);
        let start = NonNull::new(self.start());
        match (self.arena.registrations.get().and_then(Weak::upgrade), start) {
            (Some(registrations), Some(start)) => {
                registrations.withdraw(start, size, return_pages) == Some(true)
            }
            _ => return_pages(),
        }
    }

    /// Has the kernel give the slot its pages now. The content becomes unspecified.
    pub(super) fn touch(&mut self) {
        for page in self.chunks_mut(PAGE_SIZE as usize) {
            page[0] = 0;
            std::hint::black_box(page);
        }
    }

    /// Sets the key under which the slot's block can be evicted, or that it cannot be.
    pub(super) fn set_owner(&self, key: Option<BlockKey>) {
        self.arena.layout.lock().set_owner(self.position, key);
    }

    /// The first byte.
    pub(super) fn start(&self) -> *mut u8 {
        // SAFETY: the layout was made for the size of the region, so the position lies within it.
        unsafe { self.arena.region.start().as_ptr().add(self.position.offset() as usize) }
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the position is within the region, which is mapped (and was zeroed) as long as
        // the arena lives. It is at least `len` bytes long and belongs to this slot alone until
        // the slot is dropped; writers need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.arena.layout.lock().release(self.position);
        self.arena.waiters.wake();
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
impl Slot {
    /// How many pages of 4 KiB of the slot are in memory.
    pub(super) fn pages_present(&self) -> usize {
        let mut present = vec![0u8; self.len() / 4096];
        let start = self.as_ptr().cast_mut().cast();
        // SAFETY: the range is mapped, begins at a page, and `present` has a byte for each page.
        let status = unsafe { libc::mincore(start, self.len(), present.as_mut_ptr()) };
        assert_eq!(status, 0);
        present.iter().filter(|&&page| page & 1 != 0).count()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("position", &self.position)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_are_too_small_or_too_large_are_refused() {
        assert!(matches!(Arena::new(1 << 20), Err(ArenaError::TooSmall(_))));
        let error = Arena::new(u64::MAX / 2).unwrap_err();
        assert!(matches!(error, ArenaError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn slots_are_aligned_zeroed_and_disjoint() {
        let arena = Arena::new(MIN_CAPACITY).unwrap();
        let mut chunk = arena.allocate(4 << 20).unwrap();
        let mut small = arena.allocate(5000).unwrap();
        assert_eq!(chunk.as_ptr() as usize % (4 << 20) % (2 << 20), 0);
        assert_eq!(small.as_ptr() as usize % 4096, 0);
        assert!(chunk.iter().chain(small.iter()).all(|&byte| byte == 0));
        chunk.fill(1);
        small.fill(2);
        assert!(chunk.iter().all(|&byte| byte == 1) && small.iter().all(|&byte| byte == 2));
        assert_eq!(arena.used(), (4 << 20) + 8192);
        let address = chunk.as_ptr();
        drop(chunk);
        assert_eq!(arena.allocate(3 << 20).unwrap().as_ptr(), address);
    }

    #[test]
    fn returned_pages_leave_the_process() {
        let arena = Arena::new(MIN_CAPACITY).unwrap();
        let mut slot = arena.allocate(4 << 20).unwrap();
        slot.fill(1);
        assert_eq!(slot.pages_present(), 1024);
        if arena.backing() == PageBacking::Hugetlb {
            assert!(!slot.return_pages());
            return;
        }
        // Pages that devices may know are returned as well.
        let _registrations = arena.registrations();
        assert!(slot.return_pages());
        assert_eq!(slot.pages_present(), 0);
        assert!(slot.iter().all(|&byte| byte == 0));
    }
}
