//! Turns reads into heat, streams and samples, and sends the events that these cause.
//!
//! A read of a few pages usually ends in additions to memory of its own: the thread's
//! [`ReaderSlot`] and the CPU's [`PendingHeat`] of the granule. Only when enough bytes have come
//! together there are the maps updated that all CPUs share.
//!
//! [`add_heat`], [`update_streams`] and [`send_sample`] are global functions: the verifier checks
//! them once, for any arguments, and not again at each call. Inlined into loops, they would
//! exceed its complexity limit. A global function takes up to five integers.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use interceptor_ebpf::event::{Event, kind};
use interceptor_ebpf::heat::Heat;
use interceptor_ebpf::pages::ByteRange;
use interceptor_ebpf::records::{GranuleKey, NodeKey, PendingHeat, ReaderSlot, pending_heat_index};
use interceptor_ebpf::sampling::{self, GROUP_SHIFT};
use interceptor_ebpf::stream::Streams;

use crate::maps::{HEAT, Mount, PENDING_HEAT, STREAMS, send};
use crate::rodata::{SETTINGS, rodata};
use crate::warnings::{RareBranch, warn};

/// Granules that one read heats. Those of a longer read beyond that are left out.
const MAX_GRANULES_PER_READ: u64 = 32;

/// Groups of granules that one read may sample: 32 MiB of pages. Those of a longer read beyond that
/// are left out, and a file that is always read by such calls looks smaller than it is.
const MAX_GROUPS_PER_READ: u64 = 512;

/// Records a read of the thread in a slot.
#[inline(always)]
pub(crate) fn record_thread_read(mount: &mut Mount, slot: &mut ReaderSlot, range: ByteRange) {
    heat_range(mount, slot.node, range);
    sample_range(mount, slot.node, range);
    if let Some((offset, length)) = slot.run.extend(range.offset, range.length) {
        mount.traffic.lost_events += update_streams(slot.node, mount.watched.watch_id, offset, length);
    }
}

/// Records a read that is attributed to no thread.
#[inline(always)]
pub(crate) fn record_read(mount: &mut Mount, node: u64, range: ByteRange) {
    heat_range(mount, node, range);
    sample_range(mount, node, range);
    mount.traffic.lost_events += update_streams(node, mount.watched.watch_id, range.offset, range.length);
}

#[inline(always)]
fn heat_range(mount: &mut Mount, node: u64, range: ByteRange) {
    let watch_id = mount.watched.watch_id;
    let shift = rodata!(SETTINGS.granule_shift) & 63;
    let end = range.offset + range.length;
    let (mut offset, mut granule) = (range.offset, range.offset >> shift);
    if granule == (end - 1) >> shift {
        mount.traffic.lost_events += add_pending_heat(node, watch_id, granule, range.length);
        return;
    }
    for _ in 0..MAX_GRANULES_PER_READ {
        let next = (granule + 1) << shift;
        if next >= end {
            break;
        }
        mount.traffic.lost_events += add_heat(node, watch_id, granule, next - offset);
        (offset, granule) = (next, granule + 1);
    }
    if offset < end && granule == (end - 1) >> shift {
        mount.traffic.lost_events += add_heat(node, watch_id, granule, end - offset);
    }
}

/// Adds `bytes` read of one granule to the CPU's pending heat, or to the granule's heat if that is
/// enough. Returns the number of events that were lost.
#[inline(always)]
fn add_pending_heat(node: u64, watch_id: u64, granule: u64, bytes: u64) -> u64 {
    let max_pending = u64::from(rodata!(SETTINGS.max_pending_bytes));
    let entry = if bytes < max_pending {
        PENDING_HEAT.get_ptr_mut(pending_heat_index(node, granule as u32))
    } else {
        None
    };
    let Some(entry) = entry else {
        return add_heat(node, watch_id, granule, bytes);
    };
    // SAFETY: the entry is this CPU's own, and entries of arrays never move.
    let pending = unsafe { &mut *entry };
    let same =
        pending.node == node && pending.granule == granule as u32 && pending.watch_id == watch_id as u32;
    if same {
        pending.bytes += bytes;
        if pending.bytes < max_pending {
            return 0;
        }
        let total = pending.bytes;
        pending.bytes = 0;
        return add_heat(node, watch_id, granule, total);
    }
    let evicted = *pending;
    *pending = PendingHeat { node, watch_id: watch_id as u32, granule: granule as u32, bytes };
    if evicted.bytes == 0 {
        return 0;
    }
    add_heat(evicted.node, evicted.watch_id.into(), evicted.granule.into(), evicted.bytes)
}

