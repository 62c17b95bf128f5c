//! A file on its way to being resident.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use super::budget::Effort;
use super::file::{Draft, ResidentFile};
use super::{ContentId, Residents, size_in_memory};
use crate::cache::sync::Ordering;

/// A file that wants to be resident; there is one of these per file. Dropped, it may want to again.
pub struct Candidate {
    pub(super) residents: Arc<Residents>,
    pub(super) id: ContentId,
    pub(super) ticket: u64,
    pub(super) len: u64,
}

impl Candidate {
    /// Size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty file is never a candidate")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Takes the memory for it, for which files and blocks leave that are worth less. None if there are too few of these,
    /// or if the file was retired meanwhile. May take milliseconds, and blocks.
    pub fn make_room(self) -> Option<Promotion> {
        let Residents { tmpfs, budget, shelf, counts, .. } = &*self.residents;
        let bytes = size_in_memory(self.len);
        let free = budget.limit().saturating_sub(budget.held());
        let room = shelf.lock().make_room(&self.id, self.ticket, bytes.saturating_sub(free))?;
        counts.displaced.fetch_add(room.victims.len() as u64, Ordering::Relaxed);
        let effort = if room.is_reused { Effort::Evict } else { Effort::Free };
        let reserved = budget.reserve(bytes, effort, room.victims)?;
        match Draft::new(tmpfs, self.len, reserved) {
            Ok(draft) => Some(Promotion { draft, candidate: self }),
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    fn failed(&self, error: &io::Error) {
        self.residents.counts.failed(self.len, error);
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.residents.shelf.lock().abandon(&self.id, self.ticket);
    }
}

/// A file that is being made resident. Dropped before it is [complete](Self::complete), all is as it was before.
pub struct Promotion {
    // Dropped before the candidate, so that its memory is there again when the file may want to be resident again.
    draft: Draft,
    candidate: Candidate,
}

impl Promotion {
    /// Writes `bytes` from `offset` on, and hands them back. None if there was no memory, which ends the promotion.
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
                candidate.failed(&error);
                None
            }
        }
    }

    /// Gives it up for a reason that `error` tells.
    pub fn fail(self, error: io::Error) {
        self.candidate.failed(&error);
    }

    /// Makes the file one that is found; what was not written of it is zeros. None if that takes memory that is not there,
    /// or if the file was retired meanwhile.
    pub async fn complete(self) -> Option<Arc<ResidentFile>> {
        let Self { draft, candidate } = self;
        let Residents { background, shelf, counts, .. } = &*candidate.residents;
        let file = match background.run(|| draft.finish()).await? {
            Ok(file) => Arc::new(file),
            Err(error) => {
                candidate.failed(&error);
                return None;
            }
        };
        let bytes = size_in_memory(candidate.len);
        let is_resident = shelf.lock().finish(&candidate.id, candidate.ticket, file.clone(), bytes);
        if !is_resident {
            return None;
        }
        counts.promoted.fetch_add(1, Ordering::Relaxed);
        counts.promoted_bytes.fetch_add(candidate.len, Ordering::Relaxed);
        Some(file)
    }
}
