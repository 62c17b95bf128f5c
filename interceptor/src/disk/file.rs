//! A file of the cache: bytes of objects, and the checksums that say which of them are right.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use super::directory::{CacheDirectory, Part};
use super::format::{FileHeader, Member, SECTOR, checksum, header_len, size_on_disk};
use super::name::DiskName;

/// The head of a file of checksums that is read at once; that of most files is not longer.
const HEAD_SIZE: usize = 4096;
/// Bytes that are verified at once.
const VERIFY_SIZE: u64 = 1 << 20;

/// Why bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheFileError {
    /// They are not there.
    #[error("absent")]
    Absent,
    /// They are not what was written.
    #[error("damaged")]
    Damaged,
    /// The disk or its file system fails.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where a member is.
#[derive(Debug, Clone, Copy)]
struct MemberPlace {
    /// Its first byte in the file of bytes.
    offset: u64,
    /// The number of its first sector in the table.
    sector: usize,
}

/// An open file.
#[derive(Debug)]
pub(super) struct CacheFile {
    header: FileHeader,
    places: Box<[MemberPlace]>,
    data: File,
    sums: File,
    /// A checksum for each sector; 0 if the sector is absent.
    table: Box<[AtomicU32]>,
}

impl CacheFile {
    /// Makes an empty file. What was there under its name is removed.
    pub(super) fn create(directory: &CacheDirectory, header: FileHeader) -> io::Result<Self> {
        let len = header.data_len().ok_or(io::ErrorKind::FileTooLarge)?;
        directory.remove(&header.name);
        let data = directory.create_file(&header.name, Part::Data)?;
        data.set_len(len)?;
        let sums = directory.create_file(&header.name, Part::Sums)?;
        sums.set_len(header.encoded_len() + 4 * header.sectors())?;
        sums.write_all_at(&header.encode(), 0)?;
        Ok(Self::with_parts(header, data, sums))
    }

