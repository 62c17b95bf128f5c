//! The maps. All of them are bounded; the loader sets their sizes by name, those here only have to be valid.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use interceptor_ebpf::event::{Event, kind};
use interceptor_ebpf::heat::Heat;
use interceptor_ebpf::records::{
    DEVICES as DEVICE_PLACES, GranuleKey, Latency, LatencyKey, NodeKey, Reader, ReaderKey, RequestKey,
    SEATS as SEATS_IN_ALL, Seat, Traffic, WARMTHS, Warmth, Watched, device_place,
};
use interceptor_ebpf::stream::Streams;

use crate::given::{SETTINGS, given};

/// Whether a device is watched, by its place: the first thing that every program asks. The kernel makes a few instructions of a look into an
/// array, where a look into a hash map takes as long as all the rest together.
#[map]
static DEVICES: Array<u32> = Array::with_max_entries(DEVICE_PLACES, 0);

/// The mounts that are watched. Entries come and go with `watch` and `unwatch` of the loader.
#[map]
static WATCHED: Array<Watched> = Array::with_max_entries(64, 0);

/// What went through them.
#[map]
static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(64, 0);

/// Who reads what at the moment.
#[map]
pub(crate) static SEATS: Array<Seat> = Array::with_max_entries(SEATS_IN_ALL, 0);

/// What each CPU has not added to the heat of granules yet.
#[map]
pub(crate) static WARMTH: PerCpuArray<Warmth> = PerCpuArray::with_max_entries(WARMTHS, 0);

/// How hot granules are.
#[map]
pub(crate) static HEAT: LruHashMap<GranuleKey, Heat> = LruHashMap::with_max_entries(1024, 0);

/// Where files are read front to back.
#[map]
pub(crate) static STREAMS: LruHashMap<NodeKey, Streams> = LruHashMap::with_max_entries(1024, 0);

/// Who reads.
#[map]
pub(crate) static READERS: LruHashMap<ReaderKey, Reader> = LruHashMap::with_max_entries(1024, 0);

/// When requests were sent that have not been answered, by the monotonic clock.
#[map]
pub(crate) static REQUESTS: LruHashMap<RequestKey, u64> = LruHashMap::with_max_entries(1024, 0);

/// How long the daemon takes.
#[map]
pub(crate) static LATENCY: PerCpuHashMap<LatencyKey, Latency> = PerCpuHashMap::with_max_entries(64, 0);

/// To the loader.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// A mount that is watched.
pub(crate) struct Mount {
    /// Its entry, which the programs share, and write to without regard to each other.
    pub(crate) watched: &'static mut Watched,
    /// What went through it on this CPU.
    pub(crate) traffic: &'static mut Traffic,
}

/// The mount of this device, if it is watched.
#[inline(always)]
pub(crate) fn mount(device: u32) -> Option<Mount> {
    let place = match DEVICES.get(device_place(device)) {
        Some(&place) if place != 0 => place - 1,
        _ => return None,
    };
    let (watched, traffic) = (WATCHED.get_ptr_mut(place)?, TRAFFIC.get_ptr_mut(place)?);
    // SAFETY: entries of arrays stay where they are. The traffic is this CPU's own, and the programs of one CPU interrupt each other at most for a
    // few additions, one of which may then be lost. Of the other, every field may have any value.
    let mount = unsafe { Mount { watched: &mut *watched, traffic: &mut *traffic } };
    (mount.watched.device == device).then_some(mount)
}

/// Sends an event; `false` if the buffer is full.
///
/// To wake the daemon up costs two microseconds, more than all the rest: nothing for what is as rare as an event, too much for a sample. For those the daemon
/// looks by itself now and then, unless the buffer fills faster than that.
#[inline(always)]
pub(crate) fn send(event: Event) -> bool {
    const NO_WAKEUP: u64 = 1;
    const FORCE_WAKEUP: u64 = 2;
    const AVAILABLE: u64 = 0;
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return false;
    };
    entry.write(event);
    let wakes = event.kind != kind::SAMPLE || EVENTS.query(AVAILABLE) >= given!(SETTINGS.wake_at);
    entry.submit(if wakes { FORCE_WAKEUP } else { NO_WAKEUP });
    true
}
