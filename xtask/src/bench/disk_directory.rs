//! Where the disk caches of the mounts under test are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// How much either mount may keep on disk, MiB.
const DISK_MIB: u64 = 8192;

/// The directories of one repetition.
#[derive(Debug, Clone)]
pub(super) struct DiskDirectory(PathBuf);

impl DiskDirectory {
    /// Makes empty ones below `parent`.
    pub(super) fn new(parent: &Path) -> Result<Self> {
        let path = parent.join("disk");
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let directory = Self(path);
        for path in [directory.cache(), directory.copies()] {
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(directory)
    }

    /// What `interceptor mount` is given.
    pub(super) fn options(&self) -> Vec<String> {
        vec![format!("--disk-cache={}", self.cache().display()), format!("--disk-cache-size={DISK_MIB}MiB")]
    }

    /// What `weed mount` is given.
    pub(super) fn weed_options(&self) -> Vec<String> {
        vec![format!("-cacheDir={}", self.cache().display()), format!("-cacheCapacityMB={DISK_MIB}")]
    }

    /// All of it.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// The same files, to be read directly.
    pub(super) fn copies(&self) -> PathBuf {
        self.0.join("copies")
    }
}
