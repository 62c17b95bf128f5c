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
use anyhow::{Context, Result, ensure};

use self::build::BuiltPrograms;
use self::contents::PackageContents;
use self::dependencies::DependencyGraph;
use crate::progress::size;
use crate::setup::zig::Architecture;
use crate::{interrupt, process, setup};

/// What the verb takes.
#[derive(clap::Args)]
pub(crate) struct PackageOptions {
    /// What to build for; several are separated by commas
    #[arg(long = "arch", value_name = "ARCH", value_delimiter = ',', default_value = Architecture::of_host().debian())]
    architectures: Vec<Architecture>,

    /// Link with the C library of this host instead of an older one: the packages then need a
    /// distribution as new as this
    #[arg(long, conflicts_with = "architectures")]
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
    architecture: Architecture,
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
    if options.tries {
        ensure!(nix::unistd::geteuid().is_root(), "--try takes root: it boots containers");
        let is_built = options.architectures.iter().any(|architecture| architecture.is_own());
        ensure!(is_built, "--try takes packages for this host: leave --arch out");
    }
    setup::ensure()?;
    // Nothing of an earlier version stays.
    let _ = fs::remove_dir_all(directory());
    let mut own = None;
    for &architecture in &options.architectures {
        let zig = if options.host_libc { None } else { Some(setup::zig::ensure(architecture)?) };
        let programs = build::command(zig.as_ref(), architecture)?;
        interrupt::check()?;
        let written = write(&programs, architecture)?;
        print_sizes(&programs, &written)?;
        own = architecture.is_own().then_some(written).or(own);
    }
    println!("in {} ({} s)", directory().display(), started.elapsed().as_secs());
    if options.tries {
        let own = own.context("no package is for this host")?;
        trial::run(&own[0], &own[1])?;
    }
    Ok(())
}

fn print_sizes(programs: &BuiltPrograms, written: &[PathBuf]) -> Result<()> {
    println!();
    for program in &programs.all {
        let stripped = fs::metadata(&program.stripped)?.len();
        let (libc, libraries) = (&program.needs.libc, program.needs.libraries.join(", "));
        println!("{:<45} {:>9}   glibc {libc}; {libraries}", program.name, size(stripped));
    }
    for path in written {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        println!("{name:<45} {:>9}", size(fs::metadata(path)?.len()));
    }
    Ok(())
}

/// Where packages are left.
fn directory() -> PathBuf {
    target_directory().join("package")
}

/// Writes all packages; returns their paths.
fn write(programs: &BuiltPrograms, architecture: Architecture) -> Result<Vec<PathBuf>> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let identity = PackageIdentity { version, time: commit_time(), architecture };
    let dependencies = DependencyGraph::read(architecture)?;
    let contents = PackageContents::collect(programs, &dependencies, &identity)?;
    let debug = PackageContents::of_debug_information(programs)?;
    let (name, version) = (NAME, &identity.version);
    let (debian, machine) = (architecture.debian(), architecture.machine());
    let written = [
        (format!("{name}_{version}-1_{debian}.deb"), deb::package(&contents, &identity, &programs.libc())?),
        (format!("{name}-{version}-1.{machine}.rpm"), rpm::package(&contents, &identity, &programs.libc())?),
        (format!("{name}-{version}-linux-{machine}.tar.gz"), archive::package(&contents, &identity)?),
        (format!("{name}-{version}-linux-{machine}-debug.tar.gz"), archive::package(&debug, &identity)?),
        (
            format!("{name}-{version}-{machine}.cdx.json"),
            sbom::document(&dependencies, &identity)?.into_bytes(),
        ),
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
