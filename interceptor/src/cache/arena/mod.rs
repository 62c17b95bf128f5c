//! One region of memory at addresses that never change, cut into slots.
//!
//! The region is reserved when the daemon starts and touched only as slots are used, so an idle cache costs nothing. A
//! [`Slot`] is the only way to a part of it: it is exclusive, and gives its part back when dropped. Which parts are free
//! is the [`layout`]'s business; the kind of pages is the [`region`]'s.
//!
//! An RDMA device must know memory before it can write there. It is shown what it needs as slots become targets, in whole units, and that stays
//! known ([`RegistrationCache`]): the next slot that is cut from it costs nothing. Before pages are given back to the host they are withdrawn.

mod bit_set;
mod layout;
mod region;
mod room;
mod size_class;

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, Weak};

use layout::{Layout, Place};
use rdma_engine::client::RegistrationCache;
use rdma_engine::memory::Memory;
use region::Region;
pub(super) use room::Room;
use size_class::UNIT;

use super::key::BlockKey;
use super::sync::Mutex;

pub use layout::ClassUsage;
pub use region::Backing;
pub use size_class::Class;

/// The smallest arena: it still lets some chunks of common size be fetched side by side.
pub const MIN_CAPACITY: u64 = 16 << 20;

/// Why there is no arena, or not for a device.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// Less than is of use.
    #[error("a cache of {0} bytes is too small: it takes {MIN_CAPACITY} (16 MiB) at least")]
    TooSmall(u64),
    /// More than there is.
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
    layout: Mutex<Layout<BlockKey>>,
    /// What devices were shown of the region, if they may be.
    registrations: OnceLock<Weak<RegistrationCache>>,
    region: Region,
    capacity: u64,
    room: Room,
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
        Self::reserve(capacity / UNIT * UNIT)
    }

    /// The same without a least size, and of exactly `capacity` bytes.
    pub(super) fn reserve(capacity: u64) -> Result<Arc<Self>, ArenaError> {
        let units = u32::try_from(capacity.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let len = u64::from(units) * UNIT;
        let region = Region::map(len as usize).map_err(|source| ArenaError::Map { len, source })?;
        Ok(Arc::new(Self {
            layout: Mutex::new(Layout::new(units, capacity)),
            registrations: OnceLock::new(),
            region,
            capacity,
            room: Room::default(),
        }))
    }

    /// Lets devices write into slots. What they are shown is withdrawn by the arena before it gives pages back.
    pub(super) fn registrations(self: &Arc<Self>) -> Arc<RegistrationCache> {
        let cache = RegistrationCache::new(self.clone(), UNIT as usize);
        // There is one for each arena; a second one would not be asked.
        self.registrations.set(Arc::downgrade(&cache)).expect("called once, for the cache");
        cache
    }

    /// Bytes that slots may take.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Where to wait until something can be freed.
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// What kind of pages the host gave.
    pub fn backing(&self) -> Backing {
        self.region.backing()
    }

    /// Bytes of slots in use.
    pub fn used(&self) -> u64 {
        self.layout.lock().used()
    }

    /// How the memory is divided at the moment. Takes time in proportion to its size.
    pub fn classes(&self) -> Vec<ClassUsage> {
        self.layout.lock().classes()
    }

    /// A slot of `len` bytes, if there is room. Its content is unspecified: whatever an earlier user left there.
    pub fn allocate(self: &Arc<Self>, len: usize) -> Option<Slot> {
        let place = self.layout.lock().allocate(Class::of(len))?;
        Some(Slot { arena: self.clone(), place, len })
    }

    /// Whose slots must be given back so that one of `class` can be had about where `slot` is; `None` if someone there
    /// has not said who he is.
    pub(super) fn neighbours(&self, slot: &Slot, class: Class) -> Option<Vec<BlockKey>> {
        self.layout.lock().neighbours(slot.place, class)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("region", &self.region).finish_non_exhaustive()
    }
}

// SAFETY: the region is mapped for reading and writing at one address as long as the arena lives. A device writes only to slots that were lent to it
// (`Destination`), and nobody has references to those.
unsafe impl Memory for Arena {
    fn start(&self) -> *mut u8 {
        self.region.start().as_ptr()
    }

    fn length(&self) -> usize {
        self.region.len()
    }
}

/// A part of the arena, exclusively. Given back when dropped.
pub struct Slot {
    arena: Arc<Arena>,
    place: Place,
    len: usize,
}

impl Slot {
    /// The size class.
    pub fn class(&self) -> Class {
        self.place.class()
    }

    /// Gives the slot's memory back to the host until it is written again; its content is zeros then. Does nothing and
    /// returns false where that is not possible: the pages belong to a pool of huge pages, or a device writes beside them at the moment.
    pub(super) fn give_back_pages(&mut self) -> bool {
        let (offset, size) = (self.place.offset() as usize, self.place.size() as usize);
        let region = &self.arena.region;
        let give_back = || region.give_back(offset, size);
        let start = NonNull::new(self.start());
        match (self.arena.registrations.get().and_then(Weak::upgrade), start) {
            (Some(registrations), Some(start)) => {
                registrations.withdraw(start, size, give_back) == Some(true)
            }
            _ => give_back(),
        }
    }

    /// Says under which key the slot's content can be evicted, or that it cannot.
    pub(super) fn set_owner(&self, key: Option<BlockKey>) {
        self.arena.layout.lock().set_owner(self.place, key);
    }

    /// The first byte.
    pub(super) fn start(&self) -> *mut u8 {
        // SAFETY: the layout was made for the size of the region, so the place lies within it.
        unsafe { self.arena.region.start().as_ptr().add(self.place.offset() as usize) }
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the place is within the region, which is mapped (and was zeroed) as long as the arena lives, is at
        // least `len` bytes long, and belongs to this slot alone until it is dropped; writers need `&mut self`.
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
        self.arena.layout.lock().release(self.place);
        self.arena.room.announce();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("place", &self.place).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_reason_are_refused() {
        assert!(matches!(Arena::new(1 << 20), Err(ArenaError::TooSmall(_))));
        let error = Arena::new(u64::MAX / 2).unwrap_err();
        assert!(matches!(error, ArenaError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn slots_are_aligned_zeroed_and_their_own() {
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
    fn memory_that_is_given_back_leaves_the_process() {
        let arena = Arena::new(MIN_CAPACITY).unwrap();
        let mut slot = arena.allocate(4 << 20).unwrap();
        slot.fill(1);
        assert_eq!(pages_present(&slot), 1024);
        if arena.backing() == Backing::Hugetlb {
            assert!(!slot.give_back_pages());
            return;
        }
        // Whether or not devices may be shown the memory.
        let _registrations = arena.registrations();
        assert!(slot.give_back_pages());
        assert_eq!(pages_present(&slot), 0);
        assert!(slot.iter().all(|&byte| byte == 0));
    }

    /// How many pages of 4 KiB of the slot are in memory.
    fn pages_present(slot: &Slot) -> usize {
        let mut present = vec![0u8; slot.len() / 4096];
        let start = slot.as_ptr().cast_mut().cast();
        // SAFETY: the range is mapped, begins at a page, and `present` has a byte for each of its pages.
        let status = unsafe { libc::mincore(start, slot.len(), present.as_mut_ptr()) };
        assert_eq!(status, 0);
        present.iter().filter(|&&page| page & 1 != 0).count()
    }
}
