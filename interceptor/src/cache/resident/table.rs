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
//! A file that was used once is worth less than a block of the arena that was used twice. So if a
//! block that was evicted is used again, files that were used once leave for it.
//!
//! The table also remembers the uses of files that are not resident, of the latest
//! [`MAX_ABSENT_RECORDS`] of them. It knows nothing of memory; `F` is the handle of a file.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;

use super::ContentId;

/// How many files that are neither resident nor open are remembered, for about 8 MiB of memory.
const MAX_ABSENT_RECORDS: usize = 64 << 10;

/// How many idle files are looked at for some that were used once.
const MAX_SHOWN: usize = 64;

/// Why a file should become resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromotionReason {
    /// It is used. Enough only if it was used before.
    Reuse,
    /// It is used, perhaps for the first time. Enough if there is free memory.
    FirstUse,
    /// Its bytes were read again, as the kernel reports or as streams show. So it counts as used
    /// before, even if it was opened only once.
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
        /// Whether a promotion fills it. Otherwise blocks come as they are read, until a promotion
        /// takes over.
        is_attended: bool,
        /// The file as far as it is there, and the bytes that it has reserved.
        draft: Option<(F, u64)>,
    },
    Resident {
        file: F,
        bytes: u64,
    },
}

impl<F> Residency<F> {
    /// Bytes that are free if the file leaves, unless it may not leave.
    fn displaceable(&self) -> Option<u64> {
        match self {
            Residency::Resident { bytes, .. } => Some(*bytes),
            Residency::Pending { is_attended: false, draft: Some((_, bytes)), .. } => Some(*bytes),
            Residency::Absent | Residency::Pending { .. } => None,
        }
    }
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
    /// Files in memory, whole or in part, without open handles, by their last use.
    idle: BTreeMap<UseTime, ContentId>,
    /// Absent files without open handles, by their last use.
    absent: BTreeMap<UseTime, ContentId>,
    residents: usize,
    pending: usize,
    /// How many candidates have a draft.
    drafts: usize,
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
            drafts: 0,
            max_files,
            now: 0,
            tickets: 0,
        }
    }

    /// Number of resident files.
    pub(super) fn residents(&self) -> usize {
        self.residents
    }

    /// Number of candidates that a promotion fills.
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

    /// Makes a file a candidate, or takes over one that no promotion fills, if `reason` is enough.
    /// Returns its ticket. A file has one valid ticket at a time.
    pub(super) fn request(&mut self, id: ContentId, reason: PromotionReason) -> Option<u64> {
        let known = self.records.get(&id);
        let draft = match known.map(|record| &record.residency) {
            None | Some(Residency::Absent) => None,
            Some(Residency::Pending { ticket, is_attended: false, draft, .. }) => {
                Some((*ticket, draft.clone()))
            }
            Some(Residency::Pending { .. } | Residency::Resident { .. }) => return None,
        };
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
        let (ticket, draft) = draft.unwrap_or_else(|| {
            self.tickets += 1;
            (self.tickets, None)
        });
        self.update(&id, |record| {
            record.residency = Residency::Pending { ticket, before, is_attended: true, draft };
        });
        Some(ticket)
    }

    /// Makes an absent file a candidate that no promotion fills. Returns its ticket.
    pub(super) fn begin_draft(&mut self, id: ContentId, file: F) -> Option<u64> {
        if self.residents + self.drafts >= self.max_files {
            return None;
        }
        if !self.records.contains_key(&id) {
            self.now += 1;
            self.records.insert(id, FileRecord::new(self.now));
        }
        let ticket = self.tickets + 1;
        let is_begun = self.update(&id, |record| {
            let is_absent = matches!(record.residency, Residency::Absent);
            if is_absent {
                let (before, draft) = (record.previous_use, Some((file, 0)));
                record.residency = Residency::Pending { ticket, before, is_attended: false, draft };
            }
            is_absent
        });
        self.tickets = ticket;
        (is_begun == Some(true)).then_some(ticket)
    }

    /// The draft of a candidate, with its ticket.
    pub(super) fn draft(&self, id: &ContentId) -> Option<(u64, F)> {
        match &self.records.get(id)?.residency {
            Residency::Pending { ticket, draft: Some((file, _)), .. } => Some((*ticket, file.clone())),
            _ => None,
        }
    }

    /// Records the draft of a candidate, and how many bytes it has reserved. Returns whether the
    /// ticket is valid.
    pub(super) fn note_draft(&mut self, id: &ContentId, ticket: u64, file: F, bytes: u64) -> bool {
        let note = |record: &mut FileRecord<F>| match &mut record.residency {
            Residency::Pending { ticket: valid, draft, .. } if *valid == ticket => {
                *draft = Some((file, bytes));
                true
            }
            _ => false,
        };
        self.update(id, note).unwrap_or(false)
    }

    /// Whether the ticket is valid: a retired file's ticket is not.
    pub(super) fn is_pending(&self, id: &ContentId, ticket: u64) -> bool {
        self.may_displace_before(id, ticket).is_some()
    }

    /// Before which time a file must have been used last so that the candidate may displace it.
    fn may_displace_before(&self, id: &ContentId, ticket: u64) -> Option<Option<UseTime>> {
        match self.records.get(id)?.residency {
            Residency::Pending { ticket: valid, before, .. } if valid == ticket => Some(before),
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
        let others = self.residents + self.drafts - usize::from(self.draft(id).is_some());
        let mut missing_files = others.saturating_sub(self.max_files.checked_sub(1)?);
        let mut missing = missing;
        let mut victims = Vec::new();
        for (_, other) in self.idle.range(..before.unwrap_or(0)) {
            if missing_files == 0 && missing == 0 {
                break;
            }
            let bytes = self.records[other].residency.displaceable().unwrap_or(0);
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

    /// Ends a promotion, if the ticket is valid. What it has written stays as a draft.
    pub(super) fn cancel(&mut self, id: &ContentId, ticket: u64) {
        if !self.is_pending(id, ticket) {
            return;
        }
        self.update(id, |record| match &mut record.residency {
            Residency::Pending { is_attended, draft: Some((_, 1..)), .. } => *is_attended = false,
            residency => *residency = Residency::Absent,
        });
    }

    /// Ends the candidacy and drops the draft, if the ticket is valid.
    pub(super) fn discard(&mut self, id: &ContentId, ticket: u64) {
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
            let bytes = self.records[&oldest].residency.displaceable().unwrap_or(0);
            missing = missing.saturating_sub(bytes);
            displaced.extend(self.remove_file(&oldest));
        }
        displaced
    }

    /// Removes idle files of `missing` bytes that were used once, the least recently used first, if
    /// there are such among the oldest.
    pub(super) fn displace_used_once(&mut self, mut missing: u64) -> Vec<F> {
        let mut victims = Vec::new();
        for id in self.idle.values().take(MAX_SHOWN) {
            let record = &self.records[id];
            if missing == 0 {
                break;
            }
            if record.previous_use.is_none() {
                missing = missing.saturating_sub(record.residency.displaceable().unwrap_or(0));
                victims.push(*id);
            }
        }
        victims.iter().filter_map(|id| self.remove_file(id)).collect()
    }

    /// How many handles of the file are open.
    pub(super) fn open_handles(&self, id: &ContentId) -> u32 {
        self.records.get(id).map_or(0, |record| record.open_handles)
    }

    /// Makes a file that is in memory, whole or in part, absent, and returns it.
    fn remove_file(&mut self, id: &ContentId) -> Option<F> {
        let file = self.get(id);
        self.residents -= usize::from(file.is_some());
        let file = file.or_else(|| Some(self.draft(id)?.1))?;
        self.update(id, |record| record.residency = Residency::Absent);
        Some(file)
    }

    /// Changes a record, and keeps `idle`, `absent`, `pending` and `drafts` in step.
    fn update<T>(&mut self, id: &ContentId, change: impl FnOnce(&mut FileRecord<F>) -> T) -> Option<T> {
        let record = self.records.get_mut(id)?;
        self.idle.remove(&record.last_use);
        self.absent.remove(&record.last_use);
        self.pending -= usize::from(record.is_attended());
        self.drafts -= usize::from(record.has_draft());
        let result = change(record);
        self.pending += usize::from(record.is_attended());
        self.drafts += usize::from(record.has_draft());
        if record.open_handles == 0 {
            if record.residency.displaceable().is_some() {
                self.idle.insert(record.last_use, *id);
            } else if matches!(record.residency, Residency::Absent) {
                self.absent.insert(record.last_use, *id);
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

    fn is_attended(&self) -> bool {
        matches!(self.residency, Residency::Pending { is_attended: true, .. })
    }

    fn has_draft(&self) -> bool {
        matches!(self.residency, Residency::Pending { draft: Some(_), .. })
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
