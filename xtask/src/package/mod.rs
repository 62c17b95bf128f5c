//! `cargo xtask package`: a deb, an rpm and a tar archive of the programs, with all that belongs to
//! them on a host.
//!
//! [`build`] makes the programs, eBPF included, for the C library of old distributions
//! ([`setup::zig`]), and takes their debug information apart. [`contents`] lists what is installed
//! where, once for all kinds of packages; [`notices`] and [`sbom`] tell what the programs are made
//! of. [`deb`], [`rpm`] and [`archive`] write that list in their formats. None of them needs a tool
//! of the distribution. [`trial`] does with them what an operator would.

mod archive;
mod build;
mod contents;
mod deb;
mod dependencies;
mod elf;
mod notices;
mod rpm;
mod sbom;
mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ::tests::tools::target_directory;
use anyhow::{Context, Result};

use self::build::BuiltPrograms;
use self::contents::PackageContents;
use self::dependencies::DependencyGraph;
use crate::progress::size;
use crate::{interrupt, process, setup};

/// What the verb takes.
#[derive(clap::Args)]
pub(crate) struct PackageOptions {
    /// Link with the C library of this host instead of an older one: the packages then need a
    /// distribution as new as this
    #[arg(long)]
    host_libc: bool,

    /// Then try them: install the deb in clean trees of Debian 12 and 13, boot these with systemd,
    /// mount by fstab and by units, and have rpm install the rpm. Takes root, and brings
    /// debootstrap and systemd-nspawn
    #[arg(long = "try")]
    tries: bool,
}

/// What every package says of itself.
pub(crate) struct PackageIdentity {
    version: String,
    /// Of the commit, in seconds after 1970: the same sources make the same packages.
    time: u64,
}

const NAME: &str = "interceptor";
const SUMMARY: &str = "Fast, transparent reads of SeaweedFS through a mount";
const DESCRIPTION: &str = "interceptor mounts a directory of a SeaweedFS filer read-only and makes reads of it fast. \
                           It keeps what is read in memory, fetches ahead of readers, and hands hot files to the \
                           kernel. It can also be put over a mount that exists. rdma-engine runs beside a volume \
                           server and serves its needles by RDMA, over TCP and to processes of its host.";
const MAINTAINER: &str = "interceptor developers <interceptor@localhost>";

/// The verb.
pub(crate) fn command(options: &PackageOptions) -> Result<()> {
    let started = Instant::now();
    setup::ensure()?;
    let zig = if options.host_libc { None } else { Some(setup::zig::ensure()?) };
    let programs = build::command(zig.as_ref())?;
    interrupt::check()?;
    let built = started.elapsed();
    let written = write(&programs)?;
    println!();
    for program in &programs.all {
        let stripped = fs::metadata(&program.stripped)?.len();
        let (libc, libraries) = (&program.needs.libc, program.needs.libraries.join(", "));
        println!("{:<44} {:>9}   glibc {libc}; {libraries}", program.name, size(stripped));
    }
    for path in &written {
        println!(
            "{:<44} {:>9}",
            path.file_name().unwrap_or_default().to_string_lossy(),
            size(fs::metadata(path)?.len())
        );
    }
    let (building, all) = (built.as_secs(), started.elapsed().as_secs());
    println!("in {} ({building} s to build, {all} s in all)", directory().display());
    if options.tries {
        trial::run(&written[0], &written[1])?;
    }
    Ok(())
}

/// Where packages are left.
fn directory() -> PathBuf {
    target_directory().join("package")
}

/// Writes all packages; returns their paths.
fn write(programs: &BuiltPrograms) -> Result<Vec<PathBuf>> {
    let identity = PackageIdentity { version: env!("CARGO_PKG_VERSION").to_owned(), time: commit_time() };
    let dependencies = DependencyGraph::read()?;
    let contents = PackageContents::collect(programs, &dependencies, &identity)?;
    let debug = PackageContents::of_debug_information(programs)?;
    let (name, version) = (NAME, &identity.version);
    let written = [
        (format!("{name}_{version}-1_amd64.deb"), deb::package(&contents, &identity, &programs.libc())?),
        (format!("{name}-{version}-1.x86_64.rpm"), rpm::package(&contents, &identity, &programs.libc())?),
        (format!("{name}-{version}-linux-x86_64.tar.gz"), archive::package(&contents, &identity)?),
        (format!("{name}-{version}-linux-x86_64-debug.tar.gz"), archive::package(&debug, &identity)?),
        (format!("{name}-{version}.cdx.json"), sbom::document(&dependencies, &identity)?.into_bytes()),
    ];
    let mut paths = Vec::new();
    for (file, bytes) in written {
        let path = directory().join(file);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        paths.push(path);
    }
    show(&paths[0])?;
    Ok(paths)
}

/// Lists what is in the deb, by the distribution's own tool if there is one: a package that it
/// cannot read is an error.
fn show(package: &Path) -> Result<()> {
    if !process::succeeds("dpkg-deb", &["--version"]) {
        return Ok(());
    }
    process::run(std::process::Command::new("dpkg-deb").arg("--contents").arg(package))
}

/// When the commit was made; 0 if git does not tell.
fn commit_time() -> u64 {
    crate::cargo::git(&["log", "-1", "--format=%ct"]).and_then(|text| text.parse().ok()).unwrap_or(0)
}
