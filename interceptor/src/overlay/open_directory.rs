//! Open directories, and the read-ahead of directories.
//!
//! Entries keep the offsets (`d_off`) of the lower mount, so that a program may seek to any of
//! them.
//!
//! **Read-ahead.** As long as a directory was not read, `weed mount` asks its filer about every
//! name that is looked up and every file that is opened or checked. Once the beginning was read,
//! it has fetched the whole directory (weed 4.48), and answers by itself while it receives events.
//! So [`ReaddirAhead`] reads a directory once when its files are opened one after another. The
//! lower mount's answers stay the same.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::attributes::proc_path;
use super::inodes::Inode;

/// Bytes of entries that one `getdents64` takes from the lower mount.
const GETDENTS_BUFFER_SIZE: usize = 32 << 10;

/// What became of an entry offered to a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddOutcome {
    Added,
    /// The entry does not exist any more.
    Gone,
    /// The reply had no room for it.
    Full,
}

/// An open directory.
pub(super) struct OpenDirectory {
    pub(super) inode: Arc<Inode>,
    directory: OwnedFd,
    /// Locked while `directory` is read, because that has an offset, too.
    cursor: Mutex<DirectoryCursor>,
}

#[derive(Default)]
struct DirectoryCursor {
    /// The offset of the first entry in `buffered`, or that of the directory if there is none.
    offset: u64,
    /// Entries taken from the lower mount and not yet returned.
    buffered: VecDeque<DirectoryEntry>,
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct DirectoryEntry {
    pub(super) name: OsString,
    pub(super) ino: u64,
    /// `Unknown` if the lower mount lists names without types.
    pub(super) file_type: FileType,
    /// The offset after this entry.
    pub(super) next_offset: u64,
}

impl DirectoryEntry {
    /// Whether it is `.` or `..`.
    pub(super) fn is_dots(&self) -> bool {
        self.name == "." || self.name == ".."
    }
}

impl AsFd for OpenDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl OpenDirectory {
    pub(super) fn open(inode: Arc<Inode>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(proc_path(inode.fd()?.as_fd()), flags, Mode::empty())?;
        Ok(Self { inode, directory, cursor: Mutex::default() })
    }

