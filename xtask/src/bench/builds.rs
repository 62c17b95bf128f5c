//! `cargo xtask bench builds --against PROGRAM`: what a change costs or brings, to a fraction of a
//! per cent.
//!
//! In other rows two mounts live one after the other, and the speed of the machine changes by some
//! per cent in between. Here this build and the other one are mounted beside each other, and a
//! reader turns from one to the other several times a second. Each turn is compared with its
//! neighbour. The interval says how well the median is known.
//!
//! Both go without eBPF: programs of both would see the reads of either.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use ::tests::Mount;
use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::BenchOptions;
use super::buffer::Buffer;
use super::data::{self, DataSet};
use super::reader;
use super::report::OTHER_BUILD;
use super::statistics::{Summary, paired};
use super::verify::{compare, probe};
use crate::process::cpu_seconds;
use crate::stage::Stage;
use crate::{cargo, interrupt, setup};

/// Its name among the workloads.
pub(super) const NAME: &str = "builds";
/// What the list says of it.
pub(super) const ABOUT: &str =
    "reads that the daemon answers, through this build and that of --against in turn, many times a second";

/// Short, so that neighbours meet the same machine.
const TURN_DURATION: Duration = Duration::from_millis(100);
const PAIRS_PER_REPETITION: usize = 100;
/// Files of one turn, which the mount has not read before.
const FILES_PER_TURN: usize = 40;
const LARGE_SIZE: u64 = 256 << 20;
/// Memory of each daemon, MiB: more than all files take.
const CACHE_MIB: u64 = 1024;

/// What is read in a turn.
struct Load {
    name: &'static str,
    unit: &'static str,
    /// Takes the turn of this number; how many units were read.
    turn: fn(&Side, &DataSet, usize) -> Result<usize>,
}

const LOADS: [Load; 3] = [
    Load {
        name: "4 KiB from memory",
        unit: "read",
        turn: |side, data, turn| from_memory(side, data, turn, 4 << 10),
    },
    Load {
        name: "1 MiB from memory",
        unit: "read",
        turn: |side, data, turn| from_memory(side, data, turn, 1 << 20),
    },
    Load { name: "small files, cold", unit: "file", turn: cold_files },
];

/// One of the two builds, mounted.
struct Side {
    mount: Mount,
    /// The large file, past the page cache.
    direct: File,
}

/// What a turn gave.
struct TurnRates {
    /// Units a second.
    rate: f64,
    /// CPU seconds of the daemon.
    cpu: f64,
    units: usize,
}

/// Mounts, measures and prints.
pub(super) fn run(options: &BenchOptions) -> Result<()> {
    let other = options.against.as_ref().context("builds needs --against PROGRAM")?;
    let other = other.canonicalize().with_context(|| other.display().to_string())?;
    setup::ensure()?;
    cargo::build_interceptor()?;
    interrupt::check()?;
    let (reps, pairs) =
        if options.quick { (1, 6) } else { (options.reps.unwrap_or(5).max(1), PAIRS_PER_REPETITION) };
    let mut stage = Stage::open("bench")?;
    let measured = measure(&mut stage, &other, reps, pairs);
    let closed = stage.close();
    measured.and(closed)
}

