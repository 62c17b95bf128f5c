//! The path of `verbs`: small data comes in messages of the queue pair, everything else is fetched
//! by RDMA READ from the engine's staging memory.
//!
//! ```text
//!  grant ─► read ── PendingRead ─► QueuePair ═ READ ═► the engine's staging memory
//!                                     │ completion
//!            copied from a      ◄── the adapter's thread, or the reader itself
//!            bounce buffer,         while it waits alone (`adapter`)
//!            or in place
//! ```
//! Into memory that its caller owns, and that may be registered
//! ([`Client::register`](crate::client::Client::register)), the device writes directly. Everything
//! else is read into bounce buffers of the connection and copied from there, piece by piece, while
//! the next pieces are on their way.
//!
//! Requests and short answers are messages of the same queue pair, if the engine takes them
//! (`message_channel`).
//!
//! Posted memory belongs to the queue pair (see [`crate::verbs`]), so a read may be dropped at any
//! point: its memory is free when the device is done.

mod adapter;
mod completion_waiters;
mod connect;
mod message_channel;
mod posted_buffer;
mod read_buffer;
mod registered_parts;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

use self::adapter::Adapter;
pub(super) use self::connect::{PreparedPath, prepare};
use self::message_channel::MessageChannel;
use self::posted_buffer::PostedBuffer;
use self::read_buffer::{
    BOUNCE_BUFFER_SIZE, BounceBuffer, BouncePool, DirectBuffer, PendingRead, ReadBuffer, ReadResult,
};
use self::registered_parts::RegisteredPart;
use super::answer::{GrantedRange, ReceivedAnswer, Session};
use super::data_path::{BoxFuture, DataPath, SentRead, read_inline, unexpected_answer};
use super::destination::{LentDestination, ReadMemory};
use super::lease::{BootTime, Lease};
use super::registration_cache::RegistrationCache;
use super::verification::{ReadChecksum, check_match, matched_part, verify_bytes};
use super::{Delivered, ReadError};
use crate::protocol::{Grant, NeedleInfo, Transport};
use crate::verbs::{AdaptivePoll, QueuePair, RdmaRead, RemoteMemory, WorkError};

/// READs that are posted at a time; the device has as many of them in flight as it can.
const READ_DEPTH: u32 = 64;

/// A READ that has not completed after this time, while no other has either, never will.
const MIN_SILENCE: Duration = Duration::from_secs(1);

/// A queue pair that is connected to an engine.
pub(super) struct VerbsPath {
    pair: Arc<QueuePair<PostedBuffer>>,
    /// Room in the send queue.
    read_permits: Arc<Semaphore>,
    bounce: Arc<BouncePool>,
    messages: Option<MessageChannel>,
    /// The memory whose parts may be registered.
    caches: Vec<Arc<RegistrationCache>>,
    /// How many READs have succeeded: whether the queue pair works at all, and whether it still
    /// does.
    succeeded: Arc<AtomicU64>,
    /// A READ has failed by itself, not because the connection was ended.
    failed: AtomicBool,
    answer_poll: Mutex<AdaptivePoll>,
    read_poll: Mutex<AdaptivePoll>,
    adapter: Arc<Adapter>,
}

impl DataPath for VerbsPath {
    fn transport(&self) -> Transport {
        Transport::Verbs
    }

