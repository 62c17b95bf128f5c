//! Unmounting.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::error::MountError;
use super::mountinfo::{MountInfo, MountTable};

/// Unmounts, even if the mount was moved; detaches it if files are open. Opens no descriptor if
/// the process itself may unmount.
pub(crate) fn unmount(at: &MountInfo, table: &MountTable) -> Result<(), MountError> {
    let found = table.find(at).map_err(|source| MountError::Unmount { path: at.path.clone(), source })?;
    // It has been unmounted by another process.
    let Some((at, is_topmost)) = found else { return Ok(()) };
    if !is_topmost {
        return Err(MountError::Covered { path: at.path });
    }
    let failed = |source: io::Error| MountError::Unmount { path: at.path.clone(), source };
    match umount2(&at.path, MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: another process has unmounted it since.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(Errno::EBUSY) => {
            tracing::info!(path = %at.path.display(), "files are open; detaching the mount");
            umount2(&at.path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
                .map_err(|errno| failed(errno.into()))
        }
        Err(Errno::EPERM) => fusermount(&at).map_err(failed),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Detaches the mount if it is the topmost at its path, and ignores failures. A mount that comes
/// to the path meanwhile is left alone.
pub(crate) fn detach(at: &MountInfo) {
    let detached = match at.open_root() {
        Ok(Some(root)) => detach_by_root(&root),
        Ok(None) => return,
        // Without a descriptor only the path names the mount.
        Err(_) if at.is_topmost() => umount2(&at.path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH),
        Err(_) => return,
    };
    if detached == Err(Errno::EPERM) && at.is_topmost() {
        let _ = fusermount(at);
    }
}

/// Removes a mount that was just found at its path and that nothing serves. Opens no descriptor if
/// the process itself may unmount.
pub(crate) fn remove_dead(at: &MountInfo) -> io::Result<()> {
    match umount2(&at.path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
        Err(Errno::EPERM) => fusermount(at),
        done => Ok(done?),
    }
}

/// Detaches the mount with this root (`O_PATH`), and what is mounted on it. `EINVAL` if it is not
/// mounted.
pub(crate) fn detach_by_root(root: &OwnedFd) -> nix::Result<()> {
    umount2(&PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())), MntFlags::MNT_DETACH)
}

/// Unmounts by `fusermount3`, as users other than root have to.
fn fusermount(at: &MountInfo) -> io::Result<()> {
    let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(&at.path).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Aborts the connection: requests in flight fail with ECONNABORTED, later ones with ENOTCONN.
pub(crate) fn abort(at: &MountInfo) {
    let Some((_, minor)) = at.device.split_once(':') else { return };
    let control = format!("/sys/fs/fuse/connections/{minor}/abort");
    if let Err(error) = std::fs::write(&control, "1") {
        tracing::debug!(control, %error, "cannot abort the connection; it ends with the process");
    }
}
