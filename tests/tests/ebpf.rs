//! What eBPF sees of reads: on our mount and on one of others, exactly what was read, and nothing of what is not watched.
//!
//! Here a granule is a page and every page that is read is hot, so that events name every page that was read, once.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use interceptor::ebpf::{self, Device, EbpfError, Event, Kind, Observer, Settings};
use tests::{Bindfs, Cluster, Mount, Pattern, Shared, data, eventually, host, mount, reading};

const PAGE: u64 = 4096;
const MIB: usize = 1 << 20;
const READ: u32 = 15;
const PATIENCE: Duration = Duration::from_secs(10);

static CLUSTER: Shared<Cluster> = Shared::new();

/// Every page once, and no streams.
fn every_page() -> Settings {
    Settings {
        granule: PAGE,
        hot_bytes: 1,
        half_life: Duration::from_secs(1 << 20),
        stream_least: u64::MAX,
        sampled: None,
        ..Settings::default()
    }
}

/// Whether that many bytes were seen of `expected` ones, but for the few pages that the kernel says nothing of: those for which its readahead
/// found no memory, as happens when there is little, and which it then brings one by one.
fn about(seen: u64, expected: u64) -> bool {
    seen <= expected && expected - seen <= 16 * PAGE
}

/// A mount that is watched.
struct Watched {
    observer: Observer,
    events: tokio::sync::mpsc::Receiver<Event>,
    device: Device,
}

impl Watched {
    /// Returns with the programs attached, so that the next read is seen.
    fn start(mounted: &Path, settings: &Settings) -> Self {
        let (observer, events) = Observer::start(settings).unwrap();
        let device = Device::of(mounted).unwrap();
        observer.watch(device).unwrap();
        Self { observer, events, device }
    }

    /// The next events, until one of node `last`, which is not among them.
    fn events_until(&mut self, last: u64) -> Vec<Event> {
        let mut events = Vec::new();
        eventually("the last event", PATIENCE, || {
            while let Ok(event) = self.events.try_recv() {
                if event.node == last {
                    return Some(());
                }
                events.push(event);
            }
            None
        })
        .unwrap();
        events
    }

    /// The pages that `events` name, as ranges of bytes, and that no page is named twice.
    fn ranges(&self, node: u64, events: &[Event]) -> Vec<Range<u64>> {
        let mut pages = BTreeSet::new();
        for event in events {
            assert_eq!((event.device, event.node), (self.device, node), "{event:?}");
            assert!(matches!(event.kind, Kind::Hot { bytes } if bytes > 0), "{event:?}");
            assert_eq!(event.process, std::process::id(), "{event:?}");
            assert!(pages.insert(event.range.start), "told twice: {event:?}");
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in pages {
            match ranges.last_mut() {
                Some(range) if range.end == page => range.end += PAGE,
                _ => ranges.push(page..page + PAGE),
            }
        }
        ranges
    }
}

/// Whether the programs can be used here; the test returns if not.
fn can_observe() -> bool {
    let lack = match Observer::start(&every_page()) {
        Err(error) => Some(error.to_string()),
        Ok((observer, _)) => {
            let blind =
                observer.rungs().iter().find(|rung| rung.by.is_none() && rung.sight != "passthrough reads");
            blind.map(|rung| format!("{}: {}", rung.sight, rung.why.clone().unwrap_or_default()))
        }
    };
    if let Some(reason) = &lack {
        host::skipped(reason);
    }
    lack.is_none()
}

/// One file to be read and one whose event comes after those of the first.
struct Stage<'a> {
    file: &'a Path,
    node: u64,
    size: u64,
    last: &'a Path,
    last_node: u64,
    mounted: &'a Path,
}

