//! What becomes of a request, whichever way it came: over the stream, or, with RDMA, as a message of the queue pair.
//!
//! It is looked up by the thread that took it if all it needs is in memory, else on a thread that may wait. An answer that fits a message goes back as one,
//! at once, to a client that asks by messages; all others wait for the stream's writer.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::admission::Reservation;
use super::rdma::{Rdma, Staged};
use super::session::{Located, Session, Ticket};
use crate::Refusal;
use crate::metrics::Level;
use crate::protocol::frame::HEADER;
use crate::protocol::{
    ClientMessage, EngineMessage, FrameHeader, MAX_INLINE_DATA, ProtocolError, ReadRequest, Transport,
};
use crate::store::{ReadMode, StoreError};

/// Data up to this many bytes is read into memory and written together with its frame.
pub(super) const SMALL: u32 = 32 << 10;

/// How a request came, which is how its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Over the connection of the bootstrap.
    Stream,
    /// Over the queue pair, and what does not fit a message over the stream.
    Message,
}

/// An answer on its way to the client.
pub(super) struct Outgoing {
    pub(super) number: u64,
    pub(super) answer: EngineMessage,
    pub(super) body: Body,
    /// Ends the request when the answer is written.
    ticket: Option<Ticket>,
    way: Way,
}

pub(super) enum Body {
    None,
    Bytes(InMemory),
    /// From the file, when it is its turn. `cold` if the ends of the record were not in the page cache.
    Range {
        located: Box<Located>,
        cold: bool,
    },
    /// In staging memory, to be granted when it is its turn.
    Staged(Staged),
    /// The file itself.
    File(Box<Located>),
}

/// Data that waits in memory.
pub(super) struct InMemory {
    pub(super) data: Vec<u8>,
    _counted: Level,
    _room: Reservation,
}

impl Outgoing {
    fn plain(number: u64, answer: EngineMessage, way: Way) -> Self {
        Self { number, answer, body: Body::None, ticket: None, way }
    }

    /// Ends the request, just before the answer goes out: when it arrives the client may send the next, and this one must not be in progress then. Only what
    /// was granted goes on, until the client is done with it. If nobody waits any more, nothing is granted or brought.
    pub(super) fn settled(self, session: &Session, rdma: Option<&Arc<Rdma>>) -> Self {
        let Self { number, answer, body, ticket, way } = self;
        let cancelled = ticket.as_ref().is_some_and(Ticket::is_cancelled);
        if cancelled && !matches!(answer, EngineMessage::Refused(_)) {
            session.shared().metrics.refused(Refusal::Cancelled);
            return Self::plain(number, EngineMessage::Refused(Refusal::Cancelled), way);
        }
        let body = match (body, ticket, rdma) {
            (Body::Staged(staged), Some(ticket), Some(rdma)) => {
                session.shared().metrics.read(Transport::Verbs, staged.length());
                rdma.lend(ticket, staged);
                Body::None
            }
            (body, _, _) => body,
        };
        Self { number, answer, body, ticket: None, way }
    }
}

/// Where the requests of a session are taken.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) session: Arc<Session>,
    pub(super) rdma: Option<Arc<Rdma>>,
    /// To the stream's writer. Has room for every request in progress.
    pub(super) answers: mpsc::Sender<Outgoing>,
    pub(super) runtime: Handle,
}

impl Desk {
    /// Takes one request. An answer that is there at once and does not go by message is returned.
    ///
    /// # Errors
    /// When it is none, or may not come here: that ends the session.
    pub(super) fn take(
        &self,
        header: FrameHeader,
        body: &[u8],
        way: Way,
    ) -> Result<Option<Outgoing>, ProtocolError> {
        let number = header.request;
        let request = ClientMessage::decode(header, body)
            .inspect_err(|_| self.session.shared().metrics.refused(Refusal::Malformed))?;
        let outgoing = match request {
            ClientMessage::Read(read) => match self.session.begin(number) {
                Ok(ticket) => match self.session.check(&read) {
                    // While the request waits, its token only takes memory.
                    Ok(()) => self.begin(ReadRequest { token: Vec::new(), ..read }, ticket, way),
                    Err(refusal) => Some(self.refused(number, refusal, Some(ticket), way)),
                },
                Err(refusal) => Some(self.refused(number, refusal, None, way)),
            },
            ClientMessage::Cancel => {
                self.session.cancel(number);
                None
            }
            ClientMessage::Ping => Some(Outgoing::plain(number, EngineMessage::Pong, way)),
            ClientMessage::Done => match &self.rdma {
                Some(rdma) => {
                    rdma.done(number);
                    None
                }
                // Nothing is ever granted without.
                None => return Err(ProtocolError::Kind(header.kind as u8)),
            },
        };
        Ok(outgoing.and_then(|outgoing| self.send(outgoing)))
    }

