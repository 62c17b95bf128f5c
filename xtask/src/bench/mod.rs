//! `cargo xtask bench`: the same reads through `interceptor mount` and `weed mount`, or through two
//! builds of `interceptor`, in turn, in one run.
//!
//! One cluster holds the data set. For each workload the two mounts alternate (A B B A …), so that
//! a change in the machine's speed affects both alike; each repetition has a fresh mount with
//! empty caches. The volume server's own page cache is warm in every row. Medians, extremes and
//! ratios go to a table, every repetition to the JSON file.

mod attach;
mod buffer;
mod builds;
mod cold_disk;
mod data;
mod disk;
mod disk_directory;
mod ebpf;
mod hit_ratio;
mod mount_under_test;
mod passes;
mod prefetch;
mod reader;
mod report;
mod resident;
mod sample;
mod statistics;
mod verify;
mod watched;
mod workloads;

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use ::tests::Mount;
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use daemon::size::ByteSize;

use self::data::DataSet;
use self::disk_directory::DiskDirectory;
use self::mount_under_test::MountUnderTest;
use self::prefetch::{PrefetchRow, Prefetched};
use self::report::{HostInfo, Report, RunSettings};
use self::sample::Sample;
use self::workloads::{ALL, CacheSize, Files, Workload};
use crate::progress::Progress;
use crate::stage::Stage;
use crate::{cargo, interrupt, setup};

/// How long one repetition may take.
const REPETITION_TIMEOUT: Duration = Duration::from_secs(600);

/// By when the host of a virtual machine has taken back the memory that programs have freed, if it
/// does that.
const MEMORY_LOST_AFTER: Duration = Duration::from_secs(12);
/// How often a mount is asked whether its memory is there.
const MEMORY_POLL_INTERVAL: Duration = Duration::from_millis(20);

const NOTES: &[&str] = &[
    "Values are the median (min-max) of the repetitions, each on a fresh mount. \"better\" is the ratio of the medians, \"paired\" the median",
    "of the ratios of neighbouring repetitions; above 1, interceptor is faster or needs less.",
    "The page cache beneath the volume server is warm in every row but cold-disk. \"Page cache of the mount dropped\" means the pages of the mount's own",
    "files (POSIX_FADV_DONTNEED), nothing else. Both mounts may cache 2 GiB, or a third of the small files in \"epoch\" rows. Cluster, mount and readers share the CPUs; nothing is pinned; their buffers begin at a page.",
    "Where fresh memory is slow, interceptor touches its cache in the background, and is measured when it has (not so in seq-cold-no-prefault).",
    "The kernel's free memory has been in use right before each repetition, but not so in seq-cold-fresh and seq-cold-no-prefault.",
    "Fetched ahead: all repetitions, with the passes that prepare them; waste is the part that nobody had read when the repetition ended.",
    "One word of each page that is read is checked while the clock runs; in the first repetition all that is read is compared, untimed.",
];

/// What the verb takes.
#[derive(clap::Args)]
pub(crate) struct BenchOptions {
    /// Run only these workloads
    name: Vec<String>,
    /// List the workloads and end
    #[arg(long)]
    list: bool,
    /// Write every repetition to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Repetitions of each workload on each mount [default: 5, quick: 2]
    #[arg(long)]
    reps: Option<usize>,
    /// Size of the large file, like 512MiB or 1GiB [default: 1GiB, quick: 128MiB]
    #[arg(long, value_parser = |text: &str| text.parse().map(|ByteSize(bytes)| bytes))]
    size: Option<u64>,
    /// Number of small files [default: 3000, quick: 300]
    #[arg(long)]
    files: Option<usize>,
    /// Reads of a workload that reads at random [default: 2000, quick: 300]
    #[arg(long)]
    reads: Option<usize>,
    /// A small version, to see that it works
    #[arg(long)]
    quick: bool,
    /// For hit-ratio: a recorded load, one block id a line, as text or gzip
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// For hit-ratio: sizes of the cache, in per cent of the distinct blocks [default:
    /// 1%,5%,10%,20%,40%]
    #[arg(long, value_name = "PERCENT[,…]", requires = "trace")]
    sizes: Option<String>,
    /// Measure only one of the mounts, for profiling
    #[arg(long)]
    only: Option<MeasuredMount>,
    /// Compare with this build of interceptor, such as an older one, instead of weed mount
    #[arg(long, value_name = "PROGRAM", conflicts_with = "only")]
    against: Option<PathBuf>,
}