/// Reads in every way and compares what was seen. `size` is that of the file, not a multiple of a page.
fn everything_is_seen(stage: &Stage) {
    let &Stage { file: path, node, size, last, last_node, mounted } = stage;
    assert_ne!(size % PAGE, 0);
    let pages = size.div_ceil(PAGE);
    let mut watched = Watched::start(mounted, &every_page());
    let file = File::open(path).unwrap();
    // Without it, what is asked for is what is read, to the page.
    // SAFETY: a call on an open descriptor, without memory.
    assert_eq!(unsafe { libc::posix_fadvise(libc_fd(&file), 0, 0, libc::POSIX_FADV_RANDOM) }, 0);
    let mut buffer = vec![0; 16 * PAGE as usize];

    // Buffered, nothing cached.
    file.read_exact_at(&mut buffer[..3 * PAGE as usize], 8 * PAGE).unwrap();
    let miss = watched.observer.traffic(watched.device).unwrap();
    assert_eq!((miss.cached_reads, miss.cached_bytes), (1, 3 * PAGE));
    assert_eq!((miss.fill_bytes, miss.inserted_bytes), (3 * PAGE, 3 * PAGE), "{miss:?}");
    read_page(last, 0);
    let events = watched.events_until(last_node);
    assert_eq!(watched.ranges(node, &events), std::slice::from_ref(&(8 * PAGE..11 * PAGE)));

    // The same from the page cache, and a part of it; no page is told again.
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
    // Pages 8 to 10 were told before; all others were touched by now, once each.
    assert_eq!(told, [0..8 * PAGE, 11 * PAGE..pages * PAGE]);

    // The daemon's answers, and who read.
    // Nobody waits for the answer to the last close.
    let (latency, total) = eventually("an answer to every request", PATIENCE, || {
        let latency = watched.observer.latency(watched.device).unwrap();
        let total = watched.observer.traffic(watched.device).unwrap();
        let answered: u64 = latency.values().flat_map(|latency| latency.buckets).sum();
        (answered == total.requests).then_some((latency, total))
    })
    .unwrap();
    let reads: u64 = latency[&READ].buckets.iter().sum();
    assert_eq!(reads, total.fill_requests + total.direct_reads);
    let readers = watched.observer.readers(watched.device).unwrap();
    let [reader] = &readers[..] else {
        panic!("one thread has read: {readers:?}");
    };
    assert_eq!((reader.process, reader.bytes), (std::process::id(), total.cached_bytes + total.direct_bytes));
    assert_eq!(reader.requested_bytes, total.fill_bytes + total.direct_bytes);
    assert_eq!(watched.observer.lost(), 0);
}

/// Reads one page, and so has one event sent.
fn read_page(path: &Path, page: u64) {
    File::open(path).unwrap().read_exact_at(&mut [0], page * PAGE).unwrap();
}

fn libc_fd(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_raw_fd()
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
    // SAFETY: a new mapping of a file that nobody truncates; it is read within its length and taken away once.
    unsafe {
        let map = mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0).unwrap();
        for page in (0..size).step_by(PAGE as usize) {
            map.cast::<u8>().add(page as usize).read_volatile();
        }
        munmap(map, length.get()).unwrap();
    }
}

#[test]
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
    everything_is_seen(&Stage { file: &file, node, size, last: &last, last_node, mounted: &mounted });
}

#[test]
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
    everything_is_seen(&Stage { file: &file, node, size, last: &last, last_node, mounted: mount.path() });
}

#[test]
fn readahead_is_told_from_what_was_asked_for() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let bindfs = Bindfs::start().unwrap();
    let file = bindfs.put("file", &vec![3; 2 * MIB]).unwrap();
    let watched = Watched::start(&bindfs.path(), &every_page());
    let mut opened = File::open(file).unwrap();
    let mut buffer = vec![0; 64 << 10];
    opened.read_exact(&mut buffer).unwrap();
    opened.read_exact(&mut buffer).unwrap();
    let some = watched.observer.traffic(watched.device).unwrap();
    assert_eq!((some.cached_reads, some.cached_bytes), (2, 128 << 10));
    assert!(some.fill_bytes > some.cached_bytes, "the kernel has read ahead: {some:?}");
    while opened.read(&mut buffer).unwrap() > 0 {}
    let all = watched.observer.traffic(watched.device).unwrap();
    assert!(all.cached_reads == 32 && about(all.cached_bytes, 2 * MIB as u64), "{all:?}");
    assert_eq!(
        (all.fill_bytes, all.inserted_bytes),
        (2 * MIB as u64, 2 * MIB as u64),
        "each byte once: {all:?}"
    );
}

