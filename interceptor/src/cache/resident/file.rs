//! Files of the private tmpfs, before and after they are complete.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, fallocate};

use super::super::sync::Mutex;
use super::budget::Reservation;
use super::tmpfs::PrivateTmpfs;

/// A file that is being written. It becomes readable when it is [finished](DraftFile::finish); if
/// it is dropped instead, it is gone.
#[derive(Debug)]
pub(super) struct DraftFile {
    file: File,
    len: u64,
    reservation: Reservation,
}

impl DraftFile {
    /// A file of `len` bytes, all of them zero and none of them taking memory yet. It will take
    /// the memory of `reservation`.
    pub(super) fn new(tmpfs: &PrivateTmpfs, len: u64, reservation: Reservation) -> io::Result<Self> {
        let file = tmpfs.file()?;
        // Before the first write, so that the kernel knows where huge pages fit.
        file.set_len(len)?;
        Ok(Self { file, len, reservation })
    }

    /// Writes `bytes` from `offset` on; they must lie within the file. Touches fresh memory, which
    /// may be slow.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all_at(bytes, offset)
    }

    /// The complete file. What was not written is zeros, which take memory from now on: where
    /// there is none, this fails, rather than a program that has mapped the file.
    pub(super) fn finish(self) -> io::Result<ResidentFile> {
        if self.len > 0 {
            fallocate(&self.file, FallocateFlags::empty(), 0, self.len)?;
        }
        Ok(ResidentFile {
            attachment: OnceLock::new(),
            file: self.file,
            len: self.len,
            grown: Mutex::new(GrownSize { len: self.len, reservation: self.reservation }),
        })
    }
}

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

/// A complete file in memory whose bytes never change, for the kernel to read. Once it is retired,
/// bytes can be appended ([`FileAppend`]). Its memory is free again when this is dropped and the
/// kernel has neither a descriptor nor a mapping of it.
#[derive(Debug)]
pub struct ResidentFile {
    /// Dropped before the file is closed.
    attachment: OnceLock<Box<dyn Any + Send + Sync>>,
    file: File,
    len: u64,
    /// Dropped after the file is closed.
    grown: Mutex<GrownSize>,
}

/// The size of a file with what was appended.
#[derive(Debug)]
struct GrownSize {
    /// In bytes.
    len: u64,
    /// The memory of these bytes.
    reservation: Reservation,
}

impl ResidentFile {
    /// Size in bytes, without what was appended.
    #[expect(clippy::len_without_is_empty, reason = "whether there are bytes is of no interest")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Size in bytes with what was appended, as its handles see it.
    pub fn grown_len(&self) -> u64 {
        self.grown.lock().len
    }

    /// Fills `buffer` with the bytes from `offset` on, all of which must lie within the file.
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
    use super::super::tests::{private_tmpfs, reserved};
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_was_not_written_is_zeros_that_take_memory() {
        let Some(tmpfs) = private_tmpfs(16 << 20) else { return };
        let draft = DraftFile::new(&tmpfs, 100_000, reserved(1 << 20)).unwrap();
        draft.write_at(b"middle", 50_000).unwrap();
        assert!(draft.write_at(b"too far", 99_999).is_err());
        assert!(draft.write_at(b"too far", u64::MAX).is_err());
        let file = draft.finish().unwrap();
        let mut bytes = vec![1; 100_000];
        file.read_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes[50_000..50_006], b"middle");
        assert!(bytes[..50_000].iter().chain(&bytes[50_006..]).all(|&byte| byte == 0));
        assert_eq!(file.file.metadata().unwrap().blocks() * 512, 102_400);
        assert!(file.read_at(&mut bytes, 1).is_err());
    }

    #[test]
    fn appended_bytes_follow_the_rest_or_are_cut_off() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let draft = DraftFile::new(&tmpfs, 5, reserved(4096)).unwrap();
        draft.write_at(b"first", 0).unwrap();
        let file = Arc::new(draft.finish().unwrap());
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
    fn a_file_that_does_not_fit_is_not_finished() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let error = DraftFile::new(&tmpfs, 2 << 20, reserved(1 << 20)).unwrap().finish().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(
            DraftFile::new(&tmpfs, 1 << 20, reserved(1 << 20)).unwrap().finish().is_ok(),
            "it left nothing"
        );
        assert_eq!(DraftFile::new(&tmpfs, 0, reserved(1 << 20)).unwrap().finish().unwrap().len(), 0);
    }

    #[test]
    fn the_first_attachment_stays_as_long_as_the_file() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let file = DraftFile::new(&tmpfs, 1, reserved(1 << 20)).unwrap().finish().unwrap();
        assert!(file.attachment().is_none());
        let first = Arc::new(1);
        file.attach(Box::new(first.clone()));
        let attached = file.attach(Box::new(Arc::new(2)));
        assert_eq!(attached.downcast_ref::<Arc<i32>>(), Some(&first));
        drop(file);
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
