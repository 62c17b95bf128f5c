//! The memory that fetched bytes are kept in: one budget, one region, found by key.
//!
//! A block is a chunk, or a piece of one, named by its [`BlockKey`]. Because a chunk never changes under its file id, a
//! block is right for ever: nothing here is ever invalidated, only evicted. The way of a block:
//!
//! ```text
//!  Cache::fill ──► Filling ──publish──► index ──get──► Readable (a pin) ──► reply
//!  waits for memory  │ exclusive          │ evicted when the policy likes others more and nobody has it pinned
//!                    └ dropped: free again, nobody has seen it
//! ```
//!
//! * [`arena`] is the memory: reserved once, huge pages where there are any, cut into slots by size.
//! * [`index`](self::index) finds blocks and makes room, asking the [`policy`] whom to evict and the arena whose leaving
//!   gives the room that is wanted.
//! * [`Flights`] makes sure that one block is fetched once, however many readers miss it, and that all of them get its
//!   error if that fails.
//!
//! A sequential reader's bytes stay in the mount's page cache, in front of this one. So a block that a stream has read to
//! its end is given up at once ([`Cache::consumed`]) and its memory, still warm in the CPU's caches, takes the next block
//! of the stream: a long scan runs through a few slots and pushes nothing out. Its name is remembered; if it has to be
//! fetched a second time, the page cache did not keep it, and then it stays.
//!
//! Files that are hot as a whole leave the arena for [`resident`] files, which the kernel reads by itself. The arena is
//! smaller by what they take.
//!
//! Of the budget, only a part (the *fill budget*, an eighth) may be in the hands of fetches in flight, so that a burst
//! of misses waits instead of emptying the cache. Speculative fetches leave half of that to readers, and are not made when
//! there is no room. A reader's fetch waits; if everything stays pinned or being filled for [`PATIENCE`], or the block
//! would take more than a quarter of the cache, it is read through memory of its own, which this cache does not know (its
//! reader holds it for a while): a full cache makes reads slower, never wrong and never an error.

pub mod arena;
mod block;
mod consumed;
mod context;
mod fill;
mod flight;
mod index;
mod keep;
mod key;
mod pass;
pub mod policy;
pub mod replay;
pub mod resident;
mod sync;
mod uses;

#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rdma_engine::client::RegistrationCache;
use tokio::sync::{OwnedSemaphorePermit as Share, Semaphore};
use tokio::time::{Instant, timeout_at};

use arena::{Arena, ArenaError, Backing, Class, ClassUsage, Slot};
use block::Memory;
use consumed::Consumed;
use index::Index;
use policy::Dueling;
use resident::{ResidentError, ResidentUsage, Residents};

pub use arena::MIN_CAPACITY;
pub use block::{PrefetchOutcome, Readable};
pub use fill::Filling;
pub use flight::{Flights, Interrupted, Joined, Outcome, Spawn};
pub use keep::{Displace, NoRoom};
pub use key::{BlockKey, BlockPart, ObjectId};

/// How long a reader's fetch waits for memory of the cache.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Fill budget is accounted in units of this many bytes.
const FILL_UNIT: u64 = 4096;
/// A block that takes more than one in this many bytes of the cache does not come in: it would cost more than it brings.
const LARGEST_SHARE: u64 = 4;

/// How much memory the cache holds and may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The budget.
    pub capacity: u64,
    /// Held by blocks and by fetches in flight, in the arena.
    pub used: u64,
    /// Of that, blocks that somebody reads at the moment.
    pub pinned: u64,
    /// Of the budget, what is held as files that the kernel reads by itself.
    pub resident: u64,
    /// `used`, `resident`, and what is held outside of the arena for reads that found it full.
    pub allocated: u64,
}

/// The block cache of a mount.
pub struct Cache {
    index: Arc<Index>,
    consumed: Consumed,
    residents: OnceLock<Arc<Residents>>,
    registrations: Arc<RegistrationCache>,
    fill: Arc<Semaphore>,
    fill_bytes: u64,
    /// How long a reader's fetch waits for memory.
    patience: Duration,
}

impl Cache {
    /// A cache of `capacity` bytes, at least [`MIN_CAPACITY`] and at most what the host has.
    pub fn new(capacity: u64) -> Result<Self, ArenaError> {
        let arena = Arena::new(capacity)?;
        let capacity = arena.capacity();
        let registrations = arena.registrations();
        // An eighth keeps even fast links busy for a 1 GiB cache (128 MiB in flight); small caches need a larger share
        // to fetch a few chunks side by side, huge ones do not need more than 1 GiB.
        let fill_bytes = (capacity / 8).clamp(8 << 20, 1 << 30);
        let index = Index::new(arena, Box::new(Dueling::new(capacity)));
        let fill = Arc::new(Semaphore::new((fill_bytes / FILL_UNIT) as usize));
        Ok(Self {
            index: Arc::new(index),
            consumed: Consumed::default(),
            residents: OnceLock::new(),
            registrations,
            fill,
            fill_bytes,
            patience: PATIENCE,
        })
    }

    /// The block under `key`, pinned. Note what was read of it with [`Readable::mark_read`].
    pub fn get(&self, key: &BlockKey) -> Option<Readable> {
        self.index.get(key)
    }

    /// Whether there is a block under `key`.
    pub fn contains(&self, key: &BlockKey) -> bool {
        self.index.contains(key)
    }