#[test]
fn a_call_that_the_page_cache_answers_in_batches_is_one_read() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let bindfs = Bindfs::start().unwrap();
    let file = File::open(bindfs.put("file", &vec![3; MIB]).unwrap()).unwrap();
    let watched = Watched::start(&bindfs.path(), &every_page());
    let mut buffer = vec![0; MIB];
    for calls in 1..=3 {
        file.read_exact_at(&mut buffer, 0).unwrap();
        let traffic = watched.observer.traffic(watched.device).unwrap();
        assert!(about(traffic.cached_bytes, calls * MIB as u64), "{traffic:?}");
        assert_eq!(traffic.cached_reads, calls);
    }
}

#[test]
fn what_is_not_watched_is_not_seen() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    const SIZE: u64 = 64 * PAGE;
    let [watched_mount, other] = [Bindfs::start().unwrap(), Bindfs::start().unwrap()];
    let [file, unseen] =
        [&watched_mount, &other].map(|mount| mount.put("file", &[1; SIZE as usize]).unwrap());
    let mut watched = Watched::start(&watched_mount.path(), &every_page());
    let elsewhere = Device::of(&other.path()).unwrap();
    fs::read(&unseen).unwrap();
    assert!(matches!(watched.observer.traffic(elsewhere), Err(EbpfError::NotWatched(_))));
    assert_eq!(watched.observer.traffic(watched.device).unwrap().cached_reads, 0);
    assert_eq!(watched.observer.readers(watched.device).unwrap(), []);

    // The first event of all is that of the first read of the watched mount.
    fs::read(&file).unwrap();
    let first = eventually("an event", PATIENCE, || watched.events.try_recv().ok()).unwrap();
    assert_eq!(first.device, watched.device);
    assert!(first.range.end <= SIZE, "{first:?}");

    // No more after the watch has ended, and a new watch starts from nothing.
    watched.observer.unwatch(watched.device).unwrap();
    fs::read(&file).unwrap();
    watched.observer.watch(watched.device).unwrap();
    assert_eq!(watched.observer.traffic(watched.device).unwrap().cached_reads, 0);
    fs::read(&file).unwrap();
    let traffic = watched.observer.traffic(watched.device).unwrap();
    assert!(about(traffic.cached_bytes, SIZE), "{traffic:?}");
    let readers = watched.observer.readers(watched.device).unwrap();
    assert_eq!(readers.iter().map(|reader| reader.bytes).sum::<u64>(), traffic.cached_bytes);
}

#[test]
fn the_next_window_of_a_stream_is_announced() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    const SIZE: u64 = 64 << 20;
    let bindfs = Bindfs::start().unwrap();
    let file = bindfs.put("file", &vec![1; SIZE as usize]).unwrap();
    let last = bindfs.put("last", &[1; PAGE as usize]).unwrap();
    // Nothing turns hot but what is read three times.
    let settings = Settings { hot_bytes: 3 << 20, ..Settings::default() };
    let mut watched = Watched::start(&bindfs.path(), &settings);
    let mut opened = File::open(&file).unwrap();
    let mut buffer = vec![0; 128 << 10];
    while opened.read(&mut buffer).unwrap() > 0 {}
    // The last file is no stream, as one page of it is read, but hot after a while.
    let last = File::open(last).unwrap();
    let node = bindfs.node(&file).unwrap();
    let mut windows: Vec<Range<u64>> = Vec::new();
    eventually("the hot file", PATIENCE, || {
        for _ in 0..1000 {
            last.read_exact_at(&mut buffer[..PAGE as usize], 0).unwrap();
        }
        while let Ok(event) = watched.events.try_recv() {
            if event.kind != Kind::Stream {
                return Some(());
            }
            assert_eq!(event.node, node, "{event:?}");
            windows.push(event.range);
        }
        None
    })
    .unwrap();
    assert_eq!(windows[0], settings.stream_least..settings.stream_least + settings.stream_window);
    assert!(windows.windows(2).all(|pair| pair[1].start == pair[0].end), "{windows:?}");
    assert!(windows.last().unwrap().end >= SIZE, "{windows:?}");
}

