//! One session with an engine, from the side of the answers: takes them as they come and brings each to who asked.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::connection::{Connection, Place, Waiter, Way};
use super::volume_file::VolumeFile;
use crate::Refusal;
use crate::protocol::{EngineMessage, Grant, NeedleInfo, ProtocolError, Transport};
use crate::transport::{Incoming, StreamError};

/// Most files whose descriptors an engine may have handed over at a time.
const MOST_FILES: usize = 4096;

/// What came for a request.
pub(super) enum Arrival {
    /// No data.
    Refused(Refusal),
    /// Nothing but a sign of life.
    Pong,
    /// Data in line.
    Data(NeedleInfo, Body),
    /// Data in the message itself.
    #[cfg_attr(not(feature = "verbs"), expect(dead_code, reason = "messages come over a queue pair"))]
    Message(NeedleInfo, Bytes),
    /// Data in a file.
    File(NeedleInfo, Region),
    /// Data to be fetched by RDMA.
    Grant(NeedleInfo, Granted),
}

/// What the engine keeps in memory for a request, until it hears that we are done with it: that is when this is dropped.
pub(super) struct Granted {
    pub(super) grant: Grant,
    connection: Arc<Connection>,
    number: u64,
    /// Until then the request counts as unanswered.
    place: Option<Place>,
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.connection.done(self.number, self.place.as_ref().map_or(Way::Stream, Place::way));
    }
}

/// Where in a file the data is.
pub(super) struct Region {
    pub(super) file: Arc<VolumeFile>,
    /// Where the record begins.
    pub(super) record: u64,
    /// Where the data begins that was asked for.
    pub(super) position: u64,
}

/// The reading side of the connection, in the hands of the request whose data comes next. Goes back when it is dropped.
pub(super) struct Body {
    /// With how many bytes of the data are left.
    held: Option<(Incoming, usize)>,
    back: Option<oneshot::Sender<(Incoming, usize)>>,
}

impl Body {
    /// Reads data into `destination`, which must not be longer than what is left of it.
    pub(super) async fn read(&mut self, destination: &mut [u8]) -> Result<usize, StreamError> {
        let (incoming, left) = self.held.as_mut().expect("held until it is dropped");
        let limit = destination.len().min(*left);
        let count = incoming.data(&mut destination[..limit]).await?;
        *left -= count;
        Ok(count)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let (Some(held), Some(back)) = (self.held.take(), self.back.take()) {
            // If nobody waits for it, the runtime is ending.
            let _ = back.send(held);
        }
    }
}

/// Takes answers until the connection ends.
pub(super) async fn demultiplex(mut incoming: Incoming, connection: Weak<Connection>) {
    let mut files = HashMap::new();
    loop {
        incoming = match step(incoming, &connection, &mut files).await {
            Ok(incoming) => incoming,
            Err(error) => {
                if let Some(connection) = connection.upgrade() {
                    connection.close(&error.to_string());
                }
                return;
            }
        };
    }
}

/// Takes one answer.
async fn step(
    mut incoming: Incoming,
    connection: &Weak<Connection>,
    files: &mut HashMap<u32, Arc<VolumeFile>>,
) -> Result<Incoming, StreamError> {
    let (header, body) = incoming.frame().await?;
    let connection = connection.upgrade().ok_or(StreamError::Closed)?;
    connection.heard.fetch_add(1, Ordering::Relaxed);
    let waiter = connection.waiter(header.request);
    match EngineMessage::decode(header, &body)? {
        EngineMessage::Data(needle) => {
            // The connection must not live on because its data is slow to come.
            drop(connection);
            return hand_over(incoming, needle, waiter).await;
        }
        EngineMessage::File { needle, file, record, position, attached } => {
            if attached {
                let descriptor = incoming.take_file().ok_or(ProtocolError::Value)?;
                if files.len() >= MOST_FILES || files.contains_key(&file) {
                    return Err(ProtocolError::Limit.into());
                }
                files.insert(file, connection.take_file(descriptor).await?);
            }
            let file = files.get(&file).cloned().ok_or(ProtocolError::Value)?;
            deliver(waiter, Arrival::File(needle, Region { file, record, position }));
        }
        EngineMessage::Forget { file } => {
            files.remove(&file);
        }
        EngineMessage::Refused(refusal) if header.request == 0 => {
            return Err(std::io::Error::other(format!("the engine ended the session: {refusal}")).into());
        }
        EngineMessage::Refused(refusal) => deliver(waiter, Arrival::Refused(refusal)),
        EngineMessage::Pong => deliver(waiter, Arrival::Pong),
        EngineMessage::Grant(needle, grant) if connection.transport() == Transport::Verbs => {
            grant_to(waiter, connection, header.request, needle, grant);
        }
        EngineMessage::Grant(..) => return Err(ProtocolError::Kind(header.kind as u8).into()),
    }
    Ok(incoming)
}

