//! What a lower file is: its [attributes](Attributes), for FUSE replies and for comparisons, and
//! the [handle](FileHandle) that identifies it.
//!
//! The identity is the handle of `name_to_handle_at`, as for an NFS server, and not the inode
//! number. A FUSE daemon chooses inode numbers: if two hosts gave one number to two files, `weed
//! mount` reports another number at lookup than at creation. The handle holds what the kernel
//! itself goes by, which for a FUSE mount is the node id and its generation.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo};
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp, statx};

/// The result of `statx` on a lower file.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    stat: Statx,
    kind: fuser::FileType,
}

/// What changes with a file's content, as far as the lower mount tells: size, mtime and ctime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StatFingerprint {
    pub(super) size: u64,
    pub(super) mtime: (i64, u32),
    pub(super) ctime: (i64, u32),
}

impl Attributes {
    /// The attributes of the open `file`.
    pub(super) fn of(file: impl AsFd) -> io::Result<Self> {
        Self::at(file, c"", AtFlags::EMPTY_PATH)
    }

    /// The attributes of `path` in `directory`.
    pub(super) fn at(directory: impl AsFd, path: &CStr, flags: AtFlags) -> io::Result<Self> {
        let stat = statx(directory, path, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
        // Linux rejects an unknown file type from any file system.
        let kind = kind(FileType::from_raw_mode(stat.stx_mode.into()));
        Ok(Self { stat, kind: kind.ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))? })
    }

    /// As [`of`](Self::of), but asks a lower daemon even if the kernel has cached attributes.
    pub(super) fn fresh(file: impl AsFd) -> io::Result<Self> {
        Self::at(file, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC)
    }

    /// Device and inode number.
    pub(super) fn dev_ino(&self) -> (u64, u64) {
        (u64::from(self.stat.stx_dev_major) << 32 | u64::from(self.stat.stx_dev_minor), self.stat.stx_ino)
    }

    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.stx_mode.into())
    }

    /// The file type in FUSE terms.
    pub(super) fn kind(&self) -> fuser::FileType {
        self.kind
    }

    pub(super) fn owner(&self) -> u32 {
        self.stat.stx_uid
    }

    /// The number of hard links.
    pub(super) fn link_count(&self) -> u32 {
        self.stat.stx_nlink
    }

    pub(super) fn modified(&self) -> SystemTime {
        time(&self.stat.stx_mtime)
    }

    pub(super) fn fingerprint(&self) -> StatFingerprint {
        let moment = |at: &StatxTimestamp| (at.tv_sec, at.tv_nsec);
        StatFingerprint {
            size: self.stat.stx_size,
            mtime: moment(&self.stat.stx_mtime),
            ctime: moment(&self.stat.stx_ctime),
        }
    }

    /// Whether a change from now on would get other times than the last one, however coarse the
    /// clock.
    pub(super) fn is_settled(&self) -> bool {
        self.is_older_than(SETTLE_INTERVAL)
    }

    /// Whether that holds even if the times come from a server whose clock is behind by
    /// [`MAX_CLOCK_SKEW`].
    pub(super) fn is_older_than_clock_skew(&self) -> bool {
        self.is_older_than(MAX_CLOCK_SKEW)
    }

    fn is_older_than(&self, least: Duration) -> bool {
        let changed = time(&self.stat.stx_ctime).max(time(&self.stat.stx_mtime));
        changed.elapsed().is_ok_and(|age| age > least)
    }

    /// The attributes for a reply about inode `id`.
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

/// The age at which times are settled. Network file systems have clocks of whole seconds, too.
pub(super) const SETTLE_INTERVAL: Duration = Duration::from_secs(2);

