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
    /// Bytes that are not in the page cache are not read: [`StoreError::WouldBlock`].
    CachedOnly,
    /// The calling thread may wait.
    Blocking,
}

/// How a file system reports that a read would wait for a disk. It is the same for all of a file,
/// so it is determined once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheProbe {
    /// There is no disk to wait for.
    InMemory,
    /// It fails a read with `RWF_NOWAIT` that would wait.
    NoWait,
    /// It reports nothing, as ZFS: any read may wait.
    Unsupported,
}

impl CacheProbe {
    /// Tries to read one byte, without waiting.
    pub(crate) fn of(file: impl AsFd) -> Self {
        // It has no disk, but does not support `RWF_NOWAIT` (up to Linux 6.17 at least).
        const TMPFS: i64 = 0x0102_1994;
        if fstatfs(&file).is_ok_and(|of| of.f_type == TMPFS) {
            return Self::InMemory;
        }
        match preadv2(file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP) => Self::Unsupported,
            _ => Self::NoWait,
        }
    }
}

/// An open `.dat` file. Positions in it stay valid as long as it is open, even after the volume
/// was compacted or removed: nothing in it is ever overwritten.
#[derive(Debug)]
pub struct DataFile {
    file: File,
    volume: u32,
    revision: u16,
    probe: CacheProbe,
}

impl DataFile {
    pub(super) fn new(file: File, volume: u32, revision: u16) -> Self {
        let probe = CacheProbe::of(&file);
        Self { file, volume, revision, probe }
    }

    /// The number of the volume.
    pub fn volume(&self) -> u32 {
        self.volume
    }

    /// How often the volume had been compacted when the file was written.
    pub fn revision(&self) -> u16 {
        self.revision
    }

    /// Whether the file has lost its name: the volume was compacted, moved or deleted, and only
    /// open descriptors keep its disk space in use.
    pub fn is_unlinked(&self) -> bool {
        self.file.metadata().map_or(true, |metadata| metadata.nlink() == 0)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Refusal::Stale`] if the file ends before.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64, mode: ReadMode) -> Result<(), StoreError> {
        let read = read_exact_at(&self.file, self.probe, buffer, offset, mode);
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

/// Fills `buffer` with the bytes of `file` from `offset` on. With [`ReadMode::CachedOnly`], the
/// error is of kind `WouldBlock` if the bytes are not in memory or the file system cannot report
/// that; the content of `buffer` is then undefined.
pub(crate) fn read_exact_at(
    file: impl AsFd,
    probe: CacheProbe,
    buffer: &mut [u8],
    offset: u64,
    mode: ReadMode,
) -> io::Result<()> {
    let flags = match (mode, probe) {
        (ReadMode::Blocking, _) | (_, CacheProbe::InMemory) => ReadWriteFlags::empty(),
        (_, CacheProbe::NoWait) => ReadWriteFlags::NOWAIT,
        (_, CacheProbe::Unsupported) => return Err(io::ErrorKind::WouldBlock.into()),
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

    /// A file of a file system that does not support reads with `RWF_NOWAIT`.
    const UNSUPPORTED: &str = "/proc/version";

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
    fn cached_reads_are_not_tried_where_the_file_system_does_not_support_them() {
        let unsupported = File::open(UNSUPPORTED).unwrap();
        let kept = tempfile::tempfile().unwrap();
        (&kept).write_all(&[7; 64]).unwrap();
        let mut shared = None;
        if let Ok(file) = tempfile::tempfile_in("/dev/shm") {
            (&file).write_all(&[7; 64]).unwrap();
            shared = Some(file);
        }
        assert_eq!(CacheProbe::of(&unsupported), CacheProbe::Unsupported);
        for file in [Some(unsupported), Some(kept), shared].into_iter().flatten() {
            let probe = CacheProbe::of(&file);
            let mut bytes = [0; 16];
            let mut cached = || read_exact_at(&file, probe, &mut bytes, 3, ReadMode::CachedOnly);
            let outcome = cached();
            match probe {
                CacheProbe::Unsupported => assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::WouldBlock),
                CacheProbe::InMemory | CacheProbe::NoWait => outcome.unwrap(),
            }
            let expected = if probe == CacheProbe::Unsupported { 0 } else { 100 };
            match calls(|| (0..100).for_each(|_| drop(cached()))) {
                Some(calls) => assert_eq!(calls, expected, "{probe:?}"),
                None => println!("skipped: the kernel does not count the calls of a thread"),
            }
            read_exact_at(&file, probe, &mut bytes, 3, ReadMode::Blocking).unwrap();
            assert_ne!(bytes, [0; 16]);
        }
    }
}
