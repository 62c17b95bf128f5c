//! Checks of the mount point before mounting.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use super::error::MountError;
use super::mountinfo::MountInfo;
use super::unmount;

/// The file system type of our mounts in the mount table.
pub(crate) const FS_TYPE: &str = "fuse.interceptor";

/// Checks the mount point, and removes a dead mount that a process of ours left there. Returns its
/// full path.
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
    // What waits for something to be mounted there (`x-systemd.automount`) is no obstacle.
    if let Some(mount) = MountInfo::topmost(&path).filter(|mount| mount.fs_type != "autofs") {
        let MountInfo { fs_type, source, .. } = mount;
        return Err(MountError::AlreadyMounted { path, fs_type, source_name: source });
    }
    match std::fs::read_dir(&path).map_err(unusable)?.next() {
        None => Ok(path),
        Some(_) => Err(MountError::NotEmpty { path }),
    }
}

/// Whether a mount is there whose daemon is gone. `statvfs` always asks the daemon, while the
/// kernel may answer `stat` from its caches. Other file systems than FUSE are not asked, since one
/// that hangs does not matter here.
fn is_dead(path: &Path) -> bool {
    MountInfo::topmost(path).is_some_and(|mount| mount.fs_type.starts_with("fuse"))
        && statvfs(path).is_err_and(|error| error == Errno::ENOTCONN)
}

/// Removes a mount of ours that nothing serves.
pub(super) fn remove_if_dead(path: &Path) {
    if is_dead(path)
        && let Err(error) = remove_dead(path)
    {
        tracing::warn!(%error, "a dead mount is left");
    }
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
    fn unsuitable_mount_points_are_refused_with_the_reason() {
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