#[test]
fn what_is_lost_is_counted() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    const PAGES: u64 = 4096;
    let bindfs = Bindfs::start().unwrap();
    let file = bindfs.put("file", &vec![1; (PAGES * PAGE) as usize]).unwrap();
    let mut watched = Watched::start(&bindfs.path(), &Settings { ring: 1, events: 1, ..every_page() });
    let opened = File::open(&file).unwrap();
    let mut buffer = vec![0; 16 * PAGE as usize];
    for offset in (0..PAGES * PAGE).step_by(buffer.len()) {
        opened.read_exact_at(&mut buffer, offset).unwrap();
    }
    let traffic = watched.observer.traffic(watched.device).unwrap();
    assert!(about(traffic.cached_bytes, PAGES * PAGE), "counters lose nothing: {traffic:?}");
    let pages = traffic.cached_bytes / PAGE;
    let mut received = 0;
    let all = eventually("every event, or that it was lost", PATIENCE, || {
        while watched.events.try_recv().is_ok() {
            received += 1;
        }
        (received + watched.observer.lost() == pages).then_some(())
    });
    assert!(all.is_ok(), "{received} received, {} lost", watched.observer.lost());
    assert!(watched.observer.lost() > 0);
}

#[test]
fn check_names_every_rung_with_and_without_privileges() {
    if !can_observe() {
        return;
    }
    let sights: Vec<&str> = ebpf::rungs().iter().map(|rung| rung.sight).collect();
    assert!(sights.len() >= 7);
    let program = mount::interceptor_program().unwrap();
    let findings = |capabilities: &str| {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--clear-groups"])
            .args([format!("--inh-caps={capabilities}"), format!("--ambient-caps={capabilities}")])
            .arg(&program)
            .args(["check", "--json"])
            .output()
            .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let of_sight = |sight: &&str| {
            let all = report["findings"].as_array().unwrap();
            let finding = all.iter().find(|finding| finding["ability"] == *sight).unwrap();
            (finding["state"].as_str().unwrap().to_owned(), finding["found"].as_str().unwrap().to_owned())
        };
        sights.iter().map(of_sight).collect::<Vec<_>>()
    };
    let with = findings("+bpf,+perfmon");
    for (sight, (state, found)) in sights.iter().zip(&with) {
        assert!(state == "ok" || *sight == "passthrough reads", "{sight}: {found}");
        assert!(found.contains("tp_btf/") || found.contains("fentry/"), "{sight}: {found}");
    }
    for (sight, (state, found)) in sights.iter().zip(findings("-all")) {
        assert_eq!(state, "lost", "{sight}");
        assert!(found.contains("CAP_BPF"), "{sight}: {found}");
    }
}

#[test]
fn observe_says_what_is_read_by_whom_and_leaves_nothing_behind() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let bindfs = Bindfs::start().unwrap();
    let file = File::open(bindfs.put("file", &vec![1; MIB]).unwrap()).unwrap();
    let mut observe = Command::new(mount::interceptor_program().unwrap())
        .args(["observe", "--json", "--interval", "100ms"])
        .arg(bindfs.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(observe.stdout.take().unwrap()).lines();
    let mut buffer = vec![0; MIB];
    // The first line says that the mount is watched; reads go on until a line tells of them.
    let seen = (0..100).find_map(|_| {
        let line = lines.next()?.unwrap();
        file.read_exact_at(&mut buffer, 0).unwrap();
        let report: serde_json::Value = serde_json::from_str(&line).unwrap();
        (report["reads_per_second"].as_f64()? > 0.0).then_some(report)
    });
    let report = seen.expect("no line tells of the reads");
    assert_eq!(report["readers"][0]["process"], std::process::id());
    assert!(report["bytes_per_second"].as_f64().unwrap() >= MIB as f64);
    assert_eq!(report["hottest"][0]["node"], 2, "{report}");

    let pid = observe.id();
    assert!(programs_of(pid) > 0);
    observe.kill().unwrap();
    observe.wait().unwrap();
    assert_eq!(programs_of(pid), 0);
}

