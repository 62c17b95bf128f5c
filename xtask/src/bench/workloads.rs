//! The workloads: each is a function on a freshly mounted path that returns named figures.
//!
//! Workloads know nothing of how mounts are made, alternated and summed up.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::data::{DataSet, LargeFile, SmallFile};
use super::disk;
use super::mount_under_test::MountUnderTest;
use super::sample::{Sample, Unit, throughput};
use super::statistics::quantile;
use super::{cold_disk, passes, reader, resident, verify};
use crate::process::cpu_seconds;
use crate::stage::CACHE_MIB;

/// Readers at once in the rows named so.
const READERS: u64 = 4;

/// The part of the large file that is hot in the rows named so.
const HOT_DIVISOR: u64 = 16;
/// Passes over that part. The first one fetches it, all others find it in the page cache.
const HOT_PASSES: usize = 6;
/// How long the daemon has to hear of the hot part.
const HINT_TIME: Duration = Duration::from_millis(300);

/// How much a mount may cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheSize {
    /// More than the data set takes.
    Plenty,
    /// The same, in memory that no program has just used.
    Fresh,
    /// A third of what the small files take, but at least the least that a mount accepts.
    Scarce,
    /// A third of what the files of some chunks take, and a disk for all of them.
    WithDisk,
}

impl CacheSize {
    pub(super) fn mib(self, data: &DataSet) -> u64 {
        match self {
            Self::Plenty | Self::Fresh => CACHE_MIB,
            Self::Scarce => ((data.small_bytes() / 3) >> 20).max(16),
            Self::WithDisk => ((data.medium.iter().map(|file| file.size).sum::<u64>() / 3) >> 20).max(16),
        }
    }
}

/// Which files a workload reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// The large one and the small ones.
    Basic,
    /// Also those of one and of some chunks.
    Medium,
}

/// Something to measure.
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) memory: CacheSize,
    /// Options of `interceptor mount`, beside the size of its cache.
    pub(super) options: &'static [&'static str],
    pub(super) files: Files,
    /// How it brings chunks.
    pub(super) transport: &'static str,
    pub(super) run: fn(&MountUnderTest) -> Result<Vec<Sample>>,
    /// Compares every byte of what the workload reads with the data set.
    pub(super) check: fn(&MountUnderTest) -> Result<()>,
}

