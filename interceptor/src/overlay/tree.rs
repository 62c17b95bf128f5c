//! Names and attributes: what is asked of the mount below by descriptors of directories and names in them.

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
use rustix::thread::CapabilitySet;

use super::attributes::{self, Attributes, FileKey, proc_path};
use super::credentials::{Acting, Caller, own_umask};
use super::inodes::{Node, NodeFile, Nodes};
use super::lower::Lower;
use super::open_directory::{DirectoryEntry, OpenDirectory};
use super::open_file::{LargeWrites, OpenFile, flags_below};
use crate::warmup::ticket::NodeInstance;

/// The most bytes of an extended attribute's value (`XATTR_SIZE_MAX` of Linux).
const MAX_XATTR: u32 = 64 << 10;

/// The names and attributes of the mount below.
pub(super) struct Tree {
    nodes: Arc<Nodes>,
    kernel_checks: bool,
    is_local: bool,
    has_acls: bool,
    large_writes: LargeWrites,
}

/// A file that is about to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct New<'a> {
    pub(super) parent: u64,
    pub(super) name: &'a OsStr,
    pub(super) caller: Caller,
}

/// How a new file is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Modes {
    pub(super) mode: u32,
    /// The caller's, to be applied unless the directory's access control list says what new files get.
    pub(super) umask: u32,
}

/// Attributes to be changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) mode: Option<u32>,
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<TimeOrNow>,
    pub(super) modified: Option<TimeOrNow>,
}

/// What a lookup found: the node, with one lookup of it counted, and what it is like.
pub(super) type Found = (Arc<Node>, Attributes);

impl Tree {
    /// The tree of `lower`. When it takes more than `most` descriptors, `crowded` is told.
    pub(super) fn new(lower: &Lower, most: usize, crowded: SyncSender<()>) -> io::Result<Self> {
        let attributes = Attributes::of(&lower.root)?;
        let root: OwnedFd = lower.root.try_clone()?;
        let nodes = Arc::new(Nodes::new(root, &attributes, lower.is_local, most, crowded)?);
        let large_writes = if lower.is_weed() { LargeWrites::Direct } else { LargeWrites::Paged };
        Ok(Self {
            nodes,
            kernel_checks: lower.kernel_checks,
            is_local: lower.is_local,
            has_acls: lower.has_acls,
            large_writes,
        })
    }

    pub(super) fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// Whether the kernel checks rights by attributes. If not, the daemon below does.
    pub(super) fn kernel_checks(&self) -> bool {
        self.kernel_checks
    }

    /// Whether it is a file system of this host's kernel.
    pub(super) fn is_local(&self) -> bool {
        self.is_local
    }

