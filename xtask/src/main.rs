//! `cargo xtask`: prepare a machine, build, run, test and measure.
//!
//! A file per verb: [`setup`], [`build`], [`package`], [`run`] (with [`smoke`]), [`test`],
//! [`fuzz`], [`rooms`], [`screenshots`], [`bench`], [`vm`]. Beneath them:
//!
//! * [`workplace`] owns what a verb starts, and cleans up after it, also after a crash;
//! * [`stage`] is a cluster in a workplace, made of the fixtures of the end-to-end tests;
//! * [`dataset`] and [`upload`] write data that can be checked;
//! * [`programs`] builds the eBPF programs;
//! * [`interrupt`] turns Ctrl-C into an ordinary error, so that every verb unwinds.

mod bench;
mod build;
mod cargo;
mod dataset;
mod fuzz;
mod interrupt;
mod package;
mod process;
mod programs;
mod progress;
mod rooms;
mod run;
mod screenshots;
mod setup;
mod smoke;
mod stage;
mod test;
mod upload;
mod vm;
mod workplace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Prepare this machine, build, run, test and measure interceptor.
///
/// Every verb first prepares what it needs, so on a fresh machine any of them may be the first.
/// All of them end cleanly on Ctrl-C: no process, no mount and no data stays behind, and what a
/// crash left is removed by the next run. Everything is kept below target/.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask run                                       sample data, mounted, until Ctrl-C
  cargo xtask run --smoke                               the same, checked byte by byte
  cargo xtask run -- mount --filer HOST:8888 /mnt/data  mount your own cluster
  cargo xtask package                                   packages in target/package
  cargo xtask test                                      all tests
  cargo xtask test --no-e2e volume                      fast tests named so
  cargo xtask fuzz --minutes 120                        raw FUSE requests, for two hours
  cargo xtask bench seq-cold small-cold --reps 3        some rows, next to `weed mount`
  cargo xtask bench --json bench.json                   all rows, all repetitions
  cargo xtask bench ebpf                                the programs' cost, and the same load with and without
  cargo xtask bench hit-ratio --trace ids.gz            the cache's miss ratios on a recorded load
  cargo xtask vm -- rdma link                           a command in a guest with a soft-RoCE device

Environment:
  WEED_BIN          the weed program to use instead of the one on PATH or the pinned build
  INTERCEPTOR_BIN   for screenshots, the interceptor program to show instead of the one that is built";

#[derive(Subcommand)]
enum Verb {
    /// Find or install what building and running need, and say what there is
    Setup,
    /// Build the programs that operators run, eBPF included
    Build,
    /// Make a deb, an rpm and a tar archive of them, with manual pages, completions and units
    Package(package::PackageOptions),
    /// Start a local SeaweedFS with sample data and mount it; or run the built program
    Run(run::RunOptions),
    /// Run every tier of tests and sum up
    Test(test::TestOptions),
    /// Try both file systems with made-up requests of the kernel, for as long as is wanted
    Fuzz(fuzz::FuzzOptions),
    /// Check that no files import from each other in a circle, and that rooms use only those below
    Rooms,
    /// Make the pictures of the dashboard and of `interceptor top` in doc/screenshots
    Screenshots,
    /// Measure reads side by side with `weed mount`
    Bench(bench::BenchOptions),
    /// Run a program of this host in a virtual machine with soft-RoCE
    Vm(vm::VmOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = interrupt::install().and_then(|()| match &arguments.verb {
        Verb::Setup => setup::command().map(|()| ExitCode::SUCCESS),
        Verb::Build => build::command().map(|()| ExitCode::SUCCESS),
        Verb::Package(options) => package::command(options).map(|()| ExitCode::SUCCESS),
        Verb::Run(options) => run::command(options).map(|()| ExitCode::SUCCESS),
        Verb::Test(options) => test::command(options).map(|()| ExitCode::SUCCESS),
        Verb::Fuzz(options) => fuzz::command(options).map(|()| ExitCode::SUCCESS),
        Verb::Rooms => rooms::command().map(|()| ExitCode::SUCCESS),
        Verb::Screenshots => screenshots::command().map(|()| ExitCode::SUCCESS),
        Verb::Bench(options) => bench::command(options).map(|()| ExitCode::SUCCESS),
        Verb::Vm(options) => vm::command(options, test::in_guests).map(ExitCode::from),
    });
    match outcome {
        Ok(code) => code,
        Err(error) if error.is::<interrupt::Interrupted>() => {
            eprintln!("interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