/// Which mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MeasuredMount {
    Ours,
    /// Or what is measured in its place.
    Weed,
}

/// A benchmark that has mounts of its own.
type BenchmarkRun = fn(&BenchOptions) -> Result<()>;

/// The verb.
pub(crate) fn command(options: &BenchOptions) -> Result<()> {
    if options.list {
        for workload in ALL {
            println!("{:<20}{}", workload.name, workload.about);
        }
        println!("{:<20}{}", attach::NAME, attach::ABOUT);
        println!("{:<20}{}", ebpf::NAME, ebpf::ABOUT);
        println!("{:<20}{}", watched::NAME, watched::ABOUT);
        println!("{:<20}{}", builds::NAME, builds::ABOUT);
        println!("{:<20}{}", hit_ratio::NAME, hit_ratio::ABOUT);
        return Ok(());
    }
    if hit_ratio::is_meant(options)? {
        return hit_ratio::run(options);
    }
    if is_alone(options, builds::NAME)? {
        return builds::run(options);
    }
    let alone: [(&str, BenchmarkRun); 3] =
        [(attach::NAME, attach::run), (ebpf::NAME, ebpf::run), (watched::NAME, watched::run)];
    for (name, run) in alone {
        if is_alone(options, name)? {
            ensure!(options.against.is_none(), "{name} is not measured against another build");
            return run(options);
        }
    }
    let chosen = choose(&options.name)?;
    let (reps, size, files, reads) =
        if options.quick { (2, 128 << 20, 300, 300) } else { (5, 1 << 30, 3000, 2000) };
    let reps = options.reps.unwrap_or(reps).max(1);
    let reads = options.reads.unwrap_or(reads).max(1);
    let data = DataSet::new(options.size.unwrap_or(size).max(1 << 20), options.files.unwrap_or(files).max(1));
    let reads_medium = chosen.iter().any(|workload| workload.files == Files::Medium);
    let data = Arc::new(if reads_medium { data.with_medium() } else { data });
    let absolute = |path: &PathBuf| path.canonicalize().with_context(|| path.display().to_string());
    let against = options.against.as_ref().map(absolute).transpose()?;
    let prepared = setup::ensure()?;
    let program = cargo::build_interceptor()?;
    interrupt::check()?;

    let mut report = Report {
        host: host(&program, &prepared.weed, against.as_deref())?,
        setting: RunSettings {
            repetitions: reps,
            large_file_bytes: data.large.size,
            small_files: data.small.len(),
            random_reads: reads,
            notes: NOTES.to_vec(),
        },
        rows: Vec::new(),
        prefetch: Vec::new(),
    };
    let mut bench = Bench::prepare(Arc::clone(&data), reads, against)?;
    let measured = chosen.iter().try_for_each(|workload| {
        let mut prefetched = Vec::new();
        let [ours, weed] = bench.alternate(workload, reps, options.only, &mut prefetched)?;
        report.prefetch.push(PrefetchRow::new(workload.name, &prefetched));
        report.rows.extend(report::rows(workload.name, &ours, &weed));
        anyhow::Ok(())
    });
    clear_status_line();
    // What was measured before a failure is still worth having.
    if !report.rows.is_empty() {
        print!("{}", report.text());
        if let Some(path) = &options.json {
            let json = serde_json::to_vec_pretty(&report)?;
            fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let closed = bench.stage.close();
    measured.and(closed)
}

/// The cluster with the data set.
struct Bench {
    stage: Stage,
    data: Arc<DataSet>,
    reads: usize,
    /// A build of interceptor that is measured in place of `weed mount`.
    against: Option<PathBuf>,
}

impl Bench {
    fn prepare(data: Arc<DataSet>, reads: usize, against: Option<PathBuf>) -> Result<Self> {
        let stage = Stage::open("bench")?;
        let progress = Progress::bytes("writing the data set", data.bytes());
        data.write(&stage.cluster.filer(), |bytes| progress.add(bytes))?;
        progress.finish();
        stage.cluster.volume_servers().iter().try_for_each(|server| data::warm(&server.directory()))?;
        Ok(Self { stage, data, reads, against })
    }

    /// Repeats a workload on both mounts; returns the samples of ours and those of `weed mount`.
    /// What ours prefetched goes to `prefetched`.
    fn alternate(
        &mut self,
        workload: &Workload,
        reps: usize,
        only: Option<MeasuredMount>,
        prefetched: &mut Vec<Prefetched>,
    ) -> Result<[Vec<Vec<Sample>>; 2]> {
        let mut results = [Vec::new(), Vec::new()];
        for repetition in 0..reps {
            let order = if repetition % 2 == 0 {
                [MeasuredMount::Ours, MeasuredMount::Weed]
            } else {
                [MeasuredMount::Weed, MeasuredMount::Ours]
            };
            for side in order.into_iter().filter(|side| only.is_none_or(|only| only == *side)) {
                let (samples, ahead) = self
                    .measure(workload, side, repetition)
                    .with_context(|| format!("{} on {}", workload.name, self.name(side)))?;
                prefetched.extend(ahead);
                let shown = samples.iter().map(|s| format!("{:.1} {}", s.value, s.unit.label()));
                let figures = shown.collect::<Vec<_>>().join(", ");
                status_line(&format!(
                    "{} {}/{reps} {}: {figures}",
                    workload.name,
                    repetition + 1,
                    self.name(side)
                ));
                results[side as usize].push(samples);
            }
        }
        Ok(results)
    }

    fn name(&self, side: MeasuredMount) -> &'static str {
        match side {
            MeasuredMount::Ours => "interceptor",
            MeasuredMount::Weed if self.against.is_some() => report::OTHER_BUILD,
            MeasuredMount::Weed => report::WEED_MOUNT,
        }
    }

    fn mount(
        &mut self,
        workload: &Workload,
        side: MeasuredMount,
        disk: Option<&DiskDirectory>,
    ) -> Result<Mount> {
        let cache_mib = workload.memory.mib(&self.data);
        if side == MeasuredMount::Weed && self.against.is_none() {
            let options = disk.map(DiskDirectory::weed_options).unwrap_or_default();
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            return self.stage.weed(DataSet::ROOT, cache_mib, &options);
        }
        let on_disk = disk.map(DiskDirectory::options).unwrap_or_default();
        let on_disk = on_disk.iter().map(String::as_str);
        let options: Vec<&str> = workload.options.iter().copied().chain(on_disk).collect();
        let build = self.against.as_deref().filter(|_| side == MeasuredMount::Weed);
        self.stage.interceptor(build, DataSet::ROOT, cache_mib, workload.transport, &options)
    }

    fn site(&self, mount: &Mount, disk: Option<&DiskDirectory>, repetition: usize) -> MountUnderTest {
        MountUnderTest {
            root: mount.path().to_owned(),
            daemon: mount.pid().cast_signed(),
            status: mount.status_page().ok(),
            data: Arc::clone(&self.data),
            disk: disk.cloned(),
            volumes: self.stage.cluster.volume_servers().iter().map(|server| server.directory()).collect(),
            reads: self.reads,
            seed: repetition as u64,
        }
    }

    /// One repetition on a fresh mount; with ours, what it fetched ahead.
    fn measure(
        &mut self,
        workload: &Workload,
        side: MeasuredMount,
        repetition: usize,
    ) -> Result<(Vec<Sample>, Option<Prefetched>)> {
        let with_disk = workload.memory == CacheSize::WithDisk;
        let disk = with_disk.then(|| DiskDirectory::new(self.stage.directory())).transpose()?;
        if let Some(disk) = &disk {
            let mount = self.mount(workload, side, Some(disk))?;
            let site = self.site(&mount, Some(disk), repetition);
            interrupt::guard(workload.name, REPETITION_TIMEOUT, move || disk::fill(&site))?;
            mount.stop()?;
        }
        if workload.memory == CacheSize::Fresh {
            thread::sleep(MEMORY_LOST_AFTER);
        }
        let mut mount = self.mount(workload, side, disk.as_ref())?;
        await_memory(&mount)?;
        if workload.memory != CacheSize::Fresh {
            use_free_memory(self.data.large.size);
        }
        let site = self.site(&mount, disk.as_ref(), repetition);
        let (run, check) = (workload.run, workload.check);
        let checked = site.clone();
        let measured =
            interrupt::guard(workload.name, REPETITION_TIMEOUT, move || run(&site)).and_then(|samples| {
                let ahead = (side == MeasuredMount::Ours).then(|| Prefetched::by(&mount)).transpose()?;
                if repetition == 0 {
                    interrupt::guard(workload.name, REPETITION_TIMEOUT, move || check(&checked))?;
                }
                Ok((samples, ahead))
            });
        // A daemon that ended explains more than the read that failed with it.
        ensure!(mount.is_running(), "the daemon has ended:\n{}", mount.log()?);
        let measured = measured?;
        mount.stop()?;
        Ok(measured)
    }
}

/// Whether the benchmark called `name`, which has mounts of its own and so must be the only one,
/// is asked for.
fn is_alone(options: &BenchOptions, name: &str) -> Result<bool> {
    let meant = options.name.iter().any(|wanted| wanted == name);
    ensure!(
        !meant || options.name.len() == 1,
        "{name} has mounts of its own; run it without other workloads"
    );
    Ok(meant)
}

fn choose(names: &[String]) -> Result<Vec<&'static Workload>> {
    if let Some(unknown) = names.iter().find(|name| !ALL.iter().any(|workload| workload.name == **name)) {
        let known: Vec<&str> = ALL.iter().map(|workload| workload.name).collect();
        bail!("there is no workload {unknown}; there are: {}", known.join(", "));
    }
    Ok(ALL
        .iter()
        .filter(|workload| names.is_empty() || names.iter().any(|name| name == workload.name))
        .collect())
}

