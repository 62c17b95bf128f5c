//! Where the real `weed` program is.

use std::env;
use std::path::{Path, PathBuf};

/// The `weed` program: `WEED_BIN`, else the first on `PATH`, else what `cargo xtask setup` keeps
/// in the target directory.
///
/// # Errors
/// When there is none; the text names `cargo xtask setup`.
pub fn find() -> anyhow::Result<PathBuf> {
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

/// Cargo's target directory: `CARGO_TARGET_DIR`, else `target` at the root of this workspace.
pub fn target_directory() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root.join(directory),
        None => root.join("target"),
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.is_file())
}
