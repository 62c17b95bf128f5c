//! What an engine sends for a request, and where the bytes are then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::volume_file::VolumeFile;
use crate::Refusal;
use crate::protocol::NeedleInfo;
use crate::transport::{Incoming, RequestPath, StreamError};

/// The answer to a request.
pub(super) enum ReceivedAnswer {
    /// No data.
    Refused(Refusal),
    /// The answer to a ping.
    Pong,
    /// The data follows in the stream.
    Data(NeedleInfo, InlineData),
    /// The data is in a file.
    File(NeedleInfo, FileRange),
    /// The data came with the answer, in a message of the queue pair.
    #[cfg(feature = "verbs")]
    Message(NeedleInfo, bytes::Bytes),
    /// The data can be fetched by RDMA READ.
    #[cfg(feature = "verbs")]
    Grant(NeedleInfo, GrantedRange),
}

/// The right to have one request in progress: until it is answered, and until a grant is given
/// back.
pub(super) struct RequestPermit {
    /// Of the requests that the engine allows.
    pub(super) _request: OwnedSemaphorePermit,
    /// Of those that go as messages, if this one does.
    pub(super) message: Option<OwnedSemaphorePermit>,
}

impl RequestPermit {
    /// How the request was sent; what follows it goes the same way.
    pub(super) fn path(&self) -> RequestPath {
        if self.message.is_some() { RequestPath::Message } else { RequestPath::Stream }
    }
}

/// Where in a file the data is.
pub(super) struct FileRange {
    pub(super) file: Arc<VolumeFile>,
    /// Where the record begins.
    pub(super) record: u64,
    /// Where the requested data begins.
    pub(super) position: u64,
}

/// The reading side of the connection, owned by the request whose data comes next. Dropping it
/// returns it to the demultiplexer.
pub(super) struct InlineData {
    /// With the bytes of the data that are left.
    held: Option<(Incoming, usize)>,
    back: Option<oneshot::Sender<(Incoming, usize)>>,
    heard: Arc<AtomicU64>,
}

impl InlineData {
    /// The `length` bytes that come next. With them comes the receiver of what is left of them
    /// when the request is done. `heard` counts each piece that arrives.
    pub(super) fn new(
        incoming: Incoming,
        length: usize,
        heard: Arc<AtomicU64>,
    ) -> (Self, oneshot::Receiver<(Incoming, usize)>) {
        let (back, returned) = oneshot::channel();
        (Self { held: Some((incoming, length)), back: Some(back), heard }, returned)
    }

    /// Reads into `destination`, which must not be longer than what is left. Returns the bytes
    /// read.
    pub(super) async fn read(&mut self, destination: &mut [u8]) -> Result<usize, StreamError> {
        let (incoming, left) = self.held.as_mut().expect("held until it is dropped");
        let limit = destination.len().min(*left);
        let count = incoming.data(&mut destination[..limit]).await?;
        *left -= count;
        self.heard.fetch_add(1, Ordering::Relaxed);
        Ok(count)
    }
}

impl Drop for InlineData {
    fn drop(&mut self) {
        if let (Some(held), Some(back)) = (self.held.take(), self.back.take()) {
            // Without a receiver the runtime is ending.
            let _ = back.send(held);
        }
    }
}

/// What messages and grants need of their connection.
#[cfg(feature = "verbs")]
pub(super) trait Session: Send + Sync {
    /// Takes one answer that came as a message.
    fn take_message(self: Arc<Self>, message: bytes::Bytes) -> Result<(), crate::protocol::ProtocolError>;

    /// Tells the engine that the grant of this request is not needed any more.
    fn give_back_grant(&self, number: u64, path: RequestPath);

    /// Ends the connection.
    fn close(&self, reason: &str);
}

/// Data that the engine keeps in its staging memory for a request. Dropping this tells the engine
/// that the client is done with it.
#[cfg(feature = "verbs")]
pub(super) struct GrantedRange {
    pub(super) grant: crate::protocol::Grant,
    pub(super) session: Arc<dyn Session>,
    pub(super) number: u64,
    /// Until the grant is given back, the request counts as unanswered.
    pub(super) permit: Option<RequestPermit>,
}

#[cfg(feature = "verbs")]
impl Drop for GrantedRange {
    fn drop(&mut self) {
        let path = self.permit.as_ref().map_or(RequestPath::Stream, RequestPermit::path);
        self.session.give_back_grant(self.number, path);
    }
}