    fn read_into<'a>(
        &'a self,
        answer: ReceivedAnswer,
        read: &'a SentRead<'a>,
        memory: &'a mut dyn ReadMemory,
    ) -> BoxFuture<'a, Result<Delivered, ReadError>> {
        Box::pin(async move {
            let (needle, verified) = match answer {
                ReceivedAnswer::Message(needle, data) => {
                    let destination = matched_part(&needle, &read.target, memory.bytes())?;
                    destination.copy_from_slice(&data);
                    (needle, verify_bytes(&needle, destination)?)
                }
                ReceivedAnswer::Grant(needle, granted) => {
                    let part = match needle.length > 0 && memory.length() > 0 {
                        true => memory.lendable().and_then(|memory| {
                            self.caches
                                .iter()
                                .find_map(|cache| self.adapter.registered.find_or_register(cache, memory))
                        }),
                        false => None,
                    };
                    let verified = match part {
                        Some(part) => self.read_direct(&needle, granted, read, memory, part).await?,
                        None => self.read_bounced(&needle, granted, read, memory).await?,
                    };
                    (needle, verified)
                }
                // What the queue pair does not carry comes by TCP.
                ReceivedAnswer::Data(needle, data) => {
                    return read_inline(needle, data, read, memory, Transport::Tcp).await;
                }
                _ => return Err(unexpected_answer()),
            };
            Ok(Delivered { needle, verified, transport: Transport::Verbs })
        })
    }

    fn start(&self, session: Weak<dyn Session>) -> bool {
        self.messages.as_ref().is_none_or(|messages| messages.start(&self.pair, &session))
    }

    fn message_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.messages.as_ref().and_then(MessageChannel::permit)
    }

    fn send_message(&self, message: &[u8]) -> bool {
        self.messages.as_ref().is_some_and(|messages| messages.send(&self.pair, message))
    }

    fn wait_for_answer<'a>(
        &'a self,
        answer: &'a mut oneshot::Receiver<ReceivedAnswer>,
    ) -> BoxFuture<'a, Result<ReceivedAnswer, RecvError>> {
        Box::pin(self.adapter.wait_for(answer, &self.answer_poll))
    }

    fn abort(&self) {
        // If the device does not even do that, dropping the queue pair is what is left.
        let _ = self.pair.abort();
    }

    fn is_broken(&self) -> bool {
        self.pair.is_broken()
    }

    /// True if READs have failed and none has ever succeeded: the network of the bootstrap leads
    /// to the engine, and the RDMA network does not.
    fn is_unusable(&self) -> bool {
        self.failed.load(Ordering::Relaxed) && self.succeeded.load(Ordering::Relaxed) == 0
    }
}

impl VerbsPath {
    /// Fetches granted bytes straight into the reader's memory, which lies in `part`. Returns
    /// whether they are a whole needle, verified by its checksum.
    async fn read_direct(
        &self,
        needle: &NeedleInfo,
        granted: GrantedRange,
        read: &SentRead<'_>,
        memory: &mut dyn ReadMemory,
        part: Arc<RegisteredPart>,
    ) -> Result<bool, ReadError> {
        check_match(needle, &read.target, memory.length())?;
        let length = needle.length as usize;
        let lent = memory.lend().ok_or_else(pair_failed)?;
        let fetched = self.fetch_direct(&granted.grant, length, lent, part);
        within_lease(&granted, read.sent_at, fetched).await?;
        if !memory.take_back() {
            return Err(pair_failed());
        }
        // Before the checksum: the engine needs its staging memory.
        drop(granted);
        verify_bytes(needle, &memory.bytes()[..length])
    }

    async fn fetch_direct(
        &self,
        grant: &Grant,
        length: usize,
        memory: Box<dyn LentDestination>,
        part: Arc<RegisteredPart>,
    ) -> Result<(), ReadError> {
        let buffer = DirectBuffer::new(memory, length, part).ok_or_else(pair_failed)?;
        self.post(grant, 0, length, ReadBuffer::Direct(buffer)).await?.completed().await.map(drop)
    }

    /// Fetches granted bytes by way of bounce buffers. Returns whether they are a whole needle,
    /// verified by its checksum.
    async fn read_bounced(
        &self,
        needle: &NeedleInfo,
        granted: GrantedRange,
        read: &SentRead<'_>,
        memory: &mut dyn ReadMemory,
    ) -> Result<bool, ReadError> {
        let destination = matched_part(needle, &read.target, memory.bytes())?;
        let fetched = self.fetch_bounced(&granted.grant, destination);
        let checksum = within_lease(&granted, read.sent_at, fetched).await?;
        checksum.verify(needle)
    }

