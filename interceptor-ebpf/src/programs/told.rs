//! Heat and streams, and what is told of them.
//!
//! [`warm_granule`] and [`follow`] are functions of their own to the verifier, which looks at them once, for any arguments, and not again
//! wherever they are called from: a loop of what they do is more than it is willing to look through. Such functions take up to five
//! numbers.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use interceptor_ebpf::event::{Event, kind};
use interceptor_ebpf::heat::Heat;
use interceptor_ebpf::records::{GranuleKey, NodeKey, Traffic};
use interceptor_ebpf::span::Span;
use interceptor_ebpf::stream::Streams;

use crate::given::{SETTINGS, given};
use crate::maps::{HEAT, STREAMS, send};

/// Granules that one read warms at most; those of a longer read beyond that are left out.
const GRANULES: u64 = 32;

/// Takes note of bytes that somebody has read.
#[inline(always)]
pub(crate) fn read(node: u64, span: Span, traffic: &mut Traffic) {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let watch = traffic.watch;
    let shift = given!(SETTINGS.granule_shift) & 63;
    let end = span.offset + span.length;
    let (mut offset, mut granule) = (span.offset, span.offset >> shift);
    for _ in 0..GRANULES {
        let next = (granule + 1) << shift;
        if next >= end {
            break;
        }
        traffic.lost_events += warm_granule(node, watch, granule, next - offset, now);
        (offset, granule) = (next, granule + 1);
    }
    if offset < end && granule == (end - 1) >> shift {
        traffic.lost_events += warm_granule(node, watch, granule, end - offset, now);
    }
    traffic.lost_events += follow(node, watch, span.offset, span.length, now);
}

/// Takes note of `bytes` read of a granule; gives the number of events that could not be sent.
///
/// A CPU that reads the same granule at this very moment may take away this warmth or turn the granule hot as well.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn warm_granule(node: u64, watch: u64, granule: u64, bytes: u64, now: u64) -> u64 {
    let settings = given!(SETTINGS.heat);
    let watch = watch as u32;
    let key = GranuleKey { node, watch, granule: granule as u32 };
    let entry = HEAT.get_ptr_mut(key);
    // SAFETY: the entry is one aligned word; if it is evicted meanwhile it stays valid memory.
    let before = entry.map_or(Heat(0), |entry| unsafe { entry.read_volatile() });
    let (after, turned) = before.read(bytes, settings.tick(now), &settings);
    match entry {
        // SAFETY: as above.
        Some(entry) => unsafe { entry.write_volatile(after) },
        // A map that takes nothing leaves everything cold.
        None if HEAT.insert(key, after, 0).is_err() => return 0,
        None => {}
    }
    if !turned {
        return 0;
    }
    let shift = given!(SETTINGS.granule_shift) & 63;
    let (offset, length) = (granule << shift, 1 << shift);
    tell(Event { node, offset, length, watch, kind: kind::HOT, level: after.level(), ..event(now) })
}

/// Moves the heads of the file's tracks; gives the number of events that could not be sent.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follow(node: u64, watch: u64, offset: u64, length: u64, now: u64) -> u64 {
    let key = NodeKey { node, watch };
    let Some(streams) = STREAMS.get_ptr_mut(key) else {
        // Without an entry the next read begins it.
        let _ = STREAMS.insert(key, Streams::beginning(offset, length), 0);
        return 0;
    };
    // SAFETY: the entry is valid memory even if it is evicted meanwhile. Other CPUs may write to it: every field may have any value, and
    // a lost step only delays a window.
    let due = unsafe { (*streams).read(offset, length, &given!(SETTINGS.stream)) };
    let Some(window) = due else {
        return 0;
    };
    let (offset, length) = (window.offset, window.length);
    tell(Event { node, offset, length, watch: watch as u32, kind: kind::STREAM, ..event(now) })
}

/// What all events of this moment have in common.
#[inline(always)]
fn event(now: u64) -> Event {
    Event {
        time_ns: now,
        process: (bpf_get_current_pid_tgid() >> 32) as u32,
        node: 0,
        offset: 0,
        length: 0,
        watch: 0,
        kind: 0,
        level: 0,
    }
}

#[inline(always)]
fn tell(event: Event) -> u64 {
    u64::from(!send(event))
}
