//! Files that the kernel serves by itself.
//!
//! A hot file whose bytes are all in memory is worth more as a file of its own than as blocks of the arena: the kernel
//! reads it by FUSE passthrough, at the speed of its page cache, and the daemon is not asked. Such a file is a
//! [`ResidentFile`] on a [private tmpfs](tmpfs).
//!
//! ```text
//!  want ──► Candidate ──make_room──► Promotion ──write…──complete──► ResidentFile, found by `opened` and `find`
//!            │ a ticket: one          │ memory, taken                 │ until it is displaced or retired; its memory
//!            │ candidate per file     │ from the arena first          │ is free when the last handle is closed
//!            └ dropped: may try again └ dropped: all of it given back
//! ```
//!
//! * The [`shelf`] knows which files are resident, and decides who may displace whom.
//! * The [`budget`] takes their memory from the arena, which becomes smaller, down to a quarter of all.
//! * The [`background`] thread writes them: touching fresh memory is slow, and must not be on the way of a read.
//!
//! A file is known by its content, not by its name or node: when the kernel forgets a node and later asks again, the file
//! is still there. When the filer tells that a content has been replaced or deleted it is [retired](Residents::retire):
//! nobody is handed it any more, and who has it open keeps it, within the budget, until it is closed.
//!
//! The budget is an upper bound that the operator chose, as for the arena; there is no reaction to memory pressure of
//! others. Where memory or descriptors run out all the same, the promotion fails, which is counted and costs nothing.

mod append;
mod background;
mod budget;
mod file;
mod promotion;
mod shelf;
mod tmpfs;

#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::background::Background;
use self::budget::{Budget, Effort};
use self::file::Addition;
use self::shelf::Shelf;
use self::tmpfs::PrivateTmpfs;
use super::arena::Backing;
use super::index::Index;
use super::sync::{AtomicU64, Mutex, Ordering};

pub use append::Extension;
pub use file::ResidentFile;
pub use promotion::{Candidate, Promotion};
pub use shelf::Worth;
pub use tmpfs::TmpfsError;

/// Descriptors that are left to connections, replies and whoever else needs some.
const DESCRIPTORS_LEFT: u64 = 1024;
/// More files than this are not kept, so that the kernel's own memory for them stays below some GiB.
const MOST_FILES: u64 = 1 << 20;
/// Files take whole pages.
const PAGE: u64 = 4096;

/// Why there are no resident files.
#[derive(Debug, thiserror::Error)]
pub enum ResidentError {
    /// There is nowhere to put them.
    #[error(transparent)]
    Tmpfs(#[from] TmpfsError),
    /// The arena needs everything for itself.
    #[error("a cache of {0} bytes is too small to keep whole files")]
    CacheTooSmall(u64),
    /// The cache's memory is of no use to files.
    #[error(
        "the cache is in huge pages of the pool (vm.nr_hugepages), whose memory cannot be given to files"
    )]
    Hugetlb,
    /// The process may open too few files.
    #[error("a limit of {0} open files (ulimit -n) leaves none for files in memory")]
    Descriptors(u64),
    /// There is no thread to fill them.
    #[error("cannot start the thread that fills them: {0}")]
    Thread(#[source] io::Error),
}

/// Names the bytes of a file, whatever its name: a digest of the list of its chunks, which never change, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId(pub [u8; 32]);

/// How many files are resident, and what became of those that were to be. Sizes are in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResidentUsage {
    /// Files that an open finds now.
    pub files: u64,
    /// Files that wait to become resident, or are being filled.
    pub waiting: u64,
    /// Memory of these, of those that are being filled, and of those that are only kept because they are open.
    pub bytes: u64,
    /// The most that `bytes` can be.
    pub limit: u64,
    /// Files that have become resident so far.
    pub promoted: u64,
    /// Their bytes.
    pub promoted_bytes: u64,
    /// Files that were to be, but could not be fetched, or found no memory after all.
    pub failed: u64,
    /// Files that left for others.
    pub displaced: u64,
    /// Files that left because they were replaced or deleted.
    pub retired: u64,
}

#[derive(Debug, Default)]
struct Counts {
    promoted: AtomicU64,
    promoted_bytes: AtomicU64,
    failed: AtomicU64,
    displaced: AtomicU64,
    retired: AtomicU64,
}

