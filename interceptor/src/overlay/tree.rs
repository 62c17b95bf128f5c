//! Requests on names and attributes, passed on to the lower mount. Each is a call relative to a
//! descriptor of a directory or file, never a path.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, UNIX_EPOCH};

use fuser::TimeOrNow;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    XattrFlags, openat,
};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::attributes::{self, Attributes, FileHandle, proc_path};
use super::credentials::{Caller, ScopedCredentials, own_umask};
use super::inodes::{FdLimits, Inode, InodeFd, InodeTable};
use super::lower::LowerMount;
use super::open_directory::{DirectoryEntry, OpenDirectory};
use super::open_file::{LargeWrites, OpenFile, lower_flags};
use crate::warmup::ticket::NodeInstance;

/// The largest value of an extended attribute, in bytes (`XATTR_SIZE_MAX` of Linux).
const MAX_XATTR_SIZE: u32 = 64 << 10;

/// Names and attributes of the lower mount.
pub(super) struct LowerTree {
    inodes: Arc<InodeTable>,
    kernel_checks: bool,
    is_local: bool,
    has_acls: bool,
    large_writes: LargeWrites,
}

/// A name to be created.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewEntry<'a> {
    pub(super) parent: u64,
    pub(super) name: &'a OsStr,
    pub(super) caller: Caller,
}

/// The mode of a new file.
#[derive(Debug, Clone, Copy)]
pub(super) struct CreateMode {
    pub(super) mode: u32,
    /// The caller's umask, which an access control list of the directory overrides.
    pub(super) umask: u32,
}

/// The attributes that `setattr` changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttributeChange {
    pub(super) mode: Option<u32>,
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<TimeOrNow>,
    pub(super) modified: Option<TimeOrNow>,
}

/// A found inode, with one lookup of it counted, and its attributes.
pub(super) type FoundInode = (Arc<Inode>, Attributes);

impl LowerTree {
    /// The tree of `lower`. Signals `over_limit` when inodes have more descriptors than `limits`
    /// allow.
    pub(super) fn new(lower: &LowerMount, limits: FdLimits, over_limit: SyncSender<()>) -> io::Result<Self> {
        let attributes = Attributes::of(&lower.root)?;
        let root: OwnedFd = lower.root.try_clone()?;
        let inodes = Arc::new(InodeTable::new(root, &attributes, lower.is_local, limits, over_limit)?);
        let large_writes = if lower.is_weed_mount() { LargeWrites::Direct } else { LargeWrites::Paged };
        Ok(Self {
            inodes,
            kernel_checks: lower.kernel_checks,
            is_local: lower.is_local,
            has_acls: lower.has_acls,
            large_writes,
        })
    }

    pub(super) fn inodes(&self) -> &Arc<InodeTable> {
        &self.inodes
    }

    /// Whether the kernel checks rights by mode bits. If not, the lower daemon does.
    pub(super) fn kernel_checks(&self) -> bool {
        self.kernel_checks
    }

    /// Whether the lower mount is a file system of this host's kernel.
    pub(super) fn is_local(&self) -> bool {
        self.is_local
    }

