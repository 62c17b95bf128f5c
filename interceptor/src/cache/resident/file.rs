//! Files of the private tmpfs, before and after they are complete.
//!
//! A file begins as a *draft*: of its full size, all zeros, and without memory. Parts of it are
//! written in any order, and each can be read as soon as it is written. When all parts that are
//! not holes are there, the file is complete.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, fallocate};

use super::super::sync::Mutex;
use super::budget::Reservation;
use super::size_in_memory;
use super::tmpfs::PrivateTmpfs;

/// Bytes of a huge page of the tmpfs.
const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// Bytes that are being appended to a file for the handles that have it open. Readers see them as
/// they come. If this is dropped instead of [finished](FileAppend::finish), they are cut off.
#[derive(Debug)]
pub(super) struct FileAppend {
    file: Arc<ResidentFile>,
    len: u64,
    reservation: Option<Reservation>,
}

impl FileAppend {
    /// Begins to grow the file to `len` bytes; those that are not written will be zeros. Allocates
    /// the memory of `reservation` now.
    pub(super) fn new(file: Arc<ResidentFile>, len: u64, reservation: Reservation) -> io::Result<Self> {
        let from = file.grown_len();
        let more = len.checked_sub(from).ok_or(io::ErrorKind::InvalidInput)?;
        fallocate(&file.file, FallocateFlags::KEEP_SIZE, from, more)?;
        Ok(Self { file, len, reservation: Some(reservation) })
    }

    /// Writes `bytes` from `offset` on, behind what was there before.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let is_inside = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.len);
        if !is_inside || offset < self.file.grown_len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.file.write_all_at(bytes, offset)
    }

    /// Makes what was written a part of the file.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.file.set_len(self.len)?;
        let mut grown = self.file.grown.lock();
        grown.len = self.len;
        if let Some(reservation) = self.reservation.take() {
            grown.reservation.merge(reservation);
        }
        Ok(())
    }
}

impl Drop for FileAppend {
    fn drop(&mut self) {
        if self.reservation.is_some() {
            let len = self.file.grown_len();
            if let Err(error) = self.file.file.set_len(len) {
                tracing::warn!(%error, "a file in memory keeps the beginning of what was appended");
            }
        }
    }
}

/// A file in memory whose bytes never change once they are written, for the kernel to read when it
/// is complete. Once it is retired, bytes can be appended ([`FileAppend`]). Its memory is free
/// again when this is dropped and the kernel has neither a descriptor nor a mapping of it.
#[derive(Debug)]
pub struct ResidentFile {
    /// Dropped before the file is closed.
    attachment: OnceLock<Box<dyn Any + Send + Sync>>,
    file: File,
    len: u64,
    /// `None` if the file is complete.
    draft: Mutex<Option<DraftParts>>,
    /// Dropped after the file is closed.
    grown: Mutex<GrownSize>,
}

/// Which parts of a draft are there.
#[derive(Debug)]
struct DraftParts {
    /// The ends of runs of bytes that are written, by their beginnings. No two runs touch.
    written: BTreeMap<u64, u64>,
    /// Where parts begin that are written, or that a thread has claimed and will write.
    claimed: HashSet<u64>,
}

impl DraftParts {
    fn holds(&self, range: &Range<u64>) -> bool {
        let run = self.written.range(..=range.start).next_back();
        run.is_some_and(|(_, end)| *end >= range.end)
    }

    /// Whether a byte of `range` is written.
    fn overlaps(&self, range: &Range<u64>) -> bool {
        let run = self.written.range(..range.end).next_back();
        run.is_some_and(|(_, end)| *end > range.start)
    }

    fn add(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&before, &until)) = self.written.range(..=end).next_back()
            && until >= start
        {
            (start, end) = (start.min(before), end.max(until));
            self.written.remove(&before);
        }
        self.written.insert(start, end);
    }
}

/// The size of a file with what was appended.
#[derive(Debug)]
struct GrownSize {
    /// In bytes.
    len: u64,
    /// The memory of these bytes; of a draft, that of the parts that are written.
    reservation: Reservation,
}

impl ResidentFile {
    /// A draft of `len` bytes, with a `reservation` of none.
    pub(super) fn draft(tmpfs: &PrivateTmpfs, len: u64, reservation: Reservation) -> io::Result<Self> {
        let file = tmpfs.file()?;
        // Before the first write, so that the kernel knows where huge pages fit.
        file.set_len(len)?;
        let parts = DraftParts { written: BTreeMap::new(), claimed: HashSet::new() };
        Ok(Self {
            attachment: OnceLock::new(),
            file,
            len,
            draft: Mutex::new(Some(parts)),
            grown: Mutex::new(GrownSize { len, reservation }),
        })
    }

