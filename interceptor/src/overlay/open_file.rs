//! Open files. Each handle has a file of the lower mount open, and passes requests on to it.
//!
//! The lower file is opened with the handle's flags, except for three:
//!
//! * `O_APPEND`: the kernel may write back mapped pages through any handle, at their own offset.
//!   So each appending write says that it appends (`RWF_APPEND`). The exception is a file that is
//!   append-only (`chattr +a`), which cannot be opened otherwise.
//! * `O_DIRECT` requires aligned memory, which requests do not have. The handle bypasses the
//!   kernel's pages of the overlay, but not those of the lower mount.
//! * `O_TRUNC`: the kernel sends a truncation as a request of its own.
//!
//! Each read and write carries the flags that the handle has after `fcntl(F_SETFL)`; those count.
//!
//! A handle that can write is counted in the file's [`ContentState`](super::content::ContentState)
//! from before it is opened until after it is closed below.
//!
//! **Large writes to a `weed mount`** bypass the kernel's pages of the lower mount. The data is in
//! the pages of the overlay already, and a second copy is a large part of what a write costs this
//! daemon. `O_DIRECT` is set while such writes come. It is cleared before a read or a small write,
//! which the lower pages may combine with others (`-writebackCache`). Both kinds mix, since the
//! kernel keeps the lower pages coherent. Other daemons get no such writes: direct writes are cut
//! at page boundaries and sent concurrently, and some daemons accept only sequential ones.
//!
//! Errors of write-back show at `close`, and a lower daemon may create a file only then, as `weed
//! mount` does. So `flush` closes a duplicate of the lower descriptor, which makes the kernel send
//! `FUSE_FLUSH` below.

use super::attributes::{Attributes, proc_path};
use super::inodes::Inode;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom, fcntl_getfl, fcntl_setfl};
use rustix::io::ReadWriteFlags;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The smallest write that bypasses the lower pages, in bytes.
const MIN_DIRECT_WRITE: usize = 128 << 10;

/// How large writes reach the lower file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LargeWrites {
    /// Through the kernel's pages of the lower mount, as all other writes.
    Paged,
    /// With `O_DIRECT`.
    Direct,
}

/// An open file.
pub(super) struct OpenFile {
    // Drop order: the lower file is closed before the file counts as no longer open for writing.
    file: OwnedFd,
    _writer: Option<WriterGuard>,
    pub(super) inode: Arc<Inode>,
    /// Whether the lower file is open with `O_APPEND`.
    is_append_only: bool,
    large_writes: LargeWrites,
    /// Those of [`MUTABLE_FLAGS`] that the lower descriptor has now.
    flags: AtomicU32,
    flags_change: Mutex<()>,
}

/// Flags of the lower descriptor that change while it is open.
const MUTABLE_FLAGS: OFlags = OFlags::DIRECT.union(OFlags::NOATIME);

/// Counts the file as open for writing.
struct WriterGuard(Arc<Inode>);

impl WriterGuard {
    fn begin(inode: &Arc<Inode>, flags: i32) -> Option<Self> {
        (flags & libc::O_ACCMODE != libc::O_RDONLY).then(|| {
            inode.content.add_writer();
            Self(inode.clone())
        })
    }
}

impl Drop for WriterGuard {
    fn drop(&mut self) {
        self.0.content.remove_writer();
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The flags with which the lower file is opened for a handle with `flags`.
pub(super) fn lower_flags(flags: i32) -> OFlags {
    let kept = OFlags::RWMODE | OFlags::SYNC | OFlags::DSYNC | OFlags::NOATIME;
    (OFlags::from_bits_retain(flags as u32) & kept) | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK
}

fn appends(flags: i32) -> bool {
    flags & libc::O_APPEND != 0
}

impl OpenFile {
    /// Opens the file of `inode`.
    pub(super) fn open(inode: Arc<Inode>, flags: i32, large_writes: LargeWrites) -> io::Result<Self> {
        let writer = WriterGuard::begin(&inode, flags);
        let path_file = inode.fd()?;
        let (path, below) = (proc_path(path_file.as_fd()), lower_flags(flags));
        let (file, is_append_only) = match rustix::fs::open(&path, below, Mode::empty()) {
            Err(rustix::io::Errno::PERM) if appends(flags) => {
                (rustix::fs::open(&path, below | OFlags::APPEND, Mode::empty())?, true)
            }
            opened => (opened?, false),
        };
        Ok(Self { is_append_only, ..Self::of(inode, file, writer, flags, large_writes) })
    }

    /// A handle of `file`, which `O_CREAT` has just made.
    pub(super) fn created(inode: Arc<Inode>, file: OwnedFd, flags: i32, large_writes: LargeWrites) -> Self {
        let writer = WriterGuard::begin(&inode, flags);
        Self::of(inode, file, writer, flags, large_writes)
    }

    fn of(
        inode: Arc<Inode>,
        file: OwnedFd,
        writer: Option<WriterGuard>,
        flags: i32,
        large_writes: LargeWrites,
    ) -> Self {
        Self {
            file,
            _writer: writer,
            inode,
            is_append_only: false,
            large_writes,
            flags: AtomicU32::new((lower_flags(flags) & MUTABLE_FLAGS).bits()),
            flags_change: Mutex::default(),
        }
    }

    /// Whether the lower file can only be appended to, so that the kernel could not write back
    /// pages.
    pub(super) fn is_append_only(&self) -> bool {
        self.is_append_only
    }

    /// Applies the handle's current flags to the lower descriptor.
    pub(super) fn update_flags(&self, flags: i32) {
        self.set(OFlags::NOATIME, flags & libc::O_NOATIME != 0);
    }

    /// Sets or clears `O_DIRECT` below. A race with another thread costs time and nothing else.
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
            self.flags.store((flags & MUTABLE_FLAGS).bits(), Ordering::Relaxed);
        }
    }

