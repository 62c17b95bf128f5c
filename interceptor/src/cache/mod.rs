//! The memory that fetched bytes are kept in: one budget, one region, blocks found by key.
//!
//! A block is an object of the origin, or a piece of one, named by its [`BlockKey`]. An object
//! never changes under its id, so a block never goes stale: blocks are evicted, never invalidated.
//! The life of a block:
//!
//! ```text
//!  Cache::reserve ──► BlockWriter ──publish──► index ──get──► PinnedBlock ──► reply
//!  waits for memory    │ exclusive              │ evicted if the policy ranks it lowest
//!                      └ dropped: memory free   │ and no pin is left
//! ```
//!
//! * [`arena`] is the memory: reserved once, huge pages where the host has them, cut into slots by
//!   size.
//! * [`index`](self::index) finds blocks and makes room: the [`policy`] ranks what to evict, and
//!   the arena says which evictions free a slot of the size that is needed.
//! * [`InflightMap`] makes sure that one block is fetched once, however many readers miss it, and
//!   that all of them get its error if the fetch fails.
//!
//! What was fetched stays while there is room, whatever read it. Scan resistance is the policy's:
//! a block that was read once is the first to leave when memory is short.
//!
//! Files that are hot as a whole leave the arena for [`resident`] files, which the kernel reads
//! without asking the daemon. The arena is smaller by what they take.
//!
//! While the host is short of memory, the cache [gives back](Cache::give_back) what is coldest.
//! Where the kernel is slow to give fresh memory, it is [touched](Cache::prefault) ahead of use.
//!
//! Fetches in flight may hold only a part of the budget (the *fill budget*: an eighth, but 8 MiB
//! to 1 GiB; warm-up has bounds of its own, in [`retained`]), so that a burst of misses waits
//! instead of emptying the cache. Speculative fetches leave half of the fill budget to readers,
//! and are skipped when there is no room. A reader's fetch waits up to [`RESERVE_TIMEOUT`]. After
//! that, or if the block would take more than a quarter of the cache, it is read into heap memory
//! outside the arena and never enters the index (its reader holds it for a while): a full cache
//! makes reads slower, never wrong and never an error.

mod access_buffer;
pub mod arena;
mod block;
mod context;
mod index;
mod inflight;
mod key;
mod pass_tracker;
pub mod policy;
mod prefault;
pub mod replay;
pub mod resident;
mod retained;
mod sync;
mod withheld;
mod writer;

#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rdma_engine::client::RegistrationCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use arena::{Arena, ArenaError, PageBacking, SizeClass, SizeClassUsage, Slot};
use block::BlockMemory;
use index::BlockIndex;
use policy::AdaptiveLirs;
use resident::{ResidentError, ResidentFiles, ResidentUsage};
use sync::AtomicBool;
use withheld::WithheldMemory;

pub use arena::MIN_CAPACITY;
pub use block::{PinnedBlock, PrefetchObserver};
pub use index::EvictionMode;
pub use inflight::{FetchInterrupted, InflightMap, Joined, SharedFetch, Spawn};
pub use key::{BlockKey, BlockPart, ObjectId};
pub use prefault::Prefault;
pub use retained::AdmissionError;
pub use writer::BlockWriter;

/// How long a reader's fetch waits for memory of the arena.
pub const RESERVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes for which one permit of the fill budget stands.
const FILL_PERMIT_BYTES: u64 = 4096;
/// The largest block takes one in this many bytes of the cache. What a larger one would evict is
/// worth more than the block itself.
const MAX_BLOCK_DIVISOR: u64 = 4;
/// One in this many bytes of the cache is never given back to the host.
const GIVEN_BACK_DIVISOR: u64 = 4;

/// How much memory the cache holds and may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheUsage {
    /// The budget.
    pub capacity: u64,
    /// Held by blocks and by fetches in flight, in the arena.
    pub used: u64,
    /// Of that, blocks that are pinned now.
    pub pinned: u64,
    /// Of the budget, what resident files hold.
    pub resident: u64,
    /// Of the budget, what was given back to the host.
    pub withheld: u64,
    /// `used`, `resident`, and heap memory of reads that found the arena full.
    pub allocated: u64,
}

/// The block cache of a mount.
pub struct Cache {
    index: Arc<BlockIndex>,
    residents: OnceLock<Arc<ResidentFiles>>,
    withheld: WithheldMemory,
    /// Whether memory is being touched ahead of its use.
    prefaulting: AtomicBool,
    registrations: Arc<RegistrationCache>,
    /// The fill budget, a permit for each [`FILL_PERMIT_BYTES`].
    fill_budget: Arc<Semaphore>,
    fill_budget_bytes: u64,
    /// How long a reader's fetch waits for memory.
    reserve_timeout: Duration,
}

