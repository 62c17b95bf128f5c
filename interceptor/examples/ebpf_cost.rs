//! Measures the time that the BPF programs add to a read of 4 KiB that the page cache answers.
//! `cargo xtask bench ebpf` runs it.
//!
//! `ebpf_cost FILE`, with a file of at least 64 MiB on a FUSE mount, as root. The cases take turns:
//! no program; a program that does nothing; ours without a watched mount; ours watching this mount;
//! the same with samples for a miss-ratio curve; the same with the warnings of the programs, which
//! are off before. Reads come in batches of half a millisecond, and
//! the fastest batches of each case are compared, because other load only adds time. The programs'
//! own time is measured by the kernel (`bpf_stats`), which reads the clock twice for each run.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{Context, ensure};
use aya::sys::{Stats, enable_stats};
use interceptor::ebpf::{DeviceNumber, NoopProgram, Observer, ObserverSettings};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tracing::level_filters::LevelFilter;

const PAGE: u64 = 4096;
const PAGES: u64 = 16 << 10;
const BATCH: u32 = 500;
const BATCHES: usize = 100;
const ROUNDS: usize = 11;

/// The programs on the path of the reads.
#[derive(Clone, Copy)]
enum Case {
    Nothing,
    Idle,
    Unwatched,
    Watched,
    Sampled,
    Logging,
}

const CASES: [(Case, &str); 6] = [
    (Case::Nothing, "no program"),
    (Case::Idle, "a program that does nothing"),
    (Case::Unwatched, "not watched"),
    (Case::Watched, "watched, without a miss-ratio curve"),
    (Case::Sampled, "watched"),
    (Case::Logging, "watched, with warnings (aya-log)"),
];

/// The attached programs.
enum Attached {
    None,
    Idle { _noop: NoopProgram },
    Observer { _observer: Box<Observer> },
}

impl Case {
    fn attach(self, device: DeviceNumber) -> anyhow::Result<Attached> {
        let sampled = matches!(self, Self::Sampled | Self::Logging).then_some(PAGE);
        let log_level = if matches!(self, Self::Logging) { LevelFilter::WARN } else { LevelFilter::OFF };
        match self {
            Self::Nothing => Ok(Attached::None),
            Self::Idle => Ok(Attached::Idle { _noop: NoopProgram::start()? }),
            Self::Unwatched | Self::Watched | Self::Sampled | Self::Logging => {
                let settings = ObserverSettings { sampled, log_level, ..ObserverSettings::default() };
                let (observer, _events) = Observer::start(&settings)?;
                if !matches!(self, Self::Unwatched) {
                    observer.watch(device)?;
                }
                Ok(Attached::Observer { _observer: Box::new(observer) })
            }
        }
    }
}

/// Reads in a scattered order.
struct Reader {
    file: File,
    state: u64,
}

impl Reader {
    /// Nanoseconds for each read of the fastest batch of many.
    fn fastest(&mut self) -> anyhow::Result<f64> {
        let mut page = [0; PAGE as usize];
        let mut best = f64::INFINITY;
        for _ in 0..BATCHES {
            let begun = Instant::now();
            for _ in 0..BATCH {
                self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                self.file.read_exact_at(&mut page, (self.state >> 33) % PAGES * PAGE)?;
                black_box(&page);
            }
            best = best.min(begun.elapsed().as_nanos() as f64 / f64::from(BATCH));
        }
        Ok(best)
    }
}

/// Of the program of this process that ran most: how often, and its mean time in nanoseconds.
fn busiest() -> anyhow::Result<(u64, f64)> {
    let mut most = (0, 0.0);
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse::<u64>().ok())
        };
        if let (Some(runs), Some(nanos)) = (field("run_cnt"), field("run_time_ns")) {
            most = if runs > most.0 { (runs, nanos as f64 / runs as f64) } else { most };
        }
    }
    Ok(most)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).context("which file?")?;
    let file = File::open(&path)?;
    ensure!(file.metadata()?.len() >= PAGES * PAGE, "the file is too small");
    std::io::copy(&mut &file, &mut std::io::sink())?;
    let device = DeviceNumber::of(path.as_ref())?;
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;

    let mut reader = Reader { file, state: 1 };
    let mut found = CASES.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (times, (case, _)) in found.iter_mut().zip(CASES) {
            let _attached = case.attach(device)?;
            times.push(reader.fastest()?);
        }
    }
    println!("cached reads of 4 KiB at random in {} MiB, {ROUNDS} rounds:", (PAGES * PAGE) >> 20);
    let base: Vec<f64> = found[0].clone();
    for (times, (_, name)) in found.iter_mut().zip(CASES) {
        let mut more: Vec<f64> = times.iter().zip(&base).map(|(time, base)| time - base).collect();
        let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
        let least = fastest - base.iter().copied().fold(f64::INFINITY, f64::min);
        println!(
            "  {name:<38} {fastest:6.0} ns, {least:+5.0} ns; median of the rounds {:+5.0} ns",
            median(&mut more)
        );
    }
    let [.., without, with] = &found;
    let mut more: Vec<f64> = with.iter().zip(without).map(|(with, without)| with - without).collect();
    println!("  warnings on, compared with off in the same round: median {:+.0} ns", median(&mut more));
    let _stats = enable_stats(Stats::RunTime)?;
    for (case, name) in &CASES[1..] {
        let _attached = case.attach(device)?;
        reader.fastest()?;
        let (runs, nanos) = busiest()?;
        println!("  {name:<38} {nanos:6.0} ns in the program, by the kernel's clock, {runs} runs");
    }
    Ok(())
}
