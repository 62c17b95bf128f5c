//! A directory of this container's own, on which the real mount of a volume is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::mkdtemp;

use crate::fuse::mountinfo::MountInfo;
use crate::fuse::unmount;

/// Where the directories are. In the container of a mount service it is not shared with the host,
/// so that what is mounted below goes with the container.
const DIRECTORY: &str = "/run/interceptor/volumes";

/// A new directory. When it is dropped, what is mounted there is unmounted.
pub(super) struct PrivateMountPoint(PathBuf);

impl PrivateMountPoint {
    pub(super) fn new() -> anyhow::Result<Self> {
        let make = || -> anyhow::Result<PathBuf> {
            fs::create_dir_all(DIRECTORY)?;
            Ok(mkdtemp(&Path::new(DIRECTORY).join("XXXXXX"))?)
        };
        make().map(Self).with_context(|| format!("cannot make a directory in {DIRECTORY}"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateMountPoint {
    fn drop(&mut self) {
        while let Some(mount) = MountInfo::topmost(&self.0) {
            if let Err(error) = unmount::remove_dead(&mount) {
                tracing::warn!(%error, "{} stays mounted", self.0.display());
                return;
            }
        }
        let _ = fs::remove_dir(&self.0);
    }
}