    /// Offers `take` the entries from offset `from` on, until it reports [`AddOutcome::Full`].
    ///
    /// # Errors
    /// The lower mount's or `take`'s, unless an entry was added before; then the next
    /// read meets the error.
    pub(super) fn read(
        &self,
        from: u64,
        mut take: impl FnMut(&DirectoryEntry) -> io::Result<AddOutcome>,
    ) -> io::Result<()> {
        let mut cursor = self.cursor.lock();
        let mut added = false;
        // A rewind is to show new entries.
        if from == 0 || from != cursor.offset {
            cursor.seek(&self.directory, from)?;
        }
        loop {
            if cursor.buffered.is_empty() {
                match cursor.fetch(&self.directory) {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(_) if added => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            while let Some(entry) = cursor.buffered.front() {
                match take(entry) {
                    Ok(AddOutcome::Full) => return Ok(()),
                    Ok(taken) => added |= taken == AddOutcome::Added,
                    Err(_) if added => return Ok(()),
                    Err(error) => return Err(error),
                }
                cursor.offset = entry.next_offset;
                cursor.buffered.pop_front();
            }
        }
    }

    pub(super) fn sync(&self, only_data: bool) -> io::Result<()> {
        let directory = &self.directory;
        Ok(if only_data { rustix::fs::fdatasync(directory) } else { rustix::fs::fsync(directory) }?)
    }
}

impl DirectoryCursor {
    fn seek(&mut self, directory: &OwnedFd, offset: u64) -> io::Result<()> {
        self.buffered.clear();
        // Some offsets are beyond what `lseek` documents as valid; the kernel passes them on
        // unchanged.
        rustix::fs::seek(directory, SeekFrom::Start(offset))?;
        self.offset = offset;
        Ok(())
    }

    /// Fills `buffered` from `directory`; `false` at the end.
    fn fetch(&mut self, directory: &OwnedFd) -> io::Result<bool> {
        let mut buffer = [const { MaybeUninit::uninit() }; GETDENTS_BUFFER_SIZE];
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            self.buffered.push_back(DirectoryEntry {
                name: OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(),
                ino: entry.ino(),
                file_type: entry.file_type(),
                next_offset: entry.next_entry_cookie(),
            });
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(!self.buffered.is_empty())
    }
}

/// After this time the lower mount may have dropped the directory: `weed mount` does after 10
/// minutes without a request for it.
const REREAD_INTERVAL: Duration = Duration::from_secs(300);

/// How many directories are remembered as read.
const MAX_REMEMBERED: usize = 64;

/// Reads directories ahead, one at a time.
pub(super) struct ReaddirAhead {
    recent: Mutex<Vec<(Weak<Inode>, Instant)>>,
    /// Held by the running read, so that a hanging lower mount blocks one thread.
    permit: Arc<Semaphore>,
}

impl ReaddirAhead {
    pub(super) fn new() -> Self {
        Self { recent: Mutex::default(), permit: Arc::new(Semaphore::new(1)) }
    }

    /// To be called when the files of `directory` are opened one after another. Reads the
    /// directory on `runtime`, unless it was read lately or another is being read.
    pub(super) fn read_ahead(&self, directory: Arc<Inode>, runtime: &Handle) {
        let Ok(permit) = self.permit.clone().try_acquire_owned() else { return };
        if !self.is_due(&directory, Instant::now()) {
            return;
        }
        runtime.spawn_blocking(move || {
            let _permit = permit;
            // Without permission to read the directory, lookups go on as before.
            let read = OpenDirectory::open(directory).and_then(|open| open.read(0, |_| Ok(AddOutcome::Full)));
            if let Err(error) = read {
                tracing::debug!(%error, "a directory below cannot be read ahead");
            }
        });
    }

    /// Whether `directory` is to be read now. If so, it counts as read.
    fn is_due(&self, directory: &Arc<Inode>, now: Instant) -> bool {
        let mut recent = self.recent.lock();
        recent.retain(|(inode, at)| now.duration_since(*at) < REREAD_INTERVAL && inode.strong_count() > 0);
        if recent.iter().any(|(inode, _)| inode.as_ptr() == Arc::as_ptr(directory)) {
            return false;
        }
        if recent.len() == MAX_REMEMBERED {
            // The oldest.
            recent.remove(0);
        }
        recent.push((Arc::downgrade(directory), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::attributes::Attributes;
    use super::super::inodes::{InodeTable, ROOT};
    use super::*;

    #[test]
    fn each_entry_is_returned_once_however_small_the_replies() {
        let dir = tempfile::tempdir().unwrap();
        let names: BTreeSet<OsString> = (0..2000).map(|i| format!("file-{i}").into()).collect();
        names.iter().for_each(|name| std::fs::write(dir.path().join(name), "").unwrap());
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let attributes = Attributes::of(&root).unwrap();
        let inodes = InodeTable::of_one(root, &attributes);
        let directory = OpenDirectory::open(inodes.get(ROOT).unwrap()).unwrap();
        for _ in 0..2 {
            let (mut seen, mut offset) = (Vec::new(), 0);
            loop {
                let (from, mut room) = (offset, 7);
                let take = |entry: &DirectoryEntry| {
                    if room == 0 {
                        return Ok(AddOutcome::Full);
                    }
                    room -= 1;
                    offset = entry.next_offset;
                    if !entry.is_dots() {
                        seen.push(entry.name.clone());
                    }
                    Ok(AddOutcome::Added)
                };
                directory.read(from, take).unwrap();
                if room == 7 {
                    break;
                }
            }
            assert_eq!(seen.len(), names.len());
            assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names);
        }
    }

    #[test]
    fn an_error_is_reported_if_all_entries_before_it_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        (0..4).for_each(|i| std::fs::write(dir.path().join(format!("file-{i}")), "").unwrap());
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let attributes = Attributes::of(&root).unwrap();
        let inodes = InodeTable::of_one(root, &attributes);
        let directory = OpenDirectory::open(inodes.get(ROOT).unwrap()).unwrap();
        let read = |results: [Option<AddOutcome>; 2]| {
            let mut results = results.into_iter();
            directory.read(0, |_| results.next().flatten().ok_or_else(|| io::ErrorKind::Other.into()))
        };
        assert!(read([Some(AddOutcome::Gone), None]).is_err(), "an empty reply would be the end");
        assert!(read([Some(AddOutcome::Added), None]).is_ok(), "what was added is told first");
    }

    #[test]
    fn a_directory_is_due_once_per_interval() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let inodes = InodeTable::of_one(root.try_clone().unwrap(), &Attributes::of(&root).unwrap());
        let directory = inodes.get(ROOT).unwrap();
        let (ahead, now) = (ReaddirAhead::new(), Instant::now());
        assert!(ahead.is_due(&directory, now));
        assert!(!ahead.is_due(&directory, now + REREAD_INTERVAL / 2));
        assert!(ahead.is_due(&directory, now + REREAD_INTERVAL));
    }
}
