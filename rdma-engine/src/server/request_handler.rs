//! Handles a request, whichever way it came: over the stream, or as a message of the queue pair.
//!
//! The thread that took the request looks the needle up, if all that this needs is in memory;
//! otherwise a thread does that may wait. An answer that fits a message is sent as one, at once,
//! to a client that sends messages. All other answers wait for the stream's writer.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::admission::Reservation;
use super::rdma_session::{RdmaSession, StagedData};
use super::session::{LocatedRange, RequestTicket, Session};
use crate::Refusal;
use crate::metrics::Level;
use crate::protocol::frame::HEADER;
use crate::protocol::{
    ClientMessage, EngineMessage, FrameHeader, MAX_INLINE_DATA, ProtocolError, ReadRequest, Transport,
};
use crate::store::{ReadMode, StoreError};
use crate::transport::RequestPath;

/// Data up to this many bytes is read into memory and written together with its frame.
pub(super) const MAX_BUFFERED_DATA: u32 = 32 << 10;

/// An answer on its way to the client.
pub(super) struct OutgoingAnswer {
    pub(super) number: u64,
    pub(super) message: EngineMessage,
    pub(super) data: AnswerData,
    /// Ends the request when it is dropped.
    ticket: Option<RequestTicket>,
    /// How the request came.
    path: RequestPath,
}

/// The data of an answer.
pub(super) enum AnswerData {
    None,
    Buffered(BufferedData),
    /// Sent from the file when the answer is written. `cold` if that may wait for the disk.
    FromFile {
        located: Box<LocatedRange>,
        cold: bool,
    },
    /// In staging memory; granted when the answer is written.
    Staged(Box<dyn StagedData>),
    /// The file itself is handed over.
    File(Box<LocatedRange>),
}

/// Data that waits in memory.
pub(super) struct BufferedData {
    pub(super) bytes: Vec<u8>,
    _counted: Level,
    _reservation: Reservation,
}

impl OutgoingAnswer {
    fn without_data(number: u64, message: EngineMessage, path: RequestPath) -> Self {
        Self { number, message, data: AnswerData::None, ticket: None, path }
    }

    /// Ends the request, just before the answer is sent: when the answer arrives the client may
    /// send its next request, and this one must not count as in progress then. A grant keeps its
    /// request in progress until the client is done with it. If the client has cancelled the
    /// request, the answer is a refusal.
    pub(super) fn settled(self, session: &Session, rdma: Option<&dyn RdmaSession>) -> Self {
        let Self { number, message, data, ticket, path } = self;
        let cancelled = ticket.as_ref().is_some_and(RequestTicket::is_cancelled);
        if cancelled && !matches!(message, EngineMessage::Refused(_)) {
            session.engine().metrics.refused(Refusal::Cancelled);
            return Self::without_data(number, EngineMessage::Refused(Refusal::Cancelled), path);
        }
        let data = match (data, ticket, rdma) {
            (AnswerData::Staged(staged), Some(ticket), Some(rdma)) => {
                session.engine().metrics.read(Transport::Verbs, staged.length());
                rdma.lease(ticket, staged);
                AnswerData::None
            }
            (data, _, _) => data,
        };
        Self { number, message, data, ticket: None, path }
    }
}

/// Handles the requests of one session.
#[derive(Clone)]
pub(super) struct RequestHandler {
    pub(super) session: Arc<Session>,
    pub(super) rdma: Option<Arc<dyn RdmaSession>>,
    /// To the stream's writer. Has room for every request in progress.
    pub(super) answers: mpsc::Sender<OutgoingAnswer>,
    pub(super) runtime: Handle,
}

impl RequestHandler {
    /// Handles one request. Returns the answer if it is ready at once and is not sent as a
    /// message.
    ///
    /// # Errors
    /// If it is no request, or not one of this session's transport: that ends the session.
    pub(super) fn handle(
        &self,
        header: FrameHeader,
        body: &[u8],
        path: RequestPath,
    ) -> Result<Option<OutgoingAnswer>, ProtocolError> {
        let number = header.request;
        let request = ClientMessage::decode(header, body)
            .inspect_err(|_| self.session.engine().metrics.refused(Refusal::Malformed))?;
        let answer = match request {
            ClientMessage::Read(read) => match self.session.begin(number) {
                Ok(ticket) => match self.session.check(&read) {
                    // The token is checked, and would only take memory while the request waits.
                    Ok(()) => self.read(ReadRequest { token: Vec::new(), ..read }, ticket, path),
                    Err(refusal) => Some(self.refused(number, refusal, Some(ticket), path)),
                },
                Err(refusal) => Some(self.refused(number, refusal, None, path)),
            },
            ClientMessage::Cancel => {
                self.session.cancel(number);
                None
            }
            ClientMessage::Ping => Some(OutgoingAnswer::without_data(number, EngineMessage::Pong, path)),
            ClientMessage::Done => match &self.rdma {
                Some(rdma) => {
                    rdma.give_back(number);
                    None
                }
                // Without a queue pair nothing is ever granted.
                None => return Err(ProtocolError::Kind(header.kind as u8)),
            },
        };
        Ok(answer.and_then(|answer| self.send_message(answer)))
    }

    /// Handles one request that came as a message, on a thread that may wait.
    ///
    /// # Errors
    /// As [`handle`](Self::handle).
    pub(super) fn handle_message(&self, message: &[u8]) -> Result<(), ProtocolError> {
        let (header, body) = message.split_first_chunk::<HEADER>().ok_or(ProtocolError::Short)?;
        let header = FrameHeader::parse(header)?;
        if header.length as usize != body.len() {
            return Err(ProtocolError::Value);
        }
        if let Some(answer) = self.handle(header, body, RequestPath::Message)? {
            // If the writer is gone, the session is ending.
            let _ = self.answers.blocking_send(answer);
        }
        Ok(())
    }

