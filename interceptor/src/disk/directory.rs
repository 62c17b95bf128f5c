//! The directory that holds the files: opened once, then used by descriptor only.
//!
//! ```text
//! DIR/interceptor-cache-v1/          0700, of this user; the version of the format is in the name
//!   lock                             flock: who holds it writes and removes, others only read
//!   3f/                              the first byte of the names below
//!     3f…(64 digits)                 bytes; 0600
//!     3f…(64 digits).sums            what they are, and their checksums; 0600
//! ```
//!
//! A directory of another format has another name and is left alone. No symbolic link is followed
//! below `DIR`, and nothing is used that is not of this user.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{
    Access, AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat, accessat, flock, fstat, fstatfs,
    fstatvfs, mkdirat, openat, stat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

use super::name::DiskName;

/// The name of the directory below the one that the user names.
const DIRECTORY: &str = "interceptor-cache-v1";
/// The name of the lock file.
const LOCK: &str = "lock";
/// File systems that are not of a disk of this host, by `f_type`. A cache on FUSE might be on the
/// very mount that it serves.
const REMOTE_FILE_SYSTEMS: [(u32, &str); 7] = [
    (0x6573_5546, "FUSE"),
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
];

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It cannot be made or opened.
    #[error("cannot use {path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another user may read or write the directory.
    #[error("{path} belongs to user {uid} (this is {own}) with mode {mode:o}, where 700 is needed")]
    Foreign {
        /// Which one.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// The user of this process.
        own: u32,
        /// Its permissions.
        mode: u32,
    },
    /// It is not on a disk of this host.
    #[error("{path} is on {fs_type}, not on a disk of this host")]
    Remote {
        /// Which one.
        path: PathBuf,
        /// The name of the file system.
        fs_type: &'static str,
    },
}

/// Which of the two files under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The bytes.
    Data,
    /// What they are, and their checksums.
    Sums,
}

impl Part {
    fn file_name(self, name: &DiskName) -> String {
        match self {
            Part::Data => name.to_string(),
            Part::Sums => format!("{name}.sums"),
        }
    }
}

/// An open directory.
#[derive(Debug)]
pub(super) struct CacheDirectory {
    path: PathBuf,
    root: OwnedFd,
    device: u64,
    /// The directories below, by the first byte of the names in them.
    below: [OnceLock<OwnedFd>; 256],
}

impl CacheDirectory {
    /// Opens the directory below `parent`, and makes what is missing of both.
    pub(super) fn open(parent: &Path) -> Result<Self, DirectoryError> {
        make(CWD, parent).map_err(failed(parent))?;
        let parent_fd = open_directory(CWD, parent, OFlags::empty()).map_err(failed(parent))?;
        let path = parent.join(DIRECTORY);
        local_file_system(&parent_fd, &path)?;
        make(&parent_fd, Path::new(DIRECTORY)).map_err(failed(&path))?;
        let root = open_directory(&parent_fd, DIRECTORY, OFlags::NOFOLLOW).map_err(failed(&path))?;
        let device = own(&root, &path)?.st_dev;
        Ok(Self { path, root, device, below: [const { OnceLock::new() }; 256] })
    }

    /// Its path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The device that it is on.
    pub(super) fn device(&self) -> u64 {
        self.device
    }

