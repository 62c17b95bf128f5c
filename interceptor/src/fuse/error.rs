//! Why a file system was not mounted or unmounted, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::namespace::RootError;

/// Why a mount failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no such directory.
    #[error("mount point {} does not exist; create it: mkdir -p {}", path.display(), path.display())]
    Missing {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount point is not a directory.
    #[error("mount point {} is not a directory", path.display())]
    NotDirectory {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount point has files in it that a mount would hide.
    #[error("mount point {} is not empty; its content would be hidden: choose another or allow it with --nonempty", path.display())]
    NotEmpty {
        /// The mount point.
        path: PathBuf,
    },
    /// Something is mounted there already.
    #[error("{source_name} ({fs_type}) is already mounted on {}; unmount it first: umount {}", path.display(), path.display())]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
        /// The file system type of what is mounted.
        fs_type: String,
        /// The source of what is mounted.
        source_name: String,
    },
    /// The mount is there, but the process that served it is gone.
    #[error("a dead FUSE mount is left on {0}; remove it: umount -l {0} (fusermount3 -uz {0} if it is yours)", path.display())]
    Dead {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount point cannot be examined.
    #[error("cannot use mount point {}: {source}", path.display())]
    Unusable {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel has no FUSE, or the container has no `/dev/fuse`.
    #[error(
        "/dev/fuse does not exist; load the module (modprobe fuse), or give the container --device /dev/fuse"
    )]
    NoDevice,
    /// `/dev/fuse` exists and may not be opened.
    #[error(
        "/dev/fuse cannot be opened: {0}; run as root or a member of its group, or give the container --device /dev/fuse"
    )]
    DeviceForbidden(io::Error),
    /// The process is not root, and `fusermount3` is missing.
    #[error(
        "mounting needs root (CAP_SYS_ADMIN) or the program fusermount3; run as root or install the package fuse3"
    )]
    NoPermission,
    /// The process lacks `CAP_SYS_ADMIN`.
    #[error("mounting needs root (CAP_SYS_ADMIN)")]
    NotPermitted,
    /// `fusermount3` refused to mount.
    #[error("fusermount3 refused to mount on {}: {message}", path.display())]
    Helper {
        /// The mount point.
        path: PathBuf,
        /// Its error output.
        message: String,
    },
    /// The kernel refused to mount.
    #[error("cannot mount on {}: {source}", path.display())]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The mount was removed right after it was made.
    #[error("the mount on {} was removed while it was being made", path.display())]
    Vanished {
        /// The mount point.
        path: PathBuf,
    },
    /// The session with the kernel did not start.
    #[error("the mount does not work: {0}")]
    Session(#[source] io::Error),
    /// The mount could not be removed.
    #[error("cannot unmount {}: {source}", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another mount covers this one, and is not ours to remove.
    #[error(
        "something else is mounted over {0}, so that this mount cannot be removed; it is dead now: umount {0}, twice",
        path.display()
    )]
    Covered {
        /// The mount point.
        path: PathBuf,
    },
    /// The filer does not give the directory to show.
    #[error(transparent)]
    Root(#[from] RootError),
}
