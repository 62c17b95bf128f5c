//! The lower mount: what it is, whether an overlay over it can be correct, and how the overlay is
//! mounted there.
//!
//! `open_tree(OPEN_TREE_CLONE)` makes a detached clone of the lower mount, which stays reachable
//! after the overlay is mounted over it. Every call is relative to the clone's root. A path would
//! lead into the overlay.
//!
//! ```text
//!   attach              lower mount ◄ overlay
//!   attach --restart    lower mount ◄ old overlay
//!                       lower mount ◄ new overlay ◄ old overlay    move_mount(MOVE_MOUNT_BENEATH)
//!                       lower mount ◄ new overlay                  umount2(MNT_DETACH), of the old
//! ```
//!
//! The overlay answers before it is mounted at the path, and each step is atomic for programs:
//! every open meets the old overlay or the new one. The old one notices that it was unmounted
//! ([`MountInfo::wait_removed`]) and serves what is open.
//!
//! To find the lower mount under an old overlay, that one's daemon is not asked, which may be of
//! another version or dead. A thread unshares its mount namespace, unmounts the overlay there, and
//! looks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::attributes::proc_path;
use super::error::AttachError;
use super::{FS_TYPE, LOCAL_FS_TYPES};
use crate::fuse::MountError;
use crate::fuse::mountinfo::{MountInfo, mount_id};
use crate::fuse::supervisor::SupervisorLink;
use crate::fuse::{mountpoint, unmount};

/// Whether data of a lower mount is cached beside the kernel's pages of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CachePolicy {
    /// A second read would cost a daemon or a server.
    Useful,
    /// The kernel's pages are as fast.
    Redundant,
    /// A mapping can change a file without changing its times, so a cache would be wrong.
    Unsafe,
}

/// The lower mount, and what the overlay must know of it.
pub(super) struct LowerMount {
    /// The root of the clone (`O_PATH`).
    pub(super) root: OwnedFd,
    /// Its absolute path, at which the overlay is mounted, too.
    pub(super) path: PathBuf,
    /// Its source in `/proc/self/mountinfo`.
    pub(super) source: String,
    /// Its type there, such as `fuse.seaweedfs`.
    pub(super) fs_type: String,
    /// Its mount id there.
    pub(super) mount_id: u64,
    /// Its mount options.
    pub(super) attributes: MountAttrFlags,
    /// Whether users other than the one who mounted it may use it.
    pub(super) allow_other: bool,
    /// Whether the kernel checks rights by mode bits. If not, the lower daemon does.
    pub(super) kernel_checks: bool,
    /// Whether it is a file system of this host's kernel. Then this host's clock sets the times, a
    /// file is never replaced behind its handle, and files can be opened by handle.
    pub(super) is_local: bool,
    /// Whether it has access control lists.
    pub(super) has_acls: bool,
    /// Whether what is read from it is cached.
    pub(super) cache_policy: CachePolicy,
    /// Whether a kernel sets the ctime of its files, so that no program can.
    pub(super) has_kernel_ctime: bool,
}

impl LowerMount {
    /// Inspects what is mounted on `given`, and clones it. Changes nothing.
    pub(super) fn open(given: &Path) -> Result<Self, AttachError> {
        let path = full_path(given)?;
        let Some(mount) = MountInfo::topmost(&path) else { return Err(AttachError::NotMounted { path }) };
        let is_fuse = is_fuse(&mount.fs_type);
        match mount.fs_type.as_str() {
            FS_TYPE => return Err(AttachError::AlreadyAttached { path }),
            mountpoint::FS_TYPE => return Err(AttachError::OwnMount { path }),
            fs_type if is_fuse || LOCAL_FS_TYPES.contains(&fs_type) => {}
            _ => return Err(AttachError::UnknownKind { path, fs_type: mount.fs_type }),
        }
        if let Some(below) = MountInfo::submounts(&path).into_iter().next() {
            return Err(AttachError::MountsBelow { path, below: below.path });
        }
        let root = open_tree(CWD, &path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .map_err(|errno| AttachError::NoClone { path: path.clone(), source: errno.into() })?;
        let found = match statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS) {
            Ok(found) => found,
            Err(rustix::io::Errno::ACCESS) => return Err(AttachError::RootDenied { path }),
            Err(errno) => return Err(AttachError::Unusable { path, source: errno.into() }),
        };
        if FileType::from_raw_mode(found.stx_mode.into()) != FileType::Directory {
            return Err(AttachError::NotDirectory { path });
        }
        let has_option = |option: &str| mount.super_options.iter().any(|other| other == option);
        let kernel_checks = !is_fuse || has_option("default_permissions");
        Ok(Self {
            has_acls: kernel_checks && has_acls(&root),
            cache_policy: match mount.fs_type.as_str() {
                _ if is_fuse => CachePolicy::Useful,
                "tmpfs" => CachePolicy::Unsafe,
                _ => CachePolicy::Redundant,
            },
            // A daemon may report the mtime as ctime.
            has_kernel_ctime: !is_fuse,
            root,
            path,
            source: mount.source,
            fs_type: mount.fs_type,
            mount_id: mount.id,
            attributes: mount_attributes(&mount.options),
            is_local: !is_fuse,
            allow_other: !is_fuse || has_option("allow_other"),
            kernel_checks,
        })
    }
}

impl LowerMount {
    /// Whether it was mounted by `weed mount`.
    pub(super) fn is_weed_mount(&self) -> bool {
        self.fs_type == "fuse.seaweedfs"
    }

    /// The filer directory that `weed mount` shows, from its source `HOST:PORT:PATH`.
    pub(super) fn filer_path(&self) -> Option<String> {
        let path = self.source.split_once(":/").filter(|_| self.is_weed_mount())?.1;
        Some(format!("/{}", path.trim_end_matches('/')))
    }
}

