//! Files that become resident part by part.
//!
//! A draft takes memory as it is written: for each part the arena cedes what the part needs, and
//! then the block that held the part leaves the arena. So a file moves from the arena to its
//! resident file with one copy, is in memory once, and can be read meanwhile, from wherever each
//! part is.
//!
//! A draft is filled by a [`Promotion`](super::Promotion), or by the readers of the file: a block
//! that a sequential reader has passed is queued to [move](ResidentFiles::move_block). The thread
//! that moves blocks has the lowest priority, so they move while a CPU has nothing else to do.

use std::io;
use std::sync::Arc;

use super::file::ResidentFile;
use super::{ContentId, ResidentFiles, size_in_memory};
use crate::cache::index::EvictionMode;
use crate::cache::key::BlockKey;
use crate::cache::sync::Ordering;
use crate::vital::contained;

/// Bytes of huge pages that a draft may take for parts that are not there. Readers that leave out
/// parts would make gaps as large as what they read, and in the arena there are none.
const MAX_GAPS: u64 = 16 << 20;

/// Why a part is not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum DraftError {
    /// There is no memory left that may be taken.
    #[error("there is no room for the file")]
    NoRoom,
    /// The file was retired or displaced.
    #[error("the file is not wanted any more")]
    Unwanted,
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// A file that is being filled.
#[derive(Clone)]
pub struct Draft {
    residents: Arc<ResidentFiles>,
    id: ContentId,
    ticket: u64,
    file: Arc<ResidentFile>,
}

impl Draft {
    pub(super) fn new(
        residents: Arc<ResidentFiles>,
        id: ContentId,
        ticket: u64,
        file: Arc<ResidentFile>,
    ) -> Self {
        Self { residents, id, ticket, file }
    }

    /// The file as far as it is there.
    pub fn file(&self) -> &Arc<ResidentFile> {
        &self.file
    }

    /// Writes `bytes` from `offset` on.
    pub(super) fn write(&self, bytes: &[u8], offset: u64, mode: EvictionMode) -> Result<(), DraftError> {
        self.note()?;
        let needed = self.file.memory_for(&(offset..offset.saturating_add(bytes.len() as u64)));
        let reservation = self.residents.budget.reserve(needed, mode, ()).ok_or(DraftError::NoRoom)?;
        self.file.write_part(bytes, offset, reservation)?;
        self.note()
    }

    /// Makes the file resident, once. What was not written is zeros.
    pub(super) fn complete(&self, mode: EvictionMode) -> Result<(), DraftError> {
        let ResidentFiles { budget, table, counters, .. } = &*self.residents;
        let bytes = size_in_memory(self.file.len());
        let missing = bytes.saturating_sub(self.file.reserved());
        let rest = budget.reserve(missing, mode, ()).ok_or(DraftError::NoRoom)?;
        self.file.complete(rest)?;
        if !table.lock().finish(&self.id, self.ticket, self.file.clone(), bytes) {
            return Err(DraftError::Unwanted);
        }
        counters.promoted.fetch_add(1, Ordering::Relaxed);
        counters.promoted_bytes.fetch_add(self.file.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Tells the table how much memory the draft has; fails if the table does not know it any
    /// more.
    fn note(&self) -> Result<(), DraftError> {
        let (file, bytes) = (self.file.clone(), self.file.reserved());
        let is_wanted = self.residents.table.lock().note_draft(&self.id, self.ticket, file, bytes);
        is_wanted.then_some(()).ok_or(DraftError::Unwanted)
    }

    /// Drops the draft if it cannot be written.
    pub(super) fn give_up(&self, error: &DraftError) {
        if let DraftError::Write(error) = error {
            self.residents.counters.record_failure(self.file.len(), error);
            self.residents.table.lock().discard(&self.id, self.ticket);
        }
    }
}

impl Draft {
    /// Queues the block under `key`, all of which is the part of the file from `offset` on, to
    /// move from the arena to the draft. The file becomes resident when `content` bytes of it are
    /// there: the rest is holes.
    pub fn move_block(&self, key: BlockKey, offset: u64, content: u64) {
        if !self.file.claim(offset) {
            return;
        }
        self.residents.queued_moves.fetch_add(1, Ordering::Relaxed);
        let draft = self.clone();
        self.residents.background.spawn(move || {
            contained(|| draft.move_now(&key, offset, content));
            draft.residents.queued_moves.fetch_sub(1, Ordering::Relaxed);
        });
    }

    fn move_now(&self, key: &BlockKey, offset: u64, content: u64) {
        if let Err(error) = self.try_move(key, offset, content) {
            // It is tried again when the block is read again, or by a promotion.
            self.file.unclaim(offset);
            self.give_up(&error);
        }
    }

    fn try_move(&self, key: &BlockKey, offset: u64, content: u64) -> Result<(), DraftError> {
        let index = self.residents.budget.index();
        let block = index.get(key).ok_or(DraftError::Unwanted)?;
        let part = offset..offset.saturating_add(block.len() as u64);
        let gaps = (self.file.reserved() + self.file.memory_for(&part))
            .saturating_sub(self.file.written() + block.len() as u64);
        if gaps > MAX_GAPS {
            return Err(DraftError::NoRoom);
        }
        self.write(&block, offset, EvictionMode::FreeOnly)?;
        // Only now: a reader that does not find the block looks for it in the draft.
        index.remove(key);
        drop(block);
        if self.file.written() < content {
            return Ok(());
        }
        self.complete(EvictionMode::FreeOnly)
    }
}

impl ResidentFiles {
    /// The draft of a file, if it has one.
    pub fn find_draft(self: &Arc<Self>, id: &ContentId) -> Option<Draft> {
        let (ticket, file) = self.table.lock().draft(id)?;
        Some(Draft::new(self.clone(), *id, ticket, file))
    }

    /// The draft of a file of `len` bytes. Begins one if the file is neither resident nor a
    /// candidate, and if there is free memory for all of it.
    pub fn begin_draft(self: &Arc<Self>, id: ContentId, len: u64) -> Option<Draft> {
        if let Some(draft) = self.find_draft(&id) {
            return Some(draft);
        }
        if !self.budget.has_free(size_in_memory(len)) {
            return None;
        }
        let none = self.budget.reserve(0, EvictionMode::FreeOnly, ())?;
        let file = ResidentFile::draft(&self.tmpfs, len, none);
        let file = Arc::new(file.inspect_err(|error| self.counters.record_failure(len, error)).ok()?);
        let ticket = self.table.lock().begin_draft(id, file.clone())?;
        Some(Draft::new(self.clone(), id, ticket, file))
    }
}
