//! Why a path cannot be attached, and what to do.

use std::io;
use std::path::PathBuf;

use crate::cache::arena::ArenaError;
use crate::fuse::MountError;

/// Why a path was not attached, or not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such path.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// Nothing is mounted there.
    #[error("{} is not a mount point: attach works on a mount that is there; for a mount of its own use interceptor mount", path.display())]
    NotMounted {
        /// The path.
        path: PathBuf,
    },
    /// One of ours is there already.
    #[error("interceptor is already attached to {}; end that one first (SIGTERM to its process), or take over from it with --restart", path.display())]
    AlreadyAttached {
        /// The path.
        path: PathBuf,
    },
    /// There is nothing to take over from.
    #[error("nothing is attached at {}; leave out --restart", path.display())]
    NothingAttached {
        /// The path.
        path: PathBuf,
    },
    /// What is mounted there is not what was looked at before.
    #[error("what is mounted on {} has changed meanwhile; is another attach under way?", path.display())]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// The mount below the layer that is there cannot be reached.
    #[error("cannot look below the layer on {}: {source}; end that one (SIGTERM to its process) and leave out --restart", path.display())]
    NoLookBelow {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layer could not be put below another.
    #[error(
        "cannot put a layer beneath the one on {}: {source} (it takes Linux 6.5); end that one (SIGTERM to its process) and leave out --restart",
        path.display()
    )]
    NoBeneath {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing could be gained.
    #[error("{} is a mount of interceptor itself", path.display())]
    OwnMount {
        /// The path.
        path: PathBuf,
    },
    /// Something below would be covered.
    #[error("{} is mounted below {} and would be covered; unmount it first", below.display(), path.display())]
    MountsBelow {
        /// The path.
        path: PathBuf,
        /// What is mounted below it.
        below: PathBuf,
    },
    /// A kind of file system for which nobody has shown that a layer over it changes nothing.
    #[error(
        "{} is of the kind {fs_type}: attach works on FUSE mounts and on local file systems ({})",
        path.display(),
        super::lower::LOCAL.join(", ")
    )]
    UnknownKind {
        /// The path.
        path: PathBuf,
        /// What is mounted there.
        fs_type: String,
    },
    /// Nothing can be kept of it.
    #[error(
        "--read-cache on cannot be right on {}: what a mapping changes in {fs_type} may show in no time of the file; leave it out",
        path.display()
    )]
    NotKept {
        /// The path.
        path: PathBuf,
        /// What is mounted there.
        fs_type: String,
    },
    /// There is no memory to keep anything in.
    #[error(transparent)]
    NoCache(#[from] ArenaError),
    /// Its daemon does not let us in.
    #[error("the mount on {} does not let root in; mount it with allow_other", path.display())]
    KeptOut {
        /// The path.
        path: PathBuf,
    },
    /// A file, not a directory.
    #[error("{} is a file; attach works on mounted directories", path.display())]
    NotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// The directory that was named is not the one that is mounted.
    #[error("the mount on {} shows {shown} of the filer, not {given}; leave out --filer-path", path.display())]
    OtherDirectory {
        /// The path.
        path: PathBuf,
        /// What was named.
        given: String,
        /// What the mount says of itself.
        shown: String,
    },
    /// The mount there does not answer well.
    #[error("the mount on {} does not work: {source}", path.display())]
    Unusable {
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The kernel does not give a second hold of the mount.
    #[error("cannot keep hold of the mount on {}: {source} (it takes root, CAP_SYS_ADMIN, and Linux 5.2)", path.display())]
    NoClone {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layer could not be mounted.
    #[error("{0}")]
    Mount(#[from] MountError),
    /// A thread or process could not be started.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
}