/// Whether a daemon answers for a file system of this type, on a block device or not (`fuseblk`,
/// as NTFS-3G).
fn is_fuse(fs_type: &str) -> bool {
    let kind = fs_type.split_once('.').map_or(fs_type, |(kind, _)| kind);
    matches!(kind, "fuse" | "fuseblk")
}

pub(super) fn full_path(given: &Path) -> Result<PathBuf, AttachError> {
    std::fs::canonicalize(given).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => AttachError::Missing { path: given.into() },
        Some(libc::EACCES) => AttachError::RootDenied { path: given.into() },
        _ => AttachError::Unusable { path: given.into(), source: error },
    })
}

/// Whether the file system supports `system.posix_acl_access`.
fn has_acls(root: &OwnedFd) -> bool {
    let mut nothing: [u8; 0] = [];
    rustix::fs::getxattr(proc_path(root.as_fd()), "system.posix_acl_access", &mut nothing[..])
        != Err(rustix::io::Errno::OPNOTSUPP)
}

/// The mount attributes for the options in `mountinfo`.
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
    // `mountinfo` shows `strictatime` as the absence of the other two.
    let is_strict = !options.iter().any(|option| option == "relatime" || option == "noatime");
    let strict = if is_strict { MountAttrFlags::MOUNT_ATTR_STRICTATIME } else { MountAttrFlags::empty() };
    options.iter().map(attribute).collect::<MountAttrFlags>() | strict
}

/// Clones the lower mount beneath the overlay at `given`, and returns that overlay. Changes
/// nothing outside of a private mount namespace.
pub(super) fn open_beneath_overlay(given: &Path) -> Result<(LowerMount, MountInfo), AttachError> {
    let path = full_path(given)?;
    let Some(old) = MountInfo::topmost(&path).filter(|mount| mount.fs_type == FS_TYPE) else {
        return Err(AttachError::NothingAttached { path });
    };
    reject_nested_mounts(&path)?;
    let failed = |source| AttachError::NoLookBelow { path: path.clone(), source };
    // The namespace ends with the thread; the clone of the lower mount stays.
    let looking = std::thread::Builder::new().name("look-below".into()).spawn({
        let path = path.clone();
        move || {
            uncover_for_this_thread(&path)?;
            Ok(LowerMount::open(&path))
        }
    });
    let looked = looking.map_err(failed)?.join();
    let lower = looked.unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))).map_err(failed)??;
    Ok((LowerMount { mount_id: old.parent, ..lower }, old))
}

/// Mounts below an overlay would be unmounted with it.
fn reject_nested_mounts(path: &Path) -> Result<(), AttachError> {
    match MountInfo::submounts(path).into_iter().next() {
        Some(inner) => Err(AttachError::MountsBelow { path: path.into(), below: inner.path }),
        None => Ok(()),
    }
}

fn uncover_for_this_thread(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Else the unmount would propagate to other namespaces.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    if let Some(overlay) = MountInfo::topmost(path).filter(|mount| mount.fs_type == FS_TYPE) {
        unmount::detach(&overlay);
    }
    Ok(())
}

/// Mounts `overlay`, the root of an overlay, at the path of `lower`: over the lower mount, or
/// beneath `old` and then in its stead. On failure, what was mounted stays.
///
/// The supervisor is told before the overlay is reachable.
pub(super) fn move_into_place(
    overlay: OwnedFd,
    lower: &LowerMount,
    old: Option<&MountInfo>,
    supervisor: &SupervisorLink,
) -> Result<MountInfo, AttachError> {
    let path = &lower.path;
    let unplaced = |source| MountError::Refused { path: path.clone(), source };
    let (id, device) = (mount_id(&overlay).map_err(unplaced)?, device(&overlay).map_err(unplaced)?);
    supervisor.mounting(id, &device).map_err(AttachError::Start)?;
    match old {
        None => move_mount(&overlay, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| unplaced(errno.into()))?,
        Some(old) => replace_overlay(&overlay, old)?,
    }
    // An open descriptor would keep the mount busy.
    drop(overlay);
    let placed = MountInfo::with_id(id).ok_or_else(|| MountError::Vanished { path: path.clone() })?;
    if placed.parent != lower.mount_id {
        unmount::detach(&placed);
        return Err(AttachError::Changed { path: path.clone() });
    }
    Ok(placed)
}

fn replace_overlay(overlay: &OwnedFd, old: &MountInfo) -> Result<(), AttachError> {
    // Something may have been mounted since the first check.
    reject_nested_mounts(&old.path)?;
    let failed = |source| AttachError::NoBeneath { path: old.path.clone(), source };
    let Some(held) = old.open_root().map_err(failed)? else {
        return Err(AttachError::Changed { path: old.path.clone() });
    };
    let beneath = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_BENEATH;
    move_mount(overlay, "", &held, "", beneath).map_err(|errno| failed(errno.into()))?;
    match unmount::detach_by_root(&held) {
        // Another process has unmounted it already.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Blocks until the overlay replies with its root's attributes.
pub(super) fn await_answer(overlay: &OwnedFd) -> io::Result<()> {
    statx(overlay, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    Ok(())
}

/// `MAJOR:MINOR` of a mount, without a request to its daemon.
fn device(root: &OwnedFd) -> io::Result<String> {
    let found = statx(root, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok(format!("{}:{}", found.stx_dev_major, found.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfit_paths_are_named() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        assert!(matches!(LowerMount::open(dir.path()), Err(AttachError::NotMounted { .. })));
        assert!(matches!(LowerMount::open(&dir.path().join("none")), Err(AttachError::Missing { .. })));
        assert!(matches!(LowerMount::open(Path::new("/proc")), Err(AttachError::UnknownKind { .. })));
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
