//! `cargo xtask bench builds --against PROGRAM`: what a change costs or brings, to a fraction of a
//! per cent.
//!
//! In other rows two mounts live one after the other, and the speed of the machine changes by some
//! per cent in between. Here this build and the other one are mounted beside each other, and a
//! reader turns from one to the other several times a second. Each turn is compared with its
//! neighbour.
//!
//! Two mounts of one program differ by some per cent for as long as they live. More turns do not
//! take that away, more mounts do: each repetition mounts both anew and gives one ratio, and the
//! interval is that of the median of these.
//!
//! Both go without eBPF: programs of both would see the reads of either. Each touches memory ahead
//! of its use if that is its default, and no turn begins before a build that tells has done so: one
//! that keeps less of what was read would else be measured on used memory, and the other one on
//! fresh memory.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use ::tests::{Filer, Mount};
use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::buffer::Buffer;
use super::data::{self, DataSet};
use super::reader;
use super::report::OTHER_BUILD;
use super::statistics::{Summary, paired};
use super::verify::{compare, probe};
use super::{BenchOptions, await_memory};
use crate::process::cpu_seconds;
use crate::stage::Stage;
use crate::{cargo, interrupt, setup, upload};

/// Its name among the workloads.
pub(super) const NAME: &str = "builds";
/// What the list says of it.
pub(super) const ABOUT: &str =
    "reads and listings through this build and that of --against in turn, many times a second";

/// Short, so that neighbours meet the same machine.
const TURN_DURATION: Duration = Duration::from_millis(100);
const PAIRS_PER_REPETITION: usize = 30;
/// Mounts of each build, unless --reps says how many.
const REPETITIONS: usize = 12;
/// Small files of one turn, which the mount has not read before.
const FILES_PER_TURN: usize = 40;
/// Files of one chunk that are read in a turn.
const CHUNKS_PER_TURN: usize = 2;
/// Reads of a turn at places that were not read before, each of another file. A repetition so reads
/// less often from a chunk than makes the daemon fetch all of it.
const COLD_READS_PER_TURN: usize = 8;
/// Names of the directory of a turn, which the mount has not listed before.
const NAMES_PER_TURN: usize = 200;
/// What is listed, relative to the mount point.
const NAMES: &str = "names";
const LARGE_SIZE: u64 = 256 << 20;
/// Memory of each daemon, MiB: more than all files take.
const CACHE_MIB: u64 = 1536;

/// What is read in a turn.
struct Load {
    name: &'static str,
    /// What is counted, and more of it.
    unit: [&'static str; 2],
    /// Takes the turn of this number; how many units were read.
    turn: fn(&MountedBuild, &DataSet, usize) -> Result<usize>,
}

const READS: [&str; 2] = ["read", "reads"];
const FILES: [&str; 2] = ["file", "files"];

/// In this order: what is cold comes before what has read all of it.
const LOADS: [Load; 7] = [
    Load { name: "names, first seen", unit: ["name", "names"], turn: new_names },
    Load { name: "4 KiB at random, cold", unit: READS, turn: cold_reads },
    Load { name: "files of 1 MiB, cold", unit: FILES, turn: cold_chunks },
    Load { name: "small files, cold", unit: FILES, turn: cold_files },
    Load {
        name: "4 KiB from memory",
        unit: READS,
        turn: |side, data, turn| from_memory(&side.direct, data, turn, 4 << 10),
    },
    Load {
        name: "1 MiB from memory",
        unit: READS,
        turn: |side, data, turn| from_memory(&side.direct, data, turn, 1 << 20),
    },
    Load {
        name: "1 MiB, page cache",
        unit: READS,
        turn: |side, data, turn| from_memory(&side.cached, data, turn, 1 << 20),
    },
];

/// One of the two builds, mounted.
struct MountedBuild {
    mount: Mount,
    /// The large file, past the page cache.
    direct: File,
    /// The same through the page cache.
    cached: File,
}

/// What a turn gave.
struct TurnRates {
    /// Units a second.
    rate: f64,
    /// CPU seconds of the daemon.
    cpu: f64,
    units: usize,
}

/// The turns that two mounts took, this build's and the other one's in each pair.
#[derive(Default)]
struct Repetition(Vec<[TurnRates; 2]>);

impl Repetition {
    /// The median of what neighbouring turns gave.
    fn ratio(&self) -> f64 {
        let ratios: Vec<f64> = self.0.iter().map(|[ours, other]| ours.rate / other.rate).collect();
        Summary::of(&ratios).map_or(f64::NAN, |summary| summary.median)
    }

