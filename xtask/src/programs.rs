//! Building the programs that run in the kernel.
//!
//! They are a binary of `interceptor-ebpf` for the BPF target, so they are built apart from
//! everything else, and before `interceptor`, whose build script takes them from
//! `target/ebpf/embedded`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ::tests::tools::target_directory;
use anyhow::{Context, Result};

use crate::process;
use crate::setup;

const TARGET: &str = "bpfel-unknown-none";
/// Also the profile of this name in Cargo.toml.
const PROFILE: &str = "bpf";
const PROGRAMS: &str = "interceptor-ebpf";

/// Builds the programs and puts them where they are embedded from. Without a compiler for them,
/// removes older ones from there.
pub(crate) fn build() -> Result<()> {
    let directory = target_directory().join("ebpf");
    let embedded = directory.join("embedded/programs.o");
    let Some(toolchain) = setup::bpf::find() else {
        // Nothing to remove is what it should be.
        let _ = fs::remove_file(&embedded);
        return Ok(());
    };
    // Flags of the user's are for the machine's own target.
    let flags = format!("--cfg=bpf_target_arch=\"{}\"\u{1f}-Clink-arg=--btf", std::env::consts::ARCH);
    let mut command = toolchain.cargo();
    command
        .args(["--quiet", "--package", PROGRAMS, "--bin", PROGRAMS, "--features", "programs"])
        .args(["--target", TARGET, "--profile", PROFILE, "--target-dir"])
        .arg(&directory)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    process::run(command.stdout(std::io::stderr())).context("cannot build the eBPF programs")?;
    embed(&directory.join(TARGET).join(PROFILE).join(PROGRAMS), &embedded)
}

/// Copies a file only if it is newer than the copy: an unchanged copy keeps its time, and Cargo
/// rebuilds nothing.
fn embed(built: &Path, embedded: &PathBuf) -> Result<()> {
    let time = |path: &Path| fs::metadata(path).and_then(|found| found.modified());
    let built_at = time(built).with_context(|| format!("there is no {}", built.display()))?;
    if time(embedded).unwrap_or(SystemTime::UNIX_EPOCH) < built_at {
        fs::create_dir_all(embedded.parent().context("it has a directory")?)?;
        fs::copy(built, embedded).with_context(|| format!("cannot write {}", embedded.display()))?;
    }
    Ok(())
}
