//! Memory that an RDMA device can be shown. Known to programs without RDMA, too, so that theirs is no different.

use std::sync::Arc;

/// Memory that can be registered.
///
/// # Safety
/// As long as the value lives, also when it is moved, `start..start + length` stays mapped for reading and writing at the same address, and it is no memory that a Rust
/// reference is taken to while a device may write to it.
pub unsafe trait Memory: Send + Sync + 'static {
    /// The first byte.
    fn start(&self) -> *mut u8;

    /// How many bytes.
    fn length(&self) -> usize;
}

// SAFETY: what the `Arc` shares lives as long as any of them.
unsafe impl<M: Memory + ?Sized> Memory for Arc<M> {
    fn start(&self) -> *mut u8 {
        (**self).start()
    }

    fn length(&self) -> usize {
        (**self).length()
    }
}
