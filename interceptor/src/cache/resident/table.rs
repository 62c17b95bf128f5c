//! Which files are resident, which are candidates, and which file may displace which.
//!
//! The rule is that of LIRS (Jiang and Zhang, SIGMETRICS 2002) between whole files: a file may
//! displace another only if the other has not been used for longer than the time between the
//! candidate's own last two uses. Uses are opens and closes, the only ones
//! that the daemon always sees, and requests to make a file resident. "Longer"
//! needs no clock: the other's last use is older than the candidate's last but one. So
//!
//! * files that are read once displace no file, however many there are; they only take free
//!   memory;
//! * of a set that is read in turn and does not fit, the first files stay, instead of each leaving
//!   just before it is needed again;
//! * an open file is not displaced.
//!
//! The table also remembers the uses of files that are not resident, of the latest
//! [`MAX_ABSENT_RECORDS`] of them. It knows nothing of memory; `F` is the handle of a file.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;

use super::ContentId;

/// How many files that are neither resident nor open are remembered, for about 8 MiB of memory.
const MAX_ABSENT_RECORDS: usize = 64 << 10;

/// Why a file should become resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromotionReason {
    /// It is used. Enough only if it was used before.
    Reuse,
    /// It is used, perhaps for the first time. Enough if there is free memory.
    FirstUse,
    /// Its bytes were read again, as the kernel reports or as they had to be fetched again. So it
    /// counts as used before, even if it was opened only once.
    Reread,
}

/// Numbers uses; larger is later.
type UseTime = u64;

#[derive(Debug)]
enum Residency<F> {
    Absent,
    /// The candidate with this ticket may displace files whose last use is older than `before`.
    Pending {
        ticket: u64,
        before: Option<UseTime>,
    },
    Resident {
        file: F,
        bytes: u64,
    },
}

#[derive(Debug)]
struct FileRecord<F> {
    last_use: UseTime,
    previous_use: Option<UseTime>,
    open_handles: u32,
    residency: Residency<F>,
}

/// What a candidate gets.
#[derive(Debug)]
pub(super) struct PromotionGrant<F> {
    /// The files that leave for it. The table has removed them.
    pub(super) displaced: Vec<F>,
    /// Whether the candidate was used before: then it is worth more than blocks used once.
    pub(super) is_reused: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct ResidentTable<F> {
    records: HashMap<ContentId, FileRecord<F>, RandomState>,
    /// Resident files without open handles, by their last use.
    idle: BTreeMap<UseTime, ContentId>,
    /// Absent files without open handles, by their last use.
    absent: BTreeMap<UseTime, ContentId>,
    residents: usize,
    pending: usize,
    max_files: usize,
    now: UseTime,
    tickets: u64,
}

impl<F: Clone> ResidentTable<F> {
    /// An empty table for up to `max_files` resident files.
    pub(super) fn new(max_files: usize) -> Self {
        Self {
            records: HashMap::default(),
            idle: BTreeMap::new(),
            absent: BTreeMap::new(),
            residents: 0,
            pending: 0,
            max_files,
            now: 0,
            tickets: 0,
        }
    }

    /// Number of resident files.
    pub(super) fn residents(&self) -> usize {
        self.residents
    }

    /// Number of candidates.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// The file, if it is resident. Does not count as a use.
    pub(super) fn get(&self, id: &ContentId) -> Option<F> {
        match &self.records.get(id)?.residency {
            Residency::Resident { file, .. } => Some(file.clone()),
            Residency::Absent | Residency::Pending { .. } => None,
        }
    }

    /// Records that a handle is opened, which is a use. Returns the file if it is resident.
    pub(super) fn opened(&mut self, id: ContentId) -> Option<F> {
        self.now += 1;
        let now = self.now;
        self.records.entry(id).or_insert_with(|| FileRecord::new(now));
        self.update(&id, |record| {
            if record.last_use != now {
                record.previous_use = Some(record.last_use);
            }
            record.last_use = now;
            record.open_handles += 1;
        });
        self.get(&id)
    }

    /// Records that a handle is closed: the file was in use until now.
    pub(super) fn closed(&mut self, id: &ContentId) {
        self.now += 1;
        let now = self.now;
        self.update(id, |record| {
            if record.open_handles > 0 {
                record.open_handles -= 1;
                record.last_use = now;
            }
        });
    }

    /// Makes a file a candidate, if `reason` is enough. Returns its ticket. A file has one valid
    /// ticket at a time.
    pub(super) fn request(&mut self, id: ContentId, reason: PromotionReason) -> Option<u64> {
        let known = self.records.get(&id);
        if known.is_some_and(|record| !matches!(record.residency, Residency::Absent)) {
            return None;
        }
        let before = known.and_then(|record| match reason {
            PromotionReason::Reuse | PromotionReason::FirstUse => record.previous_use,
            PromotionReason::Reread => record.previous_use.or(Some(record.last_use)),
        });
        if reason == PromotionReason::Reuse && before.is_none() {
            return None;
        }
        if known.is_none() {
            self.now += 1;
            self.records.insert(id, FileRecord::new(self.now));
        }
        self.tickets += 1;
        let ticket = self.tickets;
        self.update(&id, |record| record.residency = Residency::Pending { ticket, before });
        Some(ticket)
    }

