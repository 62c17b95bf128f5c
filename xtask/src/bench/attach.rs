//! `cargo xtask bench attach`: `interceptor attach` over a `weed mount`, beside that mount bare
//! and, for reads, beside `interceptor mount`.
//!
//! Every repetition of a workload has fresh mounts with empty caches, and the sides take turns.
//! With two layers of FUSE, each operation that is passed on costs a second trip to a daemon. The
//! rows that write show what that costs.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::tests::{Layer, Mount, Pattern, StatusPage, eventually};
use anyhow::{Context, Result, ensure};

use super::data::{self, DataSet};
use super::report::table;
use super::sample::{Sample, Unit, throughput};
use super::statistics::{Summary, quantile};
use super::{BenchOptions, reader, status_line, verify};
use crate::progress::{Progress, digits};
use crate::stage::{CACHE_MIB, Stage};
use crate::{cargo, interrupt, setup};

/// Its name among the workloads.
pub(super) const NAME: &str = "attach";
/// What the list says of it.
pub(super) const ABOUT: &str =
    "reads, writes and metadata through a layer over weed mount, against that mount bare";

/// Bytes of the file that is written, and of one write to it.
const WRITTEN_FILE_SIZE: u64 = 256 << 20;
const WRITE_SIZE: usize = 1 << 20;
/// Small files that are written, and their bytes.
const SMALL_FILES: u64 = 300;
const SMALL_FILE_SIZE: usize = 16 << 10;
/// Files that names are made of, changed and removed.
const NAME_COUNT: usize = 500;
/// Longest wait for a layer's subscription to the filer's events.
const SUBSCRIPTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one repetition may take.
const REPETITION_TIMEOUT: Duration = Duration::from_secs(600);

/// What applications see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MountStack {
    Bare,
    Attached,
    Native,
}

impl MountStack {
    const ALL: [Self; 3] = [Self::Bare, Self::Attached, Self::Native];

    fn label(self) -> &'static str {
        ["weed mount", "attached to it", "interceptor mount"][self as usize]
    }
}

/// What is measured on a mount.
#[derive(Clone)]
struct MountUnderTest {
    root: PathBuf,
    data: Arc<DataSet>,
    reads: usize,
    seed: u64,
}

struct AttachWorkload {
    name: &'static str,
    /// Whether it only reads, which `interceptor mount` can as well.
    reads: bool,
    run: fn(&MountUnderTest) -> Result<Vec<Sample>>,
}

const WORKLOADS: [AttachWorkload; 6] = [
    AttachWorkload { name: "seq-cold", reads: true, run: sequential },
    AttachWorkload { name: "rand-4k-fresh", reads: true, run: random },
    AttachWorkload { name: "small-cold", reads: true, run: small },
    AttachWorkload { name: "write", reads: false, run: write },
    AttachWorkload { name: "write-small", reads: false, run: write_small },
    AttachWorkload { name: "names", reads: false, run: names },
];

/// Measures and prints.
pub(super) fn run(options: &BenchOptions) -> Result<()> {
    let (reps, size, files, reads) =
        if options.quick { (1, 64 << 20, 100, 100) } else { (5, 1 << 30, 1000, 2000) };
    let data = Arc::new(DataSet::new(options.size.unwrap_or(size), options.files.unwrap_or(files)));
    setup::ensure()?;
    cargo::build_interceptor()?;
    interrupt::check()?;
    let mut stage = Stage::open("bench")?;
    let reads = options.reads.unwrap_or(reads);
    let measured = measure(&mut stage, &data, options.reps.unwrap_or(reps).max(1), reads);
    let closed = stage.close();
    measured.and(closed)
}

