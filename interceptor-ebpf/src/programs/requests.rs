//! Requests to the daemon, and its answers.
//!
//! Two programs for each of the two places: the BTF tracepoint, which loads fields directly, and the raw one for kernels whose FUSE is a
//! module, where the loader cannot attach the first.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use interceptor_ebpf::histogram::{BUCKETS, bucket_of};
use interceptor_ebpf::records::{Latency, LatencyKey, RequestKey};
use interceptor_ebpf::span::Span;

use crate::given::{LAYOUT, SETTINGS, given};
use crate::kernel::{Address, Memory, Typed, Untyped};
use crate::maps::{LATENCY, Mount, REQUESTS, mount};
use crate::{readers, told};

/// `FUSE_READ` of `linux/fuse.h`.
const READ: u32 = 15;

/// The beginning of `struct fuse_read_in` of `linux/fuse.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ReadIn {
    handle: u64,
    offset: u64,
    size: u32,
}

/// A request is on its way to the daemon.
#[btf_tracepoint(function = "fuse_request_send")]
fn request_sent(context: BtfTracePointContext) -> i32 {
    sent::<Typed>(context.arg(0)).unwrap_or(0)
}

/// The same.
#[raw_tracepoint(tracepoint = "fuse_request_send")]
fn request_sent_raw(context: RawTracePointContext) -> i32 {
    sent::<Untyped>(context.arg(0)).unwrap_or(0)
}

/// A request was answered, or given up.
#[btf_tracepoint(function = "fuse_request_end")]
fn request_ended(context: BtfTracePointContext) -> i32 {
    ended::<Typed>(context.arg(0)).unwrap_or(0)
}

/// The same.
#[raw_tracepoint(tracepoint = "fuse_request_end")]
fn request_ended_raw(context: RawTracePointContext) -> i32 {
    ended::<Untyped>(context.arg(0)).unwrap_or(0)
}

#[inline(always)]
fn sent<M: Memory>(request: Address) -> Option<i32> {
    let mount = mount(device_of::<M>(request)?)?;
    mount.traffic.requests += 1;
    // SAFETY: numbers have any bits.
    let (unique, opcode) = unsafe {
        (
            M::field(request, given!(LAYOUT.request_unique))?,
            M::field::<u32>(request, given!(LAYOUT.request_opcode))?,
        )
    };
    let key = RequestKey { unique, watch: mount.watched.watch };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    // Without an entry the duration is not known, and nothing else is lost.
    let _ = REQUESTS.insert(key, now, 0);
    if opcode == READ { sent_read::<M>(request, mount) } else { None }
}

#[inline(always)]
fn sent_read<M: Memory>(request: Address, mut mount: Mount) -> Option<i32> {
    // SAFETY: pointers, numbers and structures of numbers have any bits. The argument is a `void *`, so it is copied.
    let (node, pid, zeroing, input) = unsafe {
        let arguments: Address = M::field(request, given!(LAYOUT.request_args))?;
        let value: Address = M::field(arguments, given!(LAYOUT.args_value))?;
        (
            M::field::<u64>(request, given!(LAYOUT.request_node))?,
            M::field::<u32>(request, given!(LAYOUT.request_pid))?,
            M::field::<u8>(arguments, given!(LAYOUT.args_zeroing))?,
            Untyped::field::<ReadIn>(value, 0)?,
        )
    };
    let length = u64::from(input.size);
    // Only a range that makes sense; the sum is formed below.
    if input.offset > u64::MAX / 4 || length == 0 {
        return None;
    }
    let span = Span { offset: input.offset, length };
    let fills = u32::from(zeroing) & given!(LAYOUT.args_zeroing_bit) != 0;
    // What the kernel sends later is sent by whoever happens to be there: not to be blamed for it.
    let own = bpf_get_current_pid_tgid() as u32 == pid;
    if let Some(reader) = own.then(|| readers::current(mount.watched.watch)).flatten() {
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
    if !fills || given!(SETTINGS.cached_reads_seen) == 0 {
        told::read(&mut mount, node, span);
    }
    None
}

#[inline(always)]
fn ended<M: Memory>(request: Address) -> Option<i32> {
    let watch = mount(device_of::<M>(request)?)?.watched.watch;
    // SAFETY: numbers have any bits.
    let (unique, opcode, error) = unsafe {
        (
            M::field(request, given!(LAYOUT.request_unique))?,
            M::field(request, given!(LAYOUT.request_opcode))?,
            M::field::<i32>(request, given!(LAYOUT.request_error))?,
        )
    };
    let key = RequestKey { unique, watch };
    // SAFETY: a number that is overwritten meanwhile is still a number.
    let sent = unsafe { *REQUESTS.get(key)? };
    // Nobody else removes it.
    let _ = REQUESTS.remove(key);
    // SAFETY: the helper takes nothing.
    let took = unsafe { bpf_ktime_get_ns() }.saturating_sub(sent);
    let latency = latency(&LatencyKey { watch: watch as u32, opcode })?;
    // The bound is for the verifier.
    let bucket = bucket_of(took);
    if bucket < BUCKETS {
        latency.buckets[bucket] += 1;
    }
    latency.nanos += took;
    latency.errors += u64::from(error < 0);
    None
}

/// The mount that a request is for.
#[inline(always)]
fn device_of<M: Memory>(request: Address) -> Option<u32> {
    // SAFETY: pointers and numbers have any bits.
    unsafe {
        let mount: Address = M::field(request, given!(LAYOUT.request_mount))?;
        let connection: Address = M::field(mount, given!(LAYOUT.mount_connection))?;
        M::field(connection, given!(LAYOUT.connection_device))
    }
}

#[inline(always)]
fn latency(key: &LatencyKey) -> Option<&'static mut Latency> {
    let entry = match LATENCY.get_ptr_mut(key) {
        Some(entry) => entry,
        None => {
            begin(key);
            LATENCY.get_ptr_mut(key)?
        }
    };
    // SAFETY: the entry is this CPU's own; see `maps::mount`.
    Some(unsafe { &mut *entry })
}

#[inline(never)]
fn begin(key: &LatencyKey) {
    // A full map leaves further kinds of requests without a histogram.
    let _ = LATENCY.insert(key, &Latency::NONE, 0);
}
