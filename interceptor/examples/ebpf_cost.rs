//! Measures what the eBPF programs add to a read of 4 KiB that the page cache answers: none loaded, loaded for other mounts, watching this one.
//!
//! `cargo run --release --example ebpf_cost FILE`, with a file of at least 16 MiB on a FUSE mount, as root. The three take turns; the fastest of
//! each is compared, because whatever else the machine does only adds. The programs' own time is what the kernel measures (`bpf_stats`).

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{Context, ensure};
use aya::sys::{Stats, enable_stats};
use interceptor::ebpf::{Device, Observer, Settings};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const PAGE: u64 = 4096;
const PAGES: u64 = 4096;
const READS: u64 = 200_000;
const ROUNDS: usize = 10;

/// Nanoseconds for each of many reads in a scattered order.
fn read(file: &File, mut state: u64) -> anyhow::Result<f64> {
    let mut page = [0; PAGE as usize];
    let begun = Instant::now();
    for _ in 0..READS {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        file.read_exact_at(&mut page, (state >> 33) % PAGES * PAGE)?;
        black_box(&page);
    }
    Ok(begun.elapsed().as_nanos() as f64 / READS as f64)
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

fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).context("which file?")?;
    let file = File::open(&path)?;
    ensure!(file.metadata()?.len() >= PAGES * PAGE, "the file is too small");
    let mut all = vec![0; (PAGES * PAGE) as usize];
    file.read_exact_at(&mut all, 0)?;
    let device = Device::of(path.as_ref())?;
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;

    let mut best = [f64::INFINITY; 3];
    for round in 0..ROUNDS as u64 {
        best[0] = best[0].min(read(&file, round)?);
        let (observer, _events) = Observer::start(&Settings::default())?;
        best[1] = best[1].min(read(&file, round)?);
        observer.watch(device)?;
        best[2] = best[2].min(read(&file, round)?);
    }
    println!("{READS} cached reads of 4 KiB, best of {ROUNDS}: {:.0} ns without programs", best[0]);
    println!("loaded, not watched: {:+.0} ns; watched: {:+.0} ns", best[1] - best[0], best[2] - best[0]);

    let _stats = enable_stats(Stats::RunTime)?;
    for watched in [false, true] {
        let (observer, _events) = Observer::start(&Settings::default())?;
        if watched {
            observer.watch(device)?;
        }
        read(&file, 1)?;
        let (runs, nanos) = busiest()?;
        let state = if watched { "watched" } else { "not watched" };
        println!("{state}: the busiest program ran {runs} times, {nanos:.0} ns each by the kernel's clock");
    }
    Ok(())
}
