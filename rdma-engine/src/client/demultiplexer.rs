//! One session with an engine, from the side of the answers: reads them and delivers each to the
//! request that waits for it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::answer::{FileRange, InlineData, ReceivedAnswer};
use super::connection::{EngineConnection, PendingRequest};
use super::data_path::DataPath;
use super::volume_file::VolumeFile;
use crate::protocol::{EngineMessage, ProtocolError, SessionLimits};
use crate::transport::{Incoming, StreamError};

/// The most files whose descriptors an engine may have handed over at a time.
const MAX_FILES: usize = 4096;

/// Starts a session whose answers come from `incoming`.
pub(super) fn start(
    incoming: Incoming,
    path: Box<dyn DataPath>,
    limits: SessionLimits,
) -> Arc<EngineConnection> {
    let connection = EngineConnection::new(incoming.socket().clone(), path, limits);
    #[cfg(feature = "verbs")]
    {
        let session: Arc<dyn super::answer::Session> = connection.clone();
        if !connection.path().start(Arc::downgrade(&session)) {
            connection.close("the queue pair takes no messages");
        }
    }
    tokio::spawn(demultiplex(incoming, Arc::downgrade(&connection)));
    connection
}

/// Takes answers until the connection ends: when its last owner drops it, or the engine is gone.
async fn demultiplex(mut incoming: Incoming, connection: Weak<EngineConnection>) {
    let mut files = HashMap::new();
    loop {
        incoming = match take_answer(incoming, &connection, &mut files).await {
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
async fn take_answer(
    mut incoming: Incoming,
    connection: &Weak<EngineConnection>,
    files: &mut HashMap<u32, Arc<VolumeFile>>,
) -> Result<Incoming, StreamError> {
    let (header, body) = incoming.frame().await?;
    let connection = connection.upgrade().ok_or(StreamError::Closed)?;
    connection.heard().fetch_add(1, Ordering::Relaxed);
    let pending = connection.take_pending(header.request);
    match EngineMessage::decode(header, &body)? {
        EngineMessage::Data(needle) => {
            let heard = connection.heard().clone();
            // While its data is on the way, this task must not keep the connection alive.
            drop(connection);
            let Some(pending) = pending else {
                incoming.discard(needle.length as usize).await?;
                return Ok(incoming);
            };
            let (data, returned) = InlineData::new(incoming, needle.length as usize, heard);
            deliver(Some(pending), ReceivedAnswer::Data(needle, data));
            let (mut incoming, left) = returned.await.map_err(|_| StreamError::Closed)?;
            incoming.discard(left).await?;
            return Ok(incoming);
        }
        EngineMessage::File { needle, file, record, position, attached } => {
            if attached {
                let descriptor = incoming.take_file().ok_or(ProtocolError::Value)?;
                if files.len() >= MAX_FILES || files.contains_key(&file) {
                    return Err(ProtocolError::Limit.into());
                }
                files.insert(file, connection.path().take_file(descriptor).await?);
            }
            let file = files.get(&file).cloned().ok_or(ProtocolError::Value)?;
            deliver(pending, ReceivedAnswer::File(needle, FileRange { file, record, position }));
        }
        EngineMessage::Forget { file } => {
            files.remove(&file);
        }
        EngineMessage::Refused(refusal) if header.request == 0 => {
            return Err(std::io::Error::other(format!("the engine ended the session: {refusal}")).into());
        }
        EngineMessage::Refused(refusal) => deliver(pending, ReceivedAnswer::Refused(refusal)),
        EngineMessage::Pong => deliver(pending, ReceivedAnswer::Pong),
        #[cfg(feature = "verbs")]
        EngineMessage::Grant(needle, grant) if messages::may_grant(&connection) => {
            messages::deliver_grant(pending, connection, header.request, needle, grant);
        }
        EngineMessage::Grant(..) => return Err(ProtocolError::Kind(header.kind as u8).into()),
    }
    Ok(incoming)
}

/// Delivers an answer, if its request still waits.
fn deliver(pending: Option<PendingRequest>, answer: ReceivedAnswer) {
    if let Some(PendingRequest { answer: receiver, permit }) = pending {
        // The permit first: a reader that has its answer may send the next request.
        drop(permit);
        let _ = receiver.send(answer);
    }
}

/// Answers over a queue pair.
#[cfg(feature = "verbs")]
mod messages {
    use bytes::Bytes;

    use super::*;
    use crate::client::answer::{GrantedRange, Session};
    use crate::protocol::frame::HEADER;
    use crate::protocol::{FrameHeader, Grant, NeedleInfo, Transport};
    use crate::transport::RequestPath;

    impl Session for EngineConnection {
        fn take_message(self: Arc<Self>, message: Bytes) -> Result<(), ProtocolError> {
            let header = FrameHeader::parse(message.first_chunk::<HEADER>().ok_or(ProtocolError::Short)?)?;
            let rest = message.slice(HEADER..);
            let data = rest.get(header.length as usize..).map(|data| rest.slice_ref(data));
            let data = data.ok_or(ProtocolError::Short)?;
            self.heard().fetch_add(1, Ordering::Relaxed);
            let answer = EngineMessage::decode(header, &rest[..header.length as usize])?;
            let length = if let EngineMessage::Data(needle) = &answer { needle.length as usize } else { 0 };
            if data.len() != length {
                return Err(ProtocolError::Long);
            }
            let pending = self.take_pending(header.request);
            match answer {
                EngineMessage::Data(needle) => deliver(pending, ReceivedAnswer::Message(needle, data)),
                EngineMessage::Refused(refusal) => deliver(pending, ReceivedAnswer::Refused(refusal)),
                EngineMessage::Pong => deliver(pending, ReceivedAnswer::Pong),
                EngineMessage::Grant(needle, grant) => {
                    deliver_grant(pending, self, header.request, needle, grant);
                }
                EngineMessage::File { .. } | EngineMessage::Forget { .. } => {
                    return Err(ProtocolError::Kind(header.kind as u8));
                }
            }
            Ok(())
        }

        fn give_back_grant(&self, number: u64, path: RequestPath) {
            EngineConnection::give_back_grant(self, number, path);
        }

        fn close(&self, reason: &str) {
            EngineConnection::close(self, reason);
        }
    }

    /// Whether the session is one in which grants are allowed.
    pub(super) fn may_grant(connection: &EngineConnection) -> bool {
        connection.path().transport() == Transport::Verbs
    }

    /// Delivers a grant. If the request does not wait any more, the engine is told at once that
    /// the client is done with it.
    pub(super) fn deliver_grant(
        pending: Option<PendingRequest>,
        session: Arc<EngineConnection>,
        number: u64,
        needle: NeedleInfo,
        grant: Grant,
    ) {
        let (receiver, permit) = pending.map(|PendingRequest { answer, permit }| (answer, permit)).unzip();
        let granted = GrantedRange { grant, session, number, permit };
        if let Some(receiver) = receiver {
            let _ = receiver.send(ReceivedAnswer::Grant(needle, granted));
        }
    }
}