impl Counts {
    fn failed(&self, len: u64, error: &io::Error) {
        tracing::debug!(bytes = len, %error, "a file cannot be kept in memory");
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module's documentation.
pub struct Residents {
    tmpfs: PrivateTmpfs,
    budget: Arc<Budget>,
    shelf: Mutex<Shelf<Arc<ResidentFile>>>,
    background: Background,
    counts: Counts,
}

impl Residents {
    /// None yet. They will share `capacity` bytes with the arena of `index`. Raises the soft limit of open files to the hard
    /// one.
    pub(super) fn new(index: Arc<Index>, capacity: u64) -> Result<Arc<Self>, ResidentError> {
        if index.context().arena().backing() == Backing::Hugetlb {
            return Err(ResidentError::Hugetlb);
        }
        let budget = Budget::new(index, capacity).ok_or(ResidentError::CacheTooSmall(capacity))?;
        let tmpfs = PrivateTmpfs::new(budget.limit())?;
        Self::with_parts(budget, tmpfs, most_files()?)
    }

    fn with_parts(
        budget: Arc<Budget>,
        tmpfs: PrivateTmpfs,
        most_files: usize,
    ) -> Result<Arc<Self>, ResidentError> {
        Ok(Arc::new(Self {
            tmpfs,
            budget,
            shelf: Mutex::new(Shelf::new(most_files)),
            background: Background::start().map_err(ResidentError::Thread)?,
            counts: Counts::default(),
        }))
    }

    /// A handle is opened, which counts as a use. Returns the file if it is resident; it will not be displaced before the
    /// handle is [closed](Self::closed).
    pub fn opened(&self, id: ContentId) -> Option<Arc<ResidentFile>> {
        self.shelf.lock().opened(id)
    }

    /// A handle is closed.
    pub fn closed(&self, id: &ContentId) {
        self.shelf.lock().closed(id);
    }

    /// The file, if it is resident.
    pub fn find(&self, id: &ContentId) -> Option<Arc<ResidentFile>> {
        self.shelf.lock().get(id)
    }

    /// No name stands for the content any more. Who has it open keeps it.
    pub fn retire(&self, id: &ContentId) {
        let file = self.shelf.lock().retire(id);
        if file.is_some() {
            self.counts.retired.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes room for a file to become `len` bytes long. It was opened as `id`, `handles` times by those who know that it does. None
    /// if others have it open, too, or there is too little memory. May take milliseconds, and blocks.
    pub fn extend(
        self: &Arc<Self>,
        file: Arc<ResidentFile>,
        id: &ContentId,
        handles: impl Fn() -> u32,
        len: u64,
    ) -> Option<Extension> {
        let from = file.grown_len();
        if from >= len {
            return Some(Extension { addition: None, residents: self.clone() });
        }
        // Handles come and go; one that is on its way is on the shelf's side only.
        let is_alone = |attempt| {
            std::thread::sleep(Duration::from_millis(attempt));
            // Nobody else is handed it from now on.
            self.retire(id);
            let before = handles();
            self.shelf.lock().opens(id) == before && handles() == before
        };
        // Who has it since it was extended is one of them.
        if from == file.len() && !(0..5).any(is_alone) {
            return None;
        }
        let bytes = size_in_memory(len).checked_sub(size_in_memory(from))?;
        let free = self.budget.limit().saturating_sub(self.budget.held());
        let leaving = self.shelf.lock().displace(bytes.saturating_sub(free));
        self.counts.displaced.fetch_add(leaving.len() as u64, Ordering::Relaxed);
        let reserved = self.budget.reserve(bytes, Effort::Evict, leaving)?;
        let addition = Addition::new(file, len, reserved);
        let addition = addition.inspect_err(|error| self.counts.failed(len, error)).ok()?;
        Some(Extension { addition: Some(addition), residents: self.clone() })
    }

    /// A file of `len` bytes is worth being resident. Returns what it takes to make it so; none if it is resident or wanted
    /// by somebody already, could never be, or is not worth it.
    pub fn want(self: &Arc<Self>, id: ContentId, len: u64, worth: Worth) -> Option<Candidate> {
        if len == 0 || size_in_memory(len) > self.budget.limit() {
            return None;
        }
        let ticket = self.shelf.lock().want(id, worth)?;
        Some(Candidate { residents: self.clone(), id, ticket, len })
    }

    /// How much there is.
    pub fn usage(&self) -> ResidentUsage {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (files, waiting) = {
            let shelf = self.shelf.lock();
            (shelf.residents() as u64, shelf.wanted() as u64)
        };
        ResidentUsage {
            files,
            waiting,
            bytes: self.budget.held(),
            limit: self.budget.limit(),
            promoted: count(&self.counts.promoted),
            promoted_bytes: count(&self.counts.promoted_bytes),
            failed: count(&self.counts.failed),
            displaced: count(&self.counts.displaced),
            retired: count(&self.counts.retired),
        }
    }

    /// What the arena lacks of the budget, in bytes: what files have, rounded up to pieces of the arena.
    pub(super) fn taken(&self) -> u64 {
        self.budget.taken()
    }
}

impl fmt::Debug for Residents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Residents").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

fn size_in_memory(len: u64) -> u64 {
    len.div_ceil(PAGE).saturating_mul(PAGE)
}

/// How many files the limit of open files allows, once it is raised as far as it goes.
fn most_files() -> Result<usize, ResidentError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    // No number means no limit.
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    let limit = limit.unwrap_or(u64::MAX);
    match limit.saturating_sub(DESCRIPTORS_LEFT).min(MOST_FILES) {
        0 => Err(ResidentError::Descriptors(limit)),
        files => Ok(files as usize),
    }
}
