//! The path of `local`: the client reads the volume's file itself, through a descriptor that the
//! engine has handed over.
//!
//! Bytes are read from the page cache by the reader's own thread; what is not in the page cache is
//! read by a thread that may wait for the disk.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use super::answer::{FileRange, ReceivedAnswer};
use super::data_path::{BoxFuture, CHUNK_SIZE, DataPath, SentRead, read_inline, unexpected_answer};
use super::destination::ReadMemory;
use super::verification::{ReadChecksum, matched_part};
use super::volume_file::{MAX_DISK_READS, VolumeFile};
use super::{Delivered, ReadError};
use crate::needle::{HEADER, Header};
use crate::protocol::{NeedleInfo, Transport};
use crate::transport::run_blocking;

/// From this many bytes on, the copy from the page cache moves the thread's other tasks elsewhere.
const MIN_BLOCKING_SIZE: usize = 128 << 10;

pub(super) struct LocalPath {
    /// Threads that may wait for a disk.
    disk_reads: Arc<Semaphore>,
    /// The engine has handed over something that cannot be a volume's file.
    has_unfit_files: AtomicBool,
}

impl LocalPath {
    pub(super) fn new() -> Self {
        let disk_reads = Arc::new(Semaphore::new(MAX_DISK_READS));
        Self { disk_reads, has_unfit_files: AtomicBool::new(false) }
    }
}

impl DataPath for LocalPath {
    fn transport(&self) -> Transport {
        Transport::Local
    }

    fn read_into<'a>(
        &'a self,
        answer: ReceivedAnswer,
        read: &'a SentRead<'a>,
        memory: &'a mut dyn ReadMemory,
    ) -> BoxFuture<'a, Result<Delivered, ReadError>> {
        Box::pin(async move {
            match answer {
                ReceivedAnswer::File(needle, range) => {
                    let destination = matched_part(&needle, &read.target, memory.bytes())?;
                    let checksum = read_file(&range, &needle, destination).await?;
                    let verified = checksum.verify(&needle)?;
                    Ok(Delivered { needle, verified, transport: Transport::Local })
                }
                ReceivedAnswer::Data(needle, data) => {
                    read_inline(needle, data, read, memory, Transport::Local).await
                }
                _ => Err(unexpected_answer()),
            }
        })
    }

    fn take_file(&self, descriptor: OwnedFd) -> BoxFuture<'_, io::Result<Arc<VolumeFile>>> {
        Box::pin(async move {
            VolumeFile::take(descriptor, &self.disk_reads).await.inspect_err(|error| {
                tracing::warn!(%error, "an engine hands over what is no volume's file");
                self.has_unfit_files.store(true, Ordering::Relaxed);
            })
        })
    }

    fn is_unusable(&self) -> bool {
        self.has_unfit_files.load(Ordering::Relaxed)
    }
}

/// Reads the data, and afterwards the record's header once more: if the header is still the same,
/// the bytes are this needle's. Returns their checksum.
async fn read_file(
    range: &FileRange,
    needle: &NeedleInfo,
    destination: &mut [u8],
) -> Result<ReadChecksum, ReadError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Damaged("the file was truncated"),
        _ => ReadError::Lost(error.to_string()),
    };
    let (mut checksum, mut done) = (ReadChecksum::default(), 0);
    let mut header = [0; HEADER];
    loop {
        // Everything that is in the page cache, in one go.
        let mut read_cached = || -> io::Result<()> {
            while done < destination.len() {
                let piece = next_piece(destination, done);
                range.file.read_cached(piece, range.position.saturating_add(done as u64))?;
                checksum.add(piece);
                done += piece.len();
            }
            range.file.read_cached(&mut header, range.record)
        };
        let is_long = needle.length as usize >= MIN_BLOCKING_SIZE;
        let outcome = match is_long && range.file.can_read_cached() {
            true => run_blocking(read_cached),
            false => read_cached(),
        };
        match outcome {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
        // The header is read together with the last piece.
        let is_last = done + CHUNK_SIZE >= destination.len();
        let position = range.position.saturating_add(done as u64);
        let piece = next_piece(destination, done);
        let mut parts = [(&mut *piece, position), (&mut header[..], range.record)];
        let count = if is_last { 2 } else { 1 };
        range.file.read_from_disk(&mut parts[..count]).await.map_err(failed)?;
        checksum.add(piece);
        done += piece.len();
        if is_last {
            break;
        }
    }
    match Header::parse(&header) == needle.header {
        true => Ok(checksum),
        false => Err(ReadError::Damaged("the record is not there any more")),
    }
}

/// The next piece of `destination`, of which `done` bytes are read.
fn next_piece(destination: &mut [u8], done: usize) -> &mut [u8] {
    let end = destination.len().min(done + CHUNK_SIZE);
    &mut destination[done..end]
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;

    use super::*;
    use crate::checksum;
    use crate::needle::Flags;

    /// Where the range begins in a file, and where the header that is read afterwards.
    const POSITION: usize = 20;
    const RECORD: usize = 3;

    async fn read_from(file: File, whole: &[u8], length: usize) -> Result<Vec<u8>, ReadError> {
        let file = VolumeFile::take(file.into(), &Arc::new(Semaphore::new(1))).await.unwrap();
        let range = FileRange { file, record: RECORD as u64, position: POSITION as u64 };
        let header = Header::parse(whole[RECORD..RECORD + HEADER].try_into().unwrap());
        let mut bytes = vec![0; length];
        let length = length as u32;
        let mut needle =
            NeedleInfo { header, data_size: length, checksum: 0, flags: Flags(0), deleted: false, length };
        let checksum = read_file(&range, &needle, &mut bytes).await?;
        needle.checksum = checksum::crc32c(&bytes);
        assert_eq!(checksum.verify(&needle).unwrap(), length > 0);
        Ok(bytes)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_range_is_read_whether_or_not_its_file_system_reports_what_is_cached() {
        let directory = tempfile::tempdir().unwrap();
        let written = directory.path().join("1.dat");
        let content: Vec<u8> = (0..3 * CHUNK_SIZE + 7).map(|at| ((at as u32 * 31) >> 3) as u8).collect();
        File::create(&written).unwrap().write_all(&content).unwrap();
        // The file systems of the last two do not report it. The last, of several pieces, is not
        // on every host.
        for path in [written, "/proc/version".into(), "/sys/kernel/btf/vmlinux".into()] {
            let Ok(whole) = fs::read(&path) else { continue };
            for length in [0, 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE - POSITION] {
                let Some(expected) = whole.get(POSITION..POSITION + length) else { continue };
                let bytes = read_from(File::open(&path).unwrap(), &whole, length).await.unwrap();
                assert!(bytes == expected, "{} bytes of {}", length, path.display());
            }
            let mut other = whole.clone();
            other[RECORD] ^= 1;
            for (whole, length) in [(&other, 1), (&whole, whole.len())] {
                let outcome = read_from(File::open(&path).unwrap(), whole, length).await;
                assert!(matches!(outcome, Err(ReadError::Damaged(_))), "{outcome:?}");
            }
        }
    }
}
