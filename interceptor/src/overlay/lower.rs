//! The mount below: what it is, whether a layer over it can be right, and a hold of it that outlasts being covered.
//!
//! `open_tree(OPEN_TREE_CLONE)` gives a second mount of the same file system that is attached nowhere, and a descriptor of its root.
//! Everything is done relative to that descriptor, never by path: a path would lead into our own mount.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::node_file::proc_path;
use super::refusal::AttachError;
use crate::fuse::mountinfo::MountInfo;
use crate::fuse::mountpoint;

/// What our layer is called in the kernel's table of mounts.
pub(crate) const FS_TYPE: &str = "fuse.interceptor-attach";

/// The same without `fuse.`.
pub(super) const SUBTYPE: &str = "interceptor-attach";

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

/// What a refusal of the kernel is for who asked.
pub(super) fn errno(error: &io::Error) -> fuser::Errno {
    match error.raw_os_error() {
        // That would tell the kernel never to ask again.
        Some(libc::ENOSYS) => fuser::Errno::EOPNOTSUPP,
        Some(number) => fuser::Errno::from_i32(number),
        None => fuser::Errno::EIO,
    }
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
