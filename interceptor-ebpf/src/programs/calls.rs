//! The read calls of applications, from the system call to its end. These programs see every system
//! call of the host, so they are attached only while a client of the status API follows calls.
//!
//! Between the two ends of a call, the hooks of reads note in its [`CallState`] which file it reads
//! and whether the daemon was asked. Calls that read nothing of a watched mount are forgotten.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::{btf_tracepoint, fentry, map, raw_tracepoint};
use aya_ebpf::maps::{LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, RawTracePointContext};
use interceptor_ebpf::call::{CallRecord, CallSettings, CallState, READ_SYSCALLS};
use interceptor_ebpf::pages::PAGE;

use crate::kernel::{Address, DirectLoad, LoadField, ProbeRead, device_of, node_of};
use crate::maps::watched_mount;
use crate::requests::{self, FUSE_READ};
use crate::rodata::{self, OFFSETS, rodata};
use crate::threads::{self, ThreadNumbers};

/// Which system calls read.
#[unsafe(no_mangle)]
static CALL_SETTINGS: CallSettings = CallSettings::NONE;

/// The read calls that have not returned, by thread. Calls of the whole host that wait for long, as
/// for a socket, leave it if there are too many.
#[map]
static CALLS: LruHashMap<u64, CallState> = LruHashMap::with_max_entries(8192, 0);

/// Those that have returned. The daemon polls for them.
#[map]
static CALL_EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// How many found no room there.
#[map]
static LOST_CALLS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A thread enters a system call.
#[btf_tracepoint(function = "sys_enter")]
fn call_entered(context: BtfTracePointContext) -> i32 {
    let number: u64 = context.arg(1);
    for index in 0..READ_SYSCALLS {
        if u64::from(rodata::load(&CALL_SETTINGS.read_syscalls[index])) == number {
            // SAFETY: the helper has no arguments.
            let now = unsafe { bpf_ktime_get_ns() };
            // A call that finds no room is not reported.
            let _ = CALLS.insert(bpf_get_current_pid_tgid(), CallState::begun(now), 0);
            break;
        }
    }
    0
}

/// A thread leaves a system call.
#[btf_tracepoint(function = "sys_exit")]
fn call_left(context: BtfTracePointContext) -> i32 {
    left(context.arg(1)).unwrap_or(0)
}

#[inline(always)]
fn left(returned: i64) -> Option<i32> {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: any bits are a valid state, even if the entry is evicted meanwhile.
    let call = unsafe { *CALLS.get(pid_tgid)? };
    // Only this thread removes its entry.
    let _ = CALLS.remove(pid_tgid);
    if call.watch_id == 0 {
        return None;
    }
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(mut entry) = CALL_EVENTS.reserve::<CallRecord>(0) else {
        // SAFETY: entries of arrays never move, and this one is the CPU's own.
        LOST_CALLS.get_ptr_mut(0).map(|lost| unsafe { *lost += 1 });
        return None;
    };
    let ThreadNumbers { process, thread } =
        threads::current().unwrap_or(ThreadNumbers { process: 0, thread: 0 });
    entry.write(CallRecord {
        call,
        took_ns: now.saturating_sub(call.begun_ns),
        returned,
        process,
        thread,
        command: bpf_get_current_comm().unwrap_or_default(),
    });
    const BPF_RB_NO_WAKEUP: u64 = 1;
    entry.submit(BPF_RB_NO_WAKEUP);
    None
}

/// The call of the current thread, if it is a read.
#[inline(always)]
fn current_call() -> Option<&'static mut CallState> {
    // SAFETY: the entry stays valid memory even if it is evicted. It is another thread's then, of
    // whose call a field may be wrong.
    CALLS.get_ptr_mut(bpf_get_current_pid_tgid()).map(|call| unsafe { &mut *call })
}

/// The kernel has found a batch of pages for a call.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
fn call_read_pages(context: BtfTracePointContext) -> i32 {
    read_pages(context.arg(0), context.arg(1), context.arg(2)).unwrap_or(0)
}

#[inline(always)]
fn read_pages(mapping: Address, first: u64, last: u64) -> Option<i32> {
    // SAFETY: any bits are a valid pointer.
    let inode = unsafe { DirectLoad::field(mapping, rodata!(OFFSETS.mapping_host))? };
    let mount = watched_mount(device_of::<DirectLoad>(inode)?)?;
    let call = current_call()?;
    call.reads(mount.watched.watch_id, node_of(inode)?, first.saturating_mul(PAGE));
    call.end = last.saturating_add(1).saturating_mul(PAGE);
    None
}

/// A call is about to read a backing file.
#[fentry(function = "fuse_passthrough_read_iter")]
fn call_passed_through(context: FEntryContext) -> i32 {
    passed_through(context.arg(0)).unwrap_or(0)
}

#[inline(always)]
fn passed_through(kiocb: Address) -> Option<i32> {
    // SAFETY: any bits are a valid pointer or integer.
    let (inode, offset) = unsafe {
        let file: Address = DirectLoad::field(kiocb, rodata!(OFFSETS.kiocb_file))?;
        (
            DirectLoad::field(file, rodata!(OFFSETS.file_inode))?,
            DirectLoad::field::<u64>(kiocb, rodata!(OFFSETS.kiocb_position))?,
        )
    };
    reads_backing_file(inode, offset)
}

/// A call is about to read a backing file into a pipe, as `sendfile` does.
#[fentry(function = "fuse_passthrough_splice_read")]
fn call_spliced(context: FEntryContext) -> i32 {
    spliced(context.arg(0), context.arg(1)).unwrap_or(0)
}

#[inline(always)]
fn spliced(file: Address, position: Address) -> Option<i32> {
    // SAFETY: any bits are a valid pointer or integer.
    let (inode, offset) = unsafe {
        (DirectLoad::field(file, rodata!(OFFSETS.file_inode))?, ProbeRead::field::<u64>(position, 0)?)
    };
    reads_backing_file(inode, offset)
}

#[inline(always)]
fn reads_backing_file(inode: Address, offset: u64) -> Option<i32> {
    let mount = watched_mount(device_of::<DirectLoad>(inode)?)?;
    let call = current_call()?;
    call.reads(mount.watched.watch_id, node_of(inode)?, offset);
    call.passthrough = 1;
    None
}

/// A request is queued for the daemon.
#[btf_tracepoint(function = "fuse_request_send")]
fn call_asked(context: BtfTracePointContext) -> i32 {
    asked::<DirectLoad>(context.arg(0)).unwrap_or(0)
}

/// As [`call_asked`], on the raw tracepoint.
#[raw_tracepoint(tracepoint = "fuse_request_send")]
fn call_asked_raw(context: RawTracePointContext) -> i32 {
    asked::<ProbeRead>(context.arg(0)).unwrap_or(0)
}

#[inline(always)]
fn asked<L: LoadField>(request: Address) -> Option<i32> {
    let mount = watched_mount(requests::device_of::<L>(request)?)?;
    // SAFETY: any bits are a valid integer.
    let opcode = unsafe { L::field::<u32>(request, rodata!(OFFSETS.request_opcode))? };
    if opcode != FUSE_READ {
        return None;
    }
    let read = requests::read_of::<L>(request)?;
    if threads::is_current(read.thread) {
        let call = current_call()?;
        call.reads(mount.watched.watch_id, read.node, read.input.offset);
        call.requests += 1;
    }
    None
}
