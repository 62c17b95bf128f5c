//! The compiler of the programs that run in the kernel: a Rust that knows the BPF target, and
//! `bpf-linker`.
//!
//! Debian packages such a Rust (`rustc-web` with `libstd-rust-web-dev-bpf`), which is installed
//! where that is possible. Elsewhere a nightly toolchain of rustup with `rust-src` is used if
//! there is one. Without either, everything is built but the programs: `interceptor` then works
//! without eBPF and says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use ::tests::tools::target_directory;
use anyhow::{Context, Result};

use super::host;
use crate::process;

const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.10.3";

/// Debian's compiler, and what it has for the BPF target.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_TARGET: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// A way to compile the programs.
#[derive(Debug)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

#[derive(Debug, Clone, Copy)]
enum Compiler {
    /// Has a `core` for the target.
    Debian,
    /// Compiles `core` along with the programs.
    Nightly,
}

/// What there is.
pub(crate) fn find() -> Option<Toolchain> {
    Some(Toolchain { compiler: find_compiler()?, linker: find_linker()? })
}

/// What there is, brought if need be. Says what will be lacking if it cannot be brought.
pub(super) fn ensure() {
    if find().is_some() {
        return;
    }
    if let Err(error) = bring() {
        eprintln!("setup: {error:#}; going on without the eBPF programs");
    }
}

fn bring() -> Result<()> {
    if find_compiler().is_none() {
        host::install(&DEBIAN_PACKAGES)
            .context("there is no compiler for BPF (another is: rustup toolchain install nightly --component rust-src)")?;
        find_compiler().context("Debian's compiler does not know BPF")?;
    }
    if find_linker().is_none() {
        eprintln!("setup: building {LINKER} {LINKER_VERSION}, which takes a few minutes");
        let mut install = crate::cargo::cargo();
        install.args(["install", "--quiet", "--locked", LINKER, "--version", LINKER_VERSION, "--root"]);
        process::run(install.arg(kept_linker()).stdout(std::io::stderr()))?;
    }
    Ok(())
}

impl Toolchain {
    /// The Cargo command that builds for the BPF target, as far as the toolchain is concerned.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = match self.compiler {
            Compiler::Debian => {
                let mut command = crate::cargo::cargo();
                // aya's crate uses assembler, which is not stable for this target.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "aya_ebpf").arg("build");
                command
            }
            Compiler::Nightly => {
                let mut command = Command::new("rustup");
                command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
                command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
                command.env_remove("RUSTC");
                command
            }
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories =
            self.linker.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
        // Joining fails only for a path with a colon in it; then PATH alone decides which linker
        // is found.
        command.env("PATH", std::env::join_paths(directories).unwrap_or(path.clone()));
        command
    }
}

/// One line on what there is.
pub(super) fn report() -> String {
    match find() {
        Some(Toolchain { compiler: Compiler::Debian, .. }) => format!("{DEBIAN_RUSTC}, {LINKER}"),
        Some(Toolchain { compiler: Compiler::Nightly, .. }) => format!("rustup nightly, {LINKER}"),
        None => "none: eBPF is left out".to_owned(),
    }
}

fn find_compiler() -> Option<Compiler> {
    if Path::new(DEBIAN_RUSTC).exists() && Path::new(DEBIAN_TARGET).exists() {
        return Some(Compiler::Debian);
    }
    let output =
        Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
    let sources = sysroot.join("lib/rustlib/src/rust/library/core");
    (output.status.success() && sources.exists()).then_some(Compiler::Nightly)
}

fn find_linker() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = [kept_linker().join("bin")].into_iter().chain(std::env::split_paths(&path));
    directories.map(|directory| directory.join(LINKER)).find(|program| program.is_file())
}

/// Where setup installs the linker.
fn kept_linker() -> PathBuf {
    target_directory().join("tools/bpf-linker")
}