/// Adds `bytes` read of a granule to its heat. Returns the number of events that were lost.
///
/// CPUs that read the same granule at the same moment may lose each other's bytes, or both find
/// that the granule turned hot.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn add_heat(node: u64, watch_id: u64, granule: u64, bytes: u64) -> u64 {
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let settings = rodata!(SETTINGS.heat);
    let watch_id = watch_id as u32;
    let key = GranuleKey { node, watch_id, granule: granule as u32 };
    let entry = HEAT.get_ptr_mut(key);
    // SAFETY: the entry is one aligned word, and stays valid memory even if it is evicted
    // meanwhile.
    let before = entry.map_or(Heat(0), |entry| unsafe { entry.read_volatile() });
    let (after, turned_hot) = before.after_read(bytes, settings.tick(now), &settings);
    match entry {
        // SAFETY: as above.
        Some(entry) => unsafe { entry.write_volatile(after) },
        None => {
            if let Err(error) = HEAT.insert(key, after, 0) {
                // The granule stays cold.
                warn(RareBranch::HeatFull, error.into());
                return 0;
            }
        }
    }
    if !turned_hot {
        return 0;
    }
    let shift = rodata!(SETTINGS.granule_shift) & 63;
    let (offset, length) = (granule << shift, 1 << shift);
    send_or_count(Event {
        node,
        offset,
        length,
        watch_id,
        kind: kind::HOT,
        level: after.level(),
        ..event(now)
    })
}

/// Updates the file's tracks with a read, and announces the window that is due. Returns the
/// number of events that were lost.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn update_streams(node: u64, watch_id: u64, offset: u64, length: u64) -> u64 {
    let key = NodeKey { node, watch_id };
    let Some(streams) = STREAMS.get_ptr_mut(key) else {
        if let Err(error) = STREAMS.insert(key, Streams::starting_at(offset, length), 0) {
            // The next read tries again.
            warn(RareBranch::StreamsFull, error.into());
        }
        return 0;
    };
    // SAFETY: the entry stays valid memory even if it is evicted meanwhile. Other CPUs may write
    // to it: every field may have any value, and a lost step only delays a window.
    let due = unsafe { (*streams).record_read(offset, length, &rodata!(SETTINGS.stream)) };
    let Some(window) = due else {
        return 0;
    };
    // SAFETY: the helper has no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let (offset, length) = (window.offset, window.length);
    let watch_id = watch_id as u32;
    send_or_count(Event { node, offset, length, watch_id, kind: kind::STREAM, ..event(now) })
}

/// Sends the sampled granules of a read.
#[inline(always)]
fn sample_range(mount: &mut Mount, node: u64, range: ByteRange) {
    if mount.watched.sample_rank_limit == 0 {
        return;
    }
    let shift = rodata!(SETTINGS.sample_shift) & 63;
    let (first, last) = (range.offset >> shift, (range.offset + range.length - 1) >> shift);
    let (mut group, mut last_group) = (first >> GROUP_SHIFT, last >> GROUP_SHIFT);
    if group == last_group {
        mount.traffic.granules_read += last - first + 1;
        sample_group(mount, node, group, first, last);
        return;
    }
    if last_group - group >= MAX_GROUPS_PER_READ {
        last_group = group + MAX_GROUPS_PER_READ - 1;
    }
    let end = (last_group + 1) << GROUP_SHIFT;
    mount.traffic.granules_read += if last < end { last + 1 } else { end } - first;
    for _ in 0..MAX_GROUPS_PER_READ {
        sample_group(mount, node, group, first, last);
        group += 1;
        if group > last_group {
            return;
        }
    }
}

/// Sends the sample of a group, if the group is sampled and the read touches that granule.
#[inline(always)]
fn sample_group(mount: &mut Mount, node: u64, group: u64, first: u64, last: u64) {
    let sample = sampling::group_sample(node, group);
    let read = sample.granule >= first && sample.granule <= last;
    if sample.rank >= mount.watched.sample_rank_limit || !read {
        return;
    }
    // A collision does harm only if two such granules are sampled in turn.
    let id = node.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ sample.granule;
    if mount.watched.last_sample == id {
        mount.traffic.repeated_samples += 1;
        return;
    }
    mount.watched.last_sample = id;
    mount.traffic.lost_samples += send_sample(node, mount.watched.watch_id, sample.granule);
}

/// Sends a sample. Returns the number of events that were lost.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_sample(node: u64, watch_id: u64, granule: u64) -> u64 {
    let shift = rodata!(SETTINGS.sample_shift) & 63;
    let (offset, length) = (granule << shift, 1 << shift);
    // Without time and process: only the order of samples matters.
    let watch_id = watch_id as u32;
    send_or_count(Event { kind: kind::SAMPLE, node, offset, length, watch_id, ..Event::NONE })
}

/// An event of the current process at this moment.
#[inline(always)]
fn event(now: u64) -> Event {
    Event { time_ns: now, process: (bpf_get_current_pid_tgid() >> 32) as u32, ..Event::NONE }
}

/// Sends an event. Returns the number of events that were lost: 1 if the ring buffer is full.
#[inline(always)]
fn send_or_count(event: Event) -> u64 {
    u64::from(!send(event))
}
