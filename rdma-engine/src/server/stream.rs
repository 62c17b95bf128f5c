//! Sessions over a stream: `tcp`, with the data in line, `local`, with descriptors of the volumes' files, and `verbs`, whose data the client fetches
//! by RDMA while requests and answers take the stream.
//!
//! One task takes requests and one writes answers. A request is looked up by the first task if all it needs is in memory, else on a
//! thread that may wait. Small data is read with it; large data goes from the file to the socket when its turn comes.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::rdma::{Rdma, Staged};
use super::session::{Located, Session, Ticket};
use crate::Refusal;
use crate::metrics::Level;
use crate::protocol::{Answer, ProtocolError, Read, Request, Transport};
use crate::store::{DataFile, Fault, Patience};
use crate::transport::{Incoming, Socket, StreamError, aside};

/// Data up to this many bytes is read into memory and written together with its frame.
const SMALL: u32 = 32 << 10;

/// Data from this many bytes on is sent with the other tasks of the thread moved elsewhere.
const LARGE: u32 = 128 << 10;

/// Over verbs, data up to this many bytes goes in line: fetching it would take another round trip.
const IN_LINE: u32 = 8 << 10;

/// How often files that were handed over, and leases, are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Answers that have no request in progress may wait for the writer: pongs, and refusals of what could not begin.
const EXTRA: usize = 16;

/// How a session ended.
pub(super) enum End {
    Stream(StreamError),
    Protocol(ProtocolError),
    Idle,
    Writer,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(error) => error.fmt(f),
            Self::Protocol(error) => error.fmt(f),
            Self::Idle => f.write_str("no request came for a long time"),
            Self::Writer => f.write_str("answers could not be written"),
        }
    }
}

/// An answer on its way to the client.
struct Outgoing {
    number: u64,
    answer: Answer,
    body: Body,
    /// Ends the request when the answer is written.
    ticket: Option<Ticket>,
}