    /// Whether all bytes are there.
    pub fn is_complete(&self) -> bool {
        self.draft.lock().is_none()
    }

    /// Whether all bytes of `range` are there.
    pub fn holds(&self, range: &Range<u64>) -> bool {
        range.end <= self.len && self.draft.lock().as_ref().is_none_or(|parts| parts.holds(range))
    }

    /// Reserves the right to write the part that begins at `offset`: false if another has it.
    pub(super) fn claim(&self, offset: u64) -> bool {
        self.draft.lock().as_mut().is_some_and(|parts| parts.claimed.insert(offset))
    }

    /// Gives up the right to write a part.
    pub(super) fn unclaim(&self, offset: u64) {
        if let Some(parts) = self.draft.lock().as_mut() {
            parts.claimed.remove(&offset);
        }
    }

    /// Bytes of memory that the file will take beyond what it has when `range` of it is written:
    /// the pages that no written byte is in, of which all but the last few are huge.
    pub(super) fn memory_for(&self, range: &Range<u64>) -> u64 {
        let draft = self.draft.lock();
        let Some(parts) = draft.as_ref().filter(|_| !range.is_empty()) else { return 0 };
        let pages = range.start / HUGE_PAGE_SIZE..=(range.end - 1) / HUGE_PAGE_SIZE;
        let spans = pages.map(|page| {
            let start = page * HUGE_PAGE_SIZE;
            start..(start + HUGE_PAGE_SIZE).min(size_in_memory(self.len))
        });
        spans.filter(|span| !parts.overlaps(span)).map(|span| span.end - span.start).sum()
    }

    /// Writes a part of a draft, whose memory is that of `reservation`. Touches fresh memory,
    /// which may be slow.
    pub(super) fn write_part(&self, bytes: &[u8], offset: u64, reservation: Reservation) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.len);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        self.grown.lock().reservation.merge(reservation);
        self.file.write_all_at(bytes, offset)?;
        if let Some(parts) = self.draft.lock().as_mut() {
            parts.add(offset..end);
        }
        Ok(())
    }

    /// How many bytes are there.
    pub(super) fn written(&self) -> u64 {
        let runs = |parts: &DraftParts| parts.written.iter().map(|(start, end)| end - start).sum();
        self.draft.lock().as_ref().map_or(self.len, runs)
    }

    /// Bytes of memory that the file has reserved.
    pub(super) fn reserved(&self) -> u64 {
        self.grown.lock().reservation.bytes()
    }

    /// Makes a draft complete. What was not written is zeros, which take memory from now on: where
    /// there is none, this fails, rather than a program that has mapped the file. `rest` is the
    /// memory that the file takes beyond what it has reserved.
    pub(super) fn complete(&self, rest: Reservation) -> io::Result<()> {
        if self.len > 0 {
            fallocate(&self.file, FallocateFlags::empty(), 0, self.len)?;
        }
        self.grown.lock().reservation.merge(rest);
        *self.draft.lock() = None;
        Ok(())
    }

    /// Size in bytes, without what was appended.
    #[expect(clippy::len_without_is_empty, reason = "whether there are bytes is of no interest")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Size in bytes with what was appended, as its handles see it.
    pub fn grown_len(&self) -> u64 {
        self.grown.lock().len
    }

    /// Fills `buffer` with the bytes from `offset` on, all of which must lie within the file and
    /// [be there](Self::holds).
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// The value that was [attached](Self::attach).
    pub fn attachment(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.attachment.get().map(AsRef::as_ref)
    }

    /// Keeps `value`, such as the kernel's backing id of the file, as long as the file lives.
    /// Returns the value that is attached, which is another one if another thread was faster.
    pub fn attach(&self, value: Box<dyn Any + Send + Sync>) -> &(dyn Any + Send + Sync) {
        self.attachment.get_or_init(|| value).as_ref()
    }
}

