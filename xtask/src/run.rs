//! `cargo xtask run`: a SeaweedFS with sample data and an engine beside it, mounted; or the built
//! program against another cluster.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::dataset::{self, SampleSizes};
use crate::interrupt::{self, Interrupted, POLL_INTERVAL};
use crate::stage::{CACHE_MIB, Stage};
use crate::{cargo, setup, smoke};

/// What the verb takes.
#[derive(clap::Args)]
pub(crate) struct RunOptions {
    /// Read everything twice with checksums, print where the bytes came from, and end
    #[arg(long, conflicts_with = "command")]
    smoke: bool,
    /// Run the built `interceptor` with these arguments instead: `-- mount --filer HOST:8888
    /// /mnt/data`
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// The verb.
pub(crate) fn command(options: &RunOptions) -> Result<()> {
    setup::ensure()?;
    let program = cargo::build_interceptor()?;
    interrupt::check()?;
    if !options.command.is_empty() {
        let failure = Command::new(&program).args(&options.command).exec();
        return Err(failure).with_context(|| format!("cannot start {}", program.display()));
    }

    let mut stage = Stage::open("run")?;
    let outcome = show(&mut stage, options.smoke);
    let stopped_by_user = outcome.as_ref().is_err_and(|error| error.is::<Interrupted>()) && !options.smoke;
    eprintln!("stopping SeaweedFS and removing its data");
    stage.close()?;
    if stopped_by_user { Ok(()) } else { outcome }
}

fn show(stage: &mut Stage, smoke: bool) -> Result<()> {
    let sizes = if smoke {
        SampleSizes { large: 256 << 20, small: 2000 }
    } else {
        SampleSizes { large: 1 << 30, small: 3000 }
    };
    let written = dataset::write(stage, &sizes)?;
    let mut mount = stage.interceptor(None, dataset::ROOT, CACHE_MIB, "auto", &[])?;
    if smoke {
        return smoke::read_twice(&mount, written);
    }
    println!();
    println!("mount    {}", mount.path().display());
    for engine in stage.cluster.engines() {
        println!("engine   {}, {}/metrics", engine.address(), engine.status_url());
    }
    println!("filer    http://{}{}/", stage.cluster.filer_addresses(), dataset::ROOT);
    println!("status   {}/", mount.status_url().unwrap_or("none"));
    println!("data     {}", stage.directory().display());
    println!();
    println!("Ctrl-C unmounts, stops SeaweedFS and removes its data.");
    while mount.is_running() {
        interrupt::check()?;
        thread::sleep(POLL_INTERVAL);
    }
    bail!("interceptor has ended:\n{}", mount.log()?)
}