enum Body {
    None,
    Bytes(Vec<u8>, Level),
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

/// Answers requests until the connection or the client's right to it ends.
pub(super) async fn serve(mut incoming: Incoming, session: Arc<Session>, rdma: Option<Arc<Rdma>>) -> End {
    let capacity = session.limits().in_flight as usize + EXTRA;
    let (answers, outbox) = mpsc::channel(capacity);
    let writer = Writer {
        socket: incoming.socket().clone(),
        session: session.clone(),
        rdma: rdma.clone(),
        handed: HashMap::new(),
        next: 0,
    };
    let mut writing = tokio::spawn(writer.run(outbox));
    let end = tokio::select! {
        end = take_requests(&mut incoming, &session, rdma.as_ref(), &answers) => end,
        _ = &mut writing => End::Writer,
    };
    incoming.socket().shut_down();
    writing.abort();
    // Taking a queue pair and its memory from the device may take a while.
    tokio::task::spawn_blocking(move || drop(rdma));
    end
}

async fn take_requests(
    incoming: &mut Incoming,
    session: &Arc<Session>,
    rdma: Option<&Arc<Rdma>>,
    answers: &mpsc::Sender<Outgoing>,
) -> End {
    let idle = Duration::from_millis(session.limits().idle_ms.into());
    loop {
        let (header, body) = match timeout(idle, incoming.frame()).await {
            Err(_) if session.is_idle() => return End::Idle,
            Err(_) => continue,
            Ok(Err(error)) => return End::Stream(error),
            Ok(Ok(frame)) => frame,
        };
        let request = match Request::decode(header, &body) {
            Ok(request) => request,
            Err(error) => {
                session.shared().metrics.refused(Refusal::Malformed);
                return End::Protocol(error);
            }
        };
        let outgoing = match request {
            Request::Read(read) => match session.begin(header.request) {
                Ok(ticket) => begin(session, rdma, read, ticket, answers),
                Err(refusal) => Some(Outgoing::refused(session, header.request, refusal, None)),
            },
            Request::Cancel => {
                session.cancel(header.request);
                None
            }
            Request::Ping => Some(Outgoing::plain(header.request, Answer::Pong)),
            Request::Done => match rdma {
                Some(rdma) => {
                    rdma.done(header.request);
                    None
                }
                // Nothing is ever granted without.
                None => return End::Protocol(ProtocolError::Kind(header.kind as u8)),
            },
        };
        if let Some(outgoing) = outgoing
            && answers.send(outgoing).await.is_err()
        {
            return End::Writer;
        }
    }
}

/// Answers a read, now if nothing has to be waited for.
fn begin(
    session: &Arc<Session>,
    rdma: Option<&Arc<Rdma>>,
    read: Read,
    ticket: Ticket,
    answers: &mpsc::Sender<Outgoing>,
) -> Option<Outgoing> {
    match prepare(session, rdma, &read, Patience::PageCache) {
        Ok((answer, body)) => {
            return Some(Outgoing { number: ticket.number(), answer, body, ticket: Some(ticket) });
        }
        Err(Fault::Refused(refusal)) => {
            return Some(Outgoing::refused(session, ticket.number(), refusal, Some(ticket)));
        }
        Err(Fault::WouldBlock) => {}
    }
    let (session, rdma, answers) = (session.clone(), rdma.cloned(), answers.clone());
    tokio::task::spawn_blocking(move || {
        let number = ticket.number();
        let outcome = match ticket.is_cancelled() {
            true => Err(Refusal::Cancelled.into()),
            false => prepare(&session, rdma.as_ref(), &read, Patience::Blocking),
        };
        let outgoing = match outcome {
            Ok((answer, body)) => Outgoing { number, answer, body, ticket: Some(ticket) },
            Err(Fault::Refused(refusal)) => Outgoing::refused(&session, number, refusal, Some(ticket)),
            // Not when it may wait; if it were, the client would go elsewhere.
            Err(Fault::WouldBlock) => Outgoing::refused(&session, number, Refusal::Io, Some(ticket)),
        };
        // There is room for every request in progress. If there is not, the writer is gone.
        let _ = answers.try_send(outgoing);
    });
    None
}

/// Finds what is asked for, and reads it if it is small.
fn prepare(
    session: &Session,
    rdma: Option<&Arc<Rdma>>,
    read: &Read,
    patience: Patience,
) -> Result<(Answer, Body), Fault> {
    let located = session.locate(read, patience)?;
    let needle = located.needle;
    if session.transport() == Transport::Local {
        // The number of the file is known when it is this answer's turn.
        let answer = Answer::File {
            needle,
            file: 0,
            record: located.record.offset,
            position: located.position(),
            attached: false,
        };
        return Ok((answer, Body::File(Box::new(located))));
    }
    if let Some(rdma) = rdma
        && needle.length > IN_LINE
        && let Some(staged) = rdma.stage(&located, patience)?
    {
        return Ok((Answer::Grant(needle, staged.grant()), Body::Staged(staged)));
    }
    if needle.length <= SMALL {
        let mut bytes = vec![0; needle.length as usize];
        located.record.file.read_exact_at(&mut bytes, located.position(), patience)?;
        let staging = session.shared().metrics.staging(in_line(session), needle.length.into());
        return Ok((Answer::Data(needle), Body::Bytes(bytes, staging)));
    }
    let cold = patience == Patience::Blocking;
    Ok((Answer::Data(needle), Body::Range { located: Box::new(located), cold }))
}

/// What data in line counts as: a session over verbs has a TCP connection for it.
fn in_line(session: &Session) -> Transport {
    match session.transport() {
        Transport::Verbs => Transport::Tcp,
        other => other,
    }
}

impl Outgoing {
    fn plain(number: u64, answer: Answer) -> Self {
        Self { number, answer, body: Body::None, ticket: None }
    }

    fn refused(session: &Session, number: u64, refusal: Refusal, ticket: Option<Ticket>) -> Self {
        session.shared().metrics.refused(refusal);
        Self { number, answer: Answer::Refused(refusal), body: Body::None, ticket }
    }
}

/// Writes answers.
struct Writer {
    socket: Arc<Socket>,
    session: Arc<Session>,
    rdma: Option<Arc<Rdma>>,
    /// Files whose descriptors the client has, by the address of the open file, and their numbers.
    handed: HashMap<usize, (u32, Arc<DataFile>)>,
    next: u32,
}

impl Writer {
    async fn run(mut self, mut outbox: mpsc::Receiver<Outgoing>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut bytes = BytesMut::new();
        loop {
            let step = tokio::select! {
                outgoing = outbox.recv() => match outgoing {
                    Some(outgoing) => self.write(outgoing, &mut bytes, &mut outbox).await,
                    None => return,
                },
                _ = look.tick(), if !self.handed.is_empty() || self.rdma.is_some() => {
                    if let Some(rdma) = &self.rdma {
                        rdma.expire();
                    }
                    self.take_back(&mut bytes).await
                }
            };
            if let Err(error) = step {
                return tracing::debug!(%error, "cannot write an answer");
            }
            bytes.clear();
        }
    }

