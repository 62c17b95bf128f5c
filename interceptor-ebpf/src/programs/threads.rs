//! The numbers of the current thread and its process, as the daemon knows them.

use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_get_ns_current_pid_tgid;

use crate::rodata::{PID_NAMESPACE, rodata};

/// A thread of a process.
#[derive(Clone, Copy)]
pub(crate) struct ThreadNumbers {
    pub(crate) process: u32,
    pub(crate) thread: u32,
}

/// The current thread, in the PID namespace of the daemon; `None` if it is in another one.
#[inline(always)]
pub(crate) fn current() -> Option<ThreadNumbers> {
    let (device, inode) = (rodata!(PID_NAMESPACE.device), rodata!(PID_NAMESPACE.inode));
    if inode == 0 {
        let pid_tgid = bpf_get_current_pid_tgid();
        return Some(ThreadNumbers { process: (pid_tgid >> 32) as u32, thread: pid_tgid as u32 });
    }
    let mut found = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: `found` is a structure of the size that is passed.
    let error = unsafe {
        bpf_get_ns_current_pid_tgid(device, inode, &raw mut found, size_of::<bpf_pidns_info>() as u32)
    };
    (error == 0).then_some(ThreadNumbers { process: found.tgid, thread: found.pid })
}

/// Whether a request of `thread` is sent by that thread. The kernel sends a deferred background
/// request in the context of the thread that completes another request. Of a thread in another PID
/// namespace that is not known, and then it is taken for its own.
#[inline(always)]
pub(crate) fn is_current(thread: u32) -> bool {
    current().is_none_or(|numbers| numbers.thread == thread)
}
