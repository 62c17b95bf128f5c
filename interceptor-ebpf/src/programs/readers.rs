//! Who reads, for as long as there is room to remember.

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use interceptor_ebpf::records::{Reader, ReaderKey};

use crate::maps::READERS;

/// The running thread, as a reader of a mount. `None` if the map cannot take it.
#[inline(always)]
pub(crate) fn current(watch: u64) -> Option<&'static mut Reader> {
    of(ReaderKey { thread: bpf_get_current_pid_tgid(), watch })
}

/// The same, if it is known that this is the running thread's key.
#[inline(always)]
pub(crate) fn of(key: ReaderKey) -> Option<&'static mut Reader> {
    let entry = match READERS.get_ptr_mut(key) {
        Some(entry) => entry,
        None => {
            first_seen(&key)?;
            READERS.get_ptr_mut(key)?
        }
    };
    // SAFETY: the entry is this thread's own, which runs on one CPU. If it is evicted meanwhile it stays valid memory.
    Some(unsafe { &mut *entry })
}

#[inline(never)]
fn first_seen(key: &ReaderKey) -> Option<()> {
    let reader = Reader {
        // SAFETY: the helper takes nothing.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        command: bpf_get_current_comm().unwrap_or_default(),
        reads: 0,
        bytes: 0,
        requested_bytes: 0,
    };
    READERS.insert(key, &reader, 0).ok()
}