fn measure(stage: &mut Stage, data: &Arc<DataSet>, reps: usize, reads: usize) -> Result<()> {
    let progress = Progress::bytes("writing the data set", data.bytes());
    data.write(&stage.cluster.filer(), |bytes| progress.add(bytes))?;
    progress.finish();
    stage.cluster.volume_servers().iter().try_for_each(|server| data::warm(&server.directory()))?;
    let mut lines = Vec::new();
    for workload in &WORKLOADS {
        let mut found: [Vec<Vec<Sample>>; MountStack::ALL.len()] = Default::default();
        for repetition in 0..reps {
            let mut order = MountStack::ALL;
            order.rotate_left(repetition % MountStack::ALL.len());
            for side in order.into_iter().filter(|side| workload.reads || *side != MountStack::Native) {
                let samples = once(stage, workload, side, data, reads, repetition)
                    .with_context(|| format!("{} on {}", workload.name, side.label()))?;
                let shown: Vec<String> =
                    samples.iter().map(|s| format!("{} {}", digits(s.value), s.unit.label())).collect();
                status_line(&format!(
                    "{} {}/{reps} {}: {}",
                    workload.name,
                    repetition + 1,
                    side.label(),
                    shown.join(", ")
                ));
                found[side as usize].push(samples);
            }
        }
        lines.extend(rows(workload.name, &found));
    }
    let [bare, attached, native] = MountStack::ALL.map(|side| side.label().to_owned());
    let head = [String::new(), String::new(), bare, attached, "of bare".into(), native, "of native".into()];
    print!("\n{}", table(2, head, lines.into_iter()));
    println!(
        "Medians of {reps}, fresh mounts each; \"of bare\" and \"of native\": medians of the paired ratios, above 1 the attached path is faster."
    );
    Ok(())
}

/// One repetition on fresh mounts.
fn once(
    stage: &mut Stage,
    workload: &AttachWorkload,
    side: MountStack,
    data: &Arc<DataSet>,
    reads: usize,
    repetition: usize,
) -> Result<Vec<Sample>> {
    interrupt::check()?;
    let mount = match side {
        MountStack::Native => stage.interceptor(None, DataSet::ROOT, CACHE_MIB, "http", &[])?,
        MountStack::Bare | MountStack::Attached => stage.weed(DataSet::ROOT, CACHE_MIB, &[])?,
    };
    let layer = (side == MountStack::Attached).then(|| attach(stage, &mount)).transpose()?;
    let site = MountUnderTest {
        root: mount.path().to_owned(),
        data: Arc::clone(data),
        reads,
        seed: repetition as u64,
    };
    let run = workload.run;
    let measured = interrupt::guard(workload.name, REPETITION_TIMEOUT, move || run(&site));
    if let Some(layer) = layer {
        let status = layer.detach()?;
        ensure!(status.success(), "the layer ended with {status}");
    }
    let measured = measured?;
    mount.stop()?;
    Ok(measured)
}

/// A layer that reads from the cluster, and hears of its changes.
fn attach(stage: &Stage, mount: &Mount) -> Result<Layer> {
    let cache = format!("{CACHE_MIB}MiB");
    let filers = stage.cluster.filer_addresses();
    let args = ["--filer", filers.as_str(), "--filer-path", DataSet::ROOT, "--cache-size", cache.as_str()];
    let layer = Layer::over(mount.path(), args)?;
    let page: StatusPage = layer.status_page();
    let live = || (page.metric("interceptor_subscription_live", &[]).ok()? == 1.0).then_some(());
    eventually("the filer's events", SUBSCRIPTION_TIMEOUT, live)?;
    Ok(layer)
}

/// A line for each figure of a workload.
fn rows(name: &str, found: &[Vec<Vec<Sample>>; MountStack::ALL.len()]) -> Vec<[String; 7]> {
    let Some(figures) = found[0].first() else { return Vec::new() };
    let row = |(index, first): (usize, &Sample)| {
        let values = |side: MountStack| -> Vec<f64> {
            found[side as usize].iter().filter_map(|samples| samples.get(index)).map(|s| s.value).collect()
        };
        let median = |side: MountStack| {
            Summary::of(&values(side)).map_or("-".into(), |summary| digits(summary.median))
        };
        let against = |other: MountStack| {
            let pairs = values(MountStack::Attached).into_iter().zip(values(other));
            let better = |(ours, theirs): (f64, f64)| {
                if first.unit.more_is_better() { ours / theirs } else { theirs / ours }
            };
            let ratios: Vec<f64> = pairs.map(better).collect();
            Summary::of(&ratios).map_or("-".into(), |summary| format!("{}x", digits(summary.median)))
        };
        [
            format!("{name} {}", first.figure).trim_end().to_owned(),
            first.unit.label().to_owned(),
            median(MountStack::Bare),
            median(MountStack::Attached),
            against(MountStack::Bare),
            median(MountStack::Native),
            against(MountStack::Native),
        ]
    };
    figures.iter().enumerate().map(row).collect()
}

