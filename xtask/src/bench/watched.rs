//! `cargo xtask bench watched`: what an open dashboard and a scraper cost the reads of a mount.
//!
//! One reader goes round a file without a pause. In every other slice of time a dashboard is open
//! (its stream of events is read) and the metrics are scraped once a second. Slices with and
//! without watchers alternate in both orders. Each is compared with its neighbour, because the
//! machine's speed changes more from minute to minute than watchers could change it. The interval
//! says how well the median is known.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ::tests::{Mount, Pattern, StatusPage};
use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;

use super::BenchOptions;
use super::buffer::Buffer;
use super::statistics::{Summary, paired};
use super::verify::{compare, probe};
use crate::process::cpu_seconds;
use crate::stage::Stage;
use crate::{cargo, interrupt, setup};

/// Its name among the workloads.
pub(super) const NAME: &str = "watched";
/// What the list says of it.
pub(super) const ABOUT: &str =
    "reads with a dashboard open and metrics scraped every second, against reads without";

/// The directory of the filer that is mounted.
const ROOT: &str = "/watched";
const SIZE: u64 = 256 << 20;
const BLOCK: usize = 1 << 20;
/// Memory of the daemon, MiB: more than the file takes.
const CACHE_MIB: u64 = 1024;
/// Reading time between two changes of watchers. Short, so that neighbouring slices meet the same
/// machine load.
const SLICE_DURATION: Duration = Duration::from_millis(1000);
/// Pairs of slices in one repetition.
const PAIRS_PER_REPETITION: usize = 20;
/// Between two scrapes.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);

/// Where the reads are answered, and the flags of `open` that bring them there.
const READ_PATHS: [(&str, OFlag); 2] =
    [("from the page cache", OFlag::empty()), ("from the arena", OFlag::O_DIRECT)];

/// Mounts, measures and prints.
pub(super) fn run(options: &BenchOptions) -> Result<()> {
    setup::ensure()?;
    cargo::build_interceptor()?;
    interrupt::check()?;
    let (reps, pairs) =
        if options.quick { (1, 1) } else { (options.reps.unwrap_or(5).max(1), PAIRS_PER_REPETITION) };
    let mut stage = Stage::open("bench")?;
    let measured = measure(&mut stage, reps, pairs);
    let closed = stage.close();
    measured.and(closed)
}

fn measure(stage: &mut Stage, reps: usize, pairs: usize) -> Result<()> {
    let pattern = Pattern::new(1);
    stage.cluster.filer().put_reader(&format!("{ROOT}/file"), pattern.reader(SIZE), "")?;
    let mut found: [Vec<SlicePair>; READ_PATHS.len()] = [Vec::new(), Vec::new()];
    for repetition in 0..reps {
        let mount = stage.interceptor(None, ROOT, CACHE_MIB, "http", &["--no-passthrough"])?;
        // Fills both the page cache and the arena, and is the comparison of all bytes.
        compare(mount.path(), "file", SIZE, pattern)?;
        for ((way, flags), found) in READ_PATHS.iter().zip(&mut found) {
            let reader = RoundReader::open(&mount.path().join("file"), *flags, pattern)?;
            reader.rounds(SLICE_DURATION)?;
            for number in 0..pairs {
                interrupt::check()?;
                let pair = SlicePair::measure(&mount, &reader, number % 2 == 0)?;
                eprintln!("{way}, repetition {}: {:.4}", repetition + 1, pair.ratio());
                found.push(pair);
            }
        }
        mount.stop()?;
    }
    println!(
        "\nReads of 1 MiB by one reader, with a dashboard open and metrics scraped every second, against none of that:"
    );
    for ((way, _), pairs) in READ_PATHS.iter().zip(&found) {
        print_pairs(way, pairs);
    }
    Ok(())
}

/// What a slice of time gave.
struct SliceRates {
    /// Bytes a second.
    rate: f64,
    /// CPU seconds of the daemon per second.
    cpu: f64,
}

/// Two neighbouring slices.
struct SlicePair {
    watched: SliceRates,
    alone: SliceRates,
}

