//! The thread that writes to the disk, removes files and looks after the directory.
//!
//! Blocks that are offered wait in a queue that is bounded in bytes; if the queue is full, the
//! offer is dropped, and comes again when the bytes are used again. Whole files are written a step
//! at a time while no block waits. The thread writes at most [`MAX_WRITE_RATE`], so that readers
//! have the disk, and after a failure nothing for a while.

use std::collections::VecDeque;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::file::CacheFile;
use super::format::{FileHeader, Member};
use super::store::DiskStore;
use crate::telemetry::{Metrics, Source};
use crate::vital::contained;

/// Bytes per second that are written at most.
const MAX_WRITE_RATE: u64 = 256 << 20;
/// Bytes of a whole file that are written at once.
const STEP_SIZE: u64 = 1 << 20;
/// Whole files that may wait.
const MAX_QUEUED_FILES: u64 = 16;
/// For how long nothing is written after a failure.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// The same after the directory was made anew.
const REST_AFTER_REOPENING: Duration = Duration::from_secs(1);
/// How often the directory is looked after.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(5);
/// The thread's nice value: the lowest priority.
const NICENESS: i32 = 19;

/// Bytes that stay as they are until they are dropped.
pub(super) type OfferedBytes = Box<dyn Deref<Target = [u8]> + Send>;

/// A function that fills its buffer with the bytes of a file from an offset on. Called on a thread
/// that may block.
pub(super) type FileReader = Box<dyn FnMut(u64, &mut [u8]) -> io::Result<()> + Send>;

/// Where the bytes of a whole file come from.
pub enum FileSource {
    /// From the objects that are on this disk already.
    Disk,
    /// Read from elsewhere.
    Reader(FileReader),
}

/// What is to be written.
enum WriteJob {
    /// Bytes of an object.
    Block { object: Member, offset: u64, bytes: OfferedBytes },
    /// A file of several objects.
    File { header: FileHeader, source: FileSource, kept: oneshot::Sender<bool> },
}

/// The thread and its queue. The thread ends when this is dropped, after the write that it is at.
#[derive(Debug)]
pub(super) struct DiskWriter {
    queue: Sender<WriteJob>,
    progress: Arc<WriteProgress>,
    max_queued: u64,
}

#[derive(Debug, Default)]
struct WriteProgress {
    /// Bytes of blocks that wait.
    queued: AtomicU64,
    /// Files that wait.
    queued_files: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
}

impl DiskWriter {
    /// Starts the thread, which first finds what is there. Up to `max_queued` bytes may wait, and
    /// one block however large it is.
    pub(super) fn start(store: Arc<DiskStore>, metrics: Arc<Metrics>, max_queued: u64) -> io::Result<Self> {
        let (queue, jobs) = channel();
        let progress = Arc::<WriteProgress>::default();
        let mut thread = WriterThread {
            store,
            metrics,
            progress: progress.clone(),
            files: VecDeque::new(),
            paused_until: Instant::now(),
            free_at: Instant::now(),
        };
        std::thread::Builder::new().name("disk-cache".into()).spawn(move || thread.run(&jobs))?;
        Ok(Self { queue, progress, max_queued })
    }

    /// Queues bytes of an object, unless the queue is full.
    pub(super) fn offer(&self, object: Member, offset: u64, bytes: OfferedBytes) {
        let len = bytes.len() as u64;
        let queued = self.progress.queued.fetch_add(len, Ordering::Relaxed);
        let job = WriteJob::Block { object, offset, bytes };
        let is_full = queued > 0 && queued + len > self.max_queued;
        if is_full || self.queue.send(job).is_err() {
            self.progress.queued.fetch_sub(len, Ordering::Relaxed);
            self.progress.dropped.fetch_add(len, Ordering::Relaxed);
        }
    }

    /// Queues a whole file, unless too many wait. The receiver tells whether it is on disk then.
    pub(super) fn offer_file(&self, header: FileHeader, source: FileSource) -> oneshot::Receiver<bool> {
        let (kept, outcome) = oneshot::channel();
        let queued = self.progress.queued_files.fetch_add(1, Ordering::Relaxed);
        let job = WriteJob::File { header, source, kept };
        if queued >= MAX_QUEUED_FILES || self.queue.send(job).is_err() {
            self.progress.queued_files.fetch_sub(1, Ordering::Relaxed);
        }
        outcome
    }

    /// Whether one more file may wait.
    pub(super) fn takes_files(&self) -> bool {
        self.progress.queued_files.load(Ordering::Relaxed) < MAX_QUEUED_FILES
    }

    /// Bytes of blocks that wait to be written.
    pub(super) fn queued(&self) -> u64 {
        self.progress.queued.load(Ordering::Relaxed)
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.progress.written.load(Ordering::Relaxed)
    }

    /// Bytes that found the queue full, or were offered during a pause.
    pub(super) fn dropped(&self) -> u64 {
        self.progress.dropped.load(Ordering::Relaxed)
    }
}