/// Uses twice as much of the kernel's free memory as the page cache and a copy of a file of `size`
/// bytes take, and frees it. A virtual machine may give free memory back to its host, and gets it
/// again slowly: a mount that keeps what it read would be measured on such memory, and one that
/// gives it up on the memory that was just given up. Twice, because the kernel does not give away
/// first what was freed last.
fn use_free_memory(size: u64) {
    std::hint::black_box(vec![1_u8; 4 * usize::try_from(size).unwrap_or(0)]);
}

/// Waits until the mount has touched the memory that it wants to touch ahead.
fn await_memory(mount: &Mount) -> Result<()> {
    let deadline = Instant::now() + REPETITION_TIMEOUT;
    // Neither `weed mount` nor an older build tells.
    while mount.metric("interceptor_cache_prefaulting", &[]).is_ok_and(|running| running > 0.0) {
        ensure!(Instant::now() < deadline, "the mount touches its memory for too long");
        interrupt::check()?;
        thread::sleep(MEMORY_POLL_INTERVAL);
    }
    Ok(())
}

fn host(program: &Path, weed: &Path, against: Option<&Path>) -> Result<HostInfo> {
    let first_line = |program: &Path, argument: &str| -> Result<String> {
        let output =
            Command::new(program).arg(argument).output().with_context(|| program.display().to_string())?;
        ensure!(output.status.success(), "{} {argument} failed: {}", program.display(), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("version unknown").to_owned())
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    Ok(HostInfo {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        cpu: model.unwrap_or("CPU of unknown model").to_owned(),
        cpus: available_parallelism().map_or(1, usize::from),
        interceptor: first_line(program, "--version")?,
        weed: format!("weed {}", first_line(weed, "version")?),
        other_build: against.map(|program| first_line(program, "--version")).transpose()?,
    })
}

/// Says what was just measured: on a terminal always in the same line.
fn status_line(text: &str) {
    let end = if std::io::stderr().is_terminal() { "\x1b[K\r" } else { "\n" };
    eprint!("{text}{end}");
    let _ = std::io::stderr().flush();
}

fn clear_status_line() {
    if std::io::stderr().is_terminal() {
        eprint!("\x1b[K");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_workload_is_named_with_the_known_ones() {
        assert_eq!(choose(&[]).unwrap().len(), ALL.len());
        assert_eq!(choose(&["walk".to_owned()]).unwrap()[0].name, "walk");
        assert!(choose(&["wlak".to_owned()]).err().unwrap().to_string().contains("seq-cold"));
    }
}