    /// Writes one answer, and with it those behind it that need no system call of their own.
    async fn write(
        &mut self,
        outgoing: Outgoing,
        bytes: &mut BytesMut,
        outbox: &mut mpsc::Receiver<Outgoing>,
    ) -> io::Result<()> {
        let mut next = Some(outgoing);
        while let Some(Outgoing { number, answer, body, ticket }) = next.take() {
            let cancelled = ticket.as_ref().is_some_and(Ticket::is_cancelled);
            let (body, ticket) = match (body, ticket, &self.rdma) {
                // The request goes on until the client is done with what it was granted.
                (Body::Staged(staged), Some(ticket), Some(rdma)) if !cancelled => {
                    self.session.shared().metrics.read(Transport::Verbs, staged.length());
                    rdma.lend(ticket, staged);
                    (Body::None, None)
                }
                (body, ticket, _) => (body, ticket),
            };
            // When the answer arrives the client may send the next request: this one must not be in progress then.
            drop(ticket);
            if cancelled && !matches!(answer, Answer::Refused(_)) {
                self.session.shared().metrics.refused(Refusal::Cancelled);
                Answer::Refused(Refusal::Cancelled).encode(number, bytes);
            } else {
                self.write_one(number, answer, body, bytes).await?;
            }
            if bytes.len() < SMALL as usize {
                next = outbox.try_recv().ok();
            }
        }
        self.socket.write_all(bytes, false).await
    }

    async fn write_one(
        &mut self,
        number: u64,
        answer: Answer,
        body: Body,
        bytes: &mut BytesMut,
    ) -> io::Result<()> {
        let metrics = &self.session.shared().metrics;
        let transport = in_line(&self.session);
        match body {
            Body::None | Body::Staged(_) => answer.encode(number, bytes),
            Body::Bytes(data, _staging) => {
                metrics.read(transport, data.len() as u64);
                answer.encode(number, bytes);
                bytes.extend_from_slice(&data);
            }
            Body::Range { located, cold } => {
                metrics.read(transport, located.needle.length.into());
                answer.encode(number, bytes);
                self.socket.write_all(bytes, true).await?;
                bytes.clear();
                self.send(&located, cold).await?;
            }
            Body::File(located) => {
                metrics.read(transport, located.needle.length.into());
                let key = Arc::as_ptr(&located.record.file) as usize;
                let known = self.handed.get(&key).map(|(file, _)| *file);
                let answer = Answer::File {
                    needle: located.needle,
                    file: known.unwrap_or(self.next),
                    record: located.record.offset,
                    position: located.position(),
                    attached: known.is_none(),
                };
                if known.is_none() {
                    self.socket.write_all(bytes, false).await?;
                    bytes.clear();
                    answer.encode(number, bytes);
                    self.socket.write_with(bytes, located.record.file.as_fd()).await?;
                    bytes.clear();
                    self.handed.insert(key, (self.next, located.record.file.clone()));
                    self.next += 1;
                } else {
                    answer.encode(number, bytes);
                }
            }
        }
        Ok(())
    }

    /// Sends a range from its file.
    async fn send(&self, located: &Located, cold: bool) -> io::Result<()> {
        let mut position = located.position();
        let mut left = located.needle.length as usize;
        while left > 0 {
            let file = located.record.file.as_fd();
            let send = || self.socket.try_send_file(file, position, left);
            match if cold || located.needle.length >= LARGE { aside(send) } else { send() } {
                // What was promised cannot be kept: the client sees the connection end and goes elsewhere.
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was truncated")),
                Ok(count) => {
                    position += count as u64;
                    left -= count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Tells the client to close files that were replaced or removed.
    async fn take_back(&mut self, bytes: &mut BytesMut) -> io::Result<()> {
        self.handed.retain(|_, (file, data)| {
            let keep = !data.is_unlinked();
            if !keep {
                Answer::Forget { file: *file }.encode(0, bytes);
            }
            keep
        });
        self.socket.write_all(bytes, false).await
    }
}
