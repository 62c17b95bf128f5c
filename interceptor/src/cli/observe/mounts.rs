//! The FUSE mounts of this host, from the kernel's table: a call on the mount itself could wait
//! for its daemon.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::ebpf::DeviceNumber;
use crate::fuse::mountinfo::MountInfo;
use crate::fuse::mountpoint;
use crate::overlay;

/// A FUSE mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FuseMount {
    /// The kernel's number for the place, which `/proc/PID/fdinfo` uses too.
    pub(super) id: u64,
    pub(super) path: PathBuf,
    pub(super) device: DeviceNumber,
    /// Whether its daemon is an `interceptor`.
    pub(super) is_ours: bool,
}

/// Those mounted at `paths`; all of them without any.
pub(super) fn find(paths: &[PathBuf]) -> anyhow::Result<Vec<FuseMount>> {
    if paths.is_empty() {
        let table = MountInfo::all().context("cannot see what is mounted")?;
        let all: Vec<FuseMount> = table.into_iter().filter_map(fuse_mount).collect();
        if all.is_empty() {
            bail!("there is no FUSE mount on this host");
        }
        return Ok(all);
    }
    let named = |path: &PathBuf| at(path).with_context(|| format!("no FUSE mount at {}", path.display()));
    paths.iter().map(named).collect()
}

fn at(path: &Path) -> Option<FuseMount> {
    let topmost = |path: &Path| MountInfo::topmost(path).and_then(fuse_mount);
    // A path that is no mount point itself may be a link to one.
    topmost(&std::path::absolute(path).ok()?).or_else(|| topmost(&path.canonicalize().ok()?))
}

fn fuse_mount(mount: MountInfo) -> Option<FuseMount> {
    let kind = mount.fs_type.as_str();
    let is_fuse = kind == "fuse" || kind == "fuseblk" || kind.starts_with("fuse.");
    let is_ours = kind == mountpoint::FS_TYPE || kind == overlay::FS_TYPE;
    let device = DeviceNumber::parse(&mount.device)?;
    is_fuse.then_some(FuseMount { id: mount.id, path: mount.path, device, is_ours })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuse_mounts_are_told_from_others() {
        let mounted = |fs_type: &str| MountInfo {
            id: 123,
            parent: 30,
            path: "/mnt/data".into(),
            root: "/".into(),
            device: "0:57".into(),
            fs_type: fs_type.into(),
            source: "src".into(),
            options: Vec::new(),
            super_options: Vec::new(),
        };
        let mount = fuse_mount(mounted("fuse.weed")).unwrap();
        assert_eq!((mount.id, mount.device, mount.is_ours), (123, DeviceNumber::new(0, 57), false));
        assert!(fuse_mount(mounted("fuse")).is_some());
        for ours in ["fuse.interceptor", "fuse.interceptor-attach"] {
            assert!(fuse_mount(mounted(ours)).unwrap().is_ours, "{ours}");
        }
        assert_eq!(fuse_mount(mounted("fusectl")), None);
        assert_eq!(fuse_mount(mounted("ext4")), None);
    }
}