/// A file of a mount that is in the page cache, and open, after one read through the daemon.
struct Cached {
    mount: Mount,
    file: File,
    content: Vec<u8>,
}

impl Cached {
    const SIZE: usize = 8 * MIB;

    /// `None` without passthrough: no files are resident then.
    fn start(cluster: &Cluster, args: &[&str]) -> Option<Cached> {
        let content = Pattern::new(7).bytes(0, Self::SIZE);
        cluster.filer().put("/ebpf/hot", &content, "").unwrap();
        let mount = Mount::interceptor(&cluster.filer_addresses()).args(args).start().unwrap();
        let (_, status) = mount.status("/api/v1/status").unwrap();
        if status.contains("FUSE passthrough") {
            host::skipped("no passthrough, so no resident files");
            return None;
        }
        let file = File::open(mount.file("/ebpf/hot")).unwrap();
        let cached = Cached { mount, file, content };
        cached.read();
        Some(cached)
    }

    fn read(&self) {
        let mut found = vec![0; Self::SIZE];
        self.file.read_exact_at(&mut found, 0).unwrap();
        data::assert_same("/ebpf/hot", &found, &self.content);
    }

    fn reads(&self) -> f64 {
        self.mount.metric("interceptor_reads_total", &[]).unwrap()
    }

    fn promoted(&self) -> bool {
        self.mount.metric("interceptor_resident_events_total", &["promoted"]).unwrap() > 0.0
    }

    /// Returns how often it was read.
    fn read_until_promoted(&self) -> usize {
        let mut rounds = 0;
        let hot = || {
            self.read();
            rounds += 1;
            self.promoted().then_some(())
        };
        if let Err(error) = eventually("promotion", PATIENCE, hot) {
            panic!("{error} after {rounds} reads; {}", self.mount.log().unwrap());
        }
        rounds
    }

    /// Closes the file.
    fn close(&mut self) {
        // A file is read in one way for as long as it is open.
        self.file = File::open("/dev/null").unwrap();
    }

    /// Opened anew, with nothing of it in the page cache. Returns whether the daemon was asked for any of it.
    fn asks_when_forgotten(&self) -> bool {
        let path = self.mount.file("/ebpf/hot");
        reading::forget(&path).unwrap();
        let before = self.reads();
        data::assert_same("/ebpf/hot", &fs::read(&path).unwrap(), &self.content);
        self.reads() > before
    }
}

