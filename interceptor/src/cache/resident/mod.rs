//! Files that the kernel serves by itself.
//!
//! A hot file whose bytes are all in memory is worth more as a file of its own than as blocks of the arena: the kernel
//! reads it by FUSE passthrough, at the speed of its page cache, and the daemon is not asked. Such a file is a
//! [`ResidentFile`] on a [private tmpfs](tmpfs).

mod file;
mod tmpfs;

pub use file::{Draft, ResidentFile};
pub use tmpfs::TmpfsError;

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