    /// CPU time of this build's daemon for a unit, of that of the other one.
    fn cpu_ratio(&self) -> f64 {
        let [ours, other] = [0, 1].map(|side| cpu_of_unit(self.0.iter().map(|pair| &pair[side])));
        ours / other
    }
}

/// CPU seconds for each unit of these turns.
fn cpu_of_unit<'a>(turns: impl Iterator<Item = &'a TurnRates>) -> f64 {
    let (cpu, units) = turns.fold((0.0, 0), |(cpu, units), turn| (cpu + turn.cpu, units + turn.units));
    cpu / units as f64
}

/// Mounts, measures and prints.
pub(super) fn run(options: &BenchOptions) -> Result<()> {
    let other = options.against.as_ref().context("builds needs --against PROGRAM")?;
    let other = other.canonicalize().with_context(|| other.display().to_string())?;
    setup::ensure()?;
    cargo::build_interceptor()?;
    interrupt::check()?;
    let (reps, pairs) = if options.quick {
        (1, 6)
    } else {
        (options.reps.unwrap_or(REPETITIONS).max(1), PAIRS_PER_REPETITION)
    };
    let mut stage = Stage::open("bench")?;
    let measured = measure(&mut stage, &other, reps, pairs);
    let closed = stage.close();
    measured.and(closed)
}

fn measure(stage: &mut Stage, other: &Path, reps: usize, pairs: usize) -> Result<()> {
    // One turn more, to begin with.
    let mut data = DataSet::new(LARGE_SIZE, FILES_PER_TURN * (pairs + 1)).with_medium();
    // In order, the next ones would be fetched in the other's turn.
    for files in [&mut data.small, &mut data.chunks] {
        files.shuffle(&mut StdRng::seed_from_u64(1));
    }
    data.write(&stage.cluster.filer(), |_| ())?;
    write_names(&stage.cluster.filer(), pairs + 1)?;
    stage.cluster.volume_servers().iter().try_for_each(|server| data::warm(&server.directory()))?;
    let mut found: [Vec<Repetition>; LOADS.len()] = [const { Vec::new() }; LOADS.len()];
    for repetition in 0..reps {
        let mut mount = |build| MountedBuild::mount(stage, build, &data);
        // The one that is mounted first may find better memory.
        let sides = if repetition % 2 == 0 {
            [mount(None)?, mount(Some(other))?]
        } else {
            let theirs = mount(Some(other))?;
            [mount(None)?, theirs]
        };
        for (load, found) in LOADS.iter().zip(&mut found) {
            for side in &sides {
                side.turn(load, &data, pairs)?;
            }
            let mut taken = Repetition::default();
            for number in 0..pairs {
                interrupt::check()?;
                let take = |side: usize| sides[side].turn(load, &data, number);
                let pair = if number % 2 == 0 {
                    [take(0)?, take(1)?]
                } else {
                    let second = take(1)?;
                    [take(0)?, second]
                };
                taken.0.push(pair);
            }
            found.push(taken);
            eprintln!("{}, {} of {reps}: {}", load.name, found.len(), text(load, found));
        }
        for side in sides {
            let root = side.mount.path();
            [&data.small, &data.chunks, &data.medium]
                .into_iter()
                .flatten()
                .try_for_each(|file| compare(root, &file.path, file.size, file.pattern))?;
            let MountedBuild { mount, direct, cached } = side;
            drop((direct, cached));
            mount.stop()?;
        }
    }
    println!("\nThis build and the {OTHER_BUILD}, in turn:");
    for (load, found) in LOADS.iter().zip(&found) {
        println!("  {:<22} {}", load.name, text(load, found));
    }
    Ok(())
}

impl MountedBuild {
    /// Mounts a build and brings the large file into its memory, which compares all bytes of it.
    fn mount(stage: &mut Stage, build: Option<&Path>, data: &DataSet) -> Result<Self> {
        let options = ["--no-ebpf", "--no-passthrough"];
        let mount = stage.interceptor(build, DataSet::ROOT, CACHE_MIB, "http", &options)?;
        let large = &data.large;
        compare(mount.path(), &large.path, large.size, large.pattern)?;
        await_memory(&mount)?;
        let path = mount.path().join(&large.path);
        let (direct, cached) = (open_direct(&path)?, File::open(path)?);
        Ok(Self { mount, direct, cached })
    }

