//! Which files are resident, which want to be, and who leaves for whom.
//!
//! The rule is that of LIRS (Jiang and Zhang, SIGMETRICS 2002) between whole files: a file may displace another only if
//! that one has not been used for longer than the time between the candidate's own last two uses. Uses are opens and
//! closes, the daemon sees no others, and "longer" needs no clock: the other's last use is older than the candidate's last
//! but one. So
//!
//! * files that are read once displace nobody, however many there are; they may only take room that is free;
//! * of a set that is read in turn and does not fit, what came first stays, instead of everything leaving just before it
//!   is needed again;
//! * a file that is open is not displaced.
//!
//! Of files that are not resident the last uses are remembered too, those of the latest [`REMEMBERED`] of them. Knows
//! nothing of memory; the files themselves are whatever `F` is.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;

use super::ContentId;

/// How many files that are neither resident nor open are remembered, for about 8 MiB of memory.
const REMEMBERED: usize = 64 << 10;

/// Why a file should become resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// It is used, and if it is not for the first time, that is reason enough.
    IfReused,
    /// Even the first use is reason enough, if there is room.
    IfRoom,
    /// Bytes of it were read again, which the kernel told of, or which had to be fetched again: it has been used before, even if it
    /// was opened once.
    ReadAgain,
}

/// Numbers uses; larger is later.
type Moment = u64;

#[derive(Debug)]
enum State<F> {
    Absent,
    /// Somebody has this ticket to make it resident, and may displace files last used before that moment.
    Wanted {
        ticket: u64,
        before: Option<Moment>,
    },
    Resident {
        file: F,
        bytes: u64,
    },
}

#[derive(Debug)]
struct Record<F> {
    last_use: Moment,
    use_before: Option<Moment>,
    opens: u32,
    state: State<F>,
}

/// What is to leave for a file, and what that file is allowed.
#[derive(Debug)]
pub(super) struct Room<F> {
    /// The files that are not on the shelf any more.
    pub(super) victims: Vec<F>,
    /// Whether it has been used before, and so is worth more than what was used once.
    pub(super) is_reused: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shelf<F> {
    records: HashMap<ContentId, Record<F>, RandomState>,
    /// Resident files that nobody has open, by their last use.
    idle: BTreeMap<Moment, ContentId>,
    /// Other files that nobody has open or wants, by their last use.
    absent: BTreeMap<Moment, ContentId>,
    residents: usize,
    wanted: usize,
    most: usize,
    now: Moment,
    tickets: u64,
}

impl<F: Clone> Shelf<F> {
    /// An empty shelf for up to `most` files.
    pub(super) fn new(most: usize) -> Self {
        Self {
            records: HashMap::default(),
            idle: BTreeMap::new(),
            absent: BTreeMap::new(),
            residents: 0,
            wanted: 0,
            most,
            now: 0,
            tickets: 0,
        }
    }

    /// Number of resident files.
    pub(super) fn residents(&self) -> usize {
        self.residents
    }

    /// Number of files that somebody has a ticket for.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// The resident file, without using it.
    pub(super) fn get(&self, id: &ContentId) -> Option<F> {
        match &self.records.get(id)?.state {
            State::Resident { file, .. } => Some(file.clone()),
            State::Absent | State::Wanted { .. } => None,
        }
    }

    /// A handle is opened, which is a use. Returns the file if it is resident.
    pub(super) fn opened(&mut self, id: ContentId) -> Option<F> {
        self.now += 1;
        let now = self.now;
        self.records.entry(id).or_insert_with(|| Record::new(now));
        self.change(&id, |record| {
            if record.last_use != now {
                record.use_before = Some(record.last_use);
            }
            record.last_use = now;
            record.opens += 1;
        });
        self.get(&id)
    }

    /// A handle is closed: until now the file was in use.
    pub(super) fn closed(&mut self, id: &ContentId) {
        self.now += 1;
        let now = self.now;
        self.change(id, |record| {
            if record.opens > 0 {
                record.opens -= 1;
                record.last_use = now;
            }
        });
    }

    /// Somebody would like a file to become resident. Returns a ticket if it may, of which there is one at a time.
    pub(super) fn want(&mut self, id: ContentId, worth: Worth) -> Option<u64> {
        let known = self.records.get(&id);
        if known.is_some_and(|record| !matches!(record.state, State::Absent)) {
            return None;
        }
        let before = known.and_then(|record| match worth {
            Worth::IfReused | Worth::IfRoom => record.use_before,
            Worth::ReadAgain => record.use_before.or(Some(record.last_use)),
        });
        if worth == Worth::IfReused && before.is_none() {
            return None;
        }
        if known.is_none() {
            self.now += 1;
            self.records.insert(id, Record::new(self.now));
        }
        self.tickets += 1;
        let ticket = self.tickets;
        self.change(&id, |record| record.state = State::Wanted { ticket, before });
        Some(ticket)
    }