#[test]
fn a_file_that_is_hot_in_the_page_cache_alone_becomes_resident() {
    if !can_observe() || !host::can_mount() {
        return;
    }
    let cluster = CLUSTER.get(|| Cluster::builder().start().unwrap());
    let mut attempts = 0;
    let (mut with, asked, rounds) = loop {
        let Some(with) = Cached::start(&cluster, &[]) else { return };
        let asked = with.reads();
        let rounds = with.read_until_promoted();
        if with.reads() == asked {
            break (with, asked, rounds);
        }
        // A host that is short of memory may have taken pages of the file away meanwhile, but not each time.
        attempts += 1;
        assert!(attempts < 3, "the page cache does not keep the file");
    };
    let metric = |name: &str, label: &str| with.mount.metric(name, &[label]).unwrap();
    assert!(metric("interceptor_ebpf_events_total", "hot") > 0.0);
    assert_eq!(with.mount.metric("interceptor_ebpf_lost_total", &[]).unwrap(), 0.0);
    let from_cache = metric("interceptor_read_bytes_total", "page_cache");
    assert!(from_cache >= ((rounds - 1) * Cached::SIZE) as f64, "{from_cache} in {rounds} rounds");
    assert!(metric("interceptor_kernel_request_seconds_count", "read") >= asked);
    print_reaction(&with.mount);

    let (_, status) = with.mount.status("/api/v1/status").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let sights = status["kernel"]["sights"].as_array().unwrap();
    let rungs = ebpf::rungs();
    let wanted = rungs.iter().filter(|rung| rung.sight != ebpf::sight::INSERTS);
    assert_eq!(sights.len(), wanted.count(), "{status}");
    let curve = &status["miss_ratio_curve"];
    assert_eq!(curve["granule_bytes"], PAGE, "{status}");
    assert!(
        curve["sampled_reads"].as_u64().unwrap() > 0 && !curve["points"].as_array().unwrap().is_empty(),
        "{curve}"
    );
    for unseen in sights.iter().filter(|sight| sight["by"].is_null()) {
        let lost = status["lost"].as_array().unwrap();
        assert!(lost.iter().any(|lost| lost["ability"] == unseen["sight"]), "{unseen} in {lost:?}");
    }

    // As many reads, of which nobody tells the daemon.
    let mut without = Cached::start(&cluster, &["--no-ebpf"]).unwrap();
    assert_eq!(programs_of(without.mount.pid()), 0);
    let asked = without.reads();
    (0..rounds).for_each(|_| without.read());
    assert!(without.reads() == asked && !without.promoted(), "{}", without.mount.log().unwrap());
    assert!(!without.mount.status("/metrics").unwrap().1.contains("interceptor_ebpf"));

    with.close();
    without.close();
    assert!(without.asks_when_forgotten());
    // The daemon hears later than we that the file is closed.
    eventually("its own pages", PATIENCE, || (!with.asks_when_forgotten()).then_some(())).unwrap();
}

/// How long it took from reads to what was done about them.
fn print_reaction(mount: &Mount) {
    let (_, metrics) = mount.status("/metrics").unwrap();
    let lines = metrics.lines().filter(|line| line.starts_with("interceptor_ebpf_reaction_seconds"));
    let mut before = String::new();
    for line in lines {
        let count = line.rsplit(' ').next().unwrap_or_default();
        if count != before {
            println!("{line}");
        }
        count.clone_into(&mut before);
    }
}

#[test]
fn what_follows_a_stream_in_the_page_cache_is_fetched_before_the_kernel_asks() {
    const BEGINNING: usize = 24 * MIB;
    if !can_observe() || !host::can_mount() {
        return;
    }
    let cluster = CLUSTER.get(|| Cluster::builder().start().unwrap());
    let pattern = Pattern::new(8);
    cluster.filer().put_reader("/ebpf/stream", pattern.reader(64 * MIB as u64), "").unwrap();
    let mount = Mount::interceptor(&cluster.filer_addresses()).arg("--no-passthrough").start().unwrap();
    let path = mount.file("/ebpf/stream");
    let mut buffer = vec![0; 128 << 10];
    let mut read = |until: usize| {
        let file = File::open(&path).unwrap();
        for offset in (0..until).step_by(buffer.len()) {
            file.read_exact_at(&mut buffer, offset as u64).unwrap();
            data::assert_same("/ebpf/stream", &buffer, &pattern.bytes(offset as u64, buffer.len()));
        }
    };
    // An event about the new file may still be under way. If it met the lookup of its name, the kernel would drop the name, and the pages with it.
    let asked = || mount.metric("interceptor_reads_total", &[]);
    let mut keeps_pages = || {
        read(PAGE as usize);
        let before = asked().ok()?;
        read(PAGE as usize);
        (asked().ok()? == before).then_some(())
    };
    eventually("the file's name to be remembered", PATIENCE, &mut keeps_pages).unwrap();
    read(BEGINNING);
    // The daemon has fetched ahead and remembers nothing of that.
    let warmup = || {
        let mut evict = Command::new(mount::interceptor_program().unwrap());
        assert!(evict.args(["warmup", "--evict"]).arg(&path).output().unwrap().status.success());
        let used = mount.metric("interceptor_cache_bytes", &["used"]).ok()?;
        (used == 0.0).then_some(())
    };
    eventually("an empty cache", PATIENCE, warmup).unwrap();
    let before = asked().unwrap();
    // Far enough for the next window to reach beyond what the page cache has, not so far that the kernel asks for it.
    read(BEGINNING - 4 * MIB);
    let fetched = || mount.metric("interceptor_prefetch_fetched_bytes_total", &["seen"]).ok();
    eventually("what comes next", PATIENCE, || fetched().filter(|bytes| *bytes >= MIB as f64)).unwrap();
    assert_eq!(asked().unwrap(), before, "nobody has asked");
    read(64 * MIB);
    let used = mount.metric("interceptor_prefetch_bytes_total", &["seen", "used"]).unwrap();
    assert!(used > 0.0, "{}", mount.status("/metrics").unwrap().1);
    print_reaction(&mount);
}

