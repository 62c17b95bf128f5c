//! The disk behind the memory: bytes of objects in files of a local file system, by content.
//!
//! ```text
//!  block, second use ──offer──► DiskWriter ──► DiskStore ──► CacheFile   bytes + checksums
//!                               one thread      index         │
//!  miss in memory ────read──────────────────────► find ───────┘ verified, or absent
//! ```
//!
//! An object never changes, so what is kept under its name is right for ever, and a restart, or
//! another mount of the same cluster, goes on with it. A [`DiskName`] is a digest of all that
//! identifies the bytes, the cluster included ([`ClusterIdentity`]); no name or path of the cluster
//! is on the disk.
//!
//! * [`format`] and [`file`](self::file): each file has a checksum for every 16 KiB. What a crash,
//!   a full disk or a bad sector leaves is right or absent: bytes count only if they agree with
//!   their checksum **each time that the daemon reads them**. A file that does not agree is removed
//!   and counted, and its bytes are fetched.
//! * [`directory`]: one directory of mode 0700, used by descriptor. One daemon writes, the one that
//!   holds the lock; others read what it has written. That is safe without further locks, because a
//!   file is only ever added to, and is removed as a whole: an open file stays as it is.
//! * [`complete`]: a file that has all bytes of a file of the cluster, one after the other, can be
//!   read by the kernel itself, by FUSE passthrough. It is verified as a whole before. The
//!   [`probe`] tells whether its disk still gives bytes.
//! * [`index`](self::index): accounts for space, and chooses which file leaves.
//! * [`writer`]: one thread of low priority and bounded rate. Only what is used a second time is
//!   offered ([`DiskCache::is_second_use`]), so a scan writes nothing. Files are made of objects
//!   that are there, or copied from memory ([`FileSource`]).
//!
//! Reads run on threads that may block, at most [`MAX_CONCURRENT_READS`] of them. One that takes
//! longer than [`READ_TIMEOUT`] is given up for the cluster, and the disk is not asked for a while.
//! Nothing that happens to the disk fails a read of an application.
//!
//! Why not the disk engine of foyer: its blocks are regions of one preallocated space that a log
//! fills and that a single process owns. An entry is read, checked and copied as a whole, where we
//! read 16 KiB of a chunk of megabytes; its recovery scans all regions; and no entry is a file
//! that FUSE passthrough could hand to the kernel. What it has over this (few large files, writes
//! of many small entries at once) pays for entries of kilobytes; here they are chunks.

mod complete;
mod directory;
mod file;
mod format;
mod index;
mod name;
mod probe;
mod recent;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::telemetry::{Metrics, Source};
use crate::vital::contained;
use crate::write_target::{DetachedBuffer, WriteTarget};

pub use complete::CompleteFile;
pub use directory::{DirectoryError, inspect};
pub use format::Member as DiskObject;
pub use name::{ClusterIdentity, DiskName};
pub use writer::FileSource;

use file::CacheFileError;
use format::FileHeader;
use probe::DiskProbe;
use recent::RecentUses;
use store::DiskStore;
use writer::DiskWriter;

/// Reads of the disk at the same time: enough for its queue.
const MAX_CONCURRENT_READS: usize = 32;
/// How long a reader waits for the disk before it asks the cluster.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Complete files that are verified at the same time.
const MAX_CONCURRENT_CHECKS: usize = 2;
/// For how long the disk is not asked after a read has timed out.
const REST_AFTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to keep things, and how much.
#[derive(Debug, Clone)]
pub struct DiskCacheConfig {
    /// The directory that the user named. A directory of the cache's own is made in there.
    pub directory: PathBuf,
    /// Bytes of the disk that files may take.
    pub capacity: u64,
    /// Bytes of memory that may wait to be written.
    pub max_queued: u64,
}

