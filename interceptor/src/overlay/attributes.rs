//! Attributes of the mount below in the terms of the FUSE protocol.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
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

#[cfg(test)]
mod tests {
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
}
