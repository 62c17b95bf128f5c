//! `cargo xtask fuzz`: raw FUSE requests over the file systems of `interceptor mount` and
//! `interceptor attach`.
//!
//! The fuzzer itself is a test of the crate (`interceptor/src/fuse/fuzz`), which `cargo xtask
//! test` runs for five minutes; this verb runs it for longer.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup;
use crate::{cargo, process};

/// What the names of the fuzzer's tests have in common.
pub(crate) const TESTS: &str = "survives_any_request";

/// How many file systems are tried, one after the other.
const FILE_SYSTEMS: u64 = 2;

/// What the verb takes.
#[derive(clap::Args)]
pub(crate) struct FuzzOptions {
    /// How long, both file systems together
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// The seed that a failure named, to see it again
    #[arg(long)]
    seed: Option<u64>,
}

/// Sets how long the tests of the fuzzer try, all together.
pub(crate) fn for_seconds(command: &mut Command, seconds: u64) {
    command.env("FUZZ_SECONDS", seconds.div_ceil(FILE_SYSTEMS).to_string());
}

/// The verb.
pub(crate) fn command(options: &FuzzOptions) -> Result<()> {
    setup::ensure()?;
    let mut tests = cargo::cargo();
    tests.args(["test", "--release", "--package", "interceptor", "--lib", "--"]);
    tests.args([TESTS, "--nocapture", "--test-threads=1"]);
    for_seconds(&mut tests, options.minutes.saturating_mul(60));
    if let Some(seed) = options.seed {
        tests.env("FUZZ_SEED", seed.to_string());
    }
    let mut child = tests.spawn().context("cannot start cargo")?;
    ensure!(process::wait(&mut child)?.success(), "the fuzzer has found something");
    Ok(())
}
