//! Reading the kernel's structures.
//!
//! Where the verifier knows the type of a pointer ([`Typed`]: arguments of BTF tracepoints and what hangs on them) a field is an ordinary
//! load, and a bad pointer reads as zeros. Elsewhere ([`Untyped`]) a helper copies it, which is slower and may fail.

use aya_ebpf::helpers::bpf_probe_read_kernel;

use crate::given::{LAYOUT, given};

/// The address of something of the kernel's.
pub(crate) type Address = *const u8;

/// A way to read memory of the kernel.
pub(crate) trait Memory {
    /// The field of type `T` at `offset` in the structure at `base`.
    ///
    /// # Safety
    /// `T` may have any bits. For [`Typed`] the verifier checks the rest, for [`Untyped`] nothing else matters.
    unsafe fn field<T: Copy>(base: Address, offset: u32) -> Option<T>;
}

/// Through pointers whose types the verifier knows.
pub(crate) struct Typed;

/// Through any pointer.
pub(crate) struct Untyped;

impl Memory for Typed {
    #[inline(always)]
    unsafe fn field<T: Copy>(base: Address, offset: u32) -> Option<T> {
        // SAFETY: by the caller.
        Some(unsafe { base.add(offset as usize).cast::<T>().read_volatile() })
    }
}

impl Memory for Untyped {
    #[inline(always)]
    unsafe fn field<T: Copy>(base: Address, offset: u32) -> Option<T> {
        // SAFETY: the helper checks the address; by the caller any bits are a `T`.
        unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<T>()).ok() }
    }
}

/// The device number of the file system that an inode belongs to.
#[inline(always)]
pub(crate) fn device_of<M: Memory>(inode: Address) -> Option<u32> {
    // SAFETY: pointers and numbers have any bits.
    unsafe {
        let superblock = M::field(inode, given!(LAYOUT.inode_super))?;
        M::field(superblock, given!(LAYOUT.super_device))
    }
}

/// The FUSE node of an inode of a FUSE file system.
#[inline(always)]
pub(crate) fn node_of(inode: Address) -> Option<u64> {
    // The verifier knows the inode but not what it is embedded in.
    // SAFETY: numbers have any bits.
    unsafe { Untyped::field(inode, given!(LAYOUT.inode_node)) }
}

/// The size of a file, as far as the kernel knows.
#[inline(always)]
pub(crate) fn size_of_file<M: Memory>(inode: Address) -> Option<u64> {
    // SAFETY: numbers have any bits.
    unsafe { M::field(inode, given!(LAYOUT.inode_size)) }
}

/// The inode number of a file: the daemon's choice.
#[inline(always)]
pub(crate) fn number_of<M: Memory>(inode: Address) -> Option<u64> {
    // SAFETY: numbers have any bits.
    unsafe { M::field(inode, given!(LAYOUT.inode_number)) }
}
