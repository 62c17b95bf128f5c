//! The parts of registration caches that one device knows.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::client::Destination;
use crate::client::registration_cache::{DeviceRegistrations, RegistrationCache};
use crate::memory::Memory;
use crate::transport::run_blocking;
use crate::verbs::{MemoryAccess, MemoryRegion, ProtectionDomain, VerbsError};

/// A part of a cache's memory that is registered with a device.
pub(super) type RegisteredPart = MemoryRegion<MemoryPart>;

/// The registered parts of one device.
pub(super) struct RegisteredParts {
    domain: Arc<ProtectionDomain>,
    caches: Mutex<HashMap<usize, PartsByAddress>>,
}

/// The parts of one cache, by the address of their first byte. They do not overlap.
type PartsByAddress = BTreeMap<usize, Arc<RegisteredPart>>;

/// A range of a cache's memory, with a share in its ownership.
pub(super) struct MemoryPart {
    memory: Arc<dyn Memory>,
    offset: usize,
    length: usize,
}

// SAFETY: a part of memory that stays mapped while it is shared. As for all of that memory, no
// references are taken to it while a device writes there.
unsafe impl Memory for MemoryPart {
    fn start(&self) -> *mut u8 {
        // SAFETY: the offset lies within the memory.
        unsafe { self.memory.start().add(self.offset) }
    }

    fn length(&self) -> usize {
        self.length
    }
}

impl RegisteredParts {
    pub(super) fn new(domain: Arc<ProtectionDomain>) -> Arc<Self> {
        Arc::new(Self { domain, caches: Mutex::default() })
    }

    /// The registered part of `cache` that the destination lies in; registers it if need be.
    /// `None` if the destination lies elsewhere, or cannot be registered now.
    pub(super) fn find_or_register(
        self: &Arc<Self>,
        cache: &RegistrationCache,
        destination: &dyn Destination,
    ) -> Option<Arc<RegisteredPart>> {
        let (start, length) = (destination.start() as usize, destination.length());
        let offset = start.checked_sub(cache.memory.start() as usize)?;
        if cache.memory.length().checked_sub(offset)? < length || cache.refused.load(Ordering::Relaxed) {
            return None;
        }
        let known = self.caches.lock().get(&cache.id()).and_then(|parts| covering(parts, start, length));
        if known.is_some() {
            return known;
        }
        // Pinning takes a while.
        match run_blocking(|| self.register(cache, offset, length)) {
            Ok(part) => part,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "an RDMA device does not take the cache's memory; bytes will be copied into it. Is the \
                     limit on locked memory (ulimit -l, LimitMEMLOCK) large enough?"
                );
                cache.refused.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    fn register(
        self: &Arc<Self>,
        cache: &RegistrationCache,
        offset: usize,
        length: usize,
    ) -> Result<Option<Arc<RegisteredPart>>, VerbsError> {
        let mut devices = cache.devices.lock();
        let mut caches = self.caches.lock();
        let parts = caches.entry(cache.id()).or_default();
        let first = offset / cache.unit * cache.unit;
        let end = (offset + length).next_multiple_of(cache.unit).min(cache.memory.length());
        let base = cache.memory.start() as usize;
        // Another reader may have registered it meanwhile.
        if let Some(part) = covering(parts, base + offset, length) {
            return Ok(Some(part));
        }
        // Smaller parts are replaced, unless a device writes to one of them.
        if remove_overlapping(parts, base + first, end - first).is_none() {
            return Ok(None);
        }
        let memory = MemoryPart { memory: cache.memory.clone(), offset: first, length: end - first };
        let part = Arc::new(self.domain.register(memory, MemoryAccess::Local)?);
        parts.insert(base + first, part.clone());
        devices.retain(|device| device.strong_count() > 0);
        let own: Weak<dyn DeviceRegistrations> = Arc::downgrade(self) as _;
        if !devices.iter().any(|device| std::ptr::addr_eq(device.as_ptr(), own.as_ptr())) {
            devices.push(own);
        }
        Ok(Some(part))
    }
}

impl DeviceRegistrations for RegisteredParts {
    fn withdraw(&self, cache: usize, start: usize, length: usize) -> Option<()> {
        let mut caches = self.caches.lock();
        remove_overlapping(caches.entry(cache).or_default(), start, length)
    }

    fn registered(&self, cache: usize) -> u64 {
        let caches = self.caches.lock();
        let parts = caches.get(&cache).into_iter().flatten();
        parts.map(|(_, part)| part.memory().length() as u64).sum()
    }

    fn forget(&self, cache: usize) {
        self.caches.lock().remove(&cache);
    }
}

/// The part that contains all of a range.
fn covering(parts: &PartsByAddress, start: usize, length: usize) -> Option<Arc<RegisteredPart>> {
    let (&first, part) = parts.range(..=start).next_back()?;
    (start + length <= first + part.memory().length()).then(|| part.clone())
}

/// Removes all parts that overlap a range. `None`, and nothing is removed, if one is in use: parts
/// are cloned only under the lock that the caller holds.
fn remove_overlapping(parts: &mut PartsByAddress, start: usize, length: usize) -> Option<()> {
    let overlapping: Vec<usize> = parts
        .range(..start + length)
        .filter(|(first, part)| *first + part.memory().length() > start)
        .map(|(&first, _)| first)
        .collect();
    if overlapping.iter().any(|first| Arc::strong_count(&parts[first]) > 1) {
        return None;
    }
    for first in overlapping {
        parts.remove(&first);
    }
    Some(())
}