    /// Opens the regular file of `inode`. The kernel opens other kinds of files by itself.
    pub(super) fn open(&self, inode: &Arc<Inode>, flags: i32) -> io::Result<OpenFile> {
        if inode.file_type != FileType::RegularFile {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.inodes.with_fd_reclaim(|| OpenFile::open(inode.clone(), flags, self.large_writes))
    }

    /// Opens the directory of `inode`.
    pub(super) fn open_directory(&self, inode: &Arc<Inode>) -> io::Result<OpenDirectory> {
        self.inodes.with_fd_reclaim(|| OpenDirectory::open(inode.clone()))
    }

    fn fd(&self, inode: &Arc<Inode>) -> io::Result<Arc<InodeFd>> {
        // One that is open is used whatever its number is: `create` may have taken a late one.
        inode.cached_fd().map_or_else(|| self.inodes.with_fd_reclaim(|| inode.fd()), Ok)
    }

    /// The inode with this number; `ESTALE` if the kernel has forgotten it.
    pub(super) fn inode(&self, id: u64) -> io::Result<Arc<Inode>> {
        self.inodes.get(id).ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// Impersonates the caller if the lower daemon checks rights. For calls that create nothing.
    pub(super) fn impersonate_if_lower_checks(&self, caller: Caller) -> Option<ScopedCredentials> {
        (!self.kernel_checks).then(|| caller.impersonate())
    }

    pub(super) fn lookup(&self, parent: u64, name: &OsStr, caller: Caller) -> io::Result<FoundInode> {
        check_name(name)?;
        let directory = self.inode(parent)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        self.find(&directory, name)
    }

    fn find(&self, directory: &Arc<Inode>, name: &OsStr) -> io::Result<FoundInode> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = self.fd(directory)?;
        let file = self.inodes.with_fd_reclaim(|| Ok(openat(&*parent, name, flags, Mode::empty())?))?;
        let attributes = Attributes::of(&file)?;
        let inode = self.inodes.insert((directory, name), file, &attributes)?;
        inode.content.observe(&attributes);
        Ok((inode, attributes))
    }

    /// The type of an entry that the lower mount lists without a type. Not impersonated: the type
    /// belongs to the listing, which the caller was allowed to read.
    pub(super) fn type_of(
        &self,
        directory: &Arc<Inode>,
        entry: &DirectoryEntry,
    ) -> io::Result<fuser::FileType> {
        if entry.is_dots() {
            return Ok(fuser::FileType::Directory);
        }
        let name = CString::new(entry.name.as_bytes())?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        Ok(Attributes::at(&*self.fd(directory)?, &name, flags)?.kind())
    }

    /// The inode `id` for an open; `ESTALE` if the kernel's dentry is old and its name leads to
    /// another file by now. The kernel then looks the name up again. Reported once per lookup,
    /// since an open through `/proc` has no name to look up.
    pub(super) fn inode_to_open(&self, id: u64, caller: Caller) -> io::Result<Arc<Inode>> {
        let inode = self.inode(id)?;
        let (Some(directory), name) = inode.dentry() else { return Ok(inode) };
        let _credentials = self.impersonate_if_lower_checks(caller);
        match self.fd(&directory).and_then(|directory| FileHandle::at(&*directory, &name)) {
            Ok(found) if inode.is_newly_replaced_by(&found) => {
                Err(io::Error::from_raw_os_error(libc::ESTALE))
            }
            // A file without a name is a deleted one.
            _ => Ok(inode),
        }
    }

    pub(super) fn attributes(&self, id: u64, caller: Caller) -> io::Result<Attributes> {
        let inode = self.inode(id)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        let attributes = Attributes::of(&*self.fd(&inode)?)?;
        inode.content.verify(&attributes);
        Ok(attributes)
    }

    /// Changes attributes. `open` is the handle of the request, if it has one.
    pub(super) fn set_attributes(
        &self,
        id: u64,
        change: AttributeChange,
        open: Option<&OpenFile>,
        caller: Caller,
    ) -> io::Result<Attributes> {
        let inode = self.inode(id)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        let file = self.fd(&inode)?;
        // The order matters: a new owner clears set-user-id bits, and a new size changes the
        // times.
        if change.user.is_some() || change.group.is_some() {
            let (user, group) = (change.user.map(Uid::from_raw), change.group.map(Gid::from_raw));
            rustix::fs::chownat(&*file, "", user, group, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = change.mode {
            rustix::fs::chmodat(
                CWD,
                proc_path(file.as_fd()),
                Mode::from_bits_truncate(mode),
                AtFlags::empty(),
            )?;
        }
        if let Some(size) = change.size {
            // Marked before, so that reads go below, and after, so that no version found in
            // between is installed.
            inode.content.mark_changed_here();
            let truncated = truncate(&file, size, open);
            inode.content.mark_changed_here();
            truncated?;
        }
        if change.accessed.is_some() || change.modified.is_some() {
            let times = Timestamps {
                last_access: timespec(change.accessed),
                last_modification: timespec(change.modified),
            };
            rustix::fs::utimensat(&*file, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Attributes::of(&*file)
    }

    pub(super) fn link_target(&self, id: u64, caller: Caller) -> io::Result<OsString> {
        let inode = self.inode(id)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        let target = rustix::fs::readlinkat(&*self.fd(&inode)?, "", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Creates a name with `make`, owned by the caller, and looks it up.
    fn make(
        &self,
        new: NewEntry<'_>,
        modes: CreateMode,
        make: impl FnOnce(&InodeFd, Mode) -> io::Result<()>,
    ) -> io::Result<FoundInode> {
        check_name(new.name)?;
        let directory = self.inode(new.parent)?;
        {
            let _credentials = new.caller.impersonate();
            let parent = self.fd(&directory)?;
            self.inodes.ensure_fd_left(&parent)?;
            make(&parent, self.mode(modes))?;
        }
        let _credentials = self.impersonate_if_lower_checks(new.caller);
        self.find(&directory, new.name)
    }

    /// The mode to create with. With access control lists, the kernel leaves the umask to the
    /// overlay, which leaves it to the lower mount.
    fn mode(&self, modes: CreateMode) -> Mode {
        if self.has_acls {
            own_umask(modes.umask);
        }
        Mode::from_bits_truncate(modes.mode & 0o7777)
    }

    pub(super) fn make_directory(&self, new: NewEntry<'_>, modes: CreateMode) -> io::Result<FoundInode> {
        self.make(new, modes, |parent, mode| Ok(rustix::fs::mkdirat(parent, new.name, mode)?))
    }

    pub(super) fn mknod(
        &self,
        new: NewEntry<'_>,
        modes: CreateMode,
        packed_device: u32,
    ) -> io::Result<FoundInode> {
        self.make(new, modes, |parent, mode| {
            let kind = FileType::from_raw_mode(modes.mode);
            Ok(rustix::fs::mknodat(parent, new.name, kind, mode, attributes::device(packed_device))?)
        })
    }

    pub(super) fn make_symlink(&self, new: NewEntry<'_>, target: &Path) -> io::Result<FoundInode> {
        let modes = CreateMode { mode: 0o777, umask: 0 };
        self.make(new, modes, |parent, _| Ok(rustix::fs::symlinkat(target, parent, new.name)?))
    }

    /// Creates a file and opens it.
    ///
    /// The kernel sends `FUSE_CREATE` for a name that it believes free, and has checked no more
    /// than that a file may be created there. So a file that was created meanwhile is not opened:
    /// `ESTALE` has the kernel look the name up.
    pub(super) fn create(
        &self,
        new: NewEntry<'_>,
        modes: CreateMode,
        flags: i32,
    ) -> io::Result<(OpenFile, Attributes)> {
        check_name(new.name)?;
        let directory = self.inode(new.parent)?;
        let created = {
            let _credentials = new.caller.impersonate();
            let flags = lower_flags(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let (parent, mode) = (self.fd(&directory)?, self.mode(modes));
            self.inodes.ensure_fd_left(&parent)?;
            openat(&*parent, new.name, flags, mode)
        };
        let file = match created {
            Err(Errno::EXIST) if flags & libc::O_EXCL == 0 => return Err(Errno::STALE.into()),
            created => created?,
        };
        let _credentials = self.impersonate_if_lower_checks(new.caller);
        let path = proc_path(file.as_fd());
        let held = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let attributes = Attributes::of(&held)?;
        let inode = self.inodes.insert((&directory, new.name), held, &attributes)?;
        Ok((OpenFile::created(inode, file, flags, self.large_writes), attributes))
    }

    pub(super) fn hard_link(&self, id: u64, new: NewEntry<'_>) -> io::Result<FoundInode> {
        check_name(new.name)?;
        let (inode, directory) = (self.inode(id)?, self.inode(new.parent)?);
        let _credentials = self.impersonate_if_lower_checks(new.caller);
        let (file, parent) = (self.fd(&inode)?, self.fd(&directory)?);
        self.inodes.ensure_fd_left(&parent)?;
        rustix::fs::linkat(&*file, "", &*parent, new.name, AtFlags::EMPTY_PATH)?;
        self.find(&directory, new.name)
    }

    pub(super) fn remove(
        &self,
        parent: u64,
        name: &OsStr,
        is_directory: bool,
        caller: Caller,
    ) -> io::Result<()> {
        check_name(name)?;
        let directory = self.inode(parent)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let parent = self.fd(&directory)?;
        let removed = self.pin_removed(&parent, name);
        rustix::fs::unlinkat(&*parent, name, flags)?;
        if let Some(inode) = removed {
            inode.mark_removed_here();
        }
        Ok(())
    }

    /// Opens a descriptor of the file that is about to lose `name`, and returns its inode. The
    /// file may stay in use without being open, as a working directory is, and cannot be opened by
    /// handle later. Only needed over local file systems.
    fn pin_removed(&self, parent: &InodeFd, name: &OsStr) -> Option<Arc<Inode>> {
        let key = self.is_local.then(|| FileHandle::at(parent, name).ok())??;
        let inode = self.inodes.by_handle(&key)?;
        self.fd(&inode).is_ok().then_some(inode)
    }

    pub(super) fn rename(
        &self,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
        flags: u32,
        caller: Caller,
    ) -> io::Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        let (from, to) = (self.inode(parent)?, self.inode(new_parent)?);
        let _credentials = self.impersonate_if_lower_checks(caller);
        let (from_file, to_file) = (self.fd(&from)?, self.fd(&to)?);
        let flags = RenameFlags::from_bits_retain(flags);
        // Before the rename, when the name still leads to the file that the kernel means.
        let moved = FileHandle::at(&*from_file, name)?;
        let exchanged = match flags.contains(RenameFlags::EXCHANGE) {
            true => Some(FileHandle::at(&*to_file, new_name)?),
            false => None,
        };
        let replaced = match exchanged {
            None => self.pin_removed(&to_file, new_name),
            Some(_) => None,
        };
        rustix::fs::renameat_with(&*from_file, name, &*to_file, new_name, flags)?;
        if let Some(inode) = replaced {
            inode.mark_removed_here();
        }
        let moved = self.inodes.relocate(&moved, (&to, new_name));
        let exchanged = exchanged.and_then(|exchanged| self.inodes.relocate(&exchanged, (&from, name)));
        for inode in moved.into_iter().chain(exchanged) {
            // A rename invalidates the attributes that the kernel has cached, above and below.
            // Fetch those below now, so that the next `stat` waits for one of them.
            let _ = self.fd(&inode).and_then(|file| Attributes::of(&*file));
        }
        Ok(())
    }

    /// The value of an extended attribute, of `size` bytes at most; its length if `size` is 0.
    pub(super) fn get_xattr(
        &self,
        id: u64,
        name: &OsStr,
        size: u32,
        caller: Caller,
    ) -> io::Result<XattrReply> {
        let inode = self.inode(id)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        let file = self.fd(&inode)?;
        let path = proc_path(file.as_fd());
        if size == 0 {
            return Ok(XattrReply::Size(rustix::fs::getxattr_query(path, name)?));
        }
        let mut value = Vec::with_capacity(size.min(MAX_XATTR_SIZE) as usize);
        rustix::fs::getxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
        Ok(XattrReply::Data(value))
    }

    /// The names of all extended attributes that the caller may list, each terminated by a zero.
    pub(super) fn list_xattrs(&self, id: u64, caller: Caller) -> io::Result<Vec<u8>> {
        let inode = self.inode(id)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        let file = self.fd(&inode)?;
        let list = || -> io::Result<Vec<u8>> {
            let mut names = Vec::with_capacity(MAX_XATTR_LIST_SIZE);
            rustix::fs::listxattr(proc_path(file.as_fd()), rustix::buffer::spare_capacity(&mut names))?;
            Ok(names)
        };
        let names = list()?;
        // A file system lists `trusted.*` to callers with `CAP_SYS_ADMIN` only, and would check
        // this daemon's.
        if self.is_local && names.split(|byte| *byte == 0).any(|name| name.starts_with(b"trusted.")) {
            let _credentials = caller.impersonate_restricted(CapabilitySet::SYS_ADMIN);
            return list();
        }
        Ok(names)
    }

    pub(super) fn set_xattr(
        &self,
        id: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        caller: Caller,
    ) -> io::Result<()> {
        let inode = self.inode(id)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        let file = self.fd(&inode)?;
        let flags = XattrFlags::from_bits_retain(flags as u32);
        // Setting it clears the set-group-id bit, unless the caller is in the file's group or has
        // `CAP_FSETID`.
        let _within = (self.has_acls && name == "system.posix_acl_access")
            .then(|| caller.impersonate_restricted(CapabilitySet::FSETID));
        Ok(rustix::fs::setxattr(proc_path(file.as_fd()), name, value, flags)?)
    }

    pub(super) fn remove_xattr(&self, id: u64, name: &OsStr, caller: Caller) -> io::Result<()> {
        let inode = self.inode(id)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        let file = self.fd(&inode)?;
        Ok(rustix::fs::removexattr(proc_path(file.as_fd()), name)?)
    }

    /// Whether the lower daemon grants `mask` to the caller. The kernel asks only if it does not
    /// check itself.
    pub(super) fn access(&self, id: u64, mask: i32, caller: Caller) -> io::Result<()> {
        let inode = self.inode(id)?;
        let _credentials = self.impersonate_if_lower_checks(caller);
        let file = self.fd(&inode)?;
        let access = rustix::fs::Access::from_bits_truncate(mask as u32);
        Ok(rustix::fs::accessat(CWD, proc_path(file.as_fd()), access, AtFlags::EACCESS)?)
    }

    /// The regular file `id`, which the caller may read, and its owner. The kernel has checked
    /// that before it asks for an attribute in `user.`. Where it checks nothing, the lower daemon
    /// has to let the caller open the file.
    pub(super) fn readable_file(&self, id: u64, caller: Caller) -> io::Result<(NodeInstance, u32)> {
        let inode = self.inode(id)?;
        if inode.file_type != FileType::RegularFile {
            return Err(io::Error::from_raw_os_error(libc::ENODATA));
        }
        if !self.kernel_checks {
            self.access(id, libc::R_OK, caller)?;
            let _credentials = caller.impersonate();
            drop(self.open(&inode, libc::O_RDONLY)?);
        }
        Ok((inode.instance(), Attributes::of(&*self.fd(&inode)?)?.owner()))
    }

    pub(super) fn statfs(&self, id: u64) -> io::Result<rustix::fs::StatVfs> {
        Ok(rustix::fs::fstatvfs(&*self.fd(&self.inode(id)?)?)?)
    }
}

/// The longest list of attribute names, in bytes (`XATTR_LIST_MAX` of Linux).
const MAX_XATTR_LIST_SIZE: usize = 64 << 10;

/// Rejects all but single names, which are what the kernel sends. A path would lead out of the
/// lower mount.
fn check_name(name: &OsStr) -> io::Result<()> {
    let is_path = name.is_empty() || name == "." || name == ".." || name.as_encoded_bytes().contains(&b'/');
    if is_path { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { Ok(()) }
}

fn truncate(file: &InodeFd, size: u64, open: Option<&OpenFile>) -> io::Result<()> {
    if let Some(open) = open {
        return open.truncate(size);
    }
    let size = i64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    Ok(nix::unistd::truncate(&proc_path(file.as_fd()), size)?)
}

/// The value of an extended attribute, or its length.
pub(super) enum XattrReply {
    Size(usize),
    Data(Vec<u8>),
}

/// The time that a program gave. fuser takes the parts of a time before 1970, -2 s and 0.5 s for
/// 1.5 s before, and returns a distance from 1970 that adds both: 2.5 s. Its parts are still those
/// of the request.
fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let seconds = |distance: Duration| i64::try_from(distance.as_secs()).unwrap_or(i64::MAX);
    match time {
        None => special(UTIME_OMIT),
        Some(TimeOrNow::Now) => special(UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timespec { tv_sec: seconds(after), tv_nsec: after.subsec_nanos().into() },
            Err(before) => {
                let before = before.duration();
                Timespec { tv_sec: -seconds(before), tv_nsec: before.subsec_nanos().into() }
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_names_are_looked_up() {
        for name in ["a", "...", "a b", "\u{1}"] {
            assert!(check_name(name.as_ref()).is_ok(), "{name:?}");
        }
        for path in ["", ".", "..", "/", "a/b", "../a", "/etc"] {
            assert!(check_name(path.as_ref()).is_err(), "{path:?}");
        }
    }

    #[test]
    fn times_before_1970_are_passed_on_unchanged() {
        let spec = |time| {
            let spec = timespec(Some(TimeOrNow::SpecificTime(time)));
            (spec.tv_sec, spec.tv_nsec)
        };
        assert_eq!(spec(UNIX_EPOCH + Duration::new(1, 500_000_000)), (1, 500_000_000));
        // fuser's form of -2 s and 0.5 s.
        assert_eq!(spec(UNIX_EPOCH - Duration::new(2, 500_000_000)), (-2, 500_000_000));
        assert_eq!(spec(UNIX_EPOCH - Duration::from_secs(3)), (-3, 0));
        let first = UNIX_EPOCH - Duration::new(i64::MAX as u64, 999_999_999);
        assert_eq!(spec(first), (-i64::MAX, 999_999_999));
    }
}