    fn turn(&self, load: &Load, data: &DataSet, number: usize) -> Result<TurnRates> {
        let daemon = self.mount.pid().cast_signed();
        let (cpu, begun) = (cpu_seconds(daemon)?, Instant::now());
        let units = (load.turn)(self, data, number)?;
        let elapsed = begun.elapsed().as_secs_f64();
        Ok(TurnRates { rate: units as f64 / elapsed, cpu: cpu_seconds(daemon)? - cpu, units })
    }
}

fn open_direct(path: &Path) -> Result<File> {
    let file = File::options().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path);
    file.with_context(|| path.display().to_string())
}

/// Writes the directories that are listed, one for each turn.
fn write_names(filer: &Filer, turns: usize) -> Result<()> {
    let path = |number| {
        let directory = number / NAMES_PER_TURN;
        format!("{}/{NAMES}/{directory}/{number}", DataSet::ROOT)
    };
    let paths: Vec<String> = (0..turns * NAMES_PER_TURN).map(path).collect();
    upload::each(&paths, |path| filer.put(path, b"some bytes", ""))
}

/// Lists a directory that this mount has not listed before, with the attributes of all files.
fn new_names(side: &MountedBuild, _: &DataSet, turn: usize) -> Result<usize> {
    let (_, found) = reader::walk(&side.mount.path().join(NAMES).join(turn.to_string()))?;
    ensure!(found == NAMES_PER_TURN as u64, "{found} of {NAMES_PER_TURN} names were listed");
    Ok(NAMES_PER_TURN)
}

/// Reads 4 KiB at random places of some files, hardly any of which were read before.
fn cold_reads(side: &MountedBuild, data: &DataSet, turn: usize) -> Result<usize> {
    const LEN: usize = 4 << 10;
    let (mut dice, mut buffer) = (StdRng::seed_from_u64(turn as u64), Buffer::new(LEN));
    let files = data.medium.iter().cycle().skip(turn * COLD_READS_PER_TURN % data.medium.len());
    for file in files.take(COLD_READS_PER_TURN) {
        let opened = open_direct(&side.mount.path().join(&file.path))?;
        let offset = dice.random_range(0..file.size / LEN as u64) * LEN as u64;
        opened.read_exact_at(&mut buffer, offset).with_context(|| format!("read at {offset}"))?;
        probe(file.pattern, &file.path, offset, &buffer)?;
    }
    Ok(COLD_READS_PER_TURN)
}

/// Reads files of one chunk that this mount has not read before.
fn cold_chunks(side: &MountedBuild, data: &DataSet, turn: usize) -> Result<usize> {
    let files = &data.chunks[turn * CHUNKS_PER_TURN..][..CHUNKS_PER_TURN];
    reader::whole(side.mount.path(), files)?;
    Ok(files.len())
}

/// Reads `len` bytes at random places of the large file, opened as `file`, all of which is in
/// memory.
fn from_memory(file: &File, data: &DataSet, turn: usize, len: usize) -> Result<usize> {
    let mut dice = StdRng::seed_from_u64(turn as u64);
    let mut buffer = Buffer::new(len);
    let (large, begun) = (&data.large, Instant::now());
    let mut reads = 0;
    while begun.elapsed() < TURN_DURATION {
        let offset = dice.random_range(0..large.size / len as u64) * len as u64;
        file.read_exact_at(&mut buffer, offset).with_context(|| format!("read at {offset}"))?;
        probe(large.pattern, &large.path, offset, &buffer)?;
        reads += 1;
    }
    Ok(reads)
}

/// Reads files that this mount has not read before.
fn cold_files(side: &MountedBuild, data: &DataSet, turn: usize) -> Result<usize> {
    let files = &data.small[turn * FILES_PER_TURN..][..FILES_PER_TURN];
    reader::small(side.mount.path(), files.iter())?;
    Ok(files.len())
}

fn text(load: &Load, found: &[Repetition]) -> String {
    let turns = |side: usize| found.iter().flat_map(|repetition| &repetition.0).map(move |pair| &pair[side]);
    let median = |side: usize| {
        let rates: Vec<f64> = turns(side).map(|turn| turn.rate).collect();
        Summary::of(&rates).map_or(f64::NAN, |summary| summary.median)
    };
    let ratios = |of: fn(&Repetition) -> f64| paired(&found.iter().map(of).collect::<Vec<_>>());
    let [unit, units] = load.unit;
    format!(
        "{:.0} and {:.0} {units} a second; {}; the daemon's CPU {:.1} and {:.1} us a {unit}; {}",
        median(0),
        median(1),
        ratios(Repetition::ratio),
        1e6 * cpu_of_unit(turns(0)),
        1e6 * cpu_of_unit(turns(1)),
        ratios(Repetition::cpu_ratio)
    )
}
