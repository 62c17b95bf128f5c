//! A volume's `.dat` file, open for reading.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::fstatfs;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::Fault;
use crate::refusal::Refusal;

/// Whether a read may wait for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// What is not in the page cache is not read: [`Fault::WouldBlock`].
    PageCache,
    /// The calling thread may wait.
    Blocking,
}

/// An open `.dat` file. What was read of it stays right as long as it is open, even after the volume was compacted or
/// removed: nothing in it is ever overwritten.
#[derive(Debug)]
pub struct DataFile {
    file: File,
    volume: u32,
    revision: u16,
    /// There is no disk to wait for.
    in_memory: bool,
}

impl DataFile {
    pub(super) fn new(file: File, volume: u32, revision: u16) -> Self {
        let in_memory = is_in_memory(&file);
        Self { file, volume, revision, in_memory }
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
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64, patience: Patience) -> Result<(), Fault> {
        let patience = if self.in_memory { Patience::Blocking } else { patience };
        read_exact_at(&self.file, buffer, offset, patience).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Fault::WouldBlock,
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

/// Fills `buffer` with the bytes of `file` from `offset` on. With [`Patience::PageCache`], bytes that are not in memory, and a
/// file system that cannot tell, are an error of kind `WouldBlock`; nothing is then said about the content of `buffer`.
pub(crate) fn read_exact_at(
    file: impl AsFd,
    buffer: &mut [u8],
    offset: u64,
    patience: Patience,
) -> io::Result<()> {
    let mut flags = match patience {
        Patience::PageCache => ReadWriteFlags::NOWAIT,
        Patience::Blocking => ReadWriteFlags::empty(),
    };
    let mut done = 0;
    while done < buffer.len() {
        let at = offset.checked_add(done as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        match preadv2(&file, &mut [IoSliceMut::new(&mut buffer[done..])], at, flags) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP) if is_in_memory(&file) => flags = ReadWriteFlags::empty(),
            Err(Errno::OPNOTSUPP) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether the file is on a tmpfs, which has no disk to wait for, though it does not say so (up to Linux 6.17 at least).
fn is_in_memory(file: impl AsFd) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    fstatfs(file).is_ok_and(|of| of.f_type == TMPFS)
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
