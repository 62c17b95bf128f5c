//! One session with an engine, from the side of the requests: sends them and waits for their
//! answers, which the [demultiplexer](super::demultiplexer) delivers.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::answer::{ReceivedAnswer, RequestPermit};
use super::data_path::{DataPath, SentRead};
use super::destination::ReadMemory;
use super::lease::BootTime;
use super::{Delivered, ReadError, ReadTarget};
use crate::protocol::{ClientMessage, ReadRequest, SessionLimits};
use crate::transport::{RequestPath, Socket};

/// An engine that sends nothing for this long, while a request waits, is treated as down.
const MIN_SILENCE: Duration = Duration::from_millis(100);

/// An engine that leaves this many bytes of requests unread is treated as down.
const MAX_UNSENT: usize = 1 << 20;

pub(super) struct EngineConnection {
    socket: Arc<Socket>,
    path: Box<dyn DataPath>,
    limits: SessionLimits,
    /// Requests that may be in progress.
    permits: Arc<Semaphore>,
    next_number: AtomicU64,
    /// Counts everything that arrives: an engine that answers any request is alive.
    heard: Arc<AtomicU64>,
    pending: Mutex<PendingRequests>,
    unsent: Mutex<BytesMut>,
    flush: Arc<Notify>,
}

/// The requests that wait for an answer, by number.
#[derive(Default)]
struct PendingRequests {
    requests: HashMap<u64, PendingRequest>,
    /// Why the connection has ended, if it has.
    end: Option<String>,
}

/// A request that waits for its answer. It keeps its permit until the answer is there, even if the
/// reader has given up.
pub(super) struct PendingRequest {
    pub(super) answer: oneshot::Sender<ReceivedAnswer>,
    pub(super) permit: RequestPermit,
}

impl EngineConnection {
    pub(super) fn new(socket: Arc<Socket>, path: Box<dyn DataPath>, limits: SessionLimits) -> Arc<Self> {
        let connection = Arc::new(Self {
            socket,
            path,
            limits,
            permits: Arc::new(Semaphore::new((limits.in_flight as usize).min(Semaphore::MAX_PERMITS))),
            next_number: AtomicU64::new(1),
            heard: Arc::default(),
            pending: Mutex::default(),
            unsent: Mutex::default(),
            flush: Arc::default(),
        });
        // Ends with the connection: when its last owner drops it, or the engine is gone.
        tokio::spawn(flush(Arc::downgrade(&connection), connection.socket.clone()));
        connection
    }

    pub(super) fn path(&self) -> &dyn DataPath {
        &*self.path
    }

    pub(super) fn limits(&self) -> &SessionLimits {
        &self.limits
    }

    /// The count of everything that arrives.
    pub(super) fn heard(&self) -> &Arc<AtomicU64> {
        &self.heard
    }

    pub(super) fn is_open(&self) -> bool {
        self.pending.lock().end.is_none() && !self.path.is_broken()
    }

    /// Why the connection has ended, if it has.
    pub(super) fn end(&self) -> Option<String> {
        let end = self.pending.lock().end.clone();
        end.or_else(|| self.path.is_broken().then(|| "the queue pair has failed".to_owned()))
    }

    /// Ends the connection; all pending requests fail.
    pub(super) fn close(&self, reason: &str) {
        let mut pending = self.pending.lock();
        if pending.end.is_none() {
            pending.end = Some(reason.to_owned());
            pending.requests.clear();
            self.socket.shut_down();
            self.flush.notify_one();
            drop(pending);
            self.path.abort();
        }
    }

    /// Removes the request of this number.
    pub(super) fn take_pending(&self, number: u64) -> Option<PendingRequest> {
        self.pending.lock().requests.remove(&number)
    }

    /// Reads into `memory`, as many bytes as it has or as the needle has from the target on.
    pub(super) async fn read(
        self: &Arc<Self>,
        target: ReadTarget<'_>,
        memory: &mut dyn ReadMemory,
        deadline: Instant,
    ) -> Result<Delivered, ReadError> {
        self.within(deadline, async {
            let (answer, sent_at) = self.request_data(&target, memory.length()).await?;
            match answer {
                ReceivedAnswer::Refused(refusal) => Err(ReadError::Refused(refusal)),
                ReceivedAnswer::Pong => Err(ReadError::Lost("a pong for data".to_owned())),
                answer => self.path.read_into(answer, &SentRead { target, sent_at }, memory).await,
            }
        })
        .await
    }

