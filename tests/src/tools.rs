//! Where programs of others are that tests run: `weed`, a browser, suites for file systems.
//!
//! The build script uses this file too, so it needs nothing of the crate.

use std::env;
use std::path::{Path, PathBuf};

/// The `weed` program: `WEED_BIN`, else the first on `PATH`, else what `cargo xtask setup` keeps
/// in the target directory.
///
/// # Errors
/// When there is none; the text names `cargo xtask setup`.
pub fn weed() -> anyhow::Result<PathBuf> {
    if let Some(given) = env::var_os("WEED_BIN") {
        let path = PathBuf::from(given);
        anyhow::ensure!(path.is_file(), "WEED_BIN names {}, which is no file", path.display());
        return Ok(path);
    }
    if let Some(path) = on_path("weed") {
        return Ok(path);
    }
    let kept = target_directory().join("tools/weed");
    anyhow::ensure!(
        kept.is_file(),
        "no weed program: WEED_BIN is not set, PATH has none and {} does not exist; run `cargo xtask setup`",
        kept.display()
    );
    Ok(kept)
}

/// The browser, if there is one.
pub fn browser() -> Option<PathBuf> {
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(on_path)
}

/// A public test suite for file systems, `pjdfstest` or `fsx`, if `cargo xtask test` has built it.
pub fn posix_suite(name: &str) -> Option<PathBuf> {
    Some(target_directory().join("tools/suites/bin").join(name)).filter(|program| program.is_file())
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, else `target` at the root of this workspace.
pub fn target_directory() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root.join(directory),
        None => root.join("target"),
    }
}

/// The first program of this name on `PATH`.
pub fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.is_file())
}
