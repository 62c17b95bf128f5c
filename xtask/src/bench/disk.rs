//! A set of files that is three times as large as the cache, on the disk behind it: what a mount
//! reads from there after a restart, and what that disk gives to a program that reads it directly.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ::tests::StatusPage;
use anyhow::{Context, Result, bail, ensure};

use super::data::LargeFile;
use super::disk_directory::DiskDirectory;
use super::mount_under_test::MountUnderTest;
use super::sample::{Sample, Unit, throughput};
use super::statistics::quantile;
use super::{passes, reader};
use crate::process::cpu_seconds;
use crate::{interrupt, upload};

/// Passes after which all of a set has to be on disk: the second use of a block brings it there, if
/// the disk has time for it then; a further open makes one file of its blocks, and another one
/// verifies that.
const MAX_FILLING_PASSES: usize = 30;
/// Files that random readers read.
const RANDOM_FILES: usize = 16;
/// How often to look whether the disk is written.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Longest wait for that.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Reads the files of the set until they are on disk, and writes copies of them beside.
pub(super) fn fill(site: &MountUnderTest) -> Result<()> {
    let disk = site.disk.as_ref().context("there is no disk")?;
    let copies = disk.copies();
    upload::each(&site.data.medium, |file| {
        let path = copies.join(&file.path);
        fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        let mut copy = File::create(path)?;
        std::io::copy(&mut file.pattern.reader(file.size), &mut copy)?;
        Ok(copy.sync_all()?)
    })?;
    for _ in 0..MAX_FILLING_PASSES {
        let before = passed_through(site)?;
        reader::whole(&site.root, &site.data.medium)?;
        let is_full = match (before, passed_through(site)?) {
            (Some(before), Some(after)) => after - before >= site.data.medium.len() as f64,
            _ => true,
        };
        drop_pages(site, disk)?;
        settle(site.status.as_ref())?;
        if is_full {
            return Ok(());
        }
    }
    bail!("the set is not on disk after {MAX_FILLING_PASSES} passes")
}

/// Opens that were answered with a file for the kernel to read, if the mount tells.
fn passed_through(site: &MountUnderTest) -> Result<Option<f64>> {
    let Some(status) = &site.status else { return Ok(None) };
    Ok(Some(status.metric("interceptor_opens_total", &["way=\"passthrough\""])?))
}

/// Two passes over the set, the first one right after the start of the mount, with no pages of it
/// in memory; the second with the daemon's CPU time and what it fetched; then 4 KiB at random.
pub(super) fn again(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let disk = site.disk.as_ref().context("there is no disk")?;
    let files = &site.data.medium;
    let bytes = files.iter().map(|file| file.size).sum::<u64>() as f64;
    let direct = || -> Result<f64> {
        drop_pages(site, disk)?;
        reader::whole(&disk.copies(), files)
    };
    let before = site.status.as_ref().map(|_| direct()).transpose()?;
    drop_pages(site, disk)?;
    let first = reader::whole(&site.root, files)?;
    drop_pages(site, disk)?;
    settle(site.status.as_ref())?;
    let (cpu, fetched) = (cpu_seconds(site.daemon)?, fetched_bytes(site)?);
    let second = reader::whole(&site.root, files)?;
    let cpu = cpu_seconds(site.daemon)? - cpu;
    let mut samples = vec![
        Sample { figure: "first", ..throughput(bytes, first) },
        throughput(bytes, second),
        Sample { figure: "cpu", unit: Unit::CpuSecondsPerGigabyte, value: cpu / bytes * 1e9 },
    ];
    let after = fetched_bytes(site)?;
    drop_pages(site, disk)?;
    samples.extend(random(site, &site.root, ["p50", "p99"])?);
    if let (Some(before), Some(after)) = (fetched, after) {
        samples.push(Sample { figure: "fetched", unit: Unit::Megabytes, value: (after - before) / 1e6 });
    }
    if let Some(before) = before {
        let seconds = before + direct()?;
        samples.push(Sample { figure: "directly", ..throughput(2.0 * bytes, seconds) });
        drop_pages(site, disk)?;
        samples.extend(random(site, &disk.copies(), ["directly p50", "directly p99"])?);
    }
    Ok(samples)
}

/// Latencies of random 4 KiB reads of some files below `root`.
fn random(site: &MountUnderTest, root: &Path, figures: [&'static str; 2]) -> Result<Vec<Sample>> {
    let mut seconds = Vec::new();
    for file in site.data.medium.iter().take(RANDOM_FILES) {
        let file = LargeFile { path: file.path.clone(), size: file.size, pattern: file.pattern };
        seconds.extend(reader::random(root, &file, 4 << 10, site.reads / RANDOM_FILES + 1, site.seed)?);
    }
    let [p50, p99] = [0.5, 0.99].map(|fraction| quantile(&seconds, fraction).unwrap_or_default() * 1e6);
    let sample = |(figure, value)| Sample { figure, unit: Unit::Microseconds, value };
    Ok(figures.into_iter().zip([p50, p99]).map(sample).collect())
}

/// What the mount has read from the cluster: all that it has fetched, but for the disk's part.
fn fetched_bytes(site: &MountUnderTest) -> Result<Option<f64>> {
    let Some(status) = &site.status else { return Ok(None) };
    let from_disk = status.metric("interceptor_fetch_bytes_total", &["source=\"disk\""])?;
    Ok(passes::fetched_bytes(site)?.map(|all| all - from_disk))
}

/// Waits until the daemon has written to the disk what it has to write. Returns at once without a
/// status page.
fn settle(status: Option<&StatusPage>) -> Result<()> {
    let Some(status) = status else { return Ok(()) };
    let started = Instant::now();
    while status.metric("interceptor_disk_cache_bytes", &["state=\"queued\""])? > 0.0 {
        ensure!(started.elapsed() < SETTLE_TIMEOUT, "the disk cache does not settle");
        interrupt::check()?;
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Drops the pages of the files of the mount, of its disk cache and of the copies.
fn drop_pages(site: &MountUnderTest, disk: &DiskDirectory) -> Result<()> {
    reader::drop_pages(&site.root, site.data.medium.iter().map(|file| file.path.as_str()))?;
    reader::drop_pages_below(disk.path())
}
