//! Files of the private tmpfs, before and after they are complete.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, fallocate};

use super::super::sync::Mutex;
use super::budget::Reserved;
use super::tmpfs::PrivateTmpfs;

/// A file that is being written. Nobody reads it before it is [finished](Draft::finish); dropped instead, it is gone.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    len: u64,
    reserved: Reserved,
}

impl Draft {
    /// A file of `len` bytes, all of them zero and none of them taking memory yet. It will take what is `reserved`.
    pub(super) fn new(tmpfs: &PrivateTmpfs, len: u64, reserved: Reserved) -> io::Result<Self> {
        let file = tmpfs.file()?;
        // Before the first write, so that the kernel knows where huge pages fit.
        file.set_len(len)?;
        Ok(Self { file, len, reserved })
    }

    /// Writes `bytes` from `offset` on; they must lie within the file. Takes fresh memory from the host, which may be
    /// slow.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all_at(bytes, offset)
    }

    /// The complete file. What was not written is zeros, which from now on take memory too: a file that may be mapped
    /// must not be the first to find out that there is none.
    pub(super) fn finish(self) -> io::Result<ResidentFile> {
        if self.len > 0 {
            fallocate(&self.file, FallocateFlags::empty(), 0, self.len)?;
        }
        Ok(ResidentFile {
            attachment: OnceLock::new(),
            file: self.file,
            len: self.len,
            extent: Mutex::new((self.len, self.reserved)),
        })
    }
}

/// Bytes that are being appended to a file for who has it open. Readers see them as they come; dropped instead of being
/// [finished](Addition::finish), they are gone again.
#[derive(Debug)]
pub(super) struct Addition {
    file: Arc<ResidentFile>,
    len: u64,
    reserved: Option<Reserved>,
}

impl Addition {
    /// Makes the file one of `len` bytes; those that are not written are zeros. Its memory is `reserved`, and taken here.
    pub(super) fn new(file: Arc<ResidentFile>, len: u64, reserved: Reserved) -> io::Result<Self> {
        let from = file.extent.lock().0;
        let more = len.checked_sub(from).ok_or(io::ErrorKind::InvalidInput)?;
        fallocate(&file.file, FallocateFlags::KEEP_SIZE, from, more)?;
        Ok(Self { file, len, reserved: Some(reserved) })
    }

    /// Writes `bytes` from `offset` on, behind all that was written before.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let is_inside = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.len);
        if !is_inside || offset < self.file.extent.lock().0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.file.write_all_at(bytes, offset)
    }

    /// The file is complete as it is.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.file.set_len(self.len)?;
        let mut extent = self.file.extent.lock();
        extent.0 = self.len;
        if let Some(reserved) = self.reserved.take() {
            extent.1.join(reserved);
        }
        Ok(())
    }
}

impl Drop for Addition {
    fn drop(&mut self) {
        if self.reserved.is_some() {
            let len = self.file.extent.lock().0;
            if let Err(error) = self.file.file.set_len(len) {
                tracing::warn!(%error, "a file in memory keeps the beginning of what was appended");
            }
        }
    }
}

/// A complete file in memory whose bytes never change, for the kernel to read by itself. If it is on no shelf any more, bytes
/// can come behind these ([`Addition`]). Its memory is free again when nobody has this any more, nor the kernel a
/// descriptor or a mapping of it.
#[derive(Debug)]
pub struct ResidentFile {
    /// Dropped before the file is closed.
    attachment: OnceLock<Box<dyn Any + Send + Sync>>,
    file: File,
    len: u64,
    /// How long it is with what was appended, and its memory, which is dropped after the file is closed.
    extent: Mutex<(u64, Reserved)>,
}

impl ResidentFile {
    /// Size in bytes, of what does not change.
    #[expect(clippy::len_without_is_empty, reason = "whether there are bytes is of no interest")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Size in bytes for who has it open: with what was appended.
    pub fn grown_len(&self) -> u64 {
        self.extent.lock().0
    }

    /// Fills `buffer` with the bytes from `offset` on, all of which must lie within the file.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// What was [attached](Self::attach).
    pub fn attachment(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.attachment.get().map(AsRef::as_ref)
    }

    /// Keeps `value`, such as the kernel's number for the file, as long as the file lives. Returns what is attached, which
    /// is another's if that was faster.
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
    fn what_was_not_written_is_zeros_that_are_there() {
        let Some(tmpfs) = private_tmpfs(16 << 20) else { return };
        let draft = Draft::new(&tmpfs, 100_000, reserved(1 << 20)).unwrap();
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
    fn what_is_appended_comes_behind_the_rest_or_not_at_all() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let draft = Draft::new(&tmpfs, 5, reserved(4096)).unwrap();
        draft.write_at(b"first", 0).unwrap();
        let file = Arc::new(draft.finish().unwrap());
        let content = || std::fs::read(format!("/proc/self/fd/{}", file.file.as_raw_fd())).unwrap();

        let given_up = Addition::new(file.clone(), 9, reserved(0)).unwrap();
        given_up.write_at(b"lost", 5).unwrap();
        assert_eq!(content(), b"firstlost");
        drop(given_up);
        assert_eq!((content(), file.grown_len()), (b"first".to_vec(), 5));

        let addition = Addition::new(file.clone(), 10_000, reserved(8192)).unwrap();
        assert_eq!(content(), b"first", "room is not content");
        for (bytes, offset) in [("x", 4), ("xx", 9_999), ("x", u64::MAX)] {
            assert!(addition.write_at(bytes.as_bytes(), offset).is_err());
        }
        addition.write_at(b"next", 8).unwrap();
        addition.finish().unwrap();
        let whole = content();
        assert_eq!((whole.len(), file.grown_len(), file.len()), (10_000, 10_000, 5));
        assert_eq!(whole[..12], *b"first\0\0\0next");
        assert!(whole[12..].iter().all(|byte| *byte == 0));
        assert_eq!(file.file.metadata().unwrap().blocks() * 512, 12_288, "zeros take memory, too");
        assert!(Addition::new(file, 9_999, reserved(0)).is_err(), "it never becomes shorter");
    }

    #[test]
    fn a_file_that_does_not_fit_is_not_finished() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let error = Draft::new(&tmpfs, 2 << 20, reserved(1 << 20)).unwrap().finish().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(Draft::new(&tmpfs, 1 << 20, reserved(1 << 20)).unwrap().finish().is_ok(), "it left nothing");
        assert_eq!(Draft::new(&tmpfs, 0, reserved(1 << 20)).unwrap().finish().unwrap().len(), 0);
    }

    #[test]
    fn the_first_attachment_stays_as_long_as_the_file() {
        let Some(tmpfs) = private_tmpfs(1 << 20) else { return };
        let file = Draft::new(&tmpfs, 1, reserved(1 << 20)).unwrap().finish().unwrap();
        assert!(file.attachment().is_none());
        let first = Arc::new(1);
        file.attach(Box::new(first.clone()));
        let attached = file.attach(Box::new(Arc::new(2)));
        assert_eq!(attached.downcast_ref::<Arc<i32>>(), Some(&first));
        drop(file);
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
