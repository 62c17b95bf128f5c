//! Memory that devices may read and write.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use ibverbs_sys::{self as ffi, ibv_access_flags};
use memmap2::MmapMut;

use super::{DeviceContext, VerbsError};
use crate::memory::Memory;

/// A protection domain: a queue pair reaches only regions of its own domain, and so does a peer
/// through it.
pub struct ProtectionDomain {
    raw: NonNull<ffi::ibv_pd>,
    context: Arc<DeviceContext>,
}

// SAFETY: verbs may be called from any thread and from several at once.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// A new domain.
    ///
    /// # Errors
    /// When the device has no more domains.
    pub fn new(context: &Arc<DeviceContext>) -> Result<Arc<Self>, VerbsError> {
        // SAFETY: the context is open, and this domain keeps it so.
        let raw = unsafe { (context.functions.ibv_alloc_pd)(context.as_raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_alloc_pd"))?;
        Ok(Arc::new(Self { raw, context: Arc::clone(context) }))
    }

    /// Registers memory: pins it and gives the device its address. The region owns `memory`.
    ///
    /// # Errors
    /// When the system refuses. `ENOMEM` mostly means the limit on locked memory.
    pub fn register<M: Memory>(
        self: &Arc<Self>,
        memory: M,
        access: MemoryAccess,
    ) -> Result<MemoryRegion<M>, VerbsError> {
        // Local writing is also needed for memory that only peers read: a page that is pinned for
        // reading only may be replaced by a copy at this process's next write to it (copy on
        // write), and the device would go on reading the old page.
        let flags = match access {
            MemoryAccess::Local => ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            MemoryAccess::RemoteRead => {
                ibv_access_flags::IBV_ACCESS_LOCAL_WRITE | ibv_access_flags::IBV_ACCESS_REMOTE_READ
            }
        };
        let start = memory.start().cast::<c_void>();
        // SAFETY: the domain lives. By the contract of `Memory` the range is mapped for as long as
        // `memory` lives, and the region drops `memory` only after it has withdrawn the
        // registration.
        let raw = unsafe {
            (self.context.functions.ibv_reg_mr)(self.raw.as_ptr(), start, memory.length(), flags.0 as i32)
        };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_reg_mr"))?;
        Ok(MemoryRegion { raw, memory: ManuallyDrop::new(memory), domain: Arc::clone(self) })
    }

    /// The device.
    pub fn context(&self) -> &Arc<DeviceContext> {
        &self.context
    }

    pub(super) fn as_raw(&self) -> *mut ffi::ibv_pd {
        self.raw.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: regions and queue pairs hold an `Arc` of their domain, so none is left.
        unsafe { (self.context.functions.ibv_dealloc_pd)(self.raw.as_ptr()) };
    }
}

/// Who may access a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryAccess {
    /// The own device sends from it and writes into it; peers cannot reach it.
    Local,
    /// In addition, peers that know its rkey may read it.
    RemoteRead,
}

/// Zeroed pages of this process that contain nothing else.
#[derive(Debug)]
pub struct Pages(MmapMut);

impl Pages {
    /// At least one byte; whole pages are taken.
    ///
    /// # Errors
    /// When the system has no more memory.
    pub fn new(length: usize) -> io::Result<Self> {
        MmapMut::map_anon(length.max(1)).map(Self)
    }
}

// SAFETY: the mapping does not move and ends with the value. References into it are only made by
// the `RegisteredBuffer` that owns a range, which no device writes to unless the buffer is posted.
unsafe impl Memory for Pages {
    fn start(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut()
    }

    fn length(&self) -> usize {
        self.0.len()
    }
}

/// Registered memory. Dropping it withdraws the registration: peers that still hold the rkey are
/// refused from then on.
pub struct MemoryRegion<M: Memory> {
    raw: NonNull<ffi::ibv_mr>,
    memory: ManuallyDrop<M>,
    domain: Arc<ProtectionDomain>,
}

// SAFETY: verbs may be called from any thread; `M` is `Send` by the bound of its trait.
unsafe impl<M: Memory> Send for MemoryRegion<M> {}
// SAFETY: as above, `M` being `Sync`.
unsafe impl<M: Memory> Sync for MemoryRegion<M> {}

impl<M: Memory> MemoryRegion<M> {
    /// The memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The domain that it belongs to.
    pub fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    /// The key for work requests of this process ([`LocalMemory::lkey`]).
    pub fn lkey(&self) -> u32 {
        // SAFETY: the region is registered until it is dropped.
        unsafe { self.raw.as_ref().lkey }
    }

    /// Address and key with which a peer can read all of it.
    pub fn remote(&self) -> RemoteMemory {
        // SAFETY: as for the lkey.
        let rkey = unsafe { self.raw.as_ref().rkey };
        RemoteMemory { address: self.memory.start() as u64, rkey, length: self.memory.length() as u64 }
    }
}