#[test]
fn a_hot_range_that_the_page_cache_has_lost_is_given_back_to_it_whole() {
    const RANGE: usize = MIB;
    const SIZE: usize = 64 * MIB;
    if !can_observe() || !host::can_mount() {
        return;
    }
    let cluster = CLUSTER.get(|| Cluster::builder().start().unwrap());
    let pattern = Pattern::new(10);
    cluster.filer().put_reader("/ebpf/range", pattern.reader(SIZE as u64), "").unwrap();
    let mount = Mount::interceptor(&cluster.filer_addresses()).start().unwrap();
    let path = mount.file("/ebpf/range");
    let file = File::open(&path).unwrap();
    // Without readahead, each page that the page cache lacks is a request of its own.
    // SAFETY: a call on an open descriptor, without memory.
    assert_eq!(unsafe { libc::posix_fadvise(libc_fd(&file), 0, 0, libc::POSIX_FADV_RANDOM) }, 0);
    let hot = 5 * MIB..5 * MIB + RANGE;
    let mut page = vec![0; PAGE as usize];
    let mut read = |range: Range<usize>| {
        for offset in range.step_by(page.len()) {
            file.read_exact_at(&mut page, offset as u64).unwrap();
            data::assert_same("/ebpf/range", &page, &pattern.bytes(offset as u64, page.len()));
        }
    };
    let metric = |name: &str, labels: &[&str]| mount.metric(name, labels).unwrap();
    let turned_hot = || {
        read(hot.clone());
        (metric("interceptor_ebpf_events_total", &["hot"]) > 0.0).then_some(())
    };
    eventually("a hot range", PATIENCE, turned_hot).unwrap();
    assert_eq!(metric("interceptor_page_cache_pushed_bytes_total", &[]), 0.0, "the page cache had it all");

    reading::forget(&path).unwrap();
    let mut pages = hot.clone().step_by(PAGE as usize);
    let pushed = || {
        // Until its chunk is in the cache, the daemon has nothing to give.
        let offset = pages.next().expect("a page that was not read since");
        read(offset..offset + PAGE as usize);
        (metric("interceptor_page_cache_pushed_bytes_total", &[]) > 0.0).then_some(())
    };
    eventually("a push", PATIENCE, pushed).unwrap();
    let asked = metric("interceptor_reads_total", &[]);
    assert!(pages.len() > 0, "the rest was not asked for");
    read(hot.clone());
    assert_eq!(metric("interceptor_reads_total", &[]), asked, "the page cache has it all");
    assert_eq!(metric("interceptor_page_cache_pushed_bytes_total", &[]), RANGE as f64);
}

