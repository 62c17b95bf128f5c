//! The programs of a package: built with the eBPF programs in them, and their debug information
//! taken apart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::elf::Needs;
use crate::setup::host::ARM64_LIBC;
use crate::setup::zig::{Architecture, Zig};
use crate::{cargo, process, programs};

/// The oldest C library that is supported, by zig's linker: that of Debian 11 and Ubuntu 20.04.
const OLDEST_LIBC: &str = "2.31";

/// The programs in a package.
const PROGRAMS: [&str; 2] = ["interceptor", "rdma-engine"];

/// A program, in two parts.
pub(super) struct BuiltProgram {
    pub(super) name: &'static str,
    /// Without debug information, and with the name of the file that has it.
    pub(super) stripped: PathBuf,
    /// The debug information.
    pub(super) debug: PathBuf,
    pub(super) needs: Needs,
}

/// All programs, and what they write of themselves.
pub(super) struct BuiltPrograms {
    pub(super) all: Vec<BuiltProgram>,
    /// Manual pages and completions, in `man`, `bash`, `zsh` and `fish`.
    pub(super) documents: PathBuf,
}

impl BuiltPrograms {
    /// The version of the C library that all of them run with.
    pub(super) fn libc(&self) -> String {
        let newest = self.all.iter().map(|program| &program.needs.libc).max();
        newest.map_or_else(String::new, ToString::to_string)
    }
}

/// Builds them, with `zig` for the old C library. What they write of themselves is written by them,
/// those for another architecture in an emulator.
pub(super) fn command(zig: Option<&Zig>, architecture: Architecture) -> Result<BuiltPrograms> {
    programs::build()?;
    let directory = super::directory().join(architecture.machine());
    let documents = directory.join("documents");
    fs::create_dir_all(&documents).with_context(|| format!("cannot create {}", documents.display()))?;
    // Apart from other builds, whose results another linker and compiler of C would replace.
    let target_directory = ::tests::tools::target_directory().join("package-build");
    let (mut command, target) = match zig {
        Some(zig) => (zig.cargo()?, format!("{}.{OLDEST_LIBC}", architecture.target())),
        None => {
            let mut command = cargo::cargo();
            command.arg("build");
            (command, architecture.target().to_owned())
        }
    };
    command.args(arguments()).args(["--target", &target, "--target-dir"]).arg(&target_directory);
    process::run(command.stdout(std::io::stderr()))?;
    let built = target_directory.join(architecture.target()).join("release");
    let take_apart = |name| take_apart(&built, name, &directory, architecture);
    let all: Vec<_> = PROGRAMS.into_iter().map(take_apart).collect::<Result<_>>()?;
    for program in &all {
        process::run(runner(&program.stripped, architecture).arg("documents").arg(&documents))?;
    }
    Ok(BuiltPrograms { all, documents })
}

/// The command that runs a program for `architecture` on this host.
fn runner(program: &Path, architecture: Architecture) -> Command {
    if architecture.is_own() {
        return Command::new(program);
    }
    let mut command = Command::new("qemu-aarch64-static");
    command.args(["-L", ARM64_LIBC]).arg(program);
    command
}

fn arguments() -> impl Iterator<Item = &'static str> {
    let packages = PROGRAMS.into_iter().flat_map(|name| ["--package", name]);
    ["--release", "--locked", "--bins"].into_iter().chain(packages)
}

/// Separates debug information from a program, as distributions do.
fn take_apart(
    built: &Path,
    name: &'static str,
    directory: &Path,
    architecture: Architecture,
) -> Result<BuiltProgram> {
    let (whole, stripped) = (built.join(name), directory.join(name));
    let debug = directory.join(format!("{name}.debug"));
    let tool = if architecture.is_own() { "objcopy" } else { "aarch64-linux-gnu-objcopy" };
    let objcopy = || Command::new(tool);
    process::run(objcopy().arg("--only-keep-debug").arg("--compress-debug-sections").args([&whole, &debug]))?;
    let link = format!("--add-gnu-debuglink={}", debug.display());
    process::run(objcopy().args(["--strip-all", &link]).args([&whole, &stripped]))?;
    let needs =
        Needs::of(&fs::read(&stripped)?).with_context(|| format!("cannot read the program {name}"))?;
    Ok(BuiltProgram { name, stripped, debug, needs })
}
