//! Figures of one mount between two samples of the kernel's counters.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use interceptor_ebpf::histogram::{BUCKETS, upper_bound};
use interceptor_ebpf::records::{Latency, Traffic};
use serde::Serialize;

use super::mounts::FuseMount;
use super::names::{self, DaemonNames};
use crate::cli::figures::{latency, percent, rate, size};
use crate::cli::miss_ratio_chart::MissRatioChart;
use crate::cli::untrusted::plain;
use crate::ebpf::{DeviceNumber, Observer, ReaderThread};
use crate::telemetry::MissRatioCurve;

/// `FUSE_READ` of `linux/fuse.h`.
const FUSE_READ: u32 = 15;
/// Files and readers that are shown.
const MAX_SHOWN: usize = 5;

/// What had been counted at one moment.
pub(super) struct KernelSample {
    at: Instant,
    traffic: Traffic,
    reads: Latency,
    readers: Vec<ReaderThread>,
}

impl KernelSample {
    pub(super) fn at(observer: &Observer, device: DeviceNumber) -> anyhow::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            traffic: observer.traffic(device)?,
            reads: observer.latency(device)?.remove(&FUSE_READ).unwrap_or(Latency::NONE),
            readers: observer.readers(device)?,
        })
    }
}

/// What went on in a mount.
#[derive(Debug, Serialize)]
pub(super) struct MountReport {
    mount_point: String,
    device: String,
    seconds: f64,
    /// Calls of applications.
    reads_per_second: f64,
    /// What they read, mappings left out.
    bytes_per_second: f64,
    /// What was mapped of files in the page cache.
    mapped_bytes_per_second: f64,
    /// What the daemon was asked for.
    requested_bytes_per_second: f64,
    /// Of the bytes read through the page cache, those that the daemon was not asked for; `null`
    /// without reads.
    page_cache_hit_ratio: Option<f64>,
    /// Upper bounds of what the daemon took for a read, exact to a factor of two.
    daemon_p50_seconds: Option<f64>,
    daemon_p99_seconds: Option<f64>,
    hottest: Vec<NamedHotFile>,
    readers: Vec<ReadingProcess>,
    /// What share of the reads a cache would miss, by its size, since the mount is observed.
    miss_ratio_curve: Option<MissRatioCurve>,
    lost_events: u64,
}

