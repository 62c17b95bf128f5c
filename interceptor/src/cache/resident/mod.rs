//! Whole files in memory that the kernel reads without asking the daemon.
//!
//! A hot file whose bytes are all in memory is worth more as a file of its own than as blocks of
//! the arena: the kernel reads it by FUSE passthrough, at the speed of its page cache. Such a file
//! is a [`ResidentFile`] on a [private tmpfs](tmpfs).
//!
//! ```text
//!  request_promotion
//!   └─► PromotionCandidate   a ticket: one per file; if dropped, the file may be requested again
//!        └ make_room         other files leave, if it takes that
//!           └─► Promotion    memory, taken from the arena first, part by part
//!                └ write … complete
//!                   └─► ResidentFile   found by `opened` and `find` until it is displaced or
//!                                      retired; its memory is free when the last handle closes
//!  begin_draft
//!   └─► Draft                the same, filled with the blocks that sequential readers have passed
//!        └ move_block …      a promotion may take over; the last part completes the file
//! ```
//!
//! * The [`table`] knows which files are resident, and decides which file may displace which.
//! * The [`budget`] takes the files' memory from the arena, which shrinks to a quarter of all at
//!   most.
//! * The [`background`] thread writes the files: touching fresh memory is slow and must not delay
//!   a read.
//!
//! A file is found by its content, not by its name or node: when the kernel forgets a node and
//! looks it up again, the file is still there. When the filer reports that a content was replaced
//! or deleted, it is [retired](ResidentFiles::retire): no open finds it any more, and handles that
//! have it keep it, within the budget, until they are closed.
//!
//! The budget is an upper bound that the operator chose, as for the arena; memory pressure of
//! other programs does not shrink it. If memory or descriptors run out all the same, the promotion
//! fails, which is counted and has no other effect.

mod append;
mod background;
mod budget;
mod draft;
mod file;
mod promotion;
mod table;
mod tmpfs;

#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::background::BackgroundThread;
pub(super) use self::background::lower_priority;
use self::budget::ResidentBudget;
use self::file::FileAppend;
use self::table::ResidentTable;
use self::tmpfs::PrivateTmpfs;
use super::arena::PageBacking;
use super::index::{BlockIndex, EvictionMode};
use super::sync::{AtomicU64, Mutex, Ordering};

pub use append::ResidentAppend;
pub use draft::Draft;
pub use file::ResidentFile;
pub use promotion::{Promotion, PromotionCandidate};
pub use table::PromotionReason;
pub use tmpfs::TmpfsError;

/// Descriptors that are left for connections, replies and other purposes.
pub const RESERVED_DESCRIPTORS: u64 = 1024;
/// The most files, so that the kernel's own memory for them stays below some GiB.
const MAX_FILES: u64 = 1 << 20;
/// Bytes of a page. Files take whole pages.
const PAGE_SIZE: u64 = 4096;

/// Why there are no resident files.
#[derive(Debug, thiserror::Error)]
pub enum ResidentError {
    /// There is no file system for them.
    #[error(transparent)]
    Tmpfs(#[from] TmpfsError),
    /// The arena needs all of the memory.
    #[error("a cache of {0} bytes is too small to keep whole files")]
    CacheTooSmall(u64),
    /// The cache's memory comes from the huge page pool, and cannot be ceded to files.
    #[error(
        "the cache is in huge pages of the pool (vm.nr_hugepages), whose memory cannot be given to files"
    )]
    Hugetlb,
    /// The process may open too few files.
    #[error("a limit of {0} open files (ulimit -n) leaves none for files in memory")]
    Descriptors(u64),
    /// The thread that fills them cannot be started.
    #[error("cannot start the thread that fills them: {0}")]
    Thread(#[source] io::Error),
}

/// Identifies the bytes of a file, whatever its name: a digest of its size and of the list of its
/// chunks, which never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId(pub [u8; 32]);