/// A whole file that is being written.
struct FileInProgress {
    header: FileHeader,
    source: FileSource,
    kept: oneshot::Sender<bool>,
    /// Set with the first step.
    file: Option<Arc<CacheFile>>,
    /// The member that comes next, and where in it.
    member: usize,
    offset: u64,
    /// Where in the file that is.
    file_offset: u64,
}

struct WriterThread {
    store: Arc<DiskStore>,
    metrics: Arc<Metrics>,
    progress: Arc<WriteProgress>,
    files: VecDeque<FileInProgress>,
    paused_until: Instant,
    /// When the rate allows the next write.
    free_at: Instant,
}

impl WriterThread {
    fn run(&mut self, jobs: &Receiver<WriteJob>) {
        // In Linux a priority belongs to a thread, and the call takes the thread's id for a
        // process id.
        if let Err(errno) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
            tracing::debug!(%errno, "the disk cache is filled at normal priority");
        }
        contained(|| self.store.scan());
        let mut maintenance = Instant::now() + MAINTENANCE_INTERVAL;
        loop {
            let idle = match self.files.is_empty() {
                true => maintenance.saturating_duration_since(Instant::now()),
                false => Duration::ZERO,
            };
            match jobs.recv_timeout(idle) {
                Ok(WriteJob::Block { object, offset, bytes }) => {
                    contained(|| self.write(object, offset, &bytes));
                    self.progress.queued.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
                }
                Ok(WriteJob::File { header, source, kept }) => {
                    let (file, member, offset, file_offset) = (None, 0, 0, 0);
                    let file = FileInProgress { header, source, kept, file, member, offset, file_offset };
                    self.files.push_back(file);
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(mut file) = self.files.pop_front() {
                        match contained(|| self.step(&mut file)) {
                            Some(true) => self.files.push_front(file),
                            Some(false) | None => self.finish(file),
                        }
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= maintenance {
                contained(|| self.store.maintain());
                maintenance = Instant::now() + MAINTENANCE_INTERVAL;
            }
        }
    }

    fn write(&mut self, object: Member, offset: u64, bytes: &[u8]) {
        if Instant::now() < self.paused_until {
            self.progress.dropped.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return;
        }
        self.wait_for_rate();
        match self.store.write(object, offset, bytes) {
            Ok(written) => self.count(written),
            Err(error) => self.failed(&error),
        }
    }

    /// Writes the next bytes of a file. Returns whether there are more to write.
    fn step(&mut self, next: &mut FileInProgress) -> bool {
        if Instant::now() < self.paused_until {
            return false;
        }
        let FileInProgress { header, source, file, member, offset, file_offset, kept: _ } = next;
        if file.is_none() {
            match self.store.begin(header.clone()) {
                Ok(begun) => *file = begun,
                Err(error) => self.failed(&error),
            }
        }
        let (Some(file), Some(object)) = (file, header.members.get(*member)) else { return false };
        let len = (object.len - *offset).min(STEP_SIZE);
        if !file.has(*member, *offset, len) {
            self.wait_for_rate();
            let mut bytes = vec![0; len as usize];
            let read = match source {
                FileSource::Disk => {
                    self.store.read(&object.name, *offset, &mut bytes).map_err(io::Error::other)
                }
                FileSource::Reader(read) => read(*file_offset, &mut bytes),
            };
            if let Err(error) = read {
                tracing::debug!(%error, "a file cannot be kept on disk");
                return false;
            }
            match self.store.add(file, *member, *offset, &bytes) {
                Ok(true) => self.count(len),
                Ok(false) => return false,
                Err(error) => {
                    self.failed(&error);
                    return false;
                }
            }
        }
        *offset += len;
        *file_offset += len;
        if *offset == object.len {
            (*member, *offset) = (*member + 1, 0);
        }
        *member < header.members.len()
    }

    /// Ends the writing of a file, and tells whether it is there.
    fn finish(&self, ended: FileInProgress) {
        self.progress.queued_files.fetch_sub(1, Ordering::Relaxed);
        let is_kept = contained(|| {
            ended.file.iter().for_each(|file| self.store.finish(file));
            self.store.is_kept(&ended.header.name)
        });
        // The receiver may be gone by then.
        let _ = ended.kept.send(is_kept.unwrap_or(false));
    }

    fn wait_for_rate(&self) {
        std::thread::sleep(self.free_at.saturating_duration_since(Instant::now()));
    }

    fn count(&mut self, written: u64) {
        self.progress.written.fetch_add(written, Ordering::Relaxed);
        let cost = Duration::from_nanos(written.saturating_mul(1_000_000_000) / MAX_WRITE_RATE);
        self.free_at = self.free_at.max(Instant::now()) + cost;
    }

    fn failed(&mut self, error: &io::Error) {
        tracing::warn!(%error, "cannot write to the disk cache; nothing is written for {REST_AFTER_FAILURE:?}");
        let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        self.metrics.fetch_error(Source::Disk, if is_full { "full" } else { "write" });
        self.paused_until = Instant::now() + REST_AFTER_FAILURE;
        if error.kind() == io::ErrorKind::NotFound {
            // Parts of the directory were removed.
            self.store.reopen();
            self.paused_until = Instant::now() + REST_AFTER_REOPENING;
        }
    }
}
