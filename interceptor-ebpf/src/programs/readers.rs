//! The read statistics of threads, as long as the LRU map keeps them.

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use interceptor_ebpf::records::{ReaderKey, ReaderStats};

use crate::maps::READERS;
use crate::warnings::{RareBranch, warn};

/// The statistics of the current thread as a reader of a mount. `None` if the map cannot take an
/// entry.
#[inline(always)]
pub(crate) fn current(watch_id: u64) -> Option<&'static mut ReaderStats> {
    entry(ReaderKey { pid_tgid: bpf_get_current_pid_tgid(), watch_id })
}

/// As [`current`], for a caller that has the current thread's key already.
#[inline(always)]
pub(crate) fn entry(key: ReaderKey) -> Option<&'static mut ReaderStats> {
    let entry = match READERS.get_ptr_mut(key) {
        Some(entry) => entry,
        None => {
            insert_current(&key)?;
            READERS.get_ptr_mut(key)?
        }
    };
    // SAFETY: only this thread writes to the entry, and it runs on one CPU. The entry stays valid
    // memory even if it is evicted meanwhile.
    Some(unsafe { &mut *entry })
}

#[inline(never)]
fn insert_current(key: &ReaderKey) -> Option<()> {
    let reader = ReaderStats {
        // SAFETY: the helper has no arguments.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        command: bpf_get_current_comm().unwrap_or_default(),
        reads: 0,
        bytes: 0,
        requested_bytes: 0,
    };
    READERS.insert(key, &reader, 0).inspect_err(|error| warn(RareBranch::ReadersFull, (*error).into())).ok()
}
