//! Reads through the page cache, hits included, mapped files, and what enters the page cache.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use interceptor_ebpf::span::{self, PAGE};

use crate::given::{LAYOUT, given};
use crate::kernel::{Address, Memory, Typed, device_of, node_of, size_of_file};
use crate::maps::mount;
use crate::{seats, told};

/// Pages were found for a call that reads, after whatever it took to bring them.
///
/// The kernel does not say so of a page for which readahead found no memory and which it then brought by itself.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
fn cached_read(context: BtfTracePointContext) -> i32 {
    read(context.arg(0), context.arg(1), context.arg(2)).unwrap_or(0)
}

#[inline(always)]
fn read(mapping: Address, first: u64, last: u64) -> Option<i32> {
    // SAFETY: a pointer has any bits.
    let inode = unsafe { Typed::field(mapping, given!(LAYOUT.mapping_host))? };
    let mut mount = mount(device_of::<Typed>(inode)?)?;
    let seat = seats::take(mount.watched.watch, inode)?;
    if !seat.call.hear(first, last) {
        return None;
    }
    let span = span::pages(first, last, size_of_file::<Typed>(inode)?)?;
    seat.reads += 1;
    seat.bytes += span.length;
    mount.traffic.cached_reads += 1;
    mount.traffic.cached_bytes += span.length;
    told::read_on(&mut mount, seat, span);
    None
}

/// Cached pages round an address were mapped.
#[btf_tracepoint(function = "mm_filemap_map_pages")]
fn mapped_window(context: BtfTracePointContext) -> i32 {
    map(context.arg(0), context.arg(1), context.arg(2)).unwrap_or(0)
}

#[inline(always)]
fn map(mapping: Address, first: u64, last: u64) -> Option<i32> {
    // SAFETY: a pointer has any bits.
    let inode = unsafe { Typed::field(mapping, given!(LAYOUT.mapping_host))? };
    let mut mount = mount(device_of::<Typed>(inode)?)?;
    let node = node_of(inode)?;
    let span = span::pages(first, last, size_of_file::<Typed>(inode)?)?;
    mount.traffic.map_windows += 1;
    mount.traffic.map_bytes += span.length;
    told::read(&mut mount, node, span);
    None
}

/// A page of a mapped file is wanted that could not just be mapped.
#[btf_tracepoint(function = "mm_filemap_fault")]
fn mapped_fault(context: BtfTracePointContext) -> i32 {
    fault(context.arg(0), context.arg(1)).unwrap_or(0)
}

#[inline(always)]
fn fault(mapping: Address, page: u64) -> Option<i32> {
    // SAFETY: a pointer has any bits.
    let inode = unsafe { Typed::field(mapping, given!(LAYOUT.mapping_host))? };
    let mut mount = mount(device_of::<Typed>(inode)?)?;
    let node = node_of(inode)?;
    let span = span::pages(page, page, size_of_file::<Typed>(inode)?)?;
    mount.traffic.faults += 1;
    told::read(&mut mount, node, span);
    None
}

/// A folio enters the page cache: by readahead, because somebody waits for it, or pushed by the daemon.
#[btf_tracepoint(function = "mm_filemap_add_to_page_cache")]
fn page_inserted(context: BtfTracePointContext) -> i32 {
    insert(context.arg(0)).unwrap_or(0)
}

#[inline(always)]
fn insert(folio: Address) -> Option<i32> {
    // SAFETY: pointers and numbers have any bits.
    unsafe {
        let mapping = Typed::field(folio, given!(LAYOUT.folio_mapping))?;
        let inode = Typed::field(mapping, given!(LAYOUT.mapping_host))?;
        let traffic = mount(device_of::<Typed>(inode)?)?.traffic;
        let flags: u64 = Typed::field(folio, given!(LAYOUT.folio_flags))?;
        let order = if flags & u64::from(given!(LAYOUT.folio_large)) != 0 {
            Typed::field::<u64>(folio, given!(LAYOUT.folio_order))? & 31
        } else {
            0
        };
        traffic.inserted_folios += 1;
        traffic.inserted_bytes += PAGE << order;
    }
    None
}
