//! A volume's `.dat` file, open for reading.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::fstatfs;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::StoreError;
use crate::refusal::Refusal;

/// Whether a read may wait for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// What is not in the page cache is not read: [`StoreError::WouldBlock`].
    CachedOnly,
    /// The calling thread may wait.
    Blocking,
}

/// What a file system says of whether a read would wait for a disk. It says the same for all of a
/// file, so it is found out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residency {
    /// There is no disk to wait for.
    InMemory,
    /// It refuses a read that would wait, if it is asked to (`RWF_NOWAIT`).
    Told,
    /// Nothing, as ZFS: any read may wait.
    Unknown,
}

impl Residency {
    /// Tries a read of one byte, which does not wait.
    pub(crate) fn of(file: impl AsFd) -> Self {
        // It has no disk, though it does not say so (up to Linux 6.17 at least).
        const TMPFS: i64 = 0x0102_1994;
        if fstatfs(&file).is_ok_and(|of| of.f_type == TMPFS) {
            return Self::InMemory;
        }
        match preadv2(file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP) => Self::Unknown,
            _ => Self::Told,
        }
    }
}

/// An open `.dat` file. What was read of it stays right as long as it is open, even after the volume was compacted or
/// removed: nothing in it is ever overwritten.
#[derive(Debug)]
pub struct DataFile {
    file: File,
    volume: u32,
    revision: u16,
    residency: Residency,
}

impl DataFile {
    pub(super) fn new(file: File, volume: u32, revision: u16) -> Self {
        let residency = Residency::of(&file);
        Self { file, volume, revision, residency }
    }

    /// The number of the volume.
    pub fn volume(&self) -> u32 {
        self.volume
    }

    /// How often the volume had been compacted when the file was written.
    pub fn revision(&self) -> u16 {
        self.revision
    }

    /// Whether the file has lost its name: the volume was compacted, moved or deleted, and whoever holds the file
    /// holds its disk space.
    pub fn is_unlinked(&self) -> bool {
        self.file.metadata().map_or(true, |metadata| metadata.nlink() == 0)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Refusal::Stale`] if the file ends before.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64, mode: ReadMode) -> Result<(), StoreError> {
        let read = read_exact_at(&self.file, self.residency, buffer, offset, mode);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => StoreError::WouldBlock,
            io::ErrorKind::UnexpectedEof => Refusal::Stale.into(),
            _ => {
                tracing::warn!(volume = self.volume, offset, %error, "cannot read a volume's data");
                Refusal::Io.into()
            }
        })
    }
}

impl AsFd for DataFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Fills `buffer` with the bytes of `file` from `offset` on. With [`ReadMode::CachedOnly`], bytes that are not in memory, and a
/// file system that cannot tell, are an error of kind `WouldBlock`; nothing is then said about the content of `buffer`.
pub(crate) fn read_exact_at(
    file: impl AsFd,
    residency: Residency,
    buffer: &mut [u8],
    offset: u64,
    mode: ReadMode,
) -> io::Result<()> {
    let flags = match (mode, residency) {
        (ReadMode::Blocking, _) | (_, Residency::InMemory) => ReadWriteFlags::empty(),
        (_, Residency::Told) => ReadWriteFlags::NOWAIT,
        (_, Residency::Unknown) => return Err(io::ErrorKind::WouldBlock.into()),
    };
    let mut done = 0;
    while done < buffer.len() {
        let at = offset.checked_add(done as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        match preadv2(&file, &mut [IoSliceMut::new(&mut buffer[done..])], at, flags) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Opens a file for reading, if it is there.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether `path` still leads to `file`.
pub(super) fn is_same(path: &Path, file: &File) -> io::Result<bool> {
    let opened = file.metadata()?;
    match path.metadata() {
        Ok(named) => Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file of a file system that refuses reads that must not wait.
    const REFUSING: &str = "/proc/version";

    /// How many calls of this thread were reads, those that failed included.
    fn reads() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/thread-self/io").ok()?;
        text.lines().find_map(|line| line.strip_prefix("syscr: "))?.parse().ok()
    }

    /// How many calls `work` makes.
    fn calls(work: impl FnOnce()) -> Option<u64> {
        let (first, second) = (reads()?, reads()?);
        work();
        Some(reads()? - second - (second - first))
    }

    #[test]
    fn what_cannot_be_told_is_found_out_once_and_not_asked_again() {
        let refusing = File::open(REFUSING).unwrap();
        let kept = tempfile::tempfile().unwrap();
        (&kept).write_all(&[7; 64]).unwrap();
        let mut shared = None;
        if let Ok(file) = tempfile::tempfile_in("/dev/shm") {
            (&file).write_all(&[7; 64]).unwrap();
            shared = Some(file);
        }
        assert_eq!(Residency::of(&refusing), Residency::Unknown);
        for file in [Some(refusing), Some(kept), shared].into_iter().flatten() {
            let residency = Residency::of(&file);
            let mut bytes = [0; 16];
            let mut cached = || read_exact_at(&file, residency, &mut bytes, 3, ReadMode::CachedOnly);
            let outcome = cached();
            match residency {
                Residency::Unknown => assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::WouldBlock),
                Residency::InMemory | Residency::Told => outcome.unwrap(),
            }
            let expected = if residency == Residency::Unknown { 0 } else { 100 };
            match calls(|| (0..100).for_each(|_| drop(cached()))) {
                Some(calls) => assert_eq!(calls, expected, "{residency:?}"),
                None => println!("skipped: the kernel does not count the calls of a thread"),
            }
            read_exact_at(&file, residency, &mut bytes, 3, ReadMode::Blocking).unwrap();
            assert_ne!(bytes, [0; 16]);
        }
    }
}
