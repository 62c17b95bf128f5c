//! One region of memory at addresses that never change, cut into slots.
//!
//! The region is reserved when the daemon starts and touched only as slots are used, so an idle cache costs nothing. A
//! [`Slot`] is the only way to a part of it: it is exclusive, and gives its part back when dropped. Which parts are free
//! is the [`layout`]'s business; the kind of pages is the [`region`]'s.
//!
//! An RDMA device must know memory before it can write there. [`Arena::register`] shows it the whole region, once, so
//! that any slot is a legal target afterwards; that pins the pages and so takes the memory at once.

mod layout;
mod region;
mod room;

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use layout::{Layout, Place, UNIT};
use region::Region;
pub(super) use room::Room;

use super::BlockKey;
use super::sync::Mutex;

pub use layout::{Class, ClassUsage};
pub use region::Backing;

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
    /// The device did not take the memory.
    #[error("cannot register {len} bytes of cache with the device: {source}")]
    Register {
        /// The size of the region.
        len: usize,
        /// What the device's driver said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is done once.
    #[error("the cache is registered with a device already")]
    AlreadyRegistered,
}

/// A device that reads or writes the arena without the processor.
pub trait Registration {
    /// Makes the `len` bytes from `start` on known to the device, until what is returned is dropped. They stay mapped
    /// until then. May take long: the device pins every page.
    fn register(
        &self,
        start: NonNull<u8>,
        len: usize,
    ) -> Result<Box<dyn Any + Send + Sync>, Box<dyn std::error::Error + Send + Sync>>;
}

/// See the module's documentation.
pub struct Arena {
    layout: Mutex<Layout<BlockKey>>,
    /// Dropped before the region is unmapped.
    registered: Mutex<Option<Box<dyn Any + Send + Sync>>>,
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
        if let Some(memory) = region::memory_limit().filter(|&memory| memory < capacity) {
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
            registered: Mutex::new(None),
            region,
            capacity,
            room: Room::default(),
        }))
    }

    /// Shows the whole region to a device.
    pub fn register(&self, device: &dyn Registration) -> Result<(), ArenaError> {
        let mut registered = self.registered.lock();
        if registered.is_some() {
            return Err(ArenaError::AlreadyRegistered);
        }
        let len = self.region.len();
        let guard = device.register(self.region.start(), len);
        *registered = Some(guard.map_err(|source| ArenaError::Register { len, source })?);
        Ok(())
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
    /// returns false where that is not possible: where a device was shown the pages, or they belong to a pool of huge pages.
    pub(super) fn give_back_pages(&mut self) -> bool {
        // Held so that no device is shown the pages at this moment. It would go on using the ones that left.
        let registered = self.arena.registered.lock();
        registered.is_none()
            && self.arena.region.give_back(self.place.offset() as usize, self.place.size() as usize)
    }

    /// Says under which key the slot's content can be evicted, or that it cannot.
    pub(super) fn set_owner(&self, key: Option<BlockKey>) {
        self.arena.layout.lock().set_owner(self.place, key);
    }

    fn start(&self) -> *mut u8 {
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
        assert!(slot.give_back_pages());
        assert_eq!(pages_present(&slot), 0);
        assert!(slot.iter().all(|&byte| byte == 0));
        struct Device;
        impl Registration for Device {
            fn register(
                &self,
                _: NonNull<u8>,
                _: usize,
            ) -> Result<Box<dyn Any + Send + Sync>, Box<dyn std::error::Error + Send + Sync>> {
                Ok(Box::new(()))
            }
        }
        arena.register(&Device).unwrap();
        slot.fill(2);
        assert!(!slot.give_back_pages(), "a device may write there");
        assert!(slot.iter().all(|&byte| byte == 2));
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

    #[test]
    fn a_device_is_shown_the_region_once_and_may_refuse() {
        struct Device(Result<(), &'static str>);
        impl Registration for Device {
            fn register(
                &self,
                start: NonNull<u8>,
                len: usize,
            ) -> Result<Box<dyn Any + Send + Sync>, Box<dyn std::error::Error + Send + Sync>> {
                assert_eq!((start.as_ptr() as usize % (2 << 20), len), (0, MIN_CAPACITY as usize));
                self.0?;
                Ok(Box::new(()))
            }
        }
        let arena = Arena::new(MIN_CAPACITY).unwrap();
        let error = arena.register(&Device(Err("memory lock limit"))).unwrap_err();
        assert!(error.to_string().contains("memory lock limit"), "{error}");
        arena.register(&Device(Ok(()))).unwrap();
        assert!(matches!(arena.register(&Device(Ok(()))), Err(ArenaError::AlreadyRegistered)));
    }
}
