//! Why a path is not attached.

use std::io;
use std::path::PathBuf;

use super::LOCAL_FS_TYPES;
use crate::cache::arena::ArenaError;
use crate::fuse::MountError;

/// Why a path was not attached, or not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The path does not exist.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The path is not a mount point.
    #[error("{} is not a mount point: attach works on a mount that is there; for a mount of its own use interceptor mount", path.display())]
    NotMounted {
        /// The path.
        path: PathBuf,
    },
    /// An overlay is mounted there already.
    #[error("interceptor is already attached to {}; end that one first (SIGTERM to its process), or take over from it with --restart", path.display())]
    AlreadyAttached {
        /// The path.
        path: PathBuf,
    },
    /// `--restart` found no overlay.
    #[error("nothing is attached at {}; leave out --restart", path.display())]
    NothingAttached {
        /// The path.
        path: PathBuf,
    },
    /// Another mount has come to the path since it was inspected.
    #[error("what is mounted on {} has changed meanwhile; is another attach under way?", path.display())]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// The lower mount beneath an overlay cannot be reached.
    #[error("cannot look below the layer on {}: {source}; end that one (SIGTERM to its process) and leave out --restart", path.display())]
    NoLookBelow {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The overlay could not be mounted beneath another.
    #[error(
        "cannot put a layer beneath the one on {}: {source} (it takes Linux 6.5); end that one (SIGTERM to its process) and leave out --restart",
        path.display()
    )]
    NoBeneath {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The path is a mount of `interceptor mount`, of which an overlay would gain nothing.
    #[error("{} is a mount of interceptor itself", path.display())]
    OwnMount {
        /// The path.
        path: PathBuf,
    },
    /// A mount below the path would be covered.
    #[error("{} is mounted below {} and would be covered; unmount it first", below.display(), path.display())]
    MountsBelow {
        /// The path.
        path: PathBuf,
        /// What is mounted below it.
        below: PathBuf,
    },
    /// A file system type over which overlays are not known to be correct.
    #[error(
        "{} is of the kind {fs_type}: attach works on FUSE mounts and on local file systems ({})",
        path.display(),
        LOCAL_FS_TYPES.join(", ")
    )]
    UnknownKind {
        /// The path.
        path: PathBuf,
        /// The file system type.
        fs_type: String,
    },
    /// Caching was asked for and cannot be correct ([`CachePolicy::Unsafe`]).
    #[error(
        "--read-cache on cannot be right on {}: what a mapping changes in {fs_type} may show in no time of the file; leave it out",
        path.display()
    )]
    CacheUnsafe {
        /// The path.
        path: PathBuf,
        /// The file system type.
        fs_type: String,
    },
    /// The cache's memory cannot be had.
    #[error(transparent)]
    NoCache(#[from] ArenaError),
    /// The lower daemon refuses root.
    #[error("the mount on {} does not let root in; mount it with allow_other", path.display())]
    RootDenied {
        /// The path.
        path: PathBuf,
    },
    /// The mount point is a file.
    #[error("{} is a file; attach works on mounted directories", path.display())]
    NotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// `--filer-path` is not the directory that is mounted.
    #[error("the mount on {} shows {shown} of the filer, not {given}; leave out --filer-path", path.display())]
    OtherDirectory {
        /// The path.
        path: PathBuf,
        /// The option's value.
        given: String,
        /// The directory in the mount's source.
        shown: String,
    },
    /// The lower mount answers with an error.
    #[error("the mount on {} does not work: {source}", path.display())]
    Unusable {
        /// The path.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The lower mount cannot be cloned.
    #[error("cannot keep hold of the mount on {}: {source} (it takes root, CAP_SYS_ADMIN, and Linux 5.2)", path.display())]
    NoClone {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The overlay could not be mounted.
    #[error("{0}")]
    Mount(#[from] MountError),
    /// A thread or process could not be started.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}
