//! The mount below: what it is, whether a layer over it can be right, and a hold of it that outlasts being covered.
//!
//! `open_tree(OPEN_TREE_CLONE)` gives a second mount of the same file system that is attached nowhere, and a descriptor of its root.
//! Everything is done relative to that descriptor, never by path: a path would lead into our own mount.
//!
//! The place of a layer among the mounts at its path: over the mount below, or in the place of another layer.
//!
//! ```text
//!   attach              mount below ◄ layer
//!   attach --restart    mount below ◄ old layer
//!                       mount below ◄ new layer ◄ old layer      move_mount(MOVE_MOUNT_BENEATH)
//!                       mount below ◄ new layer                  umount2(MNT_DETACH), of the old layer alone
//! ```
//!
//! A layer answers before it gets its place, and each step is one for who opens files: every open meets the old layer or the new one. The old one sees that it was
//! taken away ([`MountInfo::wait_removed`]) and serves what is open.
//!
//! To find the mount below under an old layer takes no word from its daemon, which may be of another version, or dead: a thread with a mount namespace of its own takes the
//! layer away there, where nobody else sees it, and looks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::FS_TYPE;
use super::attributes::proc_path;
use super::supervisor::Report;
use crate::cache::arena::ArenaError;
use crate::fuse::MountError;
use crate::fuse::mountinfo::{MountInfo, mount_id};
use crate::fuse::{mountpoint, unmount};

/// Local file systems for which the kernel checks all rights by attributes and access control lists, as it does for our layer.
pub(super) const LOCAL: [&str; 9] =
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs"];

/// Whether what is read from a mount below is worth being kept beside the kernel's own pages of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeping {
    /// To read it again takes a daemon's or a server's work.
    Worthwhile,
    /// The kernel's pages are as near.
    Needless,
    /// What a mapping changes may show in no time of the file.
    Wrong,
}

/// What has to be known of the mount below.
pub(super) struct Lower {
    /// The root of our hold of it (`O_PATH`).
    pub(super) root: OwnedFd,
    /// Its full path, which the layer will have too.
    pub(super) path: PathBuf,
    /// What shows as its source in the kernel's table.
    pub(super) source: String,
    /// Its type there, such as `fuse.seaweedfs`.
    pub(super) fs_type: String,
    /// The kernel's number for the mount.
    pub(super) mount_id: u64,
    /// How it is mounted.
    pub(super) attributes: MountAttrFlags,
    /// Whether other users than the one who mounted it may use it.
    pub(super) allow_other: bool,
    /// Whether the kernel checks rights by attributes. If not, its daemon does.
    pub(super) kernel_checks: bool,
    /// Whether it is a file system of this host's kernel: its files have the times of this clock, never become others,
    /// and are found by handles.
    pub(super) is_local: bool,
    /// Whether it has access control lists.
    pub(super) has_acls: bool,
    /// Whether what is read from it is worth being kept.
    pub(super) keeping: Keeping,
    /// Whether no program can set the times of change of its files.
    pub(super) has_change_times: bool,
}

impl Lower {
    /// Looks at what is mounted on `path` and takes hold of it. Changes nothing.
    pub(super) fn take(given: &Path) -> Result<Self, AttachError> {
        let path = full_path(given)?;
        let Some(mount) = MountInfo::topmost(&path) else { return Err(AttachError::NotMounted { path }) };
        let is_fuse = is_fuse(&mount.fs_type);
        match mount.fs_type.as_str() {
            FS_TYPE => return Err(AttachError::AlreadyAttached { path }),
            mountpoint::FS_TYPE => return Err(AttachError::OwnMount { path }),
            fs_type if is_fuse || LOCAL.contains(&fs_type) => {}
            _ => return Err(AttachError::UnknownKind { path, fs_type: mount.fs_type }),
        }
        if let Some(below) = MountInfo::submounts(&path).into_iter().next() {
            return Err(AttachError::MountsBelow { path, below: below.path });
        }
        let root = open_tree(CWD, &path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .map_err(|errno| AttachError::NoClone { path: path.clone(), source: errno.into() })?;
        let found = match statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS) {
            Ok(found) => found,
            Err(rustix::io::Errno::ACCESS) => return Err(AttachError::KeptOut { path }),
            Err(errno) => return Err(AttachError::Unusable { path, source: errno.into() }),
        };
        if FileType::from_raw_mode(found.stx_mode.into()) != FileType::Directory {
            return Err(AttachError::NotDirectory { path });
        }
        let told = |option: &str| mount.super_options.iter().any(|other| other == option);
        let kernel_checks = !is_fuse || told("default_permissions");
        Ok(Self {
            has_acls: kernel_checks && has_acls(&root),
            keeping: match mount.fs_type.as_str() {
                _ if is_fuse => Keeping::Worthwhile,
                "tmpfs" => Keeping::Wrong,
                _ => Keeping::Needless,
            },
            // What a daemon tells may be the time of modification.
            has_change_times: !is_fuse,
            root,
            path,
            source: mount.source,
            fs_type: mount.fs_type,
            mount_id: mount.id,
            attributes: mount_attributes(&mount.options),
            is_local: !is_fuse,
            allow_other: !is_fuse || told("allow_other"),
            kernel_checks,
        })
    }
}

