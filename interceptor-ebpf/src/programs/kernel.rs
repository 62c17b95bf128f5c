//! Loads of fields of kernel structures.
//!
//! If the verifier knows the type of a pointer ([`DirectLoad`]: arguments of BTF tracepoints, and
//! pointers loaded through them), a field is an ordinary load, and a bad pointer reads as zeros.
//! Otherwise ([`ProbeRead`]) a helper copies the field, which is slower and may fail.

use aya_ebpf::helpers::bpf_probe_read_kernel;

use crate::rodata::{OFFSETS, rodata};
use crate::warnings::{RareBranch, warn};

/// The address of an object of the kernel.
pub(crate) type Address = *const u8;

/// A way to load a field of kernel memory.
pub(crate) trait LoadField {
    /// The field of type `T` at `offset` in the structure at `base`.
    ///
    /// # Safety
    /// Any bits must be a valid `T`. The rest is checked: for [`DirectLoad`] by the verifier, for
    /// [`ProbeRead`] by the helper.
    unsafe fn field<T: Copy>(base: Address, offset: u32) -> Option<T>;
}

/// Loads through pointers whose types the verifier knows.
pub(crate) struct DirectLoad;

/// Copies with `bpf_probe_read_kernel`, through any pointer.
pub(crate) struct ProbeRead;

impl LoadField for DirectLoad {
    #[inline(always)]
    unsafe fn field<T: Copy>(base: Address, offset: u32) -> Option<T> {
        // SAFETY: required of the caller.
        Some(unsafe { base.add(offset as usize).cast::<T>().read_volatile() })
    }
}

impl LoadField for ProbeRead {
    #[inline(always)]
    unsafe fn field<T: Copy>(base: Address, offset: u32) -> Option<T> {
        // SAFETY: the helper checks the address; any bits are a `T`, as required of the caller.
        let read = unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<T>()) };
        read.inspect_err(|_| warn(RareBranch::UnreadableField, offset.into())).ok()
    }
}

/// The device number of an inode's file system.
#[inline(always)]
pub(crate) fn device_of<L: LoadField>(inode: Address) -> Option<u32> {
    // SAFETY: any bits are a valid pointer or integer.
    unsafe {
        let superblock = L::field(inode, rodata!(OFFSETS.inode_sb))?;
        L::field(superblock, rodata!(OFFSETS.super_dev))
    }
}

/// The FUSE node of an inode of a FUSE file system.
#[inline(always)]
pub(crate) fn node_of(inode: Address) -> Option<u64> {
    // The verifier knows the `inode`, but not the `fuse_inode` around it.
    // SAFETY: any bits are a valid integer.
    unsafe { ProbeRead::field(inode, rodata!(OFFSETS.fuse_nodeid)) }
}

/// The size of a file as the kernel knows it.
#[inline(always)]
pub(crate) fn file_size<L: LoadField>(inode: Address) -> Option<u64> {
    // SAFETY: any bits are a valid integer.
    unsafe { L::field(inode, rodata!(OFFSETS.inode_size)) }
}

/// The inode number of a file, which its daemon chooses.
#[inline(always)]
pub(crate) fn ino_of<L: LoadField>(inode: Address) -> Option<u64> {
    // SAFETY: any bits are a valid integer.
    unsafe { L::field(inode, rodata!(OFFSETS.inode_ino)) }
}