    /// Whether the ticket is still good: it is not once the file was retired.
    pub(super) fn is_wanted(&self, id: &ContentId, ticket: u64) -> bool {
        self.wanted_before(id, ticket).is_some()
    }

    fn wanted_before(&self, id: &ContentId, ticket: u64) -> Option<Option<Moment>> {
        match self.records.get(id)?.state {
            State::Wanted { ticket: good, before } if good == ticket => Some(before),
            _ => None,
        }
    }

    /// Has files leave so that the wanted one has its place among `most` and `missing` bytes more. None if it must not
    /// displace enough of them, or the ticket is not good; nobody leaves then.
    pub(super) fn make_room(&mut self, id: &ContentId, ticket: u64, missing: u64) -> Option<Room<F>> {
        let before = self.wanted_before(id, ticket)?;
        let mut places = self.residents.saturating_sub(self.most.checked_sub(1)?);
        let mut missing = missing;
        let mut leaving = Vec::new();
        for (_, other) in self.idle.range(..before.unwrap_or(0)) {
            if places == 0 && missing == 0 {
                break;
            }
            let State::Resident { bytes, .. } = self.records[other].state else {
                unreachable!("what is idle is resident")
            };
            places = places.saturating_sub(1);
            missing = missing.saturating_sub(bytes);
            leaving.push(*other);
        }
        if places > 0 || missing > 0 {
            return None;
        }
        let victims = leaving.iter().filter_map(|other| self.take(other)).collect();
        Some(Room { victims, is_reused: before.is_some() })
    }

    /// The wanted file is there, of `bytes` bytes. Returns whether it is resident now; it is not if the ticket is not good
    /// or others have taken the last place.
    pub(super) fn finish(&mut self, id: &ContentId, ticket: u64, file: F, bytes: u64) -> bool {
        if !self.is_wanted(id, ticket) || self.residents >= self.most {
            return false;
        }
        self.residents += 1;
        self.change(id, |record| record.state = State::Resident { file, bytes });
        true
    }

    /// The wanted file will not be there.
    pub(super) fn abandon(&mut self, id: &ContentId, ticket: u64) {
        if self.is_wanted(id, ticket) {
            self.change(id, |record| record.state = State::Absent);
        }
    }

    /// No name stands for the content any more: it is not resident, not wanted, and its uses do not count. Returns the
    /// file if it was resident.
    pub(super) fn retire(&mut self, id: &ContentId) -> Option<F> {
        let file = self.take(id);
        let is_open = self.change(id, |record| {
            record.state = State::Absent;
            record.use_before = None;
            record.opens > 0
        });
        if is_open == Some(false)
            && let Some(record) = self.records.remove(id)
        {
            self.absent.remove(&record.last_use);
        }
        file
    }

    /// Takes files of `missing` bytes off the shelf that nobody has open, those first that were used last longest ago.
    pub(super) fn displace(&mut self, mut missing: u64) -> Vec<F> {
        let mut leaving = Vec::new();
        while missing > 0
            && let Some(oldest) = self.idle.first_key_value().map(|(_, id)| *id)
        {
            let State::Resident { bytes, .. } = self.records[&oldest].state else {
                unreachable!("what is idle is resident")
            };
            missing = missing.saturating_sub(bytes);
            leaving.extend(self.take(&oldest));
        }
        leaving
    }

    /// How many handles of it are open.
    pub(super) fn opens(&self, id: &ContentId) -> u32 {
        self.records.get(id).map_or(0, |record| record.opens)
    }

    /// Takes a file off the shelf.
    fn take(&mut self, id: &ContentId) -> Option<F> {
        let file = self.get(id)?;
        self.residents -= 1;
        self.change(id, |record| record.state = State::Absent);
        Some(file)
    }

    /// Changes a record and puts it in its place among the others.
    fn change<T>(&mut self, id: &ContentId, change: impl FnOnce(&mut Record<F>) -> T) -> Option<T> {
        let record = self.records.get_mut(id)?;
        self.idle.remove(&record.last_use);
        self.absent.remove(&record.last_use);
        self.wanted -= usize::from(record.is_wanted());
        let result = change(record);
        self.wanted += usize::from(record.is_wanted());
        if record.opens == 0 {
            match record.state {
                State::Resident { .. } => _ = self.idle.insert(record.last_use, *id),
                State::Absent => _ = self.absent.insert(record.last_use, *id),
                State::Wanted { .. } => {}
            }
        }
        while self.absent.len() > REMEMBERED
            && let Some((_, oldest)) = self.absent.pop_first()
        {
            self.records.remove(&oldest);
        }
        Some(result)
    }
}

impl<F> Record<F> {
    fn new(now: Moment) -> Self {
        Self { last_use: now, use_before: None, opens: 0, state: State::Absent }
    }

    fn is_wanted(&self) -> bool {
        matches!(self.state, State::Wanted { .. })
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
