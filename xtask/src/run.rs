//! `cargo xtask run`: a SeaweedFS with sample data, mounted; or the built program against one's own cluster.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::dataset::{self, Sizes};
use crate::interrupt::{self, Interrupted};
use crate::mount::{Mounted, status_address, stay};
use crate::workplace::Workplace;
use crate::{cargo, setup, smoke};

/// What the verb takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Read everything twice with checksums, print where the bytes came from, and end
    #[arg(long, conflicts_with = "command")]
    smoke: bool,
    /// Run the built `interceptor` with these arguments instead: `-- mount --filer HOST:8888 /mnt/data`
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// The verb.
pub(crate) fn command(options: &Options) -> Result<()> {
    let prepared = setup::ensure()?;
    let program = cargo::build_interceptor()?;
    interrupt::check()?;
    if !options.command.is_empty() {
        let failure = Command::new(&program).args(&options.command).exec();
        return Err(failure).with_context(|| format!("cannot start {}", program.display()));
    }

    let mut place = Workplace::open("run")?;
    let outcome = show(&mut place, &program, &prepared.weed, options.smoke);
    let stopped_by_user = outcome.as_ref().is_err_and(|error| error.is::<Interrupted>()) && !options.smoke;
    eprintln!("unmounting, stopping the cluster, removing its data");
    place.close()?;
    if stopped_by_user { Ok(()) } else { outcome }
}

fn show(place: &mut Workplace, program: &Path, weed: &Path, smoke: bool) -> Result<()> {
    let sizes =
        if smoke { Sizes { large: 256 << 20, small: 2000 } } else { Sizes { large: 1 << 30, small: 3000 } };
    eprintln!("starting SeaweedFS");
    let cluster = Cluster::start(place, weed)?;
    let written = dataset::write(place, weed, &cluster.filer, &sizes)?;
    let status = status_address()?;
    let mut mounted = Mounted::interceptor(place, program, &cluster.filer, dataset::ROOT, &status)?;
    if smoke {
        return smoke::read_twice(&mounted, &status, written);
    }
    println!();
    println!("mount    {}", mounted.root.display());
    println!("filer    http://{}{}/", cluster.filer, dataset::ROOT);
    println!("status   http://{status}/");
    println!("logs     {}", place.directory().display());
    println!();
    println!("Ctrl-C unmounts, stops the cluster and removes its data.");
    stay(&mut mounted, place)
}
