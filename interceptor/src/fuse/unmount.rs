//! Taking a mount away.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::error::MountError;
use super::mountinfo::{MountInfo, MountTable};

/// Unmounts, wherever the mount is by now; detaches if files are open. Takes no descriptor where the process may unmount by itself.
pub(crate) fn unmount(at: &MountInfo, table: &MountTable) -> Result<(), MountError> {
    let found = table.find(at).map_err(|source| MountError::Unmount { path: at.path.clone(), source })?;
    // Someone else was faster.
    let Some((at, is_seen)) = found else { return Ok(()) };
    if !is_seen {
        return Err(MountError::Covered { path: at.path });
    }
    let failed = |source: io::Error| MountError::Unmount { path: at.path.clone(), source };
    match umount2(&at.path, MntFlags::UMOUNT_NOFOLLOW) {
        // Someone else was faster.
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

/// Takes the mount out of sight, as far as that is possible, and says nothing. Another that comes to its place meanwhile is left alone.
pub(crate) fn detach(at: &MountInfo) {
    let detached = match at.open_root() {
        Ok(Some(root)) => detach_by_root(&root),
        Ok(None) => return,
        // There may be no descriptor left; then it goes by the path.
        Err(_) if at.is_topmost() => umount2(&at.path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH),
        Err(_) => return,
    };
    if detached == Err(Errno::EPERM) && at.is_topmost() {
        let _ = fusermount(at);
    }
}

/// Takes a mount away that was just found at its place, and that nothing serves any more. Takes no descriptor where the
/// process may unmount by itself.
pub(crate) fn remove_dead(at: &MountInfo) -> io::Result<()> {
    match umount2(&at.path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
        Err(Errno::EPERM) => fusermount(at),
        done => Ok(done?),
    }
}

/// Takes the very mount of which `root` is a hold out of sight, with what is mounted on it. `EINVAL` if it is mounted nowhere.
pub(crate) fn detach_by_root(root: &OwnedFd) -> nix::Result<()> {
    umount2(&PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())), MntFlags::MNT_DETACH)
}

/// Who is not root has to ask the helper that also mounted.
fn fusermount(at: &MountInfo) -> io::Result<()> {
    let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(&at.path).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Ends the connection: every request that is or will be made gives ENOTCONN.
pub(crate) fn abort(at: &MountInfo) {
    let Some((_, minor)) = at.device.split_once(':') else { return };
    let control = format!("/sys/fs/fuse/connections/{minor}/abort");
    if let Err(error) = std::fs::write(&control, "1") {
        tracing::debug!(control, %error, "cannot abort the connection; it ends with the process");
    }
}
