//! What the readers of one version have done so far, and what follows from it for the next read.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::block_plan::{self, BlockRange, ObjectAccess, WHOLE_FETCH_READS};
use super::data::ReadData;
use super::kernel_hints::KernelHints;
use super::layout::Object;
use crate::cache::resident::ResidentFile;
use crate::prefetch::{AccessPattern, Streams};

/// Files up to this size, in bytes, are one or two fetches: readahead would gain nothing.
const MIN_STREAMED_SIZE: u64 = 1 << 20;
/// A read of fewer bytes counts as one of so many, because it costs about as much.
const MIN_COUNTED_READ: u64 = 64 << 10;

/// A stream that has read as many bytes, or a quarter of its file, will probably read the rest.
const MIN_DRAFT_READ: u64 = 8 << 20;

/// What follows from the reads of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamProgress {
    /// Nothing.
    Unremarkable,
    /// The file will probably be read to its end.
    Underway,
    /// Streams are half through the file for another time than the first.
    Again,
}

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
    /// Bytes that streams have read, less those of passes that are over.
    streamed_bytes: AtomicU64,
    /// The resident file with the version's bytes, as far as this process knows, whole or in part.
    resident: Mutex<Weak<ResidentFile>>,
    /// How many bytes of the file blocks hold, once a draft takes the blocks that streams have
    /// passed.
    draft_content: OnceLock<u64>,
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
            streamed_bytes: AtomicU64::new(0),
            resident: Mutex::default(),
            draft_content: OnceLock::new(),
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

    /// Counts `bytes` that a stream has read.
    pub(super) fn note_streamed(&self, bytes: u64) -> StreamProgress {
        let before = self.streamed_bytes.fetch_add(bytes, Relaxed);
        let read = before.saturating_add(bytes);
        if read >= self.size.saturating_add(self.size / 2) {
            self.streamed_bytes.store(self.size / 2, Relaxed);
            return StreamProgress::Again;
        }
        let underway = MIN_DRAFT_READ.min(self.size / 4);
        if before < underway && read >= underway {
            StreamProgress::Underway
        } else {
            StreamProgress::Unremarkable
        }
    }

    /// Counts `bytes` that turned hot in the page cache, and says the same of them.
    pub(super) fn note_hot(&self, bytes: u64) -> bool {
        is_half_reached(&self.kernel_hints.hot_bytes, bytes, self.size)
    }

    /// How many bytes a draft of the file has when it is complete, if streams fill one.
    pub(super) fn draft_content(&self) -> &OnceLock<u64> {
        &self.draft_content
    }

    /// The resident file with the version's bytes, whole or in part, if this process knows of one.
    pub(super) fn resident(&self) -> Option<Arc<ResidentFile>> {
        self.resident.lock().upgrade()
    }

    /// Whether the resident file is known and has the bytes of `part`.
    pub(super) fn holds(&self, object: &Object, part: &BlockRange) -> bool {
        self.resident().is_some_and(|file| file.holds(&block_plan::range_in_file(object, part)))
    }

    /// The bytes of `part`, if the resident file is known and has them.
    pub(super) fn resident_part(&self, object: &Object, part: &BlockRange) -> Option<ReadData> {
        let resident = self.resident()?;
        ReadData::resident(&resident, block_plan::range_in_file(object, part).start, part.range.len())
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