    /// Tries to take the right to write, which lasts as long as the descriptor.
    pub(super) fn try_lock(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let lock = openat(&self.root, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether its path still leads to it.
    pub(super) fn is_in_place(&self) -> bool {
        let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
        match (fstat(&self.root), stat(&self.path)) {
            (Ok(held), Ok(found)) => identity(held) == identity(found),
            _ => false,
        }
    }

    /// Opens a file; for writing, too, if `is_writer`.
    pub(super) fn open_file(&self, name: &DiskName, part: Part, is_writer: bool) -> io::Result<File> {
        let access = if is_writer { OFlags::RDWR } else { OFlags::RDONLY };
        self.open_regular(name, part, access)
    }

    /// Makes a file that must not exist.
    pub(super) fn create_file(&self, name: &DiskName, part: Part) -> io::Result<File> {
        self.open_regular(name, part, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    fn open_regular(&self, name: &DiskName, part: Part, flags: OFlags) -> io::Result<File> {
        let below = self.below(name.0[0], flags.contains(OFlags::CREATE))?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = openat(below, part.file_name(name), flags, Mode::RUSR | Mode::WUSR)?;
        let found = fstat(&file)?;
        let is_regular = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
        if !is_regular || found.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no regular file of this user"));
        }
        Ok(file.into())
    }

    /// Removes both files under a name, as far as they are there.
    pub(super) fn remove(&self, name: &DiskName) {
        let Ok(below) = self.below(name.0[0], false) else { return };
        // The checksums first: without them the bytes count for nothing.
        for part in [Part::Sums, Part::Data] {
            let _ = unlinkat(below, part.file_name(name), AtFlags::empty());
        }
    }

    /// The names in the directory that begin with `first`.
    pub(super) fn list(&self, first: u8) -> io::Result<Vec<DiskName>> {
        let below = match self.below(first, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            below => below?,
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(below)? {
            let entry = entry?;
            let text = entry.file_name().to_str().unwrap_or_default();
            let name = DiskName::parse(text.strip_suffix(".sums").unwrap_or(text));
            names.extend(name.filter(|name| name.0[0] == first));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn below(&self, first: u8, creates: bool) -> io::Result<&OwnedFd> {
        let cell = &self.below[usize::from(first)];
        if cell.get().is_none() {
            let name = format!("{first:02x}");
            if creates {
                make(&self.root, Path::new(&name))?;
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            // If another thread was faster, its descriptor stays.
            let _ = cell.set(openat(&self.root, name, flags, Mode::empty())?);
        }
        cell.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Finds out whether the directory below `parent` could be opened, and changes nothing. Returns its
/// path, and how many bytes this user may still write there.
///
/// # Errors
/// As for opening it.
pub fn inspect(parent: &Path) -> Result<(PathBuf, u64), DirectoryError> {
    let path = parent.join(DIRECTORY);
    let named = if_there(open_directory(CWD, parent, OFlags::empty())).map_err(failed(parent))?;
    // Of what the user names only the last directory would be made.
    let above = parent.parent().filter(|above| *above != Path::new("")).unwrap_or(Path::new("."));
    let is_named = named.is_some();
    let there = match named {
        Some(named) => named,
        None => open_directory(CWD, above, OFlags::empty()).map_err(failed(parent))?,
    };
    local_file_system(&there, &path)?;
    let cache = if is_named {
        if_there(open_directory(&there, DIRECTORY, OFlags::NOFOLLOW)).map_err(failed(&path))?
    } else {
        None
    };
    match cache {
        Some(cache) => drop(own(&cache, &path)?),
        // It has to be made.
        None => accessat(&there, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
            .map_err(failed(&path))?,
    }
    let free = fstatvfs(&there).map_err(failed(&path))?;
    Ok((path, free.f_bavail.saturating_mul(free.f_frsize)))
}

/// What was opened, unless it does not exist.
fn if_there(opened: Result<OwnedFd, Errno>) -> Result<Option<OwnedFd>, Errno> {
    match opened {
        Err(Errno::NOENT) => Ok(None),
        opened => opened.map(Some),
    }
}

fn failed(path: &Path) -> impl FnOnce(Errno) -> DirectoryError + use<> {
    let path = path.to_owned();
    move |errno| DirectoryError::Io { path, source: errno.into() }
}

fn open_directory(at: impl AsFd, path: impl Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(at, path, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn local_file_system(directory: &OwnedFd, path: &Path) -> Result<(), DirectoryError> {
    // The number is signed or not, and of 32 or 64 bits, depending on the architecture.
    let magic = fstatfs(directory).map_err(failed(path))?.f_type as u32;
    match REMOTE_FILE_SYSTEMS.iter().find(|(remote, _)| *remote == magic) {
        Some(&(_, fs_type)) => Err(DirectoryError::Remote { path: path.to_owned(), fs_type }),
        None => Ok(()),
    }
}

/// What a directory is, if it is of this user and for this user alone.
fn own(directory: &OwnedFd, path: &Path) -> Result<Stat, DirectoryError> {
    let found = fstat(directory).map_err(failed(path))?;
    let (uid, mode) = (found.st_uid, found.st_mode & 0o777);
    let own = rustix::process::geteuid().as_raw();
    if uid != own || mode != 0o700 {
        return Err(DirectoryError::Foreign { path: path.to_owned(), uid, own, mode });
    }
    Ok(found)
}

/// Makes a directory for this user alone, unless there is one.
fn make(at: impl AsFd, path: &Path) -> Result<(), Errno> {
    match mkdirat(at, path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}
