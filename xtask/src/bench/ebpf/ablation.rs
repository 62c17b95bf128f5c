//! The same load with eBPF and without it.
//!
//! Applications read some files again and again from the page cache of the mount, while others
//! scan more than the daemon can cache. Without eBPF the daemon sees only the scan, and caches
//! what is never read again. Then the page cache drops the hot files, as under memory pressure,
//! and their readers come to the daemon.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use ::tests::{Mount, Pattern, reading};
use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::statistics::{Summary, quantile};
use crate::interrupt;
use crate::progress::digits;
use crate::stage::Stage;

const MIB: u64 = 1 << 20;
/// The directory of the filer that is mounted.
const ROOT: &str = "/ablation";
/// Memory of the daemon: for the hot files twice, for the scans not.
const CACHE_MIB: u64 = 128;
const HOT_FILES: u64 = 8;
const HOT_SIZE: u64 = 8 * MIB;
/// A scan reads one of them from front to back.
const SCAN_FILES: u64 = 8;
const SCAN_SIZE: u64 = 64 * MIB;
/// Passes over the hot files between two scans.
const PASSES_PER_SCAN: u64 = 2;
/// Reads after the page cache was dropped.
const READS: usize = 2000;
const READ_SIZE: usize = 64 << 10;
/// `le` of the bucket that a reaction has to fall into is the last below this; seconds.
const REACTION_GOAL_SECONDS: f64 = 0.010;

/// What came of one run.
struct LoadOutcome {
    /// Bytes that had to be fetched for the reads at the end.
    fetched: f64,
    /// Of these reads, microseconds.
    p50: f64,
    p99: f64,
    /// Files that the kernel reads by itself, before them.
    resident: f64,
    reactions: Vec<(f64, f64)>,
}

/// Loads the data, runs both sides in turn and prints what came of it.
pub(super) fn run(stage: &mut Stage, reps: usize) -> Result<()> {
    for (kind, count, size) in [("hot", HOT_FILES, HOT_SIZE), ("scan", SCAN_FILES, SCAN_SIZE)] {
        for number in 0..count {
            interrupt::check()?;
            let content = Pattern::new(number).reader(size);
            stage.cluster.filer().put_reader(&format!("{ROOT}/{kind}{number}"), content, "")?;
        }
    }
    let mut outcomes = [Vec::new(), Vec::new()];
    for repetition in 0..reps {
        let order = if repetition % 2 == 0 { [true, false] } else { [false, true] };
        for with in order {
            interrupt::check()?;
            let options: &[&str] = if with { &[] } else { &["--no-ebpf"] };
            let mount = stage.interceptor(None, ROOT, CACHE_MIB, "http", options)?;
            let outcome = measure(&mount, repetition as u64)?;
            mount.stop()?;
            eprintln!("{} eBPF: {outcome}", if with { "with" } else { "without" });
            outcomes[usize::from(!with)].push(outcome);
        }
    }
    println!(
        "\n{} MiB of hot files in the page cache, scans of {} MiB past them, a cache of {CACHE_MIB} MiB; then the page cache is dropped \
         and {READS} reads of {} KiB are made of the hot files; medians of {reps}:",
        HOT_FILES * HOT_SIZE / MIB,
        SCAN_FILES * SCAN_SIZE / MIB,
        READ_SIZE >> 10
    );
    for (name, outcomes) in ["with eBPF", "without"].iter().zip(&outcomes) {
        let of = |value: fn(&LoadOutcome) -> f64| -> String {
            let values: Vec<f64> = outcomes.iter().map(value).collect();
            Summary::of(&values).map_or("-".into(), |summary| digits(summary.median))
        };
        println!(
            "  {name:<12} fetched again {:>6} MiB, p50 {:>6} us, p99 {:>6} us, resident files before {}",
            of(|o| o.fetched / MIB as f64),
            of(|o| o.p50),
            of(|o| o.p99),
            of(|o| o.resident)
        );
    }
    let reactions = outcomes[0].iter().flat_map(|outcome| outcome.reactions.clone());
    print_reactions(&reactions.collect::<Vec<_>>());
    Ok(())
}

