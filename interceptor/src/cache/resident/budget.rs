//! The memory that resident files take from the arena.
//!
//! Files and arena share one budget. The arena's addresses stay, so it is made smaller from
//! within: *pieces* of it are allocated as if they were blocks, for which other blocks are evicted
//! by the usual rules (pinned ones never are), and the pages behind the pieces are returned to the
//! host, where a tmpfs file can have them. The arena cedes before a file takes: at any moment the
//! pieces are at least as large as all files together. Pieces are aligned runs of up to 16 MiB, so
//! that the rest of the arena still has room for large chunks, and smaller ones where nothing but
//! these is free.

use std::sync::Arc;

use crate::cache::arena::{MIN_CAPACITY, Slot};
use crate::cache::index::{BlockIndex, EvictionMode};
use crate::cache::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};

/// Bytes of the smallest piece: a huge page.
const MIN_PIECE_SIZE: u64 = 2 << 20;
/// Bytes of the largest piece: the largest chunk that is kept in one block.
const MAX_PIECE_SIZE: u64 = 16 << 20;
/// The arena keeps at least one in this many bytes of the budget.
const MIN_ARENA_DIVISOR: u64 = 4;

/// See the module's documentation.
pub(super) struct ResidentBudget {
    index: Arc<BlockIndex>,
    /// The most that files may hold, in bytes.
    limit: u64,
    /// Bytes of a large piece.
    piece_size: u64,
    /// What files hold, in bytes.
    held: AtomicU64,
    pieces: Mutex<Pieces>,
    /// How many reservations are being made. Meanwhile pieces stay, even if no file needs them.
    reserving: AtomicUsize,
}

/// Parts of the arena that files have.
struct Pieces {
    slots: Vec<Slot>,
    /// Of all of them together.
    bytes: u64,
}

impl ResidentBudget {
    /// The budget of `capacity` bytes that the arena of `index` has now. None if that is too
    /// little to share.
    pub(super) fn new(index: Arc<BlockIndex>, capacity: u64) -> Option<Arc<Self>> {
        let piece_size = (capacity / 16).clamp(MIN_PIECE_SIZE, MAX_PIECE_SIZE);
        let piece_size = 1 << piece_size.ilog2();
        let min_arena = (capacity / MIN_ARENA_DIVISOR).max(MIN_CAPACITY);
        let limit = capacity.checked_sub(min_arena)? / piece_size * piece_size;
        Self::with_pieces(index, limit, piece_size)
    }

    /// The same with a given limit and size of pieces.
    pub(super) fn with_pieces(index: Arc<BlockIndex>, limit: u64, piece_size: u64) -> Option<Arc<Self>> {
        let budget = Self {
            index,
            limit,
            piece_size,
            held: AtomicU64::new(0),
            pieces: Mutex::new(Pieces { slots: Vec::new(), bytes: 0 }),
            reserving: AtomicUsize::new(0),
        };
        (limit > 0).then(|| Arc::new(budget))
    }

    /// The most that files may hold, in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// What files hold, in bytes.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    /// Whether files can have `bytes` more without a block or a file that leaves for them.
    pub(super) fn has_free(&self, bytes: u64) -> bool {
        let arena = self.index.arena();
        bytes <= self.limit.saturating_sub(self.held())
            && bytes <= arena.capacity().saturating_sub(arena.used())
    }

    /// Whether the arena has more than a piece of free memory.
    pub(super) fn has_free_for_blocks(&self) -> bool {
        let arena = self.index.arena();
        arena.capacity().saturating_sub(arena.used()) > self.piece_size
    }

    /// The blocks that share the budget.
    pub(super) fn index(&self) -> &Arc<BlockIndex> {
        &self.index
    }

    /// Bytes of the arena that were ceded to files, in whole pieces.
    pub(super) fn ceded(&self) -> u64 {
        self.pieces.lock().bytes
    }

    /// Drops `displaced`, the files that make room, and reserves `bytes`. None if that exceeds the
    /// limit, or if the arena cannot cede so much in this mode.
    pub(super) fn reserve<T>(
        self: &Arc<Self>,
        bytes: u64,
        mode: EvictionMode,
        displaced: T,
    ) -> Option<Reservation> {
        let _guard = ReservingGuard::new(self);
        drop(displaced);
        let within = |held: u64| held.checked_add(bytes).filter(|&held| held <= self.limit);
        let mut held = self.held();
        while let Err(now) =
            self.held.compare_exchange(held, within(held)?, Ordering::SeqCst, Ordering::SeqCst)
        {
            held = now;
        }
        let reservation = Reservation { budget: self.clone(), bytes };
        while self.ceded() < self.held() {
            self.cede_piece(mode)?;
        }
        Some(reservation)
    }

    fn cede_piece(&self, mode: EvictionMode) -> Option<()> {
        let (large, small) = (self.piece_size as usize, self.piece_size.min(MIN_PIECE_SIZE) as usize);
        let arena = self.index.arena();
        // Blocks leave only if all that is free is in smaller parts.
        let free = arena.allocate(large).or_else(|| arena.allocate(small));
        let evict = || (mode == EvictionMode::Evict).then(|| self.index.allocate(large)).flatten();
        let mut slot = free.or_else(evict)?;
        if !slot.return_pages() {
            return None;
        }
        let bytes = slot.class().size();
        let mut pieces = self.pieces.lock();
        pieces.bytes += bytes;
        pieces.slots.push(slot);
        self.index.cede(bytes);
        Some(())
    }

    /// Gives pieces that no file needs back to the arena.
    fn trim(&self) {
        if self.reserving.load(Ordering::SeqCst) > 0 {
            return;
        }
        let mut surplus = Vec::new();
        let mut pieces = self.pieces.lock();
        let held = self.held();
        while let Some(last) = pieces.slots.last().map(|slot| slot.class().size())
            && pieces.bytes - last >= held
        {
            pieces.bytes -= last;
            surplus.extend(pieces.slots.pop());
            self.index.regain(last);
        }
        drop(pieces);
        drop(surplus);
    }
}

/// Keeps pieces from being trimmed while a reservation is made.
struct ReservingGuard<'a>(&'a ResidentBudget);

impl<'a> ReservingGuard<'a> {
    fn new(budget: &'a ResidentBudget) -> Self {
        budget.reserving.fetch_add(1, Ordering::SeqCst);
        Self(budget)
    }
}

impl Drop for ReservingGuard<'_> {
    fn drop(&mut self) {
        self.0.reserving.fetch_sub(1, Ordering::SeqCst);
        self.0.trim();
    }
}

/// Some bytes of the budget. Released when dropped.
pub(super) struct Reservation {
    budget: Arc<ResidentBudget>,
    bytes: u64,
}

impl Reservation {
    /// How many bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes over the bytes of `other`, of the same budget.
    pub(super) fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::SeqCst);
        self.budget.trim();
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
