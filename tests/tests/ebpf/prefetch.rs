//! What a mount does about reads that it hears of through eBPF alone: promotion, prefetch, and
//! pages stored back.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::Command;

use interceptor::ebpf;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tests::{Cluster, Mount, Pattern, data, eventually, host, mount, reading};

use crate::{CLUSTER, MIB, PAGE, WAIT_TIMEOUT, can_observe, disable_readahead, programs_of};

/// Bytes of the reads that bring the file there.
const PIECE: usize = 64 << 10;

/// A file of a mount that is in the page cache, and open, after one read through the daemon.
struct CachedFile {
    mount: Mount,
    file: File,
    content: Vec<u8>,
}

impl CachedFile {
    const SIZE: usize = 8 * MIB;

    /// `None` without passthrough: no files are resident then.
    fn start(cluster: &Cluster, args: &[&str]) -> Option<CachedFile> {
        let content = Pattern::new(7).bytes(0, Self::SIZE);
        cluster.filer().put("/ebpf/hot", &content, "").unwrap();
        let mount = Mount::interceptor(&cluster.filer_addresses()).args(args).start().unwrap();
        let (_, status) = mount.status("/api/v1/status").unwrap();
        if status.contains("FUSE passthrough") {
            host::skipped("no passthrough, so no resident files");
            return None;
        }
        let file = File::open(mount.file("/ebpf/hot")).unwrap();
        let cached = CachedFile { mount, file, content };
        // In no order: what a stream has read becomes resident without eBPF, too.
        let mut offsets: Vec<usize> = (0..Self::SIZE).step_by(PIECE).collect();
        offsets.shuffle(&mut StdRng::seed_from_u64(7));
        for offset in offsets {
            let mut found = vec![0; PIECE];
            cached.file.read_exact_at(&mut found, offset as u64).unwrap();
            data::assert_same("/ebpf/hot", &found, &cached.content[offset..offset + PIECE]);
        }
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
        if let Err(error) = eventually("promotion", WAIT_TIMEOUT, hot) {
            panic!("{error} after {rounds} reads; {}", self.mount.log().unwrap());
        }
        rounds
    }

    /// Closes the file.
    fn close(&mut self) {
        // A file is read in one way for as long as it is open.
        self.file = File::open("/dev/null").unwrap();
    }

    /// Drops the pages of the file, opens it anew and reads it. Returns whether the daemon served
    /// any of it.
    fn asks_when_forgotten(&self) -> bool {
        let path = self.mount.file("/ebpf/hot");
        reading::forget(&path).unwrap();
        let before = self.reads();
        data::assert_same("/ebpf/hot", &fs::read(&path).unwrap(), &self.content);
        self.reads() > before
    }
}

