//! Heat, streams and samples, and what is told of them.
//!
//! A read of a few pages mostly ends in a few additions to what is near: the thread's [`Seat`] and the CPU's [`Warmth`] of the granule. Only what has
//! come together there goes on to the maps that all CPUs share.
//!
//! [`warm_granule`], [`follow`] and [`send_sample`] are functions of their own to the verifier, which looks at them once, for any arguments, and
//! not again wherever they are called from: a loop of what they do is more than it is willing to look through. Such functions take up to
//! five numbers.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use interceptor_ebpf::event::{Event, kind};
use interceptor_ebpf::heat::Heat;
use interceptor_ebpf::records::{GranuleKey, NodeKey, Seat, Warmth, warmth_of};
use interceptor_ebpf::sample::{self, GROUP_SHIFT};
use interceptor_ebpf::span::Span;
use interceptor_ebpf::stream::Streams;

use crate::given::{SETTINGS, given};
use crate::maps::{HEAT, Mount, STREAMS, WARMTH, send};

/// Granules that one read warms at most; those of a longer read beyond that are left out.
const GRANULES: u64 = 32;

/// Groups of granules that one read looks for samples in at most; a longer read beyond that is left out.
const GROUPS: u64 = 64;

/// Takes note of what the thread on a seat has read.
#[inline(always)]
pub(crate) fn read_on(mount: &mut Mount, seat: &mut Seat, span: Span) {
    warm(mount, seat.node, span);
    look_for_samples(mount, seat.node, span);
    if let Some((offset, length)) = seat.run.read(span.offset, span.length) {
        mount.traffic.lost_events += follow(seat.node, mount.watched.watch, offset, length);
    }
}

/// Takes note of bytes that somebody has read.
#[inline(always)]
pub(crate) fn read(mount: &mut Mount, node: u64, span: Span) {
    warm(mount, node, span);
    look_for_samples(mount, node, span);
    mount.traffic.lost_events += follow(node, mount.watched.watch, span.offset, span.length);
}

#[inline(always)]
fn warm(mount: &mut Mount, node: u64, span: Span) {
    let watch = mount.watched.watch;
    let shift = given!(SETTINGS.granule_shift) & 63;
    let end = span.offset + span.length;
    let (mut offset, mut granule) = (span.offset, span.offset >> shift);
    if granule == (end - 1) >> shift {
        mount.traffic.lost_events += warm_a_bit(node, watch, granule, span.length);
        return;
    }
    for _ in 0..GRANULES {
        let next = (granule + 1) << shift;
        if next >= end {
            break;
        }
        mount.traffic.lost_events += warm_granule(node, watch, granule, next - offset);
        (offset, granule) = (next, granule + 1);
    }
    if offset < end && granule == (end - 1) >> shift {
        mount.traffic.lost_events += warm_granule(node, watch, granule, end - offset);
    }
}

/// Takes note of `bytes` read of one granule, which may wait for more; gives the number of events that could not be sent.
#[inline(always)]
fn warm_a_bit(node: u64, watch: u64, granule: u64, bytes: u64) -> u64 {
    let kept = u64::from(given!(SETTINGS.kept_warmth));
    let entry = if bytes < kept { WARMTH.get_ptr_mut(warmth_of(node, granule as u32)) } else { None };
    let Some(entry) = entry else {
        return warm_granule(node, watch, granule, bytes);
    };
    // SAFETY: it is this CPU's own, and entries of arrays stay where they are.
    let warmth = unsafe { &mut *entry };
    let same = warmth.node == node && warmth.granule == granule as u32 && warmth.watch == watch as u32;
    if same {
        warmth.bytes += bytes;
        if warmth.bytes < kept {
            return 0;
        }
        let all = warmth.bytes;
        warmth.bytes = 0;
        return warm_granule(node, watch, granule, all);
    }
    let other = *warmth;
    *warmth = Warmth { node, watch: watch as u32, granule: granule as u32, bytes };
    if other.bytes == 0 {
        return 0;
    }
    warm_granule(other.node, other.watch.into(), other.granule.into(), other.bytes)
}

/// Takes note of `bytes` read of a granule; gives the number of events that could not be sent.
///
/// A CPU that reads the same granule at this very moment may take away this warmth or turn the granule hot as well.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn warm_granule(node: u64, watch: u64, granule: u64, bytes: u64) -> u64 {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
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
extern "C" fn follow(node: u64, watch: u64, offset: u64, length: u64) -> u64 {
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
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let (offset, length) = (window.offset, window.length);
    tell(Event { node, offset, length, watch: watch as u32, kind: kind::STREAM, ..event(now) })
}

/// Sends the granules that are sampled, of those that were read.
#[inline(always)]
fn look_for_samples(mount: &mut Mount, node: u64, span: Span) {
    let below = mount.watched.sampled_below;
    if below == 0 {
        return;
    }
    let shift = given!(SETTINGS.sample_shift) & 63;
    let (first, last) = (span.offset >> shift, (span.offset + span.length - 1) >> shift);
    let (mut group, mut end) = (first >> GROUP_SHIFT, last >> GROUP_SHIFT);
    if group == end {
        mount.traffic.touched += last - first + 1;
        look_at_group(mount, node, group, first, last);
        return;
    }
    if end - group >= GROUPS {
        end = group + GROUPS - 1;
    }
    let all = (end + 1) << GROUP_SHIFT;
    mount.traffic.touched += if last < all { last + 1 } else { all } - first;
    for _ in 0..GROUPS {
        look_at_group(mount, node, group, first, last);
        group += 1;
        if group > end {
            return;
        }
    }
}

#[inline(always)]
fn look_at_group(mount: &mut Mount, node: u64, group: u64, first: u64, last: u64) {
    let choice = sample::choice(node, group);
    let read = choice.granule >= first && choice.granule <= last;
    if choice.rank >= mount.watched.sampled_below || !read {
        return;
    }
    // Two files that read as one would have to be at it in turn.
    let sample = node.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ choice.granule;
    if mount.watched.last_sample == sample {
        mount.traffic.sampled_again += 1;
        return;
    }
    mount.watched.last_sample = sample;
    mount.traffic.lost_samples += send_sample(node, mount.watched.watch, choice.granule);
}

/// Tells of a read of a granule that is sampled; gives the number of events that could not be sent.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_sample(node: u64, watch: u64, granule: u64) -> u64 {
    let shift = given!(SETTINGS.sample_shift) & 63;
    let (offset, length) = (granule << shift, 1 << shift);
    // Its order is all that matters.
    let event = Event { kind: kind::SAMPLE, node, offset, length, watch: watch as u32, ..Event::NONE };
    tell(event)
}

/// What all events of this moment have in common.
#[inline(always)]
fn event(now: u64) -> Event {
    Event { time_ns: now, process: (bpf_get_current_pid_tgid() >> 32) as u32, ..Event::NONE }
}

#[inline(always)]
fn tell(event: Event) -> u64 {
    u64::from(!send(event))
}
