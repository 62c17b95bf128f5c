//! The memory that resident files take from the arena.
//!
//! Files and arena share one budget. The arena's addresses stay, so it is made smaller from within: *pieces* of it are
//! taken as if they were blocks, for which others leave by the usual rules (what is pinned never does), and the pages
//! behind them go back to the host, where a tmpfs file can have them. Taking comes before giving: at any moment the pieces
//! are at least as large as all files together. Pieces are aligned runs of up to 16 MiB, so that what is left of the arena
//! still has room for large chunks.

use std::sync::Arc;

use crate::cache::arena::{MIN_CAPACITY, Slot};
use crate::cache::index::Index;
use crate::cache::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};

/// Bytes of the smallest and of the largest piece: huge pages at least, and no more than the largest chunk that is kept
/// in one block.
const PIECES: (u64, u64) = (2 << 20, 16 << 20);
/// The arena keeps at least one in this many bytes of the budget.
const ARENA_SHARE: u64 = 4;

/// How hard to try for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// Take what is free.
    Free,
    /// Blocks may be evicted.
    Evict,
}

/// See the module's documentation.
pub(super) struct Budget {
    index: Arc<Index>,
    /// Bytes for arena and files together.
    capacity: u64,
    /// The most that files may have, in bytes.
    limit: u64,
    /// Bytes of a piece.
    piece: u64,
    /// What files have, in bytes.
    held: AtomicU64,
    pieces: Mutex<Vec<Slot>>,
    /// How many are about to reserve. Pieces stay meanwhile, even if nobody needs them at the moment.
    reserving: AtomicUsize,
}

impl Budget {
    /// The budget of `capacity` bytes that the arena of `index` has now. None if that is too little to share.
    pub(super) fn new(index: Arc<Index>, capacity: u64) -> Option<Arc<Self>> {
        let piece = (capacity / 16).clamp(PIECES.0, PIECES.1);
        let piece = 1 << piece.ilog2();
        let arena = (capacity / ARENA_SHARE).max(MIN_CAPACITY);
        let limit = capacity.checked_sub(arena)? / piece * piece;
        Self::with_pieces(index, capacity, limit, piece)
    }

    /// The same with a limit and a size of pieces of one's own choice.
    pub(super) fn with_pieces(index: Arc<Index>, capacity: u64, limit: u64, piece: u64) -> Option<Arc<Self>> {
        let budget = Self {
            index,
            capacity,
            limit,
            piece,
            held: AtomicU64::new(0),
            pieces: Mutex::new(Vec::new()),
            reserving: AtomicUsize::new(0),
        };
        (limit > 0).then(|| Arc::new(budget))
    }

    /// The most that files may have, in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// What files have, in bytes.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    /// What the arena lacks of the budget, in bytes.
    pub(super) fn taken(&self) -> u64 {
        self.pieces.lock().len() as u64 * self.piece
    }

    /// Takes `bytes` from the arena, once `leaving`, which has other such bytes, is dropped. None if there are too few, or
    /// what is in the way of them is pinned.
    pub(super) fn reserve<T>(self: &Arc<Self>, bytes: u64, effort: Effort, leaving: T) -> Option<Reserved> {
        let _reserving = Reserving::new(self);
        drop(leaving);
        let within = |held: u64| held.checked_add(bytes).filter(|&held| held <= self.limit);
        let mut held = self.held();
        while let Err(now) =
            self.held.compare_exchange(held, within(held)?, Ordering::SeqCst, Ordering::SeqCst)
        {
            held = now;
        }
        let reserved = Reserved { budget: self.clone(), bytes };
        while self.taken() < self.held() {
            self.take_piece(effort)?;
        }
        Some(reserved)
    }

    fn take_piece(&self, effort: Effort) -> Option<()> {
        let len = self.piece as usize;
        let slot = match effort {
            Effort::Free => self.index.context().arena().allocate(len),
            Effort::Evict => self.index.allocate(len),
        };
        let mut slot = slot?;
        if !slot.give_back_pages() {
            return None;
        }
        let mut pieces = self.pieces.lock();
        pieces.push(slot);
        self.index.set_capacity(self.capacity - pieces.len() as u64 * self.piece);
        Some(())
    }

    /// Gives the arena what no file needs.
    fn trim(&self) {
        if self.reserving.load(Ordering::SeqCst) > 0 {
            return;
        }
        let mut pieces = self.pieces.lock();
        let needed = self.held().div_ceil(self.piece) as usize;
        if pieces.len() <= needed {
            return;
        }
        let surplus = pieces.split_off(needed);
        self.index.set_capacity(self.capacity - pieces.len() as u64 * self.piece);
        drop(pieces);
        drop(surplus);
    }
}

/// Holds pieces back while somebody is about to reserve.
struct Reserving<'a>(&'a Budget);

impl<'a> Reserving<'a> {
    fn new(budget: &'a Budget) -> Self {
        budget.reserving.fetch_add(1, Ordering::SeqCst);
        Self(budget)
    }
}

impl Drop for Reserving<'_> {
    fn drop(&mut self) {
        self.0.reserving.fetch_sub(1, Ordering::SeqCst);
        self.0.trim();
    }
}

/// Some bytes of the budget. Given back when dropped.
pub(super) struct Reserved {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Reserved {
    /// Takes over what `other` has, of the same budget.
    pub(super) fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::SeqCst);
        self.budget.trim();
    }
}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserved").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
