//! Whether a place can be mounted on, and what to tell the user if not.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use super::mountinfo::MountInfo;
use super::unmount;
use crate::namespace::FilerFailure;

/// The file system type of our mounts in the kernel's table.
pub(crate) const FS_TYPE: &str = "fuse.interceptor";

/// Why a mount did not come about, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no such directory.
    #[error("mount point {} does not exist; create it: mkdir -p {}", path.display(), path.display())]
    Missing {
        /// The mount point.
        path: PathBuf,
    },
    /// Something else has that name.
    #[error("mount point {} is not a directory", path.display())]
    NotDirectory {
        /// The mount point.
        path: PathBuf,
    },
    /// Files are in it that a mount would hide.
    #[error("mount point {} is not empty; its content would be hidden: choose another or allow it with --nonempty", path.display())]
    NotEmpty {
        /// The mount point.
        path: PathBuf,
    },
    /// Something is mounted there.
    #[error("{source_name} ({fs_type}) is already mounted on {}; unmount it first: umount {}", path.display(), path.display())]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
        /// Its file system type.
        fs_type: String,
        /// What is mounted.
        source_name: String,
    },
    /// The process that served the mount is gone, the mount is not.
    #[error("a dead FUSE mount is left on {0}; remove it: umount -l {0} (fusermount3 -uz {0} if it is yours)", path.display())]
    Dead {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount point cannot be looked at.
    #[error("cannot use mount point {}: {source}", path.display())]
    Unusable {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel has no FUSE, or the container was not given it.
    #[error(
        "/dev/fuse does not exist; load the module (modprobe fuse), or give the container --device /dev/fuse"
    )]
    NoDevice,
    /// The device is there and may not be opened.
    #[error(
        "/dev/fuse cannot be opened: {0}; run as root or a member of its group, or give the container --device /dev/fuse"
    )]
    DeviceForbidden(io::Error),
    /// Not root, and there is no helper to mount for others.
    #[error(
        "mounting needs root (CAP_SYS_ADMIN) or the program fusermount3; run as root or install the package fuse3"
    )]
    NoPermission,
    /// Only root may.
    #[error("mounting needs root (CAP_SYS_ADMIN)")]
    NotPermitted,
    /// The helper refused.
    #[error("fusermount3 refused to mount on {}: {message}", path.display())]
    Helper {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// The kernel refused.
    #[error("cannot mount on {}: {source}", path.display())]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount was gone again at once.
    #[error("the mount on {} was removed while it was being made", path.display())]
    Vanished {
        /// The mount point.
        path: PathBuf,
    },
    /// The session with the kernel did not begin.
    #[error("the mount does not work: {0}")]
    Session(#[source] io::Error),
    /// The mount could not be removed.
    #[error("cannot unmount {}: {source}", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something is mounted over it, which is not ours to remove.
    #[error(
        "something else is mounted over {0}, so that this mount cannot be removed; it is dead now: umount {0}, twice",
        path.display()
    )]
    Covered {
        /// The mount point.
        path: PathBuf,
    },
    /// The filer has no such directory.
    #[error("the filer has no directory {path}; create it or choose another with --filer-path")]
    FilerPathMissing {
        /// The path on the filer.
        path: String,
    },
    /// The filer has a file there.
    #[error("{path} on the filer is not a directory; only directories can be mounted")]
    FilerPathNotDirectory {
        /// The path on the filer.
        path: String,
    },
    /// The filer did not answer.
    #[error("{0}")]
    Filer(FilerFailure),
}

/// Checks the mount point, and clears away what a process of ours that died left there. Returns its full path.
pub(crate) fn prepare(given: &Path, nonempty: bool) -> Result<PathBuf, MountError> {
    let unusable = |source| MountError::Unusable { path: given.into(), source };
    let path = match std::fs::canonicalize(given) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::Missing { path: given.into() });
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            let path = std::path::absolute(given).map_err(unusable)?;
            remove_dead(&path)?;
            std::fs::canonicalize(given).map_err(unusable)?
        }
        Err(error) => return Err(unusable(error)),
    };
    if is_dead(&path) {
        remove_dead(&path)?;
    }
    if !std::fs::metadata(&path).map_err(unusable)?.is_dir() {
        return Err(MountError::NotDirectory { path });
    }
    if nonempty {
        return Ok(path);
    }
    if let Some(mount) = MountInfo::topmost(&path) {
        let MountInfo { fs_type, source, .. } = mount;
        return Err(MountError::AlreadyMounted { path, fs_type, source_name: source });
    }
    match std::fs::read_dir(&path).map_err(unusable)?.next() {
        None => Ok(path),
        Some(_) => Err(MountError::NotEmpty { path }),
    }
}

/// Whether a mount is there whose daemon is gone. `statvfs` always has to ask the daemon, while the kernel may answer
/// `stat` from what it remembers. Without a mount of FUSE there it is not asked, so that another file system that hangs
/// does not matter here.
fn is_dead(path: &Path) -> bool {
    MountInfo::topmost(path).is_some_and(|mount| mount.fs_type.starts_with("fuse"))
        && statvfs(path).is_err_and(|error| error == Errno::ENOTCONN)
}

fn remove_dead(path: &Path) -> Result<(), MountError> {
    let ours = MountInfo::topmost(path).filter(|mount| mount.fs_type == FS_TYPE);
    let Some(dead) = ours else { return Err(MountError::Dead { path: path.into() }) };
    unmount::remove_dead(&dead).map_err(|source| MountError::Unmount { path: path.into(), source })?;
    tracing::warn!(path = %path.display(), "removed a mount that a process of ours left when it died");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfit_mount_points_are_named() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let check = |path: &Path| prepare(path, false);
        assert!(check(dir.path()).is_ok());
        assert!(matches!(check(&dir.path().join("none")), Err(MountError::Missing { .. })));
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("a file");
        assert!(matches!(check(&file), Err(MountError::NotDirectory { .. })));
        assert!(matches!(check(&file.join("below")), Err(MountError::Unusable { .. })));
        assert!(matches!(check(dir.path()), Err(MountError::NotEmpty { .. })));
        assert!(prepare(dir.path(), true).is_ok());
        assert!(matches!(check(Path::new("/proc")), Err(MountError::AlreadyMounted { .. })));
    }
}