impl AsFd for ResidentFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::super::tests::{private_tmpfs, reserved};
    use super::*;

    fn draft(tmpfs: &PrivateTmpfs, len: u64) -> ResidentFile {
        ResidentFile::draft(tmpfs, len, reserved(0)).unwrap()
    }

    /// A complete file of these bytes.
    fn complete(tmpfs: &PrivateTmpfs, bytes: &[u8]) -> ResidentFile {
        let file = draft(tmpfs, bytes.len() as u64);
        file.write_part(bytes, 0, reserved(4096)).unwrap();
        file.complete(reserved(0)).unwrap();
        file
    }

    #[test]
    #[cfg_attr(not(is_root), ignore = "needs root")]
    fn what_was_not_written_is_zeros_that_take_memory() {
        let Some(tmpfs) = private_tmpfs(16 << 20) else { return };
        let file = draft(&tmpfs, 100_000);
        file.write_part(b"middle", 50_000, reserved(4096)).unwrap();
        assert!(file.write_part(b"too far", 99_999, reserved(4096)).is_err());
        assert!(file.write_part(b"too far", u64::MAX, reserved(4096)).is_err());
        file.complete(reserved(1 << 20)).unwrap();
        let mut bytes = vec![1; 100_000];
        file.read_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes[50_000..50_006], b"middle");
        assert!(bytes[..50_000].iter().chain(&bytes[50_006..]).all(|&byte| byte == 0));
        assert_eq!(file.file.metadata().unwrap().blocks() * 512, 102_400);
        assert!(file.read_at(&mut bytes, 1).is_err());
    }

    #[test]
    #[cfg_attr(not(is_root), ignore = "needs root")]
    fn a_draft_holds_what_was_written_and_a_complete_file_all() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let file = draft(&tmpfs, 100);
        let ranges = [0..1, 10..20, 20..30, 10..30, 15..25, 0..30, 99..100, 99..101];
        let held = || ranges.iter().map(|range| file.holds(range)).collect::<Vec<_>>();
        assert_eq!(held(), [false; 8]);
        file.write_part(&[1; 10], 20, reserved(4096)).unwrap();
        assert_eq!(held(), [false, false, true, false, false, false, false, false]);
        file.write_part(&[1; 10], 10, reserved(4096)).unwrap();
        assert_eq!(held(), [false, true, true, true, true, false, false, false]);
        file.write_part(&[1; 12], 0, reserved(4096)).unwrap();
        assert_eq!(held(), [true, true, true, true, true, true, false, false]);
        assert!(file.claim(30) && !file.claim(30));
        file.unclaim(30);
        assert!(file.claim(30) && !file.is_complete());
        file.complete(reserved(0)).unwrap();
        assert_eq!(held(), [true, true, true, true, true, true, true, false]);
        assert!(file.is_complete() && !file.claim(50));
    }

    #[test]
    #[cfg_attr(not(is_root), ignore = "needs root")]
    fn appended_bytes_follow_the_rest_or_are_cut_off() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let file = Arc::new(complete(&tmpfs, b"first"));
        let content = || std::fs::read(format!("/proc/self/fd/{}", file.file.as_raw_fd())).unwrap();

        let dropped = FileAppend::new(file.clone(), 9, reserved(0)).unwrap();
        dropped.write_at(b"lost", 5).unwrap();
        assert_eq!(content(), b"firstlost");
        drop(dropped);
        assert_eq!((content(), file.grown_len()), (b"first".to_vec(), 5));

        let append = FileAppend::new(file.clone(), 10_000, reserved(8192)).unwrap();
        assert_eq!(content(), b"first", "reserved memory is not content");
        for (bytes, offset) in [("x", 4), ("xx", 9_999), ("x", u64::MAX)] {
            assert!(append.write_at(bytes.as_bytes(), offset).is_err());
        }
        append.write_at(b"next", 8).unwrap();
        append.finish().unwrap();
        let whole = content();
        assert_eq!((whole.len(), file.grown_len(), file.len()), (10_000, 10_000, 5));
        assert_eq!(whole[..12], *b"first\0\0\0next");
        assert!(whole[12..].iter().all(|byte| *byte == 0));
        assert_eq!(file.file.metadata().unwrap().blocks() * 512, 12_288, "zeros take memory, too");
        assert!(FileAppend::new(file, 9_999, reserved(0)).is_err(), "it never becomes shorter");
    }

    #[test]
    #[cfg_attr(not(is_root), ignore = "needs root")]
    fn a_file_that_does_not_fit_is_not_completed() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let error = draft(&tmpfs, 2 << 20).complete(reserved(1 << 20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(draft(&tmpfs, 1 << 20).complete(reserved(1 << 20)).is_ok(), "it left nothing");
        let empty = draft(&tmpfs, 0);
        empty.complete(reserved(0)).unwrap();
        assert_eq!(empty.len(), 0);
    }

    #[test]
    #[cfg_attr(not(is_root), ignore = "needs root")]
    fn the_first_attachment_stays_as_long_as_the_file() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let file = complete(&tmpfs, b"x");
        assert!(file.attachment().is_none());
        let first = Arc::new(1);
        file.attach(Box::new(first.clone()));
        let attached = file.attach(Box::new(Arc::new(2)));
        assert_eq!(attached.downcast_ref::<Arc<i32>>(), Some(&first));
        drop(file);
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