impl Lower {
    /// Whether it is a mount of SeaweedFS, made by its own program.
    pub(super) fn is_weed(&self) -> bool {
        self.fs_type == "fuse.seaweedfs"
    }

    /// The directory of the filer that is shown, if this is a mount of SeaweedFS, which names itself `HOST:PORT:PATH`.
    pub(super) fn filer_path(&self) -> Option<String> {
        let path = self.source.split_once(":/").filter(|_| self.is_weed())?.1;
        Some(format!("/{}", path.trim_end_matches('/')))
    }
}

/// Whether a daemon answers for a file system of this kind, be it one on a block device (`fuseblk`, as NTFS-3G's is).
fn is_fuse(fs_type: &str) -> bool {
    let kind = fs_type.split_once('.').map_or(fs_type, |(kind, _)| kind);
    matches!(kind, "fuse" | "fuseblk")
}

pub(super) fn full_path(given: &Path) -> Result<PathBuf, AttachError> {
    std::fs::canonicalize(given).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => AttachError::Missing { path: given.into() },
        Some(libc::EACCES) => AttachError::KeptOut { path: given.into() },
        _ => AttachError::Unusable { path: given.into(), source: error },
    })
}

/// Whether the file system knows the attribute in which the kernel keeps access control lists.
fn has_acls(root: &OwnedFd) -> bool {
    let mut nothing: [u8; 0] = [];
    rustix::fs::getxattr(proc_path(root.as_fd()), "system.posix_acl_access", &mut nothing[..])
        != Err(rustix::io::Errno::OPNOTSUPP)
}

/// The attributes of a mount for options that the kernel's table names.
fn mount_attributes(options: &[String]) -> MountAttrFlags {
    let attribute = |option: &String| match option.as_str() {
        "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
        "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
        "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
        "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        "noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
        "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        "nosymfollow" => MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW,
        _ => MountAttrFlags::empty(),
    };
    // The table has no word for access times that are always kept.
    let is_strict = !options.iter().any(|option| option == "relatime" || option == "noatime");
    let strict = if is_strict { MountAttrFlags::MOUNT_ATTR_STRICTATIME } else { MountAttrFlags::empty() };
    options.iter().map(attribute).collect::<MountAttrFlags>() | strict
}

/// Takes hold of the mount below the layer at `given`, and tells which layer that is. Changes nothing that anybody else sees.
pub(super) fn take_below(given: &Path) -> Result<(Lower, MountInfo), AttachError> {
    let path = full_path(given)?;
    let Some(old) = MountInfo::topmost(&path).filter(|mount| mount.fs_type == FS_TYPE) else {
        return Err(AttachError::NothingAttached { path });
    };
    nothing_below(&path)?;
    let failed = |source| AttachError::NoLookBelow { path: path.clone(), source };
    // The namespace goes with the thread; the clone of the mount below stays.
    let looking = std::thread::Builder::new().name("look-below".into()).spawn({
        let path = path.clone();
        move || {
            uncover_for_this_thread(&path)?;
            Ok(Lower::take(&path))
        }
    });
    let looked = looking.map_err(failed)?.join();
    let lower = looked.unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))).map_err(failed)??;
    Ok((Lower { mount_id: old.parent, ..lower }, old))
}

