//! What all transports of a session have in common: which requests are in progress, what the
//! client may read, and where it is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::EngineState;
use super::admission::ConnectionPermit;
use crate::metrics::Level;
use crate::protocol::{NeedleInfo, ReadRequest, SessionLimits, Transport};
use crate::store::{NeedleRecord, ReadMode, StoreError};
use crate::{FileId, Refusal};

/// How many needles a session may read without showing its token again. After that many, all
/// tokens have to be shown again.
const AUTHORIZED_CAPACITY: usize = 1 << 12;

/// One client's session.
pub(super) struct Session {
    engine: Arc<EngineState>,
    transport: Transport,
    /// Needles for which the client has shown a token.
    authorized: Mutex<HashSet<FileId>>,
    /// Requests in progress, and whether they were cancelled.
    requests: Mutex<HashMap<u64, Arc<AtomicBool>>>,
    permit: ConnectionPermit,
    _counted: Level,
}

/// A needle's range that may be read.
pub(super) struct LocatedRange {
    /// The needle's record.
    pub(super) record: NeedleRecord,
    /// The needle as the client is told of it.
    pub(super) needle: NeedleInfo,
    /// Where the range begins in the data.
    pub(super) offset: u32,
}

impl LocatedRange {
    /// Where the range begins in the file.
    pub(super) fn position(&self) -> u64 {
        self.record.data_offset + u64::from(self.offset)
    }
}

/// A request in progress. Dropping it ends the request.
pub(super) struct RequestTicket {
    session: Arc<Session>,
    number: u64,
    cancelled: Arc<AtomicBool>,
}

impl RequestTicket {
    /// The client's number of the request.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether the client no longer waits for the answer.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for RequestTicket {
    fn drop(&mut self) {
        self.session.requests.lock().remove(&self.number);
        self.session.permit.end_request();
    }
}

impl Session {
    pub(super) fn new(engine: Arc<EngineState>, transport: Transport, permit: ConnectionPermit) -> Self {
        let counted = engine.metrics.connection(transport);
        Self {
            engine,
            transport,
            authorized: Mutex::default(),
            requests: Mutex::default(),
            permit,
            _counted: counted,
        }
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    pub(super) fn limits(&self) -> &SessionLimits {
        &self.engine.limits
    }

    pub(super) fn engine(&self) -> &EngineState {
        &self.engine
    }

    /// The connection's share of what all connections have together.
    pub(super) fn permit(&self) -> &ConnectionPermit {
        &self.permit
    }

    /// Begins a request.
    pub(super) fn begin(self: &Arc<Self>, number: u64) -> Result<RequestTicket, Refusal> {
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
        self.permit.begin_request();
        Ok(RequestTicket { session: self.clone(), number, cancelled })
    }

    /// Notes that the client no longer waits for a request.
    pub(super) fn cancel(&self, number: u64) {
        if let Some(cancelled) = self.requests.lock().get(&number) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the client may send this request.
    pub(super) fn check(&self, read: &ReadRequest) -> Result<(), Refusal> {
        if read.length > self.limits().read {
            return Err(Refusal::TooLong);
        }
        self.authorize(read)
    }

    /// Finds the range of a request that was [checked](Self::check).
    pub(super) fn locate(&self, read: &ReadRequest, mode: ReadMode) -> Result<LocatedRange, StoreError> {
        let record = self.engine.store.locate(read.fid, mode)?;
        let length = record.clamp(read.offset, read.length)?;
        // Only here: refused requests and pings do not keep a session alive.
        self.permit.record_read();
        let needle = NeedleInfo {
            header: record.header,
            data_size: record.data_size,
            checksum: record.tail.checksum,
            flags: record.tail.flags,
            deleted: record.deleted,
            length,
        };
        Ok(LocatedRange { record, needle, offset: read.offset })
    }

    /// Checks the token, once for each needle and session.
    fn authorize(&self, read: &ReadRequest) -> Result<(), Refusal> {
        let Some(verifier) = &self.engine.verifier else { return Ok(()) };
        if self.authorized.lock().contains(&read.fid) {
            return Ok(());
        }
        if read.token.is_empty() {
            return Err(Refusal::TokenMissing);
        }
        if let Err(error) = verifier.verify(&read.token, read.fid) {
            tracing::debug!(fid = %read.fid, %error, "refused a token");
            return Err(Refusal::TokenInvalid);
        }
        let mut authorized = self.authorized.lock();
        if authorized.len() >= AUTHORIZED_CAPACITY {
            authorized.clear();
        }
        authorized.insert(read.fid);
        Ok(())
    }
}