    /// Answers a read: now, if that need not wait for the disk, or else from another thread.
    fn read(&self, read: ReadRequest, ticket: RequestTicket, path: RequestPath) -> Option<OutgoingAnswer> {
        let number = ticket.number();
        match self.prepare(&read, path, ReadMode::CachedOnly) {
            Ok((message, data)) => {
                return Some(OutgoingAnswer { number, message, data, ticket: Some(ticket), path });
            }
            Err(StoreError::Refused(refusal)) => {
                return Some(self.refused(number, refusal, Some(ticket), path));
            }
            Err(StoreError::WouldBlock) => {}
        }
        let handler = self.clone();
        self.runtime.spawn_blocking(move || {
            let outcome = match ticket.is_cancelled() {
                true => Err(Refusal::Cancelled.into()),
                false => handler.prepare(&read, path, ReadMode::Blocking),
            };
            let answer = match outcome {
                Ok((message, data)) => OutgoingAnswer { number, message, data, ticket: Some(ticket), path },
                Err(StoreError::Refused(refusal)) => handler.refused(number, refusal, Some(ticket), path),
                // Never happens in this mode; the client would take its next source.
                Err(StoreError::WouldBlock) => handler.refused(number, Refusal::Io, Some(ticket), path),
            };
            if let Some(answer) = handler.send_message(answer) {
                // There is room for every request in progress, unless the writer is gone.
                let _ = handler.answers.try_send(answer);
            }
        });
        None
    }

    /// Finds the needle, and reads the data if it is small.
    fn prepare(
        &self,
        read: &ReadRequest,
        path: RequestPath,
        mode: ReadMode,
    ) -> Result<(EngineMessage, AnswerData), StoreError> {
        let located = self.session.locate(read, mode)?;
        let needle = located.needle;
        if self.session.transport() == Transport::Local {
            // The file's number is set when the answer is written.
            let message = EngineMessage::File {
                needle,
                file: 0,
                record: located.record.offset,
                position: located.position(),
                attached: false,
            };
            return Ok((message, AnswerData::File(Box::new(located))));
        }
        if let Some(rdma) = &self.rdma
            && needle.length > MAX_INLINE_DATA
            && let Some(staged) = rdma.stage(&located, mode)?
        {
            return Ok((EngineMessage::Grant(needle, staged.grant()), AnswerData::Staged(staged)));
        }
        let is_small = needle.length <= MAX_BUFFERED_DATA;
        let reservation = if is_small { self.session.permit().reserve(needle.length) } else { None };
        if let Some(reservation) = reservation {
            let mut bytes = vec![0; needle.length as usize];
            located.record.file.read_exact_at(&mut bytes, located.position(), mode)?;
            let transport = match fits_message(path, needle.length) {
                true => Transport::Verbs,
                false => stream_transport(&self.session),
            };
            let counted = self.session.engine().metrics.staging(transport, needle.length.into());
            let data = BufferedData { bytes, _counted: counted, _reservation: reservation };
            return Ok((EngineMessage::Data(needle), AnswerData::Buffered(data)));
        }
        // Small data for which there is no reservation was not read, so it may have to wait for
        // the disk.
        let cold = mode == ReadMode::Blocking || is_small;
        Ok((EngineMessage::Data(needle), AnswerData::FromFile { located: Box::new(located), cold }))
    }

    /// Sends an answer as a message, if its request came as one and there is room; otherwise
    /// returns it.
    fn send_message(&self, answer: OutgoingAnswer) -> Option<OutgoingAnswer> {
        let fits = match &answer.data {
            AnswerData::None | AnswerData::Staged(_) => fits_message(answer.path, 0),
            AnswerData::Buffered(data) => {
                fits_message(answer.path, u32::try_from(data.bytes.len()).unwrap_or(u32::MAX))
            }
            AnswerData::FromFile { .. } | AnswerData::File(_) => false,
        };
        let Some(rdma) = self.rdma.as_deref().filter(|_| fits) else { return Some(answer) };
        let answer = answer.settled(&self.session, Some(rdma));
        let mut message = BytesMut::new();
        answer.message.encode(answer.number, &mut message);
        if let AnswerData::Buffered(data) = &answer.data {
            message.extend_from_slice(&data.bytes);
        }
        if !rdma.send(&message) {
            return Some(answer);
        }
        if let AnswerData::Buffered(data) = &answer.data {
            self.session.engine().metrics.read(Transport::Verbs, data.bytes.len() as u64);
        }
        None
    }

    fn refused(
        &self,
        number: u64,
        refusal: Refusal,
        ticket: Option<RequestTicket>,
        path: RequestPath,
    ) -> OutgoingAnswer {
        self.session.engine().metrics.refused(refusal);
        let message = EngineMessage::Refused(refusal);
        OutgoingAnswer { number, message, data: AnswerData::None, ticket, path }
    }
}

/// Whether an answer with this many bytes of data is sent as a message.
fn fits_message(path: RequestPath, data: u32) -> bool {
    path == RequestPath::Message && data <= MAX_INLINE_DATA
}

/// The transport that data in the stream is counted as: a session over verbs has a TCP connection
/// for it.
pub(super) fn stream_transport(session: &Session) -> Transport {
    match session.transport() {
        Transport::Verbs => Transport::Tcp,
        other => other,
    }
}
