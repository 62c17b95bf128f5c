//! Counters of reads, on our mount and on a foreign one, exact to the page.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use interceptor::ebpf::{DeviceNumber, EbpfError};
use tests::{Bindfs, Cluster, Mount, Pattern, eventually, host};

use crate::{
    CLUSTER, MIB, PAGE, WAIT_TIMEOUT, WatchedMount, can_observe, disable_readahead, every_page, nearly,
    read_page,
};

const FUSE_READ: u32 = 15;

/// One file to be read and one whose event comes after those of the first.
struct ReadCase<'a> {
    file: &'a Path,
    node: u64,
    size: u64,
    last: &'a Path,
    last_node: u64,
    mounted: &'a Path,
}

/// Reads in every way and compares the counters. `size` is that of the file, not a multiple of a
/// page.
fn everything_is_seen(stage: &ReadCase) {
    let &ReadCase { file: path, node, size, last, last_node, mounted } = stage;
    assert_ne!(size % PAGE, 0);
    let pages = size.div_ceil(PAGE);
    let mut watched = WatchedMount::start(mounted, &every_page());
    let file = File::open(path).unwrap();
    disable_readahead(&file);
    let mut buffer = vec![0; 16 * PAGE as usize];

    // Buffered, nothing cached.
    file.read_exact_at(&mut buffer[..3 * PAGE as usize], 8 * PAGE).unwrap();
    let miss = watched.observer.traffic(watched.device).unwrap();
    assert_eq!((miss.cached_reads, miss.cached_bytes), (1, 3 * PAGE));
    assert_eq!((miss.fill_bytes, miss.inserted_bytes), (3 * PAGE, 3 * PAGE), "{miss:?}");
    read_page(last, 0);
    let events = watched.events_until(last_node);
    assert_eq!(watched.ranges(node, &events), std::slice::from_ref(&(8 * PAGE..11 * PAGE)));

    // The same from the page cache, and a part of it; no page has a second event.
    let before = watched.observer.traffic(watched.device).unwrap();
    file.read_exact_at(&mut buffer[..3 * PAGE as usize], 8 * PAGE).unwrap();
    file.read_exact_at(&mut buffer[..100], 9 * PAGE + 50).unwrap();
    let hit = watched.observer.traffic(watched.device).unwrap();
    assert_eq!(hit.cached_reads - before.cached_reads, 2);
    assert_eq!(hit.cached_bytes - before.cached_bytes, 4 * PAGE);
    assert_eq!((hit.fill_bytes, hit.requests), (before.fill_bytes, before.requests), "hits ask nobody");

    // The last page ends with the file.
    let wanted = size % PAGE;
    assert_eq!(file.read_at(&mut buffer, size - wanted).unwrap() as u64, wanted);
    let tail = watched.observer.traffic(watched.device).unwrap();
    assert_eq!(tail.cached_bytes - hit.cached_bytes, wanted);

    // Direct: past the page cache, seen as requests.
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let before = watched.observer.traffic(watched.device).unwrap();
    let aligned = aligned(&mut buffer);
    assert_eq!(direct.read_at(&mut aligned[..4 * PAGE as usize], 20 * PAGE).unwrap() as u64, 4 * PAGE);
    let after = watched.observer.traffic(watched.device).unwrap();
    assert_eq!(after.direct_bytes - before.direct_bytes, 4 * PAGE, "{after:?}");
    assert_eq!((after.cached_bytes, after.fill_bytes), (before.cached_bytes, before.fill_bytes));

    // Mapped: every page, of which some are cached.
    let mapped_before = after;
    touch_every_page(&file, size);
    let mapped = watched.observer.traffic(watched.device).unwrap();
    assert!(mapped.faults > mapped_before.faults, "{mapped:?}");
    assert!(mapped.map_windows > mapped_before.map_windows, "{mapped:?}");
    assert_eq!(mapped.cached_reads, mapped_before.cached_reads, "no call read");

    read_page(last, 1);
    let events = watched.events_until(last_node);
    let told = watched.ranges(node, &events);
    // Pages 8 to 10 had their events before; all others were touched since, once each.
    assert_eq!(told, [0..8 * PAGE, 11 * PAGE..pages * PAGE]);

    // The daemon's answers and the reading process. The kernel does not wait for the answer to the
    // last close, so that one may be late.
    let (latency, total) = eventually("an answer to every request", WAIT_TIMEOUT, || {
        let latency = watched.observer.latency(watched.device).unwrap();
        let total = watched.observer.traffic(watched.device).unwrap();
        let answered: u64 = latency.values().flat_map(|latency| latency.buckets).sum();
        (answered == total.requests).then_some((latency, total))
    })
    .unwrap();
    let reads: u64 = latency[&FUSE_READ].buckets.iter().sum();
    assert_eq!(reads, total.fill_requests + total.direct_reads);
    let readers = watched.observer.readers(watched.device).unwrap();
    let [reader] = &readers[..] else {
        panic!("one thread has read: {readers:?}");
    };
    assert_eq!((reader.process, reader.bytes), (std::process::id(), total.cached_bytes + total.direct_bytes));
    assert_eq!(reader.requested_bytes, total.fill_bytes + total.direct_bytes);
    assert_eq!(watched.observer.lost(), 0);
}

/// A part of the buffer that direct I/O may read into.
fn aligned(buffer: &mut [u8]) -> &mut [u8] {
    let skip = buffer.as_ptr().align_offset(PAGE as usize);
    &mut buffer[skip..]
}

fn touch_every_page(file: &File, size: u64) {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    use std::num::NonZeroUsize;
    let length = NonZeroUsize::new(size as usize).unwrap();
    // SAFETY: a new mapping of a file that is not truncated meanwhile; it is read within its
    // length and unmapped once.
    unsafe {
        let map = mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0).unwrap();
        for page in (0..size).step_by(PAGE as usize) {
            map.cast::<u8>().add(page as usize).read_volatile();
        }
        munmap(map, length.get()).unwrap();
    }
}