    /// Opens the file of `node`. Of other kinds the kernel opens files by itself.
    pub(super) fn open(&self, node: &Arc<Node>, flags: i32) -> io::Result<OpenFile> {
        if node.file_type != FileType::RegularFile {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.nodes.with_descriptor(|| OpenFile::open(node.clone(), flags, self.large_writes))
    }

    /// Opens the directory of `node`.
    pub(super) fn open_directory(&self, node: &Arc<Node>) -> io::Result<OpenDirectory> {
        self.nodes.with_descriptor(|| OpenDirectory::open(node.clone()))
    }

    fn file(&self, node: &Arc<Node>) -> io::Result<Arc<NodeFile>> {
        self.nodes.with_descriptor(|| node.file())
    }

    /// A node the kernel names. It names none that it has forgotten.
    pub(super) fn node(&self, id: u64) -> io::Result<Arc<Node>> {
        self.nodes.get(id).ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// Who is not making anything acts as the caller only if the daemon below is the one who checks.
    pub(super) fn asking(&self, caller: Caller) -> Option<Acting> {
        (!self.kernel_checks).then(|| caller.act())
    }

    pub(super) fn lookup(&self, parent: u64, name: &OsStr, caller: Caller) -> io::Result<Found> {
        is_name(name)?;
        let directory = self.node(parent)?;
        let _acting = self.asking(caller);
        self.find(&directory, name)
    }

    fn find(&self, directory: &Arc<Node>, name: &OsStr) -> io::Result<Found> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = self.file(directory)?;
        let file = self.nodes.with_descriptor(|| Ok(openat(&*parent, name, flags, Mode::empty())?))?;
        let attributes = Attributes::of(&file)?;
        let node = self.nodes.found((directory, name), file, &attributes)?;
        node.content.is_like(&attributes);
        Ok((node, attributes))
    }

    /// The type of an entry that the mount below lists without it. Asked as the layer itself: it is part of the listing,
    /// for which the caller has had the right.
    pub(super) fn type_of(
        &self,
        directory: &Arc<Node>,
        entry: &DirectoryEntry,
    ) -> io::Result<fuser::FileType> {
        if entry.is_dots() {
            return Ok(fuser::FileType::Directory);
        }
        let name = CString::new(entry.name.as_bytes())?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        Ok(Attributes::at(&*self.file(directory)?, &name, flags)?.kind())
    }

    /// A node that is to be opened. The kernel may have come to it by a name that it remembers and that leads to another file by now: then it is told so, and looks again.
    /// That is done once for a node, since who opens a file by way of `/proc` cannot look again.
    pub(super) fn node_to_open(&self, id: u64, caller: Caller) -> io::Result<Arc<Node>> {
        let node = self.node(id)?;
        let (Some(directory), name) = node.home() else { return Ok(node) };
        let _acting = self.asking(caller);
        match self.file(&directory).and_then(|directory| FileKey::at(&*directory, &name)) {
            Ok(key) if node.is_replaced_by(&key) => Err(io::Error::from_raw_os_error(libc::ESTALE)),
            // Without its name it is a file that was deleted.
            _ => Ok(node),
        }
    }

    pub(super) fn attributes(&self, id: u64, caller: Caller) -> io::Result<Attributes> {
        let node = self.node(id)?;
        let _acting = self.asking(caller);
        let attributes = Attributes::of(&*self.file(&node)?)?;
        node.content.seen(&attributes);
        Ok(attributes)
    }

    /// Changes attributes; `open` is the handle by which that was asked for.
    pub(super) fn change(
        &self,
        id: u64,
        change: Change,
        open: Option<&OpenFile>,
        caller: Caller,
    ) -> io::Result<Attributes> {
        let node = self.node(id)?;
        let _acting = self.asking(caller);
        let file = self.file(&node)?;
        // In this order, since a new owner takes set-user-id bits away, and a new size the times.
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
            // Before, so that reads see it, and after, so that nobody who looked in between is believed.
            node.content.written();
            let truncated = truncate(&file, size, open);
            node.content.written();
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
        let node = self.node(id)?;
        let _acting = self.asking(caller);
        let target = rustix::fs::readlinkat(&*self.file(&node)?, "", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Makes something by `make`, whose owner will be the caller, and finds it.
    fn make(
        &self,
        new: New<'_>,
        modes: Modes,
        make: impl FnOnce(&NodeFile, Mode) -> io::Result<()>,
    ) -> io::Result<Found> {
        is_name(new.name)?;
        let directory = self.node(new.parent)?;
        {
            let _acting = new.caller.act();
            make(&*self.file(&directory)?, self.mode(modes))?;
        }
        let _acting = self.asking(new.caller);
        self.find(&directory, new.name)
    }

    /// The mode to ask the mount below for. Where there are access control lists the kernel has left the umask to us, and we
    /// leave it to the mount below.
    fn mode(&self, modes: Modes) -> Mode {
        if self.has_acls {
            own_umask(modes.umask);
        }
        Mode::from_bits_truncate(modes.mode & 0o7777)
    }

    pub(super) fn make_directory(&self, new: New<'_>, modes: Modes) -> io::Result<Found> {
        self.make(new, modes, |parent, mode| Ok(rustix::fs::mkdirat(parent, new.name, mode)?))
    }

    pub(super) fn make_node(&self, new: New<'_>, modes: Modes, packed_device: u32) -> io::Result<Found> {
        self.make(new, modes, |parent, mode| {
            let kind = FileType::from_raw_mode(modes.mode);
            Ok(rustix::fs::mknodat(parent, new.name, kind, mode, attributes::device(packed_device))?)
        })
    }

    pub(super) fn make_link(&self, new: New<'_>, target: &Path) -> io::Result<Found> {
        let modes = Modes { mode: 0o777, umask: 0 };
        self.make(new, modes, |parent, _| Ok(rustix::fs::symlinkat(target, parent, new.name)?))
    }

    /// Makes a file and opens it.
    ///
    /// The kernel asks for this only where it knows of no file, and has checked only that one may be made there. So a file that has come
    /// meanwhile must not be opened: the kernel is told that what it knows is old, and looks again.
    pub(super) fn create(
        &self,
        new: New<'_>,
        modes: Modes,
        flags: i32,
    ) -> io::Result<(OpenFile, Attributes)> {
        is_name(new.name)?;
        let directory = self.node(new.parent)?;
        let created = {
            let _acting = new.caller.act();
            let flags = flags_below(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let (parent, mode) = (self.file(&directory)?, self.mode(modes));
            self.nodes.with_descriptor(|| Ok(openat(&*parent, new.name, flags, mode)?))
        };
        let file = match created {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && flags & libc::O_EXCL == 0 => {
                return Err(io::Error::from_raw_os_error(libc::ESTALE));
            }
            created => created?,
        };
        let _acting = self.asking(new.caller);
        let path = proc_path(file.as_fd());
        let held = self.nodes.with_descriptor(|| {
            Ok(rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
        })?;
        let attributes = Attributes::of(&held)?;
        let node = self.nodes.found((&directory, new.name), held, &attributes)?;
        Ok((OpenFile::created(node, file, flags, self.large_writes), attributes))
    }

    pub(super) fn hard_link(&self, id: u64, new: New<'_>) -> io::Result<Found> {
        is_name(new.name)?;
        let (node, directory) = (self.node(id)?, self.node(new.parent)?);
        let _acting = self.asking(new.caller);
        let (file, parent) = (self.file(&node)?, self.file(&directory)?);
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
        is_name(name)?;
        let directory = self.node(parent)?;
        let _acting = self.asking(caller);
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let parent = self.file(&directory)?;
        let removed = self.hold_removed(&parent, name);
        rustix::fs::unlinkat(&*parent, name, flags)?;
        if let Some(node) = removed {
            node.removed();
        }
        Ok(())
    }

    /// The file that is about to lose this name, by a descriptor that it keeps from then on: without being open it may be
    /// in use, as a working directory is, and no handle would lead to it. Elsewhere than over local file systems none has to.
    fn hold_removed(&self, parent: &NodeFile, name: &OsStr) -> Option<Arc<Node>> {
        let key = self.is_local.then(|| FileKey::at(parent, name).ok())??;
        let node = self.nodes.known(&key)?;
        self.file(&node).is_ok().then_some(node)
    }

    pub(super) fn rename(
        &self,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
        flags: u32,
        caller: Caller,
    ) -> io::Result<()> {
        is_name(name)?;
        is_name(new_name)?;
        let (from, to) = (self.node(parent)?, self.node(new_parent)?);
        let _acting = self.asking(caller);
        let (from_file, to_file) = (self.file(&from)?, self.file(&to)?);
        let flags = RenameFlags::from_bits_retain(flags);
        // Before, as nobody can have put another file in its place then that the kernel has not heard of.
        let moved = FileKey::at(&*from_file, name)?;
        let exchanged = match flags.contains(RenameFlags::EXCHANGE) {
            true => Some(FileKey::at(&*to_file, new_name)?),
            false => None,
        };
        let replaced = match exchanged {
            None => self.hold_removed(&to_file, new_name),
            Some(_) => None,
        };
        rustix::fs::renameat_with(&*from_file, name, &*to_file, new_name, flags)?;
        if let Some(node) = replaced {
            node.removed();
        }
        let moved = self.nodes.moved(&moved, (&to, new_name));
        let exchanged = exchanged.and_then(|exchanged| self.nodes.moved(&exchanged, (&from, name)));
        for node in moved.into_iter().chain(exchanged) {
            // The kernel does not trust the times that it knows any more, here and below. Who looks at them next need not wait for both.
            let _ = self.file(&node).and_then(|file| Attributes::of(&*file));
        }
        Ok(())
    }

    /// The value of an extended attribute, of `size` bytes at most; with 0 only its size is wanted.
    pub(super) fn attribute(&self, id: u64, name: &OsStr, size: u32, caller: Caller) -> io::Result<Xattr> {
        let node = self.node(id)?;
        let _acting = self.asking(caller);
        let file = self.file(&node)?;
        let path = proc_path(file.as_fd());
        if size == 0 {
            return Ok(Xattr::Size(rustix::fs::getxattr_query(path, name)?));
        }
        let mut value = Vec::with_capacity(size.min(MAX_XATTR) as usize);
        rustix::fs::getxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
        Ok(Xattr::Data(value))
    }

    /// The names of all extended attributes that the caller may know, each ended by a zero.
    pub(super) fn attribute_names(&self, id: u64, caller: Caller) -> io::Result<Vec<u8>> {
        let node = self.node(id)?;
        let _acting = self.asking(caller);
        let file = self.file(&node)?;
        let list = || -> io::Result<Vec<u8>> {
            let mut names = Vec::with_capacity(MAX_NAMES_BYTES);
            rustix::fs::listxattr(proc_path(file.as_fd()), rustix::buffer::spare_capacity(&mut names))?;
            Ok(names)
        };
        let names = list()?;
        // These are listed by a kernel's file system to those only who may have them, which here it asks of the layer.
        if self.is_local && names.split(|byte| *byte == 0).any(|name| name.starts_with(b"trusted.")) {
            let _acting = caller.act_within(CapabilitySet::SYS_ADMIN);
            return list();
        }
        Ok(names)
    }

    pub(super) fn set_attribute(
        &self,
        id: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        caller: Caller,
    ) -> io::Result<()> {
        let node = self.node(id)?;
        let _acting = self.asking(caller);
        let file = self.file(&node)?;
        let flags = XattrFlags::from_bits_retain(flags as u32);
        // It takes set-group-id away, unless the caller is in the file's group or has the right to set that.
        let _within = (self.has_acls && name == "system.posix_acl_access")
            .then(|| caller.act_within(CapabilitySet::FSETID));
        Ok(rustix::fs::setxattr(proc_path(file.as_fd()), name, value, flags)?)
    }

    pub(super) fn remove_attribute(&self, id: u64, name: &OsStr, caller: Caller) -> io::Result<()> {
        let node = self.node(id)?;
        let _acting = self.asking(caller);
        let file = self.file(&node)?;
        Ok(rustix::fs::removexattr(proc_path(file.as_fd()), name)?)
    }

    /// Whether the daemon below lets the caller do this. Asked only where the kernel does not check by itself.
    pub(super) fn access(&self, id: u64, mask: i32, caller: Caller) -> io::Result<()> {
        let node = self.node(id)?;
        let _acting = self.asking(caller);
        let file = self.file(&node)?;
        let access = rustix::fs::Access::from_bits_truncate(mask as u32);
        Ok(rustix::fs::accessat(CWD, proc_path(file.as_fd()), access, AtFlags::EACCESS)?)
    }

    /// The regular file `id`, which the caller may read, and its owner. The kernel has checked that before it asks for an
    /// attribute of the `user.` name space; where it checks nothing, the daemon below has to let the caller in.
    pub(super) fn readable_file(&self, id: u64, caller: Caller) -> io::Result<(NodeInstance, u32)> {
        let node = self.node(id)?;
        if node.file_type != FileType::RegularFile {
            return Err(io::Error::from_raw_os_error(libc::ENODATA));
        }
        if !self.kernel_checks {
            self.access(id, libc::R_OK, caller)?;
            let _acting = caller.act();
            drop(self.open(&node, libc::O_RDONLY)?);
        }
        Ok((node.instance(), Attributes::of(&*self.file(&node)?)?.owner()))
    }

    pub(super) fn space(&self, id: u64) -> io::Result<rustix::fs::StatVfs> {
        Ok(rustix::fs::fstatvfs(&*self.file(&self.node(id)?)?)?)
    }
}

/// The names of extended attributes of a file are no longer than this altogether (`XATTR_LIST_MAX` of Linux).
const MAX_NAMES_BYTES: usize = 64 << 10;

/// The kernel asks for single names only. Anything else would lead out of the mount below.
fn is_name(name: &OsStr) -> io::Result<()> {
    let is_path = name.is_empty() || name == "." || name == ".." || name.as_encoded_bytes().contains(&b'/');
    if is_path { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { Ok(()) }
}

fn truncate(file: &NodeFile, size: u64, open: Option<&OpenFile>) -> io::Result<()> {
    if let Some(open) = open {
        return open.truncate(size);
    }
    let size = i64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    Ok(nix::unistd::truncate(&proc_path(file.as_fd()), size)?)
}

/// An extended attribute, or how large it is.
pub(super) enum Xattr {
    Size(usize),
    Data(Vec<u8>),
}

/// A time as programs gave it. fuser takes seconds and nanoseconds apart for times before 1970 and
/// gives them back as a distance from it, although nanoseconds count forward: -2 s and 0.5 s, which is
/// 1.5 s before, arrive as 2.5 s before. The parts are still to be told from each other.
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
    fn only_names_are_looked_for() {
        for name in ["a", "...", "a b", "\u{1}"] {
            assert!(is_name(name.as_ref()).is_ok(), "{name:?}");
        }
        for path in ["", ".", "..", "/", "a/b", "../a", "/etc"] {
            assert!(is_name(path.as_ref()).is_err(), "{path:?}");
        }
    }

    #[test]
    fn times_are_those_that_programs_gave() {
        let spec = |time| {
            let spec = timespec(Some(TimeOrNow::SpecificTime(time)));
            (spec.tv_sec, spec.tv_nsec)
        };
        assert_eq!(spec(UNIX_EPOCH + Duration::new(1, 500_000_000)), (1, 500_000_000));
        // As fuser gives -2 s and 0.5 s.
        assert_eq!(spec(UNIX_EPOCH - Duration::new(2, 500_000_000)), (-2, 500_000_000));
        assert_eq!(spec(UNIX_EPOCH - Duration::from_secs(3)), (-3, 0));
        let first = UNIX_EPOCH - Duration::new(i64::MAX as u64, 999_999_999);
        assert_eq!(spec(first), (-i64::MAX, 999_999_999));
    }
}
