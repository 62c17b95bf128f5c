//! Open directories.
//!
//! The places of entries are those that the mount below gives them, so that a program may go back to any of them.
//!
//! Reads directories of the mount below before programs look up in them what they hold.
//!
//! In a directory that nobody has read, `weed mount` asks its filer about each name that is looked up and each file that is opened or looked at. Once somebody has
//! read the beginning of the directory it has fetched all of it (weed 4.48), and answers by itself as long as it is told of changes. So a directory whose files are opened one after another is read once, which takes nothing from
//! what the mount below says of them.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::attributes::proc_path;
use super::inodes::Node;

/// Bytes of entries that are taken from the mount below at a time.
const BATCH: usize = 32 << 10;

/// What became of an entry that was to be added to a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Added,
    /// It does not exist any more.
    Gone,
    /// There was no room for it.
    Full,
}

/// An open directory.
pub(super) struct OpenDirectory {
    pub(super) node: Arc<Node>,
    cursor: Mutex<Cursor>,
}

struct Cursor {
    directory: OwnedFd,
    /// The place before the first of `waiting`, or where `directory` stands if none wait.
    place: u64,
    /// Entries that have been taken from the mount below and not been asked for yet.
    waiting: VecDeque<DirectoryEntry>,
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct DirectoryEntry {
    pub(super) name: OsString,
    pub(super) inode: u64,
    /// `Unknown` if the mount below lists names without types.
    pub(super) file_type: FileType,
    /// The place after it.
    pub(super) next: u64,
}

impl DirectoryEntry {
    /// Whether it is `.` or `..`.
    pub(super) fn is_dots(&self) -> bool {
        self.name == "." || self.name == ".."
    }
}

impl OpenDirectory {
    pub(super) fn open(node: Arc<Node>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(proc_path(node.file()?.as_fd()), flags, Mode::empty())?;
        let cursor = Cursor { directory, place: 0, waiting: VecDeque::new() };
        Ok(Self { node, cursor: Mutex::new(cursor) })
    }