/// All workloads, in the order they are run in.
pub(super) const ALL: &[Workload] = &[
    Workload {
        name: "seq-cold",
        about: "one reader, 1 MiB reads, fresh mount; with the daemon's CPU time",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: sequential_pass_and_cpu,
        check: compare_large,
    },
    Workload {
        name: "seq-cold-fresh",
        about: "the same in memory that no program has just used, once it was touched ahead",
        memory: CacheSize::Fresh,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: sequential_pass_and_cpu,
        check: compare_large,
    },
    Workload {
        name: "seq-cold-no-prefault",
        about: "the same with --cache-prefault off, as right after a mount where fresh memory is slow",
        memory: CacheSize::Fresh,
        options: &["--cache-prefault=off"],
        files: Files::Basic,
        transport: "http",
        run: sequential_pass_and_cpu,
        check: compare_large,
    },
    Workload {
        name: "seq-cold-tcp",
        about: "the same from an engine over TCP",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "tcp",
        run: sequential_pass_and_cpu,
        check: compare_large,
    },
    Workload {
        name: "seq-cold-local",
        about: "the same from the volume server's files on this host",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "local",
        run: sequential_pass_and_cpu,
        check: compare_large,
    },
    Workload {
        name: "cold-disk",
        about: "the same over HTTP with the page cache of the volume server dropped, and its files directly, eight reads at a time",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: cold_disk::pass,
        check: compare_large,
    },
    Workload {
        name: "seq-again",
        about: "one reader after a first pass, page cache of the mount dropped",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            reader::sequential(&site.root, &site.data.large)?;
            drop_large(site)?;
            sequential_pass(site)
        },
        check: compare_large,
    },
    Workload {
        name: "seq-warm",
        about: "passes two to four, begun at once, page cache of the mount kept",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: passes::warm,
        check: compare_large,
    },
    Workload {
        name: "seq-warm-no-ebpf",
        about: "the same without eBPF",
        memory: CacheSize::Plenty,
        options: &["--no-ebpf"],
        files: Files::Basic,
        transport: "http",
        run: passes::warm,
        check: compare_large,
    },
    Workload {
        name: "second-pass-large",
        about: "three passes over the large file, each begun at once after the page cache of the mount was dropped; with what passes two and three fetched",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| passes::dropped(site, &[site.data.large.as_file()]),
        check: compare_large,
    },
    Workload {
        name: "second-pass-medium",
        about: "the same over files of 8 MiB, together as large",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Medium,
        transport: "http",
        run: |site| passes::dropped(site, &site.data.medium),
        check: |site| compare_files(site, &site.data.medium),
    },
    Workload {
        name: "second-pass-small",
        about: "the same over files of 1 MiB, together as large",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Medium,
        transport: "http",
        run: |site| passes::dropped(site, &site.data.chunks),
        check: |site| compare_files(site, &site.data.chunks),
    },
    Workload {
        name: "disk-again",
        about: "files of 8 MiB on the disk behind a cache of a third of them: the first and the second pass after a restart, random 4 KiB reads, and the same directly",
        memory: CacheSize::WithDisk,
        options: &[],
        files: Files::Medium,
        transport: "http",
        run: disk::again,
        check: |site| compare_files(site, &site.data.medium),
    },
    Workload {
        name: "seq-resident",
        about: "a third pass, page cache of the mount dropped before the second and third, hot files settled; with the daemon's CPU time, and the resident file read directly",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            make_hot(site)?;
            resident::beside_direct(site.daemon, &site.data.large, 1, || sequential_pass_and_cpu(site))
        },
        check: compare_large,
    },
    Workload {
        name: "four-readers",
        about: "four readers of the whole file at once, fresh mount; bytes of all four",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: four_readers,
        check: compare_large,
    },
    Workload {
        name: "four-readers-again",
        about: "the same after a first pass, page cache of the mount dropped",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            reader::sequential(&site.root, &site.data.large)?;
            drop_large(site)?;
            four_readers(site)
        },
        check: compare_large,
    },
    Workload {
        name: "four-readers-resident",
        about: "the same as a third pass like that of seq-resident, and four readers of the resident file directly",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            make_hot(site)?;
            resident::beside_direct(site.daemon, &site.data.large, READERS, || four_readers(site))
        },
        check: compare_large,
    },
    Workload {
        name: "four-parts",
        about: "four readers at once, each a quarter of the file, fresh mount",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: four_parts,
        check: compare_large,
    },
    Workload {
        name: "four-parts-again",
        about: "the same after a first pass, page cache of the mount dropped",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            reader::sequential(&site.root, &site.data.large)?;
            drop_large(site)?;
            four_parts(site)
        },
        check: compare_large,
    },
    Workload {
        name: "rand-4k-fresh",
        about: "random 4 KiB reads, fresh mount",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| random(site, 4 << 10),
        check: compare_large,
    },
    Workload {
        name: "rand-4k-tcp",
        about: "the same from an engine over TCP",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "tcp",
        run: |site| random(site, 4 << 10),
        check: compare_large,
    },
    Workload {
        name: "rand-4k-local",
        about: "the same from the volume server's files on this host",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "local",
        run: |site| random(site, 4 << 10),
        check: compare_large,
    },
    Workload {
        name: "rand-4k-warm",
        about: "random 4 KiB reads after a first pass over the file, page cache of the mount dropped",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            reader::sequential(&site.root, &site.data.large)?;
            drop_large(site)?;
            random(site, 4 << 10)
        },
        check: compare_large,
    },
    Workload {
        name: "rand-4k-resident",
        about: "the same after two passes, page cache of the mount dropped after each, hot files settled",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            make_hot(site)?;
            random(site, 4 << 10)
        },
        check: compare_large,
    },
    Workload {
        name: "rand-4k-arena",
        about: "the same without passthrough: each read is answered by the daemon, from memory",
        memory: CacheSize::Plenty,
        options: &["--no-passthrough"],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            make_hot(site)?;
            random(site, 4 << 10)
        },
        check: compare_large,
    },
    Workload {
        name: "rand-128k-fresh",
        about: "random 128 KiB reads, fresh mount",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| random(site, 128 << 10),
        check: compare_large,
    },
    Workload {
        name: "stride-64k",
        about: "64 KiB of each MiB, as one column of a table, fresh mount",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| pieces(site, 64 << 10, (0..site.data.large.size).step_by(1 << 20)),
        check: compare_large,
    },
    Workload {
        name: "backward-128k",
        about: "the whole file backward in reads of 128 KiB, fresh mount",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            let reads = site.data.large.size / (128 << 10);
            pieces(site, 128 << 10, (0..reads).rev().map(|read| read * (128 << 10)))
        },
        check: compare_large,
    },
    Workload {
        name: "hot-part-64k",
        about: "random 64 KiB reads of a part that was read again and again, after the page cache has lost it",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: hot_part,
        check: compare_large,
    },
    Workload {
        name: "small-cold",
        about: "open, read and close every small file, in order, fresh mount",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| small(site, Order::Names),
        check: compare_small,
    },
    Workload {
        name: "small-again",
        about: "a second pass, shuffled, page cache of the mount dropped, hot files settled",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            small(site, Order::Names)?;
            drop_small(site)?;
            resident::settle(site.status.as_ref())?;
            small(site, Order::Shuffled)
        },
        check: compare_small,
    },
    Workload {
        name: "small-again-bound",
        about: "the same with the reader of the second pass bound to one CPU",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            small(site, Order::Names)?;
            drop_small(site)?;
            resident::settle(site.status.as_ref())?;
            bound(|| small(site, Order::Shuffled))
        },
        check: compare_small,
    },
    Workload {
        name: "small-warm",
        about: "a second pass, shuffled, page cache of the mount kept",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            small(site, Order::Names)?;
            small(site, Order::Shuffled)
        },
        check: compare_small,
    },
    Workload {
        name: "epoch-shuffled",
        about: "two passes, each shuffled anew, page cache dropped between, cache of a third of the files; the second pass",
        memory: CacheSize::Scarce,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| epochs(site, Order::Shuffled),
        check: compare_small,
    },
    Workload {
        name: "epoch-repeated",
        about: "the same with both passes in the same shuffled order",
        memory: CacheSize::Scarce,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| epochs(site, Order::ShuffledBefore),
        check: compare_small,
    },
    Workload {
        name: "walk",
        about: "list the small files' directories and stat every file, fresh mount",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: walk,
        check: compare_small,
    },
    Workload {
        name: "walk-again",
        about: "the same a second time",
        memory: CacheSize::Plenty,
        options: &[],
        files: Files::Basic,
        transport: "http",
        run: |site| {
            walk(site)?;
            walk(site)
        },
        check: compare_small,
    },
];