/// Why there is no disk cache.
#[derive(Debug, thiserror::Error)]
pub enum DiskCacheError {
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The thread that writes cannot be started.
    #[error("cannot start the thread that writes: {0}")]
    Thread(#[source] io::Error),
}

/// How full the disk cache is, in bytes and files, and what it did since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// The most that files may take.
    pub capacity: u64,
    /// What files take.
    pub used: u64,
    /// How many files there are.
    pub files: u64,
    /// What waits to be written.
    pub queued: u64,
    /// What was written.
    pub written: u64,
    /// What was not written because the disk was slower, or failed.
    pub dropped: u64,
    /// How many files left for others.
    pub evicted: u64,
    /// Whether this daemon writes; otherwise another one that uses the directory does.
    pub is_writer: bool,
}

/// See the module's documentation.
pub struct DiskCache {
    store: Arc<DiskStore>,
    writer: DiskWriter,
    recent: RecentUses,
    reads: Arc<Semaphore>,
    checks: Arc<Semaphore>,
    probe: DiskProbe,
    /// Files that are being verified.
    in_check: Mutex<HashSet<DiskName>>,
    runtime: Handle,
    /// Until then the disk is not asked.
    paused_until: Mutex<Instant>,
    capacity: u64,
    metrics: Arc<Metrics>,
}