#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn reads_of_a_foreign_mount_are_seen_exactly() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let bindfs = Bindfs::start().unwrap();
    let size = 40 * PAGE - 1000;
    let file = bindfs.put("file", &Pattern::new(1).bytes(0, size as usize)).unwrap();
    let last = bindfs.put("last", &[7; 2 * PAGE as usize]).unwrap();
    for path in [&file, &last] {
        fs::metadata(path).unwrap();
    }
    let (node, last_node) = (bindfs.node(&file).unwrap(), bindfs.node(&last).unwrap());
    let mounted = bindfs.path();
    everything_is_seen(&ReadCase { file: &file, node, size, last: &last, last_node, mounted: &mounted });
}

#[test]
#[cfg_attr(not(all(can_mount, can_observe)), ignore = "needs mounts and eBPF")]
fn reads_of_our_mount_are_seen_exactly() {
    if !can_observe() || !host::can_mount() {
        return;
    }
    let cluster = CLUSTER.get(|| Cluster::builder().start().unwrap());
    let size = 40 * PAGE - 1000;
    cluster.filer().put("/ebpf/file", &Pattern::new(1).bytes(0, size as usize), "").unwrap();
    cluster.filer().put("/ebpf/last", &[7; 2 * PAGE as usize], "").unwrap();
    // Of files that the kernel reads by itself nothing is seen where it refuses fentry.
    let mount = Mount::builder(&cluster).arg("--no-passthrough").start().unwrap();
    let (file, last) = (mount.file("/ebpf/file"), mount.file("/ebpf/last"));
    // Our inode numbers are the kernel's.
    let node_of = |path: &Path| fs::metadata(path).unwrap().ino();
    let (node, last_node) = (node_of(&file), node_of(&last));
    everything_is_seen(&ReadCase { file: &file, node, size, last: &last, last_node, mounted: mount.path() });
}

#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn readahead_is_told_from_what_was_asked_for() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let bindfs = Bindfs::start().unwrap();
    let file = bindfs.put("file", &vec![3; 2 * MIB]).unwrap();
    let watched = WatchedMount::start(&bindfs.path(), &every_page());
    let mut opened = File::open(file).unwrap();
    let mut buffer = vec![0; 64 << 10];
    opened.read_exact(&mut buffer).unwrap();
    opened.read_exact(&mut buffer).unwrap();
    let some = watched.observer.traffic(watched.device).unwrap();
    assert_eq!((some.cached_reads, some.cached_bytes), (2, 128 << 10));
    assert!(some.fill_bytes > some.cached_bytes, "the kernel has read ahead: {some:?}");
    while opened.read(&mut buffer).unwrap() > 0 {}
    let all = watched.observer.traffic(watched.device).unwrap();
    assert!(all.cached_reads == 32 && nearly(all.cached_bytes, 2 * MIB as u64), "{all:?}");
    assert_eq!(
        (all.fill_bytes, all.inserted_bytes),
        (2 * MIB as u64, 2 * MIB as u64),
        "each byte once: {all:?}"
    );
}

#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn a_call_that_the_page_cache_answers_in_batches_is_one_read() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let bindfs = Bindfs::start().unwrap();
    let file = File::open(bindfs.put("file", &vec![3; MIB]).unwrap()).unwrap();
    let watched = WatchedMount::start(&bindfs.path(), &every_page());
    let mut buffer = vec![0; MIB];
    for calls in 1..=3 {
        file.read_exact_at(&mut buffer, 0).unwrap();
        let traffic = watched.observer.traffic(watched.device).unwrap();
        assert!(nearly(traffic.cached_bytes, calls * MIB as u64), "{traffic:?}");
        assert_eq!(traffic.cached_reads, calls);
    }
}

#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn what_is_not_watched_is_not_seen() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    const SIZE: u64 = 64 * PAGE;
    let [watched_mount, other] = [Bindfs::start().unwrap(), Bindfs::start().unwrap()];
    let [file, unseen] =
        [&watched_mount, &other].map(|mount| mount.put("file", &[1; SIZE as usize]).unwrap());
    let mut watched = WatchedMount::start(&watched_mount.path(), &every_page());
    let elsewhere = DeviceNumber::of(&other.path()).unwrap();
    fs::read(&unseen).unwrap();
    assert!(matches!(watched.observer.traffic(elsewhere), Err(EbpfError::NotWatched(_))));
    assert_eq!(watched.observer.traffic(watched.device).unwrap().cached_reads, 0);
    assert_eq!(watched.observer.readers(watched.device).unwrap(), []);

    // The first event of all is that of the first read of the watched mount.
    fs::read(&file).unwrap();
    let first = eventually("an event", WAIT_TIMEOUT, || watched.events.try_recv().ok()).unwrap();
    assert_eq!(first.device, watched.device);
    assert!(first.range.end <= SIZE, "{first:?}");

    // No more after the watch has ended, and a new watch starts from nothing.
    watched.observer.unwatch(watched.device).unwrap();
    fs::read(&file).unwrap();
    watched.observer.watch(watched.device).unwrap();
    assert_eq!(watched.observer.traffic(watched.device).unwrap().cached_reads, 0);
    fs::read(&file).unwrap();
    let traffic = watched.observer.traffic(watched.device).unwrap();
    assert!(nearly(traffic.cached_bytes, SIZE), "{traffic:?}");
    let readers = watched.observer.readers(watched.device).unwrap();
    assert_eq!(readers.iter().map(|reader| reader.bytes).sum::<u64>(), traffic.cached_bytes);
}