impl Cache {
    /// A cache of `capacity` bytes, at least [`MIN_CAPACITY`] and at most what the host has.
    pub fn new(capacity: u64) -> Result<Self, ArenaError> {
        let arena = Arena::new(capacity)?;
        let capacity = arena.capacity();
        let registrations = arena.registrations();
        // An eighth keeps even fast links busy for a 1 GiB cache (128 MiB in flight). Small caches
        // need a larger share to fetch a few chunks side by side, huge ones do not need more than
        // 1 GiB.
        let fill_budget_bytes = (capacity / 8).clamp(8 << 20, 1 << 30);
        let index = BlockIndex::new(arena, Box::new(AdaptiveLirs::new(capacity)));
        let fill_budget = Arc::new(Semaphore::new((fill_budget_bytes / FILL_PERMIT_BYTES) as usize));
        let index = Arc::new(index);
        Ok(Self {
            withheld: WithheldMemory::new(index.clone()),
            index,
            residents: OnceLock::new(),
            prefaulting: AtomicBool::new(false),
            registrations,
            fill_budget,
            fill_budget_bytes,
            reserve_timeout: RESERVE_TIMEOUT,
        })
    }

    /// The block under `key`, pinned. Record what was read of it with [`PinnedBlock::mark_read`].
    pub fn get(&self, key: &BlockKey) -> Option<PinnedBlock> {
        self.index.get(key)
    }

    /// Whether there is a block under `key`.
    pub fn contains(&self, key: &BlockKey) -> bool {
        self.index.contains(key)
    }

    /// Memory for `len` bytes that a reader asked for. Waits up to [`RESERVE_TIMEOUT`] for room in
    /// the arena, then takes heap memory. The content is unspecified.
    pub async fn reserve(&self, key: BlockKey, len: usize) -> BlockWriter {
        if let Some(residents) = self.residents.get()
            && self.index.is_missed(&key)
        {
            residents.yield_to_block(len as u64);
        }
        let permits = self.fill_permits(len);
        let (permit, slot) = match self.fill_budget.clone().try_acquire_many_owned(permits) {
            Ok(permit) => (Some(permit), self.admits(len).then(|| self.index.allocate(len)).flatten()),
            Err(_) => (None, None),
        };
        let (permit, slot) = match (permit, slot) {
            (Some(permit), Some(slot)) => (Some(permit), Some(slot)),
            (permit, _) => self.wait_for_memory(permit, len).await,
        };
        let memory = match slot {
            Some(slot) => BlockMemory::Slot(slot),
            None => BlockMemory::heap(len, self.index.context()),
        };
        BlockWriter::new(key, memory, None, self.index.clone(), permit)
    }

    /// Waits for what is missing of a permit of the fill budget and a slot.
    async fn wait_for_memory(
        &self,
        permit: Option<OwnedSemaphorePermit>,
        len: usize,
    ) -> (Option<OwnedSemaphorePermit>, Option<Slot>) {
        let deadline = Instant::now() + self.reserve_timeout;
        let permit = match permit {
            Some(permit) => permit,
            None => {
                let permit = self.fill_budget.clone().acquire_many_owned(self.fill_permits(len));
                match timeout_at(deadline, permit).await {
                    Ok(permit) => permit.expect("the fill budget is never closed"),
                    Err(_) => return (None, None),
                }
            }
        };
        if !self.admits(len) {
            return (Some(permit), None);
        }
        let slot = self.arena().waiters().retry_until(deadline, || self.index.allocate(len)).await;
        (Some(permit), slot)
    }

    /// Memory for `len` bytes that are fetched on speculation, whose fate `observer` is told. None
    /// if there is no memory now, or if it would take what readers may need.
    pub fn try_reserve_prefetch(
        &self,
        key: BlockKey,
        len: usize,
        observer: Arc<dyn PrefetchObserver>,
    ) -> Option<BlockWriter> {
        let permits = self.fill_permits(len);
        let left = (self.fill_budget.available_permits() as u64).checked_sub(u64::from(permits))?;
        if !self.admits(len) || left < self.fill_budget_bytes / FILL_PERMIT_BYTES / 2 {
            return None;
        }
        let permit = self.fill_budget.clone().try_acquire_many_owned(permits).ok()?;
        let memory = BlockMemory::Slot(self.index.allocate(len)?);
        Some(BlockWriter::new(key, memory, Some(observer), self.index.clone(), Some(permit)))
    }