    /// Takes one request that came as a message, on a thread that may wait.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(super) fn take_message(&self, message: &[u8]) -> Result<(), ProtocolError> {
        let (header, body) = message.split_first_chunk::<HEADER>().ok_or(ProtocolError::Short)?;
        let header = FrameHeader::parse(header)?;
        if header.length as usize != body.len() {
            return Err(ProtocolError::Value);
        }
        if let Some(outgoing) = self.take(header, body, Way::Message)? {
            // If there is no writer any more, the session is ending.
            let _ = self.answers.blocking_send(outgoing);
        }
        Ok(())
    }

    /// Answers a read, now if nothing has to be waited for.
    fn begin(&self, read: ReadRequest, ticket: Ticket, way: Way) -> Option<Outgoing> {
        let number = ticket.number();
        match self.prepare(&read, way, ReadMode::CachedOnly) {
            Ok((answer, body)) => return Some(Outgoing { number, answer, body, ticket: Some(ticket), way }),
            Err(StoreError::Refused(refusal)) => {
                return Some(self.refused(number, refusal, Some(ticket), way));
            }
            Err(StoreError::WouldBlock) => {}
        }
        let desk = self.clone();
        self.runtime.spawn_blocking(move || {
            let outcome = match ticket.is_cancelled() {
                true => Err(Refusal::Cancelled.into()),
                false => desk.prepare(&read, way, ReadMode::Blocking),
            };
            let outgoing = match outcome {
                Ok((answer, body)) => Outgoing { number, answer, body, ticket: Some(ticket), way },
                Err(StoreError::Refused(refusal)) => desk.refused(number, refusal, Some(ticket), way),
                // Not when it may wait; if it were, the client would go elsewhere.
                Err(StoreError::WouldBlock) => desk.refused(number, Refusal::Io, Some(ticket), way),
            };
            if let Some(outgoing) = desk.send(outgoing) {
                // There is room for every request in progress. If there is not, the writer is gone.
                let _ = desk.answers.try_send(outgoing);
            }
        });
        None
    }

    /// Finds what is asked for, and reads it if it is small.
    fn prepare(
        &self,
        read: &ReadRequest,
        way: Way,
        mode: ReadMode,
    ) -> Result<(EngineMessage, Body), StoreError> {
        let located = self.session.locate(read, mode)?;
        let needle = located.needle;
        if self.session.transport() == Transport::Local {
            // The number of the file is known when it is this answer's turn.
            let answer = EngineMessage::File {
                needle,
                file: 0,
                record: located.record.offset,
                position: located.position(),
                attached: false,
            };
            return Ok((answer, Body::File(Box::new(located))));
        }
        if let Some(rdma) = &self.rdma
            && needle.length > MAX_INLINE_DATA
            && let Some(staged) = rdma.stage(&located, mode)?
        {
            return Ok((EngineMessage::Grant(needle, staged.grant()), Body::Staged(staged)));
        }
        let room = if needle.length <= SMALL { self.session.seat().reserve(needle.length) } else { None };
        // What finds no room may have to wait for the disk when it is its turn.
        let cold = mode == ReadMode::Blocking || needle.length <= SMALL;
        if let Some(room) = room {
            let mut data = vec![0; needle.length as usize];
            located.record.file.read_exact_at(&mut data, located.position(), mode)?;
            let by = if fits(way, needle.length) { Transport::Verbs } else { in_line(&self.session) };
            let counted = self.session.shared().metrics.staging(by, needle.length.into());
            let body = Body::Bytes(InMemory { data, _counted: counted, _room: room });
            return Ok((EngineMessage::Data(needle), body));
        }
        Ok((EngineMessage::Data(needle), Body::Range { located: Box::new(located), cold }))
    }

    /// Sends an answer as a message, if it goes that way and there is room; else it is given back.
    fn send(&self, outgoing: Outgoing) -> Option<Outgoing> {
        let fitting = match &outgoing.body {
            Body::None | Body::Staged(_) => fits(outgoing.way, 0),
            Body::Bytes(body) => fits(outgoing.way, u32::try_from(body.data.len()).unwrap_or(u32::MAX)),
            Body::Range { .. } | Body::File(_) => false,
        };
        let Some(rdma) = self.rdma.as_ref().filter(|_| fitting) else { return Some(outgoing) };
        let outgoing = outgoing.settled(&self.session, Some(rdma));
        let mut message = BytesMut::new();
        outgoing.answer.encode(outgoing.number, &mut message);
        if let Body::Bytes(body) = &outgoing.body {
            message.extend_from_slice(&body.data);
        }
        if !rdma.send(&message) {
            return Some(outgoing);
        }
        if let Body::Bytes(body) = &outgoing.body {
            self.session.shared().metrics.read(Transport::Verbs, body.data.len() as u64);
        }
        None
    }

    fn refused(&self, number: u64, refusal: Refusal, ticket: Option<Ticket>, way: Way) -> Outgoing {
        self.session.shared().metrics.refused(refusal);
        Outgoing { number, answer: EngineMessage::Refused(refusal), body: Body::None, ticket, way }
    }
}

/// Whether so much data goes into the message that answers.
fn fits(way: Way, data: u32) -> bool {
    way == Way::Message && data <= MAX_INLINE_DATA
}

/// What data in the stream counts as: a session over verbs has a TCP connection for it.
pub(super) fn in_line(session: &Session) -> Transport {
    match session.transport() {
        Transport::Verbs => Transport::Tcp,
        other => other,
    }
}