#[derive(Debug, Serialize)]
struct NamedHotFile {
    /// Its path, if it is among the files that a daemon of ours names, or if it is open somewhere
    /// and its daemon numbers inodes like nodes.
    path: Option<String>,
    node: u64,
    /// Bytes read of it, of which half are forgotten in a minute.
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct ReadingProcess {
    command: String,
    process: u32,
    cgroup: u64,
    bytes_per_second: f64,
}

/// What went on between two looks.
pub(super) fn between(
    observer: &Observer,
    mount: &FuseMount,
    before: &KernelSample,
    now: &KernelSample,
    daemon: Option<&mut DaemonNames>,
) -> anyhow::Result<MountReport> {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(1e-9);
    let since = |of: fn(&Traffic) -> u64| of(&now.traffic).saturating_sub(of(&before.traffic)) as f64;
    let calls = since(|t| t.cached_reads + t.direct_reads + t.passthrough_reads);
    let cached = since(|t| t.cached_bytes);
    let filled = since(|t| t.fill_bytes);
    let past_cache = since(|t| t.direct_bytes + t.passthrough_bytes);
    let direct = since(|t| t.direct_bytes);
    Ok(MountReport {
        mount_point: mount.path.display().to_string(),
        device: mount.device.to_string(),
        seconds,
        reads_per_second: calls / seconds,
        bytes_per_second: (cached + past_cache) / seconds,
        mapped_bytes_per_second: since(|t| t.map_bytes) / seconds,
        requested_bytes_per_second: (filled + direct) / seconds,
        // Readahead may ask for more than is read.
        page_cache_hit_ratio: (cached > 0.0).then(|| (1.0 - filled / cached).max(0.0)),
        daemon_p50_seconds: percentile(&before.reads, &now.reads, 0.50),
        daemon_p99_seconds: percentile(&before.reads, &now.reads, 0.99),
        hottest: hottest(observer, mount, daemon)?,
        readers: readers(before, now, seconds),
        miss_ratio_curve: observer.curve(mount.device)?,
        lost_events: now.traffic.lost_events,
    })
}

fn hottest(
    observer: &Observer,
    mount: &FuseMount,
    daemon: Option<&mut DaemonNames>,
) -> anyhow::Result<Vec<NamedHotFile>> {
    let hottest = observer.hottest(mount.device, MAX_SHOWN)?;
    let mut names = match daemon {
        Some(daemon) if !hottest.is_empty() => daemon.known().clone(),
        _ => HashMap::new(),
    };
    // A daemon of ours names only what it sees itself as read most, and without eBPF nothing.
    if hottest.iter().any(|(node, _)| !names.contains_key(node)) {
        for (node, path) in names::open_files(mount) {
            names.entry(node).or_insert(path);
        }
    }
    let named = hottest.into_iter().map(|(node, bytes)| NamedHotFile {
        path: names.get(&node).map(|path| path.display().to_string()),
        node,
        bytes,
    });
    Ok(named.collect())
}

/// The processes that read most, their threads together.
fn readers(before: &KernelSample, now: &KernelSample, seconds: f64) -> Vec<ReadingProcess> {
    let known: HashMap<u32, u64> =
        before.readers.iter().map(|reader| (reader.thread, reader.bytes)).collect();
    let mut by_process: HashMap<u32, (&ReaderThread, u64)> = HashMap::new();
    for reader in &now.readers {
        let bytes = reader.bytes.saturating_sub(known.get(&reader.thread).copied().unwrap_or(0));
        by_process.entry(reader.process).or_insert((reader, 0)).1 += bytes;
    }
    let mut most: Vec<_> = by_process.into_values().filter(|(_, bytes)| *bytes > 0).collect();
    most.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let reading = |(reader, bytes): (&ReaderThread, u64)| ReadingProcess {
        command: reader.command.clone(),
        process: reader.process,
        cgroup: reader.cgroup,
        bytes_per_second: bytes as f64 / seconds,
    };
    most.into_iter().take(MAX_SHOWN).map(reading).collect()
}

/// The upper bound of the bucket that the request of rank `part` lies in; for the last bucket the
/// lower one.
fn percentile(before: &Latency, now: &Latency, part: f64) -> Option<f64> {
    let counts: Vec<u64> =
        now.buckets.iter().zip(before.buckets).map(|(now, before)| now.saturating_sub(before)).collect();
    let rank = (counts.iter().sum::<u64>() as f64 * part).ceil().max(1.0) as u64;
    let mut seen = 0;
    let bucket = counts.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    let nanos = upper_bound(bucket).or(upper_bound(BUCKETS - 2))?;
    Some(Duration::from_nanos(nanos).as_secs_f64())
}

impl fmt::Display for MountReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", plain(&self.mount_point), self.device)?;
        writeln!(
            f,
            "  {:.0} reads/s, {}; page-cache hits {}; mapped {}",
            self.reads_per_second,
            rate(self.bytes_per_second),
            percent(self.page_cache_hit_ratio),
            rate(self.mapped_bytes_per_second)
        )?;
        write!(f, "  daemon asked for {}", rate(self.requested_bytes_per_second))?;
        match self.daemon_p50_seconds {
            None => writeln!(f),
            p50 => writeln!(f, ", p50 {}, p99 {}", latency(p50), latency(self.daemon_p99_seconds)),
        }?;
        for (number, file) in self.hottest.iter().enumerate() {
            let name = if number == 0 { "read lately" } else { "" };
            let path = file.path.as_deref().map_or_else(|| format!("node {}", file.node), plain);
            writeln!(f, "  {name:<11} {:>11}  {path}", size(file.bytes))?;
        }
        for (number, reader) in self.readers.iter().enumerate() {
            let name = if number == 0 { "readers" } else { "" };
            let (rate, command) = (rate(reader.bytes_per_second), plain(&reader.command));
            writeln!(f, "  {name:<11} {rate:>11}  {command} (process {})", reader.process)?;
        }
        if let Some(curve) = self.miss_ratio_curve.as_ref().filter(|curve| curve.sampled_reads > 0) {
            writeln!(f, "  hits to expect of a cache, by its size")?;
            write!(f, "{}", MissRatioChart(curve))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::MissRatioPoint;

    #[test]
    fn figures_are_for_people_and_names_harmless() {
        let points = vec![MissRatioPoint { bytes: 1 << 20, miss_ratio: 0.5 }];
        let report = MountReport {
            mount_point: "/mnt/data".into(),
            device: "0:57".into(),
            seconds: 2.0,
            reads_per_second: 412.0,
            bytes_per_second: 51.0 * 1048576.0,
            mapped_bytes_per_second: 0.0,
            requested_bytes_per_second: 1048576.0,
            page_cache_hit_ratio: Some(0.982),
            daemon_p50_seconds: Some(0.012),
            daemon_p99_seconds: Some(0.04),
            hottest: vec![
                NamedHotFile { path: Some("/mnt/data/a\u{1b}".into()), node: 2, bytes: 4 << 20 },
                NamedHotFile { path: None, node: 3, bytes: 1 << 20 },
            ],
            readers: vec![ReadingProcess {
                command: "py\u{1b}thon".into(),
                process: 7,
                cgroup: 1,
                bytes_per_second: 1048576.0,
            }],
            miss_ratio_curve: Some(MissRatioCurve { granule_bytes: 4096, sampled_reads: 9, points }),
            lost_events: 0,
        };
        let text = report.to_string();
        for part in [
            "/mnt/data (0:57)\n  412 reads/s, 51 MiB/s; page-cache hits 98.2 %; mapped 0 B/s\n",
            "  daemon asked for 1 MiB/s, p50 12 ms, p99 40 ms\n",
            "  read lately       4 MiB  /mnt/data/a\u{fffd}\n                    1 MiB  node 3\n",
            "  readers         1 MiB/s  py\u{fffd}thon (process 7)\n",
            "       1 MiB  ████████████████████                        50 %\n",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
    }

    #[test]
    fn percentiles_are_of_what_came_between() {
        let (mut before, mut now) = (Latency::NONE, Latency::NONE);
        assert_eq!(percentile(&before, &now, 0.5), None);
        before.buckets[10] = 1000;
        now.buckets[10] = 1000;
        now.buckets[0] = 99;
        now.buckets[2] = 1;
        assert_eq!(percentile(&before, &now, 0.5), Some(256e-9));
        assert_eq!(percentile(&before, &now, 1.0), Some(1024e-9));
    }
}
