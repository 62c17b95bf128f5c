//! The maps. All are bounded. The loader sets the sizes of those that depend on settings, by name.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use interceptor_ebpf::event::{Event, kind};
use interceptor_ebpf::heat::Heat;
use interceptor_ebpf::records::{
    DEVICE_SLOTS, GranuleKey, Latency, LatencyKey, NodeKey, PENDING_HEAT_SLOTS, PendingHeat,
    READER_SLOTS as READER_SLOT_COUNT, ReaderKey, ReaderSlot, ReaderStats, RequestKey, Traffic, WatchedMount,
    device_index,
};
use interceptor_ebpf::stream::Streams;

use crate::rodata::{SETTINGS, rodata};
use crate::warnings::{RareBranch, warn};

/// By device index: whether a device is watched, the first question of every program. An array,
/// because the kernel inlines a lookup in an array to a few instructions, while a lookup in a
/// hash map takes as long as all the rest of a program.
#[map]
static DEVICES: Array<u32> = Array::with_max_entries(DEVICE_SLOTS, 0);

/// The watched mounts. The loader adds and removes entries.
#[map]
static WATCHED: Array<WatchedMount> = Array::with_max_entries(64, 0);

/// Their traffic, at the same indices.
#[map]
static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(64, 0);

/// Threads that read, by [`reader_slot_index`](interceptor_ebpf::records::reader_slot_index).
#[map]
pub(crate) static READER_SLOTS: Array<ReaderSlot> = Array::with_max_entries(READER_SLOT_COUNT, 0);

/// Bytes that each CPU has not added to the heat of granules yet.
#[map]
pub(crate) static PENDING_HEAT: PerCpuArray<PendingHeat> =
    PerCpuArray::with_max_entries(PENDING_HEAT_SLOTS, 0);

/// The heat of granules.
#[map]
pub(crate) static HEAT: LruHashMap<GranuleKey, Heat> = LruHashMap::with_max_entries(1024, 0);

/// The sequential streams of files.
#[map]
pub(crate) static STREAMS: LruHashMap<NodeKey, Streams> = LruHashMap::with_max_entries(1024, 0);

/// The reads of threads.
#[map]
pub(crate) static READERS: LruHashMap<ReaderKey, ReaderStats> = LruHashMap::with_max_entries(1024, 0);

/// Requests in flight: the time of their queueing on the monotonic clock, nanoseconds.
#[map]
pub(crate) static REQUESTS: LruHashMap<RequestKey, u64> = LruHashMap::with_max_entries(1024, 0);

/// The latencies of daemons.
#[map]
pub(crate) static LATENCY: PerCpuHashMap<LatencyKey, Latency> = PerCpuHashMap::with_max_entries(64, 0);

/// Events to the daemon.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// A watched mount, as a program updates it.
pub(crate) struct Mount {
    /// The entry in [`WATCHED`], which all CPUs write to without synchronization.
    pub(crate) watched: &'static mut WatchedMount,
    /// The traffic on this CPU.
    pub(crate) traffic: &'static mut Traffic,
}

/// The mount of a device, if it is watched.
#[inline(always)]
pub(crate) fn watched_mount(device: u32) -> Option<Mount> {
    let index = match DEVICES.get(device_index(device)) {
        Some(&index) if index != 0 => index - 1,
        _ => return None,
    };
    let (watched, traffic) = (WATCHED.get_ptr_mut(index)?, TRAFFIC.get_ptr_mut(index)?);
    // SAFETY: entries of arrays never move. The traffic is this CPU's own; a program that
    // interrupts another one on the same CPU makes it lose an addition at most. Every field of a
    // `WatchedMount` may have any value.
    let mount = unsafe { Mount { watched: &mut *watched, traffic: &mut *traffic } };
    (mount.watched.device == device).then_some(mount)
}

/// Sends an event. Returns `false` if the ring buffer is full.
///
/// Waking the daemon up takes two microseconds, more than all other work on a read: acceptable
/// for an event, which is rare, too much for a sample. The daemon polls for samples; they wake it
/// up only if the ring buffer fills faster than that.
#[inline(always)]
pub(crate) fn send(event: Event) -> bool {
    const BPF_RB_NO_WAKEUP: u64 = 1;
    const BPF_RB_FORCE_WAKEUP: u64 = 2;
    const BPF_RB_AVAIL_DATA: u64 = 0;
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        warn(RareBranch::EventsFull, event.kind.into());
        return false;
    };
    entry.write(event);
    let wake_up =
        event.kind != kind::SAMPLE || EVENTS.query(BPF_RB_AVAIL_DATA) >= rodata!(SETTINGS.wakeup_bytes);
    entry.submit(if wake_up { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
    true
}