    /// Opens a file. One that is not whole is [damaged](CacheFileError::Damaged): a crash may have
    /// interrupted its making, or another daemon is making it just now.
    pub(super) fn open(
        directory: &CacheDirectory,
        name: &DiskName,
        is_writer: bool,
    ) -> Result<Self, CacheFileError> {
        let opened = |part| match directory.open_file(name, part, is_writer) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CacheFileError::Absent),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(CacheFileError::Damaged),
            // A symbolic link, or a device.
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(CacheFileError::Damaged),
            opened => Ok(opened?),
        };
        let sums = opened(Part::Sums)?;
        let data = match opened(Part::Data) {
            Err(CacheFileError::Absent) => return Err(CacheFileError::Damaged),
            data => data?,
        };
        let mut head = read_up_to(&sums, HEAD_SIZE)?;
        if header_len(&head) > head.len() {
            head = read_up_to(&sums, header_len(&head))?;
        }
        let header = FileHeader::decode(&head, name).ok_or(CacheFileError::Damaged)?;
        if Some(data.metadata()?.len()) != header.data_len() {
            return Err(CacheFileError::Damaged);
        }
        let file = Self::with_parts(header, data, sums);
        file.refresh()?;
        Ok(file)
    }

    fn with_parts(header: FileHeader, data: File, sums: File) -> Self {
        let table = (0..header.sectors()).map(|_| AtomicU32::new(0)).collect();
        let mut next = MemberPlace { offset: 0, sector: 0 };
        let place = |member: &Member| {
            let place = next;
            next.offset += member.len;
            next.sector += member.len.div_ceil(SECTOR) as usize;
            place
        };
        let places = header.members.iter().map(place).collect();
        Self { header, places, data, sums, table }
    }

    /// Reads the checksums again, which another daemon may have added to.
    pub(super) fn refresh(&self) -> Result<(), CacheFileError> {
        let mut bytes = vec![0; 4 * self.table.len()];
        match self.sums.read_exact_at(&mut bytes, self.header.encoded_len()) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(CacheFileError::Damaged);
            }
            read => read?,
        }
        for (entry, bytes) in self.table.iter().zip(bytes.as_chunks::<4>().0) {
            entry.store(u32::from_le_bytes(*bytes), Ordering::Release);
        }
        Ok(())
    }

    /// The file of bytes.
    pub(super) fn data(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    /// Whether it has no name any more: this daemon or another one has removed it.
    pub(super) fn is_removed(&self) -> bool {
        self.data.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// What it is about.
    pub(super) fn header(&self) -> &FileHeader {
        &self.header
    }

    /// When it was last added to.
    pub(super) fn modified(&self) -> SystemTime {
        let modified = self.sums.metadata().and_then(|metadata| metadata.modified());
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Bytes of the disk that it takes, in whole pages.
    pub(super) fn disk_bytes(&self) -> u64 {
        let present = self.table.iter().filter(|entry| entry.load(Ordering::Relaxed) != 0).count() as u64;
        // The last sector of a member may be shorter.
        let missing = |(place, member): (&MemberPlace, &Member)| {
            let last = (place.sector + member.len.div_ceil(SECTOR) as usize).checked_sub(1)?;
            let is_present = self.table.get(last)?.load(Ordering::Relaxed) != 0;
            let rest = member.len % SECTOR;
            (is_present && rest > 0).then(|| SECTOR - size_on_disk(rest))
        };
        let missing: u64 = self.places.iter().zip(&self.header.members).filter_map(missing).sum();
        self.header.sums_bytes() + present * SECTOR - missing
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.table) + size_of_val(&*self.header.members) + size_of_val(&*self.places)
    }

    /// Whether no sector is absent.
    pub(super) fn is_complete(&self) -> bool {
        self.table.iter().all(|entry| entry.load(Ordering::Acquire) != 0)
    }

    /// Whether the sectors of `len` bytes of a member from `offset` on are there.
    pub(super) fn has(&self, member: usize, offset: u64, len: u64) -> bool {
        self.sectors(member, offset, len).is_some_and(|(range, _)| {
            self.table[range].iter().all(|entry| entry.load(Ordering::Acquire) != 0)
        })
    }

    /// The sectors that `len` bytes of a member from `offset` on are, and where they begin in the
    /// file of bytes. `None` if these are no whole sectors, or not of the member.
    fn sectors(&self, member: usize, offset: u64, len: u64) -> Option<(Range<usize>, u64)> {
        let (place, size) = (self.places.get(member)?, self.header.members.get(member)?.len);
        let end = offset.checked_add(len).filter(|end| *end <= size)?;
        if len == 0 || !offset.is_multiple_of(SECTOR) || !(end.is_multiple_of(SECTOR) || end == size) {
            return None;
        }
        let first = place.sector + (offset / SECTOR) as usize;
        let last = place.sector + end.div_ceil(SECTOR) as usize;
        Some((first..last, place.offset + offset))
    }

    /// Fills `bytes` with those of a member from `offset` on, each of them verified. They must be
    /// whole sectors. What `bytes` has after an error is undefined.
    pub(super) fn read(&self, member: usize, offset: u64, bytes: &mut [u8]) -> Result<(), CacheFileError> {
        if !self.has(member, offset, bytes.len() as u64) {
            return Err(CacheFileError::Absent);
        }
        let Some((range, at)) = self.sectors(member, offset, bytes.len() as u64) else {
            return Err(CacheFileError::Absent);
        };
        match self.data.read_exact_at(bytes, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(CacheFileError::Damaged);
            }
            read => read?,
        }
        let name = &self.header.members[member].name;
        let first = offset / SECTOR;
        let expected = self.table[range].iter().map(|entry| entry.load(Ordering::Acquire));
        let sectors = bytes.chunks(SECTOR as usize);
        let agree = (first..)
            .zip(sectors)
            .zip(expected)
            .all(|((number, sector), expected)| checksum(name, number, sector) == expected);
        if agree { Ok(()) } else { Err(CacheFileError::Damaged) }
    }

    /// Keeps bytes of a member from `offset` on; what is there already is not written again.
    /// Returns how many bytes were written. They must be whole sectors.
    pub(super) fn write(&self, member: usize, offset: u64, bytes: &[u8]) -> io::Result<u64> {
        if self.has(member, offset, bytes.len() as u64) {
            return Ok(0);
        }
        let sectors = self.sectors(member, offset, bytes.len() as u64);
        let (range, at) = sectors.ok_or(io::ErrorKind::InvalidInput)?;
        self.data.write_all_at(bytes, at)?;
        let name = &self.header.members[member].name;
        let sums = (offset / SECTOR..).zip(bytes.chunks(SECTOR as usize));
        let sums: Vec<u32> = sums.map(|(number, sector)| checksum(name, number, sector)).collect();
        let encoded: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        self.sums.write_all_at(&encoded, self.header.encoded_len() + 4 * range.start as u64)?;
        for (entry, sum) in self.table[range].iter().zip(sums) {
            entry.store(sum, Ordering::Release);
        }
        Ok(bytes.len() as u64)
    }

    /// Reads all of it, and verifies it.
    pub(super) fn verify(&self) -> Result<(), CacheFileError> {
        let mut bytes = vec![0; VERIFY_SIZE as usize];
        for (number, member) in self.header.members.iter().enumerate() {
            for offset in (0..member.len).step_by(VERIFY_SIZE as usize) {
                let len = (member.len - offset).min(VERIFY_SIZE) as usize;
                self.read(number, offset, &mut bytes[..len])?;
            }
        }
        Ok(())
    }
}

/// Up to `len` bytes from the start of `file`.
fn read_up_to(file: &File, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