    /// Memory for `len` bytes that a reader asked for, which waits if there is none now, and comes from outside of the
    /// arena if there is none for long. Its content is unspecified.
    pub async fn fill(&self, key: BlockKey, len: usize) -> Filling {
        let units = self.units(len);
        let (share, slot) = match self.fill.clone().try_acquire_many_owned(units) {
            Ok(share) => (Some(share), self.admits(len).then(|| self.index.allocate(len)).flatten()),
            Err(_) => (None, None),
        };
        let (share, slot) = match (share, slot) {
            (Some(share), Some(slot)) => (Some(share), Some(slot)),
            (share, _) => self.wait(share, len).await,
        };
        let memory = match slot {
            Some(slot) => Memory::Slot(slot),
            None => Memory::heap(len, self.index.context()),
        };
        Filling::new(key, memory, None, self.index.clone(), share)
    }

    /// Waits for what is missing of a share of the fill budget and a slot.
    async fn wait(&self, share: Option<Share>, len: usize) -> (Option<Share>, Option<Slot>) {
        let deadline = Instant::now() + self.patience;
        let share = match share {
            Some(share) => share,
            None => {
                let share = self.fill.clone().acquire_many_owned(self.units(len));
                match timeout_at(deadline, share).await {
                    Ok(share) => share.expect("the fill budget is never closed"),
                    Err(_) => return (None, None),
                }
            }
        };
        if !self.admits(len) {
            return (Some(share), None);
        }
        let slot = self.arena().room().wait(deadline, || self.index.allocate(len)).await;
        (Some(share), slot)
    }

    /// Memory for `len` bytes that are fetched on speculation, of which `outcome` will hear. None if there is none now,
    /// or if it would take what readers may need.
    pub fn try_fill(&self, key: BlockKey, len: usize, outcome: Arc<dyn PrefetchOutcome>) -> Option<Filling> {
        let units = self.units(len);
        let left = (self.fill.available_permits() as u64).checked_sub(u64::from(units))?;
        if !self.admits(len) || left < self.fill_bytes / FILL_UNIT / 2 {
            return None;
        }
        let share = self.fill.clone().try_acquire_many_owned(units).ok()?;
        let slot = self.index.allocate(len)?;
        Some(Filling::new(key, Memory::Slot(slot), Some(outcome), self.index.clone(), Some(share)))
    }

    /// A stream has read `bytes` of the block under `key`. Once it has read all of them the block is given up, unless it
    /// was given up before and had to be fetched again: then it stays, and this returns true. It also stays if somebody has asked for
    /// it to be there ([`Cache::keep`]).
    pub fn consumed(&self, key: &BlockKey, block: &Readable, bytes: usize) -> bool {
        if !block.stream(bytes) || block.entry().is_kept() {
            return false;
        }
        let is_new = self.consumed.note(*key);
        if is_new {
            self.index.give_up(key);
        }
        !is_new
    }

    /// Resident files, which there can be from the first call of this on.
    pub fn residents(&self) -> Result<&Arc<Residents>, ResidentError> {
        if self.residents.get().is_none() {
            let residents = Residents::new(self.index.clone(), self.arena().capacity())?;
            // Should another thread have been faster, its residents stay and these, which have no files, go.
            let _ = self.residents.set(residents);
        }
        Ok(self.residents.get().expect("it was set just now"))
    }

    /// How many files are resident, and what became of those that were to be.
    pub fn resident_usage(&self) -> ResidentUsage {
        self.residents.get().map(|residents| residents.usage()).unwrap_or_default()
    }

    /// Takes a block out of the cache; who has it pinned keeps it. Returns whether it was there.
    pub fn remove(&self, key: &BlockKey) -> bool {
        self.index.remove(key)
    }

    /// Says that a block is known to be hot, so that it stays.
    pub fn promote(&self, key: &BlockKey) {
        self.index.promote(key);
    }

    /// How many bytes one reader may be run ahead of: no more than speculation may have in flight, and no more than
    /// half of what the policy keeps for blocks that nobody has read yet, or they would be gone before their time.
    pub fn speculation_limit(&self) -> u64 {
        (self.fill_bytes / 2).min(self.index.unread_limit() / 2)
    }

    /// How many bytes blocks may take: what resident files leave of the budget.
    pub fn room_for_blocks(&self) -> u64 {
        self.arena().capacity().saturating_sub(self.taken())
    }

    /// By which RDMA devices may write into the cache's memory by themselves.
    pub fn registrations(&self) -> &Arc<RegistrationCache> {
        &self.registrations
    }

    /// What kind of pages the host gave.
    pub fn backing(&self) -> Backing {
        self.arena().backing()
    }

    /// How much memory is held now. Looks at every block.
    pub fn usage(&self) -> Usage {
        let used = self.arena().used().saturating_sub(self.taken());
        let resident = self.resident_usage().bytes;
        Usage {
            capacity: self.arena().capacity(),
            used,
            pinned: self.index.pinned(),
            resident,
            allocated: used + resident + self.index.context().heap(),
        }
    }

    /// How the memory is divided among sizes of slots.
    pub fn classes(&self) -> Vec<ClassUsage> {
        self.arena().classes()
    }

    fn arena(&self) -> &Arena {
        self.index.context().arena()
    }

    /// What the arena lacks of the budget because files have it, in bytes.
    fn taken(&self) -> u64 {
        self.residents.get().map_or(0, |residents| residents.taken())
    }

    /// Whether a block of `len` bytes is small enough to be kept in the arena.
    pub fn admits(&self, len: usize) -> bool {
        Class::of(len).size() <= self.room_for_blocks() / LARGEST_SHARE
    }

    /// A fetch larger than the whole fill budget gets it alone.
    fn units(&self, len: usize) -> u32 {
        let bytes = Class::of(len).size().min(self.fill_bytes);
        u32::try_from(bytes.div_ceil(FILL_UNIT)).unwrap_or(u32::MAX)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("arena", self.arena()).finish_non_exhaustive()
    }
}
