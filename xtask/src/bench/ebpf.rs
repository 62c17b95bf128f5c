//! `cargo xtask bench ebpf`: what eBPF costs each read, how soon the daemon reacts to a read, and
//! what that brings.
//!
//! One run has three parts. An example of the crate `interceptor` measures the programs on a
//! `bindfs` mount ([`cost`]). Then a cold sequential pass ([`cold`]) and a load with a hot set
//! ([`ablation`]) go through `interceptor mount` with and without the programs. The daemon's own
//! histogram gives the time from a read to the reaction.

mod ablation;
mod cold;

use std::process::Command;

use ::tests::{Bindfs, Pattern};
use anyhow::{Context, Result, ensure};

use super::BenchOptions;
use crate::stage::Stage;
use crate::{cargo, interrupt, process, setup};

/// Its name among the workloads.
pub(super) const NAME: &str = "ebpf";
/// What the list says of it.
pub(super) const ABOUT: &str =
    "cost of the eBPF programs, time to act on them, and the same load with and without";

/// Bytes of the file that the cost is measured with.
const COST_FILE: usize = 64 << 20;

/// Bytes of the file that is read cold.
const COLD_FILE: u64 = 1 << 30;
const COLD_FILE_QUICK: u64 = 128 << 20;
/// Passes with and without in one repetition: what they are to show is small.
const COLD_PAIRS: usize = 3;

/// Runs all parts.
pub(super) fn run(options: &BenchOptions) -> Result<()> {
    setup::ensure()?;
    cargo::build_interceptor()?;
    let example = cargo::build_example("ebpf_cost")?;
    interrupt::check()?;
    cost(&mut Command::new(example))?;
    let mut stage = Stage::open("bench")?;
    let reps = options.reps.unwrap_or(if options.quick { 1 } else { 5 }).max(1);
    let size = options.size.unwrap_or(if options.quick { COLD_FILE_QUICK } else { COLD_FILE });
    let measured =
        cold::run(&mut stage, COLD_PAIRS * reps, size).and_then(|()| ablation::run(&mut stage, reps));
    let closed = stage.close();
    measured.and(closed)
}

/// Measures the programs on a mount that is not ours.
fn cost(example: &mut Command) -> Result<()> {
    let bindfs = Bindfs::start().context("the cost is measured on a bindfs mount")?;
    let file = bindfs.put("file", &Pattern::new(1).bytes(0, COST_FILE))?;
    let mut child = example.arg(file).spawn().context("cannot start the measurement")?;
    let status = process::wait(&mut child)?;
    ensure!(status.success(), "the measurement failed: {status}");
    Ok(())
}
