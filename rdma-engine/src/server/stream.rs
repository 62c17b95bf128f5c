//! Sessions over a stream: `tcp`, with the data in line; `local`, with descriptors of the volumes'
//! files; and `verbs`, where the stream carries what the queue pair does not.
//!
//! One task takes requests ([`RequestHandler`]) and one writes answers. Small data was read with
//! the request; large data is sent from the file to the socket when its answer is written.

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

use super::rdma_session::{RdmaSession, RequestReceiver};
use super::request_handler::{
    AnswerData, MAX_BUFFERED_DATA, OutgoingAnswer, RequestHandler, stream_transport,
};
use super::session::{LocatedRange, Session};
use crate::protocol::{EngineMessage, ProtocolError};
use crate::store::DataFile;
use crate::transport::{Incoming, RequestPath, Socket, StreamError, run_blocking};

/// Data from this many bytes on is sent while other threads take over the thread's tasks.
const MIN_BLOCKING_SIZE: u32 = 128 << 10;

/// How often the writer checks for files that were replaced, and for leases that are over.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a client may take to receive an answer, plus a second for each MiB of data.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(60);

/// Room for answers without a request in progress: pongs, and refusals of requests that did not
/// begin.
const EXTRA_ANSWERS: usize = 16;

/// Why a session ended.
pub(super) enum SessionEnd {
    Stream(StreamError),
    Protocol(ProtocolError),
    Idle,
    Evicted,
    Writer,
}

impl fmt::Display for SessionEnd {
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

/// The queue pair of a session over verbs.
pub(super) type SessionPair = (Arc<dyn RdmaSession>, Box<dyn RequestReceiver>);

/// Answers requests until the connection ends, or the client's right to it.
pub(super) async fn serve(
    mut incoming: Incoming,
    session: Arc<Session>,
    pair: Option<SessionPair>,
) -> SessionEnd {
    let capacity = session.limits().in_flight as usize + EXTRA_ANSWERS;
    let (answers, queue) = mpsc::channel(capacity);
    let socket = incoming.socket().clone();
    let (rdma, receiver) = pair.unzip();
    let writer = AnswerWriter {
        socket: socket.clone(),
        session: session.clone(),
        rdma: rdma.clone(),
        handed_over: HashMap::new(),
        next_file: 0,
    };
    let handler = RequestHandler { session: session.clone(), rdma, answers, runtime: Handle::current() };
    let _abort = handler.rdma.clone().map(|rdma| AbortOnDrop(rdma, handler.runtime.clone()));
    if let Some(receiver) = receiver {
        let (handler, socket) = (handler.clone(), socket.clone());
        let take = Box::new(move |message: &[u8]| handler.handle_message(message));
        // The session ends with the queue pair.
        if let Err(error) = receiver.start(take, Box::new(move || socket.shut_down())) {
            return SessionEnd::Stream(error.into());
        }
    }
    let mut writing = tokio::spawn(writer.run(queue));
    let end = tokio::select! {
        end = take_requests(&mut incoming, &handler) => end,
        _ = &mut writing => SessionEnd::Writer,
        () = session.permit().evicted() => SessionEnd::Evicted,
    };
    socket.shut_down();
    writing.abort();
    end
}

/// Ends the queue pair with the session.
struct AbortOnDrop(Arc<dyn RdmaSession>, Handle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        let rdma = self.0.clone();
        rdma.abort();
        // Taking a queue pair and its memory from the device may take a while.
        self.1.spawn_blocking(move || drop(rdma));
    }
}

async fn take_requests(incoming: &mut Incoming, handler: &RequestHandler) -> SessionEnd {
    let limit = Duration::from_millis(handler.session.limits().idle_ms.into());
    loop {
        // Only successful reads count, not other requests.
        let Some(left) = handler.session.permit().idle_time_left(limit) else { return SessionEnd::Idle };
        let (header, body) = match timeout(left, incoming.frame()).await {
            Err(_) => continue,
            Ok(Err(error)) => return SessionEnd::Stream(error),
            Ok(Ok(frame)) => frame,
        };
        match handler.handle(header, &body, RequestPath::Stream) {
            Ok(None) => {}
            Ok(Some(answer)) => {
                if handler.answers.send(answer).await.is_err() {
                    return SessionEnd::Writer;
                }
            }
            Err(error) => return SessionEnd::Protocol(error),
        }
    }
}

/// Writes answers.
struct AnswerWriter {
    socket: Arc<Socket>,
    session: Arc<Session>,
    rdma: Option<Arc<dyn RdmaSession>>,
    /// Files whose descriptors the client has, with their numbers, by the address of the open
    /// file.
    handed_over: HashMap<usize, (u32, Arc<DataFile>)>,
    next_file: u32,
}