fn compare_large(site: &MountUnderTest) -> Result<()> {
    let large = &site.data.large;
    verify::compare(&site.root, &large.path, large.size, large.pattern)
}

fn compare_small(site: &MountUnderTest) -> Result<()> {
    compare_files(site, &site.data.small)
}

fn compare_files(site: &MountUnderTest, files: &[SmallFile]) -> Result<()> {
    files.iter().try_for_each(|file| verify::compare(&site.root, &file.path, file.size, file.pattern))
}

#[derive(Clone, Copy)]
enum Order {
    Names,
    Shuffled,
    /// Another order than that of `Shuffled`.
    ShuffledBefore,
}

/// Reads the large file twice and drops its pages each time; then gives the mount time to promote
/// it.
fn make_hot(site: &MountUnderTest) -> Result<()> {
    for _ in 0..2 {
        reader::sequential(&site.root, &site.data.large)?;
        drop_large(site)?;
    }
    resident::settle(site.status.as_ref())
}

/// The same as [`sequential_pass`], with the CPU time that the daemon took for it.
fn sequential_pass_and_cpu(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let before = cpu_seconds(site.daemon)?;
    let mut samples = sequential_pass(site)?;
    let cpu = cpu_seconds(site.daemon)? - before;
    let gigabytes = site.data.large.size as f64 / 1e9;
    samples.push(Sample { figure: "cpu", unit: Unit::CpuSecondsPerGigabyte, value: cpu / gigabytes });
    Ok(samples)
}

/// Reads the large file once in sequence.
fn sequential_pass(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let seconds = reader::sequential(&site.root, &site.data.large)?;
    Ok(vec![throughput(site.data.large.size as f64, seconds)])
}

fn latencies(seconds: &[f64]) -> Result<Vec<Sample>> {
    [("p50", 0.5), ("p99", 0.99)]
        .into_iter()
        .map(|(figure, fraction)| {
            let value = quantile(seconds, fraction).context("nothing was read")? * 1e6;
            Ok(Sample { figure, unit: Unit::Microseconds, value })
        })
        .collect()
}

fn four_readers(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let large = &site.data.large;
    let seconds = reader::together(&site.root.join(&large.path), large, READERS)?;
    Ok(vec![throughput((READERS * large.size) as f64, seconds)])
}

fn four_parts(site: &MountUnderTest) -> Result<Vec<Sample>> {
    Ok(vec![throughput(site.data.large.size as f64, reader::divided(&site.root, &site.data.large, READERS)?)])
}

/// Reads pieces of the large file; with the bytes a second of all of them.
fn pieces(site: &MountUnderTest, len: usize, offsets: impl Iterator<Item = u64>) -> Result<Vec<Sample>> {
    pieces_and_rate(len, &reader::each(&site.root, &site.data.large, len, offsets)?)
}