/// How many files are resident, and how past promotions ended. Sizes are in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResidentUsage {
    /// Files that an open finds now.
    pub files: u64,
    /// Files that wait to become resident, or are being filled; those to which blocks move count
    /// as one.
    pub waiting: u64,
    /// Memory of resident files, of files that are being filled, and of files that left but are
    /// still open.
    pub bytes: u64,
    /// The most that `bytes` can become.
    pub limit: u64,
    /// Files that have become resident so far.
    pub promoted: u64,
    /// Their bytes.
    pub promoted_bytes: u64,
    /// Files that could not be fetched, or found no memory after all.
    pub failed: u64,
    /// Files that left so that others could become resident.
    pub displaced: u64,
    /// Files that left because they were replaced or deleted.
    pub retired: u64,
}

#[derive(Debug, Default)]
struct ResidentCounters {
    promoted: AtomicU64,
    promoted_bytes: AtomicU64,
    failed: AtomicU64,
    displaced: AtomicU64,
    retired: AtomicU64,
}

impl ResidentCounters {
    fn record_failure(&self, len: u64, error: &io::Error) {
        tracing::debug!(bytes = len, %error, "a file cannot be kept in memory");
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module's documentation.
pub struct ResidentFiles {
    tmpfs: PrivateTmpfs,
    budget: Arc<ResidentBudget>,
    table: Mutex<ResidentTable<Arc<ResidentFile>>>,
    background: BackgroundThread,
    /// Blocks that wait to move to a draft.
    queued_moves: AtomicU64,
    counters: ResidentCounters,
}

impl ResidentFiles {
    /// No files yet. They will share `capacity` bytes with the arena of `index`. Raises the soft
    /// limit of open files to the hard limit.
    pub(super) fn new(index: Arc<BlockIndex>, capacity: u64) -> Result<Arc<Self>, ResidentError> {
        if index.arena().backing() == PageBacking::Hugetlb {
            return Err(ResidentError::Hugetlb);
        }
        let budget = ResidentBudget::new(index, capacity).ok_or(ResidentError::CacheTooSmall(capacity))?;
        let tmpfs = PrivateTmpfs::new(budget.limit())?;
        Self::with_parts(budget, tmpfs, max_files()?)
    }

    fn with_parts(
        budget: Arc<ResidentBudget>,
        tmpfs: PrivateTmpfs,
        max_files: usize,
    ) -> Result<Arc<Self>, ResidentError> {
        Ok(Arc::new(Self {
            tmpfs,
            budget,
            table: Mutex::new(ResidentTable::new(max_files)),
            background: BackgroundThread::start().map_err(ResidentError::Thread)?,
            queued_moves: AtomicU64::new(0),
            counters: ResidentCounters::default(),
        }))
    }

    /// Records that a handle is opened, which counts as a use. Returns the file if it is resident;
    /// it is not displaced before the handle is [closed](Self::closed).
    pub fn opened(&self, id: ContentId) -> Option<Arc<ResidentFile>> {
        self.table.lock().opened(id)
    }

    /// Records that a handle is closed.
    pub fn closed(&self, id: &ContentId) {
        self.table.lock().closed(id);
    }

    /// The file, if it is resident.
    pub fn find(&self, id: &ContentId) -> Option<Arc<ResidentFile>> {
        self.table.lock().get(id)
    }

    /// Retires a content that no name stands for any more: no open finds it. Open handles keep it.
    /// Returns how many bytes of it were in memory.
    pub fn retire(&self, id: &ContentId) -> u64 {
        let Some(file) = self.table.lock().retire(id) else { return 0 };
        if !file.is_complete() {
            return file.written();
        }
        self.counters.retired.fetch_add(1, Ordering::Relaxed);
        file.len()
    }

    /// Makes room for a file to grow to `len` bytes. The file was opened as `id`; `handles`
    /// returns how many of its handles know that it grows. None if other handles have it open,
    /// too, or if there is too little memory. Blocks, perhaps for milliseconds.
    pub fn extend(
        self: &Arc<Self>,
        file: Arc<ResidentFile>,
        id: &ContentId,
        handles: impl Fn() -> u32,
        len: u64,
    ) -> Option<ResidentAppend> {
        let from = file.grown_len();
        if from >= len {
            return Some(ResidentAppend { append: None, residents: self.clone() });
        }
        // Handles come and go. One that is being opened or closed may be in the table but not
        // among `handles`.
        let is_alone = |attempt| {
            std::thread::sleep(Duration::from_millis(attempt));
            // No other open finds the file from now on.
            self.retire(id);
            let before = handles();
            self.table.lock().open_handles(id) == before && handles() == before
        };
        // If the file has grown before, it was retired then: all handles since know that it grows.
        if from == file.len() && !(0..5).any(is_alone) {
            return None;
        }
        let bytes = size_in_memory(len).checked_sub(size_in_memory(from))?;
        let free = self.budget.limit().saturating_sub(self.budget.held());
        let displaced = self.table.lock().displace(bytes.saturating_sub(free));
        self.counters.displaced.fetch_add(displaced.len() as u64, Ordering::Relaxed);
        let reservation = self.budget.reserve(bytes, EvictionMode::Evict, displaced)?;
        let append = FileAppend::new(file, len, reservation);
        let append = append.inspect_err(|error| self.counters.record_failure(len, error)).ok()?;
        Some(ResidentAppend { append: Some(append), residents: self.clone() })
    }

    /// Requests that a file of `len` bytes become resident. None if it is resident or is being
    /// promoted already, can never be resident, or if `reason` is not enough.
    pub fn request_promotion(
        self: &Arc<Self>,
        id: ContentId,
        len: u64,
        reason: PromotionReason,
    ) -> Option<PromotionCandidate> {
        if len == 0 || size_in_memory(len) > self.budget.limit() {
            return None;
        }
        let ticket = self.table.lock().request(id, reason)?;
        Some(PromotionCandidate { residents: self.clone(), id, ticket, len })
    }

    /// Displaces files that were used once, and that together have `len` bytes, in favour of a
    /// block that was evicted and is used again. Does not wait for that.
    pub(super) fn yield_to_block(self: &Arc<Self>, len: u64) {
        let displaced = self.table.lock().displace_used_once(len);
        if !displaced.is_empty() {
            self.counters.displaced.fetch_add(displaced.len() as u64, Ordering::Relaxed);
            // Closing them takes a while.
            self.background.spawn(move || drop(displaced));
        }
    }

    /// Displaces files of about `bytes` bytes, those used longest ago first, and waits until their
    /// memory is free.
    pub(super) fn give_back(&self, bytes: u64) {
        let displaced = self.table.lock().displace(bytes);
        self.counters.displaced.fetch_add(displaced.len() as u64, Ordering::Relaxed);
        drop(displaced);
    }

    /// How many files are resident, and how past promotions ended.
    pub fn usage(&self) -> ResidentUsage {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (files, waiting) = {
            let table = self.table.lock();
            (table.residents() as u64, table.pending() as u64)
        };
        ResidentUsage {
            files,
            waiting: waiting + u64::from(count(&self.queued_moves) > 0),
            bytes: self.budget.held(),
            limit: self.budget.limit(),
            promoted: count(&self.counters.promoted),
            promoted_bytes: count(&self.counters.promoted_bytes),
            failed: count(&self.counters.failed),
            displaced: count(&self.counters.displaced),
            retired: count(&self.counters.retired),
        }
    }
}

impl fmt::Debug for ResidentFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResidentFiles").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

/// Bytes of memory that a file of `len` bytes takes.
fn size_in_memory(len: u64) -> u64 {
    len.div_ceil(PAGE_SIZE).saturating_mul(PAGE_SIZE)
}

/// How many files the limit of open files allows, after raising the limit as far as it goes.
fn max_files() -> Result<usize, ResidentError> {
    let limit = daemon::descriptors::raise_limit();
    match limit.saturating_sub(RESERVED_DESCRIPTORS).min(MAX_FILES) {
        0 => Err(ResidentError::Descriptors(limit)),
        files => Ok(files as usize),
    }
}