impl AnswerWriter {
    async fn run(mut self, mut queue: mpsc::Receiver<OutgoingAnswer>) {
        let mut check = interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut bytes = BytesMut::new();
        loop {
            let step = tokio::select! {
                answer = queue.recv() => match answer {
                    Some(answer) => self.write(answer, &mut bytes, &mut queue).await,
                    None => return,
                },
                _ = check.tick(), if !self.handed_over.is_empty() || self.rdma.is_some() => {
                    if let Some(rdma) = &self.rdma {
                        rdma.expire_leases();
                    }
                    self.revoke_files(&mut bytes).await
                }
            };
            if let Err(error) = step {
                return tracing::debug!(%error, "cannot write an answer");
            }
            bytes.clear();
        }
    }

    /// Writes one answer, together with queued ones that need no system call of their own.
    async fn write(
        &mut self,
        answer: OutgoingAnswer,
        bytes: &mut BytesMut,
        queue: &mut mpsc::Receiver<OutgoingAnswer>,
    ) -> io::Result<()> {
        let mut next = Some(answer);
        while let Some(answer) = next.take() {
            let answer = answer.settled(&self.session, self.rdma.as_deref());
            self.write_one(answer, bytes).await?;
            if bytes.len() < MAX_BUFFERED_DATA as usize {
                next = queue.try_recv().ok();
            }
        }
        received_within(RECEIVE_TIMEOUT, self.socket.write_all(bytes, false)).await
    }

    async fn write_one(&mut self, answer: OutgoingAnswer, bytes: &mut BytesMut) -> io::Result<()> {
        let OutgoingAnswer { number, message, data, .. } = answer;
        let metrics = &self.session.engine().metrics;
        let transport = stream_transport(&self.session);
        match data {
            AnswerData::None | AnswerData::Staged(_) => message.encode(number, bytes),
            AnswerData::Buffered(data) => {
                metrics.read(transport, data.bytes.len() as u64);
                message.encode(number, bytes);
                bytes.extend_from_slice(&data.bytes);
            }
            AnswerData::FromFile { located, cold } => {
                metrics.read(transport, located.needle.length.into());
                message.encode(number, bytes);
                let seconds = u64::from(located.needle.length >> 20);
                let sending = async {
                    self.socket.write_all(bytes, true).await?;
                    self.send_from_file(&located, cold).await
                };
                received_within(RECEIVE_TIMEOUT + Duration::from_secs(seconds), sending).await?;
                bytes.clear();
            }
            AnswerData::File(located) => {
                metrics.read(transport, located.needle.length.into());
                let key = Arc::as_ptr(&located.record.file) as usize;
                let known = self.handed_over.get(&key).map(|(file, _)| *file);
                let message = EngineMessage::File {
                    needle: located.needle,
                    file: known.unwrap_or(self.next_file),
                    record: located.record.offset,
                    position: located.position(),
                    attached: known.is_none(),
                };
                if known.is_none() {
                    received_within(RECEIVE_TIMEOUT, self.socket.write_all(bytes, false)).await?;
                    bytes.clear();
                    message.encode(number, bytes);
                    let sending = self.socket.write_with(bytes, located.record.file.as_fd());
                    received_within(RECEIVE_TIMEOUT, sending).await?;
                    bytes.clear();
                    self.handed_over.insert(key, (self.next_file, located.record.file.clone()));
                    self.next_file += 1;
                } else {
                    message.encode(number, bytes);
                }
            }
        }
        Ok(())
    }

    /// Sends a range from its file.
    async fn send_from_file(&self, located: &LocatedRange, cold: bool) -> io::Result<()> {
        let mut position = located.position();
        let mut left = located.needle.length as usize;
        while left > 0 {
            let file = located.record.file.as_fd();
            let send = || self.socket.try_send_file(file, position, left);
            let may_block = cold || located.needle.length >= MIN_BLOCKING_SIZE;
            match if may_block { run_blocking(send) } else { send() } {
                // The announced bytes are not there: the connection ends, and the client takes its
                // next source.
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
    async fn revoke_files(&mut self, bytes: &mut BytesMut) -> io::Result<()> {
        self.handed_over.retain(|_, (file, data)| {
            let keep = !data.is_unlinked();
            if !keep {
                EngineMessage::Forget { file: *file }.encode(0, bytes);
            }
            keep
        });
        received_within(RECEIVE_TIMEOUT, self.socket.write_all(bytes, false)).await
    }
}

/// Waits until the client has received what is sent, at most for `limit`: a client that takes a
/// byte now and then would keep its answers in memory for ever.
async fn received_within(limit: Duration, sending: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the client takes its answers too slowly");
    timeout(limit, sending).await.map_err(late)?
}