    /// Shows `take` the entries after the place `from`, until it has no room for one.
    ///
    /// # Errors
    /// Of the mount below or of `take`, if no entry was added before: else the next read meets them.
    pub(super) fn read(
        &self,
        from: u64,
        mut take: impl FnMut(&DirectoryEntry) -> io::Result<Taken>,
    ) -> io::Result<()> {
        let mut cursor = self.cursor.lock();
        let mut added = false;
        // Who goes back to the beginning wants to see what is new.
        if from == 0 || from != cursor.place {
            cursor.go(from)?;
        }
        loop {
            if cursor.waiting.is_empty() {
                match cursor.fetch() {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(_) if added => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            while let Some(entry) = cursor.waiting.front() {
                match take(entry) {
                    Ok(Taken::Full) => return Ok(()),
                    Ok(taken) => added |= taken == Taken::Added,
                    Err(_) if added => return Ok(()),
                    Err(error) => return Err(error),
                }
                cursor.place = entry.next;
                cursor.waiting.pop_front();
            }
        }
    }

    pub(super) fn sync(&self, only_data: bool) -> io::Result<()> {
        let directory = &self.cursor.lock().directory;
        Ok(if only_data { rustix::fs::fdatasync(directory) } else { rustix::fs::fsync(directory) }?)
    }
}

impl Cursor {
    fn go(&mut self, place: u64) -> io::Result<()> {
        self.waiting.clear();
        // Some file systems have places beyond what is a valid offset for a seek from the start; the kernel takes them as they are.
        rustix::fs::seek(&self.directory, SeekFrom::Start(place))?;
        self.place = place;
        Ok(())
    }

    /// Takes more entries from the mount below; `false` if there are none.
    fn fetch(&mut self) -> io::Result<bool> {
        let mut buffer = [const { MaybeUninit::uninit() }; BATCH];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            self.waiting.push_back(DirectoryEntry {
                name: OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(),
                inode: entry.ino(),
                file_type: entry.file_type(),
                next: entry.next_entry_cookie(),
            });
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(!self.waiting.is_empty())
    }
}

/// After so long the mount below may have forgotten what it knew: `weed mount` does after 10 minutes in which nothing was asked.
const AGAIN: Duration = Duration::from_secs(300);

/// How many directories are remembered as read.
const REMEMBERED: usize = 64;

/// The directories that were read, and whoever reads one.
pub(super) struct ReaddirAhead {
    read: Mutex<Vec<(Weak<Node>, Instant)>>,
    /// Held by who reads, so that a mount below that hangs holds up one thread.
    turn: Arc<Semaphore>,
}

impl ReaddirAhead {
    pub(super) fn new() -> Self {
        Self { read: Mutex::default(), turn: Arc::new(Semaphore::new(1)) }
    }

    /// The files of `directory` are opened one after another. Has the directory read on `runtime`, unless that was done lately or another is being read.
    pub(super) fn expect(&self, directory: Arc<Node>, runtime: &Handle) {
        let Ok(turn) = self.turn.clone().try_acquire_owned() else { return };
        if !self.is_due(&directory, Instant::now()) {
            return;
        }
        runtime.spawn_blocking(move || {
            let _turn = turn;
            // Who may not read it looks up what he knows, as before.
            let read = OpenDirectory::open(directory).and_then(|open| open.read(0, |_| Ok(Taken::Full)));
            if let Err(error) = read {
                tracing::debug!(%error, "a directory below cannot be read ahead");
            }
        });
    }

    /// Whether `directory` is to be read now, which it then counts as.
    fn is_due(&self, directory: &Arc<Node>, now: Instant) -> bool {
        let mut read = self.read.lock();
        read.retain(|(node, at)| now.duration_since(*at) < AGAIN && node.strong_count() > 0);
        if read.iter().any(|(node, _)| node.as_ptr() == Arc::as_ptr(directory)) {
            return false;
        }
        if read.len() == REMEMBERED {
            // The one that was read first.
            read.remove(0);
        }
        read.push((Arc::downgrade(directory), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::attributes::Attributes;
    use super::super::inodes::{Nodes, ROOT};
    use super::*;

    #[test]
    fn entries_come_once_each_however_small_the_replies() {
        let dir = tempfile::tempdir().unwrap();
        let names: BTreeSet<OsString> = (0..2000).map(|i| format!("file-{i}").into()).collect();
        names.iter().for_each(|name| std::fs::write(dir.path().join(name), "").unwrap());
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let attributes = Attributes::of(&root).unwrap();
        let nodes = Nodes::of_one(root, &attributes);
        let directory = OpenDirectory::open(nodes.get(ROOT).unwrap()).unwrap();
        for _ in 0..2 {
            let (mut seen, mut place) = (Vec::new(), 0);
            loop {
                let (from, mut room) = (place, 7);
                let take = |entry: &DirectoryEntry| {
                    if room == 0 {
                        return Ok(Taken::Full);
                    }
                    room -= 1;
                    place = entry.next;
                    if !entry.is_dots() {
                        seen.push(entry.name.clone());
                    }
                    Ok(Taken::Added)
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
    fn an_error_comes_before_the_end_of_a_listing_also_if_what_was_before_it_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        (0..4).for_each(|i| std::fs::write(dir.path().join(format!("file-{i}")), "").unwrap());
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let attributes = Attributes::of(&root).unwrap();
        let nodes = Nodes::of_one(root, &attributes);
        let directory = OpenDirectory::open(nodes.get(ROOT).unwrap()).unwrap();
        let read = |results: [Option<Taken>; 2]| {
            let mut results = results.into_iter();
            directory.read(0, |_| results.next().flatten().ok_or_else(|| io::ErrorKind::Other.into()))
        };
        assert!(read([Some(Taken::Gone), None]).is_err(), "an empty reply would be the end");
        assert!(read([Some(Taken::Added), None]).is_ok(), "what was added is told first");
    }

    #[test]
    fn a_directory_is_due_once_in_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let nodes = Nodes::of_one(root.try_clone().unwrap(), &Attributes::of(&root).unwrap());
        let directory = nodes.get(ROOT).unwrap();
        let (ahead, now) = (ReaddirAhead::new(), Instant::now());
        assert!(ahead.is_due(&directory, now));
        assert!(!ahead.is_due(&directory, now + AGAIN / 2));
        assert!(ahead.is_due(&directory, now + AGAIN));
    }
}
