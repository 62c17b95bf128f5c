//! Open files: each handle is an open file of the mount below, and what is asked of the one is asked of the other.
//!
//! The handle below is opened with the flags of the one above, but for three. `O_APPEND`: the kernel may write back mapped
//! pages by way of any handle, and those must go where they belong; so each appending write says that it appends. The one
//! exception is a file that can only be appended to (`chattr +a`), which no other handle may write. `O_DIRECT`: it asks
//! for aligned memory, which requests do not have; the kernel's pages above are passed by, those below are not.
//! `O_TRUNC`: the kernel asks for it by a request of its own.
//!
//! Flags that a program may change of an open handle (`fcntl` with `F_SETFL`) come with each read and write, and those count.
//!
//! A handle that is open for writing tells its file's [`Content`](super::content::Content) so from before it is opened until after it is closed below.
//!
//! **Large writes to a `weed mount`** pass the kernel's pages of it by: what is written is in the pages of the layer already, and to copy it to others as well is a large part of what a write
//! costs this daemon. `O_DIRECT` is set as long as such writes come, and taken back before a read or a small write, which the pages below may put together with others
//! (`-writebackCache`). Both ways mix, as the kernel keeps those pages true. Other daemons get no such writes: these are cut where pages end and all pieces sent at once, and some take only what
//! comes in its order.
//!
//! Errors of writing back show at `close`, and a daemon below may make a file only then, as `weed mount` does. So a flush closes a duplicate of the handle below, which is
//! what has a daemon below flush.

use super::attributes::{Attributes, proc_path};
use super::inodes::Node;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom, fcntl_getfl, fcntl_setfl};
use rustix::io::ReadWriteFlags;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// From so many bytes on a write is large.
const LARGE: usize = 128 << 10;

/// How large writes go to the file below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LargeWrites {
    /// As all others do.
    Paged,
    /// Past the kernel's pages.
    Direct,
}

/// An open file.
pub(super) struct OpenFile {
    // Fields are dropped in this order: the handle below is closed before the file counts as no longer written.
    file: OwnedFd,
    _writing: Option<Writing>,
    pub(super) node: Arc<Node>,
    /// Whether the handle below can only append.
    only_appends: bool,
    large_writes: LargeWrites,
    /// Those of [`CHANGING`] that the handle below has now.
    flags: AtomicU32,
    flags_change: Mutex<()>,
}

/// Flags of the handle below that change while it is open.
const CHANGING: OFlags = OFlags::DIRECT.union(OFlags::NOATIME);

/// While it lives, its file counts as being written.
struct Writing(Arc<Node>);

impl Writing {
    fn begin(node: &Arc<Node>, flags: i32) -> Option<Self> {
        (flags & libc::O_ACCMODE != libc::O_RDONLY).then(|| {
            node.content.writer_opens();
            Self(node.clone())
        })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.content.writer_closed();
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The flags with which the handle below is opened for one that is opened with `flags`.
pub(super) fn flags_below(flags: i32) -> OFlags {
    let kept = OFlags::RWMODE | OFlags::SYNC | OFlags::DSYNC | OFlags::NOATIME;
    (OFlags::from_bits_retain(flags as u32) & kept) | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK
}

fn appends(flags: i32) -> bool {
    flags & libc::O_APPEND != 0
}

impl OpenFile {
    /// Opens the file of `node`.
    pub(super) fn open(node: Arc<Node>, flags: i32, large_writes: LargeWrites) -> io::Result<Self> {
        let writing = Writing::begin(&node, flags);
        let path_file = node.file()?;
        let (path, below) = (proc_path(path_file.as_fd()), flags_below(flags));
        let (file, only_appends) = match rustix::fs::open(&path, below, Mode::empty()) {
            Err(rustix::io::Errno::PERM) if appends(flags) => {
                (rustix::fs::open(&path, below | OFlags::APPEND, Mode::empty())?, true)
            }
            opened => (opened?, false),
        };
        Ok(Self { only_appends, ..Self::of(node, file, writing, flags, large_writes) })
    }

    /// What was opened by creating it.
    pub(super) fn created(node: Arc<Node>, file: OwnedFd, flags: i32, large_writes: LargeWrites) -> Self {
        let writing = Writing::begin(&node, flags);
        Self::of(node, file, writing, flags, large_writes)
    }

    fn of(
        node: Arc<Node>,
        file: OwnedFd,
        writing: Option<Writing>,
        flags: i32,
        large_writes: LargeWrites,
    ) -> Self {
        Self {
            file,
            _writing: writing,
            node,
            only_appends: false,
            large_writes,
            flags: AtomicU32::new((flags_below(flags) & CHANGING).bits()),
            flags_change: Mutex::default(),
        }
    }

    /// Whether the handle below can only append. Then pages of the kernel could not be written back.
    pub(super) fn only_appends(&self) -> bool {
        self.only_appends
    }

    /// The handle above has these flags now.
    pub(super) fn follow(&self, flags: i32) {
        self.set(OFlags::NOATIME, flags & libc::O_NOATIME != 0);
    }

    /// Has the handle below pass the kernel's pages by, or not, from now on. Another thread may change that again at once: only the time it takes depends on it.
    fn set_direct(&self, direct: bool) {
        self.set(OFlags::DIRECT, direct);
    }

    fn set(&self, flag: OFlags, on: bool) {
        let has = || self.flags.load(Ordering::Relaxed) & flag.bits() != 0;
        if has() == on {
            return;
        }
        let _one = self.flags_change.lock();
        let set = fcntl_getfl(&self.file).and_then(|mut flags| {
            flags.set(flag, on);
            fcntl_setfl(&self.file, flags).map(|()| flags)
        });
        if let Ok(flags) = set {
            self.flags.store((flags & CHANGING).bits(), Ordering::Relaxed);
        }
    }

    /// The attributes of the file after all that programs have mapped and changed below was written back, as a daemon below tells them now.
    pub(super) fn written_back(&self) -> io::Result<Attributes> {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: the descriptor is open as long as `self`, and no memory is involved.
        nix::errno::Errno::result(unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, 0, flags) })?;
        Attributes::fresh(&self.file)
    }

