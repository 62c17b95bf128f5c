//! What tells the files of the mount below apart: the handle that the kernel would give an NFS server.
//!
//! Not the inode number: that is what a daemon below says it is, and `weed mount` may say one number when a file is made and another when it is looked at
//! again, if two hosts gave the same number to two files. The handle has what the kernel itself goes by, for a FUSE mount the number of the
//! node and its generation.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::AtFlags;

use super::attributes::Attributes;

/// The most bytes that a handle may have (`MAX_HANDLE_SZ` of Linux).
const MOST: usize = 128;

/// A file of the mount below. Equal for all its names; not to be compared with those of another mount.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FileKey(Box<[u8]>);

/// A `struct file_handle` with the room that its last member takes.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MOST],
}

impl FileKey {
    /// What it consists of.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of the file that is open as `file`. Where the file system knows no handles it is the inode number, after all.
    pub(super) fn of(file: impl AsFd) -> io::Result<Self> {
        Self::find(file.as_fd(), c"", libc::AT_EMPTY_PATH)
    }

    /// The key of the file that has the name `name` in `directory`; links are not followed.
    pub(super) fn at(directory: impl AsFd, name: &OsStr) -> io::Result<Self> {
        Self::find(directory.as_fd(), &CString::new(name.as_bytes())?, 0)
    }

    /// Opens the file with this key (`O_PATH`) if it still exists. `mount` is open for reading, on the same mount.
    pub(super) fn open(&self, mount: impl AsFd) -> io::Result<OwnedFd> {
        let mut handle = Handle { bytes: 0, kind: 0, handle: [0; MOST] };
        let stale = || io::Error::from_raw_os_error(libc::ESTALE);
        let (kind, bytes) = self.0.split_first_chunk().ok_or_else(stale)?;
        handle.kind = libc::c_int::from_ne_bytes(*kind);
        handle.bytes = bytes.len() as libc::c_uint;
        handle.handle.get_mut(..bytes.len()).ok_or_else(stale)?.copy_from_slice(bytes);
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the kernel reads of `handle` no more than its first member says there is, and writes nothing.
        let opened = unsafe {
            let place = (&raw mut handle).cast::<libc::file_handle>();
            libc::open_by_handle_at(mount.as_fd().as_raw_fd(), place, flags)
        };
        let opened = nix::errno::Errno::result(opened)?;
        // SAFETY: it was opened just now, and belongs to nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(opened) })
    }

    fn find(directory: BorrowedFd<'_>, path: &CStr, flags: libc::c_int) -> io::Result<Self> {
        let mut handle = Handle { bytes: MOST as libc::c_uint, kind: 0, handle: [0; MOST] };
        let mut mount = 0;
        // SAFETY: the path ends with a zero, and the kernel writes one number to `mount` and to `handle` no more than its first member says there is room for.
        let done = unsafe {
            let place = (&raw mut handle).cast::<libc::file_handle>();
            libc::name_to_handle_at(directory.as_raw_fd(), path.as_ptr(), place, &mut mount, flags)
        };
        match nix::errno::Errno::result(done) {
            Ok(_) => {
                let used = handle.handle.get(..handle.bytes as usize).unwrap_or(&handle.handle);
                Ok(Self([&handle.kind.to_ne_bytes(), used].concat().into()))
            }
            Err(nix::errno::Errno::EOPNOTSUPP) => {
                let flags = AtFlags::from_bits_retain(flags as u32) | AtFlags::SYMLINK_NOFOLLOW;
                let (device, inode) = Attributes::at(directory, path, flags)?.number();
                Ok(Self([device.to_ne_bytes(), inode.to_ne_bytes()].concat().into()))
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn names_of_one_file_have_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        fs::write(&a, "").unwrap();
        fs::hard_link(&a, &b).unwrap();
        fs::write(&c, "").unwrap();
        let key = |path| {
            let file = File::open(path).unwrap();
            FileKey::of(&file).unwrap()
        };
        let root = dir.path().to_owned();
        assert_eq!(key(&a), key(&b));
        assert_ne!(key(&a), key(&c));
        assert_ne!(key(&a), key(&root));

        let directory = File::open(dir.path()).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("symlink")).unwrap();
        let at = |name: &str| FileKey::at(&directory, name.as_ref());
        assert_eq!(at("b").unwrap(), key(&a));
        assert_eq!(at("c").unwrap(), key(&c));
        assert_ne!(at("symlink").unwrap(), key(&a), "a link is itself");
        assert_eq!(at("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
