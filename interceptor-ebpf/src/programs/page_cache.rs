//! The page cache: cached reads, hits included, mapped files, and inserts.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use interceptor_ebpf::pages::{self, PAGE};

use crate::kernel::{Address, DirectLoad, LoadField, device_of, file_size, node_of};
use crate::maps::watched_mount;
use crate::rodata::{OFFSETS, rodata};
use crate::{hotness, thread_state};

/// The kernel has found a batch of pages for a `read` call, after fetching those that were
/// missing.
///
/// The tracepoint does not fire for a page that readahead had no memory for and that the kernel
/// then read by itself.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
fn cached_read(context: BtfTracePointContext) -> i32 {
    read(context.arg(0), context.arg(1), context.arg(2)).unwrap_or(0)
}

#[inline(always)]
fn read(mapping: Address, first: u64, last: u64) -> Option<i32> {
    // SAFETY: any bits are a valid pointer.
    let inode = unsafe { DirectLoad::field(mapping, rodata!(OFFSETS.mapping_host))? };
    let mut mount = watched_mount(device_of::<DirectLoad>(inode)?)?;
    let slot = thread_state::reader_slot(mount.watched.watch_id, inode)?;
    if !slot.call.observe(first, last) {
        return None;
    }
    let range = pages::byte_range(first, last, file_size::<DirectLoad>(inode)?)?;
    slot.reads += 1;
    slot.bytes += range.length;
    mount.traffic.cached_reads += 1;
    mount.traffic.cached_bytes += range.length;
    hotness::record_thread_read(&mut mount, slot, range);
    None
}

/// The kernel has mapped a window of cached pages around a faulting address.
#[btf_tracepoint(function = "mm_filemap_map_pages")]
fn mapped_window(context: BtfTracePointContext) -> i32 {
    map(context.arg(0), context.arg(1), context.arg(2)).unwrap_or(0)
}

#[inline(always)]
fn map(mapping: Address, first: u64, last: u64) -> Option<i32> {
    // SAFETY: any bits are a valid pointer.
    let inode = unsafe { DirectLoad::field(mapping, rodata!(OFFSETS.mapping_host))? };
    let mut mount = watched_mount(device_of::<DirectLoad>(inode)?)?;
    let node = node_of(inode)?;
    let range = pages::byte_range(first, last, file_size::<DirectLoad>(inode)?)?;
    mount.traffic.map_windows += 1;
    mount.traffic.map_bytes += range.length;
    hotness::record_read(&mut mount, node, range);
    None
}

/// A fault on a page of a mapped file that no window covered.
#[btf_tracepoint(function = "mm_filemap_fault")]
fn mapped_fault(context: BtfTracePointContext) -> i32 {
    fault(context.arg(0), context.arg(1)).unwrap_or(0)
}

#[inline(always)]
fn fault(mapping: Address, page: u64) -> Option<i32> {
    // SAFETY: any bits are a valid pointer.
    let inode = unsafe { DirectLoad::field(mapping, rodata!(OFFSETS.mapping_host))? };
    let mut mount = watched_mount(device_of::<DirectLoad>(inode)?)?;
    let node = node_of(inode)?;
    let range = pages::byte_range(page, page, file_size::<DirectLoad>(inode)?)?;
    mount.traffic.faults += 1;
    hotness::record_read(&mut mount, node, range);
    None
}

/// A folio enters the page cache: for a read, by readahead, or stored by the daemon.
#[btf_tracepoint(function = "mm_filemap_add_to_page_cache")]
fn page_inserted(context: BtfTracePointContext) -> i32 {
    insert(context.arg(0)).unwrap_or(0)
}

#[inline(always)]
fn insert(folio: Address) -> Option<i32> {
    // SAFETY: any bits are a valid pointer or integer.
    unsafe {
        let mapping = DirectLoad::field(folio, rodata!(OFFSETS.folio_mapping))?;
        let inode = DirectLoad::field(mapping, rodata!(OFFSETS.mapping_host))?;
        let traffic = watched_mount(device_of::<DirectLoad>(inode)?)?.traffic;
        let flags: u64 = DirectLoad::field(folio, rodata!(OFFSETS.folio_flags))?;
        let order = if flags & u64::from(rodata!(OFFSETS.folio_head_mask)) != 0 {
            DirectLoad::field::<u64>(folio, rodata!(OFFSETS.folio_order))? & 31
        } else {
            0
        };
        traffic.inserted_folios += 1;
        traffic.inserted_bytes += PAGE << order;
    }
    None
}