fn pieces_and_rate(len: usize, seconds: &[f64]) -> Result<Vec<Sample>> {
    let rate = throughput((len * seconds.len()) as f64, seconds.iter().sum());
    Ok([vec![rate], latencies(seconds)?].concat())
}

/// Makes a sixteenth of the large file hot in the page cache, which is too little to promote the
/// file, drops its pages, and reads pieces of it at random.
fn hot_part(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let large = &site.data.large;
    let part = LargeFile { size: large.size / HOT_DIVISOR, ..large.clone() };
    for _ in 0..HOT_PASSES {
        reader::sequential(&site.root, &part)?;
    }
    thread::sleep(HINT_TIME);
    drop_large(site)?;
    let len = 64 << 10;
    pieces_and_rate(len, &reader::random(&site.root, &part, len, site.reads, site.seed)?)
}

/// Does `work` on a thread that may run on one CPU only.
fn bound<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let bind_and_work = || {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu) == Ok(true));
        let mut cpu = CpuSet::new();
        cpu.set(last.context("there is no CPU")?)?;
        sched_setaffinity(Pid::from_raw(0), &cpu)?;
        work()
    };
    thread::scope(|scope| scope.spawn(bind_and_work).join())
        .map_err(|_| anyhow::anyhow!("the reader panicked"))?
}

fn random(site: &MountUnderTest, len: usize) -> Result<Vec<Sample>> {
    latencies(&reader::random(&site.root, &site.data.large, len, site.reads, site.seed)?)
}

fn small(site: &MountUnderTest, order: Order) -> Result<Vec<Sample>> {
    let mut files: Vec<&SmallFile> = site.data.small.iter().collect();
    match order {
        Order::Names => {}
        Order::Shuffled => files.shuffle(&mut StdRng::seed_from_u64(site.seed)),
        Order::ShuffledBefore => files.shuffle(&mut StdRng::seed_from_u64(!site.seed)),
    }
    let pass = reader::small(&site.root, files.into_iter())?;
    let rate =
        Sample { figure: "", unit: Unit::FilesPerSecond, value: pass.each.len() as f64 / pass.elapsed };
    Ok([vec![rate], latencies(&pass.each)?].concat())
}

/// A first epoch in one order and a second one in `order`, which is measured.
fn epochs(site: &MountUnderTest, order: Order) -> Result<Vec<Sample>> {
    small(site, Order::ShuffledBefore)?;
    drop_small(site)?;
    small(site, order)
}

fn walk(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let (seconds, files) = reader::walk(&site.root.join(DataSet::SMALL))?;
    let expected = site.data.small.len() as u64;
    anyhow::ensure!(files == expected, "the walk found {files} files, not {expected}");
    Ok(vec![Sample { figure: "", unit: Unit::FilesPerSecond, value: files as f64 / seconds }])
}

fn drop_large(site: &MountUnderTest) -> Result<()> {
    reader::drop_pages(&site.root, [site.data.large.path.as_str()].into_iter())
}

fn drop_small(site: &MountUnderTest) -> Result<()> {
    reader::drop_pages(&site.root, site.data.small.iter().map(|file| file.path.as_str()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bench::disk_directory::DiskDirectory;

    /// Every workload runs on any directory that holds the data set, mounted or not.
    #[test]
    fn workloads_need_nothing_but_a_directory() {
        let (directory, disk_home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = directory.path().to_owned();
        let data = DataSet::new(3 << 20, 5).with_medium();
        let write = |path: &str, size: u64, pattern: ::tests::Pattern| {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), pattern.bytes(0, size as usize)).unwrap();
        };
        write(&data.large.path, data.large.size, data.large.pattern);
        let others = data.small.iter().chain(&data.medium).chain(&data.chunks);
        others.for_each(|file| write(&file.path, file.size, file.pattern));
        let daemon = std::process::id() as i32;
        let site = MountUnderTest {
            root: root.clone(),
            daemon,
            status: None,
            data: Arc::new(data),
            volumes: Vec::new(),
            disk: Some(DiskDirectory::new(disk_home.path()).unwrap()),
            reads: 20,
            seed: 1,
        };
        for workload in ALL {
            let samples = (workload.run)(&site).unwrap();
            assert!(!samples.is_empty() && samples.iter().all(|s| s.value.is_finite()), "{}", workload.name);
        }
        ALL.iter().for_each(|workload| (workload.check)(&site).unwrap());

        // One wrong bit ends every measurement that could have met it.
        let file = &site.data.small[3];
        write(&file.path, file.size, ::tests::Pattern::new(99));
        assert!(compare_small(&site).unwrap_err().to_string().contains("WRONG BYTES"));
        assert!(small(&site, Order::Names).unwrap_err().to_string().contains("WRONG BYTES"));
    }
}
