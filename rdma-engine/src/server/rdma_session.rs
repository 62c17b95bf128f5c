//! RDMA as the rest of the server uses it. A program that is built without verbs has no
//! implementation, and never offers it.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::admission::StagingShare;
use super::session::{LocatedRange, RequestTicket};
use crate::protocol::{Grant, ProtocolError, QueuePairEnd, VerbsOffer};
use crate::store::{ReadMode, StoreError};

/// The RDMA devices of this host.
pub(super) trait RdmaHost: Send + Sync {
    /// Bytes of staging memory that each session takes.
    fn staging_size(&self) -> u64;

    /// The ports to offer to a client that connected to the address `near`, best first.
    fn offers(&self, near: IpAddr) -> Vec<VerbsOffer>;

    /// Connects to the client's end `peer`, which names one of the [`offers`](Self::offers) to a
    /// client that connected to `near`. Waits for the device.
    ///
    /// # Errors
    /// A text for the log; the client is not told the reason.
    fn accept(
        &self,
        near: IpAddr,
        peer: &QueuePairEnd,
        of_peer: StagingShare,
    ) -> Result<AcceptedPair, String>;
}

/// A connected queue pair.
pub(super) struct AcceptedPair {
    pub(super) session: Arc<dyn RdmaSession>,
    pub(super) receiver: Box<dyn RequestReceiver>,
    /// The engine's end.
    pub(super) end: QueuePairEnd,
}

/// The queue pair of one session, with its staging memory.
pub(super) trait RdmaSession: Send + Sync {
    /// Sends a message, if there is room for it. Returns whether it was sent.
    fn send(&self, message: &[u8]) -> bool;

    /// Ends the queue pair: the client reads nothing more, and no request comes from it.
    fn abort(&self);

    /// Reads the range into staging memory, unless it is there already. `None` if there is no
    /// room: then the data goes in line.
    fn stage(
        &self,
        located: &LocatedRange,
        mode: ReadMode,
    ) -> Result<Option<Box<dyn StagedData>>, StoreError>;

    /// Leases staged data to the client, until it is done with the request or the lease is over.
    fn lease(&self, ticket: RequestTicket, staged: Box<dyn StagedData>);

    /// The client is done with the request of this number. If its lease was over before, this does
    /// nothing.
    fn give_back(&self, number: u64);

    /// Ends all leases whose time is over.
    fn expire_leases(&self);
}

/// Staged data. Its memory is not used for anything else as long as this lives.
pub(super) trait StagedData: Send + Sync {
    /// What the client needs to fetch it.
    fn grant(&self) -> Grant;

    /// How many bytes.
    fn length(&self) -> u64;
}

/// What takes each request; an error ends the session.
pub(super) type TakeRequest = Box<dyn FnMut(&[u8]) -> Result<(), ProtocolError> + Send>;

/// Requests that arrive as messages of the queue pair.
pub(super) trait RequestReceiver: Send {
    /// Starts to pass requests to `take`, until it returns an error, the queue pair fails, or the
    /// session [ends](RdmaSession::abort); then calls `ended`.
    ///
    /// # Errors
    /// When no thread can be started.
    fn start(self: Box<Self>, take: TakeRequest, ended: Box<dyn FnOnce() + Send>) -> io::Result<()>;
}