    /// Requests `length` bytes. Returns the answer, and a time before the request was sent.
    async fn request_data(
        self: &Arc<Self>,
        target: &ReadTarget<'_>,
        length: usize,
    ) -> Result<(ReceivedAnswer, BootTime), ReadError> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        if length > self.limits.read {
            return Err(ReadError::Refused(crate::Refusal::TooLong));
        }
        let token = target.token.unwrap_or_default().as_bytes().to_vec();
        let read = ReadRequest { fid: target.fid, offset: target.offset, length, token };
        let request = self.request(&ClientMessage::Read(read)).await?;
        let sent_at = request.sent_at;
        Ok((request.answer().await?, sent_at))
    }

    /// Tells the engine that what it granted is not needed any more.
    #[cfg(feature = "verbs")]
    pub(super) fn give_back_grant(&self, number: u64, path: RequestPath) {
        self.send(&ClientMessage::Done, number, path);
    }

    pub(super) async fn ping(self: &Arc<Self>, deadline: Instant) -> Result<Duration, ReadError> {
        self.within(deadline, async {
            let began = Instant::now();
            match self.request(&ClientMessage::Ping).await?.answer().await? {
                ReceivedAnswer::Pong => Ok(began.elapsed()),
                ReceivedAnswer::Refused(refusal) => Err(ReadError::Refused(refusal)),
                _ => Err(ReadError::Lost("data for a ping".to_owned())),
            }
        })
        .await
    }

    /// Waits for `work` until the deadline. An engine that has sent nothing at all by then is
    /// treated as down, unless the deadline was shorter than [`MIN_SILENCE`].
    async fn within<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, ReadError> {
        let (began, heard) = (Instant::now(), self.heard.load(Ordering::Relaxed));
        match timeout_at(deadline, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if began.elapsed() >= MIN_SILENCE && self.heard.load(Ordering::Relaxed) == heard {
                    self.close("the engine did not answer in time");
                }
                Err(ReadError::Deadline)
            }
        }
    }

    async fn request(self: &Arc<Self>, message: &ClientMessage) -> Result<SentRequest, ReadError> {
        let request = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let permit = RequestPermit { _request: request, message: self.path.message_permit() };
        let path = permit.path();
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut pending = self.pending.lock();
            if let Some(end) = &pending.end {
                return Err(ReadError::Lost(end.clone()));
            }
            pending.requests.insert(number, PendingRequest { answer: sender, permit });
        }
        let sent_at = BootTime::now();
        self.send(message, number, path);
        Ok(SentRequest { connection: self.clone(), number, path, sent_at, answer: Some(answer) })
    }

    /// Sends a message. If the queue pair has no room for it, it goes over the socket; what the
    /// socket does not take at once is left to the flush task.
    fn send(&self, message: &ClientMessage, number: u64, path: RequestPath) {
        if path == RequestPath::Message {
            let mut bytes = BytesMut::new();
            message.encode(number, &mut bytes);
            if self.path.send_message(&bytes) {
                return;
            }
        }
        let mut unsent = self.unsent.lock();
        let idle = unsent.is_empty();
        message.encode(number, &mut unsent);
        if idle && !write_some(&self.socket, &mut unsent).unwrap_or(true) {
            // An error shows on the reading side.
            self.flush.notify_one();
        }
        if unsent.len() > MAX_UNSENT {
            drop(unsent);
            self.close("the engine takes no requests");
        }
    }
}

impl Drop for EngineConnection {
    fn drop(&mut self) {
        self.socket.shut_down();
        self.flush.notify_one();
    }
}

/// Writes as much of `bytes` as the socket takes. Returns whether that was all.
fn write_some(socket: &Socket, bytes: &mut BytesMut) -> io::Result<bool> {
    while !bytes.is_empty() {
        match socket.try_write(bytes) {
            Ok(count) => bytes.advance(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                bytes.clear();
                return Err(error);
            }
        }
    }
    Ok(true)
}

/// Sends what the socket did not take at once.
async fn flush(connection: Weak<EngineConnection>, socket: Arc<Socket>) {
    loop {
        let Some(strong) = connection.upgrade() else { return };
        if strong.end().is_some() {
            return;
        }
        let all = write_some(&socket, &mut strong.unsent.lock());
        let more = strong.flush.clone();
        // While this task waits, it must not keep the connection alive.
        drop(strong);
        match all {
            Ok(true) => more.notified().await,
            Ok(false) if socket.writable().await.is_ok() => {}
            _ => return,
        }
    }
}

/// A request that was sent. Dropping it before its answer cancels it at the engine.
struct SentRequest {
    connection: Arc<EngineConnection>,
    number: u64,
    path: RequestPath,
    /// A time before it was sent.
    sent_at: BootTime,
    answer: Option<oneshot::Receiver<ReceivedAnswer>>,
}

impl SentRequest {
    async fn answer(mut self) -> Result<ReceivedAnswer, ReadError> {
        let answer = self.answer.as_mut().expect("taken only here");
        let received = match self.path {
            RequestPath::Message => self.connection.path.wait_for_answer(answer).await,
            RequestPath::Stream => answer.await,
        };
        self.answer = None;
        received.map_err(|_| ReadError::Lost(self.connection.end().unwrap_or_default()))
    }
}

impl Drop for SentRequest {
    fn drop(&mut self) {
        if self.answer.is_some() {
            self.connection.send(&ClientMessage::Cancel, self.number, self.path);
        }
    }
}
