//! From a path to the daemon of the mount there: an extended attribute of each of its files has the
//! address of its status API.
//!
//! The kernel's mount table tells which mounts are ours. Asking one waits for its daemon; so a
//! mount is asked on a thread of its own, which is left behind if the daemon hangs.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::io::Errno;

use crate::fuse::mountinfo::MountInfo;
use crate::fuse::{STATUS_XATTR, mountpoint};
use crate::overlay;

/// How long a mount may take to name the address of its daemon.
pub(super) const ATTRIBUTE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the mount that `file` is in says of itself: the address of its status API, `None` if it has
/// none. The error says why it is no mount of ours.
pub(super) fn own_address(file: &File) -> Result<Option<String>, String> {
    let mut value = [0; 64];
    let outside = "not in a mount of interceptor";
    match rustix::fs::getxattr(proc_name(file), STATUS_XATTR, &mut value[..]) {
        Ok(len) => match std::str::from_utf8(&value[..len]) {
            Ok("none") => Ok(None),
            Ok(text) if text.parse::<SocketAddr>().is_ok() => Ok(Some(text.to_owned())),
            _ => Err(outside.into()),
        },
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS | Errno::RANGE | Errno::INVAL) => {
            Err(outside.into())
        }
        Err(errno) => Err(explain(&errno.into())),
    }
}

/// A file that is only held cannot be asked itself, but by way of its name in /proc.
pub(super) fn proc_name(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// What an error means in a mount.
pub(super) fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOTCONN | libc::ECONNABORTED) => "the daemon of this mount is gone".into(),
        _ => error.to_string(),
    }
}

/// Whether the mount is a layer of `interceptor attach`.
pub(super) fn is_layer(mount: &MountInfo) -> bool {
    mount.fs_type == overlay::FS_TYPE
}

/// Whether an `interceptor` serves the mount, or has served it.
pub(super) fn is_ours(mount: &MountInfo) -> bool {
    is_layer(mount) || mount.fs_type == mountpoint::FS_TYPE
}

/// The mount of ours at `path`. The path itself is not looked up where that can be avoided, as its
/// daemon may be dead.
pub(super) fn mount_at(path: &Path) -> anyhow::Result<MountInfo> {
    let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
    let topmost = MountInfo::topmost(&absolute);
    // A path that is no mount point itself may be a link to one.
    let found = topmost.or_else(|| MountInfo::topmost(&path.canonicalize().ok()?));
    match found {
        Some(mount) if is_ours(&mount) => Ok(mount),
        Some(mount) => {
            bail!("{} on {} is no mount of interceptor, but {}", mount.source, path.display(), mount.fs_type)
        }
        None => bail!("nothing is mounted on {}; `interceptor list` shows what is", path.display()),
    }
}

/// A file or directory in a mount of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlaceInMount {
    pub(super) mount: MountInfo,
    /// Its path from the root of the file system on, which begins with `/`.
    pub(super) path: PathBuf,
}

/// Where `path` is, whose links are followed. Waits for the daemon.
pub(super) fn place_of(path: &Path) -> anyhow::Result<PlaceInMount> {
    let shown = path.display();
    let real = path.canonicalize().map_err(|error| anyhow!("{shown}: {}", explain(&error)))?;
    let mount = real.ancestors().find_map(MountInfo::topmost);
    let mount = mount.filter(is_ours).ok_or_else(|| anyhow!("{shown} is not in a mount of interceptor"))?;
    let below = real.strip_prefix(&mount.path)?;
    Ok(PlaceInMount { path: mount.root.join(below), mount })
}

/// Where the status API of the mount's daemon listens. Waits for the daemon.
pub(super) fn address_of(mount: &MountInfo) -> anyhow::Result<String> {
    let path = mount.path.display();
    let root = mount.open_root()?.ok_or_else(|| anyhow!("another mount covers it"))?;
    let address = own_address(&File::from(root)).map_err(|error| anyhow!(error))?;
    address.with_context(|| format!("the daemon of {path} has no status API (--status-addr none)"))
}

/// The same, for a limited time.
pub(super) fn address_in_time(mount: &MountInfo) -> anyhow::Result<String> {
    let (asked, path) = (mount.clone(), mount.path.display());
    let answer = answer_of(move || address_of(&asked)).recv_timeout(ATTRIBUTE_TIMEOUT);
    answer.unwrap_or_else(|_| Err(anyhow!("the daemon does not answer"))).with_context(|| path.to_string())
}

/// The channel on which the result of `work` comes, if it ever ends.
pub(super) fn answer_of<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (sender, answer) = mpsc::channel();
    // Without a thread the sender is dropped, and the receiver does not wait.
    let _ = thread::Builder::new().name("ask a mount".into()).spawn(move || sender.send(work()));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mount_of_ours_is_told() {
        let said = |path: &str| mount_at(Path::new(path)).unwrap_err().to_string();
        assert!(said("/proc").contains("no mount of interceptor, but proc"), "{}", said("/proc"));
        assert!(said("/proc/self").contains("nothing is mounted on /proc/self"), "{}", said("/proc/self"));
        assert!(said("/nonexistent/x").contains("nothing is mounted"));
    }

    #[test]
    fn a_mount_that_hangs_is_not_waited_for() {
        let (release, hang) = mpsc::channel::<()>();
        let hanging = answer_of(move || hang.recv().is_ok());
        assert!(hanging.recv_timeout(Duration::from_millis(1)).is_err());
        drop(release);
        assert_eq!(hanging.recv(), Ok(false));
    }

    #[test]
    fn a_dead_daemon_is_called_that() {
        let error = io::Error::from_raw_os_error(libc::ENOTCONN);
        assert_eq!(explain(&error), "the daemon of this mount is gone");
    }
}
