//! What holds for a session whatever its transport: which requests are in progress, what the client may read, and where it is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Shared;
use super::admission::Seat;
use crate::metrics::Level;
use crate::protocol::{NeedleInfo, ReadRequest, SessionLimits, Transport};
use crate::store::{NeedleRecord, ReadMode, StoreError};
use crate::{FileId, Refusal};

/// How many needles a session may read without showing its token again. When there are more, all have to be shown again.
const REMEMBERED: usize = 1 << 12;

/// One client's session.
pub(crate) struct Session {
    shared: Arc<Shared>,
    transport: Transport,
    /// Needles that the client has shown a token for.
    allowed: Mutex<HashSet<FileId>>,
    /// Requests in progress, and whether they were cancelled.
    requests: Mutex<HashMap<u64, Arc<AtomicBool>>>,
    seat: Seat,
    _counted: Level,
}

/// A needle's range that may be read.
pub(crate) struct Located {
    /// Where it is.
    pub(crate) record: NeedleRecord,
    /// What the client is told.
    pub(crate) needle: NeedleInfo,
    /// Where the range begins in the data.
    pub(crate) offset: u32,
}

impl Located {
    /// Where the range begins in the file.
    pub(crate) fn position(&self) -> u64 {
        self.record.data_offset + u64::from(self.offset)
    }
}

/// A request in progress; dropped when it has been answered.
pub(crate) struct Ticket {
    session: Arc<Session>,
    number: u64,
    cancelled: Arc<AtomicBool>,
}

impl Ticket {
    /// The client's number of the request.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Whether the client does not wait for the answer any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.requests.lock().remove(&self.number);
        self.session.seat.end();
    }
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, transport: Transport, seat: Seat) -> Self {
        let counted = shared.metrics.connection(transport);
        Self {
            shared,
            transport,
            allowed: Mutex::default(),
            requests: Mutex::default(),
            seat,
            _counted: counted,
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    pub(crate) fn limits(&self) -> &SessionLimits {
        &self.shared.limits
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Its place, and what it takes of what all sessions share.
    pub(super) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Begins a request.
    pub(crate) fn begin(self: &Arc<Self>, number: u64) -> Result<Ticket, Refusal> {
        let mut requests = self.requests.lock();
        if requests.contains_key(&number) {
            return Err(Refusal::Malformed);
        }
        if requests.len() >= self.limits().in_flight as usize {
            return Err(Refusal::Busy);
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        requests.insert(number, cancelled.clone());
        drop(requests);
        self.seat.begin();
        Ok(Ticket { session: self.clone(), number, cancelled })
    }

    /// Notes that the client does not wait for a request any more.
    pub(crate) fn cancel(&self, number: u64) {
        if let Some(cancelled) = self.requests.lock().get(&number) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the client may ask for this.
    pub(crate) fn check(&self, read: &ReadRequest) -> Result<(), Refusal> {
        if read.length > self.limits().read {
            return Err(Refusal::TooLong);
        }
        self.authorize(read)
    }

    /// Finds what is asked for and was [checked](Self::check).
    pub(crate) fn locate(&self, read: &ReadRequest, mode: ReadMode) -> Result<Located, StoreError> {
        let record = self.shared.store.locate(read.fid, mode)?;
        let length = record.clamp(read.offset, read.length)?;
        // What is refused, and pings, do not keep a session.
        self.seat.touch();
        let needle = NeedleInfo {
            header: record.header,
            data_size: record.data_size,
            checksum: record.tail.checksum,
            flags: record.tail.flags,
            deleted: record.deleted,
            length,
        };
        Ok(Located { record, needle, offset: read.offset })
    }

    /// A token is checked once for each needle and session.
    fn authorize(&self, read: &ReadRequest) -> Result<(), Refusal> {
        let Some(verifier) = &self.shared.verifier else { return Ok(()) };
        if self.allowed.lock().contains(&read.fid) {
            return Ok(());
        }
        if read.token.is_empty() {
            return Err(Refusal::TokenMissing);
        }
        if let Err(error) = verifier.verify(&read.token, read.fid) {
            tracing::debug!(fid = %read.fid, %error, "refused a token");
            return Err(Refusal::TokenInvalid);
        }
        let mut allowed = self.allowed.lock();
        if allowed.len() >= REMEMBERED {
            allowed.clear();
        }
        allowed.insert(read.fid);
        Ok(())
    }
}