/// Runs the load through a fresh mount.
fn measure(mount: &Mount, seed: u64) -> Result<LoadOutcome> {
    let hot: Vec<PathBuf> = (0..HOT_FILES).map(|number| mount.path().join(format!("hot{number}"))).collect();
    let files = open(&hot)?;
    for scan in 0..SCAN_FILES {
        interrupt::check()?;
        for _ in 0..PASSES_PER_SCAN {
            files.iter().try_for_each(|file| pass(file, HOT_SIZE))?;
        }
        let path = mount.path().join(format!("scan{scan}"));
        pass(&File::open(&path)?, SCAN_SIZE)?;
        reading::forget(&path)?;
    }
    // A file is read in one way for as long as it is open.
    drop(files);
    let resident = mount.metric("interceptor_resident_files", &["state=\"ready\""])?;
    hot.iter().try_for_each(|path| reading::forget(path))?;
    let fetched = || mount.metric("interceptor_fetch_bytes_total", &[]);
    let before = fetched()?;
    let times = random(&open(&hot)?, seed)?;
    let microseconds = |part| quantile(&times, part).unwrap_or(f64::NAN) * 1e6;
    Ok(LoadOutcome {
        fetched: fetched()? - before,
        p50: microseconds(0.5),
        p99: microseconds(0.99),
        resident,
        reactions: reactions(mount)?,
    })
}

fn open(paths: &[PathBuf]) -> Result<Vec<File>> {
    let open = |path: &PathBuf| File::open(path).with_context(|| path.display().to_string());
    paths.iter().map(open).collect()
}

fn pass(file: &File, size: u64) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    for offset in (0..size).step_by(buffer.len()) {
        file.read_exact_at(&mut buffer, offset)?;
    }
    Ok(())
}

/// Seconds of each of many reads, of which all bytes are compared.
fn random(files: &[File], seed: u64) -> Result<Vec<f64>> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut buffer = vec![0; READ_SIZE];
    let mut times = Vec::with_capacity(READS);
    for _ in 0..READS {
        let number = dice.random_range(0..files.len());
        let offset = dice.random_range(0..HOT_SIZE / READ_SIZE as u64) * READ_SIZE as u64;
        let begun = Instant::now();
        files[number].read_exact_at(&mut buffer, offset)?;
        times.push(begun.elapsed().as_secs_f64());
        let expected = Pattern::new(number as u64).bytes(offset, READ_SIZE);
        anyhow::ensure!(buffer == expected, "wrong bytes in hot{number} at {offset}");
    }
    Ok(times)
}

/// The daemon's histogram of times from a read to the reaction: upper bounds in seconds, and
/// counts.
fn reactions(mount: &Mount) -> Result<Vec<(f64, f64)>> {
    let (_, text) = mount.status("/metrics")?;
    let bucket = |line: &str| {
        let rest = line.strip_prefix("interceptor_ebpf_reaction_seconds_bucket{")?;
        let (labels, count) = rest.split_once("} ")?;
        let bound = labels.split_once("le=\"")?.1.split('"').next()?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
        Some((bound, count.split_whitespace().next()?.parse().ok()?))
    };
    Ok(text.lines().filter_map(bucket).collect())
}

/// Prints the upper bounds of half and of 99 % of the times. A bound may occur in `buckets` more
/// than once.
fn print_reactions(buckets: &[(f64, f64)]) {
    let mut sums: Vec<(f64, f64)> = Vec::new();
    let mut sorted = buckets.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (bound, count) in sorted {
        match sums.last_mut() {
            Some((last, sum)) if *last == bound => *sum += count,
            _ => sums.push((bound, count)),
        }
    }
    let all = sums.last().map_or(0.0, |(_, count)| *count);
    let below =
        |part: f64| sums.iter().find(|(_, count)| *count >= all * part).map_or(f64::NAN, |(bound, _)| *bound);
    let soon = sums
        .iter()
        .filter(|(bound, _)| *bound <= REACTION_GOAL_SECONDS)
        .map(|(_, count)| *count)
        .fold(0.0, f64::max);
    println!(
        "from a read that turns something hot or moves a stream to the start of what follows: {all} times, half below {:.1} ms, 99 % below \
         {:.1} ms, {:.1} % in the buckets below {:.0} ms",
        below(0.5) * 1e3,
        below(0.99) * 1e3,
        100.0 * soon / all.max(1.0),
        REACTION_GOAL_SECONDS * 1e3
    );
}

impl fmt::Display for LoadOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fetched, p50, p99, resident, .. } = self;
        write!(
            f,
            "{:.0} MiB fetched again, p50 {p50:.0} us, p99 {p99:.0} us, {resident} resident",
            fetched / MIB as f64
        )
    }
}