/// What is mounted on a layer would go with it.
fn nothing_below(path: &Path) -> Result<(), AttachError> {
    match MountInfo::submounts(path).into_iter().next() {
        Some(inner) => Err(AttachError::MountsBelow { path: path.into(), below: inner.path }),
        None => Ok(()),
    }
}

fn uncover_for_this_thread(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Without this the mount would go in other namespaces, too.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    if let Some(layer) = MountInfo::topmost(path).filter(|mount| mount.fs_type == FS_TYPE) {
        unmount::detach(&layer);
    }
    Ok(())
}

/// Gives the layer whose root is `layer` its place at the path of `lower`: over that, or in the place of `old`, which is over it. If that fails, what was there is still there.
///
/// `report` is told of the layer before it can be seen.
pub(super) fn place(
    layer: OwnedFd,
    lower: &Lower,
    old: Option<&MountInfo>,
    report: &Report,
) -> Result<MountInfo, AttachError> {
    let path = &lower.path;
    let unplaced = |source| MountError::Refused { path: path.clone(), source };
    let (id, device) = (mount_id(&layer).map_err(unplaced)?, device(&layer).map_err(unplaced)?);
    report.placing(id, &device).map_err(AttachError::Start)?;
    match old {
        None => move_mount(&layer, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| unplaced(errno.into()))?,
        Some(old) => replace(&layer, old)?,
    }
    // Held, it would be busy for who wants to unmount it.
    drop(layer);
    let placed = MountInfo::with_id(id).ok_or_else(|| MountError::Vanished { path: path.clone() })?;
    if placed.parent != lower.mount_id {
        unmount::detach(&placed);
        return Err(AttachError::Changed { path: path.clone() });
    }
    Ok(placed)
}

fn replace(layer: &OwnedFd, old: &MountInfo) -> Result<(), AttachError> {
    // Something may have come since the first look.
    nothing_below(&old.path)?;
    let failed = |source| AttachError::NoBeneath { path: old.path.clone(), source };
    let Some(held) = old.open_root().map_err(failed)? else {
        return Err(AttachError::Changed { path: old.path.clone() });
    };
    let beneath = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_BENEATH;
    move_mount(layer, "", &held, "", beneath).map_err(|errno| failed(errno.into()))?;
    match unmount::detach_by_root(&held) {
        // Somebody else was faster.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Waits until the layer answers for its root.
pub(super) fn await_answer(layer: &OwnedFd) -> io::Result<()> {
    statx(layer, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    Ok(())
}

/// `MAJOR:MINOR` of a mount, without asking its daemon.
fn device(root: &OwnedFd) -> io::Result<String> {
    let found = statx(root, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok(format!("{}:{}", found.stx_dev_major, found.stx_dev_minor))
}

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
        LOCAL.join(", ")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfit_paths_are_named() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        assert!(matches!(Lower::take(dir.path()), Err(AttachError::NotMounted { .. })));
        assert!(matches!(Lower::take(&dir.path().join("none")), Err(AttachError::Missing { .. })));
        assert!(matches!(Lower::take(Path::new("/proc")), Err(AttachError::UnknownKind { .. })));
    }

    #[test]
    fn fuse_is_known_by_its_kind() {
        for kind in ["fuse", "fuse.sshfs", "fuse.seaweedfs", "fuseblk", "fuseblk.ext4"] {
            assert!(is_fuse(kind), "{kind}");
        }
        for kind in ["ext4", "fusectl", "nfs4", "fuse2.x", ""] {
            assert!(!is_fuse(kind), "{kind}");
        }
    }

    #[test]
    fn options_become_attributes() {
        let attributes = |options: &[&str]| {
            mount_attributes(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(
            attributes(&["rw", "nosuid", "noexec", "relatime", "nosymfollow"]),
            MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NOEXEC
                | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW
        );
        assert_eq!(attributes(&["rw"]), MountAttrFlags::MOUNT_ATTR_STRICTATIME);
        assert_eq!(
            attributes(&["ro", "nodev", "noatime", "nodiratime"]),
            MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOATIME
                | MountAttrFlags::MOUNT_ATTR_NODIRATIME
        );
    }
}
