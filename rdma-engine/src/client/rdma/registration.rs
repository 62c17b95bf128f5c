//! The registration cache: which parts of the caller's memory each device knows.
//!
//! To register memory means to pin it and to tell the device its addresses: far too slow for every read, and for all of a large cache at once it takes seconds and
//! leaves nothing for others to use. So a part is registered when the first read lands there, stays so, and is withdrawn when its owner
//! wants to give its pages back to the system. In between, registered memory may change hands as often as it likes.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::adapter::Adapter;
use crate::client::Destination;
use crate::memory::Memory;
use crate::transport::aside;
use crate::verbs::{MemoryAccess, MemoryRegion, VerbsError};

/// A part of the memory that a device knows.
pub(in crate::client) type Registered = MemoryRegion<Span>;

/// What one device knows of each registration cache, by the address of that; of each, by the address of the part.
pub(super) type Known = HashMap<usize, BTreeMap<usize, Arc<Registered>>>;

/// Memory that devices are shown part by part, as reads bring bytes there ([`Client::read_owned`](crate::client::Client::read_owned)). Clients that
/// are given the same one share what is registered.
pub struct RegistrationCache {
    memory: Arc<dyn Memory>,
    unit: usize,
    /// A device has refused, for want of lockable memory most likely. It is not asked again.
    refused: AtomicBool,
    /// Who may know something of it. Held while anything is shown or withdrawn.
    adapters: Mutex<Vec<Weak<Adapter>>>,
}

/// A range of the memory, which it shares the ownership of.
pub(in crate::client) struct Span {
    memory: Arc<dyn Memory>,
    offset: usize,
    length: usize,
}

// SAFETY: a part of memory that stays mapped as long as it is shared, and as its whole, none that references are taken to while a device writes there.
unsafe impl Memory for Span {
    fn start(&self) -> *mut u8 {
        // SAFETY: the offset lies within the memory.
        unsafe { self.memory.start().add(self.offset) }
    }

    fn length(&self) -> usize {
        self.length
    }
}

impl RegistrationCache {
    /// Nothing of `memory` is registered yet. Parts that will be begin and end at multiples of `unit` bytes from its start, as do those that are withdrawn.
    pub fn new(memory: Arc<dyn Memory>, unit: usize) -> Arc<Self> {
        let (refused, adapters) = (AtomicBool::new(false), Mutex::default());
        Arc::new(Self { memory, unit: unit.max(1), refused, adapters })
    }

    /// Withdraws `length` bytes from `start` on from every device, with all of the parts that they are in, and calls `then` before any can be shown again: where pages are
    /// replaced, a device that knew the old ones would go on using them. Returns what that returns; `None`, without having called it, while a device may write to one of the parts.
    pub fn withdraw<T>(&self, start: NonNull<u8>, length: usize, then: impl FnOnce() -> T) -> Option<T> {
        let adapters = self.adapters.lock();
        for adapter in adapters.iter().filter_map(Weak::upgrade) {
            let mut known = adapter.known.lock();
            let parts = known.entry(self.id()).or_default();
            forget(parts, start.as_ptr() as usize, length)?;
        }
        Some(then())
    }

    /// How many bytes devices know.
    pub fn registered(&self) -> u64 {
        let adapters = self.adapters.lock();
        let of = |adapter: Arc<Adapter>| -> u64 {
            let known = adapter.known.lock();
            known.get(&self.id()).into_iter().flatten().map(|(_, part)| part.memory().length() as u64).sum()
        };
        adapters.iter().filter_map(Weak::upgrade).map(of).sum()
    }

    /// The part that the destination lies in, registered with the device. `None` if it lies elsewhere, or cannot be registered now.
    pub(super) fn region(
        &self,
        adapter: &Arc<Adapter>,
        destination: &dyn Destination,
    ) -> Option<Arc<Registered>> {
        let (start, length) = (destination.start() as usize, destination.length());
        let offset = start.checked_sub(self.memory.start() as usize)?;
        if self.memory.length().checked_sub(offset)? < length || self.refused.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(part) =
            adapter.known.lock().get(&self.id()).and_then(|parts| covering(parts, start, length))
        {
            return Some(part);
        }
        // Pinning takes a while.
        match aside(|| self.show(adapter, offset, length)) {
            Ok(part) => part,
            Err(error) => {
                tracing::warn!(%error, "an RDMA device does not take the cache's memory; bytes will be copied into it. Is the limit on locked memory (ulimit -l, LimitMEMLOCK) large enough?");
                self.refused.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    fn show(
        &self,
        adapter: &Arc<Adapter>,
        offset: usize,
        length: usize,
    ) -> Result<Option<Arc<Registered>>, VerbsError> {
        let mut adapters = self.adapters.lock();
        let mut known = adapter.known.lock();
        let parts = known.entry(self.id()).or_default();
        let first = offset / self.unit * self.unit;
        let end = (offset + length).next_multiple_of(self.unit).min(self.memory.length());
        let base = self.memory.start() as usize;
        // Another reader may have been here.
        if let Some(part) = covering(parts, base + offset, length) {
            return Ok(Some(part));
        }
        // Smaller parts make way, unless one is being written to.
        if forget(parts, base + first, end - first).is_none() {
            return Ok(None);
        }
        let span = Span { memory: self.memory.clone(), offset: first, length: end - first };
        let part = Arc::new(adapter.domain.register(span, MemoryAccess::Local)?);
        parts.insert(base + first, part.clone());
        adapters.retain(|adapter| adapter.strong_count() > 0);
        if !adapters.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(adapter))) {
            adapters.push(Arc::downgrade(adapter));
        }
        Ok(Some(part))
    }

    /// What the devices know it by.
    fn id(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}

impl Drop for RegistrationCache {
    fn drop(&mut self) {
        let id = self.id();
        for adapter in self.adapters.get_mut().iter().filter_map(Weak::upgrade) {
            adapter.known.lock().remove(&id);
        }
    }
}

impl fmt::Debug for RegistrationCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrationCache").field("unit", &self.unit).finish_non_exhaustive()
    }
}

/// The part that has all of a range.
fn covering(
    parts: &BTreeMap<usize, Arc<Registered>>,
    start: usize,
    length: usize,
) -> Option<Arc<Registered>> {
    let (&first, part) = parts.range(..=start).next_back()?;
    (start + length <= first + part.memory().length()).then(|| part.clone())
}

/// Takes out all parts that have something of a range. `None`, and they stay, if one is in use: clones are made under the lock that the caller holds.
fn forget(parts: &mut BTreeMap<usize, Arc<Registered>>, start: usize, length: usize) -> Option<()> {
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