    /// Whether the ticket is valid: a retired file's ticket is not.
    pub(super) fn is_pending(&self, id: &ContentId, ticket: u64) -> bool {
        self.may_displace_before(id, ticket).is_some()
    }

    /// Before which time a file must have been used last so that the candidate may displace it.
    fn may_displace_before(&self, id: &ContentId, ticket: u64) -> Option<Option<UseTime>> {
        match self.records.get(id)?.residency {
            Residency::Pending { ticket: valid, before } if valid == ticket => Some(before),
            _ => None,
        }
    }

    /// Removes files so that the candidate fits among `max_files` and `missing` more bytes are
    /// free. None, and no file is removed, if it may not displace enough of them, or if the ticket
    /// is not valid.
    pub(super) fn make_room(
        &mut self,
        id: &ContentId,
        ticket: u64,
        missing: u64,
    ) -> Option<PromotionGrant<F>> {
        let before = self.may_displace_before(id, ticket)?;
        let mut missing_files = self.residents.saturating_sub(self.max_files.checked_sub(1)?);
        let mut missing = missing;
        let mut victims = Vec::new();
        for (_, other) in self.idle.range(..before.unwrap_or(0)) {
            if missing_files == 0 && missing == 0 {
                break;
            }
            let Residency::Resident { bytes, .. } = self.records[other].residency else {
                unreachable!("idle files are resident")
            };
            missing_files = missing_files.saturating_sub(1);
            missing = missing.saturating_sub(bytes);
            victims.push(*other);
        }
        if missing_files > 0 || missing > 0 {
            return None;
        }
        let displaced = victims.iter().filter_map(|victim| self.remove_file(victim)).collect();
        Some(PromotionGrant { displaced, is_reused: before.is_some() })
    }

    /// Makes the candidate resident, with its file of `bytes` bytes. Returns false if the ticket
    /// is not valid, or if there are `max_files` by now.
    pub(super) fn finish(&mut self, id: &ContentId, ticket: u64, file: F, bytes: u64) -> bool {
        if !self.is_pending(id, ticket) || self.residents >= self.max_files {
            return false;
        }
        self.residents += 1;
        self.update(id, |record| record.residency = Residency::Resident { file, bytes });
        true
    }

    /// Ends the candidacy, if the ticket is valid.
    pub(super) fn cancel(&mut self, id: &ContentId, ticket: u64) {
        if self.is_pending(id, ticket) {
            self.update(id, |record| record.residency = Residency::Absent);
        }
    }

    /// Retires a content that no name stands for any more: it is neither resident nor a candidate,
    /// and its uses do not count. Returns the file if it was resident.
    pub(super) fn retire(&mut self, id: &ContentId) -> Option<F> {
        let file = self.remove_file(id);
        let is_open = self.update(id, |record| {
            record.residency = Residency::Absent;
            record.previous_use = None;
            record.open_handles > 0
        });
        if is_open == Some(false)
            && let Some(record) = self.records.remove(id)
        {
            self.absent.remove(&record.last_use);
        }
        file
    }

    /// Removes idle files of `missing` bytes, the least recently used first.
    pub(super) fn displace(&mut self, mut missing: u64) -> Vec<F> {
        let mut displaced = Vec::new();
        while missing > 0
            && let Some(oldest) = self.idle.first_key_value().map(|(_, id)| *id)
        {
            let Residency::Resident { bytes, .. } = self.records[&oldest].residency else {
                unreachable!("idle files are resident")
            };
            missing = missing.saturating_sub(bytes);
            displaced.extend(self.remove_file(&oldest));
        }
        displaced
    }

    /// How many handles of the file are open.
    pub(super) fn open_handles(&self, id: &ContentId) -> u32 {
        self.records.get(id).map_or(0, |record| record.open_handles)
    }

    /// Makes a resident file absent, and returns it.
    fn remove_file(&mut self, id: &ContentId) -> Option<F> {
        let file = self.get(id)?;
        self.residents -= 1;
        self.update(id, |record| record.residency = Residency::Absent);
        Some(file)
    }

    /// Changes a record, and keeps `idle`, `absent` and `pending` in step.
    fn update<T>(&mut self, id: &ContentId, change: impl FnOnce(&mut FileRecord<F>) -> T) -> Option<T> {
        let record = self.records.get_mut(id)?;
        self.idle.remove(&record.last_use);
        self.absent.remove(&record.last_use);
        self.pending -= usize::from(record.is_pending());
        let result = change(record);
        self.pending += usize::from(record.is_pending());
        if record.open_handles == 0 {
            match record.residency {
                Residency::Resident { .. } => _ = self.idle.insert(record.last_use, *id),
                Residency::Absent => _ = self.absent.insert(record.last_use, *id),
                Residency::Pending { .. } => {}
            }
        }
        while self.absent.len() > MAX_ABSENT_RECORDS
            && let Some((_, oldest)) = self.absent.pop_first()
        {
            self.records.remove(&oldest);
        }
        Some(result)
    }
}

impl<F> FileRecord<F> {
    fn new(now: UseTime) -> Self {
        Self { last_use: now, previous_use: None, open_handles: 0, residency: Residency::Absent }
    }

    fn is_pending(&self) -> bool {
        matches!(self.residency, Residency::Pending { .. })
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
