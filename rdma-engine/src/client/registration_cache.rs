//! The registration cache: which parts of the caller's memory are registered with RDMA devices.
//!
//! To register memory means to pin it and to give the device its addresses. That is too slow for
//! every read; for all of a large cache at once it takes seconds and leaves no lockable memory for
//! others. So a part is registered when the first read needs it, stays registered, and is
//! withdrawn when its owner wants to give its pages back to the system. In between, its bytes may
//! change owners at any time.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::memory::Memory;

/// Memory whose parts are registered with devices as reads need them
/// ([`Client::read_owned`](crate::client::Client::read_owned)). Clients that are given the same
/// cache share its registrations.
#[cfg_attr(not(feature = "verbs"), expect(dead_code, reason = "only devices use all of it"))]
pub struct RegistrationCache {
    pub(super) memory: Arc<dyn Memory>,
    /// Parts begin and end at multiples of this many bytes.
    pub(super) unit: usize,
    /// A device has refused a part, most likely for want of lockable memory. No device is asked
    /// again.
    pub(super) refused: AtomicBool,
    /// The devices that may have parts of the memory. The lock is held while a part is registered
    /// or withdrawn.
    pub(super) devices: Mutex<Vec<Weak<dyn DeviceRegistrations>>>,
}

/// The registrations of one device. Caches are told apart by [`RegistrationCache::id`].
pub(super) trait DeviceRegistrations: Send + Sync {
    /// Withdraws every part of a cache that overlaps `length` bytes from `start` on. `None`, and
    /// nothing is withdrawn, while one of them is in use.
    fn withdraw(&self, cache: usize, start: usize, length: usize) -> Option<()>;

    /// How many bytes of a cache are registered.
    fn registered(&self, cache: usize) -> u64;

    /// Withdraws everything of a cache.
    fn forget(&self, cache: usize);
}

impl RegistrationCache {
    /// A cache in which nothing of `memory` is registered yet. Parts begin and end at multiples of
    /// `unit` bytes from the start of the memory.
    pub fn new(memory: Arc<dyn Memory>, unit: usize) -> Arc<Self> {
        let (refused, devices) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self { memory, unit: unit.max(1), refused, devices })
    }

    /// Withdraws all parts that overlap `length` bytes from `start` on from every device, and
    /// calls `then` before any of them can be registered again. Pages must only be replaced in
    /// `then`: a device that knows the old pages would go on using them. Returns the result of
    /// `then`, or `None` without having called it, while a device may write to one of the parts.
    pub fn withdraw<T>(&self, start: NonNull<u8>, length: usize, then: impl FnOnce() -> T) -> Option<T> {
        let devices = self.devices.lock();
        for device in devices.iter().filter_map(Weak::upgrade) {
            device.withdraw(self.id(), start.as_ptr() as usize, length)?;
        }
        Some(then())
    }

    /// How many bytes are registered, summed over all devices.
    pub fn registered(&self) -> u64 {
        let devices = self.devices.lock();
        devices.iter().filter_map(Weak::upgrade).map(|device| device.registered(self.id())).sum()
    }

    /// Tells this cache from all others that live.
    pub(super) fn id(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}

impl Drop for RegistrationCache {
    fn drop(&mut self) {
        let id = self.id();
        for device in self.devices.get_mut().iter().filter_map(Weak::upgrade) {
            device.forget(id);
        }
    }
}

impl fmt::Debug for RegistrationCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrationCache").field("unit", &self.unit).finish_non_exhaustive()
    }
}