    async fn fetch_bounced(&self, grant: &Grant, destination: &mut [u8]) -> Result<ReadChecksum, ReadError> {
        let mut in_flight: VecDeque<InflightRead<'_>> = VecDeque::new();
        let (mut posted, mut filled, mut checksum) = (0, 0, ReadChecksum::default());
        while filled < destination.len() {
            while posted < destination.len() {
                // A reader that has buffers in flight does not wait for more, or two readers could
                // wait for each other.
                let taken = match in_flight.is_empty() {
                    true => self.bounce.take().await,
                    false => self.bounce.try_take(),
                };
                let Some(mut buffer) = taken else { break };
                buffer.length = BOUNCE_BUFFER_SIZE.min(destination.len() - posted);
                let length = buffer.length;
                in_flight.push_back(self.post(grant, posted, length, ReadBuffer::Bounce(buffer)).await?);
                posted += length;
            }
            let next = in_flight.pop_front().ok_or_else(pair_failed)?;
            let buffer = next.completed().await?.ok_or_else(pair_failed)?;
            let bytes = buffer.bytes();
            destination[filled..filled + bytes.len()].copy_from_slice(bytes);
            checksum.add(bytes);
            filled += bytes.len();
        }
        Ok(checksum)
    }

    /// Posts a READ of `length` bytes from `offset` of the grant on.
    async fn post(
        &self,
        grant: &Grant,
        offset: usize,
        length: usize,
        buffer: ReadBuffer,
    ) -> Result<InflightRead<'_>, ReadError> {
        let permit = self.read_permits.clone().acquire_owned().await.map_err(|_| pair_failed())?;
        let (pending, outcome) = PendingRead::new(buffer, permit, &self.succeeded);
        let address = grant.address.wrapping_add(offset as u64);
        let remote = RemoteMemory { address, rkey: grant.rkey, length: length as u64 };
        let mut reads = vec![RdmaRead { memory: PostedBuffer::Read(pending), remote, token: 0 }];
        let succeeded_before = self.succeeded.load(Ordering::Relaxed);
        self.pair.post_reads(&mut reads).map_err(|error| ReadError::Lost(error.to_string()))?;
        Ok(InflightRead { path: self, outcome: Some(outcome), posted_at: Instant::now(), succeeded_before })
    }
}

/// Waits for granted bytes until the lease is over: bytes that arrive later may be something else.
async fn within_lease<T>(
    granted: &GrantedRange,
    sent_at: BootTime,
    fetched: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, ReadError> {
    let lease = Lease::new(sent_at, Duration::from_millis(granted.grant.lease_ms.into()));
    match timeout(lease.left(BootTime::now()).unwrap_or_default(), fetched).await {
        // The timer stops while the host is suspended, so the clock is read again.
        Ok(Ok(fetched)) if lease.left(BootTime::now()).is_some() => Ok(fetched),
        Ok(Err(error)) => {
            match &error {
                ReadError::Lost(reason) => granted.session.close(reason),
                other => granted.session.close(&other.to_string()),
            }
            Err(error)
        }
        _ => Err(ReadError::Damaged("the lease was over before the bytes had come")),
    }
}

/// A READ that is posted. If it is dropped before its completion, after [`MIN_SILENCE`] in which
/// no READ succeeded, it ends the connection: a device may retry for longer than any reader would
/// wait.
struct InflightRead<'a> {
    path: &'a VerbsPath,
    outcome: Option<oneshot::Receiver<ReadResult>>,
    posted_at: Instant,
    /// How many READs had succeeded when it was posted.
    succeeded_before: u64,
}

impl InflightRead<'_> {
    async fn completed(mut self) -> Result<Option<BounceBuffer>, ReadError> {
        let outcome = match &mut self.outcome {
            Some(outcome) => self.path.adapter.wait_for(outcome, &self.path.read_poll).await,
            None => return Err(pair_failed()),
        };
        self.outcome = None;
        // A queue pair that was dropped gives no completion.
        outcome.map_err(|_| pair_failed())?.map_err(|error| {
            self.path.failed.fetch_or(error != WorkError::Flushed, Ordering::Relaxed);
            ReadError::Lost(format!("RDMA READ: {error}"))
        })
    }
}

impl Drop for InflightRead<'_> {
    fn drop(&mut self) {
        let is_silent = self.path.succeeded.load(Ordering::Relaxed) == self.succeeded_before;
        if self.outcome.is_some() && is_silent && self.posted_at.elapsed() >= MIN_SILENCE {
            self.path.failed.store(true, Ordering::Relaxed);
            self.path.abort();
        }
    }
}

fn pair_failed() -> ReadError {
    ReadError::Lost("the queue pair has failed".to_owned())
}
