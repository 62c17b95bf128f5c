//! A sequential pass over a large uncached file, in turn with eBPF and without it.
//!
//! The programs are loaded before the pass begins, so that loading costs are not measured.

use std::time::Duration;

use ::tests::{Pattern, eventually};
use anyhow::Result;

use super::super::data::LargeFile;
use super::super::reader;
use super::super::statistics::{Summary, paired};
use crate::interrupt;
use crate::stage::{CACHE_MIB, Stage};

/// The directory of the filer that is mounted.
const ROOT: &str = "/cold";

/// How long programs may take to load.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// Loads the data, runs both sides in turn, each on fresh mounts, and prints what came of it.
pub(super) fn run(stage: &mut Stage, reps: usize, size: u64) -> Result<()> {
    let file = LargeFile { path: "file".into(), size, pattern: Pattern::new(99) };
    stage.cluster.filer().put_reader(&format!("{ROOT}/{}", file.path), file.pattern.reader(size), "")?;
    let mut rates = [Vec::new(), Vec::new()];
    // The first pass warms the page cache below the volume server, and is not counted.
    pass(stage, &file, true)?;
    for repetition in 0..reps {
        let order = if repetition % 2 == 0 { [true, false] } else { [false, true] };
        for with in order {
            rates[usize::from(!with)].push(pass(stage, &file, with)?);
        }
    }
    let [with, without] = &rates;
    let ratios: Vec<f64> = with.iter().zip(without).map(|(with, without)| with / without).collect();
    let median = |values: &[f64]| Summary::of(values).map_or(f64::NAN, |summary| summary.median);
    println!(
        "\ncold sequential pass over {} MiB: {:.0} MB/s with eBPF, {:.0} MB/s without; {}",
        size >> 20,
        median(with) / 1e6,
        median(without) / 1e6,
        paired(&ratios),
    );
    Ok(())
}

/// Bytes a second through a fresh mount.
fn pass(stage: &mut Stage, file: &LargeFile, with: bool) -> Result<f64> {
    interrupt::check()?;
    let options: &[&str] = if with { &[] } else { &["--no-ebpf"] };
    let mount = stage.interceptor(None, ROOT, CACHE_MIB, "http", options)?;
    if with {
        let watched = || mount.metric("interceptor_kernel_reads_total", &["cached"]).ok();
        eventually("reads being watched by eBPF", ATTACH_TIMEOUT, watched)?;
    }
    let seconds = reader::sequential(mount.path(), file)?;
    mount.stop()?;
    Ok(file.size as f64 / seconds)
}