#[test]
fn a_mount_that_may_not_load_programs_says_so_and_works() {
    if !can_observe() || !host::can_mount() {
        return;
    }
    let cluster = CLUSTER.get(|| Cluster::builder().start().unwrap());
    let content = Pattern::new(9).bytes(0, 3 * MIB);
    cluster.filer().put("/ebpf/unseen", &content, "").unwrap();
    // Mounting takes CAP_SYS_ADMIN, which stands for the other two if it is held in the kernel's own user namespace.
    let without = ["unshare", "--user", "--map-root-user", "--mount"];
    let Ok(mount) = Mount::interceptor(&cluster.filer_addresses()).wrapped_in(without).start() else {
        host::skipped("no mounts in user namespaces");
        return;
    };
    let (_, status) = mount.status("/api/v1/status").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let lost = status["lost"].as_array().unwrap();
    assert!(lost.iter().any(|lost| lost["ability"] == "eBPF programs"), "{lost:?}");
    assert!(status["kernel"].is_null(), "{status}");
    // Only who is in its user namespace may use the mount.
    let pid = mount.pid().to_string();
    let mut read = Command::new("nsenter");
    read.args(["--target", &pid, "--user", "--mount", "--preserve-credentials", "cat"]);
    let found = read.arg(mount.file("/ebpf/unseen")).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    data::assert_same("/ebpf/unseen", &found.stdout, &content);
}

/// Descriptors of eBPF programs that a process has open: without one of them a program is gone, unless it is pinned.
fn programs_of(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:bpf-prog")).count()
}

/// The same replay that the library's own test makes of the arithmetic, here with the kernel's map and real reads.
#[test]
fn a_zipf_replay_flags_what_is_hot_and_loses_nothing() {
    const GRANULES: usize = 100_000;
    const READS: usize = 1_000_000;
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let bindfs = Bindfs::start().unwrap();
    let path = bindfs.put("file", b"").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.set_len(GRANULES as u64 * PAGE).unwrap();
    // Into the page cache, so that the replay goes as fast as the machine can.
    std::io::copy(&mut &file, &mut std::io::sink()).unwrap();

    let sums: Vec<f64> = (1..=GRANULES)
        .scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-0.99);
            Some(*sum)
        })
        .collect();
    let whole = sums[GRANULES - 1];
    let reads_of = |rank: usize| (rank as f64).powf(-0.99) / whole * READS as f64;
    let settings = Settings { hot_bytes: reads_of(1700) as u64 * PAGE, ..every_page() };
    let mut watched = Watched::start(&bindfs.path(), &settings);
    let mut state = 1u64;
    let mut counts = vec![0u32; GRANULES];
    let mut page = vec![0; PAGE as usize];
    let begun = std::time::Instant::now();
    for _ in 0..READS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let point = (state >> 11) as f64 / (1u64 << 53) as f64 * whole;
        // Ranks are scattered over the file; the factor is coprime to the number of granules.
        let granule = sums.partition_point(|&sum| sum <= point) * 7919 % GRANULES;
        counts[granule] += 1;
        file.read_exact_at(&mut page, granule as u64 * PAGE).unwrap();
    }
    let took = begun.elapsed();
    let traffic = watched.observer.traffic(watched.device).unwrap();
    assert!(about(traffic.cached_bytes, READS as u64 * PAGE), "{traffic:?}");
    assert_eq!(watched.observer.lost(), 0);

    let last = bindfs.put("last", &page).unwrap();
    let opened = File::open(&last).unwrap();
    // CPUs may keep an eighth of what makes it hot to themselves.
    for _ in 0..(reads_of(1700) * 9.0 / 8.0).ceil() as usize {
        opened.read_exact_at(&mut page, 0).unwrap();
    }
    let last_node = bindfs.node(&last).unwrap();
    let flagged: BTreeSet<usize> =
        watched.events_until(last_node).iter().map(|event| (event.range.start / PAGE) as usize).collect();
    let mut ranked: Vec<usize> = (0..GRANULES).collect();
    ranked.sort_by_key(|&granule| std::cmp::Reverse(counts[granule]));
    let top = ranked[..GRANULES / 100].iter().filter(|granule| flagged.contains(granule)).count();
    let far = flagged.iter().filter(|granule| !ranked[..GRANULES * 3 / 100].contains(granule)).count();
    println!(
        "{READS} reads in {took:?}; {} flagged: {top} of the top {}, {far} outside the top 3 %; a map of {} granules",
        flagged.len(),
        GRANULES / 100,
        settings.granules
    );
    assert!(top * 100 >= GRANULES / 100 * 95, "{top}");
    assert!(far * 100 <= flagged.len() * 5, "{far} of {}", flagged.len());
}
