//! A volume's file whose descriptor an engine has handed over.
//!
//! A descriptor may be anything: a pipe without a writer, a device, a file of a FUSE or network
//! file system whose server answers when it likes. To ask what it is, to read it and even to close
//! it can then block for ever. So all of that happens on threads that the reader does not wait for
//! beyond a limit, and only a regular file of a local file system, opened for reading alone, is
//! taken.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, fstatfs};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::store::{CacheProbe, ReadMode, read_exact_at};

/// How long it may take to find out what a descriptor is.
const EXAMINE_TIMEOUT: Duration = Duration::from_secs(1);

/// Threads of one connection that may wait for a disk. If the disk hangs, they are what is lost.
pub(super) const MAX_DISK_READS: usize = 64;

/// Magic numbers of file systems whose answers come from a process or over a network (`statfs(2)`,
/// `linux/magic.h`).
const REMOTE_FILE_SYSTEMS: [(u32, &str); 9] = [
    (0x6573_5546, "fuse"),
    (0x0000_6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x0000_517b, "smb"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "ceph"),
    (0x5346_414f, "afs"),
    (0x0bd0_0bd0, "lustre"),
];

/// See the module.
#[derive(Debug)]
pub(super) struct VolumeFile {
    file: File,
    probe: CacheProbe,
    /// Permits for threads that wait for the disk.
    disk_reads: Arc<Semaphore>,
}

impl VolumeFile {
    /// Takes a descriptor that the engine has handed over, if it can be a volume's file.
    ///
    /// # Errors
    /// Of kind `InvalidInput` if it is something else, or does not report within a second what it
    /// is.
    pub(super) async fn take(descriptor: OwnedFd, disk_reads: &Arc<Semaphore>) -> io::Result<Arc<Self>> {
        let examined = spawn_blocking(move || {
            let probe = examine(descriptor.as_fd())?;
            Ok((File::from(descriptor), probe))
        });
        let unfit = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
        let late = |_| unfit("a descriptor that does not say what it is".to_owned());
        let (file, probe) = timeout(EXAMINE_TIMEOUT, examined).await.map_err(late)??.map_err(unfit)?;
        Ok(Arc::new(Self { file, probe, disk_reads: disk_reads.clone() }))
    }

    /// Whether [`read_cached`](Self::read_cached) can succeed at all.
    pub(super) fn can_read_cached(&self) -> bool {
        self.probe != CacheProbe::Unsupported
    }

    /// Fills `destination` with the bytes from `position` on, if they are in the page cache.
    ///
    /// # Errors
    /// Of kind `WouldBlock` if they are not.
    pub(super) fn read_cached(&self, destination: &mut [u8], position: u64) -> io::Result<()> {
        read_exact_at(&self.file, self.probe, destination, position, ReadMode::CachedOnly)
    }

    /// Fills each part with the bytes from its position on, one after the other, on a thread that
    /// may wait. If the future is dropped, the thread goes on with buffers of its own.
    pub(super) async fn read_from_disk(self: &Arc<Self>, parts: &mut [(&mut [u8], u64)]) -> io::Result<()> {
        // The semaphore is never closed.
        let permit = self.disk_reads.clone().acquire_owned().await.map_err(io::Error::other)?;
        let this = self.clone();
        let ranges: Vec<_> = parts.iter().map(|(part, position)| (part.len(), *position)).collect();
        let read = spawn_blocking(move || {
            let _permit = permit;
            let read = |(length, position)| {
                let mut bytes = vec![0; length];
                read_exact_at(&this.file, this.probe, &mut bytes, position, ReadMode::Blocking)?;
                Ok(bytes)
            };
            ranges.into_iter().map(read).collect::<io::Result<Vec<_>>>()
        });
        for ((part, _), bytes) in parts.iter_mut().zip(read.await??) {
            part.copy_from_slice(&bytes);
        }
        Ok(())
    }
}

/// How the file system of a descriptor reports cached bytes, if it can be a volume's file.
/// Otherwise the error says what it is.
fn examine(descriptor: BorrowedFd<'_>) -> Result<CacheProbe, String> {
    let told = |error: rustix::io::Errno| format!("a descriptor that says {error} of itself");
    let flags = fcntl_getfl(descriptor).map_err(told)?;
    if flags & OFlags::ACCMODE != OFlags::RDONLY || flags.contains(OFlags::PATH) {
        return Err("a descriptor that is not for reading alone".to_owned());
    }
    let kind = FileType::from_raw_mode(fstat(descriptor).map_err(told)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(format!("a descriptor of no regular file: {kind:?}"));
    }
    // The number is signed or not, and of 32 or 64 bits, depending on the architecture.
    let magic = fstatfs(descriptor).map_err(told)?.f_type as u32;
    match REMOTE_FILE_SYSTEMS.iter().find(|(remote, _)| *remote == magic) {
        Some((_, name)) => Err(format!("a file of a file system that is not local: {name}")),
        None => Ok(CacheProbe::of(descriptor)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;

    fn disk_reads() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(1))
    }

    async fn taken(descriptor: impl Into<OwnedFd>) -> Result<Arc<VolumeFile>, String> {
        VolumeFile::take(descriptor.into(), &disk_reads()).await.map_err(|error| error.to_string())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn only_a_regular_file_that_is_open_for_reading_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.dat");
        std::fs::write(&path, b"0123456789").unwrap();
        let file = taken(File::open(&path).unwrap()).await.unwrap();
        let mut bytes = [0; 4];
        let mut more = [0; 2];
        file.read_from_disk(&mut [(&mut bytes, 3), (&mut more, 0)]).await.unwrap();
        assert_eq!((&bytes, &more), (b"3456", b"01"));
        let behind = file.read_from_disk(&mut [(&mut more, 0), (&mut bytes, 8)]).await;
        assert_eq!(behind.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        for writes in [OpenOptions::new().read(true).write(true), OpenOptions::new().append(true)] {
            let reason = taken(writes.open(&path).unwrap()).await.unwrap_err();
            assert!(reason.contains("reading alone"), "{reason}");
        }
        let only_a_name = rustix::fs::open(&path, OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert!(taken(only_a_name).await.unwrap_err().contains("reading alone"));
        let (pipe, mut other) = io::pipe().unwrap();
        other.write_all(b"0123456789").unwrap();
        assert!(taken(pipe).await.unwrap_err().contains("no regular file"));
        for special in ["/dev/zero", "/"] {
            assert!(taken(File::open(special).unwrap()).await.unwrap_err().contains("no regular file"));
        }
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(taken(socket).await.unwrap_err().contains("reading alone"));
    }
}
