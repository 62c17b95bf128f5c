//! Open directories.
//!
//! The places of entries are those that the mount below gives them, so that a program may go back to any of them.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};

use super::node_file::proc_path;
use super::nodes::Node;

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::attributes::Attributes;
    use super::super::nodes::{Nodes, ROOT};
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
}
