//! Where the source and the build output lie.

use std::path::{Path, PathBuf};

/// The top of the source tree.
pub(crate) fn root() -> PathBuf {
    // Cargo says it when it runs us; the path of the compilation serves a binary that is started by hand.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// The directory that Cargo builds into; everything that a verb writes goes below it.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(named) => root().join(named),
        None => root().join("target"),
    }
}