/// How far behind this host's clock a server's may be.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Attributes of `.` and `..` in `readdirplus`, where only type and number count.
pub(super) fn dot_entry(ino: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
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

/// The attributes of the root with the lower mount's own inode number, which is what programs see.
pub(super) fn reply_for_root(attributes: &Attributes) -> FileAttr {
    attributes.reply(attributes.stat.stx_ino)
}

/// The file type in FUSE terms; `None` for one that the lower mount did not tell.
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

/// A device number in the encoding of FUSE (`new_encode_dev` of Linux).
fn packed_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// The device number that FUSE encodes as `packed`.
pub(super) fn device(packed: u32) -> u64 {
    rustix::fs::makedev(packed >> 8 & 0xfff, packed & 0xff | packed >> 12 & 0xf_ff00)
}

#[cfg(test)]
impl Attributes {
    /// The same attributes with mtime and ctime moved to `ago` before now, in whole seconds.
    pub(super) fn as_if_changed(&self, ago: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut stat = self.stat;
        for time in [&mut stat.stx_mtime, &mut stat.stx_ctime] {
            time.tv_sec = now.saturating_sub(ago).as_secs() as i64;
        }
        Self { stat, ..*self }
    }
}

/// The largest handle, in bytes (`MAX_HANDLE_SZ` of Linux).
const MAX_HANDLE_SIZE: usize = 128;

/// Identifies a lower file, by the handle of `name_to_handle_at`. Equal for all hard links.
/// Comparable within one mount only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FileHandle(Box<[u8]>);

/// A `struct file_handle` with room for its flexible last member.
#[repr(C)]
struct RawFileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; MAX_HANDLE_SIZE],
}

impl FileHandle {
    /// The bytes of type and handle.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The handle of the open `file`; device and inode number where the file system has no
    /// handles.
    pub(super) fn of(file: impl AsFd) -> io::Result<Self> {
        Self::find(file.as_fd(), c"", libc::AT_EMPTY_PATH)
    }

    /// The handle of `name` in `directory`. Does not follow symbolic links.
    pub(super) fn at(directory: impl AsFd, name: &OsStr) -> io::Result<Self> {
        Self::find(directory.as_fd(), &CString::new(name.as_bytes())?, 0)
    }

    /// Opens the file (`O_PATH`) if it still exists. `mount` is a descriptor on the same mount
    /// that is open for reading.
    pub(super) fn open(&self, mount: impl AsFd) -> io::Result<OwnedFd> {
        let mut handle = RawFileHandle { bytes: 0, kind: 0, handle: [0; MAX_HANDLE_SIZE] };
        let stale = || io::Error::from_raw_os_error(libc::ESTALE);
        let (kind, bytes) = self.0.split_first_chunk().ok_or_else(stale)?;
        handle.kind = libc::c_int::from_ne_bytes(*kind);
        handle.bytes = bytes.len() as libc::c_uint;
        handle.handle.get_mut(..bytes.len()).ok_or_else(stale)?.copy_from_slice(bytes);
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the kernel reads as many bytes of `handle` as its first member says, which are
        // initialized. It writes none.
        let opened = unsafe {
            let place = (&raw mut handle).cast::<libc::file_handle>();
            libc::open_by_handle_at(mount.as_fd().as_raw_fd(), place, flags)
        };
        let opened = nix::errno::Errno::result(opened)?;
        // SAFETY: the descriptor was opened just now, and has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(opened) })
    }

    fn find(directory: BorrowedFd<'_>, path: &CStr, flags: libc::c_int) -> io::Result<Self> {
        let mut handle =
            RawFileHandle { bytes: MAX_HANDLE_SIZE as libc::c_uint, kind: 0, handle: [0; MAX_HANDLE_SIZE] };
        let mut mount = 0;
        // SAFETY: the path ends with a zero. The kernel writes one number to `mount`, and to
        // `handle` at most as many bytes as its first member says.
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
                let (device, inode) = Attributes::at(directory, path, flags)?.dev_ino();
                Ok(Self([device.to_ne_bytes(), inode.to_ne_bytes()].concat().into()))
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A path that leads to the open file, whatever its name has become, and not along a symbolic
/// link. For calls that do not take an `O_PATH` descriptor. Valid as long as the descriptor is
/// open.
pub(super) fn proc_path(file: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn device_numbers_round_trip() {
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
    fn hard_links_have_one_handle() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        fs::write(&a, "").unwrap();
        fs::hard_link(&a, &b).unwrap();
        fs::write(&c, "").unwrap();
        let handle = |path| {
            let file = File::open(path).unwrap();
            FileHandle::of(&file).unwrap()
        };
        let root = dir.path().to_owned();
        assert_eq!(handle(&a), handle(&b));
        assert_ne!(handle(&a), handle(&c));
        assert_ne!(handle(&a), handle(&root));

        let directory = File::open(dir.path()).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("symlink")).unwrap();
        let at = |name: &str| FileHandle::at(&directory, name.as_ref());
        assert_eq!(at("b").unwrap(), handle(&a));
        assert_eq!(at("c").unwrap(), handle(&c));
        assert_ne!(at("symlink").unwrap(), handle(&a), "a link is itself");
        assert_eq!(at("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
