//! What the readers of one version have done so far, and what follows from it for the next read.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::block_plan::{ObjectAccess, WHOLE_FETCH_READS};
use super::kernel_hints::KernelHints;
use crate::cache::resident::ResidentFile;
use crate::prefetch::{AccessPattern, Streams};

/// Files up to this size, in bytes, are one or two fetches: readahead would gain nothing.
const MIN_STREAMED_SIZE: u64 = 1 << 20;
/// A read of fewer bytes counts as one of so many, because it costs about as much.
const MIN_COUNTED_READ: u64 = 64 << 10;

/// The reads of one version. Every counter is a heuristic: a lost update costs a fetch, never a
/// wrong byte.
#[derive(Debug)]
pub struct FileActivity {
    /// Size of the file in bytes.
    size: u64,
    was_read: AtomicBool,
    was_refused: AtomicBool,
    /// Sequential and strided readers; `None` for small files.
    streams: Option<Mutex<Streams>>,
    /// For each object of the layout the number of random reads, up to [`WHOLE_FETCH_READS`].
    random_reads: OnceLock<Box<[AtomicU8]>>,
    /// Bytes read since the file was last considered for promotion.
    read_bytes: AtomicU64,
    /// The resident file with the version's bytes, as far as this process knows.
    resident: Mutex<Weak<ResidentFile>>,
    kernel_hints: KernelHints,
    /// Cancels the prefetches for this version; made with the first of them.
    forgotten: OnceLock<CancellationToken>,
}

impl FileActivity {
    /// Of a file of `size` bytes that has not been read.
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            was_read: AtomicBool::new(false),
            was_refused: AtomicBool::new(false),
            streams: (size > MIN_STREAMED_SIZE).then(|| Mutex::new(Streams::new(size))),
            random_reads: OnceLock::new(),
            read_bytes: AtomicU64::new(0),
            resident: Mutex::default(),
            kernel_hints: KernelHints::default(),
            forgotten: OnceLock::new(),
        }
    }

    /// Whether anything was read from the version.
    pub fn was_read(&self) -> bool {
        self.was_read.load(Relaxed)
    }

    pub(super) fn mark_read(&self) {
        // Most reads are not the first; a load leaves the cache line shared.
        if !self.was_read() {
            self.was_read.store(true, Relaxed);
        }
    }

    /// Whether this is the first refused open: programs that retry get one line in the log.
    pub(crate) fn is_first_refusal(&self) -> bool {
        !self.was_refused.swap(true, Relaxed)
    }

    pub(super) fn streams(&self) -> Option<&Mutex<Streams>> {
        self.streams.as_ref()
    }

    /// Counts a read of one of the layout's `objects`, and says how the object is being read.
    pub(super) fn access(&self, index: usize, objects: usize, pattern: AccessPattern) -> ObjectAccess {
        if let Some(access) = ObjectAccess::of(pattern) {
            return access;
        }
        let counts = self.random_reads.get_or_init(|| (0..objects).map(|_| AtomicU8::new(0)).collect());
        let before = counts[index].load(Relaxed);
        // Two threads may both count the same step; being off by one read is harmless.
        if before < WHOLE_FETCH_READS {
            counts[index].store(before + 1, Relaxed);
        }
        ObjectAccess::Random { is_hot: before >= WHOLE_FETCH_READS }
    }

    /// Counts `bytes` that were read, and says whether about half of the file has been read since
    /// the file was last considered for promotion.
    pub(super) fn note_read(&self, bytes: u64) -> bool {
        is_half_reached(&self.read_bytes, bytes.max(MIN_COUNTED_READ), self.size)
    }

    /// Counts `bytes` that turned hot in the page cache, and says the same of them.
    pub(super) fn note_hot(&self, bytes: u64) -> bool {
        is_half_reached(&self.kernel_hints.hot_bytes, bytes, self.size)
    }

    /// The resident file with the version's bytes, if this process knows of one.
    pub(super) fn resident(&self) -> Option<Arc<ResidentFile>> {
        self.resident.lock().upgrade()
    }

    pub(super) fn note_resident(&self, file: &Arc<ResidentFile>) {
        *self.resident.lock() = Arc::downgrade(file);
    }

    /// What the kernel has reported of the file.
    pub fn kernel_hints(&self) -> &KernelHints {
        &self.kernel_hints
    }

    /// Is cancelled when the version is forgotten: nothing will read what is prefetched for it.
    pub(super) fn forgotten(&self) -> &CancellationToken {
        self.forgotten.get_or_init(CancellationToken::new)
    }
}

impl Drop for FileActivity {
    fn drop(&mut self) {
        if let Some(forgotten) = self.forgotten.get() {
            forgotten.cancel();
        }
    }
}

/// Adds to a counter, and starts it anew once it has reached half of `size`.
fn is_half_reached(counter: &AtomicU64, bytes: u64, size: u64) -> bool {
    let is_reached = counter.fetch_add(bytes, Relaxed).saturating_add(bytes) >= size / 2;
    if is_reached {
        counter.store(0, Relaxed);
    }
    is_reached
}
