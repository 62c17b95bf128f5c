//! Requests to the daemon, and its answers.
//!
//! There are two programs for each of the two hooks: one for the BTF tracepoint, which loads
//! fields directly, and one for the raw tracepoint, for kernels with FUSE as a module, where aya
//! cannot attach the first.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use interceptor_ebpf::histogram::{BUCKETS, bucket_of};
use interceptor_ebpf::pages::ByteRange;
use interceptor_ebpf::records::{Latency, LatencyKey, RequestKey};

use crate::kernel::{Address, DirectLoad, LoadField, ProbeRead};
use crate::maps::{LATENCY, Mount, REQUESTS, watched_mount};
use crate::rodata::{OFFSETS, SETTINGS, rodata};
use crate::warnings::{RareBranch, warn};
use crate::{hotness, readers, threads};

/// `FUSE_READ` of `linux/fuse.h`.
pub(crate) const FUSE_READ: u32 = 15;

/// The first fields of `struct fuse_read_in` of `linux/fuse.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ReadIn {
    handle: u64,
    pub(crate) offset: u64,
    size: u32,
}

/// What a request to read says.
pub(crate) struct ReadRequest {
    pub(crate) node: u64,
    /// The thread that reads.
    pub(crate) thread: u32,
    /// The byte of flags with the one that tells whether the request fills the page cache.
    zeroing: u8,
    pub(crate) input: ReadIn,
}

/// The fields of a request to read.
#[inline(always)]
pub(crate) fn read_of<L: LoadField>(request: Address) -> Option<ReadRequest> {
    // The value of an argument is a `void *` to the verifier, so it is copied.
    // SAFETY: any bits are a valid pointer, integer or structure of integers.
    unsafe {
        let arguments: Address = L::field(request, rodata!(OFFSETS.request_args))?;
        let value: Address = L::field(arguments, rodata!(OFFSETS.args_value))?;
        Some(ReadRequest {
            node: L::field(request, rodata!(OFFSETS.request_nodeid))?,
            thread: L::field(request, rodata!(OFFSETS.request_pid))?,
            zeroing: L::field(arguments, rodata!(OFFSETS.args_page_zeroing))?,
            input: ProbeRead::field(value, 0)?,
        })
    }
}

/// A request is queued for the daemon.
#[btf_tracepoint(function = "fuse_request_send")]
fn request_sent(context: BtfTracePointContext) -> i32 {
    sent::<DirectLoad>(context.arg(0)).unwrap_or(0)
}

/// As [`request_sent`], on the raw tracepoint.
#[raw_tracepoint(tracepoint = "fuse_request_send")]
fn request_sent_raw(context: RawTracePointContext) -> i32 {
    sent::<ProbeRead>(context.arg(0)).unwrap_or(0)
}

/// A request was answered or aborted.
#[btf_tracepoint(function = "fuse_request_end")]
fn request_ended(context: BtfTracePointContext) -> i32 {
    ended::<DirectLoad>(context.arg(0)).unwrap_or(0)
}

/// As [`request_ended`], on the raw tracepoint.
#[raw_tracepoint(tracepoint = "fuse_request_end")]
fn request_ended_raw(context: RawTracePointContext) -> i32 {
    ended::<ProbeRead>(context.arg(0)).unwrap_or(0)
}

#[inline(always)]
fn sent<L: LoadField>(request: Address) -> Option<i32> {
    let mount = watched_mount(device_of::<L>(request)?)?;
    mount.traffic.requests += 1;
    // SAFETY: any bits are a valid integer.
    let (unique, opcode) = unsafe {
        (
            L::field(request, rodata!(OFFSETS.request_unique))?,
            L::field::<u32>(request, rodata!(OFFSETS.request_opcode))?,
        )
    };
    let key = RequestKey { unique, watch_id: mount.watched.watch_id };
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Err(error) = REQUESTS.insert(key, now, 0) {
        // Only the duration of this request is lost.
        warn(RareBranch::RequestsFull, error.into());
    }
    if opcode == FUSE_READ { sent_read::<L>(request, mount) } else { None }
}

