//! The C library's heap, whose memory is a part of no budget.

use std::thread::available_parallelism;

#[cfg(target_env = "gnu")]
use nix::libc;

/// The least and the most arenas.
const ARENAS: (usize, usize) = (2, 8);

/// Has threads share a few arenas of the heap. By itself glibc gives each thread one of its own, up
/// to eight for each CPU; replies of some MiB leave tens of MiB free in each of them, which other
/// threads do not get: a mount with a cache of 48 MiB kept 173 MiB of private memory instead of 88,
/// at the same speed, and an engine with answers that no client takes up to 30 MiB more than their
/// budget. To be called before other threads begin.
pub fn share_arenas() {
    let arenas = available_parallelism().map_or(ARENAS.0, usize::from).clamp(ARENAS.0, ARENAS.1);
    #[cfg(target_env = "gnu")]
    // SAFETY: the call changes a setting of the allocator, and takes numbers only.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas as libc::c_int);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}
