//! The maps. All of them are bounded; the loader sets their sizes by name, those here only have to be valid.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuHashMap, RingBuf};
use interceptor_ebpf::event::Event;
use interceptor_ebpf::heat::Heat;
use interceptor_ebpf::records::{
    GranuleKey, Latency, LatencyKey, NodeKey, Reader, ReaderKey, RequestKey, Traffic,
};
use interceptor_ebpf::stream::Streams;

use crate::given::{SETTINGS, given};

/// The mounts that are watched, by device number, and what went through them. Entries come and go with `watch` and `unwatch` of the
/// loader: whether there is one is the first thing that every program asks.
#[map]
static TRAFFIC: PerCpuHashMap<u32, Traffic> = PerCpuHashMap::with_max_entries(64, 0);

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

/// What went through this mount on this CPU, if it is watched.
#[inline(always)]
pub(crate) fn traffic(device: u32) -> Option<&'static mut Traffic> {
    // SAFETY: the entry is this CPU's own, and the programs of one CPU interrupt each other at most for a few additions, one of which may
    // then be lost. If the entry is removed meanwhile, it stays valid memory until the program has ended.
    TRAFFIC.get_ptr_mut(device).map(|entry| unsafe { &mut *entry })
}

/// Sends an event; `false` if the buffer is full.
///
/// The daemon looks by itself every few milliseconds, so nobody is woken up, which would cost more than all the rest, unless
/// the buffer fills faster than that.
#[inline(always)]
pub(crate) fn send(event: Event) -> bool {
    const NO_WAKEUP: u64 = 1;
    const FORCE_WAKEUP: u64 = 2;
    const AVAILABLE: u64 = 0;
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return false;
    };
    entry.write(event);
    let filled = EVENTS.query(AVAILABLE) >= given!(SETTINGS.wake_at);
    entry.submit(if filled { FORCE_WAKEUP } else { NO_WAKEUP });
    true
}