impl SlicePair {
    fn measure(mount: &Mount, reader: &RoundReader, watched_first: bool) -> Result<Self> {
        let slice = || -> Result<SliceRates> {
            let daemon = mount.pid().cast_signed();
            let (cpu, begun) = (cpu_seconds(daemon)?, Instant::now());
            let bytes = reader.rounds(SLICE_DURATION)?;
            let elapsed = begun.elapsed().as_secs_f64();
            Ok(SliceRates { rate: bytes as f64 / elapsed, cpu: (cpu_seconds(daemon)? - cpu) / elapsed })
        };
        let watched = || -> Result<SliceRates> {
            let watchers = Watchers::start(&mount.status_page()?)?;
            let slice = slice()?;
            watchers.stop()?;
            Ok(slice)
        };
        if watched_first {
            Ok(Self { watched: watched()?, alone: slice()? })
        } else {
            let alone = slice()?;
            Ok(Self { watched: watched()?, alone })
        }
    }

    fn ratio(&self) -> f64 {
        self.watched.rate / self.alone.rate
    }
}

fn print_pairs(way: &str, pairs: &[SlicePair]) {
    let of = |value: fn(&SlicePair) -> f64| -> Vec<f64> { pairs.iter().map(value).collect() };
    let median = |values: &[f64]| Summary::of(values).map_or(f64::NAN, |summary| summary.median);
    println!(
        "  {way:<20} {:.0} MB/s watched, {:.0} MB/s alone; {}; the daemon's CPU {:.1} % and {:.1} %",
        median(&of(|pair| pair.watched.rate)) / 1e6,
        median(&of(|pair| pair.alone.rate)) / 1e6,
        paired(&of(SlicePair::ratio)),
        median(&of(|pair| pair.watched.cpu)) * 100.0,
        median(&of(|pair| pair.alone.cpu)) * 100.0,
    );
}

/// Reads a file round and round.
struct RoundReader {
    file: File,
    pattern: Pattern,
}

impl RoundReader {
    fn open(path: &Path, flags: OFlag, pattern: Pattern) -> Result<Self> {
        let file = File::options().read(true).custom_flags(flags.bits()).open(path);
        Ok(Self { file: file.with_context(|| format!("cannot open {}", path.display()))?, pattern })
    }

    /// Reads whole rounds until at least `time` has passed; how many bytes that were.
    fn rounds(&self, time: Duration) -> Result<u64> {
        let mut buffer = Buffer::new(BLOCK);
        let begun = Instant::now();
        let mut bytes = 0;
        while begun.elapsed() < time {
            for offset in (0..SIZE).step_by(BLOCK) {
                self.file.read_exact_at(&mut buffer, offset).with_context(|| format!("read at {offset}"))?;
                probe(self.pattern, "file", offset, &buffer)?;
            }
            bytes += SIZE;
        }
        Ok(bytes)
    }
}

/// An open dashboard and a monitoring system.
struct Watchers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Watchers {
    fn start(page: &StatusPage) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut events = page.follow("/api/v1/live?span=5m")?;
        let ended = Arc::clone(&stop);
        // Something comes every second, so it ends soon.
        let dashboard = thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while !ended.load(Relaxed) {
                ensure!(events.read(&mut buffer)? > 0, "the dashboard's events have ended");
            }
            Ok(())
        });
        let (page, ended) = (page.clone(), Arc::clone(&stop));
        let scraper = thread::spawn(move || {
            while !ended.load(Relaxed) {
                let (status, _) = page.get("/metrics")?;
                ensure!(status == 200, "/metrics: {status}");
                thread::park_timeout(SCRAPE_INTERVAL);
            }
            Ok(())
        });
        Ok(Self { stop, threads: vec![dashboard, scraper] })
    }

    /// Ends both, and fails if one of them had failed.
    fn stop(self) -> Result<()> {
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.thread().unpark();
            thread.join().map_err(|_| anyhow::anyhow!("a watcher panicked"))??;
        }
        Ok(())
    }
}