    /// The resident files. The first call makes the file system that holds them.
    ///
    /// # Errors
    /// When this host or this cache has no room for such files. All else works without them.
    pub fn residents(&self) -> Result<&Arc<ResidentFiles>, ResidentError> {
        if self.residents.get().is_none() {
            let residents = ResidentFiles::new(self.index.clone(), self.arena().capacity())?;
            // If another thread was faster, its value stays; this one, which has no files, is
            // dropped.
            let _ = self.residents.set(residents);
        }
        Ok(self.residents.get().expect("it was set just now"))
    }

    /// How many files are resident, and how past promotions ended.
    pub fn resident_usage(&self) -> ResidentUsage {
        self.residents.get().map(|residents| residents.usage()).unwrap_or_default()
    }

    /// Takes a block out of the cache; existing pins keep its bytes. Returns whether it was there.
    pub fn remove(&self, key: &BlockKey) -> bool {
        self.index.remove(key)
    }

    /// Tells the policy that a block is hot, as the kernel's counters show.
    pub fn mark_hot(&self, key: &BlockKey) {
        self.index.mark_hot(key);
    }

    /// How many bytes may be prefetched for one reader: no more than speculation may have in
    /// flight, and no more than half of what the policy keeps for unread blocks, or they would be
    /// evicted before their reader comes.
    pub fn speculation_limit(&self) -> u64 {
        (self.fill_budget_bytes / 2).min(self.index.unread_limit() / 2)
    }

    /// The budget, in bytes.
    pub fn capacity(&self) -> u64 {
        self.arena().capacity()
    }

    /// How many bytes blocks may take: what resident files and the host leave of the budget.
    pub fn block_capacity(&self) -> u64 {
        self.arena().capacity().saturating_sub(self.index.ceded())
    }

    /// Gives about `bytes` of memory back to the host, of what is coldest among resident files and
    /// blocks in proportion to what each hold, and does without them until they are
    /// [taken back](Self::take_back). Returns how much that was: a quarter of the budget stays, and
    /// memory of the pool of huge pages is never given back. Evicting takes milliseconds, and
    /// closing large files more.
    pub fn give_back(&self, bytes: u64) -> u64 {
        let (capacity, withheld) = (self.arena().capacity(), self.withheld.bytes());
        let most = (capacity / GIVEN_BACK_DIVISOR * (GIVEN_BACK_DIVISOR - 1)).saturating_sub(withheld);
        let bytes = bytes.min(most).min(capacity.saturating_sub(MIN_CAPACITY + withheld));
        if let Some(residents) = self.residents.get() {
            let resident = residents.usage().bytes as f64 / (capacity - withheld).max(1) as f64;
            residents.give_back((bytes as f64 * resident) as u64);
        }
        self.withheld.grow(bytes)
    }

    /// Uses up to `bytes` again that were [given back](Self::give_back).
    pub fn take_back(&self, bytes: u64) {
        self.withheld.shrink(bytes);
    }

    /// Bytes that were given back to the host.
    pub fn withheld(&self) -> u64 {
        self.withheld.bytes()
    }

    /// The registrations by which RDMA devices write into the cache's memory.
    pub fn registrations(&self) -> &Arc<RegistrationCache> {
        &self.registrations
    }

    /// What kind of pages the host gave.
    pub fn backing(&self) -> PageBacking {
        self.arena().backing()
    }

    /// How much memory is held now. Visits every block.
    pub fn usage(&self) -> CacheUsage {
        let used = self.arena().used().saturating_sub(self.index.ceded());
        let resident = self.resident_usage().bytes;
        CacheUsage {
            capacity: self.arena().capacity(),
            used,
            pinned: self.index.pinned(),
            resident,
            withheld: self.withheld.bytes(),
            allocated: used + resident + self.index.context().heap(),
        }
    }

    /// How the memory is divided among size classes.
    pub fn classes(&self) -> Vec<SizeClassUsage> {
        self.arena().classes()
    }

    fn arena(&self) -> &Arena {
        self.index.arena()
    }

    /// Whether a block of `len` bytes is small enough to be kept in the arena.
    pub fn admits(&self, len: usize) -> bool {
        SizeClass::of(len).size() <= self.block_capacity() / MAX_BLOCK_DIVISOR
    }

    /// Permits for a fetch of `len` bytes. One larger than the whole fill budget takes all of it.
    fn fill_permits(&self, len: usize) -> u32 {
        let bytes = SizeClass::of(len).size().min(self.fill_budget_bytes);
        u32::try_from(bytes.div_ceil(FILL_PERMIT_BYTES)).unwrap_or(u32::MAX)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("arena", self.arena()).finish_non_exhaustive()
    }
}