#[inline(always)]
fn sent_read<L: LoadField>(request: Address, mut mount: Mount) -> Option<i32> {
    let ReadRequest { node, thread, zeroing, input } = read_of::<L>(request)?;
    let length = u64::from(input.size);
    // Bounds the offset, because offset and length are added below.
    if input.offset > u64::MAX / 4 {
        warn(RareBranch::OffsetOutOfRange, input.offset as i64);
        return None;
    }
    if length == 0 {
        return None;
    }
    let range = ByteRange { offset: input.offset, length };
    let fills = u32::from(zeroing) & rodata!(OFFSETS.args_page_zeroing_mask) != 0;
    // A request that another thread sends is attributed to no reader.
    let own = threads::is_current(thread);
    if let Some(reader) = own.then(|| readers::current(mount.watched.watch_id)).flatten() {
        reader.requested_bytes += length;
        if !fills {
            reader.reads += 1;
            reader.bytes += length;
        }
    }
    if fills {
        mount.traffic.fill_requests += 1;
        mount.traffic.fill_bytes += length;
    } else {
        mount.traffic.direct_reads += 1;
        mount.traffic.direct_bytes += length;
    }
    if !fills || rodata!(SETTINGS.cached_reads_seen) == 0 {
        hotness::record_read(&mut mount, node, range);
    }
    None
}

#[inline(always)]
fn ended<L: LoadField>(request: Address) -> Option<i32> {
    let watch_id = watched_mount(device_of::<L>(request)?)?.watched.watch_id;
    // SAFETY: any bits are a valid integer.
    let (unique, opcode, error) = unsafe {
        (
            L::field(request, rodata!(OFFSETS.request_unique))?,
            L::field(request, rodata!(OFFSETS.request_opcode))?,
            L::field::<i32>(request, rodata!(OFFSETS.request_error))?,
        )
    };
    let key = RequestKey { unique, watch_id };
    // SAFETY: any bits are a valid integer, even if the entry is overwritten meanwhile.
    let sent = unsafe { *REQUESTS.get(key)? };
    // Only this program removes the entry.
    let _ = REQUESTS.remove(key);
    // SAFETY: the helper has no arguments.
    let took = unsafe { bpf_ktime_get_ns() }.saturating_sub(sent);
    let latency = latency(&LatencyKey { watch_id: watch_id as u32, opcode })?;
    // The verifier needs the bound.
    let bucket = bucket_of(took);
    if bucket < BUCKETS {
        latency.buckets[bucket] += 1;
    }
    latency.nanos += took;
    latency.errors += u64::from(error < 0);
    None
}

/// The device number of the mount that a request is for.
#[inline(always)]
pub(crate) fn device_of<L: LoadField>(request: Address) -> Option<u32> {
    // SAFETY: any bits are a valid pointer or integer.
    unsafe {
        let owner: Address = L::field(request, rodata!(OFFSETS.request_owner))?;
        let connection: Address = L::field(owner, rodata!(OFFSETS.owner_connection))?;
        L::field(connection, rodata!(OFFSETS.connection_dev))
    }
}

#[inline(always)]
fn latency(key: &LatencyKey) -> Option<&'static mut Latency> {
    let entry = match LATENCY.get_ptr_mut(key) {
        Some(entry) => entry,
        None => {
            insert_empty(key);
            LATENCY.get_ptr_mut(key)?
        }
    };
    // SAFETY: the entry is this CPU's own; see `maps::watched_mount`.
    Some(unsafe { &mut *entry })
}

#[inline(never)]
fn insert_empty(key: &LatencyKey) {
    if let Err(error) = LATENCY.insert(key, &Latency::NONE, 0) {
        // Further opcodes have no histogram.
        warn(RareBranch::LatencyFull, error.into());
    }
}
