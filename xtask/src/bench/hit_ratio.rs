//! `cargo xtask bench hit-ratio --trace FILE`: the share of a recorded load that the cache would
//! miss, beside LIRS with fixed parameters, and LRU.
//!
//! Needs no cluster and no mount: an example of the crate `interceptor` replays the trace through
//! the real index and policy. It is a program of its own, so that xtask does not depend on the
//! cache.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::BenchOptions;
use crate::{cargo, process};

/// Its name among the workloads.
pub(super) const NAME: &str = "hit-ratio";
/// What the list says of it.
pub(super) const ABOUT: &str =
    "miss ratios of the cache on a trace of block ids (--trace FILE), beside LIRS and LRU";

/// Whether that is to be run, which is then all.
pub(super) fn is_meant(options: &BenchOptions) -> Result<bool> {
    match (options.name.iter().any(|name| name == NAME), &options.trace) {
        (true, None) => bail!("{NAME} needs --trace FILE, with one block id a line, as text or gzip"),
        (false, Some(_)) => bail!("--trace is for the workload {NAME}"),
        (true, Some(_)) => {
            ensure!(options.name.len() == 1, "{NAME} measures no mount; run it without other workloads");
            Ok(true)
        }
        (false, None) => Ok(false),
    }
}

/// Builds the program and runs it.
pub(super) fn run(options: &BenchOptions) -> Result<()> {
    let trace = options.trace.as_ref().context("there is a trace")?;
    let mut arguments: Vec<OsString> = vec!["--trace".into(), trace.into()];
    if let Some(sizes) = &options.sizes {
        arguments.push(format!("--sizes={sizes}").into());
    }
    if let Some(json) = &options.json {
        arguments.extend(["--json".into(), json.into()]);
    }
    let program = cargo::build_example("hit_ratio")?;
    let mut child = Command::new(&program).args(arguments).spawn().context("cannot start the replay")?;
    let status = process::wait(&mut child)?;
    ensure!(status.success(), "the replay failed: {status}");
    Ok(())
}
