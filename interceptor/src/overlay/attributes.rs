//! Attributes of the mount below in the terms of the FUSE protocol.
//!
//! What tells the files of the mount below apart: the handle that the kernel would give an NFS server.
//!
//! Not the inode number: that is what a daemon below says it is, and `weed mount` may say one number when a file is made and another when it is looked at
//! again, if two hosts gave the same number to two files. The handle has what the kernel itself goes by, for a FUSE mount the number of the
//! node and its generation.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo};
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp, statx};

/// Attributes of a file, and what tells it from others.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    stat: Statx,
    kind: fuser::FileType,
}

/// What is different once content has changed, as far as the mount below tells: size, time of modification, time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    pub(super) mtime: (i64, u32),
    pub(super) ctime: (i64, u32),
}

impl Attributes {
    /// Asks for the attributes of what `file` is.
    pub(super) fn of(file: impl AsFd) -> io::Result<Self> {
        Self::at(file, c"", AtFlags::EMPTY_PATH)
    }

    /// Asks for the attributes of what is found at `path` in `directory`.
    pub(super) fn at(directory: impl AsFd, path: &CStr, flags: AtFlags) -> io::Result<Self> {
        let stat = statx(directory, path, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
        // Linux lets no file system show a file of another type.
        let kind = kind(FileType::from_raw_mode(stat.stx_mode.into()));
        Ok(Self { stat, kind: kind.ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))? })
    }

    /// As [`of`](Self::of), and has a daemon below asked even if the kernel remembers its last answer.
    pub(super) fn fresh(file: impl AsFd) -> io::Result<Self> {
        Self::at(file, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC)
    }

    /// Device and inode number.
    pub(super) fn number(&self) -> (u64, u64) {
        (u64::from(self.stat.stx_dev_major) << 32 | u64::from(self.stat.stx_dev_minor), self.stat.stx_ino)
    }

    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.stx_mode.into())
    }

    /// The same as the protocol has it.
    pub(super) fn kind(&self) -> fuser::FileType {
        self.kind
    }

    pub(super) fn owner(&self) -> u32 {
        self.stat.stx_uid
    }

    /// How many names it has.
    pub(super) fn links(&self) -> u32 {
        self.stat.stx_nlink
    }

    pub(super) fn modified(&self) -> SystemTime {
        time(&self.stat.stx_mtime)
    }

    pub(super) fn stamp(&self) -> Stamp {
        let moment = |at: &StatxTimestamp| (at.tv_sec, at.tv_nsec);
        Stamp {
            size: self.stat.stx_size,
            mtime: moment(&self.stat.stx_mtime),
            ctime: moment(&self.stat.stx_ctime),
        }
    }

    /// Whether the last change is so long ago that another one would have another time, however coarse the clock.
    pub(super) fn is_settled(&self) -> bool {
        self.is_older_than(SETTLING)
    }

    /// Whether that is so even by the clock of a server that is somewhat behind.
    pub(super) fn is_old(&self) -> bool {
        self.is_older_than(OLD)
    }

    fn is_older_than(&self, least: Duration) -> bool {
        let changed = time(&self.stat.stx_ctime).max(time(&self.stat.stx_mtime));
        changed.elapsed().is_ok_and(|age| age > least)
    }

    /// As a reply gives them, for the node `id`.
    pub(super) fn reply(&self, id: u64) -> FileAttr {
        let stat = &self.stat;
        FileAttr {
            ino: INodeNo(id),
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: time(&stat.stx_atime),
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
            crtime: time(&stat.stx_btime),
            kind: self.kind,
            perm: stat.stx_mode & 0o7777,
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: packed_device(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            flags: 0,
        }
    }
}

/// See [`Attributes::is_settled`]. Network file systems have clocks of whole seconds, too.
pub(super) const SETTLING: Duration = Duration::from_secs(2);

/// Further behind no clock of a server is taken to be.
const OLD: Duration = Duration::from_secs(300);

/// The attributes of `.` and `..` in a listing, of which nothing else is told.
pub(super) fn dots(inode: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::Directory,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The number of the root for who asks for its attributes: that of the mount below, as for all other files.
pub(super) fn reply_for_root(attributes: &Attributes) -> FileAttr {
    attributes.reply(attributes.stat.stx_ino)
}

/// The type as the protocol has it, which has no word for one that is not known.
pub(super) fn kind(file_type: FileType) -> Option<fuser::FileType> {
    Some(match file_type {
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharacterDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::RegularFile => fuser::FileType::RegularFile,
        FileType::Unknown => return None,
    })
}

fn time(at: &StatxTimestamp) -> SystemTime {
    let nanoseconds = Duration::from_nanos(at.tv_nsec.into());
    let seconds = Duration::from_secs(at.tv_sec.unsigned_abs());
    let whole = if at.tv_sec < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

/// Device numbers as FUSE carries them (`new_encode_dev` of Linux).
fn packed_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// The device number that FUSE carries as `packed`.
pub(super) fn device(packed: u32) -> u64 {
    rustix::fs::makedev(packed >> 8 & 0xfff, packed & 0xff | packed >> 12 & 0xf_ff00)
}

#[cfg(test)]
impl Attributes {
    /// The same, changed so long ago, in whole seconds.
    pub(super) fn as_if_changed(&self, ago: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut stat = self.stat;
        for time in [&mut stat.stx_mtime, &mut stat.stx_ctime] {
            time.tv_sec = now.saturating_sub(ago).as_secs() as i64;
        }
        Self { stat, ..*self }
    }
}

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

/// A path that leads to the file itself, whatever its name has become; links are not followed further. It is good as long
/// as the descriptor is open.
pub(super) fn proc_path(file: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn device_numbers_survive_the_way_there_and_back() {
        for (major, minor) in [(0, 0), (8, 1), (254, 255), (259, 70_000), (4095, 0xf_ffff)] {
            let packed = packed_device(major, minor);
            assert_eq!(device(packed), rustix::fs::makedev(major, minor), "{major}:{minor}");
        }
    }

    #[test]
    fn times_before_1970_are_kept() {
        let file = tempfile::tempfile().unwrap();
        let modified = UNIX_EPOCH - Duration::from_millis(1500);
        file.set_modified(modified).unwrap();
        assert_eq!(Attributes::of(&file).unwrap().modified(), modified);
    }

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