impl MemoryRegion<Pages> {
    /// The whole region as one buffer, to be split.
    pub fn into_buffer(self) -> RegisteredBuffer {
        let length = self.memory.length();
        RegisteredBuffer { region: Arc::new(self), offset: 0, length }
    }
}

impl<M: Memory> Drop for MemoryRegion<M> {
    fn drop(&mut self) {
        // SAFETY: registered once, withdrawn once. Work that uses the region holds it, so none is
        // posted.
        let returned = unsafe { (self.domain.context.functions.ibv_dereg_mr)(self.raw.as_ptr()) };
        // If withdrawing fails, the device may still reach the memory: then the memory is never
        // freed.
        if returned == 0 {
            // SAFETY: dropped here and nowhere else.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

impl<M: Memory> fmt::Debug for MemoryRegion<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegion").field("remote", &self.remote()).finish_non_exhaustive()
    }
}

/// Memory of a peer, with its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteMemory {
    /// The first byte, in the peer's address space.
    pub address: u64,
    /// The key that opens it.
    pub rkey: u32,
    /// How many bytes.
    pub length: u64,
}

impl RemoteMemory {
    /// A part of it, if it lies within.
    pub fn slice(&self, offset: u64, length: u64) -> Option<Self> {
        let end = offset.checked_add(length)?;
        (end <= self.length).then(|| Self { address: self.address.wrapping_add(offset), length, ..*self })
    }
}

/// Memory for posted work. While it is posted, only the device uses it.
///
/// # Safety
/// As long as the value lives, also when it is moved, `start..start + length` is registered with
/// local writing under `lkey`, and only its owner reads or writes it. (Peers may read it, if it is
/// registered for that.)
pub unsafe trait LocalMemory: Send + 'static {
    /// The first byte.
    fn start(&self) -> *mut u8;

    /// How many bytes.
    fn length(&self) -> usize;

    /// The key of the region that it lies in.
    fn lkey(&self) -> u32;
}

/// A range of registered [`Pages`] with one owner, which reads and writes it like a slice of
/// bytes.
pub struct RegisteredBuffer {
    region: Arc<MemoryRegion<Pages>>,
    offset: usize,
    length: usize,
}

impl RegisteredBuffer {
    /// Splits it in two, the first with `at` bytes, or all if it has no more.
    pub fn split_at(mut self, at: usize) -> (Self, Self) {
        let at = at.min(self.length);
        let rest =
            Self { region: Arc::clone(&self.region), offset: self.offset + at, length: self.length - at };
        self.length = at;
        (self, rest)
    }

    /// Joins two adjacent ranges of one region, `next` behind this one.
    ///
    /// # Errors
    /// Both are given back if they are not adjacent.
    pub fn join(mut self, next: Self) -> Result<Self, (Self, Self)> {
        let adjacent = Arc::ptr_eq(&self.region, &next.region) && self.offset + self.length == next.offset;
        if !adjacent {
            return Err((self, next));
        }
        self.length += next.length;
        Ok(self)
    }

    /// Splits it into buffers of `length` bytes each, as many as fit; the rest is not used.
    pub fn split_every(self, length: usize) -> Vec<Self> {
        let count = self.length.checked_div(length).unwrap_or(0);
        let mut rest = self;
        let mut buffers = Vec::with_capacity(count);
        for _ in 0..count {
            let (buffer, remainder) = rest.split_at(length);
            buffers.push(buffer);
            rest = remainder;
        }
        buffers
    }

    /// Address and key with which a peer can read it, if the region was registered for that. The
    /// peer can read until the whole region is dropped.
    pub fn remote(&self) -> RemoteMemory {
        let region = self.region.remote();
        RemoteMemory { address: region.address + self.offset as u64, length: self.length as u64, ..region }
    }
}

// SAFETY: the buffer holds its region, is the only one with this range, and gives references to it
// only for a borrow of itself.
unsafe impl LocalMemory for RegisteredBuffer {
    fn start(&self) -> *mut u8 {
        // SAFETY: a buffer lies within its region.
        unsafe { self.region.memory.start().add(self.offset) }
    }

    fn length(&self) -> usize {
        self.length
    }

    fn lkey(&self) -> u32 {
        self.region.lkey()
    }
}

impl Deref for RegisteredBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: within the region, mapped and zeroed at first. No other buffer has the range,
        // and no device writes to it while the buffer is not posted.
        unsafe { slice::from_raw_parts(self.start(), self.length) }
    }
}

impl DerefMut for RegisteredBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the mutable borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.start(), self.length) }
    }
}

impl fmt::Debug for RegisteredBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredBuffer")
            .field("offset", &self.offset)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_remote_memory_lies_within() {
        let whole = RemoteMemory { address: 0x1000, rkey: 7, length: 100 };
        assert_eq!(whole.slice(40, 60), Some(RemoteMemory { address: 0x1028, rkey: 7, length: 60 }));
        assert_eq!(whole.slice(100, 0).unwrap().length, 0);
        assert_eq!(whole.slice(41, 60), None);
        assert_eq!(whole.slice(u64::MAX, 2), None);
    }
}