fn measure(stage: &mut Stage, other: &Path, reps: usize, pairs: usize) -> Result<()> {
    // One turn more, to begin with.
    let mut data = DataSet::new(LARGE_SIZE, FILES_PER_TURN * (pairs + 1));
    // In order, the next ones would be fetched in the other's turn.
    data.small.shuffle(&mut StdRng::seed_from_u64(1));
    data.write(&stage.cluster.filer(), |_| ())?;
    stage.cluster.volume_servers().iter().try_for_each(|server| data::warm(&server.directory()))?;
    let mut found: [Vec<[TurnRates; 2]>; LOADS.len()] = [const { Vec::new() }; LOADS.len()];
    for repetition in 0..reps {
        let mut mount = |build| Side::mount(stage, build, &data);
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
            for number in 0..pairs {
                interrupt::check()?;
                let take = |side: usize| sides[side].turn(load, &data, number);
                let pair = if number % 2 == 0 {
                    [take(0)?, take(1)?]
                } else {
                    let second = take(1)?;
                    [take(0)?, second]
                };
                found.push(pair);
            }
            eprintln!("{}, repetition {} of {reps}: {}", load.name, repetition + 1, text(load, found));
        }
        for side in sides {
            let root = side.mount.path();
            data.small.iter().try_for_each(|file| compare(root, &file.path, file.size, file.pattern))?;
            let Side { mount, direct } = side;
            drop(direct);
            mount.stop()?;
        }
    }
    println!("\nThis build and the {OTHER_BUILD}, in turns of {TURN_DURATION:?} or {FILES_PER_TURN} files:");
    for (load, pairs) in LOADS.iter().zip(&found) {
        println!("  {:<18} {}", load.name, text(load, pairs));
    }
    Ok(())
}

impl Side {
    /// Mounts a build and brings the large file into its memory, which compares all bytes of it.
    fn mount(stage: &mut Stage, build: Option<&Path>, data: &DataSet) -> Result<Self> {
        let options = ["--no-ebpf", "--no-passthrough", "--cache-prefault=off"];
        let mount = stage.interceptor(build, DataSet::ROOT, CACHE_MIB, "http", &options)?;
        let large = &data.large;
        compare(mount.path(), &large.path, large.size, large.pattern)?;
        let direct = File::options()
            .read(true)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(mount.path().join(&large.path))?;
        Ok(Self { mount, direct })
    }

    fn turn(&self, load: &Load, data: &DataSet, number: usize) -> Result<TurnRates> {
        let daemon = self.mount.pid().cast_signed();
        let (cpu, begun) = (cpu_seconds(daemon)?, Instant::now());
        let units = (load.turn)(self, data, number)?;
        let elapsed = begun.elapsed().as_secs_f64();
        Ok(TurnRates { rate: units as f64 / elapsed, cpu: cpu_seconds(daemon)? - cpu, units })
    }
}

/// Reads `len` bytes at random places of the large file, each of which the daemon answers.
fn from_memory(side: &Side, data: &DataSet, turn: usize, len: usize) -> Result<usize> {
    let mut dice = StdRng::seed_from_u64(turn as u64);
    let mut buffer = Buffer::new(len);
    let (large, begun) = (&data.large, Instant::now());
    let mut reads = 0;
    while begun.elapsed() < TURN_DURATION {
        let offset = dice.random_range(0..large.size / len as u64) * len as u64;
        side.direct.read_exact_at(&mut buffer, offset).with_context(|| format!("read at {offset}"))?;
        probe(large.pattern, &large.path, offset, &buffer)?;
        reads += 1;
    }
    Ok(reads)
}

/// Reads files that this mount has not read before.
fn cold_files(side: &Side, data: &DataSet, turn: usize) -> Result<usize> {
    let files = &data.small[turn * FILES_PER_TURN..][..FILES_PER_TURN];
    reader::small(side.mount.path(), files.iter())?;
    Ok(files.len())
}

fn text(load: &Load, pairs: &[[TurnRates; 2]]) -> String {
    let median = |side: usize| {
        let rates: Vec<f64> = pairs.iter().map(|pair| pair[side].rate).collect();
        Summary::of(&rates).map_or(f64::NAN, |summary| summary.median)
    };
    let cpu = |side: usize| {
        let (seconds, units) = pairs
            .iter()
            .fold((0.0, 0), |(seconds, units), pair| (seconds + pair[side].cpu, units + pair[side].units));
        1e6 * seconds / units as f64
    };
    let ratios: Vec<f64> = pairs.iter().map(|[ours, other]| ours.rate / other.rate).collect();
    let unit = load.unit;
    format!(
        "{:.0} and {:.0} {unit}s a second; {}; the daemon's CPU {:.1} and {:.1} us a {unit}",
        median(0),
        median(1),
        paired(&ratios),
        cpu(0),
        cpu(1)
    )
}
