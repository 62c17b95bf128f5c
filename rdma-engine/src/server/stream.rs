//! Sessions over a stream: `tcp`, with the data in line, `local`, with descriptors of the volumes' files, and `verbs`, where it carries what the queue pair
//! does not.
//!
//! One task takes requests ([`Desk`]) and one writes answers. Small data was read with the request; large data goes from the file to the
//! socket when its turn comes.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::rdma::{Inbox, Rdma};
use super::requests::{Body, Desk, Outgoing, SMALL, Way, in_line};
use super::session::{Located, Session};
use crate::protocol::{EngineMessage, ProtocolError};
use crate::store::DataFile;
use crate::transport::{Incoming, Socket, StreamError, aside};

/// Data from this many bytes on is sent with the other tasks of the thread moved elsewhere.
const LARGE: u32 = 128 << 10;

/// How often files that were handed over, and leases, are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long a client may take to receive an answer, besides a second for each MiB of it.
const RECEIVE: Duration = Duration::from_secs(60);

/// Answers that have no request in progress may wait for the writer: pongs, and refusals of what could not begin.
const EXTRA: usize = 16;

/// How a session ended.
pub(super) enum End {
    Stream(StreamError),
    Protocol(ProtocolError),
    Idle,
    Evicted,
    Writer,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(error) => error.fmt(f),
            Self::Protocol(error) => error.fmt(f),
            Self::Idle => f.write_str("nothing was read for a long time"),
            Self::Evicted => f.write_str("it was idle and another session needed its place"),
            Self::Writer => f.write_str("answers could not be written"),
        }
    }
}

/// Answers requests until the connection or the client's right to it ends.
pub(super) async fn serve(
    mut incoming: Incoming,
    session: Arc<Session>,
    rdma: Option<(Arc<Rdma>, Inbox)>,
) -> End {
    let capacity = session.limits().in_flight as usize + EXTRA;
    let (answers, outbox) = mpsc::channel(capacity);
    let socket = incoming.socket().clone();
    let (rdma, inbox) = rdma.unzip();
    let writer = Writer {
        socket: socket.clone(),
        session: session.clone(),
        rdma: rdma.clone(),
        handed: HashMap::new(),
        next: 0,
    };
    let desk = Desk { session: session.clone(), rdma, answers, runtime: Handle::current() };
    let _queue_pair = desk.rdma.clone().map(|rdma| Ending(rdma, desk.runtime.clone()));
    if let Some(inbox) = inbox {
        let (desk, socket) = (desk.clone(), socket.clone());
        // Whatever ends the queue pair ends the session.
        let started = inbox.open(move |message| desk.take_message(message), move || socket.shut_down());
        if let Err(error) = started {
            return End::Stream(error.into());
        }
    }
    let mut writing = tokio::spawn(writer.run(outbox));
    let end = tokio::select! {
        end = take_requests(&mut incoming, &desk) => end,
        _ = &mut writing => End::Writer,
        () = session.seat().evicted() => End::Evicted,
    };
    socket.shut_down();
    writing.abort();
    end
}

/// Ends the queue pair with the session.
struct Ending(Arc<Rdma>, Handle);

impl Drop for Ending {
    fn drop(&mut self) {
        let rdma = self.0.clone();
        rdma.end();
        // Taking a queue pair and its memory from the device may take a while.
        self.1.spawn_blocking(move || drop(rdma));
    }
}

async fn take_requests(incoming: &mut Incoming, desk: &Desk) -> End {
    let limit = Duration::from_millis(desk.session.limits().idle_ms.into());
    loop {
        // Only what is read counts, not what else comes.
        let Some(left) = desk.session.seat().left(limit) else { return End::Idle };
        let (header, body) = match timeout(left, incoming.frame()).await {
            Err(_) => continue,
            Ok(Err(error)) => return End::Stream(error),
            Ok(Ok(frame)) => frame,
        };
        match desk.take(header, &body, Way::Stream) {
            Ok(None) => {}
            Ok(Some(outgoing)) => {
                if desk.answers.send(outgoing).await.is_err() {
                    return End::Writer;
                }
            }
            Err(error) => return End::Protocol(error),
        }
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
        while let Some(outgoing) = next.take() {
            let outgoing = outgoing.settled(&self.session, self.rdma.as_ref());
            self.write_one(outgoing, bytes).await?;
            if bytes.len() < SMALL as usize {
                next = outbox.try_recv().ok();
            }
        }
        received(RECEIVE, self.socket.write_all(bytes, false)).await
    }

    async fn write_one(&mut self, outgoing: Outgoing, bytes: &mut BytesMut) -> io::Result<()> {
        let Outgoing { number, answer, body, .. } = outgoing;
        let metrics = &self.session.shared().metrics;
        let transport = in_line(&self.session);
        match body {
            Body::None | Body::Staged(_) => answer.encode(number, bytes),
            Body::Bytes(body) => {
                metrics.read(transport, body.data.len() as u64);
                answer.encode(number, bytes);
                bytes.extend_from_slice(&body.data);
            }
            Body::Range { located, cold } => {
                metrics.read(transport, located.needle.length.into());
                answer.encode(number, bytes);
                let seconds = u64::from(located.needle.length >> 20);
                let sending = async {
                    self.socket.write_all(bytes, true).await?;
                    self.send(&located, cold).await
                };
                received(RECEIVE + Duration::from_secs(seconds), sending).await?;
                bytes.clear();
            }
            Body::File(located) => {
                metrics.read(transport, located.needle.length.into());
                let key = Arc::as_ptr(&located.record.file) as usize;
                let known = self.handed.get(&key).map(|(file, _)| *file);
                let answer = EngineMessage::File {
                    needle: located.needle,
                    file: known.unwrap_or(self.next),
                    record: located.record.offset,
                    position: located.position(),
                    attached: known.is_none(),
                };
                if known.is_none() {
                    received(RECEIVE, self.socket.write_all(bytes, false)).await?;
                    bytes.clear();
                    answer.encode(number, bytes);
                    received(RECEIVE, self.socket.write_with(bytes, located.record.file.as_fd())).await?;
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
                EngineMessage::Forget { file: *file }.encode(0, bytes);
            }
            keep
        });
        received(RECEIVE, self.socket.write_all(bytes, false)).await
    }
}

/// Waits until the client has taken what is sent: one that takes a byte now and then would keep its answers in memory
/// for ever.
async fn received(limit: Duration, sending: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the client takes its answers too slowly");
    timeout(limit, sending).await.map_err(late)?
}