fn sequential(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let seconds = reader::sequential(&site.root, &site.data.large)?;
    Ok(vec![throughput(site.data.large.size as f64, seconds)])
}

fn random(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let seconds = reader::random(&site.root, &site.data.large, 4096, site.reads, site.seed)?;
    let p50 = quantile(&seconds, 0.5).context("nothing was read")? * 1e6;
    Ok(vec![Sample { figure: "p50", unit: Unit::Microseconds, value: p50 }])
}

fn small(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let pass = reader::small(&site.root, site.data.small.iter())?;
    Ok(vec![rate("", site.data.small.len(), pass.elapsed)])
}

fn rate(figure: &'static str, files: usize, seconds: f64) -> Sample {
    Sample { figure, unit: Unit::FilesPerSecond, value: files as f64 / seconds }
}

/// A large file from front to back, until it is on the servers.
fn write(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let (path, pattern) = (site.root.join("written"), Pattern::new(site.seed));
    let content = pattern.bytes(0, WRITTEN_FILE_SIZE as usize);
    let begun = Instant::now();
    let mut file = File::create(&path)?;
    content.chunks(WRITE_SIZE).try_for_each(|part| file.write_all(part))?;
    file.sync_all()?;
    drop(file);
    let seconds = begun.elapsed().as_secs_f64();
    verify::compare(&site.root, "written", WRITTEN_FILE_SIZE, pattern)?;
    fs::remove_file(&path)?;
    Ok(vec![throughput(WRITTEN_FILE_SIZE as f64, seconds)])
}

fn write_small(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let directory = site.root.join("few");
    fs::create_dir(&directory)?;
    let contents: Vec<Vec<u8>> =
        (0..SMALL_FILES).map(|number| Pattern::new(number).bytes(0, SMALL_FILE_SIZE)).collect();
    let begun = Instant::now();
    for (number, content) in contents.iter().enumerate() {
        File::create(directory.join(number.to_string()))?.write_all(content)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    for number in 0..SMALL_FILES {
        verify::compare(&directory, &number.to_string(), SMALL_FILE_SIZE as u64, Pattern::new(number))?;
    }
    fs::remove_dir_all(&directory)?;
    Ok(vec![rate("", contents.len(), seconds)])
}

/// Creates, stats, renames and removes files.
fn names(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let directory = site.root.join("names");
    fs::create_dir(&directory)?;
    let timed = |figure, each: &dyn Fn(PathBuf, PathBuf) -> Result<()>| -> Result<Sample> {
        let begun = Instant::now();
        for number in 0..NAME_COUNT {
            each(directory.join(format!("old{number}")), directory.join(format!("new{number}")))?;
        }
        Ok(rate(figure, NAME_COUNT, begun.elapsed().as_secs_f64()))
    };
    let samples = vec![
        timed("create", &|old, _| Ok(File::create_new(old).map(drop)?))?,
        timed("stat", &|old, _| existing(&old))?,
        timed("rename", &|old, new| Ok(fs::rename(old, new)?))?,
        timed("stat renamed", &|_, new| existing(&new))?,
        timed("unlink", &|_, new| Ok(fs::remove_file(new)?))?,
    ];
    // Fails if anything is left.
    fs::remove_dir(&directory)?;
    Ok(samples)
}

fn existing(path: &Path) -> Result<()> {
    ensure!(fs::metadata(path)?.is_file(), "{} is no file", path.display());
    Ok(())
}