    /// Writes back what programs have changed below through mappings, and returns the attributes
    /// that the lower daemon then tells.
    pub(super) fn write_back_and_stat(&self) -> io::Result<Attributes> {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: the descriptor is open as long as `self`, and no memory is involved.
        nix::errno::Errno::result(unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, 0, flags) })?;
        Attributes::fresh(&self.file)
    }

    /// Reads up to `buffer.len()` bytes from `offset` on. Fewer mean the end of the file.
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
                // A partial read is returned first; the next read meets the error.
                Err(_) if read > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(read)
    }

    /// Writes `data` at `offset`. Appends if the handle's current `flags` say so, unless the
    /// kernel writes back pages (`mapped`). Returns how many bytes were written.
    pub(super) fn write(&self, data: &[u8], offset: u64, flags: i32, mapped: bool) -> io::Result<usize> {
        let at_end = appends(flags) && !mapped;
        if self.is_append_only && !at_end {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let flags = if at_end { ReadWriteFlags::APPEND } else { ReadWriteFlags::empty() };
        self.set_direct(self.large_writes == LargeWrites::Direct && data.len() >= MIN_DIRECT_WRITE);
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

    /// A program has closed one descriptor of the handle.
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

    /// Finds data or a hole from `offset` on. The kernel resolves other kinds of `whence` by
    /// itself.
    pub(super) fn seek(&self, offset: u64, whence: i32) -> io::Result<u64> {
        let to = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(rustix::fs::seek(&self.file, to)?)
    }

    /// Has the lower mount copy, which may share blocks. Returns how many bytes were copied.
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
    /// A handle of the file at `path`, in an inode table of its own.
    pub(super) fn at(path: &std::path::Path, flags: i32) -> Self {
        use super::inodes::{InodeTable, ROOT};
        let held = |path: &std::path::Path| -> OwnedFd {
            rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        let (root, file) = (held(path.parent().unwrap()), held(path));
        let inodes = InodeTable::of_one(root, &Attributes::of(&file).unwrap());
        let (attributes, root) = (Attributes::of(&file).unwrap(), inodes.get(ROOT).unwrap());
        let inode = inodes.insert((&root, "file".as_ref()), file, &attributes).unwrap();
        Self::open(inode, flags, LargeWrites::Paged).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handle of a new file with the content `abc`, and its directory.
    fn open(flags: i32) -> (OpenFile, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        (OpenFile::at(&path, flags), dir)
    }

    #[test]
    fn appending_writes_go_to_the_end_and_mapped_pages_to_their_offset() {
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
    fn the_lower_descriptor_follows_flags_that_a_program_changes() {
        let (file, _dir) = open(libc::O_RDONLY);
        let has = |flag| fcntl_getfl(&file.file).unwrap().contains(flag);
        assert!(!has(OFlags::NOATIME));
        file.update_flags(libc::O_NOATIME);
        assert!(has(OFlags::NOATIME));
        file.set_direct(true);
        file.update_flags(0);
        assert!(!has(OFlags::NOATIME));
    }

    #[test]
    fn errors_are_those_of_the_lower_file() {
        let (file, _dir) = open(libc::O_RDONLY);
        assert_eq!(file.write(b"x", 0, 0, false).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(file.seek(3, libc::SEEK_DATA).unwrap_err().raw_os_error(), Some(libc::ENXIO));
        assert_eq!(file.seek(0, libc::SEEK_HOLE).unwrap(), 3);
        file.flush().unwrap();
    }
}
