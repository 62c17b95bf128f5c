//! Making a file resident.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use super::draft::{Draft, DraftError};
use super::file::ResidentFile;
use super::{ResidentFiles, size_in_memory};
use crate::cache::index::EvictionMode;
use crate::cache::sync::Ordering;

/// A file that may become resident. There is one candidate per file; when it is dropped, another
/// can be requested.
pub struct PromotionCandidate {
    pub(super) residents: Arc<ResidentFiles>,
    pub(super) id: super::ContentId,
    pub(super) ticket: u64,
    pub(super) len: u64,
}

impl PromotionCandidate {
    /// Size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is never a candidate")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Makes room for the file, for which files of less worth are displaced, unless there is free
    /// memory that only blocks can have: then all are kept, each where it is. None if there is no
    /// room, or if the file was retired meanwhile. May block for milliseconds.
    pub fn make_room(self) -> Option<Promotion> {
        let ResidentFiles { budget, table, counters, .. } = &*self.residents;
        let draft = table.lock().draft(&self.id).map(|(_, file)| file);
        let reserved = draft.as_ref().map_or(0, |file| file.reserved());
        let bytes = size_in_memory(self.len).saturating_sub(reserved);
        let free = budget.limit().saturating_sub(budget.held());
        let missing = bytes.saturating_sub(free);
        if missing > 0 && budget.has_free_for_blocks() {
            return None;
        }
        let grant = table.lock().make_room(&self.id, self.ticket, missing)?;
        counters.displaced.fetch_add(grant.displaced.len() as u64, Ordering::Relaxed);
        let mode = if grant.is_reused { EvictionMode::Evict } else { EvictionMode::FreeOnly };
        let none = budget.reserve(0, mode, grant.displaced)?;
        let file = match draft {
            Some(file) => file,
            None => match ResidentFile::draft(&self.residents.tmpfs, self.len, none) {
                Ok(file) => Arc::new(file),
                Err(error) => {
                    counters.record_failure(self.len, &error);
                    return None;
                }
            },
        };
        let draft = Draft::new(self.residents.clone(), self.id, self.ticket, file);
        Some(Promotion { draft, mode, candidate: self })
    }
}

impl Drop for PromotionCandidate {
    fn drop(&mut self) {
        self.residents.table.lock().cancel(&self.id, self.ticket);
    }
}

/// A file that is being made resident. If it is dropped before it is [complete](Self::complete),
/// what it has written stays as a draft, for another promotion to complete.
pub struct Promotion {
    draft: Draft,
    mode: EvictionMode,
    candidate: PromotionCandidate,
}

impl Promotion {
    /// The file as far as it is there.
    pub fn file(&self) -> &Arc<ResidentFile> {
        self.draft.file()
    }

    /// Writes `bytes` from `offset` on, and returns them. None if there was no memory, which ends
    /// the promotion.
    pub async fn write<B>(self, bytes: B, offset: u64) -> Option<(Self, B)>
    where
        B: Deref<Target = [u8]> + Send + 'static,
    {
        let residents = self.candidate.residents.clone();
        let work = move || {
            let written = self.draft.write(&bytes, offset, self.mode);
            (self, bytes, written)
        };
        let (promotion, bytes, written) = residents.background.run(work).await?;
        promotion.checked(written)?;
        Some((promotion, bytes))
    }

    /// Ends the promotion because of `error`.
    pub fn fail(self, error: io::Error) {
        self.candidate.residents.counters.record_failure(self.candidate.len, &error);
    }

    /// Makes the file resident; what was not written of it is zeros. None if there is no memory
    /// for these, or if the file was retired meanwhile.
    pub async fn complete(self) -> Option<Arc<ResidentFile>> {
        let residents = self.candidate.residents.clone();
        let work = move || {
            let completed = self.draft.complete(self.mode);
            (self, completed)
        };
        let (promotion, completed) = residents.background.run(work).await?;
        promotion.checked(completed)?;
        Some(promotion.draft.file().clone())
    }

    fn checked<T>(&self, outcome: Result<T, DraftError>) -> Option<T> {
        outcome.inspect_err(|error| self.draft.give_up(error)).ok()
    }
}
