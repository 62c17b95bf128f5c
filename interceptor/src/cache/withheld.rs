//! Memory of the arena that is given back to the host while the host is short of it.
//!
//! As for [`resident`](super::resident) files, pieces of the arena are allocated as if they were
//! blocks, for which others are evicted by the usual rules, and the pages behind the pieces are
//! returned.

use std::sync::Arc;

use super::arena::Slot;
use super::index::BlockIndex;
use super::sync::Mutex;

/// Bytes of a piece: a huge page.
const WITHHELD_PIECE_SIZE: u64 = 2 << 20;

/// See the module's documentation.
pub(super) struct WithheldMemory {
    index: Arc<BlockIndex>,
    pieces: Mutex<Vec<Slot>>,
}

impl WithheldMemory {
    /// Nothing of the arena of `index` is withheld.
    pub(super) fn new(index: Arc<BlockIndex>) -> Self {
        Self { index, pieces: Mutex::new(Vec::new()) }
    }

    /// Bytes that blocks cannot have.
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.lock().len() as u64 * WITHHELD_PIECE_SIZE
    }

    /// Withholds up to `bytes` more, as far as blocks can be evicted. Returns how much.
    pub(super) fn grow(&self, bytes: u64) -> u64 {
        let mut grown = 0;
        while grown + WITHHELD_PIECE_SIZE <= bytes
            && let Some(mut piece) = self.index.allocate(WITHHELD_PIECE_SIZE as usize)
            && piece.return_pages()
        {
            self.pieces.lock().push(piece);
            self.index.cede(WITHHELD_PIECE_SIZE);
            grown += WITHHELD_PIECE_SIZE;
        }
        grown
    }

    /// Lets blocks have up to `bytes` again.
    pub(super) fn shrink(&self, bytes: u64) {
        let mut pieces = self.pieces.lock();
        let kept = pieces.len().saturating_sub((bytes / WITHHELD_PIECE_SIZE) as usize);
        let returned = pieces.split_off(kept);
        drop(pieces);
        self.index.regain(returned.len() as u64 * WITHHELD_PIECE_SIZE);
    }
}
