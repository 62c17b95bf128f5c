//! Memory that can be registered with RDMA devices. Also in programs without RDMA, so that they
//! need no other types.

use std::sync::Arc;

/// Memory that can be registered.
///
/// # Safety
/// As long as the value lives, also when it is moved, `start..start + length` stays mapped for
/// reading and writing at the same address, and no Rust reference is taken to it while a device
/// may write to it.
pub unsafe trait Memory: Send + Sync + 'static {
    /// The first byte.
    fn start(&self) -> *mut u8;

    /// How many bytes.
    fn length(&self) -> usize;
}

// SAFETY: the shared value lives as long as any `Arc` of it.
unsafe impl<M: Memory + ?Sized> Memory for Arc<M> {
    fn start(&self) -> *mut u8 {
        (**self).start()
    }

    fn length(&self) -> usize {
        (**self).length()
    }
}