    /// Reads up to `buffer.len()` bytes from `offset` on; fewer are the end of the file.
    pub(super) fn read(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<usize> {
        self.set_direct(false);
        let mut read = 0;
        while !buffer.is_empty() {
            match rustix::io::pread(&self.file, &mut *buffer, offset) {
                Ok(0) => break,
                Ok(count) => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                    read += count;
                }
                Err(rustix::io::Errno::INTR) => {}
                // What came before it is told first; the next read meets the error.
                Err(_) if read > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(read)
    }

    /// Writes `data` at `offset`; or at the end if the handle above appends by its `flags` of now and the bytes do not
    /// come from the kernel's pages (`mapped`).
    pub(super) fn write(&self, data: &[u8], offset: u64, flags: i32, mapped: bool) -> io::Result<usize> {
        let at_end = appends(flags) && !mapped;
        if self.only_appends && !at_end {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let flags = if at_end { ReadWriteFlags::APPEND } else { ReadWriteFlags::empty() };
        self.set_direct(self.large_writes == LargeWrites::Direct && data.len() >= LARGE);
        let mut written = 0;
        while written < data.len() {
            let rest = [IoSlice::new(&data[written..])];
            match rustix::io::pwritev2(&self.file, &rest, offset + written as u64, flags) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) if written > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    /// One of the descriptors of the handle is closed.
    pub(super) fn flush(&self) -> io::Result<()> {
        let duplicate = nix::unistd::dup(&self.file)?;
        nix::unistd::close(duplicate)?;
        Ok(())
    }

    pub(super) fn sync(&self, only_data: bool) -> io::Result<()> {
        Ok(if only_data { rustix::fs::fdatasync(&self.file) } else { rustix::fs::fsync(&self.file) }?)
    }

    pub(super) fn truncate(&self, size: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.file, size)?)
    }

    pub(super) fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        Ok(rustix::fs::fallocate(&self.file, mode, offset, len)?)
    }

    /// Finds data or a hole from `offset` on. Of the kernel's kinds of seeking only these two are asked for.
    pub(super) fn seek(&self, offset: u64, whence: i32) -> io::Result<u64> {
        let to = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(rustix::fs::seek(&self.file, to)?)
    }

    /// Has the mount below copy, which may be without moving a byte.
    pub(super) fn copy_to(
        &self,
        mut offset: u64,
        other: &OpenFile,
        mut other_offset: u64,
        len: usize,
    ) -> io::Result<usize> {
        let (from, to) = (Some(&mut offset), Some(&mut other_offset));
        Ok(rustix::fs::copy_file_range(&self.file, from, &other.file, to, len)?)
    }
}

#[cfg(test)]
impl OpenFile {
    /// A handle of the file at `path`, in a tree of its own.
    pub(super) fn at(path: &std::path::Path, flags: i32) -> Self {
        use super::inodes::{Nodes, ROOT};
        let held = |path: &std::path::Path| -> OwnedFd {
            rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        let (root, file) = (held(path.parent().unwrap()), held(path));
        let nodes = Nodes::of_one(root, &Attributes::of(&file).unwrap());
        let (attributes, root) = (Attributes::of(&file).unwrap(), nodes.get(ROOT).unwrap());
        let node = nodes.found((&root, "file".as_ref()), file, &attributes).unwrap();
        Self::open(node, flags, LargeWrites::Paged).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handle of a new file with the content `abc`, and the directory that it is in.
    fn open(flags: i32) -> (OpenFile, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        (OpenFile::at(&path, flags), dir)
    }

    #[test]
    fn appending_writes_go_to_the_end_and_pages_to_their_place() {
        let (file, _dir) = open(libc::O_RDWR | libc::O_APPEND);
        assert_eq!(file.write(b"de", 0, libc::O_APPEND, false).unwrap(), 2);
        assert_eq!(file.write(b"X", 0, libc::O_APPEND, true).unwrap(), 1);
        let mut buffer = [0; 10];
        assert_eq!(file.read(&mut buffer, 0).unwrap(), 5);
        assert_eq!(&buffer[..5], b"Xbcde");
        assert_eq!(file.read(&mut buffer, 5).unwrap(), 0);
        file.write(b"Y", 1, 0, false).unwrap();
        file.read(&mut buffer, 0).unwrap();
        assert_eq!(&buffer[..5], b"XYcde", "the program has taken the flag back");
    }

    #[test]
    fn the_handle_below_follows_what_a_program_changes_of_its_own() {
        let (file, _dir) = open(libc::O_RDONLY);
        let has = |flag| fcntl_getfl(&file.file).unwrap().contains(flag);
        assert!(!has(OFlags::NOATIME));
        file.follow(libc::O_NOATIME);
        assert!(has(OFlags::NOATIME));
        file.set_direct(true);
        file.follow(0);
        assert!(!has(OFlags::NOATIME));
    }

    #[test]
    fn errors_are_those_of_the_file_below() {
        let (file, _dir) = open(libc::O_RDONLY);
        assert_eq!(file.write(b"x", 0, 0, false).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(file.seek(3, libc::SEEK_DATA).unwrap_err().raw_os_error(), Some(libc::ENXIO));
        assert_eq!(file.seek(0, libc::SEEK_HOLE).unwrap(), 3);
        file.flush().unwrap();
    }
}