impl DiskCache {
    /// Opens the cache; it blocks on threads of `runtime`. What is there is found in the
    /// background.
    pub fn open(
        config: &DiskCacheConfig,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Result<Arc<Self>, DiskCacheError> {
        let store = Arc::new(DiskStore::open(&config.directory, config.capacity)?);
        let writer = DiskWriter::start(store.clone(), metrics.clone(), config.max_queued);
        Ok(Arc::new(Self {
            writer: writer.map_err(DiskCacheError::Thread)?,
            store,
            recent: RecentUses::new(),
            reads: Arc::new(Semaphore::new(MAX_CONCURRENT_READS)),
            checks: Arc::new(Semaphore::new(MAX_CONCURRENT_CHECKS)),
            probe: DiskProbe::new(),
            in_check: Mutex::default(),
            runtime,
            paused_until: Mutex::new(Instant::now()),
            capacity: config.capacity,
            metrics,
        }))
    }

    /// Fills `dst` with the bytes of an object from `offset` on, if they are there and right.
    /// What `dst` has otherwise is undefined.
    pub async fn read(&self, object: &DiskObject, offset: u64, dst: &mut dyn WriteTarget) -> bool {
        let len = dst.length();
        if !self.store.may_have(&object.name, offset, len as u64)
            || Instant::now() < *self.paused_until.lock()
        {
            return false;
        }
        let begun = Instant::now();
        let (store, reads, object) = (self.store.clone(), self.reads.clone(), *object);
        let runtime = self.runtime.clone();
        let mut buffer = DetachedBuffer::of(dst);
        let read = async move {
            // The semaphore is never closed.
            let permit = reads.acquire_owned().await.map_err(io::Error::other)?;
            let read = runtime.spawn_blocking(move || {
                let _permit = permit;
                let read = store.read(&object.name, offset, buffer.bytes());
                (buffer, read)
            });
            let (buffer, read) = read.await.map_err(io::Error::other)?;
            Ok::<_, CacheFileError>((buffer, read))
        };
        // A read that is given up goes on, and keeps its memory and its permit until it ends.
        let error = match timeout(READ_TIMEOUT, read).await {
            Ok(Ok((buffer, read))) => {
                buffer.reattach(dst);
                read.err()
            }
            Ok(Err(error)) => Some(error),
            Err(_) => {
                tracing::warn!("the disk cache does not answer; it is not asked for {REST_AFTER_TIMEOUT:?}");
                self.metrics.fetch_error(Source::Disk, "timeout");
                *self.paused_until.lock() = Instant::now() + REST_AFTER_TIMEOUT;
                return false;
            }
        };
        match error {
            None => self.metrics.fetch(Source::Disk, len as u64, begun.elapsed()),
            Some(error) => {
                self.count_failure(&object.name, &error);
                return false;
            }
        }
        true
    }

    /// Notes that bytes of an object from `offset` on are used. Returns whether they were used
    /// before, not too long ago: then they are worth keeping.
    pub fn is_second_use(&self, object: &DiskObject, offset: u64) -> bool {
        self.recent.insert(object.name.hash() ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Has bytes of an object kept, as soon as the disk has time for it. Never blocks.
    pub fn offer(&self, object: DiskObject, offset: u64, bytes: impl Deref<Target = [u8]> + Send + 'static) {
        if self.store.wants(&object.name, offset, bytes.len() as u64) {
            self.writer.offer(object, offset, Box::new(bytes));
        }
    }

    /// Notes that a file is opened. Returns it, for the kernel to read, if all of it is there and
    /// verified. Otherwise a file that is there is verified now, and one of the next opens gets it.
    /// Never blocks.
    pub fn opened(self: &Arc<Self>, file: &DiskName) -> Option<Arc<CompleteFile>> {
        if let Some(complete) = self.store.complete(file) {
            self.probe(&complete);
            return self.probe.answers().then_some(complete);
        }
        if self.store.has_file(file)
            && let Ok(permit) = self.checks.clone().try_acquire_owned()
            && self.in_check.lock().insert(*file)
        {
            let (cache, file) = (self.clone(), *file);
            self.runtime.spawn_blocking(move || {
                let _permit = permit;
                if let Some(Err(error)) = contained(|| cache.store.prepare(&file)) {
                    cache.count_failure(&file, &error);
                }
                cache.in_check.lock().remove(&file);
            });
        }
        None
    }

    /// Asks the disk whether it still gives bytes, if it was not asked lately.
    fn probe(self: &Arc<Self>, file: &Arc<CompleteFile>) {
        if self.probe.is_due() {
            let (cache, file) = (self.clone(), file.clone());
            self.runtime.spawn_blocking(move || {
                let answer = probe::ask(&*file);
                if let Err(error) = &answer
                    && cache.probe.answers()
                {
                    tracing::warn!(%error, "the disk of the disk cache fails; the kernel reads no file of it");
                }
                cache.probe.note(answer.is_ok());
            });
        }
    }

    /// Whether the kernel can read a file now.
    pub fn is_complete(&self, file: &DiskName) -> bool {
        self.probe.answers() && self.store.complete(file).is_some()
    }

    /// Whether a file of `len` bytes may be [kept](Self::keep_file) now: it is not there, there can
    /// be room, this daemon writes, and not too many others wait.
    pub fn wants_file(&self, file: &DiskName, len: u64) -> bool {
        self.writer.takes_files() && self.store.wants_file(file, len)
    }

    /// Whether all of the objects are there, as far as is known without asking the disk.
    pub fn has_all(&self, objects: &[DiskObject]) -> bool {
        self.store.has_all(objects)
    }

    /// Has the bytes of a file kept that consists of these objects, one after the other, as soon
    /// as the disk has time for it, unless many others wait. Never blocks. The receiver tells
    /// whether it is there then.
    pub fn keep_file(
        &self,
        name: DiskName,
        objects: Box<[DiskObject]>,
        source: FileSource,
    ) -> oneshot::Receiver<bool> {
        self.writer.offer_file(FileHeader { name, members: objects }, source)
    }

    /// Whether this daemon fills the directory; otherwise another one does.
    pub fn is_writer(&self) -> bool {
        self.store.usage().is_writer
    }

    fn count_failure(&self, name: &DiskName, error: &CacheFileError) {
        match error {
            CacheFileError::Absent => {}
            CacheFileError::Damaged => {
                tracing::debug!(%name, "a file of the disk cache is damaged and was removed");
                self.metrics.integrity_failure(Source::Disk);
            }
            CacheFileError::Io(error) => {
                tracing::debug!(%name, %error, "cannot read from the disk cache");
                self.metrics.fetch_error(Source::Disk, "io");
            }
        }
    }

    /// How full the cache is.
    pub fn usage(&self) -> DiskUsage {
        let store = self.store.usage();
        DiskUsage {
            capacity: self.capacity,
            used: store.used,
            files: store.files,
            queued: self.writer.queued(),
            written: self.writer.written(),
            dropped: self.writer.dropped(),
            evicted: store.evicted,
            is_writer: store.is_writer,
        }
    }
}

impl fmt::Debug for DiskCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskCache").field("usage", &self.usage()).finish_non_exhaustive()
    }
}
