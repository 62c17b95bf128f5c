//! Making a file resident.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use super::file::{DraftFile, ResidentFile};
use super::{ContentId, ResidentFiles, size_in_memory};
use crate::cache::index::EvictionMode;
use crate::cache::sync::Ordering;

/// A file that may become resident. There is one candidate per file; when it is dropped, another
/// can be requested.
pub struct PromotionCandidate {
    pub(super) residents: Arc<ResidentFiles>,
    pub(super) id: ContentId,
    pub(super) ticket: u64,
    pub(super) len: u64,
}

impl PromotionCandidate {
    /// Size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is never a candidate")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Takes the memory for the file, for which files and blocks of less worth are displaced. None
    /// if there are too few of these, or if the file was retired meanwhile. May block for
    /// milliseconds.
    pub fn make_room(self) -> Option<Promotion> {
        let ResidentFiles { tmpfs, budget, table, counters, .. } = &*self.residents;
        let bytes = size_in_memory(self.len);
        let free = budget.limit().saturating_sub(budget.held());
        let grant = table.lock().make_room(&self.id, self.ticket, bytes.saturating_sub(free))?;
        counters.displaced.fetch_add(grant.displaced.len() as u64, Ordering::Relaxed);
        let mode = if grant.is_reused { EvictionMode::Evict } else { EvictionMode::FreeOnly };
        let reservation = budget.reserve(bytes, mode, grant.displaced)?;
        match DraftFile::new(tmpfs, self.len, reservation) {
            Ok(draft) => Some(Promotion { draft, candidate: self }),
            Err(error) => {
                self.record_failure(&error);
                None
            }
        }
    }

    fn record_failure(&self, error: &io::Error) {
        self.residents.counters.record_failure(self.len, error);
    }
}

impl Drop for PromotionCandidate {
    fn drop(&mut self) {
        self.residents.table.lock().cancel(&self.id, self.ticket);
    }
}

/// A file that is being made resident. Dropped before it is [complete](Self::complete), it leaves
/// nothing behind.
pub struct Promotion {
    // Dropped before the candidate: its memory is free when the file can be requested again.
    draft: DraftFile,
    candidate: PromotionCandidate,
}

impl Promotion {
    /// Writes `bytes` from `offset` on, and returns them. None if there was no memory, which ends
    /// the promotion.
    pub async fn write<B>(self, bytes: B, offset: u64) -> Option<(Self, B)>
    where
        B: Deref<Target = [u8]> + Send + 'static,
    {
        let Self { draft, candidate } = self;
        let work = move || {
            let written = draft.write_at(&bytes, offset);
            (draft, bytes, written)
        };
        match candidate.residents.background.run(work).await? {
            (draft, bytes, Ok(())) => Some((Self { draft, candidate }, bytes)),
            (_, _, Err(error)) => {
                candidate.record_failure(&error);
                None
            }
        }
    }

    /// Ends the promotion because of `error`.
    pub fn fail(self, error: io::Error) {
        self.candidate.record_failure(&error);
    }

    /// Makes the file resident; what was not written of it is zeros. None if there is no memory
    /// for these, or if the file was retired meanwhile.
    pub async fn complete(self) -> Option<Arc<ResidentFile>> {
        let Self { draft, candidate } = self;
        let ResidentFiles { background, table, counters, .. } = &*candidate.residents;
        let file = match background.run(|| draft.finish()).await? {
            Ok(file) => Arc::new(file),
            Err(error) => {
                candidate.record_failure(&error);
                return None;
            }
        };
        let bytes = size_in_memory(candidate.len);
        let is_resident = table.lock().finish(&candidate.id, candidate.ticket, file.clone(), bytes);
        if !is_resident {
            return None;
        }
        counters.promoted.fetch_add(1, Ordering::Relaxed);
        counters.promoted_bytes.fetch_add(candidate.len, Ordering::Relaxed);
        Some(file)
    }
}