/// Takes one answer that came as a message of the queue pair.
#[cfg(feature = "verbs")]
pub(super) fn take_message(connection: &Arc<Connection>, message: Bytes) -> Result<(), ProtocolError> {
    use crate::protocol::FrameHeader;
    use crate::protocol::frame::HEADER;

    let header = FrameHeader::parse(message.first_chunk::<HEADER>().ok_or(ProtocolError::Short)?)?;
    let rest = message.slice(HEADER..);
    let data = rest.get(header.length as usize..).map(|data| rest.slice_ref(data));
    let data = data.ok_or(ProtocolError::Short)?;
    connection.heard.fetch_add(1, Ordering::Relaxed);
    let answer = EngineMessage::decode(header, &rest[..header.length as usize])?;
    let length = if let EngineMessage::Data(needle) = &answer { needle.length as usize } else { 0 };
    if data.len() != length {
        return Err(ProtocolError::Long);
    }
    let waiter = connection.waiter(header.request);
    match answer {
        EngineMessage::Data(needle) => deliver(waiter, Arrival::Message(needle, data)),
        EngineMessage::Refused(refusal) => deliver(waiter, Arrival::Refused(refusal)),
        EngineMessage::Pong => deliver(waiter, Arrival::Pong),
        EngineMessage::Grant(needle, grant) => {
            grant_to(waiter, connection.clone(), header.request, needle, grant);
        }
        EngineMessage::File { .. } | EngineMessage::Forget { .. } => {
            return Err(ProtocolError::Kind(header.kind as u8));
        }
    }
    Ok(())
}

/// Brings what was granted to who waits for it. If nobody does any more, the engine hears that.
fn grant_to(
    waiter: Option<Waiter>,
    connection: Arc<Connection>,
    number: u64,
    needle: NeedleInfo,
    grant: Grant,
) {
    let (waiting, place) = waiter.map(|Waiter { arrival, place }| (arrival, place)).unzip();
    let granted = Granted { grant, connection, number, place };
    if let Some(waiting) = waiting {
        let _ = waiting.send(Arrival::Grant(needle, granted));
    }
}

/// Brings an answer to who waits for it, if anybody does.
fn deliver(waiter: Option<Waiter>, arrival: Arrival) {
    if let Some(Waiter { arrival: waiting, place }) = waiter {
        // First the place: who has got its answer may ask again.
        drop(place);
        let _ = waiting.send(arrival);
    }
}

/// Lets the request read its data, and reads what it leaves.
async fn hand_over(
    mut incoming: Incoming,
    needle: NeedleInfo,
    waiter: Option<Waiter>,
) -> Result<Incoming, StreamError> {
    let mut left = needle.length as usize;
    if waiter.is_some() {
        let (back, returned) = oneshot::channel();
        let body = Body { held: Some((incoming, left)), back: Some(back) };
        deliver(waiter, Arrival::Data(needle, body));
        (incoming, left) = returned.await.map_err(|_| StreamError::Closed)?;
    }
    incoming.discard(left).await?;
    Ok(incoming)
}