#[test]
#[cfg_attr(not(all(can_mount, can_observe)), ignore = "needs mounts and eBPF")]
fn a_file_that_is_hot_in_the_page_cache_alone_becomes_resident() {
    if !can_observe() || !host::can_mount() {
        return;
    }
    let cluster = CLUSTER.get(|| Cluster::builder().start().unwrap());
    let mut attempts = 0;
    let (mut with, asked, rounds) = loop {
        let Some(with) = CachedFile::start(&cluster, &[]) else { return };
        let asked = with.reads();
        let rounds = with.read_until_promoted();
        if with.reads() == asked {
            break (with, asked, rounds);
        }
        // A host that is short of memory may have reclaimed pages of the file meanwhile, but not
        // each time.
        attempts += 1;
        assert!(attempts < 3, "the page cache does not keep the file");
    };
    let metric = |name: &str, label: &str| with.mount.metric(name, &[label]).unwrap();
    assert!(metric("interceptor_ebpf_events_total", "hot") > 0.0);
    assert_eq!(with.mount.metric("interceptor_ebpf_lost_total", &[]).unwrap(), 0.0);
    let from_cache = metric("interceptor_read_bytes_total", "page_cache");
    assert!(from_cache >= ((rounds - 1) * CachedFile::SIZE) as f64, "{from_cache} in {rounds} rounds");
    assert!(metric("interceptor_kernel_request_seconds_count", "read") >= asked);
    print_reaction(&with.mount);

    let (_, status) = with.mount.status("/api/v1/status").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let sights = status["kernel"]["sights"].as_array().unwrap();
    let probes = ebpf::probe_host();
    let wanted = probes.iter().filter(|probe| probe.capability != ebpf::capability::INSERTS);
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

    // As many reads, which the daemon does not hear of.
    let mut without = CachedFile::start(&cluster, &["--no-ebpf"]).unwrap();
    assert_eq!(programs_of(without.mount.pid()), 0);
    let asked = without.reads();
    (0..rounds).for_each(|_| without.read());
    assert!(without.reads() == asked && !without.promoted(), "{}", without.mount.log().unwrap());
    assert!(!without.mount.status("/metrics").unwrap().1.contains("interceptor_ebpf"));

    with.close();
    without.close();
    assert!(without.asks_when_forgotten());
    // The daemon hears later than we that the file is closed.
    eventually("its own pages", WAIT_TIMEOUT, || (!with.asks_when_forgotten()).then_some(())).unwrap();
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
#[cfg_attr(not(all(can_mount, can_observe)), ignore = "needs mounts and eBPF")]
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
    // An event about the new file may still be under way. If it met the lookup of its name, the
    // kernel would drop the name, and the pages with it.
    let asked = || mount.metric("interceptor_reads_total", &[]);
    let mut keeps_pages = || {
        read(PAGE as usize);
        let before = asked().ok()?;
        read(PAGE as usize);
        (asked().ok()? == before).then_some(())
    };
    eventually("the file's name to be remembered", WAIT_TIMEOUT, &mut keeps_pages).unwrap();
    read(BEGINNING);
    // The daemon has fetched ahead and remembers nothing of that.
    let warmup = || {
        let mut evict = Command::new(mount::interceptor_program().unwrap());
        assert!(evict.args(["warmup", "--evict"]).arg(&path).output().unwrap().status.success());
        let used = mount.metric("interceptor_cache_bytes", &["used"]).ok()?;
        (used == 0.0).then_some(())
    };
    eventually("an empty cache", WAIT_TIMEOUT, warmup).unwrap();
    let before = asked().unwrap();
    // Far enough for the next window to reach beyond the cached pages, not so far that the kernel
    // requests it.
    read(BEGINNING - 4 * MIB);
    let fetched = || mount.metric("interceptor_prefetch_fetched_bytes_total", &["seen"]).ok();
    eventually("what comes next", WAIT_TIMEOUT, || fetched().filter(|bytes| *bytes >= MIB as f64)).unwrap();
    assert_eq!(asked().unwrap(), before, "nobody has asked");
    read(64 * MIB);
    let used = mount.metric("interceptor_prefetch_bytes_total", &["seen", "used"]).unwrap();
    assert!(used > 0.0, "{}", mount.status("/metrics").unwrap().1);
    print_reaction(&mount);
}

#[test]
#[cfg_attr(not(all(can_mount, can_observe)), ignore = "needs mounts and eBPF")]
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
    disable_readahead(&file);
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
    eventually("a hot range", WAIT_TIMEOUT, turned_hot).unwrap();
    assert_eq!(metric("interceptor_page_cache_pushed_bytes_total", &[]), 0.0, "the page cache had it all");

    reading::forget(&path).unwrap();
    let mut pages = hot.clone().step_by(PAGE as usize);
    let pushed = || {
        // Until its chunk is in the cache, the daemon has nothing to give.
        let offset = pages.next().expect("a page that was not read since");
        read(offset..offset + PAGE as usize);
        (metric("interceptor_page_cache_pushed_bytes_total", &[]) > 0.0).then_some(())
    };
    eventually("a push", WAIT_TIMEOUT, pushed).unwrap();
    let asked = metric("interceptor_reads_total", &[]);
    assert!(pages.len() > 0, "the rest was not asked for");
    read(hot.clone());
    assert_eq!(metric("interceptor_reads_total", &[]), asked, "the page cache has it all");
    assert_eq!(metric("interceptor_page_cache_pushed_bytes_total", &[]), RANGE as f64);
}
